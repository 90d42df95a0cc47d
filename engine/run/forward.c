/* SPDX-License-Identifier: Apache-2.0 */
/* Layer parts around attention (see forward.h). */
#include "engine/run/forward.h"

#include "engine/base/num.h"

#include <math.h>
#include <stdlib.h>

/* Floats, 64-byte aligned; NULL if there is no memory. */
static float *floats(pd_fwd *f, size_t n) {
    const size_t bytes = (n * sizeof(float) + 63) / 64 * 64;
    f->bytes += bytes;
    return aligned_alloc(64, bytes);
}

pd_status pd_fwd_init(pd_fwd *f, const pd_model *m, const pd_kernels *kern, pd_workers *workers, size_t rows, pd_err *err) {
    const pd_hparams *hp = &m->hp;
    const size_t nq = hp->n_head * hp->head_dim, nkv = hp->n_head_kv * hp->head_dim;
    const size_t widest = pd_max_size(hp->n_ff, pd_max_size(hp->n_embd, nq));
    *f = (pd_fwd){.model = m, .kern = kern, .workers = workers, .rows = rows};
    f->h = floats(f, rows * hp->n_embd);
    f->q = floats(f, rows * nq);
    f->k = floats(f, rows * nkv);
    f->v = floats(f, rows * nkv);
    f->attn = floats(f, rows * nq);
    f->gate = floats(f, rows * hp->n_ff);
    f->up = floats(f, rows * hp->n_ff);
    f->out = floats(f, rows * hp->n_embd);
    f->act.q = (int8_t *)floats(f, rows * widest / sizeof(float));
    f->act.d = floats(f, rows * widest / 32);
    f->act.s = floats(f, rows * widest / 16);
    f->cos = floats(f, rows * hp->head_dim / 2);
    f->sin = floats(f, rows * hp->head_dim / 2);
    if (f->h && f->q && f->k && f->v && f->attn && f->gate && f->up && f->out && f->act.q && f->act.d &&
        f->act.s && f->cos && f->sin)
        return PD_OK;
    pd_fwd_done(f);
    return pd_fail(err, PD_ENOMEM, NULL, "no memory for %zu rows of scratch", rows);
}

void pd_fwd_done(pd_fwd *f) {
    float *const all[] = {f->h, f->q, f->k, f->v, f->attn, f->gate, f->up, f->out, (float *)f->act.q, f->act.d, f->act.s, f->cos, f->sin};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    *f = (pd_fwd){0};
}

void pd_fwd_embed(const pd_fwd *f, int32_t id, float *x) {
    pd_mat_row(&f->model->embd, f->kern, (size_t)id, x);
    const float scale = f->model->hp.embd_scale;
    if (scale == 1.0f) return;
    for (size_t i = 0; i < f->model->hp.n_embd; i++) x[i] *= scale;
}

/* ---- row-wise work: norm, activation, quantisation, one task per few rows ---- */

enum { ROWS_PER_TASK = 8 };

typedef enum { ROW_NORM, ROW_ACT, ROW_PLAIN } row_kind;

typedef struct {
    pd_fwd *f;
    row_kind kind;
    const float *x, *w;
    float *y;
    size_t n, n_col;
    bool quantize;
} row_job;

static void row_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const row_job *j = ctx;
    const pd_fwd *f = j->f;
    const size_t end = pd_min_size(j->n, (task + 1) * ROWS_PER_TASK), c = j->n_col;
    for (size_t r = task * ROWS_PER_TASK; r < end; r++) {
        float *y = j->y + r * c;
        if (j->kind == ROW_NORM)
            f->kern->rmsnorm(j->x + r * c, j->w, f->model->hp.norm_eps, c, y);
        else if (j->kind == ROW_ACT && f->model->hp.act == PD_ACT_SILU)
            f->kern->silu_mul(j->x + r * c, f->up + r * c, c, y);
        else if (j->kind == ROW_ACT)
            f->kern->gelu_mul(j->x + r * c, f->up + r * c, c, y);
        if (j->quantize)
            f->kern->quantize_act(y, c, f->act.q + r * c, f->act.d + r * (c / 32), f->act.s + r * (c / 16));
    }
}

/* Make the left-hand side of the next products: y = kind(x), quantised when the
 * matrix is packed. */
static pd_lhs make_lhs(pd_fwd *f, row_kind kind, const float *x, const float *w, float *y, size_t n,
                       size_t n_col, const pd_mat *mat) {
    row_job job = {.f = f, .kind = kind, .x = x, .w = w, .y = y, .n = n, .n_col = n_col, .quantize = mat->f32 == NULL};
    if (kind != ROW_PLAIN || job.quantize)
        pd_workers_run(f->workers, row_task, &job, pd_div_up(n, ROWS_PER_TASK));
    f->act.n_col = n_col;
    return (pd_lhs){.x = y, .act = f->act, .n_tok = n, .n_col = n_col};
}

static void head_norms(const pd_fwd *f, float *x, size_t n_vec, const float *w) {
    const size_t d = f->model->hp.head_dim;
    for (size_t i = 0; i < n_vec; i++) f->kern->rmsnorm(x + i * d, w, f->model->hp.norm_eps, d, x + i * d);
}

void pd_fwd_qkv(pd_fwd *f, size_t layer, const float *x, size_t n, bool kv_only, unsigned flags) {
    const pd_hparams *hp = &f->model->hp;
    const pd_layer *ly = &f->model->layer[layer];
    const size_t nq = hp->n_head * hp->head_dim, nkv = hp->n_head_kv * hp->head_dim;
    const pd_lhs lhs = make_lhs(f, ROW_NORM, x, ly->attn_norm, f->h, n, hp->n_embd, &ly->k);
    const pd_mul mul[] = {{&ly->k, f->k, nkv}, {&ly->v, f->v, nkv}, {&ly->q, f->q, nq}};
    pd_mat_mul(f->workers, f->kern, &lhs, mul, kv_only ? 2 : 3, flags);
    if (ly->k_norm) head_norms(f, f->k, n * hp->n_head_kv, ly->k_norm);
    if (ly->q_norm && !kv_only) head_norms(f, f->q, n * hp->n_head, ly->q_norm);
}

void pd_rope_table(const pd_model *m, size_t rope, const int32_t *pos, size_t n, float *cos, float *sin) {
    const size_t half = m->hp.head_dim / 2;
    const float *freq = m->rope[rope].inv_freq;
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < half; j++) {
            const float angle = (float)pos[i] * freq[j];
            cos[i * half + j] = cosf(angle);
            sin[i * half + j] = sinf(angle);
        }
    }
}

void pd_fwd_rope(pd_fwd *f, size_t n, const float *cos, const float *sin, bool kv_only) {
    const pd_hparams *hp = &f->model->hp;
    const size_t d = hp->head_dim;
    for (size_t i = 0; i < n; i++) {
        const float *c = cos + i * d / 2, *s = sin + i * d / 2;
        f->kern->rope(f->k + i * hp->n_head_kv * d, hp->n_head_kv, d, c, s);
        if (!kv_only) f->kern->rope(f->q + i * hp->n_head * d, hp->n_head, d, c, s);
    }
}

/* x += y, y normed first where the model norms a block's output. */
static void add_block(const pd_fwd *f, float *y, const float *post_norm, float *x, size_t n) {
    const size_t d = f->model->hp.n_embd;
    for (size_t i = 0; i < n; i++) {
        if (post_norm) f->kern->rmsnorm(y + i * d, post_norm, f->model->hp.norm_eps, d, y + i * d);
        f->kern->axpy_f32(1.0f, y + i * d, x + i * d, d);
    }
}

void pd_fwd_finish(pd_fwd *f, size_t layer, float *x, size_t n, unsigned flags) {
    const pd_hparams *hp = &f->model->hp;
    const pd_layer *ly = &f->model->layer[layer];
    const size_t d = hp->n_embd;

    pd_lhs lhs = make_lhs(f, ROW_PLAIN, f->attn, NULL, f->attn, n, hp->n_head * hp->head_dim, &ly->o);
    const pd_mul o = {&ly->o, f->out, d};
    pd_mat_mul(f->workers, f->kern, &lhs, &o, 1, flags);
    add_block(f, f->out, ly->attn_post_norm, x, n);

    lhs = make_lhs(f, ROW_NORM, x, ly->ffn_norm, f->h, n, d, &ly->gate);
    const pd_mul gate_up[] = {{&ly->gate, f->gate, hp->n_ff}, {&ly->up, f->up, hp->n_ff}};
    pd_mat_mul(f->workers, f->kern, &lhs, gate_up, 2, flags);
    lhs = make_lhs(f, ROW_ACT, f->gate, NULL, f->gate, n, hp->n_ff, &ly->down);
    const pd_mul down = {&ly->down, f->out, d};
    pd_mat_mul(f->workers, f->kern, &lhs, &down, 1, flags);
    add_block(f, f->out, ly->ffn_post_norm, x, n);
}

void pd_fwd_logits(pd_fwd *f, const float *x, size_t n, float *logits) {
    const pd_hparams *hp = &f->model->hp;
    const pd_mat *out = pd_model_out(f->model);
    const pd_lhs lhs = make_lhs(f, ROW_NORM, x, f->model->out_norm, f->h, n, hp->n_embd, out);
    const pd_mul mul = {out, logits, hp->n_vocab};
    pd_mat_mul(f->workers, f->kern, &lhs, &mul, 1, PD_MAT_PER_TOKEN);
}
