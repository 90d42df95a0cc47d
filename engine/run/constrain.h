/* SPDX-License-Identifier: Apache-2.0 */
/* An answer held to its job's grammar: which token may come, and when it is over.
 *
 * Greedy and plain sampling draw first and look at the vocabulary only if the token
 * does not fit; drawing again among those that fit then gives each of them p / sum
 * of the allowed p, as drawing among them at once would.  top_k, top_p and min_p
 * see the tokens that fit alone.  Thread: engine. */
#ifndef PD_ENGINE_RUN_CONSTRAIN_H
#define PD_ENGINE_RUN_CONSTRAIN_H

#include "engine/grammar/grammar.h"
#include "engine/run/job.h"
#include "engine/run/matchers.h"
#include "engine/run/sampler.h"

typedef struct pd_constraint {
    pd_matcher *m;            /* NULL = anything goes */
    const pd_token_tree *tree;
    pd_matchers *kept;        /* where it comes from and goes to */
    uint64_t *allowed;        /* scratch: the tokens of a step */
    bool first_space;         /* the next token's leading space is not written */
} pd_constraint;

/* What `job` asks for; `tree` is of its vocabulary, and may be NULL if it has no
 * grammar.  ENOMEM. */
pd_status pd_constraint_open(pd_constraint *c, const pd_job *job, const pd_token_tree *tree, pd_matchers *kept, pd_err *err);
void pd_constraint_done(pd_constraint *c); /* all-zero is fine */
size_t pd_constraint_bytes(const pd_constraint *c); /* without the tree */

/* The next token from logits[n_vocab]; -1: none fits, the answer is over.
 * Errors: EINVAL (no token fits, and it is not over; a limit of grammar.h at run time). */
pd_status pd_constraint_sample(pd_constraint *c, const pd_job *job, pd_sampler *s, const pd_kernels *kern,
                               const float *logits, pd_rng *rng, int32_t *id, pd_err *err);

/* `id` is part of the answer.  *over: nothing can follow it.  Errors: EINVAL (it
 * does not fit, which no sampled one does; a limit). */
pd_status pd_constraint_note(pd_constraint *c, const pd_job *job, int32_t id, bool *over, pd_err *err);

#endif
