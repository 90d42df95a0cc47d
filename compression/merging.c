/* SPDX-License-Identifier: Apache-2.0 */
/* merging: fold the value of an evicted pair into the kept pair most like it.
 *
 * kvpress' MergingPress, after Token Merging (Bolya et al. 2022, arXiv 2210.09461)
 * and D2O (Wan et al. 2024, arXiv 2406.13035).  The child's best n_kept stay.  Each
 * evicted e goes to the kept j with the largest cosine s of their keys (norms at
 * least 1e-6), if s >= similarity_threshold and, with merge_fraction f < 1, s is
 * not below the (1 - f)-quantile, with the weight
 *
 *     w = max(s, 0) |v_e| / (|v_e| + |v_j| + 1e-6)
 *
 * and v_j becomes (v_j + sum w v_e) / (1 + sum w).  Keys stay as they are.
 *
 * DIFFERS: the reference takes the quantile over all evicted pairs, those below the
 * threshold as minus infinity: once they reach it the bound is no number and
 * nothing is merged.  Here it is taken over the pairs that pass the threshold.
 * Cost: n_evicted * n_kept * D multiply-adds per head. */
#include "compression/shared.h"

#include "engine/base/num.h"

#include <cblas.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { THRESHOLD, FRACTION };
enum { ROWS = 32 }; /* evicted rows of one task */

static const float norm_floor = 1e-6f;

/* One head: unit keys of the kept and the evicted, and whom each evicted joins. */
typedef struct {
    size_t n_keep, n_out;
    const uint32_t *keep;
    uint32_t *out;    /* [n_out] evicted slots */
    float *unit;      /* [n_keep][D] */
    uint32_t *target; /* [n_out] place among the kept */
    float *sim;       /* [n_out] */
} head;

typedef struct {
    const pd_view *view;
    head *head;
    size_t tasks_per_head;
    float **unit; /* [thread][ROWS][D] */
    float **sim;  /* [thread][ROWS][n_keep] */
} job;

static void unit_row(const pd_view *view, const float *x, float *y) {
    const size_t d = view->head_dim;
    const float inv = 1.0f / fmaxf(sqrtf(view->kern->dot_f32(x, x, d)), norm_floor);
    for (size_t i = 0; i < d; i++) y[i] = x[i] * inv;
}

static void find_targets(void *ctx, size_t task, unsigned thread) {
    const job *j = ctx;
    const size_t h = task / j->tasks_per_head, first = task % j->tasks_per_head * ROWS,
                 d = j->view->head_dim;
    const head *hd = &j->head[h];
    if (first >= hd->n_out) return;
    const size_t n = pd_min_size(ROWS, hd->n_out - first);
    float *unit = j->unit[thread], *sim = j->sim[thread];
    for (size_t i = 0; i < n; i++)
        unit_row(j->view, j->view->k[h] + hd->out[first + i] * d, unit + i * d);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)hd->n_keep, (int)d, 1.0f,
                unit, (int)d, hd->unit, (int)d, 0.0f, sim, (int)hd->n_keep);
    for (size_t i = 0; i < n; i++) {
        const float *s = sim + i * hd->n_keep;
        size_t best = 0;
        for (size_t k = 1; k < hd->n_keep; k++)
            if (s[k] > s[best]) best = k;
        hd->target[first + i] = (uint32_t)best;
        hd->sim[first + i] = s[best];
    }
}

static int by_value(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

/* The least similarity that merges: the threshold, or with a fraction the quantile
 * (linear between neighbours) of those that pass it. */
static pd_status least_sim(const pd_press_inst *inst, const head *hd, pd_arena *tmp, float *ret,
                           pd_err *err) {
    *ret = (float)inst->p[THRESHOLD];
    if (inst->p[FRACTION] >= 1.0) return PD_OK;
    float *s = PD_ARENA_NEW(tmp, hd->n_out, float);
    if (!s) return pd_fail(err, PD_ENOMEM, NULL, "no memory to merge %zu pairs", hd->n_out);
    size_t n = 0;
    for (size_t i = 0; i < hd->n_out; i++)
        if (hd->sim[i] >= *ret) s[n++] = hd->sim[i];
    if (n == 0) return PD_OK;
    qsort(s, n, sizeof *s, by_value);
    const double at = (1.0 - inst->p[FRACTION]) * (double)(n - 1);
    const size_t low = (size_t)at, high = pd_min_size(low + 1, n - 1);
    *ret = s[low] + (float)(at - (double)low) * (s[high] - s[low]);
    return PD_OK;
}

/* Values of the head's kept slots with the evicted ones folded in. */
static pd_status fold(const pd_press_inst *inst, const pd_view *view, size_t h, const head *hd,
                      float *v_new, pd_err *err) {
    const size_t d = view->head_dim;
    const float *v = view->v[h];
    float least, *weight = pd_arena_zalloc(view->tmp, hd->n_keep, sizeof *weight),
                 *norm = PD_ARENA_NEW(view->tmp, hd->n_keep, float);
    if (!weight || !norm)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to merge %zu pairs", hd->n_out);
    PD_TRY(least_sim(inst, hd, view->tmp, &least, err));
    for (size_t k = 0; k < hd->n_keep; k++) {
        const float *x = v + hd->keep[k] * d;
        memcpy(v_new + k * d, x, d * sizeof *x);
        norm[k] = sqrtf(view->kern->dot_f32(x, x, d));
    }
    for (size_t i = 0; i < hd->n_out; i++) {
        if (!(hd->sim[i] >= least && hd->sim[i] > 0.0f)) continue;
        const size_t k = hd->target[i];
        const float *x = v + hd->out[i] * d, len = sqrtf(view->kern->dot_f32(x, x, d));
        const float w = hd->sim[i] * len / (len + norm[k] + norm_floor);
        view->kern->axpy_f32(w, x, v_new + k * d, d);
        weight[k] += w;
    }
    for (size_t k = 0; k < hd->n_keep; k++)
        if (weight[k] > 0.0f)
            for (size_t i = 0; i < d; i++) v_new[k * d + i] /= 1.0f + weight[k];
    return PD_OK;
}

static bool head_alloc(const pd_view *view, size_t h, const pd_plan *plan, head *hd) {
    const size_t n = view->n_h[h], d = view->head_dim;
    *hd = (head){.n_keep = plan->n_keep[h], .keep = plan->keep[h], .n_out = n - plan->n_keep[h]};
    hd->unit = PD_ARENA_NEW(view->tmp, hd->n_keep * d, float);
    hd->out = PD_ARENA_NEW(view->tmp, hd->n_out, uint32_t);
    hd->target = PD_ARENA_NEW(view->tmp, hd->n_out, uint32_t);
    hd->sim = PD_ARENA_NEW(view->tmp, hd->n_out, float);
    if (!hd->unit || !hd->out || !hd->target || !hd->sim) return false;
    for (size_t i = 0, k = 0, o = 0; i < n; i++) {
        if (k < hd->n_keep && hd->keep[k] == i)
            unit_row(view, view->k[h] + i * d, hd->unit + k++ * d);
        else
            hd->out[o++] = (uint32_t)i;
    }
    return true;
}

static bool job_alloc(const pd_view *view, const pd_plan *plan, job *j) {
    const size_t n_thread = pd_workers_count(view->workers);
    size_t most_keep = 0, most_out = 0;
    j->head = PD_ARENA_NEW(view->tmp, view->n_head_kv, head);
    j->unit = PD_ARENA_NEW(view->tmp, n_thread, float *);
    j->sim = PD_ARENA_NEW(view->tmp, n_thread, float *);
    if (!j->head || !j->unit || !j->sim) return false;
    for (size_t h = 0; h < view->n_head_kv; h++) {
        if (!head_alloc(view, h, plan, &j->head[h])) return false;
        most_keep = pd_max_size(most_keep, j->head[h].n_keep);
        most_out = pd_max_size(most_out, j->head[h].n_out);
    }
    for (size_t t = 0; t < n_thread; t++) {
        j->unit[t] = PD_ARENA_NEW(view->tmp, ROWS * view->head_dim, float);
        j->sim[t] = PD_ARENA_NEW(view->tmp, ROWS * most_keep, float);
        if (!j->unit[t] || !j->sim[t]) return false;
    }
    j->tasks_per_head = pd_div_up(most_out, ROWS);
    return true;
}

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                      pd_plan *ret, pd_err *err) {
    float **score = pd_scores_new(view),
          **v_new = PD_ARENA_NEW(view->tmp, view->n_head_kv, float *);
    job j = {.view = view};
    pd_plan plan;
    if (!score || !v_new)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the scores of %zu tokens", view->n);
    PD_TRY(pd_press_score(inst->child[0], view, score, err));
    PD_TRY(pd__plan_top(view, budget, (const float *const *)score, false, &plan, err));
    if (!job_alloc(view, &plan, &j))
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to merge %zu tokens", view->n);
    pd_workers_run(view->workers, find_targets, &j, view->n_head_kv * j.tasks_per_head);
    for (size_t h = 0; h < view->n_head_kv; h++) {
        v_new[h] = PD_ARENA_NEW(view->tmp, plan.n_keep[h] * view->head_dim, float);
        if (!v_new[h]) return pd_fail(err, PD_ENOMEM, NULL, "no memory for merged values");
        PD_TRY(fold(inst, view, h, &j.head[h], v_new[h], err));
    }
    plan.v_new = v_new;
    *ret = plan;
    return PD_OK;
}

static const pd_param params[] = {
    [THRESHOLD] = {.name = "similarity_threshold",
                   .type = PD_PARAM_FLOAT,
                   .def = 0,
                   .min = 0,
                   .max = 1,
                   .doc = "least cosine of two keys whose values are merged"},
    [FRACTION] = {.name = "merge_fraction",
                  .type = PD_PARAM_FLOAT,
                  .def = 1,
                  .min = 0,
                  .max = 1,
                  .flags = PD_PARAM_OPEN_MIN,
                  .doc = "share of the evicted pairs that is merged, the most similar ones; the "
                         "others are dropped"},
};

const pd_press pd_press_merging = {
    .name = "merging",
    .reference_class = "MergingPress",
    .kind = "wrapper",
    .source = "arXiv 2210.09461, 2406.13035",
    .doc = "Keeps what the child keeps and folds the values of the others into them.",
    .ratio_doc = "the child's",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_PRUNE_STEP | PD_CAN_SCORE_RAGGED | PD_CAN_COMPOSE,
    .min_child = 1,
    .max_child = 1,
    .child_must = PD_CAN_SCORE,
    .plan = plan,
};
