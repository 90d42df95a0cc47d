/* SPDX-License-Identifier: Apache-2.0 */
/* The scores of expected attention from whatever moments: of this prompt's queries
 * (expected_attention) or of a calibration text's (expected_attention_stats).
 * Private to compression/.  Thread: engine. */
#ifndef PD_COMPRESSION_EXPECTED_ATTENTION_H
#define PD_COMPRESSION_EXPECTED_ATTENTION_H

#include "compression/press.h"

/* The parameters both presses have, in this order. */
enum { PD__EA_N_FUTURE, PD__EA_N_SINK, PD__EA_USE_COV, PD__EA_USE_VNORM, PD__EA_EPSILON, PD__EA_PARAMS };
extern const pd_param pd__ea_params[PD__EA_PARAMS];

size_t pd__ea_min_tokens(const pd_press_inst *inst);

/* expected_attention.c has the formula.  `m` has a mean and, with use_covariance,
 * a cov.  Errors: ENOMEM. */
pd_status pd__ea_score(const pd_press_inst *inst, const pd_view *view, const pd_moments *m,
                       float *const *score, pd_err *err);

#endif
