/* SPDX-License-Identifier: Apache-2.0 */
/* lagkv: keep the tokens whose keys and values spread most, seen from what follows.
 *
 * Liang et al. 2025 (arXiv 2504.04704); kvpress' LagKVPress.  The slots after the
 * n_sink sinks in partitions of lag_size; each but the last is seen through the next:
 * with mn, mx the smallest and largest value of a channel there,
 *
 *     u = (x - mn) / (mx - mn),   y = softmax over the partition of std over channels of u
 *
 * once with keys, once with values; score = (y_k + y_v) / 2 and, unless cross_scoring,
 * its rank in the partition / lag_size.  Sinks, the last partition and what is left
 * over score 1.  With fewer than two partitions the score is the age: it still prunes,
 * the oldest after the sinks first.  Ranks repeat in every partition, so the cut runs
 * through ties: the lower slot stays.
 *
 * A sink is a position below n_sink, a partition is lag_size slots as they stand:
 * after an eviction they are what is left, in time order.
 * DIFFERS: a channel that is constant over a partition has no range and gives NaN
 * there; here it counts as 0 (a text of one repeated token has such values).
 * Cost: about 6 passes over K and V, one partition at a time. */
#include "compression/shared.h"

#include "engine/base/num.h"

#include <math.h>
#include <stdlib.h>

enum { N_SINK, LAG, CROSS };

/* A range below this is none: its inverse would leave f32. */
static const float least_range = 1e-20f;

typedef struct {
    float score;
    uint32_t slot;
} ranked;

typedef struct {
    float *low, *inv; /* [D] of the partition that follows: mn, 1 / (mx - mn) */
    float *u, *ones;  /* [D] */
    float *y;         /* [lag] */
    ranked *order;    /* [lag] */
} scratch;

typedef struct {
    const pd_view *view;
    int64_t n_sink;
    size_t lag, per_head; /* partitions of the longest head */
    bool cross;
    scratch *of; /* [thread] */
    float *const *score;
} job;

static void channel_range(const float *x, size_t n, size_t d, const scratch *s) {
    float *low = s->low, *high = s->inv;
    for (size_t c = 0; c < d; c++) low[c] = high[c] = x[c];
    for (size_t i = 1; i < n; i++) {
        const float *row = x + i * d;
        for (size_t c = 0; c < d; c++) low[c] = row[c] < low[c] ? row[c] : low[c];
        for (size_t c = 0; c < d; c++) high[c] = row[c] > high[c] ? row[c] : high[c];
    }
    for (size_t c = 0; c < d; c++) {
        const float range = high[c] - low[c];
        s->inv[c] = range >= least_range ? 1.0f / range : 0.0f;
    }
}

/* Add half the softmax of the spreads of rows x[0..lag), seen through the lag rows
 * behind them. */
static void add_spread(const job *j, const float *x, const scratch *s, float *out) {
    const pd_kernels *kern = j->view->kern;
    const size_t d = j->view->head_dim;
    channel_range(x + j->lag * d, j->lag, d, s);
    for (size_t i = 0; i < j->lag; i++) {
        const float *row = x + i * d;
        for (size_t c = 0; c < d; c++) s->u[c] = (row[c] - s->low[c]) * s->inv[c];
        const float mean = kern->dot_f32(s->u, s->ones, d) / (float)d;
        for (size_t c = 0; c < d; c++) s->u[c] -= mean;
        const float square = kern->dot_f32(s->u, s->u, d);
        /* a far row can be beyond f32 when squared: it is the largest anyhow */
        s->y[i] = sqrtf((square > 1e38f ? 1e38f : square) / (float)(d - 1));
    }
    const float sum = kern->exp_sum_f32(s->y, j->lag, kern->max_f32(s->y, j->lag));
    kern->axpy_f32(0.5f / sum, s->y, out, j->lag);
}

/* Ascending; of equal scores the higher slot ranks lower, as in every choice. */
static int by_score(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->score != y->score) return x->score < y->score ? -1 : 1;
    return x->slot > y->slot ? -1 : 1;
}

static void partition(void *ctx, size_t task, unsigned thread) {
    const job *j = ctx;
    const pd_view *view = j->view;
    const size_t h = task / j->per_head, p = task % j->per_head, d = view->head_dim;
    const size_t sinks = pd__slots_before(view, h, j->n_sink), n = view->n_h[h] - sinks;
    if ((p + 2) * j->lag > n) return; /* the last one, or none */
    const scratch *s = &j->of[thread];
    const size_t first = sinks + p * j->lag;
    float *out = j->score[h] + first;
    for (size_t i = 0; i < j->lag; i++) out[i] = 0.0f;
    add_spread(j, view->k[h] + first * d, s, out);
    add_spread(j, view->v[h] + first * d, s, out);
    if (j->cross || isnan(out[0])) return; /* no rank: the driver refuses it */
    for (size_t i = 0; i < j->lag; i++) s->order[i] = (ranked){out[i], (uint32_t)i};
    qsort(s->order, j->lag, sizeof *s->order, by_score);
    for (size_t i = 0; i < j->lag; i++) out[s->order[i].slot] = (float)i / (float)j->lag;
}

static bool scratch_new(const pd_view *view, size_t lag, scratch *s) {
    const size_t d = view->head_dim;
    *s = (scratch){.low = PD_ARENA_NEW(view->tmp, 4 * d, float),
                   .y = PD_ARENA_NEW(view->tmp, lag, float),
                   .order = PD_ARENA_NEW(view->tmp, lag, ranked)};
    if (!s->low || !s->y || !s->order) return false;
    s->inv = s->low + d;
    s->u = s->inv + d;
    s->ones = s->u + d;
    for (size_t c = 0; c < d; c++) s->ones[c] = 1.0f;
    return true;
}

static pd_status score(const pd_press_inst *inst, const pd_view *view, float *const *score,
                       pd_err *err) {
    const size_t n_thread = pd_workers_count(view->workers);
    job j = {.view = view,
             .n_sink = (int64_t)inst->p[N_SINK],
             .lag = (size_t)inst->p[LAG],
             .cross = inst->p[CROSS] != 0.0,
             .score = score};
    for (size_t h = 0; h < view->n_head_kv; h++) {
        const size_t sinks = pd__slots_before(view, h, j.n_sink), n = view->n_h[h] - sinks;
        const bool aged = n < 2 * j.lag;
        for (size_t i = 0; i < view->n_h[h]; i++)
            score[h][i] = aged && i >= sinks ? (float)(i - sinks) / (float)n : 1.0f;
        if (!aged) j.per_head = pd_max_size(j.per_head, n / j.lag - 1);
    }
    if (j.per_head == 0) return PD_OK;
    j.of = PD_ARENA_NEW(view->tmp, n_thread, scratch);
    for (size_t t = 0; j.of && t < n_thread; t++)
        if (!scratch_new(view, j.lag, &j.of[t])) j.of = NULL;
    if (!j.of) return pd_fail(err, PD_ENOMEM, NULL, "no memory to score %zu tokens", view->n);
    pd_workers_run(view->workers, partition, &j, view->n_head_kv * j.per_head);
    return PD_OK;
}

static const pd_param params[] = {
    [N_SINK] = {.name = "n_sink",
                .type = PD_PARAM_INT,
                .def = 4,
                .min = 0,
                .max = 65536,
                .doc = "first tokens that stay (attention sinks)"},
    [LAG] = {.name = "lag_size",
             .type = PD_PARAM_INT,
             .def = 128,
             .min = 1,
             .max = 65536,
             .doc = "tokens of a partition; the last one stays"},
    [CROSS] = {.name = "cross_scoring",
               .type = PD_PARAM_BOOL,
               .def = 0,
               .max = 1,
               .doc = "compare scores across partitions, not ranks within each"},
};

const pd_press pd_press_lagkv = {
    .name = "lagkv",
    .reference_class = "LagKVPress",
    .kind = "scorer",
    .source = "arXiv 2504.04704",
    .doc = "Keeps the pairs that stand out from the stretch of text behind them.",
    .ratio_doc = "its own",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_SCORE | PD_CAN_SCORE_STEP | PD_CAN_SCORE_RAGGED | PD_CAN_PRUNE_STEP,
    .score = score,
};
