/* SPDX-License-Identifier: Apache-2.0 */
/* What a text tells by being read once (see calibrate.h).
 *
 * Statistics (arXiv 2510.00636, kvpress' collect_queries): mean and covariance of
 * the queries before RoPE of all texts together, the first PD_CALIB_SINK tokens of
 * each left out, the sum of squares over N - 1.  Texts are pooled by their moments
 * (Chan, Golub, LeVeque 1979), so that no large sums cancel.
 *
 * Q-filters (arXiv 2503.02812): per query head the top right singular vector u of
 * the rotated queries, again without the first tokens and not centred, that is
 * the top eigenvector of Q^T Q; its sign so that the mean <q, u> is positive; the
 * mean over the query heads of a KV head, stored with the opposite sign.
 *
 * DuoAttention (arXiv 2410.10819, kvpress' duo_attention_on_the_fly): per text the
 * mean query and key before RoPE stand at each of 500 positions; the last query's
 * attention weights, accumulated from the first key on, and their mean are the
 * area under that curve; the mean over query heads and texts is the score. */
#include "compression/calibrate_int.h"
#include "compression/shared.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DUO_POSITIONS = 500, DUO_SINK = 128, DUO_RECENT = 256 };

static pd_status no_memory(pd_err *err) {
    return pd_fail(err, PD_ENOMEM, NULL, "no memory to calibrate a layer");
}

/* ---- statistics ---- */

static void pool_moments(pd_calib *c, const pd_view *view, const pd_moments *m) {
    const size_t l = (size_t)view->layer, d = view->head_dim;
    const double na = (double)c->count[l], nb = (double)m->count, n = na + nb;
    for (size_t h = 0; h < view->n_head; h++) {
        const size_t at = (l * view->n_head + h) * d;
        const float *mean = m->mean + h * d, *cov = m->cov + h * d * d;
        for (size_t i = 0; i < d; i++) {
            const double di = (double)mean[i] - c->mean[at + i];
            for (size_t j = 0; j < d; j++) {
                const double dj = (double)mean[j] - c->mean[at + j];
                c->m2[(at + i) * d + j] += (double)cov[i * d + j] * nb + di * dj * (na * nb / n);
            }
        }
        for (size_t i = 0; i < d; i++)
            c->mean[at + i] += ((double)mean[i] - c->mean[at + i]) * (nb / n);
    }
    c->count[l] += m->count;
}

/* ---- Q-filters ---- */

typedef struct {
    pd_calib *c;
    const pd_view *view;
    size_t first, n; /* rows of view->q */
    float **gram;    /* [thread][D][D] */
} gram_job;

static void gram_head(void *ctx, size_t h, unsigned thread) {
    const gram_job *j = ctx;
    const size_t d = j->view->head_dim, nq = j->view->n_head * d;
    const size_t at = ((size_t)j->view->layer * j->view->n_head + h) * d;
    const float *q = j->view->q + j->first * nq + h * d;
    float *g = j->gram[thread];
    cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, (int)d, (int)j->n, 1.0f, q, (int)nq, 0.0f, g,
                (int)d);
    for (size_t i = 0; i < d; i++)
        for (size_t k = i; k < d; k++) j->c->gram[(at + i) * d + k] += (double)g[i * d + k];
    for (size_t r = 0; r < j->n; r++)
        for (size_t i = 0; i < d; i++) j->c->q_sum[at + i] += (double)q[r * nq + i];
}

static pd_status add_gram(pd_calib *c, const pd_view *view, pd_err *err) {
    if (view->q_rows <= PD_CALIB_SINK) return PD_OK;
    const size_t n_thread = pd_workers_count(view->workers), d = view->head_dim;
    gram_job j = {c, view, PD_CALIB_SINK, view->q_rows - PD_CALIB_SINK,
                  PD_ARENA_NEW(view->tmp, n_thread, float *)};
    for (size_t t = 0; j.gram && t < n_thread; t++)
        if (!(j.gram[t] = PD_ARENA_NEW(view->tmp, d * d, float))) return no_memory(err);
    if (!j.gram) return no_memory(err);
    pd_workers_run(view->workers, gram_head, &j, view->n_head);
    return PD_OK;
}

/* filter[D] -= u / n_group for one query head; a: scratch [D][D], w: [D]. */
static pd_status add_filter(const pd_calib *c, size_t head, double *a, double *w, float *filter,
                            pd_err *err) {
    const size_t d = c->model.head_dim;
    const double *sum = c->q_sum + head * d;
    memcpy(a, c->gram + head * d * d, d * d * sizeof *a);
    if (LAPACKE_dsyev(LAPACK_ROW_MAJOR, 'V', 'U', (int)d, a, (int)d, w) != 0)
        return pd_fail(err, PD_EINTERNAL, NULL, "the queries of head %zu have no singular vectors",
                       head);
    double along = 0.0; /* eigenvalues ascend: the last column */
    for (size_t i = 0; i < d; i++) along += sum[i] * a[i * d + d - 1];
    const double sign = along < 0.0 ? -1.0 : 1.0;
    const double share = sign * (double)c->model.n_head_kv / (double)c->model.n_head;
    for (size_t i = 0; i < d; i++) filter[i] -= (float)(share * a[i * d + d - 1]);
    return PD_OK;
}

static pd_status make_filters(pd_calib *c, float *filters, pd_err *err) {
    const size_t d = c->model.head_dim, g = c->model.n_head / c->model.n_head_kv;
    double *a = malloc((d * d + d) * sizeof *a);
    pd_status rc = a ? PD_OK : no_memory(err);
    for (size_t h = 0; h < c->model.n_layer * c->model.n_head && rc == PD_OK; h++)
        if (c->seen[h / c->model.n_head])
            rc = add_filter(c, h, a, a + d * d, filters + h / g * d, err);
    free(a);
    return rc;
}

/* ---- DuoAttention ---- */

/* mean[H][D] of the keys before RoPE, from the rotated ones. */
static void mean_keys(const pd_view *view, double *mean) {
    const size_t d = view->head_dim, half = d / 2;
    memset(mean, 0, view->n_head_kv * d * sizeof *mean);
    for (size_t t = 0; t < view->n; t++) {
        for (size_t i = 0; i < half; i++) {
            const float angle = (float)view->pos[0][t] * view->inv_freq[i]; /* as it was rotated */
            const double back = 1.0 / (double)view->rope_scale;
            const double c = (double)cosf(angle) * back, s = (double)sinf(angle) * back;
            for (size_t h = 0; h < view->n_head_kv; h++) {
                const double x = (double)view->k[h][t * d + i],
                             y = (double)view->k[h][t * d + i + half];
                mean[h * d + i] += x * c + y * s;
                mean[h * d + i + half] += y * c - x * s;
            }
        }
    }
    for (size_t i = 0; i < view->n_head_kv * d; i++) mean[i] /= (double)view->n;
}

/* The area for one query and key mean.  cs [positions][D/2][2]: cos and sin by
 * distance. */
static double area(const float *q, const double *k, size_t half, const double *cs, double *weight) {
    double max = -INFINITY, sum = 0.0, result = 0.0;
    for (size_t j = 0; j < DUO_POSITIONS; j++) {
        const double *at = cs + (DUO_POSITIONS - 1 - j) * half * 2;
        double z = 0.0;
        for (size_t i = 0; i < half; i++) {
            const double a = (double)q[i], b = (double)q[i + half];
            z += (a * k[i] + b * k[i + half]) * at[2 * i] +
                 (a * k[i + half] - b * k[i]) * at[2 * i + 1];
        }
        weight[j] = z / sqrt(2.0 * (double)half);
        max = fmax(max, weight[j]);
    }
    for (size_t j = 0; j < DUO_POSITIONS; j++) sum += weight[j] = exp(weight[j] - max);
    for (size_t j = 0; j < DUO_POSITIONS; j++)
        result += weight[j] / sum *
                  (double)(DUO_POSITIONS - j); /* it is in so many of the partial sums */
    return result / DUO_POSITIONS;
}

static pd_status add_duo(pd_calib *c, const pd_view *view, pd_err *err) {
    const pd_moments *m = pd_view_moments(view, 0);
    const size_t d = view->head_dim, half = d / 2, g = view->n_head / view->n_head_kv;
    double *keys = PD_ARENA_NEW(view->tmp, view->n_head_kv * d, double);
    double *cs = PD_ARENA_NEW(view->tmp, DUO_POSITIONS * d, double);
    double *weight = PD_ARENA_NEW(view->tmp, DUO_POSITIONS, double);
    if (!keys || !cs || !weight) return no_memory(err);
    for (size_t p = 0; p < DUO_POSITIONS; p++) {
        for (size_t i = 0; i < half; i++) {
            cs[(p * half + i) * 2] = cos((double)p * (double)view->inv_freq[i]);
            cs[(p * half + i) * 2 + 1] = sin((double)p * (double)view->inv_freq[i]);
        }
    }
    mean_keys(view, keys);
    for (size_t h = 0; h < view->n_head; h++)
        c->duo[(size_t)view->layer * view->n_head_kv + h / g] +=
            area(m->mean + h * d, keys + h / g * d, half, cs, weight) / (double)g;
    return PD_OK;
}

/* ---- all of it ---- */

pd_status pd__calib_text_layer(pd_calib *c, const pd_view *view, pd_err *err) {
    const pd_moments *m = pd_view_moments(view, PD_CALIB_SINK);
    if (c->count && m && m->count) pool_moments(c, view, m);
    if (c->gram) PD_TRY(add_gram(c, view, err));
    if (c->duo) PD_TRY(add_duo(c, view, err));
    if (c->key_rows) PD_TRY(pd__calib_bases_layer(c, view, err));
    if (c->code_row) PD_TRY(pd__calib_codes_layer(c, view, err));
    return PD_OK;
}

static pd_status finish_stats(pd_calib *c, pd_press_data *d, pd_err *err) {
    float *mean = pd_press_data_put(d, PD_DATA_QUERY_MEAN),
          *cov = pd_press_data_put(d, PD_DATA_QUERY_COV);
    if (!mean || !cov) return no_memory(err);
    const size_t nq = c->model.n_head * c->model.head_dim, dim = c->model.head_dim;
    for (size_t l = 0; l < c->model.n_layer; l++) {
        if (!c->seen[l]) continue;
        if (c->count[l] < 2)
            return pd_fail(err, PD_EINVAL, NULL,
                           "the text is too short: %zu tokens count for the statistics",
                           c->count[l]);
        for (size_t i = l * nq; i < (l + 1) * nq; i++) mean[i] = (float)c->mean[i];
        for (size_t i = l * nq * dim; i < (l + 1) * nq * dim; i++)
            cov[i] = (float)(c->m2[i] / (double)(c->count[l] - 1));
    }
    return PD_OK;
}

pd_status pd__calib_text_finish(pd_calib *c, pd_press_data *d, pd_err *err) {
    if (c->n_text == 0) return pd_fail(err, PD_EINVAL, NULL, "no text was read");
    if (c->count) PD_TRY(finish_stats(c, d, err));
    if (c->bases) PD_TRY(pd__calib_errors_finish(c, d, err));
    if (c->gram) {
        float *filters = pd_press_data_put(d, PD_DATA_QFILTERS);
        if (!filters) return no_memory(err);
        PD_TRY(make_filters(c, filters, err));
    }
    if (c->duo) {
        float *score = pd_press_data_put(d, PD_DATA_DUO_CALIBRATED);
        if (!score) return no_memory(err);
        pd_press_data_set_duo(d, PD_SET_DUO_CALIBRATED, DUO_SINK, DUO_RECENT);
        for (size_t i = 0; i < c->model.n_layer * c->model.n_head_kv; i++)
            score[i] = c->seen[i / c->model.n_head_kv]
                           ? (float)fmin(c->duo[i] / (double)c->n_text, 1.0)
                           : -1.0f;
    }
    return PD_OK;
}
