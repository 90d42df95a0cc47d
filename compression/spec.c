/* SPDX-License-Identifier: Apache-2.0 */
/* Resolve a spec against the registry (see spec.h): the one place where names,
 * types, ranges and the kinds of children are checked, from the same tables that
 * /v1/presses shows. */
#include "compression/spec.h"

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
static void describe(const pd_param *p, char *buf, size_t size) {
    const char *null = p->flags & PD_PARAM_NULLABLE ? " or null" : "";
    switch (p->type) {
    case PD_PARAM_BOOL:
        snprintf(buf, size, "true or false%s", null);
        return;
    case PD_PARAM_INT:
    case PD_PARAM_FLOAT:
        snprintf(buf, size, "%s in %c%.15g, %.15g%c%s",
                 p->type == PD_PARAM_INT ? "an integer" : "a number",
                 p->flags & PD_PARAM_OPEN_MIN ? '(' : '[', p->min, p->max,
                 p->flags & PD_PARAM_OPEN_MAX ? ')' : ']', null);
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
    }
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
    }
    *ret = v->number + 0.0; /* -0 is 0 */
    return v->kind == PD_SPEC_NUMBER &&
           (p->flags & PD_PARAM_OPEN_MIN ? *ret > p->min : *ret >= p->min) &&
           (p->flags & PD_PARAM_OPEN_MAX ? *ret < p->max : *ret <= p->max); /* NaN fails both */
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

static pd_status resolve_params(const pd_spec *spec, pd_press_inst *inst, pd_err *err) {
    const pd_press *press = inst->press;
    bool given[PD_PRESS_PARAMS_MAX] = {false};
    for (size_t i = 0; i < press->n_params; i++) inst->p[i] = press->params[i].def;
    for (size_t i = 0; i < spec->n_param; i++) {
        const pd_spec_param *v = &spec->param[i];
        char base[96], at[112];
        const char *object = params_path(spec, base, sizeof base);
        if (object == spec->path)
            snprintf(at, sizeof at, "%s", object);
        else
            snprintf(at, sizeof at, "%.50s.%s", object, show(v->name).s);
        size_t index;
        const pd_param *p = pd_press_param(press, v->name, &index);
        if (!p) return unknown_param(spec, press, at, v->name, err);
        if (given[index])
            return pd_fail(err, PD_EINVAL, at, "%s: parameter '%s' is given twice", spec->path,
                           p->name);
        given[index] = true;
        if (accept(p, v, &inst->p[index])) continue;
        char want[160], got[64];
        describe(p, want, sizeof want);
        show_value(v, got, sizeof got);
        return pd_fail(err, PD_EINVAL, at, "%s: parameter '%s' of '%s' must be %s, not %s",
                       spec->path, p->name, press->name, want, got);
    }
    return PD_OK;
}

/* ---- nodes ---- */

static pd_status resolve_node(const pd_spec *spec, const pd_press_model *model, int depth,
                              pd_press_inst **ret, pd_err *err);

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
        if (strcmp(child->name, "none") == 0)
            return pd_fail(err, PD_EINVAL, child->path, "%s: 'none' cannot stand inside '%s'",
                           child->path, press->name);
        PD_TRY(resolve_node(child, model, depth + 1, &inst->child[i], err));
        inst->n_child = i + 1;
        if ((pd_press_inst_can(inst->child[i]) & press->child_must) != press->child_must)
            return pd_fail(err, PD_EINVAL, child->path,
                           "%s: press '%s' takes a press that scores tokens; '%s' does not",
                           child->path, press->name, child->name);
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
    pd_status rc = resolve_params(spec, inst, err);
    if (rc == PD_OK) rc = resolve_children(spec, model, depth, inst, err);
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
    free(inst);
}
