/* SPDX-License-Identifier: Apache-2.0 */
/* Fields to a grammar (see structured.h). */
#include "server/structured.h"

#include "server/pattern_grammar.h"
#include "server/schema_grammar.h"

#include <string.h>

static pd_status from_text(pd_buf *gbnf, const char *path, pd_grammar **ret, pd_err *err) {
    if (gbnf->failed) return pd_fail(err, PD_EINVAL, path, "%s: its grammar has more than %d bytes", path, PD_GRAMMAR_TEXT_MAX);
    return pd_grammar_parse(ret, gbnf->data, gbnf->len, path, err);
}

pd_status pd_structured_schema(const json_t *schema, const char *path, pd_grammar **ret, pd_err *err) {
    pd_buf gbnf = {0};
    pd_buf_init(&gbnf, PD_GRAMMAR_TEXT_MAX);
    pd_status rc = pd_schema_grammar(schema, path, &gbnf, err);
    if (rc == PD_OK) rc = from_text(&gbnf, path, ret, err);
    pd_buf_done(&gbnf);
    return rc;
}

static pd_status object(const char *path, pd_grammar **ret, pd_err *err) {
    pd_buf gbnf = {0};
    pd_buf_init(&gbnf, PD_GRAMMAR_TEXT_MAX);
    pd_json_grammar(&gbnf);
    const pd_status rc = from_text(&gbnf, path, ret, err);
    pd_buf_done(&gbnf);
    return rc;
}

static pd_status grammar(const json_t *v, const char *path, pd_grammar **ret, pd_err *err) {
    if (!json_is_string(v))
        return pd_fail(err, PD_EINVAL, path, "%s is %s; a string is expected", path, pd_json_type_name(v));
    return pd_grammar_parse(ret, json_string_value(v), json_string_length(v), path, err);
}

/* vLLM's: the answer is a match, from its first character to its last. */
static pd_status regex(const json_t *v, const char *path, pd_grammar **ret, pd_err *err) {
    if (!json_is_string(v))
        return pd_fail(err, PD_EINVAL, path, "%s is %s; a string is expected", path, pd_json_type_name(v));
    const pd_pattern_use use = {.max = -1, .name = "p", .path = path};
    pd_buf gbnf = {0}, root = {0};
    pd_buf_init(&gbnf, PD_GRAMMAR_TEXT_MAX);
    pd_buf_init(&root, PD_GRAMMAR_TEXT_MAX);
    pd_buf_puts(&root, "root ::= ");
    pd_status rc = pd_pattern_grammar(json_string_value(v), json_string_length(v), &use, &root, &gbnf, err);
    if (rc == PD_OK) pd_buf_add(&gbnf, root.data, root.len);
    if (rc == PD_OK) rc = from_text(&gbnf, path, ret, err);
    pd_buf_done(&gbnf);
    pd_buf_done(&root);
    return rc;
}

static pd_status choice(const json_t *v, const char *path, pd_grammar **ret, pd_err *err) {
    const size_t n = json_array_size(v);
    if (n == 0 || n > PD_CHOICE_LIST_MAX)
        return pd_fail(err, PD_EINVAL, path, "%s must be an array of 1 to %d strings", path, PD_CHOICE_LIST_MAX);
    pd_buf gbnf = {0};
    pd_buf_init(&gbnf, PD_GRAMMAR_TEXT_MAX);
    pd_buf_puts(&gbnf, "root ::= ");
    pd_status rc = PD_OK;
    for (size_t i = 0; i < n && rc == PD_OK; i++) {
        const json_t *one = json_array_get(v, i);
        if (json_string_length(one) == 0)
            rc = pd_fail(err, PD_EINVAL, path, "%s[%zu] must be a string that is not empty", path, i);
        if (i) pd_buf_puts(&gbnf, " | ");
        if (rc == PD_OK) pd_gbnf_text(&gbnf, json_string_value(one), json_string_length(one));
    }
    if (rc == PD_OK) rc = from_text(&gbnf, path, ret, err);
    pd_buf_done(&gbnf);
    return rc;
}

/* A schema, or the text of one. */
static pd_status schema(const json_t *v, const char *path, pd_grammar **ret, pd_err *err) {
    if (!json_is_string(v)) return pd_structured_schema(v, path, ret, err);
    json_t *parsed;
    PD_TRY(pd_json_parse(&parsed, json_string_value(v), json_string_length(v), err));
    const pd_status rc = pd_structured_schema(parsed, path, ret, err);
    json_decref(parsed);
    return rc;
}

/* A member that is there is an object, whether the type asks for it or not. */
static pd_status objects_only(const json_t *v, const char *const path[][2], size_t n, pd_err *err) {
    for (size_t i = 0; i < n; i++) {
        const json_t *x = pd_json_get(v, path[i][0]);
        if (x && !json_is_object(x))
            return pd_fail(err, PD_EINVAL, path[i][1], "%s is %s; an object is expected", path[i][1], pd_json_type_name(x));
    }
    return PD_OK;
}

static pd_status response_format(const json_t *v, const char *path, pd_grammar **ret, pd_err *err) {
    const char *type = json_string_value(pd_json_get(v, "type"));
    if (!json_is_object(v) || !type)
        return pd_fail(err, PD_EINVAL, path, "%s must be an object with \"type\"", path);
    static const char *const here[][2] = {{"schema", "response_format.schema"}, {"json_schema", "response_format.json_schema"}};
    static const char *const inside[][2] = {{"schema", "response_format.json_schema.schema"}};
    PD_TRY(objects_only(v, here, 2, err));
    PD_TRY(objects_only(pd_json_get(v, "json_schema"), inside, 1, err));
    if (strcmp(type, "text") == 0) return PD_OK;
    const json_t *holder = pd_json_get(v, "json_schema"), *inner = pd_json_get(holder, "schema");
    if (strcmp(type, "json_object") == 0) {
        inner = pd_json_get(v, "schema"); /* llama.cpp's */
        return inner ? schema(inner, "response_format.schema", ret, err) : object(path, ret, err);
    }
    if (strcmp(type, "json_schema") != 0)
        return pd_fail(err, PD_EINVAL, path, "response_format.type is \"%.40s\"; text, json_object and json_schema are served", type);
    if (!inner)
        return pd_fail(err, PD_EINVAL, path, "response_format.json_schema.schema is missing");
    return schema(inner, "response_format.json_schema.schema", ret, err);
}

/* Any object, where it is true. */
static pd_status any_object(const json_t *v, const char *path, pd_grammar **ret, pd_err *err) {
    if (!json_is_boolean(v))
        return pd_fail(err, PD_EINVAL, path, "%s is %s; true or false is expected", path, pd_json_type_name(v));
    return json_is_true(v) ? object(path, ret, err) : PD_OK;
}

const json_t *pd_structured_form(const json_t *body) {
    const json_t *v = pd_json_get(body, "response_format"), *schema = pd_json_get(v, "schema");
    const char *type = json_string_value(pd_json_get(v, "type"));
    if (!type || strcmp(type, "text") == 0) return NULL;
    if (strcmp(type, "json_schema") == 0) return pd_json_get(pd_json_get(v, "json_schema"), "schema");
    return schema ? schema : json_true();
}

static pd_status structured_outputs(const json_t *v, const char *path, pd_grammar **ret, pd_err *err) {
    static const struct {
        const char *name, *path;
        pd_status (*decode)(const json_t *v, const char *path, pd_grammar **ret, pd_err *err);
    } form[] = {
        {"json", "structured_outputs.json", schema},          {"regex", "structured_outputs.regex", regex},
        {"choice", "structured_outputs.choice", choice},      {"grammar", "structured_outputs.grammar", grammar},
        {"json_object", "structured_outputs.json_object", any_object},
    };
    size_t given = 0, which = 0;
    for (size_t i = 0; i < sizeof form / sizeof form[0]; i++) {
        if (!pd_json_get(v, form[i].name)) continue;
        given++;
        which = i;
    }
    if (!json_is_object(v) || given != 1 || json_object_size(v) != 1)
        return pd_fail(err, PD_EINVAL, path, "%s must be an object with one of json, regex, choice, grammar and json_object", path);
    return form[which].decode(pd_json_get(v, form[which].name), form[which].path, ret, err);
}

pd_status pd_structured_decode(const json_t *body, pd_grammar **ret, pd_err *err) {
    static const struct {
        const char *name;
        pd_status (*decode)(const json_t *v, const char *path, pd_grammar **ret, pd_err *err);
    } field[] = {
        {"response_format", response_format}, {"grammar", grammar},           {"json_schema", schema},
        {"guided_json", schema},              {"guided_regex", regex},        {"guided_choice", choice},
        {"guided_grammar", grammar},          {"structured_outputs", structured_outputs},
    };
    *ret = NULL;
    for (size_t i = 0; i < sizeof field / sizeof field[0]; i++) {
        const json_t *v = pd_json_get(body, field[i].name);
        if (!v || (json_is_string(v) && json_string_length(v) == 0)) continue;
        pd_grammar *one = NULL;
        pd_status rc = field[i].decode(v, field[i].name, &one, err);
        if (rc == PD_OK && one && *ret)
            rc = pd_fail(err, PD_EINVAL, field[i].name, "%s: the answer's form is given twice", field[i].name);
        if (rc != PD_OK) {
            pd_grammar_unref(one);
            pd_grammar_unref(*ret);
            *ret = NULL;
            return rc;
        }
        if (one) *ret = one;
    }
    return PD_OK;
}
