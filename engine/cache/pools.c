/* SPDX-License-Identifier: Apache-2.0 */
/* One pool per kind of page (see pools.h). */
#include "engine/cache/pools.h"

#include <string.h>

#define FOR_EACH_POOL(p, k, v)                  \
    for (int k = 0; k < PD_KV_TYPES; k++)       \
        for (int v = 0; v < PD_KV_TYPES; v++)   \
            if (atomic_load_explicit(&(p)->made[k][v], memory_order_acquire))

static pd_status make(pd_kvpools *p, const pd_codec *c, pd_err *err) {
    PD_TRY(pd_kvpool_init(&p->pool[c->key][c->value], pd_codec_page_bytes(c, p->head_dim), p->max_bytes,
                          p->hysteresis_bytes, err));
    atomic_store_explicit(&p->made[c->key][c->value], true, memory_order_release);
    return PD_OK;
}

pd_status pd_kvpools_init(pd_kvpools *p, const pd_codec *native, size_t head_dim, uint64_t max_bytes,
                          size_t hysteresis_bytes, pd_err *err) {
    memset(p, 0, sizeof *p);
    p->head_dim = head_dim;
    p->hysteresis_bytes = hysteresis_bytes;
    p->max_bytes = max_bytes;
    PD_TRY(make(p, native, err));
    p->max_bytes -= max_bytes % pd_codec_page_bytes(native, head_dim);
    return PD_OK;
}

void pd_kvpools_done(pd_kvpools *p) {
    FOR_EACH_POOL(p, k, v) pd_kvpool_done(&p->pool[k][v]);
    memset(p, 0, sizeof *p);
}

pd_status pd_kvpools_get(pd_kvpools *p, const pd_codec *codec, pd_kvpool **ret, pd_err *err) {
    if (!atomic_load_explicit(&p->made[codec->key][codec->value], memory_order_relaxed))
        PD_TRY(make(p, codec, err));
    *ret = &p->pool[codec->key][codec->value];
    return PD_OK;
}

void pd_kvpools_trim(pd_kvpools *p) {
    FOR_EACH_POOL(p, k, v) pd_kvpool_trim(&p->pool[k][v], 0);
}

bool pd_kvpools_check(const pd_kvpools *p) {
    FOR_EACH_POOL(p, k, v) {
        if (!pd_kvpool_check(&p->pool[k][v])) return false;
    }
    return pd_kvpools_held(p, PD_PAGE_SEQ) + pd_kvpools_held(p, PD_PAGE_STORE) <= p->max_bytes;
}

uint64_t pd_kvpools_held(const pd_kvpools *p, pd_page_owner owner) {
    uint64_t bytes = 0;
    FOR_EACH_POOL(p, k, v) {
        const pd_kvpool *pool = &p->pool[k][v];
        bytes += (uint64_t)atomic_load(owner == PD_PAGE_SEQ ? &pool->n_seq : &pool->n_store) * pool->page_bytes;
    }
    return bytes;
}

uint64_t pd_kvpools_dirty(const pd_kvpools *p) {
    uint64_t bytes = 0;
    FOR_EACH_POOL(p, k, v) bytes += (uint64_t)atomic_load(&p->pool[k][v].n_dirty) * p->pool[k][v].page_bytes;
    return bytes;
}

void pd_kvpools_by_type(const pd_kvpools *p, uint64_t ret[2][PD_KV_TYPES]) {
    memset(ret, 0, sizeof(uint64_t[2][PD_KV_TYPES]));
    FOR_EACH_POOL(p, k, v) {
        const pd_kvpool *pool = &p->pool[k][v];
        const pd_codec c = pd_codec_of((pd_kv_type)k, (pd_kv_type)v);
        const uint64_t n = (uint64_t)atomic_load(&pool->n_seq) + atomic_load(&pool->n_store);
        ret[0][k] += n * c.k->bytes(p->head_dim);
        ret[1][v] += n * c.v->bytes(p->head_dim);
    }
}
