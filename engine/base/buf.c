/* SPDX-License-Identifier: Apache-2.0 */
/* The bounded byte string (see buf.h). */
#include "engine/base/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void pd_buf_init(pd_buf *b, size_t limit) {
    *b = (pd_buf){.limit = limit};
}

void pd_buf_done(pd_buf *b) {
    if (!b) return;
    free(b->data);
    *b = (pd_buf){.limit = b->limit};
}

void pd_buf_clear(pd_buf *b) {
    b->len = 0;
    b->failed = false;
    if (b->data) b->data[0] = '\0';
}

void pd_buf_cut(pd_buf *b, size_t len) {
    b->len = len;
    if (b->data) b->data[len] = '\0';
}

/* Room for n more bytes and the NUL. */
static bool reserve(pd_buf *b, size_t n) {
    if (b->failed) return false;
    const size_t limit = b->limit ? b->limit : PD_BUF_LIMIT_DEFAULT;
    if (n > limit || b->len > limit - n) {
        b->failed = true;
        return false;
    }
    if (b->len + n + 1 <= b->cap) return true;
    size_t cap = b->cap ? b->cap : 256;
    while (cap < b->len + n + 1) cap += cap / 2 + 1;
    char *p = realloc(b->data, cap);
    if (!p) {
        b->failed = true;
        return false;
    }
    b->data = p;
    b->cap = cap;
    return true;
}

void pd_buf_add(pd_buf *b, const void *data, size_t n) {
    if (!reserve(b, n)) return;
    if (n) memcpy(b->data + b->len, data, n);
    b->len += n;
    b->data[b->len] = '\0';
}

void pd_buf_puts(pd_buf *b, const char *s) {
    pd_buf_add(b, s, strlen(s));
}

void pd_buf_putc(pd_buf *b, char c) {
    pd_buf_add(b, &c, 1);
}

void pd_buf_printf(pd_buf *b, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    const int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n >= 0 && reserve(b, (size_t)n)) {
        vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    }
    va_end(again);
}

void pd_buf_drop(pd_buf *b, size_t n) {
    memmove(b->data, b->data + n, b->len - n);
    b->len -= n;
    b->data[b->len] = '\0';
}

char *pd_buf_take(pd_buf *b) {
    if (b->failed) return NULL;
    char *p = b->data;
    *b = (pd_buf){.limit = b->limit};
    return p;
}
