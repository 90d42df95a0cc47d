/* SPDX-License-Identifier: Apache-2.0 */
/* Joint latents (see joint.h): rotations row by row. */
#include "engine/cache/joint.h"

#include <cblas.h>
#include <string.h>

/* All heads of a row; sign -1 turns back. */
static void turn(const pd_joint *j, const pd_kernels *kern, float *x, size_t n_head, int32_t pos, float sign) {
    float c[PD_LATENT_HALF_MAX], s[PD_LATENT_HALF_MAX];
    pd_turns_of(j->turns, pos, c, s);
    for (size_t i = 0; sign < 0.0f && i < j->head_dim / 2; i++) s[i] = -s[i];
    kern->rope(x, n_head, j->head_dim, c, s);
}

void pd_joint_project(const pd_joint *j, const pd_kernels *kern, float *x, const int32_t *pos, size_t n, float *c) {
    const size_t row = pd_joint_row(j);
    for (size_t i = 0; i < n; i++) turn(j, kern, x + i * row, j->n_head, pos[i], -1.0f);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)j->rank, (int)row, 1.0f, x, (int)row, j->basis, (int)row,
                0.0f, c, (int)j->rank);
}

void pd_joint_rebuild(const pd_joint *j, const pd_kernels *kern, const float *c, const int32_t *pos, size_t n, float *x) {
    const size_t row = pd_joint_row(j);
    kern->matmul_f32(c, j->rank, n, j->rank, j->basis, row, row, x, row);
    for (size_t i = 0; i < n; i++) turn(j, kern, x + i * row, j->n_head, pos[i], 1.0f);
}

void pd_joint_rebuild_head(const pd_joint *j, const pd_kernels *kern, size_t head, const float *c, int32_t pos, float *k) {
    const size_t d = j->head_dim, row = pd_joint_row(j);
    memset(k, 0, d * sizeof *k);
    for (size_t i = 0; i < j->rank; i++) kern->axpy_f32(c[i], j->basis + i * row + head * d, k, d);
    turn(j, kern, k, 1, pos, 1.0f);
}

void pd_joint_query(const pd_joint *j, const pd_kernels *kern, float *q, int32_t pos, size_t lead, float *ret) {
    const size_t row = pd_joint_row(j);
    turn(j, kern, q, j->n_head, pos, -1.0f);
    for (size_t i = 0; i < lead; i++) ret[i] = kern->dot_f32(j->basis + i * row, q, row);
}
