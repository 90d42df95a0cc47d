/* SPDX-License-Identifier: Apache-2.0 */
/* What a decode step reads of joint latents (cache/joint.h), and attention over it.
 *
 * A layer goes in passes, each over tasks that depend on nothing but the sequence:
 *
 *     scores of blocks of pages -> the chosen tokens -> pieces of them, each for all heads
 *
 * The query is the mean of each group's, without RoPE, projected as keys are; scores take the first
 * numbers of each token alone (pd_latent_read).  A piece rebuilds the keys of its tokens and leaves what a
 * chunk of pages leaves (attn.c).  Tokens projected since the last choice are read until the next one.
 *
 * Rebuilding is most of the work, and a step reads six tenths of what the one before did: rebuilt keys are
 * kept, as pages store keys, while their tokens are chosen again.
 *
 * Cost: 8 bytes a packed slot for the scores of one layer; in every layer the keys of the tokens read and 8
 * bytes for each.  Thread: engine; tasks: workers. */
#ifndef PD_ENGINE_RUN_JOINT_READ_H
#define PD_ENGINE_RUN_JOINT_READ_H

#include "compression/press.h"
#include "engine/base/workers.h"
#include "engine/cache/kv.h"
#include "engine/model/model.h"

/* Tokens of a piece, at least and at most; keys are rebuilt PD_JOINT_ROWS at a time. */
enum { PD_JOINT_ROWS = 64, PD_JOINT_PIECE = 256 };

/* Of one sequence; all-zero = everything is read. */
typedef struct pd_joint_read {
    pd_latent_read rule;
    size_t n_sink;
    uint64_t seed;
    size_t stride;       /* most slots of a head, in whole pages */
    float *query;        /* [rule.score] of the layer at work */
    float *score;        /* [stride] likewise; NULL = nothing is chosen */
    uint32_t *room;      /* [stride + 16] scratch of the choice */
    uint32_t *slot, *row; /* [n_layer][cap] chosen packed slots, ascending, and the rows of their keys, then free rows: */
    void *keys;          /* [n_layer][cap][n_head_kv * head_dim], f16, or f32 where pages are */
    size_t cap, key_bytes; /* of a row */
    uint32_t *list, *spare; /* [cap] scratch of the choice */
    uint32_t *n, *then, *age; /* [n_layer] how many; packed slots when they were chosen; steps since */
    size_t bytes;
} pd_joint_read;

/* max_slots[layer] as pd_kv_init; key: f16 or f32.  A rule that reads everything leaves all zero.  Errors: ENOMEM. */
pd_status pd_joint_read_init(pd_joint_read *r, const pd_latent_rule *rule, uint64_t seed, const pd_hparams *hp, pd_kv_type key,
                             const size_t *max_slots, pd_err *err);
void pd_joint_read_done(pd_joint_read *r); /* all-zero is fine */

/* Packed slots a step reads of the layer: slot[0..n), or all n of them (NULL). */
typedef struct pd_joint_look {
    const uint32_t *slot;
    size_t n;
    const uint32_t *row; /* of a slot's key in keys; PD_JOINT_FRESH: it is to be rebuilt first */
    void *keys;
    size_t key_bytes;
} pd_joint_look;

#define PD_JOINT_FRESH (UINT32_C(1) << 31)

pd_joint_look pd_joint_look_at(const pd_joint_read *r, const pd_kv *kv, size_t layer);

/* Tokens of a piece, when n are read. */
static inline size_t pd_joint_piece_len(size_t n) {
    const size_t eighth = (n / 8 + PD_JOINT_ROWS - 1) / PD_JOINT_ROWS * PD_JOINT_ROWS;
    return eighth < PD_JOINT_ROWS ? PD_JOINT_ROWS : eighth < PD_JOINT_PIECE ? eighth : PD_JOINT_PIECE;
}

/* Choose for the next step of sequences [0, n_seq): their queries q [n_seq][n_head][head_dim], rotated.
 * sel[i] may be NULL. */
struct pd_select;
void pd_joint_choose(pd_workers *workers, const pd_kernels *kern, const pd_hparams *hp, pd_kv *const *kv,
                     struct pd_select *const *sel, size_t n_seq, size_t layer, const float *q);

/* Scratch of a piece, in floats. */
size_t pd_joint_piece_floats(const pd_hparams *hp);

/* Attention of all heads of q [n_head][head_dim], unscaled, over the look's tokens [first, first + n), n <=
 * PD_JOINT_PIECE: for KV head h m[G], l[G] and acc[G][D] at part + h * part_stride, as pd_codec_attn leaves them. */
void pd_joint_piece(const pd_kv *kv, const pd_hparams *hp, size_t layer, const pd_joint_look *look, size_t first, size_t n,
                    const float *q, float *scratch, float *part, size_t part_stride);

#endif
