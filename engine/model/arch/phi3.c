/* SPDX-License-Identifier: Apache-2.0 */
/* phi3: Phi-3, Phi-3.5 and Phi-4.  transformers: Phi3ForCausalLM.
 *
 * As llama in what it computes.  The file has queries, keys and values in one
 * tensor and gate and up in another, in half-split RoPE order; LongRoPE comes as
 * two tensors of factors and rope.scaling.attn_factor.  A sliding window holds in
 * all layers (0: none). */
#include "engine/model/read.h"

extern const pd_arch pd_arch_phi3;

static pd_status read_phi3(const pd_gguf *g, pd_hparams *hp, pd_err *err) {
    PD_TRY(pd__hparams_common(g, "phi3", hp, err));
    hp->act = PD_ACT_SILU;
    hp->fused = true;
    return pd__hparams_windows(g, "phi3", 0, hp, err);
}

const pd_arch pd_arch_phi3 = {.name = "phi3", .read = read_phi3};
