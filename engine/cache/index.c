/* SPDX-License-Identifier: Apache-2.0 */
/* Codes beside the pages (see index.h).  Cost of a key: it is read back once and coded (codes.h). */
#include "engine/cache/index.h"

#include "engine/base/num.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { N = PD_PAGE_TOKENS };

static pd_status no_memory(pd_err *err) {
    return pd_fail(err, PD_ENOMEM, NULL, "no memory for the codes of a sequence's keys");
}

pd_status pd_index_init(pd_index *x, size_t n_head, const pd_book *kind, const uint32_t *cap_pages, pd_err *err) {
    size_t total = 0;
    for (size_t i = 0; i < n_head; i++) total += pd_div_up(cap_pages[i], N);
    *x = (pd_index){.head_dim = kind->head_dim, .sub = kind->sub, .n_centroid = kind->n_centroid, .book = kind->centroid, .weight = kind->weight,
                    .codec = pd_codec_of(kind->n_centroid > 16 ? PD_KV_CODES8 : PD_KV_CODES4, PD_KV_F16), .n_head = n_head};
    x->head = calloc(n_head, sizeof *x->head);
    x->list = calloc(total + 1, sizeof(uint8_t *));
    if (!x->head || !x->list) {
        pd_index_done(x);
        return no_memory(err);
    }
    uint8_t **next = x->list;
    for (size_t i = 0; i < n_head; i++) {
        x->head[i] = (pd_index_head){.block = next, .cap = (uint32_t)pd_div_up(cap_pages[i], N)};
        next += x->head[i].cap;
    }
    return PD_OK;
}

void pd_index_done(pd_index *x) {
    for (size_t i = 0; x->head && i < x->n_head; i++) pd_index_cut(x, i, 0);
    free(x->head);
    free(x->list);
    *x = (pd_index){0};
}

static pd_status add_block(pd_index *x, pd_index_head *h, pd_err *err) {
    assert(h->n_block < h->cap);
    h->block[h->n_block] = calloc(N, pd_index_page_bytes(x)); /* slots that are not there: centroid 0 */
    if (!h->block[h->n_block]) return no_memory(err);
    h->n_block++;
    x->n_block++;
    return PD_OK;
}

void pd_index_cut(pd_index *x, size_t head, size_t n_page) {
    pd_index_head *h = &x->head[head];
    for (const size_t left = pd_div_up(n_page, N); h->n_block > left; x->n_block--) free(h->block[--h->n_block]);
}

pd_status pd_index_add(pd_index *x, const pd_kernels *kern, size_t head, size_t page, size_t slot, const float *k, size_t n, pd_err *err) {
    pd_index_head *h = &x->head[head];
    const pd_book book = pd_index_book(x, head);
    const size_t n_code = pd_book_codes(&book);
    if (page / N == h->n_block) PD_TRY(add_block(x, h, err));
    uint8_t *at = h->block[page / N] + page % N * pd_index_page_bytes(x);
    for (size_t i = 0; i < n; i++) {
        float code[PD_CODES_MAX];
        pd_book_encode(&book, kern, k + i * x->head_dim, code);
        x->codec.k->write(kern, at, n_code, slot + i, 1, code, n_code);
    }
    return PD_OK;
}

pd_status pd_index_copy(pd_index *x, const pd_index *from, pd_err *err) {
    for (size_t i = 0; from->head && i < from->n_head; i++) {
        const pd_index_head *src = &from->head[i];
        pd_index_head *h = &x->head[i];
        assert(src->n_block <= h->cap);
        for (uint32_t k = 0; k < src->n_block; k++) {
            if (k == h->n_block) PD_TRY(add_block(x, h, err));
            memcpy(h->block[k], src->block[k], N * pd_index_page_bytes(x));
        }
    }
    return PD_OK;
}
