/* SPDX-License-Identifier: Apache-2.0 */
/* sals on an engine with bases measured for its tiny model: what is stored in fewer numbers is what is
 * counted, what is read is what was asked for, and the answer is the same whatever else runs.  Joint
 * latents and the choice themselves are test_joint's business, real models' numbers the golden suite's. */
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

/* Projected of n tokens that came one after the other. */
static size_t packed(size_t n, size_t window, size_t whole) {
    return n > window && n > whole ? (n - window) / PAGE : 0;
}

/* Ranks, windows, thresholds, skipped layers, whole and partial scopes: pages of both kinds to the byte. */
static void bytes_fall_by_the_joint_rank(void **state) {
    (void)state;
    static const size_t lengths[][2] = {{5, 0}, {64, 0}, {80, 0}, {200, 0}, {200, 160}, {333, 90}, {119, 60}};
    static const size_t windows[] = {0, 1, 16, 64, 100}, whole[] = {0, 64, 110, 120, 250};
    for (int gemma = 0; gemma < 2; gemma++) {
        pd_engine *e = case_open_bases(gemma ? TINY_GEMMA3 : TINY_LLAMA, PD_COMPUTE_INT8, 1, 0, 0);
        const size_t d = pd_engine_get_info(e)->head_dim, open_page = pd_engine_get_info(e)->page_bytes;
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            if (gemma && lengths[i][1]) continue; /* its windows straddle other pages in two segments */
            ask q = {.tokens = prompt, .n = lengths[i][0], .max_tokens = 40};
            answer *dense = case_run(e, &q);
            for (size_t k = 0; k < 25; k++) {
                const size_t sixteenths = 1 + (5 * k + i) % 16, rank = d / 16 * sixteenths, n = q.n, end = n + 39;
                const size_t window = windows[k % 5], below = whole[(k / 5 + i) % 5], skip = gemma ? 0 : k % 3;
                const size_t heads = gemma ? 1 : 2 * (3 - skip); /* of layers that are not skipped */
                char text[128];
                snprintf(text, sizeof text, "sals:rank=%zu,window=%zu,sinks=%zu,dense_below=%zu,skip_first=%zu,skip_last=%zu,granularity=%s", sixteenths,
                         window, k % 7, below, skip ? skip - 1 : 0, skip ? (size_t)1 : 0, k % 2 ? "page" : "token");
                q.press = text;
                q.scope = lengths[i][1];
                answer *a = case_run(e, &q);
                const pd_kv_report *kv = &a->r->kv, *full = &dense->r->kv;
                const size_t scope = q.scope ? q.scope : n, page = open_page - PAGE * (d - rank) * 2;
                const size_t pressed = gemma ? 1 : 3; /* layers that presses see */
                const double gone = (double)(packed(scope, window, below) * PAGE * (d - rank)) * (gemma ? 1.0 : (double)(3 - skip));
                assert_int_equal(kv->bytes_after_prefill, full->bytes_after_prefill - heads * packed(n, window, below) * (open_page - page));
                assert_int_equal(kv->bytes, full->bytes - heads * packed(end, window, below) * (open_page - page));
                assert_int_equal(kv->pages, full->pages);
                assert_true(fabs(kv->ratio - gone / (double)(scope * pressed * 2 * d)) < 1e-12);
                assert_true(kv->tokens_kept == full->tokens_kept && kv->tokens_evicted == 0);
                assert_true(kv->bytes_peak <= pd__job_reserved(a->job) + a->job->staging_bytes);
                if (packed(end, window, below) == 0) { /* as without it, to the bit */
                    case_expect_same(a, dense);
                    assert_true(kv->rows_key == kv->rows && kv->ratio == 0.0);
                } else {
                    assert_true(kv->rows_key <= kv->rows && kv->rows_value == kv->rows_key);
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
    "sals:dense_below=0,skip_first=0,skip_last=0,window=64,token_share=0.125",
    "sals:rank=4,dense_below=0,window=20,skip_first=1,skip_last=0,reuse=3",
    "sals:rank=16,score_rank=1,dense_below=0,window=0,sinks=0,skip_first=0,skip_last=0,token_share=0.3",
    "sals:rank=8,dense_below=220,window=33,sinks=16,skip_first=0,skip_last=1,granularity=page,reuse=16",
    "sals:rank=2,dense_below=100,window=8,skip_first=0,skip_last=0,order=random",
    "sals:rank=8,dense_below=0,skip_first=0,skip_last=0,token_share=1,window=64",
};

/* In f16 and f32, on one thread or three, alone, in a batch or as one of several answers. */
static void latents_are_the_same_in_any_company(void **state) {
    (void)state;
    enum { TEXTS = sizeof company / sizeof *company };
    for (int c = 0; c < 3; c++) { /* gemma; llama; llama in f32 */
        const tiny_arch arch = c ? TINY_LLAMA : TINY_GEMMA3;
        const pd_compute compute = c == 2 ? PD_COMPUTE_F32 : PD_COMPUTE_INT8;
        pd_engine *e = case_open_bases(arch, compute, 1, 64 << 20, 0), *three = case_open_bases(arch, compute, 3, 64 << 20, 0);
        pd_job *job[TEXTS][2];
        answer *alone[TEXTS];
        pd_err err = {0};
        for (size_t i = 0; i < TEXTS; i++) {
            const ask q = {.tokens = prompt, .n = N, .max_tokens = MORE, .logprobs = 5, .scope = i % 2 ? 0 : 170, .press = company[i]};
            alone[i] = case_run(e, &q);
            answer *b = case_run(three, &q);
            case_expect_same(alone[i], b);
            assert_int_equal(alone[i]->r->kv.bytes, b->r->kv.bytes);
            assert_int_equal(alone[i]->r->kv.rows_key, b->r->kv.rows_key);
            case_drop(b);
        }
        for (size_t i = 0; i < TEXTS; i++) {
            const ask q = {.tokens = prompt, .n = N, .max_tokens = MORE, .logprobs = 5, .scope = i % 2 ? 0 : 170, .press = company[i]};
            if (case_submit_n(e, &q, 2, job[i], &err) != PD_OK) fail_msg("%s", err.msg);
        }
        for (size_t i = 0; i < TEXTS; i++) {
            for (int k = 0; k < 2; k++) {
                answer *a = case_wait(job[i][k]);
                case_expect_same(a, alone[i]);
                assert_int_equal(a->r->kv.bytes, alone[i]->r->kv.bytes);
                assert_int_equal(a->r->kv.bytes_after_prefill, alone[i]->r->kv.bytes_after_prefill);
                case_drop(a);
            }
            case_drop(alone[i]);
        }
        case_expect_idle(e);
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

static double distance_of(pd_engine *e, const char *press, const answer *dense) {
    const ask q = {.tokens = prompt, .n = N, .max_tokens = 2, .logprobs = 50, .press = press};
    answer *a = case_run(e, &q);
    const double off = distance(a, dense);
    case_drop(a);
    return off;
}

#define ALL "dense_below=0,skip_first=0,skip_last=0,window=0"

/* All numbers of all tokens are the keys themselves; fewer numbers or tokens lose more, whole sinks less. */
static void all_numbers_of_all_tokens_lose_nothing(void **state) {
    (void)state;
    pd_engine *e = case_open_bases(TINY_LLAMA, PD_COMPUTE_F32, 1, 0, 0);
    const ask q = {.tokens = prompt, .n = N, .max_tokens = 2, .logprobs = 50};
    answer *dense = case_run(e, &q);
    const double all = distance_of(e, "sals:rank=16,token_share=1," ALL, dense), many = distance_of(e, "sals:rank=15,token_share=1," ALL, dense),
                 few = distance_of(e, "sals:rank=3,token_share=1," ALL, dense), best = distance_of(e, "sals:rank=16,token_share=0.5," ALL, dense),
                 some = distance_of(e, "sals:rank=16,token_share=0.05," ALL, dense), last = distance_of(e, "sals:rank=16,token_share=0.05,order=recent," ALL, dense),
                 bare = distance_of(e, "sals:rank=1,sinks=0,token_share=1," ALL, dense), sinks = distance_of(e, "sals:rank=1,sinks=16,token_share=1," ALL, dense);
    if (!(all < 2e-5)) fail_msg("all numbers, all tokens: %g", all);
    if (!(many > all && few > 1.5 * many)) fail_msg("%g with 15 sixteenths, %g with 3", many, few);
    if (!(best > 1e-4 && some > best)) fail_msg("half of the tokens: %g, a twentieth: %g", best, some);
    assert_true(last != some && fabs(bare - sinks) > 1e-4);
    case_drop(dense);
    case_expect_idle(e);
    pd_engine_close(e);
}

/* What is read is what was asked for; layers that are skipped read everything. */
static void reads_are_counted(void **state) {
    (void)state;
    pd_engine *e = case_open_bases(TINY_LLAMA, PD_COMPUTE_INT8, 1, 0, 0);
    const ask q = {.tokens = prompt, .n = N, .max_tokens = 2, .press = "sals:token_share=0.25,skip_first=1,skip_last=1,dense_below=0,window=10,sinks=3"};
    answer *a = case_run(e, &q);
    const size_t n = N + 1, old = (n - 10) / PAGE * PAGE, read = (old + 3) / 4 + 3 + n - old;
    assert_int_equal(a->r->kv.rows, 3 * 2 * n); /* one step */
    assert_int_equal(a->r->kv.rows_key, 2 * (2 * n + read));
    assert_int_equal(a->r->kv.rows_value, a->r->kv.rows_key);
    case_drop(a);
    const ask all = {.tokens = prompt, .n = N, .max_tokens = 2, .press = "sals:token_share=1,dense_below=0,window=64"};
    a = case_run(e, &all);
    assert_int_equal(a->r->kv.rows, 0); /* nothing is chosen, nothing counted */
    case_drop(a);
    pd_engine_close(e);
}

/* Calibration says what the chosen tokens held, and layers where it was too little are left alone. */
static void layers_are_skipped_by_their_overlap(void **state) {
    (void)state;
    pd_engine *e = case_open_bases(TINY_LLAMA, PD_COMPUTE_INT8, 1, 0, 0);
    const float *overlap = pd_press_data_get(pd_engine_get_info(e)->press_model.data, PD_DATA_JOINT_OVERLAP);
    for (size_t i = 0; i < 3 * PD_OVERLAP_SETUPS; i++) assert_true(overlap[i] > 0.125f && overlap[i] < 1.0f);
    ask q = {.tokens = prompt, .n = N, .max_tokens = 4, .logprobs = 5};
    answer *dense = case_run(e, &q);
    q.press = "sals:min_overlap=1,skip_first=0,skip_last=0,dense_below=0,window=64";
    answer *a = case_run(e, &q);
    case_expect_same(a, dense);
    assert_int_equal(a->r->kv.bytes, dense->r->kv.bytes);
    case_drop(a);
    case_drop(dense);
    pd_engine_close(e);
}

static void refused(pd_engine *e, const char *text, const char *says) {
    pd_arena arena = {0};
    pd_spec *spec;
    pd_press_inst *inst = NULL;
    pd_err err = {0};
    double ratio;
    pd_compression *c = calloc(1, sizeof *c);
    assert_int_equal(pd_spec_parse_text(text, "press", &arena, &spec, &ratio, &err), PD_OK);
    pd_status rc = pd_spec_resolve(spec, &pd_engine_get_info(e)->press_model, &inst, &err);
    if (rc == PD_OK) rc = pd_compression_take(c, inst, "press", &err);
    if (rc == PD_OK) { /* admission's word */
        const ask q = {.tokens = prompt, .n = N, .max_tokens = 4, .comp = c};
        pd_job *job;
        c = NULL;
        rc = case_submit(e, &q, &job, &err);
        if (rc == PD_OK) case_drop(case_wait(job));
    }
    pd_compression_close(c);
    pd_arena_done(&arena);
    if (rc != PD_EINVAL || !strstr(err.msg, says)) fail_msg("%s: '%s' should say '%s'", text, err.msg, says);
}

static void what_does_not_go_together_is_refused(void **state) {
    (void)state;
    static const char *const t[][2] = {
        {"sals:rank=17", "rank"},
        {"sals:rank=0", "rank"},
        {"sals:rank=4,score_rank=5", "score_rank is 5 and rank 4; tokens are chosen by numbers that are stored, 4 at most"},
        {"sals:token_share=0", "token_share"},
        {"sals:granularity=block", "must be one of \"token\", \"page\""},
        {"sals:reuse=17", "reuse"},
        {"composed(knorm,sals)", "stands alone"},
        {"prefill_decoding(sals,decoding:compression_interval=7,target_size=64(knorm))", "'sals' keeps all heads' tokens together, which 'decoding' would prune"},
        {"prefill_decoding(sals,cam:compression_interval=8,target_size=50(tova))", "which 'cam' would prune"},
        {"quest:token_budget=64(sals:dense_below=0,skip_first=0,skip_last=0)", "one of the two is served at a time"},
        {"hcattention(sals:dense_below=0,skip_first=0,skip_last=0)", "one of the two is served at a time"},
    };
    pd_engine *e = case_open_bases(TINY_LLAMA, PD_COMPUTE_INT8, 1, 0, 0);
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) refused(e, t[i][0], t[i][1]);
    case_expect_idle(e);
    pd_engine_close(e);
    e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    refused(e, "sals", "calibrate -m MODEL --text FILE --only joint");
    pd_engine_close(e);
}

/* Values may be in few bits, keys not. */
static void values_take_any_type(void **state) {
    (void)state;
    pd_engine *e = case_open_bases(TINY_GEMMA3, PD_COMPUTE_INT8, 1, 0, 0);
    ask q = {.tokens = prompt, .n = N, .max_tokens = 4, .logprobs = 50, .press = company[0]};
    answer *f16 = case_run(e, &q);
    q.kv_value = PD_KV_Q4;
    answer *few = case_run(e, &q);
    assert_true(few->r->kv.bytes < f16->r->kv.bytes && distance(few, f16) < 0.3 && few->logprob[1] != f16->logprob[1]);
    q.kv_key = PD_KV_Q8_0;
    pd_job *job;
    pd_err err = {0};
    assert_int_equal(case_submit(e, &q, &job, &err), PD_EINVAL);
    assert_true(strstr(err.msg, "q8_0") && strstr(err.msg, "values may have any type"));
    case_drop(f16);
    case_drop(few);
    case_expect_idle(e);
    pd_engine_close(e);
}

static pd_engine *open_small(uint64_t kv_bytes) {
    return case_open_bases(TINY_LLAMA, PD_COMPUTE_INT8, 1, kv_bytes, 0);
}

/* What narrow keys will not need is not reserved: a pool too small for the dense request takes it. */
static void admission_counts_joint_pages(void **state) {
    (void)state;
    case_expect_less_reserved(open_small, &(ask){.tokens = prompt, .n = 600, .max_tokens = 20, .press = "sals:rank=2,dense_below=300,skip_first=0,skip_last=0,window=64"}, 3);
}

/* Where everything is read, guesses are taken back as of any cache. */
static void guesses_leave_latents_alone(void **state) {
    (void)state;
    int32_t again[N];
    size_t taken = 0;
    for (size_t i = 0; i < N; i++) again[i] = prompt[i % 25] % 9 + 40;
    pd_engine *plain = case_open_bases(TINY_LLAMA, PD_COMPUTE_INT8, 1, 0, 0), *guess = case_open_bases(TINY_LLAMA, PD_COMPUTE_INT8, 1, 0, PD_DRAFT_MAX);
    static const char *const presses[] = {"sals:token_share=1,skip_first=0,skip_last=0,dense_below=0,window=64", "sals:token_share=1,skip_first=0,skip_last=0,dense_below=240,window=64",
                                          "sals:skip_first=0,skip_last=0,dense_below=0,window=64"};
    for (size_t i = 0; i < sizeof presses / sizeof *presses; i++) {
        const ask q = {.tokens = again, .n = N, .max_tokens = 3 * MORE, .logprobs = 3, .press = presses[i]};
        const size_t n = case_expect_same_guessed(plain, guess, &q);
        if (i == 2) assert_int_equal(n, 0); /* what is read is chosen for one token */
        taken += n;
    }
    assert_true(taken > 0);
    pd_engine_close(plain);
    pd_engine_close(guess);
}

int main(void) {
    case_prompt(prompt, sizeof prompt / sizeof *prompt, 77);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_fall_by_the_joint_rank),
        cmocka_unit_test(latents_are_the_same_in_any_company),
        cmocka_unit_test(all_numbers_of_all_tokens_lose_nothing),
        cmocka_unit_test(reads_are_counted),
        cmocka_unit_test(layers_are_skipped_by_their_overlap),
        cmocka_unit_test(what_does_not_go_together_is_refused),
        cmocka_unit_test(values_take_any_type),
        cmocka_unit_test(admission_counts_joint_pages),
        cmocka_unit_test(guesses_leave_latents_alone),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    case_cleanup();
    return failed;
}
