/* SPDX-License-Identifier: Apache-2.0 */
/* What a press wants to know about queries, gathered while a layer runs.
 *
 * Prefill (pd_collect): moments of pre-RoPE queries per distinct n_sink, the
 * last rotated queries, the attention input, column sums of attention; one layer at a time, no hidden
 * states kept.  Decode (pd_qring): the last W pre-RoPE queries of every layer,
 * from which moments and rotated tails are made when a decode press runs.
 *
 * Moments are summed about the mean of the first piece: sums about zero would lose
 * the variance of heads whose mean is large.  Pieces are PD_COLLECT_CUT rows, counted
 * from the scope's first, so that the sums are the same bits however a scope is cut
 * at multiples of that.  Covariances take rows in blocks of PD_COLLECT_BLOCK, likewise:
 * rows wait until their block is full.  One task = a query head.  Thread: engine. */
#ifndef PD_ENGINE_RUN_COLLECT_H
#define PD_ENGINE_RUN_COLLECT_H

#include "compression/press.h"
#include "engine/model/model.h"

enum { PD_COLLECT_CUT = 32, PD_COLLECT_BLOCK = 128, PD_COLLECT_DIM = 512 /* most of a head */ };

typedef struct pd_collect_set {
    size_t n_sink, count;
    float *shift; /* [nq] */
    double *sum;  /* [nq] about shift */
    float *cov;   /* [n_head][D][D] about shift, upper triangle while summing; NULL without Q_COV */
    float *wait;  /* [n_head][PD_COLLECT_BLOCK][D] about shift: row r of the scope at r % PD_COLLECT_BLOCK; with cov */
    float *mean;  /* [nq] result */
} pd_collect_set;

typedef struct pd_collect {
    pd_press_needs needs;
    const pd_hparams *hp;
    const pd_kernels *kern;
    pd_workers *workers;
    size_t rows; /* rows of the scope */
    pd_collect_set set[PD_MOMENTS_MAX];
    pd_moments moments[PD_MOMENTS_MAX]; /* after pd_collect_finish */
    float *tail;    /* [tail_rows][nq] rotated */
    int32_t *tail_pos;
    size_t tail_rows;
    float *x;       /* [rows][n_embd] */
    float *att_sum; /* [n_head][rows] */
    size_t bytes;
    void *memory[5 * PD_MOMENTS_MAX + 4]; /* what to free */
    size_t n_memory;
} pd_collect;

/* For a scope of `rows` tokens.  Nothing is kept for needs {0}. */
pd_status pd_collect_init(pd_collect *c, const pd_press_needs *needs, const pd_hparams *hp,
                          const pd_kernels *kern, pd_workers *workers, size_t rows, pd_err *err);
void pd_collect_done(pd_collect *c);

void pd_collect_begin(pd_collect *c); /* a new layer */
/* Rows [row0, row0 + n): q [n][nq] before RoPE, x [n][n_embd] the attention input. */
void pd_collect_raw(pd_collect *c, size_t row0, size_t n, const float *q, const float *x);
/* The same rows' q after RoPE, with their positions. */
void pd_collect_rotated(pd_collect *c, size_t row0, size_t n, const float *q, const int32_t *pos);
void pd_collect_finish(pd_collect *c); /* fills c->moments */

/* ---- the ring of a generating sequence ---- */

typedef struct pd_qring {
    size_t n_layer, nq, rows; /* rows: capacity */
    float *q;      /* [n_layer][rows][nq] before RoPE */
    int32_t *pos;  /* [rows] */
    size_t n_seen; /* rows ever put; the last min(n_seen, rows) are there */
    size_t bytes;
} pd_qring;

pd_status pd_qring_init(pd_qring *r, size_t n_layer, size_t nq, size_t rows, pd_err *err);
void pd_qring_done(pd_qring *r);
/* The query of `layer` for the row that pd_qring_advance will count next, `ahead`
 * rows later (prefill puts many rows of one layer at a time). */
void pd_qring_put(pd_qring *r, size_t layer, size_t ahead, const float *q);
void pd_qring_advance(pd_qring *r, int32_t pos);
static inline size_t pd_qring_count(const pd_qring *r) {
    return r->n_seen < r->rows ? r->n_seen : r->rows;
}
/* Oldest first: row i of `layer`, and its position. */
const float *pd_qring_row(const pd_qring *r, size_t layer, size_t i, int32_t *pos);

#endif
