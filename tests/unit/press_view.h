/* SPDX-License-Identifier: Apache-2.0 */
/* Synthetic views for press tests: seeded keys, values and queries of one layer,
 * and everything prefill would have collected from them.  The generator is
 * splitmix64, so tests/golden/presses_unit.py makes the very same numbers. */
#ifndef PD_TESTS_PRESS_VIEW_H
#define PD_TESTS_PRESS_VIEW_H

#include "compression/press.h"
#include "engine/base/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The table entries that presses use, as their contract defines them. */
static float tv_dot(const float *a, const float *b, size_t n) {
    double s = 0.0;
    for (size_t i = 0; i < n; i++) s += (double)a[i] * (double)b[i];
    return (float)s;
}

static void tv_axpy(float a, const float *x, float *y, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += a * x[i];
}

static float tv_max(const float *x, size_t n) {
    float m = x[0];
    for (size_t i = 1; i < n; i++) m = fmaxf(m, x[i]);
    return m;
}

static float tv_exp_sum(float *x, size_t n, float max) {
    double s = 0.0;
    for (size_t i = 0; i < n; i++) s += (double)(x[i] = expf(x[i] - max));
    return (float)s;
}

static void tv_rope(float *x, size_t n_head, size_t head_dim, const float *cos, const float *sin) {
    const size_t half = head_dim / 2;
    for (size_t h = 0; h < n_head; h++, x += head_dim)
        for (size_t i = 0; i < half; i++) {
            const float a = x[i], b = x[i + half];
            x[i] = a * cos[i] - b * sin[i];
            x[i + half] = b * cos[i] + a * sin[i];
        }
}

static void tv_quad(const float *k, size_t n, size_t d, const float *mu, const float *u, float *z) {
    for (size_t i = 0; i < n; i++, k += d) {
        double s = 0.0;
        for (size_t a = 0; a < d; a++) {
            s += (double)k[a] * (double)mu[a];
            for (size_t b = 0; b <= a; b++) s += (double)k[a] * (double)u[b * d + a] * (double)k[b];
        }
        z[i] = (float)s;
    }
}

static void tv_matmul(const float *a, size_t ld_a, size_t n, size_t k, const float *b, size_t ld_b, size_t m, float *y, size_t ld_y) {
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < m; c++) {
            double s = 0.0;
            for (size_t r = 0; r < k; r++) s += (double)a[i * ld_a + r] * (double)b[r * ld_b + c];
            y[i * ld_y + c] = (float)s;
        }
}

static const pd_kernels tv_kernels = {
    .isa = "test",
    .dot_f32 = tv_dot,
    .axpy_f32 = tv_axpy,
    .max_f32 = tv_max,
    .exp_sum_f32 = tv_exp_sum,
    .rope = tv_rope,
    .quad_f32 = tv_quad,
    .matmul_f32 = tv_matmul,
};

enum { TV_H_MAX = 8 };

typedef struct {
    pd_view view;
    pd_arena data, tmp;
    size_t n_h[TV_H_MAX];
    const int32_t *pos[TV_H_MAX];
    const float *k[TV_H_MAX], *v[TV_H_MAX];
    const uint8_t *protect[TV_H_MAX];
    pd_moments moments[4];
    float *qp; /* [L][Hq][D] before RoPE */
} test_view;

static float *tv_floats(test_view *t, size_t n) {
    float *p = PD_ARENA_NEW(&t->data, n, float);
    if (!p) abort();
    return p;
}

/* Moments of rows >= n_sink (population), in double. */
static void tv_add_moments(test_view *t, size_t first_row, size_t n_rows, size_t n_sink) {
    pd_view *v = &t->view;
    const size_t d = v->head_dim, hq = v->n_head;
    float *mean = tv_floats(t, hq * d), *cov = tv_floats(t, hq * d * d);
    const size_t count = n_rows > n_sink ? n_rows - n_sink : 0;
    for (size_t h = 0; h < hq; h++) {
        for (size_t i = 0; i < d; i++) {
            double m = 0.0;
            for (size_t r = first_row + n_sink; r < first_row + n_rows; r++)
                m += (double)t->qp[(r * hq + h) * d + i];
            mean[h * d + i] = (float)(m / (double)count);
        }
        for (size_t i = 0; i < d; i++)
            for (size_t j = 0; j < d; j++) {
                double c = 0.0;
                for (size_t r = first_row + n_sink; r < first_row + n_rows; r++) {
                    const float *q = t->qp + (r * hq + h) * d;
                    c += ((double)q[i] - (double)mean[h * d + i]) *
                         ((double)q[j] - (double)mean[h * d + j]);
                }
                cov[(h * d + i) * d + j] = (float)(c / (double)count);
            }
    }
    t->moments[v->n_moments++] =
        (pd_moments){n_sink, count, count ? mean : NULL, count ? cov : NULL};
}

/* A prefill view of n tokens.  Keys 2u, values u, pre-RoPE queries 1.5u + a
 * per-channel offset u, u uniform in [-1, 1); drawn in the order offset [Hq][D],
 * queries [n][Hq][D], keys [H][n][D], values [H][n][D].  Moments for n_sink 4, 0. */
static inline test_view *tv_open(uint64_t seed, size_t n, size_t hq, size_t h, size_t d) {
    test_view *t = calloc(1, sizeof *t);
    if (!t || h > TV_H_MAX) abort();
    pd_rng rng = {seed};
    float *offset = tv_floats(t, hq * d), *inv = tv_floats(t, d / 2), *q = tv_floats(t, n * hq * d);
    int32_t *q_pos = PD_ARENA_NEW(&t->data, n, int32_t);
    t->qp = tv_floats(t, n * hq * d);
    for (size_t i = 0; i < hq * d; i++) offset[i] = pd_rng_f32(&rng);
    for (size_t i = 0; i < n * hq * d; i++)
        t->qp[i] = 1.5f * pd_rng_f32(&rng) + offset[i % (hq * d)];
    for (size_t i = 0; i < d / 2; i++) inv[i] = (float)pow(10000.0, -2.0 * (double)i / (double)d);
    for (size_t r = 0; r < n * hq; r++)
        for (size_t i = 0; i < d / 2; i++) {
            const float a = (float)(r / hq) * inv[i], c = cosf(a), s = sinf(a);
            const float x = t->qp[r * d + i], y = t->qp[r * d + i + d / 2];
            q[r * d + i] = x * c - y * s;
            q[r * d + i + d / 2] = y * c + x * s;
        }
    int32_t *pos = PD_ARENA_NEW(&t->data, n, int32_t);
    for (size_t i = 0; i < n; i++) pos[i] = q_pos[i] = (int32_t)i;
    for (size_t j = 0; j < 2; j++)
        for (size_t i = 0; i < h; i++) {
            float *x = tv_floats(t, n * d);
            for (size_t e = 0; e < n * d; e++) x[e] = (j ? 1.0f : 2.0f) * pd_rng_f32(&rng);
            (j ? t->v : t->k)[i] = x;
            t->n_h[i] = n;
            t->pos[i] = pos;
        }
    t->view = (pd_view){
        .phase = PD_PHASE_PREFILL,
        .layer = 3,
        .n_layer = 8,
        .n_head = hq,
        .n_head_kv = h,
        .head_dim = d,
        .n_embd = hq * d,
        .n = n,
        .n_h = t->n_h,
        .pos = t->pos,
        .k = t->k,
        .v = t->v,
        .n_seen = n,
        .q_rows = n,
        .q = q,
        .q_pos = q_pos,
        .moments = t->moments,
        .stat_rows = n,
        .inv_freq = inv,
        .rope_scale = 1.0f,
        .kern = &tv_kernels,
        .tmp = &t->tmp,
        .seed = 99,
    };
    tv_add_moments(t, 0, n, 4);
    tv_add_moments(t, 0, n, 0);
    return t;
}

/* The output projection [d][Hq * D], uniform in [-1, 1), drawn from its own seed. */
static inline void tv_add_wo(test_view *t, uint64_t seed) {
    pd_rng rng = {seed + 500000};
    const size_t n = t->view.n_embd * t->view.n_head * t->view.head_dim;
    float *wo = tv_floats(t, n);
    for (size_t i = 0; i < n; i++) wo[i] = pd_rng_f32(&rng);
    t->view.wo = wo;
}

/* Column sums [Hq][n] of the causal attention weights of all queries. */
static inline void tv_add_att_sum(test_view *t) {
    pd_view *v = &t->view;
    const size_t n = v->n, d = v->head_dim, n_group = v->n_head / v->n_head_kv;
    float *sums = tv_floats(t, v->n_head * n);
    double *sum = calloc(n, sizeof *sum), *z = calloc(n, sizeof *z);
    if (!sum || !z) abort();
    for (size_t hq = 0; hq < v->n_head; hq++) {
        for (size_t i = 0; i < n; i++) sum[i] = 0.0;
        for (size_t r = 0; r < n; r++) {
            double all = 0.0;
            for (size_t i = 0; i <= r; i++) {
                double dot = 0.0;
                for (size_t e = 0; e < d; e++)
                    dot += (double)v->q[(r * v->n_head + hq) * d + e] *
                           (double)v->k[hq / n_group][i * d + e];
                all += z[i] = exp(dot / sqrt((double)d));
            }
            for (size_t i = 0; i <= r; i++) sum[i] += z[i] / all;
        }
        for (size_t i = 0; i < n; i++) sums[hq * n + i] = (float)sum[i];
    }
    free(sum);
    free(z);
    v->att_sum = sums;
}

/* Drop slots head by head (seeded, about `share` of them; the last stays), as
 * an earlier head-wise press would have, and make it a decoding view: moments
 * of the last n_recent queries, and those queries alone. */
static inline void tv_make_step(test_view *t, uint64_t seed, double share, size_t n_recent) {
    pd_view *v = &t->view;
    pd_rng rng = {seed};
    const size_t n = v->n, d = v->head_dim;
    v->phase = PD_PHASE_STEP;
    v->n = 0;
    for (size_t h = 0; h < v->n_head_kv; h++) {
        float *k = tv_floats(t, n * d), *val = tv_floats(t, n * d);
        int32_t *pos = PD_ARENA_NEW(&t->data, n, int32_t);
        size_t out = 0;
        for (size_t i = 0; i < n; i++) {
            if (i + 1 < n && pd_rng_f64(&rng) < share * (double)(h + 1) / (double)v->n_head_kv)
                continue;
            memcpy(k + out * d, t->k[h] + i * d, d * sizeof *k);
            memcpy(val + out * d, t->v[h] + i * d, d * sizeof *val);
            pos[out++] = t->pos[h][i];
        }
        t->k[h] = k;
        t->v[h] = val;
        t->pos[h] = pos;
        t->n_h[h] = out;
        if (out > v->n) v->n = out;
    }
    v->q += (n - n_recent) * v->n_head * d;
    v->q_pos += n - n_recent;
    v->q_rows = n_recent;
    v->n_moments = 0;
    v->stat_rows = n_recent;
    tv_add_moments(t, n - n_recent, n_recent, 0);
}

static inline void tv_close(test_view *t) {
    pd_arena_done(&t->data);
    pd_arena_done(&t->tmp);
    free(t);
}

#endif
