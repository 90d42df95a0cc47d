/* SPDX-License-Identifier: Apache-2.0 */
/* How the numbers of a page are stored.  A page of one KV head:
 *
 *     K: [head_dim][16]   then   V: [16][head_dim]      (kernels.h, attention)
 *
 * One codec = one row of codec.c: its element, how a slot is written and read,
 * and the attention kernel that reads it.  Thread: any (pages are the engine's). */
#ifndef PD_ENGINE_CACHE_CODEC_H
#define PD_ENGINE_CACHE_CODEC_H

#include "engine/kernels/kernels.h"

#include <stddef.h>

typedef enum { PD_CODEC_F16, PD_CODEC_F32 } pd_codec_id;

typedef struct pd_codec {
    const char *name;
    size_t elem_bytes;
    /* Slots [slot, slot + n) of a page from n rows of K and V (n + slot <= 16);
     * row i at k + i * stride. */
    void (*write)(const pd_kernels *kern, void *page, size_t head_dim, size_t slot, size_t n,
                  const float *k, const float *v, size_t stride);
    /* Slot -> one row of K and V. */
    void (*read)(const pd_kernels *kern, const void *page, size_t head_dim, size_t slot, float *k, float *v);
    /* The keys of a page as f32 [head_dim][16]: in tmp, or where they are. */
    const float *(*keys)(const pd_kernels *kern, const void *page, size_t head_dim, float *tmp);
    /* Slot `from` of one page over slot `to` of another (or the same): bit copy. */
    void (*move)(const void *src_page, size_t from, void *dst_page, size_t to, size_t head_dim);
    /* What x becomes when it is written and read back, in place. */
    void (*round)(const pd_kernels *kern, float *x, size_t n);
    void (*attn)(const pd_kernels *kern, const float *q, size_t n_group, size_t head_dim,
                 const void *const *pages, size_t first, size_t n, float softcap, float *tmp,
                 size_t tmp_stride, float *m, float *l, float *acc);
} pd_codec;

const pd_codec *pd_codec_get(pd_codec_id id); /* lives forever */

static inline size_t pd_codec_page_bytes(const pd_codec *c, size_t head_dim) {
    return 2 * PD_PAGE_TOKENS * head_dim * c->elem_bytes;
}

#endif
