/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2: small products (mat.inc). */
#include "engine/kernels/rows.h"

#include <immintrin.h>

typedef __m256 vec;
enum { WIDTH = 8, ROWS = 4, VECS = 2 };
#define load _mm256_loadu_ps
#define store _mm256_storeu_ps
#define spread _mm256_set1_ps
#define fma _mm256_fmadd_ps
#define zero _mm256_setzero_ps

#include "engine/kernels/mat.inc"

void pd__kernels_init_mat_avx2(pd_kernels *k) {
    k->matmul_f32 = matmul_f32;
}
