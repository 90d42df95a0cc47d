/* SPDX-License-Identifier: Apache-2.0 */
/* The tools of a request (see tools.h). */
#include "server/tools.h"

#include "server/tool_forms.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- decoding ---- */

/* OpenAI's rule: letters, digits, "_" and "-"; dots too, which others use. */
bool pd_tools_good_name(const char *s, size_t n) {
    static const char set[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.";
    for (size_t i = 0; i < n; i++)
        if (!memchr(set, s[i], sizeof set - 1)) return false;
    return n > 0 && n <= PD_TOOL_NAME_MAX;
}

static pd_status decode_tool(const json_t *tool, size_t i, pd_tools *t, pd_err *err) {
    char at[48];
    snprintf(at, sizeof at, "tools[%zu]", i);
    const char *type = json_string_value(pd_json_get(tool, "type"));
    const json_t *function = pd_json_get(tool, "function"), *parameters = pd_json_get(function, "parameters");
    const char *name = json_string_value(pd_json_get(function, "name"));
    if (!type || strcmp(type, "function") != 0)
        return pd_fail(err, PD_EINVAL, at, "%s has type \"%.40s\"; only \"function\" is served", at, type ? type : "");
    if (!name || !pd_tools_good_name(name, strlen(name)))
        return pd_fail(err, PD_EINVAL, at,
                       "%s.function.name must be a string of 1 to %d letters, digits, \"_\", \"-\" and \".\"", at,
                       PD_TOOL_NAME_MAX);
    bool strict;
    char function_at[64];
    snprintf(function_at, sizeof function_at, "%s.function.", at);
    PD_TRY(pd_json_bool(function, function_at, "strict", &strict, err));
    const json_t *description = pd_json_get(function, "description");
    if (description && !json_is_string(description))
        return pd_fail(err, PD_EINVAL, at, "%s.function.description is %s; a string is expected", at,
                       pd_json_type_name(description));
    if (parameters && !json_is_object(parameters))
        return pd_fail(err, PD_EINVAL, at, "%s.function.parameters is %s; an object is expected", at,
                       pd_json_type_name(parameters));
    t->name[i] = strdup(name);
    if (!t->name[i]) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the tools");
    t->n = i + 1;
    return PD_OK;
}

static pd_status decode_choice(const json_t *body, pd_tools *t, bool *none, pd_err *err) {
    const json_t *v = pd_json_get(body, "tool_choice");
    const char *word = json_string_value(v);
    const char *name = json_string_value(pd_json_get(pd_json_get(v, "function"), "name"));
    *none = word && strcmp(word, "none") == 0;
    if (!v || *none || (word && strcmp(word, "auto") == 0)) return PD_OK;
    if (word && strcmp(word, "required") == 0) {
        t->choice = PD_TOOL_REQUIRED;
        return PD_OK;
    }
    if (!name)
        return pd_fail(err, PD_EINVAL, "tool_choice",
                       "tool_choice must be \"none\", \"auto\", \"required\" or "
                       "{\"type\": \"function\", \"function\": {\"name\": ...}}");
    t->choice = PD_TOOL_NAMED;
    for (t->named = 0; t->named < t->n; t->named++)
        if (strcmp(t->name[t->named], name) == 0) return PD_OK;
    return pd_fail(err, PD_EINVAL, "tool_choice", "tool_choice names \"%.70s\", which is none of the tools", name);
}

static pd_status decode(const json_t *body, const json_t *list, pd_tools *t, bool *none, pd_err *err) {
    const size_t n = json_array_size(list);
    t->name = calloc(n, sizeof *t->name);
    if (!t->name) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the tools");
    for (size_t i = 0; i < n; i++) PD_TRY(decode_tool(json_array_get(list, i), i, t, err));
    return decode_choice(body, t, none, err);
}

pd_status pd_tools_decode(const json_t *body, pd_tools **ret, pd_err *err) {
    const json_t *list = pd_json_get(body, "tools"), *choice = pd_json_get(body, "tool_choice");
    bool parallel = true, none = false;
    *ret = NULL;
    PD_TRY(pd_json_bool(body, "", "parallel_tool_calls", &parallel, err));
    if (list && !json_is_array(list))
        return pd_fail(err, PD_EINVAL, "tools", "tools is %s; an array is expected", pd_json_type_name(list));
    if (json_array_size(list) == 0) {
        const char *word = json_string_value(choice);
        if (!choice || (word && (strcmp(word, "none") == 0 || strcmp(word, "auto") == 0))) return PD_OK;
        return pd_fail(err, PD_EINVAL, "tool_choice", "tool_choice asks for a call, but there are no tools");
    }
    if (json_array_size(list) > PD_TOOLS_MAX)
        return pd_fail(err, PD_EINVAL, "tools", "tools has %zu entries; at most %d are allowed", json_array_size(list),
                       PD_TOOLS_MAX);
    pd_tools *t = calloc(1, sizeof *t);
    if (!t) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the tools");
    t->parallel = parallel;
    t->list = json_incref((json_t *)(uintptr_t)list);
    const pd_status rc = decode(body, list, t, &none, err);
    if (rc == PD_OK && !none) *ret = t;
    else pd_tools_close(t);
    return rc;
}

void pd_tools_close(pd_tools *t) {
    if (!t) return;
    for (size_t i = 0; i < t->n; i++) free(t->name[i]);
    free(t->name);
    free(t->begun);
    json_decref(t->list);
    free(t);
}

bool pd_tools_knows(const pd_tools *t, const char *name, size_t n) {
    for (size_t i = 0; i < t->n; i++)
        if (strlen(t->name[i]) == n && memcmp(t->name[i], name, n) == 0) return true;
    return false;
}

/* ---- the model's form ---- */

pd_status pd_tools_fit(pd_tools *t, const pd_chat *chat, const char *schema, pd_err *err) {
    t->schema = schema ? schema : "function.parameters";
    pd_tool_find_form(t, chat);
    if (t->choice == PD_TOOL_AUTO) return PD_OK;
    const char *name = t->choice == PD_TOOL_NAMED ? t->name[t->named] : t->n == 1 ? t->name[0] : NULL;
    pd_buf text = {0};
    pd_buf_puts(&text, t->begin.open);
    if (name) pd_buf_puts(&text, name);
    if (name) pd_buf_puts(&text, t->begin.behind);
    free(t->begun);
    t->begun = text.failed ? NULL : strndup(text.data, text.len);
    pd_buf_done(&text);
    return t->begun ? PD_OK : pd_fail(err, PD_ENOMEM, NULL, "no memory for the tools");
}

void pd_tools_describe(const json_t *tools, pd_buf *out) {
    pd_buf_puts(out, "You can call functions. These are described by JSON, one in a line:\n");
    for (size_t i = 0; i < json_array_size(tools); i++) {
        char *text = json_dumps(pd_json_get(json_array_get(tools, i), "function"), 0);
        if (!text) out->failed = true;
        pd_buf_puts(out, text ? text : "");
        pd_buf_putc(out, '\n');
        free(text);
    }
    pd_buf_puts(out, "To call one, answer with\n<tool_call>\n{\"name\": \"its name\", \"arguments\": {\"argument\": value}}\n"
                     "</tool_call>\nand wait: its result will be given to you.");
}
