/* SPDX-License-Identifier: Apache-2.0 */
/* Joint latents (engine/cache/joint.h) and reading some of them (engine/run/joint_read.h): keys read back
 * beside the same in double with plain angles, tokens chosen beside a plain choice, and attention beside
 * a softmax over the rows that are read back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/num.h"
#include "engine/base/rng.h"
#include "engine/cache/kv.h"
#include "engine/cache/pools.h"
#include "engine/run/attn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N = PD_PAGE_TOKENS, LAYERS = 2, HEADS_MAX = 3, GROUP = 2, SLOTS = 1400, D_MAX = 64, SINKS = 5, ROW_MAX = HEADS_MAX * D_MAX };

typedef struct {
    pd_kernels kern;
    pd_codec codec;
    pd_kvpools pools;
    pd_kv kv;
    size_t heads, d, rank;
    pd_turns turns;
    float freq[D_MAX / 2], *basis;
    pd_joint joint[LAYERS];
    float *k, *v; /* [LAYERS][SLOTS][heads * d] as they came */
    int32_t pos[LAYERS][SLOTS];
    size_t n[LAYERS];
    pd_rng rng;
} world;

static void open_kv(world *w, pd_kv *kv) {
    static const size_t slots[LAYERS] = {SLOTS, SLOTS};
    pd_kvpool *open, *packed;
    assert_int_equal(pd_kvpools_get(&w->pools, &w->codec, w->d, w->d, &open, NULL), PD_OK);
    assert_int_equal(pd_kvpools_get(&w->pools, &w->codec, w->rank / w->heads, w->d, &packed, NULL), PD_OK);
    assert_int_equal(pd_kv_init(kv, open, &w->codec, &w->kern, LAYERS, w->heads, w->d, slots, NULL), PD_OK);
    pd_kvpool *const pool[LAYERS] = {packed, packed};
    assert_int_equal(pd_kv_set_joint(kv, pool, w->joint, SINKS, NULL), PD_OK);
}

/* Rows of the basis are any: what one is good for is another matter. */
static world *open_world(pd_kv_type key, pd_kv_type value, size_t heads, size_t d, size_t sixteenths) {
    world *w = calloc(1, sizeof *w);
    const size_t row = heads * d;
    *w = (world){.heads = heads, .d = d, .rank = row * sixteenths / 16, .codec = pd_codec_of(key, value), .rng = {d + heads + sixteenths}};
    pd_kernels_init(&w->kern, pd_cpu_detect());
    for (size_t i = 0; i < d / 2; i++) w->freq[i] = powf(1000.0f, -2.0f * (float)i / (float)d);
    assert_int_equal(pd_turns_init(&w->turns, w->freq, d / 2, 1 << 16, NULL), PD_OK);
    assert_int_equal(pd_kvpools_init(&w->pools, &w->codec, d, 16 << 20, 0, NULL), PD_OK);
    w->basis = malloc(LAYERS * row * row * sizeof *w->basis);
    w->k = malloc(LAYERS * SLOTS * row * sizeof *w->k);
    w->v = malloc(LAYERS * SLOTS * row * sizeof *w->v);
    for (size_t i = 0; i < LAYERS * row * row; i++) w->basis[i] = pd_rng_f32(&w->rng) / sqrtf((float)row / 3.0f);
    for (size_t l = 0; l < LAYERS; l++)
        w->joint[l] = (pd_joint){.n_head = heads, .head_dim = d, .rank = w->rank, .basis = w->basis + l * row * row, .turns = &w->turns};
    open_kv(w, &w->kv);
    return w;
}

static void close_world(world *w) {
    pd_kv_done(&w->kv);
    assert_int_equal(pd_kvpools_held(&w->pools, PD_PAGE_SEQ), 0);
    assert_true(pd_kvpools_check(&w->pools));
    pd_kvpools_done(&w->pools);
    pd_turns_done(&w->turns);
    free(w->basis);
    free(w->k);
    free(w->v);
    free(w);
}

/* n tokens more, packed at once or left open; positions rise by one or two. */
static void add(world *w, size_t layer, size_t n, bool packed) {
    const size_t row = w->heads * w->d, at = w->n[layer];
    float *k = w->k + (layer * SLOTS + at) * row, *v = w->v + (layer * SLOTS + at) * row;
    for (size_t i = 0; i < n * row; i++) {
        k[i] = 2.0f * pd_rng_f32(&w->rng) - 1.0f + (i % 7 == 0);
        v[i] = 2.0f * pd_rng_f32(&w->rng) - 1.0f;
    }
    for (size_t i = 0; i < n; i++)
        w->pos[layer][at + i] = at + i ? w->pos[layer][at + i - 1] + 1 + (int32_t)(pd_rng_u64(&w->rng) % 16 == 0) : 0;
    if (packed) {
        assert_int_equal(pd_kv_append_joint(&w->kv, layer, k, v, w->d, row, w->pos[layer] + at, n, NULL), PD_OK);
    } else {
        for (size_t h = 0; h < w->heads; h++)
            assert_int_equal(pd_kv_append(&w->kv, layer, h, k + h * w->d, v + h * w->d, row, w->pos[layer] + at, NULL, n, NULL), PD_OK);
    }
    w->n[layer] += n;
}

/* Turned by `by` positions, in double. */
static void turn(const world *w, const double *x, double by, double *y) {
    const size_t half = w->d / 2;
    for (size_t i = 0; i < half; i++) {
        const double c = cos(by * (double)w->freq[i]), s = sin(by * (double)w->freq[i]);
        y[i] = x[i] * c - x[i + half] * s;
        y[i + half] = x[i + half] * c + x[i] * s;
    }
}

/* Rows of all heads before RoPE -> the first n numbers. */
static void numbers(const world *w, size_t layer, const double *x, size_t n, double *c) {
    const size_t row = w->heads * w->d;
    for (size_t r = 0; r < n; r++) {
        c[r] = 0.0;
        for (size_t i = 0; i < row; i++) c[r] += (double)w->joint[layer].basis[r * row + i] * x[i];
    }
}

static void before_rope(const world *w, const float *x, int32_t pos, double *y) {
    double row[ROW_MAX];
    for (size_t i = 0; i < w->heads * w->d; i++) row[i] = (double)x[i];
    for (size_t h = 0; h < w->heads; h++) turn(w, row + h * w->d, -(double)pos, y + h * w->d);
}

/* What a packed key reads as: R B^T B R^-1 k, the first positions as they are. */
static void expect_keys(world *w, size_t layer, double tolerance) {
    const size_t row = w->heads * w->d, n = w->n[layer], n_pack = pd_kv_at(&w->kv, layer, 0)->n_pack;
    float *k = malloc(n * w->d * sizeof *k), *v = malloc(n * w->d * sizeof *v);
    int32_t *pos = malloc(n * sizeof *pos);
    for (size_t h = 0; h < w->heads; h++) {
        assert_int_equal(pd_kv_at(&w->kv, layer, h)->n, n);
        pd_kv_read(&w->kv, layer, h, k, v, pos);
        assert_memory_equal(pos, w->pos[layer], n * sizeof *pos);
        for (size_t t = 0; t < n; t++) {
            const float *src = w->k + (layer * SLOTS + t) * row;
            double x[ROW_MAX], c[ROW_MAX], y[ROW_MAX] = {0}, want[D_MAX];
            before_rope(w, src, pos[t], x);
            numbers(w, layer, x, w->rank, c);
            for (size_t r = 0; r < w->rank; r++)
                for (size_t i = 0; i < row; i++) y[i] += c[r] * (double)w->joint[layer].basis[r * row + i];
            turn(w, y + h * w->d, (double)pos[t], want);
            const bool whole = t >= n_pack || pos[t] < SINKS;
            for (size_t i = 0; i < w->d; i++) {
                const double target = whole ? (double)src[h * w->d + i] : want[i];
                if (fabs((double)k[t * w->d + i] - target) > (whole ? 1e-3 : tolerance))
                    fail_msg("head %zu slot %zu channel %zu: %g, not %g", h, t, i, (double)k[t * w->d + i], target);
            }
        }
    }
    free(k);
    free(v);
    free(pos);
}

static const struct {
    pd_kv_type key, value;
    size_t heads, d, sixteenths;
} worlds[] = {
    {PD_KV_F16, PD_KV_F16, 3, 64, 8}, {PD_KV_F16, PD_KV_Q4, 3, 64, 4}, {PD_KV_F32, PD_KV_F32, 2, 16, 16},
    {PD_KV_F16, PD_KV_Q8_0, 1, 32, 2}, {PD_KV_F16, PD_KV_F16, 3, 48, 1},
};
enum { WORLDS = sizeof worlds / sizeof *worlds };

/* Packed at once, packed later, or both; copied; pages and bytes of both kinds. */
static void keys_of_all_heads_share_their_numbers(void **state) {
    (void)state;
    for (size_t i = 0; i < WORLDS; i++) {
        world *w = open_world(worlds[i].key, worlds[i].value, worlds[i].heads, worlds[i].d, worlds[i].sixteenths);
        const size_t open_page = pd_codec_page_bytes(&w->codec, w->d, w->d), page = pd_codec_page_bytes(&w->codec, w->rank / w->heads, w->d);
        add(w, 0, 64, true);
        add(w, 0, 40, false);
        assert_int_equal(pd_kv_pack_joint(&w->kv, 0, 32, NULL), PD_OK);
        add(w, 1, 52, false);
        assert_int_equal(pd_kv_pack_joint(&w->kv, 1, 16, NULL), PD_OK);
        assert_int_equal(pd_kv_pack_joint(&w->kv, 1, 32, NULL), PD_OK);
        assert_int_equal(pd_kv_at(&w->kv, 0, 0)->n_pack, 96);
        assert_int_equal(pd_kv_at(&w->kv, 1, w->heads - 1)->n_pack, 48);
        /* 6 and 3 packed pages, one open in both */
        assert_int_equal(pd_kv_bytes(&w->kv), w->heads * (9 * page + 2 * open_page));
        assert_int_equal(pd_kvpools_held(&w->pools, PD_PAGE_SEQ), pd_kv_bytes(&w->kv));
        const double tolerance = w->codec.key == PD_KV_F32 ? 2e-5 : 2e-2;
        expect_keys(w, 0, tolerance);
        expect_keys(w, 1, tolerance);
        pd_kv copy;
        open_kv(w, &copy);
        assert_int_equal(pd_kv_copy(&copy, &w->kv, NULL), PD_OK);
        pd_kv_done(&w->kv);
        w->kv = copy;
        expect_keys(w, 0, tolerance);
        expect_keys(w, 1, tolerance);
        close_world(w);
    }
}

/* ---- reading ---- */

typedef struct {
    pd_model model;
    pd_workers *workers;
    pd_attn attn;
    pd_select sel;
    float q[HEADS_MAX * GROUP * D_MAX], out[HEADS_MAX * GROUP * D_MAX];
} reader;

static reader *open_reader(world *w, const pd_latent_read *rule) {
    static const size_t slots[LAYERS] = {SLOTS, SLOTS};
    static const uint32_t window[LAYERS] = {0};
    reader *r = calloc(1, sizeof *r);
    r->model.hp = (pd_hparams){.n_layer = LAYERS, .n_head = w->heads * GROUP, .n_head_kv = w->heads, .head_dim = w->d, .attn_scale = 0.25f};
    for (size_t l = 0; l < LAYERS; l++) r->model.hp.window[l] = window[l];
    assert_int_equal(pd_workers_open(&r->workers, 2, NULL), PD_OK);
    assert_int_equal(pd_attn_init(&r->attn, &r->model, &w->kern, r->workers, 1, SLOTS, false, NULL), PD_OK);
    pd_latent_rule latent = {.rank = w->rank / w->heads, .joint = true, .n_sink = SINKS, .read = *rule};
    for (size_t l = 0; l < LAYERS; l++) latent.layer[l] = (uint16_t)latent.rank;
    const pd_read_rule all = {.tau = 1.0};
    assert_int_equal(pd_select_init(&r->sel, &all, 9, &r->model.hp, slots, NULL), PD_OK);
    assert_int_equal(pd_select_latents(&r->sel, &latent, 9, &r->model.hp, w->codec.key, slots, NULL), PD_OK);
    return r;
}

static void close_reader(reader *r) {
    pd_select_done(&r->sel);
    pd_attn_done(&r->attn);
    pd_workers_close(r->workers);
    free(r);
}

static void step(world *w, reader *r, size_t layer) {
    pd_kv *kv = &w->kv;
    pd_select *sel = &r->sel;
    for (size_t i = 0; i < w->heads * GROUP * w->d; i++) r->q[i] = 2.0f * pd_rng_f32(&w->rng) - 0.7f;
    pd_attn_step(&r->attn, &kv, &sel, 1, layer, r->q, r->out);
}

/* Softmax over the rows that are read back, of which `in` tells.  Rebuilt keys are kept in f16: a score is off by
 * e <= 2^-11 sum |q k|, a weight by exp(2 e), and values are below 1. */
static void expect_attention(world *w, const reader *r, size_t layer, const bool *in) {
    const size_t n = w->n[layer];
    float *k = malloc(n * w->d * sizeof *k), *v = malloc(n * w->d * sizeof *v);
    for (size_t g = 0; g < w->heads * GROUP; g++) {
        double s[SLOTS], max = -INFINITY, sum = 0.0, e = 0.0, out[D_MAX] = {0};
        pd_kv_read(&w->kv, layer, g / GROUP, k, v, NULL);
        for (size_t t = 0; t < n; t++) {
            s[t] = 0.0;
            double size = 0.0;
            for (size_t i = 0; i < w->d; i++) {
                const double x = 0.25 * (double)r->q[g * w->d + i] * (double)k[t * w->d + i];
                s[t] += x;
                size += fabs(x);
            }
            if (!in[t]) continue;
            max = fmax(max, s[t]);
            e = fmax(e, size / 2048.0);
        }
        for (size_t t = 0; t < n; t++) {
            if (!in[t]) continue;
            const double weight = exp(s[t] - max);
            sum += weight;
            for (size_t i = 0; i < w->d; i++) out[i] += weight * (double)v[t * w->d + i];
        }
        for (size_t i = 0; i < w->d; i++)
            if (fabs((double)r->out[g * w->d + i] - out[i] / sum) > (w->codec.key == PD_KV_F16 ? 2.5 * e : 0.0) + 2e-5)
                fail_msg("query head %zu channel %zu of %zu slots: %g, not %g", g, i, n, (double)r->out[g * w->d + i], out[i] / sum);
    }
    free(k);
    free(v);
}

static void mark(const world *w, const reader *r, size_t layer, bool *in) {
    const pd_joint_look look = pd_joint_look_at(&r->sel.joint, &w->kv, layer);
    const size_t n_pack = pd_kv_at(&w->kv, layer, 0)->n_pack;
    for (size_t t = 0; t < w->n[layer]; t++) in[t] = t >= n_pack;
    for (size_t i = 0; i < look.n; i++) {
        assert_true(!look.slot || (look.slot[i] < n_pack && (i == 0 || look.slot[i] > look.slot[i - 1])));
        in[look.slot ? look.slot[i] : i] = true;
    }
}

/* Everything, in pieces and chunks; with no selection at all too. */
static void all_of_it_is_read_where_nothing_is_chosen(void **state) {
    (void)state;
    static const size_t lengths[][2] = {{16, 0}, {16, 1}, {512, 30}, {1296, 70}};
    for (size_t i = 0; i < WORLDS; i++) {
        for (size_t k = 0; k < 4; k++) {
            const pd_latent_read rule = {.share = 1.0, .score = 1, .reuse = 1};
            world *w = open_world(worlds[i].key, worlds[i].value, worlds[i].heads, worlds[i].d, worlds[i].sixteenths);
            reader *r = open_reader(w, &rule);
            bool in[SLOTS];
            assert_null(r->sel.rows);
            add(w, 1, lengths[k][0], true);
            if (lengths[k][1]) add(w, 1, lengths[k][1], false);
            step(w, r, 1);
            for (size_t t = 0; t < SLOTS; t++) in[t] = true;
            expect_attention(w, r, 1, in);
            close_reader(r);
            close_world(w);
        }
    }
}

/* The query's numbers times each token's, in double.  How far off a score is: f16 pages have planes in 8 bits, and the query is
 * rounded to as many; half a step, max / 254, of each times the other, and both. */
static double plain_scores(world *w, const reader *r, size_t layer, size_t n_score, double *s) {
    const size_t n_pack = pd_kv_at(&w->kv, layer, 0)->n_pack;
    float mean[ROW_MAX];
    double x[ROW_MAX], q[ROW_MAX];
    for (size_t i = 0; i < w->heads * w->d; i++) {
        mean[i] = 0.0f;
        for (size_t g = 0; g < GROUP; g++) mean[i] += r->q[(i / w->d * GROUP + g) * w->d + i % w->d] / GROUP;
    }
    before_rope(w, mean, w->pos[layer][w->n[layer] - 1], x);
    numbers(w, layer, x, n_score, q);
    float *c = malloc(n_pack * w->rank * sizeof *c);
    int32_t pos[SLOTS];
    pd_kv_read_joint(&w->kv, layer, NULL, 0, n_pack, c, pos);
    assert_memory_equal(pos, w->pos[layer], n_pack * sizeof *pos);
    double off = 1e-4;
    for (size_t t = 0; t < n_pack; t++) {
        double rounding = 1e-4;
        s[t] = 0.0;
        for (size_t g = 0; g < n_score; g += 32) {
            double most[2] = {0}, sum[2] = {0};
            for (size_t i = g; i < n_score && i < g + 32; i++) {
                const double y[2] = {q[i], (double)c[t * w->rank + i]};
                s[t] += y[0] * y[1];
                for (int a = 0; a < 2; a++) {
                    most[a] = fmax(most[a], fabs(y[a]));
                    sum[a] += fabs(y[a]);
                }
            }
            rounding += (most[0] * sum[1] + most[1] * sum[0] + 32 * most[0] * most[1] / 254) / 254 * 1.002;
        }
        off = fmax(off, rounding);
    }
    free(c);
    return w->codec.key == PD_KV_F16 ? off : 1e-4;
}

/* k of n: no chosen one is worse than one that is not, but for `off` in each; the first `sinks` are among them. */
static void expect_best(const double *s, const bool *in, size_t n, size_t k, size_t sinks, double off) {
    double worst = INFINITY, best = -INFINITY;
    size_t count = 0;
    for (size_t t = 0; t < n; t++) {
        count += in[t];
        if (t < sinks) assert_true(in[t]);
        else if (in[t]) worst = fmin(worst, s[t]);
        else best = fmax(best, s[t]);
    }
    assert_int_equal(count, k);
    if (worst < best - 2 * off) fail_msg("of %zu tokens one of %g is read, one of %g is not", n, worst, best);
}

static void tokens_are_those_of_the_highest_scores(void **state) {
    (void)state;
    for (size_t i = 0; i < WORLDS; i++) {
        for (int pages = 0; pages < 2; pages++) {
            world *w = open_world(worlds[i].key, worlds[i].value, worlds[i].heads, worlds[i].d, worlds[i].sixteenths);
            const size_t n_score = w->rank > 3 ? w->rank - w->rank / 3 : 1; /* a part of a head's numbers too */
            const pd_latent_read rule = {.share = 0.2, .score = (uint16_t)n_score, .reuse = 1, .pages = pages};
            reader *r = open_reader(w, &rule);
            static double s[SLOTS];
            bool in[SLOTS];
            add(w, 1, 1040, true);
            add(w, 1, 20, false);
            size_t sinks = 0;
            while (w->pos[1][sinks] < SINKS) sinks++;
            uint64_t read = 0;
            for (int again = 0; again < 3; again++) {
                step(w, r, 1);
                mark(w, r, 1, in);
                expect_attention(w, r, 1, in);
                const double off = plain_scores(w, r, 1, n_score, s);
                if (!pages) {
                    expect_best(s, in, 1040, 208 + sinks, sinks, off);
                } else {
                    double page[SLOTS / N];
                    bool of_page[SLOTS / N];
                    for (size_t p = 0; p < 65; p++) {
                        double sum = 0.0;
                        for (size_t t = p * N; t < (p + 1) * N; t++) {
                            sum += exp(0.25 * s[t]);
                            assert_true(in[t] == in[p * N]);
                        }
                        page[p] = log(sum);
                        of_page[p] = in[p * N];
                    }
                    expect_best(page, of_page, 65, 14, 1, 0.25 * off);
                }
                read += (pages ? 14 * N : 208 + sinks) + 20;
            }
            assert_int_equal(r->sel.rows[1], 3 * 1060 * w->heads);
            assert_int_equal(r->sel.keys[1], read * w->heads);
            assert_int_equal(r->sel.values[1], read * w->heads);
            assert_int_equal(r->sel.rows[0], 0);
            close_reader(r);
            close_world(w);
        }
    }
}

/* Choices of many sizes, one after the other: a key that is kept is its token's, none is written over. */
static void kept_keys_are_those_of_their_tokens(void **state) {
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        world *w = open_world(i ? PD_KV_F32 : PD_KV_F16, PD_KV_F32, 2, 16, 8);
        const pd_latent_read rule = {.share = 0.3, .score = 8, .reuse = 1 + 4 * i};
        reader *r = open_reader(w, &rule);
        bool in[SLOTS];
        size_t fresh = 0, kept = 0;
        add(w, 1, 96, true);
        add(w, 1, 33, false);
        for (size_t t = 0; t < 60; t++) {
            if (t % 4 == 3) {
                add(w, 1, 16, false);
                assert_int_equal(pd_kv_pack_joint(&w->kv, 1, 16, NULL), PD_OK);
            }
            add(w, 1, 1, false);
            step(w, r, 1);
            mark(w, r, 1, in);
            expect_attention(w, r, 1, in);
            const pd_joint_look look = pd_joint_look_at(&r->sel.joint, &w->kv, 1);
            bool used[SLOTS] = {false};
            for (size_t k = 0; k < look.n; k++) {
                const uint32_t row = look.row[k] & ~PD_JOINT_FRESH;
                assert_true(row < r->sel.joint.n_row && !used[row]);
                used[row] = true;
                *(look.row[k] & PD_JOINT_FRESH ? &fresh : &kept) += 1;
            }
        }
        assert_true(fresh > 100 && kept > 100);
        close_reader(r);
        close_world(w);
    }
}

/* Between two choices: the same tokens and those projected meanwhile, in each layer its own. */
static void a_choice_serves_several_steps(void **state) {
    (void)state;
    world *w = open_world(PD_KV_F16, PD_KV_F16, 3, 64, 8);
    const pd_latent_read rule = {.share = 0.1, .score = 40, .reuse = 3};
    reader *r = open_reader(w, &rule);
    bool in[LAYERS][SLOTS], was[LAYERS][SLOTS];
    for (size_t l = 0; l < LAYERS; l++) {
        add(w, l, 640, true);
        add(w, l, 20, false);
    }
    size_t changed = 0;
    for (size_t t = 0; t < 12; t++) {
        for (size_t l = 0; l < LAYERS; l++) {
            if (t == 4) assert_int_equal(pd_kv_pack_joint(&w->kv, l, 16, NULL), PD_OK);
            add(w, l, 1, false);
            step(w, r, l);
            mark(w, r, l, in[l]);
            expect_attention(w, r, l, in[l]);
            for (size_t i = 0; t % 3 && i < w->n[l] - 1; i++)
                if (in[l][i] != was[l][i]) fail_msg("step %zu, layer %zu: slot %zu", t, l, i);
            if (t && t % 3 == 0) changed += memcmp(in[l], was[l], 640 * sizeof(bool)) != 0;
            memcpy(was[l], in[l], sizeof in[l]);
        }
    }
    assert_true(changed == 6);
    close_reader(r);
    close_world(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_of_all_heads_share_their_numbers),
        cmocka_unit_test(all_of_it_is_read_where_nothing_is_chosen),
        cmocka_unit_test(tokens_are_those_of_the_highest_scores),
        cmocka_unit_test(kept_keys_are_those_of_their_tokens),
        cmocka_unit_test(a_choice_serves_several_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
