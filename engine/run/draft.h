/* SPDX-License-Identifier: Apache-2.0 */
/* Prompt look-up: what a text said after the words it now ends with is likely to
 * come again (Saxena, "Prompt Lookup Decoding", 2023; "ngram" in vLLM).  The tokens
 * proposed are fed together with the next one in one step, which reads the weights
 * once; sampling then takes them one by one, each from its own logits and the
 * sequence's own random numbers, up to the first that differs.  The answer is
 * therefore the same, token for token, as without.
 *
 * A step of more rows costs more.  A sequence drafts only while that makes it faster:
 * it compares the time per token of its drafted steps with that of plain ones, and
 * when drafting loses it stops for a while, each time for twice as long.
 *
 * Thread: engine. */
#ifndef PD_ENGINE_RUN_DRAFT_H
#define PD_ENGINE_RUN_DRAFT_H

#include "engine/base/err.h"

#include <stddef.h>
#include <stdint.h>

enum { PD_DRAFT_MAX = 8 }; /* most tokens proposed at a time */

typedef struct pd_draft {
    int32_t *text; /* prompt and answer, the token to feed included; NULL = this sequence never drafts */
    size_t n, cap;
    size_t most, len; /* tokens proposed at a time: at most, at present */
    double plain_ns;  /* of a token in plain steps, lately; 0 = unknown */
    double ns, tokens; /* of drafted steps, lately: both sums fade */
    size_t pause, back_off; /* steps still to go without, the next pause */
} pd_draft;

/* For a prompt of n tokens and up to `more` of an answer; most: 1 to PD_DRAFT_MAX.
 * Errors: ENOMEM. */
pd_status pd_draft_init(pd_draft *d, const int32_t *prompt, size_t n, size_t more, size_t most, pd_err *err);
void pd_draft_done(pd_draft *d);

void pd_draft_note(pd_draft *d, int32_t id); /* a token was sampled; no more than `more` */

/* At most `room` tokens that may follow the text, in ret; their number.  0 also when
 * it is time for a plain step.  One pass over the text: some microseconds for 8,192 tokens. */
size_t pd_draft_propose(pd_draft *d, size_t room, int32_t ret[PD_DRAFT_MAX]);

/* A step took ns: n proposed tokens (0: a plain step) gave `taken` right ones and one more. */
void pd_draft_learn(pd_draft *d, size_t n, size_t taken, double ns);

#endif
