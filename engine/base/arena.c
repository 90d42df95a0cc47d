/* SPDX-License-Identifier: Apache-2.0 */
/* The arena (see arena.h).  Chunks double from 64 KiB, so a long-lived arena
 * settles at one chunk after its first reset and never calls malloc again. */
#include "engine/base/arena.h"

#include "engine/base/num.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGN = 64, CHUNK_MIN = 64 << 10 };

struct pd_arena_chunk {
    pd_arena_chunk *next;
    size_t cap, used; /* payload bytes */
    _Alignas(ALIGN) char data[];
};

static pd_arena_chunk *chunk_new(size_t cap, pd_arena_chunk *next) {
    size_t total;
    if (!pd_add_size(sizeof(pd_arena_chunk), cap, &total)) return NULL;
    total = (total + ALIGN - 1) / ALIGN * ALIGN;
    pd_arena_chunk *c = aligned_alloc(ALIGN, total);
    if (!c) return NULL;
    c->next = next;
    c->cap = total - sizeof(pd_arena_chunk);
    c->used = 0;
    return c;
}

void *pd_arena_alloc(pd_arena *a, size_t n, size_t size) {
    size_t bytes;
    if (!pd_mul_size(n, size, &bytes) || bytes > SIZE_MAX / 4) return NULL;
    bytes = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    if (bytes == 0) bytes = ALIGN;
    if (!a->head || a->head->cap - a->head->used < bytes) {
        size_t cap = a->head ? a->head->cap * 2 : CHUNK_MIN;
        if (cap < bytes) cap = bytes;
        pd_arena_chunk *c = chunk_new(cap, a->head);
        if (!c) return NULL;
        a->head = c;
    }
    void *p = a->head->data + a->head->used;
    a->head->used += bytes;
    a->used += bytes;
    if (a->used > a->peak) a->peak = a->used;
    return p;
}

void *pd_arena_zalloc(pd_arena *a, size_t n, size_t size) {
    void *p = pd_arena_alloc(a, n, size);
    if (p) memset(p, 0, n * size);
    return p;
}

char *pd_arena_strndup(pd_arena *a, const char *s, size_t n) {
    size_t bytes;
    if (!pd_add_size(n, 1, &bytes)) return NULL;
    char *p = pd_arena_alloc(a, bytes, 1);
    if (!p) return NULL;
    memcpy(p, s, n);
    p[n] = '\0';
    return p;
}

void pd_arena_reset(pd_arena *a) {
    if (a->head && a->head->next) {
        const size_t want = a->used;
        pd_arena_done(a);
        a->head = chunk_new(want < CHUNK_MIN ? CHUNK_MIN : want, NULL); /* NULL: made on demand */
    }
    if (a->head) a->head->used = 0;
    a->used = 0;
}

void pd_arena_done(pd_arena *a) {
    if (!a) return;
    while (a->head) {
        pd_arena_chunk *c = a->head;
        a->head = c->next;
        free(c);
    }
    a->used = 0;
}
