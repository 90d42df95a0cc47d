/* SPDX-License-Identifier: Apache-2.0 */
/* Reading some of a layer's joint latents (see joint_read.h). */
#include "engine/run/select.h"

#include "engine/base/num.h"
#include "engine/base/rng.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N = PD_PAGE_TOKENS, SAMPLE = 16, SAMPLE_MAX = 4096, BLOCK = 32 /* pages of a scores task */, ROWS = PD_JOINT_ROWS, PIECE = PD_JOINT_PIECE };

pd_status pd_joint_read_init(pd_joint_read *r, const pd_latent_rule *rule, uint64_t seed, const pd_hparams *hp, pd_kv_type key,
                             const size_t *max_slots, pd_err *err) {
    *r = (pd_joint_read){.rule = rule->read, .n_sink = rule->n_sink, .seed = seed};
    size_t most = 0;
    for (size_t l = 0; l < hp->n_layer; l++)
        if (rule->layer[l] && !hp->window[l]) most = pd_max_size(most, max_slots[l]);
    if (!rule->joint || rule->read.share >= 1.0 || most == 0) return PD_OK;
    r->stride = pd_max_size(pd_div_up(most, N) * N + N, hp->n_head_kv * hp->head_dim);
    /* at most, whole pages and what is projected until the next choice */
    r->cap = pd_min_size(r->stride, pd_div_up((size_t)(rule->read.share * (double)r->stride) + 1, N) * N + rule->n_sink + 4 * N + rule->read.reuse);
    const size_t lists = 2 * (hp->n_layer + 1) * r->cap; /* slots and rows, and scratch */
    r->key_bytes = hp->n_head_kv * hp->head_dim * (key == PD_KV_F16 ? 2 : 4);
    r->bytes = pd_div_up((2 * r->stride + N + rule->read.score) * sizeof *r->score, 64) * 64;
    r->score = aligned_alloc(64, r->bytes);
    r->slot = malloc(lists * sizeof *r->slot);
    r->keys = malloc(hp->n_layer * r->cap * r->key_bytes); /* not touched before it is used */
    r->n = calloc(3 * hp->n_layer, sizeof *r->n);
    r->bytes += lists * sizeof *r->slot + hp->n_layer * r->cap * r->key_bytes + 3 * hp->n_layer * sizeof *r->n;
    if (!r->score || !r->slot || !r->keys || !r->n) {
        pd_joint_read_done(r);
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for what a sequence's steps read");
    }
    r->room = (uint32_t *)(r->score + r->stride);
    r->query = (float *)(r->room + r->stride + N);
    r->row = r->slot + hp->n_layer * r->cap;
    r->list = r->row + hp->n_layer * r->cap;
    r->spare = r->list + r->cap;
    for (size_t i = 0; i < hp->n_layer * r->cap; i++) r->row[i] = (uint32_t)(i % r->cap);
    r->then = r->n + hp->n_layer;
    r->age = r->then + hp->n_layer;
    return PD_OK;
}

void pd_joint_read_done(pd_joint_read *r) {
    free(r->score);
    free(r->slot);
    free(r->keys);
    free(r->n);
    *r = (pd_joint_read){0};
}

pd_joint_look pd_joint_look_at(const pd_joint_read *r, const pd_kv *kv, size_t layer) {
    const size_t n_pack = pd_kv_at(kv, layer, 0)->n_pack;
    if (!r || !r->score || n_pack == 0) return (pd_joint_look){.n = n_pack};
    return (pd_joint_look){.slot = r->slot + layer * r->cap, .n = r->n[layer], .row = r->row + layer * r->cap,
                           .keys = (char *)r->keys + layer * r->cap * r->key_bytes, .key_bytes = r->key_bytes};
}

/* ---- choosing ---- */

typedef struct {
    const pd_kernels *kern;
    const pd_hparams *hp;
    pd_kv *const *kv;
    pd_select *const *sel;
    size_t n_seq, layer, n_block;
} choose_job;

static size_t packed(const choose_job *j, size_t seq) {
    return pd_kv_at(j->kv[seq], j->layer, 0)->n_pack;
}

/* The sequence's, if it reads some of this layer's latents; and if it has to choose now. */
static pd_joint_read *reads(const choose_job *j, size_t seq) {
    pd_joint_read *r = j->sel[seq] ? &j->sel[seq]->joint : NULL;
    return r && r->score && pd_kv_joint(j->kv[seq], j->layer) && packed(j, seq) ? r : NULL;
}

static pd_joint_read *chooses(const choose_job *j, size_t seq) {
    pd_joint_read *r = reads(j, seq);
    return r && r->age[j->layer] == 0 ? r : NULL;
}

/* The mean query of each group, projected. */
static void make_query(const choose_job *j, size_t seq, const float *q) {
    pd_joint_read *r = &j->sel[seq]->joint;
    float *tmp = r->score; /* not in use yet */
    const pd_kv *kv = j->kv[seq];
    const size_t d = kv->head_dim, group = j->hp->n_head / kv->n_head_kv;
    const pd_kv_head *kh = pd_kv_at(kv, j->layer, 0);
    const pd_kv_place last = pd_kv_find(kh, kh->n - 1); /* the query's own token */
    const pd_kvpool *pool = last.packed ? pd_kv_pack_pool(kv, kh) : kv->pool;
    memset(tmp, 0, kv->n_head_kv * d * sizeof *tmp);
    for (size_t i = 0; i < j->hp->n_head; i++)
        kv->kern->axpy_f32(1.0f / (float)group, q + i * d, tmp + i / group * d, d);
    pd_joint_query(pd_kv_joint(kv, j->layer), kv->kern, tmp, pd_kvpool_pos(pool, kh->page[last.page])[last.slot],
                   r->rule.score, r->query);
}

/* Task = sequence, block of pages: the scores of their slots. */
static void score_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const choose_job *j = ctx;
    const size_t seq = task / j->n_block, p0 = task % j->n_block * BLOCK;
    const pd_kv *kv = j->kv[seq];
    const pd_joint_read *r = chooses(j, seq);
    const size_t n_page = r ? pd_kv_at(kv, j->layer, 0)->n_pack_page : 0;
    if (p0 >= n_page) return;
    const size_t n = pd_min_size(BLOCK, n_page - p0), part = pd_joint_part(pd_kv_joint(kv, j->layer));
    const void *pages[BLOCK];
    float tmp[BLOCK * N + N], *score = r->score + p0 * N;
    for (size_t at = 0, h = 0; at < r->rule.score; at += part, h++) {
        const pd_kv_head *kh = pd_kv_at(kv, j->layer, h);
        for (size_t p = 0; p < n; p++) pages[p] = pd_kvpool_page(pd_kv_pack_pool(kv, kh), kh->page[p0 + p]);
        const pd_part_pass pass = {.pages = pages, .n = n * N, .n_group = 1, .head_dim = pd_min_size(part, r->rule.score - at),
                                   .tmp = at ? tmp : score, .tmp_stride = n * N, .q = r->query + at};
        if (kv->codec.key == PD_KV_F16)
            kv->kern->scores_f16(&pass);
        else
            kv->kern->scores_f32(&pass);
        if (at) kv->kern->axpy_f32(1.0f, tmp, score, n * N);
    }
}

/* For comparison: in [0, 1), of these numbers alone. */
static float drawn(const pd_joint_read *r, size_t layer, size_t n, size_t slot) {
    pd_rng rng = {r->seed ^ (uint64_t)layer << 48 ^ (uint64_t)n << 24 ^ slot};
    return (float)(pd_rng_u64(&rng) >> 40);
}

/* A page counts by the sum of what its tokens would weigh if they alone were read. */
static size_t to_pages(const pd_kernels *kern, float *score, size_t n, float scale) {
    const size_t n_page = pd_div_up(n, N);
    for (size_t p = 0; p < n_page; p++) {
        float x[N];
        const size_t live = pd_min_size(N, n - p * N);
        for (size_t i = 0; i < live; i++) x[i] = score[p * N + i] * scale;
        const float max = kern->max_f32(x, live);
        score[p] = max + logf(kern->exp_sum_f32(x, live, max));
    }
    return n_page;
}

/* The k best of n scores, as pd_top_k has them: of every SAMPLE-th one the score that a few more than k are
 * likely to reach, then the choice among those that do.  Three times as fast from some 2,000 on.
 * `room`: n + 16 numbers. */
static void best(const pd_kernels *kern, const float *score, size_t n, size_t k, uint32_t *room, uint32_t *list) {
    float some[SAMPLE_MAX];
    const size_t n_some = n / SAMPLE, want = k / SAMPLE + k / (4 * SAMPLE) + 8;
    size_t m = 0;
    if (n_some <= SAMPLE_MAX && 2 * want < n_some) {
        for (size_t i = 0; i < n_some; i++) some[i] = score[i * SAMPLE + i % SAMPLE];
        (void)pd_top_k(some, n_some, want, list, NULL, NULL);
        float least = INFINITY;
        for (size_t i = 0; i < want; i++) least = fminf(least, some[list[i]]);
        m = kern->list_from_f32(score, n, 1, n, &least, room);
    }
    if (m < k || m > n / 2) { /* a sample that was not like the rest */
        (void)pd_top_k(score, n, k, list, NULL, NULL); /* cannot fail without scratch */
        return;
    }
    float *x = (float *)(room + m); /* m < n / 2: there is room */
    for (size_t i = 0; i < m; i++) x[i] = score[room[i]];
    (void)pd_top_k(x, m, k, list, NULL, NULL);
    for (size_t i = 0; i < k; i++) list[i] = room[list[i]];
}

/* The k slots of r->list take the place of the layer's: those that were there keep their rows, the others
 * get rows that are free now. */
static void take_list(pd_joint_read *r, size_t layer, size_t k) {
    uint32_t *slot = r->slot + layer * r->cap, *row = r->row + layer * r->cap;
    const size_t n = r->n[layer];
    size_t n_spare = 0, o = 0;
    for (size_t i = 0; i < k; i++) { /* r->room: the rows of the new list */
        while (o < n && slot[o] < r->list[i]) r->spare[n_spare++] = row[o++] & ~PD_JOINT_FRESH;
        r->room[i] = o < n && slot[o] == r->list[i] ? row[o++] & ~PD_JOINT_FRESH : UINT32_MAX;
    }
    while (o < r->cap) r->spare[n_spare++] = row[o++] & ~PD_JOINT_FRESH; /* the rest, and those that were free */
    for (size_t i = 0; i < k; i++) {
        slot[i] = r->list[i];
        row[i] = r->room[i] != UINT32_MAX ? r->room[i] : r->spare[--n_spare] | PD_JOINT_FRESH;
    }
    memcpy(row + k, r->spare, n_spare * sizeof *row);
    r->n[layer] = (uint32_t)k;
}

static void choose(const choose_job *j, size_t seq) {
    pd_joint_read *r = &j->sel[seq]->joint;
    const pd_kv *kv = j->kv[seq];
    const pd_kv_head *kh = pd_kv_at(kv, j->layer, 0);
    const size_t n_pack = kh->n_pack;
    uint32_t *list = r->list;
    float *score = r->score;
    size_t n = n_pack;
    for (size_t i = 0; r->rule.order != PD_PAGES_BOUND && i < n; i++)
        score[i] = r->rule.order == PD_PAGES_RECENT ? (float)i : drawn(r, j->layer, kh->n, i);
    const int32_t *pos = pd_kvpool_pos(pd_kv_pack_pool(kv, kh), kh->page[0]);
    size_t sinks = 0;
    while (sinks < N && sinks < n_pack && (size_t)pos[sinks] < r->n_sink) sinks++;
    if (r->rule.pages) {
        n = to_pages(kv->kern, score, n_pack, j->hp->attn_scale);
        sinks = pd_min_size(sinks, 1);
    }
    for (size_t i = 0; i < sinks; i++) score[i] = INFINITY;
    size_t k = pd_min_size(n, (size_t)ceil(r->rule.share * (double)n) + sinks);
    best(kv->kern, score, n, k, r->room, list);
    if (r->rule.pages) { /* from the last on, so that none is written over before it is read */
        size_t end = k * N;
        if (list[k - 1] == n - 1) end -= n * N - n_pack;
        for (size_t i = k, to = end; i-- > 0;) {
            const size_t first = (size_t)list[i] * N, live = pd_min_size(N, n_pack - first);
            to -= live;
            for (size_t s = 0; s < live; s++) list[to + s] = (uint32_t)(first + s);
        }
        k = end;
    }
    assert(k <= r->cap);
    take_list(r, j->layer, k);
    r->then[j->layer] = (uint32_t)n_pack;
}

/* What was projected since the choice is read too. */
static void add_new(pd_joint_read *r, const pd_kv *kv, size_t layer) {
    const size_t n_pack = pd_kv_at(kv, layer, 0)->n_pack;
    uint32_t *slot = r->slot + layer * r->cap, *row = r->row + layer * r->cap;
    const size_t n = r->n[layer];
    for (size_t i = 0; i < n; i++) row[i] &= ~PD_JOINT_FRESH;
    for (size_t i = r->then[layer]; i < n_pack; i++) {
        assert(r->n[layer] < r->cap);
        row[r->n[layer]] |= PD_JOINT_FRESH;
        slot[r->n[layer]++] = (uint32_t)i;
    }
    r->then[layer] = (uint32_t)n_pack;
}

void pd_joint_choose(pd_workers *workers, const pd_kernels *kern, const pd_hparams *hp, pd_kv *const *kv,
                     struct pd_select *const *sel, size_t n_seq, size_t layer, const float *q) {
    choose_job j = {.kern = kern, .hp = hp, .kv = kv, .sel = sel, .n_seq = n_seq, .layer = layer};
    for (size_t s = 0; s < n_seq; s++) {
        const pd_joint_read *r = chooses(&j, s);
        if (!r) continue;
        j.n_block = pd_max_size(j.n_block, pd_div_up(pd_kv_at(kv[s], layer, 0)->n_pack_page, BLOCK));
        if (r->rule.order == PD_PAGES_BOUND) make_query(&j, s, q + s * hp->n_head * hp->head_dim);
    }
    if (j.n_block) pd_workers_run(workers, score_task, &j, n_seq * j.n_block);
    for (size_t s = 0; s < n_seq; s++) {
        pd_joint_read *r = reads(&j, s);
        if (!r) continue;
        if (r->age[layer] == 0)
            choose(&j, s);
        else
            add_new(r, kv[s], layer);
        r->age[layer] = (uint32_t)((r->age[layer] + 1) % r->rule.reuse);
    }
}

/* ---- attending ---- */

static size_t up(size_t n) {
    return pd_div_up(n, 16) * 16;
}

size_t pd_joint_piece_floats(const pd_hparams *hp) {
    const size_t row = hp->n_head_kv * hp->head_dim, group = hp->n_head / hp->n_head_kv;
    return 3 * ROWS * row + row * N + ROWS * N + hp->n_head * PIECE + up(group * PIECE * N) + 16;
}

/* Keys x [n][row] of packed slots slot[0..n), or n from `first` on (NULL).  c: ROWS * rank floats. */
static void rebuild(const pd_kv *kv, size_t layer, const uint32_t *slot, size_t first, size_t n, float *c, float *x) {
    const pd_joint *joint = pd_kv_joint(kv, layer);
    const size_t d = kv->head_dim, row = pd_joint_row(joint);
    int32_t pos[ROWS];
    pd_kv_read_joint(kv, layer, slot, first, n, c, pos);
    pd_joint_rebuild(joint, kv->kern, c, pos, n, x);
    for (size_t t = 0; t < n; t++)
        for (size_t h = 0; (size_t)pos[t] < kv->pack.n_sink && h < kv->n_head_kv; h++)
            memcpy(x + t * row + h * d, pd_kv_sinks(kv, layer, h) + (size_t)pos[t] * d, d * sizeof *x);
}

/* The same of the look's tokens [first, first + n), of which those that are fresh are rebuilt.  tmp: 2 * ROWS * row. */
static void look_keys(const pd_kv *kv, size_t layer, const pd_joint_look *look, size_t first, size_t n, float *tmp, float *x) {
    const size_t row = kv->n_head_kv * kv->head_dim;
    const bool f16 = kv->codec.key == PD_KV_F16;
    float *y = tmp + ROWS * row;
    uint32_t fresh[ROWS], at[ROWS];
    size_t n_fresh = 0;
    for (size_t i = first; i < first + n; i++) {
        if (!(look->row[i] & PD_JOINT_FRESH)) continue;
        at[n_fresh] = look->row[i] & ~PD_JOINT_FRESH;
        fresh[n_fresh++] = look->slot[i];
    }
    if (n_fresh) rebuild(kv, layer, fresh, 0, n_fresh, tmp, y);
    for (size_t i = 0; i < n_fresh; i++) {
        void *key = (char *)look->keys + at[i] * look->key_bytes;
        if (f16)
            kv->kern->f32_to_f16(y + i * row, key, row);
        else
            memcpy(key, y + i * row, look->key_bytes);
    }
    for (size_t i = 0; i < n; i++) {
        const void *key = (const char *)look->keys + (look->row[first + i] & ~PD_JOINT_FRESH) * look->key_bytes;
        if (f16)
            kv->kern->f16_to_f32(key, x + i * row, row);
        else
            memcpy(x + i * row, key, look->key_bytes);
    }
}

/* Scores s [n_head][PIECE] of the tokens' keys.  qt [Hk][D][16]: a group's queries side by side. */
static void piece_scores(const pd_kv *kv, const pd_hparams *hp, size_t layer, const pd_joint_look *look, size_t first, size_t n,
                         const float *qt, float *scratch, float *s) {
    const size_t d = kv->head_dim, row = kv->n_head_kv * d, group = hp->n_head / hp->n_head_kv;
    float *tmp = scratch, *x = tmp + 2 * ROWS * row, *st = x + ROWS * row;
    for (size_t i = 0; i < n; i += ROWS) {
        const size_t m = pd_min_size(ROWS, n - i);
        if (look->slot)
            look_keys(kv, layer, look, first + i, m, tmp, x);
        else
            rebuild(kv, layer, NULL, first + i, m, tmp, x);
        for (size_t h = 0; h < kv->n_head_kv; h++) {
            kv->kern->matmul_f32(x + h * d, row, m, d, qt + h * d * N, N, N, st, N);
            for (size_t g = 0; g < group; g++)
                for (size_t t = 0; t < m; t++) s[(h * group + g) * PIECE + i + t] = st[t * N + g];
        }
    }
}

void pd_joint_piece(const pd_kv *kv, const pd_hparams *hp, size_t layer, const pd_joint_look *look, size_t first, size_t n,
                    const float *q, float *scratch, float *part, size_t part_stride) {
    const size_t d = kv->head_dim, group = hp->n_head / hp->n_head_kv, row = kv->n_head_kv * d;
    float *qt = scratch + 3 * ROWS * row + ROWS * N, *s = qt + row * N, *w = s + hp->n_head * PIECE;
    uint32_t at[PIECE], page[PIECE]; /* a token's place among the pages of the piece; those pages */
    const void *pages[PIECE];
    size_t n_page = 0;
    assert(n >= 1 && n <= PIECE && group <= N); /* kernels have groups of 16 at most */
    memset(qt, 0, row * N * sizeof *qt);
    for (size_t i = 0; i < hp->n_head * d; i++) qt[(i / (group * d) * d + i % d) * N + i / d % group] = q[i] * hp->attn_scale;
    piece_scores(kv, hp, layer, look, first, n, qt, scratch, s);
    for (size_t i = 0; i < n; i++) {
        const size_t slot = look->slot ? look->slot[first + i] : first + i;
        if (n_page == 0 || page[n_page - 1] != slot / N) page[n_page++] = (uint32_t)(slot / N);
        at[i] = (uint32_t)((n_page - 1) * N + slot % N);
    }
    const size_t stride = n_page * N;
    for (size_t h = 0; h < kv->n_head_kv; h++) {
        const pd_kv_head *kh = pd_kv_at(kv, layer, h);
        float *m = part + h * part_stride, *l = m + group, *acc = l + group;
        for (size_t p = 0; p < n_page; p++) pages[p] = pd_kvpool_page(pd_kv_pack_pool(kv, kh), kh->page[page[p]]);
        for (size_t g = 0; g < group; g++) {
            float *x = s + (h * group + g) * PIECE;
            if (hp->attn_softcap > 0.0f) kv->kern->softcap(x, n, hp->attn_softcap);
            m[g] = kv->kern->max_f32(x, n);
            l[g] = kv->kern->exp_sum_f32(x, n, m[g]);
            for (size_t i = 0; i < n; i++) w[g * stride + at[i]] = x[i];
        }
        pd_codec_rows(&kv->codec, kv->kern, group, pd_kv_pack_dim(kv, kh), d, pages, at, n, w, stride, acc);
    }
}
