/* SPDX-License-Identifier: Apache-2.0 */
/* compression/calibrate_gate: gates trained on drawn rows foretell scores of rows they
 * never saw, those that no linear function of a row does included; as fastkvzip reads
 * them.  (Real models: tests/golden/check_calibrate.py, tests/bench/quality.py.) */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compression/calibrate_int.h"
#include "compression/deferred.h"
#include "engine/base/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 3, LAYER = 1, HQ = 4, H = 2, E = 40, BEFORE = 5, PER = 640, PROMPTS = 16, ROWS = PER * PROMPTS, NEW = 1500 };

static pd_kernels kern;
static const pd_press_model model = {.n_layer = LAYERS, .n_head = HQ, .n_head_kv = H, .head_dim = 16, .n_embd = E};

/* Channels of several sizes; u[E] is what the scores are made of. */
static float size_of(size_t channel) {
    return 1.0f + (float)(channel % 3);
}

static void draw(size_t n, pd_rng *rng, float *x, float *score) {
    for (size_t t = 0; t < n; t++) {
        float u[E];
        for (size_t i = 0; i < E; i++) {
            u[i] = pd_rng_f32(rng) + pd_rng_f32(rng);
            x[t * E + i] = (u[i] + (i == 7 ? 1.0f : 0.0f)) * size_of(i); /* and one of them no mean of 0 */
        }
        score[t] = 1.0f / (1.0f + expf(1.0f - 3.0f * u[0] + 2.0f * u[4]));
        score[n + t] = 1.0f / (1.0f + expf(2.0f - 4.0f * u[2] * u[3]));
    }
}

typedef struct {
    float *x, *score; /* [BEFORE + ROWS][E]; [PROMPTS][H][PER] */
    pd_arena tmp;
} rows;

static rows open_rows(void) {
    rows r = {.x = calloc((BEFORE + ROWS) * E, sizeof(float)), .score = calloc(ROWS * H, sizeof(float))};
    pd_rng rng = {77};
    if (!r.x || !r.score) abort();
    for (size_t p = 0; p < PROMPTS; p++) draw(PER, &rng, r.x + (BEFORE + p * PER) * E, r.score + p * PER * H);
    return r;
}

static void close_rows(rows *r) {
    pd_arena_done(&r->tmp);
    free(r->x);
    free(r->score);
}

/* All prompts in one layer, the others are never shown; before a prompt's text stand some other slots. */
static pd_press_data *train(rows *r, pd_workers *workers) {
    pd__gates *g = NULL;
    pd_press_data *d = NULL;
    pd_err err = {0};
    assert_int_equal(pd_press_data_new(&d, &model, 1, &err), PD_OK);
    assert_int_equal(pd__gates_open(&g, &model, ROWS, &err), PD_OK);
    for (size_t p = 0; p < PROMPTS; p++) {
        const pd_view view = {.layer = LAYER, .n_layer = LAYERS, .n_embd = E, .x = r->x + p * PER * E,
                              .kern = &kern, .tmp = &r->tmp};
        if (pd__gates_add(g, &view, BEFORE, PER, p * PER, r->score + p * PER * H, &err) != PD_OK) fail_msg("%s", err.msg);
    }
    if (pd__gates_train(g, 0, 1, workers, d, &err) != PD_OK || pd__gates_train(g, 1, LAYERS - 1, workers, d, &err) != PD_OK)
        fail_msg("%s", err.msg);
    pd__gates_close(g);
    if (pd_press_data_check(d, &err) != PD_OK) fail_msg("%s", err.msg);
    assert_int_equal(pd_press_data_have(d), 1u << PD_SET_FASTKVZIP);
    return d;
}

/* ---- what the press makes of it ---- */

static const float *by;

static int rising(const void *a, const void *b) {
    const float x = by[*(const uint32_t *)a], y = by[*(const uint32_t *)b];
    return (x > y) - (x < y);
}

/* Spearman's rank correlation of a[n] and b[n]. */
static double ranks_agree(const float *a, const float *b, size_t n) {
    uint32_t *order = malloc(n * sizeof *order);
    double *rank = malloc(n * sizeof *rank), sum = 0.0;
    if (!order || !rank) abort();
    for (size_t i = 0; i < n; i++) order[i] = (uint32_t)i;
    by = a;
    qsort(order, n, sizeof *order, rising);
    for (size_t i = 0; i < n; i++) rank[order[i]] = (double)i;
    by = b;
    qsort(order, n, sizeof *order, rising);
    for (size_t i = 0; i < n; i++) sum += pow(rank[order[i]] - (double)i, 2.0);
    free(order);
    free(rank);
    return 1.0 - 6.0 * sum / ((double)n * ((double)n * (double)n - 1.0));
}

static void gates_learn_what_they_never_saw(void **state) {
    (void)state;
    rows r = open_rows();
    pd_press_data *d = train(&r, NULL);
    float *x = calloc(NEW * E, sizeof *x), *want = calloc(NEW * H, sizeof *want), *got[H];
    if (!x || !want) abort();
    for (size_t h = 0; h < H; h++)
        if (!(got[h] = calloc(NEW, sizeof(float)))) abort();
    pd_rng rng = {123};
    draw(NEW, &rng, x, want);
    const pd_press_inst inst = {.press = pd_press_find("fastkvzip"), .data = d};
    const pd_view view = {.layer = LAYER, .n_layer = LAYERS, .n_head = HQ, .n_head_kv = H, .head_dim = 16, .n_embd = E, .n = NEW,
                          .x = x, .x_rows = NEW, .kern = &kern, .tmp = &r.tmp};
    pd_err err = {0};
    if (inst.press->deferred->score(&inst, &view, got, &err) != PD_OK) fail_msg("%s", err.msg);
    for (size_t h = 0; h < H; h++) {
        double mean = 0.0, truth = 0.0;
        for (size_t i = 0; i < NEW; i++) {
            mean += (double)got[h][i] / NEW;
            truth += (double)want[h * NEW + i] / NEW;
        }
        const double rho = ranks_agree(got[h], want + h * NEW, NEW);
        print_message("head %zu: rank correlation %.3f, mean %.3f of %.3f\n", h, rho, mean, truth);
        assert_true(rho > (h == 0 ? 0.98 : 0.967)); /* .960 and .958 with either gradient wrong */
        assert_true(fabs(mean - truth) < 0.04); /* heads are ranked against each other: their level counts */
        free(got[h]);
    }
    free(x);
    free(want);
    pd_press_data_close(d);
    close_rows(&r);
}

/* Norms are what they were set to, and layers that were not shown stay neutral. */
static void only_shown_layers_are_trained(void **state) {
    (void)state;
    rows r = open_rows();
    pd_press_data *d = train(&r, NULL);
    for (int id = PD_DATA_GATE_Q; id <= PD_DATA_GATE_B; id++) {
        const float *t = pd_press_data_get(d, (pd_data_id)id);
        const size_t each = pd_press_data_elems(d, (pd_data_id)id) / LAYERS;
        const bool norm = id == PD_DATA_GATE_Q_NORM || id == PD_DATA_GATE_K_NORM;
        for (size_t l = 0; l < LAYERS; l++) {
            size_t zero = 0;
            for (size_t i = l * each; i < (l + 1) * each; i++) {
                zero += t[i] == 0.0f;
                if (norm) assert_true(t[i] == (id == PD_DATA_GATE_Q_NORM ? 2.0f : 1.0f));
            }
            if (!norm) assert_int_equal(zero, l == LAYER ? 0 : each);
        }
    }
    pd_press_data_close(d);
    close_rows(&r);
}

static void workers_do_not_change_a_bit(void **state) {
    (void)state;
    rows r = open_rows();
    pd_workers *workers = NULL;
    assert_int_equal(pd_workers_open(&workers, 3, NULL), PD_OK);
    pd_press_data *a = train(&r, NULL), *b = train(&r, workers);
    for (int id = PD_DATA_GATE_Q; id <= PD_DATA_GATE_B; id++)
        assert_memory_equal(pd_press_data_get(a, (pd_data_id)id), pd_press_data_get(b, (pd_data_id)id),
                            pd_press_data_elems(a, (pd_data_id)id) * sizeof(float));
    pd_workers_close(workers);
    pd_press_data_close(a);
    pd_press_data_close(b);
    close_rows(&r);
}

int main(void) {
    pd_kernels_init(&kern, 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gates_learn_what_they_never_saw),
        cmocka_unit_test(only_shown_layers_are_trained),
        cmocka_unit_test(workers_do_not_change_a_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
