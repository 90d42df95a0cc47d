/* SPDX-License-Identifier: Apache-2.0 */
/* gemma3: Gemma 3 text models.  transformers: Gemma3ForCausalLM.
 *
 * Norms before and after both blocks (the file's weights already hold the
 * model's 1 + w), norms of queries and keys per head, GELU(tanh), embeddings
 * times sqrt(n_embd).  Every sixth layer sees everything with the file's RoPE
 * base and scaling; the others see a sliding window with base 10,000. */
#include "engine/model/read.h"

#include <math.h>

enum { GLOBAL_EVERY = 6, LAYERS_27B = 62 };

extern const pd_arch pd_arch_gemma3;

static pd_status read_gemma3(const pd_gguf *g, pd_hparams *hp, pd_err *err) {
    PD_TRY(pd__hparams_common(g, "gemma3", hp, err));
    uint32_t window;
    PD_TRY(pd_gguf_u32(g, "gemma3.attention.sliding_window", 1, 1u << 24, &window, err));
    PD_TRY(pd__hparams_windows(g, "gemma3", GLOBAL_EVERY, hp, err));
    float base;
    PD_TRY(pd_gguf_f32_or(g, "gemma3.rope.freq_base_swa", 1.0f, 1e12f, 10000.0f, &base, err));
    hp->act = PD_ACT_GELU_TANH;
    hp->qk_norm = hp->post_norm = true;
    hp->embd_scale = sqrtf((float)hp->n_embd);
    /* query_pre_attn_scalar is not in the file: the head size, but in the 27B */
    if (hp->n_layer == LAYERS_27B && !pd_gguf_find(g, "gemma3.attention.scale"))
        hp->attn_scale = 1.0f / sqrtf((float)(hp->n_embd / hp->n_head));
    hp->n_rope = 2;
    hp->rope_spec[1].base = base;
    for (size_t l = 0; l < hp->n_layer; l++) hp->rope[l] = hp->window[l] != 0;
    return PD_OK;
}

static const char *const keys[] = {"rope.freq_base_swa", NULL};

const pd_arch pd_arch_gemma3 = {.name = "gemma3", .read = read_gemma3, .keys = keys};
