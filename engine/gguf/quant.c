/* SPDX-License-Identifier: Apache-2.0 */
/* The table of element types, the float types and the types of 32 elements per
 * block.  f = f16:
 *
 *   Q4_0    f d | 16 bytes           x = d (q - 8)      Q4_1   f d | f m | 16 bytes    x = d q + m
 *   Q5_0    f d | u32 h | 16 bytes   x = d (q - 16)     Q5_1   f d | f m | u32 h | 16  x = d q + m
 *   IQ4_NL  f d | 16 bytes           x = d level[q]     Q8_0   f d | 32 signed bytes   x = d q
 *
 * Byte j of 16 holds element j in its low nibble and j + 16 in its high one; bit
 * i of h is the fifth bit of element i. */
#include "engine/gguf/quant.h"

#include "engine/gguf/internal.h"
#include "engine/gguf/le.h"
#include "engine/gguf/quant_block.h"

#include <string.h>

static float f32_of_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

float pd_f16_to_f32(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, mag = h & 0x7FFF;
    if (mag >= 0x7C00) return f32_of_bits(sign | 0x7F800000 | (mag & 0x3FF) << 13); /* inf, NaN */
    if (mag < 0x400) { /* zero or subnormal: mag * 2^-24 is a normal f32 */
        const float f = (float)mag * 0x1p-24f;
        return sign ? -f : f;
    }
    return f32_of_bits(sign | ((mag << 13) + ((127 - 15) << 23)));
}

float pd_bf16_to_f32(uint16_t h) {
    return f32_of_bits((uint32_t)h << 16);
}

static float load_f16(const uint8_t *p) {
    return pd_f16_to_f32(pd_le16(p));
}

/* ---- floats ---- */

static void dequant_f32(const void *src, float *dst, size_t n) {
    memcpy(dst, src, n * sizeof *dst);
}

static void dequant_f16(const void *src, float *dst, size_t n) {
    const uint8_t *p = src;
    for (size_t i = 0; i < n; i++) dst[i] = load_f16(p + 2 * i);
}

static void dequant_bf16(const void *src, float *dst, size_t n) {
    const uint8_t *p = src;
    for (size_t i = 0; i < n; i++) dst[i] = pd_bf16_to_f32(pd_le16(p + 2 * i));
}

static const pd_qtype qtype_f32 = {
    .id = 0, .name = "F32", .block = 1, .bytes = 4, .dequant = dequant_f32};
static const pd_qtype qtype_f16 = {
    .id = 1, .name = "F16", .block = 1, .bytes = 2, .dequant = dequant_f16};
static const pd_qtype qtype_bf16 = {
    .id = 30, .name = "BF16", .block = 1, .bytes = 2, .dequant = dequant_bf16};

/* ---- blocks of 32 ---- */

static void nibbles(const uint8_t *src, uint8_t *q) {
    for (size_t j = 0; j < 16; j++) {
        q[j] = src[j] & 0x0F;
        q[j + 16] = src[j] >> 4;
    }
}

/* Eight bits at a time: copied to eight bytes, byte i keeps bit i; + 0x7F moves
 * any bit that is set to the top of its byte without a carry (0x80 + 0x7F = 0xFF),
 * >> 3 to bit 4.  Six times as fast as bit by bit (0.87 to 5.2 G elements/s). */
static void fifth_bits(const uint8_t *src, uint8_t *q) {
    for (size_t i = 0; i < 4; i++) {
        const uint64_t each = src[i] * UINT64_C(0x0101010101010101) & UINT64_C(0x8040201008040201);
        const uint64_t bit4 = (each + UINT64_C(0x7F7F7F7F7F7F7F7F)) >> 3 & UINT64_C(0x1010101010101010);
        const uint64_t low = pd_le64(q + 8 * i) | bit4;
        memcpy(q + 8 * i, &low, sizeof low);
    }
}

static void unpack_q4_0(PD__BLOCK_ARGS) {
    d[0] = load_f16(src);
    nibbles(src + 2, q);
}

static void unpack_q4_1(PD__BLOCK_ARGS) {
    d[0] = load_f16(src);
    m[0] = load_f16(src + 2);
    nibbles(src + 4, q);
}

static void unpack_q5_0(PD__BLOCK_ARGS) {
    d[0] = load_f16(src);
    nibbles(src + 6, q);
    fifth_bits(src + 2, q);
}

static void unpack_q5_1(PD__BLOCK_ARGS) {
    d[0] = load_f16(src);
    m[0] = load_f16(src + 2);
    nibbles(src + 8, q);
    fifth_bits(src + 4, q);
}

static void unpack_q8_0(PD__BLOCK_ARGS) {
    d[0] = load_f16(src);
    for (size_t i = 0; i < 32; i++) q[i] = src[2 + i] ^ 0x80; /* signed + 128 */
}

const uint8_t pd__iq4_levels[16] = {
    128 - 127, 128 - 104, 128 - 83, 128 - 65, 128 - 49, 128 - 35, 128 - 22, 128 - 10,
    128 + 1,   128 + 13,  128 + 25, 128 + 38, 128 + 53, 128 + 69, 128 + 89, 128 + 113,
};

static void unpack_iq4_nl(PD__BLOCK_ARGS) {
    d[0] = load_f16(src);
    nibbles(src + 2, q);
    for (size_t i = 0; i < 32; i++) q[i] = pd__iq4_levels[q[i]];
}

/*        function  id  name    block bytes zero bits sub */
PD__QTYPE(q4_0, 2, "Q4_0", 32, 18, 8, 4, 32);
PD__QTYPE(q4_1, 3, "Q4_1", 32, 20, 0, 4, 32);
PD__QTYPE(q5_0, 6, "Q5_0", 32, 22, 16, 5, 32);
PD__QTYPE(q5_1, 7, "Q5_1", 32, 24, 0, 5, 32);
PD__QTYPE(q8_0, 8, "Q8_0", 32, 34, 128, 8, 32);
PD__QTYPE(iq4_nl, 20, "IQ4_NL", 32, 18, 128, 8, 32);

/* ---- the table ---- */

static const pd_qtype *const types[] = {
    &qtype_f32,      &qtype_f16,      &qtype_bf16,     &pd__qtype_q4_0, &pd__qtype_q4_1,
    &pd__qtype_q5_0, &pd__qtype_q5_1, &pd__qtype_q8_0, &pd__qtype_q2_k, &pd__qtype_q3_k,
    &pd__qtype_q4_k, &pd__qtype_q5_k, &pd__qtype_q6_k, &pd__qtype_iq4_nl, &pd__qtype_iq4_xs,
};

const pd_qtype *pd_qtype_at(size_t index) {
    return index < sizeof types / sizeof *types ? types[index] : NULL;
}

const pd_qtype *pd_qtype_find(uint32_t id) {
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i]->id == id) return types[i];
    return NULL;
}

const char *pd__qtype_unserved_name(uint32_t id) {
    static const char *const names[] = {
        [9] = "Q8_1",   [15] = "Q8_K",   [16] = "IQ2_XXS", [17] = "IQ2_XS", [18] = "IQ3_XXS",
        [19] = "IQ1_S", [21] = "IQ3_S",  [22] = "IQ2_S",   [24] = "I8",     [25] = "I16",
        [26] = "I32",   [27] = "I64",    [28] = "F64",     [29] = "IQ1_M",  [34] = "TQ1_0",
        [35] = "TQ2_0", [39] = "MXFP4",
    };
    return id < sizeof names / sizeof *names ? names[id] : NULL;
}
