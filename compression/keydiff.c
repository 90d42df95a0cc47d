/* SPDX-License-Identifier: Apache-2.0 */
/* keydiff: keep the keys that point away from the mean direction.
 *
 * Park et al. 2025 (arXiv 2504.15364); kvpress' KeyDiffPress: with the anchor
 * a = mean of k / |k|, score = -cos(k, a).  (The paper prunes block by block:
 * that is block(keydiff).)
 * Cost: three passes over K, the last two as gemv. */
#include "compression/shared.h"

#include <cblas.h>
#include <math.h>

/* Floors of the norms, as torch's normalize and cosine_similarity have them. */
static const float norm_floor = 1e-12f, cos_floor = 1e-8f;

typedef struct {
    const pd_view *view;
    float *const *norm;   /* [H][n_h], on entry |k| */
    float *const *weight; /* [H][n_h] */
    float *anchor;        /* [H][D] */
} anchor_job;

static void head_anchor(void *ctx, size_t h, unsigned thread) {
    const anchor_job *j = ctx;
    const size_t n = j->view->n_h[h], d = j->view->head_dim;
    float *a = j->anchor + h * d, *w = j->weight[h];
    for (size_t i = 0; i < n; i++) w[i] = 1.0f / ((float)n * fmaxf(j->norm[h][i], norm_floor));
    cblas_sgemv(CblasRowMajor, CblasTrans, (int)n, (int)d, 1.0f, j->view->k[h], (int)d, w, 1, 0.0f,
                a, 1);
    const float len = fmaxf(sqrtf(j->view->kern->dot_f32(a, a, d)), cos_floor);
    cblas_sgemv(CblasRowMajor, CblasNoTrans, (int)n, (int)d, -1.0f / len, j->view->k[h], (int)d, a,
                1, 0.0f, w, 1);
    for (size_t i = 0; i < n; i++) w[i] /= fmaxf(j->norm[h][i], cos_floor);
}

static pd_status score(const pd_press_inst *inst, const pd_view *view, float *const *score,
                       pd_err *err) {
    anchor_job j = {.view = view, .weight = score};
    j.norm = pd_scores_new(view);
    j.anchor = PD_ARENA_NEW(view->tmp, view->n_head_kv * view->head_dim, float);
    if (!j.norm || !j.anchor)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to score %zu tokens", view->n);
    pd__row_norms(view, view->k, j.norm);
    pd_workers_run(view->workers, head_anchor, &j, view->n_head_kv);
    return PD_OK;
}

const pd_press pd_press_keydiff = {
    .name = "keydiff",
    .reference_class = "KeyDiffPress",
    .kind = "scorer",
    .source = "arXiv 2504.15364",
    .doc = "Keeps the keys least like the mean key.",
    .ratio_doc = "its own",
    .can = PD_CAN_SCORE | PD_CAN_SCORE_STEP | PD_CAN_SCORE_RAGGED | PD_CAN_PRUNE_STEP,
    .score = score,
};
