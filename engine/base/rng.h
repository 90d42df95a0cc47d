/* SPDX-License-Identifier: Apache-2.0 */
/* Seeded generators; each request owns its own, so a request repeats whatever
 * runs beside it.  Thread: one at a time per generator. */
#ifndef PD_ENGINE_BASE_RNG_H
#define PD_ENGINE_BASE_RNG_H

#include <stdint.h>

/* splitmix64 (Steele, Lea, Flood 2014): sampling and tests. */
typedef struct {
    uint64_t state;
} pd_rng;

static inline uint64_t pd_rng_u64(pd_rng *r) {
    uint64_t z = r->state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

/* Uniform in [0, 1) with 53 bits. */
static inline double pd_rng_f64(pd_rng *r) {
    return (double)(pd_rng_u64(r) >> 11) * 0x1p-53;
}

/* Uniform in [-1, 1). */
static inline float pd_rng_f32(pd_rng *r) {
    return (float)(pd_rng_f64(r) * 2.0 - 1.0);
}

/* MT19937 (Matsumoto, Nishimura 1998), as torch.manual_seed gives it on the
 * CPU: the `random` press must draw torch's numbers. */
typedef struct {
    uint32_t state[624];
    unsigned index;
} pd_mt19937;

void pd_mt19937_seed(pd_mt19937 *m, uint32_t seed);
uint32_t pd_mt19937_next(pd_mt19937 *m);

#endif
