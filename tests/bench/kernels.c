/* SPDX-License-Identifier: Apache-2.0 */
/* Speed of the kernels, one row of the table at a time, one thread.
 *
 *     bench_kernels [seconds per figure, default 0.3] [row, default all] [gemv|gemm|attn|types|keys|vec]
 *
 * Prints CSV: row, kernel, case, figure, unit.  Each figure is the best of the
 * runs that fit the time: others on the machine can only slow it down.
 * Beside a GEMV and attention stands a plain read loop over the same bytes, before
 * a GEMM the rate of vpdpbusd alone.  Operations are multiplies and adds. */
#include "engine/base/rng.h"
#include "engine/cache/codec.h"
#include "engine/cache/codes.h"
#include "engine/kernels/kernels.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

static double min_seconds = 0.3;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Seconds of the fastest call. */
static double best(void (*run)(void *), void *arg) {
    double ret = 1e9;
    run(arg); /* faults pages in, settles the clock */
    for (const double end = now() + min_seconds; now() < end;) {
        const double t0 = now();
        run(arg);
        const double t = now() - t0;
        if (t < ret) ret = t;
    }
    return ret;
}

static void report(const char *row, const char *kernel, const char *what, double x,
                   const char *unit) {
    printf("%s,%s,%s,%.2f,%s\n", row, kernel, what, x, unit);
    fflush(stdout);
}

static void *alloc(size_t bytes) {
    void *p = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!p) {
        perror("aligned_alloc");
        exit(1);
    }
    return p;
}

/* ---- plain read loop ---- */

static volatile uint64_t sink; /* keeps the loops from being dropped */

/* 8 independent sums, which the compiler turns into vector loads. */
static void read_block(const void *p, size_t bytes) {
    const uint64_t *x = p;
    uint64_t s[8] = {0};
    for (size_t i = 0; i < bytes / 8; i += 8)
        for (int c = 0; c < 8; c++) s[c] += x[i + c];
    for (int c = 0; c < 8; c++) sink += s[c];
}

typedef struct {
    const void *x;
    size_t bytes;
} read_arg;

static void run_read(void *p) {
    const read_arg *a = p;
    read_block(a->x, a->bytes);
}

/* ---- the dot product instruction alone ---- */

#if defined(__x86_64__)
enum { PEAK_N = 100000, PEAK_CHAINS = 12 }; /* latency 5 on two ports: at least 10 */

__attribute__((target("avx512f,avx512vnni"))) static void run_peak(void *p) {
    (void)p;
    const __m512i x = _mm512_set1_epi8(3);
    __m512i s0 = x, s1 = x, s2 = x, s3 = x, s4 = x, s5 = x, s6 = x, s7 = x, s8 = x, s9 = x;
    __m512i s10 = x, s11 = x;
#define STEP(s)                         \
    s = _mm512_dpbusd_epi32(s, x, x);   \
    __asm__ volatile("" : "+v"(s)) /* keeps the loop as it is */
    for (int i = 0; i < PEAK_N; i++) {
        STEP(s0);
        STEP(s1);
        STEP(s2);
        STEP(s3);
        STEP(s4);
        STEP(s5);
        STEP(s6);
        STEP(s7);
        STEP(s8);
        STEP(s9);
        STEP(s10);
        STEP(s11);
    }
#undef STEP
}

static void peak(void) {
    if (pd_cpu_detect() & PD_CPU_VNNI)
        report("-", "vpdpbusd", "peak", 128.0 * PEAK_N * PEAK_CHAINS / best(run_peak, NULL) * 1e-9,
               "GOP/s");
}
#else
static void peak(void) {
}
#endif

/* ---- gemm_panel ---- */

typedef struct {
    const pd_kernels *k;
    pd_panels w;
    pd_qact a;
    size_t n_tok;
    float *y;
} gemm_arg;

static void run_gemm(void *p) {
    gemm_arg *g = p;
    g->k->gemm_panel(&g->w, 0, pd_panels_count(&g->w), &g->a, 0, g->n_tok, g->y, g->w.n_row);
}

static void gemm(const pd_kernels *k, unsigned bits, unsigned block, size_t n_row, size_t n_col,
                 size_t n_tok) {
    pd_rng rng = {1};
    gemm_arg g = {.k = k, .n_tok = n_tok,
                  .w = {.n_row = n_row, .n_col = n_col, .bits = bits, .block = block},
                  .a = {.n_col = n_col}};
    const size_t bytes = pd_panels_count(&g.w) * pd_panels_stride(&g.w);
    g.w.data = alloc(bytes);
    /* bytes below 0x40 are small positive halves wherever d and m fall */
    for (size_t i = 0; i < bytes; i++) g.w.data[i] = (uint8_t)(i * 37 >> 3) & 0x3f;
    g.a.q = alloc(n_tok * n_col);
    g.a.d = alloc(n_tok * n_col / 32 * sizeof(float));
    g.a.s = alloc(n_tok * n_col / 16 * sizeof(float));
    g.y = alloc(n_tok * n_row * sizeof(float));
    float *x = alloc(n_col * sizeof *x);
    for (size_t t = 0; t < n_tok; t++) {
        for (size_t i = 0; i < n_col; i++) x[i] = pd_rng_f32(&rng);
        k->quantize_act(x, n_col, g.a.q + t * n_col, g.a.d + t * n_col / 32,
                        g.a.s + t * n_col / 16);
    }
    const double s = best(run_gemm, &g);
    char what[96];
    snprintf(what, sizeof what, "%u bit /%u %zux%zu %zu tok", bits, block, n_row, n_col, n_tok);
    if (n_tok <= 4) {
        read_arg r = {.x = g.w.data, .bytes = bytes};
        report("-", "read", what, (double)bytes / best(run_read, &r) * 1e-9, "GB/s");
        report(k->isa, "gemm", what, (double)bytes / s * 1e-9, "GB/s");
    } else {
        report(k->isa, "gemm", what, 2.0 * (double)(n_row * n_col * n_tok) / s * 1e-9, "GOP/s");
    }
    free(g.w.data);
    free(g.a.q);
    free(g.a.d);
    free(g.a.s);
    free(g.y);
    free(x);
}

/* ---- attention ---- */

enum { CHUNK = 16 }; /* pages of a call, as in engine/run/attn.h */

typedef struct {
    const pd_kernels *k;
    size_t n_head, n_group, dim, n;
    const void **pages; /* [n_head][n / 16] */
    float *q, *tmp, *m, *l, *acc;
} attn_arg;

static void run_attn(void *p) {
    attn_arg *a = p;
    const size_t n_page = a->n_head * a->n / 16;
    for (size_t i = 0; i < n_page; i += CHUNK) /* as the engine does */
        a->k->attn_pages_f16(a->q, a->n_group, a->dim, a->dim, a->pages + i, 0, 16 * CHUNK,
                             i + CHUNK < n_page ? CHUNK : 0, 0.0f, a->tmp, a->n + 16, a->m, a->l, a->acc);
}

/* The same pages in the same order: keys, then values. */
static void run_read_pages(void *p) {
    const attn_arg *a = p;
    const size_t n_page = a->n / 16, half = 32 * a->dim;
    for (size_t h = 0; h < a->n_head; h++)
        for (size_t at = 0; at < 2; at++)
            for (size_t i = 0; i < n_page; i++)
                read_block((const char *)a->pages[h * n_page + i] + at * half, half);
}

static void attention(const pd_kernels *k, size_t n_head, size_t n_group, size_t dim, size_t n, bool scattered) {
    pd_rng rng = {2};
    attn_arg a = {.k = k, .n_head = n_head, .n_group = n_group, .dim = dim, .n = n};
    const size_t n_page = n_head * n / 16, elems = 32 * dim;
    uint16_t *kv = alloc(n_page * elems * sizeof *kv);
    float *x = alloc(elems * sizeof *x);
    for (size_t i = 0; i < elems; i++) x[i] = pd_rng_f32(&rng);
    a.pages = alloc(n_page * sizeof *a.pages);
    for (size_t i = 0; i < n_page; i++) {
        k->f32_to_f16(x, kv + i * elems, elems);
        a.pages[i] = kv + i * elems;
    }
    for (size_t i = n_page - 1; scattered && i > 0; i--) { /* as a pool in use is */
        const size_t j = pd_rng_u64(&rng) % (i + 1);
        const void *t = a.pages[i];
        a.pages[i] = a.pages[j];
        a.pages[j] = t;
    }
    a.q = alloc(n_group * dim * sizeof *a.q);
    for (size_t i = 0; i < n_group * dim; i++) a.q[i] = pd_rng_f32(&rng);
    a.tmp = alloc(n_group * (n + 16) * sizeof *a.tmp);
    a.m = alloc(n_group * sizeof *a.m);
    a.l = alloc(n_group * sizeof *a.l);
    a.acc = alloc(n_group * dim * sizeof *a.acc);
    const double s = best(run_attn, &a), bytes = (double)(n_page * elems * 2);
    char what[96];
    snprintf(what, sizeof what, "G=%zu D=%zu n=%zu heads=%zu%s", n_group, dim, n, n_head, scattered ? "" : " in order");
    report("-", "read pages", what, bytes / best(run_read_pages, &a) * 1e-9, "GB/s");
    report(k->isa, "attn_f16", what, bytes / s * 1e-9, "GB/s");
    report(k->isa, "attn_f16", what, s * 1e9 / (double)(n_head * n_group * n), "ns/token-head");
    free(kv);
    free(x);
    free(a.pages);
    free(a.q);
    free(a.tmp);
    free(a.m);
    free(a.l);
    free(a.acc);
}

/* ---- attention in every type, as decode runs it: chunks of 16 pages ---- */

typedef struct {
    const pd_kernels *k;
    pd_codec codec;
    size_t n_head, n_group, dim, n;
    const void **pages; /* [n_head][n / 16], scattered */
    float *q, *tmp, *scratch, *m, *l, *acc;
} type_arg;


static void run_type(void *p) {
    type_arg *a = p;
    const size_t n_page = a->n / 16;
    for (size_t h = 0; h < a->n_head; h++)
        for (size_t i = 0; i < n_page; i += CHUNK)
            pd_codec_attn(&a->codec, a->k, a->q, a->n_group, a->dim, a->dim, a->pages + h * n_page + i, 0, 16 * CHUNK, 0, 0.0f, a->tmp,
                          16 * CHUNK + 32, a->scratch, a->m, a->l, a->acc);
}

static void attention_in(const pd_kernels *k, pd_kv_type type, size_t n_head, size_t n_group, size_t dim, size_t n) {
    pd_rng rng = {2};
    type_arg a = {.k = k, .codec = pd_codec_of(type, type), .n_head = n_head, .n_group = n_group, .dim = dim, .n = n};
    const size_t n_page = n_head * n / 16, bytes = pd_codec_page_bytes(&a.codec, dim, dim);
    uint8_t *kv = alloc(n_page * bytes);
    float *x = alloc(16 * dim * sizeof *x);
    for (size_t i = 0; i < 16 * dim; i++) x[i] = pd_rng_f32(&rng) - 0.5f;
    a.pages = alloc(n_page * sizeof *a.pages);
    for (size_t i = 0; i < n_page; i++) {
        if (i == 0) pd_codec_write(&a.codec, k, kv, dim, 0, 16, x, x, dim, NULL);
        else memcpy(kv + i * bytes, kv, bytes);
        a.pages[i] = kv + i * bytes;
    }
    for (size_t i = n_page - 1; i > 0; i--) {
        const size_t j = pd_rng_u64(&rng) % (i + 1);
        const void *t = a.pages[i];
        a.pages[i] = a.pages[j];
        a.pages[j] = t;
    }
    a.q = x;
    a.tmp = alloc(n_group * (16 * CHUNK + 32) * sizeof *a.tmp);
    a.scratch = alloc(pd_codec_attn_floats(n_group, dim) * sizeof *a.scratch);
    a.m = alloc(n_group * sizeof *a.m);
    a.l = alloc(n_group * sizeof *a.l);
    a.acc = alloc(n_group * dim * sizeof *a.acc);
    const double s = best(run_type, &a);
    char what[96];
    snprintf(what, sizeof what, "%s G=%zu D=%zu n=%zu heads=%zu", pd_kv_type_name(type), n_group, dim, n, n_head);
    report(k->isa, "attn", what, s * 1e9 / (double)(n_head * n_group * n), "ns/token-head");
    report(k->isa, "attn", what, (double)(n_page * bytes) / s * 1e-9, "GB/s");
    free(kv);
    free(x);
    free(a.pages);
    free(a.tmp);
    free(a.scratch);
    free(a.m);
    free(a.l);
    free(a.acc);
}

/* ---- the pass over keys alone: of a type, or as codes with their tables ---- */

typedef struct {
    const pd_kernels *k;
    pd_codec codec;
    pd_book book; /* n_centroid 0: a type */
    size_t n_head, n_group, n, k_dim;
    const void **pages;
    float *q, *tmp, *scratch;
    uint8_t *table;
} keys_arg;

static void run_keys(void *p) {
    keys_arg *a = p;
    const size_t n_page = a->n / 16;
    float least[16], step[16];
    for (size_t h = 0; h < a->n_head; h++) {
        for (size_t g = 0; g < a->n_group && a->book.n_centroid; g++)
            pd_book_table(&a->book, a->k, a->q + g * a->book.head_dim, a->table + g * a->k_dim * a->book.n_centroid, &least[g], &step[g]);
        for (size_t i = 0; i < n_page; i += CHUNK) {
            const void **pages = a->pages + h * n_page + i;
            const pd_code_pass pass = {.pages = pages, .n_page = CHUNK, .n_code = a->k_dim, .n_group = a->n_group,
                                       .n_next = n_page - i - CHUNK < CHUNK ? n_page - i - CHUNK : CHUNK, .table = a->table,
                                       .least = least, .step = step, .tmp = a->tmp, .tmp_stride = 16 * CHUNK};
            if (!a->book.n_centroid)
                pd_codec_scores(&a->codec, a->k, a->q, a->n_group, a->k_dim, pages, 0, 16 * CHUNK, 0, 0.0f, a->tmp, 16 * CHUNK, a->scratch);
            else
                (a->book.n_centroid > 16 ? a->k->scores_codes8 : a->k->scores_codes4)(&pass);
        }
    }
}

/* Pages of such keys and f16 values, in order. */
static void keys(const pd_kernels *k, pd_kv_type type, size_t sub, size_t n_head, size_t n_group, size_t dim, size_t n) {
    pd_rng rng = {4};
    keys_arg a = {.k = k, .codec = pd_codec_of(type, PD_KV_F16), .n_head = n_head, .n_group = n_group, .n = n, .k_dim = dim};
    const size_t n_centroid = type == PD_KV_CODES8 ? 256 : 16;
    float *book = alloc(dim * n_centroid * sizeof *book), *weight = alloc(dim * sizeof *weight);
    for (size_t i = 0; i < dim; i++) weight[i] = 1.0f;
    if (sub) {
        a.book = (pd_book){dim, sub, n_centroid, book, weight};
        a.k_dim = dim / sub;
        for (size_t i = 0; i < dim * n_centroid; i++) book[i] = pd_rng_f32(&rng);
    }
    const size_t n_page = n_head * n / 16, bytes = pd_codec_page_bytes(&a.codec, a.k_dim, dim);
    uint8_t *kv = alloc(n_page * bytes);
    for (size_t i = 0; i < n_page * bytes; i++) kv[i] = (uint8_t)(pd_rng_u64(&rng) & 0x3b); /* finite halves */
    a.pages = alloc(n_page * sizeof *a.pages);
    for (size_t i = 0; i < n_page; i++) a.pages[i] = kv + i * bytes;
    a.q = alloc(n_group * dim * sizeof *a.q);
    for (size_t i = 0; i < n_group * dim; i++) a.q[i] = pd_rng_f32(&rng);
    a.tmp = alloc(n_group * 16 * CHUNK * sizeof *a.tmp);
    a.scratch = alloc(pd_codec_attn_floats(n_group, dim) * sizeof *a.scratch);
    a.table = alloc(n_group * dim * 256);
    const double s = best(run_keys, &a);
    char what[96];
    snprintf(what, sizeof what, "%s sub=%zu G=%zu D=%zu n=%zu heads=%zu", pd_kv_type_name(type), sub, n_group, dim, n, n_head);
    report(k->isa, "keys", what, s * 1e9 / (double)(n_head * n_group * n), "ns/token-head");
    free(book);
    free(weight);
    free(kv);
    free(a.pages);
    free(a.q);
    free(a.tmp);
    free(a.scratch);
    free(a.table);
}

/* ---- vectors ---- */

typedef struct {
    const pd_kernels *k;
    int which;
    float *x, *y;
    size_t n;
    int8_t *q;
} vec_arg;

enum { VEC_N = 1536, VEC_REPEAT = 256 };

static void run_vec(void *p) {
    vec_arg *v = p;
    for (int i = 0; i < VEC_REPEAT; i++) {
        switch (v->which) {
        case 0: v->k->quantize_act(v->x, v->n, v->q, v->y, v->y + v->n); break;
        case 1: v->k->silu_mul(v->x, v->x, v->n, v->y); break;
        case 2: v->k->gelu_mul(v->x, v->x, v->n, v->y); break;
        case 3: v->k->rmsnorm(v->x, v->x, 1e-5f, v->n, v->y); break;
        case 4: v->y[0] += v->k->dot_f32(v->x, v->x, v->n); break;
        default: v->k->exp_sum_f32(v->y, v->n, 1.0f);
        }
    }
}

static void vectors(const pd_kernels *k) {
    static const char *const names[] = {"quantize_act", "silu_mul", "gelu_mul",
                                        "rmsnorm",      "dot_f32",  "exp_sum_f32"};
    pd_rng rng = {3};
    vec_arg v = {.k = k, .x = alloc(2 * VEC_N * sizeof(float)),
                 .y = alloc(2 * VEC_N * sizeof(float)), .n = VEC_N, .q = alloc(VEC_N)};
    for (size_t i = 0; i < 2 * VEC_N; i++) v.x[i] = v.y[i] = pd_rng_f32(&rng);
    for (v.which = 0; v.which < 6; v.which++)
        report(k->isa, names[v.which], "n=1536", best(run_vec, &v) * 1e9 / VEC_REPEAT, "ns");
    free(v.x);
    free(v.y);
    free(v.q);
}

static bool chosen(const char *filter, const char *name) {
    return !filter || strcmp(filter, name) == 0;
}

static void bench_row(const pd_kernels *k, const char *filter) {
    if (chosen(filter, "gemv")) {
        gemm(k, 4, 32, 1536 * 192, 576, 1); /* 106 MB: beyond the caches */
        gemm(k, 5, 32, 1536 * 160, 576, 1);
        gemm(k, 8, 32, 1536 * 112, 576, 1);
        gemm(k, 6, 16, 1536 * 120, 576, 1);
        gemm(k, 4, 32, 1536 * 192, 576, 4);
        gemm(k, 4, 32, 1536, 576, 1); /* 0.5 MB: in L2 */
    }
    if (chosen(filter, "gemm")) {
        peak();
        gemm(k, 4, 32, 1536, 576, 64);
        gemm(k, 4, 32, 576, 1536, 64);
        gemm(k, 5, 32, 1536, 576, 64);
        gemm(k, 8, 32, 1536, 576, 64);
        gemm(k, 6, 16, 1536, 576, 64);
    }
    if (chosen(filter, "attn")) {
        attention(k, 90, 3, 64, 2048, true);
        attention(k, 90, 3, 64, 2048, false);
        attention(k, 90, 3, 64, 8192, true);
        attention(k, 90, 3, 64, 8192, false);
        attention(k, 8, 4, 256, 2048, true);
        attention(k, 8, 4, 256, 8192, true);
        attention(k, 16, 8, 128, 4096, true);
        attention(k, 1, 3, 64, 2048, true); /* 0.5 MB: in L2 */
    }
    for (pd_kv_type t = PD_KV_F16; t < PD_KV_TYPES && chosen(filter, "types"); t++) {
        attention_in(k, t, 90, 3, 64, 2048);
        attention_in(k, t, 90, 3, 64, 8192);
        attention_in(k, t, 8, 4, 256, 4096);
        attention_in(k, t, 1, 3, 64, 2048); /* in L2 */
    }
    for (size_t n = 2048; n <= 8192 && chosen(filter, "keys"); n *= 4) {
        keys(k, PD_KV_F16, 0, 90, 3, 64, n);
        keys(k, PD_KV_Q8_0, 0, 90, 3, 64, n);
        keys(k, PD_KV_Q4, 0, 90, 3, 64, n);
        for (size_t i = 0; i < PD_BOOKS; i++)
            keys(k, pd_books[i].n_centroid == 256 ? PD_KV_CODES8 : PD_KV_CODES4, pd_books[i].sub, 90, 3, 64, n);
    }
    if (chosen(filter, "vec")) vectors(k);
}

int main(int argc, char **argv) {
    if (argc > 1) min_seconds = strtod(argv[1], NULL);
    static const unsigned masks[] = {0, PD_CPU_AVX2, PD_CPU_AVX2 | PD_CPU_AVXVNNI, PD_CPU_AVX2 | PD_CPU_AVX512,
                                     PD_CPU_AVX2 | PD_CPU_AVX512 | PD_CPU_VBMI,
                                     PD_CPU_AVX2 | PD_CPU_AVX512 | PD_CPU_VNNI,
                                     PD_CPU_AVX2 | PD_CPU_AVX512 | PD_CPU_VNNI | PD_CPU_BF16,
                                     PD_CPU_AVX2 | PD_CPU_AVX512 | PD_CPU_VNNI | PD_CPU_BF16 | PD_CPU_VBMI};
    printf("row,kernel,case,figure,unit\n");
    for (size_t i = 0; i < sizeof masks / sizeof *masks; i++) {
        if ((masks[i] & pd_cpu_detect()) != masks[i]) continue;
        pd_kernels k;
        pd_kernels_init(&k, masks[i]);
        if (argc > 2 && strcmp(argv[2], k.isa) != 0) continue;
        bench_row(&k, argc > 3 ? argv[3] : NULL);
    }
    return 0;
}
