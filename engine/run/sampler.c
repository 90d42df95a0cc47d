/* SPDX-License-Identifier: Apache-2.0 */
/* Sampling (see sampler.h).  A full sort of 262,144 logits would cost more than
 * the token: candidates are found with a heap of the k largest, and for top_p
 * alone k grows fourfold until its mass is reached. */
#include "engine/run/sampler.h"

#include "engine/base/num.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST_GUESS = 256 };

pd_status pd_sampler_init(pd_sampler *s, size_t n_vocab, pd_err *err) {
    *s = (pd_sampler){.n_vocab = n_vocab};
    s->p = malloc(n_vocab * sizeof *s->p);
    s->cand = malloc(n_vocab * sizeof *s->cand);
    s->adjusted = malloc(n_vocab * sizeof *s->adjusted);
    s->some = malloc(n_vocab * sizeof *s->some);
    if (s->p && s->cand && s->adjusted && s->some) return PD_OK;
    pd_sampler_done(s);
    return pd_fail(err, PD_ENOMEM, NULL, "no memory for sampling");
}

void pd_sampler_done(pd_sampler *s) {
    free(s->p);
    free(s->cand);
    free(s->adjusted);
    free(s->some);
    *s = (pd_sampler){0};
}

/* a is worse than b: smaller, or equal with the higher id. */
static bool worse(pd_token_prob a, pd_token_prob b) {
    return a.logprob < b.logprob || (a.logprob == b.logprob && a.id > b.id);
}

static void sift_down(pd_token_prob *heap, size_t n, size_t i) {
    for (;;) {
        size_t c = 2 * i + 1;
        if (c >= n) return;
        if (c + 1 < n && worse(heap[c + 1], heap[c])) c++;
        if (!worse(heap[c], heap[i])) return;
        const pd_token_prob t = heap[i];
        heap[i] = heap[c];
        heap[c] = t;
        i = c;
    }
}

static int by_prob(const void *a, const void *b) {
    const pd_token_prob *x = a, *y = b;
    return worse(*y, *x) ? -1 : worse(*x, *y);
}

/* The k largest of x[0..n) with their ids, descending. */
static void top_k(const float *x, size_t n, size_t k, pd_token_prob *out) {
    for (size_t i = 0; i < k; i++) out[i] = (pd_token_prob){(int32_t)i, x[i]};
    for (size_t i = k / 2; i-- > 0;) sift_down(out, k, i);
    for (size_t i = k; i < n; i++) {
        if (x[i] <= out[0].logprob) continue; /* ids ascend: an equal one is worse */
        out[0] = (pd_token_prob){(int32_t)i, x[i]};
        sift_down(out, k, 0);
    }
    qsort(out, k, sizeof *out, by_prob);
}

/* The first of the largest: which piece has it, then where. */
static size_t argmax(const pd_kernels *kern, const float *x, size_t n) {
    enum { PIECE = 4096 };
    float max = -INFINITY;
    size_t best = 0;
    for (size_t i = 0; i < n; i += PIECE) {
        const float m = kern->max_f32(x + i, pd_min_size(PIECE, n - i));
        if (m <= max) continue;
        max = m;
        best = i;
    }
    while (best + 1 < n && x[best] < max) best++;
    return best;
}

int32_t pd_sample(pd_sampler *s, const pd_kernels *kern, const float *logits, const pd_sampling *how, pd_rng *rng) {
    return (int32_t)pd_sample_some(s, kern, logits, s->n_vocab, how, rng);
}

size_t pd_sample_some(pd_sampler *s, const pd_kernels *kern, const float *logits, size_t n, const pd_sampling *how, pd_rng *rng) {
    if (how->temperature <= 0.0f) return argmax(kern, logits, n);
    const float inv = 1.0f / how->temperature;
    for (size_t i = 0; i < n; i++) s->p[i] = logits[i] * inv;
    const double sum = kern->exp_sum_f32(s->p, n, kern->max_f32(s->p, n));
    const bool plain = how->top_k <= 0 && how->top_p >= 1.0f && how->min_p <= 0.0f;
    double u = pd_rng_f64(rng) * sum;
    if (plain) {
        for (size_t i = 0; i + 1 < n; i++) {
            u -= s->p[i];
            if (u < 0.0) return i;
        }
        return argmax(kern, s->p, n); /* rounding left a crumb: the likeliest */
    }
    const size_t most = how->top_k > 0 ? pd_min_size((size_t)how->top_k, n) : n;
    size_t k = pd_min_size(most, how->top_k > 0 ? most : FIRST_GUESS), end = 0;
    double mass = 0.0, whole = sum;
    for (;;) {
        top_k(s->p, n, k, s->cand);
        if (how->top_k > 0) {
            whole = 0.0;
            for (size_t i = 0; i < k; i++) whole += s->cand[i].logprob;
        }
        mass = 0.0;
        for (end = 0; end < k; end++) {
            if (end > 0 && (mass >= how->top_p * whole || s->cand[end].logprob < how->min_p * s->cand[0].logprob)) break;
            mass += s->cand[end].logprob;
        }
        if (end < k || k == most) break;
        k = pd_min_size(most, k * 4);
    }
    u = u / sum * mass;
    for (size_t i = 0; i + 1 < end; i++) {
        u -= s->cand[i].logprob;
        if (u < 0.0) return (size_t)s->cand[i].id;
    }
    return (size_t)s->cand[end - 1].id;
}

float pd_logprobs_row(const pd_kernels *kern, float *logits, size_t n, int32_t id, pd_token_prob *top, size_t n_top) {
    const float floor_lp = -9999.0f; /* JSON has no infinity */
    const float x = logits[id], max = kern->max_f32(logits, n);
    n_top = pd_min_size(n_top, n);
    if (n_top) top_k(logits, n, n_top, top);
    const float lse = max + logf(kern->exp_sum_f32(logits, n, max));
    for (size_t i = 0; i < n_top; i++) top[i].logprob = fmaxf(top[i].logprob - lse, floor_lp);
    return fmaxf(x - lse, floor_lp);
}

float pd_logprobs(pd_sampler *s, const pd_kernels *kern, const float *logits, int32_t id,
                  pd_token_prob *top, size_t n_top) {
    memcpy(s->p, logits, s->n_vocab * sizeof *s->p);
    return pd_logprobs_row(kern, s->p, s->n_vocab, id, top, n_top);
}
