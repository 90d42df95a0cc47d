/* SPDX-License-Identifier: Apache-2.0 */
/* eigen_attention: keys and values that left a window, in fewer numbers.
 *
 * Saxena et al. 2024 (Eigen Attention, arXiv 2408.05646; UtkarshSaxena1/EigenAttn): attention works
 * in the few directions that a calibration text's keys and values take.  For models with RoPE a key is
 * projected before it, c = P R_p^-1 k, and rebuilt and rotated at every use; a value is projected on its
 * head's directions, and the output is the one that the weighted sum of those unfolds to
 * (engine/cache/latent.h).  Bases are press data (pressd calibrate); of keys:
 *
 *     shared     one for all heads of a layer, as the authors have it
 *     per_head   each head's own: keeps more energy and costs more than `shared` all the same
 *     score      each head's own, weighted by what its queries look at (compression/bases.h): the best
 *     rotated    each head's own after RoPE: nothing is turned, and the most is lost
 *
 * Every token stays, so a request gives no ratio; what goes is (2D - rank_k - rank_v) / 2D of the keys
 * and values older than `window`.  With error_budget each layer has ranks of its own: the least that
 * keep |y - y'| / |y| of its attention output y within the budget on the calibration text, measured
 * as the authors do, with the layer's input undisturbed; a layer that no rank serves stays whole.  The
 * budget is for keys alone or, budget_for=both, for what keys and values lose together: the two
 * ranks of the least sum, where errors add up (they do at worst).
 *
 * DIFFERS: the first `sinks` tokens and the last `window` stay whole (the authors project all of them).
 * DIFFERS: ranks are found on the measured curves of their layer, in sixteenths of D; the authors lower a
 * threshold of the singular values' running sum, one for keys and values, until the budget is passed.
 * DIFFERS: nothing is folded into the weights, which are quantised: keys and values are projected when
 * they are stored, and outputs unfolded when they are read.
 * DIFFERS: values stay whole unless asked: they have no few directions, so at the same bytes they cost
 * several times what keys do (tests/bench/README.md); kv_type stores them in few bits.
 * Cost: (rank_k + rank_v) * D multiply-adds to project a token and, at every step, rank_k * D for each key
 * to rebuild it: it saves memory, not time. */
#include "compression/press_data.h"
#include "compression/shared.h"
#include "compression/spec.h"
#include "engine/base/num.h"

#include <math.h>

enum { RANK_K, RANK_V, ERROR_BUDGET, BUDGET_FOR, BASIS, WINDOW, SINKS };
enum { SHARED, PER_HEAD, SCORE, ROTATED, VALUE }; /* as the curves of PD_DATA_EIGEN_ERROR */
enum { KEYS, BOTH };
enum { STEPS = PD_EIGEN_STEPS, LEAST_STEPS = 8 }; /* the authors let no rank fall below .45 of all */

static size_t rank_of(const pd_press_inst *inst, int param, size_t none) {
    return isnan(inst->p[param]) ? none : (size_t)inst->p[param];
}

static int data_set(const pd_press_inst *inst, unsigned have) {
    (void)inst;
    (void)have;
    return PD_SET_EIGEN;
}

static pd_status check_rank(const pd_press_inst *inst, int param, const char *name, const pd_press_model *model, const char *path,
                            pd_err *err) {
    const size_t rank = rank_of(inst, param, model->head_dim), step = pd_div_up(model->head_dim, STEPS);
    if (rank <= model->head_dim && rank % step == 0) return PD_OK;
    return pd_fail(err, PD_EINVAL, path, "%s: rank_%s is %zu; %s of this model are stored in multiples of %zu numbers, up to %zu",
                   path, param == RANK_K ? "k" : "v", rank, name, step, model->head_dim);
}

static pd_status check(const pd_press_inst *inst, const pd_press_model *model, const char *path, pd_err *err) {
    const bool both = (int)inst->p[BUDGET_FOR] == BOTH;
    if (isnan(inst->p[ERROR_BUDGET])) {
        if (both) return pd_fail(err, PD_EINVAL, path, "%s: budget_for is 'both', and there is no error_budget", path);
    } else {
        for (int r = RANK_K; r <= (both ? RANK_V : RANK_K); r++)
            if (!isnan(inst->p[r]))
                return pd_fail(err, PD_EINVAL, path, "%s: rank_%s is %.9g and error_budget %.9g; one of them says what goes", path,
                               r == RANK_K ? "k" : "v", inst->p[r], inst->p[ERROR_BUDGET]);
    }
    PD_TRY(check_rank(inst, RANK_K, "keys", model, path, err));
    return check_rank(inst, RANK_V, "values", model, path, err);
}

/* What i of 16 steps lose; error[15] is what 1..15 of them do. */
static double error_at(const float *error, size_t i) {
    return i < STEPS ? (double)error[i - 1] : 0.0;
}

/* The layer's least steps of 16 within the budget: of keys, with value[15] of both. */
static void steps_within(const float *key, const float *value, double budget, size_t *steps_k, size_t *steps_v) {
    double lost = 0.0;
    *steps_k = *steps_v = STEPS;
    if (key[0] <= 0.0f) return; /* a layer that is never pressed */
    for (size_t k = LEAST_STEPS; k <= STEPS; k++) {
        for (size_t v = value ? LEAST_STEPS : STEPS; v <= STEPS; v++) {
            const double e = error_at(key, k) + (value ? error_at(value, v) : 0.0);
            const size_t sum = k + v, best = *steps_k + *steps_v;
            if (e > budget || sum > best || (sum == best && e >= lost)) continue;
            *steps_k = k;
            *steps_v = v;
            lost = e;
        }
    }
}

static void layer_ranks(const pd_press_inst *inst, const pd_press_model *model, pd_latent_rule *rule) {
    const float *error = pd_press_data_get(inst->data, PD_DATA_EIGEN_ERROR);
    const size_t d = model->head_dim, points = STEPS - 1, curve = (size_t)inst->p[BASIS];
    for (size_t l = 0; l < model->n_layer; l++) {
        size_t k = rank_of(inst, RANK_K, d / 2), v = rank_of(inst, RANK_V, d);
        if (!isnan(inst->p[ERROR_BUDGET])) {
            const float *of = error + l * PD_EIGEN_CURVES * points;
            const bool both = (int)inst->p[BUDGET_FOR] == BOTH;
            size_t steps_k, steps_v;
            steps_within(of + curve * points, both ? of + VALUE * points : NULL, inst->p[ERROR_BUDGET], &steps_k, &steps_v);
            k = d * steps_k / STEPS;
            if (both) v = d * steps_v / STEPS;
        }
        if (k == d && v == d) continue;
        rule->layer[l] = (uint16_t)k;
        rule->value[l] = (uint16_t)v;
        rule->rank = pd_max_size(rule->rank, k);
        rule->rank_v = pd_max_size(rule->rank_v, v);
    }
}

static bool latents(const pd_press_inst *inst, const pd_press_model *model, pd_latent_rule *ret) {
    static const pd_data_id basis[][2] = {
        [SHARED] = {PD_DATA_EIGEN_SHARED, PD_DATA_EIGEN_SHARED},
        [PER_HEAD] = {PD_DATA_EIGEN_HEAD, PD_DATA_EIGEN_HEAD},
        [SCORE] = {PD_DATA_EIGEN_SCORE, PD_DATA_EIGEN_REBUILD},
        [ROTATED] = {PD_DATA_EIGEN_ROTATED, PD_DATA_EIGEN_ROTATED},
    };
    const int b = (int)inst->p[BASIS];
    *ret = (pd_latent_rule){.window = (size_t)inst->p[WINDOW],
                            .n_sink = (size_t)inst->p[SINKS],
                            .rotated = b == ROTATED,
                            .n_basis = b == SHARED ? 1 : model->n_head_kv,
                            .project = pd_press_data_get(inst->data, basis[b][0]),
                            .rebuild = pd_press_data_get(inst->data, basis[b][1]),
                            .value_basis = pd_press_data_get(inst->data, PD_DATA_EIGEN_VALUE)};
    layer_ranks(inst, model, ret);
    return ret->rank > 0; /* or keys and values as they are */
}

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget, pd_plan *ret, pd_err *err) {
    *ret = (pd_plan){.keep_all = true};
    return PD_OK;
}

static size_t most(const pd_press_inst *inst, const pd_budget *budget, size_t layer, size_t n) {
    return n; /* no slot goes */
}

static const char *const bases[] = {"shared", "per_head", "score", "rotated", NULL};
static const char *const budgets[] = {"keys", "both", NULL};

static const pd_param params[] = {
    [RANK_K] = {.name = "rank_k",
                .type = PD_PARAM_INT,
                .def = NAN,
                .min = 1,
                .max = 512,
                .flags = PD_PARAM_NULLABLE,
                .doc = "numbers of a stored key, in sixteenths of the head size; null: half of it"},
    [RANK_V] = {.name = "rank_v",
                .type = PD_PARAM_INT,
                .def = NAN,
                .min = 1,
                .max = 512,
                .flags = PD_PARAM_NULLABLE,
                .doc = "numbers of a stored value, likewise; null: all of them, for values lose far more by it than keys"},
    [ERROR_BUDGET] = {.name = "error_budget",
                      .type = PD_PARAM_FLOAT,
                      .def = NAN,
                      .min = 0,
                      .max = 1,
                      .flags = PD_PARAM_NULLABLE | PD_PARAM_OPEN_MIN,
                      .doc = "instead of rank_k: the share of a layer's output that may go, which gives each layer its rank"},
    [BUDGET_FOR] = {.name = "budget_for",
                    .type = PD_PARAM_CHOICE,
                    .def = KEYS,
                    .max = BOTH,
                    .choices = budgets,
                    .doc = "what error_budget finds ranks of: keys, or keys and values together"},
    [BASIS] = {.name = "basis", .type = PD_PARAM_CHOICE, .def = SCORE, .max = ROTATED, .choices = bases, .doc = "what the directions of keys are chosen by"},
    [WINDOW] = {.name = "window", .type = PD_PARAM_INT, .def = 64, .min = 0, .max = 65536, .doc = "most recent tokens, which stay whole"},
    [SINKS] = {.name = "sinks", .type = PD_PARAM_INT, .def = 4, .min = 0, .max = 16, .doc = "first tokens, which stay whole"},
};

const pd_press pd_press_eigen_attention = {
    .name = "eigen_attention",
    .reference_class = "none",
    .kind = "planner",
    .source = "arXiv 2408.05646",
    .doc = "Stores the keys of older tokens, and values if asked, by their main directions (press data); every token stays.",
    .ratio_doc = "rank_k, rank_v or error_budget says what goes",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_COMPOSE, /* heads stay as long as they are */
    .own_budget = true,
    .check = check,
    .data_set = data_set,
    .latents = latents,
    .plan = plan,
    .most = most,
};
