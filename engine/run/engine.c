/* SPDX-License-Identifier: Apache-2.0 */
/* The engine from outside: start, stop, submit, look (see engine.h). */
#include "engine/base/num.h"
#include "engine/base/sysmem.h"
#include "engine/run/compare.h"
#include "engine/run/state.h"

#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PARALLEL_DEFAULT = 16, PARALLEL_MAX = 1024, QUEUE_DEFAULT = 128, THREADS_DEFAULT_MAX = 16 };

/* ---- start ---- */

/* The best row of kernels that agrees with scalar code on this CPU. */
static void choose_kernels(pd_engine *e, unsigned mask) {
    unsigned flags = pd_cpu_detect() & mask;
    for (;;) {
        pd_err err = {0};
        pd_kernels_init(&e->kern, flags);
        if (flags == 0 || pd_kernels_selftest(&e->kern, &err) == PD_OK) return;
        snprintf(e->warning, sizeof e->warning, "kernels '%s' disagree with scalar code (%.120s): falling back", e->kern.isa, err.msg);
        unsigned top = 1u << 31;
        while (!(flags & top)) top >>= 1;
        flags &= ~top;
    }
}

/* Old OpenBLAS builds compute wrong results on CPUs newer than they are. */
static pd_status check_blas(pd_err *err) {
    enum { M = 33, N = 47, K = 65 };
    static float a[M * K], b[N * K], c[M * N];
    pd_rng rng = {1};
    for (size_t i = 0; i < M * K; i++) a[i] = pd_rng_f32(&rng);
    for (size_t i = 0; i < N * K; i++) b[i] = pd_rng_f32(&rng);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, M, N, K, 1.0f, a, K, b, K, 0.0f, c, N);
    for (size_t i = 0; i < M; i++) {
        for (size_t j = 0; j < N; j++) {
            double want = 0.0, size = 0.0;
            for (size_t k = 0; k < K; k++) {
                want += (double)a[i * K + k] * b[j * K + k];
                size += fabs((double)a[i * K + k] * b[j * K + k]);
            }
            if (!(fabs(want - c[i * N + j]) <= K * 1.2e-7 * size))
                return pd_fail(err, PD_EINTERNAL, NULL,
                               "OpenBLAS computes wrong products on this CPU; set OPENBLAS_CORETYPE (e.g. Haswell) or use a newer OpenBLAS");
        }
    }
    return PD_OK;
}

static uint64_t default_kv_bytes(const pd_engine *e) {
    const uint64_t limit = pd_sysmem_limit(), weights = e->model->weight_bytes;
    const uint64_t half = limit > weights ? (limit - weights) / 2 : 0;
    return half > (64u << 20) ? half : 64u << 20;
}

static void fill_info(pd_engine *e, const pd_engine_opts *o, pd_chat_origin origin) {
    const pd_model *m = e->model;
    const pd_hparams *hp = &m->hp;
    e->info = (pd_engine_info){
        .arch = m->arch->name, .name = m->name, .file_type = m->file_type,
        .n_params = m->n_params, .weight_bytes = m->weight_bytes,
        .n_layer = hp->n_layer, .n_head = hp->n_head, .n_head_kv = hp->n_head_kv,
        .head_dim = hp->head_dim, .n_embd = hp->n_embd, .n_vocab = hp->n_vocab,
        .ctx_train = hp->ctx_train, .ctx_size = o->ctx_size ? o->ctx_size : hp->ctx_train,
        .parallel = o->parallel ? o->parallel : PARALLEL_DEFAULT,
        .queue_max = o->queue_max ? o->queue_max : QUEUE_DEFAULT,
        .n_threads = pd_workers_count(e->workers), .isa = e->kern.isa, .compute = o->compute,
        .warning = e->warning[0] ? e->warning : NULL,
        .page_tokens = PD_PAGE_TOKENS,
        .kv_token_bytes = hp->n_layer * hp->n_head_kv * hp->head_dim * 2 * sizeof(uint16_t),
        .chat_template = e->chat ? pd_chat_name(e->chat) : NULL, .chat_origin = origin,
        .press_model = {hp->n_layer, hp->n_head, hp->n_head_kv, hp->head_dim, hp->n_embd, hp->n_ff, NULL},
    };
}

static pd_status open_press_data(pd_engine *e, const pd_engine_opts *o, const pd_gguf *g, pd_err *err) {
    if (!o->press_data || !*o->press_data) return PD_OK;
    uint64_t key = 0;
    PD_TRY(pd_model_key(g, &key, err));
    PD_TRY(pd_press_data_load(&e->press_data, o->press_data, &e->info.press_model, key, err));
    e->info.press_model.data = e->press_data;
    return PD_OK;
}

/* Behind what else start-up found. */
static void warn(pd_engine *e, const char *text) {
    const size_t n = strlen(e->warning);
    snprintf(e->warning + n, sizeof e->warning - n, "%s%s", n ? "; " : "", text);
}

static pd_status open_tokenizer(pd_engine *e, const pd_gguf *g, const char *chat, pd_chat_origin *origin, pd_err *err) {
    PD_TRY(pd_tokenizer_open(&e->tok, g, err));
    pd_err none = {0};
    const pd_status rc = pd_chat_open(&e->chat, g, chat, origin, &none);
    if (rc == PD_OK) {
        if (pd_chat_warning(e->chat)) warn(e, pd_chat_warning(e->chat));
        return PD_OK;
    }
    if (chat && *chat) return pd_fail(err, none.code, "chat-template", "%s", none.msg);
    /* Completions work without a template; chat requests get this answer. */
    e->chat = NULL;
    warn(e, none.msg);
    return PD_OK;
}

static pd_status start(pd_engine *e, const pd_engine_opts *o, const pd_gguf *g,
                       void (*progress)(void *, double), void *arg, pd_err *err) {
    if (o->parallel > PARALLEL_MAX)
        return pd_fail(err, PD_EINVAL, "parallel", "parallel must be 1..%d, not %u", PARALLEL_MAX, o->parallel);
    if (o->draft_tokens > PD_DRAFT_MAX)
        return pd_fail(err, PD_EINVAL, "draft-tokens", "draft-tokens must be 0..%d, not %u", PD_DRAFT_MAX, o->draft_tokens);
    openblas_set_num_threads(1); /* our threads do the splitting */
    PD_TRY(check_blas(err));
    choose_kernels(e, o->cpu_mask);
    unsigned threads = o->n_threads;
    if (threads == 0) threads = (unsigned)pd_min_size(pd_cpu_count(), THREADS_DEFAULT_MAX);
    PD_TRY(pd_workers_open(&e->workers, threads, err));
    pd_chat_origin origin = PD_CHAT_FROM_FILE;
    PD_TRY(open_tokenizer(e, g, o->chat_template, &origin, err));
    const pd_mat_form form = o->compute == PD_COMPUTE_F32 ? PD_FORM_F32 : PD_FORM_PACKED;
    PD_TRY(pd_model_open(&e->model, g, form, o->ctx_size, e->workers, progress, arg, err));
    if (pd_tokenizer_get_info(e->tok)->n_vocab > e->model->hp.n_vocab)
        return pd_fail(err, PD_EFILE, NULL, "the vocabulary has %u tokens, the embedding matrix %zu rows",
                       pd_tokenizer_get_info(e->tok)->n_vocab, e->model->hp.n_vocab);
    fill_info(e, o, origin);
    PD_TRY(open_press_data(e, o, g, err));
    if (e->info.ctx_size < 16 || e->info.ctx_size > (1u << 24))
        return pd_fail(err, PD_EINVAL, "ctx-size", "ctx-size %zu is not in 16..%u", e->info.ctx_size, 1u << 24);
    const pd_kv_type native = o->compute == PD_COMPUTE_F32 ? PD_KV_F32 : PD_KV_F16;
    PD_TRY(pd_run_init(&e->run, e->model, &e->kern, e->workers, native, o->kv_bytes ? o->kv_bytes : default_kv_bytes(e),
                       e->info.parallel, o->draft_tokens, e->info.ctx_size, err));
    e->info.page_bytes = pd_codec_page_bytes(&e->run.codec, e->info.head_dim, e->info.head_dim);
    e->info.kv_pool_bytes = e->run.pools.max_bytes;
    e->seq = calloc(e->info.parallel, sizeof *e->seq);
    if (!e->seq) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the batch");
    pthread_mutex_init(&e->lock, NULL);
    pthread_mutex_init(&e->tree_lock, NULL);
    pthread_cond_init(&e->wake, NULL);
    e->sync_ready = true;
    e->inbox_end = &e->inbox;
    e->ready_end = &e->ready;
    if (pthread_create(&e->thread, NULL, pd__engine_main, e) != 0)
        return pd_fail(err, PD_ENOMEM, NULL, "cannot start the engine thread");
    e->thread_started = true;
    return PD_OK;
}

pd_status pd_engine_open(pd_engine **ret, const pd_engine_opts *opts, void (*progress)(void *arg, double done), void *arg, pd_err *err) {
    pd_engine *e = aligned_alloc(64, (sizeof *e + 63) / 64 * 64);
    if (!e) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the engine");
    memset(e, 0, sizeof *e);
    pd_gguf *g;
    pd_status rc = pd_gguf_open(&g, opts->model_path, err);
    if (rc == PD_OK) {
        rc = start(e, opts, g, progress, arg, err);
        pd_gguf_close(g);
    }
    if (rc != PD_OK) {
        pd_engine_close(e);
        return rc;
    }
    *ret = e;
    return PD_OK;
}

void pd_engine_close(pd_engine *e) {
    if (!e) return;
    if (e->thread_started) {
        pthread_mutex_lock(&e->lock);
        e->stop = true;
        pthread_cond_signal(&e->wake);
        pthread_mutex_unlock(&e->lock);
        pthread_join(e->thread, NULL);
    }
    if (e->sync_ready) {
        pthread_cond_destroy(&e->wake);
        pthread_mutex_destroy(&e->lock);
        pthread_mutex_destroy(&e->tree_lock);
    }
    free(e->seq);
    pd_workers_close(e->workers); /* which look ahead into the model while they wait */
    if (e->run.model) pd_run_done(&e->run);
    pd_model_close(e->model);
    pd_chat_close(e->chat);
    pd_tokenizer_close(e->tok);
    pd_press_data_close(e->press_data);
    free(e);
}

/* ---- look ---- */

const pd_engine_info *pd_engine_get_info(const pd_engine *e) {
    return &e->info;
}

const pd_tokenizer *pd_engine_tokenizer(const pd_engine *e) {
    return e->tok;
}

const pd_chat *pd_engine_chat(const pd_engine *e) {
    return e->chat;
}

uint64_t pd_engine_forecast_bytes(const pd_engine *e, const pd_job *job, double ratio) {
    return pd_admit_forecast(job, &e->model->hp, ratio);
}

void pd_engine_get_stats(const pd_engine *e, pd_engine_stats *ret) {
    const pd_kvpools *p = &e->run.pools;
    const uint64_t page = e->info.page_bytes;
    const uint64_t seq = pd_kvpools_held(p, PD_PAGE_SEQ), store = pd_kvpools_held(p, PD_PAGE_STORE);
    *ret = (pd_engine_stats){
        .pages_total = p->max_bytes / page, .pages_seq = pd_div_up(seq, page), .pages_store = pd_div_up(store, page),
        .kv_bytes_resident = seq + store, .kv_bytes_dirty = pd_kvpools_dirty(p),
        .kv_bytes_staging = atomic_load(&e->c_staging), .kv_bytes_dense = atomic_load(&e->c_dense),
        .kv_bytes_peak = atomic_load(&e->c_peak), .scratch_bytes = atomic_load(&e->c_scratch),
        .running = atomic_load(&e->n_running), .waiting = atomic_load(&e->n_waiting),
        .prompt_tokens = atomic_load(&e->c_prompt), .generated_tokens = atomic_load(&e->c_generated),
        .drafted_tokens = atomic_load(&e->c_drafted), .draft_taken_tokens = atomic_load(&e->c_draft_taken),
        .decode_steps = atomic_load(&e->c_steps), .prefill_units = atomic_load(&e->c_units),
        .last_step_ns = atomic_load(&e->c_alive),
    };
    ret->pages_free = ret->pages_total - pd_min_size(ret->pages_total, ret->pages_seq + ret->pages_store);
    uint64_t type[2][PD_KV_ALL];
    pd_kvpools_by_type(p, type);
    memcpy(ret->kv_bytes_type, type, sizeof type);
}

/* ---- submit ---- */

static pd_status check_id(const pd_engine *e, const char *field, size_t i, int32_t id, pd_err *err) {
    if (id >= 0 && (size_t)id < e->info.n_vocab) return PD_OK;
    return pd_fail(err, PD_EINVAL, field, "%s[%zu] is token %d; the vocabulary has 0..%zu", field, i, id, e->info.n_vocab - 1);
}

static pd_status check_params(const pd_engine *e, const pd_job_params *p, pd_err *err) {
    if (p->n_tokens == 0) return pd_fail(err, PD_EINVAL, "prompt", "the prompt is empty: at least one token is needed");
    for (size_t i = 0; i < p->n_tokens && p->n_tokens <= e->info.ctx_size; i++) PD_TRY(check_id(e, "prompt", i, p->tokens[i], err));
    if (p->n_stop > PD_STOP_MAX) return pd_fail(err, PD_EINVAL, "stop", "stop has %zu entries; at most %d are allowed", p->n_stop, PD_STOP_MAX);
    for (size_t i = 0; i < p->n_stop; i++)
        if (p->stop[i].len == 0 || p->stop[i].len > PD_STOP_BYTES_MAX)
            return pd_fail(err, PD_EINVAL, "stop", "stop[%zu] has %zu bytes; 1 to %d are allowed", i, p->stop[i].len, PD_STOP_BYTES_MAX);
    if (p->n_stop_id > PD_STOP_IDS_MAX)
        return pd_fail(err, PD_EINVAL, "stop_token_ids", "stop_token_ids has %zu entries; at most %d are allowed", p->n_stop_id, PD_STOP_IDS_MAX);
    for (size_t i = 0; i < p->n_stop_id; i++) PD_TRY(check_id(e, "stop_token_ids", i, p->stop_id[i], err));
    if (p->adjust.n_bias > PD_BIAS_MAX)
        return pd_fail(err, PD_EINVAL, "logit_bias", "logit_bias has %zu entries; at most %d are allowed", p->adjust.n_bias, PD_BIAS_MAX);
    for (size_t i = 0; i < p->adjust.n_bias; i++) PD_TRY(check_id(e, "logit_bias", i, p->adjust.bias[i].id, err));
    if (p->pool != PD_POOL_NONE && (p->compression || p->explain || !p->max_given || p->max_tokens > 0))
        return pd_fail(err, PD_EINVAL, "pooling", "an embedding is asked for with max_tokens %zu%s; it has no answer and no press", p->max_tokens,
                       p->compression ? " and a press" : "");
    if (p->n_logprobs > PD_LOGPROBS_MAX)
        return pd_fail(err, PD_EINVAL, "logprobs", "%d logprobs asked for; at most %d are given", p->n_logprobs, PD_LOGPROBS_MAX);
    if (p->score && (p->score_top > PD_LOGPROBS_MAX || p->n_tokens > PD_SCORED_MAX / (1 + p->score_top)))
        return pd_fail(err, PD_EINVAL, "logprobs", "%zu prompt tokens with %zu alternatives each; at most %d alternatives and %d log probabilities are given",
                       p->n_tokens, p->score_top, PD_LOGPROBS_MAX, PD_SCORED_MAX);
    return PD_OK;
}

static uint64_t need_bytes(const pd_engine *e, const pd_job *job) {
    return job->n_choice * pd__job_reserved(job) + job->staging_bytes + e->info.n_threads * job->thread_bytes;
}

/* Most tokens to generate when the client left it open: the context's rest, or
 * what an empty pool could hold if that is less. */
static pd_status open_ended(pd_engine *e, pd_job *job, const pd_job_params *p, pd_err *err) {
    size_t lo = 0, hi = job->max_tokens;
    while (lo < hi) {
        job->max_tokens = lo + (hi - lo + 1) / 2;
        job->skipped = NULL;
        PD_TRY(pd_admit_plan(job, &e->model->hp, p, e->run.codec.key, err));
        if (need_bytes(e, job) <= e->info.kv_pool_bytes)
            lo = job->max_tokens;
        else
            hi = job->max_tokens - 1;
    }
    job->max_tokens = lo ? lo : 1;
    job->skipped = NULL;
    return pd_admit_plan(job, &e->model->hp, p, e->run.codec.key, err);
}

static pd_status plan(pd_engine *e, pd_job *job, const pd_job_params *p, pd_err *err) {
    PD_TRY(pd_admit_plan(job, &e->model->hp, p, e->run.codec.key, err));
    if (!p->max_given && !p->explain && need_bytes(e, job) > e->info.kv_pool_bytes) PD_TRY(open_ended(e, job, p, err));
    if (need_bytes(e, job) > e->info.kv_pool_bytes && job->n_choice > 1)
        return pd_fail(err, PD_EBUDGET, "n",
                       "%zu answers need up to %llu bytes of KV cache (%zu prompt + %zu new tokens each, one dense layer of %llu bytes included); the pool has %llu: "
                       "ask for fewer or shorter ones, or for more compression",
                       job->n_choice, (unsigned long long)need_bytes(e, job), job->n_tokens, job->max_tokens,
                       (unsigned long long)job->staging_bytes, (unsigned long long)e->info.kv_pool_bytes);
    if (need_bytes(e, job) > e->info.kv_pool_bytes)
        return pd_fail(err, PD_EBUDGET, p->max_given ? "max_tokens" : "prompt",
                       "the request needs up to %llu bytes of KV cache (%zu prompt + %zu new tokens, one dense layer of %llu bytes included); the pool has %llu: "
                       "shorten it, or ask for more compression",
                       (unsigned long long)need_bytes(e, job), job->n_tokens, job->max_tokens,
                       (unsigned long long)job->staging_bytes, (unsigned long long)e->info.kv_pool_bytes);
    return PD_OK;
}

/* The press as the reply names it. */
static void name_press(pd_job *job) {
    pd_kv_report *r = &job->result.kv;
    pd_buf text = {0};
    const pd_compression *c = job->comp;
    pd_compression_text(c, &text);
    snprintf(r->press, sizeof r->press, "%s", text.data ? text.data : "none");
    pd_buf_done(&text);
    r->name = pd_compression_name(c);
    r->ratio_requested = c && c->press && c->budget == PD_BUDGET_RATIO ? c->ratio : 0.0;
    r->kv_key = job->kv_key;
    r->kv_value = job->kv_value;
    r->page_bytes = job->page_bytes;
    r->recent_page_bytes = job->recent_page_bytes;
}

pd_status pd_engine_prepare_grammar(pd_engine *e, pd_err *err) {
    pd_status rc = PD_OK;
    pthread_mutex_lock(&e->tree_lock);
    if (!e->run.tree) {
        rc = pd_token_tree_open(&e->run.tree, e->tok, err);
        if (rc == PD_OK) atomic_store_explicit(&e->c_tree, pd_token_tree_bytes(e->run.tree), memory_order_relaxed);
    }
    pthread_mutex_unlock(&e->tree_lock);
    return rc;
}

pd_status pd_engine_submit(pd_engine *e, const pd_job_params *p, pd_job **ret, pd_err *err) {
    return pd_engine_submit_n(e, p, 1, &(pd_choice){p->sampling.seed, p->notify_arg}, ret, err);
}

pd_status pd_engine_submit_n(pd_engine *e, const pd_job_params *p, size_t n, const pd_choice *choice, pd_job **ret, pd_err *err) {
    PD_TRY(check_params(e, p, err));
    if (n < 1 || n > PD_CHOICES_MAX || (n > 1 && (p->explain || p->pool != PD_POOL_NONE)))
        return pd_fail(err, PD_EINVAL, "n", "n is %zu; 1 to %d answers are given, and one explanation or embedding", n, PD_CHOICES_MAX);
    const size_t ctx = e->info.ctx_size, added = pd_admit_added(p->compression), taken = p->n_tokens + added;
    const size_t room = ctx > taken ? ctx - taken : 0;
    const bool wants = !p->explain && !(p->max_given && p->max_tokens == 0);
    if (taken > ctx || (wants && room == 0) || (wants && p->max_given && p->max_tokens > room)) {
        char by_press[48] = "";
        if (added) snprintf(by_press, sizeof by_press, ", its press adds %zu,", added);
        if (err) err->n_prompt_tokens = p->n_tokens, err->n_ctx = ctx;
        return pd_fail(err, PD_ECONTEXT, "prompt", /* clients know the case by the first words, OpenAI's own */
                       "this model's maximum context length is %zu tokens; the request has %zu in the prompt%s and asks for %zu more",
                       ctx, p->n_tokens, by_press, wants && p->max_given ? p->max_tokens : (size_t)wants);
    }
    if (p->grammar) PD_TRY(pd_engine_prepare_grammar(e, err));
    pd_job *job;
    PD_TRY(pd__job_new(&job, p, e->tok, !wants ? 0 : p->max_given ? p->max_tokens : room, err));
    job->n_choice = n;
    job->sampling.seed = choice[0].seed;
    job->notify_arg = choice[0].notify_arg;
    job->engine = e;
    pd_status rc = plan(e, job, p, err);
    job->chat = p->has_marks ? e->chat : NULL;
    if (rc == PD_OK) rc = pd_compare_plan(job, &e->model->hp, p, err);
    if (rc == PD_OK) {
        name_press(job);
        rc = pd__job_fork(job, p, n, choice, ret, err);
    }
    if (rc == PD_OK) {
        pthread_mutex_lock(&e->lock);
        if (e->stop)
            rc = pd_fail(err, PD_EUNAVAIL, NULL, "the server is shutting down");
        else if (!p->follows && atomic_load(&e->n_waiting) >= e->info.queue_max)
            rc = pd_fail(err, PD_EBUSY, NULL, "%u requests are waiting already; try again later", e->info.queue_max);
        if (rc == PD_OK) {
            pd_job_ref(job); /* the engine's */
            *e->inbox_end = job;
            e->inbox_end = &job->next;
            atomic_fetch_add(&e->n_waiting, 1);
            ret[0] = job;
            pthread_cond_signal(&e->wake);
        }
        pthread_mutex_unlock(&e->lock);
    }
    if (rc != PD_OK) {
        pd__job_unfork(job);
        job->comp = NULL; /* still the caller's */
        pd_compare_disown(job);
        pd_job_unref(job);
    }
    return rc;
}

void pd_job_cancel(pd_job *job) {
    if (pd_job_get_state(job) == PD_JOB_DONE) return; /* its engine may be gone */
    atomic_store(&job->cancel, true);
    pd_engine *e = job->engine;
    pthread_mutex_lock(&e->lock);
    atomic_store(&e->nudge, true);
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->lock);
}
