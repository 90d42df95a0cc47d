/* SPDX-License-Identifier: Apache-2.0 */
/* Bodies of other APIs (see translate.h). */
#include "server/translate.h"

#include "server/tools.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

pd_status pd_translate_rename(json_t *body, const char *from, const char *to, pd_err *err) {
    json_t *v = json_object_get(body, from);
    json_object_del(body, to);
    if (!v) return PD_OK;
    if (json_object_set(body, to, v) != 0) return pd_fail(err, PD_ENOMEM, NULL, "no memory");
    json_object_del(body, from);
    return PD_OK;
}

void pd_translate_forget(json_t *body, const char *keep) {
    static const char *const field[] = {
        "n", "best_of", "echo", "logprobs", "top_logprobs", "prompt_logprobs", "stream_options",
        "stop", "max_completion_tokens", "max_tokens", "add_generation_prompt", "response_format",
    };
    for (size_t i = 0; i < sizeof field / sizeof field[0]; i++)
        if (!keep || strcmp(field[i], keep) != 0) json_object_del(body, field[i]);
}

pd_status pd_translate_system(json_t *body, json_t *content, pd_err *err) {
    json_t *message = json_pack("{s:s, s:O}", "role", "system", "content", content);
    json_t *list = json_object_get(body, "messages");
    if (message && list && json_array_insert_new(list, 0, message) == 0) return PD_OK;
    return pd_fail(err, PD_ENOMEM, NULL, "no memory for the system prompt");
}

/* ---- tools ---- */

static pd_status no_memory(pd_err *err) {
    return pd_fail(err, PD_ENOMEM, NULL, "no memory for the tools");
}

static pd_status check_tool(const json_t *tool, const char *at, const char *type, bool type_optional, const char *schema,
                            pd_err *err) {
    const json_t *kind = pd_json_get(tool, "type"), *description = pd_json_get(tool, "description");
    const json_t *parameters = pd_json_get(tool, schema);
    const char *word = json_string_value(kind), *name = json_string_value(pd_json_get(tool, "name"));
    char prefix[64];
    bool strict;
    if (!json_is_object(tool))
        return pd_fail(err, PD_EINVAL, at, "%s is %s; an object is expected", at, pd_json_type_name(tool));
    if (word ? strcmp(word, type) != 0 : kind || !type_optional)
        return pd_fail(err, PD_EINVAL, at, "%s has type \"%.40s\"; only \"%s\" is served", at, word ? word : "", type);
    if (!name || !pd_tools_good_name(name, strlen(name)))
        return pd_fail(err, PD_EINVAL, at, "%s.name must be a string of 1 to %d letters, digits, \"_\", \"-\" and \".\"",
                       at, PD_TOOL_NAME_MAX);
    if (description && !json_is_string(description))
        return pd_fail(err, PD_EINVAL, at, "%s.description is %s; a string is expected", at, pd_json_type_name(description));
    if (parameters ? !json_is_object(parameters) : type_optional)
        return pd_fail(err, PD_EINVAL, at, "%s.%s is %s; an object is expected", at, schema,
                       parameters ? pd_json_type_name(parameters) : "missing");
    snprintf(prefix, sizeof prefix, "%s.", at);
    return pd_json_bool(tool, prefix, "strict", &strict, err);
}

pd_status pd_translate_tools(json_t *body, const char *type, bool type_optional, const char *schema, pd_err *err) {
    const json_t *tools = pd_json_get(body, "tools");
    if (!json_is_array(tools)) return PD_OK; /* null, or refused with a chat's words */
    json_t *list = json_array();
    pd_status st = list ? PD_OK : no_memory(err);
    for (size_t i = 0; i < json_array_size(tools) && st == PD_OK; i++) {
        json_t *tool = json_array_get(tools, i);
        char at[48];
        snprintf(at, sizeof at, "tools[%zu]", i);
        st = check_tool(tool, at, type, type_optional, schema, err);
        if (st != PD_OK) break;
        json_t *one = json_pack("{s:s, s:{s:O, s:O*, s:O*, s:O*}}", "type", "function", "function", "name",
                                pd_json_get(tool, "name"), "description", pd_json_get(tool, "description"), "parameters",
                                pd_json_get(tool, schema), "strict", pd_json_get(tool, "strict"));
        if (json_array_append_new(list, one) != 0) st = no_memory(err);
    }
    if (st == PD_OK && json_object_set(body, "tools", list) != 0) st = no_memory(err);
    json_decref(list);
    return st;
}

pd_status pd_translate_choice(json_t *body, const char *choice, const char *name, pd_err *err) {
    json_t *v = name ? json_pack("{s:s, s:{s:s}}", "type", "function", "function", "name", name) : json_string(choice);
    return json_object_set_new(body, "tool_choice", v) == 0 ? PD_OK : no_memory(err);
}

pd_status pd_translate_call(json_t *message, const char *id, const char *name, json_t *arguments, pd_err *err) {
    json_t *call = json_pack("{s:s, s:s, s:{s:s, s:O}}", "id", id, "type", "function", "function", "name", name,
                             "arguments", arguments);
    json_t *calls = json_object_get(message, "tool_calls");
    if (!calls && json_object_set_new(message, "tool_calls", json_array()) == 0) calls = json_object_get(message, "tool_calls");
    if (call && calls && json_array_append_new(calls, call) == 0) return PD_OK;
    if (!calls) json_decref(call);
    return no_memory(err);
}

pd_status pd_translate_result(json_t *list, const char *id, json_t *content, pd_err *err) {
    json_t *message = json_pack("{s:s, s:s, s:O}", "role", "tool", "tool_call_id", id, "content", content);
    return json_array_append_new(list, message) == 0 ? PD_OK : no_memory(err);
}

/* ---- refusals ---- */

/* Is v what the word stands for: itself, its "type", or false? */
static bool is_word(const json_t *v, const char *word) {
    const json_t *type = json_is_object(v) ? pd_json_get(v, "type") : v;
    if (strcmp(word, "false") == 0) return json_is_false(v);
    return json_is_string(type) && strcmp(json_string_value(type), word) == 0;
}

pd_status pd_translate_refuse(const json_t *body, const char *key, pd_err *err, ...) {
    const json_t *v = pd_json_get(body, key);
    bool ok = !v;
    va_list words;
    va_start(words, err);
    for (const char *word; !ok && (word = va_arg(words, const char *));)
        ok = is_word(v, word);
    va_end(words);
    if (ok) return PD_OK;
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    pd_fail(err, PD_EINVAL, key, "%s is %.60s; it is not served here", key, text ? text : "?");
    free(text);
    return PD_EINVAL;
}
