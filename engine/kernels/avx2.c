/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2 + FMA + F16C row: vectors of 8 f32; tails go through scalar code or a
 * zero-padded copy on the stack.
 *
 * The shape of each kernel is that of avx512.c: a page's 16 slots are two vectors
 * here.  16 registers allow 4 heads by 2 vectors in attention. */
#include "engine/kernels/rows.h"
#include "engine/kernels/tile.h"

#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#define FORCE_INLINE static inline __attribute__((always_inline))

/* ---- tails: n < 8 values ---- */

FORCE_INLINE __m256 load_tail(const float *x, size_t n) {
    float buf[8] = {0};
    memcpy(buf, x, n * sizeof *x);
    return _mm256_loadu_ps(buf);
}

FORCE_INLINE void store_tail(float *x, __m256 v, size_t n) {
    float buf[8];
    _mm256_storeu_ps(buf, v);
    memcpy(x, buf, n * sizeof *x);
}

/* min(n, 8) values from x, zeros after them. */
FORCE_INLINE __m256 load_upto8(const float *x, size_t n) {
    return n >= 8 ? _mm256_loadu_ps(x) : load_tail(x, n);
}

FORCE_INLINE void store_upto8(float *x, __m256 v, size_t n) {
    if (n >= 8)
        _mm256_storeu_ps(x, v);
    else
        store_tail(x, v, n);
}

FORCE_INLINE float reduce_add(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

FORCE_INLINE float reduce_max(__m256 v) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

/* ---- exp ---- */

/* exp(x) for x <= 0, by the same reduction and polynomial as avx512.c.  2^n is
 * made in the exponent field, so results below 2^-126 become 0. */
FORCE_INLINE __m256 exp8(__m256 x) {
    const __m256 least = _mm256_set1_ps(-87.33654f); /* ln 2^-126, rounded up */
    const __m256 keep = _mm256_cmp_ps(x, least, _CMP_GE_OQ);
    x = _mm256_max_ps(x, least);
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e430p-1f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-0x1.05c610p-29f), r);
    __m256 p = _mm256_set1_ps(0x1.6a2408p-10f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.1239e8p-7f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.5558f2p-5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.555492p-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.fffffcp-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    const __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(e, 23)));
    return _mm256_and_ps(p, keep);
}

/* 1 / (1 + exp(-x)) from exp(-|x|) <= 1, which cannot overflow. */
FORCE_INLINE __m256 sigmoid8(__m256 x) {
    const __m256 one = _mm256_set1_ps(1.0f);
    const __m256 e = exp8(_mm256_or_ps(x, _mm256_set1_ps(-0.0f)));
    return _mm256_div_ps(_mm256_blendv_ps(one, e, x), _mm256_add_ps(one, e));
}

/* ---- vectors of f32 ---- */

static float dot_f32(const float *a, const float *b, size_t n) {
    __m256 s[4] = {0};
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (int c = 0; c < 4; c++)
            s[c] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8 * c), _mm256_loadu_ps(b + i + 8 * c),
                                   s[c]);
    for (; i + 8 <= n; i += 8)
        s[0] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s[0]);
    float sum = reduce_add(_mm256_add_ps(_mm256_add_ps(s[0], s[1]), _mm256_add_ps(s[2], s[3])));
    for (; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static void axpy_f32(float a, const float *x, float *y, size_t n) {
    const __m256 va = _mm256_set1_ps(a);
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i,
                         _mm256_fmadd_ps(va, _mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
    for (; i < n; i++) y[i] = fmaf(a, x[i], y[i]);
}

static float max_f32(const float *x, size_t n) {
    float max = x[0];
    size_t i = 0;
    if (n >= 8) {
        __m256 m0 = _mm256_loadu_ps(x), m1 = m0;
        for (; i + 16 <= n; i += 16) {
            m0 = _mm256_max_ps(m0, _mm256_loadu_ps(x + i));
            m1 = _mm256_max_ps(m1, _mm256_loadu_ps(x + i + 8));
        }
        max = reduce_max(_mm256_max_ps(m0, m1));
    }
    for (; i < n; i++)
        if (x[i] > max) max = x[i];
    return max;
}

static float exp_sum_f32(float *x, size_t n, float max) {
    const __m256 vm = _mm256_set1_ps(max);
    __m256 s0 = _mm256_setzero_ps(), s1 = s0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m256 e0 = exp8(_mm256_sub_ps(_mm256_loadu_ps(x + i), vm));
        const __m256 e1 = exp8(_mm256_sub_ps(_mm256_loadu_ps(x + i + 8), vm));
        _mm256_storeu_ps(x + i, e0);
        _mm256_storeu_ps(x + i + 8, e1);
        s0 = _mm256_add_ps(s0, e0);
        s1 = _mm256_add_ps(s1, e1);
    }
    float sum = reduce_add(_mm256_add_ps(s0, s1));
    for (; i < n; i += 8) {
        const size_t k = n - i < 8 ? n - i : 8;
        float e[8];
        _mm256_storeu_ps(e, exp8(_mm256_sub_ps(load_upto8(x + i, k), vm)));
        for (size_t j = 0; j < k; j++) sum += e[j];
        memcpy(x + i, e, k * sizeof *e);
    }
    return sum;
}

static void rmsnorm(const float *x, const float *w, float eps, size_t n, float *y) {
    const float scale = 1.0f / sqrtf(dot_f32(x, x, n) / (float)n + eps);
    const __m256 vs = _mm256_set1_ps(scale);
    for (size_t i = 0; i < n; i += 8) {
        __m256 v = _mm256_mul_ps(load_upto8(x + i, n - i), vs);
        if (w) v = _mm256_mul_ps(v, load_upto8(w + i, n - i));
        store_upto8(y + i, v, n - i);
    }
}

static void rope(float *x, size_t n_head, size_t head_dim, const float *cos, const float *sin) {
    const size_t half = head_dim / 2;
    for (size_t h = 0; h < n_head; h++, x += head_dim) {
        for (size_t i = 0; i < half; i += 8) {
            const size_t k = half - i;
            const __m256 lo = load_upto8(x + i, k), hi = load_upto8(x + half + i, k);
            const __m256 c = load_upto8(cos + i, k), s = load_upto8(sin + i, k);
            store_upto8(x + i, _mm256_fmsub_ps(lo, c, _mm256_mul_ps(hi, s)), k);
            store_upto8(x + half + i, _mm256_fmadd_ps(hi, c, _mm256_mul_ps(lo, s)), k);
        }
    }
}

static void silu_mul(const float *g, const float *u, size_t n, float *y) {
    for (size_t i = 0; i < n; i += 8) {
        const __m256 x = load_upto8(g + i, n - i);
        const __m256 v = _mm256_mul_ps(_mm256_mul_ps(x, sigmoid8(x)), load_upto8(u + i, n - i));
        store_upto8(y + i, v, n - i);
    }
}

/* 0.5 (1 + tanh z) = sigmoid(2 z) */
static void gelu_mul(const float *g, const float *u, size_t n, float *y) {
    const __m256 a = _mm256_set1_ps(2 * 0.79788456f), b = _mm256_set1_ps(0.044715f);
    for (size_t i = 0; i < n; i += 8) {
        const __m256 x = load_upto8(g + i, n - i);
        const __m256 cube = _mm256_mul_ps(_mm256_mul_ps(x, x), x);
        const __m256 z = _mm256_mul_ps(a, _mm256_fmadd_ps(b, cube, x));
        const __m256 v = _mm256_mul_ps(_mm256_mul_ps(x, sigmoid8(z)), load_upto8(u + i, n - i));
        store_upto8(y + i, v, n - i);
    }
}

/* tanh y = 2 sigmoid(2 y) - 1 */
static void cap_f32(float *x, size_t n, float cap) {
    const __m256 in = _mm256_set1_ps(2.0f / cap), out = _mm256_set1_ps(2.0f * cap);
    const __m256 less = _mm256_set1_ps(cap);
    for (size_t i = 0; i < n; i += 8) {
        const __m256 s = sigmoid8(_mm256_mul_ps(load_upto8(x + i, n - i), in));
        store_upto8(x + i, _mm256_fmsub_ps(s, out, less), n - i);
    }
}

static void f32_to_f16(const float *x, uint16_t *y, size_t n) {
    for (size_t i = 0; i < n; i += 8) {
        uint16_t h[8];
        _mm_storeu_si128((__m128i *)h,
                         _mm256_cvtps_ph(load_upto8(x + i, n - i),
                                         _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        memcpy(y + i, h, (n - i < 8 ? n - i : 8) * sizeof *h);
    }
}

static void f16_to_f32(const uint16_t *x, float *y, size_t n) {
    for (size_t i = 0; i < n; i += 8) {
        uint16_t h[8] = {0};
        memcpy(h, x + i, (n - i < 8 ? n - i : 8) * sizeof *h);
        store_upto8(y + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)h)), n - i);
    }
}

/* ---- quantised matrices ---- */

static void quantize_act(const float *x, size_t n, int8_t *q, float *d, float *s) {
    const __m256 no_sign = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (size_t b = 0; b < n / 32; b++, x += 32, q += 32) {
        __m256 v[4], abs[4];
        for (int i = 0; i < 4; i++) {
            v[i] = _mm256_loadu_ps(x + 8 * i);
            abs[i] = _mm256_and_ps(v[i], no_sign);
        }
        const float max = reduce_max(
            _mm256_max_ps(_mm256_max_ps(abs[0], abs[1]), _mm256_max_ps(abs[2], abs[3])));
        float step = max / 127.0f;
        if (step < FLT_MIN) step = 0.0f;
        const __m256 inv = _mm256_set1_ps(step > 0.0f ? 127.0f / max : 0.0f);
        __m256i w[4];
        for (int i = 0; i < 4; i++) w[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inv));
        /* packs work inside 128-bit lanes: put the dwords back in order */
        const __m256i bytes = _mm256_permutevar8x32_epi32(
            _mm256_packs_epi16(_mm256_packs_epi32(w[0], w[1]), _mm256_packs_epi32(w[2], w[3])),
            _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i *)q, bytes);
        /* sums of 8 bytes + 128 each, in the low half of every quadword */
        const __m256i sad = _mm256_sad_epu8(_mm256_xor_si256(bytes, _mm256_set1_epi8(-128)),
                                            _mm256_setzero_si256());
        const __m256i sum = _mm256_add_epi64(sad, _mm256_unpackhi_epi64(sad, sad));
        const int sum0 = _mm256_extract_epi32(sum, 0) - 16 * 128;
        const int sum1 = _mm256_extract_epi32(sum, 4) - 16 * 128;
        d[b] = step;
        s[2 * b] = step * (float)sum0;
        s[2 * b + 1] = step * (float)sum1;
    }
}

/* ---- attention over KV pages ---- */

enum {
    MAX_NG = 4,      /* query heads that share one load of K or V */
    AHEAD_KV = 4096, /* bytes of K or V prefetched ahead: whole pages, at least the next */
    AHEAD_SCORES = 8192, /* the same where only K is read */
};

/* 8 elements from element i of a page. */
FORCE_INLINE __m256 load8(const void *page, size_t i, bool f16) {
    if (f16) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)page + i)));
    return _mm256_loadu_ps((const float *)page + i);
}

/* The 16 elements from element i: one line of f32, half a line of f16. */
FORCE_INLINE void prefetch16(const void *page, size_t i, bool f16) {
    _mm_prefetch((const char *)page + i * (f16 ? 2 : 4), _MM_HINT_T0);
}

/* tmp[g][0..16) = the scores of a page's 16 slots. */
FORCE_INLINE void page_scores(const float *q, int ng, size_t dim, const void *page,
                              const void *later, bool f16, float *tmp, size_t stride) {
    __m256 s[MAX_NG][2];
    for (int g = 0; g < ng; g++) s[g][0] = s[g][1] = _mm256_setzero_ps();
    for (size_t c = 0; c < dim; c++) {
        if (!f16 || c % 2 == 0) prefetch16(later, 16 * c, f16);
        const __m256 k0 = load8(page, 16 * c, f16), k1 = load8(page, 16 * c + 8, f16);
        for (int g = 0; g < ng; g++) {
            const __m256 x = _mm256_set1_ps(q[g * dim + c]);
            s[g][0] = _mm256_fmadd_ps(x, k0, s[g][0]);
            s[g][1] = _mm256_fmadd_ps(x, k1, s[g][1]);
        }
    }
    for (int g = 0; g < ng; g++) {
        _mm256_storeu_ps(tmp + g * stride, s[g][0]);
        _mm256_storeu_ps(tmp + g * stride + 8, s[g][1]);
    }
}

/* acc[g][0..dim) += sum over slots j of tmp[g][j] * v[j] */
FORCE_INLINE void page_values(const float *tmp, size_t stride, int ng, size_t dim, const void *v,
                              const void *later, bool f16, size_t j0, size_t j1, float *acc) {
    for (size_t c = 0; c < dim; c += 16) {
        __m256 s[MAX_NG][2];
        for (int g = 0; g < ng; g++)
            for (int i = 0; i < 2; i++) s[g][i] = _mm256_loadu_ps(acc + g * dim + c + 8 * i);
        for (size_t j = j0; j < j1; j++) {
            if (!f16 || c % 32 == 0) prefetch16(later, j * dim + c, f16);
            const __m256 x0 = load8(v, j * dim + c, f16), x1 = load8(v, j * dim + c + 8, f16);
            for (int g = 0; g < ng; g++) {
                const __m256 p = _mm256_set1_ps(tmp[g * stride + j]);
                s[g][0] = _mm256_fmadd_ps(p, x0, s[g][0]);
                s[g][1] = _mm256_fmadd_ps(p, x1, s[g][1]);
            }
        }
        for (int g = 0; g < ng; g++)
            for (int i = 0; i < 2; i++) _mm256_storeu_ps(acc + g * dim + c + 8 * i, s[g][i]);
    }
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

FORCE_INLINE void values(const float *tmp, size_t stride, size_t n_group, size_t dim,
                         const void *v, const void *later, bool f16, size_t j0, size_t j1,
                         float *acc) {
    for (size_t g = 0; g < n_group; g += MAX_NG) {
        const float *x = tmp + g * stride;
        float *ag = acc + g * dim;
        switch (head_step(n_group - g)) {
        case 1: page_values(x, stride, 1, dim, v, later, f16, j0, j1, ag); break;
        case 2: page_values(x, stride, 2, dim, v, later, f16, j0, j1, ag); break;
        case 3: page_values(x, stride, 3, dim, v, later, f16, j0, j1, ag); break;
        default: page_values(x, stride, 4, dim, v, later, f16, j0, j1, ag);
        }
    }
}

FORCE_INLINE void attn_pages(const float *q, size_t n_group, size_t k_dim, size_t dim, const void *const *pages,
                             size_t first, size_t n, float softcap, float *tmp, size_t stride,
                             float *m, float *l, float *acc, bool f16) {
    const size_t p0 = first / 16, p1 = (first + n + 15) / 16, n_slot = (p1 - p0) * 16;
    const size_t k_bytes = 16 * k_dim * (f16 ? 2 : 4), v_bytes = 16 * dim * (f16 ? 2 : 4);
    const size_t k_ahead = k_bytes < AHEAD_KV ? AHEAD_KV / k_bytes : 1;
    const size_t ahead = v_bytes < AHEAD_KV ? AHEAD_KV / v_bytes : 1;
    for (size_t p = p0; p < p1; p++)
        scores(q, n_group, k_dim, pages[p], pages[p + k_ahead < p1 ? p + k_ahead : p], f16,
               tmp + (p - p0) * 16, stride);
    /* Slots outside the range hold anything: -INFINITY gives them weight 0. */
    const size_t head = first % 16, used = (first + n - 1) % 16 + 1; /* of the last page */
    for (size_t g = 0; g < n_group; g++) {
        float *x = tmp + g * stride;
        if (softcap > 0.0f) cap_f32(x, n_slot, softcap);
        for (size_t i = 0; i < head; i++) x[i] = -INFINITY;
        for (size_t i = n_slot - 16 + used; i < n_slot; i++) x[i] = -INFINITY;
        m[g] = max_f32(x, n_slot);
        l[g] = exp_sum_f32(x, n_slot, m[g]);
    }
    memset(acc, 0, n_group * dim * sizeof *acc);
    for (size_t p = p0; p < p1; p++) {
        /* 0 * NaN is NaN, so unused slots are not even multiplied */
        const size_t j0 = p == p0 ? head : 0, j1 = p + 1 == p1 ? used : 16;
        const char *v = (const char *)pages[p] + k_bytes;
        const char *later = (const char *)pages[p + ahead < p1 ? p + ahead : p] + k_bytes;
        values(tmp + (p - p0) * 16, stride, n_group, dim, v, later, f16, j0, j1, acc);
    }
}

static void attn_pages_f16(const float *q, size_t n_group, size_t k_dim, size_t head_dim,
                           const void *const *pages, size_t first, size_t n, size_t n_next,
                           float softcap, float *tmp, size_t tmp_stride, float *m, float *l, float *acc) {
    (void)n_next;
    attn_pages(q, n_group, k_dim, head_dim, pages, first, n, softcap, tmp, tmp_stride, m, l, acc, true);
}

static void attn_pages_f32(const float *q, size_t n_group, size_t k_dim, size_t head_dim,
                           const void *const *pages, size_t first, size_t n, size_t n_next,
                           float softcap, float *tmp, size_t tmp_stride, float *m, float *l, float *acc) {
    (void)n_next;
    attn_pages(q, n_group, k_dim, head_dim, pages, first, n, softcap, tmp, tmp_stride, m, l, acc, false);
}

#include "engine/kernels/parts.inc"

/* ---- attention of a prompt's tile (tile.h): 3 vectors of 8 rows ---- */

enum { TILE_VEC = 3, TILE_PITCH = 24 };

FORCE_INLINE void transpose8(__m256 *r) {
    __m256 t[8];
    for (int i = 0; i < 8; i += 4) {
        const __m256 a = _mm256_unpacklo_ps(r[i], r[i + 1]), b = _mm256_unpackhi_ps(r[i], r[i + 1]);
        const __m256 c = _mm256_unpacklo_ps(r[i + 2], r[i + 3]);
        const __m256 d = _mm256_unpackhi_ps(r[i + 2], r[i + 3]);
        t[i] = _mm256_shuffle_ps(a, c, 0x44);
        t[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
        t[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
        t[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(t[i], t[4 + i], 0x20);
        r[4 + i] = _mm256_permute2f128_ps(t[i], t[4 + i], 0x31);
    }
}

static void tile_pack(const float *const *row, size_t dim, float scale, float *qt) {
    const __m256 by = _mm256_set1_ps(scale);
    for (size_t c = 0; c < dim; c += 8) {
        __m256 r[8];
        for (int i = 0; i < 8; i++) r[i] = _mm256_mul_ps(_mm256_loadu_ps(row[i] + c), by);
        transpose8(r);
        for (int i = 0; i < 8; i++) _mm256_store_ps(qt + (c + (size_t)i) * TILE_PITCH, r[i]);
    }
}

static void tile_unpack(const float *acc, size_t dim, const float *l, float *const *row,
                        size_t n_row) {
    const __m256 vl = _mm256_loadu_ps(l);
    for (size_t c = 0; c < dim; c += 8) {
        __m256 r[8];
        for (int i = 0; i < 8; i++)
            r[i] = _mm256_div_ps(_mm256_load_ps(acc + (c + (size_t)i) * TILE_PITCH), vl);
        transpose8(r);
        _Alignas(32) float x[8][8];
        for (int i = 0; i < 8; i++) _mm256_store_ps(x[i], r[i]);
        for (size_t i = 0; i < n_row; i++) memcpy(row[i] + c, x[i], sizeof x[i]);
    }
}

/* nk slots by nv vectors; both are constants after inlining. */
FORCE_INLINE void slot_scores(const float *qt, const float *k, size_t dim, int nk, int nv,
                              float *s) {
    __m256 x[4][TILE_VEC];
    for (int j = 0; j < nk; j++)
        for (int i = 0; i < nv; i++) x[j][i] = _mm256_setzero_ps();
    for (size_t c = 0; c < dim; c++) {
        __m256 q[TILE_VEC];
        for (int i = 0; i < nv; i++) q[i] = _mm256_load_ps(qt + c * TILE_PITCH + 8 * i);
        for (int j = 0; j < nk; j++) {
            const __m256 b = _mm256_set1_ps(k[(size_t)j * dim + c]);
            for (int i = 0; i < nv; i++) x[j][i] = _mm256_fmadd_ps(b, q[i], x[j][i]);
        }
    }
    for (int j = 0; j < nk; j++)
        for (int i = 0; i < nv; i++) _mm256_store_ps(s + j * TILE_PITCH + 8 * i, x[j][i]);
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
    default: scores_of(qt, k, n, dim, 3, s);
    }
}

/* All bits of the lanes that do not see slot j. */
FORCE_INLINE __m256 hidden(__m256i lo, __m256i hi, size_t j) {
    const __m256i at = _mm256_set1_epi32((int)j);
    const __m256i below = _mm256_cmpgt_epi32(lo, at), in = _mm256_cmpgt_epi32(hi, at);
    return _mm256_castsi256_ps(_mm256_or_si256(below, _mm256_xor_si256(in, _mm256_set1_epi32(-1))));
}

static void tile_softmax(float *s, size_t n, size_t nv, const int32_t *lo, const int32_t *hi,
                         float *m, float *l, float *scale) {
    const __m256 never = _mm256_set1_ps(-INFINITY);
    for (size_t i = 0; i < 8 * nv; i += 8) {
        if (lo) {
            const __m256i a = _mm256_loadu_si256((const __m256i *)(lo + i));
            const __m256i b = _mm256_loadu_si256((const __m256i *)(hi + i));
            for (size_t j = 0; j < n; j++) {
                float *x = s + j * TILE_PITCH + i;
                _mm256_store_ps(x, _mm256_blendv_ps(_mm256_load_ps(x), never, hidden(a, b, j)));
            }
        }
        const __m256 old = _mm256_loadu_ps(m + i);
        __m256 max = old, sum = _mm256_setzero_ps();
        for (size_t j = 0; j < n; j++)
            max = _mm256_max_ps(max, _mm256_load_ps(s + j * TILE_PITCH + i));
        /* A lane that has seen nothing yet measures from 0: weights 0, not NaN. */
        const __m256 base = _mm256_and_ps(_mm256_cmp_ps(max, never, _CMP_NEQ_OQ), max);
        for (size_t j = 0; j < n; j++) {
            const __m256 w = exp8(_mm256_sub_ps(_mm256_load_ps(s + j * TILE_PITCH + i), base));
            _mm256_store_ps(s + j * TILE_PITCH + i, w);
            sum = _mm256_add_ps(sum, w);
        }
        const __m256 keep = exp8(_mm256_sub_ps(old, base));
        _mm256_storeu_ps(scale + i, keep);
        _mm256_storeu_ps(m + i, max);
        _mm256_storeu_ps(l + i, _mm256_fmadd_ps(_mm256_loadu_ps(l + i), keep, sum));
    }
}

FORCE_INLINE void values_of_tile(const float *s, const float *v, size_t n, size_t dim, int nv,
                                 const float *scale, float *acc) {
    __m256 by[TILE_VEC];
    for (int i = 0; i < nv; i++) by[i] = _mm256_loadu_ps(scale + 8 * i);
    for (size_t c = 0; c < dim; c += 4) {
        __m256 x[4][TILE_VEC];
        for (int e = 0; e < 4; e++)
            for (int i = 0; i < nv; i++)
                x[e][i] = _mm256_mul_ps(
                    _mm256_load_ps(acc + (c + (size_t)e) * TILE_PITCH + 8 * i), by[i]);
        for (size_t j = 0; j < n; j++) {
            __m256 w[TILE_VEC];
            for (int i = 0; i < nv; i++) w[i] = _mm256_load_ps(s + j * TILE_PITCH + 8 * i);
            for (int e = 0; e < 4; e++) {
                const __m256 b = _mm256_set1_ps(v[j * dim + c + (size_t)e]);
                for (int i = 0; i < nv; i++) x[e][i] = _mm256_fmadd_ps(b, w[i], x[e][i]);
            }
        }
        for (int e = 0; e < 4; e++)
            for (int i = 0; i < nv; i++)
                _mm256_store_ps(acc + (c + (size_t)e) * TILE_PITCH + 8 * i, x[e][i]);
    }
}

static void tile_values(const float *s, const float *v, size_t n, size_t dim, size_t nv,
                        const float *scale, float *acc) {
    switch (nv) {
    case 1: values_of_tile(s, v, n, dim, 1, scale, acc); break;
    case 2: values_of_tile(s, v, n, dim, 2, scale, acc); break;
    default: values_of_tile(s, v, n, dim, 3, scale, acc);
    }
}

static void tile_column(const float *s, size_t n, const int32_t *lo, const int32_t *hi,
                        const float *m, const float *l, float *sum) {
    const __m256 vm = _mm256_loadu_ps(m);
    const __m256 inv = _mm256_div_ps(_mm256_set1_ps(1.0f), _mm256_loadu_ps(l));
    const __m256i a = _mm256_loadu_si256((const __m256i *)lo);
    const __m256i b = _mm256_loadu_si256((const __m256i *)hi);
    for (size_t j = 0; j < n; j++) {
        const __m256 hide = hidden(a, b, j), x = _mm256_sub_ps(_mm256_load_ps(s + j * TILE_PITCH), vm);
        const __m256 w = _mm256_mul_ps(exp8(_mm256_andnot_ps(hide, x)), inv);
        sum[j] += reduce_add(_mm256_andnot_ps(hide, w));
    }
}

static const pd__tile_ops tile_ops = {
    .lanes = 8, .max_vec = TILE_VEC, .pack = tile_pack, .scores = tile_scores,
    .softmax = tile_softmax, .values = tile_values, .cap = cap_f32, .column = tile_column, .unpack = tile_unpack,
};

static void attn_tile(const pd_attn_rows *t) {
    pd__attn_tile(&tile_ops, t);
}

static void attn_tile_sums(const pd_attn_rows *t, size_t s0, size_t s1, float *sums,
                           size_t stride) {
    pd__attn_tile_sums(&tile_ops, t, s0, s1, sums, stride);
}

void pd__kernels_init_avx2(pd_kernels *k) {
    k->isa = "avx2";
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
    k->attn_pages_f16 = attn_pages_f16;
    k->attn_pages_f32 = attn_pages_f32;
    k->scores_f16 = scores_f16;
    k->scores_f32 = scores_f32;
    k->values_f16 = values_f16;
    k->values_f32 = values_f32;
    pd__kernels_init_gemm_avx2(k);
    pd__kernels_init_mat_avx2(k);
    pd__kernels_init_pick_avx2(k);
    pd__kernels_init_codes_avx2(k);
    pd__kernels_init_few_avx2(k);
    pd__kernels_init_quad_avx2(k);
    pd__kernels_init_moments_avx2(k);
    k->attn_tile_f32 = k->attn_tile_fast = attn_tile;
    k->attn_tile_sums_f32 = k->attn_tile_sums_fast = attn_tile_sums;
}
