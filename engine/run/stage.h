/* SPDX-License-Identifier: Apache-2.0 */
/* The staging layer: one layer's keys and values, dense, in f32.
 *
 * Prefill goes layer by layer; the layer at work keeps K and V of the whole
 * segment here, head by head:  prior slots (what the cache already holds) first,
 * then the segment's tokens.  When the layer is done its kept slots move into
 * pages and the next layer overwrites this one, so that the peak of a prompt is
 * one dense layer plus the pressed rest.
 * Its memory is a mapping of its own, back to the system when prefill ends.
 * Thread: engine. */
#ifndef PD_ENGINE_RUN_STAGE_H
#define PD_ENGINE_RUN_STAGE_H

#include "engine/base/err.h"

#include <stddef.h>
#include <stdint.h>

typedef struct pd_stage {
    size_t n_head_kv, head_dim;
    size_t cap;      /* slots per head */
    float *k, *v;    /* [n_head_kv][cap][head_dim] */
    int32_t *pos;    /* [n_head_kv][cap] position of each slot */
    size_t *n_prior; /* [n_head_kv] */
    size_t bytes;    /* K and V */
    void *map;
    size_t map_bytes;
} pd_stage;

/* Bytes of K and V for `cap` slots. */
static inline uint64_t pd_stage_bytes(size_t n_head_kv, size_t head_dim, size_t cap) {
    return 2u * (uint64_t)n_head_kv * cap * head_dim * sizeof(float);
}

pd_status pd_stage_open(pd_stage *s, size_t n_head_kv, size_t head_dim, size_t cap, pd_err *err);
void pd_stage_close(pd_stage *s); /* all-zero is fine */

static inline float *pd_stage_k(const pd_stage *s, size_t head) {
    return s->k + head * s->cap * s->head_dim;
}

static inline float *pd_stage_v(const pd_stage *s, size_t head) {
    return s->v + head * s->cap * s->head_dim;
}

static inline int32_t *pd_stage_pos(const pd_stage *s, size_t head) {
    return s->pos + head * s->cap;
}

#endif
