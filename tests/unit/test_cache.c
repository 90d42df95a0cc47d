/* SPDX-License-Identifier: Apache-2.0 */
/* engine/cache: a sequence's pages against plain arrays, and the kernel's word that freed
 * memory went back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/num.h"
#include "engine/base/sysmem.h"
#include "engine/cache/kv.h"
#include "tests/unit/pool_case.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N = PD_PAGE_TOKENS };

/* ---- a sequence's cache ---- */

enum { LAYERS = 2, HEADS = 3, SLOTS = 400 };

typedef struct {
    float *k, *v; /* [SLOTS][d] */
    float *recent_k, *recent_v; /* what is read while the row is among the last */
    int32_t pos[SLOTS];
    size_t n, first; /* first: dead slots of the oldest page */
} naive_head;

typedef struct {
    pd_kvpool pool, recent;
    pd_kv kv;
    size_t d;
    naive_head head[LAYERS * HEADS];
    size_t peak;
    pd_rng rng;
    int32_t next_pos;
    void *scratch; /* one page */
} world;

/* Values that f16 holds exactly. */
static float exact(pd_rng *r) {
    return (float)((int)case_below(r, 4001) - 2000) / 64.0f;
}

static void open_world(world *w, pd_kv_type key, pd_kv_type value, size_t d, size_t n_pages) {
    static pd_kernels kern;
    pd_kernels_init(&kern, pd_cpu_detect());
    const pd_codec codec = pd_codec_of(key, value);
    *w = (world){.d = d, .rng = {d * 64 + key * 8 + value}};
    w->pool = case_pool(pd_codec_page_bytes(&codec, d, d), n_pages, 0);
    w->scratch = calloc(1, pd_codec_page_bytes(&codec, d, d));
    const size_t slots[LAYERS] = {SLOTS, SLOTS};
    assert_int_equal(pd_kv_init(&w->kv, &w->pool, &codec, &kern, LAYERS, HEADS, d, slots, NULL), PD_OK);
    pd_codec recent;
    if (pd_codec_recent(&codec, &recent)) {
        w->recent = case_pool(pd_codec_page_bytes(&recent, d, d), LAYERS * HEADS * PD_KV_RECENT, 0);
        assert_int_equal(pd_kv_hold_recent(&w->kv, &w->recent, &recent, NULL), PD_OK);
    }
    for (size_t i = 0; i < LAYERS * HEADS; i++) {
        naive_head *nh = &w->head[i];
        float **const rows[] = {&nh->k, &nh->v, &nh->recent_k, &nh->recent_v};
        for (size_t r = 0; r < 4; r++) *rows[r] = malloc(SLOTS * d * sizeof(float));
    }
}

static void close_world(world *w) {
    pd_kv_done(&w->kv);
    assert_int_equal(w->pool.n_free, w->pool.n_total);
    assert_true(pd_kvpool_check(&w->pool));
    pd_kv_done(&w->kv); /* all-zero is fine */
    pd_kvpool_done(&w->pool);
    if (w->recent.base) {
        assert_int_equal(w->recent.n_free, w->recent.n_total);
        pd_kvpool_done(&w->recent);
    }
    free(w->scratch);
    for (size_t i = 0; i < LAYERS * HEADS; i++) {
        free(w->head[i].k);
        free(w->head[i].v);
        free(w->head[i].recent_k);
        free(w->head[i].recent_v);
    }
}

static size_t held_pages(const naive_head *h) {
    return h->n ? pd_div_up(h->first + h->n, N) : 0;
}

/* What a type makes of a row: another test's business. */
static void recode(world *w, const pd_codec *c, size_t l, size_t h, size_t slot, const float *k, const float *v, float *to_k, float *to_v) {
    const float *centre = pd_kv_centre(&w->kv, l, h);
    void *page = calloc(1, pd_codec_page_bytes(c, w->d, w->d));
    pd_codec_write(c, w->kv.kern, page, w->d, slot, 1, k, v, w->d, centre);
    pd_codec_read(c, w->kv.kern, page, w->d, slot, to_k, to_v, centre);
    free(page);
}

/* First row that is among the last. */
static size_t recent_row(const world *w, const naive_head *h) {
    const size_t pages = held_pages(h), row = pages > PD_KV_RECENT ? (pages - PD_KV_RECENT) * N - h->first : 0;
    return w->recent.base ? row : h->n;
}

/* Rows of K and V interleaved with others, as prefill has them; by index or all. */
static void do_append(world *w, size_t l, size_t h) {
    naive_head *nh = &w->head[l * HEADS + h];
    size_t n = 1 + case_below(&w->rng, 40);
    if (nh->first + nh->n + n > SLOTS) n = SLOTS - nh->first - nh->n;
    if (n == 0) return;
    const size_t stride = w->d * HEADS, rows = 2 * n;
    float *k = malloc(rows * stride * sizeof *k), *v = malloc(rows * stride * sizeof *v);
    int32_t *pos = malloc(rows * sizeof *pos);
    uint32_t *idx = malloc(n * sizeof *idx);
    for (size_t i = 0; i < rows * stride; i++) {
        k[i] = exact(&w->rng);
        v[i] = exact(&w->rng);
    }
    for (size_t i = 0; i < rows; i++) pos[i] = w->next_pos++;
    for (size_t i = 0; i < n; i++) idx[i] = (uint32_t)(2 * i + case_below(&w->rng, 2));
    const bool by_index = case_below(&w->rng, 2);
    assert_int_equal(pd_kv_append(&w->kv, l, h, k + h * w->d, v + h * w->d, stride, pos, by_index ? idx : NULL, n, NULL), PD_OK);
    for (size_t i = 0; i < n; i++) {
        const size_t row = by_index ? idx[i] : i;
        const float *row_k = k + row * stride + h * w->d, *row_v = v + row * stride + h * w->d;
        const size_t at = (nh->n + i) * w->d;
        recode(w, &w->kv.codec, l, h, i % N, row_k, row_v, nh->k + at, nh->v + at);
        if (w->recent.base) recode(w, &w->kv.recent_codec, l, h, i % N, row_k, row_v, nh->recent_k + at, nh->recent_v + at);
        nh->pos[nh->n + i] = pos[row];
    }
    nh->n += n;
    free(k);
    free(v);
    free(pos);
    free(idx);
}

static void drop_naive(world *w, naive_head *nh, size_t n) {
    memmove(nh->k, nh->k + n * w->d, (nh->n - n) * w->d * sizeof(float));
    memmove(nh->v, nh->v + n * w->d, (nh->n - n) * w->d * sizeof(float));
    memmove(nh->recent_k, nh->recent_k + n * w->d, (nh->n - n) * w->d * sizeof(float));
    memmove(nh->recent_v, nh->recent_v + n * w->d, (nh->n - n) * w->d * sizeof(float));
    memmove(nh->pos, nh->pos + n, (nh->n - n) * sizeof *nh->pos);
    nh->n -= n;
    nh->first = nh->n ? (nh->first + n) % N : 0;
}

static void do_keep(world *w, size_t l, size_t h) {
    naive_head *nh = &w->head[l * HEADS + h];
    if (nh->n == 0) return;
    uint32_t keep[SLOTS];
    size_t n = 0;
    const size_t odds = 1 + case_below(&w->rng, 5);
    for (size_t i = 0; i < nh->n; i++)
        if (case_below(&w->rng, 5) < odds || (i + 1 == nh->n && n == 0)) keep[n++] = (uint32_t)i;
    const size_t recent = recent_row(w, nh);
    pd_kv_keep(&w->kv, l, h, keep, n);
    for (size_t i = 0; i < n; i++) {
        const size_t from = keep[i] * w->d, to = i * w->d;
        if (w->recent.base && keep[i] < recent) /* it was not there: only what its page says is left */
            recode(w, &w->kv.recent_codec, l, h, i % N, nh->k + from, nh->v + from, nh->recent_k + from, nh->recent_v + from);
        memmove(nh->k + to, nh->k + from, w->d * sizeof(float));
        memmove(nh->v + to, nh->v + from, w->d * sizeof(float));
        memmove(nh->recent_k + to, nh->recent_k + from, w->d * sizeof(float));
        memmove(nh->recent_v + to, nh->recent_v + from, w->d * sizeof(float));
        nh->pos[i] = nh->pos[keep[i]];
    }
    nh->n = n;
    nh->first = 0;
}

static void check_head(world *w, size_t l, size_t h, float *k, float *v, int32_t *pos) {
    const naive_head *nh = &w->head[l * HEADS + h];
    const size_t old = recent_row(w, nh) * w->d, all = nh->n * w->d;
    pd_kv_read(&w->kv, l, h, k, v, pos);
    assert_memory_equal(k, nh->k, old * sizeof *k);
    assert_memory_equal(v, nh->v, old * sizeof *v);
    assert_memory_equal(k + old, nh->recent_k + old, (all - old) * sizeof *k);
    assert_memory_equal(v + old, nh->recent_v + old, (all - old) * sizeof *v);
    assert_memory_equal(pos, nh->pos, nh->n * sizeof *pos);
    pd_kv_read(&w->kv, l, h, NULL, NULL, pos); /* any may be absent */
    pd_kv_read(&w->kv, l, h, k, NULL, NULL);
    assert_memory_equal(k, nh->k, old * sizeof *k);
}

static void kv_agrees_with_plain_arrays(void **state) {
    (void)state;
    static const struct {
        pd_kv_type key, value;
        size_t d;
    } cases[] = {
        {PD_KV_F16, PD_KV_F16, 16},   {PD_KV_F16, PD_KV_F16, 80}, {PD_KV_F32, PD_KV_F32, 64}, {PD_KV_Q8_0, PD_KV_Q8_0, 32},
        {PD_KV_Q8_0, PD_KV_Q8_0, 96}, {PD_KV_Q4, PD_KV_Q4, 64},   {PD_KV_Q4, PD_KV_Q4, 96},   {PD_KV_F16, PD_KV_Q4, 64},
        {PD_KV_Q8_0, PD_KV_Q4, 64},   {PD_KV_Q4, PD_KV_F32, 32},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        world w;
        open_world(&w, cases[c].key, cases[c].value, cases[c].d, LAYERS * HEADS * (SLOTS / N + 1));
        float *k = malloc(SLOTS * w.d * sizeof *k), *v = malloc(SLOTS * w.d * sizeof *v);
        int32_t pos[SLOTS];
        for (int step = 0; step < 4000; step++) {
            const size_t l = case_below(&w.rng, LAYERS), h = case_below(&w.rng, HEADS), what = case_below(&w.rng, 10);
            naive_head *nh = &w.head[l * HEADS + h];
            if (what < 6) {
                do_append(&w, l, h);
            } else if (what < 8) {
                do_keep(&w, l, h);
            } else if (nh->n) {
                const size_t n = case_below(&w.rng, nh->n + 1); /* all of them too */
                pd_kv_drop_front(&w.kv, l, h, n);
                drop_naive(&w, nh, n);
                if (nh->n && what == 9) {
                    const size_t in_page = (nh->first + nh->n - 1) % N, most = w.kv.recent_pool ? pd_min_size(in_page, nh->n - 1) : nh->n;
                    const size_t back = case_below(&w.rng, most + 1);
                    pd_kv_drop_back(&w.kv, l, h, back);
                    nh->n -= back;
                    if (nh->n == 0) nh->first = 0;
                }
            }
            size_t pages = 0, recent = 0;
            for (size_t i = 0; i < LAYERS * HEADS; i++) {
                assert_int_equal(w.kv.head[i].n, w.head[i].n);
                assert_int_equal(w.kv.head[i].n_page, held_pages(&w.head[i]));
                pages += held_pages(&w.head[i]);
                if (w.recent.base) recent += pd_min_size(held_pages(&w.head[i]), PD_KV_RECENT);
            }
            w.peak = pd_max_size(w.peak, pages);
            assert_int_equal(w.kv.n_pages, pages);
            assert_int_equal(w.pool.n_seq, pages);
            assert_int_equal(w.kv.n_recent, recent);
            assert_int_equal(w.recent.n_seq, recent);
            assert_int_equal(pd_kv_bytes(&w.kv), pages * w.pool.page_bytes + recent * w.recent.page_bytes);
            assert_int_equal(w.kv.peak_pages, w.peak);
            if (step % 16 == 0) check_head(&w, l, h, k, v, pos);
        }
        free(k);
        free(v);
        close_world(&w);
    }
}

/* A pool or a page list that ends in the middle: what fitted is there, the rest
 * is an error, nothing leaks. */
static void append_beyond_the_pool_is_an_error(void **state) {
    (void)state;
    world w;
    open_world(&w, PD_KV_F16, PD_KV_F16, 64, 3);
    float *rows = calloc(SLOTS * 64, sizeof *rows);
    int32_t pos[SLOTS];
    for (int32_t i = 0; i < SLOTS; i++) pos[i] = i;
    pd_err err = {0};
    assert_int_equal(pd_kv_append(&w.kv, 0, 0, rows, rows, 64, pos, NULL, 16, &err), PD_OK);
    assert_int_equal(pd_kv_append(&w.kv, 1, 2, rows, rows, 64, pos, NULL, 33, &err), PD_EINTERNAL);
    assert_int_equal(pd_kv_at(&w.kv, 1, 2)->n, 32);
    assert_int_equal(w.pool.n_free, 0);
    assert_true(pd_kvpool_check(&w.pool));
    close_world(&w);

    open_world(&w, PD_KV_F16, PD_KV_F16, 64, 100);
    err = (pd_err){0};
    assert_int_equal(pd_kv_append(&w.kv, 0, 0, rows, rows, 64, pos, NULL, SLOTS, &err), PD_OK);
    assert_int_equal(pd_kv_append(&w.kv, 0, 0, rows, rows, 64, pos, NULL, 33, &err), PD_EINTERNAL);
    free(rows);
    close_world(&w);
}

static void f16_rounds_as_it_stores(void **state) {
    (void)state;
    world w;
    open_world(&w, PD_KV_F16, PD_KV_F16, 48, 8);
    float k[48], v[48], want_k[48], want_v[48];
    const int32_t pos = 5;
    for (size_t i = 0; i < 48; i++) {
        want_k[i] = k[i] = 3.0f * pd_rng_f32(&w.rng);
        want_v[i] = v[i] = 1e-5f * pd_rng_f32(&w.rng); /* subnormal halves */
    }
    pd_kv_round(PD_KV_F16, w.kv.kern, want_k, 48);
    pd_kv_round(PD_KV_F16, w.kv.kern, want_v, 48);
    assert_memory_not_equal(k, want_k, sizeof k);
    assert_int_equal(pd_kv_append(&w.kv, 0, 0, k, v, 48, &pos, NULL, 1, NULL), PD_OK);
    pd_kv_read(&w.kv, 0, 0, k, v, NULL);
    assert_memory_equal(k, want_k, sizeof k);
    assert_memory_equal(v, want_v, sizeof v);
    close_world(&w);
}

/* ---- the process's memory ---- */

static void expect_fall(uint64_t before, uint64_t after, uint64_t freed, const char *what) {
    const uint64_t fall = before > after ? before - after : 0;
    if (fall * 10 < freed * 9)
        fail_msg("%s: %llu bytes freed, resident memory fell by %llu", what, (unsigned long long)freed, (unsigned long long)fall);
}

/* ThreadSanitizer keeps shadow memory several times the size of what is touched. */
#if defined(__SANITIZE_THREAD__)
enum { SHADOWED = 1 };
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
enum { SHADOWED = 1 };
#else
enum { SHADOWED = 0 };
#endif
#else
enum { SHADOWED = 0 };
#endif

static void resident_memory_falls(pd_kv_type type) {
    enum { D = 64, TOKENS = 65536, CHUNK = 1024, H = 4 }; /* 64 MiB in f16 */
    pd_kernels kern;
    pd_kernels_init(&kern, pd_cpu_detect());
    const pd_codec codec = pd_codec_of(type, type);
    const size_t page = pd_codec_page_bytes(&codec, D, D), full_pages = H * TOKENS / N;
    pd_kvpool pool = case_pool(page, full_pages + H, 512 << 10);
    pd_kv kv;
    const size_t slots[1] = {TOKENS};
    assert_int_equal(pd_kv_init(&kv, &pool, &codec, &kern, 1, H, D, slots, NULL), PD_OK);
    float *rows = malloc(CHUNK * D * sizeof *rows);
    int32_t *pos = malloc(CHUNK * sizeof *pos);
    uint32_t *keep = malloc(TOKENS / 8 * sizeof *keep);
    for (size_t i = 0; i < CHUNK * D; i++) rows[i] = (float)(i % 97);
    for (size_t i = 0; i < TOKENS / 8; i++) keep[i] = (uint32_t)(8 * i + i % 7);
    const uint64_t at_start = pd_sysmem_rss();
    for (size_t t = 0; t < TOKENS; t += CHUNK) {
        for (size_t i = 0; i < CHUNK; i++) pos[i] = (int32_t)(t + i);
        for (size_t h = 0; h < H; h++)
            assert_int_equal(pd_kv_append(&kv, 0, h, rows, rows, D, pos, NULL, CHUNK, NULL), PD_OK);
    }
    const uint64_t full_bytes = pd_kv_bytes(&kv), full = pd_sysmem_rss();
    assert_int_equal(full_bytes, full_pages * page);
    assert_true(full - at_start >= full_bytes); /* what we count is really there */
    for (size_t h = 0; h < H; h++) pd_kv_keep(&kv, 0, h, keep, TOKENS / 8);
    const uint64_t kept = pd_sysmem_rss();
    assert_int_equal(pd_kv_bytes(&kv), full_pages / 8 * page);
    expect_fall(full, kept, full_bytes - pd_kv_bytes(&kv), "after keeping one of eight");
    pd_kv_done(&kv);
    pd_kvpool_trim(&pool, 0);
    expect_fall(full, pd_sysmem_rss(), full_bytes, "after the sequence ended");
    free(rows);
    free(pos);
    free(keep);
    pd_kvpool_done(&pool);
}

static void resident_memory_falls_with_the_cache(void **state) {
    (void)state;
    if (SHADOWED) skip();
    resident_memory_falls(PD_KV_F16);
    resident_memory_falls(PD_KV_Q8_0);
    resident_memory_falls(PD_KV_Q4);
}

/* ---- types ---- */

/* Written and read back: q8_0 is off by half a step of max / 127 and the rounding of
 * the step to f16 (127 of it, 2^-11 each); q4, rotated, by half a step of max / 7.5 in
 * every one of the rotated row's numbers, so the row's length by sqrt(D) / 2 of the
 * largest step.  Reading and writing again changes nothing. */
static void few_bits_are_off_by_half_a_step(void **state) {
    (void)state;
    static const size_t dims[] = {32, 64, 96, 128, 256};
    pd_kernels kern;
    pd_kernels_init(&kern, pd_cpu_detect());
    pd_rng rng = {91};
    for (size_t c = 0; c < sizeof dims / sizeof *dims; c++) {
        const size_t d = dims[c];
        for (pd_kv_type t = PD_KV_Q8_0; t <= PD_KV_Q4; t++) {
            const pd_codec codec = pd_codec_of(t, t);
            uint8_t *page = calloc(2, pd_codec_page_bytes(&codec, d, d));
            float x[2][256], y[2][256], z[2][256];
            for (size_t i = 0; i < 2 * d; i++) x[i / d][i % d] = (i % 19 == 3 ? 20.0f : 1.0f) * (pd_rng_f32(&rng) - 0.5f);
            pd_codec_write(&codec, &kern, page, d, 5, 1, x[0], x[1], d, NULL);
            pd_codec_read(&codec, &kern, page, d, 5, y[0], y[1], NULL);
            pd_codec_write(&codec, &kern, page, d, 15, 1, y[0], y[1], d, NULL);
            pd_codec_read(&codec, &kern, page, d, 15, z[0], z[1], NULL);
            for (int part = 0; part < 2; part++) {
                double off = 0.0, length = 0.0;
                for (size_t i = 0; i < d; i++) {
                    const size_t g = i / PD_KV_GROUP * PD_KV_GROUP;
                    float max = 0.0f;
                    for (size_t j = g; j < g + PD_KV_GROUP; j++) max = fmaxf(max, fabsf(x[part][j]));
                    if (t == PD_KV_Q8_0 && fabsf(y[part][i] - x[part][i]) > max * (0.5f / 127.0f + 0x1p-11f) * 1.001f)
                        fail_msg("q8_0 D=%zu part %d [%zu]: %g became %g, largest of the group %g", d, part, i,
                                 (double)x[part][i], (double)y[part][i], (double)max);
                    off += pow((double)y[part][i] - (double)x[part][i], 2);
                    length += pow((double)x[part][i], 2);
                    if (fabsf(z[part][i] - y[part][i]) > 2e-3f * (t == PD_KV_Q8_0 ? max : 20.0f))
                        fail_msg("%s D=%zu part %d [%zu]: %g became %g", pd_kv_type_name(t), d, part, i, (double)y[part][i],
                                 (double)z[part][i]);
                }
                /* a rotated row's largest number is below its length */
                const double step = sqrt(length) / 7.5;
                if (t == PD_KV_Q4 && sqrt(off) > sqrt((double)d) / 2.0 * step)
                    fail_msg("q4 D=%zu part %d: off by %g of %g", d, part, sqrt(off), sqrt(length));
                /* uniform error: a twelfth of the step squared.  A normal row's largest of 32 is near 2.5 sigma. */
                if (t == PD_KV_Q4 && sqrt(off / length) > 0.15)
                    fail_msg("q4 D=%zu part %d: off by %g of the row's length", d, part, sqrt(off / length));
            }
            /* a row of zeros, and one too small to divide by, are zeros */
            memset(x, 0, sizeof x);
            x[0][7] = 1e-42f;
            pd_codec_write(&codec, &kern, page, d, 0, 1, x[0], x[1], d, NULL);
            pd_codec_read(&codec, &kern, page, d, 0, y[0], y[1], NULL);
            for (size_t i = 0; i < 2 * d; i++) assert_true(y[i / d][i % d] == 0.0f);
            free(page);
        }
    }
}

static void types_have_names(void **state) {
    (void)state;
    pd_kv_type t;
    assert_true(pd_kv_type_parse("q8_0", &t) && t == PD_KV_Q8_0);
    assert_true(pd_kv_type_parse("q4", &t) && t == PD_KV_Q4);
    assert_true(pd_kv_type_parse("f16", &t) && t == PD_KV_F16);
    assert_false(pd_kv_type_parse("f32", &t)); /* the engine's business */
    assert_false(pd_kv_type_parse("q8", &t));
    static const double bits[PD_KV_TYPES] = {0, 16, 32, 8.5, 5}; /* q4: 5.5 of keys, 4.5 of values */
    for (t = PD_KV_F16; t < PD_KV_TYPES; t++) {
        const pd_codec c = pd_codec_of(t, t);
        assert_true((double)pd_codec_page_bytes(&c, 64, 64) * 8 == bits[t] * 2 * N * 64);
    }
    const pd_codec mixed = pd_codec_of(PD_KV_Q8_0, PD_KV_Q4);
    assert_int_equal(pd_codec_page_bytes(&mixed, 64, 64), (1024 + 64) + (512 + 64));
}

/* Attention in every pair of types against softmax in f64 over the rows as they are read
 * back: rotations, centre and mixing cancel.  What is left is the query's rounding to
 * int8 where keys have few bits: of D numbers each by max|q'| / 254 <= |q| / 254, so a
 * score by e <= sqrt(D) / 254 * |q| * max|k - centre|, a weight by exp(2 e); and the
 * roundings of f32, D u sum|q k| of the score. */
static void attention_agrees_with_the_rows_read_back(void **state) {
    (void)state;
    enum { D = 64, G = 3, FIRST = 5, ROWS = 75, PAGES = 5, STRIDE = 16 * PAGES };
    pd_kernels kern;
    pd_kernels_init(&kern, pd_cpu_detect());
    pd_rng rng = {17};
    static float k[ROWS][D], v[ROWS][D], tmp[G * STRIDE], scratch[4096], acc[G * D];
    float centre[D], q[G * D], m[G], l[G];
    assert_true(pd_codec_attn_floats(G, D) <= sizeof scratch / sizeof *scratch);
    for (size_t c = 0; c < D; c++) centre[c] = 3.0f * pd_rng_f32(&rng);
    for (int key = PD_KV_F16; key < PD_KV_TYPES; key++) {
        for (int value = PD_KV_F16; value < PD_KV_TYPES; value++) {
            const pd_codec codec = pd_codec_of((pd_kv_type)key, (pd_kv_type)value);
            const float *shift = pd_kv_type_group(codec.key) > 1 ? centre : NULL;
            uint8_t *page[PAGES];
            for (size_t i = 0; i < PAGES; i++) page[i] = calloc(1, pd_codec_page_bytes(&codec, D, D));
            double far = 0.0;
            for (size_t i = 0; i < ROWS; i++) {
                for (size_t c = 0; c < D; c++) {
                    k[i][c] = centre[c] + 0.5f * pd_rng_f32(&rng);
                    v[i][c] = pd_rng_f32(&rng); /* below 2 when read back */
                }
                const size_t at = FIRST + i;
                pd_codec_write(&codec, &kern, page[at / N], D, at % N, 1, k[i], v[i], D, shift);
                pd_codec_read(&codec, &kern, page[at / N], D, at % N, k[i], v[i], shift);
                double d2 = 0.0;
                for (size_t c = 0; c < D; c++) d2 += pow((double)k[i][c] - (double)centre[c], 2);
                far = fmax(far, sqrt(d2));
            }
            for (size_t i = 0; i < G * D; i++) q[i] = 0.5f * pd_rng_f32(&rng);
            pd_codec_attn(&codec, &kern, q, G, D, D, (const void *const *)page, FIRST, ROWS, 0, 0.0f, tmp, STRIDE, scratch, m, l, acc);
            for (size_t g = 0; g < G; g++) {
                double s[ROWS], max = -INFINITY, sum = 0.0, q2 = 0.0, most = 0.0;
                for (size_t c = 0; c < D; c++) q2 += (double)q[g * D + c] * (double)q[g * D + c];
                for (size_t i = 0; i < ROWS; i++) {
                    double abs = 0.0;
                    s[i] = 0.0;
                    for (size_t c = 0; c < D; c++) {
                        s[i] += (double)q[g * D + c] * (double)k[i][c];
                        abs += fabs((double)q[g * D + c] * (double)k[i][c]);
                    }
                    max = fmax(max, s[i]);
                    most = fmax(most, abs);
                }
                for (size_t i = 0; i < ROWS; i++) sum += s[i] = exp(s[i] - max);
                const double e = D * 0x1p-24 * most + (shift ? sqrt((double)D) / 254.0 * sqrt(q2) * far : 0.0);
                for (size_t c = 0; c < D; c++) {
                    double want = 0.0;
                    for (size_t i = 0; i < ROWS; i++) want += s[i] / sum * (double)v[i][c];
                    const double got = (double)acc[g * D + c] / (double)l[g];
                    if (!(fabs(got - want) <= 2.0 * expm1(2.0 * e) + 2e-5))
                        fail_msg("keys %s, values %s, head %zu, channel %zu: %g, not %g (within %g)", pd_kv_type_name(codec.key),
                                 pd_kv_type_name(codec.value), g, c, got, want, 2.0 * expm1(2.0 * e));
                }
            }
            for (size_t i = 0; i < PAGES; i++) free(page[i]);
        }
    }
}

/* A head's first keys give its centre; it stays while the head holds slots. */
static void keys_in_few_bits_have_a_centre(void **state) {
    (void)state;
    world w;
    open_world(&w, PD_KV_Q4, PD_KV_F16, 64, 100);
    static float k[40 * 64], v[40 * 64], got[80 * 64];
    int32_t pos[40];
    for (int32_t i = 0; i < 40; i++) {
        pos[i] = i;
        for (size_t c = 0; c < 64; c++) k[(size_t)i * 64 + c] = 500.0f + (float)c + 0.1f * pd_rng_f32(&w.rng);
    }
    assert_int_equal(pd_kv_append(&w.kv, 0, 1, k, v, 64, pos, NULL, 40, NULL), PD_OK);
    const float *centre = pd_kv_centre(&w.kv, 0, 1);
    assert_true(fabsf(centre[63] - 563.0f) < 0.06f);
    pd_kv_read(&w.kv, 0, 1, got, NULL, NULL); /* 500 in 4 bits would be off by 30 */
    for (size_t i = 0; i < 40 * 64; i++) assert_true(fabsf(got[i] - k[i]) < 0.1f);
    assert_int_equal(pd_kv_append(&w.kv, 0, 1, k, v, 64, pos, NULL, 1, NULL), PD_OK);
    assert_true(fabsf(centre[63] - 563.0f) < 0.06f);
    world copy;
    open_world(&copy, PD_KV_Q4, PD_KV_F16, 64, 100);
    assert_int_equal(pd_kv_copy(&copy.kv, &w.kv, NULL), PD_OK);
    pd_kv_read(&copy.kv, 0, 1, got, NULL, NULL);
    for (size_t i = 0; i < 40 * 64; i++) assert_true(fabsf(got[i] - k[i]) < 0.1f);
    close_world(&copy);
    assert_true(pd_kv_centre(&w.kv, 1, 2)[0] == 0.0f); /* a head of its own */
    assert_int_equal(pd_kv_append(&w.kv, 1, 2, k, v, 64, pos, NULL, 3, NULL), PD_OK);
    assert_true(pd_kv_centre(&w.kv, 1, 2)[0] == 0.0f); /* three say little */
    pd_kv_drop_front(&w.kv, 0, 1, 41);
    for (size_t i = 0; i < 40 * 64; i++) k[i] = -1.0f;
    assert_int_equal(pd_kv_append(&w.kv, 0, 1, k, v, 64, pos, NULL, 20, NULL), PD_OK);
    assert_true(fabsf(centre[63] + 1.0f) < 1e-5f);
    close_world(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kv_agrees_with_plain_arrays),
        cmocka_unit_test(append_beyond_the_pool_is_an_error),
        cmocka_unit_test(f16_rounds_as_it_stores),
        cmocka_unit_test(resident_memory_falls_with_the_cache),
        cmocka_unit_test(few_bits_are_off_by_half_a_step),
        cmocka_unit_test(attention_agrees_with_the_rows_read_back),
        cmocka_unit_test(keys_in_few_bits_have_a_centre),
        cmocka_unit_test(types_have_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
