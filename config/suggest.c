/* SPDX-License-Identifier: Apache-2.0 */
/* Spelling suggestions (see suggest.h): Damerau's distance with the restricted
 * swap ("optimal string alignment"), three rows of a small table. */
#include "config/suggest.h"

#include <ctype.h>
#include <stdbool.h>
#include <string.h>

enum { LEN_MAX = 63 };

static char fold(char c) {
    return c == '_' ? '-' : (char)tolower((unsigned char)c);
}

static size_t min2(size_t a, size_t b) {
    return a < b ? a : b;
}

static size_t distance(const char *a, size_t n, const char *b, size_t m) {
    size_t row[3][LEN_MAX + 1];
    size_t *before = row[0], *prev = row[1], *cur = row[2];
    for (size_t j = 0; j <= m; j++) prev[j] = j;
    for (size_t i = 1; i <= n; i++) {
        cur[0] = i;
        for (size_t j = 1; j <= m; j++) {
            const bool same = fold(a[i - 1]) == fold(b[j - 1]);
            cur[j] = min2(min2(prev[j], cur[j - 1]) + 1, prev[j - 1] + !same);
            if (i > 1 && j > 1 && fold(a[i - 1]) == fold(b[j - 2]) &&
                fold(a[i - 2]) == fold(b[j - 1]))
                cur[j] = min2(cur[j], before[j - 2] + 1);
        }
        size_t *spare = before;
        before = prev;
        prev = cur;
        cur = spare;
    }
    return prev[m];
}

static bool begins(const char *a, const char *b, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (fold(a[i]) != fold(b[i])) return false;
    }
    return true;
}

void pd_suggest_offer(pd_suggest *s, const char *known) {
    const size_t n = strlen(s->word), m = strlen(known);
    if (n > LEN_MAX || m > LEN_MAX) return;
    const size_t shorter = min2(n, m), longer = n + m - shorter;
    size_t d = distance(s->word, n, known, m);
    const bool prefix = shorter >= 3 && begins(s->word, known, shorter);
    if (!prefix && d > min2(longer / 3, 3)) return;
    if (prefix) d = min2(d, 3); /* a cut-off word is as near as three slips */
    if (!s->best || d < s->distance) {
        s->best = known;
        s->distance = d;
    }
}
