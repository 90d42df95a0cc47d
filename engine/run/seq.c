/* SPDX-License-Identifier: Apache-2.0 */
/* Sequences and the engine thread's scratch (see seq.h). */
#include "engine/run/compare.h"

#include "engine/base/num.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { HYSTERESIS_BYTES = 512 << 10 };

pd_status pd_run_init(pd_run *r, const pd_model *m, const pd_kernels *kern, pd_workers *workers,
                      pd_kv_type native, uint64_t kv_bytes, size_t parallel, size_t draft_max, size_t ctx, pd_err *err) {
    *r = (pd_run){.model = m, .kern = kern, .workers = workers, .codec = pd_codec_of(native, native), .parallel = parallel,
                  .ctx = ctx, .draft_max = draft_max, .rows = pd_max_size(parallel, 1 + draft_max)};
    const size_t rows = r->rows, heads = m->hp.n_layer * m->hp.n_head_kv;
    pd_status rc = pd_kvpools_init(&r->pools, &r->codec, m->hp.head_dim, kv_bytes, HYSTERESIS_BYTES, err);
    if (rc == PD_OK) rc = pd_fwd_init(&r->fwd, m, kern, workers, pd_max_size(PD_TILE, rows), err);
    if (rc == PD_OK) rc = pd_attn_init(&r->attn, m, kern, workers, rows, ctx, native == PD_KV_F32, err);
    if (rc == PD_OK) rc = pd_sampler_init(&r->sampler, m->hp.n_vocab, err);
    if (rc != PD_OK) {
        pd_run_done(r);
        return rc;
    }
    r->x = malloc(rows * m->hp.n_embd * sizeof *r->x);
    r->logits = malloc(rows * m->hp.n_vocab * sizeof *r->logits);
    r->top = malloc(PD_LOGPROBS_MAX * sizeof *r->top);
    r->step_row = malloc(rows * sizeof *r->step_row);
    r->step_kv = malloc(rows * sizeof *r->step_kv);
    r->step_sel = malloc(rows * sizeof *r->step_sel);
    r->step_tags = malloc(rows * sizeof *r->step_tags);
    r->step_pos = malloc(rows * sizeof *r->step_pos);
    bool views = true;
    for (size_t i = 0; i <= draft_max && draft_max; i++) {
        r->step_view[i].head = calloc(heads, sizeof(pd_kv_head));
        views = views && r->step_view[i].head;
    }
    if (r->x && r->logits && r->top && r->step_row && r->step_kv && r->step_sel && r->step_tags && r->step_pos && views) return PD_OK;
    pd_run_done(r);
    return pd_fail(err, PD_ENOMEM, NULL, "no memory for %zu parallel sequences", parallel);
}

void pd_run_done(pd_run *r) {
    free(r->x);
    free(r->logits);
    free(r->top);
    for (size_t i = 0; i <= PD_DRAFT_MAX; i++) free(r->step_view[i].head);
    free(r->step_row);
    free(r->step_kv);
    free(r->step_sel);
    free(r->step_tags);
    free(r->step_pos);
    pd_sampler_done(&r->sampler);
    pd_matchers_done(&r->matchers);
    pd_token_tree_close(r->tree);
    pd_attn_done(&r->attn);
    pd_fwd_done(&r->fwd);
    for (size_t i = 0; i < PD_ROPE_MAX; i++) pd_turns_done(&r->turns[i]);
    pd_arena_done(&r->tmp);
    pd_kvpools_done(&r->pools);
    *r = (pd_run){0};
}

uint64_t pd_run_scratch_bytes(const pd_run *r) {
    return r->fwd.bytes + r->attn.bytes + r->rows * (r->model->hp.n_embd + r->model->hp.n_vocab) * sizeof(float) +
           r->model->hp.n_vocab * (2 * sizeof(float) + sizeof(pd_token_prob));
}

uint64_t pd_dense_bytes(const pd_hparams *hp, size_t n) {
    uint64_t slots = 0;
    for (size_t l = 0; l < hp->n_layer; l++)
        slots += hp->window[l] ? pd_min_size(n, hp->window[l]) : n;
    return slots * hp->n_head_kv * hp->head_dim * 2 * sizeof(uint16_t);
}

/* What the decode press wants kept. */
static pd_status open_decode(pd_seq *s, const size_t *slots, pd_err *err) {
    const pd_hparams *hp = &s->run->model->hp;
    if (s->job->max_tokens == 0 || !pd_admit_rule(s->job, &s->rule)) return PD_OK;
    if (!s->rule.prune->press->running) pd_press_collect_needs(s->rule.prune, &s->needs); /* those read tags alone */
    s->since = calloc(hp->n_layer, sizeof *s->since);
    if (!s->since) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a sequence");
    PD_TRY(pd_tags_init(&s->tags, s->rule.tag, hp, slots, err));
    if (s->rule.tag == PD_TAG_SCORE) { /* scores each token when it is new: no past queries */
        if (!(s->needs.bits & PD_NEEDS_X)) return PD_OK;
        s->x_new = malloc(hp->n_layer * hp->n_embd * sizeof *s->x_new);
        return s->x_new ? PD_OK : pd_fail(err, PD_ENOMEM, NULL, "no memory for a sequence");
    }
    size_t rows = s->needs.bits & PD_NEEDS_Q_TAIL ? s->needs.q_tail : 0;
    if (s->needs.n_moments) rows = pd_max_size(rows, s->rule.n_recent);
    return rows ? pd_qring_init(&s->ring, hp->n_layer, hp->n_head * hp->head_dim, rows, err) : PD_OK;
}

pd_status pd_seq_open(pd_seq *s, pd_run *run, pd_job *job, pd_err *err) {
    const pd_hparams *hp = &run->model->hp;
    *s = (pd_seq){.run = run, .job = job, .rng = {job->sampling.seed}};
    pd_job_ref(job);
    size_t slots[PD_LAYERS_MAX];
    for (size_t l = 0; l < hp->n_layer; l++) slots[l] = pd_admit_list_slots(job, hp, l);
    const pd_codec codec = pd_codec_of(job->kv_key, job->kv_value);
    pd_kvpool *pool;
    PD_TRY(pd_kvpools_get(&run->pools, &codec, hp->head_dim, hp->head_dim, &pool, err));
    PD_TRY(pd_kv_init(&s->kv, pool, &codec, run->kern, hp->n_layer, hp->n_head_kv, hp->head_dim, slots, err));
    pd_codec recent;
    if (job->recent_page_bytes && pd_codec_recent(&codec, &recent)) {
        PD_TRY(pd_kvpools_get(&run->pools, &recent, hp->head_dim, hp->head_dim, &pool, err));
        PD_TRY(pd_kv_hold_recent(&s->kv, pool, &recent, err));
    }
    if (job->latent.rank) {
        PD_TRY(pd_latents_open(s, err));
    } else if (job->pack_page_bytes) {
        const size_t width = pd_kv_pack_width(job->kv_key, job->key_channels, hp->head_dim);
        PD_TRY(pd_kvpools_get(&run->pools, &codec, width, hp->head_dim, &pool, err));
        PD_TRY(pd_kv_set_pack(&s->kv, pool, job->key_channels, err));
    }
    s->shift = calloc(hp->n_layer, sizeof *s->shift);
    s->guard = calloc(hp->n_layer, sizeof *s->guard);
    if (!s->shift || !s->guard) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a sequence");
    for (size_t l = 0; l < hp->n_layer; l++) {
        s->guard[l][0] = (int32_t)job->protect_begin;
        s->guard[l][1] = (int32_t)job->protect_end;
    }
    if (job->explain) {
        s->explain = pd_arena_zalloc(&job->keep, hp->n_layer * hp->n_head_kv, sizeof *s->explain);
        if (!s->explain) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the explanation");
    }
    if (job->score) PD_TRY(pd_score_open(s, err));
    if (job->pool != PD_POOL_NONE) PD_TRY(pd_embed_open(s, err));
    PD_TRY(pd_adjuster_open(&s->adjuster, job, hp->n_vocab, err));
    PD_TRY(pd_constraint_open(&s->constraint, job, run->tree, &run->matchers, err));
    const pd_read_rule read = pd_compression_read(job->comp);
    if (job->max_tokens) PD_TRY(pd_select_init(&s->select, &read, job->comp ? job->comp->seed : 0, hp, slots, err));
    if (job->max_tokens && job->latent.joint) PD_TRY(pd_select_latents(&s->select, &job->latent, job->comp->seed, hp, job->kv_key, slots, err));
    if (read.page_budget && s->select.bound) PD_TRY(pd_kv_bound(&s->kv, read.skip_layers, hp->window, err));
    if (read.exact > 0.0 && s->select.rows) {
        const pd_book kind = {hp->head_dim, read.sub, read.n_centroid, read.book, read.weight};
        PD_TRY(pd_attn_hold_tables(&run->attn, hp->head_dim / read.sub * read.n_centroid, err));
        PD_TRY(pd_kv_index(&s->kv, &kind, hp->window, err));
    }
    PD_TRY(open_decode(s, slots, err));
    /* A decode press watches every token, and what a step reads is chosen for one. */
    if (!run->draft_max || job->max_tokens < 2 || s->rule.prune || s->select.rows) return PD_OK;
    return pd_draft_init(&s->draft, job->tokens, job->n_tokens, job->max_tokens, run->draft_max, err);
}

static void report_reads(const pd_seq *s, pd_kv_report *r) {
    const pd_select *sel = &s->select;
    for (size_t l = 0; l < sel->n_layer && sel->rows; l++) {
        r->rows += sel->rows[l];
        r->rows_key += sel->keys[l];
        r->rows_value += sel->values[l];
    }
    r->bytes_bounds = pd_bounds_bytes(&s->kv.bounds) + sel->joint.bytes;
    r->bytes_codes = pd_index_bytes(&s->kv.index);
    const size_t n = 3 * sel->n_layer; /* rows, keys, values: one block */
    uint64_t *rows = s->job->verbose && r->rows ? pd_arena_alloc(&s->job->keep, n, sizeof *rows) : NULL;
    if (!rows) return;
    memcpy(rows, sel->rows, n * sizeof *rows);
    r->layer_rows = rows;
    r->layer_rows_key = rows + sel->n_layer;
    r->layer_rows_value = rows + 2 * sel->n_layer;
}

static void report(pd_seq *s) {
    const pd_hparams *hp = &s->run->model->hp;
    pd_job *job = s->job;
    pd_kv_report *r = &job->result.kv;
    const size_t heads = hp->n_layer * hp->n_head_kv;
    r->skipped = job->skipped;
    r->ratio = s->pairs_scope ? 1.0 - s->pairs_kept / (double)s->pairs_scope : 0.0;
    r->tokens_seen = s->n_seen;
    r->tokens_evicted = s->evicted;
    r->bytes = pd_kv_bytes(&s->kv);
    r->bytes_recent = s->kv.n_recent ? s->kv.n_recent * s->kv.recent_pool->page_bytes : 0;
    r->pages = s->kv.n_pages + s->kv.n_pack_pages;
    r->bytes_after_prefill = s->bytes_after_prefill;
    r->bytes_peak = s->bytes_peak;
    r->bytes_dense = pd_dense_bytes(hp, s->n_seen);
    r->press_ms = 1e-6 * (double)s->press_ns;
    r->n_layer = hp->n_layer;
    r->n_head_kv = hp->n_head_kv;
    report_reads(s, r);
    double kept = 0.0;
    uint32_t *n = NULL, *pages = NULL;
    uint64_t *bytes = NULL;
    if ((job->verbose || job->explain) && s->kv.head) {
        n = pd_arena_alloc(&job->keep, heads, sizeof *n);
        pages = pd_arena_alloc(&job->keep, heads, sizeof *pages);
        bytes = pd_arena_alloc(&job->keep, heads, sizeof *bytes);
    }
    for (size_t i = 0; s->kv.head && i < heads; i++) {
        kept += s->kv.head[i].n;
        if (n && pages && bytes) {
            n[i] = s->kv.head[i].n;
            pages[i] = s->kv.head[i].n_page;
            bytes[i] = pd_kv_head_bytes(&s->kv, &s->kv.head[i]);
        }
    }
    r->tokens_kept = kept / (double)heads;
    r->tokens_added = (uint64_t)(s->added[1] - s->added[0]);
    if (n && pages && bytes) {
        r->kept = n;
        r->head_pages = pages;
        r->head_bytes = bytes;
    }
    job->result.explain = s->explain;
    pd_compare_report(job);
}

void pd_seq_close(pd_seq *s, pd_finish finish, const pd_err *err) {
    pd_seq_note_peak(s, 0);
    report(s);
    pd_kv_done(&s->kv); /* pages first: who sees DONE sees them free */
    assert(pd_kvpools_check(&s->run->pools));
    pd_qring_done(&s->ring);
    pd_tags_done(&s->tags);
    pd_select_done(&s->select);
    free(s->since);
    free(s->x_new);
    pd_adjuster_done(&s->adjuster);
    pd_constraint_done(&s->constraint);
    pd_draft_done(&s->draft);
    free(s->shift);
    free(s->guard);
    pd_job *job = s->job;
    *s = (pd_seq){0};
    pd__job_finish(job, finish, err);
    pd_job_unref(job);
}

uint64_t pd_seq_scratch_bytes(const pd_seq *s) {
    return s->ring.bytes + s->tags.bytes + s->select.bytes + pd_kv_centre_bytes(&s->kv) + pd_kv_sink_bytes(&s->kv) + pd_bounds_bytes(&s->kv.bounds) + pd_index_bytes(&s->kv.index) +
           pd_constraint_bytes(&s->constraint) + s->draft.cap * sizeof *s->draft.text;
}

void pd_seq_note_peak(pd_seq *s, uint64_t staging) {
    const uint64_t now = pd_kv_bytes(&s->kv) + staging;
    if (now > s->bytes_peak) s->bytes_peak = now;
}

static bool is_stop_id(const pd_job *job, int32_t id) {
    for (size_t i = 0; i < job->n_stop_id; i++)
        if (job->stop_id[i] == id) return true;
    return false;
}

pd_status pd_seq_sample(pd_seq *s, const float *logits, pd_finish *finish, pd_err *err) {
    pd_job *job = s->job;
    pd_run *run = s->run;
    *finish = PD_FINISH_NONE;
    /* A hidden state that is not finite makes every logit so: one look is enough. */
    if (!isfinite(logits[0])) return pd_fail(err, PD_EINTERNAL, NULL, "the model's output is not finite");
    const float *shaped = pd_adjuster_apply(&s->adjuster, job, logits, run->sampler.adjusted);
    int32_t id;
    if (s->constraint.m)
        PD_TRY(pd_constraint_sample(&s->constraint, job, &run->sampler, run->kern, shaped, &s->rng, &id, err));
    else
        id = pd_sample(&run->sampler, run->kern, shaped, &job->sampling, &s->rng);
    job->t_last = pd_now_ns();
    if (!job->t_first) job->t_first = job->t_last;
    if (id < 0 || (pd_token_is_eog(job->tok, id) && !job->ignore_eos) || is_stop_id(job, id)) {
        job->n_sampled += id >= 0;
        *finish = PD_FINISH_STOP;
        return PD_OK;
    }
    float logprob = 0.0f;
    size_t n_top = 0;
    if (job->n_logprobs >= 0) {
        n_top = pd_min_size((size_t)job->n_logprobs, run->model->hp.n_vocab);
        logprob = pd_logprobs(&run->sampler, run->kern, logits, id, run->top, n_top);
    }
    pd_adjuster_note(&s->adjuster, id);
    pd_draft_note(&s->draft, id);
    PD_TRY(pd__job_emit(job, id, logprob, run->top, n_top, finish, err));
    bool over;
    PD_TRY(pd_constraint_note(&s->constraint, job, id, &over, err));
    if (over) *finish = PD_FINISH_STOP;
    if (*finish == PD_FINISH_NONE && job->n_sampled >= job->max_tokens) *finish = PD_FINISH_LENGTH;
    s->next = id;
    if (*finish == PD_FINISH_NONE && job->notify && job->n_sampled % job->notify_tokens == 0) job->notify(job->notify_arg, job);
    return PD_OK;
}
