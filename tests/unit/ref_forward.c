/* SPDX-License-Identifier: Apache-2.0 */
/* See ref_forward.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/ref_forward.h"

#include "engine/gguf/gguf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ref_model {
    pd_gguf *g;
    bool gemma;
    size_t n_layer, n_embd, n_head, n_head_kv, d, n_ff, n_vocab;
    double eps;
    ref_looks looks;
    void *looks_arg;
};

static size_t u32(const ref_model *m, const char *key) {
    char name[96];
    uint32_t v = 0;
    snprintf(name, sizeof name, "%s.%s", m->gemma ? "gemma3" : "llama", key);
    assert_int_equal(pd_gguf_u32(m->g, name, 0, UINT32_MAX, &v, NULL), PD_OK);
    return v;
}

ref_model *ref_open(const char *path) {
    ref_model *m = calloc(1, sizeof *m);
    assert_int_equal(pd_gguf_open(&m->g, path, NULL), PD_OK);
    pd_str arch;
    assert_int_equal(pd_gguf_str(m->g, "general.architecture", &arch, NULL), PD_OK);
    m->gemma = pd_str_eq(arch, "gemma3");
    m->n_layer = u32(m, "block_count");
    m->n_embd = u32(m, "embedding_length");
    m->n_head = u32(m, "attention.head_count");
    m->n_head_kv = u32(m, "attention.head_count_kv");
    m->d = u32(m, "attention.key_length");
    m->n_ff = u32(m, "feed_forward_length");
    m->n_vocab = (size_t)pd_gguf_tensor_find(m->g, "token_embd.weight")->ne[1];
    m->eps = (double)(m->gemma ? 1e-6f : 1e-5f);
    return m;
}

void ref_close(ref_model *m) {
    pd_gguf_close(m->g);
    free(m);
}

void ref_watch(ref_model *m, ref_looks looks, void *arg) {
    m->looks = looks;
    m->looks_arg = arg;
}

size_t ref_n_vocab(const ref_model *m) {
    return m->n_vocab;
}

/* A tensor as doubles. */
static double *tensor(const ref_model *m, const char *fmt, size_t layer) {
    char name[96];
    snprintf(name, sizeof name, fmt, layer);
    const pd_gguf_tensor *t = pd_gguf_tensor_find(m->g, name);
    if (!t) fail_msg("no tensor %s", name);
    void *raw = malloc((size_t)t->n_bytes);
    float *f = malloc((size_t)t->n_elem * sizeof *f);
    double *x = malloc((size_t)t->n_elem * sizeof *x);
    assert_int_equal(pd_gguf_read_rows(m->g, t, 0, t->ne[1], raw, NULL), PD_OK);
    t->type->dequant(raw, f, (size_t)t->n_elem);
    for (size_t i = 0; i < t->n_elem; i++) x[i] = f[i];
    free(raw);
    free(f);
    return x;
}

static void norm(const ref_model *m, const double *x, const double *w, size_t n, double *y) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) sum += x[i] * x[i];
    const double s = 1.0 / sqrt(sum / (double)n + m->eps);
    for (size_t i = 0; i < n; i++) y[i] = x[i] * s * w[i];
}

static void mul(const double *w, const double *x, size_t n_col, size_t n_row, double *y) {
    for (size_t r = 0; r < n_row; r++) {
        y[r] = 0.0;
        for (size_t c = 0; c < n_col; c++) y[r] += w[r * n_col + c] * x[c];
    }
}

/* q.k with q turned `distance` positions further than k. */
static double turned_dot(const ref_model *m, const double *q, const double *k, const double *cs, long distance) {
    const size_t half = m->d / 2;
    const double *c = cs + (size_t)distance * m->d, *s = c + half;
    double sum = 0.0;
    for (size_t i = 0; i < half; i++) {
        const size_t a = m->gemma ? i : 2 * i, b = m->gemma ? i + half : 2 * i + 1;
        sum += (q[a] * c[i] - q[b] * s[i]) * k[a] + (q[a] * s[i] + q[b] * c[i]) * k[b];
    }
    return sum;
}

typedef struct {
    double *attn_norm, *ffn_norm, *q, *k, *v, *o, *gate, *up, *down, *q_norm, *k_norm, *post_attn, *post_ffn;
} weights;

static weights load(const ref_model *m, size_t l) {
#define T(part) tensor(m, "blk.%zu." part ".weight", l)
    weights w = {T("attn_norm"), T("ffn_norm"), T("attn_q"), T("attn_k"), T("attn_v"), T("attn_output"),
                 T("ffn_gate"), T("ffn_up"), T("ffn_down"), NULL, NULL, NULL, NULL};
    if (m->gemma) {
        w.q_norm = T("attn_q_norm");
        w.k_norm = T("attn_k_norm");
        w.post_attn = T("post_attention_norm");
        w.post_ffn = T("post_ffw_norm");
    }
#undef T
    return w;
}

static void unload(weights *w) {
    double *all[] = {w->attn_norm, w->ffn_norm, w->q, w->k, w->v, w->o, w->gate, w->up, w->down,
                     w->q_norm, w->k_norm, w->post_attn, w->post_ffn};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static void attend(const ref_model *m, size_t l, size_t n, const double *q, const double *k, const double *v,
                   ref_sees sees, const void *arg, double *out) {
    const bool local = m->gemma && (l + 1) % 6 != 0;
    const size_t window = local ? u32(m, "attention.sliding_window") : n, d = m->d, group = m->n_head / m->n_head_kv;
    const double base = !m->gemma || local ? 10000.0 : 1e6;
    double *cs = malloc(n * d * sizeof *cs), *p = malloc(n * sizeof *p);
    for (size_t t = 0; t < n; t++) {
        for (size_t i = 0; i < d / 2; i++) {
            const double angle = (double)t * pow(base, -2.0 * (double)i / (double)d);
            cs[t * d + i] = cos(angle);
            cs[t * d + d / 2 + i] = sin(angle);
        }
    }
    memset(out, 0, n * m->n_head * d * sizeof *out);
    for (size_t t = 0; t < n; t++) {
        for (size_t h = 0; h < m->n_head; h++) {
            double sum = 0.0;
            memset(p, 0, (t + 1) * sizeof *p);
            for (size_t u = t + 1 > window ? t + 1 - window : 0; u <= t; u++) {
                long distance = (long)(t - u);
                if (sees && !sees(arg, l, h / group, t, u, &distance)) continue;
                p[u] = exp(turned_dot(m, q + (t * m->n_head + h) * d, k + (u * m->n_head_kv + h / group) * d, cs, distance) /
                           sqrt((double)d));
                sum += p[u];
            }
            for (size_t u = 0; u <= t; u++) p[u] /= sum;
            if (m->looks) m->looks(m->looks_arg, l, h, t, p);
            for (size_t u = t + 1 > window ? t + 1 - window : 0; u <= t; u++)
                for (size_t i = 0; i < d; i++)
                    out[(t * m->n_head + h) * d + i] += p[u] * v[(u * m->n_head_kv + h / group) * d + i];
        }
    }
    free(cs);
    free(p);
}

static double act(const ref_model *m, double x) {
    if (!m->gemma) return x / (1.0 + exp(-x));
    return 0.5 * x * (1.0 + tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)));
}

static void layer(const ref_model *m, size_t l, size_t n, double *x, ref_sees sees, const void *arg) {
    weights w = load(m, l);
    const size_t e = m->n_embd, nq = m->n_head * m->d, nkv = m->n_head_kv * m->d;
    double *h = malloc(e * sizeof *h), *y = malloc(e * sizeof *y), *ff = malloc(2 * m->n_ff * sizeof *ff);
    double *q = malloc(n * nq * sizeof *q), *k = malloc(n * nkv * sizeof *k), *v = malloc(n * nkv * sizeof *v);
    double *a = malloc(n * nq * sizeof *a);
    for (size_t t = 0; t < n; t++) {
        norm(m, x + t * e, w.attn_norm, e, h);
        mul(w.q, h, e, nq, q + t * nq);
        mul(w.k, h, e, nkv, k + t * nkv);
        mul(w.v, h, e, nkv, v + t * nkv);
        for (size_t i = 0; w.q_norm && i < nq; i += m->d) norm(m, q + t * nq + i, w.q_norm, m->d, q + t * nq + i);
        for (size_t i = 0; w.k_norm && i < nkv; i += m->d) norm(m, k + t * nkv + i, w.k_norm, m->d, k + t * nkv + i);
    }
    attend(m, l, n, q, k, v, sees, arg, a);
    for (size_t t = 0; t < n; t++) {
        mul(w.o, a + t * nq, nq, e, y);
        if (w.post_attn) norm(m, y, w.post_attn, e, y);
        for (size_t i = 0; i < e; i++) x[t * e + i] += y[i];
        norm(m, x + t * e, w.ffn_norm, e, h);
        mul(w.gate, h, e, m->n_ff, ff);
        mul(w.up, h, e, m->n_ff, ff + m->n_ff);
        for (size_t i = 0; i < m->n_ff; i++) ff[i] = act(m, ff[i]) * ff[m->n_ff + i];
        mul(w.down, ff, m->n_ff, e, y);
        if (w.post_ffn) norm(m, y, w.post_ffn, e, y);
        for (size_t i = 0; i < e; i++) x[t * e + i] += y[i];
    }
    double *all[] = {h, y, ff, q, k, v, a};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    unload(&w);
}

/* Behind the last layer, before the output norm. */
static double *run_layers(const ref_model *m, const double *embd, const int32_t *tokens, size_t n, ref_sees sees, const void *arg) {
    const size_t e = m->n_embd;
    double *x = malloc(n * e * sizeof *x);
    for (size_t t = 0; t < n; t++)
        for (size_t i = 0; i < e; i++) x[t * e + i] = embd[(size_t)tokens[t] * e + i] * (m->gemma ? sqrt((double)e) : 1.0);
    for (size_t l = 0; l < m->n_layer; l++) layer(m, l, n, x, sees, arg);
    return x;
}

size_t ref_n_embd(const ref_model *m) {
    return m->n_embd;
}

double *ref_states(const ref_model *m, const int32_t *tokens, size_t n) {
    const size_t e = m->n_embd;
    double *embd = tensor(m, "token_embd.weight", 0), *w = tensor(m, "output_norm.weight", 0);
    double *x = run_layers(m, embd, tokens, n, NULL, NULL), *h = malloc(n * e * sizeof *h);
    for (size_t t = 0; t < n; t++) norm(m, x + t * e, w, e, h + t * e);
    free(embd);
    free(w);
    free(x);
    return h;
}

double *ref_logprobs(const ref_model *m, const int32_t *tokens, size_t n, size_t from, ref_sees sees, const void *arg) {
    const size_t e = m->n_embd;
    double *embd = tensor(m, "token_embd.weight", 0), *h = malloc(e * sizeof *h);
    double *x = run_layers(m, embd, tokens, n, sees, arg);
    double *w = tensor(m, "output_norm.weight", 0);
    double *out = m->gemma ? embd : tensor(m, "output.weight", 0);
    double *lp = malloc((n - from) * m->n_vocab * sizeof *lp);
    for (size_t t = from; t < n; t++) {
        double *row = lp + (t - from) * m->n_vocab, sum = 0.0, most = -INFINITY;
        norm(m, x + t * e, w, e, h);
        mul(out, h, e, m->n_vocab, row);
        for (size_t i = 0; i < m->n_vocab; i++) most = fmax(most, row[i]);
        for (size_t i = 0; i < m->n_vocab; i++) sum += exp(row[i] - most);
        for (size_t i = 0; i < m->n_vocab; i++) row[i] -= most + log(sum);
    }
    if (out != embd) free(out);
    free(embd);
    free(x);
    free(h);
    free(w);
    return lp;
}
