/* SPDX-License-Identifier: Apache-2.0 */
/* POST /v1/responses: OpenAI's Responses API, text and functions, without memory.
 *
 * A body is a chat's in other words: "instructions" is the first message, "input" the
 * others, "max_output_tokens" the bound.  Nothing is stored, so what refers to an
 * earlier response is refused.  The output's items are messages of one text part, and
 * function calls; a stream's events have sequence numbers, and the last ones of an item
 * and of the response repeat the whole of it.
 * DIFFERS: a function that does not say "strict" is not (OpenAI's are here, after a change
 * of their schema that we do not make). */
#include "server/generate.h"
#include "server/router.h"
#include "server/server.h"
#include "server/sse.h"
#include "server/translate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the request ---- */

/* A part of content -> a chat's, appended to `list`. */
static pd_status translate_part(const json_t *part, const char *at, json_t *list, pd_err *err) {
    const char *type = json_string_value(pd_json_get(part, "type"));
    json_t *text = pd_json_get(part, "text");
    if (!type || (strcmp(type, "input_text") != 0 && strcmp(type, "output_text") != 0 &&
                  strcmp(type, "text") != 0))
        return pd_fail(err, PD_EINVAL, at,
                       "%s has type \"%.40s\"; only \"input_text\" and \"output_text\" are served", at,
                       type ? type : "");
    if (!json_is_string(text))
        return pd_fail(err, PD_EINVAL, at, "%s.text must be a string", at);
    if (json_array_append_new(list, json_pack("{s:s, s:O}", "type", "text", "text", text)) != 0)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the input");
    return PD_OK;
}

static pd_status no_memory(pd_err *err) {
    return pd_fail(err, PD_ENOMEM, NULL, "no memory for the input");
}

/* Text or parts at `at` -> a chat's content, which the caller lets go. */
static pd_status translate_content(const json_t *content, const char *at, json_t **ret, pd_err *err) {
    if (json_is_string(content)) {
        *ret = json_incref((json_t *)(uintptr_t)content);
        return PD_OK;
    }
    if (!json_is_array(content))
        return pd_fail(err, PD_EINVAL, at, "%s is %s; a string or an array is expected", at, pd_json_type_name(content));
    json_t *parts = json_array();
    pd_status st = parts ? PD_OK : no_memory(err);
    for (size_t k = 0; k < json_array_size(content) && st == PD_OK; k++) {
        char one[96];
        snprintf(one, sizeof one, "%s[%zu]", at, k);
        st = translate_part(json_array_get(content, k), one, parts, err);
    }
    if (st == PD_OK) *ret = parts;
    else json_decref(parts);
    return st;
}

static pd_status translate_message(const json_t *item, const char *at, json_t *list, pd_err *err) {
    const char *role = json_string_value(pd_json_get(item, "role"));
    char where[80];
    if (!role) return pd_fail(err, PD_EINVAL, at, "%s must be a message with a \"role\"", at);
    snprintf(where, sizeof where, "%s.content", at);
    json_t *content;
    PD_TRY(translate_content(pd_json_get(item, "content"), where, &content, err));
    json_t *message = json_pack("{s:s, s:o}", "role", role, "content", content);
    return json_array_append_new(list, message) == 0 ? PD_OK : no_memory(err);
}

/* A call is a part of the assistant's message in front of it, as a chat has it. */
static pd_status translate_call(const json_t *item, const char *at, json_t *list, pd_err *err) {
    const char *id = json_string_value(pd_json_get(item, "call_id"));
    const char *name = json_string_value(pd_json_get(item, "name"));
    json_t *arguments = pd_json_get(item, "arguments");
    if (!id || !id[0] || !name || !name[0] || !json_is_string(arguments))
        return pd_fail(err, PD_EINVAL, at, "%s must have the strings \"call_id\", \"name\" and \"arguments\"", at);
    const size_t n = json_array_size(list);
    json_t *last = n ? json_array_get(list, n - 1) : NULL;
    const char *role = json_string_value(pd_json_get(last, "role"));
    if (!role || strcmp(role, "assistant") != 0) {
        if (json_array_append_new(list, json_pack("{s:s, s:s}", "role", "assistant", "content", "")) != 0) return no_memory(err);
        last = json_array_get(list, n);
    }
    return pd_translate_call(last, id, name, arguments, err);
}

static pd_status translate_output(const json_t *item, const char *at, json_t *list, pd_err *err) {
    const char *id = json_string_value(pd_json_get(item, "call_id"));
    char where[80];
    if (!id || !id[0]) return pd_fail(err, PD_EINVAL, at, "%s.call_id must be a string", at);
    snprintf(where, sizeof where, "%s.output", at);
    json_t *content;
    PD_TRY(translate_content(pd_json_get(item, "output"), where, &content, err));
    const pd_status st = pd_translate_result(list, id, content, err);
    json_decref(content);
    return st;
}

/* An item of input -> a message, or a part of one, at the end of `list`. */
static pd_status translate_item(const json_t *item, size_t i, json_t *list, pd_err *err) {
    char at[64];
    snprintf(at, sizeof at, "input[%zu]", i);
    const json_t *kind = pd_json_get(item, "type");
    const char *type = kind ? json_string_value(kind) : "message";
    if (type && strcmp(type, "message") == 0) return translate_message(item, at, list, err);
    if (type && strcmp(type, "function_call") == 0) return translate_call(item, at, list, err);
    if (type && strcmp(type, "function_call_output") == 0) return translate_output(item, at, list, err);
    return pd_fail(err, PD_EINVAL, at,
                   "%s has type \"%.40s\"; only \"message\", \"function_call\" and \"function_call_output\" are served", at,
                   type ? type : pd_json_type_name(kind));
}

static pd_status translate_input(json_t *body, pd_err *err) {
    json_t *input = pd_json_get(body, "input");
    if (!json_is_string(input) && json_array_size(input) == 0)
        return pd_fail(err, PD_EINVAL, "input",
                       "input is %s; a string or a non-empty array of messages is expected",
                       input ? pd_json_type_name(input) : "missing");
    if (json_array_size(input) > PD_REQUEST_MESSAGES_MAX)
        return pd_fail(err, PD_EINVAL, "input", "input has %zu items; at most %d are allowed",
                       json_array_size(input), PD_REQUEST_MESSAGES_MAX);
    json_t *list = json_array();
    pd_status st = list ? PD_OK : pd_fail(err, PD_ENOMEM, NULL, "no memory for the input");
    if (st == PD_OK && json_is_string(input) &&
        json_array_append_new(list, json_pack("{s:s, s:O}", "role", "user", "content", input)) != 0)
        st = pd_fail(err, PD_ENOMEM, NULL, "no memory for the input");
    for (size_t i = 0; i < json_array_size(input) && st == PD_OK; i++)
        st = translate_item(json_array_get(input, i), i, list, err);
    if (st == PD_OK && json_object_set(body, "messages", list) != 0)
        st = pd_fail(err, PD_ENOMEM, NULL, "no memory for the input");
    json_decref(list);
    return st;
}

/* text.format is a chat's response_format with the members of a schema one level up. */
static pd_status translate_format(json_t *body, pd_err *err) {
    const json_t *text = pd_json_get(body, "text");
    if (text && !json_is_object(text))
        return pd_fail(err, PD_EINVAL, "text", "text is %s; an object is expected",
                       pd_json_type_name(text));
    json_t *format = text ? pd_json_get(text, "format") : NULL;
    const char *type = json_string_value(pd_json_get(format, "type"));
    if (!format) return PD_OK;
    json_t *chat = type && strcmp(type, "json_schema") == 0
                       ? json_pack("{s:s, s:O}", "type", type, "json_schema", format)
                       : json_incref(format);
    if (!chat || json_object_set_new(body, "response_format", chat) != 0)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the format");
    return PD_OK;
}

/* "key": value as it was sent, or null. */
static pd_status repeat(const json_t *body, const char *key, pd_gen *g, pd_err *err) {
    const json_t *v = pd_json_get(body, key);
    pd_buf_printf(&g->asked, ",\"%s\":", key);
    if (v && !json_is_string(v))
        return pd_fail(err, PD_EINVAL, key, "%s is %s; a string is expected", key,
                       pd_json_type_name(v));
    if (v) pd_json_str(&g->asked, json_string_value(v), json_string_length(v));
    else pd_buf_puts(&g->asked, "null");
    return PD_OK;
}

/* "key": what was sent, or `otherwise`, JSON. */
static pd_status repeat_json(const json_t *body, const char *key, const char *otherwise, pd_gen *g, pd_err *err) {
    const json_t *v = pd_json_get(body, key);
    char *text = v ? json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    if (v && !text) return no_memory(err);
    pd_buf_printf(&g->asked, ",\"%s\":", key);
    pd_buf_puts(&g->asked, text ? text : otherwise);
    free(text);
    return PD_OK;
}

/* Its choices of a function have the name one level up. */
static pd_status translate_tools(json_t *body, pd_gen *g, pd_err *err) {
    PD_TRY(repeat_json(body, "tools", "[]", g, err));
    PD_TRY(repeat_json(body, "tool_choice", "\"auto\"", g, err));
    PD_TRY(repeat_json(body, "parallel_tool_calls", "true", g, err));
    PD_TRY(pd_translate_tools(body, "function", false, "parameters", err));
    const json_t *choice = pd_json_get(body, "tool_choice");
    const char *type = json_string_value(pd_json_get(choice, "type"));
    const char *name = json_string_value(pd_json_get(choice, "name"));
    if (!choice || json_is_string(choice)) return PD_OK;
    if (type && strcmp(type, "function") == 0 && name) return pd_translate_choice(body, NULL, name, err);
    return pd_fail(err, PD_EINVAL, "tool_choice",
                   "tool_choice must be \"none\", \"auto\", \"required\" or {\"type\": \"function\", \"name\": ...}");
}

static pd_status translate(json_t *body, pd_gen *g, pd_err *err) {
    int64_t n = 0;
    static const char *const stateful[] = {"previous_response_id", "conversation", "prompt"};
    PD_TRY(pd_json_int(body, "", "max_output_tokens", 1, INT32_MAX, &n, NULL, err));
    for (size_t i = 0; i < sizeof stateful / sizeof stateful[0]; i++)
        PD_TRY(pd_translate_refuse(body, stateful[i], err, NULL));
    PD_TRY(pd_translate_refuse(body, "background", err, "false", NULL));
    PD_TRY(translate_tools(body, g, err));
    pd_translate_forget(body, NULL);
    PD_TRY(translate_format(body, err));
    PD_TRY(translate_input(body, err));
    PD_TRY(repeat(body, "instructions", g, err));
    json_t *system = pd_json_get(body, "instructions");
    if (system) PD_TRY(pd_translate_system(body, system, err));
    return pd_translate_rename(body, "max_output_tokens", "max_completion_tokens", err);
}

/* ---- the reply ---- */

/* "msg_" or "fc_", the response's own, and which of its items it is. */
static void item_id(const pd_gen *g, pd_buf *out, const pd_block *b) {
    pd_buf_printf(out, "\"%s_%s%02zx\"", b->call ? "fc" : "msg", g->id + strlen("resp_"), b->index);
}

static void part(pd_buf *out, const char *text, size_t len) {
    pd_buf_puts(out, "{\"type\":\"output_text\",\"annotations\":[],\"logprobs\":[],\"text\":");
    pd_json_str(out, text, len);
    pd_buf_putc(out, '}');
}

/* `begun`: nothing of it is there yet. */
static void item(const pd_gen *g, pd_buf *out, const char *status, const pd_block *b, bool begun) {
    pd_buf_printf(out, "{\"type\":\"%s\",\"id\":", b->call ? "function_call" : "message");
    item_id(g, out, b);
    pd_buf_printf(out, ",\"status\":\"%s\",", status);
    if (b->call) {
        pd_buf_printf(out, "\"call_id\":\"%s\",\"name\":", b->call->id);
        pd_json_str(out, b->call->name.data, b->call->name.len);
        pd_buf_puts(out, ",\"arguments\":");
        pd_json_str(out, b->text, begun ? 0 : b->len);
    } else {
        pd_buf_puts(out, "\"role\":\"assistant\",\"content\":[");
        if (!begun) part(out, b->text, b->len);
        pd_buf_putc(out, ']');
    }
    pd_buf_putc(out, '}');
}

static void usage(const pd_gen *g, pd_buf *out) {
    pd_buf_printf(out,
                  "{\"input_tokens\":%zu,\"input_tokens_details\":{\"cached_tokens\":0},"
                  "\"output_tokens\":%zu,\"output_tokens_details\":{\"reasoning_tokens\":0},"
                  "\"total_tokens\":%zu}",
                  g->n_prompt, g->n_out, g->n_prompt + g->n_out);
}

static const char *last_status(const pd_answer *a) {
    return pd_job_get_result(a->call->job)->finish == PD_FINISH_LENGTH ? "incomplete" : "completed";
}

/* The response before its output. */
static void response_head(const pd_gen *g, pd_buf *out, const char *status) {
    pd_buf_printf(out, "{\"id\":\"%s\",\"object\":\"response\",\"created_at\":%lld,\"status\":\"%s\",\"model\":",
                  g->id, (long long)g->created, status);
    pd_json_cstr(out, g->srv->model_id);
    pd_buf_puts(out, ",\"output\":[");
}

/* And behind it; `over`: with its numbers. */
static void response_end(pd_gen *g, pd_buf *out, const char *status, bool over) {
    const pd_request *r = &g->rq;
    pd_buf_printf(out, "],\"error\":null,\"incomplete_details\":%s",
                  strcmp(status, "incomplete") == 0 ? "{\"reason\":\"max_output_tokens\"}" : "null");
    pd_buf_add(out, g->asked.data, g->asked.len);
    if (g->asked.failed) out->failed = true;
    pd_buf_puts(out, ",\"max_output_tokens\":");
    if (r->max_given) pd_json_u64(out, r->max_tokens);
    else pd_buf_puts(out, "null");
    pd_buf_puts(out, ",\"temperature\":");
    pd_json_f32(out, r->sampling.temperature);
    pd_buf_puts(out, ",\"top_p\":");
    pd_json_f32(out, r->sampling.top_p);
    pd_buf_puts(out, ",\"store\":false,\"previous_response_id\":null,\"metadata\":{},\"truncation\":\"disabled\",\"usage\":");
    if (over) {
        usage(g, out);
        pd_buf_putc(out, ',');
        pd_gen_meta(g, out, false);
    } else {
        pd_buf_puts(out, "null");
    }
    pd_buf_putc(out, '}');
}

static void block(pd_answer *a, pd_buf *out, const pd_block *b) {
    item(a->gen, out, b->last ? last_status(a) : "completed", b, false);
}

static void whole(pd_answer *a, pd_buf *out) {
    response_head(a->gen, out, last_status(a));
    pd_dialect_blocks(a, out);
    response_end(a->gen, out, last_status(a), true);
}

/* `{"type":NAME,"sequence_number":N`; the caller goes on behind it. */
static void event(pd_gen *g, pd_buf *out, const char *name) {
    pd_sse_begin_named(out, name);
    pd_buf_printf(out, "{\"type\":\"%s\",\"sequence_number\":%zu", name, g->n_event++);
}

static void event_end(pd_buf *out) {
    pd_buf_putc(out, '}');
    pd_sse_end(out);
}

/* An event about an item, up to its own members. */
static void item_event(pd_gen *g, pd_buf *out, const char *name, const pd_block *b) {
    event(g, out, name);
    pd_buf_puts(out, ",\"item_id\":");
    item_id(g, out, b);
    pd_buf_printf(out, ",\"output_index\":%zu", b->index);
    if (!b->call) pd_buf_puts(out, ",\"content_index\":0");
}

static void begin(pd_answer *a, pd_buf *out) {
    pd_gen *g = a->gen;
    static const char *const first[] = {"response.created", "response.in_progress"};
    for (size_t i = 0; i < 2; i++) {
        event(g, out, first[i]);
        pd_buf_puts(out, ",\"response\":");
        response_head(g, out, "in_progress");
        response_end(g, out, "in_progress", false);
        event_end(out);
    }
}

static void open_item(pd_answer *a, pd_buf *out, const pd_block *b) {
    pd_gen *g = a->gen;
    pd_buf_clear(&g->said);
    event(g, out, "response.output_item.added");
    pd_buf_printf(out, ",\"output_index\":%zu,\"item\":", b->index);
    item(g, out, "in_progress", b, true);
    event_end(out);
    if (b->call) return;
    item_event(g, out, "response.content_part.added", b);
    pd_buf_puts(out, ",\"part\":");
    part(out, "", 0);
    event_end(out);
}

static void more(pd_answer *a, pd_buf *out, const pd_block *b) {
    pd_gen *g = a->gen;
    if (!b->call) pd_buf_add(&g->said, b->text, b->len);
    item_event(g, out, b->call ? "response.function_call_arguments.delta" : "response.output_text.delta", b);
    pd_buf_puts(out, b->call ? ",\"delta\":" : ",\"logprobs\":[],\"delta\":");
    pd_json_str(out, b->text, b->len);
    event_end(out);
}

static void close_item(pd_answer *a, pd_buf *out, const pd_block *last) {
    pd_gen *g = a->gen;
    pd_block b = *last;
    if (b.call) {
        item_event(g, out, "response.function_call_arguments.done", &b);
        pd_buf_puts(out, ",\"name\":");
        pd_json_str(out, b.call->name.data, b.call->name.len);
        pd_buf_puts(out, ",\"arguments\":");
        pd_json_str(out, b.text, b.len);
        event_end(out);
    } else {
        b.text = g->said.data;
        b.len = g->said.len;
        item_event(g, out, "response.output_text.done", &b);
        pd_buf_puts(out, ",\"logprobs\":[],\"text\":");
        pd_json_str(out, b.text, b.len);
        event_end(out);
        item_event(g, out, "response.content_part.done", &b);
        pd_buf_puts(out, ",\"part\":");
        part(out, b.text, b.len);
        event_end(out);
    }
    if (b.index) pd_buf_putc(&g->told, ',');
    const size_t from = g->told.len;
    item(g, &g->told, b.last ? last_status(a) : "completed", &b, false);
    event(g, out, "response.output_item.done");
    pd_buf_printf(out, ",\"output_index\":%zu,\"item\":", b.index);
    if (g->said.failed || g->told.failed) out->failed = true;
    else pd_buf_add(out, g->told.data + from, g->told.len - from);
    event_end(out);
}

static void end(pd_answer *a, pd_buf *out) {
    pd_gen *g = a->gen;
    const char *status = last_status(a);
    event(g, out, strcmp(status, "completed") == 0 ? "response.completed" : "response.incomplete");
    pd_buf_puts(out, ",\"response\":");
    response_head(g, out, status);
    pd_buf_add(out, g->told.data, g->told.len);
    response_end(g, out, status, true);
    event_end(out);
}

static void error(pd_gen *g, pd_buf *out, const pd_err *err) {
    const char *code = pd_status_code(err->code);
    event(g, out, "error");
    pd_buf_puts(out, ",\"code\":");
    pd_json_cstr(out, code[0] ? code : pd_status_type(err->code));
    pd_buf_puts(out, ",\"message\":");
    pd_json_cstr(out, err->msg);
    pd_buf_puts(out, ",\"param\":");
    pd_json_cstr(out, err->param[0] ? err->param : NULL);
    event_end(out);
}

static const pd_dialect dialect = {
    .tool_schema = "parameters",
    .translate = translate,
    .whole = whole,
    .block = block,
    .begin = begin,
    .open = open_item,
    .more = more,
    .close = close_item,
    .end = end,
    .error = error,
};
static const pd_shape shape = {
    .kind = PD_REQUEST_CHAT, .dialect = &dialect, .id_prefix = "resp_", .object = "response"};

static pd_status decode(pd_req *q, pd_err *err) {
    return pd_gen_decode(q, &shape, err);
}

const pd_route pd_route_responses = {.method = "POST",
                                     .path = "/v1/responses",
                                     .label = "/v1/responses",
                                     .decode = decode,
                                     .run = pd_gen_run};
