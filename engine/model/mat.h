/* SPDX-License-Identifier: Apache-2.0 */
/* A weight matrix as the engine multiplies with it, and the multiplication.
 *
 * Two forms: packed panels (int8 path, panel.h) or dense f32 (--compute f32).
 * y[n_tok][n_row] = x[n_tok][n_col] * W^T,  W [n_row][n_col].
 *
 * Each y depends on its token and row alone in the int8 form.  The f32 form
 * goes through OpenBLAS, whose sums may depend on the number of tokens in a
 * call; PD_MAT_PER_TOKEN therefore calls it once per token, so that a decode
 * step gives the same bits in any batch. */
#ifndef PD_ENGINE_MODEL_MAT_H
#define PD_ENGINE_MODEL_MAT_H

#include "engine/base/workers.h"
#include "engine/gguf/gguf.h"
#include "engine/kernels/kernels.h"
#include "engine/model/slab.h"

#include <stdbool.h>

typedef struct pd_mat {
    size_t n_row, n_col;
    pd_panels panels; /* data NULL in the f32 form; the slab's */
    float *f32;       /* [n_row][n_col], NULL in the packed form */
    size_t bytes;     /* memory it holds */
} pd_mat;

/* Rows [first, first + n) of a tensor, in another order where there is a map: row
 * r of the matrix is row first + map(r, arg). */
typedef struct pd_rows {
    uint64_t first;
    size_t n;
    uint64_t (*map)(size_t r, const void *arg);
    const void *arg;
} pd_rows;

typedef enum { PD_FORM_PACKED, PD_FORM_F32 } pd_mat_form;

/* Read rows of tensor `t` (2 dims, ne[0] = n_col) into a new matrix, whose panels are in the
 * slab and live as long.  Errors: EFILE (shape, I/O), ENOMEM.  Workers may be NULL. */
pd_status pd_mat_load(pd_mat *ret, const pd_gguf *g, const pd_gguf_tensor *t, pd_mat_form form,
                      const pd_rows *rows, pd_slab *slab, pd_workers *workers, pd_err *err);
void pd_mat_done(pd_mat *m);

/* Row r as f32: dst[n_col]. */
void pd_mat_row(const pd_mat *m, const pd_kernels *kern, size_t r, float *dst);

/* The left-hand side: f32 rows and, for packed matrices, their quantised form
 * (made once, shared by all matrices with the same input). */
typedef struct pd_lhs {
    const float *x; /* [n_tok][n_col], dense */
    pd_qact act;
    size_t n_tok, n_col;
} pd_lhs;

typedef struct pd_mul {
    const pd_mat *w;
    float *y;
    size_t ldy; /* floats between two tokens' outputs, >= n_row */
} pd_mul;

enum { PD_MAT_PER_TOKEN = 1u << 0 };

/* Up to 4 products of one left-hand side in one parallel run. */
void pd_mat_mul(pd_workers *workers, const pd_kernels *kern, const pd_lhs *lhs, const pd_mul *mul,
                size_t n_mul, unsigned flags);

/* Prefetch piece `step` of what the thread will read first when these matrices are multiplied,
 * in this order; false: that was the last one worth it.  See pd_workers_ahead.  Thread: any. */
bool pd_mat_ahead(const pd_mat *const *w, size_t n_mat, unsigned thread, unsigned n_threads, size_t step);

#endif
