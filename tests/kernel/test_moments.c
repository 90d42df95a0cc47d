/* SPDX-License-Identifier: Apache-2.0 */
/* centre_f32 and gram_f32: every row of the table against f64, every number of rows, blocks of exact size. */
#include "util.h"

/* Differences are rounded once, so they are the scalar row's bits; n of them take n - 1 additions. */
static void check_centre(const pd_kernels *k, const float *x, size_t ld, size_t n, size_t d, const float *shift) {
    float *y = block_new(n * d * sizeof *y), *total = block_new(d * sizeof *total);
    k->centre_f32(x, ld, n, d, shift, y, total);
    for (size_t c = 0; c < d; c++) {
        double want = 0.0, size = 0.0;
        for (size_t r = 0; r < n; r++) {
            const float v = x[r * ld + c] - shift[c];
            CHECK(v == y[r * d + c], "%s centre_f32 %zu x %zu, row %zu column %zu: want %.9g got %.9g", k->isa, n, d, r, c, (double)v,
                  (double)y[r * d + c]);
            want += (double)v;
            size += fabs((double)v);
        }
        CHECK(near(want, (double)total[c], (double)n * EPS / 2 * size), "%s centre_f32 %zu x %zu, sum %zu: want %.9g got %.9g", k->isa, n, d,
              c, want, (double)total[c]);
    }
    float *alone = block_new(d * sizeof *alone);
    k->centre_f32(x, ld, n, d, shift, NULL, alone);
    CHECK(memcmp(alone, total, d * sizeof *alone) == 0, "%s centre_f32 %zu x %zu: other sums without rows", k->isa, n, d);
    block_free(alone);
    block_free(y);
    block_free(total);
}

/* n products and as many additions, one more to what is there: each off by u of what it is at most. */
static void check_gram(const pd_kernels *k, const float *x, size_t n, size_t d) {
    float *g = block_new(d * d * sizeof *g);
    for (size_t i = 0; i < d * d; i++) g[i] = 2.0f;
    k->gram_f32(x, n, d, g);
    for (size_t a = 0; a < d; a++) {
        for (size_t b = a; b < d; b++) {
            double want = 2.0, size = 2.0;
            for (size_t r = 0; r < n; r++) {
                const double y = (double)x[r * d + a] * (double)x[r * d + b];
                want += y;
                size += fabs(y);
            }
            CHECK(near(want, (double)g[a * d + b], (double)(n + 2) * EPS / 2 * size), "%s gram_f32 %zu x %zu, %zu, %zu: want %.9g got %.9g",
                  k->isa, n, d, a, b, want, (double)g[a * d + b]);
        }
    }
    block_free(g);
}

static void sums_of_random_rows(void **state) {
    (void)state;
    pd_rng rng = {61};
    static const size_t dims[] = {16, 32, 48, 64, 80, 96, 112, 128, 256}, rows[] = {0, 1, 2, 7, 32, 124, 128};
    for (size_t i = 0; i < LEN(dims); i++) {
        for (size_t j = 0; j < LEN(rows); j++) {
            const size_t d = dims[i], n = rows[j], ld = 3 * d + 5;
            float *x = random_f32(&rng, n ? (n - 1) * ld + d : 0, 2.0f), *dense = random_f32(&rng, n * d, 2.0f), *shift = random_f32(&rng, d, 3.0f);
            FOR_EACH_ROW(k, check_centre(&k, x, ld, n, d, shift));
            FOR_EACH_ROW(k, check_gram(&k, dense, n, d));
            block_free(x);
            block_free(dense);
            block_free(shift);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(sums_of_random_rows)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
