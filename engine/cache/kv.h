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
 * Attention is strongest among the last tokens, where q4 is too coarse.  The last
 * PD_KV_RECENT pages of every head are therefore held a second time, in q8_0: a ring
 * of pages, read in place of the others.  A page that falls out of the ring was in q4
 * all the time: nothing is stored late.
 *
 * Pages come from the pool one at a time as slots are written and go back as
 * soon as they hold none; nothing is reallocated while decoding: the page lists
 * are sized at open.  Thread: engine. */
#ifndef PD_ENGINE_CACHE_KV_H
#define PD_ENGINE_CACHE_KV_H

#include "engine/cache/codec.h"
#include "engine/cache/pool.h"

/* Mean KL on SmolLM2: without them 0.012 to 0.032, with two pages 0.003 to 0.007; four gain little. */
enum { PD_KV_RECENT = 2 };

typedef struct pd_kv_head {
    uint32_t *page;
    uint32_t n_page, cap_page;
    uint32_t first;
    uint32_t n; /* live slots */
    uint32_t turn;                  /* page p is held again in recent[(turn + p) % PD_KV_RECENT] ... */
    uint32_t recent[PD_KV_RECENT];  /* ... if it is one of the last; pages of recent_pool */
} pd_kv_head;

typedef struct pd_kv {
    pd_kvpool *pool;
    pd_codec codec;
    const pd_kernels *kern;
    size_t n_layer, n_head_kv, head_dim;
    pd_kv_head *head;    /* [n_layer][n_head_kv] */
    uint32_t *page_list; /* all page lists in one block */
    float *centre;       /* [n_layer][n_head_kv][head_dim], codec.h; NULL = this type of keys has none */
    pd_kvpool *recent_pool; /* NULL = nothing is held twice */
    pd_codec recent_codec;
    void *recent_tmp;    /* the ring of a head and two rows, while it is compacted */
    size_t n_recent;     /* pages of recent_pool, all heads */
    size_t n_pages;      /* held now, all heads */
    size_t peak_pages;
} pd_kv;

/* max_slots[layer] = most slots a head of that layer will ever hold at once.
 * Errors: ENOMEM. */
pd_status pd_kv_init(pd_kv *kv, pd_kvpool *pool, const pd_codec *codec, const pd_kernels *kern,
                     size_t n_layer, size_t n_head_kv, size_t head_dim, const size_t *max_slots,
                     pd_err *err);
/* Hold the last pages a second time, in pages of `pool`.  Before anything is appended.
 * Errors: ENOMEM. */
pd_status pd_kv_hold_recent(pd_kv *kv, pd_kvpool *pool, const pd_codec *codec, pd_err *err);
void pd_kv_done(pd_kv *kv); /* all pages back; all-zero is fine */

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

/* Append n slots: row i at k + row(i) * stride, row(i) = idx ? idx[i] : i, with
 * position pos[row(i)].  Errors: EINTERNAL if the pool or the page list is
 * exhausted (admission promised it would not be). */
pd_status pd_kv_append(pd_kv *kv, size_t layer, size_t head, const float *k, const float *v,
                       size_t stride, const int32_t *pos, const uint32_t *idx, size_t n, pd_err *err);

/* Number of a head's first page that is held twice; its n_page if none is. */
static inline uint32_t pd_kv_recent_from(const pd_kv *kv, const pd_kv_head *kh) {
    if (!kv->recent_pool) return kh->n_page;
    return kh->n_page > PD_KV_RECENT ? kh->n_page - PD_KV_RECENT : 0;
}

/* Page p of a head as it is to be read, and how it stores numbers. */
static inline const void *pd_kv_page(const pd_kv *kv, const pd_kv_head *kh, uint32_t p, const pd_codec **codec) {
    const bool recent = p >= pd_kv_recent_from(kv, kh);
    *codec = recent ? &kv->recent_codec : &kv->codec;
    if (recent) return pd_kvpool_page(kv->recent_pool, kh->recent[(kh->turn + p) % PD_KV_RECENT]);
    return pd_kvpool_page(kv->pool, kh->page[p]);
}

/* Live slot i as a row; k, v, pos may be NULL. */
void pd_kv_row(const pd_kv *kv, size_t layer, size_t head, size_t i, float *k, float *v, int32_t *pos);
/* Live slot i gets another row; its position stays. */
void pd_kv_set_row(pd_kv *kv, size_t layer, size_t head, size_t i, const float *k, const float *v);

/* All live slots as rows: k, v [n][head_dim], pos [n]; any may be NULL. */
void pd_kv_read(const pd_kv *kv, size_t layer, size_t head, float *k, float *v, int32_t *pos);

/* Keep only slots keep[0..n) (ascending, n >= 1), in place, and give the tail
 * pages back.  Values move as bits. */
void pd_kv_keep(pd_kv *kv, size_t layer, size_t head, const uint32_t *keep, size_t n);

/* Forget the first n slots (n <= live slots); pages wholly dead go back. */
void pd_kv_drop_front(pd_kv *kv, size_t layer, size_t head, size_t n);

/* Forget the last n slots (n <= live slots); pages without a slot go back.  Where pages are
 * held twice, every page keeps a slot. */
void pd_kv_drop_back(pd_kv *kv, size_t layer, size_t head, size_t n);

/* What `from` holds into an empty cache of the same shape, page by page.  Errors: EINTERNAL as
 * pd_kv_append; then some of it is there. */
pd_status pd_kv_copy(pd_kv *kv, const pd_kv *from, pd_err *err);

static inline uint64_t pd_kv_bytes(const pd_kv *kv) { /* 0 for an all-zero one */
    const uint64_t recent = kv->n_recent ? (uint64_t)kv->n_recent * kv->recent_pool->page_bytes : 0;
    return kv->n_pages ? (uint64_t)kv->n_pages * kv->pool->page_bytes + recent : 0;
}

#endif
