/* SPDX-License-Identifier: Apache-2.0 */
/* AVX512_BF16 row: attention of a prompt's tile on vdpbf16ps, two products a lane
 * and so twice the rate of f32 (Zen 5: 8.0 G/s of them against 8.6 G/s FMA).
 *
 * Queries and weights are pairs of bf16 in the lanes, keys and values a broadcast
 * pair: K as its rows lie (pairs along d), V with two slots interleaved (pairs
 * along the slots).  Rounding q, k, v and the weights adds less noise than the 8
 * bits of the matrix products' activations; --compute f32 does not come here. */
#include "engine/kernels/rows.h"
#include "engine/kernels/tile.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#define FORCE_INLINE static inline __attribute__((always_inline))

enum { VEC = 4, PITCH = 64 };

/* To the nearest bf16, halves away from zero: in the upper 16 bits of each lane. */
FORCE_INLINE __m512i rounded(__m512 x) {
    return _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
}

/* One 32-bit element of each lane: `even` in its lower half, `odd` in its upper. */
FORCE_INLINE __m512i pair(__m512 even, __m512 odd) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(rounded(even), 16), rounded(odd));
}

FORCE_INLINE __m512bh pair_at(const float *p) {
    return (__m512bh)_mm512_load_si512(p);
}

FORCE_INLINE __m512bh broadcast(const float *p) {
    int32_t two;
    memcpy(&two, p, sizeof two);
    return (__m512bh)_mm512_set1_epi32(two);
}

static void pack(const float *const *row, size_t dim, float scale, float *qt) {
    pd__tile_avx512.pack(row, dim, scale, qt);
    for (size_t c = 0; c < dim; c += 2) /* row c/2 is not needed any more */
        _mm512_store_si512(qt + c / 2 * PITCH, pair(_mm512_load_ps(qt + c * PITCH),
                                                    _mm512_load_ps(qt + (c + 1) * PITCH)));
}

/* kc [n up to 4][D] bf16, vc [n up to 2, halved][D] pairs; padded with zeros. */
static void copy(const float *k, const float *v, size_t n, size_t dim, float *kc, float *vc) {
    uint16_t *kh = (uint16_t *)kc;
    for (size_t j = 0; j < n; j++, k += dim, kh += dim)
        for (size_t c = 0; c < dim; c += 16)
            _mm256_storeu_si256((__m256i *)(kh + c),
                                _mm512_cvtepi32_epi16(_mm512_srli_epi32(
                                    rounded(_mm512_loadu_ps(k + c)), 16)));
    memset(kh, 0, (0 - n) % 4 * dim * sizeof *kh);
    for (size_t j = 0; j < n; j += 2, v += 2 * dim, vc += dim) {
        for (size_t c = 0; c < dim; c += 16) {
            const __m512 odd = j + 1 < n ? _mm512_loadu_ps(v + dim + c) : _mm512_setzero_ps();
            _mm512_storeu_si512(vc + c, pair(_mm512_loadu_ps(v + c), odd));
        }
    }
}

/* Four slots by nv vectors; nv is a constant after inlining.  dim in pairs. */
FORCE_INLINE void scores_of(const float *qt, const float *k, size_t n, size_t dim, int nv,
                            float *s) {
    for (size_t j0 = 0; j0 < n; j0 += 4, k += 4 * dim, s += 4 * PITCH) {
        __m512 x[4][VEC];
        for (int j = 0; j < 4; j++)
            for (int i = 0; i < nv; i++) x[j][i] = _mm512_setzero_ps();
        for (size_t c = 0; c < dim; c++) {
            __m512bh q[VEC];
            for (int i = 0; i < nv; i++) q[i] = pair_at(qt + c * PITCH + 16 * i);
            for (int j = 0; j < 4; j++) {
                const __m512bh b = broadcast(k + (size_t)j * dim + c);
                for (int i = 0; i < nv; i++) x[j][i] = _mm512_dpbf16_ps(x[j][i], q[i], b);
            }
        }
        for (int j = 0; j < 4; j++)
            for (int i = 0; i < nv; i++) _mm512_store_ps(s + j * PITCH + 16 * i, x[j][i]);
    }
}

static void scores(const float *qt, const float *k, size_t n, size_t dim, size_t nv, float *s) {
    switch (nv) {
    case 1: scores_of(qt, k, n, dim / 2, 1, s); break;
    case 2: scores_of(qt, k, n, dim / 2, 2, s); break;
    case 3: scores_of(qt, k, n, dim / 2, 3, s); break;
    default: scores_of(qt, k, n, dim / 2, 4, s);
    }
}

/* 2^x, x <= 0, relative error 7.5e-5 (a minimax cubic over [0, 1)), a fiftieth
 * of what rounding the weight does; -INFINITY gives 0. */
FORCE_INLINE __m512 exp2_16(__m512 x) {
    const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 p = _mm512_set1_ps(0x1.3f96a4p-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.cefc4cp-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.64444cp-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.fff632p-1f));
    return _mm512_scalef_ps(p, x); /* p * 2^floor(x) */
}

static void softmax(float *s, size_t n, size_t nv, const int32_t *lo, const int32_t *hi, float *m,
                    float *l, float *scale) {
    const __m512 never = _mm512_set1_ps(-INFINITY), log2e = _mm512_set1_ps(0x1.715476p+0f);
    for (size_t i = 0; i < 16 * nv; i += 16) {
        float *si = s + i;
        if (lo) {
            const __m512i a = _mm512_loadu_si512(lo + i), b = _mm512_loadu_si512(hi + i);
            for (size_t j = 0; j < n; j++) {
                const __m512i at = _mm512_set1_epi32((int)j);
                const __mmask16 hid = _mm512_cmpgt_epi32_mask(a, at) | _mm512_cmple_epi32_mask(b, at);
                _mm512_mask_store_ps(si + j * PITCH, hid, never);
            }
        }
        const __m512 old = _mm512_loadu_ps(m + i);
        __m512 max = old, max1 = old, sum = _mm512_setzero_ps();
        size_t j = 0;
        for (; j + 2 <= n; j += 2) {
            max = _mm512_max_ps(max, _mm512_load_ps(si + j * PITCH));
            max1 = _mm512_max_ps(max1, _mm512_load_ps(si + (j + 1) * PITCH));
        }
        if (j < n) max = _mm512_max_ps(max, _mm512_load_ps(si + j * PITCH));
        max = _mm512_max_ps(max, max1);
        /* A lane that has seen nothing yet measures from 0: weights 0, not NaN. */
        const __mmask16 some = _mm512_cmp_ps_mask(max, never, _CMP_NEQ_OQ);
        const __m512 base = _mm512_maskz_mul_ps(some, max, log2e);
        for (j = 0; j < n; j += 2) {
            const __m512 w0 = exp2_16(_mm512_fmsub_ps(_mm512_load_ps(si + j * PITCH), log2e, base));
            __m512 w1 = _mm512_setzero_ps();
            if (j + 1 < n)
                w1 = exp2_16(_mm512_fmsub_ps(_mm512_load_ps(si + (j + 1) * PITCH), log2e, base));
            sum = _mm512_add_ps(sum, _mm512_add_ps(w0, w1));
            _mm512_store_si512(si + j / 2 * PITCH, pair(w0, w1));
        }
        /* Exactly 1 where the block brought nothing: bits do not depend on neighbours. */
        const __mmask16 same = _mm512_cmp_ps_mask(old, max, _CMP_EQ_OQ);
        const __m512 keep = _mm512_mask_mov_ps(exp2_16(_mm512_fmsub_ps(old, log2e, base)), same,
                                               _mm512_set1_ps(1.0f));
        _mm512_storeu_ps(scale + i, keep);
        _mm512_storeu_ps(m + i, max);
        _mm512_storeu_ps(l + i, _mm512_fmadd_ps(_mm512_loadu_ps(l + i), keep, sum));
    }
}

/* n in pairs of slots. */
FORCE_INLINE void values_of(const float *s, const float *v, size_t n, size_t dim, int nv,
                            const float *scale, float *acc) {
    __m512 by[VEC];
    for (int i = 0; i < nv; i++) by[i] = _mm512_loadu_ps(scale + 16 * i);
    for (size_t c = 0; c < dim; c += 4, acc += 4 * PITCH) {
        __m512 x[4][VEC];
        for (int e = 0; e < 4; e++)
            for (int i = 0; i < nv; i++)
                x[e][i] = _mm512_mul_ps(_mm512_load_ps(acc + e * PITCH + 16 * i), by[i]);
        for (size_t j = 0; j < n; j++) {
            __m512bh w[VEC];
            for (int i = 0; i < nv; i++) w[i] = pair_at(s + j * PITCH + 16 * i);
            for (int e = 0; e < 4; e++) {
                const __m512bh b = broadcast(v + j * dim + c + (size_t)e);
                for (int i = 0; i < nv; i++) x[e][i] = _mm512_dpbf16_ps(x[e][i], w[i], b);
            }
        }
        for (int e = 0; e < 4; e++)
            for (int i = 0; i < nv; i++) _mm512_store_ps(acc + e * PITCH + 16 * i, x[e][i]);
    }
}

static void values(const float *s, const float *v, size_t n, size_t dim, size_t nv,
                   const float *scale, float *acc) {
    const size_t n2 = (n + 1) / 2;
    switch (nv) {
    case 1: values_of(s, v, n2, dim, 1, scale, acc); break;
    case 2: values_of(s, v, n2, dim, 2, scale, acc); break;
    case 3: values_of(s, v, n2, dim, 3, scale, acc); break;
    default: values_of(s, v, n2, dim, 4, scale, acc);
    }
}

static pd__tile_ops tile_ops(void) {
    pd__tile_ops o = pd__tile_avx512; /* column and unpack as they are */
    o.pack = pack;
    o.copy = copy;
    o.scores = scores;
    o.softmax = softmax;
    o.values = values;
    return o;
}

static void attn_tile(const pd_attn_rows *t) {
    const pd__tile_ops o = tile_ops();
    pd__attn_tile(&o, t);
}

static void attn_tile_sums(const pd_attn_rows *t, size_t s0, size_t s1, float *sums,
                           size_t stride) {
    const pd__tile_ops o = tile_ops();
    pd__attn_tile_sums(&o, t, s0, s1, sums, stride);
}

void pd__kernels_init_bf16(pd_kernels *k) {
    k->isa = "avx512+vnni+bf16";
    k->attn_tile_fast = attn_tile;
    k->attn_tile_sums_fast = attn_tile_sums;
}
