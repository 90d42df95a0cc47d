/* SPDX-License-Identifier: Apache-2.0 */
/* Page codecs (see codec.h).  Cost of few bits when a row is written: q8_0 one
 * pass for the largest number of each group and one to round; q4 a Hadamard
 * transform of head_dim * log2(head_dim) additions before it. */
#include "engine/cache/codec.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { N = PD_PAGE_TOKENS, GROUP = PD_KV_GROUP, ROW_MAX = 512 };

/* ---- f16 ---- */

static size_t f16_bytes(size_t d) {
    return N * d * 2;
}

static void f16_write_k(const pd_kernels *kern, void *part, size_t d, size_t slot, size_t n, const float *x, size_t stride) {
    uint16_t *pk = part;
    uint16_t row[ROW_MAX];
    for (size_t i = 0; i < n; i++) {
        for (size_t c = 0; c < d; c += ROW_MAX) { /* one pass for every real head size */
            const size_t m = d - c < ROW_MAX ? d - c : ROW_MAX;
            kern->f32_to_f16(x + i * stride + c, row, m);
            for (size_t j = 0; j < m; j++) pk[(c + j) * N + slot + i] = row[j];
        }
    }
}

static void f16_write_v(const pd_kernels *kern, void *part, size_t d, size_t slot, size_t n, const float *x, size_t stride) {
    for (size_t i = 0; i < n; i++) kern->f32_to_f16(x + i * stride, (uint16_t *)part + (slot + i) * d, d);
}

static void f16_read_k(const pd_kernels *kern, const void *part, size_t d, size_t slot, float *x) {
    const uint16_t *pk = part;
    uint16_t row[ROW_MAX];
    for (size_t c = 0; c < d; c += ROW_MAX) {
        const size_t m = d - c < ROW_MAX ? d - c : ROW_MAX;
        for (size_t j = 0; j < m; j++) row[j] = pk[(c + j) * N + slot];
        kern->f16_to_f32(row, x + c, m);
    }
}

static void f16_read_v(const pd_kernels *kern, const void *part, size_t d, size_t slot, float *x) {
    kern->f16_to_f32((const uint16_t *)part + slot * d, x, d);
}

static void f16_move_k(const void *src, size_t from, void *dst, size_t to, size_t d) {
    const uint16_t *sk = src;
    uint16_t *dk = dst;
    for (size_t j = 0; j < d; j++) dk[j * N + to] = sk[j * N + from];
}

static void f16_move_v(const void *src, size_t from, void *dst, size_t to, size_t d) {
    memmove((uint16_t *)dst + to * d, (const uint16_t *)src + from * d, d * sizeof(uint16_t));
}

/* ---- f32 ---- */

static size_t f32_bytes(size_t d) {
    return N * d * 4;
}

static void f32_write_k(const pd_kernels *kern, void *part, size_t d, size_t slot, size_t n, const float *x, size_t stride) {
    (void)kern;
    float *pk = part;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < d; j++) pk[j * N + slot + i] = x[i * stride + j];
}

static void f32_write_v(const pd_kernels *kern, void *part, size_t d, size_t slot, size_t n, const float *x, size_t stride) {
    (void)kern;
    for (size_t i = 0; i < n; i++) memcpy((float *)part + (slot + i) * d, x + i * stride, d * sizeof *x);
}

static void f32_read_k(const pd_kernels *kern, const void *part, size_t d, size_t slot, float *x) {
    (void)kern;
    const float *pk = part;
    for (size_t j = 0; j < d; j++) x[j] = pk[j * N + slot];
}

static void f32_read_v(const pd_kernels *kern, const void *part, size_t d, size_t slot, float *x) {
    (void)kern;
    memcpy(x, (const float *)part + slot * d, d * sizeof *x);
}

static void f32_move_k(const void *src, size_t from, void *dst, size_t to, size_t d) {
    const float *sk = src;
    float *dk = dst;
    for (size_t j = 0; j < d; j++) dk[j * N + to] = sk[j * N + from];
}

static void f32_move_v(const void *src, size_t from, void *dst, size_t to, size_t d) {
    memmove((float *)dst + to * d, (const float *)src + from * d, d * sizeof(float));
}

/* ---- few bits: what both share ---- */

static size_t q8_bytes(size_t d) {
    return N * d + d / GROUP * N * 2;
}

static size_t q5_bytes(size_t d) {
    return N * d * 5 / 8 + d / GROUP * N * 2;
}

static size_t q4_bytes(size_t d) {
    return N * d / 2 + d / GROUP * N * 2;
}

/* Behind the numbers: d [head_dim/32][16] f16. */
static uint16_t *steps(void *part, size_t n_bytes) {
    return (uint16_t *)((uint8_t *)part + n_bytes);
}

static void put_steps(const pd_kernels *kern, void *part, size_t n_bytes, size_t d, size_t slot, const float *step) {
    for (size_t b = 0; b < d / GROUP; b++) kern->f32_to_f16(step + b, steps(part, n_bytes) + b * N + slot, 1);
}

static void get_steps(const pd_kernels *kern, const void *part, size_t n_bytes, size_t d, size_t slot, float *step) {
    const uint16_t *at = (const uint16_t *)((const uint8_t *)part + n_bytes);
    for (size_t b = 0; b < d / GROUP; b++) kern->f16_to_f32(at + b * N + slot, step + b, 1);
}

static void move_steps(const void *src, size_t from, void *dst, size_t to, size_t n_bytes, size_t d) {
    const uint16_t *s = (const uint16_t *)((const uint8_t *)src + n_bytes);
    for (size_t b = 0; b < d / GROUP; b++) steps(dst, n_bytes)[b * N + to] = s[b * N + from];
}

/* ---- q8_0: number = d * n, d = max / 127, as quantize_act ---- */

static void q8_quantise(const pd_kernels *kern, const float *x, size_t d, int8_t *n, float *step) {
    float sums[ROW_MAX / 16];
    kern->quantize_act(x, d, n, step, sums);
}

static void q8_write_k(const pd_kernels *kern, void *part, size_t d, size_t slot, size_t n, const float *x, size_t stride) {
    int8_t row[ROW_MAX];
    float step[ROW_MAX / GROUP];
    for (size_t i = 0; i < n; i++) {
        q8_quantise(kern, x + i * stride, d, row, step);
        for (size_t c = 0; c < d; c += 4) memcpy((int8_t *)part + (c / 4 * N + slot + i) * 4, row + c, 4);
        put_steps(kern, part, N * d, d, slot + i, step);
    }
}

static void q8_write_v(const pd_kernels *kern, void *part, size_t d, size_t slot, size_t n, const float *x, size_t stride) {
    float step[ROW_MAX / GROUP];
    for (size_t i = 0; i < n; i++) {
        q8_quantise(kern, x + i * stride, d, (int8_t *)part + (slot + i) * d, step);
        put_steps(kern, part, N * d, d, slot + i, step);
    }
}

static void q8_read_k(const pd_kernels *kern, const void *part, size_t d, size_t slot, float *x) {
    float step[ROW_MAX / GROUP];
    get_steps(kern, part, N * d, d, slot, step);
    for (size_t c = 0; c < d; c++) x[c] = step[c / GROUP] * ((const int8_t *)part)[(c / 4 * N + slot) * 4 + c % 4];
}

static void q8_read_v(const pd_kernels *kern, const void *part, size_t d, size_t slot, float *x) {
    float step[ROW_MAX / GROUP];
    get_steps(kern, part, N * d, d, slot, step);
    for (size_t c = 0; c < d; c++) x[c] = step[c / GROUP] * ((const int8_t *)part)[slot * d + c];
}

/* A slot's four channels stay together. */
static void move_quads(const void *src, size_t from, void *dst, size_t to, size_t n_quad) {
    for (size_t c = 0; c < n_quad; c++)
        memmove((uint8_t *)dst + (c * N + to) * 4, (const uint8_t *)src + (c * N + from) * 4, 4);
}

static void q8_move_k(const void *src, size_t from, void *dst, size_t to, size_t d) {
    move_quads(src, from, dst, to, d / 4);
    move_steps(src, from, dst, to, N * d, d);
}

static void q8_move_v(const void *src, size_t from, void *dst, size_t to, size_t d) {
    memmove((uint8_t *)dst + to * d, (const uint8_t *)src + from * d, d);
    move_steps(src, from, dst, to, N * d, d);
}

/* ---- q4: of the rotated row, number = d * (n - top / 2), d = max / (top / 2); top is 31 in keys, 15 in values ---- */

/* x = H x, H orthonormal and its own inverse (Sylvester's Hadamard matrix of the
 * largest power of two that divides d, repeated along the diagonal). */
static void rotate(float *x, size_t d) {
    const size_t size = d & (~d + 1);
    for (size_t at = 0; at < d; at += size) {
        float *y = x + at;
        for (size_t h = 1; h < size; h *= 2) {
            for (size_t i = 0; i < size; i += 2 * h) {
                for (size_t j = i; j < i + h; j++) {
                    const float a = y[j], b = y[j + h];
                    y[j] = a + b;
                    y[j + h] = a - b;
                }
            }
        }
    }
    const float scale = 1.0f / sqrtf((float)size);
    for (size_t i = 0; i < d; i++) x[i] *= scale;
}

/* n in 0..top of one row, and the groups' steps. */
static void q4_quantise(const float *x, size_t d, int top, uint8_t *n, float *step) {
    float y[ROW_MAX];
    const float half = (float)top / 2.0f;
    memcpy(y, x, d * sizeof *y);
    rotate(y, d);
    for (size_t b = 0; b < d / GROUP; b++) {
        const float *g = y + b * GROUP;
        float max = 0.0f;
        for (size_t i = 0; i < GROUP; i++) max = fmaxf(max, fabsf(g[i]));
        const bool zero = max / half < FLT_MIN; /* half / max could overflow */
        const float inv = zero ? 0.0f : half / max;
        step[b] = zero ? 0.0f : max / half;
        for (size_t i = 0; i < GROUP; i++) {
            const long v = lrintf(g[i] * inv + half);
            n[b * GROUP + i] = (uint8_t)(v < 0 ? 0 : v > top ? top : v);
        }
    }
}

/* The fifth bits of channels [4q, 4q + 4) of a slot share half a byte. */
static uint8_t *fifth(void *part, size_t d, size_t slot, size_t q) {
    return (uint8_t *)part + N * d / 2 + q * (N / 2) + slot / 2;
}

static unsigned get_fifth(const void *part, size_t d, size_t slot, size_t q) {
    return ((const uint8_t *)part)[N * d / 2 + q * (N / 2) + slot / 2] >> 4 * (slot % 2) & 15;
}

static void put_fifth(void *part, size_t d, size_t slot, size_t q, unsigned bits) {
    uint8_t *at = fifth(part, d, slot, q);
    *at = (uint8_t)((*at & (slot % 2 ? 0x0f : 0xf0)) | bits << 4 * (slot % 2));
}

static void q4_write_k(const pd_kernels *kern, void *part, size_t d, size_t slot, size_t n, const float *x, size_t stride) {
    uint8_t row[ROW_MAX];
    float step[ROW_MAX / GROUP];
    for (size_t i = 0; i < n; i++) {
        q4_quantise(x + i * stride, d, 31, row, step);
        for (size_t c = 0; c < d; c += 8)
            for (size_t j = 0; j < 4; j++)
                ((uint8_t *)part)[(c / 8 * N + slot + i) * 4 + j] = (uint8_t)((row[c + j] & 15) | row[c + 4 + j] << 4);
        for (size_t q = 0; q < d / 4; q++) {
            unsigned bits = 0;
            for (size_t j = 0; j < 4; j++) bits |= (unsigned)(row[4 * q + j] >> 4) << j;
            put_fifth(part, d, slot + i, q, bits);
        }
        put_steps(kern, part, N * d * 5 / 8, d, slot + i, step);
    }
}

static void q4_write_v(const pd_kernels *kern, void *part, size_t d, size_t slot, size_t n, const float *x, size_t stride) {
    uint8_t row[ROW_MAX];
    float step[ROW_MAX / GROUP];
    for (size_t i = 0; i < n; i++) {
        q4_quantise(x + i * stride, d, 15, row, step);
        uint8_t *at = (uint8_t *)part + (slot + i) * d / 2;
        for (size_t c = 0; c < d; c += GROUP)
            for (size_t j = 0; j < 16; j++) at[c / 2 + j] = (uint8_t)(row[c + j] | row[c + 16 + j] << 4);
        put_steps(kern, part, N * d / 2, d, slot + i, step);
    }
}

static void q4_read_k(const pd_kernels *kern, const void *part, size_t d, size_t slot, float *x) {
    float step[ROW_MAX / GROUP];
    get_steps(kern, part, N * d * 5 / 8, d, slot, step);
    for (size_t c = 0; c < d; c++) {
        const unsigned byte = ((const uint8_t *)part)[(c / 8 * N + slot) * 4 + c % 4];
        const unsigned four = byte >> (c % 8 < 4 ? 0 : 4) & 15, high = get_fifth(part, d, slot, c / 4) >> c % 4 & 1;
        x[c] = step[c / GROUP] * ((float)(four | high << 4) - 15.5f);
    }
    rotate(x, d);
}

static void q4_read_v(const pd_kernels *kern, const void *part, size_t d, size_t slot, float *x) {
    float step[ROW_MAX / GROUP];
    get_steps(kern, part, N * d / 2, d, slot, step);
    for (size_t c = 0; c < d; c++) {
        const unsigned byte = ((const uint8_t *)part)[slot * d / 2 + c / 32 * 16 + c % 16];
        x[c] = step[c / GROUP] * ((float)(byte >> (c % 32 < 16 ? 0 : 4) & 15) - 7.5f);
    }
    rotate(x, d);
}

static void q4_move_k(const void *src, size_t from, void *dst, size_t to, size_t d) {
    move_quads(src, from, dst, to, d / 8);
    for (size_t q = 0; q < d / 4; q++) put_fifth(dst, d, to, q, get_fifth(src, d, from, q));
    move_steps(src, from, dst, to, N * d * 5 / 8, d);
}

static void q4_move_v(const void *src, size_t from, void *dst, size_t to, size_t d) {
    memmove((uint8_t *)dst + to * d / 2, (const uint8_t *)src + from * d / 2, d / 2);
    move_steps(src, from, dst, to, N * d / 2, d);
}

/* ---- codes: x holds whole numbers ---- */

static size_t codes8_bytes(size_t d) {
    return N * d;
}

static void codes8_write(const pd_kernels *kern, void *part, size_t d, size_t slot, size_t n, const float *x, size_t stride) {
    (void)kern;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < d; j++) ((uint8_t *)part)[j * N + slot + i] = (uint8_t)x[i * stride + j];
}

static void codes8_read(const pd_kernels *kern, const void *part, size_t d, size_t slot, float *x) {
    (void)kern;
    for (size_t j = 0; j < d; j++) x[j] = ((const uint8_t *)part)[j * N + slot];
}

static void codes8_move(const void *src, size_t from, void *dst, size_t to, size_t d) {
    for (size_t j = 0; j < d; j++) ((uint8_t *)dst)[j * N + to] = ((const uint8_t *)src)[j * N + from];
}

static size_t codes4_bytes(size_t d) {
    return N * d / 2;
}

static void codes4_write(const pd_kernels *kern, void *part, size_t d, size_t slot, size_t n, const float *x, size_t stride) {
    (void)kern;
    const size_t half = d / 2;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < half; j++)
            ((uint8_t *)part)[j * N + slot + i] = (uint8_t)((unsigned)x[i * stride + j] | (unsigned)x[i * stride + half + j] << 4);
}

static void codes4_read(const pd_kernels *kern, const void *part, size_t d, size_t slot, float *x) {
    (void)kern;
    const size_t half = d / 2;
    for (size_t j = 0; j < half; j++) {
        x[j] = ((const uint8_t *)part)[j * N + slot] & 15;
        x[half + j] = ((const uint8_t *)part)[j * N + slot] >> 4;
    }
}

static void codes4_move(const void *src, size_t from, void *dst, size_t to, size_t d) {
    codes8_move(src, from, dst, to, d / 2);
}

/* ---- the types ---- */

static const struct {
    const char *name;
    pd_codec_part k, v;
} types[PD_KV_ALL] = {
    [PD_KV_F16] = {"f16", {f16_bytes, f16_write_k, f16_read_k, f16_move_k}, {f16_bytes, f16_write_v, f16_read_v, f16_move_v}},
    [PD_KV_F32] = {"f32", {f32_bytes, f32_write_k, f32_read_k, f32_move_k}, {f32_bytes, f32_write_v, f32_read_v, f32_move_v}},
    [PD_KV_Q8_0] = {"q8_0", {q8_bytes, q8_write_k, q8_read_k, q8_move_k}, {q8_bytes, q8_write_v, q8_read_v, q8_move_v}},
    [PD_KV_CODES8] = {"codes8", {codes8_bytes, codes8_write, codes8_read, codes8_move}, {0}},
    [PD_KV_CODES4] = {"codes4", {codes4_bytes, codes4_write, codes4_read, codes4_move}, {0}},
    [PD_KV_Q4] = {"q4", {q5_bytes, q4_write_k, q4_read_k, q4_move_k}, {q4_bytes, q4_write_v, q4_read_v, q4_move_v}},
};

pd_codec pd_codec_of(pd_kv_type key, pd_kv_type value) {
    return (pd_codec){.key = key, .value = value, .k = &types[key].k, .v = &types[value].v};
}

pd_codec pd_codec_by_row(const pd_codec *c) {
    pd_codec ret = *c;
    ret.k = &types[c->key].v;
    return ret;
}

bool pd_codec_recent(const pd_codec *c, pd_codec *ret) {
    *ret = pd_codec_of(c->key == PD_KV_Q4 ? PD_KV_Q8_0 : c->key, c->value == PD_KV_Q4 ? PD_KV_Q8_0 : c->value);
    return c->key == PD_KV_Q4 || c->value == PD_KV_Q4;
}

const char *pd_kv_type_name(pd_kv_type t) {
    return t == PD_KV_NATIVE ? "native" : types[t].name;
}

bool pd_kv_type_parse(const char *name, pd_kv_type *ret) {
    static const pd_kv_type asked[] = {PD_KV_F16, PD_KV_Q8_0, PD_KV_Q4};
    for (size_t i = 0; i < sizeof asked / sizeof asked[0]; i++) {
        if (strcmp(name, types[asked[i]].name) != 0) continue;
        *ret = asked[i];
        return true;
    }
    return false;
}

/* ---- pages ---- */

void pd_codec_write(const pd_codec *c, const pd_kernels *kern, void *page, size_t d, size_t slot, size_t n,
                    const float *k, const float *v, size_t stride, const float *centre) {
    float row[ROW_MAX];
    for (size_t i = 0; i < n && centre; i++) {
        for (size_t j = 0; j < d; j++) row[j] = k[i * stride + j] - centre[j];
        c->k->write(kern, page, d, slot + i, 1, row, d);
    }
    if (!centre) c->k->write(kern, page, d, slot, n, k, stride);
    c->v->write(kern, pd_codec_v(c, page, d), d, slot, n, v, stride);
}

void pd_codec_read(const pd_codec *c, const pd_kernels *kern, const void *page, size_t d, size_t slot, float *k, float *v,
                   const float *centre) {
    if (k) c->k->read(kern, page, d, slot, k);
    if (k && centre) kern->axpy_f32(1.0f, centre, k, d);
    if (v) c->v->read(kern, (const char *)page + c->k->bytes(d), d, slot, v);
}

void pd_codec_move(const pd_codec *c, const void *src, size_t from, void *dst, size_t to, size_t d) {
    c->k->move(src, from, dst, to, d);
    c->v->move((const char *)src + c->k->bytes(d), from, pd_codec_v(c, dst, d), to, d);
}

const float *pd_codec_keys(const pd_codec *c, const pd_kernels *kern, const void *page, size_t d, float *tmp,
                           const float *centre) {
    if (c->key == PD_KV_F32) return page;
    if (c->key == PD_KV_F16) {
        kern->f16_to_f32(page, tmp, d * N);
        return tmp;
    }
    float row[ROW_MAX];
    for (size_t s = 0; s < N; s++) {
        pd_codec_read(c, kern, page, d, s, row, NULL, centre);
        for (size_t j = 0; j < d; j++) tmp[j * N + s] = row[j];
    }
    return tmp;
}

void pd_kv_round(pd_kv_type t, const pd_kernels *kern, float *x, size_t n) {
    if (t != PD_KV_F16) return; /* f32 is exact */
    uint16_t row[ROW_MAX];
    for (size_t i = 0; i < n; i += ROW_MAX) {
        const size_t m = n - i < ROW_MAX ? n - i : ROW_MAX;
        kern->f32_to_f16(x + i, row, m);
        kern->f16_to_f32(row, x + i, m);
    }
}

/* ---- attention ---- */

void pd_codec_query(const pd_codec *c, const pd_kernels *kern, const float *q, float *scratch, pd_part_pass *p) {
    const size_t g = p->n_group, d = p->head_dim, n_grp = d / GROUP;
    p->q = q;
    if (pd_kv_type_group(c->key) == 1) return;
    float *row = scratch, *q_d = row + g * d, *q_sum = q_d + g * n_grp, *sums = q_sum + g * n_grp;
    int8_t *q_n = (int8_t *)(sums + g * (d / 16));
    memcpy(row, q, g * d * sizeof *row);
    for (size_t i = 0; i < g && c->key == PD_KV_Q4; i++) rotate(row + i * d, d);
    kern->quantize_act(row, g * d, q_n, q_d, sums);
    for (size_t b = 0; b < g * n_grp; b++) {
        int sum = 0;
        for (size_t i = 0; i < GROUP; i++) sum += q_n[b * GROUP + i];
        q_sum[b] = (float)sum;
    }
    p->q_n = q_n;
    p->q_d = q_d;
    p->q_sum = q_sum;
}

void pd_codec_score(const pd_codec *c, const pd_kernels *kern, const pd_part_pass *p) {
    switch (c->key) {
    case PD_KV_F16: kern->scores_f16(p); break;
    case PD_KV_Q8_0: kern->scores_q8(p); break;
    case PD_KV_Q4: kern->scores_q5(p); break;
    default: kern->scores_f32(p);
    }
}

/* Projected values may have any width, kernels take multiples of 16: the others go row by row. */
static void values_by_row(const pd_codec *c, const pd_kernels *kern, const pd_part_pass *p) {
    float row[ROW_MAX];
    memset(p->acc, 0, p->n_group * p->head_dim * sizeof *p->acc);
    for (size_t s = p->first; s < p->first + p->n; s++) {
        c->v->read(kern, (const char *)p->pages[s / N] + p->at, p->head_dim, s % N, row);
        const float *weight = p->tmp + s - p->first / N * N;
        for (size_t g = 0; g < p->n_group; g++) kern->axpy_f32(weight[g * p->tmp_stride], row, p->acc + g * p->head_dim, p->head_dim);
    }
}

static void values(const pd_codec *c, const pd_kernels *kern, const pd_part_pass *p) {
    if (p->head_dim % 16) {
        values_by_row(c, kern, p);
        return;
    }
    switch (c->value) {
    case PD_KV_F16: kern->values_f16(p); break;
    case PD_KV_Q8_0: kern->values_q8(p); break;
    case PD_KV_Q4: kern->values_q4(p); break;
    default: kern->values_f32(p);
    }
}

/* Slots outside the range hold anything: -INFINITY gives them weight 0.  Returns the
 * slots of the pages. */
static size_t finish_scores(const pd_kernels *kern, const pd_part_pass *p, float softcap) {
    const size_t head = p->first % N, end = head + p->n, n_slot = (end + N - 1) / N * N;
    for (size_t g = 0; g < p->n_group; g++) {
        float *x = p->tmp + g * p->tmp_stride;
        if (softcap > 0.0f) kern->softcap(x, n_slot, softcap);
        for (size_t i = 0; i < head; i++) x[i] = -INFINITY;
        for (size_t i = end; i < n_slot; i++) x[i] = -INFINITY;
    }
    return n_slot;
}

static void softmax(const pd_kernels *kern, const pd_part_pass *p, float softcap, float *m, float *l) {
    const size_t n_slot = finish_scores(kern, p, softcap);
    for (size_t g = 0; g < p->n_group; g++) {
        float *x = p->tmp + g * p->tmp_stride;
        m[g] = kern->max_f32(x, n_slot);
        l[g] = kern->exp_sum_f32(x, n_slot, m[g]);
    }
}

void pd_codec_attn(const pd_codec *c, const pd_kernels *kern, const float *q, size_t n_group, size_t k_dim,
                   size_t v_dim, const void *const *pages, size_t first, size_t n, size_t n_next, float softcap, float *tmp,
                   size_t tmp_stride, float *scratch, float *m, float *l, float *acc) {
    if (c->key == c->value && c->key == PD_KV_F16) {
        kern->attn_pages_f16(q, n_group, k_dim, v_dim, pages, first, n, n_next, softcap, tmp, tmp_stride, m, l, acc);
        return;
    }
    if (c->key == c->value && c->key == PD_KV_F32) {
        kern->attn_pages_f32(q, n_group, k_dim, v_dim, pages, first, n, n_next, softcap, tmp, tmp_stride, m, l, acc);
        return;
    }
    pd_part_pass p = {.pages = pages, .first = first, .n = n, .n_group = n_group, .head_dim = k_dim,
                      .tmp = tmp, .tmp_stride = tmp_stride, .acc = acc};
    pd_codec_query(c, kern, q, scratch, &p);
    pd_codec_score(c, kern, &p);
    pd_codec_attn_scored(c, kern, n_group, k_dim, v_dim, pages, first, n, softcap, tmp, tmp_stride, m, l, acc);
}

void pd_codec_attn_scored(const pd_codec *c, const pd_kernels *kern, size_t n_group, size_t k_dim, size_t v_dim,
                          const void *const *pages, size_t first, size_t n, float softcap, float *tmp,
                          size_t tmp_stride, float *m, float *l, float *acc) {
    const pd_part_pass p = {.pages = pages, .at = c->k->bytes(k_dim), .first = first, .n = n, .n_group = n_group,
                            .head_dim = v_dim, .tmp = tmp, .tmp_stride = tmp_stride, .acc = acc};
    softmax(kern, &p, softcap, m, l);
    values(c, kern, &p);
    for (size_t g = 0; g < n_group && c->value == PD_KV_Q4; g++) rotate(acc + g * v_dim, v_dim);
}

void pd_codec_scores(const pd_codec *c, const pd_kernels *kern, const float *q, size_t n_group, size_t d,
                     const void *const *pages, size_t first, size_t n, size_t n_next, float softcap, float *tmp,
                     size_t tmp_stride, float *scratch) {
    pd_part_pass p = {.pages = pages, .first = first, .n = n, .n_next = n_next, .n_group = n_group, .head_dim = d, .tmp = tmp, .tmp_stride = tmp_stride};
    pd_codec_query(c, kern, q, scratch, &p);
    pd_codec_score(c, kern, &p);
    finish_scores(kern, &p, softcap);
}

void pd_codec_scored(const pd_kernels *kern, size_t n_group, size_t first, size_t n, float softcap, float *tmp, size_t tmp_stride) {
    const pd_part_pass p = {.first = first, .n = n, .n_group = n_group, .tmp = tmp, .tmp_stride = tmp_stride};
    finish_scores(kern, &p, softcap);
}

void pd_codec_rows(const pd_codec *c, const pd_kernels *kern, size_t n_group, size_t k_dim, size_t d, const void *const *pages,
                   const uint32_t *row, size_t n_row, bool dense, float *weight, size_t stride, float *acc) {
    const pd_part_pass p = {.pages = pages, .at = c->k->bytes(k_dim), .n_group = n_group, .head_dim = d, .tmp = weight,
                            .tmp_stride = stride, .acc = acc, .row = row, .n_row = n_row, .dense = dense};
    switch (c->value) {
    case PD_KV_F16: kern->rows_f16(&p); break;
    case PD_KV_Q8_0: kern->rows_q8(&p); break;
    case PD_KV_Q4: kern->rows_q4(&p); break;
    default: kern->rows_f32(&p);
    }
    for (size_t g = 0; g < n_group && c->value == PD_KV_Q4; g++) rotate(acc + g * d, d);
}
