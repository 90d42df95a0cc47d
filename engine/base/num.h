/* SPDX-License-Identifier: Apache-2.0 */
/* Overflow-checked sizes.  Every size that comes from a file or a request goes
 * through these: false means it does not fit and *ret is untouched. */
#ifndef PD_ENGINE_BASE_NUM_H
#define PD_ENGINE_BASE_NUM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool pd_mul_size(size_t a, size_t b, size_t *ret) {
    size_t r;
    if (__builtin_mul_overflow(a, b, &r)) return false;
    *ret = r;
    return true;
}

static inline bool pd_add_size(size_t a, size_t b, size_t *ret) {
    size_t r;
    if (__builtin_add_overflow(a, b, &r)) return false;
    *ret = r;
    return true;
}

static inline bool pd_mul_u64(uint64_t a, uint64_t b, uint64_t *ret) {
    uint64_t r;
    if (__builtin_mul_overflow(a, b, &r)) return false;
    *ret = r;
    return true;
}

static inline bool pd_add_u64(uint64_t a, uint64_t b, uint64_t *ret) {
    uint64_t r;
    if (__builtin_add_overflow(a, b, &r)) return false;
    *ret = r;
    return true;
}

static inline size_t pd_min_size(size_t a, size_t b) {
    return a < b ? a : b;
}

static inline size_t pd_max_size(size_t a, size_t b) {
    return a > b ? a : b;
}

/* Smallest q with q * b >= a; b > 0. */
static inline size_t pd_div_up(size_t a, size_t b) {
    return a / b + (a % b != 0);
}

#endif
