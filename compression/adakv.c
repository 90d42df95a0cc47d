/* SPDX-License-Identifier: Apache-2.0 */
/* adakv: one budget for all heads of a layer, spent on the best scores.
 *
 * Feng et al. 2024 (arXiv 2407.11550); kvpress' AdaKVPress.  Each head first
 * saves its best int(n_kept * alpha_safeguard) slots; the rest of the layer's
 * H * n_kept goes to the best scores of all heads together.  Heads end with
 * different lengths, the layer's total is fixed.
 *
 * DIFFERS: the reference masks the evicted pairs and keeps their memory; here
 * they are gone.  Each head keeps at least one slot also with alpha_safeguard 0.
 * Cost: three top-k passes over H * L scores. */
#include "compression/headwise.h"
#include "compression/shared.h"

enum { ALPHA };

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                      pd_plan *ret, pd_err *err) {
    size_t *n_keep;
    float **score;
    PD_TRY(pd__share_layer(inst->child[0], view, budget, inst->p[ALPHA], &n_keep, &score, err));
    if (!score) {
        *ret = (pd_plan){.keep_all = true};
        return PD_OK;
    }
    PD_TRY(pd__plan_new(view, n_keep, ret, err));
    for (size_t h = 0; h < view->n_head_kv; h++)
        PD_TRY(pd_top_k(score[h], view->n_h[h], n_keep[h], ret->keep[h], view->tmp, err));
    return PD_OK;
}

static const pd_param params[] = {
    [ALPHA] = {.name = "alpha_safeguard",
               .type = PD_PARAM_FLOAT,
               .def = 0.2,
               .min = 0,
               .max = 1,
               .doc = "share of its equal part that each head keeps in any case"},
};

const pd_press pd_press_adakv = {
    .name = "adakv",
    .reference_class = "AdaKVPress",
    .kind = "wrapper",
    .source = "arXiv 2407.11550",
    .doc = "Shares one budget among the heads of a layer by their scores.",
    .ratio_doc = "the child's",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_PRUNE_STEP | PD_CAN_SCORE_RAGGED,
    .min_child = 1,
    .max_child = 1,
    .child_must = PD_CAN_SCORE,
    .plan = plan,
};
