/* SPDX-License-Identifier: Apache-2.0 */
/* Reading some of a layer's joint latents (see joint_read.h). */
#include "engine/run/select.h"

#include "engine/base/num.h"
#include "engine/base/rng.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N = PD_PAGE_TOKENS, SAMPLE = 16, SAMPLE_MAX = 4096, BLOCK = 32 /* pages of a scores task */, ROWS = PD_JOINT_ROWS, PIECE = PD_JOINT_PIECE, PART_MAX = 512 /* kv.h has no wider rows */ };

/* What each layer that is chosen in gets of the block, laid out from its start; how many bytes it takes. */
static size_t lay_out(pd_joint_read *r, const pd_latent_rule *rule, const pd_hparams *hp, char *block) {
    const size_t part[] = {r->n_row * r->key_bytes, r->stride / N * r->plane_bytes, r->stride * sizeof(uint32_t),
                           r->n_row * sizeof(uint32_t), 2 * r->cap * sizeof(uint32_t), r->n_row};
    size_t at = 0;
    for (size_t l = 0; l < hp->n_layer; l++) {
        char *p[sizeof part / sizeof *part];
        if (!rule->layer[l] || hp->window[l]) continue;
        for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
            p[i] = block ? block + at : NULL;
            at += pd_div_up(part[i], 64) * 64;
        }
        if (block)
            r->layer[l] = (pd_joint_layer){.keys = p[0], .plane = p[1], .where = (uint32_t *)p[2], .of = (uint32_t *)p[3],
                                           .slot = (uint32_t *)p[4], .row = (uint32_t *)p[4] + r->cap, .use = (uint8_t *)p[5]};
    }
    return at;
}

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
    r->n_row = pd_min_size(r->stride, PD_JOINT_KEEP * r->cap);
    r->codec = pd_codec_of(key == PD_KV_F16 ? PD_KV_Q8_0 : PD_KV_F32, PD_KV_F32);
    const size_t group = pd_kv_type_group(r->codec.key);
    r->rule.score = (uint16_t)pd_min_size(r->rule.score, PD_JOINT_LEAD);
    r->lead = pd_div_up(r->rule.score, group) * group;
    r->plane_bytes = r->codec.k->bytes(r->lead);
    r->key_bytes = hp->n_head_kv * hp->head_dim * (key == PD_KV_F16 ? 2 : 4);
    const size_t scratch = 2 * r->stride + N + r->cap + r->lead + pd_codec_attn_floats(1, r->lead);
    r->bytes = pd_div_up(scratch * sizeof *r->score, 64) * 64;
    const size_t block = lay_out(r, rule, hp, NULL);
    r->score = aligned_alloc(64, r->bytes);
    r->block = calloc(1, block); /* most of it is not touched before it is used */
    r->layer = calloc(hp->n_layer, sizeof *r->layer);
    if (!r->score || !r->block || !r->layer) {
        pd_joint_read_done(r);
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for what a sequence's steps read");
    }
    (void)lay_out(r, rule, hp, r->block);
    r->bytes += block + hp->n_layer * sizeof *r->layer;
    r->room = (uint32_t *)(r->score + r->stride);
    r->list = r->room + r->stride + N;
    r->lead_q = (float *)(r->list + r->cap);
    r->scratch = r->lead_q + r->lead;
    return PD_OK;
}

void pd_joint_read_done(pd_joint_read *r) {
    free(r->score);
    free(r->block);
    free(r->layer);
    *r = (pd_joint_read){0};
}

pd_joint_look pd_joint_look_at(const pd_joint_read *r, const pd_kv *kv, size_t layer) {
    const size_t n_pack = pd_kv_at(kv, layer, 0)->n_pack;
    if (!r || !r->score || n_pack == 0) return (pd_joint_look){.n = n_pack};
    const pd_joint_layer *y = &r->layer[layer];
    return (pd_joint_look){.slot = y->slot, .n = y->n, .row = y->row, .keys = y->keys, .key_bytes = r->key_bytes};
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
    return r && r->layer[j->layer].age == 0 ? r : NULL;
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
    memset(r->lead_q, 0, r->lead * sizeof *r->lead_q);
    pd_joint_query(pd_kv_joint(kv, j->layer), kv->kern, tmp, pd_kvpool_pos(pool, kh->page[last.page])[last.slot], r->rule.score, r->lead_q);
    r->query = (pd_part_pass){.n_group = 1, .head_dim = r->lead};
    pd_codec_query(&r->codec, kv->kern, r->lead_q, r->scratch, &r->query);
}

/* The first numbers of slots [from, end) into the plane. */
static void fill_plane(const choose_job *j, const pd_kv *kv, const pd_joint_read *r, size_t from, size_t end) {
    const size_t part = pd_joint_part(pd_kv_joint(kv, j->layer)), score = r->rule.score;
    float row[PD_JOINT_LEAD + PART_MAX];
    assert(part <= PART_MAX);
    for (size_t i = from; i < end; i++) {
        for (size_t at = 0, h = 0; at < score; at += part, h++) {
            const pd_kv_head *kh = pd_kv_at(kv, j->layer, h);
            kv->pack.codec.k->read(kv->kern, pd_kvpool_page(pd_kv_pack_pool(kv, kh), kh->page[i / N]), part, i % N, row + at);
        }
        memset(row + score, 0, (r->lead - score) * sizeof *row);
        r->codec.k->write(kv->kern, r->layer[j->layer].plane + i / N * r->plane_bytes, r->lead, i % N, 1, row, r->lead);
    }
}

/* Task = sequence, block of pages: the scores of their slots. */
static void score_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const choose_job *j = ctx;
    const size_t seq = task / j->n_block, p0 = task % j->n_block * BLOCK;
    const pd_joint_read *r = chooses(j, seq);
    const size_t n_pack = r && r->rule.order == PD_PAGES_BOUND ? packed(j, seq) : 0;
    if (p0 * N >= n_pack) return;
    const size_t end = pd_min_size((p0 + BLOCK) * N, n_pack), planed = r->layer[j->layer].planed;
    if (end > planed) fill_plane(j, j->kv[seq], r, pd_max_size(planed, p0 * N), end);
    const void *pages[BLOCK];
    for (size_t p = 0; p < BLOCK; p++) pages[p] = r->layer[j->layer].plane + (p0 + p) * r->plane_bytes;
    pd_part_pass pass = r->query;
    pass.pages = pages;
    pass.n = end - p0 * N;
    pass.tmp = r->score + p0 * N;
    pass.tmp_stride = BLOCK * N;
    pd_codec_score(&r->codec, j->kern, &pass);
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

enum { IDLE, SEEN, NOW }; /* pd_joint_layer.use */

/* A row for the key of a slot that has none: there are more rows than a step reads. */
static uint32_t take_row(const pd_joint_read *r, pd_joint_layer *y, uint32_t slot) {
    while (y->use[y->hand] != IDLE) {
        if (y->use[y->hand] == SEEN) y->use[y->hand] = IDLE;
        y->hand = y->hand + 1 < r->n_row ? y->hand + 1 : 0;
    }
    const uint32_t row = y->hand;
    if (y->of[row]) y->where[y->of[row] - 1] = 0;
    y->of[row] = slot + 1;
    y->where[slot] = row + 1;
    y->use[row] = NOW;
    return row | PD_JOINT_FRESH;
}

/* The k slots of r->list take the place of the layer's. */
static void take_list(const pd_joint_read *r, pd_joint_layer *y, size_t k) {
    for (size_t i = 0; i < y->n; i++) y->use[y->row[i] & ~PD_JOINT_FRESH] = SEEN;
    for (size_t i = 0; i < k; i++)
        if (y->where[r->list[i]]) y->use[y->where[r->list[i]] - 1] = NOW; /* before any is taken away */
    for (size_t i = 0; i < k; i++) {
        const uint32_t slot = r->list[i];
        y->slot[i] = slot;
        y->row[i] = y->where[slot] ? y->where[slot] - 1 : take_row(r, y, slot);
    }
    y->n = (uint32_t)k;
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
    take_list(r, &r->layer[j->layer], k);
    r->layer[j->layer].then = r->layer[j->layer].planed = (uint32_t)n_pack;
}

/* What was projected since the choice is read too. */
static void add_new(const pd_joint_read *r, pd_joint_layer *y, size_t n_pack) {
    for (size_t i = 0; i < y->n; i++) y->row[i] &= ~PD_JOINT_FRESH;
    for (size_t i = y->then; i < n_pack; i++) {
        assert(y->n < r->cap);
        y->slot[y->n] = (uint32_t)i;
        y->row[y->n++] = take_row(r, y, (uint32_t)i);
    }
    y->then = (uint32_t)n_pack;
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
        pd_joint_layer *y = &r->layer[layer];
        if (y->age == 0)
            choose(&j, s);
        else
            add_new(r, y, packed(&j, s));
        y->age = (uint32_t)((y->age + 1) % r->rule.reuse);
    }
}

/* ---- attending ---- */

size_t pd_joint_piece_floats(const pd_hparams *hp) {
    const size_t row = hp->n_head_kv * hp->head_dim;
    return 3 * ROWS * row + row * N + ROWS * N + hp->n_head * PIECE + 16;
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

/* Keys of the look's tokens [first, first + n) that are fresh go to their rows; row[n]: all their rows.
 * tmp: 2 * ROWS * row. */
static void freshen(const pd_kv *kv, size_t layer, const pd_joint_look *look, size_t first, size_t n, float *tmp, uint32_t *row) {
    const size_t len = kv->n_head_kv * kv->head_dim;
    float *y = tmp + ROWS * len;
    uint32_t fresh[ROWS], at[ROWS];
    size_t n_fresh = 0;
    for (size_t i = 0; i < n; i++) {
        const uint32_t x = look->row[first + i];
        row[i] = x & ~PD_JOINT_FRESH;
        if (x & PD_JOINT_FRESH) {
            at[n_fresh] = row[i];
            fresh[n_fresh++] = look->slot[first + i];
        }
        if (n_fresh < ROWS && (i + 1 < n || n_fresh == 0)) continue;
        rebuild(kv, layer, fresh, 0, n_fresh, tmp, y);
        for (size_t k = 0; k < n_fresh; k++) {
            void *key = (char *)look->keys + at[k] * look->key_bytes;
            if (kv->codec.key == PD_KV_F16)
                kv->kern->f32_to_f16(y + k * len, key, len);
            else
                memcpy(key, y + k * len, look->key_bytes);
        }
        n_fresh = 0;
    }
}

/* Scores s [n_head][PIECE] of chosen tokens.  q [n_head][D], scaled. */
static void chosen_scores(const pd_kv *kv, const pd_hparams *hp, size_t layer, const pd_joint_look *look, size_t first, size_t n,
                          const float *q, float *tmp, float *s) {
    const size_t d = kv->head_dim, len = kv->n_head_kv * d, group = hp->n_head / hp->n_head_kv;
    uint32_t row[PIECE];
    freshen(kv, layer, look, first, n, tmp, row);
    if (kv->codec.key == PD_KV_F16) kv->kern->dots_f16(q, kv->n_head_kv, group, d, look->keys, row, n, s, PIECE);
    for (size_t g = 0; g < hp->n_head && kv->codec.key != PD_KV_F16; g++)
        for (size_t i = 0; i < n; i++)
            s[g * PIECE + i] = kv->kern->dot_f32(q + g * d, (const float *)look->keys + row[i] * len + g / group * d, d);
}

/* Scores s [n_head][PIECE] of the tokens from `first` on.  qt [Hk][D][16]: a group's queries side by side. */
static void all_scores(const pd_kv *kv, const pd_hparams *hp, size_t layer, size_t first, size_t n, const float *qt, float *scratch, float *s) {
    const size_t d = kv->head_dim, row = kv->n_head_kv * d, group = hp->n_head / hp->n_head_kv;
    float *tmp = scratch, *x = tmp + 2 * ROWS * row, *st = x + ROWS * row;
    for (size_t i = 0; i < n; i += ROWS) {
        const size_t m = pd_min_size(ROWS, n - i);
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
    float *qt = scratch + 3 * ROWS * row + ROWS * N, *s = qt + row * N;
    uint32_t at[PIECE], page[PIECE]; /* a token's place among the pages of the piece; those pages */
    const void *pages[PIECE];
    size_t n_page = 0;
    assert(n >= 1 && n <= PIECE && group <= N); /* kernels have groups of 16 at most */
    if (look->slot) {
        for (size_t i = 0; i < hp->n_head * d; i++) qt[i] = q[i] * hp->attn_scale;
        chosen_scores(kv, hp, layer, look, first, n, qt, scratch, s);
    } else {
        memset(qt, 0, row * N * sizeof *qt);
        for (size_t i = 0; i < hp->n_head * d; i++) qt[(i / (group * d) * d + i % d) * N + i / d % group] = q[i] * hp->attn_scale;
        all_scores(kv, hp, layer, first, n, qt, scratch, s);
    }
    for (size_t i = 0; i < n; i++) {
        const size_t slot = look->slot ? look->slot[first + i] : first + i;
        if (n_page == 0 || page[n_page - 1] != slot / N) page[n_page++] = (uint32_t)(slot / N);
        at[i] = (uint32_t)((n_page - 1) * N + slot % N);
    }
    for (size_t h = 0; h < kv->n_head_kv; h++) {
        const pd_kv_head *kh = pd_kv_at(kv, layer, h);
        float *m = part + h * part_stride, *l = m + group, *acc = l + group;
        for (size_t p = 0; p < n_page; p++) pages[p] = pd_kvpool_page(pd_kv_pack_pool(kv, kh), kh->page[page[p]]);
        for (size_t g = 0; g < group; g++) {
            float *x = s + (h * group + g) * PIECE;
            if (hp->attn_softcap > 0.0f) kv->kern->softcap(x, n, hp->attn_softcap);
            m[g] = kv->kern->max_f32(x, n);
            l[g] = kv->kern->exp_sum_f32(x, n, m[g]);
        }
        pd_codec_rows(&kv->codec, kv->kern, group, pd_kv_pack_dim(kv, kh), d, pages, at, n, true, s + h * group * PIECE, PIECE, acc);
    }
}
