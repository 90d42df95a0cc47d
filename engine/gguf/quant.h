/* SPDX-License-Identifier: Apache-2.0 */
/* Tensor element types of a GGUF file: sizes, dequantisation, and the split
 * into integers that packing needs.  One type = one row of the table.
 *
 * `dequant` is bit-exact to the Python package gguf (gguf.quants), which is the
 * reference in the tests.  Thread: any. */
#ifndef PD_ENGINE_GGUF_QUANT_H
#define PD_ENGINE_GGUF_QUANT_H

#include <stddef.h>
#include <stdint.h>

typedef struct pd_qtype {
    uint32_t id;      /* as in the file (ggml's numbering) */
    const char *name; /* "Q4_1" */
    size_t block;     /* elements per block; a row is a multiple */
    size_t bytes;     /* bytes per block */

    /* n elements (n % block == 0) at src -> dst[n]. */
    void (*dequant)(const void *src, float *dst, size_t n);

    /* The same numbers as  x = d * q + m  with q unsigned of `pack_bits` bits
     * (4, 5, 6 or 8) and one (d, m) per `pack_block` columns (16 or 32):
     * q[n] (one byte each), d[n / pack_block], m[n / pack_block].  Equal to
     * dequant up to the rounding of d, m to f32.  NULL for F32, F16, BF16,
     * which packing quantises itself. */
    void (*split)(const void *src, size_t n, uint8_t *q, float *d, float *m);
    unsigned pack_bits, pack_block;
} pd_qtype;

/* NULL if the type is unknown or not served.  Lives forever. */
const pd_qtype *pd_qtype_find(uint32_t id);

/* Every type served, in order; NULL past the end. */
const pd_qtype *pd_qtype_at(size_t index);

float pd_f16_to_f32(uint16_t h); /* exact */
float pd_bf16_to_f32(uint16_t h);

#endif
