/* SPDX-License-Identifier: Apache-2.0 */
/* JSON schema to GBNF (see schema_grammar.h): one rule per schema that is met, a
 * `$ref` is a rule of its own, so recursion costs nothing. */
#include "server/schema_grammar.h"

#include "server/schema_int.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORK_MAX = 100000 };

/* Types as a set. */
enum { NUL = 1, BOOL = 2, INT = 4, REAL = 8, STRING = 16, ARRAY = 32, OBJECT = 64, ALL = 127 };

static const char base[] =
    "ws ::= | \" \" | \"\\n\" [ \\t]{0,16}\n"
    "char ::= [^\"\\\\\\x00-\\x1f\\x7f] | \"\\\\\" ([\"\\\\/bfnrt] | \"u\" hex)\n"
    "hex ::= [0-9a-cefA-CEF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2}\n"
    "string ::= \"\\\"\" char* \"\\\"\"\n"
    "integer ::= \"-\"? (\"0\" | [1-9] [0-9]{0,14})\n"
    "number ::= integer (\".\" [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?\n"
    "boolean ::= \"true\" | \"false\"\n"
    "member ::= string ws \":\" ws value\n"
    "object ::= \"{\" ws (member ws (\",\" ws member ws)*)? \"}\"\n"
    "array ::= \"[\" ws (value ws (\",\" ws value ws)*)? \"]\"\n"
    "plain ::= [^\"\\\\\\x00-\\x1f] | \"\\\\\" [\"\\\\bfnrt] | \"\\\\u00\" (\"0\" [0-7be-f] | \"1\" [0-9a-f])\n"
    "never ::= [^\\x00-\\U0010FFFF]\n"
    "value ::= string | number | object | array | boolean | \"null\"\n";

void pd_json_rules(pd_buf *out) {
    pd_buf_puts(out, base);
}

void pd_json_grammar(pd_buf *out) {
    pd_json_rules(out);
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

pd_status pd__schema_bad(pd__schema *w, const char *path, const char *what) {
    return pd_fail(w->err, PD_EINVAL, path, "%s: %s", path, what);
}

pd_status pd__schema_bad_key(pd__schema *w, const char *path, const char *key, const char *what) {
    char at[PD__SCHEMA_PATH_MAX];
    snprintf(at, sizeof at, "%s.%s", path, key);
    return pd__schema_bad(w, at, what);
}

void pd__schema_literal(pd_buf *to, const json_t *v) {
    char *s = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    if (s) pd_gbnf_text(to, s, strlen(s));
    else to->failed = true;
    free(s);
}

/* ---- what is read ---- */

static bool known(const char *key) {
    static const char *const word[] = {
        "type", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems",
        "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "minLength", "maxLength", "format", "minimum", "maximum",
        "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "pattern", "minProperties", "maxProperties",
        "patternProperties", "propertyNames", "uniqueItems", "nullable",
        "$defs", "definitions", "title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated",
        "readOnly", "writeOnly", "example", "contentEncoding", "contentMediaType", /* say nothing of validity */
    };
    for (size_t i = 0; i < sizeof word / sizeof word[0]; i++)
        if (strcmp(key, word[i]) == 0) return true;
    return strncmp(key, "x-", 2) == 0; /* OpenAPI's extensions */
}

pd_status pd__schema_count(pd__schema *w, const json_t *s, const char *path, const char *key, int64_t none, int64_t *ret) {
    char at[PD__SCHEMA_PATH_MAX];
    snprintf(at, sizeof at, "%s.", path);
    *ret = none;
    return pd_json_int(s, at, key, 0, 10000, ret, NULL, w->err);
}

/* ---- types ---- */

static unsigned type_bit(const char *t) {
    static const struct { const char *name; unsigned bits; } row[] = {
        {"null", NUL}, {"boolean", BOOL}, {"integer", INT}, {"number", INT | REAL}, {"string", STRING}, {"array", ARRAY}, {"object", OBJECT},
    };
    for (size_t i = 0; t && i < sizeof row / sizeof row[0]; i++)
        if (strcmp(t, row[i].name) == 0) return row[i].bits;
    return 0;
}

/* The types of `type`; 0 = it names something else. */
static unsigned type_bits(const json_t *type) {
    if (json_is_string(type)) return type_bit(json_string_value(type));
    unsigned all = 0;
    for (size_t i = 0; i < json_array_size(type); i++) {
        const unsigned one = type_bit(json_string_value(json_array_get(type, i)));
        if (!one) return 0;
        all |= one;
    }
    return all;
}

static unsigned value_bits(const json_t *v) {
    switch (json_typeof(v)) {
    case JSON_OBJECT: return OBJECT;
    case JSON_ARRAY: return ARRAY;
    case JSON_STRING: return STRING;
    case JSON_INTEGER: return INT;
    case JSON_REAL: return json_real_value(v) == floor(json_real_value(v)) ? INT : REAL; /* 1.0 is an integer */
    case JSON_NULL: return NUL;
    default: return BOOL;
    }
}

/* ---- arrays ---- */

static pd_status write_array(pd__schema *w, const json_t *s, const char *path, pd_buf *to) {
    if (!w->loose && pd_json_get(s, "uniqueItems") && !json_is_false(json_object_get(s, "uniqueItems")))
        return pd__schema_bad_key(w, path, "uniqueItems", "false alone is served: a grammar does not compare items");
    const json_t *prefix = pd_json_get(s, "prefixItems"), *items = json_object_get(s, "items");
    const size_t n = json_array_size(prefix);
    int64_t min, max;
    size_t rule = 0;
    char at[PD__SCHEMA_PATH_MAX];
    PD_TRY(pd__schema_count(w, s, path, "minItems", 0, &min));
    PD_TRY(pd__schema_count(w, s, path, "maxItems", -1, &max));
    if (max >= 0 && max < min) return pd__schema_bad(w, path, "maxItems is below minItems");
    if (n) { /* all of them, so that the tuple is whole */
        if ((max >= 0 && (size_t)max < n) || (size_t)min > n || (items && !json_is_false(items)))
            return pd__schema_bad(w, path, "prefixItems with items, or with other bounds than its length, is not served");
        pd_buf_puts(to, "\"[\" ws ");
        for (size_t i = 0; i < n; i++) {
            snprintf(at, sizeof at, "%s.prefixItems[%zu]", path, i);
            PD_TRY(pd__schema_rule(w, json_array_get(prefix, i), at, &rule));
            pd_buf_printf(to, "%ss%zu ws ", i ? "\",\" ws " : "", rule);
        }
        pd_buf_puts(to, "\"]\"");
        return PD_OK;
    }
    char item[32] = "value";
    if (items && !json_is_true(items)) {
        snprintf(at, sizeof at, "%s.items", path);
        PD_TRY(pd__schema_rule(w, items, at, &rule));
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

/* ---- one schema ---- */

/* A fixed value, if the types beside it allow it. */
static pd_status write_fixed(pd__schema *w, const json_t *v, const json_t *type, const char *path, pd_buf *to) {
    if (type && !(type_bits(type) & value_bits(v))) return pd__schema_bad(w, path, "enum or const holds a value of another type");
    pd__schema_literal(to, v);
    return PD_OK;
}

static pd_status write_types(pd__schema *w, const json_t *s, unsigned types, const char *path, size_t id, pd_buf *to) {
    const char *sep = "";
    for (unsigned bit = 1; bit <= OBJECT; bit <<= 1) {
        if (!(types & bit) || (bit == INT && types & REAL)) continue;
        pd_buf_puts(to, sep);
        sep = " | ";
        switch (bit) {
        case NUL: pd_buf_puts(to, "\"null\""); break;
        case BOOL: pd_buf_puts(to, "boolean"); break;
        case INT: PD_TRY(pd__schema_integer(w, s, path, id, to)); break;
        case REAL: PD_TRY(pd__schema_number(w, s, path, id, to)); break;
        case STRING: PD_TRY(pd__schema_string(w, s, path, id, to)); break;
        case ARRAY: PD_TRY(write_array(w, s, path, to)); break;
        default: PD_TRY(pd__schema_object(w, s, path, id, to)); break;
        }
    }
    return PD_OK;
}

/* One step of a JSON pointer (RFC 6901): ~1 is '/', ~0 is '~'. */
static const json_t *pointer_step(const json_t *at, const char *s, size_t n) {
    char name[PD__SCHEMA_PATH_MAX];
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        if (k == sizeof name) return NULL;
        name[k++] = s[i];
        if (s[i] != '~') continue;
        if (++i == n || (s[i] != '0' && s[i] != '1')) return NULL;
        if (s[i] == '1') name[k - 1] = '/';
    }
    if (!json_is_array(at)) return json_object_getn(at, name, k);
    size_t x = 0;
    for (size_t i = 0; i < k; i++) {
        if (name[i] < '0' || name[i] > '9' || i > 5) return NULL;
        x = x * 10 + (size_t)(name[i] - '0');
    }
    return k ? json_array_get(at, x) : NULL;
}

/* What a $ref names, or NULL. */
static const json_t *target(const pd__schema *w, const json_t *v) {
    const char *ref = json_is_string(v) ? json_string_value(v) : "";
    const json_t *at = w->root;
    if (*ref != '#') return NULL;
    for (ref++; *ref == '/' && at;) {
        const char *end = strchr(++ref, '/');
        const size_t n = end ? (size_t)(end - ref) : strlen(ref);
        at = pointer_step(at, ref, n);
        ref += n;
    }
    return *ref == '\0' && (json_is_object(at) || json_is_boolean(at)) ? at : NULL;
}

static pd_status find_ref(pd__schema *w, const json_t *v, const char *path, const json_t **ret) {
    if (!json_is_string(v) || *json_string_value(v) != '#')
        return pd__schema_bad(w, path, "$ref is served within the schema only (\"#/$defs/...\")");
    *ret = target(w, v);
    return *ret ? PD_OK : pd__schema_bad(w, path, "$ref names nothing in the schema");
}

/* ---- what a schema can be ---- */

/* Types that a value of `s` may have: not fewer than it has, so ALL when in doubt. */
static unsigned types_of(pd__schema *w, const json_t *s, unsigned depth) {
    const json_t *v;
    if (!json_is_object(s) || depth > PD_SCHEMA_DEPTH_MAX || ++w->work > WORK_MAX) return ALL;
    unsigned all = 0;
    if ((v = pd_json_get(s, "$ref"))) all = (v = target(w, v)) ? types_of(w, v, depth + 1) : ALL;
    else if ((v = pd_json_get(s, "anyOf")) || (v = pd_json_get(s, "oneOf")))
        for (size_t i = 0; i < json_array_size(v); i++) all |= types_of(w, json_array_get(v, i), depth + 1);
    else if ((v = json_object_get(s, "const"))) all = value_bits(v);
    else if ((v = pd_json_get(s, "enum")))
        for (size_t i = 0; i < json_array_size(v); i++) all |= value_bits(json_array_get(v, i));
    else if ((v = pd_json_get(s, "type"))) all = type_bits(v);
    else if (pd_json_get(s, "properties")) all = OBJECT;
    else if (pd_json_get(s, "items") || pd_json_get(s, "prefixItems")) all = ARRAY;
    else return ALL;
    if (!all) return ALL; /* nonsense */
    return json_is_true(pd_json_get(s, "nullable")) ? all | NUL : all;
}

bool pd__schema_only_strings(pd__schema *w, const json_t *s) {
    return types_of(w, s, 0) == STRING;
}

static const json_t *behind_refs(const pd__schema *w, const json_t *s) {
    for (int i = 0; i < PD_SCHEMA_DEPTH_MAX; i++) {
        const json_t *ref = pd_json_get(s, "$ref");
        if (!ref || !(s = target(w, ref))) return s;
    }
    return NULL;
}

/* The i-th of a schema's fixed values; NULL behind the last, or if it has none. */
static const json_t *fixed(const json_t *s, size_t i) {
    const json_t *one = json_object_get(s, "const");
    return one ? (i ? NULL : one) : json_array_get(pd_json_get(s, "enum"), i);
}

static bool same_value(const json_t *a, const json_t *b) {
    if (json_is_number(a) && json_is_number(b)) return json_number_value(a) == json_number_value(b);
    /* numbers inside may be written in two ways: such values count as the same */
    if (json_typeof(a) == json_typeof(b) && (json_is_object(a) || json_is_array(a))) return true;
    return json_equal(a, b);
}

/* True only if no value is valid in both. */
static bool disjoint(pd__schema *w, const json_t *a, const json_t *b, unsigned depth) {
    if (depth > 4 || ++w->work > WORK_MAX) return false;
    if (!(types_of(w, a, 0) & types_of(w, b, 0))) return true;
    a = behind_refs(w, a);
    b = behind_refs(w, b);
    if (!json_is_object(a) || !json_is_object(b) || pd_json_get(a, "nullable") || pd_json_get(b, "nullable")) return false;
    if (fixed(a, 0) && fixed(b, 0)) {
        for (size_t i = 0; fixed(a, i); i++)
            for (size_t k = 0; fixed(b, k); k++)
                if (++w->work > WORK_MAX || same_value(fixed(a, i), fixed(b, k))) return false;
        return true;
    }
    if (types_of(w, a, 0) != OBJECT || types_of(w, b, 0) != OBJECT) return false;
    const char *key;
    json_t *one, *props = pd_json_get(a, "properties"), *others = pd_json_get(b, "properties");
    json_object_foreach(props, key, one) {
        const json_t *other = json_object_get(others, key);
        if (other && pd__schema_requires(a, key) && pd__schema_requires(b, key) && disjoint(w, one, other, depth + 1)) return true;
    }
    return false;
}

/* True if `from` is, without reading a byte, `to` again: by $ref and choices alone. */
static bool leads_to(pd__schema *w, const json_t *from, const json_t *to, const json_t **seen, size_t *n_seen) {
    static const char *const key[] = {"anyOf", "oneOf", "allOf"};
    if (from == to) return true;
    for (size_t i = 0; i < *n_seen; i++)
        if (seen[i] == from) return false;
    if (*n_seen == PD__SCHEMA_MERGED_MAX || ++w->work > WORK_MAX) return true;
    seen[(*n_seen)++] = from;
    const json_t *next = target(w, pd_json_get(from, "$ref"));
    if (next && leads_to(w, next, to, seen, n_seen)) return true;
    for (size_t k = 0; k < 3; k++)
        for (size_t i = 0; i < json_array_size(pd_json_get(from, key[k])); i++)
            if (leads_to(w, json_array_get(pd_json_get(from, key[k]), i), to, seen, n_seen)) return true;
    return false;
}

/* ---- allOf ---- */

static bool is_note(const char *key) {
    static const char *const word[] = {"title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated", "$defs", "definitions",
                                       "readOnly", "writeOnly", "example"};
    for (size_t i = 0; i < sizeof word / sizeof word[0]; i++)
        if (strcmp(key, word[i]) == 0) return true;
    return strncmp(key, "x-", 2) == 0;
}

/* One more object of an allOf into `all`. */
static pd_status merge(pd__schema *w, json_t *all, const json_t *s, const char *path, unsigned depth) {
    const char *key;
    json_t *v, *one;
    s = behind_refs(w, s);
    if (++w->work > WORK_MAX) return pd__schema_bad(w, path, "allOf names too many schemas");
    if (!json_is_object(s) || depth > PD_SCHEMA_DEPTH_MAX) return pd__schema_bad(w, path, "allOf is served for objects with properties");
    json_t *props = json_object_get(all, "properties"), *must = json_object_get(all, "required");
    json_object_foreach((json_t *)(uintptr_t)s, key, v) {
        const bool plain = strcmp(key, "properties") == 0 || strcmp(key, "required") == 0 || strcmp(key, "allOf") == 0 ||
                           (strcmp(key, "type") == 0 && type_bits(v) == OBJECT);
        if (!plain && !is_note(key))
            return pd__schema_bad(w, path, "allOf is served for objects that have type, properties, required and allOf alone");
    }
    const char *name;
    json_object_foreach(pd_json_get(s, "properties"), name, one) {
        const json_t *there = json_object_get(props, name);
        if (there && !json_equal(there, one)) return pd__schema_bad(w, path, "two parts of allOf say different things about one property");
        if (json_object_set(props, name, one) != 0) return pd__schema_bad(w, path, "no memory for allOf");
    }
    for (size_t i = 0; i < json_array_size(pd_json_get(s, "required")); i++)
        if (json_array_append(must, json_array_get(pd_json_get(s, "required"), i)) != 0) return pd__schema_bad(w, path, "no memory for allOf");
    v = pd_json_get(s, "allOf");
    for (size_t i = 0; i < json_array_size(v); i++) PD_TRY(merge(w, all, json_array_get(v, i), path, depth + 1));
    return PD_OK;
}

static pd_status write_all(pd__schema *w, const json_t *s, const char *path, size_t id, pd_buf *to) {
    const json_t *list = pd_json_get(s, "allOf");
    char at[PD__SCHEMA_PATH_MAX];
    snprintf(at, sizeof at, "%s.allOf", path);
    if (json_array_size(list) == 0) return pd__schema_bad(w, at, "a non-empty array is expected");
    bool alone = json_array_size(list) == 1;
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)s, key, v) alone = alone && (is_note(key) || strcmp(key, "allOf") == 0);
    if (alone) {
        size_t rule = 0;
        snprintf(at, sizeof at, "%s.allOf[0]", path);
        PD_TRY(pd__schema_rule(w, json_array_get(list, 0), at, &rule));
        pd_buf_printf(to, "s%zu", rule);
        return PD_OK;
    }
    if (w->n_merged == PD__SCHEMA_MERGED_MAX) return pd__schema_bad(w, at, "more than 256 of them");
    json_t *all = json_pack("{s:s, s:{}, s:[]}", "type", "object", "properties", "required");
    if (!all) return pd_fail(w->err, PD_ENOMEM, NULL, "no memory for allOf");
    w->merged[w->n_merged++] = all;
    PD_TRY(merge(w, all, s, at, 0));
    return pd__schema_object(w, all, path, id, to);
}

/* Any of several schemas; `oneOf` is the same where no value is valid in two. */
static pd_status write_any(pd__schema *w, const json_t *list, const char *path, const char *key, pd_buf *to) {
    const size_t n = json_array_size(list);
    if (n == 0) return pd__schema_bad(w, path, "anyOf and oneOf are non-empty arrays");
    for (size_t i = 0; i < n && strcmp(key, "oneOf") == 0; i++)
        for (size_t k = i + 1; k < n; k++) {
            if (disjoint(w, json_array_get(list, i), json_array_get(list, k), 0)) continue;
            char at[PD__SCHEMA_PATH_MAX];
            snprintf(at, sizeof at, "%s.oneOf[%zu]", path, k);
            return pd__schema_bad(w, at, "a value could be valid here and in an earlier branch: tell them apart by type or by a required constant, or use anyOf");
        }
    for (size_t i = 0; i < n; i++) {
        char at[PD__SCHEMA_PATH_MAX];
        size_t rule = 0;
        snprintf(at, sizeof at, "%s.%s[%zu]", path, key, i);
        PD_TRY(pd__schema_rule(w, json_array_get(list, i), at, &rule));
        pd_buf_printf(to, "%ss%zu", i ? " | " : "", rule);
    }
    return PD_OK;
}

/* Keywords that say something about one type stand beside that type, and beside no
 * other way to say what is valid. */
static pd_status check_narrower(pd__schema *w, const json_t *s, unsigned types, const char *path) {
    static const struct { const char *key; unsigned types; } row[] = {
        {"minLength", STRING}, {"maxLength", STRING}, {"pattern", STRING}, {"format", STRING | INT | REAL}, {"minimum", INT | REAL}, {"maximum", INT | REAL},
        {"exclusiveMinimum", INT | REAL}, {"exclusiveMaximum", INT | REAL}, {"multipleOf", INT | REAL}, {"items", ARRAY}, {"prefixItems", ARRAY},
        {"minItems", ARRAY}, {"maxItems", ARRAY}, {"properties", OBJECT}, {"required", OBJECT}, {"additionalProperties", OBJECT},
        {"minProperties", OBJECT}, {"maxProperties", OBJECT}, {"patternProperties", OBJECT}, {"propertyNames", OBJECT}, {"uniqueItems", ARRAY},
    };
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        if (w->loose || !pd_json_get(s, row[i].key) || types & row[i].types) continue;
        char at[PD__SCHEMA_PATH_MAX];
        snprintf(at, sizeof at, "%s.%s", path, row[i].key);
        return pd__schema_bad(w, at, "this keyword is served beside a \"type\" it belongs to, and not beside $ref, anyOf, oneOf, enum or const");
    }
    return PD_OK;
}

/* What one keyword says alone: $ref, anyOf, oneOf, enum or const. */
static pd_status write_alone(pd__schema *w, const json_t *s, const char *path, pd_buf *to) {
    const json_t *v = json_object_get(s, "const"), *type = pd_json_get(s, "type");
    if (v) return write_fixed(w, v, type, path, to);
    if ((v = pd_json_get(s, "enum"))) {
        if (json_array_size(v) == 0) return pd__schema_bad(w, path, "enum is a non-empty array");
        for (size_t i = 0; i < json_array_size(v) && !to->failed; i++) {
            if (i) pd_buf_puts(to, " | ");
            PD_TRY(write_fixed(w, json_array_get(v, i), type, path, to));
        }
        return PD_OK;
    }
    if (type && types_of(w, s, 0) & ~type_bits(type)) /* else it says nothing new */
        return pd__schema_bad(w, path, "type beside $ref, anyOf or oneOf is served where they allow no other type");
    if ((v = pd_json_get(s, "anyOf"))) return write_any(w, v, path, "anyOf", to);
    if ((v = pd_json_get(s, "oneOf"))) return write_any(w, v, path, "oneOf", to);
    size_t rule = 0, n_seen = 0;
    const json_t *there = NULL, *seen[PD__SCHEMA_MERGED_MAX];
    PD_TRY(find_ref(w, pd_json_get(s, "$ref"), path, &there));
    if (leads_to(w, there, s, seen, &n_seen)) return pd__schema_bad(w, path, "$ref leads back to itself, so no value is ever described");
    PD_TRY(pd__schema_rule(w, there, path, &rule));
    pd_buf_printf(to, "s%zu", rule);
    return PD_OK;
}

static pd_status write_schema(pd__schema *w, const json_t *s, const char *path, size_t id, pd_buf *to) {
    const json_t *type = pd_json_get(s, "type");
    const char *const alone[] = {"$ref", "anyOf", "oneOf", "enum", "const"};
    size_t n_alone = 0;
    for (size_t i = 0; i < 5; i++) n_alone += json_object_get(s, alone[i]) != NULL;
    if (n_alone > 1) return pd__schema_bad(w, path, "$ref, anyOf, oneOf, enum and const are served one at a time");
    if (type && !type_bits(type))
        return pd__schema_bad(w, path, "type is none of object, array, string, integer, number, boolean, null, and no array of these");
    if (pd_json_get(s, "allOf")) {
        if (n_alone || pd_json_get(s, "nullable")) return pd__schema_bad(w, path, "allOf is served beside properties and required alone");
        return write_all(w, s, path, id, to);
    }
    const unsigned types = n_alone ? 0 : types_of(w, s, 0);
    const bool open = !n_alone && !type && types == ALL; /* nothing said */
    PD_TRY(check_narrower(w, s, open ? 0 : types, path));
    if (n_alone && json_is_true(pd_json_get(s, "nullable"))) pd_buf_puts(to, "\"null\" | "); /* types have it already */
    if (n_alone) return write_alone(w, s, path, to);
    if (open) pd_buf_puts(to, "value");
    return open ? PD_OK : write_types(w, s, types, path, id, to);
}

/* Every value of these types. */
static void write_any_of(unsigned types, pd_buf *to) {
    static const struct { unsigned types; const char *rule; } row[] = {
        {NUL, "\"null\""}, {BOOL, "boolean"}, {REAL, "number"}, {INT, "integer"}, {STRING, "string"}, {ARRAY, "array"}, {OBJECT, "object"},
    };
    const char *sep = "";
    for (size_t i = 0; i < sizeof row / sizeof row[0] && types != ALL; i++) {
        if (!(types & row[i].types) || (row[i].types == INT && types & REAL)) continue;
        pd_buf_printf(to, "%s%s", sep, row[i].rule);
        sep = " | ";
    }
    if (!*sep) pd_buf_puts(to, "value");
}

static pd_status check_known(pd__schema *w, const json_t *s, const char *path) {
    const char *key;
    json_t *v;
    if (w->loose) return PD_OK;
    if (!json_is_object(s) && !json_is_true(s)) return pd__schema_bad(w, path, "a schema is an object");
    json_object_foreach((json_t *)(uintptr_t)s, key, v)
        if (!known(key)) return pd__schema_bad_key(w, path, key, "this keyword is not served");
    return PD_OK;
}

pd_status pd__schema_rule(pd__schema *w, const json_t *s, const char *path, size_t *rule) {
    for (size_t i = 0; i < w->n_rule; i++) {
        if (w->schema[i] != s) continue;
        *rule = w->first + i;
        return PD_OK;
    }
    PD_TRY(check_known(w, s, path));
    w->full = w->full || w->depth == PD_SCHEMA_DEPTH_MAX || w->n_rule == PD_SCHEMA_RULES_MAX || ++w->work > WORK_MAX;
    if (w->full)
        return pd_fail(w->err, PD_EINVAL, path, "%s: the schema has more than %d parts or is deeper than %d", path, PD_SCHEMA_RULES_MAX, PD_SCHEMA_DEPTH_MAX);
    const size_t before = w->out->len;
    w->schema[w->n_rule++] = s;
    *rule = w->first + w->n_rule - 1;
    pd_buf body = {0};
    pd_buf_init(&body, 1 << 20);
    w->depth++;
    pd_status rc = write_schema(w, s, path, *rule, &body);
    w->depth--;
    if (rc == PD_EINVAL && w->loose && !w->full) { /* with it go the rules of its parts */
        w->n_rule = *rule - w->first + 1;
        pd_buf_cut(w->out, before);
        pd_buf_clear(&body);
        write_any_of(types_of(w, s, 0), &body);
        rc = PD_OK;
    }
    pd_buf_printf(w->out, "s%zu ::= ", *rule);
    pd_buf_add(w->out, body.data, body.len);
    pd_buf_putc(w->out, '\n');
    if (body.failed) w->out->failed = true;
    pd_buf_done(&body);
    return rc;
}

pd_status pd_schema_rules(const json_t *schema, const char *path, size_t *next, bool loose, pd_buf *out, pd_err *err) {
    pd_err own = {0};
    pd__schema *w = calloc(1, sizeof *w);
    size_t rule = 0;
    if (!w) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a schema");
    *w = (pd__schema){.root = schema, .loose = loose, .first = *next, .out = out, .err = err ? err : &own};
    pd_status rc = PD_OK;
    if (loose && types_of(w, schema, 0) != OBJECT) {
        pd_buf_printf(out, "s%zu ::= object\n", *next);
        w->n_rule = 1;
    } else {
        rc = pd__schema_rule(w, schema, path, &rule);
    }
    *next += w->n_rule;
    for (size_t i = 0; i < w->n_merged; i++) json_decref(w->merged[i]);
    free(w);
    if (rc != PD_OK) return rc;
    return out->failed ? pd_fail(err, PD_EINVAL, path, "%s: the schema's grammar is too large", path) : PD_OK;
}

pd_status pd_schema_grammar(const json_t *schema, const char *path, pd_buf *out, pd_err *err) {
    size_t next = 0;
    pd_json_rules(out);
    pd_buf_puts(out, "root ::= s0\n");
    return pd_schema_rules(schema, path, &next, false, out, err);
}
