/* SPDX-License-Identifier: Apache-2.0 */
/* JSON schema to GBNF (see schema_grammar.h): one rule per schema that is met, a
 * `$ref` is a rule of its own, so recursion costs nothing. */
#include "server/schema_grammar.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_MAX_BYTES = 256, REFS_MAX = 256 };

typedef struct {
    const json_t *root;
    pd_buf *out;
    size_t n_rule;
    unsigned depth;
    struct { const json_t *schema; size_t rule; } ref[REFS_MAX];
    size_t n_ref;
    pd_err *err;
} writer;

static const char base[] =
    "ws ::= | \" \" | \"\\n\" [ \\t]{0,16}\n"
    "char ::= [^\"\\\\\\x00-\\x1f\\x7f] | \"\\\\\" ([\"\\\\/bfnrt] | \"u\" hex)\n"
    "hex ::= [0-9a-cefA-CEF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2}\n"
    "string ::= \"\\\"\" char* \"\\\"\"\n"
    "integer ::= \"-\"? (\"0\" | [1-9] [0-9]{0,15})\n"
    "number ::= integer (\".\" [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?\n"
    "boolean ::= \"true\" | \"false\"\n"
    "member ::= string ws \":\" ws value\n"
    "object ::= \"{\" ws (member ws (\",\" ws member ws)*)? \"}\"\n"
    "array ::= \"[\" ws (value ws (\",\" ws value ws)*)? \"]\"\n"
    "value ::= string | number | object | array | boolean | \"null\"\n";

void pd_json_grammar(pd_buf *out) {
    pd_buf_puts(out, base);
    pd_buf_puts(out, "root ::= object\n");
}

void pd_gbnf_text(pd_buf *out, const char *s, size_t n) {
    pd_buf_putc(out, '"');
    for (size_t i = 0; i < n; i++) {
        const unsigned char c = (unsigned char)s[i];
        if (c == '"' || c == '\\') pd_buf_printf(out, "\\%c", c);
        else if (c < 0x20) pd_buf_printf(out, "\\x%02x", c);
        else pd_buf_putc(out, (char)c);
    }
    pd_buf_putc(out, '"');
}

static pd_status bad(writer *w, const char *path, const char *what) {
    return pd_fail(w->err, PD_EINVAL, path, "%s: %s", path, what);
}

/* A JSON value as the text it must be. */
static void literal(pd_buf *to, const json_t *v) {
    char *s = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    if (s) pd_gbnf_text(to, s, strlen(s));
    else to->failed = true;
    free(s);
}

static pd_status schema_rule(writer *w, const json_t *s, const char *path, size_t *rule);

/* ---- what is read ---- */

static bool known(const char *key) {
    static const char *const word[] = {
        "type", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems",
        "enum", "const", "anyOf", "oneOf", "$ref", "minLength", "maxLength", "format", "minimum", "maximum",
        "exclusiveMinimum", "exclusiveMaximum", "nullable",
        "$defs", "definitions", "title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated",
    };
    for (size_t i = 0; i < sizeof word / sizeof word[0]; i++)
        if (strcmp(key, word[i]) == 0) return true;
    return false;
}

static pd_status count_of(writer *w, const json_t *s, const char *path, const char *key, int64_t none, int64_t *ret) {
    char at[PATH_MAX_BYTES];
    snprintf(at, sizeof at, "%s.", path);
    *ret = none;
    return pd_json_int(s, at, key, 0, 10000, ret, NULL, w->err);
}

/* ---- numbers ---- */

/* Decimal numbers lo..hi of `n` digits each, leading zeros allowed. */
static void digits(pd_buf *to, const char *lo, const char *hi, size_t n) {
    size_t same = 0;
    while (same < n && lo[same] == hi[same]) same++;
    if (same) pd_gbnf_text(to, lo, same);
    if (same == n) return;
    lo += same, hi += same, n -= same;
    if (n == 1) {
        pd_buf_printf(to, " [%c-%c]", *lo, *hi);
        return;
    }
    char nines[24], zeros[24];
    memset(nines, '9', sizeof nines);
    memset(zeros, '0', sizeof zeros);
    pd_buf_printf(to, " (\"%c\" (", *lo);
    digits(to, lo + 1, nines, n - 1);
    pd_buf_puts(to, ")");
    if (*lo + 1 < *hi) pd_buf_printf(to, " | [%c-%c] [0-9]{%zu}", *lo + 1, *hi - 1, n - 1);
    pd_buf_printf(to, " | \"%c\" (", *hi);
    digits(to, zeros, hi + 1, n - 1);
    pd_buf_puts(to, "))");
}

/* 0 <= lo <= hi */
static void naturals(pd_buf *to, uint64_t lo, uint64_t hi, const char *sign) {
    char a[24], b[24];
    for (bool first = true;; first = false) {
        const int n = snprintf(a, sizeof a, "%llu", (unsigned long long)lo);
        uint64_t most = 9;
        for (int i = 1; i < n; i++) most = most * 10 + 9;
        if (most > hi) most = hi;
        snprintf(b, sizeof b, "%llu", (unsigned long long)most);
        pd_buf_printf(to, "%s\"%s\" ", first ? "" : " | ", sign);
        digits(to, a, b, (size_t)n);
        if (most == hi) return;
        lo = most + 1;
    }
}

static pd_status write_integer(writer *w, const json_t *s, const char *path, pd_buf *to) {
    const int64_t most = 999999999999999;
    int64_t lo = -most, hi = most, x;
    char at[PATH_MAX_BYTES];
    bool given;
    snprintf(at, sizeof at, "%s.", path);
    PD_TRY(pd_json_int(s, at, "minimum", -most, most, &lo, NULL, w->err));
    PD_TRY(pd_json_int(s, at, "maximum", -most, most, &hi, NULL, w->err));
    PD_TRY(pd_json_int(s, at, "exclusiveMinimum", -most, most, &x, &given, w->err));
    if (given && x + 1 > lo) lo = x + 1;
    PD_TRY(pd_json_int(s, at, "exclusiveMaximum", -most, most, &x, &given, w->err));
    if (given && x - 1 < hi) hi = x - 1;
    if (lo > hi) return bad(w, path, "no integer is in the range asked for");
    if (lo < 0) naturals(to, hi < 0 ? (uint64_t)-hi : 1, (uint64_t)-lo, "-");
    if (lo < 0 && hi >= 0) pd_buf_puts(to, " | ");
    if (hi >= 0) naturals(to, lo > 0 ? (uint64_t)lo : 0, (uint64_t)hi, "");
    return PD_OK;
}

/* ---- strings ---- */

static pd_status write_string(writer *w, const json_t *s, const char *path, pd_buf *to) {
    static const struct { const char *name, *gbnf; } format[] = {
        {"date", "[0-9]{4} \"-\" (\"0\" [1-9] | \"1\" [0-2]) \"-\" (\"0\" [1-9] | \"1\" [0-9] | \"2\" [0-8])"},
        {"time", "([01] [0-9] | \"2\" [0-3]) \":\" [0-5] [0-9] \":\" [0-5] [0-9] (\".\" [0-9]{1,6})? (\"Z\" | [-+] ([01] [0-9] | \"2\" [0-3]) \":\" [0-5] [0-9])"},
        {"uuid", "[0-9a-f]{8} \"-\" [0-9a-f]{4} \"-\" [0-9a-f]{4} \"-\" [0-9a-f]{4} \"-\" [0-9a-f]{12}"},
        {"ipv4", "ipv4 (\".\" ipv4){3}"},
        {"email", "[a-zA-Z0-9_]{1,32} ([.] [a-zA-Z0-9_]{1,32}){0,2} \"@\" [a-z0-9]{1,32} ([.] [a-z]{2,16}){1,3}"},
    };
    int64_t min, max;
    PD_TRY(count_of(w, s, path, "minLength", 0, &min));
    PD_TRY(count_of(w, s, path, "maxLength", -1, &max));
    if (max >= 0 && max < min) return bad(w, path, "maxLength is below minLength");
    const json_t *f = pd_json_get(s, "format");
    if (!f) {
        pd_buf_printf(to, "\"\\\"\" char{%d,", (int)min);
        if (max >= 0) pd_buf_printf(to, "%d", (int)max);
        pd_buf_puts(to, "} \"\\\"\"");
        return PD_OK;
    }
    const char *name = json_is_string(f) ? json_string_value(f) : "";
    if (pd_json_get(s, "minLength") || pd_json_get(s, "maxLength")) return bad(w, path, "format with minLength or maxLength is not served");
    if (strcmp(name, "date-time") == 0) {
        pd_buf_printf(to, "\"\\\"\" %s \"T\" %s \"\\\"\"", format[0].gbnf, format[1].gbnf);
        return PD_OK;
    }
    for (size_t i = 0; i < sizeof format / sizeof format[0]; i++) {
        if (strcmp(name, format[i].name) != 0) continue;
        pd_buf_printf(to, "\"\\\"\" %s \"\\\"\"", format[i].gbnf);
        return PD_OK;
    }
    return bad(w, path, "format is none of date, time, date-time, uuid, ipv4, email");
}

/* ---- arrays and objects ---- */

static pd_status write_array(writer *w, const json_t *s, const char *path, pd_buf *to) {
    const json_t *prefix = pd_json_get(s, "prefixItems"), *items = json_object_get(s, "items");
    const size_t n = json_array_size(prefix);
    int64_t min, max;
    size_t rule = 0;
    char at[PATH_MAX_BYTES];
    PD_TRY(count_of(w, s, path, "minItems", 0, &min));
    PD_TRY(count_of(w, s, path, "maxItems", -1, &max));
    if (max >= 0 && max < min) return bad(w, path, "maxItems is below minItems");
    if (n) { /* all of them, so that the tuple is whole */
        if ((max >= 0 && (size_t)max < n) || (size_t)min > n || (items && !json_is_false(items)))
            return bad(w, path, "prefixItems with items, or with other bounds than its length, is not served");
        pd_buf_puts(to, "\"[\" ws ");
        for (size_t i = 0; i < n; i++) {
            snprintf(at, sizeof at, "%s.prefixItems[%zu]", path, i);
            PD_TRY(schema_rule(w, json_array_get(prefix, i), at, &rule));
            pd_buf_printf(to, "%ss%zu ws ", i ? "\",\" ws " : "", rule);
        }
        pd_buf_puts(to, "\"]\"");
        return PD_OK;
    }
    char item[32] = "value";
    if (items && !json_is_true(items)) {
        snprintf(at, sizeof at, "%s.items", path);
        PD_TRY(schema_rule(w, items, at, &rule));
        snprintf(item, sizeof item, "s%zu", rule);
    }
    if (max == 0) {
        pd_buf_puts(to, "\"[\" ws \"]\"");
        return PD_OK;
    }
    pd_buf_printf(to, "\"[\" ws (%s ws (\",\" ws %s ws){%d,", item, item, (int)(min > 1 ? min - 1 : 0));
    if (max > 0) pd_buf_printf(to, "%d", (int)max - 1);
    pd_buf_printf(to, "})%s \"]\"", min == 0 ? "?" : "");
    return PD_OK;
}

static bool is_required(const json_t *s, const char *key) {
    const json_t *list = pd_json_get(s, "required");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = json_string_value(json_array_get(list, i));
        if (name && strcmp(name, key) == 0) return true;
    }
    return false;
}

/* Members in order: rule <id>-<i> is the rest from member i on when one was written,
 * <id>-<i>f when none was. */
static pd_status write_object(writer *w, const json_t *s, const char *path, size_t id, pd_buf *to) {
    json_t *props = pd_json_get(s, "properties"), *one;
    const json_t *more = json_object_get(s, "additionalProperties");
    const size_t n = json_object_size(props);
    const bool open = more ? !json_is_false(more) : n == 0;
    const char *key;
    char at[PATH_MAX_BYTES], rest[32] = "value";
    size_t i = 0, rule = 0;
    for (size_t k = 0; k < json_array_size(pd_json_get(s, "required")); k++) {
        const char *name = json_string_value(json_array_get(pd_json_get(s, "required"), k));
        if (!name || !json_object_get(props, name)) return bad(w, path, "required names something that is not in properties");
    }
    if (open && n) return bad(w, path, "additionalProperties beside properties is not served: give false");
    if (open && more && !json_is_true(more)) {
        snprintf(at, sizeof at, "%s.additionalProperties", path);
        PD_TRY(schema_rule(w, more, at, &rule));
        snprintf(rest, sizeof rest, "s%zu", rule);
    }
    if (open) {
        pd_buf_printf(to, "\"{\" ws (string ws \":\" ws %s ws (\",\" ws string ws \":\" ws %s ws)*)? \"}\"", rest, rest);
        return PD_OK;
    }
    json_object_foreach(props, key, one) {
        snprintf(at, sizeof at, "%s.properties.%s", path, key);
        PD_TRY(schema_rule(w, one, at, &rule));
        const bool must = is_required(s, key);
        for (int first = 0; first < 2; first++) {
            pd_buf_printf(w->out, "s%zu-%zu%s ::= %s", id, i, first ? "f" : "", first ? "" : "\",\" ws ");
            json_t *name = json_string(key);
            literal(w->out, name);
            json_decref(name);
            pd_buf_printf(w->out, " ws \":\" ws s%zu ws s%zu-%zu", rule, id, i + 1);
            if (!must) pd_buf_printf(w->out, " | s%zu-%zu%s", id, i + 1, first ? "f" : "");
            pd_buf_putc(w->out, '\n');
        }
        i++;
    }
    pd_buf_printf(w->out, "s%zu-%zu ::= \"\"\ns%zu-%zuf ::= \"\"\n", id, n, id, n);
    pd_buf_printf(to, "\"{\" ws s%zu-0f \"}\"", id);
    return PD_OK;
}

/* ---- one schema ---- */

static bool has_type(const json_t *v, const char *type) {
    switch (json_typeof(v)) {
    case JSON_OBJECT: return strcmp(type, "object") == 0;
    case JSON_ARRAY: return strcmp(type, "array") == 0;
    case JSON_STRING: return strcmp(type, "string") == 0;
    case JSON_INTEGER: return strcmp(type, "integer") == 0 || strcmp(type, "number") == 0;
    case JSON_REAL: return strcmp(type, "number") == 0;
    case JSON_NULL: return strcmp(type, "null") == 0;
    default: return strcmp(type, "boolean") == 0;
    }
}

/* A fixed value, if the types beside it allow it. */
static pd_status write_fixed(writer *w, const json_t *v, const json_t *type, const char *path, pd_buf *to) {
    bool ok = !type || (json_is_string(type) && has_type(v, json_string_value(type)));
    for (size_t i = 0; i < json_array_size(type) && !ok; i++) {
        const char *t = json_string_value(json_array_get(type, i));
        ok = t && has_type(v, t);
    }
    if (!ok) return bad(w, path, "enum or const holds a value of another type");
    literal(to, v);
    return PD_OK;
}

static pd_status write_type(writer *w, const json_t *s, const char *type, const char *path, size_t id, pd_buf *to) {
    if (strcmp(type, "string") == 0) return write_string(w, s, path, to);
    if (strcmp(type, "integer") == 0) return write_integer(w, s, path, to);
    if (strcmp(type, "object") == 0) return write_object(w, s, path, id, to);
    if (strcmp(type, "array") == 0) return write_array(w, s, path, to);
    if (strcmp(type, "boolean") == 0 || strcmp(type, "null") == 0) {
        pd_buf_puts(to, *type == 'b' ? "boolean" : "\"null\"");
        return PD_OK;
    }
    if (strcmp(type, "number") != 0) return bad(w, path, "type is none of object, array, string, integer, number, boolean, null");
    const bool bounded = pd_json_get(s, "minimum") || pd_json_get(s, "maximum") || pd_json_get(s, "exclusiveMinimum") ||
                         pd_json_get(s, "exclusiveMaximum");
    if (bounded) return bad(w, path, "bounds are served for type integer, not for number");
    pd_buf_puts(to, "number");
    return PD_OK;
}

static pd_status find_ref(writer *w, const json_t *v, const char *path, const json_t **ret) {
    const char *ref = json_is_string(v) ? json_string_value(v) : "";
    const json_t *at = w->root;
    if (*ref != '#') return bad(w, path, "$ref is served within the schema only (\"#/$defs/...\")");
    for (ref++; *ref == '/' && at;) {
        const char *end = strchr(++ref, '/');
        const size_t n = end ? (size_t)(end - ref) : strlen(ref);
        at = json_object_getn(at, ref, n);
        ref += n;
    }
    if (!json_is_object(at)) return bad(w, path, "$ref names nothing in the schema");
    *ret = at;
    return PD_OK;
}

/* Any of several schemas; `oneOf` is read as anyOf where only one can match. */
static pd_status write_any(writer *w, const json_t *list, const char *path, const char *key, pd_buf *to) {
    const size_t n = json_array_size(list);
    if (n == 0) return bad(w, path, "anyOf and oneOf are non-empty arrays");
    for (size_t i = 0; i < n; i++) {
        char at[PATH_MAX_BYTES];
        size_t rule = 0;
        snprintf(at, sizeof at, "%s.%s[%zu]", path, key, i);
        PD_TRY(schema_rule(w, json_array_get(list, i), at, &rule));
        pd_buf_printf(to, "%ss%zu", i ? " | " : "", rule);
    }
    return PD_OK;
}

static pd_status write_schema(writer *w, const json_t *s, const char *path, size_t id, pd_buf *to) {
    const json_t *type = pd_json_get(s, "type"), *v;
    const char *const alone[] = {"$ref", "anyOf", "oneOf", "enum", "const"};
    size_t n_alone = 0;
    for (size_t i = 0; i < 5; i++) n_alone += json_object_get(s, alone[i]) != NULL;
    if (n_alone > 1 || (n_alone && (pd_json_get(s, "properties") || pd_json_get(s, "items"))))
        return bad(w, path, "$ref, anyOf, oneOf, enum and const are served one at a time");
    static const char *const narrower[] = {"minLength", "maxLength", "format", "minimum", "maximum", "exclusiveMinimum",
                                           "exclusiveMaximum", "minItems", "maxItems", "required", "additionalProperties"};
    const bool typed = type || pd_json_get(s, "properties") || pd_json_get(s, "items") || pd_json_get(s, "prefixItems");
    for (size_t i = 0; i < sizeof narrower / sizeof narrower[0] && (n_alone || !typed); i++)
        if (json_object_get(s, narrower[i])) return bad(w, path, "a keyword that narrows a type is served beside \"type\" only");
    if (type && (json_object_get(s, "$ref") || json_object_get(s, "anyOf")))
        return bad(w, path, "type beside $ref or anyOf is not served");
    if (json_is_true(pd_json_get(s, "nullable"))) pd_buf_puts(to, "\"null\" | ");
    if ((v = pd_json_get(s, "$ref"))) {
        size_t rule = 0;
        const json_t *there = NULL;
        PD_TRY(find_ref(w, v, path, &there));
        PD_TRY(schema_rule(w, there, path, &rule));
        pd_buf_printf(to, "s%zu", rule);
        return PD_OK;
    }
    if ((v = pd_json_get(s, "anyOf"))) return write_any(w, v, path, "anyOf", to);
    if (json_object_get(s, "oneOf")) return bad(w, path, "oneOf is not served; anyOf is");
    if ((v = json_object_get(s, "const"))) {
        return write_fixed(w, v, type, path, to);
    }
    if ((v = pd_json_get(s, "enum"))) {
        if (json_array_size(v) == 0) return bad(w, path, "enum is a non-empty array");
        for (size_t i = 0; i < json_array_size(v); i++) {
            if (i) pd_buf_puts(to, " | ");
            PD_TRY(write_fixed(w, json_array_get(v, i), type, path, to));
        }
        return PD_OK;
    }
    if (json_is_string(type)) return write_type(w, s, json_string_value(type), path, id, to);
    if (json_array_size(type)) {
        for (size_t i = 0; i < json_array_size(type); i++) {
            const char *t = json_string_value(json_array_get(type, i));
            if (i) pd_buf_puts(to, " | ");
            PD_TRY(write_type(w, s, t ? t : "", path, id, to));
        }
        return PD_OK;
    }
    if (type) return bad(w, path, "type is a string or a non-empty array of strings");
    if (pd_json_get(s, "properties")) return write_object(w, s, path, id, to);
    if (pd_json_get(s, "items") || pd_json_get(s, "prefixItems")) return write_array(w, s, path, to);
    pd_buf_puts(to, "value");
    return PD_OK;
}

static pd_status schema_rule(writer *w, const json_t *s, const char *path, size_t *rule) {
    const char *key;
    json_t *v;
    for (size_t i = 0; i < w->n_ref; i++) {
        if (w->ref[i].schema != s) continue;
        *rule = w->ref[i].rule;
        return PD_OK;
    }
    if (!json_is_object(s) && !json_is_true(s)) return bad(w, path, "a schema is an object");
    if (w->depth == PD_SCHEMA_DEPTH_MAX || w->n_rule == PD_SCHEMA_RULES_MAX || w->n_ref == REFS_MAX)
        return pd_fail(w->err, PD_EINVAL, path, "%s: the schema has more than %d parts or is deeper than %d", path, REFS_MAX, PD_SCHEMA_DEPTH_MAX);
    json_object_foreach((json_t *)(uintptr_t)s, key, v) {
        if (known(key)) continue;
        char at[PATH_MAX_BYTES];
        snprintf(at, sizeof at, "%s.%s", path, key);
        return bad(w, at, "this keyword is not served");
    }
    *rule = w->n_rule++;
    w->ref[w->n_ref].schema = s;
    w->ref[w->n_ref++].rule = *rule;
    pd_buf body = {0};
    pd_buf_init(&body, 1 << 20);
    w->depth++;
    const pd_status rc = write_schema(w, s, path, *rule, &body);
    w->depth--;
    pd_buf_printf(w->out, "s%zu ::= ", *rule);
    pd_buf_add(w->out, body.data, body.len);
    pd_buf_putc(w->out, '\n');
    if (body.failed) w->out->failed = true;
    pd_buf_done(&body);
    return rc;
}

pd_status pd_schema_grammar(const json_t *schema, const char *path, pd_buf *out, pd_err *err) {
    pd_err own = {0};
    writer w = {.root = schema, .out = out, .err = err ? err : &own};
    size_t rule = 0;
    pd_buf_puts(out, base);
    pd_buf_puts(out, "ipv4 ::= [0-9] | [1-9] [0-9] | \"1\" [0-9] [0-9] | \"2\" [0-4] [0-9] | \"25\" [0-5]\n");
    PD_TRY(schema_rule(&w, schema, path, &rule));
    pd_buf_printf(out, "root ::= s%zu\n", rule);
    return out->failed ? pd_fail(w.err, PD_EINVAL, path, "%s: the schema's grammar is too large", path) : PD_OK;
}
