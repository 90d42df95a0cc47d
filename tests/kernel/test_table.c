/* SPDX-License-Identifier: Apache-2.0 */
/* The table itself: masks, prerequisites, and a self-test that can fail. */
#include "tests/kernel/util.h"

static void masks_parse(void **state) {
    (void)state;
    unsigned mask = 99;
    pd_err err = {0};
    assert_int_equal(pd_cpu_mask_parse("scalar", &mask, &err), PD_OK);
    assert_int_equal(mask, 0);
    assert_int_equal(pd_cpu_mask_parse("avx2,avx512", &mask, &err), PD_OK);
    assert_int_equal(mask, PD_CPU_AVX2 | PD_CPU_AVX512);
    assert_int_equal(pd_cpu_mask_parse("vnni", &mask, &err), PD_OK);
    assert_int_equal(mask, PD_CPU_VNNI);
    assert_int_equal(pd_cpu_mask_parse("all", &mask, &err), PD_OK);
    assert_int_equal(mask, PD_CPU_AVX2 | PD_CPU_AVXVNNI | PD_CPU_AVX512 | PD_CPU_VNNI | PD_CPU_BF16 | PD_CPU_VBMI);
}

static void bad_masks_are_refused(void **state) {
    (void)state;
    static const char *const bad[] = {"", "avx", "avx2,", ",avx2", "avx2,,vnni", "AVX2", "avx2 ",
                                      "avx2;vnni", "allx"};
    for (size_t i = 0; i < LEN(bad); i++) {
        unsigned mask = 99;
        pd_err err = {0};
        assert_int_equal(pd_cpu_mask_parse(bad[i], &mask, &err), PD_EINVAL);
        assert_int_equal(mask, 99);
        assert_non_null(strstr(err.msg, "known: scalar, avx2, avxvnni, avx512, vbmi, vnni, bf16, all"));
    }
    pd_err err = {0};
    unsigned mask;
    pd_cpu_mask_parse("avx2,sse9", &mask, &err);
    assert_non_null(strstr(err.msg, "'sse9'"));
}

static void a_row_needs_the_ones_before(void **state) {
    (void)state;
    pd_kernels k;
    pd_kernels_init(&k, 0);
    assert_string_equal(k.isa, "scalar");
    pd_kernels_init(&k, PD_CPU_VNNI | PD_CPU_AVX512);
    assert_string_equal(k.isa, "scalar");
#if defined(__x86_64__)
    pd_kernels_init(&k, PD_CPU_AVX2 | PD_CPU_VNNI);
    assert_string_equal(k.isa, "avx2");
    pd_kernels_init(&k, PD_CPU_AVXVNNI);
    assert_string_equal(k.isa, "scalar");
    pd_kernels_init(&k, PD_CPU_AVX2 | PD_CPU_AVXVNNI | PD_CPU_VNNI);
    assert_string_equal(k.isa, "avx2+vnni");
    pd_kernels_init(&k, PD_CPU_AVX2 | PD_CPU_AVX512); /* needs no AVXVNNI */
    assert_string_equal(k.isa, "avx512");
#endif
    const unsigned cpu = pd_cpu_detect();
    assert_true(!(cpu & PD_CPU_AVX512) || (cpu & PD_CPU_AVX2));
    assert_true(!(cpu & PD_CPU_AVXVNNI) || (cpu & PD_CPU_AVX2));
    assert_true(!(cpu & PD_CPU_VBMI) || (cpu & PD_CPU_AVX512));
    assert_true(!(cpu & PD_CPU_VNNI) || (cpu & PD_CPU_AVX512));
    assert_true(!(cpu & PD_CPU_BF16) || (cpu & PD_CPU_VNNI));
}

static void check_row(const pd_kernels *k) {
    pd_err err = {0};
    CHECK(pd_kernels_selftest(k, &err) == PD_OK, "%s: %s", k->isa, err.msg);
}

static void every_row_passes_the_self_test(void **state) {
    (void)state;
    FOR_EACH_ROW(k, check_row(&k));
}

/* ---- one broken entry at a time ---- */

static float bad_dot(const float *a, const float *b, size_t n) {
    return scalar_row().dot_f32(a, b, n - 1);
}
static void bad_axpy(float a, const float *x, float *y, size_t n) {
    scalar_row().axpy_f32(a, x, y, n - 1);
}
static float bad_max(const float *x, size_t n) {
    return fmaxf(scalar_row().max_f32(x, n), 2.0f);
}
static float bad_exp_sum(float *x, size_t n, float max) {
    return scalar_row().exp_sum_f32(x, n, max) + 1.0f;
}
static void bad_rmsnorm(const float *x, const float *w, float eps, size_t n, float *y) {
    scalar_row().rmsnorm(x, w, eps + 1.0f, n, y);
}
static void bad_rope(float *x, size_t n_head, size_t dim, const float *cs, const float *sn) {
    scalar_row().rope(x, n_head, dim, sn, cs);
}
static void bad_unit(const float *g, const float *u, size_t n, float *y) {
    for (size_t i = 0; i < n; i++) y[i] = g[i] * u[i];
}
static void bad_narrow(const float *x, uint16_t *y, size_t n) {
    scalar_row().f32_to_f16(x, y, n);
    y[n - 1] ^= 1;
}
static void bad_cap(float *x, size_t n, float cap) {
    scalar_row().softcap(x, n, 1.1f * cap);
}
static void bad_widen(const uint16_t *x, float *y, size_t n) {
    scalar_row().f16_to_f32(x, y, n);
    y[0] = -y[0];
}
static void bad_quantize(const float *x, size_t n, int8_t *q, float *d, float *s) {
    scalar_row().quantize_act(x, n, q, d, s);
    q[3] ^= 1;
}
static void bad_gemm(const pd_panels *w, size_t p0, size_t p1, const pd_qact *a, size_t t0,
                     size_t t1, float *y, size_t ldy) {
    scalar_row().gemm_panel(w, p0, p1, a, t0, t1, y, ldy);
    y[w->n_row - 1] = NAN;
}
static void bad_row(const pd_panels *w, size_t r, float *dst) {
    scalar_row().panel_row(w, r - 1, dst);
}
static void bad_attn16(const float *q, size_t n_group, size_t k_dim, size_t dim,
                       const void *const *pages, size_t first, size_t n, size_t n_next, float softcap, float *tmp,
                       size_t stride, float *m, float *l, float *acc) {
    scalar_row().attn_pages_f16(q, n_group, k_dim, dim, pages, first + 1, n - 1, n_next, softcap, tmp, stride, m,
                                 l, acc);
}
static void bad_attn32(const float *q, size_t n_group, size_t k_dim, size_t dim,
                       const void *const *pages, size_t first, size_t n, size_t n_next, float softcap, float *tmp,
                       size_t stride, float *m, float *l, float *acc) {
    scalar_row().attn_pages_f32(q, n_group, k_dim, dim, pages, first, n, n_next, softcap, tmp, stride, m, l, acc);
    l[0] *= 1.01f;
}

/* The last slot is wrong, or left out. */
#define BAD_PART(key, value)                               \
    static void bad_scores_##key(const pd_part_pass *p) {  \
        scalar_row().scores_##key(p);                      \
        p->tmp[p->first % 16 + p->n - 1] += 0.1f;          \
    }                                                      \
    static void bad_values_##value(const pd_part_pass *p) { \
        pd_part_pass late = *p;                            \
        late.n--;                                          \
        scalar_row().values_##value(&late);                 \
    }                                                      \
    static void bad_rows_##value(const pd_part_pass *p) {   \
        pd_part_pass late = *p;                            \
        late.n_row--;                                      \
        scalar_row().rows_##value(&late);                   \
    }
BAD_PART(f16, f16)
BAD_PART(f32, f32)
BAD_PART(q8, q8)
BAD_PART(q5, q4)
#undef BAD_PART

/* What is equal does not count. */
static float bad_sum_from(const float *x, size_t n, float t) {
    return scalar_row().sum_from_f32(x, n, nextafterf(t, INFINITY));
}
static size_t bad_list_from(const float *x, size_t stride, size_t n_group, size_t n, const float *t, uint32_t *row) {
    return scalar_row().list_from_f32(x, stride, n_group - 1, n, t, row);
}

/* The last page is off. */
static void bad_page_bounds(const uint16_t *block, const float *q, size_t n_group, size_t head_dim, float *bound) {
    scalar_row().page_bounds(block, q, n_group, head_dim, bound);
    bound[15] -= 0.1f;
}

/* The neighbour; two steps off; a step too much, too little. */
static size_t bad_nearest(const float *x, const float *book, size_t sub, size_t n) {
    return scalar_row().nearest_f32(x, book, sub, n) ^ 1;
}
static void bad_table(const float *q, const float *book, size_t sub, size_t n_code, size_t n, uint8_t *table, float *least, float *step) {
    scalar_row().code_table(q, book, sub, n_code, n, table, least, step);
    table[n_code * n - 1] ^= 2;
}
static void bad_codes8(const pd_code_pass *p) {
    scalar_row().scores_codes8(p);
    p->tmp[p->n_page * 16 - 1] += p->step[0];
}
static void bad_codes4(const pd_code_pass *p) {
    scalar_row().scores_codes4(p);
    p->tmp[0] -= p->step[0];
}

/* The diagonal counts twice. */
static void bad_quad(const float *k, size_t n, size_t d, const float *mu, const float *u, float *z) {
    scalar_row().quad_f32(k, n, d, mu, u, z);
    for (size_t i = 0; i < n; i++)
        for (size_t a = 0; a < d; a++) z[i] += k[i * d + a] * k[i * d + a] * u[a * d + a];
}

/* The last row is not counted; the last product is not. */
static void bad_centre(const float *x, size_t ld, size_t n, size_t d, const float *shift, float *y, float *total) {
    scalar_row().centre_f32(x, ld, n, d, shift, y, total);
    for (size_t c = 0; c < d; c++) total[c] -= y[(n - 1) * d + c];
}
static void bad_gram(const float *x, size_t n, size_t d, float *g) {
    scalar_row().gram_f32(x, n - 1, d, g);
}

/* The last factor is left out. */
static void bad_matmul(const float *a, size_t ld_a, size_t n, size_t k, const float *b, size_t ld_b, size_t m, float *y, size_t ld_y) {
    scalar_row().matmul_f32(a, ld_a, n, k - 1, b, ld_b, m, y, ld_y);
}

/* The last key is the first one again. */
static void bad_dots(const float *q, size_t n_head, size_t n_group, size_t head_dim, const uint16_t *keys, const uint32_t *row, size_t n, float *s,
                     size_t ld_s) {
    scalar_row().dots_f16(q, n_head, n_group, head_dim, keys, row, n - 1, s, ld_s);
    for (size_t g = 0; g < n_head * n_group; g++) s[g * ld_s + n - 1] = s[g * ld_s];
}

static void bad_tile(const pd_attn_rows *t) {
    pd_attn_rows late = *t;
    late.n_before--;
    scalar_row().attn_tile_f32(&late);
}
static void bad_sums(const pd_attn_rows *t, size_t s0, size_t s1, float *sums, size_t stride) {
    scalar_row().attn_tile_sums_f32(t, s0 + 64, s1, sums, stride);
}

static void the_self_test_sees(pd_kernels k, const char *entry) {
    pd_err err = {0};
    CHECK(pd_kernels_selftest(&k, &err) == PD_EINTERNAL, "a broken %s passes", entry);
    CHECK(strstr(err.msg, entry) != NULL, "%s not named in: %s", entry, err.msg);
}

static void a_broken_entry_is_named(void **state) {
    (void)state;
    const pd_kernels ref = scalar_row();
#define BREAK(entry, with)                \
    do {                                  \
        pd_kernels k = ref;               \
        k.entry = with;                   \
        the_self_test_sees(k, #entry);    \
    } while (0)
    BREAK(dot_f32, bad_dot);
    BREAK(axpy_f32, bad_axpy);
    BREAK(matmul_f32, bad_matmul);
    BREAK(dots_f16, bad_dots);
    BREAK(max_f32, bad_max);
    BREAK(exp_sum_f32, bad_exp_sum);
    BREAK(rmsnorm, bad_rmsnorm);
    BREAK(rope, bad_rope);
    BREAK(silu_mul, bad_unit);
    BREAK(gelu_mul, bad_unit);
    BREAK(softcap, bad_cap);
    BREAK(f32_to_f16, bad_narrow);
    BREAK(f16_to_f32, bad_widen);
    BREAK(quantize_act, bad_quantize);
    BREAK(gemm_panel, bad_gemm);
    BREAK(panel_row, bad_row);
    BREAK(attn_pages_f16, bad_attn16);
    BREAK(attn_pages_f32, bad_attn32);
    BREAK(scores_f16, bad_scores_f16);
    BREAK(scores_f32, bad_scores_f32);
    BREAK(scores_q8, bad_scores_q8);
    BREAK(scores_q5, bad_scores_q5);
    BREAK(values_f16, bad_values_f16);
    BREAK(values_f32, bad_values_f32);
    BREAK(values_q8, bad_values_q8);
    BREAK(values_q4, bad_values_q4);
    BREAK(rows_f16, bad_rows_f16);
    BREAK(rows_f32, bad_rows_f32);
    BREAK(rows_q8, bad_rows_q8);
    BREAK(rows_q4, bad_rows_q4);
    BREAK(sum_from_f32, bad_sum_from);
    BREAK(list_from_f32, bad_list_from);
    BREAK(page_bounds, bad_page_bounds);
    BREAK(nearest_f32, bad_nearest);
    BREAK(code_table, bad_table);
    BREAK(scores_codes8, bad_codes8);
    BREAK(scores_codes4, bad_codes4);
    BREAK(quad_f32, bad_quad);
    BREAK(centre_f32, bad_centre);
    BREAK(gram_f32, bad_gram);
    BREAK(attn_tile_f32, bad_tile);
    BREAK(attn_tile_fast, bad_tile);
    BREAK(attn_tile_sums_f32, bad_sums);
    BREAK(attn_tile_sums_fast, bad_sums);
#undef BREAK
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(masks_parse),
        cmocka_unit_test(bad_masks_are_refused),
        cmocka_unit_test(a_row_needs_the_ones_before),
        cmocka_unit_test(every_row_passes_the_self_test),
        cmocka_unit_test(a_broken_entry_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
