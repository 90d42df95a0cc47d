/* SPDX-License-Identifier: Apache-2.0 */
/* What the presses of kvpress' DecodingPress family share: parameters and the
 * part of their rule that is the same.  Private to compression/. */
#ifndef PD_COMPRESSION_DECODING_H
#define PD_COMPRESSION_DECODING_H

#include "compression/press.h"

/* Rows of a parameter table. */
#define PD__PARAM_INTERVAL                                                       \
    {.name = "compression_interval", .type = PD_PARAM_INT, .def = 512, .min = 1, \
     .max = 1 << 30, .doc = "decode steps between two prunings"}
#define PD__PARAM_TARGET                                                 \
    {.name = "target_size", .type = PD_PARAM_INT, .def = 2048, .min = 1, \
     .max = 1 << 30, .doc = "tokens per head that a pruning leaves"}
#define PD__PARAM_BUFFER                                                                \
    {.name = "hidden_states_buffer_size", .type = PD_PARAM_INT, .def = 256, .min = 0,   \
     .max = PD_RECENT_MAX, .doc = "recent queries the statistics of the press inside are " \
                                  "taken over; a window it asks for is always kept whole"}

/* The size of the last `n_recent` queries' statistics is at least one row. */
static inline size_t pd__recent(double buffer_size) {
    return buffer_size < 1.0 ? 1 : (size_t)buffer_size;
}

#endif
