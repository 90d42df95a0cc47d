/* SPDX-License-Identifier: Apache-2.0 */
/* A page pool for tests. */
#ifndef PD_TESTS_UNIT_POOL_CASE_H
#define PD_TESTS_UNIT_POOL_CASE_H

#include "engine/base/rng.h"
#include "engine/cache/pool.h"

/* [0, n) */
static inline size_t case_below(pd_rng *r, size_t n) {
    return (size_t)(pd_rng_u64(r) % n);
}

static inline pd_kvpool case_pool(size_t page_bytes, size_t n_pages, size_t hysteresis_bytes) {
    pd_kvpool p;
    pd_err err = {0};
    if (pd_kvpool_init(&p, page_bytes, (uint64_t)page_bytes * n_pages, hysteresis_bytes, &err) != PD_OK)
        fail_msg("%s", err.msg);
    return p;
}

#endif
