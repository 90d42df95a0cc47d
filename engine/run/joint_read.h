/* SPDX-License-Identifier: Apache-2.0 */
/* What a decode step reads of joint latents (cache/joint.h), and attention over it.
 *
 * A layer goes in passes, each over tasks that depend on nothing but the sequence:
 *
 *     scores of blocks of pages -> the chosen tokens -> pieces of them, each for all heads
 *
 * The query is the mean of each group's, without RoPE, projected as keys are; scores take the first
 * numbers of each token alone (pd_latent_read).  Those lie a second time, in 8 bits, where one read after the
 * other finds them: a plane for each layer.  A piece rebuilds the keys of its tokens and leaves what a
 * chunk of pages leaves (attn.c).  Tokens projected since the last choice are read until the next one.
 *
 * Rebuilding would be most of the work, and a step reads six tenths of what the one before did: rebuilt keys
 * are kept, in f16, as long as there is room: PD_JOINT_KEEP times as many as a step reads.  Who was not read
 * since the hand came by last goes first (the clock algorithm, Corbato 1968).
 *
 * Where pages are f32, so are planes and keys, and nothing is rounded.
 *
 * Cost: a step reads a byte of each number that tokens are chosen by; 8 bytes a packed slot for the scores of one
 * layer; in every layer its plane, the kept keys and 4 bytes for each slot.  Thread: engine; tasks: workers. */
#ifndef PD_ENGINE_RUN_JOINT_READ_H
#define PD_ENGINE_RUN_JOINT_READ_H

#include "compression/press.h"
#include "engine/base/workers.h"
#include "engine/cache/kv.h"
#include "engine/model/model.h"

/* Tokens of a piece, at least and at most; keys are rebuilt PD_JOINT_ROWS at a time.  LEAD: most numbers of a plane. */
enum { PD_JOINT_ROWS = 64, PD_JOINT_PIECE = 256, PD_JOINT_KEEP = 2, PD_JOINT_LEAD = 2048 };

#define PD_JOINT_FRESH (UINT32_C(1) << 31)

/* Of one layer. */
typedef struct pd_joint_layer {
    uint32_t *slot, *row; /* [cap] chosen packed slots, ascending, and the rows of their keys */
    uint32_t n, then, age; /* how many; packed slots when they were chosen; steps since */
    uint32_t hand, planed; /* of the clock; slots whose numbers are in the plane */
    uint32_t *where;      /* [stride] the row of a slot's key + 1; 0: it is not kept */
    uint32_t *of;         /* [n_row] the slot of a row's key + 1 */
    uint8_t *use;         /* [n_row] of the clock: read now, read since the hand came by, neither */
    char *plane, *keys;   /* [stride / 16] pages of plane_bytes; [n_row] of key_bytes */
} pd_joint_layer;

/* Of one sequence; all-zero = everything is read. */
typedef struct pd_joint_read {
    pd_latent_read rule;
    size_t n_sink;
    uint64_t seed;
    size_t stride;       /* most slots of a head, in whole pages */
    size_t lead;         /* numbers of a token in the plane: rule.score, in whole groups of its type */
    pd_codec codec;      /* of the plane, as keys */
    pd_part_pass query;  /* of the layer at work: lead numbers */
    float *score;        /* [stride] likewise; NULL = nothing is chosen */
    uint32_t *room;      /* [stride + 16] scratch of the choice */
    uint32_t *list;      /* [cap] likewise */
    float *lead_q, *scratch; /* [lead], and what pd_codec_query wants */
    size_t cap, n_row;   /* most slots of a step; keys that are kept */
    size_t key_bytes, plane_bytes; /* of a row; of a page */
    pd_joint_layer *layer; /* [n_layer] */
    void *block;         /* their arrays */
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
