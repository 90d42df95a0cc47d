/* SPDX-License-Identifier: Apache-2.0 */
/* From a tensor in the file to a matrix in memory (see mat.h).
 *
 * Rows are read with pread into a small buffer per task and written straight
 * into their panel: the process never holds the file's copy and the packed one
 * together.  One task = one panel of 16 rows. */
#include "engine/model/mat.h"

#include "engine/base/num.h"

#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = PD_PANEL_ROWS, TYPE_BLOCK = 32 };

typedef struct {
    pd_mat *m;
    const pd_gguf *g;
    const pd_gguf_tensor *t;
    const pd_rows *rows;
    const pd_kernels *kern;
    _Atomic int failed; /* first failing task writes err */
    pd_err *err;
} pack_job;

/* Float types have no integers of their own: 8 bits per block of 32, symmetric,
 * d = max|x| / 127. */
static void split_f32(const float *x, size_t n, uint8_t *q, float *d, float *m) {
    for (size_t b = 0; b < n / TYPE_BLOCK; b++) {
        const float *xb = x + b * TYPE_BLOCK;
        float amax = 0.0f;
        for (size_t i = 0; i < TYPE_BLOCK; i++) amax = fmaxf(amax, fabsf(xb[i]));
        d[b] = amax / 127.0f;
        m[b] = -128.0f * d[b];
        const float inv = amax > 0.0f ? 127.0f / amax : 0.0f;
        for (size_t i = 0; i < TYPE_BLOCK; i++)
            q[b * TYPE_BLOCK + i] = (uint8_t)(lrintf(xb[i] * inv) + 128);
    }
}

static uint16_t to_f16(const pd_kernels *kern, float x) {
    uint16_t h;
    kern->f32_to_f16(&x, &h, 1);
    return h;
}

/* d and m become f16.  Where m is a whole multiple of d (the signed types, offset
 * by a power of two) it is taken from the rounded d: otherwise the two rounding
 * errors, each small, would add up to an eighth of a step on every weight. */
static void put_scales(const pd_kernels *kern, uint8_t *block_scales, size_t row, float d, float m) {
    uint16_t *hd = (uint16_t *)block_scales + row, *hm = hd + ROWS;
    *hd = to_f16(kern, d);
    const float off = d != 0.0f ? -m / d : 0.0f;
    if (off == rintf(off) && off != 0.0f) m = -off * pd_f16_to_f32(*hd);
    *hm = to_f16(kern, m);
}

static uint32_t four(const uint8_t *src) {
    uint32_t w;
    memcpy(&w, src, sizeof w);
    return w;
}

/* One row's q, d, m into its lane of the panel (layout: panel.h), four columns at a time. */
static void put_row(const pd_kernels *kern, const pd_panels *w, uint8_t *panel, size_t row,
                    const uint8_t *q, const float *d, const float *m) {
    const size_t bytes = pd_panel_block_bytes(w->bits, w->block), half = w->block / 8;
    const uint32_t nibbles = 0x0F0F0F0F;
    for (size_t b = 0; b < w->n_col / w->block; b++) {
        uint8_t *dst = panel + b * bytes + row * 4;
        const uint8_t *src = q + b * w->block;
        uint32_t high = 0;
        for (size_t g = 0; g < 2 * half; g++) {
            const uint32_t v = four(src + 4 * g);
            if (w->bits == 8) {
                memcpy(dst + g * 64, &v, sizeof v);
            } else if (g < half) {
                const uint32_t both = (v & nibbles) | (four(src + 4 * (g + half)) & nibbles) << 4;
                memcpy(dst + g * 64, &both, sizeof both);
            }
            if (w->bits == 5 || w->bits == 6) high |= (v >> 4 & nibbles) << g * (w->bits - 4);
        }
        if (w->bits == 5 || w->bits == 6) memcpy(dst + half * 64, &high, sizeof high);
        put_scales(kern, panel + (b + 1) * bytes - 2 * ROWS * sizeof(uint16_t), row, d[b], m[b]);
    }
}

static pd_status read_row(const pack_job *job, size_t r, void *raw, pd_err *err) {
    const uint64_t src = job->rows->map ? job->rows->map(r, job->rows->arg) : r;
    return pd_gguf_read_rows(job->g, job->t, job->rows->first + src, 1, raw, err);
}

static pd_status pack_panel(const pack_job *job, size_t index, uint8_t *raw, float *f, uint8_t *q,
                            float *d, float *m, pd_err *err) {
    const pd_panels *w = &job->m->panels;
    const pd_qtype *type = job->t->type;
    const size_t stride = pd_panels_stride(w);
    uint8_t *panel = w->data + index * stride;
    const size_t r0 = index * ROWS, n = pd_min_size(ROWS, w->n_row - r0);
    if (n < ROWS) memset(panel, 0, stride);
    const size_t row_bytes = (size_t)job->t->row_bytes;
    const bool one_by_one = job->rows->map != NULL;
    if (!one_by_one) PD_TRY(pd_gguf_read_rows(job->g, job->t, job->rows->first + r0, n, raw, err));
    for (size_t i = 0; i < n; i++) {
        const uint8_t *src = raw + (one_by_one ? 0 : i * row_bytes);
        if (one_by_one) PD_TRY(read_row(job, r0 + i, raw, err));
        if (type->split) {
            type->split(src, w->n_col, q, d, m);
        } else {
            type->dequant(src, f, w->n_col);
            split_f32(f, w->n_col, q, d, m);
        }
        put_row(job->kern, w, panel, i, q, d, m);
    }
    return PD_OK;
}

static pd_status load_f32_rows(const pack_job *job, size_t index, uint8_t *raw, pd_err *err) {
    const size_t r0 = index * ROWS, n = pd_min_size(ROWS, job->m->n_row - r0);
    for (size_t i = 0; i < n; i++) {
        PD_TRY(read_row(job, r0 + i, raw, err));
        job->t->type->dequant(raw, job->m->f32 + (r0 + i) * job->m->n_col, job->m->n_col);
    }
    return PD_OK;
}

static void pack_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    pack_job *job = ctx;
    if (atomic_load_explicit(&job->failed, memory_order_relaxed)) return;
    const size_t n_col = job->m->n_col;
    uint8_t *raw = malloc((size_t)job->t->row_bytes * ROWS);
    float *f = malloc(n_col * sizeof *f), *dm = malloc(n_col / 16 * 2 * sizeof *dm);
    uint8_t *q = malloc(n_col);
    pd_err e = {0};
    if (!raw || !f || !dm || !q)
        pd_fail(&e, PD_ENOMEM, NULL, "no memory while loading the model");
    else if (job->m->f32)
        load_f32_rows(job, task, raw, &e);
    else
        pack_panel(job, task, raw, f, q, dm, dm + n_col / 16, &e);
    free(raw);
    free(f);
    free(dm);
    free(q);
    if (e.code != PD_OK && atomic_exchange(&job->failed, 1) == 0 && job->err && job->err->code == PD_OK)
        *job->err = e;
}

pd_status pd_mat_load(pd_mat *ret, const pd_gguf *g, const pd_gguf_tensor *t, pd_mat_form form,
                      const pd_rows *rows, pd_slab *slab, pd_workers *workers, pd_err *err) {
    assert(rows->n > 0 && rows->n <= t->ne[1] && rows->first <= t->ne[1] - rows->n);
    if (t->n_dims != 2 || t->ne[0] == 0 || t->ne[1] == 0 || t->ne[0] % TYPE_BLOCK || t->ne[0] > 1u << 20 || t->ne[1] > 1u << 24)
        return pd_fail(err, PD_EFILE, NULL,
                       "tensor %.*s has shape [%llu, %llu] in %u dimensions; 2 are needed, columns a multiple of %d",
                       (int)t->name.len, t->name.data, (unsigned long long)t->ne[0],
                       (unsigned long long)t->ne[1], t->n_dims, TYPE_BLOCK);
    pd_mat m = {.n_row = rows->n, .n_col = (size_t)t->ne[0]};
    /* Packing is part of loading, not of serving: scalar conversions are enough. */
    pd_kernels kern;
    pd_kernels_init(&kern, 0);
    if (form == PD_FORM_F32) {
        m.bytes = m.n_row * m.n_col * sizeof(float);
        m.f32 = malloc(m.bytes);
    } else {
        m.panels = (pd_panels){.n_row = m.n_row, .n_col = m.n_col,
                               .bits = t->type->split ? t->type->pack_bits : 8,
                               .block = t->type->split ? t->type->pack_block : TYPE_BLOCK};
        m.bytes = pd_panels_count(&m.panels) * pd_panels_stride(&m.panels);
        m.panels.data = pd_slab_take(slab, m.bytes);
    }
    if (!m.f32 && !m.panels.data)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for tensor %.*s (%zu bytes)", (int)t->name.len, t->name.data, m.bytes);
    pd_err first = {0};
    pack_job job = {.m = &m, .g = g, .t = t, .rows = rows, .kern = &kern, .err = &first};
    pd_workers_run(workers, pack_task, &job, pd_div_up(m.n_row, ROWS));
    if (atomic_load(&job.failed)) {
        pd_mat_done(&m);
        return pd_fail(err, first.code, first.param, "%s", first.msg);
    }
    *ret = m;
    return PD_OK;
}
