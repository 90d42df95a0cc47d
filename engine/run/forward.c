/* SPDX-License-Identifier: Apache-2.0 */
/* Layer parts around attention (see forward.h). */
#include "engine/run/adapter.h"

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
    f->cos = floats(f, hp->n_rope * rows * hp->head_dim / 2);
    f->sin = floats(f, hp->n_rope * rows * hp->head_dim / 2);
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

/* ---- row-wise work, one task per few rows ---- */

enum { ROWS_PER_TASK = 8 };

typedef struct row_job row_job;
struct row_job {
    pd_fwd *f;
    void (*row)(const row_job *job, size_t r);
    size_t n;
    const float *x, *w;  /* [n][n_col]; weights of a norm */
    float *y;            /* [n][n_col] */
    size_t n_col;
    bool quantize, kv_only;
    const pd_layer *layer;
    const float *cos, *sin;
};

static void row_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const row_job *j = ctx;
    const size_t end = pd_min_size(j->n, (task + 1) * ROWS_PER_TASK);
    for (size_t r = task * ROWS_PER_TASK; r < end; r++) j->row(j, r);
}

static void run_rows(row_job *job) {
    pd_workers_run(job->f->workers, row_task, job, pd_div_up(job->n, ROWS_PER_TASK));
}

static void quantize_row(const row_job *j, size_t r) {
    const pd_fwd *f = j->f;
    const size_t c = j->n_col;
    if (j->quantize)
        f->kern->quantize_act(j->y + r * c, c, f->act.q + r * c, f->act.d + r * (c / 32), f->act.s + r * (c / 16));
}

static void norm_row(const row_job *j, size_t r) {
    j->f->kern->rmsnorm(j->x + r * j->n_col, j->w, j->f->model->hp.norm_eps, j->n_col, j->y + r * j->n_col);
    quantize_row(j, r);
}

static void act_row(const row_job *j, size_t r) {
    const pd_fwd *f = j->f;
    const size_t c = j->n_col;
    if (f->model->hp.act == PD_ACT_SILU)
        f->kern->silu_mul(j->x + r * c, f->up + r * c, c, j->y + r * c);
    else
        f->kern->gelu_mul(j->x + r * c, f->up + r * c, c, j->y + r * c);
    quantize_row(j, r);
}

/* Make the left-hand side of the next products: y = row(x), quantised when the
 * matrix is packed. */
static pd_lhs make_lhs(pd_fwd *f, void (*row)(const row_job *, size_t), const float *x, const float *w,
                       float *y, size_t n, size_t n_col, const pd_mat *mat) {
    row_job job = {.f = f, .row = row, .n = n, .x = x, .w = w, .y = y, .n_col = n_col, .quantize = mat->f32 == NULL};
    if (row != quantize_row || job.quantize) run_rows(&job);
    f->act.n_col = n_col;
    return (pd_lhs){.x = y, .act = f->act, .n_tok = n, .n_col = n_col};
}

static void add_bias(const pd_fwd *f, const float *bias, size_t n, float *y) {
    f->kern->axpy_f32(1.0f, bias, y, n);
}

/* Biases and norms of one token's queries and keys. */
static void qk_row(const row_job *j, size_t r) {
    const pd_fwd *f = j->f;
    const pd_hparams *hp = &f->model->hp;
    const size_t d = hp->head_dim, nq = hp->n_head * d, nkv = hp->n_head_kv * d;
    float *k = f->k + r * nkv, *q = f->q + r * nq;
    if (hp->qkv_bias) {
        add_bias(f, j->layer->k_bias, nkv, k);
        add_bias(f, j->layer->v_bias, nkv, f->v + r * nkv);
        if (!j->kv_only) add_bias(f, j->layer->q_bias, nq, q);
    }
    if (!hp->qk_norm) return;
    for (size_t h = 0; h < hp->n_head_kv; h++) f->kern->rmsnorm(k + h * d, j->layer->k_norm, hp->norm_eps, d, k + h * d);
    for (size_t h = 0; !j->kv_only && h < hp->n_head; h++) f->kern->rmsnorm(q + h * d, j->layer->q_norm, hp->norm_eps, d, q + h * d);
}

/* ---- what is read next, prefetched by a thread that waits (a decode step alone: in a prompt's
 * tile weights are used long) ---- */

static bool ahead_qkv(const void *ctx, unsigned thread, unsigned n_threads, size_t step) {
    const pd_layer *ly = ctx;
    return pd_mat_ahead((const pd_mat *const[]){&ly->k, &ly->v, &ly->q}, 3, thread, n_threads, step);
}

static bool ahead_o(const void *ctx, unsigned thread, unsigned n_threads, size_t step) {
    const pd_layer *ly = ctx;
    return pd_mat_ahead((const pd_mat *const[]){&ly->o}, 1, thread, n_threads, step);
}

static bool ahead_gate_up(const void *ctx, unsigned thread, unsigned n_threads, size_t step) {
    const pd_layer *ly = ctx;
    return pd_mat_ahead((const pd_mat *const[]){&ly->gate, &ly->up}, 2, thread, n_threads, step);
}

static bool ahead_down(const void *ctx, unsigned thread, unsigned n_threads, size_t step) {
    const pd_layer *ly = ctx;
    return pd_mat_ahead((const pd_mat *const[]){&ly->down}, 1, thread, n_threads, step);
}

static bool ahead_out(const void *ctx, unsigned thread, unsigned n_threads, size_t step) {
    return pd_mat_ahead((const pd_mat *const[]){pd_model_out(ctx)}, 1, thread, n_threads, step);
}

static void look_ahead(const pd_fwd *f, pd_ahead_fn fn, const void *ctx, unsigned flags) {
    if (flags & PD_MAT_PER_TOKEN) pd_workers_ahead(f->workers, fn, ctx);
}

void pd_fwd_ahead(const pd_fwd *f, size_t layer) {
    pd_workers_ahead(f->workers, ahead_o, &f->model->layer[layer]);
}

void pd_fwd_qkv(pd_fwd *f, size_t layer, const float *x, size_t n, bool kv_only, unsigned flags) {
    const pd_hparams *hp = &f->model->hp;
    const pd_layer *ly = &f->model->layer[layer];
    const size_t nq = hp->n_head * hp->head_dim, nkv = hp->n_head_kv * hp->head_dim;
    const pd_lhs lhs = make_lhs(f, norm_row, x, ly->attn_norm, f->h, n, hp->n_embd, &ly->k);
    const pd_mul mul[] = {{&ly->k, f->k, nkv}, {&ly->v, f->v, nkv}, {&ly->q, f->q, nq}};
    pd_mat_mul(f->workers, f->kern, &lhs, mul, kv_only ? 2 : 3, flags);
    pd_adapter_add(f, layer, PD_PROJ_K, lhs.x, n, f->k);
    pd_adapter_add(f, layer, PD_PROJ_V, lhs.x, n, f->v);
    if (!kv_only) pd_adapter_add(f, layer, PD_PROJ_Q, lhs.x, n, f->q);
    if (hp->qk_norm || hp->qkv_bias)
        run_rows(&(row_job){.f = f, .row = qk_row, .n = n, .kv_only = kv_only, .layer = ly});
}

void pd_rope_table(const pd_model *m, size_t rope, const int32_t *pos, size_t n, float *cos, float *sin) {
    const size_t half = m->hp.head_dim / 2;
    const float *freq = m->rope[rope].inv_freq, scale = m->rope[rope].scale;
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < half; j++) {
            const float angle = (float)pos[i] * freq[j];
            cos[i * half + j] = cosf(angle) * scale;
            sin[i * half + j] = sinf(angle) * scale;
        }
    }
}

static void rope_row(const row_job *j, size_t r) {
    const pd_fwd *f = j->f;
    const pd_hparams *hp = &f->model->hp;
    const size_t d = hp->head_dim;
    const float *c = j->cos + r * d / 2, *s = j->sin + r * d / 2;
    f->kern->rope(f->k + r * hp->n_head_kv * d, hp->n_head_kv, d, c, s);
    if (!j->kv_only) f->kern->rope(f->q + r * hp->n_head * d, hp->n_head, d, c, s);
}

void pd_fwd_rope(pd_fwd *f, size_t n, const float *cos, const float *sin, bool kv_only) {
    run_rows(&(row_job){.f = f, .row = rope_row, .n = n, .kv_only = kv_only, .cos = cos, .sin = sin});
}

/* x += y, y normed first where the model norms a block's output. */
static void add_row(const row_job *j, size_t r) {
    const pd_fwd *f = j->f;
    const size_t d = j->n_col;
    float *y = f->out + r * d;
    if (j->w) f->kern->rmsnorm(y, j->w, f->model->hp.norm_eps, d, y);
    f->kern->axpy_f32(1.0f, y, j->y + r * d, d);
}

static void add_block(pd_fwd *f, const float *post_norm, float *x, size_t n) {
    run_rows(&(row_job){.f = f, .row = add_row, .n = n, .w = post_norm, .y = x, .n_col = f->model->hp.n_embd});
}

void pd_fwd_finish(pd_fwd *f, size_t layer, float *x, size_t n, unsigned flags) {
    const pd_hparams *hp = &f->model->hp;
    const pd_layer *ly = &f->model->layer[layer];
    const size_t d = hp->n_embd;

    pd_lhs lhs = make_lhs(f, quantize_row, f->attn, NULL, f->attn, n, hp->n_head * hp->head_dim, &ly->o);
    const pd_mul o = {&ly->o, f->out, d};
    look_ahead(f, ahead_gate_up, ly, flags);
    pd_mat_mul(f->workers, f->kern, &lhs, &o, 1, flags);
    pd_adapter_add(f, layer, PD_PROJ_O, lhs.x, n, f->out);
    add_block(f, ly->attn_post_norm, x, n);

    lhs = make_lhs(f, norm_row, x, ly->ffn_norm, f->h, n, d, &ly->gate);
    const pd_mul gate_up[] = {{&ly->gate, f->gate, hp->n_ff}, {&ly->up, f->up, hp->n_ff}};
    look_ahead(f, ahead_down, ly, flags);
    pd_mat_mul(f->workers, f->kern, &lhs, gate_up, 2, flags);
    pd_adapter_add(f, layer, PD_PROJ_GATE, lhs.x, n, f->gate);
    pd_adapter_add(f, layer, PD_PROJ_UP, lhs.x, n, f->up);
    lhs = make_lhs(f, act_row, f->gate, NULL, f->gate, n, hp->n_ff, &ly->down);
    const pd_mul down = {&ly->down, f->out, d};
    if (layer + 1 < hp->n_layer) look_ahead(f, ahead_qkv, ly + 1, flags);
    else look_ahead(f, ahead_out, f->model, flags);
    pd_mat_mul(f->workers, f->kern, &lhs, &down, 1, flags);
    pd_adapter_add(f, layer, PD_PROJ_DOWN, lhs.x, n, f->out);
    add_block(f, ly->ffn_post_norm, x, n);
}

static void cap_row(const row_job *j, size_t r) {
    j->f->kern->softcap(j->y + r * j->n_col, j->n_col, j->f->model->hp.logit_softcap);
}

static void logits_of(pd_fwd *f, const float *x, size_t n, float *logits, unsigned flags) {
    const pd_hparams *hp = &f->model->hp;
    const pd_mat *out = pd_model_out(f->model);
    const pd_lhs lhs = make_lhs(f, norm_row, x, f->model->out_norm, f->h, n, hp->n_embd, out);
    const pd_mul mul = {out, logits, hp->n_vocab};
    look_ahead(f, ahead_qkv, &f->model->layer[0], flags);
    pd_mat_mul(f->workers, f->kern, &lhs, &mul, 1, flags);
    if (hp->logit_softcap > 0.0f)
        run_rows(&(row_job){.f = f, .row = cap_row, .n = n, .y = logits, .n_col = hp->n_vocab});
}

void pd_fwd_logits(pd_fwd *f, const float *x, size_t n, float *logits) {
    logits_of(f, x, n, logits, PD_MAT_PER_TOKEN);
}

void pd_fwd_logits_tile(pd_fwd *f, const float *x, size_t n, float *logits) {
    logits_of(f, x, n, logits, 0);
}
