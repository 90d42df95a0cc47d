/* SPDX-License-Identifier: Apache-2.0 */
/* Templates: hostile text, compiled and rendered over a conversation.
 *
 *   template [NUL content]
 *
 * Nothing crashes or hangs, errors have words, spans are in order, and a character that
 * only the messages have is marked as theirs wherever it comes out. */
#include "engine/jinja/jinja.h"

#include "engine/base/utf8.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(cond)                                                                                 \
    do {                                                                                           \
        if (!(cond)) __builtin_trap();                                                             \
    } while (0)

enum { MARK = 1 };

static pd_jval text(pd_jheap *h, const char *s, uint16_t origin) {
    return pd_jstr(h, s, strlen(s), origin);
}

static pd_jval conversation(pd_jheap *h, const char *content, size_t n) {
    static const char *const role[] = {"system", "user", "assistant", "tool"};
    pd_jval vars = pd_jdict(h, 8, 0), list = pd_jlist(h, 4, 0), tools = pd_jlist(h, 1, PD_JORIGIN_OTHER);
    for (uint16_t i = 0; i < 4; i++) {
        pd_jval m = pd_jdict(h, 4, (uint16_t)(i + 1));
        pd_jdict_set(h, m, "role", text(h, role[i], 0));
        pd_jdict_set(h, m, "content", i == 1 ? pd_jstr(h, content, n, 2) : text(h, "a \x01 b", (uint16_t)(i + 1)));
        if (i == 2) pd_jdict_set(h, m, "n", pd_jfloat(2.5));
        pd_jlist_add(h, list, m);
    }
    pd_jval tool = pd_jdict(h, 4, PD_JORIGIN_OTHER);
    pd_jdict_set(h, tool, "type", text(h, "function", PD_JORIGIN_OTHER));
    pd_jdict_set(h, tool, "function", *pd_jdict_get(tool, "type"));
    pd_jdict_set(h, tool, "n", pd_jint(-3));
    pd_jlist_add(h, tools, tool);
    pd_jdict_set(h, vars, "messages", list);
    pd_jdict_set(h, vars, "tools", tools);
    pd_jdict_set(h, vars, "d", tool);
    pd_jdict_set(h, vars, "s", text(h, "Some Text", 0));
    pd_jdict_set(h, vars, "t", pd_jbool(true));
    pd_jdict_set(h, vars, "bos_token", text(h, "<s>", 0));
    return vars;
}

static void check_spans(const pd_jspan *s, size_t n, const pd_jout *out) {
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        MUST(s[i].begin >= at && s[i].begin < s[i].end && s[i].end <= out->len && s[i].origin != 0);
        at = s[i].end;
    }
}

static void check_marks(const pd_jout *out) {
    size_t k = 0;
    for (size_t i = 0; i < out->len; i++) {
        while (k < out->n_client && out->client[k].end <= i) k++;
        if (out->text[i] == MARK) MUST(k < out->n_client && out->client[k].begin <= i);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *t = (const char *)data;
    const char *nul = memchr(t, 0, size);
    const size_t n = nul ? (size_t)(nul - t) : size;
    const char *content = nul ? nul + 1 : "\x01 text <|x|>";
    const size_t n_content = nul ? size - n - 1 : strlen(content);
    pd_jinja *j = NULL;
    pd_err err = {0};
    pd_jheap given = {0}, h = {.limit = (size_t)32 << 20};
    pd_jout out = {0};
    const pd_status rc = pd_jinja_compile(&j, t, n, &err);
    if (rc != PD_OK) {
        MUST(!j && rc == PD_EINVAL && err.msg[0] && pd_utf8_valid(err.msg, strlen(err.msg)));
        return 0;
    }
    const pd_jval vars = conversation(&given, content, n_content);
    if (pd_jinja_render(j, &h, vars, 1, &out, &err) == PD_OK) {
        MUST(out.text[out.len] == '\0');
        check_spans(out.client, out.n_client, &out);
        check_spans(out.turn, out.n_turn, &out);
        /* Unless the template can write the mark itself. */
        if (!memchr(t, MARK, n) && !memchr(t, '\\', n)) check_marks(&out);
        if (pd_utf8_valid(content, n_content)) MUST(pd_utf8_valid(out.text, out.len));
    } else {
        MUST(err.code == PD_EINVAL || err.code == PD_ENOMEM);
        MUST(err.msg[0] && (!pd_utf8_valid(content, n_content) || pd_utf8_valid(err.msg, strlen(err.msg))));
    }
    pd_jheap_done(&h);
    pd_jheap_done(&given);
    pd_jinja_close(j);
    return 0;
}
