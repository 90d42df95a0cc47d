/* SPDX-License-Identifier: Apache-2.0 */
/* dms: drop what scores below a threshold as soon as it leaves a recent window.
 *
 * Dynamic Memory Sparsification (Lancucki et al. 2025, arXiv 2506.05345), the
 * inference rule with a scorer in place of the paper's trained evictors; kvpress'
 * DMSPress.  A token is scored once, when it is new: the prompt's all together,
 * later ones alone.  It stays while it is among the last sliding_window_size tokens;
 * after that it goes if its score is below threshold (strictly), per head.  With
 * decoding=false nothing happens after the prompt, and its last window stays.
 *
 * DIFFERS: the reference masks by lists of slot indices that a second question
 * finds stale (an index error); here a dropped pair is gone, and the pending
 * scores lie beside their slots, so there is nothing to go stale.  A window of 0
 * is refused: the newest token of a head always stays.  With decoding=true the
 * press inside must score a token from itself alone (PD_CAN_SCORE_ALONE); the
 * reference accepts others and fails, or ranks one token against itself.
 * Cost: the press inside on the new tokens; per step a look at every tag. */
#include "compression/shared.h"

#include <math.h>

enum { THRESHOLD, WINDOW, DECODING };

static pd_status check(const pd_press_inst *inst, const struct pd_press_model *model,
                       const char *path, pd_err *err) {
    const pd_press_inst *child = inst->child[0];
    if (inst->p[DECODING] == 0.0 || pd_press_inst_can(child) & PD_CAN_SCORE_ALONE) return PD_OK;
    return pd_fail(err, PD_EINVAL, path,
                   "%s: 'dms' with decoding=true scores each new token alone; '%s' scores tokens "
                   "against others", path, child->press->name);
}

/* Nothing can make slot i of head h go. */
static bool stays(const pd_press_inst *inst, const pd_view *view, const float *const *tag, size_t h,
                  size_t i) {
    return (double)view->pos[h][i] >= (double)view->n_seen - inst->p[WINDOW] ||
           !(tag[h][i] < (float)inst->p[THRESHOLD]) ||
           (view->protect && view->protect[h] && view->protect[h][i]);
}

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                      pd_plan *ret, pd_err *err) {
    float *const *tag = view->tag;
    if (view->phase == PD_PHASE_PREFILL) {
        if (!tag) tag = pd_scores_new(view);
        if (!tag)
            return pd_fail(err, PD_ENOMEM, NULL, "no memory for the scores of %zu tokens", view->n);
        PD_TRY(pd_press_score(inst->child[0], view, tag, err));
    }
    size_t *n_keep = PD_ARENA_NEW(view->tmp, view->n_head_kv, size_t);
    if (!n_keep) return pd_fail(err, PD_ENOMEM, NULL, "no memory to press a layer");
    bool all = true;
    for (size_t h = 0; h < view->n_head_kv; h++) {
        n_keep[h] = 0;
        for (size_t i = 0; i < view->n_h[h]; i++)
            n_keep[h] += stays(inst, view, (const float *const *)tag, h, i);
        all = all && n_keep[h] == view->n_h[h];
    }
    if (all) {
        *ret = (pd_plan){.keep_all = true};
        return PD_OK;
    }
    PD_TRY(pd__plan_new(view, n_keep, ret, err));
    for (size_t h = 0; h < view->n_head_kv; h++)
        for (size_t i = 0, n = 0; i < view->n_h[h]; i++)
            if (stays(inst, view, (const float *const *)tag, h, i)) ret->keep[h][n++] = (uint32_t)i;
    return PD_OK;
}

static bool decode_rule(const pd_press_inst *inst, pd_decode_rule *ret) {
    *ret = (pd_decode_rule){
        .prune = inst, .interval = 1, .tag = PD_TAG_SCORE};
    return inst->p[DECODING] != 0.0;
}

static const pd_param params[] = {
    [THRESHOLD] = {.name = "threshold",
                   .type = PD_PARAM_FLOAT,
                   .def = NAN,
                   .min = -1e30,
                   .max = 1e30,
                   .flags = PD_PARAM_REQUIRED,
                   .doc = "tokens with a lower score go; on the scale of the press inside"},
    [WINDOW] = {.name = "sliding_window_size",
                .type = PD_PARAM_INT,
                .def = 128,
                .min = 1,
                .max = 65536,
                .doc = "last tokens, which stay whatever their score"},
    [DECODING] = {.name = "decoding",
                  .type = PD_PARAM_BOOL,
                  .def = 0,
                  .max = 1,
                  .doc = "go on while tokens are generated"},
};

const pd_press pd_press_dms = {
    .name = "dms",
    .reference_class = "DMSPress",
    .kind = "decoding",
    .source = "arXiv 2506.05345",
    .doc = "Drops tokens that score below a threshold once they leave a recent window.",
    .ratio_doc = "none: the threshold decides",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_DECODE,
    .min_child = 1,
    .max_child = 1,
    .child_must = PD_CAN_SCORE,
    .own_budget = true,
    .check = check,
    .plan = plan,
    .decode_rule = decode_rule,
};
