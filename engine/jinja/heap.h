/* SPDX-License-Identifier: Apache-2.0 */
/* Small objects of one rendering: an arena with a limit.
 *
 * Objects are 16-byte aligned and carved out of blocks of the arena, whose own are
 * 64-byte aligned and would waste most of a value's room.  The first failure (limit or
 * memory) is kept in `failed`.  Thread: one at a time. */
#ifndef PD_ENGINE_JINJA_HEAP_H
#define PD_ENGINE_JINJA_HEAP_H

#include "engine/base/arena.h"

#include <stdbool.h>
#include <stdint.h>

#define PD_JHEAP_LIMIT_DEFAULT ((size_t)256 << 20)

typedef struct pd_jheap {
    pd_arena arena;
    char *at, *end;     /* what is left of the newest block */
    size_t used, limit; /* bytes taken and allowed; limit 0 = the default */
    uint64_t compared;  /* bytes that comparing values has looked at, not yet counted as steps */
    bool failed;
} pd_jheap;

/* An all-zero heap is a valid empty one. */

/* n * size bytes, uninitialised; NULL on overflow, over the limit or no memory. */
void *pd_jheap_alloc(pd_jheap *h, size_t n, size_t size);
void pd_jheap_done(pd_jheap *h); /* frees everything; empty again; NULL is fine */

#define PD_JNEW(h, n, type) ((type *)pd_jheap_alloc((h), (n), sizeof(type)))

#endif
