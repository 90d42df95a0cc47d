/* SPDX-License-Identifier: Apache-2.0 */
/* What the cache's files share (kv.c, kv_joint.c). */
#ifndef PD_ENGINE_CACHE_KV_INT_H
#define PD_ENGINE_CACHE_KV_INT_H

#include "engine/cache/kv.h"

enum { PD__KV_ROW_MAX = 512 };

/* One slot more at the end of the packed section: its key as a packed page stores it. */
pd_status pd__kv_put_packed(pd_kv *kv, size_t layer, size_t head, const float *row, const float *v, int32_t pos, pd_err *err);

/* The rows of the first open page, i-th at k + i * ld; the page is given back.  Returns how many. */
uint32_t pd__kv_take_open(pd_kv *kv, size_t layer, size_t head, float *k, float *v, size_t ld, int32_t *pos);

/* A joint latent [rank] in slot `slot` of page p of the lists; in the cache's scratch. */
float *pd__kv_joint_row(const pd_kv *kv, size_t layer, size_t p, size_t slot);

size_t pd__kv_sink_floats(const pd_kv *kv);

#endif
