/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512: small products (mat.inc). */
#include "engine/kernels/rows.h"

#include <immintrin.h>

typedef __m512 vec;
enum { WIDTH = 16, ROWS = 6, VECS = 4 };
#define load _mm512_loadu_ps
#define store _mm512_storeu_ps
#define spread _mm512_set1_ps
#define fma _mm512_fmadd_ps
#define zero _mm512_setzero_ps

#include "engine/kernels/mat.inc"

void pd__kernels_init_mat_avx512(pd_kernels *k) {
    k->matmul_f32 = matmul_f32;
}
