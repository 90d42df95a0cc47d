/* SPDX-License-Identifier: Apache-2.0 */
/* See failing_malloc.h. */
#include "tests/unit/failing_malloc.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

static _Atomic long left = -1;
static _Atomic unsigned long failed, count;

void failing_malloc_after(long n) {
    atomic_store(&left, n);
}

unsigned long failing_malloc_failed(void) {
    return atomic_load(&failed);
}

unsigned long failing_malloc_count(void) {
    return atomic_load(&count);
}

static bool fails(void) {
    atomic_fetch_add(&count, 1);
    long n = atomic_load(&left);
    while (n > 0 && !atomic_compare_exchange_weak(&left, &n, n - 1)) continue;
    if (n == 0) atomic_fetch_add(&failed, 1);
    return n == 0;
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t align, size_t n);
char *__real_strdup(const char *s);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t align, size_t n);
char *__wrap_strdup(const char *s);

void *__wrap_malloc(size_t n) {
    return fails() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size) {
    return fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n) {
    return fails() ? NULL : __real_realloc(p, n);
}

void *__wrap_aligned_alloc(size_t align, size_t n) {
    return fails() ? NULL : __real_aligned_alloc(align, n);
}

char *__wrap_strdup(const char *s) {
    return fails() ? NULL : __real_strdup(s);
}
