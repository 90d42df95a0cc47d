/* SPDX-License-Identifier: Apache-2.0 */
/* entropy_gated_chunkkv: chunkkv that does not keep a whole chunk for one token.
 *
 * kvpress' EntropyGatedChunkKVPress, after ChunkKV (arXiv 2502.00299).  Tokens and
 * chunks are scored as chunkkv does.  The entropy of a chunk of c tokens with
 * scores y (moved up by the smallest if that is negative) is
 *
 *     H = -sum p ln(p + 1e-8) / ln(c),  p = y / (sum y + 1e-8),  cut to [0, 1]
 *
 * (0 for one token).  By descending mean, chunks take what is left of n_kept: all
 * their tokens, but those with a mean not below the median and an entropy below the
 * median (lower medians) at most low_entropy_chunk_length, their best.  What is left
 * in the end goes to the best tokens still out.  Exactly n_kept stay, the same in
 * every head.
 *
 * Protected tokens are kept before all that, count, and have no part in their
 * chunk's mean and entropy; a chunk of nothing else is none.
 * Cost: the child's, one logarithm per token, a sort of the chunks. */
#include "compression/chunk_rank.h"
#include "compression/shared.h"

#include "engine/base/num.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LENGTH, LOW_LENGTH };

static const double tiny = 1e-8;

/* Of y[0..n) where must is 0. */
static double entropy(const float *y, const uint8_t *must, size_t n) {
    double low = 0.0, sum = 0.0, h = 0.0;
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        if (must[i]) continue;
        low = fmin(low, (double)y[i]);
        sum += (double)y[i];
        count++;
    }
    if (count < 2) return 0.0;
    sum += tiny - (double)count * low;
    for (size_t i = 0; i < n; i++) {
        if (must[i]) continue;
        const double p = ((double)y[i] - low) / sum;
        h -= p * log(p + tiny);
    }
    return fmin(fmax(h / log((double)count), 0.0), 1.0);
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* The lower median of v[0..n), which is sorted. */
static double median(double *v, size_t n) {
    qsort(v, n, sizeof *v, by_value);
    return v[(n - 1) / 2];
}

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                      pd_plan *ret, pd_err *err) {
    float *token;
    uint8_t *must, *keep = PD_ARENA_NEW(view->tmp, view->n, uint8_t);
    pd__chunk *chunk;
    size_t n, got;
    PD_TRY(pd__token_scores(inst->child[0], view, &token, &must, err));
    PD_TRY(pd__chunks_by_mean(token, must, view->n, (size_t)inst->p[LENGTH], false, view->tmp,
                              &chunk, &n, err));
    double *h = PD_ARENA_NEW(view->tmp, n, double), *sorted = PD_ARENA_NEW(view->tmp, n, double);
    if (!keep || (n > 0 && (!h || !sorted)))
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to rank %zu tokens", view->n);
    memcpy(keep, must, view->n);
    size_t left = pd_budget_keep(budget, view->n);
    for (size_t i = 0; i < view->n && left > 0; i++) left -= must[i];

    for (size_t c = 0; c < n; c++) {
        const size_t begin = chunk[c].begin;
        sorted[c] = h[c] = entropy(token + begin, must + begin, chunk[c].end - begin);
    }
    const double h_median = n > 0 ? median(sorted, n) : 0.0;
    /* sorted by mean already, from the top */
    const double mean_median = n > 0 ? chunk[n / 2].mean : 0.0;
    for (size_t c = 0; c < n && left > 0; c++) {
        size_t take = left;
        if (chunk[c].mean >= mean_median && h[c] < h_median)
            take = pd_min_size(take, (size_t)inst->p[LOW_LENGTH]);
        PD_TRY(pd__mark_best(token, chunk[c].begin, chunk[c].end, take, keep, view->tmp, &got,
                             err));
        left -= got;
    }
    PD_TRY(pd__mark_best(token, 0, view->n, left, keep, view->tmp, &got, err));
    return pd__plan_marked(view, keep, ret, err);
}

static pd_status check(const pd_press_inst *inst, const struct pd_press_model *model,
                       const char *path, pd_err *err) {
    const int length = (int)inst->p[LENGTH], low = (int)inst->p[LOW_LENGTH];
    if (low < length) return PD_OK;
    return pd_fail(err, PD_EINVAL, path,
                   "%s: parameter 'low_entropy_chunk_length' of 'entropy_gated_chunkkv' must be "
                   "below chunk_length %d, not %d",
                   path, length, low);
}

static const pd_param params[] = {
    [LENGTH] = {.name = "chunk_length",
                .type = PD_PARAM_INT,
                .def = 10,
                .min = 2,
                .max = 1 << 20,
                .doc = "tokens of a chunk"},
    [LOW_LENGTH] = {.name = "low_entropy_chunk_length",
                    .type = PD_PARAM_INT,
                    .def = 4,
                    .min = 1,
                    .max = 1 << 20,
                    .doc = "tokens that stay of a good chunk whose score sits in a few of them"},
};

const pd_press pd_press_entropy_gated_chunkkv = {
    .name = "entropy_gated_chunkkv",
    .reference_class = "EntropyGatedChunkKVPress",
    .kind = "wrapper",
    .source = "kvpress (ChunkKV, arXiv 2502.00299)",
    .doc = "Keeps chunks as chunkkv does, but only the best tokens of a chunk whose score sits in "
           "a few.",
    .ratio_doc = "the child's",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_COMPOSE,
    .min_child = 1,
    .max_child = 1,
    .child_must = PD_CAN_SCORE,
    .check = check,
    .plan = plan,
};
