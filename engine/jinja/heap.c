/* SPDX-License-Identifier: Apache-2.0 */
/* Small objects of one rendering (see heap.h). */
#include "engine/jinja/heap.h"

#include "engine/base/num.h"

enum { ALIGN = 16, BLOCK = 16 << 10 };

void *pd_jheap_alloc(pd_jheap *h, size_t n, size_t size) {
    size_t bytes, limit = h->limit ? h->limit : PD_JHEAP_LIMIT_DEFAULT;
    if (h->failed || !pd_mul_size(n, size, &bytes) || bytes > limit - pd_min_size(h->used, limit)) {
        h->failed = true;
        return NULL;
    }
    bytes = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    if (bytes == 0) bytes = ALIGN;
    if ((size_t)(h->end - h->at) < bytes) {
        /* A large object gets a block of its own: the rest of the newest one stays. */
        const bool own = bytes > BLOCK / 4;
        char *p = pd_arena_alloc(&h->arena, own ? bytes : BLOCK, 1);
        if (!p) {
            h->failed = true;
            return NULL;
        }
        h->used += bytes;
        if (own) return p;
        h->at = p + bytes;
        h->end = p + BLOCK;
        return p;
    }
    void *p = h->at;
    h->at += bytes;
    h->used += bytes;
    return p;
}

void pd_jheap_done(pd_jheap *h) {
    if (!h) return;
    pd_arena_done(&h->arena);
    h->at = h->end = NULL;
    h->used = 0;
    h->compared = 0;
    h->failed = false;
}
