/* SPDX-License-Identifier: Apache-2.0 */
/* What a model says, read for tool calls: in one piece and in any others it gives the
 * same content and calls, in valid JSON, and as content comes nothing that was not said.
 * Taken in the order they were said, they are the same too.
 *
 *   form, size of pieces, text */
#include "server/tool_calls.h"

#include "engine/base/utf8.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(cond)                                                                                 \
    do {                                                                                           \
        if (!(cond)) __builtin_trap();                                                             \
    } while (0)

/* Whole code points, as the engine gives them. */
static size_t piece_len(const char *s, size_t n, size_t piece) {
    size_t k = 0;
    while (k < n && (k < piece || ((unsigned char)s[k] & 0xC0) == 0x80)) k++;
    return k;
}

static json_t *parsed(const pd_buf *members) {
    pd_buf text = {0};
    pd_buf_printf(&text, "{%s}", members->len ? members->data : "");
    json_t *j = json_loads(text.data, JSON_ALLOW_NUL, NULL);
    MUST(j);
    pd_buf_done(&text);
    return j;
}

/* The message without its ids, which are drawn. */
static json_t *whole(const pd_tools *t, const char *s, size_t n) {
    pd_tool_reader *r = pd_tool_reader_open(t);
    pd_buf out = {0};
    size_t i;
    json_t *call;
    MUST(r);
    pd_tool_reader_add(r, s, n);
    pd_tool_reader_end(r);
    MUST(!pd_tool_reader_failed(r));
    pd_tool_reader_message(r, &out);
    json_t *j = parsed(&out);
    MUST(json_array_size(json_object_get(j, "tool_calls")) == pd_tool_reader_calls(r));
    json_array_foreach(json_object_get(j, "tool_calls"), i, call) json_object_del(call, "id");
    pd_buf_done(&out);
    pd_tool_reader_close(r);
    return j;
}

static void append(json_t *to, const char *key, const json_t *more) {
    const json_t *old = json_object_get(to, key);
    pd_buf b = {0};
    if (json_is_string(old)) pd_buf_add(&b, json_string_value(old), json_string_length(old));
    if (json_is_string(more)) pd_buf_add(&b, json_string_value(more), json_string_length(more));
    json_object_set_new(to, key, json_stringn(b.data ? b.data : "", b.len));
    pd_buf_done(&b);
}

static json_t *streamed(const pd_tools *t, const char *s, size_t n, size_t piece) {
    pd_tool_reader *r = pd_tool_reader_open(t);
    json_t *all = json_pack("{s:n, s:[]}", "content", "tool_calls"), *calls = json_object_get(all, "tool_calls");
    bool more = true;
    MUST(r && all);
    while (more) {
        pd_buf out = {0};
        const size_t k = piece_len(s, n, piece);
        more = k > 0;
        if (more) pd_tool_reader_add(r, s, k);
        else pd_tool_reader_end(r);
        s += k;
        n -= k;
        const bool ready = pd_tool_reader_ready(r);
        MUST(pd_tool_reader_delta(r, &out) == ready);
        json_t *d = parsed(&out), *one;
        size_t i;
        if (json_object_get(d, "content")) append(all, "content", json_object_get(d, "content"));
        json_array_foreach(json_object_get(d, "tool_calls"), i, one) {
            const size_t at = (size_t)json_integer_value(json_object_get(one, "index"));
            const json_t *f = json_object_get(one, "function");
            if (json_object_get(one, "id")) {
                MUST(at == json_array_size(calls));
                json_array_append_new(calls, json_pack("{s:O, s:{s:O}}", "type", json_object_get(one, "type"), "function",
                                                       "name", json_object_get(f, "name")));
            }
            MUST(at < json_array_size(calls));
            append(json_object_get(json_array_get(calls, at), "function"), "arguments", json_object_get(f, "arguments"));
        }
        json_decref(d);
        pd_buf_done(&out);
    }
    if (json_array_size(calls) == 0) {
        json_object_del(all, "tool_calls");
        if (json_is_null(json_object_get(all, "content"))) json_object_set_new(all, "content", json_string(""));
    }
    pd_tool_reader_close(r);
    return all;
}

static json_t *taken(const pd_tools *t, const char *s, size_t n, size_t piece) {
    pd_tool_reader *r = pd_tool_reader_open(t);
    json_t *all = json_pack("{s:s, s:[]}", "content", "", "tool_calls"), *calls = json_object_get(all, "tool_calls");
    bool more = true;
    MUST(r && all);
    while (more) {
        const size_t k = piece_len(s, n, piece);
        pd_tool_piece p;
        more = k > 0;
        if (more) pd_tool_reader_add(r, s, k);
        else pd_tool_reader_end(r);
        s += k;
        n -= k;
        while (pd_tool_reader_take(r, &p)) {
            json_t *text = json_stringn_nocheck(p.text, p.len);
            MUST(p.len || p.first);
            if (!p.call) append(all, "content", text);
            if (p.first)
                json_array_append_new(calls, json_pack("{s:s, s:{s:o}}", "type", "function", "function", "name",
                                                       json_stringn_nocheck(p.call->name.data, p.call->name.len)));
            if (p.call) {
                MUST(p.index + 1 == json_array_size(calls));
                append(json_object_get(json_array_get(calls, p.index), "function"), "arguments", text);
            }
            json_decref(text);
        }
    }
    if (json_array_size(calls) == 0) json_object_del(all, "tool_calls");
    else if (json_string_length(json_object_get(all, "content")) == 0) json_object_set_new(all, "content", json_null());
    pd_tool_reader_close(r);
    return all;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static char now[] = "now", weather[] = "weather", *name[] = {now, weather};
    static char begun[] = "<tool_call>\n{\"name\": \"now\", \"arguments\":";
    if (size < 2 || !pd_utf8_valid((const char *)data + 2, size - 2)) return 0;
    static const char *const mark[] = {"<|START_ACTION|>", "<tool_calls>", "functools["};
    const pd_tools t = {.parallel = !(data[0] & 64), .format = (pd_tool_format)((data[0] & 31) % PD_TOOL_FORMATS), .name = name,
                        .n = 2, .mark = mark[data[1] % 3], .begun = data[0] & 32 ? begun : NULL};
    json_t *one = whole(&t, (const char *)data + 2, size - 2);
    json_t *many = streamed(&t, (const char *)data + 2, size - 2, 1 + data[1] % 32);
    json_t *pieces = taken(&t, (const char *)data + 2, size - 2, 1 + data[1] % 32);
    MUST(json_equal(one, many) && json_equal(one, pieces));
    json_decref(one);
    json_decref(pieces);
    json_decref(many);
    return 0;
}
