/* SPDX-License-Identifier: Apache-2.0 */
/* Random projections, small systems, z-scores (see sketch.h). */
#include "compression/sketch.h"

#include "engine/base/rng.h"

#include <assert.h>
#include <cblas.h>
#include <math.h>
#include <string.h>

void pd__normals(const pd_view *view, double scale, float *out, size_t n) {
    const double two_pi = 6.283185307179586;
    /* Hashed twice: neighbouring layers and seeds share no stretch of the stream. */
    pd_rng of_seed = {view->seed}, of_layer = {pd_rng_u64(&of_seed) ^ (uint64_t)view->layer};
    pd_rng rng = {pd_rng_u64(&of_layer)};
    for (size_t i = 0; i < n; i += 2) {
        const double u = 1.0 - pd_rng_f64(&rng), angle = two_pi * pd_rng_f64(&rng);
        const double r = scale * sqrt(-2.0 * log(u));
        out[i] = (float)(r * cos(angle));
        if (i + 1 < n) out[i + 1] = (float)(r * sin(angle));
    }
}

bool pd__cholesky(float *a, size_t n, double shift, double *work) {
    assert(n <= PD__CHOLESKY_MAX);
    for (size_t i = 0; i < n; i++) {
        double *row = work + i * n;
        for (size_t k = 0; k <= i; k++) {
            const double *other = work + k * n;
            double s = (double)a[k * n + i] + (i == k ? shift : 0.0);
            for (size_t c = 0; c < k; c++) s -= row[c] * other[c];
            if (i == k) {
                if (!(s > 0.0) || isinf(s)) return false;
                row[i] = sqrt(s);
            } else {
                row[k] = s / other[k];
            }
        }
    }
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k <= i; k++) a[i * n + k] = (float)work[i * n + k];
    return true;
}

void pd__forward_solve(const float *l, size_t n, float *rows, size_t n_rows) {
    /* rows X = Y of X L^T = Y */
    cblas_strsm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, (int)n_rows,
                (int)n, 1.0f, l, (int)n, rows, (int)n);
}

void pd__standardize(const pd_view *view, float *const *score) {
    double sum = 0.0, square = 0.0;
    size_t n = 0;
    for (size_t h = 0; h < view->n_head_kv; n += view->n_h[h++])
        for (size_t i = 0; i < view->n_h[h]; i++) sum += (double)score[h][i];
    if (n == 0) return;
    const double mean = sum / (double)n;
    for (size_t h = 0; h < view->n_head_kv; h++)
        for (size_t i = 0; i < view->n_h[h]; i++) {
            const double x = (double)score[h][i] - mean;
            square += x * x;
        }
    /* not fmax: a NaN must stay one, for the driver to refuse */
    double deviation = n > 1 ? sqrt(square / (double)(n - 1)) : 0.0;
    if (deviation < 1e-6) deviation = 1e-6;
    for (size_t h = 0; h < view->n_head_kv; h++)
        for (size_t i = 0; i < view->n_h[h]; i++)
            score[h][i] = (float)(((double)score[h][i] - mean) / deviation);
}
