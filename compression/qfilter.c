/* SPDX-License-Identifier: Apache-2.0 */
/* qfilter: keep the keys that lie along the direction most queries point to.
 *
 * Godey et al. 2025 (arXiv 2503.02812); kvpress' QFilterPress.  Rotated queries of
 * a head share a main direction u (the first right singular vector); the filter
 * of a KV head is f = -mean(u) over its query heads, and the score of key k is
 * -(f . k).  The filters come from press data.
 * Cost: H*L*D multiply-adds. */
#include "compression/press_data.h"
#include "compression/shared.h"

static int data_set(const pd_press_inst *inst, unsigned have) {
    (void)inst;
    (void)have;
    return PD_SET_QFILTER;
}

typedef struct {
    const float *filters; /* [H][D] of this layer */
    float *const *score;
} job;

static void score_tile(void *ctx, const pd_view *view, size_t h, size_t first, size_t n,
                       unsigned thread) {
    (void)thread;
    const job *j = ctx;
    const size_t d = view->head_dim;
    for (size_t i = first; i < first + n; i++)
        j->score[h][i] = -view->kern->dot_f32(j->filters + h * d, view->k[h] + i * d, d);
}

static pd_status score(const pd_press_inst *inst, const pd_view *view, float *const *score,
                       pd_err *err) {
    (void)err;
    const size_t at = (size_t)view->layer * view->n_head_kv * view->head_dim;
    job j = {pd_press_data_get(inst->data, PD_DATA_QFILTERS) + at, score};
    pd__for_tiles(view, score_tile, &j);
    return PD_OK;
}

const pd_press pd_press_qfilter = {
    .name = "qfilter",
    .reference_class = "QFilterPress",
    .kind = "scorer",
    .source = "arXiv 2503.02812",
    .doc = "Keeps the keys along the main direction of a calibration text's queries (press data).",
    .ratio_doc = "its own",
    .can = PD_CAN_SCORE | PD_CAN_SCORE_STEP | PD_CAN_SCORE_RAGGED | PD_CAN_PRUNE_STEP | PD_CAN_SCORE_ALONE,
    .data_set = data_set,
    .score = score,
};
