/* SPDX-License-Identifier: Apache-2.0 */
/* gemm_panel and panel_row: every row against an f64 product of the same
 * integers, and bit-identity of every output however the work is split.
 *
 * Bound of one output: the integer dot products are exact, so each block adds
 * two terms with at most 3 roundings of the product and one of the sum each;
 * over 2 * n_blk additions: (2 n_blk + 4) u (sum|d_w d_a dot| + sum|m_w s_a|). */
#include "tests/kernel/util.h"

enum { MAX_TOK = 70, PAD = 5 };

static const struct {
    unsigned bits, block;
} formats[] = {{4, 16}, {4, 32}, {5, 32}, {6, 16}, {8, 32}};

typedef struct {
    pd_panels w;
    pd_qact a;
    size_t n_tok, ldy;
    double *want, *mag; /* [n_tok][n_row] */
} problem;

static uint16_t *scales(uint8_t *blk, const pd_panels *w) {
    return (uint16_t *)(void *)(blk + (size_t)PD_PANEL_ROWS * w->block * w->bits / 8);
}

/* Unpacks by the layout in panel.h, written independently of scalar.c: walks the
 * bytes of the block and says which row and column each nibble or byte is. */
static void block_weights(const pd_panels *w, const uint8_t *blk, unsigned q[16][32]) {
    const unsigned n_group = w->block / 4, n_whole = 16 * w->block * (w->bits == 8 ? 8 : 4) / 8;
    for (unsigned i = 0; i < n_whole; i++) {
        const unsigned g = i / 64, row = i % 64 / 4, col = i % 4;
        if (w->bits == 8) {
            q[row][4 * g + col] = blk[i];
        } else {
            q[row][4 * g + col] = blk[i] & 15;
            q[row][4 * (g + n_group / 2) + col] = blk[i] >> 4;
        }
    }
    const unsigned n_high = w->bits == 8 ? 0 : w->bits - 4;
    for (unsigned i = 0; n_high && i < 64; i++) /* a byte holds the high bits of all groups */
        for (unsigned g = 0; g < n_group; g++)
            for (unsigned bit = 0; bit < n_high; bit++)
                q[i / 4][4 * g + i % 4] |= (blk[n_whole + i] >> (g * n_high + bit) & 1u) << (4 + bit);
}

/* kind 0: random; 1: every integer at its limit (saturation); 2: zeros. */
static problem problem_new(pd_rng *rng, unsigned bits, unsigned block, size_t n_row, size_t n_col,
                           size_t n_tok, int kind) {
    const pd_kernels ref = scalar_row();
    problem p = {.w = {.n_row = n_row, .n_col = n_col, .bits = bits, .block = block},
                 .a = {.n_col = n_col}, .n_tok = n_tok, .ldy = n_row + PAD};
    const size_t n_panel = pd_panels_count(&p.w), stride = pd_panels_stride(&p.w);
    const size_t blk_bytes = pd_panel_block_bytes(bits, block), n_blk = n_col / block;
    p.w.data = aligned_alloc(64, n_panel * stride);
    p.a.q = block_new(n_tok * n_col);
    p.a.d = block_new(n_tok * n_col / 32 * sizeof(float));
    p.a.s = block_new(n_tok * n_col / 16 * sizeof(float));
    p.want = calloc(n_tok * n_row, sizeof *p.want);
    p.mag = calloc(n_tok * n_row, sizeof *p.mag);
    for (size_t b = 0; b < n_panel * n_blk; b++) {
        uint8_t *blk = p.w.data + b * blk_bytes;
        for (size_t i = 0; i < blk_bytes - 64; i++)
            blk[i] = kind == 0 ? (uint8_t)pd_rng_u64(rng) : kind == 1 ? 255 : 0;
        float dm[32];
        for (size_t i = 0; i < 32; i++) dm[i] = kind == 2 ? 0.0f : pd_rng_f32(rng);
        ref.f32_to_f16(dm, scales(blk, &p.w), 32);
    }
    for (size_t t = 0; t < n_tok; t++) {
        float *x = random_f32(rng, n_col, 3.0f);
        if (kind == 1)
            for (size_t i = 0; i < n_col; i++) x[i] = t % 2 ? -2.0f : 2.0f; /* q = +-127 */
        ref.quantize_act(x, n_col, p.a.q + t * n_col, p.a.d + t * n_col / 32,
                         p.a.s + t * n_col / 16);
        block_free(x);
    }
    for (size_t row = 0; row < n_row; row++)
        for (size_t b = 0; b < n_blk; b++) {
            uint8_t *blk = p.w.data + row / 16 * stride + b * blk_bytes;
            unsigned q[16][32];
            float dm[32];
            block_weights(&p.w, blk, q);
            ref.f16_to_f32(scales(blk, &p.w), dm, 32);
            for (size_t t = 0; t < n_tok; t++) {
                double dot = 0.0, sum = 0.0;
                for (size_t c = 0; c < block; c++) {
                    const int8_t a = p.a.q[t * n_col + b * block + c];
                    dot += (double)q[row % 16][c] * a;
                    sum += a;
                }
                const double d_a = p.a.d[(t * n_col + b * block) / 32];
                const double x = dm[row % 16] * d_a * dot, y = dm[16 + row % 16] * d_a * sum;
                p.want[t * n_row + row] += x + y;
                p.mag[t * n_row + row] += fabs(x) + fabs(y);
            }
        }
    return p;
}

static void problem_free(problem *p) {
    free(p->w.data);
    block_free(p->a.q);
    block_free(p->a.d);
    block_free(p->a.s);
    free(p->want);
    free(p->mag);
}

static float *output_new(const problem *p) {
    float *y = block_new(p->n_tok * p->ldy * sizeof *y);
    for (size_t i = 0; i < p->n_tok * p->ldy; i++) y[i] = 12345.0f;
    return y;
}

static void check_values(const pd_kernels *k, const problem *p) {
    float *y = output_new(p);
    k->gemm_panel(&p->w, 0, pd_panels_count(&p->w), &p->a, 0, p->n_tok, y, p->ldy);
    /* one more rounding: s = d * sum */
    const double n_round = 2.0 * (double)(p->w.n_col / p->w.block) + 5.0;
    for (size_t t = 0; t < p->n_tok; t++)
        for (size_t r = 0; r < p->ldy; r++) {
            const float got = y[t * p->ldy + r];
            const bool inside = r < p->w.n_row;
            const double want = inside ? p->want[t * p->w.n_row + r] : 12345.0;
            const double bound = inside ? n_round * EPS / 2 * p->mag[t * p->w.n_row + r] : 0.0;
            CHECK(near(want, got, bound),
                  "%s bits=%u block=%u rows=%zu cols=%zu tok=%zu/%zu row=%zu want %.9g got %.9g "
                  "bound %.3g",
                  k->isa, p->w.bits, p->w.block, p->w.n_row, p->w.n_col, t, p->n_tok, r, want,
                  (double)got, bound);
        }
    block_free(y);
}

static void values_match(void **state) {
    (void)state;
    static const size_t rows[] = {1, 15, 16, 17, 40}, cols[] = {32, 64, 96, 576};
    static const size_t toks[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 33};
    pd_rng rng = {11};
    for (size_t f = 0; f < LEN(formats); f++)
        for (size_t c = 0; c < LEN(cols); c++)
            for (size_t t = 0; t < LEN(toks); t++) {
                const size_t n_row = rows[(c + t) % LEN(rows)];
                for (int kind = 0; kind < 3; kind++) {
                    problem p = problem_new(&rng, formats[f].bits, formats[f].block, n_row,
                                            cols[c], toks[t], kind);
                    FOR_EACH_ROW(k, check_values(&k, &p));
                    problem_free(&p);
                }
            }
}

/* Longer than the column chunk of any packed path. */
static void long_rows_match(void **state) {
    (void)state;
    pd_rng rng = {12};
    for (size_t f = 0; f < LEN(formats); f++) {
        problem p = problem_new(&rng, formats[f].bits, formats[f].block, 17, 4128, 9, 0);
        FOR_EACH_ROW(k, check_values(&k, &p));
        problem_free(&p);
    }
}

static void check_splits(const pd_kernels *k, const problem *p, pd_rng *rng) {
    const size_t n_panel = pd_panels_count(&p->w), bytes = p->n_tok * p->ldy * sizeof(float);
    float *whole = output_new(p);
    k->gemm_panel(&p->w, 0, n_panel, &p->a, 0, p->n_tok, whole, p->ldy);
    for (int round = 0; round < 4; round++) { /* random cuts in tokens and panels */
        float *y = output_new(p);
        for (size_t t0 = 0, t1; t0 < p->n_tok; t0 = t1) {
            t1 = round == 0 ? t0 + 1 : t0 + 1 + random_below(rng, p->n_tok - t0);
            for (size_t p0 = 0, p1; p0 < n_panel; p0 = p1) {
                p1 = p0 + 1 + random_below(rng, n_panel - p0);
                k->gemm_panel(&p->w, p0, p1, &p->a, t0, t1, y, p->ldy);
            }
        }
        for (size_t i = 0; i < bytes / sizeof *y; i++)
            CHECK(memcmp(&whole[i], &y[i], sizeof *y) == 0,
                  "%s bits=%u block=%u cols=%zu n_tok=%zu tok=%zu row=%zu whole %.9g split %.9g",
                  k->isa, p->w.bits, p->w.block, p->w.n_col, p->n_tok, i / p->ldy, i % p->ldy,
                  (double)whole[i], (double)y[i]);
        block_free(y);
    }
    block_free(whole);
}

static void splits_change_no_bit(void **state) {
    (void)state;
    pd_rng rng = {13};
    for (size_t f = 0; f < LEN(formats); f++) {
        for (size_t n_tok = 1; n_tok <= MAX_TOK; n_tok++) {
            problem p =
                problem_new(&rng, formats[f].bits, formats[f].block, 37, 96, n_tok, 0);
            FOR_EACH_ROW(k, check_splits(&k, &p, &rng));
            problem_free(&p);
        }
        problem p = problem_new(&rng, formats[f].bits, formats[f].block, 20, 3200, 35, 0);
        FOR_EACH_ROW(k, check_splits(&k, &p, &rng));
        problem_free(&p);
    }
}

/* d * q + m: a product and a sum, in any fusion: u (|d q| + |d q + m|). */
static void check_row(const pd_kernels *k, const problem *p) {
    const pd_kernels ref = scalar_row();
    float *dst = block_new(p->w.n_col * sizeof *dst);
    for (size_t row = 0; row < p->w.n_row; row++) {
        k->panel_row(&p->w, row, dst);
        for (size_t c = 0; c < p->w.n_col; c++) {
            uint8_t *blk = p->w.data + row / 16 * pd_panels_stride(&p->w) +
                           c / p->w.block * pd_panel_block_bytes(p->w.bits, p->w.block);
            unsigned q[16][32];
            float dm[32];
            block_weights(&p->w, blk, q);
            ref.f16_to_f32(scales(blk, &p->w), dm, 32);
            const double x = (double)dm[row % 16] * q[row % 16][c % p->w.block];
            const double want = x + dm[16 + row % 16];
            CHECK(near(want, dst[c], EPS / 2 * (1 + EPS) * (fabs(x) + fabs(want))),
                  "%s bits=%u block=%u row=%zu col=%zu want %.9g got %.9g", k->isa, p->w.bits,
                  p->w.block, row, c, want, (double)dst[c]);
        }
    }
    block_free(dst);
}

static void rows_unpack(void **state) {
    (void)state;
    pd_rng rng = {14};
    for (size_t f = 0; f < LEN(formats); f++) {
        problem p = problem_new(&rng, formats[f].bits, formats[f].block, 19, 160, 1, 0);
        FOR_EACH_ROW(k, check_row(&k, &p));
        problem_free(&p);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_match),
        cmocka_unit_test(long_rows_match),
        cmocka_unit_test(splits_change_no_bit),
        cmocka_unit_test(rows_unpack),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
