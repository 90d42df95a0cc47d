/* SPDX-License-Identifier: Apache-2.0 */
/* The ragged paged cache of one sequence (see kv.h). */
#include "engine/cache/kv_int.h"

#include "engine/base/num.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { N = PD_PAGE_TOKENS, ROW_MAX = PD__KV_ROW_MAX };

pd_status pd_kv_init(pd_kv *kv, pd_kvpool *pool, const pd_codec *codec, const pd_kernels *kern,
                     size_t n_layer, size_t n_head_kv, size_t head_dim, const size_t *max_slots,
                     pd_err *err) {
    *kv = (pd_kv){.pool = pool, .codec = *codec, .kern = kern,
                  .n_layer = n_layer, .n_head_kv = n_head_kv, .head_dim = head_dim};
    size_t total = 0;
    for (size_t l = 0; l < n_layer; l++) /* + 2: a window may straddle one page more, and so may the two sections */
        total += n_head_kv * (pd_div_up(max_slots[l], N) + 2);
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
            kh->cap_page = (uint32_t)(pd_div_up(max_slots[l], N) + 2);
            next += kh->cap_page;
        }
    }
    return PD_OK;
}

/* ---- pages ---- */

pd_status pd_kv_hold_recent(pd_kv *kv, pd_kvpool *pool, const pd_codec *codec, pd_err *err) {
    assert(kv->n_pages == 0);
    kv->recent_tmp = malloc(PD_KV_RECENT * pool->page_bytes + 2 * kv->head_dim * sizeof(float));
    if (!kv->recent_tmp) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the page lists of a sequence");
    kv->recent_pool = pool;
    kv->recent_codec = *codec;
    return PD_OK;
}

/* Where page p of the list, an open one, is held again. */
static uint32_t *ring(pd_kv_head *kh, uint32_t p) {
    return &kh->recent[(kh->turn + p - kh->n_pack_page) % PD_KV_RECENT];
}

/* What the ring has of the pages [from, to) of the list goes back. */
static void give_recent(pd_kv *kv, pd_kv_head *kh, uint32_t from, uint32_t to) {
    for (uint32_t p = from; p < to; p++) pd_kvpool_give(kv->recent_pool, *ring(kh, p));
    if (from < to) kv->n_recent -= to - from;
}

/* The first n open pages are about to go. */
static void turn_ring(pd_kv *kv, pd_kv_head *kh, uint32_t n) {
    if (!kv->recent_pool) return;
    give_recent(kv, kh, pd_kv_recent_from(kv, kh), kh->n_pack_page + n);
    kh->turn = (kh->turn + n) % PD_KV_RECENT;
}

static pd_kvpool *pool_of(const pd_kv *kv, const pd_kv_head *kh, bool packed) {
    return packed ? pd_kv_pack_pool(kv, kh) : kv->pool;
}

/* Pages [from, to) of the list, all of one section, go back; the list closes up. */
static void give_pages(pd_kv *kv, pd_kv_head *kh, uint32_t from, uint32_t to) {
    const bool packed = from < kh->n_pack_page;
    if (from == to) return; /* a cache half made has no list */
    for (uint32_t i = from; i < to; i++) pd_kvpool_give(pool_of(kv, kh, packed), kh->page[i]);
    memmove(kh->page + from, kh->page + to, (kh->n_page - to) * sizeof *kh->page);
    kh->n_page -= to - from;
    if (packed) kh->n_pack_page -= to - from;
    *(packed ? &kv->n_pack_pages : &kv->n_pages) -= to - from;
    if (packed) kv->pack_bytes -= (to - from) * pool_of(kv, kh, true)->page_bytes;
}

/* One more page behind those of its section. */
static pd_status add_page(pd_kv *kv, pd_kv_head *kh, bool packed, pd_err *err) {
    uint32_t page;
    /* one of the first open pages is held again beside the others; a later one in place of the oldest */
    const bool recent = kv->recent_pool && !packed && kh->n_page - kh->n_pack_page < PD_KV_RECENT;
    bool ok = kh->n_page < kh->cap_page && pd_kvpool_take(pool_of(kv, kh, packed), PD_PAGE_SEQ, &page);
    if (ok && recent && !pd_kvpool_take(kv->recent_pool, PD_PAGE_SEQ, ring(kh, kh->n_page))) {
        pd_kvpool_give(pool_of(kv, kh, packed), page);
        ok = false;
    }
    if (!ok) return pd_fail(err, PD_EINTERNAL, NULL, "the KV pool ran out of pages that admission had promised");
    kv->n_recent += recent;
    const uint32_t at = packed ? kh->n_pack_page : kh->n_page;
    memmove(kh->page + at + 1, kh->page + at, (kh->n_page - at) * sizeof *kh->page);
    kh->page[at] = page;
    kh->n_page++;
    kh->n_pack_page += packed;
    (*(packed ? &kv->n_pack_pages : &kv->n_pages))++;
    if (packed) kv->pack_bytes += pool_of(kv, kh, true)->page_bytes;
    kv->peak_pages = pd_max_size(kv->peak_pages, kv->n_pages + kv->n_pack_pages);
    return PD_OK;
}

void pd_kv_done(pd_kv *kv) {
    for (size_t i = 0; kv->head && i < kv->n_layer * kv->n_head_kv; i++) {
        pd_kv_head *kh = &kv->head[i];
        give_recent(kv, kh, pd_kv_recent_from(kv, kh), kh->n_page);
        give_pages(kv, kh, kh->n_pack_page, kh->n_page);
        give_pages(kv, kh, 0, kh->n_page);
    }
    assert(kv->n_pages == 0 && kv->n_pack_pages == 0 && kv->n_recent == 0);
    /* Few requests share a packed kind: its free memory waits for nobody. */
    for (size_t l = 0; l < (kv->pack.layer ? kv->n_layer : 1); l++) {
        pd_kvpool *pool = kv->pack.layer ? kv->pack.layer[l] : kv->pack.pool;
        if (pool && pool->n_seq + pool->n_store == 0) pd_kvpool_trim(pool, 0);
    }
    free(kv->recent_tmp);
    free(kv->head);
    free(kv->page_list);
    free(kv->centre);
    free(kv->pack.channel);
    free(kv->pack.layer);
    free(kv->pack.latent);
    free(kv->pack.joint);
    free(kv->pack.joint_tmp);
    free(kv->pack.sink);
    free(kv->pack.sink_v);
    pd_bounds_done(&kv->bounds);
    pd_index_done(&kv->index);
    *kv = (pd_kv){0};
}

/* ---- the packed kind ---- */

size_t pd_kv_pack_width(pd_kv_type key, size_t n_channel, size_t head_dim) {
    const size_t step = pd_max_size(pd_div_up(head_dim, 16), pd_kv_type_group(key));
    return pd_min_size(head_dim, pd_max_size(1, pd_div_up(n_channel, step)) * step);
}

pd_status pd_kv_set_pack(pd_kv *kv, pd_kvpool *pool, size_t n_channel, pd_err *err) {
    const size_t width = pd_kv_pack_width(kv->codec.key, n_channel, kv->head_dim);
    assert(kv->n_pages == 0 && !kv->pack.pool && kv->head_dim <= ROW_MAX && n_channel <= width);
    uint32_t *channel = calloc(kv->n_layer * kv->n_head_kv * n_channel + 1, sizeof *channel);
    if (!channel) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the channels of packed keys");
    kv->pack = (pd_kv_pack){.codec = kv->codec, .pool = pool, .k_dim = width, .n_channel = n_channel, .channel = channel};
    return PD_OK;
}

size_t pd__kv_sink_floats(const pd_kv *kv) {
    return kv->n_layer * kv->n_head_kv * kv->pack.n_sink * kv->head_dim;
}

pd_status pd_kv_set_latents(pd_kv *kv, const pd_codec *codec, pd_kvpool *const *pool, const pd_latent *latent, size_t n_sink, pd_err *err) {
    const size_t heads = kv->n_layer * kv->n_head_kv;
    assert(kv->n_pages == 0 && !kv->pack.pool && !kv->centre && kv->head_dim <= ROW_MAX);
    kv->pack = (pd_kv_pack){.codec = *codec, .n_sink = n_sink};
    kv->pack.layer = calloc(kv->n_layer, sizeof(pd_kvpool *));
    kv->pack.latent = malloc(heads * sizeof *latent);
    kv->pack.sink = calloc(pd__kv_sink_floats(kv) + 1, sizeof *kv->pack.sink);
    bool values = false;
    for (size_t i = 0; i < heads; i++) values = values || latent[i].value;
    if (values) kv->pack.sink_v = calloc(pd__kv_sink_floats(kv) + 1, sizeof *kv->pack.sink_v);
    if (!kv->pack.layer || !kv->pack.latent || !kv->pack.sink || (values && !kv->pack.sink_v))
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the bases of packed keys"); /* pd_kv_done frees */
    memcpy(kv->pack.layer, pool, kv->n_layer * sizeof(pd_kvpool *));
    memcpy(kv->pack.latent, latent, heads * sizeof *latent);
    return PD_OK;
}

void pd_kv_set_channels(pd_kv *kv, size_t layer, size_t head, const uint32_t *channel) {
    assert(pd_kv_at(kv, layer, head)->n_pack == 0);
    memcpy(kv->pack.channel + (layer * kv->n_head_kv + head) * kv->pack.n_channel, channel,
           kv->pack.n_channel * sizeof *channel);
}

/* Where the values of a packed page begin. */
static void *packed_v(const pd_kv *kv, const pd_kv_head *kh, void *page) {
    return (char *)page + kv->pack.codec.k->bytes(pd_kv_pack_dim(kv, kh));
}

/* A key's row in a packed page; as a latent, and whole if it is a sink's. */
static void project(const pd_kv *kv, size_t layer, size_t head, const float *k, int32_t pos, float *row) {
    float tmp[ROW_MAX];
    pd_latent_project(pd_kv_latent(kv, layer, head), kv->kern, k, pos, row, tmp);
    if (pd_latent_has_keys(pd_kv_latent(kv, layer, head)) && (size_t)pos < kv->pack.n_sink)
        memcpy(pd_kv_sinks(kv, layer, head) + (size_t)pos * kv->head_dim, k, kv->head_dim * sizeof *k);
}

static void choose(const pd_kv *kv, size_t layer, size_t head, const float *k, float *row) {
    const uint32_t *channel = pd_kv_channels(kv, layer, head);
    const float *centre = pd_kv_centre(kv, layer, head);
    for (size_t c = 0; c < kv->pack.n_channel; c++) row[c] = k[channel[c]] - (centre ? centre[channel[c]] : 0.0f);
}

/* A value into a packed page; a sink's that would be projected lies beside it, and is 0 in it. */
static void write_packed_v(const pd_kv *kv, size_t layer, size_t head, void *page, size_t slot, const float *v, int32_t pos) {
    const pd_kv_head *kh = pd_kv_at(kv, layer, head);
    const pd_latent *l = kv->pack.latent ? pd_kv_latent(kv, layer, head) : NULL;
    float row[ROW_MAX] = {0};
    if (l && l->value && (size_t)pos < kv->pack.n_sink)
        memcpy(pd_kv_sink_values(kv, layer, head) + (size_t)pos * kv->head_dim, v, kv->head_dim * sizeof *v);
    else if (l && l->value)
        pd_latent_fold(l, kv->kern, v, row);
    const size_t v_dim = pd_kv_pack_v_dim(kv, kh);
    kv->codec.v->write(kv->kern, packed_v(kv, kh, page), v_dim, slot, 1, l && l->value ? row : v, v_dim);
}

static void write_packed(const pd_kv *kv, size_t layer, size_t head, void *page, size_t slot, const float *row, const float *v,
                         int32_t pos) {
    const pd_kv_head *kh = pd_kv_at(kv, layer, head);
    const size_t k_dim = pd_kv_pack_dim(kv, kh);
    kv->pack.codec.k->write(kv->kern, page, k_dim, slot, 1, row, k_dim);
    write_packed_v(kv, layer, head, page, slot, v, pos);
}

static void rebuild(const pd_kv *kv, size_t layer, size_t head, const float *row, int32_t pos, float *k) {
    const pd_joint *joint = pd_kv_joint(kv, layer);
    if ((size_t)pos < kv->pack.n_sink && (joint || pd_latent_has_keys(pd_kv_latent(kv, layer, head))))
        memcpy(k, pd_kv_sinks(kv, layer, head) + (size_t)pos * kv->head_dim, kv->head_dim * sizeof *k);
    else if (joint)
        pd_joint_rebuild_head(joint, kv->kern, head, row, pos, k);
    else
        pd_latent_rebuild(pd_kv_latent(kv, layer, head), kv->kern, row, pos, k);
}

static void spread(const pd_kv *kv, size_t layer, size_t head, const float *row, float *k) {
    const uint32_t *channel = pd_kv_channels(kv, layer, head);
    const float *centre = pd_kv_centre(kv, layer, head);
    memset(k, 0, kv->head_dim * sizeof *k);
    for (size_t c = 0; c < kv->pack.n_channel; c++) k[channel[c]] = row[c] + (centre ? centre[channel[c]] : 0.0f);
}

static void read_packed_v(const pd_kv *kv, size_t layer, size_t head, void *page, size_t slot, int32_t pos, float *v) {
    const pd_kv_head *kh = pd_kv_at(kv, layer, head);
    const pd_latent *l = kv->pack.latent ? pd_kv_latent(kv, layer, head) : NULL;
    const bool folded = l && l->value;
    float row[ROW_MAX];
    if (folded && (size_t)pos < kv->pack.n_sink) {
        memcpy(v, pd_kv_sink_values(kv, layer, head) + (size_t)pos * kv->head_dim, kv->head_dim * sizeof *v);
        return;
    }
    kv->codec.v->read(kv->kern, packed_v(kv, kh, page), pd_kv_pack_v_dim(kv, kh), slot, folded ? row : v);
    if (folded) pd_latent_unfold(l, kv->kern, row, v);
}

/* Slot `slot` of page p of the list. */
static void read_packed(const pd_kv *kv, size_t layer, size_t head, uint32_t p, size_t slot, float *k, float *v) {
    const pd_kv_head *kh = pd_kv_at(kv, layer, head);
    const pd_kvpool *pool = pd_kv_pack_pool(kv, kh);
    void *page = pd_kvpool_page(pool, kh->page[p]);
    if (k) {
        float own[ROW_MAX], *row = own;
        if (kv->pack.joint)
            row = pd__kv_joint_row(kv, layer, p, slot);
        else
            kv->pack.codec.k->read(kv->kern, page, pd_kv_pack_dim(kv, kh), slot, row);
        if (kv->pack.latent || kv->pack.joint)
            rebuild(kv, layer, head, row, pd_kvpool_pos(pool, kh->page[p])[slot], k);
        else
            spread(kv, layer, head, row, k);
    }
    if (v) read_packed_v(kv, layer, head, page, slot, pd_kvpool_pos(pool, kh->page[p])[slot], v);
}

static void move_packed(const pd_kv *kv, const pd_kv_head *kh, void *src, size_t from, void *dst, size_t to) {
    kv->pack.codec.k->move(src, from, dst, to, pd_kv_pack_dim(kv, kh));
    kv->codec.v->move(packed_v(kv, kh, src), from, packed_v(kv, kh, dst), to, pd_kv_pack_v_dim(kv, kh));
}

/* ---- bounds and codes beside the pages ---- */

/* Most pages of each head of the layers from `first_layer` on that have no window; NULL = no memory. */
static uint32_t *caps_of(const pd_kv *kv, size_t first_layer, const uint32_t *window, pd_err *err) {
    uint32_t *cap = calloc(kv->n_layer * kv->n_head_kv, sizeof *cap);
    if (!cap) (void)pd_fail(err, PD_ENOMEM, NULL, "no memory for what stands beside a sequence's pages");
    for (size_t i = first_layer * kv->n_head_kv; cap && i < kv->n_layer * kv->n_head_kv; i++)
        if (!window[i / kv->n_head_kv]) cap[i] = kv->head[i].cap_page;
    return cap;
}

pd_status pd_kv_index(pd_kv *kv, const pd_book *kind, const uint32_t *window, pd_err *err) {
    uint32_t *cap = caps_of(kv, 0, window, err);
    if (!cap) return PD_ENOMEM;
    const pd_status rc = pd_index_init(&kv->index, kv->n_layer * kv->n_head_kv, kind, cap, err);
    free(cap);
    return rc;
}

pd_status pd_kv_bound(pd_kv *kv, size_t first_layer, const uint32_t *window, pd_err *err) {
    uint32_t *cap = caps_of(kv, first_layer, window, err);
    if (!cap) return PD_ENOMEM;
    const pd_status rc = pd_bounds_init(&kv->bounds, kv->n_layer * kv->n_head_kv, kv->head_dim, cap, err);
    free(cap);
    return rc;
}

static bool has_beside(const pd_kv *kv, size_t head) {
    return pd_bounds_has(&kv->bounds, head) || pd_index_has(&kv->index, head);
}

/* Slots [slot, slot + n) of a page were written. */
static pd_status note_keys(pd_kv *kv, size_t layer, size_t head, size_t page, size_t slot, size_t n, pd_err *err) {
    const pd_kv_head *kh = pd_kv_at(kv, layer, head);
    const size_t i = layer * kv->n_head_kv + head, d = kv->head_dim;
    if (!has_beside(kv, i)) return PD_OK;
    float k[N * ROW_MAX];
    assert(d <= ROW_MAX);
    for (size_t s = 0; s < n; s++)
        pd_codec_read(&kv->codec, kv->kern, pd_kvpool_page(kv->pool, kh->page[page]), d, slot + s, k + s * d, NULL, NULL);
    if (pd_bounds_has(&kv->bounds, i)) PD_TRY(pd_bounds_add(&kv->bounds, kv->kern, i, page, slot == 0, k, n, err));
    if (!pd_index_has(&kv->index, i)) return PD_OK;
    const float *centre = pd_kv_centre(kv, layer, head); /* books are of whole keys */
    for (size_t s = 0; centre && s < n; s++) kv->kern->axpy_f32(1.0f, centre, k + s * d, d);
    return pd_index_add(&kv->index, kv->kern, i, page, slot, k, n, err);
}

/* What stands beside a head's pages anew, from page `page` on: other slots stand there. */
static pd_status rebound(pd_kv *kv, size_t layer, size_t head, size_t page, pd_err *err) {
    const pd_kv_head *kh = pd_kv_at(kv, layer, head);
    const size_t i = layer * kv->n_head_kv + head;
    if (!has_beside(kv, i)) return PD_OK;
    if (pd_bounds_has(&kv->bounds, i)) pd_bounds_cut(&kv->bounds, i, kh->n_page);
    if (pd_index_has(&kv->index, i)) pd_index_cut(&kv->index, i, kh->n_page);
    for (size_t p = page; p < kh->n_page; p++) PD_TRY(note_keys(kv, layer, head, p, 0, pd_min_size(N, kh->n - p * N), err));
    return PD_OK;
}

/* ---- slots ---- */

enum { CENTRE_ROWS = 16 }; /* fewer say little about those to come */

/* A head without slots gets rows: their mean is its centre. */
static void set_centre(pd_kv *kv, size_t layer, size_t head, const float *k, size_t stride, const uint32_t *idx, size_t n) {
    float *centre = kv->centre + (layer * kv->n_head_kv + head) * kv->head_dim;
    memset(centre, 0, kv->head_dim * sizeof *centre);
    for (size_t i = 0; i < n && n >= CENTRE_ROWS; i++)
        kv->kern->axpy_f32(1.0f / (float)n, k + (idx ? idx[i] : i) * stride, centre, kv->head_dim);
}

/* Pages for n more open slots; *fit: how many of them there are. */
static pd_status make_room(pd_kv *kv, pd_kv_head *kh, size_t n, size_t *fit, pd_err *err) {
    const size_t at = pd_kv_open_end(kh);
    pd_status rc = PD_OK;
    while (rc == PD_OK && (size_t)(kh->n_page - kh->n_pack_page) * N < at + n) rc = add_page(kv, kh, false, err);
    *fit = pd_min_size(n, (size_t)(kh->n_page - kh->n_pack_page) * N - at);
    return rc;
}

/* Rows [i, end) of those that go behind a head's slots: into pages that are there. */
static void put_rows(const pd_kv *kv, size_t layer, size_t head, const pd_kv_rows *r, size_t i, size_t end) {
    pd_kv_head *kh = pd_kv_at(kv, layer, head);
    const float *centre = pd_kv_centre(kv, layer, head);
    const size_t at0 = pd_kv_open_end(kh), pages = pd_div_up(at0 + r->n, N), stride = r->stride; /* pages: open, when all is in */
    for (size_t run; i < end; i += run) {
        const size_t at = at0 + i, slot = at % N, row = r->idx ? r->idx[i] : i;
        const uint32_t id = kh->page[kh->n_pack_page + at / N];
        const float *k = r->k + row * stride, *v = r->v + row * stride;
        run = r->idx ? 1 : pd_min_size(N - slot, end - i);
        pd_codec_write(&kv->codec, kv->kern, pd_kvpool_page(kv->pool, id), kv->head_dim, slot, run, k, v, stride, centre);
        if (kv->recent_pool && at / N + PD_KV_RECENT >= pages)
            pd_codec_write(&kv->recent_codec, kv->kern, pd_kvpool_page(kv->recent_pool, *ring(kh, kh->n_pack_page + (uint32_t)(at / N))),
                           kv->head_dim, slot, run, k, v, stride, centre);
        memcpy(pd_kvpool_pos(kv->pool, id) + slot, r->pos + row, run * sizeof *r->pos);
    }
}

/* The first n rows are in. */
static pd_status count_rows(pd_kv *kv, size_t layer, size_t head, size_t n, pd_err *err) {
    pd_kv_head *kh = pd_kv_at(kv, layer, head);
    for (size_t run; n > 0; n -= run) {
        const size_t at = pd_kv_open_end(kh), slot = at % N;
        run = pd_min_size(N - slot, n);
        PD_TRY(note_keys(kv, layer, head, at / N, slot, run, err));
        kh->n += (uint32_t)run;
    }
    return PD_OK;
}

pd_status pd_kv_append(pd_kv *kv, size_t layer, size_t head, const float *k, const float *v,
                       size_t stride, const int32_t *pos, const uint32_t *idx, size_t n, pd_err *err) {
    const pd_kv_rows r = {.k = k, .v = v, .stride = stride, .pos = pos, .idx = idx, .n = n};
    pd_kv_head *kh = pd_kv_at(kv, layer, head);
    if (kv->centre && kh->n_page == 0) set_centre(kv, layer, head, k, stride, idx, n);
    size_t fit;
    const pd_status rc = make_room(kv, kh, n, &fit, err);
    put_rows(kv, layer, head, &r, 0, fit);
    PD_TRY(count_rows(kv, layer, head, fit, err));
    return rc;
}

enum { TASK_PAGES = 16 };

typedef struct {
    const pd_kv *kv;
    size_t layer, per_head; /* tasks */
    const pd_kv_rows *rows;
} append_job;

/* Task = some pages of a head, written by one thread alone. */
static void append_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const append_job *j = ctx;
    const size_t head = task / j->per_head, at0 = pd_kv_open_end(pd_kv_at(j->kv, j->layer, head));
    const size_t from = (at0 / N + task % j->per_head * TASK_PAGES) * N, n = j->rows[head].n;
    const size_t i = from > at0 ? from - at0 : 0;
    if (i < n) put_rows(j->kv, j->layer, head, &j->rows[head], i, pd_min_size(n, from + TASK_PAGES * N - at0));
}

pd_status pd_kv_append_heads(pd_kv *kv, pd_workers *workers, size_t layer, pd_kv_rows *rows, pd_err *err) {
    append_job job = {.kv = kv, .layer = layer, .rows = rows};
    pd_status rc = PD_OK;
    for (size_t h = 0; h < kv->n_head_kv; h++) {
        pd_kv_rows *r = &rows[h];
        pd_kv_head *kh = pd_kv_at(kv, layer, h);
        if (kv->centre && kh->n_page == 0 && r->n) set_centre(kv, layer, h, r->k, r->stride, r->idx, r->n);
        if (rc != PD_OK) r->n = 0;
        else rc = make_room(kv, kh, r->n, &r->n, err);
        job.per_head = pd_max_size(job.per_head, pd_div_up(r->n, TASK_PAGES * N) + 1);
    }
    pd_workers_run(workers, append_task, &job, kv->n_head_kv * job.per_head);
    for (size_t h = 0; h < kv->n_head_kv; h++) PD_TRY(count_rows(kv, layer, h, rows[h].n, err));
    return rc;
}

pd_status pd__kv_put_packed(pd_kv *kv, size_t layer, size_t head, const float *row, const float *v, int32_t pos, pd_err *err) {
    pd_kv_head *kh = pd_kv_at(kv, layer, head);
    const size_t at = kh->n_pack ? (size_t)kh->first + kh->n_pack : 0;
    if (at == (size_t)kh->n_pack_page * N) PD_TRY(add_page(kv, kh, true, err));
    const uint32_t id = kh->page[at / N];
    const pd_kvpool *pool = pd_kv_pack_pool(kv, kh);
    write_packed(kv, layer, head, pd_kvpool_page(pool, id), at % N, row, v, pos);
    pd_kvpool_pos(pool, id)[at % N] = pos;
    kh->n_pack++;
    kh->n++;
    return PD_OK;
}

/* One slot more at the end of the packed section. */
static pd_status put_key(pd_kv *kv, size_t layer, size_t head, const float *k, const float *v, int32_t pos, pd_err *err) {
    float row[ROW_MAX] = {0};
    if (kv->pack.latent)
        project(kv, layer, head, k, pos, row);
    else
        choose(kv, layer, head, k, row);
    return pd__kv_put_packed(kv, layer, head, row, v, pos, err);
}

pd_status pd_kv_append_packed(pd_kv *kv, size_t layer, size_t head, const float *k, const float *v,
                              size_t stride, const int32_t *pos, const uint32_t *idx, size_t n, pd_err *err) {
    const pd_kv_head *kh = pd_kv_at(kv, layer, head);
    assert(pd_kv_pack_pool(kv, kh) && !kv->pack.joint && kh->n == kh->n_pack);
    if (kv->centre && kh->n_page == 0) set_centre(kv, layer, head, k, stride, idx, n);
    for (size_t i = 0; i < n; i++) {
        const size_t row = idx ? idx[i] : i;
        PD_TRY(put_key(kv, layer, head, k + row * stride, v + row * stride, pos[row], err));
    }
    return PD_OK;
}

uint32_t pd__kv_take_open(pd_kv *kv, size_t layer, size_t head, float *k, float *v, size_t ld, int32_t *pos) {
    pd_kv_head *kh = pd_kv_at(kv, layer, head);
    const pd_kv_place at = pd_kv_find(kh, kh->n_pack);
    const uint32_t id = kh->page[at.page];
    const pd_codec *codec;
    const void *page = pd_kv_page(kv, kh, at.page, &codec);
    for (uint32_t i = 0; i < at.run; i++) {
        pd_codec_read(codec, kv->kern, page, kv->head_dim, at.slot + i, k + i * ld, v + i * ld, pd_kv_centre(kv, layer, head));
        pos[i] = pd_kvpool_pos(kv->pool, id)[at.slot + i];
    }
    if (!kh->n_pack) kh->first = 0;
    kh->n -= at.run;
    turn_ring(kv, kh, 1);
    give_pages(kv, kh, at.page, at.page + 1);
    return at.run;
}

pd_status pd_kv_pack_open(pd_kv *kv, size_t layer, size_t head, size_t n, pd_err *err) {
    const pd_kv_head *kh = pd_kv_at(kv, layer, head);
    assert(pd_kv_pack_pool(kv, kh) && !kv->pack.joint && n <= kh->n - kh->n_pack);
    assert(n == 0 || n == kh->n - kh->n_pack || ((kh->n_pack ? 0 : kh->first) + n) % N == 0);
    (void)kh;
    while (n) { /* the open page goes before the packed page that takes its rows comes */
        float k[N][ROW_MAX], v[N][ROW_MAX];
        int32_t pos[N];
        const uint32_t run = pd__kv_take_open(kv, layer, head, k[0], v[0], ROW_MAX, pos);
        for (uint32_t i = 0; i < run; i++) PD_TRY(put_key(kv, layer, head, k[i], v[i], pos[i], err));
        n -= run;
    }
    return PD_OK;
}

void pd_kv_read_some(const pd_kv *kv, size_t layer, size_t head, size_t from, size_t n, float *k, float *v, int32_t *pos) {
    const pd_kv_head *kh = pd_kv_at(kv, layer, head);
    assert(from + n <= kh->n);
    for (size_t i = 0; i < n; i++) {
        const pd_kv_place at = pd_kv_find(kh, from + i);
        float *ki = k ? k + i * kv->head_dim : NULL, *vi = v ? v + i * kv->head_dim : NULL;
        if (at.packed) {
            read_packed(kv, layer, head, at.page, at.slot, ki, vi);
        } else if (ki || vi) {
            const pd_codec *codec;
            const void *page = pd_kv_page(kv, kh, at.page, &codec);
            pd_codec_read(codec, kv->kern, page, kv->head_dim, at.slot, ki, vi, pd_kv_centre(kv, layer, head));
        }
        if (pos) pos[i] = pd_kvpool_pos(pool_of(kv, kh, at.packed), kh->page[at.page])[at.slot];
    }
}

void pd_kv_read(const pd_kv *kv, size_t layer, size_t head, float *k, float *v, int32_t *pos) {
    pd_kv_read_some(kv, layer, head, 0, pd_kv_at(kv, layer, head)->n, k, v, pos);
}

void pd_kv_set_value(pd_kv *kv, size_t layer, size_t head, size_t i, const float *v) {
    const pd_kv_head *kh = pd_kv_at(kv, layer, head);
    const pd_kv_place at = pd_kv_find(kh, i);
    const pd_kvpool *pool = pool_of(kv, kh, at.packed);
    void *page = pd_kvpool_page(pool, kh->page[at.page]);
    if (at.packed) {
        write_packed_v(kv, layer, head, page, at.slot, v, pd_kvpool_pos(pool, kh->page[at.page])[at.slot]);
        return;
    }
    void *part = pd_codec_v(&kv->codec, page, kv->head_dim);
    kv->codec.v->write(kv->kern, part, kv->head_dim, at.slot, 1, v, kv->head_dim);
    if (at.page < pd_kv_recent_from(kv, kh)) return;
    const pd_codec *codec = &kv->recent_codec;
    part = pd_codec_v(codec, pd_kvpool_page(kv->recent_pool, pd_kv_again(kh, at.page)), kv->head_dim);
    codec->v->write(kv->kern, part, kv->head_dim, at.slot, 1, v, kv->head_dim);
}

const float *pd_kv_page_keys(const pd_kv *kv, size_t layer, size_t head, pd_kv_place at, float *tmp) {
    const pd_kv_head *kh = pd_kv_at(kv, layer, head);
    if (!at.packed) {
        const pd_codec *codec;
        const void *page = pd_kv_page(kv, kh, at.page, &codec);
        return pd_codec_keys(codec, kv->kern, page, kv->head_dim, tmp, pd_kv_centre(kv, layer, head));
    }
    float row[ROW_MAX];
    for (size_t s = at.slot; s < at.slot + at.run; s++) {
        read_packed(kv, layer, head, at.page, s, row, NULL);
        for (size_t c = 0; c < kv->head_dim; c++) tmp[c * N + s] = row[c];
    }
    return tmp;
}

/* The slots keep[0..n) of one section, as slots of the page list from page0 on, to its start. */
static void compact(pd_kv *kv, pd_kv_head *kh, bool packed, size_t first, const uint32_t *keep, size_t n, size_t slot0) {
    const pd_kvpool *pool = pool_of(kv, kh, packed);
    const uint32_t *list = kh->page + (packed ? 0 : kh->n_pack_page);
    for (size_t i = 0; i < n; i++) { /* ascending: target never overtakes source */
        const size_t from = first + keep[i] - slot0;
        if (from == i) continue;
        const uint32_t src = list[from / N], dst = list[i / N];
        if (packed)
            move_packed(kv, kh, pd_kvpool_page(pool, src), from % N, pd_kvpool_page(pool, dst), i % N);
        else
            pd_codec_move(&kv->codec, pd_kvpool_page(pool, src), from % N, pd_kvpool_page(pool, dst), i % N, kv->head_dim);
        pd_kvpool_pos(pool, dst)[i % N] = pd_kvpool_pos(pool, src)[from % N];
    }
}

/* The ring of a head whose open slots are about to be compacted to keep[0..n): slots that
 * it holds move as bits, older ones are read from their pages. */
static void keep_recent(pd_kv *kv, size_t layer, size_t head, const uint32_t *keep, size_t n) {
    pd_kv_head *kh = pd_kv_at(kv, layer, head);
    const size_t bytes = kv->recent_pool->page_bytes, d = kv->head_dim, first = kh->n_pack ? 0 : kh->first;
    const uint32_t p0 = kh->n_pack_page, held = pd_kv_recent_from(kv, kh), n_page = (uint32_t)pd_div_up(n, N);
    const float *centre = pd_kv_centre(kv, layer, head);
    uint8_t *old = kv->recent_tmp;
    float *k = (float *)(old + PD_KV_RECENT * bytes), *v = k + d;
    for (uint32_t p = held; p < kh->n_page; p++)
        memcpy(old + p % PD_KV_RECENT * bytes, pd_kvpool_page(kv->recent_pool, *ring(kh, p)), bytes);
    for (size_t i = n_page > PD_KV_RECENT ? (size_t)(n_page - PD_KV_RECENT) * N : 0; i < n; i++) {
        const size_t from = first + keep[i] - kh->n_pack;
        const uint32_t page = p0 + (uint32_t)(from / N);
        void *to = pd_kvpool_page(kv->recent_pool, *ring(kh, p0 + (uint32_t)(i / N)));
        if (page >= held) {
            pd_codec_move(&kv->recent_codec, old + page % PD_KV_RECENT * bytes, from % N, to, i % N, d);
        } else {
            pd_codec_read(&kv->codec, kv->kern, pd_kvpool_page(kv->pool, kh->page[page]), d, from % N, k, v, centre);
            pd_codec_write(&kv->recent_codec, kv->kern, to, d, i % N, 1, k, v, d, centre);
        }
    }
    const uint32_t open = kh->n_page - p0;
    give_recent(kv, kh, p0 + n_page, p0 + (open < PD_KV_RECENT ? open : PD_KV_RECENT));
}

void pd_kv_keep(pd_kv *kv, size_t layer, size_t head, const uint32_t *keep, size_t n) {
    pd_kv_head *kh = pd_kv_at(kv, layer, head);
    assert(n >= 1 && n <= kh->n && keep[n - 1] < kh->n);
    size_t n_pack = 0;
    while (n_pack < n && keep[n_pack] < kh->n_pack) n_pack++;
    if (kv->recent_pool) keep_recent(kv, layer, head, keep + n_pack, n - n_pack);
    compact(kv, kh, true, kh->first, keep, n_pack, 0);
    compact(kv, kh, false, kh->n_pack ? 0 : kh->first, keep + n_pack, n - n_pack, kh->n_pack);
    give_pages(kv, kh, kh->n_pack_page + (uint32_t)pd_div_up(n - n_pack, N), kh->n_page);
    if (kh->n_pack_page) give_pages(kv, kh, (uint32_t)pd_div_up(n_pack, N), kh->n_pack_page);
    kh->first = 0;
    kh->n_pack = (uint32_t)n_pack;
    kh->n = (uint32_t)n;
    size_t same = 0; /* pages whose slots stand where they stood */
    while ((same + 1) * N <= n && keep[(same + 1) * N - 1] == (same + 1) * N - 1) same++;
    (void)rebound(kv, layer, head, same, NULL); /* fewer pages: no allocation */
}

/* The first n slots of the first section: the pages that are wholly dead then go. */
static void drop_of_section(pd_kv *kv, pd_kv_head *kh, bool packed, size_t n) {
    if (!n) return;
    kh->first += (uint32_t)n;
    kh->n -= (uint32_t)n;
    if (packed) kh->n_pack -= (uint32_t)n;
    const bool all = packed ? kh->n_pack == 0 : kh->n == 0;
    const uint32_t dead = all ? (packed ? kh->n_pack_page : kh->n_page) : kh->first / N;
    if (dead && !packed) turn_ring(kv, kh, dead);
    if (dead) give_pages(kv, kh, 0, dead);
    kh->first = all ? 0 : kh->first % N;
}

void pd_kv_drop_front(pd_kv *kv, size_t layer, size_t head, size_t n) {
    pd_kv_head *kh = pd_kv_at(kv, layer, head);
    assert(n <= kh->n && !has_beside(kv, layer * kv->n_head_kv + head)); /* windows alone move on */
    const size_t n_pack = pd_min_size(n, kh->n_pack);
    drop_of_section(kv, kh, true, n_pack);
    drop_of_section(kv, kh, false, n - n_pack);
}

void pd_kv_drop_back(pd_kv *kv, size_t layer, size_t head, size_t n) {
    pd_kv_head *kh = pd_kv_at(kv, layer, head);
    assert(n <= kh->n - kh->n_pack);
    kh->n -= (uint32_t)n;
    if (kh->n == 0) kh->first = 0;
    const uint32_t n_page = kh->n_pack_page + (uint32_t)pd_div_up(pd_kv_open_end(kh), N);
    assert(!kv->recent_pool || n_page == kh->n_page);
    give_pages(kv, kh, n_page, kh->n_page);
}

pd_status pd_kv_copy(pd_kv *kv, const pd_kv *from, pd_err *err) {
    if (kv->centre) memcpy(kv->centre, from->centre, pd_kv_centre_bytes(kv));
    if (kv->pack.channel)
        memcpy(kv->pack.channel, from->pack.channel,
               kv->n_layer * kv->n_head_kv * kv->pack.n_channel * sizeof *kv->pack.channel);
    if (kv->pack.sink) memcpy(kv->pack.sink, from->pack.sink, pd__kv_sink_floats(kv) * sizeof *kv->pack.sink);
    if (kv->pack.sink_v) memcpy(kv->pack.sink_v, from->pack.sink_v, pd__kv_sink_floats(kv) * sizeof *kv->pack.sink_v);
    for (size_t i = 0; i < kv->n_layer * kv->n_head_kv; i++) {
        const pd_kv_head *src = &from->head[i];
        pd_kv_head *kh = &kv->head[i];
        assert(kh->n_page == 0 && !kv->recent_pool == !from->recent_pool);
        kh->turn = src->turn;
        for (uint32_t p = 0; p < src->n_page; p++) {
            const bool packed = p < src->n_pack_page;
            PD_TRY(add_page(kv, kh, packed, err));
            const pd_kvpool *to = pool_of(kv, kh, packed), *pool = pool_of(from, src, packed);
            memcpy(pd_kvpool_page(to, kh->page[p]), pd_kvpool_page(pool, src->page[p]), to->page_bytes);
            memcpy(pd_kvpool_pos(to, kh->page[p]), pd_kvpool_pos(pool, src->page[p]), N * sizeof(int32_t));
        }
        for (uint32_t p = pd_kv_recent_from(kv, kh); p < kh->n_page; p++)
            memcpy(pd_kvpool_page(kv->recent_pool, *ring(kh, p)), pd_kvpool_page(from->recent_pool, pd_kv_again(src, p)),
                   kv->recent_pool->page_bytes);
        kh->first = src->first;
        kh->n_pack = src->n_pack;
        kh->n = src->n;
    }
    PD_TRY(pd_bounds_copy(&kv->bounds, &from->bounds, err));
    return pd_index_copy(&kv->index, &from->index, err);
}
