/* SPDX-License-Identifier: Apache-2.0 */
/* expected_attention: rank pairs by the attention that future queries will pay.
 *
 * Devoto, Jeblick, Jegou 2025 (arXiv 2510.00636); kvpress' ExpectedAttentionPress.
 * Queries before RoPE are close to normal, N(mu, S) per query head.  With Rbar
 * the mean rotation over the next N positions (mean_rotation.c), mu' = Rbar mu, S' = Rbar S Rbar^T,
 * the expected weight of key k is exp(z),
 *
 *     z = mu' . k / sqrt(D) + k^T S' k / (2 D)
 *
 * p = softmax of z over the slots after the sinks, averaged over the query heads
 * of a KV head; score = (p + epsilon) |v|; sinks get the largest score + 1.
 *
 * While decoding the moments are those of the recent queries the engine keeps
 * (n_sink 0).  DIFFERS: the reference then takes the length of its buffer for
 * the current position, and drops the first n_sink rows of the buffer as if they
 * were sinks; here future positions start at n_seen, and sinks are the slots
 * whose position is below n_sink.
 *
 * Cost: about Hq*L*D^2/2 multiply-adds (S' is symmetric: quad_f32), 2 Hq*L*D without
 * covariance; scratch Hq*L floats. */
#include "compression/expected_attention.h"

#include "compression/shared.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

typedef struct {
    size_t n_group; /* query heads per KV head */
    int64_t n_sink;
    bool use_cov, use_vnorm;
    float epsilon;
    float *mu;      /* [Hq][D] = mu' / sqrt(D) */
    float *cov;     /* [Hq][D][D]: S' / (2 D) with both halves in the upper one, NULL without covariance */
    float **z;      /* [Hq][n_h] logits, then exp(z - max) */
    float *inv_sum; /* [Hq] 1 / (G * sum exp) */
    float **gemm;   /* [thread] tile results [PD__TILE][G], without covariance */
    float *const *score;
} job;

/* mu' and S' of every query head, scaled as the logits need them. */
static void rotate_moments(const pd_view *view, const pd_moments *m, const job *j, const double *c,
                           const double *s) {
    const size_t d = view->head_dim;
    memcpy(j->mu, m->mean, view->n_head * d * sizeof *j->mu);
    if (j->use_cov) memcpy(j->cov, m->cov, view->n_head * d * d * sizeof *j->cov);
    for (size_t h = 0; h < view->n_head; h++) {
        pd__rotate(j->mu + h * d, 1, d / 2, c, s, 1.0 / sqrt((double)d));
        if (!j->use_cov) continue;
        float *cov = j->cov + h * d * d;
        for (size_t i = 0; i < d; i++) pd__rotate(cov + i, d, d / 2, c, s, 1.0);
        for (size_t i = 0; i < d; i++) pd__rotate(cov + i * d, 1, d / 2, c, s, 0.5 / (double)d);
        for (size_t i = 0; i < d; i++) {
            for (size_t k = 0; k < i; k++) {
                cov[k * d + i] += cov[i * d + k];
                cov[i * d + k] = 0.0f;
            }
        }
    }
}

/* z = k . (S'k/2D + mu'/sqrt(D)) */
static void logits_tile(void *ctx, const pd_view *view, size_t h, size_t first, size_t n,
                        unsigned thread) {
    const job *j = ctx;
    const size_t d = view->head_dim, g = j->n_group;
    const float *k = view->k[h] + first * d, *mu = j->mu + h * g * d;
    if (j->use_cov) {
        for (size_t q = 0; q < g; q++)
            view->kern->quad_f32(k, n, d, mu + q * d, j->cov + (h * g + q) * d * d, j->z[h * g + q] + first);
        return;
    }
    float *y = j->gemm[thread];
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)g, (int)d, 1.0f, k,
                (int)d, mu, (int)d, 0.0f, y, (int)g);
    for (size_t q = 0; q < g; q++)
        for (size_t i = 0; i < n; i++) j->z[h * g + q][first + i] = y[i * g + q];
}

typedef struct {
    const pd_view *view;
    job *j;
} softmax_ctx;

static void softmax_head(void *p, size_t hq, unsigned thread) {
    const softmax_ctx *c = p;
    const size_t h = hq / c->j->n_group, first = pd__slots_before(c->view, h, c->j->n_sink);
    const size_t n = c->view->n_h[h] - first;
    c->j->inv_sum[hq] = 0.0f;
    if (n == 0) return; /* nothing but sinks */
    float *z = c->j->z[hq] + first;
    const float sum = c->view->kern->exp_sum_f32(z, n, c->view->kern->max_f32(z, n));
    c->j->inv_sum[hq] = 1.0f / (sum * (float)c->j->n_group);
}

/* score holds |v| on entry when use_vnorm. */
static void score_tile(void *ctx, const pd_view *view, size_t h, size_t first, size_t n,
                       unsigned thread) {
    const job *j = ctx;
    for (size_t i = first; i < first + n; i++) {
        float p = 0.0f;
        for (size_t q = h * j->n_group; q < (h + 1) * j->n_group; q++)
            p += j->z[q][i] * j->inv_sum[q];
        j->score[h][i] = j->use_vnorm ? (p + j->epsilon) * j->score[h][i] : p;
    }
}

static bool job_alloc(const pd_view *view, job *j) {
    const size_t d = view->head_dim, hq = view->n_head, n_thread = pd_workers_count(view->workers);
    j->mu = PD_ARENA_NEW(view->tmp, hq * d, float);
    if (j->use_cov) j->cov = PD_ARENA_NEW(view->tmp, hq * d * d, float);
    j->z = pd__query_head_rows(view);
    j->inv_sum = PD_ARENA_NEW(view->tmp, hq, float);
    j->gemm = PD_ARENA_NEW(view->tmp, n_thread, float *);
    if (!j->mu || (j->use_cov && !j->cov) || !j->z || !j->inv_sum || !j->gemm) return false;
    for (size_t t = 0; t < n_thread; t++)
        if (!(j->gemm[t] = PD_ARENA_NEW(view->tmp, PD__TILE * j->n_group, float))) return false;
    return true;
}

pd_status pd__ea_score(const pd_press_inst *inst, const pd_view *view, const pd_moments *m,
                       float *const *score, pd_err *err) {
    const bool step = view->phase == PD_PHASE_STEP;
    job j = {
        .n_group = view->n_head / view->n_head_kv,
        .n_sink = (int64_t)inst->p[PD__EA_N_SINK],
        .use_cov = inst->p[PD__EA_USE_COV] != 0.0,
        .use_vnorm = inst->p[PD__EA_USE_VNORM] != 0.0,
        .epsilon = (float)inst->p[PD__EA_EPSILON],
        .score = score,
    };
    double *c = PD_ARENA_NEW(view->tmp, view->head_dim, double),
           *s = c ? c + view->head_dim / 2 : NULL;
    if (!c || !job_alloc(view, &j))
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to score %zu tokens", view->n);

    pd__mean_rotation(view, (double)(step ? view->n_seen : view->stat_rows), inst->p[PD__EA_N_FUTURE],
                      c, s);
    rotate_moments(view, m, &j, c, s);
    pd__for_tiles(view, logits_tile, &j);
    pd_workers_run(view->workers, softmax_head, &(softmax_ctx){view, &j}, view->n_head);
    if (j.use_vnorm) pd__row_norms(view, view->v, score);
    pd__for_tiles(view, score_tile, &j);
    pd__raise_positions(view, score, 0, j.n_sink);
    return PD_OK;
}

static pd_status score(const pd_press_inst *inst, const pd_view *view, float *const *score,
                       pd_err *err) {
    const bool step = view->phase == PD_PHASE_STEP;
    const pd_moments *m = pd_view_moments(view, step ? 0 : (size_t)inst->p[PD__EA_N_SINK]);
    if (!m || !m->mean || (inst->p[PD__EA_USE_COV] != 0.0 && !m->cov))
        return pd_fail(err, PD_EINTERNAL, NULL, "expected_attention: no query moments for layer %d",
                       view->layer);
    return pd__ea_score(inst, view, m, score, err);
}

static void needs(const pd_press_inst *inst, pd_press_needs *n) {
    pd__need_moments(n, inst->p[PD__EA_USE_COV] != 0.0 ? PD_NEEDS_Q_COV : 0,
                     (size_t)inst->p[PD__EA_N_SINK]);
}

size_t pd__ea_min_tokens(const pd_press_inst *inst) {
    return (size_t)inst->p[PD__EA_N_SINK] + 1;
}

const pd_param pd__ea_params[PD__EA_PARAMS] = {
    [PD__EA_N_FUTURE] = {.name = "n_future_positions",
                  .type = PD_PARAM_INT,
                  .def = 512,
                  .min = 1,
                  .max = 1 << 20,
                  .doc = "how many future positions the rotation is averaged over"},
    [PD__EA_N_SINK] = {.name = "n_sink",
                .type = PD_PARAM_INT,
                .def = 4,
                .min = 0,
                .max = 65536,
                .doc = "first tokens that stay and are left out of the statistics"},
    [PD__EA_USE_COV] = {.name = "use_covariance",
                 .type = PD_PARAM_BOOL,
                 .def = 1,
                 .max = 1,
                 .doc = "use the covariance of the queries, not their mean alone"},
    [PD__EA_USE_VNORM] = {.name = "use_vnorm",
                   .type = PD_PARAM_BOOL,
                   .def = 1,
                   .max = 1,
                   .doc = "multiply by the norm of the value"},
    [PD__EA_EPSILON] = {.name = "epsilon",
                 .type = PD_PARAM_FLOAT,
                 .def = 0,
                 .min = 0,
                 .max = 1000,
                 .doc = "added to the expected attention before the value norm; attention averages "
                        "1/tokens, so 0.02 "
                        "already drowns it in long prompts"},
};

const pd_press pd_press_expected_attention = {
    .name = "expected_attention",
    .reference_class = "ExpectedAttentionPress",
    .kind = "scorer",
    .source = "arXiv 2510.00636",
    .doc = "Keeps the pairs that future queries are expected to attend to, from the statistics of "
           "past queries.",
    .ratio_doc = "its own",
    .params = pd__ea_params,
    .n_params = PD__EA_PARAMS,
    .can = PD_CAN_SCORE | PD_CAN_SCORE_STEP | PD_CAN_SCORE_RAGGED | PD_CAN_PRUNE_STEP,
    .needs = needs,
    .min_tokens = pd__ea_min_tokens,
    .score = score,
};
