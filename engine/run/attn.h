/* SPDX-License-Identifier: Apache-2.0 */
/* Attention, twice: a tile of a prompt against the staging layer, and one new
 * token per sequence against its pages.
 *
 * Both walk keys in blocks with a running maximum (online softmax, Milakov and
 * Gimelshein 2018).  Blocks are cut by slot index alone, so the sums do not
 * depend on threads or on what else runs.  Thread: engine. */
#ifndef PD_ENGINE_RUN_ATTN_H
#define PD_ENGINE_RUN_ATTN_H

#include "engine/base/workers.h"
#include "engine/cache/kv.h"
#include "engine/model/model.h"
#include "engine/run/select.h"
#include "engine/run/stage.h"

/* PD_ATTN_TILE: most rows of one tile. */
enum { PD_ATTN_TILE = 128, PD_ATTN_PAGES = 16 };

/* Scratch, one slice per thread. */
typedef struct pd_attn {
    const pd_model *model;
    const pd_kernels *kern;
    pd_workers *workers;
    bool exact;     /* f32 all through (--compute f32) */
    float *tile;    /* per thread: scratch of attn_tile */
    size_t tile_floats;
    float *row_max, *row_sum; /* [n_head][PD_ATTN_TILE] of the last tile, for pd_attn_tile_sums */
    float *pages;   /* per thread: scores [G][PAGES*16 + 32] */
    size_t pages_floats;
    uint8_t *table; /* [max_rows][n_head][table_bytes] of keys in codes (cache/codes.h), those of a KV head
                       dense at its start; NULL before any are */
    float *table_scale; /* [max_rows][n_head][2] least and step */
    size_t table_bytes, max_rows;
    float *latent;  /* per thread: projected and rebuilt keys of a chunk */
    size_t latent_floats;
    float *part;    /* partial results of decode chunks */
    size_t pair_cap;  /* chunks of a (row, KV head) it has room for, one behind the other */
    struct pd_attn_chunk *chunk;
    struct pd_attn_range *range; /* of each partial result */
    struct pd_attn_pair *pair; /* [rows][n_head_kv] */
    struct pd_tags *const *tags; /* [n_seq] of a step: the tags of sequences that get their weights there (tags.h),
                                    whose values are not chosen; NULL, also for itself = none */
    size_t bytes;
} pd_attn;

/* max_rows sequences of up to ctx tokens in one decode step; exact: prompts in f32. */
pd_status pd_attn_init(pd_attn *a, const pd_model *m, const pd_kernels *kern, pd_workers *workers,
                       size_t max_rows, size_t ctx, bool exact, pd_err *err);
void pd_attn_done(pd_attn *a);

/* Room for tables of n bytes a query head, before a step with keys in codes.  Errors: ENOMEM. */
pd_status pd_attn_hold_tables(pd_attn *a, size_t n, pd_err *err);

/* Rows [row0, row0 + n) of the segment (q [n][n_head * D], rotated) against
 * stage: row i sees the prior slots and the segment's slots up to itself, and in
 * a layer with a window only positions > its own - window.
 * out [n][n_head * D]. */
void pd_attn_tile(pd_attn *a, const pd_stage *s, const float *q, size_t row0, size_t n, uint32_t window, float *out);

/* After pd_attn_tile with the same arguments: add every row's softmax weights to
 * sums [n_head][stride], column = slot.  Scores are computed once more; only
 * presses that rank by real attention pay for it. */
void pd_attn_tile_sums(pd_attn *a, const pd_stage *s, const float *q, size_t row0, size_t n, uint32_t window,
                       float *sums, size_t stride);

/* One decode step of a layer: sequence i's query row q + i * n_head * D against
 * kv[i]'s pages (its own new token included); out likewise.  sel[i]: what is read of
 * them and counts it; NULL, also for sel itself = everything. */
void pd_attn_step(pd_attn *a, pd_kv *const *kv, pd_select *const *sel, size_t n_seq, size_t layer, const float *q, float *out);

#endif
