/* SPDX-License-Identifier: Apache-2.0 */
/* Matrix products (see mat.h): one task = some panels, all tokens.  The panels of all
 * matrices are one row, cut in tasks of one size: a thread's share is then one or two
 * long runs of memory, and as long as the others'. */
#include "engine/model/mat.h"

#include "engine/base/num.h"

#include <assert.h>
#include <cblas.h>
#include <stdlib.h>

/* Tasks a thread: of few tokens more, as long as they even out a slow core; of many fewer,
 * since each copies the tokens (vnni.c).  Bytes that are prefetched while waiting. */
enum { MUL_MAX = 4, F32_ROWS = 64, FEW = 8, TASKS_FEW = 4, TASKS_MANY = 2, AHEAD = 128 << 10, AHEAD_STEP = 1 << 10, LINE = 64 };

void pd_mat_done(pd_mat *m) {
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
    size_t n_mul, n_task;
    size_t first[MUL_MAX + 1]; /* unit where each matrix begins; [n_mul]: all of them */
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
    const size_t total = job->first[job->n_mul], begin = total * task / job->n_task, end = total * (task + 1) / job->n_task;
    for (size_t i = 0; i < job->n_mul; i++) {
        const pd_mul *mul = &job->mul[i];
        const size_t first = job->first[i], u0 = pd_max_size(begin, first), u1 = pd_min_size(end, job->first[i + 1]);
        if (u0 >= u1) continue;
        if (mul->w->f32)
            mul_f32(job, mul, u0 - first, u1 - first);
        else
            job->kern->gemm_panel(&mul->w->panels, u0 - first, u1 - first, &job->lhs->act, 0, job->lhs->n_tok, mul->y, mul->ldy);
    }
}

void pd_mat_mul(pd_workers *workers, const pd_kernels *kern, const pd_lhs *lhs, const pd_mul *mul,
                size_t n_mul, unsigned flags) {
    assert(n_mul <= MUL_MAX);
    mul_job job = {.kern = kern, .lhs = lhs, .mul = mul, .flags = flags, .n_mul = n_mul};
    for (size_t i = 0; i < n_mul; i++) job.first[i + 1] = job.first[i] + units(mul[i].w);
    const size_t want = (lhs->n_tok < FEW ? TASKS_FEW : TASKS_MANY) * (size_t)pd_workers_count(workers);
    job.n_task = pd_min_size(want, job.first[n_mul]);
    pd_workers_run(workers, mul_task, &job, job.n_task);
}

bool pd_mat_ahead(const pd_mat *const *w, size_t n_mat, unsigned thread, unsigned n_threads, size_t step) {
    size_t unit = 0, i = 0;
    for (size_t m = 0; m < n_mat; m++) unit += units(w[m]);
    unit = pd_workers_share(unit, thread, n_threads); /* as the tasks begin */
    while (unit >= units(w[i])) unit -= units(w[i++]);
    const pd_panels *p = &w[i]->panels;
    if (w[i]->f32) return false;
    const size_t begin = unit * pd_panels_stride(p), at = begin + step * AHEAD_STEP;
    const size_t end = pd_min_size(begin + AHEAD, units(w[i]) * pd_panels_stride(p));
    for (size_t b = at; b < pd_min_size(at + AHEAD_STEP, end); b += LINE) __builtin_prefetch(p->data + b);
    return at + AHEAD_STEP < end;
}
