/* SPDX-License-Identifier: Apache-2.0 */
/* One decode step: the next token of every running sequence, in one batch; or of one
 * sequence the next token and those a draft proposes behind it.
 *
 * Rows are independent (PD_MAT_PER_TOKEN, attention per sequence), so a
 * sequence's logits are the same bits whoever else is in the batch. */
#include "engine/run/seq.h"

#include "engine/base/num.h"

#include <assert.h>
#include <stdint.h>
#include <string.h>

typedef pd_step_row row;

/* The new token's keys and values into the pages; a windowed layer lets go of
 * what left its window, unless a token may be taken back again. */
static pd_status append(const row *r, size_t layer, const float *k, const float *v, int32_t pos, pd_err *err) {
    pd_seq *s = r->seq;
    const size_t d = s->kv.head_dim, window = s->run->model->layer[layer].window;
    if (pd_kv_joint(&s->kv, layer)) /* no press looks at such layers while tokens come */
        return pd_latents_append_joint(s, layer, k, v, d, d, &pos, 1, err);
    for (size_t h = 0; h < s->kv.n_head_kv; h++) {
        PD_TRY(pd_latents_append(s, layer, h, k + h * d, v + h * d, &pos, 1, err));
        const size_t n = pd_kv_at(&s->kv, layer, h)->n;
        if (s->tags.kind) pd_tags_fill(&s->tags, layer, h, n - 1, 1, 0.0f);
        if (window && n > window && !r->ahead && !r->behind) pd_kv_drop_front(&s->kv, layer, h, n - window);
    }
    return PD_OK;
}

/* The layer as a row sees it whose sequence has several: without the tokens behind
 * it and, in a windowed layer, those that left its window.  The pages are the
 * sequence's own, and a row's are cut as they would be without the others. */
static void view_of(const row *r, size_t layer, pd_kv *view) {
    const pd_kv *kv = &r->seq->kv;
    const size_t window = r->seq->run->model->layer[layer].window;
    pd_kv_head *head = view->head;
    *view = *kv;
    view->head = head;
    for (size_t h = 0; h < kv->n_head_kv; h++) {
        pd_kv_head *to = pd_kv_at(view, layer, h);
        *to = *pd_kv_at(kv, layer, h);
        to->n -= r->behind;
        const uint32_t gone = window && to->n > window ? to->n - (uint32_t)window : 0, at = to->first + gone;
        to->n -= gone;
        to->first = at % PD_PAGE_TOKENS;
        to->page += at / PD_PAGE_TOKENS;
        to->turn += at / PD_PAGE_TOKENS;
        to->n_page = to->n_pack_page + (uint32_t)pd_div_up(pd_kv_open_end(to), PD_PAGE_TOKENS);
    }
}

/* cos/sin of each row's position in this layer; made: bit r = RoPE r's table is that of
 * unshifted positions, which layers share. */
static void rope_rows(pd_run *run, size_t n, size_t layer, unsigned *made) {
    pd_fwd *f = &run->fwd;
    const size_t rope = run->model->layer[layer].rope, at = rope * f->rows * run->model->hp.head_dim / 2;
    bool shifted = false;
    for (size_t i = 0; i < n; i++) {
        const row *r = &run->step_row[i];
        run->step_pos[i] = (int32_t)(r->seq->n_seen + r->ahead) - r->seq->shift[layer];
        shifted = shifted || r->seq->shift[layer] != 0;
    }
    if (shifted || !(*made >> rope & 1)) pd_rope_table(run->model, rope, run->step_pos, n, f->cos + at, f->sin + at);
    *made = shifted ? *made & ~(1u << rope) : *made | 1u << rope; /* another layer may be shifted otherwise */
    pd_fwd_rope(f, n, f->cos + at, f->sin + at, false);
}

/* What a decode press wants to know of the newest token (such sequences have one row). */
static void note_input(const row *r, size_t layer, const float *q, const float *h, size_t n_embd) {
    if (r->seq->ring.rows) pd_qring_put(&r->seq->ring, layer, 0, q);
    if (r->seq->x_new) memcpy(r->seq->x_new + layer * n_embd, h, n_embd * sizeof *h);
}

/* Its tags get the weights of the step itself: where a step reads a part, they are of all slots nevertheless. */
static bool in_step(const pd_seq *s) {
    return pd_tag_attends(s->tags.kind) && !s->select.rows;
}

/* run->step_row[0..n) through all layers; their logits to run->logits. */
static pd_status step(pd_run *run, size_t n, size_t *bad, pd_err *err) {
    pd_fwd *f = &run->fwd;
    const pd_hparams *hp = &run->model->hp;
    const size_t nq = hp->n_head * hp->head_dim, nkv = hp->n_head_kv * hp->head_dim;
    const row *rows = run->step_row;
    *bad = SIZE_MAX;
    for (size_t i = 0; i < n; i++) {
        run->step_kv[i] = rows[i].ahead || rows[i].behind ? &run->step_view[rows[i].ahead] : &rows[i].seq->kv;
        run->step_sel[i] = &rows[i].seq->select;
        run->step_tags[i] = in_step(rows[i].seq) ? &rows[i].seq->tags : NULL;
        pd_fwd_embed(f, rows[i].id, run->x + i * hp->n_embd);
    }
    run->attn.tags = run->step_tags;
    unsigned made = 0;
    for (size_t l = 0; l < hp->n_layer; l++) {
        pd_fwd_qkv(f, l, run->x, n, false, PD_MAT_PER_TOKEN);
        for (size_t i = 0; i < n; i++) note_input(&rows[i], l, f->q + i * nq, f->h + i * hp->n_embd, hp->n_embd);
        rope_rows(run, n, l, &made);
        for (size_t i = 0; i < n; i++) {
            const pd_status rc = append(&rows[i], l, f->k + i * nkv, f->v + i * nkv, run->step_pos[i], err);
            if (rc != PD_OK) {
                *bad = i;
                return rc;
            }
        }
        for (size_t i = 0; i < n; i++)
            if (rows[i].ahead || rows[i].behind) view_of(&rows[i], l, run->step_kv[i]);
        pd_fwd_ahead(f, l);
        pd_attn_step(&run->attn, run->step_kv, run->step_sel, n, l, f->q, f->attn);
        for (size_t i = 0; i < n; i++) {
            pd_seq *s = rows[i].seq;
            if (pd_tag_attends(s->tags.kind) && !in_step(s)) pd_tags_attend(&s->tags, &run->attn, &s->kv, l, f->q + i * nq);
        }
        pd_fwd_finish(f, l, run->x, n, PD_MAT_PER_TOKEN);
    }
    pd_fwd_logits(f, run->x, n, run->logits);
    return PD_OK;
}

pd_status pd_decode_step(pd_run *run, pd_seq *const *seq, size_t n, size_t *bad, pd_err *err) {
    for (size_t i = 0; i < n; i++) run->step_row[i] = (row){.seq = seq[i], .id = seq[i]->next};
    PD_TRY(step(run, n, bad, err));
    for (size_t i = 0; i < n; i++) {
        if (seq[i]->ring.rows) pd_qring_advance(&seq[i]->ring, (int32_t)seq[i]->n_seen);
        seq[i]->n_seen++;
        pd_seq_note_peak(seq[i], 0);
    }
    return PD_OK;
}

pd_status pd_decode_drafted(pd_run *run, pd_seq *s, const int32_t *draft, size_t n, pd_err *err) {
    size_t bad;
    assert(n >= 1 && n <= PD_DRAFT_MAX && s->draft.text);
    for (size_t i = 0; i <= n; i++)
        run->step_row[i] = (row){.seq = s, .id = i ? draft[i - 1] : s->next, .ahead = (uint32_t)i, .behind = (uint32_t)(n - i)};
    PD_TRY(step(run, n + 1, &bad, err));
    pd_seq_note_peak(s, 0);
    return PD_OK;
}

void pd_decode_settle(pd_seq *s, size_t n, size_t taken) {
    assert(taken <= n);
    for (size_t l = 0; l < s->kv.n_layer; l++) {
        const size_t window = s->run->model->layer[l].window;
        for (size_t h = 0; h < s->kv.n_head_kv; h++) {
            pd_kv_drop_back(&s->kv, l, h, n - taken);
            const size_t left = pd_kv_at(&s->kv, l, h)->n;
            if (window && left > window) pd_kv_drop_front(&s->kv, l, h, left - window);
        }
    }
    s->n_seen += taken + 1;
}

/* Tokens that may come behind the next one before a head's open keys are projected, which
 * could not be taken back. */
static size_t room_of_latents(const pd_seq *s, size_t layer, size_t head) {
    const pd_latent_rule *r = &s->job->latent;
    const pd_kv_head *kh = pd_kv_at(&s->kv, layer, head);
    if (!r->layer[layer] || s->run->model->layer[layer].window) return SIZE_MAX;
    const size_t n = kh->n + 1, open = n - kh->n_pack - pd_latent_due(r, layer, n, kh->n_pack);
    const size_t whole = r->whole > n ? r->whole - n : 0, window = r->window + PD_LATENT_PIECE - 1;
    return pd_max_size(whole, window > open ? window - open : 0);
}

size_t pd_decode_room(const pd_seq *s) {
    const pd_hparams *hp = &s->run->model->hp;
    const size_t more = s->job->max_tokens - s->job->n_sampled;
    size_t room = more ? more - 1 : 0; /* the last one is not fed */
    for (size_t l = 0; l < hp->n_layer; l++) /* what the pages promised to a window hold beside it (admit.c) */
        if (hp->window[l]) room = pd_min_size(room, PD_PAGE_TOKENS - hp->window[l] % PD_PAGE_TOKENS);
    /* a page that is begun takes the place of one held twice, which could not come back */
    for (size_t i = 0; s->kv.recent_pool && i < s->kv.n_layer * s->kv.n_head_kv; i++)
        room = pd_min_size(room, PD_PAGE_TOKENS - 1 - pd_kv_open_end(&s->kv.head[i]) % PD_PAGE_TOKENS);
    for (size_t i = 0; s->job->latent.rank && i < s->kv.n_layer * s->kv.n_head_kv; i++)
        room = pd_min_size(room, room_of_latents(s, i / s->kv.n_head_kv, i % s->kv.n_head_kv));
    return room;
}
