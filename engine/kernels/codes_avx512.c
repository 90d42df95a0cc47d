/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512: product codes (kernels.h).
 *
 * Cost: of 16 centroids four parts' tables are a register, so that two shuffles look 128 codes
 * up.  256 centroids want VBMI (vbmi.c). */
#include "engine/kernels/rows.h"

#include <float.h>
#include <immintrin.h>

#define FORCE_INLINE static inline __attribute__((always_inline))

enum { N = PD_PAGE_TOKENS, AHEAD = 8 /* pages: each is a line or a few, and the hardware does not guess the next */ };

static size_t nearest_f32(const float *x, const float *book, size_t sub, size_t n) {
    __m512 best = _mm512_set1_ps(__builtin_inff());
    __m512i at = _mm512_setzero_si512();
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (size_t c = 0; c < n; c += 16) {
        __m512 sum = _mm512_setzero_ps();
        for (size_t k = 0; k < sub; k++) {
            const __m512 off = _mm512_sub_ps(_mm512_set1_ps(x[k]), _mm512_loadu_ps(book + k * n + c));
            sum = _mm512_fmadd_ps(off, off, sum);
        }
        const __mmask16 less = _mm512_cmp_ps_mask(sum, best, _CMP_LT_OQ);
        best = _mm512_mask_mov_ps(best, less, sum);
        at = _mm512_mask_add_epi32(at, less, lane, _mm512_set1_epi32((int)c));
    }
    const __mmask16 equal = _mm512_cmp_ps_mask(best, _mm512_set1_ps(_mm512_reduce_min_ps(best)), _CMP_EQ_OQ);
    return (size_t)_mm512_mask_reduce_min_epu32(equal, at);
}

/* What 16 centroids of a part get. */
FORCE_INLINE __m512 product(const float *q, const float *book, size_t sub, size_t n, size_t c) {
    __m512 sum = _mm512_setzero_ps();
    for (size_t k = 0; k < sub; k++) sum = _mm512_fmadd_ps(_mm512_set1_ps(q[k]), _mm512_loadu_ps(book + k * n + c), sum);
    return sum;
}

static void code_table(const float *q, const float *book, size_t sub, size_t n_code, size_t n, uint8_t *table,
                       float *least, float *step) {
    float lo[256], widest = 0.0f;
    for (size_t i = 0; i < n_code; i++) {
        __m512 a = _mm512_set1_ps(__builtin_inff()), b = _mm512_set1_ps(-__builtin_inff());
        for (size_t c = 0; c < n; c += 16) {
            const __m512 x = product(q + i * sub, book + i * sub * n, sub, n, c);
            a = _mm512_min_ps(a, x);
            b = _mm512_max_ps(b, x);
        }
        lo[i] = _mm512_reduce_min_ps(a);
        const float wide = _mm512_reduce_max_ps(b) - lo[i];
        if (wide > widest) widest = wide;
    }
    const float s = widest / 255.0f;
    const __m512 by = _mm512_set1_ps(s < FLT_MIN ? 0.0f : 255.0f / widest);
    *step = s < FLT_MIN ? 0.0f : s;
    *least = 0.0f;
    for (size_t i = 0; i < n_code; i++) {
        const __m512 from = _mm512_set1_ps(lo[i]);
        *least += lo[i];
        for (size_t c = 0; c < n; c += 16) {
            const __m512 x = product(q + i * sub, book + i * sub * n, sub, n, c);
            const __m512i t = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(x, from), by));
            _mm_storeu_si128((__m128i *)(table + i * n + c), _mm512_cvtusepi32_epi8(t));
        }
    }
}

/* 8 slots' sums, of all four lanes, as 8 numbers of 16 bits. */
FORCE_INLINE __m128i fold(__m512i x) {
    const __m256i y = _mm256_add_epi16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    return _mm_add_epi16(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
}

static void scores_codes4(const pd_code_pass *p) {
    const size_t half = p->n_code / 2;
    const __m512i four = _mm512_set1_epi8(15), ones = _mm512_set1_epi8(1);
    for (size_t page = 0; page < p->n_page; page++) {
        const uint8_t *codes = p->pages[page];
        for (size_t i = 0; page + AHEAD < p->n_page + p->n_next && i < half * N; i += 64)
            _mm_prefetch((const char *)p->pages[page + AHEAD] + i, _MM_HINT_T0);
        for (size_t g = 0; g < p->n_group; g++) {
            const uint8_t *table = p->table + g * p->n_code * 16;
            __m512i lo = _mm512_setzero_si512(), hi = lo;
            for (size_t i = 0; i < half; i += 4) { /* a row that is not there looks 0 up */
                const size_t left = half - i;
                const __mmask64 some = left < 4 ? (1ull << 16 * left) - 1 : ~0ull;
                const __m512i x = _mm512_maskz_loadu_epi8(some, codes + i * N);
                const __m512i a = _mm512_shuffle_epi8(_mm512_maskz_loadu_epi8(some, table + i * 16), _mm512_and_si512(x, four));
                const __m512i b = _mm512_shuffle_epi8(_mm512_maskz_loadu_epi8(some, table + (half + i) * 16),
                                                      _mm512_and_si512(_mm512_srli_epi16(x, 4), four));
                lo = _mm512_add_epi16(lo, _mm512_maddubs_epi16(_mm512_unpacklo_epi8(a, b), ones));
                hi = _mm512_add_epi16(hi, _mm512_maddubs_epi16(_mm512_unpackhi_epi8(a, b), ones));
            }
            const __m256i sum = _mm256_inserti128_si256(_mm256_castsi128_si256(fold(lo)), fold(hi), 1);
            const __m512 f = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(sum));
            _mm512_storeu_ps(p->tmp + g * p->tmp_stride + page * N,
                             _mm512_add_ps(_mm512_set1_ps(p->least[g]), _mm512_mul_ps(_mm512_set1_ps(p->step[g]), f)));
        }
    }
}

void pd__kernels_init_codes_avx512(pd_kernels *k) {
    k->nearest_f32 = nearest_f32;
    k->code_table = code_table;
    k->scores_codes4 = scores_codes4;
}
