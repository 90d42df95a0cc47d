/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2: which rows a step reads, the sum over those rows and scores of such keys (kernels.h).
 *
 * Cost: a row of V is loaded once for up to 4 heads, 16 channels at a time; its lines
 * are asked for a few rows ahead, since the next chosen row may lie anywhere.  A sum
 * is bound by its loads. */
#include "engine/kernels/pick.h"
#include "engine/kernels/rows.h"

#include <immintrin.h>
#include <stdbool.h>

#define FORCE_INLINE static inline __attribute__((always_inline))

enum { MAX_NG = 4, AHEAD_ROWS = 16, GROUP = PD_KV_GROUP };

/* 16 channels of a slot. */
FORCE_INLINE void load16(const uint8_t *part, size_t slot, size_t dim, size_t c, type t, __m256 x[2]) {
    const uint8_t *at = row_at(part, slot, dim, c, t);
    if (t == F32) {
        for (int i = 0; i < 2; i++) x[i] = _mm256_loadu_ps((const float *)at + 8 * i);
        return;
    }
    if (t == F16) {
        for (int i = 0; i < 2; i++) x[i] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at + i));
        return;
    }
    __m128i n = _mm_loadu_si128((const __m128i *)at);
    const uint16_t *d = (const uint16_t *)(part + 16 * dim / (t == Q4 ? 2 : 1)) + c / GROUP * 16 + slot;
    const __m256 step = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(*d)));
    if (t == Q4) n = _mm_and_si128(c % GROUP ? _mm_srli_epi16(n, 4) : n, _mm_set1_epi8(15));
    const __m128i high = _mm_srli_si128(n, 8);
    const __m256 mid = _mm256_set1_ps(t == Q4 ? 7.5f : 0.0f);
    /* 0 to 15 as signed bytes are what they are unsigned */
    x[0] = _mm256_mul_ps(step, _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(n)), mid));
    x[1] = _mm256_mul_ps(step, _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)), mid));
}

/* The row's first line, and in few bits that of its page's steps. */
FORCE_INLINE void ask_for(const pd_part_pass *p, size_t row, type t) {
    const uint8_t *part = part_of(p, row);
    _mm_prefetch((const char *)row_at(part, row % 16, p->head_dim, 0, t), _MM_HINT_T0);
    if (t == Q8 || t == Q4) _mm_prefetch((const char *)part + 16 * p->head_dim / (t == Q4 ? 2 : 1), _MM_HINT_T0);
}

/* acc[g][c .. c + 16) of heads g0 .. g0 + ng */
FORCE_INLINE void block(const pd_part_pass *p, size_t g0, int ng, size_t c, type t) {
    const size_t dim = p->head_dim, n = p->n_row;
    const float *w = p->tmp + g0 * p->tmp_stride;
    float *acc = p->acc + g0 * dim + c;
    __m256 s[MAX_NG][2];
    for (int g = 0; g < ng; g++) s[g][0] = s[g][1] = _mm256_setzero_ps();
    for (size_t j = 0; j < n; j++) {
        const size_t r = p->row[j], next = p->row[j + AHEAD_ROWS < n ? j + AHEAD_ROWS : j];
        if (c == 0)
            ask_for(p, next, t);
        else if (c * (t == F16 ? 2 : t == F32 ? 4 : 1) % 64 == 0)
            _mm_prefetch((const char *)row_at(part_of(p, next), next % 16, dim, c, t), _MM_HINT_T0);
        __m256 x[2];
        load16(part_of(p, r), r % 16, dim, c, t, x);
        for (int g = 0; g < ng; g++) {
            const __m256 by = _mm256_set1_ps(w[(size_t)g * p->tmp_stride + (p->dense ? j : r)]);
            s[g][0] = _mm256_fmadd_ps(by, x[0], s[g][0]);
            s[g][1] = _mm256_fmadd_ps(by, x[1], s[g][1]);
        }
    }
    for (int g = 0; g < ng; g++)
        for (int i = 0; i < 2; i++) _mm256_storeu_ps(acc + (size_t)g * dim + 8 * i, s[g][i]);
}

FORCE_INLINE void rows(const pd_part_pass *p, type t) {
    for (size_t j = 0; j < p->n_row && j < AHEAD_ROWS; j++) ask_for(p, p->row[j], t);
    for (size_t g = 0; g < p->n_group; g += MAX_NG) {
        for (size_t c = 0; c < p->head_dim; c += 16) {
            switch (p->n_group - g) {
            case 1: block(p, g, 1, c, t); break;
            case 2: block(p, g, 2, c, t); break;
            case 3: block(p, g, 3, c, t); break;
            default: block(p, g, 4, c, t);
            }
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

/* Heads g0 .. g0 + ng of one key. */
FORCE_INLINE void dots_key(const float *q, int ng, size_t dim, const uint16_t *key, float *s, size_t ld_s) {
    __m256 part[MAX_NG];
    for (int g = 0; g < MAX_NG; g++) part[g] = _mm256_setzero_ps();
    for (size_t c = 0; c < dim; c += 8) {
        const __m256 y = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(key + c)));
        for (int g = 0; g < ng; g++) part[g] = _mm256_fmadd_ps(_mm256_loadu_ps(q + (size_t)g * dim + c), y, part[g]);
    }
    const __m256 x = _mm256_hadd_ps(_mm256_hadd_ps(part[0], part[1]), _mm256_hadd_ps(part[2], part[3]));
    float sum[MAX_NG];
    _mm_storeu_ps(sum, _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)));
    for (int g = 0; g < ng; g++) s[(size_t)g * ld_s] = sum[g];
}

static void dots_f16(const float *q, size_t n_head, size_t n_group, size_t dim, const uint16_t *keys, const uint32_t *row, size_t n, float *s,
                     size_t ld_s) {
    const size_t ld = n_head * dim;
    for (size_t i = 0; i < n; i++) {
        const uint16_t *key = keys + row[i] * ld, *later = keys + row[i + AHEAD_ROWS < n ? i + AHEAD_ROWS : i] * ld;
        for (size_t c = 0; c < ld; c += 32) _mm_prefetch((const char *)(later + c), _MM_HINT_T0);
        for (size_t h = 0; h < n_head; h++, key += dim) {
            for (size_t g = 0; g < n_group; g += MAX_NG) {
                const float *from = q + (h * n_group + g) * dim;
                float *to = s + (h * n_group + g) * ld_s + i;
                switch (n_group - g) {
                case 1: dots_key(from, 1, dim, key, to, ld_s); break;
                case 2: dots_key(from, 2, dim, key, to, ld_s); break;
                case 3: dots_key(from, 3, dim, key, to, ld_s); break;
                default: dots_key(from, 4, dim, key, to, ld_s);
                }
            }
        }
    }
}

static float sum_from_f32(const float *x, size_t n, float t) {
    const __m256 from = _mm256_set1_ps(t);
    __m256 s[4];
    for (int i = 0; i < 4; i++) s[i] = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        for (int k = 0; k < 4; k++) {
            const __m256 v = _mm256_loadu_ps(x + i + 8 * k);
            s[k] = _mm256_add_ps(s[k], _mm256_and_ps(_mm256_cmp_ps(v, from, _CMP_GE_OQ), v));
        }
    }
    float part[8], sum = 0.0f;
    _mm256_storeu_ps(part, _mm256_add_ps(_mm256_add_ps(s[0], s[1]), _mm256_add_ps(s[2], s[3])));
    for (int k = 0; k < 8; k++) sum += part[k];
    for (; i < n; i++) sum += x[i] >= t ? x[i] : 0.0f;
    return sum;
}

static size_t list_from_f32(const float *x, size_t stride, size_t n_group, size_t n, const float *t, uint32_t *row) {
    size_t n_row = 0, i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 in = _mm256_setzero_ps();
        for (size_t g = 0; g < n_group; g++)
            in = _mm256_or_ps(in, _mm256_cmp_ps(_mm256_loadu_ps(x + g * stride + i), _mm256_set1_ps(t[g]), _CMP_GE_OQ));
        for (unsigned bits = (unsigned)_mm256_movemask_ps(in); bits; bits &= bits - 1)
            row[n_row++] = (uint32_t)(i + (unsigned)__builtin_ctz(bits));
    }
    for (; i < n; i++) {
        size_t g = 0;
        while (g < n_group && !(x[g * stride + i] >= t[g])) g++;
        if (g < n_group) row[n_row++] = (uint32_t)i;
    }
    return n_row;
}

/* Of a product with x > 0 the largest number gives most, else the least. */
static void page_bounds(const uint16_t *block, const float *q, size_t n_group, size_t head_dim, float *bound) {
    __m256 most[2];
    for (int i = 0; i < 2; i++) most[i] = _mm256_set1_ps(-__builtin_inff());
    for (size_t g = 0; g < n_group; g++) {
        __m256 s[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
        for (size_t c = 0; c < head_dim; c++) {
            const float x = q[g * head_dim + c];
            const uint16_t *side = block + ((x > 0.0f ? head_dim : 0) + c) * 16;
            for (int i = 0; i < 2; i++)
                s[i] = _mm256_fmadd_ps(_mm256_set1_ps(x), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)side + i)), s[i]);
        }
        for (int i = 0; i < 2; i++) most[i] = _mm256_max_ps(most[i], s[i]);
    }
    for (int i = 0; i < 2; i++) _mm256_storeu_ps(bound + 8 * i, most[i]);
}

void pd__kernels_init_pick_avx2(pd_kernels *k) {
    k->dots_f16 = dots_f16;
    k->rows_f16 = rows_f16;
    k->rows_f32 = rows_f32;
    k->rows_q8 = rows_q8;
    k->rows_q4 = rows_q4;
    k->sum_from_f32 = sum_from_f32;
    k->list_from_f32 = list_from_f32;
    k->page_bounds = page_bounds;
}
