/* SPDX-License-Identifier: Apache-2.0 */
/* How a prompt is cut in tiles leaves no trace: attention, its column sums and the
 * query statistics are the same bits for tiles of 128, 32 and everything between. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/num.h"
#include "engine/base/rng.h"
#include "engine/run/collect.h"
#include "engine/run/seq.h"

#include <stdlib.h>
#include <string.h>

enum { HEADS = 6, HEADS_KV = 2, DIM = 32, ROWS = 300, EMBD = 8, NQ = HEADS * DIM };

/* Rows of the tile that begins at `row`, by kind of cut. */
static size_t cut(int kind, size_t row) {
    static const size_t size[] = {PD_TILE, PD_TILE_CUT, 3 * PD_TILE_CUT};
    const size_t n = kind < 3 ? size[kind] : (1 + row / PD_TILE_CUT % 4) * PD_TILE_CUT;
    return pd_min_size(n, ROWS - row);
}

static float *draw(size_t n, uint64_t seed, float mean) {
    pd_rng rng = {seed};
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = mean + pd_rng_f32(&rng);
    return x;
}

typedef struct {
    float out[ROWS * NQ], sums[HEADS * ROWS];
} seen;

static seen *attend(int kind, unsigned threads, uint32_t window, bool exact) {
    static pd_model model;
    model.hp = (pd_hparams){.n_head = HEADS, .n_head_kv = HEADS_KV, .head_dim = DIM, .attn_scale = 0.2f};
    pd_kernels kern;
    pd_kernels_init(&kern, pd_cpu_detect());
    pd_workers *workers;
    pd_attn a;
    pd_stage st;
    assert_int_equal(pd_workers_open(&workers, threads, NULL), PD_OK);
    assert_int_equal(pd_attn_init(&a, &model, &kern, workers, 1, ROWS, exact, NULL), PD_OK);
    assert_int_equal(pd_stage_open(&st, HEADS_KV, DIM, ROWS, NULL), PD_OK);
    float *q = draw(ROWS * NQ, 1, 0.0f), *kv = draw(2 * HEADS_KV * ROWS * DIM, 2, 0.0f);
    memcpy(st.k, kv, HEADS_KV * ROWS * DIM * sizeof *kv);
    memcpy(st.v, kv + HEADS_KV * ROWS * DIM, HEADS_KV * ROWS * DIM * sizeof *kv);
    seen *s = calloc(1, sizeof *s);
    for (size_t row = 0, n; row < ROWS; row += n) {
        n = cut(kind, row);
        pd_attn_tile(&a, &st, q + row * NQ, row, n, window, s->out + row * NQ);
        pd_attn_tile_sums(&a, &st, q + row * NQ, row, n, window, s->sums, ROWS);
    }
    free(q);
    free(kv);
    pd_stage_close(&st);
    pd_attn_done(&a);
    pd_workers_close(workers);
    return s;
}

static void attention_does_not_depend_on_tiles(void **state) {
    (void)state;
    for (int c = 0; c < 4; c++) {
        const uint32_t window = c & 1 ? 70 : 0;
        seen *want = attend(0, 1, window, c & 2);
        for (int kind = 0; kind < 4; kind++) {
            for (unsigned threads = 1; threads <= 3; threads++) { /* decides the block of a task */
                seen *got = attend(kind, threads, window, c & 2);
                assert_memory_equal(got, want, sizeof *got);
                free(got);
            }
        }
        free(want);
    }
}

static pd_collect *collect(int kind, const pd_hparams *hp, const pd_press_needs *needs) {
    pd_collect *c = malloc(sizeof *c);
    pd_kernels kern;
    pd_kernels_init(&kern, pd_cpu_detect());
    assert_int_equal(pd_collect_init(c, needs, hp, &kern, NULL, ROWS, NULL), PD_OK);
    float *q = draw(ROWS * NQ, 3, 5.0f), *x = draw(ROWS * EMBD, 4, 0.0f);
    pd_collect_begin(c);
    for (size_t row = 0, n; row < ROWS; row += n) {
        n = cut(kind, row);
        pd_collect_raw(c, row, n, q + row * NQ, x + row * EMBD);
    }
    pd_collect_finish(c);
    free(q);
    free(x);
    return c;
}

static void moments_do_not_depend_on_tiles(void **state) {
    (void)state;
    static pd_hparams hp = {.n_head = HEADS, .n_head_kv = HEADS_KV, .head_dim = DIM, .n_embd = EMBD};
    const pd_press_needs needs = {.bits = PD_NEEDS_Q_COV | PD_NEEDS_X, .n_moments = 2, .n_sink = {4, 45}};
    pd_collect *want = collect(0, &hp, &needs);
    for (int kind = 1; kind < 4; kind++) {
        pd_collect *got = collect(kind, &hp, &needs);
        for (size_t i = 0; i < needs.n_moments; i++) {
            assert_int_equal(got->moments[i].count, ROWS - needs.n_sink[i]);
            assert_memory_equal(got->moments[i].mean, want->moments[i].mean, NQ * sizeof(float));
            assert_memory_equal(got->moments[i].cov, want->moments[i].cov, NQ * DIM * sizeof(float));
        }
        assert_memory_equal(got->x, want->x, ROWS * EMBD * sizeof(float));
        pd_collect_done(got);
        free(got);
    }
    pd_collect_done(want);
    free(want);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_does_not_depend_on_tiles),
        cmocka_unit_test(moments_do_not_depend_on_tiles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
