/* SPDX-License-Identifier: Apache-2.0 */
/* "did you mean ...?": the known word a misspelt one was meant to be.
 * Offer every known word, then read `best`.  Thread: any, no shared state. */
#ifndef PD_CONFIG_SUGGEST_H
#define PD_CONFIG_SUGGEST_H

#include <stddef.h>

typedef struct pd_suggest {
    const char *word; /* what was written */
    const char *best; /* nearest offer, borrowed; NULL if none is near enough */
    size_t distance;  /* of best */
} pd_suggest;

/* Near enough: one is the beginning of the other (three letters or more), or the
 * edit distance (insert, delete, replace, swap neighbours) is at most a third of
 * the longer word, and 3 at most.  Letter case and '-' against '_' do not count.
 * O(length^2); words over 63 bytes are never near. */
void pd_suggest_offer(pd_suggest *s, const char *known);

#endif
