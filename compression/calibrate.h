/* SPDX-License-Identifier: Apache-2.0 */
/* Measuring press data from a text, by looking at prompts as they are read.
 *
 * The caller lets an engine read prompts, one at a time, each "pressed" by an
 * instance from here: a press that keeps everything and adds what its view shows
 * to sums.  So calibration needs no forward pass of its own, and sees exactly what
 * presses see.  Layers with a sliding window are never shown; their tensors are
 * neutral (zeros, scores below 0, uniform curves).
 *
 *   text prompts      expected_attention's statistics, Q-filters, DuoAttention scores, bases, codebooks;
 *                     some of them again for what each rank of a basis costs
 *   repeat prompts    (a text, then the same text again) KVzap regressors, LU-KV curves; rows
 *                     that Fast KVzip's gates are trained on at the end
 *
 * Memory, in doubles: stats and filters NL*Hq*D^2 each, kvzap NL*d^2, eigen 4*NL*Hk*D^2,
 * joint NL*(Hk*D)^2; fastkvzip NL*8192*d/4; for codebooks 2 bytes NL*Hk*D*PD_CALIB_CODE_ROWS.
 * Thread: the hooks run in the engine's thread while a job runs, all else in the
 * caller's while none does. */
#ifndef PD_COMPRESSION_CALIBRATE_H
#define PD_COMPRESSION_CALIBRATE_H

#include "compression/press_data.h"

typedef struct pd_calib pd_calib;

enum { PD_CALIB_CODE_ROWS = 8192 }; /* keys of a head that codebooks are made from */
enum { PD_CALIB_SINK = 4 }; /* first tokens of a text that count for nothing, as in all recipes */

/* The sets that can be measured. */
enum {
    PD_CALIB_TEXT = 1u << PD_SET_STATS | 1u << PD_SET_QFILTER | 1u << PD_SET_DUO_CALIBRATED |
                    1u << PD_SET_EIGEN | 1u << PD_SET_JOINT | 1u << PD_SET_CODES,
    PD_CALIB_CODES = 1u << PD_SET_CODES,
    PD_CALIB_BASES = 1u << PD_SET_EIGEN | 1u << PD_SET_JOINT,
    PD_CALIB_REPEAT = 1u << PD_SET_KVZAP_LINEAR | 1u << PD_SET_LUKV | 1u << PD_SET_FASTKVZIP,
};

/* For the sets in `sets` (1 << set); `repeated`: tokens that repeat prompts will hold twice, all
 * together.  Errors: ENOMEM. */
pd_status pd_calib_open(pd_calib **ret, const pd_press_model *model, unsigned sets, size_t repeated, pd_err *err);
void pd_calib_close(pd_calib *c); /* NULL is fine */

/* The press for the next prompt; the caller's (pd_press_inst_close, or the job's).
 * NULL = no memory. */
pd_press_inst *pd_calib_text(pd_calib *c);
/* EIGEN and JOINT, when the text prompts were read: bases into d, which then has to stay; and
 * the press for prompts read once more, to see what each rank costs.  Errors: as pd_calib_finish. */
pd_status pd_calib_bases(pd_calib *c, pd_press_data *d, pd_err *err);
pd_press_inst *pd_calib_errors(pd_calib *c);
/* CODES, when the text prompts were read: the layer's codebooks into d; of all layers in turn, 0 first.
 * Keys are taken to stand anywhere below `positions`.  Errors: ENOMEM. */
pd_status pd_calib_codes(pd_calib *c, size_t layer, size_t positions, pd_press_data *d, pd_workers *workers, pd_err *err);
/* Of a prompt in which n tokens from `first` on come again from `again` on, to its end. */
pd_press_inst *pd_calib_repeat(pd_calib *c, size_t first, size_t n, size_t again);
/* After the prompt of pd_calib_repeat was read.  Errors: ENOMEM. */
pd_status pd_calib_repeat_end(pd_calib *c, pd_err *err);

/* FASTKVZIP, when the repeat prompts were read: trains the gates of layers [first, first + n) into
 * d.  Every layer once; `workers` may be NULL, results do not depend on them.  Errors: ENOMEM. */
pd_status pd_calib_train(pd_calib *c, size_t first, size_t n, pd_workers *workers, pd_press_data *d, pd_err *err);

/* What was measured, into d.  Errors: EINVAL (nothing was read, too little text), ENOMEM,
 * EINTERNAL (a decomposition failed). */
pd_status pd_calib_finish(pd_calib *c, pd_press_data *d, pd_err *err);

#endif
