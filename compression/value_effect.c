/* SPDX-License-Identifier: Apache-2.0 */
/* |Wo v|_1 of every cached value (see value_effect.h).
 *
 * Feng et al. 2025 (arXiv 2502.03805): how much a pair's loss can move the layer's
 * output is bounded by the L1 norm of its projected value.  One gemm per query
 * head, tile of slots and block of output channels; only the sum of magnitudes
 * leaves the block, so Wo v is never held as a whole. */
#include "compression/value_effect.h"

#include "compression/shared.h"
#include "engine/base/num.h"

#include <cblas.h>
#include <float.h>
#include <math.h>

enum { CHANNELS = 512 }; /* output channels of one gemm */

typedef struct {
    float **y; /* [thread] PD__TILE x CHANNELS */
    float *const *out;
} job;

static void tile(void *ctx, const pd_view *view, size_t h, size_t first, size_t n,
                 unsigned thread) {
    const job *j = ctx;
    const size_t d = view->head_dim, n_group = view->n_head / view->n_head_kv,
                 ld = view->n_head * d;
    const float *v = view->v[h] + first * d, share = 1.0f / (float)n_group;
    float *y = j->y[thread], *out = j->out[h] + first;
    for (size_t i = 0; i < n; i++) out[i] = 0.0f;
    for (size_t q = h * n_group; q < (h + 1) * n_group; q++)
        for (size_t c = 0; c < view->n_embd; c += CHANNELS) {
            const size_t width = pd_min_size(CHANNELS, view->n_embd - c);
            cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)width, (int)d, 1.0f,
                        v, (int)d, view->wo + c * ld + q * d, (int)ld, 0.0f, y, (int)width);
            for (size_t i = 0; i < n; i++)
                out[i] += share * cblas_sasum((int)width, y + i * width, 1);
        }
}

pd_status pd__value_effect(const pd_view *view, float *const *out, pd_err *err) {
    if (!view->wo)
        return pd_fail(err, PD_EINTERNAL, NULL, "no output projection was collected for layer %d",
                       view->layer);
    const size_t n_thread = pd_workers_count(view->workers);
    job j = {PD_ARENA_NEW(view->tmp, n_thread, float *), out};
    for (size_t t = 0; j.y && t < n_thread; t++)
        if (!(j.y[t] = PD_ARENA_NEW(view->tmp, PD__TILE * CHANNELS, float))) j.y = NULL;
    if (!j.y)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to project %zu values", view->n);
    pd__for_tiles(view, tile, &j);
    return PD_OK;
}

pd_status pd__weigh_by_effect(const pd_view *view, size_t h, size_t first, float epsilon,
                              const float *effect, float *score, uint32_t *best, pd_err *err) {
    const size_t n = view->n_h[h];
    const float limit = nextafterf(FLT_MAX, 0.0f); /* must not pass for a chosen slot */
    if (first > 0) PD_TRY(pd_top_k(score, n, first, best, view->tmp, err));
    for (size_t i = 0, b = 0; i < n; i++) {
        const bool chosen = b < first && best[b] == i;
        if (chosen) b++;
        if (score[i] >= FLT_MAX) continue;
        score[i] = chosen ? FLT_MAX : (score[i] + epsilon) * effect[i];
        if (!chosen && score[i] > limit) score[i] = limit;
        if (!chosen && score[i] < -FLT_MAX) score[i] = -FLT_MAX;
    }
    return PD_OK;
}
