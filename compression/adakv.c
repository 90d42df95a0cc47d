/* SPDX-License-Identifier: Apache-2.0 */
/* adakv: one budget for all heads of a layer, spent on the best scores.
 *
 * Feng et al. 2024 (arXiv 2407.11550); kvpress' AdaKVPress.  Each head first
 * saves its best int(n_kept * alpha_safeguard) slots; the rest of the layer's
 * H * n_kept goes to the best scores of all heads together.  Heads end with
 * different lengths, the layer's total is fixed.
 *
 * DIFFERS: the reference masks the evicted pairs and keeps their memory; here
 * they are gone.  Each head keeps at least one slot also with alpha_safeguard 0.
 * Heads that differ in length already (decoding): the total is H * count, or the
 * sum of what each head would keep by ratio, and the safeguard is taken of each
 * head's own share.
 * Cost: two top-k passes over H * L scores. */
#include "compression/shared.h"

#include "engine/base/num.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { ALPHA };

/* Slots that may stay in the whole layer. */
static size_t layer_total(const pd_view *view, const pd_budget *budget) {
    size_t have = 0, total = 0;
    for (size_t h = 0; h < view->n_head_kv; h++) {
        have += view->n_h[h];
        total += pd_budget_keep(budget, view->n_h[h]);
    }
    if (budget->by_count && !pd_mul_size(pd_max_size(budget->count, 1), view->n_head_kv, &total))
        return have;
    return pd_min_size(total, have);
}

/* Lift the best slots of head h above all unsaved ones; returns how many slots
 * now must stay (saved or protected). */
static pd_status save_best(const pd_view *view, const pd_budget *budget, double alpha, size_t h,
                           float *score, uint32_t *best, size_t *n_must, pd_err *err) {
    const size_t n = view->n_h[h];
    size_t safe = (size_t)((double)pd_budget_keep(budget, n) * alpha);
    if (safe == 0) safe = 1;
    PD_TRY(pd_top_k(score, n, safe, best, view->tmp, err));
    size_t n_protected_saved = 0;
    for (size_t i = 0; i < safe; i++) {
        if (score[best[i]] > FLT_MAX)
            n_protected_saved++;
        else
            score[best[i]] = FLT_MAX;
    }
    *n_must += safe + pd_max_size(pd__n_protected(view, h), n_protected_saved) - n_protected_saved;
    return PD_OK;
}

/* The flat selection cut into heads again. */
static pd_status plan_of_flat(const pd_view *view, const uint32_t *flat, size_t total, pd_plan *ret,
                              pd_err *err) {
    size_t *n_keep = pd_arena_zalloc(view->tmp, view->n_head_kv, sizeof *n_keep);
    if (!n_keep)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for a plan of %zu heads", view->n_head_kv);
    size_t first = 0;
    for (size_t h = 0, i = 0; h < view->n_head_kv; first += view->n_h[h++])
        for (; i < total && flat[i] - first < view->n_h[h]; i++) n_keep[h]++;
    PD_TRY(pd__plan_new(view, n_keep, ret, err));
    first = 0;
    for (size_t h = 0, i = 0; h < view->n_head_kv; first += view->n_h[h++])
        for (size_t s = 0; s < n_keep[h]; s++) ret->keep[h][s] = flat[i++] - (uint32_t)first;
    return PD_OK;
}

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                      pd_plan *ret, pd_err *err) {
    size_t have = 0, total = layer_total(view, budget), n_must = 0;
    for (size_t h = 0; h < view->n_head_kv; h++) have += view->n_h[h];
    if (total == have) {
        *ret = (pd_plan){.keep_all = true};
        return PD_OK;
    }
    /* One array, the heads one after the other, so that the layer's choice is one
     * top-k: ties go to the lower (head, slot). */
    float *all = PD_ARENA_NEW(view->tmp, have, float);
    float **score = PD_ARENA_NEW(view->tmp, view->n_head_kv, float *);
    uint32_t *flat = PD_ARENA_NEW(view->tmp, have, uint32_t);
    if (!all || !score || !flat || have > UINT32_MAX)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to rank %zu slots", have);
    for (size_t h = 0, at = 0; h < view->n_head_kv; at += view->n_h[h++]) score[h] = all + at;
    PD_TRY(pd_press_score(inst->child[0], view, score, err));
    for (size_t h = 0; h < view->n_head_kv; h++)
        PD_TRY(save_best(view, budget, inst->p[ALPHA], h, score[h], flat, &n_must, err));
    total = pd_max_size(total, n_must);
    PD_TRY(pd_top_k(all, have, total, flat, view->tmp, err));
    return plan_of_flat(view, flat, total, ret, err);
}

static const pd_param params[] = {
    [ALPHA] = {.name = "alpha_safeguard",
               .type = PD_PARAM_FLOAT,
               .def = 0.2,
               .min = 0,
               .max = 1,
               .doc = "share of its equal part that each head keeps in any case"},
};

const pd_press pd_press_adakv = {
    .name = "adakv",
    .reference_class = "AdaKVPress",
    .kind = "wrapper",
    .source = "arXiv 2407.11550",
    .doc = "Shares one budget among the heads of a layer by their scores.",
    .ratio_doc = "the child's",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_PRUNE_STEP,
    .min_child = 1,
    .max_child = 1,
    .child_must = PD_CAN_SCORE,
    .plan = plan,
};
