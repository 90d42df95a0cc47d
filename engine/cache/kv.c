/* SPDX-License-Identifier: Apache-2.0 */
/* The ragged paged cache of one sequence (see kv.h). */
#include "engine/cache/kv.h"

#include "engine/base/num.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { N = PD_PAGE_TOKENS };

pd_status pd_kv_init(pd_kv *kv, pd_kvpool *pool, const pd_codec *codec, const pd_kernels *kern,
                     size_t n_layer, size_t n_head_kv, size_t head_dim, const size_t *max_slots,
                     pd_err *err) {
    *kv = (pd_kv){.pool = pool, .codec = *codec, .kern = kern,
                  .n_layer = n_layer, .n_head_kv = n_head_kv, .head_dim = head_dim};
    size_t total = 0;
    for (size_t l = 0; l < n_layer; l++) /* + 1: a window may straddle one page more */
        total += n_head_kv * (pd_div_up(max_slots[l], N) + 1);
    kv->head = calloc(n_layer * n_head_kv, sizeof *kv->head);
    kv->page_list = malloc(total * sizeof *kv->page_list);
    const bool centred = pd_kv_type_group(codec->key) > 1;
    if (centred) kv->centre = calloc(n_layer * n_head_kv * head_dim, sizeof *kv->centre);
    if (!kv->head || !kv->page_list || (centred && !kv->centre)) {
        pd_kv_done(kv);
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the page lists of a sequence");
    }
    uint32_t *next = kv->page_list;
    for (size_t l = 0; l < n_layer; l++) {
        for (size_t h = 0; h < n_head_kv; h++) {
            pd_kv_head *kh = pd_kv_at(kv, l, h);
            kh->page = next;
            kh->cap_page = (uint32_t)(pd_div_up(max_slots[l], N) + 1);
            next += kh->cap_page;
        }
    }
    return PD_OK;
}

pd_status pd_kv_hold_recent(pd_kv *kv, pd_kvpool *pool, const pd_codec *codec, pd_err *err) {
    assert(kv->n_pages == 0);
    kv->recent_tmp = malloc(PD_KV_RECENT * pool->page_bytes + 2 * kv->head_dim * sizeof(float));
    if (!kv->recent_tmp) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the page lists of a sequence");
    kv->recent_pool = pool;
    kv->recent_codec = *codec;
    return PD_OK;
}

static uint32_t *ring(pd_kv_head *kh, uint32_t page) {
    return &kh->recent[(kh->turn + page) % PD_KV_RECENT];
}

/* Ring pages [from, to) go back. */
static void give_recent(pd_kv *kv, pd_kv_head *kh, uint32_t from, uint32_t to) {
    for (uint32_t p = from; p < to; p++) pd_kvpool_give(kv->recent_pool, *ring(kh, p));
    if (from < to) kv->n_recent -= to - from;
}

static void give_pages(pd_kv *kv, pd_kv_head *kh, uint32_t from, uint32_t to) {
    for (uint32_t i = from; i < to; i++) pd_kvpool_give(kv->pool, kh->page[i]);
    kv->n_pages -= to - from;
}

void pd_kv_done(pd_kv *kv) {
    if (kv->head) {
        for (size_t i = 0; i < kv->n_layer * kv->n_head_kv; i++) {
            give_recent(kv, &kv->head[i], pd_kv_recent_from(kv, &kv->head[i]), kv->head[i].n_page);
            give_pages(kv, &kv->head[i], 0, kv->head[i].n_page);
        }
        assert(kv->n_pages == 0 && kv->n_recent == 0);
    }
    free(kv->recent_tmp);
    free(kv->head);
    free(kv->page_list);
    free(kv->centre);
    *kv = (pd_kv){0};
}

static pd_status add_page(pd_kv *kv, pd_kv_head *kh, pd_err *err) {
    const bool recent = kv->recent_pool && kh->n_page < PD_KV_RECENT; /* else the oldest of the ring makes room */
    if (kh->n_page == kh->cap_page || (recent && !pd_kvpool_take(kv->recent_pool, PD_PAGE_SEQ, ring(kh, kh->n_page))))
        return pd_fail(err, PD_EINTERNAL, NULL, "the KV pool ran out of pages that admission had promised");
    if (!pd_kvpool_take(kv->pool, PD_PAGE_SEQ, &kh->page[kh->n_page])) {
        if (recent) pd_kvpool_give(kv->recent_pool, *ring(kh, kh->n_page));
        return pd_fail(err, PD_EINTERNAL, NULL, "the KV pool ran out of pages that admission had promised");
    }
    kv->n_recent += recent;
    kh->n_page++;
    kv->n_pages++;
    if (kv->n_pages > kv->peak_pages) kv->peak_pages = kv->n_pages;
    return PD_OK;
}

enum { CENTRE_ROWS = 16 }; /* fewer say little about those to come */

/* A head without slots gets rows: their mean is its centre. */
static void set_centre(pd_kv *kv, size_t layer, size_t head, const float *k, size_t stride, const uint32_t *idx, size_t n) {
    float *centre = kv->centre + (layer * kv->n_head_kv + head) * kv->head_dim;
    memset(centre, 0, kv->head_dim * sizeof *centre);
    for (size_t i = 0; i < n && n >= CENTRE_ROWS; i++)
        kv->kern->axpy_f32(1.0f / (float)n, k + (idx ? idx[i] : i) * stride, centre, kv->head_dim);
}

pd_status pd_kv_append(pd_kv *kv, size_t layer, size_t head, const float *k, const float *v,
                       size_t stride, const int32_t *pos, const uint32_t *idx, size_t n, pd_err *err) {
    pd_kv_head *kh = pd_kv_at(kv, layer, head);
    if (kv->centre && kh->n_page == 0) set_centre(kv, layer, head, k, stride, idx, n);
    const float *centre = pd_kv_centre(kv, layer, head);
    const size_t pages = pd_div_up((size_t)kh->first + kh->n + n, N); /* of the head, when all is in */
    for (size_t i = 0; i < n;) {
        const size_t at = (size_t)kh->first + kh->n, slot = at % N;
        if (at == (size_t)kh->n_page * N) PD_TRY(add_page(kv, kh, err));
        const uint32_t id = kh->page[at / N];
        void *page = pd_kvpool_page(kv->pool, id);
        int32_t *page_pos = pd_kvpool_pos(kv->pool, id);
        size_t run = pd_min_size(N - slot, n - i);
        if (idx) run = 1;
        const size_t row = idx ? idx[i] : i;
        pd_codec_write(&kv->codec, kv->kern, page, kv->head_dim, slot, run, k + row * stride, v + row * stride, stride, centre);
        if (kv->recent_pool && at / N + PD_KV_RECENT >= pages)
            pd_codec_write(&kv->recent_codec, kv->kern, pd_kvpool_page(kv->recent_pool, *ring(kh, (uint32_t)(at / N))), kv->head_dim,
                           slot, run, k + row * stride, v + row * stride, stride, centre);
        memcpy(page_pos + slot, pos + row, run * sizeof *pos);
        kh->n += (uint32_t)run;
        i += run;
    }
    return PD_OK;
}

void pd_kv_row(const pd_kv *kv, size_t layer, size_t head, size_t i, float *k, float *v, int32_t *pos) {
    const pd_kv_head *kh = pd_kv_at(kv, layer, head);
    const size_t at = kh->first + i;
    assert(i < kh->n);
    if (k || v) {
        const pd_codec *codec;
        const void *page = pd_kv_page(kv, kh, (uint32_t)(at / N), &codec);
        pd_codec_read(codec, kv->kern, page, kv->head_dim, at % N, k, v, pd_kv_centre(kv, layer, head));
    }
    if (pos) *pos = pd_kvpool_pos(kv->pool, kh->page[at / N])[at % N];
}

void pd_kv_set_row(pd_kv *kv, size_t layer, size_t head, size_t i, const float *k, const float *v) {
    pd_kv_head *kh = pd_kv_at(kv, layer, head);
    const size_t at = kh->first + i, d = kv->head_dim;
    const uint32_t page = (uint32_t)(at / N);
    const float *centre = pd_kv_centre(kv, layer, head);
    assert(i < kh->n);
    pd_codec_write(&kv->codec, kv->kern, pd_kvpool_page(kv->pool, kh->page[page]), d, at % N, 1, k, v, d, centre);
    if (page >= pd_kv_recent_from(kv, kh))
        pd_codec_write(&kv->recent_codec, kv->kern, pd_kvpool_page(kv->recent_pool, *ring(kh, page)), d, at % N, 1, k, v, d, centre);
}

void pd_kv_read(const pd_kv *kv, size_t layer, size_t head, float *k, float *v, int32_t *pos) {
    const pd_kv_head *kh = pd_kv_at(kv, layer, head);
    for (size_t i = 0; i < kh->n; i++)
        pd_kv_row(kv, layer, head, i, k ? k + i * kv->head_dim : NULL, v ? v + i * kv->head_dim : NULL, pos ? pos + i : NULL);
}

/* The ring of a head whose page lists are about to be compacted to `keep`: slots that it
 * holds move as bits, older ones are read from their pages. */
static void keep_recent(pd_kv *kv, size_t layer, size_t head, const uint32_t *keep, size_t n) {
    pd_kv_head *kh = pd_kv_at(kv, layer, head);
    const size_t bytes = kv->recent_pool->page_bytes, d = kv->head_dim;
    const uint32_t held = pd_kv_recent_from(kv, kh), n_page = (uint32_t)pd_div_up(n, N);
    uint8_t *old = kv->recent_tmp;
    float *k = (float *)(old + PD_KV_RECENT * bytes), *v = k + d;
    for (uint32_t p = held; p < kh->n_page; p++)
        memcpy(old + p % PD_KV_RECENT * bytes, pd_kvpool_page(kv->recent_pool, *ring(kh, p)), bytes);
    for (size_t i = n_page > PD_KV_RECENT ? (size_t)(n_page - PD_KV_RECENT) * N : 0; i < n; i++) {
        const size_t from = kh->first + keep[i];
        void *to = pd_kvpool_page(kv->recent_pool, *ring(kh, (uint32_t)(i / N)));
        if (from / N >= held) {
            pd_codec_move(&kv->recent_codec, old + from / N % PD_KV_RECENT * bytes, from % N, to, i % N, d);
        } else {
            const float *centre = pd_kv_centre(kv, layer, head);
            pd_codec_read(&kv->codec, kv->kern, pd_kvpool_page(kv->pool, kh->page[from / N]), d, from % N, k, v, centre);
            pd_codec_write(&kv->recent_codec, kv->kern, to, d, i % N, 1, k, v, d, centre);
        }
    }
    const uint32_t before = kh->n_page < PD_KV_RECENT ? kh->n_page : PD_KV_RECENT;
    give_recent(kv, kh, n_page, before);
}

void pd_kv_keep(pd_kv *kv, size_t layer, size_t head, const uint32_t *keep, size_t n) {
    pd_kv_head *kh = pd_kv_at(kv, layer, head);
    assert(n >= 1 && n <= kh->n && keep[n - 1] < kh->n);
    if (kv->recent_pool) keep_recent(kv, layer, head, keep, n);
    for (size_t i = 0; i < n; i++) { /* ascending: target never overtakes source */
        const size_t from = kh->first + keep[i];
        if (from == i) continue;
        const uint32_t src = kh->page[from / N], dst = kh->page[i / N];
        pd_codec_move(&kv->codec, pd_kvpool_page(kv->pool, src), from % N, pd_kvpool_page(kv->pool, dst), i % N, kv->head_dim);
        pd_kvpool_pos(kv->pool, dst)[i % N] = pd_kvpool_pos(kv->pool, src)[from % N];
    }
    const uint32_t n_page = (uint32_t)pd_div_up(n, N);
    give_pages(kv, kh, n_page, kh->n_page);
    kh->n_page = n_page;
    kh->first = 0;
    kh->n = (uint32_t)n;
}

void pd_kv_drop_front(pd_kv *kv, size_t layer, size_t head, size_t n) {
    pd_kv_head *kh = pd_kv_at(kv, layer, head);
    assert(n <= kh->n);
    kh->first += (uint32_t)n;
    kh->n -= (uint32_t)n;
    const uint32_t dead = kh->n ? kh->first / N : kh->n_page;
    if (kh->n == 0) kh->first = 0;
    if (!dead) return;
    if (kv->recent_pool) {
        give_recent(kv, kh, pd_kv_recent_from(kv, kh), dead);
        kh->turn = (kh->turn + dead) % PD_KV_RECENT;
    }
    give_pages(kv, kh, 0, dead);
    memmove(kh->page, kh->page + dead, (kh->n_page - dead) * sizeof *kh->page);
    kh->n_page -= dead;
    kh->first %= N;
}

void pd_kv_drop_back(pd_kv *kv, size_t layer, size_t head, size_t n) {
    pd_kv_head *kh = pd_kv_at(kv, layer, head);
    assert(n <= kh->n);
    kh->n -= (uint32_t)n;
    if (kh->n == 0) kh->first = 0;
    const uint32_t n_page = (uint32_t)pd_div_up((size_t)kh->first + kh->n, N);
    assert(!kv->recent_pool || n_page == kh->n_page);
    give_pages(kv, kh, n_page, kh->n_page);
    kh->n_page = n_page;
}

pd_status pd_kv_copy(pd_kv *kv, const pd_kv *from, pd_err *err) {
    if (kv->centre) memcpy(kv->centre, from->centre, pd_kv_centre_bytes(kv));
    for (size_t i = 0; i < kv->n_layer * kv->n_head_kv; i++) {
        const pd_kv_head *src = &from->head[i];
        pd_kv_head *kh = &kv->head[i];
        assert(kh->n_page == 0 && !kv->recent_pool == !from->recent_pool);
        kh->turn = src->turn;
        for (uint32_t p = 0; p < src->n_page; p++) {
            PD_TRY(add_page(kv, kh, err));
            memcpy(pd_kvpool_page(kv->pool, kh->page[p]), pd_kvpool_page(from->pool, src->page[p]), kv->pool->page_bytes);
            memcpy(pd_kvpool_pos(kv->pool, kh->page[p]), pd_kvpool_pos(from->pool, src->page[p]), N * sizeof(int32_t));
        }
        for (uint32_t p = pd_kv_recent_from(kv, kh); p < kh->n_page; p++)
            memcpy(pd_kvpool_page(kv->recent_pool, *ring(kh, p)),
                   pd_kvpool_page(from->recent_pool, src->recent[(src->turn + p) % PD_KV_RECENT]), kv->recent_pool->page_bytes);
        kh->first = src->first;
        kh->n = src->n;
    }
    return PD_OK;
}
