/* SPDX-License-Identifier: Apache-2.0 */
/* See chunk_rank.h. */
#include "compression/chunk_rank.h"

#include "compression/shared.h"
#include "engine/base/num.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>

static pd_status no_memory(size_t n, pd_err *err) {
    return pd_fail(err, PD_ENOMEM, NULL, "no memory to rank %zu tokens", n);
}

pd_status pd__token_scores(const pd_press_inst *child, const pd_view *view, float **ret,
                           uint8_t **must, pd_err *err) {
    float **score = pd_scores_new(view), *token = PD_ARENA_NEW(view->tmp, view->n, float);
    uint8_t *flag = pd_arena_zalloc(view->tmp, view->n, 1);
    if (!score || !token || !flag) return no_memory(view->n, err);
    PD_TRY(pd_press_score(child, view, score, err));
    for (size_t i = 0; i < view->n; i++) {
        double sum = 0.0;
        for (size_t h = 0; h < view->n_head_kv; h++) {
            assert(view->n_h[h] == view->n);
            if (score[h][i] > FLT_MAX)
                flag[i] = 1;
            else
                sum += (double)score[h][i];
        }
        token[i] = (float)fmin(fmax(sum, -(double)FLT_MAX), (double)FLT_MAX);
    }
    *ret = token;
    *must = flag;
    return PD_OK;
}

static int by_mean(const void *a, const void *b) {
    const pd__chunk *x = a, *y = b;
    if (x->mean != y->mean) return x->mean < y->mean ? 1 : -1;
    return x->index < y->index ? -1 : x->index > y->index;
}

pd_status pd__chunks_by_mean(const float *token, const uint8_t *must, size_t n, size_t length,
                             bool must_first, pd_arena *tmp, pd__chunk **ret, size_t *n_chunk,
                             pd_err *err) {
    const size_t count = pd_div_up(n, length);
    pd__chunk *chunk = PD_ARENA_NEW(tmp, count, pd__chunk);
    if (!chunk) return no_memory(n, err);
    size_t out = 0;
    for (size_t i = 0; i < count; i++) {
        pd__chunk c = {.begin = i * length, .end = pd_min_size(n, (i + 1) * length), .index = i};
        double sum = 0.0;
        size_t n_free = 0;
        for (size_t t = c.begin; t < c.end; t++) {
            if (must[t]) continue;
            sum += (double)token[t];
            n_free++;
        }
        if (must_first && n_free < c.end - c.begin)
            c.mean = HUGE_VAL;
        else if (n_free > 0)
            c.mean = sum / (double)n_free;
        else
            continue;
        chunk[out++] = c;
    }
    qsort(chunk, out, sizeof *chunk, by_mean);
    *ret = chunk;
    *n_chunk = out;
    return PD_OK;
}

pd_status pd__mark_best(const float *token, size_t begin, size_t end, size_t k, uint8_t *keep,
                        pd_arena *tmp, size_t *got, pd_err *err) {
    float *s = PD_ARENA_NEW(tmp, end - begin, float);
    uint32_t *slot = PD_ARENA_NEW(tmp, end - begin, uint32_t), *best = slot;
    if (!s || !slot) return no_memory(end - begin, err);
    size_t n = 0;
    for (size_t i = begin; i < end; i++) {
        if (keep[i]) continue;
        s[n] = token[i];
        slot[n++] = (uint32_t)i;
    }
    *got = pd_min_size(k, n);
    if (*got == 0) return PD_OK;
    if (*got < n) {
        best = PD_ARENA_NEW(tmp, *got, uint32_t);
        if (!best) return no_memory(n, err);
        PD_TRY(pd_top_k(s, n, *got, best, tmp, err));
        for (size_t i = 0; i < *got; i++) best[i] = slot[best[i]];
    }
    for (size_t i = 0; i < *got; i++) keep[best[i]] = 1;
    return PD_OK;
}

pd_status pd__plan_marked(const pd_view *view, const uint8_t *keep, pd_plan *ret, pd_err *err) {
    size_t *n_keep = pd_arena_zalloc(view->tmp, view->n_head_kv, sizeof *n_keep);
    if (!n_keep) return no_memory(view->n, err);
    for (size_t i = 0; i < view->n; i++) n_keep[0] += keep[i];
    for (size_t h = 1; h < view->n_head_kv; h++) n_keep[h] = n_keep[0];
    PD_TRY(pd__plan_new(view, n_keep, ret, err));
    for (size_t h = 0; h < view->n_head_kv; h++)
        for (size_t i = 0, at = 0; i < view->n; i++)
            if (keep[i]) ret->keep[h][at++] = (uint32_t)i;
    return PD_OK;
}
