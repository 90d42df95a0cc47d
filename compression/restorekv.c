/* SPDX-License-Identifier: Apache-2.0 */
/* restorekv: kvzip, and a few trained tokens that fill in for what goes.
 *
 * RestoreKV (arXiv 2608.01247); kvpress' RestoreKVPress.  kvzip's scores, plus variant or
 * not.  Then m trained rows (8 as published) run once over the full cache of L tokens, at
 * positions L .. L + m - 1 and with a trained low-rank adapter in the projections; their keys
 * and values stay in every layer and head.  Then kvzip's eviction at ratio
 *
 *     min(1, ratio + m / L)
 *
 * so that both together hold the budget; what follows stands from position L + m on.  A
 * count per head is of both together too.  Rows and adapter are press data, of either
 * variant its own.
 * DIFFERS: evicted pairs are gone, not masked.  A context of m tokens or fewer is served
 * unpressed.  Layers with a sliding window get the m pairs too, where they are tokens like any
 * others.  Presses that prune while tokens are generated leave the m pairs in place (kvpress'
 * take them like any).
 * Cost: kvzip's, and a forward pass of m rows. */
#include "compression/kvzip.h"
#include "compression/press_data.h"

#include "engine/base/num.h"

#include <math.h>

static int data_set(const pd_press_inst *inst, unsigned have) {
    (void)have;
    return inst->p[PD__KVZIP_PLUS] != 0.0 ? PD_SET_RESTORE_PLUS : PD_SET_RESTORE;
}

static void added(const pd_press_inst *inst, pd_added *ret) {
    pd_press_data_added(inst->data, (pd_data_set)data_set(inst, 0), ret);
}

static size_t n_added(const pd_press_inst *inst) {
    pd_added a;
    added(inst, &a);
    return a.n;
}

static size_t min_tokens(const pd_press_inst *inst) {
    return n_added(inst) + 1;
}

/* kvzip's budget is what the added rows leave of ours. */
static pd_status decide(const pd_press_inst *inst, pd_context *c, const pd_budget *budget, pd_plan *plan, pd_err *err) {
    const size_t m = n_added(inst);
    pd_budget left = *budget;
    left.ratio = fmin(1.0, budget->ratio + (double)m / (double)c->n);
    left.count = budget->count - pd_min_size(m, budget->count);
    return pd__kvzip_decide(inst, c, &left, plan, err);
}

/* One slot of the context in every head at least, beside the added ones. */
static size_t most(const pd_press_inst *inst, const pd_budget *budget, size_t layer, size_t n) {
    (void)layer;
    return pd_max_size(pd_budget_keep(budget, n), n_added(inst) + 1);
}

static const pd_deferred deferred = {.most_rows = pd__kvzip_most_rows, .open = pd__kvzip_open, .ids = pd__kvzip_ids,
                                     .rows = pd__kvzip_rows, .added = added, .decide = decide};

const pd_press pd_press_restorekv = {
    .name = "restorekv",
    .reference_class = "RestoreKVPress",
    .kind = "planner",
    .source = "arXiv 2608.01247",
    .doc = "kvzip, and a few trained tokens run over the whole cache that fill in for what goes (press data).",
    .ratio_doc = "its own, of what stays and what fills in together",
    .params = pd__kvzip_params,
    .n_params = PD__KVZIP_PARAMS,
    .can = PD_CAN_DEFER,
    .data_set = data_set,
    .needs = pd__kvzip_needs,
    .min_tokens = min_tokens,
    .most = most,
    .deferred = &deferred,
};
