/* SPDX-License-Identifier: Apache-2.0 */
/* What every reader of calls looks at in a text.  Thread: any. */
#ifndef PD_SERVER_TOOL_TEXT_H
#define PD_SERVER_TOOL_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* JSON's white space. */
static inline bool pd_tool_white(char c) {
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

/* s[n] begins with `mark` (1), may yet (0), does not (-1). */
static inline int pd_tool_starts(const char *s, size_t n, const char *mark) {
    const size_t len = strlen(mark), k = n < len ? n : len;
    if (k && memcmp(s, mark, k) != 0) return -1;
    return k == len;
}

#endif
