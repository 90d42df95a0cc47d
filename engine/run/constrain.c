/* SPDX-License-Identifier: Apache-2.0 */
/* Grammars at the sampler (see constrain.h).  Cost of a token that fits: a look-up
 * per byte; of one that does not: the state's mask, then a pass over the row. */
#include "engine/run/constrain.h"

#include <math.h>
#include <string.h>

pd_status pd_constraint_open(pd_constraint *c, const pd_job *job, const pd_token_tree *tree, pd_err *err) {
    *c = (pd_constraint){0};
    if (!job->grammar) return PD_OK;
    c->tree = tree;
    c->first_space = pd_tokenizer_get_info(job->tok)->add_space_prefix && !job->detok.started;
    return pd_matcher_open(&c->m, job->grammar, err);
}

void pd_constraint_done(pd_constraint *c) {
    pd_matcher_close(c->m);
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
    const size_t n_known = pd_tokenizer_get_info(job->tok)->n_vocab;
    const bool may_end = pd_matcher_may_end(c->m);
    int32_t best = -1;
    for (size_t i = 0; i < s->n_vocab; i++) {
        const bool in = i < n_known && (mask[i >> 6] >> (i & 63) & 1 || (may_end && ends(job, (int32_t)i)));
        s->adjusted[i] = in ? logits[i] : -INFINITY;
        if (in && isfinite(logits[i]) && (best < 0 || logits[i] > s->adjusted[best])) best = (int32_t)i;
    }
    *id = best;
    if (best < 0 && !may_end)
        return pd_fail(err, PD_EINVAL, "grammar", "no token of the vocabulary continues the answer as the grammar wants it");
    if (best < 0) return PD_OK;
    *id = pd_sample(s, kern, s->adjusted, how, rng);
    if (!isfinite(s->adjusted[*id])) *id = best; /* rounding went past the last that fits */
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
