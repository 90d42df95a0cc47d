/* SPDX-License-Identifier: Apache-2.0 */
/* How much of a layer's attention the tokens hold that joint latents choose (see calibrate.h): SALS's
 * overlap (2510.24273), the share of the true weights, mean over heads and some rows of a text, of the
 * sinks, the last WINDOW tokens and one in EVERY_TOKEN of those between, chosen by the first numbers of
 * the latents (engine/run/joint_read.h).  A layer where that is little had better read everything.
 *
 * Only rows with at least LEAST tokens before them count, or the later half of shorter prompts.
 * Cost per prompt of n tokens and layer: n / 32 attentions' scores, and as many choices. */
#include "compression/calibrate_int.h"
#include "compression/shared.h"
#include "engine/base/num.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

enum { EVERY = 32, EVERY_TOKEN = 8, WINDOW = 64, LEAST = 512, SETUPS = PD_OVERLAP_SETUPS };

typedef struct {
    const pd_view *view;
    const float *c;          /* [n][J] latents, all numbers */
    const float *basis;      /* [J][J] */
    const float *cos, *sin;  /* [n][D/2] */
    size_t row0, n_row;      /* rows (row0 + i + 1) * EVERY - 1 */
    uint8_t *in;             /* [n_row][n] bit per setup: the token is read */
    double *sum;             /* [Hk][SETUPS] over rows and the group's heads */
    float **tmp;             /* [thread] n_row * n */
} overlap_job;

static size_t token_of(const overlap_job *j, size_t row) {
    return (j->row0 + row + 1) * EVERY - 1;
}

/* The mean query of each group without RoPE, and its first numbers. */
static void project(const overlap_job *j, size_t t, size_t n_lead, float *q, float *lead) {
    const pd_view *v = j->view;
    const size_t d = v->head_dim, half = d / 2, row = v->n_head_kv * d, group = v->n_head / v->n_head_kv;
    memset(q, 0, row * sizeof *q);
    for (size_t g = 0; g < v->n_head; g++)
        v->kern->axpy_f32(1.0f / (float)group, v->q + (t * v->n_head + g) * d, q + g / group * d, d);
    for (size_t h = 0; h < v->n_head_kv; h++)
        for (size_t i = 0; i < half; i++) {
            const float c = j->cos[t * half + i], s = j->sin[t * half + i], x = q[h * d + i], y = q[h * d + i + half];
            q[h * d + i] = x * c + y * s;
            q[h * d + i + half] = y * c - x * s;
        }
    for (size_t i = 0; i < n_lead; i++) lead[i] = v->kern->dot_f32(j->basis + i * row, q, row);
}

/* Task = row: what each setup reads. */
static void choose_row(void *ctx, size_t r, unsigned thread) {
    const overlap_job *j = ctx;
    const pd_view *v = j->view;
    const size_t row = v->n_head_kv * v->head_dim, t = token_of(j, r), seen = t + 1, end = seen - WINDOW, most = row / PD_OVERLAP_LEAST;
    float *score = j->tmp[thread], *q = score + v->n, *lead = q + row;
    uint32_t *keep = (uint32_t *)(lead + row);
    uint8_t *in = j->in + r * v->n;
    project(j, t, most, q, lead);
    memset(score, 0, seen * sizeof *score);
    for (size_t s = SETUPS; s-- > 0;) { /* the fewest numbers first: scores grow */
        const size_t from = s + 1 < SETUPS ? row / (PD_OVERLAP_LEAST << (s + 1)) : 0, n = row / (PD_OVERLAP_LEAST << s) - from;
        for (size_t i = PD_CALIB_SINK; i < end; i++) score[i] += v->kern->dot_f32(lead + from, j->c + i * row + from, n);
        const size_t k = pd_div_up(end - PD_CALIB_SINK, EVERY_TOKEN);
        (void)pd_top_k(score + PD_CALIB_SINK, end - PD_CALIB_SINK, k, keep, NULL, NULL);
        for (size_t i = 0; i < k; i++) in[PD_CALIB_SINK + keep[i]] |= (uint8_t)(1u << s);
        for (size_t i = 0; i < seen; i++)
            if (i < PD_CALIB_SINK || i >= end) in[i] |= (uint8_t)(1u << s);
    }
}

/* Task = KV head: the weights of its queries. */
static void weigh_head(void *ctx, size_t h, unsigned thread) {
    const overlap_job *j = ctx;
    const pd_view *v = j->view;
    const size_t d = v->head_dim, nq = v->n_head * d, n = v->n, group = v->n_head / v->n_head_kv;
    float *w = j->tmp[thread];
    for (size_t g = h * group; g < (h + 1) * group; g++) {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)j->n_row, (int)n, (int)d, 1.0f / sqrtf((float)d),
                    v->q + token_of(j, 0) * nq + g * d, (int)(EVERY * nq), v->k[h], (int)d, 0.0f, w, (int)n);
        for (size_t r = 0; r < j->n_row; r++) {
            float *x = w + r * n;
            const size_t seen = token_of(j, r) + 1;
            const double all = (double)v->kern->exp_sum_f32(x, seen, v->kern->max_f32(x, seen));
            double held[SETUPS] = {0};
            for (size_t i = 0; i < seen; i++)
                for (size_t s = 0; s < SETUPS; s++) held[s] += j->in[r * n + i] >> s & 1 ? (double)x[i] : 0.0;
            for (size_t s = 0; s < SETUPS; s++) j->sum[h * SETUPS + s] += held[s] / all;
        }
    }
}

pd_status pd__calib_overlap(pd_calib *c, const pd_view *view, const float *latents, const float *cos, const float *sin, pd_err *err) {
    const size_t row = view->n_head_kv * view->head_dim, l = (size_t)view->layer, n_thread = pd_workers_count(view->workers);
    const size_t rows = view->n / EVERY, least = pd_min_size(LEAST, view->n / 2);
    overlap_job j = {.view = view, .c = latents, .cos = cos, .sin = sin,
                     .basis = pd_press_data_get(c->bases, PD_DATA_JOINT) + l * row * row, .row0 = least / EVERY};
    if (rows <= j.row0 || least < WINDOW + 2 * PD_CALIB_SINK) return PD_OK;
    j.n_row = rows - j.row0;
    j.in = pd_arena_zalloc(view->tmp, j.n_row * view->n, 1);
    j.sum = pd_arena_zalloc(view->tmp, view->n_head_kv * SETUPS, sizeof *j.sum);
    j.tmp = PD_ARENA_NEW(view->tmp, n_thread, float *);
    for (size_t t = 0; j.tmp && t < n_thread; t++) {
        j.tmp[t] = PD_ARENA_NEW(view->tmp, pd_max_size(j.n_row, 2) * view->n + 2 * row, float);
        if (!j.tmp[t]) j.tmp = NULL;
    }
    if (!j.in || !j.sum || !j.tmp) return pd_fail(err, PD_ENOMEM, NULL, "no memory to calibrate a layer");
    pd_workers_run(view->workers, choose_row, &j, j.n_row);
    pd_workers_run(view->workers, weigh_head, &j, view->n_head_kv);
    for (size_t i = 0; i < view->n_head_kv * SETUPS; i++) c->overlap[l * SETUPS + i % SETUPS] += j.sum[i];
    c->overlap_rows[l] += j.n_row * view->n_head;
    return PD_OK;
}
