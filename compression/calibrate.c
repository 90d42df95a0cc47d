/* SPDX-License-Identifier: Apache-2.0 */
/* Calibration's frame (see calibrate.h): memory, and the two presses that look and
 * keep everything. */
#include "compression/calibrate_int.h"

#include "compression/shared.h"

#include <stdlib.h>

enum {
    HAS_STATS = 1u << PD_SET_STATS,
    HAS_QFILTER = 1u << PD_SET_QFILTER,
    HAS_DUO = 1u << PD_SET_DUO_CALIBRATED,
    HAS_KVZAP = 1u << PD_SET_KVZAP_LINEAR,
    HAS_LUKV = 1u << PD_SET_LUKV,
    HAS_EIGEN = 1u << PD_SET_EIGEN,
    HAS_JOINT = 1u << PD_SET_JOINT,
    HAS_CODES = 1u << PD_SET_CODES,
    HAS_GATES = 1u << PD_SET_FASTKVZIP
};

static bool make(void *p, size_t n, size_t size) {
    void *m = calloc(n, size); /* checks the product */
    *(void **)p = m;
    return m != NULL;
}

static bool make_all(pd_calib *c) {
    const size_t nl = c->model.n_layer, nq = nl * c->model.n_head * c->model.head_dim,
                 hk = nl * c->model.n_head_kv, d = c->model.n_embd, hd = c->model.head_dim,
                 joint = c->model.n_head_kv * hd;
    bool ok = make(&c->seen, nl, sizeof *c->seen);
    if (c->sets & HAS_STATS)
        ok = ok && make(&c->count, nl, sizeof *c->count) && make(&c->mean, nq, sizeof *c->mean) &&
             make(&c->m2, nq, c->model.head_dim * sizeof *c->m2);
    if (c->sets & HAS_QFILTER)
        ok = ok && make(&c->q_sum, nq, sizeof *c->q_sum) &&
             make(&c->gram, nq, c->model.head_dim * sizeof *c->gram);
    if (c->sets & HAS_DUO) ok = ok && make(&c->duo, hk, sizeof *c->duo);
    if (c->sets & (HAS_EIGEN | HAS_JOINT)) ok = ok && make(&c->key_rows, nl, sizeof *c->key_rows);
    if (c->sets & (HAS_EIGEN | HAS_CODES)) ok = ok && make(&c->freq, nl * hd / 2, sizeof *c->freq);
    if (c->sets & HAS_CODES)
        ok = ok && make(&c->code_seen, nl, sizeof *c->code_seen) && make(&c->code_query, hk * hd / 2, sizeof *c->code_query) &&
             make(&c->code_row, hk * hd, PD_CALIB_CODE_ROWS * sizeof *c->code_row);
    if (c->sets & HAS_EIGEN)
        ok = ok && make(&c->key, hk * hd, hd * sizeof *c->key) && make(&c->rotated, hk * hd, hd * sizeof *c->rotated) &&
             make(&c->value, hk * hd, hd * sizeof *c->value) && make(&c->query, hk * hd, hd * sizeof *c->query);
    if (c->sets & HAS_JOINT) ok = ok && make(&c->joint, nl * joint, joint * sizeof *c->joint);
    if (c->sets & PD_CALIB_BASES) ok = ok && make(&c->output, nl, sizeof *c->output);
    if (c->sets & HAS_EIGEN)
        ok = ok && make(&c->eigen_error, nl * PD_EIGEN_CURVES, (PD_EIGEN_STEPS - 1) * sizeof *c->eigen_error);
    if (c->sets & HAS_JOINT)
        ok = ok && make(&c->joint_error, nl, (PD_EIGEN_STEPS - 1) * sizeof *c->joint_error) &&
             make(&c->overlap, nl, PD_OVERLAP_SETUPS * sizeof *c->overlap) && make(&c->overlap_rows, nl, sizeof *c->overlap_rows);
    if (c->sets & HAS_KVZAP)
        ok = ok && make(&c->rows, nl, sizeof *c->rows) && make(&c->xx, nl * d, d * sizeof *c->xx) &&
             make(&c->xy, hk * d, sizeof *c->xy) && make(&c->x_sum, nl * d, sizeof *c->x_sum) &&
             make(&c->y_sum, hk, sizeof *c->y_sum) &&
             make(&c->x_shift, nl * d, sizeof *c->x_shift) &&
             make(&c->y_shift, hk, sizeof *c->y_shift);
    if (c->sets & HAS_LUKV) ok = ok && make(&c->pruned, hk, PD_LUKV_ROWS * sizeof *c->pruned);
    return ok;
}

pd_status pd_calib_open(pd_calib **ret, const pd_press_model *model, unsigned sets, size_t repeated, pd_err *err) {
    pd_calib *c = calloc(1, sizeof *c);
    if (c) {
        c->model = *model;
        c->sets = sets;
        if (make_all(c) && (!(sets & HAS_GATES) || pd__gates_open(&c->gates, model, repeated, NULL) == PD_OK)) {
            *ret = c;
            return PD_OK;
        }
    }
    pd_calib_close(c);
    return pd_fail(err, PD_ENOMEM, NULL,
                   "no memory for calibration; fewer sets (--only) need less");
}

void pd_calib_close(pd_calib *c) {
    if (!c) return;
    void *all[] = {c->seen,  c->count, c->mean,  c->m2,    c->gram,    c->q_sum,
                   c->duo,   c->rows,  c->xx,    c->xy,    c->x_shift, c->y_shift,
                   c->x_sum, c->y_sum, c->score, c->pruned,  c->key_rows,
                   c->freq,  c->key,   c->rotated, c->value, c->query, c->joint,
                   c->output, c->eigen_error, c->joint_error, c->code_seen, c->code_row, c->code_query,
                   c->overlap, c->overlap_rows};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    pd__gates_close(c->gates);
    free(c);
}

/* ---- the presses ---- */

static void text_needs(const pd_press_inst *inst, pd_press_needs *n) {
    const pd_calib *c = inst->state;
    if (c->sets & (HAS_STATS | HAS_EIGEN | HAS_CODES)) pd__need_moments(n, PD_NEEDS_Q_COV, PD_CALIB_SINK);
    if (c->sets & HAS_QFILTER) n->bits |= PD_NEEDS_Q_ALL;
    if (c->sets & HAS_DUO) pd__need_moments(n, 0, 0);
}

static pd_status text_plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                           pd_plan *ret, pd_err *err) {
    (void)budget;
    pd_calib *c = inst->state;
    c->seen[view->layer] = true;
    PD_TRY(pd__calib_text_layer(c, view, err));
    *ret = (pd_plan){.keep_all = true};
    return PD_OK;
}

static void errors_needs(const pd_press_inst *inst, pd_press_needs *n) {
    (void)inst;
    n->bits |= PD_NEEDS_Q_ALL | PD_NEEDS_WO;
}

static pd_status errors_plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                             pd_plan *ret, pd_err *err) {
    (void)budget;
    PD_TRY(pd__calib_errors_layer(inst->state, view, err));
    *ret = (pd_plan){.keep_all = true};
    return PD_OK;
}

static void repeat_needs(const pd_press_inst *inst, pd_press_needs *n) {
    (void)inst;
    n->bits |= PD_NEEDS_Q_ALL | PD_NEEDS_X | PD_NEEDS_WO;
}

static pd_status repeat_plan(const pd_press_inst *inst, const pd_view *view,
                             const pd_budget *budget, pd_plan *ret, pd_err *err) {
    (void)budget;
    pd_calib *c = inst->state;
    c->seen[view->layer] = true;
    PD_TRY(pd__calib_repeat_layer(c, view, err));
    *ret = (pd_plan){.keep_all = true};
    return PD_OK;
}

/* Not in the registry: no request can ask for them. */
static const pd_press text_press = {.name = "calibrate_text",
                                    .kind = "planner",
                                    .own_budget = true,
                                    .needs = text_needs,
                                    .plan = text_plan};
static const pd_press errors_press = {.name = "calibrate_errors",
                                      .kind = "planner",
                                      .own_budget = true,
                                      .needs = errors_needs,
                                      .plan = errors_plan};
static const pd_press repeat_press = {.name = "calibrate_repeat",
                                      .kind = "planner",
                                      .own_budget = true,
                                      .needs = repeat_needs,
                                      .plan = repeat_plan};

static pd_press_inst *instance(const pd_press *press, pd_calib *c) {
    pd_press_inst *inst = calloc(1, sizeof *inst);
    if (!inst) return NULL;
    inst->press = press;
    inst->state = c;
    return inst;
}

pd_press_inst *pd_calib_text(pd_calib *c) {
    c->n_text++;
    return instance(&text_press, c);
}

pd_status pd_calib_bases(pd_calib *c, pd_press_data *d, pd_err *err) {
    if (c->n_text == 0) return pd_fail(err, PD_EINVAL, NULL, "no text was read");
    PD_TRY(pd__calib_bases_make(c, d, err));
    c->bases = d;
    return PD_OK;
}

pd_press_inst *pd_calib_errors(pd_calib *c) {
    return instance(&errors_press, c);
}

pd_press_inst *pd_calib_repeat(pd_calib *c, size_t first, size_t n, size_t again) {
    c->first = first;
    c->n = n;
    c->again = again;
    if (c->sets & HAS_LUKV) {
        free(c->score);
        if (!make(&c->score, c->model.n_layer * c->model.n_head_kv, n * sizeof *c->score))
            return NULL;
    }
    return instance(&repeat_press, c);
}

pd_status pd_calib_train(pd_calib *c, size_t first, size_t n, pd_workers *workers, pd_press_data *d, pd_err *err) {
    return pd__gates_train(c->gates, first, n, workers, d, err);
}

pd_status pd_calib_finish(pd_calib *c, pd_press_data *d, pd_err *err) {
    if (c->sets & PD_CALIB_TEXT) PD_TRY(pd__calib_text_finish(c, d, err));
    if (c->sets & PD_CALIB_REPEAT) PD_TRY(pd__calib_repeat_finish(c, d, err));
    return pd_press_data_check(d, err);
}
