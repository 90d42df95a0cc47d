/* SPDX-License-Identifier: Apache-2.0 */
/* What a text tells by being repeated (see calibrate.h).
 *
 * The prompt holds a text twice; with P the attention weights of the second copy's
 * rows r on the first copy's slots t (softmax over all slots up to the row),
 *
 *     KVzip score    s[h][t] = max over query heads of h and rows of P[r][t]
 *     KVzip+ score   the same of P[r][t] |Wo v_t| / |x_r|
 *
 * (arXiv 2505.23416, 2601.07891.)  DIFFERS: KVzip's softmax runs over sinks, text
 * and copy alone, and its prompts are cut into chunks; here it is the model's own.
 *
 * KVzap (arXiv 2601.07891): y = ln of the KVzip+ score is regressed on x_t, the
 * attention input of the first copy: ridge with alpha 1 and an unpenalised
 * constant, by the normal equations, summed about the first text's means.
 * LU-KV (arXiv 2602.08585): row i of the curves says which share of each head's
 * slots is among the int(N (i + 1) / 100) lowest KVzip scores of all layers and
 * heads; the first tokens of a prompt never are.  The mean over texts.
 * Cost per layer: Hq*n*L*D multiply-adds and exps for the weights, Hq*n*D*d for
 * |Wo v|, n*d^2 for the normal equations. */
#include "compression/calibrate_int.h"
#include "compression/shared.h"
#include "engine/base/num.h"

#include <cblas.h>
#include <float.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 64 }; /* of one block of weights */

static const double ridge_alpha = 1.0;

static pd_status no_memory(pd_err *err) {
    return pd_fail(err, PD_ENOMEM, NULL, "no memory to calibrate a layer");
}

/* ---- scores ---- */

typedef struct {
    const pd_calib *c;
    const pd_view *view;
    const float *inv_norm; /* [rows of the copy] 1 / |x_r| */
    float *zip, *plus;     /* [Hq][n] */
    float **block;         /* [thread] [ROWS][max(L, d)] */
} score_job;

/* zip and plus (without |Wo v|) of one query head: the largest weight of each slot. */
static void weights(const score_job *j, size_t hq, float *z) {
    const pd_view *v = j->view;
    const size_t d = v->head_dim, nq = v->n_head * d, n = j->c->n;
    const float *k = v->k[hq / (v->n_head / v->n_head_kv)];
    float *zip = j->zip + hq * n, *plus = j->plus + hq * n;
    for (size_t r0 = j->c->again; r0 < v->n; r0 += ROWS) {
        const size_t rows = pd_min_size(ROWS, v->n - r0), keys = r0 + rows;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)keys, (int)d,
                    1.0f / sqrtf((float)d), v->q + r0 * nq + hq * d, (int)nq, k, (int)d, 0.0f, z,
                    (int)keys);
        for (size_t r = 0; r < rows; r++) {
            float *p = z + r * keys;
            const size_t seen = r0 + r + 1;
            const float inv = 1.0f / v->kern->exp_sum_f32(p, seen, v->kern->max_f32(p, seen));
            const float inv_norm = j->inv_norm[r0 + r - j->c->again];
            for (size_t t = 0; t < n; t++) {
                const float w = p[j->c->first + t] * inv;
                zip[t] = fmaxf(zip[t], w);
                plus[t] = fmaxf(plus[t], w * inv_norm);
            }
        }
    }
}

/* plus[t] *= |Wo v_t| of query head hq. */
static void times_effect(const score_job *j, size_t hq, float *y) {
    const pd_view *v = j->view;
    const size_t d = v->head_dim, nq = v->n_head * d, n = j->c->n, e = v->n_embd;
    const float *val = v->v[hq / (v->n_head / v->n_head_kv)] + j->c->first * d;
    for (size_t t0 = 0; t0 < n; t0 += ROWS) {
        const size_t rows = pd_min_size(ROWS, n - t0);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)e, (int)d, 1.0f,
                    val + t0 * d, (int)d, v->wo + hq * d, (int)nq, 0.0f, y, (int)e);
        for (size_t r = 0; r < rows; r++)
            j->plus[hq * n + t0 + r] *= sqrtf(v->kern->dot_f32(y + r * e, y + r * e, e));
    }
}

static void score_head(void *ctx, size_t hq, unsigned thread) {
    const score_job *j = ctx;
    weights(j, hq, j->block[thread]);
    times_effect(j, hq, j->block[thread]);
}

/* The largest over the query heads of each KV head, to the first head's rows. */
static void over_group(const pd_view *view, float *x, size_t n) {
    const size_t g = view->n_head / view->n_head_kv;
    for (size_t h = 0; h < view->n_head; h++) {
        float *into = x + h / g * n;
        for (size_t t = 0; t < n; t++)
            into[t] = h % g == 0 ? x[h * n + t] : fmaxf(into[t], x[h * n + t]);
    }
}

/* ---- the regressors' sums ---- */

/* Means of the first text shown, about which everything is summed. */
static void choose_shift(pd_calib *c, size_t l, const float *x, const float *y) {
    const size_t e = c->model.n_embd, hk = c->model.n_head_kv;
    for (size_t i = 0; i < e; i++) {
        double sum = 0.0;
        for (size_t t = 0; t < c->n; t++) sum += (double)x[t * e + i];
        c->x_shift[l * e + i] = (float)(sum / (double)c->n);
    }
    for (size_t h = 0; h < hk; h++) {
        double sum = 0.0;
        for (size_t t = 0; t < c->n; t++) sum += (double)y[h * c->n + t];
        c->y_shift[l * hk + h] = (float)(sum / (double)c->n);
    }
}

/* y [H][n] of this layer. */
static pd_status add_rows(pd_calib *c, const pd_view *view, const float *y, pd_err *err) {
    const size_t l = (size_t)view->layer, e = c->model.n_embd, hk = c->model.n_head_kv, n = c->n;
    const float *x = view->x + c->first * e;
    float *xs = PD_ARENA_NEW(view->tmp, n * e, float), *ys = PD_ARENA_NEW(view->tmp, n * hk, float);
    float *xx = PD_ARENA_NEW(view->tmp, e * e, float), *xy = PD_ARENA_NEW(view->tmp, e * hk, float);
    if (!xs || !ys || !xx || !xy) return no_memory(err);
    if (c->rows[l] == 0) choose_shift(c, l, x, y);
    for (size_t t = 0; t < n; t++) {
        for (size_t i = 0; i < e; i++) {
            xs[t * e + i] = x[t * e + i] - c->x_shift[l * e + i];
            c->x_sum[l * e + i] += (double)xs[t * e + i];
        }
        for (size_t h = 0; h < hk; h++) {
            ys[t * hk + h] = y[h * n + t] - c->y_shift[l * hk + h];
            c->y_sum[l * hk + h] += (double)ys[t * hk + h];
        }
    }
    cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, (int)e, (int)n, 1.0f, xs, (int)e, 0.0f, xx,
                (int)e);
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)e, (int)hk, (int)n, 1.0f, xs, (int)e,
                ys, (int)hk, 0.0f, xy, (int)hk);
    for (size_t i = 0; i < e; i++)
        for (size_t k = i; k < e; k++) c->xx[(l * e + i) * e + k] += (double)xx[i * e + k];
    for (size_t i = 0; i < e * hk; i++) c->xy[l * e * hk + i] += (double)xy[i];
    c->rows[l] += n;
    return PD_OK;
}

pd_status pd__calib_repeat_layer(pd_calib *c, const pd_view *view, pd_err *err) {
    const size_t n = c->n, n_copy = view->n - c->again, hk = c->model.n_head_kv;
    const size_t n_thread = pd_workers_count(view->workers);
    float *inv_norm = PD_ARENA_NEW(view->tmp, n_copy, float);
    score_job j = {.c = c, .view = view, .inv_norm = inv_norm};
    j.zip = pd_arena_zalloc(view->tmp, view->n_head * n, sizeof(float));
    j.plus = pd_arena_zalloc(view->tmp, view->n_head * n, sizeof(float));
    j.block = PD_ARENA_NEW(view->tmp, n_thread, float *);
    for (size_t t = 0; j.block && t < n_thread; t++)
        if (!(j.block[t] =
                  PD_ARENA_NEW(view->tmp, ROWS * pd_max_size(view->n, view->n_embd), float)))
            return no_memory(err);
    if (!inv_norm || !j.zip || !j.plus || !j.block) return no_memory(err);
    for (size_t r = 0; r < n_copy; r++) {
        const float *x = view->x + (c->again + r) * view->n_embd;
        inv_norm[r] = 1.0f / sqrtf(view->kern->dot_f32(x, x, view->n_embd));
    }
    pd_workers_run(view->workers, score_head, &j, view->n_head);
    over_group(view, j.zip, n);
    over_group(view, j.plus, n);
    if (c->score) memcpy(c->score + (size_t)view->layer * hk * n, j.zip, hk * n * sizeof *c->score);
    if (c->gates) PD_TRY(pd__gates_add(c->gates, view, c->first, n, c->repeated, j.zip, err));
    if (!c->xx) return PD_OK;
    for (size_t i = 0; i < hk * n; i++) j.plus[i] = logf(fmaxf(j.plus[i], FLT_MIN));
    return add_rows(c, view, j.plus, err);
}

/* ---- LU-KV's curves ---- */

static int by_score(const void *a, const void *b, void *score) {
    const float *s = score;
    const uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    if (s[i] != s[j]) return s[i] < s[j] ? -1 : 1;
    return i < j ? 1 : -1; /* of equal scores the higher slot goes first */
}

/* The slots of all shown layers, lowest score first; returns how many. */
static size_t sort_slots(pd_calib *c, uint32_t *order) {
    const size_t heads = c->model.n_layer * c->model.n_head_kv;
    size_t n_all = 0;
    for (size_t h = 0; h < heads; h++) {
        if (!c->seen[h / c->model.n_head_kv]) continue;
        for (size_t t = 0; t < c->n; t++) {
            if (c->first + t < PD_CALIB_SINK) c->score[h * c->n + t] = INFINITY;
            order[n_all++] = (uint32_t)(h * c->n + t);
        }
    }
    qsort_r(order, n_all, sizeof *order, by_score, c->score);
    return n_all;
}

pd_status pd_calib_repeat_end(pd_calib *c, pd_err *err) {
    c->n_repeat++;
    c->repeated += c->n;
    if (!c->score) return PD_OK;
    const size_t heads = c->model.n_layer * c->model.n_head_kv;
    uint32_t *order = malloc(heads * c->n * sizeof *order);
    size_t *gone = calloc(heads, sizeof *gone), at = 0;
    if (!order || !gone || heads * c->n > UINT32_MAX) {
        free(order);
        free(gone);
        return no_memory(err);
    }
    const size_t n_all = sort_slots(c, order);
    for (size_t i = 0; i < PD_LUKV_ROWS; i++) {
        const size_t end = (size_t)((double)n_all * ((double)(i + 1) / 100.0));
        for (; at < end; at++) gone[order[at] / c->n]++;
        for (size_t h = 0; h < heads; h++)
            c->pruned[i * heads + h] += (double)gone[h] / (double)c->n;
    }
    free(order);
    free(gone);
    return PD_OK;
}

/* ---- finish ---- */

/* Solve layer l; a: scratch [d][d], b: [d][Hk]. */
static pd_status solve(const pd_calib *c, size_t l, double *a, double *b, float *weight,
                       float *bias, pd_err *err) {
    const size_t e = c->model.n_embd, hk = c->model.n_head_kv;
    const double n = (double)c->rows[l];
    const double *xs = c->x_sum + l * e, *ys = c->y_sum + l * hk;
    for (size_t i = 0; i < e; i++) {
        for (size_t k = i; k < e; k++)
            a[i * e + k] =
                c->xx[(l * e + i) * e + k] - xs[i] * xs[k] / n + (i == k ? ridge_alpha : 0.0);
        for (size_t h = 0; h < hk; h++)
            b[i * hk + h] = c->xy[(l * e + i) * hk + h] - xs[i] * ys[h] / n;
    }
    if (LAPACKE_dposv(LAPACK_ROW_MAJOR, 'U', (int)e, (int)hk, a, (int)e, b, (int)hk) != 0)
        return pd_fail(err, PD_EINTERNAL, NULL, "the regression of layer %zu has no solution", l);
    for (size_t h = 0; h < hk; h++) {
        double rest = (double)c->y_shift[l * hk + h] + ys[h] / n;
        for (size_t i = 0; i < e; i++) {
            weight[(l * hk + h) * e + i] = (float)b[i * hk + h];
            rest -= b[i * hk + h] * ((double)c->x_shift[l * e + i] + xs[i] / n);
        }
        bias[l * hk + h] = (float)rest;
    }
    return PD_OK;
}

static pd_status finish_kvzap(pd_calib *c, pd_press_data *d, pd_err *err) {
    const size_t e = c->model.n_embd, hk = c->model.n_head_kv;
    float *weight = pd_press_data_put(d, PD_DATA_KVZAP_WEIGHT),
          *bias = pd_press_data_put(d, PD_DATA_KVZAP_BIAS);
    double *a = calloc(e * e + e * hk, sizeof *a);
    pd_status rc = weight && bias && a ? PD_OK : no_memory(err);
    for (size_t l = 0; l < c->model.n_layer && rc == PD_OK; l++)
        if (c->seen[l]) rc = solve(c, l, a, a + e * e, weight, bias, err);
    free(a);
    return rc;
}

pd_status pd__calib_repeat_finish(pd_calib *c, pd_press_data *d, pd_err *err) {
    if (c->n_repeat == 0) return pd_fail(err, PD_EINVAL, NULL, "no text was repeated");
    if (c->xx) PD_TRY(finish_kvzap(c, d, err));
    if (!c->pruned) return PD_OK;
    const size_t heads = c->model.n_layer * c->model.n_head_kv;
    float *curves = pd_press_data_put(d, PD_DATA_LUKV_CURVES);
    if (!curves) return no_memory(err);
    for (size_t i = 0; i < PD_LUKV_ROWS; i++)
        for (size_t h = 0; h < heads; h++)
            curves[i * heads + h] = c->seen[h / c->model.n_head_kv]
                                        ? (float)(c->pruned[i * heads + h] / (double)c->n_repeat)
                                        : (float)(i + 1) / 100.0f;
    return PD_OK;
}
