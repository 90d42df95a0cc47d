/* SPDX-License-Identifier: Apache-2.0 */
/* From logits to a token (adjust.h may have changed them).
 *
 * temperature 0: the largest logit, lower id first.  Otherwise, as vLLM orders
 * them: logits / temperature, softmax, the top_k largest, of those the smallest
 * set reaching top_p, of those what has at least min_p of the largest; drawn
 * with the request's own generator.  Thread: engine. */
#ifndef PD_ENGINE_RUN_SAMPLER_H
#define PD_ENGINE_RUN_SAMPLER_H

#include "engine/base/rng.h"
#include "engine/kernels/kernels.h"
#include "engine/run/engine.h"

typedef struct pd_sampler {
    float *p;          /* [n_vocab] scratch */
    pd_token_prob *cand; /* [n_vocab] scratch */
    float *adjusted;   /* [n_vocab] scratch of adjust.h; untouched, it costs no memory */
    int32_t *some;     /* [n_vocab] scratch of constrain.h, as that */
    size_t n_vocab;
} pd_sampler;

pd_status pd_sampler_init(pd_sampler *s, size_t n_vocab, pd_err *err);
void pd_sampler_done(pd_sampler *s);

/* The next token from logits[n_vocab] (unchanged). */
int32_t pd_sample(pd_sampler *s, const pd_kernels *kern, const float *logits, const pd_sampling *how, pd_rng *rng);

/* The same from n of them: an index into logits[n], of which there is one at least. */
size_t pd_sample_some(pd_sampler *s, const pd_kernels *kern, const float *logits, size_t n, const pd_sampling *how, pd_rng *rng);

/* log softmax of `id`, and the n_top largest, descending (ties: lower id). */
float pd_logprobs(pd_sampler *s, const pd_kernels *kern, const float *logits, int32_t id,
                  pd_token_prob *top, size_t n_top);

/* The same from a row that is lost by it; no scratch.  Thread: any. */
float pd_logprobs_row(const pd_kernels *kern, float *logits, size_t n, int32_t id, pd_token_prob *top, size_t n_top);

#endif
