/* SPDX-License-Identifier: Apache-2.0 */
/* POST /v1/messages and /v1/messages/count_tokens: Anthropic's messages, text only.
 *
 * A body is a chat's in other words: "system" is the first message, "stop_sequences"
 * are "stop".  A stream's events are message_start, one content block of text deltas,
 * message_delta with the stop reason and the numbers, message_stop. */
#include "server/generate.h"
#include "server/reply.h"
#include "server/router.h"
#include "server/server.h"
#include "server/sse.h"
#include "server/translate.h"

#include <string.h>

/* ---- the request ---- */

static pd_status check_stops(const json_t *body, pd_err *err) {
    const json_t *v = pd_json_get(body, "stop_sequences");
    if (v && (!json_is_array(v) || json_array_size(v) > PD_STOP_MAX))
        return pd_fail(err, PD_EINVAL, "stop_sequences",
                       "stop_sequences must be an array of at most %d strings", PD_STOP_MAX);
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *s = json_array_get(v, i);
        const size_t n = json_string_length(s);
        if (!json_is_string(s) || n == 0 || n > PD_STOP_BYTES_MAX)
            return pd_fail(err, PD_EINVAL, "stop_sequences",
                           "stop_sequences[%zu] must be a string of 1 to %d bytes", i,
                           PD_STOP_BYTES_MAX);
    }
    return PD_OK;
}

/* Checked as they were sent, so that faults are told by the caller's own places. */
static pd_status check_messages(const json_t *body, pd_err *err) {
    pd_request r = {0};
    pd_status st = pd_request_messages(body, &r, err);
    for (size_t i = 0; i < r.n_msg && st == PD_OK; i++)
        if (strcmp(r.msg[i].role, "user") != 0 && strcmp(r.msg[i].role, "assistant") != 0)
            st = pd_fail(err, PD_EINVAL, "messages",
                         "messages[%zu].role is \"%.40s\"; \"user\" or \"assistant\" is expected "
                         "(\"system\" is a field of its own)",
                         i, r.msg[i].role);
    if (st == PD_OK && strcmp(r.msg[r.n_msg - 1].role, "assistant") == 0)
        st = pd_fail(err, PD_EINVAL, "messages",
                     "messages ends with the assistant's; answers begun by the caller are not served");
    pd_request_done(&r);
    return st;
}

static pd_status check_system(const json_t *system, pd_err *err) {
    if (!system || json_is_string(system)) return PD_OK;
    for (size_t i = 0; i < json_array_size(system); i++) {
        const json_t *part = json_array_get(system, i), *type = pd_json_get(part, "type");
        if (!json_is_string(type) || strcmp(json_string_value(type), "text") != 0 ||
            !json_is_string(pd_json_get(part, "text")))
            return pd_fail(err, PD_EINVAL, "system", "system[%zu] must be a block of type \"text\"", i);
    }
    return json_is_array(system) ? PD_OK
                                 : pd_fail(err, PD_EINVAL, "system",
                                           "system is %s; a string or an array of text blocks is "
                                           "expected",
                                           pd_json_type_name(system));
}

/* What counting and answering share. */
static pd_status translate_prompt(json_t *body, pd_err *err) {
    PD_TRY(check_messages(body, err));
    json_t *system = pd_json_get(body, "system");
    PD_TRY(check_system(system, err));
    PD_TRY(pd_translate_refuse(body, "tools", err, "[]", NULL));
    PD_TRY(pd_translate_refuse(body, "tool_choice", err, "none", "auto", NULL));
    PD_TRY(pd_translate_refuse(body, "thinking", err, "disabled", NULL));
    json_object_del(body, "tool_choice");
    if (system && (json_string_length(system) || json_array_size(system)))
        PD_TRY(pd_translate_system(body, system, err));
    return PD_OK;
}

static pd_status translate(json_t *body, pd_gen *g, pd_err *err) {
    (void)g;
    int64_t max_tokens = 0;
    bool given = false;
    PD_TRY(pd_json_int(body, "", "max_tokens", 1, INT32_MAX, &max_tokens, &given, err));
    if (!given)
        return pd_fail(err, PD_EINVAL, "max_tokens", "max_tokens is missing; it is required here");
    PD_TRY(check_stops(body, err));
    PD_TRY(translate_prompt(body, err));
    pd_translate_forget(body, "max_tokens");
    return pd_translate_rename(body, "stop_sequences", "stop", err);
}

static pd_status translate_count(json_t *body, pd_gen *g, pd_err *err) {
    (void)g;
    PD_TRY(translate_prompt(body, err));
    pd_translate_forget(body, NULL);
    return PD_OK;
}

/* ---- the reply ---- */

static void stop_members(const pd_answer *a, pd_buf *out) {
    const char *by = pd_job_stop_string(a->call->job);
    const bool length = pd_job_get_result(a->call->job)->finish == PD_FINISH_LENGTH;
    pd_buf_printf(out, "\"stop_reason\":\"%s\",\"stop_sequence\":",
                  by ? "stop_sequence" : length ? "max_tokens" : "end_turn");
    pd_json_cstr(out, by);
}

static void usage(const pd_gen *g, pd_buf *out) {
    pd_buf_printf(out,
                  "\"usage\":{\"input_tokens\":%zu,\"output_tokens\":%zu,"
                  "\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":0}",
                  g->n_prompt, g->n_out);
}

static void message_head(const pd_gen *g, pd_buf *out) {
    pd_buf_printf(out, "{\"id\":\"%s\",\"type\":\"message\",\"role\":\"assistant\",\"model\":", g->id);
    pd_json_cstr(out, g->srv->model_id);
}

static void whole(pd_answer *a, pd_buf *out) {
    message_head(a->gen, out);
    pd_buf_puts(out, ",\"content\":[{\"type\":\"text\",\"text\":");
    pd_json_str(out, a->text.data, a->text.len);
    pd_buf_puts(out, "}],");
    stop_members(a, out);
    pd_buf_putc(out, ',');
    usage(a->gen, out);
    pd_buf_putc(out, ',');
    pd_gen_meta(a->gen, out, false);
    pd_buf_putc(out, '}');
}

/* `{"type":NAME`; the caller goes on behind it. */
static void event(pd_buf *out, const char *name) {
    pd_sse_begin_named(out, name);
    pd_buf_printf(out, "{\"type\":\"%s\"", name);
}

static void event_end(pd_buf *out) {
    pd_buf_putc(out, '}');
    pd_sse_end(out);
}

static void begin(pd_answer *a, pd_buf *out) {
    event(out, "message_start");
    pd_buf_puts(out, ",\"message\":");
    message_head(a->gen, out);
    pd_buf_puts(out, ",\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,");
    usage(a->gen, out);
    pd_buf_putc(out, '}');
    event_end(out);
    event(out, "content_block_start");
    pd_buf_puts(out, ",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}");
    event_end(out);
}

static void text(pd_answer *a, pd_buf *out, const char *s, size_t n) {
    (void)a;
    event(out, "content_block_delta");
    pd_buf_puts(out, ",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":");
    pd_json_str(out, s, n);
    pd_buf_putc(out, '}');
    event_end(out);
}

static void end(pd_answer *a, pd_buf *out) {
    event(out, "content_block_stop");
    pd_buf_puts(out, ",\"index\":0");
    event_end(out);
    event(out, "message_delta");
    pd_buf_puts(out, ",\"delta\":{");
    stop_members(a, out);
    pd_buf_puts(out, "},");
    usage(a->gen, out);
    pd_buf_putc(out, ',');
    pd_gen_meta(a->gen, out, false);
    event_end(out);
    event(out, "message_stop");
    event_end(out);
}

static void error(pd_gen *g, pd_buf *out, const pd_err *err) {
    (void)g;
    pd_sse_begin_named(out, "error");
    pd_reply_error_body_anthropic(out, err);
    pd_sse_end(out);
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
    .kind = PD_REQUEST_CHAT, .dialect = &dialect, .id_prefix = "msg_", .object = "message"};

static pd_status decode(pd_req *q, pd_err *err) {
    return pd_gen_decode(q, &shape, err);
}

static pd_status decode_count(pd_req *q, pd_err *err) {
    static const pd_dialect count = {.translate = translate_count};
    static const pd_shape counted = {.kind = PD_REQUEST_CHAT, .dialect = &count};
    PD_TRY(pd_gen_decode(q, &counted, err));
    const pd_gen *g = q->state;
    pd_buf_printf(&q->out, "{\"input_tokens\":%zu}", g->rq.prompt->ids.n);
    return PD_OK;
}

const pd_route pd_route_messages = {.method = "POST",
                                    .path = "/v1/messages",
                                    .label = "/v1/messages",
                                    .flags = PD_ROUTE_ANTHROPIC,
                                    .decode = decode,
                                    .run = pd_gen_run};
const pd_route pd_route_count_tokens = {.method = "POST",
                                        .path = "/v1/messages/count_tokens",
                                        .label = "/v1/messages/count_tokens",
                                        .flags = PD_ROUTE_ANTHROPIC,
                                        .decode = decode_count,
                                        .run = pd_reply_json};
