/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2 row: gemm_panel on vpmaddubsw (gemm_ymm.inc). */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define FORCE_INLINE static inline __attribute__((always_inline))

/* vpmaddubsw adds two u8 x s8 products in 16 bits and saturates.  A weight is
 * cut in 4-bit planes, so that a pair is at most 2 * 15 * 127 and 8 groups of
 * them stay below 2^15.
 *
 * The empty asm pins the order: GCC would delay and regroup the additions, and
 * spill (4 bits, 64 tokens on Cascade Lake: about 15 % slower). */
FORCE_INLINE __m256i dot_u4(__m256i sum16, __m256i w, const int8_t *a) {
    int32_t four;
    memcpy(&four, a, sizeof four);
    sum16 = _mm256_add_epi16(sum16, _mm256_maddubs_epi16(w, _mm256_set1_epi32(four)));
    __asm__ volatile("" : "+x"(sum16));
    return sum16;
}

#include "engine/kernels/high_bits.inc"

/* Integer dot products of 8 rows of one block (n_group groups of 4 columns) with
 * nt tokens. */
FORCE_INLINE void dot_block(const uint8_t *w, unsigned bits, int n_group, const int8_t *a,
                            size_t lda, int nt, __m256i *ret) {
    const __m256i low4 = _mm256_set1_epi8(15);
    __m256i lo[4], hi[4];
    for (int t = 0; t < nt; t++) lo[t] = hi[t] = _mm256_setzero_si256();
    const __m256i high = bits == 5 || bits == 6 ? _mm256_load_si256((const __m256i *)(w + 32 * n_group)) : low4;
    const int n_load = bits == 8 ? n_group : n_group / 2;
#pragma GCC unroll 8
    for (int g = 0; g < n_load; g++) {
        const __m256i v = _mm256_load_si256((const __m256i *)(w + 64 * g));
        __m256i v0 = _mm256_and_si256(v, low4);
        __m256i v1 = _mm256_and_si256(_mm256_srli_epi16(v, 4), low4);
        if (bits == 5 || bits == 6) { /* a pair is at most 2 * 31 or 63 * 127: 4 or 2 groups stay below 2^15 */
            v0 = _mm256_or_si256(v0, high_bits(high, bits, g));
            v1 = _mm256_or_si256(v1, high_bits(high, bits, g + n_group / 2));
        }
        for (int t = 0; t < nt; t++) {
            const int8_t *at = a + t * lda + 4 * g;
            lo[t] = dot_u4(lo[t], v0, at);
            if (bits == 4)
                lo[t] = dot_u4(lo[t], v1, at + 2 * n_group); /* 4 * n_group / 2 columns on */
            else
                hi[t] = dot_u4(hi[t], v1, bits == 8 ? at : at + 2 * n_group);
        }
    }
    for (int t = 0; t < nt; t++) {
        ret[t] = _mm256_madd_epi16(lo[t], _mm256_set1_epi16(1));
        if (bits != 4)
            ret[t] = _mm256_add_epi32(ret[t], _mm256_madd_epi16(hi[t], _mm256_set1_epi16(bits == 8 ? 16 : 1)));
    }
}

#include "engine/kernels/gemm_ymm.inc"

void pd__kernels_init_gemm_avx2(pd_kernels *k) {
    k->gemm_panel = gemm_panel;
}
