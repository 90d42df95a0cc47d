/* SPDX-License-Identifier: Apache-2.0 */
/* compression_ratio_decoding: decoding with a size that grows with the text.
 *
 * kvpress' CompressionRatioDecodingPress: each pruning leaves max(1, (int)(T * (1 -
 * ratio))) tokens per head, T = tokens seen so far, evicted ones included.  All
 * that decoding.c says of views and cost holds. */
#include "compression/decoding.h"

enum { RATIO, INTERVAL, BUFFER, KEEP_PROMPT };

static bool decode_rule(const pd_press_inst *inst, pd_decode_rule *ret) {
    *ret = (pd_decode_rule){
        .prune = inst->child[0],
        .interval = (size_t)inst->p[INTERVAL],
        .budget = {.ratio = inst->p[RATIO]},
        .n_recent = pd__recent(inst->p[BUFFER]),
        .tag = pd__running_tag(inst->child[0]),
        .keep_prompt = inst->p[KEEP_PROMPT] != 0.0,
    };
    return true;
}

static const pd_param params[] = {
    [RATIO] = {.name = "target_compression_ratio",
               .type = PD_PARAM_FLOAT,
               .def = 0.5,
               .min = 0,
               .max = 1,
               .flags = PD_PARAM_OPEN_MAX,
               .doc = "fraction of all tokens seen that a pruning removes"},
    [INTERVAL] = PD__PARAM_INTERVAL,
    [BUFFER] = PD__PARAM_BUFFER,
    [KEEP_PROMPT] = PD__PARAM_KEEP_PROMPT,
};

static pd_status check(const pd_press_inst *inst, const struct pd_press_model *model, const char *path, pd_err *err) {
    (void)model;
    return pd__check_keep_prompt(inst, inst->p[KEEP_PROMPT] != 0.0, path, err);
}

const pd_press pd_press_compression_ratio_decoding = {
    .name = "compression_ratio_decoding",
    .reference_class = "CompressionRatioDecodingPress",
    .kind = "decoding",
    .source = "kvpress",
    .doc = "Prunes while tokens are generated, to a fraction of all tokens seen.",
    .ratio_doc = "its own target_compression_ratio, of all tokens seen",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_DECODE | PD_DECODE_ONLY,
    .min_child = 1,
    .max_child = 1,
    .child_must = PD_CAN_PRUNE_STEP,
    .own_budget = true,
    .check = check,
    .decode_rule = decode_rule,
};
