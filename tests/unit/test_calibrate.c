/* SPDX-License-Identifier: Apache-2.0 */
/* engine/run/calibrate on tiny models: what must hold of any measured data.  (The
 * numbers themselves, beside torch's: tests/golden/check_calibrate.py.) */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compression/calibrate.h"
#include "engine/run/calibrate.h"
#include "tests/unit/engine_case.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { ALL = PD_CALIB_TEXT | PD_CALIB_REPEAT, TEXT_LEN = 400 };

static const char *text_of(size_t n) {
    static char s[TEXT_LEN + 1];
    for (size_t i = 0; i < n; i++) s[i] = (char)('a' + (i * i + i / 7) % 23);
    s[n] = '\0';
    return s;
}

static size_t n_progress;

static void on_progress(void *arg, size_t done, size_t all) {
    (void)arg;
    assert_true(done == ++n_progress && done <= all);
}

static pd_status measure(pd_engine *e, unsigned sets, size_t len, size_t chunk, pd_press_data *d, pd_err *err) {
    const pd_calibrate_opts o = {.text = text_of(len), .len = len, .sets = sets, .tokens = 256, .chunk = chunk,
                                 .repeat_tokens = 100};
    n_progress = 0;
    return pd_calibrate(e, &o, d, on_progress, NULL, err);
}

static pd_press_data *must_measure(pd_engine *e) {
    pd_press_data *d = NULL;
    pd_err err = {0};
    assert_int_equal(pd_press_data_new(&d, &pd_engine_get_info(e)->press_model, 1, &err), PD_OK);
    if (measure(e, ALL, TEXT_LEN, 50, d, &err) != PD_OK) fail_msg("%s", err.msg);
    /* 256 / 50 texts, some once more for bases, 100 / 50 repeated; each layer's codebooks; gates, 4 layers at a time */
    const size_t n_layer = pd_engine_get_info(e)->press_model.n_layer;
    assert_int_equal(n_progress, 5 + 4 + 2 + n_layer + (n_layer + 3) / 4);
    case_expect_idle(e);
    return d;
}

/* Everything that was measured, of the layers that are pressed. */
static void expect_sound(const pd_press_data *d, const pd_press_model *m, const bool *pressed) {
    const size_t dim = m->head_dim, hk = m->n_head_kv;
    const float *cov = pd_press_data_get(d, PD_DATA_QUERY_COV), *filter = pd_press_data_get(d, PD_DATA_QFILTERS);
    const float *duo = pd_press_data_get(d, PD_DATA_DUO_CALIBRATED), *curves = pd_press_data_get(d, PD_DATA_LUKV_CURVES);
    const float *weight = pd_press_data_get(d, PD_DATA_KVZAP_WEIGHT);
    for (size_t l = 0; l < m->n_layer; l++) {
        for (size_t h = l * m->n_head; h < (l + 1) * m->n_head; h++)
            for (size_t i = 0; i < dim; i++)
                for (size_t j = 0; j <= i; j++) {
                    const float *c = cov + h * dim * dim;
                    const float a = c[i * dim + j], b = c[j * dim + i];
                    assert_true(fabsf(a - b) <= 1e-6f * (1.0f + fabsf(a)));
                    if (i == j) assert_true(pressed[l] ? a > 0.0f : a == 0.0f);
                }
        for (size_t h = l * hk; h < (l + 1) * hk; h++) {
            float norm = 0.0f, any = 0.0f;
            for (size_t i = 0; i < dim; i++) norm += filter[h * dim + i] * filter[h * dim + i];
            for (size_t i = 0; i < m->n_embd; i++) any += fabsf(weight[h * m->n_embd + i]);
            /* the mean of unit vectors; areas of weights that sum to 1 */
            assert_true(pressed[l] ? norm > 0.01f && norm < 1.0001f : norm == 0.0f);
            assert_true(pressed[l] ? duo[h] > 0.0f && duo[h] <= 1.0f : duo[h] == -1.0f);
            assert_true(pressed[l] == (any > 0.0f));
        }
    }
    const float *gate = pd_press_data_get(d, PD_DATA_GATE_K);
    for (size_t l = 0, each = hk * PD_GATE_DIM * m->n_embd; l < m->n_layer; l++) {
        float any = 0.0f;
        for (size_t i = l * each; i < (l + 1) * each; i++) any += fabsf(gate[i]);
        assert_true(pressed[l] == (any > 0.0f));
    }
    for (size_t i = 0; i < PD_LUKV_ROWS; i++) {
        double sum = 0.0;
        size_t n = 0;
        for (size_t h = 0; h < m->n_layer * hk; h++) {
            const float p = curves[i * m->n_layer * hk + h], want = (float)(i + 1) / 100.0f;
            if (i > 0) assert_true(p >= curves[(i - 1) * m->n_layer * hk + h]);
            if (!pressed[h / hk]) assert_true(p == want);
            if (pressed[h / hk]) sum += (double)p;
            n += pressed[h / hk];
        }
        /* int(N (i + 1) / 100) of N slots */
        const double share = sum / (double)n, slots = (double)n * 50.0;
        assert_true(share <= (double)(i + 1) / 100.0 + 1e-6 && share > (double)(i + 1) / 100.0 - 1.0 / slots - 1e-6);
    }
}

/* Bases of the layers that are pressed; one that keeps everything gives the key back. */
static void expect_bases(const pd_press_data *d, const pd_press_model *m, const bool *pressed) {
    static const pd_data_id basis[][2] = {
        {PD_DATA_EIGEN_SHARED, PD_DATA_EIGEN_SHARED_ENERGY},   {PD_DATA_EIGEN_HEAD, PD_DATA_EIGEN_HEAD_ENERGY},
        {PD_DATA_EIGEN_ROTATED, PD_DATA_EIGEN_ROTATED_ENERGY}, {PD_DATA_EIGEN_VALUE, PD_DATA_EIGEN_VALUE_ENERGY},
        {PD_DATA_EIGEN_SCORE, PD_DATA_EIGEN_SCORE_ENERGY},     {PD_DATA_JOINT, PD_DATA_JOINT_ENERGY},
    };
    for (size_t b = 0; b < sizeof basis / sizeof *basis; b++) {
        const float *u = pd_press_data_get(d, basis[b][0]), *energy = pd_press_data_get(d, basis[b][1]);
        const float *back = basis[b][0] == PD_DATA_EIGEN_SCORE ? pd_press_data_get(d, PD_DATA_EIGEN_REBUILD) : u;
        const size_t n = pd_press_data_elems(d, basis[b][0]) / pd_press_data_elems(d, basis[b][1]);
        const size_t all = pd_press_data_elems(d, basis[b][1]) / n;
        for (size_t at = 0; at < all; at++) {
            const bool on = pressed[at * m->n_layer / all];
            const float *e = energy + at * n;
            for (size_t i = 0; i < n; i++) {
                assert_true(e[i] >= 0.0f && (i == 0 || e[i] <= e[i - 1]) && (i > 0 || (e[0] > 0.0f) == on));
                for (size_t k = 0; k < n; k++) {
                    double dot = 0.0;
                    for (size_t c = 0; c < n; c++) dot += (double)u[(at * n + i) * n + c] * (double)back[(at * n + k) * n + c];
                    if (fabs(dot - (on && i == k)) > 1e-3)
                        fail_msg("%s %zu: rows %zu, %zu: %g", pd_data_name(basis[b][0]), at, i, k, dot);
                }
            }
        }
    }
    /* more directions cost less, and the layers that are pressed say what */
    static const struct {
        pd_data_id id;
        size_t n;
    } error[] = {{PD_DATA_EIGEN_ERROR, PD_EIGEN_CURVES}, {PD_DATA_JOINT_ERROR, 1}};
    for (size_t i = 0; i < 2; i++) {
        const float *e = pd_press_data_get(d, error[i].id);
        for (size_t at = 0; at < m->n_layer * error[i].n; at++, e += PD_EIGEN_STEPS - 1) {
            const bool on = pressed[at / error[i].n];
            assert_true(on ? e[0] > 1e-4f && e[0] < 2.0f && e[PD_EIGEN_STEPS - 2] < e[0] : e[0] == 0.0f && e[3] == 0.0f);
        }
    }
    /* these prompts are too short to choose from (test_sals has longer ones) */
    const float *overlap = pd_press_data_get(d, PD_DATA_JOINT_OVERLAP);
    for (size_t i = 0; i < m->n_layer * PD_OVERLAP_SETUPS; i++) assert_true(overlap[i] == 0.0f);
    /* RoPE turns keys and leaves them as long as they are; the joint rows are the heads' side by side */
    const float *key = pd_press_data_get(d, PD_DATA_EIGEN_HEAD_ENERGY), *rotated = pd_press_data_get(d, PD_DATA_EIGEN_ROTATED_ENERGY);
    const float *shared = pd_press_data_get(d, PD_DATA_EIGEN_SHARED_ENERGY), *joint = pd_press_data_get(d, PD_DATA_JOINT_ENERGY);
    const size_t row = m->n_head_kv * m->head_dim;
    for (size_t l = 0; l < m->n_layer; l++) {
        double sum[4] = {0};
        for (size_t i = 0; i < row; i++) {
            sum[0] += (double)key[l * row + i];
            sum[1] += (double)rotated[l * row + i];
            sum[2] += (double)joint[l * row + i];
            if (i < m->head_dim) sum[3] += (double)shared[l * m->head_dim + i] * (double)m->n_head_kv;
        }
        for (int i = 1; i < 4; i++) assert_true(fabs(sum[i] - sum[0]) <= 1e-5 * sum[0]);
    }
}

/* Codebooks of the layers that are pressed: within the keys' reach, which RoPE does not change, and
 * nowhere all alike. */
static void expect_books(const pd_press_data *d, const pd_press_model *m, const bool *pressed) {
    const float *energy = pd_press_data_get(d, PD_DATA_EIGEN_HEAD_ENERGY);
    for (size_t b = 0; b < PD_BOOKS; b++) {
        const size_t n = pd_books[b].n_centroid, row = m->head_dim * n;
        const float *book = pd_press_data_get(d, (pd_data_id)(PD_DATA_BOOK + b));
        assert_int_equal(pd_press_data_elems(d, (pd_data_id)(PD_DATA_BOOK + b)), m->n_layer * m->n_head_kv * row);
        for (size_t h = 0; h < m->n_layer * m->n_head_kv; h++) {
            double square = 0.0, all = 0.0, spread = 0.0;
            static const float ones[64] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
            const bool on = pressed[h / m->n_head_kv];
            const float *w = on ? pd_press_data_get(d, PD_DATA_BOOK_WEIGHT) + h * m->head_dim / 2 : ones;
            for (size_t i = 0; i < m->head_dim / 2; i++) all += log((double)w[i]);
            assert_true(fabs(all) < 1e-3); /* 1 in the mean of the logarithm */
            all = 0.0;
            for (size_t i = 0; i < row; i++) square += pow((double)book[h * row + i] / (double)w[i / n % (m->head_dim / 2)], 2.0) / (double)n;
            for (size_t i = 0; i < row; i++) spread += fabs((double)book[h * row + i] - (double)book[h * row + i / n * n]);
            for (size_t i = 0; i < m->head_dim; i++) all += (double)energy[h * m->head_dim + i];
            assert_true(on ? square > 0.3 * all && square < 3.0 * all && spread > 0.0 : square == 0.0);
        }
    }
}

static void all_layers_of_llama(void **state) {
    (void)state;
    static const bool pressed[3] = {true, true, true};
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    pd_press_data *d = must_measure(e);
    expect_sound(d, &pd_engine_get_info(e)->press_model, pressed);
    expect_bases(d, &pd_engine_get_info(e)->press_model, pressed);
    expect_books(d, &pd_engine_get_info(e)->press_model, pressed);
    pd_press_data_close(d);
    pd_engine_close(e);
}

static void layers_with_windows_stay_neutral(void **state) {
    (void)state;
    static const bool pressed[7] = {[5] = true};
    pd_engine *e = case_open(TINY_GEMMA3, TINY_F32, &(case_opts){.compute = PD_COMPUTE_F32});
    pd_press_data *d = must_measure(e);
    expect_sound(d, &pd_engine_get_info(e)->press_model, pressed);
    expect_bases(d, &pd_engine_get_info(e)->press_model, pressed);
    expect_books(d, &pd_engine_get_info(e)->press_model, pressed);
    pd_press_data_close(d);
    pd_engine_close(e);
}

static void threads_do_not_change_a_bit(void **state) {
    (void)state;
    pd_press_data *d[2];
    for (int i = 0; i < 2; i++) {
        pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, &(case_opts){.threads = i ? 3 : 1});
        d[i] = must_measure(e);
        pd_engine_close(e);
    }
    for (int id = 0; id < PD_DATA_N; id++)
        if (pd_press_data_get(d[0], (pd_data_id)id))
            assert_memory_equal(pd_press_data_get(d[0], (pd_data_id)id), pd_press_data_get(d[1], (pd_data_id)id),
                                pd_press_data_elems(d[0], (pd_data_id)id) * sizeof(float));
    pd_press_data_close(d[0]);
    pd_press_data_close(d[1]);
}

static void only_what_was_asked_for(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    for (int set = 0; set < PD_SET_N; set++) {
        if (!(ALL & 1u << set)) continue;
        pd_press_data *d = NULL;
        pd_err err = {0};
        assert_int_equal(pd_press_data_new(&d, &pd_engine_get_info(e)->press_model, 1, &err), PD_OK);
        if (measure(e, 1u << set, TEXT_LEN, 50, d, &err) != PD_OK) fail_msg("%s", err.msg);
        assert_int_equal(pd_press_data_have(d), 1u << set);
        pd_press_data_close(d);
    }
    pd_engine_close(e);
}

static void refuses_what_it_cannot_measure(void **state) {
    (void)state;
    static const struct {
        size_t len, chunk, ctx;
        const char *says;
    } t[] = {
        {0, 50, 0, "the text has 0 tokens"},
        {20, 50, 0, "at least 32 are needed"},
        {TEXT_LEN, 100, 200, "do not fit the model's context of 200"},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, &(case_opts){.ctx = t[i].ctx});
        pd_press_data *d = NULL;
        pd_err err = {0};
        assert_int_equal(pd_press_data_new(&d, &pd_engine_get_info(e)->press_model, 1, &err), PD_OK);
        if (measure(e, ALL, t[i].len, t[i].chunk, d, &err) != PD_EINVAL || !strstr(err.msg, t[i].says))
            fail_msg("'%s' should say '%s'", err.msg, t[i].says);
        assert_int_equal(pd_press_data_have(d), 0);
        pd_press_data_close(d);
        pd_engine_close(e);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_layers_of_llama),         cmocka_unit_test(layers_with_windows_stay_neutral),
        cmocka_unit_test(threads_do_not_change_a_bit), cmocka_unit_test(only_what_was_asked_for),
        cmocka_unit_test(refuses_what_it_cannot_measure),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    case_cleanup();
    return failed;
}
