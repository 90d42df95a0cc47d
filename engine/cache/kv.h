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
 * Its oldest slots may be *packed*: their keys hold some of the channels alone, in
 * pages of a narrower kind and another pool, which come first in the list.  The
 * open section behind them begins with a page of its own.
 *
 *     page[0] ... page[n_pack_page-1] | page[n_pack_page] ... page[n_page-1]
 *     |..first|------ n_pack -----|...| |------- n - n_pack -------|
 *
 * A packed key reads as its channels and zeros elsewhere.  New tokens are open.
 * Or it is projected (latent.h), its value too perhaps, and reads as what is rebuilt from it; but what
 * belongs to positions below n_sink, which look like no others, is kept whole beside the pages.  Joint
 * latents (joint.h) are spread over the heads of a layer, which then hold the same slots.
 *
 * Attention is strongest among the last tokens, where q4 is too coarse.  The last
 * PD_KV_RECENT open pages of every head are therefore held a second time, in q8_0: a
 * ring of pages, read in place of the others.  A page that falls out of the ring was in
 * q4 all the time: nothing is stored late.
 *
 * Pages come from the pool one at a time as slots are written and go back as
 * soon as they hold none; nothing is reallocated while decoding: the page lists
 * are sized at open.  Thread: engine. */
#ifndef PD_ENGINE_CACHE_KV_H
#define PD_ENGINE_CACHE_KV_H

#include "engine/base/workers.h"
#include "engine/cache/bounds.h"
#include "engine/cache/codec.h"
#include "engine/cache/index.h"
#include "engine/cache/joint.h"
#include "engine/cache/latent.h"
#include "engine/cache/pool.h"

#include <stdbool.h>

/* On SmolLM2 one page leaves a KL of 0.009, two 0.006, four 0.005. */
enum { PD_KV_RECENT = 2 };

typedef struct pd_kv_head {
    uint32_t *page;
    uint32_t n_page, cap_page;
    uint32_t n_pack_page; /* of them, the first ones, packed */
    uint32_t first;       /* of the section that page[0] belongs to */
    uint32_t n;           /* live slots */
    uint32_t n_pack;      /* of them, the first ones, packed; 0 just if n_pack_page is */
    uint32_t turn;        /* open page o is held again in recent[(turn + o) % PD_KV_RECENT] ... */
    uint32_t recent[PD_KV_RECENT]; /* ... if it is one of the last; pages of recent_pool */
} pd_kv_head;

/* The packed kind of page of one sequence; its types are the open kind's, but for keys in codes. */
typedef struct pd_kv_pack {
    pd_codec codec;
    pd_kvpool *pool;   /* NULL: nothing is ever packed, or the layers have pools of their own */
    pd_kvpool **layer; /* [n_layer]: those, NULL where nothing is packed; latents only */
    size_t k_dim;      /* numbers of a stored key */
    size_t n_channel;  /* of them channels; the rest is 0 and there for the type's groups */
    uint32_t *channel; /* [n_layer][n_head_kv][n_channel]: which, ascending */
    pd_latent *latent; /* [n_layer][n_head_kv] instead of channels; NULL = channels */
    pd_joint *joint;   /* [n_layer] instead of both */
    float *joint_tmp;  /* keys and values of a page of all heads, and their latents */
    size_t n_sink;
    float *sink;       /* [n_layer][n_head_kv][n_sink][head_dim] keys */
    float *sink_v;     /* and values, which are 0 in the pages; NULL = none is projected */
} pd_kv_pack;

typedef struct pd_kv {
    pd_kvpool *pool;
    pd_codec codec;
    const pd_kernels *kern;
    size_t n_layer, n_head_kv, head_dim;
    pd_kv_head *head;    /* [n_layer][n_head_kv] */
    uint32_t *page_list; /* all page lists in one block */
    float *centre;       /* [n_layer][n_head_kv][head_dim], codec.h; NULL = this type of keys has none */
    pd_bounds bounds;    /* of the heads that pd_kv_bound asked for; all-zero = none */
    pd_index index;      /* likewise pd_kv_index */
    pd_kv_pack pack;
    pd_kvpool *recent_pool; /* NULL = nothing is held twice */
    pd_codec recent_codec;
    void *recent_tmp;    /* the ring of a head and two rows, while it is compacted */
    size_t n_recent;     /* pages of recent_pool, all heads */
    size_t n_pages;      /* open ones held now, all heads */
    size_t n_pack_pages; /* and packed ones */
    uint64_t pack_bytes; /* of the packed ones */
    size_t peak_pages;   /* most of both at once */
} pd_kv;

/* max_slots[layer] = most slots a head of that layer will ever hold at once.
 * Errors: ENOMEM. */
pd_status pd_kv_init(pd_kv *kv, pd_kvpool *pool, const pd_codec *codec, const pd_kernels *kern,
                     size_t n_layer, size_t n_head_kv, size_t head_dim, const size_t *max_slots,
                     pd_err *err);
/* Hold the last open pages a second time, in pages of `pool`.  Before anything is appended.
 * Errors: ENOMEM. */
pd_status pd_kv_hold_recent(pd_kv *kv, pd_kvpool *pool, const pd_codec *codec, pd_err *err);
void pd_kv_done(pd_kv *kv); /* all pages back; all-zero is fine */

enum { PD_KV_WIDTHS = 16 }; /* of packed keys, at most */

/* What a packed key stores for n_channel channels of head_dim: as many numbers, rounded
 * up to sixteenths of head_dim, so that there are few kinds of pages, and to the groups
 * of its type. */
size_t pd_kv_pack_width(pd_kv_type key, size_t n_channel, size_t head_dim);

/* An empty cache gets a packed kind: keys of n_channel channels, in a pool of pages whose
 * keys have pd_kv_pack_width.  Errors: ENOMEM. */
pd_status pd_kv_set_pack(pd_kv *kv, pd_kvpool *pool, size_t n_channel, pd_err *err);

/* Or one of projected keys and values, stored by `codec`: latent [n_layer][n_head_kv] and pool [n_layer], copied; a
 * layer's latents have the ranks of its pool's k_dim and v_dim.  No pool: the layer is never packed.  Not for keys
 * in few bits. */
pd_status pd_kv_set_latents(pd_kv *kv, const pd_codec *codec, pd_kvpool *const *pool, const pd_latent *latent, size_t n_sink, pd_err *err);

/* Or of joint ones: joint and pool [n_layer], copied, NULL and rank 0 where keys are never packed; a pool's
 * k_dim is its layer's part.  For such layers pd_kv_append_packed and pd_kv_pack_open are: */
pd_status pd_kv_set_joint(pd_kv *kv, pd_kvpool *const *pool, const pd_joint *joint, size_t n_sink, pd_err *err);
/* n rows of every head, which holds nothing open; head h's row i at k + h * ld_head + i * ld_row. */
pd_status pd_kv_append_joint(pd_kv *kv, size_t layer, const float *k, const float *v, size_t ld_head, size_t ld_row,
                             const int32_t *pos, size_t n, pd_err *err);
/* The first n open slots of every head, whole pages of them. */
pd_status pd_kv_pack_joint(pd_kv *kv, size_t layer, size_t n, pd_err *err);
/* Latents c [n][rank] and positions of packed slots slot[0..n); NULL = n of them from `first` on. */
void pd_kv_read_joint(const pd_kv *kv, size_t layer, const uint32_t *slot, size_t first, size_t n, float *c, int32_t *pos);

/* Which channels a head's packed keys keep: [n_channel], ascending.  Before any is packed. */
void pd_kv_set_channels(pd_kv *kv, size_t layer, size_t head, const uint32_t *channel);
/* Keep bounds (bounds.h) of an empty cache's layers from `first_layer` on that have no
 * window; window [n_layer].  Errors: ENOMEM. */
pd_status pd_kv_bound(pd_kv *kv, size_t first_layer, const uint32_t *window, pd_err *err);

/* Keep codes (index.h) of an empty cache's layers that have no window; kind as pd_index_init. */
pd_status pd_kv_index(pd_kv *kv, const pd_book *kind, const uint32_t *window, pd_err *err);

static inline pd_kv_head *pd_kv_at(const pd_kv *kv, size_t layer, size_t head) {
    return &kv->head[layer * kv->n_head_kv + head];
}

/* Few bits: the mean of the keys that came first, while the head holds any. */
static inline const float *pd_kv_centre(const pd_kv *kv, size_t layer, size_t head) {
    return kv->centre ? kv->centre + (layer * kv->n_head_kv + head) * kv->head_dim : NULL;
}

static inline const uint32_t *pd_kv_channels(const pd_kv *kv, size_t layer, size_t head) {
    return kv->pack.channel + (layer * kv->n_head_kv + head) * kv->pack.n_channel;
}

/* The pool of a head's packed pages, and the numbers of a key in them, ... */
static inline pd_kvpool *pd_kv_pack_pool(const pd_kv *kv, const pd_kv_head *kh) {
    return kv->pack.layer ? kv->pack.layer[(size_t)(kh - kv->head) / kv->n_head_kv] : kv->pack.pool;
}

static inline size_t pd_kv_pack_dim(const pd_kv *kv, const pd_kv_head *kh) {
    if (kv->pack.joint) return pd_joint_part(&kv->pack.joint[(size_t)(kh - kv->head) / kv->n_head_kv]);
    return kv->pack.latent ? kv->pack.latent[kh - kv->head].rank : kv->pack.k_dim;
}

/* ... and of a value. */
static inline size_t pd_kv_pack_v_dim(const pd_kv *kv, const pd_kv_head *kh) {
    return kv->pack.latent ? pd_latent_v_dim(&kv->pack.latent[kh - kv->head]) : kv->head_dim;
}

/* Slots of the open section's pages up to its end. */
static inline size_t pd_kv_open_end(const pd_kv_head *kh) {
    return kh->n_pack ? kh->n - kh->n_pack : (size_t)kh->first + kh->n;
}

/* Number in the list of a head's first page that is held twice; its n_page if none is. */
static inline uint32_t pd_kv_recent_from(const pd_kv *kv, const pd_kv_head *kh) {
    const uint32_t open = kh->n_page - kh->n_pack_page;
    if (!kv->recent_pool) return kh->n_page;
    return open > PD_KV_RECENT ? kh->n_page - PD_KV_RECENT : kh->n_pack_page;
}

/* The page of recent_pool that holds page p of the list again. */
static inline uint32_t pd_kv_again(const pd_kv_head *kh, uint32_t p) {
    return kh->recent[(kh->turn + p - kh->n_pack_page) % PD_KV_RECENT];
}

/* Open page p of the list as it is to be read, and how it stores numbers. */
static inline const void *pd_kv_page(const pd_kv *kv, const pd_kv_head *kh, uint32_t p, const pd_codec **codec) {
    const bool recent = p >= pd_kv_recent_from(kv, kh);
    *codec = recent ? &kv->recent_codec : &kv->codec;
    return recent ? pd_kvpool_page(kv->recent_pool, pd_kv_again(kh, p)) : pd_kvpool_page(kv->pool, kh->page[p]);
}

/* Where live slot i lies. */
typedef struct pd_kv_place {
    uint32_t page; /* index into the head's list */
    uint32_t slot;
    bool packed;
    uint32_t run;  /* live slots from i to the end of the page */
} pd_kv_place;

static inline pd_kv_place pd_kv_find(const pd_kv_head *kh, size_t i) {
    const bool packed = i < kh->n_pack;
    const size_t at = packed || !kh->n_pack ? kh->first + i : i - kh->n_pack;
    const size_t slot = at % PD_PAGE_TOKENS, left = PD_PAGE_TOKENS - slot, live = (packed ? kh->n_pack : kh->n) - i;
    return (pd_kv_place){.page = (uint32_t)(at / PD_PAGE_TOKENS) + (packed ? 0 : kh->n_pack_page), .slot = (uint32_t)slot,
                         .packed = packed, .run = (uint32_t)(left < live ? left : live)};
}

/* The layer's joint latent; NULL = none. */
static inline const pd_joint *pd_kv_joint(const pd_kv *kv, size_t layer) {
    return kv->pack.joint && kv->pack.joint[layer].rank ? &kv->pack.joint[layer] : NULL;
}

/* The latent of a head, its whole keys [n_sink][head_dim], and values where its own are projected. */
static inline const pd_latent *pd_kv_latent(const pd_kv *kv, size_t layer, size_t head) {
    return &kv->pack.latent[layer * kv->n_head_kv + head];
}

static inline float *pd_kv_sinks(const pd_kv *kv, size_t layer, size_t head) {
    return kv->pack.sink + (layer * kv->n_head_kv + head) * kv->pack.n_sink * kv->head_dim;
}

static inline float *pd_kv_sink_values(const pd_kv *kv, size_t layer, size_t head) {
    return kv->pack.sink_v + (layer * kv->n_head_kv + head) * kv->pack.n_sink * kv->head_dim;
}

static inline size_t pd_kv_centre_bytes(const pd_kv *kv) { /* beside the pages, as positions are */
    return kv->centre ? kv->n_layer * kv->n_head_kv * kv->head_dim * sizeof *kv->centre : 0;
}

static inline size_t pd_kv_sink_bytes(const pd_kv *kv) { /* likewise */
    const size_t kinds = (kv->pack.sink ? 1 : 0) + (kv->pack.sink_v ? 1 : 0);
    return kinds * kv->n_layer * kv->n_head_kv * kv->pack.n_sink * kv->head_dim * sizeof(float);
}

/* Append n slots: row i at k + row(i) * stride, row(i) = idx ? idx[i] : i, with
 * position pos[row(i)].  Errors: EINTERNAL if the pool or the page list is
 * exhausted (admission promised it would not be), ENOMEM (bounds). */
pd_status pd_kv_append(pd_kv *kv, size_t layer, size_t head, const float *k, const float *v,
                       size_t stride, const int32_t *pos, const uint32_t *idx, size_t n, pd_err *err);

/* What one head gets of it, for pd_kv_append_heads. */
typedef struct pd_kv_rows {
    const float *k, *v;
    size_t stride;
    const int32_t *pos;
    const uint32_t *idx;
    size_t n;
} pd_kv_rows;

/* Append to all heads of a layer at once, rows [n_head_kv], on all workers (NULL: none): what a
 * head gets is written, and its pages' memory asked for, by several.  After an error n is what
 * fitted of each. */
pd_status pd_kv_append_heads(pd_kv *kv, pd_workers *workers, size_t layer, pd_kv_rows *rows, pd_err *err);

/* The same into the packed section of a head that holds nothing open. */
pd_status pd_kv_append_packed(pd_kv *kv, size_t layer, size_t head, const float *k, const float *v,
                              size_t stride, const int32_t *pos, const uint32_t *idx, size_t n, pd_err *err);

/* The first n open slots become packed ones: whole pages of them, or all.  Pages are
 * taken and given back one by one.  Errors: EINTERNAL as pd_kv_append; then some are lost. */
pd_status pd_kv_pack_open(pd_kv *kv, size_t layer, size_t head, size_t n, pd_err *err);

/* Live slots as rows: k, v [n][head_dim], pos [n]; any may be NULL.  All, or n from slot `from` on. */
void pd_kv_read(const pd_kv *kv, size_t layer, size_t head, float *k, float *v, int32_t *pos);
void pd_kv_read_some(const pd_kv *kv, size_t layer, size_t head, size_t from, size_t n, float *k, float *v, int32_t *pos);

/* A live slot gets another value; its key stays. */
void pd_kv_set_value(pd_kv *kv, size_t layer, size_t head, size_t i, const float *v);

/* The keys of the page at `place` as f32 [head_dim][16], from tmp or in it (as many
 * floats): channels that packed keys lack are 0. */
const float *pd_kv_page_keys(const pd_kv *kv, size_t layer, size_t head, pd_kv_place place, float *tmp);

/* Keep only slots keep[0..n) (ascending, n >= 1), in place, and give the tail
 * pages back.  Values move as bits. */
void pd_kv_keep(pd_kv *kv, size_t layer, size_t head, const uint32_t *keep, size_t n);

/* Forget the first n slots (n <= live slots); pages wholly dead go back. */
void pd_kv_drop_front(pd_kv *kv, size_t layer, size_t head, size_t n);

/* Forget the last n open slots; pages without a slot go back.  Where pages are held
 * twice, every page keeps a slot. */
void pd_kv_drop_back(pd_kv *kv, size_t layer, size_t head, size_t n);

/* What `from` holds into an empty cache of the same shape, page by page.  Errors: EINTERNAL as
 * pd_kv_append; then some of it is there. */
pd_status pd_kv_copy(pd_kv *kv, const pd_kv *from, pd_err *err);

static inline uint64_t pd_kv_bytes(const pd_kv *kv) { /* 0 for an all-zero one */
    return (kv->n_pages ? (uint64_t)kv->n_pages * kv->pool->page_bytes : 0) + kv->pack_bytes +
           (kv->n_recent ? (uint64_t)kv->n_recent * kv->recent_pool->page_bytes : 0);
}

static inline uint64_t pd_kv_head_bytes(const pd_kv *kv, const pd_kv_head *kh) {
    return (uint64_t)(kh->n_page - kh->n_pack_page) * kv->pool->page_bytes +
           (kh->n_pack_page ? (uint64_t)kh->n_pack_page * pd_kv_pack_pool(kv, kh)->page_bytes : 0) +
           (kv->recent_pool ? (uint64_t)(kh->n_page - pd_kv_recent_from(kv, kh)) * kv->recent_pool->page_bytes : 0);
}

#endif
