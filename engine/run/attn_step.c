/* SPDX-License-Identifier: Apache-2.0 */
/* A decode step's attention: one new token per sequence (see attn.h).
 *
 * A chunk = up to 16 pages of one (sequence, KV head), those that are packed and those held a second
 * time (kv.h) in chunks of their own; the group's query heads share each load of K and V.  A chunk
 * leaves (max, sum, weighted V), and who computes the last chunk of a head joins them, in slot order.
 * Rows of one sequence (a draft) take their chunks in turns: what one has read the next finds in the
 * caches.  One task = a chunk; the one behind it is prefetched while it is computed, since a thread's
 * tasks lie side by side.  Where not all values are read (attn_pick.c), a chunk leaves its scores.
 * Joint latents go in pieces (joint_read.h) of all heads, which leave a result in each of them.
 * A sequence with tags (tags.h) gets them here: a chunk leaves its weights exp(score - max),
 * and joining tells what they are to be multiplied by. */
#include "engine/run/attn_int.h"

#include "engine/base/num.h"

#include <math.h>
#include <string.h>

enum { PAGES = PD_ATTN_PAGES, N = PD_PAGE_TOKENS };

/* The sequence's, if it wants this layer's weights. */
static pd_tags *tags_of(const pd_attn_job *j, size_t seq) {
    pd_tags *t = j->a->tags ? j->a->tags[seq] : NULL;
    return t && pd_tags_layer(t, j->layer) ? t : NULL;
}

size_t pd__attn_pages_of(const pd_attn_job *j, const pd_attn_chunk *c, const void **pages, const pd_codec **codec) {
    const pd_kv *kv = j->kv[c->seq];
    const pd_kv_head *kh = pd_kv_at(kv, j->layer, c->head);
    const uint32_t *chosen = pd__attn_look(j, c->seq, c->head).page;
    if (c->page0 < kh->n_pack_page) *codec = &kv->pack.codec;
    for (uint32_t i = 0; i < c->n_page; i++) {
        const uint32_t p = c->page0 + i;
        pages[i] = p < kh->n_pack_page ? pd_kvpool_page(pd_kv_pack_pool(kv, kh), kh->page[p])
                                       : pd_kv_page(kv, kh, chosen ? chosen[p] : p, codec);
    }
    return c->n_page;
}

/* A chunk by q [G][k_dim] into m, l and acc.  `keep`: in two passes, after which tmp has its weights. */
static void attend(const pd_attn *a, const pd_codec *codec, bool keep, const float *q, size_t k_dim, const void *const *pages,
                   size_t first, size_t n, size_t n_next, float *tmp, float *scratch, float *m) {
    const pd_hparams *hp = &a->model->hp;
    const size_t d = hp->head_dim, group = hp->n_head / hp->n_head_kv, stride = PD__ATTN_STRIDE;
    float *l = m + group, *acc = l + group;
    if (!keep) {
        pd_codec_attn(codec, a->kern, q, group, k_dim, d, pages, first, n, n_next, hp->attn_softcap, tmp, stride, scratch, m, l, acc);
        return;
    }
    pd_codec_scores(codec, a->kern, q, group, k_dim, pages, first, n, n_next, hp->attn_softcap, tmp, stride, scratch);
    pd_codec_attn_scored(codec, a->kern, group, k_dim, d, pages, first, n, 0.0f, tmp, stride, m, l, acc);
}

/* Join the chunks of one head, in slot order. */
static void join(const pd_attn_job *j, size_t pair, float *out) {
    const pd_attn *a = j->a;
    const pd_hparams *hp = &a->model->hp;
    const size_t d = hp->head_dim, group = hp->n_head / hp->n_head_kv, stride = pd__attn_part_floats(hp), n_chunk = a->pair[pair].n;
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

void pd__attn_end_part(const pd_attn_job *j, size_t pair) {
    const pd_hparams *hp = &j->a->model->hp;
    const size_t group_d = hp->n_head / hp->n_head_kv * hp->head_dim;
    if (atomic_fetch_sub_explicit(&j->a->pair[pair].left, 1, memory_order_acq_rel) == 1) join(j, pair, j->out + pair * group_d);
}

/* A piece of joint latents, for all heads. */
static void step_piece(const pd_attn_job *j, const pd_attn_chunk *c, unsigned thread) {
    const pd_attn *a = j->a;
    const pd_hparams *hp = &a->model->hp;
    const pd_joint_look look = pd__attn_joint_look(j, c->seq);
    pd_joint_piece(j->kv[c->seq], hp, j->layer, &look, c->first, c->n, j->q + c->seq * hp->n_head * hp->head_dim,
                   a->latent + thread * a->latent_floats, a->part + c->part * pd__attn_part_floats(hp), a->pair_cap * pd__attn_part_floats(hp));
    for (size_t h = 0; h < hp->n_head_kv; h++) pd__attn_end_part(j, c->seq * hp->n_head_kv + h);
}

/* `more`: the next chunk is computed after this one. */
static void step_chunk(const pd_attn_job *j, size_t chunk, bool more, unsigned thread) {
    pd_attn *a = j->a;
    const pd_hparams *hp = &a->model->hp;
    const size_t d = hp->head_dim, group = hp->n_head / hp->n_head_kv;
    pd_attn_chunk *c = &a->chunk[chunk];
    const pd_kv *kv = j->kv[c->seq];
    const pd_kv_head *kh = pd_kv_at(kv, j->layer, c->head);
    const void *pages[2 * PAGES];
    const pd_codec *codec, *next;
    const size_t n_page = pd__attn_pages_of(j, c, pages, &codec), n_next = more ? pd__attn_pages_of(j, c + 1, pages + n_page, &next) : 0;
    const bool packed = c->page0 < kh->n_pack_page;
    const size_t page = c->page0 - (packed ? 0 : kh->n_pack_page); /* of the section */
    const size_t dead = packed || !kh->n_pack ? kh->first : 0, live = packed ? kh->n_pack : pd__attn_look(j, c->seq, c->head).n - kh->n_pack;
    const size_t first = page == 0 ? dead : 0, end = pd_min_size(c->n_page * N, dead + live - page * N);
    float *tmp = a->pages + thread * a->pages_floats, *q = tmp + group * (PD__ATTN_STRIDE);
    float *scratch = q + group * d, *m = a->part + c->part * pd__attn_part_floats(hp), *l = m + group, *acc = l + group;
    const float *src = j->q + c->seq * hp->n_head * d + c->head * group * d;
    for (size_t i = 0; i < group * d; i++) q[i] = src[i] * hp->attn_scale;
    const pd_select *sel = pd__attn_picks(j, c->seq);
    if (sel && pd_select_codes(sel, j->layer)) {
        const size_t at = j->layer * kv->n_head_kv + c->head;
        const pd_book book = pd_index_book(&kv->index, at);
        for (uint32_t i = 0; i < c->n_page; i++) pages[i] = pd_index_page(&kv->index, at, c->page0 + i);
        const float *centre = pd_kv_centre(kv, j->layer, c->head); /* was taken off the keys; codes are of whole ones */
        float off[PD__ATTN_GROUP];
        for (size_t g = 0; g < group && centre; g++) off[g] = a->kern->dot_f32(q + g * d, centre, d);
        tmp = pd_select_at(sel, c->head, (size_t)c->page0 * N);
        pd__attn_table_scores(j, c, &book, pages, 0, centre ? off : NULL, tmp, sel->stride);
        pd_codec_scored(a->kern, group, first, end - first, hp->attn_softcap, tmp, sel->stride);
        return;
    }
    if (sel && packed) { /* in codes */
        float *at = pd_select_at(sel, c->head, (size_t)c->page0 * N);
        pd__attn_code_scores(j, c, pages, n_next, first, end - first, q, at, sel->stride);
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
        pd__attn_latent_chunk(j, c, pages, first, end - first, n_next, q, tmp, PD__ATTN_STRIDE, scratch,
                     a->latent + thread * a->latent_floats, m, l, acc);
    } else {
        float *pq = scratch + pd_codec_attn_floats(group, d), shift[PD__ATTN_GROUP];
        pd__attn_pack_queries(kv, j->layer, c->head, q, group, pq, shift);
        attend(a, &kv->codec, tags, pq, kv->pack.k_dim, pages, first, end - first, n_next, tmp, scratch, m);
        for (size_t g = 0; g < group; g++) m[g] -= shift[g];
    }
    if (!tags) return;
    const pd_attn_range range = {(uint32_t)((packed ? 0 : kh->n_pack) + page * N + first - dead), (uint32_t)(end - first)};
    a->range[c->part] = range;
    pd_tags_put(tags, c->head, range.slot, range.n, tmp + first, PD__ATTN_STRIDE);
}

static void step_task(void *ctx, size_t task, unsigned thread) {
    const pd_attn_job *j = ctx;
    const pd_attn_chunk *c = &j->a->chunk[task];
    if (c->n_page == 0) {
        step_piece(j, c, thread);
        return;
    }
    step_chunk(j, task, task + 1 < j->n && c[1].n_page, thread);
    if (!pd__attn_picks(j, c->seq)) pd__attn_end_part(j, pd__attn_pair_of(j, c));
}

/* The next chunk of a row's head, if there is one more. */
static bool list_chunk(const pd_attn_job *j, size_t seq, size_t head, size_t n) {
    pd_attn *a = j->a;
    const pd_kv *kv = j->kv[seq];
    const pd_kv_head *kh = pd_kv_at(kv, j->layer, head);
    const uint32_t n_page = pd__attn_look(j, seq, head).n_page, recent = pd_kv_recent_from(kv, kh), again = recent < n_page ? recent : n_page;
    const size_t i = seq * a->model->hp.n_head_kv + head;
    pd_attn_pair *pair = &a->pair[i];
    pd_attn_chunk *c = &a->chunk[n];
    *c = (pd_attn_chunk){.seq = (uint32_t)seq, .head = (uint32_t)head};
    if (pd_kv_joint(kv, j->layer) && kh->n_pack && pair->next_page == 0) { /* the first head's pieces leave results for all */
        const size_t n_read = pd__attn_joint_look(j, seq).n, len = pd_joint_piece_len(n_read), at = pair->n * len;
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
    pd_attn_job job = {.a = a, .kv = kv, .sel = sel, .layer = layer, .q = q, .out = out};
    pd__attn_choose(&job, n_seq);
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
    pd_workers_run(a->workers, step_task, &job, n);
    pd__attn_read_chosen(&job, n_seq);
}
