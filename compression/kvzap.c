/* SPDX-License-Identifier: Apache-2.0 */
/* kvzap: a small regressor on the layer's input foretells what KVzip+ would say.
 *
 * Jegou, Jeblick 2026 (arXiv 2601.07891); kvpress' KVzapPress.  With x the
 * attention input of a token (after its norm), the score in KV head h is
 *
 *     linear   (W x + b)_h
 *     mlp      (W2 gelu(W1 x + b1) + b2)_h       gelu(z) = z (1 + erf(z / sqrt 2)) / 2
 *
 * the logarithm of the expected KVzip+ score.  The weights come from press data.
 * Cost: d*H*L multiply-adds, with the MLP n_hidden*(d + H)*L; scratch n_hidden
 * floats for each of 256 rows and thread. */
#include "compression/press_data.h"
#include "compression/shared.h"
#include "engine/base/num.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

enum { MODEL_TYPE };
enum { MLP, LINEAR };
static const char *const model_types[] = {[MLP] = "mlp", [LINEAR] = "linear", NULL};

static int data_set(const pd_press_inst *inst, unsigned have) {
    (void)have;
    return inst->p[MODEL_TYPE] == LINEAR ? PD_SET_KVZAP_LINEAR : PD_SET_KVZAP_MLP;
}

typedef struct {
    const pd_view *view;
    float *const *score;
    size_t n_hidden;       /* 0 = linear */
    const float *w1, *b1;  /* [n_hidden][d], [n_hidden] */
    const float *w2, *b2;  /* [H][n_in], [H] */
    float **hidden, **out; /* [thread] -> [PD__TILE][n_hidden], [PD__TILE][H] */
} job;

/* y[n][n_out] = x[n][n_in] w^T + b */
static void affine(const float *x, size_t n, size_t n_in, const float *w, const float *b,
                   size_t n_out, float *y) {
    for (size_t i = 0; i < n; i++) memcpy(y + i * n_out, b, n_out * sizeof *y);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)n_out, (int)n_in, 1.0f, x,
                (int)n_in, w, (int)n_in, 1.0f, y, (int)n_out);
}

static void rows_task(void *ctx, size_t task, unsigned thread) {
    const job *j = ctx;
    const pd_view *v = j->view;
    const size_t first = task * PD__TILE, n = pd_min_size(PD__TILE, v->n - first), d = v->n_embd;
    const float *x = v->x + first * d;
    float *out = j->out[thread];
    if (j->n_hidden) {
        float *hid = j->hidden[thread];
        affine(x, n, d, j->w1, j->b1, j->n_hidden, hid);
        for (size_t i = 0; i < n * j->n_hidden; i++)
            hid[i] = 0.5f * hid[i] * (1.0f + erff(hid[i] * 0.70710678f));
        affine(hid, n, j->n_hidden, j->w2, j->b2, v->n_head_kv, out);
    } else {
        affine(x, n, d, j->w2, j->b2, v->n_head_kv, out);
    }
    for (size_t h = 0; h < v->n_head_kv; h++)
        for (size_t i = 0; i < n; i++) j->score[h][first + i] = out[i * v->n_head_kv + h];
}

static void take_weights(job *j, const pd_press_inst *inst) {
    const pd_press_data *data = inst->data;
    const pd_view *v = j->view;
    const size_t l = (size_t)v->layer, h = v->n_head_kv, d = v->n_embd;
    if (inst->p[MODEL_TYPE] == LINEAR) {
        j->w2 = pd_press_data_get(data, PD_DATA_KVZAP_WEIGHT) + l * h * d;
        j->b2 = pd_press_data_get(data, PD_DATA_KVZAP_BIAS) + l * h;
        return;
    }
    const size_t m = j->n_hidden = pd_press_data_hidden(data);
    j->w1 = pd_press_data_get(data, PD_DATA_KVZAP_W1) + l * m * d;
    j->b1 = pd_press_data_get(data, PD_DATA_KVZAP_B1) + l * m;
    j->w2 = pd_press_data_get(data, PD_DATA_KVZAP_W2) + l * h * m;
    j->b2 = pd_press_data_get(data, PD_DATA_KVZAP_B2) + l * h;
}

static pd_status score(const pd_press_inst *inst, const pd_view *view, float *const *score,
                       pd_err *err) {
    if (!view->x || view->x_rows != view->n)
        return pd_fail(err, PD_EINTERNAL, NULL, "kvzap: %zu inputs for %zu tokens of layer %d",
                       view->x ? view->x_rows : 0, view->n, view->layer);
    const size_t n_thread = pd_workers_count(view->workers);
    job j = {.view = view, .score = score};
    take_weights(&j, inst);
    j.hidden = PD_ARENA_NEW(view->tmp, n_thread, float *);
    j.out = PD_ARENA_NEW(view->tmp, n_thread, float *);
    bool ok = j.hidden && j.out;
    for (size_t t = 0; ok && t < n_thread; t++) {
        j.hidden[t] = PD_ARENA_NEW(view->tmp, PD__TILE * (j.n_hidden ? j.n_hidden : 1), float);
        j.out[t] = PD_ARENA_NEW(view->tmp, PD__TILE * view->n_head_kv, float);
        ok = j.hidden[t] && j.out[t];
    }
    if (!ok) return pd_fail(err, PD_ENOMEM, NULL, "no memory to score %zu tokens", view->n);
    pd_workers_run(view->workers, rows_task, &j, pd_div_up(view->n, PD__TILE));
    return PD_OK;
}

static void needs(const pd_press_inst *inst, pd_press_needs *n) {
    (void)inst;
    n->bits |= PD_NEEDS_X;
}

static const pd_param params[] = {
    [MODEL_TYPE] = {.name = "model_type",
                    .type = PD_PARAM_CHOICE,
                    .def = MLP,
                    .choices = model_types,
                    .doc = "which regressor; pressd calibrate fits the linear one"},
};

const pd_press pd_press_kvzap = {
    .name = "kvzap",
    .reference_class = "KVzapPress",
    .kind = "scorer",
    .source = "arXiv 2601.07891",
    .doc = "Keeps what a regressor on the layer's input foretells to be needed to repeat the text "
           "(press data).",
    .ratio_doc = "its own",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_SCORE | PD_CAN_SCORE_ALONE,
    .data_set = data_set,
    .needs = needs,
    .score = score,
};
