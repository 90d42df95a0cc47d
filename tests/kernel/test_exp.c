/* SPDX-License-Identifier: Apache-2.0 */
/* exp_sum_f32, silu_mul, gelu_mul: every row against f64. */
#include "tests/kernel/util.h"

/* Relative error the header promises, and the absolute one of what is flushed. */
static const double EXP_REL = 4e-7, EXP_ABS = 0x1p-126;

static void check_exp(const pd_kernels *k, const float *x0, size_t n, float max) {
    float *x = block_new(n * sizeof *x);
    memcpy(x, x0, n * sizeof *x);
    const double sum = k->exp_sum_f32(x, n, max);
    double want_sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        const double want = exp((double)(x0[i] - max)); /* the subtraction in f32 is the input */
        CHECK(near(want, x[i], EXP_REL * want + EXP_ABS),
              "%s n=%zu i=%zu x=%.9g max=%.9g want %.9g got %.9g", k->isa, n, i, (double)x0[i],
              (double)max, want, (double)x[i]);
        if (x0[i] == -INFINITY)
            CHECK(x[i] == 0.0f, "%s n=%zu i=%zu exp(-inf) = %.9g", k->isa, n, i, (double)x[i]);
        want_sum += x[i];
    }
    CHECK(near(want_sum, sum, (double)n * EPS / 2 * want_sum), "%s n=%zu sum want %.9g got %.9g",
          k->isa, n, want_sum, sum);
    block_free(x);
}

static void exp_every_length(void **state) {
    (void)state;
    pd_rng rng = {41};
    for (size_t n = 1; n <= 300; n++) {
        float *x = random_f32(&rng, n, 30.0f);
        float max = x[0];
        for (size_t i = 1; i < n; i++) max = fmaxf(max, x[i]);
        FOR_EACH_ROW(k, check_exp(&k, x, n, max));
        for (size_t i = 0; i < n; i += 3)
            if (x[i] != max) x[i] = i % 2 ? -INFINITY : -FLT_MAX;
        FOR_EACH_ROW(k, check_exp(&k, x, n, max));
        for (size_t i = 0; i < n; i++) x[i] = 7.25f; /* all equal */
        FOR_EACH_ROW(k, check_exp(&k, x, n, 7.25f));
        for (size_t i = 0; i < n; i++) x[i] = i ? -INFINITY : -1e30f;
        FOR_EACH_ROW(k, check_exp(&k, x, n, -1e30f));
        block_free(x);
    }
}

/* The whole range, finely: every 1/8192 in [-110, 0], and the smallest inputs. */
static void exp_every_input(void **state) {
    (void)state;
    enum { N = 110 * 8192 };
    float *x = block_new(N * sizeof *x);
    for (size_t i = 0; i < N; i++) x[i] = -(float)i / 8192.0f;
    FOR_EACH_ROW(k, check_exp(&k, x, N, 0.0f));
    for (size_t i = 0; i < N; i++) x[i] = -ldexpf(1.0f + (float)(i % 1024) / 1024.0f, -(int)(i / 1024));
    FOR_EACH_ROW(k, check_exp(&k, x, 150 * 1024, 0.0f));
    block_free(x);
}

/* silu: exp, sum, quotient and product: EXP_REL of the weight of e in 1 + e, and
 * 4 roundings.  A flushed exp is off by 2^-126, times |g u|. */
static void check_silu(const pd_kernels *k, const float *g, const float *u, size_t n, int alias) {
    float *y = block_new(n * sizeof *y);
    memcpy(y, alias == 2 ? u : g, n * sizeof *y);
    k->silu_mul(alias == 1 ? y : g, alias == 2 ? y : u, n, y);
    for (size_t i = 0; i < n; i++) {
        const double x = g[i], gu = x * u[i], want = gu / (1.0 + exp(-x));
        const double bound = (EXP_REL + 4 * EPS / 2) * fabs(want) + EXP_ABS * (fabs(gu) + 1);
        CHECK(near(want, y[i], bound), "%s n=%zu i=%zu g=%.9g u=%.9g want %.9g got %.9g", k->isa,
              n, i, x, (double)u[i], want, (double)y[i]);
    }
    block_free(y);
}

/* gelu: tanh(z) is off by u z (1 - tanh^2) (error of z: 5 roundings) and 1 ulp of
 * its own; in sigmoid(2 z) form likewise.  1 + tanh cancels, so the bound is
 * absolute in |g u|: z (1 - tanh^2 z) <= 0.45. */
static void check_gelu(const pd_kernels *k, const float *g, const float *u, size_t n, int alias) {
    float *y = block_new(n * sizeof *y);
    memcpy(y, alias == 2 ? u : g, n * sizeof *y);
    k->gelu_mul(alias == 1 ? y : g, alias == 2 ? y : u, n, y);
    for (size_t i = 0; i < n; i++) {
        const double x = g[i], gu = x * u[i];
        const double z = sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x);
        const double want = 0.5 * gu * (1.0 + tanh(z));
        const double bound = (EXP_REL + (0.45 * 5 + 5) * EPS / 2) * fabs(gu) + EXP_ABS;
        CHECK(near(want, y[i], bound), "%s n=%zu i=%zu g=%.9g u=%.9g want %.9g got %.9g", k->isa,
              n, i, x, (double)u[i], want, (double)y[i]);
    }
    block_free(y);
}

/* tanh y = 2 sigmoid(2 y) - 1 is absolute in the cap: a rounding of y moves tanh by
 * at most 0.45 u, exp's error sigmoid by a quarter of it. */
static void check_cap(const pd_kernels *k, const float *x, size_t n, float cap) {
    float *y = block_new(n * sizeof *y);
    memcpy(y, x, n * sizeof *y);
    k->softcap(y, n, cap);
    for (size_t i = 0; i < n; i++) {
        const double want = (double)cap * tanh((double)x[i] / (double)cap);
        CHECK(near(want, y[i], 6e-7 * (double)cap), "%s n=%zu i=%zu x=%.9g cap=%g want %.9g got %.9g", k->isa, n, i,
              (double)x[i], (double)cap, want, (double)y[i]);
    }
    block_free(y);
}

static void soft_caps(void **state) {
    (void)state;
    pd_rng rng = {43};
    static const float ranges[] = {0.0f, 1e-40f, 0.01f, 3.0f, 60.0f, 1e15f}, caps[] = {0.5f, 30.0f, 1e6f};
    for (size_t n = 0; n <= 100; n++)
        for (size_t r = 0; r < LEN(ranges); r++)
            for (size_t c = 0; c < LEN(caps); c++) {
                float *x = random_f32(&rng, n, ranges[r]);
                FOR_EACH_ROW(k, check_cap(&k, x, n, caps[c]));
                block_free(x);
            }
}

static void activations(void **state) {
    (void)state;
    pd_rng rng = {42};
    static const float ranges[] = {0.0f, 1e-40f, 0.01f, 3.0f, 30.0f, 120.0f, 1e15f};
    for (size_t n = 0; n <= 100; n++)
        for (size_t r = 0; r < LEN(ranges); r++)
            for (int alias = 0; alias < 3; alias++) {
                float *g = random_f32(&rng, n, ranges[r]), *u = random_f32(&rng, n, 3.0f);
                FOR_EACH_ROW(k, check_silu(&k, g, u, n, alias));
                FOR_EACH_ROW(k, check_gelu(&k, g, u, n, alias));
                block_free(g);
                block_free(u);
            }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exp_every_length),
        cmocka_unit_test(exp_every_input),
        cmocka_unit_test(activations),
        cmocka_unit_test(soft_caps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
