/* SPDX-License-Identifier: Apache-2.0 */
/* Reading a model (see model.h): metadata first (hparams.c), every shape checked
 * against it, then the weights, a layer at a time with progress. */
#include "engine/model/read.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const pd_gguf *g;
    pd_model *m;
    pd_mat_form form;
    pd_workers *workers;
    bool *used; /* [tensors of the file] */
    size_t ctx;
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
    ld->used[t - pd_gguf_tensor_at(ld->g, 0)] = true;
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

/* Half-split row (head, j * D/2 + i) is the file's row (head, 2i + j). */
static uint64_t deinterleave(size_t r, const void *arg) {
    const pd_hparams *hp = arg;
    const size_t d = hp->head_dim, c = r % d;
    return r - c + 2 * (c % (d / 2)) + c / (d / 2);
}

/* Rows [first, first + n_row) of a tensor of `total`; `turned`: they are q's or k's. */
static pd_status load_rows(const loader *ld, const char *name, size_t n_col, size_t total, size_t first,
                           size_t n_row, bool turned, pd_mat *ret) {
    const pd_gguf_tensor *t = NULL;
    PD_TRY(find(ld, name, n_col, total, &t));
    const pd_hparams *hp = &ld->m->hp;
    const pd_rows rows = {first, n_row, turned && hp->rope_interleaved ? deinterleave : NULL, hp};
    PD_TRY(pd_mat_load(ret, ld->g, t, ld->form, &rows, &ld->m->slab, ld->workers, ld->err));
    ld->m->n_params += n_col * n_row;
    ld->m->weight_bytes += ret->bytes;
    return PD_OK;
}

static pd_status load_mat(const loader *ld, const char *name, size_t n_col, size_t n_row, pd_mat *ret) {
    return load_rows(ld, name, n_col, n_row, 0, n_row, false, ret);
}

typedef char tensor_name[64];

static const char *name_of(tensor_name buf, size_t layer, const char *part, const char *kind) {
    snprintf(buf, sizeof(tensor_name), "blk.%zu.%s.%s", layer, part, kind);
    return buf;
}

static pd_status load_norms(const loader *ld, size_t l, pd_layer *ly) {
    const pd_hparams *hp = &ld->m->hp;
    tensor_name s;
    PD_TRY(load_vec(ld, name_of(s, l, "attn_norm", "weight"), hp->n_embd, &ly->attn_norm));
    PD_TRY(load_vec(ld, name_of(s, l, "ffn_norm", "weight"), hp->n_embd, &ly->ffn_norm));
    if (hp->qk_norm) {
        PD_TRY(load_vec(ld, name_of(s, l, "attn_q_norm", "weight"), hp->head_dim, &ly->q_norm));
        PD_TRY(load_vec(ld, name_of(s, l, "attn_k_norm", "weight"), hp->head_dim, &ly->k_norm));
    }
    if (hp->post_norm) {
        PD_TRY(load_vec(ld, name_of(s, l, "post_attention_norm", "weight"), hp->n_embd, &ly->attn_post_norm));
        PD_TRY(load_vec(ld, name_of(s, l, "post_ffw_norm", "weight"), hp->n_embd, &ly->ffn_post_norm));
    }
    return PD_OK;
}

static pd_status load_attention(const loader *ld, size_t l, pd_layer *ly) {
    const pd_hparams *hp = &ld->m->hp;
    const size_t d = hp->n_embd, nq = hp->n_head * hp->head_dim, nkv = hp->n_head_kv * hp->head_dim;
    tensor_name s;
    if (hp->fused) {
        name_of(s, l, "attn_qkv", "weight");
        PD_TRY(load_rows(ld, s, d, nq + 2 * nkv, 0, nq, true, &ly->q));
        PD_TRY(load_rows(ld, s, d, nq + 2 * nkv, nq, nkv, true, &ly->k));
        PD_TRY(load_rows(ld, s, d, nq + 2 * nkv, nq + nkv, nkv, false, &ly->v));
    } else {
        PD_TRY(load_rows(ld, name_of(s, l, "attn_q", "weight"), d, nq, 0, nq, true, &ly->q));
        PD_TRY(load_rows(ld, name_of(s, l, "attn_k", "weight"), d, nkv, 0, nkv, true, &ly->k));
        PD_TRY(load_mat(ld, name_of(s, l, "attn_v", "weight"), d, nkv, &ly->v));
    }
    if (hp->qkv_bias) {
        PD_TRY(load_vec(ld, name_of(s, l, "attn_q", "bias"), nq, &ly->q_bias));
        PD_TRY(load_vec(ld, name_of(s, l, "attn_k", "bias"), nkv, &ly->k_bias));
        PD_TRY(load_vec(ld, name_of(s, l, "attn_v", "bias"), nkv, &ly->v_bias));
    }
    return load_mat(ld, name_of(s, l, "attn_output", "weight"), nq, d, &ly->o);
}

static pd_status load_layer(const loader *ld, size_t l, pd_layer *ly) {
    const pd_hparams *hp = &ld->m->hp;
    const size_t d = hp->n_embd, n_ff = hp->n_ff;
    tensor_name s;
    PD_TRY(load_norms(ld, l, ly));
    PD_TRY(load_attention(ld, l, ly));
    if (hp->fused) {
        PD_TRY(load_rows(ld, name_of(s, l, "ffn_up", "weight"), d, 2 * n_ff, 0, n_ff, false, &ly->gate));
        PD_TRY(load_rows(ld, s, d, 2 * n_ff, n_ff, n_ff, false, &ly->up));
    } else {
        PD_TRY(load_mat(ld, name_of(s, l, "ffn_gate", "weight"), d, n_ff, &ly->gate));
        PD_TRY(load_mat(ld, name_of(s, l, "ffn_up", "weight"), d, n_ff, &ly->up));
    }
    PD_TRY(load_mat(ld, name_of(s, l, "ffn_down", "weight"), n_ff, d, &ly->down));
    ly->window = hp->window[l];
    ly->rope = hp->rope[l];
    return PD_OK;
}

static pd_status factors_of(const loader *ld, const char *name, float **ret) {
    if (!pd_gguf_tensor_find(ld->g, name)) return PD_OK;
    return load_vec(ld, name, ld->m->hp.head_dim / 2, ret);
}

static pd_status make_ropes(const loader *ld) {
    pd_model *m = ld->m;
    float *v[3] = {NULL, NULL, NULL};
    pd_status rc = factors_of(ld, "rope_freqs.weight", &v[0]);
    if (rc == PD_OK) rc = factors_of(ld, "rope_factors_short.weight", &v[1]);
    if (rc == PD_OK) rc = factors_of(ld, "rope_factors_long.weight", &v[2]);
    if (rc == PD_OK && (!v[1] || !v[2]) && (v[1] || v[2] || m->hp.rope_spec[0].longrope))
        rc = pd_fail(ld->err, PD_EFILE, NULL, "tensor rope_factors_%s.weight is missing", v[1] ? "long" : "short");
    const pd__rope_factors f = {v[0], v[1], v[2]};
    for (size_t r = 0; r < m->hp.n_rope && rc == PD_OK; r++)
        rc = pd__rope_make(&m->hp, r, &f, ld->ctx, &m->rope[r], ld->err);
    for (size_t i = 0; i < 3; i++) free(v[i]);
    return rc;
}

/* A tensor left over means something that pressd does not compute. */
static pd_status check_used(const loader *ld) {
    for (size_t i = 0; i < pd_gguf_n_tensors(ld->g); i++) {
        const pd_str name = pd_gguf_tensor_at(ld->g, i)->name;
        if (!ld->used[i])
            return pd_fail(ld->err, PD_EFILE, NULL, "tensor %.*s has no place in architecture %s",
                           (int)(name.len < 80 ? name.len : 80), name.data, ld->m->arch->name);
    }
    return PD_OK;
}

/* A window no sequence can outgrow hides nothing; where all layers have it, they
 * may then be pressed like any others. */
static void drop_wide_windows(pd_hparams *hp, size_t ctx) {
    for (size_t l = 0; l < hp->n_layer; l++)
        if (hp->window[l] < ctx) return;
    for (size_t l = 0; l < hp->n_layer; l++) hp->window[l] = 0;
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

static pd_status load(const loader *ld, void (*progress)(void *, double), void *arg) {
    pd_model *m = ld->m;
    pd_hparams *hp = &m->hp;
    const pd_gguf_tensor *embd = pd_gguf_tensor_find(ld->g, "token_embd.weight");
    if (!embd || embd->n_dims != 2 || embd->ne[1] == 0 || embd->ne[1] > 1u << 22)
        return pd_fail(ld->err, PD_EFILE, NULL, "tensor token_embd.weight is missing or no matrix of at most 2^22 rows");
    hp->n_vocab = (size_t)embd->ne[1];
    PD_TRY(load_mat(ld, "token_embd.weight", hp->n_embd, hp->n_vocab, &m->embd));
    if (pd_gguf_tensor_find(ld->g, "output.weight"))
        PD_TRY(load_mat(ld, "output.weight", hp->n_embd, hp->n_vocab, &m->out));
    PD_TRY(load_vec(ld, "output_norm.weight", hp->n_embd, &m->out_norm));
    PD_TRY(make_ropes(ld));
    m->layer = calloc(hp->n_layer, sizeof *m->layer);
    if (!m->layer) return pd_fail(ld->err, PD_ENOMEM, NULL, "no memory for %zu layers", hp->n_layer);
    for (size_t l = 0; l < hp->n_layer; l++) {
        if (progress) progress(arg, (double)(l + 1) / (double)(hp->n_layer + 1));
        PD_TRY(load_layer(ld, l, &m->layer[l]));
    }
    PD_TRY(check_used(ld));
    if (progress) progress(arg, 1.0);
    return PD_OK;
}

static pd_status load_all(pd_model *m, const pd_gguf *g, pd_mat_form form, size_t ctx, pd_workers *workers,
                          void (*progress)(void *, double), void *arg, pd_err *err) {
    bool *used = calloc(pd_gguf_n_tensors(g) + 1, sizeof *used);
    if (!used) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the model");
    const loader ld = {.g = g, .m = m, .form = form, .workers = workers, .used = used, .ctx = ctx, .err = err};
    const pd_status rc = load(&ld, progress, arg);
    free(used);
    return rc;
}

pd_status pd_model_open(pd_model **ret, const pd_gguf *g, pd_mat_form form, size_t ctx, pd_workers *workers,
                        void (*progress)(void *arg, double done), void *arg, pd_err *err) {
    pd_str title = {"", 0};
    if (pd_gguf_find(g, "general.name")) PD_TRY(pd_gguf_str(g, "general.name", &title, err));
    pd_model *m = calloc(1, sizeof *m);
    if (!m) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the model");
    pd_status rc = pd_model_hparams(g, &m->arch, &m->hp, err);
    if (rc == PD_OK) {
        if (ctx == 0) ctx = m->hp.ctx_train;
        drop_wide_windows(&m->hp, ctx);
        rc = load_all(m, g, form, ctx, workers, progress, arg, err);
    }
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
        float *const vec[] = {ly->attn_norm, ly->q_norm, ly->k_norm, ly->attn_post_norm, ly->ffn_norm,
                              ly->ffn_post_norm, ly->q_bias, ly->k_bias, ly->v_bias};
        for (size_t i = 0; i < sizeof vec / sizeof *vec; i++) free(vec[i]);
        pd_mat *const mat[] = {&ly->q, &ly->k, &ly->v, &ly->o, &ly->gate, &ly->up, &ly->down};
        for (size_t i = 0; i < sizeof mat / sizeof *mat; i++) pd_mat_done(mat[i]);
    }
    free(m->layer);
    pd_mat_done(&m->embd);
    pd_mat_done(&m->out);
    pd_slab_done(&m->slab);
    free(m->out_norm);
    for (size_t r = 0; r < PD_ROPE_MAX; r++) free(m->rope[r].inv_freq);
    free(m);
}
