/* SPDX-License-Identifier: Apache-2.0 */
/* leverage: keep the keys that the others do not span.
 *
 * Chari, Van Durme 2025 (Compactor, arXiv 2507.08143); kvpress' LeverageScorePress.
 * Keys before RoPE, minus their mean, times a random sketch: Y = (K - mean) Phi,
 * Phi [D][k] of N(0, 1/k) for each head, and
 *
 *     s_t = y_t^T (Y^T Y + 0.01 I)^-1 y_t
 *
 * standardized over all heads and slots.  With the Cholesky factor L of the bracket
 * that is |L^-1 y_t|^2.  If there is none the 0.01 grows tenfold, four times at most.
 *
 * The keys are those of the cache turned back by their positions, so rounding of the
 * cache shows (2^-11 of a key with an f16 cache).
 * DIFFERS: the sketch comes from the request's seed and the layer; the reference
 * draws an unseeded one for each call.
 * Cost: H * L * (D k + k^2) multiply-adds. */
#include "compression/compactor.h"
#include "compression/shared.h"
#include "compression/sketch.h"

#include "engine/base/num.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

enum { SKETCH };
enum { TURN_ROWS = 64 }; /* positions of one task */

typedef struct {
    const pd_view *view;
    const float *phi;
    size_t k, per_head;  /* tiles of the longest head */
    int32_t first_pos;   /* row 0 of the tables */
    size_t n_pos;
    float *cos, *sin;    /* [n_pos][D/2] of the way back */
    float **keys;        /* [thread] PD__TILE x D */
    float **y;           /* [H] n_h x k */
    double *sums;        /* [H][per_head][k] of y's columns */
    float *mean;         /* [H][k] */
    float *factor;       /* [H][k][k] */
    double *work;        /* [H][k][k] */
    bool *failed;        /* [H] */
    float *const *score;
} job;

static void turn_table(void *ctx, size_t task, unsigned thread) {
    const job *j = ctx;
    const size_t half = j->view->head_dim / 2, first = task * TURN_ROWS;
    const float back = 1.0f / j->view->rope_scale;
    for (size_t r = first; r < pd_min_size(first + TURN_ROWS, j->n_pos); r++)
        for (size_t i = 0; i < half; i++) {
            /* the angle as prefill rounds it, so that the rotation cancels */
            const float angle = (float)(j->first_pos + (int32_t)r) * j->view->inv_freq[i];
            j->cos[r * half + i] = cosf(angle) * back;
            j->sin[r * half + i] = sinf(angle) * -back;
        }
}

static void sketch_tile(void *ctx, const pd_view *view, size_t h, size_t first, size_t n,
                        unsigned thread) {
    const job *j = ctx;
    const size_t d = view->head_dim, half = d / 2, k = j->k;
    float *keys = j->keys[thread], *y = j->y[h] + first * k;
    memcpy(keys, view->k[h] + first * d, n * d * sizeof *keys);
    for (size_t i = 0; i < n; i++) {
        const size_t at = (size_t)(view->pos[h][first + i] - j->first_pos) * half;
        view->kern->rope(keys + i * d, 1, d, j->cos + at, j->sin + at);
    }
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)n, (int)k, (int)d, 1.0f, keys,
                (int)d, j->phi + h * d * k, (int)k, 0.0f, y, (int)k);
    double *sum = j->sums + (h * j->per_head + first / PD__TILE) * k;
    for (size_t c = 0; c < k; c++) sum[c] = 0.0;
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < k; c++) sum[c] += (double)y[i * k + c];
}

/* Y minus its column means, and the factor of its Gram matrix. */
static void head_factor(void *ctx, size_t h, unsigned thread) {
    const job *j = ctx;
    const pd_view *view = j->view;
    const size_t n = view->n_h[h], k = j->k;
    float *y = j->y[h], *a = j->factor + h * k * k;
    double *sum = j->sums + h * j->per_head * k;
    for (size_t t = 1; t * PD__TILE < n; t++)
        for (size_t c = 0; c < k; c++) sum[c] += sum[t * k + c];
    float *mean = j->mean + h * k;
    for (size_t c = 0; c < k; c++) mean[c] = n > 0 ? (float)(sum[c] / (double)n) : 0.0f;
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < k; c++) y[i * k + c] -= mean[c];
    cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, (int)k, (int)n, 1.0f, y, (int)k, 0.0f, a,
                (int)k);
    double jitter = 1e-2;
    int tries = 5;
    while (tries > 0 && !pd__cholesky(a, k, jitter, j->work + h * k * k)) {
        jitter *= 10.0;
        tries--;
    }
    j->failed[h] = tries == 0;
}

static void score_tile(void *ctx, const pd_view *view, size_t h, size_t first, size_t n,
                       unsigned thread) {
    const job *j = ctx;
    const size_t k = j->k;
    float *y = j->y[h] + first * k;
    pd__forward_solve(j->factor + h * k * k, k, y, n);
    for (size_t i = 0; i < n; i++)
        j->score[h][first + i] = view->kern->dot_f32(y + i * k, y + i * k, k);
}

static bool job_alloc(const pd_view *view, job *j) {
    const size_t heads = view->n_head_kv, d = view->head_dim, k = j->k,
                 n_thread = pd_workers_count(view->workers);
    pd_arena *tmp = view->tmp;
    j->cos = PD_ARENA_NEW(tmp, j->n_pos * (d / 2), float);
    j->sin = PD_ARENA_NEW(tmp, j->n_pos * (d / 2), float);
    j->keys = PD_ARENA_NEW(tmp, n_thread, float *);
    j->y = PD_ARENA_NEW(tmp, heads, float *);
    j->sums = PD_ARENA_NEW(tmp, heads * j->per_head * k, double);
    j->mean = PD_ARENA_NEW(tmp, heads * k, float);
    j->factor = PD_ARENA_NEW(tmp, heads * k * k, float);
    j->work = PD_ARENA_NEW(tmp, heads * k * k, double);
    j->failed = PD_ARENA_NEW(tmp, heads, bool);
    if (!j->cos || !j->sin || !j->keys || !j->y || !j->sums || !j->mean || !j->factor ||
        !j->work || !j->failed)
        return false;
    for (size_t t = 0; t < n_thread; t++)
        if (!(j->keys[t] = PD_ARENA_NEW(tmp, PD__TILE * d, float))) return false;
    for (size_t h = 0; h < heads; h++)
        if (!(j->y[h] = PD_ARENA_NEW(tmp, view->n_h[h] * k, float))) return false;
    return true;
}

pd_status pd__leverage_score(const pd_view *view, const float *phi, size_t k, float *const *score,
                             pd_err *err) {
    job j = {.view = view,
             .phi = phi,
             .k = k,
             .per_head = pd_max_size(1, pd_div_up(view->n, PD__TILE)),
             .first_pos = INT32_MAX,
             .score = score};
    int32_t end = 0;
    for (size_t h = 0; h < view->n_head_kv; h++) {
        if (view->n_h[h] == 0) continue;
        if (view->pos[h][0] < j.first_pos) j.first_pos = view->pos[h][0];
        if (view->pos[h][view->n_h[h] - 1] >= end) end = view->pos[h][view->n_h[h] - 1] + 1;
    }
    if (end == 0) return PD_OK; /* no slots at all */
    j.n_pos = (size_t)(end - j.first_pos);
    if (!job_alloc(view, &j))
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to score %zu tokens", view->n);
    pd_workers_run(view->workers, turn_table, &j, pd_div_up(j.n_pos, TURN_ROWS));
    pd__for_tiles(view, sketch_tile, &j);
    pd_workers_run(view->workers, head_factor, &j, view->n_head_kv);
    for (size_t h = 0; h < view->n_head_kv; h++)
        if (j.failed[h])
            return pd_fail(err, PD_EINTERNAL, NULL,
                           "the sketched keys of layer %d, head %zu have no Cholesky factor",
                           view->layer, h);
    pd__for_tiles(view, score_tile, &j);
    pd__standardize(view, score);
    return PD_OK;
}

float *pd__leverage_sketch(const pd_view *view, size_t k) {
    const size_t n = view->n_head_kv * view->head_dim * k;
    float *phi = PD_ARENA_NEW(view->tmp, n, float);
    if (phi) pd__normals(view, 1.0 / sqrt((double)k), phi, n);
    return phi;
}

static pd_status score(const pd_press_inst *inst, const pd_view *view, float *const *score,
                       pd_err *err) {
    const size_t k = (size_t)inst->p[SKETCH];
    const float *phi = pd__leverage_sketch(view, k);
    if (!phi) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a sketch of %zu columns", k);
    return pd__leverage_score(view, phi, k, score, err);
}

static const pd_param params[] = {
    [SKETCH] = {.name = "sketch_dimension",
                .type = PD_PARAM_INT,
                .def = 48,
                .min = 1,
                .max = PD__CHOLESKY_MAX,
                .doc = "columns of the random sketch"},
};

const pd_press pd_press_leverage = {
    .name = "leverage",
    .reference_class = "LeverageScorePress",
    .kind = "scorer",
    .source = "arXiv 2507.08143",
    .doc = "Keeps the keys that stand out from the others' span, before RoPE.",
    .ratio_doc = "its own",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_SCORE,
    .score = score,
};
