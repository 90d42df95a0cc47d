/* SPDX-License-Identifier: Apache-2.0 */
/* A low-rank adapter beside the packed matrices (compression/adapter.h).
 *
 * The matrices stay as they are: what the adapter says is added to a projection's result,
 * for the rows of one call.  Cost without an adapter: a look at f->adapter.  With one:
 * rank * (n_in + n_out) multiply-adds a row, which is read once per 8 rows.  Thread: engine. */
#ifndef PD_ENGINE_RUN_ADAPTER_H
#define PD_ENGINE_RUN_ADAPTER_H

#include "engine/run/forward.h"

/* y[n][n_out] += (x[n][n_in] A^T) B^T of the layer's projection.  The result is the same bits
 * however a multiple of 8 rows is cut into calls. */
void pd_adapter_add(const pd_fwd *f, size_t layer, pd_proj proj, const float *x, size_t n, float *y);

#endif
