/* SPDX-License-Identifier: Apache-2.0 */
/* decoding: prune every compression_interval generated tokens down to target_size.
 *
 * kvpress' DecodingPress.  The prompt stays dense (prefill_decoding presses it
 * too); after that a head never holds more than the larger of its prompt and
 * target_size, plus an interval.  `compression.decode` of a request is this press.
 * With keep_prompt what the prompt left stays and target_size counts generated tokens:
 * around `random` that is Random Attention (arXiv 2609.03430), the control for all others.
 *
 * DIFFERS: what the press inside sees is not what it sees in the reference:
 * - Slots carry the positions of their tokens, and recent queries are rotated at
 *   their own; there all of them stand at the current step's position.
 * - hidden_states_buffer_size counts queries, the last ones, and a pruning does
 *   not clear them: the statistics of expected_attention always have rows, and a
 *   window (snapkv) is whole even if the interval is shorter than it.  There the
 *   buffer counts forward passes, is empty after a pruning, and a window larger
 *   than it is an error.
 * - adakv really evicts; there it masks anew each time while the cache grows.
 * - What follows the scope in the prompt (the question) is no step and never
 *   starts a pruning, however long it is.
 * Cost: the press inside, once per interval; recent queries in f32 if it needs
 * them: layers * rows * Hq * D * 4 bytes. */
#include "compression/decoding.h"

enum { INTERVAL, TARGET, BUFFER, KEEP_PROMPT };

static bool decode_rule(const pd_press_inst *inst, pd_decode_rule *ret) {
    *ret = (pd_decode_rule){
        .prune = inst->child[0],
        .interval = (size_t)inst->p[INTERVAL],
        .budget = {.by_count = true, .count = (size_t)inst->p[TARGET]},
        .n_recent = pd__recent(inst->p[BUFFER]),
        .tag = pd__running_tag(inst->child[0]),
        .keep_prompt = inst->p[KEEP_PROMPT] != 0.0,
    };
    return true;
}

static const pd_param params[] = {
    [INTERVAL] = PD__PARAM_INTERVAL,
    [TARGET] = PD__PARAM_TARGET,
    [BUFFER] = PD__PARAM_BUFFER,
    [KEEP_PROMPT] = PD__PARAM_KEEP_PROMPT,
};

static pd_status check(const pd_press_inst *inst, const struct pd_press_model *model, const char *path, pd_err *err) {
    (void)model;
    return pd__check_keep_prompt(inst, inst->p[KEEP_PROMPT] != 0.0, path, err);
}

const pd_press pd_press_decoding = {
    .name = "decoding",
    .reference_class = "DecodingPress",
    .kind = "decoding",
    .source = "kvpress",
    .doc = "Prunes while tokens are generated, to a fixed size.",
    .ratio_doc = "none: target_size is what stays",
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
