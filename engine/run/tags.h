/* SPDX-License-Identifier: Apache-2.0 */
/* Tags: one number beside each cached slot of the full-attention layers, for decode
 * presses that remember something of a token (press.h, pd_tag_kind).  They are
 * pruned with their slots.  Sequences whose press asks for none have none.
 * Tags that add up attention get a decode step's weights from the step itself (attn.c).
 * Tags that add up attention get a decode step's weights from the step itself (attn.c).
 * Cost: 4 bytes a slot and head, and a row of scores per query head.
 * Thread: engine. */
#ifndef PD_ENGINE_RUN_TAGS_H
#define PD_ENGINE_RUN_TAGS_H

#include "compression/press.h"
#include "engine/cache/kv.h"
#include "engine/run/attn.h"

enum { PD_TAGS_KEYS = 16 * PD_PAGE_TOKENS }; /* slots whose keys are unpacked at a time */

typedef struct pd_tags {
    pd_tag_kind kind;
    size_t n_layer, n_head_kv, group;
    float **row;   /* [n_layer][n_head_kv] -> [slots]; NULL in layers with a window */
    float *memory;
    float *score;  /* [n_head][stride], one step's weights; pd_tag_attends */
    float *keys;   /* [n_head_kv][D][PD_TAGS_KEYS], some pages' keys; likewise */
    size_t stride; /* most slots of a head */
    size_t bytes;
} pd_tags;

/* max_slots[layer] as pd_kv_init.  Errors: ENOMEM. */
pd_status pd_tags_init(pd_tags *t, pd_tag_kind kind, const pd_hparams *hp, const size_t *max_slots, pd_err *err);
void pd_tags_done(pd_tags *t); /* all-zero is fine */

/* The layer's tags by head; NULL if there are none. */
static inline float **pd_tags_layer(const pd_tags *t, size_t layer) {
    float **row = t->row ? t->row + layer * t->n_head_kv : NULL;
    return row && row[0] ? row : NULL;
}

/* The tags of slots keep[0..n) become those of slots 0..n-1. */
void pd_tags_keep(pd_tags *t, size_t layer, size_t head, const uint32_t *keep, size_t n);

/* Slots [from, from + n) are new: their tags are `value`. */
void pd_tags_fill(pd_tags *t, size_t layer, size_t head, size_t from, size_t n, float value);

/* The weights w [G][ld] of slots [slot, slot + n) of a KV head, each off by a factor that
 * pd_tags_add will know.  Thread: any, one per slot. */
void pd_tags_put(pd_tags *t, size_t head, size_t slot, size_t n, const float *w, size_t ld);
/* Those of one query head, times `scale`, to the tags as their kind says. */
void pd_tags_add(pd_tags *t, const pd_kernels *kern, size_t layer, size_t q_head, size_t slot, size_t n, float scale);

/* Add to every slot's tag what its kind says of the softmax weights that the query row q
 * [n_head][D] (rotated) gives it.  The weights are those of pd_attn_step without choosing what
 * is read, computed once more.  Cost: n_head * slots * D. */
void pd_tags_attend(pd_tags *t, pd_attn *a, const pd_kv *kv, size_t layer, const float *q);

#endif
