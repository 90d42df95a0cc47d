/* SPDX-License-Identifier: Apache-2.0 */
/* Attention of the last queries over the cache (see shared.h).
 *
 * One task per query head; the queries go in blocks, so that the logits of one
 * block (about 4 MB per thread) are the only scratch however wide the window is.
 * Blocks shrink for long caches, not below 16 rows: K is turned anew for each, some
 * slots at a time that stay in the first cache (matmul_f32 wants slots side by side).
 * A query sees a prefix of the slots: they are in time order. */
#include "compression/shared.h"

#include "engine/base/num.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

enum { BLOCK_MIN = 16, BLOCK_MAX = 64, BLOCK_FLOATS = 1 << 20, SLOTS = 64 /* turned at a time */ };

typedef struct {
    const pd_view *view;
    size_t w, block; /* queries in all, and at a time */
    bool times_before; /* multiply a query's weights by the slots before it */
    bool sums, squares; /* not the mean but the sum, of the weights' squares */
    size_t near;       /* positions up to a query's own it says nothing of */
    float **logits;  /* [thread] block x ld */
    size_t ld;       /* n, up to whole SLOTS */
    float **turned;  /* [thread] [D][SLOTS] */
    float *const *out;
} window_job;

/* x: the weights of query `row`, times 1 / inv. */
static void add_row(const window_job *j, size_t h, size_t row, float *x, float inv, float *to) {
    const size_t n = pd__slots_before(j->view, h, (int64_t)j->view->q_pos[row] + 1 - (int64_t)j->near);
    for (size_t t = 0; j->squares && t < n; t++) x[t] *= x[t] * inv;
    j->view->kern->axpy_f32(inv, x, to, n);
}

/* s [rows][ld] = q . k / sqrt(D) of n slots, and anything up to whole SLOTS behind them. */
static void logits_of(const window_job *j, const float *q, size_t ldq, size_t rows, const float *k, size_t n, float scale,
                      float *turned, float *s) {
    const size_t d = j->view->head_dim;
    for (size_t first = 0; first < n; first += SLOTS, k += SLOTS * d) {
        const size_t m = pd_min_size(SLOTS, n - first);
        for (size_t c = 0; c < d; c++) {
            for (size_t i = 0; i < m; i++) turned[c * SLOTS + i] = k[i * d + c] * scale;
            for (size_t i = m; i < SLOTS; i++) turned[c * SLOTS + i] = 0.0f;
        }
        j->view->kern->matmul_f32(q, ldq, rows, d, turned, SLOTS, SLOTS, s + first, j->ld);
    }
}

static void window_head(void *ctx, size_t hq, unsigned thread) {
    const window_job *j = ctx;
    const pd_view *view = j->view;
    const size_t d = view->head_dim, h = hq / (view->n_head / view->n_head_kv),
                 ldq = view->n_head * d;
    const float inv_sqrt = 1.0f / sqrtf((float)d);
    float *s = j->logits[thread], *mean = j->out[hq];
    memset(mean, 0, view->n_h[h] * sizeof *mean);
    for (size_t row = view->q_rows - j->w; row < view->q_rows; row += j->block) {
        const size_t rows = pd_min_size(j->block, view->q_rows - row);
        const size_t n = pd__slots_before(view, h, (int64_t)view->q_pos[row + rows - 1] + 1);
        if (n == 0) continue;
        const float *q = view->q + row * ldq + hq * d;
        if (rows == 1) /* not worth turning K */
            cblas_sgemv(CblasRowMajor, CblasNoTrans, (int)n, (int)d, inv_sqrt, view->k[h], (int)d,
                        q, 1, 0.0f, s, 1);
        else
            logits_of(j, q, ldq, rows, view->k[h], n, inv_sqrt, j->turned[thread], s);
        for (size_t i = 0; i < rows; i++) {
            const size_t seen = pd__slots_before(view, h, (int64_t)view->q_pos[row + i] + 1);
            if (seen == 0) continue;
            float *x = s + i * j->ld;
            const float sum = view->kern->exp_sum_f32(x, seen, view->kern->max_f32(x, seen));
            const float scale = j->times_before ? (float)(seen - 1) : 1.0f;
            if (j->sums)
                add_row(j, h, row + i, x, 1.0f / sum, mean);
            else
                view->kern->axpy_f32(scale / (sum * (float)j->w), x, mean, seen);
        }
    }
}

static pd_status run(window_job j, size_t w, pd_err *err) {
    const pd_view *view = j.view;
    j.w = pd_min_size(w, view->q_rows);
    if (!view->q || j.w == 0)
        return pd_fail(err, PD_EINTERNAL, NULL, "no queries were collected for layer %d",
                       view->layer);
    j.block = pd_max_size(BLOCK_MIN, pd_min_size(BLOCK_MAX, BLOCK_FLOATS / view->n));
    j.block = pd_min_size(j.block, j.w);
    const size_t n_thread = pd_workers_count(view->workers);
    j.ld = pd_div_up(view->n, SLOTS) * SLOTS;
    j.logits = PD_ARENA_NEW(view->tmp, n_thread, float *);
    j.turned = PD_ARENA_NEW(view->tmp, n_thread, float *);
    for (size_t t = 0; j.logits && t < n_thread; t++) {
        if (!j.turned || !(j.turned[t] = PD_ARENA_NEW(view->tmp, view->head_dim * SLOTS, float)) ||
            !(j.logits[t] = PD_ARENA_NEW(view->tmp, j.block * j.ld, float)))
            j.logits = NULL;
    }
    if (!j.logits)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the attention of %zu queries", j.w);
    pd_workers_run(view->workers, window_head, &j, view->n_head);
    return PD_OK;
}

pd_status pd__window_attention(const pd_view *view, size_t w, float *const *out, pd_err *err) {
    return run((window_job){.view = view, .out = out}, w, err);
}

pd_status pd__window_attention_times_before(const pd_view *view, size_t w, float *const *out,
                                            pd_err *err) {
    return run((window_job){.view = view, .times_before = true, .out = out}, w, err);
}

pd_status pd__window_attention_sums(const pd_view *view, size_t w, bool squares, size_t near, float *const *out,
                                    pd_err *err) {
    return run((window_job){.view = view, .sums = true, .squares = squares, .near = near, .out = out}, w, err);
}

float **pd__query_head_rows(const pd_view *view) {
    const size_t n_group = view->n_head / view->n_head_kv;
    float **r = PD_ARENA_NEW(view->tmp, view->n_head, float *);
    for (size_t h = 0; r && h < view->n_head; h++)
        if (!(r[h] = PD_ARENA_NEW(view->tmp, view->n_h[h / n_group], float))) return NULL;
    return r;
}
