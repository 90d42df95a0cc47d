/* SPDX-License-Identifier: Apache-2.0 */
/* kvzip's parameters and hooks (deferred.h), for presses that are kvzip and more.
 * Private to compression/.  Thread: engine. */
#ifndef PD_COMPRESSION_KVZIP_H
#define PD_COMPRESSION_KVZIP_H

#include "compression/deferred.h"

enum { PD__KVZIP_LAYERWISE, PD__KVZIP_N_SINK, PD__KVZIP_PLUS, PD__KVZIP_CHUNK, PD__KVZIP_PARAMS };
extern const pd_param pd__kvzip_params[PD__KVZIP_PARAMS];

void pd__kvzip_needs(const pd_press_inst *inst, pd_press_needs *n);
size_t pd__kvzip_most_rows(const pd_press_inst *inst, size_t n);
pd_status pd__kvzip_open(const pd_press_inst *inst, pd_context *c, pd_err *err);
pd_status pd__kvzip_ids(const pd_press_inst *inst, pd_context *c, size_t i, const int32_t **ret, size_t *n, pd_err *err);
pd_status pd__kvzip_rows(const pd_press_inst *inst, pd_context *c, size_t i, const pd_replay_rows *r, pd_err *err);
pd_status pd__kvzip_decide(const pd_press_inst *inst, pd_context *c, const pd_budget *budget, pd_plan *plan, pd_err *err);

#endif
