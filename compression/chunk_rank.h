/* SPDX-License-Identifier: Apache-2.0 */
/* What chunkkv and entropy_gated_chunkkv share: one score per token for all heads,
 * chunks in the order of their means, and plans in which every head keeps the
 * same tokens.  Private to compression/.  Thread: engine. */
#ifndef PD_COMPRESSION_CHUNK_RANK_H
#define PD_COMPRESSION_CHUNK_RANK_H

#include "compression/press.h"

/* *ret [n]: the child's scores summed over the KV heads, cut to what f32 holds;
 * *must [n]: 1 where any head's slot is protected (its sum is of the others).
 * Needs heads of one length.  Errors: ENOMEM, and the child's. */
pd_status pd__token_scores(const pd_press_inst *child, const pd_view *view, float **ret,
                           uint8_t **must, pd_err *err);

typedef struct pd__chunk {
    size_t begin, end;
    double mean;  /* of its tokens' scores */
    size_t index; /* among all chunks */
} pd__chunk;

/* The chunks of `length` slots, best mean first, of equal ones the earlier; the
 * last may be shorter.  Protected tokens have no part in a mean: with `must_first`
 * their chunk's is infinite, else a chunk of nothing else is left out.
 * *n_chunk gets how many.  Errors: ENOMEM. */
pd_status pd__chunks_by_mean(const float *token, const uint8_t *must, size_t n, size_t length,
                             bool must_first, pd_arena *tmp, pd__chunk **ret, size_t *n_chunk,
                             pd_err *err);

/* Mark the k best unmarked tokens of [begin, end) (all, if fewer are left) in
 * keep[n]; ties: lower slot.  Returns how many to *got.  Errors: ENOMEM. */
pd_status pd__mark_best(const float *token, size_t begin, size_t end, size_t k, uint8_t *keep,
                        pd_arena *tmp, size_t *got, pd_err *err);

/* The plan in which every head keeps the marked tokens, at least one. */
pd_status pd__plan_marked(const pd_view *view, const uint8_t *keep, pd_plan *ret, pd_err *err);

#endif
