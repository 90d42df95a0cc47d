/* SPDX-License-Identifier: Apache-2.0 */
/* engine/run: what presses leave of a cache, and what they may not touch: counts per
 * head and layer, budgets, protected tokens, windows; comparisons say the same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/num.h"
#include "tests/unit/engine_case.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE = 16 };

/* One prefill for all of them, and each as if it were alone; the cache stays dense. */
static void compared_presses_keep_what_applied_ones_keep(void **state) {
    (void)state;
    static const char *const presses[] = {
        "knorm@0.5", "expected_attention:n_sink=2@0.75", "snapkv:window_size=8@0.3", "random:seed=3@0.9", "snapkv:window_size=200@0.5",
        "adakv(expected_attention:n_sink=9)@0.6", "key_rerotation(keydiff)@0.5", "tova@0.5", NULL};
    static const tiny_arch archs[] = {TINY_LLAMA, TINY_GEMMA3};
    int32_t prompt[190];
    case_prompt(prompt, 190, 8);
    for (size_t m = 0; m < 2; m++) {
        pd_engine *e = case_open(archs[m], TINY_Q8_0, NULL);
        const ask all = {.tokens = prompt, .n = 190, .explain = true, .scores = true, .compare = presses};
        const ask none = {.tokens = prompt, .n = 190, .explain = true};
        answer *a = case_run(e, &all), *dense = case_run(e, &none);
        const size_t heads = a->r->kv.n_layer * a->r->kv.n_head_kv;
        assert_int_equal(a->r->n_compared, 8);
        assert_int_equal(a->r->kv.bytes, dense->r->kv.bytes);
        assert_int_equal(a->r->kv.tokens_evicted, 0);
        for (size_t i = 0; presses[i]; i++) {
            const pd_compared *c = &a->r->compared[i];
            const ask alone = {.tokens = prompt, .n = 190, .explain = true, .scores = true, .press = presses[i]};
            answer *b = case_run(e, &alone);
            assert_int_equal(strncmp(c->press, presses[i], strlen(c->press)), 0);
            assert_true(c->ratio == b->r->kv.ratio);
            assert_int_equal(c->skipped != NULL, b->r->kv.skipped != NULL);
            assert_int_equal(c->skipped != NULL, i == 4); /* its window is longer than the prompt */
            for (size_t h = 0; h < heads && !c->skipped; h++) {
                const pd_explain_head *x = &c->explain[h], *y = &b->r->explain[h];
                assert_int_equal(x->n_kept, y->n_kept);
                assert_memory_equal(x->kept, y->kept, x->n_kept * sizeof *x->kept);
                assert_int_equal(x->scores != NULL, y->scores != NULL);
                if (x->scores) assert_memory_equal(x->scores, y->scores, 190 * sizeof *x->scores);
            }
            case_drop(b);
        }
        case_drop(dense);
        case_drop(a);
        case_expect_idle(e);
        pd_engine_close(e);
    }
}

static void comparisons_have_limits(void **state) {
    (void)state;
    static const char *const sinks[] = {
        "expected_attention:n_sink=1@0.5", "expected_attention:n_sink=2@0.5", "expected_attention:n_sink=3@0.5",
        "expected_attention:n_sink=4@0.5", "expected_attention:n_sink=5@0.5", NULL};
    static const char *const one[] = {"knorm@0.5", NULL}, *const late[] = {"knorm@0.5", "kvzip@0.5", NULL};
    const char *many[PD_COMPARE_MAX + 2] = {NULL};
    for (size_t i = 0; i <= PD_COMPARE_MAX; i++) many[i] = "knorm@0.5";
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    int32_t prompt[60];
    case_prompt(prompt, 60, 8);
    const struct {
        ask q;
        const char *param;
    } cases[] = {
        {{.explain = true, .compare = sinks}, "compare"},
        {{.explain = true, .compare = one, .press = "knorm@0.5"}, "compare"},
        {{.explain = false, .max_tokens = 1, .compare = one}, "compare"},
        {{.explain = true, .compare = one, .scope = 20}, "compare[0]"},
        {{.explain = true, .compare = many}, "compare"},
        {{.explain = true, .compare = late}, "compare[1]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ask q = cases[i].q;
        q.tokens = prompt;
        q.n = 60;
        pd_job *job;
        pd_err err = {0};
        assert_int_equal(case_submit(e, &q, &job, &err), PD_EINVAL);
        assert_string_equal(err.param, cases[i].param);
    }
    case_expect_idle(e);
    pd_engine_close(e);
}

static void every_head_keeps_its_share(void **state) {
    (void)state;
    static const char *const presses[] = {"knorm", "random", "keydiff", "snapkv", "tova", "streaming_llm",
                                          "expected_attention", "key_rerotation(knorm)"};
    static const double ratios[] = {0.1, 0.5, 0.9, 0.99};
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    int32_t prompt[213];
    case_prompt(prompt, 213, 6);
    for (size_t i = 0; i < sizeof presses / sizeof *presses; i++) {
        for (size_t r = 0; r < 4; r++) {
            char text[64];
            snprintf(text, sizeof text, "%s@%g", presses[i], ratios[r]);
            const ask q = {.tokens = prompt, .n = 213, .press = text, .explain = true, .scores = true};
            answer *a = case_run(e, &q);
            const size_t want = pd_max_size(1, (size_t)(213 * (1.0 - ratios[r])));
            assert_int_equal(a->r->scope_tokens, 213);
            assert_int_equal(a->r->finish, PD_FINISH_LENGTH);
            assert_int_equal(a->n, 0); /* an explanation generates nothing */
            assert_int_equal(a->r->kv.tokens_evicted, 6 * (213 - want));
            assert_true(fabs(a->r->kv.ratio - (1.0 - (double)want / 213.0)) < 1e-12);
            for (size_t h = 0; h < 6; h++) {
                const pd_explain_head *x = &a->r->explain[h];
                assert_int_equal(a->r->kv.kept[h], want);
                assert_int_equal(a->r->kv.head_pages[h], pd_div_up(want, PAGE));
                assert_int_equal(x->n_kept, want);
                assert_non_null(x->scores);
                float worst = INFINITY;
                bool is_kept[213] = {false};
                for (size_t k = 0; k < want; k++) {
                    assert_in_range(x->kept[k], k ? x->kept[k - 1] + 1 : 0, 212); /* ascending */
                    is_kept[x->kept[k]] = true;
                    worst = fminf(worst, x->scores[x->kept[k]]);
                }
                for (size_t t = 0; t < 213; t++) assert_true(is_kept[t] || x->scores[t] <= worst);
            }
            case_drop(a);
        }
    }
    case_expect_idle(e);
    pd_engine_close(e);
}

static void adakv_shares_a_layer_unevenly(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    int32_t prompt[250];
    case_prompt(prompt, 250, 7);
    const ask q = {.tokens = prompt, .n = 250, .press = "adakv(knorm)@0.6", .max_tokens = 0};
    answer *a = case_run(e, &q);
    bool uneven = false;
    for (size_t l = 0; l < 3; l++) {
        const uint32_t *kept = a->r->kv.kept + 2 * l;
        assert_int_equal(kept[0] + kept[1], 2 * 100);
        assert_true(kept[0] >= 20 && kept[1] >= 20); /* alpha_safeguard 0.2 */
        uneven = uneven || kept[0] != kept[1];
        for (size_t h = 0; h < 2; h++) assert_int_equal(a->r->kv.head_pages[2 * l + h], pd_div_up(kept[h], PAGE));
    }
    assert_true(uneven);
    case_drop(a);
    pd_engine_close(e);
}

/* Slots and pages of every head of a layer. */
static void expect_layer(const answer *a, size_t layer, size_t kept) {
    for (size_t h = 2 * layer; h < 2 * layer + 2; h++) {
        assert_int_equal(a->r->kv.kept[h], kept);
        assert_int_equal(a->r->kv.head_pages[h], pd_div_up(kept, PAGE));
    }
}

static answer *pressed_answer(pd_engine *e, const int32_t *prompt, size_t n, const char *press) {
    const ask q = {.tokens = prompt, .n = n, .press = press, .max_tokens = 20, .logprobs = 20};
    answer *a = case_run(e, &q);
    pd_engine_stats s;
    pd_engine_get_stats(e, &s);
    assert_int_equal(s.pages_total, s.pages_free + s.pages_seq + s.pages_store);
    return a;
}

static void layers_keep_what_they_are_told(void **state) {
    (void)state;
    enum { N = 250, MORE = 19 }; /* the last token sampled is not fed */
    static const double ratio[] = {0.8, 0.0, 1.0};
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    int32_t prompt[N];
    case_prompt(prompt, N, 31);
    answer *a = pressed_answer(e, prompt, N, "per_layer:compression_ratios=0.8;0;1(knorm)");
    const size_t left[] = {49, N, 1}; /* (int)(250 * (1 - 0.8)) in double */
    for (size_t l = 0; l < 3; l++) {
        const pd_budget b = {.ratio = ratio[l]};
        assert_int_equal(pd_budget_keep(&b, N), left[l]);
        expect_layer(a, l, left[l] + MORE);
    }
    assert_true(fabs(a->r->kv.ratio - (1.0 - (49.0 + N + 1.0) / (3.0 * N))) < 1e-12);
    case_drop(a);

    /* some layers lazy, some not: no ratio could say so */
    bool mixed = false;
    for (double threshold = 0.02; threshold < 1.0 && !mixed; threshold += 0.02) {
        char text[96];
        snprintf(text, sizeof text, "simlayerkv:lazy_threshold=%.2f,n_recent=50,n_last=4", threshold);
        a = pressed_answer(e, prompt, N, text);
        size_t n_lazy = 0;
        for (size_t l = 0; l < 3; l++) {
            const bool lazy = a->r->kv.kept[2 * l] != N + MORE;
            expect_layer(a, l, (lazy ? 4 + 50 - 4 : N) + MORE);
            n_lazy += lazy;
        }
        assert_int_equal(a->r->kv.tokens_evicted, n_lazy * 2 * (N - 50));
        mixed = n_lazy > 0 && n_lazy < 3;
        case_drop(a);
    }
    assert_true(mixed);

    a = pressed_answer(e, prompt, N, "finch:window_size=25,chunk_length=60@0.5");
    for (size_t l = 0; l < 3; l++) expect_layer(a, l, 30 * 4 + 10 + MORE); /* the last 10 are all question */
    case_drop(a);
    a = pressed_answer(e, prompt, N, "chunkkv(knorm)@0.5");
    for (size_t l = 0; l < 3; l++)
        assert_true(a->r->kv.kept[2 * l] == 6 * 20 + MORE || a->r->kv.kept[2 * l] == 5 * 20 + 10 + MORE);
    case_drop(a);
    case_expect_idle(e);
    pd_engine_close(e);
}

/* merging keeps what its child keeps, and what it stores is not what was there. */
static void merged_values_reach_the_pages(void **state) {
    (void)state;
    enum { N = 180 };
    pd_engine *e = case_open(TINY_LLAMA, TINY_F32, &(case_opts){.compute = PD_COMPUTE_F32});
    int32_t prompt[N];
    case_prompt(prompt, N, 32);
    answer *plain = pressed_answer(e, prompt, N, "knorm@0.6"), *merged = pressed_answer(e, prompt, N, "merging(knorm)@0.6"),
           *same = pressed_answer(e, prompt, N, "merging:similarity_threshold=1(knorm)@0.6");
    for (size_t l = 0; l < 3; l++) expect_layer(merged, l, 72 + 19);
    assert_int_equal(merged->r->kv.bytes, plain->r->kv.bytes);
    assert_true(plain->logprob[0] == merged->logprob[0]); /* of the dense prefill */
    assert_true(plain->logprob[1] != merged->logprob[1]);
    case_expect_same(plain, same); /* nothing is that alike: nothing was merged */
    case_drop(plain);
    case_drop(merged);
    case_drop(same);

    /* while decoding, too */
    ask q = {.tokens = prompt, .n = N, .max_tokens = 60, .logprobs = 20, .decode = "knorm", .interval = 16, .target = 64};
    plain = case_run(e, &q);
    q.decode = "merging(knorm)";
    merged = case_run(e, &q);
    assert_memory_equal(plain->r->kv.kept, merged->r->kv.kept, 6 * sizeof(uint32_t));
    assert_memory_equal(plain->logprob, merged->logprob, 16 * sizeof(float)); /* before the first pruning */
    assert_memory_not_equal(plain->logprob, merged->logprob, 60 * sizeof(float));
    q.decode = "critical_adakv(knorm)";
    answer *uneven = case_run(e, &q);
    for (size_t l = 0; l < 3; l++) {
        const uint32_t *k = uneven->r->kv.kept + 2 * l;
        assert_int_equal(k[0] + k[1], plain->r->kv.kept[2 * l] + plain->r->kv.kept[2 * l + 1]);
    }
    case_drop(plain);
    case_drop(merged);
    case_drop(uneven);
    case_expect_idle(e);
    pd_engine_close(e);
}

static void budgets_hold(void **state) {
    (void)state;
    static const char *const presses[] = {"knorm", "adakv(knorm)", "adakv:alpha_safeguard=0(keydiff)", "key_rerotation(snapkv)",
                                          "chunk:chunk_length=70(snapkv)", "chunkkv(knorm)", "entropy_gated_chunkkv(tova)",
                                          "block(keydiff)", "merging(knorm)", "critical_adakv(knorm)",
                                          "composed(chunkkv(knorm),knorm)", "finch:window_size=9,chunk_length=64"};
    for (int c = 0; c < 2; c++) {
        pd_engine *e = case_open(c ? TINY_GEMMA3 : TINY_LLAMA, TINY_Q8_0, NULL);
        const pd_engine_info *info = pd_engine_get_info(e);
        int32_t prompt[300];
        case_prompt(prompt, 300, 8);
        for (size_t i = 0; i < sizeof presses / sizeof *presses; i++) {
            ask q = {.tokens = prompt, .n = 300, .press = presses[i], .budget = PD_BUDGET_TOKENS, .amount = 77, .max_tokens = 1};
            answer *a = case_run(e, &q);
            const size_t l = c ? 5 : 1;
            uint32_t sum = 0;
            for (size_t h = 0; h < info->n_head_kv; h++) sum += a->r->kv.kept[l * info->n_head_kv + h];
            assert_int_equal(sum, 77 * info->n_head_kv);
            case_drop(a);
            q.budget = PD_BUDGET_BYTES;
            for (size_t pages = c ? 30 : 9; pages < 60; pages += 3) {
                q.amount = pages * info->page_bytes;
                a = case_run(e, &q);
                if (a->r->kv.bytes_after_prefill > q.amount)
                    fail_msg("%s: asked for %zu pages, holds %llu", presses[i], pages,
                             (unsigned long long)(a->r->kv.bytes_after_prefill / info->page_bytes));
                case_drop(a);
            }
        }
        ask q = {.tokens = prompt, .n = 300, .press = "knorm", .budget = PD_BUDGET_BYTES, .amount = info->page_bytes};
        pd_job *job;
        pd_err err = {0};
        assert_int_equal(case_submit(e, &q, &job, &err), PD_EBUDGET);
        assert_string_equal(err.param, "compression.budget_bytes");
        pd_engine_close(e);
    }
}

static void protected_tokens_stay(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    int32_t prompt[160];
    case_prompt(prompt, 160, 9);
    static const char *const presses[] = {"knorm@0.9", "adakv(knorm)@0.9", "key_rerotation(knorm)@0.9", "random@0.5",
                                          "chunk:chunk_length=20(knorm)@0.9", "chunkkv(knorm)@0.9", "merging(knorm)@0.9",
                                          "entropy_gated_chunkkv(knorm)@0.9", "block(keydiff)@0.9",
                                          "critical_adakv(knorm)@0.9", "simlayerkv:lazy_threshold=0,n_recent=20",
                                          "finch:window_size=5@0.9", "composed(knorm,key_rerotation(keydiff))@0.9",
                                          "per_layer:compression_ratios=1*3(knorm)", "kv_compress@0.9"};
    for (size_t i = 0; i < sizeof presses / sizeof *presses; i++) {
        const ask q = {.tokens = prompt, .n = 160, .press = presses[i], .explain = true, .protect = true,
                       .system_begin = 10, .system_end = 45};
        answer *a = case_run(e, &q);
        for (size_t h = 0; h < 6; h++) {
            const pd_explain_head *x = &a->r->explain[h];
            size_t n = 0;
            for (size_t k = 0; k < x->n_kept; k++) n += x->kept[k] >= 10 && x->kept[k] < 45;
            assert_int_equal(n, 35);
        }
        case_drop(a);
    }
    pd_engine_close(e);
}

/* At every length of the answer the cache is within the bound. */
static void decode_press_keeps_its_bound(void **state) {
    (void)state;
    enum { TARGET = 48, INTERVAL = 16 };
    static const char *const presses[] = {"knorm", "adakv(knorm)", "snapkv", "streaming_llm", "expected_attention"};
    for (int c = 0; c < 2; c++) {
        pd_engine *e = case_open(c ? TINY_GEMMA3 : TINY_LLAMA, TINY_Q8_0, NULL);
        const pd_engine_info *info = pd_engine_get_info(e);
        const size_t heads = info->n_head_kv;
        int32_t prompt[40];
        case_prompt(prompt, 40, 10);
        for (size_t i = 0; i < sizeof presses / sizeof *presses; i++) {
            for (size_t n = 1; n <= 600; n += i == 0 ? (n < 48 ? 5 : 61) : 233) {
                const ask q = {.tokens = prompt, .n = 40, .max_tokens = n, .decode = presses[i], .interval = INTERVAL, .target = TARGET};
                answer *a = case_run(e, &q);
                assert_int_equal(a->n, n);
                for (size_t l = 0; l < info->n_layer; l++) {
                    size_t sum = 0;
                    for (size_t h = 0; h < heads; h++) sum += a->r->kv.kept[l * heads + h];
                    const bool local = c && l != 5;
                    const size_t seen = 40 + n - 1;
                    if (local) assert_int_equal(sum, heads * pd_min_size(seen, TINY_WINDOW));
                    else if (sum > heads * (TARGET + INTERVAL - 1)) fail_msg("%s: layer %zu holds %zu after %zu tokens", presses[i], l, sum, n);
                    else assert_true(sum >= heads * pd_min_size(seen, TARGET));
                }
                assert_int_equal(a->r->kv.tokens_seen, 40 + n - 1);
                case_drop(a);
            }
        }
        case_expect_idle(e);
        pd_engine_close(e);
    }
}

static void windows_hold_their_window(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_GEMMA3, TINY_Q8_0, NULL);
    int32_t prompt[200];
    case_prompt(prompt, 200, 11);
    for (size_t n = 1; n <= 200; n += n < 40 ? 5 : 53) {
        for (size_t scope = 0; scope <= n; scope += n / 3 + 1) {
            const ask q = {.tokens = prompt, .n = n, .max_tokens = 20, .press = scope ? "knorm@0.25" : NULL, .scope = scope};
            answer *a = case_run(e, &q);
            for (size_t l = 0; l < 7; l++) {
                const size_t seen = n + 19, kept = scope ? pd_max_size(1, (size_t)((double)scope * 0.75)) : 0;
                assert_int_equal(a->r->kv.kept[l], l == 5 ? seen - scope + kept : pd_min_size(seen, TINY_WINDOW));
                if (l != 5) assert_in_range(a->r->kv.head_pages[l], 1, TINY_WINDOW / PAGE + 1);
            }
            case_drop(a);
        }
    }
    pd_engine_close(e);
}

static void short_scopes_are_skipped(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    int32_t prompt[100];
    case_prompt(prompt, 100, 12);
    ask q = {.tokens = prompt, .n = 100, .max_tokens = 10, .logprobs = 5};
    answer *dense = case_run(e, &q);
    static const struct {
        const char *press;
        size_t scope, min_tokens;
    } cases[] = {{"knorm@0.5", 0, 101}, {"snapkv@0.5", 20, 0}, {"streaming_llm:n_sink=30@0.5", 30, 0}};
    for (size_t i = 0; i < 3; i++) {
        q.press = cases[i].press;
        q.scope = cases[i].scope;
        q.min_tokens = cases[i].min_tokens;
        answer *a = case_run(e, &q);
        assert_non_null(a->r->kv.skipped);
        assert_int_equal(a->r->scope_tokens, 0);
        assert_int_equal(a->r->kv.tokens_evicted, 0);
        case_expect_same(a, dense);
        case_drop(a);
    }
    q = (ask){.tokens = prompt, .n = 100, .max_tokens = 10, .press = "knorm@0.5", .min_tokens = 100};
    answer *a = case_run(e, &q);
    assert_null(a->r->kv.skipped);
    case_drop(a);
    case_drop(dense);
    pd_engine_close(e);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(compared_presses_keep_what_applied_ones_keep),
        cmocka_unit_test(comparisons_have_limits),
        cmocka_unit_test(every_head_keeps_its_share),
        cmocka_unit_test(adakv_shares_a_layer_unevenly),
        cmocka_unit_test(layers_keep_what_they_are_told),
        cmocka_unit_test(merged_values_reach_the_pages),
        cmocka_unit_test(budgets_hold),
        cmocka_unit_test(protected_tokens_stay),
        cmocka_unit_test(decode_press_keeps_its_bound),
        cmocka_unit_test(windows_hold_their_window),
        cmocka_unit_test(short_scopes_are_skipped),
    };
    return cmocka_run_group_tests(tests, NULL, case_group_end);
}
