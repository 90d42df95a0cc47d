/* SPDX-License-Identifier: Apache-2.0 */
/* Which model a file of press data belongs to (see press_data.h). */
#include "compression/press_data.h"

#include <stdlib.h>
#include <string.h>

/* FNV-1a, 64 bits. */
static void add(uint64_t *h, const void *data, size_t n) {
    const unsigned char *p = data;
    for (size_t i = 0; i < n; i++) *h = (*h ^ p[i]) * UINT64_C(0x100000001B3);
}

static const uint64_t fnv_begin = UINT64_C(0xCBF29CE484222325);

static void add_u64(uint64_t *h, uint64_t v) {
    add(h, &v, sizeof v);
}

/* Spread a part's hash before parts are summed (in any order): the finisher of
 * splitmix64. */
static uint64_t spread(uint64_t z) {
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

static uint64_t hash_kv(const pd_gguf_kv *kv) {
    uint64_t h = fnv_begin;
    add(&h, kv->key.data, kv->key.len);
    add_u64(&h, kv->v.u); /* the widest of the number kinds */
    return spread(h);
}

static pd_status hash_tensor(const pd_gguf *g, const pd_gguf_tensor *t, uint64_t *ret,
                             pd_err *err) {
    uint64_t h = fnv_begin;
    add(&h, t->name.data, t->name.len);
    add_u64(&h, t->type->id);
    for (int i = 0; i < 4; i++) add_u64(&h, t->ne[i]);
    const uint64_t rows = t->n_bytes / t->row_bytes, at[3] = {0, rows / 2, rows - 1};
    void *row = malloc((size_t)t->row_bytes);
    if (!row) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a row of a tensor");
    pd_status rc = PD_OK;
    for (int i = 0; i < 3 && rc == PD_OK; i++) {
        rc = pd_gguf_read_rows(g, t, at[i], 1, row, err);
        if (rc == PD_OK) add(&h, row, (size_t)t->row_bytes);
    }
    free(row);
    *ret = spread(h);
    return rc;
}

pd_status pd_model_key(const pd_gguf *g, uint64_t *ret, pd_err *err) {
    pd_str arch = {0};
    PD_TRY(pd_gguf_str(g, "general.architecture", &arch, err));
    uint64_t key = fnv_begin, part = 0;
    add(&key, arch.data, arch.len);
    for (size_t i = 0; i < pd_gguf_n_kv(g); i++) {
        const pd_gguf_kv *kv = pd_gguf_kv_at(g, i);
        const bool number = kv->type != PD_GGUF_STRING && kv->type != PD_GGUF_ARRAY;
        if (number && kv->key.len > arch.len && kv->key.data[arch.len] == '.' &&
            memcmp(kv->key.data, arch.data, arch.len) == 0)
            key += hash_kv(kv);
    }
    for (size_t i = 0; i < pd_gguf_n_tensors(g); i++) {
        PD_TRY(hash_tensor(g, pd_gguf_tensor_at(g, i), &part, err));
        key += part;
    }
    *ret = spread(key);
    return PD_OK;
}
