/* SPDX-License-Identifier: Apache-2.0 */
/* Filling the kernel table, and a quick check that this machine computes what
 * the table claims.
 *
 * The self-test is there for what a build-time test cannot see: a CPU or
 * hypervisor that announces an instruction and gets it wrong.  Its tolerances
 * are round figures above the derived bounds, which are in tests/kernel. */
#include "engine/kernels/rows.h"

#include "engine/base/rng.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

void pd_kernels_init(pd_kernels *k, unsigned flags) {
    pd__kernels_init_scalar(k);
#if defined(__x86_64__)
    if (!(flags & PD_CPU_AVX2)) return;
    pd__kernels_init_avx2(k);
    if (flags & PD_CPU_AVXVNNI) pd__kernels_init_avxvnni(k);
    if (!(flags & PD_CPU_AVX512)) return;
    pd__kernels_init_avx512(k);
    if (flags & PD_CPU_VBMI) pd__kernels_init_vbmi(k);
    if (!(flags & PD_CPU_VNNI)) return;
    pd__kernels_init_vnni(k);
    if (!(flags & PD_CPU_BF16)) return;
    pd__kernels_init_bf16(k);
#else
    (void)flags;
#endif
}

/* ---- self-test ---- */

enum {
    ST_N = 67 + 32,    /* vector length: whole vectors and a tail of any width */
    ST_COL = 96,       /* matrix columns */
    ST_ROW = 20,       /* one whole panel and part of a second */
    ST_TOK = 11,       /* one whole tile of tokens and a remainder */
    ST_DIM = 80,       /* head_dim: a multiple of 16 but not of 64 */
    ST_GROUP = 3,
    ST_PAGE = 3,
    ST_PANEL_BYTES = 2 * (ST_COL / 32) * 576, /* the widest format: 8 bits */
    ST_PAGE_ELEMS = 2 * PD_PAGE_TOKENS * ST_DIM,
};

typedef struct {
    const pd_kernels *ref, *k;
    pd_err *err;
    pd_rng rng;
} st;

static pd_status differ(st *t, const char *entry, size_t i, double want, double got) {
    return pd_fail(t->err, PD_EINTERNAL, NULL,
                   "kernel self-test: %s of row %s differs from scalar at %zu: want %.9g, got %.9g",
                   entry, t->k->isa, i, want, got);
}

/* |want - got| <= tol everywhere; written so that NaN fails. */
static pd_status same(st *t, const char *entry, const float *want, const float *got, size_t n,
                      float tol) {
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(want[i] - got[i]) <= tol)) return differ(t, entry, i, want[i], got[i]);
    return PD_OK;
}

static void fill(st *t, float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = pd_rng_f32(&t->rng);
}

static pd_status test_vectors(st *t) {
    const pd_kernels *const row[2] = {t->ref, t->k};
    float a[ST_N], b[ST_N], y[2][ST_N], one[2][2];
    fill(t, a, ST_N);
    fill(t, b, ST_N);
    for (int i = 0; i < 2; i++) {
        one[i][0] = row[i]->dot_f32(a, b, ST_N);
        one[i][1] = row[i]->max_f32(a, ST_N);
    }
    PD_TRY(same(t, "dot_f32", one[0], one[1], 1, 1e-6f * ST_N));
    PD_TRY(same(t, "max_f32", one[0] + 1, one[1] + 1, 1, 0.0f));
    for (int i = 0; i < 2; i++) {
        memcpy(y[i], b, sizeof b);
        row[i]->axpy_f32(0.7f, a, y[i], ST_N);
    }
    PD_TRY(same(t, "axpy_f32", y[0], y[1], ST_N, 1e-5f));
    for (int i = 0; i < 2; i++) {
        memcpy(y[i], a, sizeof a);
        one[i][0] = row[i]->exp_sum_f32(y[i], ST_N, 1.0f);
    }
    PD_TRY(same(t, "exp_sum_f32", y[0], y[1], ST_N, 1e-6f));
    PD_TRY(same(t, "exp_sum_f32", one[0], one[1], 1, 1e-6f * ST_N));
    for (int i = 0; i < 2; i++) row[i]->rmsnorm(a, b, 1e-5f, ST_N, y[i]);
    PD_TRY(same(t, "rmsnorm", y[0], y[1], ST_N, 1e-4f));
    for (int i = 0; i < 2; i++) {
        memcpy(y[i], a, sizeof a);
        row[i]->rope(y[i], 1, ST_N / 2 * 2, b, b + ST_N / 2);
    }
    PD_TRY(same(t, "rope", y[0], y[1], ST_N, 1e-5f));
    for (int i = 0; i < 2; i++) row[i]->silu_mul(a, b, ST_N, y[i]);
    PD_TRY(same(t, "silu_mul", y[0], y[1], ST_N, 1e-5f));
    for (int i = 0; i < 2; i++) row[i]->gelu_mul(a, b, ST_N, y[i]);
    PD_TRY(same(t, "gelu_mul", y[0], y[1], ST_N, 1e-5f));
    for (int i = 0; i < 2; i++) {
        memcpy(y[i], a, sizeof a);
        row[i]->softcap(y[i], ST_N, 0.5f);
    }
    PD_TRY(same(t, "softcap", y[0], y[1], ST_N, 1e-6f));
    uint16_t h[2][ST_N];
    for (int i = 0; i < 2; i++) row[i]->f32_to_f16(a, h[i], ST_N);
    for (size_t i = 0; i < ST_N; i++)
        if (h[0][i] != h[1][i]) return differ(t, "f32_to_f16", i, h[0][i], h[1][i]);
    for (int i = 0; i < 2; i++) row[i]->f16_to_f32(h[0], y[i], ST_N);
    return same(t, "f16_to_f32", y[0], y[1], ST_N, 0.0f);
}

typedef struct {
    int8_t q[ST_TOK][ST_COL];
    float d[ST_TOK][ST_COL / 32], s[ST_TOK][ST_COL / 16];
} st_act;

static pd_status test_matrix(st *t, unsigned bits, unsigned block) {
    const pd_kernels *const row[2] = {t->ref, t->k};
    _Alignas(64) uint8_t data[ST_PANEL_BYTES];
    const pd_panels w = {
        .data = data, .n_row = ST_ROW, .n_col = ST_COL, .bits = bits, .block = block};
    const size_t blk = pd_panel_block_bytes(bits, block), q_bytes = blk - 64;
    for (size_t at = 0; at < 2 * pd_panels_stride(&w); at += blk) {
        for (size_t i = 0; i < q_bytes; i++) data[at + i] = (uint8_t)pd_rng_u64(&t->rng);
        float dm[32];
        uint16_t h[32];
        fill(t, dm, 32);
        t->ref->f32_to_f16(dm, h, 32);
        memcpy(data + at + q_bytes, h, sizeof h);
    }

    float x[ST_COL], y[2][ST_TOK][ST_ROW];
    st_act act[2];
    memset(act, 0, sizeof act);
    for (size_t tok = 0; tok < ST_TOK; tok++) {
        fill(t, x, ST_COL);
        for (int i = 0; i < 2; i++)
            row[i]->quantize_act(x, ST_COL, act[i].q[tok], act[i].d[tok], act[i].s[tok]);
    }
    if (memcmp(&act[0], &act[1], sizeof act[0]) != 0) return differ(t, "quantize_act", 0, 0, 1);

    const pd_qact a = {.q = act[0].q[0], .d = act[0].d[0], .s = act[0].s[0], .n_col = ST_COL};
    for (int i = 0; i < 2; i++) row[i]->gemm_panel(&w, 0, 2, &a, 0, ST_TOK, y[i][0], ST_ROW);
    PD_TRY(same(t, "gemm_panel", y[0][0], y[1][0], ST_TOK * ST_ROW, /* |d q x| <= 255 */
                1e-6f * 255 * ST_COL));
    float r[2][ST_COL];
    for (int i = 0; i < 2; i++) row[i]->panel_row(&w, ST_ROW - 1, r[i]);
    return same(t, "panel_row", r[0], r[1], ST_COL, 1e-6f * 255);
}

static pd_status test_attention(st *t, bool f16, float cap) {
    const pd_kernels *const row[2] = {t->ref, t->k};
    const char *entry = f16 ? "attn_pages_f16" : "attn_pages_f32";
    enum { FIRST = 3, N = ST_PAGE * PD_PAGE_TOKENS - 8, STRIDE = 64 };
    float page[ST_PAGE][ST_PAGE_ELEMS];
    uint16_t half[ST_PAGE][ST_PAGE_ELEMS];
    const void *pages[ST_PAGE];
    for (size_t p = 0; p < ST_PAGE; p++) {
        fill(t, page[p], ST_PAGE_ELEMS);
        t->ref->f32_to_f16(page[p], half[p], ST_PAGE_ELEMS);
        pages[p] = f16 ? (const void *)half[p] : (const void *)page[p];
    }
    float q[ST_GROUP * ST_DIM], tmp[ST_GROUP * STRIDE];
    float m[2][ST_GROUP], l[2][ST_GROUP], acc[2][ST_GROUP * ST_DIM];
    fill(t, q, ST_GROUP * ST_DIM);
    for (int i = 0; i < 2; i++) {
        if (f16)
            row[i]->attn_pages_f16(q, ST_GROUP, ST_DIM, ST_DIM, pages, FIRST, N, 0, cap, tmp, STRIDE, m[i],
                                   l[i], acc[i]);
        else
            row[i]->attn_pages_f32(q, ST_GROUP, ST_DIM, ST_DIM, pages, FIRST, N, 0, cap, tmp, STRIDE, m[i],
                                   l[i], acc[i]);
    }
    PD_TRY(same(t, entry, m[0], m[1], ST_GROUP, 1e-6f * ST_DIM));
    PD_TRY(same(t, entry, l[0], l[1], ST_GROUP, 1e-5f * N));
    return same(t, entry, acc[0], acc[1], ST_GROUP * ST_DIM, 1e-5f * N);
}

/* The numbers of a page: random ones.  Random bytes are numbers in few bits, with steps of 1 / 64. */
static void fill_part(st *t, size_t dim, size_t bits, float *part) {
    float x[ST_PAGE_ELEMS];
    fill(t, x, ST_PAGE_ELEMS);
    fill(t, part, ST_PAGE_ELEMS);
    if (bits == 16) t->ref->f32_to_f16(x, (uint16_t *)part, ST_PAGE_ELEMS);
    if (bits >= 16) return;
    uint8_t *n = (uint8_t *)part;
    for (size_t i = 0; i < PD_PAGE_TOKENS * dim * bits / 8; i++) n[i] = (uint8_t)(int8_t)(100.0f * x[i % ST_PAGE_ELEMS]);
    for (size_t i = 0; i < dim / PD_KV_GROUP * PD_PAGE_TOKENS; i++) ((uint16_t *)(n + PD_PAGE_TOKENS * dim * bits / 8))[i] = 0x2400;
}

/* Both passes in one type; bits of a key's and of a value's number. */
static pd_status test_part(st *t, const char *const entry[3], size_t key_bits, size_t value_bits,
                           void (*const scores[2])(const pd_part_pass *),
                           void (*const values[2])(const pd_part_pass *),
                           void (*const rows[2])(const pd_part_pass *)) {
    enum { DIM = 96 /* a pair of groups and one more */, FIRST = 3, N = ST_PAGE * PD_PAGE_TOKENS - 8, STRIDE = ST_PAGE * PD_PAGE_TOKENS };
    float part[ST_PAGE][ST_PAGE_ELEMS];
    const void *pages[ST_PAGE];
    for (size_t p = 0; p < ST_PAGE; p++) pages[p] = part[p];
    for (size_t p = 0; p < ST_PAGE; p++) fill_part(t, DIM, key_bits, part[p]);
    float q[ST_GROUP * DIM], tmp[2][ST_GROUP * STRIDE], acc[2][ST_GROUP * DIM];
    float q_d[ST_GROUP * DIM / PD_KV_GROUP], q_sum[ST_GROUP * DIM / PD_KV_GROUP], s[ST_GROUP * DIM / 16];
    int8_t q_n[ST_GROUP * DIM];
    fill(t, q, ST_GROUP * DIM);
    t->ref->quantize_act(q, ST_GROUP * DIM, q_n, q_d, s);
    for (size_t b = 0; b < ST_GROUP * DIM / PD_KV_GROUP; b++) {
        q_sum[b] = 0.0f;
        for (size_t i = 0; i < PD_KV_GROUP; i++) q_sum[b] += (float)q_n[b * PD_KV_GROUP + i];
    }
    pd_part_pass pass = {.pages = pages, .first = FIRST, .n = N, .n_group = ST_GROUP, .head_dim = DIM,
                         .tmp_stride = STRIDE, .q = q, .q_n = q_n, .q_d = q_d, .q_sum = q_sum};
    for (int i = 0; i < 2; i++) {
        pass.tmp = tmp[i];
        scores[i](&pass);
    }
    for (size_t g = 0; g < ST_GROUP; g++) /* numbers are below 2 */
        PD_TRY(same(t, entry[0], tmp[0] + g * STRIDE + FIRST, tmp[1] + g * STRIDE + FIRST, N, 1e-5f * DIM));
    for (size_t p = 0; p < ST_PAGE; p++) fill_part(t, DIM, value_bits, part[p]);
    for (int i = 0; i < 2; i++) {
        pass.tmp = tmp[0];
        pass.acc = acc[i];
        values[i](&pass);
    }
    PD_TRY(same(t, entry[1], acc[0], acc[1], ST_GROUP * DIM, 1e-5f * DIM * N));
    const uint32_t row[] = {FIRST, FIRST + 1, FIRST + N / 2, FIRST + N - 1};
    pass.row = row;
    pass.n_row = sizeof row / sizeof *row;
    for (int i = 0; i < 2; i++) {
        pass.acc = acc[i];
        rows[i](&pass);
    }
    return same(t, entry[2], acc[0], acc[1], ST_GROUP * DIM, 1e-5f * DIM * N);
}

static pd_status test_parts(st *t) {
#define PART(key, key_bits, value, value_bits)                                                                 \
    PD_TRY(test_part(t, (const char *[]){"scores_" #key, "values_" #value, "rows_" #value}, key_bits, value_bits, \
                     (void (*const[])(const pd_part_pass *)){t->ref->scores_##key, t->k->scores_##key},        \
                     (void (*const[])(const pd_part_pass *)){t->ref->values_##value, t->k->values_##value},    \
                     (void (*const[])(const pd_part_pass *)){t->ref->rows_##value, t->k->rows_##value}))
    PART(f16, 16, f16, 16);
    PART(f32, 32, f32, 32);
    PART(q8, 8, q8, 8);
    PART(q5, 5, q4, 4);
#undef PART
    return PD_OK;
}

static pd_status test_matmul(st *t) {
    enum { ROWS = 5, K = 7, COLS = 80, LD = 90 };
    float a[ROWS * LD], b[K * LD], y[2][ROWS * LD] = {{0}};
    fill(t, a, ROWS * LD);
    fill(t, b, K * LD);
    t->ref->matmul_f32(a, LD, ROWS, K, b, LD, COLS, y[0], LD);
    t->k->matmul_f32(a, LD, ROWS, K, b, LD, COLS, y[1], LD);
    return same(t, "matmul_f32", y[0], y[1], ROWS * LD, 1e-6f * K);
}

static pd_status test_dots(st *t) {
    enum { HEADS = 2, GROUP = 5, D = 80, LD = HEADS * D, KEYS = 21 };
    float q[GROUP * LD], x[KEYS * LD], s[2][HEADS * GROUP * KEYS];
    uint16_t keys[KEYS * LD];
    uint32_t row[KEYS];
    fill(t, q, GROUP * LD);
    fill(t, x, KEYS * LD);
    t->ref->f32_to_f16(x, keys, KEYS * LD);
    for (uint32_t i = 0; i < KEYS; i++) row[i] = i * 8 % KEYS;
    t->ref->dots_f16(q, HEADS, GROUP, D, keys, row, KEYS, s[0], KEYS);
    t->k->dots_f16(q, HEADS, GROUP, D, keys, row, KEYS, s[1], KEYS);
    return same(t, "dots_f16", s[0], s[1], HEADS * GROUP * KEYS, 1e-6f * D);
}

static pd_status test_pick(st *t) {
    float x[2 * ST_N];
    uint32_t row[2][ST_N + 16];
    fill(t, x, 2 * ST_N);
    const float from[2] = {0.5f, 0.6f}; /* as large as one of them, and larger than most */
    x[5] = from[0];
    x[ST_N + 7] = from[1];
    const float sum = t->k->sum_from_f32(x, ST_N, from[0]), want = t->ref->sum_from_f32(x, ST_N, from[0]);
    PD_TRY(same(t, "sum_from_f32", &want, &sum, 1, 1e-5f * ST_N));
    const size_t n = t->ref->list_from_f32(x, ST_N, 2, ST_N, from, row[0]), got = t->k->list_from_f32(x, ST_N, 2, ST_N, from, row[1]);
    if (n != got) return differ(t, "list_from_f32", 0, (float)n, (float)got);
    for (size_t i = 0; i < n; i++)
        if (row[0][i] != row[1][i]) return differ(t, "list_from_f32", i, (float)row[0][i], (float)row[1][i]);
    enum { DIM = 24 };
    float least[2 * DIM * PD_PAGE_TOKENS], q[2 * DIM], bound[2][PD_PAGE_TOKENS];
    uint16_t block[2 * DIM * PD_PAGE_TOKENS];
    fill(t, least, 2 * DIM * PD_PAGE_TOKENS);
    fill(t, q, 2 * DIM);
    t->ref->f32_to_f16(least, block, 2 * DIM * PD_PAGE_TOKENS);
    t->ref->page_bounds(block, q, 2, DIM, bound[0]);
    t->k->page_bounds(block, q, 2, DIM, bound[1]);
    return same(t, "page_bounds", bound[0], bound[1], PD_PAGE_TOKENS, 1e-6f * DIM);
}

static pd_status test_codes(st *t, size_t n) {
    enum { SUB = 4, CODES = 6, PAGES = 5 };
    float x[SUB], book[CODES * SUB * 256], q[ST_GROUP * CODES * SUB], least[2], step[2];
    _Alignas(64) uint8_t table[2][ST_GROUP * CODES * 256];
    uint8_t page[PAGES][CODES * PD_PAGE_TOKENS];
    const void *pages[PAGES];
    float tmp[2][ST_GROUP * PAGES * PD_PAGE_TOKENS];
    fill(t, book, CODES * SUB * n);
    fill(t, q, ST_GROUP * CODES * SUB);
    for (size_t i = 0; i < SUB; i++) x[i] = book[i * n + n - 2] + 1e-3f;
    const size_t at[2] = {t->ref->nearest_f32(x, book, SUB, n), t->k->nearest_f32(x, book, SUB, n)};
    if (at[0] != at[1]) return differ(t, "nearest_f32", 0, (double)at[0], (double)at[1]);
    for (int i = 0; i < 2; i++) (i ? t->k : t->ref)->code_table(q, book, SUB, CODES, n, table[i], &least[i], &step[i]);
    PD_TRY(same(t, "code_table", &least[0], &least[1], 1, 1e-5f * CODES * SUB));
    PD_TRY(same(t, "code_table", &step[0], &step[1], 1, 1e-6f));
    for (size_t i = 0; i < CODES * n; i++) /* halves may be rounded either way */
        if (abs(table[0][i] - table[1][i]) > 1) return differ(t, "code_table", i, table[0][i], table[1][i]);
    for (size_t i = 0; i < sizeof table[0]; i++) table[0][i] = (uint8_t)pd_rng_u64(&t->rng);
    for (size_t i = 0; i < PAGES; i++) {
        pages[i] = page[i];
        for (size_t k = 0; k < sizeof page[i]; k++) page[i][k] = (uint8_t)pd_rng_u64(&t->rng);
    }
    const float from[ST_GROUP] = {-1.0f, 0.5f, 2.0f}, by[ST_GROUP] = {0.01f, 0.03f, 0.007f};
    for (int i = 0; i < 2; i++) {
        const pd_code_pass p = {.pages = pages, .n_page = PAGES, .n_code = CODES, .n_group = ST_GROUP, .table = table[0],
                                .least = from, .step = by, .tmp = tmp[i], .tmp_stride = PAGES * PD_PAGE_TOKENS};
        const pd_kernels *k = i ? t->k : t->ref;
        (n == 256 ? k->scores_codes8 : k->scores_codes4)(&p);
    }
    return same(t, n == 256 ? "scores_codes8" : "scores_codes4", tmp[0], tmp[1], ST_GROUP * PAGES * PD_PAGE_TOKENS, 0.0f);
}

static pd_status test_quad(st *t) {
    enum { DIM = 80, KEYS = 5 };
    float k[KEYS * DIM], mu[DIM], u[DIM * DIM], z[2][KEYS];
    fill(t, k, KEYS * DIM);
    fill(t, mu, DIM);
    fill(t, u, DIM * DIM);
    for (size_t b = 0; b < DIM; b++)
        for (size_t a = 0; a < b; a++) u[b * DIM + a] = 0.0f;
    t->ref->quad_f32(k, KEYS, DIM, mu, u, z[0]);
    t->k->quad_f32(k, KEYS, DIM, mu, u, z[1]);
    return same(t, "quad_f32", z[0], z[1], KEYS, 1e-6f * DIM * DIM);
}

static pd_status test_moments(st *t) {
    enum { DIM = 80, ROWS = 5, LD = 90 };
    float x[ROWS * LD], shift[DIM], y[2][ROWS * DIM], total[2][DIM], g[2][DIM * DIM] = {{0}};
    const pd_kernels *const row[2] = {t->ref, t->k};
    fill(t, x, ROWS * LD);
    fill(t, shift, DIM);
    for (int i = 0; i < 2; i++) {
        row[i]->centre_f32(x, LD, ROWS, DIM, shift, y[i], total[i]);
        row[i]->gram_f32(y[0], ROWS, DIM, g[i]);
        for (size_t a = 0; a < DIM; a++)
            for (size_t b = 0; b < a; b++) g[i][a * DIM + b] = 0.0f;
    }
    PD_TRY(same(t, "centre_f32", y[0], y[1], ROWS * DIM, 0.0f));
    PD_TRY(same(t, "centre_f32", total[0], total[1], DIM, 1e-6f * ROWS));
    return same(t, "gram_f32", g[0], g[1], DIM * DIM, 1e-5f * ROWS);
}

static pd_status test_tile(st *t, bool fast, float cap) {
    const pd_kernels *const row[2] = {t->ref, t->k};
    enum { TOK = 18, BEFORE = 70, LD = ST_GROUP * ST_DIM, SLOTS = BEFORE + TOK, WINDOW = 40 };
    float q[TOK * LD], k[SLOTS * ST_DIM], v[SLOTS * ST_DIM];
    float out[2][TOK * LD], m[2][ST_GROUP * TOK], l[2][ST_GROUP * TOK], sums[2][ST_GROUP * SLOTS];
    float *tmp = aligned_alloc(64, (pd_attn_rows_floats(TOK, ST_GROUP, ST_DIM) + 15) / 16 * 64);
    if (!tmp) return pd_fail(t->err, PD_ENOMEM, NULL, "no memory for the kernel self-test");
    fill(t, q, TOK * LD);
    fill(t, k, SLOTS * ST_DIM);
    fill(t, v, SLOTS * ST_DIM);
    memset(sums, 0, sizeof sums);
    for (int i = 0; i < 2; i++) {
        const pd_attn_rows a = {.q = q, .k = k, .v = v, .out = out[i], .m = m[i], .l = l[i],
                                .n_tok = TOK, .n_group = ST_GROUP, .head_dim = ST_DIM, .ld = LD,
                                .ld_ml = TOK, .n_before = BEFORE, .window = WINDOW, .scale = 0.2f,
                                .softcap = cap, .tmp = tmp};
        (fast ? row[i]->attn_tile_fast : row[i]->attn_tile_f32)(&a);
        (fast ? row[i]->attn_tile_sums_fast : row[i]->attn_tile_sums_f32)(&a, 0, SLOTS, sums[i],
                                                                          SLOTS);
    }
    free(tmp);
    /* bf16: scores are below 0.2 * 80, rounded by 2^-7 of their terms' mean size of 1/4 */
    const float r = fast ? 0.05f : 1e-4f;
    PD_TRY(same(t, fast ? "attn_tile_fast" : "attn_tile_f32", out[0], out[1], TOK * LD, r));
    return same(t, fast ? "attn_tile_sums_fast" : "attn_tile_sums_f32", sums[0], sums[1],
                ST_GROUP * SLOTS, r);
}

pd_status pd_kernels_selftest(const pd_kernels *k, pd_err *err) {
    pd_kernels ref;
    pd__kernels_init_scalar(&ref);
    st t = {.ref = &ref, .k = k, .err = err, .rng = {1}};
    PD_TRY(test_vectors(&t));
    PD_TRY(test_matrix(&t, 4, 16));
    PD_TRY(test_matrix(&t, 4, 32));
    PD_TRY(test_matrix(&t, 5, 32));
    PD_TRY(test_matrix(&t, 6, 16));
    PD_TRY(test_matrix(&t, 8, 32));
    PD_TRY(test_attention(&t, true, 0.0f));
    PD_TRY(test_attention(&t, false, 0.0f));
    PD_TRY(test_attention(&t, false, 3.0f));
    PD_TRY(test_parts(&t));
    PD_TRY(test_matmul(&t));
    PD_TRY(test_dots(&t));
    PD_TRY(test_pick(&t));
    PD_TRY(test_codes(&t, 256));
    PD_TRY(test_codes(&t, 16));
    PD_TRY(test_quad(&t));
    PD_TRY(test_moments(&t));
    PD_TRY(test_tile(&t, false, 0.0f));
    PD_TRY(test_tile(&t, false, 3.0f));
    return test_tile(&t, true, 0.0f);
}
