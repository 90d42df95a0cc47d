/* SPDX-License-Identifier: Apache-2.0 */
/* How the numbers of a page are stored.  A page of one KV head is its K part and
 * behind it its V part, each in a type of its own:
 *
 *     f16, f32   K: [head_dim][16]   V: [16][head_dim]             (kernels.h, attention)
 *     q8_0, q4   the same in groups of 32 numbers with one step    (kernels.h, few bits)
 *     codes8, codes4   keys as product codes (codes.h)             (kernels.h, product codes)
 *
 * q4 means 5 bits of a key's numbers and 4 of a value's; it stores rows rotated by an orthonormal Hadamard matrix over head_dim (its
 * largest power of two, repeated), which spreads a large channel over all of them;
 * the query is rotated likewise and the output back (QuaRot, 2404.00456).
 *
 * Keys in few bits are stored as their difference from a centre, one row for all
 * slots of a head (kv.h): <q, centre> is the same for every slot, so no softmax sees it
 * (SageAttention, 2410.02367), and what is left needs smaller steps.
 *
 * Either may be narrower than head_dim (packed pages, kv.h): k_dim and v_dim where it matters.
 *
 * A row is stored when its token comes: nothing waits for a page to fill.  One
 * type = one row of codec.c.  Thread: any (pages are the engine's). */
#ifndef PD_ENGINE_CACHE_CODEC_H
#define PD_ENGINE_CACHE_CODEC_H

#include "engine/kernels/kernels.h"

#include <stdbool.h>
#include <stddef.h>

/* NATIVE: what the engine computes with, f16 or (--compute f32) f32. */
typedef enum {
    PD_KV_NATIVE,
    PD_KV_F16,
    PD_KV_F32,
    PD_KV_Q8_0,
    PD_KV_Q4,
    PD_KV_TYPES,
    /* Keys alone, of packed pages alone (kv.h): product codes, whole numbers below 256 or 16. */
    PD_KV_CODES8 = PD_KV_TYPES,
    PD_KV_CODES4,
    PD_KV_ALL
} pd_kv_type;

/* One type's K or V part. */
typedef struct pd_codec_part {
    size_t (*bytes)(size_t head_dim); /* of the 16 slots */
    /* Slots [slot, slot + n) from n rows (n + slot <= 16); row i at x + i * stride. */
    void (*write)(const pd_kernels *kern, void *part, size_t head_dim, size_t slot, size_t n,
                  const float *x, size_t stride);
    /* Slot -> one row. */
    void (*read)(const pd_kernels *kern, const void *part, size_t head_dim, size_t slot, float *x);
    /* Slot `from` of one part over slot `to` of another (or the same): bit copy. */
    void (*move)(const void *src, size_t from, void *dst, size_t to, size_t head_dim);
} pd_codec_part;

typedef struct pd_codec {
    pd_kv_type key, value; /* never NATIVE */
    const pd_codec_part *k, *v;
} pd_codec;

pd_codec pd_codec_of(pd_kv_type key, pd_kv_type value);

/* The same with keys [16][head_dim], as values lie: for who reads single rows of them, and no kernel.  f16 and f32 alone. */
pd_codec pd_codec_by_row(const pd_codec *c);

/* How the last tokens are held beside pages of this codec (kv.h): q4's part as q8_0.
 * false: their pages are enough. */
bool pd_codec_recent(const pd_codec *c, pd_codec *ret);

const char *pd_kv_type_name(pd_kv_type t); /* "q8_0" */
/* false: no such type a request may ask for. */
bool pd_kv_type_parse(const char *name, pd_kv_type *ret);

/* What head_dim has to be a multiple of. */
static inline size_t pd_kv_type_group(pd_kv_type t) {
    return t == PD_KV_Q8_0 || t == PD_KV_Q4 ? PD_KV_GROUP : 1;
}

static inline size_t pd_codec_page_bytes(const pd_codec *c, size_t k_dim, size_t v_dim) {
    return c->k->bytes(k_dim) + c->v->bytes(v_dim);
}

static inline void *pd_codec_v(const pd_codec *c, void *page, size_t head_dim) {
    return (char *)page + c->k->bytes(head_dim);
}

/* centre [head_dim]: taken off the keys that are written, added to those read; NULL = 0. */
void pd_codec_write(const pd_codec *c, const pd_kernels *kern, void *page, size_t head_dim, size_t slot,
                    size_t n, const float *k, const float *v, size_t stride, const float *centre);
/* k, v may be NULL. */
void pd_codec_read(const pd_codec *c, const pd_kernels *kern, const void *page, size_t head_dim,
                   size_t slot, float *k, float *v, const float *centre);
void pd_codec_move(const pd_codec *c, const void *src, size_t from, void *dst, size_t to,
                   size_t head_dim);

/* The keys of a page as f32 [head_dim][16]: in tmp (as many floats), or where they are. */
const float *pd_codec_keys(const pd_codec *c, const pd_kernels *kern, const void *page,
                           size_t head_dim, float *tmp, const float *centre);

/* What x becomes when it is written and read back, in place.  f16 and f32 alone. */
void pd_kv_round(pd_kv_type t, const pd_kernels *kern, float *x, size_t n);

/* Attention over pages, as attn_pages_f16 in kernels.h: q [n_group][k_dim], acc
 * [n_group][v_dim]; scratch: floats for pd_codec_attn_floats of the larger, 64-byte aligned. */
static inline size_t pd_codec_attn_floats(size_t n_group, size_t head_dim) {
    const size_t row = head_dim + head_dim / 4 + 2 * (head_dim / PD_KV_GROUP) + 2 * (head_dim / 16);
    return n_group * (row + 16) + 16;
}
/* The same when the scores are known: tmp [n_group][tmp_stride], slot s of page p at 16 p + s (those
 * outside the range hold anything), weights by and by; k_dim says where the values begin.  v_dim may
 * be no multiple of 16 where its type stores single numbers. */
void pd_codec_attn_scored(const pd_codec *c, const pd_kernels *kern, size_t n_group, size_t k_dim, size_t v_dim,
                          const void *const *pages, size_t first, size_t n, float softcap, float *tmp,
                          size_t tmp_stride, float *m, float *l, float *acc);
void pd_codec_attn(const pd_codec *c, const pd_kernels *kern, const float *q, size_t n_group,
                   size_t k_dim, size_t v_dim, const void *const *pages, size_t first, size_t n, size_t n_next, float softcap,
                   float *tmp, size_t tmp_stride, float *scratch, float *m, float *l, float *acc);

/* Scores by a query prepared once: p->n_group and head_dim are set, then q and what belongs to it, in scratch; then
 * p->pages, first, n, tmp and tmp_stride, and slots outside the range get anything. */
void pd_codec_query(const pd_codec *c, const pd_kernels *kern, const float *q, float *scratch, pd_part_pass *p);
void pd_codec_score(const pd_codec *c, const pd_kernels *kern, const pd_part_pass *p);

/* Its two halves, for who reads only some of the values.  Scores [n_group][tmp_stride] of
 * the slots, -INFINITY for those of the pages that are outside the range: */
void pd_codec_scores(const pd_codec *c, const pd_kernels *kern, const float *q, size_t n_group, size_t head_dim,
                     const void *const *pages, size_t first, size_t n, size_t n_next, float softcap, float *tmp,
                     size_t tmp_stride, float *scratch);
/* Scores that came another way (tmp set): softcap, and -INFINITY where there is no slot. */
void pd_codec_scored(const pd_kernels *kern, size_t n_group, size_t first, size_t n, float softcap, float *tmp, size_t tmp_stride);
/* and acc [n_group][v_dim] = the sum over slots row[0..n_row) of weight [n_group][stride] * v; dense: weight i is row[i]'s, else
 * weight r that of slot r. */
void pd_codec_rows(const pd_codec *c, const pd_kernels *kern, size_t n_group, size_t k_dim, size_t v_dim, const void *const *pages,
                   const uint32_t *row, size_t n_row, bool dense, float *weight, size_t stride, float *acc);

#endif
