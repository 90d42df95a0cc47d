/* SPDX-License-Identifier: Apache-2.0 */
/* eigen_attention on an engine with bases measured for its tiny model: what is stored in fewer
 * numbers is what is counted, what the parameters keep whole is whole, and the answer is the same
 * whatever else runs.  Latents themselves are test_latent's business, pages test_kv_pack's, and
 * real models' numbers the golden suite's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compression/spec.h"
#include "engine/base/num.h"
#include "engine/cache/kv.h"
#include "engine/run/state.h"
#include "tests/unit/measured_case.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE = PD_PAGE_TOKENS, N = 210, MORE = 60 };

static int32_t prompt[600];

/* Every basis, ranks of keys and values, windows, whole and partial scopes: pages of both kinds to the byte,
 * foretold and counted: (rank_k + rank_v) / 2D of what is packed. */
static void bytes_fall_by_the_rank(void **state) {
    (void)state;
    static const size_t lengths[][2] = {{5, 0}, {64, 0}, {80, 0}, {200, 0}, {200, 160}, {333, 90}};
    static const size_t windows[] = {0, 1, 16, 64, 100};
    static const char *const bases[] = {"shared", "per_head", "score", "rotated"};
    for (int gemma = 0; gemma < 2; gemma++) {
        pd_engine *e = case_open_bases(gemma ? TINY_GEMMA3 : TINY_LLAMA, PD_COMPUTE_INT8, 1, 0, 0);
        const size_t d = pd_engine_get_info(e)->head_dim, open_page = pd_engine_get_info(e)->page_bytes, heads = gemma ? 1 : 6;
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            if (gemma && lengths[i][1]) continue; /* its windows straddle other pages in two segments */
            ask q = {.tokens = prompt, .n = lengths[i][0], .max_tokens = 40};
            answer *dense = case_run(e, &q);
            for (size_t k = 0; k < 24; k++) {
                const size_t rank = d / 16 * (1 + (5 * k + i) % (k % 3 ? 16 : 15)), window = windows[k % 5], n = q.n, end = n + 39;
                const size_t rank_v = k % 3 ? d / 16 * (1 + (7 * k + i) % 15) : d;
                char text[128];
                snprintf(text, sizeof text, "eigen_attention:rank_k=%zu,rank_v=%zu,basis=%s,window=%zu,sinks=%zu", rank, rank_v, bases[k % 4], window, k % 7);
                q.press = text;
                q.scope = lengths[i][1];
                answer *a = case_run(e, &q);
                const pd_kv_report *kv = &a->r->kv, *full = &dense->r->kv;
                const size_t scope = q.scope ? q.scope : n, page = open_page * (rank + rank_v) / (2 * d);
                const size_t first = scope > window ? (scope - window) / PAGE : 0, before = n > window ? (n - window) / PAGE : 0,
                             packed = end > window ? (end - window) / PAGE : 0;
                assert_int_equal(kv->bytes_after_prefill, full->bytes_after_prefill - heads * before * (open_page - page));
                assert_int_equal(kv->bytes, full->bytes - heads * packed * (open_page - page));
                assert_int_equal(kv->pages, full->pages);
                assert_true(fabs(kv->ratio - (double)(first * PAGE * (2 * d - rank - rank_v)) / (double)(scope * 2 * d)) < 1e-12);
                assert_true(kv->tokens_kept == full->tokens_kept && kv->tokens_evicted == 0);
                assert_true(kv->bytes_peak <= pd__job_reserved(a->job) + a->job->staging_bytes);
                if (packed == 0) case_expect_same(a, dense); /* the window is whole */
                if (!gemma) { /* a window's pages straddle others than a forecast can know */
                    ask x = q;
                    x.explain = true;
                    answer *told = case_run(e, &x);
                    assert_int_equal(pd_engine_forecast_bytes(e, told->job, 0.0), told->r->kv.bytes);
                    assert_int_equal(told->r->kv.bytes, kv->bytes_after_prefill);
                    case_drop(told);
                }
                case_drop(a);
                case_expect_idle(e);
            }
            case_drop(dense);
        }
        pd_engine_close(e);
    }
}

static const char *const company[] = {
    "eigen_attention",
    "eigen_attention:rank_k=4,basis=shared,window=20",
    "eigen_attention:rank_k=8,rank_v=12,window=20",
    "eigen_attention:rank_k=16,rank_v=4,window=40,sinks=7",
    "eigen_attention:error_budget=0.1,budget_for=both,window=20,basis=shared",
    "eigen_attention:error_budget=0.05,window=20",
    "eigen_attention:rank_k=12,basis=per_head,window=0,sinks=0",
    "eigen_attention:rank_k=8,basis=rotated,window=33,sinks=16",
    "prefill_decoding(eigen_attention,decoding:compression_interval=7,target_size=64(knorm))",
    "prefill_decoding(eigen_attention:rank_v=14,window=8,cam:compression_interval=8,target_size=50(tova))",
};

enum { TEXTS = sizeof company / sizeof *company };

/* In f16 and f32, on one thread or three, alone, in a batch or as one of several answers. */
static void company_and_threads_change_nothing(void **state) {
    (void)state;
    for (int c = 0; c < 3; c++) { /* gemma; llama; llama in f32 */
        const tiny_arch arch = c ? TINY_LLAMA : TINY_GEMMA3;
        const pd_compute compute = c == 2 ? PD_COMPUTE_F32 : PD_COMPUTE_INT8;
        pd_engine *e = case_open_bases(arch, compute, 1, 64 << 20, 0), *three = case_open_bases(arch, compute, 3, 64 << 20, 0);
        const ask q = {.tokens = prompt, .n = N, .max_tokens = MORE, .logprobs = 5, .scope = 170};
        case_expect_company(e, three, &q, company, TEXTS);
        pd_engine_close(e);
        pd_engine_close(three);
    }
}

/* How far the second token's alternatives are off: the first comes of the whole prompt. */
static double distance(const answer *a, const answer *b) {
    double most = 0.0;
    assert_int_equal(a->id[0], b->id[0]);
    for (size_t i = 0; i < a->n_top[1]; i++)
        for (size_t j = 0; j < b->n_top[1]; j++)
            if (a->top[1][i].id == b->top[1][j].id) most = fmax(most, fabs((double)a->top[1][i].logprob - (double)b->top[1][j].logprob));
    return most;
}

/* All directions are the keys and values themselves; few lose more than many; whole sinks lose less. */
static void what_is_lost_is_what_the_basis_misses(void **state) {
    (void)state;
    pd_engine *e = case_open_bases(TINY_LLAMA, PD_COMPUTE_F32, 1, 0, 0);
    ask q = {.tokens = prompt, .n = N, .max_tokens = 20, .logprobs = 50};
    answer *dense = case_run(e, &q);
    static const char *const bases[] = {"shared", "per_head", "score", "rotated"};
    for (size_t b = 0; b < 4; b++) {
        double off[3];
        for (size_t r = 0; r < 3; r++) {
            char text[96];
            snprintf(text, sizeof text, "eigen_attention:rank_k=%d,basis=%s,window=0", r == 0 ? 16 : r == 1 ? 15 : 3, bases[b]);
            q.press = text;
            answer *a = case_run(e, &q);
            off[r] = distance(a, dense);
            if (r == 0) case_expect_same(a, dense);
            case_drop(a);
        }
        if (!(off[1] > 0.0 && 1.5 * off[1] < off[2])) fail_msg("%s: %g with 15 numbers, %g with 3", bases[b], off[1], off[2]);
    }
    double last = 0.0;
    static const int ranks[] = {16, 15, 9, 3};
    for (size_t r = 0; r < 4; r++) {
        char text[96];
        snprintf(text, sizeof text, "eigen_attention:rank_k=16,rank_v=%d,window=0", ranks[r]);
        q.press = text;
        answer *a = case_run(e, &q);
        const double off = distance(a, dense);
        if (r == 0) case_expect_same(a, dense);
        else if (off <= last) fail_msg("values of %d numbers: off by %g, of %d by %g", ranks[r], off, ranks[r - 1], last);
        last = off;
        case_drop(a);
    }
    q.press = "eigen_attention:rank_k=1,window=0,sinks=0";
    answer *none = case_run(e, &q);
    q.press = "eigen_attention:rank_k=1,window=0,sinks=16";
    answer *sinks = case_run(e, &q);
    assert_true(distance(none, sinks) > 1e-4);
    case_drop(none);
    case_drop(sinks);
    q.press = "eigen_attention:rank_k=16,rank_v=1,window=0,sinks=0";
    none = case_run(e, &q);
    q.press = "eigen_attention:rank_k=16,rank_v=1,window=0,sinks=16";
    sinks = case_run(e, &q);
    assert_true(distance(none, sinks) > 1e-4);
    case_drop(none);
    case_drop(sinks);
    case_drop(dense);
    case_expect_idle(e);
    pd_engine_close(e);
}

/* Ranks by a budget: the least of the layer's curve, eight sixteenths at least; pages by layer. */
static void a_budget_gives_each_layer_its_rank(void **state) {
    (void)state;
    pd_engine *e = case_open_bases(TINY_LLAMA, PD_COMPUTE_INT8, 1, 0, 0);
    const pd_press_model *m = &pd_engine_get_info(e)->press_model;
    const float *error = pd_press_data_get(m->data, PD_DATA_EIGEN_ERROR);
    const size_t d = m->head_dim, page = pd_engine_get_info(e)->page_bytes;
    ask q = {.tokens = prompt, .n = N, .max_tokens = MORE, .explain = true};
    answer *dense = case_run(e, &q);
    double budget = 1e-6;
    size_t several = 0;
    for (int i = 0; i < 30; i++, budget *= 1.6) {
        char text[96];
        snprintf(text, sizeof text, "eigen_attention:error_budget=%.9g,window=10,basis=per_head", budget);
        q.press = text;
        answer *a = case_run(e, &q);
        size_t last = 0;
        for (size_t l = 0; l < m->n_layer; l++) {
            size_t rank = d; /* per_head is the second curve */
            while (rank > 8 && error[(l * PD_EIGEN_CURVES + 1) * 15 + rank - 2] <= (float)budget) rank--;
            const size_t packed = rank < d ? (N - 10) / PAGE : 0; /* explaining makes no tokens */
            for (size_t h = l * m->n_head_kv; h < (l + 1) * m->n_head_kv; h++)
                assert_int_equal(a->r->kv.head_bytes[h], dense->r->kv.head_bytes[h] - packed * PAGE * (d - rank) * 2);
            several += l > 0 && rank != last;
            last = rank;
        }
        if (a->r->kv.bytes == dense->r->kv.bytes) case_expect_same(a, dense);
        assert_true(a->r->kv.bytes_peak <= pd__job_reserved(a->job) + a->job->staging_bytes);
        assert_true((size_t)a->r->kv.page_bytes == page);
        case_drop(a);
        case_expect_idle(e);
    }
    assert_true(several > 5); /* it was about something */
    case_drop(dense);
    pd_engine_close(e);
}

/* For keys and values together: of all pairs of ranks within the budget, as errors add up, the least numbers,
 * and of those the least error. */
static void a_budget_for_both_is_shared_by_both(void **state) {
    (void)state;
    pd_engine *e = case_open_bases(TINY_LLAMA, PD_COMPUTE_INT8, 1, 0, 0);
    const pd_press_model *m = &pd_engine_get_info(e)->press_model;
    const float *error = pd_press_data_get(m->data, PD_DATA_EIGEN_ERROR);
    const size_t d = m->head_dim;
    ask q = {.tokens = prompt, .n = N, .explain = true};
    answer *dense = case_run(e, &q);
    double budget = 1e-6;
    size_t values = 0, keys = 0;
    for (int i = 0; i < 30; i++, budget *= 1.6) {
        char text[96];
        snprintf(text, sizeof text, "eigen_attention:error_budget=%.9g,budget_for=both,window=10,basis=shared", budget);
        q.press = text;
        answer *a = case_run(e, &q);
        for (size_t l = 0; l < m->n_layer; l++) {
            const float *of = error + l * PD_EIGEN_CURVES * 15, *value = of + 4 * 15;
            size_t best = 2 * d;
            for (size_t k = 8; k <= d; k++)
                for (size_t v = 8; v <= d; v++)
                    if ((k < d ? (double)of[k - 1] : 0.0) + (v < d ? (double)value[v - 1] : 0.0) <= budget && k + v < best) best = k + v;
            const size_t packed = best < 2 * d ? (N - 10) / PAGE : 0;
            for (size_t h = l * m->n_head_kv; h < (l + 1) * m->n_head_kv; h++)
                assert_int_equal(a->r->kv.head_bytes[h], dense->r->kv.head_bytes[h] - packed * PAGE * (2 * d - best) * 2);
            const pd_latent_rule *r = &a->job->latent;
            assert_true(best == 2 * d ? r->layer[l] == 0 : (size_t)r->layer[l] + r->value[l] == best);
            keys += r->layer[l] && r->layer[l] < d;
            values += r->layer[l] && r->value[l] < d;
        }
        assert_true(a->r->kv.bytes_peak <= pd__job_reserved(a->job) + a->job->staging_bytes);
        case_drop(a);
        case_expect_idle(e);
    }
    assert_true(keys > 5 && values > 5); /* it was about something */
    case_drop(dense);
    pd_engine_close(e);
}

/* Each head has its own rows, or its layer's. */
static void heads_have_their_bases(void **state) {
    (void)state;
    static const struct {
        const char *press;
        pd_data_id project, rebuild;
    } t[] = {
        {"eigen_attention:rank_k=5", PD_DATA_EIGEN_SCORE, PD_DATA_EIGEN_REBUILD},
        {"eigen_attention:rank_k=6,basis=shared", PD_DATA_EIGEN_SHARED, PD_DATA_EIGEN_SHARED},
        {"eigen_attention:rank_k=7,basis=per_head", PD_DATA_EIGEN_HEAD, PD_DATA_EIGEN_HEAD},
        {"eigen_attention:rank_k=8,basis=rotated", PD_DATA_EIGEN_ROTATED, PD_DATA_EIGEN_ROTATED},
        {"eigen_attention:rank_k=9,rank_v=11", PD_DATA_EIGEN_SCORE, PD_DATA_EIGEN_REBUILD},
    };
    pd_engine *e = case_open_bases(TINY_LLAMA, PD_COMPUTE_INT8, 1, 0, 0);
    const pd_press_model *m = &pd_engine_get_info(e)->press_model;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        const ask q = {.tokens = prompt, .n = N, .max_tokens = 1, .press = t[i].press};
        answer *a = case_run(e, &q);
        pd_seq s = {0};
        pd_err err = {0};
        if (pd_seq_open(&s, &e->run, a->job, &err) != PD_OK) fail_msg("%s", err.msg);
        for (size_t l = 0; l < m->n_layer; l++) {
            for (size_t h = 0; h < m->n_head_kv; h++) {
                const pd_latent *p = pd_kv_latent(&s.kv, l, h);
                const size_t at = (t[i].project == PD_DATA_EIGEN_SHARED ? l : l * m->n_head_kv + h) * m->head_dim * m->head_dim;
                assert_int_equal(p->rank, 5 + i);
                assert_ptr_equal(p->project, pd_press_data_get(m->data, t[i].project) + at);
                assert_ptr_equal(p->rebuild, pd_press_data_get(m->data, t[i].rebuild) + at);
                assert_int_equal(p->turns != NULL, t[i].project != PD_DATA_EIGEN_ROTATED);
                assert_int_equal(pd_latent_v_dim(p), i == 4 ? 11 : m->head_dim);
                const float *values = pd_press_data_get(m->data, PD_DATA_EIGEN_VALUE) + (l * m->n_head_kv + h) * m->head_dim * m->head_dim;
                assert_ptr_equal(p->value, i == 4 ? values : NULL);
            }
        }
        pd_kv_done(&s.kv);
        free(s.shift);
        free(s.guard);
        pd_job_unref(s.job);
        case_drop(a);
    }
    pd_engine_close(e);
}

/* Asked beside others what it would do, it says what it does. */
static void a_comparison_counts_its_numbers(void **state) {
    (void)state;
    static const char *const presses[] = {"eigen_attention:rank_k=4,rank_v=9,window=16", "eigen_attention:rank_k=16", NULL};
    pd_engine *e = case_open_bases(TINY_LLAMA, PD_COMPUTE_INT8, 1, 0, 0);
    const ask alone = {.tokens = prompt, .n = N, .max_tokens = 1, .press = presses[0]};
    const ask both = {.tokens = prompt, .n = N, .explain = true, .compare = presses};
    answer *a = case_run(e, &alone), *b = case_run(e, &both);
    assert_true(a->r->kv.ratio > 0.4);
    assert_true(b->job->compared[0].ratio == a->r->kv.ratio && b->job->compared[1].ratio == 0.0);
    case_drop(a);
    case_drop(b);
    pd_engine_close(e);
}

static pd_status with_types(pd_engine *e, const char *text, pd_kv_type key, pd_kv_type value, answer **ret, pd_err *err) {
    pd_arena arena = {0};
    pd_spec *spec;
    double ratio;
    pd_compression *c = calloc(1, sizeof *c);
    if (pd_spec_parse_text(text, "press", &arena, &spec, &ratio, err) != PD_OK ||
        pd_spec_resolve(spec, &pd_engine_get_info(e)->press_model, &c->press, err) != PD_OK)
        fail_msg("%s", err->msg);
    pd_arena_done(&arena);
    c->kv_key = key;
    c->kv_value = value;
    const ask q = {.tokens = prompt, .n = N, .max_tokens = 4, .logprobs = 50, .comp = c};
    pd_job *job;
    const pd_status rc = case_submit(e, &q, &job, err);
    *ret = rc == PD_OK ? case_wait(job) : NULL;
    return rc;
}

/* Values may be in few bits, keys not. */
static void few_bits_go_along_for_values(void **state) {
    (void)state;
    pd_engine *e = case_open_bases(TINY_GEMMA3, PD_COMPUTE_INT8, 1, 0, 0);
    answer *f16, *few, *none;
    pd_err err = {0};
    assert_int_equal(with_types(e, "eigen_attention", PD_KV_NATIVE, PD_KV_NATIVE, &f16, &err), PD_OK);
    assert_int_equal(with_types(e, "eigen_attention", PD_KV_NATIVE, PD_KV_Q8_0, &few, &err), PD_OK);
    assert_true(few->r->kv.bytes < f16->r->kv.bytes && distance(few, f16) < 0.2 && few->logprob[1] != f16->logprob[1]);
    static const pd_kv_type types[] = {PD_KV_Q8_0, PD_KV_Q4};
    for (size_t i = 0; i < 2; i++) {
        pd_err why = {0};
        assert_int_equal(with_types(e, "eigen_attention", types[i], PD_KV_F16, &none, &why), PD_EINVAL);
        assert_true(strstr(why.msg, pd_kv_type_name(types[i])) && strstr(why.msg, "values may have any type"));
    }
    static const pd_kv_type few_types[] = {PD_KV_Q8_0, PD_KV_Q4};
    for (size_t i = 0; i < 2; i++) { /* whole groups of 32 alone, which is all a head has here */
        pd_err why = {0};
        assert_int_equal(with_types(e, "eigen_attention:rank_v=16", PD_KV_F16, few_types[i], &none, &why), PD_EINVAL);
        assert_true(strstr(why.msg, pd_kv_type_name(few_types[i])) && strstr(why.msg, "in groups of 32 numbers") && strstr(why.msg, "leaves 16 of"));
    }
    /* all numbers: nothing is projected, and any type will do */
    assert_int_equal(with_types(e, "eigen_attention:rank_k=32", PD_KV_Q8_0, PD_KV_F16, &none, &err), PD_OK);
    case_drop(none);
    case_drop(f16);
    case_drop(few);
    case_expect_idle(e);
    pd_engine_close(e);
}

static void ranks_are_steps_of_the_head(void **state) {
    (void)state;
    static const struct {
        const char *press, *says;
    } t[] = {
        {"eigen_attention:rank_k=33", "rank_k is 33; keys of this model are stored in multiples of 2 numbers, up to 32"},
        {"eigen_attention:rank_k=34", "up to 32"},
        {"eigen_attention:rank_k=0", "rank_k"},
        {"eigen_attention:basis=joined", "shared"},
        {"eigen_attention:sinks=17", "sinks"},
        {"composed(knorm,eigen_attention)", "stands alone"},
        {"eigen_attention:rank_k=8,error_budget=0.1", "one of them says what goes"},
        {"eigen_attention:error_budget=0", "error_budget"},
        {"eigen_attention:rank_v=31", "rank_v is 31; values of this model are stored in multiples of 2 numbers, up to 32"},
        {"eigen_attention:rank_v=48", "up to 32"},
        {"eigen_attention:rank_v=0", "rank_v"},
        {"eigen_attention:rank_v=8,error_budget=0.1,budget_for=both", "rank_v is 8 and error_budget 0.1; one of them says what goes"},
        {"eigen_attention:budget_for=both", "there is no error_budget"},
    };
    pd_engine *e = case_open_bases(TINY_GEMMA3, PD_COMPUTE_INT8, 1, 0, 0);
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        pd_arena arena = {0};
        pd_spec *spec;
        pd_press_inst *inst = NULL;
        pd_err err = {0};
        double ratio;
        assert_int_equal(pd_spec_parse_text(t[i].press, "press", &arena, &spec, &ratio, &err), PD_OK);
        if (pd_spec_resolve(spec, &pd_engine_get_info(e)->press_model, &inst, &err) != PD_EINVAL || !strstr(err.msg, t[i].says))
            fail_msg("%s: '%s' should say '%s'", t[i].press, err.msg, t[i].says);
        pd_arena_done(&arena);
    }
    pd_engine_close(e);
}

static pd_engine *open_small(uint64_t kv_bytes) {
    return case_open_bases(TINY_LLAMA, PD_COMPUTE_INT8, 1, kv_bytes, 0);
}

/* What projected keys will not need is not reserved: a pool too small for the dense request takes it. */
static void admission_counts_packed_pages(void **state) {
    (void)state;
    case_expect_less_reserved(open_small, &(ask){.tokens = prompt, .n = 600, .max_tokens = 20, .press = "eigen_attention:rank_k=2"}, 3);
}

/* A guess that is taken back must not have pushed an older key out of the window. */
static void guesses_change_nothing(void **state) {
    (void)state;
    int32_t again[N];
    size_t taken = 0;
    for (size_t i = 0; i < N; i++) again[i] = prompt[i % 25] % 9 + 40;
    for (int gemma = 0; gemma < 2; gemma++) {
        const tiny_arch arch = gemma ? TINY_GEMMA3 : TINY_LLAMA;
        pd_engine *plain = case_open_bases(arch, PD_COMPUTE_INT8, 1, 0, 0), *guess = case_open_bases(arch, PD_COMPUTE_INT8, 1, 0, PD_DRAFT_MAX);
        for (size_t i = 0; i < 5; i++) {
            const ask q = {.tokens = again, .n = N, .max_tokens = 3 * MORE, .logprobs = 3, .press = company[i]};
            taken += case_expect_same_guessed(plain, guess, &q);
        }
        pd_engine_close(plain);
        pd_engine_close(guess);
    }
    assert_true(taken > 0);
}

int main(void) {
    case_prompt(prompt, sizeof prompt / sizeof *prompt, 77);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_fall_by_the_rank),
        cmocka_unit_test(company_and_threads_change_nothing),
        cmocka_unit_test(what_is_lost_is_what_the_basis_misses),
        cmocka_unit_test(a_budget_gives_each_layer_its_rank),
        cmocka_unit_test(a_budget_for_both_is_shared_by_both),
        cmocka_unit_test(a_comparison_counts_its_numbers),
        cmocka_unit_test(heads_have_their_bases),
        cmocka_unit_test(few_bits_go_along_for_values),
        cmocka_unit_test(ranks_are_steps_of_the_head),
        cmocka_unit_test(admission_counts_packed_pages),
        cmocka_unit_test(guesses_change_nothing),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    case_cleanup();
    return failed;
}
