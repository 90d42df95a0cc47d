/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzz target: the input up to the first zero byte is a regular expression, the rest a
 * text.  Refused with words, or a grammar that is refused for its size alone; and the
 * text matches bare exactly if it does in a JSON string, escaped. */
#include "engine/base/utf8.h"
#include "engine/grammar/grammar.h"
#include "server/pattern_grammar.h"

#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(cond)                                                                                 \
    do {                                                                                           \
        if (!(cond)) __builtin_trap();                                                             \
    } while (0)

/* NULL: refused. */
static pd_grammar *compile(const char *re, size_t n, bool in_json, bool search) {
    const pd_pattern_use use = {.in_json = in_json, .search = search, .max = n % 5 ? -1 : (int64_t)n % 7, .name = "p", .path = "pattern"};
    pd_buf gbnf = {0}, root = {0};
    pd_grammar *g = NULL;
    pd_err err = {0};
    pd_buf_puts(&root, "root ::= ");
    pd_status rc = pd_pattern_grammar(re, n, &use, &root, &gbnf, &err);
    if (rc == PD_OK) {
        pd_buf_add(&gbnf, root.data, root.len);
        rc = pd_grammar_parse(&g, gbnf.data, gbnf.len, "pattern", &err);
        MUST(rc == PD_OK || !strstr(err.msg, "line ")); /* what is written is GBNF */
    }
    if (rc != PD_OK) MUST(err.msg[0] && pd_utf8_valid(err.msg, strlen(err.msg)));
    pd_buf_done(&gbnf);
    pd_buf_done(&root);
    return rc == PD_OK ? g : NULL;
}

static int matches(pd_grammar *g, const char *s, size_t n) {
    pd_matcher *m;
    pd_err err = {0};
    MUST(pd_matcher_open(&m, g, &err) == PD_OK);
    const bool ok = pd_matcher_take(m, s, n) && pd_matcher_may_end(m);
    const int ret = pd_matcher_failed(m) ? -1 : ok;
    pd_matcher_close(m);
    return ret;
}

/* As the shortest JSON has it. */
static void escape(pd_buf *to, const char *s, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const unsigned char c = (unsigned char)s[i];
        const char *at = c ? strchr("\"\\\b\t\n\f\r", c) : NULL;
        if (at) pd_buf_printf(to, "\\%c", "\"\\btnfr"[at - "\"\\\b\t\n\f\r"]);
        else if (c < 0x20) pd_buf_printf(to, "\\u%04x", c);
        else pd_buf_putc(to, (char)c);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *s = (const char *)data, *zero = size ? memchr(data, 0, size) : NULL;
    const size_t n = zero ? (size_t)(zero - s) : size;
    pd_grammar *bare = compile(s, n, false, false), *json = compile(s, n, true, false), *within = compile(s, n, true, true);
    if (zero && bare && json) {
        pd_buf text = {0};
        pd_buf_puts(&text, "");
        escape(&text, zero + 1, size - n - 1);
        const int a = matches(bare, zero + 1, size - n - 1), b = matches(json, text.len ? text.data : "", text.len);
        MUST(a == b || a < 0 || b < 0);
        const int c = within ? matches(within, text.len ? text.data : "", text.len) : -1;
        MUST(b != 1 || c != 0); /* what matches whole is found */
        pd_buf_done(&text);
    }
    pd_grammar_unref(bare);
    pd_grammar_unref(json);
    pd_grammar_unref(within);
    return 0;
}
