/* SPDX-License-Identifier: Apache-2.0 */
/* key_rerotation: prune as the child says, then close the gaps in the positions.
 *
 * kvpress' KeyRerotationPress: the kept keys are rotated to positions 0..n-1 and
 * later tokens follow on at n, as the StreamingLLM paper and FINCH do.  With
 * protected slots all heads keep as many as the head that needs most, since
 * there is one position counter for all. */
#include "compression/shared.h"

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                      pd_plan *ret, pd_err *err) {
    float **score = pd_scores_new(view);
    if (!score)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the scores of %zu tokens", view->n);
    PD_TRY(pd_press_score(inst->child[0], view, score, err));
    PD_TRY(pd__plan_top(view, budget, (const float *const *)score, true, ret, err));
    ret->rerotate = true;
    return PD_OK;
}

const pd_press pd_press_key_rerotation = {
    .name = "key_rerotation",
    .reference_class = "KeyRerotationPress",
    .kind = "wrapper",
    .source = "kvpress (StreamingLLM 2309.17453, FINCH TACL a_00716)",
    .doc = "Moves the kept keys to consecutive positions.",
    .ratio_doc = "the child's",
    .can = PD_CAN_COMPOSE,
    .min_child = 1,
    .max_child = 1,
    .child_must = PD_CAN_SCORE,
    .plan = plan,
};
