/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of a decoder layer that prefill and decode share (model.h draws the
 * layer): everything but attention itself.
 *
 * Rows are tokens.  Prefill passes a tile of one prompt, decode one row per
 * running sequence with PD_MAT_PER_TOKEN; a row's result depends on that row
 * alone.  Thread: engine. */
#ifndef PD_ENGINE_RUN_FORWARD_H
#define PD_ENGINE_RUN_FORWARD_H

#include "compression/adapter.h"
#include "engine/model/model.h"

typedef struct pd_fwd {
    const pd_model *model;
    const pd_kernels *kern;
    pd_workers *workers;
    size_t rows;  /* most rows of one call */
    float *h;     /* [rows][n_embd] block input after its norm; pd_fwd_qkv leaves the attention input here */
    float *q;     /* [rows][n_head * D] */
    float *k, *v; /* [rows][n_head_kv * D] */
    float *attn;  /* [rows][n_head * D] attention's result */
    float *gate, *up; /* [rows][n_ff] */
    float *out;   /* [rows][n_embd] */
    pd_qact act;  /* quantised rows of the widest input */
    float *cos, *sin; /* [n_rope][rows][D/2] */
    const pd_adapter *adapter; /* added to the projections of the call under way (adapter.h); NULL = nothing is */
    size_t bytes; /* all of it */
} pd_fwd;

pd_status pd_fwd_init(pd_fwd *f, const pd_model *m, const pd_kernels *kern, pd_workers *workers, size_t rows, pd_err *err);
void pd_fwd_done(pd_fwd *f);

/* x[n_embd] = scaled embedding of `id`. */
void pd_fwd_embed(const pd_fwd *f, int32_t id, float *x);

/* f->q, f->k, f->v of n rows x[n][n_embd], before RoPE, after q/k norms.
 * q NULL-able parts: with kv_only, f->q is not computed. */
void pd_fwd_qkv(pd_fwd *f, size_t layer, const float *x, size_t n, bool kv_only, unsigned flags);

/* cos and sin of n positions for a layer's RoPE, in f32 products as transformers
 * makes them, times nothing else. */
void pd_rope_table(const pd_model *m, size_t rope, const int32_t *pos, size_t n, float *cos, float *sin);

/* Rotate f->k and, unless kv_only, f->q; row i uses cos/sin row i. */
void pd_fwd_rope(pd_fwd *f, size_t n, const float *cos, const float *sin, bool kv_only);

/* Attention of a decode step comes next: who waits in it prefetches what follows. */
void pd_fwd_ahead(const pd_fwd *f, size_t layer);

/* From f->attn to the layer's output: x[n][n_embd] is updated in place. */
void pd_fwd_finish(pd_fwd *f, size_t layer, float *x, size_t n, unsigned flags);

/* logits[n][n_vocab] of n rows x (unchanged).  n <= rows. */
void pd_fwd_logits(pd_fwd *f, const float *x, size_t n, float *logits);
/* The same as one product: faster for many rows of a prompt; the last bits may differ. */
void pd_fwd_logits_tile(pd_fwd *f, const float *x, size_t n, float *logits);

#endif
