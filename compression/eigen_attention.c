/* SPDX-License-Identifier: Apache-2.0 */
/* eigen_attention: keys that left a window, in fewer numbers.
 *
 * Saxena et al. 2024 (Eigen Attention, arXiv 2408.05646; UtkarshSaxena1/EigenAttn): attention works
 * in the few directions that a calibration text's keys take.  For models with RoPE a key is projected
 * before it, c = P R_p^-1 k, and rebuilt and rotated at every use (engine/cache/latent.h).  Bases are
 * press data (pressd calibrate):
 *
 *     shared     one for all heads of a layer, as the authors have it
 *     per_head   each head's own: keeps more energy and costs more than `shared` all the same
 *     score      each head's own, weighted by what its queries look at (compression/bases.h): the best
 *     rotated    each head's own after RoPE: nothing is turned, and the most is lost
 *
 * Every token stays, so a request gives no ratio; what goes is (D - rank_k) / 2D of the keys and
 * values older than `window`.  With error_budget each layer has a rank of its own: the least that
 * keeps |y - y'| / |y| of its attention output y within the budget on the calibration text, measured
 * as the authors do, with the layer's input undisturbed; a layer that no rank serves stays whole.
 *
 * DIFFERS: keys of the first `sinks` tokens and of the last `window` stay whole (the authors project
 * all of them).
 * DIFFERS: a rank is found on the measured curve of its layer, in sixteenths of D; the authors lower a
 * threshold of the singular values' running sum until the budget is passed.
 * DIFFERS: nothing is folded into the weights, which are quantised: keys are projected when they are
 * stored.
 * DIFFERS: values stay whole. The authors give them a basis of their own; on small heads that costs
 * more than it saves, and kv_type stores values in few bits.
 * Cost: rank_k * D multiply-adds a key to project it and, at every step, as many to rebuild it: it
 * saves memory, not time. */
#include "compression/press_data.h"
#include "compression/shared.h"
#include "compression/spec.h"
#include "engine/base/num.h"

#include <math.h>

enum { RANK_K, ERROR_BUDGET, BASIS, WINDOW, SINKS };
enum { SHARED, PER_HEAD, SCORE, ROTATED }; /* as the curves of PD_DATA_EIGEN_ERROR */
enum { LEAST_STEPS = 8 };                  /* the authors let no rank fall below .45 of all */

static size_t rank_of(const pd_press_inst *inst, size_t head_dim) {
    return isnan(inst->p[RANK_K]) ? head_dim / 2 : (size_t)inst->p[RANK_K];
}

static int data_set(const pd_press_inst *inst, unsigned have) {
    (void)inst;
    (void)have;
    return PD_SET_EIGEN;
}

static pd_status check(const pd_press_inst *inst, const pd_press_model *model, const char *path, pd_err *err) {
    if (!isnan(inst->p[ERROR_BUDGET])) {
        if (isnan(inst->p[RANK_K])) return PD_OK;
        return pd_fail(err, PD_EINVAL, path, "%s: rank_k is %.9g and error_budget %.9g; one of them says what goes", path,
                       inst->p[RANK_K], inst->p[ERROR_BUDGET]);
    }
    const size_t rank = rank_of(inst, model->head_dim), step = pd_div_up(model->head_dim, PD_EIGEN_STEPS);
    if (rank <= model->head_dim && rank % step == 0) return PD_OK;
    return pd_fail(err, PD_EINVAL, path,
                   "%s: rank_k is %zu; keys of this model are stored in multiples of %zu numbers, up to %zu", path, rank, step,
                   model->head_dim);
}

/* The layer's steps of 16: error[15] is what 1..15 of them lose.  0 = all of them stay. */
static size_t steps_within(const float *error, double budget) {
    if (error[0] <= 0.0f) return 0; /* a layer that is never pressed */
    for (size_t i = LEAST_STEPS; i < PD_EIGEN_STEPS; i++)
        if ((double)error[i - 1] <= budget) return i;
    return 0;
}

static void layer_ranks(const pd_press_inst *inst, const pd_press_model *model, pd_latent_rule *rule) {
    const float *error = pd_press_data_get(inst->data, PD_DATA_EIGEN_ERROR);
    const size_t d = model->head_dim, points = PD_EIGEN_STEPS - 1, curve = (size_t)inst->p[BASIS];
    for (size_t l = 0; l < model->n_layer; l++) {
        size_t rank = rank_of(inst, d);
        if (!isnan(inst->p[ERROR_BUDGET]))
            rank = d * steps_within(error + (l * PD_EIGEN_CURVES + curve) * points, inst->p[ERROR_BUDGET]) / PD_EIGEN_STEPS;
        rule->layer[l] = rank < d ? (uint16_t)rank : 0;
        rule->rank = pd_max_size(rule->rank, rule->layer[l]);
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
                            .rebuild = pd_press_data_get(inst->data, basis[b][1])};
    layer_ranks(inst, model, ret);
    return ret->rank > 0; /* or the keys themselves */
}

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget, pd_plan *ret, pd_err *err) {
    *ret = (pd_plan){.keep_all = true};
    return PD_OK;
}

static size_t most(const pd_press_inst *inst, const pd_budget *budget, size_t layer, size_t n) {
    return n; /* no slot goes */
}

static const char *const bases[] = {"shared", "per_head", "score", "rotated", NULL};

static const pd_param params[] = {
    [RANK_K] = {.name = "rank_k",
                .type = PD_PARAM_INT,
                .def = NAN,
                .min = 1,
                .max = 512,
                .flags = PD_PARAM_NULLABLE,
                .doc = "numbers of a stored key, in sixteenths of the head size; null: half of it"},
    [ERROR_BUDGET] = {.name = "error_budget",
                      .type = PD_PARAM_FLOAT,
                      .def = NAN,
                      .min = 0,
                      .max = 1,
                      .flags = PD_PARAM_NULLABLE | PD_PARAM_OPEN_MIN,
                      .doc = "instead of rank_k: the share of a layer's output that may go, which gives each layer its rank"},
    [BASIS] = {.name = "basis", .type = PD_PARAM_CHOICE, .def = SCORE, .max = ROTATED, .choices = bases, .doc = "what the directions are chosen by"},
    [WINDOW] = {.name = "window", .type = PD_PARAM_INT, .def = 64, .min = 0, .max = 65536, .doc = "most recent tokens, whose keys stay whole"},
    [SINKS] = {.name = "sinks", .type = PD_PARAM_INT, .def = 4, .min = 0, .max = 16, .doc = "first tokens, whose keys stay whole"},
};

const pd_press pd_press_eigen_attention = {
    .name = "eigen_attention",
    .reference_class = "none",
    .kind = "planner",
    .source = "arXiv 2408.05646",
    .doc = "Stores the keys of older tokens by their main directions before RoPE (press data); every token stays.",
    .ratio_doc = "rank_k or error_budget says what goes",
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
