/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of this folder and arch/ share while a model is read.
 * Thread: the one that loads. */
#ifndef PD_ENGINE_MODEL_READ_H
#define PD_ENGINE_MODEL_READ_H

#include "engine/model/model.h"

/* The metadata every architecture shares, under its own prefix
 * ("llama.block_count" ...): sizes, attention, RoPE 0.  Errors: EFILE. */
pd_status pd__hparams_common(const pd_gguf *g, const char *prefix, pd_hparams *hp, pd_err *err);

/* Sliding windows: attention.sliding_window (0 or absent: none) in all layers
 * but every `full_every`-th (0: in all), unless attention.sliding_window_pattern
 * says otherwise: a number in place of full_every, or one flag per layer. */
pd_status pd__hparams_windows(const pd_gguf *g, const char *prefix, uint32_t full_every,
                              pd_hparams *hp, pd_err *err);

/* RoPE 0's base and scaling from the metadata. */
pd_status pd__rope_read(const pd_gguf *g, const char *prefix, pd_hparams *hp, pd_err *err);

/* Factors per frequency, from the file's tensors; NULL = all 1.  [head_dim / 2] */
typedef struct pd__rope_factors {
    const float *all;          /* Llama 3.1's rope_freqs */
    const float *short_, *long_; /* LongRoPE's pair; both or none */
} pd__rope_factors;

/* Frequencies of RoPE r for a server of `ctx` tokens to *ret.  Errors: EFILE
 * (a factor that is not positive), ENOMEM. */
pd_status pd__rope_make(const pd_hparams *hp, size_t r, const pd__rope_factors *f, size_t ctx,
                        pd_rope *ret, pd_err *err);

#endif
