/* SPDX-License-Identifier: Apache-2.0 */
/* llama: Llama 2/3, SmolLM2 and their kin.  transformers: LlamaForCausalLM.
 * Pre-norm, SiLU-gated feed-forward, RoPE on all layers, no biases. */
#include "engine/model/model.h"

extern const pd_arch pd_arch_llama;

static pd_status read_llama(const pd_gguf *g, pd_hparams *hp, pd_err *err) {
    PD_TRY(pd__hparams_common(g, "llama", hp, err));
    hp->act = PD_ACT_SILU;
    hp->rope_interleaved = true;
    return PD_OK;
}

const pd_arch pd_arch_llama = {.name = "llama", .read = read_llama};
