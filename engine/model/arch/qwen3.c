/* SPDX-License-Identifier: Apache-2.0 */
/* qwen3: Qwen 3 (dense).  transformers: Qwen3ForCausalLM.
 * As qwen2 without its biases; queries and keys are normed per head before RoPE. */
#include "engine/model/read.h"

extern const pd_arch pd_arch_qwen3;

static pd_status read_qwen3(const pd_gguf *g, pd_hparams *hp, pd_err *err) {
    PD_TRY(pd__hparams_common(g, "qwen3", hp, err));
    hp->act = PD_ACT_SILU;
    hp->qk_norm = true;
    return pd__hparams_windows(g, "qwen3", 0, hp, err);
}

const pd_arch pd_arch_qwen3 = {.name = "qwen3", .read = read_qwen3};
