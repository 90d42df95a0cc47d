/* SPDX-License-Identifier: Apache-2.0 */
/* Chunks of weights (see slab.h); what they are is kept apart from them. */
#include "engine/model/slab.h"

#include "engine/base/num.h"

#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { HUGE = 2 << 20, CHUNK = 16 * HUGE, LINE = 64 };

struct pd_slab_chunk {
    pd_slab_chunk *before;
    uint8_t *data;
    size_t bytes, used;
};

static pd_slab_chunk *chunk_new(size_t bytes) {
    size_t padded;
    if (!pd_add_size(bytes, HUGE - 1, &padded)) return NULL;
    padded = padded / HUGE * HUGE;
    pd_slab_chunk *c = malloc(sizeof *c);
    uint8_t *data = c ? aligned_alloc(HUGE, padded) : NULL;
    if (!data) {
        free(c);
        return NULL;
    }
    (void)madvise(data, padded, MADV_HUGEPAGE); /* a refusal costs speed only */
    *c = (pd_slab_chunk){.data = data, .bytes = padded};
    return c;
}

uint8_t *pd_slab_take(pd_slab *s, size_t bytes) {
    if (bytes > SIZE_MAX - LINE) return NULL;
    bytes = (bytes + LINE - 1) / LINE * LINE;
    pd_slab_chunk *c = s->chunk;
    if (!c || c->bytes - c->used < bytes) {
        pd_slab_chunk *fresh = chunk_new(pd_max_size(bytes, CHUNK));
        if (!fresh) return NULL;
        /* A large block fills its own: the one before has more room left. */
        const bool full = c && fresh->bytes - bytes < c->bytes - c->used;
        fresh->before = full ? c->before : c;
        if (full) c->before = fresh;
        else s->chunk = fresh;
        c = fresh;
    }
    uint8_t *ret = c->data + c->used;
    c->used += bytes;
    return ret;
}

void pd_slab_done(pd_slab *s) {
    while (s->chunk) {
        pd_slab_chunk *c = s->chunk;
        s->chunk = c->before;
        free(c->data);
        free(c);
    }
}
