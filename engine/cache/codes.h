/* SPDX-License-Identifier: Apache-2.0 */
/* Keys of one KV head as product codes (Jegou, Douze, Schmid 2011; HCAttention, 2507.19823).
 *
 * A rotated key is cut into parts of `sub` numbers, and each part is the nearest of its own
 * 256 or 16 centroids: one byte or half a byte.  Parts are not cut from the channels as they
 * stand but from
 *     0, d/2, 1, d/2 + 1, 2, d/2 + 2 ...
 * so that the two that RoPE turns together are in one part; and "nearest" weighs each such pair by
 * how large queries are in it, since an error there is multiplied by them.
 *
 * A query's product with every centroid of every part is a table; a key's score is the sum of
 * what its codes find there, whatever its position.  Thread: any. */
#ifndef PD_ENGINE_CACHE_CODES_H
#define PD_ENGINE_CACHE_CODES_H

#include "engine/kernels/kernels.h"

#include <stddef.h>
#include <stdint.h>

enum { PD_BOOK_DIM_MAX = 512, PD_BOOKS = 6, PD_CODES_MAX = 256 };

/* The kinds there are. */
typedef struct pd_book_kind {
    size_t sub, n_centroid;
} pd_book_kind;
extern const pd_book_kind pd_books[PD_BOOKS];

/* One head's. */
typedef struct pd_book {
    size_t head_dim, sub, n_centroid; /* head_dim % 16 == 0 */
    /* borrowed: */
    const float *centroid; /* [head_dim][n_centroid]: rows in the order of parts, of weighed keys */
    const float *weight;   /* [head_dim / 2] > 0: a key's pair times this is what its centroid stands for */
} pd_book;

static inline size_t pd_book_codes(const pd_book *b) {
    return b->head_dim / b->sub;
}

/* A key x[head_dim] in the order of parts, weighed. */
void pd_book_order(size_t head_dim, const float *weight, const float *x, float *ret);

/* A rotated key's codes [pd_book_codes], as whole numbers (a codec makes bytes of them), and the
 * key that they stand for. */
void pd_book_encode(const pd_book *b, const pd_kernels *kern, const float *k, float *code);
void pd_book_decode(const pd_book *b, const float *code, float *k);

/* Scores of a query q [head_dim], scaled: table [pd_book_codes][n_centroid], with what
 * code_table in kernels.h says of it. */
void pd_book_table(const pd_book *b, const pd_kernels *kern, const float *q, uint8_t *table, float *least, float *step);

#endif
