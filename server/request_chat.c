/* SPDX-License-Identifier: Apache-2.0 */
/* A chat's messages, and what else its template sees: checked, and made values of.
 *
 * A message keeps all its fields but null ones, so a template finds what it asks for
 * (reasoning_content, name, tool_call_id ...); its text parts are joined to one string,
 * and the arguments of tool calls, which clients send as JSON text, are JSON again. */
#include "server/request_int.h"

#include "server/json_value.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- messages ---- */

/* Text parts are joined by newlines, as the servers people come from do. */
static pd_status join_parts(const json_t *parts, size_t i_msg, pd_request *r, const char **ret,
                            pd_err *err) {
    const size_t n = json_array_size(parts);
    size_t len = 0;
    for (size_t i = 0; i < n; i++) {
        const json_t *part = json_array_get(parts, i);
        const char *type = json_string_value(pd_json_get(part, "type"));
        const json_t *text = pd_json_get(part, "text");
        char at[64];
        snprintf(at, sizeof at, "messages[%zu].content[%zu]", i_msg, i);
        if (!json_is_object(part) || !type)
            return pd_fail(err, PD_EINVAL, at, "%s must be an object with \"type\"", at);
        if (strcmp(type, "text") != 0)
            return pd_fail(err, PD_EINVAL, at, "%s has type \"%.40s\"; only \"text\" is served", at,
                           type);
        if (!json_is_string(text))
            return pd_fail(err, PD_EINVAL, at, "%s.text must be a string", at);
        len += json_string_length(text) + 1;
    }
    char *s = pd_arena_alloc(&r->arena, len + 1, 1), *p = s;
    if (!s) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the messages");
    for (size_t i = 0; i < n; i++) {
        const json_t *text = json_object_get(json_array_get(parts, i), "text");
        if (i) *p++ = '\n';
        memcpy(p, json_string_value(text), json_string_length(text));
        p += json_string_length(text);
    }
    *p = '\0';
    *ret = s;
    return PD_OK;
}

/* Arguments as text become what the text says, if it is an object; templates write them
 * out as JSON or go through them. */
static pd_status tool_call_arguments(json_t *function, const char *at, pd_err *err) {
    const json_t *arguments = pd_json_get(function, "arguments");
    if (!arguments || json_is_object(arguments)) return PD_OK;
    if (!json_is_string(arguments))
        return pd_fail(err, PD_EINVAL, at, "%s.function.arguments is %s; a string of JSON is expected",
                       at, pd_json_type_name(arguments));
    json_t *object = NULL;
    pd_err why = {0};
    const pd_status rc =
        pd_json_parse(&object, json_string_value(arguments), json_string_length(arguments), &why);
    if (rc == PD_ENOMEM) return pd_fail(err, rc, NULL, "%s", why.msg);
    if (rc == PD_OK && json_object_set_new(function, "arguments", object) != 0)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the messages");
    return PD_OK; /* text that is no object stays text */
}

static pd_status check_tool_calls(const json_t *m, size_t i_msg, pd_err *err) {
    const json_t *calls = pd_json_get(m, "tool_calls");
    char at[64];
    snprintf(at, sizeof at, "messages[%zu].tool_calls", i_msg);
    if (!calls) return PD_OK;
    if (!json_is_array(calls))
        return pd_fail(err, PD_EINVAL, at, "%s is %s; an array is expected", at,
                       pd_json_type_name(calls));
    for (size_t i = 0; i < json_array_size(calls); i++) {
        const json_t *call = json_array_get(calls, i);
        json_t *function = pd_json_get(call, "function");
        snprintf(at, sizeof at, "messages[%zu].tool_calls[%zu]", i_msg, i);
        if (!json_is_object(function) || !json_is_string(pd_json_get(function, "name")))
            return pd_fail(err, PD_EINVAL, at, "%s must be an object with \"function\" and its \"name\"",
                           at);
        const json_t *id = pd_json_get(call, "id"), *type = pd_json_get(call, "type");
        if (id && !json_is_string(id))
            return pd_fail(err, PD_EINVAL, at, "%s.id is %s; a string is expected", at, pd_json_type_name(id));
        if (type && !(json_is_string(type) && strcmp(json_string_value(type), "function") == 0))
            return pd_fail(err, PD_EINVAL, at, "%s.type must be \"function\"", at);
        PD_TRY(tool_call_arguments(function, at, err));
    }
    return PD_OK;
}

/* All fields but the role, which the chat layer puts in, and null ones. */
static pd_jval value_of(pd_jheap *h, const json_t *m, const pd_chat_msg *msg, uint16_t origin) {
    const pd_jval v = pd_jdict(h, json_object_size(m), origin);
    const char *key;
    json_t *one;
    pd_jdict_set(h, v, "content", pd_jstr(h, msg->content, strlen(msg->content), origin));
    json_object_foreach((json_t *)(uintptr_t)m, key, one) {
        if (json_is_null(one) || strcmp(key, "role") == 0 || strcmp(key, "content") == 0) continue;
        pd_jdict_add(h, v, pd_jstr(h, key, strlen(key), origin), pd_json_value(h, one, origin));
    }
    return v;
}

static pd_status decode_message(const json_t *m, size_t i, pd_request *r, pd_err *err) {
    char at[64];
    snprintf(at, sizeof at, "messages[%zu]", i);
    if (!json_is_object(m))
        return pd_fail(err, PD_EINVAL, at, "%s is %s; an object is expected", at,
                       pd_json_type_name(m));
    const char *role = json_string_value(pd_json_get(m, "role"));
    snprintf(at, sizeof at, "messages[%zu].role", i);
    if (!role) return pd_fail(err, PD_EINVAL, at, "%s must be a string", at);
    /* OpenAI renamed "system" for its newer models; templates know the old word. */
    r->msg[i].role = strcmp(role, "developer") == 0 ? "system" : role;
    PD_TRY(check_tool_calls(m, i, err));
    const json_t *answers = pd_json_get(m, "tool_call_id");
    snprintf(at, sizeof at, "messages[%zu].tool_call_id", i);
    if (answers && !json_is_string(answers))
        return pd_fail(err, PD_EINVAL, at, "%s is %s; a string is expected", at, pd_json_type_name(answers));
    const json_t *content = pd_json_get(m, "content");
    snprintf(at, sizeof at, "messages[%zu].content", i);
    if (json_is_string(content)) r->msg[i].content = json_string_value(content);
    else if (json_is_array(content)) PD_TRY(join_parts(content, i, r, &r->msg[i].content, err));
    else if (!content && strcmp(role, "assistant") == 0) r->msg[i].content = "";
    else
        return pd_fail(err, PD_EINVAL, at,
                       "%s is %s; a string or an array of text parts is expected", at,
                       pd_json_type_name(content));
    r->msg_value[i] = value_of(&r->values, m, &r->msg[i], (uint16_t)(i + 1));
    return PD_OK;
}

pd_status pd_request_messages(const json_t *body, pd_request *r, pd_err *err) {
    const json_t *list = pd_json_get(body, "messages");
    if (!list) return pd_fail(err, PD_EINVAL, "messages", "messages is missing");
    const size_t n = json_array_size(list);
    if (!json_is_array(list) || n == 0)
        return pd_fail(err, PD_EINVAL, "messages", "messages must be a non-empty array");
    if (n > PD_REQUEST_MESSAGES_MAX)
        return pd_fail(err, PD_EINVAL, "messages",
                       "messages has %zu entries; at most %d are allowed", n,
                       PD_REQUEST_MESSAGES_MAX);
    r->msg = pd_arena_zalloc(&r->arena, n, sizeof *r->msg);
    r->msg_value = pd_arena_zalloc(&r->arena, n, sizeof *r->msg_value);
    if (!r->msg || !r->msg_value)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for %zu messages", n);
    for (size_t i = 0; i < n; i++) PD_TRY(decode_message(json_array_get(list, i), i, r, err));
    if (r->values.failed) return pd_fail(err, PD_ENOMEM, NULL, "no memory for %zu messages", n);
    r->n_msg = n;
    return PD_OK;
}

/* ---- beside the messages ---- */

static void set(pd_request *r, const char *key, const json_t *v) {
    pd_jdict_set(&r->values, r->vars, key, pd_json_value(&r->values, v, PD_JORIGIN_OTHER));
}

static pd_status decode_kwargs(const json_t *body, pd_request *r, pd_err *err) {
    static const char *const own[] = {"messages", "tools", "documents", "add_generation_prompt",
                                      "continue_final_message", "bos_token", "eos_token", "unk_token",
                                      "pad_token"};
    json_t *v = pd_json_get(body, "chat_template_kwargs"), *one;
    const char *key;
    if (v && !json_is_object(v))
        return pd_fail(err, PD_EINVAL, "chat_template_kwargs",
                       "chat_template_kwargs is %s; an object is expected", pd_json_type_name(v));
    json_object_foreach(v, key, one) {
        for (size_t i = 0; i < sizeof own / sizeof own[0]; i++)
            if (strcmp(key, own[i]) == 0)
                return pd_fail(err, PD_EINVAL, "chat_template_kwargs",
                               "chat_template_kwargs.%s cannot be set: it is the template's own", key);
        set(r, key, one);
    }
    return PD_OK;
}

static pd_status decode_documents(const json_t *body, pd_request *r, pd_err *err) {
    const json_t *v = pd_json_get(body, "documents");
    if (!v) return PD_OK;
    if (!json_is_array(v))
        return pd_fail(err, PD_EINVAL, "documents", "documents is %s; an array of objects is expected",
                       pd_json_type_name(v));
    for (size_t i = 0; i < json_array_size(v); i++)
        if (!json_is_object(json_array_get(v, i)))
            return pd_fail(err, PD_EINVAL, "documents", "documents[%zu] is %s; an object is expected",
                           i, pd_json_type_name(json_array_get(v, i)));
    set(r, "documents", v);
    return PD_OK;
}

static pd_status decode_effort(const json_t *body, pd_request *r, pd_err *err) {
    const json_t *v = pd_json_get(body, "reasoning_effort");
    if (v && !json_is_string(v))
        return pd_fail(err, PD_EINVAL, "reasoning_effort",
                       "reasoning_effort is %s; a string is expected", pd_json_type_name(v));
    if (v) set(r, "reasoning_effort", v);
    return PD_OK;
}

/* How the prompt ends: with the header of an answer, or inside the last message. */
static pd_status decode_end(const json_t *body, pd_request *r, pd_err *err) {
    PD_TRY(pd_json_bool(body, "", "continue_final_message", &r->continue_final, err));
    r->add_generation_prompt = !r->continue_final;
    PD_TRY(pd_json_bool(body, "", "add_generation_prompt", &r->add_generation_prompt, err));
    if (r->continue_final && r->add_generation_prompt)
        return pd_fail(err, PD_EINVAL, "continue_final_message",
                       "continue_final_message and add_generation_prompt cannot both be true");
    return PD_OK;
}

static pd_status decode_tools(const json_t *body, pd_request *r, pd_err *err) {
    PD_TRY(pd_tools_decode(body, &r->tools, err));
    if (r->tools) set(r, "tools", pd_json_get(body, "tools"));
    if (r->tools && r->tools->choice != PD_TOOL_AUTO && r->continue_final)
        return pd_fail(err, PD_EINVAL, "tool_choice",
                       "tool_choice asks for a call, which cannot begin inside the last message");
    return PD_OK;
}

pd_status pd__request_template(const json_t *body, pd_request *r, pd_err *err) {
    r->vars = pd_jdict(&r->values, 4, PD_JORIGIN_OTHER);
    PD_TRY(decode_end(body, r, err));
    PD_TRY(decode_effort(body, r, err));
    PD_TRY(decode_kwargs(body, r, err));
    PD_TRY(decode_documents(body, r, err));
    PD_TRY(decode_tools(body, r, err));
    if (r->values.failed) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the request");
    return PD_OK;
}

/* ---- for a template without tools ---- */

/* {"name", "arguments"} in Hermes' form, behind what the message says. */
static void add_call(pd_buf *out, const json_t *call) {
    const json_t *f = pd_json_get(call, "function"), *arguments = pd_json_get(f, "arguments");
    char *name = json_dumps(pd_json_get(f, "name"), JSON_ENCODE_ANY);
    char *text = arguments ? json_dumps(arguments, JSON_ENCODE_ANY) : NULL;
    if (!name || (arguments && !text)) out->failed = true;
    pd_buf_printf(out, "%s<tool_call>\n{\"name\": %s, \"arguments\": ", out->len ? "\n" : "", name ? name : "");
    pd_buf_puts(out, text ? text : "{}");
    pd_buf_puts(out, "}\n</tool_call>");
    free(name);
    free(text);
}

/* What a message says without tools; out is empty if it stays as it is. */
static void plain_message(const json_t *m, pd_chat_msg *msg, pd_buf *out) {
    const json_t *calls = pd_json_get(m, "tool_calls");
    if (strcmp(msg->role, "tool") == 0) {
        msg->role = "user";
        pd_buf_puts(out, "<tool_response>\n");
        pd_buf_puts(out, msg->content);
        pd_buf_puts(out, "\n</tool_response>");
    } else if (json_array_size(calls)) {
        pd_buf_puts(out, msg->content);
        for (size_t i = 0; i < json_array_size(calls); i++) add_call(out, json_array_get(calls, i));
    }
}

/* The text of `b` as a message's content; b is empty again. */
static pd_status keep(pd_request *r, pd_buf *b, const char **content, pd_err *err) {
    char *s = b->failed ? NULL : pd_arena_strndup(&r->arena, b->data ? b->data : "", b->len);
    pd_buf_done(b);
    if (!s) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the messages");
    *content = s;
    return PD_OK;
}

/* The system message with the tools behind it, a new one if there is none. */
static pd_status describe(pd_request *r, pd_err *err) {
    pd_buf text = {0};
    const bool has = strcmp(r->msg[0].role, "system") == 0;
    if (has) {
        pd_buf_puts(&text, r->msg[0].content);
        pd_buf_puts(&text, "\n\n");
    } else {
        pd_chat_msg *msg = pd_arena_zalloc(&r->arena, r->n_msg + 1, sizeof *msg);
        pd_jval *value = pd_arena_zalloc(&r->arena, r->n_msg + 1, sizeof *value);
        if (!msg || !value) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the messages");
        memcpy(msg + 1, r->msg, r->n_msg * sizeof *msg);
        msg[0] = (pd_chat_msg){"system", ""};
        r->msg = msg;
        r->msg_value = value;
        r->n_msg++;
    }
    pd_tools_describe(pd_json_get(r->body, "tools"), &text);
    return keep(r, &text, &r->msg[0].content, err);
}

pd_status pd__request_plain_tools(pd_request *r, pd_err *err) {
    const json_t *list = pd_json_get(r->body, "messages");
    const size_t n = r->n_msg;
    bool called = false;
    for (size_t i = 0; i < n; i++) called = called || json_array_size(pd_json_get(json_array_get(list, i), "tool_calls"));
    if (!r->tools && !called) return PD_OK;
    for (size_t i = 0; i < n; i++) {
        pd_buf text = {0};
        plain_message(json_array_get(list, i), &r->msg[i], &text);
        if (text.len || text.failed) PD_TRY(keep(r, &text, &r->msg[i].content, err));
    }
    if (r->tools) PD_TRY(describe(r, err));
    const size_t shift = r->n_msg - n;
    for (size_t i = 0; i < r->n_msg; i++) /* origins count from the first */
        r->msg_value[i] = value_of(&r->values, i < shift ? NULL : json_array_get(list, i - shift), &r->msg[i],
                                   (uint16_t)(i + 1));
    if (r->values.failed) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the messages");
    return PD_OK;
}
