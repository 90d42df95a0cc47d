/* SPDX-License-Identifier: Apache-2.0 */
/* A step of sequences that say what is read (select.h, joint_read.h): pages are chosen and tables of codes
 * made before it; where values are chosen its chunks leave scores, and go once more for the rows. */
#include "engine/run/attn_int.h"

#include "engine/base/num.h"

#include <string.h>

enum { PAGES = PD_ATTN_PAGES, N = PD_PAGE_TOKENS };

/* ---- before ---- */

/* Task = sequence, KV head. */
static void choose_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const pd_attn_job *j = ctx;
    const pd_hparams *hp = &j->a->model->hp;
    const size_t seq = task / hp->n_head_kv, head = task % hp->n_head_kv, group = hp->n_head / hp->n_head_kv;
    if (!pd_select_pages(j->sel[seq], j->layer)) return;
    pd_select_choose(j->sel[seq], j->kv[seq], j->layer, head, j->q + (seq * hp->n_head + head * group) * hp->head_dim);
}

static void choose_pages(pd_attn_job *j, size_t n_seq) {
    bool any = false;
    for (size_t s = 0; j->sel && s < n_seq; s++) any = any || pd_select_pages(j->sel[s], j->layer);
    if (any) pd_workers_run(j->a->workers, choose_task, j, n_seq * j->a->model->hp.n_head_kv);
    if (j->sel) pd_joint_choose(j->a->workers, j->a->kern, &j->a->model->hp, j->kv, j->sel, n_seq, j->layer, j->q);
    for (size_t s = 0; j->sel && s < n_seq; s++) {
        const size_t unread = pd_kv_joint(j->kv[s], j->layer) ? pd_kv_at(j->kv[s], j->layer, 0)->n_pack - pd__attn_joint_look(j, s).n : 0;
        for (size_t h = 0; pd_select_counts(j->sel[s], j->layer) && h < j->kv[s]->n_head_kv; h++) {
            const size_t n = pd__attn_look(j, s, h).n - unread;
            pd_select_count(j->sel[s], j->layer, pd_kv_at(j->kv[s], j->layer, h)->n, pd_select_codes(j->sel[s], j->layer) ? 0 : n,
                            pd__attn_picks(j, s) ? 0 : n);
        }
    }
}

/* The books of a head that has codes, in its pages or beside them; n_centroid 0 = none. */
static pd_book book_of(const pd_attn_job *j, size_t seq, size_t head) {
    const pd_kv *kv = j->kv[seq];
    const size_t i = j->layer * kv->n_head_kv + head;
    if (pd_index_has(&kv->index, i)) return pd_index_book(&kv->index, i);
    return kv->pack.latent && pd_kv_at(kv, j->layer, head)->n_pack ? pd_kv_latent(kv, j->layer, head)->book : (pd_book){0};
}

/* Task = sequence, query head: what its query gives each centroid. */
static void table_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const pd_attn_job *j = ctx;
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

static void make_tables(pd_attn_job *j, size_t n_seq) {
    bool any = false;
    for (size_t s = 0; s < n_seq; s++)
        for (size_t h = 0; h < j->kv[s]->n_head_kv; h++) any = any || book_of(j, s, h).n_centroid;
    if (any) pd_workers_run(j->a->workers, table_task, j, n_seq * j->a->model->hp.n_head);
}

void pd__attn_choose(pd_attn_job *j, size_t n_seq) {
    choose_pages(j, n_seq);
    make_tables(j, n_seq);
}

/* ---- scores by codes: of some pages by their keys ---- */

/* Task = sequence, KV head. */
static void exact_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const pd_attn_job *j = ctx;
    const size_t heads = j->a->model->hp.n_head_kv, seq = task / heads, head = task % heads;
    if (j->sel[seq] && pd_select_codes(j->sel[seq], j->layer))
        pd_select_exact(j->sel[seq], j->a->kern, head, pd_kv_at(j->kv[seq], j->layer, head)->n_page);
}

/* Task = up to 16 chosen pages; the chunk's page0 counts those. */
static void rescore_task(void *ctx, size_t task, unsigned thread) {
    const pd_attn_job *j = ctx;
    pd_attn *a = j->a;
    const pd_attn_chunk *c = &a->chunk[j->n + task];
    const pd_hparams *hp = &a->model->hp;
    const pd_select *sel = j->sel[c->seq];
    const pd_kv *kv = j->kv[c->seq];
    const pd_kv_head *kh = pd_kv_at(kv, j->layer, c->head);
    const size_t d = hp->head_dim, group = sel->group, stride = PD__ATTN_STRIDE;
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

static void score_by_keys(pd_attn_job *j, size_t n_seq) {
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

/* ---- after: weights and cuts, then rows ---- */

/* Task = sequence, query head. */
static void cut_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const pd_attn_job *j = ctx;
    const pd_hparams *hp = &j->a->model->hp;
    const size_t seq = task / hp->n_head, head = task % hp->n_head;
    pd_select *sel = pd__attn_picks(j, seq);
    if (sel) pd_select_cut(sel, j->a->kern, head, pd__attn_look(j, seq, head / sel->group).n_page * (size_t)N);
}

static void rows_chunk(const pd_attn_job *j, size_t chunk) {
    pd_attn *a = j->a;
    pd_attn_chunk *c = &a->chunk[chunk];
    const pd_select *sel = pd__attn_picks(j, c->seq);
    if (!sel) return;
    const pd_kv *kv = j->kv[c->seq];
    const void *pages[PAGES];
    const pd_codec *codec;
    const pd_kv_head *kh = pd_kv_at(kv, j->layer, c->head);
    const size_t k_dim = c->page0 < kh->n_pack_page ? pd_kv_pack_dim(kv, kh) : kv->head_dim;
    pd__attn_pages_of(j, c, pages, &codec);
    float *m = a->part + c->part * pd__attn_part_floats(&a->model->hp), *l = m + sel->group, *acc = l + sel->group;
    c->n_row = (uint32_t)pd_select_rows(sel, codec, a->kern, c->head, k_dim, kv->head_dim, pages, (size_t)c->page0 * N,
                                        c->n_page, m, l, acc);
    pd__attn_end_part(j, pd__attn_pair_of(j, c));
}

static void rows_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const pd_attn_job *j = ctx;
    rows_chunk(j, task);
}

void pd__attn_read_chosen(pd_attn_job *j, size_t n_seq) {
    score_by_keys(j, n_seq);
    bool any = false;
    for (size_t s = 0; s < n_seq; s++) any = any || pd__attn_picks(j, s);
    if (!any) return;
    pd_workers_run(j->a->workers, cut_task, j, n_seq * j->a->model->hp.n_head);
    pd_workers_run(j->a->workers, rows_task, j, j->n);
    for (size_t i = 0; i < j->n; i++) {
        pd_select *sel = pd__attn_picks(j, j->a->chunk[i].seq);
        if (sel) pd_select_count(sel, j->layer, 0, 0, j->a->chunk[i].n_row);
    }
}
