/* SPDX-License-Identifier: Apache-2.0 */
/* Special pieces inside a text: the longest one at a position.
 *
 * A sorted list narrowed byte by byte stands in for a trie: no nodes, and a
 * position that starts none costs one table look-up.  At most the longest
 * piece's length is read per position. */
#include "engine/tokenizer/vocab.h"

#include <stdlib.h>
#include <string.h>

static int by_text(const void *a, const void *b, void *ctx) {
    const pd_tokenizer *t = ctx;
    const pd_str x = pd__piece_text(t, *(const int32_t *)a), y = pd__piece_text(t, *(const int32_t *)b);
    const int c = memcmp(x.data, y.data, x.len < y.len ? x.len : y.len);
    return c ? c : (x.len > y.len) - (x.len < y.len);
}

static bool is_special(const pd__piece *p) {
    return p->text_len > 0 &&
           (p->type == PD__TYPE_CONTROL || p->type == PD__TYPE_UNKNOWN || p->type == PD__TYPE_USER);
}

pd_status pd__special_index(pd_tokenizer *t, pd_err *err) {
    uint32_t n = 0;
    for (uint32_t id = 0; id < t->info.n_vocab; id++) n += is_special(&t->piece[id]);
    t->special = malloc((n + 1) * sizeof *t->special);
    if (!t->special) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the special tokens");
    for (uint32_t id = 0; id < t->info.n_vocab; id++) {
        if (is_special(&t->piece[id])) t->special[t->n_special++] = (int32_t)id;
    }
    qsort_r(t->special, n, sizeof *t->special, by_text, t);
    uint32_t i = 0;
    for (unsigned c = 0; c < 256; c++) {
        t->special_first[c] = i;
        while (i < n && (unsigned char)pd__piece_text(t, t->special[i]).data[0] == c) i++;
    }
    t->special_first[256] = n;
    return PD_OK;
}

/* First index in [lo, hi) whose byte at `depth` is >= c; pieces that end there
 * come first in the order and count as less. */
static uint32_t lower(const pd_tokenizer *t, uint32_t lo, uint32_t hi, size_t depth, unsigned c) {
    while (lo < hi) {
        const uint32_t mid = lo + (hi - lo) / 2;
        const pd_str s = pd__piece_text(t, t->special[mid]);
        if (s.len <= depth || (unsigned char)s.data[depth] < c) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

int32_t pd__special_match(const pd_tokenizer *t, const char *s, size_t n, size_t control_max, size_t *len) {
    int32_t best = -1;
    if (n == 0) return best;
    uint32_t lo = t->special_first[(unsigned char)s[0]], hi = t->special_first[(unsigned char)s[0] + 1];
    for (size_t depth = 1; lo < hi; depth++) {
        const int32_t id = t->special[lo];
        const pd__piece *p = &t->piece[id];
        if (p->text_len == depth && (p->type == PD__TYPE_USER || depth <= control_max)) {
            best = id;
            *len = depth;
        }
        if (depth >= n) break;
        const unsigned c = (unsigned char)s[depth];
        lo = lower(t, lo, hi, depth, c);
        hi = lower(t, lo, hi, depth, c + 1);
    }
    return best;
}
