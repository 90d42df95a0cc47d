/* SPDX-License-Identifier: Apache-2.0 */
/* UTF-8 as bytes (see utf8.h). */
#include "engine/base/utf8.h"

/* Table 3-7 of the Unicode standard: the second byte's range depends on the first. */
static size_t seq_len(unsigned char c, unsigned char *lo, unsigned char *hi) {
    *lo = 0x80;
    *hi = 0xBF;
    if (c < 0x80) return 1;
    if (c < 0xC2) return 0;
    if (c < 0xE0) return 2;
    if (c < 0xF0) {
        if (c == 0xE0) *lo = 0xA0;
        if (c == 0xED) *hi = 0x9F;
        return 3;
    }
    if (c < 0xF5) {
        if (c == 0xF0) *lo = 0x90;
        if (c == 0xF4) *hi = 0x8F;
        return 4;
    }
    return 0;
}

size_t pd_utf8_next(const char *s, size_t n, uint32_t *cp) {
    if (n == 0) return 0;
    const unsigned char *u = (const unsigned char *)s;
    unsigned char lo, hi;
    const size_t len = seq_len(u[0], &lo, &hi);
    if (len == 0 || len > n) return 0;
    static const unsigned char first_mask[5] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    uint32_t c = u[0] & first_mask[len];
    for (size_t i = 1; i < len; i++) {
        if (u[i] < (i == 1 ? lo : 0x80) || u[i] > (i == 1 ? hi : 0xBF)) return 0;
        c = c << 6 | (u[i] & 0x3F);
    }
    if (cp) *cp = c;
    return len;
}

bool pd_utf8_valid(const char *s, size_t n) {
    for (size_t i = 0; i < n;) {
        const size_t len = pd_utf8_next(s + i, n - i, NULL);
        if (len == 0) return false;
        i += len;
    }
    return true;
}

size_t pd_utf8_incomplete_tail(const char *s, size_t n) {
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        const unsigned char c = (unsigned char)s[n - back];
        if (c < 0x80) return 0;
        if (c < 0xC0) continue; /* continuation byte: look further back */
        unsigned char lo, hi;
        const size_t len = seq_len(c, &lo, &hi);
        if (len <= back) return 0;
        if (back >= 2) {
            const unsigned char second = (unsigned char)s[n - back + 1];
            if (second < lo || second > hi) return 0; /* can never become well-formed */
        }
        return back;
    }
    return 0;
}

size_t pd_utf8_sanitize(char *s, size_t n) {
    n -= pd_utf8_incomplete_tail(s, n);
    for (size_t i = 0; i < n;) {
        const size_t len = pd_utf8_next(s + i, n - i, NULL);
        if (len == 0) s[i] = '?';
        i += len ? len : 1;
    }
    return n;
}

size_t pd_utf8_put(uint32_t cp, char *dst) {
    if (cp < 0x80) {
        dst[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        dst[0] = (char)(0xC0 | cp >> 6);
        dst[1] = (char)(0x80 | (cp & 0x3F));
        return 2;
    }
    if (cp < 0x10000) {
        dst[0] = (char)(0xE0 | cp >> 12);
        dst[1] = (char)(0x80 | (cp >> 6 & 0x3F));
        dst[2] = (char)(0x80 | (cp & 0x3F));
        return 3;
    }
    dst[0] = (char)(0xF0 | cp >> 18);
    dst[1] = (char)(0x80 | (cp >> 12 & 0x3F));
    dst[2] = (char)(0x80 | (cp >> 6 & 0x3F));
    dst[3] = (char)(0x80 | (cp & 0x3F));
    return 4;
}
