/* SPDX-License-Identifier: Apache-2.0 */
/* knorm: keep the keys of smallest L2 norm.
 *
 * Devoto et al. 2024 (arXiv 2406.11430) see that low-norm keys draw most
 * attention; the score is minus the norm, as in kvpress' KnormPress.  RoPE is a
 * rotation, so the rotated keys of the cache serve as well as the raw ones.
 * Cost: one pass over K, H*L*D multiply-adds. */
#include "compression/shared.h"

static void negate(void *ctx, const pd_view *view, size_t h, size_t first, size_t n,
                   unsigned thread) {
    float *s = ((float *const *)ctx)[h];
    for (size_t i = first; i < first + n; i++) s[i] = -s[i];
}

static pd_status score(const pd_press_inst *inst, const pd_view *view, float *const *score,
                       pd_err *err) {
    pd__row_norms(view, view->k, score);
    pd__for_tiles(view, negate, (void *)score);
    return PD_OK;
}

const pd_press pd_press_knorm = {
    .name = "knorm",
    .reference_class = "KnormPress",
    .kind = "scorer",
    .source = "arXiv 2406.11430",
    .doc = "Keeps the keys of smallest norm.",
    .ratio_doc = "its own",
    .can = PD_CAN_SCORE | PD_CAN_SCORE_STEP | PD_CAN_SCORE_RAGGED | PD_CAN_PRUNE_STEP | PD_CAN_SCORE_ALONE,
    .score = score,
};
