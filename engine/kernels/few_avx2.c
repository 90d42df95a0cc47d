/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2: keys and values in few bits (kernels.h).
 *
 * Scores: a load of K has four channels of 8 slots, which vpmaddubsw multiplies by
 * the query's four.  q8 takes |k| and gives its sign to q, so that pairs stay below
 * 2 * 127 * 127 < 2^15; q5's pairs stay below 2 * 31 * 127, and four of a group are
 * added in 16 bits.
 * Values: steps go into the weights once a page, integers become f32.
 *
 * Cost per 32 bytes of K: q8 4 operations a head, q5 4 for twice the channels, and 8 to
 * put the fifth bits in their place. */
#include "engine/kernels/rows.h"

#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

#define FORCE_INLINE static inline __attribute__((always_inline))

enum {
    MAX_NG = 4,      /* query heads that share one load of K or V */
    AHEAD_KV = 4096, /* bytes of K or V prefetched ahead: whole pages, at least the next */
    GROUP = PD_KV_GROUP,
};

FORCE_INLINE __m256i four(const int8_t *q) {
    int32_t v;
    memcpy(&v, q, sizeof v);
    return _mm256_set1_epi32(v);
}

/* Bytes of a part's numbers of 8, 5 or 4 bits; the steps follow. */
FORCE_INLINE size_t numbers(size_t dim, int bits) {
    return 2 * dim * (size_t)bits;
}

FORCE_INLINE __m256 steps8(const uint8_t *part, size_t dim, size_t b, int half, int bits) {
    const uint8_t *d = part + numbers(dim, bits) + b * 32 + (size_t)half * 16;
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)d));
}

/* 32 bits, each as 16 or 0 in a byte. */
FORCE_INLINE __m256i fifth_bits(const uint8_t *at) {
    int32_t v;
    memcpy(&v, at, sizeof v);
    const __m256i byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    const __m256i x = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(v), byte), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(x, bit), _mm256_set1_epi8(16));
}

/* tmp[g][0..16) = the scores of a page's 16 slots. */
FORCE_INLINE void page_scores(const pd_part_pass *p, size_t g0, int ng, const uint8_t *part,
                              const uint8_t *later, bool q5, float *tmp) {
    const int bits = q5 ? 5 : 8;
    const size_t dim = p->head_dim, n_grp = dim / GROUP;
    const __m256i ones = _mm256_set1_epi16(1), low4 = _mm256_set1_epi8(15);
    const int8_t *q = p->q_n + g0 * dim;
    __m256 s[MAX_NG][2];
    for (int g = 0; g < ng; g++) s[g][0] = s[g][1] = _mm256_setzero_ps();
    for (size_t b = 0; b < n_grp; b++) {
        _mm_prefetch((const char *)later + numbers(dim, bits) + b * 32, _MM_HINT_T0);
        if (q5) _mm_prefetch((const char *)later + 8 * dim + b * 64, _MM_HINT_T0);
        for (int half = 0; half < 2; half++) {
            __m256i dot[MAX_NG], pair[MAX_NG]; /* pair: of two octets, in 16 bits */
            for (int g = 0; g < ng; g++) dot[g] = pair[g] = _mm256_setzero_si256();
            for (size_t i = 0; i < (q5 ? 4 : 8); i++) {
                const size_t octet = b * (q5 ? 4 : 8) + i, at = octet * 64 + (size_t)half * 32;
                const __m256i v = _mm256_loadu_si256((const __m256i *)(part + at));
                if (half == 0) _mm_prefetch((const char *)later + at, _MM_HINT_T0);
                if (q5) {
                    const uint8_t *high = part + 8 * dim + octet * 16 + (size_t)half * 4;
                    const __m256i lo = _mm256_or_si256(_mm256_and_si256(v, low4), fifth_bits(high));
                    const __m256i hi = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(v, 4), low4), fifth_bits(high + 8));
                    for (int g = 0; g < ng; g++) {
                        const int8_t *at_q = q + (size_t)g * dim + b * GROUP + i * 8;
                        pair[g] = _mm256_add_epi16(pair[g], _mm256_maddubs_epi16(lo, four(at_q)));
                        pair[g] = _mm256_add_epi16(pair[g], _mm256_maddubs_epi16(hi, four(at_q + 4)));
                        if (i % 2 == 0) continue;
                        dot[g] = _mm256_add_epi32(dot[g], _mm256_madd_epi16(pair[g], ones));
                        pair[g] = _mm256_setzero_si256();
                    }
                } else {
                    const __m256i mag = _mm256_abs_epi8(v);
                    for (int g = 0; g < ng; g++) {
                        const __m256i x = four(q + (size_t)g * dim + b * GROUP + i * 4);
                        const __m256i m = _mm256_maddubs_epi16(mag, _mm256_sign_epi8(x, v));
                        dot[g] = _mm256_add_epi32(dot[g], _mm256_madd_epi16(m, ones));
                    }
                }
            }
            const __m256 d = steps8(part, dim, b, half, bits);
            for (int g = 0; g < ng; g++) {
                const size_t at = (g0 + (size_t)g) * n_grp + b;
                __m256 x = _mm256_cvtepi32_ps(dot[g]);
                if (q5) x = _mm256_sub_ps(x, _mm256_set1_ps(15.5f * p->q_sum[at]));
                s[g][half] = _mm256_fmadd_ps(d, _mm256_mul_ps(_mm256_set1_ps(p->q_d[at]), x), s[g][half]);
            }
        }
    }
    for (int g = 0; g < ng; g++) {
        _mm256_storeu_ps(tmp + (size_t)g * p->tmp_stride, s[g][0]);
        _mm256_storeu_ps(tmp + (size_t)g * p->tmp_stride + 8, s[g][1]);
    }
}

/* acc[g] += sum over slots j of w[g][j] * v[j], channels of one group. */
FORCE_INLINE void group_values(float w[MAX_NG][16], int ng, size_t dim, const uint8_t *v,
                               size_t b, bool q4, size_t j0, size_t j1, float *acc) {
    for (size_t half = 0; half < 2; half++) { /* 16 channels */
        const size_t c = b * GROUP + 16 * half;
        __m256 s[MAX_NG][2];
        for (int g = 0; g < ng; g++)
            for (size_t i = 0; i < 2; i++) s[g][i] = _mm256_loadu_ps(acc + (size_t)g * dim + c + 8 * i);
        for (size_t j = j0; j < j1; j++) {
            __m128i n;
            __m256 x[2];
            if (q4) {
                n = _mm_loadu_si128((const __m128i *)(v + j * dim / 2 + b * 16));
                n = _mm_and_si128(half ? _mm_srli_epi16(n, 4) : n, _mm_set1_epi8(15));
                const __m256 mid = _mm256_set1_ps(7.5f);
                x[0] = _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(n)), mid);
                x[1] = _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(n, 8))), mid);
            } else {
                n = _mm_loadu_si128((const __m128i *)(v + j * dim + c));
                x[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(n));
                x[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(n, 8)));
            }
            for (int g = 0; g < ng; g++) {
                const __m256 by = _mm256_set1_ps(w[g][j]);
                s[g][0] = _mm256_fmadd_ps(by, x[0], s[g][0]);
                s[g][1] = _mm256_fmadd_ps(by, x[1], s[g][1]);
            }
        }
        for (int g = 0; g < ng; g++)
            for (size_t i = 0; i < 2; i++) _mm256_storeu_ps(acc + (size_t)g * dim + c + 8 * i, s[g][i]);
    }
}

FORCE_INLINE void page_values(const pd_part_pass *p, size_t g0, int ng, const uint8_t *part,
                              const uint8_t *later, bool q4, size_t j0, size_t j1, const float *tmp) {
    const size_t dim = p->head_dim;
    const int bits = q4 ? 4 : 8;
    float w[MAX_NG][16];
    for (size_t b = 0; b < dim / GROUP; b++) {
        for (size_t i = 0; i < (q4 ? 4 : 8); i++)
            _mm_prefetch((const char *)later + (b * (q4 ? 4 : 8) + i) * 64, _MM_HINT_T0);
        _mm_prefetch((const char *)later + numbers(dim, bits) + b * 32, _MM_HINT_T0);
        for (int g = 0; g < ng; g++)
            for (int half = 0; half < 2; half++)
                _mm256_storeu_ps(w[g] + 8 * half,
                                 _mm256_mul_ps(_mm256_loadu_ps(tmp + (size_t)g * p->tmp_stride + 8 * half),
                                               steps8(part, dim, b, half, bits)));
        group_values(w, ng, dim, part, b, q4, j0, j1, p->acc + g0 * dim);
    }
}

#include "engine/kernels/few.inc"

void pd__kernels_init_few_avx2(pd_kernels *k) {
    k->scores_q8 = scores_q8;
    k->scores_q5 = scores_q5;
    k->values_q8 = values_q8;
    k->values_q4 = values_q4;
}
