/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2: sums of queries and of their products (moments.inc), 8 sums in registers. */
#include "engine/kernels/rows.h"

#include <immintrin.h>

#define FORCE_INLINE static inline __attribute__((always_inline))
#define V __m256
#define W 8
#define NV 2
#define ROWS(nv) ((nv) == 1 ? 8 : 4)
#define zero _mm256_setzero_ps
#define load _mm256_loadu_ps
#define store _mm256_storeu_ps
#define set1 _mm256_set1_ps
#define add _mm256_add_ps
#define sub _mm256_sub_ps
#define fma _mm256_fmadd_ps

#include "engine/kernels/moments.inc"

void pd__kernels_init_moments_avx2(pd_kernels *k) {
    k->centre_f32 = centre_f32;
    k->gram_f32 = gram_f32;
}
