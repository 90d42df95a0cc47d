/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512: which rows a step reads, the sum over those rows and scores of such keys (kernels.h).
 *
 * Cost: a row of V is loaded once for up to 4 heads, 64 channels at a time; its lines
 * are asked for a few rows ahead, since the next chosen row may lie anywhere.  A sum
 * is bound by its loads. */
#include "engine/kernels/pick.h"
#include "engine/kernels/rows.h"

#include <immintrin.h>
#include <stdbool.h>

#define FORCE_INLINE static inline __attribute__((always_inline))

enum { MAX_NG = 4, AHEAD_ROWS = 16, GROUP = PD_KV_GROUP };

/* 16 channels of a slot. */
FORCE_INLINE __m512 load16(const uint8_t *part, size_t slot, size_t dim, size_t c, type t) {
    const uint8_t *at = row_at(part, slot, dim, c, t);
    if (t == F16) return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at));
    if (t == F32) return _mm512_loadu_ps(at);
    __m128i n = _mm_loadu_si128((const __m128i *)at);
    const uint16_t *d = (const uint16_t *)(part + 16 * dim / (t == Q4 ? 2 : 1)) + c / GROUP * 16 + slot;
    const __m512 step = _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(*d)));
    if (t == Q8) return _mm512_mul_ps(step, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(n)));
    n = _mm_and_si128(c % GROUP ? _mm_srli_epi16(n, 4) : n, _mm_set1_epi8(15));
    return _mm512_mul_ps(step, _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(n)), _mm512_set1_ps(7.5f)));
}

/* The row's first line, and in few bits that of its page's steps. */
FORCE_INLINE void ask_for(const pd_part_pass *p, size_t row, type t) {
    const uint8_t *part = part_of(p, row);
    _mm_prefetch((const char *)row_at(part, row % 16, p->head_dim, 0, t), _MM_HINT_T0);
    if (t == Q8 || t == Q4) _mm_prefetch((const char *)part + 16 * p->head_dim / (t == Q4 ? 2 : 1), _MM_HINT_T0);
}

/* acc[g][c .. c + 16 nv) of heads g0 .. g0 + ng */
FORCE_INLINE void block(const pd_part_pass *p, size_t g0, int ng, size_t c, int nv, type t) {
    const size_t dim = p->head_dim, n = p->n_row;
    const float *w = p->tmp + g0 * p->tmp_stride;
    float *acc = p->acc + g0 * dim + c;
    __m512 s[MAX_NG][4];
    for (int g = 0; g < ng; g++)
        for (int i = 0; i < nv; i++) s[g][i] = _mm512_setzero_ps();
    for (size_t j = 0; j < n; j++) {
        const size_t r = p->row[j], next = p->row[j + AHEAD_ROWS < n ? j + AHEAD_ROWS : j];
        const uint8_t *part = part_of(p, r), *later = part_of(p, next);
        if (c == 0) ask_for(p, next, t);
        __m512 x[4];
        for (int i = 0; i < nv; i++) {
            const size_t from = c + 16 * (size_t)i;
            if (from > 0 && from * (t == F16 ? 2 : t == F32 ? 4 : 1) % 64 == 0)
                _mm_prefetch((const char *)row_at(later, next % 16, dim, from, t), _MM_HINT_T0);
            x[i] = load16(part, r % 16, dim, from, t);
        }
        const size_t at = p->dense ? j : r;
        for (int g = 0; g < ng; g++) {
            const __m512 by = _mm512_set1_ps(w[(size_t)g * p->tmp_stride + at]);
            for (int i = 0; i < nv; i++) s[g][i] = _mm512_fmadd_ps(by, x[i], s[g][i]);
        }
    }
    for (int g = 0; g < ng; g++)
        for (int i = 0; i < nv; i++) _mm512_storeu_ps(acc + (size_t)g * dim + 16 * i, s[g][i]);
}

FORCE_INLINE void heads(const pd_part_pass *p, size_t g0, int ng, type t) {
    size_t c = 0;
    for (; c + 64 <= p->head_dim; c += 64) block(p, g0, ng, c, 4, t);
    for (; c < p->head_dim; c += 16) block(p, g0, ng, c, 1, t);
}

FORCE_INLINE void rows(const pd_part_pass *p, type t) {
    for (size_t j = 0; j < p->n_row && j < AHEAD_ROWS; j++) ask_for(p, p->row[j], t);
    for (size_t g = 0; g < p->n_group; g += MAX_NG) {
        switch (p->n_group - g) {
        case 1: heads(p, g, 1, t); break;
        case 2: heads(p, g, 2, t); break;
        case 3: heads(p, g, 3, t); break;
        default: heads(p, g, 4, t);
        }
    }
}

static void rows_f16(const pd_part_pass *p) {
    rows(p, F16);
}

static void rows_f32(const pd_part_pass *p) {
    rows(p, F32);
}

static void rows_q8(const pd_part_pass *p) {
    rows(p, Q8);
}

static void rows_q4(const pd_part_pass *p) {
    rows(p, Q4);
}

/* ---- scores of rows that lie anywhere ---- */

enum { MANY = 16 };

/* Lane k of each quarter: the sum of that quarter of x[k]. */
FORCE_INLINE __m512 quarters(const __m512 *x) {
    const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
    const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
    const __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
}

/* Lane k: the sum of x[k]. */
FORCE_INLINE __m512 sums(const __m512 *x) {
    const __m512 a = quarters(x), b = quarters(x + 4), c = quarters(x + 8), d = quarters(x + 12);
    const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    return _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
}

/* part[g][k]: what channels [c, c + 16 nv) give key k and head g0 + g. */
FORCE_INLINE void dots_block(const float *q, int ng, size_t dim, size_t c, int nv, const uint16_t *const *key, __m512 part[MAX_NG][MANY]) {
    __m512 x[MAX_NG][4];
    for (int g = 0; g < ng; g++)
        for (int i = 0; i < nv; i++) x[g][i] = _mm512_loadu_ps(q + (size_t)g * dim + c + 16 * (size_t)i);
    for (size_t k = 0; k < MANY; k++) {
        __m512 s[MAX_NG];
        for (int g = 0; g < ng; g++) s[g] = c ? part[g][k] : _mm512_setzero_ps();
        for (int i = 0; i < nv; i++) {
            const __m512 y = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(key[k] + c + 16 * (size_t)i)));
            for (int g = 0; g < ng; g++) s[g] = _mm512_fmadd_ps(x[g][i], y, s[g]);
        }
        for (int g = 0; g < ng; g++) part[g][k] = s[g];
    }
}

/* Heads g0 .. g0 + ng of those of one KV head, of MANY keys; `live` of them are written. */
FORCE_INLINE void dots_heads(const float *q, int ng, size_t dim, const uint16_t *const *key, __mmask16 live, float *s, size_t ld_s) {
    __m512 part[MAX_NG][MANY];
    size_t c = 0;
    for (; c + 64 <= dim; c += 64) dots_block(q, ng, dim, c, 4, key, part);
    for (; c < dim; c += 16) dots_block(q, ng, dim, c, 1, key, part);
    for (int g = 0; g < ng; g++) _mm512_mask_storeu_ps(s + (size_t)g * ld_s, live, sums(part[g]));
}

static void dots_f16(const float *q, size_t n_head, size_t n_group, size_t dim, const uint16_t *keys, const uint32_t *row, size_t n, float *s,
                     size_t ld_s) {
    const size_t ld = n_head * dim;
    for (size_t i = 0; i < n; i += MANY) {
        const uint16_t *key[MANY];
        const size_t m = n - i < MANY ? n - i : MANY;
        const __mmask16 live = (__mmask16)((1u << m) - 1);
        for (size_t k = 0; k < MANY; k++) key[k] = keys + row[i + (k < m ? k : m - 1)] * ld; /* the last one again: no branch */
        for (size_t h = 0; h < n_head; h++) {
            for (size_t k = h; k < MANY; k += n_head) { /* a share of those of the next MANY */
                const uint16_t *later = keys + row[i + MANY + k < n ? i + MANY + k : n - 1] * ld;
                for (size_t c = 0; c < ld; c += 32) _mm_prefetch((const char *)(later + c), _MM_HINT_T0);
            }
            for (size_t g = 0; g < n_group; g += MAX_NG) {
                const float *from = q + (h * n_group + g) * dim;
                float *to = s + (h * n_group + g) * ld_s + i;
                switch (n_group - g) {
                case 1: dots_heads(from, 1, dim, key, live, to, ld_s); break;
                case 2: dots_heads(from, 2, dim, key, live, to, ld_s); break;
                case 3: dots_heads(from, 3, dim, key, live, to, ld_s); break;
                default: dots_heads(from, 4, dim, key, live, to, ld_s);
                }
            }
            for (size_t k = 0; k < MANY; k++) key[k] += dim;
        }
    }
}

/* The lowest k lanes, k <= 16. */
FORCE_INLINE __mmask16 lanes(size_t k) {
    return (__mmask16)((1u << k) - 1);
}

static float sum_from_f32(const float *x, size_t n, float t) {
    const __m512 from = _mm512_set1_ps(t);
    __m512 s[4];
    for (int i = 0; i < 4; i++) s[i] = _mm512_setzero_ps();
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        for (int k = 0; k < 4; k++) {
            const __m512 v = _mm512_loadu_ps(x + i + 16 * k);
            s[k] = _mm512_mask_add_ps(s[k], _mm512_cmp_ps_mask(v, from, _CMP_GE_OQ), s[k], v);
        }
    }
    for (; i < n; i += 16) {
        const __mmask16 some = lanes(n - i < 16 ? n - i : 16);
        const __m512 v = _mm512_maskz_loadu_ps(some, x + i);
        s[0] = _mm512_mask_add_ps(s[0], _mm512_mask_cmp_ps_mask(some, v, from, _CMP_GE_OQ), s[0], v);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(s[0], s[1]), _mm512_add_ps(s[2], s[3])));
}

static size_t list_from_f32(const float *x, size_t stride, size_t n_group, size_t n, const float *t, uint32_t *row) {
    __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    size_t n_row = 0;
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 some = lanes(n - i < 16 ? n - i : 16);
        __mmask16 in = 0;
        for (size_t g = 0; g < n_group; g++) {
            const __m512 v = _mm512_maskz_loadu_ps(some, x + g * stride + i);
            in |= _mm512_mask_cmp_ps_mask(some, v, _mm512_set1_ps(t[g]), _CMP_GE_OQ);
        }
        _mm512_storeu_si512(row + n_row, _mm512_maskz_compress_epi32(in, at));
        n_row += (size_t)__builtin_popcount(in);
        at = _mm512_add_epi32(at, _mm512_set1_epi32(16));
    }
    return n_row;
}

/* Of a product with x > 0 the largest number gives most, else the least. */
static void page_bounds(const uint16_t *block, const float *q, size_t n_group, size_t head_dim, float *bound) {
    __m512 most = _mm512_set1_ps(-__builtin_inff());
    for (size_t g = 0; g < n_group; g++) {
        __m512 s[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (size_t c = 0; c < head_dim; c++) {
            const float x = q[g * head_dim + c];
            const uint16_t *side = block + ((x > 0.0f ? head_dim : 0) + c) * 16;
            s[c % 2] = _mm512_fmadd_ps(_mm512_set1_ps(x), _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)side)), s[c % 2]);
        }
        most = _mm512_max_ps(most, _mm512_add_ps(s[0], s[1]));
    }
    _mm512_storeu_ps(bound, most);
}

void pd__kernels_init_pick_avx512(pd_kernels *k) {
    k->dots_f16 = dots_f16;
    k->rows_f16 = rows_f16;
    k->rows_f32 = rows_f32;
    k->rows_q8 = rows_q8;
    k->rows_q4 = rows_q4;
    k->sum_from_f32 = sum_from_f32;
    k->list_from_f32 = list_from_f32;
    k->page_bounds = page_bounds;
}
