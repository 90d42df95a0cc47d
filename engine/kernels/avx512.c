/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512 (F, BW, DQ, VL) row: vectors of 16 f32, tails by mask.
 *
 * Attention takes pages in batches of 32 KiB: scores (one load of K serves 16 slots
 * and up to 4 query heads), weights with a running maximum, and the weighted sum of
 * V (one load serves up to 4 heads, whose sums stay in registers over a page).  Pages
 * are scattered, so the kernel prefetches itself, 16 KiB ahead in the order of use:
 * the V of a page with its K, the K of the next batch with V.
 *
 * Cost: scores and sum need G + 1 loads and G + 1 operations for 16 products a
 * head: bound by memory for G <= 4. */
#include "engine/kernels/rows.h"
#include "engine/kernels/tile.h"

#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#define FORCE_INLINE static inline __attribute__((always_inline))

/* The lowest k lanes, k <= 16. */
FORCE_INLINE __mmask16 lanes(size_t k) {
    return (__mmask16)((1u << k) - 1);
}

/* ---- exp ---- */

/* exp(x) for x <= 0:  x = n ln2 + r, |r| <= ln2/2, exp(r) = 1 + r + r^2 P(r); P is
 * a minimax fit of degree 4 (relative error of the whole 4e-9, so rounding
 * decides: about 1.5 ulp).  scalef rounds results below 2^-126 properly; below
 * -104 every result rounds to 0, and the clamp keeps -INFINITY out of r. */
FORCE_INLINE __m512 exp16(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-104.0f));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e430p-1f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-0x1.05c610p-29f), r);
    __m512 p = _mm512_set1_ps(0x1.6a2408p-10f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.1239e8p-7f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.5558f2p-5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.555492p-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.fffffcp-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* 1 / (1 + exp(-x)) from exp(-|x|) <= 1, which cannot overflow. */
FORCE_INLINE __m512 sigmoid16(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 e = exp16(_mm512_or_ps(x, _mm512_set1_ps(-0.0f)));
    const __mmask16 neg = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_div_ps(_mm512_mask_mov_ps(one, neg, e), _mm512_add_ps(one, e));
}

/* ---- vectors of f32 ---- */

static float dot_f32(const float *a, const float *b, size_t n) {
    __m512 s[4] = {0};
    size_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (int c = 0; c < 4; c++)
            s[c] = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + 16 * c),
                                   _mm512_loadu_ps(b + i + 16 * c), s[c]);
    for (; i + 16 <= n; i += 16)
        s[0] = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i), s[0]);
    const __mmask16 k = lanes(n - i);
    s[1] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(k, a + i), _mm512_maskz_loadu_ps(k, b + i), s[1]);
    return _mm512_reduce_add_ps(
        _mm512_add_ps(_mm512_add_ps(s[0], s[1]), _mm512_add_ps(s[2], s[3])));
}

static void axpy_f32(float a, const float *x, float *y, size_t n) {
    const __m512 va = _mm512_set1_ps(a);
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(y + i, _mm512_fmadd_ps(va, _mm512_loadu_ps(x + i),
                                                _mm512_loadu_ps(y + i)));
    const __mmask16 k = lanes(n - i);
    _mm512_mask_storeu_ps(y + i, k, _mm512_fmadd_ps(va, _mm512_maskz_loadu_ps(k, x + i),
                                                    _mm512_maskz_loadu_ps(k, y + i)));
}

static float max_f32(const float *x, size_t n) {
    __m512 m0 = _mm512_set1_ps(-INFINITY), m1 = m0;
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        m0 = _mm512_max_ps(m0, _mm512_loadu_ps(x + i));
        m1 = _mm512_max_ps(m1, _mm512_loadu_ps(x + i + 16));
    }
    for (; i + 16 <= n; i += 16) m0 = _mm512_max_ps(m0, _mm512_loadu_ps(x + i));
    const __mmask16 k = lanes(n - i);
    m1 = _mm512_mask_max_ps(m1, k, m1, _mm512_maskz_loadu_ps(k, x + i));
    return _mm512_reduce_max_ps(_mm512_max_ps(m0, m1));
}

static float exp_sum_f32(float *x, size_t n, float max) {
    const __m512 vm = _mm512_set1_ps(max);
    __m512 s0 = _mm512_setzero_ps(), s1 = s0;
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        const __m512 e0 = exp16(_mm512_sub_ps(_mm512_loadu_ps(x + i), vm));
        const __m512 e1 = exp16(_mm512_sub_ps(_mm512_loadu_ps(x + i + 16), vm));
        _mm512_storeu_ps(x + i, e0);
        _mm512_storeu_ps(x + i + 16, e1);
        s0 = _mm512_add_ps(s0, e0);
        s1 = _mm512_add_ps(s1, e1);
    }
    for (; i < n; i += 16) {
        const __mmask16 k = lanes(n - i < 16 ? n - i : 16);
        const __m512 e = exp16(_mm512_maskz_sub_ps(k, _mm512_maskz_loadu_ps(k, x + i), vm));
        _mm512_mask_storeu_ps(x + i, k, e);
        s0 = _mm512_mask_add_ps(s0, k, s0, e);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(s0, s1));
}

static void rmsnorm(const float *x, const float *w, float eps, size_t n, float *y) {
    const float scale = 1.0f / sqrtf(dot_f32(x, x, n) / (float)n + eps);
    const __m512 vs = _mm512_set1_ps(scale);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 k = lanes(n - i < 16 ? n - i : 16);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(k, x + i), vs);
        if (w) v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(k, w + i));
        _mm512_mask_storeu_ps(y + i, k, v);
    }
}

static void rope(float *x, size_t n_head, size_t head_dim, const float *cos, const float *sin) {
    const size_t half = head_dim / 2;
    for (size_t h = 0; h < n_head; h++, x += head_dim) {
        for (size_t i = 0; i < half; i += 16) {
            const __mmask16 k = lanes(half - i < 16 ? half - i : 16);
            const __m512 lo = _mm512_maskz_loadu_ps(k, x + i);
            const __m512 hi = _mm512_maskz_loadu_ps(k, x + half + i);
            const __m512 c = _mm512_maskz_loadu_ps(k, cos + i);
            const __m512 s = _mm512_maskz_loadu_ps(k, sin + i);
            _mm512_mask_storeu_ps(x + i, k, _mm512_fmsub_ps(lo, c, _mm512_mul_ps(hi, s)));
            _mm512_mask_storeu_ps(x + half + i, k, _mm512_fmadd_ps(hi, c, _mm512_mul_ps(lo, s)));
        }
    }
}

static void silu_mul(const float *g, const float *u, size_t n, float *y) {
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 k = lanes(n - i < 16 ? n - i : 16);
        const __m512 x = _mm512_maskz_loadu_ps(k, g + i);
        const __m512 v = _mm512_mul_ps(_mm512_mul_ps(x, sigmoid16(x)),
                                       _mm512_maskz_loadu_ps(k, u + i));
        _mm512_mask_storeu_ps(y + i, k, v);
    }
}

/* 0.5 (1 + tanh z) = sigmoid(2 z) */
static void gelu_mul(const float *g, const float *u, size_t n, float *y) {
    const __m512 a = _mm512_set1_ps(2 * 0.79788456f), b = _mm512_set1_ps(0.044715f);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 k = lanes(n - i < 16 ? n - i : 16);
        const __m512 x = _mm512_maskz_loadu_ps(k, g + i);
        const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
        const __m512 z = _mm512_mul_ps(a, _mm512_fmadd_ps(b, cube, x));
        const __m512 v = _mm512_mul_ps(_mm512_mul_ps(x, sigmoid16(z)),
                                       _mm512_maskz_loadu_ps(k, u + i));
        _mm512_mask_storeu_ps(y + i, k, v);
    }
}

/* tanh y = 2 sigmoid(2 y) - 1 */
static void cap_f32(float *x, size_t n, float cap) {
    const __m512 in = _mm512_set1_ps(2.0f / cap), out = _mm512_set1_ps(2.0f * cap);
    const __m512 less = _mm512_set1_ps(cap);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 k = lanes(n - i < 16 ? n - i : 16);
        const __m512 s = sigmoid16(_mm512_mul_ps(_mm512_maskz_loadu_ps(k, x + i), in));
        _mm512_mask_storeu_ps(x + i, k, _mm512_fmsub_ps(s, out, less));
    }
}

static void f32_to_f16(const float *x, uint16_t *y, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 k = lanes(n - i < 16 ? n - i : 16);
        const __m256i h = _mm512_cvtps_ph(_mm512_maskz_loadu_ps(k, x + i),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm256_mask_storeu_epi16(y + i, k, h);
    }
}

static void f16_to_f32(const uint16_t *x, float *y, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 k = lanes(n - i < 16 ? n - i : 16);
        _mm512_mask_storeu_ps(y + i, k, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(k, x + i)));
    }
}

/* ---- quantised matrices ---- */

static void quantize_act(const float *x, size_t n, int8_t *q, float *d, float *s) {
    for (size_t b = 0; b < n / 32; b++, x += 32, q += 32) {
        const __m512 x0 = _mm512_loadu_ps(x), x1 = _mm512_loadu_ps(x + 16);
        const float max = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(x0),
                                                             _mm512_abs_ps(x1)));
        float step = max / 127.0f;
        if (step < FLT_MIN) step = 0.0f;
        const __m512 inv = _mm512_set1_ps(step > 0.0f ? 127.0f / max : 0.0f);
        const __m128i q0 = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x0, inv)));
        const __m128i q1 = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x1, inv)));
        _mm_storeu_si128((__m128i *)q, q0);
        _mm_storeu_si128((__m128i *)(q + 16), q1);
        /* sums of 8 bytes + 128 each, in the low half of every quadword */
        const __m256i sad = _mm256_sad_epu8(
            _mm256_xor_si256(_mm256_set_m128i(q1, q0), _mm256_set1_epi8(-128)),
            _mm256_setzero_si256());
        const __m256i sum = _mm256_add_epi64(sad, _mm256_unpackhi_epi64(sad, sad));
        const int sum0 = _mm256_extract_epi32(sum, 0) - 16 * 128;
        const int sum1 = _mm256_extract_epi32(sum, 4) - 16 * 128;
        d[b] = step;
        s[2 * b] = step * (float)sum0;
        s[2 * b + 1] = step * (float)sum1;
    }
}

/* Without VNNI the dot product goes through 16-bit sums.  A weight is cut in
 * 4-bit planes, so that a pair of products is at most 2 * 15 * 127 and 8 groups
 * of them stay below 2^15: nothing saturates.
 *
 * The empty asm pins the order: GCC would delay and regroup the additions, and
 * spill. */
FORCE_INLINE __m512i dot_u4(__m512i sum16, __m512i w, const int8_t *a) {
    int32_t four;
    memcpy(&four, a, sizeof four);
    sum16 = _mm512_add_epi16(sum16, _mm512_maddubs_epi16(w, _mm512_set1_epi32(four)));
    __asm__ volatile("" : "+v"(sum16));
    return sum16;
}

#include "engine/kernels/high_bits.inc"

/* Integer dot products of one block (n_group groups of 4 columns) with nt tokens. */
FORCE_INLINE void dot_block(const uint8_t *w, unsigned bits, int n_group, const int8_t *a,
                            size_t lda, int nt, __m512i *ret) {
    const __m512i low4 = _mm512_set1_epi8(15);
    __m512i lo[4], hi[4];
    for (int t = 0; t < nt; t++) lo[t] = hi[t] = _mm512_setzero_si512();
    if (bits == 5 || bits == 6) { /* a pair is at most 2 * 31 or 63 * 127: 4 or 2 groups stay below 2^15 */
        const __m512i high = _mm512_load_si512(w + 32 * n_group);
#pragma GCC unroll 4
        for (int g = 0; g < n_group / 2; g++) {
            const __m512i v = _mm512_load_si512(w + 64 * g);
            const __m512i v0 = _mm512_or_si512(_mm512_and_si512(v, low4), high_bits_zmm(high, bits, g));
            const __m512i v1 = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(v, 4), low4), high_bits_zmm(high, bits, g + n_group / 2));
            for (int t = 0; t < nt; t++) lo[t] = dot_u4(lo[t], v0, a + t * lda + 4 * g);
            for (int t = 0; t < nt; t++) hi[t] = dot_u4(hi[t], v1, a + t * lda + 4 * (g + n_group / 2));
        }
    } else if (bits == 4) {
        for (int g = 0; g < n_group / 2; g++) {
            const __m512i v = _mm512_load_si512(w + 64 * g);
            const __m512i v0 = _mm512_and_si512(v, low4);
            const __m512i v1 = _mm512_and_si512(_mm512_srli_epi16(v, 4), low4);
            for (int t = 0; t < nt; t++) lo[t] = dot_u4(lo[t], v0, a + t * lda + 4 * g);
            for (int t = 0; t < nt; t++)
                lo[t] = dot_u4(lo[t], v1, a + t * lda + 4 * (g + n_group / 2));
        }
    } else {
#pragma GCC unroll 8
        for (int g = 0; g < n_group; g++) {
            const __m512i v = _mm512_load_si512(w + 64 * g);
            const __m512i v0 = _mm512_and_si512(v, low4);
            const __m512i v1 = _mm512_and_si512(_mm512_srli_epi16(v, 4), low4);
            for (int t = 0; t < nt; t++) lo[t] = dot_u4(lo[t], v0, a + t * lda + 4 * g);
            for (int t = 0; t < nt; t++) hi[t] = dot_u4(hi[t], v1, a + t * lda + 4 * g);
        }
    }
    for (int t = 0; t < nt; t++) {
        ret[t] = _mm512_madd_epi16(lo[t], _mm512_set1_epi16(1));
        if (bits != 4)
            ret[t] = _mm512_add_epi32(ret[t], _mm512_madd_epi16(hi[t], _mm512_set1_epi16(bits == 8 ? 16 : 1)));
    }
}

enum { AHEAD = 4096 }; /* bytes of weights prefetched ahead of use: the hardware stops at 4 KiB */

/* One panel by nt tokens.  bits, block and nt are constants after inlining; the
 * float operations on one output are the same for every nt. */
FORCE_INLINE void panel_tile(const uint8_t *w, unsigned bits, unsigned block, const pd_qact *a,
                             size_t t0, int nt, float *y, size_t ldy, __mmask16 rows) {
    const size_t n_blk = a->n_col / block, n_blk32 = a->n_col / 32;
    const size_t q_bytes = (size_t)PD_PANEL_ROWS * block * bits / 8;
    const int8_t *q = a->q + t0 * a->n_col;
    const float *d = a->d + t0 * n_blk32, *s = a->s + t0 * 2 * n_blk32;
    __m512 acc[4];
    for (int t = 0; t < nt; t++) acc[t] = _mm512_setzero_ps();
    for (size_t b = 0; b < n_blk; b++, w += q_bytes + 64) {
        for (size_t i = 0; i < q_bytes + 64; i += 64)
            _mm_prefetch((const char *)((uintptr_t)w + AHEAD + i), _MM_HINT_T0);
        __m512i dot[4];
        dot_block(w, bits, (int)(block / 4), q + b * block, a->n_col, nt, dot);
        const __m512 d_w = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(w + q_bytes)));
        const __m512 m_w = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(w + q_bytes + 32)));
        for (int t = 0; t < nt; t++) {
            const float *st = s + 2 * (size_t)t * n_blk32;
            const float s_a = block == 32 ? st[2 * b] + st[2 * b + 1] : st[b];
            const float d_a = d[(size_t)t * n_blk32 + b * block / 32];
            acc[t] = _mm512_fmadd_ps(_mm512_mul_ps(d_w, _mm512_set1_ps(d_a)),
                                     _mm512_cvtepi32_ps(dot[t]), acc[t]);
            acc[t] = _mm512_fmadd_ps(m_w, _mm512_set1_ps(s_a), acc[t]);
        }
    }
    for (int t = 0; t < nt; t++) _mm512_mask_storeu_ps(y + (size_t)t * ldy, rows, acc[t]);
}

FORCE_INLINE void gemm(const pd_panels *w, unsigned bits, unsigned block, size_t p0, size_t p1,
                       const pd_qact *a, size_t t0, size_t t1, float *y, size_t ldy) {
    const size_t stride = pd_panels_stride(w);
    for (size_t p = p0; p < p1; p++) {
        const uint8_t *panel = w->data + p * stride;
        const size_t r0 = p * PD_PANEL_ROWS, n_row = w->n_row - r0;
        const __mmask16 rows = lanes(n_row < PD_PANEL_ROWS ? n_row : PD_PANEL_ROWS);
        size_t t = t0;
        for (; t + 4 <= t1; t += 4)
            panel_tile(panel, bits, block, a, t, 4, y + t * ldy + r0, ldy, rows);
        for (; t < t1; t++) panel_tile(panel, bits, block, a, t, 1, y + t * ldy + r0, ldy, rows);
    }
}

static void gemm_panel(const pd_panels *w, size_t p0, size_t p1, const pd_qact *a, size_t t0,
                       size_t t1, float *y, size_t ldy) {
    switch (w->bits) {
    case 4:
        if (w->block == 16)
            gemm(w, 4, 16, p0, p1, a, t0, t1, y, ldy);
        else
            gemm(w, 4, 32, p0, p1, a, t0, t1, y, ldy);
        break;
    case 5: gemm(w, 5, 32, p0, p1, a, t0, t1, y, ldy); break;
    case 6: gemm(w, 6, 16, p0, p1, a, t0, t1, y, ldy); break;
    default: gemm(w, 8, 32, p0, p1, a, t0, t1, y, ldy);
    }
}

/* ---- attention over KV pages ---- */

enum {
    MAX_NG = 4,      /* query heads that share one load of K or V */
    AHEAD_SCORES = 16384, /* bytes of K prefetched ahead where V is not read: whole pages, at least the next */
    AHEAD_KV = 12288, /* bytes of pages prefetched ahead where both are: whole pages */
    TOUCH = 8,        /* pages ahead whose address is translated: a prefetch that has to wait for that holds up all behind it */
};

/* 16 elements from element i of a page. */
FORCE_INLINE __m512 load16(const void *page, size_t i, bool f16) {
    if (f16)
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)((const uint16_t *)page + i)));
    return _mm512_loadu_ps((const float *)page + i);
}

FORCE_INLINE void prefetch16(const void *page, size_t i, bool f16) {
    _mm_prefetch((const char *)page + i * (f16 ? 2 : 4), _MM_HINT_T0);
}

/* tmp[g][0..16) = the scores of a page's 16 slots.  Two sums a head hide the
 * latency of the FMA. */
FORCE_INLINE void page_scores(const float *q, int ng, size_t dim, const void *page,
                              const void *later, bool f16, float *tmp, size_t stride) {
    __m512 s[MAX_NG][2];
    for (int g = 0; g < ng; g++) s[g][0] = s[g][1] = _mm512_setzero_ps();
    size_t c = 0;
    for (; c + 2 <= dim; c += 2) {
        prefetch16(later, 16 * c, f16);
        if (!f16) prefetch16(later, 16 * c + 16, f16);
        const __m512 k0 = load16(page, 16 * c, f16), k1 = load16(page, 16 * c + 16, f16);
        for (int g = 0; g < ng; g++) {
            s[g][0] = _mm512_fmadd_ps(_mm512_set1_ps(q[g * dim + c]), k0, s[g][0]);
            s[g][1] = _mm512_fmadd_ps(_mm512_set1_ps(q[g * dim + c + 1]), k1, s[g][1]);
        }
    }
    if (c < dim) { /* keys with channels taken out */
        const __m512 k = load16(page, 16 * c, f16);
        for (int g = 0; g < ng; g++) s[g][0] = _mm512_fmadd_ps(_mm512_set1_ps(q[g * dim + c]), k, s[g][0]);
    }
    for (int g = 0; g < ng; g++)
        _mm512_storeu_ps(tmp + g * stride, _mm512_add_ps(s[g][0], s[g][1]));
}

/* acc[g][c .. c + 16 nv) += sum over slots j of tmp[g][j] * v[j] */
FORCE_INLINE void page_values(const float *tmp, size_t stride, int ng, size_t dim, const void *v,
                              const void *later, bool f16, size_t j0, size_t j1, size_t c, int nv,
                              float *acc) {
    __m512 s[MAX_NG][4];
    for (int g = 0; g < ng; g++)
        for (int i = 0; i < nv; i++) s[g][i] = _mm512_loadu_ps(acc + g * dim + c + 16 * i);
    for (size_t j = j0; j < j1; j++) {
        __m512 x[4];
        for (int i = 0; i < nv; i++) x[i] = load16(v, j * dim + c + 16 * i, f16);
        for (int i = 0; i < nv; i += f16 ? 2 : 1) prefetch16(later, j * dim + c + 16 * i, f16);
        for (int g = 0; g < ng; g++) {
            const __m512 p = _mm512_set1_ps(tmp[g * stride + j]);
            for (int i = 0; i < nv; i++) s[g][i] = _mm512_fmadd_ps(p, x[i], s[g][i]);
        }
    }
    for (int g = 0; g < ng; g++)
        for (int i = 0; i < nv; i++) _mm512_storeu_ps(acc + g * dim + c + 16 * i, s[g][i]);
}

/* Heads go in steps of 4, the rest in one step of 1 to 3. */
FORCE_INLINE size_t head_step(size_t left) {
    return left < MAX_NG ? left : MAX_NG;
}

FORCE_INLINE void scores(const float *q, size_t n_group, size_t dim, const void *page,
                         const void *later, bool f16, float *tmp, size_t stride) {
    for (size_t g = 0; g < n_group; g += MAX_NG) {
        const float *qg = q + g * dim;
        float *x = tmp + g * stride;
        switch (head_step(n_group - g)) {
        case 1: page_scores(qg, 1, dim, page, later, f16, x, stride); break;
        case 2: page_scores(qg, 2, dim, page, later, f16, x, stride); break;
        case 3: page_scores(qg, 3, dim, page, later, f16, x, stride); break;
        default: page_scores(qg, 4, dim, page, later, f16, x, stride);
        }
    }
}

FORCE_INLINE void values_of(const float *tmp, size_t stride, int ng, size_t dim, const void *v,
                            const void *later, bool f16, size_t j0, size_t j1, float *acc) {
    size_t c = 0;
    for (; c + 64 <= dim; c += 64)
        page_values(tmp, stride, ng, dim, v, later, f16, j0, j1, c, 4, acc);
    for (; c < dim; c += 16)
        page_values(tmp, stride, ng, dim, v, later, f16, j0, j1, c, 1, acc);
}

FORCE_INLINE void values(const float *tmp, size_t stride, size_t n_group, size_t dim,
                         const void *v, const void *later, bool f16, size_t j0, size_t j1,
                         float *acc) {
    for (size_t g = 0; g < n_group; g += MAX_NG) {
        const float *x = tmp + g * stride;
        float *ag = acc + g * dim;
        switch (head_step(n_group - g)) {
        case 1: values_of(x, stride, 1, dim, v, later, f16, j0, j1, ag); break;
        case 2: values_of(x, stride, 2, dim, v, later, f16, j0, j1, ag); break;
        case 3: values_of(x, stride, 3, dim, v, later, f16, j0, j1, ag); break;
        default: values_of(x, stride, 4, dim, v, later, f16, j0, j1, ag);
        }
    }
}

/* A page's scores x[16] of one head to weights exp(x - m), m and l brought up to
 * date, and what acc holds scaled to the new m. */
FORCE_INLINE void fold(float *x, size_t dim, float *m, float *l, float *acc) {
    const __m512 v = _mm512_loadu_ps(x);
    const float most = _mm512_reduce_max_ps(v);
    if (most > *m) { /* acc and l are 0 where m is -INFINITY */
        const __m512 by = exp16(_mm512_set1_ps(*m - most));
        for (size_t c = 0; c < dim; c += 16)
            _mm512_storeu_ps(acc + c, _mm512_mul_ps(by, _mm512_loadu_ps(acc + c)));
        *l *= _mm512_cvtss_f32(by);
        *m = most;
    }
    const __m512 w = exp16(_mm512_sub_ps(v, _mm512_set1_ps(*m)));
    _mm512_storeu_ps(x, w);
    *l += _mm512_reduce_add_ps(w);
}

/* A page's scores come before the values of the one before it: the weights of one are made while
 * the other's products run, and a page is read as a whole within two turns, which memory likes
 * better than eight keys' halves and then eight values'. */
FORCE_INLINE void attn_pages(const float *q, size_t n_group, size_t k_dim, size_t dim, const void *const *pages,
                             size_t first, size_t n, size_t n_next, float softcap, float *tmp,
                             size_t stride, float *m, float *l, float *acc, bool f16) {
    const size_t p0 = first / 16, p1 = (first + n + 15) / 16, end = p1 + n_next;
    const size_t half = 16 * k_dim * (f16 ? 2 : 4), page = half + 16 * dim * (f16 ? 2 : 4), ahead = (AHEAD_KV + page - 1) / page;
    const size_t head = first % 16, used = (first + n - 1) % 16 + 1; /* live slots of the first and of the last page */
    const __m512 none = _mm512_set1_ps(-INFINITY);
    memset(acc, 0, n_group * dim * sizeof *acc);
    for (size_t g = 0; g < n_group; g++) {
        m[g] = -INFINITY;
        l[g] = 0.0f;
    }
    for (size_t p = p0; p <= p1; p++, tmp += 16) {
        if (p + TOUCH < end) _mm_prefetch((const char *)pages[p + TOUCH] + p % 32 * 64 % page, _MM_HINT_T0); /* not all in one set */
        if (p < p1)
            scores(q, n_group, k_dim, pages[p], pages[p + ahead < end ? p + ahead : p], f16, tmp, stride);
        if (p > p0) {
            /* 0 * NaN is NaN, so unused slots are not even multiplied */
            const size_t b = p - 1, j0 = b == p0 ? head : 0, j1 = p == p1 ? used : 16;
            values(tmp - 16, stride, n_group, dim, (const char *)pages[b] + half,
                   (const char *)pages[b + ahead < end ? b + ahead : b] + half, f16, j0, j1, acc);
        }
        for (size_t g = 0; p < p1 && g < n_group; g++) {
            float *x = tmp + g * stride;
            if (softcap > 0.0f) cap_f32(x, 16, softcap);
            /* Slots outside the range hold anything: -INFINITY gives them weight 0. */
            if (p == p0) _mm512_mask_storeu_ps(x, lanes(head), none);
            if (p + 1 == p1) _mm512_mask_storeu_ps(x, (__mmask16)~lanes(used), none);
            fold(x, dim, &m[g], &l[g], acc + g * dim);
        }
    }
}

static void attn_pages_f16(const float *q, size_t n_group, size_t k_dim, size_t head_dim,
                           const void *const *pages, size_t first, size_t n, size_t n_next,
                           float softcap, float *tmp, size_t tmp_stride, float *m, float *l, float *acc) {
    attn_pages(q, n_group, k_dim, head_dim, pages, first, n, n_next, softcap, tmp, tmp_stride, m, l, acc, true);
}

static void attn_pages_f32(const float *q, size_t n_group, size_t k_dim, size_t head_dim,
                           const void *const *pages, size_t first, size_t n, size_t n_next,
                           float softcap, float *tmp, size_t tmp_stride, float *m, float *l, float *acc) {
    attn_pages(q, n_group, k_dim, head_dim, pages, first, n, n_next, softcap, tmp, tmp_stride, m, l, acc, false);
}

#include "engine/kernels/parts.inc"

/* ---- attention of a prompt's tile (tile.h): 4 vectors of 16 rows ---- */

enum { TILE_VEC = 4, TILE_PITCH = 64 };

/* 16 rows of 16 floats to 16 columns: 4 x 4 within quarters, then the quarters. */
FORCE_INLINE void transpose16(__m512 *r) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 4) {
        const __m512 a = _mm512_unpacklo_ps(r[i], r[i + 1]), b = _mm512_unpackhi_ps(r[i], r[i + 1]);
        const __m512 c = _mm512_unpacklo_ps(r[i + 2], r[i + 3]);
        const __m512 d = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
        t[i] = _mm512_shuffle_ps(a, c, 0x44);
        t[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
        t[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
        t[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
    }
    for (int i = 0; i < 4; i++) {
        const __m512 a = _mm512_shuffle_f32x4(t[i], t[4 + i], 0x88);
        const __m512 b = _mm512_shuffle_f32x4(t[i], t[4 + i], 0xdd);
        const __m512 c = _mm512_shuffle_f32x4(t[8 + i], t[12 + i], 0x88);
        const __m512 d = _mm512_shuffle_f32x4(t[8 + i], t[12 + i], 0xdd);
        r[i] = _mm512_shuffle_f32x4(a, c, 0x88);
        r[4 + i] = _mm512_shuffle_f32x4(b, d, 0x88);
        r[8 + i] = _mm512_shuffle_f32x4(a, c, 0xdd);
        r[12 + i] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
}

static void tile_pack(const float *const *row, size_t dim, float scale, float *qt) {
    const __m512 by = _mm512_set1_ps(scale);
    for (size_t c = 0; c < dim; c += 16) {
        __m512 r[16];
        for (int i = 0; i < 16; i++) r[i] = _mm512_mul_ps(_mm512_loadu_ps(row[i] + c), by);
        transpose16(r);
        for (int i = 0; i < 16; i++) _mm512_store_ps(qt + (c + (size_t)i) * TILE_PITCH, r[i]);
    }
}

static void tile_unpack(const float *acc, size_t dim, const float *l, float *const *row,
                        size_t n_row) {
    const __m512 vl = _mm512_loadu_ps(l);
    for (size_t c = 0; c < dim; c += 16) {
        __m512 r[16];
        for (int i = 0; i < 16; i++)
            r[i] = _mm512_div_ps(_mm512_load_ps(acc + (c + (size_t)i) * TILE_PITCH), vl);
        transpose16(r);
        _Alignas(64) float x[16][16];
        for (int i = 0; i < 16; i++) _mm512_store_ps(x[i], r[i]);
        for (size_t i = 0; i < n_row; i++) memcpy(row[i] + c, x[i], sizeof x[i]);
    }
}

/* nk slots by nv vectors; both are constants after inlining. */
FORCE_INLINE void slot_scores(const float *qt, const float *k, size_t dim, int nk, int nv,
                              float *s) {
    __m512 x[4][TILE_VEC];
    for (int j = 0; j < nk; j++)
        for (int i = 0; i < nv; i++) x[j][i] = _mm512_setzero_ps();
    for (size_t c = 0; c < dim; c++) {
        __m512 q[TILE_VEC];
        for (int i = 0; i < nv; i++) q[i] = _mm512_load_ps(qt + c * TILE_PITCH + 16 * i);
        for (int j = 0; j < nk; j++) {
            const __m512 b = _mm512_set1_ps(k[(size_t)j * dim + c]);
            for (int i = 0; i < nv; i++) x[j][i] = _mm512_fmadd_ps(b, q[i], x[j][i]);
        }
    }
    for (int j = 0; j < nk; j++)
        for (int i = 0; i < nv; i++) _mm512_store_ps(s + j * TILE_PITCH + 16 * i, x[j][i]);
}

FORCE_INLINE void scores_of(const float *qt, const float *k, size_t n, size_t dim, int nv,
                            float *s) {
    size_t j = 0;
    for (; j + 4 <= n; j += 4) slot_scores(qt, k + j * dim, dim, 4, nv, s + j * TILE_PITCH);
    for (; j < n; j++) slot_scores(qt, k + j * dim, dim, 1, nv, s + j * TILE_PITCH);
}

static void tile_scores(const float *qt, const float *k, size_t n, size_t dim, size_t nv,
                        float *s) {
    switch (nv) {
    case 1: scores_of(qt, k, n, dim, 1, s); break;
    case 2: scores_of(qt, k, n, dim, 2, s); break;
    case 3: scores_of(qt, k, n, dim, 3, s); break;
    default: scores_of(qt, k, n, dim, 4, s);
    }
}

/* Lanes that see slot j. */
FORCE_INLINE __mmask16 sees(__m512i lo, __m512i hi, size_t j) {
    const __m512i at = _mm512_set1_epi32((int)j);
    return _mm512_mask_cmplt_epi32_mask(_mm512_cmple_epi32_mask(lo, at), at, hi);
}

/* A lane that has seen nothing yet has m = -INFINITY: measure it from 0, so that
 * all its weights are 0 and not NaN. */
FORCE_INLINE __m512 finite_max(__m512 m) {
    const __mmask16 none = _mm512_cmp_ps_mask(m, _mm512_set1_ps(-INFINITY), _CMP_EQ_OQ);
    return _mm512_mask_mov_ps(m, none, _mm512_setzero_ps());
}

static void tile_softmax(float *s, size_t n, size_t nv, const int32_t *lo, const int32_t *hi,
                         float *m, float *l, float *scale) {
    const __m512 never = _mm512_set1_ps(-INFINITY);
    for (size_t i = 0; i < 16 * nv; i += 16) {
        if (lo) {
            const __m512i a = _mm512_loadu_si512(lo + i), b = _mm512_loadu_si512(hi + i);
            for (size_t j = 0; j < n; j++)
                _mm512_mask_store_ps(s + j * TILE_PITCH + i, (__mmask16)~sees(a, b, j), never);
        }
        const __m512 old = _mm512_loadu_ps(m + i);
        __m512 max = old, sum = _mm512_setzero_ps();
        for (size_t j = 0; j < n; j++)
            max = _mm512_max_ps(max, _mm512_load_ps(s + j * TILE_PITCH + i));
        const __m512 base = finite_max(max);
        for (size_t j = 0; j < n; j++) {
            const __m512 w = exp16(_mm512_sub_ps(_mm512_load_ps(s + j * TILE_PITCH + i), base));
            _mm512_store_ps(s + j * TILE_PITCH + i, w);
            sum = _mm512_add_ps(sum, w);
        }
        const __m512 keep = exp16(_mm512_sub_ps(old, base));
        _mm512_storeu_ps(scale + i, keep);
        _mm512_storeu_ps(m + i, max);
        _mm512_storeu_ps(l + i, _mm512_fmadd_ps(_mm512_loadu_ps(l + i), keep, sum));
    }
}

FORCE_INLINE void values_of_tile(const float *s, const float *v, size_t n, size_t dim, int nv,
                                 const float *scale, float *acc) {
    __m512 by[TILE_VEC];
    for (int i = 0; i < nv; i++) by[i] = _mm512_loadu_ps(scale + 16 * i);
    for (size_t c = 0; c < dim; c += 4) {
        __m512 x[4][TILE_VEC];
        for (int e = 0; e < 4; e++)
            for (int i = 0; i < nv; i++)
                x[e][i] = _mm512_mul_ps(
                    _mm512_load_ps(acc + (c + (size_t)e) * TILE_PITCH + 16 * i), by[i]);
        for (size_t j = 0; j < n; j++) {
            __m512 w[TILE_VEC];
            for (int i = 0; i < nv; i++) w[i] = _mm512_load_ps(s + j * TILE_PITCH + 16 * i);
            for (int e = 0; e < 4; e++) {
                const __m512 b = _mm512_set1_ps(v[j * dim + c + (size_t)e]);
                for (int i = 0; i < nv; i++) x[e][i] = _mm512_fmadd_ps(b, w[i], x[e][i]);
            }
        }
        for (int e = 0; e < 4; e++)
            for (int i = 0; i < nv; i++)
                _mm512_store_ps(acc + (c + (size_t)e) * TILE_PITCH + 16 * i, x[e][i]);
    }
}

static void tile_values(const float *s, const float *v, size_t n, size_t dim, size_t nv,
                        const float *scale, float *acc) {
    switch (nv) {
    case 1: values_of_tile(s, v, n, dim, 1, scale, acc); break;
    case 2: values_of_tile(s, v, n, dim, 2, scale, acc); break;
    case 3: values_of_tile(s, v, n, dim, 3, scale, acc); break;
    default: values_of_tile(s, v, n, dim, 4, scale, acc);
    }
}

static void tile_column(const float *s, size_t n, const int32_t *lo, const int32_t *hi,
                        const float *m, const float *l, float *sum) {
    const __m512 vm = _mm512_loadu_ps(m);
    const __m512 inv = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_loadu_ps(l));
    const __m512i a = _mm512_loadu_si512(lo), b = _mm512_loadu_si512(hi);
    for (size_t j = 0; j < n; j++) {
        const __mmask16 k = sees(a, b, j);
        const __m512 x = exp16(_mm512_maskz_sub_ps(k, _mm512_load_ps(s + j * TILE_PITCH), vm));
        sum[j] += _mm512_mask_reduce_add_ps(k, _mm512_mul_ps(x, inv));
    }
}

const pd__tile_ops pd__tile_avx512 = {
    .lanes = 16, .max_vec = TILE_VEC, .pack = tile_pack, .scores = tile_scores,
    .softmax = tile_softmax, .values = tile_values, .cap = cap_f32, .column = tile_column, .unpack = tile_unpack,
};

static void attn_tile(const pd_attn_rows *t) {
    pd__attn_tile(&pd__tile_avx512, t);
}

static void attn_tile_sums(const pd_attn_rows *t, size_t s0, size_t s1, float *sums,
                           size_t stride) {
    pd__attn_tile_sums(&pd__tile_avx512, t, s0, s1, sums, stride);
}

void pd__kernels_init_avx512(pd_kernels *k) {
    k->isa = "avx512";
    k->dot_f32 = dot_f32;
    k->axpy_f32 = axpy_f32;
    k->max_f32 = max_f32;
    k->exp_sum_f32 = exp_sum_f32;
    k->rmsnorm = rmsnorm;
    k->rope = rope;
    k->silu_mul = silu_mul;
    k->gelu_mul = gelu_mul;
    k->softcap = cap_f32;
    k->f32_to_f16 = f32_to_f16;
    k->f16_to_f32 = f16_to_f32;
    k->quantize_act = quantize_act;
    k->gemm_panel = gemm_panel;
    k->attn_pages_f16 = attn_pages_f16;
    k->attn_pages_f32 = attn_pages_f32;
    k->scores_f16 = scores_f16;
    k->scores_f32 = scores_f32;
    k->values_f16 = values_f16;
    k->values_f32 = values_f32;
    pd__kernels_init_mat_avx512(k);
    pd__kernels_init_pick_avx512(k);
    pd__kernels_init_codes_avx512(k);
    pd__kernels_init_quad_avx512(k);
    pd__kernels_init_moments_avx512(k);
    k->attn_tile_f32 = k->attn_tile_fast = attn_tile;
    k->attn_tile_sums_f32 = k->attn_tile_sums_fast = attn_tile_sums;
}
