/* SPDX-License-Identifier: Apache-2.0 */
/* critical_adakv: adakv's budgets, and in each head what moves the output most.
 *
 * Feng et al. 2025 (arXiv 2502.03805); kvpress' CriticalAdaKVPress.  Each head gets
 * the budget B that adakv would give it.  Its best int(B * first_stage_ratio) by
 * the child's score stay (and what adakv's safeguard saved); the rest of B goes to
 * the best (score + epsilon) * |Wo v|_1 (value_effect.h).
 *
 * With children whose scores are negative (knorm, keydiff) a large value effect
 * lowers the second score, as in the reference.
 * DIFFERS: as adakv: pairs are evicted, not masked, and each head keeps one slot
 * at least.
 * Cost: the child's and the layer's output projection of all cached values. */
#include "compression/headwise.h"
#include "compression/shared.h"
#include "compression/value_effect.h"

enum { ALPHA, EPSILON, FIRST_STAGE };

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                      pd_plan *ret, pd_err *err) {
    size_t *n_keep;
    float **score, **effect = pd_scores_new(view);
    uint32_t *best = PD_ARENA_NEW(view->tmp, view->n, uint32_t);
    if (!effect || !best)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to rank %zu tokens", view->n);
    PD_TRY(pd__share_layer(inst->child[0], view, budget, inst->p[ALPHA], &n_keep, &score, err));
    if (!score) {
        *ret = (pd_plan){.keep_all = true};
        return PD_OK;
    }
    PD_TRY(pd__value_effect(view, effect, err));
    PD_TRY(pd__plan_new(view, n_keep, ret, err));
    for (size_t h = 0; h < view->n_head_kv; h++) {
        const size_t first = (size_t)((double)n_keep[h] * inst->p[FIRST_STAGE]);
        PD_TRY(pd__weigh_by_effect(view, h, first, (float)inst->p[EPSILON], effect[h], score[h],
                                   best, err));
        PD_TRY(pd_top_k(score[h], view->n_h[h], n_keep[h], ret->keep[h], view->tmp, err));
    }
    return PD_OK;
}

static void needs(const pd_press_inst *inst, pd_press_needs *n) {
    n->bits |= PD_NEEDS_WO;
}

static const pd_param params[] = {
    [ALPHA] = {.name = "alpha_safeguard",
               .type = PD_PARAM_FLOAT,
               .def = 0.2,
               .min = 0,
               .max = 1,
               .doc = "share of its equal part that each head keeps in any case"},
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
                     .doc = "share of a head's budget that goes by the child's score alone"},
};

const pd_press pd_press_critical_adakv = {
    .name = "critical_adakv",
    .reference_class = "CriticalAdaKVPress",
    .kind = "wrapper",
    .source = "arXiv 2502.03805",
    .doc = "Shares one budget among the heads, then weighs scores by what a value does to the "
           "output.",
    .ratio_doc = "the child's",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_PRUNE_STEP | PD_CAN_SCORE_RAGGED,
    .min_child = 1,
    .max_child = 1,
    .child_must = PD_CAN_SCORE,
    .needs = needs,
    .plan = plan,
};
