/* SPDX-License-Identifier: Apache-2.0 */
/* Reading a model (see model.h): metadata first, every shape checked against
 * it, then the weights, a layer at a time with progress. */
#include "engine/model/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
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

/* Only "none" and "linear" change nothing that pressd does not do. */
static pd_status read_rope_scaling(const pd_gguf *g, const char *prefix, pd_hparams *hp, pd_err *err) {
    char key[96];
    snprintf(key, sizeof key, "%s.rope.scaling.type", prefix);
    if (!pd_gguf_find(g, key)) return PD_OK;
    pd_str type;
    PD_TRY(pd_gguf_str(g, key, &type, err));
    if (pd_str_eq(type, "none")) return PD_OK;
    if (!pd_str_eq(type, "linear"))
        return pd_fail(err, PD_EFILE, NULL, "%s is '%.*s'; only none and linear are served", key,
                       (int)(type.len < 40 ? type.len : 40), type.data);
    float factor;
    snprintf(key, sizeof key, "%s.rope.scaling.factor", prefix);
    PD_TRY(pd_gguf_f32_or(g, key, 1e-3f, 1e3f, 1.0f, &factor, err));
    hp->rope_div[0] = factor;
    return PD_OK;
}

pd_status pd__hparams_common(const pd_gguf *g, const char *p, pd_hparams *hp, pd_err *err) {
    char key[96];
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
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", p);
    PD_TRY(pd_gguf_f32_or(g, key, 0.0f, 1.0f, 1e-5f, &hp->norm_eps, err));
    float base;
    snprintf(key, sizeof key, "%s.rope.freq_base", p);
    PD_TRY(pd_gguf_f32_or(g, key, 1.0f, 1e12f, 10000.0f, &base, err));
    hp->rope_base[0] = base;
    hp->rope_div[0] = hp->rope_div[1] = 1.0;
    PD_TRY(read_rope_scaling(g, p, hp, err));
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
    hp->attn_scale = 1.0f / sqrtf((float)hp->head_dim);
    return PD_OK;
}

typedef struct {
    const pd_gguf *g;
    pd_model *m;
    pd_mat_form form;
    pd_workers *workers;
    pd_err *err;
} loader;

static pd_status find(const loader *ld, const char *name, size_t n_col, size_t n_row,
                      const pd_gguf_tensor **ret) {
    const pd_gguf_tensor *t = pd_gguf_tensor_find(ld->g, name);
    if (!t) return pd_fail(ld->err, PD_EFILE, NULL, "tensor %s is missing", name);
    const size_t dims = n_row == 1 ? 1 : 2;
    if (t->n_dims != dims || t->ne[0] != n_col || t->ne[1] != n_row)
        return pd_fail(ld->err, PD_EFILE, NULL, "tensor %s has shape [%llu, %llu], not [%zu, %zu]", name,
                       (unsigned long long)t->ne[0], (unsigned long long)t->ne[1], n_col, n_row);
    *ret = t;
    return PD_OK;
}

static pd_status load_vec(const loader *ld, const char *name, size_t n, float **ret) {
    const pd_gguf_tensor *t = NULL;
    PD_TRY(find(ld, name, n, 1, &t));
    void *raw = malloc((size_t)t->n_bytes);
    float *v = malloc(n * sizeof *v);
    pd_status rc = PD_ENOMEM;
    if (raw && v)
        rc = pd_gguf_read_rows(ld->g, t, 0, 1, raw, ld->err);
    else
        pd_fail(ld->err, PD_ENOMEM, NULL, "no memory for tensor %s", name);
    if (rc == PD_OK) {
        t->type->dequant(raw, v, n);
        *ret = v;
        ld->m->n_params += n;
        ld->m->weight_bytes += n * sizeof *v;
    } else {
        free(v);
    }
    free(raw);
    return rc;
}

static pd_status load_mat(const loader *ld, const char *name, size_t n_col, size_t n_row,
                          pd_row_map map, pd_mat *ret) {
    const pd_gguf_tensor *t = NULL;
    PD_TRY(find(ld, name, n_col, n_row, &t));
    PD_TRY(pd_mat_load(ret, ld->g, t, ld->form, map, &ld->m->hp, ld->workers, ld->err));
    ld->m->n_params += n_col * n_row;
    ld->m->weight_bytes += ret->bytes;
    return PD_OK;
}

/* Half-split row (head, j * D/2 + i) is the file's row (head, 2i + j). */
static uint64_t deinterleave(size_t r, const void *arg) {
    const pd_hparams *hp = arg;
    const size_t d = hp->head_dim, c = r % d;
    return r - c + 2 * (c % (d / 2)) + c / (d / 2);
}

static pd_status load_layer(const loader *ld, size_t l, pd_layer *ly) {
    const pd_hparams *hp = &ld->m->hp;
    const size_t d = hp->n_embd, nq = hp->n_head * hp->head_dim, nkv = hp->n_head_kv * hp->head_dim;
    const pd_row_map map = hp->rope_interleaved ? deinterleave : NULL;
    char name[64];
#define NAME(part) (snprintf(name, sizeof name, "blk.%zu.%s.weight", l, part), name)
    PD_TRY(load_vec(ld, NAME("attn_norm"), d, &ly->attn_norm));
    PD_TRY(load_vec(ld, NAME("ffn_norm"), d, &ly->ffn_norm));
    if (hp->qk_norm) {
        PD_TRY(load_vec(ld, NAME("attn_q_norm"), hp->head_dim, &ly->q_norm));
        PD_TRY(load_vec(ld, NAME("attn_k_norm"), hp->head_dim, &ly->k_norm));
    }
    if (hp->post_norm) {
        PD_TRY(load_vec(ld, NAME("post_attention_norm"), d, &ly->attn_post_norm));
        PD_TRY(load_vec(ld, NAME("post_ffw_norm"), d, &ly->ffn_post_norm));
    }
    PD_TRY(load_mat(ld, NAME("attn_q"), d, nq, map, &ly->q));
    PD_TRY(load_mat(ld, NAME("attn_k"), d, nkv, map, &ly->k));
    PD_TRY(load_mat(ld, NAME("attn_v"), d, nkv, NULL, &ly->v));
    PD_TRY(load_mat(ld, NAME("attn_output"), nq, d, NULL, &ly->o));
    PD_TRY(load_mat(ld, NAME("ffn_gate"), d, hp->n_ff, NULL, &ly->gate));
    PD_TRY(load_mat(ld, NAME("ffn_up"), d, hp->n_ff, NULL, &ly->up));
    PD_TRY(load_mat(ld, NAME("ffn_down"), hp->n_ff, d, NULL, &ly->down));
#undef NAME
    ly->window = hp->window[l];
    ly->rope = hp->rope[l];
    return PD_OK;
}

/* inv_freq[i] = base^(-2i/D) in f32, divided by the file's per-frequency factors
 * (Llama 3.1's rope_freqs) and the linear factor. */
static pd_status make_ropes(const loader *ld) {
    pd_model *m = ld->m;
    const size_t half = m->hp.head_dim / 2;
    float *factor = NULL;
    if (pd_gguf_tensor_find(ld->g, "rope_freqs.weight"))
        PD_TRY(load_vec(ld, "rope_freqs.weight", half, &factor));
    pd_status rc = PD_OK;
    for (size_t r = 0; r < m->hp.n_rope && rc == PD_OK; r++) {
        float *f = malloc(half * sizeof *f);
        if (!f) {
            rc = pd_fail(ld->err, PD_ENOMEM, NULL, "no memory for RoPE frequencies");
            break;
        }
        for (size_t i = 0; i < half; i++) {
            f[i] = 1.0f / (float)pow(m->hp.rope_base[r], (double)(2 * i) / (double)m->hp.head_dim);
            f[i] /= (float)m->hp.rope_div[r];
            if (factor && r == 0) {
                if (!(factor[i] > 0.0f)) rc = pd_fail(ld->err, PD_EFILE, NULL, "rope_freqs.weight[%zu] is %g, not positive", i, (double)factor[i]);
                f[i] /= factor[i];
            }
        }
        m->rope[r].inv_freq = f;
    }
    free(factor);
    return rc;
}

/* The type that holds most of the matrices' bytes, for people. */
static void name_file_type(const pd_gguf *g, pd_model *m) {
    const pd_qtype *best = NULL;
    uint64_t most = 0;
    for (size_t i = 0; pd_qtype_at(i); i++) {
        uint64_t bytes = 0;
        for (size_t t = 0; t < pd_gguf_n_tensors(g); t++) {
            const pd_gguf_tensor *x = pd_gguf_tensor_at(g, t);
            /* embeddings are often kept wider than the layers: not what the file is called after */
            if (x->type == pd_qtype_at(i) && !pd_str_eq(x->name, "token_embd.weight")) bytes += x->n_bytes;
        }
        if (bytes > most) {
            most = bytes;
            best = pd_qtype_at(i);
        }
    }
    snprintf(m->file_type, sizeof m->file_type, "%s", best ? best->name : "?");
}

pd_status pd_model_hparams(const pd_gguf *g, const pd_arch **arch, pd_hparams *hp, pd_err *err) {
    pd_str name;
    PD_TRY(pd_gguf_str(g, "general.architecture", &name, err));
    for (size_t i = 0; i < N_ARCH; i++) {
        if (!pd_str_eq(name, archs[i]->name)) continue;
        if (arch) *arch = archs[i];
        return archs[i]->read(g, hp, err);
    }
    return pd_fail(err, PD_EFILE, NULL, "architecture '%.*s' is not served; served are: %s",
                   (int)(name.len < 40 ? name.len : 40), name.data, pd_arch_names());
}

static pd_status load(const loader *ld, void (*progress)(void *, double), void *arg) {
    pd_model *m = ld->m;
    PD_TRY(pd_model_hparams(ld->g, &m->arch, &m->hp, ld->err));
    pd_hparams *hp = &m->hp;
    const pd_gguf_tensor *embd = pd_gguf_tensor_find(ld->g, "token_embd.weight");
    if (!embd || embd->n_dims != 2 || embd->ne[1] == 0 || embd->ne[1] > 1u << 22)
        return pd_fail(ld->err, PD_EFILE, NULL, "tensor token_embd.weight is missing or no matrix of at most 2^22 rows");
    hp->n_vocab = (size_t)embd->ne[1];
    PD_TRY(load_mat(ld, "token_embd.weight", hp->n_embd, hp->n_vocab, NULL, &m->embd));
    if (pd_gguf_tensor_find(ld->g, "output.weight"))
        PD_TRY(load_mat(ld, "output.weight", hp->n_embd, hp->n_vocab, NULL, &m->out));
    PD_TRY(load_vec(ld, "output_norm.weight", hp->n_embd, &m->out_norm));
    PD_TRY(make_ropes(ld));
    m->layer = calloc(hp->n_layer, sizeof *m->layer);
    if (!m->layer) return pd_fail(ld->err, PD_ENOMEM, NULL, "no memory for %zu layers", hp->n_layer);
    for (size_t l = 0; l < hp->n_layer; l++) {
        if (progress) progress(arg, (double)(l + 1) / (double)(hp->n_layer + 1));
        PD_TRY(load_layer(ld, l, &m->layer[l]));
    }
    if (progress) progress(arg, 1.0);
    return PD_OK;
}

pd_status pd_model_open(pd_model **ret, const pd_gguf *g, pd_mat_form form, pd_workers *workers,
                        void (*progress)(void *arg, double done), void *arg, pd_err *err) {
    pd_str title = {"", 0};
    if (pd_gguf_find(g, "general.name")) PD_TRY(pd_gguf_str(g, "general.name", &title, err));
    pd_model *m = calloc(1, sizeof *m);
    if (!m) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the model");
    const loader ld = {.g = g, .m = m, .form = form, .workers = workers, .err = err};
    const pd_status rc = load(&ld, progress, arg);
    if (rc != PD_OK) {
        pd_model_close(m);
        return rc;
    }
    snprintf(m->name, sizeof m->name, "%.*s", (int)(title.len < 120 ? title.len : 120), title.data);
    name_file_type(g, m);
    *ret = m;
    return PD_OK;
}

void pd_model_close(pd_model *m) {
    if (!m) return;
    for (size_t l = 0; m->layer && l < m->hp.n_layer; l++) {
        pd_layer *ly = &m->layer[l];
        float *const vec[] = {ly->attn_norm, ly->q_norm, ly->k_norm, ly->attn_post_norm, ly->ffn_norm, ly->ffn_post_norm};
        for (size_t i = 0; i < sizeof vec / sizeof *vec; i++) free(vec[i]);
        pd_mat *const mat[] = {&ly->q, &ly->k, &ly->v, &ly->o, &ly->gate, &ly->up, &ly->down};
        for (size_t i = 0; i < sizeof mat / sizeof *mat; i++) pd_mat_done(mat[i]);
    }
    free(m->layer);
    pd_mat_done(&m->embd);
    pd_mat_done(&m->out);
    free(m->out_norm);
    for (size_t r = 0; r < PD_ROPE_MAX; r++) free(m->rope[r].inv_freq);
    free(m);
}
