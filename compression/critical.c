/* SPDX-License-Identifier: Apache-2.0 */
/* critical: half the budget by the child's scores, the rest by what moves the output.
 *
 * Feng et al. 2025 (arXiv 2502.03805); kvpress' CriticalKVPress, a wrapper that is a
 * scorer itself.  Of the L slots of a head the best
 *
 *     int((1 - r) L first_stage_ratio),   one at least if first_stage_ratio > 0,
 *
 * of the child's scores get the largest score there is, the others
 * (score + epsilon) * |Wo v|_1 (value_effect.h).  The first stage is a share of the
 * budget, so the scores depend on it: view->budget, of a budget by count the count.
 *
 * With children whose scores are negative (knorm, keydiff) a large value effect
 * lowers the second score, as in the reference.
 * Cost: the child's and the layer's output projection of all cached values. */
#include "compression/shared.h"
#include "compression/value_effect.h"

#include "engine/base/num.h"

enum { EPSILON, FIRST_STAGE };

/* Slots of a head of n that the child alone chooses. */
static size_t first_stage(const pd_press_inst *inst, const pd_budget *budget, size_t n) {
    const double share = inst->p[FIRST_STAGE];
    const double left = budget->by_count ? (double)pd_budget_keep(budget, n)
                                         : (1.0 - budget->ratio) * (double)n;
    const size_t first = pd_max_size((size_t)(left * share), share > 0.0 ? 1 : 0);
    return pd_min_size(first, n);
}

static pd_status score(const pd_press_inst *inst, const pd_view *view, float *const *score,
                       pd_err *err) {
    float **effect = pd_scores_new(view);
    uint32_t *best = PD_ARENA_NEW(view->tmp, view->n, uint32_t);
    if (!effect || !best)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to score %zu tokens", view->n);
    PD_TRY(pd_press_score(inst->child[0], view, score, err));
    PD_TRY(pd__value_effect(view, effect, err));
    for (size_t h = 0; h < view->n_head_kv; h++)
        PD_TRY(pd__weigh_by_effect(view, h, first_stage(inst, &view->budget, view->n_h[h]),
                                   (float)inst->p[EPSILON], effect[h], score[h], best, err));
    return PD_OK;
}

static void needs(const pd_press_inst *inst, pd_press_needs *n) {
    n->bits |= PD_NEEDS_WO;
}

static const pd_param params[] = {
    [EPSILON] = {.name = "epsilon",
                 .type = PD_PARAM_FLOAT,
                 .def = 1e-4,
                 .min = 0,
                 .max = 1000,
                 .doc = "added to a score before the value's effect multiplies it"},
    [FIRST_STAGE] = {.name = "first_stage_ratio",
                     .type = PD_PARAM_FLOAT,
                     .def = 0.5,
                     .min = 0,
                     .max = 1,
                     .doc = "share of the budget that goes by the child's score alone"},
};

const pd_press pd_press_critical = {
    .name = "critical",
    .reference_class = "CriticalKVPress",
    .kind = "wrapper",
    .source = "arXiv 2502.03805",
    .doc = "Weighs a press' scores by what a value does to the output, after a first choice "
           "without.",
    .ratio_doc = "the child's",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_SCORE | PD_CAN_SCORE_STEP | PD_CAN_SCORE_RAGGED | PD_CAN_PRUNE_STEP,
    .min_child = 1,
    .max_child = 1,
    .child_must = PD_CAN_SCORE,
    .needs = needs,
    .score = score,
};
