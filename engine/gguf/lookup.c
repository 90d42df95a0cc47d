/* SPDX-License-Identifier: Apache-2.0 */
/* Finding by name, and typed values.  Names are looked up in an array sorted
 * once at open: O(log n) whatever names a hostile file chose, which a hash table
 * would not promise. */
#include "engine/gguf/internal.h"

#include <stdlib.h>
#include <string.h>

typedef long long ll;
typedef unsigned long long ull;

bool pd_str_eq(pd_str s, const char *z) {
    return s.len == strlen(z) && memcmp(s.data, z, s.len) == 0;
}

int pd__str_cmp(pd_str a, pd_str b) {
    const size_t n = a.len < b.len ? a.len : b.len;
    const int c = n ? memcmp(a.data, b.data, n) : 0;
    return c ? c : (a.len > b.len) - (a.len < b.len);
}

typedef struct {
    const char *base;
    size_t stride;
} named; /* elements that begin with their name */

static pd_str name_at(const named *e, size_t i) {
    pd_str s;
    memcpy(&s, e->base + i * e->stride, sizeof s);
    return s;
}

static int by_name(const void *a, const void *b, void *ctx) {
    const uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    const int c = pd__str_cmp(name_at(ctx, i), name_at(ctx, j));
    return c ? c : (i > j) - (i < j);
}

size_t pd__index_sort(const void *base, size_t stride, uint32_t *order, size_t n) {
    named e = {base, stride};
    for (size_t i = 0; i < n; i++) order[i] = (uint32_t)i;
    qsort_r(order, n, sizeof *order, by_name, &e);
    for (size_t i = 1; i < n; i++)
        if (pd__str_cmp(name_at(&e, order[i - 1]), name_at(&e, order[i])) == 0) return order[i];
    return n;
}

const void *pd__index_find(const void *base, size_t stride, const uint32_t *order, size_t n,
                           pd_str name) {
    const named e = {base, stride};
    size_t lo = 0, hi = n;
    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        const int c = pd__str_cmp(name_at(&e, order[mid]), name);
        if (c == 0) return e.base + order[mid] * stride;
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

static const pd_gguf_kv *find_in(const pd__part *p, const char *key) {
    return pd__index_find(p->kv, sizeof *p->kv, p->kv_order, p->n_kv, (pd_str){key, strlen(key)});
}

const pd_gguf_kv *pd_gguf_find(const pd_gguf *g, const char *key) {
    return find_in(&g->parts[0], key);
}

const pd_gguf_tensor *pd_gguf_tensor_find(const pd_gguf *g, const char *name) {
    return pd__index_find(g->tensors, sizeof *g->tensors, g->tensor_order, g->n_tensors,
                          (pd_str){name, strlen(name)});
}

/* ---- typed values ---- */

static const char *const type_names[] = {
    [PD_GGUF_U8] = "u8",         [PD_GGUF_I8] = "i8",       [PD_GGUF_U16] = "u16",
    [PD_GGUF_I16] = "i16",       [PD_GGUF_U32] = "u32",     [PD_GGUF_I32] = "i32",
    [PD_GGUF_F32] = "f32",       [PD_GGUF_BOOL] = "bool",   [PD_GGUF_STRING] = "string",
    [PD_GGUF_ARRAY] = "array",   [PD_GGUF_U64] = "u64",     [PD_GGUF_I64] = "i64",
    [PD_GGUF_F64] = "f64",
};

static pd_status missing(const pd__part *p, const char *key, pd_err *err) {
    return pd__source_fail(&p->src, err, "key '%s' is missing", key);
}

static pd_status wrong_type(const pd__part *p, const pd_gguf_kv *kv, const char *wanted,
                            pd_err *err) {
    return pd__source_fail(&p->src, err, "key '%s' is of type %s, must be %s",
                           pd__quote(kv->key).text, type_names[kv->type], wanted);
}

/* kv's value if it is an integer in [min, max]. */
static pd_status uint_of(const pd__part *p, const pd_gguf_kv *kv, uint64_t min, uint64_t max,
                         uint64_t *ret, pd_err *err) {
    const pd__quoted key = pd__quote(kv->key);
    switch (kv->type) {
    case PD_GGUF_I8:
    case PD_GGUF_I16:
    case PD_GGUF_I32:
    case PD_GGUF_I64:
        if (kv->v.i < 0)
            return pd__source_fail(&p->src, err, "key '%s' is %lld, must be from %llu to %llu",
                                   key.text, (ll)kv->v.i, (ull)min, (ull)max);
        break;
    case PD_GGUF_U8:
    case PD_GGUF_U16:
    case PD_GGUF_U32:
    case PD_GGUF_U64: break;
    default: return wrong_type(p, kv, "an integer", err);
    }
    const uint64_t v = kv->v.u; /* a signed value that is not negative has the same bits */
    if (v < min || v > max)
        return pd__source_fail(&p->src, err, "key '%s' is %llu, must be from %llu to %llu",
                               key.text, (ull)v, (ull)min, (ull)max);
    *ret = v;
    return PD_OK;
}

pd_status pd__part_uint(const pd__part *p, const char *key, uint64_t min, uint64_t max,
                        uint64_t fallback, uint64_t *ret, pd_err *err) {
    const pd_gguf_kv *kv = find_in(p, key);
    if (kv) return uint_of(p, kv, min, max, ret, err);
    *ret = fallback;
    return PD_OK;
}

pd_status pd_gguf_u32(const pd_gguf *g, const char *key, uint32_t min, uint32_t max, uint32_t *ret,
                      pd_err *err) {
    const pd_gguf_kv *kv = pd_gguf_find(g, key);
    if (!kv) return missing(&g->parts[0], key, err);
    uint64_t v = 0;
    PD_TRY(uint_of(&g->parts[0], kv, min, max, &v, err));
    *ret = (uint32_t)v;
    return PD_OK;
}

pd_status pd_gguf_u32_or(const pd_gguf *g, const char *key, uint32_t min, uint32_t max,
                         uint32_t fallback, uint32_t *ret, pd_err *err) {
    if (pd_gguf_find(g, key)) return pd_gguf_u32(g, key, min, max, ret, err);
    *ret = fallback;
    return PD_OK;
}

pd_status pd_gguf_f32_or(const pd_gguf *g, const char *key, float min, float max, float fallback,
                         float *ret, pd_err *err) {
    const pd_gguf_kv *kv = pd_gguf_find(g, key);
    if (!kv) {
        *ret = fallback;
        return PD_OK;
    }
    const pd__part *p = &g->parts[0];
    if (kv->type != PD_GGUF_F32 && kv->type != PD_GGUF_F64)
        return wrong_type(p, kv, "a float", err);
    if (!(kv->v.f >= (double)min && kv->v.f <= (double)max)) /* so that NaN is out of range */
        return pd__source_fail(&p->src, err, "key '%s' is %g, must be from %g to %g", key, kv->v.f,
                               (double)min, (double)max);
    *ret = (float)kv->v.f;
    return PD_OK;
}

pd_status pd_gguf_bool_or(const pd_gguf *g, const char *key, bool fallback, bool *ret,
                          pd_err *err) {
    const pd_gguf_kv *kv = pd_gguf_find(g, key);
    if (kv && kv->type != PD_GGUF_BOOL) return wrong_type(&g->parts[0], kv, "a boolean", err);
    *ret = kv ? kv->v.u != 0 : fallback;
    return PD_OK;
}

pd_status pd_gguf_str(const pd_gguf *g, const char *key, pd_str *ret, pd_err *err) {
    const pd_gguf_kv *kv = pd_gguf_find(g, key);
    if (!kv) return missing(&g->parts[0], key, err);
    if (kv->type != PD_GGUF_STRING) return wrong_type(&g->parts[0], kv, "a string", err);
    *ret = kv->v.s;
    return PD_OK;
}
