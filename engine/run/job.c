/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs (see job.h): references, the outbox, stop strings. */
#include "engine/run/job.h"

#include "engine/base/num.h"

#include <stdlib.h>
#include <string.h>

static void job_free(pd_job *job) {
    if (!job->leader) {
        pd_compression_close(job->comp);
        free(job->tokens);
    }
    free(job->fork);
    for (size_t i = 0; i < job->n_compare; i++) pd_compression_close(job->compare[i].comp);
    free(job->compare);
    pd_arena_done(&job->tops);
    pd_arena_done(&job->keep);
    pd_buf_done(&job->text);
    pthread_mutex_destroy(&job->lock);
    free((void *)job->adjust.bias);
    free(job->stop_id);
    pd_grammar_unref(job->grammar);
    free(job->piece);
    free(job->ev);
    pd_job_unref(job->leader);
    free(job);
}

void pd_job_ref(pd_job *job) {
    atomic_fetch_add_explicit(&job->refs, 1, memory_order_relaxed);
}

void pd_job_unref(pd_job *job) {
    if (job && atomic_fetch_sub_explicit(&job->refs, 1, memory_order_acq_rel) == 1) job_free(job);
}

const pd_scored *pd_job_scored(const pd_job *job) {
    const bool there = pd_job_get_state(job) >= PD_JOB_DECODE;
    return !there ? NULL : job->leader ? job->leader->scored : job->scored;
}

const char *pd_job_stop_string(const pd_job *job) {
    return pd_job_get_state(job) == PD_JOB_DONE && job->cut ? job->stop[job->cut_by] : NULL;
}

const float *pd_job_embedding(const pd_job *job) {
    return pd_job_get_state(job) == PD_JOB_DONE && job->result.finish == PD_FINISH_LENGTH ? job->embedding : NULL;
}

size_t pd_job_prompt_tokens(const pd_job *job) {
    return job->n_tokens;
}

pd_job_state pd_job_get_state(const pd_job *job) {
    return (pd_job_state)atomic_load_explicit(&job->state, memory_order_acquire);
}

void pd__job_set_state(pd_job *job, pd_job_state state) {
    atomic_store_explicit(&job->state, (int)state, memory_order_release);
}

const pd_job_result *pd_job_get_result(const pd_job *job) {
    return pd_job_get_state(job) == PD_JOB_DONE ? &job->result : NULL;
}

/* What sampling looks at beside the numbers. */
static pd_status copy_adjust(pd_job *job, const pd_job_params *p, pd_err *err) {
    job->adjust = p->adjust;
    job->adjust.bias = NULL;
    if (p->adjust.n_bias) {
        const size_t bytes = p->adjust.n_bias * sizeof *p->adjust.bias;
        pd_token_bias *bias = malloc(bytes);
        if (!bias) return pd_fail(err, PD_ENOMEM, NULL, "no memory for %zu token biases", p->adjust.n_bias);
        memcpy(bias, p->adjust.bias, bytes);
        job->adjust.bias = bias;
    }
    if (p->n_stop_id) {
        const size_t bytes = p->n_stop_id * sizeof *job->stop_id;
        job->stop_id = malloc(bytes);
        if (!job->stop_id) return pd_fail(err, PD_ENOMEM, NULL, "no memory for %zu stop tokens", p->n_stop_id);
        memcpy(job->stop_id, p->stop_id, bytes);
        job->n_stop_id = p->n_stop_id;
    }
    return PD_OK;
}

/* All but the prompt. */
static pd_status job_make(pd_job **ret, const pd_job_params *p, const pd_tokenizer *tok, size_t max_tokens, pd_err *err) {
    pd_job *job = calloc(1, sizeof *job);
    if (!job) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a job");
    atomic_store(&job->refs, 1);
    pthread_mutex_init(&job->lock, NULL);
    job->n_tokens = p->n_tokens;
    job->n_choice = 1;
    job->max_tokens = max_tokens;
    job->sampling = p->sampling;
    job->n_stop = p->n_stop;
    for (size_t i = 0; i < p->n_stop; i++) {
        job->stop_len[i] = p->stop[i].len;
        memcpy(job->stop[i], p->stop[i].text, p->stop[i].len);
    }
    job->n_logprobs = p->n_logprobs;
    job->grammar = p->grammar;
    if (job->grammar) pd_grammar_ref(job->grammar);
    job->score_top = p->score_top;
    job->pool = p->pool;
    job->ignore_eos = p->ignore_eos;
    job->explain = p->explain;
    job->explain_scores = p->explain_scores;
    job->verbose = p->verbose;
    job->notify = p->notify;
    job->notify_arg = p->notify_arg;
    job->notify_tokens = pd_max_size(1, p->notify_tokens);
    job->tok = tok;
    job->detok.started = !p->has_marks || p->continues; /* a completion goes on with its prompt: its first space stays */
    job->t_submit = pd_now_ns();
    pd_buf_init(&job->text, (size_t)64 << 20);
    job->ev = malloc((max_tokens + 1) * sizeof *job->ev);
    job->piece = malloc(pd_detok_max(tok));
    pd_status rc = PD_OK;
    if (!job->ev || !job->piece) rc = pd_fail(err, PD_ENOMEM, NULL, "no memory for an answer of %zu tokens", max_tokens);
    if (rc == PD_OK) rc = copy_adjust(job, p, err);
    if (rc == PD_OK) *ret = job;
    else job_free(job);
    return rc;
}

pd_status pd__job_new(pd_job **ret, const pd_job_params *p, const pd_tokenizer *tok, size_t max_tokens, pd_err *err) {
    pd_job *job;
    PD_TRY(job_make(&job, p, tok, max_tokens, err));
    job->tokens = malloc(p->n_tokens * sizeof *job->tokens);
    if (!job->tokens) {
        job_free(job);
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for a prompt of %zu tokens", p->n_tokens);
    }
    memcpy(job->tokens, p->tokens, p->n_tokens * sizeof *job->tokens);
    job->score = p->score;
    *ret = job;
    return PD_OK;
}

static pd_status make_fork(pd_job *leader, const pd_job_params *p, const pd_choice *choice, pd_job **ret, pd_err *err) {
    pd_job *job;
    PD_TRY(job_make(&job, p, leader->tok, leader->max_tokens, err));
    pd_job_ref(leader);
    job->leader = leader;
    job->tokens = leader->tokens;
    job->comp = leader->comp;
    job->scope = leader->scope;
    job->protect_begin = leader->protect_begin;
    job->protect_end = leader->protect_end;
    job->budget = leader->budget;
    job->skipped = leader->skipped;
    job->kv_key = leader->kv_key;
    job->kv_value = leader->kv_value;
    job->page_bytes = leader->page_bytes;
    job->recent_page_bytes = leader->recent_page_bytes;
    job->recent_bytes = leader->recent_bytes;
    job->pages_reserved = job->pages_promised = leader->pages_reserved;
    job->key_channels = leader->key_channels;
    job->latent = leader->latent;
    job->pack_page_bytes = leader->pack_page_bytes;
    job->pack_reserved = job->pack_promised = leader->pack_reserved;
    job->sampling.seed = choice->seed;
    job->notify_arg = choice->notify_arg;
    memcpy(job->result.kv.press, leader->result.kv.press, sizeof job->result.kv.press);
    job->result.kv.name = leader->result.kv.name;
    job->result.kv.ratio_requested = leader->result.kv.ratio_requested;
    job->result.kv.kv_key = leader->kv_key;
    job->result.kv.kv_value = leader->kv_value;
    job->result.kv.page_bytes = leader->page_bytes;
    job->result.kv.recent_page_bytes = leader->recent_page_bytes;
    job->engine = leader->engine;
    *ret = job;
    return PD_OK;
}

pd_status pd__job_fork(pd_job *job, const pd_job_params *p, size_t n, const pd_choice *choice, pd_job **ret, pd_err *err) {
    job->fork = n > 1 ? calloc(n - 1, sizeof(pd_job *)) : NULL;
    if (n > 1 && !job->fork) return pd_fail(err, PD_ENOMEM, NULL, "no memory for %zu answers", n);
    for (size_t i = 1; i < n; i++) {
        const pd_status rc = make_fork(job, p, &choice[i], &ret[i], err);
        if (rc != PD_OK) {
            pd__job_unfork(job);
            return rc;
        }
        job->fork[job->n_fork++] = ret[i];
        pd_job_ref(ret[i]);
    }
    return PD_OK;
}

void pd__job_unfork(pd_job *job) {
    while (job->n_fork) {
        pd_job *fork = job->fork[--job->n_fork];
        pd_job_unref(fork); /* the caller's */
        pd_job_unref(fork);
    }
}

/* Where the first stop string begins that ends behind `before` and was not let
 * go, or the text's length; *which is written if there is one. */
static size_t find_stop(const pd_job *job, size_t before, size_t *which) {
    size_t best = job->text.len;
    for (size_t i = 0; i < job->n_stop; i++) {
        const size_t from = pd_max_size(before + 1 > job->stop_len[i] ? before + 1 - job->stop_len[i] : 0, job->text_released);
        const char *hit = job->text.len > from
            ? memmem(job->text.data + from, job->text.len - from, job->stop[i], job->stop_len[i]) : NULL;
        if (!hit || (size_t)(hit - job->text.data) >= best) continue;
        best = (size_t)(hit - job->text.data);
        *which = i;
    }
    return best;
}

/* Bytes at the end of the text that may be the beginning of a stop string. */
static size_t held(const pd_job *job) {
    size_t most = 0;
    for (size_t i = 0; i < job->n_stop; i++) {
        const size_t max = pd_min_size(job->stop_len[i] - 1, job->text.len);
        for (size_t n = max; n > most; n--)
            if (memcmp(job->text.data + job->text.len - n, job->stop[i], n) == 0) most = n;
    }
    return most;
}

pd_status pd__job_emit(pd_job *job, int32_t id, float logprob, const pd_token_prob *top, size_t n_top,
                       pd_finish *done, pd_err *err) {
    job->n_sampled++;
    const size_t n = pd_detok_next(job->tok, &job->detok, id, false, job->piece, pd_detok_max(job->tok));
    pthread_mutex_lock(&job->lock);
    const size_t before = job->text.len;
    pd_buf_add(&job->text, job->piece, n);
    bool ok = !job->text.failed;
    const bool may_stop = job->n_stop && job->n_sampled > job->adjust.min_tokens;
    const size_t hit = ok && may_stop ? find_stop(job, before, &job->cut_by) : job->text.len;
    if (ok && hit < job->text.len) {
        job->text.len = hit;
        job->text_released = hit;
        job->cut = true;
        *done = PD_FINISH_STOP;
    } else if (ok) {
        job->text_released = job->text.len - held(job);
        pd_token_prob *kept = NULL;
        if (n_top) {
            kept = pd_arena_alloc(&job->tops, n_top, sizeof *kept);
            ok = kept != NULL;
            if (ok) memcpy(kept, top, n_top * sizeof *kept);
        }
        if (ok) job->ev[job->n_ev++] = (pd_job_event){id, logprob, job->text_released, kept, (uint32_t)n_top};
    }
    pthread_mutex_unlock(&job->lock);
    return ok ? PD_OK : pd_fail(err, PD_ENOMEM, NULL, "no memory for the answer's text");
}

void pd__job_finish(pd_job *job, pd_finish finish, const pd_err *err) {
    char tail[16];
    pthread_mutex_lock(&job->lock);
    if (!job->cut) {
        pd_buf_add(&job->text, tail, pd_detok_end(&job->detok, tail, sizeof tail));
        job->text_released = job->text.len;
    }
    pthread_mutex_unlock(&job->lock);

    pd_job_result *r = &job->result;
    r->finish = finish;
    if (err) r->err = *err;
    r->scope_tokens = job->scope;
    const uint64_t now = pd_now_ns();
    pd_job_timing *t = &r->timing;
    t->prompt_n = job->leader ? 0 : job->n_tokens;
    t->predicted_n = job->n_sampled;
    t->draft_n = job->n_drafted;
    t->draft_n_accepted = job->n_draft_taken;
    t->queue_ms = 1e-6 * (double)((job->t_start ? job->t_start : now) - job->t_submit);
    if (job->t_first) {
        if (!job->leader) t->prompt_ms = 1e-6 * (double)(job->t_first - job->t_start);
        t->ttft_ms = 1e-6 * (double)(job->t_first - job->t_submit);
        if (job->t_last > job->t_first) t->predicted_ms = 1e-6 * (double)(job->t_last - job->t_first);
    }
    pd__job_set_state(job, PD_JOB_DONE);
    if (job->notify) job->notify(job->notify_arg, job);
}

size_t pd_job_take(pd_job *job, pd_token_event *out, size_t cap, pd_buf *text, size_t *tail_len) {
    const bool done = pd_job_get_state(job) == PD_JOB_DONE; /* before the lock: then nothing is added */
    size_t n = 0;
    *tail_len = 0;
    pthread_mutex_lock(&job->lock);
    while (n < cap && job->n_taken < job->n_ev) {
        const pd_job_event *e = &job->ev[job->n_taken++];
        const size_t len = e->text_end - job->text_taken;
        out[n++] = (pd_token_event){.id = e->id, .logprob = e->logprob, .text_off = (uint32_t)text->len,
                                    .text_len = (uint32_t)len, .top = e->top, .n_top = e->n_top};
        if (len) pd_buf_add(text, job->text.data + job->text_taken, len);
        job->text_taken = e->text_end;
    }
    if (done && job->n_taken == job->n_ev && job->text_taken < job->text_released) {
        *tail_len = job->text_released - job->text_taken;
        pd_buf_add(text, job->text.data + job->text_taken, *tail_len);
        job->text_taken = job->text_released;
    }
    pthread_mutex_unlock(&job->lock);
    return n;
}
