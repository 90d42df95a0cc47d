/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512: quad_f32 (quad.inc), 16 sums in registers.  Cost: d (d + 32) / 2 multiply-adds a
 * key at d = 64, bound by the multipliers as long as u fits L1 (d <= 96). */
#include "engine/kernels/rows.h"

#include <immintrin.h>

#define FORCE_INLINE static inline __attribute__((always_inline))
#define V __m512
#define W 16
#define NV 4
#define zero _mm512_setzero_ps
#define load _mm512_loadu_ps
#define set1 _mm512_set1_ps
#define fma _mm512_fmadd_ps
#define sum _mm512_reduce_add_ps

#include "engine/kernels/quad.inc"

void pd__kernels_init_quad_avx512(pd_kernels *k) {
    k->quad_f32 = quad_f32;
}
