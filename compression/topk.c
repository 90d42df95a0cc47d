/* SPDX-License-Identifier: Apache-2.0 */
/* Select the k best of n scores in O(n), without sorting and without memory.
 *
 * A float's bits, with the sign folded in, order like the float; so the k-th
 * largest is found digit by digit (11 + 11 + 10 bits): a histogram of the
 * digit, the bucket that holds the k-th, then the next digit inside it.  One
 * more pass in slot order takes what is above the k-th value and, of those
 * equal to it, the first ones: ties go to the lower slot and the output is
 * ascending for free.  Cost: 4 passes, whatever the distribution (quickselect
 * degrades on the heavy ties some presses produce). */
#include "compression/press.h"

#include <assert.h>
#include <string.h>

enum { DIGIT = 11, BUCKETS = 1 << DIGIT };

/* Larger float -> larger key.  -0 and +0 are one value and must tie. */
static inline uint32_t key_of(float s) {
    uint32_t u;
    const float z = s + 0.0f;
    memcpy(&u, &z, sizeof u);
    return u ^ (u >> 31 ? UINT32_MAX : UINT32_C(1) << 31);
}

/* The k-th largest key; *n_equal gets how many equal to it belong to the k. */
static uint32_t kth_key(const float *s, size_t n, size_t k, size_t *n_equal) {
    static const int shift[3] = {21, 10, 0};
    static const int bits[3] = {11, 11, 10};
    uint32_t prefix = 0, mask = 0;
    size_t left = k; /* how many of the k are still inside the chosen bucket */
    for (int d = 0; d < 3; d++) {
        uint32_t hist[BUCKETS] = {0};
        const uint32_t digit_mask = (UINT32_C(1) << bits[d]) - 1;
        for (size_t i = 0; i < n; i++) {
            const uint32_t key = key_of(s[i]);
            if ((key & mask) == prefix) hist[key >> shift[d] & digit_mask]++;
        }
        uint32_t b = digit_mask;
        while (hist[b] < left) left -= hist[b--];
        prefix |= b << shift[d];
        mask |= digit_mask << shift[d];
    }
    *n_equal = left;
    return prefix;
}

pd_status pd_top_k(const float *s, size_t n, size_t k, uint32_t *keep, pd_arena *tmp, pd_err *err) {
    (void)tmp; /* the histogram fits the stack */
    (void)err;
    assert(k >= 1 && k <= n && n <= UINT32_MAX);
    size_t n_equal;
    const uint32_t kth = kth_key(s, n, k, &n_equal);
    size_t out = 0;
    for (size_t i = 0; i < n && out < k; i++) {
        const uint32_t key = key_of(s[i]);
        if (key < kth || (key == kth && n_equal == 0)) continue;
        if (key == kth) n_equal--;
        keep[out++] = (uint32_t)i;
    }
    assert(out == k);
    return PD_OK;
}
