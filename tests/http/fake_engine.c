/* SPDX-License-Identifier: Apache-2.0 */
/* A test double of the engine (engine/run/engine.h), its tokenizer and its chat
 * template: no model, no arithmetic, deterministic.  The HTTP suite runs the real
 * server on top of it, also under sanitizers, where abuse has to be fast.
 *
 * Tokens are bytes (0..255) plus bos 256, eos 257, <|im_start|> 258, <|im_end|>
 * 259.  An answer echoes the prompt's bytes, round and round, one token a step.
 * Stop tokens and
 * min_tokens work, other adjustments of logits do nothing.  Words in the prompt change that:
 *
 *   @@prefill=MS   stay in prefill so long       @@step=MS    per generated token
 *   @@eos=N        end of text after N tokens    @@error=N    fail after N tokens
 *   @@longer=N     answer i of several is i*N tokens longer; answer i begins at byte i of what it says
 *   @@say=HEX      answer these bytes instead    @@busy       submit says EBUSY
 *
 * FAKE_ENGINE_LOAD_MS delays opening; a model path with "missing" in it fails. */
#include "engine/run/engine.h"

#include "engine/base/clock.h"
#include "engine/base/utf8.h"

#include <assert.h>
#include <ctype.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BOS = 256, EOS = 257, IM_START = 258, IM_END = 259, N_VOCAB = 260 };
enum { N_LAYER = 2, N_HEAD = 4, N_HEAD_KV = 2, HEAD_DIM = 64, PAGE_TOKENS = 16 };
enum {
    PAGE_BYTES = PAGE_TOKENS * HEAD_DIM * 2 * 2,
    TOKEN_BYTES = N_LAYER * N_HEAD_KV * HEAD_DIM * 2 * 2
};
enum { STEP_US = 500, CTX_TRAIN = 131072 };

struct pd_job {
    pd_engine *e;
    pd_job *next; /* in the engine's list */
    unsigned refs;
    pd_job_state state;
    bool cancel, busy_step;
    /* request */
    int32_t *prompt;
    size_t n_prompt, max_tokens;
    char *stop[PD_STOP_MAX], *stopped_by;
    size_t n_stop;
    int32_t stop_id[PD_STOP_IDS_MAX];
    size_t n_stop_id, min_tokens;
    int n_logprobs;
    bool ignore_eos, explain, explain_scores, verbose;
    pd_scored *scored;
    pd_pooling pool;
    float *embedding;
    pd_compression *compression;
    void (*notify)(void *arg, pd_job *job);
    void *notify_arg;
    /* script */
    double prefill_ms, step_ms;
    long eos_after, error_after;
    size_t longer;
    size_t shift; /* which of several answers this is */
    unsigned char *say;
    size_t n_say;
    /* progress */
    uint64_t submit_ns, start_ns, first_ns, due_ns;
    size_t n_out;
    pd_token_event *ev; /* text_off counts in `text` */
    size_t n_ev, cap_ev, taken;
    pd_buf text;        /* all text let go so far */
    size_t text_taken, tail;
    pd_buf held;
    pd_arena arena;     /* tops, report */
    pd_job_result result;
};

struct pd_engine {
    pthread_t thread;
    pthread_mutex_t lock; /* guards everything below and in the jobs */
    pthread_cond_t wake;
    bool closing;
    pd_job *jobs;
    pd_engine_info info;
    pd_engine_stats stats;
    unsigned queue_max;
    atomic_bool grammar_ready;
};

/* ---- tokenizer and template ---- */

struct pd_tokenizer { pd_tokenizer_info info; };
struct pd_chat { int unused; };
static const pd_tokenizer the_tokenizer = {
    {"fake", "bytes", N_VOCAB, BOS, EOS, IM_END, -1, -1, true, false, false}};
static const pd_chat the_chat;
static const char *const special_text[] = {"<bos>", "<eos>", "<|im_start|>", "<|im_end|>"};

pd_status pd_ids_push(pd_ids *ids, int32_t id, pd_err *err) {
    if (ids->n == ids->cap) {
        const size_t cap = ids->cap ? ids->cap * 2 : 64;
        int32_t *p = realloc(ids->id, cap * sizeof *p);
        if (!p) return pd_fail(err, PD_ENOMEM, NULL, "no memory");
        ids->id = p;
        ids->cap = cap;
    }
    ids->id[ids->n++] = id;
    return PD_OK;
}

void pd_ids_done(pd_ids *ids) {
    free(ids->id);
    *ids = (pd_ids){0};
}

const pd_tokenizer_info *pd_tokenizer_get_info(const pd_tokenizer *t) { return &t->info; }
bool pd_token_is_eog(const pd_tokenizer *t, int32_t id) { return id == EOS || id == IM_END; }
bool pd_token_is_special(const pd_tokenizer *t, int32_t id) { return id >= BOS; }

pd_status pd_tokenize(const pd_tokenizer *t, const char *text, size_t len, unsigned flags,
                      pd_ids *out, pd_err *err) {
    if (flags & PD_TOK_BOS) PD_TRY(pd_ids_push(out, BOS, err));
    for (size_t i = 0; i < len;) {
        size_t s = 0;
        while (flags & PD_TOK_SPECIAL && s < 4 &&
               (len - i < strlen(special_text[s]) ||
                memcmp(text + i, special_text[s], strlen(special_text[s])) != 0))
            s++;
        if (flags & PD_TOK_SPECIAL && s < 4) {
            PD_TRY(pd_ids_push(out, BOS + (int32_t)s, err));
            i += strlen(special_text[s]);
        } else {
            PD_TRY(pd_ids_push(out, (unsigned char)text[i++], err));
        }
    }
    return PD_OK;
}

#define B4(n) (char)(n), (char)((n) + 1), (char)((n) + 2), (char)((n) + 3)
#define B16(n) B4(n), B4((n) + 4), B4((n) + 8), B4((n) + 12)
#define B64(n) B16(n), B16((n) + 16), B16((n) + 32), B16((n) + 48)
static const char byte_text[256] = {B64(0), B64(64), B64(128), B64(192)};

pd_str pd_token_bytes(const pd_tokenizer *t, int32_t id, bool special) {
    if (id >= 0 && id < 256) return (pd_str){&byte_text[id], 1};
    if (id >= BOS && id < N_VOCAB && special)
        return (pd_str){special_text[id - BOS], strlen(special_text[id - BOS])};
    return (pd_str){"", 0};
}

size_t pd_detok_max(const pd_tokenizer *t) { return 32; }

size_t pd_detok_next(const pd_tokenizer *t, pd_detok *d, int32_t id, bool special, char *dst,
                     size_t cap) {
    const pd_str s = pd_token_bytes(t, id, special);
    memcpy(dst, s.data, s.len); /* bytes go out as they are: the caller mends them */
    return s.len;
}

size_t pd_detok_end(pd_detok *d, char *dst, size_t cap) { return 0; }

const char *pd_chat_name(const pd_chat *c) { return "chatml"; }
const char *pd_chat_text(const pd_chat *c) { return ""; }
bool pd_chat_uses(const pd_chat *c, const char *variable) { return false; }

pd_status pd_chat_encode(const pd_chat *c, const pd_tokenizer *t, const pd_chat_talk *talk,
                         pd_ids *out, pd_chat_marks *marks, pd_err *err) {
    const pd_chat_msg *msg = talk->msg;
    const size_t n_msg = talk->n_msg;
    *marks = (pd_chat_marks){0};
    size_t last_user = SIZE_MAX;
    for (size_t i = 0; i < n_msg; i++) {
        const char *role = msg[i].role;
        const bool system = strcmp(role, "system") == 0;
        char at[48];
        snprintf(at, sizeof at, "messages[%zu].role", i);
        if (!system && strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0)
            return pd_fail(err, PD_EINVAL, at, "%s is '%.40s'; allowed are system, user, assistant",
                           at, role);
        if (strcmp(role, "user") == 0) last_user = out->n;
        if (system) marks->system_begin = out->n;
        PD_TRY(pd_ids_push(out, IM_START, err));
        PD_TRY(pd_tokenize(t, role, strlen(role), 0, out, err));
        PD_TRY(pd_ids_push(out, '\n', err));
        PD_TRY(pd_tokenize(t, msg[i].content, strlen(msg[i].content), 0, out, err));
        PD_TRY(pd_ids_push(out, IM_END, err));
        if (system) marks->system_end = out->n;
    }
    if (talk->add_generation_prompt) {
        PD_TRY(pd_ids_push(out, IM_START, err));
        PD_TRY(pd_tokenize(t, "assistant\n", 10, 0, out, err));
    }
    marks->last_user_begin = last_user == SIZE_MAX ? out->n : last_user;
    return PD_OK;
}

static void score(pd_job *j, size_t n_top);

/* ---- results ---- */

static size_t pages_of(size_t tokens) {
    return (tokens + PAGE_TOKENS - 1) / PAGE_TOKENS * N_LAYER * N_HEAD_KV;
}

static size_t kept_of(const pd_job *j, size_t *evicted_per_head, double *requested) {
    const pd_compression *c = j->compression;
    size_t kept = j->n_prompt;
    *requested = 0;
    if (c && c->press && j->n_prompt >= c->min_tokens) {
        const pd_budget b = {.ratio = c->ratio,
                             .by_count = c->budget == PD_BUDGET_TOKENS,
                             .count = (size_t)c->amount};
        kept = c->budget == PD_BUDGET_BYTES ? (size_t)(c->amount / TOKEN_BYTES)
                                            : pd_budget_keep(&b, j->n_prompt);
        if (kept > j->n_prompt) kept = j->n_prompt;
        if (kept < 1) kept = 1;
        if (c->budget == PD_BUDGET_RATIO) *requested = c->ratio;
    }
    *evicted_per_head = j->n_prompt - kept;
    return kept + j->n_out;
}

static void write_report(pd_job *j) {
    pd_kv_report *kv = &j->result.kv;
    const pd_compression *c = j->compression;
    size_t evicted;
    const size_t held = kept_of(j, &evicted, &kv->ratio_requested);
    pd_buf text = {0};
    pd_compression_text(c, &text);
    snprintf(kv->press, sizeof kv->press, "%s", text.data ? text.data : "none");
    pd_buf_done(&text);
    kv->name = pd_compression_name(c);
    if (c && c->press && j->n_prompt < c->min_tokens)
        kv->skipped = "the prompt is shorter than min_tokens";
    kv->ratio = (double)evicted / (double)j->n_prompt;
    kv->tokens_seen = j->n_prompt + j->n_out;
    kv->tokens_evicted = evicted * N_LAYER * N_HEAD_KV;
    kv->tokens_kept = (double)held;
    kv->pages = pages_of(held);
    kv->kv_key = c && c->kv_key ? c->kv_key : PD_KV_F16;
    kv->kv_value = c && c->kv_value ? c->kv_value : PD_KV_F16;
    const pd_codec codec = pd_codec_of(kv->kv_key, kv->kv_value);
    kv->page_bytes = pd_codec_page_bytes(&codec, HEAD_DIM, HEAD_DIM);
    kv->bytes = kv->pages * kv->page_bytes;
    kv->bytes_after_prefill = pages_of(held - j->n_out) * kv->page_bytes;
    kv->bytes_dense = (uint64_t)(j->n_prompt + j->n_out) * TOKEN_BYTES;
    kv->bytes_peak = kv->bytes + (uint64_t)j->n_prompt * TOKEN_BYTES / N_LAYER;
    if (c && c->n_read) { /* half of the keys, a quarter of the values */
        kv->rows = 64;
        kv->rows_key = 32;
        kv->rows_value = 16;
        kv->bytes_bounds = 4096;
    }
    kv->press_ms = evicted ? 0.25 : 0.0;
    kv->n_layer = N_LAYER;
    kv->n_head_kv = N_HEAD_KV;
    if (!j->verbose && !j->explain) return;
    uint32_t *kept = PD_ARENA_NEW(&j->arena, N_LAYER * N_HEAD_KV, uint32_t);
    uint32_t *pages = PD_ARENA_NEW(&j->arena, N_LAYER * N_HEAD_KV, uint32_t);
    uint64_t *bytes = PD_ARENA_NEW(&j->arena, N_LAYER * N_HEAD_KV, uint64_t);
    for (size_t i = 0; i < N_LAYER * N_HEAD_KV; i++) {
        kept[i] = (uint32_t)held;
        pages[i] = (uint32_t)(kv->pages / (N_LAYER * N_HEAD_KV));
        bytes[i] = pages[i] * kv->page_bytes;
    }
    kv->kept = kept;
    kv->head_pages = pages;
    kv->head_bytes = bytes;
    if (!j->explain) return;
    pd_explain_head *heads = PD_ARENA_NEW(&j->arena, N_LAYER * N_HEAD_KV, pd_explain_head);
    int32_t *pos = PD_ARENA_NEW(&j->arena, held + 1, int32_t);
    float *score = PD_ARENA_NEW(&j->arena, j->n_prompt, float);
    for (size_t i = 0; i < held; i++)
        pos[i] = (int32_t)(j->n_prompt - held + i); /* the last ones stay */
    for (size_t i = 0; i < j->n_prompt; i++) score[i] = (float)i;
    for (size_t i = 0; i < N_LAYER * N_HEAD_KV; i++)
        heads[i] = (pd_explain_head){held, pos, j->explain_scores ? score : NULL};
    j->result.explain = heads;
}

/* ---- the engine's thread ---- */

static void let_go(pd_job *j, size_t n) {
    pd_buf_add(&j->text, j->held.data, n);
    pd_buf_drop(&j->held, n);
}

/* A direction that the tokens and the pooling tell. */
static void embed(pd_job *j) {
    const size_t d = N_HEAD * HEAD_DIM;
    j->embedding = PD_ARENA_NEW(&j->arena, d, float);
    double sum = 0.0;
    for (size_t i = 0; i < d; i++) {
        const int32_t id = j->prompt[j->pool == PD_POOL_LAST ? j->n_prompt - 1 : i % j->n_prompt];
        j->embedding[i] = 1.0f + (float)((size_t)id * (i + 1) % 17);
        sum += (double)j->embedding[i] * j->embedding[i];
    }
    for (size_t i = 0; i < d; i++) j->embedding[i] = (float)(j->embedding[i] / sqrt(sum));
}

static void finish(pd_job *j, pd_finish f) {
    const uint64_t now = pd_now_ns();
    pd_job_timing *t = &j->result.timing;
    if (f == PD_FINISH_LENGTH || f == PD_FINISH_STOP) {
        j->tail = j->held.len; /* what a stop string did not eat */
        if (j->held.len) let_go(j, j->held.len);
    }
    j->result.finish = f;
    if (j->pool != PD_POOL_NONE) embed(j);
    j->result.scope_tokens = j->n_prompt;
    t->prompt_n = j->shift ? 0 : j->n_prompt;
    t->predicted_n = j->n_out;
    t->queue_ms = j->start_ns ? (double)(j->start_ns - j->submit_ns) * 1e-6 : 0;
    t->prompt_ms = j->first_ns ? (double)(j->first_ns - j->start_ns) * 1e-6 : 0;
    t->predicted_ms = j->first_ns ? (double)(now - j->first_ns) * 1e-6 : 0;
    t->ttft_ms = j->first_ns ? (double)(j->first_ns - j->submit_ns) * 1e-6 : 0;
    write_report(j);
    j->state = PD_JOB_DONE;
}

/* True when a stop string is complete in `held`; what stands before it is let go. */
static bool stop_here(pd_job *j) {
    size_t hold = 0;
    for (size_t i = 0; i < j->n_stop; i++) {
        const char *at = j->held.len ? strstr(j->held.data, j->stop[i]) : NULL;
        if (at) {
            const size_t before = (size_t)(at - j->held.data);
            let_go(j, before);
            pd_buf_clear(&j->held);
            j->stopped_by = j->stop[i];
            return true;
        }
        for (size_t n = strlen(j->stop[i]) - 1; n > hold; n--)
            if (n <= j->held.len && memcmp(j->held.data + j->held.len - n, j->stop[i], n) == 0)
                hold = n;
    }
    const size_t partial = pd_utf8_incomplete_tail(j->held.data ? j->held.data : "", j->held.len);
    if (partial > hold) hold = partial;
    if (j->held.len > hold) let_go(j, j->held.len - hold);
    return false;
}

static void emit(pd_job *j) {
    const size_t source = j->n_say ? j->n_say : j->n_prompt;
    int32_t id = '.';
    for (size_t i = 0; i < source; i++) { /* the next plain byte */
        const size_t k = (j->n_out + j->shift + i) % source;
        id = j->n_say ? j->say[k] : j->prompt[k];
        if (id < 256) break;
    }
    if (id >= 256) id = '.';
    for (size_t i = 0; i < j->n_stop_id && j->n_out >= j->min_tokens; i++)
        if (j->stop_id[i] == id) {
            finish(j, PD_FINISH_STOP);
            return;
        }
    const char byte = byte_text[id];
    pd_buf_add(&j->held, &byte, 1);
    const size_t before = j->text.len;
    const bool stopped = stop_here(j);
    if (j->n_ev == j->cap_ev) {
        j->cap_ev = j->cap_ev ? j->cap_ev * 2 : 64;
        j->ev = realloc(j->ev, j->cap_ev * sizeof *j->ev);
        if (!j->ev) abort();
    }
    pd_token_prob *top = NULL;
    if (j->n_logprobs > 0) {
        top = PD_ARENA_NEW(&j->arena, (size_t)j->n_logprobs, pd_token_prob);
        for (int i = 0; i < j->n_logprobs; i++)
            top[i] = (pd_token_prob){(id + i) % N_VOCAB, -0.25f * (float)(i + 1) / (float)(1 + j->shift)};
    }
    j->ev[j->n_ev++] = (pd_token_event){id,
                                        -0.25f / (float)(1 + j->shift), /* a later answer is a better one */
                                        (uint32_t)before,
                                        (uint32_t)(j->text.len - before),
                                        top,
                                        j->n_logprobs > 0 ? (uint32_t)j->n_logprobs : 0};
    j->n_out++;
    j->e->stats.generated_tokens++;
    if (stopped) finish(j, PD_FINISH_STOP);
}

/* Advance one job; true when its caller should be told. */
static bool step(pd_job *j, uint64_t now) {
    pd_engine *e = j->e;
    if (j->cancel || e->closing) {
        finish(j, PD_FINISH_CANCELLED);
        return true;
    }
    switch (j->state) {
    case PD_JOB_QUEUED:
        if (e->stats.running >= e->info.parallel) return false;
        e->stats.running++;
        e->stats.waiting--;
        j->state = PD_JOB_PREFILL;
        j->start_ns = now;
        j->due_ns = now + (uint64_t)(j->prefill_ms * 1e6);
        return true;
    case PD_JOB_PREFILL:
        if (now < j->due_ns) return false;
        e->stats.prompt_tokens += j->n_prompt;
        j->first_ns = now;
        j->state = PD_JOB_DECODE;
        if (j->explain || j->max_tokens == 0) {
            finish(j, PD_FINISH_LENGTH);
            return true;
        }
        break;
    default: break;
    }
    if (now < j->due_ns) return false;
    j->due_ns = now + (uint64_t)(j->step_ms * 1e6);
    if (j->error_after >= 0 && (long)j->n_out >= j->error_after) {
        pd_fail(&j->result.err, PD_EINTERNAL, NULL,
                "the fake engine fails after %ld tokens as told", j->error_after);
        finish(j, PD_FINISH_ERROR);
    } else if (j->eos_after >= 0 && (long)j->n_out >= j->eos_after && j->n_out >= j->min_tokens && !j->ignore_eos) {
        finish(j, PD_FINISH_STOP);
    } else {
        emit(j);
        if (j->state != PD_JOB_DONE && j->n_out >= j->max_tokens) finish(j, PD_FINISH_LENGTH);
    }
    return true;
}

static void job_unref_locked(pd_job *j) {
    if (--j->refs > 0) return;
    for (size_t i = 0; i < j->n_stop; i++) free(j->stop[i]);
    free(j->prompt);
    free(j->say);
    free(j->ev);
    pd_buf_done(&j->text);
    pd_buf_done(&j->held);
    pd_arena_done(&j->arena);
    pd_compression_close(j->compression);
    free(j);
}

static void *engine_main(void *arg) {
    pd_engine *e = arg;
    pthread_mutex_lock(&e->lock);
    while (!e->closing || e->jobs) {
        e->stats.decode_steps++;
        const uint64_t now = pd_now_ns();
        e->stats.last_step_ns = now;
        uint64_t resident = 0, dense = 0;
        for (pd_job **at = &e->jobs; *at;) {
            pd_job *j = *at;
            const pd_job_state before = j->state;
            const bool tell = step(j, now);
            if (j->state == PD_JOB_DONE) {
                if (before == PD_JOB_QUEUED) e->stats.waiting--;
                else e->stats.running--;
                *at = j->next;
            } else {
                at = &j->next;
            }
            const bool done = j->state == PD_JOB_DONE;
            /* As the real engine may, it calls notify without any lock of the job's state. */
            if (tell) {
                pthread_mutex_unlock(&e->lock);
                j->notify(j->notify_arg, j);
                pthread_mutex_lock(&e->lock);
            }
            if (done) job_unref_locked(j);
            if (tell)
                at = &e->jobs; /* the list may have changed: each job steps once per `now` by due_ns
                                */
            if (tell && !done && j->step_ms <= 0 && j->due_ns <= now) j->due_ns = now + 1;
        }
        for (const pd_job *j = e->jobs; j; j = j->next) {
            if (j->state == PD_JOB_QUEUED) continue;
            resident += pages_of(j->n_prompt + j->n_out) * PAGE_BYTES;
            dense += (j->n_prompt + j->n_out) * TOKEN_BYTES;
        }
        e->stats.pages_seq = resident / PAGE_BYTES;
        e->stats.pages_free = e->stats.pages_total - e->stats.pages_seq;
        e->stats.kv_bytes_resident = resident;
        e->stats.kv_bytes_dense = dense;
        if (resident > e->stats.kv_bytes_peak) e->stats.kv_bytes_peak = resident;
        if (e->closing) continue;
        if (e->jobs) { /* a sleep without the lock: a wait whose time is over would starve the
                          others */
            const struct timespec nap = {0, STEP_US * 1000L};
            pthread_mutex_unlock(&e->lock);
            nanosleep(&nap, NULL);
            pthread_mutex_lock(&e->lock);
        } else {
            pthread_cond_wait(&e->wake, &e->lock);
        }
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

/* ---- the interface ---- */

pd_status pd_engine_open(pd_engine **ret, const pd_engine_opts *o,
                         void (*progress)(void *arg, double done), void *arg, pd_err *err) {
    const char *ms = getenv("FAKE_ENGINE_LOAD_MS");
    const long wait = ms ? strtol(ms, NULL, 10) : 0;
    for (long i = 0; i < wait; i += 10) {
        if (progress) progress(arg, (double)i / (double)wait);
        const struct timespec nap = {0, 10000000};
        nanosleep(&nap, NULL);
    }
    if (strstr(o->model_path, "missing"))
        return pd_fail(err, PD_EFILE, "--model", "%s: no such file", o->model_path);
    pd_engine *e = calloc(1, sizeof *e);
    if (!e) return pd_fail(err, PD_ENOMEM, NULL, "no memory");
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->wake, NULL);
    const uint64_t pool = o->kv_bytes ? o->kv_bytes : (uint64_t)1 << 30;
    e->queue_max = o->queue_max ? o->queue_max : 128;
    e->info = (pd_engine_info){
        .arch = "fake",
        .name = "Fake \"model\"",
        .file_type = "F0",
        .n_params = 135000000,
        .weight_bytes = 1024,
        .n_layer = N_LAYER,
        .n_head = N_HEAD,
        .n_head_kv = N_HEAD_KV,
        .head_dim = HEAD_DIM,
        .n_embd = N_HEAD * HEAD_DIM,
        .n_vocab = N_VOCAB,
        .ctx_train = CTX_TRAIN,
        .ctx_size = o->ctx_size ? o->ctx_size : 8192,
        .parallel = o->parallel ? o->parallel : 16,
        .queue_max = e->queue_max,
        .n_threads = 1,
        .isa = "scalar",
        .compute = o->compute,
        .page_tokens = PAGE_TOKENS,
        .page_bytes = PAGE_BYTES,
        .kv_token_bytes = TOKEN_BYTES,
        .kv_pool_bytes = pool,
        .chat_template = "chatml",
        .chat_origin = PD_CHAT_FROM_FILE,
        .press_model = {N_LAYER, N_HEAD, N_HEAD_KV, HEAD_DIM, N_HEAD * HEAD_DIM, 2 * N_HEAD * HEAD_DIM, NULL},
    };
    e->stats.pages_total = e->stats.pages_free = pool / PAGE_BYTES;
    if (pthread_create(&e->thread, NULL, engine_main, e) != 0) abort();
    *ret = e;
    return PD_OK;
}

void pd_engine_close(pd_engine *e) {
    if (!e) return;
    pthread_mutex_lock(&e->lock);
    e->closing = true;
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
    pthread_mutex_destroy(&e->lock);
    pthread_cond_destroy(&e->wake);
    free(e);
}

const char *pd_job_stop_string(const pd_job *j) {
    return pd_job_get_state(j) == PD_JOB_DONE ? j->stopped_by : NULL;
}

const float *pd_job_embedding(const pd_job *j) {
    return pd_job_get_state(j) == PD_JOB_DONE && j->result.finish == PD_FINISH_LENGTH ? j->embedding : NULL;
}

const pd_engine_info *pd_engine_get_info(const pd_engine *e) { return &e->info; }
const pd_tokenizer *pd_engine_tokenizer(const pd_engine *e) { return &the_tokenizer; }
const pd_chat *pd_engine_chat(const pd_engine *e) { return &the_chat; }

/* The number behind "@@name=" in the prompt, else `otherwise`. */
static double word(const char *text, const char *name, double otherwise) {
    char key[32];
    snprintf(key, sizeof key, "@@%s=", name);
    const char *at = strstr(text, key);
    return at ? strtod(at + strlen(key), NULL) : otherwise;
}

static void read_script(pd_job *j) {
    char *text = malloc(j->n_prompt + 1);
    if (!text) abort();
    for (size_t i = 0; i < j->n_prompt; i++)
        text[i] = j->prompt[i] > 0 && j->prompt[i] < 256 ? (char)j->prompt[i] : ' ';
    text[j->n_prompt] = '\0';
    j->prefill_ms = word(text, "prefill", 0);
    j->step_ms = word(text, "step", 0);
    j->eos_after = (long)word(text, "eos", -1);
    j->error_after = (long)word(text, "error", -1);
    const char *say = strstr(text, "@@say=");
    if (say) {
        say += 6;
        j->say = malloc(strlen(say) / 2 + 1);
        if (!j->say) abort();
        unsigned byte;
        while (isxdigit((unsigned char)say[0]) && isxdigit((unsigned char)say[1]) &&
               sscanf(say, "%2x", &byte) == 1) {
            j->say[j->n_say++] = (unsigned char)byte;
            say += 2;
        }
    }
    j->longer = (size_t)word(text, "longer", 0);
    j->busy_step = strstr(text, "@@busy") != NULL;
    free(text);
}

pd_status pd_engine_submit(pd_engine *e, const pd_job_params *p, pd_job **ret, pd_err *err) {
    return pd_engine_submit_n(e, p, 1, &(pd_choice){p->sampling.seed, p->notify_arg}, ret, err);
}

static pd_status submit_one(pd_engine *e, const pd_job_params *p, size_t shift, pd_job **ret, pd_err *err);

pd_status pd_engine_prepare_grammar(pd_engine *e, pd_err *err) {
    (void)err;
    atomic_store(&e->grammar_ready, true);
    return PD_OK;
}

/* Each answer is a job of its own; only the first has the compression. */
pd_status pd_engine_submit_n(pd_engine *e, const pd_job_params *p, size_t n, const pd_choice *choice, pd_job **ret, pd_err *err) {
    const uint64_t bytes = (uint64_t)pages_of(p->n_tokens) * PAGE_BYTES * n;
    if (p->grammar && !atomic_load(&e->grammar_ready)) /* the real one would hold up the loop */
        return pd_fail(err, PD_EINTERNAL, "grammar", "a job with a grammar that nobody prepared");
    if (n > 1 && bytes > e->info.kv_pool_bytes)
        return pd_fail(err, PD_EBUDGET, "n", "%zu answers need %llu bytes of KV cache; the pool has %llu", n,
                       (unsigned long long)bytes, (unsigned long long)e->info.kv_pool_bytes);
    for (size_t i = 0; i < n; i++) {
        pd_job_params one = *p;
        one.notify_arg = choice[i].notify_arg;
        one.follows = p->follows || i > 0;
        if (i) one.compression = NULL;
        PD_TRY(submit_one(e, &one, i, &ret[i], err)); /* only the first can be refused */
    }
    return PD_OK;
}

static pd_status submit_one(pd_engine *e, const pd_job_params *p, size_t shift, pd_job **ret, pd_err *err) {
    const size_t ctx = e->info.ctx_size;
    const size_t want = p->max_given ? p->max_tokens : 1;
    if (p->n_tokens > ctx || want > ctx - p->n_tokens) {
        if (err) err->n_prompt_tokens = p->n_tokens, err->n_ctx = ctx;
        return pd_fail(err, PD_ECONTEXT, "max_tokens",
                       "%zu prompt tokens and %zu to generate exceed the context of %zu",
                       p->n_tokens, want, ctx);
    }
    const uint64_t bytes = (uint64_t)pages_of(p->n_tokens) * PAGE_BYTES;
    if (!p->compression && bytes > e->info.kv_pool_bytes)
        return pd_fail(err, PD_EBUDGET, "prompt",
                       "the prompt needs %llu bytes of KV cache; the pool has %llu",
                       (unsigned long long)bytes, (unsigned long long)e->info.kv_pool_bytes);
    pd_job *j = calloc(1, sizeof *j);
    if (!j || !(j->prompt = malloc(p->n_tokens * sizeof *j->prompt))) abort();
    memcpy(j->prompt, p->tokens, p->n_tokens * sizeof *j->prompt);
    j->n_prompt = p->n_tokens;
    read_script(j);
    pthread_mutex_lock(&e->lock);
    if (e->closing || (j->busy_step && shift == 0) || (!p->follows && e->stats.waiting >= e->queue_max)) {
        const bool closing = e->closing;
        pthread_mutex_unlock(&e->lock);
        free(j->prompt);
        free(j->say);
        free(j);
        return closing ? pd_fail(err, PD_EUNAVAIL, NULL, "the engine is closing")
                       : pd_fail(err, PD_EBUSY, NULL, "%u requests are waiting; the queue is full",
                                 e->queue_max);
    }
    j->e = e;
    j->refs = 2;
    j->max_tokens = p->max_given ? p->max_tokens : ctx - p->n_tokens;
    j->max_tokens += shift * j->longer;
    j->shift = shift;
    j->n_stop = p->n_stop;
    for (size_t i = 0; i < p->n_stop; i++) j->stop[i] = strndup(p->stop[i].text, p->stop[i].len);
    j->n_stop_id = p->n_stop_id;
    if (p->n_stop_id) memcpy(j->stop_id, p->stop_id, p->n_stop_id * sizeof *p->stop_id);
    j->min_tokens = p->adjust.min_tokens;
    j->n_logprobs = p->n_logprobs;
    j->ignore_eos = p->ignore_eos;
    j->pool = p->pool;
    if (p->score) score(j, p->score_top);
    j->explain = p->explain;
    j->explain_scores = p->explain_scores;
    j->verbose = p->verbose;
    j->compression = p->compression;
    j->notify = p->notify;
    j->notify_arg = p->notify_arg;
    j->submit_ns = pd_now_ns();
    pd_job **at = &e->jobs;
    while (*at) at = &(*at)->next;
    *at = j;
    e->stats.waiting++;
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->lock);
    *ret = j;
    return PD_OK;
}

void pd_job_cancel(pd_job *j) {
    pthread_mutex_lock(&j->e->lock);
    j->cancel = true;
    pthread_cond_signal(&j->e->wake);
    pthread_mutex_unlock(&j->e->lock);
}

void pd_job_unref(pd_job *j) {
    if (!j) return;
    pthread_mutex_t *lock = &j->e->lock;
    pthread_mutex_lock(lock);
    job_unref_locked(j);
    pthread_mutex_unlock(lock);
}

/* Prompt token i is worth -i/8, its alternatives are the ids behind it. */
static void score(pd_job *j, size_t n_top) {
    j->scored = pd_arena_zalloc(&j->arena, j->n_prompt, sizeof *j->scored);
    for (size_t i = 0; i < j->n_prompt; i++) {
        j->scored[i].id = j->prompt[i];
        if (i == 0) continue;
        pd_token_prob *top = PD_ARENA_NEW(&j->arena, n_top ? n_top : 1, pd_token_prob);
        for (size_t k = 0; k < n_top; k++)
            top[k] = (pd_token_prob){(j->prompt[i] + 1 + (int32_t)k) % N_VOCAB, -0.125f * (float)(i + k) / 2.0f};
        j->scored[i] = (pd_scored){j->prompt[i], -0.125f * (float)i, (uint32_t)i + 1, (uint32_t)n_top, top};
    }
}

const pd_scored *pd_job_scored(const pd_job *j) {
    return pd_job_get_state(j) >= PD_JOB_DECODE ? j->scored : NULL;
}

size_t pd_job_prompt_tokens(const pd_job *j) { return j->n_prompt; }

pd_job_state pd_job_get_state(const pd_job *j) {
    pthread_mutex_lock(&j->e->lock);
    const pd_job_state s = j->state;
    pthread_mutex_unlock(&j->e->lock);
    return s;
}

size_t pd_job_take(pd_job *j, pd_token_event *ev, size_t cap, pd_buf *text, size_t *tail_len) {
    pthread_mutex_lock(&j->e->lock);
    size_t n = 0;
    *tail_len = 0;
    while (n < cap && j->taken < j->n_ev) {
        ev[n] = j->ev[j->taken++];
        ev[n].text_off = (uint32_t)text->len;
        if (ev[n].text_len) pd_buf_add(text, j->text.data + j->text_taken, ev[n].text_len);
        j->text_taken += ev[n].text_len;
        n++;
    }
    if (j->state == PD_JOB_DONE && j->taken == j->n_ev && j->tail) {
        *tail_len = j->tail;
        pd_buf_add(text, j->text.data + j->text_taken, j->tail);
        j->tail = 0;
    }
    pthread_mutex_unlock(&j->e->lock);
    return n;
}

const pd_job_result *pd_job_get_result(const pd_job *j) {
    return pd_job_get_state(j) == PD_JOB_DONE ? &j->result : NULL;
}

uint64_t pd_engine_forecast_bytes(const pd_engine *e, const pd_job *job, double ratio) {
    return (uint64_t)pages_of(pd_budget_keep(&(pd_budget){.ratio = ratio}, job->n_prompt)) * job->result.kv.page_bytes;
}

void pd_engine_get_stats(const pd_engine *e, pd_engine_stats *ret) {
    pthread_mutex_t *lock = (pthread_mutex_t *)(uintptr_t)&e->lock;
    pthread_mutex_lock(lock);
    *ret = e->stats;
    pthread_mutex_unlock(lock);
}
