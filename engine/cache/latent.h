/* SPDX-License-Identifier: Apache-2.0 */
/* Keys and values of one KV head in fewer numbers than they have channels.
 *
 * RoPE smears a key's directions over circles, so a key is projected before it: a rotated key
 * k of position p is stored as c = P R_p^-1 k, `rank` numbers, and used as R_p B^T c, where P
 * and B hold the first `rank` directions of a basis (compression/bases.h) and R_p turns channels
 * i and i + d/2 by the angle p freq_i (Eigen Attention, 2408.05646; SALS, 2510.24273).
 *
 * What turns a key back is what turns it forth, to the bit, so it need not be the very rotation
 * the model made: tables are sums of two angles, and a factor in the model's cos and sin (YaRN)
 * stays in the key.  A key that was stored as f16 is turned back just as well: its rounding errors
 * are turned with it and stay as small.
 *
 * A value v is stored as c = U v, U the first directions of an orthonormal basis, and stands for U^T c.
 * Nothing turns values, so the sum of weighted values may be taken of the c: it is unfolded once.
 *
 * Cost: rank * d multiply-adds to project a key, and as many to rebuild it at every use, where
 * scores of a group of G query heads take G * d.  Thread: any. */
#ifndef PD_ENGINE_CACHE_LATENT_H
#define PD_ENGINE_CACHE_LATENT_H

#include "engine/base/err.h"
#include "engine/cache/codes.h"
#include "engine/kernels/kernels.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PD_TURN_STEP = 64, PD_LATENT_HALF_MAX = 256 };

/* cos and sin of p * freq for positions p in [0, n): p = PD_TURN_STEP * a + b. */
typedef struct pd_turns {
    size_t half, n;
    float *memory;
    const float *cos_a, *sin_a; /* [a][half] */
    const float *cos_b, *sin_b; /* [PD_TURN_STEP][half] */
    const float *cos_s, *sin_s; /* [half][PD_PAGE_TOKENS]: b by slot */
} pd_turns;

/* Errors: ENOMEM. */
pd_status pd_turns_init(pd_turns *t, const float *freq, size_t half, size_t n, pd_err *err);
void pd_turns_done(pd_turns *t); /* all-zero is fine */
/* cos and sin [half] of one position. */
void pd_turns_of(const pd_turns *t, int32_t pos, float *c, float *s);

/* One head's bases, borrowed; or its codebooks (codes.h), which are of keys after RoPE and give `rank` codes. */
typedef struct pd_latent {
    size_t head_dim, rank;        /* of a key; head_dim % 2 == 0 */
    pd_book book;                 /* n_centroid 0: a basis */
    const float *project, *rebuild; /* [rank][head_dim] each; NULL: rank is head_dim, keys stay as they are */
    const pd_turns *turns;        /* NULL: of keys after RoPE, nothing is turned */
    size_t rank_v;                /* of a value, if it is projected */
    const float *value;           /* [rank_v][head_dim], orthonormal; NULL: values stay as they are */
} pd_latent;

/* Keys are not stored as they are. */
static inline bool pd_latent_has_keys(const pd_latent *l) {
    return l->project || l->book.n_centroid;
}

/* Numbers of a stored value. */
static inline size_t pd_latent_v_dim(const pd_latent *l) {
    return l->value ? l->rank_v : l->head_dim;
}

/* k[head_dim], rotated, of position pos -> c[rank].  tmp: head_dim floats. */
void pd_latent_project(const pd_latent *l, const pd_kernels *kern, const float *k, int32_t pos, float *c, float *tmp);

/* And back: k[head_dim], rotated. */
void pd_latent_rebuild(const pd_latent *l, const pd_kernels *kern, const float *c, int32_t pos, float *k);

/* v[head_dim] -> c[rank_v]; and back, also of a weighted sum of such c. */
void pd_latent_fold(const pd_latent *l, const pd_kernels *kern, const float *v, float *c);
void pd_latent_unfold(const pd_latent *l, const pd_kernels *kern, const float *c, float *v);

/* Rebuilt keys of n_page pages: c[rank][n_page * 16] -> k[head_dim][n_page * 16], rotated.
 * pos[page] -> its 16 slots' positions.  Slots [first, first + n) counted from the start of the first page
 * are right, the others hold anything.  tmp: head_dim floats. */
void pd_latent_keys(const pd_latent *l, const float *c, const int32_t *const *pos, size_t n_page, size_t first,
                    size_t n, float *k, float *tmp);

#endif
