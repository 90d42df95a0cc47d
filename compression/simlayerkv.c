/* SPDX-License-Identifier: Apache-2.0 */
/* simlayerkv: layers that look at both ends only keep nothing else.
 *
 * Zhang et al. 2024 (arXiv 2410.13846); kvpress' SimLayerKVPress.  Of the attention
 * of the last n_last queries, mean over queries and heads, a layer is lazy if the
 * first n_initial tokens and the n_recent tokens before those queries get more than
 * lazy_threshold together.  A lazy layer keeps the first n_initial and the last
 * n_recent - n_last tokens, any other layer everything; so layers differ in length,
 * and a request gives no ratio.  With threshold 1, or no more than n_initial +
 * n_recent + n_last tokens, all stay.
 *
 * DIFFERS: n_recent <= n_last is refused: of equal ones the reference keeps
 * everything and the first tokens twice.
 * Cost: n_last * Hq * L * D multiply-adds. */
#include "compression/shared.h"

enum { THRESHOLD, N_LAST, N_RECENT, N_INITIAL };

/* Attention on [0, n_initial) and on the n_recent positions before the last n_last. */
static double at_the_ends(const pd_press_inst *inst, const pd_view *view,
                          float *const *attention) {
    const size_t n_group = view->n_head / view->n_head_kv;
    const int64_t end = (int64_t)view->n_seen - (int64_t)inst->p[N_LAST];
    double sum = 0.0;
    for (size_t q = 0; q < view->n_head; q++) {
        const size_t h = q / n_group,
                     first = pd__slots_before(view, h, (int64_t)inst->p[N_INITIAL]),
                     from = pd__slots_before(view, h, end - (int64_t)inst->p[N_RECENT]),
                     to = pd__slots_before(view, h, end);
        for (size_t i = 0; i < first; i++) sum += (double)attention[q][i];
        for (size_t i = from; i < to; i++) sum += (double)attention[q][i];
    }
    return sum / (double)view->n_head;
}

static pd_status keep_the_ends(const pd_press_inst *inst, const pd_view *view, pd_plan *ret,
                               pd_err *err) {
    const int64_t recent =
        (int64_t)view->n_seen - (int64_t)(inst->p[N_RECENT] - inst->p[N_LAST]);
    size_t *n_keep = pd_arena_zalloc(view->tmp, view->n_head_kv, sizeof *n_keep);
    uint8_t *keep = PD_ARENA_NEW(view->tmp, view->n_head_kv * view->n, uint8_t);
    if (!n_keep || !keep)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for a plan of %zu heads", view->n_head_kv);
    for (size_t h = 0; h < view->n_head_kv; h++)
        for (size_t i = 0; i < view->n_h[h]; i++) {
            const int32_t pos = view->pos[h][i];
            /* the last slot: an earlier press may have taken both ends */
            keep[h * view->n + i] = pos < (int32_t)inst->p[N_INITIAL] || pos >= recent ||
                                    (view->protect && view->protect[h] && view->protect[h][i]) ||
                                    (i + 1 == view->n_h[h] && n_keep[h] == 0);
            n_keep[h] += keep[h * view->n + i];
        }
    PD_TRY(pd__plan_new(view, n_keep, ret, err));
    for (size_t h = 0; h < view->n_head_kv; h++)
        for (size_t i = 0, at = 0; i < view->n_h[h]; i++)
            if (keep[h * view->n + i]) ret->keep[h][at++] = (uint32_t)i;
    return PD_OK;
}

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                      pd_plan *ret, pd_err *err) {
    const double threshold = inst->p[THRESHOLD];
    *ret = (pd_plan){.keep_all = true};
    if (threshold >= 1.0 ||
        (double)view->n <= inst->p[N_INITIAL] + inst->p[N_RECENT] + inst->p[N_LAST])
        return PD_OK;
    float **attention = pd__query_head_rows(view);
    if (!attention)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the attention of %zu tokens", view->n);
    PD_TRY(pd__window_attention(view, (size_t)inst->p[N_LAST], attention, err));
    if (at_the_ends(inst, view, attention) <= threshold) return PD_OK;
    return keep_the_ends(inst, view, ret, err);
}

static size_t most(const pd_press_inst *inst, const pd_budget *budget, size_t layer, size_t n) {
    return n; /* no layer need be lazy */
}

static void needs(const pd_press_inst *inst, pd_press_needs *n) {
    pd__need_q_tail(n, (size_t)inst->p[N_LAST]);
}

static pd_status check(const pd_press_inst *inst, const struct pd_press_model *model,
                       const char *path, pd_err *err) {
    const int recent = (int)inst->p[N_RECENT], last = (int)inst->p[N_LAST];
    if (recent > last) return PD_OK;
    return pd_fail(err, PD_EINVAL, path,
                   "%s: parameter 'n_recent' of 'simlayerkv' must be above n_last %d, not %d", path,
                   last, recent);
}

static const pd_param params[] = {
    [THRESHOLD] = {.name = "lazy_threshold",
                   .type = PD_PARAM_FLOAT,
                   .def = 1,
                   .min = 0,
                   .max = 1,
                   .doc = "a layer is lazy if both ends get more attention than this; 1: none is "
                          "(Llama 3: 0.9, Llama 2: 0.65, Mistral: 0.8, Qwen: 0.85)"},
    [N_LAST] = {.name = "n_last",
                .type = PD_PARAM_INT,
                .def = 1,
                .min = 1,
                .max = 1024,
                .doc = "last tokens, whose queries tell"},
    [N_RECENT] = {.name = "n_recent",
                  .type = PD_PARAM_INT,
                  .def = 1024,
                  .min = 1,
                  .max = 1 << 20,
                  .doc = "most recent tokens, above n_last"},
    [N_INITIAL] = {.name = "n_initial",
                   .type = PD_PARAM_INT,
                   .def = 4,
                   .min = 0,
                   .max = 65536,
                   .doc = "first tokens that stay (attention sinks)"},
};

const pd_press pd_press_simlayerkv = {
    .name = "simlayerkv",
    .reference_class = "SimLayerKVPress",
    .kind = "planner",
    .source = "arXiv 2410.13846",
    .doc = "Keeps the first and the most recent tokens of layers that look at nothing else, and "
           "all of the others.",
    .ratio_doc = "lazy_threshold, n_recent and n_initial say what goes",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_COMPOSE,
    .own_budget = true,
    .check = check,
    .needs = needs,
    .plan = plan,
    .most = most,
};
