/* SPDX-License-Identifier: Apache-2.0 */
/* qwen2: Qwen 1.5, 2 and 2.5 (dense).  transformers: Qwen2ForCausalLM.
 * As llama, but queries, keys and values have biases, and the file's rows are in
 * half-split RoPE order. */
#include "engine/model/read.h"

extern const pd_arch pd_arch_qwen2;

static pd_status read_qwen2(const pd_gguf *g, pd_hparams *hp, pd_err *err) {
    PD_TRY(pd__hparams_common(g, "qwen2", hp, err));
    hp->act = PD_ACT_SILU;
    hp->qkv_bias = true;
    return pd__hparams_windows(g, "qwen2", 0, hp, err);
}

const pd_arch pd_arch_qwen2 = {.name = "qwen2", .read = read_qwen2};
