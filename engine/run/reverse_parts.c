/* SPDX-License-Identifier: Apache-2.0 */
/* Norms, gates and products backwards (see reverse_int.h).
 *
 * With inv = 1 / sqrt(mean(x^2) + eps):  dx_i = inv w_i dy_i - x_i inv^3 / n sum_j w_j dy_j x_j.
 * A product of a matrix in few bits goes block by block: rows as f32, then BLAS, columns
 * side by side on all threads. */
#include "engine/run/reverse_int.h"

#include "engine/base/num.h"

#include <cblas.h>
#include <math.h>

void pd__rmsnorm_back(const float *x, const float *w, float eps, size_t n, const float *dy, bool add, float *dx) {
    double square = 0.0, along = 0.0;
    for (size_t i = 0; i < n; i++) {
        square += (double)x[i] * x[i];
        along += (double)w[i] * dy[i] * x[i];
    }
    const double inv = 1.0 / sqrt(square / (double)n + eps);
    const float a = (float)inv, b = (float)(along * inv * inv * inv / (double)n);
    for (size_t i = 0; i < n; i++) {
        const float d = a * w[i] * dy[i] - b * x[i];
        dx[i] = add ? dx[i] + d : d;
    }
}

void pd__glu_back(pd_act act, size_t n, const float *dy, float *g, float *u) {
    const float c = 0.7978845608f, cube = 0.044715f; /* sqrt(2 / pi); GELU's tanh form */
    for (size_t i = 0; i < n; i++) {
        const float x = g[i];
        float y, slope;
        if (act == PD_ACT_SILU) {
            const float s = 1.0f / (1.0f + expf(-x));
            y = x * s;
            slope = s * (1.0f + x * (1.0f - s));
        } else {
            const float t = tanhf(c * (x + cube * x * x * x));
            y = 0.5f * x * (1.0f + t);
            slope = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * c * (1.0f + 3.0f * cube * x * x);
        }
        g[i] = dy[i] * u[i] * slope;
        u[i] = dy[i] * y;
    }
}

typedef struct {
    pd_reverse *r;
    const pd_mat *w;
    size_t first, rows; /* of the matrix */
    const float *block; /* those rows as f32 */
    const float *dy;
    size_t n;
    bool add;
    float *dx;
} back_job;

enum { ROWS_PER_TASK = 8 };

static void dequant_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const back_job *j = ctx;
    const size_t end = pd_min_size(j->rows, (task + 1) * ROWS_PER_TASK);
    for (size_t i = task * ROWS_PER_TASK; i < end; i++)
        pd_mat_row(j->w, j->r->fwd->kern, j->first + i, j->r->weight + i * j->w->n_col);
}

static void columns_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const back_job *j = ctx;
    const size_t c0 = task * PD__REVERSE_COLUMNS, n = pd_min_size(PD__REVERSE_COLUMNS, j->w->n_col - c0);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)j->n, (int)n, (int)j->rows, 1.0f, j->dy + j->first,
                (int)j->w->n_row, j->block + c0, (int)j->w->n_col, j->add ? 1.0f : 0.0f, j->dx + c0, (int)j->w->n_col);
}

void pd__product_back(pd_reverse *r, const pd_mat *w, const float *dy, size_t n, bool add, float *dx) {
    pd_workers *workers = r->fwd->workers;
    const size_t step = w->f32 ? w->n_row : PD__REVERSE_DEQUANT;
    for (size_t at = 0; at < w->n_row; at += step) {
        back_job job = {.r = r, .w = w, .first = at, .rows = pd_min_size(step, w->n_row - at),
                        .block = w->f32 ? w->f32 : r->weight, .dy = dy, .n = n, .add = add || at > 0, .dx = dx};
        if (!w->f32) pd_workers_run(workers, dequant_task, &job, pd_div_up(job.rows, ROWS_PER_TASK));
        pd_workers_run(workers, columns_task, &job, pd_div_up(w->n_col, PD__REVERSE_COLUMNS));
    }
}
