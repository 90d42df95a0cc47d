/* SPDX-License-Identifier: Apache-2.0 */
/* From scores to plans, and the arithmetic of budgets (see shared.h, press.h). */
#include "compression/shared.h"

#include "engine/base/num.h"

#include <string.h>

size_t pd_budget_keep(const pd_budget *b, size_t n) {
    size_t keep;
    if (b->by_count) {
        keep = b->count;
    } else {
        /* In double and truncated, as the reference: 1000 at 0.9 keeps 99. */
        const double left = (double)n * (1.0 - b->ratio);
        keep = left > 0.0 ? (size_t)left : 0;
    }
    if (keep == 0) keep = 1;
    return pd_min_size(keep, n);
}

double pd_budget_ratio(const pd_budget *b, size_t n) {
    if (!b->by_count) return b->ratio;
    return n == 0 ? 0.0 : 1.0 - (double)pd_budget_keep(b, n) / (double)n;
}

pd_budget pd_decode_budget(const pd_decode_rule *rule, size_t n_seen) {
    if (rule->budget.by_count) return rule->budget;
    return (pd_budget){.by_count = true, .count = pd_budget_keep(&rule->budget, n_seen)};
}

size_t pd__n_protected(const pd_view *view, size_t h) {
    if (!view->protect || !view->protect[h]) return 0;
    size_t n = 0;
    for (size_t i = 0; i < view->n_h[h]; i++) n += view->protect[h][i] != 0;
    return n;
}

pd_status pd__plan_new(const pd_view *view, const size_t *n_keep, pd_plan *ret, pd_err *err) {
    const size_t n_head = view->n_head_kv;
    pd_plan p = {0};
    p.n_keep = PD_ARENA_NEW(view->tmp, n_head, size_t);
    p.keep = PD_ARENA_NEW(view->tmp, n_head, uint32_t *);
    if (!p.n_keep || !p.keep) goto no_memory;
    memcpy(p.n_keep, n_keep, n_head * sizeof *n_keep);
    for (size_t h = 0; h < n_head; h++) {
        p.keep[h] = PD_ARENA_NEW(view->tmp, n_keep[h], uint32_t);
        if (!p.keep[h]) goto no_memory;
    }
    *ret = p;
    return PD_OK;
no_memory:
    return pd_fail(err, PD_ENOMEM, NULL, "no memory for a plan of %zu heads", n_head);
}

pd_status pd__plan_top(const pd_view *view, const pd_budget *budget, const float *const *score,
                       bool equal, pd_plan *ret, pd_err *err) {
    const size_t n_head = view->n_head_kv;
    size_t *n_keep = PD_ARENA_NEW(view->tmp, n_head, size_t), most = 0;
    if (!n_keep) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a plan of %zu heads", n_head);
    for (size_t h = 0; h < n_head; h++) {
        n_keep[h] = pd_max_size(pd_budget_keep(budget, view->n_h[h]), pd__n_protected(view, h));
        most = pd_max_size(most, n_keep[h]);
    }
    for (size_t h = 0; equal && h < n_head; h++) n_keep[h] = pd_min_size(most, view->n_h[h]);
    pd_plan plan;
    PD_TRY(pd__plan_new(view, n_keep, &plan, err));
    for (size_t h = 0; h < n_head; h++)
        PD_TRY(pd_top_k(score[h], view->n_h[h], n_keep[h], plan.keep[h], view->tmp, err));
    *ret = plan;
    return PD_OK;
}
