/* SPDX-License-Identifier: Apache-2.0 */
/* Low-rank additions (see adapter.h). */
#include "engine/run/adapter.h"

#include "engine/base/num.h"

#include <assert.h>
#include <cblas.h>

enum { ROWS = 8 };

static const pd_mat *matrix(const pd_layer *ly, pd_proj proj) {
    const pd_mat *const all[PD_PROJ_N] = {[PD_PROJ_Q] = &ly->q, [PD_PROJ_K] = &ly->k, [PD_PROJ_V] = &ly->v, [PD_PROJ_O] = &ly->o,
                                          [PD_PROJ_GATE] = &ly->gate, [PD_PROJ_UP] = &ly->up, [PD_PROJ_DOWN] = &ly->down};
    return all[proj];
}

void pd_adapter_add(const pd_fwd *f, size_t layer, pd_proj proj, const float *x, size_t n, float *y) {
    const pd_adapter *ad = f->adapter;
    if (!ad || !ad->a[proj]) return;
    const pd_mat *m = matrix(&f->model->layer[layer], proj);
    const size_t n_in = m->n_col, n_out = m->n_row, rank = ad->rank;
    const float *a = ad->a[proj] + layer * rank * n_in, *b = ad->b[proj] + layer * n_out * rank;
    float low[ROWS * PD_ADAPTER_RANK_MAX];
    assert(rank <= PD_ADAPTER_RANK_MAX);
    for (size_t i = 0; i < n; i += ROWS) {
        const int rows = (int)pd_min_size(ROWS, n - i);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, (int)rank, (int)n_in, 1.0f, x + i * n_in, (int)n_in, a, (int)n_in,
                    0.0f, low, (int)rank);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, (int)n_out, (int)rank, 1.0f, low, (int)rank, b, (int)rank, 1.0f,
                    y + i * n_out, (int)n_out);
    }
}
