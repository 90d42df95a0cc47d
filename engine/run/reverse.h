/* SPDX-License-Identifier: Apache-2.0 */
/* Reverse mode: what rows behind a cache do to the end of the model.
 *
 * For m rows that were run forward over a cache which is a constant,
 *
 *     Phi = sum over rows p of |h_p|^2,   h_p the last layer's output before the final norm
 *
 * it gives g[layer][p] = dPhi/da_p, a_p what the layer's attention block puts out at row
 * p: behind its output projection, before a norm behind the block (gemma2, gemma3) and
 * before the residual.  Rows reach later rows through their keys and values of later
 * layers, so gradients cross rows.  Every architecture of model.h.
 *
 * Kept of the forward pass is each layer's input alone; the rest is computed once more,
 * layer by layer from the last to the first.  Matrices in few bits are differentiated
 * as the numbers they stand for, and neither quantised rows nor stored keys and values
 * as rounded: straight through (Bengio et al. 2013, arXiv 1308.3432).
 *
 * A layer goes three times over its rows, tile by tile of PD_REVERSE_TILE: keys and
 * values of all rows; then each tile back to queries, keys and values; then back to the
 * layer's input.  Results do not depend on threads.  Cost: a forward pass's products once
 * more and, in f32, once transposed; attention four times.  Thread: engine. */
#ifndef PD_ENGINE_RUN_REVERSE_H
#define PD_ENGINE_RUN_REVERSE_H

#include "engine/cache/codec.h"
#include "engine/run/attn.h"
#include "engine/run/forward.h"

enum { PD_REVERSE_TILE = 64 };

typedef struct pd_reverse pd_reverse;

/* Rows [row0, row0 + n) of a layer: q [n][n_head * D] rotated, g [n][n_embd] as above. */
typedef pd_status (*pd_reverse_seen)(void *arg, size_t layer, size_t row0, size_t n, const float *q, const float *g, pd_err *err);

/* Bytes that rows m over a cache of `slots` slots per head take, behind them included;
 * UINT64_MAX if they cannot be counted. */
uint64_t pd_reverse_bytes(const pd_hparams *hp, unsigned threads, size_t m, size_t slots);

/* fwd and attn are borrowed, for at least PD_REVERSE_TILE rows; codec: how the cache
 * stores keys and values.  Errors: ENOMEM. */
pd_status pd_reverse_open(pd_reverse **ret, pd_fwd *fwd, pd_attn *attn, const pd_codec *codec, size_t m, size_t slots, pd_err *err);
void pd_reverse_close(pd_reverse *r); /* NULL is fine */

/* [m][n_embd], to be filled while the rows are run forward: the layer's input. */
float *pd_reverse_input(pd_reverse *r, size_t layer);
/* The forward pass is over: out [m][n_embd] is the last layer's output. */
void pd_reverse_begin(pd_reverse *r, const float *out);

/* The layer at work, from the last one down. */
size_t pd_reverse_layer(const pd_reverse *r);
/* One tile.  stage: the layer's cache in front (n_prior), room for the rows behind it;
 * cos, sin: [m][D/2] of the layer's RoPE.  `seen` is told of every tile of a layer in
 * order, when all keys and values of the layer are staged; what it says ends the unit.
 * *tile: rows of it; *layer_done after the last of a layer, *done after the last of all. */
pd_status pd_reverse_unit(pd_reverse *r, pd_stage *stage, const float *cos, const float *sin, pd_reverse_seen seen, void *arg,
                          size_t *tile, bool *layer_done, bool *done, pd_err *err);

#endif
