/* SPDX-License-Identifier: Apache-2.0 */
/* Replays: token ids run over the full cache for a press that decides at the
 * context's end (compression/deferred.h).
 *
 * A press that scores layers while they are prefilled is asked here as well.
 * Rows that the press adds come last, as a segment whose keys and values do reach pages,
 * behind the scope's; later tokens stand behind them.
 * A replay is a prefill segment behind the scope whose keys and values never reach
 * pages: they live in the staging layer and the next layer overwrites them.  A unit
 * is one tile of one layer, as in any prefill, so running streams wait no longer.
 * For a press with gradients the rows go back through all layers as well, in units of
 * PD_REVERSE_TILE rows, and are shown then.
 * Cost: a forward pass of the ids, the press's scoring, layers * H * n scores. */
#include "compression/deferred.h"
#include "engine/run/reverse.h"
#include "engine/run/seq.h"

#include "engine/base/clock.h"

#include <cblas.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct pd_replay {
    pd_context c;
    pd_arena keep;
    pd_press_needs needs;
    size_t i;       /* the replay at work */
    const int32_t *ids;
    size_t n_ids;   /* 0: all were run */
    pd_added added; /* n 0: none */
    bool adding;    /* they are at work */
    pd_prefill seg; /* open while n_ids or adding */
    pd_reverse *reverse; /* of the same rows, if the press asks for gradients; or NULL */
    bool backwards;      /* they were run forward */
    size_t bytes;        /* of both, counted with the prompt's hidden states */
};

static const pd_deferred *hooks(const pd_prefill *p, const pd_press_inst **inst) {
    *inst = p->seq->job->comp->press;
    return (*inst)->press->deferred;
}

static pd_status ids_of(const pd_context *c, const char *text, size_t len, unsigned flags, const int32_t **ret, size_t *n,
                        pd_err *err) {
    pd_ids ids = {0};
    pd_status rc = pd_tokenize(c->tok, text, len, flags, &ids, err);
    int32_t *copy = rc == PD_OK ? PD_ARENA_NEW(c->keep, ids.n + 1, int32_t) : NULL;
    if (rc == PD_OK && !copy) rc = pd_fail(err, PD_ENOMEM, NULL, "no memory for a replay's prompt");
    if (copy) {
        if (ids.n) memcpy(copy, ids.id, ids.n * sizeof *copy);
        *ret = copy;
        *n = ids.n;
    }
    pd_ids_done(&ids);
    return rc;
}

static pd_status tokenize(const pd_context *c, const char *text, const int32_t **ids, size_t *n, pd_err *err) {
    return ids_of(c, text, strlen(text), PD_TOK_CONTINUE, ids, n, err);
}

/* What the template puts before and behind a user message.  The prefix is as far as
 * the prompt begins so: with a system message of the client's own it is shorter. */
static pd_status template_marks(pd_context *c, const pd_chat *chat, pd_err *err) {
    static const char mark[] = "dummy context";
    if (!chat) return tokenize(c, "\n", &c->suffix, &c->n_suffix, err);
    pd_buf text = {0};
    const pd_chat_msg msg = {"user", mark};
    const int32_t *prefix = NULL;
    size_t n = 0;
    const pd_chat_talk talk = {.msg = &msg, .n_msg = 1, .add_generation_prompt = true, .now = (int64_t)time(NULL)};
    pd_status rc = pd_chat_render(chat, c->tok, &talk, &text, err);
    const char *at = rc == PD_OK ? memmem(text.data, text.len, mark, sizeof mark - 1) : NULL;
    if (rc == PD_OK && !at) rc = pd_fail(err, PD_EINTERNAL, NULL, "the chat template drops a user message");
    if (rc == PD_OK) rc = ids_of(c, text.data, (size_t)(at - text.data), PD_TOK_BOS | PD_TOK_SPECIAL, &prefix, &n, err);
    if (rc == PD_OK) {
        at += sizeof mark - 1;
        rc = ids_of(c, at, text.len - (size_t)(at - text.data), PD_TOK_SPECIAL | PD_TOK_CONTINUE, &c->suffix, &c->n_suffix, err);
    }
    while (rc == PD_OK && c->n_prefix < n && c->n_prefix + 1 < c->n && prefix[c->n_prefix] == c->tokens[c->n_prefix]) c->n_prefix++;
    pd_buf_done(&text);
    return rc;
}

static pd_status new_context(pd_prefill *p, pd_err *err) {
    struct pd_replay *r = p->replay = calloc(1, sizeof *r);
    if (!r) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a replay");
    pd_seq *s = p->seq;
    const pd_job *job = s->job;
    const pd_hparams *hp = &s->run->model->hp;
    const size_t n = p->seg_end, heads = hp->n_head_kv;
    r->c = (pd_context){.n_layer = hp->n_layer, .n_head = hp->n_head, .n_head_kv = heads, .head_dim = hp->head_dim,
                        .n_embd = hp->n_embd, .attn_scale = hp->attn_scale, .n = n, .tokens = job->tokens,
                        .tokenize = tokenize, .tok = job->tok, .keep = &r->keep};
    r->c.score = pd_arena_zalloc(&r->keep, hp->n_layer * heads, sizeof *r->c.score);
    uint8_t *mask = pd_arena_zalloc(&r->keep, n, 1);
    if (!r->c.score || !mask) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the scores of %zu tokens", n);
    for (size_t i = 0; i < hp->n_layer * heads; i++) {
        if (s->run->model->layer[i / heads].window) continue;
        r->c.score[i] = pd_arena_zalloc(&r->keep, n, sizeof(float));
        if (!r->c.score[i]) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the scores of %zu tokens", n);
    }
    for (size_t i = job->protect_begin; i < job->protect_end && i < n; i++) mask[i] = 1;
    if (job->protect_begin < job->protect_end) r->c.protect = mask;
    return PD_OK;
}

/* The rows that the press adds, if any: behind all replays. */
static pd_status begin_added(pd_prefill *p, struct pd_replay *r, pd_err *err) {
    const pd_press_inst *inst;
    const pd_deferred *d = hooks(p, &inst);
    if (!d->added) return PD_OK;
    d->added(inst, &r->added);
    r->adding = r->added.n > 0;
    if (!r->adding) return PD_OK;
    r->seg = (pd_prefill){.seq = p->seq, .added = &r->added, .replay = r};
    return pd_segment_open(&r->seg, r->c.n, r->c.n + r->added.n, false, err);
}

/* They are in every layer: nobody may drop them, and what comes next stands behind them. */
static void end_added(pd_seq *s, struct pd_replay *r) {
    r->adding = false;
    s->added[0] = (int32_t)r->c.n;
    s->added[1] = (int32_t)(r->c.n + r->added.n);
    for (size_t l = 0; l < r->c.n_layer; l++) s->shift[l] = -(int32_t)r->added.n;
}

/* The ids of replay r->i and their segment; none left: n_ids is 0, and it is the added rows' turn. */
static pd_status begin(pd_prefill *p, struct pd_replay *r, pd_err *err) {
    const pd_press_inst *inst;
    const pd_deferred *d = hooks(p, &inst);
    PD_TRY(d->ids(inst, &r->c, r->i, &r->ids, &r->n_ids, err));
    if (r->n_ids == 0) return begin_added(p, r, err);
    r->seg = (pd_prefill){.seq = p->seq, .ids = r->ids, .replay = r, .to_end = d->gradient};
    PD_TRY(pd_segment_open(&r->seg, r->c.n, r->c.n + r->n_ids, false, err));
    pd_run *run = p->seq->run;
    if (d->gradient) PD_TRY(pd_reverse_open(&r->reverse, &run->fwd, &run->attn, &run->codec, r->n_ids, r->seg.stage.cap, err));
    r->bytes = r->seg.bytes;
    if (d->gradient) r->bytes += pd_reverse_bytes(&run->model->hp, pd_workers_count(run->workers), r->n_ids, r->seg.stage.cap);
    p->bytes += r->bytes;
    return PD_OK;
}

bool pd_replay_scores(const pd_job *job) {
    return job->deferred && job->comp->press->press->deferred->score;
}

pd_status pd_replay_score(pd_prefill *p, const pd_view *view, pd_err *err) {
    if (!p->replay) PD_TRY(new_context(p, err));
    const pd_press_inst *inst;
    const pd_deferred *d = hooks(p, &inst);
    const uint64_t t0 = pd_now_ns();
    PD_TRY(d->score(inst, view, p->replay->c.score + p->layer * view->n_head_kv, err));
    p->seq->press_ns += pd_now_ns() - t0;
    return PD_OK;
}

pd_status pd_replay_open(pd_prefill *p, pd_err *err) {
    if (!p->replay) PD_TRY(new_context(p, err));
    struct pd_replay *r = p->replay;
    p->replaying = true;
    pd_stage_close(&p->stage); /* the replay has its own, as large */
    const pd_press_inst *inst;
    const pd_deferred *d = hooks(p, &inst);
    pd_press_collect_needs(inst, &r->needs);
    if (!d->ids) return begin_added(p, r, err);
    PD_TRY(template_marks(&r->c, p->seq->job->chat, err));
    PD_TRY(d->open(inst, &r->c, err));
    return begin(p, r, err);
}

static void end(pd_prefill *p, struct pd_replay *r) {
    p->bytes -= r->bytes;
    r->bytes = 0;
    pd_segment_close(&r->seg);
    pd_reverse_close(r->reverse);
    r->reverse = NULL;
    r->backwards = false;
}

void pd_replay_close(pd_prefill *p) {
    struct pd_replay *r = p->replay;
    if (!r) return;
    end(p, r);
    pd_arena_done(&r->keep);
    free(r);
    p->replay = NULL;
    p->replaying = false;
}

/* Rows [row0, row0 + n) of a layer to the press; g [n][n_embd] or NULL: their gradients. */
static pd_status show(pd_prefill *seg, size_t layer, size_t row0, size_t n, const float *q, const float *g, pd_err *err) {
    struct pd_replay *r = seg->replay;
    pd_seq *s = seg->seq;
    const size_t heads = r->c.n_head_kv;
    if (!r->c.score[layer * heads]) return PD_OK;
    const uint64_t t0 = pd_now_ns();
    pd_arena *tmp = &s->run->tmp;
    pd_arena_reset(tmp);
    float *grad = g ? PD_ARENA_NEW(tmp, n, float) : NULL;
    if (g && !grad) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a replay");
    for (size_t i = 0; g && i < n; i++) grad[i] = cblas_snrm2((int)r->c.n_embd, g + i * r->c.n_embd, 1);
    const float **k = PD_ARENA_NEW(tmp, heads, const float *), **v = PD_ARENA_NEW(tmp, heads, const float *);
    if (!k || !v) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a replay");
    for (size_t h = 0; h < heads; h++) {
        k[h] = pd_stage_k(&seg->stage, h);
        v[h] = pd_stage_v(&seg->stage, h);
    }
    pd_replay_rows rows = {.layer = layer, .row0 = row0, .n = n, .n_all = r->n_ids, .q = q, .x = g ? NULL : s->run->fwd.h,
                           .grad = grad, .k = k, .v = v, .kern = s->run->kern, .workers = s->run->workers, .tmp = tmp};
    if (r->needs.bits & PD_NEEDS_WO) PD_TRY(pd_presser_wo(s, layer, &rows.wo, err));
    const pd_press_inst *inst;
    const pd_deferred *d = hooks(seg, &inst);
    PD_TRY(d->rows(inst, &r->c, r->i, &rows, err));
    s->press_ns += pd_now_ns() - t0;
    return PD_OK;
}

pd_status pd_replay_rows_seen(pd_prefill *seg, size_t n, pd_err *err) {
    pd_reverse *rev = seg->replay->reverse;
    if (!rev) return show(seg, seg->layer, seg->row, n, seg->seq->run->fwd.q, NULL, err);
    const size_t d = seg->replay->c.n_embd, at = seg->row * d; /* shown on the way back */
    memcpy(pd_reverse_input(rev, seg->layer) + at, seg->x + at, n * d * sizeof(float));
    return PD_OK;
}

static pd_status rows_back(void *seg, size_t layer, size_t row0, size_t n, const float *q, const float *g, pd_err *err) {
    return show(seg, layer, row0, n, q, g, err);
}

/* What the press ranked the prompt by goes on to count where it prunes later as well. */
static void tag_scores(pd_seq *s, const pd_context *c, const pd_press_inst *inst) {
    if (!s->rule.prune || !inst->press->running || s->tags.kind != inst->press->running_tag(inst)) return;
    for (size_t i = 0; i < c->n_layer * c->n_head_kv; i++) {
        float **tag = pd_tags_layer(&s->tags, i / c->n_head_kv);
        if (tag) memcpy(tag[i % c->n_head_kv], c->score[i], c->n * sizeof(float));
    }
}

static pd_status decide(pd_prefill *p, struct pd_replay *r, pd_err *err) {
    pd_seq *s = p->seq;
    const pd_press_inst *inst;
    const pd_deferred *d = hooks(p, &inst);
    const uint64_t t0 = pd_now_ns();
    pd_plan *plan = pd_arena_zalloc(&r->keep, r->c.n_layer, sizeof *plan);
    if (!plan) return pd_fail(err, PD_ENOMEM, NULL, "no memory for plans");
    PD_TRY(pd_context_check(&r->c, inst->press->name, err));
    tag_scores(s, &r->c, inst);
    if (s->rule.prune == inst && !s->rule.interval) return PD_OK; /* waits until somebody needs the memory */
    PD_TRY(d->decide(inst, &r->c, &s->job->budget, plan, err));
    s->press_ns += pd_now_ns() - t0;
    return pd_presser_context(s, &r->c, plan, err);
}

/* The next replay. */
static pd_status next(pd_prefill *p, struct pd_replay *r, pd_err *err) {
    end(p, r);
    r->i++;
    return begin(p, r, err);
}

/* A tile of the replay's way back; its length is its own, so that results do not depend on what else runs. */
static pd_status back_unit(pd_prefill *p, struct pd_replay *r, pd_err *err) {
    pd_prefill *seg = &r->seg;
    bool whole, all;
    const size_t rope = p->seq->run->model->layer[pd_reverse_layer(r->reverse)].rope;
    PD_TRY(pd_reverse_unit(r->reverse, &seg->stage, seg->cos[rope], seg->sin[rope], rows_back, seg, &p->tile, &whole, &all, err));
    if (all) return next(p, r, err);
    if (whole) pd_segment_to_layer(seg, pd_reverse_layer(r->reverse));
    return PD_OK;
}

pd_status pd_replay_unit(pd_prefill *p, size_t rows, bool *done, pd_err *err) {
    struct pd_replay *r = p->replay;
    *done = r->n_ids == 0 && !r->adding;
    if (*done) {
        PD_TRY(decide(p, r, err));
        pd_replay_close(p);
        return PD_OK;
    }
    if (r->backwards) return back_unit(p, r, err);
    bool whole = false;
    PD_TRY(pd_segment_tile(&r->seg, rows, &whole, err));
    p->tile = r->seg.tile;
    if (!whole) return PD_OK;
    if (r->adding) PD_TRY(pd_presser_added(&r->seg, err));
    pd_seq_note_peak(p->seq, r->seg.stage.bytes);
    if (r->seg.layer + 1 < r->c.n_layer) {
        pd_segment_next_layer(&r->seg);
        return PD_OK;
    }
    if (r->adding) {
        pd_segment_close(&r->seg);
        end_added(p->seq, r);
        return PD_OK;
    }
    r->backwards = r->reverse != NULL;
    if (!r->backwards) return next(p, r, err);
    pd_reverse_begin(r->reverse, r->seg.x);
    return PD_OK;
}
