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

static const pd_qtype qtype_f32 = {.id = 0, .name = "F32", .block = 1, .bytes = 4, .dequant = dequant_f32};
static const pd_qtype qtype_f16 = {.id = 1, .name = "F16", .block = 1, .bytes = 2, .dequant = dequant_f16};
static const pd_qtype qtype_bf16 = {.id = 30, .name = "BF16", .block = 1, .bytes = 2, .dequant = dequant_bf16};

/* ---- blocks of 32 ---- */

static void nibbles(const uint8_t *src, uint8_t *q) {
    for (size_t j = 0; j < 16; j++) {
        q[j] = src[j] & 0x0F;
        q[j + 16] = src[j] >> 4;
    }
}

static void fifth_bits(const uint8_t *src, uint8_t *q) {
    const uint32_t h = pd_le32(src);
    for (size_t i = 0; i < 32; i++) q[i] |= (uint8_t)((h >> i & 1) << 4);
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
PD__QTYPE(q5_0, 6, "Q5_0", 32, 22, 16, 8, 32);
PD__QTYPE(q5_1, 7, "Q5_1", 32, 24, 0, 8, 32);
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
