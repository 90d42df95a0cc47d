/* SPDX-License-Identifier: Apache-2.0 */
/* POST /v1/messages and /v1/messages/count_tokens: Anthropic's messages, text and tools.
 *
 * A body is a chat's in other words: "system" is the first message, "stop_sequences"
 * are "stop", a tool_result is a message of role "tool".  A stream's events are
 * message_start, the content blocks of text or input deltas, message_delta with the stop
 * reason and the numbers, message_stop. */
#include "server/generate.h"
#include "server/reply.h"
#include "server/router.h"
#include "server/server.h"
#include "server/sse.h"
#include "server/translate.h"

#include <stdio.h>
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

static pd_status no_memory(pd_err *err) {
    return pd_fail(err, PD_ENOMEM, NULL, "no memory for the messages");
}

/* A block of text, `at`, as a chat's part at the end of `parts`. */
static pd_status add_text(const json_t *block, const char *at, const char *served, json_t *parts, pd_err *err) {
    const char *type = json_string_value(pd_json_get(block, "type"));
    json_t *text = pd_json_get(block, "text");
    if (!type) return pd_fail(err, PD_EINVAL, at, "%s must be an object with \"type\"", at);
    if (strcmp(type, "text") != 0)
        return pd_fail(err, PD_EINVAL, at, "%s has type \"%.40s\"; %s", at, type, served);
    if (!json_is_string(text)) return pd_fail(err, PD_EINVAL, at, "%s.text must be a string", at);
    json_t *part = json_pack("{s:s, s:O}", "type", "text", "text", text);
    return json_array_append_new(parts, part) == 0 ? PD_OK : no_memory(err);
}

/* {"type": "tool_result"} -> a message of role "tool" at the end of `list`. */
static pd_status add_result(const json_t *block, const char *at, json_t *list, pd_err *err) {
    const char *id = json_string_value(pd_json_get(block, "tool_use_id"));
    json_t *content = pd_json_get(block, "content");
    bool is_error;
    char inner[144];
    if (!id || !id[0]) return pd_fail(err, PD_EINVAL, at, "%s.tool_use_id must be a string", at);
    snprintf(inner, sizeof inner, "%s.", at);
    PD_TRY(pd_json_bool(block, inner, "is_error", &is_error, err)); /* its content says so to the model */
    if (content && !json_is_string(content) && !json_is_array(content))
        return pd_fail(err, PD_EINVAL, at, "%s.content is %s; a string or an array of text blocks is expected", at,
                       pd_json_type_name(content));
    json_t *parts = json_is_string(content) ? json_incref(content) : json_array();
    pd_status st = parts ? PD_OK : no_memory(err);
    for (size_t i = 0; i < json_array_size(content) && st == PD_OK; i++) {
        snprintf(inner, sizeof inner, "%s.content[%zu]", at, i);
        st = add_text(json_array_get(content, i), inner, "only \"text\" is served in a result", parts, err);
    }
    if (st == PD_OK) st = pd_translate_result(list, id, parts, err);
    json_decref(parts);
    return st;
}

/* {"type": "tool_use"} -> a call of `message`. */
static pd_status add_use(const json_t *block, const char *at, json_t *message, pd_err *err) {
    const char *id = json_string_value(pd_json_get(block, "id")), *name = json_string_value(pd_json_get(block, "name"));
    json_t *input = pd_json_get(block, "input");
    if (!id || !id[0] || !name || !name[0] || !json_is_object(input))
        return pd_fail(err, PD_EINVAL, at, "%s must have \"id\", \"name\" and an object as \"input\"", at);
    return pd_translate_call(message, id, name, input, err);
}

/* The parts of one role that came together, as a message; there is none for no parts. */
static pd_status flush_parts(const char *role, json_t *parts, json_t *list, pd_err *err) {
    if (json_array_size(parts) == 0) return PD_OK;
    json_t *copy = json_copy(parts), *message = json_pack("{s:s, s:o}", "role", role, "content", copy);
    if (json_array_append_new(list, message) != 0) return no_memory(err);
    json_array_clear(parts);
    return PD_OK;
}

/* Results stand between messages as what they are, a message each; calls are the end of
 * the assistant's. */
static pd_status split_message(const json_t *content, const char *role, const char *at, json_t *parts, json_t *list,
                               pd_err *err) {
    const bool assistant = strcmp(role, "assistant") == 0;
    const char *served = assistant ? "only \"text\" and \"tool_use\" are served" : "only \"text\" and \"tool_result\" are served";
    json_t *message = assistant ? json_pack("{s:s}", "role", role) : json_null();
    pd_status st = message ? PD_OK : no_memory(err);
    for (size_t i = 0; i < json_array_size(content) && st == PD_OK; i++) {
        const json_t *block = json_array_get(content, i);
        const char *type = json_string_value(pd_json_get(block, "type"));
        char where[96];
        snprintf(where, sizeof where, "%s.content[%zu]", at, i);
        if (type && assistant && strcmp(type, "tool_use") == 0) {
            st = add_use(block, where, message, err);
        } else if (type && !assistant && strcmp(type, "tool_result") == 0) {
            st = flush_parts(role, parts, list, err);
            if (st == PD_OK) st = add_result(block, where, list, err);
        } else {
            st = add_text(block, where, served, parts, err);
        }
    }
    if (st == PD_OK && !assistant) st = flush_parts(role, parts, list, err);
    if (st == PD_OK && assistant &&
        (json_object_set(message, "content", parts) != 0 || json_array_append(list, message) != 0))
        st = no_memory(err);
    json_decref(message);
    return st;
}

/* One message -> a chat's, or several, at the end of `list`. */
static pd_status translate_message(json_t *m, size_t i, json_t *list, pd_err *err) {
    char at[64];
    snprintf(at, sizeof at, "messages[%zu]", i);
    const char *role = json_string_value(pd_json_get(m, "role"));
    const json_t *content = pd_json_get(m, "content");
    if (!json_is_object(m)) return pd_fail(err, PD_EINVAL, at, "%s is %s; an object is expected", at, pd_json_type_name(m));
    if (!role || (strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0))
        return pd_fail(err, PD_EINVAL, "messages",
                       "%s.role is \"%.40s\"; \"user\" or \"assistant\" is expected (\"system\" is a field of its own)",
                       at, role ? role : "");
    if (json_is_string(content) || (json_is_array(content) && json_array_size(content) == 0)) {
        json_t *message = json_pack("{s:s, s:O}", "role", role, "content", content);
        return json_array_append_new(list, message) == 0 ? PD_OK : no_memory(err);
    }
    snprintf(at, sizeof at, "messages[%zu].content", i);
    if (!json_is_array(content))
        return pd_fail(err, PD_EINVAL, at, "%s is %s; a string or an array of blocks is expected", at,
                       content ? pd_json_type_name(content) : "missing");
    json_t *parts = json_array();
    snprintf(at, sizeof at, "messages[%zu]", i);
    const pd_status st = parts ? split_message(content, role, at, parts, list, err) : no_memory(err);
    json_decref(parts);
    return st;
}

static pd_status translate_messages(json_t *body, pd_err *err) {
    const json_t *messages = pd_json_get(body, "messages");
    const size_t n = json_array_size(messages);
    if (!messages) return pd_fail(err, PD_EINVAL, "messages", "messages is missing");
    if (n == 0) return pd_fail(err, PD_EINVAL, "messages", "messages must be a non-empty array");
    if (n > PD_REQUEST_MESSAGES_MAX)
        return pd_fail(err, PD_EINVAL, "messages", "messages has %zu entries; at most %d are allowed", n,
                       PD_REQUEST_MESSAGES_MAX);
    json_t *list = json_array();
    pd_status st = list ? PD_OK : no_memory(err);
    for (size_t i = 0; i < n && st == PD_OK; i++) st = translate_message(json_array_get(messages, i), i, list, err);
    const char *last = json_string_value(pd_json_get(json_array_get(messages, n - 1), "role"));
    if (st == PD_OK && strcmp(last, "assistant") == 0)
        st = pd_fail(err, PD_EINVAL, "messages",
                     "messages ends with the assistant's; answers begun by the caller are not served");
    if (st == PD_OK && json_object_set(body, "messages", list) != 0) st = no_memory(err);
    json_decref(list);
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

static pd_status translate_choice(json_t *body, pd_err *err) {
    const json_t *choice = pd_json_get(body, "tool_choice");
    const char *type = json_string_value(pd_json_get(choice, "type"));
    const char *name = json_string_value(pd_json_get(choice, "name"));
    static const char *const word[][2] = {{"auto", "auto"}, {"any", "required"}, {"none", "none"}};
    bool alone = false;
    json_object_del(body, "parallel_tool_calls"); /* a chat's */
    if (!choice) return PD_OK;
    PD_TRY(pd_json_bool(choice, "tool_choice.", "disable_parallel_tool_use", &alone, err));
    if (alone && json_object_set_new(body, "parallel_tool_calls", json_false()) != 0) return no_memory(err);
    for (size_t i = 0; type && i < sizeof word / sizeof word[0]; i++)
        if (strcmp(type, word[i][0]) == 0) return pd_translate_choice(body, word[i][1], NULL, err);
    if (type && strcmp(type, "tool") == 0 && name) return pd_translate_choice(body, NULL, name, err);
    return pd_fail(err, PD_EINVAL, "tool_choice",
                   "tool_choice must be {\"type\": \"auto\"}, {\"type\": \"any\"}, {\"type\": \"none\"} or "
                   "{\"type\": \"tool\", \"name\": ...}");
}

/* What counting and answering share. */
static pd_status translate_prompt(json_t *body, pd_err *err) {
    PD_TRY(translate_messages(body, err));
    json_t *system = pd_json_get(body, "system");
    PD_TRY(check_system(system, err));
    PD_TRY(pd_translate_tools(body, "custom", true, "input_schema", err));
    PD_TRY(translate_choice(body, err));
    PD_TRY(pd_translate_refuse(body, "thinking", err, "disabled", NULL));
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
    const bool calls = a->reader && pd_tool_reader_calls(a->reader);
    pd_buf_printf(out, "\"stop_reason\":\"%s\",\"stop_sequence\":",
                  by ? "stop_sequence" : length ? "max_tokens" : calls ? "tool_use" : "end_turn");
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

/* A call up to its input. */
static void use_head(const pd_tool_call *c, pd_buf *out) {
    pd_buf_printf(out, "{\"type\":\"tool_use\",\"id\":\"%s\",\"name\":", c->id);
    pd_json_str(out, c->name.data, c->name.len);
    pd_buf_puts(out, ",\"input\":");
}

/* An input must be an object.  Arguments that are none (cut off, or badly written) are given
 * as they came, as a member no tool has: taken for an empty object, they could have a
 * tool called with what nobody asked for. */
static void input(const pd_block *b, pd_buf *out) {
    json_t *object = NULL;
    pd_err why;
    if (pd_json_parse(&object, b->text, b->len, &why) == PD_OK) {
        pd_buf_add(out, b->text, b->len);
        json_decref(object);
        return;
    }
    pd_buf_puts(out, "{\"arguments\":");
    pd_json_str(out, b->text, b->len);
    pd_buf_putc(out, '}');
}

static void block(pd_answer *a, pd_buf *out, const pd_block *b) {
    (void)a;
    if (b->call) {
        use_head(b->call, out);
        input(b, out);
    } else {
        pd_buf_puts(out, "{\"type\":\"text\",\"text\":");
        pd_json_str(out, b->text, b->len);
    }
    pd_buf_putc(out, '}');
}

static void whole(pd_answer *a, pd_buf *out) {
    message_head(a->gen, out);
    pd_buf_puts(out, ",\"content\":[");
    pd_dialect_blocks(a, out);
    pd_buf_puts(out, "],");
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
}

/* An event about a block. */
static void block_event(pd_buf *out, const char *name, const pd_block *b) {
    event(out, name);
    pd_buf_printf(out, ",\"index\":%zu", b->index);
}

static void open_block(pd_answer *a, pd_buf *out, const pd_block *b) {
    (void)a;
    block_event(out, "content_block_start", b);
    pd_buf_puts(out, ",\"content_block\":");
    if (b->call) {
        use_head(b->call, out);
        pd_buf_puts(out, "{}}");
    } else {
        pd_buf_puts(out, "{\"type\":\"text\",\"text\":\"\"}");
    }
    event_end(out);
}

static void more(pd_answer *a, pd_buf *out, const pd_block *b) {
    (void)a;
    block_event(out, "content_block_delta", b);
    pd_buf_puts(out, b->call ? ",\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":"
                             : ",\"delta\":{\"type\":\"text_delta\",\"text\":");
    pd_json_str(out, b->text, b->len);
    pd_buf_putc(out, '}');
    event_end(out);
}

static void close_block(pd_answer *a, pd_buf *out, const pd_block *b) {
    (void)a;
    block_event(out, "content_block_stop", b);
    event_end(out);
}

static void end(pd_answer *a, pd_buf *out) {
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
    .tool_schema = "input_schema",
    .translate = translate,
    .whole = whole,
    .block = block,
    .begin = begin,
    .open = open_block,
    .more = more,
    .close = close_block,
    .end = end,
    .error = error,
};
static const pd_shape shape = {
    .kind = PD_REQUEST_CHAT, .dialect = &dialect, .id_prefix = "msg_", .object = "message"};

static pd_status decode(pd_req *q, pd_err *err) {
    return pd_gen_decode(q, &shape, err);
}

static pd_status decode_count(pd_req *q, pd_err *err) {
    static const pd_dialect count = {.tool_schema = "input_schema", .translate = translate_count};
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
