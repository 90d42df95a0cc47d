/* SPDX-License-Identifier: Apache-2.0 */
/* kv_compress: whole pages go, of whichever layer and head needs them least.
 *
 * Rehg 2024, "KV-Compress: Paged KV-Cache Compression with Variable Compression Rates
 * per Attention Head" (arXiv 2410.00161).  With A_qi the softmax weight of query i under
 * query head q of KV head h's group, over the last metric_window_size queries (null: all):
 *
 *     M_hj = sum over i, q of A_qij^2    (l1_sum: of A_qij),   i >= j + metric_collection_buffer_size
 *
 * then the largest within kernel_size slots.  A head frees e pages by losing its lowest
 * metrics; the pages to free, of all layers and heads together, are those whose highest
 * loss is lowest (page_choice.c).  The first n_sink tokens and the last
 * protected_window_size stay.  As many full pages stay as hold the budget, so a ratio
 * takes memory exactly; budget_tokens is the paper's max_cache_tokens.
 *
 * The paper's window is 8 queries; on SmolLM2 at ratio 0.75 (six texts) 8, 32, 64, 128 gave a KL of
 * .084, .046, .038, .040, one budget for each layer or head .059, .081, and weights unsquared .072.
 * The paper has no sinks and compresses further while it decodes; here a decode press
 * of the request may do that.
 * Cost: metric_window_size * Hq * L * D multiply-adds, L / 2 times that for null; all layers
 * dense until the last one is read. */
#include "compression/deferred.h"
#include "compression/page_choice.h"
#include "compression/shared.h"

#include "engine/base/num.h"

#include <math.h>
#include <string.h>

enum { AGGREGATION, METRIC_WINDOW, BUFFER, KERNEL, PROTECTED, N_SINK, ALLOCATION };
enum { L2_SUM, L1_SUM };
enum { ALL, LAYER, HEAD };

static pd_status no_memory(size_t n, pd_err *err) {
    return pd_fail(err, PD_ENOMEM, NULL, "no memory to score %zu tokens", n);
}

typedef struct {
    size_t half, n_group;
    float *const *attention; /* [Hq][n] */
    float **sum;             /* [H][n] */
    float *const *score;
} job;

static void group_sum(void *ctx, const pd_view *view, size_t h, size_t first, size_t n, unsigned thread) {
    (void)thread;
    const job *j = ctx;
    memset(j->sum[h] + first, 0, n * sizeof **j->sum);
    for (size_t q = h * j->n_group; q < (h + 1) * j->n_group; q++)
        view->kern->axpy_f32(1.0f, j->attention[q] + first, j->sum[h] + first, n);
}

static void max_pool(void *ctx, const pd_view *view, size_t h, size_t first, size_t n, unsigned thread) {
    (void)thread;
    const job *j = ctx;
    for (size_t i = first; i < first + n; i++) {
        const size_t begin = i > j->half ? i - j->half : 0, end = pd_min_size(i + j->half + 1, view->n_h[h]);
        float most = j->sum[h][begin];
        for (size_t t = begin + 1; t < end; t++) most = pd__larger(most, j->sum[h][t]);
        j->score[h][i] = most;
    }
}

static pd_status score(const pd_press_inst *inst, const pd_view *view, float *const *score, pd_err *err) {
    const bool all = isnan(inst->p[METRIC_WINDOW]);
    const size_t w = all ? view->n : (size_t)inst->p[METRIC_WINDOW];
    job j = {.half = (size_t)inst->p[KERNEL] / 2, .n_group = view->n_head / view->n_head_kv, .score = score};
    j.attention = pd__query_head_rows(view);
    j.sum = pd_scores_new(view);
    if (!j.attention || !j.sum) return no_memory(view->n, err);
    PD_TRY(pd__window_attention_sums(view, w, inst->p[AGGREGATION] == L2_SUM, all ? (size_t)inst->p[BUFFER] : 0, j.attention, err));
    pd__for_tiles(view, group_sum, &j);
    pd__for_tiles(view, max_pool, &j);
    return PD_OK;
}

/* The slots that stay whatever their metric. */
static void protect(const pd_press_inst *inst, const pd_context *c) {
    const size_t window = pd_min_size(c->n, (size_t)inst->p[PROTECTED]);
    for (size_t i = 0; i < c->n_layer * c->n_head_kv; i++)
        for (size_t s = 0; c->score[i] && s < c->n; s++)
            if (s < (size_t)inst->p[N_SINK] || s >= c->n - window || (c->protect && c->protect[s])) c->score[i][s] = INFINITY;
}

static pd_status decide(const pd_press_inst *inst, pd_context *c, const pd_budget *budget, pd_plan *plan, pd_err *err) {
    const size_t heads = c->n_layer * c->n_head_kv;
    const float **metric = PD_ARENA_NEW(c->keep, heads, const float *);
    size_t *list = PD_ARENA_NEW(c->keep, heads, size_t), *n = PD_ARENA_NEW(c->keep, heads, size_t);
    size_t *left = PD_ARENA_NEW(c->keep, heads, size_t), *n_keep = pd_arena_zalloc(c->keep, heads, sizeof *n_keep), n_list = 0;
    if (!metric || !list || !n || !left || !n_keep) return no_memory(c->n, err);
    protect(inst, c);
    for (size_t i = 0; i < heads; i++) {
        if (!c->score[i]) continue;
        metric[n_list] = c->score[i];
        n[n_list] = c->n;
        list[n_list++] = i;
    }
    const size_t share[] = {[ALL] = pd_max_size(n_list, 1), [LAYER] = c->n_head_kv, [HEAD] = 1};
    const size_t part = share[(size_t)inst->p[ALLOCATION]], pages = part * pd_div_up(c->n, PD_PAGE_TOKENS);
    const size_t stay = pd_div_up(pd__global_keep(c, budget, part * c->n), PD_PAGE_TOKENS);
    for (size_t i = 0; i < n_list; i += part)
        PD_TRY(pd__choose_pages(metric + i, n + i, part, PD_PAGE_TOKENS, pages - stay, left + i, c->keep, err));
    for (size_t i = 0; i < n_list; i++) n_keep[list[i]] = left[i];
    return pd__plan_counts(c, n_keep, plan, err);
}

/* With sinks and window in every head, which are not taken, and a page at least. */
static size_t most(const pd_press_inst *inst, const pd_budget *budget, size_t layer, size_t n) {
    (void)layer;
    const size_t stays = pd_max_size((size_t)(inst->p[N_SINK] + inst->p[PROTECTED]), 1);
    return pd_max_size(pd_budget_keep(budget, n), pd_div_up(stays, PD_PAGE_TOKENS) * PD_PAGE_TOKENS);
}

static pd_status check(const pd_press_inst *inst, const struct pd_press_model *model, const char *path, pd_err *err) {
    (void)model;
    const int kernel = (int)inst->p[KERNEL];
    if (kernel % 2 == 1) return PD_OK;
    return pd_fail(err, PD_EINVAL, path, "%s: parameter 'kernel_size' of 'kv_compress' must be odd, not %d", path, kernel);
}

static void needs(const pd_press_inst *inst, pd_press_needs *n) {
    if (isnan(inst->p[METRIC_WINDOW]))
        n->bits |= PD_NEEDS_Q_ALL;
    else
        pd__need_q_tail(n, (size_t)inst->p[METRIC_WINDOW]);
}

static const char *const aggregations[] = {"l2_sum", "l1_sum", NULL};
static const char *const allocations[] = {"all", "layer", "head", NULL};

static const pd_param params[] = {
    [AGGREGATION] = {.name = "metric_aggregation", .type = PD_PARAM_CHOICE, .def = L2_SUM, .max = 1, .choices = aggregations,
                     .doc = "sums of squared weights, or of the weights"},
    [METRIC_WINDOW] = {.name = "metric_window_size", .type = PD_PARAM_INT, .def = 64, .min = 1, .max = 65536, .flags = PD_PARAM_NULLABLE,
                       .doc = "last queries whose attention counts; null: all of them, which costs another pass over Q K^T"},
    [BUFFER] = {.name = "metric_collection_buffer_size", .type = PD_PARAM_INT, .def = 10, .min = 0, .max = 65536,
                .doc = "with metric_window_size null: a token's attention counts from this many tokens behind it on"},
    [KERNEL] = {.name = "kernel_size", .type = PD_PARAM_INT, .def = 7, .min = 1, .max = 65535,
                .doc = "a token counts as much as the best of so many neighbours (odd)"},
    [PROTECTED] = {.name = "protected_window_size", .type = PD_PARAM_INT, .def = 32, .min = 0, .max = 65536,
                   .doc = "last tokens, which stay"},
    [N_SINK] = {.name = "n_sink", .type = PD_PARAM_INT, .def = 4, .min = 0, .max = 4096, .doc = "first tokens, which stay"},
    [ALLOCATION] = {.name = "allocation", .type = PD_PARAM_CHOICE, .def = ALL, .max = 2, .choices = allocations,
                    .doc = "one budget for all layers and heads, the same for each layer, or for each head"},
};

static const pd_deferred deferred = {.score = score, .decide = decide, .whole_pages = true};

const pd_press pd_press_kv_compress = {
    .name = "kv_compress",
    .reference_class = "none",
    .kind = "planner",
    .source = "arXiv 2410.00161",
    .doc = "Frees whole pages, of whichever layer and head the last queries look at least (KV-Compress).",
    .ratio_doc = "its own; budget_tokens is the paper's max_cache_tokens",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_DEFER,
    .check = check,
    .needs = needs,
    .most = most,
    .deferred = &deferred,
};
