/* SPDX-License-Identifier: Apache-2.0 */
/* Views of some slots of a view, for presses that show their child less than all
 * (chunk, block) or what an earlier press left (composed).  Private to
 * compression/.  Thread: engine.
 *
 * Scratch of the new view, and what a child takes from its `tmp`, lives in the
 * arena given: the view's own, or one that the caller resets between views. */
#ifndef PD_COMPRESSION_SUBVIEW_H
#define PD_COMPRESSION_SUBVIEW_H

#include "compression/press.h"

/* Slots [first, first + n) of every head as if the text ended with them, at their
 * true positions: the queries and the attention input are the rows of these
 * tokens, moments are theirs (rows at positions >= n_sink), and the next position
 * (n_seen, stat_rows) follows the last of them.  K, V, positions are borrowed.
 * Needs heads of one length.  Moments and queries are there if all queries of the
 * view are (PD_NEEDS_Q_ALL).
 * Cost: nothing, or for moments Hq * n * D^2 multiply-adds.  Errors: ENOMEM. */
pd_status pd__view_slice(const pd_view *view, size_t first, size_t n, pd_arena *tmp, pd_view *ret,
                         pd_err *err);

/* Slots slot[h][0..n_h[h]) (ascending) of each head, copied; v_new (may be NULL,
 * [H][n_h][D]) stands for their values.  Queries and moments stay those of the
 * whole view, attention sums those of the slots; there is no attention input, as
 * heads may hold different tokens.  Errors: ENOMEM. */
pd_status pd__view_gather(const pd_view *view, const size_t *n_h, uint32_t *const *slot,
                          float *const *v_new, pd_arena *tmp, pd_view *ret, pd_err *err);

/* n slots in chunks of `length`: a last chunk shorter than `least` joins the one
 * before it.  Chunk i is [i * length, pd__chunk_end). */
size_t pd__chunk_count(size_t n, size_t length, size_t least);
size_t pd__chunk_end(size_t n, size_t length, size_t count, size_t i);

/* Slots that chunk [begin, end) of n may keep: its own share of a ratio; of a
 * count what makes all chunks together keep exactly that (0 for some, if there
 * are more chunks than tokens to keep). */
size_t pd__chunk_keep(const pd_budget *budget, size_t n, size_t begin, size_t end);

#endif
