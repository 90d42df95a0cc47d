/* SPDX-License-Identifier: Apache-2.0 */
/* kvcompose: composite tokens, one budget of ranks for all layers.
 *
 * Akulov et al. 2025 (arXiv 2509.05165); kvpress' KVComposePress.  The whole context
 * is replayed behind itself; a[query head][slot] = agg_task over the replay's rows of
 * the model's softmax weights over cache and replay, s = agg_group over the group's
 * heads, times |v| (add_v_norm), plus the mean over the KV heads
 * (add_mean_across_heads).  Structured: each head's scores sorted descending, c_l[i] =
 * agg_head over the heads at rank i; the first keep_token_lower_bound ranks + 1e9; c_0
 * becomes the maximum over the layers; the flat best ranks over all layers give n_l >=
 * max(1, bound), and every head of layer l keeps its own n_l best.  Unstructured: the
 * flat best over all layers' and heads' sorted scores give each head's count.
 *
 * DIFFERS: the unstructured reference leaves the replay's pairs in the cache, from
 * which the whole context stays readable; here nothing of the replay stays.  (For the
 * same reason its add_v_norm finds twice as many values as scores, and fails.)
 * DIFFERS: unstructured, each head keeps at least max(1, bound) slots; protected
 * slots stay in both.  Layers with a sliding window take no part.
 * Cost: a forward pass of L tokens over 2 L keys, its weights computed once more; a
 * layer's heads are sorted when its last row was seen, so that the decision is short. */
#include "compression/deferred.h"

#include "engine/base/num.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { STRUCTURED, AGG_TASK, AGG_GROUP, AGG_HEAD, V_NORM, MEAN_HEADS, BOUND };
enum { MAX, MEAN };

typedef struct {
    float *a;      /* [Hq][n] of the layer at work */
    float *sorted; /* [layers * H][n] scores, best first; of layers that are pressed */
} compose;

static pd_status no_memory(const pd_context *c, pd_err *err) {
    return pd_fail(err, PD_ENOMEM, NULL, "no memory to score %zu tokens", c->n);
}

static pd_status open(const pd_press_inst *inst, pd_context *c, pd_err *err) {
    (void)inst;
    compose *z = c->state = pd_arena_zalloc(c->keep, 1, sizeof *z);
    size_t heads;
    if (!z || !pd_mul_size(c->n_layer, c->n_head_kv, &heads)) return no_memory(c, err);
    z->a = PD_ARENA_NEW(c->keep, c->n_head * c->n, float);
    z->sorted = pd_arena_alloc(c->keep, heads, c->n * sizeof *z->sorted);
    return z->a && z->sorted ? PD_OK : no_memory(c, err);
}

static size_t most_rows(const pd_press_inst *inst, size_t n) {
    (void)inst;
    return n;
}

static pd_status ids(const pd_press_inst *inst, pd_context *c, size_t i, const int32_t **ret, size_t *n, pd_err *err) {
    (void)inst;
    (void)err;
    *ret = c->tokens;
    *n = i == 0 ? c->n : 0;
    return PD_OK;
}

/* Join the n values `x` to `to`; `first`: they are the only ones yet. */
static void join(double how, bool first, const float *x, float *to, size_t n) {
    if (first) memcpy(to, x, n * sizeof *to);
    for (size_t t = 0; !first && t < n; t++) to[t] = how == MAX ? pd__larger(to[t], x[t]) : to[t] + x[t];
}

static void divide(float *x, size_t n, size_t by) {
    for (size_t t = 0; t < n; t++) x[t] /= (float)by;
}

typedef struct {
    const pd_press_inst *inst;
    pd_context *c;
    const pd_replay_rows *r;
    float **w; /* [thread] */
} job;

static void one_head(void *ctx, size_t head, unsigned thread) {
    const job *j = ctx;
    pd_context *c = j->c;
    const pd_replay_rows *r = j->r;
    float *w = j->w[thread], *a = ((compose *)c->state)->a + head * c->n;
    pd__replay_softmax(c, r, head, 0, 0, c->n, c->attn_scale, w);
    for (size_t i = 0; i < r->n; i++)
        join(j->inst->p[AGG_TASK], r->row0 + i == 0, w + i * pd__replay_columns(r, 0, 0, c->n), a, c->n);
}

static int descending(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

static void sort_head(void *ctx, size_t h, unsigned thread) {
    (void)thread;
    const job *j = ctx;
    const size_t i = j->r->layer * j->c->n_head_kv + h, n = j->c->n;
    float *to = ((compose *)j->c->state)->sorted + i * n;
    memcpy(to, j->c->score[i], n * sizeof *to);
    for (size_t t = 0; t < n; t++)
        if (isnan(to[t])) return; /* no order: the decision will be refused */
    qsort(to, n, sizeof *to, descending);
}

/* From the layer's a to its scores. */
static pd_status finish_layer(job *j, pd_err *err) {
    const pd_press_inst *inst = j->inst;
    pd_context *c = j->c;
    const size_t heads = c->n_head_kv, group = c->n_head / heads, d = c->head_dim;
    float *a = ((compose *)c->state)->a, **score = c->score + j->r->layer * heads, *mean = pd_arena_zalloc(j->r->tmp, c->n, sizeof *mean);
    if (!mean) return no_memory(c, err);
    if (inst->p[AGG_TASK] == MEAN) divide(a, c->n_head * c->n, j->r->n_all);
    for (size_t h = 0; h < heads; h++) {
        for (size_t g = 0; g < group; g++) join(inst->p[AGG_GROUP], g == 0, a + (h * group + g) * c->n, score[h], c->n);
        if (inst->p[AGG_GROUP] == MEAN) divide(score[h], c->n, group);
        for (size_t t = 0; inst->p[V_NORM] != 0.0 && t < c->n; t++) {
            double sum = 0.0;
            for (size_t i = 0; i < d; i++) sum += (double)j->r->v[h][t * d + i] * j->r->v[h][t * d + i];
            score[h][t] *= (float)sqrt(sum);
        }
        j->r->kern->axpy_f32(1.0f / (float)heads, score[h], mean, c->n);
    }
    for (size_t h = 0; inst->p[MEAN_HEADS] != 0.0 && h < heads; h++)
        j->r->kern->axpy_f32(1.0f, mean, score[h], c->n);
    pd_workers_run(j->r->workers, sort_head, j, heads);
    return PD_OK;
}

static pd_status rows(const pd_press_inst *inst, pd_context *c, size_t i, const pd_replay_rows *r, pd_err *err) {
    (void)i;
    job j = {.inst = inst, .c = c, .r = r};
    const size_t threads = pd_workers_count(r->workers), n = r->n * pd__replay_columns(r, 0, 0, c->n);
    j.w = PD_ARENA_NEW(r->tmp, threads, float *);
    for (size_t t = 0; j.w && t < threads; t++)
        if (!(j.w[t] = PD_ARENA_NEW(r->tmp, n, float))) j.w = NULL;
    if (!j.w) return no_memory(c, err);
    pd_workers_run(r->workers, one_head, &j, c->n_head);
    return r->row0 + r->n == r->n_all ? finish_layer(&j, err) : PD_OK;
}

/* The rank curves, n each, from the heads' sorted scores. */
static void curves_of(const pd_press_inst *inst, const pd_context *c, const size_t *list, size_t n_list, float *curve) {
    const bool structured = inst->p[STRUCTURED] != 0.0;
    const size_t heads = c->n_head_kv, n = c->n, n_curve = structured ? n_list / heads : n_list;
    for (size_t i = 0; i < n_list; i++) {
        const float *sorted = ((const compose *)c->state)->sorted + list[i] * n;
        float *to = curve + (structured ? i / heads : i) * n;
        join(inst->p[AGG_HEAD], !structured || i % heads == 0, sorted, to, n);
        if (structured && i % heads == heads - 1 && inst->p[AGG_HEAD] == MEAN) divide(to, n, heads);
    }
    for (size_t i = 0; i < n_curve; i++)
        for (size_t k = 0; k < n && k < (size_t)inst->p[BOUND]; k++) curve[i * n + k] += 1e9f;
    for (size_t i = 1; structured && i < n_curve; i++) join(MAX, false, curve + i * n, curve, n);
}

static pd_status decide(const pd_press_inst *inst, pd_context *c, const pd_budget *budget, pd_plan *plan, pd_err *err) {
    const size_t heads = c->n_head_kv, all = c->n_layer * heads, n = c->n;
    size_t n_list = 0, n_protected = 0;
    size_t *list = PD_ARENA_NEW(c->keep, all, size_t), *n_keep = pd_arena_zalloc(c->keep, all, sizeof *n_keep);
    if (!list || !n_keep) return no_memory(c, err);
    for (size_t i = 0; i < all; i++)
        if (c->score[i]) list[n_list++] = i;
    if (n_list == 0) return PD_OK;
    const size_t n_curve = inst->p[STRUCTURED] != 0.0 ? n_list / heads : n_list, per = n_list / n_curve;
    if (n_curve * n > UINT32_MAX) return no_memory(c, err);
    float *curve = PD_ARENA_NEW(c->keep, n_curve * n, float);
    uint32_t *best = PD_ARENA_NEW(c->keep, n_curve * n, uint32_t);
    if (!curve || !best) return no_memory(c, err);
    curves_of(inst, c, list, n_list, curve);
    /* compute_n_kept of the reference, over ranks */
    const pd_budget whole = budget->by_count
        ? (pd_budget){.by_count = true, .count = pd__global_keep(c, budget, n_curve * n)} : *budget;
    const size_t total = pd_budget_keep(&whole, n_curve * n);
    PD_TRY(pd_top_k(curve, n_curve * n, total, best, c->keep, err));
    for (size_t i = 0; i < total; i++)
        for (size_t k = 0; k < per; k++) n_keep[list[best[i] / n * per + k]]++;
    for (size_t s = 0; c->protect && s < n; s++) n_protected += c->protect[s];
    const size_t floor = pd_max_size(pd_max_size((size_t)inst->p[BOUND], 1), n_protected);
    for (size_t i = 0; i < n_list; i++) {
        n_keep[list[i]] = pd_min_size(n, pd_max_size(n_keep[list[i]], floor));
        for (size_t s = 0; c->protect && s < n; s++)
            if (c->protect[s]) c->score[list[i]][s] = INFINITY;
    }
    return pd__plan_counts(c, n_keep, plan, err);
}

static const char *const aggs[] = {"max", "mean", NULL};

static const pd_param params[] = {
    [STRUCTURED] = {.name = "structured", .type = PD_PARAM_BOOL, .def = 1, .max = 1, .doc = "as many tokens in every head of a layer"},
    [AGG_TASK] = {.name = "agg_task", .type = PD_PARAM_CHOICE, .def = MAX, .max = 1, .choices = aggs, .doc = "over the replay's rows"},
    [AGG_GROUP] = {.name = "agg_group", .type = PD_PARAM_CHOICE, .def = MEAN, .max = 1, .choices = aggs, .doc = "over a group's query heads"},
    [AGG_HEAD] = {.name = "agg_head", .type = PD_PARAM_CHOICE, .def = MEAN, .max = 1, .choices = aggs, .doc = "over the KV heads, rank by rank"},
    [V_NORM] = {.name = "add_v_norm", .type = PD_PARAM_BOOL, .def = 0, .max = 1, .doc = "weigh by the norm of the value"},
    [MEAN_HEADS] = {.name = "add_mean_across_heads", .type = PD_PARAM_BOOL, .def = 1, .max = 1, .doc = "add the mean over the KV heads"},
    [BOUND] = {.name = "keep_token_lower_bound", .type = PD_PARAM_INT, .def = 0, .min = 0, .max = 65536,
               .doc = "ranks every layer keeps in any case"},
};

static const pd_deferred deferred = {.most_rows = most_rows, .open = open, .ids = ids, .rows = rows, .decide = decide};

const pd_press pd_press_kvcompose = {
    .name = "kvcompose",
    .reference_class = "KVComposePress",
    .kind = "planner",
    .source = "arXiv 2509.05165",
    .doc = "Ranks tokens by the attention of a second pass over the context; one budget of ranks for all layers.",
    .ratio_doc = "its own",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_DEFER,
    .deferred = &deferred,
};
