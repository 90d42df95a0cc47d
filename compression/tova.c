/* SPDX-License-Identifier: Apache-2.0 */
/* tova: keep what the last query attended to, the same tokens for all heads.
 *
 * Oren et al. 2024 (arXiv 2401.06104); kvpress' TOVAPress: the attention of the
 * last token, averaged over all query heads and given to every KV head; the last
 * token itself gets the largest score + 1.
 *
 * The average is taken by position, not by slot: a head that has evicted a token
 * gives it no attention, so heads of different lengths agree on a token's score.
 * Cost: Hq * L * D multiply-adds. */
#include "compression/shared.h"

#include "engine/base/num.h"

static pd_status score(const pd_press_inst *inst, const pd_view *view, float *const *score,
                       pd_err *err) {
    const size_t n_group = view->n_head / view->n_head_kv;
    const float share = 1.0f / (float)view->n_head;
    float **attention = pd__query_head_rows(view);
    size_t n_pos = 0; /* slots are in time order: the last one stands farthest */
    for (size_t h = 0; h < view->n_head_kv; h++)
        if (view->n_h[h] > 0)
            n_pos = pd_max_size(n_pos, (size_t)view->pos[h][view->n_h[h] - 1] + 1);
    float *by_pos = pd_arena_zalloc(view->tmp, n_pos, sizeof *by_pos);
    if (!attention || !by_pos)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to score %zu tokens", view->n);
    PD_TRY(pd__window_attention(view, 1, attention, err));
    for (size_t q = 0; q < view->n_head; q++) {
        const size_t h = q / n_group;
        for (size_t i = 0; i < view->n_h[h]; i++) by_pos[view->pos[h][i]] += attention[q][i];
    }
    for (size_t h = 0; h < view->n_head_kv; h++)
        for (size_t i = 0; i < view->n_h[h]; i++) score[h][i] = by_pos[view->pos[h][i]] * share;
    pd__raise_positions(view, score, view->q_pos[view->q_rows - 1], INT64_MAX);
    return PD_OK;
}

static void needs(const pd_press_inst *inst, pd_press_needs *n) {
    pd__need_q_tail(n, 1);
}

static size_t min_tokens(const pd_press_inst *inst) {
    return 2;
}

const pd_press pd_press_tova = {
    .name = "tova",
    .reference_class = "TOVAPress",
    .kind = "scorer",
    .source = "arXiv 2401.06104",
    .doc = "Keeps what the last query attended to; all heads keep the same tokens.",
    .ratio_doc = "its own",
    .can = PD_CAN_SCORE | PD_CAN_SCORE_STEP | PD_CAN_SCORE_RAGGED | PD_CAN_PRUNE_STEP,
    .needs = needs,
    .min_tokens = min_tokens,
    .score = score,
};
