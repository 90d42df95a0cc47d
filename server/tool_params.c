/* SPDX-License-Identifier: Apache-2.0 */
/* Parameters one by one (see tool_params.h).
 *
 *   tags      OPEN --<parameter=--> KEY --> BETWEEN -->--> VALUE --</parameter>--> OPEN ...
 *   keywords  OPEN --> KEY --=--> VALUE --, or )--> OPEN ...
 *
 * Costs linear time in the text. */
#include "server/tool_params.h"
#include "server/tool_text.h"

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

/* The value without the space around it, as JSON; false: it is none. */
static bool as_json(const char *s, size_t n, pd_buf *out) {
    while (n && pd_tool_white(*s)) s++, n--;
    while (n && pd_tool_white(s[n - 1])) n--;
    json_t *v = json_loadb(s, n, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    if (v) pd_buf_add(out, s, n);
    json_decref(v);
    if (v) return true;
    return n && *s && !strchr("'\"(", *s) && pd_literal_json(PD_LITERAL_PYTHON, s, n, out);
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

/* ---- read while they come ---- */

void pd_tool_params_begin(pd_tool_params *p, const pd_tools *t, const pd_tool_syntax *syntax, const char *tool) {
    pd_buf key = p->key;
    pd_buf_clear(&key);
    *p = (pd_tool_params){.t = t, .syntax = syntax, .tool = tool, .key = key};
}

void pd_tool_params_done(pd_tool_params *p) {
    pd_buf_done(&p->key);
}

/* The bytes of s before `end`, each looked at once; false: it has not come. */
static bool up_to(pd_tool_params *p, const char *s, size_t n, const char *end, size_t *ret) {
    const size_t len = strlen(end), from = p->n_seen < n ? p->n_seen : n;
    const char *at = memmem(s + from, n - from, end, len);
    p->n_seen = at || n < len ? 0 : n - len + 1;
    if (at) *ret = (size_t)(at - s);
    return at != NULL;
}

static const char *key_of(const pd_tool_params *p) {
    return p->key.len ? p->key.data : "";
}

static void set_key(pd_tool_params *p, const char *s, size_t n) {
    pd_buf_clear(&p->key);
    pd_buf_add(&p->key, s, n);
}

/* Up to its value. */
static void member(pd_tool_params *p, pd_buf *out) {
    pd_buf_puts(out, p->any ? ", " : "{");
    p->any = true;
    pd_json_str(out, key_of(p), p->key.len);
    pd_buf_puts(out, ": ");
}

static pd_params_step over(const pd_tool_params *p, pd_buf *out) {
    if (p->any) pd_buf_putc(out, '}');
    return PD_PARAMS_DONE;
}

/* ---- between tags ---- */

/* A line break on each side belongs to the tags. */
static void tagged_value(pd_tool_params *p, const char *s, size_t n, pd_buf *out) {
    if (n && *s == '\n') s++, n--;
    if (n && s[n - 1] == '\n') n--;
    member(p, out);
    if (p->is_text || (p->is_json && !as_json(s, n, out))) pd_json_str(out, s, n);
    else if (!p->is_json) pd_tool_param(p->t, p->tool, key_of(p), s, n, out);
}

/* What stands between a name and its value may say of what type this is. */
static void note_type(pd_tool_params *p, const char *s, size_t n) {
    static const char *const text[] = {"string=\"true\"", "type=\"string\""}, *const json[] = {"string=\"false\"", "type=\""};
    p->is_text = p->is_json = false;
    for (size_t i = 0; i < 2 && !p->is_text; i++) {
        p->is_text = memmem(s, n, text[i], strlen(text[i])) != NULL;
        p->is_json = !p->is_text && (p->is_json || memmem(s, n, json[i], strlen(json[i])) != NULL);
    }
}

static pd_params_step read_tags(pd_tool_params *p, const char *s, size_t n, size_t *taken, pd_buf *out) {
    const pd_tool_syntax *x = p->syntax;
    size_t white = 0, k = 0;
    int is = -1;
    switch (p->at) {
    case PD_PARAM_OPEN:
        while (white < n && pd_tool_white(s[white])) white++;
        *taken = white;
        if (white == n) return PD_PARAMS_MORE;
        if (!p->any && x->object && s[white] == '{') {
            *taken = white + 1;
            return PD_PARAMS_OBJECT;
        }
        is = pd_tool_starts(s + white, n - white, x->open);
        if (is == 0) return PD_PARAMS_MORE;
        if (is < 0) return over(p, out);
        *taken = white + strlen(x->open);
        p->at = PD_PARAM_KEY;
        return PD_PARAMS_ON;
    case PD_PARAM_KEY:
        if (!up_to(p, s, n, x->key_end, &k)) return PD_PARAMS_MORE;
        set_key(p, s, k);
        *taken = k + strlen(x->key_end);
        p->at = x->value ? PD_PARAM_BETWEEN : PD_PARAM_VALUE;
        return PD_PARAMS_ON;
    case PD_PARAM_BETWEEN:
        if (!x->attributes) {
            while (white < n && pd_tool_white(s[white])) white++;
            is = pd_tool_starts(s + white, n - white, x->value);
            if (is < 0) return over(p, out);
            if (is == 0) return PD_PARAMS_MORE;
            k = white;
        } else if (!up_to(p, s, n, x->value, &k)) {
            return PD_PARAMS_MORE;
        } else {
            note_type(p, s, k);
        }
        *taken = k + strlen(x->value);
        p->at = PD_PARAM_VALUE;
        return PD_PARAMS_ON;
    case PD_PARAM_VALUE:
        if (!up_to(p, s, n, x->value_end, &k)) return PD_PARAMS_MORE;
        tagged_value(p, s, k, out);
        *taken = k + strlen(x->value_end);
        p->at = PD_PARAM_OPEN;
        return PD_PARAMS_ON;
    }
    return PD_PARAMS_DONE;
}

/* ---- keywords ---- */

static pd_params_step read_keywords(pd_tool_params *p, const char *s, size_t n, size_t *taken, pd_buf *out) {
    const char assign = p->syntax->key_end[0], close = p->syntax->value_end[0];
    size_t k = 0;
    if (p->at == PD_PARAM_OPEN) {
        while (k < n && (pd_tool_white(s[k]) || s[k] == ',')) k++;
        *taken = k;
        if (k == n) return PD_PARAMS_MORE;
        p->at = PD_PARAM_KEY;
        return PD_PARAMS_ON;
    }
    if (p->at == PD_PARAM_KEY) {
        k = p->n_seen < n ? p->n_seen : n;
        while (k < n && s[k] != assign && (!s[k] || !strchr(",()[]{}'\"<", s[k]))) k++;
        p->n_seen = k == n ? k : 0;
        if (k == n) return PD_PARAMS_MORE;
        if (s[k] != assign || k == 0) { /* the end, or a value without a name */
            *taken = s[k] == close ? k + 1 : 0;
            return over(p, out);
        }
        *taken = k + 1;
        while (pd_tool_white(s[k - 1]) && k > 1) k--;
        set_key(p, s, k);
        p->scan = (pd_literal_scan){0};
        p->at = PD_PARAM_VALUE;
        return PD_PARAMS_ON;
    }
    if (!pd_literal_end(&p->scan, p->syntax->notation, s, n)) return PD_PARAMS_MORE;
    k = p->scan.at;
    member(p, out);
    if (!pd_literal_json(p->syntax->notation, s, k, out)) pd_json_str(out, s, k);
    *taken = k;
    p->at = PD_PARAM_OPEN;
    return PD_PARAMS_ON;
}

pd_params_step pd_tool_params_read(pd_tool_params *p, const char *s, size_t n, size_t *ret_taken, pd_buf *arguments) {
    *ret_taken = 0;
    return (p->syntax->keywords ? read_keywords : read_tags)(p, s, n, ret_taken, arguments);
}
