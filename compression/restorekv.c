/* SPDX-License-Identifier: Apache-2.0 */
/* restorekv: known by name, not served.
 *
 * kvpress' RestoreKVPress (arXiv 2608.01247).  kvzip's scores; then eight trained
 * embeddings run once over the full cache, at positions L to L + 7 and with a trained
 * low-rank adapter in the projections, and their keys and values stay in every head;
 * then kvzip's eviction at ratio + 8 / L.  Embeddings and adapter are published for two
 * models of eight billion parameters, in a form of adapters that is not read here, and
 * the forward pass has no place for an adapter. */
#include "compression/press.h"

static const pd_param params[] = {
    {.name = "layerwise", .type = PD_PARAM_BOOL, .def = 0, .max = 1,
     .doc = "the same share of every layer instead of one budget for all"},
    {.name = "n_sink", .type = PD_PARAM_INT, .def = 4, .min = 0, .max = 4096, .doc = "first tokens that stay"},
    {.name = "kvzip_plus_normalization", .type = PD_PARAM_BOOL, .def = 0, .max = 1,
     .doc = "weigh by what the value does to the layer's output"},
    {.name = "chunk_size", .type = PD_PARAM_INT, .def = 2048, .min = 1, .max = 65536, .doc = "context tokens repeated at a time"},
};

const pd_press pd_press_restorekv = {
    .name = "restorekv",
    .reference_class = "RestoreKVPress",
    .kind = "planner",
    .source = "arXiv 2608.01247",
    .doc = "Not served (501): kvzip and eight trained tokens that fill in for what goes; they need a low-rank adapter.",
    .ratio_doc = "its own",
    .unserved = "it runs trained tokens through low-rank adapters of the projections, which this engine has not; they are "
                "published for Llama-3.1-8B-Instruct and Qwen3-8B only; kvzip is the same without them",
    .params = params,
    .n_params = sizeof params / sizeof *params,
};
