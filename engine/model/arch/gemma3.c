/* SPDX-License-Identifier: Apache-2.0 */
/* gemma3: Gemma 3 text models.  transformers: Gemma3ForCausalLM.
 *
 * Norms before and after both blocks (the file's weights already hold the
 * model's 1 + w), norms of queries and keys per head, GELU(tanh), embeddings
 * times sqrt(n_embd).  Every sixth layer sees everything with the file's RoPE
 * base; the others see a sliding window with base 10,000. */
#include "engine/model/model.h"

#include <math.h>

enum { GLOBAL_EVERY = 6 };

extern const pd_arch pd_arch_gemma3;

static pd_status read_gemma3(const pd_gguf *g, pd_hparams *hp, pd_err *err) {
    PD_TRY(pd__hparams_common(g, "gemma3", hp, err));
    uint32_t window;
    PD_TRY(pd_gguf_u32(g, "gemma3.attention.sliding_window", 1, 1u << 24, &window, err));
    hp->act = PD_ACT_GELU_TANH;
    hp->qk_norm = hp->post_norm = true;
    hp->embd_scale = sqrtf((float)hp->n_embd);
    hp->n_rope = 2;
    hp->rope_base[1] = 10000.0;
    for (size_t l = 0; l < hp->n_layer; l++) {
        if ((l + 1) % GLOBAL_EVERY == 0) continue;
        hp->window[l] = window;
        hp->rope[l] = 1;
    }
    return PD_OK;
}

const pd_arch pd_arch_gemma3 = {.name = "gemma3", .read = read_gemma3};
