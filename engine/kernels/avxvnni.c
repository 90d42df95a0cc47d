/* SPDX-License-Identifier: Apache-2.0 */
/* AVX_VNNI row: gemm_panel on the 256-bit vpdpbusd (gemm_ymm.inc), for processors that have
 * it and no AVX-512.  Four products are added in 32 bits at once, where AVX2 takes three
 * instructions and cuts bytes in two. */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define FORCE_INLINE static inline __attribute__((always_inline))

FORCE_INLINE __m256i dot_u8(__m256i sum, __m256i w, const int8_t *a) {
    int32_t four;
    memcpy(&four, a, sizeof four);
    return _mm256_dpbusd_avx_epi32(sum, w, _mm256_set1_epi32(four));
}

#include "engine/kernels/high_bits.inc"

/* Integer sums are exact in any order: two chains a token, since one waits for itself. */
FORCE_INLINE void dot_block(const uint8_t *w, unsigned bits, int n_group, const int8_t *a,
                            size_t lda, int nt, __m256i *ret) {
    const __m256i low4 = _mm256_set1_epi8(15);
    const int n_load = bits == 8 ? n_group : n_group / 2;
    const __m256i high = bits == 5 || bits == 6 ? _mm256_load_si256((const __m256i *)(w + 32 * n_group)) : low4;
    __m256i other[4];
    for (int t = 0; t < nt; t++) ret[t] = other[t] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int g = 0; g < n_load; g += bits == 8 ? 2 : 1) {
        __m256i v0 = _mm256_load_si256((const __m256i *)(w + 64 * g)), v1;
        if (bits != 8) {
            v1 = _mm256_and_si256(_mm256_srli_epi16(v0, 4), low4);
            v0 = _mm256_and_si256(v0, low4);
            if (bits == 5 || bits == 6) {
                v0 = _mm256_or_si256(v0, high_bits(high, bits, g));
                v1 = _mm256_or_si256(v1, high_bits(high, bits, g + n_group / 2));
            }
        } else {
            v1 = _mm256_load_si256((const __m256i *)(w + 64 * (g + 1)));
        }
        for (int t = 0; t < nt; t++) {
            const int8_t *at = a + t * lda + 4 * g;
            ret[t] = dot_u8(ret[t], v0, at);
            other[t] = dot_u8(other[t], v1, at + (bits == 8 ? 4 : 2 * n_group)); /* 4 * n_group / 2 columns on */
        }
    }
    for (int t = 0; t < nt; t++) ret[t] = _mm256_add_epi32(ret[t], other[t]);
}

#include "engine/kernels/gemm_ymm.inc"

void pd__kernels_init_avxvnni(pd_kernels *k) {
    k->isa = "avx2+vnni";
    k->gemm_panel = gemm_panel;
}
