/* SPDX-License-Identifier: Apache-2.0 */
/* A comparison: what several presses would keep of one prompt, from one prefill.
 *
 * Pressing a layer never changes what later layers see of the prompt, so one dense
 * prefill answers for all presses; none of their plans is applied. */
#ifndef PD_ENGINE_RUN_COMPARE_H
#define PD_ENGINE_RUN_COMPARE_H

#include "engine/run/seq.h"

enum { PD_COMPARE_BYTES_MAX = 1 << 30 }; /* positions and scores of one reply */

/* Check p->compare and set job->compare up; the members stay the caller's until
 * the job is accepted (pd_compare_disown if it is not).  Errors: EINVAL (what a
 * comparison cannot hold, too many different n_sink), EBUDGET (more numbers than
 * PD_COMPARE_BYTES_MAX), ENOMEM.  Thread: any. */
pd_status pd_compare_plan(pd_job *job, const pd_hparams *hp, const pd_job_params *p, pd_err *err);
void pd_compare_disown(pd_job *job);

/* ---- thread: engine ---- */

/* What any of the presses needs. */
void pd_compare_needs(const pd_job *job, pd_press_needs *ret);

/* Plan the layer for every press.  `base` is the layer's view; its tmp and seed
 * are not used.  Errors: ENOMEM, EINTERNAL (a press's). */
pd_status pd_compare_layer(pd_seq *s, size_t layer, const pd_view *base, pd_err *err);

/* A layer that is not pressed: every press keeps the n slots of `head` at pos. */
pd_status pd_compare_all(pd_seq *s, size_t layer, size_t head, const int32_t *pos, size_t n, pd_err *err);

void pd_compare_report(pd_job *job); /* into job->result */

#endif
