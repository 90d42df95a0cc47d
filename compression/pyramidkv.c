/* SPDX-License-Identifier: Apache-2.0 */
/* pyramidkv: snapkv's scores, and more slots for the lower layers.
 *
 * Cai et al. 2024 (arXiv 2406.02069); kvpress' PyramidKVPress.  With B = L (1 - r)
 * slots per head on average (or the count asked for), w = window_size and NL layers
 *
 *     low = B / beta,   high = 2 B - low
 *     and if high >= L - w:  high = L - w,  low = 2 B - high
 *
 * layer l keeps  n_l = round(high - l (high - low) / (NL - 1)),  halves to even;
 * unless L >= high >= low >= w, when the text is too short for a pyramid: then every
 * layer keeps max(1, round(B)).  The mean over the layers is about B.
 *
 * The pyramid is in the plan: a wrapper that asks for scores alone (adakv,
 * key_rerotation, chunk) spends its own budget on them, as in the reference.  It
 * does not prune while decoding (no PD_CAN_PRUNE_STEP): layers that differ already
 * would be measured by their own lengths, and drift.
 * Cost: snapkv's. */
#include "compression/shared.h"
#include "compression/snapkv.h"

#include <math.h>

enum { BETA = PD__SNAPKV_PARAMS };

static size_t layer_count(const pd_press_inst *inst, const pd_budget *budget, size_t layer,
                          size_t n_layer, size_t n) {
    const double window = inst->p[PD__SNAPKV_WINDOW], len = (double)n;
    const double mean = budget->by_count ? (double)pd_budget_keep(budget, n)
                                         : len * (1.0 - budget->ratio);
    /* As the reference has it, to the last rounding: B is what is left of w + B. */
    const double twice = (window + mean - window) * 2.0;
    double low = (window + mean - window) / inst->p[BETA], high = twice - low;
    if (high >= len - window) {
        high = len - window;
        low = twice - high;
    }
    double keep;
    if (!(len >= high && high >= low && low >= window))
        keep = nearbyint(mean);
    else
        keep = nearbyint(
            high - (n_layer > 1 ? (double)layer * ((high - low) / (double)(n_layer - 1)) : 0.0));
    return keep < 1.0 ? 1 : keep > len ? n : (size_t)keep;
}

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                      pd_plan *ret, pd_err *err) {
    const pd_budget own = {.by_count = true,
                           .count = layer_count(inst, budget, (size_t)view->layer,
                                                (size_t)view->n_layer, view->n)};
    float **score = pd_scores_new(view);
    if (!score)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the scores of %zu tokens", view->n);
    PD_TRY(pd_press_score(inst, view, score, err));
    return pd__plan_top(view, &own, (const float *const *)score, false, ret, err);
}

static size_t most(const pd_press_inst *inst, const pd_budget *budget, size_t layer, size_t n) {
    return layer_count(inst, budget, layer, inst->n_list, n);
}

static const pd_param params[] = {
    PD__SNAPKV_PARAM_ROWS,
    [BETA] = {.name = "beta",
              .type = PD_PARAM_INT,
              .def = 20,
              .min = 1,
              .max = 1 << 20,
              .doc = "how steep: the last layer keeps about 1/beta of the mean, 1 keeps all alike"},
};

const pd_press pd_press_pyramidkv = {
    .name = "pyramidkv",
    .reference_class = "PyramidKVPress",
    .kind = "scorer",
    .source = "arXiv 2406.02069",
    .doc = "snapkv with more slots in the lower layers and fewer in the upper ones.",
    .ratio_doc = "its own, the mean over the layers",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_SCORE | PD_CAN_SCORE_STEP | PD_CAN_SCORE_RAGGED | PD_CAN_COMPOSE,
    .check = pd__snapkv_check,
    .needs = pd__snapkv_needs,
    .min_tokens = pd__snapkv_min_tokens,
    .score = pd__snapkv_score,
    .plan = plan,
    .most = most,
};
