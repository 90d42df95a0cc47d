/* SPDX-License-Identifier: Apache-2.0 */
/* An arena: many allocations, one release.
 *
 *   chunk -> chunk -> chunk          each chunk: header | objects ... | free
 *
 * What one request or one press call needs lives in one arena and goes in one
 * call.  Objects are 64-byte aligned (a vector load of any ISA).  Thread: one
 * at a time. */
#ifndef PD_ENGINE_BASE_ARENA_H
#define PD_ENGINE_BASE_ARENA_H

#include <stddef.h>

typedef struct pd_arena_chunk pd_arena_chunk;

typedef struct pd_arena {
    pd_arena_chunk *head;
    size_t used; /* bytes handed out since the last reset */
    size_t peak; /* highest `used` */
} pd_arena;

/* An all-zero pd_arena is a valid empty one. */

/* n * size bytes, uninitialised; NULL on overflow or no memory. */
void *pd_arena_alloc(pd_arena *a, size_t n, size_t size);
void *pd_arena_zalloc(pd_arena *a, size_t n, size_t size); /* zeroed */
char *pd_arena_strndup(pd_arena *a, const char *s, size_t n);

/* Forget all objects; keep one chunk big enough for what was used. */
void pd_arena_reset(pd_arena *a);
void pd_arena_done(pd_arena *a); /* free all; `a` is empty again; NULL is fine */

#define PD_ARENA_NEW(a, n, type) ((type *)pd_arena_alloc((a), (n), sizeof(type)))

#endif
