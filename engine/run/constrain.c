/* SPDX-License-Identifier: Apache-2.0 */
/* Grammars at the sampler (see constrain.h).  Cost of a token that fits: a look-up
 * per byte; of one that does not: the state's mask, then a pass over what it allows. */
#include "engine/run/constrain.h"

#include "engine/base/num.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FEW = 4 }; /* a 1/FEW of the vocabulary are few tokens */

pd_status pd_constraint_open(pd_constraint *c, const pd_job *job, const pd_token_tree *tree, pd_matchers *kept, pd_err *err) {
    *c = (pd_constraint){0};
    if (!job->grammar) return PD_OK;
    c->tree = tree;
    c->kept = kept;
    c->first_space = pd_tokenizer_get_info(job->tok)->add_space_prefix && !job->detok.started;
    c->allowed = malloc((pd_token_tree_words(tree) + 1) * sizeof *c->allowed);
    if (!c->allowed) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a grammar");
    return pd_matchers_take(kept, job->grammar, &c->m, err);
}

void pd_constraint_done(pd_constraint *c) {
    if (c->m) pd_matchers_give(c->kept, c->m);
    free(c->allowed);
    *c = (pd_constraint){0};
}

size_t pd_constraint_bytes(const pd_constraint *c) {
    return c->m ? pd_matcher_bytes(c->m) : 0;
}

static pd_status failed(const pd_constraint *c, pd_err *err) {
    const char *why = pd_matcher_failed(c->m);
    return pd_fail(err, PD_EINVAL, "grammar", "the grammar cannot be followed further: %s", why ? why : "no memory");
}

/* The bytes `id` adds to the answer. */
static pd_str bytes_of(const pd_constraint *c, const pd_job *job, int32_t id) {
    pd_str s = pd_token_bytes(job->tok, id, false);
    if (c->first_space && s.len && s.data[0] == ' ') {
        s.data++;
        s.len--;
    }
    return s;
}

static bool ends(const pd_job *job, int32_t id) {
    return pd_token_is_eog(job->tok, id) && !job->ignore_eos;
}

static bool fits(pd_constraint *c, const pd_job *job, int32_t id) {
    if (ends(job, id)) return pd_matcher_may_end(c->m);
    if (pd_token_is_eog(job->tok, id)) return false;
    const pd_str s = bytes_of(c, job, id);
    return s.len > 0 && pd_matcher_fits(c->m, s.data, s.len);
}

/* c->allowed of a mask; how many tokens it has. */
static size_t allow(pd_constraint *c, const uint64_t *mask, bool ends) {
    const size_t words = pd_token_tree_words(c->tree);
    size_t n_end, n = 0;
    const int32_t *end = pd_token_tree_ends(c->tree, &n_end);
    memcpy(c->allowed, mask, words * sizeof *c->allowed);
    for (size_t i = 0; i < n_end && ends; i++) c->allowed[end[i] >> 6] |= 1ull << (end[i] & 63);
    for (size_t w = 0; w < words; w++) n += (size_t)__builtin_popcountll(c->allowed[w]);
    return n;
}

/* Few tokens are drawn from by themselves: what is drawn from is as long as they are many.
 * -1: none of them may come. */
static int32_t sample_few(const pd_constraint *c, pd_sampler *s, const pd_kernels *kern, const float *logits,
                          const pd_sampling *how, pd_rng *rng) {
    const size_t words = pd_token_tree_words(c->tree);
    size_t n = 0;
    for (size_t w = 0; w < words; w++)
        for (uint64_t bits = c->allowed[w]; bits; bits &= bits - 1) {
            const size_t i = w * 64 + (size_t)__builtin_ctzll(bits);
            if (i >= s->n_vocab || !isfinite(logits[i])) continue;
            s->adjusted[n] = logits[i]; /* which may be the same array: n <= i */
            s->some[n++] = (int32_t)i;
        }
    return n ? s->some[pd_sample_some(s, kern, s->adjusted, n, how, rng)] : -1;
}

/* Of many, the row without the others. */
static int32_t sample_many(const pd_constraint *c, pd_sampler *s, const pd_kernels *kern, const float *logits,
                           const pd_sampling *how, pd_rng *rng) {
    const size_t words = pd_min_size(pd_token_tree_words(c->tree), s->n_vocab / 64);
    if (logits != s->adjusted) memcpy(s->adjusted, logits, s->n_vocab * sizeof *logits);
    for (size_t w = 0; w < words; w++)
        for (uint64_t bits = ~c->allowed[w]; bits; bits &= bits - 1) s->adjusted[w * 64 + (size_t)__builtin_ctzll(bits)] = -INFINITY;
    for (size_t i = words * 64; i < s->n_vocab; i++)
        if (i / 64 >= pd_token_tree_words(c->tree) || !(c->allowed[i >> 6] >> (i & 63) & 1)) s->adjusted[i] = -INFINITY;
    if (kern->max_f32(s->adjusted, s->n_vocab) == -INFINITY) return -1;
    const int32_t id = pd_sample(s, kern, s->adjusted, how, rng);
    if (isfinite(s->adjusted[id])) return id;
    return pd_sample(s, kern, s->adjusted, &(pd_sampling){0}, rng); /* rounding went past the last that fits: the likeliest */
}

pd_status pd_constraint_sample(pd_constraint *c, const pd_job *job, pd_sampler *s, const pd_kernels *kern,
                               const float *logits, pd_rng *rng, int32_t *id, pd_err *err) {
    const pd_sampling *how = &job->sampling;
    const bool plain = how->temperature <= 0.0f || (how->top_k <= 0 && how->top_p >= 1.0f && how->min_p <= 0.0f);
    if (plain) {
        *id = pd_sample(s, kern, logits, how, rng);
        if (isfinite(logits[*id]) && fits(c, job, *id)) return PD_OK;
    }
    const uint64_t *mask = pd_matcher_mask(c->m, c->tree, c->first_space);
    if (!mask) return failed(c, err);
    const bool may_end = pd_matcher_may_end(c->m);
    const size_t n = allow(c, mask, may_end && !job->ignore_eos);
    *id = n > s->n_vocab / FEW ? sample_many(c, s, kern, logits, how, rng) : sample_few(c, s, kern, logits, how, rng);
    if (*id < 0 && !may_end)
        return pd_fail(err, PD_EINVAL, "grammar", "no token of the vocabulary continues the answer as the grammar wants it");
    return PD_OK;
}

pd_status pd_constraint_note(pd_constraint *c, const pd_job *job, int32_t id, bool *over, pd_err *err) {
    *over = false;
    if (!c->m) return PD_OK;
    const pd_str s = bytes_of(c, job, id);
    c->first_space = false;
    if (!pd_matcher_take(c->m, s.data, s.len)) {
        if (pd_matcher_failed(c->m)) return failed(c, err);
        return pd_fail(err, PD_EINVAL, "grammar", "token %d does not fit the grammar", id);
    }
    if (pd_matcher_failed(c->m)) return failed(c, err);
    *over = pd_matcher_must_end(c->m);
    return PD_OK;
}
