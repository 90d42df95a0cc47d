/* SPDX-License-Identifier: Apache-2.0 */
/* kvgrad: keep what the end of the model feels when the context is repeated.
 *
 * kvpress' KVgradPress (openreview cg1wTCJjjk).  kvzip's replay and budgets, but a weight
 * A counts by the effect of the value and by how much the end of the model feels its row:
 *
 *     score[slot] = max over the replay's rows p and the group's query heads of
 *                   A[p][slot] * |Wo v_slot|_2 * |dPhi/da_p|_2
 *
 * a_p what the attention block puts out at row p (of Gemma before the norm behind the
 * block, as in the reference), Phi = sum_p |h_p|_2^2 over the last layer's output before
 * the final norm.  A row reaches later rows of its replay; the context's cache is a
 * constant.  The gradient is the engine's (run/reverse.h).
 *
 * DIFFERS: as kvzip.  Under --compute int8 the gradient is that of the matrices' numbers;
 * rounding on the way is passed through.
 * Cost: kvzip's plus variant, and a pass backwards in f32 per chunk; each layer's input
 * is held for the rows of a chunk.  SmolLM2-135M, 2,048 tokens, int8, two threads: 25 times
 * the prompt alone, which kvzip in chunks of 512 takes 3.4 times. */
#include "compression/kvzip.h"

static const pd_param params[] = {
    {.name = "layerwise", .type = PD_PARAM_BOOL, .def = 0, .max = 1,
     .doc = "the same share of every layer instead of one budget for all"},
    {.name = "n_sink", .type = PD_PARAM_INT, .def = 4, .min = 0, .max = 4096, .doc = "first tokens that stay"},
    {.name = "chunk_size", .type = PD_PARAM_INT, .def = 512, .min = 1, .max = 65536, .doc = "context tokens repeated at a time"},
};

static const pd_deferred deferred = {.most_rows = pd__kvzip_most_rows, .open = pd__kvzip_open, .ids = pd__kvzip_ids,
                                     .rows = pd__kvzip_rows, .decide = pd__kvzip_decide, .gradient = true};

const pd_press pd_press_kvgrad = {
    .name = "kvgrad",
    .reference_class = "KVgradPress",
    .kind = "planner",
    .source = "openreview cg1wTCJjjk",
    .doc = "Keeps what the end of the model feels when it repeats the context: kvzip weighed by a gradient, a pass backwards.",
    .ratio_doc = "its own",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_DEFER,
    .needs = pd__kvzip_needs,
    .deferred = &deferred,
};
