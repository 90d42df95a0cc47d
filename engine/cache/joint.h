/* SPDX-License-Identifier: Apache-2.0 */
/* Keys of all heads of a layer as one latent (SALS, 2510.24273).
 *
 * A token's keys before RoPE, all heads in a row x [n_head * head_dim], are stored as c = B x,
 * `rank` numbers, and used as R_p B^T c; latent.h has the rotations.  Rows of B are the leading
 * eigenvectors of the mean of x x^T, so that the first numbers say most.  No page is of a layer:
 * the pages of head h hold the numbers [h * part, (h + 1) * part) of each slot, row by row, beside its values,
 * part = rank / n_head, and the heads' slots are those of the same tokens.
 *
 * Cost: rank * n_head * head_dim multiply-adds to project a token, and as many to rebuild it.
 * Thread: any. */
#ifndef PD_ENGINE_CACHE_JOINT_H
#define PD_ENGINE_CACHE_JOINT_H

#include "engine/cache/latent.h"

typedef struct pd_joint {
    size_t n_head, head_dim;
    size_t rank;           /* a multiple of n_head; 0: the layer's keys are not projected */
    const float *basis;    /* [rank][n_head * head_dim]; borrowed */
    const pd_turns *turns;
} pd_joint;

/* Numbers of a token in a head's pages; of all its keys. */
static inline size_t pd_joint_part(const pd_joint *j) {
    return j->rank / j->n_head;
}

static inline size_t pd_joint_row(const pd_joint *j) {
    return j->n_head * j->head_dim;
}

/* x [n][row] of positions pos[n], rotated, which become unrotated -> c [n][rank].  A token's numbers
 * depend on n: who wants the same bits asks for as many at a time. */
void pd_joint_project(const pd_joint *j, const pd_kernels *kern, float *x, const int32_t *pos, size_t n, float *c);

/* And back: x [n][row], rotated. */
void pd_joint_rebuild(const pd_joint *j, const pd_kernels *kern, const float *c, const int32_t *pos, size_t n, float *x);

/* One head's key k[head_dim] of one token. */
void pd_joint_rebuild_head(const pd_joint *j, const pd_kernels *kern, size_t head, const float *c, int32_t pos, float *k);

/* Queries q [n_head][head_dim] of position pos, rotated, which become unrotated -> ret[lead], so that the
 * sum over heads of <q_h, k_h> without RoPE is about <ret, c[:lead]>. */
void pd_joint_query(const pd_joint *j, const pd_kernels *kern, float *q, int32_t pos, size_t lead, float *ret);

#endif
