/* SPDX-License-Identifier: Apache-2.0 */
/* One budget for all layers, and attention of a replay (see deferred.h).
 *
 * kvpress' KVzipPress.compress_post: the int(layers * H * n * ratio) lowest scores
 * of all layers go.  It first counts them per layer and then takes each layer's
 * lowest, which is the same set up to ties.  DIFFERS: every head keeps one slot. */
#include "compression/deferred.h"

#include "engine/base/num.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

static pd_status no_memory(const pd_context *c, pd_err *err) {
    return pd_fail(err, PD_ENOMEM, NULL, "no memory for plans of %zu layers", c->n_layer);
}

pd_status pd_context_check(const pd_context *c, const char *press, pd_err *err) {
    for (size_t i = 0; i < c->n_layer * c->n_head_kv; i++)
        for (size_t s = 0; c->score[i] && s < c->n; s++)
            if (isnan(c->score[i][s]))
                return pd_fail(err, PD_EINTERNAL, NULL, "press '%s' gave no number for layer %zu, head %zu, slot %zu", press,
                               i / c->n_head_kv, i % c->n_head_kv, s);
    return PD_OK;
}

size_t pd__global_keep(const pd_context *c, const pd_budget *budget, size_t n) {
    if (budget->by_count) return pd_min_size(n, pd_min_size(pd_max_size(budget->count, 1), c->n) * (n / c->n));
    return n - pd_min_size(n, (size_t)((double)n * budget->ratio));
}

pd_status pd__plan_counts(const pd_context *c, const size_t *n_keep, pd_plan *plan, pd_err *err) {
    const size_t heads = c->n_head_kv;
    for (size_t l = 0; l < c->n_layer; l++) {
        if (!c->score[l * heads]) continue;
        pd_plan p = {.n_keep = PD_ARENA_NEW(c->keep, heads, size_t), .keep = PD_ARENA_NEW(c->keep, heads, uint32_t *)};
        if (!p.n_keep || !p.keep) return no_memory(c, err);
        for (size_t h = 0; h < heads; h++) {
            p.n_keep[h] = n_keep[l * heads + h];
            p.keep[h] = PD_ARENA_NEW(c->keep, p.n_keep[h], uint32_t);
            if (!p.keep[h]) return no_memory(c, err);
            PD_TRY(pd_top_k(c->score[l * heads + h], c->n, p.n_keep[h], p.keep[h], c->keep, err));
        }
        plan[l] = p;
    }
    return PD_OK;
}

/* Count in n_keep[list[i]] how many of the best `keep` of the n_list heads are theirs. */
static pd_status count_best(const pd_context *c, const size_t *list, size_t n_list, size_t keep, float *flat,
                            uint32_t *best, size_t *n_keep, pd_err *err) {
    size_t n_must = 0;
    for (size_t i = 0; i < n_list; i++) memcpy(flat + i * c->n, c->score[list[i]], c->n * sizeof *flat);
    for (size_t s = 0; c->protect && s < c->n; s++) n_must += c->protect[s] ? n_list : 0;
    keep = pd_max_size(pd_max_size(keep, n_must), 1);
    PD_TRY(pd_top_k(flat, n_list * c->n, keep, best, c->keep, err));
    for (size_t i = 0; i < keep; i++) n_keep[list[best[i] / c->n]]++;
    for (size_t i = 0; i < n_list; i++) n_keep[list[i]] = pd_max_size(n_keep[list[i]], 1);
    return PD_OK;
}

pd_status pd__plan_global(const pd_context *c, const pd_budget *budget, bool layerwise, pd_plan *plan, pd_err *err) {
    const size_t heads = c->n_layer * c->n_head_kv;
    size_t n_list = 0, slots = 0;
    size_t *list = PD_ARENA_NEW(c->keep, heads, size_t), *n_keep = pd_arena_zalloc(c->keep, heads, sizeof *n_keep);
    if (!list || !n_keep || !pd_mul_size(heads, c->n, &slots) || slots > UINT32_MAX) return no_memory(c, err);
    for (size_t i = 0; i < heads; i++) {
        if (!c->score[i]) continue;
        list[n_list++] = i;
        for (size_t s = 0; c->protect && s < c->n; s++)
            if (c->protect[s]) c->score[i][s] = INFINITY;
    }
    const size_t part = layerwise ? c->n_head_kv : pd_max_size(n_list, 1);
    float *flat = PD_ARENA_NEW(c->keep, part * c->n, float);
    uint32_t *best = PD_ARENA_NEW(c->keep, part * c->n, uint32_t);
    if (!flat || !best) return no_memory(c, err);
    for (size_t i = 0; i < n_list; i += part)
        PD_TRY(count_best(c, list + i, part, pd__global_keep(c, budget, part * c->n), flat, best, n_keep, err));
    return pd__plan_counts(c, n_keep, plan, err);
}

void pd__replay_softmax(const pd_context *c, const pd_replay_rows *r, size_t head, size_t n_sink, size_t begin,
                        size_t end, float scale, float *w) {
    const size_t d = c->head_dim, nq = c->n_head * d, h = head / (c->n_head / c->n_head_kv);
    const size_t n_own = r->row0 + r->n, width = pd__replay_columns(r, n_sink, begin, end);
    const struct {
        size_t slot, n;
    } part[3] = {{0, n_sink}, {begin, end - begin}, {c->n, n_own}};
    for (size_t p = 0, at = 0; p < 3; at += part[p++].n)
        if (part[p].n)
            cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)r->n, (int)part[p].n, (int)d, scale,
                        r->q + head * d, (int)nq, r->k[h] + part[p].slot * d, (int)d, 0.0f, w + at, (int)width);
    for (size_t i = 0; i < r->n; i++) {
        float *row = w + i * width;
        const size_t seen = width - r->n + i + 1;
        const float sum = r->kern->exp_sum_f32(row, seen, r->kern->max_f32(row, seen)), inv = 1.0f / sum;
        for (size_t t = 0; t < seen; t++) row[t] *= inv;
        memset(row + seen, 0, (width - seen) * sizeof *row);
    }
}
