/* SPDX-License-Identifier: Apache-2.0 */
/* Texts of presses that no test names: drawn from the registry's tables. */
#ifndef PD_TESTS_PRESS_DRAW_H
#define PD_TESTS_PRESS_DRAW_H

#include "tests/unit/press_case.h"

#include <stdio.h>

enum { TEXT_MAX = 768 };

/* A parameter in its range, small where the range has room for both. */
static inline size_t draw_param(const pd_param *p, size_t n_layer, pd_rng *rng, char *at, size_t size) {
    const double lo = p->min, hi = fmin(p->max, p->min + 40.0);
    switch (p->type) {
    case PD_PARAM_INT:
        return (size_t)snprintf(at, size, "%s=%.0f", p->name, lo + floor((hi - lo + 1.0) * pd_rng_f64(rng)));
    case PD_PARAM_BOOL:
        return (size_t)snprintf(at, size, "%s=%s", p->name, pd_rng_u64(rng) % 2 ? "true" : "false");
    case PD_PARAM_CHOICE: {
        size_t n = 0;
        while (p->choices[n]) n++;
        return (size_t)snprintf(at, size, "%s=%s", p->name, p->choices[pd_rng_u64(rng) % n]);
    }
    case PD_PARAM_FLOAT_LIST: {
        size_t n = (size_t)snprintf(at, size, "%s=", p->name);
        for (size_t i = 0; i < n_layer; i++)
            n += (size_t)snprintf(at + n, size - n, "%s%.3f", i ? ";" : "", p->min + (p->max - p->min) * pd_rng_f64(rng));
        return n;
    }
    case PD_PARAM_FLOAT: break;
    }
    /* a range without bounds is a scale of scores: somewhere around 0 */
    const double a = fmax(p->min, -3.0), b = fmin(p->max, a + 4.0);
    return (size_t)snprintf(at, size, "%s=%.4f", p->name, a + (b - a) * (0.02 + 0.96 * pd_rng_f64(rng)));
}

/* "name:p=v,...": what must be given, and with `free` about half of the others. */
static inline void draw_name(const pd_press *p, const pd_press_model *model, bool free_too, pd_rng *rng, char *text, size_t size) {
    size_t n = (size_t)snprintf(text, size, "%s", p->name);
    char before = ':';
    for (size_t i = 0; i < p->n_params; i++) {
        if (!(p->params[i].flags & PD_PARAM_REQUIRED) && !(free_too && pd_rng_u64(rng) % 2)) continue;
        text[n++] = before;
        before = ',';
        n += draw_param(&p->params[i], model->n_layer, rng, text + n, size - n);
        assert_true(n + 1 < size);
    }
}

static inline pd_press_inst *resolve(const char *text, const pd_press_model *model, pd_err *err) {
    pd_arena arena = {0};
    pd_spec *spec;
    double ratio;
    pd_press_inst *inst = NULL;
    *err = (pd_err){0};
    if (pd_spec_parse_text(text, "press", &arena, &spec, &ratio, err) != PD_OK) fail_msg("%s: %s", text, err->msg);
    if (pd_spec_resolve(spec, model, &inst, err) != PD_OK) inst = NULL;
    pd_arena_done(&arena);
    return inst;
}

/* The press with as many of `child` inside as it must have; false if it takes none. */
static inline bool around(const pd_press *p, const char *child, const pd_press_model *model, bool free_too, pd_rng *rng, char *text, size_t size) {
    draw_name(p, model, free_too, rng, text, size);
    if (p->max_child == 0) return child == NULL;
    if (!child) return false;
    size_t n = strlen(text);
    const size_t count = p->min_child + (free_too && p->max_child > p->min_child ? pd_rng_u64(rng) % 2 : 0);
    for (size_t i = 0; i < count; i++) n += (size_t)snprintf(text + n, size - n, "%c%s", i ? ',' : '(', child);
    if (count) snprintf(text + n, size - n, ")");
    return true;
}

/* The first press of the registry that `p` takes, or NULL for a leaf. */
static inline const char *any_child(const pd_press *p, const pd_press_model *model, pd_rng *rng) {
    for (size_t i = 0; p->max_child && i < pd_press_count(); i++) {
        char text[TEXT_MAX];
        pd_err err;
        if (!around(p, pd_press_at(i)->name, model, false, rng, text, sizeof text)) continue;
        pd_press_inst *inst = resolve(text, model, &err);
        if (!inst) continue;
        pd_press_inst_close(inst);
        return pd_press_at(i)->name;
    }
    if (p->max_child) fail_msg("nothing can stand inside '%s'", p->name);
    return NULL;
}

#endif
