/* SPDX-License-Identifier: Apache-2.0 */
/* MT19937: Matsumoto and Nishimura, "Mersenne Twister", ACM TOMACS 8(1), 1998. */
#include "engine/base/rng.h"

enum { N = 624, M = 397 };

void pd_mt19937_seed(pd_mt19937 *m, uint32_t seed) {
    m->state[0] = seed;
    for (uint32_t i = 1; i < N; i++) {
        const uint32_t prev = m->state[i - 1];
        m->state[i] = 1812433253u * (prev ^ prev >> 30) + i;
    }
    m->index = N;
}

static void refill(pd_mt19937 *m) {
    for (unsigned i = 0; i < N; i++) {
        const uint32_t y = (m->state[i] & 0x80000000u) | (m->state[(i + 1) % N] & 0x7FFFFFFFu);
        m->state[i] = m->state[(i + M) % N] ^ y >> 1 ^ (y & 1u ? 0x9908B0DFu : 0u);
    }
    m->index = 0;
}

uint32_t pd_mt19937_next(pd_mt19937 *m) {
    if (m->index >= N) refill(m);
    uint32_t y = m->state[m->index++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9D2C5680u;
    y ^= y << 15 & 0xEFC60000u;
    return y ^ y >> 18;
}
