/* SPDX-License-Identifier: Apache-2.0 */
/* The types of 256 elements per block ("super-blocks"): sub-blocks of 16 or 32
 * elements have small integer scales s (and minima t), which one or two f16
 * numbers scale in turn.
 *
 *   Q2_K    scale[16] | q[64] | f d | f dmin             x = (d s) q - dmin t    16 columns
 *   Q3_K    high[32] | q[64] | scale[12] | f d           x = (d s) (q - 4)       16
 *   Q4_K    f d | f dmin | scale[12] | q[128]            x = (d s) q - dmin t    32
 *   Q5_K    f d | f dmin | scale[12] | high[32] | q[128] x = (d s) q - dmin t    32
 *   Q6_K    low[128] | high[64] | s8 scale[16] | f d     x = (d s) (q - 32)      16
 *   IQ4_XS  f d | u16 sh | sl[4] | q[128]                x = (d s) level[q]      32
 *
 * Products and sums are taken in this order, which makes the results those of
 * the reference bit for bit. */
#include "engine/gguf/le.h"
#include "engine/gguf/quant_block.h"

static float load_f16(const uint8_t *p) {
    return pd_f16_to_f32(pd_le16(p));
}

/* 2-bit elements: 32 bytes hold 128 elements, 32 per pair of bits. */
static void crumbs(const uint8_t *restrict src, uint8_t *restrict q) {
    for (size_t half = 0; half < 2; half++)
        for (unsigned pair = 0; pair < 4; pair++)
            for (size_t j = 0; j < 32; j++)
                q[128 * half + 32 * pair + j] = src[32 * half + j] >> 2 * pair & 3;
}

/* 4-bit elements: `run` bytes hold run low nibbles, then run high ones. */
PD__INLINE void nibbles(const uint8_t *restrict src, size_t run, uint8_t *restrict q) {
    for (size_t at = 0; at < PD__QK; at += 2 * run, src += run) {
        for (size_t j = 0; j < run; j++) {
            q[at + j] = src[j] & 0x0F;
            q[at + run + j] = src[j] >> 4;
        }
    }
}

static void unpack_q2_k(PD__BLOCK_ARGS) {
    const float scale = load_f16(src + 80), min = load_f16(src + 82);
    for (size_t s = 0; s < 16; s++) {
        d[s] = scale * (float)(src[s] & 0x0F);
        m[s] = -(min * (float)(src[s] >> 4));
    }
    crumbs(src + 16, q);
}

static void unpack_q3_k(PD__BLOCK_ARGS) {
    const uint8_t *high = src, *sc = src + 96;
    const float scale = load_f16(src + 108);
    for (size_t s = 0; s < 16; s++) { /* 6 bits: a nibble of sc[0..7], a pair of sc[8..11] */
        const int low = sc[s % 8] >> (s < 8 ? 0 : 4) & 0x0F;
        const int pair = sc[8 + s % 4] >> 2 * (s / 4) & 3;
        d[s] = scale * (float)((low | pair << 4) - 32);
    }
    crumbs(src + 32, q);
    for (size_t g = 0; g < 8; g++) /* bit g of high[j]: third bit of element 32 g + j */
        for (size_t j = 0; j < 32; j++) q[32 * g + j] |= (uint8_t)((high[j] >> g & 1) << 2);
}

/* 8 scales and 8 minima of 6 bits in 12 bytes.  Scale j < 4: the low six bits of
 * byte j; scale j + 4: the low nibble of byte j + 8 under the top pair of byte j.
 * Minima: likewise from byte j + 4 and the high nibble of byte j + 8. */
static void scales_k4(const uint8_t *restrict sc, float scale, float min, float *restrict d,
                      float *restrict m) {
    for (size_t j = 0; j < 4; j++) {
        d[j] = scale * (float)(sc[j] & 0x3F);
        m[j] = -(min * (float)(sc[j + 4] & 0x3F));
        d[j + 4] = scale * (float)((sc[j + 8] & 0x0F) | (sc[j] >> 2 & 0x30));
        m[j + 4] = -(min * (float)(sc[j + 8] >> 4 | (sc[j + 4] >> 2 & 0x30)));
    }
}

static void unpack_q4_k(PD__BLOCK_ARGS) {
    scales_k4(src + 4, load_f16(src), load_f16(src + 2), d, m);
    nibbles(src + 16, 32, q);
}

static void unpack_q5_k(PD__BLOCK_ARGS) {
    const uint8_t *high = src + 16;
    scales_k4(src + 4, load_f16(src), load_f16(src + 2), d, m);
    nibbles(src + 48, 32, q);
    for (size_t g = 0; g < 8; g++)
        for (size_t j = 0; j < 32; j++) q[32 * g + j] |= (uint8_t)((high[j] >> g & 1) << 4);
}

static void unpack_q6_k(PD__BLOCK_ARGS) {
    const uint8_t *high = src + 128;
    const float scale = load_f16(src + 208);
    for (size_t s = 0; s < 16; s++) d[s] = scale * (float)(int8_t)src[192 + s];
    nibbles(src, 64, q);
    for (size_t half = 0; half < 2; half++)
        for (unsigned pair = 0; pair < 4; pair++)
            for (size_t j = 0; j < 32; j++)
                q[128 * half + 32 * pair + j] |=
                    (uint8_t)((high[32 * half + j] >> 2 * pair & 3) << 4);
}

static void unpack_iq4_xs(PD__BLOCK_ARGS) {
    const float scale = load_f16(src);
    const unsigned high = pd_le16(src + 2);
    for (size_t s = 0; s < 8; s++) {
        const int low = src[4 + s / 2] >> 4 * (s % 2) & 0x0F;
        d[s] = scale * (float)((low | (int)(high >> 2 * s & 3) << 4) - 32);
    }
    nibbles(src + 8, 16, q);
    for (size_t i = 0; i < PD__QK; i++) q[i] = pd__iq4_levels[q[i]];
}

/*        function  id  name    block bytes zero bits sub */
PD__QTYPE(q2_k, 10, "Q2_K", PD__QK, 84, 0, 4, 16);
PD__QTYPE(q3_k, 11, "Q3_K", PD__QK, 110, 4, 4, 16);
PD__QTYPE(q4_k, 12, "Q4_K", PD__QK, 144, 0, 4, 32);
PD__QTYPE(q5_k, 13, "Q5_K", PD__QK, 176, 0, 5, 32);
PD__QTYPE(q6_k, 14, "Q6_K", PD__QK, 210, 32, 6, 16);
PD__QTYPE(iq4_xs, 23, "IQ4_XS", PD__QK, 136, 128, 8, 32);
