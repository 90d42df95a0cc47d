/* SPDX-License-Identifier: Apache-2.0 */
/* A loaded model: hyper-parameters and packed weights.
 *
 * One decoder layer, for every architecture served (absent parts are NULL/0):
 *
 *   h = norm(x, attn_norm);  q,k,v = Wq h, Wk h, Wv h
 *   q,k,v = q + bq, k + bk, v + bv                                 qwen2
 *   q,k = norm(q, q_norm), norm(k, k_norm)      per head           gemma3, qwen3
 *   q,k = rope(q), rope(k);  a = attention(q, K, V)
 *   o = Wo a;  o = norm(o, attn_post_norm)                         gemma2, gemma3
 *   x = x + o
 *   h = norm(x, ffn_norm);  f = Wdown (act(Wgate h) * (Wup h))
 *   f = norm(f, ffn_post_norm)                                     gemma2, gemma3
 *   x = x + f
 *
 * gemma2 also bends attention's scores s and the logits: c tanh(s / c).
 *
 * An architecture is one file in arch/ with one entry `pd_arch_<name>`: it reads
 * its hyper-parameters from the metadata; tensors have llama.cpp's names.
 * Queries and keys are kept in half-split RoPE order whatever the file has
 * (files of arch llama interleave pairs; their rows are put back at load), so
 * that presses see the same vectors as in transformers.
 * Thread: load one; read-only afterwards, any. */
#ifndef PD_ENGINE_MODEL_MODEL_H
#define PD_ENGINE_MODEL_MODEL_H

#include "engine/model/mat.h"

enum { PD_LAYERS_MAX = 512, PD_ROPE_MAX = 2 };

typedef enum { PD_ACT_SILU, PD_ACT_GELU_TANH } pd_act;

typedef struct pd_rope {
    float *inv_freq; /* [head_dim / 2], f32 as transformers computes it */
    float scale;     /* cos and sin are multiplied by it: YaRN, LongRoPE */
} pd_rope;

typedef struct pd_layer {
    float *attn_norm, *q_norm, *k_norm, *attn_post_norm, *ffn_norm, *ffn_post_norm;
    float *q_bias, *k_bias, *v_bias; /* [n_head * D], [n_head_kv * D], likewise */
    pd_mat q, k, v, o, gate, up, down;
    uint32_t window;    /* sliding window in tokens, itself included; 0 = full attention */
    unsigned rope;      /* index into pd_model.rope */
} pd_layer;

/* One RoPE as the metadata has it (rope.c). */
typedef struct pd_rope_spec {
    double base;
    double div;          /* linear scaling: positions are divided by it */
    double yarn;         /* YaRN's factor, 0 = none */
    float beta_fast, beta_slow; /* its ramp, in turns over the original context */
    float scale;         /* of cos and sin */
    size_t orig_ctx;
    bool longrope;       /* tensors have its factors */
} pd_rope_spec;

/* What an architecture says; filled by its read function. */
typedef struct pd_hparams {
    size_t n_layer, n_embd, n_head, n_head_kv, head_dim, n_ff, n_vocab, ctx_train;
    float norm_eps, embd_scale, attn_scale;
    float attn_softcap, logit_softcap; /* c of c tanh(x / c); 0 = none */
    pd_act act;
    bool qk_norm, post_norm, qkv_bias;
    bool fused;                     /* the file has q, k, v in one tensor, gate and up in one */
    bool rope_interleaved;          /* the file's Q/K rows come in pairs (2i, 2i+1) */
    pd_rope_spec rope_spec[PD_ROPE_MAX];
    size_t n_rope;
    uint32_t window[PD_LAYERS_MAX]; /* per layer */
    uint8_t rope[PD_LAYERS_MAX];    /* per layer: index */
} pd_hparams;

typedef struct pd_arch {
    const char *name; /* general.architecture */
    pd_status (*read)(const pd_gguf *g, pd_hparams *hp, pd_err *err);
    const char *const *keys; /* metadata it reads that is not every architecture's, NULL-ended; or NULL */
} pd_arch;

typedef struct pd_model {
    const pd_arch *arch;
    pd_hparams hp;
    pd_layer *layer;
    pd_mat embd;      /* [n_vocab][n_embd] */
    pd_mat out;       /* empty if tied: embd serves */
    float *out_norm;
    pd_rope rope[PD_ROPE_MAX];
    pd_slab slab;     /* the packed matrices */
    uint64_t n_params, weight_bytes;
    char name[128], file_type[16];
} pd_model;

/* The hyper-parameters alone (n_vocab is 0); no weight is read.  `arch` may be
 * NULL.  Errors: EFILE, also for metadata that asks for what is not served. */
pd_status pd_model_hparams(const pd_gguf *g, const pd_arch **arch, pd_hparams *hp, pd_err *err);

/* Load everything.  ctx: tokens a sequence may reach, 0 = the trained context; it
 * chooses LongRoPE's factors, and a window that all layers share is none if no
 * sequence can outgrow it.  progress as in pd_engine_open.  Errors: EFILE names
 * the key or tensor at fault, a tensor that nothing asked for included; ENOMEM. */
pd_status pd_model_open(pd_model **ret, const pd_gguf *g, pd_mat_form form, size_t ctx, pd_workers *workers,
                        void (*progress)(void *arg, double done), void *arg, pd_err *err);
void pd_model_close(pd_model *m); /* NULL and half-made are fine */

static inline const pd_mat *pd_model_out(const pd_model *m) {
    return m->out.n_row ? &m->out : &m->embd;
}

/* Architectures served, comma-separated, for errors and help. */
const char *pd_arch_names(void);

#endif
