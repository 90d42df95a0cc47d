/* SPDX-License-Identifier: Apache-2.0 */
/* Where a row of V lies, for the kernels that read chosen rows alone (kernels.h, rows_). */
#ifndef PD_ENGINE_KERNELS_PICK_H
#define PD_ENGINE_KERNELS_PICK_H

#include "engine/kernels/kernels.h"

typedef enum { F16, F32, Q8, Q4 } type;

static inline const uint8_t *part_of(const pd_part_pass *p, size_t row) {
    return (const uint8_t *)p->pages[row / 16] + p->at;
}

/* Where channel c of a slot begins; c % 16 == 0. */
static inline const uint8_t *row_at(const uint8_t *part, size_t slot, size_t dim, size_t c, type t) {
    switch (t) {
    case F16: return part + (slot * dim + c) * 2;
    case F32: return part + (slot * dim + c) * 4;
    case Q8: return part + slot * dim + c;
    default: return part + slot * dim / 2 + c / PD_KV_GROUP * 16;
    }
}

#endif
