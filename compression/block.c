/* SPDX-License-Identifier: Apache-2.0 */
/* block: prune as if the text came block by block.
 *
 * kvpress' BlockPress, after KeyDiff (Park et al. 2025, arXiv 2504.15364): the first
 * n_kept slots are held; each further block of block_size slots joins them, the
 * child scores what is there, and its n_kept best are held on.  For a score that
 * looks at one token alone that is the plain choice.
 *
 * DIFFERS: the reference splits the hidden states among the KV heads so that each
 * head can gather its own, which mixes their rows: a child that looks at queries
 * sees nonsense.  Here a child must score by keys, values and positions alone.
 * DIFFERS: held slots are in time order, in the reference in the order of their
 * scores.  No child that asks for nothing but keys and values should care.
 * Cost: (L - n_kept) / block_size times the child's on n_kept + block_size slots. */
#include "compression/shared.h"
#include "compression/subview.h"

#include "engine/base/num.h"

enum { SIZE };

/* What is held, and then the next block: [H][n_keep + size]. */
typedef struct {
    const pd_press_inst *child;
    const pd_view *view;
    size_t n_keep;
    uint32_t **slot;
    pd_arena tmp; /* of one block: the call's would hold all of them */
} job;

/* The best n_keep of what is held and the block [begin, end). */
static pd_status add_block(job *j, size_t begin, size_t end, pd_err *err) {
    const size_t heads = j->view->n_head_kv, n = j->n_keep + end - begin;
    pd_arena_reset(&j->tmp);
    size_t *n_h = PD_ARENA_NEW(&j->tmp, heads, size_t);
    uint32_t *best = PD_ARENA_NEW(&j->tmp, j->n_keep, uint32_t);
    if (!n_h || !best) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a block");
    for (size_t h = 0; h < heads; h++) {
        n_h[h] = n;
        for (size_t i = begin; i < end; i++) j->slot[h][j->n_keep + i - begin] = (uint32_t)i;
    }
    pd_view sub;
    PD_TRY(pd__view_gather(j->view, n_h, j->slot, NULL, &j->tmp, &sub, err));
    float **score = pd_scores_new(&sub);
    if (!score) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the scores of %zu tokens", n);
    PD_TRY(pd_press_score(j->child, &sub, score, err));
    for (size_t h = 0; h < heads; h++) {
        PD_TRY(pd_top_k(score[h], n, j->n_keep, best, &j->tmp, err));
        /* best[i] >= i: nothing is overwritten before it is read */
        for (size_t i = 0; i < j->n_keep; i++) j->slot[h][i] = j->slot[h][best[i]];
    }
    return PD_OK;
}

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                      pd_plan *ret, pd_err *err) {
    const size_t heads = view->n_head_kv, size = (size_t)inst->p[SIZE];
    size_t *n_keep = PD_ARENA_NEW(view->tmp, heads, size_t);
    job j = {.child = inst->child[0],
             .view = view,
             .n_keep = pd_budget_keep(budget, view->n),
             .slot = PD_ARENA_NEW(view->tmp, heads, uint32_t *)};
    for (size_t h = 0; h < heads; h++)
        j.n_keep = pd_max_size(j.n_keep, pd__n_protected(view, h));
    for (size_t h = 0; n_keep && j.slot && h < heads; h++) {
        n_keep[h] = j.n_keep;
        j.slot[h] = PD_ARENA_NEW(view->tmp, j.n_keep + pd_min_size(size, view->n), uint32_t);
        for (size_t i = 0; j.slot[h] && i < j.n_keep; i++) j.slot[h][i] = (uint32_t)i;
        if (!j.slot[h]) j.slot = NULL;
    }
    if (!n_keep || !j.slot)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for a plan of %zu heads", heads);
    pd_status rc = PD_OK;
    for (size_t i = j.n_keep; i < view->n && rc == PD_OK; i += size)
        rc = add_block(&j, i, pd_min_size(view->n, i + size), err);
    pd_arena_done(&j.tmp);
    PD_TRY(rc);
    PD_TRY(pd__plan_new(view, n_keep, ret, err));
    for (size_t h = 0; h < heads; h++)
        for (size_t i = 0; i < j.n_keep; i++) ret->keep[h][i] = j.slot[h][i];
    return PD_OK;
}

static const pd_param params[] = {
    [SIZE] = {.name = "block_size",
              .type = PD_PARAM_INT,
              .def = 128,
              .min = 16,
              .max = 1 << 20,
              .doc = "tokens that join what is held before the next choice"},
};

const pd_press pd_press_block = {
    .name = "block",
    .reference_class = "BlockPress",
    .kind = "wrapper",
    .source = "arXiv 2504.15364",
    .doc = "Prunes as if the text came block by block, never seeing more than the kept and one "
           "block.",
    .ratio_doc = "the child's",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_COMPOSE,
    .min_child = 1,
    .max_child = 1,
    .child_must = PD_CAN_SCORE | PD_CAN_SCORE_PART,
    .plan = plan,
};
