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
 * While tokens are generated M goes on: M_hj += sum over q of A_qj^2 in each step (a token starts
 * at 0), and with `when` "always" the same choice is made every compression_interval steps: the cache
 * holds budget_tokens per head all along, or the ratio's share of the tokens so far.  "shortage"
 * chooses when another request waits for the memory, of the prompt too, and not before (the paper's
 * preemption).  Inside `decoding` it is one press of the family: with that one's size and interval,
 * and metrics that begin with the first generated token unless the prompt's press is this one too.
 * DIFFERS: the paper has no sinks, and moves kept slots into holes; here they stay in time order.
 * Cost: metric_window_size * Hq * L * D multiply-adds, L / 2 times that for null; all layers
 * dense until the last one is read.  In a step Hq multiply-adds a slot, which the step's own
 * weights are read once more for; per choice three passes over the metrics. */
#include "compression/deferred.h"
#include "compression/page_choice.h"
#include "compression/running.h"
#include "compression/shared.h"

#include "engine/base/num.h"

#include <math.h>
#include <string.h>

enum { AGGREGATION, METRIC_WINDOW, BUFFER, KERNEL, PROTECTED, N_SINK, ALLOCATION, WHEN, INTERVAL };
enum { L2_SUM, L1_SUM };
enum { ALL, LAYER, HEAD };
enum { ONCE, ALWAYS, SHORTAGE };

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

/* Heads that share a budget, of n_list with n_head_kv in a layer. */
static size_t part_of(const pd_press_inst *inst, size_t n_list, size_t n_head_kv) {
    const size_t part[] = {[ALL] = pd_max_size(n_list, 1), [LAYER] = n_head_kv, [HEAD] = 1};
    return part[(size_t)inst->p[ALLOCATION]];
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
    const size_t part = part_of(inst, n_list, c->n_head_kv), pages = part * pd_div_up(c->n, PD_PAGE_TOKENS);
    const size_t stay = pd_div_up(pd__global_keep(c, budget, part * c->n), PD_PAGE_TOKENS);
    for (size_t i = 0; i < n_list; i += part)
        PD_TRY(pd__choose_pages(metric + i, n + i, part, PD_PAGE_TOKENS, pages - stay, left + i, c->keep, err));
    for (size_t i = 0; i < n_list; i++) n_keep[list[i]] = left[i];
    return pd__plan_counts(c, n_keep, plan, err);
}

/* ---- while tokens are generated ---- */

/* A head's metrics, +inf where a slot stays whatever its own. */
static void head_metric(const pd_press_inst *inst, const pd_running *r, size_t i, float *ret) {
    const size_t l = i / r->n_head_kv;
    for (size_t s = 0; s < r->n[i]; s++) {
        const double pos = r->pos[i][s];
        const bool stays = pos < inst->p[N_SINK] || pos >= (double)r->next[l] - inst->p[PROTECTED] ||
                           (r->pos[i][s] >= r->guard[l][0] && r->pos[i][s] < r->guard[l][1]) ||
                           (r->pos[i][s] >= r->added[0] && r->pos[i][s] < r->added[1]);
        ret[s] = stays ? INFINITY : r->tag[i][s];
    }
}

/* Layer l keeps n_keep[h] slots of its heads: those of the highest metrics. */
static pd_status plan_layer(const pd_running *r, const float *const *metric, const size_t *n, const size_t *n_keep, pd_plan *ret, pd_err *err) {
    const size_t heads = r->n_head_kv;
    bool all = true;
    for (size_t h = 0; h < heads; h++) all = all && n_keep[h] == n[h];
    *ret = (pd_plan){.keep_all = all, .n_keep = PD_ARENA_NEW(r->tmp, heads, size_t), .keep = PD_ARENA_NEW(r->tmp, heads, uint32_t *)};
    if (!ret->n_keep || !ret->keep) return no_memory(n[0], err);
    for (size_t h = 0; h < heads && !all; h++) {
        ret->n_keep[h] = n_keep[h];
        ret->keep[h] = PD_ARENA_NEW(r->tmp, n_keep[h], uint32_t);
        if (!ret->keep[h]) return no_memory(n[h], err);
        PD_TRY(pd_top_k(metric[h], n[h], n_keep[h], ret->keep[h], r->tmp, err));
    }
    return PD_OK;
}

static pd_status running(const pd_press_inst *inst, const pd_running *r, const pd_budget *budget, pd_plan *plan, pd_err *err) {
    const size_t heads = r->n_layer * r->n_head_kv;
    const float **metric = PD_ARENA_NEW(r->tmp, heads, const float *);
    size_t *n = PD_ARENA_NEW(r->tmp, heads, size_t), *left = PD_ARENA_NEW(r->tmp, heads, size_t), n_list = 0;
    size_t *layer = PD_ARENA_NEW(r->tmp, r->n_layer, size_t), n_layer = 0;
    if (!metric || !n || !left || !layer) return no_memory(heads, err);
    for (size_t i = 0; i < heads; i++) {
        if (!r->n[i]) continue;
        float *m = PD_ARENA_NEW(r->tmp, r->n[i], float);
        if (!m) return no_memory(r->n[i], err);
        head_metric(inst, r, i, m);
        metric[n_list] = m;
        n[n_list++] = r->n[i];
        if (i % r->n_head_kv == 0) layer[n_layer++] = i / r->n_head_kv;
    }
    const size_t part = part_of(inst, n_list, r->n_head_kv), stay = pd_div_up(part * pd_max_size(budget->count, 1), PD_PAGE_TOKENS);
    for (size_t i = 0; i < n_list; i += part) {
        size_t pages = 0;
        for (size_t k = i; k < i + part; k++) pages += pd_div_up(n[k], PD_PAGE_TOKENS);
        PD_TRY(pd__choose_pages(metric + i, n + i, part, PD_PAGE_TOKENS, pages > stay ? pages - stay : 0, left + i, r->tmp, err));
    }
    for (size_t i = 0; i < n_layer; i++) {
        const size_t at = i * r->n_head_kv;
        PD_TRY(plan_layer(r, metric + at, n + at, left + at, &plan[layer[i]], err));
    }
    return PD_OK;
}

static pd_tag_kind running_tag(const pd_press_inst *inst) {
    return inst->p[AGGREGATION] == L2_SUM ? PD_TAG_SQUARES : PD_TAG_SUMS;
}

static bool decode_rule(const pd_press_inst *inst, pd_decode_rule *ret) {
    *ret = (pd_decode_rule){.prune = inst, .interval = inst->p[WHEN] == ALWAYS ? (size_t)inst->p[INTERVAL] : 0,
                            .by_request = true, .tag = running_tag(inst)};
    return inst->p[WHEN] != ONCE;
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
static const char *const times[] = {"once", "always", "shortage", NULL};

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
    [WHEN] = {.name = "when", .type = PD_PARAM_CHOICE, .def = ONCE, .max = 2, .choices = times,
              .doc = "the prompt; the prompt and what is generated, again and again; both, but not before another request waits for memory"},
    [INTERVAL] = {.name = "compression_interval", .type = PD_PARAM_INT, .def = PD_PAGE_TOKENS, .min = 1, .max = 1 << 30,
                  .doc = "with when always: generated tokens between two prunings"},
};

static const pd_deferred deferred = {.score = score, .decide = decide, .whole_pages = true};

const pd_press pd_press_kv_compress = {
    .name = "kv_compress",
    .reference_class = "none",
    .kind = "planner",
    .source = "arXiv 2410.00161",
    .doc = "Frees whole pages, of whichever layer and head the last queries look at least (KV-Compress).",
    .ratio_doc = "its own, of the tokens so far if it goes on; budget_tokens is the paper's max_cache_tokens",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_DEFER | PD_CAN_DECODE | PD_CAN_PRUNE_STEP | PD_CAN_SCORE_RAGGED,
    .check = check,
    .needs = needs,
    .most = most,
    .deferred = &deferred,
    .running = running,
    .running_tag = running_tag,
    .decode_rule = decode_rule,
};
