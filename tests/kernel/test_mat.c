/* SPDX-License-Identifier: Apache-2.0 */
/* matmul_f32: every row against f64, every tail, rows apart, in blocks of exact size. */
#include "tests/kernel/util.h"

/* k products and as many sums in order, each off by u of what it is at most. */
static void check_mat(const pd_kernels *kern, size_t n, size_t k, size_t m, size_t pad, const float *a, const float *b) {
    const size_t ld_a = k + pad, ld_b = m + pad, ld_y = m + pad, size = (n - 1) * ld_y + m;
    float *y = block_new(size * sizeof *y), *one = block_new(m * sizeof *one);
    for (size_t i = 0; i < size; i++) y[i] = 7.0f;
    kern->matmul_f32(a, ld_a, n, k, b, ld_b, m, y, ld_y);
    for (size_t i = 0; i < n; i++) {
        kern->matmul_f32(a + i * ld_a, ld_a, 1, k, b, ld_b, m, one, ld_y); /* whatever stands beside it */
        for (size_t c = 0; c < ld_y && i * ld_y + c < size; c++) {
            double want = c < m ? 0.0 : 7.0, mag = 0.0;
            for (size_t r = 0; c < m && r < k; r++) {
                want += (double)a[i * ld_a + r] * (double)b[r * ld_b + c];
                mag += fabs((double)a[i * ld_a + r] * (double)b[r * ld_b + c]);
            }
            const double got = (double)y[i * ld_y + c], bound = (double)(k + 1) * (EPS / 2 * mag);
            CHECK(near(want, got, bound), "%s %zu x %zu x %zu, %zu, %zu: want %.9g got %.9g bound %.3g", kern->isa, n, k, m, i, c, want, got,
                  bound);
            CHECK(c >= m || one[c] == y[i * ld_y + c], "%s %zu x %zu x %zu: row %zu depends on the others", kern->isa, n, k, m, i);
        }
    }
    block_free(y);
    block_free(one);
}

static void mat(void **state) {
    (void)state;
    static const size_t ks[] = {0, 1, 5, 64, 97}, ms[] = {16, 48, 64, 80, 192};
    pd_rng rng = {41};
    for (size_t n = 1; n <= 14; n++)
        for (size_t i = 0; i < LEN(ks); i++)
            for (size_t j = 0; j < LEN(ms); j++) {
                const size_t k = ks[i], m = ms[j], pad = n % 3;
                float *a = random_f32(&rng, (n - 1) * (k + pad) + k, 1.0f), *b = random_f32(&rng, k ? (k - 1) * (m + pad) + m : 0, 1.0f);
                FOR_EACH_ROW(kern, check_mat(&kern, n, k, m, pad, a, b));
                block_free(a);
                block_free(b);
            }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mat),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
