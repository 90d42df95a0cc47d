/* SPDX-License-Identifier: Apache-2.0 */
/* Prefill: a prompt into the cache, layer by layer, in resumable units.
 *
 * Segment 1 is the press's scope (the whole prompt by default), segment 2 what
 * follows it; segment 2 attends to the pressed cache, as kvpress's question
 * does.  Inside a segment a unit is (layer, tile of up to 128 tokens) or a layer's end:
 *
 *     for each layer:  for each tile:  norm, q k v, rope, k v -> staging,
 *                                      attention, output, feed-forward
 *                      then staging -> pages (presser.c)
 *
 * How a segment is cut in tiles changes no bit (--compute f32 excepted, whose
 * tiles are therefore always 128): the scheduler cuts as time allows.
 * Hidden states of the segment stay resident (n * n_embd floats).  In the last
 * layer only what is asked for is computed: keys and values always, the rest
 * only for the tile that ends the prompt; all of it where the prompt's own log
 * probabilities are asked for (score.c), which are made of it in units of their own, or
 * the mean of all tokens (embed.c). */
#include "engine/run/compare.h"

#include "engine/base/num.h"

#include <stdlib.h>
#include <string.h>

static size_t seg_len(const pd_prefill *p) {
    return p->seg_end - p->seg_begin;
}

/* Its tokens are the prompt's: neither a replay's nor rows that a press adds. */
static bool of_prompt(const pd_prefill *p) {
    return !p->ids && !p->added;
}

void pd_segment_close(pd_prefill *p) {
    free(p->x);
    free(p->pos);
    for (size_t r = 0; r < PD_ROPE_MAX; r++) {
        free(p->cos[r]);
        free(p->sin[r]);
        p->cos[r] = p->sin[r] = NULL;
    }
    p->x = NULL;
    p->pos = NULL;
    free(p->logits);
    p->logits = NULL;
    pd_stage_close(&p->stage);
    pd_collect_done(&p->collect);
}

void pd_prefill_close(pd_prefill *p) {
    pd_replay_close(p);
    pd_segment_close(p);
    *p = (pd_prefill){0};
}

/* Most slots any head already holds: they precede the segment in staging. */
static size_t most_prior(const pd_seq *s) {
    size_t most = 0;
    for (size_t i = 0; i < s->kv.n_layer * s->kv.n_head_kv; i++) most = pd_max_size(most, s->kv.head[i].n);
    return most;
}

/* Prior slots of the layer from pages to the front of staging; the segment's
 * positions behind them. */
static void load_prior(pd_prefill *p) {
    const pd_seq *s = p->seq;
    for (size_t h = 0; h < s->kv.n_head_kv; h++) {
        const size_t n = pd_kv_at(&s->kv, p->layer, h)->n;
        p->stage.n_prior[h] = n;
        if (n) pd_kv_read(&s->kv, p->layer, h, pd_stage_k(&p->stage, h), pd_stage_v(&p->stage, h), pd_stage_pos(&p->stage, h));
        for (size_t i = 0; i < seg_len(p); i++)
            pd_stage_pos(&p->stage, h)[n + i] = p->pos[i] - s->shift[p->layer];
    }
}

static void begin_layer(pd_prefill *p) {
    load_prior(p);
    /* A sliding window is a bound already: such layers are not pressed. */
    p->collecting = p->pressed && p->seq->run->model->layer[p->layer].window == 0 &&
                    (!p->seq->job->deferred || pd_replay_scores(p->seq->job));
    if (p->collecting) pd_collect_begin(&p->collect);
}

pd_status pd_segment_open(pd_prefill *p, size_t begin, size_t end, bool pressed, pd_err *err) {
    pd_seq *s = p->seq;
    const pd_model *m = s->run->model;
    const size_t n = end - begin, d = m->hp.n_embd, half = m->hp.head_dim / 2;
    p->seg_begin = begin;
    p->seg_end = end;
    p->pressed = pressed;
    p->layer = p->row = 0;
    p->x = malloc(n * d * sizeof *p->x);
    p->pos = malloc(n * sizeof *p->pos);
    bool ok = p->x && p->pos;
    for (size_t r = 0; r < m->hp.n_rope; r++) {
        p->cos[r] = malloc(n * half * sizeof(float));
        p->sin[r] = malloc(n * half * sizeof(float));
        ok = ok && p->cos[r] && p->sin[r];
    }
    if (!ok) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the hidden states of %zu tokens", n);
    p->bytes = n * (d + 2 * half * m->hp.n_rope + 1) * sizeof(float);
    PD_TRY(pd_stage_open(&p->stage, m->hp.n_head_kv, m->hp.head_dim, most_prior(s) + n, err));
    pd_press_needs needs = {0};
    if (pressed && s->job->n_compare)
        pd_compare_needs(s->job, &needs);
    else if (pressed && (!s->job->deferred || pd_replay_scores(s->job)))
        pd_press_collect_needs(s->job->comp->press, &needs);
    else if (begin > 0 && of_prompt(p) && s->rule.tag == PD_TAG_SCORE)
        needs.bits = s->needs.bits & PD_NEEDS_X; /* the question's tokens are scored as new ones */
    PD_TRY(pd_collect_init(&p->collect, &needs, &m->hp, s->run->kern, s->run->workers, n, err));
    for (size_t i = 0; i < n; i++) p->pos[i] = (int32_t)(begin + i);
    begin_layer(p);
    return PD_OK;
}

pd_status pd_prefill_open(pd_prefill *p, pd_seq *seq, pd_err *err) {
    *p = (pd_prefill){.seq = seq};
    const size_t scope = seq->job->scope, n = seq->job->n_tokens;
    return scope ? pd_segment_open(p, 0, scope, true, err) : pd_segment_open(p, 0, n, false, err);
}

/* Embeddings and RoPE tables of the next n rows: made with the first layer's
 * tiles, so that opening a long segment takes no time. */
static void enter(pd_prefill *p, size_t n) {
    const pd_run *run = p->seq->run;
    const pd_hparams *hp = &run->model->hp;
    const size_t half = hp->head_dim / 2;
    if (p->added) memcpy(p->x + p->row * hp->n_embd, p->added->x + p->row * hp->n_embd, n * hp->n_embd * sizeof *p->x);
    for (size_t i = p->row; i < p->row + n && !p->added; i++)
        pd_fwd_embed(&run->fwd, p->ids ? p->ids[i] : p->seq->job->tokens[p->seg_begin + i], p->x + i * hp->n_embd);
    for (size_t r = 0; r < hp->n_rope; r++)
        pd_rope_table(run->model, r, p->pos + p->row, n, p->cos[r] + p->row * half, p->sin[r] + p->row * half);
}

typedef struct {
    const pd_prefill *p;
    size_t n;
} stage_job;

enum { STAGE_ROWS = 16 };

static void stage_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const stage_job *j = ctx;
    const pd_run *run = j->p->seq->run;
    const pd_hparams *hp = &run->model->hp;
    const pd_stage *st = &j->p->stage;
    const size_t d = hp->head_dim, nkv = hp->n_head_kv * d, r0 = task * STAGE_ROWS, r1 = pd_min_size(j->n, r0 + STAGE_ROWS);
    float *k = run->fwd.k + r0 * nkv, *v = run->fwd.v + r0 * nkv;
    pd_kv_round(run->codec.key, run->kern, k, (r1 - r0) * nkv);
    pd_kv_round(run->codec.value, run->kern, v, (r1 - r0) * nkv);
    for (size_t r = r0; r < r1; r++, k += nkv, v += nkv) {
        for (size_t h = 0; h < hp->n_head_kv; h++) {
            const size_t at = (st->n_prior[h] + j->p->row + r) * d;
            memcpy(pd_stage_k(st, h) + at, k + h * d, d * sizeof(float));
            memcpy(pd_stage_v(st, h) + at, v + h * d, d * sizeof(float));
        }
    }
}

/* Keys and values of the tile behind what staging holds, as native pages will hold
 * them: what a tile attends to is then what decode attends to.  Fewer bits come when
 * the layer is stored: a segment is read, and judged by a press, at full precision. */
static void to_stage(const pd_prefill *p, size_t n) {
    stage_job job = {p, n};
    pd_workers_run(p->seq->run->workers, stage_task, &job, pd_div_up(n, STAGE_ROWS));
}

/* The last W queries before RoPE also start the decode press's ring. */
static void to_ring(pd_prefill *p, size_t n) {
    pd_qring *ring = &p->seq->ring;
    if (!ring->rows) return;
    for (size_t i = 0; i < n; i++)
        if (p->row + i + ring->rows >= seg_len(p))
            pd_qring_put(ring, p->layer, p->row + i, p->seq->run->fwd.q + i * ring->nq);
}

static void rope_tile(pd_prefill *p, size_t n, bool kv_only) {
    pd_fwd *f = &p->seq->run->fwd;
    const pd_layer *ly = &f->model->layer[p->layer];
    const size_t half = f->model->hp.head_dim / 2;
    const int32_t shift = p->seq->shift[p->layer];
    if (!shift) {
        pd_fwd_rope(f, n, p->cos[ly->rope] + p->row * half, p->sin[ly->rope] + p->row * half, kv_only);
        return;
    }
    int32_t pos[PD_TILE]; /* re-rotated layers count positions from what they kept */
    for (size_t i = 0; i < n; i++) pos[i] = p->pos[p->row + i] - shift;
    pd_rope_table(f->model, ly->rope, pos, n, f->cos, f->sin);
    pd_fwd_rope(f, n, f->cos, f->sin, kv_only);
}

static pd_status run_tile(pd_prefill *p, size_t n, pd_err *err) {
    pd_seq *s = p->seq;
    pd_fwd *f = &s->run->fwd;
    const pd_hparams *hp = &f->model->hp;
    float *x = p->x + p->row * hp->n_embd;
    const bool last_layer = p->layer + 1 == hp->n_layer;
    const bool ends_prompt = of_prompt(p) && p->seg_end == s->job->n_tokens && p->row + n == seg_len(p);
    float *att_sum = p->collecting ? p->collect.att_sum : NULL;
    const bool pooled = of_prompt(p) && (s->job->pool == PD_POOL_MEAN || (s->job->pool == PD_POOL_LAST && ends_prompt));
    const bool output = !last_layer || (ends_prompt && s->job->max_tokens > 0) || (s->job->score && of_prompt(p)) || pooled || att_sum || p->to_end;
    const bool wants_q = (p->collecting && (p->collect.needs.bits & ~(unsigned)PD_NEEDS_X)) || s->ring.rows || p->ids;
    const bool kv_only = !output && !wants_q;

    if (p->layer == 0) enter(p, n);
    pd_fwd_qkv(f, p->layer, x, n, kv_only, 0);
    if (p->collecting || p->collect.x) pd_collect_raw(&p->collect, p->row, n, f->q, f->h);
    if (!kv_only && of_prompt(p)) to_ring(p, n);
    rope_tile(p, n, kv_only);
    if (p->collecting && !kv_only) pd_collect_rotated(&p->collect, p->row, n, f->q, p->pos + p->row);
    to_stage(p, n);
    if (p->ids) PD_TRY(pd_replay_rows_seen(p, n, err));
    if (!output) return PD_OK;
    pd_attn_tile(&s->run->attn, &p->stage, f->q, p->row, n, f->model->layer[p->layer].window, f->attn);
    if (att_sum)
        pd_attn_tile_sums(&s->run->attn, &p->stage, f->q, p->row, n, f->model->layer[p->layer].window, att_sum, seg_len(p));
    pd_fwd_finish(f, p->layer, x, n, 0);
    return PD_OK;
}

static pd_status next_segment(pd_prefill *p, bool *done, pd_err *err) {
    pd_seq *s = p->seq;
    for (size_t i = 0; s->ring.rows && i < seg_len(p); i++) pd_qring_advance(&s->ring, p->pos[i]);
    s->n_seen = p->seg_end;
    if (s->job->pool != PD_POOL_NONE) PD_TRY(pd_embed_segment(p, err));
    if (p->seg_end < s->job->n_tokens) {
        pd_segment_close(p);
        return pd_segment_open(p, p->seg_end, s->job->n_tokens, false, err);
    }
    s->bytes_after_prefill = pd_kv_bytes(&s->kv);
    if (s->job->max_tokens > 0)
        pd_fwd_logits(&s->run->fwd, p->x + (seg_len(p) - 1) * s->run->model->hp.n_embd, 1, s->run->logits);
    *done = true;
    return PD_OK;
}

/* Every layer holds the segment: what the prompt's own tokens are worth, if asked. */
static pd_status end_segment(pd_prefill *p, bool *done, pd_err *err) {
    p->layer = p->seq->run->model->hp.n_layer;
    return p->seq->job->score ? PD_OK : next_segment(p, done, err);
}

pd_status pd_segment_tile(pd_prefill *p, size_t rows, bool *layer_done, pd_err *err) {
    pd_fwd *f = &p->seq->run->fwd;
    p->tile = pd_min_size(p->seq->run->attn.exact ? PD_TILE : rows, seg_len(p) - p->row);
    f->adapter = p->added ? &p->added->adapter : NULL;
    const pd_status rc = run_tile(p, p->tile, err);
    f->adapter = NULL;
    PD_TRY(rc);
    p->row += p->tile;
    *layer_done = p->row == seg_len(p);
    return PD_OK;
}

void pd_segment_to_layer(pd_prefill *p, size_t layer) {
    p->layer = layer;
    p->row = 0;
    begin_layer(p);
}

void pd_segment_next_layer(pd_prefill *p) {
    pd_segment_to_layer(p, p->layer + 1);
}

static pd_status end_layer(pd_prefill *p, bool *done, pd_err *err) {
    pd_seq_note_peak(p->seq, p->stage.bytes);
    PD_TRY(pd_presser_layer(p, err));
    pd_seq_note_peak(p->seq, p->stage.bytes);
    if (p->layer + 1 < p->seq->run->model->hp.n_layer) {
        pd_segment_next_layer(p);
        return PD_OK;
    }
    p->row = 0;
    if (p->pressed && p->seq->job->deferred) return pd_replay_open(p, err);
    return end_segment(p, done, err);
}

bool pd_prefill_at_end(const pd_prefill *p) {
    return p->row == seg_len(p);
}

pd_status pd_prefill_unit(pd_prefill *p, size_t rows, bool *done, pd_err *err) {
    bool whole = false;
    *done = false;
    p->tile = 0;
    if (p->replaying) {
        PD_TRY(pd_replay_unit(p, rows, &whole, err));
        return whole ? end_segment(p, done, err) : PD_OK;
    }
    if (p->layer == p->seq->run->model->hp.n_layer) { /* all read, being scored */
        bool more;
        PD_TRY(pd_score_unit(p, &more, err));
        return more ? PD_OK : next_segment(p, done, err);
    }
    if (p->row < seg_len(p)) {
        PD_TRY(pd_segment_tile(p, rows, &whole, err));
        /* Such tags read the last row's query, which a decode step would overwrite. */
        if (!whole || !pd_tag_attends(p->seq->tags.kind)) return PD_OK;
    }
    return end_layer(p, done, err);
}
