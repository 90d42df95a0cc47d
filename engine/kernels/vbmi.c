/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512 VBMI: product codes of 256 centroids (kernels.h).
 *
 * A part's table is four registers; two permutes and a blend look 64 codes up, those of one part
 * in four pages.  Cost: some 12 instructions for that, which is 0.2 a look-up. */
#include "engine/kernels/rows.h"

#include <immintrin.h>

#define FORCE_INLINE static inline __attribute__((always_inline))

enum { N = PD_PAGE_TOKENS, QUAD = 4, MAX_QUADS = 4 };

/* 16 bytes of each of four pages. */
FORCE_INLINE __m512i gather(const uint8_t *const *page, size_t at) {
    __m512i x = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(page[0] + at)));
    x = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *)(page[1] + at)), 1);
    x = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *)(page[2] + at)), 2);
    return _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *)(page[3] + at)), 3);
}

FORCE_INLINE void put(__m512i lo, __m512i hi, float least, float step, size_t n, float *tmp) {
    uint16_t l[32], h[32];
    _mm512_storeu_si512(l, lo);
    _mm512_storeu_si512(h, hi);
    for (size_t i = 0; i < n; i++) {
        const __m256i sum = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(l + 8 * i))),
                                                    _mm_loadu_si128((const __m128i *)(h + 8 * i)), 1);
        const __m512 f = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(sum));
        _mm512_storeu_ps(tmp + i * N, _mm512_add_ps(_mm512_set1_ps(least), _mm512_mul_ps(_mm512_set1_ps(step), f)));
    }
}

/* n quads of pages, one query head. */
FORCE_INLINE void quads(const pd_code_pass *p, const uint8_t *const *page, int n, size_t n_page, size_t g, float *tmp) {
    const uint8_t *table = p->table + g * p->n_code * 256;
    __m512i lo[MAX_QUADS], hi[MAX_QUADS];
    for (int j = 0; j < n; j++) lo[j] = hi[j] = _mm512_setzero_si512();
    for (size_t i = 0; i < p->n_code; i++, table += 256) {
        const __m512i t0 = _mm512_loadu_si512(table), t1 = _mm512_loadu_si512(table + 64),
                      t2 = _mm512_loadu_si512(table + 128), t3 = _mm512_loadu_si512(table + 192);
        for (int j = 0; j < n; j++) {
            const __m512i code = gather(page + QUAD * j, i * N); /* a permute goes by its low seven bits */
            const __m512i a = _mm512_permutex2var_epi8(t0, code, t1), b = _mm512_permutex2var_epi8(t2, code, t3);
            const __m512i x = _mm512_mask_blend_epi8(_mm512_movepi8_mask(code), a, b);
            lo[j] = _mm512_add_epi16(lo[j], _mm512_unpacklo_epi8(x, _mm512_setzero_si512()));
            hi[j] = _mm512_add_epi16(hi[j], _mm512_unpackhi_epi8(x, _mm512_setzero_si512()));
        }
    }
    for (int j = 0; j < n; j++) {
        const size_t left = n_page - (size_t)(QUAD * j);
        put(lo[j], hi[j], p->least[g], p->step[g], left < QUAD ? left : QUAD, tmp + QUAD * N * j);
    }
}

static void scores_codes8(const pd_code_pass *p) {
    for (size_t at = 0; at < p->n_page; at += QUAD * MAX_QUADS) {
        const size_t left = p->n_page - at, n = left < QUAD * MAX_QUADS ? left : QUAD * MAX_QUADS;
        const uint8_t *page[QUAD * MAX_QUADS];
        for (size_t i = 0; i < QUAD * MAX_QUADS; i++) page[i] = p->pages[at + (i < n ? i : n - 1)];
        const size_t next = at + QUAD * MAX_QUADS, end = next + QUAD * MAX_QUADS;
        for (size_t k = next; k < end && k < p->n_page + p->n_next; k++)
            for (size_t i = 0; i < p->n_code * N; i += 64) _mm_prefetch((const char *)p->pages[k] + i, _MM_HINT_T0);
        for (size_t g = 0; g < p->n_group; g++) {
            float *tmp = p->tmp + g * p->tmp_stride + at * N;
            switch ((n + QUAD - 1) / QUAD) {
            case 1: quads(p, page, 1, n, g, tmp); break;
            case 2: quads(p, page, 2, n, g, tmp); break;
            case 3: quads(p, page, 3, n, g, tmp); break;
            default: quads(p, page, 4, n, g, tmp);
            }
        }
    }
}

void pd__kernels_init_vbmi(pd_kernels *k) {
    k->scores_codes8 = scores_codes8;
}
