/* SPDX-License-Identifier: Apache-2.0 */
/* Bounds of pages' keys (see bounds.h).  Cost of a key: it is read back once, and 2 *
 * head_dim numbers of its page's column are looked at. */
#include "engine/cache/bounds.h"

#include "engine/base/num.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N = PD_PAGE_TOKENS, ROW_MAX = 512 };

pd_status pd_bounds_init(pd_bounds *b, size_t n_head, size_t head_dim, const uint32_t *cap_pages, pd_err *err) {
    size_t total = 0;
    for (size_t i = 0; i < n_head; i++) total += pd_div_up(cap_pages[i], N);
    *b = (pd_bounds){.head_dim = head_dim, .n_head = n_head};
    b->head = calloc(n_head, sizeof *b->head);
    b->list = calloc(total + 1, sizeof(uint16_t *));
    if (!b->head || !b->list) {
        pd_bounds_done(b);
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the bounds of a sequence's pages");
    }
    uint16_t **next = b->list;
    for (size_t i = 0; i < n_head; i++) {
        b->head[i] = (pd_bounds_head){.block = next, .cap = (uint32_t)pd_div_up(cap_pages[i], N)};
        next += b->head[i].cap;
    }
    return PD_OK;
}

void pd_bounds_done(pd_bounds *b) {
    for (size_t i = 0; b->head && i < b->n_head; i++) pd_bounds_cut(b, i, 0);
    free(b->head);
    free(b->list);
    *b = (pd_bounds){0};
}

static pd_status add_block(pd_bounds *b, pd_bounds_head *h, pd_err *err) {
    assert(h->n_block < h->cap);
    h->block[h->n_block] = calloc(1, pd_bounds_block_bytes(b)); /* pages that are not there: 0, not NaN */
    if (!h->block[h->n_block]) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the bounds of a sequence's pages");
    h->n_block++;
    b->n_block++;
    return PD_OK;
}

void pd_bounds_cut(pd_bounds *b, size_t head, size_t n_page) {
    pd_bounds_head *h = &b->head[head];
    for (const size_t left = pd_div_up(n_page, N); h->n_block > left; b->n_block--) free(h->block[--h->n_block]);
}

/* x, or the next half beyond it in that direction (the bits of a finite half, signed). */
static void outwards(const pd_kernels *kern, const float *x, size_t n, bool up, uint16_t *h) {
    float back[ROW_MAX];
    kern->f32_to_f16(x, h, n);
    kern->f16_to_f32(h, back, n);
    for (size_t i = 0; i < n; i++) {
        if (up ? back[i] >= x[i] : back[i] <= x[i]) continue;
        const bool negative = h[i] & 0x8000;
        if ((h[i] & 0x7fff) == 0)
            h[i] = up ? 0x0001 : 0x8001;
        else
            h[i] = (uint16_t)(negative == up ? h[i] - 1 : h[i] + 1);
    }
}

/* Halves by their order. */
static inline int order(uint16_t h) {
    return h & 0x8000 ? -(int)(h & 0x7fff) : (int)h;
}

pd_status pd_bounds_add(pd_bounds *b, const pd_kernels *kern, size_t head, size_t page, bool fresh, const float *k, size_t n, pd_err *err) {
    pd_bounds_head *h = &b->head[head];
    const size_t d = b->head_dim;
    assert(d <= ROW_MAX && n > 0);
    if (page / N == h->n_block) PD_TRY(add_block(b, h, err));
    float least[ROW_MAX], largest[ROW_MAX];
    memcpy(least, k, d * sizeof *k);
    memcpy(largest, k, d * sizeof *k);
    for (size_t i = 1; i < n; i++) {
        for (size_t c = 0; c < d; c++) {
            const float x = k[i * d + c];
            least[c] = x < least[c] ? x : least[c];
            largest[c] = x > largest[c] ? x : largest[c];
        }
    }
    uint16_t lo[ROW_MAX], hi[ROW_MAX], *at = h->block[page / N] + page % N;
    outwards(kern, least, d, false, lo);
    outwards(kern, largest, d, true, hi);
    for (size_t c = 0; c < d; c++) {
        uint16_t *min = at + c * N, *max = at + (d + c) * N;
        if (fresh || order(lo[c]) < order(*min)) *min = lo[c];
        if (fresh || order(hi[c]) > order(*max)) *max = hi[c];
    }
    return PD_OK;
}

pd_status pd_bounds_copy(pd_bounds *b, const pd_bounds *from, pd_err *err) {
    for (size_t i = 0; from->head && i < from->n_head; i++) {
        const pd_bounds_head *src = &from->head[i];
        pd_bounds_head *h = &b->head[i];
        assert(src->n_block <= h->cap);
        for (uint32_t k = 0; k < src->n_block; k++) {
            if (k == h->n_block) PD_TRY(add_block(b, h, err));
            memcpy(h->block[k], src->block[k], pd_bounds_block_bytes(b));
        }
    }
    return PD_OK;
}
