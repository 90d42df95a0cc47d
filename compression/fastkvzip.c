/* SPDX-License-Identifier: Apache-2.0 */
/* fastkvzip: a small gate on the layer's input foretells what KVzip would say.
 *
 * Kim, Han, Yun 2026 (arXiv 2601.17668); kvpress' FastKVzipPress.  With x the
 * attention input of a token (after its norm), KV head h, query head g of its group:
 *
 *     q_g = rms(Wq x + bq)_g     k = rms(Wk x)_h        (both of 16 numbers, eps 1e-6)
 *     u_g = q_g . k / 4 + b_g    e_gj = q_g . base_hj / 4,   j < 16
 *     score = mean over g of 1 / (1 + sum_j exp(e_gj - u_g))
 *
 * The first n_sink tokens and a window at the end get 1: max(1, int(L window_ratio))
 * tokens of a context below 32,000, window_size of a longer one.  The lowest
 * int(all pairs * ratio) go, over all layers or (`layerwise`) in each.  The gates
 * come from press data: trained here (calibrate_gate.c) or published.
 * DIFFERS: evicted pairs are gone, not masked.  Layers with a sliding window stay as
 * they are.
 * Cost: 16 d (Hq + Hk) + 272 Hq multiply-adds per token; all layers dense until the
 * last one is read. */
#include "compression/deferred.h"
#include "compression/press_data.h"
#include "compression/shared.h"

#include "engine/base/num.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

enum { LAYERWISE, N_SINK, WINDOW, WINDOW_RATIO };
enum { G = PD_GATE_DIM, LONG = 32000 };

static int data_set(const pd_press_inst *inst, unsigned have) {
    (void)inst;
    (void)have;
    return PD_SET_FASTKVZIP;
}

typedef struct {
    const pd_view *view;
    float *const *score;
    const float *wq, *bq, *wk;      /* [Hq][G][d], [Hq][G], [Hk][G][d] */
    const float *norm_q, *norm_k;   /* [G] */
    const float *base, *b;          /* [Hk][G][G], [Hq] */
    float **q, **k;                 /* [thread] -> [PD__TILE][Hq][G], [PD__TILE][Hk][G] */
} job;

static void rms(float *x, const float *weight) {
    double sum = 0.0;
    for (size_t i = 0; i < G; i++) sum += (double)x[i] * x[i];
    const float inv = (float)(1.0 / sqrt(sum / G + 1e-6));
    for (size_t i = 0; i < G; i++) x[i] *= inv * weight[i];
}

static float dot(const float *a, const float *b) {
    float sum = 0.0f;
    for (size_t i = 0; i < G; i++) sum += a[i] * b[i];
    return sum;
}

/* y[n][n_out][G] = x[n][d] w^T + bias */
static void project(const job *j, size_t first, size_t n, const float *w, const float *bias, size_t n_out, float *y) {
    const size_t d = j->view->n_embd, width = n_out * G;
    for (size_t i = 0; bias && i < n; i++) memcpy(y + i * width, bias, width * sizeof *y);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)width, (int)d, 1.0f, j->view->x + first * d, (int)d,
                w, (int)d, bias ? 1.0f : 0.0f, y, (int)width);
}

static void rows_task(void *ctx, size_t task, unsigned thread) {
    const job *j = ctx;
    const pd_view *v = j->view;
    const size_t first = task * PD__TILE, n = pd_min_size(PD__TILE, v->n - first), heads = v->n_head_kv, group = v->n_head / heads;
    float *q = j->q[thread], *k = j->k[thread];
    project(j, first, n, j->wq, j->bq, v->n_head, q);
    project(j, first, n, j->wk, NULL, heads, k);
    for (size_t i = 0; i < n * v->n_head; i++) rms(q + i * G, j->norm_q);
    for (size_t i = 0; i < n * heads; i++) rms(k + i * G, j->norm_k);
    for (size_t i = 0; i < n; i++)
        for (size_t h = 0; h < heads; h++) {
            float mean = 0.0f;
            for (size_t g = h * group; g < (h + 1) * group; g++) {
                const float *qg = q + (i * v->n_head + g) * G;
                const float u = dot(qg, k + (i * heads + h) * G) / 4.0f + j->b[g];
                float sum = 0.0f;
                for (size_t e = 0; e < G; e++) sum += expf(dot(qg, j->base + (h * G + e) * G) / 4.0f - u);
                mean += 1.0f / (1.0f + sum);
            }
            j->score[h][first + i] = mean / (float)group;
        }
}

static pd_status score(const pd_press_inst *inst, const pd_view *view, float *const *score, pd_err *err) {
    if (!view->x || view->x_rows != view->n)
        return pd_fail(err, PD_EINTERNAL, NULL, "fastkvzip: %zu inputs for %zu tokens of layer %d", view->x ? view->x_rows : 0,
                       view->n, view->layer);
    const size_t l = (size_t)view->layer, hq = view->n_head, h = view->n_head_kv, d = view->n_embd;
    const size_t threads = pd_workers_count(view->workers), n = pd_min_size(PD__TILE, view->n);
    const pd_press_data *data = inst->data;
    job j = {
        .view = view,
        .score = score,
        .wq = pd_press_data_get(data, PD_DATA_GATE_Q) + l * hq * G * d,
        .bq = pd_press_data_get(data, PD_DATA_GATE_Q_BIAS) + l * hq * G,
        .wk = pd_press_data_get(data, PD_DATA_GATE_K) + l * h * G * d,
        .norm_q = pd_press_data_get(data, PD_DATA_GATE_Q_NORM) + l * G,
        .norm_k = pd_press_data_get(data, PD_DATA_GATE_K_NORM) + l * G,
        .base = pd_press_data_get(data, PD_DATA_GATE_BASE) + l * h * G * G,
        .b = pd_press_data_get(data, PD_DATA_GATE_B) + l * hq,
        .q = PD_ARENA_NEW(view->tmp, threads, float *),
        .k = PD_ARENA_NEW(view->tmp, threads, float *),
    };
    bool ok = j.q && j.k;
    for (size_t t = 0; ok && t < threads; t++) {
        j.q[t] = PD_ARENA_NEW(view->tmp, n * hq * G, float);
        j.k[t] = PD_ARENA_NEW(view->tmp, n * h * G, float);
        ok = j.q[t] && j.k[t];
    }
    if (!ok) return pd_fail(err, PD_ENOMEM, NULL, "no memory to score %zu tokens", view->n);
    pd_workers_run(view->workers, rows_task, &j, pd_div_up(view->n, PD__TILE));
    return PD_OK;
}

static pd_status decide(const pd_press_inst *inst, pd_context *c, const pd_budget *budget, pd_plan *plan, pd_err *err) {
    const size_t share = (size_t)((double)c->n * inst->p[WINDOW_RATIO]);
    const size_t window = pd_min_size(c->n, c->n < LONG ? pd_max_size(share, 1) : (size_t)inst->p[WINDOW]);
    for (size_t i = 0; i < c->n_layer * c->n_head_kv; i++)
        for (size_t s = 0; c->score[i] && s < c->n; s++)
            if (s < (size_t)inst->p[N_SINK] || s >= c->n - window) c->score[i][s] = 1.0f;
    return pd__plan_global(c, budget, inst->p[LAYERWISE] != 0.0, plan, err);
}

static void needs(const pd_press_inst *inst, pd_press_needs *n) {
    (void)inst;
    n->bits |= PD_NEEDS_X;
}

static const pd_param params[] = {
    [LAYERWISE] = {.name = "layerwise", .type = PD_PARAM_BOOL, .def = 0, .max = 1,
                   .doc = "the same share of every layer instead of one budget for all"},
    [N_SINK] = {.name = "n_sink", .type = PD_PARAM_INT, .def = 4, .min = 0, .max = 4096, .doc = "first tokens that stay"},
    [WINDOW] = {.name = "window_size", .type = PD_PARAM_INT, .def = 4096, .min = 1, .max = 1 << 20,
                .doc = "last tokens that stay, in a context of 32,000 tokens or more"},
    [WINDOW_RATIO] = {.name = "window_ratio", .type = PD_PARAM_FLOAT, .def = 0.02, .min = 0, .max = 1,
                      .doc = "the share of a shorter context that stays at its end"},
};

static const pd_deferred deferred = {.score = score, .decide = decide};

const pd_press pd_press_fastkvzip = {
    .name = "fastkvzip",
    .reference_class = "FastKVzipPress",
    .kind = "planner",
    .source = "arXiv 2601.17668",
    .doc = "Keeps what gates on each layer's input foretell KVzip to keep; one budget for all layers (press data).",
    .ratio_doc = "its own",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_DEFER,
    .data_set = data_set,
    .needs = needs,
    .deferred = &deferred,
};
