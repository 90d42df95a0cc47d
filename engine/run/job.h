/* SPDX-License-Identifier: Apache-2.0 */
/* A job inside the engine: what the caller asked, what it may take, the result.
 *
 * Fields up to `lock` are written at submit and then read-only.  `lock` guards
 * the outbox (events and text); the engine writes, one taker reads.  The result
 * is written by the engine before `state` becomes DONE (release) and read by
 * others after they saw DONE (acquire). */
#ifndef PD_ENGINE_RUN_JOB_H
#define PD_ENGINE_RUN_JOB_H

#include "engine/base/arena.h"
#include "engine/base/clock.h"
#include "engine/run/engine.h"

#include <pthread.h>
#include <stdatomic.h>

typedef struct pd_job_event {
    int32_t id;
    float logprob;
    size_t text_end; /* released text up to and with this token */
    const pd_token_prob *top;
    uint32_t n_top;
} pd_job_event;

/* One press of a comparison: its wish, and what came of it (engine thread). */
typedef struct pd_job_compare {
    pd_compression *comp;
    pd_budget budget;
    pd_explain_head *explain; /* [n_layer][n_head_kv] in job->keep; NULL if skipped */
    uint64_t pairs_scope, ns;
    double pairs_kept; /* as pd_seq's */
} pd_job_compare;

struct pd_job {
    _Atomic int refs;
    _Atomic int state;   /* pd_job_state */
    _Atomic bool cancel; /* set by anyone, read by the engine between units */
    pd_job *next;        /* in the engine's lists */
    pd_engine *engine;   /* whom pd_job_cancel wakes; valid until DONE */

    pd_job *leader;      /* NULL, or whose prompt and compression these are; one reference */
    pd_job **fork;       /* [n_fork] the other answers, until the prompt is in; one reference each */
    size_t n_fork;
    size_t n_choice;     /* answers admission counts: 1 + forks */

    int32_t *tokens;     /* the leader's if there is one */
    size_t n_tokens, max_tokens;
    pd_sampling sampling;
    char stop[PD_STOP_MAX][PD_STOP_BYTES_MAX + 1];
    size_t stop_len[PD_STOP_MAX], n_stop;
    pd_adjust adjust;            /* bias: own copy */
    int32_t *stop_id;            /* own copy */
    size_t n_stop_id;
    pd_grammar *grammar;         /* one reference; NULL = any answer */
    int n_logprobs;
    bool ignore_eos, explain, explain_scores, verbose;
    bool score;                  /* the leader's forks have none of their own */
    size_t score_top;
    pd_scored *scored;           /* [n_tokens] in keep */
    pd_pooling pool;
    float *embedding;            /* [n_embd] in keep, with a pool */
    pd_compression *comp;        /* NULL = dense */
    pd_job_compare *compare;     /* [n_compare] */
    pd_compared *compared;       /* [n_compare] in job->keep, for the result */
    size_t n_compare;
    size_t scope;                /* prompt tokens that are pressed; 0 = none */
    size_t protect_begin, protect_end;
    pd_budget budget;            /* of the scope */
    bool deferred;               /* the press decides when the whole scope is in the cache */
    size_t n_added;              /* slots it puts behind the scope */
    const pd_chat *chat;         /* the template that made the prompt, or NULL */
    const char *skipped;
    pd_kv_type kv_key, kv_value; /* how its pages store numbers, never NATIVE */
    size_t page_bytes;           /* of its pages */
    size_t recent_page_bytes;    /* of one held a second time (kv.h), 0 = none is */
    uint64_t recent_bytes;       /* of the most of those */
    uint64_t pages_reserved;     /* most pages it may ever hold */
    uint64_t pages_promised;     /* of them, what it may still come to; less when the prompt is pressed */
    size_t key_channels;         /* that keys of the scope keep; head_dim = all */
    size_t pack_page_bytes;      /* of the packed pages they go to (kv.h); 0 = there is no narrower kind */
    uint64_t pack_reserved, pack_promised; /* as pages_* */
    pd_latent_rule latent;       /* rank 0 = keys are stored as they are */
    uint64_t staging_bytes;      /* dense layer of its prefill, and rows that run backwards */
    uint64_t thread_bytes;       /* and of every thread */
    void (*notify)(void *arg, pd_job *job);
    void *notify_arg;
    size_t notify_tokens;        /* >= 1 */
    const pd_tokenizer *tok;
    uint64_t t_submit, t_start, t_first, t_last; /* ns; engine thread after submit */

    pthread_mutex_t lock;
    pd_job_event *ev; /* [max_tokens] */
    size_t n_ev, n_taken;
    pd_buf text;
    size_t text_released, text_taken;
    bool cut; /* a stop string ended the text: nothing may follow */
    size_t cut_by; /* which */
    pd_arena tops; /* pd_token_prob arrays */

    /* engine thread only */
    pd_detok detok;
    char *piece; /* [pd_detok_max] */
    size_t n_sampled;
    size_t n_drafted, n_draft_taken; /* of the tokens proposed to it, draft.h */

    pd_job_result result;
    pd_arena keep; /* arrays of the result */
};

/* New job from checked parameters, one reference.  Takes nothing.  ENOMEM. */
pd_status pd__job_new(pd_job **ret, const pd_job_params *p, const pd_tokenizer *tok, size_t max_tokens, pd_err *err);

/* The other answers to a planned job's prompt, choice[1..n): each has a reference
 * from job->fork and one for the caller in ret[1..n).  ENOMEM: nothing is left. */
pd_status pd__job_fork(pd_job *job, const pd_job_params *p, size_t n, const pd_choice *choice, pd_job **ret, pd_err *err);

/* The forks of a job that was not taken: both references go. */
void pd__job_unfork(pd_job *job);

/* The engine sampled `id`.  Puts an event out; *done gets STOP when a stop
 * string came up (then there is no event), else stays.  Thread: engine. */
pd_status pd__job_emit(pd_job *job, int32_t id, float logprob, const pd_token_prob *top, size_t n_top,
                       pd_finish *done, pd_err *err);

/* Release held text, publish the result (finish, err, timing; kv is already in)
 * and notify.  Thread: engine. */
void pd__job_finish(pd_job *job, pd_finish finish, const pd_err *err);

/* Bytes of the most pages it may ever hold. */
static inline uint64_t pd__job_reserved(const pd_job *job) {
    return job->pages_reserved * job->page_bytes + job->pack_reserved * job->pack_page_bytes + job->recent_bytes;
}
/* And of those it may still come to. */
static inline uint64_t pd__job_promised(const pd_job *job) {
    return job->pages_promised * job->page_bytes + job->pack_promised * job->pack_page_bytes + job->recent_bytes;
}

void pd__job_set_state(pd_job *job, pd_job_state state);

#endif
