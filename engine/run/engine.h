/* SPDX-License-Identifier: Apache-2.0 */
/* The engine: jobs in, tokens and numbers out.  It knows neither HTTP nor JSON.
 *
 * One engine thread owns the model's scratch, the KV pool and all sequences; it
 * mixes prefill work units with decode steps (scheduler.c).  Callers submit a
 * job, are told by `notify` that something happened, and take what is there.
 *
 *   submit -> QUEUED -> PREFILL -> DECODE -> DONE          cancel: any -> DONE
 *
 * A job is shared by its caller and the engine: it lives until both let go
 * (pd_job_unref). */
#ifndef PD_ENGINE_RUN_ENGINE_H
#define PD_ENGINE_RUN_ENGINE_H

#include "compression/compress.h"
#include "engine/base/buf.h"
#include "engine/base/err.h"
#include "engine/cache/kv.h"
#include "engine/grammar/grammar.h"
#include "engine/tokenizer/chat.h"
#include "engine/tokenizer/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct pd_engine pd_engine;
typedef struct pd_job pd_job;

typedef enum { PD_COMPUTE_INT8, PD_COMPUTE_F32 } pd_compute;

typedef struct pd_engine_opts {
    const char *model_path;
    const char *chat_template; /* as pd_chat_open takes it: NULL = the file's own */
    const char *press_data;    /* file of press data (compression/press_data.h), NULL or "" = none */
    pd_compute compute;
    unsigned n_threads;   /* 0 = choose */
    unsigned cpu_mask;    /* AND-ed with what the CPU has; ~0u = all */
    size_t ctx_size;      /* most tokens of one request; 0 = the model's */
    unsigned parallel;    /* most running sequences; 0 = 16 */
    uint64_t kv_bytes;    /* bound of the pool; 0 = from the memory we may use */
    unsigned queue_max;   /* most waiting jobs; 0 = 128 */
    unsigned draft_tokens; /* most tokens a request alone in the batch proposes to itself per step (draft.h), up to 8; 0 = none */
} pd_engine_opts;

/* Load, pack, start the engine thread.  `progress` (may be NULL) is called from
 * the loading thread with 0..1.  Errors: EFILE (the model, the press data), EINVAL (options),
 * ENOMEM.  Thread: any. */
pd_status pd_engine_open(pd_engine **ret, const pd_engine_opts *opts, void (*progress)(void *arg, double done), void *arg, pd_err *err);

/* Cancels what runs, joins, frees.  All jobs must be unreferenced by callers
 * soon after (they stay valid until then). */
void pd_engine_close(pd_engine *e);

/* ---- what is served ---- */

typedef struct pd_engine_info {
    const char *arch, *name, *file_type; /* "llama", "SmolLM2 135M Instruct", "Q4_1" */
    uint64_t n_params, weight_bytes;     /* weight_bytes: resident after packing */
    size_t n_layer, n_head, n_head_kv, head_dim, n_embd, n_vocab;
    size_t ctx_train, ctx_size;
    unsigned parallel, queue_max, n_threads;
    const char *isa;                     /* kernel row in use */
    const char *warning;                 /* what start-up found wrong and worked around, or NULL: log it */
    pd_compute compute;
    size_t page_tokens, page_bytes;
    size_t kv_token_bytes;               /* dense f16 bytes per token, all layers, no window */
    uint64_t kv_pool_bytes;              /* bound of the pool */
    const char *chat_template;           /* pd_chat_name, or NULL */
    pd_chat_origin chat_origin;
    pd_press_model press_model;
} pd_engine_info;

const pd_engine_info *pd_engine_get_info(const pd_engine *e);  /* Thread: any */
const pd_tokenizer *pd_engine_tokenizer(const pd_engine *e);   /* Thread: any */
const pd_chat *pd_engine_chat(const pd_engine *e);             /* NULL if the model has none */

/* ---- jobs ---- */

enum {
    PD_STOP_MAX = 4, PD_STOP_BYTES_MAX = 256, PD_STOP_IDS_MAX = 128, PD_BIAS_MAX = 1024,
    PD_LOGPROBS_MAX = 100, PD_COMPARE_MAX = 64, PD_CHOICES_MAX = 128,
    PD_SCORED_MAX = 1 << 19, /* log probabilities of prompt tokens, alternatives counted */
};

typedef struct pd_sampling {
    float temperature; /* 0 = greedy */
    float top_p, min_p; /* 1 and 0 = off */
    int32_t top_k;     /* 0 = off */
    uint64_t seed;     /* always set; the caller draws one when the client gave none */
} pd_sampling;

/* Added to a token's logit. */
typedef struct pd_token_bias {
    int32_t id;
    float bias;
} pd_token_bias;

/* How the logits are changed before a token is sampled, in this order (vLLM's).
 * Log probabilities are those of the unchanged logits.  All-zero changes nothing. */
typedef struct pd_adjust {
    size_t min_tokens;         /* before so many, no token that ends the answer; no stop string ends it either */
    const pd_token_bias *bias; /* [n_bias] */
    size_t n_bias;             /* <= PD_BIAS_MAX */
    float repetition;          /* logits of tokens in prompt or answer: / it if > 0, else * it; 0 and 1 = off */
    float frequency;           /* subtracted per occurrence in the answer */
    float presence;            /* subtracted once if in the answer */
} pd_adjust;

/* One vector of a prompt: which of its tokens' final hidden states. */
typedef enum { PD_POOL_NONE, PD_POOL_MEAN, PD_POOL_LAST } pd_pooling;

typedef struct pd_job_params {
    const int32_t *tokens; /* the prompt, copied; n_tokens >= 1 */
    size_t n_tokens;
    pd_chat_marks marks;   /* scope CONTEXT and protect_system; zeros for completions */
    bool has_marks;        /* a chat: the answer is a text of its own, not the prompt's continuation */
    bool continues;        /* a chat whose answer goes on inside the last message all the same */
    size_t max_tokens;     /* 0 with max_given = prompt only; not given: as many as context and pool allow */
    bool max_given;
    pd_sampling sampling;
    struct { const char *text; size_t len; } stop[PD_STOP_MAX]; /* copied */
    size_t n_stop;
    const int32_t *stop_id; /* tokens that end the answer as an EOS does, ignore_eos or not; copied */
    size_t n_stop_id;       /* <= PD_STOP_IDS_MAX */
    pd_adjust adjust;       /* copied */
    int n_logprobs;        /* -1 none; 0 the chosen token's alone; up to PD_LOGPROBS_MAX */
    bool score;            /* log probabilities of the prompt's tokens: pd_job_scored */
    size_t score_top;      /* alternatives of each, <= PD_LOGPROBS_MAX; tokens * (1 + this) <= PD_SCORED_MAX */
    pd_grammar *grammar;   /* the answer's text must match it, and ends with it; shared, NULL = any */
    pd_pooling pool;       /* pd_job_embedding; such a job has no token, press or other answer */
    bool ignore_eos;
    bool explain;          /* run the prompt only and keep what was kept */
    bool explain_scores;
    bool verbose;          /* per layer and head counts in the result */
    pd_compression *compression; /* NULL = dense; taken on success only */
    /* explain without compression: what each of these would keep of the whole prompt,
     * all from one prefill; none is applied.  Each has a press and a budget by ratio
     * or tokens.  The members are taken on success only, the array is copied. */
    pd_compression *const *compare;
    size_t n_compare;      /* <= PD_COMPARE_MAX */
    bool follows;          /* part of a request whose first prompt was taken: the queue's bound does not hold it up */
    void (*notify)(void *arg, pd_job *job); /* something to take, or the state changed; engine thread; must not block */
    void *notify_arg;
    size_t notify_tokens;  /* tell of tokens when so many more are there; 0 = of each */
} pd_job_params;

/* What jobs with a grammar need of the vocabulary, made once: 10 ms for 49,000 tokens, 65 for
 * 262,000.  Submitting such a job does it too; who may not wait calls this first, elsewhere.
 * ENOMEM.  Thread: any. */
pd_status pd_engine_prepare_grammar(pd_engine *e, pd_err *err);

/* Check against context and pool, queue.  *ret has one reference, the caller's.
 * Errors: ECONTEXT (prompt + max_tokens > ctx_size, both numbers), EBUDGET
 * (could never fit the pool, with the numbers), EBUSY (queue full), EUNAVAIL
 * (closing), EINVAL, ENOMEM.  Thread: any. */
pd_status pd_engine_submit(pd_engine *e, const pd_job_params *p, pd_job **ret, pd_err *err);

/* One of several answers to a prompt. */
typedef struct pd_choice {
    uint64_t seed;
    void *notify_arg;
} pd_choice;

/* n answers (1 to PD_CHOICES_MAX) to one prompt, a job each: the prompt is read
 * and pressed once, then its cache is copied, and each goes on with its own
 * choice[i] in place of p's seed and notify_arg.  They wait together until the
 * pool has room for all.  All are taken or none.  Only job 0's result has the
 * prompt's cost (timing.prompt_n and prompt_ms, kv.press_ms, the staging layer in
 * kv.bytes_peak); the caches' bytes are each job's own.  A prompt that not all
 * its jobs gave up is read to its end.  Explanations have one answer.
 * Errors: as pd_engine_submit, the numbers for all of them. */
pd_status pd_engine_submit_n(pd_engine *e, const pd_job_params *p, size_t n, const pd_choice *choice, pd_job **ret, pd_err *err);

/* Stop as soon as possible (one decode step or one prefill unit); pages go back
 * at once.  Idempotent.  Thread: any. */
void pd_job_cancel(pd_job *job);
void pd_job_ref(pd_job *job);
void pd_job_unref(pd_job *job); /* NULL is fine */

typedef enum { PD_JOB_QUEUED, PD_JOB_PREFILL, PD_JOB_DECODE, PD_JOB_DONE } pd_job_state;
typedef enum { PD_FINISH_NONE, PD_FINISH_STOP, PD_FINISH_LENGTH, PD_FINISH_CANCELLED, PD_FINISH_ERROR } pd_finish;

pd_job_state pd_job_get_state(const pd_job *job); /* Thread: any */

typedef struct pd_token_prob {
    int32_t id;
    float logprob; /* natural log, finite (>= -9999) */
} pd_token_prob;

/* One generated token.  Its text may be empty (a code point not complete yet, or
 * held because a stop string may begin) and may be longer than its own bytes
 * (held text let go). */
typedef struct pd_token_event {
    int32_t id;
    float logprob;
    uint32_t text_off, text_len; /* in the text buffer of the take */
    const pd_token_prob *top;    /* [n_top], descending; valid until the job's last unref */
    uint32_t n_top;
} pd_token_event;

/* Move up to `cap` events not yet taken to ev[]; their text is appended to
 * *text (offsets count from its start).  A stopping EOS or stop string gives no
 * event of its own; text held back at the end comes with the last event or, if
 * there is none left, as *text without event (tail_len).  Thread: any, one
 * taker. */
size_t pd_job_take(pd_job *job, pd_token_event *ev, size_t cap, pd_buf *text, size_t *tail_len);

/* A token of the prompt as the model expected it.  The context that a press is
 * given is read whole, so its own tokens and the first one behind it are scored
 * against all of it; every later token against what the press left. */
typedef struct pd_scored {
    int32_t id;
    float logprob;
    uint32_t rank;               /* 1 = the likeliest; equals count */
    uint32_t n_top;
    const pd_token_prob *top;    /* descending */
} pd_scored;

/* [n_tokens] of the job's prompt; the first was expected by nothing and has no
 * numbers.  NULL unless asked for, and before the job is in DECODE or DONE.  Lives
 * as long as the job.  Thread: any. */
const pd_scored *pd_job_scored(const pd_job *job);
size_t pd_job_prompt_tokens(const pd_job *job); /* Thread: any */

/* [n_embd] of unit length: the final hidden states (behind the output norm, as
 * transformers' last_hidden_state) of the prompt's tokens, pooled as params.pool says.
 * NULL unless asked for, and before the job is DONE.  Lives as long as the job.
 * Thread: any. */
const float *pd_job_embedding(const pd_job *job);

/* The stop string that ended the answer, NUL-terminated; NULL if none did, and before
 * the job is DONE.  Lives as long as the job.  Thread: any. */
const char *pd_job_stop_string(const pd_job *job);

/* ---- results: valid once DONE, borrowed from the job ---- */

typedef struct pd_kv_report {
    char press[PD_SPEC_TEXT_MAX + 1]; /* canonical text, "none" */
    const char *name;        /* press name without parameters, for metrics */
    double ratio_requested;  /* 0 if not by ratio */
    double ratio;            /* achieved: 1 - kept / seen over the pressed layers' scope, added ones kept with the others;
                                a pair whose key lost channels counts by what is left of its numbers */
    const char *skipped;     /* reason, or NULL */
    uint64_t tokens_seen, tokens_evicted; /* evicted: pairs, summed over layers and heads */
    double tokens_kept;      /* mean over the layers and heads, at the end */
    uint64_t tokens_added;   /* of them, in every head, tokens of no text that the press put behind its scope */
    uint64_t bytes;          /* resident pages when the answer ended, those held twice with them */
    uint64_t bytes_after_prefill, bytes_peak, bytes_dense;
    uint64_t pages;
    pd_kv_type kv_key, kv_value; /* how the pages store numbers, never NATIVE */
    size_t page_bytes;           /* of those that are not packed (cache/kv.h) */
    size_t recent_page_bytes;    /* of a page that holds last tokens a second time; 0 = none does */
    uint64_t bytes_recent;       /* of bytes, in such pages */
    double press_ms;
    /* Where a request says what decode steps read (pd_read_rule), over steps, heads and layers
     * without a window: slots there were, and those whose key and value were read.  Else 0. */
    uint64_t rows, rows_key, rows_value;
    uint64_t bytes_bounds; /* beside the pages: bounds of their keys, or lists and rebuilt keys of joint latents */
    uint64_t bytes_codes;  /* and codes of them */
    const uint64_t *layer_rows, *layer_rows_key, *layer_rows_value; /* [n_layer]; NULL unless verbose and there are any */
    size_t n_layer, n_head_kv;
    const uint32_t *kept;    /* [n_layer][n_head_kv] slots at the end; NULL unless verbose or explain */
    const uint32_t *head_pages; /* likewise */
    const uint64_t *head_bytes;
} pd_kv_report;

typedef struct pd_job_timing {
    double queue_ms, prompt_ms, predicted_ms, ttft_ms; /* ttft from submit */
    size_t prompt_n, predicted_n;
    size_t draft_n, draft_n_accepted; /* tokens prompt look-up proposed, and those of them that were right */
} pd_job_timing;

typedef struct pd_explain_head {
    size_t n_kept;
    const int32_t *kept;   /* positions, ascending */
    const float *scores;   /* [scope_tokens] or NULL */
} pd_explain_head;

/* One member of pd_job_params.compare. */
typedef struct pd_compared {
    char press[PD_SPEC_TEXT_MAX + 1]; /* canonical text */
    double ratio;          /* 1 - kept / seen over the pressed layers */
    const char *skipped;   /* reason, or NULL */
    double press_ms;
    const pd_explain_head *explain; /* [n_layer][n_head_kv]; NULL if skipped */
} pd_compared;

typedef struct pd_job_result {
    pd_finish finish;
    pd_err err;           /* finish ERROR */
    pd_kv_report kv;
    pd_job_timing timing;
    size_t scope_tokens;
    const pd_explain_head *explain; /* [n_layer][n_head_kv], NULL unless explain */
    const pd_compared *compared;    /* [n_compared] in the order asked */
    size_t n_compared;
} pd_job_result;

const pd_job_result *pd_job_get_result(const pd_job *job); /* NULL until DONE.  Thread: any */

/* Bytes the pool would hold for the job's prompt if the same share of every head's scope went (of the
 * prompt, if it is not pressed), stored as the job stores it: narrower where its press makes it so, last
 * pages twice where they are; page rounding included (explain's forecast).  The job is DONE.  Thread: any. */
uint64_t pd_engine_forecast_bytes(const pd_engine *e, const pd_job *job, double ratio);

/* ---- counters, for /metrics: plain atomics, never block.  Thread: any ---- */

typedef struct pd_engine_stats {
    /* total = free + seq + store; in native pages, of which pages of fewer bits are fractions */
    uint64_t pages_total, pages_free, pages_seq, pages_store;
    uint64_t kv_bytes_type[2][PD_KV_ALL]; /* pages in use: keys, then values, by type */
    uint64_t kv_bytes_resident; /* pages in use */
    uint64_t kv_bytes_dirty;    /* free pages whose memory was not returned yet (hysteresis) */
    uint64_t kv_bytes_staging;  /* dense layer(s) of running prefills */
    uint64_t kv_bytes_dense;    /* what dense caches of the running sequences would hold */
    uint64_t kv_bytes_peak;     /* highest resident + staging since start */
    uint64_t scratch_bytes;     /* hidden states, tiles, query rings */
    unsigned running, waiting;
    uint64_t prompt_tokens, generated_tokens, drafted_tokens, draft_taken_tokens, decode_steps, prefill_units;
    uint64_t last_step_ns;      /* pd_now_ns of the engine's last sign of life */
} pd_engine_stats;

void pd_engine_get_stats(const pd_engine *e, pd_engine_stats *ret);

#endif
