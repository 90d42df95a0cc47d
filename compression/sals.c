/* SPDX-License-Identifier: Apache-2.0 */
/* sals: keys of all heads in one latent, and of the tokens a step reads only those that may matter.
 *
 * Mu et al. 2025 (SALS, arXiv 2510.24273).  RoPE spreads keys over more directions, so a token's keys of
 * all heads of a layer are projected before it, together, to r numbers by the leading eigenvectors of
 * their second moment (press data, pressd calibrate).  In every decode step the mean query of each group,
 * without RoPE, is projected likewise; its product with the first r* numbers orders the tokens, and only
 * the best of them, the sinks and the recent window have their keys rebuilt, rotated to where they
 * stand, and are attended to exactly.  One set of tokens for all heads of a layer.
 * engine/cache/joint.h stores, engine/run/joint_read.h chooses and reads.
 *
 * Every token stays, so a request gives no ratio; what goes is (16 - rank) / 32 of the keys and values
 * older than `window`.  Prompts are read whole.
 *
 * DIFFERS: The skipped layers keep their keys as they are; the authors read all of their latents there,
 * and rebuilding every key costs more than reading it. So do sequences of up to dense_below tokens.
 * DIFFERS: Keys of the first `sinks` tokens and of the last `window` stay whole (the authors project all
 * of them).
 * DIFFERS: Values are stored as kv_type says; the authors quantise them to 4 or 2 bits with this press.
 *
 * By default one older token in 16 is read behind a window of 256; the authors' figures fit one in eight.  A long window
 * lies in one piece and costs little: both together lose less than one in eight behind a window of 64, and are faster.
 * Cost: a step reads a byte of each number that tokens are chosen by (they lie a second time, in 8 bits), and keys and
 * values of the tokens chosen; it takes r * H * D multiply-adds for each that was not read lately, and a token
 * r * H * D once, to project it. */
#include "compression/press_data.h"
#include "compression/shared.h"
#include "compression/spec.h"
#include "engine/base/num.h"

#include <math.h>

enum { RANK, SCORE_RANK, TOKEN_SHARE, GRANULARITY, REUSE, WINDOW, SINKS, SKIP_FIRST, SKIP_LAST, MIN_OVERLAP, DENSE_BELOW, ORDER };
enum { TOKEN, PAGE };

static int data_set(const pd_press_inst *inst, unsigned have) {
    (void)inst;
    (void)have;
    return PD_SET_JOINT;
}

/* In sixteenths of all heads' channels, as the rank is. */
static double score_rank(const pd_press_inst *inst) {
    return isnan(inst->p[SCORE_RANK]) ? inst->p[RANK] / 2.0 : inst->p[SCORE_RANK];
}

static pd_status check(const pd_press_inst *inst, const pd_press_model *model, const char *path, pd_err *err) {
    (void)model;
    if (score_rank(inst) <= inst->p[RANK]) return PD_OK;
    return pd_fail(err, PD_EINVAL, path, "%s: score_rank is %.9g and rank %.9g; tokens are chosen by numbers that are stored, %.9g at most",
                   path, inst->p[SCORE_RANK], inst->p[RANK], inst->p[RANK]);
}

/* Of the layer's attention, what the tokens held that calibration chose by as many numbers or fewer. */
static double overlap_of(const pd_press_inst *inst, size_t layer) {
    const float *overlap = pd_press_data_get(inst->data, PD_DATA_JOINT_OVERLAP) + layer * PD_OVERLAP_SETUPS;
    size_t i = 0;
    while (i + 1 < PD_OVERLAP_SETUPS && score_rank(inst) < (double)(PD_EIGEN_STEPS / PD_OVERLAP_LEAST >> i)) i++;
    return (double)overlap[i];
}

static bool latents(const pd_press_inst *inst, const pd_press_model *model, pd_latent_rule *ret) {
    const size_t first = (size_t)inst->p[SKIP_FIRST], last = (size_t)inst->p[SKIP_LAST], d = model->head_dim;
    const size_t part = d * (size_t)inst->p[RANK] / PD_EIGEN_STEPS; /* of each head's pages */
    *ret = (pd_latent_rule){.window = (size_t)inst->p[WINDOW],
                            .rank_v = d,
                            .n_sink = (size_t)inst->p[SINKS],
                            .project = pd_press_data_get(inst->data, PD_DATA_JOINT),
                            .joint = true,
                            .whole = (size_t)inst->p[DENSE_BELOW],
                            .read = {.share = inst->p[TOKEN_SHARE],
                                     .score = (uint16_t)fmax(1.0, score_rank(inst) * (double)(model->n_head_kv * d) / PD_EIGEN_STEPS),
                                     .pages = inst->p[GRANULARITY] == PAGE,
                                     .reuse = (size_t)inst->p[REUSE],
                                     .order = (pd_page_order)inst->p[ORDER]}};
    for (size_t l = first; l + last < model->n_layer; l++) {
        if (!isnan(inst->p[MIN_OVERLAP]) && overlap_of(inst, l) < inst->p[MIN_OVERLAP]) continue;
        ret->layer[l] = (uint16_t)part;
        ret->value[l] = (uint16_t)d;
        ret->rank = part;
    }
    return ret->rank > 0;
}

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget, pd_plan *ret, pd_err *err) {
    *ret = (pd_plan){.keep_all = true};
    return PD_OK;
}

static size_t most(const pd_press_inst *inst, const pd_budget *budget, size_t layer, size_t n) {
    return n; /* no slot goes */
}

static const char *const granularities[] = {[TOKEN] = "token", [PAGE] = "page", NULL};
static const char *const orders[] = {[PD_PAGES_BOUND] = "score", [PD_PAGES_RANDOM] = "random", [PD_PAGES_RECENT] = "recent", NULL};

static const pd_param params[] = {
    [RANK] = {.name = "rank", .type = PD_PARAM_INT, .def = 8, .min = 1, .max = PD_EIGEN_STEPS,
              .doc = "numbers that a token's keys are stored in, in sixteenths of all heads' channels; the paper has 4 and 2"},
    [SCORE_RANK] = {.name = "score_rank", .type = PD_PARAM_INT, .def = NAN, .min = 1, .max = PD_EIGEN_STEPS, .flags = PD_PARAM_NULLABLE,
                    .doc = "of them, those that tokens are chosen by, in the same sixteenths; null: half of rank"},
    [TOKEN_SHARE] = {.name = "token_share", .type = PD_PARAM_FLOAT, .def = 0.0625, .min = 0, .max = 1, .flags = PD_PARAM_OPEN_MIN,
                     .doc = "share of the older tokens that a step reads"},
    [GRANULARITY] = {.name = "granularity", .type = PD_PARAM_CHOICE, .def = TOKEN, .max = PAGE, .choices = granularities,
                     .doc = "what is chosen: tokens, or pages of 16"},
    [REUSE] = {.name = "reuse", .type = PD_PARAM_INT, .def = 1, .min = 1, .max = 16, .doc = "steps in a row that read the same tokens"},
    [WINDOW] = {.name = "window", .type = PD_PARAM_INT, .def = 256, .min = 0, .max = 65536,
                .doc = "most recent tokens, whose keys stay whole and are always read"},
    [SINKS] = {.name = "sinks", .type = PD_PARAM_INT, .def = 4, .min = 0, .max = 16, .doc = "first tokens, likewise"},
    [SKIP_FIRST] = {.name = "skip_first", .type = PD_PARAM_INT, .def = 2, .min = 0, .max = PD_LATENT_LAYERS,
                    .doc = "first layers, whose keys stay as they are and are all read"},
    [SKIP_LAST] = {.name = "skip_last", .type = PD_PARAM_INT, .def = 1, .min = 0, .max = PD_LATENT_LAYERS, .doc = "last layers, likewise"},
    [MIN_OVERLAP] = {.name = "min_overlap", .type = PD_PARAM_FLOAT, .def = NAN, .min = 0, .max = 1, .flags = PD_PARAM_NULLABLE,
                     .doc = "layers are skipped too where the tokens chosen at calibration held less of the attention than this"},
    [DENSE_BELOW] = {.name = "dense_below", .type = PD_PARAM_INT, .def = 1024, .min = 0, .max = 1 << 30,
                     .doc = "tokens up to which a sequence is kept and read as without this press"},
    [ORDER] = {.name = "order", .type = PD_PARAM_CHOICE, .def = PD_PAGES_BOUND, .max = PD_PAGES_RECENT, .choices = orders,
               .doc = "which tokens come first; random and recent are there to compare with"},
};

const pd_press pd_press_sals = {
    .name = "sals",
    .reference_class = "none",
    .kind = "planner",
    .source = "arXiv 2510.24273",
    .doc = "Stores the keys of all heads in one latent before RoPE (press data) and reads those a step's query looks for; every token stays.",
    .ratio_doc = "rank says what goes",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_COMPOSE | PD_STANDS_ALONE, /* heads stay as long as they are */
    .own_budget = true,
    .check = check,
    .data_set = data_set,
    .latents = latents,
    .plan = plan,
    .most = most,
};
