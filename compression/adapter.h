/* SPDX-License-Identifier: Apache-2.0 */
/* Rows and low-rank additions that a press has run once over the full cache.
 *
 * An adapter (LoRA, Hu et al. 2021, arXiv 2106.09685) adds to what a projection makes of
 * a row x:
 *
 *     y = W x + B (A x)      A [rank][n_in], B [n_out][rank]
 *
 * The scale of its authors is in B.  Rows of queries and keys are in half-split RoPE order,
 * as those of the loaded model are. */
#ifndef PD_COMPRESSION_ADAPTER_H
#define PD_COMPRESSION_ADAPTER_H

#include <stddef.h>

typedef enum { PD_PROJ_Q, PD_PROJ_K, PD_PROJ_V, PD_PROJ_O, PD_PROJ_GATE, PD_PROJ_UP, PD_PROJ_DOWN, PD_PROJ_N } pd_proj;

enum { PD_ADAPTER_RANK_MAX = 512, PD_ADDED_MAX = 64 };

/* Borrowed: press data holds the numbers. */
typedef struct pd_adapter {
    size_t rank;
    const float *a[PD_PROJ_N]; /* [n_layer][rank][n_in]; NULL = the projection is as it was */
    const float *b[PD_PROJ_N]; /* [n_layer][n_out][rank] */
} pd_adapter;

/* What a press adds behind its scope. */
typedef struct pd_added {
    size_t n;        /* rows, at most PD_ADDED_MAX */
    const float *x;  /* [n][d] what the first layer gets */
    pd_adapter adapter;
} pd_added;

#endif
