/* SPDX-License-Identifier: Apache-2.0 */
/* engine/gguf/quant: every type bit for bit against the reference (golden data
 * of tests/golden/quants.py), and split against dequant. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/rng.h"
#include "engine/gguf/quant.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SERVED = 15, PATTERNS = 64 };

static uint32_t bits_of(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static void golden_bits(void **state) {
    (void)state;
    FILE *f = fopen(PD_SOURCE_DIR "/tests/golden/data/quants.bin", "rb");
    assert_non_null(f);
    uint32_t head[4];
    size_t n_types = 0;
    while (fread(head, sizeof head, 1, f) == 1) {
        const pd_qtype *t = pd_qtype_find(head[0]);
        if (!t) fail_msg("type %u is not served", head[0]);
        assert_int_equal(t->bytes, head[2]);
        assert_int_equal(t->block, head[3]);
        const size_t n = head[1] * t->block;
        uint8_t *src = malloc(head[1] * t->bytes); /* exact sizes: ASan sees a read past the end */
        float *want = malloc(n * sizeof *want), *got = malloc(n * sizeof *got);
        assert_int_equal(fread(src, t->bytes, head[1], f), head[1]);
        assert_int_equal(fread(want, sizeof *want, n, f), n);
        t->dequant(src, got, n);
        for (size_t i = 0; i < n; i++)
            if (bits_of(want[i]) != bits_of(got[i]))
                fail_msg("%s block %zu element %zu: want %.9g (%08x) got %.9g (%08x)", t->name,
                         i / t->block, i % t->block, (double)want[i], bits_of(want[i]),
                         (double)got[i], bits_of(got[i]));
        free(src);
        free(want);
        free(got);
        n_types++;
    }
    fclose(f);
    assert_int_equal(n_types, SERVED);
}

/* Random blocks whose scales are finite: drawn again until the results are. */
static void random_blocks(const pd_qtype *t, pd_rng *rng, uint8_t *src, float *x, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++) {
        bool finite;
        do {
            for (size_t i = 0; i < t->bytes; i++) src[b * t->bytes + i] = (uint8_t)pd_rng_u64(rng);
            t->dequant(src + b * t->bytes, x + b * t->block, t->block);
            finite = true;
            for (size_t i = 0; i < t->block; i++) finite &= isfinite(x[b * t->block + i]) != 0;
        } while (!finite);
    }
}

/* x = d q + m evaluated in double is off by 2^-53 relative; dequant rounds once
 * to f32 (d q is exact there: at most 24 bits), so they differ by half an ulp of
 * x: 2^-24 |x|, and nothing below the smallest normal where sums are exact. */
static void split_agrees_with_dequant(void **state) {
    (void)state;
    pd_rng rng = {7};
    size_t n_split = 0;
    for (size_t k = 0; pd_qtype_at(k); k++) {
        const pd_qtype *t = pd_qtype_at(k);
        if (!t->split) {
            assert_true(t->block == 1 && t->pack_bits == 0);
            continue;
        }
        n_split++;
        assert_true(t->pack_bits >= 4 && t->pack_bits <= 8 && t->pack_bits != 7);
        assert_true(t->pack_block == 16 || t->pack_block == 32);
        const size_t n = PATTERNS * t->block, n_sub = n / t->pack_block;
        uint8_t *src = malloc(PATTERNS * t->bytes), *q = malloc(n);
        float *x = malloc(n * sizeof *x), *d = malloc(n_sub * sizeof *d),
              *m = malloc(n_sub * sizeof *m);
        random_blocks(t, &rng, src, x, PATTERNS);
        memset(q, 0xEE, n);
        t->split(src, n, q, d, m);
        for (size_t i = 0; i < n; i++) {
            assert_true(q[i] < 1u << t->pack_bits);
            const size_t s = i / t->pack_block;
            const double want = (double)d[s] * q[i] + (double)m[s];
            if (!(fabs(want - (double)x[i]) <= ldexp(fabs(want), -24)))
                fail_msg("%s element %zu: dequant %.9g, split %.9g = %.9g * %u + %.9g", t->name, i,
                         (double)x[i], want, (double)d[s], q[i], (double)m[s]);
        }
        free(src);
        free(q);
        free(x);
        free(d);
        free(m);
    }
    assert_int_equal(n_split, SERVED - 3);
}

/* Any block, infinite and NaN scales too: no undefined behaviour (under UBSan),
 * and the integers do not depend on the scales. */
static void any_bytes_are_defined(void **state) {
    (void)state;
    pd_rng rng = {11};
    for (size_t k = 0; pd_qtype_at(k); k++) {
        const pd_qtype *t = pd_qtype_at(k);
        uint8_t src[256], q[256];
        float x[256], d[16], m[16];
        for (int round = 0; round < 2000; round++) {
            for (size_t i = 0; i < t->bytes; i++) src[i] = (uint8_t)pd_rng_u64(&rng);
            t->dequant(src, x, t->block);
            if (t->split) t->split(src, t->block, q, d, m);
        }
    }
}

static void f16_by_its_definition(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        const int e = h >> 10 & 31, man = h & 1023;
        const double sign = h & 0x8000 ? -1.0 : 1.0;
        const float got = pd_f16_to_f32((uint16_t)h);
        if (e == 31) {
            assert_true(man ? isnan(got) : isinf(got) && (got < 0) == (sign < 0));
            continue;
        }
        const double want = sign * (e ? ldexp(1024 + man, e - 25) : ldexp(man, -24));
        if (bits_of((float)want) != bits_of(got))
            fail_msg("f16 %04x: want %g got %g", h, want, (double)got);
    }
    assert_true(pd_bf16_to_f32(0x3FC0) == 1.5f);
    assert_true(isinf(pd_bf16_to_f32(0x7F80)));
}

static void table_is_consistent(void **state) {
    (void)state;
    size_t n = 0;
    for (; pd_qtype_at(n); n++) {
        assert_ptr_equal(pd_qtype_find(pd_qtype_at(n)->id), pd_qtype_at(n));
        for (size_t k = 0; k < n; k++)
            assert_string_not_equal(pd_qtype_at(k)->name, pd_qtype_at(n)->name);
    }
    assert_int_equal(n, SERVED);
    assert_null(pd_qtype_find(4)); /* a type of old that is gone */
    assert_null(pd_qtype_find(UINT32_MAX));
    assert_null(pd_qtype_at(SIZE_MAX));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_bits),
        cmocka_unit_test(split_agrees_with_dequant),
        cmocka_unit_test(any_bytes_are_defined),
        cmocka_unit_test(f16_by_its_definition),
        cmocka_unit_test(table_is_consistent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
