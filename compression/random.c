/* SPDX-License-Identifier: Apache-2.0 */
/* random: a uniform number per (head, slot), the baseline every press must beat.
 *
 * kvpress' RandomPress.  With a `seed` the numbers are torch's (MT19937, 24 bits
 * per draw, row-major over heads and slots) and start anew in every layer, so
 * all layers keep the same pattern; without one the request's seed is used in
 * the same way, where the reference draws from the process' global generator.
 * Cost: H*L draws. */
#include "compression/press.h"

#include "engine/base/rng.h"

#include <math.h>

enum { SEED };

static pd_status score(const pd_press_inst *inst, const pd_view *view, float *const *score,
                       pd_err *err) {
    if (isnan(inst->p[SEED])) {
        pd_rng rng = {view->seed};
        for (size_t h = 0; h < view->n_head_kv; h++)
            for (size_t i = 0; i < view->n_h[h]; i++)
                score[h][i] = (float)(pd_rng_u64(&rng) >> 40) * 0x1p-24f;
        return PD_OK;
    }
    pd_mt19937 mt;
    pd_mt19937_seed(&mt, (uint32_t)inst->p[SEED]);
    for (size_t h = 0; h < view->n_head_kv; h++)
        for (size_t i = 0; i < view->n_h[h]; i++)
            score[h][i] = (float)(pd_mt19937_next(&mt) & 0xFFFFFFu) * 0x1p-24f;
    return PD_OK;
}

static const pd_param params[] = {
    [SEED] = {.name = "seed",
              .type = PD_PARAM_INT,
              .def = NAN,
              .min = 0,
              .max = UINT32_MAX,
              .flags = PD_PARAM_NULLABLE,
              .doc = "seed of the scores; null takes the request's seed"},
};

const pd_press pd_press_random = {
    .name = "random",
    .reference_class = "RandomPress",
    .kind = "scorer",
    .source = "kvpress (baseline)",
    .doc = "Drops pairs at random: the baseline.",
    .ratio_doc = "its own",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_SCORE | PD_CAN_SCORE_STEP | PD_CAN_SCORE_RAGGED | PD_CAN_PRUNE_STEP,
    .score = score,
};
