/* SPDX-License-Identifier: Apache-2.0 */
/* Keys of one KV head as product codes (Jegou, Douze, Schmid 2011; HCAttention, 2507.19823).
 *
 * A rotated key is cut into parts of `sub` channels as they stand, and each part is the nearest of its
 * own 256 or 16 centroids: one byte or half a byte.  "Nearest" weighs each pair of channels that RoPE
 * turns together (i and i + d/2) by how large queries are in it, since an error there is multiplied by
 * them.  Neighbours turn by nearly the same angle, so that a part of them is easier to tell than one of
 * the two that turn together: with 2 numbers a code, Spearman's correlation with the keys' own scores is
 * 0.995 against 0.990, and with 16 centroids 0.952 against 0.903 (SmolLM2).
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
    const float *centroid; /* [head_dim][n_centroid]: one row a channel, of weighed keys */
    const float *weight;   /* [head_dim / 2] > 0: a key's pair times this is what its centroid stands for */
} pd_book;

static inline size_t pd_book_codes(const pd_book *b) {
    return b->head_dim / b->sub;
}

/* A key x[head_dim], weighed. */
void pd_book_weigh(size_t head_dim, const float *weight, const float *x, float *ret);

/* A rotated key's codes [pd_book_codes], as whole numbers (a codec makes bytes of them), and the
 * key that they stand for. */
void pd_book_encode(const pd_book *b, const pd_kernels *kern, const float *k, float *code);
void pd_book_decode(const pd_book *b, const float *code, float *k);

/* Scores of a query q [head_dim], scaled: table [pd_book_codes][n_centroid], with what
 * code_table in kernels.h says of it. */
void pd_book_table(const pd_book *b, const pd_kernels *kern, const float *q, uint8_t *table, float *least, float *step);

#endif
