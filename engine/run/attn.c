/* SPDX-License-Identifier: Apache-2.0 */
/* Attention (see attn.h).
 *
 * Tile: one task = 32 tokens (16 if that gives too few tasks), all query heads of one KV
 * head (kernels.h, attn_tile); blocks above the diagonal or below the window are skipped.
 * Step: a chunk = up to 16 pages of one (sequence, KV head), those that are packed and those
 * held a second time (kv.h) in chunks of their own; the group's query heads share each load of
 * K and V.  A chunk leaves (max, sum, weighted V), and
 * who computes the last chunk of a head joins them, in slot order.  Rows of one sequence
 * (a draft) take their chunks in turns: what one has read the next finds in the caches.
 * One task = a run of chunks, of which
 * the next is prefetched while one is computed.  Where not all values are read
 * (select.h), a chunk leaves its scores, and then goes once more for the chosen rows. */
#include "engine/run/attn.h"

#include "engine/base/num.h"

#include <cblas.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 32, TOKENS_FEW = 16, SUM_SLOTS = 8 * PD_ATTN_TILE_KEYS, PAGES = PD_ATTN_PAGES, RUN = 16, N = PD_PAGE_TOKENS, GROUP_MAX = 16 };

typedef struct pd_attn_chunk {
    uint32_t seq, head, page0, n_page;
    uint32_t n_row; /* rows of V read, where they are chosen */
    uint32_t part;  /* where its result goes */
} pd_attn_chunk;

/* One row's chunks of one KV head. */
typedef struct pd_attn_pair {
    uint32_t n, next_page; /* chunks; the page behind the last one's */
    _Atomic uint32_t left; /* not computed yet; acq_rel: who takes the last sees what the others left */
} pd_attn_pair;

/* m[G], l[G], acc[G][D] of one chunk. */
static size_t part_floats(const pd_hparams *hp) {
    return hp->n_head / hp->n_head_kv * (2 + hp->head_dim);
}

static float *floats(pd_attn *a, size_t n) {
    const size_t bytes = (n * sizeof(float) + 63) / 64 * 64;
    a->bytes += bytes;
    return aligned_alloc(64, bytes);
}

pd_status pd_attn_init(pd_attn *a, const pd_model *m, const pd_kernels *kern, pd_workers *workers,
                       size_t max_rows, size_t ctx, bool exact, pd_err *err) {
    const pd_hparams *hp = &m->hp;
    const size_t threads = pd_workers_count(workers), group = hp->n_head / hp->n_head_kv;
    *a = (pd_attn){.model = m, .kern = kern, .workers = workers, .exact = exact};
    a->tile_floats = pd_div_up(pd_attn_rows_floats(TOKENS, group, hp->head_dim), 16) * 16;
    a->pages_floats = group * (PAGES * N + 2 * N) + 2 * group * hp->head_dim + pd_codec_attn_floats(group, hp->head_dim);
    a->latent_floats = 2 * hp->head_dim * PAGES * N + hp->head_dim * N + hp->head_dim;
    a->latent = floats(a, threads * a->latent_floats);
    a->row_max = floats(a, hp->n_head * PD_ATTN_TILE);
    a->row_sum = floats(a, hp->n_head * PD_ATTN_TILE);
    a->pair_cap = ctx / (PAGES * N) + 4;
    const size_t n_pair = max_rows * hp->n_head_kv, n_chunk = n_pair * a->pair_cap;
    a->tile = floats(a, threads * a->tile_floats);
    a->pages = floats(a, threads * a->pages_floats);
    a->part = floats(a, n_chunk * part_floats(hp));
    a->chunk = malloc(n_chunk * sizeof *a->chunk);
    a->pair = malloc(n_pair * sizeof *a->pair);
    if (a->latent && a->row_max && a->row_sum && a->tile && a->pages && a->part && a->chunk && a->pair) return PD_OK;
    pd_attn_done(a);
    return pd_fail(err, PD_ENOMEM, NULL, "no memory for attention scratch");
}

void pd_attn_done(pd_attn *a) {
    free(a->tile);
    free(a->row_max);
    free(a->row_sum);
    free(a->pages);
    free(a->latent);
    free(a->part);
    free(a->chunk);
    free(a->pair);
    *a = (pd_attn){0};
}

/* ---- a tile of a prompt ---- */

typedef struct {
    pd_attn *a;
    const pd_stage *s;
    const float *q;
    float *out;
    size_t row0, n, block, n_block; /* tokens of a block; blocks per KV head */
    uint32_t window;
    float *sums; /* pd_attn_tile_sums */
    size_t stride;
} tile_job;

/* Tokens [r0, r0 + n) of the tile, all query heads of one KV head.  Slots of a
 * windowed layer are consecutive positions, so the window is a range of slots too. */
static pd_attn_rows rows_of(const tile_job *j, size_t kv_head, size_t r0, size_t n, unsigned thread) {
    pd_attn *a = j->a;
    const pd_hparams *hp = &a->model->hp;
    const size_t d = hp->head_dim, nq = hp->n_head * d, group = hp->n_head / hp->n_head_kv;
    const size_t at = r0 * nq + kv_head * group * d, row = kv_head * group * PD_ATTN_TILE + r0;
    return (pd_attn_rows){.q = j->q + at, .out = j->out ? j->out + at : NULL,
                          .k = pd_stage_k(j->s, kv_head), .v = pd_stage_v(j->s, kv_head),
                          .m = a->row_max + row, .l = a->row_sum + row, .n_tok = n, .n_group = group,
                          .head_dim = d, .ld = nq, .ld_ml = PD_ATTN_TILE,
                          .n_before = j->s->n_prior[kv_head] + j->row0 + r0, .window = j->window,
                          .scale = hp->attn_scale, .softcap = hp->attn_softcap,
                          .tmp = a->tile + thread * a->tile_floats};
}

static void tile_task(void *ctx, size_t task, unsigned thread) {
    const tile_job *j = ctx;
    const size_t r0 = task % j->n_block * j->block, n = pd_min_size(j->block, j->n - r0);
    const pd_attn_rows rows = rows_of(j, task / j->n_block, r0, n, thread);
    if (j->a->exact)
        j->a->kern->attn_tile_f32(&rows);
    else
        j->a->kern->attn_tile_fast(&rows);
}

void pd_attn_tile(pd_attn *a, const pd_stage *s, const float *q, size_t row0, size_t n, uint32_t window, float *out) {
    const size_t heads = a->model->hp.n_head_kv, want = 3 * (size_t)pd_workers_count(a->workers);
    const size_t block = heads * pd_div_up(n, TOKENS) < want ? TOKENS_FEW : TOKENS;
    tile_job job = {.a = a, .s = s, .q = q, .out = out, .row0 = row0, .n = n, .block = block,
                    .n_block = pd_div_up(n, block), .window = window};
    pd_workers_run(a->workers, tile_task, &job, heads * job.n_block);
}

/* SUM_SLOTS columns of one KV head, all rows in order: a column's sum does not
 * depend on threads. */
static void sums_task(void *ctx, size_t task, unsigned thread) {
    const tile_job *j = ctx;
    const pd_hparams *hp = &j->a->model->hp;
    const size_t kv_head = task / j->n_block, s0 = task % j->n_block * SUM_SLOTS;
    float *sums = j->sums + kv_head * (hp->n_head / hp->n_head_kv) * j->stride;
    for (size_t r0 = 0; r0 < j->n; r0 += TOKENS) {
        const pd_attn_rows rows = rows_of(j, kv_head, r0, pd_min_size(TOKENS, j->n - r0), thread);
        if (j->a->exact)
            j->a->kern->attn_tile_sums_f32(&rows, s0, s0 + SUM_SLOTS, sums, j->stride);
        else
            j->a->kern->attn_tile_sums_fast(&rows, s0, s0 + SUM_SLOTS, sums, j->stride);
    }
}

void pd_attn_tile_sums(pd_attn *a, const pd_stage *s, const float *q, size_t row0, size_t n, uint32_t window,
                       float *sums, size_t stride) {
    size_t prior = 0;
    for (size_t h = 0; h < s->n_head_kv; h++) prior = pd_max_size(prior, s->n_prior[h]);
    tile_job job = {.a = a, .s = s, .q = q, .out = NULL, .row0 = row0, .n = n,
                    .n_block = pd_div_up(prior + row0 + n, SUM_SLOTS), .window = window,
                    .sums = sums, .stride = stride};
    pd_workers_run(a->workers, sums_task, &job, a->model->hp.n_head_kv * job.n_block);
}

/* ---- one token per sequence ---- */

typedef struct {
    pd_attn *a;
    pd_kv *const *kv;
    pd_select *const *sel;
    size_t layer;
    const float *q;
    float *out;
    size_t n, run; /* chunks; of a task */
} step_job;

/* The sequence's, if its values are chosen in this layer. */
static pd_select *picks(const step_job *j, size_t seq) {
    return j->sel && pd_select_picks(j->sel[seq], j->layer) ? j->sel[seq] : NULL;
}

/* What is looked into of a head. */
static pd_look look_at(const step_job *j, size_t seq, size_t head) {
    return pd_select_look(j->sel ? j->sel[seq] : NULL, j->layer, head, pd_kv_at(j->kv[seq], j->layer, head));
}

/* The chunk's pages; their number. */
static size_t pages_of(const step_job *j, const pd_attn_chunk *c, const void **pages, const pd_codec **codec) {
    const pd_kv *kv = j->kv[c->seq];
    const pd_kv_head *kh = pd_kv_at(kv, j->layer, c->head);
    const uint32_t *chosen = look_at(j, c->seq, c->head).page;
    if (c->page0 < kh->n_pack_page) *codec = &kv->codec;
    for (uint32_t i = 0; i < c->n_page; i++) {
        const uint32_t p = c->page0 + i;
        pages[i] = p < kh->n_pack_page ? pd_kvpool_page(pd_kv_pack_pool(kv, kh), kh->page[p])
                                       : pd_kv_page(kv, kh, chosen ? chosen[p] : p, codec);
    }
    return c->n_page;
}

/* Packed keys see their channels of the queries: q [G][D] to ret [G][k_dim].  The centre
 * was taken off all channels of an open key, but only these of a packed one: shift [G] is
 * what a packed score then has too much. */
static void pack_queries(const pd_kv *kv, size_t layer, size_t head, const float *q, size_t group, float *ret, float *shift) {
    const uint32_t *channel = pd_kv_channels(kv, layer, head);
    const float *centre = pd_kv_centre(kv, layer, head);
    const size_t d = kv->head_dim, k_dim = kv->pack.k_dim;
    for (size_t g = 0; g < group; g++) {
        float *row = ret + g * k_dim;
        memset(row, 0, k_dim * sizeof *row);
        shift[g] = centre ? kv->kern->dot_f32(q + g * d, centre, d) : 0.0f;
        for (size_t i = 0; i < kv->pack.n_channel; i++) {
            row[i] = q[g * d + channel[i]];
            if (centre) shift[g] -= row[i] * centre[channel[i]];
        }
    }
}

/* Scores of projected keys, which are rebuilt for the chunk: tmp [G][stride].  q [G][D]. */
static void latent_scores(const step_job *j, const pd_attn_chunk *c, const void *const *pages, size_t first, size_t n,
                          const float *q, float *tmp, size_t stride, float *scratch) {
    const pd_kv *kv = j->kv[c->seq];
    const pd_kv_head *kh = pd_kv_at(kv, j->layer, c->head);
    const pd_latent *l = pd_kv_latent(kv, j->layer, c->head);
    const size_t d = kv->head_dim, ld = c->n_page * N, group = j->a->model->hp.n_head / kv->n_head_kv;
    float *lat = scratch, *k = lat + l->rank * ld, *page = k + d * ld;
    const int32_t *pos[PAGES];
    for (size_t p = 0; p < c->n_page; p++) {
        pos[p] = pd_kvpool_pos(pd_kv_pack_pool(kv, kh), kh->page[c->page0 + p]);
        const float *rows = pd_codec_keys(&kv->codec, kv->kern, pages[p], l->rank, page, NULL);
        for (size_t r = 0; r < l->rank; r++) memcpy(lat + r * ld + p * N, rows + r * N, N * sizeof *lat);
    }
    pd_latent_keys(l, lat, pos, c->n_page, first, n, k, page);
    const float *sink = pd_kv_sinks(kv, j->layer, c->head);
    for (size_t s = first; s < first + n && (size_t)pos[s / N][s % N] < kv->pack.n_sink; s++) /* positions rise */
        for (size_t i = 0; i < d; i++) k[i * ld + s] = sink[(size_t)pos[s / N][s % N] * d + i];
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)group, (int)ld, (int)d, 1.0f, q, (int)d, k, (int)ld, 0.0f,
                tmp, (int)stride);
}

static size_t pair_of(const step_job *j, const pd_attn_chunk *c) {
    return c->seq * j->a->model->hp.n_head_kv + c->head;
}

/* Join the chunks of one head, in slot order. */
static void join(const pd_attn *a, size_t pair, float *out) {
    const pd_hparams *hp = &a->model->hp;
    const size_t d = hp->head_dim, group = hp->n_head / hp->n_head_kv, stride = part_floats(hp), n_chunk = a->pair[pair].n;
    const float *part = a->part + pair * a->pair_cap * stride;
    for (size_t g = 0; g < group; g++) {
        float max = -INFINITY, sum = 0.0f;
        for (size_t i = 0; i < n_chunk; i++) max = fmaxf(max, part[i * stride + g]);
        float *o = out + g * d;
        memset(o, 0, d * sizeof *o);
        for (size_t i = 0; i < n_chunk; i++) {
            const float w = expf(part[i * stride + g] - max);
            sum += w * part[i * stride + group + g];
            a->kern->axpy_f32(w, part + i * stride + 2 * group + g * d, o, d);
        }
        const float inv = 1.0f / sum;
        for (size_t c = 0; c < d; c++) o[c] *= inv;
    }
}

/* The chunk's result is there. */
static void end_chunk(const step_job *j, const pd_attn_chunk *c) {
    const pd_hparams *hp = &j->a->model->hp;
    const size_t pair = pair_of(j, c), group_d = hp->n_head / hp->n_head_kv * hp->head_dim;
    if (atomic_fetch_sub_explicit(&j->a->pair[pair].left, 1, memory_order_acq_rel) == 1) join(j->a, pair, j->out + pair * group_d);
}

/* `more`: the next chunk is computed after this one. */
static void step_chunk(const step_job *j, size_t chunk, bool more, unsigned thread) {
    pd_attn *a = j->a;
    const pd_hparams *hp = &a->model->hp;
    const size_t d = hp->head_dim, group = hp->n_head / hp->n_head_kv;
    const pd_attn_chunk *c = &a->chunk[chunk];
    const pd_kv *kv = j->kv[c->seq];
    const pd_kv_head *kh = pd_kv_at(kv, j->layer, c->head);
    const void *pages[2 * PAGES];
    const pd_codec *codec, *next;
    const size_t n_page = pages_of(j, c, pages, &codec), n_next = more ? pages_of(j, c + 1, pages + n_page, &next) : 0;
    const bool packed = c->page0 < kh->n_pack_page;
    const size_t page = c->page0 - (packed ? 0 : kh->n_pack_page); /* of the section */
    const size_t dead = packed || !kh->n_pack ? kh->first : 0, live = packed ? kh->n_pack : look_at(j, c->seq, c->head).n - kh->n_pack;
    const size_t first = page == 0 ? dead : 0, end = pd_min_size(c->n_page * N, dead + live - page * N);
    float *tmp = a->pages + thread * a->pages_floats, *q = tmp + group * (PAGES * N + 2 * N);
    float *scratch = q + group * d, *m = a->part + c->part * part_floats(hp), *l = m + group, *acc = l + group;
    const float *src = j->q + c->seq * hp->n_head * d + c->head * group * d;
    for (size_t i = 0; i < group * d; i++) q[i] = src[i] * hp->attn_scale;
    const pd_select *sel = picks(j, c->seq);
    if (sel) { /* no page of such a sequence is packed or held twice (admit.c) */
        pd_codec_scores(codec, a->kern, q, group, d, pages, first, end - first, n_next, hp->attn_softcap,
                        pd_select_at(sel, c->head, (size_t)c->page0 * N), sel->stride, scratch);
        return;
    }
    if (!packed) {
        pd_codec_attn(codec, a->kern, q, group, d, d, pages, first, end - first, n_next, hp->attn_softcap, tmp,
                      PAGES * N + 2 * N, scratch, m, l, acc);
        return;
    }
    if (kv->pack.latent) {
        latent_scores(j, c, pages, first, end - first, q, tmp, PAGES * N + 2 * N, a->latent + thread * a->latent_floats);
        pd_codec_attn_scored(&kv->codec, a->kern, group, pd_kv_pack_dim(kv, kh), d, pages, first, end - first, hp->attn_softcap,
                             tmp, PAGES * N + 2 * N, m, l, acc);
        return;
    }
    float *pq = scratch + pd_codec_attn_floats(group, d), shift[GROUP_MAX];
    pack_queries(kv, j->layer, c->head, q, group, pq, shift);
    pd_codec_attn(&kv->codec, a->kern, pq, group, kv->pack.k_dim, d, pages, first, end - first, n_next, hp->attn_softcap,
                  tmp, PAGES * N + 2 * N, scratch, m, l, acc);
    for (size_t g = 0; g < group; g++) m[g] -= shift[g];
}

static void step_task(void *ctx, size_t task, unsigned thread) {
    const step_job *j = ctx;
    const size_t end = pd_min_size(j->n, (task + 1) * j->run);
    for (size_t i = task * j->run; i < end; i++) {
        const pd_attn_chunk *c = &j->a->chunk[i];
        step_chunk(j, i, i + 1 < end, thread);
        if (!picks(j, c->seq)) end_chunk(j, c);
    }
}

/* ---- the same where values are chosen: weights and cuts, then rows ---- */

/* Task = sequence, query head. */
static void cut_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const step_job *j = ctx;
    const pd_hparams *hp = &j->a->model->hp;
    const size_t seq = task / hp->n_head, head = task % hp->n_head;
    pd_select *sel = picks(j, seq);
    if (sel) pd_select_cut(sel, j->a->kern, head, look_at(j, seq, head / sel->group).n_page * (size_t)N);
}

static void rows_chunk(const step_job *j, size_t chunk) {
    pd_attn *a = j->a;
    pd_attn_chunk *c = &a->chunk[chunk];
    const pd_select *sel = picks(j, c->seq);
    if (!sel) return;
    const pd_kv *kv = j->kv[c->seq];
    const void *pages[PAGES];
    const pd_codec *codec;
    pages_of(j, c, pages, &codec);
    float *m = a->part + c->part * part_floats(&a->model->hp), *l = m + sel->group, *acc = l + sel->group;
    c->n_row = (uint32_t)pd_select_rows(sel, &kv->codec, a->kern, c->head, kv->head_dim, pages, (size_t)c->page0 * N,
                                        c->n_page, m, l, acc);
    end_chunk(j, c);
}

static void rows_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const step_job *j = ctx;
    const size_t end = pd_min_size(j->n, (task + 1) * j->run);
    for (size_t i = task * j->run; i < end; i++) rows_chunk(j, i);
}

static void read_chosen(step_job *j, size_t n_seq) {
    bool any = false;
    for (size_t s = 0; s < n_seq; s++) any = any || picks(j, s);
    if (!any) return;
    pd_workers_run(j->a->workers, cut_task, j, n_seq * j->a->model->hp.n_head);
    pd_workers_run(j->a->workers, rows_task, j, pd_div_up(j->n, j->run));
    for (size_t i = 0; i < j->n; i++) {
        pd_select *sel = picks(j, j->a->chunk[i].seq);
        if (sel) pd_select_count(sel, j->layer, 0, 0, j->a->chunk[i].n_row);
    }
}

/* Task = sequence, KV head. */
static void choose_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const step_job *j = ctx;
    const pd_hparams *hp = &j->a->model->hp;
    const size_t seq = task / hp->n_head_kv, head = task % hp->n_head_kv, group = hp->n_head / hp->n_head_kv;
    if (!pd_select_pages(j->sel[seq], j->layer)) return;
    pd_select_choose(j->sel[seq], j->kv[seq], j->layer, head, j->q + (seq * hp->n_head + head * group) * hp->head_dim);
}

/* Before anything is read: the pages, where they are chosen, and what will be counted. */
static void choose_pages(step_job *j, size_t n_seq) {
    bool any = false;
    for (size_t s = 0; j->sel && s < n_seq; s++) any = any || pd_select_pages(j->sel[s], j->layer);
    if (any) pd_workers_run(j->a->workers, choose_task, j, n_seq * j->a->model->hp.n_head_kv);
    for (size_t s = 0; j->sel && s < n_seq; s++) {
        for (size_t h = 0; pd_select_counts(j->sel[s], j->layer) && h < j->kv[s]->n_head_kv; h++) {
            const size_t n = look_at(j, s, h).n;
            pd_select_count(j->sel[s], j->layer, pd_kv_at(j->kv[s], j->layer, h)->n, n, picks(j, s) ? 0 : n);
        }
    }
}

/* The next chunk of a row's head, if there is one more. */
static bool list_chunk(const step_job *j, size_t seq, size_t head, size_t n) {
    pd_attn *a = j->a;
    const pd_kv *kv = j->kv[seq];
    const pd_kv_head *kh = pd_kv_at(kv, j->layer, head);
    const uint32_t n_page = look_at(j, seq, head).n_page, recent = pd_kv_recent_from(kv, kh), again = recent < n_page ? recent : n_page;
    const size_t i = seq * a->model->hp.n_head_kv + head;
    pd_attn_pair *pair = &a->pair[i];
    const uint32_t p = pair->next_page, left = (p < kh->n_pack_page ? kh->n_pack_page : p < again ? again : n_page) - p;
    if (left == 0) return false;
    a->chunk[n] = (pd_attn_chunk){(uint32_t)seq, (uint32_t)head, p, left < PAGES ? left : PAGES, 0, (uint32_t)(i * a->pair_cap + pair->n++)};
    pair->next_page += a->chunk[n].n_page;
    return true;
}

void pd_attn_step(pd_attn *a, pd_kv *const *kv, pd_select *const *sel, size_t n_seq, size_t layer, const float *q, float *out) {
    const pd_hparams *hp = &a->model->hp;
    step_job job = {.a = a, .kv = kv, .sel = sel, .layer = layer, .q = q, .out = out};
    choose_pages(&job, n_seq);
    for (size_t i = 0; i < n_seq * hp->n_head_kv; i++) a->pair[i].n = a->pair[i].next_page = 0;
    size_t n = 0;
    for (size_t s = 0, e; s < n_seq; s = e) {
        for (e = s + 1; e < n_seq && kv[e]->page_list == kv[s]->page_list; e++) {}
        for (size_t h = 0; h < hp->n_head_kv; h++) {
            for (bool more = true; more;) {
                more = false;
                for (size_t r = s; r < e; r++) {
                    if (!list_chunk(&job, r, h, n)) continue;
                    more = true;
                    n++;
                }
            }
        }
    }
    for (size_t i = 0; i < n_seq * hp->n_head_kv; i++) atomic_init(&a->pair[i].left, a->pair[i].n);
    job.n = n;
    job.run = pd_max_size(1, pd_min_size(RUN, n / (4 * (size_t)pd_workers_count(a->workers))));
    pd_workers_run(a->workers, step_task, &job, pd_div_up(n, job.run));
    read_chosen(&job, n_seq);
}
