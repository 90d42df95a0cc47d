/* SPDX-License-Identifier: Apache-2.0 */
/* Log-probabilities in OpenAI's two shapes.  Thread: any. */
#ifndef PD_SERVER_LOGPROBS_H
#define PD_SERVER_LOGPROBS_H

#include "engine/base/buf.h"
#include "engine/run/engine.h"

/* Chat: {"token","logprob","bytes","top_logprobs":[...]} of one event. */
void pd_logprob_chat(pd_buf *out, const pd_tokenizer *tok, const pd_token_event *ev);

/* vLLM's list of a prompt: null, then per token {"ID":{"logprob","rank","decoded_token"},...},
 * the token itself first. */
void pd_logprob_prompt(pd_buf *out, const pd_tokenizer *tok, const pd_scored *s, size_t n, size_t n_top);

/* Completions: four parallel arrays, collected token by token.  All-zero is empty. */
typedef struct pd_logprob_lists {
    pd_buf tokens, token_logprobs, top_logprobs, text_offset;
} pd_logprob_lists;

/* offset: code points of the answer before this token. */
void pd_logprob_lists_add(pd_logprob_lists *l, const pd_tokenizer *tok, const pd_token_event *ev,
                          size_t offset);
/* A token of the prompt; the first one of all has null for its numbers.  n_top: most alternatives. */
void pd_logprob_lists_add_scored(pd_logprob_lists *l, const pd_tokenizer *tok, const pd_scored *s,
                                 size_t n_top, size_t offset);
void pd_logprob_lists_write(const pd_logprob_lists *l, pd_buf *out); /* the object */
void pd_logprob_lists_join(pd_logprob_lists *l, const pd_logprob_lists *more); /* more behind l */
void pd_logprob_lists_clear(pd_logprob_lists *l); /* memory kept */
void pd_logprob_lists_done(pd_logprob_lists *l);

#endif
