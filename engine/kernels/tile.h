/* SPDX-License-Identifier: Apache-2.0 */
/* Attention of a prompt's tile: the loop that all vector rows share (tile.c) and
 * what a row supplies for it.
 *
 * One lane is one query row: 16 (or 8) tokens of one head are a vector, and the
 * vectors of a group of heads go through the keys together.  Scores lie as
 * [slot][row], so that maximum, exponential and sum of a row never cross lanes,
 * and one element of K or V, broadcast, serves every row of a group.
 *
 *   group: up to max_vec vectors; its pitch P = max_vec * lanes floats
 *   qt  [D][P]  queries, scaled        s [TILE_KEYS][P]  scores, then weights
 *   acc [D][P]  sums of weighted V     m, l, lo, hi [P]
 *
 * A row whose multiplier takes pairs of bf16 keeps qt and the weights as pairs
 * of consecutive d or slots in one 32-bit element, and reads K and V from a copy
 * of the block made once for all groups. */
#ifndef PD_ENGINE_KERNELS_TILE_H
#define PD_ENGINE_KERNELS_TILE_H

#include "engine/kernels/kernels.h"

enum { PD__TILE_KEYS = PD_ATTN_TILE_KEYS, PD__TILE_LANES_MAX = 16, PD__TILE_VEC_MAX = 4 };

/* n: slots of the block; nv: vectors of the group; lo, hi: lane i sees the
 * block's slots [lo[i], hi[i]), NULL when every lane sees all. */
typedef struct pd__tile_ops {
    size_t lanes, max_vec;
    /* One vector: row[i] is lane i's query. */
    void (*pack)(const float *const *row, size_t dim, float scale, float *qt);
    /* K and V of a block as scores and values read them; NULL: as they are. */
    void (*copy)(const float *k, const float *v, size_t n, size_t dim, float *kc, float *vc);
    void (*scores)(const float *qt, const float *k, size_t n, size_t dim, size_t nv, float *s);
    void (*cap)(float *s, size_t n, float cap); /* kernels.h: softcap */
    /* s: scores to weights exp(s - new m); m, l brought up to date; scale[i] =
     * what the lane's earlier sums have to be multiplied by. */
    void (*softmax)(float *s, size_t n, size_t nv, const int32_t *lo, const int32_t *hi, float *m,
                    float *l, float *scale);
    /* acc = acc * scale + weights * V */
    void (*values)(const float *s, const float *v, size_t n, size_t dim, size_t nv,
                   const float *scale, float *acc);
    /* sum[j] += sum over one vector's lanes of exp(s[j] - m) / l, s from scores */
    void (*column)(const float *s, size_t n, const int32_t *lo, const int32_t *hi, const float *m,
                   const float *l, float *sum);
    /* row[i] = lane i's sums / l[i], n_row lanes */
    void (*unpack)(const float *acc, size_t dim, const float *l, float *const *row, size_t n_row);
} pd__tile_ops;

extern const pd__tile_ops pd__tile_avx512;

void pd__attn_tile(const pd__tile_ops *ops, const pd_attn_rows *t);
void pd__attn_tile_sums(const pd__tile_ops *ops, const pd_attn_rows *t, size_t s0, size_t s1,
                        float *sums, size_t stride);

#endif
