/* SPDX-License-Identifier: Apache-2.0 */
/* Codes of every page's keys (codes.h), beside the pages of one sequence: what a query's scores are
 * about, without reading the keys.  Of the keys as they are stored.
 *
 * Blocks of 16 pages, one allocation each, come with the head's pages and go with them; in a block
 * the pages' codes follow each other as in a page of codes (kernels.h).
 * Cost: head_dim / sub bytes a slot, half of that with 16 centroids.  Thread: engine. */
#ifndef PD_ENGINE_CACHE_INDEX_H
#define PD_ENGINE_CACHE_INDEX_H

#include "engine/base/err.h"
#include "engine/cache/codec.h"
#include "engine/cache/codes.h"

#include <stdbool.h>

typedef struct pd_index_head {
    uint8_t **block; /* [n_block], room for cap */
    uint32_t n_block, cap;
} pd_index_head;

typedef struct pd_index {
    size_t head_dim, sub, n_centroid;
    const float *book, *weight; /* [n_head][head_dim][n_centroid], [n_head][head_dim / 2], borrowed */
    pd_codec codec;      /* of a page's codes; its values are not used */
    size_t n_head;       /* heads of all layers */
    pd_index_head *head; /* cap 0: the head has none */
    uint8_t **list;      /* all block lists in one */
    size_t n_block;      /* held now */
} pd_index;

/* kind: head_dim, sub, n_centroid, and the first head's centroids and weights; cap_pages[i] = most pages of head i,
 * 0 = it gets no codes.  Errors: ENOMEM. */
pd_status pd_index_init(pd_index *x, size_t n_head, const pd_book *kind, const uint32_t *cap_pages, pd_err *err);
void pd_index_done(pd_index *x); /* all-zero is fine */

static inline bool pd_index_has(const pd_index *x, size_t head) {
    return x->head && x->head[head].cap;
}

static inline pd_book pd_index_book(const pd_index *x, size_t head) {
    return (pd_book){x->head_dim, x->sub, x->n_centroid, x->book + head * x->head_dim * x->n_centroid,
                     x->weight + head * (x->head_dim / 2)};
}

/* Bytes of a page's codes. */
static inline size_t pd_index_page_bytes(const pd_index *x) {
    return x->codec.k->bytes(x->head_dim / x->sub);
}

static inline const uint8_t *pd_index_page(const pd_index *x, size_t head, size_t page) {
    return x->head[head].block[page / PD_PAGE_TOKENS] + page % PD_PAGE_TOKENS * pd_index_page_bytes(x);
}

/* Slots [slot, slot + n) of page `page` (at most one behind those there are) hold these keys
 * [n][head_dim].  Errors: ENOMEM. */
pd_status pd_index_add(pd_index *x, const pd_kernels *kern, size_t head, size_t page, size_t slot, const float *k, size_t n, pd_err *err);

/* Only the first n pages are left. */
void pd_index_cut(pd_index *x, size_t head, size_t n_page);

/* What `from`, of the same shape, holds.  Errors: ENOMEM. */
pd_status pd_index_copy(pd_index *x, const pd_index *from, pd_err *err);

static inline uint64_t pd_index_bytes(const pd_index *x) { /* 0 for an all-zero one */
    return x->n_block ? (uint64_t)x->n_block * PD_PAGE_TOKENS * pd_index_page_bytes(x) : 0;
}

#endif
