/* SPDX-License-Identifier: Apache-2.0 */
/* A client's tools, tool_choice and response_format, to the grammar of the answer: all
 * bytes are refused or give one, and what a walk through it writes is JSON for every call.
 *
 *   form of a call, how the walk goes on, the request's body */
#include "server/structured.h"
#include "server/tool_calls.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(cond)                                                                                 \
    do {                                                                                           \
        if (!(cond)) __builtin_trap();                                                             \
    } while (0)

static const char *const forms[] = {"{{ messages }}", "{{ tools }}<|python_tag|>", "{{ tools }}[TOOL_CALLS]",
                                    "{{ tools }}[TOOL_CALLS][ARGS]", "{{ tools }}<function=", "{{ messages }}<｜tool▁call▁begin｜>```json", "{{ messages }}<｜tool▁call▁begin｜>",
                                    "{{ tools }}<|tool_call_argument_begin|>", "{{ tools }}<|START_ACTION|>", "{{ tools }}functools["};
enum { N_FORM = sizeof forms / sizeof *forms, WALK_MAX = 2000 };

/* Calls that are whole have JSON objects as their arguments. */
static void check_calls(const pd_tools *t, const char *text, size_t n) {
    pd_tool_reader *r = pd_tool_reader_open(t);
    pd_buf out = {0};
    size_t i;
    json_t *call;
    MUST(r);
    pd_tool_reader_add(r, text, n);
    pd_tool_reader_end(r);
    pd_buf_puts(&out, "{");
    pd_tool_reader_message(r, &out);
    pd_buf_puts(&out, "}");
    json_t *j = json_loadb(out.data, out.len, 0, NULL);
    MUST(j);
    MUST(!t->begun || pd_tool_reader_calls(r) > 0);
    json_array_foreach(json_object_get(j, "tool_calls"), i, call) {
        const char *arguments = json_string_value(json_object_get(json_object_get(call, "function"), "arguments"));
        json_t *a = json_loads(arguments, JSON_ALLOW_NUL, NULL);
        MUST(json_is_object(a));
        json_decref(a);
    }
    json_decref(j);
    pd_buf_done(&out);
    pd_tool_reader_close(r);
}

/* Bytes that fit, drawn, those that close something more often than not. */
static void walk(const pd_tools *t, pd_grammar *g, unsigned seed) {
    pd_matcher *m = NULL;
    pd_err err = {0};
    pd_buf text = {0};
    if (pd_matcher_open(&m, g, &err) != PD_OK) return; /* too many ways to begin */
    while (text.len < WALK_MAX && !pd_matcher_must_end(m)) {
        static const char closing[] = "}]\"";
        char fit[256];
        size_t n = 0;
        bool closes = false;
        for (int b = 0; b < 256; b++) {
            const char c = (char)b;
            if (pd_matcher_fits(m, &c, 1)) fit[n++] = c;
        }
        if (pd_matcher_failed(m)) break;
        MUST(n > 0); /* a grammar never leads nowhere */
        seed = (seed * 25173 + 13849) % 65536; /* no product is too large */
        char c = fit[(seed >> 4) % n];
        for (size_t i = 0; i < 3 && !closes && (seed >> 5) % 4; i++) {
            closes = memchr(fit, closing[i], n) != NULL;
            if (closes) c = closing[i];
        }
        MUST(pd_matcher_take(m, &c, 1));
        pd_buf_putc(&text, c);
    }
    if (!pd_matcher_failed(m) && pd_matcher_must_end(m)) check_calls(t, text.data ? text.data : "", text.len);
    pd_matcher_close(m);
    pd_buf_done(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static pd_chat *chat[N_FORM];
    if (size < 2) return 0;
    pd_chat **c = &chat[data[0] % N_FORM];
    if (!*c) MUST(pd_chat_open(c, NULL, forms[data[0] % N_FORM], NULL, NULL) == PD_OK);
    json_t *body = NULL;
    pd_tools *t = NULL;
    pd_grammar *form = NULL, *g = NULL;
    pd_err err = {0};
    if (pd_json_parse(&body, (const char *)data + 2, size - 2, &err) != PD_OK) return 0;
    pd_status rc = pd_structured_decode(body, &form, &err);
    if (rc == PD_OK) rc = pd_tools_decode(body, &t, &err);
    if (rc == PD_OK && t) rc = pd_tools_fit(t, *c, NULL, &err);
    if (rc == PD_OK && t) rc = pd_tools_grammar(t, pd_json_get(body, "tools"), pd_structured_form(body), &g, &err);
    MUST(rc == PD_OK || (rc == PD_EINVAL && err.msg[0]));
    if (g) walk(t, g, data[1]);
    pd_grammar_unref(g);
    pd_grammar_unref(form);
    pd_tools_close(t);
    json_decref(body);
    return 0;
}
