/* SPDX-License-Identifier: Apache-2.0 */
/* The server's KV memory: one page pool for each kind of page (a type of keys and
 * one of values, and how many numbers each of them has), all under one bound.
 *
 *     sum over pools of (n_seq + n_store) * page_bytes  <=  max_bytes
 *
 * and each pool's own equation (pool.h).  A pool reserves address space for the
 * whole bound, and is made when the first request wants its kind: memory costs
 * only what lies in pages.  Keys and values have head_dim numbers or, in packed
 * pages (kv.h), some sixteenths of it, so there are only so many kinds.  Who admits
 * requests keeps the sum below the bound.
 *
 * Thread: engine, except pd_kvpools_held, pd_kvpools_dirty and pd_kvpools_by_type, which
 * anyone may ask. */
#ifndef PD_ENGINE_CACHE_POOLS_H
#define PD_ENGINE_CACHE_POOLS_H

#include "engine/cache/codec.h"
#include "engine/cache/pool.h"

/* Made once and never changed or moved, but for what the pool counts. */
typedef struct pd_kvkind {
    pd_kvpool pool;
    pd_kv_type key, value;
    size_t k_dim, v_dim; /* numbers of a key and of a value */
    struct pd_kvkind *next; /* made before it */
} pd_kvkind;

typedef struct pd_kvpools {
    _Atomic(pd_kvkind *) last; /* released when it is made; pairs with acquire of who walks the list */
    size_t head_dim, hysteresis_bytes;
    uint64_t max_bytes;
} pd_kvpools;

/* With the pool of `native`; the bound is its whole pages.  Errors: as pd_kvpool_init. */
pd_status pd_kvpools_init(pd_kvpools *p, const pd_codec *native, size_t head_dim, uint64_t max_bytes,
                          size_t hysteresis_bytes, pd_err *err);
void pd_kvpools_done(pd_kvpools *p); /* all-zero and half-made ones too */

/* The pool of a kind of page; k_dim and v_dim: head_dim, or some sixteenths of it.  Errors: ENOMEM. */
pd_status pd_kvpools_get(pd_kvpools *p, const pd_codec *codec, size_t k_dim, size_t v_dim, pd_kvpool **ret, pd_err *err);

void pd_kvpools_trim(pd_kvpools *p); /* all free memory back to the system */
/* From the first call on pages go back to the system here, `bytes` at once (pd_kvpool_tidy); for who
 * calls it again and again.  As long as there is one kind: pages of one kind must not wait while
 * memory is taken for another, or both together would exceed the bound. */
void pd_kvpools_tidy(pd_kvpools *p, size_t bytes);
bool pd_kvpools_check(const pd_kvpools *p); /* the equations above */

/* Bytes of pages that sequences or the store hold, and of free ones not yet returned. */
uint64_t pd_kvpools_held(const pd_kvpools *p, pd_page_owner owner);
uint64_t pd_kvpools_dirty(const pd_kvpools *p);
/* Bytes of held pages by type: [0] in K parts, [1] in V parts. */
void pd_kvpools_by_type(const pd_kvpools *p, uint64_t ret[2][PD_KV_ALL]);

#endif
