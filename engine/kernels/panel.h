/* SPDX-License-Identifier: Apache-2.0 */
/* How a quantised matrix lies in memory once it is packed for the kernels.
 *
 * Every quantised type is rewritten at load as  w = d * q + m,  q an unsigned
 * integer of 4, 5, 6 or 8 bits, d and m one f16 pair per row and block of 16 or 32
 * columns.  Rows go in panels of 16, so that one vector holds 16 rows, and the
 * columns are interleaved by 4, which is what VNNI's dot product and AMX's
 * tiles read:
 *
 *   panel (16 rows)  =  block 0 | block 1 | ... | block n_col/block-1
 *   block            =  q bytes | d[16] f16 | m[16] f16
 *   q, 8 bits        =  for each group g of 4 columns: [row 0..15][column 0..3]    64 bytes
 *   q, 4 bits        =  for each g in the first half of the groups: 64 bytes whose low nibbles
 *                       are group g and whose high nibbles are group g + n_group/2
 *   q, 5 or 6 bits   =  the low 4 bits so, then [row 0..15][column 0..3] of 64 bytes that hold the other bits
 *                       of all groups: of group g, bit g or bits 2g and 2g + 1
 *
 *   bytes per block:  4 bits, 32 columns: 320     5 bits, 32: 384     8 bits, 32: 576
 *                     4 bits, 16: 192             6 bits, 16: 256
 *
 * Rows are padded to 16 with zeros (q = d = m = 0).  All blocks are 64-byte
 * aligned. */
#ifndef PD_ENGINE_KERNELS_PANEL_H
#define PD_ENGINE_KERNELS_PANEL_H

#include <stddef.h>
#include <stdint.h>

enum { PD_PANEL_ROWS = 16 };

typedef struct pd_panels {
    uint8_t *data;      /* n_panel * panel_bytes, 64-byte aligned */
    size_t n_row, n_col; /* n_col % 32 == 0 */
    unsigned bits;      /* 4, 5, 6 or 8 */
    unsigned block;     /* 16 or 32: as above */
} pd_panels;

static inline size_t pd_panel_block_bytes(unsigned bits, unsigned block) {
    return (size_t)PD_PANEL_ROWS * block * bits / 8 + 2 * PD_PANEL_ROWS * sizeof(uint16_t);
}

static inline size_t pd_panels_count(const pd_panels *w) {
    return (w->n_row + PD_PANEL_ROWS - 1) / PD_PANEL_ROWS;
}

static inline size_t pd_panels_stride(const pd_panels *w) {
    return w->n_col / w->block * pd_panel_block_bytes(w->bits, w->block);
}

/* Activations as the integer kernels read them: rows of n_col values in blocks
 * of 32,  x ~ d * q,  q in [-127, 127],  d = max|x| / 127 of the block.
 * s[2b], s[2b+1] = d * (sum of the first, second 16 q of block b), for the
 * weights' m. */
typedef struct pd_qact {
    int8_t *q;  /* [n_tok][n_col], rows 64-byte aligned if n_col % 64 == 0 */
    float *d;   /* [n_tok][n_col / 32] */
    float *s;   /* [n_tok][n_col / 16] */
    size_t n_col;
} pd_qact;

#endif
