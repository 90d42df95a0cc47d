/* SPDX-License-Identifier: Apache-2.0 */
/* One budget for all heads of a layer, for the presses that share it out by scores
 * (adakv, critical_adakv).  Private to compression/.  Thread: engine. */
#ifndef PD_COMPRESSION_HEADWISE_H
#define PD_COMPRESSION_HEADWISE_H

#include "compression/press.h"

/* How many slots each head keeps when the layer's H * n_kept go to the best scores
 * of all heads together, after each head saved its best int(n_kept * alpha), one at
 * least, and every protected slot.  Heads of different lengths (decoding): the total
 * is H * count, or the sum of what each head would keep by ratio, and the safeguard
 * is taken of each head's own share.
 *
 * *score [H][n_h] are the child's scores, the saved slots' lifted to FLT_MAX: the
 * n_keep[h] best of them are the choice (ties: lower head, then lower slot).  *score
 * is NULL when nothing goes.  Memory is view->tmp's.
 * Cost: two top-k passes over H * L scores.  Errors: ENOMEM, and the child's. */
pd_status pd__share_layer(const pd_press_inst *child, const pd_view *view, const pd_budget *budget,
                          double alpha, size_t **n_keep, float ***score, pd_err *err);

#endif
