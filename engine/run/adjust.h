/* SPDX-License-Identifier: Apache-2.0 */
/* Logits changed before a token is sampled (pd_adjust in engine.h says how).
 *
 * The order is vLLM's: tokens that may not come yet, then biases, then the
 * penalties: repetition (Keskar et al. 2019, CTRL), frequency and presence (the
 * OpenAI API's definition).  Only the tokens concerned are touched in a copy of
 * the row; a request that asks for none of this pays one comparison a token.
 * Thread: engine. */
#ifndef PD_ENGINE_RUN_ADJUST_H
#define PD_ENGINE_RUN_ADJUST_H

#include "engine/run/job.h"

typedef struct pd_adjuster {
    bool on;
    size_t n_vocab;
    /* penalties only */
    uint32_t *count; /* [n_vocab] times in the answer, and a bit if it is in the prompt */
    int32_t *seen;   /* the tokens whose count is not 0, each once */
    size_t n_seen;
    int32_t *ending; /* [n_ending] tokens that end an answer; min_tokens only */
    size_t n_ending;
} pd_adjuster;

/* What `job` asks for; all-zero if nothing.  Errors: ENOMEM. */
pd_status pd_adjuster_open(pd_adjuster *a, const pd_job *job, size_t n_vocab, pd_err *err);
void pd_adjuster_done(pd_adjuster *a); /* all-zero is fine */

/* The logits to sample from: `logits` itself, or `scratch` [n_vocab]. */
const float *pd_adjuster_apply(const pd_adjuster *a, const pd_job *job, const float *logits, float *scratch);

/* `id` is part of the answer. */
void pd_adjuster_note(pd_adjuster *a, int32_t id);

#endif
