/* SPDX-License-Identifier: Apache-2.0 */
/* Random press data of every set, drawn as tests/golden/press_data.py draws it. */
#ifndef PD_TESTS_PRESS_DATA_CASE_H
#define PD_TESTS_PRESS_DATA_CASE_H

#include "compression/press_data.h"
#include "engine/base/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PD_CASE_ADDED = 8, PD_CASE_RANK = 3, PD_CASE_HIDDEN = 24, PD_CASE_SINK = 5, PD_CASE_RECENT = 20 };

static inline pd_press_data *pd_case_data_of(uint64_t seed, const pd_press_model *model, uint64_t key) {
    static const float scale[PD_DATA_N] = {
        [PD_DATA_QUERY_MEAN] = 1.0f, [PD_DATA_QUERY_COV] = 0.05f, [PD_DATA_QFILTERS] = 1.0f,
        [PD_DATA_DUO_PATTERN] = 0.5f, [PD_DATA_DUO_CALIBRATED] = 0.5f,
        [PD_DATA_KVZAP_WEIGHT] = 0.1f, [PD_DATA_KVZAP_BIAS] = 1.0f, [PD_DATA_KVZAP_W1] = 0.2f,
        [PD_DATA_KVZAP_B1] = 1.0f, [PD_DATA_KVZAP_W2] = 0.3f, [PD_DATA_KVZAP_B2] = 1.0f,
        [PD_DATA_LUKV_CURVES] = 0.3f,
        [PD_DATA_GATE_Q] = 0.2f, [PD_DATA_GATE_Q_BIAS] = 0.5f, [PD_DATA_GATE_K] = 0.2f, [PD_DATA_GATE_Q_NORM] = 1.0f,
        [PD_DATA_GATE_K_NORM] = 1.0f, [PD_DATA_GATE_BASE] = 2.0f, [PD_DATA_GATE_B] = 3.0f,
        [PD_DATA_EIGEN_SHARED] = 0.3f, [PD_DATA_EIGEN_SHARED_ENERGY] = 1.0f, [PD_DATA_EIGEN_HEAD] = 0.3f,
        [PD_DATA_EIGEN_HEAD_ENERGY] = 1.0f, [PD_DATA_EIGEN_SCORE] = 0.3f, [PD_DATA_EIGEN_REBUILD] = 0.3f,
        [PD_DATA_EIGEN_SCORE_ENERGY] = 1.0f, [PD_DATA_EIGEN_ROTATED] = 0.3f, [PD_DATA_EIGEN_ROTATED_ENERGY] = 1.0f,
        [PD_DATA_EIGEN_VALUE] = 0.3f, [PD_DATA_EIGEN_VALUE_ENERGY] = 1.0f, [PD_DATA_JOINT] = 0.2f,
        [PD_DATA_JOINT_ENERGY] = 1.0f, [PD_DATA_EIGEN_ERROR] = 0.1f, [PD_DATA_JOINT_ERROR] = 0.1f,
        [PD_DATA_BOOK_WEIGHT] = 0.5f, [PD_DATA_BOOK] = 1.0f, [PD_DATA_BOOK + 1] = 1.0f, [PD_DATA_BOOK + 2] = 1.0f, [PD_DATA_BOOK + 3] = 1.0f,
        [PD_DATA_BOOK + 4] = 1.0f, [PD_DATA_BOOK_LAST] = 1.0f,
        [PD_DATA_JOINT_OVERLAP] = 1.0f,
    };
    pd_press_data *d = NULL;
    if (pd_press_data_new(&d, model, key, NULL) != PD_OK) abort();
    pd_press_data_set_hidden(d, PD_CASE_HIDDEN);
    pd_press_data_set_added(d, PD_SET_RESTORE, PD_CASE_ADDED, PD_CASE_RANK);
    pd_press_data_set_added(d, PD_SET_RESTORE_PLUS, PD_CASE_ADDED / 2, PD_CASE_RANK + 1);
    pd_press_data_set_duo(d, PD_SET_DUO_PATTERN, PD_CASE_SINK, PD_CASE_RECENT);
    pd_press_data_set_duo(d, PD_SET_DUO_CALIBRATED, 1, 7);
    const size_t heads = model->n_layer * model->n_head_kv;
    for (int id = 0; id < PD_DATA_N; id++) {
        pd_rng rng = {seed + 600000 + 1000 * (uint64_t)id};
        const size_t n = pd_press_data_elems(d, (pd_data_id)id);
        float *t = pd_press_data_put(d, (pd_data_id)id);
        if (!t) abort();
        for (size_t i = 0; i < n; i++) {
            t[i] = (id >= PD_DATA_RESTORE ? 0.3f : scale[id]) * pd_rng_f32(&rng);
            if (id == PD_DATA_BOOK_WEIGHT) t[i] += 1.0f;
            if (id == PD_DATA_DUO_PATTERN || id == PD_DATA_DUO_CALIBRATED) t[i] += 0.5f;
            if (id >= PD_DATA_EIGEN_SHARED && (strstr(pd_data_name((pd_data_id)id), ".e") || id == PD_DATA_JOINT_OVERLAP)) t[i] = fabsf(t[i]);
            if (id == PD_DATA_LUKV_CURVES)
                t[i] = fminf(fmaxf((float)(i / heads + 1) / 100.0f + t[i], 0.0f), 1.0f);
        }
    }
    return d;
}

static inline pd_press_data *pd_case_data(uint64_t seed, const pd_press_model *model) {
    return pd_case_data_of(seed, model, 0x0123456789abcdefu);
}

#endif
