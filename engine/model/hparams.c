/* SPDX-License-Identifier: Apache-2.0 */
/* A file's metadata to hyper-parameters (see read.h).  Keys have llama.cpp's
 * names; one that would change an answer and is not acted on is refused. */
#include "engine/model/read.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define PD_ARCH(name) extern const pd_arch pd_arch_##name;
#include "engine/model/archs.def"
#undef PD_ARCH

static const pd_arch *const archs[] = {
#define PD_ARCH(name) &pd_arch_##name,
#include "engine/model/archs.def"
#undef PD_ARCH
};

enum { N_ARCH = sizeof archs / sizeof *archs };

const char *pd_arch_names(void) {
    return PD_ARCH_NAMES;
}

static pd_status key_u32(const pd_gguf *g, const char *prefix, const char *key, uint32_t min,
                         uint32_t max, size_t *ret, pd_err *err) {
    char name[96];
    uint32_t v;
    snprintf(name, sizeof name, "%s.%s", prefix, key);
    PD_TRY(pd_gguf_u32(g, name, min, max, &v, err));
    *ret = v;
    return PD_OK;
}

static pd_status key_u32_or(const pd_gguf *g, const char *prefix, const char *key, uint32_t min,
                            uint32_t max, size_t fallback, size_t *ret, pd_err *err) {
    char name[96];
    uint32_t v;
    snprintf(name, sizeof name, "%s.%s", prefix, key);
    PD_TRY(pd_gguf_u32_or(g, name, min, max, (uint32_t)fallback, &v, err));
    *ret = v;
    return PD_OK;
}

static pd_status key_f32_or(const pd_gguf *g, const char *prefix, const char *key, float min,
                            float max, float fallback, float *ret, pd_err *err) {
    char name[96];
    snprintf(name, sizeof name, "%s.%s", prefix, key);
    return pd_gguf_f32_or(g, name, min, max, fallback, ret, err);
}

static pd_status check_sizes(const pd_hparams *hp, size_t v_dim, size_t rope_dim, pd_err *err) {
    if (hp->n_head % hp->n_head_kv || hp->n_head / hp->n_head_kv > 16)
        return pd_fail(err, PD_EFILE, NULL, "%zu query heads over %zu KV heads: a group of 1 to 16 each is served",
                       hp->n_head, hp->n_head_kv);
    if (hp->head_dim % 16 || hp->head_dim < 16 || hp->head_dim > 512 || v_dim != hp->head_dim || rope_dim != hp->head_dim)
        return pd_fail(err, PD_EFILE, NULL,
                       "head size %zu (values %zu, RoPE %zu): one size, a multiple of 16 up to 512, is served",
                       hp->head_dim, v_dim, rope_dim);
    if (hp->n_embd % 32 || hp->n_ff % 32 || hp->n_head * hp->head_dim % 32)
        return pd_fail(err, PD_EFILE, NULL, "widths %zu, %zu, %zu must be multiples of 32", hp->n_embd,
                       hp->n_ff, hp->n_head * hp->head_dim);
    return PD_OK;
}

pd_status pd__hparams_common(const pd_gguf *g, const char *p, pd_hparams *hp, pd_err *err) {
    *hp = (pd_hparams){.embd_scale = 1.0f, .n_rope = 1};
    PD_TRY(key_u32(g, p, "block_count", 1, PD_LAYERS_MAX, &hp->n_layer, err));
    PD_TRY(key_u32(g, p, "embedding_length", 32, 1u << 16, &hp->n_embd, err));
    PD_TRY(key_u32(g, p, "feed_forward_length", 32, 1u << 18, &hp->n_ff, err));
    PD_TRY(key_u32(g, p, "context_length", 1, 1u << 24, &hp->ctx_train, err));
    PD_TRY(key_u32(g, p, "attention.head_count", 1, 1024, &hp->n_head, err));
    PD_TRY(key_u32_or(g, p, "attention.head_count_kv", 1, 1024, hp->n_head, &hp->n_head_kv, err));
    PD_TRY(key_u32_or(g, p, "attention.key_length", 16, 512, hp->n_embd / hp->n_head, &hp->head_dim, err));
    size_t v_dim, rope_dim;
    PD_TRY(key_u32_or(g, p, "attention.value_length", 16, 512, hp->head_dim, &v_dim, err));
    PD_TRY(key_u32_or(g, p, "rope.dimension_count", 2, 512, hp->head_dim, &rope_dim, err));
    PD_TRY(key_f32_or(g, p, "attention.layer_norm_rms_epsilon", 0.0f, 1.0f, 1e-5f, &hp->norm_eps, err));
    PD_TRY(check_sizes(hp, v_dim, rope_dim, err));
    PD_TRY(pd__rope_read(g, p, hp, err));
    PD_TRY(key_f32_or(g, p, "attn_logit_softcapping", 0.0f, 1e6f, 0.0f, &hp->attn_softcap, err));
    PD_TRY(key_f32_or(g, p, "final_logit_softcapping", 0.0f, 1e6f, 0.0f, &hp->logit_softcap, err));
    PD_TRY(key_f32_or(g, p, "attention.scale", 0.0f, 1e3f, 0.0f, &hp->attn_scale, err));
    if (hp->attn_scale == 0.0f) hp->attn_scale = 1.0f / sqrtf((float)hp->head_dim);
    return PD_OK;
}

pd_status pd__hparams_windows(const pd_gguf *g, const char *p, uint32_t full_every, pd_hparams *hp, pd_err *err) {
    char key[96];
    uint32_t window;
    snprintf(key, sizeof key, "%s.attention.sliding_window", p);
    PD_TRY(pd_gguf_u32_or(g, key, 0, 1u << 24, 0, &window, err));
    snprintf(key, sizeof key, "%s.attention.sliding_window_pattern", p);
    const pd_gguf_kv *pattern = pd_gguf_find(g, key);
    const uint8_t *flag = NULL;
    if (pattern && pattern->type == PD_GGUF_ARRAY) {
        if (pattern->elem != PD_GGUF_BOOL || pattern->n != hp->n_layer)
            return pd_fail(err, PD_EFILE, NULL, "%s has %llu elements; one bool for each of %zu layers is served", key,
                           (unsigned long long)pattern->n, hp->n_layer);
        flag = pattern->v.array;
    } else if (pattern) {
        PD_TRY(pd_gguf_u32(g, key, 0, PD_LAYERS_MAX, &full_every, err));
    }
    for (size_t l = 0; l < hp->n_layer; l++) {
        const bool full = flag ? !flag[l] : full_every && (l + 1) % full_every == 0;
        hp->window[l] = full ? 0 : window;
    }
    return PD_OK;
}

/* ---- keys nobody reads ---- */

typedef enum { READ, IDLE, NEUTRAL } key_use;

/* READ: acted on.  IDLE: for people, or for the converter.  NEUTRAL: would change
 * the answers unless it has the value given. */
static const struct {
    const char *name;
    key_use use;
    double neutral;
} keys[] = {
    {"block_count", READ, 0}, {"context_length", READ, 0}, {"embedding_length", READ, 0},
    {"feed_forward_length", READ, 0}, {"attention.head_count", READ, 0},
    {"attention.head_count_kv", READ, 0}, {"attention.key_length", READ, 0},
    {"attention.value_length", READ, 0}, {"attention.layer_norm_rms_epsilon", READ, 0},
    {"attention.scale", READ, 0}, {"attention.sliding_window", READ, 0},
    {"attention.sliding_window_pattern", READ, 0}, {"attn_logit_softcapping", READ, 0},
    {"final_logit_softcapping", READ, 0}, {"rope.dimension_count", READ, 0},
    {"rope.freq_base", READ, 0}, {"rope.scale_linear", READ, 0}, {"rope.scaling.type", READ, 0},
    {"rope.scaling.factor", READ, 0}, {"rope.scaling.attn_factor", READ, 0},
    {"rope.scaling.original_context_length", READ, 0}, {"rope.scaling.yarn_beta_fast", READ, 0},
    {"rope.scaling.yarn_beta_slow", READ, 0}, {"rope.scaling.yarn_ext_factor", READ, 0},
    {"rope.scaling.yarn_attn_factor", READ, 0}, {"rope.scaling.yarn_log_multiplier", READ, 0},
    {"vocab_size", IDLE, 0}, {"rope.scaling.finetuned", IDLE, 0}, {"tensor_data_layout", IDLE, 0},
    {"attention.layer_norm_epsilon", IDLE, 0}, /* of the other kind of norm */
    {"attention.causal", NEUTRAL, 1}, {"attention.clamp_kqv", NEUTRAL, 0},
    {"attention.max_alibi_bias", NEUTRAL, 0}, {"use_parallel_residual", NEUTRAL, 0},
    {"expert_count", NEUTRAL, 0}, {"expert_used_count", NEUTRAL, 0}, {"pooling_type", NEUTRAL, 0},
    {"logit_scale", NEUTRAL, 1}, {"residual_scale", NEUTRAL, 1}, {"embedding_scale", NEUTRAL, 1},
    {"nextn_predict_layers", NEUTRAL, 0}, {"attention.shared_kv_layers", NEUTRAL, 0},
};

/* A number's value; NAN for what is none. */
static double value_of(const pd_gguf_kv *kv) {
    switch (kv->type) {
    case PD_GGUF_F32:
    case PD_GGUF_F64: return kv->v.f;
    case PD_GGUF_STRING:
    case PD_GGUF_ARRAY: return NAN;
    case PD_GGUF_I8:
    case PD_GGUF_I16:
    case PD_GGUF_I32:
    case PD_GGUF_I64: return (double)kv->v.i;
    default: return (double)kv->v.u;
    }
}

static pd_status check_key(const pd_gguf_kv *kv, pd_str name, bool *known, pd_err *err) {
    *known = true;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        if (!pd_str_eq(name, keys[i].name)) continue;
        const double v = value_of(kv);
        if (keys[i].use != NEUTRAL || v == keys[i].neutral) return PD_OK;
        return pd_fail(err, PD_EFILE, NULL, "%.*s is %g; only %g is served", (int)kv->key.len, kv->key.data, v,
                       keys[i].neutral);
    }
    *known = false;
    return PD_OK;
}

/* Refuse a file with a key of the architecture's that pressd does not act on:
 * its answers would be wrong, and nothing would say so. */
static pd_status check_keys(const pd_gguf *g, const char *prefix, const char *const *more, pd_err *err) {
    const size_t len = strlen(prefix);
    for (size_t i = 0; i < pd_gguf_n_kv(g); i++) {
        const pd_gguf_kv *kv = pd_gguf_kv_at(g, i);
        if (kv->key.len <= len + 1 || memcmp(kv->key.data, prefix, len) != 0 || kv->key.data[len] != '.') continue;
        const pd_str name = {kv->key.data + len + 1, kv->key.len - len - 1};
        bool known;
        PD_TRY(check_key(kv, name, &known, err));
        for (size_t j = 0; !known && more && more[j]; j++) known = pd_str_eq(name, more[j]);
        if (!known)
            return pd_fail(err, PD_EFILE, NULL, "key %.*s is not known to architecture %s: what it asks for would be left out",
                           (int)(kv->key.len < 80 ? kv->key.len : 80), kv->key.data, prefix);
    }
    return PD_OK;
}

pd_status pd_model_hparams(const pd_gguf *g, const pd_arch **arch, pd_hparams *hp, pd_err *err) {
    pd_str name;
    PD_TRY(pd_gguf_str(g, "general.architecture", &name, err));
    for (size_t i = 0; i < N_ARCH; i++) {
        if (!pd_str_eq(name, archs[i]->name)) continue;
        if (arch) *arch = archs[i];
        PD_TRY(archs[i]->read(g, hp, err));
        return check_keys(g, archs[i]->name, archs[i]->keys, err);
    }
    return pd_fail(err, PD_EFILE, NULL, "architecture '%.*s' is not served; served are: %s",
                   (int)(name.len < 40 ? name.len : 40), name.data, pd_arch_names());
}
