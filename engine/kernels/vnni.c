/* SPDX-License-Identifier: Apache-2.0 */
/* AVX512_VNNI row: gemm_panel on vpdpbusd (u8 weights times s8 activations).
 *
 * A tile is one panel (16 rows, one per lane) by nt tokens.  A block's weights
 * are unpacked to 8 vectors once and used for all tokens of the tile.
 *
 * 1 to 7 tokens (decode): bound by reading the weights; activations are read in
 * place and the panel stream is prefetched, since the hardware's prefetcher
 * stops at every 4 KiB.
 * 8 tokens and more (prefill): bound by the multipliers.  8 weights + 8 integer
 * sums + 8 float sums fit the 32 registers.  Tokens are first copied in tiles
 * of 8 to the order in which they are used, so that every operand is at a
 * constant offset from one pointer; the copy pays from about 4 panels on.
 * A tile-block is 64 dot instructions and 48 others, so the ceiling is 57 % of
 * the VNNI peak; 48 % is reached (Cascade Lake, 64 tokens, 576 columns).
 *
 * The float operations on one output are the same for every nt and for both
 * ways of reading: acc = fma(d_w * d_a, dot, acc); acc = fma(m_w, s_a, acc). */
#include "engine/kernels/rows.h"

#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

#define FORCE_INLINE static inline __attribute__((always_inline))

enum {
    TILE = 8,        /* tokens of a packed tile */
    N_TILE = 4,      /* tiles copied at a time */
    N_BLK = 48,      /* blocks of 32 columns copied at a time */
    AHEAD = 8192,    /* bytes of weights prefetched ahead of use */
};

/* 8 tokens of one block of 32 columns. */
typedef struct {
    int8_t q[TILE][32];
    float d[TILE];
    float s[3][TILE]; /* first 16 columns, second 16, all 32 */
} packed;

/* Where a tile's activations are: element of token t and block b at
 * [t * tok + b * blk], the second half's s at + s_half. */
typedef struct {
    const int8_t *q;
    const float *d, *s, *s32; /* s32: both halves, ready added; NULL: add them here */
    size_t q_tok, q_blk, d_tok, d_blk, s_tok, s_blk, s_half;
} acts;

typedef struct {
    unsigned bits, block;
} format;

FORCE_INLINE __m512i four(const int8_t *a) {
    int32_t v;
    memcpy(&v, a, sizeof v);
    return _mm512_set1_epi32(v);
}

#include "engine/kernels/high_bits.inc"

/* acc += one weight block (n_group groups of 4 columns, d, m) times nt tokens;
 * `at` is the first column inside the block of 32. */
FORCE_INLINE void block_tile(const uint8_t *w, format f, acts a, size_t b, int at, int nt,
                             __m512 *acc) {
    const int n_group = (int)f.block / 4;
    const size_t q_bytes = (size_t)PD_PANEL_ROWS * f.block * f.bits / 8;
    __m512i u[8];
    if (f.bits != 8) {
        const __m512i low4 = _mm512_set1_epi8(15);
        for (int g = 0; g < n_group / 2; g++) {
            const __m512i v = _mm512_load_si512(w + 64 * g);
            u[g] = _mm512_and_si512(v, low4);
            u[g + n_group / 2] = _mm512_and_si512(_mm512_srli_epi16(v, 4), low4);
        }
        if (f.bits != 4) {
            const __m512i high = _mm512_load_si512(w + 32 * n_group);
#pragma GCC unroll 8
            for (int g = 0; g < n_group; g++) u[g] = _mm512_or_si512(u[g], high_bits_zmm(high, f.bits, g));
        }
    } else {
        for (int g = 0; g < n_group; g++) u[g] = _mm512_load_si512(w + 64 * g);
    }
    const __m512 d_w = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(w + q_bytes)));
    const __m512 m_w = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(w + q_bytes + 32)));

    /* Integer sums are exact in any order: with few tokens, two chains each. */
    __m512i dot[2][TILE];
    const int n_chain = nt <= 2 ? 2 : 1;
    for (int i = 0; i < n_chain; i++)
        for (int t = 0; t < nt; t++) dot[i][t] = _mm512_setzero_si512();
    for (int g = 0; g < n_group; g++)
        for (int t = 0; t < nt; t++)
            dot[g % n_chain][t] = _mm512_dpbusd_epi32(
                dot[g % n_chain][t], u[g], four(a.q + t * a.q_tok + b * a.q_blk + at + 4 * g));
    if (n_chain == 2)
        for (int t = 0; t < nt; t++) dot[0][t] = _mm512_add_epi32(dot[0][t], dot[1][t]);

    for (int t = 0; t < nt; t++) {
        const float d_a = a.d[t * a.d_tok + b * a.d_blk];
        const float *s = a.s + t * a.s_tok + b * a.s_blk;
        float s_a;
        if (f.block == 16)
            s_a = s[at ? a.s_half : 0];
        else
            s_a = a.s32 ? a.s32[t * a.s_tok + b * a.s_blk] : s[0] + s[a.s_half];
        acc[t] = _mm512_fmadd_ps(_mm512_mul_ps(d_w, _mm512_set1_ps(d_a)),
                                 _mm512_cvtepi32_ps(dot[0][t]), acc[t]);
        acc[t] = _mm512_fmadd_ps(m_w, _mm512_set1_ps(s_a), acc[t]);
    }
}

/* y[t][16 rows] (+)= n_blk blocks of 32 columns of one panel times nt tokens;
 * `add`: go on from the sums in y.  f, nt and the strides of packed activations
 * are constants after inlining. */
FORCE_INLINE void tile(const uint8_t *w, format f, acts a, size_t n_blk, int nt, bool add,
                       float *y, size_t ldy, __mmask16 rows) {
    const size_t bytes = (size_t)PD_PANEL_ROWS * f.block * f.bits / 8 + 64;
    __m512 acc[TILE];
    for (int t = 0; t < nt; t++)
        acc[t] = add ? _mm512_maskz_loadu_ps(rows, y + t * ldy) : _mm512_setzero_ps();
    for (size_t b = 0; b < n_blk; b++) {
        if (nt < TILE)
            for (size_t i = 0; i < 32 / f.block * bytes; i += 64)
                _mm_prefetch((const char *)((uintptr_t)w + AHEAD + i), _MM_HINT_T0);
        block_tile(w, f, a, b, 0, nt, acc);
        w += bytes;
        if (f.block == 16) {
            block_tile(w, f, a, b, 16, nt, acc);
            w += bytes;
        }
    }
    for (int t = 0; t < nt; t++) _mm512_mask_storeu_ps(y + t * ldy, rows, acc[t]);
}

FORCE_INLINE __mmask16 rows_of(const pd_panels *w, size_t p) {
    const size_t n = w->n_row - p * PD_PANEL_ROWS;
    return (__mmask16)(n < PD_PANEL_ROWS ? (1u << n) - 1 : 0xffff);
}

/* Few tokens: activations where they are. */
FORCE_INLINE void gemm_direct(const pd_panels *w, format f, size_t p0, size_t p1,
                              const pd_qact *a, size_t t0, size_t t1, float *y, size_t ldy) {
    const size_t stride = pd_panels_stride(w), n_blk = w->n_col / 32;
    for (size_t p = p0; p < p1; p++) {
        const uint8_t *panel = w->data + p * stride;
        const __mmask16 rows = rows_of(w, p);
        size_t t = t0;
        while (t < t1) {
            const acts at = {.q = a->q + t * w->n_col, .q_tok = w->n_col, .q_blk = 32,
                             .d = a->d + t * n_blk, .d_tok = n_blk, .d_blk = 1,
                             .s = a->s + t * 2 * n_blk, .s_tok = 2 * n_blk, .s_blk = 2,
                             .s_half = 1};
            float *yt = y + t * ldy + p * PD_PANEL_ROWS;
            if (t + 4 <= t1) {
                tile(panel, f, at, n_blk, 4, false, yt, ldy, rows);
                t += 4;
            } else if (t + 2 <= t1) {
                tile(panel, f, at, n_blk, 2, false, yt, ldy, rows);
                t += 2;
            } else {
                tile(panel, f, at, n_blk, 1, false, yt, ldy, rows);
                t += 1;
            }
        }
    }
}

/* Copy blocks [b0, b0 + n_blk) of tokens t .. t + 8. */
static void pack(const pd_qact *a, size_t t, size_t b0, size_t n_blk, packed *dst) {
    const size_t n_blk_row = a->n_col / 32;
    for (size_t i = 0; i < TILE; i++, t++) {
        const int8_t *q = a->q + t * a->n_col + b0 * 32;
        const float *d = a->d + t * n_blk_row + b0, *s = a->s + 2 * (t * n_blk_row + b0);
        for (size_t b = 0; b < n_blk; b++) {
            memcpy(dst[b].q[i], q + 32 * b, 32);
            dst[b].d[i] = d[b];
            dst[b].s[0][i] = s[2 * b];
            dst[b].s[1][i] = s[2 * b + 1];
            dst[b].s[2][i] = s[2 * b] + s[2 * b + 1];
        }
    }
}

/* n_tile whole tiles of tokens.  Columns go in chunks that fit the copy; the
 * sums wait in y between chunks, which changes no bit of them. */
FORCE_INLINE void gemm_packed(const pd_panels *w, format f, size_t p0, size_t p1,
                              const pd_qact *a, size_t t0, size_t n_tile, float *y, size_t ldy) {
    _Alignas(64) packed copy[N_TILE][N_BLK];
    const size_t stride = pd_panels_stride(w), n_blk = w->n_col / 32;
    const size_t bytes = 32 / f.block * pd_panel_block_bytes(f.bits, f.block);
    for (size_t b0 = 0; b0 < n_blk; b0 += N_BLK) {
        const size_t n = n_blk - b0 < N_BLK ? n_blk - b0 : N_BLK;
        for (size_t i = 0; i < n_tile; i++) pack(a, t0 + i * TILE, b0, n, copy[i]);
        for (size_t p = p0; p < p1; p++) {
            const uint8_t *panel = w->data + p * stride + b0 * bytes;
            for (size_t i = 0; i < n_tile; i++) {
                const packed *c = copy[i];
                const acts at = {.q = c->q[0], .q_tok = 32, .q_blk = sizeof *c,
                                 .d = c->d, .d_tok = 1, .d_blk = sizeof *c / 4,
                                 .s = c->s[0], .s_tok = 1, .s_blk = sizeof *c / 4,
                                 .s_half = TILE, .s32 = c->s[2]};
                tile(panel, f, at, n, TILE, b0 > 0,
                     y + (t0 + i * TILE) * ldy + p * PD_PANEL_ROWS, ldy, rows_of(w, p));
            }
        }
    }
}

FORCE_INLINE void gemm(const pd_panels *w, format f, size_t p0, size_t p1, const pd_qact *a,
                       size_t t0, size_t t1, float *y, size_t ldy) {
    while (t1 - t0 >= TILE) {
        const size_t n = (t1 - t0) / TILE, n_tile = n < N_TILE ? n : N_TILE;
        gemm_packed(w, f, p0, p1, a, t0, n_tile, y, ldy);
        t0 += n_tile * TILE;
    }
    if (t0 < t1) gemm_direct(w, f, p0, p1, a, t0, t1, y, ldy);
}

static void gemm_panel(const pd_panels *w, size_t p0, size_t p1, const pd_qact *a, size_t t0,
                       size_t t1, float *y, size_t ldy) {
    switch (w->bits) {
    case 4:
        if (w->block == 16)
            gemm(w, (format){4, 16}, p0, p1, a, t0, t1, y, ldy);
        else
            gemm(w, (format){4, 32}, p0, p1, a, t0, t1, y, ldy);
        break;
    case 5: gemm(w, (format){5, 32}, p0, p1, a, t0, t1, y, ldy); break;
    case 6: gemm(w, (format){6, 16}, p0, p1, a, t0, t1, y, ldy); break;
    default: gemm(w, (format){8, 32}, p0, p1, a, t0, t1, y, ldy);
    }
}

void pd__kernels_init_vnni(pd_kernels *k) {
    k->isa = "avx512+vnni";
    k->gemm_panel = gemm_panel;
    pd__kernels_init_few_vnni(k);
}
