/* SPDX-License-Identifier: Apache-2.0 */
/* compression/bases: what makes a basis one, from drawn rows, all sums done the plain way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compression/bases.h"
#include "engine/base/rng.h"

#include <math.h>
#include <string.h>

enum { D = 12, ROWS = 200, DISTANCES = 40 };

static const float inv_freq[D / 2] = {1.0f, 0.4f, 0.17f, 0.05f, 0.01f, 0.001f};

/* Rows whose channels differ in size and go together. */
static void draw(uint64_t seed, float x[ROWS][D]) {
    pd_rng rng = {seed};
    float mix[D][D];
    for (size_t i = 0; i < D * D; i++) mix[i / D][i % D] = pd_rng_f32(&rng);
    for (size_t r = 0; r < ROWS; r++) {
        float z[D];
        for (size_t i = 0; i < D; i++) z[i] = pd_rng_f32(&rng) / (float)(1 + i * i);
        for (size_t i = 0; i < D; i++) {
            x[r][i] = 0.2f;
            for (size_t k = 0; k < D; k++) x[r][i] += mix[i][k] * z[k];
        }
    }
}

static void moment(float x[ROWS][D], double *s) {
    for (size_t i = 0; i < D; i++)
        for (size_t k = 0; k < D; k++) {
            s[i * D + k] = i > k ? NAN : 0.0; /* the lower triangle is nobody's */
            for (size_t r = 0; r < ROWS; r++) s[i * D + k] += (double)x[r][i] * (double)x[r][k] / ROWS;
        }
}

static void near(double got, double want, double bound, const char *what, size_t i) {
    if (!(fabs(got - want) <= bound)) fail_msg("%s %zu: %.9g, not %.9g", what, i, got, want);
}

/* y = x from its first r numbers. */
static void rebuilt(const float *x, const float *project, const float *rebuild, size_t r, double *y) {
    for (size_t i = 0; i < D; i++) y[i] = 0.0;
    for (size_t k = 0; k < r; k++) {
        double c = 0.0;
        for (size_t i = 0; i < D; i++) c += (double)project[k * D + i] * (double)x[i];
        for (size_t i = 0; i < D; i++) y[i] += c * (double)rebuild[k * D + i];
    }
}

static void turn(const float *x, size_t p, double sign, double *y) {
    for (size_t i = 0; i < D / 2; i++) {
        const double a = sign * (double)p * (double)inv_freq[i], u = (double)x[i], v = (double)x[i + D / 2];
        y[i] = u * cos(a) - v * sin(a);
        y[i + D / 2] = v * cos(a) + u * sin(a);
    }
}

static void a_basis_misses_what_its_tail_says(void **state) {
    (void)state;
    static float x[ROWS][D];
    double s[D * D];
    float rows[D * D], energy[D];
    draw(1, x);
    moment(x, s);
    assert_int_equal(pd__basis(s, D, rows, energy, NULL), PD_OK);
    for (size_t a = 0; a < D; a++) {
        float most = 0.0f;
        for (size_t b = 0; b < D; b++) {
            double dot = 0.0;
            for (size_t i = 0; i < D; i++) dot += (double)rows[a * D + i] * (double)rows[b * D + i];
            near(dot, a == b, 1e-6, "product with row", b);
            if (fabsf(rows[a * D + b]) > fabsf(most)) most = rows[a * D + b];
        }
        assert_true(most > 0.0f);
        assert_true(a == 0 || energy[a] <= energy[a - 1]);
    }
    for (size_t r = 0; r <= D; r++) {
        double miss = 0.0, tail = 0.0;
        for (size_t t = 0; t < ROWS; t++) {
            double y[D];
            rebuilt(x[t], rows, rows, r, y);
            for (size_t i = 0; i < D; i++) miss += ((double)x[t][i] - y[i]) * ((double)x[t][i] - y[i]) / ROWS;
        }
        for (size_t i = r; i < D; i++) tail += (double)energy[i];
        near(miss, tail, 1e-6, "rank", r);
    }
}

static void a_mean_moment_is_the_mean_of_scores(void **state) {
    (void)state;
    static float q[ROWS][D], k[ROWS][D];
    double s[D * D], m[D * D];
    draw(2, q);
    draw(3, k);
    moment(q, s);
    pd__mean_moment(s, D, inv_freq, DISTANCES, m);
    for (size_t t = 0; t < 5; t++) {
        double got = 0.0, want = 0.0;
        for (size_t i = 0; i < D * D; i++) got += (double)k[t][i / D] * m[i] * (double)k[t][i % D];
        for (size_t p = 0; p < DISTANCES; p++) { /* the key stands p before the query */
            double y[D];
            turn(k[t], p, -1.0, y);
            for (size_t r = 0; r < ROWS; r++) {
                double dot = 0.0;
                for (size_t i = 0; i < D; i++) dot += (double)q[r][i] * y[i];
                want += dot * dot / ROWS / DISTANCES;
            }
        }
        near(got, want, 1e-9 * want, "key", t);
    }
}

/* Mean square of what scores lose over all queries, keys and distances. */
static double lost(float q[ROWS][D], float k[ROWS][D], const float *project, const float *rebuild, size_t r) {
    double s[D * D], m[D * D], sum = 0.0;
    moment(q, s);
    pd__mean_moment(s, D, inv_freq, DISTANCES, m); /* held by the test above */
    for (size_t t = 0; t < ROWS; t++) {
        double y[D];
        rebuilt(k[t], project, rebuild, r, y);
        for (size_t i = 0; i < D; i++) y[i] -= (double)k[t][i];
        for (size_t i = 0; i < D * D; i++) sum += y[i / D] * m[i] * y[i % D] / ROWS;
    }
    return sum;
}

static void a_score_basis_loses_least(void **state) {
    (void)state;
    static float q[ROWS][D], k[ROWS][D];
    double s[D * D], m[D * D], trace = 0.0;
    float project[D * D], rebuild[D * D], energy[D], plain[D * D], unused[D];
    draw(4, q);
    draw(5, k);
    moment(k, s);
    assert_int_equal(pd__basis(s, D, plain, unused, NULL), PD_OK);
    moment(q, s);
    pd__mean_moment(s, D, inv_freq, DISTANCES, m);
    for (size_t i = 0; i < D; i++) trace += m[i * D + i] / D;
    moment(k, s);
    assert_int_equal(pd__score_basis(s, m, D, project, rebuild, energy, NULL), PD_OK);
    for (size_t t = 0; t < ROWS; t++) { /* all directions: the key itself */
        double y[D];
        rebuilt(k[t], project, rebuild, D, y);
        for (size_t i = 0; i < D; i++) near(y[i], (double)k[t][i], 1e-4, "channel", i);
    }
    for (size_t r = 1; r < D; r++) {
        double tail = 0.0;
        for (size_t i = r; i < D; i++) tail += (double)energy[i] * trace;
        const double miss = lost(q, k, project, rebuild, r);
        near(miss, tail, 1e-4 * tail + 1e-9, "rank", r);
        assert_true(miss < lost(q, k, plain, plain, r));
    }
}

/* Shares, not sums: a basis of much energy counts as one of little, one that was not measured not at all. */
static void energy_is_kept_by_the_first_directions(void **state) {
    (void)state;
    static const float e[3][4] = {{8, 4, 3, 1}, {0, 0, 0, 0}, {0.5f, 0.5f, 0, 0}};
    near(pd_energy_kept(e[0], 3, 4, 0), 0.0, 1e-12, "rank", 0);
    near(pd_energy_kept(e[0], 3, 4, 1), 0.5, 1e-12, "rank", 1);
    near(pd_energy_kept(e[0], 3, 4, 2), 0.875, 1e-12, "rank", 2);
    near(pd_energy_kept(e[0], 3, 4, 3), 0.96875, 1e-12, "rank", 3);
    near(pd_energy_kept(e[0], 3, 4, 4), 1.0, 1e-12, "rank", 4);
    near(pd_energy_kept(e[1], 1, 4, 2), 0.0, 1e-12, "basis that was not measured", 0);
}

static void queries_that_are_zero_give_no_basis(void **state) {
    (void)state;
    static float k[ROWS][D];
    double s[D * D], m[D * D] = {0};
    float out[3][D * D];
    pd_err err = {0};
    draw(6, k);
    moment(k, s);
    assert_int_equal(pd__score_basis(s, m, D, out[0], out[1], out[2], &err), PD_EINTERNAL);
    assert_non_null(strstr(err.msg, "all 0"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_basis_misses_what_its_tail_says),
        cmocka_unit_test(a_mean_moment_is_the_mean_of_scores),
        cmocka_unit_test(a_score_basis_loses_least),
        cmocka_unit_test(energy_is_kept_by_the_first_directions),
        cmocka_unit_test(queries_that_are_zero_give_no_basis),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
