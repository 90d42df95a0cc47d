/* SPDX-License-Identifier: Apache-2.0 */
/* One decode step: the next token of every running sequence, in one batch.
 *
 * Rows are independent (PD_MAT_PER_TOKEN, attention per sequence), so a
 * sequence's logits are the same bits whoever else is in the batch. */
#include "engine/run/seq.h"

#include "engine/base/num.h"

#include <stdint.h>
#include <string.h>

/* The new token's keys and values into the pages; a windowed layer lets go of
 * what left its window. */
static pd_status append(pd_seq *s, size_t layer, const float *k, const float *v, int32_t pos, pd_err *err) {
    const size_t d = s->kv.head_dim, window = s->run->model->layer[layer].window;
    for (size_t h = 0; h < s->kv.n_head_kv; h++) {
        PD_TRY(pd_kv_append(&s->kv, layer, h, k + h * d, v + h * d, d, &pos, NULL, 1, err));
        const size_t n = pd_kv_at(&s->kv, layer, h)->n;
        if (s->tags.kind) pd_tags_fill(&s->tags, layer, h, n - 1, 1, 0.0f);
        if (window && n > window) pd_kv_drop_front(&s->kv, layer, h, n - window);
    }
    return PD_OK;
}

/* cos/sin of each row's position in this layer; tables are kept while layers
 * share RoPE and positions. */
static void rope_rows(pd_run *run, pd_seq *const *seq, size_t n, size_t layer, size_t *table) {
    pd_fwd *f = &run->fwd;
    const size_t rope = run->model->layer[layer].rope;
    bool shifted = false;
    for (size_t i = 0; i < n; i++) {
        run->step_pos[i] = (int32_t)seq[i]->n_seen - seq[i]->shift[layer];
        shifted = shifted || seq[i]->shift[layer] != 0;
    }
    if (shifted || *table != rope) pd_rope_table(run->model, rope, run->step_pos, n, f->cos, f->sin);
    *table = shifted ? SIZE_MAX : rope; /* another layer may be shifted otherwise */
    pd_fwd_rope(f, n, f->cos, f->sin, false);
}

pd_status pd_decode_step(pd_run *run, pd_seq *const *seq, size_t n, size_t *bad, pd_err *err) {
    pd_fwd *f = &run->fwd;
    const pd_hparams *hp = &run->model->hp;
    const size_t nq = hp->n_head * hp->head_dim, nkv = hp->n_head_kv * hp->head_dim;
    *bad = SIZE_MAX;
    for (size_t i = 0; i < n; i++) {
        run->step_kv[i] = &seq[i]->kv;
        run->step_sel[i] = &seq[i]->select;
        pd_fwd_embed(f, seq[i]->next, run->x + i * hp->n_embd);
    }
    size_t table = SIZE_MAX;
    for (size_t l = 0; l < hp->n_layer; l++) {
        pd_fwd_qkv(f, l, run->x, n, false, PD_MAT_PER_TOKEN);
        for (size_t i = 0; i < n; i++) {
            if (seq[i]->ring.rows) pd_qring_put(&seq[i]->ring, l, 0, f->q + i * nq);
            if (seq[i]->x_new)
                memcpy(seq[i]->x_new + l * hp->n_embd, f->h + i * hp->n_embd, hp->n_embd * sizeof *f->h);
        }
        rope_rows(run, seq, n, l, &table);
        for (size_t i = 0; i < n; i++) {
            const pd_status rc = append(seq[i], l, f->k + i * nkv, f->v + i * nkv, run->step_pos[i], err);
            if (rc != PD_OK) {
                *bad = i;
                return rc;
            }
        }
        pd_attn_step(&run->attn, run->step_kv, run->step_sel, n, l, f->q, f->attn);
        for (size_t i = 0; i < n; i++)
            if (seq[i]->tags.kind == PD_TAG_ATTENTION) pd_tags_attend(&seq[i]->tags, &run->attn, &seq[i]->kv, l, f->q + i * nq);
        pd_fwd_finish(f, l, run->x, n, PD_MAT_PER_TOKEN);
    }
    for (size_t i = 0; i < n; i++) {
        if (seq[i]->ring.rows) pd_qring_advance(&seq[i]->ring, (int32_t)seq[i]->n_seen);
        seq[i]->n_seen++;
        pd_seq_note_peak(seq[i], 0);
    }
    pd_fwd_logits(f, run->x, n, run->logits);
    return PD_OK;
}
