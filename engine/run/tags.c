/* SPDX-License-Identifier: Apache-2.0 */
/* Tags of slots (see tags.h). */
#include "engine/run/tags.h"

#include "engine/base/num.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { N = PD_PAGE_TOKENS, KEYS = PD_TAGS_KEYS, HEAD_DIM_MAX = 512 };

pd_status pd_tags_init(pd_tags *t, pd_tag_kind kind, const pd_hparams *hp, const size_t *max_slots, pd_err *err) {
    *t = (pd_tags){.kind = kind, .n_layer = hp->n_layer, .n_head_kv = hp->n_head_kv, .group = hp->n_head / hp->n_head_kv};
    if (kind == PD_TAG_NONE) return PD_OK;
    size_t total = 0;
    for (size_t l = 0; l < hp->n_layer; l++) {
        if (hp->window[l]) continue;
        total += hp->n_head_kv * max_slots[l];
        t->stride = pd_max_size(t->stride, max_slots[l]);
    }
    const size_t scores = pd_tag_attends(kind) ? hp->n_head * t->stride : 0;
    t->row = calloc(hp->n_layer * hp->n_head_kv, sizeof *t->row);
    t->memory = calloc(total + 1, sizeof *t->memory); /* pages come with the slots */
    t->score = malloc((scores + 1) * sizeof *t->score);
    const size_t keys = pd_tag_attends(kind) ? hp->n_head_kv * hp->head_dim * KEYS : 0;
    t->keys = malloc((keys + 1) * sizeof *t->keys);
    if (!t->row || !t->memory || !t->score || !t->keys) {
        pd_tags_done(t);
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the slot tags of a sequence");
    }
    t->bytes = (total + scores + keys) * sizeof(float);
    float *next = t->memory;
    for (size_t l = 0; l < hp->n_layer; l++) {
        for (size_t h = 0; h < hp->n_head_kv && !hp->window[l]; h++, next += max_slots[l])
            t->row[l * hp->n_head_kv + h] = next;
    }
    return PD_OK;
}

void pd_tags_done(pd_tags *t) {
    free(t->row);
    free(t->memory);
    free(t->score);
    free(t->keys);
    *t = (pd_tags){0};
}

void pd_tags_keep(pd_tags *t, size_t layer, size_t head, const uint32_t *keep, size_t n) {
    float **tag = pd_tags_layer(t, layer);
    for (size_t i = 0; tag && i < n; i++) tag[head][i] = tag[head][keep[i]];
}

void pd_tags_fill(pd_tags *t, size_t layer, size_t head, size_t from, size_t n, float value) {
    float **tag = pd_tags_layer(t, layer);
    for (size_t i = 0; tag && i < n; i++) tag[head][from + i] = value;
}

/* ---- the weights of one step ---- */

void pd_tags_put(pd_tags *t, size_t head, size_t slot, size_t n, const float *w, size_t ld) {
    assert(slot + n <= t->stride);
    for (size_t g = 0; g < t->group; g++) memcpy(t->score + (head * t->group + g) * t->stride + slot, w + g * ld, n * sizeof *w);
}

void pd_tags_add(pd_tags *t, const pd_kernels *kern, size_t layer, size_t q_head, size_t slot, size_t n, float scale) {
    const float *restrict w = t->score + q_head * t->stride + slot;
    float *restrict tag = pd_tags_layer(t, layer)[q_head / t->group] + slot;
    if (t->kind != PD_TAG_SQUARES) {
        kern->axpy_f32(t->kind == PD_TAG_ATTENTION ? scale / (float)t->group : scale, w, tag, n);
        return;
    }
    const float square = scale * scale;
    for (size_t i = 0; i < n; i++) tag[i] += square * (w[i] * w[i]);
}

typedef struct {
    pd_tags *t;
    const pd_attn *a;
    const pd_kv *kv;
    size_t layer;
    const float *q;
} attend_job;

/* The keys of n slots from slot `from` on as k [D][KEYS]: long rows for one axpy each.
 * (Plain dot products over one page took 4.3 ms for 30 layers of 1,000 slots, this 1.6.) */
static void unpack_keys(const attend_job *j, size_t head, size_t from, size_t n, float *k) {
    const size_t d = j->kv->head_dim;
    const pd_kv_head *kh = pd_kv_at(j->kv, j->layer, head);
    float tmp[HEAD_DIM_MAX * N];
    for (size_t at = 0; at < n;) {
        const pd_kv_place place = pd_kv_find(kh, from + at);
        const float *page = pd_kv_page_keys(j->kv, j->layer, head, place, tmp);
        const size_t run = pd_min_size(place.run, n - at);
        for (size_t c = 0; c < d; c++) memcpy(k + c * KEYS + at, page + c * N + place.slot, run * sizeof *k);
        at += run;
    }
}

static void attend_head(void *ctx, size_t h, unsigned thread) {
    (void)thread;
    const attend_job *j = ctx;
    const pd_hparams *hp = &j->a->model->hp;
    const pd_kernels *kern = j->a->kern;
    const size_t d = hp->head_dim, group = hp->n_head / hp->n_head_kv;
    const pd_kv_head *kh = pd_kv_at(j->kv, j->layer, h);
    float *k = j->t->keys + h * d * KEYS;
    assert(d <= HEAD_DIM_MAX && kh->n <= j->t->stride);
    for (size_t at = 0; at < kh->n; at += KEYS) {
        const size_t n = pd_min_size(KEYS, kh->n - at);
        unpack_keys(j, h, at, n, k);
        for (size_t g = 0; g < group; g++) {
            const float *q = j->q + (h * group + g) * d;
            float *row = j->t->score + (h * group + g) * j->t->stride + at;
            memset(row, 0, n * sizeof *row);
            for (size_t c = 0; c < d; c++) kern->axpy_f32(q[c] * hp->attn_scale, k + c * KEYS, row, n);
        }
    }
    for (size_t g = 0; g < group; g++) {
        float *row = j->t->score + (h * group + g) * j->t->stride;
        if (hp->attn_softcap > 0.0f) kern->softcap(row, kh->n, hp->attn_softcap);
        const float sum = kern->exp_sum_f32(row, kh->n, kern->max_f32(row, kh->n));
        pd_tags_add(j->t, kern, j->layer, h * group + g, 0, kh->n, 1.0f / sum);
    }
}

void pd_tags_attend(pd_tags *t, pd_attn *a, const pd_kv *kv, size_t layer, const float *q) {
    if (!pd_tags_layer(t, layer)) return;
    attend_job job = {t, a, kv, layer, q};
    pd_workers_run(a->workers, attend_head, &job, t->n_head_kv);
}
