/* SPDX-License-Identifier: Apache-2.0 */
/* The registry and the driver: the only way the engine and wrapper presses call
 * a press (see press.h).  The registry is generated from the list in
 * meson.build; the driver adds what no press should repeat: protection, the
 * shared top-k plan, and the check of what came back. */
#include "compression/press.h"

#include "compression/shared.h"
#include "engine/base/num.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

/* ---- registry ---- */

#define PD_PRESS(name) extern const pd_press pd_press_##name;
#include "compression/presses.def"
#undef PD_PRESS

static const pd_press *const registry[] = {
#define PD_PRESS(name) &pd_press_##name,
#include "compression/presses.def"
#undef PD_PRESS
};

enum { N_PRESS = sizeof registry / sizeof *registry };

static const char names[] =
#define PD_PRESS(name) ", " #name
#include "compression/presses.def"
#undef PD_PRESS
    ;

size_t pd_press_count(void) {
    return N_PRESS;
}

const pd_press *pd_press_at(size_t index) {
    return index < N_PRESS ? registry[index] : NULL;
}

const char *pd_press_names(void) {
    return names + 2; /* without the first ", " */
}

const pd_press *pd_press_find(const char *name) {
    for (size_t i = 0; i < N_PRESS; i++)
        if (strcmp(registry[i]->name, name) == 0) return registry[i];
    return NULL;
}

const pd_param *pd_press_param(const pd_press *p, const char *name, size_t *index) {
    for (size_t i = 0; i < p->n_params; i++) {
        if (strcmp(p->params[i].name, name) != 0) continue;
        if (index) *index = i;
        return &p->params[i];
    }
    return NULL;
}

/* ---- what an instance needs and can ---- */

void pd__need_q_tail(pd_press_needs *n, size_t rows) {
    n->bits |= PD_NEEDS_Q_TAIL;
    n->q_tail = pd_max_size(n->q_tail, rows);
}

void pd__need_moments(pd_press_needs *n, unsigned bits, size_t n_sink) {
    n->bits |= bits | PD_NEEDS_Q_MEAN;
    for (size_t i = 0; i < n->n_moments; i++)
        if (n->n_sink[i] == n_sink) return;
    if (n->n_moments == PD_MOMENTS_MAX)
        n->bits |= PD_NEEDS_TOO_MANY;
    else
        n->n_sink[n->n_moments++] = n_sink;
}

void pd_press_add_needs(const pd_press_inst *inst, pd_press_needs *n) {
    if (inst->press->needs) inst->press->needs(inst, n);
    for (size_t i = 0; i < inst->n_child; i++) pd_press_add_needs(inst->child[i], n);
}

void pd_press_collect_needs(const pd_press_inst *inst, pd_press_needs *ret) {
    *ret = (pd_press_needs){0};
    if (inst) pd_press_add_needs(inst, ret);
}

size_t pd_press_min_tokens(const pd_press_inst *inst) {
    size_t n = inst->press->min_tokens ? inst->press->min_tokens(inst) : 1;
    for (size_t i = 0; i < inst->n_child; i++)
        n = pd_max_size(n, pd_press_min_tokens(inst->child[i]));
    return n;
}

unsigned pd_press_inst_can(const pd_press_inst *inst) {
    unsigned can = inst->press->can;
    if (!inst->press->plan && !inst->press->deferred && !inst->press->read_rule) can |= PD_CAN_COMPOSE;
    for (size_t i = 0; i < inst->n_child; i++) {
        const unsigned child = pd_press_inst_can(inst->child[i]);
        can &= child | PD_CAN_PRUNE_STEP | PD_CAN_COMPOSE | PD_CAN_DECODE | PD_DECODE_ONLY | PD_CAN_READ;
        if (!(child & PD_CAN_SCORE_STEP)) can &= ~(unsigned)PD_CAN_PRUNE_STEP;
    }
    pd_press_needs needs;
    pd_press_collect_needs(inst, &needs);
    if (can & PD_CAN_SCORE && !(needs.bits & ~(unsigned)PD_NEEDS_WO)) can |= PD_CAN_SCORE_PART;
    return can;
}

bool pd_press_inst_takes_ratio(const pd_press_inst *inst) {
    if (inst->press->own_budget || inst->has_ratio) return false;
    for (size_t i = 0; i < inst->n_child; i++)
        if (pd_press_inst_takes_ratio(inst->child[i])) return true;
    return inst->n_child == 0;
}

/* True if parameters or the presses inside have a say in what stays. */
static bool has_budget(const pd_press_inst *inst) {
    if (inst->press->own_budget) return true;
    for (size_t i = 0; i < inst->n_child; i++)
        if (inst->child[i]->has_ratio || has_budget(inst->child[i])) return true;
    return false;
}

size_t pd_press_most(const pd_press_inst *inst, const pd_budget *budget, size_t layer, size_t n) {
    const size_t keep = pd_budget_keep(budget, n);
    if (keep == n && !has_budget(inst)) return n;
    return inst->press->most ? pd_min_size(inst->press->most(inst, budget, layer, n), n) : keep;
}

size_t pd_press_key_channels(const pd_press_inst *inst, size_t head_dim) {
    size_t n = inst->press->key_channels ? inst->press->key_channels(inst, head_dim) : head_dim;
    for (size_t i = 0; i < inst->n_child; i++)
        n = pd_min_size(n, pd_press_key_channels(inst->child[i], head_dim));
    return n;
}

void pd_press_reset(pd_press_inst *inst) {
    if (!inst) return;
    if (inst->press->reset) inst->press->reset(inst);
    for (size_t i = 0; i < inst->n_child; i++) pd_press_reset(inst->child[i]);
}

/* ---- helpers for presses ---- */

const pd_moments *pd_view_moments(const pd_view *view, size_t n_sink) {
    for (size_t i = 0; i < view->n_moments; i++)
        if (view->moments[i].n_sink == n_sink) return &view->moments[i];
    return NULL;
}

float **pd_scores_new(const pd_view *view) {
    float **s = PD_ARENA_NEW(view->tmp, view->n_head_kv, float *);
    for (size_t h = 0; s && h < view->n_head_kv; h++) {
        s[h] = PD_ARENA_NEW(view->tmp, view->n_h[h], float);
        if (!s[h]) return NULL;
    }
    return s;
}

/* ---- driver ---- */

pd_status pd_press_score(const pd_press_inst *inst, const pd_view *view, float *const *score,
                         pd_err *err) {
    assert(inst->press->score);
    PD_TRY(inst->press->score(inst, view, score, err));
    for (size_t h = 0; h < view->n_head_kv; h++) {
        const uint8_t *protect = view->protect ? view->protect[h] : NULL;
        for (size_t i = 0; i < view->n_h[h]; i++) {
            /* Scores beyond f32 would otherwise tie with protected slots, and a
             * NaN has no rank: a model that overflowed must not decide silently. */
            if (isnan(score[h][i]))
                return pd_fail(err, PD_EINTERNAL, NULL,
                               "press '%s' gave no number for layer %d, head %zu, slot %zu",
                               inst->press->name, view->layer, h, i);
            if (!protect) continue;
            if (protect[i])
                score[h][i] = INFINITY;
            else if (score[h][i] > FLT_MAX)
                score[h][i] = FLT_MAX;
        }
    }
    return PD_OK;
}

/* True if the budget takes nothing from any head. */
static bool nothing_goes(const pd_view *view, const pd_budget *budget) {
    if (!budget->by_count && budget->ratio <= 0.0) return true;
    for (size_t h = 0; h < view->n_head_kv; h++)
        if (pd_budget_keep(budget, view->n_h[h]) < view->n_h[h]) return false;
    return true;
}

#ifndef NDEBUG
static void check_plan(const pd_press_inst *inst, const pd_view *view, const pd_plan *plan) {
    assert((plan->channel ? plan->n_channel : view->head_dim) == pd_press_key_channels(inst, view->head_dim));
    for (size_t h = 0; plan->channel && h < view->n_head_kv; h++)
        for (size_t i = 0; i < plan->n_channel; i++)
            assert(plan->channel[h][i] < view->head_dim && (i == 0 || plan->channel[h][i] > plan->channel[h][i - 1]));
    if (plan->keep_all) return;
    for (size_t h = 0; h < view->n_head_kv; h++) {
        const size_t n = plan->n_keep[h];
        assert(n >= 1 && n <= view->n_h[h]);
        assert(!plan->rerotate || n == plan->n_keep[0]);
        size_t n_protected = 0;
        for (size_t i = 0; i < n; i++) {
            const uint32_t slot = plan->keep[h][i];
            assert(slot < view->n_h[h] && (i == 0 || slot > plan->keep[h][i - 1]));
            n_protected += view->protect && view->protect[h] && view->protect[h][slot];
        }
        assert(n_protected == pd__n_protected(view, h));
    }
}
#endif

/* The instance whose scores rank the slots: itself or, in wrappers, the first
 * scorer below it; NULL if there is none. */
static const pd_press_inst *scorer_of(const pd_press_inst *inst) {
    while (!inst->press->score && inst->n_child > 0) inst = inst->child[0];
    return inst->press->score ? inst : NULL;
}

pd_status pd_press_plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                        pd_plan *ret, float *const *scores, pd_err *err) {
    pd_plan plan = {0};
    if (nothing_goes(view, budget) && !has_budget(inst)) {
        *ret = (pd_plan){.keep_all = true};
        return PD_OK;
    }
    pd_view with_budget = *view;
    with_budget.budget = *budget;
    view = &with_budget;
    if (inst->press->plan) {
        PD_TRY(inst->press->plan(inst, view, budget, &plan, err));
        /* Scored once more, only for a client that asked to see the scores: it
         * keeps the plan hook's interface free of them. */
        const pd_press_inst *scorer = scorer_of(inst);
        if (scores && scorer) PD_TRY(pd_press_score(scorer, view, scores, err));
    } else {
        float *const *s = scores ? scores : pd_scores_new(view);
        if (!s)
            return pd_fail(err, PD_ENOMEM, NULL, "no memory for the scores of %zu tokens", view->n);
        PD_TRY(pd_press_score(inst, view, s, err));
        PD_TRY(pd__plan_top(view, budget, (const float *const *)s, false, &plan, err));
    }
#ifndef NDEBUG
    check_plan(inst, view, &plan);
#endif
    *ret = plan;
    return PD_OK;
}
