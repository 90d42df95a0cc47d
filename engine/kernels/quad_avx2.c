/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2: quad_f32 (quad.inc), 8 sums in registers. */
#include "engine/kernels/rows.h"

#include <immintrin.h>

#define FORCE_INLINE static inline __attribute__((always_inline))
#define V __m256
#define W 8
#define NV 2
#define zero _mm256_setzero_ps
#define load _mm256_loadu_ps
#define set1 _mm256_set1_ps
#define fma _mm256_fmadd_ps

FORCE_INLINE float sum(__m256 x) {
    const __m128 a = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 b = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}

#include "engine/kernels/quad.inc"

void pd__kernels_init_quad_avx2(pd_kernels *k) {
    k->quad_f32 = quad_f32;
}
