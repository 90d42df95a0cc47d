/* SPDX-License-Identifier: Apache-2.0 */
/* Private to attn*.c: the chunks of a decode step.
 *
 *   attn.c         scratch; tiles of a prompt
 *   attn_step.c    a step: its chunks, their results joined
 *   attn_packed.c  scores and sums over packed pages: fewer channels, latents, codes
 *   attn_pick.c    before and after, where a sequence says what is read
 *
 * Thread: engine, and the workers where a task is named. */
#ifndef PD_ENGINE_RUN_ATTN_INT_H
#define PD_ENGINE_RUN_ATTN_INT_H

#include "engine/run/attn.h"
#include "engine/run/tags.h"

#include <stdatomic.h>

/* PD__ATTN_GROUP: most query heads of a KV head.  PD__ATTN_STRIDE: scores of a head in a chunk. */
enum { PD__ATTN_GROUP = 16, PD__ATTN_STRIDE = (PD_ATTN_PAGES + 2) * PD_PAGE_TOKENS };

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
static inline size_t pd__attn_part_floats(const pd_hparams *hp) {
    return hp->n_head / hp->n_head_kv * (2 + hp->head_dim);
}

/* One layer of a step. */
typedef struct {
    pd_attn *a;
    pd_kv *const *kv;
    pd_select *const *sel;
    size_t layer;
    const float *q;
    float *out;
    size_t n; /* chunks */
} pd_attn_job;

/* The sequence's, if its values are chosen in this layer. */
static inline pd_select *pd__attn_picks(const pd_attn_job *j, size_t seq) {
    return j->sel && pd_select_picks(j->sel[seq], j->layer) ? j->sel[seq] : NULL;
}

/* What is looked into of a head. */
static inline pd_look pd__attn_look(const pd_attn_job *j, size_t seq, size_t head) {
    return pd_select_look(j->sel ? j->sel[seq] : NULL, j->layer, head, pd_kv_at(j->kv[seq], j->layer, head));
}

/* What is read of its joint latents. */
static inline pd_joint_look pd__attn_joint_look(const pd_attn_job *j, size_t seq) {
    return pd_joint_look_at(j->sel && j->sel[seq] ? &j->sel[seq]->joint : NULL, j->kv[seq], j->layer);
}

/* The chunk's row and KV head. */
static inline size_t pd__attn_pair_of(const pd_attn_job *j, const pd_attn_chunk *c) {
    return c->seq * j->a->model->hp.n_head_kv + c->head;
}

/* The chunk's pages [c->n_page] and how they are written; their number. */
size_t pd__attn_pages_of(const pd_attn_job *j, const pd_attn_chunk *c, const void **pages, const pd_codec **codec);
/* One of the pair's results is there: who has the last one joins them into j->out. */
void pd__attn_end_part(const pd_attn_job *j, size_t pair);

/* ---- attn_packed.c ---- */

/* Packed keys see their channels of the queries: q [G][D] to ret [G][k_dim].  The centre
 * was taken off all channels of an open key, but only these of a packed one: shift [G] is
 * what a packed score then has too much. */
void pd__attn_pack_queries(const pd_kv *kv, size_t layer, size_t head, const float *q, size_t group, float *ret, float *shift);
/* Scores of pages of codes by the head's tables, less off [G] (NULL = 0): tmp [G][stride]. */
void pd__attn_table_scores(const pd_attn_job *j, const pd_attn_chunk *c, const pd_book *book, const void *const *pages, size_t n_next,
                           const float *off, float *tmp, size_t stride);
/* Scores of keys in codes, but for those of sinks, which are there: tmp [G][stride].  q [G][D]. */
void pd__attn_code_scores(const pd_attn_job *j, const pd_attn_chunk *c, const void *const *pages, size_t n_next, size_t first, size_t n,
                          const float *q, float *tmp, size_t stride);
/* A chunk of packed pages of latents or codes: slots [first, first + n) of them into m, l and acc; tmp then has
 * their weights.  lat: scratch of the thread (pd_attn.latent). */
void pd__attn_latent_chunk(const pd_attn_job *j, const pd_attn_chunk *c, const void *const *pages, size_t first, size_t n, size_t n_next,
                           const float *q, float *tmp, size_t stride, float *scratch, float *lat, float *m, float *l, float *acc);

/* ---- attn_pick.c ---- */

/* Before anything is read: the pages, where they are chosen, what will be counted, and tables of codes. */
void pd__attn_choose(pd_attn_job *j, size_t n_seq);
/* When all chunks are scored, where values are chosen: scores of some pages by their keys; weights and cuts,
 * then rows. */
void pd__attn_read_chosen(pd_attn_job *j, size_t n_seq);

#endif
