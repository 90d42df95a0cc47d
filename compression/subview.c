/* SPDX-License-Identifier: Apache-2.0 */
/* Views of some slots (see subview.h). */
#include "compression/subview.h"

#include "compression/shared.h"
#include "engine/base/num.h"

#include <assert.h>
#include <cblas.h>
#include <math.h>
#include <string.h>

static pd_status no_memory(const pd_view *view, pd_err *err) {
    return pd_fail(err, PD_ENOMEM, NULL, "no memory for a part of %zu tokens", view->n);
}

/* ---- moments of a few rows ---- */

typedef struct {
    const pd_view *view;
    const float *q;         /* [n][Hq][D] rotated */
    const float *cos, *sin; /* [n][D/2] */
    size_t n, skip;         /* rows; those before n_sink */
    float *mean, *cov;      /* [Hq][D], [Hq][D][D] or NULL */
    float **rows;           /* [thread][n][D] */
} moments_job;

/* Turn one head's queries back to where they were before RoPE. */
static void unrotate(const moments_job *j, size_t hq, float *out) {
    const size_t d = j->view->head_dim, half = d / 2;
    const float inv_scale = 1.0f / j->view->rope_scale;
    for (size_t r = j->skip; r < j->n; r++, out += d) {
        const float *q = j->q + (r * j->view->n_head + hq) * d;
        const float *c = j->cos + r * half, *s = j->sin + r * half;
        for (size_t i = 0; i < half; i++) {
            out[i] = (q[i] * c[i] + q[i + half] * s[i]) * inv_scale;
            out[i + half] = (q[i + half] * c[i] - q[i] * s[i]) * inv_scale;
        }
    }
}

static void moments_head(void *ctx, size_t hq, unsigned thread) {
    const moments_job *j = ctx;
    const size_t d = j->view->head_dim, count = j->n - j->skip;
    float *rows = j->rows[thread], *mean = j->mean + hq * d;
    unrotate(j, hq, rows);
    for (size_t i = 0; i < d; i++) {
        double sum = 0.0;
        for (size_t r = 0; r < count; r++) sum += (double)rows[r * d + i];
        mean[i] = (float)(sum / (double)count);
    }
    if (!j->cov) return;
    for (size_t r = 0; r < count; r++)
        for (size_t i = 0; i < d; i++) rows[r * d + i] -= mean[i];
    float *cov = j->cov + hq * d * d;
    cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, (int)d, (int)count, 1.0f / (float)count,
                rows, (int)d, 0.0f, cov, (int)d);
    for (size_t a = 0; a < d; a++)
        for (size_t b = 0; b < a; b++) cov[a * d + b] = cov[b * d + a];
}

static bool moments_alloc(moments_job *j, bool cov, pd_arena *tmp) {
    const size_t d = j->view->head_dim, hq = j->view->n_head,
                 n_thread = pd_workers_count(j->view->workers);
    j->mean = PD_ARENA_NEW(tmp, hq * d, float);
    j->cov = cov ? PD_ARENA_NEW(tmp, hq * d * d, float) : NULL;
    if (!j->mean || (cov && !j->cov)) return false;
    if (j->rows) return true;
    j->rows = PD_ARENA_NEW(tmp, n_thread, float *);
    for (size_t t = 0; j->rows && t < n_thread; t++)
        if (!(j->rows[t] = PD_ARENA_NEW(tmp, j->n * d, float))) return false;
    return j->rows != NULL;
}

/* The view's sets of moments, over the rows of `sub` alone. */
static pd_status slice_moments(const pd_view *view, pd_arena *tmp, pd_view *sub, pd_err *err) {
    const size_t half = view->head_dim / 2, n = sub->q_rows;
    pd_moments *m = PD_ARENA_NEW(tmp, view->n_moments, pd_moments);
    float *cos = PD_ARENA_NEW(tmp, n * half, float), *sin = PD_ARENA_NEW(tmp, n * half, float);
    if (!m || !cos || !sin) return no_memory(view, err);
    for (size_t i = 0; i < n * half; i++) {
        /* the angle as prefill rounds it, so that the rotation cancels */
        const float angle = (float)sub->q_pos[i / half] * view->inv_freq[i % half];
        cos[i] = cosf(angle);
        sin[i] = sinf(angle);
    }
    moments_job j = {.view = view, .q = sub->q, .cos = cos, .sin = sin, .n = n};
    for (size_t i = 0; i < view->n_moments; i++) {
        const pd_moments *whole = &view->moments[i];
        for (j.skip = 0; j.skip < n && (size_t)sub->q_pos[j.skip] < whole->n_sink;) j.skip++;
        m[i] = (pd_moments){.n_sink = whole->n_sink, .count = n - j.skip};
        if (m[i].count == 0) continue;
        if (!moments_alloc(&j, whole->cov != NULL, tmp)) return no_memory(view, err);
        pd_workers_run(view->workers, moments_head, &j, view->n_head);
        m[i].mean = j.mean;
        m[i].cov = j.cov;
    }
    sub->moments = m;
    return PD_OK;
}

/* ---- slices ---- */

/* att_sum of slots slot[h][..] (NULL: first + i) as dense rows of ret->n. */
static pd_status att_sums(const pd_view *view, uint32_t *const *slot, size_t first, pd_arena *tmp,
                          pd_view *ret, pd_err *err) {
    if (!view->att_sum) return PD_OK;
    const size_t n_group = view->n_head / view->n_head_kv;
    float *sums = pd_arena_zalloc(tmp, view->n_head * ret->n, sizeof *sums);
    if (!sums) return no_memory(view, err);
    for (size_t q = 0; q < view->n_head; q++)
        for (size_t i = 0; i < ret->n_h[q / n_group]; i++)
            sums[q * ret->n + i] =
                view->att_sum[q * view->n + (slot ? slot[q / n_group][i] : first + i)];
    ret->att_sum = sums;
    return PD_OK;
}

pd_status pd__view_slice(const pd_view *view, size_t first, size_t n, pd_arena *tmp, pd_view *ret,
                         pd_err *err) {
    const size_t heads = view->n_head_kv, d = view->head_dim;
    size_t *n_h = PD_ARENA_NEW(tmp, heads, size_t);
    const int32_t **pos = PD_ARENA_NEW(tmp, heads, const int32_t *);
    const float **k = PD_ARENA_NEW(tmp, heads, const float *),
                **v = PD_ARENA_NEW(tmp, heads, const float *);
    const uint8_t **protect = PD_ARENA_NEW(tmp, heads, const uint8_t *);
    if (!n_h || !pos || !k || !v || !protect) return no_memory(view, err);
    int32_t begin = INT32_MAX, end = 0;
    for (size_t h = 0; h < heads; h++) {
        assert(view->n_h[h] == view->n && first + n <= view->n);
        n_h[h] = n;
        pos[h] = view->pos[h] + first;
        k[h] = view->k[h] + first * d;
        v[h] = view->v[h] + first * d;
        protect[h] = view->protect && view->protect[h] ? view->protect[h] + first : NULL;
        if (pos[h][0] < begin) begin = pos[h][0];
        if (pos[h][n - 1] >= end) end = pos[h][n - 1] + 1;
    }
    pd_view sub = *view;
    sub.n = n;
    sub.n_h = n_h;
    sub.pos = pos;
    sub.k = k;
    sub.v = v;
    sub.protect = view->protect ? protect : NULL;
    sub.tmp = tmp;
    sub.n_seen = sub.stat_rows = (size_t)end;
    sub.x = NULL;
    sub.x_rows = 0;
    if (view->x && view->x_rows == view->n) {
        sub.x = view->x + first * view->n_embd;
        sub.x_rows = n;
    }
    size_t row = 0, rows = 0;
    for (; row < view->q_rows && view->q_pos[row] < begin; row++) continue;
    for (; row + rows < view->q_rows && view->q_pos[row + rows] < end; rows++) continue;
    sub.q_rows = rows;
    if (view->q && rows > 0) {
        sub.q = view->q + row * view->n_head * d;
        sub.q_pos = view->q_pos + row;
    } else {
        sub.q = NULL;
        sub.q_pos = NULL;
        sub.n_moments = 0;
    }
    if (sub.n_moments > 0) PD_TRY(slice_moments(view, tmp, &sub, err));
    PD_TRY(att_sums(view, NULL, first, tmp, &sub, err));
    *ret = sub;
    return PD_OK;
}

/* ---- any slots ---- */

pd_status pd__view_gather(const pd_view *view, const size_t *n_h, uint32_t *const *slot,
                          float *const *v_new, pd_arena *tmp, pd_view *ret, pd_err *err) {
    const size_t heads = view->n_head_kv, d = view->head_dim;
    size_t *count = PD_ARENA_NEW(tmp, heads, size_t);
    int32_t **pos = PD_ARENA_NEW(tmp, heads, int32_t *);
    float **k = PD_ARENA_NEW(tmp, heads, float *), **v = PD_ARENA_NEW(tmp, heads, float *);
    uint8_t **protect = PD_ARENA_NEW(tmp, heads, uint8_t *);
    if (!count || !pos || !k || !v || !protect) return no_memory(view, err);
    pd_view sub = *view;
    sub.n = 0;
    for (size_t h = 0; h < heads; h++) {
        const size_t n = count[h] = n_h[h];
        sub.n = pd_max_size(sub.n, n);
        pos[h] = PD_ARENA_NEW(tmp, n, int32_t);
        k[h] = PD_ARENA_NEW(tmp, n * d, float);
        v[h] = PD_ARENA_NEW(tmp, n * d, float);
        protect[h] = pd_arena_zalloc(tmp, n, 1);
        if (!pos[h] || !k[h] || !v[h] || !protect[h]) return no_memory(view, err);
        const uint8_t *must = view->protect ? view->protect[h] : NULL;
        for (size_t i = 0; i < n; i++) {
            const size_t at = slot[h][i];
            assert(at < view->n_h[h]);
            pos[h][i] = view->pos[h][at];
            if (must) protect[h][i] = must[at];
            memcpy(k[h] + i * d, view->k[h] + at * d, d * sizeof(float));
            memcpy(v[h] + i * d, v_new ? v_new[h] + i * d : view->v[h] + at * d,
                   d * sizeof(float));
        }
    }
    sub.n_h = count;
    sub.pos = (const int32_t *const *)pos;
    sub.k = (const float *const *)k;
    sub.v = (const float *const *)v;
    sub.protect = view->protect ? (const uint8_t *const *)protect : NULL;
    sub.x = NULL;
    sub.x_rows = 0;
    sub.tmp = tmp;
    PD_TRY(att_sums(view, slot, 0, tmp, &sub, err));
    *ret = sub;
    return PD_OK;
}

/* ---- chunks ---- */

size_t pd__chunk_count(size_t n, size_t length, size_t least) {
    const size_t count = pd_div_up(n, length);
    return count > 1 && n - (count - 1) * length < least ? count - 1 : count;
}

size_t pd__chunk_end(size_t n, size_t length, size_t count, size_t i) {
    return i + 1 == count ? n : (i + 1) * length;
}

size_t pd__chunk_keep(const pd_budget *budget, size_t n, size_t begin, size_t end) {
    if (!budget->by_count) return pd_budget_keep(budget, end - begin);
    const uint64_t keep = pd_budget_keep(budget, n);
    return (size_t)(keep * end / n - keep * begin / n);
}
