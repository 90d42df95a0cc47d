/* SPDX-License-Identifier: Apache-2.0 */
/* The two scores that compactor blends, each a press of its own (leverage,
 * non_causal_attention).  Private to compression/.  Thread: engine. */
#ifndef PD_COMPRESSION_COMPACTOR_H
#define PD_COMPRESSION_COMPACTOR_H

#include "compression/press.h"

/* Attention within blocks of chunk_size slots; non_causal_attention.c has the
 * formula.  The view must hold the query of every slot (PD_NEEDS_Q_ALL).
 * Errors: ENOMEM, EINTERNAL (queries are missing). */
pd_status pd__non_causal_score(const pd_view *view, size_t chunk_size, float *const *score,
                               pd_err *err);

/* Leverage of the pre-RoPE keys, sketched by phi [H][D][k]; leverage.c has the
 * formula.  k <= PD__CHOLESKY_MAX.  Errors: ENOMEM, EINTERNAL (no factorization). */
pd_status pd__leverage_score(const pd_view *view, const float *phi, size_t k, float *const *score,
                             pd_err *err);

/* phi of the request's seed and the view's layer, from view->tmp; NULL = no memory. */
float *pd__leverage_sketch(const pd_view *view, size_t k);

#endif
