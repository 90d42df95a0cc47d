/* SPDX-License-Identifier: Apache-2.0 */
/* Resolve a spec against the registry (see spec.h): the one place where names,
 * types, ranges and the kinds of children are checked, from the same tables that
 * /v1/presses shows. */
#include "compression/spec.h"

#include "compression/press_data.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* At most 40 bytes of a client's text, on one line; pd_fail mends what the cut
 * does to UTF-8. */
typedef struct {
    char s[48];
} shown;

static shown show(const char *text) {
    shown r;
    size_t n = 0;
    for (; text[n] != '\0' && n < 40; n++) {
        const unsigned char c = (unsigned char)text[n];
        r.s[n] = c < 0x20 || c == 0x7F ? '?' : text[n];
    }
    memcpy(r.s + n, text[n] != '\0' ? "..." : "", text[n] != '\0' ? 4 : 1);
    return r;
}

/* ---- parameters ---- */

static const char *params_path(const pd_spec *spec, char *buf, size_t size) {
    if (spec->params_path) return spec->params_path;
    snprintf(buf, size, "%s.params", spec->path);
    return buf;
}

/* What a parameter may be: "an integer in [1, 4096]", "true or false", ... */
static void describe(const pd_param *p, const pd_press_model *model, char *buf, size_t size) {
    const char *null = p->flags & PD_PARAM_NULLABLE ? " or null" : "";
    const char open = p->flags & PD_PARAM_OPEN_MIN ? '(' : '[',
               close = p->flags & PD_PARAM_OPEN_MAX ? ')' : ']';
    switch (p->type) {
    case PD_PARAM_BOOL:
        snprintf(buf, size, "true or false%s", null);
        return;
    case PD_PARAM_INT:
    case PD_PARAM_FLOAT:
        snprintf(buf, size, "%s in %c%.15g, %.15g%c%s",
                 p->type == PD_PARAM_INT ? "an integer" : "a number", open, p->min, p->max, close,
                 null);
        return;
    case PD_PARAM_FLOAT_LIST:
        snprintf(buf, size, "a list of %zu number%s in %c%.15g, %.15g%c, one per layer",
                 model->n_layer, model->n_layer == 1 ? "" : "s", open, p->min, p->max, close);
        return;
    case PD_PARAM_CHOICE: {
        size_t n = (size_t)snprintf(buf, size, "one of");
        for (size_t i = 0; p->choices[i] && n < size; i++)
            n += (size_t)snprintf(buf + n, size - n, "%s \"%s\"", i ? "," : "", p->choices[i]);
        if (n < size) snprintf(buf + n, size - n, "%s", null);
        return;
    }
    }
}

static void show_value(const pd_spec_param *v, char *buf, size_t size) {
    switch (v->kind) {
    case PD_SPEC_NULL:
        snprintf(buf, size, "null");
        return;
    case PD_SPEC_BOOL:
        snprintf(buf, size, "%s", v->number != 0.0 ? "true" : "false");
        return;
    case PD_SPEC_NUMBER:
        snprintf(buf, size, "%.15g", v->number);
        return;
    case PD_SPEC_STRING:
        snprintf(buf, size, "\"%s\"", show(v->string).s);
        return;
    case PD_SPEC_LIST:
        snprintf(buf, size, "a list of %zu", v->n_list);
        return;
    }
}

/* v in the parameter's range; NaN is in none. */
static bool in_range(const pd_param *p, double v) {
    return (p->flags & PD_PARAM_OPEN_MIN ? v > p->min : v >= p->min) &&
           (p->flags & PD_PARAM_OPEN_MAX ? v < p->max : v <= p->max);
}

/* True and *ret if the value is one the parameter takes. */
static bool accept(const pd_param *p, const pd_spec_param *v, double *ret) {
    if (v->kind == PD_SPEC_NULL) {
        *ret = NAN;
        return (p->flags & PD_PARAM_NULLABLE) != 0;
    }
    switch (p->type) {
    case PD_PARAM_BOOL:
        *ret = v->number != 0.0;
        return v->kind == PD_SPEC_BOOL;
    case PD_PARAM_CHOICE:
        if (v->kind != PD_SPEC_STRING) return false;
        for (size_t i = 0; p->choices[i]; i++) {
            *ret = (double)i;
            if (strcmp(p->choices[i], v->string) == 0) return true;
        }
        return false;
    case PD_PARAM_INT:
        if (!v->integral) return false;
        break;
    case PD_PARAM_FLOAT:
        break;
    case PD_PARAM_FLOAT_LIST:
        return false; /* accept_list */
    }
    *ret = v->number + 0.0; /* -0 is 0 */
    return v->kind == PD_SPEC_NUMBER && in_range(p, *ret);
}

/* The same for one number per layer; of a list of the right length *bad is its
 * first value out of range, SIZE_MAX for any other fault.  A number alone is a
 * list of one: the text form writes it so. */
static pd_status accept_list(const pd_param *p, const pd_spec_param *v, size_t n_layer,
                             double **ret, bool *ok, size_t *bad) {
    const double *list = v->kind == PD_SPEC_LIST ? v->list : &v->number;
    const size_t n = v->kind == PD_SPEC_LIST ? v->n_list : v->kind == PD_SPEC_NUMBER;
    *ok = false;
    *bad = SIZE_MAX;
    if (n != n_layer || n == 0) return PD_OK;
    for (size_t i = 0; i < n && *bad == SIZE_MAX; i++)
        if (!in_range(p, list[i])) *bad = i;
    if (*bad != SIZE_MAX) return PD_OK;
    double *copy = calloc(n, sizeof *copy);
    if (!copy) return PD_ENOMEM;
    for (size_t i = 0; i < n; i++) copy[i] = list[i] + 0.0;
    *ret = copy;
    *ok = true;
    return PD_OK;
}

static pd_status unknown_param(const pd_spec *spec, const pd_press *press, const char *at,
                               const char *name, pd_err *err) {
    char known[256] = "it has none";
    for (size_t i = 0, n = 0; i < press->n_params && n < sizeof known; i++)
        n += (size_t)snprintf(known + n, sizeof known - n, "%s%s", i ? ", " : "it has ",
                              press->params[i].name);
    return pd_fail(err, PD_EINVAL, at, "%s: press '%s' has no parameter '%s'; %s", spec->path,
                   press->name, show(name).s, known);
}

/* The path of a parameter, or of the text it stands in. */
static void param_path(const pd_spec *spec, const char *name, char *buf, size_t size) {
    char base[96];
    const char *object = params_path(spec, base, sizeof base);
    if (object == spec->path)
        snprintf(buf, size, "%s", object);
    else
        snprintf(buf, size, "%.50s.%s", object, show(name).s);
}

static pd_status required(const pd_spec *spec, const pd_press *press, const bool *given,
                          const pd_press_model *model, pd_err *err) {
    for (size_t i = 0; i < press->n_params; i++) {
        const pd_param *p = &press->params[i];
        if (given[i] || !(p->flags & PD_PARAM_REQUIRED)) continue;
        char at[112], want[160];
        param_path(spec, p->name, at, sizeof at);
        describe(p, model, want, sizeof want);
        return pd_fail(err, PD_EINVAL, at, "%s: press '%s' needs '%s': %s", spec->path, press->name,
                       p->name, want);
    }
    return PD_OK;
}

static pd_status resolve_params(const pd_spec *spec, const pd_press_model *model,
                                pd_press_inst *inst, pd_err *err) {
    const pd_press *press = inst->press;
    bool given[PD_PRESS_PARAMS_MAX] = {false};
    for (size_t i = 0; i < press->n_params; i++) inst->p[i] = press->params[i].def;
    inst->n_list = model->n_layer;
    for (size_t i = 0; i < spec->n_param; i++) {
        const pd_spec_param *v = &spec->param[i];
        char at[128];
        param_path(spec, v->name, at, sizeof at);
        size_t index, bad = SIZE_MAX;
        const pd_param *p = pd_press_param(press, v->name, &index);
        if (!p) return unknown_param(spec, press, at, v->name, err);
        if (given[index])
            return pd_fail(err, PD_EINVAL, at, "%s: parameter '%s' is given twice", spec->path,
                           p->name);
        given[index] = true;
        bool ok;
        if (p->type != PD_PARAM_FLOAT_LIST)
            ok = accept(p, v, &inst->p[index]);
        else if (accept_list(p, v, model->n_layer, &inst->list[index], &ok, &bad) != PD_OK)
            return pd_fail(err, PD_ENOMEM, at, "no memory for '%s'", p->name);
        if (ok) continue;
        char want[160], got[64];
        describe(p, model, want, sizeof want);
        show_value(v, got, sizeof got);
        if (bad != SIZE_MAX) {
            const size_t n = strlen(at);
            if (spec->path != spec->params_path) snprintf(at + n, sizeof at - n, "[%zu]", bad);
            snprintf(got, sizeof got, "%.15g for layer %zu",
                     v->kind == PD_SPEC_LIST ? v->list[bad] : v->number, bad);
        }
        return pd_fail(err, PD_EINVAL, at, "%s: parameter '%s' of '%s' must be %s, not %s",
                       spec->path, p->name, press->name, want, got);
    }
    return required(spec, press, given, model, err);
}

/* ---- nodes ---- */

static pd_status resolve_node(const pd_spec *spec, const pd_press_model *model, int depth,
                              pd_press_inst **ret, pd_err *err);

/* Why a child with these capabilities is not one the press takes. */
static const char *refusal(unsigned must, unsigned can) {
    const unsigned missing = must & ~can;
    if (missing & PD_CAN_SCORE) return "a press that scores tokens";
    if (missing & PD_CAN_SCORE_PART)
        return "a press that scores by keys, values and positions alone";
    if (missing & (PD_CAN_PRUNE_STEP | PD_CAN_SCORE_STEP))
        return "a press that works while tokens are generated";
    return "presses that leave every head the same number of tokens";
}

static pd_status resolve_children(const pd_spec *spec, const pd_press_model *model, int depth,
                                  pd_press_inst *inst, pd_err *err) {
    const pd_press *press = inst->press;
    if (spec->n_child < press->min_child || spec->n_child > press->max_child) {
        char want[96];
        if (press->max_child == 0)
            snprintf(want, sizeof want, "takes no press inside it");
        else if (press->min_child == press->max_child)
            snprintf(want, sizeof want, "takes %zu press%s inside it", press->max_child,
                     press->max_child > 1 ? "es" : "");
        else
            snprintf(want, sizeof want, "takes %zu to %zu presses inside it", press->min_child,
                     press->max_child);
        return pd_fail(err, PD_EINVAL, spec->path, "%s: press '%s' %s, not %zu", spec->path,
                       press->name, want, spec->n_child);
    }
    for (size_t i = 0; i < spec->n_child; i++) {
        const pd_spec *child = spec->child[i];
        if (strcmp(child->name, "none") == 0) {
            if (press->child_may_be_none && !child->has_ratio) continue;
            return pd_fail(err, PD_EINVAL, child->path, "%s: 'none' cannot stand inside '%s'",
                           child->path, press->name);
        }
        if (child->has_ratio && !press->child_ratio)
            return pd_fail(err, PD_EINVAL, child->path,
                           "%s: a press inside '%s' takes no ratio of its own: %s", child->path,
                           press->name, press->ratio_doc);
        pd_press_inst **at = &inst->child[inst->n_child];
        PD_TRY(resolve_node(child, model, depth + 1, at, err));
        inst->n_child++;
        const unsigned can = pd_press_inst_can(*at);
        if ((can & press->child_must) != press->child_must)
            return pd_fail(err, PD_EINVAL, child->path, "%s: press '%s' takes %s; '%s' does not",
                           child->path, press->name, refusal(press->child_must, can), child->name);
        if ((*at)->press->read_rule && !press->read_rule)
            return pd_fail(err, PD_EINVAL, child->path, "%s: '%s' says what a decode step reads: it stands around '%s', not inside",
                           child->path, child->name, press->name);
        if (child->has_ratio && !pd_press_inst_takes_ratio(*at))
            return pd_fail(err, PD_EINVAL, child->path, "%s: press '%s' takes no ratio: %s",
                           child->path, child->name, (*at)->press->ratio_doc);
        (*at)->has_ratio = child->has_ratio;
        (*at)->ratio = child->ratio;
    }
    return PD_OK;
}

static pd_status resolve_node(const pd_spec *spec, const pd_press_model *model, int depth,
                              pd_press_inst **ret, pd_err *err) {
    if (depth > PD_PRESS_DEPTH_MAX)
        return pd_fail(err, PD_EINVAL, spec->path, "%s: more than %d presses inside each other",
                       spec->path, PD_PRESS_DEPTH_MAX);
    const pd_press *press = pd_press_find(spec->name);
    if (!press)
        return pd_fail(err, PD_EINVAL, spec->path, "%s: unknown press '%s'; known: none, %s",
                       spec->path, show(spec->name).s, pd_press_names());
    assert(press->n_params <= PD_PRESS_PARAMS_MAX && press->max_child <= PD_PRESS_CHILDREN_MAX);
    pd_press_inst *inst = calloc(1, sizeof *inst);
    if (!inst) return pd_fail(err, PD_ENOMEM, spec->path, "no memory for press '%s'", press->name);
    inst->press = press;
    inst->data = model->data;
    pd_status rc = resolve_params(spec, model, inst, err);
    if (rc == PD_OK) rc = resolve_children(spec, model, depth, inst, err);
    if (rc == PD_OK) rc = pd_press_check_data(inst, spec->path, err);
    if (rc == PD_OK && press->check) {
        char buf[96];
        rc = press->check(inst, model, params_path(spec, buf, sizeof buf), err);
    }
    if (rc != PD_OK) {
        pd_press_inst_close(inst);
        return rc;
    }
    *ret = inst;
    return PD_OK;
}

pd_status pd_spec_resolve(const pd_spec *spec, const pd_press_model *model, pd_press_inst **ret,
                          pd_err *err) {
    if (strcmp(spec->name, "none") == 0) {
        if (spec->n_param > 0 || spec->n_child > 0)
            return pd_fail(err, PD_EINVAL, spec->path,
                           "%s: 'none' takes neither parameters nor presses", spec->path);
        *ret = NULL;
        return PD_OK;
    }
    pd_press_inst *inst;
    PD_TRY(resolve_node(spec, model, 1, &inst, err));
    pd_press_needs needs;
    pd_press_collect_needs(inst, &needs);
    if (needs.bits & PD_NEEDS_TOO_MANY) {
        pd_press_inst_close(inst);
        return pd_fail(err, PD_EINVAL, spec->path,
                       "%s: more than %d different n_sink in one request", spec->path,
                       PD_MOMENTS_MAX);
    }
    *ret = inst;
    return PD_OK;
}

void pd_press_inst_close(pd_press_inst *inst) {
    if (!inst) return;
    if (inst->press->close) inst->press->close(inst);
    for (size_t i = 0; i < inst->n_child; i++) pd_press_inst_close(inst->child[i]);
    for (size_t i = 0; i < PD_PRESS_PARAMS_MAX; i++) free(inst->list[i]);
    free(inst);
}
