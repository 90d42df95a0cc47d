/* SPDX-License-Identifier: Apache-2.0 */
/* compactor: keys that stand out, blended with what their neighbourhood attends to.
 *
 * Chari, Van Durme 2025 (arXiv 2507.08143); kvpress' CompactorPress.  The first
 * sink_size_start and the last sink_size_end tokens are set aside; of the others
 *
 *     score = blending * leverage + non_causal_attention
 *
 * each standardized over them, blocks beginning after the sinks.  Those set aside
 * get the largest score.  blending null is the ratio that is removed (of a budget by
 * count the one it comes to), so the score depends on the budget.
 *
 * DIFFERS: a text no longer than the sinks is not pressed; the reference fails.
 * Cost: that of both. */
#include "compression/compactor.h"
#include "compression/shared.h"
#include "compression/sketch.h"

#include "engine/base/num.h"

#include <math.h>

enum { SINK_START, SINK_END, CHUNK, SKETCH, BLENDING };

/* The slots between the sinks; first[h] is the slot where they begin. */
static pd_status between_sinks(const pd_press_inst *inst, const pd_view *view, size_t *first,
                               pd_view *ret, pd_err *err) {
    const size_t heads = view->n_head_kv, d = view->head_dim;
    size_t *n_h = PD_ARENA_NEW(view->tmp, heads, size_t);
    const int32_t **pos = PD_ARENA_NEW(view->tmp, heads, const int32_t *);
    const float **k = PD_ARENA_NEW(view->tmp, heads, const float *),
                **v = PD_ARENA_NEW(view->tmp, heads, const float *);
    if (!n_h || !pos || !k || !v)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to score %zu tokens", view->n);
    *ret = *view;
    ret->n = 0;
    for (size_t h = 0; h < heads; h++) {
        const size_t begin = pd__slots_before(view, h, (int64_t)inst->p[SINK_START]),
                     end = pd__slots_before(view, h,
                                            (int64_t)view->n_seen - (int64_t)inst->p[SINK_END]);
        first[h] = begin;
        n_h[h] = end > begin ? end - begin : 0;
        pos[h] = view->pos[h] + begin;
        k[h] = view->k[h] + begin * d;
        v[h] = view->v[h] + begin * d;
        ret->n = pd_max_size(ret->n, n_h[h]);
    }
    ret->n_h = n_h;
    ret->pos = pos;
    ret->k = k;
    ret->v = v;
    ret->protect = NULL;
    return PD_OK;
}

static pd_status score(const pd_press_inst *inst, const pd_view *view, float *const *score,
                       pd_err *err) {
    const size_t heads = view->n_head_kv, sketch = (size_t)inst->p[SKETCH];
    const float blending = (float)(isnan(inst->p[BLENDING])
                                       ? pd_budget_ratio(&view->budget, view->n)
                                       : inst->p[BLENDING]);
    size_t *first = PD_ARENA_NEW(view->tmp, heads, size_t);
    float **inner = PD_ARENA_NEW(view->tmp, heads, float *);
    const float *phi = pd__leverage_sketch(view, sketch);
    if (!first || !inner || !phi)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to score %zu tokens", view->n);
    pd_view sub;
    PD_TRY(between_sinks(inst, view, first, &sub, err));
    float **leverage = pd_scores_new(&sub);
    if (!leverage)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to score %zu tokens", view->n);
    for (size_t h = 0; h < heads; h++) {
        inner[h] = score[h] + first[h];
        for (size_t i = 0; i < view->n_h[h]; i++) score[h][i] = 0.0f; /* if all are sinks */
    }
    if (sub.n == 0) return PD_OK;
    PD_TRY(pd__leverage_score(&sub, phi, sketch, leverage, err));
    PD_TRY(pd__non_causal_score(&sub, (size_t)inst->p[CHUNK], inner, err));
    float max = -INFINITY;
    for (size_t h = 0; h < heads; h++) {
        if (sub.n_h[h] == 0) continue;
        view->kern->axpy_f32(blending, leverage[h], inner[h], sub.n_h[h]);
        max = fmaxf(max, view->kern->max_f32(inner[h], sub.n_h[h]));
    }
    for (size_t h = 0; h < heads; h++)
        for (size_t i = 0; i < view->n_h[h]; i++)
            if (i < first[h] || i >= first[h] + sub.n_h[h]) score[h][i] = max;
    return PD_OK;
}

static void needs(const pd_press_inst *inst, pd_press_needs *n) {
    n->bits |= PD_NEEDS_Q_ALL;
}

static size_t min_tokens(const pd_press_inst *inst) {
    return (size_t)inst->p[SINK_START] + (size_t)inst->p[SINK_END] + 1;
}

static const pd_param params[] = {
    [SINK_START] = {.name = "sink_size_start",
                    .type = PD_PARAM_INT,
                    .def = 8,
                    .min = 0,
                    .max = 65536,
                    .doc = "first tokens that stay"},
    [SINK_END] = {.name = "sink_size_end",
                  .type = PD_PARAM_INT,
                  .def = 4,
                  .min = 0,
                  .max = 65536,
                  .doc = "last tokens that stay"},
    [CHUNK] = {.name = "chunk_size",
               .type = PD_PARAM_INT,
               .def = 256,
               .min = 1,
               .max = 65536,
               .doc = "tokens of a block, inside which all attend to all"},
    [SKETCH] = {.name = "sketch_dimension",
                .type = PD_PARAM_INT,
                .def = 48,
                .min = 1,
                .max = PD__CHOLESKY_MAX,
                .doc = "columns of the random sketch of the keys"},
    [BLENDING] = {.name = "blending",
                  .type = PD_PARAM_FLOAT,
                  .def = NAN,
                  .min = 0,
                  .max = 1000,
                  .flags = PD_PARAM_NULLABLE,
                  .doc = "weight of the keys' leverage; null takes the ratio removed"},
};

const pd_press pd_press_compactor = {
    .name = "compactor",
    .reference_class = "CompactorPress",
    .kind = "scorer",
    .source = "arXiv 2507.08143",
    .doc = "Keeps keys that stand out and what the tokens around them attend to.",
    .ratio_doc = "its own",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_SCORE,
    .needs = needs,
    .min_tokens = min_tokens,
    .score = score,
};
