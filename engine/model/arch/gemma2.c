/* SPDX-License-Identifier: Apache-2.0 */
/* gemma2: Gemma 2.  transformers: Gemma2ForCausalLM.
 *
 * Norms before and after both blocks (the file's weights already hold the
 * model's 1 + w), GELU(tanh), embeddings times sqrt(n_embd), attention's scores
 * and the logits soft-capped.  Layers 0, 2, 4 .. see a sliding window. */
#include "engine/model/read.h"

#include <math.h>

enum { GLOBAL_EVERY = 2, LAYERS_27B = 46 };

extern const pd_arch pd_arch_gemma2;

static pd_status read_gemma2(const pd_gguf *g, pd_hparams *hp, pd_err *err) {
    PD_TRY(pd__hparams_common(g, "gemma2", hp, err));
    hp->act = PD_ACT_GELU_TANH;
    hp->post_norm = true;
    hp->embd_scale = sqrtf((float)hp->n_embd);
    /* what the released models have, where a file leaves it out */
    if (!pd_gguf_find(g, "gemma2.attn_logit_softcapping")) hp->attn_softcap = 50.0f;
    if (!pd_gguf_find(g, "gemma2.final_logit_softcapping")) hp->logit_softcap = 30.0f;
    /* query_pre_attn_scalar is not in the file: the head size, but in the 27B */
    if (hp->n_layer == LAYERS_27B && !pd_gguf_find(g, "gemma2.attention.scale"))
        hp->attn_scale = 1.0f / sqrtf((float)(hp->n_embd / hp->n_head));
    return pd__hparams_windows(g, "gemma2", GLOBAL_EVERY, hp, err);
}

const pd_arch pd_arch_gemma2 = {.name = "gemma2", .read = read_gemma2};
