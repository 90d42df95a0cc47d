/* SPDX-License-Identifier: Apache-2.0 */
/* think: keys without the channels that queries make least of.
 *
 * Xu et al. 2024 (ThinK, arXiv 2407.21018); kvpress' ThinKPress.  With qs[h][c] the
 * square of channel c of the last window_size queries, mean over them and over head h's
 * query heads, and ks[h][c] that of the head's keys, mean over its slots, each head
 * loses the int(D * key_channel_compression_ratio) channels with the smallest qs * ks.
 * Every token stays, values stay whole, so a request gives no ratio; what goes is half
 * of the parameter.  Later tokens keep all channels.
 *
 * DIFFERS: the reference sets the channels to 0 and keeps their memory; here the keys
 * are stored without them (engine/cache/kv.h), in widths of sixteenths of D or, in few
 * bits, of 32 channels.
 * Cost: H * L * D multiply-adds. */
#include "compression/shared.h"

#include "engine/base/num.h"

#include <math.h>

enum { RATIO, WINDOW };

static size_t key_channels(const pd_press_inst *inst, size_t head_dim) {
    return head_dim - (size_t)((double)head_dim * inst->p[RATIO]);
}

/* x[c] += the squares of channel c of n rows. */
static void add_squares(const float *row, size_t n, size_t stride, size_t d, double *x) {
    for (size_t i = 0; i < n; i++, row += stride)
        for (size_t c = 0; c < d; c++) x[c] += (double)row[c] * (double)row[c];
}

typedef struct {
    const pd_view *view;
    size_t w;
    double **sums; /* [H][2 D] */
    float **score; /* [H][D] */
} channel_job;

static void score_head(void *ctx, size_t h, unsigned thread) {
    const channel_job *j = ctx;
    const pd_view *view = j->view;
    const size_t d = view->head_dim, group = view->n_head / view->n_head_kv, nq = view->n_head * d;
    double *qs = j->sums[h], *ks = qs + d;
    for (size_t g = 0; g < group; g++)
        add_squares(view->q + (view->q_rows - j->w) * nq + (h * group + g) * d, j->w, nq, d, qs);
    add_squares(view->k[h], view->n_h[h], d, d, ks);
    for (size_t c = 0; c < d; c++)
        j->score[h][c] = (float)(qs[c] / (double)(j->w * group) * (ks[c] / (double)view->n_h[h]));
}

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                      pd_plan *ret, pd_err *err) {
    const size_t d = view->head_dim, heads = view->n_head_kv, n = key_channels(inst, d);
    *ret = (pd_plan){.keep_all = true};
    if (n == d) return PD_OK;
    channel_job j = {.view = view, .w = pd_min_size((size_t)inst->p[WINDOW], view->q_rows)};
    uint32_t **channel = PD_ARENA_NEW(view->tmp, heads, uint32_t *);
    j.sums = PD_ARENA_NEW(view->tmp, heads, double *);
    j.score = PD_ARENA_NEW(view->tmp, heads, float *);
    bool ok = channel && j.sums && j.score;
    for (size_t h = 0; ok && h < heads; h++) {
        channel[h] = PD_ARENA_NEW(view->tmp, n, uint32_t);
        j.sums[h] = pd_arena_zalloc(view->tmp, 2 * d, sizeof(double));
        j.score[h] = PD_ARENA_NEW(view->tmp, d, float);
        ok = channel[h] && j.sums[h] && j.score[h];
    }
    if (!ok) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the channels of %zu heads", heads);
    if (!view->q || j.w == 0)
        return pd_fail(err, PD_EINTERNAL, NULL, "no queries were collected for layer %d", view->layer);
    pd_workers_run(view->workers, score_head, &j, heads);
    for (size_t h = 0; h < heads; h++) {
        for (size_t c = 0; c < d; c++) /* as pd_press_score: a model that overflowed must not decide */
            if (isnan(j.score[h][c]))
                return pd_fail(err, PD_EINTERNAL, NULL, "press 'think' gave no number for layer %d, head %zu, channel %zu",
                               view->layer, h, c);
        PD_TRY(pd_top_k(j.score[h], d, n, channel[h], view->tmp, err));
    }
    ret->channel = channel;
    ret->n_channel = n;
    return PD_OK;
}

static size_t most(const pd_press_inst *inst, const pd_budget *budget, size_t layer, size_t n) {
    return n; /* no slot goes */
}

static void needs(const pd_press_inst *inst, pd_press_needs *n) {
    pd__need_q_tail(n, (size_t)inst->p[WINDOW]);
}

static const pd_param params[] = {
    [RATIO] = {.name = "key_channel_compression_ratio",
               .type = PD_PARAM_FLOAT,
               .def = 0,
               .min = 0,
               .max = 1,
               .flags = PD_PARAM_OPEN_MAX,
               .doc = "fraction of each head's key channels that goes; of the cache it is half of that"},
    [WINDOW] = {.name = "window_size",
                .type = PD_PARAM_INT,
                .def = 32,
                .min = 1,
                .max = 1024,
                .doc = "last tokens, whose queries tell"},
};

const pd_press pd_press_think = {
    .name = "think",
    .reference_class = "ThinKPress",
    .kind = "planner",
    .source = "arXiv 2407.21018",
    .doc = "Stores the prompt's keys without the channels that matter least to its last queries; every token stays.",
    .ratio_doc = "key_channel_compression_ratio says what goes",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_COMPOSE,
    .own_budget = true,
    .key_channels = key_channels,
    .needs = needs,
    .plan = plan,
    .most = most,
};
