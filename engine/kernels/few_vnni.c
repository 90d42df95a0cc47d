/* SPDX-License-Identifier: Apache-2.0 */
/* AVX512_VNNI: keys and values in few bits (kernels.h).
 *
 * Scores: vpdpbusd on four channels of 16 slots; its first factor has no sign, so q8
 * adds 128 to every n and takes 128 times the sum of the query's integers off again.
 * Values: steps go into the weights once a page; q8's integers become f32, q4's
 * choose n - 7.5 from a table of 16.
 *
 * Cost per 64 bytes of K: q8 1 operation a head, q5 2 (16 in f16), and 2 to add the fifth
 * bits.  Values cost what f16's cost and read half or a quarter. */
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

FORCE_INLINE __m512i four(const int8_t *q) {
    int32_t v;
    memcpy(&v, q, sizeof v);
    return _mm512_set1_epi32(v);
}

/* Bytes of a part's numbers of 8, 5 or 4 bits; the steps follow. */
FORCE_INLINE size_t numbers(size_t dim, int bits) {
    return 2 * dim * (size_t)bits;
}

FORCE_INLINE __m512 steps(const uint8_t *part, size_t dim, size_t b, int bits) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(part + numbers(dim, bits) + b * 32)));
}

FORCE_INLINE __m512i add_fifth(__m512i v, const uint8_t *at) {
    uint64_t bits;
    memcpy(&bits, at, sizeof bits);
    return _mm512_mask_add_epi8(v, bits, v, _mm512_set1_epi8(16));
}

/* tmp[g][0..16) = the scores of a page's 16 slots.  Integer sums are exact in any
 * order: two chains a head hide the latency. */
FORCE_INLINE void page_scores(const pd_part_pass *p, size_t g0, int ng, const uint8_t *part,
                              const uint8_t *later, bool q5, float *tmp) {
    const int bits = q5 ? 5 : 8;
    const size_t dim = p->head_dim, n_grp = dim / GROUP;
    const __m512i sign = _mm512_set1_epi8(-128), low4 = _mm512_set1_epi8(15);
    const int8_t *q = p->q_n + g0 * dim;
    __m512 s[MAX_NG];
    for (int g = 0; g < ng; g++) s[g] = _mm512_setzero_ps();
    for (size_t b = 0; b < n_grp; b++) {
        __m512i dot[MAX_NG][2];
        for (int g = 0; g < ng; g++) dot[g][0] = dot[g][1] = _mm512_setzero_si512();
        for (size_t i = 0; i < 4; i++) { /* 8 channels */
            const uint8_t *at = part + (b * 4 + i) * (q5 ? 64 : 128), *high = part + 8 * dim + (b * 4 + i) * 16;
            __m512i v[2];
            if (q5) {
                const __m512i x = _mm512_loadu_si512(at);
                v[0] = add_fifth(_mm512_and_si512(x, low4), high);
                v[1] = add_fifth(_mm512_and_si512(_mm512_srli_epi16(x, 4), low4), high + 8);
            } else {
                v[0] = _mm512_xor_si512(_mm512_loadu_si512(at), sign);
                v[1] = _mm512_xor_si512(_mm512_loadu_si512(at + 64), sign);
                _mm_prefetch((const char *)later + (at - part) + 64, _MM_HINT_T0);
            }
            _mm_prefetch((const char *)later + (at - part), _MM_HINT_T0);
            for (int g = 0; g < ng; g++) {
                const int8_t *at_q = q + (size_t)g * dim + b * GROUP + i * 8;
                dot[g][0] = _mm512_dpbusd_epi32(dot[g][0], v[0], four(at_q));
                dot[g][1] = _mm512_dpbusd_epi32(dot[g][1], v[1], four(at_q + 4));
            }
        }
        if (q5) _mm_prefetch((const char *)later + 8 * dim + b * 64, _MM_HINT_T0);
        _mm_prefetch((const char *)later + numbers(dim, bits) + b * 32, _MM_HINT_T0);
        const __m512 d = steps(part, dim, b, bits);
        for (int g = 0; g < ng; g++) {
            const size_t at = (g0 + (size_t)g) * n_grp + b;
            const __m512 n = _mm512_cvtepi32_ps(_mm512_add_epi32(dot[g][0], dot[g][1])); /* < 2^24 */
            const __m512 x = _mm512_sub_ps(n, _mm512_set1_ps((q5 ? 15.5f : 128.0f) * p->q_sum[at]));
            s[g] = _mm512_fmadd_ps(d, _mm512_mul_ps(_mm512_set1_ps(p->q_d[at]), x), s[g]);
        }
    }
    for (int g = 0; g < ng; g++) _mm512_storeu_ps(tmp + (size_t)g * p->tmp_stride, s[g]);
}

/* acc[g] += sum over slots j of w * v[j], the channels of nb groups from b on. */
FORCE_INLINE void group_values(float w[2][MAX_NG][16], int ng, int nb, size_t dim,
                               const uint8_t *v, size_t b, bool q4, size_t j0, size_t j1, float *acc) {
    const __m512 table = _mm512_setr_ps(-7.5f, -6.5f, -5.5f, -4.5f, -3.5f, -2.5f, -1.5f, -0.5f, 0.5f,
                                        1.5f, 2.5f, 3.5f, 4.5f, 5.5f, 6.5f, 7.5f);
    __m512 s[MAX_NG][2][2];
    for (int g = 0; g < ng; g++)
        for (int i = 0; i < nb; i++)
            for (int h = 0; h < 2; h++)
                s[g][i][h] = _mm512_loadu_ps(acc + (size_t)g * dim + (b + (size_t)i) * GROUP + 16 * h);
    for (size_t j = j0; j < j1; j++) {
        for (int i = 0; i < nb; i++) {
            __m512 x[2];
            if (q4) {
                const uint8_t *at = v + j * dim / 2 + (b + (size_t)i) * 16;
                const __m512i n = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)at));
                x[0] = _mm512_permutexvar_ps(n, table); /* looks at the low four bits alone */
                x[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(n, 4), table);
            } else {
                const uint8_t *at = v + j * dim + (b + (size_t)i) * GROUP;
                for (int h = 0; h < 2; h++)
                    x[h] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(at + 16 * h))));
            }
            for (int g = 0; g < ng; g++) {
                const __m512 by = _mm512_set1_ps(w[i][g][j]);
                s[g][i][0] = _mm512_fmadd_ps(by, x[0], s[g][i][0]);
                s[g][i][1] = _mm512_fmadd_ps(by, x[1], s[g][i][1]);
            }
        }
    }
    for (int g = 0; g < ng; g++)
        for (int i = 0; i < nb; i++)
            for (int h = 0; h < 2; h++)
                _mm512_storeu_ps(acc + (size_t)g * dim + (b + (size_t)i) * GROUP + 16 * h, s[g][i][h]);
}

FORCE_INLINE void page_values(const pd_part_pass *p, size_t g0, int ng, const uint8_t *part,
                              const uint8_t *later, bool q4, size_t j0, size_t j1, const float *tmp) {
    const size_t dim = p->head_dim, n_grp = dim / GROUP;
    const int bits = q4 ? 4 : 8;
    float w[2][MAX_NG][16];
    for (size_t b = 0; b < n_grp; b += 2) {
        const int nb = b + 1 < n_grp ? 2 : 1;
        for (size_t i = 0; i < (size_t)nb * (q4 ? 4 : 8); i++)
            _mm_prefetch((const char *)later + (b * (q4 ? 4 : 8) + i) * 64, _MM_HINT_T0);
        _mm_prefetch((const char *)later + numbers(dim, bits) + b * 32, _MM_HINT_T0);
        for (int i = 0; i < nb; i++) {
            const __m512 d = steps(part, dim, b + (size_t)i, bits);
            for (int g = 0; g < ng; g++)
                _mm512_storeu_ps(w[i][g], _mm512_mul_ps(d, _mm512_loadu_ps(tmp + (size_t)g * p->tmp_stride)));
        }
        if (nb == 2)
            group_values(w, ng, 2, dim, part, b, q4, j0, j1, p->acc + g0 * dim);
        else
            group_values(w, ng, 1, dim, part, b, q4, j0, j1, p->acc + g0 * dim);
    }
}

#include "engine/kernels/few.inc"

void pd__kernels_init_few_vnni(pd_kernels *k) {
    k->scores_q8 = scores_q8;
    k->scores_q5 = scores_q5;
    k->values_q8 = values_q8;
    k->values_q4 = values_q4;
}
