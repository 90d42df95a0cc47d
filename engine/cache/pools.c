/* SPDX-License-Identifier: Apache-2.0 */
/* One pool per kind of page (see pools.h). */
#include "engine/cache/pools.h"

#include "engine/base/num.h"

#include <assert.h>
#include <string.h>

#define FOR_EACH_POOL(p, k, v, w)                   \
    for (int k = 0; k < PD_KV_ALL; k++)             \
        for (int v = 0; v < PD_KV_TYPES; v++)       \
            for (int w = 0; w < PD_KV_WIDTHS; w++)  \
                if (atomic_load_explicit(&(p)->k_dim[k][v][w], memory_order_acquire))

pd_status pd_kvpools_get(pd_kvpools *p, const pd_codec *c, size_t k_dim, pd_kvpool **ret, pd_err *err) {
    assert(k_dim >= 1 && k_dim <= p->head_dim);
    const size_t w = pd_div_up(k_dim * PD_KV_WIDTHS, p->head_dim) - 1;
    pd_kvpool *pool = &p->pool[c->key][c->value][w];
    _Atomic uint32_t *made = &p->k_dim[c->key][c->value][w];
    const size_t has = atomic_load_explicit(made, memory_order_relaxed);
    assert(!has || has == k_dim); /* pd_kv_pack_width gives one width to each of them */
    if (!has) {
        PD_TRY(pd_kvpool_init(pool, pd_codec_page_bytes(c, k_dim, p->head_dim), p->max_bytes, p->hysteresis_bytes, err));
        atomic_store_explicit(made, (uint32_t)k_dim, memory_order_release);
    }
    *ret = pool;
    return PD_OK;
}

pd_status pd_kvpools_init(pd_kvpools *p, const pd_codec *native, size_t head_dim, uint64_t max_bytes,
                          size_t hysteresis_bytes, pd_err *err) {
    memset(p, 0, sizeof *p);
    p->head_dim = head_dim;
    p->hysteresis_bytes = hysteresis_bytes;
    p->max_bytes = max_bytes;
    pd_kvpool *pool;
    PD_TRY(pd_kvpools_get(p, native, head_dim, &pool, err));
    p->max_bytes -= max_bytes % pool->page_bytes;
    return PD_OK;
}

void pd_kvpools_done(pd_kvpools *p) {
    FOR_EACH_POOL(p, k, v, w) pd_kvpool_done(&p->pool[k][v][w]);
    memset(p, 0, sizeof *p);
}

void pd_kvpools_trim(pd_kvpools *p) {
    FOR_EACH_POOL(p, k, v, w) pd_kvpool_trim(&p->pool[k][v][w], 0);
}

bool pd_kvpools_check(const pd_kvpools *p) {
    FOR_EACH_POOL(p, k, v, w) {
        if (!pd_kvpool_check(&p->pool[k][v][w])) return false;
    }
    return pd_kvpools_held(p, PD_PAGE_SEQ) + pd_kvpools_held(p, PD_PAGE_STORE) <= p->max_bytes;
}

uint64_t pd_kvpools_held(const pd_kvpools *p, pd_page_owner owner) {
    uint64_t bytes = 0;
    FOR_EACH_POOL(p, k, v, w) {
        const pd_kvpool *pool = &p->pool[k][v][w];
        bytes += (uint64_t)atomic_load(owner == PD_PAGE_SEQ ? &pool->n_seq : &pool->n_store) * pool->page_bytes;
    }
    return bytes;
}

uint64_t pd_kvpools_dirty(const pd_kvpools *p) {
    uint64_t bytes = 0;
    FOR_EACH_POOL(p, k, v, w) bytes += (uint64_t)atomic_load(&p->pool[k][v][w].n_dirty) * p->pool[k][v][w].page_bytes;
    return bytes;
}

void pd_kvpools_by_type(const pd_kvpools *p, uint64_t ret[2][PD_KV_ALL]) {
    memset(ret, 0, sizeof(uint64_t[2][PD_KV_ALL]));
    FOR_EACH_POOL(p, k, v, w) {
        const pd_kvpool *pool = &p->pool[k][v][w];
        const pd_codec c = pd_codec_of((pd_kv_type)k, (pd_kv_type)v);
        const uint64_t n = (uint64_t)atomic_load(&pool->n_seq) + atomic_load(&pool->n_store);
        ret[0][k] += n * c.k->bytes(atomic_load_explicit(&p->k_dim[k][v][w], memory_order_relaxed));
        ret[1][v] += n * c.v->bytes(p->head_dim);
    }
}
