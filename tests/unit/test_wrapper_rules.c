/* SPDX-License-Identifier: Apache-2.0 */
/* compression: presses that wrap others or plan for themselves, each against a
 * plain reading of its definition, and where it differs from kvpress.  (What holds
 * for all: test_wrappers; kvpress' own answers: test_press_golden.) */
#include "tests/unit/press_case.h"

#include "compression/shared.h"
#include "compression/value_effect.h"

#include <cblas.h>
#include <float.h>
#include <stdio.h>

enum { N_MAX = 260 };

/* ---- chunk, block, chunkkv ---- */

/* Sinks are the text's: a chunk in the middle has none.  (In the reference each has.) */
static void chunks_have_no_sinks_of_their_own(void **state) {
    (void)state;
    test_view *t = tv_open(510, 120, 6, 2, 16);
    const pd_plan p = plan_of("chunk:chunk_length=40(streaming_llm:n_sink=4)", t, (pd_budget){.ratio = 0.75}, NULL);
    for (size_t h = 0; h < 2; h++) {
        assert_int_equal(p.n_keep[h], 30);
        for (size_t i = 0; i < 10; i++) {
            assert_int_equal(p.keep[h][i], i < 4 ? i : 30 + i);
            assert_int_equal(p.keep[h][10 + i], 70 + i);
            assert_int_equal(p.keep[h][20 + i], 110 + i);
        }
    }
    tv_close(t);
}

/* What the last queries of each chunk attend to inside it, each query where it
 * stands.  (In the reference all chunks' queries stand at the end of the text.) */
static void chunk_queries_stand_where_they_are(void **state) {
    (void)state;
    enum { N = 100, LEN = 50, W = 8 };
    test_view *t = tv_open(511, N, 6, 2, 16);
    const pd_plan p =
        plan_of("chunk:chunk_length=50(snapkv:window_size=8,kernel_size=1)", t, (pd_budget){.ratio = 0.6}, NULL);
    for (size_t c = 0; c < 2; c++) {
        test_view *u = tv_open(511, N, 6, 2, 16);
        u->view.q_rows = (c + 1) * LEN; /* up to the chunk's end */
        size_t n_h[2] = {LEN, LEN};
        u->view.n_h = n_h;
        u->view.n = LEN;
        for (size_t h = 0; h < 2; h++) {
            u->k[h] += c * LEN * 16;
            u->pos[h] += c * LEN;
        }
        for (size_t h = 0; h < 2; h++) {
            float s[LEN] = {0};
            double a[LEN];
            for (size_t q = 3 * h; q < 3 * h + 3; q++) {
                plain_attention(u, W, q, a);
                for (size_t i = 0; i < LEN; i++) s[i] += (float)a[i];
            }
            for (size_t i = LEN - W; i < LEN; i++) s[i] = 10.0f;
            uint32_t want[LEN];
            assert_int_equal(pd_top_k(s, LEN, 20, want, NULL, NULL), PD_OK);
            for (size_t i = 0; i < 20; i++) assert_int_equal(p.keep[h][20 * c + i], c * LEN + want[i]);
        }
        tv_close(u);
    }
    tv_close(t);
}

static void block_is_the_plain_choice_of_a_local_score(void **state) {
    (void)state;
    static const size_t sizes[] = {16, 17, 64, 128, 1000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (double r = 0.1; r < 1.0; r += 0.2) {
            test_view *t = tv_open(520 + i, 200, 6, 2, 16);
            char text[64];
            snprintf(text, sizeof text, "block:block_size=%zu(knorm)", sizes[i]);
            const pd_plan a = plan_of(text, t, (pd_budget){.ratio = r}, NULL),
                          b = plan_of("knorm", t, (pd_budget){.ratio = r}, NULL);
            same_plan(text, &a, &b, 2, 16);
            tv_close(t);
        }
    /* a score that looks at the others differs */
    test_view *t = tv_open(520, 200, 6, 2, 16);
    const pd_plan a = plan_of("block:block_size=16(keydiff)", t, (pd_budget){.ratio = 0.5}, NULL),
                  b = plan_of("keydiff", t, (pd_budget){.ratio = 0.5}, NULL);
    assert_memory_not_equal(a.keep[0], b.keep[0], 100 * sizeof(uint32_t));
    tv_close(t);
}

/* Keys of chosen norms: knorm's score is minus that, the same in all heads. */
static void set_norms(test_view *t, const float *norm) {
    for (size_t h = 0; h < t->view.n_head_kv; h++)
        for (size_t i = 0; i < t->n_h[h]; i++)
            for (size_t e = 0; e < t->view.head_dim; e++)
                ((float *)(uintptr_t)t->k[h])[i * t->view.head_dim + e] = e ? 0.0f : norm[i];
}

static void chunkkv_keeps_chunks(void **state) {
    (void)state;
    test_view *t = tv_open(530, 34, 6, 2, 16);
    float norm[34];
    /* means of the chunks of 10: -3, -1, -2, -1.5 (four tokens) */
    for (size_t i = 0; i < 34; i++) norm[i] = i < 10 ? 3.0f : i < 20 ? 1.0f : i < 30 ? 2.0f : 1.5f;
    norm[12] = 1.5f;
    norm[13] = 0.5f;
    set_norms(t, norm);
    pd_plan p = plan_of("chunkkv:chunk_length=10(knorm)", t, (pd_budget){.ratio = 0.5}, NULL);
    assert_int_equal(p.n_keep[1], 14); /* two of four chunks: the second, and the short one */
    for (size_t i = 0; i < 14; i++) assert_int_equal(p.keep[1][i], i < 10 ? 10 + i : 20 + i);
    p = plan_of("chunkkv:chunk_length=10(knorm)", t, (pd_budget){.by_count = true, .count = 3}, NULL);
    assert_int_equal(p.n_keep[0], 3); /* less than a chunk: its best */
    assert_int_equal(p.keep[0][0], 10);
    assert_int_equal(p.keep[0][1], 11);
    assert_int_equal(p.keep[0][2], 13);
    uint8_t flag[34] = {[3] = 1, [25] = 1};
    t->protect[0] = t->protect[1] = flag;
    t->view.protect = t->protect;
    p = plan_of("chunkkv:chunk_length=10(knorm)", t, (pd_budget){.ratio = 0.7}, NULL);
    assert_int_equal(p.n_keep[0], 11); /* one chunk, with a protected token, and the other one */
    assert_int_equal(p.keep[0][9], 9);
    assert_int_equal(p.keep[0][10], 25);
    tv_close(t);
}

static void spiky_chunks_give_room(void **state) {
    (void)state;
    test_view *t = tv_open(531, 40, 6, 2, 16);
    float norm[40];
    /* scores are -norm: the first chunk's sits in one token, the second is even and
     * nearly as good, the others are worse */
    for (size_t i = 0; i < 40; i++)
        norm[i] = i < 10 ? 2.0f : i < 20 ? 1.9f + 0.1f * (float)(i % 2) : 3.0f + 0.01f * (float)(i % 7);
    norm[4] = 0.0f; /* mean 1.8 */
    set_norms(t, norm);
    const pd_plan p = plan_of("entropy_gated_chunkkv(knorm)", t, (pd_budget){.ratio = 0.5}, NULL);
    assert_int_equal(p.n_keep[0], 20);
    size_t of[4] = {0};
    for (size_t i = 0; i < 20; i++) of[p.keep[0][i] / 10]++;
    assert_int_equal(of[0], 4); /* the spike and three more */
    assert_int_equal(p.keep[0][3], 4);
    assert_int_equal(of[1], 10);
    assert_int_equal(of[2] + of[3], 6);
    tv_close(t);
}

/* ---- merging ---- */

/* The formula at the head of merging.c, in double. */
static void merged(const test_view *t, size_t h, const pd_plan *p, double threshold, double fraction,
                   double *out, size_t *n_failing) {
    const size_t d = t->view.head_dim, n = t->n_h[h], n_keep = p->n_keep[h];
    double weight[N_MAX] = {0}, sim[N_MAX], pass[N_MAX];
    size_t target[N_MAX], n_pass = 0;
    bool kept[N_MAX] = {false};
    for (size_t k = 0; k < n_keep; k++) {
        kept[p->keep[h][k]] = true;
        for (size_t e = 0; e < d; e++) out[k * d + e] = (double)t->v[h][p->keep[h][k] * d + e];
    }
    for (size_t i = 0; i < n; i++) {
        if (kept[i]) continue;
        sim[i] = -2.0;
        for (size_t k = 0; k < n_keep; k++) {
            double dot = 0.0, a = 0.0, b = 0.0;
            for (size_t e = 0; e < d; e++) {
                const double x = (double)t->k[h][i * d + e], y = (double)t->k[h][p->keep[h][k] * d + e];
                dot += x * y;
                a += x * x;
                b += y * y;
            }
            const double s = dot / sqrt(a * b);
            if (s > sim[i]) {
                sim[i] = s;
                target[i] = k;
            }
        }
        if (sim[i] >= threshold)
            pass[n_pass++] = sim[i];
        else
            ++*n_failing;
    }
    double least = threshold;
    if (fraction < 1.0 && n_pass > 0) { /* sort by counting ranks */
        double sorted[N_MAX];
        for (size_t i = 0; i < n_pass; i++) {
            size_t rank = 0;
            for (size_t k = 0; k < n_pass; k++) rank += pass[k] < pass[i];
            sorted[rank] = pass[i];
        }
        const double at = (1.0 - fraction) * (double)(n_pass - 1), low = floor(at);
        const size_t i = (size_t)low, next = i + 1 < n_pass ? i + 1 : i;
        least = sorted[i] + (at - low) * (sorted[next] - sorted[i]);
    }
    for (size_t i = 0; i < n; i++) {
        if (kept[i] || sim[i] < least) continue;
        double a = 0.0, b = 0.0;
        for (size_t e = 0; e < d; e++) {
            a += pow((double)t->v[h][i * d + e], 2.0);
            b += pow((double)t->v[h][p->keep[h][target[i]] * d + e], 2.0);
        }
        const double w = fmax(sim[i], 0.0) * sqrt(a) / (sqrt(a) + sqrt(b) + 1e-6);
        for (size_t e = 0; e < d; e++) out[target[i] * d + e] += w * (double)t->v[h][i * d + e];
        weight[target[i]] += w;
    }
    for (size_t k = 0; k < n_keep; k++)
        for (size_t e = 0; e < d; e++) out[k * d + e] /= 1.0 + weight[k];
}

static void merging_is_the_formula(void **state) {
    (void)state;
    static const struct {
        double threshold, fraction;
    } c[] = {{0, 1}, {0.6, 1}, {0, 0.5}, {0.7, 0.5}, {0.5, 0.9}};
    static double want[N_MAX * 16];
    for (size_t i = 0; i < sizeof c / sizeof *c; i++)
        for (size_t step = 0; step < 2; step++) {
            test_view *t = tv_open(540 + i, 150, 6, 2, 16);
            if (step) tv_make_step(t, 5, 0.5, 16);
            char text[96];
            snprintf(text, sizeof text, "merging:similarity_threshold=%g,merge_fraction=%g(knorm)", c[i].threshold,
                     c[i].fraction);
            const pd_plan p = plan_of(text, t, (pd_budget){.ratio = 0.6}, NULL),
                          q = plan_of("knorm", t, (pd_budget){.ratio = 0.6}, NULL);
            size_t changed = 0, failing = 0, evicted = 0;
            for (size_t h = 0; h < 2; h++) {
                assert_int_equal(p.n_keep[h], q.n_keep[h]);
                assert_memory_equal(p.keep[h], q.keep[h], q.n_keep[h] * sizeof(uint32_t));
                merged(t, h, &p, c[i].threshold, c[i].fraction, want, &failing);
                evicted += t->n_h[h] - p.n_keep[h];
                for (size_t e = 0; e < p.n_keep[h] * 16; e++) {
                    if (!(fabs((double)p.v_new[h][e] - want[e]) < 1e-5))
                        fail_msg("%s head %zu: %g, not %g", text, h, (double)p.v_new[h][e], want[e]);
                    changed += p.v_new[h][e] != t->v[h][p.keep[h][e / 16] * 16 + e % 16];
                }
            }
            assert_true(changed > 0);
            /* DIFFERS: once the share of pairs below the threshold exceeds 1 - fraction
             * the reference's quantile is no number and it merges nothing */
            if (i == 3) assert_true(failing * 2 > evicted);
            tv_close(t);
        }
}

/* ---- critical_adakv ---- */

static void critical_adakv_weighs_by_the_effect(void **state) {
    (void)state;
    static const struct {
        double alpha, first;
    } c[] = {{0.2, 0.5}, {0.6, 0.3}, {0.0, 0.0}, {0.2, 1.0}};
    for (size_t i = 0; i < sizeof c / sizeof *c; i++)
        for (size_t step = 0; step < 2; step++) {
            test_view *t = tv_open(550 + i, 128, 6, 2, 16);
            tv_add_wo(t, 550 + i);
            if (step) tv_make_step(t, 8, 0.5, 32);
            char text[160], ada[96];
            snprintf(text, sizeof text,
                     "critical_adakv:alpha_safeguard=%g,first_stage_ratio=%g,epsilon=0.5(expected_attention)", c[i].alpha,
                     c[i].first);
            snprintf(ada, sizeof ada, "adakv:alpha_safeguard=%g(expected_attention)", c[i].alpha);
            const pd_budget b = {.by_count = true, .count = 30};
            float **s = pd_scores_new(&t->view), **effect = pd_scores_new(&t->view);
            const pd_plan p = plan_of(text, t, b, s), q = plan_of(ada, t, b, NULL);
            pd_err err = {0};
            assert_int_equal(pd__value_effect(&t->view, effect, &err), PD_OK);
            for (size_t h = 0; h < 2; h++) {
                assert_int_equal(p.n_keep[h], q.n_keep[h]); /* adakv's budgets */
                size_t safe = (size_t)(30 * c[i].alpha), first = (size_t)((double)p.n_keep[h] * c[i].first);
                if (safe == 0) safe = 1;
                if (first < safe) first = safe;
                uint32_t best[128], want[128];
                assert_int_equal(pd_top_k(s[h], t->view.n_h[h], first, best, NULL, NULL), PD_OK);
                float second[128];
                for (size_t k = 0; k < t->view.n_h[h]; k++) second[k] = (s[h][k] + 0.5f) * effect[h][k];
                for (size_t k = 0; k < first; k++) second[best[k]] = INFINITY;
                assert_int_equal(pd_top_k(second, t->view.n_h[h], p.n_keep[h], want, NULL, NULL), PD_OK);
                assert_memory_equal(want, p.keep[h], p.n_keep[h] * sizeof *want);
            }
            tv_close(t);
        }
}

/* ---- per_layer, composed ---- */

static void per_layer_takes_its_layers_ratio(void **state) {
    (void)state;
    pd_press_inst *inst = inst_of("per_layer:compression_ratios=0*3;0.25;1;0.5*25(knorm)");
    static const struct {
        int layer;
        size_t keep;
    } c[] = {{3, 75}, {4, 1}, {5, 50}, {29, 50}}; /* 1 empties a layer in the reference */
    test_view *t = tv_open(560, 100, 6, 2, 16);
    pd_err err = {0};
    pd_plan p;
    /* the request's budget says nothing */
    for (size_t b = 0; b < 3; b++) {
        const pd_budget given = {.ratio = b ? 0.9 : 0.0, .by_count = b == 2, .count = 3};
        for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
            t->view.layer = c[i].layer;
            assert_int_equal(pd_press_plan(inst, &t->view, &given, &p, NULL, &err), PD_OK);
            assert_int_equal(p.n_keep[0], c[i].keep);
            assert_int_equal(pd_press_most(inst, &given, (size_t)c[i].layer, 100), c[i].keep);
        }
        t->view.layer = 2;
        assert_int_equal(pd_press_plan(inst, &t->view, &given, &p, NULL, &err), PD_OK);
        assert_true(p.keep_all);
    }
    pd_press_inst_close(inst);
    tv_close(t);
}

/* The second press' queries stand at their positions, whatever slots are left. */
static void composed_windows_stay_in_place(void **state) {
    (void)state;
    enum { N = 120, W = 10 };
    test_view *t = tv_open(570, N, 6, 2, 16);
    const pd_plan p = plan_of("composed(knorm@0.4,snapkv:window_size=10,kernel_size=1@0.5)", t,
                              (pd_budget){.ratio = 0}, NULL),
                  first = plan_of("knorm", t, (pd_budget){.ratio = 0.4}, NULL);
    test_view *u = tv_open(570, N, 6, 2, 16);
    for (size_t h = 0; h < 2; h++) { /* what knorm left */
        float *k = tv_floats(u, N * 16);
        int32_t *pos = PD_ARENA_NEW(&u->data, N, int32_t);
        for (size_t i = 0; i < first.n_keep[h]; i++) {
            memcpy(k + i * 16, t->k[h] + first.keep[h][i] * 16, 16 * sizeof *k);
            pos[i] = (int32_t)first.keep[h][i];
        }
        u->k[h] = k;
        u->pos[h] = pos;
        u->n_h[h] = first.n_keep[h];
    }
    u->view.n = 72;
    for (size_t h = 0; h < 2; h++) {
        float s[N] = {0};
        double a[N];
        for (size_t q = 3 * h; q < 3 * h + 3; q++) {
            plain_attention(u, W, q, a);
            for (size_t i = 0; i < 72; i++) s[i] += (float)a[i];
        }
        for (size_t i = 0; i < 72; i++)
            if (u->pos[h][i] >= N - W) s[i] = 10.0f;
        uint32_t want[N];
        assert_int_equal(pd_top_k(s, 72, 36, want, NULL, NULL), PD_OK);
        assert_int_equal(p.n_keep[h], 36);
        for (size_t i = 0; i < 36; i++) assert_int_equal(p.keep[h][i], u->pos[h][want[i]]);
    }
    tv_close(u);
    tv_close(t);
}

static void composed_hands_on_what_it_gets(void **state) {
    (void)state;
    test_view *t = tv_open(571, 100, 6, 2, 16);
    const pd_budget none = {.ratio = 0};
    const pd_plan a = plan_of("composed(key_rerotation(knorm)@0.5,keydiff@0.2)", t, none, NULL),
                  b = plan_of("composed(knorm@0.5,keydiff@0.2)", t, none, NULL),
                  c = plan_of("composed(merging(knorm)@0.5,keydiff@0.2)", t, none, NULL),
                  d = plan_of("merging(knorm)", t, (pd_budget){.ratio = 0.5}, NULL);
    assert_true(a.rerotate && !b.rerotate && !a.v_new && c.v_new);
    for (size_t h = 0; h < 2; h++) {
        assert_int_equal(a.n_keep[h], 40);
        assert_memory_equal(a.keep[h], b.keep[h], 40 * sizeof(uint32_t));
        assert_memory_equal(a.keep[h], c.keep[h], 40 * sizeof(uint32_t));
        for (size_t i = 0, k = 0; i < 40; i++) { /* merging's values, of the slots that stayed */
            while (d.keep[h][k] != c.keep[h][i]) k++;
            assert_memory_equal(c.v_new[h] + i * 16, d.v_new[h] + k * 16, 16 * sizeof(float));
        }
    }
    /* nothing to do: keep_all; one press that has its own say does it without a ratio */
    assert_true(plan_of("composed(knorm,keydiff)", t, none, NULL).keep_all);
    assert_true(plan_of("composed(knorm@0,keydiff@0)", t, none, NULL).keep_all);
    assert_int_equal(
        plan_of("composed(simlayerkv:lazy_threshold=0,n_recent=20,n_last=2,knorm@0.5)", t, none, NULL).n_keep[0],
        (4 + 18) / 2);
    assert_int_equal(
        plan_of("composed(simlayerkv:lazy_threshold=0,n_recent=20,n_last=2,knorm)", t, (pd_budget){.ratio = 0.5}, NULL)
            .n_keep[0],
        11);
    tv_close(t);
}

/* ---- simlayerkv, finch ---- */

static void simlayerkv_keeps_both_ends_of_lazy_layers(void **state) {
    (void)state;
    enum { N = 130, LAST = 3, RECENT = 20, INITIAL = 5 };
    test_view *t = tv_open(580, N, 6, 2, 16);
    double sum = 0.0, a[N];
    for (size_t q = 0; q < 6; q++) {
        plain_attention(t, LAST, q, a);
        for (size_t i = 0; i < N - LAST; i++)
            if (i < INITIAL || i >= N - LAST - RECENT) sum += a[i] / 6.0;
    }
    assert_true(sum > 0.01 && sum < 0.99);
    for (int lazy = 0; lazy < 2; lazy++) {
        char text[128];
        snprintf(text, sizeof text, "simlayerkv:lazy_threshold=%.9f,n_last=3,n_recent=20,n_initial=5",
                 sum + (lazy ? -1e-5 : 1e-5));
        const pd_plan p = plan_of(text, t, (pd_budget){.ratio = 0}, NULL);
        if (!lazy) {
            assert_true(p.keep_all);
            continue;
        }
        for (size_t h = 0; h < 2; h++) {
            assert_int_equal(p.n_keep[h], INITIAL + RECENT - LAST);
            for (size_t i = 0; i < p.n_keep[h]; i++)
                assert_int_equal(p.keep[h][i], i < INITIAL ? i : N - (RECENT - LAST) + i - INITIAL);
        }
    }
    const pd_budget none = {.ratio = 0};
    assert_true(plan_of("simlayerkv:n_recent=20", t, none, NULL).keep_all); /* threshold 1 */
    assert_true(plan_of("simlayerkv:lazy_threshold=0,n_recent=125", t, none, NULL).keep_all); /* 4 + 125 + 1 */
    assert_false(plan_of("simlayerkv:lazy_threshold=0,n_recent=124", t, none, NULL).keep_all);
    uint8_t flag[N] = {[50] = 1, [70] = 1};
    t->protect[0] = t->protect[1] = flag;
    t->view.protect = t->protect;
    const pd_plan p = plan_of("simlayerkv:lazy_threshold=0,n_recent=20,n_initial=0", t, none, NULL);
    assert_int_equal(p.n_keep[1], 19 + 2);
    assert_int_equal(p.keep[1][0], 50);
    assert_int_equal(p.keep[1][1], 70);
    tv_close(t);
}

static void finch_keeps_the_question(void **state) {
    (void)state;
    enum { N = 100, W = 12 };
    test_view *t = tv_open(590, N, 6, 2, 16);
    for (int normalize = 0; normalize < 2; normalize++) {
        char text[96];
        snprintf(text, sizeof text, "finch:window_size=12,normalize_scores=%s", normalize ? "true" : "false");
        float **s = pd_scores_new(&t->view);
        const pd_plan p = plan_of(text, t, (pd_budget){.ratio = 0.5}, s);
        assert_true(p.rerotate);
        assert_int_equal(p.n_keep[0], 50);
        double max = 0.0;
        for (size_t h = 0; h < 2; h++) {
            double want[N] = {0}, one[N];
            for (size_t q = 3 * h; q < 3 * h + 3; q++)
                for (size_t r = 0; r < W; r++) { /* one query at a time */
                    t->view.q_rows = N - W + r + 1;
                    plain_attention(t, 1, q, one);
                    for (size_t i = 0; i < N - W; i++)
                        want[i] += one[i] * (normalize ? (double)(N - W + r) : 1.0) / 3.0 / W;
                }
            t->view.q_rows = N;
            for (size_t i = 0; i < N - W; i++) {
                assert_near((double)s[h][i], want[i], 2e-5, text, h, i);
                max = fmax(max, want[i]);
            }
        }
        for (size_t h = 0; h < 2; h++)
            for (size_t i = N - W; i < N; i++) assert_near((double)s[h][i], max + 1.0, 1e-5, text, h, i);
    }
    /* the reference keeps ten of the question's tokens here */
    pd_plan p = plan_of("finch:window_size=12,rerotate_keys=false", t, (pd_budget){.ratio = 0.9}, NULL);
    assert_false(p.rerotate);
    assert_int_equal(p.n_keep[0], W);
    for (size_t i = 0; i < W; i++) assert_int_equal(p.keep[1][i], N - W + i);
    /* and four of the eight in the last chunk, two of the four in the one before */
    p = plan_of("finch:window_size=12,chunk_length=23", t, (pd_budget){.ratio = 0.5}, NULL);
    assert_int_equal(p.n_keep[0], 11 * 4 + 8);
    for (size_t i = 0; i < W; i++) assert_int_equal(p.keep[0][p.n_keep[0] - 1 - i], N - 1 - i);
    /* one position counter: as many in each head as the one with most protected needs */
    static uint8_t flag[2][N];
    memset(flag[1], 1, 60);
    t->protect[0] = flag[0];
    t->protect[1] = flag[1];
    t->view.protect = t->protect;
    p = plan_of("finch:window_size=12", t, (pd_budget){.ratio = 0.9}, NULL);
    assert_int_equal(p.n_keep[0], 72);
    assert_int_equal(p.n_keep[1], 72);
    tv_close(t);
}

int main(void) {
    openblas_set_num_threads(1); /* as the engine does */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks_have_no_sinks_of_their_own),
        cmocka_unit_test(chunk_queries_stand_where_they_are),
        cmocka_unit_test(block_is_the_plain_choice_of_a_local_score),
        cmocka_unit_test(chunkkv_keeps_chunks),
        cmocka_unit_test(spiky_chunks_give_room),
        cmocka_unit_test(merging_is_the_formula),
        cmocka_unit_test(critical_adakv_weighs_by_the_effect),
        cmocka_unit_test(per_layer_takes_its_layers_ratio),
        cmocka_unit_test(composed_windows_stay_in_place),
        cmocka_unit_test(composed_hands_on_what_it_gets),
        cmocka_unit_test(simlayerkv_keeps_both_ends_of_lazy_layers),
        cmocka_unit_test(finch_keeps_the_question),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
