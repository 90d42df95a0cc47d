/* SPDX-License-Identifier: Apache-2.0 */
/* Streamed detokenisation: tokens end inside code points, what is sent must not.
 *
 * At most three bytes are held back.  A sequence that can no longer become
 * well-formed is replaced as a whole by one U+FFFD (the Unicode standard's
 * "maximal subpart" practice), so text decoded at once or in pieces is equal. */
#include "engine/tokenizer/vocab.h"

#include "engine/base/utf8.h"

#include <string.h>

#define REPLACEMENT "\xEF\xBF\xBD"

/* Bytes at s that form the longest start of a well-formed sequence, at least 1. */
static size_t subpart(const char *s, size_t n) {
    for (size_t k = n < 3 ? n : 3; k > 1; k--) {
        if (pd_utf8_incomplete_tail(s, k) == k) return k;
    }
    return 1;
}

size_t pd_detok_max(const pd_tokenizer *t) {
    return 3 * ((size_t)t->max_bytes + 4); /* every byte may become a U+FFFD */
}

size_t pd_detok_next(const pd_tokenizer *t, pd_detok *d, int32_t id, bool special, char *dst, size_t cap) {
    (void)cap;
    pd_str s = pd_token_bytes(t, id, special);
    if (s.len == 0) return 0;
    if (!d->started && t->info.add_space_prefix && !pd_token_is_special(t, id) && s.data[0] == ' ') {
        s.data++;
        s.len--;
    }
    d->started = true;

    /* The held bytes and the start of the new ones, side by side, as far as a
     * sequence that begins in the former can reach. */
    char head[8];
    size_t n_head = d->n_hold, taken = 0, out = 0, i = 0;
    memcpy(head, d->hold, d->n_hold);
    while (n_head > 0 && n_head < sizeof head && taken < s.len && taken < 4) head[n_head++] = s.data[taken++];

    const size_t n_hold = d->n_hold;
    d->n_hold = 0;
    while (i < n_hold) {
        const size_t len = pd_utf8_next(head + i, n_head - i, NULL);
        if (len == 0 && pd_utf8_incomplete_tail(head + i, n_head - i) == n_head - i && taken == s.len) {
            d->n_hold = (unsigned)(n_head - i);
            memcpy(d->hold, head + i, n_head - i);
            return out;
        }
        const size_t bad = len ? 0 : subpart(head + i, n_head - i);
        memcpy(dst + out, len ? head + i : REPLACEMENT, len ? len : 3);
        out += len ? len : 3;
        i += len ? len : bad;
    }
    for (size_t p = i - n_hold; p < s.len;) {
        const size_t left = s.len - p, len = pd_utf8_next(s.data + p, left, NULL);
        if (len == 0 && left < 4 && pd_utf8_incomplete_tail(s.data + p, left) == left) {
            d->n_hold = (unsigned)left;
            memcpy(d->hold, s.data + p, left);
            break;
        }
        memcpy(dst + out, len ? s.data + p : REPLACEMENT, len ? len : 3);
        out += len ? len : 3;
        p += len ? len : subpart(s.data + p, left);
    }
    return out;
}

size_t pd_detok_end(pd_detok *d, char *dst, size_t cap) {
    (void)cap;
    if (d->n_hold == 0) return 0;
    d->n_hold = 0;
    memcpy(dst, REPLACEMENT, 3);
    return 3;
}
