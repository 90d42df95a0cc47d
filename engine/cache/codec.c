/* SPDX-License-Identifier: Apache-2.0 */
/* Page codecs: f16 (served) and f32 (--compute f32).  See codec.h. */
#include "engine/cache/codec.h"

#include <string.h>

enum { N = PD_PAGE_TOKENS, ROW_MAX = 512 };

/* ---- f16 ---- */

static void f16_write(const pd_kernels *kern, void *page, size_t d, size_t slot, size_t n,
                      const float *k, const float *v, size_t stride) {
    uint16_t *pk = page, *pv = pk + d * N;
    uint16_t row[ROW_MAX];
    for (size_t i = 0; i < n; i++) {
        for (size_t c = 0; c < d; c += ROW_MAX) { /* one pass for every real head size */
            const size_t m = d - c < ROW_MAX ? d - c : ROW_MAX;
            kern->f32_to_f16(k + i * stride + c, row, m);
            for (size_t j = 0; j < m; j++) pk[(c + j) * N + slot + i] = row[j];
        }
        kern->f32_to_f16(v + i * stride, pv + (slot + i) * d, d);
    }
}

static void f16_read(const pd_kernels *kern, const void *page, size_t d, size_t slot, float *k, float *v) {
    const uint16_t *pk = page, *pv = pk + d * N;
    uint16_t row[ROW_MAX];
    for (size_t c = 0; c < d; c += ROW_MAX) {
        const size_t m = d - c < ROW_MAX ? d - c : ROW_MAX;
        for (size_t j = 0; j < m; j++) row[j] = pk[(c + j) * N + slot];
        kern->f16_to_f32(row, k + c, m);
    }
    kern->f16_to_f32(pv + slot * d, v, d);
}

static const float *f16_keys(const pd_kernels *kern, const void *page, size_t d, float *tmp) {
    kern->f16_to_f32(page, tmp, d * N);
    return tmp;
}

static void f16_move(const void *src_page, size_t from, void *dst_page, size_t to, size_t d) {
    const uint16_t *sk = src_page;
    uint16_t *dk = dst_page;
    for (size_t j = 0; j < d; j++) dk[j * N + to] = sk[j * N + from];
    memmove(dk + d * N + to * d, sk + d * N + from * d, d * sizeof *dk);
}

static void f16_round(const pd_kernels *kern, float *x, size_t n) {
    uint16_t row[ROW_MAX];
    for (size_t i = 0; i < n; i += ROW_MAX) {
        const size_t m = n - i < ROW_MAX ? n - i : ROW_MAX;
        kern->f32_to_f16(x + i, row, m);
        kern->f16_to_f32(row, x + i, m);
    }
}

static void f16_attn(const pd_kernels *kern, const float *q, size_t n_group, size_t d,
                     const void *const *pages, size_t first, size_t n, float softcap, float *tmp,
                     size_t tmp_stride, float *m, float *l, float *acc) {
    kern->attn_pages_f16(q, n_group, d, pages, first, n, softcap, tmp, tmp_stride, m, l, acc);
}

/* ---- f32 ---- */

static void f32_write(const pd_kernels *kern, void *page, size_t d, size_t slot, size_t n,
                      const float *k, const float *v, size_t stride) {
    (void)kern;
    float *pk = page, *pv = pk + d * N;
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < d; j++) pk[j * N + slot + i] = k[i * stride + j];
        memcpy(pv + (slot + i) * d, v + i * stride, d * sizeof *pv);
    }
}

static void f32_read(const pd_kernels *kern, const void *page, size_t d, size_t slot, float *k, float *v) {
    (void)kern;
    const float *pk = page, *pv = pk + d * N;
    for (size_t j = 0; j < d; j++) k[j] = pk[j * N + slot];
    memcpy(v, pv + slot * d, d * sizeof *v);
}

static const float *f32_keys(const pd_kernels *kern, const void *page, size_t d, float *tmp) {
    (void)kern, (void)d, (void)tmp;
    return page;
}

static void f32_move(const void *src_page, size_t from, void *dst_page, size_t to, size_t d) {
    const float *sk = src_page;
    float *dk = dst_page;
    for (size_t j = 0; j < d; j++) dk[j * N + to] = sk[j * N + from];
    memmove(dk + d * N + to * d, sk + d * N + from * d, d * sizeof *dk);
}

static void f32_round(const pd_kernels *kern, float *x, size_t n) {
    (void)kern, (void)x, (void)n; /* exact */
}

static void f32_attn(const pd_kernels *kern, const float *q, size_t n_group, size_t d,
                     const void *const *pages, size_t first, size_t n, float softcap, float *tmp,
                     size_t tmp_stride, float *m, float *l, float *acc) {
    kern->attn_pages_f32(q, n_group, d, pages, first, n, softcap, tmp, tmp_stride, m, l, acc);
}

static const pd_codec codecs[] = {
    [PD_CODEC_F16] = {"f16", 2, f16_write, f16_read, f16_keys, f16_move, f16_round, f16_attn},
    [PD_CODEC_F32] = {"f32", 4, f32_write, f32_read, f32_keys, f32_move, f32_round, f32_attn},
};

const pd_codec *pd_codec_get(pd_codec_id id) {
    return &codecs[id];
}
