/* SPDX-License-Identifier: Apache-2.0 */
/* kvzip: keep what the model looks at when it repeats the context.
 *
 * Kim et al. 2025 (arXiv 2505.23416); kvpress' KVzipPress.  The context behind the
 * chat template's prefix is replayed in chunks, each behind a request to repeat it;
 * score[slot of the chunk] = max over the replay's rows and the group's query heads
 * of the softmax weight over {sinks, chunk, replay up to the row}, scaled 1/sqrt(D).
 * Plus: weight * |Wo v_slot|_2 / |x_row|_2 before the maximum.  Sinks get max + 1;
 * slots that no chunk held (the prefix) 0.  The lowest int(all pairs * ratio) go,
 * over all layers or (`layerwise`) in each.
 *
 * DIFFERS: evicted pairs are gone, not masked.  The prefix is the part of the prompt
 * that equals the template's; a client's own system message counts as context.
 * A chunk that ends the prompt holds the template's suffix too, as in the reference
 * when it is given such a prompt.  Texts of a replay go on where the context ends: SentencePiece
 * puts no space before their first word, as it does in the reference.  Layers with a sliding window stay as they are
 * (the reference refuses such models).
 * Cost: a forward pass over the context, and (chunk + m) * m * Hq * D per chunk; plus:
 * d * Hq * D per slot and layer, and Wo in f32 once per tile.  Value norms are spread
 * over a layer's tiles, so that no unit of work is longer than the others. */
#include "compression/kvzip.h"

#include "engine/base/num.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

enum { LAYERWISE = PD__KVZIP_LAYERWISE, N_SINK = PD__KVZIP_N_SINK, PLUS = PD__KVZIP_PLUS, CHUNK = PD__KVZIP_CHUNK };
enum { OVERLAP = 8, PROMPT_ROWS = 256, VALUES = 32 };

typedef struct {
    const int32_t *lead[2]; /* what goes before the first chunk, and before the others */
    size_t n_lead[2];
    int32_t *ids;           /* of the replay at work */
    float *effect, *most;   /* plus: [Hq][n] of the layer at work: |Wo v|, and the largest weight times what its row counts */
} zip;

/* Weights count by what the value does: plus, or kvgrad, which has no such parameter. */
static bool weighs(const pd_press_inst *inst) {
    return inst->press->deferred->gradient || inst->p[PLUS] != 0.0;
}

/* The last parameter of every press that replays so. */
static size_t chunk_size(const pd_press_inst *inst) {
    return (size_t)inst->p[inst->press->n_params - 1];
}

pd_status pd__kvzip_open(const pd_press_inst *inst, pd_context *c, pd_err *err) {
    zip *z = pd_arena_zalloc(c->keep, 1, sizeof *z);
    if (!z) return pd_fail(err, PD_ENOMEM, NULL, "no memory for kvzip");
    c->state = z;
    PD_TRY(c->tokenize(c, "\n\nRepeat the previous context exactly.", &z->lead[0], &z->n_lead[0], err));
    PD_TRY(c->tokenize(c, "\n\nRepeat the part of the previous context exactly, starting with", &z->lead[1],
                       &z->n_lead[1], err));
    const size_t most = pd_max_size(z->n_lead[0], z->n_lead[1]) + OVERLAP + c->n_suffix + pd_min_size(c->n, chunk_size(inst));
    z->ids = PD_ARENA_NEW(c->keep, most, int32_t);
    const bool plus = weighs(inst);
    if (plus) z->effect = PD_ARENA_NEW(c->keep, c->n_head * c->n, float);
    if (plus) z->most = PD_ARENA_NEW(c->keep, c->n_head * c->n, float);
    if (!z->ids || (plus && (!z->effect || !z->most))) return pd_fail(err, PD_ENOMEM, NULL, "no memory for kvzip");
    return PD_OK;
}

/* Slots of chunk i; empty when there is none. */
static void chunk_of(const pd_press_inst *inst, const pd_context *c, size_t i, size_t *begin, size_t *end) {
    const size_t size = chunk_size(inst), left = c->n - c->n_prefix;
    *begin = i < pd_div_up(left, size) ? c->n_prefix + i * size : c->n;
    *end = pd_min_size(c->n, *begin + pd_min_size(size, left));
}

pd_status pd__kvzip_ids(const pd_press_inst *inst, pd_context *c, size_t i, const int32_t **ret, size_t *n, pd_err *err) {
    (void)err;
    zip *z = c->state;
    size_t begin, end, at = 0;
    chunk_of(inst, c, i, &begin, &end);
    *ret = z->ids;
    *n = 0;
    if (begin == end) return PD_OK;
    const size_t overlap = i > 0 ? pd_min_size(OVERLAP, chunk_size(inst)) : 0;
    const struct {
        const int32_t *id;
        size_t n;
    } part[] = {{z->lead[i > 0], z->n_lead[i > 0]}, {c->tokens + begin - overlap, overlap}, {c->suffix, c->n_suffix},
                {c->tokens + begin, end - begin}};
    for (size_t p = 0; p < 4; at += part[p++].n)
        if (part[p].n) memcpy(z->ids + at, part[p].id, part[p].n * sizeof *z->ids);
    *n = at;
    return PD_OK;
}

typedef struct {
    const pd_press_inst *inst;
    pd_context *c;
    const pd_replay_rows *r;
    size_t n_sink, begin, end;
    float **w; /* [thread]: weights, then VALUES products */
} job;

/* |Wo_q v|_2 of this tile's share of the chunk's slots. */
static void effects(const job *j, size_t head, float *y) {
    const pd_context *c = j->c;
    const pd_replay_rows *r = j->r;
    const size_t d = c->head_dim, h = head / (c->n_head / c->n_head_kv), ld = c->n_head * d, len = j->end - j->begin;
    const size_t end = j->begin + len * (r->row0 + r->n) / r->n_all;
    float *out = ((zip *)c->state)->effect + head * c->n;
    for (size_t t = j->begin + len * r->row0 / r->n_all; t < end; t += VALUES) {
        const size_t n = pd_min_size(VALUES, end - t);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)c->n_embd, (int)d, 1.0f, r->v[h] + t * d, (int)d,
                    r->wo + head * d, (int)ld, 0.0f, y, (int)c->n_embd);
        for (size_t i = 0; i < n; i++) out[t + i] = cblas_snrm2((int)c->n_embd, y + i * c->n_embd, 1);
    }
}

/* What a row counts: 1 / |x_row|_2, or its gradient's size. */
static float of_row(const job *j, size_t row) {
    if (j->r->grad) return j->r->grad[row];
    const float *x = j->r->x + row * j->c->n_embd;
    double sum = 0.0;
    for (size_t e = 0; e < j->c->n_embd; e++) sum += (double)x[e] * x[e];
    return (float)(1.0 / sqrt(sum));
}

static void one_head(void *ctx, size_t h, unsigned thread) {
    const job *j = ctx;
    pd_context *c = j->c;
    const pd_replay_rows *r = j->r;
    const size_t group = c->n_head / c->n_head_kv, width = pd__replay_columns(r, j->n_sink, j->begin, j->end);
    const bool plus = weighs(j->inst);
    float *w = j->w[thread], *score = c->score[r->layer * c->n_head_kv + h] + j->begin;
    const size_t len = j->end - j->begin;
    for (size_t head = h * group; head < (h + 1) * group; head++) {
        float *most = plus ? ((zip *)c->state)->most + head * c->n + j->begin : score;
        if (plus) effects(j, head, w + r->n * width);
        if (plus && r->row0 == 0) memset(most, 0, len * sizeof *most);
        pd__replay_softmax(c, r, head, j->n_sink, j->begin, j->end, 1.0f / sqrtf((float)c->head_dim), w);
        for (size_t i = 0; i < r->n; i++) {
            const float *row = w + i * width + j->n_sink, scale = plus ? of_row(j, i) : 1.0f;
            for (size_t t = 0; t < len; t++) most[t] = pd__larger(most[t], row[t] * scale);
        }
        if (!plus || r->row0 + r->n < r->n_all) continue;
        const float *effect = ((zip *)c->state)->effect + head * c->n + j->begin;
        for (size_t t = 0; t < len; t++) score[t] = pd__larger(score[t], most[t] * effect[t]);
    }
}

pd_status pd__kvzip_rows(const pd_press_inst *inst, pd_context *c, size_t i, const pd_replay_rows *r, pd_err *err) {
    job j = {.inst = inst, .c = c, .r = r};
    chunk_of(inst, c, i, &j.begin, &j.end);
    j.n_sink = pd_min_size((size_t)inst->p[N_SINK], j.begin);
    const size_t threads = pd_workers_count(r->workers), n = VALUES * c->n_embd + r->n * pd__replay_columns(r, j.n_sink, j.begin, j.end);
    j.w = PD_ARENA_NEW(r->tmp, threads, float *);
    for (size_t t = 0; j.w && t < threads; t++)
        if (!(j.w[t] = PD_ARENA_NEW(r->tmp, n, float))) j.w = NULL;
    if (!j.w) return pd_fail(err, PD_ENOMEM, NULL, "no memory to score %zu rows", r->n);
    pd_workers_run(r->workers, one_head, &j, c->n_head_kv);
    return PD_OK;
}

pd_status pd__kvzip_decide(const pd_press_inst *inst, pd_context *c, const pd_budget *budget, pd_plan *plan, pd_err *err) {
    float most = 0.0f;
    const size_t heads = c->n_layer * c->n_head_kv, n_sink = pd_min_size((size_t)inst->p[N_SINK], c->n);
    for (size_t i = 0; i < heads; i++)
        for (size_t s = 0; c->score[i] && s < c->n; s++) most = fmaxf(most, c->score[i][s]);
    for (size_t i = 0; i < heads; i++)
        for (size_t s = 0; c->score[i] && s < n_sink; s++) c->score[i][s] = most + 1.0f;
    return pd__plan_global(c, budget, inst->p[LAYERWISE] != 0.0, plan, err);
}

size_t pd__kvzip_most_rows(const pd_press_inst *inst, size_t n) {
    return pd_min_size(n, chunk_size(inst)) + PROMPT_ROWS;
}

void pd__kvzip_needs(const pd_press_inst *inst, pd_press_needs *n) {
    if (weighs(inst)) n->bits |= PD_NEEDS_WO;
}

const pd_param pd__kvzip_params[PD__KVZIP_PARAMS] = {
    [LAYERWISE] = {.name = "layerwise", .type = PD_PARAM_BOOL, .def = 0, .max = 1,
                   .doc = "the same share of every layer instead of one budget for all"},
    [N_SINK] = {.name = "n_sink", .type = PD_PARAM_INT, .def = 4, .min = 0, .max = 4096, .doc = "first tokens that stay"},
    [PLUS] = {.name = "kvzip_plus_normalization", .type = PD_PARAM_BOOL, .def = 0, .max = 1,
              .doc = "weigh by what the value does to the layer's output"},
    [CHUNK] = {.name = "chunk_size", .type = PD_PARAM_INT, .def = 2048, .min = 1, .max = 65536,
               .doc = "context tokens repeated at a time"},
};

static const pd_deferred deferred = {.most_rows = pd__kvzip_most_rows, .open = pd__kvzip_open, .ids = pd__kvzip_ids,
                                     .rows = pd__kvzip_rows, .decide = pd__kvzip_decide};

const pd_press pd_press_kvzip = {
    .name = "kvzip",
    .reference_class = "KVzipPress",
    .kind = "planner",
    .source = "arXiv 2505.23416",
    .doc = "Keeps what the model looks at when it repeats the context; one budget for all layers, and a second pass.",
    .ratio_doc = "its own",
    .params = pd__kvzip_params,
    .n_params = PD__KVZIP_PARAMS,
    .can = PD_CAN_DEFER,
    .needs = pd__kvzip_needs,
    .deferred = &deferred,
};
