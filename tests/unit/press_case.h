/* SPDX-License-Identifier: Apache-2.0 */
/* Asking a press, given as text, about a synthetic view (press_view.h).  The
 * model it is resolved against has 30 layers. */
#ifndef PD_TESTS_PRESS_CASE_H
#define PD_TESTS_PRESS_CASE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compression/spec.h"
#include "tests/unit/press_view.h"

static inline pd_press_inst *inst_of(const char *text) {
    static const pd_press_model model = {30, 6, 2, 16, 96, 192, NULL};
    pd_arena a = {0};
    pd_spec *spec;
    double ratio;
    pd_err err = {0};
    pd_press_inst *inst = NULL;
    if (pd_spec_parse_text(text, "press", &a, &spec, &ratio, &err) != PD_OK ||
        pd_spec_resolve(spec, &model, &inst, &err) != PD_OK)
        fail_msg("%s", err.msg);
    pd_arena_done(&a);
    return inst;
}

static inline float **scores_of(const char *text, test_view *t) {
    pd_press_inst *inst = inst_of(text);
    float **s = pd_scores_new(&t->view);
    pd_err err = {0};
    if (pd_press_score(inst, &t->view, s, &err) != PD_OK) fail_msg("%s: %s", text, err.msg);
    pd_press_inst_close(inst);
    return s;
}

static inline pd_plan plan_of(const char *text, test_view *t, pd_budget b, float *const *scores) {
    pd_press_inst *inst = inst_of(text);
    pd_plan plan;
    pd_err err = {0};
    if (pd_press_plan(inst, &t->view, &b, &plan, scores, &err) != PD_OK)
        fail_msg("%s: %s", text, err.msg);
    pd_press_inst_close(inst);
    return plan;
}

static inline void assert_near(double got, double want, double rel, const char *what, size_t h, size_t i) {
    if (!(fabs(got - want) <= rel * fabs(want) + 1e-30))
        fail_msg("%s head %zu slot %zu: got %.9g want %.9g", what, h, i, got, want);
}

/* Mean over the last w queries of the softmax over visible slots, in double. */
static inline void plain_attention(const test_view *t, size_t w, size_t hq, double *out) {
    const pd_view *v = &t->view;
    const size_t h = hq / (v->n_head / v->n_head_kv), n = v->n_h[h], d = v->head_dim;
    for (size_t i = 0; i < n; i++) out[i] = 0.0;
    for (size_t r = v->q_rows - w; r < v->q_rows; r++) {
        double z[400], sum = 0.0;
        for (size_t i = 0; i < n; i++) {
            double dot = 0.0;
            for (size_t e = 0; e < d; e++)
                dot += (double)v->q[(r * v->n_head + hq) * d + e] * (double)t->k[h][i * d + e];
            z[i] = t->pos[h][i] <= v->q_pos[r] ? exp(dot / sqrt((double)d)) : 0.0;
            sum += z[i];
        }
        for (size_t i = 0; sum > 0.0 && i < n; i++) out[i] += z[i] / sum / (double)w;
    }
}

static inline void same_plan(const char *text, const pd_plan *a, const pd_plan *b, size_t heads,
                      size_t d) {
    assert_int_equal(a->keep_all, b->keep_all);
    assert_int_equal(a->rerotate, b->rerotate);
    assert_int_equal(a->v_new != NULL, b->v_new != NULL);
    for (size_t h = 0; !a->keep_all && h < heads; h++) {
        if (a->n_keep[h] != b->n_keep[h] ||
            memcmp(a->keep[h], b->keep[h], a->n_keep[h] * sizeof **a->keep) != 0)
            fail_msg("%s: another choice in head %zu", text, h);
        if (a->v_new) assert_memory_equal(a->v_new[h], b->v_new[h], a->n_keep[h] * d * sizeof(float));
    }
}

#endif
