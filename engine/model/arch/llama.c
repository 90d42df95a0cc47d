/* SPDX-License-Identifier: Apache-2.0 */
/* llama: Llama 2/3, Mistral, SmolLM2 and their kin.  transformers:
 * LlamaForCausalLM, MistralForCausalLM.
 *
 * Pre-norm, SiLU-gated feed-forward, RoPE on all layers, no biases; a sliding
 * window in all layers where the file states one. */
#include "engine/model/read.h"

extern const pd_arch pd_arch_llama;

static pd_status read_llama(const pd_gguf *g, pd_hparams *hp, pd_err *err) {
    PD_TRY(pd__hparams_common(g, "llama", hp, err));
    hp->act = PD_ACT_SILU;
    hp->rope_interleaved = true;
    return pd__hparams_windows(g, "llama", 0, hp, err);
}

const pd_arch pd_arch_llama = {.name = "llama", .read = read_llama};
