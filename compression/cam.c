/* SPDX-License-Identifier: Apache-2.0 */
/* cam: decoding, but the values of evicted tokens are merged into kept ones.
 *
 * Zhang et al. 2024, "CaM: Cache Merging for Memory-efficient LLMs Inference"
 * (openreview LCTmppB165); kvpress' CAMPress.  A[h][i] = attention that slot i got
 * from the query of every step so far (the tags).  A pruning of n slots to T:
 *
 *     y_i  = mean over KV heads of the scores of the press inside; the T best stay,
 *            the same slots in all heads
 *     the n_steps best of the evicted (ties: the later) are merged: with W = the
 *     next merge_budget kept slots after i, c = |W|,
 *     p    = clamp(A[h][i] / mean_{j in W} A[h][j], 0, 1)       0/0: 0, x/0: 1
 *     with probability p, in each head by itself:  v_j += v_i / c for j in W
 *
 * An evicted slot with no kept one after it is lost.  Draws are u < p, u from
 * splitmix64 seeded by the request, the layer and the tokens seen, in the order
 * (head, slot); every merged slot takes one.
 *
 * DIFFERS: the draws are seeded, where the reference draws from the process' global
 * generator; A holds the weights the model itself used (its own softmax scale).
 * Protected slots stay, in all heads if in one.  adakv inside, which the
 * reference's type admits and its code does not, is refused: it scores nothing.
 * Cost: a second pass over the keys each step; per pruning H * n_steps *
 * merge_budget * D additions and T * D copies. */
#include "compression/decoding.h"
#include "compression/shared.h"

#include "engine/base/num.h"
#include "engine/base/rng.h"

#include <math.h>
#include <string.h>

enum { INTERVAL, TARGET, BUFFER, MERGE };

/* *y[n]: mean score of each slot over the heads; +inf where one must stay. */
static pd_status mean_scores(const pd_press_inst *inst, const pd_view *view, float **y, pd_err *err) {
    float **score = pd_scores_new(view), *mean = pd_arena_zalloc(view->tmp, view->n, sizeof *mean);
    if (!score || !mean)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the scores of %zu tokens", view->n);
    PD_TRY(pd_press_score(inst->child[0], view, score, err));
    for (size_t h = 0; h < view->n_head_kv; h++)
        for (size_t i = 0; i < view->n; i++) mean[i] += score[h][i] / (float)view->n_head_kv;
    *y = mean;
    return PD_OK;
}

/* Slots that are protected in any head: as many as y has infinities. */
static size_t n_must_stay(const pd_view *view, const float *y) {
    size_t n = 0;
    for (size_t i = 0; view->protect && i < view->n; i++) n += y[i] == INFINITY;
    return n;
}

/* The k best of the slots not in keep[0..n_keep), ascending, to *ret; *n of them. */
static pd_status pick_merged(const pd_view *view, const float *y, const uint32_t *keep, size_t n_keep,
                             size_t k, uint32_t **ret, size_t *n, pd_err *err) {
    const size_t n_out = view->n - n_keep;
    *n = pd_min_size(k, n_out);
    /* Written from the last slot to the first, so that of equal scores the later wins. */
    float *s = PD_ARENA_NEW(view->tmp, n_out, float);
    uint32_t *slot = PD_ARENA_NEW(view->tmp, n_out, uint32_t), *best = PD_ARENA_NEW(view->tmp, *n + 1, uint32_t);
    if (!s || !slot || !best) return pd_fail(err, PD_ENOMEM, NULL, "no memory to merge values");
    for (size_t i = 0, kept = 0, out = n_out; i < view->n; i++) {
        if (kept < n_keep && keep[kept] == i) {
            kept++;
            continue;
        }
        s[--out] = y[i];
        slot[out] = (uint32_t)i;
    }
    if (*n) PD_TRY(pd_top_k(s, n_out, *n, best, view->tmp, err));
    for (size_t i = 0; i < *n; i++) best[i] = slot[best[i]];
    for (size_t i = 0; i < *n / 2; i++) {
        const uint32_t b = best[i];
        best[i] = best[*n - 1 - i];
        best[*n - 1 - i] = b;
    }
    *ret = best;
    return PD_OK;
}

static float merge_probability(const float *a, uint32_t slot, const uint32_t *window, size_t c) {
    float sum = 0.0f;
    for (size_t j = 0; j < c; j++) sum += a[window[j]];
    const float p = a[slot] / (sum / (float)(c ? c : 1));
    if (isnan(p)) return 0.0f;
    return p < 0.0f ? 0.0f : p > 1.0f ? 1.0f : p;
}

/* v [n_keep][D] holds the kept values of head h. */
static void merge_head(const pd_view *view, size_t h, const uint32_t *merged, size_t n_merged,
                       const uint32_t *keep, size_t n_keep, size_t budget, pd_rng *rng, float *v) {
    const size_t d = view->head_dim;
    for (size_t m = 0, start = 0; m < n_merged; m++) {
        while (start < n_keep && keep[start] < merged[m]) start++;
        const size_t c = pd_min_size(budget, n_keep - start);
        const float p = merge_probability(view->tag[h], merged[m], keep + start, c);
        if (!(pd_rng_f64(rng) < (double)p)) continue;
        for (size_t j = 0; j < c; j++)
            view->kern->axpy_f32(1.0f / (float)c, view->v[h] + merged[m] * d, v + (start + j) * d, d);
    }
}

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                      pd_plan *ret, pd_err *err) {
    const size_t heads = view->n_head_kv, n = view->n, d = view->head_dim;
    for (size_t h = 0; h < heads; h++)
        if (view->n_h[h] != n || !view->tag)
            return pd_fail(err, PD_EINTERNAL, NULL, "cam: layer %d has uneven heads or no attention sums",
                           view->layer);
    float *y = NULL;
    PD_TRY(mean_scores(inst, view, &y, err));
    const size_t n_keep = pd_max_size(pd_budget_keep(budget, n), n_must_stay(view, y));
    size_t *n_each = PD_ARENA_NEW(view->tmp, heads, size_t);
    float **v = PD_ARENA_NEW(view->tmp, heads, float *);
    if (!n_each || !v) return pd_fail(err, PD_ENOMEM, NULL, "no memory to press a layer");
    for (size_t h = 0; h < heads; h++) n_each[h] = n_keep;
    PD_TRY(pd__plan_new(view, n_each, ret, err));
    PD_TRY(pd_top_k(y, n, n_keep, ret->keep[0], view->tmp, err));
    uint32_t *merged = NULL;
    size_t n_merged = 0;
    PD_TRY(pick_merged(view, y, ret->keep[0], n_keep, view->n_steps, &merged, &n_merged, err));

    pd_rng key = {view->seed ^ (uint64_t)view->layer << 40 ^ view->n_seen};
    pd_rng rng = {pd_rng_u64(&key)};
    for (size_t h = 0; h < heads; h++) {
        if (h) memcpy(ret->keep[h], ret->keep[0], n_keep * sizeof **ret->keep);
        v[h] = PD_ARENA_NEW(view->tmp, n_keep * d, float);
        if (!v[h]) return pd_fail(err, PD_ENOMEM, NULL, "no memory to merge values");
        for (size_t i = 0; i < n_keep; i++)
            memcpy(v[h] + i * d, view->v[h] + ret->keep[0][i] * d, d * sizeof(float));
        merge_head(view, h, merged, n_merged, ret->keep[0], n_keep, (size_t)inst->p[MERGE], &rng, v[h]);
    }
    ret->v_new = v;
    return PD_OK;
}

static bool decode_rule(const pd_press_inst *inst, pd_decode_rule *ret) {
    *ret = (pd_decode_rule){
        .prune = inst,
        .interval = (size_t)inst->p[INTERVAL],
        .budget = {.by_count = true, .count = (size_t)inst->p[TARGET]},
        .wait = true,
        .n_recent = pd__recent(inst->p[BUFFER]),
        .tag = PD_TAG_ATTENTION,
    };
    return true;
}

static const pd_param params[] = {
    [INTERVAL] = PD__PARAM_INTERVAL,
    [TARGET] = PD__PARAM_TARGET,
    [BUFFER] = PD__PARAM_BUFFER,
    [MERGE] = {.name = "merge_budget",
               .type = PD_PARAM_INT,
               .def = 32,
               .min = 1,
               .max = 65536,
               .doc = "kept tokens that an evicted value is spread over"},
};

const pd_press pd_press_cam = {
    .name = "cam",
    .reference_class = "CAMPress",
    .kind = "decoding",
    .source = "openreview LCTmppB165",
    .doc = "Prunes while tokens are generated and merges the values of what goes into what stays.",
    .ratio_doc = "none: target_size is what stays",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_DECODE | PD_DECODE_ONLY | PD_CAN_COMPOSE,
    .min_child = 1,
    .max_child = 1,
    .child_must = PD_CAN_SCORE | PD_CAN_SCORE_STEP,
    .own_budget = true,
    .plan = plan,
    .decode_rule = decode_rule,
};
