/* SPDX-License-Identifier: Apache-2.0 */
/* `compression` decoded (see compression_json.h).  Names, types and ranges of
 * presses and their parameters are the registry's business (pd_spec_resolve);
 * here it is the shape of the JSON, the budget, the scope and `decode`. */
#include "server/compression_json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS_MAX = 1 << 30, PARAMS_MAX = 2 * PD_PRESS_PARAMS_MAX };

typedef struct {
    pd_arena arena;
    const pd_press_model *model;
    bool chat;
    pd_err *err;
} decoder;

/* "a" + "." + "b", living in the arena. */
static const char *join(decoder *d, const char *fmt, const char *path, const char *key, size_t i) {
    char text[96];
    snprintf(text, sizeof text, fmt, path, key, i);
    const char *s = pd_arena_strndup(&d->arena, text, strlen(text));
    return s ? s : path; /* a shorter path in an error, no more */
}

static pd_status no_memory(decoder *d) {
    return pd_fail(d->err, PD_ENOMEM, NULL, "no memory to decode the compression");
}

/* Refuse members that are not in the NULL-terminated list. */
static pd_status known_members(decoder *d, const json_t *obj, const char *path,
                               const char *const *known) {
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)obj, key, v) {
        size_t i = 0;
        while (known[i] && strcmp(known[i], key) != 0) i++;
        if (known[i]) continue;
        char list[200] = "";
        for (size_t k = 0, n = 0; known[k] && n < sizeof list; k++)
            n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", k ? ", " : "", known[k]);
        const char *at = join(d, "%s.%.40s", path, key, 0);
        return pd_fail(d->err, PD_EINVAL, at, "%s is not known; known in %s: %s", at, path, list);
    }
    return PD_OK;
}

/* An array of numbers as a parameter's value. */
static pd_status decode_list(decoder *d, const json_t *v, const char *path, const char *key,
                             pd_spec_param *p) {
    const size_t n = json_array_size(v);
    if (n > PD_SPEC_LIST_MAX) {
        const char *at = join(d, "%s.%.40s", path, key, 0);
        return pd_fail(d->err, PD_EINVAL, at, "%s holds %zu numbers; at most %d are allowed", at, n,
                       PD_SPEC_LIST_MAX);
    }
    double *list = pd_arena_zalloc(&d->arena, n + 1, sizeof *list);
    if (!list) return no_memory(d);
    for (size_t i = 0; i < n; i++) {
        const json_t *one = json_array_get(v, i);
        if (!json_is_number(one)) {
            const char *at = join(d, "%s.%.40s[%zu]", path, key, i);
            return pd_fail(d->err, PD_EINVAL, at, "%s is %s; a number is expected", at,
                           pd_json_type_name(one));
        }
        list[i] = json_number_value(one);
    }
    p->kind = PD_SPEC_LIST;
    p->list = list;
    p->n_list = n;
    return PD_OK;
}

static pd_status add_params(decoder *d, pd_spec *spec, const json_t *params, const char *path) {
    if (!params) return PD_OK;
    if (!json_is_object(params))
        return pd_fail(d->err, PD_EINVAL, path, "%s is %s; an object is expected", path,
                       pd_json_type_name(params));
    const size_t more = json_object_size(params);
    if (more > PARAMS_MAX)
        return pd_fail(d->err, PD_EINVAL, path,
                       "%s has %zu members; no press has so many parameters", path, more);
    pd_spec_param *all = pd_arena_zalloc(&d->arena, spec->n_param + more + 1, sizeof *all);
    if (!all) return no_memory(d);
    if (spec->n_param) memcpy(all, spec->param, spec->n_param * sizeof *all);
    spec->param = all;
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)params, key, v) {
        pd_spec_param *p = &all[spec->n_param++];
        int64_t integer;
        p->name = key;
        switch (json_typeof(v)) {
        case JSON_NULL: p->kind = PD_SPEC_NULL; break;
        case JSON_TRUE:
        case JSON_FALSE:
            p->kind = PD_SPEC_BOOL;
            p->number = json_is_true(v);
            break;
        case JSON_INTEGER:
        case JSON_REAL:
            p->kind = PD_SPEC_NUMBER;
            p->number = json_number_value(v);
            p->integral = pd_json_integral(v, &integer);
            break;
        case JSON_STRING:
            p->kind = PD_SPEC_STRING;
            p->string = json_string_value(v);
            break;
        case JSON_ARRAY: PD_TRY(decode_list(d, v, path, key, p)); break;
        case JSON_OBJECT: {
            const char *at = join(d, "%s.%.40s", path, key, 0);
            return pd_fail(d->err, PD_EINVAL, at,
                           "%s is %s; a number, string, boolean or list of numbers is expected", at,
                           pd_json_type_name(v));
        }
        }
    }
    return PD_OK;
}

static pd_status check_ratio(decoder *d, const char *at, double r) {
    if (r >= 0.0 && r < 1.0) return PD_OK;
    return pd_fail(d->err, PD_EINVAL, at, "%s is %.9g; the fraction removed must be in [0, 1)", at,
                   r);
}

/* {"ratio": r} -> *ret.  The upper end is open, so pd_json_real's range is not it. */
static pd_status member_ratio(decoder *d, const json_t *obj, const char *path, double *ret,
                              bool *given) {
    char prefix[96];
    snprintf(prefix, sizeof prefix, "%s.", path);
    PD_TRY(pd_json_real(obj, prefix, "ratio", -HUGE_VAL, HUGE_VAL, ret, given, d->err));
    return *given ? check_ratio(d, join(d, "%s.%s", path, "ratio", 0), *ret) : PD_OK;
}

/* prefill_decoding is the press whose children have names of their own. */
static const char phases_press[] = "prefill_decoding";

static pd_status decode_press(decoder *d, const json_t *v, const char *path, int depth,
                              pd_spec **ret, double *ratio);

/* A press inside another: its ratio may stand in its text or its object. */
static pd_status decode_child(decoder *d, const json_t *v, const char *path, int depth,
                              pd_spec **ret) {
    double in_text, ratio = NAN;
    bool given = false;
    PD_TRY(decode_press(d, v, path, depth, ret, &in_text));
    if (json_is_object(v)) PD_TRY(member_ratio(d, v, path, &ratio, &given));
    (*ret)->has_ratio = given || !isnan(in_text);
    (*ret)->ratio = given ? ratio : in_text;
    return PD_OK;
}

/* {"name": "prefill_decoding", "prefilling_press": P, "decoding_press": P}, either may
 * be null or missing; or "presses": [P, P] as everywhere. */
static pd_status decode_phases(decoder *d, const json_t *v, const char *path, int depth,
                               pd_spec **ret) {
    static const char *const known[] = {"name",           "params",  "prefilling_press",
                                        "decoding_press", "presses", NULL};
    PD_TRY(known_members(d, v, path, known));
    const json_t *many = pd_json_get(v, "presses");
    const json_t *phase[] = {pd_json_get(v, known[2]), pd_json_get(v, known[3])};
    if (many && (phase[0] || phase[1]))
        return pd_fail(d->err, PD_EINVAL, path, "%s: give \"presses\" or \"%s\" and \"%s\"", path,
                       known[2], known[3]);
    if (many && (!json_is_array(many) || json_array_size(many) > 2)) {
        const char *at = join(d, "%s.%s", path, "presses", 0);
        return pd_fail(d->err, PD_EINVAL, at, "%s must be an array of one or two presses", at);
    }
    pd_spec *spec = pd_arena_zalloc(&d->arena, 1, sizeof *spec);
    pd_spec **child = pd_arena_zalloc(&d->arena, 2, sizeof *child);
    if (!spec || !child) return no_memory(d);
    *spec = (pd_spec){.name = phases_press, .path = path, .child = child};
    spec->params_path = join(d, "%s.%s", path, "params", 0);
    for (size_t i = 0; i < 2; i++) {
        const json_t *one = many ? json_array_get(many, i) : phase[i];
        if (!one || json_is_null(one)) continue;
        const char *at = many ? join(d, "%s.%s[%zu]", path, "presses", i)
                              : join(d, "%s.%s", path, known[2 + i], 0);
        PD_TRY(decode_child(d, one, at, depth + 1, &child[spec->n_child]));
        spec->n_child++;
    }
    PD_TRY(add_params(d, spec, pd_json_get(v, "params"), spec->params_path));
    *ret = spec;
    return PD_OK;
}

/* A press as text or object -> one node of the tree.  *ratio: of "@ratio" at the
 * end of a text, else NaN. */
static pd_status decode_press(decoder *d, const json_t *v, const char *path, int depth,
                              pd_spec **ret, double *ratio) {
    *ratio = NAN;
    if (depth > PD_PRESS_DEPTH_MAX)
        return pd_fail(d->err, PD_EINVAL, path, "%s: presses are nested deeper than %d", path,
                       PD_PRESS_DEPTH_MAX);
    if (json_is_string(v))
        return pd_spec_parse_text(json_string_value(v), path, &d->arena, ret, ratio, d->err);
    if (!json_is_object(v))
        return pd_fail(d->err, PD_EINVAL, path,
                       "%s is %s; a press is a string or an object with \"name\"", path,
                       pd_json_type_name(v));
    const char *name = json_string_value(pd_json_get(v, "name"));
    if (name && strcmp(name, phases_press) == 0) return decode_phases(d, v, path, depth, ret);
    /* the outermost ratio stands beside the press, not in it */
    static const char *const known[] = {"name", "params", "press", "presses", NULL},
                             *const inner[] = {"name", "params", "press", "presses", "ratio", NULL};
    PD_TRY(known_members(d, v, path, depth == 1 ? known : inner));
    if (!name) {
        const char *at = join(d, "%s.%s", path, "name", 0);
        return pd_fail(d->err, PD_EINVAL, at, "%s must be the name of a press", at);
    }
    const json_t *one = pd_json_get(v, "press"), *many = pd_json_get(v, "presses");
    if (one && many)
        return pd_fail(d->err, PD_EINVAL, path, "%s: give \"press\" or \"presses\", not both",
                       path);
    if (many && !json_is_array(many)) {
        const char *at = join(d, "%s.%s", path, "presses", 0);
        return pd_fail(d->err, PD_EINVAL, at, "%s is %s; an array is expected", at,
                       pd_json_type_name(many));
    }
    const size_t n_child = one ? 1 : many ? json_array_size(many) : 0;
    if (n_child > PD_PRESS_CHILDREN_MAX)
        return pd_fail(d->err, PD_EINVAL, path, "%s holds %zu presses; at most %d are allowed",
                       path, n_child, PD_PRESS_CHILDREN_MAX);
    pd_spec *spec = pd_arena_zalloc(&d->arena, 1, sizeof *spec);
    pd_spec **child = pd_arena_zalloc(&d->arena, n_child + 1, sizeof *child);
    if (!spec || !child) return no_memory(d);
    spec->name = name;
    spec->path = path;
    spec->params_path = join(d, "%s.%s", path, "params", 0);
    spec->child = child;
    for (size_t i = 0; i < n_child; i++) {
        const char *at =
            one ? join(d, "%s.%s", path, "press", 0) : join(d, "%s.%s[%zu]", path, "presses", i);
        PD_TRY(decode_child(d, one ? one : json_array_get(many, i), at, depth + 1, &child[i]));
        spec->n_child++;
    }
    PD_TRY(add_params(d, spec, pd_json_get(v, "params"), spec->params_path));
    *ret = spec;
    return PD_OK;
}

/* A press whose parameters say what stays gets no budget. */
static pd_status takes_no_ratio(decoder *d, const char *at, const pd_press_inst *inst) {
    return pd_fail(d->err, PD_EINVAL, at, "%s: press '%s' takes neither ratio nor budget: %s", at,
                   inst->press->name, inst->press->ratio_doc);
}

/* The press that knows without being told how much stays: a decode press, one that
 * drops nothing, or one with a budget of its own; NULL if a ratio is needed or
 * nothing is pressed. */
static const pd_press_inst *knows_budget(const pd_compression *c) {
    if (!c->press) return c->decode || !c->n_read ? c->decode : c->read[0];
    return pd_press_inst_takes_ratio(c->press) ? NULL : c->press;
}

/* Exactly one of ratio (here or behind '@'), budget_tokens, budget_bytes; none of
 * them for a press that has a budget of its own. */
static pd_status decode_budget(decoder *d, const json_t *obj, const char *path, double text_ratio,
                               pd_compression *c) {
    char prefix[96];
    snprintf(prefix, sizeof prefix, "%s.", path);
    bool has_ratio, has_tokens, has_bytes;
    int64_t tokens = 0, bytes = 0;
    PD_TRY(member_ratio(d, obj, path, &c->ratio, &has_ratio));
    PD_TRY(pd_json_int(obj, prefix, "budget_tokens", 1, TOKENS_MAX, &tokens, &has_tokens, d->err));
    PD_TRY(pd_json_int(obj, prefix, "budget_bytes", 1, INT64_MAX, &bytes, &has_bytes, d->err));
    const bool in_text = !isnan(text_ratio);
    const int n = has_ratio + has_tokens + has_bytes + in_text;
    const char *at = join(d, "%s.%s", path, "ratio", 0);
    if (c->has_ratio && n > 0)
        return pd_fail(d->err, PD_EINVAL, at, "%s: the ratio is given twice, inside the press too", path);
    if (c->has_ratio) return PD_OK;
    const pd_press_inst *knows = knows_budget(c);
    if (knows) {
        if (n == 0) return PD_OK;
        const char *given = has_tokens ? "budget_tokens" : has_bytes ? "budget_bytes" : "ratio";
        return takes_no_ratio(d, join(d, "%s.%s", path, given, 0), knows);
    }
    if (n == 0 && c->press)
        return pd_fail(d->err, PD_EINVAL, at,
                       "%s: a press needs one of ratio, budget_tokens, budget_bytes", path);
    if (n > 1)
        return pd_fail(d->err, PD_EINVAL, at,
                       "%s: give exactly one of ratio%s, budget_tokens, budget_bytes", path,
                       in_text ? " (one stands in the press text)" : "");
    if (in_text) {
        PD_TRY(check_ratio(d, at, text_ratio));
        c->ratio = text_ratio;
    }
    c->budget = has_tokens ? PD_BUDGET_TOKENS : has_bytes ? PD_BUDGET_BYTES : PD_BUDGET_RATIO;
    c->amount = (uint64_t)(has_tokens ? tokens : bytes);
    return PD_OK;
}

static pd_status decode_scope(decoder *d, const json_t *v, const char *path, pd_compression *c) {
    if (!v) return PD_OK;
    const char *s = json_string_value(v);
    if (s && strcmp(s, "prompt") == 0) return PD_OK;
    if (s && strcmp(s, "context") == 0) {
        if (!d->chat)
            return pd_fail(d->err, PD_EINVAL, path,
                           "%s \"context\" is everything before the last user message: chat only; "
                           "a completion may say "
                           "{\"context_tokens\": n}",
                           path);
        c->scope = PD_SCOPE_CONTEXT;
        return PD_OK;
    }
    if (json_is_object(v)) {
        static const char *const known[] = {"context_tokens", NULL};
        PD_TRY(known_members(d, v, path, known));
        char prefix[96];
        snprintf(prefix, sizeof prefix, "%s.", path);
        int64_t n = 0;
        bool given;
        PD_TRY(pd_json_int(v, prefix, "context_tokens", 1, TOKENS_MAX, &n, &given, d->err));
        if (given) {
            c->scope = PD_SCOPE_TOKENS;
            c->scope_tokens = (size_t)n;
            return PD_OK;
        }
    }
    return pd_fail(d->err, PD_EINVAL, path,
                   "%s%s%.40s%s; allowed are \"prompt\", \"context\", {\"context_tokens\": n}",
                   path, s ? " is \"" : " is ", s ? s : pd_json_type_name(v), s ? "\"" : "");
}

/* "q8_0": how a page stores numbers. */
static pd_status decode_type(decoder *d, const json_t *v, const char *path, pd_kv_type *ret) {
    const char *s = json_string_value(v);
    if (!s || !pd_kv_type_parse(s, ret))
        return pd_fail(d->err, PD_EINVAL, path, "%s%s%.40s%s; allowed are \"f16\", \"q8_0\", \"q4\"", path,
                       s ? " is \"" : " is ", s ? s : pd_json_type_name(v), s ? "\"" : "");
    const size_t group = pd_kv_type_group(*ret);
    if (d->model->head_dim % group == 0) return PD_OK;
    return pd_fail(d->err, PD_EINVAL, path,
                   "%s \"%s\" stores numbers in groups of %zu; this model's heads have %zu", path, s, group,
                   d->model->head_dim);
}

/* One type for both, or {"key": type, "value": type}, either may be missing. */
static pd_status decode_kv_type(decoder *d, const json_t *v, const char *path, pd_compression *c) {
    if (!v) return PD_OK;
    if (!json_is_object(v)) {
        PD_TRY(decode_type(d, v, path, &c->kv_key));
        c->kv_value = c->kv_key;
        return PD_OK;
    }
    static const char *const known[] = {"key", "value", NULL};
    PD_TRY(known_members(d, v, path, known));
    const json_t *key = pd_json_get(v, "key"), *value = pd_json_get(v, "value");
    if (!key && !value)
        return pd_fail(d->err, PD_EINVAL, path, "%s: give \"key\", \"value\" or both", path);
    if (key) PD_TRY(decode_type(d, key, join(d, "%s.%s", path, "key", 0), &c->kv_key));
    return value ? decode_type(d, value, join(d, "%s.%s", path, "value", 0), &c->kv_value) : PD_OK;
}

/* "decode": pressing while tokens are generated. */
static pd_status decode_decode(decoder *d, const json_t *v, const char *path, pd_compression *c) {
    if (!v) return PD_OK;
    if (!json_is_object(v))
        return pd_fail(d->err, PD_EINVAL, path, "%s is %s; an object is expected", path,
                       pd_json_type_name(v));
    static const char *const known[] = {"press",         "params", "interval",
                                        "target_tokens", "ratio",  NULL};
    PD_TRY(known_members(d, v, path, known));
    const json_t *press = pd_json_get(v, "press");
    const char *press_path = join(d, "%s.%s", path, "press", 0);
    if (!press) return pd_fail(d->err, PD_EINVAL, press_path, "%s is missing", press_path);
    pd_spec *spec;
    double in_text;
    PD_TRY(decode_press(d, press, press_path, 1, &spec, &in_text));
    PD_TRY(add_params(d, spec, pd_json_get(v, "params"), join(d, "%s.%s", path, "params", 0)));
    char prefix[96];
    snprintf(prefix, sizeof prefix, "%s.", path);
    int64_t interval = 512, target = 0;
    bool has_interval, has_target, has_ratio;
    double ratio = NAN;
    PD_TRY(pd_json_int(v, prefix, "interval", 1, TOKENS_MAX, &interval, &has_interval, d->err));
    PD_TRY(pd_json_int(v, prefix, "target_tokens", 1, TOKENS_MAX, &target, &has_target, d->err));
    PD_TRY(member_ratio(d, v, path, &ratio, &has_ratio));
    if (!isnan(in_text)) {
        if (has_ratio)
            return pd_fail(d->err, PD_EINVAL, path, "%s: the ratio is given twice", path);
        PD_TRY(check_ratio(d, press_path, in_text));
        ratio = in_text;
        has_ratio = true;
    }
    pd_press_inst *inst;
    PD_TRY(pd_spec_resolve(spec, d->model, &inst, d->err));
    if (!inst) return PD_OK;
    if (inst->press->can & PD_DECODE_ONLY) { /* it says when and how much itself */
        if (!has_interval && !has_target && !has_ratio) return pd_compression_take(c, inst, press_path, d->err);
        pd_press_inst_close(inst);
        return pd_fail(d->err, PD_EINVAL, path,
                       "%s: press '%s' has interval and size among its parameters; interval, target_tokens "
                       "and ratio do not apply", path, spec->name);
    }
    if (has_target == has_ratio) {
        pd_press_inst_close(inst);
        return pd_fail(d->err, PD_EINVAL, path, "%s: give exactly one of target_tokens, ratio",
                       path);
    }
    return pd_compression_decode_every(c, inst, (size_t)interval, (size_t)target, has_ratio ? ratio : NAN,
                                       press_path, d->err);
}

/* Fewer bits want no press; a budget does. */
static bool kv_type_alone(const json_t *obj) {
    return pd_json_get(obj, "kv_type") && !pd_json_get(obj, "ratio") && !pd_json_get(obj, "budget_tokens") &&
           !pd_json_get(obj, "budget_bytes");
}

static pd_status decode_object(decoder *d, const json_t *obj, const char *path, pd_compression *c,
                               bool *verbose) {
    static const char *const known[] = {"press",        "params", "ratio",          "budget_tokens",
                                        "budget_bytes", "scope",  "protect_system", "min_tokens",
                                        "decode",       "seed",   "verbose",        "kv_type", NULL};
    PD_TRY(known_members(d, obj, path, known));
    const json_t *press = pd_json_get(obj, "press"), *params = pd_json_get(obj, "params");
    double in_text = NAN;
    if (press) {
        pd_spec *spec;
        PD_TRY(decode_press(d, press, join(d, "%s.%s", path, "press", 0), 1, &spec, &in_text));
        const char *at = join(d, "%s.%s", path, "params", 0);
        if (params && json_is_object(press))
            return pd_fail(d->err, PD_EINVAL, at, "%s: an object press carries its own params", at);
        PD_TRY(add_params(d, spec, params, at));
        if (params) spec->params_path = at;
        pd_press_inst *inst;
        PD_TRY(pd_spec_resolve(spec, d->model, &inst, d->err));
        PD_TRY(pd_compression_take(c, inst, join(d, "%s.%s", path, "press", 0), d->err));
    } else if (params || !(pd_json_get(obj, "decode") || kv_type_alone(obj))) {
        const char *at = join(d, "%s.%s", path, "press", 0);
        return pd_fail(d->err, PD_EINVAL, at, "%s is missing", at);
    }
    PD_TRY(decode_budget(d, obj, path, in_text, c));
    PD_TRY(decode_scope(d, pd_json_get(obj, "scope"), join(d, "%s.%s", path, "scope", 0), c));
    PD_TRY(decode_decode(d, pd_json_get(obj, "decode"), join(d, "%s.%s", path, "decode", 0), c));
    PD_TRY(decode_kv_type(d, pd_json_get(obj, "kv_type"), join(d, "%s.%s", path, "kv_type", 0), c));
    char prefix[96];
    snprintf(prefix, sizeof prefix, "%s.", path);
    int64_t min_tokens = 0, seed = 0;
    PD_TRY(pd_json_bool(obj, prefix, "protect_system", &c->protect_system, d->err));
    PD_TRY(pd_json_int(obj, prefix, "min_tokens", 0, TOKENS_MAX, &min_tokens, NULL, d->err));
    PD_TRY(pd_json_int(obj, prefix, "seed", 0, INT64_MAX, &seed, NULL, d->err));
    bool own = false;
    PD_TRY(pd_json_bool(obj, prefix, "verbose", &own, d->err));
    if (verbose && own) *verbose = true;
    c->min_tokens = (size_t)min_tokens;
    c->seed = (uint64_t)seed;
    return PD_OK;
}

/* The end of every way in: hand over, or free on failure and for dense. */
static pd_status done(decoder *d, pd_status st, pd_compression *c, pd_compression **ret) {
    pd_arena_done(&d->arena);
    if (st == PD_OK && (c->press || c->decode || c->n_read || c->kv_key || c->kv_value)) {
        *ret = c;
        return PD_OK;
    }
    pd_compression_close(c);
    if (st == PD_OK) *ret = NULL;
    return st;
}

pd_status pd_compression_decode(const json_t *v, const char *path, const pd_press_model *model,
                                bool chat, pd_compression **ret, bool *verbose, pd_err *err) {
    if (!v || json_is_null(v)) {
        *ret = NULL;
        return PD_OK;
    }
    if (json_is_string(v))
        return pd_compression_decode_text(json_string_value(v), path, false, model, ret, err);
    if (!json_is_object(v))
        return pd_fail(err, PD_EINVAL, path, "%s is %s; an object or a string is expected", path,
                       pd_json_type_name(v));
    pd_compression *c = calloc(1, sizeof *c);
    if (!c) return pd_fail(err, PD_ENOMEM, path, "no memory");
    decoder d = {.model = model, .chat = chat, .err = err};
    return done(&d, decode_object(&d, v, path, c, verbose), c, ret);
}

static pd_status decode_text(decoder *d, const char *text, const char *path, bool colon_ratio,
                             pd_compression *c) {
    double colon = NAN, in_text = NAN;
    const char *last = strrchr(text, ':');
    if (colon_ratio && last && !strpbrk(last, "=()@")) {
        char *end;
        const double r = strtod(last + 1, &end);
        if (end != last + 1 && *end == '\0') {
            colon = r;
            text = pd_arena_strndup(&d->arena, text, (size_t)(last - text));
            if (!text) return no_memory(d);
        }
    }
    pd_spec *spec;
    PD_TRY(pd_spec_parse_text(text, path, &d->arena, &spec, &in_text, d->err));
    pd_press_inst *inst;
    PD_TRY(pd_spec_resolve(spec, d->model, &inst, d->err));
    PD_TRY(pd_compression_take(c, inst, path, d->err));
    if (!isnan(colon) && !isnan(in_text))
        return pd_fail(d->err, PD_EINVAL, path, "%s: the ratio is given twice", path);
    if (isnan(in_text)) in_text = colon;
    if (c->has_ratio && !isnan(in_text))
        return pd_fail(d->err, PD_EINVAL, path, "%s: the ratio is given twice", path);
    const pd_press_inst *knows = knows_budget(c);
    if (c->has_ratio || knows) return isnan(in_text) ? PD_OK : takes_no_ratio(d, path, knows);
    if (isnan(in_text)) {
        if (!c->press) return PD_OK;
        return pd_fail(d->err, PD_EINVAL, path,
                       "%s: \"%.60s\" needs a ratio, as in \"snapkv%s0.5\"", path, text,
                       colon_ratio ? ":" : "@");
    }
    PD_TRY(check_ratio(d, path, in_text));
    c->ratio = in_text;
    return PD_OK;
}

pd_status pd_compression_decode_text(const char *text, const char *path, bool colon_ratio,
                                     const pd_press_model *model, pd_compression **ret,
                                     pd_err *err) {
    pd_compression *c = calloc(1, sizeof *c);
    if (!c) return pd_fail(err, PD_ENOMEM, path, "no memory");
    decoder d = {.model = model, .err = err};
    return done(&d, decode_text(&d, text, path, colon_ratio, c), c, ret);
}

pd_status pd_compression_decode_default(const char *text, const pd_press_model *model, bool chat,
                                        pd_compression **ret, pd_err *err) {
    while (*text == ' ' || *text == '\t' || *text == '\n') text++;
    if (*text != '{')
        return pd_compression_decode_text(text, "compression", false, model, ret, err);
    json_t *v;
    PD_TRY(pd_json_parse(&v, text, strlen(text), err));
    /* The scope "context" of a default means the whole prompt where there are no
     * messages, so it is decoded as chat and widened here. */
    pd_status st = pd_compression_decode(v, "compression", model, true, ret, NULL, err);
    json_decref(v);
    if (st == PD_OK && *ret && !chat && (*ret)->scope == PD_SCOPE_CONTEXT)
        (*ret)->scope = PD_SCOPE_PROMPT;
    return st;
}
