/* SPDX-License-Identifier: Apache-2.0 */
/* The engine thread: who runs next.
 *
 *   forever:  take new jobs, drop cancelled ones
 *             admit the oldest waiting job if its pages fit (first come, first served)
 *             prefill: units of the one prompt at work, for a slice of time
 *             decode:  one step of all running sequences
 *
 * One prompt is prefilled at a time, so that the dense peak is one layer of one
 * prompt; then it is copied for every further answer that was asked for (fork.c),
 * and those the batch has no place for wait until it has.
 *
 * While streams run, a prompt gets SHARE of a step's time between two steps, in
 * units cut to what is left of it: a stream then sees its tokens come at less than
 * twice their usual distance, and the prompt takes about three times as long as alone.
 * One unit is always run, so that a prompt gets on however short the steps are.
 *
 * While requests wait the share grows with their number, up to SHARE_MOST: each is worth a
 * place in the batch, and a step costs little more for it.  With a half throughout, streams
 * end before others have come in, and a pool that would hold twelve runs three.
 *
 * Sequences whose press leaves that to the engine (pd_decode_rule, interval 0) are pruned when
 * the oldest waiting job finds no room, those first that went longest without, and none
 * unless all of them together make room enough. */
#include "engine/run/state.h"

#include <assert.h>
#include <stdlib.h>

static const double SHARE = 0.5, SHARE_MOST = 6.0;

/* Freed pages whose memory goes back between two steps: a tenth of a millisecond or two. */
enum { TIDY_BYTES = 2 << 20 };

/* ---- lists ---- */

static void take_inbox(pd_engine *e, bool idle) {
    pthread_mutex_lock(&e->lock);
    while (idle && !e->inbox && !e->stop && !atomic_load(&e->nudge)) pthread_cond_wait(&e->wake, &e->lock);
    pd_job **end = &e->wait;
    while (*end) end = &(*end)->next;
    *end = e->inbox;
    e->inbox = NULL;
    e->inbox_end = &e->inbox;
    atomic_store(&e->nudge, false);
    pthread_mutex_unlock(&e->lock);
}

static bool stopping(pd_engine *e) {
    pthread_mutex_lock(&e->lock);
    const bool stop = e->stop;
    pthread_mutex_unlock(&e->lock);
    return stop;
}

/* The head of the waiting list leaves it. */
static pd_job *pop_wait(pd_engine *e) {
    pd_job *job = e->wait;
    e->wait = job->next;
    job->next = NULL;
    atomic_fetch_sub(&e->n_waiting, 1);
    return job;
}

static bool cancelled(const pd_job *job) {
    return atomic_load_explicit(&job->cancel, memory_order_relaxed);
}

/* A prompt whose every answer was cancelled. */
static bool given_up(const pd_job *job) {
    bool all = cancelled(job);
    for (size_t i = 0; i < job->n_fork && all; i++) all = cancelled(job->fork[i]);
    return all;
}

/* The other answers of a prompt that will not be read. */
static void end_forks(pd_job *job, pd_finish finish, const pd_err *err) {
    for (size_t i = 0; i < job->n_fork; i++) {
        pd__job_finish(job->fork[i], finish, err);
        pd_job_unref(job->fork[i]);
    }
    job->n_fork = 0;
}

static void drop_cancelled(pd_engine *e, bool all) {
    for (pd_job **at = &e->wait; *at;) {
        pd_job *job = *at;
        if (!all && !given_up(job)) {
            at = &job->next;
            continue;
        }
        *at = job->next;
        atomic_fetch_sub(&e->n_waiting, 1);
        end_forks(job, PD_FINISH_CANCELLED, NULL);
        pd__job_finish(job, PD_FINISH_CANCELLED, NULL);
        pd_job_unref(job);
    }
}

/* ---- sequences ---- */

static void end_seq(pd_engine *e, pd_seq *s, pd_finish finish, const pd_err *err) {
    e->reserved -= pd__job_promised(s->job);
    pd_seq_close(s, finish, err);
    free(s);
    atomic_fetch_sub(&e->n_running, 1);
}

static void end_prefill(pd_engine *e, pd_finish finish, const pd_err *err) {
    pd_job *job = e->filling->job;
    pd_prefill_close(&e->prefill);
    e->reserved -= job->n_fork * pd__job_promised(job);
    end_forks(job, finish, err);
    end_seq(e, e->filling, finish, err);
    e->filling = NULL;
}

/* Sequence i leaves the batch; the others keep their order. */
static void end_running(pd_engine *e, size_t i, pd_finish finish, const pd_err *err) {
    pd_seq *s = e->seq[i];
    e->n_seq--;
    for (; i < e->n_seq; i++) e->seq[i] = e->seq[i + 1];
    end_seq(e, s, finish, err);
}

/* What a job must find free. */
static uint64_t wanted(const pd_engine *e, const pd_job *job) {
    return job->n_choice * pd__job_reserved(job) + job->staging_bytes + e->info.n_threads * job->thread_bytes;
}

static bool fits(const pd_engine *e, const pd_job *job) {
    return e->reserved + wanted(e, job) <= e->info.kv_pool_bytes;
}

/* Tokens since it was pruned, if pruning it gives memory back; else 0. */
static size_t unpruned(const pd_seq *s) {
    return pd_admit_gain(s) ? s->n_seen - s->pruned_at : 0;
}

/* The sequence's promise shrinks to what pd_admit_left says. */
static void promise_less(pd_engine *e, const pd_seq *s) {
    const uint64_t promised = pd__job_promised(s->job);
    pd_admit_left(s);
    e->reserved -= promised - pd__job_promised(s->job);
}

static void make_room(pd_engine *e, const pd_job *job) {
    uint64_t gain = 0;
    for (size_t i = 0; i < e->n_seq; i++) gain += pd_admit_gain(e->seq[i]) * e->seq[i]->job->page_bytes;
    if (gain == 0 || e->reserved - gain + wanted(e, job) > e->info.kv_pool_bytes) return;
    while (!fits(e, job)) {
        size_t at = 0;
        for (size_t i = 1; i < e->n_seq; i++)
            if (unpruned(e->seq[i]) > unpruned(e->seq[at])) at = i;
        if (e->n_seq == 0 || !unpruned(e->seq[at])) return; /* one failed */
        pd_err err = {0};
        if (pd_running_prune(e->seq[at], &err) == PD_OK) promise_less(e, e->seq[at]);
        else end_running(e, at, PD_FINISH_ERROR, &err);
    }
}

static void admit(pd_engine *e) {
    if (e->filling || !e->wait || e->ready || e->n_seq >= e->run.parallel) return;
    if (!fits(e, e->wait)) make_room(e, e->wait);
    if (!fits(e, e->wait)) return;
    pd_job *job = pop_wait(e);
    pd_err err = {0};
    pd_seq *s = calloc(1, sizeof *s);
    atomic_fetch_add(&e->n_running, 1);
    e->reserved += job->n_choice * pd__job_reserved(job);
    job->t_start = pd_now_ns();
    pd__job_set_state(job, PD_JOB_PREFILL);
    for (size_t i = 0; i < job->n_fork; i++) {
        job->fork[i]->t_start = job->t_start;
        pd__job_set_state(job->fork[i], PD_JOB_PREFILL);
    }
    if (!s) {
        pd_fail(&err, PD_ENOMEM, NULL, "no memory for a sequence");
        e->reserved -= job->n_choice * pd__job_reserved(job);
        atomic_fetch_sub(&e->n_running, 1);
        end_forks(job, PD_FINISH_ERROR, &err);
        pd__job_finish(job, PD_FINISH_ERROR, &err);
    } else {
        e->filling = s;
        pd_status rc = pd_seq_open(s, &e->run, job, &err);
        if (rc == PD_OK) rc = pd_prefill_open(&e->prefill, s, &err);
        if (rc != PD_OK) end_prefill(e, PD_FINISH_ERROR, &err);
    }
    pd_job_unref(job); /* the sequence has its own reference */
}

/* ---- work ---- */

static void count_token(pd_engine *e) {
    atomic_fetch_add_explicit(&e->c_generated, 1, memory_order_relaxed);
}

/* The prompt is in: first token, then the batch. */
static void begin(pd_engine *e, pd_seq *s) {
    pd_err err = {0};
    pd_finish finish = PD_FINISH_LENGTH; /* a job that wants no token is done */
    if (cancelled(s->job)) {
        end_seq(e, s, PD_FINISH_CANCELLED, NULL);
        return;
    }
    if (s->job->max_tokens > 0) {
        pd__job_set_state(s->job, PD_JOB_DECODE);
        if (pd_seq_sample(s, e->run.logits, &finish, &err) != PD_OK) finish = PD_FINISH_ERROR;
        if (finish != PD_FINISH_ERROR) count_token(e);
    } else {
        s->job->t_first = s->job->t_last = pd_now_ns();
    }
    if (finish == PD_FINISH_NONE) {
        *e->ready_end = s;
        e->ready_end = &s->after;
    } else {
        end_seq(e, s, finish, finish == PD_FINISH_ERROR ? &err : NULL);
    }
}

/* One more answer to the prompt in `from`; takes the reference to `job`. */
static void begin_fork(pd_engine *e, const pd_seq *from, pd_job *job) {
    pd_err err = {0};
    pd_seq *s = cancelled(job) ? NULL : calloc(1, sizeof *s);
    if (s) {
        atomic_fetch_add(&e->n_running, 1);
        if (pd_seq_fork(s, from, job, &err) == PD_OK) begin(e, s);
        else end_seq(e, s, PD_FINISH_ERROR, &err);
    } else {
        e->reserved -= pd__job_promised(job);
        if (cancelled(job)) {
            pd__job_finish(job, PD_FINISH_CANCELLED, NULL);
        } else {
            pd_fail(&err, PD_ENOMEM, NULL, "no memory for a sequence");
            pd__job_finish(job, PD_FINISH_ERROR, &err);
        }
    }
    pd_job_unref(job);
}

/* The prompt is in: a press may have left less of it than admission had to count on. */
static void give_back(pd_engine *e, const pd_seq *s) {
    pd_job *job = s->job;
    const uint64_t promised = pd__job_promised(job);
    pd_admit_left(s);
    e->reserved -= (1 + job->n_fork) * (promised - pd__job_promised(job));
    for (size_t i = 0; i < job->n_fork; i++) {
        job->fork[i]->pages_promised = job->pages_promised;
        job->fork[i]->pack_promised = job->pack_promised;
    }
}

static void prefilled(pd_engine *e) {
    pd_seq *s = e->filling;
    pd_job *job = s->job;
    const size_t n_fork = job->n_fork;
    pd_prefill_close(&e->prefill);
    e->filling = NULL;
    atomic_fetch_add_explicit(&e->c_prompt, job->n_tokens, memory_order_relaxed);
    give_back(e, s);
    /* Copied before the first token; `s` last, since the job may be gone after it. */
    job->n_fork = 0;
    for (size_t i = 0; i < n_fork; i++) begin_fork(e, s, job->fork[i]);
    begin(e, s);
}

/* Sequences that were waiting for a place in the batch get the free ones. */
static void fill_batch(pd_engine *e) {
    while (e->ready && e->n_seq < e->run.parallel) {
        pd_seq *s = e->ready;
        e->ready = s->after;
        e->seq[e->n_seq++] = s;
    }
    if (!e->ready) e->ready_end = &e->ready;
}

/* All that wait, or the cancelled ones among them. */
static void drop_ready(pd_engine *e, bool all) {
    pd_seq **at = &e->ready;
    while (*at) {
        pd_seq *s = *at;
        if (all || cancelled(s->job)) {
            *at = s->after;
            end_seq(e, s, PD_FINISH_CANCELLED, NULL);
        } else {
            at = &s->after;
        }
    }
    e->ready_end = at;
}

/* Rows of the next unit that end within `ns`; 0: not even the fewest do. */
static size_t rows_within(const pd_engine *e, double ns) {
    if (pd_prefill_at_end(&e->prefill)) return e->end_ns <= ns ? PD_TILE : 0;
    const double cuts = e->row_ns > 0.0 ? ns / (e->row_ns * PD_TILE_CUT) : 1.0;
    if (cuts < 1.0) return 0;
    return cuts < PD_TILE / PD_TILE_CUT ? (size_t)cuts * PD_TILE_CUT : PD_TILE;
}

/* One unit, and what it took. */
static pd_status unit(pd_engine *e, size_t rows, bool *done, pd_err *err) {
    const bool end = pd_prefill_at_end(&e->prefill);
    const uint64_t t0 = pd_now_ns();
    PD_TRY(pd_prefill_unit(&e->prefill, rows, done, err));
    const double ns = (double)(pd_now_ns() - t0);
    if (end) e->end_ns = ns;
    else if (e->prefill.tile) e->row_ns = ns / (double)e->prefill.tile;
    return PD_OK;
}

/* Of a step's time, what a prompt gets beside it. */
static double share(pd_engine *e) {
    const double s = SHARE * (1.0 + (double)atomic_load_explicit(&e->n_waiting, memory_order_relaxed));
    return s < SHARE_MOST ? s : SHARE_MOST;
}

static void prefill_slice(pd_engine *e) {
    const uint64_t t0 = pd_now_ns();
    bool first = true;
    while (e->filling) {
        if (given_up(e->filling->job)) {
            end_prefill(e, PD_FINISH_CANCELLED, NULL);
            return;
        }
        bool done;
        pd_err err = {0};
        size_t rows = PD_TILE;
        if (e->n_seq) {
            rows = rows_within(e, share(e) * e->step_ns - (double)(pd_now_ns() - t0));
            if (rows == 0 && !first) return;
            if (rows == 0) rows = PD_TILE_CUT;
            first = false;
        }
        atomic_fetch_add_explicit(&e->c_units, 1, memory_order_relaxed);
        if (unit(e, rows, &done, &err) != PD_OK) {
            end_prefill(e, PD_FINISH_ERROR, &err);
            return;
        }
        if (done) {
            prefilled(e);
            return;
        }
        /* Alone, come back after every unit: a cancel or a new job is cheap to see. */
        if (e->n_seq == 0) return;
    }
}

/* Slow to believe in longer steps: one that lost its processor for a while must not
 * make the next slices long. */
static void note_step(pd_engine *e, double ns) {
    e->step_ns += e->step_ns == 0.0 ? ns : (ns - e->step_ns) / (ns < e->step_ns ? 2.0 : 16.0);
}

/* The step is half done for everyone: nobody's cache can be trusted. */
static void end_all(pd_engine *e, const pd_err *err) {
    while (e->n_seq) end_running(e, e->n_seq - 1, PD_FINISH_ERROR, err);
}

/* The next token of a sequence from its logits. */
static pd_status sample(pd_engine *e, pd_seq *s, const float *logits, pd_finish *finish, pd_err *err) {
    PD_TRY(pd_seq_sample(s, logits, finish, err));
    count_token(e);
    return PD_OK;
}

/* One token of every sequence. */
static void decode_batch(pd_engine *e) {
    size_t bad;
    pd_err err = {0};
    if (pd_decode_step(&e->run, e->seq, e->n_seq, &bad, &err) != PD_OK) {
        end_all(e, &err);
        return;
    }
    for (size_t i = e->n_seq; i-- > 0;) { /* from the end: leaving shifts the rest */
        pd_seq *s = e->seq[i];
        pd_finish finish = PD_FINISH_NONE;
        pd_err fault = {0};
        assert(s->kv.n_pages <= s->job->pages_promised && s->kv.n_pack_pages <= s->job->pack_promised);
        pd_status rc = pd_presser_step(s, &fault);
        if (rc == PD_OK) rc = sample(e, s, e->run.logits + i * e->model->hp.n_vocab, &finish, &fault);
        if (rc != PD_OK)
            end_running(e, i, PD_FINISH_ERROR, &fault);
        else if (finish != PD_FINISH_NONE)
            end_running(e, i, finish, NULL);
    }
}

/* One token of the only sequence, and as many more as the draft had right. */
static void decode_drafted(pd_engine *e, const int32_t *draft, size_t n, uint64_t t0) {
    pd_seq *s = e->seq[0];
    pd_finish finish;
    pd_err err = {0};
    if (pd_decode_drafted(&e->run, s, draft, n, &err) != PD_OK) {
        end_all(e, &err);
        return;
    }
    assert(s->kv.n_pages <= s->job->pages_promised && s->kv.n_pack_pages <= s->job->pack_promised);
    size_t taken = 0;
    pd_status rc = sample(e, s, e->run.logits, &finish, &err);
    while (rc == PD_OK && finish == PD_FINISH_NONE && taken < n && s->next == draft[taken])
        rc = sample(e, s, e->run.logits + ++taken * e->model->hp.n_vocab, &finish, &err);
    pd_decode_settle(s, n, taken);
    s->job->n_drafted += n;
    s->job->n_draft_taken += taken;
    atomic_fetch_add_explicit(&e->c_drafted, n, memory_order_relaxed);
    atomic_fetch_add_explicit(&e->c_draft_taken, taken, memory_order_relaxed);
    if (rc != PD_OK)
        end_running(e, 0, PD_FINISH_ERROR, &err);
    else if (finish != PD_FINISH_NONE)
        end_running(e, 0, finish, NULL);
    else
        pd_draft_learn(&s->draft, n, taken, (double)(pd_now_ns() - t0));
}

static void decode(pd_engine *e) {
    for (size_t i = e->n_seq; i-- > 0;)
        if (cancelled(e->seq[i]->job)) end_running(e, i, PD_FINISH_CANCELLED, NULL);
    drop_ready(e, false);
    fill_batch(e);
    if (e->n_seq == 0) return;
    const uint64_t t0 = pd_now_ns();
    atomic_fetch_add_explicit(&e->c_steps, 1, memory_order_relaxed);
    int32_t draft[PD_DRAFT_MAX];
    pd_seq *alone = e->n_seq == 1 && !e->filling ? e->seq[0] : NULL;
    const size_t n = alone && alone->draft.text ? pd_draft_propose(&alone->draft, pd_decode_room(alone), draft) : 0;
    if (n)
        decode_drafted(e, draft, n, t0);
    else
        decode_batch(e);
    const double ns = (double)(pd_now_ns() - t0);
    if (n == 0) note_step(e, ns);
    if (alone && n == 0 && e->n_seq) pd_draft_learn(&alone->draft, 0, 0, ns);
}

#ifndef NDEBUG
/* The promise of every sequence, and of the answers that will be forked, is reserved once. */
static bool promises_add_up(const pd_engine *e) {
    uint64_t sum = 0;
    for (size_t i = 0; i < e->n_seq; i++) sum += pd__job_promised(e->seq[i]->job);
    for (const pd_seq *s = e->ready; s; s = s->after) sum += pd__job_promised(s->job);
    if (e->filling) sum += (1 + e->filling->job->n_fork) * pd__job_promised(e->filling->job);
    return sum == e->reserved;
}
#endif

/* What the counters show of this moment. */
static void publish(pd_engine *e) {
    assert(promises_add_up(e));
    uint64_t dense = 0, resident = 0, staging = 0, scratch = pd_run_scratch_bytes(&e->run);
    scratch += atomic_load_explicit(&e->c_tree, memory_order_relaxed) + pd_matchers_bytes(&e->run.matchers);
    for (size_t i = 0; i < e->n_seq; i++) {
        dense += pd_dense_bytes(&e->model->hp, e->seq[i]->n_seen);
        scratch += pd_seq_scratch_bytes(e->seq[i]);
    }
    for (const pd_seq *s = e->ready; s; s = s->after) {
        dense += pd_dense_bytes(&e->model->hp, s->n_seen);
        scratch += pd_seq_scratch_bytes(s);
    }
    if (e->filling) {
        dense += pd_dense_bytes(&e->model->hp, e->filling->n_seen);
        staging = e->prefill.stage.bytes;
        scratch += e->prefill.bytes + e->prefill.collect.bytes + pd_seq_scratch_bytes(e->filling);
    }
    resident = pd_kvpools_held(&e->run.pools, PD_PAGE_SEQ);
    atomic_store_explicit(&e->c_dense, dense, memory_order_relaxed);
    atomic_store_explicit(&e->c_staging, staging, memory_order_relaxed);
    atomic_store_explicit(&e->c_scratch, scratch, memory_order_relaxed);
    if (resident + staging > atomic_load_explicit(&e->c_peak, memory_order_relaxed))
        atomic_store_explicit(&e->c_peak, resident + staging, memory_order_relaxed);
    atomic_store_explicit(&e->c_alive, pd_now_ns(), memory_order_relaxed);
}

void *pd__engine_main(void *arg) {
    pd_engine *e = arg;
    pd_workers_pin(e->workers);
    for (;;) {
        const bool idle = !e->filling && e->n_seq == 0 && !e->ready && !e->wait;
        if (idle) {
            pd_kvpools_trim(&e->run.pools); /* nobody needs the hysteresis now */
            publish(e);
        }
        take_inbox(e, idle);
        if (stopping(e)) break;
        drop_cancelled(e, false);
        admit(e);
        if (e->filling) prefill_slice(e);
        decode(e);
        pd_kvpools_tidy(&e->run.pools, TIDY_BYTES);
        publish(e);
    }
    take_inbox(e, false); /* what came in before `stop` was seen */
    drop_cancelled(e, true);
    if (e->filling) end_prefill(e, PD_FINISH_CANCELLED, NULL);
    while (e->n_seq) end_running(e, e->n_seq - 1, PD_FINISH_CANCELLED, NULL);
    drop_ready(e, true);
    publish(e);
    return NULL;
}
