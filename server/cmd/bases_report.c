/* SPDX-License-Identifier: Apache-2.0 */
/* A table of bases (see bases_report.h).  Both halves, for energy alone misleads: by it per_head is
 * better than shared, by the model's output it is not (compression/README.md). */
#include "server/cmd/bases_report.h"

#include "compression/bases.h"

static const struct {
    const char *name;
    pd_data_id energy, error;
    size_t curve, n_curve; /* of `error` */
} rows[] = {
    {"keys before RoPE, shared", PD_DATA_EIGEN_SHARED_ENERGY, PD_DATA_EIGEN_ERROR, 0, PD_EIGEN_CURVES},
    {"keys before RoPE, per_head", PD_DATA_EIGEN_HEAD_ENERGY, PD_DATA_EIGEN_ERROR, 1, PD_EIGEN_CURVES},
    {"keys as queries see them, score", PD_DATA_EIGEN_SCORE_ENERGY, PD_DATA_EIGEN_ERROR, 2, PD_EIGEN_CURVES},
    {"keys after RoPE, rotated", PD_DATA_EIGEN_ROTATED_ENERGY, PD_DATA_EIGEN_ERROR, 3, PD_EIGEN_CURVES},
    {"values", PD_DATA_EIGEN_VALUE_ENERGY, PD_DATA_EIGEN_ERROR, 4, PD_EIGEN_CURVES},
    {"keys before RoPE, joint", PD_DATA_JOINT_ENERGY, PD_DATA_JOINT_ERROR, 0, 1},
};

/* The curve's mean over the layers that were measured, with `steps` of the directions. */
static double lost(const float *error, size_t n_layer, size_t n_curve, size_t curve, size_t steps) {
    double sum = 0.0;
    size_t measured = 0;
    for (size_t l = 0; l < n_layer; l++) {
        const float *at = error + (l * n_curve + curve) * (PD_EIGEN_STEPS - 1);
        if (at[0] <= 0.0f) continue;
        sum += (double)at[steps - 1];
        measured++;
    }
    return measured ? sum / (double)measured : 0.0;
}

void pd_bases_report(pd_buf *out, const pd_press_data *d, unsigned sets) {
    static const size_t quarter[] = {1, 2, 3};
    bool head = false;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const float *energy = pd_press_data_get(d, rows[i].energy), *error = pd_press_data_get(d, rows[i].error);
        if (!(sets >> pd_data_set_of(rows[i].energy) & 1) || !energy || !error) continue;
        size_t shape[PD_DATA_DIMS_MAX];
        const unsigned dims = pd_press_data_shape(d, rows[i].energy, shape);
        const size_t n = shape[dims - 1], n_basis = pd_press_data_elems(d, rows[i].energy) / n;
        if (!head)
            pd_buf_printf(out, "%-32s %-23s %s\n%-32s %5s %8s %8s %7s %8s %8s\n", "directions of", "energy kept by", "output lost with", "",
                          "1/4", "1/2", "3/4", "1/4", "1/2", "3/4");
        head = true;
        pd_buf_printf(out, "%-32s", rows[i].name);
        for (size_t q = 0; q < 3; q++) pd_buf_printf(out, q ? "    %.3f" : " %.3f", pd_energy_kept(energy, n_basis, n, quarter[q] * n / 4));
        for (size_t q = 0; q < 3; q++)
            pd_buf_printf(out, q ? "    %.3f" : "   %.3f", lost(error, shape[0], rows[i].n_curve, rows[i].curve, quarter[q] * PD_EIGEN_STEPS / 4));
        pd_buf_puts(out, "\n");
    }
}
