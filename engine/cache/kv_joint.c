/* SPDX-License-Identifier: Apache-2.0 */
/* Packed sections whose keys are joint latents (kv.h, joint.h): all heads of a layer at once, a
 * page's worth of tokens at a time, so that what is stored depends on nothing but the tokens. */
#include "engine/cache/kv_int.h"

#include "engine/base/num.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { N = PD_PAGE_TOKENS };

pd_status pd_kv_set_joint(pd_kv *kv, pd_kvpool *const *pool, const pd_joint *joint, size_t n_sink, pd_err *err) {
    const size_t row = kv->n_head_kv * kv->head_dim;
    assert(kv->n_pages == 0 && !kv->pack.pool && !kv->centre && kv->head_dim <= PD__KV_ROW_MAX);
    kv->pack = (pd_kv_pack){.codec = pd_codec_by_row(&kv->codec), .n_sink = n_sink};
    kv->pack.layer = calloc(kv->n_layer, sizeof(pd_kvpool *));
    kv->pack.joint = calloc(kv->n_layer, sizeof *joint);
    kv->pack.joint_tmp = malloc(3 * N * row * sizeof(float));
    kv->pack.sink = calloc(pd__kv_sink_floats(kv) + 1, sizeof *kv->pack.sink);
    if (!kv->pack.layer || !kv->pack.joint || !kv->pack.joint_tmp || !kv->pack.sink)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the bases of packed keys"); /* pd_kv_done frees */
    memcpy(kv->pack.layer, pool, kv->n_layer * sizeof(pd_kvpool *));
    memcpy(kv->pack.joint, joint, kv->n_layer * sizeof *joint);
    return PD_OK;
}

/* n <= 16 rows k [n][row], v likewise: k is spoilt. */
static pd_status put_rows(pd_kv *kv, size_t layer, float *k, const float *v, const int32_t *pos, size_t n, pd_err *err) {
    const pd_joint *j = pd_kv_joint(kv, layer);
    const size_t d = kv->head_dim, row = pd_joint_row(j), part = pd_joint_part(j);
    float *c = kv->pack.joint_tmp + 2 * N * row;
    for (size_t i = 0; i < n && (size_t)pos[i] < kv->pack.n_sink; i++) /* positions rise */
        for (size_t h = 0; h < kv->n_head_kv; h++)
            memcpy(pd_kv_sinks(kv, layer, h) + (size_t)pos[i] * d, k + i * row + h * d, d * sizeof *k);
    pd_joint_project(j, kv->kern, k, pos, n, c);
    for (size_t h = 0; h < kv->n_head_kv; h++)
        for (size_t i = 0; i < n; i++)
            PD_TRY(pd__kv_put_packed(kv, layer, h, c + i * j->rank + h * part, v + i * row + h * d, pos[i], err));
    return PD_OK;
}

pd_status pd_kv_append_joint(pd_kv *kv, size_t layer, const float *k, const float *v, size_t ld_head, size_t ld_row,
                             const int32_t *pos, size_t n, pd_err *err) {
    const size_t d = kv->head_dim, row = kv->n_head_kv * d;
    float *kt = kv->pack.joint_tmp, *vt = kt + N * row;
    assert(pd_kv_joint(kv, layer) && pd_kv_at(kv, layer, 0)->n == pd_kv_at(kv, layer, 0)->n_pack);
    for (size_t i = 0; i < n; i += N) {
        const size_t run = pd_min_size(N, n - i);
        for (size_t r = 0; r < run; r++) {
            for (size_t h = 0; h < kv->n_head_kv; h++) {
                memcpy(kt + r * row + h * d, k + h * ld_head + (i + r) * ld_row, d * sizeof *k);
                memcpy(vt + r * row + h * d, v + h * ld_head + (i + r) * ld_row, d * sizeof *v);
            }
        }
        PD_TRY(put_rows(kv, layer, kt, vt, pos + i, run, err));
    }
    return PD_OK;
}

pd_status pd_kv_pack_joint(pd_kv *kv, size_t layer, size_t n, pd_err *err) {
    const size_t d = kv->head_dim, row = kv->n_head_kv * d;
    float *k = kv->pack.joint_tmp, *v = k + N * row;
    assert(pd_kv_joint(kv, layer) && n % N == 0);
    for (size_t i = 0; i < n; i += N) { /* the open pages go before the packed ones that take their rows come */
        int32_t pos[N];
        for (size_t h = 0; h < kv->n_head_kv; h++) {
            const uint32_t run = pd__kv_take_open(kv, layer, h, k + h * d, v + h * d, row, pos);
            assert(run == N);
            (void)run;
        }
        PD_TRY(put_rows(kv, layer, k, v, pos, N, err));
    }
    return PD_OK;
}

float *pd__kv_joint_row(const pd_kv *kv, size_t layer, size_t p, size_t slot) {
    const pd_joint *j = pd_kv_joint(kv, layer);
    const size_t part = pd_joint_part(j);
    float *c = kv->pack.joint_tmp;
    for (size_t h = 0; h < kv->n_head_kv; h++) {
        const pd_kv_head *kh = pd_kv_at(kv, layer, h);
        kv->pack.codec.k->read(kv->kern, pd_kvpool_page(pd_kv_pack_pool(kv, kh), kh->page[p]), part, slot, c + h * part);
    }
    return c;
}

void pd_kv_read_joint(const pd_kv *kv, size_t layer, const uint32_t *slot, size_t first, size_t n, float *c, int32_t *pos) {
    const pd_joint *j = pd_kv_joint(kv, layer);
    const size_t part = pd_joint_part(j), bytes = kv->pack.codec.k->bytes(part) / N; /* of a row */
    for (size_t h = 0; h < kv->n_head_kv && slot; h++) { /* they lie anywhere: all are asked for before one is waited for */
        const pd_kv_head *kh = pd_kv_at(kv, layer, h);
        const pd_kvpool *pool = pd_kv_pack_pool(kv, kh);
        for (size_t i = 0; i < n; i++) {
            const char *row = (const char *)pd_kvpool_page(pool, kh->page[slot[i] / N]) + slot[i] % N * bytes;
            for (size_t b = 0; b < bytes; b += 64) __builtin_prefetch(row + b);
        }
    }
    for (size_t h = 0; h < kv->n_head_kv; h++) {
        const pd_kv_head *kh = pd_kv_at(kv, layer, h);
        const pd_kvpool *pool = pd_kv_pack_pool(kv, kh);
        for (size_t i = 0; i < n; i++) {
            const size_t at = slot ? slot[i] : first + i; /* no window moves on here: slot 0 is the list's first */
            const uint32_t id = kh->page[at / N];
            kv->pack.codec.k->read(kv->kern, pd_kvpool_page(pool, id), part, at % N, c + i * j->rank + h * part);
            if (h == 0) pos[i] = pd_kvpool_pos(pool, id)[at % N];
        }
    }
}
