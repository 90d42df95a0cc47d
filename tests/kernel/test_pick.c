/* SPDX-License-Identifier: Apache-2.0 */
/* sum_from_f32 against a sum in f64 (n u sum|x|), and that it never grows with its bound;
 * list_from_f32 against its definition, exactly; dots_f16 against sums in f64. */
#include "tests/kernel/util.h"

/* Weights as attention has them: a few large ones, many small ones, some equal. */
static float *weights(pd_rng *rng, size_t n) {
    float *x = block_new(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = random_below(rng, 5) ? expf(-16.0f * fabsf(pd_rng_f32(rng))) : 0.125f;
    return x;
}

static void check_sum(const pd_kernels *k, const float *x, size_t n) {
    float last = INFINITY;
    for (float t = 1e-8f; t < 2.0f; t *= t < 0.1f ? 3.0f : 1.0625f) {
        double want = 0.0;
        for (size_t i = 0; i < n; i++) want += x[i] >= t ? (double)x[i] : 0.0;
        const float got = k->sum_from_f32(x, n, t);
        CHECK(near(want, got, (double)n * EPS / 2 * want), "%s sum_from_f32 n=%zu t=%g want %.9g got %.9g", k->isa, n, (double)t, want, (double)got);
        CHECK(got <= last, "%s sum_from_f32 n=%zu t=%g grew from %.9g to %.9g", k->isa, n, (double)t, (double)last, (double)got);
        last = got;
    }
    double want = 0.0;
    for (size_t i = 0; i < n; i++) want += x[i] >= 0.125f ? (double)x[i] : 0.0; /* some are just that */
    CHECK(near(want, k->sum_from_f32(x, n, 0.125f), (double)n * EPS / 2 * want), "%s sum_from_f32 n=%zu: equal weights", k->isa, n);
}

static void sums_of_the_heavy(void **state) {
    (void)state;
    pd_rng rng = {41};
    for (size_t n = 1; n < 1200; n += n < 140 ? 1 : 97) {
        float *x = weights(&rng, n);
        FOR_EACH_ROW(k, check_sum(&k, x, n));
        block_free(x);
    }
}

static void check_dots(const pd_kernels *k, const float *q, size_t n_head, size_t n_group, size_t dim, const uint16_t *keys, const uint32_t *row,
                       size_t n) {
    const size_t heads = n_head * n_group, ld_s = n + 3, size = (heads - 1) * ld_s + n;
    float *s = block_new(size * sizeof *s);
    for (size_t i = 0; i < size; i++) s[i] = 7.0f;
    k->dots_f16(q, n_head, n_group, dim, keys, row, n, s, ld_s);
    for (size_t i = 0; i < size; i++) {
        double want = i % ld_s < n ? 0.0 : 7.0, mag = 0.0;
        for (size_t c = 0; i % ld_s < n && c < dim; c++) {
            float y;
            k->f16_to_f32(&keys[(row[i % ld_s] * n_head + i / ld_s / n_group) * dim + c], &y, 1);
            want += (double)q[i / ld_s * dim + c] * (double)y;
            mag += fabs((double)q[i / ld_s * dim + c] * (double)y);
        }
        CHECK(near(want, (double)s[i], (double)dim * EPS * mag), "%s dots_f16 H=%zu G=%zu d=%zu n=%zu: %zu of %zu is %.9g, want %.9g", k->isa, n_head,
              n_group, dim, n, i, ld_s, (double)s[i], want);
    }
    block_free(s);
}

/* Any heads, width and count, rows in any order and more than once, in blocks of exact size. */
static void scores_of_rows_anywhere(void **state) {
    (void)state;
    static const size_t dims[] = {16, 48, 64, 80, 256}, counts[] = {1, 2, 15, 16, 17, 40, 63};
    pd_rng rng = {43};
    for (size_t g = 1; g <= 16; g += g < 6 ? 1 : 5)
        for (size_t i = 0; i < LEN(dims); i++)
            for (size_t j = 0; j < LEN(counts); j++) {
                const size_t d = dims[i], n = counts[j], heads = 1 + (g + j) % 3, n_key = 23;
                float *q = random_f32(&rng, heads * g * d, 1.0f), *x = random_f32(&rng, n_key * heads * d, 2.0f);
                uint16_t *keys = block_new(n_key * heads * d * sizeof *keys);
                uint32_t *row = block_new(n * sizeof *row);
                for (size_t c = 0; c < n; c++) row[c] = random_below(&rng, (uint32_t)n_key);
                FOR_EACH_ROW(k, {
                    k.f32_to_f16(x, keys, n_key * heads * d);
                    check_dots(&k, q, heads, g, d, keys, row, n);
                });
                block_free(q);
                block_free(x);
                block_free(keys);
                block_free(row);
            }
}

static void equal_ones_count(void **state) {
    (void)state;
    const float x[] = {0.25f, 0.5f, 0.25f, 0.125f};
    FOR_EACH_ROW(k, {
        CHECK(k.sum_from_f32(x, LEN(x), 0.25f) == 1.0f, "%s sum_from_f32: %g", k.isa, (double)k.sum_from_f32(x, LEN(x), 0.25f));
        uint32_t row[LEN(x) + 16];
        const float t = 0.25f;
        CHECK(k.list_from_f32(x, LEN(x), 1, LEN(x), &t, row) == 3 && row[0] == 0 && row[1] == 1 && row[2] == 2, "%s list_from_f32", k.isa);
    });
}

static void check_list(const pd_kernels *k, const float *x, size_t stride, size_t n_group, size_t n, const float *t) {
    uint32_t *row = block_new((n + 16) * sizeof *row);
    const size_t n_row = k->list_from_f32(x, stride, n_group, n, t, row);
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        bool in = false;
        for (size_t g = 0; g < n_group; g++) in = in || x[g * stride + i] >= t[g];
        if (!in) continue;
        CHECK(at < n_row && row[at] == i, "%s list_from_f32 G=%zu n=%zu: slot %zu is missing", k->isa, n_group, n, i);
        at++;
    }
    CHECK(at == n_row, "%s list_from_f32 G=%zu n=%zu: %zu rows, want %zu", k->isa, n_group, n, n_row, at);
    block_free(row);
}

static void lists_of_the_heavy(void **state) {
    (void)state;
    pd_rng rng = {42};
    for (size_t n = 1; n <= 300; n += n < 70 ? 1 : 23) {
        const size_t n_group = 1 + n % 16, stride = n + n % 5;
        float *x = weights(&rng, (n_group - 1) * stride + n), t[16];
        for (size_t g = 0; g < n_group; g++) t[g] = g % 3 ? 0.9f : 0.125f;
        FOR_EACH_ROW(k, check_list(&k, x, stride, n_group, n, t));
        for (size_t g = 0; g < n_group; g++) t[g] = 2.0f; /* nothing */
        FOR_EACH_ROW(k, check_list(&k, x, stride, n_group, n, t));
        for (size_t g = 0; g < n_group; g++) t[g] = 0.0f; /* everything */
        FOR_EACH_ROW(k, check_list(&k, x, stride, n_group, n, t));
        block_free(x);
    }
}

/* Sums of head_dim products, two roundings each at most: (D + 1) u sum|q b|. */
static void bounds_of_pages(void **state) {
    (void)state;
    pd_rng rng = {43};
    static const size_t dims[] = {16, 32, 64, 80, 128, 256};
    const pd_kernels ref = scalar_row();
    for (size_t i = 0; i < LEN(dims); i++) {
        for (size_t n_group = 1; n_group <= 16; n_group += 3) {
            const size_t d = dims[i], n = 2 * d * 16;
            float *x = random_f32(&rng, n, 4.0f), *q = random_f32(&rng, n_group * d, 2.0f), *bound = block_new(16 * sizeof *bound);
            uint16_t *block = block_new(n * sizeof *block);
            q[0] = 0.0f;
            ref.f32_to_f16(x, block, n);
            ref.f16_to_f32(block, x, n);
            FOR_EACH_ROW(k, {
                k.page_bounds(block, q, n_group, d, bound);
                for (size_t p = 0; p < 16; p++) {
                    double want = -INFINITY;
                    double most = 0.0;
                    for (size_t g = 0; g < n_group; g++) {
                        double sum = 0.0;
                        double abs = 0.0;
                        for (size_t c = 0; c < d; c++) {
                            const double y = (double)q[g * d + c] * (double)x[((q[g * d + c] > 0.0f ? d : 0) + c) * 16 + p];
                            sum += y;
                            abs += fabs(y);
                        }
                        want = fmax(want, sum);
                        most = fmax(most, abs);
                    }
                    CHECK(near(want, bound[p], (double)(d + 1) * EPS / 2 * most), "%s page_bounds G=%zu D=%zu page %zu want %.9g got %.9g",
                          k.isa, n_group, d, p, want, (double)bound[p]);
                }
            });
            block_free(x);
            block_free(q);
            block_free(bound);
            block_free(block);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_of_the_heavy),
        cmocka_unit_test(scores_of_rows_anywhere),
        cmocka_unit_test(equal_ones_count),
        cmocka_unit_test(lists_of_the_heavy),
        cmocka_unit_test(bounds_of_pages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
