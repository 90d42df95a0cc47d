/* SPDX-License-Identifier: Apache-2.0 */
/* Product codes: the definition of their kernels (kernels.h).
 *
 * Cost of a score: one look-up for each code and query head; a row of the table without
 * a faster way leaves it at that. */
#include "engine/kernels/rows.h"

#include <float.h>
#include <math.h>

enum { N = PD_PAGE_TOKENS };

static size_t nearest_f32(const float *x, const float *book, size_t sub, size_t n) {
    float least = INFINITY;
    size_t at = 0;
    for (size_t c = 0; c < n; c++) {
        float sum = 0.0f;
        for (size_t k = 0; k < sub; k++) sum += (x[k] - book[k * n + c]) * (x[k] - book[k * n + c]);
        if (sum < least) {
            least = sum;
            at = c;
        }
    }
    return at;
}

static float product(const float *q, const float *book, size_t sub, size_t n, size_t c) {
    float sum = 0.0f;
    for (size_t k = 0; k < sub; k++) sum += q[k] * book[k * n + c];
    return sum;
}

static void code_table(const float *q, const float *book, size_t sub, size_t n_code, size_t n, uint8_t *table,
                       float *least, float *step) {
    float widest = 0.0f;
    *least = 0.0f;
    for (int pass = 0; pass < 2; pass++) {
        const float by = widest / 255.0f < FLT_MIN ? 0.0f : 255.0f / widest;
        for (size_t i = 0; i < n_code; i++) {
            const float *b = book + i * sub * n;
            float lo = INFINITY, hi = -INFINITY;
            for (size_t c = 0; c < n; c++) {
                const float x = product(q + i * sub, b, sub, n, c);
                lo = fminf(lo, x);
                hi = fmaxf(hi, x);
            }
            for (size_t c = 0; c < n && pass; c++)
                table[i * n + c] = (uint8_t)lrintf((product(q + i * sub, b, sub, n, c) - lo) * by);
            if (pass) *least += lo;
            widest = fmaxf(widest, hi - lo);
        }
    }
    *step = widest / 255.0f < FLT_MIN ? 0.0f : widest / 255.0f;
}

static unsigned code_of(const uint8_t *codes, size_t n_code, size_t i, size_t s, size_t n) {
    if (n == 256) return codes[i * N + s];
    const size_t half = n_code / 2;
    return codes[i % half * N + s] >> (i < half ? 0 : 4) & 15;
}

static void scores(const pd_code_pass *p, size_t n) {
    for (size_t g = 0; g < p->n_group; g++) {
        const uint8_t *table = p->table + g * p->n_code * n;
        for (size_t s = 0; s < p->n_page * N; s++) {
            const uint8_t *codes = p->pages[s / N];
            unsigned sum = 0;
            for (size_t i = 0; i < p->n_code; i++) sum += table[i * n + code_of(codes, p->n_code, i, s % N, n)];
            p->tmp[g * p->tmp_stride + s] = p->least[g] + p->step[g] * (float)sum;
        }
    }
}

static void scores_codes8(const pd_code_pass *p) {
    scores(p, 256);
}

static void scores_codes4(const pd_code_pass *p) {
    scores(p, 16);
}

void pd__kernels_init_codes_scalar(pd_kernels *k) {
    k->nearest_f32 = nearest_f32;
    k->code_table = code_table;
    k->scores_codes8 = scores_codes8;
    k->scores_codes4 = scores_codes4;
}
