/* SPDX-License-Identifier: Apache-2.0 */
/* snapkv: keep what the last window_size queries attended to.
 *
 * Li et al. 2024 (arXiv 2404.14469); kvpress' SnapKVPress.  a = attention of the
 * window's queries on the slots before the window, averaged over the queries and
 * the query heads of a KV head, then over kernel_size neighbouring slots (zeros
 * outside, the divisor stays kernel_size); the window itself gets the largest
 * score + 1.
 *
 * The window is the positions of the last window_size queries, so decoding views
 * with gaps between slots work alike; with fewer queries at hand the window is
 * as long as they are.
 * Cost: window_size * Hq * L * D multiply-adds. */
#include "compression/snapkv.h"

#include "compression/shared.h"
#include "engine/base/num.h"

typedef struct {
    size_t n_group, kernel;
    int64_t window_pos;      /* first position of the window */
    float *const *attention; /* [Hq][n_h] */
    float **mean;            /* [H][n_h] */
    float *const *score;
} job;

static void group_mean(void *ctx, const pd_view *view, size_t h, size_t first, size_t n,
                       unsigned thread) {
    const job *j = ctx;
    const float share = 1.0f / (float)j->n_group;
    for (size_t i = first; i < first + n; i++) {
        float a = 0.0f;
        for (size_t q = h * j->n_group; q < (h + 1) * j->n_group; q++) a += j->attention[q][i];
        j->mean[h][i] = a * share;
    }
}

static void pool(void *ctx, const pd_view *view, size_t h, size_t first, size_t n,
                 unsigned thread) {
    const job *j = ctx;
    const size_t half = j->kernel / 2, end = pd__slots_before(view, h, j->window_pos);
    const float share = 1.0f / (float)j->kernel;
    for (size_t i = first; i < first + n; i++) {
        float a = 0.0f;
        for (size_t t = i > half ? i - half : 0; t < pd_min_size(i + half + 1, end); t++)
            a += j->mean[h][t];
        j->score[h][i] = a * share;
    }
}

pd_status pd__snapkv_score(const pd_press_inst *inst, const pd_view *view, float *const *score,
                           pd_err *err) {
    const size_t w = (size_t)inst->p[PD__SNAPKV_WINDOW];
    job j = {.n_group = view->n_head / view->n_head_kv,
             .kernel = (size_t)inst->p[PD__SNAPKV_KERNEL],
             .score = score};
    float **attention = pd__query_head_rows(view);
    j.attention = attention;
    j.mean = pd_scores_new(view);
    if (!attention || !j.mean)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to score %zu tokens", view->n);
    PD_TRY(pd__window_attention(view, w, attention, err));
    j.window_pos = view->q_pos[view->q_rows - pd_min_size(w, view->q_rows)];
    pd__for_tiles(view, group_mean, &j);
    pd__for_tiles(view, pool, &j);
    pd__raise_positions(view, score, j.window_pos, INT64_MAX);
    return PD_OK;
}

pd_status pd__snapkv_check(const pd_press_inst *inst, const struct pd_press_model *model,
                           const char *path, pd_err *err) {
    const int kernel = (int)inst->p[PD__SNAPKV_KERNEL];
    if (kernel % 2 == 1) return PD_OK;
    return pd_fail(err, PD_EINVAL, path,
                   "%s: parameter 'kernel_size' of '%s' must be odd, not %d", path,
                   inst->press->name, kernel);
}

void pd__snapkv_needs(const pd_press_inst *inst, pd_press_needs *n) {
    pd__need_q_tail(n, (size_t)inst->p[PD__SNAPKV_WINDOW]);
}

size_t pd__snapkv_min_tokens(const pd_press_inst *inst) {
    return (size_t)inst->p[PD__SNAPKV_WINDOW] + 1;
}

static const pd_param params[] = {PD__SNAPKV_PARAM_ROWS};

const pd_press pd_press_snapkv = {
    .name = "snapkv",
    .reference_class = "SnapKVPress",
    .kind = "scorer",
    .source = "arXiv 2404.14469",
    .doc = "Keeps what the last window of queries attended to.",
    .ratio_doc = "its own",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_SCORE | PD_CAN_SCORE_STEP | PD_CAN_SCORE_RAGGED | PD_CAN_PRUNE_STEP,
    .check = pd__snapkv_check,
    .needs = pd__snapkv_needs,
    .min_tokens = pd__snapkv_min_tokens,
    .score = pd__snapkv_score,
};
