/* SPDX-License-Identifier: Apache-2.0 */
/* What the presses of kvpress' DecodingPress family share: parameters and the
 * part of their rule that is the same.  Private to compression/. */
#ifndef PD_COMPRESSION_DECODING_H
#define PD_COMPRESSION_DECODING_H

#include "compression/press.h"

/* The check hook: kv_compress' pages are chosen in the whole cache.  Errors: EINVAL. */
static inline pd_status pd__check_keep_prompt(const pd_press_inst *inst, bool keep, const char *path, pd_err *err) {
    const pd_press *child = inst->child[0]->press;
    if (!keep || !child->running) return PD_OK;
    return pd_fail(err, PD_EINVAL, path, "%s: parameter 'keep_prompt' of '%s' must be false around '%s', which chooses in all layers at once",
                   path, inst->press->name, child->name);
}

/* Rows of a parameter table. */
#define PD__PARAM_INTERVAL                                                       \
    {.name = "compression_interval", .type = PD_PARAM_INT, .def = 512, .min = 1, \
     .max = 1 << 30, .doc = "decode steps between two prunings"}
#define PD__PARAM_TARGET                                                 \
    {.name = "target_size", .type = PD_PARAM_INT, .def = 2048, .min = 1, \
     .max = 1 << 30, .doc = "tokens per head that a pruning leaves"}
#define PD__PARAM_BUFFER                                                                \
    {.name = "hidden_states_buffer_size", .type = PD_PARAM_INT, .def = 256, .min = 0,   \
     .max = PD_RECENT_MAX, .doc = "recent queries the statistics of the press inside are " \
                                  "taken over; a window it asks for is always kept whole"}

#define PD__PARAM_KEEP_PROMPT                                                           \
    {.name = "keep_prompt", .type = PD_PARAM_BOOL, .def = 0, .max = 1,                  \
     .doc = "what the prompt left stays; the press inside sees generated tokens alone, " \
            "and they alone are counted"}

/* What the press inside ranks slots by that prunes all layers at once; others need no tag. */
static inline pd_tag_kind pd__running_tag(const pd_press_inst *child) {
    return child->press->running ? child->press->running_tag(child) : PD_TAG_NONE;
}

/* The size of the last `n_recent` queries' statistics is at least one row. */
static inline size_t pd__recent(double buffer_size) {
    return buffer_size < 1.0 ? 1 : (size_t)buffer_size;
}

#endif
