/* SPDX-License-Identifier: Apache-2.0 */
/* Between presses and the cache: views out, plans in.
 *
 * A press sees borrowed f32 arrays and answers with slots to keep; only this
 * file moves KV memory for it.  In prefill the view is the staging layer and
 * the kept slots are all that ever reaches pages; while decoding the pages of a
 * layer are read into scratch, ranked, and compacted in place.
 * Layers with a sliding window are never pressed: they hold their window. */
#include "engine/run/compare.h"

#include "compression/deferred.h"
#include "engine/base/num.h"

#include <assert.h>
#include <cblas.h>
#include <math.h>
#include <string.h>

static pd_view view_base(pd_seq *s, size_t layer, pd_phase phase) {
    const pd_run *run = s->run;
    const pd_hparams *hp = &run->model->hp;
    const pd_rope *rope = &run->model->rope[run->model->layer[layer].rope];
    return (pd_view){
        .phase = phase, .layer = (int)layer, .n_layer = (int)hp->n_layer,
        .n_head = hp->n_head, .n_head_kv = hp->n_head_kv, .head_dim = hp->head_dim, .n_embd = hp->n_embd,
        .n_seen = s->n_seen, .inv_freq = rope->inv_freq, .rope_scale = rope->scale,
        .kern = run->kern, .workers = run->workers, .tmp = &s->run->tmp,
        .seed = s->job->comp ? s->job->comp->seed : 0,
    };
}

/* Rotate a key from position `from` to `to`: kvpress's KeyRerotationPress. */
static void rerotate(const pd_view *v, float *k, int32_t from, int32_t to, float *cos, float *sin) {
    for (size_t i = 0; i < v->head_dim / 2; i++) {
        const float angle = (float)(to - from) * v->inv_freq[i];
        cos[i] = cosf(angle);
        sin[i] = sinf(angle);
    }
    v->kern->rope(k, 1, v->head_dim, cos, sin);
}

/* The output projection as f32, for presses that ask what a value does to the
 * residual stream. */
pd_status pd_presser_wo(pd_seq *s, size_t layer, const float **ret, pd_err *err) {
    const pd_mat *o = &s->run->model->layer[layer].o;
    float *wo = PD_ARENA_NEW(&s->run->tmp, o->n_row * o->n_col, float);
    if (!wo) return pd_fail(err, PD_ENOMEM, NULL, "no memory for an output projection");
    for (size_t r = 0; r < o->n_row; r++) pd_mat_row(o, s->run->kern, r, wo + r * o->n_col);
    *ret = wo;
    return PD_OK;
}

static pd_status load_wo(pd_seq *s, size_t layer, unsigned needs, pd_view *view, pd_err *err) {
    return needs & PD_NEEDS_WO ? pd_presser_wo(s, layer, &view->wo, err) : PD_OK;
}

/* ---- prefill ---- */

/* What the plan changes in the kept rows is changed in staging, then they are
 * written to pages like any others. */
static void edit_staging(const pd_view *view, const pd_plan *plan, pd_stage *st, size_t h) {
    const size_t d = st->head_dim;
    float cos[256], sin[256];
    for (size_t i = 0; i < plan->n_keep[h]; i++) {
        const size_t slot = plan->keep[h][i];
        if (plan->v_new) memcpy(pd_stage_v(st, h) + slot * d, plan->v_new[h] + i * d, d * sizeof(float));
        if (plan->rerotate) {
            int32_t *pos = &pd_stage_pos(st, h)[slot];
            rerotate(view, pd_stage_k(st, h) + slot * d, *pos, (int32_t)i, cos, sin);
            *pos = (int32_t)i;
        }
    }
}

static pd_status explain_head(pd_seq *s, size_t layer, size_t h, const int32_t *pos, const uint32_t *keep,
                              size_t n, const float *scores, pd_err *err) {
    pd_explain_head *e = &s->explain[layer * s->kv.n_head_kv + h];
    int32_t *kept = pd_arena_alloc(&s->job->keep, n, sizeof *kept);
    if (!kept) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the explanation");
    for (size_t i = 0; i < n; i++) kept[i] = pos[keep ? keep[i] : i];
    *e = (pd_explain_head){.n_kept = n, .kept = kept, .scores = scores};
    return PD_OK;
}

/* Re-rotation gave the kept slots new positions; the protected tokens were all
 * kept, so they are still a range. */
static void move_guard(pd_seq *s, size_t layer, const pd_plan *plan) {
    int32_t *guard = s->guard[layer];
    size_t at = 0;
    while (at < plan->n_keep[0] && plan->keep[0][at] < (uint32_t)guard[0]) at++;
    guard[1] = (int32_t)at + guard[1] - guard[0];
    guard[0] = (int32_t)at;
}

/* The staging layer as a press sees it; arrays in run->tmp, which is reset. */
static pd_status stage_view(pd_prefill *p, pd_view *view, pd_err *err) {
    pd_seq *s = p->seq;
    const size_t heads = s->kv.n_head_kv, n = p->seg_end - p->seg_begin;
    pd_arena *tmp = &s->run->tmp;
    pd_arena_reset(tmp);
    pd_collect_finish(&p->collect);

    size_t *n_h = PD_ARENA_NEW(tmp, heads, size_t);
    const int32_t **pos = PD_ARENA_NEW(tmp, heads, const int32_t *);
    const float **k = PD_ARENA_NEW(tmp, heads, const float *), **v = PD_ARENA_NEW(tmp, heads, const float *);
    const uint8_t **protect = PD_ARENA_NEW(tmp, heads, const uint8_t *);
    uint8_t *mask = pd_arena_zalloc(tmp, n, 1);
    if (!n_h || !pos || !k || !v || !protect || !mask)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to press a layer");
    const size_t guard_begin = s->job->protect_begin, guard_end = pd_min_size(s->job->protect_end, n);
    const bool protects = guard_begin < guard_end;
    if (protects) memset(mask + guard_begin, 1, guard_end - guard_begin);
    for (size_t h = 0; h < heads; h++) {
        n_h[h] = n;
        pos[h] = pd_stage_pos(&p->stage, h);
        k[h] = pd_stage_k(&p->stage, h);
        v[h] = pd_stage_v(&p->stage, h);
        protect[h] = mask;
    }
    *view = view_base(s, p->layer, PD_PHASE_PREFILL);
    view->n = n;
    view->n_seen = p->seg_end;
    view->n_h = n_h;
    view->pos = pos;
    view->k = k;
    view->v = v;
    view->protect = protects ? protect : NULL;
    view->q_rows = p->collect.tail_rows;
    view->q = p->collect.tail;
    view->q_pos = p->collect.tail_pos;
    view->moments = p->collect.moments;
    view->n_moments = p->collect.needs.n_moments;
    view->stat_rows = n;
    view->x_rows = p->collect.x ? n : 0;
    view->x = p->collect.x;
    view->att_sum = p->collect.att_sum;
    return load_wo(s, p->layer, p->collect.needs.bits, view, err);
}

/* [H][n] zeros for the explanation's scores; *ret NULL if nobody asked. */
static pd_status explain_scores(pd_seq *s, size_t n, float ***ret, pd_err *err) {
    *ret = NULL;
    if (!s->job->explain_scores) return PD_OK;
    float **scores = PD_ARENA_NEW(&s->run->tmp, s->kv.n_head_kv, float *);
    for (size_t h = 0; scores && h < s->kv.n_head_kv; h++) {
        scores[h] = pd_arena_zalloc(&s->job->keep, n, sizeof(float));
        if (!scores[h]) scores = NULL;
    }
    if (!scores) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the explanation");
    *ret = scores;
    return PD_OK;
}

/* The kept rows of a head to its pages, with the plan's key channels alone.  Where no page is narrower
 * for it, the others are 0.  Rows that go to open pages are left for pd_kv_append_heads. */
static pd_status store_head(pd_prefill *p, const pd_plan *plan, size_t h, const uint32_t *keep, size_t n, pd_kv_rows *open,
                            pd_err *err) {
    pd_kv *kv = &p->seq->kv;
    const size_t d = kv->head_dim;
    float *k = pd_stage_k(&p->stage, h), *v = pd_stage_v(&p->stage, h);
    const int32_t *pos = pd_stage_pos(&p->stage, h);
    if (pd_kv_joint(kv, p->layer)) return PD_OK; /* with the last head */
    if (p->seq->job->latent.rank) return pd_latents_append(p->seq, p->layer, h, k, v, pos, n, err);
    if (plan->channel && kv->pack.pool) {
        pd_kv_set_channels(kv, p->layer, h, plan->channel[h]);
        return pd_kv_append_packed(kv, p->layer, h, k, v, d, pos, keep, n, err);
    }
    for (size_t i = 0; plan->channel && i < n; i++) {
        float *row = k + (keep ? keep[i] : i) * d;
        for (size_t c = 0, at = 0; c < d; c++) {
            if (at < plan->n_channel && plan->channel[h][at] == c) at++;
            else row[c] = 0.0f;
        }
    }
    *open = (pd_kv_rows){.k = k, .v = v, .stride = d, .pos = pos, .idx = keep, .n = n};
    return PD_OK;
}

/* Joint latents: slots [from, from + n) of staging, all heads. */
static pd_status store_joint(pd_prefill *p, size_t from, size_t n, pd_err *err) {
    const pd_stage *st = &p->stage;
    const size_t d = st->head_dim, at = from * d;
    if (!pd_kv_joint(&p->seq->kv, p->layer)) return PD_OK;
    return pd_latents_append_joint(p->seq, p->layer, st->k + at, st->v + at, st->cap * d, d, st->pos + from, n, err);
}

static pd_status press_layer(pd_prefill *p, pd_err *err) {
    pd_seq *s = p->seq;
    const size_t heads = s->kv.n_head_kv, n = p->seg_end - p->seg_begin;
    pd_view view;
    float **scores;
    PD_TRY(stage_view(p, &view, err));
    PD_TRY(explain_scores(s, n, &scores, err));

    if (s->job->comp->press == s->job->comp->decode) view.tag = pd_tags_layer(&s->tags, p->layer);
    pd_plan plan = {0};
    const uint64_t t0 = pd_now_ns();
    PD_TRY(pd_press_plan(s->job->comp->press, &view, &s->job->budget, &plan, scores, err));
    s->press_ns += pd_now_ns() - t0;

    pd_kv_rows *open = pd_arena_zalloc(&s->run->tmp, heads, sizeof *open);
    if (!open) return pd_fail(err, PD_ENOMEM, NULL, "no memory to store a layer");
    for (size_t h = 0; h < heads; h++) {
        const size_t n_keep = plan.keep_all ? n : plan.n_keep[h];
        const uint32_t *keep = plan.keep_all ? NULL : plan.keep[h];
        s->pairs_scope += n;
        s->pairs_kept += s->job->latent.rank ? pd_latent_pairs(&s->job->latent, p->layer, n, s->kv.head_dim)
                                             : pd_plan_pairs(&plan, n_keep, s->kv.head_dim);
        s->evicted += n - n_keep;
        if (s->explain) PD_TRY(explain_head(s, p->layer, h, view.pos[h], keep, n_keep, scores ? scores[h] : NULL, err));
        if (!plan.keep_all) edit_staging(&view, &plan, &p->stage, h);
        if (view.tag && keep) pd_tags_keep(&s->tags, p->layer, h, keep, n_keep);
        PD_TRY(store_head(p, &plan, h, keep, n_keep, &open[h], err));
    }
    PD_TRY(store_joint(p, 0, n, err));
    PD_TRY(pd_kv_append_heads(&s->kv, s->run->workers, p->layer, open, err));
    if (!plan.keep_all && plan.rerotate) s->shift[p->layer] = (int32_t)(p->seg_end - plan.n_keep[0]);
    if (!plan.keep_all && plan.rerotate) move_guard(s, p->layer, &plan);
    return PD_OK;
}

/* The segment's rows as they are; of a windowed layer what later tokens see. */
static pd_status store_layer(pd_prefill *p, pd_err *err) {
    pd_seq *s = p->seq;
    const size_t n = p->seg_end - p->seg_begin, d = s->kv.head_dim;
    const size_t window = s->run->model->layer[p->layer].window;
    pd_kv_rows *open = s->job->latent.rank ? NULL : pd_arena_zalloc(&s->run->tmp, s->kv.n_head_kv, sizeof *open);
    if (!open && !s->job->latent.rank) return pd_fail(err, PD_ENOMEM, NULL, "no memory to store a layer");
    for (size_t h = 0; h < s->kv.n_head_kv; h++) {
        const size_t prior = p->stage.n_prior[h], keep = window ? pd_min_size(n, window) : n;
        if (window && prior + keep > window) pd_kv_drop_front(&s->kv, p->layer, h, prior + keep - window);
        const size_t from = prior + n - keep;
        const int32_t *pos = pd_stage_pos(&p->stage, h) + from;
        const float *k = pd_stage_k(&p->stage, h) + from * d, *v = pd_stage_v(&p->stage, h) + from * d;
        if (open) open[h] = (pd_kv_rows){.k = k, .v = v, .stride = d, .pos = pos, .n = keep};
        else if (!pd_kv_joint(&s->kv, p->layer)) PD_TRY(pd_latents_append(s, p->layer, h, k, v, pos, keep, err));
        if (s->job->latent.n_centroid && !window) { /* no press has a scope beside codes */
            s->pairs_scope += n;
            s->pairs_kept += pd_latent_pairs(&s->job->latent, p->layer, n, d);
        }
        if (s->explain && p->pressed) PD_TRY(explain_head(s, p->layer, h, pos, NULL, keep, NULL, err));
        if (!p->collecting) PD_TRY(pd_compare_all(s, p->layer, h, pos, keep, err));
    }
    if (open) return pd_kv_append_heads(&s->kv, s->run->workers, p->layer, open, err);
    return store_joint(p, p->stage.n_prior[0], n, err); /* such layers have no window */
}

/* Nothing is pressed, but several presses are asked what they would do. */
static pd_status compare_layer(pd_prefill *p, pd_err *err) {
    pd_view view;
    PD_TRY(stage_view(p, &view, err));
    PD_TRY(pd_compare_layer(p->seq, p->layer, &view, err));
    return store_layer(p, err);
}

/* A deferred press scores the layer, which stays as it is for now. */
static pd_status score_layer(pd_prefill *p, pd_err *err) {
    pd_view view;
    PD_TRY(stage_view(p, &view, err));
    PD_TRY(pd_replay_score(p, &view, err));
    return store_layer(p, err);
}

static pd_status tag_layer(pd_prefill *p, pd_err *err);

pd_status pd_presser_layer(pd_prefill *p, pd_err *err) {
    if (p->collecting && p->seq->job->deferred) return score_layer(p, err);
    if (p->collecting) return p->seq->job->n_compare ? compare_layer(p, err) : press_layer(p, err);
    pd_arena_reset(&p->seq->run->tmp);
    PD_TRY(store_layer(p, err));
    return p->pressed ? PD_OK : tag_layer(p, err);
}

pd_status pd_presser_added(pd_prefill *p, pd_err *err) {
    pd_seq *s = p->seq;
    pd_arena_reset(&s->run->tmp);
    PD_TRY(store_layer(p, err));
    for (size_t h = 0; h < s->kv.n_head_kv; h++)
        pd_tags_fill(&s->tags, p->layer, h, p->stage.n_prior[h], p->seg_end - p->seg_begin, s->tags.kind == PD_TAG_SCORE ? INFINITY : 0.0f);
    return PD_OK;
}

/* A head's slots that stay: of the context's n those of the plan, and what was added behind them. */
static pd_status kept_slots(const pd_context *c, const pd_plan *plan, size_t h, size_t n_added, uint32_t **ret, pd_err *err) {
    *ret = plan->keep[h];
    if (!n_added) return PD_OK;
    const size_t n = plan->n_keep[h];
    uint32_t *keep = PD_ARENA_NEW(c->keep, n + n_added, uint32_t);
    if (!keep) return pd_fail(err, PD_ENOMEM, NULL, "no memory for plans");
    memcpy(keep, plan->keep[h], n * sizeof *keep);
    for (size_t i = 0; i < n_added; i++) keep[n + i] = (uint32_t)(c->n + i);
    *ret = keep;
    return PD_OK;
}

pd_status pd_presser_context(pd_seq *s, const pd_context *c, const pd_plan *plan, pd_err *err) {
    const size_t heads = s->kv.n_head_kv, n_added = (size_t)(s->added[1] - s->added[0]);
    for (size_t i = 0; i < c->n_layer * heads; i++) {
        if (!c->score[i]) continue;
        const size_t l = i / heads, h = i % heads, n_keep = plan[l].n_keep[h];
        s->pairs_scope += c->n;
        s->pairs_kept += (double)(n_keep + n_added);
        s->evicted += c->n - n_keep;
        if (s->explain) {
            float *scores = NULL;
            if (s->job->explain_scores) {
                scores = PD_ARENA_NEW(&s->job->keep, c->n, float);
                if (!scores) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the explanation");
                memcpy(scores, c->score[i], c->n * sizeof *scores);
            }
            int32_t *kept = PD_ARENA_NEW(&s->job->keep, n_keep, int32_t);
            if (!kept) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the explanation");
            for (size_t k = 0; k < n_keep; k++) kept[k] = (int32_t)plan[l].keep[h][k]; /* a dense scope: slot = position */
            s->explain[i] = (pd_explain_head){.n_kept = n_keep, .kept = kept, .scores = scores};
        }
        uint32_t *keep;
        PD_TRY(kept_slots(c, &plan[l], h, n_added, &keep, err));
        if (pd_tags_layer(&s->tags, l)) pd_tags_keep(&s->tags, l, h, keep, n_keep + n_added);
        pd_kv_keep(&s->kv, l, h, keep, n_keep + n_added);
    }
    return PD_OK;
}

/* ---- while decoding ---- */

/* Moments of the ring's rows: mean, and covariance by one ssyrk per head over
 * centred rows. */
static pd_status ring_moments(const pd_seq *s, size_t layer, bool cov, pd_moments *ret, pd_err *err) {
    const pd_qring *r = &s->ring;
    const size_t n = pd_qring_count(r), nq = r->nq, d = s->kv.head_dim;
    *ret = (pd_moments){.n_sink = 0, .count = n};
    if (n == 0) return PD_OK;
    pd_arena *tmp = &s->run->tmp;
    float *mean = pd_arena_zalloc(tmp, nq, sizeof *mean), *rows = PD_ARENA_NEW(tmp, n * nq, float);
    float *c = cov ? pd_arena_zalloc(tmp, nq * d, sizeof *c) : NULL;
    if (!mean || !rows || (cov && !c)) return pd_fail(err, PD_ENOMEM, NULL, "no memory for query statistics");
    for (size_t i = 0; i < n; i++) {
        memcpy(rows + i * nq, pd_qring_row(r, layer, i, NULL), nq * sizeof *rows);
        s->run->kern->axpy_f32(1.0f / (float)n, rows + i * nq, mean, nq);
    }
    ret->mean = mean;
    if (!cov) return PD_OK;
    for (size_t i = 0; i < n; i++) s->run->kern->axpy_f32(-1.0f, mean, rows + i * nq, nq);
    for (size_t h = 0; h < nq / d; h++) {
        float *m = c + h * d * d;
        cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, (int)d, (int)n, 1.0f / (float)n, rows + h * d, (int)nq, 0.0f, m, (int)d);
        for (size_t a = 0; a < d; a++)
            for (size_t b = 0; b < a; b++) m[a * d + b] = m[b * d + a];
    }
    ret->cov = c;
    return PD_OK;
}

/* The last `want` queries, each rotated at its own position. */
static pd_status ring_tail(const pd_seq *s, size_t layer, size_t want, pd_view *view, pd_err *err) {
    const pd_qring *r = &s->ring;
    const size_t have = pd_qring_count(r), n = pd_min_size(want, have), d = s->kv.head_dim, half = d / 2;
    pd_arena *tmp = &s->run->tmp;
    float *q = PD_ARENA_NEW(tmp, n * r->nq, float), *cs = PD_ARENA_NEW(tmp, d, float);
    int32_t *pos = PD_ARENA_NEW(tmp, n, int32_t);
    if (!q || !cs || !pos) return pd_fail(err, PD_ENOMEM, NULL, "no memory for recent queries");
    for (size_t i = 0; i < n; i++) {
        memcpy(q + i * r->nq, pd_qring_row(r, layer, have - n + i, &pos[i]), r->nq * sizeof *q);
        if (pos[i] >= s->added[0]) pos[i] -= s->shift[layer]; /* those before what was added stand where they stood */
        pd_rope_table(s->run->model, s->run->model->layer[layer].rope, &pos[i], 1, cs, cs + half);
        s->run->kern->rope(q + i * r->nq, r->nq / d, d, cs, cs + half);
    }
    view->q = q;
    view->q_pos = pos;
    view->q_rows = n;
    return PD_OK;
}

/* The slots that hold protected tokens. */
static pd_status protect_slots(pd_seq *s, size_t layer, const size_t *n_h, int32_t *const *pos, pd_view *view, pd_err *err) {
    const int32_t begin = s->guard[layer][0], end = s->guard[layer][1];
    if (begin >= end && s->added[0] >= s->added[1]) return PD_OK;
    const uint8_t **protect = PD_ARENA_NEW(&s->run->tmp, s->kv.n_head_kv, const uint8_t *);
    for (size_t h = 0; protect && h < s->kv.n_head_kv; h++) {
        uint8_t *mask = PD_ARENA_NEW(&s->run->tmp, n_h[h], uint8_t);
        if (!mask) return pd_fail(err, PD_ENOMEM, NULL, "no memory to press a layer");
        for (size_t i = 0; i < n_h[h]; i++)
            mask[i] = (pos[h][i] >= begin && pos[h][i] < end) || (pos[h][i] >= s->added[0] && pos[h][i] < s->added[1]);
        protect[h] = mask;
    }
    if (!protect) return pd_fail(err, PD_ENOMEM, NULL, "no memory to press a layer");
    view->protect = protect;
    return PD_OK;
}

/* Slots of a head, of n at pos, that are the prompt's and out of the press's sight. */
static size_t hidden(const pd_seq *s, size_t layer, const int32_t *pos, size_t n) {
    if (!s->rule.keep_prompt) return 0;
    const int32_t end = (int32_t)s->job->n_tokens - s->shift[layer];
    size_t lo = 0, hi = n;
    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        if (pos[mid] < end) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

/* K, V and positions of the layer's heads into scratch, from slot (*from)[h] on; positions and
 * tags alone for presses that read no more. */
static pd_status gather(pd_seq *s, size_t layer, pd_view *view, size_t **from, pd_err *err) {
    const size_t heads = s->kv.n_head_kv, d = s->kv.head_dim;
    pd_arena *tmp = &s->run->tmp;
    size_t *n_h = PD_ARENA_NEW(tmp, heads, size_t), *skip = *from = PD_ARENA_NEW(tmp, heads, size_t);
    int32_t **pos = PD_ARENA_NEW(tmp, heads, int32_t *);
    float **k = PD_ARENA_NEW(tmp, heads, float *), **v = PD_ARENA_NEW(tmp, heads, float *), **tag = PD_ARENA_NEW(tmp, heads, float *);
    if (!n_h || !skip || !pos || !k || !v || !tag) return pd_fail(err, PD_ENOMEM, NULL, "no memory to press a layer");
    const bool rows = s->rule.tag != PD_TAG_SCORE;
    float **all = pd_tags_layer(&s->tags, layer);
    for (size_t h = 0; h < heads; h++) {
        const size_t n = pd_kv_at(&s->kv, layer, h)->n;
        pos[h] = PD_ARENA_NEW(tmp, n, int32_t);
        if (!pos[h]) return pd_fail(err, PD_ENOMEM, NULL, "no memory to press a layer");
        pd_kv_read(&s->kv, layer, h, NULL, NULL, pos[h]);
        skip[h] = hidden(s, layer, pos[h], n);
        pos[h] += skip[h];
        n_h[h] = n - skip[h];
        k[h] = rows ? PD_ARENA_NEW(tmp, n_h[h] * d, float) : NULL;
        v[h] = rows ? PD_ARENA_NEW(tmp, n_h[h] * d, float) : NULL;
        if (rows && (!k[h] || !v[h])) return pd_fail(err, PD_ENOMEM, NULL, "no memory to press a layer");
        if (rows) pd_kv_read_some(&s->kv, layer, h, skip[h], n_h[h], k[h], v[h], pos[h]);
        if (all) tag[h] = all[h] + skip[h];
        view->n = pd_max_size(view->n, n_h[h]);
    }
    PD_TRY(protect_slots(s, layer, n_h, pos, view, err));
    view->n_h = n_h;
    view->pos = (const int32_t *const *)pos;
    view->k = (const float *const *)k;
    view->v = (const float *const *)v;
    view->tag = all ? tag : NULL;
    return PD_OK;
}

/* The plan of a view from slot from[h] on; the slots before stay. */
static pd_status apply_step(pd_seq *s, size_t layer, const size_t *from, const pd_plan *plan, pd_err *err) {
    assert(!plan->rerotate); /* PD_CAN_PRUNE_STEP excludes it */
    for (size_t h = 0; h < s->kv.n_head_kv; h++) {
        const pd_kv_head *kh = pd_kv_at(&s->kv, layer, h);
        const size_t skip = from[h], n = skip + plan->n_keep[h];
        uint32_t *keep = plan->keep[h];
        if (n == kh->n && !plan->v_new) continue;
        if (skip) {
            keep = PD_ARENA_NEW(&s->run->tmp, n, uint32_t);
            if (!keep) return pd_fail(err, PD_ENOMEM, NULL, "no memory to press a layer");
            for (size_t i = 0; i < n; i++) keep[i] = (uint32_t)(i < skip ? i : skip + plan->keep[h][i - skip]);
        }
        s->evicted += kh->n - n;
        pd_kv_keep(&s->kv, layer, h, keep, n);
        pd_tags_keep(&s->tags, layer, h, keep, n);
        for (size_t i = 0; plan->v_new && i < plan->n_keep[h]; i++)
            pd_kv_set_value(&s->kv, layer, h, skip + i, plan->v_new[h] + i * s->kv.head_dim);
    }
    return PD_OK;
}

/* What stays of a layer when n_seen tokens were seen. */
static pd_budget budget_at(const pd_seq *s, size_t n_seen) {
    return pd_decode_budget(&s->rule, s->rule.keep_prompt ? n_seen - s->job->n_tokens : n_seen);
}

/* Prune a layer when n_seen tokens were seen. */
static pd_status step_layer(pd_seq *s, size_t layer, size_t n_seen, pd_err *err) {
    pd_arena_reset(&s->run->tmp);
    const unsigned needs = s->rule.tag == PD_TAG_SCORE ? 0 : s->needs.bits; /* those are for new tokens */
    pd_view view = view_base(s, layer, PD_PHASE_STEP);
    view.n_seen = n_seen - (size_t)s->shift[layer]; /* as positions count in this layer */
    view.n_steps = s->since[layer];
    pd_moments moments;
    size_t *from;
    PD_TRY(gather(s, layer, &view, &from, err));
    if (s->ring.rows && s->needs.n_moments) {
        PD_TRY(ring_moments(s, layer, needs & PD_NEEDS_Q_COV, &moments, err));
        view.moments = &moments;
        view.n_moments = 1;
        view.stat_rows = moments.count;
    }
    PD_TRY(load_wo(s, layer, needs, &view, err));
    if (needs & PD_NEEDS_Q_TAIL) PD_TRY(ring_tail(s, layer, s->needs.q_tail, &view, err));
    const pd_budget budget = budget_at(s, n_seen);
    pd_plan plan = {0};
    PD_TRY(pd_press_plan(s->rule.prune, &view, &budget, &plan, NULL, err));
    if (!plan.keep_all) PD_TRY(apply_step(s, layer, from, &plan, err));
    s->since[layer] = 0;
    return PD_OK;
}

/* Score the layer's newest n slots, as a view of their own, into their tags.
 * x [n][n_embd]: their attention input, NULL if not needed. */
static pd_status score_new(pd_seq *s, size_t layer, size_t n, size_t n_seen, const float *x, pd_err *err) {
    const size_t heads = s->kv.n_head_kv, d = s->kv.head_dim;
    pd_arena *tmp = &s->run->tmp;
    pd_arena_reset(tmp);
    size_t *n_h = PD_ARENA_NEW(tmp, heads, size_t);
    int32_t *pos = PD_ARENA_NEW(tmp, heads * n, int32_t), **pos_h = PD_ARENA_NEW(tmp, heads, int32_t *);
    float *rows = PD_ARENA_NEW(tmp, 2 * heads * n * d, float), **at = PD_ARENA_NEW(tmp, 3 * heads, float *);
    if (!n_h || !pos || !pos_h || !rows || !at) return pd_fail(err, PD_ENOMEM, NULL, "no memory to score new tokens");
    float **k = at, **v = at + heads, **tag = at + 2 * heads;
    for (size_t h = 0; h < heads; h++) {
        const size_t from = pd_kv_at(&s->kv, layer, h)->n - n;
        n_h[h] = n;
        pos_h[h] = pos + h * n;
        k[h] = rows + 2 * h * n * d;
        v[h] = k[h] + n * d;
        tag[h] = pd_tags_layer(&s->tags, layer)[h] + from;
        pd_kv_read_some(&s->kv, layer, h, from, n, k[h], v[h], pos_h[h]);
    }
    pd_view view = view_base(s, layer, PD_PHASE_STEP);
    view.n = n;
    view.n_seen = n_seen - (size_t)s->shift[layer]; /* as positions count in this layer */
    view.n_h = n_h;
    view.pos = (const int32_t *const *)pos_h;
    view.k = (const float *const *)k;
    view.v = (const float *const *)v;
    view.x = x;
    view.x_rows = x ? n : 0;
    PD_TRY(load_wo(s, layer, s->needs.bits, &view, err));
    return pd_press_score(s->rule.prune->child[0], &view, tag, err);
}

/* Tags of a segment that is not pressed.  As in the reference a question is one
 * step: its last query looks at the cache (ATTENTION), its tokens are new ones
 * (SCORE).  A prompt that no press was asked about is not judged at all. */
static pd_status tag_layer(pd_prefill *p, pd_err *err) {
    pd_seq *s = p->seq;
    if (!pd_tags_layer(&s->tags, p->layer)) return PD_OK;
    const size_t n = p->seg_end - p->seg_begin;
    const bool question = p->seg_begin > 0;
    for (size_t h = 0; h < s->kv.n_head_kv; h++)
        pd_tags_fill(&s->tags, p->layer, h, p->stage.n_prior[h], n, s->tags.kind == PD_TAG_SCORE ? INFINITY : 0.0f);
    if (!question) return PD_OK;
    if (pd_tag_attends(s->tags.kind)) {
        const size_t nq = s->run->model->hp.n_head * s->kv.head_dim, last = p->tile - 1;
        pd_tags_attend(&s->tags, &s->run->attn, &s->kv, p->layer, s->run->fwd.q + last * nq);
        return PD_OK;
    }
    PD_TRY(score_new(s, p->layer, n, p->seg_end, p->collect.x, err));
    return step_layer(s, p->layer, p->seg_end, err);
}

/* There is something to take from the layer. */
static bool above(const pd_seq *s, size_t layer, const pd_budget *budget) {
    for (size_t h = 0; h < s->kv.n_head_kv; h++) {
        const size_t n = pd_kv_at(&s->kv, layer, h)->n;
        if (pd_budget_keep(budget, n) < n) return true;
    }
    return false;
}

pd_status pd_presser_step(pd_seq *s, pd_err *err) {
    if (!s->rule.prune) return PD_OK;
    if (s->rule.prune->press->running) return pd_running_step(s, err);
    const pd_budget budget = budget_at(s, s->n_seen);
    const uint64_t t0 = pd_now_ns();
    bool worked = false;
    for (size_t l = 0; l < s->kv.n_layer; l++) {
        if (s->run->model->layer[l].window) continue;
        if (++s->since[l] < s->rule.interval || (s->rule.wait && !above(s, l, &budget))) continue;
        worked = true;
        if (s->tags.kind == PD_TAG_SCORE)
            PD_TRY(score_new(s, l, 1, s->n_seen, s->x_new ? s->x_new + l * s->run->model->hp.n_embd : NULL, err));
        PD_TRY(step_layer(s, l, s->n_seen, err));
    }
    if (!worked) return PD_OK;
    s->press_ns += pd_now_ns() - t0;
    assert(pd_kvpools_check(&s->run->pools));
    return PD_OK;
}
