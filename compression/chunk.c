/* SPDX-License-Identifier: Apache-2.0 */
/* chunk: prune each chunk of the text for itself.
 *
 * kvpress' ChunkPress, after FINCH (Corallo, Papotti 2024, TACL a_00716): the
 * slots in chunks of chunk_length; the child scores a chunk as if it were the
 * whole text, and each chunk keeps its own n_kept best.
 *
 * DIFFERS: the reference hands the child a chunk's hidden states but the rotations
 * of the context's end, and a chunk's length for its position: a window's queries
 * stand at wrong places, every chunk has sinks of its own, the future begins
 * inside the text.  Here a chunk stands at its true positions (subview.h).
 * DIFFERS: a last chunk too short for the child fails there; here it joins the
 * chunk before it.
 * A budget by count is shared among the chunks by their lengths, exactly.
 * Cost: the child's on each chunk; moments of queries anew for each chunk. */
#include "compression/shared.h"
#include "compression/subview.h"

#include "engine/base/num.h"

enum { LENGTH };

typedef struct {
    size_t n, length, count;
} chunks;

static chunks chunks_of(const pd_press_inst *inst, size_t n) {
    const size_t length = (size_t)inst->p[LENGTH];
    return (chunks){n, length, pd__chunk_count(n, length, pd_press_min_tokens(inst->child[0]))};
}

/* Slots each head keeps of chunk [begin, end): its share, or what is protected. */
static size_t keep_of(const pd_view *view, const pd_budget *budget, size_t h, size_t begin,
                      size_t end) {
    size_t n_protected = 0;
    for (size_t i = begin; view->protect && view->protect[h] && i < end; i++)
        n_protected += view->protect[h][i] != 0;
    return pd_max_size(pd__chunk_keep(budget, view->n, begin, end), n_protected);
}

/* The best of chunk [begin, end) behind the `at[h]` slots of the plan so far. */
static pd_status plan_chunk(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                            size_t begin, size_t end, pd_arena *tmp, size_t *at, pd_plan *plan,
                            pd_err *err) {
    pd_view sub;
    PD_TRY(pd__view_slice(view, begin, end - begin, tmp, &sub, err));
    if (budget->by_count) sub.budget.count = pd__chunk_keep(budget, view->n, begin, end);
    float **score = pd_scores_new(&sub);
    if (!score)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the scores of %zu tokens", sub.n);
    PD_TRY(pd_press_score(inst->child[0], &sub, score, err));
    for (size_t h = 0; h < view->n_head_kv; h++) {
        const size_t keep = keep_of(view, budget, h, begin, end);
        uint32_t *slot = plan->keep[h] + at[h];
        if (keep > 0) PD_TRY(pd_top_k(score[h], end - begin, keep, slot, tmp, err));
        for (size_t i = 0; i < keep; i++) slot[i] += (uint32_t)begin;
        at[h] += keep;
    }
    return PD_OK;
}

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                      pd_plan *ret, pd_err *err) {
    const chunks c = chunks_of(inst, view->n);
    size_t *n_keep = pd_arena_zalloc(view->tmp, view->n_head_kv, sizeof *n_keep),
           *at = pd_arena_zalloc(view->tmp, view->n_head_kv, sizeof *at);
    if (!n_keep || !at)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for a plan of %zu heads", view->n_head_kv);
    for (size_t h = 0; h < view->n_head_kv; h++)
        for (size_t i = 0; i < c.count; i++)
            n_keep[h] += keep_of(view, budget, h, i * c.length,
                                 pd__chunk_end(c.n, c.length, c.count, i));
    pd_plan plan;
    PD_TRY(pd__plan_new(view, n_keep, &plan, err));
    pd_arena tmp = {0}; /* of one chunk: the call's would hold all of them */
    pd_status rc = PD_OK;
    for (size_t i = 0; i < c.count && rc == PD_OK; i++) {
        pd_arena_reset(&tmp);
        rc = plan_chunk(inst, view, budget, i * c.length,
                        pd__chunk_end(c.n, c.length, c.count, i), &tmp, at, &plan, err);
    }
    pd_arena_done(&tmp);
    if (rc == PD_OK) *ret = plan;
    return rc;
}

static size_t most(const pd_press_inst *inst, const pd_budget *budget, size_t layer, size_t n) {
    const chunks c = chunks_of(inst, n);
    size_t keep = 0;
    for (size_t i = 0; i < c.count; i++)
        keep += pd__chunk_keep(budget, n, i * c.length, pd__chunk_end(n, c.length, c.count, i));
    return keep;
}

/* A chunk's own queries, wherever it lies. */
static void needs(const pd_press_inst *inst, pd_press_needs *n) {
    pd_press_needs child;
    pd_press_collect_needs(inst->child[0], &child);
    if (child.bits & (PD_NEEDS_Q_TAIL | PD_NEEDS_Q_MEAN | PD_NEEDS_Q_COV))
        n->bits |= PD_NEEDS_Q_ALL;
}

static pd_status check(const pd_press_inst *inst, const struct pd_press_model *model,
                       const char *path, pd_err *err) {
    const size_t length = (size_t)inst->p[LENGTH], least = pd_press_min_tokens(inst->child[0]);
    if (length >= least) return PD_OK;
    return pd_fail(err, PD_EINVAL, path,
                   "%s: parameter 'chunk_length' of 'chunk' must be at least %zu for '%s', not %zu",
                   path, least, inst->child[0]->press->name, length);
}

static const pd_param params[] = {
    [LENGTH] = {.name = "chunk_length",
                .type = PD_PARAM_INT,
                .def = 1024,
                .min = 1,
                .max = 1 << 20,
                .doc = "tokens of a chunk"},
};

const pd_press pd_press_chunk = {
    .name = "chunk",
    .reference_class = "ChunkPress",
    .kind = "wrapper",
    .source = "kvpress (FINCH, TACL a_00716)",
    .doc = "Prunes each chunk of the text for itself, so that no stretch loses everything.",
    .ratio_doc = "the child's, in each chunk",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_COMPOSE,
    .min_child = 1,
    .max_child = 1,
    .child_must = PD_CAN_SCORE,
    .check = check,
    .needs = needs,
    .plan = plan,
    .most = most,
};
