/* SPDX-License-Identifier: Apache-2.0 */
/* compression: budgets, top-k, the driver, and each press against a plain
 * double-precision reading of its formula.  (kvpress' own numbers: test_press_golden.) */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compression/press.h"
#include "compression/shared.h"
#include "compression/spec.h"
#include "compression/value_effect.h"
#include "tests/unit/press_case.h"

#include <cblas.h>
#include <float.h>
#include <stdio.h>

/* ---- budgets and selection ---- */

static void budget_rule(void **state) {
    (void)state;
    static const struct {
        size_t n;
        double ratio;
        size_t keep;
    } t[] = {{100, .9, 9},    {1000, .9, 99}, {10, .9, 1},    {20, .15, 17},
             {1024, .9, 102}, {300, .5, 150}, {7, 0, 7},      {7, 1, 1},
             {1, .99, 1},     {23, .4, 13},   {256, .1, 230}, {0, .5, 0}};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        const pd_budget b = {.ratio = t[i].ratio};
        assert_int_equal(pd_budget_keep(&b, t[i].n), t[i].keep);
    }
    const pd_budget c = {.by_count = true, .count = 5}, zero = {.by_count = true};
    assert_int_equal(pd_budget_keep(&c, 4), 4);
    assert_int_equal(pd_budget_keep(&c, 6), 5);
    assert_int_equal(pd_budget_keep(&zero, 6), 1);
}

typedef struct {
    float s;
    uint32_t slot;
} ranked;

static int by_rank(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->s != y->s) return x->s < y->s ? 1 : -1;
    return x->slot < y->slot ? -1 : 1;
}

static void top_k_is_the_sorted_prefix(void **state) {
    (void)state;
    pd_rng rng = {7};
    enum { N = 300 };
    static float s[N];
    static ranked r[N];
    static uint32_t keep[N];
    for (int round = 0; round < 400; round++) {
        const size_t n = 1 + pd_rng_u64(&rng) % N, k = 1 + pd_rng_u64(&rng) % n;
        const unsigned kind = round % 4; /* distinct, heavy ties, extremes, near-equal bits */
        for (size_t i = 0; i < n; i++) {
            static const float extreme[] = {INFINITY, -INFINITY, FLT_MAX, -FLT_MAX,
                                            0.0f,     -0.0f,     FLT_MIN, 1e-45f};
            const float u = pd_rng_f32(&rng);
            s[i] = kind == 0   ? u
                   : kind == 1 ? floorf(u * 3.0f)
                   : kind == 2 ? extreme[pd_rng_u64(&rng) % 8]
                               : 1.0f + 1e-6f * u;
            r[i] = (ranked){s[i], (uint32_t)i};
        }
        qsort(r, n, sizeof *r, by_rank);
        assert_int_equal(pd_top_k(s, n, k, keep, NULL, NULL), PD_OK);
        bool want[N] = {false};
        for (size_t i = 0; i < k; i++) want[r[i].slot] = true;
        size_t out = 0;
        for (size_t i = 0; i < n; i++) {
            if (!want[i]) continue;
            if (keep[out] != i)
                fail_msg("round %d n %zu k %zu: place %zu is %u, not %zu", round, n, k, out,
                         keep[out], i);
            out++;
        }
    }
}

/* ---- the driver ---- */

static const char *const scorers[] = {
    "random",
    "random:seed=7",
    "knorm",
    "keydiff",
    "streaming_llm",
    "snapkv:window_size=9",
    "tova",
    "observed_attention",
    "expected_attention",
    "expected_attention:use_covariance=false,epsilon=0.01",
    "lagkv",
    "lagkv:lag_size=16",
    "cur",
    "cur:use_random_leverage=true",
    "non_causal_attention:chunk_size=100",
    "leverage:sketch_dimension=13",
    "compactor:chunk_size=90",
    "cap",
    "critical(keydiff)",
    "critical:first_stage_ratio=0.2(cap)",
};
enum { N_SCORER = sizeof scorers / sizeof *scorers };

/* A view that holds whatever a scorer may ask for. */
static test_view *open_full(const char *press, uint64_t seed, size_t n) {
    test_view *t = tv_open(seed, n, 6, 2, 16);
    tv_add_wo(t, seed);
    if (strstr(press, "observed_attention")) tv_add_att_sum(t);
    return t;
}

static bool works_in_steps(const char *press) {
    pd_press_inst *inst = inst_of(press);
    const bool yes = pd_press_inst_can(inst) & PD_CAN_SCORE_STEP;
    pd_press_inst_close(inst);
    return yes;
}

/* Kept slots are exactly the best-scored, as many as the rule says, ascending. */
static void kept_are_the_best(void **state) {
    (void)state;
    static const double ratios[] = {0.1, 0.25, 0.5, 0.75, 0.9, 1.0};
    for (size_t p = 0; p < N_SCORER; p++)
        for (size_t step = 0; step < (works_in_steps(scorers[p]) ? 2u : 1u); step++)
            for (size_t r = 0; r < 6; r++) {
                test_view *t = open_full(scorers[p], 11 + p, 128);
                if (step) tv_make_step(t, 5, 0.6, 32);
                float **s = pd_scores_new(&t->view);
                const pd_budget b = {.ratio = ratios[r]};
                const pd_plan plan = plan_of(scorers[p], t, b, s);
                assert_false(plan.keep_all || plan.rerotate || plan.v_new);
                for (size_t h = 0; h < 2; h++) {
                    const size_t n = t->view.n_h[h], k = pd_budget_keep(&b, n);
                    assert_int_equal(plan.n_keep[h], k);
                    bool kept[128] = {false};
                    float worst = INFINITY;
                    size_t last_tie = 0;
                    for (size_t i = 0; i < k; i++) {
                        const uint32_t slot = plan.keep[h][i];
                        assert_true(slot < n && (i == 0 || slot > plan.keep[h][i - 1]));
                        kept[slot] = true;
                        worst = fminf(worst, s[h][slot]);
                    }
                    for (size_t i = 0; i < n; i++)
                        if (kept[i] && s[h][i] == worst) last_tie = i;
                    for (size_t i = 0; i < n; i++)
                        if (!kept[i])
                            assert_true(s[h][i] < worst || (s[h][i] == worst && i > last_tie));
                }
                tv_close(t);
            }
}

static void nothing_to_do_is_keep_all(void **state) {
    (void)state;
    test_view *t = tv_open(1, 40, 6, 2, 16);
    /* before any scoring: a view without moments would be refused by the press */
    t->view.n_moments = 0;
    assert_true(plan_of("expected_attention", t, (pd_budget){.ratio = 0}, NULL).keep_all);
    assert_true(plan_of("expected_attention", t, (pd_budget){.by_count = true, .count = 40}, NULL)
                    .keep_all);
    pd_press_inst *inst = inst_of("expected_attention");
    pd_err err = {0};
    pd_plan plan;
    assert_int_equal(pd_press_plan(inst, &t->view, &(pd_budget){.ratio = 0.5}, &plan, NULL, &err),
                     PD_EINTERNAL);
    assert_non_null(strstr(err.msg, "layer 3"));
    pd_press_inst_close(inst);
    tv_close(t);
}

static void protected_slots_stay(void **state) {
    (void)state;
    for (size_t p = 0; p < N_SCORER; p++) {
        test_view *t = open_full(scorers[p], 3, 60);
        uint8_t flag[2][60] = {{0}};
        for (size_t i = 10; i < 30; i++) flag[0][i] = 1;
        flag[1][59] = 1;
        t->protect[0] = flag[0];
        t->protect[1] = flag[1];
        t->view.protect = t->protect;
        const pd_plan plan =
            plan_of(scorers[p], t, (pd_budget){.by_count = true, .count = 6}, NULL);
        assert_int_equal(plan.n_keep[0], 20); /* more are protected than the budget has */
        for (size_t i = 0; i < 20; i++) assert_int_equal(plan.keep[0][i], 10 + i);
        assert_int_equal(plan.n_keep[1], 6);
        assert_int_equal(plan.keep[1][5], 59);
        tv_close(t);
    }
}

static void a_nan_is_refused(void **state) {
    (void)state;
    test_view *t = tv_open(3, 40, 6, 2, 16);
    ((float *)(uintptr_t)t->view.k[1])[5 * 16 + 2] = NAN;
    pd_press_inst *inst = inst_of("knorm");
    pd_err err = {0};
    float **s = pd_scores_new(&t->view);
    assert_int_equal(pd_press_score(inst, &t->view, s, &err), PD_EINTERNAL);
    assert_non_null(strstr(err.msg, "'knorm' gave no number for layer 3, head 1, slot 5"));
    pd_press_inst_close(inst);
    tv_close(t);
}

/* The same bits whatever the number of threads. */
static void threads_change_nothing(void **state) {
    (void)state;
    for (size_t p = 0; p < N_SCORER; p++) {
        float **s[3];
        test_view *t[3];
        for (unsigned w = 0; w < 3; w++) {
            t[w] = open_full(scorers[p], 21, 700);
            if (w > 0) assert_int_equal(pd_workers_open(&t[w]->view.workers, w + 1, NULL), PD_OK);
            s[w] = scores_of(scorers[p], t[w]);
        }
        for (unsigned w = 1; w < 3; w++)
            for (size_t h = 0; h < 2; h++)
                assert_memory_equal(s[0][h], s[w][h], 700 * sizeof(float));
        for (unsigned w = 0; w < 3; w++) {
            pd_workers_close(t[w]->view.workers);
            tv_close(t[w]);
        }
    }
}

static void needs_and_least_tokens(void **state) {
    (void)state;
    pd_press_needs n;
    pd_press_collect_needs(NULL, &n);
    assert_int_equal(n.bits, 0);
    pd_press_inst *inst = inst_of("expected_attention:n_sink=7");
    pd_press_collect_needs(inst, &n);
    assert_int_equal(n.bits, PD_NEEDS_Q_COV | PD_NEEDS_Q_MEAN);
    assert_int_equal(n.n_moments, 1);
    assert_int_equal(n.n_sink[0], 7);
    assert_int_equal(pd_press_min_tokens(inst), 8);
    pd_press_inst_close(inst);
    inst = inst_of("expected_attention:use_covariance=false");
    pd_press_collect_needs(inst, &n);
    assert_int_equal(n.bits, PD_NEEDS_Q_MEAN);
    pd_press_inst_close(inst);
    inst = inst_of("streaming_llm:n_sink=9");
    assert_int_equal(pd_press_min_tokens(inst), 10);
    pd_press_inst_close(inst);
    inst = inst_of("adakv(snapkv:window_size=80)");
    pd_press_collect_needs(inst, &n);
    assert_int_equal(n.bits, PD_NEEDS_Q_TAIL);
    assert_int_equal(n.q_tail, 80);
    assert_int_equal(pd_press_min_tokens(inst), 81);
    assert_int_equal(pd_press_inst_can(inst), PD_CAN_PRUNE_STEP | PD_CAN_SCORE_RAGGED);
    pd_press_inst_close(inst);
    inst = inst_of("key_rerotation(tova)");
    assert_int_equal(pd_press_min_tokens(inst), 2);
    assert_int_equal(pd_press_inst_can(inst), PD_CAN_COMPOSE);
    pd_press_inst_close(inst);
    inst = inst_of("knorm");
    assert_int_equal(pd_press_min_tokens(inst), 1);
    assert_true(pd_press_inst_can(inst) & PD_CAN_SCORE);
    pd_press_reset(inst);
    pd_press_inst_close(inst);
}

/* A tree may ask for a few sets of moments; one too many is marked, not lost. */
static void moments_are_bounded(void **state) {
    (void)state;
    pd_press_needs n = {0};
    for (size_t i = 0; i < PD_MOMENTS_MAX; i++) {
        pd__need_moments(&n, 0, i);
        pd__need_moments(&n, PD_NEEDS_Q_COV, i); /* the same set again */
    }
    assert_int_equal(n.n_moments, PD_MOMENTS_MAX);
    assert_int_equal(n.bits, PD_NEEDS_Q_MEAN | PD_NEEDS_Q_COV);
    pd__need_moments(&n, 0, 99);
    assert_int_equal(n.n_moments, PD_MOMENTS_MAX);
    assert_true(n.bits & PD_NEEDS_TOO_MANY);
}

/* ---- each press ---- */

static void random_is_seeded(void **state) {
    (void)state;
    test_view *t = tv_open(3, 40, 6, 2, 16);
    /* torch.manual_seed(7); torch.rand(2): 0.5349, 0.1988 */
    float **a = scores_of("random:seed=7", t);
    assert_near((double)a[0][0], 0.5349, 1e-3, "random", 0, 0);
    assert_near((double)a[0][1], 0.1988, 1e-3, "random", 0, 1);
    float **b = scores_of("random", t);
    float **c = scores_of("random", t);
    assert_memory_equal(b[1], c[1], 40 * sizeof(float));
    assert_memory_not_equal(b[0], b[1], 40 * sizeof(float));
    t->view.layer++;
    c = scores_of("random", t);
    assert_memory_not_equal(b[1], c[1], 40 * sizeof(float));
    t->view.layer--;
    t->view.n_seen++;
    c = scores_of("random", t);
    assert_memory_not_equal(b[1], c[1], 40 * sizeof(float));
    t->view.n_seen--;
    t->view.seed++;
    c = scores_of("random", t);
    assert_memory_not_equal(b[1], c[1], 40 * sizeof(float));
    t->view.layer++; /* a torch seed is every layer's */
    c = scores_of("random:seed=7", t);
    assert_memory_equal(a[1], c[1], 40 * sizeof(float));
    for (size_t i = 0; i < 40; i++) assert_true(b[0][i] >= 0.0f && b[0][i] < 1.0f);
    tv_close(t);
}

static void knorm_is_minus_the_norm(void **state) {
    (void)state;
    test_view *t = tv_open(4, 300, 6, 2, 16);
    tv_make_step(t, 8, 0.5, 4);
    float **s = scores_of("knorm", t);
    for (size_t h = 0; h < 2; h++)
        for (size_t i = 0; i < t->view.n_h[h]; i++) {
            double n = 0.0;
            for (size_t e = 0; e < 16; e++) n += pow((double)t->k[h][i * 16 + e], 2.0);
            assert_near((double)s[h][i], -sqrt(n), 1e-6, "knorm", h, i);
        }
    tv_close(t);
}

static void streaming_keeps_both_ends(void **state) {
    (void)state;
    test_view *t = tv_open(4, 100, 6, 2, 16);
    for (size_t keep = 1; keep < 100; keep += 7) {
        const pd_plan plan =
            plan_of("streaming_llm", t, (pd_budget){.by_count = true, .count = keep}, NULL);
        for (size_t i = 0; i < keep; i++)
            assert_int_equal(plan.keep[1][i],
                             i < 4 ? i : 100 - keep + i); /* fewer than the sinks: the first ones */
    }
    tv_make_step(t, 8, 0.5, 4); /* slots are not positions any more */
    const pd_plan plan =
        plan_of("streaming_llm", t, (pd_budget){.by_count = true, .count = 10}, NULL);
    for (size_t h = 0; h < 2; h++) {
        size_t sinks = 0;
        while (t->pos[h][sinks] < 4) sinks++;
        for (size_t i = 0; i < 10; i++)
            assert_int_equal(plan.keep[h][i], i < sinks ? i : t->view.n_h[h] - 10 + i);
    }
    tv_close(t);
}

/* The formula at the head of expected_attention.c, in double, with the rotation
 * averaged position by position. */
static void expected_attention_is_the_formula(void **state) {
    (void)state;
    enum { D = 16, HALF = D / 2, HQ = 6, H = 2, G = HQ / H };
    static const struct {
        const char *text;
        bool step, cov, vnorm;
        int n_sink, n_future;
        double eps;
    } t[] = {
        {"expected_attention", false, true, true, 4, 512, 0},
        {"expected_attention", true, true, true, 4, 512, 0},
        {"expected_attention:use_covariance=false,n_future_positions=1", false, false, true, 4, 1,
         0},
        {"expected_attention:use_vnorm=false,n_sink=0", false, true, false, 0, 512, 0},
        {"expected_attention:epsilon=0.02,n_future_positions=37", true, true, true, 4, 37, 0.02},
    };
    for (size_t c = 0; c < sizeof t / sizeof *t; c++) {
        test_view *v = tv_open(40 + c, 290, HQ, H, D);
        v->view.rope_scale = 1.25f;
        if (t[c].step) tv_make_step(v, 8, 0.5, 64);
        float **got = scores_of(t[c].text, v);
        double cs[HALF] = {0}, sn[HALF] = {0}, want[H][290], max = 0.0;
        for (int f = 0; f < t[c].n_future; f++)
            for (size_t i = 0; i < HALF; i++) {
                cs[i] += 1.25 * cos((290.0 + f) * (double)v->view.inv_freq[i]) / t[c].n_future;
                sn[i] += 1.25 * sin((290.0 + f) * (double)v->view.inv_freq[i]) / t[c].n_future;
            }
        double rot[D][D] = {{0}};
        for (size_t i = 0; i < HALF; i++) {
            rot[i][i] = rot[i + HALF][i + HALF] = cs[i];
            rot[i][i + HALF] = -sn[i];
            rot[i + HALF][i] = sn[i];
        }
        const pd_moments *m = pd_view_moments(&v->view, t[c].step ? 0 : (size_t)t[c].n_sink);
        for (size_t h = 0; h < H; h++) {
            const size_t n = v->view.n_h[h];
            size_t first = 0;
            while (v->pos[h][first] < t[c].n_sink) first++;
            for (size_t i = 0; i < n; i++) want[h][i] = 0.0;
            for (size_t g = h * G; g < (h + 1) * G; g++) {
                double z[290], top = -1e300, sum = 0.0;
                for (size_t i = first; i < n; i++) {
                    const float *k = v->k[h] + i * D;
                    double rk[D] = {0}, lin = 0.0, quad = 0.0; /* mu' . k = mu . (Rbar^T k) */
                    for (size_t a = 0; a < D; a++)
                        for (size_t b = 0; b < D; b++) rk[a] += rot[b][a] * (double)k[b];
                    for (size_t a = 0; a < D; a++) {
                        lin += rk[a] * (double)m->mean[g * D + a];
                        for (size_t b = 0; b < D; b++)
                            quad += rk[a] * rk[b] * (double)m->cov[(g * D + a) * D + b];
                    }
                    z[i] = lin / sqrt(D) + (t[c].cov ? quad / (2.0 * D) : 0.0);
                    top = fmax(top, z[i]);
                }
                for (size_t i = first; i < n; i++) sum += exp(z[i] - top);
                for (size_t i = first; i < n; i++) want[h][i] += exp(z[i] - top) / sum / G;
            }
            for (size_t i = first; i < n; i++) {
                double vn = 0.0;
                for (size_t e = 0; e < D; e++) vn += pow((double)v->v[h][i * D + e], 2.0);
                if (t[c].vnorm) want[h][i] = (want[h][i] + t[c].eps) * sqrt(vn);
                max = fmax(max, want[h][i]);
            }
        }
        for (size_t h = 0; h < H; h++)
            for (size_t i = 0; i < v->view.n_h[h]; i++)
                assert_near((double)got[h][i], v->pos[h][i] < t[c].n_sink ? max + 1.0 : want[h][i],
                            5e-5, t[c].text, h, i);
        tv_close(v);
    }
}

static void keydiff_is_the_formula(void **state) {
    (void)state;
    test_view *t = tv_open(5, 300, 6, 2, 16);
    tv_make_step(t, 8, 0.5, 4);
    for (size_t e = 0; e < 16; e++)
        ((float *)(uintptr_t)t->k[0])[7 * 16 + e] = 0.0f; /* no direction: cosine 0 */
    float **s = scores_of("keydiff", t);
    for (size_t h = 0; h < 2; h++) {
        double a[16] = {0}, an = 0.0;
        for (int pass = 0; pass < 2; pass++)
            for (size_t i = 0; i < t->view.n_h[h]; i++) {
                double n = 0.0, dot = 0.0;
                for (size_t e = 0; e < 16; e++) n += pow((double)t->k[h][i * 16 + e], 2.0);
                for (size_t e = 0; e < 16; e++) dot += a[e] * (double)t->k[h][i * 16 + e];
                n = fmax(sqrt(n), 1e-12);
                for (size_t e = 0; pass == 0 && e < 16; e++)
                    a[e] += (double)t->k[h][i * 16 + e] / n;
                if (pass == 0) continue;
                an = 0.0;
                for (size_t e = 0; e < 16; e++) an += a[e] * a[e];
                const double want = -dot / (n * sqrt(an));
                if (fabs((double)s[h][i] - want) > 2e-6)
                    fail_msg("keydiff %zu %zu: %g, not %g", h, i, (double)s[h][i], want);
            }
    }
    tv_close(t);
}

static void snapkv_is_the_formula(void **state) {
    (void)state;
    static const struct {
        const char *text;
        bool step;
        size_t w, kernel;
    } t[] = {
        {"snapkv", false, 64, 5},
        {"snapkv:window_size=19,kernel_size=1", false, 19, 1},
        {"snapkv:window_size=33,kernel_size=7", true, 33, 7},
        {"snapkv", true, 40, 5}, /* only 40 queries at hand: the window is that long */
    };
    for (size_t c = 0; c < sizeof t / sizeof *t; c++) {
        test_view *v = tv_open(60 + c, 310, 6, 2, 16);
        if (t[c].step) tv_make_step(v, 8, 0.5, 40);
        float **got = scores_of(t[c].text, v);
        const int32_t window = 310 - (int32_t)t[c].w;
        double want[2][310], max = 0.0;
        for (size_t h = 0; h < 2; h++) {
            double a[310] = {0}, one[310];
            size_t end = 0;
            for (size_t q = h * 3; q < h * 3 + 3; q++) {
                plain_attention(v, t[c].w, q, one);
                for (size_t i = 0; i < v->view.n_h[h]; i++) a[i] += one[i] / 3.0;
            }
            while (end < v->view.n_h[h] && v->pos[h][end] < window) end++;
            for (size_t i = 0; i < end; i++) {
                want[h][i] = 0.0;
                for (size_t k = 0; k < t[c].kernel; k++) {
                    const size_t at = i + k - t[c].kernel / 2; /* wraps below 0: past the end */
                    if (at < end) want[h][i] += a[at] / (double)t[c].kernel;
                }
                max = fmax(max, want[h][i]);
            }
        }
        for (size_t h = 0; h < 2; h++)
            for (size_t i = 0; i < v->view.n_h[h]; i++)
                assert_near((double)got[h][i], v->pos[h][i] >= window ? max + 1.0 : want[h][i],
                            2e-5, t[c].text, h, i);
        tv_close(v);
    }
}

static void tova_averages_over_all_heads(void **state) {
    (void)state;
    for (size_t step = 0; step < 2; step++) {
        test_view *t = tv_open(70, 300, 6, 2, 16);
        if (step) tv_make_step(t, 8, 0.5, 2);
        float **got = scores_of("tova", t);
        double by_pos[300] = {0}, a[300], max = 0.0;
        for (size_t q = 0; q < 6; q++) {
            plain_attention(t, 1, q, a);
            for (size_t i = 0; i < t->view.n_h[q / 3]; i++) by_pos[t->pos[q / 3][i]] += a[i] / 6.0;
        }
        for (size_t i = 0; i < 299; i++) max = fmax(max, by_pos[i]);
        for (size_t h = 0; h < 2; h++)
            for (size_t i = 0; i < t->view.n_h[h]; i++)
                assert_near((double)got[h][i],
                            t->pos[h][i] == 299 ? max + 1.0 : by_pos[t->pos[h][i]], 2e-5, "tova", h,
                            i);
        tv_close(t);
    }
}

/* Total fixed, safeguard kept, and inside those rules the best of all heads. */
static void adakv_spends_one_budget(void **state) {
    (void)state;
    static const double alphas[] = {0.0, 0.2, 0.5, 1.0};
    for (size_t c = 0; c < 4; c++)
        for (size_t step = 0; step < 2; step++)
            for (size_t count = 1; count < 128; count += 21) {
                test_view *t = tv_open(80 + c, 128, 6, 2, 16);
                if (step) tv_make_step(t, 8, 0.8, 32);
                char text[64];
                snprintf(text, sizeof text, "adakv:alpha_safeguard=%g(expected_attention)",
                         alphas[c]);
                float **s = pd_scores_new(&t->view);
                const pd_plan plan =
                    plan_of(text, t, (pd_budget){.by_count = true, .count = count}, s);
                const size_t have = t->view.n_h[0] + t->view.n_h[1],
                             total = count * 2 < have ? count * 2 : have;
                if (total == have) {
                    assert_true(plan.keep_all);
                    tv_close(t);
                    continue;
                }
                assert_int_equal(plan.n_keep[0] + plan.n_keep[1], total);
                float best_lost = -INFINITY, worst_kept = INFINITY;
                for (size_t h = 0; h < 2; h++) {
                    const size_t n = t->view.n_h[h], share = count < n ? count : n;
                    const size_t safe = (size_t)((double)share * alphas[c])
                                            ? (size_t)((double)share * alphas[c])
                                            : 1;
                    assert_true(plan.n_keep[h] >= safe);
                    static uint32_t own[128];
                    assert_int_equal(pd_top_k(s[h], n, plan.n_keep[h], own, NULL, NULL), PD_OK);
                    assert_memory_equal(own, plan.keep[h], plan.n_keep[h] * sizeof *own);
                    for (size_t i = 0, k = 0; i < n; i++) {
                        if (k < plan.n_keep[h] && plan.keep[h][k] == i) {
                            k++;
                            if (plan.n_keep[h] > safe) worst_kept = fminf(worst_kept, s[h][i]);
                        } else {
                            best_lost = fmaxf(best_lost, s[h][i]);
                        }
                    }
                }
                /* a head above its safeguard holds nothing worse than what any head lost */
                assert_true(worst_kept >= best_lost);
                tv_close(t);
            }
}

static void adakv_keeps_protected_and_ties_low(void **state) {
    (void)state;
    test_view *t = tv_open(90, 60, 6, 2, 16);
    uint8_t flag[60] = {0};
    for (size_t i = 20; i < 50; i++) flag[i] = 1;
    static const uint8_t none[60];
    t->protect[0] = flag;
    t->protect[1] = none;
    t->view.protect = t->protect;
    const pd_plan p = plan_of("adakv(knorm)", t, (pd_budget){.by_count = true, .count = 10}, NULL);
    assert_int_equal(p.n_keep[0], 30);
    for (size_t i = 0; i < 30; i++) assert_int_equal(p.keep[0][i], 20 + i);
    assert_int_equal(p.n_keep[1], 2); /* its safeguard */

    t->view.protect = NULL;
    for (size_t h = 0; h < 2; h++)
        for (size_t i = 0; i < 60 * 16; i++)
            ((float *)(uintptr_t)t->k[h])[i] = 1.0f; /* all scores equal */
    const pd_plan q = plan_of("adakv(knorm)", t, (pd_budget){.by_count = true, .count = 10}, NULL);
    assert_int_equal(q.n_keep[0], 18);
    assert_int_equal(q.n_keep[1], 2);
    for (size_t i = 0; i < 18; i++) assert_int_equal(q.keep[0][i], i);
    assert_int_equal(q.keep[1][1], 1);
    tv_close(t);
}

static void key_rerotation_plans_as_its_child(void **state) {
    (void)state;
    test_view *t = tv_open(91, 60, 6, 2, 16);
    float **s = pd_scores_new(&t->view);
    const pd_budget b = {.ratio = 0.4};
    const pd_plan want = plan_of("knorm", t, b, NULL),
                  got = plan_of("key_rerotation(knorm)", t, b, s);
    float **scores = scores_of("knorm", t);
    assert_true(got.rerotate);
    for (size_t h = 0; h < 2; h++) {
        assert_int_equal(got.n_keep[h], want.n_keep[h]);
        assert_memory_equal(got.keep[h], want.keep[h], want.n_keep[h] * sizeof **want.keep);
        assert_memory_equal(scores[h], s[h], 60 * sizeof(float));
    }
    assert_true(plan_of("key_rerotation(knorm)", t, (pd_budget){.ratio = 0}, NULL).keep_all);

    uint8_t flag[2][60] = {{0}};
    memset(flag[1], 1, 40);
    t->protect[0] = flag[0];
    t->protect[1] = flag[1];
    t->view.protect = t->protect;
    const pd_plan p = plan_of("key_rerotation(knorm)", t, b, NULL);
    assert_int_equal(p.n_keep[0], 40); /* one position counter for all heads */
    assert_int_equal(p.n_keep[1], 40);
    tv_close(t);
}

static void value_effect_is_the_projected_norm(void **state) {
    (void)state;
    enum { D = 16, HQ = 6, N = 300 };
    test_view *t = tv_open(93, N, HQ, 2, D);
    float **got = pd_scores_new(&t->view);
    pd_err err = {0};
    assert_int_equal(pd__value_effect(&t->view, got, &err), PD_EINTERNAL);
    t->view.n_embd = 530; /* not the heads' width, and more than one block of channels */
    tv_add_wo(t, 93);
    assert_int_equal(pd__value_effect(&t->view, got, &err), PD_OK);
    for (size_t h = 0; h < 2; h++)
        for (size_t i = 0; i < N; i += 7) {
            double want = 0.0;
            for (size_t q = h * 3; q < h * 3 + 3; q++)
                for (size_t c = 0; c < 530; c++) {
                    double y = 0.0;
                    for (size_t e = 0; e < D; e++)
                        y += (double)t->view.wo[c * HQ * D + q * D + e] *
                             (double)t->v[h][i * D + e];
                    want += fabs(y) / 3.0;
                }
            assert_near((double)got[h][i], want, 1e-5, "value effect", h, i);
        }
    tv_close(t);
}

int main(void) {
    openblas_set_num_threads(1); /* as the engine does */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(budget_rule),
        cmocka_unit_test(top_k_is_the_sorted_prefix),
        cmocka_unit_test(kept_are_the_best),
        cmocka_unit_test(nothing_to_do_is_keep_all),
        cmocka_unit_test(protected_slots_stay),
        cmocka_unit_test(a_nan_is_refused),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(needs_and_least_tokens),
        cmocka_unit_test(moments_are_bounded),
        cmocka_unit_test(random_is_seeded),
        cmocka_unit_test(knorm_is_minus_the_norm),
        cmocka_unit_test(streaming_keeps_both_ends),
        cmocka_unit_test(keydiff_is_the_formula),
        cmocka_unit_test(snapkv_is_the_formula),
        cmocka_unit_test(tova_averages_over_all_heads),
        cmocka_unit_test(expected_attention_is_the_formula),
        cmocka_unit_test(adakv_spends_one_budget),
        cmocka_unit_test(adakv_keeps_protected_and_ties_low),
        cmocka_unit_test(key_rerotation_plans_as_its_child),
        cmocka_unit_test(value_effect_is_the_projected_norm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
