/* SPDX-License-Identifier: Apache-2.0 */
/* per_layer: a ratio for each layer.
 *
 * kvpress' PerLayerCompressionPress: the child prunes layer l by
 * compression_ratios[l]; the list says all, so a request gives no ratio.  Layers
 * that are not pressed (sliding windows) have their place in the list too.
 *
 * DIFFERS: ratio 1 empties a layer there; here every head keeps one slot at least.
 * Cost: the child's. */
#include "compression/press.h"

#include <math.h>

enum { RATIOS };

static pd_budget budget_of(const pd_press_inst *inst, size_t layer) {
    return (pd_budget){.ratio = inst->list[RATIOS][layer]};
}

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                      pd_plan *ret, pd_err *err) {
    const pd_budget own = budget_of(inst, (size_t)view->layer);
    return pd_press_plan(inst->child[0], view, &own, ret, NULL, err);
}

static size_t most(const pd_press_inst *inst, const pd_budget *budget, size_t layer, size_t n) {
    pd_budget own = budget_of(inst, layer);
    own.n_protected = budget->n_protected;
    return pd_press_most(inst->child[0], &own, layer, n);
}

static const pd_param params[] = {
    [RATIOS] = {.name = "compression_ratios",
                .type = PD_PARAM_FLOAT_LIST,
                .def = NAN,
                .min = 0,
                .max = 1,
                .flags = PD_PARAM_REQUIRED,
                .doc = "fraction removed from each layer, first to last"},
};

const pd_press pd_press_per_layer = {
    .name = "per_layer",
    .reference_class = "PerLayerCompressionPress",
    .kind = "wrapper",
    .source = "kvpress",
    .doc = "Prunes each layer by a ratio of its own.",
    .ratio_doc = "compression_ratios says what goes",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_COMPOSE,
    .min_child = 1,
    .max_child = 1,
    .child_must = PD_CAN_SCORE,
    .own_budget = true,
    .plan = plan,
    .most = most,
};
