/* SPDX-License-Identifier: Apache-2.0 */
/* Attention backwards (see reverse_int.h).
 *
 * With S = scale Q K^T (bent to c tanh(S / c) where the model does so), P = softmax(S)
 * and dO the gradient of O = P V:
 *
 *     dV = P^T dO,   dP = dO V^T,   dS = P (dP - sum_t P dP),   dQ = scale dS K,   dK = scale dS^T Q
 *
 * as in FlashAttention's appendix (Dao et al. 2022, arXiv 2205.14135).  P is computed
 * once more for a block of queries.  First all blocks, which leave P and dS of the rows'
 * own slots; then those slots, since a cached one has no gradient.  Both cut by number
 * alone: sums do not depend on threads. */
#include "engine/run/reverse_int.h"

#include "engine/base/num.h"

#include <cblas.h>
#include <string.h>

typedef struct {
    pd_reverse *r;
    const pd_stage *s;
    size_t row0, n, block, n_block;
    uint32_t window;
    const float *d_out;
} back_job;

/* One past the last slot that token i of the tile sees; and the first one. */
static size_t end_of(const back_job *j, size_t head, size_t i) {
    return j->s->n_prior[head] + j->row0 + i + 1;
}

static size_t begin_of(const back_job *j, size_t head, size_t i) {
    const size_t end = end_of(j, head, i);
    return j->window && end > j->window ? end - j->window : 0;
}

/* a [rows][D] times b [cols][D] transposed. */
static void outer(size_t rows, size_t cols, size_t d, float scale, const float *a, const float *b, float *y) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)cols, (int)d, scale, a, (int)d, b, (int)d, 0.0f, y, (int)cols);
}

/* score: S in, P out; with a cap `bent` gets the slope of the bend. */
static void softmax_rows(const back_job *j, size_t head, size_t i0, size_t n, size_t lo, size_t width, float *score, float *bent) {
    const pd_hparams *hp = &j->r->model->hp;
    const pd_kernels *kern = j->r->fwd->kern;
    const size_t group = hp->n_head / hp->n_head_kv;
    for (size_t i = 0; i < n * group; i++) {
        const size_t from = begin_of(j, head, i0 + i / group) - lo, to = end_of(j, head, i0 + i / group) - lo;
        float *row = score + i * width;
        if (bent) {
            kern->softcap(row + from, to - from, hp->attn_softcap);
            for (size_t t = from; t < to; t++) {
                const float y = row[t] / hp->attn_softcap;
                bent[i * width + t] = 1.0f - y * y;
            }
        }
        const float inv = 1.0f / kern->exp_sum_f32(row + from, to - from, kern->max_f32(row + from, to - from));
        for (size_t t = from; t < to; t++) row[t] *= inv;
        memset(row, 0, from * sizeof *row);
        memset(row + to, 0, (width - to) * sizeof *row);
    }
}

/* dP to dS: zero where P is. */
static void score_back(size_t rows, size_t width, const float *p, const float *bent, float *dp) {
    for (size_t i = 0; i < rows; i++) {
        const float *w = p + i * width;
        float *d = dp + i * width;
        double sum = 0.0;
        for (size_t t = 0; t < width; t++) sum += (double)w[t] * d[t];
        const float mean = (float)sum;
        for (size_t t = 0; t < width; t++) d[t] = w[t] * (d[t] - mean);
        for (size_t t = 0; bent && t < width; t++)
            if (w[t] != 0.0f) d[t] *= bent[i * width + t];
    }
}

static void block_task(void *ctx, size_t task, unsigned thread) {
    const back_job *j = ctx;
    pd_reverse *r = j->r;
    const pd_hparams *hp = &r->model->hp;
    const size_t head = task / j->n_block, i0 = task % j->n_block * j->block, n = pd_min_size(j->block, j->n - i0);
    const size_t d = hp->head_dim, nq = hp->n_head * d, group = hp->n_head / hp->n_head_kv, rows = n * group;
    const size_t lo = begin_of(j, head, i0), width = end_of(j, head, i0 + n - 1) - lo;
    const size_t first = head * PD_REVERSE_TILE * group + i0 * group; /* row of the arrays by KV head */
    float *q = r->qg + first * d, *og = r->og + first * d;
    for (size_t i = 0; i < n; i++) {
        memcpy(q + i * group * d, r->fwd->q + (i0 + i) * nq + head * group * d, group * d * sizeof *q);
        memcpy(og + i * group * d, j->d_out + (i0 + i) * nq + head * group * d, group * d * sizeof *og);
    }
    float *p = r->score + thread * r->score_floats, *ds = p + rows * width, *bent = hp->attn_softcap > 0.0f ? ds + rows * width : NULL;
    const float *k = pd_stage_k(j->s, head) + lo * d, *v = pd_stage_v(j->s, head) + lo * d;
    outer(rows, width, d, hp->attn_scale, q, k, p);
    softmax_rows(j, head, i0, n, lo, width, p, bent);
    outer(rows, width, d, 1.0f, og, v, ds);
    score_back(rows, width, p, bent, ds);
    for (size_t g = 0; g < group; g++) /* rows of one query head lie group rows apart */
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)n, (int)d, (int)width, hp->attn_scale, ds + g * width,
                    (int)(group * width), k, (int)d, 0.0f, r->dq + (j->row0 + i0) * nq + (head * group + g) * d, (int)nq);
    const size_t prior = j->s->n_prior[head], from = pd_max_size(lo, prior), skip = from - prior, own = lo + width - from;
    for (size_t i = 0; i < rows; i++) {
        float *own_p = r->own_p + (first + i) * r->m, *own_s = r->own_s + (first + i) * r->m;
        memset(own_p, 0, (j->row0 + j->n) * sizeof *own_p);
        memset(own_s, 0, (j->row0 + j->n) * sizeof *own_s);
        memcpy(own_p + skip, p + i * width + from - lo, own * sizeof *own_p);
        memcpy(own_s + skip, ds + i * width + from - lo, own * sizeof *own_s);
    }
}

static void own_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const back_job *j = ctx;
    pd_reverse *r = j->r;
    const pd_hparams *hp = &r->model->hp;
    const size_t head = task / j->n_block, s0 = task % j->n_block * j->block, n = pd_min_size(j->block, j->row0 + j->n - s0);
    const size_t d = hp->head_dim, nkv = hp->n_head_kv * d, group = hp->n_head / hp->n_head_kv, rows = j->n * group;
    const size_t first = head * PD_REVERSE_TILE * group, at = s0 * nkv + head * d;
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)n, (int)d, (int)rows, hp->attn_scale, r->own_s + first * r->m + s0,
                (int)r->m, r->qg + first * d, (int)d, 1.0f, r->dk + at, (int)nkv);
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)n, (int)d, (int)rows, 1.0f, r->own_p + first * r->m + s0, (int)r->m,
                r->og + first * d, (int)d, 1.0f, r->dv + at, (int)nkv);
}

void pd__attention_back(pd_reverse *r, const pd_stage *s, size_t row0, size_t n, uint32_t window, const float *d_out) {
    const pd_hparams *hp = &r->model->hp;
    back_job job = {.r = r, .s = s, .row0 = row0, .n = n, .block = pd__reverse_block(hp), .window = window, .d_out = d_out};
    job.n_block = pd_div_up(n, job.block);
    pd_workers_run(r->fwd->workers, block_task, &job, hp->n_head_kv * job.n_block);
    job.block = PD_REVERSE_TILE;
    job.n_block = pd_div_up(row0 + n, job.block);
    pd_workers_run(r->fwd->workers, own_task, &job, hp->n_head_kv * job.n_block);
}
