/* SPDX-License-Identifier: Apache-2.0 */
/* One pool per kind of page (see pools.h): a list, for a server sees few of the kinds there could be. */
#include "engine/cache/pools.h"

#include "engine/base/num.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static pd_kvkind *first_of(const pd_kvpools *p) {
    return atomic_load_explicit(&p->last, memory_order_acquire);
}

#define FOR_EACH_KIND(p, kind) for (pd_kvkind *kind = first_of(p); kind; kind = kind->next)

pd_status pd_kvpools_get(pd_kvpools *p, const pd_codec *c, size_t k_dim, size_t v_dim, pd_kvpool **ret, pd_err *err) {
    assert(k_dim >= 1 && k_dim <= p->head_dim && v_dim >= 1 && v_dim <= p->head_dim);
    FOR_EACH_KIND(p, kind) {
        if (kind->key != c->key || kind->value != c->value || kind->k_dim != k_dim || kind->v_dim != v_dim) continue;
        *ret = &kind->pool;
        return PD_OK;
    }
    pd_kvkind *made = calloc(1, sizeof *made);
    if (!made) return pd_fail(err, PD_ENOMEM, NULL, "no memory for another kind of KV pages");
    const pd_status rc = pd_kvpool_init(&made->pool, pd_codec_page_bytes(c, k_dim, v_dim), p->max_bytes, p->hysteresis_bytes, err);
    if (rc != PD_OK) {
        pd_kvpool_done(&made->pool);
        free(made);
        return rc;
    }
    made->key = c->key;
    made->value = c->value;
    made->k_dim = k_dim;
    made->v_dim = v_dim;
    made->next = first_of(p);
    if (made->next && made->next->pool.by_pieces) {
        made->next->pool.by_pieces = false;
        pd_kvpool_trim(&made->next->pool, made->next->pool.hysteresis);
    }
    atomic_store_explicit(&p->last, made, memory_order_release);
    *ret = &made->pool;
    return PD_OK;
}

pd_status pd_kvpools_init(pd_kvpools *p, const pd_codec *native, size_t head_dim, uint64_t max_bytes,
                          size_t hysteresis_bytes, pd_err *err) {
    memset(p, 0, sizeof *p);
    p->head_dim = head_dim;
    p->hysteresis_bytes = hysteresis_bytes;
    p->max_bytes = max_bytes;
    pd_kvpool *pool;
    PD_TRY(pd_kvpools_get(p, native, head_dim, head_dim, &pool, err));
    p->max_bytes -= max_bytes % pool->page_bytes;
    return PD_OK;
}

void pd_kvpools_done(pd_kvpools *p) {
    for (pd_kvkind *kind = first_of(p), *next; kind; kind = next) {
        next = kind->next;
        pd_kvpool_done(&kind->pool);
        free(kind);
    }
    memset(p, 0, sizeof *p);
}

void pd_kvpools_trim(pd_kvpools *p) {
    FOR_EACH_KIND(p, kind) pd_kvpool_trim(&kind->pool, 0);
}

void pd_kvpools_tidy(pd_kvpools *p, size_t bytes) {
    pd_kvkind *first = first_of(p);
    if (first->next) return;
    first->pool.by_pieces = true;
    pd_kvpool_tidy(&first->pool, (uint32_t)pd_max_size(1, bytes / first->pool.page_bytes));
}

bool pd_kvpools_check(const pd_kvpools *p) {
    FOR_EACH_KIND(p, kind) {
        if (!pd_kvpool_check(&kind->pool)) return false;
    }
    return pd_kvpools_held(p, PD_PAGE_SEQ) + pd_kvpools_held(p, PD_PAGE_STORE) <= p->max_bytes;
}

uint64_t pd_kvpools_held(const pd_kvpools *p, pd_page_owner owner) {
    uint64_t bytes = 0;
    FOR_EACH_KIND(p, kind) {
        const pd_kvpool *pool = &kind->pool;
        bytes += (uint64_t)atomic_load(owner == PD_PAGE_SEQ ? &pool->n_seq : &pool->n_store) * pool->page_bytes;
    }
    return bytes;
}

uint64_t pd_kvpools_dirty(const pd_kvpools *p) {
    uint64_t bytes = 0;
    FOR_EACH_KIND(p, kind) bytes += (uint64_t)atomic_load(&kind->pool.n_dirty) * kind->pool.page_bytes;
    return bytes;
}

void pd_kvpools_by_type(const pd_kvpools *p, uint64_t ret[2][PD_KV_ALL]) {
    memset(ret, 0, sizeof(uint64_t[2][PD_KV_ALL]));
    FOR_EACH_KIND(p, kind) {
        const pd_codec c = pd_codec_of(kind->key, kind->value);
        const uint64_t n = (uint64_t)atomic_load(&kind->pool.n_seq) + atomic_load(&kind->pool.n_store);
        ret[0][kind->key] += n * c.k->bytes(kind->k_dim);
        ret[1][kind->value] += n * c.v->bytes(kind->v_dim);
    }
}
