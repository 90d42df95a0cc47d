/* SPDX-License-Identifier: Apache-2.0 */
/* The page pool: the KV memory of one kind of page, and the only place that counts
 * it (pools.h has one for each kind).
 *
 * One virtual reservation; a page costs physical memory from its first write
 * until it is given back to the operating system.
 *
 *     n_total  ==  n_free + n_seq + n_store                       (counting equation)
 *     n_free   ==  n_dirty + n_clean + (n_total - n_fresh)
 *
 * dirty = free, memory still ours (at most the hysteresis after a trim);
 * clean = free, memory returned; n_fresh = pages ever handed out (the rest was
 * never touched).  pd_kvpool_check executes both lines; debug builds do so whenever
 * a sequence ends or is pressed, tests after every case.
 *
 * Beside each page lie its 16 slots' positions (int32; 64 bytes a page).
 * Thread: engine, except the counters, which are atomics anyone may read. */
#ifndef PD_ENGINE_CACHE_POOL_H
#define PD_ENGINE_CACHE_POOL_H

#include "engine/base/err.h"
#include "engine/kernels/kernels.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Who holds a page; the first is nobody. */
typedef enum { PD_PAGE_FREE, PD_PAGE_SEQ, PD_PAGE_STORE } pd_page_owner;

typedef struct pd_kvpool {
    uint8_t *base; /* page i at base + i * page_bytes */
    int32_t *pos;  /* slot s of page i at pos[i * PD_PAGE_TOKENS + s] */
    size_t page_bytes;
    uint32_t n_total;

    /* engine thread only */
    uint8_t *owner;   /* [n_total] pd_page_owner */
    uint32_t *dirty;  /* stack of free pages whose memory we still hold */
    uint32_t *clean;  /* stack of free pages whose memory went back */
    uint32_t n_fresh; /* pages below it were handed out at least once */
    uint32_t hysteresis; /* dirty pages kept by a trim */
    uint64_t trim_at;    /* dirty pages at which the next trim comes by itself */
    bool by_pieces;      /* giving leaves it to pd_kvpool_tidy */
    uint32_t n_settled;  /* of those at work, the lowest of the stack that stay */
    bool tidying;        /* a round has begun */
    size_t map_bytes, pos_bytes, owner_bytes, stack_bytes; /* sizes of the mappings */

    /* written by the engine thread, read by anyone (relaxed: single numbers) */
    _Atomic uint32_t n_dirty, n_clean, n_free, n_seq, n_store;
} pd_kvpool;

/* max_bytes is rounded down to whole pages (at least one is required);
 * hysteresis_bytes of free memory are kept to avoid a system call per page.
 * Errors: EINVAL (sizes), ENOMEM (address space). */
pd_status pd_kvpool_init(pd_kvpool *p, size_t page_bytes, uint64_t max_bytes,
                         size_t hysteresis_bytes, pd_err *err);
void pd_kvpool_done(pd_kvpool *p); /* all-zero and half-made pools too */

/* One page for `owner`, or false if none is free.  Its content is undefined. */
bool pd_kvpool_take(pd_kvpool *p, pd_page_owner owner, uint32_t *ret);

/* Give back one page; unless by_pieces, trims by itself when the dirty ones exceed twice the
 * hysteresis (later if what is there could not go back: neighbours of held pages
 * in a size that is no multiple of the system's). */
void pd_kvpool_give(pd_kvpool *p, uint32_t page);
/* The same in pieces, for who calls it again and again: at most `most` pages at once. */
void pd_kvpool_tidy(pd_kvpool *p, uint32_t most);

/* Return free memory to the operating system until at most `keep` dirty pages
 * are left (whole OS pages only: neighbours of used small pages stay). */
void pd_kvpool_trim(pd_kvpool *p, uint32_t keep);

/* True if the counting equations hold and agree with the page table. O(n_fresh). */
bool pd_kvpool_check(const pd_kvpool *p);

static inline void *pd_kvpool_page(const pd_kvpool *p, uint32_t page) {
    return p->base + (size_t)page * p->page_bytes;
}

static inline int32_t *pd_kvpool_pos(const pd_kvpool *p, uint32_t page) {
    return p->pos + (size_t)page * PD_PAGE_TOKENS;
}

#endif
