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
 * values older than `window`.
 *
 * DIFFERS: keys of the first `sinks` tokens and of the last `window` stay whole (the authors project
 * all of them).
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

enum { RANK_K, BASIS, WINDOW, SINKS };
enum { SHARED, PER_HEAD, SCORE, ROTATED };

static size_t rank_of(const pd_press_inst *inst, size_t head_dim) {
    return isnan(inst->p[RANK_K]) ? head_dim / 2 : (size_t)inst->p[RANK_K];
}

static int data_set(const pd_press_inst *inst, unsigned have) {
    (void)inst;
    (void)have;
    return PD_SET_EIGEN;
}

static pd_status check(const pd_press_inst *inst, const pd_press_model *model, const char *path, pd_err *err) {
    const size_t rank = rank_of(inst, model->head_dim), step = pd_div_up(model->head_dim, PD_EIGEN_STEPS);
    if (rank <= model->head_dim && rank % step == 0) return PD_OK;
    return pd_fail(err, PD_EINVAL, path,
                   "%s: rank_k is %zu; keys of this model are stored in multiples of %zu numbers, up to %zu", path, rank, step,
                   model->head_dim);
}

static bool latents(const pd_press_inst *inst, const pd_press_model *model, pd_latent_rule *ret) {
    static const pd_data_id basis[][2] = {
        [SHARED] = {PD_DATA_EIGEN_SHARED, PD_DATA_EIGEN_SHARED},
        [PER_HEAD] = {PD_DATA_EIGEN_HEAD, PD_DATA_EIGEN_HEAD},
        [SCORE] = {PD_DATA_EIGEN_SCORE, PD_DATA_EIGEN_REBUILD},
        [ROTATED] = {PD_DATA_EIGEN_ROTATED, PD_DATA_EIGEN_ROTATED},
    };
    const size_t rank = rank_of(inst, model->head_dim);
    if (rank == model->head_dim) return false; /* the keys themselves */
    const int b = (int)inst->p[BASIS];
    *ret = (pd_latent_rule){.rank = rank,
                            .window = (size_t)inst->p[WINDOW],
                            .n_sink = (size_t)inst->p[SINKS],
                            .rotated = b == ROTATED,
                            .n_basis = b == SHARED ? 1 : model->n_head_kv,
                            .project = pd_press_data_get(inst->data, basis[b][0]),
                            .rebuild = pd_press_data_get(inst->data, basis[b][1])};
    return true;
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
    .ratio_doc = "rank_k says what goes",
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
