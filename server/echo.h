/* SPDX-License-Identifier: Apache-2.0 */
/* A prompt as the text it stands for, cut where its tokens begin: what `echo`
 * gives back.  All-zero is empty.  Thread: any. */
#ifndef PD_SERVER_ECHO_H
#define PD_SERVER_ECHO_H

#include "engine/base/buf.h"
#include "engine/base/err.h"
#include "engine/tokenizer/tokenizer.h"

typedef struct pd_echo_cut {
    uint32_t bytes, chars; /* before the token: of the text, in bytes and code points */
} pd_echo_cut;

typedef struct pd_echo {
    pd_buf text;
    pd_echo_cut *cut; /* [n + 1]; the last is the whole text */
    size_t n;
} pd_echo;

/* Special tokens are written out, but a BOS that the tokenizer put before a given
 * text (`from_text`) is no part of it.  A code point of several tokens belongs to
 * the one that completes it.  Errors: ENOMEM. */
pd_status pd_echo_make(pd_echo *e, const pd_tokenizer *tok, const pd_ids *ids, bool from_text,
                       pd_err *err);
void pd_echo_done(pd_echo *e);

static inline size_t pd_echo_chars(const pd_echo *e) {
    return e->cut ? e->cut[e->n].chars : 0;
}

#endif
