/* SPDX-License-Identifier: Apache-2.0 */
/* A growable byte string with a named limit.
 *
 * Writers append and need not look at each result: the first failure (limit or
 * memory) is kept in `failed` and what follows is ignored, so a caller writes a
 * whole message and tests once.  `data` is always NUL-terminated once anything
 * was appended (the NUL is not counted in `len`).  Thread: one at a time. */
#ifndef PD_ENGINE_BASE_BUF_H
#define PD_ENGINE_BASE_BUF_H

#include <stdbool.h>
#include <stddef.h>

typedef struct pd_buf {
    char *data;
    size_t len, cap;
    size_t limit; /* most bytes it may hold; 0 = PD_BUF_LIMIT_DEFAULT */
    bool failed;
} pd_buf;

#define PD_BUF_LIMIT_DEFAULT ((size_t)64 << 20)

/* An all-zero pd_buf is a valid empty one; init only names another limit. */
void pd_buf_init(pd_buf *b, size_t limit);
void pd_buf_done(pd_buf *b); /* frees; b may be NULL or half-made; b is empty again */
void pd_buf_clear(pd_buf *b); /* len = 0, failed = false, memory kept */
void pd_buf_cut(pd_buf *b, size_t len); /* to its first len bytes, len <= b->len; failed stays */

void pd_buf_add(pd_buf *b, const void *data, size_t n);
void pd_buf_puts(pd_buf *b, const char *s);
void pd_buf_putc(pd_buf *b, char c);
void pd_buf_printf(pd_buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Remove the first n bytes (n <= len). */
void pd_buf_drop(pd_buf *b, size_t n);

/* Hand the memory to the caller (free() it); b becomes empty.  NULL if it
 * failed or is empty. */
char *pd_buf_take(pd_buf *b);

#endif
