/* SPDX-License-Identifier: Apache-2.0 */
/* dot_f32, axpy_f32, max_f32, rmsnorm, rope: every row against f64, every tail,
 * unaligned, in blocks of exact size. */
#include "tests/kernel/util.h"

enum { MAX_N = 300 };

static const float scales[] = {0.0f, 1e-42f, 1e-12f, 1.0f, 1e12f};

static void check_dot(const pd_kernels *k, size_t n, const float *a, const float *b) {
    double want = 0.0, mag = 0.0;
    for (size_t i = 0; i < n; i++) {
        want += (double)a[i] * b[i];
        mag += fabs((double)a[i] * b[i]);
    }
    /* n roundings of products, each at least half the smallest subnormal */
    const double bound = (double)(n + 1) * (EPS / 2 * mag + 0x1p-150);
    const double got = k->dot_f32(a, b, n);
    CHECK(near(want, got, bound), "%s n=%zu want %.9g got %.9g bound %.3g", k->isa, n, want, got,
          bound);
}

static void dot(void **state) {
    (void)state;
    pd_rng rng = {31};
    for (size_t n = 0; n <= MAX_N; n++)
        for (size_t s = 0; s < LEN(scales); s++) {
            float *a = random_f32(&rng, n, scales[s]), *b = random_f32(&rng, n, 1.0f);
            FOR_EACH_ROW(k, check_dot(&k, n, a, b));
            block_free(a);
            block_free(b);
        }
}

static void check_axpy(const pd_kernels *k, size_t n, float c, const float *x, const float *y0) {
    float *y = block_new(n * sizeof *y);
    memcpy(y, y0, n * sizeof *y);
    k->axpy_f32(c, x, y, n);
    for (size_t i = 0; i < n; i++) {
        const double p = (double)c * x[i], want = p + y0[i];
        CHECK(near(want, y[i], EPS / 2 * (1 + EPS) * (fabs(p) + fabs(want)) + 0x1p-149),
              "%s n=%zu i=%zu want %.9g got %.9g", k->isa, n, i, want, (double)y[i]);
    }
    block_free(y);
}

static void axpy(void **state) {
    (void)state;
    pd_rng rng = {32};
    for (size_t n = 0; n <= MAX_N; n++)
        for (size_t s = 0; s < LEN(scales); s++) {
            float *x = random_f32(&rng, n, scales[s]), *y = random_f32(&rng, n, 1.0f);
            FOR_EACH_ROW(k, check_axpy(&k, n, 0.7f, x, y));
            block_free(x);
            block_free(y);
        }
}

static void check_max(const pd_kernels *k, size_t n, const float *x, float want) {
    const float got = k->max_f32(x, n);
    CHECK(got == want, "%s n=%zu want %.9g got %.9g", k->isa, n, (double)want, (double)got);
}

static void max(void **state) {
    (void)state;
    pd_rng rng = {33};
    for (size_t n = 1; n <= MAX_N; n++) {
        float *x = random_f32(&rng, n, 1.0f);
        for (size_t i = 0; i < n; i++) x[i] -= 5.0f; /* all negative: a padding 0 would show */
        const size_t at = random_below(&rng, n);
        x[at] = -1.0f;
        FOR_EACH_ROW(k, check_max(&k, n, x, -1.0f));
        x[at] = FLT_MAX;
        FOR_EACH_ROW(k, check_max(&k, n, x, FLT_MAX));
        for (size_t i = 0; i < n; i++) x[i] = -INFINITY;
        FOR_EACH_ROW(k, check_max(&k, n, x, -INFINITY));
        block_free(x);
    }
}

/* The sum of squares is off by (n + 1) u relative, so its root by half of that;
 * mean, eps, root, reciprocal and two products add at most 7 roundings. */
static void check_rmsnorm(const pd_kernels *k, size_t n, const float *x, const float *w,
                          bool in_place) {
    const float eps = 1e-5f;
    double ss = 0.0;
    for (size_t i = 0; i < n; i++) ss += (double)x[i] * x[i];
    const double scale = 1.0 / sqrt(ss / (double)n + eps);
    float *y = block_new(n * sizeof *y);
    memcpy(y, x, n * sizeof *y);
    k->rmsnorm(in_place ? y : x, w, eps, n, y);
    for (size_t i = 0; i < n; i++) {
        const double want = x[i] * scale * (w ? w[i] : 1.0);
        const double bound = (0.5 * (double)(n + 1) + 7) * EPS / 2 * fabs(want) + 0x1p-148;
        CHECK(near(want, y[i], bound), "%s n=%zu w=%d i=%zu want %.9g got %.9g", k->isa, n, w != 0,
              i, want, (double)y[i]);
    }
    block_free(y);
}

static void rmsnorm(void **state) {
    (void)state;
    pd_rng rng = {34};
    for (size_t n = 1; n <= MAX_N; n++)
        for (size_t s = 0; s < LEN(scales); s++) {
            float *x = random_f32(&rng, n, scales[s]), *w = random_f32(&rng, n, 2.0f);
            FOR_EACH_ROW(k, check_rmsnorm(&k, n, x, w, n % 2));
            FOR_EACH_ROW(k, check_rmsnorm(&k, n, x, NULL, n % 3 == 0));
            block_free(x);
            block_free(w);
        }
}

static void check_rope(const pd_kernels *k, size_t n_head, size_t dim, const float *x0,
                       const float *cs, const float *sn) {
    const size_t half = dim / 2;
    float *x = block_new(n_head * dim * sizeof *x);
    memcpy(x, x0, n_head * dim * sizeof *x);
    k->rope(x, n_head, dim, cs, sn);
    for (size_t h = 0; h < n_head; h++)
        for (size_t i = 0; i < dim; i++) {
            const float *r = x0 + h * dim;
            const double a = (double)r[i] * cs[i % half];
            const double b = (i < half ? -(double)r[i + half] : (double)r[i - half]) * sn[i % half];
            /* two products and one sum, fused or not: 2 u of each term */
            const double bound = EPS * (1 + EPS) * (fabs(a) + fabs(b)) + 0x1p-148;
            const double got = x[h * dim + i];
            CHECK(near(a + b, got, bound), "%s D=%zu head=%zu i=%zu want %.9g got %.9g", k->isa,
                  dim, h, i, a + b, got);
        }
    block_free(x);
}

static void rope(void **state) {
    (void)state;
    pd_rng rng = {35};
    for (size_t dim = 2; dim <= 260; dim += 2)
        for (size_t n_head = 1; n_head <= 3; n_head++) {
            float *x = random_f32(&rng, n_head * dim, 4.0f);
            float *cs = random_f32(&rng, dim / 2, 1.0f), *sn = random_f32(&rng, dim / 2, 1.0f);
            FOR_EACH_ROW(k, check_rope(&k, n_head, dim, x, cs, sn));
            block_free(x);
            block_free(cs);
            block_free(sn);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dot),     cmocka_unit_test(axpy), cmocka_unit_test(max),
        cmocka_unit_test(rmsnorm), cmocka_unit_test(rope),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
