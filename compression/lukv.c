/* SPDX-License-Identifier: Apache-2.0 */
/* lukv: each head's share of the budget is measured beforehand, per model.
 *
 * Tang et al. 2026 (arXiv 2602.08585); kvpress' LUKVPress.  Press data holds 99
 * rows: row i says which share p of each layer's and head's slots goes when
 * (i + 1) % of all slots of the model go.  The request's ratio r (kvpress'
 * parameter compression_ratio) picks row clamp(round(100 r) - 1, 0, 98); a layer
 * of L slots a head keeps round(sum of (1 - p) L) in all, each head floor((1 - p) L)
 * and one more for the largest fractions, 1 to L; which slots stay is the child's
 * to say, but the first `sink` and last `window` tokens go last.
 *
 * A budget in tokens or bytes picks the first row that keeps at most that many
 * slots on the mean of all heads.
 * DIFFERS: the reference masks what is evicted; here it is gone.
 * Cost: the child's, and one top-k per head. */
#include "compression/press_data.h"
#include "compression/shared.h"
#include "engine/base/num.h"

#include <math.h>

enum { SINK, WINDOW };

static int data_set(const pd_press_inst *inst, unsigned have) {
    (void)inst;
    (void)have;
    return PD_SET_LUKV;
}

/* keep[h] of a layer whose heads hold n slots; p [n_head] of the curve.  In f32,
 * as the reference computes it. */
static size_t layer_keeps(const float *p, size_t n_head, size_t n, size_t *keep) {
    float sum = 0.0f;
    size_t total = 0;
    for (size_t h = 0; h < n_head; h++) {
        const float ideal = (1.0f - p[h]) * (float)n;
        keep[h] = (size_t)ideal;
        sum += ideal;
        total += keep[h];
    }
    const size_t target = pd_min_size(pd_max_size((size_t)rintf(sum), n_head), n_head * n);
    size_t left = target > total ? pd_min_size(target - total, n_head) : 0;
    for (; left > 0; left--) { /* few heads: the largest fraction, once more each time */
        size_t best = n_head;
        float most = -1.0f;
        for (size_t h = 0; h < n_head; h++) {
            const float ideal = (1.0f - p[h]) * (float)n, rest = ideal - (float)keep[h];
            if (rest >= 0.0f && rest > most) {
                most = rest;
                best = h;
            }
        }
        if (best == n_head) break;
        keep[best]++;
    }
    total = 0;
    for (size_t h = 0; h < n_head; h++) {
        keep[h] = pd_min_size(pd_max_size(keep[h], 1), n);
        total += keep[h];
    }
    return total;
}

/* The row of the curves for the budget over views of n slots; `keep` is scratch
 * [n_head]. */
static size_t row_of(const pd_press_inst *inst, const pd_budget *budget, size_t n, size_t *keep) {
    size_t n_head, n_all, row = 0;
    pd_press_data_heads(inst->data, &n_head, &n_all);
    if (!budget->by_count) {
        const double i = rint(100.0 * budget->ratio) - 1.0;
        return i < 0.0 ? 0 : i > PD_LUKV_ROWS - 1 ? PD_LUKV_ROWS - 1 : (size_t)i;
    }
    const float *curves = pd_press_data_get(inst->data, PD_DATA_LUKV_CURVES);
    for (; row < PD_LUKV_ROWS - 1; row++) {
        size_t total = 0;
        for (size_t l = 0; l < n_all; l += n_head)
            total += layer_keeps(curves + row * n_all + l, n_head, n, keep);
        if (total <= budget->count * n_all) break;
    }
    return row;
}

/* What the heads of a layer keep of n slots; returns the sum. */
static size_t keeps(const pd_press_inst *inst, const pd_budget *budget, size_t layer, size_t n,
                    size_t *keep) {
    size_t n_head, n_all;
    pd_press_data_heads(inst->data, &n_head, &n_all);
    const size_t row = row_of(inst, budget, n, keep);
    const float *curves = pd_press_data_get(inst->data, PD_DATA_LUKV_CURVES);
    return layer_keeps(curves + row * n_all + layer * n_head, n_head, n, keep);
}

/* The first `sink` and last `window` tokens get the largest of all scores, + 1. */
static void raise(const pd_press_inst *inst, const pd_view *view, float *const *score) {
    const size_t sink = (size_t)inst->p[SINK], window = (size_t)inst->p[WINDOW];
    float max = -INFINITY;
    for (size_t h = 0; h < view->n_head_kv; h++)
        for (size_t i = 0; i < view->n_h[h]; i++)
            if (!isinf(score[h][i])) max = fmaxf(max, score[h][i]);
    for (size_t h = 0; h < view->n_head_kv; h++)
        for (size_t i = 0; i < view->n_h[h]; i++) {
            const size_t pos = (size_t)view->pos[h][i];
            if ((pos < sink || pos + window >= view->n_seen) && !isinf(score[h][i]))
                score[h][i] = max + 1.0f;
        }
}

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                      pd_plan *ret, pd_err *err) {
    const size_t n_head = view->n_head_kv;
    float **score = pd_scores_new(view);
    size_t *keep = PD_ARENA_NEW(view->tmp, n_head, size_t);
    if (!score || !keep)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the scores of %zu tokens", view->n);
    PD_TRY(pd_press_score(inst->child[0], view, score, err));
    raise(inst, view, score);
    keeps(inst, budget, (size_t)view->layer, view->n, keep);
    for (size_t h = 0; h < n_head; h++)
        keep[h] = pd_min_size(pd_max_size(keep[h], pd__n_protected(view, h)), view->n_h[h]);
    PD_TRY(pd__plan_new(view, keep, ret, err));
    for (size_t h = 0; h < n_head; h++)
        PD_TRY(pd_top_k(score[h], view->n_h[h], keep[h], ret->keep[h], view->tmp, err));
    return PD_OK;
}

enum { HEADS_MAX = 1024 };

static size_t most(const pd_press_inst *inst, const pd_budget *budget, size_t layer, size_t n) {
    size_t keep[HEADS_MAX], n_head, n_all;
    pd_press_data_heads(inst->data, &n_head, &n_all);
    return pd_div_up(keeps(inst, budget, layer, n, keep), n_head);
}

static pd_status check(const pd_press_inst *inst, const pd_press_model *model, const char *path,
                       pd_err *err) {
    (void)inst;
    if (model->n_head_kv <= HEADS_MAX) return PD_OK;
    return pd_fail(err, PD_EINVAL, path, "lukv serves at most %d KV heads; the model has %zu",
                   HEADS_MAX, model->n_head_kv);
}

static const pd_param params[] = {
    [SINK] = {.name = "sink",
              .type = PD_PARAM_INT,
              .def = 4,
              .min = 0,
              .max = 65536,
              .doc = "first tokens that go last"},
    [WINDOW] = {.name = "window",
                .type = PD_PARAM_INT,
                .def = 1,
                .min = 0,
                .max = 65536,
                .doc = "last tokens that go last"},
};

const pd_press pd_press_lukv = {
    .name = "lukv",
    .reference_class = "LUKVPress",
    .kind = "wrapper",
    .source = "arXiv 2602.08585",
    .doc = "Shares the budget among all layers and heads by curves measured for the model (press "
           "data).",
    .ratio_doc = "its own: it picks the curves' row",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .min_child = 1,
    .max_child = 1,
    .child_must = PD_CAN_SCORE,
    .check = check,
    .data_set = data_set,
    .plan = plan,
    .most = most,
};
