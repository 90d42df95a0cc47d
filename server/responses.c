/* SPDX-License-Identifier: Apache-2.0 */
/* POST /v1/responses: OpenAI's Responses API, text only and without memory.
 *
 * A body is a chat's in other words: "instructions" is the first message, "input" the
 * others, "max_output_tokens" the bound.  Nothing is stored, so what refers to an
 * earlier response is refused.  A stream's events are those of one message with one
 * text part; each has its sequence number, and the last ones repeat the whole text. */
#include "server/generate.h"
#include "server/router.h"
#include "server/server.h"
#include "server/sse.h"
#include "server/translate.h"

#include <stdio.h>
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

/* An item of input -> a message, appended to `list`. */
static pd_status translate_item(const json_t *item, size_t i, json_t *list, pd_err *err) {
    char at[64];
    snprintf(at, sizeof at, "input[%zu]", i);
    const json_t *kind = pd_json_get(item, "type");
    const char *type = kind ? json_string_value(kind) : "message";
    const char *role = json_string_value(pd_json_get(item, "role"));
    if (!type || strcmp(type, "message") != 0)
        return pd_fail(err, PD_EINVAL, at, "%s has type \"%.40s\"; only \"message\" is served", at,
                       type ? type : pd_json_type_name(kind));
    if (!role) return pd_fail(err, PD_EINVAL, at, "%s must be a message with a \"role\"", at);
    json_t *content = pd_json_get(item, "content"), *parts = NULL;
    if (json_is_array(content)) {
        parts = json_array();
        pd_status st = parts ? PD_OK : pd_fail(err, PD_ENOMEM, NULL, "no memory for the input");
        for (size_t k = 0; k < json_array_size(content) && st == PD_OK; k++) {
            snprintf(at, sizeof at, "input[%zu].content[%zu]", i, k);
            st = translate_part(json_array_get(content, k), at, parts, err);
        }
        if (st != PD_OK) {
            json_decref(parts);
            return st;
        }
    } else if (!json_is_string(content)) {
        return pd_fail(err, PD_EINVAL, at, "%s.content is %s; a string or an array is expected", at,
                       pd_json_type_name(content));
    }
    json_t *message = json_pack("{s:s, s:O}", "role", role, "content", parts ? parts : content);
    json_decref(parts);
    if (json_array_append_new(list, message) != 0)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the input");
    return PD_OK;
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

static pd_status translate(json_t *body, pd_gen *g, pd_err *err) {
    int64_t n = 0;
    static const char *const stateful[] = {"previous_response_id", "conversation", "prompt"};
    PD_TRY(pd_json_int(body, "", "max_output_tokens", 1, INT32_MAX, &n, NULL, err));
    for (size_t i = 0; i < sizeof stateful / sizeof stateful[0]; i++)
        PD_TRY(pd_translate_refuse(body, stateful[i], err, NULL));
    PD_TRY(pd_translate_refuse(body, "background", err, "false", NULL));
    PD_TRY(pd_translate_refuse(body, "tools", err, "[]", NULL));
    PD_TRY(pd_translate_refuse(body, "tool_choice", err, "none", "auto", NULL));
    pd_translate_forget(body, NULL);
    PD_TRY(translate_format(body, err));
    PD_TRY(translate_input(body, err));
    PD_TRY(repeat(body, "instructions", g, err));
    json_t *system = pd_json_get(body, "instructions");
    if (system) PD_TRY(pd_translate_system(body, system, err));
    return pd_translate_rename(body, "max_output_tokens", "max_completion_tokens", err);
}

/* ---- the reply ---- */

static const char *item_id(const pd_gen *g) {
    return g->id + strlen("resp_"); /* behind "msg_" */
}

static void part(pd_buf *out, const pd_buf *text) {
    pd_buf_puts(out, "{\"type\":\"output_text\",\"annotations\":[],\"logprobs\":[],\"text\":");
    pd_json_str(out, text->data, text->len);
    pd_buf_putc(out, '}');
}

/* text NULL: the message has no part yet. */
static void item(const pd_gen *g, pd_buf *out, const char *status, const pd_buf *text) {
    pd_buf_printf(out,
                  "{\"type\":\"message\",\"id\":\"msg_%s\",\"role\":\"assistant\",\"status\":\"%s\","
                  "\"content\":[",
                  item_id(g), status);
    if (text) part(out, text);
    pd_buf_puts(out, "]}");
}

static void usage(const pd_gen *g, pd_buf *out) {
    pd_buf_printf(out,
                  "{\"input_tokens\":%zu,\"input_tokens_details\":{\"cached_tokens\":0},"
                  "\"output_tokens\":%zu,\"output_tokens_details\":{\"reasoning_tokens\":0},"
                  "\"total_tokens\":%zu}",
                  g->n_prompt, g->n_out, g->n_prompt + g->n_out);
}

/* The response; text NULL: nothing of it is there yet. */
static void response(pd_gen *g, pd_buf *out, const char *status, const pd_buf *text) {
    const pd_request *r = &g->rq;
    pd_buf_printf(out, "{\"id\":\"%s\",\"object\":\"response\",\"created_at\":%lld,\"status\":\"%s\",\"model\":",
                  g->id, (long long)g->created, status);
    pd_json_cstr(out, g->srv->model_id);
    pd_buf_puts(out, ",\"output\":[");
    if (text) item(g, out, status, text);
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
    pd_buf_puts(out, ",\"parallel_tool_calls\":true,\"tool_choice\":\"auto\",\"tools\":[],\"store\":false,"
                     "\"previous_response_id\":null,\"metadata\":{},\"truncation\":\"disabled\",\"usage\":");
    if (!text) {
        pd_buf_puts(out, "null}");
        return;
    }
    usage(g, out);
    pd_buf_putc(out, ',');
    pd_gen_meta(g, out, false);
    pd_buf_putc(out, '}');
}

static const char *last_status(const pd_answer *a) {
    return pd_job_get_result(a->call->job)->finish == PD_FINISH_LENGTH ? "incomplete" : "completed";
}

static void whole(pd_answer *a, pd_buf *out) {
    response(a->gen, out, last_status(a), &a->text);
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

/* An event about the one part of the one item. */
static void part_event(pd_gen *g, pd_buf *out, const char *name) {
    event(g, out, name);
    pd_buf_printf(out, ",\"item_id\":\"msg_%s\",\"output_index\":0,\"content_index\":0", item_id(g));
}

static void begin(pd_answer *a, pd_buf *out) {
    pd_gen *g = a->gen;
    static const char *const first[] = {"response.created", "response.in_progress"};
    for (size_t i = 0; i < 2; i++) {
        event(g, out, first[i]);
        pd_buf_puts(out, ",\"response\":");
        response(g, out, "in_progress", NULL);
        event_end(out);
    }
    event(g, out, "response.output_item.added");
    pd_buf_puts(out, ",\"output_index\":0,\"item\":");
    item(g, out, "in_progress", NULL);
    event_end(out);
    part_event(g, out, "response.content_part.added");
    pd_buf_puts(out, ",\"part\":");
    part(out, &(pd_buf){0});
    event_end(out);
}

static void text(pd_answer *a, pd_buf *out, const char *s, size_t n) {
    pd_gen *g = a->gen;
    pd_buf_add(&g->said, s, n);
    part_event(g, out, "response.output_text.delta");
    pd_buf_puts(out, ",\"logprobs\":[],\"delta\":");
    pd_json_str(out, s, n);
    event_end(out);
}

static void end(pd_answer *a, pd_buf *out) {
    pd_gen *g = a->gen;
    const char *status = last_status(a);
    if (g->said.failed) out->failed = true;
    part_event(g, out, "response.output_text.done");
    pd_buf_puts(out, ",\"logprobs\":[],\"text\":");
    pd_json_str(out, g->said.data, g->said.len);
    event_end(out);
    part_event(g, out, "response.content_part.done");
    pd_buf_puts(out, ",\"part\":");
    part(out, &g->said);
    event_end(out);
    event(g, out, "response.output_item.done");
    pd_buf_puts(out, ",\"output_index\":0,\"item\":");
    item(g, out, status, &g->said);
    event_end(out);
    event(g, out, strcmp(status, "completed") == 0 ? "response.completed" : "response.incomplete");
    pd_buf_puts(out, ",\"response\":");
    response(g, out, status, &g->said);
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
    .translate = translate,
    .whole = whole,
    .begin = begin,
    .text = text,
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
