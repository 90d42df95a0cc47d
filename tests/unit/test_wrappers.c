/* SPDX-License-Identifier: Apache-2.0 */
/* compression: what holds for every wrapper over every child it takes, who takes
 * whom, and the views that wrappers show.  (Each one's rule: test_wrapper_rules;
 * kvpress' own answers: test_press_golden.) */
#include "tests/unit/press_case.h"

#include "compression/subview.h"

#include <cblas.h>
#include <float.h>
#include <stdio.h>

enum { N_MAX = 260 };

/* ---- every wrapper over every child ---- */

typedef struct {
    size_t n, heads, least; /* least: tokens the press needs */
    pd_budget b;
} ask;

/* How many slots a plan promises: of each head, or of all heads together. */
typedef enum { EACH, ALL_HEADS } promise_of;

static size_t keep_ratio(size_t n, double r) {
    const size_t k = (size_t)((double)n * (1.0 - r));
    return k ? k : 1;
}

static size_t plain(const ask *a) {
    const size_t k = a->b.by_count ? a->b.count : keep_ratio(a->n, a->b.ratio);
    return k < a->n ? k : a->n;
}

static size_t spread(const ask *a) {
    return plain(a) * a->heads;
}

/* One chunk of 90 slots at a time; what is then left joins the last one if it is
 * too short for the child. */
static size_t by_chunk(const ask *a) {
    size_t sum = 0;
    if (a->b.by_count) return plain(a);
    for (size_t at = 0, len; at < a->n; at += len) {
        const size_t left = a->n - at;
        len = left < 90 || left - 90 < a->least ? left : 90;
        sum += keep_ratio(len, a->b.ratio);
    }
    return sum;
}

static size_t at_layer(const ask *a) {
    return keep_ratio(a->n, 0.35);
}

static size_t two_shares(const ask *a) {
    if (a->b.by_count) return plain(a);
    const double r = 1.0 - sqrt(1.0 - a->b.ratio);
    return keep_ratio(keep_ratio(a->n, r), r);
}

static size_t own_shares(const ask *a) {
    return keep_ratio(keep_ratio(a->n, 0.3), 0.2);
}

static const struct {
    const char *text; /* %s = the child */
    promise_of of;
    size_t (*promise)(const ask *a); /* NULL: see whole_chunks */
} wrappers[] = {
    {"adakv(%s)", ALL_HEADS, spread},
    {"critical_adakv(%s)", ALL_HEADS, spread},
    {"critical_adakv:alpha_safeguard=0,first_stage_ratio=0(%s)", ALL_HEADS, spread},
    {"critical_adakv:alpha_safeguard=1,first_stage_ratio=1(%s)", ALL_HEADS, spread},
    {"key_rerotation(%s)", EACH, plain},
    {"chunk(%s)", EACH, plain},
    {"chunk:chunk_length=90(%s)", EACH, by_chunk},
    {"chunkkv(%s)", EACH, NULL},
    {"chunkkv:chunk_length=7(%s)", EACH, NULL},
    {"chunkkv:chunk_length=1000(%s)", EACH, plain},
    {"entropy_gated_chunkkv(%s)", EACH, plain},
    {"entropy_gated_chunkkv:chunk_length=33,low_entropy_chunk_length=5(%s)", EACH, plain},
    {"block:block_size=16(%s)", EACH, plain},
    {"block(%s)", EACH, plain},
    {"merging(%s)", EACH, plain},
    {"merging:similarity_threshold=0.5,merge_fraction=0.3(%s)", EACH, plain},
    {"per_layer:compression_ratios=1*3;0.35;0.9*26(%s)", EACH, at_layer},
    {"composed(%s)", EACH, plain},
    {"composed(%s,random)", EACH, two_shares},
    {"composed(%s@0.3,keydiff@0.2)", EACH, own_shares},
    {"composed(merging(%s),knorm)", EACH, two_shares},
};
enum { N_WRAPPER = sizeof wrappers / sizeof *wrappers };

/* chunkkv by ratio: whole chunks; by count exactly the count. */
static bool whole_chunks(const ask *a, size_t length, size_t kept) {
    if (a->b.by_count || a->n < length) return kept == plain(a);
    const size_t chunks = (a->n + length - 1) / length, m = keep_ratio(chunks, a->b.ratio),
                 tail = a->n - (chunks - 1) * length;
    return kept == m * length || kept == (m - 1) * length + tail;
}

static pd_press_inst *resolve(const char *text, pd_err *err) {
    static const pd_press_model model = {30, 6, 2, 16, 96, 192, NULL};
    pd_arena arena = {0};
    pd_spec *spec;
    double ratio;
    pd_press_inst *inst = NULL;
    if (pd_spec_parse_text(text, "press", &arena, &spec, &ratio, err) != PD_OK)
        fail_msg("%s: %s", text, err->msg);
    pd_spec_resolve(spec, &model, &inst, err);
    pd_arena_done(&arena);
    return inst;
}

static void check_plan(const char *text, const ask *a, const pd_press_inst *inst, size_t w,
                       const test_view *t, const pd_plan *plan, bool protects) {
    const pd_view *v = &t->view;
    size_t sum = 0, n_protected = 0;
    for (size_t h = 0; h < a->heads; h++) {
        const size_t k = plan->n_keep[h];
        assert_in_range(k, 1, a->n);
        size_t held = 0, all = 0;
        for (size_t i = 0; i < k; i++) {
            if (plan->keep[h][i] >= a->n || (i && plan->keep[h][i] <= plan->keep[h][i - 1]))
                fail_msg("%s: head %zu, place %zu: slot %u", text, h, i, plan->keep[h][i]);
            held += protects && v->protect[h][plan->keep[h][i]];
        }
        for (size_t i = 0; protects && i < a->n; i++) all += v->protect[h][i];
        assert_int_equal(held, all);
        n_protected += all;
        sum += k;
        if (protects || wrappers[w].of != EACH) continue;
        size_t length = 20;
        sscanf(text, "chunkkv:chunk_length=%zu", &length);
        if (wrappers[w].promise ? k != wrappers[w].promise(a) : !whole_chunks(a, length, k))
            fail_msg("%s, n %zu, ratio %g, count %zu: head %zu keeps %zu", text, a->n, a->b.ratio,
                     a->b.by_count ? a->b.count : 0, h, k);
    }
    if (!protects && wrappers[w].of == ALL_HEADS && sum != wrappers[w].promise(a))
        fail_msg("%s: %zu kept, %zu promised", text, sum, wrappers[w].promise(a));
    const size_t most = pd_press_most(inst, &a->b, 3, a->n);
    if (sum > a->heads * most + n_protected)
        fail_msg("%s, n %zu, ratio %g: keeps %zu, reserved %zu", text, a->n, a->b.ratio, sum,
                 a->heads * most);
    for (size_t h = 0; plan->v_new && h < a->heads; h++)
        for (size_t i = 0; i < plan->n_keep[h] * v->head_dim; i++)
            assert_true(isfinite(plan->v_new[h][i]));
}

static pd_plan plan_with(const pd_press_inst *inst, const char *text, test_view *t,
                         const pd_budget *b) {
    pd_plan plan;
    pd_err err = {0};
    if (pd_press_plan(inst, &t->view, b, &plan, NULL, &err) != PD_OK) fail_msg("%s: %s", text, err.msg);
    return plan;
}

/* Random lengths, ratios, heads and protected tokens; twice, and with three threads. */
static void try_wrapper(size_t w, const char *child, pd_rng *rng) {
    static const size_t layout[][3] = {{6, 2, 16}, {4, 4, 32}, {3, 1, 16}};
    char text[256];
    pd_err err = {0};
    snprintf(text, sizeof text, wrappers[w].text, child);
    pd_press_inst *inst = resolve(text, &err);
    if (!inst) {
        if (!strstr(err.msg, "takes") && !strstr(err.msg, "must be")) fail_msg("%s: %s", text, err.msg);
        return;
    }
    for (size_t round = 0; round < 8; round++) {
        const size_t *l = layout[pd_rng_u64(rng) % 3], least = pd_press_min_tokens(inst);
        ask a = {.n = least + pd_rng_u64(rng) % (N_MAX - least), .heads = l[1], .least = least};
        a.b.by_count = round % 3 == 2;
        a.b.ratio = round == 0 ? 1.0 : 0.02 + 0.97 * pd_rng_f64(rng);
        a.b.count = 1 + pd_rng_u64(rng) % (a.n + 3);
        test_view *t = tv_open(pd_rng_u64(rng), a.n, l[0], l[1], l[2]);
        tv_add_wo(t, round);
        uint8_t flag[N_MAX] = {0};
        const bool protects = round % 4 == 1;
        for (size_t i = 0; i < a.n; i++) flag[i] = pd_rng_f64(rng) < 0.2;
        for (size_t h = 0; h < l[1]; h++) t->protect[h] = flag;
        if (protects) t->view.protect = t->protect;
        pd_plan plan = plan_with(inst, text, t, &a.b);
        if (!plan.keep_all) check_plan(text, &a, inst, w, t, &plan, protects);
        pd_plan again = plan_with(inst, text, t, &a.b);
        same_plan(text, &plan, &again, l[1], l[2]);
        assert_int_equal(pd_workers_open(&t->view.workers, 3, NULL), PD_OK);
        again = plan_with(inst, text, t, &a.b);
        same_plan(text, &plan, &again, l[1], l[2]);
        pd_workers_close(t->view.workers);
        tv_close(t);
    }
    pd_press_inst_close(inst);
}

/* A child as text: a leaf of the registry, or a scorer that wraps one, that the
 * synthetic view can serve.  (pyramidkv counts for itself: test_scorers.) */
static bool child_text(const pd_press *p, char *text, size_t size) {
    if ((p->max_child && !(p->can & PD_CAN_SCORE)) || p->own_budget) return false;
    if (p->plan && p->can & PD_CAN_SCORE) return false;
    for (size_t i = 0; i < p->n_params; i++)
        if (p->params[i].flags & PD_PARAM_REQUIRED) return false;
    snprintf(text, size, p->max_child ? "%s(keydiff)" : "%s", p->name);
    pd_err err = {0};
    pd_press_inst *inst = resolve(text, &err);
    if (!inst) return false;
    pd_press_needs needs;
    pd_press_collect_needs(inst, &needs);
    const size_t least = pd_press_min_tokens(inst);
    pd_press_inst_close(inst);
    return !(needs.bits & (PD_NEEDS_X | PD_NEEDS_ATT_SUM)) && least < N_MAX / 2;
}

static void wrappers_keep_their_promises(void **state) {
    (void)state;
    pd_rng rng = {20260};
    size_t n = 0;
    for (size_t i = 0; i < pd_press_count(); i++) {
        char child[96];
        if (!child_text(pd_press_at(i), child, sizeof child)) continue;
        n++;
        for (size_t w = 0; w < N_WRAPPER; w++) try_wrapper(w, child, &rng);
    }
    assert_true(n >= 14);
}

/* ---- who takes whom ---- */

static void refused(const char *text, const char *part) {
    pd_err err = {0};
    pd_press_inst *inst = resolve(text, &err);
    if (inst) fail_msg("%s was not refused", text);
    if (!strstr(err.msg, part)) fail_msg("%s: '%s' lacks '%s'", text, err.msg, part);
}

static void children_are_chosen_by_what_they_can(void **state) {
    (void)state;
    static const char *const scorer_only[] = {"adakv",   "critical_adakv",        "key_rerotation", "chunk",
                                              "chunkkv", "entropy_gated_chunkkv", "block",          "merging"};
    for (size_t i = 0; i < sizeof scorer_only / sizeof *scorer_only; i++) {
        char text[128];
        snprintf(text, sizeof text, "%s(simlayerkv)", scorer_only[i]);
        refused(text, "takes a press that scores tokens; 'simlayerkv' does not");
        snprintf(text, sizeof text, "%s(finch:window_size=3)", scorer_only[i]);
        refused(text, "takes a press that scores tokens; 'finch' does not");
        snprintf(text, sizeof text, "%s(adakv(knorm))", scorer_only[i]);
        refused(text, "takes a press that scores tokens; 'adakv' does not");
    }
    refused("block(snapkv)", "takes a press that scores by keys, values and positions alone; 'snapkv' does not");
    refused("block(expected_attention)", "keys, values and positions alone");
    refused("block(tova)", "keys, values and positions alone");
    refused("composed(adakv(knorm))", "takes presses that leave every head the same number of tokens; 'adakv' does not");
    refused("composed(knorm,critical_adakv(knorm))", "'critical_adakv' does not");
    refused("composed(knorm,chunk(snapkv))", "'chunk' looks at every token of the text: it must be the first");
    refused("composed(knorm@0.5,keydiff)", "1 have, 1 have not");
    refused("composed(simlayerkv@0.5)", "'simlayerkv' takes no ratio");
    refused("composed(knorm@0.5,think@0.5)", "'think' takes no ratio");
    refused("composed(think:key_channel_compression_ratio=0.2,knorm@0.5,composed(think:key_channel_compression_ratio=0.5))",
            "one press at most takes key channels out; 'composed' is the second");
    refused("adakv(think)", "takes a press that scores tokens; 'think' does not");
    refused("per_layer:compression_ratios=0.5*30(think)", "takes a press that scores tokens; 'think' does not");
    refused("decoding(think)", "works while tokens are generated; 'think' does not");
    refused("think:key_channel_compression_ratio=1", "must be a number in [0, 1)");
    refused("adakv(knorm@0.5)", "a press inside 'adakv' takes no ratio of its own");
    /* those that decide over all layers stand alone, or before a press that works while tokens come */
    static const char *const whole[] = {"kvzip", "kvcompose", "kv_compress"};
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        for (size_t k = 0; k < pd_press_count(); k++) {
            const pd_press *p = pd_press_at(k);
            if (!p->max_child) continue;
            char text[160];
            const char *must = strcmp(p->name, "per_layer") == 0 ? ":compression_ratios=0.5*30" : strcmp(p->name, "dms") == 0 ? ":threshold=0" : "";
            snprintf(text, sizeof text, "%s%s(%s)", p->name, must, whole[i]);
            pd_err err = {0};
            pd_press_inst *inst = resolve(text, &err);
            if (!inst && !strstr(err.msg, whole[i])) fail_msg("%s: %s", text, err.msg);
            /* the one that can also prunes all layers of a sequence that runs */
            const bool prunes = strcmp(p->name, "decoding") == 0 || strcmp(p->name, "compression_ratio_decoding") == 0;
            const bool takes = strcmp(p->name, "prefill_decoding") == 0 || p->read_rule || (prunes && pd_press_find(whole[i])->running);
            if (!inst == takes) fail_msg("%s: %s", text, inst ? "was not refused" : err.msg);
            pd_press_inst_close(inst);
        }
    /* what says how the cache is read stands around all others */
    refused("composed(knorm,hcattention)", "'hcattention' does not");
    refused("prefill_decoding(hcattention(knorm))", "it stands around 'prefill_decoding', not inside");
    refused("adakv(hcattention(knorm))", "takes a press that scores tokens; 'hcattention' does not");
    refused("decoding(hcattention)", "'hcattention' does not");
    refused("composed", "takes 1 to 8 presses inside it, not 0");
    refused("chunk:chunk_length=64(snapkv)", "'chunk_length' of 'chunk' must be at least 65 for 'snapkv', not 64");
    refused("entropy_gated_chunkkv:low_entropy_chunk_length=10(knorm)", "must be below chunk_length 10, not 10");
    refused("simlayerkv:n_recent=7,n_last=7", "'n_recent' of 'simlayerkv' must be above n_last 7, not 7");
    refused("finch", "press 'finch' needs 'window_size': an integer in [1, 4096]");
    refused("per_layer(knorm)", "needs 'compression_ratios': a list of 30 numbers in [0, 1], one per layer");

    /* an own logic may stand inside composed, and composed inside composed */
    static const char *const taken[] = {"composed(simlayerkv,knorm)", "composed(composed(knorm,keydiff@0.1),tova)",
                                        "composed(chunk(snapkv),finch:window_size=3)", "composed(knorm@0.2,think,think)",
                                        "composed(think:key_channel_compression_ratio=0.9,knorm@0)", "block(keydiff)", "block(random)"};
    pd_err err = {0};
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++) {
        pd_press_inst *inst = resolve(taken[i], &err);
        if (i == 1) { /* a mix of own ratios and none is refused inside too */
            assert_null(inst);
            err = (pd_err){0};
            continue;
        }
        if (!inst) fail_msg("%s: %s", taken[i], err.msg);
        pd_press_inst_close(inst);
    }
}

static void who_is_given_a_ratio(void **state) {
    (void)state;
    static const struct {
        const char *text;
        bool takes;
    } t[] = {{"knorm", true},
             {"adakv(knorm)", true},
             {"simlayerkv", false},
             {"per_layer:compression_ratios=0.5*30(knorm)", false},
             {"composed(knorm,keydiff)", true},
             {"composed(knorm@0.5,keydiff@0)", false},
             {"composed(simlayerkv,knorm)", true},
             {"composed(simlayerkv,knorm@0.5)", false},
             {"composed(simlayerkv)", false},
             {"hcattention", false}};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        pd_press_inst *inst = inst_of(t[i].text);
        if (pd_press_inst_takes_ratio(inst) != t[i].takes) fail_msg("%s", t[i].text);
        pd_press_inst_close(inst);
    }
}

/* ---- views of some slots ---- */

static void slices_stand_at_their_positions(void **state) {
    (void)state;
    enum { N = 150, FIRST = 2, LEN = 61, HQ = 6, D = 16 };
    test_view *t = tv_open(500, N, HQ, 2, D);
    float x[N * 96], sums[HQ * N];
    for (size_t i = 0; i < N * 96; i++) x[i] = (float)i;
    for (size_t i = 0; i < HQ * N; i++) sums[i] = (float)i;
    uint8_t flag[N] = {[FIRST + 5] = 1};
    t->protect[0] = t->protect[1] = flag;
    t->view.protect = t->protect;
    t->view.x = x;
    t->view.x_rows = N;
    t->view.att_sum = sums;
    t->view.rope_scale = 1.0f;
    pd_view s;
    pd_err err = {0};
    assert_int_equal(pd__view_slice(&t->view, FIRST, LEN, t->view.tmp, &s, &err), PD_OK);
    assert_int_equal(s.n, LEN);
    assert_int_equal(s.n_seen, FIRST + LEN);
    assert_int_equal(s.stat_rows, FIRST + LEN);
    assert_int_equal(s.q_rows, LEN);
    assert_int_equal(s.q_pos[0], FIRST);
    assert_int_equal(s.x_rows, LEN);
    assert_ptr_equal(s.x, x + FIRST * 96);
    for (size_t h = 0; h < 2; h++) {
        assert_int_equal(s.n_h[h], LEN);
        assert_int_equal(s.pos[h][0], FIRST);
        assert_ptr_equal(s.k[h], t->k[h] + FIRST * D);
        assert_ptr_equal(s.v[h], t->v[h] + FIRST * D);
        for (size_t i = 0; i < LEN; i++) assert_int_equal(s.protect[h][i], i == 5);
    }
    for (size_t q = 0; q < HQ; q++)
        for (size_t i = 0; i < LEN; i++) assert_true(s.att_sum[q * LEN + i] == (float)(q * N + FIRST + i));

    /* moments: of the slice's rows at positions >= n_sink, from unrotated queries */
    assert_int_equal(s.n_moments, 2);
    for (size_t m = 0; m < 2; m++) {
        const size_t n_sink = t->moments[m].n_sink, skip = n_sink > FIRST ? n_sink - FIRST : 0;
        assert_int_equal(s.moments[m].count, LEN - skip);
        test_view *u = tv_open(500, N, HQ, 2, D); /* room for another set */
        tv_add_moments(u, FIRST, LEN, skip);
        const pd_moments *want = &u->moments[2];
        for (size_t i = 0; i < HQ * D; i++)
            assert_true(fabs((double)(s.moments[m].mean[i] - want->mean[i])) < 1e-5);
        for (size_t i = 0; i < HQ * D * D; i++)
            assert_true(fabs((double)(s.moments[m].cov[i] - want->cov[i])) < 1e-5);
        tv_close(u);
    }
    /* without all queries there is nothing to take moments of */
    t->view.q = NULL;
    t->view.q_rows = 0;
    assert_int_equal(pd__view_slice(&t->view, FIRST, LEN, t->view.tmp, &s, &err), PD_OK);
    assert_int_equal(s.n_moments, 0);
    tv_close(t);
}

static void gathered_slots_keep_what_is_theirs(void **state) {
    (void)state;
    enum { N = 40, D = 16 };
    test_view *t = tv_open(501, N, 6, 2, D);
    float sums[6 * N], v0[3 * D], v1[2 * D];
    for (size_t i = 0; i < 6 * N; i++) sums[i] = (float)i;
    for (size_t i = 0; i < 3 * D; i++) v0[i] = (float)i;
    for (size_t i = 0; i < 2 * D; i++) v1[i] = -(float)i;
    uint32_t s0[] = {1, 7, 30}, s1[] = {0, 39}, *slot[] = {s0, s1};
    float *v_new[] = {v0, v1};
    const size_t n_h[] = {3, 2};
    uint8_t flag[N] = {[7] = 1, [39] = 1};
    t->protect[0] = t->protect[1] = flag;
    t->view.protect = t->protect;
    t->view.att_sum = sums;
    t->view.x = sums;
    t->view.x_rows = N;
    pd_view g;
    pd_err err = {0};
    assert_int_equal(pd__view_gather(&t->view, n_h, slot, NULL, t->view.tmp, &g, &err), PD_OK);
    assert_int_equal(g.n, 3);
    assert_int_equal(g.n_seen, N);
    assert_int_equal(g.q_rows, N);
    assert_null(g.x);
    for (size_t h = 0; h < 2; h++)
        for (size_t i = 0; i < n_h[h]; i++) {
            const uint32_t at = slot[h][i];
            assert_int_equal(g.pos[h][i], at);
            assert_memory_equal(g.k[h] + i * D, t->k[h] + at * D, D * sizeof(float));
            assert_memory_equal(g.v[h] + i * D, t->v[h] + at * D, D * sizeof(float));
            assert_int_equal(g.protect[h][i], flag[at]);
            for (size_t q = 3 * h; q < 3 * h + 3; q++)
                assert_true(g.att_sum[q * 3 + i] == (float)(q * N + at));
        }
    assert_int_equal(pd__view_gather(&t->view, n_h, slot, v_new, t->view.tmp, &g, &err), PD_OK);
    assert_memory_equal(g.v[0], v0, sizeof v0);
    assert_memory_equal(g.v[1], v1, sizeof v1);
    tv_close(t);
}

static void chunks_cover_the_text(void **state) {
    (void)state;
    assert_int_equal(pd__chunk_count(97, 32, 1), 4);
    assert_int_equal(pd__chunk_count(97, 32, 2), 3); /* a last one of 1 is too short */
    assert_int_equal(pd__chunk_count(96, 32, 40), 2);
    assert_int_equal(pd__chunk_count(5, 32, 40), 1); /* nothing to join */
    assert_int_equal(pd__chunk_end(97, 32, 3, 2), 97);
    assert_int_equal(pd__chunk_end(97, 32, 3, 1), 64);
    for (size_t count = 1; count <= 97; count++) {
        const pd_budget b = {.by_count = true, .count = count};
        size_t sum = 0;
        for (size_t at = 0; at < 97; at += 10)
            sum += pd__chunk_keep(&b, 97, at, at + 10 < 97 ? at + 10 : 97);
        assert_int_equal(sum, count);
    }
}

int main(void) {
    openblas_set_num_threads(1); /* as the engine does */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrappers_keep_their_promises),
        cmocka_unit_test(children_are_chosen_by_what_they_can),
        cmocka_unit_test(who_is_given_a_ratio),
        cmocka_unit_test(slices_stand_at_their_positions),
        cmocka_unit_test(gathered_slots_keep_what_is_theirs),
        cmocka_unit_test(chunks_cover_the_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
