/* SPDX-License-Identifier: Apache-2.0 */
/* Reverse mode beside differences of the engine's own forward pass in f32, on small drawn
 * models with the parts of every architecture.
 *
 * What attention gives at some rows of a layer is moved a little both ways; the
 * difference of Phi must be what the gradient of the block's output says of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/rng.h"
#include "engine/run/reverse.h"
#include "tests/unit/tiny_model.h"

#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LAYERS = 3, EMBD = 64, HEADS = 4, DIM = 16, FF = 96, ROWS = 70, PRIOR = 45, WINDOW = 32, CAP = PRIOR + ROWS };

typedef struct {
    const char *name;
    size_t n_head_kv;
    pd_act act;
    bool qkv_bias, qk_norm, post_norm;
    float softcap, attn_scale, rope_scale;
    bool window[LAYERS];
} shape;

static const shape shapes[] = {
    {"llama", 2, PD_ACT_SILU, false, false, false, 0.0f, 0.25f, 1.0f, {false}},
    {"llama, window", 1, PD_ACT_SILU, false, false, false, 0.0f, 0.25f, 1.0f, {true, true, true}},
    {"qwen2, yarn", 2, PD_ACT_SILU, true, false, false, 0.0f, 0.25f, 1.2f, {false}},
    {"qwen3", 4, PD_ACT_SILU, false, true, false, 0.0f, 0.25f, 1.0f, {false}},
    {"phi3, longrope", 4, PD_ACT_SILU, false, false, false, 0.0f, 0.25f, 1.19f, {false}},
    {"gemma2", 2, PD_ACT_GELU_TANH, false, false, true, 2.0f, 0.4f, 1.0f, {true, false, true}},
    {"gemma3", 1, PD_ACT_GELU_TANH, false, true, true, 0.0f, 0.3f, 1.0f, {true, true, false}},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

typedef struct {
    pd_model m;
    pd_layer layer[LAYERS];
    float inv_freq[DIM / 2];
    pd_kernels kern;
    pd_workers *workers;
    pd_fwd fwd;
    pd_attn attn;
    pd_codec codec;
    pd_stage stage[16]; /* [n_layer], the caches in front */
    float *cos, *sin;   /* [ROWS][D / 2] */
    float *x;           /* [ROWS][n_embd] */
    void *block[64];    /* what is ours to free */
    size_t n_block;
    pd_rng rng;
} bench;

static float *drawn(bench *b, size_t n, float mean, float spread) {
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++) x[i] = mean + spread * pd_rng_f32(&b->rng);
    assert_true(b->n_block < sizeof b->block / sizeof *b->block);
    return b->block[b->n_block++] = x;
}

static pd_mat matrix(bench *b, size_t rows, size_t cols, float gain) {
    return (pd_mat){.n_row = rows, .n_col = cols, .f32 = drawn(b, rows * cols, 0.0f, gain * sqrtf(3.0f / (float)cols))};
}

static void draw_layer(bench *b, const shape *s, pd_layer *ly) {
    const size_t nq = HEADS * DIM, nkv = s->n_head_kv * DIM;
    *ly = (pd_layer){.attn_norm = drawn(b, EMBD, 1.0f, 0.3f), .ffn_norm = drawn(b, EMBD, 1.0f, 0.3f)};
    ly->q = matrix(b, nq, EMBD, 1.5f);
    ly->k = matrix(b, nkv, EMBD, 1.5f);
    ly->v = matrix(b, nkv, EMBD, 1.0f);
    ly->o = matrix(b, EMBD, nq, 2.0f);
    ly->gate = matrix(b, FF, EMBD, 1.0f);
    ly->up = matrix(b, FF, EMBD, 1.0f);
    ly->down = matrix(b, EMBD, FF, 1.0f);
    if (s->qkv_bias) {
        ly->q_bias = drawn(b, nq, 0.0f, 0.5f);
        ly->k_bias = drawn(b, nkv, 0.0f, 0.5f);
        ly->v_bias = drawn(b, nkv, 0.0f, 0.5f);
    }
    if (s->qk_norm) {
        ly->q_norm = drawn(b, DIM, 1.2f, 0.3f);
        ly->k_norm = drawn(b, DIM, 1.2f, 0.3f);
    }
    if (s->post_norm) {
        ly->attn_post_norm = drawn(b, EMBD, 1.0f, 0.3f);
        ly->ffn_post_norm = drawn(b, EMBD, 1.0f, 0.3f);
    }
}

/* Tables, rows and caches; the model stands. */
static void set_up(bench *b, unsigned threads, bool exact) {
    const pd_hparams *hp = &b->m.hp;
    pd_err err = {0};
    pd_kernels_init(&b->kern, exact ? 0 : ~0u);
    assert_int_equal(pd_workers_open(&b->workers, threads, &err), PD_OK);
    assert_int_equal(pd_fwd_init(&b->fwd, &b->m, &b->kern, b->workers, PD_ATTN_TILE, &err), PD_OK);
    assert_int_equal(pd_attn_init(&b->attn, &b->m, &b->kern, b->workers, 1, CAP, exact, &err), PD_OK);
    b->codec = pd_codec_of(exact ? PD_KV_F32 : PD_KV_F16, exact ? PD_KV_F32 : PD_KV_F16);
    b->cos = drawn(b, ROWS * hp->head_dim / 2, 0.0f, 0.0f);
    b->sin = drawn(b, ROWS * hp->head_dim / 2, 0.0f, 0.0f);
    int32_t pos[ROWS];
    for (size_t i = 0; i < ROWS; i++) pos[i] = (int32_t)(PRIOR + i);
    pd_rope_table(&b->m, 0, pos, ROWS, b->cos, b->sin);
    b->x = drawn(b, ROWS * hp->n_embd, 0.0f, 2.0f);
    for (size_t l = 0; l < hp->n_layer; l++) {
        pd_stage *st = &b->stage[l];
        assert_int_equal(pd_stage_open(st, hp->n_head_kv, hp->head_dim, CAP, &err), PD_OK);
        for (size_t h = 0; h < hp->n_head_kv; h++) {
            st->n_prior[h] = b->m.layer[l].window ? WINDOW : PRIOR;
            for (size_t i = 0; i < st->n_prior[h] * hp->head_dim; i++) {
                pd_stage_k(st, h)[i] = 1.5f * pd_rng_f32(&b->rng);
                pd_stage_v(st, h)[i] = pd_rng_f32(&b->rng);
            }
        }
    }
}

static void open_bench(bench *b, const shape *s, unsigned threads) {
    memset(b, 0, sizeof *b);
    b->rng = (pd_rng){7};
    b->m.layer = b->layer;
    b->m.hp = (pd_hparams){.n_layer = LAYERS, .n_embd = EMBD, .n_head = HEADS, .n_head_kv = s->n_head_kv, .head_dim = DIM, .n_ff = FF,
                           .norm_eps = 1e-5f, .embd_scale = 1.0f, .attn_scale = s->attn_scale, .attn_softcap = s->softcap,
                           .act = s->act, .qk_norm = s->qk_norm, .post_norm = s->post_norm, .qkv_bias = s->qkv_bias, .n_rope = 1};
    for (size_t i = 0; i < DIM / 2; i++) b->inv_freq[i] = powf(100.0f, -(float)i / (DIM / 2));
    b->m.rope[0] = (pd_rope){b->inv_freq, s->rope_scale};
    for (size_t l = 0; l < LAYERS; l++) {
        draw_layer(b, s, &b->layer[l]);
        b->layer[l].window = s->window[l] ? WINDOW : 0;
    }
    set_up(b, threads, true);
}

static void close_bench(bench *b) {
    for (size_t l = 0; l < b->m.hp.n_layer; l++) pd_stage_close(&b->stage[l]);
    pd_attn_done(&b->attn);
    pd_fwd_done(&b->fwd);
    pd_workers_close(b->workers);
    for (size_t i = 0; i < b->n_block; i++) free(b->block[i]);
}

/* The rows through all layers, attention's results of layer `at` moved by step * u [ROWS][nq];
 * into r (or NULL) goes what reverse mode asks for.  Phi. */
static double forward(bench *b, pd_reverse *r, size_t at, const float *u, float step) {
    const pd_hparams *hp = &b->m.hp;
    const size_t d = hp->n_embd, nq = hp->n_head * hp->head_dim, nkv = hp->n_head_kv * hp->head_dim, half = hp->head_dim / 2;
    float *x = malloc(ROWS * d * sizeof *x);
    assert_non_null(x);
    memcpy(x, b->x, ROWS * d * sizeof *x);
    for (size_t l = 0; l < hp->n_layer; l++) {
        pd_stage *st = &b->stage[l];
        if (r) memcpy(pd_reverse_input(r, l), x, ROWS * d * sizeof *x);
        for (size_t r0 = 0; r0 < ROWS; r0 += 32) {
            const size_t n = ROWS - r0 < 32 ? ROWS - r0 : 32;
            pd_fwd *f = &b->fwd;
            pd_fwd_qkv(f, l, x + r0 * d, n, false, 0);
            pd_fwd_rope(f, n, b->cos + r0 * half, b->sin + r0 * half, false);
            pd_kv_round(b->codec.key, &b->kern, f->k, n * nkv);
            pd_kv_round(b->codec.value, &b->kern, f->v, n * nkv);
            for (size_t i = 0; i < n * hp->n_head_kv; i++) {
                const size_t h = i % hp->n_head_kv, slot = (st->n_prior[h] + r0 + i / hp->n_head_kv) * hp->head_dim;
                memcpy(pd_stage_k(st, h) + slot, f->k + i * hp->head_dim, hp->head_dim * sizeof(float));
                memcpy(pd_stage_v(st, h) + slot, f->v + i * hp->head_dim, hp->head_dim * sizeof(float));
            }
            pd_attn_tile(&b->attn, st, f->q, r0, n, b->m.layer[l].window, f->attn);
            for (size_t i = 0; l == at && i < n * nq; i++) f->attn[i] += step * u[r0 * nq + i];
            pd_fwd_finish(f, l, x + r0 * d, n, 0);
        }
    }
    if (r) pd_reverse_begin(r, x);
    double phi = 0.0;
    for (size_t i = 0; i < ROWS * d; i++) phi += (double)x[i] * x[i];
    free(x);
    return phi;
}

typedef struct {
    size_t n_embd, layer, row; /* where the next rows must be */
    float *g;                  /* [n_layer][ROWS][n_embd] */
} told;

static pd_status seen(void *arg, size_t layer, size_t row0, size_t n, const float *q, const float *g, pd_err *err) {
    (void)err;
    told *t = arg;
    assert_non_null(q);
    if (row0 == 0 && t->row) {
        assert_int_equal(t->row, ROWS);
        t->layer--;
        t->row = 0;
    }
    assert_int_equal(layer, t->layer);
    assert_int_equal(row0, t->row);
    t->row += n;
    memcpy(t->g + (layer * ROWS + row0) * t->n_embd, g, n * t->n_embd * sizeof *g);
    return PD_OK;
}

/* dPhi/da of every layer and row; the caller frees it. */
static float *gradients(bench *b) {
    const pd_hparams *hp = &b->m.hp;
    pd_err err = {0};
    pd_reverse *r = NULL;
    assert_int_equal(pd_reverse_open(&r, &b->fwd, &b->attn, &b->codec, ROWS, CAP, &err), PD_OK);
    forward(b, r, SIZE_MAX, NULL, 0.0f);
    told t = {hp->n_embd, hp->n_layer - 1, 0, malloc(hp->n_layer * ROWS * hp->n_embd * sizeof(float))};
    assert_non_null(t.g);
    size_t rows = 0, tile, layers = 0;
    bool layer_done, done = false;
    while (!done) {
        assert_int_equal(pd_reverse_layer(r), hp->n_layer - 1 - layers);
        assert_int_equal(pd_reverse_unit(r, &b->stage[pd_reverse_layer(r)], b->cos, b->sin, seen, &t, &tile, &layer_done, &done, &err), PD_OK);
        assert_true(tile > 0 && tile <= PD_REVERSE_TILE);
        rows += tile;
        layers += layer_done;
    }
    assert_int_equal(layers, hp->n_layer);
    assert_int_equal(rows, ROWS * (3 * hp->n_layer - 1)); /* the first layer's input is nobody's */
    assert_true(t.layer == 0 && t.row == ROWS);
    pd_reverse_close(r);
    return t.g;
}

/* u moves attention's results; the gradient is that of the block's output, Wo times as much. */
static double predicted(const bench *b, size_t layer, const float *g, const float *u) {
    const pd_mat *o = &b->m.layer[layer].o;
    double sum = 0.0;
    for (size_t i = 0; i < ROWS; i++)
        for (size_t e = 0; e < o->n_row; e++) {
            double y = 0.0;
            for (size_t c = 0; c < o->n_col; c++) y += (double)o->f32[e * o->n_col + c] * u[i * o->n_col + c];
            sum += y * g[(layer * ROWS + i) * o->n_row + e];
        }
    return sum;
}

/* dPhi/dstep at 0: central differences of two steps, their h^2 taken out (Richardson). */
static double differed(bench *b, size_t layer, const float *u) {
    double d[2];
    for (int k = 0; k < 2; k++) {
        const float step = k ? 0.05f : 0.1f;
        d[k] = (forward(b, NULL, layer, u, step) - forward(b, NULL, layer, u, -step)) / (2.0 * step);
    }
    return (4.0 * d[1] - d[0]) / 3.0;
}

/* Every layer, rows at tiles' borders one by one and all together, along the gradient and across. */
static void gradients_are_differences(void **state) {
    (void)state;
    static const size_t only[] = {0, 1, 33, 63, 64, ROWS - 1, ROWS};
    for (size_t c = 0; c < SHAPES; c++) {
        bench b;
        open_bench(&b, &shapes[c], 1); /* many short runs */
        float *g = gradients(&b), *u = malloc(ROWS * HEADS * DIM * sizeof *u);
        assert_non_null(u);
        for (size_t l = 0; l < LAYERS; l++)
            for (size_t k = 0; k < 2 * sizeof only / sizeof *only; k++) {
                const size_t row = only[k / 2], nq = HEADS * DIM;
                double size = 0.0, most = 0.0;
                for (size_t i = 0; i < ROWS * nq; i++) {
                    u[i] = pd_rng_f32(&b.rng);
                    if (k % 2) { /* Wo^T g */
                        u[i] = 0.0f;
                        for (size_t e = 0; e < EMBD; e++) u[i] += b.layer[l].o.f32[e * nq + i % nq] * g[(l * ROWS + i / nq) * EMBD + e];
                    }
                    if (row < ROWS && i / nq != row) u[i] = 0.0f;
                    size += (double)u[i] * u[i];
                }
                const float scale = (float)((row < ROWS ? 0.3 : 0.8) / sqrt(size));
                for (size_t i = 0; i < ROWS * nq; i++) u[i] *= scale;
                for (size_t e = 0; e < ROWS * EMBD; e++)
                    if (row == ROWS || e / EMBD == row) most += (double)g[l * ROWS * EMBD + e] * g[l * ROWS * EMBD + e];
                const double want = predicted(&b, l, g, u);
                const double got = differed(&b, l, u);
                most = sqrt(most) * scale * sqrt(size);
                if (!(most > 0.0) || fabs(got - want) > 1e-3 * most + 1e-3 * fabs(want))
                    fail_msg("%s, layer %zu, row %zu%s: difference %g, gradient %g (at most about %g)", shapes[c].name, l, row,
                             k % 2 ? " along" : "", got, want, 2.0 * most);
            }
        free(u);
        free(g);
        close_bench(&b);
    }
}

/* The same bits on one thread and on four. */
static void threads_change_nothing(void **state) {
    (void)state;
    for (size_t c = 0; c < SHAPES; c++) {
        bench b;
        float *g[2];
        for (unsigned k = 0; k < 2; k++) {
            open_bench(&b, &shapes[c], 1 + 3 * k);
            g[k] = gradients(&b);
            close_bench(&b);
        }
        assert_memory_equal(g[0], g[1], LAYERS * ROWS * EMBD * sizeof(float));
        free(g[0]);
        free(g[1]);
    }
}

/* |dPhi/da| [n_layer][ROWS] of a tiny model's file in one form. */
static float *norms(const char *path, pd_mat_form form, size_t *n) {
    static bench b;
    memset(&b, 0, sizeof b);
    b.rng = (pd_rng){11};
    pd_err err = {0};
    pd_gguf *file = NULL;
    pd_model *m = NULL;
    assert_int_equal(pd_gguf_open(&file, path, &err), PD_OK);
    assert_int_equal(pd_model_open(&m, file, form, 0, NULL, NULL, NULL, &err), PD_OK);
    b.m = *m;
    set_up(&b, 2, form == PD_FORM_F32);
    float *g = gradients(&b);
    *n = m->hp.n_layer * ROWS;
    for (size_t i = 0; i < *n; i++) g[i] = cblas_snrm2((int)m->hp.n_embd, g + i * m->hp.n_embd, 1);
    close_bench(&b);
    pd_model_close(m);
    pd_gguf_close(file);
    return g;
}

/* Packed matrices, bf16 and f16: the numbers that steps of 1/127 allow. */
static void few_bits_come_near(void **state) {
    (void)state;
    for (int arch = TINY_LLAMA; arch <= TINY_GEMMA3; arch++) {
        char path[] = "/tmp/pressd-reverse-XXXXXX";
        const int fd = mkstemp(path);
        assert_true(fd >= 0);
        close(fd);
        assert_true(tiny_model_write(path, (tiny_arch)arch, TINY_Q8_0, 3));
        size_t n;
        float *exact = norms(path, PD_FORM_F32, &n), *packed = norms(path, PD_FORM_PACKED, &n);
        double off = 0.0, all = 0.0;
        for (size_t i = 0; i < n; i++) {
            off += fabs((double)packed[i] - exact[i]);
            all += exact[i];
        }
        if (!(off <= 0.05 * all)) fail_msg("%s: off by %g of %g", arch == TINY_LLAMA ? "llama" : "gemma3", off, all);
        assert_true(off > 0.0);
        free(exact);
        free(packed);
        unlink(path);
    }
}

/* What it takes can be counted, or it says so. */
static void sizes_are_counted(void **state) {
    (void)state;
    bench b;
    open_bench(&b, &shapes[0], 1);
    const uint64_t few = pd_reverse_bytes(&b.m.hp, 1, 64, 100), more = pd_reverse_bytes(&b.m.hp, 1, 128, 100);
    const size_t row = (LAYERS + 1) * EMBD + 2 * HEADS * DIM + 3 * 2 * DIM + 2 * PD_REVERSE_TILE * HEADS;
    assert_int_equal(more - few, 64 * row * sizeof(float));
    assert_true(pd_reverse_bytes(&b.m.hp, 1, SIZE_MAX / 8, 100) == UINT64_MAX);
    pd_reverse *r;
    pd_err err = {0};
    assert_int_equal(pd_reverse_open(&r, &b.fwd, &b.attn, &b.codec, SIZE_MAX / 8, 100, &err), PD_ENOMEM);
    assert_null(r);
    close_bench(&b);
}

int main(void) {
    openblas_set_num_threads(1); /* as the engine does */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_differences),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(few_bits_come_near),
        cmocka_unit_test(sizes_are_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
