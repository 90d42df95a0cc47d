/* SPDX-License-Identifier: Apache-2.0 */
/* duo_attention: some heads keep everything, the others sinks and recent tokens.
 *
 * Xiao et al. 2024 (arXiv 2410.10819); kvpress' DuoAttentionPress.  Every KV head
 * of the model has a score; the round(heads * head_compression_ratio) lowest
 * (half to even) are streaming heads and lose the context's slots between the
 * first sink_size and the last recent_size ones.  Scores and sizes come from
 * press data: a trained pattern, or what `pressd calibrate` measured by kvpress'
 * on-the-fly rule.
 *
 * DIFFERS: the reference masks what streaming heads lose and keeps its memory;
 * here it is gone.  on_the_fly_scoring false takes the calibrated scores when no
 * trained pattern is there, where the reference fails.  Heads of layers that are never pressed
 * (sliding windows) are not counted when their scores say so (< 0).  Of equal scores the lower
 * (layer, head) streams; the reference leaves that to its sort.
 * Cost: each head's score held against all heads' (some hundred of them). */
#include "compression/press_data.h"
#include "compression/shared.h"
#include "engine/base/num.h"

#include <math.h>

enum { HEAD_RATIO, ON_THE_FLY };

static int data_set(const pd_press_inst *inst, unsigned have) {
    const bool pattern = inst->p[ON_THE_FLY] == 0.0 && have & 1u << PD_SET_DUO_PATTERN;
    return pattern ? PD_SET_DUO_PATTERN : PD_SET_DUO_CALIBRATED;
}

static const float *scores_of(const pd_press_inst *inst, size_t *sink, size_t *recent) {
    const pd_data_set set = (pd_data_set)data_set(inst, pd_press_data_have(inst->data));
    pd_press_data_duo(inst->data, set, sink, recent);
    return pd_press_data_get(inst->data, set == PD_SET_DUO_PATTERN ? PD_DATA_DUO_PATTERN
                                                                   : PD_DATA_DUO_CALIBRATED);
}

/* A head streams if fewer than n of the counted heads come before it by score. */
static bool streams(const pd_press_inst *inst, const float *s, size_t n_all, size_t head) {
    size_t n_counted = 0, before = 0;
    if (s[head] < 0.0f) return false;
    for (size_t i = 0; i < n_all; i++) {
        if (s[i] < 0.0f) continue;
        n_counted++;
        before += s[i] < s[head] || (s[i] == s[head] && i < head);
    }
    return (double)before < rint((double)n_counted * inst->p[HEAD_RATIO]);
}

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                      pd_plan *ret, pd_err *err) {
    (void)budget;
    size_t sink, recent;
    const float *s = scores_of(inst, &sink, &recent);
    const size_t n_head = view->n_head_kv, n_all = (size_t)view->n_layer * n_head;
    size_t *n_keep = PD_ARENA_NEW(view->tmp, n_head, size_t);
    uint8_t *mask = PD_ARENA_NEW(view->tmp, n_head * view->n, uint8_t);
    if (!n_keep || !mask)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for a plan of %zu heads", n_head);
    for (size_t h = 0; h < n_head; h++) {
        const bool stream = streams(inst, s, n_all, (size_t)view->layer * n_head + h);
        n_keep[h] = 0;
        for (size_t i = 0; i < view->n_h[h]; i++) {
            const size_t pos = (size_t)view->pos[h][i];
            const bool keep = !stream || pos < sink || pos + recent >= view->n_seen ||
                              (view->protect && view->protect[h] && view->protect[h][i]);
            mask[h * view->n + i] = keep;
            n_keep[h] += keep;
        }
    }
    PD_TRY(pd__plan_new(view, n_keep, ret, err));
    for (size_t h = 0; h < n_head; h++)
        for (size_t i = 0, out = 0; i < view->n_h[h]; i++)
            if (mask[h * view->n + i]) ret->keep[h][out++] = (uint32_t)i;
    return PD_OK;
}

static size_t most(const pd_press_inst *inst, const pd_budget *budget, size_t layer, size_t n) {
    (void)budget;
    size_t sink, recent, kept = 0, n_head, n_all;
    const float *s = scores_of(inst, &sink, &recent);
    pd_press_data_heads(inst->data, &n_head, &n_all);
    for (size_t h = 0; h < n_head; h++)
        kept += streams(inst, s, n_all, layer * n_head + h) ? pd_min_size(n, sink + recent) : n;
    return pd_div_up(kept, n_head);
}

static const pd_param params[] = {
    [HEAD_RATIO] = {.name = "head_compression_ratio",
                    .type = PD_PARAM_FLOAT,
                    .def = 0,
                    .min = 0,
                    .max = 1,
                    .doc = "share of the model's KV heads that keep sinks and recent tokens only"},
    [ON_THE_FLY] =
        {.name = "on_the_fly_scoring",
         .type = PD_PARAM_BOOL,
         .def = 0,
         .max = 1,
         .doc = "take the scores that pressd calibrate measured, also where a trained pattern "
                "was imported"},
};

const pd_press pd_press_duo_attention = {
    .name = "duo_attention",
    .reference_class = "DuoAttentionPress",
    .kind = "planner",
    .source = "arXiv 2410.10819",
    .doc = "Heads that do not look back keep the first and the recent tokens only (press data).",
    .ratio_doc = "none: head_compression_ratio says what goes",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .own_budget = true,
    .data_set = data_set,
    .plan = plan,
    .most = most,
};
