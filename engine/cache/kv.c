/* SPDX-License-Identifier: Apache-2.0 */
/* The ragged paged cache of one sequence (see kv.h). */
#include "engine/cache/kv.h"

#include "engine/base/num.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { N = PD_PAGE_TOKENS, ROW_MAX = 512 };

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

static void give_pages(pd_kv *kv, pd_kv_head *kh, uint32_t from, uint32_t to) {
    for (uint32_t i = from; i < to; i++) pd_kvpool_give(kv->pool, kh->page[i]);
    kv->n_pages -= to - from;
}

void pd_kv_done(pd_kv *kv) {
    if (kv->head) {
        for (size_t i = 0; i < kv->n_layer * kv->n_head_kv; i++)
            give_pages(kv, &kv->head[i], 0, kv->head[i].n_page);
        assert(kv->n_pages == 0);
    }
    free(kv->head);
    free(kv->page_list);
    free(kv->centre);
    pd_bounds_done(&kv->bounds);
    *kv = (pd_kv){0};
}

static pd_status add_page(pd_kv *kv, pd_kv_head *kh, pd_err *err) {
    if (kh->n_page == kh->cap_page || !pd_kvpool_take(kv->pool, PD_PAGE_SEQ, &kh->page[kh->n_page]))
        return pd_fail(err, PD_EINTERNAL, NULL, "the KV pool ran out of pages that admission had promised");
    kh->n_page++;
    kv->n_pages++;
    if (kv->n_pages > kv->peak_pages) kv->peak_pages = kv->n_pages;
    return PD_OK;
}

/* ---- bounds ---- */

pd_status pd_kv_bound(pd_kv *kv, size_t first_layer, const uint32_t *window, pd_err *err) {
    uint32_t *cap = calloc(kv->n_layer * kv->n_head_kv, sizeof *cap);
    if (!cap) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the bounds of a sequence's pages");
    for (size_t i = first_layer * kv->n_head_kv; i < kv->n_layer * kv->n_head_kv; i++)
        if (!window[i / kv->n_head_kv]) cap[i] = kv->head[i].cap_page;
    const pd_status rc = pd_bounds_init(&kv->bounds, kv->n_layer * kv->n_head_kv, kv->head_dim, cap, err);
    free(cap);
    return rc;
}

/* Slots [slot, slot + n) of a page were written. */
static pd_status note_keys(pd_kv *kv, size_t layer, size_t head, size_t page, size_t slot, size_t n, pd_err *err) {
    const pd_kv_head *kh = pd_kv_at(kv, layer, head);
    const size_t i = layer * kv->n_head_kv + head, d = kv->head_dim;
    if (!pd_bounds_has(&kv->bounds, i)) return PD_OK;
    float k[N * ROW_MAX];
    assert(d <= ROW_MAX);
    for (size_t s = 0; s < n; s++)
        pd_codec_read(&kv->codec, kv->kern, pd_kvpool_page(kv->pool, kh->page[page]), d, slot + s, k + s * d, NULL, NULL);
    return pd_bounds_add(&kv->bounds, kv->kern, i, page, slot == 0, k, n, err);
}

pd_status pd_kv_rebound(pd_kv *kv, size_t layer, size_t head, size_t page, pd_err *err) {
    const pd_kv_head *kh = pd_kv_at(kv, layer, head);
    const size_t i = layer * kv->n_head_kv + head;
    if (!pd_bounds_has(&kv->bounds, i)) return PD_OK;
    pd_bounds_cut(&kv->bounds, i, kh->n_page);
    for (size_t p = page; p < kh->n_page; p++) PD_TRY(note_keys(kv, layer, head, p, 0, pd_min_size(N, kh->n - p * N), err));
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
    for (size_t i = 0; i < n;) {
        const size_t at = (size_t)kh->first + kh->n, slot = at % N;
        if (at == (size_t)kh->n_page * N) PD_TRY(add_page(kv, kh, err));
        const uint32_t id = kh->page[at / N];
        void *page = pd_kvpool_page(kv->pool, id);
        int32_t *page_pos = pd_kvpool_pos(kv->pool, id);
        size_t run = pd_min_size(N - slot, n - i);
        if (idx) run = 1;
        const size_t row = idx ? idx[i] : i;
        pd_codec_write(&kv->codec, kv->kern, page, kv->head_dim, slot, run, k + row * stride, v + row * stride, stride,
                       pd_kv_centre(kv, layer, head));
        memcpy(page_pos + slot, pos + row, run * sizeof *pos);
        PD_TRY(note_keys(kv, layer, head, at / N, slot, run, err));
        kh->n += (uint32_t)run;
        i += run;
    }
    return PD_OK;
}

void pd_kv_read(const pd_kv *kv, size_t layer, size_t head, float *k, float *v, int32_t *pos) {
    const pd_kv_head *kh = pd_kv_at(kv, layer, head);
    for (size_t i = 0; i < kh->n; i++) {
        const size_t at = kh->first + i;
        const uint32_t id = kh->page[at / N];
        if (k || v)
            pd_codec_read(&kv->codec, kv->kern, pd_kvpool_page(kv->pool, id), kv->head_dim, at % N,
                          k ? k + i * kv->head_dim : NULL, v ? v + i * kv->head_dim : NULL,
                          pd_kv_centre(kv, layer, head));
        if (pos) pos[i] = pd_kvpool_pos(kv->pool, id)[at % N];
    }
}

void pd_kv_keep(pd_kv *kv, size_t layer, size_t head, const uint32_t *keep, size_t n) {
    pd_kv_head *kh = pd_kv_at(kv, layer, head);
    assert(n >= 1 && n <= kh->n && keep[n - 1] < kh->n);
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
    size_t same = 0; /* pages whose slots stand where they stood */
    while ((same + 1) * N <= n && keep[(same + 1) * N - 1] == (same + 1) * N - 1) same++;
    (void)pd_kv_rebound(kv, layer, head, same, NULL); /* fewer pages: no allocation */
}

void pd_kv_drop_front(pd_kv *kv, size_t layer, size_t head, size_t n) {
    pd_kv_head *kh = pd_kv_at(kv, layer, head);
    assert(n <= kh->n && !pd_bounds_has(&kv->bounds, layer * kv->n_head_kv + head)); /* windows alone move on */
    kh->first += (uint32_t)n;
    kh->n -= (uint32_t)n;
    const uint32_t dead = kh->n ? kh->first / N : kh->n_page;
    if (kh->n == 0) kh->first = 0;
    if (!dead) return;
    give_pages(kv, kh, 0, dead);
    memmove(kh->page, kh->page + dead, (kh->n_page - dead) * sizeof *kh->page);
    kh->n_page -= dead;
    kh->first %= N;
}

pd_status pd_kv_copy(pd_kv *kv, const pd_kv *from, pd_err *err) {
    if (kv->centre) memcpy(kv->centre, from->centre, pd_kv_centre_bytes(kv));
    for (size_t i = 0; i < kv->n_layer * kv->n_head_kv; i++) {
        const pd_kv_head *src = &from->head[i];
        pd_kv_head *kh = &kv->head[i];
        assert(kh->n_page == 0);
        for (uint32_t p = 0; p < src->n_page; p++) {
            PD_TRY(add_page(kv, kh, err));
            memcpy(pd_kvpool_page(kv->pool, kh->page[p]), pd_kvpool_page(from->pool, src->page[p]), kv->pool->page_bytes);
            memcpy(pd_kvpool_pos(kv->pool, kh->page[p]), pd_kvpool_pos(from->pool, src->page[p]), N * sizeof(int32_t));
        }
        kh->first = src->first;
        kh->n = src->n;
    }
    return pd_bounds_copy(&kv->bounds, &from->bounds, err);
}
