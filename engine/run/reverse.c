/* SPDX-License-Identifier: Apache-2.0 */
/* A layer's walk backwards (see reverse.h). */
#include "engine/run/reverse_int.h"

#include "engine/base/num.h"

#include <stdlib.h>
#include <string.h>

enum { ARRAYS = 18, ALIGN = 64 };

/* The arrays and how many floats each has; false: more than can be counted. */
static bool sizes(const pd_hparams *hp, unsigned threads, size_t m, size_t slots, size_t n[ARRAYS]) {
    const size_t d = hp->n_embd, nq = hp->n_head * hp->head_dim, nkv = hp->n_head_kv * hp->head_dim, tile = PD_REVERSE_TILE;
    const size_t widest = pd_max_size(hp->n_ff, pd_max_size(d, nq)), group = hp->n_head / hp->n_head_kv;
    const size_t rows = pd__reverse_block(hp) * group; /* queries of a block */
    const size_t factor[ARRAYS][3] = {
        {hp->n_layer, m, d}, {1, m, d}, {1, m, nq}, {1, m, nkv}, {1, m, nq}, {1, m, nkv}, {1, m, nkv},
        {1, tile, d}, {1, tile, d}, {1, tile, d}, {1, tile, d}, {1, tile, widest}, {1, tile, hp->n_ff},
        {1, PD__REVERSE_DEQUANT, widest}, {1, tile, nq}, {1, tile, nq}, {2, tile * hp->n_head, m}, {3 * threads, rows, slots},
    };
    for (size_t i = 0; i < ARRAYS; i++) {
        size_t bytes;
        if (!pd_mul_size(factor[i][0], factor[i][1], &n[i]) || !pd_mul_size(n[i], factor[i][2], &n[i]) ||
            !pd_mul_size(n[i], sizeof(float), &bytes) || !pd_add_size(bytes, ALIGN, &bytes))
            return false;
    }
    return true;
}

static float **arrays(pd_reverse *r, size_t i) {
    float **const at[ARRAYS] = {&r->x, &r->dy, &r->q, &r->k, &r->dq, &r->dk, &r->dv, &r->x1, &r->o,
                                &r->dh, &r->df, &r->da, &r->wide, &r->weight, &r->qg, &r->og, &r->own_p, &r->score};
    return at[i];
}

uint64_t pd_reverse_bytes(const pd_hparams *hp, unsigned threads, size_t m, size_t slots) {
    size_t n[ARRAYS], total = sizeof(pd_reverse);
    if (!sizes(hp, threads, m, slots, n)) return UINT64_MAX;
    for (size_t i = 0; i < ARRAYS; i++)
        if (!pd_add_size(total, n[i] * sizeof(float) + ALIGN, &total)) return UINT64_MAX;
    return total;
}

pd_status pd_reverse_open(pd_reverse **ret, pd_fwd *fwd, pd_attn *attn, const pd_codec *codec, size_t m, size_t slots, pd_err *err) {
    const pd_hparams *hp = &fwd->model->hp;
    size_t n[ARRAYS];
    pd_reverse *r = calloc(1, sizeof *r);
    *ret = r;
    bool ok = r && sizes(hp, pd_workers_count(fwd->workers), m, slots, n);
    for (size_t i = 0; ok && i < ARRAYS; i++)
        ok = (*arrays(r, i) = aligned_alloc(ALIGN, pd_div_up(n[i] * sizeof(float), ALIGN) * ALIGN)) != NULL;
    if (!ok) {
        pd_reverse_close(r);
        *ret = NULL;
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to run %zu rows backwards", m);
    }
    r->model = fwd->model;
    r->fwd = fwd;
    r->attn = attn;
    r->codec = *codec;
    r->m = m;
    r->slots = slots;
    r->own_s = r->own_p + n[ARRAYS - 2] / 2;
    r->score_floats = n[ARRAYS - 1] / pd_workers_count(fwd->workers);
    return PD_OK;
}

void pd_reverse_close(pd_reverse *r) {
    if (!r) return;
    for (size_t i = 0; i < ARRAYS; i++) free(*arrays(r, i));
    free(r);
}

float *pd_reverse_input(pd_reverse *r, size_t layer) {
    return r->x + layer * r->m * r->model->hp.n_embd;
}

size_t pd_reverse_layer(const pd_reverse *r) {
    return r->layer;
}

static void begin_layer(pd_reverse *r, size_t layer) {
    const size_t nkv = r->model->hp.n_head_kv * r->model->hp.head_dim;
    r->layer = layer;
    r->step = PD__STEP_STAGE;
    r->row = 0;
    memset(r->dk, 0, r->m * nkv * sizeof *r->dk);
    memset(r->dv, 0, r->m * nkv * sizeof *r->dv);
}

void pd_reverse_begin(pd_reverse *r, const float *out) {
    for (size_t i = 0; i < r->m * r->model->hp.n_embd; i++) r->dy[i] = 2.0f * out[i]; /* of Phi */
    begin_layer(r, r->model->hp.n_layer - 1);
}

/* ---- rows, some per task ---- */

typedef struct unit unit;
struct unit {
    pd_reverse *r;
    const pd_layer *ly;
    pd_stage *stage;
    const float *cos, *sin; /* of the tile */
    size_t n;
    void (*row)(const unit *u, size_t i);
    const float *x; /* products: [n][n_col] to be quantised */
    size_t n_col;
};

enum { ROWS_PER_TASK = 4 };

static void row_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const unit *u = ctx;
    const size_t end = pd_min_size(u->n, (task + 1) * ROWS_PER_TASK);
    for (size_t i = task * ROWS_PER_TASK; i < end; i++) u->row(u, i);
}

static void run_rows(unit *u, void (*row)(const unit *, size_t)) {
    u->row = row;
    pd_workers_run(u->r->fwd->workers, row_task, u, pd_div_up(u->n, ROWS_PER_TASK));
}

static const pd_hparams *hparams(const unit *u) {
    return &u->r->model->hp;
}

/* The rows of the tile in an array of all rows. */
static float *at(const unit *u, float *all, size_t width) {
    return all + u->r->row * width;
}

static void quantize_row(const unit *u, size_t i) {
    const pd_qact *a = &u->r->fwd->act;
    const size_t c = u->n_col;
    u->r->fwd->kern->quantize_act(u->x + i * c, c, a->q + i * c, a->d + i * (c / 32), a->s + i * (c / 16));
}

/* Products of x [n][n_col], as the forward pass makes them. */
static void multiply(unit *u, const float *x, size_t n_col, const pd_mul *mul, size_t n_mul) {
    pd_fwd *f = u->r->fwd;
    u->x = x;
    u->n_col = n_col;
    if (!mul[0].w->f32) run_rows(u, quantize_row);
    f->act.n_col = n_col;
    const pd_lhs lhs = {.x = x, .act = f->act, .n_tok = u->n, .n_col = n_col};
    pd_mat_mul(f->workers, f->kern, &lhs, mul, n_mul, 0);
}

/* ---- first: keys and values of all rows ---- */

static void input_norm_row(const unit *u, size_t i) {
    const size_t d = hparams(u)->n_embd;
    const float *x = pd_reverse_input(u->r, u->r->layer) + (u->r->row + i) * d;
    u->r->fwd->kern->rmsnorm(x, u->ly->attn_norm, hparams(u)->norm_eps, d, u->r->fwd->h + i * d);
}

/* Biases; then the key normed, rotated and, with the value, rounded into staging. */
static void stage_row(const unit *u, size_t i) {
    pd_reverse *r = u->r;
    const pd_hparams *hp = hparams(u);
    const pd_kernels *kern = r->fwd->kern;
    const size_t d = hp->head_dim, nq = hp->n_head * d, nkv = hp->n_head_kv * d, row = r->row + i;
    float *q = r->q + row * nq, *raw = r->k + row * nkv, *k = r->fwd->k + i * nkv, *v = r->fwd->v + i * nkv;
    if (hp->qkv_bias) {
        kern->axpy_f32(1.0f, u->ly->q_bias, q, nq);
        kern->axpy_f32(1.0f, u->ly->k_bias, raw, nkv);
        kern->axpy_f32(1.0f, u->ly->v_bias, v, nkv);
    }
    memcpy(k, raw, nkv * sizeof *k);
    for (size_t h = 0; hp->qk_norm && h < hp->n_head_kv; h++) kern->rmsnorm(k + h * d, u->ly->k_norm, hp->norm_eps, d, k + h * d);
    kern->rope(k, hp->n_head_kv, d, u->cos + i * d / 2, u->sin + i * d / 2);
    pd_kv_round(r->codec.key, kern, k, nkv);
    pd_kv_round(r->codec.value, kern, v, nkv);
    for (size_t h = 0; h < hp->n_head_kv; h++) {
        const size_t slot = (u->stage->n_prior[h] + row) * d;
        memcpy(pd_stage_k(u->stage, h) + slot, k + h * d, d * sizeof *k);
        memcpy(pd_stage_v(u->stage, h) + slot, v + h * d, d * sizeof *v);
    }
}

static void stage_tile(unit *u) {
    pd_reverse *r = u->r;
    const pd_hparams *hp = hparams(u);
    const size_t nq = hp->n_head * hp->head_dim, nkv = hp->n_head_kv * hp->head_dim;
    run_rows(u, input_norm_row);
    const pd_mul mul[] = {{&u->ly->k, at(u, r->k, nkv), nkv}, {&u->ly->v, r->fwd->v, nkv}, {&u->ly->q, at(u, r->q, nq), nq}};
    multiply(u, r->fwd->h, hp->n_embd, mul, 3);
    run_rows(u, stage_row);
}

/* ---- then: from the layer's output to queries, keys and values ---- */

static void query_row(const unit *u, size_t i) {
    const pd_hparams *hp = hparams(u);
    const pd_kernels *kern = u->r->fwd->kern;
    const size_t d = hp->head_dim, nq = hp->n_head * d;
    float *q = u->r->fwd->q + i * nq;
    memcpy(q, u->r->q + (u->r->row + i) * nq, nq * sizeof *q);
    for (size_t h = 0; hp->qk_norm && h < hp->n_head; h++) kern->rmsnorm(q + h * d, u->ly->q_norm, hp->norm_eps, d, q + h * d);
    kern->rope(q, hp->n_head, d, u->cos + i * d / 2, u->sin + i * d / 2);
}

/* x1 = x + o, o normed where the model does; fwd->h = norm(x1). */
static void between_row(const unit *u, size_t i) {
    pd_reverse *r = u->r;
    const pd_hparams *hp = hparams(u);
    const pd_kernels *kern = r->fwd->kern;
    const size_t d = hp->n_embd;
    const float *x = pd_reverse_input(r, r->layer) + (r->row + i) * d, *o = r->o + i * d;
    float *x1 = r->x1 + i * d;
    if (u->ly->attn_post_norm) kern->rmsnorm(o, u->ly->attn_post_norm, hp->norm_eps, d, x1);
    else memcpy(x1, o, d * sizeof *x1);
    kern->axpy_f32(1.0f, x, x1, d);
    kern->rmsnorm(x1, u->ly->ffn_norm, hp->norm_eps, d, r->fwd->h + i * d);
}

static void gate_row(const unit *u, size_t i) {
    const pd_fwd *f = u->r->fwd;
    const size_t n = hparams(u)->n_ff;
    (hparams(u)->act == PD_ACT_SILU ? f->kern->silu_mul : f->kern->gelu_mul)(f->gate + i * n, f->up + i * n, n, u->r->wide + i * n);
}

/* df from the layer's dy: through the norm behind the feed-forward block. */
static void ffn_post_row(const unit *u, size_t i) {
    const size_t d = hparams(u)->n_embd;
    pd__rmsnorm_back(u->r->fwd->out + i * d, u->ly->ffn_post_norm, hparams(u)->norm_eps, d, at(u, u->r->dy, d) + i * d, false, u->r->df + i * d);
}

static void glu_row(const unit *u, size_t i) {
    const size_t n = hparams(u)->n_ff;
    pd__glu_back(hparams(u)->act, n, u->r->da + i * n, u->r->fwd->gate + i * n, u->r->fwd->up + i * n);
}

/* dy becomes the gradient of x1; df that of the attention block's output. */
static void between_back_row(const unit *u, size_t i) {
    pd_reverse *r = u->r;
    const size_t d = hparams(u)->n_embd;
    const float eps = hparams(u)->norm_eps;
    float *dy = at(u, r->dy, d) + i * d, *g = r->df + i * d;
    pd__rmsnorm_back(r->x1 + i * d, u->ly->ffn_norm, eps, d, r->dh + i * d, true, dy);
    if (u->ly->attn_post_norm) pd__rmsnorm_back(r->o + i * d, u->ly->attn_post_norm, eps, d, dy, false, g);
    else memcpy(g, dy, d * sizeof *g);
}

static pd_status blocks_tile(unit *u, pd_reverse_seen seen, void *arg, pd_err *err) {
    pd_reverse *r = u->r;
    pd_fwd *f = r->fwd;
    const pd_hparams *hp = hparams(u);
    const pd_layer *ly = u->ly;
    const size_t d = hp->n_embd, nq = hp->n_head * hp->head_dim;
    run_rows(u, query_row);
    pd_attn_tile(r->attn, u->stage, f->q, r->row, u->n, ly->window, f->attn);
    multiply(u, f->attn, nq, &(pd_mul){&ly->o, r->o, d}, 1);
    run_rows(u, between_row);
    multiply(u, f->h, d, (const pd_mul[]){{&ly->gate, f->gate, hp->n_ff}, {&ly->up, f->up, hp->n_ff}}, 2);
    const float *df = at(u, r->dy, d);
    if (ly->ffn_post_norm) {
        run_rows(u, gate_row);
        multiply(u, r->wide, hp->n_ff, &(pd_mul){&ly->down, f->out, d}, 1);
        run_rows(u, ffn_post_row);
        df = r->df;
    }
    pd__product_back(r, &ly->down, df, u->n, false, r->da);
    run_rows(u, glu_row);
    pd__product_back(r, &ly->gate, f->gate, u->n, false, r->dh);
    pd__product_back(r, &ly->up, f->up, u->n, true, r->dh);
    run_rows(u, between_back_row);
    PD_TRY(seen(arg, r->layer, r->row, u->n, f->q, r->df, err));
    if (r->layer == 0) return PD_OK; /* nobody asks what is in front of it */
    pd__product_back(r, &ly->o, r->df, u->n, false, r->da);
    pd__attention_back(r, u->stage, r->row, u->n, ly->window, r->da);
    return PD_OK;
}

/* ---- last: to the layer's input ---- */

/* Gradients of rotated rows to those of the products: RoPE turned back, then the norm. */
static void heads_back(const unit *u, size_t i, size_t n_head, const float *norm, const float *raw, float *g) {
    const pd_hparams *hp = hparams(u);
    const size_t d = hp->head_dim;
    float sin[512];
    for (size_t c = 0; c < d / 2; c++) sin[c] = -u->sin[i * d / 2 + c];
    u->r->fwd->kern->rope(g, n_head, d, u->cos + i * d / 2, sin);
    for (size_t h = 0; hp->qk_norm && h < n_head; h++)
        pd__rmsnorm_back(raw + h * d, norm, hp->norm_eps, d, g + h * d, false, g + h * d);
}

static void heads_back_row(const unit *u, size_t i) {
    pd_reverse *r = u->r;
    const pd_hparams *hp = hparams(u);
    const size_t nq = hp->n_head * hp->head_dim, nkv = hp->n_head_kv * hp->head_dim, row = r->row + i;
    heads_back(u, i, hp->n_head, u->ly->q_norm, r->q + row * nq, r->dq + row * nq);
    heads_back(u, i, hp->n_head_kv, u->ly->k_norm, r->k + row * nkv, r->dk + row * nkv);
}

static void input_back_row(const unit *u, size_t i) {
    const size_t d = hparams(u)->n_embd;
    const float *x = pd_reverse_input(u->r, u->r->layer) + (u->r->row + i) * d;
    pd__rmsnorm_back(x, u->ly->attn_norm, hparams(u)->norm_eps, d, u->r->dh + i * d, true, at(u, u->r->dy, d) + i * d);
}

static void input_tile(unit *u) {
    pd_reverse *r = u->r;
    const pd_hparams *hp = hparams(u);
    const size_t nq = hp->n_head * hp->head_dim, nkv = hp->n_head_kv * hp->head_dim;
    run_rows(u, heads_back_row);
    pd__product_back(r, &u->ly->q, at(u, r->dq, nq), u->n, false, r->dh);
    pd__product_back(r, &u->ly->k, at(u, r->dk, nkv), u->n, true, r->dh);
    pd__product_back(r, &u->ly->v, at(u, r->dv, nkv), u->n, true, r->dh);
    run_rows(u, input_back_row);
}

pd_status pd_reverse_unit(pd_reverse *r, pd_stage *stage, const float *cos, const float *sin, pd_reverse_seen seen, void *arg,
                          size_t *tile, bool *layer_done, bool *done, pd_err *err) {
    const size_t half = r->model->hp.head_dim / 2;
    unit u = {.r = r, .ly = &r->model->layer[r->layer], .stage = stage, .cos = cos + r->row * half, .sin = sin + r->row * half,
              .n = pd_min_size(PD_REVERSE_TILE, r->m - r->row)};
    const pd__reverse_step last = r->layer == 0 ? PD__STEP_BLOCKS : PD__STEP_INPUT;
    if (r->step == PD__STEP_STAGE) stage_tile(&u);
    else if (r->step == PD__STEP_BLOCKS) PD_TRY(blocks_tile(&u, seen, arg, err));
    else input_tile(&u);
    *tile = u.n;
    *layer_done = *done = false;
    r->row += u.n;
    if (r->row < r->m) return PD_OK;
    r->row = 0;
    if (r->step++ != last) return PD_OK;
    *layer_done = true;
    *done = r->layer == 0;
    if (!*done) begin_layer(r, r->layer - 1);
    return PD_OK;
}
