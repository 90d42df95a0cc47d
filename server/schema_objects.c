/* SPDX-License-Identifier: Apache-2.0 */
/* Objects of a schema: the members of `properties` in their order, then others where
 * they are allowed.  Rule s<id>-<i>-<c> is the rest from member i on when c were
 * written, so that a comma stands where one belongs and members can be counted; c stops
 * at what still matters.  A name of the others is none of `properties`: a walk down the
 * tree of these that leaves it somewhere. */
#include "server/pattern_grammar.h"
#include "server/schema_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/utf8.h"

typedef struct {
    pd__schema *w;
    size_t id, n; /* named members */
    bool open;
    char name[32], value[32]; /* rules of a further member's name and value */
    int64_t min, max, cap;    /* members; max < 0: any number */
} object;

bool pd__schema_requires(const json_t *s, const char *key) {
    const json_t *list = pd_json_get(s, "required");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = json_string_value(json_array_get(list, i));
        if (name && strcmp(name, key) == 0) return true;
    }
    return false;
}

/* ---- other names ---- */

/* Rule s<id>-x<k>: the names that go on behind the first `at` bytes which all of
 * name[0..n) share, and are none of them.  Sorted, so those of one character stand
 * together.  One spelling for each character, or a name could be written in two ways. */
static pd_status other_names(object *o, const char **name, size_t n, size_t at, size_t *n_rule, size_t *rule) {
    char prefix[48];
    pd_buf here = {0}, none = {0};
    pd_status rc = PD_OK;
    *rule = (*n_rule)++;
    const bool ends = n && name[0][at] == '\0';
    pd_buf_puts(&none, "[^");
    for (size_t i = ends; i < n && rc == PD_OK;) {
        uint32_t x;
        const size_t len = pd_utf8_next(name[i] + at, strlen(name[i] + at), &x);
        size_t k = i + 1, below = 0;
        while (k < n && strncmp(name[k] + at, name[i] + at, len) == 0) k++;
        rc = other_names(o, name + i, k - i, at + len, n_rule, &below);
        char text[8] = "";
        memcpy(text, name[i] + at, len);
        json_t *one = json_string(text);
        char *quoted = one ? json_dumps(one, JSON_ENCODE_ANY) : NULL;
        if (!quoted) here.failed = true;
        else pd_gbnf_text(&here, quoted + 1, strlen(quoted) - 2);
        free(quoted);
        json_decref(one);
        pd_buf_printf(&here, " s%zu-x%zu | ", o->id, below);
        if (x < 0x80 && strchr("\\]^-[", (int)x)) pd_buf_putc(&none, '\\');
        pd_buf_add(&none, text, len);
        i = k;
    }
    if (none.len == 2) pd_buf_puts(&none, "\\0"); /* which no name has */
    pd_buf_putc(&none, ']');
    pd_buf_printf(&here, "%s", ends ? "" : "\"\\\"\" | ");
    snprintf(prefix, sizeof prefix, "s%zu-x%zu-c", o->id, *rule);
    if (rc == PD_OK && !none.failed)
        rc = pd_pattern_grammar(none.data, none.len, &(pd_pattern_use){.in_json = true, .max = -1, .name = prefix, .path = "additionalProperties"}, &here, o->w->out, o->w->err);
    pd_buf_printf(o->w->out, "s%zu-x%zu ::= ", o->id, *rule);
    pd_buf_add(o->w->out, here.data, here.len);
    pd_buf_puts(o->w->out, " plain* \"\\\"\"\n");
    if (here.failed || none.failed) o->w->out->failed = true;
    pd_buf_done(&here);
    pd_buf_done(&none);
    return rc;
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static pd_status name_others(object *o, json_t *props) {
    const char **name = malloc(o->n * sizeof *name), *key;
    json_t *one;
    size_t n = 0, n_rule = 0, rule = 0;
    if (!name) return pd_fail(o->w->err, PD_ENOMEM, NULL, "no memory for a schema");
    json_object_foreach(props, key, one) name[n++] = key;
    qsort(name, n, sizeof *name, by_name);
    const pd_status rc = other_names(o, name, n, 0, &n_rule, &rule);
    free(name);
    snprintf(o->name, sizeof o->name, "s%zu-others", o->id);
    pd_buf_printf(o->w->out, "s%zu-others ::= \"\\\"\" s%zu-x%zu\n", o->id, o->id, rule);
    return rc;
}

/* What else than `properties` an object may have: names and values. */
static pd_status find_others(object *o, const json_t *s, const char *path, json_t *props) {
    const json_t *more = json_object_get(s, "additionalProperties"), *names = pd_json_get(s, "propertyNames");
    json_t *matching = pd_json_get(s, "patternProperties");
    char at[PD__SCHEMA_PATH_MAX];
    size_t rule = 0;
    snprintf(o->name, sizeof o->name, "string");
    snprintf(o->value, sizeof o->value, "value");
    o->open = more ? !json_is_false(more) : o->n == 0 && !matching;
    if (json_object_size(matching)) {
        if (json_object_size(matching) > 1 || o->n || names || o->open)
            return pd__schema_bad_key(o->w, path, "patternProperties", "served with one pattern, without properties and propertyNames, and with additionalProperties false");
        const char *key = json_object_iter_key(json_object_iter(matching));
        snprintf(at, sizeof at, "%s.patternProperties.%s", path, key);
        char prefix[32];
        pd_buf text = {0};
        snprintf(prefix, sizeof prefix, "s%zu-n", o->id);
        const pd_status rc = pd_pattern_grammar(key, strlen(key), &(pd_pattern_use){.in_json = true, .search = true, .max = -1, .name = prefix, .path = at},
                                                &text, o->w->out, o->w->err);
        snprintf(o->name, sizeof o->name, "s%zu-name", o->id);
        pd_buf_printf(o->w->out, "%s ::= \"\\\"\" ", o->name);
        pd_buf_add(o->w->out, text.data, text.len);
        pd_buf_puts(o->w->out, " \"\\\"\"\n");
        pd_buf_done(&text);
        if (rc != PD_OK) return rc;
        PD_TRY(pd__schema_rule(o->w, json_object_get(matching, key), at, &rule));
        snprintf(o->value, sizeof o->value, "s%zu", rule);
        o->open = true;
        return PD_OK;
    }
    if (!o->open) return names ? pd__schema_bad_key(o->w, path, "propertyNames", "served where additionalProperties is not false, and without properties") : PD_OK;
    if (more && !json_is_true(more)) {
        snprintf(at, sizeof at, "%s.additionalProperties", path);
        PD_TRY(pd__schema_rule(o->w, more, at, &rule));
        snprintf(o->value, sizeof o->value, "s%zu", rule);
    }
    if (names && !json_is_true(names)) {
        snprintf(at, sizeof at, "%s.propertyNames", path);
        if (o->n || !json_is_object(names)) return pd__schema_bad_key(o->w, path, "propertyNames", "an object, and served without properties");
        if (o->w->n_merged == PD__SCHEMA_MERGED_MAX) return pd__schema_bad(o->w, at, "more than 256 of them");
        json_t *strings = json_copy((json_t *)(uintptr_t)names);
        if (!strings) return pd_fail(o->w->err, PD_ENOMEM, NULL, "no memory for a schema");
        o->w->merged[o->w->n_merged++] = strings;
        if (!json_object_get(names, "enum") && !json_object_get(names, "const") && !json_object_get(names, "type")) json_object_set_new(strings, "type", json_string("string"));
        if (!pd__schema_only_strings(o->w, strings)) return pd__schema_bad(o->w, at, "a schema of strings is expected");
        PD_TRY(pd__schema_rule(o->w, strings, at, &rule));
        snprintf(o->name, sizeof o->name, "s%zu", rule);
    }
    return o->n ? name_others(o, props) : PD_OK;
}

/* ---- members ---- */

static int64_t one_more(const object *o, int64_t c) {
    return c < o->cap ? c + 1 : c;
}

/* Members that properties does not name, behind c others.  Two of them may have one
 * name, so only the first counts towards the minimum. */
static void write_rest(object *o, int64_t c) {
    pd_buf *to = o->w->out;
    pd_buf_printf(to, "s%zu-%zu-%lld ::= %s", o->id, o->n, (long long)c, c >= o->min ? "\"\"" : "never");
    if (!o->open || (o->max >= 0 && c >= o->max) || c + 1 < o->min) {
        pd_buf_putc(to, '\n');
        return;
    }
    const char *comma = c ? "\",\" ws " : "";
    pd_buf_printf(to, " | %s%s ws \":\" ws %s ws", comma, o->name, o->value);
    if (o->max < 0) pd_buf_printf(to, " (\",\" ws %s ws \":\" ws %s ws)*\n", o->name, o->value);
    else pd_buf_printf(to, " s%zu-%zu-%lld\n", o->id, o->n, (long long)c + 1);
}

pd_status pd__schema_object(pd__schema *w, const json_t *s, const char *path, size_t id, pd_buf *to) {
    json_t *props = pd_json_get(s, "properties"), *one;
    object o = {.w = w, .id = id, .n = json_object_size(props)};
    const json_t *list = pd_json_get(s, "required");
    const char *key;
    char at[PD__SCHEMA_PATH_MAX];
    size_t i = 0, rule = 0;
    PD_TRY(pd__schema_count(w, s, path, "minProperties", 0, &o.min));
    PD_TRY(pd__schema_count(w, s, path, "maxProperties", -1, &o.max));
    if (o.max >= 0 && o.max < o.min) return pd__schema_bad(w, path, "maxProperties is below minProperties");
    for (size_t k = 0; k < json_array_size(list); k++) {
        const char *name = json_string_value(json_array_get(list, k));
        if (!w->loose && (!name || !json_object_get(props, name))) return pd__schema_bad(w, path, "required names something that is not in properties");
    }
    PD_TRY(find_others(&o, s, path, props));
    if (o.min > (int64_t)o.n + o.open)
        return pd__schema_bad_key(w, path, "minProperties", "more than `properties` has; of other members one alone is counted, since two may have one name");
    if (o.max > (int64_t)o.n && !o.open) o.max = -1;
    o.cap = o.max >= 0 ? o.max : o.min > 1 ? o.min : 1;
    json_object_foreach(props, key, one) {
        snprintf(at, sizeof at, "%s.properties.%s", path, key);
        PD_TRY(pd__schema_rule(w, one, at, &rule));
        const bool must = pd__schema_requires(s, key);
        for (int64_t c = 0; c <= o.cap && c <= (int64_t)i; c++) {
            const char *sep = "";
            pd_buf_printf(w->out, "s%zu-%zu-%lld ::= ", id, i, (long long)c);
            if (o.max < 0 || c < o.max) {
                json_t *name = json_string(key);
                pd_buf_puts(w->out, c ? "\",\" ws " : "");
                pd__schema_literal(w->out, name);
                json_decref(name);
                pd_buf_printf(w->out, " ws \":\" ws s%zu ws s%zu-%zu-%lld", rule, id, i + 1, (long long)one_more(&o, c));
                sep = " | ";
            }
            if (!must) pd_buf_printf(w->out, "%ss%zu-%zu-%lld", sep, id, i + 1, (long long)c);
            else if (!*sep) pd_buf_puts(w->out, "never");
            pd_buf_putc(w->out, '\n');
        }
        i++;
    }
    const int64_t last = o.open && o.max >= 0 ? o.max : o.cap < (int64_t)o.n ? o.cap : (int64_t)o.n;
    for (int64_t c = 0; c <= last; c++) write_rest(&o, c);
    pd_buf_printf(to, "\"{\" ws s%zu-0-0 \"}\"", id);
    return PD_OK;
}
