/* SPDX-License-Identifier: Apache-2.0 */
/* kvgrad: known by name, not served.
 *
 * kvpress' KVgradPress (openreview cg1wTCJjjk).  kvzip's replay, but a weight A counts
 * by how much the end of the model feels it: score[slot] = max over the replay's rows
 * p and the group's query heads of A[p][slot] * |Wo v_slot|_2 * |dPhi/da_p|_2, a_p what
 * the attention block adds at row p, Phi = sum_p |h_p|_2^2 over the last layer's output
 * before the final norm.  The gradient is a reverse pass through every layer with all
 * of the replay's activations held; this engine has forward passes only. */
#include "compression/press.h"

static const pd_param params[] = {
    {.name = "layerwise", .type = PD_PARAM_BOOL, .def = 0, .max = 1,
     .doc = "the same share of every layer instead of one budget for all"},
    {.name = "n_sink", .type = PD_PARAM_INT, .def = 4, .min = 0, .max = 4096, .doc = "first tokens that stay"},
    {.name = "chunk_size", .type = PD_PARAM_INT, .def = 512, .min = 1, .max = 65536, .doc = "context tokens repeated at a time"},
};

const pd_press pd_press_kvgrad = {
    .name = "kvgrad",
    .reference_class = "KVgradPress",
    .kind = "planner",
    .source = "openreview cg1wTCJjjk",
    .doc = "Not served (501): kvzip weighed by a gradient, which needs a reverse pass through the model.",
    .ratio_doc = "its own",
    .unserved = "it needs gradients, a reverse pass through every layer, and this engine has forward passes only; "
                "kvzip with kvzip_plus_normalization is the nearest that is served",
    .params = params,
    .n_params = sizeof params / sizeof *params,
};
