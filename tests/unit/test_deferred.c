/* SPDX-License-Identifier: Apache-2.0 */
/* compression: presses that replay the context, shown a layer's rows: each against
 * a plain reading of its formula, however the rows are cut in tiles; and what is no
 * number is said.  (kvpress' own answers: tests/golden/replays_model.py.) */
#include "tests/unit/press_case.h"

#include "compression/deferred.h"

#include <float.h>
#include <string.h>

enum { N = 60, REPLAY_MAX = 100, HQ = 4, H = 2, D = 16, E = 40, LAYERS = 3, LAYER = 1 };

/* A context of N tokens, a layer of it and rows of a replay over it. */
typedef struct {
    pd_context c;
    pd_arena keep, tmp;
    int32_t tokens[N];
    float *score[LAYERS * H], values[LAYERS * H][N];
    float k[H][N + REPLAY_MAX][D], v[H][N + REPLAY_MAX][D], q[REPLAY_MAX][HQ][D], x[REPLAY_MAX][E], grad[REPLAY_MAX], wo[E][HQ * D];
    const float *k_of[H], *v_of[H];
} replayed;

static pd_status three_ids(const pd_context *c, const char *text, const int32_t **ids, size_t *n, pd_err *err) {
    static const int32_t some[3] = {7, 8, 9};
    (void)c;
    (void)text;
    (void)err;
    *ids = some;
    *n = 3;
    return PD_OK;
}

static void fill(float *x, size_t n, float scale, pd_rng *rng) {
    for (size_t i = 0; i < n; i++) x[i] = scale * pd_rng_f32(rng);
}

static replayed *open_context(size_t n_prefix) {
    static const int32_t suffix[2] = {5, 6};
    replayed *p = calloc(1, sizeof *p);
    if (!p) abort();
    pd_rng rng = {31};
    for (size_t i = 0; i < N; i++) p->tokens[i] = (int32_t)(100 + i);
    fill(p->k[0][0], sizeof p->k / sizeof(float), 2.0f, &rng);
    fill(p->v[0][0], sizeof p->v / sizeof(float), 1.0f, &rng);
    fill(p->q[0][0], sizeof p->q / sizeof(float), 2.0f, &rng);
    fill(p->x[0], sizeof p->x / sizeof(float), 1.0f, &rng);
    fill(p->wo[0], sizeof p->wo / sizeof(float), 0.5f, &rng);
    for (size_t i = 0; i < REPLAY_MAX; i++) p->grad[i] = 2.0f + pd_rng_f32(&rng);
    for (size_t h = 0; h < H; h++) {
        p->k_of[h] = p->k[h][0];
        p->v_of[h] = p->v[h][0];
        p->score[LAYER * H + h] = p->values[LAYER * H + h]; /* the other layers are not pressed */
    }
    p->c = (pd_context){.n_layer = LAYERS, .n_head = HQ, .n_head_kv = H, .head_dim = D, .n_embd = E, .attn_scale = 0.3f,
                        .n = N, .tokens = p->tokens, .n_prefix = n_prefix, .suffix = suffix, .n_suffix = 2,
                        .tokenize = three_ids, .score = p->score, .keep = &p->keep};
    return p;
}

static void close_context(replayed *p) {
    pd_arena_done(&p->keep);
    pd_arena_done(&p->tmp);
    free(p);
}

/* Show the press every replay's rows of the layer, `tile` at a time; the number of replays. */
static size_t show(replayed *p, const pd_press_inst *inst, size_t tile) {
    const pd_deferred *d = inst->press->deferred;
    pd_err err = {0};
    assert_int_equal(d->open(inst, &p->c, &err), PD_OK);
    for (size_t i = 0;; i++) {
        const int32_t *ids;
        size_t n;
        assert_int_equal(d->ids(inst, &p->c, i, &ids, &n, &err), PD_OK);
        if (n == 0) return i;
        assert_true(n <= d->most_rows(inst, N) && n <= REPLAY_MAX);
        for (size_t row = 0; row < n; row += tile) {
            const pd_replay_rows r = {.layer = LAYER, .row0 = row, .n = row + tile < n ? tile : n - row, .n_all = n,
                                      .q = p->q[row][0], .x = d->gradient ? NULL : p->x[row],
                                      .grad = d->gradient ? p->grad + row : NULL, .k = p->k_of, .v = p->v_of, .wo = p->wo[0],
                                      .kern = &tv_kernels, .tmp = &p->tmp};
            pd_arena_reset(&p->tmp);
            if (d->rows(inst, &p->c, i, &r, &err) != PD_OK) fail_msg("%s", err.msg);
        }
    }
}

/* Softmax of replay row i of query head q over the sinks, the chunk and the replay so far. */
static void plain_weights(const replayed *p, size_t q, size_t i, size_t n_sink, size_t begin, size_t end, double scale, double *w) {
    double sum = 0.0, z[N + REPLAY_MAX];
    const size_t h = q / (HQ / H);
    for (size_t t = 0; t < N + i + 1; t++) {
        z[t] = 0.0;
        if (!(t < n_sink || (t >= begin && t < end) || t >= N)) continue;
        double dot = 0.0;
        for (size_t e = 0; e < D; e++) dot += (double)p->q[i][q][e] * (double)p->k[h][t][e];
        z[t] = exp(dot * scale);
        sum += z[t];
    }
    for (size_t t = begin; t < end; t++) w[t] = z[t] / sum;
}

static double norm_of(const replayed *p, size_t q, size_t slot) {
    double sum = 0.0;
    for (size_t e = 0; e < E; e++) {
        double y = 0.0;
        for (size_t i = 0; i < D; i++) y += (double)p->wo[e][q * D + i] * (double)p->v[q / (HQ / H)][slot][i];
        sum += y * y;
    }
    return sqrt(sum);
}

static void kvzip_is_the_most_looked_at(void **state) {
    (void)state;
    static const char *const presses[] = {"kvzip:chunk_size=20,n_sink=3", "kvzip:chunk_size=20,n_sink=3,kvzip_plus_normalization=true",
                                          "kvgrad:chunk_size=20,n_sink=3"};
    for (int plus = 0; plus < 3; plus++) {
        pd_press_inst *inst = inst_of(presses[plus]);
        float whole[H][N] = {{0}};
        for (size_t tile = REPLAY_MAX; tile > 3; tile /= 3) {
            replayed *p = open_context(5);
            assert_int_equal(show(p, inst, tile), 3); /* of 55 slots behind the prefix */
            if (tile == REPLAY_MAX)
                for (size_t h = 0; h < H; h++) memcpy(whole[h], p->score[LAYER * H + h], sizeof whole[h]);
            for (size_t h = 0; h < H; h++)
                for (size_t t = 0; t < N; t++) {
                    double want = 0.0, w[N];
                    const size_t chunk = t < 5 ? 0 : (t - 5) / 20, begin = 5 + chunk * 20, end = begin + 20 < N ? begin + 20 : N;
                    const size_t rows = 3 + (chunk ? 8 : 0) + 2 + end - begin; /* prompt, overlap, suffix, chunk */
                    for (size_t q = h * 2; t >= 5 && q < h * 2 + 2; q++)
                        for (size_t i = 0; i < rows; i++) {
                            plain_weights(p, q, i, 3, begin, end, 0.25, w);
                            double x = w[t], len = 0.0;
                            for (size_t e = 0; plus && e < E; e++) len += (double)p->x[i][e] * (double)p->x[i][e];
                            if (plus) x *= norm_of(p, q, t) * (plus == 1 ? 1.0 / sqrt(len) : (double)p->grad[i]);
                            want = fmax(want, x);
                        }
                    assert_near(p->score[LAYER * H + h][t], want, 1e-5, "kvzip", h, t);
                    assert_near(p->score[LAYER * H + h][t], whole[h][t], 1e-6, "tiles", h, t);
                }
            close_context(p);
        }
        pd_press_inst_close(inst);
    }
}

static void kvcompose_joins_rows_groups_and_heads(void **state) {
    (void)state;
    static const struct {
        const char *press;
        bool task_max, group_max, norm, mean;
    } cases[] = {{"kvcompose", true, false, false, true},
                 {"kvcompose:agg_task=mean,agg_group=max,add_v_norm=true,add_mean_across_heads=false", false, true, true, false}};
    for (size_t c = 0; c < 2; c++)
        for (size_t tile = REPLAY_MAX; tile > 3; tile /= 3) {
            pd_press_inst *inst = inst_of(cases[c].press);
            replayed *p = open_context(5);
            assert_int_equal(show(p, inst, tile), 1);
            for (size_t t = 0; t < N; t += 7) {
                double s[H];
                for (size_t h = 0; h < H; h++) {
                    double a[2] = {0.0, 0.0}, w[N], norm = 0.0;
                    for (size_t g = 0; g < 2; g++)
                        for (size_t i = 0; i < N; i++) {
                            plain_weights(p, h * 2 + g, i, 0, 0, N, (double)0.3f, w);
                            a[g] = cases[c].task_max ? fmax(a[g], w[t]) : a[g] + w[t] / N;
                        }
                    s[h] = cases[c].group_max ? fmax(a[0], a[1]) : (a[0] + a[1]) / 2.0;
                    for (size_t e = 0; e < D; e++) norm += (double)p->v[h][t][e] * (double)p->v[h][t][e];
                    if (cases[c].norm) s[h] *= sqrt(norm);
                }
                for (size_t h = 0; h < H; h++)
                    assert_near(p->score[LAYER * H + h][t], s[h] + (cases[c].mean ? (s[0] + s[1]) / 2.0 : 0.0), 1e-5, cases[c].press, h, t);
            }
            close_context(p);
            pd_press_inst_close(inst);
        }
}

/* A query that is no number makes scores that are none, wherever it stands, and the
 * decision is refused; so it is with an input or a value of the plus variant. */
static void no_number_is_no_score(void **state) {
    (void)state;
    static const char *const presses[] = {"kvzip:chunk_size=20", "kvzip:kvzip_plus_normalization=true", "kvcompose",
                                          "kvcompose:agg_task=mean,agg_group=max", "kvgrad:chunk_size=20"};
    for (size_t i = 0; i < sizeof presses / sizeof *presses; i++)
        for (int where = 0; where < (i == 1 || i == 4 ? 4 : 2); where++) {
            pd_press_inst *inst = inst_of(presses[i]);
            replayed *p = open_context(0);
            pd_err err = {0};
            if (where == 1) p->q[9][3][2] = NAN;
            if (where == 2) p->x[9][0] = p->grad[9] = NAN;
            if (where == 3) p->v[1][30][2] = NAN;
            show(p, inst, 20);
            const pd_status rc = pd_context_check(&p->c, "x", &err);
            if (rc != (where ? PD_EINTERNAL : PD_OK)) fail_msg("%s %d: %s", presses[i], where, err.msg);
            if (where == 1 && !strstr(err.msg, "press 'x' gave no number for layer 1, head ")) fail_msg("%s", err.msg);
            close_context(p);
            pd_press_inst_close(inst);
        }
}

/* A head whose every score is below all others' keeps its best slot; the others keep what the
 * budget says, as kvpress would have it. */
static void every_head_keeps_a_slot_of_one_budget(void **state) {
    (void)state;
    replayed *p = open_context(0);
    pd_err err = {0};
    pd_plan plan[LAYERS] = {0};
    pd_rng rng = {5};
    for (size_t i = 0; i < LAYERS * H; i++) {
        p->score[i] = p->values[i];
        for (size_t s = 0; s < N; s++) p->values[i][s] = pd_rng_f32(&rng) + (i == 3 ? -3.0f : 0.0f);
    }
    p->values[3][17] = -1.5f;
    const pd_budget b = {.ratio = 0.75};
    if (pd__plan_global(&p->c, &b, false, plan, &err) != PD_OK) fail_msg("%s", err.msg);
    size_t kept = 0;
    for (size_t i = 0; i < LAYERS * H; i++) kept += plan[i / H].n_keep[i % H];
    assert_int_equal(plan[1].n_keep[1], 1);
    assert_int_equal(plan[1].keep[1][0], 17);
    assert_int_equal(kept, LAYERS * H * N / 4 + 1);
    close_context(p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kvzip_is_the_most_looked_at),
        cmocka_unit_test(kvcompose_joins_rows_groups_and_heads),
        cmocka_unit_test(no_number_is_no_score),
        cmocka_unit_test(every_head_keeps_a_slot_of_one_budget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
