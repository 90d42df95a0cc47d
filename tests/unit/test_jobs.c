/* SPDX-License-Identifier: Apache-2.0 */
/* engine/run: what happens to jobs.  Refusals, cancelling at every stage, a pool
 * that holds few of many, numbers that add up, memory that is not there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/num.h"
#include "engine/base/clock.h"
#include "tests/unit/engine_case.h"
#include "tests/unit/failing_malloc.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 16, LLAMA_HEADS = 3 * 2, LLAMA_TOKEN_BYTES = LLAMA_HEADS * 16 * 2 * 2 };

static int32_t prompt[2000];

static void next_one_works(pd_engine *e) {
    const ask q = {.tokens = prompt, .n = 20, .max_tokens = 3};
    answer *a = case_run(e, &q);
    assert_int_equal(a->n, 3);
    assert_int_equal(a->r->finish, PD_FINISH_LENGTH);
    case_drop(a);
}

static void refuse(pd_engine *e, const ask *q, pd_status code, const char *param, const char *part1, const char *part2) {
    pd_job *job = NULL;
    pd_err err = {0};
    assert_int_equal(case_submit(e, q, &job, &err), code);
    assert_null(job);
    assert_string_equal(err.param, param);
    if (!strstr(err.msg, part1) || !strstr(err.msg, part2)) fail_msg("'%s' names neither or only one of '%s', '%s'", err.msg, part1, part2);
    assert_null(strchr(err.msg, '\n'));
    next_one_works(e);
}

static void refusals_name_the_numbers(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, &(case_opts){.ctx = 500, .kv_bytes = 100 << 10});
    refuse(e, &(ask){.tokens = prompt, .n = 501, .max_tokens = 1}, PD_ECONTEXT, "prompt", "500", "501");
    refuse(e, &(ask){.tokens = prompt, .n = 400, .max_tokens = 101}, PD_ECONTEXT, "prompt", "400", "101");
    refuse(e, &(ask){.tokens = prompt, .n = 0, .max_tokens = 1}, PD_EINVAL, "prompt", "empty", "prompt");
    refuse(e, &(ask){.tokens = prompt, .n = 300, .max_tokens = 100}, PD_EBUDGET, "max_tokens", "300 prompt + 100", "102400");
    int32_t bad[3] = {1, TINY_LLAMA_VOCAB, 2};
    refuse(e, &(ask){.tokens = bad, .n = 3, .max_tokens = 1}, PD_EINVAL, "prompt", "prompt[1] is token 267", "0..266");
    bad[1] = -1;
    refuse(e, &(ask){.tokens = bad, .n = 3, .max_tokens = 1}, PD_EINVAL, "prompt", "prompt[1]", "-1");
    refuse(e, &(ask){.tokens = prompt, .n = 3, .max_tokens = 1, .stop = ""}, PD_EINVAL, "stop", "stop[0]", "256");
    refuse(e, &(ask){.tokens = prompt, .n = 3, .max_tokens = 1, .logprobs = 101}, PD_EINVAL, "logprobs", "101", "100");
    case_expect_idle(e);
    pd_engine_close(e);
}

static void refusals_name_the_token(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    static const int32_t bad[] = {3, TINY_LLAMA_VOCAB};
    static const pd_token_bias bias[] = {{-1, 1.0f}};
    refuse(e, &(ask){.tokens = prompt, .n = 3, .max_tokens = 1, .stop_id = bad, .n_stop_id = 2}, PD_EINVAL, "stop_token_ids",
           "stop_token_ids[1] is token 267", "0..266");
    refuse(e, &(ask){.tokens = prompt, .n = 3, .max_tokens = 1, .adjust = {.bias = bias, .n_bias = 1}}, PD_EINVAL, "logit_bias",
           "logit_bias[0] is token -1", "0..266");
    pd_engine_close(e);
}

/* ---- how an answer ends ---- */

/* A bias makes the answer what it says; stop tokens and min_tokens end it. */
static void biased_answers_end_where_they_should(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    static const pd_token_bias always_x[] = {{'x', 1000.0f}}, always_end[] = {{TINY_IM_END, 1000.0f}};
    static const int32_t stop[] = {'y', 'x'};
    const ask q = {.tokens = prompt, .n = 20, .max_tokens = 12, .logprobs = 3};
    answer *plain = case_run(e, &q);

    ask biased = q;
    biased.adjust = (pd_adjust){.bias = always_x, .n_bias = 1};
    answer *a = case_run(e, &biased);
    assert_string_equal(a->text.data, "xxxxxxxxxxxx");
    assert_int_equal(a->r->finish, PD_FINISH_LENGTH);
    assert_true(plain->id[0] != 'x');
    assert_memory_equal(a->top[0], plain->top[0], 3 * sizeof *a->top[0]); /* of the logits as the model gave them */
    case_drop(a);

    biased.stop_id = stop;
    biased.n_stop_id = 2;
    a = case_run(e, &biased);
    assert_int_equal(a->n, 0);
    assert_int_equal(a->r->finish, PD_FINISH_STOP);
    case_drop(a);
    biased.adjust.min_tokens = 5;
    a = case_run(e, &biased);
    assert_int_equal(a->n, 5);
    for (size_t i = 0; i < 5; i++) assert_true(a->id[i] != 'x' && a->id[i] != 'y');
    assert_int_equal(a->r->finish, PD_FINISH_STOP);
    case_drop(a);

    ask ends = q;
    ends.keep_eos = true;
    ends.adjust = (pd_adjust){.bias = always_end, .n_bias = 1};
    a = case_run(e, &ends);
    assert_int_equal(a->n, 0);
    case_drop(a);
    ends.adjust.min_tokens = 4;
    a = case_run(e, &ends);
    assert_int_equal(a->n, 4);
    assert_int_equal(a->r->finish, PD_FINISH_STOP);
    case_drop(a);

    /* A penalty that outweighs every logit: no token comes twice. */
    ask apart = q;
    apart.adjust = (pd_adjust){.presence = 1000.0f};
    a = case_run(e, &apart);
    for (size_t i = 0; i < a->n; i++)
        for (size_t j = 0; j < i; j++) assert_int_not_equal(a->id[i], a->id[j]);
    case_drop(a);
    case_drop(plain);
    case_expect_idle(e);
    pd_engine_close(e);
}

/* ---- waiting and leaving ---- */

static void wait_for(const pd_job *job, pd_job_state at_least) {
    while (pd_job_get_state(job) < at_least) usleep(50);
}

static pd_job *submit(pd_engine *e, const ask *q) {
    pd_job *job = NULL;
    pd_err err = {0};
    if (case_submit(e, q, &job, &err) != PD_OK) fail_msg("%s", err.msg);
    return job;
}

static void cancelled_jobs_leave_at_every_stage(void **state) {
    (void)state;
    /* answers of seconds: a test thread that lost its processor still finds them running */
    enum { LONG = 40000 };
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, &(case_opts){.parallel = 1, .queue = 2, .ctx = LONG + 2000, .kv_bytes = 64 << 20});
    const ask lasting = {.tokens = prompt, .n = 10, .max_tokens = LONG}, big = {.tokens = prompt, .n = 2000, .max_tokens = LONG};
    for (int round = 0; round < 5; round++) {
        pd_job *running = submit(e, &lasting);
        wait_for(running, PD_JOB_DECODE);
        pd_job *first = submit(e, &big), *second = submit(e, &lasting), *third = NULL;
        pd_err err = {0};
        assert_int_equal(case_submit(e, &lasting, &third, &err), PD_EBUSY);
        assert_non_null(strstr(err.msg, "2 requests"));
        pd_job_cancel(second); /* queued */
        answer *a = case_wait(second);
        assert_int_equal(a->r->finish, PD_FINISH_CANCELLED);
        assert_int_equal(a->n, 0);
        case_drop(a);
        pd_job_cancel(running); /* decoding */
        pd_job_cancel(running); /* idempotent */
        a = case_wait(running);
        assert_int_equal(a->r->finish, PD_FINISH_CANCELLED);
        pd_job_cancel(running); /* too late is fine */
        case_drop(a);
        wait_for(first, PD_JOB_PREFILL);
        pd_job_cancel(first); /* prefilling, or past it on a fast machine */
        a = case_wait(first);
        assert_int_equal(a->r->finish, PD_FINISH_CANCELLED);
        case_drop(a);
        case_expect_idle(e);
        next_one_works(e);
    }
    pd_engine_close(e);
}

static void cancel_replays(pd_engine *e, const ask *q) {
    uint64_t whole = UINT64_MAX; /* of the quickest: the first finds cold caches, any a busy machine */
    for (int i = 0; i < 4; i++) {
        const uint64_t t0 = pd_now_ns();
        case_drop(case_run(e, q));
        const uint64_t took = pd_now_ns() - t0;
        if (took < whole) whole = took;
    }
    size_t cancelled = 0;
    for (uint64_t part = 1; part < 9; part++) { /* the prompt is a fifth of the work, replays the rest */
        pd_job *job = submit(e, q);
        const struct timespec pause = {.tv_nsec = (long)(whole * part / 10 % 1000000000)};
        nanosleep(&pause, NULL);
        pd_job_cancel(job);
        answer *a = case_wait(job);
        cancelled += a->r->finish == PD_FINISH_CANCELLED;
        case_drop(a);
        case_expect_idle(e);
    }
    assert_true(cancelled > 0);
}

/* Cancelled here and there between the first token's prefill and the last replay's
 * end: all pages come back, and the next request is served. */
static void a_cancelled_replay_leaves_nothing(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    static const char *const presses[] = {"kvzip:chunk_size=300@0.5", "kvgrad:chunk_size=300@0.5"};
    for (size_t k = 0; k < 2; k++) cancel_replays(e, &(ask){.tokens = prompt, .n = 1200, .max_tokens = 1, .press = presses[k]});
    next_one_works(e);
    pd_engine_close(e);
}

/* Rows that go back hold every layer's input: a chunk that the pool has no room for is refused. */
static void a_way_back_is_admitted(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, &(case_opts){.kv_bytes = 4 << 20, .threads = 1});
    ask q = {.tokens = prompt, .n = 1200, .max_tokens = 1, .press = "kvzip:chunk_size=1200@0.5"};
    case_drop(case_run(e, &q));
    q.press = "kvgrad:chunk_size=1200@0.5";
    refuse(e, &q, PD_EBUDGET, "max_tokens", "1200 prompt + 1", "the pool has 4194304");
    q.press = "kvgrad:chunk_size=50@0.5";
    case_drop(case_run(e, &q));
    case_expect_idle(e);
    pd_engine_close(e);
}

/* A stream gets its steps between the units of a replay, not only between those of
 * the prompt: seen from outside, steps are counted while units of the replay are. */
static void a_stream_goes_on_during_a_replay(void **state) {
    (void)state;
    enum { TOKENS = 1200, TILE = 128, LAYERS = 3, PROMPT_UNITS = (TOKENS + TILE - 1) / TILE * LAYERS };
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    uint64_t most = 0;
    for (int round = 0; round < 10 && most < 3; round++) {
        pd_job *stream = submit(e, &(ask){.tokens = prompt, .n = 10, .max_tokens = 900, .keep_eos = true});
        pd_engine_stats s;
        pd_engine_get_stats(e, &s);
        for (const uint64_t steps = s.decode_steps; s.decode_steps == steps;) pd_engine_get_stats(e, &s);
        const uint64_t before = s.prefill_units;
        pd_job *job = submit(e, &(ask){.tokens = prompt, .n = TOKENS, .max_tokens = 1, .press = round % 2 ? "kvzip:chunk_size=40@0.5" : "kvgrad:chunk_size=150@0.5"});
        uint64_t first = 0, last = 0;
        while (pd_job_get_state(job) != PD_JOB_DONE) {
            pd_engine_get_stats(e, &s);
            if (s.prefill_units <= before + PROMPT_UNITS || pd_job_get_state(job) == PD_JOB_DONE) continue;
            if (!first) first = s.decode_steps;
            last = s.decode_steps;
        }
        most = last - first > most ? last - first : most;
        case_drop(case_wait(job));
        pd_job_cancel(stream);
        case_drop(case_wait(stream));
        case_expect_idle(e);
    }
    assert_true(most >= 3);
    pd_engine_close(e);
}

static void closing_ends_all_jobs(void **state) {
    (void)state;
    for (int round = 0; round < 20; round++) {
        pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, &(case_opts){.parallel = 2, .threads = 2});
        pd_job *job[8];
        for (size_t i = 0; i < 8; i++)
            job[i] = submit(e, &(ask){.tokens = prompt, .n = i % 2 ? 5 : 700, .max_tokens = 900, .press = i % 3 ? NULL : "knorm@0.5"});
        usleep((useconds_t)(round * 300));
        pd_engine_close(e);
        for (size_t i = 0; i < 8; i++) {
            assert_int_equal(pd_job_get_state(job[i]), PD_JOB_DONE);
            pd_job_cancel(job[i]); /* the engine is gone: nothing to do */
            assert_int_equal(pd_job_get_result(job[i])->finish, PD_FINISH_CANCELLED);
            pd_job_unref(job[i]);
        }
    }
}

/* Most pages a dense llama job of that many tokens may come to hold. */
static uint64_t reserved_bytes(size_t tokens, size_t page_bytes) {
    return (uint64_t)LLAMA_HEADS * (tokens / PAGE + 1) * page_bytes;
}

static void a_small_pool_serves_many(void **state) {
    (void)state;
    enum { JOBS = 50, TOKENS = 100 };
    const size_t page = 16 * 16 * 2 * 2;
    const uint64_t staging = 2u * 2 * 60 * 16 * 4;
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, &(case_opts){.kv_bytes = 3 * reserved_bytes(TOKENS, page) + staging});
    pd_job *job[JOBS];
    unsigned most = 0;
    for (size_t i = 0; i < JOBS; i++)
        job[i] = submit(e, &(ask){.tokens = prompt + i, .n = 60, .max_tokens = 40, .press = i % 4 == 3 ? "knorm@0.3" : NULL});
    while (pd_job_get_state(job[JOBS - 1]) != PD_JOB_DONE) {
        pd_engine_stats s;
        pd_engine_get_stats(e, &s);
        most = s.running > most ? s.running : most;
        assert_true(s.kv_bytes_resident <= 3 * reserved_bytes(TOKENS, page) + staging);
        usleep(200);
    }
    for (size_t i = 0; i < JOBS; i++) {
        answer *a = case_wait(job[i]);
        assert_int_equal(a->r->finish, PD_FINISH_LENGTH);
        assert_int_equal(a->n, 40);
        case_drop(a);
    }
    assert_in_range(most, 1, 4);
    case_expect_idle(e);
    pd_engine_close(e);
}

/* ---- numbers ---- */

static void numbers_add_up(void **state) {
    (void)state;
    static const char *const presses[] = {NULL, "knorm@0.5", "adakv(knorm)@0.7", "key_rerotation(knorm)@0.4"};
    for (int c = 0; c < 2; c++) {
        pd_engine *e = case_open(c ? TINY_GEMMA3 : TINY_LLAMA, TINY_Q8_0, NULL);
        const pd_engine_info *info = pd_engine_get_info(e);
        uint64_t prompt_tokens = 0, generated = 0, peak = 0;
        for (size_t i = 0; i < 16; i++) {
            const size_t n = 1 + i * 21, new_tokens = 1 + i * 3, seen = n + new_tokens - 1;
            const ask q = {.tokens = prompt, .n = n, .max_tokens = new_tokens, .press = presses[i % 4], .keep_eos = i % 2};
            answer *a = case_run(e, &q);
            const pd_kv_report *kv = &a->r->kv;
            assert_int_equal(a->r->timing.prompt_n, n);
            prompt_tokens += n;
            generated += a->r->timing.predicted_n;
            peak = kv->bytes_peak > peak ? kv->bytes_peak : peak;
            uint64_t slots = 0, pages = 0, kept = 0;
            for (size_t l = 0; l < info->n_layer; l++) {
                for (size_t h = 0; h < info->n_head_kv; h++) {
                    pages += kv->head_pages[l * info->n_head_kv + h];
                    kept += kv->kept[l * info->n_head_kv + h];
                }
                slots += c && l != 5 ? pd_min_size((size_t)kv->tokens_seen, TINY_WINDOW) : kv->tokens_seen;
            }
            if (!q.keep_eos) assert_int_equal(kv->tokens_seen, seen);
            assert_int_equal(kv->pages, pages);
            assert_int_equal(kv->bytes, pages * info->page_bytes);
            assert_int_equal(kv->bytes_dense, slots * info->n_head_kv * info->head_dim * 2 * 2);
            assert_true(fabs(kv->tokens_kept * (double)(info->n_layer * info->n_head_kv) - (double)kept) < 1e-6);
            assert_true(kv->bytes_peak >= kv->bytes && kv->bytes_peak >= kv->bytes_after_prefill);
            /* staging: f32 keys and values of one layer, and no more than all pages beside it */
            const uint64_t staging = 2u * info->n_head_kv * n * info->head_dim * 4;
            assert_true(kv->bytes_peak >= staging);
            assert_true(kv->bytes_peak <= staging + pd_max_size(kv->bytes, kv->bytes_after_prefill) + info->n_layer * info->n_head_kv * info->page_bytes);
            if (!q.press) assert_int_equal(kv->tokens_evicted, 0);
            case_drop(a);
        }
        case_expect_idle(e);
        pd_engine_stats s;
        pd_engine_get_stats(e, &s);
        assert_int_equal(s.prompt_tokens, prompt_tokens);
        assert_int_equal(s.generated_tokens, generated);
        assert_true(s.kv_bytes_peak >= s.kv_bytes_resident && s.kv_bytes_peak <= peak);
        assert_int_equal(info->kv_token_bytes, info->n_layer * info->n_head_kv * info->head_dim * 4);
        if (!c) assert_int_equal(info->kv_token_bytes, LLAMA_TOKEN_BYTES);
        pd_engine_close(e);
    }
}

/* ---- memory that is not there ---- */

static const ask small = {.tokens = prompt, .n = 150, .max_tokens = 12, .logprobs = 3, .press = "expected_attention@0.5",
                          .decode = "snapkv:window_size=4", .interval = 4, .target = 30, .explain = false};

/* with tags beside the slots, merged values, and tokens that go one by one */
static const ask merging = {.tokens = prompt, .n = 60, .max_tokens = 14, .logprobs = 3,
                            .press = "prefill_decoding(knorm@0.5,cam:compression_interval=4,target_size=24(tova))", .scope = 40};
static const ask sparse = {.tokens = prompt, .n = 60, .max_tokens = 14, .logprobs = 3, .scope = 40,
                           .press = "dms:threshold=-1.3,sliding_window_size=6,decoding=true(knorm)"};

/* The press is made before memory runs out. */
static long to_succeed;

static void arm(void) {
    failing_malloc_after(to_succeed);
}

static void any_allocation_may_fail(void **state) {
    (void)state;
    static const ask *const asks[] = {&small, &small, &merging, &sparse};
    for (size_t c = 0; c < sizeof asks / sizeof *asks; c++) {
        const ask *q = asks[c];
        pd_engine *e = case_open(c == 1 ? TINY_GEMMA3 : TINY_LLAMA, TINY_Q8_0, NULL);
        answer *want = case_run(e, q);
        assert_true(want->r->kv.tokens_evicted > 0);
        long n = 0;
        for (bool hit = true; hit; n++) {
            if (n > 2000) fail_msg("allocations never end");
            pd_job *job = NULL;
            pd_err err = {0};
            const unsigned long before = failing_malloc_failed();
            case_before_submit = arm;
            to_succeed = n;
            const pd_status rc = case_submit(e, q, &job, &err);
            case_before_submit = NULL;
            if (rc == PD_OK) {
                while (pd_job_get_state(job) != PD_JOB_DONE) usleep(50);
            } else {
                assert_int_equal(rc, PD_ENOMEM);
                assert_string_not_equal(err.msg, "");
            }
            failing_malloc_after(-1);
            hit = failing_malloc_failed() != before;
            if (rc == PD_OK) {
                answer *a = case_wait(job);
                if (a->r->finish == PD_FINISH_ERROR)
                    assert_int_equal(a->r->err.code, PD_ENOMEM);
                else
                    case_expect_same(a, want);
                case_drop(a);
            }
            case_expect_idle(e);
            answer *next = case_run(e, q);
            case_expect_same(next, want);
            case_drop(next);
        }
        assert_in_range(n, 10, 2000); /* 1: nothing was wrapped */
        case_drop(want);
        pd_engine_close(e);
    }
}

static _Atomic unsigned long at_token[1000];
static _Atomic size_t n_told;

static void note_allocations(void *arg, pd_job *job) {
    (void)arg;
    (void)job;
    const size_t i = atomic_fetch_add(&n_told, 1);
    if (i < 1000) at_token[i] = failing_malloc_count();
}

/* Between two tokens nothing is allocated; the answer's text alone grows, by half
 * of itself, so that the chance of it is small and shrinking. */
static void decoding_does_not_allocate(void **state) {
    (void)state;
    enum { TOKENS = 600 };
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, &(case_opts){.threads = 2});
    pd_job_params p = {.tokens = prompt, .n_tokens = 50, .max_tokens = TOKENS, .max_given = true, .sampling = {.temperature = 1.0f, .top_p = 0.9f, .seed = 4},
                       .n_logprobs = -1, .ignore_eos = true, .notify = note_allocations};
    pd_job *job = NULL;
    atomic_store(&n_told, 0);
    assert_int_equal(pd_engine_submit(e, &p, &job, NULL), PD_OK);
    while (pd_job_get_state(job) != PD_JOB_DONE) usleep(500);
    assert_int_equal(atomic_load(&n_told), TOKENS); /* each token but the last, and the end */
    unsigned grew = 0;
    for (size_t i = 4; i < TOKENS; i++) {
        const unsigned long more = at_token[i] - at_token[i - 1];
        assert_in_range(more, 0, 1);
        grew += (unsigned)more;
    }
    assert_in_range(grew, 0, 5); /* 256 bytes to what 600 tokens may spell */
    case_drop(case_wait(job));
    pd_engine_close(e);
}

static int group_begin(void **state) {
    (void)state;
    case_prompt(prompt, 2000, 77);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refusals_name_the_numbers),
        cmocka_unit_test(refusals_name_the_token),
        cmocka_unit_test(biased_answers_end_where_they_should),
        cmocka_unit_test(cancelled_jobs_leave_at_every_stage),
        cmocka_unit_test(a_cancelled_replay_leaves_nothing),
        cmocka_unit_test(a_way_back_is_admitted),
        cmocka_unit_test(a_stream_goes_on_during_a_replay),
        cmocka_unit_test(closing_ends_all_jobs),
        cmocka_unit_test(a_small_pool_serves_many),
        cmocka_unit_test(numbers_add_up),
        cmocka_unit_test(any_allocation_may_fail),
        cmocka_unit_test(decoding_does_not_allocate),
    };
    return cmocka_run_group_tests(tests, group_begin, case_group_end);
}
