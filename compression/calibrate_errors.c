/* SPDX-License-Identifier: Apache-2.0 */
/* What each rank of each basis costs a layer (see calibrate.h): |y - y'| / |y| over some rows of a
 * text, y the layer's attention output behind its projection, y' the same with every key (or value)
 * but the first PD_CALIB_SINK given by its first directions, i/16 of them for i in 1..15.  As in
 * Eigen Attention's own rank search the layer's input is the undisturbed one; there the ranks are
 * found by lowering a share of singular values, here the whole curve is kept and a request says
 * what it can bear.
 *
 * Cost per prompt of n tokens and layer: six bases, each n Hk D^2 multiply-adds (joint: n (Hk D)^2)
 * and 15 attentions of n / EVERY rows. */
#include "compression/calibrate_int.h"
#include "compression/shared.h"
#include "engine/base/num.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

enum { EVERY = 32, STEPS = PD_EIGEN_STEPS };

typedef struct {
    const pd_view *view;
    size_t n_row;               /* rows EVERY - 1, 2 EVERY - 1, ... of the prompt */
    float **key;                /* [Hk] -> [n][D] before RoPE */
    float *cos, *sin;           /* [n][D/2] */
    const float *out;           /* [n_row][Hq][D] attention as it is */
    /* the basis at work */
    const float *c;             /* joint: [n][n_dir] of all heads; NULL: each head's are made in its scratch */
    const float *project, *rebuild; /* of head 0, and from one head to the next: */
    size_t next_head, ld, n_dir;    /* a row of n_dir has ld numbers */
    bool turned, value;
    float *diff;                /* [STEPS - 1][n_row][Hq][D] */
    float **tmp;                /* [thread] */
} error_job;

static pd_status no_memory(pd_err *err) {
    return pd_fail(err, PD_ENOMEM, NULL, "no memory to calibrate a layer");
}

static size_t scratch_floats(const pd_view *v) {
    return v->n * (3 * v->head_dim + v->n / EVERY);
}

/* out[row][D] of one query head over keys k and values v [n][D], a stride of ld between rows.  w: [n_row][n] */
static void attend(const error_job *j, size_t hq, const float *k, const float *v, float *w, float *out) {
    const pd_view *view = j->view;
    const size_t d = view->head_dim, nq = view->n_head * d, n = view->n;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)j->n_row, (int)n, (int)d, 1.0f / sqrtf((float)d),
                view->q + (EVERY - 1) * nq + hq * d, (int)(EVERY * nq), k, (int)d, 0.0f, w, (int)n);
    for (size_t r = 0; r < j->n_row; r++) {
        float *x = w + r * n;
        const size_t seen = (r + 1) * EVERY;
        const float inv = 1.0f / view->kern->exp_sum_f32(x, seen, view->kern->max_f32(x, seen));
        for (size_t i = 0; i < seen; i++) x[i] *= inv;
        memset(x + seen, 0, (n - seen) * sizeof *x);
    }
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)j->n_row, (int)d, (int)n, 1.0f, w, (int)n, v, (int)d, 0.0f,
                out, (int)nq);
}

static void exact_head(void *ctx, size_t h, unsigned thread) {
    const error_job *j = ctx;
    const pd_view *v = j->view;
    const size_t group = v->n_head / v->n_head_kv;
    for (size_t g = h * group; g < (h + 1) * group; g++)
        attend(j, g, v->k[h], v->v[h], j->tmp[thread], (float *)j->out + g * v->head_dim);
}

/* x[n][D] = the rows at work as i/16 of their directions give them, y added to what it was before. */
static void grow(const error_job *j, size_t h, size_t i, const float *c, float *sum, float *x) {
    const pd_view *v = j->view;
    const size_t d = v->head_dim, from = (i - 1) * j->n_dir / STEPS, to = i * j->n_dir / STEPS, head = PD_CALIB_SINK * d;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)v->n, (int)d, (int)(to - from), 1.0f, c + from,
                (int)j->n_dir, j->rebuild + h * j->next_head + from * j->ld, (int)j->ld, 1.0f, sum, (int)d);
    const float *exact = j->value ? v->v[h] : v->k[h];
    memcpy(x, exact, head * sizeof *x);
    memcpy(x + head, sum + head, (v->n * d - head) * sizeof *x);
    for (size_t t = PD_CALIB_SINK; j->turned && t < v->n; t++)
        v->kern->rope(x + t * d, 1, d, j->cos + t * d / 2, j->sin + t * d / 2);
}

static void basis_head(void *ctx, size_t h, unsigned thread) {
    const error_job *j = ctx;
    const pd_view *v = j->view;
    const size_t d = v->head_dim, nd = v->n * d, nq = v->n_head * d, group = v->n_head / v->n_head_kv;
    float *own = j->tmp[thread], *sum = own + nd, *x = sum + nd, *w = x + nd;
    const float *c = j->c ? j->c : own;
    if (!j->c)
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)v->n, (int)j->n_dir, (int)d, 1.0f,
                    j->value ? v->v[h] : j->turned ? j->key[h] : v->k[h], (int)d, j->project + h * j->next_head,
                    (int)j->ld, 0.0f, own, (int)j->n_dir);
    memset(sum, 0, nd * sizeof *sum);
    for (size_t i = 1; i < STEPS; i++) {
        grow(j, h, i, c, sum, x);
        float *diff = j->diff + (i - 1) * j->n_row * nq;
        for (size_t g = h * group; g < (h + 1) * group; g++) {
            attend(j, g, j->value ? v->k[h] : x, j->value ? x : v->v[h], w, diff + g * d);
            for (size_t r = 0; r < j->n_row; r++)
                v->kern->axpy_f32(-1.0f, j->out + r * nq + g * d, diff + r * nq + g * d, d);
        }
    }
}

/* sum over rows of |Wo o|^2. */
static double squares(const pd_view *v, const float *o, size_t n_row, float *y) {
    const size_t nq = v->n_head * v->head_dim;
    double sum = 0.0;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n_row, (int)v->n_embd, (int)nq, 1.0f, o, (int)nq, v->wo,
                (int)nq, 0.0f, y, (int)v->n_embd);
    for (size_t i = 0; i < n_row * v->n_embd; i++) sum += (double)y[i] * (double)y[i];
    return sum;
}

/* The basis at work: its curve onto sum[STEPS - 1]. */
static void add_curve(error_job *j, double *sum, float *y) {
    pd_workers_run(j->view->workers, basis_head, j, j->view->n_head_kv);
    for (size_t i = 0; i < STEPS - 1; i++)
        sum[i] += squares(j->view, j->diff + i * j->n_row * j->view->n_head * j->view->head_dim, j->n_row, y);
}

static pd_status add_joint(pd_calib *c, error_job *j, float *y, pd_err *err) {
    const pd_view *v = j->view;
    const size_t d = v->head_dim, all = v->n_head_kv * d, l = (size_t)v->layer;
    float *coef = PD_ARENA_NEW(v->tmp, v->n * all, float);
    if (!coef) return no_memory(err);
    const float *basis = pd_press_data_get(c->bases, PD_DATA_JOINT) + l * all * all;
    for (size_t h = 0; h < v->n_head_kv; h++)
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)v->n, (int)all, (int)d, 1.0f, j->key[h], (int)d,
                    basis + h * d, (int)all, h ? 1.0f : 0.0f, coef, (int)all);
    j->c = coef;
    j->project = j->rebuild = basis;
    j->next_head = d;
    j->ld = j->n_dir = all;
    j->turned = true;
    j->value = false;
    add_curve(j, c->joint_error + l * (STEPS - 1), y);
    return pd__calib_overlap(c, v, coef, j->cos, j->sin, err);
}

static void add_eigen(pd_calib *c, error_job *j, float *y) {
    static const pd_data_id basis[PD_EIGEN_CURVES][2] = {
        {PD_DATA_EIGEN_SHARED, PD_DATA_EIGEN_SHARED},   {PD_DATA_EIGEN_HEAD, PD_DATA_EIGEN_HEAD},
        {PD_DATA_EIGEN_SCORE, PD_DATA_EIGEN_REBUILD},   {PD_DATA_EIGEN_ROTATED, PD_DATA_EIGEN_ROTATED},
        {PD_DATA_EIGEN_VALUE, PD_DATA_EIGEN_VALUE},
    };
    const size_t d = j->view->head_dim, l = (size_t)j->view->layer;
    for (size_t b = 0; b < PD_EIGEN_CURVES; b++) {
        const bool shared = basis[b][0] == PD_DATA_EIGEN_SHARED;
        const size_t at = l * (shared ? 1 : j->view->n_head_kv) * d * d;
        j->c = NULL;
        j->project = pd_press_data_get(c->bases, basis[b][0]) + at;
        j->rebuild = pd_press_data_get(c->bases, basis[b][1]) + at;
        j->next_head = shared ? 0 : d * d;
        j->ld = j->n_dir = d;
        j->value = basis[b][0] == PD_DATA_EIGEN_VALUE;
        j->turned = !j->value && basis[b][0] != PD_DATA_EIGEN_ROTATED;
        add_curve(j, c->eigen_error + (l * PD_EIGEN_CURVES + b) * (STEPS - 1), y);
    }
}

/* cos and sin of each row, and the keys before them. */
static pd_status unrotated(error_job *j, pd_err *err) {
    const pd_view *v = j->view;
    const size_t d = v->head_dim, half = d / 2;
    j->cos = PD_ARENA_NEW(v->tmp, v->n * half, float);
    j->sin = PD_ARENA_NEW(v->tmp, v->n * half, float);
    j->key = PD_ARENA_NEW(v->tmp, v->n_head_kv, float *);
    if (!j->cos || !j->sin || !j->key) return no_memory(err);
    for (size_t t = 0; t < v->n; t++)
        for (size_t i = 0; i < half; i++) {
            const float angle = (float)v->pos[0][t] * v->inv_freq[i]; /* as it was rotated */
            j->cos[t * half + i] = cosf(angle);
            j->sin[t * half + i] = sinf(angle);
        }
    for (size_t h = 0; h < v->n_head_kv; h++) {
        float *k = j->key[h] = PD_ARENA_NEW(v->tmp, v->n * d, float);
        if (!k) return no_memory(err);
        for (size_t t = 0; t < v->n; t++, k += d)
            for (size_t i = 0; i < half; i++) {
                const float x = v->k[h][t * d + i], y = v->k[h][t * d + i + half];
                k[i] = x * j->cos[t * half + i] + y * j->sin[t * half + i];
                k[i + half] = y * j->cos[t * half + i] - x * j->sin[t * half + i];
            }
    }
    return PD_OK;
}

pd_status pd__calib_errors_layer(pd_calib *c, const pd_view *view, pd_err *err) {
    const size_t nq = view->n_head * view->head_dim, n_thread = pd_workers_count(view->workers);
    error_job j = {.view = view, .n_row = view->n / EVERY};
    if (j.n_row == 0 || view->q_rows != view->n) return PD_OK;
    float *out = PD_ARENA_NEW(view->tmp, j.n_row * nq, float), *y = PD_ARENA_NEW(view->tmp, j.n_row * view->n_embd, float);
    j.diff = PD_ARENA_NEW(view->tmp, (STEPS - 1) * j.n_row * nq, float);
    j.tmp = PD_ARENA_NEW(view->tmp, n_thread, float *);
    for (size_t t = 0; j.tmp && t < n_thread; t++)
        if (!(j.tmp[t] = PD_ARENA_NEW(view->tmp, scratch_floats(view), float))) return no_memory(err);
    if (!out || !y || !j.diff || !j.tmp) return no_memory(err);
    PD_TRY(unrotated(&j, err));
    j.out = out;
    pd_workers_run(view->workers, exact_head, &j, view->n_head_kv);
    c->output[view->layer] += squares(view, out, j.n_row, y);
    if (c->eigen_error) add_eigen(c, &j, y);
    return c->joint_error ? add_joint(c, &j, y, err) : PD_OK;
}

static void put_curves(const pd_calib *c, const double *sum, size_t n_curve, float *ret) {
    for (size_t i = 0; i < c->model.n_layer * n_curve * (STEPS - 1); i++) {
        const double whole = c->output[i / (n_curve * (STEPS - 1))];
        ret[i] = whole > 0.0 ? (float)sqrt(sum[i] / whole) : 0.0f;
    }
}

pd_status pd__calib_errors_finish(const pd_calib *c, pd_press_data *d, pd_err *err) {
    float *eigen = c->eigen_error ? pd_press_data_put(d, PD_DATA_EIGEN_ERROR) : NULL;
    float *joint = c->joint_error ? pd_press_data_put(d, PD_DATA_JOINT_ERROR) : NULL;
    float *overlap = c->overlap ? pd_press_data_put(d, PD_DATA_JOINT_OVERLAP) : NULL;
    if ((c->eigen_error && !eigen) || (c->joint_error && (!joint || !overlap))) return no_memory(err);
    if (eigen) put_curves(c, c->eigen_error, PD_EIGEN_CURVES, eigen);
    if (joint) put_curves(c, c->joint_error, 1, joint);
    for (size_t i = 0; overlap && i < c->model.n_layer * PD_OVERLAP_SETUPS; i++) {
        const size_t n = c->overlap_rows[i / PD_OVERLAP_SETUPS];
        overlap[i] = n ? (float)fmin(1.0, c->overlap[i] / (double)n) : 0.0f;
    }
    return PD_OK;
}
