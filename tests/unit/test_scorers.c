/* SPDX-License-Identifier: Apache-2.0 */
/* compression: the scorers of kvpress that look at more than a norm, each on
 * decoding views against a plain reading of its formula, and what no golden can
 * tell: sketches, budgets, degenerate inputs, who can do what.  (kvpress' own
 * numbers: test_press_golden; what holds for all scorers: test_press.) */
#include "tests/unit/press_case.h"

#include "compression/compactor.h"
#include "compression/shared.h"
#include "compression/sketch.h"

#include <cblas.h>
#include <float.h>
#include <stdio.h>

static float *writable(const float *p) {
    return (float *)(uintptr_t)p;
}

/* ---- what they can and need ---- */

static void each_says_what_it_can(void **state) {
    (void)state;
    enum { ALL = PD_CAN_SCORE | PD_CAN_SCORE_STEP | PD_CAN_SCORE_RAGGED | PD_CAN_PRUNE_STEP | PD_CAN_COMPOSE };
    static const struct {
        const char *text;
        unsigned can, bits;
        size_t least;
    } t[] = {
        {"lagkv", ALL | PD_CAN_SCORE_PART, 0, 1},
        {"cur", ALL | PD_CAN_SCORE_PART, 0, 1},
        {"cap:n_sink=6", ALL, PD_NEEDS_Q_MEAN, 7},
        {"critical(knorm)", ALL | PD_CAN_SCORE_PART, PD_NEEDS_WO, 1},
        {"critical(snapkv)", ALL, PD_NEEDS_WO | PD_NEEDS_Q_TAIL, 65},
        {"observed_attention", PD_CAN_SCORE | PD_CAN_COMPOSE, PD_NEEDS_ATT_SUM, 1},
        {"non_causal_attention", PD_CAN_SCORE | PD_CAN_COMPOSE, PD_NEEDS_Q_ALL, 1},
        {"leverage", PD_CAN_SCORE | PD_CAN_COMPOSE | PD_CAN_SCORE_PART, 0, 1},
        {"compactor", PD_CAN_SCORE | PD_CAN_COMPOSE, PD_NEEDS_Q_ALL, 13},
        {"compactor:sink_size_start=0,sink_size_end=0", PD_CAN_SCORE | PD_CAN_COMPOSE, PD_NEEDS_Q_ALL, 1},
        {"critical(leverage)", PD_CAN_SCORE | PD_CAN_COMPOSE | PD_CAN_SCORE_PART, PD_NEEDS_WO, 1},
        {"adakv(leverage)", 0, 0, 1},
        {"adakv(critical(cap))", PD_CAN_PRUNE_STEP | PD_CAN_SCORE_RAGGED, PD_NEEDS_WO | PD_NEEDS_Q_MEAN, 5},
        /* its plan is for prefill; its scores are good for any */
        {"pyramidkv", ALL & ~(unsigned)PD_CAN_PRUNE_STEP, PD_NEEDS_Q_TAIL, 65},
        {"adakv(pyramidkv)", PD_CAN_PRUNE_STEP | PD_CAN_SCORE_RAGGED, PD_NEEDS_Q_TAIL, 65},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        pd_press_inst *inst = inst_of(t[i].text);
        pd_press_needs needs;
        pd_press_collect_needs(inst, &needs);
        if (pd_press_inst_can(inst) != t[i].can)
            fail_msg("%s can 0x%x, not 0x%x", t[i].text, pd_press_inst_can(inst), t[i].can);
        if (needs.bits != t[i].bits) fail_msg("%s needs 0x%x, not 0x%x", t[i].text, needs.bits, t[i].bits);
        assert_int_equal(pd_press_min_tokens(inst), t[i].least);
        pd_press_inst_close(inst);
    }
}

static void what_was_not_collected_is_refused(void **state) {
    (void)state;
    static const struct {
        const char *text, *part;
        bool tail; /* the last queries are there, but not all */
    } t[] = {
        {"observed_attention", "no attention sums were collected for layer 3", false},
        {"non_causal_attention", "not every query was collected for layer 3", false},
        {"non_causal_attention", "not every query was collected for layer 3", true},
        {"compactor", "not every query was collected for layer 3", true},
        {"cap", "cap: no query moments for layer 3", true},
        {"critical(knorm)", "no output projection was collected for layer 3", true},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        test_view *v = tv_open(7, 60, 6, 2, 16);
        v->view.n_moments = 0;
        if (t[i].tail) {
            v->view.q += 20 * 6 * 16;
            v->view.q_pos += 20;
            v->view.q_rows = 40;
        } else {
            v->view.q = NULL;
        }
        pd_press_inst *inst = inst_of(t[i].text);
        pd_err err = {0};
        float **s = pd_scores_new(&v->view);
        assert_int_equal(pd_press_score(inst, &v->view, s, &err), PD_EINTERNAL);
        if (!strstr(err.msg, t[i].part)) fail_msg("%s: '%s'", t[i].text, err.msg);
        pd_press_inst_close(inst);
        tv_close(v);
    }
}

/* ---- the budget in the view ---- */

static void same_choice(const char *a, const char *b, test_view *t, pd_budget x, pd_budget y) {
    const pd_plan p = plan_of(a, t, x, NULL), q = plan_of(b, t, y, NULL);
    same_plan(a, &p, &q, t->view.n_head_kv, t->view.head_dim);
}

static void ratio_of_a_count(void **state) {
    (void)state;
    const pd_budget count = {.by_count = true, .count = 30}, many = {.by_count = true, .count = 300},
                    none = {.by_count = true}, ratio = {.ratio = 0.37};
    assert_true(pd_budget_ratio(&count, 120) == 0.75);
    assert_true(pd_budget_ratio(&many, 120) == 0.0);
    assert_true(pd_budget_ratio(&none, 4) == 0.75); /* one stays */
    assert_true(pd_budget_ratio(&count, 0) == 0.0);
    assert_true(pd_budget_ratio(&ratio, 120) == 0.37);
}

/* compactor's blending and critical's first stage follow the budget, however it is
 * said and whichever wrapper says it. */
static void scores_follow_the_budget(void **state) {
    (void)state;
    test_view *t = tv_open(31, 120, 6, 2, 16);
    tv_add_wo(t, 31);
    const pd_budget quarter = {.ratio = 0.75}, thirty = {.by_count = true, .count = 30}, half = {.ratio = 0.5};
    same_choice("compactor:chunk_size=50", "compactor:chunk_size=50,blending=0.75", t, quarter, quarter);
    same_choice("compactor:chunk_size=50", "compactor:chunk_size=50,blending=0.75", t, thirty, quarter);
    same_choice("critical(keydiff)", "critical(keydiff)", t, thirty, quarter);
    same_choice("composed(compactor@0.75)", "compactor:blending=0.75", t, half, quarter);
    same_choice("composed(critical(keydiff)@0.75)", "critical(keydiff)", t, half, quarter);
    same_choice("per_layer:compression_ratios=0.1*3;0.75;0.1*26(critical(keydiff))", "critical(keydiff)", t, half,
                quarter);
    same_choice("chunk:chunk_length=200(critical(keydiff))", "critical(keydiff)", t, thirty, quarter);
    /* and the blend does matter here */
    float **a = pd_scores_new(&t->view), **b = pd_scores_new(&t->view);
    plan_of("compactor", t, quarter, a);
    plan_of("compactor", t, half, b);
    assert_memory_not_equal(a[0], b[0], 120 * sizeof(float));
    tv_close(t);
}

/* Each chunk has its own part of a count, so its own first stage. */
static void a_chunk_has_its_part_of_the_count(void **state) {
    (void)state;
    test_view *t = tv_open(32, 120, 6, 2, 16);
    tv_add_wo(t, 32);
    const pd_budget forty = {.by_count = true, .count = 40}, ten = {.by_count = true, .count = 10};
    const pd_plan got = plan_of("chunk:chunk_length=30(critical(keydiff))", t, forty, NULL);
    test_view *u = tv_open(32, 120, 6, 2, 16);
    tv_add_wo(u, 32);
    u->view.n = u->n_h[0] = u->n_h[1] = 30; /* the first chunk alone */
    const pd_plan want = plan_of("critical(keydiff)", u, ten, NULL);
    for (size_t h = 0; h < 2; h++) {
        assert_int_equal(got.n_keep[h], 40);
        assert_memory_equal(got.keep[h], want.keep[h], 10 * sizeof(uint32_t));
        assert_true(got.keep[h][10] >= 30);
    }
    tv_close(u);
    tv_close(t);
}

/* ---- pyramidkv ---- */

static void the_pyramid_has_the_mean_asked_for(void **state) {
    (void)state;
    static const size_t lengths[] = {1024, 3000, 8192}, layers[] = {1, 2, 30, 32, 128};
    pd_press_inst *inst = inst_of("pyramidkv");
    for (size_t a = 0; a < 3; a++)
        for (size_t l = 0; l < 5; l++)
            for (int r = 1; r <= 8; r++) {
                const size_t n = lengths[a], n_layer = layers[l];
                const pd_budget b = {.ratio = 0.1 * r};
                inst->n_list = n_layer;
                double sum = 0.0, left = (double)n * (1.0 - b.ratio);
                size_t before = n;
                for (size_t i = 0; i < n_layer; i++) {
                    const size_t keep = pd_press_most(inst, &b, i, n);
                    assert_in_range(keep, 1, before);
                    before = keep;
                    sum += (double)keep;
                }
                /* one layer has the top of the pyramid, as in the reference */
                if (n_layer > 1 && fabs(sum / (double)n_layer - left) > 0.5 + 1e-3 * left)
                    fail_msg("%zu tokens, %zu layers, ratio %g: mean %g, not %g", n, n_layer, b.ratio,
                             sum / (double)n_layer, left);
                const pd_budget count = {.by_count = true, .count = (size_t)left};
                for (size_t i = 0; n % 10 == 0 && i < n_layer; i++)
                    assert_in_range(pd_press_most(inst, &count, i, n) + 1,
                                    pd_press_most(inst, &b, i, n), pd_press_most(inst, &b, i, n) + 2);
            }
    /* 8192 at 0.5: B = 4096, low 204.8, high 7987.2; at 0.9 low 40.96 is below the
     * window: all keep round(819.2).  1024 at 0.5: high 998.4 would take the window's
     * places: 960, and low 64. */
    inst->n_list = 30;
    assert_int_equal(pd_press_most(inst, &(pd_budget){.ratio = 0.5}, 0, 1024), 960);
    assert_int_equal(pd_press_most(inst, &(pd_budget){.ratio = 0.5}, 29, 1024), 64);
    assert_int_equal(pd_press_most(inst, &(pd_budget){.ratio = 0.9}, 29, 8192), 819);
    assert_int_equal(pd_press_most(inst, &(pd_budget){.ratio = 0.5}, 0, 8192), 7987);
    assert_int_equal(pd_press_most(inst, &(pd_budget){.ratio = 0.5}, 29, 8192), 205);
    assert_int_equal(pd_press_most(inst, &(pd_budget){.ratio = 0.5}, 0, 5), 2); /* 2.5, half to even */
    pd_press_inst_close(inst);
}

/* The plan keeps the best of snapkv's scores, as many as `most` reserves; wrappers
 * that spend a budget of their own lose the pyramid, per_layer keeps it. */
static void the_plan_follows_the_pyramid(void **state) {
    (void)state;
    static const char pyramid[] = "pyramidkv:window_size=4,beta=5";
    test_view *t = tv_open(33, 200, 6, 2, 16);
    t->view.n_layer = 30;
    pd_press_inst *inst = inst_of(pyramid);
    float **s = pd_scores_new(&t->view), **snap = scores_of("snapkv:window_size=4", t);
    const pd_budget b = {.ratio = 0.6};
    size_t before = 201;
    for (int layer = 0; layer < 30; layer += 7) {
        t->view.layer = layer;
        const pd_plan p = plan_of(pyramid, t, b, s);
        const size_t n = pd_press_most(inst, &b, (size_t)layer, 200);
        assert_true(n < before);
        before = n;
        for (size_t h = 0; h < 2; h++) {
            uint32_t want[200];
            assert_memory_equal(s[h], snap[h], 200 * sizeof(float));
            assert_int_equal(p.n_keep[h], n);
            assert_int_equal(pd_top_k(s[h], 200, n, want, NULL, NULL), PD_OK);
            assert_memory_equal(p.keep[h], want, n * sizeof *want);
        }
    }
    const pd_plan ada = plan_of("adakv(pyramidkv:window_size=4,beta=5)", t, b, NULL),
                  moved = plan_of("key_rerotation(pyramidkv:window_size=4,beta=5)", t, b, NULL);
    assert_int_equal(ada.n_keep[0] + ada.n_keep[1], 160);
    assert_int_equal(moved.n_keep[0], 80);
    same_choice("per_layer:compression_ratios=0.6*30(pyramidkv:window_size=4,beta=5)", pyramid, t, b, b);
    pd_press_inst_close(inst);
    tv_close(t);
}

/* ---- lagkv ---- */

/* std over channels of rows x, seen through the rows behind them; softmax. */
static void plain_spread(const float *x, size_t lag, double *out) {
    enum { D = 16 };
    double sum = 0.0;
    for (size_t i = 0; i < lag; i++) {
        double u[D], mean = 0.0, var = 0.0;
        for (size_t c = 0; c < D; c++) {
            double low = 1e300, high = -1e300;
            for (size_t r = lag; r < 2 * lag; r++) {
                low = fmin(low, (double)x[r * D + c]);
                high = fmax(high, (double)x[r * D + c]);
            }
            u[c] = high > low ? ((double)x[i * D + c] - low) / (high - low) : 0.0;
            mean += u[c] / D;
        }
        for (size_t c = 0; c < D; c++) var += (u[c] - mean) * (u[c] - mean) / (D - 1);
        sum += out[i] = exp(sqrt(var));
    }
    for (size_t i = 0; i < lag; i++) out[i] /= sum;
}

static void lagkv_is_the_formula(void **state) {
    (void)state;
    enum { LAG = 20, D = 16, N = 150 };
    for (int cross = 0; cross < 2; cross++) {
        test_view *t = tv_open(41, N, 6, 2, D);
        tv_make_step(t, 9, 1.0, 4); /* heads of about N / 2 and of one slot */
        for (size_t i = 0; i < t->n_h[0]; i++) writable(t->k[0])[i * D + 3] = 0.25f; /* no range */
        float **got = scores_of(cross ? "lagkv:lag_size=20,cross_scoring=true" : "lagkv:lag_size=20", t);
        size_t sinks = 0;
        while (t->pos[0][sinks] < 4) sinks++;
        const size_t n = t->n_h[0] - sinks, parts = n / LAG;
        assert_true(sinks < 4 && parts >= 3 && n % LAG != 0); /* what is left, not 4 slots; a remainder */
        for (size_t p = 0; p + 1 < parts; p++) {
            double k[LAG], v[LAG];
            const size_t first = sinks + p * LAG;
            plain_spread(t->k[0] + first * D, LAG, k);
            plain_spread(t->v[0] + first * D, LAG, v);
            for (size_t i = 0; i < LAG; i++) {
                size_t rank = 0;
                for (size_t o = 0; o < LAG; o++) rank += k[o] + v[o] < k[i] + v[i];
                assert_near((double)got[0][first + i], cross ? (k[i] + v[i]) / 2.0 : (double)rank / LAG, 1e-5,
                            "lagkv", 0, first + i);
            }
        }
        for (size_t i = 0; i < t->n_h[0]; i++)
            if (i < sinks || i >= sinks + (parts - 1) * LAG) assert_true(got[0][i] == 1.0f);
        /* the other head is too short for two partitions: its age */
        for (size_t i = 0; i < t->n_h[1]; i++)
            assert_true(got[1][i] == (t->pos[1][i] < 4 ? 1.0f : (float)i / (float)t->n_h[1]));
        tv_close(t);
    }
}

/* One repeated token: every channel is constant, every score a tie. */
static void lagkv_of_one_token(void **state) {
    (void)state;
    test_view *t = tv_open(42, 60, 6, 2, 16);
    for (size_t h = 0; h < 2; h++)
        for (size_t i = 0; i < 60 * 16; i++) {
            writable(t->k[h])[i] = (float)(i % 16);
            writable(t->v[h])[i] = 1.0f;
        }
    float **s = scores_of("lagkv:n_sink=0,lag_size=20", t);
    for (size_t h = 0; h < 2; h++)
        for (size_t i = 0; i < 60; i++) /* of equal scores the lower slot ranks higher */
            assert_near((double)s[h][i], i >= 40 ? 1.0 : (double)(19 - i % 20) / 20.0, 1e-6, "lagkv", h, i);
    tv_close(t);
}

/* A number that is none is not hidden behind a rank. */
static void lagkv_refuses_a_nan(void **state) {
    (void)state;
    test_view *t = tv_open(43, 60, 6, 2, 16);
    writable(t->v[1])[5 * 16 + 2] = NAN;
    pd_press_inst *inst = inst_of("lagkv:lag_size=20");
    pd_err err = {0};
    assert_int_equal(pd_press_score(inst, &t->view, pd_scores_new(&t->view), &err), PD_EINTERNAL);
    assert_non_null(strstr(err.msg, "'lagkv' gave no number for layer 3, head 1"));
    pd_press_inst_close(inst);
    tv_close(t);
}

/* ---- cur ---- */

static double squared(const float *x) {
    double s = 0.0;
    for (size_t e = 0; e < 16; e++) s += (double)x[e] * (double)x[e];
    return s;
}

static void cur_is_the_formula(void **state) {
    (void)state;
    enum { W = 7 };
    test_view *t = tv_open(51, 150, 6, 2, 16);
    tv_make_step(t, 8, 0.6, 4);
    for (size_t i = 0; i < W * 16; i++) writable(t->v[1])[W * 16 + i] = 0.0f; /* a window of nothing */
    float **got = scores_of("cur:local_window_size=7", t);
    for (size_t h = 0; h < 2; h++) {
        double want[150], sum = 0.0;
        for (size_t i = 0; i < t->n_h[h]; i++) {
            double ks = 0.0, vs = 0.0;
            for (size_t o = i / W * W; o < (i / W + 1) * W && o < t->n_h[h]; o++) {
                ks += squared(t->k[h] + o * 16);
                vs += squared(t->v[h] + o * 16);
            }
            want[i] = squared(t->k[h] + i * 16) / ks * (vs > 0.0 ? squared(t->v[h] + i * 16) / vs : 0.0);
            sum += want[i];
        }
        for (size_t i = 0; i < t->n_h[h]; i++)
            assert_near((double)got[h][i], t->pos[h][i] < 4 ? 1.0 : want[i] / sum, 1e-5, "cur", h, i);
    }
    tv_close(t);
}

/* Scores of nothing but zeros are zeros, the first sinks apart. */
static void cur_of_nothing(void **state) {
    (void)state;
    test_view *t = tv_open(52, 40, 6, 2, 16);
    for (size_t i = 0; i < 40 * 16; i++) writable(t->v[0])[i] = 0.0f;
    float **s = scores_of("cur", t);
    for (size_t i = 0; i < 40; i++) assert_true(s[0][i] == (i < 4 ? 1.0f : 0.0f));
    tv_close(t);
}

/* ---- random sketches ---- */

/* 64 k draws: mean and variance within 5 standard errors of N(0, scale^2), the
 * squares of neighbours (one Box-Muller pair) uncorrelated; the same for the same
 * seed and layer and no other. */
static void normals_are_normal(void **state) {
    (void)state;
    enum { N = 1 << 16 };
    test_view *t = tv_open(61, 5, 6, 2, 16);
    float *x = tv_floats(t, N), *y = tv_floats(t, N);
    pd__normals(&t->view, 0.5, x, N);
    double mean = 0.0, var = 0.0, pair = 0.0, fourth = 0.0;
    for (size_t i = 0; i < N; i++) {
        const double z = (double)x[i] / 0.5;
        mean += z / N;
        var += z * z / N;
        fourth += z * z * z * z / N;
        if (i % 2) pair += (z * z - 1.0) * (pow((double)x[i - 1] / 0.5, 2.0) - 1.0) / (N / 2);
    }
    assert_true(fabs(mean) < 5.0 / sqrt(N));
    assert_true(fabs(var - 1.0) < 5.0 * sqrt(2.0 / N));
    assert_true(fabs(fourth - 3.0) < 5.0 * sqrt(96.0 / N));
    assert_true(fabs(pair) < 5.0 * 2.0 / sqrt(N / 2.0));
    pd__normals(&t->view, 0.5, y, N - 1);
    assert_memory_equal(x, y, (N - 1) * sizeof *x); /* an odd number too */
    for (int other = 0; other < 2; other++) {
        t->view.seed = other ? 100 : 99;
        t->view.layer = other ? 3 : 4;
        pd__normals(&t->view, 0.5, y, N);
        size_t same = 0;
        for (size_t i = 0; i < N; i++) same += x[i] == y[i];
        assert_true(same < N / 1000);
    }
    tv_close(t);
}

static void sketches_follow_seed_and_layer(void **state) {
    (void)state;
    static const char *const text[] = {"leverage", "compactor:blending=1", "cur:use_random_leverage=true"};
    for (size_t i = 0; i < 3; i++) {
        test_view *t = tv_open(62, 60, 6, 2, 16);
        float **a = scores_of(text[i], t), **again = scores_of(text[i], t);
        t->view.layer = 4;
        float **layer = scores_of(text[i], t);
        t->view.layer = 3;
        t->view.seed = 100;
        float **seed = scores_of(text[i], t);
        for (size_t h = 0; h < 2; h++) {
            assert_memory_equal(a[h], again[h], 60 * sizeof(float));
            assert_memory_not_equal(a[h], layer[h], 60 * sizeof(float));
            assert_memory_not_equal(a[h], seed[h], 60 * sizeof(float));
        }
        tv_close(t);
    }
}

/* Solve A x = b (n x n, symmetric positive definite), in double. */
static void solve(const double *a0, size_t n, const double *b, double *x) {
    double a[32 * 32];
    assert_true(n <= 32);
    memcpy(a, a0, n * n * sizeof *a);
    memcpy(x, b, n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        for (size_t r = i + 1; r < n; r++) {
            const double f = a[r * n + i] / a[i * n + i];
            for (size_t c = i; c < n; c++) a[r * n + c] -= f * a[i * n + c];
            x[r] -= f * x[i];
        }
    for (size_t i = n; i-- > 0;) {
        for (size_t c = i + 1; c < n; c++) x[i] -= a[i * n + c] * x[c];
        x[i] /= a[i * n + i];
    }
}

/* leverage with a given sketch, keys at any positions and a scaled RoPE. */
static void leverage_is_the_formula(void **state) {
    (void)state;
    enum { N = 300, D = 16, K = 11, H = 2 };
    test_view *t = tv_open(63, N, 6, H, D);
    t->view.rope_scale = 1.25f;
    int32_t pos[N];
    for (int i = 0; i < N; i++) pos[i] = 900 + 3 * i; /* not the slots */
    static double raw[H][N][D], y[H][N][K];
    float *phi = tv_floats(t, H * D * K);
    pd_rng rng = {5};
    for (size_t i = 0; i < H * D * K; i++) phi[i] = pd_rng_f32(&rng);
    double want[H][N], mean_s = 0.0, var_s = 0.0;
    for (size_t h = 0; h < H; h++) {
        t->pos[h] = pos;
        double mean[D] = {0}, gram[K * K] = {0};
        for (size_t i = 0; i < N; i++)
            for (size_t e = 0; e < D / 2; e++) {
                const double angle = (double)((float)pos[i] * t->view.inv_freq[e]), c = cos(angle), s = sin(angle);
                const double a = (double)t->k[h][i * D + e], b = (double)t->k[h][i * D + e + D / 2];
                raw[h][i][e] = (a * c + b * s) / 1.25;
                raw[h][i][e + D / 2] = (b * c - a * s) / 1.25;
            }
        for (size_t i = 0; i < N; i++)
            for (size_t e = 0; e < D; e++) mean[e] += raw[h][i][e] / N;
        for (size_t i = 0; i < N; i++) {
            for (size_t c = 0; c < K; c++) {
                y[h][i][c] = 0.0;
                for (size_t e = 0; e < D; e++)
                    y[h][i][c] += (raw[h][i][e] - mean[e]) * (double)phi[(h * D + e) * K + c];
            }
            for (size_t a = 0; a < K; a++)
                for (size_t b = 0; b < K; b++) gram[a * K + b] += y[h][i][a] * y[h][i][b];
        }
        for (size_t a = 0; a < K; a++) gram[a * K + a] += 0.01;
        for (size_t i = 0; i < N; i++) {
            double x[K];
            solve(gram, K, y[h][i], x);
            want[h][i] = 0.0;
            for (size_t c = 0; c < K; c++) want[h][i] += x[c] * y[h][i][c];
            mean_s += want[h][i] / (H * N);
        }
    }
    for (size_t h = 0; h < H; h++)
        for (size_t i = 0; i < N; i++) var_s += pow(want[h][i] - mean_s, 2.0) / (H * N - 1);
    float **got = pd_scores_new(&t->view);
    pd_err err = {0};
    assert_int_equal(pd__leverage_score(&t->view, phi, K, got, &err), PD_OK);
    for (size_t h = 0; h < H; h++)
        for (size_t i = 0; i < N; i++) {
            const double z = (want[h][i] - mean_s) / sqrt(var_s);
            if (!(fabs((double)got[h][i] - z) <= 1e-4 * fmax(1.0, fabs(z))))
                fail_msg("leverage %zu %zu: %g, not %g", h, i, (double)got[h][i], z);
        }
    tv_close(t);
}

static void cholesky_factors_or_refuses(void **state) {
    (void)state;
    enum { N = 3 };
    float a[N * N] = {4, 2, -2, 99, 5, 1, 99, 99, 9};
    double work[N * N];
    assert_true(pd__cholesky(a, N, 1.0, work)); /* of A + I */
    static const double full[N][N] = {{5, 2, -2}, {2, 6, 1}, {-2, 1, 10}};
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j <= i; j++) {
            double s = 0.0;
            for (size_t c = 0; c <= j; c++) s += (double)a[i * N + c] * (double)a[j * N + c];
            assert_near(s, full[i][j], 1e-6, "L L^T", i, j);
        }
    assert_true(a[1] == 2.0f && a[2] == -2.0f && a[5] == 1.0f); /* the upper triangle stays */
    float x[2 * N] = {1, 2, 3, -1, 0, 5};
    pd__forward_solve(a, N, x, 2);
    for (size_t i = 0; i < 2; i++)
        for (size_t r = 0; r < N; r++) {
            double s = 0.0;
            for (size_t c = 0; c <= r; c++) s += (double)a[r * N + c] * (double)x[i * N + c];
            assert_true(fabs(s - (double[2][N]){{1, 2, 3}, {-1, 0, 5}}[i][r]) < 1e-6);
        }
    float bad[4] = {1, 2, 7, 1}; /* eigenvalues 3 and -1 */
    assert_false(pd__cholesky(bad, 2, 0.5, work));
    assert_true(bad[0] == 1.0f && bad[2] == 7.0f && bad[3] == 1.0f);
    assert_true(pd__cholesky(bad, 2, 1.5, work));
    float none[1] = {NAN};
    assert_false(pd__cholesky(none, 1, 1.0, work));
}

/* Equal keys have no spread: all scores are 0, whatever the sketch. */
static void leverage_of_one_key(void **state) {
    (void)state;
    test_view *t = tv_open(64, 30, 6, 2, 16);
    int32_t pos[30] = {0};
    for (size_t h = 0; h < 2; h++) {
        t->pos[h] = pos; /* all at one place, so that they are equal before RoPE too */
        for (size_t i = 0; i < 30 * 16; i++) writable(t->k[h])[i] = (float)(i % 16);
    }
    float **s = scores_of("leverage", t);
    for (size_t i = 0; i < 30; i++) assert_true(fabsf(s[1][i]) < 1e-3f);
    tv_close(t);
}

/* ---- compactor ---- */

static void compactor_sets_sinks_aside(void **state) {
    (void)state;
    test_view *t = tv_open(71, 90, 6, 2, 16);
    float **s = scores_of("compactor:sink_size_start=5,sink_size_end=3,blending=1", t);
    float max = -INFINITY;
    for (size_t h = 0; h < 2; h++)
        for (size_t i = 5; i < 87; i++) max = fmaxf(max, s[h][i]);
    for (size_t h = 0; h < 2; h++)
        for (size_t i = 0; i < 90; i++) assert_true(i >= 5 && i < 87 ? s[h][i] <= max : s[h][i] == max);
    /* the inner ones are what they are without the others */
    test_view *u = tv_open(71, 90, 6, 2, 16);
    for (size_t h = 0; h < 2; h++) {
        u->n_h[h] = 82;
        u->pos[h] += 5;
        u->k[h] += 5 * 16;
        u->v[h] += 5 * 16;
    }
    u->view.n = 82;
    float **l = scores_of("leverage", u), **a = scores_of("non_causal_attention", u);
    for (size_t h = 0; h < 2; h++)
        for (size_t i = 0; i < 82; i++) {
            const float want = l[h][i] + a[h][i];
            if (!(fabsf(s[h][5 + i] - want) <= 1e-5f)) fail_msg("%zu: %g %g", i, (double)s[h][5 + i], (double)want);
        }
    tv_close(u);
    /* a view of nothing but sinks (a wrapper may show one) has no best */
    t->view.n = t->n_h[0] = t->n_h[1] = t->view.n_seen = 8;
    s = scores_of("compactor:sink_size_start=5,sink_size_end=3", t);
    for (size_t i = 0; i < 8; i++) assert_true(s[0][i] == 0.0f);
    tv_close(t);
}

/* ---- cap, on decoding views ---- */

static void cap_is_the_formula(void **state) {
    (void)state;
    enum { D = 16, HALF = D / 2, G = 3, N = 290, FUTURE = 40 };
    test_view *t = tv_open(81, N, 6, 2, D);
    t->view.rope_scale = 1.25f;
    tv_make_step(t, 8, 0.5, 64);
    for (size_t e = 0; e < D; e++) writable(t->k[0])[60 * D + e] = 0.0f; /* no direction */
    float **got = scores_of("cap:tau=3,n_future_positions=40,epsilon=0.02", t);
    const pd_moments *m = pd_view_moments(&t->view, 0);
    static double want[2][N];
    double max = 0.0;
    for (size_t h = 0; h < 2; h++) {
        size_t first = 0;
        while (t->pos[h][first] < 4) first++;
        for (size_t i = 0; i < N; i++) want[h][i] = 0.0;
        for (size_t g = h * G; g < (h + 1) * G; g++) {
            double anchor[D] = {0}, len = 0.0, w[N], top = -1.0, a[D * D] = {0};
            for (int f = 0; f < FUTURE; f++)
                for (size_t e = 0; e < HALF; e++) {
                    const double angle = (double)(N + f) * (double)t->view.inv_freq[e], c = cos(angle), s = sin(angle);
                    const double x = (double)m->mean[g * D + e], y = (double)m->mean[g * D + e + HALF];
                    anchor[e] += x * c - y * s;
                    anchor[e + HALF] += y * c + x * s;
                }
            for (size_t e = 0; e < D; e++) len += anchor[e] * anchor[e];
            for (size_t i = first; i < t->n_h[h]; i++) {
                const float *k = t->k[h] + i * D;
                w[i] = 0.0;
                for (size_t e = 0; e < D; e++) w[i] += anchor[e] * (double)k[e];
                w[i] /= sqrt(len) * fmax(sqrt(squared(k)), 1e-12);
                top = fmax(top, w[i]);
            }
            for (size_t e = 0; e < D; e++) a[e * D + e] = 1.0;
            for (size_t i = first; i < t->n_h[h]; i++) {
                w[i] = exp(3.0 * (w[i] - top));
                const float *v = t->v[h] + i * D;
                for (size_t e = 0; e < D; e++)
                    for (size_t o = 0; o < D; o++) a[e * D + o] += (w[i] + 0.02) * (double)v[e] * (double)v[o];
            }
            for (size_t i = first; i < t->n_h[h]; i++) {
                double v[D], x[D], dot = 0.0;
                for (size_t e = 0; e < D; e++) v[e] = (double)t->v[h][i * D + e];
                solve(a, D, v, x);
                for (size_t e = 0; e < D; e++) dot += v[e] * x[e];
                want[h][i] += w[i] * dot / G;
            }
        }
        for (size_t i = first; i < t->n_h[h]; i++) max = fmax(max, want[h][i]);
    }
    for (size_t h = 0; h < 2; h++)
        for (size_t i = 0; i < t->n_h[h]; i++)
            assert_near((double)got[h][i], t->pos[h][i] < 4 ? max + 1.0 : want[h][i], 2e-4, "cap", h, i);
    tv_close(t);
}

/* ---- critical, on decoding views ---- */

static void critical_is_the_formula(void **state) {
    (void)state;
    enum { D = 16, HQ = 6, N = 150 };
    test_view *t = tv_open(91, N, HQ, 2, D);
    tv_add_wo(t, 91);
    tv_make_step(t, 8, 0.5, 4);
    float **child = scores_of("knorm", t), **got = pd_scores_new(&t->view);
    const pd_budget b = {.by_count = true, .count = 30};
    const pd_plan p = plan_of("critical:first_stage_ratio=0.35,epsilon=0.5(knorm)", t, b, got);
    for (size_t h = 0; h < 2; h++) {
        const size_t n = t->n_h[h];
        bool chosen[N] = {false};
        uint32_t best[N];
        assert_int_equal(p.n_keep[h], n < 30 ? n : 30);
        const size_t first = (size_t)((double)(n < 30 ? n : 30) * 0.35);
        assert_int_equal(pd_top_k(child[h], n, first, best, NULL, NULL), PD_OK);
        for (size_t i = 0; i < first; i++) chosen[best[i]] = true;
        for (size_t i = 0; i < n; i++) {
            double effect = 0.0;
            for (size_t q = 3 * h; q < 3 * h + 3; q++)
                for (size_t c = 0; c < HQ * D; c++) {
                    double y = 0.0;
                    for (size_t e = 0; e < D; e++)
                        y += (double)t->view.wo[c * HQ * D + q * D + e] * (double)t->v[h][i * D + e];
                    effect += fabs(y) / 3.0;
                }
            if (chosen[i])
                assert_true(got[h][i] == FLT_MAX);
            else
                assert_near((double)got[h][i], ((double)child[h][i] + 0.5) * effect, 1e-4, "critical", h, i);
        }
    }
    tv_close(t);
}

/* A protected slot takes a place of the first stage and stays; a product beyond f32
 * does not pass for one. */
static void critical_keeps_protected_and_finite(void **state) {
    (void)state;
    test_view *t = tv_open(92, 40, 6, 2, 16);
    tv_add_wo(t, 92);
    for (size_t e = 0; e < 16; e++) writable(t->v[0])[7 * 16 + e] = 1e38f;
    static uint8_t flag[40], none[40];
    flag[20] = flag[21] = flag[22] = 1;
    t->protect[0] = flag;
    t->protect[1] = none;
    t->view.protect = t->protect;
    float **s = pd_scores_new(&t->view);
    plan_of("critical(random:seed=1)", t, (pd_budget){.by_count = true, .count = 8}, s);
    size_t top = 0, chosen = 0;
    for (size_t i = 0; i < 40; i++) {
        top += isinf(s[0][i]) != 0;
        chosen += s[0][i] == FLT_MAX;
    }
    assert_int_equal(top, 3);
    assert_int_equal(chosen, 1); /* 4 of the first stage, 3 of them protected */
    assert_true(s[0][7] == FLT_MAX || s[0][7] == nextafterf(FLT_MAX, 0.0f));
    tv_close(t);
}

int main(void) {
    openblas_set_num_threads(1); /* as the engine does */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_says_what_it_can),
        cmocka_unit_test(what_was_not_collected_is_refused),
        cmocka_unit_test(ratio_of_a_count),
        cmocka_unit_test(scores_follow_the_budget),
        cmocka_unit_test(a_chunk_has_its_part_of_the_count),
        cmocka_unit_test(the_pyramid_has_the_mean_asked_for),
        cmocka_unit_test(the_plan_follows_the_pyramid),
        cmocka_unit_test(lagkv_is_the_formula),
        cmocka_unit_test(lagkv_of_one_token),
        cmocka_unit_test(lagkv_refuses_a_nan),
        cmocka_unit_test(cur_is_the_formula),
        cmocka_unit_test(cur_of_nothing),
        cmocka_unit_test(normals_are_normal),
        cmocka_unit_test(sketches_follow_seed_and_layer),
        cmocka_unit_test(leverage_is_the_formula),
        cmocka_unit_test(cholesky_factors_or_refuses),
        cmocka_unit_test(leverage_of_one_key),
        cmocka_unit_test(compactor_sets_sinks_aside),
        cmocka_unit_test(cap_is_the_formula),
        cmocka_unit_test(critical_is_the_formula),
        cmocka_unit_test(critical_keeps_protected_and_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
