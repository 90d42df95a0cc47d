/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2: product codes (kernels.h).
 *
 * Cost: of 16 centroids a part's table is a register, so that one shuffle looks 32 codes up.
 * 256 centroids have no such way here: scalar code stays. */
#include "engine/kernels/rows.h"

#include <float.h>
#include <immintrin.h>

#define FORCE_INLINE static inline __attribute__((always_inline))

enum { N = PD_PAGE_TOKENS, AHEAD = 8 /* pages: each is a line or a few, and the hardware does not guess the next */ };

static size_t nearest_f32(const float *x, const float *book, size_t sub, size_t n) {
    __m256 best = _mm256_set1_ps(__builtin_inff());
    __m256i at = _mm256_setzero_si256();
    for (size_t c = 0; c < n; c += 8) {
        __m256 sum = _mm256_setzero_ps();
        for (size_t k = 0; k < sub; k++) {
            const __m256 off = _mm256_sub_ps(_mm256_set1_ps(x[k]), _mm256_loadu_ps(book + k * n + c));
            sum = _mm256_fmadd_ps(off, off, sum);
        }
        const __m256 less = _mm256_cmp_ps(sum, best, _CMP_LT_OQ);
        best = _mm256_blendv_ps(best, sum, less);
        at = _mm256_blendv_epi8(at, _mm256_set1_epi32((int)c), _mm256_castps_si256(less));
    }
    float b[8];
    int32_t a[8];
    _mm256_storeu_ps(b, best);
    _mm256_storeu_si256((__m256i *)a, at);
    size_t lane = 0;
    for (size_t i = 1; i < 8; i++)
        if (b[i] < b[lane] || (b[i] == b[lane] && (size_t)a[i] + i < (size_t)a[lane] + lane)) lane = i;
    return (size_t)a[lane] + lane;
}

/* What 8 centroids of a part get. */
FORCE_INLINE __m256 product(const float *q, const float *book, size_t sub, size_t n, size_t c) {
    __m256 sum = _mm256_setzero_ps();
    for (size_t k = 0; k < sub; k++) sum = _mm256_fmadd_ps(_mm256_set1_ps(q[k]), _mm256_loadu_ps(book + k * n + c), sum);
    return sum;
}

static float least_of(__m256 x) {
    __m128 y = _mm_min_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_min_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_min_ss(y, _mm_shuffle_ps(y, y, 1)));
}

static void code_table(const float *q, const float *book, size_t sub, size_t n_code, size_t n, uint8_t *table,
                       float *least, float *step) {
    float lo[256], widest = 0.0f;
    for (size_t i = 0; i < n_code; i++) {
        __m256 a = _mm256_set1_ps(__builtin_inff()), b = a; /* b: of what is turned round */
        for (size_t c = 0; c < n; c += 8) {
            const __m256 x = product(q + i * sub, book + i * sub * n, sub, n, c);
            a = _mm256_min_ps(a, x);
            b = _mm256_min_ps(b, _mm256_sub_ps(_mm256_setzero_ps(), x));
        }
        lo[i] = least_of(a);
        const float wide = -least_of(b) - lo[i];
        if (wide > widest) widest = wide;
    }
    const float s = widest / 255.0f;
    const __m256 by = _mm256_set1_ps(s < FLT_MIN ? 0.0f : 255.0f / widest);
    *step = s < FLT_MIN ? 0.0f : s;
    *least = 0.0f;
    for (size_t i = 0; i < n_code; i++) {
        const __m256 from = _mm256_set1_ps(lo[i]);
        *least += lo[i];
        for (size_t c = 0; c < n; c += 16) {
            __m256i t[2];
            for (size_t h = 0; h < 2; h++) {
                const __m256 x = product(q + i * sub, book + i * sub * n, sub, n, c + 8 * h);
                t[h] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_sub_ps(x, from), by));
            }
            const __m256i w = _mm256_permute4x64_epi64(_mm256_packs_epi32(t[0], t[1]), 0xd8);
            _mm_storeu_si128((__m128i *)(table + i * n + c),
                             _mm_packus_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
        }
    }
}

/* Rows i, i + 1 of a page's codes: their sums to lo (slots 0-7) and hi (8-15), a half for each row. */
FORCE_INLINE void two_rows(__m256i x, __m256i low, __m256i high, __m256i *lo, __m256i *hi) {
    const __m256i four = _mm256_set1_epi8(15), ones = _mm256_set1_epi8(1);
    const __m256i a = _mm256_shuffle_epi8(low, _mm256_and_si256(x, four));
    const __m256i b = _mm256_shuffle_epi8(high, _mm256_and_si256(_mm256_srli_epi16(x, 4), four));
    *lo = _mm256_add_epi16(*lo, _mm256_maddubs_epi16(_mm256_unpacklo_epi8(a, b), ones));
    *hi = _mm256_add_epi16(*hi, _mm256_maddubs_epi16(_mm256_unpackhi_epi8(a, b), ones));
}

FORCE_INLINE __m256i one128(const uint8_t *p) {
    return _mm256_inserti128_si256(_mm256_setzero_si256(), _mm_loadu_si128((const __m128i *)p), 0);
}

/* 8 slots' sums, of both halves, to their scores. */
FORCE_INLINE void put8(__m256i sum, float least, float step, float *tmp) {
    const __m128i all = _mm_add_epi16(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    const __m256 x = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(all));
    _mm256_storeu_ps(tmp, _mm256_add_ps(_mm256_set1_ps(least), _mm256_mul_ps(_mm256_set1_ps(step), x)));
}

static void scores_codes4(const pd_code_pass *p) {
    const size_t half = p->n_code / 2;
    for (size_t page = 0; page < p->n_page; page++) {
        const uint8_t *codes = p->pages[page];
        for (size_t i = 0; page + AHEAD < p->n_page + p->n_next && i < half * N; i += 64)
            _mm_prefetch((const char *)p->pages[page + AHEAD] + i, _MM_HINT_T0);
        for (size_t g = 0; g < p->n_group; g++) {
            const uint8_t *table = p->table + g * p->n_code * 16;
            __m256i lo = _mm256_setzero_si256(), hi = lo;
            size_t i = 0;
            for (; i + 2 <= half; i += 2)
                two_rows(_mm256_loadu_si256((const __m256i *)(codes + i * N)),
                         _mm256_loadu_si256((const __m256i *)(table + i * 16)),
                         _mm256_loadu_si256((const __m256i *)(table + (half + i) * 16)), &lo, &hi);
            if (i < half) two_rows(one128(codes + i * N), one128(table + i * 16), one128(table + (half + i) * 16), &lo, &hi);
            float *tmp = p->tmp + g * p->tmp_stride + page * N;
            put8(lo, p->least[g], p->step[g], tmp);
            put8(hi, p->least[g], p->step[g], tmp + 8);
        }
    }
}

void pd__kernels_init_codes_avx2(pd_kernels *k) {
    k->nearest_f32 = nearest_f32;
    k->code_table = code_table;
    k->scores_codes4 = scores_codes4;
}
