/* SPDX-License-Identifier: Apache-2.0 */
/* Time: monotonic for every duration and deadline, the wall clock only for what
 * people read.  Thread: any. */
#ifndef PD_ENGINE_BASE_CLOCK_H
#define PD_ENGINE_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t pd_now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static inline double pd_ms_since(uint64_t t0_ns) {
    return (double)(pd_now_ns() - t0_ns) * 1e-6;
}

#endif
