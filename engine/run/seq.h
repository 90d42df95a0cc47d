/* SPDX-License-Identifier: Apache-2.0 */
/* A running sequence and what all sequences share.  Thread: engine. */
#ifndef PD_ENGINE_RUN_SEQ_H
#define PD_ENGINE_RUN_SEQ_H

#include "engine/cache/kv.h"
#include "engine/cache/pools.h"
#include "engine/run/adjust.h"
#include "engine/run/attn.h"
#include "engine/run/collect.h"
#include "engine/run/constrain.h"
#include "engine/run/draft.h"
#include "engine/run/forward.h"
#include "engine/run/job.h"
#include "engine/run/sampler.h"
#include "engine/run/tags.h"

/* Prefill rows per unit: at most PD_TILE, a layer of which takes a few ms, and whole
 * PD_TILE_CUTs, which nothing is summed across. */
enum { PD_TILE = PD_ATTN_TILE, PD_TILE_CUT = 32 };

typedef struct pd_seq pd_seq;

/* A row of a decode step, a token of a sequence: `ahead` tokens behind its next one, with
 * `behind` rows of the same sequence after it. */
typedef struct pd_step_row {
    pd_seq *seq;
    int32_t id;
    uint32_t ahead, behind;
} pd_step_row;

/* What the engine thread works with. */
typedef struct pd_run {
    const pd_model *model;
    const pd_kernels *kern;
    pd_workers *workers;
    pd_codec codec; /* native: f16, or f32 */
    pd_kvpools pools;
    pd_fwd fwd;
    pd_attn attn;
    pd_sampler sampler;
    pd_token_tree *tree; /* the vocabulary's, once a grammar needs it */
    pd_matchers matchers; /* of grammars asked for before */
    pd_arena tmp;     /* one press call */
    size_t parallel, ctx;
    pd_turns turns[PD_ROPE_MAX]; /* for projected keys; made when the first request has any */
    size_t draft_max; /* tokens a sequence alone in the batch may propose to itself; 0 = none */
    size_t rows;      /* of a decode step, at most: parallel, 1 + draft_max */
    float *x;         /* [rows][n_embd] hidden states of a decode step */
    float *logits;    /* [rows][n_vocab] */
    pd_token_prob *top; /* [PD_LOGPROBS_MAX] */
    pd_step_row *step_row; /* [rows] */
    pd_kv **step_kv;  /* [rows] */
    pd_select **step_sel; /* [rows] */
    pd_tags **step_tags; /* [rows] */
    pd_kv step_view[1 + PD_DRAFT_MAX]; /* what the rows of a drafted step see */
    int32_t *step_pos; /* [rows] */
} pd_run;

pd_status pd_run_init(pd_run *r, const pd_model *m, const pd_kernels *kern, pd_workers *workers,
                      pd_kv_type native, uint64_t kv_bytes, size_t parallel, size_t draft_max, size_t ctx, pd_err *err);
void pd_run_done(pd_run *r);
uint64_t pd_run_scratch_bytes(const pd_run *r);

struct pd_seq {
    pd_run *run;
    pd_job *job; /* one reference */
    pd_kv kv;
    size_t n_seen;    /* tokens in the cache so far = next logical position */
    int32_t *shift;   /* [n_layer] logical position - RoPE position, after re-rotation or behind added slots */
    int32_t (*guard)[2]; /* [n_layer] stored positions [begin, end) that no press may drop */
    int32_t added[2]; /* and in all layers those of what the prompt's press added behind its scope */
    int32_t next;     /* the token to feed */
    pd_seq *after;    /* in the engine's list of ready ones */
    pd_rng rng;
    pd_constraint constraint; /* all-zero = any token may come */
    pd_adjuster adjuster; /* all-zero = logits are taken as they are */
    pd_draft draft;   /* all-zero = never drafts */

    /* for the decode press; rule.prune NULL = none */
    pd_decode_rule rule;
    pd_press_needs needs; /* of rule.prune */
    pd_qring ring;    /* rows 0 = none */
    pd_tags tags;
    size_t *since;    /* [n_layer] decode steps since the layer was pruned */
    size_t pruned_at; /* n_seen when all layers were pruned at once last (running.c); 0 = never */
    float *x_new;     /* [n_layer][n_embd] attention input of the newest token; NULL unless needed */

    pd_select select; /* what decode steps read; all-zero = everything */

    /* for the report */
    uint64_t bytes_after_prefill, bytes_peak; /* peak with staging */
    uint64_t pairs_scope;                     /* over pressed layers */
    double pairs_kept;                        /* pd_plan_pairs */
    uint64_t evicted;
    uint64_t press_ns;
    pd_explain_head *explain; /* [n_layer][n_head_kv] in job->keep */
};

/* A sequence for an admitted job (takes a reference).  Errors: ENOMEM. */
pd_status pd_seq_open(pd_seq *s, pd_run *run, pd_job *job, pd_err *err);
/* Pages back, then the job gets its report and is done.  `err` as pd__job_finish. */
void pd_seq_close(pd_seq *s, pd_finish finish, const pd_err *err);

/* fork.c: another answer to the prompt that is in `from`: a copy of its cache as
 * it is now, before the first token.  Errors: ENOMEM; EINTERNAL (no pages). */
pd_status pd_seq_fork(pd_seq *s, const pd_seq *from, pd_job *job, pd_err *err);

/* What it holds beside pages and positions. */
uint64_t pd_seq_scratch_bytes(const pd_seq *s);

/* Note the memory held now (pages + staging bytes) for the peak. */
void pd_seq_note_peak(pd_seq *s, uint64_t staging);

/* f16 bytes a dense cache of n tokens holds: all layers, windows respected. */
uint64_t pd_dense_bytes(const pd_hparams *hp, size_t n);

/* Sample the next token from logits, put it out.  *finish != NONE ends the
 * sequence.  Used by prefill (first token) and decode. */
pd_status pd_seq_sample(pd_seq *s, const float *logits, pd_finish *finish, pd_err *err);

/* ---- prefill.c: resumable units ---- */

typedef struct pd_prefill {
    pd_seq *seq;
    size_t seg_begin, seg_end; /* tokens of the segment at work */
    bool pressed;              /* the segment is the press's scope */
    bool collecting;           /* and the layer at work is one that is pressed */
    size_t layer, row;         /* next unit: this layer, this row of the segment */
    size_t tile;               /* rows of the last unit */
    float *x;                  /* [seg tokens][n_embd] hidden states */
    float *cos[PD_ROPE_MAX], *sin[PD_ROPE_MAX]; /* [seg tokens][D/2] */
    int32_t *pos;              /* [seg tokens] */
    pd_stage stage;
    pd_collect collect;
    float *logits;             /* score.c: a few rows, or NULL */
    size_t bytes;              /* hidden states and tables */
    const int32_t *ids;        /* the segment's tokens if they are not the prompt's: a replay */
    const pd_added *added;     /* or its rows, if a press adds them */
    struct pd_replay *replay;  /* the segment is one; or, in a prompt's prefill, what its deferred press knows */
    bool to_end;               /* of the last layer too, all rows go through to its output */
    bool replaying;            /* the scope is in the cache, the decision is not made yet */
} pd_prefill;

pd_status pd_prefill_open(pd_prefill *p, pd_seq *seq, pd_err *err);
void pd_prefill_close(pd_prefill *p);
/* The next unit ends a layer; else it is a tile of tokens. */
bool pd_prefill_at_end(const pd_prefill *p);
/* Run one unit: a tile of at most `rows` tokens (whole PD_TILE_CUTs, up to
 * PD_TILE; the result is the same bits for any), or the end of a layer.  *done
 * when the prompt is in the cache; then the last token's logits are in
 * run->logits (unless the job wants no token). */
pd_status pd_prefill_unit(pd_prefill *p, size_t rows, bool *done, pd_err *err);

/* ---- score.c: the prompt's own log probabilities ---- */

pd_status pd_score_open(pd_seq *s, pd_err *err); /* room for the job's scores; ENOMEM */
/* Once the segment went through every layer: score what its next rows expect.
 * *more while rows are left; p->row counts them.  Errors: ENOMEM, EINTERNAL. */
pd_status pd_score_unit(pd_prefill *p, bool *more, pd_err *err);

/* The parts replay.c drives itself. */
pd_status pd_segment_open(pd_prefill *p, size_t begin, size_t end, bool pressed, pd_err *err);
void pd_segment_close(pd_prefill *p);
/* The next tile, of at most `rows` tokens as in pd_prefill_unit; *layer_done after the last of
 * a layer (p->layer is still that one). */
pd_status pd_segment_tile(pd_prefill *p, size_t rows, bool *layer_done, pd_err *err);
void pd_segment_next_layer(pd_prefill *p);
void pd_segment_to_layer(pd_prefill *p, size_t layer); /* its first row is next */

/* ---- replay.c: a press that decides when the scope is in the cache ---- */

/* The job's press is one that wants to see layers as they are prefilled. */
bool pd_replay_scores(const pd_job *job);
/* The layer at work, just prefilled, to such a press. */
pd_status pd_replay_score(pd_prefill *p, const pd_view *view, pd_err *err);
/* The scope is in the cache. */
pd_status pd_replay_open(pd_prefill *p, pd_err *err);
void pd_replay_close(pd_prefill *p); /* nothing open is fine */
/* One unit; *done when the plans were applied. */
pd_status pd_replay_unit(pd_prefill *p, size_t rows, bool *done, pd_err *err);
/* Rows of a replayed segment, after to-stage.  Called by pd_segment_tile. */
pd_status pd_replay_rows_seen(pd_prefill *p, size_t n, pd_err *err);
/* ---- embed.c: the prompt as one vector ---- */

pd_status pd_embed_open(pd_seq *s, pd_err *err); /* room for the job's embedding; ENOMEM */
/* Once the segment went through every layer: its rows are pooled; behind the last
 * segment the vector gets unit length.  Errors: EINTERNAL. */
pd_status pd_embed_segment(const pd_prefill *p, pd_err *err);

/* ---- presser.c: plans applied ---- */

struct pd_context;
/* Plans of a deferred press to the pages. */
pd_status pd_presser_context(pd_seq *s, const struct pd_context *c, const pd_plan *plan, pd_err *err);
/* The layer's rows that a press adds, from staging to the pages behind the scope's. */
pd_status pd_presser_added(pd_prefill *p, pd_err *err);
/* wo [d][Hq * D] of a layer from run->tmp.  Errors: ENOMEM. */
pd_status pd_presser_wo(pd_seq *s, size_t layer, const float **wo, pd_err *err);


/* The layer's staging to pages: pressed if `p->pressed` and the layer is one
 * that is pressed, else all (a window's worth in windowed layers). */
pd_status pd_presser_layer(pd_prefill *p, pd_err *err);
/* After a decode step: prune if the interval is over. */
pd_status pd_presser_step(pd_seq *s, pd_err *err);

/* ---- running.c: all layers pruned at once ---- */

/* To its budget now: rule.prune has `running`.  Errors: ENOMEM. */
pd_status pd_running_prune(pd_seq *s, pd_err *err);
/* After a decode step: the same if the interval is over. */
pd_status pd_running_step(pd_seq *s, pd_err *err);

/* ---- latents.c: older keys and values projected ---- */

/* The job's rule for a cache that is empty.  Errors: ENOMEM. */
pd_status pd_latents_open(pd_seq *s, pd_err *err);
/* n rows as pd_kv_append; of a layer that is pressed, what leaves the window is projected.  Not for a
 * layer with joint latents (pd_kv_joint): */
pd_status pd_latents_append(pd_seq *s, size_t layer, size_t head, const float *k, const float *v, const int32_t *pos,
                            size_t n, pd_err *err);
/* n rows of every head: head h's row i at k + h * ld_head + i * ld_row. */
pd_status pd_latents_append_joint(pd_seq *s, size_t layer, const float *k, const float *v, size_t ld_head, size_t ld_row,
                                  const int32_t *pos, size_t n, pd_err *err);

/* ---- decode.c ---- */

/* Feed every sequence's next token, leave logits row i for seq[i] in
 * run->logits.  On error *bad tells whose fault it is (SIZE_MAX: nobody's). */
pd_status pd_decode_step(pd_run *run, pd_seq *const *seq, size_t n, size_t *bad, pd_err *err);

/* How many tokens may be proposed to a sequence that drafts: no more than it may still have, its
 * pages are promised for, and its cache can forget again. */
size_t pd_decode_room(const pd_seq *s);
/* Feed its next token and n proposed ones (1 to PD_DRAFT_MAX and pd_decode_room) behind it: run->logits row i
 * is what follows the i-th of these n + 1, the same bits as in steps of their own.  Its
 * cache holds them all until pd_decode_settle.  Errors: EINTERNAL. */
pd_status pd_decode_drafted(pd_run *run, pd_seq *s, const int32_t *draft, size_t n, pd_err *err);
/* `taken` of the n proposed tokens were right; the others leave the cache. */
void pd_decode_settle(pd_seq *s, size_t n, size_t taken);

/* ---- admit.c: what a job will need ---- */

/* Slots a press may put behind its scope: they take positions too. */
size_t pd_admit_added(const pd_compression *c);
/* How the job's packed pages store numbers. */
pd_codec pd_admit_pack_codec(const pd_job *job);
/* How the press stores older keys and values; rank 0 = as they are. */
pd_latent_rule pd_admit_latents(const pd_press_inst *press, const pd_hparams *hp);
/* Slots per head a layer holds at most, for the page lists. */
size_t pd_admit_list_slots(const pd_job *job, const pd_hparams *hp, size_t layer);
/* Fill comp (borrowed until the job is accepted), scope, budget, skipped,
 * protection, kv_key, kv_value, page_bytes, key_channels, pack_page_bytes, what is reserved
 * and promised of both kinds of pages, and staging_bytes for job->max_tokens.  Errors: EBUDGET (a byte budget below one page per
 * head); EINVAL (kv_type asks for whole groups of head_dim, or of what the press leaves of it). */
pd_status pd_admit_plan(pd_job *job, const pd_hparams *hp, const pd_job_params *p, pd_kv_type native, pd_err *err);
/* pages_promised and pack_promised become the most that a sequence, whose prompt is in, may come to
 * hold from here on: what it holds and what the tokens to come can add, less what its decode press
 * will take; or stay if they are less. */
void pd_admit_left(const pd_seq *s);
/* pd_engine_forecast_bytes. */
uint64_t pd_admit_forecast(const pd_job *job, const pd_hparams *hp, double ratio);
/* Pages that pd_admit_left would take off the promise, at least, if a sequence that waits to be asked
 * (rule.interval 0) were pruned now; 0 if it is not one of those. */
uint64_t pd_admit_gain(const pd_seq *s);
/* The rule of the job's decode press, with the request's budget if that is the one.  false: there is none. */
bool pd_admit_rule(const pd_job *job, pd_decode_rule *ret);
/* Pages of a cache of `tokens` tokens that holds n per head in full layers. */
uint64_t pd_admit_uniform_pages(const pd_hparams *hp, size_t n, size_t tokens);

#endif
