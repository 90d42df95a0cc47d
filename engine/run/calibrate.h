/* SPDX-License-Identifier: Apache-2.0 */
/* Press data from a text: cut into prompts, read by an engine, measured by
 * compression/calibrate.h. */
#ifndef PD_ENGINE_RUN_CALIBRATE_H
#define PD_ENGINE_RUN_CALIBRATE_H

#include "compression/press_data.h"
#include "engine/run/engine.h"

typedef struct pd_calibrate_opts {
    const char *text; /* UTF-8 */
    size_t len;
    unsigned sets;         /* 1 << set, of those calibrate.h can measure */
    size_t tokens;         /* of the text, at most; from its beginning */
    size_t chunk;          /* tokens of one prompt; a rest shorter than that is left out */
    size_t repeat_tokens;  /* at most so many, in whole chunks spread over the text, are repeated */
} pd_calibrate_opts;

/* Read the text with an engine that has nothing else to do, put what was measured
 * into d.  With a chat template the repeat prompts are a user's message (the text
 * and "Repeat the previous context exactly.") and the answer (the text again).
 * `progress` (may be NULL) is called after each prompt, each layer's codebooks and, of gates that
 * are trained, after every few layers.  Takes minutes.
 * Errors: EINVAL (options, too little text), what pd_engine_submit says, ENOMEM. */
pd_status pd_calibrate(pd_engine *e, const pd_calibrate_opts *o, pd_press_data *d,
                       void (*progress)(void *arg, size_t done, size_t all), void *arg, pd_err *err);

#endif
