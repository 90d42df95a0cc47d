/* SPDX-License-Identifier: Apache-2.0 */
/* The least and the largest number of every channel of each page's keys, beside the pages
 * of one sequence: what bounds a query's scores in a page without reading it (Quest,
 * 2406.10774).  Of the keys as they are stored: less their centre (kv.h), in f16 rounded
 * outwards, so that the bound holds for every type.
 *
 * Blocks of 16 pages, one allocation each, come with the head's pages and go with them:
 *     block: least [head_dim][16 pages]  largest [head_dim][16 pages]      f16
 * Cost: 4 * head_dim bytes a page (a sixteenth of one in f16).  Thread: engine. */
#ifndef PD_ENGINE_CACHE_BOUNDS_H
#define PD_ENGINE_CACHE_BOUNDS_H

#include "engine/base/err.h"
#include "engine/kernels/kernels.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct pd_bounds_head {
    uint16_t **block; /* [n_block], room for cap */
    uint32_t n_block, cap;
} pd_bounds_head;

typedef struct pd_bounds {
    size_t head_dim, n_head; /* heads of all layers */
    pd_bounds_head *head;    /* cap 0: the head has none */
    uint16_t **list;         /* all block lists in one */
    size_t n_block;          /* held now */
} pd_bounds;

/* cap_pages[i] = most pages of head i; 0 = it gets no bounds.  Errors: ENOMEM. */
pd_status pd_bounds_init(pd_bounds *b, size_t n_head, size_t head_dim, const uint32_t *cap_pages, pd_err *err);
void pd_bounds_done(pd_bounds *b); /* all-zero is fine */

static inline bool pd_bounds_has(const pd_bounds *b, size_t head) {
    return b->head && b->head[head].cap;
}

/* Page `page` (at most one behind those there are) holds these n keys [n][head_dim] too;
 * fresh: it held none.  Errors: ENOMEM. */
pd_status pd_bounds_add(pd_bounds *b, const pd_kernels *kern, size_t head, size_t page, bool fresh, const float *k, size_t n, pd_err *err);

/* Only the first n pages are left. */
void pd_bounds_cut(pd_bounds *b, size_t head, size_t n_page);

/* What `from`, of the same shape, holds.  Errors: ENOMEM. */
pd_status pd_bounds_copy(pd_bounds *b, const pd_bounds *from, pd_err *err);

static inline size_t pd_bounds_block_bytes(const pd_bounds *b) {
    return 2 * b->head_dim * PD_PAGE_TOKENS * sizeof(uint16_t);
}

static inline uint64_t pd_bounds_bytes(const pd_bounds *b) {
    return (uint64_t)b->n_block * pd_bounds_block_bytes(b);
}

#endif
