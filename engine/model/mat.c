/* SPDX-License-Identifier: Apache-2.0 */
/* Matrix products (see mat.h): one task = some panels of one matrix, all tokens. */
#include "engine/model/mat.h"

#include "engine/base/num.h"

#include <assert.h>
#include <cblas.h>
#include <stdlib.h>

enum { MUL_MAX = 4, F32_ROWS = 64 };

void pd_mat_done(pd_mat *m) {
    free(m->panels.data);
    free(m->f32);
    *m = (pd_mat){0};
}

void pd_mat_row(const pd_mat *m, const pd_kernels *kern, size_t r, float *dst) {
    if (m->f32) {
        for (size_t i = 0; i < m->n_col; i++) dst[i] = m->f32[r * m->n_col + i];
    } else {
        kern->panel_row(&m->panels, r, dst);
    }
}

typedef struct {
    const pd_kernels *kern;
    const pd_lhs *lhs;
    const pd_mul *mul;
    unsigned flags;
    size_t n_mul, step;      /* panels (packed) or row blocks (f32) a task takes */
    size_t first[MUL_MAX + 1]; /* task index where each matrix begins */
} mul_job;

static void mul_f32(const mul_job *job, const pd_mul *mul, size_t b0, size_t b1) {
    const pd_lhs *x = job->lhs;
    const pd_mat *w = mul->w;
    /* One BLAS call per fixed block of rows: its shape must not depend on how
     * tasks are cut. */
    for (size_t b = b0; b < b1; b++) {
        const size_t r0 = b * F32_ROWS, n = pd_min_size(F32_ROWS, w->n_row - r0);
        const float *rows = w->f32 + r0 * w->n_col;
        if (job->flags & PD_MAT_PER_TOKEN || x->n_tok == 1) {
            for (size_t t = 0; t < x->n_tok; t++)
                cblas_sgemv(CblasRowMajor, CblasNoTrans, (int)n, (int)w->n_col, 1.0f, rows,
                            (int)w->n_col, x->x + t * x->n_col, 1, 0.0f, mul->y + t * mul->ldy + r0, 1);
        } else {
            cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)x->n_tok, (int)n, (int)w->n_col,
                        1.0f, x->x, (int)x->n_col, rows, (int)w->n_col, 0.0f, mul->y + r0, (int)mul->ldy);
        }
    }
}

static size_t units(const pd_mat *w) {
    return w->f32 ? pd_div_up(w->n_row, F32_ROWS) : pd_panels_count(&w->panels);
}

static void mul_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const mul_job *job = ctx;
    size_t i = 0;
    while (task >= job->first[i + 1]) i++;
    const pd_mul *mul = &job->mul[i];
    const size_t u0 = (task - job->first[i]) * job->step;
    const size_t u1 = pd_min_size(u0 + job->step, units(mul->w));
    if (mul->w->f32)
        mul_f32(job, mul, u0, u1);
    else
        job->kern->gemm_panel(&mul->w->panels, u0, u1, &job->lhs->act, 0, job->lhs->n_tok, mul->y, mul->ldy);
}

void pd_mat_mul(pd_workers *workers, const pd_kernels *kern, const pd_lhs *lhs, const pd_mul *mul,
                size_t n_mul, unsigned flags) {
    assert(n_mul <= MUL_MAX);
    size_t total = 0;
    for (size_t i = 0; i < n_mul; i++) total += units(mul[i].w);
    /* Two tasks a thread even out a slow core, and each is a long run of memory. */
    const size_t want = 2 * (size_t)pd_workers_count(workers);
    mul_job job = {.kern = kern, .lhs = lhs, .mul = mul, .flags = flags, .n_mul = n_mul,
                   .step = pd_max_size(1, pd_div_up(total, want))};
    for (size_t i = 0; i < n_mul; i++)
        job.first[i + 1] = job.first[i] + pd_div_up(units(mul[i].w), job.step);
    pd_workers_run(workers, mul_task, &job, job.first[n_mul]);
}
