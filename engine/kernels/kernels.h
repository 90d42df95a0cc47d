/* SPDX-License-Identifier: Apache-2.0 */
/* The inner loops that have more than one implementation.
 *
 * pd_kernels_init fills a table weakest row first: scalar.c is the definition,
 * each ISA file overwrites what it does better and leaves the rest.  The table
 * is read-only after start.  Every entry is compared with scalar code in
 * tests/kernel, within a derived bound; at start pd_kernels_selftest does a
 * short version of the same and the caller falls back on a mismatch.
 *
 * Rules for all entries: any alignment unless said, no read or write past the
 * stated sizes, no allocation, results depend on nothing but the inputs (never
 * on n_tok or on how a range is split), no fast-math.  Thread: any. */
#ifndef PD_ENGINE_KERNELS_KERNELS_H
#define PD_ENGINE_KERNELS_KERNELS_H

#include "engine/base/err.h"
#include "engine/kernels/panel.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* CPU features that have a row.  A row needs the ones before it (AVXVNNI only AVX2, VBMI only
 * AVX512, and no row needs one of the two), and the operating system's consent (xgetbv). */
enum {
    PD_CPU_AVX2 = 1u << 0,   /* with FMA and F16C */
    PD_CPU_AVX512 = 1u << 1, /* F, BW, DQ, VL */
    PD_CPU_VNNI = 1u << 2,   /* AVX512_VNNI */
    PD_CPU_BF16 = 1u << 3,   /* AVX512_BF16 */
    PD_CPU_AVXVNNI = 1u << 4, /* AVX_VNNI: VNNI on 256 bits, without AVX-512 */
    PD_CPU_VBMI = 1u << 5,    /* AVX512_VBMI */
};

enum { PD_PAGE_TOKENS = 16 }; /* slots of a KV page; a lane of the attention kernels */
enum { PD_KV_GROUP = 32 };    /* numbers of a row of K or V that share a step, in few bits */

/* One pass of a KV head's query heads over the K part or the V part of pages. */
typedef struct pd_part_pass {
    const void *const *pages;
    size_t at;                /* where the part begins in a page, in bytes */
    size_t first, n;          /* slots [first, first + n) counted from the start of pages[0]; n >= 1 */
    size_t n_next;            /* scores: pages behind those of the range that are read next, a hint */
    /* 1 <= n_group <= 16; head_dim % 16 == 0, in few bits % PD_KV_GROUP.  Scores in f16 and
     * f32 take any head_dim >= 1: keys may have fewer channels than values. */
    size_t n_group, head_dim;
    /* [n_group][tmp_stride]: scores, later weights; slot s of page p lies at
     * 16 * (p - first / 16) + s */
    float *tmp;
    size_t tmp_stride;
    /* scores: the queries, scaled */
    const float *q;    /* [n_group][head_dim]; f16 and f32 */
    const int8_t *q_n; /* q8, q5: number = q_d * q_n, as quantize_act leaves them */
    const float *q_d, *q_sum; /* [n_group][head_dim / 32]; q_sum: sum of the group's q_n */
    float *acc;        /* values, rows: [n_group][head_dim], set */
    const uint32_t *row; /* rows: [n_row] slots counted from the start of pages[0], ascending; the weight of
                            slot r is tmp[g * tmp_stride + r].  first and n are not used */
    size_t n_row;
    bool dense;          /* rows: the weight of row[i] is tmp[g * tmp_stride + i] */
} pd_part_pass;

/* Scores of product codes (cache/codes.h): every slot of n_page pages, whose codes are a page's
 * first bytes. */
typedef struct pd_code_pass {
    const void *const *pages;
    size_t n_page, n_code, n_group; /* n_code <= 256; of 16 centroids even; 1 <= n_group <= 16 */
    size_t n_next;             /* pages behind those that are read next, a hint */
    const uint8_t *table;      /* [n_group][n_code][256 or 16] as code_table makes them */
    const float *least, *step; /* [n_group] */
    float *tmp;                /* [n_group][tmp_stride], set: slot s of page p at 16 p + s */
    size_t tmp_stride;
} pd_code_pass;

/* Attention of some tokens of a prompt, all query heads of one KV head, against
 * dense keys and values.  Token i sees slots [lo, end) with
 *     end = n_before + i + 1,   lo = window && end > window ? end - window : 0
 * so k and v hold n_before + n_tok slots. */
typedef struct pd_attn_rows {
    const float *q;      /* head g of token i: q + i * ld + g * head_dim */
    float *out;          /* likewise: sum of softmax(scale * <q, k>) v */
    const float *k, *v;  /* [slot][head_dim] */
    float *m, *l;        /* head g of token i at g * ld_ml + i: largest score, sum exp(score - m) */
    size_t n_tok, n_group, head_dim, ld, ld_ml; /* n_tok, n_group >= 1; head_dim % 16 == 0 */
    size_t n_before, window;
    float scale;
    float softcap; /* c: scores become c tanh(score / c) (Gemma 2); 0 = as they are */
    float *tmp; /* 64-byte aligned, pd_attn_rows_floats */
} pd_attn_rows;

enum { PD_ATTN_TILE_KEYS = 64 }; /* slots that attn_tile takes at a time */

/* Scratch of attn_tile and attn_tile_sums, in floats. */
static inline size_t pd_attn_rows_floats(size_t n_tok, size_t n_group, size_t head_dim) {
    const size_t rows = (n_tok + 15) / 16 * 16 * n_group + 64;
    return rows * (2 * head_dim + 2) + PD_ATTN_TILE_KEYS * (64 + head_dim);
}

typedef struct pd_kernels {
    const char *isa; /* the strongest row in use: "scalar", "avx2", "avx512", "avx2+vnni", "avx512+vnni" ... */

    /* ---- vectors of f32 ---- */
    /* sum a[i]*b[i]; the order of additions is free (bound in tests/kernel). */
    float (*dot_f32)(const float *a, const float *b, size_t n);
    /* y[i] += a * x[i] */
    void (*axpy_f32)(float a, const float *x, float *y, size_t n);
    /* largest of x[0..n), n >= 1; no NaN in x */
    float (*max_f32)(const float *x, size_t n);
    /* x[i] = exp(x[i] - max) in place; returns the sum.  x[i] - max <= 0;
     * -INFINITY gives exactly 0.  Relative error of each exp <= 4e-7; one below
     * 2^-126 may be off by 2^-126, that is, may be 0. */
    float (*exp_sum_f32)(float *x, size_t n, float max);
    /* y = x / sqrt(mean(x^2) + eps) * w;  y may be x.  w NULL = ones. */
    void (*rmsnorm)(const float *x, const float *w, float eps, size_t n, float *y);
    /* In place, half-split RoPE (RoFormer; rotate_half of transformers) on
     * n_head rows of head_dim:  x = x*cos + half(x)*sin,
     * half(x) = (-x[D/2:], x[:D/2]).  cos, sin: [D/2]. */
    void (*rope)(float *x, size_t n_head, size_t head_dim, const float *cos, const float *sin);
    /* y = silu(g) * u;   y = gelu_tanh(g) * u.  y may be g or u. */
    void (*silu_mul)(const float *g, const float *u, size_t n, float *y);
    void (*gelu_mul)(const float *g, const float *u, size_t n, float *y);
    /* x = cap * tanh(x / cap) in place, cap > 0; off by at most 6e-7 cap. */
    void (*softcap)(float *x, size_t n, float cap);
    /* IEEE half, round to nearest even. */
    void (*f32_to_f16)(const float *x, uint16_t *y, size_t n);
    void (*f16_to_f32)(const uint16_t *x, float *y, size_t n);

    /* ---- quantised matrices (panel.h) ---- */
    /* One row of n finite values (n % 32 == 0) to q, d, s as pd_qact's rows:
     *     d = max|x| / 127,   q = x * (127 / max|x|) to the nearest, ties to even,
     *     s = d * (float)(sum of the 16 q),   each operation rounded to f32;
     * a block with d < FLT_MIN (all zero, or too small to divide) has d = 0, q = 0,
     * s = +0.  Bit-identical in every row of the table. */
    void (*quantize_act)(const float *x, size_t n, int8_t *q, float *d, float *s);
    /* y[t * ldy + r] = sum over blocks of  d_w * d_a * <q_w, q_a> + m_w * s_a
     * for tokens t0 <= t < t1 and the rows r of panels p0 <= p < p1 (rows past
     * n_row are not written).  Each y depends on its token and row alone.  Takes
     * up to 80 KiB of stack. */
    void (*gemm_panel)(const pd_panels *w, size_t p0, size_t p1, const pd_qact *a, size_t t0,
                       size_t t1, float *y, size_t ldy);
    /* Row r as f32: dst[n_col]. */
    void (*panel_row)(const pd_panels *w, size_t r, float *dst);

    /* ---- small products of f32 ----
     * y[i][c] = sum over r < k, in this order, of a[i][r] * b[r][c],  i < n, c < m;  rows of a, b and y
     * lie ld_a, ld_b and ld_y floats apart; m % 16 == 0.  For matrices that BLAS takes longer to prepare
     * than to multiply, and results that do not depend on n. */
    void (*matmul_f32)(const float *a, size_t ld_a, size_t n, size_t k, const float *b, size_t ld_b, size_t m, float *y, size_t ld_y);

    /* ---- attention over KV pages ----
     * A page holds PD_PAGE_TOKENS slots of one KV head:
     *     K: [k_dim][16]   then   V: [16][head_dim]       elements f16 or f32
     * so one vector load of K serves 16 slots of one dimension.  k_dim is head_dim, or
     * less where keys have channels taken out.
     *
     * Partial attention of the G query heads of that KV head over slots
     * [first, first + n) counted from the start of pages[0]; n >= 1.
     *   q    [G][k_dim], already scaled;  softcap as in pd_attn_rows
     *   n_next  pages behind those of the range that will be read next: a hint
     *   tmp  [G][tmp_stride], tmp_stride >= n rounded up to 16, + 16
     *   m[g] = max score,  l[g] = sum exp(score - m),
     *   acc  [G][head_dim] = sum exp(score - m) * v
     * head_dim % 16 == 0, k_dim >= 1, 1 <= G <= 16.  Slots outside [first, first + n) may
     * hold anything, NaN included; tmp's contents are undefined afterwards. */
    void (*attn_pages_f16)(const float *q, size_t n_group, size_t k_dim, size_t head_dim,
                           const void *const *pages, size_t first, size_t n, size_t n_next,
                           float softcap, float *tmp, size_t tmp_stride, float *m, float *l, float *acc);
    void (*attn_pages_f32)(const float *q, size_t n_group, size_t k_dim, size_t head_dim,
                           const void *const *pages, size_t first, size_t n, size_t n_next,
                           float softcap, float *tmp, size_t tmp_stride, float *m, float *l, float *acc);

    /* ---- the same in two passes, K and V of different types ----
     * scores: tmp = <q, k> of every slot of the pages (those outside [first, first + n)
     * get anything, NaN included).  values: acc = sum of tmp * v over the range; slots
     * outside it are not looked at.  f16, f32: parts as above.
     *
     * Few bits: each group of 32 numbers of a row has a step d, f16.
     *   q8  number = d * n            K: n [head_dim/4][16][4], V: n [16][head_dim]   int8
     *   q5  number = d * (n - 15.5)   n in 0..31
     *       K four bits [head_dim/8][16][4]: byte (c, s, i) has channel 8c + i of slot s in
     *       its low and 8c + 4 + i in its high half; behind them the fifth [head_dim/4][8]:
     *       bit 4 (s % 2) + i of byte (c, s / 2) is that of channel 4c + i of slot s
     *   q4  number = d * (n - 7.5)    n in 0..15
     *       V [16][head_dim/2]: byte 16g + i of a row has channel 32g + i in its low and
     *       32g + 16 + i in its high four bits
     * and behind n, for both parts, d [head_dim/32][16].
     * A score is the sum over groups of d * (q_d * (exact integer sum of q_n times n, of
     * n - 15.5 in q5)), each operation in f32: K is never made f32. */
    void (*scores_f16)(const pd_part_pass *p);
    void (*scores_f32)(const pd_part_pass *p);
    void (*scores_q8)(const pd_part_pass *p);
    void (*scores_q5)(const pd_part_pass *p);
    void (*values_f16)(const pd_part_pass *p);
    void (*values_f32)(const pd_part_pass *p);
    void (*values_q8)(const pd_part_pass *p);
    void (*values_q4)(const pd_part_pass *p);
    /* As values, of the slots in p->row alone; nothing of any other slot's row is read. */
    void (*rows_f16)(const pd_part_pass *p);
    void (*rows_f32)(const pd_part_pass *p);
    void (*rows_q8)(const pd_part_pass *p);
    void (*rows_q4)(const pd_part_pass *p);

    /* ---- which rows (run/select.h); no NaN in x ---- */
    /* Scores of keys that lie anywhere: s[(h * n_group + g) * ld_s + i] = <q[h][g], head h of row[i] of the keys>, i < n.
     * keys [][n_head][head_dim], q [n_head][n_group][head_dim], head_dim % 16 == 0; the order of additions is free. */
    void (*dots_f16)(const float *q, size_t n_head, size_t n_group, size_t head_dim, const uint16_t *keys, const uint32_t *row, size_t n,
                     float *s, size_t ld_s);
    /* sum of the x[i] >= t; the order of additions is free, but the same for any t, so
     * that a larger t never gives more. */
    float (*sum_from_f32)(const float *x, size_t n, float t);
    /* row = every i below n with x[g * stride + i] >= t[g] for some g, ascending; how many.
     * row has room for n + 16. */
    size_t (*list_from_f32)(const float *x, size_t stride, size_t n_group, size_t n, const float *t, uint32_t *row);

    /* ---- which pages (cache/bounds.h) ----
     * bound [16]: of each page of a block, the largest over query heads g of
     *     sum over c of max(q[g][c] * least[c], q[g][c] * largest[c])
     * block as bounds.h, q [n_group][head_dim]; finite; the order of additions is free. */
    void (*page_bounds)(const uint16_t *block, const float *q, size_t n_group, size_t head_dim, float *bound);

    /* ---- product codes (cache/codes.h) ----
     * A row is cut into parts of `sub` numbers; centroid c of a part is the numbers
     * book[k * n + c], k < sub, and the books of a row's n_code parts follow each other.
     *
     * nearest_f32: of the n centroids (n % 16 == 0) the one with the least sum over k of
     * (x[k] - book[k * n + c])^2, the lowest of equal ones; the order of additions is free. */
    size_t (*nearest_f32)(const float *x, const float *book, size_t sub, size_t n);
    /* What a query q [n_code][sub] gives each centroid, T[i][c] = sum over k of q * book, in 8 bits:
     *     T[i][c] is about  min over c of T[i] + step * table[i][c],   *least = sum over i of the minima
     * step = the widest range of a part / 255; 0 (and table 0) if that is below FLT_MIN.  table [n_code][n];
     * n % 16 == 0, n <= 256. */
    void (*code_table)(const float *q, const float *book, size_t sub, size_t n_code, size_t n, uint8_t *table,
                       float *least, float *step);
    /* tmp = least + step * (float)(sum over i of table[i][code i of the slot]), each operation in f32, so
     * that every row of the table gives the same bits.
     *   codes8  256 centroids: codes [n_code][16]
     *   codes4   16 centroids: [n_code / 2][16], byte (i, s) has code i of slot s in its low and code
     *           i + n_code / 2 in its high four bits */
    void (*scores_codes8)(const pd_code_pass *p);
    void (*scores_codes4)(const pd_code_pass *p);

    /* ---- what keys are expected to get (compression/expected_attention.c) ----
     * z[i] = sum over a of k[i][a] * (mu[a] + sum over b <= a of u[b][a] * k[i][b])   for n keys
     * k [n][d], u [d][d], 0 below the diagonal; d % 16 == 0; the order of additions is free. */
    void (*quad_f32)(const float *k, size_t n, size_t d, const float *mu, const float *u, float *z);

    /* ---- moments of queries (run/collect.h); d % 16 == 0 ----
     * centre_f32: y[r] = x[r] - shift for n rows, those of x ld floats apart, those of y d;
     * total = the sum of the y[r], added in this order; y NULL: that alone.
     * gram_f32: g[a][b] += (sum over r < n, in this order, of x[r][a] * x[r][b]) for a <= b; below
     * the diagonal of g [d][d] it leaves anything finite if x is. */
    void (*centre_f32)(const float *x, size_t ld, size_t n, size_t d, const float *shift, float *y, float *total);
    void (*gram_f32)(const float *x, size_t n, size_t d, float *g);

    /* ---- attention of a prompt's tile ----
     * out, m and l of every row; slots go in blocks of PD_ATTN_TILE_KEYS counted
     * from 0 with a running maximum (online softmax).  A row's result depends on
     * its query and the slots it sees alone.  _f32 computes in f32; _fast may
     * round q, k, v and the weights to bf16 (unit roundoff 2^-8) and sums in f32. */
    void (*attn_tile_f32)(const pd_attn_rows *t);
    void (*attn_tile_fast)(const pd_attn_rows *t);
    /* With the m and l of the same entry above, for slots s0 <= s < s1, s0 a
     * multiple of PD_ATTN_TILE_KEYS:
     *     sums[g * stride + s] += sum over tokens of exp(score - m) / l
     * out is not used.  Cut by slots, any cut gives the same bits. */
    void (*attn_tile_sums_f32)(const pd_attn_rows *t, size_t s0, size_t s1, float *sums,
                               size_t stride);
    void (*attn_tile_sums_fast)(const pd_attn_rows *t, size_t s0, size_t s1, float *sums,
                                size_t stride);
} pd_kernels;

/* Features of this CPU that the operating system allows.  Thread: any. */
unsigned pd_cpu_detect(void);

/* "avx2,avx512" -> bits; "scalar" = 0; "all" = every bit.  Errors: EINVAL names
 * the unknown word and lists the known ones. */
pd_status pd_cpu_mask_parse(const char *text, unsigned *ret, pd_err *err);

/* Fill the table for `flags` (detected AND mask; a bit whose prerequisites are
 * missing is ignored). */
void pd_kernels_init(pd_kernels *k, unsigned flags);

/* Compare a table with scalar code on small inputs (about 10 ms).  EINTERNAL
 * names the entry that differs. */
pd_status pd_kernels_selftest(const pd_kernels *k, pd_err *err);

#endif
