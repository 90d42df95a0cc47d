/* SPDX-License-Identifier: Apache-2.0 */
/* cur: keep rows of large leverage in keys and values, as a CUR decomposition would.
 *
 * CurDKV (arXiv 2509.15038); kvpress' CURPress.  A slot's leverage is taken for the
 * squared norm of its row, k2 = |k|^2 and v2 = |v|^2, each divided by its sum over a
 * window of local_window_size slots (use_local_approximation).  Score: k2, v2,
 * (k2 + v2) / 2 or k2 v2, over its sum over the head; sinks score 1.
 * use_random_leverage first projects both by one D x 20 matrix of N(0, 1/20), drawn
 * from the request's seed for each layer.
 *
 * A sink is a position below num_sinks; windows are of slots, what is left of the
 * text in time order.
 * DIFFERS: where a window or a head sums to 0, 0/0 there, the share is 0 here.
 * Cost: one pass over K and V; with the projection 40 H L D multiply-adds. */
#include "compression/shared.h"
#include "compression/sketch.h"

#include "engine/base/num.h"

#include <cblas.h>
#include <math.h>

enum { N_SINK, TYPE, RANDOM, LOCAL, WINDOW };
enum { KEY, VALUE, KV_AVG, KV_PRODUCT };
enum { RANK = 20 }; /* of the random projection */

typedef struct {
    const pd_view *view;
    int type;
    bool local;
    int64_t n_sink;
    size_t window;
    float *projection; /* [D][RANK], NULL = none */
    float **rows;      /* [thread] PD__TILE x RANK */
    float **k2, **v2;  /* [H][n_h] */
    float *const *score;
} job;

static void squared_norms(const job *j, const float *x, size_t n, float *rows, float *out) {
    size_t d = j->view->head_dim;
    if (j->projection) {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)n, RANK, (int)d, 1.0f, x,
                    (int)d, j->projection, RANK, 0.0f, rows, RANK);
        x = rows;
        d = RANK;
    }
    for (size_t i = 0; i < n; i++) out[i] = j->view->kern->dot_f32(x + i * d, x + i * d, d);
}

static void norms_tile(void *ctx, const pd_view *view, size_t h, size_t first, size_t n,
                       unsigned thread) {
    const job *j = ctx;
    float *rows = j->projection ? j->rows[thread] : NULL;
    squared_norms(j, view->k[h] + first * view->head_dim, n, rows, j->k2[h] + first);
    squared_norms(j, view->v[h] + first * view->head_dim, n, rows, j->v2[h] + first);
}

/* x over its sum. */
static void to_shares(float *x, size_t n) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i];
    const double share = sum == 0.0 ? 0.0 : 1.0 / sum;
    for (size_t i = 0; i < n; i++) x[i] = (float)((double)x[i] * share);
}

static void head_scores(void *ctx, size_t h, unsigned thread) {
    const job *j = ctx;
    const size_t n = j->view->n_h[h];
    float *k2 = j->k2[h], *v2 = j->v2[h], *out = j->score[h];
    for (size_t i = 0; j->local && i < n; i += j->window) {
        to_shares(k2 + i, pd_min_size(j->window, n - i));
        to_shares(v2 + i, pd_min_size(j->window, n - i));
    }
    for (size_t i = 0; i < n; i++) switch (j->type) {
        case KEY: out[i] = k2[i]; break;
        case VALUE: out[i] = v2[i]; break;
        case KV_AVG: out[i] = (k2[i] + v2[i]) * 0.5f; break;
        default: out[i] = k2[i] * v2[i]; break;
        }
    to_shares(out, n);
    const size_t sinks = pd__slots_before(j->view, h, j->n_sink);
    for (size_t i = 0; i < sinks; i++) out[i] = 1.0f;
}

static bool project_alloc(const pd_view *view, job *j) {
    const size_t n_thread = pd_workers_count(view->workers);
    j->projection = PD_ARENA_NEW(view->tmp, view->head_dim * RANK, float);
    j->rows = PD_ARENA_NEW(view->tmp, n_thread, float *);
    for (size_t t = 0; j->rows && t < n_thread; t++)
        if (!(j->rows[t] = PD_ARENA_NEW(view->tmp, PD__TILE * RANK, float))) return false;
    return j->projection && j->rows;
}

static pd_status score(const pd_press_inst *inst, const pd_view *view, float *const *score,
                       pd_err *err) {
    const bool random = inst->p[RANDOM] != 0.0;
    job j = {.view = view,
             .type = (int)inst->p[TYPE],
             .local = inst->p[LOCAL] != 0.0,
             .n_sink = (int64_t)inst->p[N_SINK],
             .window = (size_t)inst->p[WINDOW],
             .k2 = pd_scores_new(view),
             .v2 = pd_scores_new(view),
             .score = score};
    if (!j.k2 || !j.v2 || (random && !project_alloc(view, &j)))
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to score %zu tokens", view->n);
    if (random) pd__normals(view, 1.0 / sqrt(RANK), j.projection, view->head_dim * RANK);
    pd__for_tiles(view, norms_tile, &j);
    pd_workers_run(view->workers, head_scores, &j, view->n_head_kv);
    return PD_OK;
}

static const char *const types[] = {"key", "value", "kv_avg", "kv_product", NULL};

static const pd_param params[] = {
    [N_SINK] = {.name = "num_sinks",
                .type = PD_PARAM_INT,
                .def = 4,
                .min = 0,
                .max = 65536,
                .doc = "first tokens that stay (attention sinks)"},
    [TYPE] = {.name = "leverage_type",
              .type = PD_PARAM_CHOICE,
              .def = KV_PRODUCT,
              .choices = types,
              .max = KV_PRODUCT,
              .doc = "leverage of keys, of values, their mean or their product"},
    [RANDOM] = {.name = "use_random_leverage",
                .type = PD_PARAM_BOOL,
                .def = 0,
                .max = 1,
                .doc = "project keys and values to 20 random directions first"},
    [LOCAL] = {.name = "use_local_approximation",
               .type = PD_PARAM_BOOL,
               .def = 1,
               .max = 1,
               .doc = "take leverage as a share of its window"},
    [WINDOW] = {.name = "local_window_size",
                .type = PD_PARAM_INT,
                .def = 16,
                .min = 1,
                .max = 65536,
                .doc = "tokens of such a window"},
};

const pd_press pd_press_cur = {
    .name = "cur",
    .reference_class = "CURPress",
    .kind = "scorer",
    .source = "arXiv 2509.15038",
    .doc = "Keeps the pairs whose keys and values weigh most in their neighbourhood.",
    .ratio_doc = "its own",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_SCORE | PD_CAN_SCORE_STEP | PD_CAN_SCORE_RAGGED | PD_CAN_PRUNE_STEP,
    .score = score,
};
