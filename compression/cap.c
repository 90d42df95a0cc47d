/* SPDX-License-Identifier: Apache-2.0 */
/* cap: keep the values that add most to what the queries' direction can read.
 *
 * CapKV (arXiv 2604.25975); kvpress' CapPress.  With m the mean query before RoPE,
 * turned by the mean rotation over the next N positions (mean_rotation.c), for each
 * query head and the slots after the sinks
 *
 *     c_t = cos(m, k_t),   w_t = exp(tau (c_t - max c))
 *     A = I + sum_t (w_t + epsilon) v_t v_t^T
 *     s_t = w_t v_t^T A^-1 v_t = w_t |L^-1 v_t|^2,   A = L L^T
 *
 * averaged over the query heads of a KV head; sinks get the largest score + 1.
 *
 * While decoding the mean is that of the recent queries.  DIFFERS: as in
 * expected_attention a sink is a position below n_sink and the future begins at n_seen;
 * the reference takes the length of its buffer for the current position.
 * Cost: Hq * L * D^2 multiply-adds and Hq * D^3 / 6; scratch Hq * L floats. */
#include "compression/shared.h"
#include "compression/sketch.h"

#include "engine/base/num.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

enum { TAU, N_FUTURE, N_SINK, EPSILON };

static const float norm_floor = 1e-12f; /* torch's normalize */

typedef struct {
    const pd_view *view;
    size_t n_group;
    int64_t n_sink;
    float tau, epsilon;
    float *anchor;   /* [Hq][D] m */
    float **k_norm;  /* [H][n_h] */
    float **w;       /* [Hq][n_h] */
    float *factor;   /* [Hq][D][D] A, then L in its lower triangle */
    double **work;   /* [thread][D][D] */
    float **rows;    /* [thread] PD__TILE x D */
    bool *failed;    /* [Hq] */
    float *const *score;
} job;

/* w of one query head over slots [first, first + n). */
static void weights(const job *j, size_t hq, size_t h, size_t first, size_t n) {
    const size_t d = j->view->head_dim;
    const float *m = j->anchor + hq * d, *norm = j->k_norm[h] + first;
    float *w = j->w[hq] + first;
    const float len = fmaxf(sqrtf(j->view->kern->dot_f32(m, m, d)), norm_floor);
    cblas_sgemv(CblasRowMajor, CblasNoTrans, (int)n, (int)d, 1.0f / len,
                j->view->k[h] + first * d, (int)d, m, 1, 0.0f, w, 1);
    for (size_t i = 0; i < n; i++) {
        const float c = w[i] / (norm[i] > norm_floor ? norm[i] : norm_floor);
        w[i] = j->tau * (c > 1.0f ? 1.0f : c < -1.0f ? -1.0f : c);
    }
    j->view->kern->exp_sum_f32(w, n, j->view->kern->max_f32(w, n));
}

static void query_head(void *ctx, size_t hq, unsigned thread) {
    const job *j = ctx;
    const pd_view *view = j->view;
    const size_t d = view->head_dim, h = hq / j->n_group,
                 first = pd__slots_before(view, h, j->n_sink);
    j->failed[hq] = false;
    if (first == view->n_h[h]) return; /* nothing but sinks */
    weights(j, hq, h, first, view->n_h[h] - first);
    float *a = j->factor + hq * d * d, *rows = j->rows[thread];
    memset(a, 0, d * d * sizeof *a);
    for (size_t t = first; t < view->n_h[h]; t += PD__TILE) {
        const size_t n = pd_min_size(PD__TILE, view->n_h[h] - t);
        for (size_t i = 0; i < n; i++) {
            const float *v = view->v[h] + (t + i) * d, r = sqrtf(j->w[hq][t + i] + j->epsilon);
            for (size_t e = 0; e < d; e++) rows[i * d + e] = v[e] * r;
        }
        cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, (int)d, (int)n, 1.0f, rows, (int)d,
                    1.0f, a, (int)d);
    }
    j->failed[hq] = !pd__cholesky(a, d, 1.0, j->work[thread]);
}

static void score_tile(void *ctx, const pd_view *view, size_t h, size_t first, size_t n,
                       unsigned thread) {
    const job *j = ctx;
    const size_t d = view->head_dim;
    float *rows = j->rows[thread], *out = j->score[h] + first;
    const float share = 1.0f / (float)j->n_group;
    for (size_t i = 0; i < n; i++) out[i] = 0.0f;
    /* sinks of the tile get a score of their own afterwards */
    const size_t sinks = pd__slots_before(view, h, j->n_sink),
                 skip = sinks > first ? pd_min_size(sinks - first, n) : 0;
    for (size_t q = h * j->n_group; q < (h + 1) * j->n_group && skip < n; q++) {
        memcpy(rows, view->v[h] + (first + skip) * d, (n - skip) * d * sizeof *rows);
        pd__forward_solve(j->factor + q * d * d, d, rows, n - skip);
        const float *w = j->w[q] + first;
        for (size_t i = skip; i < n; i++) {
            const float *x = rows + (i - skip) * d;
            out[i] += w[i] * view->kern->dot_f32(x, x, d) * share;
        }
    }
}

static bool job_alloc(const pd_view *view, job *j) {
    const size_t d = view->head_dim, hq = view->n_head, n_thread = pd_workers_count(view->workers);
    j->anchor = PD_ARENA_NEW(view->tmp, hq * d, float);
    j->k_norm = pd_scores_new(view);
    j->w = pd__query_head_rows(view);
    j->factor = PD_ARENA_NEW(view->tmp, hq * d * d, float);
    j->work = PD_ARENA_NEW(view->tmp, n_thread, double *);
    j->rows = PD_ARENA_NEW(view->tmp, n_thread, float *);
    j->failed = PD_ARENA_NEW(view->tmp, hq, bool);
    if (!j->anchor || !j->k_norm || !j->w || !j->factor || !j->work || !j->rows || !j->failed)
        return false;
    for (size_t t = 0; t < n_thread; t++) {
        j->work[t] = PD_ARENA_NEW(view->tmp, d * d, double);
        j->rows[t] = PD_ARENA_NEW(view->tmp, PD__TILE * d, float);
        if (!j->work[t] || !j->rows[t]) return false;
    }
    return true;
}

static pd_status score(const pd_press_inst *inst, const pd_view *view, float *const *score,
                       pd_err *err) {
    const bool step = view->phase == PD_PHASE_STEP;
    const size_t d = view->head_dim;
    job j = {.view = view,
             .n_group = view->n_head / view->n_head_kv,
             .n_sink = (int64_t)inst->p[N_SINK],
             .tau = (float)inst->p[TAU],
             .epsilon = (float)inst->p[EPSILON],
             .score = score};
    const pd_moments *m = pd_view_moments(view, step ? 0 : (size_t)j.n_sink);
    if (!m || !m->mean)
        return pd_fail(err, PD_EINTERNAL, NULL, "cap: no query moments for layer %d", view->layer);
    double *c = PD_ARENA_NEW(view->tmp, d, double), *s = c ? c + d / 2 : NULL;
    if (!c || !job_alloc(view, &j))
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to score %zu tokens", view->n);
    pd__mean_rotation(view, (double)(step ? view->n_seen : view->stat_rows), inst->p[N_FUTURE], c,
                      s);
    memcpy(j.anchor, m->mean, view->n_head * d * sizeof *j.anchor);
    for (size_t h = 0; h < view->n_head; h++) pd__rotate(j.anchor + h * d, 1, d / 2, c, s, 1.0);
    pd__row_norms(view, view->k, j.k_norm);
    pd_workers_run(view->workers, query_head, &j, view->n_head);
    for (size_t h = 0; h < view->n_head; h++)
        if (j.failed[h])
            return pd_fail(err, PD_EINTERNAL, NULL,
                           "cap: the values of layer %d, query head %zu, cannot be factorized",
                           view->layer, h);
    pd__for_tiles(view, score_tile, &j);
    pd__raise_positions(view, score, 0, j.n_sink);
    return PD_OK;
}

static void needs(const pd_press_inst *inst, pd_press_needs *n) {
    pd__need_moments(n, 0, (size_t)inst->p[N_SINK]);
}

static size_t min_tokens(const pd_press_inst *inst) {
    return (size_t)inst->p[N_SINK] + 1;
}

static const pd_param params[] = {
    [TAU] = {.name = "tau",
             .type = PD_PARAM_FLOAT,
             .def = 5,
             .min = 0,
             .max = 1000,
             .doc = "how sharply a key's direction must meet the queries'"},
    [N_FUTURE] = {.name = "n_future_positions",
                  .type = PD_PARAM_INT,
                  .def = 512,
                  .min = 1,
                  .max = 1 << 20,
                  .doc = "how many future positions the rotation is averaged over"},
    [N_SINK] = {.name = "n_sink",
                .type = PD_PARAM_INT,
                .def = 4,
                .min = 0,
                .max = 65536,
                .doc = "first tokens that stay and are left out of the statistics"},
    [EPSILON] = {.name = "epsilon",
                 .type = PD_PARAM_FLOAT,
                 .def = 1e-6,
                 .min = 0,
                 .max = 1000,
                 .doc = "weight that every value has at least in the capacity"},
};

const pd_press pd_press_cap = {
    .name = "cap",
    .reference_class = "CapPress",
    .kind = "scorer",
    .source = "arXiv 2604.25975",
    .doc = "Keeps the values that add most to what the queries' mean direction reads.",
    .ratio_doc = "its own",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_SCORE | PD_CAN_SCORE_STEP | PD_CAN_SCORE_RAGGED | PD_CAN_PRUNE_STEP,
    .needs = needs,
    .min_tokens = min_tokens,
    .score = score,
};
