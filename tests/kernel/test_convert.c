/* SPDX-License-Identifier: Apache-2.0 */
/* f16 conversion and quantize_act: what must be the same to the last bit in
 * every row. */
#include "tests/kernel/util.h"

/* Value of a half that is not NaN, from its definition. */
static double half_value(uint16_t h) {
    const int exp = h >> 10 & 31, man = h & 1023;
    const double sign = h & 0x8000 ? -1.0 : 1.0;
    if (exp == 31) return sign * INFINITY;
    return sign * (exp ? ldexp(1024 + man, exp - 25) : ldexp(man, -24));
}

static bool half_is_nan(uint16_t h) {
    return (h & 0x7fff) > 0x7c00;
}

static void check_widen(const pd_kernels *k, const uint16_t *h, size_t n) {
    const pd_kernels ref = scalar_row();
    float *y = block_new(n * sizeof *y), *want = block_new(n * sizeof *want);
    k->f16_to_f32(h, y, n);
    ref.f16_to_f32(h, want, n);
    for (size_t i = 0; i < n; i++) {
        CHECK(memcmp(&y[i], &want[i], sizeof *y) == 0, "%s n=%zu half=%04x scalar %.9g got %.9g",
              k->isa, n, h[i], (double)want[i], (double)y[i]);
        CHECK(half_is_nan(h[i]) ? isnan(y[i]) != 0 : half_value(h[i]) == y[i],
              "%s n=%zu half=%04x value %.9g", k->isa, n, h[i], (double)y[i]);
    }
    block_free(y);
    block_free(want);
}

static void check_narrow(const pd_kernels *k, const float *x, size_t n) {
    const pd_kernels ref = scalar_row();
    uint16_t *y = block_new(n * sizeof *y), *want = block_new(n * sizeof *want);
    k->f32_to_f16(x, y, n);
    ref.f32_to_f16(x, want, n);
    for (size_t i = 0; i < n; i++)
        CHECK(y[i] == want[i], "%s n=%zu x=%.9g scalar %04x got %04x", k->isa, n, (double)x[i],
              want[i], y[i]);
    block_free(y);
    block_free(want);
}

static void every_half(void **state) {
    (void)state;
    uint16_t *h = block_new(65536 * sizeof *h);
    for (size_t i = 0; i < 65536; i++) h[i] = (uint16_t)i;
    FOR_EACH_ROW(k, check_widen(&k, h, 65536));
    for (size_t n = 0; n < 70; n++) {
        uint16_t *part = block_new(n * sizeof *part);
        for (size_t i = 0; i < n; i++) part[i] = (uint16_t)(i * 977);
        FOR_EACH_ROW(k, check_widen(&k, part, n));
        block_free(part);
    }
    block_free(h);
}

/* The nearest half: the distance to neither neighbour is smaller, and a tie goes
 * to the even one. */
static void check_nearest(const pd_kernels *k, float x) {
    uint16_t h;
    k->f32_to_f16(&x, &h, 1);
    if (fabsf(x) >= 65520.0f) { /* half way from the largest half to 2^16 */
        CHECK((h & 0x7fff) == 0x7c00, "%s x=%.9g got %04x, not infinite", k->isa, (double)x, h);
        return;
    }
    const double err = fabs(half_value(h) - x);
    const uint16_t mag = h & 0x7fff;
    for (int step = -1; step <= 1; step += 2) {
        if (mag + step < 0 || mag + step >= 0x7c00) continue;
        const double other = fabs(half_value((uint16_t)(h + step)) - x);
        CHECK(err < other || (err == other && h % 2 == 0),
              "%s x=%.9g got %04x (off by %.9g), %04x is off by %.9g", k->isa, (double)x, h, err,
              (unsigned)(h + step), other);
    }
    CHECK(signbit(x) == (h >> 15 ? signbit(-1.0f) : 0) || (signbit(x) != 0) == (h >> 15),
          "%s x=%.9g got %04x: sign", k->isa, (double)x, h);
}

static void narrow_to_nearest(void **state) {
    (void)state;
    pd_rng rng = {51};
    for (int i = 0; i < 40000; i++) {
        /* exponents from below the smallest half to above the largest; half of the
         * mantissas exactly on a tie of normal halves or beside one */
        const int exp = (int)random_below(&rng, 46) - 28;
        uint32_t man = (uint32_t)(pd_rng_u64(&rng) & 0x7fffff);
        if (i % 2) man = (man & ~0x1fffu) | (0x1000u + (uint32_t)random_below(&rng, 3) - 1);
        const float x = ldexpf(1.0f + (float)man * 0x1p-23f, exp) * (i % 3 ? 1.0f : -1.0f);
        FOR_EACH_ROW(k, check_nearest(&k, x));
    }
}

static void narrow_any_bits(void **state) {
    (void)state;
    pd_rng rng = {52};
    for (size_t n = 0; n < 300; n++) {
        float *x = block_new(n * sizeof *x);
        for (size_t i = 0; i < n; i++) { /* any bit pattern: NaN, infinity, subnormals */
            const uint32_t bits = (uint32_t)pd_rng_u64(&rng) | (i % 5 == 0 ? 0x7f800000u : 0);
            memcpy(&x[i], &bits, sizeof bits);
        }
        FOR_EACH_ROW(k, check_narrow(&k, x, n));
        block_free(x);
    }
    static const float special[] = {0.0f, -0.0f, 0x1p-24f, 0x1p-25f, 0x1.000002p-25f, 0x1.8p-24f,
                                    0x1p-14f, 0x1.ffcp-15f, 0x1.fff8p-15f, 65504.0f, 65519.996f,
                                    65520.0f, 65536.0f, FLT_MAX, FLT_MIN, INFINITY, -INFINITY};
    FOR_EACH_ROW(k, check_narrow(&k, special, LEN(special)));
}

static void check_quantize(const pd_kernels *k, const float *x, size_t n) {
    int8_t *q = block_new(n);
    float *d = block_new(n / 32 * sizeof *d), *s = block_new(n / 16 * sizeof *s);
    k->quantize_act(x, n, q, d, s);
    for (size_t b = 0; b < n / 32; b++) {
        /* the header's formula, step by step, volatile so that each rounds to f32 */
        float max = 0.0f;
        for (size_t i = 32 * b; i < 32 * b + 32; i++) max = fmaxf(max, fabsf(x[i]));
        volatile float step = max / 127.0f, inv = 127.0f / max;
        const bool zero = step < FLT_MIN;
        float want_s[2];
        int sum[2] = {0, 0};
        for (size_t i = 0; i < 32; i++) {
            volatile float scaled = x[32 * b + i] * inv;
            const int want = zero ? 0 : (int)nearbyintf(scaled);
            sum[i / 16] += want;
            CHECK(q[32 * b + i] == want, "%s n=%zu block=%zu i=%zu x=%.9g want %d got %d", k->isa,
                  n, b, i, (double)x[32 * b + i], want, q[32 * b + i]);
        }
        if (zero) step = 0.0f;
        const float want_d = step;
        for (int i = 0; i < 2; i++) want_s[i] = want_d * (float)sum[i];
        CHECK(memcmp(&want_d, &d[b], sizeof want_d) == 0, "%s n=%zu block=%zu d want %.9g got %.9g",
              k->isa, n, b, (double)want_d, (double)d[b]);
        CHECK(memcmp(want_s, s + 2 * b, sizeof want_s) == 0,
              "%s n=%zu block=%zu s want %.9g %.9g got %.9g %.9g", k->isa, n, b,
              (double)want_s[0], (double)want_s[1], (double)s[2 * b], (double)s[2 * b + 1]);
    }
    block_free(q);
    block_free(d);
    block_free(s);
}

static void quantize(void **state) {
    (void)state;
    pd_rng rng = {53};
    static const float ranges[] = {0.0f, 1e-44f, 1.4e-36f, 1.6e-36f, 1e-20f, 1.0f, 1e3f, FLT_MAX};
    for (size_t n = 32; n <= 320; n += 32)
        for (size_t r = 0; r < LEN(ranges); r++) {
            float *x = random_f32(&rng, n, ranges[r]);
            FOR_EACH_ROW(k, check_quantize(&k, x, n));
            for (size_t i = 0; i < n; i++) x[i] = i % 2 ? -ranges[r] : ranges[r]; /* all at +-127 */
            FOR_EACH_ROW(k, check_quantize(&k, x, n));
            /* exact ties: max 127 makes the scale 1 */
            for (size_t i = 0; i < n; i++) x[i] = (float)random_below(&rng, 253) - 126.5f;
            for (size_t b = 0; b < n; b += 32) x[b] = 127.0f;
            FOR_EACH_ROW(k, check_quantize(&k, x, n));
            block_free(x);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half),      cmocka_unit_test(narrow_to_nearest),
        cmocka_unit_test(narrow_any_bits), cmocka_unit_test(quantize),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
