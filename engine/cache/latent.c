/* SPDX-License-Identifier: Apache-2.0 */
/* Projected keys (see latent.h): products by BLAS, rotations page by page.  A page of
 * consecutive positions, which is nearly every page, is turned by one angle for the page and
 * one table for its slots. */
#include "engine/cache/latent.h"

#include "engine/base/num.h"

#include <assert.h>
#include <cblas.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N = PD_PAGE_TOKENS, STEP = PD_TURN_STEP };

pd_status pd_turns_init(pd_turns *t, const float *freq, size_t half, size_t n, pd_err *err) {
    const size_t n_a = pd_div_up(n, STEP), rows = n_a + STEP + N;
    float *at = malloc((2 * rows * half + 1) * sizeof *at);
    if (!at) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the rotations of %zu positions", n);
    *t = (pd_turns){.half = half, .n = n_a * STEP, .memory = at};
    float *part[6];
    for (int i = 0; i < 6; i++) {
        part[i] = at;
        at += (i < 2 ? n_a : i < 4 ? (size_t)STEP : (size_t)N) * half;
    }
    for (size_t i = 0; i < half; i++) {
        const double f = (double)freq[i];
        for (size_t a = 0; a < n_a; a++) {
            part[0][a * half + i] = (float)cos((double)(a * STEP) * f);
            part[1][a * half + i] = (float)sin((double)(a * STEP) * f);
        }
        for (size_t b = 0; b < STEP; b++) {
            part[2][b * half + i] = (float)cos((double)b * f);
            part[3][b * half + i] = (float)sin((double)b * f);
        }
        for (size_t s = 0; s < N; s++) {
            part[4][i * N + s] = (float)cos((double)s * f);
            part[5][i * N + s] = (float)sin((double)s * f);
        }
    }
    t->cos_a = part[0];
    t->sin_a = part[1];
    t->cos_b = part[2];
    t->sin_b = part[3];
    t->cos_s = part[4];
    t->sin_s = part[5];
    return PD_OK;
}

void pd_turns_done(pd_turns *t) {
    free(t->memory);
    *t = (pd_turns){0};
}

void pd_turns_of(const pd_turns *t, int32_t pos, float *c, float *s) {
    assert(pos >= 0 && (size_t)pos < t->n);
    const size_t a = (size_t)pos / STEP * t->half, b = (size_t)pos % STEP * t->half;
    for (size_t i = 0; i < t->half; i++) {
        c[i] = t->cos_a[a + i] * t->cos_b[b + i] - t->sin_a[a + i] * t->sin_b[b + i];
        s[i] = t->sin_a[a + i] * t->cos_b[b + i] + t->cos_a[a + i] * t->sin_b[b + i];
    }
}

void pd_latent_project(const pd_latent *l, const pd_kernels *kern, const float *k, int32_t pos, float *c, float *tmp) {
    const size_t d = l->head_dim, half = d / 2;
    if (l->book.n_centroid) {
        pd_book_encode(&l->book, kern, k, c);
        return;
    }
    if (!l->project) {
        memcpy(c, k, d * sizeof *c);
        return;
    }
    if (l->turns) {
        float cs[PD_LATENT_HALF_MAX], sn[PD_LATENT_HALF_MAX];
        pd_turns_of(l->turns, pos, cs, sn);
        for (size_t i = 0; i < half; i++) {
            tmp[i] = k[i] * cs[i] + k[i + half] * sn[i];
            tmp[i + half] = k[i + half] * cs[i] - k[i] * sn[i];
        }
        k = tmp;
    }
    for (size_t r = 0; r < l->rank; r++) c[r] = kern->dot_f32(l->project + r * d, k, d);
}

void pd_latent_rebuild(const pd_latent *l, const pd_kernels *kern, const float *c, int32_t pos, float *k) {
    const size_t d = l->head_dim;
    if (l->book.n_centroid) {
        pd_book_decode(&l->book, c, k);
        return;
    }
    if (!l->rebuild) {
        memcpy(k, c, d * sizeof *k);
        return;
    }
    memset(k, 0, d * sizeof *k);
    for (size_t r = 0; r < l->rank; r++) kern->axpy_f32(c[r], l->rebuild + r * d, k, d);
    if (!l->turns) return;
    float cs[PD_LATENT_HALF_MAX], sn[PD_LATENT_HALF_MAX];
    pd_turns_of(l->turns, pos, cs, sn);
    kern->rope(k, 1, d, cs, sn);
}

void pd_latent_fold(const pd_latent *l, const pd_kernels *kern, const float *v, float *c) {
    for (size_t r = 0; r < l->rank_v; r++) c[r] = kern->dot_f32(l->value + r * l->head_dim, v, l->head_dim);
}

void pd_latent_unfold(const pd_latent *l, const pd_kernels *kern, const float *c, float *v) {
    memset(v, 0, l->head_dim * sizeof *v);
    for (size_t r = 0; r < l->rank_v; r++) kern->axpy_f32(c[r], l->value + r * l->head_dim, v, l->head_dim);
}

/* x and y turned by the 16 angles of a page. */
static void turn(float *restrict x, float *restrict y, const float *restrict c, const float *restrict s) {
    for (size_t i = 0; i < N; i++) {
        const float a = x[i], b = y[i];
        x[i] = a * c[i] - b * s[i];
        y[i] = b * c[i] + a * s[i];
    }
}

/* A page whose slot i has position base + i. */
static void turn_run(const pd_turns *t, int32_t base, float *k, size_t ld, float *tmp) {
    const size_t half = t->half;
    float *cb = tmp, *sb = tmp + half;
    pd_turns_of(t, base, cb, sb);
    for (size_t i = 0; i < half; i++) {
        const float *cs = t->cos_s + i * N, *ss = t->sin_s + i * N;
        float c[N], s[N];
        for (size_t j = 0; j < N; j++) {
            c[j] = cb[i] * cs[j] - sb[i] * ss[j];
            s[j] = sb[i] * cs[j] + cb[i] * ss[j];
        }
        turn(k + i * ld, k + (i + half) * ld, c, s);
    }
}

/* Slots [from, to) of a page, each by its own angle. */
static void turn_each(const pd_turns *t, const int32_t *pos, size_t from, size_t to, float *k, size_t ld, float *tmp) {
    const size_t half = t->half;
    float *c = tmp, *s = tmp + half;
    for (size_t j = from; j < to; j++) {
        pd_turns_of(t, pos[j], c, s);
        for (size_t i = 0; i < half; i++) {
            float *x = k + i * ld + j, *y = k + (i + half) * ld + j;
            const float a = *x, b = *y;
            *x = a * c[i] - b * s[i];
            *y = b * c[i] + a * s[i];
        }
    }
}

void pd_latent_keys(const pd_latent *l, const float *c, const int32_t *const *pos, size_t n_page, size_t first,
                    size_t n, float *k, float *tmp) {
    const size_t d = l->head_dim, ld = n_page * N;
    assert(!l->book.n_centroid); /* codes are scored without their keys */
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)d, (int)ld, (int)l->rank, 1.0f, l->rebuild, (int)d, c,
                (int)ld, 0.0f, k, (int)ld);
    for (size_t p = 0; l->turns && p < n_page; p++) {
        const size_t from = p * N < first ? pd_min_size(first - p * N, N) : 0;
        const size_t to = p * N < first + n ? pd_min_size(first + n - p * N, N) : 0;
        if (from >= to) continue;
        const int32_t base = pos[p][from] - (int32_t)from;
        bool run = base >= 0;
        for (size_t j = from; j < to && run; j++) run = pos[p][j] == base + (int32_t)j;
        if (run)
            turn_run(l->turns, base, k + p * N, ld, tmp);
        else
            turn_each(l->turns, pos[p], from, to, k + p * N, ld, tmp);
    }
}
