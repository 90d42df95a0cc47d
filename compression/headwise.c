/* SPDX-License-Identifier: Apache-2.0 */
/* One budget for all heads of a layer (see headwise.h). */
#include "compression/headwise.h"

#include "compression/shared.h"
#include "engine/base/num.h"

#include <float.h>

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

/* Lift the best slots of head h above all unsaved ones; adds how many slots now
 * must stay (saved or protected). */
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

pd_status pd__share_layer(const pd_press_inst *child, const pd_view *view, const pd_budget *budget,
                          double alpha, size_t **n_keep, float ***score, pd_err *err) {
    const size_t heads = view->n_head_kv;
    size_t have = 0, total = layer_total(view, budget), n_must = 0;
    for (size_t h = 0; h < heads; h++) have += view->n_h[h];
    *score = NULL;
    *n_keep = NULL;
    if (total == have) return PD_OK;
    /* One array, the heads one after the other, so that the layer's choice is one
     * top-k: ties go to the lower (head, slot). */
    float *all = PD_ARENA_NEW(view->tmp, have, float);
    float **s = PD_ARENA_NEW(view->tmp, heads, float *);
    uint32_t *flat = PD_ARENA_NEW(view->tmp, have, uint32_t);
    size_t *n = pd_arena_zalloc(view->tmp, heads, sizeof *n);
    if (!all || !s || !flat || !n || have > UINT32_MAX)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to rank %zu slots", have);
    for (size_t h = 0, at = 0; h < heads; at += view->n_h[h++]) s[h] = all + at;
    PD_TRY(pd_press_score(child, view, s, err));
    for (size_t h = 0; h < heads; h++)
        PD_TRY(save_best(view, budget, alpha, h, s[h], flat, &n_must, err));
    total = pd_max_size(total, n_must);
    PD_TRY(pd_top_k(all, have, total, flat, view->tmp, err));
    for (size_t h = 0, i = 0, first = 0; h < heads; first += view->n_h[h++])
        for (; i < total && flat[i] - first < view->n_h[h]; i++) n[h]++;
    *n_keep = n;
    *score = s;
    return PD_OK;
}
