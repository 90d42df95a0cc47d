/* SPDX-License-Identifier: Apache-2.0 */
/* SnapKV's score, for the presses that only spend it otherwise (pyramidkv).
 * Private to compression/.  Thread: engine. */
#ifndef PD_COMPRESSION_SNAPKV_H
#define PD_COMPRESSION_SNAPKV_H

#include "compression/press.h"

/* Places of the parameters: the same in every press that scores so. */
enum { PD__SNAPKV_WINDOW, PD__SNAPKV_KERNEL, PD__SNAPKV_PARAMS };

/* The hooks of press.h; snapkv.c has the formula. */
pd_status pd__snapkv_score(const pd_press_inst *inst, const pd_view *view, float *const *score,
                           pd_err *err);
pd_status pd__snapkv_check(const pd_press_inst *inst, const struct pd_press_model *model,
                           const char *path, pd_err *err);
void pd__snapkv_needs(const pd_press_inst *inst, pd_press_needs *n);
size_t pd__snapkv_min_tokens(const pd_press_inst *inst);

/* Rows [PD__SNAPKV_WINDOW] and [PD__SNAPKV_KERNEL] of a parameter table. */
#define PD__SNAPKV_PARAM_ROWS                                                         \
    [PD__SNAPKV_WINDOW] = {.name = "window_size",                                     \
                           .type = PD_PARAM_INT,                                      \
                           .def = 64,                                                 \
                           .min = 1,                                                  \
                           .max = 1024,                                               \
                           .doc = "last tokens, whose queries judge the others and "  \
                                  "which stay"},                                      \
    [PD__SNAPKV_KERNEL] = {.name = "kernel_size",                                     \
                           .type = PD_PARAM_INT,                                      \
                           .def = 5,                                                  \
                           .min = 1,                                                  \
                           .max = 255,                                                \
                           .doc = "slots the attention is averaged over (odd)"}

#endif
