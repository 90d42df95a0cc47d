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
 * (select.h), a chunk leaves its scores, and then goes once more for the chosen rows.
 * Joint latents go in pieces (joint_read.h) of all heads, which leave a result in each of them.
 * A sequence with tags (tags.h) gets them here: a chunk leaves its weights exp(score - max),
 * and joining tells what they are to be multiplied by. */
#include "engine/run/attn.h"

#include "engine/run/tags.h"

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
    uint32_t first, n; /* a piece of joint latents (n_page 0): its tokens among those that are read */
} pd_attn_chunk;

/* One row's chunks of one KV head. */
typedef struct pd_attn_pair {
    uint32_t n, next_page; /* chunks; the page behind the last one's */
    _Atomic uint32_t left; /* not computed yet; acq_rel: who takes the last sees what the others left */
} pd_attn_pair;

/* A chunk's slots, where their weights are wanted. */
typedef struct pd_attn_range {
    uint32_t slot, n;
} pd_attn_range;

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
    *a = (pd_attn){.model = m, .kern = kern, .workers = workers, .exact = exact, .max_rows = max_rows};
    a->tile_floats = pd_div_up(pd_attn_rows_floats(TOKENS, group, hp->head_dim), 16) * 16;
    a->pages_floats = group * (PAGES * N + 2 * N) + 2 * group * hp->head_dim + pd_codec_attn_floats(group, hp->head_dim);
    a->latent_floats = pd_max_size(2 * hp->head_dim * PAGES * N + hp->head_dim * N + hp->head_dim, pd_joint_piece_floats(hp));
    a->latent_floats = pd_div_up(a->latent_floats, 16) * 16;
    a->latent = floats(a, threads * a->latent_floats);
    a->row_max = floats(a, hp->n_head * PD_ATTN_TILE);
    a->row_sum = floats(a, hp->n_head * PD_ATTN_TILE);
    a->pair_cap = ctx / (PAGES * N) + 12; /* a head's pieces are 8, or as long as chunks */
    const size_t n_pair = max_rows * hp->n_head_kv, n_chunk = n_pair * a->pair_cap;
    a->tile = floats(a, threads * a->tile_floats);
    a->pages = floats(a, threads * a->pages_floats);
    a->part = floats(a, n_chunk * part_floats(hp));
    a->range = malloc(n_chunk * sizeof *a->range);
    a->chunk = malloc(2 * n_chunk * sizeof *a->chunk); /* and as many for score_by_keys */
    a->pair = malloc(n_pair * sizeof *a->pair);
    if (a->latent && a->row_max && a->row_sum && a->tile && a->pages && a->part && a->range && a->chunk && a->pair) return PD_OK;
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
    free(a->table);
    free(a->table_scale);
    free(a->range);
    free(a->pair);
    *a = (pd_attn){0};
}

pd_status pd_attn_hold_tables(pd_attn *a, size_t n, pd_err *err) {
    const size_t heads = a->max_rows * a->model->hp.n_head, bytes = pd_div_up(n, 64) * 64;
    if (bytes <= a->table_bytes) return PD_OK;
    uint8_t *table = aligned_alloc(64, heads * bytes);
    if (!a->table_scale) a->table_scale = malloc(2 * heads * sizeof *a->table_scale);
    if (!table || !a->table_scale) {
        free(table);
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the tables of keys in codes");
    }
    free(a->table);
    a->bytes += heads * (bytes - a->table_bytes);
    a->table = table;
    a->table_bytes = bytes;
    return PD_OK;
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

/* The sequence's, if it wants this layer's weights. */
static pd_tags *tags_of(const step_job *j, size_t seq) {
    pd_tags *t = j->a->tags ? j->a->tags[seq] : NULL;
    return t && pd_tags_layer(t, j->layer) ? t : NULL;
}

/* The sequence's, if its values are chosen in this layer. */
static pd_select *picks(const step_job *j, size_t seq) {
    return j->sel && pd_select_picks(j->sel[seq], j->layer) ? j->sel[seq] : NULL;
}

/* What is looked into of a head. */
static pd_look look_at(const step_job *j, size_t seq, size_t head) {
    return pd_select_look(j->sel ? j->sel[seq] : NULL, j->layer, head, pd_kv_at(j->kv[seq], j->layer, head));
}

/* What is read of its joint latents. */
static pd_joint_look joint_look(const step_job *j, size_t seq) {
    return pd_joint_look_at(j->sel && j->sel[seq] ? &j->sel[seq]->joint : NULL, j->kv[seq], j->layer);
}

/* The chunk's pages; their number. */
static size_t pages_of(const step_job *j, const pd_attn_chunk *c, const void **pages, const pd_codec **codec) {
    const pd_kv *kv = j->kv[c->seq];
    const pd_kv_head *kh = pd_kv_at(kv, j->layer, c->head);
    const uint32_t *chosen = look_at(j, c->seq, c->head).page;
    if (c->page0 < kh->n_pack_page) *codec = &kv->pack.codec;
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

/* acc [G][D] from lat [G][rank_v], the weighted sums of projected values: unfolded by the thread that has
 * them, so that join knows one kind of part.  Sinks' values, 0 in the pages, come with their weights. */
static void unfold(const step_job *j, const pd_attn_chunk *c, size_t first, size_t n, const float *weight, size_t stride,
                   const float *lat, float *acc) {
    const pd_kv *kv = j->kv[c->seq];
    const pd_kv_head *kh = pd_kv_at(kv, j->layer, c->head);
    const pd_latent *l = pd_kv_latent(kv, j->layer, c->head);
    const size_t d = kv->head_dim, group = j->a->model->hp.n_head / kv->n_head_kv;
    for (size_t g = 0; g < group; g++) pd_latent_unfold(l, kv->kern, lat + g * l->rank_v, acc + g * d);
    const float *sink = pd_kv_sink_values(kv, j->layer, c->head);
    for (size_t s = first; s < first + n; s++) {
        const size_t pos = (size_t)pd_kvpool_pos(pd_kv_pack_pool(kv, kh), kh->page[c->page0 + s / N])[s % N];
        if (pos >= kv->pack.n_sink) return; /* positions rise */
        for (size_t g = 0; g < group; g++) kv->kern->axpy_f32(weight[g * stride + s], sink + pos * d, acc + g * d, d);
    }
}

/* Scores of pages of codes by the head's tables, less off [G] (NULL = 0): tmp [G][stride]. */
static void table_scores(const step_job *j, const pd_attn_chunk *c, const pd_book *book, const void *const *pages, size_t n_next, const float *off,
                         float *tmp, size_t stride) {
    const pd_attn *a = j->a;
    const size_t group = a->model->hp.n_head / a->model->hp.n_head_kv, n_code = pd_book_codes(book);
    const size_t q0 = c->seq * a->model->hp.n_head + c->head * group;
    float least[GROUP_MAX], step[GROUP_MAX];
    for (size_t g = 0; g < group; g++) {
        least[g] = a->table_scale[2 * (q0 + g)];
        step[g] = a->table_scale[2 * (q0 + g) + 1];
    }
    const pd_code_pass p = {.pages = pages, .n_page = c->n_page, .n_next = n_next, .n_code = n_code, .n_group = group, .table = a->table + q0 * a->table_bytes,
                            .least = least, .step = step, .tmp = tmp, .tmp_stride = stride};
    for (size_t g = 0; g < group && off; g++) least[g] -= off[g];
    (book->n_centroid > 16 ? a->kern->scores_codes8 : a->kern->scores_codes4)(&p);
}

/* Scores of keys in codes, but for those of sinks, which are there: tmp [G][stride].  q [G][D]. */
static void code_scores(const step_job *j, const pd_attn_chunk *c, const void *const *pages, size_t n_next, size_t first, size_t n,
                        const float *q, float *tmp, size_t stride) {
    const pd_attn *a = j->a;
    const pd_kv *kv = j->kv[c->seq];
    const pd_kv_head *kh = pd_kv_at(kv, j->layer, c->head);
    const size_t d = kv->head_dim, group = a->model->hp.n_head / kv->n_head_kv;
    table_scores(j, c, &pd_kv_latent(kv, j->layer, c->head)->book, pages, n_next, NULL, tmp, stride);
    const float *sink = pd_kv_sinks(kv, j->layer, c->head);
    for (size_t s = first; s < first + n; s++) { /* positions rise */
        const size_t pos = (size_t)pd_kvpool_pos(pd_kv_pack_pool(kv, kh), kh->page[c->page0 + s / N])[s % N];
        if (pos >= kv->pack.n_sink) break;
        for (size_t g = 0; g < group; g++) tmp[g * stride + s] = a->kern->dot_f32(q + g * d, sink + pos * d, d);
    }
}

/* A chunk of packed pages of latents or codes. */
static void latent_chunk(const step_job *j, const pd_attn_chunk *c, const void *const *pages, size_t first, size_t n, size_t n_next,
                         const float *q, float *tmp, size_t stride, float *scratch, float *lat, float *m, float *l, float *acc) {
    const pd_kv *kv = j->kv[c->seq];
    const pd_latent *latent = pd_kv_latent(kv, j->layer, c->head);
    const size_t d = kv->head_dim, group = j->a->model->hp.n_head / kv->n_head_kv;
    if (latent->book.n_centroid)
        code_scores(j, c, pages, n_next, first, n, q, tmp, stride);
    else if (latent->project)
        latent_scores(j, c, pages, first, n, q, tmp, stride, lat);
    else
        pd_codec_scores(&kv->codec, kv->kern, q, group, d, pages, first, n, n_next, 0.0f, tmp, stride, scratch);
    pd_codec_attn_scored(&kv->pack.codec, kv->kern, group, latent->rank, pd_latent_v_dim(latent), pages, first, n,
                         j->a->model->hp.attn_softcap, tmp, stride, m, l, latent->value ? lat : acc);
    if (latent->value) unfold(j, c, first, n, tmp, stride, lat, acc);
}

/* A chunk by q [G][k_dim] into m, l and acc.  `keep`: in two passes, after which tmp has its weights. */
static void attend(const pd_attn *a, const pd_codec *codec, bool keep, const float *q, size_t k_dim, const void *const *pages,
                   size_t first, size_t n, size_t n_next, float *tmp, float *scratch, float *m) {
    const pd_hparams *hp = &a->model->hp;
    const size_t d = hp->head_dim, group = hp->n_head / hp->n_head_kv, stride = PAGES * N + 2 * N;
    float *l = m + group, *acc = l + group;
    if (!keep) {
        pd_codec_attn(codec, a->kern, q, group, k_dim, d, pages, first, n, n_next, hp->attn_softcap, tmp, stride, scratch, m, l, acc);
        return;
    }
    pd_codec_scores(codec, a->kern, q, group, k_dim, pages, first, n, n_next, hp->attn_softcap, tmp, stride, scratch);
    pd_codec_attn_scored(codec, a->kern, group, k_dim, d, pages, first, n, 0.0f, tmp, stride, m, l, acc);
}

static size_t pair_of(const step_job *j, const pd_attn_chunk *c) {
    return c->seq * j->a->model->hp.n_head_kv + c->head;
}

/* Join the chunks of one head, in slot order. */
static void join(const step_job *j, size_t pair, float *out) {
    const pd_attn *a = j->a;
    const pd_hparams *hp = &a->model->hp;
    const size_t d = hp->head_dim, group = hp->n_head / hp->n_head_kv, stride = part_floats(hp), n_chunk = a->pair[pair].n;
    const float *part = a->part + pair * a->pair_cap * stride;
    const pd_attn_range *range = a->range + pair * a->pair_cap;
    pd_tags *tags = tags_of(j, pair / hp->n_head_kv);
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
        for (size_t i = 0; tags && i < n_chunk; i++)
            pd_tags_add(tags, a->kern, j->layer, pair % hp->n_head_kv * group + g, range[i].slot, range[i].n,
                        expf(part[i * stride + g] - max) * inv);
    }
}

/* One of the pair's results is there. */
static void end_part(const step_job *j, size_t pair) {
    const pd_hparams *hp = &j->a->model->hp;
    const size_t group_d = hp->n_head / hp->n_head_kv * hp->head_dim;
    if (atomic_fetch_sub_explicit(&j->a->pair[pair].left, 1, memory_order_acq_rel) == 1) join(j, pair, j->out + pair * group_d);
}

/* A piece of joint latents, for all heads. */
static void step_piece(const step_job *j, const pd_attn_chunk *c, unsigned thread) {
    const pd_attn *a = j->a;
    const pd_hparams *hp = &a->model->hp;
    const pd_joint_look look = joint_look(j, c->seq);
    pd_joint_piece(j->kv[c->seq], hp, j->layer, &look, c->first, c->n, j->q + c->seq * hp->n_head * hp->head_dim,
                   a->latent + thread * a->latent_floats, a->part + c->part * part_floats(hp), a->pair_cap * part_floats(hp));
    for (size_t h = 0; h < hp->n_head_kv; h++) end_part(j, c->seq * hp->n_head_kv + h);
}

/* `more`: the next chunk is computed after this one. */
static void step_chunk(const step_job *j, size_t chunk, bool more, unsigned thread) {
    pd_attn *a = j->a;
    const pd_hparams *hp = &a->model->hp;
    const size_t d = hp->head_dim, group = hp->n_head / hp->n_head_kv;
    pd_attn_chunk *c = &a->chunk[chunk];
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
    if (sel && pd_select_codes(sel, j->layer)) {
        const size_t at = j->layer * kv->n_head_kv + c->head;
        const pd_book book = pd_index_book(&kv->index, at);
        for (uint32_t i = 0; i < c->n_page; i++) pages[i] = pd_index_page(&kv->index, at, c->page0 + i);
        const float *centre = pd_kv_centre(kv, j->layer, c->head); /* was taken off the keys; codes are of whole ones */
        float off[GROUP_MAX];
        for (size_t g = 0; g < group && centre; g++) off[g] = a->kern->dot_f32(q + g * d, centre, d);
        tmp = pd_select_at(sel, c->head, (size_t)c->page0 * N);
        table_scores(j, c, &book, pages, 0, centre ? off : NULL, tmp, sel->stride);
        pd_codec_scored(a->kern, group, first, end - first, hp->attn_softcap, tmp, sel->stride);
        return;
    }
    if (sel && packed) { /* in codes */
        float *at = pd_select_at(sel, c->head, (size_t)c->page0 * N);
        code_scores(j, c, pages, n_next, first, end - first, q, at, sel->stride);
        pd_codec_scored(a->kern, group, first, end - first, hp->attn_softcap, at, sel->stride);
        return;
    }
    if (sel) { /* no page of such a sequence is projected or held twice (admit.c) */
        pd_codec_scores(codec, a->kern, q, group, d, pages, first, end - first, n_next, hp->attn_softcap,
                        pd_select_at(sel, c->head, (size_t)c->page0 * N), sel->stride, scratch);
        return;
    }
    pd_tags *tags = tags_of(j, c->seq);
    if (!packed) {
        attend(a, codec, tags, q, d, pages, first, end - first, n_next, tmp, scratch, m);
    } else if (kv->pack.latent) {
        latent_chunk(j, c, pages, first, end - first, n_next, q, tmp, PAGES * N + 2 * N, scratch,
                     a->latent + thread * a->latent_floats, m, l, acc);
    } else {
        float *pq = scratch + pd_codec_attn_floats(group, d), shift[GROUP_MAX];
        pack_queries(kv, j->layer, c->head, q, group, pq, shift);
        attend(a, &kv->codec, tags, pq, kv->pack.k_dim, pages, first, end - first, n_next, tmp, scratch, m);
        for (size_t g = 0; g < group; g++) m[g] -= shift[g];
    }
    if (!tags) return;
    const pd_attn_range range = {(uint32_t)((packed ? 0 : kh->n_pack) + page * N + first - dead), (uint32_t)(end - first)};
    a->range[c->part] = range;
    pd_tags_put(tags, c->head, range.slot, range.n, tmp + first, PAGES * N + 2 * N);
}

static void step_task(void *ctx, size_t task, unsigned thread) {
    const step_job *j = ctx;
    const size_t end = pd_min_size(j->n, (task + 1) * j->run);
    for (size_t i = task * j->run; i < end; i++) {
        const pd_attn_chunk *c = &j->a->chunk[i];
        if (c->n_page == 0) {
            step_piece(j, c, thread);
            continue;
        }
        step_chunk(j, i, i + 1 < end && c[1].n_page, thread);
        if (!picks(j, c->seq)) end_part(j, pair_of(j, c));
    }
}

/* ---- scores by codes: of some pages by their keys ---- */

/* Task = sequence, KV head. */
static void exact_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const step_job *j = ctx;
    const size_t heads = j->a->model->hp.n_head_kv, seq = task / heads, head = task % heads;
    if (j->sel[seq] && pd_select_codes(j->sel[seq], j->layer))
        pd_select_exact(j->sel[seq], j->a->kern, head, pd_kv_at(j->kv[seq], j->layer, head)->n_page);
}

/* Task = up to 16 chosen pages; the chunk's page0 counts those. */
static void rescore_task(void *ctx, size_t task, unsigned thread) {
    const step_job *j = ctx;
    pd_attn *a = j->a;
    const pd_attn_chunk *c = &a->chunk[j->n + task];
    const pd_hparams *hp = &a->model->hp;
    const pd_select *sel = j->sel[c->seq];
    const pd_kv *kv = j->kv[c->seq];
    const pd_kv_head *kh = pd_kv_at(kv, j->layer, c->head);
    const size_t d = hp->head_dim, group = sel->group, stride = PAGES * N + 2 * N;
    const uint32_t *chosen = sel->page + c->head * sel->page_stride + c->page0;
    float *tmp = a->pages + thread * a->pages_floats, *q = tmp + group * stride, *scratch = q + group * d;
    const float *src = j->q + (c->seq * hp->n_head + c->head * group) * d;
    for (size_t i = 0; i < group * d; i++) q[i] = src[i] * hp->attn_scale;
    const void *pages[PAGES];
    for (uint32_t i = 0; i < c->n_page; i++) pages[i] = pd_kvpool_page(kv->pool, kh->page[chosen[i]]);
    pd_codec_scores(&kv->codec, a->kern, q, group, d, pages, 0, (size_t)c->n_page * N, 0, hp->attn_softcap, tmp, stride, scratch);
    for (uint32_t i = 0; i < c->n_page; i++) {
        const size_t n = pd_min_size(kh->n - (size_t)chosen[i] * N, N); /* slots of the page */
        for (size_t g = 0; g < group; g++)
            memcpy(pd_select_at(sel, c->head, (size_t)chosen[i] * N) + g * sel->stride, tmp + g * stride + i * N, n * sizeof *tmp);
    }
}

static void score_by_keys(step_job *j, size_t n_seq) {
    const size_t heads = j->a->model->hp.n_head_kv;
    bool any = false;
    for (size_t s = 0; j->sel && s < n_seq; s++) any = any || pd_select_codes(j->sel[s], j->layer);
    if (!any) return;
    pd_workers_run(j->a->workers, exact_task, j, n_seq * heads);
    size_t n = 0;
    for (size_t i = 0; i < n_seq * heads; i++) {
        pd_select *sel = j->sel[i / heads];
        if (!pd_select_codes(sel, j->layer)) continue;
        const uint32_t n_page = sel->n_page[i % heads];
        const pd_kv_head *kh = pd_kv_at(j->kv[i / heads], j->layer, i % heads);
        pd_select_count(sel, j->layer, 0, kh->n - (size_t)(kh->n_page - n_page) * N, 0); /* the last page is among them */
        for (uint32_t p = 0; p < n_page; p += PAGES, n++)
            j->a->chunk[j->n + n] = (pd_attn_chunk){.seq = (uint32_t)(i / heads), .head = (uint32_t)(i % heads), .page0 = p, .n_page = n_page - p < PAGES ? n_page - p : PAGES};
    }
    pd_workers_run(j->a->workers, rescore_task, j, n);
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
    const pd_kv_head *kh = pd_kv_at(kv, j->layer, c->head);
    const size_t k_dim = c->page0 < kh->n_pack_page ? pd_kv_pack_dim(kv, kh) : kv->head_dim;
    pages_of(j, c, pages, &codec);
    float *m = a->part + c->part * part_floats(&a->model->hp), *l = m + sel->group, *acc = l + sel->group;
    c->n_row = (uint32_t)pd_select_rows(sel, codec, a->kern, c->head, k_dim, kv->head_dim, pages, (size_t)c->page0 * N,
                                        c->n_page, m, l, acc);
    end_part(j, pair_of(j, c));
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
    if (j->sel) pd_joint_choose(j->a->workers, j->a->kern, &j->a->model->hp, j->kv, j->sel, n_seq, j->layer, j->q);
    for (size_t s = 0; j->sel && s < n_seq; s++) {
        const size_t unread = pd_kv_joint(j->kv[s], j->layer) ? pd_kv_at(j->kv[s], j->layer, 0)->n_pack - joint_look(j, s).n : 0;
        for (size_t h = 0; pd_select_counts(j->sel[s], j->layer) && h < j->kv[s]->n_head_kv; h++) {
            const size_t n = look_at(j, s, h).n - unread;
            pd_select_count(j->sel[s], j->layer, pd_kv_at(j->kv[s], j->layer, h)->n, pd_select_codes(j->sel[s], j->layer) ? 0 : n,
                            picks(j, s) ? 0 : n);
        }
    }
}

/* ---- keys in codes ---- */

/* The books of a head that has codes, in its pages or beside them; n_centroid 0 = none. */
static pd_book book_of(const step_job *j, size_t seq, size_t head) {
    const pd_kv *kv = j->kv[seq];
    const size_t i = j->layer * kv->n_head_kv + head;
    if (pd_index_has(&kv->index, i)) return pd_index_book(&kv->index, i);
    return kv->pack.latent && pd_kv_at(kv, j->layer, head)->n_pack ? pd_kv_latent(kv, j->layer, head)->book : (pd_book){0};
}

/* Task = sequence, query head: what its query gives each centroid. */
static void table_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const step_job *j = ctx;
    const pd_attn *a = j->a;
    const pd_hparams *hp = &a->model->hp;
    const size_t group = hp->n_head / hp->n_head_kv, seq = task / hp->n_head, head = task % hp->n_head / group, d = hp->head_dim;
    const pd_book book = book_of(j, seq, head);
    if (!book.n_centroid) return;
    float q[PD_BOOK_DIM_MAX];
    for (size_t i = 0; i < d; i++) q[i] = j->q[task * d + i] * hp->attn_scale;
    uint8_t *table = a->table + (task - task % group) * a->table_bytes + task % group * pd_book_codes(&book) * book.n_centroid;
    pd_book_table(&book, a->kern, q, table, a->table_scale + 2 * task, a->table_scale + 2 * task + 1);
}

static void make_tables(step_job *j, size_t n_seq) {
    bool any = false;
    for (size_t s = 0; s < n_seq; s++)
        for (size_t h = 0; h < j->kv[s]->n_head_kv; h++) any = any || book_of(j, s, h).n_centroid;
    if (any) pd_workers_run(j->a->workers, table_task, j, n_seq * j->a->model->hp.n_head);
}

/* The next chunk of a row's head, if there is one more. */
static bool list_chunk(const step_job *j, size_t seq, size_t head, size_t n) {
    pd_attn *a = j->a;
    const pd_kv *kv = j->kv[seq];
    const pd_kv_head *kh = pd_kv_at(kv, j->layer, head);
    const uint32_t n_page = look_at(j, seq, head).n_page, recent = pd_kv_recent_from(kv, kh), again = recent < n_page ? recent : n_page;
    const size_t i = seq * a->model->hp.n_head_kv + head;
    pd_attn_pair *pair = &a->pair[i];
    pd_attn_chunk *c = &a->chunk[n];
    *c = (pd_attn_chunk){.seq = (uint32_t)seq, .head = (uint32_t)head};
    if (pd_kv_joint(kv, j->layer) && kh->n_pack && pair->next_page == 0) { /* the first head's pieces leave results for all */
        const size_t n_read = joint_look(j, seq).n, len = pd_joint_piece_len(n_read), at = pair->n * len;
        if (head == 0 && at < n_read) {
            c->first = (uint32_t)at;
            c->n = (uint32_t)pd_min_size(len, n_read - at);
            c->part = (uint32_t)(i * a->pair_cap + pair->n++);
            return true;
        }
        pair->n = (uint32_t)pd_div_up(n_read, len);
        pair->next_page = kh->n_pack_page;
    }
    const uint32_t p = pair->next_page, left = (p < kh->n_pack_page ? kh->n_pack_page : p < again ? again : n_page) - p;
    if (left == 0) return false;
    c->page0 = p;
    c->n_page = left < PAGES ? left : PAGES;
    c->part = (uint32_t)(i * a->pair_cap + pair->n++);
    pair->next_page += c->n_page;
    return true;
}

void pd_attn_step(pd_attn *a, pd_kv *const *kv, pd_select *const *sel, size_t n_seq, size_t layer, const float *q, float *out) {
    const pd_hparams *hp = &a->model->hp;
    step_job job = {.a = a, .kv = kv, .sel = sel, .layer = layer, .q = q, .out = out};
    choose_pages(&job, n_seq);
    make_tables(&job, n_seq);
    for (size_t i = 0; i < n_seq * hp->n_head_kv; i++) a->pair[i].n = a->pair[i].next_page = 0;
    size_t n = 0;
    bool pieces = false;
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
        pieces = pieces || pd_kv_joint(kv[s], layer);
    }
    for (size_t i = 0; i < n_seq * hp->n_head_kv; i++) atomic_init(&a->pair[i].left, a->pair[i].n);
    job.n = n;
    job.run = pieces ? 1 : pd_max_size(1, pd_min_size(RUN, n / (4 * (size_t)pd_workers_count(a->workers))));
    pd_workers_run(a->workers, step_task, &job, pd_div_up(n, job.run));
    score_by_keys(&job, n_seq);
    read_chosen(&job, n_seq);
}
