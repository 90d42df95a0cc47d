/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel tests share: every row this CPU has, exact-size blocks, and
 * checks that print the row, the sizes and both values.
 *
 * Bounds are derived, never tuned: u = 2^-24 is half an ulp of f32, and a sum of
 * n products in any order is off by at most n u sum|a_i b_i| (Higham 2002,
 * section 3.1), to first order; two such results are compared, hence n * EPS.
 * A failure is a bug. */
#ifndef PD_TESTS_KERNEL_UTIL_H
#define PD_TESTS_KERNEL_UTIL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/rng.h"
#include "engine/kernels/kernels.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EPS ((double)FLT_EPSILON) /* 2 u */
#define LEN(a) (sizeof(a) / sizeof *(a))

/* Runs body once for every row: scalar first, then each stronger table that
 * differs from the one before. */
#define FOR_EACH_ROW(k, body)                                                          \
    do {                                                                               \
        static const unsigned masks_[] = {0, PD_CPU_AVX2,                              \
                                          PD_CPU_AVX2 | PD_CPU_AVXVNNI,                \
                                          PD_CPU_AVX2 | PD_CPU_AVX512,                 \
                                          PD_CPU_AVX2 | PD_CPU_AVX512 | PD_CPU_VBMI,   \
                                          PD_CPU_AVX2 | PD_CPU_AVX512 | PD_CPU_VNNI,   \
                                          PD_CPU_AVX2 | PD_CPU_AVX512 | PD_CPU_VNNI |  \
                                              PD_CPU_BF16};                            \
        for (size_t i_ = 0; i_ < LEN(masks_); i_++) {                                  \
            if ((masks_[i_] & pd_cpu_detect()) != masks_[i_]) continue;                \
            pd_kernels k;                                                              \
            pd_kernels_init(&k, masks_[i_]);                                           \
            body;                                                                      \
        }                                                                              \
    } while (0)

#define CHECK(cond, ...)                                    \
    do {                                                    \
        if (!(cond)) {                                      \
            fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); \
            fprintf(stderr, __VA_ARGS__);                   \
            fprintf(stderr, "\n");                          \
            fail();                                         \
        }                                                   \
    } while (0)

/* |want - got| <= bound; NaN fails unless both are. */
static inline bool near(double want, double got, double bound) {
    return want == got || fabs(want - got) <= bound || (isnan(want) && isnan(got));
}

/* A block of exactly `bytes`, so that ASan sees the first byte past it, offset
 * so that vectors in it are not aligned.  Free with block_free. */
static inline void *block_new(size_t bytes) {
    char *p = malloc(bytes + 4);
    if (!p) abort();
    return p + 4;
}

static inline void block_free(void *p) {
    free((char *)p - 4);
}

static inline float *random_f32(pd_rng *rng, size_t n, float scale) {
    float *x = block_new(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = pd_rng_f32(rng) * scale;
    return x;
}

/* Uniform in [0, n), n small. */
static inline size_t random_below(pd_rng *rng, size_t n) {
    return pd_rng_u64(rng) % n;
}

/* Scalar table, the definition. */
static inline pd_kernels scalar_row(void) {
    pd_kernels k;
    pd_kernels_init(&k, 0);
    return k;
}

#endif
