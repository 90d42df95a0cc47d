/* SPDX-License-Identifier: Apache-2.0 */
/* Presses that decide at the context's end over all layers at once.
 *
 * Such a press has `deferred` instead of score() and plan().  Prefill then stores
 * every layer of the scope dense; after the last one the engine asks for token ids
 * to replay, runs them layer by layer over the full cache at positions n, n + 1, ...
 * (their own keys and values are forgotten layer by layer), shows the press each
 * tile of rows, runs rows of the press's own if it adds any, and at the end takes one plan
 * per layer, which it applies to the pages.  A press may score each layer while it is prefilled, and do without replays.
 * Layers with a sliding window are replayed but neither shown nor pressed.
 * Thread of every hook but most_rows: engine. */
#ifndef PD_COMPRESSION_DEFERRED_H
#define PD_COMPRESSION_DEFERRED_H

#include "compression/adapter.h"
#include "compression/press.h"

/* The scope, from the end of its prefill to the decision. */
typedef struct pd_context pd_context;
struct pd_context {
    size_t n_layer, n_head, n_head_kv, head_dim, n_embd;
    float attn_scale;        /* the model's own */
    size_t n;                /* tokens of the scope = slots of every head of a pressed layer */
    const int32_t *tokens;   /* [n] */
    size_t n_prefix;         /* first tokens that are the chat template's; 0 for a raw completion */
    const int32_t *suffix;   /* [n_suffix] what the template puts behind a user message; "\n" without one */
    size_t n_suffix;
    /* The ids of `text` behind other tokens, in keep; special tokens stay text.  Errors: ENOMEM. */
    pd_status (*tokenize)(const pd_context *c, const char *text, const int32_t **ids, size_t *n, pd_err *err);
    const void *tok;         /* tokenize's */
    const uint8_t *protect;  /* [n] 1 = must stay; or NULL */
    float **score;           /* [n_layer * H] -> [n], zeros at first; NULL in layers that are not pressed */
    pd_arena *keep;          /* lives until the plans were applied */
    void *state;             /* the press's own, in keep */
};

/* Up to PD_ATTN_TILE rows of a replay in one layer, after RoPE. */
typedef struct pd_replay_rows {
    size_t layer;
    size_t row0, n, n_all;   /* rows [row0, row0 + n) of a replay of n_all */
    const float *q;          /* [n][Hq][D] rotated, unscaled */
    const float *x;          /* [n][d] attention input after its norm; NULL where there are gradients */
    const float *grad;       /* [n] |dPhi/da| of a press with `gradient`, or NULL */
    const float *const *k, *const *v; /* [H] -> [context n + row0 + n][D]: the cache, then the replay */
    const float *wo;         /* [d][Hq * D]; if the press needs PD_NEEDS_WO */
    const pd_kernels *kern;
    pd_workers *workers;
    pd_arena *tmp;           /* of this call */
} pd_replay_rows;

typedef struct pd_deferred {
    /* score[h][slot] of a layer that was just prefilled; the press's needs are in the
     * view.  NULL = nothing is scored before the replays.  Errors: ENOMEM, EINTERNAL. */
    pd_status (*score)(const pd_press_inst *inst, const pd_view *view, float *const *score, pd_err *err);

    /* The four below are NULL in a press that replays nothing. */
    /* Most ids one replay over n tokens may have, for admission.  Thread: any. */
    size_t (*most_rows)(const pd_press_inst *inst, size_t n);
    /* Once, when the scope is in the cache: set c->state.  Errors: ENOMEM, EINTERNAL. */
    pd_status (*open)(const pd_press_inst *inst, pd_context *c, pd_err *err);
    /* The ids of replay i, borrowed until the next call; *n 0 = there is no replay i. */
    pd_status (*ids)(const pd_press_inst *inst, pd_context *c, size_t i, const int32_t **ids, size_t *n, pd_err *err);
    /* Rows of replay i in a pressed layer: all tiles of a layer in order, then the next layer. */
    pd_status (*rows)(const pd_press_inst *inst, pd_context *c, size_t i, const pd_replay_rows *r, pd_err *err);
    /* Rows that run once over the full cache when all was replayed, at positions n, n + 1, ...: their
     * keys and values stay behind the scope's in every layer and head, beside what the plans keep, and
     * what follows stands behind them.  The budget is of both: plans leave them room.  NULL = none.  Thread: any. */
    void (*added)(const pd_press_inst *inst, pd_added *ret);
    /* plan[n_layer]: those of layers that are not pressed are not read. */
    pd_status (*decide)(const pd_press_inst *inst, pd_context *c, const pd_budget *budget, pd_plan *plan, pd_err *err);

    /* Rows are shown when their replay runs backwards (run/reverse.h): all tiles of the last layer
     * in order, then of the one before it, each with what its attention block's output does to Phi. */
    bool gradient;
    bool whole_pages; /* what it leaves of layers * H * n slots are full pages, as few as hold the budget */
} pd_deferred;

/* EINTERNAL if a score is no number: names press, layer, head and slot. */
pd_status pd_context_check(const pd_context *c, const char *press, pd_err *err);

/* ---- helpers for presses ---- */

/* The slots with the best c->score over all pressed layers stay (`layerwise`: of
 * each layer on its own): all but int(slots * ratio), or count per head on the
 * average.  Protected slots stay, and the best one of every head.  Equal scores:
 * lower layer, head, slot.  Cost: one top-k over layers * H * n scores. */
pd_status pd__plan_global(const pd_context *c, const pd_budget *budget, bool layerwise, pd_plan *plan, pd_err *err);

/* Plans of given counts: the best n_keep[layer * H + head] slots of each head. */
pd_status pd__plan_counts(const pd_context *c, const size_t *n_keep, pd_plan *plan, pd_err *err);

/* How many of n pairs stay: n - int(n * ratio), or the count's share. */
size_t pd__global_keep(const pd_context *c, const pd_budget *budget, size_t n);

/* The larger one; NaN if either is: a model that overflowed must not decide silently. */
static inline float pd__larger(float a, float b) {
    return b > a || b != b ? b : a;
}

/* w[row][column] = softmax over columns of q . k * scale for the rows of query head
 * `head`; columns: the first n_sink slots of the cache, its slots [begin, end), the
 * replay's rows up to row0 + n (a row sees those up to itself; later ones are 0).
 * w: [r->n][*n_col], scratch of the caller for pd__replay_columns() columns. */
void pd__replay_softmax(const pd_context *c, const pd_replay_rows *r, size_t head, size_t n_sink, size_t begin,
                        size_t end, float scale, float *w);
static inline size_t pd__replay_columns(const pd_replay_rows *r, size_t n_sink, size_t begin, size_t end) {
    return n_sink + (end - begin) + r->row0 + r->n;
}

#endif
