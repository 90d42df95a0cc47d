/* SPDX-License-Identifier: Apache-2.0 */
/* Logits changed before sampling (see adjust.h).  Cost: a copy of the row and a
 * walk over the tokens seen so far; 8 bytes a vocabulary entry at most. */
#include "engine/run/adjust.h"

#include "engine/base/num.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define IN_PROMPT (1u << 31)

static bool penalises(const pd_adjust *how) {
    return (how->repetition != 0.0f && how->repetition != 1.0f) || how->frequency != 0.0f || how->presence != 0.0f;
}

static void see(pd_adjuster *a, int32_t id, uint32_t how) {
    if (a->count[id] == 0) a->seen[a->n_seen++] = id;
    a->count[id] += how;
}

static pd_status open_counts(pd_adjuster *a, const pd_job *job, pd_err *err) {
    a->count = calloc(a->n_vocab, sizeof *a->count);
    a->seen = malloc(pd_min_size(a->n_vocab, job->n_tokens + job->max_tokens) * sizeof *a->seen);
    if (!a->count || !a->seen) return pd_fail(err, PD_ENOMEM, NULL, "no memory for penalties");
    for (size_t i = 0; i < job->n_tokens; i++)
        if (!(a->count[job->tokens[i]] & IN_PROMPT)) see(a, job->tokens[i], IN_PROMPT);
    return PD_OK;
}

static pd_status open_ending(pd_adjuster *a, const pd_job *job, pd_err *err) {
    size_t n = job->n_stop_id;
    for (size_t i = 0; i < a->n_vocab; i++) n += pd_token_is_eog(job->tok, (int32_t)i);
    a->ending = malloc((n ? n : 1) * sizeof *a->ending);
    if (!a->ending) return pd_fail(err, PD_ENOMEM, NULL, "no memory for %zu stop tokens", n);
    for (size_t i = 0; i < job->n_stop_id; i++) a->ending[a->n_ending++] = job->stop_id[i];
    for (size_t i = 0; i < a->n_vocab; i++)
        if (pd_token_is_eog(job->tok, (int32_t)i)) a->ending[a->n_ending++] = (int32_t)i;
    return PD_OK;
}

pd_status pd_adjuster_open(pd_adjuster *a, const pd_job *job, size_t n_vocab, pd_err *err) {
    const pd_adjust *how = &job->adjust;
    *a = (pd_adjuster){.n_vocab = n_vocab};
    a->on = how->min_tokens || how->n_bias || penalises(how);
    if (how->min_tokens) PD_TRY(open_ending(a, job, err));
    return penalises(how) ? open_counts(a, job, err) : PD_OK;
}

void pd_adjuster_done(pd_adjuster *a) {
    free(a->count);
    free(a->seen);
    free(a->ending);
    *a = (pd_adjuster){0};
}

static float penalise(const pd_adjust *how, uint32_t count, float x) {
    if (how->repetition != 0.0f) x = x > 0.0f ? x / how->repetition : x * how->repetition;
    const uint32_t n = count & ~IN_PROMPT;
    x -= how->frequency * (float)n;
    return n ? x - how->presence : x;
}

const float *pd_adjuster_apply(const pd_adjuster *a, const pd_job *job, const float *logits, float *scratch) {
    const pd_adjust *how = &job->adjust;
    if (!a->on) return logits;
    memcpy(scratch, logits, a->n_vocab * sizeof *scratch);
    if (job->n_sampled < how->min_tokens)
        for (size_t i = 0; i < a->n_ending; i++) scratch[a->ending[i]] = -INFINITY;
    for (size_t i = 0; i < how->n_bias; i++) scratch[how->bias[i].id] += how->bias[i].bias;
    for (size_t i = 0; i < a->n_seen; i++) {
        const int32_t id = a->seen[i];
        scratch[id] = penalise(how, a->count[id], scratch[id]);
    }
    return scratch;
}

void pd_adjuster_note(pd_adjuster *a, int32_t id) {
    if (a->count) see(a, id, 1);
}
