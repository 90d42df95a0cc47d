/* SPDX-License-Identifier: Apache-2.0 */
/* Packed sections (engine/cache/kv.h): slots against plain arrays under random
 * operations, pages and bytes against both pools, and attention over both sections
 * against the rows that are read back; keys of fewer channels, and projected keys and values. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/num.h"
#include "engine/base/rng.h"
#include "engine/base/sysmem.h"
#include "engine/cache/kv.h"
#include "engine/cache/pools.h"
#include "engine/run/attn.h"
#include "engine/run/tags.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N = PD_PAGE_TOKENS, LAYERS = 2, HEADS = 3, SLOTS = 200, D_MAX = 96, SINKS = 7, POSITIONS = 1 << 18 };

static size_t below(pd_rng *r, size_t n) {
    return (size_t)(pd_rng_u64(r) % n);
}

typedef struct {
    float *k, *v; /* [SLOTS][d], as they read back */
    int32_t pos[SLOTS];
    size_t n[2], dead[2]; /* open, packed: live slots, dead ones before them */
    uint32_t channel[D_MAX];
} plain_head;

typedef struct {
    pd_kvpools pools;
    pd_kernels kern;
    pd_codec codec;
    pd_kv kv;
    size_t d, n_channel, width;
    float spread; /* of keys around 1 */
    plain_head head[LAYERS * HEADS];
    pd_rng rng;
    int32_t next_pos;
    uint8_t *page;
    bool projects; /* instead of channels: n_channel is the rank, d = keys stay as they are */
    size_t v_dim;  /* the rank of values, d likewise */
    pd_turns turns;
    float *basis;  /* [LAYERS * HEADS][n_channel + v_dim][d] */
    pd_latent latent[LAYERS * HEADS];
} world;

static void open_kv(world *w, pd_kv *kv) {
    static const size_t slots[LAYERS] = {SLOTS, SLOTS};
    pd_kvpool *open, *packed;
    assert_int_equal(pd_kvpools_get(&w->pools, &w->codec, w->d, w->d, &open, NULL), PD_OK);
    assert_int_equal(pd_kvpools_get(&w->pools, &w->codec, w->width, w->v_dim, &packed, NULL), PD_OK);
    assert_int_equal(pd_kv_init(kv, open, &w->codec, &w->kern, LAYERS, HEADS, w->d, slots, NULL), PD_OK);
    pd_kvpool *const pool[LAYERS] = {packed, packed};
    assert_int_equal(w->projects ? pd_kv_set_latents(kv, &kv->codec, pool, w->latent, SINKS, NULL)
                                 : pd_kv_set_pack(kv, packed, w->n_channel, NULL), PD_OK);
}

/* Rows of any numbers: what a basis is good for is another matter. */
static void draw_bases(world *w) {
    float freq[D_MAX];
    for (size_t i = 0; i < w->d / 2; i++) freq[i] = powf(1000.0f, -2.0f * (float)i / (float)w->d);
    assert_int_equal(pd_turns_init(&w->turns, freq, w->d / 2, POSITIONS, NULL), PD_OK);
    const size_t rows = w->n_channel + w->v_dim;
    w->basis = malloc(LAYERS * HEADS * rows * w->d * sizeof *w->basis);
    pd_rng rng = {99};
    for (size_t i = 0; i < LAYERS * HEADS * rows * w->d; i++) w->basis[i] = pd_rng_f32(&rng) / sqrtf((float)w->d / 3.0f);
    for (size_t i = 0; i < LAYERS * HEADS; i++) {
        const float *key = w->basis + i * rows * w->d, *value = key + w->n_channel * w->d;
        w->latent[i] = (pd_latent){.head_dim = w->d, .rank = w->n_channel, .rank_v = w->v_dim};
        if (w->v_dim < w->d) w->latent[i].value = value;
        if (w->n_channel == w->d) continue;
        w->latent[i].project = w->latent[i].rebuild = key;
        w->latent[i].turns = i % 2 ? NULL : &w->turns;
    }
}

/* v_dim 0: values are not projected, and if keys are not either, they lose channels. */
static world *open_world(pd_kv_type key, pd_kv_type value, size_t d, size_t n_channel, bool projects, size_t v_dim) {
    world *w = calloc(1, sizeof *w);
    w->projects = projects;
    w->v_dim = v_dim ? v_dim : d;
    w->codec = pd_codec_of(key, value);
    w->d = d;
    w->n_channel = n_channel;
    w->spread = 4.0f;
    w->width = pd_kv_pack_width(key, n_channel, d);
    w->rng = (pd_rng){d * 64 + key * 8 + value + n_channel};
    pd_kernels_init(&w->kern, pd_cpu_detect());
    assert_int_equal(pd_kvpools_init(&w->pools, &w->codec, d, 1 << 22, 0, NULL), PD_OK);
    if (projects) draw_bases(w);
    open_kv(w, &w->kv);
    w->page = calloc(1, pd_codec_page_bytes(&w->codec, d, d));
    for (size_t i = 0; i < LAYERS * HEADS; i++) {
        plain_head *p = &w->head[i];
        p->k = calloc(SLOTS * d, sizeof *p->k);
        p->v = calloc(SLOTS * d, sizeof *p->v);
        for (size_t c = 0, at = 0; c < d; c++) /* n_channel of d, any */
            if (below(&w->rng, d - c) < n_channel - at) p->channel[at++] = (uint32_t)c;
        if (!projects) pd_kv_set_channels(&w->kv, i / HEADS, i % HEADS, p->channel);
    }
    return w;
}

static void close_world(world *w) {
    pd_kv_done(&w->kv);
    assert_int_equal(pd_kvpools_held(&w->pools, PD_PAGE_SEQ), 0);
    assert_true(pd_kvpools_check(&w->pools));
    pd_kvpools_done(&w->pools);
    for (size_t i = 0; i < LAYERS * HEADS; i++) {
        free(w->head[i].k);
        free(w->head[i].v);
    }
    pd_turns_done(&w->turns);
    free(w->basis);
    free(w->page);
    free(w);
}

/* A projected key as it reads back; the first positions' are whole. */
static void projected_key(world *w, size_t i, const float *k, int32_t pos, float *ret) {
    float row[D_MAX], back[D_MAX], tmp[D_MAX];
    if (w->n_channel < w->d && pos < SINKS) {
        memmove(ret, k, w->d * sizeof *ret);
        return;
    }
    pd_latent_project(&w->latent[i], &w->kern, k, pos, row, tmp);
    w->codec.k->write(&w->kern, w->page, w->width, 3, 1, row, w->width);
    w->codec.k->read(&w->kern, w->page, w->width, 3, back);
    pd_latent_rebuild(&w->latent[i], &w->kern, back, pos, ret);
}

/* And a value. */
static void packed_value(world *w, size_t i, const float *v, int32_t pos, float *ret) {
    const bool folds = w->v_dim < w->d;
    float row[D_MAX], back[D_MAX];
    if (folds && pos < SINKS) {
        memmove(ret, v, w->d * sizeof *ret);
        return;
    }
    if (folds) pd_latent_fold(&w->latent[i], &w->kern, v, row);
    else memcpy(row, v, w->d * sizeof *row);
    w->codec.v->write(&w->kern, w->page, w->v_dim, 1, 1, row, w->v_dim);
    w->codec.v->read(&w->kern, w->page, w->v_dim, 1, back);
    if (folds) pd_latent_unfold(&w->latent[i], &w->kern, back, ret);
    else memcpy(ret, back, w->d * sizeof *ret);
}

/* What the packed kind makes of a key: its channels as the type stores them in a narrow row. */
static void packed_key(world *w, size_t i, const float *k, int32_t pos, float *ret) {
    if (w->projects) {
        projected_key(w, i, k, pos, ret);
        return;
    }
    const plain_head *p = &w->head[i];
    const float *centre = pd_kv_centre(&w->kv, i / HEADS, i % HEADS);
    float row[D_MAX] = {0}, back[D_MAX];
    for (size_t c = 0; c < w->n_channel; c++) row[c] = k[p->channel[c]] - (centre ? centre[p->channel[c]] : 0.0f);
    w->codec.k->write(&w->kern, w->page, w->width, 3, 1, row, w->width);
    w->codec.k->read(&w->kern, w->page, w->width, 3, back);
    memset(ret, 0, w->d * sizeof *ret);
    for (size_t c = 0; c < w->n_channel; c++) ret[p->channel[c]] = back[c] + (centre ? centre[p->channel[c]] : 0.0f);
}

static void do_append(world *w, size_t i, bool packed) {
    plain_head *p = &w->head[i];
    const size_t l = i / HEADS, h = i % HEADS, d = w->d, room = SLOTS - p->n[0] - p->n[1] - p->dead[0] - p->dead[1];
    const size_t n = pd_min_size(1 + below(&w->rng, 40), room);
    if (n == 0) return;
    static float k[80 * D_MAX], v[80 * D_MAX];
    int32_t pos[80];
    uint32_t idx[40];
    for (size_t e = 0; e < 2 * n * d; e++) {
        k[e] = 1.0f + w->spread * (pd_rng_f32(&w->rng) - 0.5f);
        v[e] = 2.0f * pd_rng_f32(&w->rng) - 1.0f;
    }
    for (size_t r = 0; r < 2 * n; r++) pos[r] = w->next_pos++;
    for (size_t r = 0; r < n; r++) idx[r] = (uint32_t)(2 * r + below(&w->rng, 2));
    const uint32_t *by = below(&w->rng, 2) ? idx : NULL;
    assert_int_equal((packed ? pd_kv_append_packed : pd_kv_append)(&w->kv, l, h, k, v, d, pos, by, n, NULL), PD_OK);
    for (size_t r = 0; r < n; r++) {
        const size_t row = by ? idx[r] : r, at = p->n[0] + p->n[1];
        pd_codec_write(&w->codec, &w->kern, w->page, d, 5, 1, k + row * d, v + row * d, d, pd_kv_centre(&w->kv, l, h));
        pd_codec_read(&w->codec, &w->kern, w->page, d, 5, p->k + at * d, p->v + at * d, pd_kv_centre(&w->kv, l, h));
        if (packed) packed_key(w, i, k + row * d, pos[row], p->k + at * d);
        if (packed) packed_value(w, i, v + row * d, pos[row], p->v + at * d);
        p->pos[at] = pos[row];
        p->n[packed]++;
    }
}

/* Whole open pages, or all. */
static void do_pack(world *w, size_t i) {
    plain_head *p = &w->head[i];
    const size_t pages = below(&w->rng, 3);
    size_t n = pages * N > p->dead[0] ? pages * N - p->dead[0] : 0;
    if (n > p->n[0] || below(&w->rng, 3) == 0) n = p->n[0];
    assert_int_equal(pd_kv_pack_open(&w->kv, i / HEADS, i % HEADS, n, NULL), PD_OK);
    for (size_t r = p->n[1]; r < p->n[1] + n; r++) {
        packed_key(w, i, p->k + r * w->d, p->pos[r], p->k + r * w->d);
        packed_value(w, i, p->v + r * w->d, p->pos[r], p->v + r * w->d); /* values are written once more */
    }
    if (n) p->dead[0] = 0;
    p->n[0] -= n;
    p->n[1] += n;
}

static void do_keep(world *w, size_t i) {
    plain_head *p = &w->head[i];
    const size_t all = p->n[0] + p->n[1], odds = 1 + below(&w->rng, 5);
    uint32_t keep[SLOTS];
    size_t n = 0, packed = 0;
    for (size_t s = 0; s < all; s++)
        if (below(&w->rng, 5) < odds || (s + 1 == all && n == 0)) keep[n++] = (uint32_t)s;
    if (n == 0) return;
    pd_kv_keep(&w->kv, i / HEADS, i % HEADS, keep, n);
    for (size_t s = 0; s < n; s++) {
        memmove(p->k + s * w->d, p->k + keep[s] * w->d, w->d * sizeof(float));
        memmove(p->v + s * w->d, p->v + keep[s] * w->d, w->d * sizeof(float));
        p->pos[s] = p->pos[keep[s]];
        packed += keep[s] < p->n[1];
    }
    p->n[0] = n - packed;
    p->n[1] = packed;
    p->dead[0] = p->dead[1] = 0;
}

static void do_drop(world *w, size_t i) {
    plain_head *p = &w->head[i];
    const size_t all = p->n[0] + p->n[1], n = below(&w->rng, all + 1), packed = pd_min_size(n, p->n[1]);
    pd_kv_drop_front(&w->kv, i / HEADS, i % HEADS, n);
    memmove(p->k, p->k + n * w->d, (all - n) * w->d * sizeof(float));
    memmove(p->v, p->v + n * w->d, (all - n) * w->d * sizeof(float));
    memmove(p->pos, p->pos + n, (all - n) * sizeof *p->pos);
    p->n[1] -= packed;
    p->n[0] -= n - packed;
    p->dead[1] = p->n[1] ? (p->dead[1] + packed) % N : 0;
    p->dead[0] = p->n[0] ? (p->dead[0] + n - packed) % N : 0;
}

static void do_set_value(world *w, size_t i) {
    plain_head *p = &w->head[i];
    if (p->n[0] + p->n[1] == 0) return;
    const size_t s = below(&w->rng, p->n[0] + p->n[1]);
    float v[D_MAX];
    for (size_t c = 0; c < w->d; c++) v[c] = 3.0f * pd_rng_f32(&w->rng);
    pd_kv_set_value(&w->kv, i / HEADS, i % HEADS, s, v);
    if (s < p->n[1]) {
        packed_value(w, i, v, p->pos[s], p->v + s * w->d);
        return;
    }
    w->codec.v->write(&w->kern, w->page, w->d, 1, 1, v, w->d);
    w->codec.v->read(&w->kern, w->page, w->d, 1, p->v + s * w->d);
}

/* A copy takes its place. */
static void do_copy(world *w) {
    pd_kv copy;
    open_kv(w, &copy);
    assert_int_equal(pd_kv_copy(&copy, &w->kv, NULL), PD_OK);
    assert_int_equal(pd_kv_bytes(&copy), pd_kv_bytes(&w->kv));
    assert_int_equal(pd_kvpools_held(&w->pools, PD_PAGE_SEQ), 2 * pd_kv_bytes(&w->kv));
    pd_kv_done(&w->kv);
    w->kv = copy;
}

static void check_head(world *w, size_t i) {
    const plain_head *p = &w->head[i];
    const size_t l = i / HEADS, h = i % HEADS, n = p->n[0] + p->n[1];
    static float k[SLOTS * D_MAX], v[SLOTS * D_MAX];
    int32_t pos[SLOTS];
    pd_kv_read(&w->kv, l, h, k, v, pos);
    assert_memory_equal(k, p->k, n * w->d * sizeof *k);
    assert_memory_equal(v, p->v, n * w->d * sizeof *v);
    assert_memory_equal(pos, p->pos, n * sizeof *pos);
    const size_t from = below(&w->rng, n + 1), some = below(&w->rng, n - from + 1);
    pd_kv_read_some(&w->kv, l, h, from, some, NULL, v, NULL); /* any may be absent */
    assert_memory_equal(v, p->v + from * w->d, some * w->d * sizeof *v);
    for (size_t s = 0; s < n;) { /* page by page */
        const pd_kv_place at = pd_kv_find(pd_kv_at(&w->kv, l, h), s);
        static float tmp[D_MAX * N];
        const float *keys = pd_kv_page_keys(&w->kv, l, h, at, tmp);
        for (size_t r = 0; r < at.run; r++)
            for (size_t c = 0; c < w->d; c++) assert_true(keys[c * N + at.slot + r] == p->k[(s + r) * w->d + c]);
        s += at.run;
    }
}

static void sections_agree_with_plain_arrays(void **state) {
    (void)state;
    static const struct {
        pd_kv_type key, value;
        size_t d, n_channel;
        bool projects;
        size_t v_dim;
    } cases[] = {
        {PD_KV_F16, PD_KV_F16, 64, 32, 0, 0}, {PD_KV_F16, PD_KV_F16, 80, 33, 0, 0}, {PD_KV_F32, PD_KV_F32, 16, 1, 0, 0},
        {PD_KV_F16, PD_KV_Q4, 64, 13, 0, 0}, {PD_KV_Q8_0, PD_KV_Q8_0, 96, 40, 0, 0}, {PD_KV_Q4, PD_KV_F16, 64, 32, 0, 0},
        {PD_KV_F32, PD_KV_Q8_0, 64, 60, 0, 0}, {PD_KV_F16, PD_KV_F16, 64, 32, 1, 0}, {PD_KV_F32, PD_KV_F32, 16, 1, 1, 0},
        {PD_KV_F16, PD_KV_Q4, 96, 48, 1, 0}, {PD_KV_F16, PD_KV_F16, 64, 32, 1, 48}, {PD_KV_F32, PD_KV_F32, 16, 16, 1, 5},
        {PD_KV_F16, PD_KV_Q8_0, 96, 48, 1, 64}, {PD_KV_F32, PD_KV_Q4, 64, 64, 1, 32}, {PD_KV_F16, PD_KV_F32, 80, 20, 1, 1},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        world *w = open_world(cases[c].key, cases[c].value, cases[c].d, cases[c].n_channel, cases[c].projects, cases[c].v_dim);
        const uint64_t open_page = pd_codec_page_bytes(&w->codec, w->d, w->d), packed_page = pd_codec_page_bytes(&w->codec, w->width, w->v_dim);
        assert_true(packed_page < open_page);
        do_append(w, 0, true); /* the first positions, which random steps soon forget */
        do_copy(w);
        check_head(w, 0);
        size_t most = 0, both = 0;
        for (int step = 0; step < 4000; step++) {
            const size_t i = below(&w->rng, LAYERS * HEADS), what = below(&w->rng, 20);
            const plain_head *p = &w->head[i];
            if (what < 7) do_append(w, i, false);
            else if (what < 10 && p->n[0] == 0) do_append(w, i, true);
            else if (what < 13) do_pack(w, i);
            else if (what < 15) do_keep(w, i);
            else if (what < 17) do_drop(w, i);
            else if (what < 19) do_set_value(w, i);
            else if (step % 8 == 0) do_copy(w);
            size_t open = 0, packed = 0;
            for (size_t k = 0; k < LAYERS * HEADS; k++) {
                const plain_head *q = &w->head[k];
                const pd_kv_head *kh = &w->kv.head[k];
                const size_t o = q->n[0] ? pd_div_up(q->dead[0] + q->n[0], N) : 0, pk = q->n[1] ? pd_div_up(q->dead[1] + q->n[1], N) : 0;
                assert_int_equal(kh->n, q->n[0] + q->n[1]);
                assert_int_equal(kh->n_pack, q->n[1]);
                assert_int_equal(kh->n_pack_page, pk);
                assert_int_equal(kh->n_page, o + pk);
                assert_int_equal(pd_kv_head_bytes(&w->kv, kh), o * open_page + pk * packed_page);
                open += o;
                packed += pk;
                both += o && pk;
            }
            most = pd_max_size(most, packed);
            assert_int_equal(w->kv.n_pages, open);
            assert_int_equal(w->kv.n_pack_pages, packed);
            assert_int_equal(pd_kv_bytes(&w->kv), open * open_page + packed * packed_page);
            assert_int_equal(pd_kvpools_held(&w->pools, PD_PAGE_SEQ), pd_kv_bytes(&w->kv));
            assert_true(pd_kvpools_check(&w->pools));
            if (step % 8 == 0) check_head(w, i);
        }
        assert_true(most > 10 && both > 1000); /* it was about something */
        uint64_t type[2][PD_KV_ALL], sum = 0;
        pd_kvpools_by_type(&w->pools, type);
        for (size_t t = 0; t < 2 * PD_KV_ALL; t++) sum += type[t / PD_KV_ALL][t % PD_KV_ALL];
        assert_int_equal(sum, pd_kv_bytes(&w->kv));
        close_world(w);
    }
}

static void widths_are_few(void **state) {
    (void)state;
    assert_int_equal(pd_kv_pack_width(PD_KV_F16, 32, 64), 32);
    assert_int_equal(pd_kv_pack_width(PD_KV_F16, 33, 64), 36);
    assert_int_equal(pd_kv_pack_width(PD_KV_F32, 1, 16), 1);
    assert_int_equal(pd_kv_pack_width(PD_KV_F16, 0, 64), 4); /* a page has some keys */
    assert_int_equal(pd_kv_pack_width(PD_KV_F16, 63, 64), 64);
    assert_int_equal(pd_kv_pack_width(PD_KV_Q8_0, 33, 96), 64);
    assert_int_equal(pd_kv_pack_width(PD_KV_Q4, 65, 128), 96);
    static const size_t dims[] = {16, 48, 64, 80, 96, 128, 256, 512};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        for (int key = PD_KV_F16; key < PD_KV_TYPES; key++) {
            if (dims[i] % pd_kv_type_group((pd_kv_type)key)) continue;
            size_t kinds = 0, last = 0;
            for (size_t c = 0; c <= dims[i]; c++) {
                const size_t width = pd_kv_pack_width((pd_kv_type)key, c, dims[i]);
                assert_true(width >= c && width >= last && width <= dims[i] && width % pd_kv_type_group((pd_kv_type)key) == 0);
                kinds += width != last;
                last = width;
            }
            assert_true(kinds <= PD_KV_WIDTHS);
        }
    }
}

/* Memory that no request's packed pages need goes back when the last of them ends. */
static void a_packed_pool_that_is_left_holds_nothing(void **state) {
    (void)state;
    world *w = open_world(PD_KV_F16, PD_KV_F16, 64, 20, false, 0);
    w->kv.pack.pool->hysteresis = 1000;
    w->kv.pack.pool->trim_at = 2000;
    for (int i = 0; i < 20; i++) do_append(w, 0, true);
    assert_true(w->kv.n_pack_pages > 10);
    pd_kvpool *pool = w->kv.pack.pool;
    pd_kv_done(&w->kv);
    assert_int_equal(pool->n_dirty, 0);
    open_kv(w, &w->kv);
    close_world(w);
}

/* ThreadSanitizer keeps shadow memory several times the size of what is touched. */
#ifdef __has_feature
#if __has_feature(thread_sanitizer)
enum { SHADOWED = 1 };
#else
enum { SHADOWED = 0 };
#endif
#else
enum { SHADOWED = 0 };
#endif

/* The kernel's word: packing 64 MiB leaves what its narrow pages hold, at no time more than both. */
static void resident_memory_falls_with_the_channels(void **state) {
    (void)state;
    if (SHADOWED) skip();
    enum { D = 64, TOKENS = 65536, CHUNK = 1024, H = 4 };
    const pd_codec codec = pd_codec_of(PD_KV_F16, PD_KV_F16);
    pd_kernels kern;
    pd_kvpools pools;
    pd_kvpool *open, *packed;
    pd_kv kv;
    const size_t slots[1] = {TOKENS};
    pd_kernels_init(&kern, pd_cpu_detect());
    assert_int_equal(pd_kvpools_init(&pools, &codec, D, 80 << 20, 512 << 10, NULL), PD_OK);
    assert_int_equal(pd_kvpools_get(&pools, &codec, D, D, &open, NULL), PD_OK);
    assert_int_equal(pd_kvpools_get(&pools, &codec, D / 4, D, &packed, NULL), PD_OK);
    assert_int_equal(pd_kv_init(&kv, open, &codec, &kern, 1, H, D, slots, NULL), PD_OK);
    assert_int_equal(pd_kv_set_pack(&kv, packed, D / 4, NULL), PD_OK);
    float *rows = malloc(CHUNK * D * sizeof *rows);
    int32_t *pos = calloc(CHUNK, sizeof *pos);
    uint32_t channel[D / 4];
    for (size_t i = 0; i < CHUNK * D; i++) rows[i] = (float)(i % 97);
    for (size_t i = 0; i < D / 4; i++) channel[i] = (uint32_t)(3 * i);
    for (size_t h = 0; h < H; h++) {
        pd_kv_set_channels(&kv, 0, h, channel);
        for (size_t t = 0; t < TOKENS; t += CHUNK)
            assert_int_equal(pd_kv_append(&kv, 0, h, rows, rows, D, pos, NULL, CHUNK, NULL), PD_OK);
    }
    const uint64_t wide = pd_kv_bytes(&kv), before = pd_sysmem_rss();
    assert_int_equal(wide, 64 << 20);
    for (size_t h = 0; h < H; h++) {
        assert_int_equal(pd_kv_pack_open(&kv, 0, h, TOKENS, NULL), PD_OK);
        assert_true(pd_kvpools_check(&pools));
        assert_true(pd_sysmem_rss() < before + (4 << 20));
    }
    const uint64_t freed = wide - pd_kv_bytes(&kv), after = pd_sysmem_rss(), fall = before > after ? before - after : 0;
    assert_int_equal(pd_kv_bytes(&kv), 40 << 20);
    if (10 * fall < 9 * freed)
        fail_msg("%llu bytes freed, resident memory fell by %llu", (unsigned long long)freed, (unsigned long long)fall);
    pd_kv_done(&kv);
    free(rows);
    free(pos);
    pd_kvpools_done(&pools);
}

/* ---- attention ---- */

/* A step of both sections against f64 over the rows read back.  In f16 and f32 a score is off
 * by D u sum|q k|, which moves a weight by exp(2 e).  Few bits round the query too, as in
 * test_cache: e <= sqrt(D) / 254 |q| |k - centre| over what is stored; there the keys lie
 * close to a centre that packed ones hold a part of. */
static void attention_sees_both_sections(void **state) {
    (void)state;
    enum { HQ = 2 * HEADS, D = 64 };
    static const pd_model model = {.hp = {.n_layer = LAYERS, .n_head = HQ, .n_head_kv = HEADS, .head_dim = D, .attn_scale = 0.25f}};
    pd_workers *workers;
    assert_int_equal(pd_workers_open(&workers, 2, NULL), PD_OK);
    for (int key = PD_KV_F16; key < PD_KV_TYPES; key++) {
        for (int at = 0; at < 9; at++) { /* packed alone, both, both with dead slots in front */
            static const size_t v_dim[] = {0, 0, 0, 0, 0, 0, 32, 48, 17}; /* the last by the row */
            const int packs = at % 3;
            if (at > 2 && pd_kv_type_group((pd_kv_type)key) > 1) continue;
            const size_t k_dim = at == 7 ? D : packs == 1 ? 31 + (at > 2) : 20;
            world *w = open_world((pd_kv_type)key, packs ? PD_KV_F16 : PD_KV_Q4, D, k_dim, at > 2, v_dim[at]);
            if (pd_kv_type_group(w->codec.key) > 1) w->spread = 0.1f;
            pd_attn attn;
            assert_int_equal(pd_attn_init(&attn, &model, &w->kern, workers, 1, 2 * SLOTS, false, NULL), PD_OK);
            pd_tags tags;
            static const size_t slots[LAYERS] = {SLOTS, SLOTS};
            assert_int_equal(pd_tags_init(&tags, PD_TAG_ATTENTION, &model.hp, slots, NULL), PD_OK);
            float q[HQ * D], out[HQ * D];
            for (size_t h = 0; h < HEADS; h++) {
                for (int i = 0; i < 3; i++) do_append(w, h, true);
                for (size_t i = 0; packs && i < 1 + h; i++) do_append(w, h, false);
                if (packs == 2) pd_kv_drop_front(&w->kv, 0, h, 5 + h);
                pd_tags_fill(&tags, 0, h, 0, pd_kv_at(&w->kv, 0, h)->n, 0.0f);
            }
            for (size_t e = 0; e < HQ * D; e++) q[e] = 2.0f * pd_rng_f32(&w->rng) - 0.5f;
            pd_kv *kv = &w->kv;
            pd_attn_step(&attn, &kv, NULL, 1, 0, q, out);
            pd_tags_attend(&tags, &attn, kv, 0, q);
            /* once more, and the step's own weights to tags of each kind */
            static const pd_tag_kind kinds[] = {PD_TAG_ATTENTION, PD_TAG_SUMS, PD_TAG_SQUARES};
            pd_tags stepped[3];
            float again[HQ * D];
            for (size_t t = 0; t < 3; t++) {
                pd_tags *one = &stepped[t];
                assert_int_equal(pd_tags_init(one, kinds[t], &model.hp, slots, NULL), PD_OK);
                for (size_t h = 0; h < HEADS; h++) pd_tags_fill(one, 0, h, 0, pd_kv_at(kv, 0, h)->n, 1.0f);
                attn.tags = &one;
                pd_attn_step(&attn, &kv, NULL, 1, 0, q, again);
                attn.tags = NULL;
            }
            double looked[HEADS][3][SLOTS] = {{{0}}}, off[HEADS] = {0};
            for (size_t g = 0; g < HQ; g++) {
                static float k[SLOTS * D], v[SLOTS * D];
                const size_t h = g / 2, n = pd_kv_at(kv, 0, h)->n;
                const float *centre = pd_kv_centre(kv, 0, h);
                double s[SLOTS], sum = 0.0, max = -INFINITY, e = 0.0, q2 = 0.0;
                pd_kv_read(kv, 0, h, k, v, NULL);
                for (size_t c = 0; c < D; c++) q2 += pow(0.25 * (double)q[g * D + c], 2);
                for (size_t i = 0; i < n; i++) {
                    double abs = 0.0, k2 = 0.0;
                    s[i] = 0.0;
                    for (size_t c = 0; c < D; c++) {
                        const double x = 0.25 * (double)q[g * D + c] * (double)k[i * D + c];
                        s[i] += x;
                        abs += fabs(x);
                        if (centre && k[i * D + c] != 0.0f) k2 += pow((double)k[i * D + c] - (double)centre[c], 2);
                    }
                    max = fmax(max, s[i]);
                    e = fmax(e, D * 0x1p-24 * 4.0 * abs + (centre ? sqrt((double)D) / 254.0 * sqrt(q2 * k2) : 0.0));
                }
                for (size_t i = 0; i < n; i++) sum += s[i] = exp(s[i] - max);
                for (size_t c = 0; c < D; c++) {
                    double want = 0.0;
                    for (size_t i = 0; i < n; i++) want += s[i] / sum * (double)v[i * D + c];
                    if (!(fabs(want - (double)again[g * D + c]) <= 1.2 * expm1(2.0 * e) + 2e-5))
                        fail_msg("keys %s, case %d, head %zu, channel %zu, weights kept: %g, not %g", pd_kv_type_name((pd_kv_type)key),
                                 packs, g, c, (double)again[g * D + c], want);
                    if (!(fabs(want - (double)out[g * D + c]) <= 1.2 * expm1(2.0 * e) + 2e-5))
                        fail_msg("keys %s, case %d, head %zu, channel %zu: %g, not %g (within %g)", pd_kv_type_name((pd_kv_type)key),
                                 at, g, c, (double)out[g * D + c], want, 1.2 * expm1(2.0 * e));
                }
                off[h] += expm1(4.0 * e) + 2e-5;
                for (size_t i = 0; i < n; i++) {
                    const double weight = s[i] / sum;
                    looked[h][0][i] += weight / 2.0;
                    looked[h][1][i] += weight;
                    looked[h][2][i] += weight * weight;
                }
                for (size_t t = 0; t < 3 && g % 2; t++)
                    for (size_t i = 0; i < n; i++) {
                        const double got = (double)stepped[t].row[h][i] - 1.0;
                        if (!(fabs(got - looked[h][t][i]) <= off[h]))
                            fail_msg("keys %s, case %d, head %zu, slot %zu, tag %zu: %g, not %g (within %g)", pd_kv_type_name((pd_kv_type)key),
                                     packs, h, i, t, got, looked[h][t][i], off[h]);
                    }
                if (g % 2) continue;
                for (size_t i = 0; i < n; i++) { /* of one query head, at most what both were given */
                    const double tag = (double)tags.row[h][i];
                    assert_true(2.0 * tag >= s[i] / sum * (1.0 - 1e-3) - 1e-6);
                }
            }
            for (size_t t = 0; t < 3; t++) pd_tags_done(&stepped[t]);
            pd_tags_done(&tags);
            pd_attn_done(&attn);
            close_world(w);
        }
    }
    pd_workers_close(workers);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sections_agree_with_plain_arrays),
        cmocka_unit_test(widths_are_few),
        cmocka_unit_test(a_packed_pool_that_is_left_holds_nothing),
        cmocka_unit_test(resident_memory_falls_with_the_channels),
        cmocka_unit_test(attention_sees_both_sections),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
