/* SPDX-License-Identifier: Apache-2.0 */
/* Matchers whose answers are over, for the next answers of the same grammars.
 *
 * What a matcher finds out, states, steps and masks, is of its grammar and of no answer,
 * and most of what a short answer pays for its form.  The last ones are kept, each for one
 * answer at a time, up to COUNT and BYTES.  Thread: engine. */
#ifndef PD_ENGINE_RUN_MATCHERS_H
#define PD_ENGINE_RUN_MATCHERS_H

#include "engine/grammar/grammar.h"

enum { PD_MATCHERS_COUNT = 8, PD_MATCHERS_BYTES = 32 << 20 };

typedef struct pd_matchers {
    pd_matcher *m[PD_MATCHERS_COUNT]; /* [n], the latest last */
    size_t n;
} pd_matchers;

/* At the beginning of g: a kept one, or a new one.  Errors: as pd_matcher_open. */
pd_status pd_matchers_take(pd_matchers *k, pd_grammar *g, pd_matcher **ret, pd_err *err);
void pd_matchers_give(pd_matchers *k, pd_matcher *m);
void pd_matchers_done(pd_matchers *k);
size_t pd_matchers_bytes(const pd_matchers *k);

#endif
