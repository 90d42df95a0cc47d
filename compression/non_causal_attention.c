/* SPDX-License-Identifier: Apache-2.0 */
/* non_causal_attention: keep what its own neighbourhood attends to, either way.
 *
 * Chari, Van Durme 2025 (Compactor, arXiv 2507.08143); kvpress' NonCausalAttnPress.
 * The slots in blocks of C = chunk_size; inside a block every query sees every key,
 * logits are q . k (no 1 / sqrt(D)):
 *
 *     a_t = sum over the block's queries of softmax(q . k_t)
 *
 * averaged over the query heads of a KV head, times |v_t|, then over 3 neighbouring
 * slots (zeros outside, the divisor stays 3), then standardized over all heads and
 * slots.
 *
 * The reference fills the last block up to C with zero vectors and sees them: p of
 * them add p e^0 to the denominator of each softmax, and as queries p / C to every
 * a_t of the block.  That is part of its scores, so it is done here too, without the
 * vectors.
 * Cost: C * Hq * L * D multiply-adds, C * Hq * L exponentials. */
#include "compression/compactor.h"
#include "compression/shared.h"
#include "compression/sketch.h"

#include "engine/base/num.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

enum { CHUNK };
enum { ROWS = 64 }; /* queries at a time: bounds the scratch however large C is */

typedef struct {
    const pd_view *view;
    size_t n_group, chunk, per_head; /* blocks of the longest head */
    float **q, **logits;             /* [thread] ROWS x D, ROWS x (block's slots) */
    float *const *sum;               /* [H][n_h] */
    float *const *score;
} job;

/* Queries of head hq that stand where slots [first, first + n) of head h do. */
static void gather_queries(const pd_view *view, size_t hq, size_t h, size_t first, size_t n,
                           float *out) {
    const size_t d = view->head_dim;
    for (size_t i = 0; i < n; i++) {
        const size_t row = (size_t)(view->pos[h][first + i] - view->q_pos[0]);
        memcpy(out + i * d, view->q + (row * view->n_head + hq) * d, d * sizeof *out);
    }
}

/* Column sums of block [first, first + n) under query head hq, added to sum. */
static void add_attention(const job *j, size_t hq, size_t h, size_t first, size_t n,
                          unsigned thread, float *sum) {
    const pd_view *view = j->view;
    const size_t d = view->head_dim, n_pad = j->chunk - n;
    const float *k = view->k[h] + first * d, share = 1.0f / (float)j->n_group;
    float *q = j->q[thread], *x = j->logits[thread];
    for (size_t row = 0; row < n; row += ROWS) {
        const size_t rows = pd_min_size(ROWS, n - row);
        gather_queries(view, hq, h, first + row, rows, q);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)n, (int)d, 1.0f, q,
                    (int)d, k, (int)d, 0.0f, x, (int)n);
        for (size_t i = 0; i < rows; i++, x += n) {
            float max = view->kern->max_f32(x, n);
            if (n_pad > 0) max = max > 0.0f ? max : 0.0f;
            float all = view->kern->exp_sum_f32(x, n, max);
            if (n_pad > 0) all += (float)n_pad * expf(-max);
            view->kern->axpy_f32(share / all, x, sum, n);
        }
        x = j->logits[thread];
    }
}

static void block(void *ctx, size_t task, unsigned thread) {
    const job *j = ctx;
    const pd_view *view = j->view;
    const size_t h = task / j->per_head, first = task % j->per_head * j->chunk;
    if (first >= view->n_h[h]) return;
    const size_t n = pd_min_size(j->chunk, view->n_h[h] - first);
    float *sum = j->sum[h] + first;
    for (size_t i = 0; i < n; i++) sum[i] = (float)(j->chunk - n) / (float)j->chunk;
    for (size_t q = h * j->n_group; q < (h + 1) * j->n_group; q++)
        add_attention(j, q, h, first, n, thread, sum);
}

/* score holds |v| on entry. */
static void weigh(void *ctx, const pd_view *view, size_t h, size_t first, size_t n,
                  unsigned thread) {
    const job *j = ctx;
    for (size_t i = first; i < first + n; i++) j->sum[h][i] *= j->score[h][i];
}

static void pool(void *ctx, const pd_view *view, size_t h, size_t first, size_t n,
                 unsigned thread) {
    const job *j = ctx;
    const size_t end = view->n_h[h];
    const float *a = j->sum[h];
    for (size_t i = first; i < first + n; i++) {
        const float before = i > 0 ? a[i - 1] : 0.0f, after = i + 1 < end ? a[i + 1] : 0.0f;
        j->score[h][i] = (before + a[i] + after) / 3.0f;
    }
}

/* True if every slot's query is there: prefill's are, in one run of positions. */
static bool has_queries(const pd_view *view) {
    if (!view->q || view->q_rows == 0) return false;
    const int32_t begin = view->q_pos[0], end = view->q_pos[view->q_rows - 1] + 1;
    if ((size_t)(end - begin) != view->q_rows) return false;
    for (size_t h = 0; h < view->n_head_kv; h++)
        if (view->n_h[h] > 0 &&
            (view->pos[h][0] < begin || view->pos[h][view->n_h[h] - 1] >= end))
            return false;
    return true;
}

pd_status pd__non_causal_score(const pd_view *view, size_t chunk_size, float *const *score,
                               pd_err *err) {
    if (!has_queries(view))
        return pd_fail(err, PD_EINTERNAL, NULL, "not every query was collected for layer %d",
                       view->layer);
    const size_t n_thread = pd_workers_count(view->workers);
    job j = {.view = view,
             .n_group = view->n_head / view->n_head_kv,
             .chunk = chunk_size,
             .per_head = pd_div_up(view->n, chunk_size),
             .q = PD_ARENA_NEW(view->tmp, n_thread, float *),
             .logits = PD_ARENA_NEW(view->tmp, n_thread, float *),
             .sum = pd_scores_new(view),
             .score = score};
    bool ok = j.q && j.logits && j.sum;
    for (size_t t = 0; ok && t < n_thread; t++) {
        j.q[t] = PD_ARENA_NEW(view->tmp, ROWS * view->head_dim, float);
        j.logits[t] = PD_ARENA_NEW(view->tmp, ROWS * pd_min_size(chunk_size, view->n), float);
        ok = j.q[t] && j.logits[t];
    }
    if (!ok) return pd_fail(err, PD_ENOMEM, NULL, "no memory to score %zu tokens", view->n);
    pd_workers_run(view->workers, block, &j, view->n_head_kv * j.per_head);
    pd__row_norms(view, view->v, score);
    pd__for_tiles(view, weigh, &j);
    pd__for_tiles(view, pool, &j);
    pd__standardize(view, score);
    return PD_OK;
}

static pd_status score(const pd_press_inst *inst, const pd_view *view, float *const *score,
                       pd_err *err) {
    return pd__non_causal_score(view, (size_t)inst->p[CHUNK], score, err);
}

static void needs(const pd_press_inst *inst, pd_press_needs *n) {
    n->bits |= PD_NEEDS_Q_ALL;
}

static const pd_param params[] = {
    [CHUNK] = {.name = "chunk_size",
               .type = PD_PARAM_INT,
               .def = 256,
               .min = 1,
               .max = 65536,
               .doc = "tokens of a block, inside which all attend to all"},
};

const pd_press pd_press_non_causal_attention = {
    .name = "non_causal_attention",
    .reference_class = "NonCausalAttnPress",
    .kind = "scorer",
    .source = "arXiv 2507.08143",
    .doc = "Keeps what the tokens around it attend to, before and after, weighed by its value.",
    .ratio_doc = "its own",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_SCORE,
    .needs = needs,
    .score = score,
};
