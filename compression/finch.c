/* SPDX-License-Identifier: Apache-2.0 */
/* finch: keep what the question at the end of the scope attends to.
 *
 * Corallo, Papotti 2024 (FINCH, TACL a_00716); kvpress' FinchPress.  The last
 * window_size tokens of the scope are the question.  a = attention of each of its
 * queries on the tokens before it, times their number if normalize_scores, mean over
 * the queries and the query heads of a KV head; the question itself gets the largest
 * score + 1.  The best n_kept stay, or with chunk_length the best n_kept of each
 * chunk.  With rerotate_keys the kept keys move to positions 0..n-1 and what follows
 * goes on from there.
 *
 * DIFFERS: the reference finds the question by a delimiter token it adds to the
 * vocabulary; here the request says how long it is.
 * DIFFERS: the question stays, whatever the ratio: the reference drops some of its
 * tokens when n_kept, of the scope or of the last chunk, is below its length.
 * Cost: window_size * Hq * L * D multiply-adds. */
#include "compression/shared.h"
#include "compression/subview.h"

#include "engine/base/num.h"

#include <math.h>

enum { WINDOW, LENGTH, NORMALIZE, REROTATE };

static int64_t window_pos(const pd_press_inst *inst, const pd_view *view) {
    return view->q_pos[view->q_rows - pd_min_size((size_t)inst->p[WINDOW], view->q_rows)];
}

static pd_status score(const pd_press_inst *inst, const pd_view *view, float *const *score,
                       pd_err *err) {
    const size_t w = (size_t)inst->p[WINDOW], n_group = view->n_head / view->n_head_kv;
    const float share = 1.0f / (float)n_group;
    float **attention = pd__query_head_rows(view);
    if (!attention)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to score %zu tokens", view->n);
    if (inst->p[NORMALIZE] != 0.0)
        PD_TRY(pd__window_attention_times_before(view, w, attention, err));
    else
        PD_TRY(pd__window_attention(view, w, attention, err));
    for (size_t h = 0; h < view->n_head_kv; h++)
        for (size_t i = 0; i < view->n_h[h]; i++) {
            float a = 0.0f;
            for (size_t q = h * n_group; q < (h + 1) * n_group; q++) a += attention[q][i];
            score[h][i] = a * share;
        }
    pd__raise_positions(view, score, window_pos(inst, view), INT64_MAX);
    return PD_OK;
}

static size_t chunk_length(const pd_press_inst *inst, size_t n) {
    return isnan(inst->p[LENGTH]) ? n : (size_t)inst->p[LENGTH];
}

/* Slots every head keeps of chunk [begin, end): its share, and never less than the
 * question and the protected of the head that has most. */
static size_t keep_of(const pd_view *view, const pd_budget *budget, int64_t window, size_t begin,
                      size_t end) {
    size_t keep = pd__chunk_keep(budget, view->n, begin, end);
    for (size_t h = 0; h < view->n_head_kv; h++) {
        const uint8_t *protect = view->protect ? view->protect[h] : NULL;
        size_t must = 0;
        for (size_t i = begin; i < end; i++)
            must += view->pos[h][i] >= window || (protect && protect[i]);
        keep = pd_max_size(keep, must);
    }
    return keep;
}

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget,
                      pd_plan *ret, pd_err *err) {
    const size_t n = view->n, length = chunk_length(inst, n), count = pd_div_up(n, length);
    float **s = pd_scores_new(view);
    size_t *keep = PD_ARENA_NEW(view->tmp, count, size_t), total = 0,
           *n_keep = PD_ARENA_NEW(view->tmp, view->n_head_kv, size_t);
    if (!s || !keep || !n_keep)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the scores of %zu tokens", n);
    PD_TRY(pd_press_score(inst, view, s, err));
    const int64_t window = window_pos(inst, view);
    for (size_t c = 0; c < count; c++) {
        keep[c] = keep_of(view, budget, window, c * length, pd__chunk_end(n, length, count, c));
        total += keep[c];
    }
    for (size_t h = 0; h < view->n_head_kv; h++) n_keep[h] = total;
    pd_plan plan;
    PD_TRY(pd__plan_new(view, n_keep, &plan, err));
    for (size_t h = 0; h < view->n_head_kv; h++) {
        uint32_t *slot = plan.keep[h];
        for (size_t c = 0; c < count; c++) {
            const size_t begin = c * length, end = pd__chunk_end(n, length, count, c);
            if (keep[c] > 0)
                PD_TRY(pd_top_k(s[h] + begin, end - begin, keep[c], slot, view->tmp, err));
            for (size_t i = 0; i < keep[c]; i++) slot[i] += (uint32_t)begin;
            slot += keep[c];
        }
    }
    plan.rerotate = inst->p[REROTATE] != 0.0;
    *ret = plan;
    return PD_OK;
}

static size_t most(const pd_press_inst *inst, const pd_budget *budget, size_t layer, size_t n) {
    const size_t length = chunk_length(inst, n), count = pd_div_up(n, length),
                 window = n - pd_min_size(n, (size_t)inst->p[WINDOW]);
    size_t keep = 0;
    for (size_t c = 0; c < count; c++) {
        const size_t begin = c * length, end = pd__chunk_end(n, length, count, c);
        keep += pd_max_size(pd__chunk_keep(budget, n, begin, end),
                            end - pd_min_size(end, pd_max_size(begin, window)));
    }
    return keep;
}

/* A listing asks of a press whose required window nobody gave. */
static void needs(const pd_press_inst *inst, pd_press_needs *n) {
    pd__need_q_tail(n, isnan(inst->p[WINDOW]) ? 1 : (size_t)inst->p[WINDOW]);
}

static size_t min_tokens(const pd_press_inst *inst) {
    return (size_t)inst->p[WINDOW] + 1;
}

static const pd_param params[] = {
    [WINDOW] = {.name = "window_size",
                .type = PD_PARAM_INT,
                .def = NAN,
                .min = 1,
                .max = 4096,
                .flags = PD_PARAM_REQUIRED,
                .doc = "tokens of the question, the last ones of the scope"},
    [LENGTH] = {.name = "chunk_length",
                .type = PD_PARAM_INT,
                .def = NAN,
                .min = 1,
                .max = 1 << 20,
                .flags = PD_PARAM_NULLABLE,
                .doc = "tokens of a chunk that is pruned for itself; null: all at once"},
    [NORMALIZE] = {.name = "normalize_scores",
                   .type = PD_PARAM_BOOL,
                   .def = 1,
                   .max = 1,
                   .doc = "multiply a query's attention by the number of tokens before it"},
    [REROTATE] = {.name = "rerotate_keys",
                  .type = PD_PARAM_BOOL,
                  .def = 1,
                  .max = 1,
                  .doc = "move the kept keys to consecutive positions"},
};

const pd_press pd_press_finch = {
    .name = "finch",
    .reference_class = "FinchPress",
    .kind = "planner",
    .source = "FINCH, TACL a_00716",
    .doc = "Keeps what the question at the end attended to, and the question.",
    .ratio_doc = "its own",
    .params = params,
    .n_params = sizeof params / sizeof *params,
    .can = PD_CAN_COMPOSE,
    .needs = needs,
    .min_tokens = min_tokens,
    .score = score,
    .plan = plan,
    .most = most,
};
