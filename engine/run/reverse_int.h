/* SPDX-License-Identifier: Apache-2.0 */
/* Inside reverse mode: its state, and the parts of a layer backwards. */
#ifndef PD_ENGINE_RUN_REVERSE_INT_H
#define PD_ENGINE_RUN_REVERSE_INT_H

#include "engine/run/reverse.h"

enum { PD__REVERSE_COLUMNS = 128, PD__REVERSE_DEQUANT = 64, PD__REVERSE_QUERIES = 32 };

typedef enum { PD__STEP_STAGE, PD__STEP_BLOCKS, PD__STEP_INPUT } pd__reverse_step;

struct pd_reverse {
    const pd_model *model;
    pd_fwd *fwd;
    pd_attn *attn;
    pd_codec codec;
    size_t m, slots;
    size_t layer, row; /* the next unit's */
    pd__reverse_step step;
    float *x;      /* [n_layer][m][n_embd] inputs */
    float *dy;     /* [m][n_embd] gradient of the layer's output; later of what attention is added to; of its input */
    float *q, *k;  /* [m][n_head * D], [m][n_head_kv * D] before norm and RoPE */
    float *dq, *dk, *dv; /* likewise, of the rotated ones */
    /* of a tile */
    float *x1, *o, *dh, *df; /* [TILE][n_embd] */
    float *da;     /* [TILE][widest of n_ff, n_head * D] */
    float *wide;   /* [TILE][n_ff] */
    float *weight; /* [DEQUANT][widest] rows of a matrix */
    float *qg, *og; /* [n_head_kv][TILE * G][D] queries, and gradients of attention's result */
    float *own_p, *own_s; /* [n_head_kv][TILE * G][m] weights of the rows' own slots, gradients of their scores */
    float *score;  /* per thread: 3 of [queries of a block][slots] */
    size_t score_floats;
};

/* Tokens of a block of attention. */
static inline size_t pd__reverse_block(const pd_hparams *hp) {
    const size_t group = hp->n_head / hp->n_head_kv;
    return group >= PD__REVERSE_QUERIES ? 1 : PD__REVERSE_QUERIES / group;
}

/* dx[i] (+)= gradient of x where y = x / sqrt(mean(x^2) + eps) * w and dy is y's; dx may be dy unless added to. */
void pd__rmsnorm_back(const float *x, const float *w, float eps, size_t n, const float *dy, bool add, float *dx);

/* From y = act(g) * u and dy to dg and du, in g's and u's place. */
void pd__glu_back(pd_act act, size_t n, const float *dy, float *g, float *u);

/* dx[n][n_col] (+)= dy[n][n_row] * W: a product backwards. */
void pd__product_back(pd_reverse *r, const pd_mat *w, const float *dy, size_t n, bool add, float *dx);

/* Rows [row0, row0 + n) of attention backwards: fwd->q rotated, d_out [n][n_head * D]; sets their dq,
 * adds to dk and dv of rows up to row0 + n. */
void pd__attention_back(pd_reverse *r, const pd_stage *s, size_t row0, size_t n, uint32_t window, const float *d_out);

#endif
