/* SPDX-License-Identifier: Apache-2.0 */
/* Values in other notations as JSON, and where they end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "server/json.h"
#include "server/tool_literal.h"

#include <string.h>

#define Q "<|\"|>"

static void values_become_json(void **state) {
    (void)state;
    static const struct {
        pd_literal_notation how;
        const char *text, *want; /* NULL: it is none */
    } cases[] = {
        {PD_LITERAL_PYTHON, " 5 ", "5"},
        {PD_LITERAL_PYTHON, "-1.5e3", "-1.5e3"},
        {PD_LITERAL_PYTHON, "007", NULL},
        {PD_LITERAL_PYTHON, "1.", NULL},
        {PD_LITERAL_PYTHON, "1e", NULL},
        {PD_LITERAL_PYTHON, "-", NULL},
        {PD_LITERAL_PYTHON, "True", "true"},
        {PD_LITERAL_PYTHON, "None", "null"},
        {PD_LITERAL_PYTHON, "false", "false"},
        {PD_LITERAL_PYTHON, "word", NULL},
        {PD_LITERAL_PYTHON, "", NULL},
        {PD_LITERAL_PYTHON, "'it''s'", NULL}, /* two strings */
        {PD_LITERAL_PYTHON, "'a \"b\" \\'c\\''", "\"a \\\"b\\\" 'c'\""},
        {PD_LITERAL_PYTHON, "\"\\n\\t\\\\ \\x41 \\u00e9 \\U0001F600 \\101 \\q \\/\"", "\"\\n\\t\\\\ A \xc3\xa9 \xf0\x9f\x98\x80 A \\\\q /\""},
        {PD_LITERAL_PYTHON, "'\\ud83d\\ude00 \\ud83d \\ude00'", "\"\xf0\x9f\x98\x80 \xef\xbf\xbd \xef\xbf\xbd\""},
        {PD_LITERAL_PYTHON, "'\\x4'", NULL},
        {PD_LITERAL_PYTHON, "'\\U00110000'", NULL},
        {PD_LITERAL_PYTHON, "'open", NULL},
        {PD_LITERAL_PYTHON, "'open\\", NULL},
        {PD_LITERAL_PYTHON, "[]", "[]"},
        {PD_LITERAL_PYTHON, "[1, 'a', [True,],]", "[1, \"a\", [true]]"},
        {PD_LITERAL_PYTHON, "[1 2]", NULL},
        {PD_LITERAL_PYTHON, "[,]", NULL},
        {PD_LITERAL_PYTHON, "[1", NULL},
        {PD_LITERAL_PYTHON, "[1)", NULL},
        {PD_LITERAL_PYTHON, "(1, 2)", "[1, 2]"},
        {PD_LITERAL_PYTHON, "(1,)", "[1]"},
        {PD_LITERAL_PYTHON, "(1)", " 1"},
        {PD_LITERAL_PYTHON, "()", "[]"},
        {PD_LITERAL_PYTHON, "{'a': 1, \"b\": {'c': None}, 3: 4}", "{\"a\": 1, \"b\": {\"c\": null}, \"3\": 4}"},
        {PD_LITERAL_PYTHON, "{}", "{}"},
        {PD_LITERAL_PYTHON, "{1, 2}", NULL}, /* a set */
        {PD_LITERAL_PYTHON, "{a: 1}", NULL},
        {PD_LITERAL_PYTHON, "f(1)", NULL},
        {PD_LITERAL_PYTHON, "1 + 1", NULL},
        {PD_LITERAL_GEMMA, Q "a \"b\" \\n" Q, "\"a \\\"b\\\" \\\\n\""},
        {PD_LITERAL_GEMMA, Q "open", NULL},
        {PD_LITERAL_GEMMA, "two words", "\"two words\""},
        {PD_LITERAL_GEMMA, "", NULL},
        {PD_LITERAL_GEMMA, "-7", "-7"},
        {PD_LITERAL_GEMMA, "{a:1," Q "b c" Q ":[x," Q Q "],d:{}}", "{\"a\": 1, \"b c\": [\"x\", \"\"], \"d\": {}}"},
        {PD_LITERAL_GEMMA, "{a}", NULL},
        {PD_LITERAL_GEMMA, "'a'", "\"'a'\""}, /* no quotes there */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pd_buf out = {0};
        pd_buf_puts(&out, "x");
        const bool good = pd_literal_json(cases[i].how, cases[i].text, strlen(cases[i].text), &out);
        if (good != (cases[i].want != NULL) || strcmp(out.data + 1, cases[i].want ? cases[i].want : "") != 0)
            fail_msg("%s: %s", cases[i].text, out.data + 1);
        if (good) {
            json_t *v = json_loads(out.data + 1, JSON_DECODE_ANY, NULL);
            assert_non_null(v);
            json_decref(v);
        }
        pd_buf_done(&out);
    }
}

static void depth_is_bounded(void **state) {
    (void)state;
    char text[2 * PD_LITERAL_DEPTH_MAX + 3] = "";
    for (int deep = PD_LITERAL_DEPTH_MAX; deep <= PD_LITERAL_DEPTH_MAX + 1; deep++) {
        memset(text, '[', (size_t)deep);
        memset(text + deep, ']', (size_t)deep);
        text[2 * deep] = '\0';
        pd_buf out = {0};
        assert_int_equal(pd_literal_json(PD_LITERAL_PYTHON, text, strlen(text), &out), deep == PD_LITERAL_DEPTH_MAX);
        pd_buf_done(&out);
    }
}

/* In pieces of every size. */
static void ends_are_found(void **state) {
    (void)state;
    static const struct {
        pd_literal_notation how;
        const char *text;
        size_t end; /* 0: it has not come */
    } cases[] = {
        {PD_LITERAL_PYTHON, "5, b=1)", 1},
        {PD_LITERAL_PYTHON, "[1, (2, 3), {'a': ']'}])", 23},
        {PD_LITERAL_PYTHON, "'a\\', b'), x", 8},
        {PD_LITERAL_PYTHON, "\"it's\")", 6},
        {PD_LITERAL_PYTHON, "'open, ", 0},
        {PD_LITERAL_PYTHON, "[1, 2", 0},
        {PD_LITERAL_GEMMA, Q "a, b}" Q ",c:1}", 15},
        {PD_LITERAL_GEMMA, "it's,", 4},
        {PD_LITERAL_GEMMA, "a<b,", 3},
        {PD_LITERAL_GEMMA, Q "open" "<|\"", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const size_t n = strlen(cases[i].text);
        for (size_t piece = 1; piece <= n; piece++) {
            pd_literal_scan scan = {0};
            bool found = false;
            for (size_t k = 0; !found && k < n;) {
                k = k + piece < n ? k + piece : n;
                found = pd_literal_end(&scan, cases[i].how, cases[i].text, k);
            }
            if (found != (cases[i].end > 0) || (found && scan.at != cases[i].end)) fail_msg("%s: %zu", cases[i].text, scan.at);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_become_json),
        cmocka_unit_test(depth_is_bounded),
        cmocka_unit_test(ends_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
