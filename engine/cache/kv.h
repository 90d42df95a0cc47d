/* SPDX-License-Identifier: Apache-2.0 */
/* The KV cache of one sequence: ragged, paged.
 *
 * Every (layer, KV head) has its own list of pages and its own length; slots are
 * in time order and carry their token's position.  page[0] may begin with
 * `first` dead slots (a sliding window moved on).
 *
 *     head:  page[0]  page[1] ... page[n_page-1]
 *            |..first|---------- n slots -------|        first + n <= 16 * n_page
 *
 * Pages come from the pool one at a time as slots are written and go back as
 * soon as they hold none; nothing is reallocated while decoding: the page lists
 * are sized at open.  Thread: engine. */
#ifndef PD_ENGINE_CACHE_KV_H
#define PD_ENGINE_CACHE_KV_H

#include "engine/cache/bounds.h"
#include "engine/cache/codec.h"
#include "engine/cache/pool.h"

typedef struct pd_kv_head {
    uint32_t *page;
    uint32_t n_page, cap_page;
    uint32_t first;
    uint32_t n; /* live slots */
} pd_kv_head;

typedef struct pd_kv {
    pd_kvpool *pool;
    pd_codec codec;
    const pd_kernels *kern;
    size_t n_layer, n_head_kv, head_dim;
    pd_kv_head *head;    /* [n_layer][n_head_kv] */
    uint32_t *page_list; /* all page lists in one block */
    float *centre;       /* [n_layer][n_head_kv][head_dim], codec.h; NULL = this type of keys has none */
    pd_bounds bounds;    /* of the heads that pd_kv_bound asked for; all-zero = none */
    size_t n_pages;      /* held now, all heads */
    size_t peak_pages;
} pd_kv;

/* max_slots[layer] = most slots a head of that layer will ever hold at once.
 * Errors: ENOMEM. */
pd_status pd_kv_init(pd_kv *kv, pd_kvpool *pool, const pd_codec *codec, const pd_kernels *kern,
                     size_t n_layer, size_t n_head_kv, size_t head_dim, const size_t *max_slots,
                     pd_err *err);
void pd_kv_done(pd_kv *kv); /* all pages back; all-zero is fine */

/* Keep bounds (bounds.h) of an empty cache's layers from `first_layer` on that have no
 * window; window [n_layer].  Errors: ENOMEM. */
pd_status pd_kv_bound(pd_kv *kv, size_t first_layer, const uint32_t *window, pd_err *err);

static inline pd_kv_head *pd_kv_at(const pd_kv *kv, size_t layer, size_t head) {
    return &kv->head[layer * kv->n_head_kv + head];
}

/* Few bits: the mean of the keys that came first, while the head holds any. */
static inline const float *pd_kv_centre(const pd_kv *kv, size_t layer, size_t head) {
    return kv->centre ? kv->centre + (layer * kv->n_head_kv + head) * kv->head_dim : NULL;
}

static inline size_t pd_kv_centre_bytes(const pd_kv *kv) { /* beside the pages, as positions are */
    return kv->centre ? kv->n_layer * kv->n_head_kv * kv->head_dim * sizeof *kv->centre : 0;
}

/* The bounds of a head's pages anew, from page `page` on: its slots were written over.
 * Nothing if it has none.  Errors: ENOMEM. */
pd_status pd_kv_rebound(pd_kv *kv, size_t layer, size_t head, size_t page, pd_err *err);

/* Append n slots: row i at k + row(i) * stride, row(i) = idx ? idx[i] : i, with
 * position pos[row(i)].  Errors: EINTERNAL if the pool or the page list is
 * exhausted (admission promised it would not be), ENOMEM (bounds). */
pd_status pd_kv_append(pd_kv *kv, size_t layer, size_t head, const float *k, const float *v,
                       size_t stride, const int32_t *pos, const uint32_t *idx, size_t n, pd_err *err);

/* All live slots as rows: k, v [n][head_dim], pos [n]; any may be NULL. */
void pd_kv_read(const pd_kv *kv, size_t layer, size_t head, float *k, float *v, int32_t *pos);

/* Keep only slots keep[0..n) (ascending, n >= 1), in place, and give the tail
 * pages back.  Values move as bits. */
void pd_kv_keep(pd_kv *kv, size_t layer, size_t head, const uint32_t *keep, size_t n);

/* Forget the first n slots (n <= live slots); pages wholly dead go back. */
void pd_kv_drop_front(pd_kv *kv, size_t layer, size_t head, size_t n);

/* What `from` holds into an empty cache of the same shape, page by page.  Errors: EINTERNAL as
 * pd_kv_append; then some of it is there. */
pd_status pd_kv_copy(pd_kv *kv, const pd_kv *from, pd_err *err);

static inline uint64_t pd_kv_bytes(const pd_kv *kv) { /* 0 for an all-zero one */
    return kv->n_pages ? (uint64_t)kv->n_pages * kv->pool->page_bytes : 0;
}

#endif
