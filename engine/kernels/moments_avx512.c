/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512: sums of queries and of their products (moments.inc), 12 to 16 sums in registers. */
#include "engine/kernels/rows.h"

#include <immintrin.h>

#define FORCE_INLINE static inline __attribute__((always_inline))
#define V __m512
#define W 16
#define NV 4
#define ROWS(nv) ((nv) == 1 ? 16 : (nv) == 2 ? 8 : 4)
#define zero _mm512_setzero_ps
#define load _mm512_loadu_ps
#define store _mm512_storeu_ps
#define set1 _mm512_set1_ps
#define add _mm512_add_ps
#define sub _mm512_sub_ps
#define fma _mm512_fmadd_ps

#include "engine/kernels/moments.inc"

void pd__kernels_init_moments_avx512(pd_kernels *k) {
    k->centre_f32 = centre_f32;
    k->gram_f32 = gram_f32;
}
