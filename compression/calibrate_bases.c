/* SPDX-License-Identifier: Apache-2.0 */
/* Bases of keys and values from a text (see calibrate.h): second moments in double over all
 * tokens but the first PD_CALIB_SINK of each prompt, which are outliers.
 *
 *   shared     keys before RoPE of all heads of a layer stacked (Eigen Attention, 2408.05646, as its
 *              authors' code does it for models with RoPE)
 *   per_head   each head's own
 *   score      each head's, weighted by what its group's queries look at, mean over the distances of
 *              one prompt (bases.h)
 *   rotated    each head's keys after RoPE, for comparison: rotation spreads them over more directions
 *   value      each head's values
 *   joint      keys before RoPE of all heads concatenated (SALS, 2510.24273)
 *
 * Cost per prompt of n tokens and layer: n (Hk (3 D^2) + (Hk D)^2) multiply-adds; at the end a
 * decomposition of each matrix. */
#include "compression/bases.h"
#include "compression/calibrate_int.h"
#include "compression/shared.h"

#include <cblas.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static pd_status no_memory(pd_err *err) {
    return pd_fail(err, PD_ENOMEM, NULL, "no memory to calibrate a layer");
}

/* ---- sums ---- */

typedef struct {
    pd_calib *c;
    const pd_view *view;
    size_t n;     /* rows */
    double *rows; /* [n][3][Hk][D] keys before RoPE, after it, values */
} sum_job;

/* s[d][d] += sum of x x^T over the rows, d channels from `at` on. */
static void add(const sum_job *j, size_t at, size_t d, double *s) {
    const size_t ld = 3 * j->view->n_head_kv * j->view->head_dim;
    cblas_dsyrk(CblasRowMajor, CblasUpper, CblasTrans, (int)d, (int)j->n, 1.0, j->rows + at, (int)ld, 1.0, s, (int)d);
}

/* Tasks: each head's three kinds, then all heads together. */
static void sum_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const sum_job *j = ctx;
    const size_t heads = j->view->n_head_kv, d = j->view->head_dim, l = (size_t)j->view->layer;
    if (task == 3 * heads) {
        add(j, 0, heads * d, j->c->joint + l * heads * d * heads * d);
        return;
    }
    double *const kind[3] = {j->c->key, j->c->rotated, j->c->value};
    add(j, task * d, d, kind[task / heads] + (l * heads + task % heads) * d * d);
}

/* Keys back to before RoPE (angles as they were rotated), and all three as doubles. */
static void load_rows(const pd_view *view, double *rows) {
    const size_t d = view->head_dim, half = d / 2, nkv = view->n_head_kv * d;
    const double back = 1.0 / (double)view->rope_scale;
    for (size_t t = PD_CALIB_SINK; t < view->n; t++, rows += 3 * nkv) {
        for (size_t i = 0; i < half; i++) {
            const float angle = (float)view->pos[0][t] * view->inv_freq[i];
            const double c = (double)cosf(angle) * back, s = (double)sinf(angle) * back;
            for (size_t h = 0; h < view->n_head_kv; h++) {
                const double x = (double)view->k[h][t * d + i], y = (double)view->k[h][t * d + i + half];
                rows[h * d + i] = x * c + y * s;
                rows[h * d + i + half] = y * c - x * s;
            }
        }
        for (size_t h = 0; h < view->n_head_kv; h++)
            for (size_t i = 0; i < d; i++) {
                rows[nkv + h * d + i] = (double)view->k[h][t * d + i];
                rows[2 * nkv + h * d + i] = (double)view->v[h][t * d + i];
            }
    }
}

/* The queries' moment about zero, from their covariance and mean; summed over a group. */
static void add_queries(pd_calib *c, const pd_view *view) {
    const pd_moments *m = pd_view_moments(view, PD_CALIB_SINK);
    const size_t d = view->head_dim, group = view->n_head / view->n_head_kv;
    if (!m || !m->count) return;
    for (size_t h = 0; h < view->n_head; h++) {
        double *s = c->query + ((size_t)view->layer * view->n_head_kv + h / group) * d * d;
        const float *mean = m->mean + h * d, *cov = m->cov + h * d * d;
        for (size_t i = 0; i < d; i++)
            for (size_t k = i; k < d; k++)
                s[i * d + k] +=
                    ((double)cov[i * d + k] + (double)mean[i] * (double)mean[k]) * (double)m->count;
    }
}

pd_status pd__calib_bases_layer(pd_calib *c, const pd_view *view, pd_err *err) {
    if (view->n <= PD_CALIB_SINK) return PD_OK;
    const size_t l = (size_t)view->layer, nkv = view->n_head_kv * view->head_dim;
    sum_job j = {c, view, view->n - PD_CALIB_SINK, NULL};
    if (!(j.rows = PD_ARENA_NEW(view->tmp, j.n * 3 * nkv, double))) return no_memory(err);
    load_rows(view, j.rows);
    if (c->key)
        pd_workers_run(view->workers, sum_task, &j, 3 * view->n_head_kv + (c->joint ? 1 : 0));
    else
        sum_task(&j, 3 * view->n_head_kv, 0);
    if (c->query) add_queries(c, view);
    if (c->freq) memcpy(c->freq + l * view->head_dim / 2, view->inv_freq, view->head_dim / 2 * sizeof *c->freq);
    c->key_rows[l] += j.n;
    if (view->n > c->distances) c->distances = view->n;
    return PD_OK;
}

/* ---- bases ---- */

typedef struct {
    const pd_calib *c;
    double *s, *m; /* scratch of the largest matrix */
    float *out[PD_DATA_N];
} make_job;

/* s = sum / rows; the upper triangle. */
static void mean_of(double *s, const double *sum, size_t n, size_t rows) {
    for (size_t i = 0; i < n * n; i++) s[i] = sum[i] / (double)rows;
}

/* One basis and its energy, at matrix `at` of the tensors. */
static pd_status make(make_job *j, const double *sum, size_t n, size_t rows, size_t at, pd_data_id basis,
                      pd_data_id energy, pd_err *err) {
    mean_of(j->s, sum, n, rows);
    return pd__basis(j->s, n, j->out[basis] + at * n * n, j->out[energy] + at * n, err);
}

static pd_status make_score(make_job *j, size_t l, size_t at, pd_err *err) {
    const size_t n = j->c->model.head_dim;
    mean_of(j->s, j->c->query + at * n * n, n, j->c->key_rows[l]);
    pd__mean_moment(j->s, n, j->c->freq + l * n / 2, j->c->distances, j->m);
    mean_of(j->s, j->c->key + at * n * n, n, j->c->key_rows[l]);
    return pd__score_basis(j->s, j->m, n, j->out[PD_DATA_EIGEN_SCORE] + at * n * n,
                           j->out[PD_DATA_EIGEN_REBUILD] + at * n * n, j->out[PD_DATA_EIGEN_SCORE_ENERGY] + at * n,
                           err);
}

static pd_status make_shared(make_job *j, size_t l, pd_err *err) {
    const size_t n = j->c->model.head_dim, heads = j->c->model.n_head_kv;
    for (size_t i = 0; i < n * n; i++) {
        j->s[i] = 0.0;
        for (size_t h = 0; h < heads; h++) j->s[i] += j->c->key[(l * heads + h) * n * n + i];
    }
    for (size_t i = 0; i < n * n; i++) j->s[i] /= (double)(heads * j->c->key_rows[l]);
    return pd__basis(j->s, n, j->out[PD_DATA_EIGEN_SHARED] + l * n * n, j->out[PD_DATA_EIGEN_SHARED_ENERGY] + l * n,
                     err);
}

static pd_status make_layer(make_job *j, size_t l, pd_err *err) {
    const pd_calib *c = j->c;
    const size_t n = c->model.head_dim, heads = c->model.n_head_kv, rows = c->key_rows[l], all = heads * n;
    if (c->joint)
        PD_TRY(make(j, c->joint + l * all * all, all, rows, l, PD_DATA_JOINT, PD_DATA_JOINT_ENERGY, err));
    if (!c->key) return PD_OK;
    PD_TRY(make_shared(j, l, err));
    for (size_t at = l * heads; at < (l + 1) * heads; at++) {
        PD_TRY(make(j, c->key + at * n * n, n, rows, at, PD_DATA_EIGEN_HEAD, PD_DATA_EIGEN_HEAD_ENERGY, err));
        PD_TRY(make(j, c->rotated + at * n * n, n, rows, at, PD_DATA_EIGEN_ROTATED, PD_DATA_EIGEN_ROTATED_ENERGY, err));
        PD_TRY(make(j, c->value + at * n * n, n, rows, at, PD_DATA_EIGEN_VALUE, PD_DATA_EIGEN_VALUE_ENERGY, err));
        PD_TRY(make_score(j, l, at, err));
    }
    return PD_OK;
}

pd_status pd__calib_bases_make(const pd_calib *c, pd_press_data *d, pd_err *err) {
    const size_t widest = c->joint ? c->model.n_head_kv * c->model.head_dim : c->model.head_dim;
    make_job j = {.c = c};
    for (int id = 0; id < PD_DATA_N; id++) {
        const pd_data_set set = pd_data_set_of((pd_data_id)id);
        if (!((set == PD_SET_EIGEN && c->key) || (set == PD_SET_JOINT && c->joint))) continue;
        if (id == PD_DATA_EIGEN_ERROR || id == PD_DATA_JOINT_ERROR || id == PD_DATA_JOINT_OVERLAP) continue; /* calibrate_errors.c */
        if (!(j.out[id] = pd_press_data_put(d, (pd_data_id)id))) return no_memory(err);
    }
    if (!(j.s = malloc(2 * widest * widest * sizeof *j.s))) return no_memory(err);
    j.m = j.s + widest * widest;
    pd_status rc = PD_OK;
    for (size_t l = 0; l < c->model.n_layer && rc == PD_OK; l++)
        if (c->key_rows[l]) rc = make_layer(&j, l, err);
    free(j.s);
    return rc;
}
