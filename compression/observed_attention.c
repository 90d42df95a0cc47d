/* SPDX-License-Identifier: Apache-2.0 */
/* observed_attention: keep what the text itself attended to.
 *
 * kvpress' ObservedAttentionPress, related to H2O (Zhang et al. 2023, arXiv
 * 2306.14048): the attention a slot got from all queries of the text, summed, over
 * the number of queries that could see it; averaged over the query heads of a KV
 * head.  Prefill collects the sums (one more pass over Q K^T, not counted here);
 * there are none while decoding.
 * Cost: Hq * L adds. */
#include "compression/shared.h"

typedef struct {
    size_t n_group;
    float *const *score;
} job;

static void tile(void *ctx, const pd_view *view, size_t h, size_t first, size_t n,
                 unsigned thread) {
    const job *j = ctx;
    float *out = j->score[h];
    for (size_t i = first; i < first + n; i++) out[i] = 0.0f;
    for (size_t q = h * j->n_group; q < (h + 1) * j->n_group; q++)
        view->kern->axpy_f32(1.0f, view->att_sum + q * view->n + first, out + first, n);
    for (size_t i = first; i < first + n; i++)
        out[i] /= (float)(j->n_group * (view->n_seen - (size_t)view->pos[h][i]));
}

static pd_status score(const pd_press_inst *inst, const pd_view *view, float *const *score,
                       pd_err *err) {
    if (!view->att_sum)
        return pd_fail(err, PD_EINTERNAL, NULL, "no attention sums were collected for layer %d",
                       view->layer);
    job j = {view->n_head / view->n_head_kv, score};
    pd__for_tiles(view, tile, &j);
    return PD_OK;
}

static void needs(const pd_press_inst *inst, pd_press_needs *n) {
    n->bits |= PD_NEEDS_ATT_SUM;
}

const pd_press pd_press_observed_attention = {
    .name = "observed_attention",
    .reference_class = "ObservedAttentionPress",
    .kind = "scorer",
    .source = "arXiv 2306.14048",
    .doc = "Keeps the pairs that the text's own queries attended to most.",
    .ratio_doc = "its own",
    .can = PD_CAN_SCORE,
    .needs = needs,
    .score = score,
};
