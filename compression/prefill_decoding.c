/* SPDX-License-Identifier: Apache-2.0 */
/* prefill_decoding: one press for the prompt, one for what is generated.
 *
 * kvpress' PrefillDecodingPress.  It does nothing itself: pd_compression_take
 * sends its presses to their places.  Either may be left out or be "none".
 *
 * DIFFERS: the reference routes forward hooks, so presses that drive the model
 * themselves do not work inside; here any press of a prompt does, and the slots
 * it left are in time order when the other press begins (there a first pruning
 * takes the best-scored tokens for the oldest). */
#include "compression/press.h"

static pd_status check(const pd_press_inst *inst, const struct pd_press_model *model,
                       const char *path, pd_err *err) {
    if (inst->n_child == 0)
        return pd_fail(err, PD_EINVAL, path, "%s: 'prefill_decoding' needs a press inside it", path);
    for (size_t i = 0; i < inst->n_child; i++) {
        const pd_press_inst *c = inst->child[i];
        pd_decode_rule rule;
        const bool decodes = c->press->can & PD_DECODE_ONLY;
        if (!decodes && i == 1)
            return pd_fail(err, PD_EINVAL, path,
                           "%s: the second press inside 'prefill_decoding' works while tokens are "
                           "generated; '%s' does not: decoding(%s) does", path, c->press->name,
                           c->press->name);
        if (decodes && i == 0 && inst->n_child == 2)
            return pd_fail(err, PD_EINVAL, path,
                           "%s: the first press inside 'prefill_decoding' presses the prompt; '%s' "
                           "leaves it dense", path, c->press->name);
        if (!decodes && c->press->decode_rule && c->press->decode_rule(c, &rule))
            return pd_fail(err, PD_EINVAL, path,
                           "%s: '%s' goes on while tokens are generated, so it stands outermost, not "
                           "inside 'prefill_decoding'", path, c->press->name);
        if (c->press == inst->press)
            return pd_fail(err, PD_EINVAL, path, "%s: 'prefill_decoding' cannot stand inside itself",
                           path);
    }
    return PD_OK;
}

const pd_press pd_press_prefill_decoding = {
    .name = "prefill_decoding",
    .reference_class = "PrefillDecodingPress",
    .kind = "decoding",
    .source = "kvpress",
    .doc = "One press for the prompt and one while tokens are generated.",
    .ratio_doc = "that of the press of the prompt, there or outermost",
    .can = PD_CAN_DECODE,
    .min_child = 1,
    .max_child = 2,
    .child_ratio = true,
    .child_may_be_none = true,
    .check = check,
};
