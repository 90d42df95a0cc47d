/* SPDX-License-Identifier: Apache-2.0 */
/* chunkkv: keep or drop whole chunks of neighbouring tokens.
 *
 * Liu et al. 2025 (arXiv 2502.00299); kvpress' ChunkKVPress.  The child scores all
 * slots once; a token's score is the sum over the KV heads, a chunk's the mean over
 * its tokens (the last chunk may be shorter).  The best max(1, int(chunks * (1 -
 * ratio))) chunks stay, in every head.  A text shorter than one chunk is pruned
 * token by token, as the child would.
 *
 * Of a budget by count the best chunks stay, the last of them cut to its best
 * tokens, so that it is spent exactly.  Chunks with protected tokens rank first;
 * if they are more than stay, the others keep their protected tokens.
 * Cost: the child's, and a sort of the chunks. */
#include "compression/chunk_rank.h"
#include "compression/shared.h"

#include "engine/base/num.h"

#include <math.h>

enum { LENGTH };

static size_t chunks_kept(const pd_budget *budget, size_t n, size_t length) {
    return pd_budget_keep(&(pd_budget){.ratio = budget->ratio}, pd_div_up(n, length));
}

static pd_status plan_tokens(const pd_press_inst *inst, const pd_view *view,
                             const pd_budget *budget, pd_plan *ret, pd_err *err) {
    float **score = pd_scores_new(view);
    if (!score)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the scores of %zu tokens", view->n);
    PD_TRY(pd_press_score(inst->child[0], view, score, err));
    return pd__plan_top(view, budget, (const float *const *)score, true, ret, err);
}

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                      pd_plan *ret, pd_err *err) {
    const size_t length = (size_t)inst->p[LENGTH];
    if (view->n < length) return plan_tokens(inst, view, budget, ret, err);
    float *token;
    uint8_t *must, *keep = pd_arena_zalloc(view->tmp, view->n, 1);
    pd__chunk *chunk;
    size_t n_chunk;
    if (!keep) return pd_fail(err, PD_ENOMEM, NULL, "no memory to rank %zu tokens", view->n);
    PD_TRY(pd__token_scores(inst->child[0], view, &token, &must, err));
    PD_TRY(pd__chunks_by_mean(token, must, view->n, length, true, view->tmp, &chunk, &n_chunk,
                              err));
    for (size_t i = 0; i < view->n; i++) keep[i] = must[i];
    if (!budget->by_count) {
        for (size_t c = 0; c < chunks_kept(budget, view->n, length); c++)
            for (size_t i = chunk[c].begin; i < chunk[c].end; i++) keep[i] = 1;
        return pd__plan_marked(view, keep, ret, err);
    }
    size_t left = pd_budget_keep(budget, view->n);
    for (size_t i = 0; i < view->n && left > 0; i++) left -= must[i];
    for (size_t c = 0; c < n_chunk && left > 0; c++) {
        size_t got;
        PD_TRY(pd__mark_best(token, chunk[c].begin, chunk[c].end, left, keep, view->tmp, &got,
                             err));
        left -= got;
    }
    return pd__plan_marked(view, keep, ret, err);
}

static size_t most(const pd_press_inst *inst, const pd_budget *budget, size_t layer, size_t n) {
    const size_t length = (size_t)inst->p[LENGTH];
    if (budget->by_count || n < length) return pd_budget_keep(budget, n);
    return chunks_kept(budget, n, length) * length;
}

static const pd_param params[] = {
    [LENGTH] = {.name = "chunk_length",
                .type = PD_PARAM_INT,
                .def = 20,
                .min = 1,
                .max = 1 << 20,
                .doc = "tokens that stay or go together"},
};

const pd_press pd_press_chunkkv = {
    .name = "chunkkv",
    .reference_class = "ChunkKVPress",
    .kind = "wrapper",
    .source = "arXiv 2502.00299",
    .doc = "Keeps the chunks of neighbouring tokens that the child's scores favour, whole.",
    .ratio_doc = "the child's, of the chunks",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_COMPOSE,
    .min_child = 1,
    .max_child = 1,
    .child_must = PD_CAN_SCORE,
    .plan = plan,
    .most = most,
};
