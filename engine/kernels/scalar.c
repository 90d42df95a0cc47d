/* SPDX-License-Identifier: Apache-2.0 */
/* The definition of every kernel: plain loops, no tricks, any CPU.
 *
 * Every other row is compared with this file, so it is written to be read.
 * Where two rows must agree to the bit (f16 conversion, quantize_act) the
 * order of the roundings here is the contract. */
#include "engine/kernels/rows.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

/* ---- f16 ---- */

static float f16_decode(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t exp = h >> 10 & 0x1f, man = h & 0x3ffu;
    uint32_t bits;
    if (exp == 0x1f) { /* inf; NaN keeps its payload and becomes quiet, as the hardware does */
        bits = sign | 0x7f800000u | man << 13 | (man ? 0x400000u : 0);
    } else if (exp == 0) { /* zero or subnormal: man * 2^-24 is exact */
        const float v = (float)man * 0x1p-24f;
        memcpy(&bits, &v, sizeof bits);
        bits |= sign;
    } else {
        bits = sign | (exp + 112) << 23 | man << 13;
    }
    float ret;
    memcpy(&ret, &bits, sizeof ret);
    return ret;
}

/* v >> n, rounded to nearest even; 1 <= n <= 31. */
static uint32_t shift_rne(uint32_t v, unsigned n) {
    const uint32_t half = 1u << (n - 1);
    return (v + half - 1 + (v >> n & 1)) >> n;
}

static uint16_t f16_encode(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    const uint32_t mag = bits & 0x7fffffffu;
    if (mag > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (mag >> 13 & 0x3ffu));
    if (mag >= 0x47800000u) return sign | 0x7c00u; /* >= 2^16: infinite */
    if (mag >= 0x38800000u) /* normal; a carry out of the mantissa raises the exponent */
        return (uint16_t)(sign | (shift_rne(mag, 13) - (112u << 10)));
    if (mag < 0x33000000u) return sign; /* < 2^-25 */
    const unsigned exp = mag >> 23;     /* 102..112: subnormal, in units of 2^-24 */
    return (uint16_t)(sign | shift_rne((mag & 0x7fffffu) | 0x800000u, 126 - exp));
}

static void f32_to_f16(const float *x, uint16_t *y, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = f16_encode(x[i]);
}

static void f16_to_f32(const uint16_t *x, float *y, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = f16_decode(x[i]);
}

/* ---- vectors of f32 ---- */

static void matmul_f32(const float *a, size_t ld_a, size_t n, size_t k, const float *b, size_t ld_b, size_t m, float *y, size_t ld_y) {
    for (size_t i = 0; i < n; i++) {
        for (size_t c = 0; c < m; c++) y[i * ld_y + c] = 0.0f;
        for (size_t r = 0; r < k; r++)
            for (size_t c = 0; c < m; c++) y[i * ld_y + c] += a[i * ld_a + r] * b[r * ld_b + c];
    }
}

static void dots_f16(const float *q, size_t n_head, size_t n_group, size_t head_dim, const uint16_t *keys, const uint32_t *row, size_t n,
                     float *s, size_t ld_s) {
    for (size_t i = 0; i < n; i++)
        for (size_t g = 0; g < n_head * n_group; g++) {
            const uint16_t *key = keys + (row[i] * n_head + g / n_group) * head_dim;
            float sum = 0.0f;
            for (size_t c = 0; c < head_dim; c++) sum += q[g * head_dim + c] * f16_decode(key[c]);
            s[g * ld_s + i] = sum;
        }
}

static float dot_f32(const float *a, const float *b, size_t n) {
    float sum = 0.0f;
    for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static void axpy_f32(float a, const float *x, float *y, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += a * x[i];
}

static float max_f32(const float *x, size_t n) {
    float max = x[0];
    for (size_t i = 1; i < n; i++)
        if (x[i] > max) max = x[i];
    return max;
}

static float exp_sum_f32(float *x, size_t n, float max) {
    float sum = 0.0f;
    for (size_t i = 0; i < n; i++) {
        x[i] = expf(x[i] - max);
        sum += x[i];
    }
    return sum;
}

static void rmsnorm(const float *x, const float *w, float eps, size_t n, float *y) {
    const float scale = 1.0f / sqrtf(dot_f32(x, x, n) / (float)n + eps);
    for (size_t i = 0; i < n; i++) y[i] = w ? x[i] * scale * w[i] : x[i] * scale;
}

static void rope(float *x, size_t n_head, size_t head_dim, const float *cos, const float *sin) {
    const size_t half = head_dim / 2;
    for (size_t h = 0; h < n_head; h++, x += head_dim) {
        for (size_t i = 0; i < half; i++) {
            const float lo = x[i], hi = x[half + i];
            x[i] = lo * cos[i] - hi * sin[i];
            x[half + i] = hi * cos[i] + lo * sin[i];
        }
    }
}

static void silu_mul(const float *g, const float *u, size_t n, float *y) {
    for (size_t i = 0; i < n; i++) y[i] = g[i] / (1.0f + expf(-g[i])) * u[i];
}

static void gelu_mul(const float *g, const float *u, size_t n, float *y) {
    for (size_t i = 0; i < n; i++) {
        const float x = g[i];
        const float z = 0.79788456f * (x + 0.044715f * (x * x * x)); /* sqrt(2 / pi) */
        y[i] = 0.5f * x * (1.0f + tanhf(z)) * u[i];
    }
}

static void cap_f32(float *x, size_t n, float cap) {
    for (size_t i = 0; i < n; i++) x[i] = cap * tanhf(x[i] / cap);
}

/* ---- quantised matrices ---- */

static void quantize_act(const float *x, size_t n, int8_t *q, float *d, float *s) {
    for (size_t b = 0; b < n / 32; b++, x += 32, q += 32) {
        float max = 0.0f;
        for (size_t i = 0; i < 32; i++) max = fmaxf(max, fabsf(x[i]));
        float step = max / 127.0f;
        if (step < FLT_MIN) step = 0.0f; /* 127 / max could overflow; such a block is zero */
        const float inv = step > 0.0f ? 127.0f / max : 0.0f;
        int sum[2] = {0, 0};
        for (size_t i = 0; i < 32; i++) {
            q[i] = (int8_t)lrintf(x[i] * inv); /* |x * inv| < 127.5 */
            sum[i / 16] += q[i];
        }
        d[b] = step;
        s[2 * b] = step * (float)sum[0];
        s[2 * b + 1] = step * (float)sum[1];
    }
}

/* One block of one panel (panel.h): integer of row r, column c. */
static unsigned block_q(const pd_panels *w, const uint8_t *blk, size_t r, size_t c) {
    const size_t half = w->block / 8; /* groups of 4 columns in half a block */
    if (w->bits == 8) return blk[c / 4 * 64 + r * 4 + c % 4];
    const unsigned low = blk[c / 4 % half * 64 + r * 4 + c % 4] >> (c / 4 < half ? 0 : 4) & 15;
    if (w->bits == 4) return low;
    const unsigned n_high = w->bits - 4;
    return low | (blk[64 * half + r * 4 + c % 4] >> c / 4 * n_high & ((1u << n_high) - 1)) << 4;
}

/* d[16] and m[16] follow the integers. */
static float block_scale(const pd_panels *w, const uint8_t *blk, size_t i) {
    uint16_t h;
    memcpy(&h, blk + (size_t)PD_PANEL_ROWS * w->block * w->bits / 8 + i * sizeof h, sizeof h);
    return f16_decode(h);
}

static const uint8_t *row_block(const pd_panels *w, size_t row, size_t b) {
    return w->data + row / PD_PANEL_ROWS * pd_panels_stride(w) +
           b * pd_panel_block_bytes(w->bits, w->block);
}

static float row_dot(const pd_panels *w, size_t row, const pd_qact *a, size_t t) {
    const size_t r = row % PD_PANEL_ROWS, n_blk32 = w->n_col / 32;
    const int8_t *q = a->q + t * w->n_col;
    const float *d = a->d + t * n_blk32, *s = a->s + t * 2 * n_blk32;
    float y = 0.0f;
    for (size_t c0 = 0; c0 < w->n_col; c0 += w->block) {
        const uint8_t *blk = row_block(w, row, c0 / w->block);
        int sum = 0;
        for (size_t c = 0; c < w->block; c++) sum += (int)block_q(w, blk, r, c) * q[c0 + c];
        const float d_w = block_scale(w, blk, r), m_w = block_scale(w, blk, PD_PANEL_ROWS + r);
        const float s_a = w->block == 32 ? s[c0 / 16] + s[c0 / 16 + 1] : s[c0 / 16];
        y += d_w * d[c0 / 32] * (float)sum;
        y += m_w * s_a;
    }
    return y;
}

static void gemm_panel(const pd_panels *w, size_t p0, size_t p1, const pd_qact *a, size_t t0,
                       size_t t1, float *y, size_t ldy) {
    for (size_t row = p0 * PD_PANEL_ROWS; row < p1 * PD_PANEL_ROWS && row < w->n_row; row++)
        for (size_t t = t0; t < t1; t++) y[t * ldy + row] = row_dot(w, row, a, t);
}

static void panel_row(const pd_panels *w, size_t row, float *dst) {
    const size_t r = row % PD_PANEL_ROWS;
    for (size_t c0 = 0; c0 < w->n_col; c0 += w->block) {
        const uint8_t *blk = row_block(w, row, c0 / w->block);
        const float d = block_scale(w, blk, r), m = block_scale(w, blk, PD_PANEL_ROWS + r);
        for (size_t c = 0; c < w->block; c++) dst[c0 + c] = d * (float)block_q(w, blk, r, c) + m;
    }
}

/* ---- attention over KV pages ---- */

static float page_at(const void *page, size_t i, bool f16) {
    return f16 ? f16_decode(((const uint16_t *)page)[i]) : ((const float *)page)[i];
}

static void attn_pages(const float *q, size_t n_group, size_t k_dim, size_t head_dim, const void *const *pages,
                       size_t first, size_t n, float softcap, float *tmp, size_t tmp_stride,
                       float *m, float *l, float *acc, bool f16) {
    for (size_t g = 0; g < n_group; g++, q += k_dim, tmp += tmp_stride, acc += head_dim) {
        for (size_t i = 0; i < n; i++) {
            const void *page = pages[(first + i) / PD_PAGE_TOKENS];
            const size_t slot = (first + i) % PD_PAGE_TOKENS;
            tmp[i] = 0.0f;
            for (size_t c = 0; c < k_dim; c++)
                tmp[i] += q[c] * page_at(page, c * PD_PAGE_TOKENS + slot, f16);
        }
        if (softcap > 0.0f) cap_f32(tmp, n, softcap);
        m[g] = max_f32(tmp, n);
        l[g] = exp_sum_f32(tmp, n, m[g]);
        memset(acc, 0, head_dim * sizeof *acc);
        for (size_t i = 0; i < n; i++) {
            const void *page = pages[(first + i) / PD_PAGE_TOKENS];
            const size_t slot = (first + i) % PD_PAGE_TOKENS;
            for (size_t c = 0; c < head_dim; c++)
                acc[c] += tmp[i] * page_at(page, PD_PAGE_TOKENS * k_dim + slot * head_dim + c, f16);
        }
    }
}

static void attn_pages_f16(const float *q, size_t n_group, size_t k_dim, size_t head_dim,
                           const void *const *pages, size_t first, size_t n, size_t n_next,
                           float softcap, float *tmp, size_t tmp_stride, float *m, float *l, float *acc) {
    (void)n_next;
    attn_pages(q, n_group, k_dim, head_dim, pages, first, n, softcap, tmp, tmp_stride, m, l, acc, true);
}

static void attn_pages_f32(const float *q, size_t n_group, size_t k_dim, size_t head_dim,
                           const void *const *pages, size_t first, size_t n, size_t n_next,
                           float softcap, float *tmp, size_t tmp_stride, float *m, float *l, float *acc) {
    (void)n_next;
    attn_pages(q, n_group, k_dim, head_dim, pages, first, n, softcap, tmp, tmp_stride, m, l, acc, false);
}

/* ---- the same in two passes ---- */

static const void *part_of(const pd_part_pass *p, size_t slot) {
    return (const char *)p->pages[slot / PD_PAGE_TOKENS] + p->at;
}

/* n of channel c of a slot's key; in q5 from 0 to 31. */
static int key_n(const void *part, size_t dim, size_t slot, size_t c, bool q5) {
    if (!q5) return ((const int8_t *)part)[(c / 4 * PD_PAGE_TOKENS + slot) * 4 + c % 4];
    const uint8_t *low = part, *high = low + dim / 2 * PD_PAGE_TOKENS;
    const int four = low[(c / 8 * PD_PAGE_TOKENS + slot) * 4 + c % 4] >> (c % 8 < 4 ? 0 : 4) & 15;
    return four | (high[c / 4 * (PD_PAGE_TOKENS / 2) + slot / 2] >> (4 * (slot % 2) + c % 4) & 1) << 4;
}

static int value_n(const void *part, size_t dim, size_t slot, size_t c, bool q4) {
    if (!q4) return ((const int8_t *)part)[slot * dim + c];
    return ((const uint8_t *)part)[slot * dim / 2 + c / 32 * 16 + c % 16] >> (c % 32 < 16 ? 0 : 4) & 15;
}

static float step_of(const void *part, size_t dim, size_t slot, size_t group, size_t bits) {
    const uint16_t *d = (const uint16_t *)((const char *)part + PD_PAGE_TOKENS * dim * bits / 8);
    return f16_decode(d[group * PD_PAGE_TOKENS + slot]);
}

static void scores_few(const pd_part_pass *p, bool q5) {
    const size_t first = p->first / PD_PAGE_TOKENS * PD_PAGE_TOKENS, n_grp = p->head_dim / PD_KV_GROUP;
    for (size_t g = 0; g < p->n_group; g++) {
        for (size_t i = first; i < p->first + p->n; i++) {
            const void *part = part_of(p, i);
            float s = 0.0f;
            for (size_t b = 0; b < n_grp; b++) {
                int dot = 0;
                for (size_t c = b * PD_KV_GROUP; c < (b + 1) * PD_KV_GROUP; c++)
                    dot += p->q_n[g * p->head_dim + c] * key_n(part, p->head_dim, i % PD_PAGE_TOKENS, c, q5);
                /* below 2^24 and a multiple of 1/2: exact */
                const float x = (float)dot - (q5 ? 15.5f * p->q_sum[g * n_grp + b] : 0.0f);
                s += step_of(part, p->head_dim, i % PD_PAGE_TOKENS, b, q5 ? 5 : 8) * (p->q_d[g * n_grp + b] * x);
            }
            p->tmp[g * p->tmp_stride + i - first] = s;
        }
    }
}

static void values_few(const pd_part_pass *p, bool q4) {
    const size_t first = p->first / PD_PAGE_TOKENS * PD_PAGE_TOKENS;
    memset(p->acc, 0, p->n_group * p->head_dim * sizeof *p->acc);
    for (size_t g = 0; g < p->n_group; g++) {
        for (size_t i = p->first; i < p->first + p->n; i++) {
            const void *part = part_of(p, i);
            const float w = p->tmp[g * p->tmp_stride + i - first];
            for (size_t c = 0; c < p->head_dim; c++) {
                const float n = (float)value_n(part, p->head_dim, i % PD_PAGE_TOKENS, c, q4) - (q4 ? 7.5f : 0.0f);
                p->acc[g * p->head_dim + c] +=
                    w * step_of(part, p->head_dim, i % PD_PAGE_TOKENS, c / PD_KV_GROUP, q4 ? 4 : 8) * n;
            }
        }
    }
}

static void scores_plain(const pd_part_pass *p, bool f16) {
    const size_t first = p->first / PD_PAGE_TOKENS * PD_PAGE_TOKENS;
    for (size_t g = 0; g < p->n_group; g++) {
        for (size_t i = first; i < p->first + p->n; i++) {
            float s = 0.0f;
            for (size_t c = 0; c < p->head_dim; c++)
                s += p->q[g * p->head_dim + c] * page_at(part_of(p, i), c * PD_PAGE_TOKENS + i % PD_PAGE_TOKENS, f16);
            p->tmp[g * p->tmp_stride + i - first] = s;
        }
    }
}

static void values_plain(const pd_part_pass *p, bool f16) {
    const size_t first = p->first / PD_PAGE_TOKENS * PD_PAGE_TOKENS;
    memset(p->acc, 0, p->n_group * p->head_dim * sizeof *p->acc);
    for (size_t g = 0; g < p->n_group; g++)
        for (size_t i = p->first; i < p->first + p->n; i++)
            for (size_t c = 0; c < p->head_dim; c++)
                p->acc[g * p->head_dim + c] +=
                    p->tmp[g * p->tmp_stride + i - first] *
                    page_at(part_of(p, i), i % PD_PAGE_TOKENS * p->head_dim + c, f16);
}

static void scores_f16(const pd_part_pass *p) {
    scores_plain(p, true);
}

static void scores_f32(const pd_part_pass *p) {
    scores_plain(p, false);
}

static void scores_q8(const pd_part_pass *p) {
    scores_few(p, false);
}

static void scores_q5(const pd_part_pass *p) {
    scores_few(p, true);
}

static void values_f16(const pd_part_pass *p) {
    values_plain(p, true);
}

static void values_f32(const pd_part_pass *p) {
    values_plain(p, false);
}

static void values_q8(const pd_part_pass *p) {
    values_few(p, false);
}

static void values_q4(const pd_part_pass *p) {
    values_few(p, true);
}

/* ---- some rows ---- */

static float row_value(const pd_part_pass *p, size_t slot, size_t c, unsigned bits) {
    const void *part = part_of(p, slot);
    const size_t s = slot % PD_PAGE_TOKENS;
    if (bits >= 16) return page_at(part, s * p->head_dim + c, bits == 16);
    const bool q4 = bits == 4;
    return step_of(part, p->head_dim, s, c / PD_KV_GROUP, bits) *
           ((float)value_n(part, p->head_dim, s, c, q4) - (q4 ? 7.5f : 0.0f));
}

static void rows(const pd_part_pass *p, unsigned bits) {
    memset(p->acc, 0, p->n_group * p->head_dim * sizeof *p->acc);
    for (size_t g = 0; g < p->n_group; g++)
        for (size_t i = 0; i < p->n_row; i++)
            for (size_t c = 0; c < p->head_dim; c++)
                p->acc[g * p->head_dim + c] += p->tmp[g * p->tmp_stride + (p->dense ? i : p->row[i])] * row_value(p, p->row[i], c, bits);
}

static void rows_f16(const pd_part_pass *p) {
    rows(p, 16);
}

static void rows_f32(const pd_part_pass *p) {
    rows(p, 32);
}

static void rows_q8(const pd_part_pass *p) {
    rows(p, 8);
}

static void rows_q4(const pd_part_pass *p) {
    rows(p, 4);
}

static float sum_from_f32(const float *x, size_t n, float t) {
    float sum = 0.0f;
    for (size_t i = 0; i < n; i++) sum += x[i] >= t ? x[i] : 0.0f;
    return sum;
}

static size_t list_from_f32(const float *x, size_t stride, size_t n_group, size_t n, const float *t, uint32_t *row) {
    size_t n_row = 0;
    for (size_t i = 0; i < n; i++) {
        size_t g = 0;
        while (g < n_group && !(x[g * stride + i] >= t[g])) g++;
        if (g < n_group) row[n_row++] = (uint32_t)i;
    }
    return n_row;
}

static void quad_f32(const float *k, size_t n, size_t d, const float *mu, const float *u, float *z) {
    for (size_t i = 0; i < n; i++, k += d) {
        z[i] = 0.0f;
        for (size_t a = 0; a < d; a++) {
            float y = mu[a];
            for (size_t b = 0; b <= a; b++) y += u[b * d + a] * k[b];
            z[i] += k[a] * y;
        }
    }
}

static void centre_f32(const float *x, size_t ld, size_t n, size_t d, const float *shift, float *y, float *total) {
    for (size_t c = 0; c < d; c++) total[c] = 0.0f;
    for (size_t r = 0; r < n; r++)
        for (size_t c = 0; c < d; c++) {
            const float v = x[r * ld + c] - shift[c];
            if (y) y[r * d + c] = v;
            total[c] += v;
        }
}

static void gram_f32(const float *x, size_t n, size_t d, float *g) {
    for (size_t a = 0; a < d; a++) {
        for (size_t b = a; b < d; b++) {
            float s = 0.0f;
            for (size_t r = 0; r < n; r++) s += x[r * d + a] * x[r * d + b];
            g[a * d + b] += s;
        }
    }
}

static void page_bounds(const uint16_t *block, const float *q, size_t n_group, size_t head_dim, float *bound) {
    for (size_t p = 0; p < PD_PAGE_TOKENS; p++) {
        bound[p] = -INFINITY;
        for (size_t g = 0; g < n_group; g++) {
            float sum = 0.0f;
            for (size_t c = 0; c < head_dim; c++) {
                const float x = q[g * head_dim + c];
                sum += x * f16_decode(block[((x > 0.0f ? head_dim : 0) + c) * PD_PAGE_TOKENS + p]);
            }
            bound[p] = fmaxf(bound[p], sum);
        }
    }
}

/* ---- attention of a prompt's tile ---- */

static float row_score(const pd_attn_rows *t, size_t i, size_t g, size_t slot) {
    const float *q = t->q + i * t->ld + g * t->head_dim, *k = t->k + slot * t->head_dim;
    float s = 0.0f;
    for (size_t c = 0; c < t->head_dim; c++) s += q[c] * t->scale * k[c];
    if (t->softcap > 0.0f) cap_f32(&s, 1, t->softcap);
    return s;
}

static void row_sees(const pd_attn_rows *t, size_t i, size_t *lo, size_t *end) {
    *end = t->n_before + i + 1;
    *lo = t->window && *end > t->window ? *end - t->window : 0;
}

static void attn_tile(const pd_attn_rows *t) {
    for (size_t i = 0; i < t->n_tok; i++) {
        for (size_t g = 0; g < t->n_group; g++) {
            float *out = t->out + i * t->ld + g * t->head_dim, m = -INFINITY, l = 0.0f;
            memset(out, 0, t->head_dim * sizeof *out);
            size_t lo, end;
            row_sees(t, i, &lo, &end);
            for (size_t s = lo; s < end; s++) {
                const float x = row_score(t, i, g, s), max = fmaxf(m, x);
                const float old = expf(m - max), w = expf(x - max);
                m = max;
                l = l * old + w;
                for (size_t c = 0; c < t->head_dim; c++)
                    out[c] = out[c] * old + w * t->v[s * t->head_dim + c];
            }
            for (size_t c = 0; c < t->head_dim; c++) out[c] /= l;
            t->m[g * t->ld_ml + i] = m;
            t->l[g * t->ld_ml + i] = l;
        }
    }
}

static void attn_tile_sums(const pd_attn_rows *t, size_t s0, size_t s1, float *sums,
                           size_t stride) {
    for (size_t i = 0; i < t->n_tok; i++) {
        for (size_t g = 0; g < t->n_group; g++) {
            const float m = t->m[g * t->ld_ml + i], l = t->l[g * t->ld_ml + i];
            size_t lo, end;
            row_sees(t, i, &lo, &end);
            for (size_t s = lo > s0 ? lo : s0; s < end && s < s1; s++)
                sums[g * stride + s] += expf(row_score(t, i, g, s) - m) / l;
        }
    }
}

void pd__kernels_init_scalar(pd_kernels *k) {
    *k = (pd_kernels){
        .isa = "scalar",
        .dot_f32 = dot_f32,
        .axpy_f32 = axpy_f32,
        .matmul_f32 = matmul_f32,
        .dots_f16 = dots_f16,
        .max_f32 = max_f32,
        .exp_sum_f32 = exp_sum_f32,
        .rmsnorm = rmsnorm,
        .rope = rope,
        .silu_mul = silu_mul,
        .gelu_mul = gelu_mul,
        .softcap = cap_f32,
        .f32_to_f16 = f32_to_f16,
        .f16_to_f32 = f16_to_f32,
        .quantize_act = quantize_act,
        .gemm_panel = gemm_panel,
        .panel_row = panel_row,
        .attn_pages_f16 = attn_pages_f16,
        .attn_pages_f32 = attn_pages_f32,
        .scores_f16 = scores_f16,
        .scores_f32 = scores_f32,
        .scores_q8 = scores_q8,
        .scores_q5 = scores_q5,
        .values_f16 = values_f16,
        .values_f32 = values_f32,
        .values_q8 = values_q8,
        .values_q4 = values_q4,
        .rows_f16 = rows_f16,
        .rows_f32 = rows_f32,
        .rows_q8 = rows_q8,
        .rows_q4 = rows_q4,
        .sum_from_f32 = sum_from_f32,
        .list_from_f32 = list_from_f32,
        .page_bounds = page_bounds,
        .quad_f32 = quad_f32,
        .centre_f32 = centre_f32,
        .gram_f32 = gram_f32,
        .attn_tile_f32 = attn_tile,
        .attn_tile_fast = attn_tile,
        .attn_tile_sums_f32 = attn_tile_sums,
        .attn_tile_sums_fast = attn_tile_sums,
    };
    pd__kernels_init_codes_scalar(k);
}
