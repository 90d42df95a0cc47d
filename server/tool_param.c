/* SPDX-License-Identifier: Apache-2.0 */
/* Parameters between tags (see tool_param.h). */
#include "server/tool_param.h"

#include <string.h>

static const json_t *schema_of(const pd_tools *t, const char *tool, const char *key) {
    for (size_t i = 0; i < t->n; i++)
        if (strcmp(t->name[i], tool) == 0)
            return pd_json_get(pd_json_get(pd_json_get(pd_json_get(json_array_get(t->list, i), "function"), "parameters"), "properties"), key);
    return NULL;
}

/* "type" is `name` or a list with it. */
static bool takes(const json_t *schema, const char *name) {
    const json_t *type = pd_json_get(schema, "type");
    bool is = json_is_string(type) && strcmp(json_string_value(type), name) == 0;
    for (size_t i = 0; i < json_array_size(type) && !is; i++) {
        const char *one = json_string_value(json_array_get(type, i));
        is = one && strcmp(one, name) == 0;
    }
    return is;
}

/* Without a type, a list of strings tells as much. */
static bool takes_strings(const json_t *schema) {
    const json_t *list = pd_json_get(schema, "enum");
    if (pd_json_get(schema, "type")) return takes(schema, "string");
    return json_is_string(json_array_get(list, 0)) || json_is_string(pd_json_get(schema, "const"));
}

static bool is_white(char c) {
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

/* The value without the space around it, as JSON; false: it is none. */
static bool as_json(const char *s, size_t n, pd_buf *out) {
    static const char *const python[][2] = {{"True", "true"}, {"False", "false"}, {"None", "null"}};
    while (n && is_white(*s)) s++, n--;
    while (n && is_white(s[n - 1])) n--;
    for (size_t i = 0; i < sizeof python / sizeof python[0]; i++) {
        if (strlen(python[i][0]) != n || memcmp(s, python[i][0], n) != 0) continue;
        pd_buf_puts(out, python[i][1]);
        return true;
    }
    json_t *v = json_loadb(s, n, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    if (v) pd_buf_add(out, s, n);
    json_decref(v);
    return v != NULL;
}

void pd_tool_param(const pd_tools *t, const char *tool, const char *key, const char *value, size_t n, pd_buf *out) {
    const json_t *schema = schema_of(t, tool, key);
    if (takes_strings(schema)) {
        const bool null = takes(schema, "null") && n == 4 && memcmp(value, "null", 4) == 0;
        if (null) pd_buf_puts(out, "null");
        else pd_json_str(out, value, n);
    } else if (!as_json(value, n, out)) {
        pd_json_str(out, value, n);
    }
}
