/* SPDX-License-Identifier: Apache-2.0 */
/* What several presses share: passes over a view's rows, and plans from scores.
 * Private to compression/.  Thread: engine. */
#ifndef PD_COMPRESSION_SHARED_H
#define PD_COMPRESSION_SHARED_H

#include "compression/press.h"

/* ---- passes over rows, split over the view's workers ---- */

enum { PD__TILE = 256 }; /* rows of one task: results never depend on the thread count */

/* fn(ctx, view, h, first, n, thread): slots [first, first + n) of head h. */
typedef void (*pd__tile_fn)(void *ctx, const pd_view *view, size_t h, size_t first, size_t n,
                            unsigned thread);
void pd__for_tiles(const pd_view *view, pd__tile_fn fn, void *ctx);

/* out[h][slot] = L2 norm of rows[h][slot], rows = view->k or view->v. */
void pd__row_norms(const pd_view *view, const float *const *rows, float *const *out);

/* How many slots of head h have a position < pos (slots are in time order). */
size_t pd__slots_before(const pd_view *view, size_t h, int64_t pos);

/* Slots with lo <= position < hi get the largest score of all other slots of
 * all heads, + 1: the reference's way to keep sinks and windows. */
void pd__raise_positions(const pd_view *view, float *const *score, int64_t lo, int64_t hi);

/* out[h][slot] = mean over the last w queries (all of them if fewer) of
 * softmax(q . k / sqrt(D)), for each query head h; a query sees the slots at or
 * before its own position.  out: [Hq][n_h].  w >= 1.
 * Cost: w * Hq * L * D multiply-adds.  Errors: ENOMEM, EINTERNAL (no queries). */
pd_status pd__window_attention(const pd_view *view, size_t w, float *const *out, pd_err *err);

/* The same with each query's weights times the number of slots before it: what a
 * slot has over an even share. */
pd_status pd__window_attention_times_before(const pd_view *view, size_t w, float *const *out,
                                            pd_err *err);

/* Sums over the last w queries of the weights, or of their squares; a query says nothing
 * of the `near` positions up to its own. */
pd_status pd__window_attention_sums(const pd_view *view, size_t w, bool squares, size_t near, float *const *out,
                                    pd_err *err);

/* [Hq][n_h] floats from view->tmp; NULL = no memory. */
float **pd__query_head_rows(const pd_view *view);

/* ---- the future's RoPE ---- */

/* c, s: [D/2] mean cosine and sine of each frequency over n positions from a, times
 * rope_scale.  mean_rotation.c has the closed form. */
void pd__mean_rotation(const pd_view *view, double a, double n, double *c, double *s);
/* x <- Rbar x * scale, Rbar the mean rotation; elements of x have stride `step`. */
void pd__rotate(float *x, size_t step, size_t half, const double *c, const double *s, double scale);

/* ---- needs ---- */

/* One more set of moments; see PD_NEEDS_TOO_MANY. */
void pd__need_moments(pd_press_needs *n, unsigned bits, size_t n_sink);
void pd__need_q_tail(pd_press_needs *n, size_t rows);

/* ---- plans ---- */

/* Memory for a plan of n_keep[h] slots per head, from view->tmp; the counts are
 * set, the slots are not. */
pd_status pd__plan_new(const pd_view *view, const size_t *n_keep, pd_plan *ret, pd_err *err);

/* Keep the best pd_budget_keep() slots of each head, and every protected one;
 * `equal`: as many in each head as in the one that needs most. */
pd_status pd__plan_top(const pd_view *view, const pd_budget *budget, const float *const *score,
                       bool equal, pd_plan *ret, pd_err *err);

/* Protected slots of head h. */
size_t pd__n_protected(const pd_view *view, size_t h);

#endif
