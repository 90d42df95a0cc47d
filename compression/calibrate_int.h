/* SPDX-License-Identifier: Apache-2.0 */
/* Inside calibration: what its files share.
 *
 *   calibrate.c          open, close, the two presses
 *   calibrate_text.c     moments, Gram matrices of queries, DuoAttention's scores
 *   calibrate_bases.c    second moments of keys, values and queries; their eigenvectors
 *   calibrate_codes.c    a sample of keys; codebooks of it
 *   calibrate_errors.c   what each rank of a basis costs a layer
 *   calibrate_overlap.c  what attention the tokens hold that joint latents choose
 *   calibrate_repeat.c   KVzip's scores, the regressors' sums, LU-KV's curves
 *   calibrate_gate.c     rows with their scores, and gates trained on them */
#ifndef PD_COMPRESSION_CALIBRATE_INT_H
#define PD_COMPRESSION_CALIBRATE_INT_H

#include "compression/calibrate.h"
#include "engine/cache/codes.h"

struct pd_calib {
    pd_press_model model;
    unsigned sets;
    bool *seen;     /* [NL] layers that were shown */
    size_t n_text, n_repeat; /* prompts read */

    /* STATS: pooled over all tokens */
    size_t *count;  /* [NL] */
    double *mean;   /* [NL][Hq][D] */
    double *m2;     /* [NL][Hq][D][D] sum of squares about the mean */

    /* QFILTER, of rotated queries */
    double *gram;   /* [NL][Hq][D][D] Q^T Q, upper triangle */
    double *q_sum;  /* [NL][Hq][D] */

    /* DUO */
    double *duo;    /* [NL][Hk] sum over texts */

    /* EIGEN and JOINT: sums of x x^T, upper triangles */
    size_t *key_rows;  /* [NL] */
    size_t distances;  /* tokens of the longest prompt */
    float *freq;       /* [NL][D/2]; CODES too */
    double *key, *rotated, *value; /* [NL][Hk][D][D] before RoPE, after it */
    double *query;     /* [NL][Hk][D][D] before RoPE, summed over the group */
    double *joint;     /* [NL][Hk*D][Hk*D] keys before RoPE */
    const pd_press_data *bases;  /* what was made of them; NULL before */
    double *output;    /* [NL] sum of squares of the layer's output, and of what a rank loses: */
    double *eigen_error; /* [NL][PD_EIGEN_CURVES][PD_EIGEN_STEPS - 1] */
    double *joint_error; /* [NL][PD_EIGEN_STEPS - 1] */
    double *overlap;     /* [NL][PD_OVERLAP_SETUPS] sum of shares over so many rows of heads: */
    size_t *overlap_rows; /* [NL] */

    /* CODES */
    const pd_kernels *kern; /* of the last view */
    size_t *code_seen;  /* [NL] keys of a head that were shown */
    uint16_t *code_row; /* [NL][Hk][PD_CALIB_CODE_ROWS][D] f16: those of them in the sample, before RoPE */
    double *code_query; /* [NL][Hk][D/2] sum of squares of the queries' pairs of channels */
    float *book[PD_BOOKS], *book_weight; /* of the press data */

    /* KVZAP_LINEAR, about the first text's means */
    size_t *rows;   /* [NL] */
    float *x_shift, *y_shift; /* [NL][d], [NL][Hk] */
    double *xx;     /* [NL][d][d] upper triangle */
    double *xy;     /* [NL][d][Hk] */
    double *x_sum, *y_sum; /* [NL][d], [NL][Hk] */

    /* LUKV */
    float *score;   /* [NL][Hk][n] of the prompt at work */
    double *pruned; /* [99][NL][Hk] sum over prompts */

    /* FASTKVZIP */
    struct pd__gates *gates;
    size_t repeated; /* tokens of the repeat prompts before this one */

    size_t first, n, again; /* of the repeat prompt */
};

/* One layer of a text prompt. */
pd_status pd__calib_text_layer(pd_calib *c, const pd_view *view, pd_err *err);
pd_status pd__calib_text_finish(pd_calib *c, pd_press_data *d, pd_err *err);

/* The same for codebooks. */
pd_status pd__calib_codes_layer(pd_calib *c, const pd_view *view, pd_err *err);

/* The same for bases. */
pd_status pd__calib_bases_layer(pd_calib *c, const pd_view *view, pd_err *err);
pd_status pd__calib_bases_make(const pd_calib *c, pd_press_data *d, pd_err *err);
pd_status pd__calib_errors_layer(pd_calib *c, const pd_view *view, pd_err *err);
/* latents [n][Hk*D] of all numbers, cos and sin [n][D/2] */
pd_status pd__calib_overlap(pd_calib *c, const pd_view *view, const float *latents, const float *cos, const float *sin, pd_err *err);
pd_status pd__calib_errors_finish(const pd_calib *c, pd_press_data *d, pd_err *err);

/* One layer of a repeat prompt. */
pd_status pd__calib_repeat_layer(pd_calib *c, const pd_view *view, pd_err *err);
pd_status pd__calib_repeat_finish(pd_calib *c, pd_press_data *d, pd_err *err);

/* Gates, from `tokens` tokens of repeat prompts.  Errors: ENOMEM. */
typedef struct pd__gates pd__gates;
pd_status pd__gates_open(pd__gates **ret, const pd_press_model *m, size_t tokens, pd_err *err);
void pd__gates_close(pd__gates *g); /* NULL is fine */
/* Slots [first, first + n) of a layer, score[Hk][n], behind `before` tokens of other prompts. */
pd_status pd__gates_add(pd__gates *g, const pd_view *view, size_t first, size_t n, size_t before, const float *score,
                        pd_err *err);
/* Layers [first, first + n) into d; the tensors are put there at the first call. */
pd_status pd__gates_train(pd__gates *g, size_t first, size_t n, pd_workers *workers, pd_press_data *d, pd_err *err);

#endif
