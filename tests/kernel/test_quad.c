/* SPDX-License-Identifier: Apache-2.0 */
/* quad_f32 against sums in f64.  A term k[a] u[b][a] k[b] goes through at most d + 1 additions
 * in the inner sum and d in the outer one, and two products: (2 d + 3) u of its size, to first order. */
#include "util.h"

static void check(const pd_kernels *k, const float *key, size_t n, size_t d, const float *mu, const float *u) {
    float *z = block_new(n * sizeof *z);
    k->quad_f32(key, n, d, mu, u, z);
    for (size_t i = 0; i < n; i++) {
        const float *x = key + i * d;
        double want = 0.0, size = 0.0;
        for (size_t a = 0; a < d; a++) {
            want += (double)x[a] * (double)mu[a];
            size += fabs((double)x[a] * (double)mu[a]);
            for (size_t b = 0; b <= a; b++) {
                const double y = (double)x[a] * (double)u[b * d + a] * (double)x[b];
                want += y;
                size += fabs(y);
            }
        }
        CHECK(near(want, (double)z[i], (double)(2 * d + 3) * EPS / 2 * size), "%s quad_f32 n=%zu d=%zu key %zu want %.9g got %.9g",
              k->isa, n, d, i, want, (double)z[i]);
    }
    block_free(z);
}

static void forms_of_random_keys(void **state) {
    (void)state;
    pd_rng rng = {51};
    static const size_t dims[] = {16, 32, 48, 64, 80, 96, 128, 256};
    for (size_t i = 0; i < LEN(dims); i++) {
        const size_t d = dims[i];
        for (size_t n = 0; n <= 9; n++) {
            float *key = random_f32(&rng, n * d, 2.0f), *mu = random_f32(&rng, d, 3.0f), *u = random_f32(&rng, d * d, 1.0f);
            for (size_t b = 0; b < d; b++)
                for (size_t a = 0; a < b; a++) u[b * d + a] = 0.0f;
            FOR_EACH_ROW(k, check(&k, key, n, d, mu, u));
            block_free(key);
            block_free(mu);
            block_free(u);
        }
    }
}

/* A key's bits do not depend on those beside it. */
static void a_key_stands_alone(void **state) {
    (void)state;
    enum { D = 80, N = 7 };
    pd_rng rng = {52};
    float *key = random_f32(&rng, N * D, 2.0f), *mu = random_f32(&rng, D, 1.0f), *u = random_f32(&rng, D * D, 1.0f);
    for (size_t b = 0; b < D; b++)
        for (size_t a = 0; a < b; a++) u[b * D + a] = 0.0f;
    FOR_EACH_ROW(k, {
        float all[N];
        float one;
        k.quad_f32(key, N, D, mu, u, all);
        for (size_t i = 0; i < N; i++) {
            k.quad_f32(key + i * D, 1, D, mu, u, &one);
            CHECK(memcmp(&one, &all[i], sizeof one) == 0, "%s quad_f32 key %zu: %.9g among others, %.9g alone", k.isa, i,
                  (double)all[i], (double)one);
        }
    });
    block_free(key);
    block_free(mu);
    block_free(u);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forms_of_random_keys),
        cmocka_unit_test(a_key_stands_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
