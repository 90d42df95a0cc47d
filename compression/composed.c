/* SPDX-License-Identifier: Apache-2.0 */
/* composed: one press after the other, each on what the one before left.
 *
 * kvpress' ComposedPress.  Children with ratios of their own ("@ratio" behind them)
 * remove r_i of what they find, 1 - prod(1 - r_i) together, and the request gives no
 * ratio.  Without them the request's ratio r is that of the whole: each of the m
 * children that take one removes 1 - (1 - r)^(1/m) of what it finds, and of a budget
 * by count the i-th leaves n (count / n)^(i/m).  Children with a budget of their own
 * just do what they say.  Key channels that one takes out (think) are 0 for those after it;
 * one child at most does so.
 *
 * Queries and moments stay those of the whole text, and positions are true, so a
 * second window press sees its queries where they stand.  DIFFERS: in the reference
 * queries are matched with slots, and a shrunken cache shifts them.
 * DIFFERS: if a child re-rotates keys, the kept keys of the end are moved; children
 * after it see them where they were.  In the reference the next position ignores it.
 * As in the reference, no child may give heads different lengths (PD_CAN_COMPOSE).
 * Cost: the children's, and a copy of what each leaves. */
#include "compression/shared.h"
#include "compression/spec.h"
#include "compression/subview.h"
#include "engine/base/num.h"

#include <math.h>

/* Children that share the request's budget. */
static size_t sharers(const pd_press_inst *inst) {
    size_t n = 0;
    for (size_t i = 0; i < inst->n_child; i++) n += pd_press_inst_takes_ratio(inst->child[i]);
    return n;
}

/* The budget of child i over a text of n tokens; *place counts the sharers so far. */
static pd_budget budget_of(const pd_press_inst *inst, const pd_budget *whole, size_t i, size_t n,
                           size_t *place) {
    const pd_press_inst *child = inst->child[i];
    if (child->has_ratio) return (pd_budget){.ratio = child->ratio};
    if (!pd_press_inst_takes_ratio(child)) return *whole; /* and does not look */
    const size_t m = sharers(inst);
    if (++*place == m && (whole->by_count || m == 1)) return *whole;
    if (!whole->by_count)
        return (pd_budget){.ratio = 1.0 - pow(1.0 - whole->ratio, 1.0 / (double)m)};
    const double left = (double)pd_budget_keep(whole, n) / (double)n;
    return (pd_budget){.by_count = true,
                       .count = (size_t)((double)n * pow(left, (double)*place / (double)m))};
}

/* The plan's slots as slots of the whole view; kept[] holds those of what it saw,
 * NULL = all of them. */
static pd_status map_slots(const pd_view *view, const pd_plan *plan, uint32_t ***kept,
                           pd_err *err) {
    pd_plan whole;
    PD_TRY(pd__plan_new(view, plan->n_keep, &whole, err));
    for (size_t h = 0; h < view->n_head_kv; h++)
        for (size_t i = 0; i < plan->n_keep[h]; i++)
            whole.keep[h][i] = *kept ? (*kept)[h][plan->keep[h][i]] : plan->keep[h][i];
    *kept = whole.keep;
    return PD_OK;
}

/* What the next child sees: the slots that stay, keys without the channels that went. */
static pd_status left_over(const pd_view *now, pd_plan *plan, pd_arena *tmp, pd_view *next, pd_err *err) {
    if (plan->keep_all) { /* a plan of channels alone */
        const pd_plan channels = *plan;
        PD_TRY(pd__plan_new(now, now->n_h, plan, err));
        plan->channel = channels.channel;
        plan->n_channel = channels.n_channel;
        for (size_t h = 0; h < now->n_head_kv; h++)
            for (size_t i = 0; i < now->n_h[h]; i++) plan->keep[h][i] = (uint32_t)i;
    }
    PD_TRY(pd__view_gather(now, plan->n_keep, plan->keep, plan->v_new, tmp, next, err));
    for (size_t h = 0; plan->channel && h < next->n_head_kv; h++) {
        float *k = (float *)(uintptr_t)next->k[h]; /* pd__view_gather's copies */
        for (size_t i = 0; i < next->n_h[h]; i++, k += next->head_dim)
            for (size_t c = 0, at = 0; c < next->head_dim; c++) {
                if (at < plan->n_channel && plan->channel[h][at] == c) at++;
                else k[c] = 0.0f;
            }
    }
    return PD_OK;
}

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                      pd_plan *ret, pd_err *err) {
    pd_view now = *view, next;
    uint32_t **kept = NULL;
    uint32_t *const *channel = NULL;
    size_t n_channel = 0;
    bool rerotate = false, new_values = false;
    size_t place = 0;
    for (size_t i = 0; i < inst->n_child; i++) {
        const pd_budget own = budget_of(inst, budget, i, view->n, &place);
        pd_plan plan;
        PD_TRY(pd_press_plan(inst->child[i], &now, &own, &plan, NULL, err));
        if (plan.channel) {
            channel = plan.channel;
            n_channel = plan.n_channel;
        }
        if (plan.keep_all && (!plan.channel || i + 1 == inst->n_child)) continue;
        rerotate = rerotate || plan.rerotate;
        new_values = new_values || plan.v_new;
        PD_TRY(left_over(&now, &plan, view->tmp, &next, err));
        PD_TRY(map_slots(view, &plan, &kept, err));
        now = next;
    }
    *ret = (pd_plan){.keep_all = !kept};
    if (kept) PD_TRY(pd__plan_new(view, now.n_h, ret, err));
    ret->channel = channel;
    ret->n_channel = n_channel;
    if (!kept) return PD_OK;
    ret->keep = kept;
    ret->rerotate = rerotate;
    if (new_values) ret->v_new = (float *const *)(uintptr_t)now.v; /* pd__view_gather's copies */
    return PD_OK;
}

static size_t most(const pd_press_inst *inst, const pd_budget *budget, size_t layer, size_t n) {
    size_t left = n, place = 0;
    for (size_t i = 0; i < inst->n_child; i++) {
        pd_budget own = budget_of(inst, budget, i, n, &place);
        own.n_protected = budget->n_protected;
        /* the next press sees, and counts its ratio of, what this one had to keep */
        left = pd_min_size(left, pd_press_most(inst->child[i], &own, layer, left) + own.n_protected);
    }
    return left > budget->n_protected ? left - budget->n_protected : 1;
}

static pd_status check(const pd_press_inst *inst, const struct pd_press_model *model,
                       const char *path, pd_err *err) {
    size_t with = 0, narrow = 0;
    for (size_t i = 0; i < inst->n_child; i++) {
        if (inst->child[i]->press->latents)
            return pd_fail(err, PD_EINVAL, path, "%s: '%s' projects keys as they grow old and stands alone; it cannot be inside 'composed'",
                           path, inst->child[i]->press->name);
        narrow += pd_press_key_channels(inst->child[i], model->head_dim) < model->head_dim;
        if (narrow > 1)
            return pd_fail(err, PD_EINVAL, path, "%s: inside 'composed' one press at most takes key channels out; '%s' is the second",
                           path, inst->child[i]->press->name);
        with += inst->child[i]->has_ratio;
        pd_press_needs needs;
        pd_press_collect_needs(inst->child[i], &needs);
        if (i > 0 && needs.bits & (PD_NEEDS_Q_ALL | PD_NEEDS_X))
            return pd_fail(err, PD_EINVAL, path,
                           "%s: '%s' looks at every token of the text: it must be the first inside "
                           "'composed', not number %zu",
                           path, inst->child[i]->press->name, i + 1);
    }
    if (with == 0 || sharers(inst) == 0) return PD_OK;
    return pd_fail(err, PD_EINVAL, path,
                   "%s: inside 'composed' all presses that take a ratio must have one of their "
                   "own, or none; here %zu have, %zu have not",
                   path, with, sharers(inst));
}

const pd_press pd_press_composed = {
    .name = "composed",
    .reference_class = "ComposedPress",
    .kind = "wrapper",
    .source = "kvpress",
    .doc = "Runs presses one after the other, each on what the one before left.",
    .ratio_doc = "each press inside may carry its own; else the request's is that of all together, "
                 "in equal factors",
    .can = PD_CAN_COMPOSE,
    .min_child = 1,
    .max_child = PD_PRESS_CHILDREN_MAX,
    .child_must = PD_CAN_COMPOSE,
    .child_ratio = true,
    .check = check,
    .plan = plan,
    .most = most,
};
