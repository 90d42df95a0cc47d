/* SPDX-License-Identifier: Apache-2.0 */
/* What a decode step reads of one sequence's full-attention layers, when its request
 * asks for less than everything (pd_read_rule).  Layers with a window are read whole.
 *
 * Pages (page_budget): by the bounds of their keys (cache/bounds.h), before anything of
 * the layer is read; what follows goes over the chosen pages alone, which are never none
 * and have the last one among them.  Bounds are taken over the query heads of a KV head.
 *
 * Scores by codes (exact): of all slots by their codes beside the pages (cache/index.h); then, of the share
 * of pages where a query head's score comes nearest its own largest, by their keys.  Nothing is dropped:
 * a slot elsewhere keeps the score of its code.
 *
 * Values (tau): no row of V is read before all scores of a head are known, so a layer
 * goes in three passes, each over tasks that depend on nothing but the sequence:
 *
 *     scores of every chunk -> of each query head, weights and the cut -> the chunks' rows
 *
 * The cut of a query head is the largest weight t for which the weights >= t come to
 * tau of all: the fewest rows that do, and those as heavy as the lightest of them too.
 * Sums are in f32, so that a set whose sum is within some 1e-6 of tau may be taken for
 * one that reaches it.  A row that one query head of a KV head takes is read for all.
 *
 * Joint latents: joint_read.h.
 *
 * Cost: 4 bytes for each query head and slot, of one layer at a time, and some 25 passes
 * over a head's weights, which lie in the cache; of pages, 8 bytes each.  Thread: engine; passes: workers. */
#ifndef PD_ENGINE_RUN_SELECT_H
#define PD_ENGINE_RUN_SELECT_H

#include "compression/press.h"
#include "engine/cache/kv.h"
#include "engine/model/model.h"
#include "engine/run/joint_read.h"

typedef struct pd_select {
    pd_read_rule rule;
    size_t n_layer, n_head, group;
    uint64_t seed;
    const uint32_t *window; /* [n_layer] */
    float *score;           /* [n_head][stride] scores of the layer at work, then weights */
    float *cut;             /* [n_head] */
    size_t stride;          /* most slots that are looked at in a head, in whole pages */
    float *bound;           /* [KV heads][page_stride] of the layer at work; NULL = all pages are read */
    uint32_t *page, *n_page; /* [KV heads][page_stride] chosen, ascending, n_page of them; 0 = all */
    size_t page_stride;     /* most pages of a head, in whole blocks */
    uint64_t *rows, *keys, *values; /* [n_layer] slots there were, and those whose key and value were
                                       read: over heads and steps; NULL = everything is read */
    pd_joint_read joint;
    size_t bytes;
} pd_select;

/* max_slots[layer] as pd_kv_init; seed: of page order "random".  A rule that reads
 * everything leaves nothing chosen.  Errors: ENOMEM. */
pd_status pd_select_init(pd_select *s, const pd_read_rule *rule, uint64_t seed, const pd_hparams *hp, const size_t *max_slots, pd_err *err);
/* Then, for joint latents: what is read of them.  Errors: ENOMEM. */
pd_status pd_select_latents(pd_select *s, const pd_latent_rule *rule, uint64_t seed, const pd_hparams *hp, pd_kv_type key, const size_t *max_slots,
                            pd_err *err);
void pd_select_done(pd_select *s); /* all-zero is fine */

/* What is read of the layer is counted, its values and its pages are chosen; false for NULL. */
static inline bool pd_select_counts(const pd_select *s, size_t layer) {
    return s && s->rows && !s->window[layer];
}

static inline bool pd_select_picks(const pd_select *s, size_t layer) {
    return pd_select_counts(s, layer) && s->score;
}

static inline bool pd_select_pages(const pd_select *s, size_t layer) {
    return pd_select_counts(s, layer) && s->rule.page_budget && layer >= s->rule.skip_layers;
}

static inline bool pd_select_codes(const pd_select *s, size_t layer) {
    return pd_select_counts(s, layer) && s->rule.exact > 0.0;
}

/* By codes: every slot of a KV head's n_page pages has its score (pd_select_at).  Choose those whose keys
 * are read: at s->page + head * s->page_stride, s->n_page[head] of them. */
void pd_select_exact(pd_select *s, const pd_kernels *kern, size_t head, size_t n_page);

/* Choose the pages of the layer's KV head for its query heads q [group][head_dim]. */
void pd_select_choose(pd_select *s, const pd_kv *kv, size_t layer, size_t head, const float *q);

/* What a step looks into of a head: n_page pages, page[i] their places in kh->page (NULL:
 * the first n_page), with n slots, the last page's at the end. */
typedef struct pd_look {
    const uint32_t *page;
    uint32_t n_page;
    size_t n;
} pd_look;

static inline pd_look pd_select_look(const pd_select *s, size_t layer, size_t head, const pd_kv_head *kh) {
    if (!pd_select_pages(s, layer) || s->n_page[head] == 0) return (pd_look){NULL, kh->n_page, kh->n};
    const uint32_t n_page = s->n_page[head]; /* those left out are full */
    return (pd_look){s->page + head * s->page_stride, n_page, kh->n - (size_t)(kh->n_page - n_page) * PD_PAGE_TOKENS};
}

/* Where the scores of a KV head's slots from `slot` (a page's first, counted over the pages
 * looked into) on lie: [group][s->stride]. */
static inline float *pd_select_at(const pd_select *s, size_t head, size_t slot) {
    return s->score + head * s->group * s->stride + slot;
}

/* Scores of the first n slots (in whole pages; -INFINITY where there is none) of a query
 * head to weights exp(score - max), and its cut. */
void pd_select_cut(pd_select *s, const pd_kernels *kern, size_t q_head, size_t n);

/* The rows of n_page pages (<= 16) from slot `slot` of a KV head on: m, l and acc as
 * pd_codec_attn leaves them, for the maximum over all of the head.  Returns how many
 * rows were read. */
size_t pd_select_rows(const pd_select *s, const pd_codec *c, const pd_kernels *kern, size_t head, size_t k_dim, size_t v_dim,
                      const void *const *pages, size_t slot, size_t n_page, float *m, float *l, float *acc);

/* Of `rows` slots of the layer, a step read so many keys and values. */
static inline void pd_select_count(pd_select *s, size_t layer, size_t rows, size_t keys, size_t values) {
    s->rows[layer] += rows;
    s->keys[layer] += keys;
    s->values[layer] += values;
}

#endif
