/* SPDX-License-Identifier: Apache-2.0 */
/* What all quantised types share.  A type is one function, `unpack`, that turns
 * one block into plain integers and scales; dequant and split are both made from
 * it, so they cannot disagree about the bits.
 *
 *   zero > 0:  x = d * (q - zero)      unpack leaves m alone
 *   zero = 0:  x = d * q + m
 *
 * `zero` is a power of two, hence m = -zero * d is exact.  d * q is exact in f32
 * for every type (11 + 7 + 6 bits at most), so only the addition of m rounds.
 *
 * The four numbers of a type are compile-time constants at every call, and both
 * loops are forced inline, so that each type gets its own straight code. */
#ifndef PD_ENGINE_GGUF_QUANT_BLOCK_H
#define PD_ENGINE_GGUF_QUANT_BLOCK_H

#include "engine/gguf/quant.h"

#include <stddef.h>
#include <stdint.h>

enum { PD__QK = 256, PD__SUB_MAX = PD__QK / 16 }; /* largest block, most (d, m) in one */

/* One block at src -> q[block], d[block / sub], m[block / sub]. */
#define PD__BLOCK_ARGS                                                                             \
    const uint8_t *restrict src, uint8_t *restrict q, float *restrict d, float *restrict m
typedef void (*pd__unpack_fn)(PD__BLOCK_ARGS);

#define PD__INLINE static inline __attribute__((always_inline))

PD__INLINE void pd__dequant(pd__unpack_fn unpack, size_t bytes, size_t block, size_t sub, int zero,
                            const uint8_t *restrict src, float *restrict dst, size_t n) {
    for (size_t at = 0; at < n; at += block, src += bytes, dst += block) {
        uint8_t q[PD__QK];
        float d[PD__SUB_MAX], m[PD__SUB_MAX];
        unpack(src, q, d, m);
        for (size_t s = 0; s < block / sub; s++) {
            for (size_t i = s * sub; i < (s + 1) * sub; i++)
                dst[i] = zero ? d[s] * (float)(q[i] - zero) : d[s] * (float)q[i] + m[s];
        }
    }
}

PD__INLINE void pd__split(pd__unpack_fn unpack, size_t bytes, size_t block, size_t sub, int zero,
                          const uint8_t *restrict src, size_t n, uint8_t *restrict q,
                          float *restrict d, float *restrict m) {
    for (size_t at = 0; at < n; at += block, src += bytes) {
        unpack(src, q, d, m);
        if (zero)
            for (size_t s = 0; s < block / sub; s++) m[s] = (float)-zero * d[s];
        q += block;
        d += block / sub;
        m += block / sub;
    }
}

/* Defines pd__qtype_<fn> from static unpack_<fn>: the two entry points of a type
 * differ from those of the next only by these numbers. */
#define PD__QTYPE(fn, type_id, type_name, block_, bytes_, zero, bits, sub)                         \
    static void dequant_##fn(const void *src, float *dst, size_t n) {                              \
        pd__dequant(unpack_##fn, bytes_, block_, sub, zero, src, dst, n);                          \
    }                                                                                              \
    static void split_##fn(const void *src, size_t n, uint8_t *q, float *d, float *m) {            \
        pd__split(unpack_##fn, bytes_, block_, sub, zero, src, n, q, d, m);                        \
    }                                                                                              \
    const pd_qtype pd__qtype_##fn = {.id = type_id, .name = type_name, .block = block_,            \
                                     .bytes = bytes_, .dequant = dequant_##fn,                     \
                                     .split = split_##fn, .pack_bits = bits, .pack_block = sub}

extern const pd_qtype pd__qtype_q4_0, pd__qtype_q4_1, pd__qtype_q5_0, pd__qtype_q5_1,
    pd__qtype_q8_0, pd__qtype_iq4_nl; /* quant.c */
extern const pd_qtype pd__qtype_q2_k, pd__qtype_q3_k, pd__qtype_q4_k, pd__qtype_q5_k,
    pd__qtype_q6_k, pd__qtype_iq4_xs; /* quant_k.c */

/* The 16 levels of the non-linear 4-bit types, plus 128. */
extern const uint8_t pd__iq4_levels[16];

#endif
