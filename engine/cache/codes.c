/* SPDX-License-Identifier: Apache-2.0 */
/* Product codes of keys (see codes.h).  Cost: to code a key, or to make a query's table,
 * head_dim * n_centroid multiply-adds. */
#include "engine/cache/codes.h"

const pd_book_kind pd_books[PD_BOOKS] = {{2, 256}, {4, 256}, {8, 256}, {2, 16}, {4, 16}, {8, 16}};

void pd_book_weigh(size_t head_dim, const float *weight, const float *x, float *ret) {
    const size_t half = head_dim / 2;
    for (size_t i = 0; i < half; i++) {
        ret[i] = weight[i] * x[i];
        ret[i + half] = weight[i] * x[i + half];
    }
}

void pd_book_encode(const pd_book *b, const pd_kernels *kern, const float *k, float *code) {
    float row[PD_BOOK_DIM_MAX];
    pd_book_weigh(b->head_dim, b->weight, k, row);
    for (size_t i = 0; i < pd_book_codes(b); i++) {
        const size_t at = i * b->sub;
        code[i] = (float)kern->nearest_f32(row + at, b->centroid + at * b->n_centroid, b->sub, b->n_centroid);
    }
}

void pd_book_decode(const pd_book *b, const float *code, float *k) {
    for (size_t i = 0; i < b->head_dim; i++) {
        const float x = b->centroid[i * b->n_centroid + (size_t)code[i / b->sub]];
        k[i] = x / b->weight[i % (b->head_dim / 2)];
    }
}

void pd_book_table(const pd_book *b, const pd_kernels *kern, const float *q, uint8_t *table, float *least, float *step) {
    float row[PD_BOOK_DIM_MAX];
    const size_t half = b->head_dim / 2;
    for (size_t i = 0; i < half; i++) {
        row[i] = q[i] / b->weight[i];
        row[i + half] = q[i + half] / b->weight[i];
    }
    kern->code_table(row, b->centroid, b->sub, pd_book_codes(b), b->n_centroid, table, least, step);
}
