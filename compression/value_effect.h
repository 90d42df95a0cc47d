/* SPDX-License-Identifier: Apache-2.0 */
/* What a cached value does to the residual stream, for presses that weigh scores
 * by it (critical, critical_adakv).  Private to compression/.  Thread: engine. */
#ifndef PD_COMPRESSION_VALUE_EFFECT_H
#define PD_COMPRESSION_VALUE_EFFECT_H

#include "compression/press.h"

/* out[h][slot] = mean over the query heads q of KV head h of |Wo_q v|_1, where v
 * is the slot's value and Wo_q the columns [q D, (q + 1) D) of view->wo.  Needs
 * PD_NEEDS_WO.  Cost: Hq * L * D * d multiply-adds, as much as the layer's output
 * projection; scratch 512 KB per thread.
 * Errors: ENOMEM, EINTERNAL (no output projection). */
pd_status pd__value_effect(const pd_view *view, float *const *out, pd_err *err);

/* Two stages on the scores of head h, in place: its `first` best become FLT_MAX, the
 * others (score + epsilon) * effect, kept below FLT_MAX; what is FLT_MAX or more
 * already (protected, saved) stays.  best: scratch of `first`.  Errors: none today. */
pd_status pd__weigh_by_effect(const pd_view *view, size_t h, size_t first, float epsilon,
                              const float *effect, float *score, uint32_t *best, pd_err *err);

#endif
