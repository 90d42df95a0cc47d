/* SPDX-License-Identifier: Apache-2.0 */
/* engine/run: several answers to one prompt.  Each is what it would be alone; the
 * prompt is read once; nobody holds more or longer than it should. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/engine_case.h"
#include "tests/unit/failing_malloc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int32_t prompt[2000];

static void submit_n(pd_engine *e, const ask *q, size_t n, pd_job **job) {
    pd_err err = {0};
    if (case_submit_n(e, q, n, job, &err) != PD_OK) fail_msg("%s", err.msg);
}

/* Answer i of seed s is the answer of seed s + i, to the bit; so are its bytes.
 * A batch smaller than n takes them by turns. */
static void each_choice_is_what_it_is_alone(void **state) {
    (void)state;
    enum { N = 5 };
    static const struct {
        tiny_arch arch;
        ask q;
        unsigned parallel;
    } cases[] = {
        {TINY_LLAMA, {.n = 130, .max_tokens = 40}, 16},
        {TINY_LLAMA, {.n = 130, .max_tokens = 40, .press = "knorm@0.5"}, 2},
        {TINY_LLAMA, {.n = 200, .max_tokens = 30, .press = "key_rerotation(knorm)@0.5", .scope = 150}, 16},
        {TINY_LLAMA, {.n = 60, .max_tokens = 70, .decode = "expected_attention", .interval = 10, .target = 32}, 3},
        {TINY_LLAMA, {.n = 90, .max_tokens = 20, .adjust = {.repetition = 1.5f, .frequency = 0.5f}}, 1},
        {TINY_GEMMA3, {.n = 150, .max_tokens = 40, .press = "adakv(snapkv)@0.4"}, 16},
        {TINY_LLAMA, {.n = 20, .max_tokens = 0}, 16},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        pd_engine *e = case_open(cases[c].arch, TINY_Q8_0, &(case_opts){.parallel = cases[c].parallel});
        ask q = cases[c].q;
        q.tokens = prompt;
        q.temperature = 1.0f;
        q.logprobs = 5;
        q.seed = 77;
        pd_job *job[N];
        pd_engine_stats before, after;
        pd_engine_get_stats(e, &before);
        submit_n(e, &q, N, job);
        answer *got[N];
        for (size_t i = 0; i < N; i++) got[i] = case_wait(job[i]);
        case_expect_idle(e);
        pd_engine_get_stats(e, &after);
        assert_int_equal(after.prompt_tokens - before.prompt_tokens, q.n); /* read once */
        bool differ = false;
        for (size_t i = 0; i < N; i++) {
            ask solo = q;
            solo.seed = q.seed + i;
            answer *a = case_run(e, &solo);
            assert_int_equal(got[i]->r->finish, a->r->finish);
            case_expect_same(got[i], a);
            const pd_kv_report *x = &got[i]->r->kv, *y = &a->r->kv;
            assert_string_equal(x->press, y->press);
            assert_int_equal(x->bytes, y->bytes);
            assert_int_equal(x->bytes_after_prefill, y->bytes_after_prefill);
            assert_int_equal(x->bytes_dense, y->bytes_dense);
            assert_int_equal(x->tokens_seen, y->tokens_seen);
            assert_true(x->ratio == y->ratio && x->tokens_kept == y->tokens_kept);
            assert_int_equal(got[i]->r->timing.prompt_n, i == 0 ? q.n : 0);
            if (i) assert_true(x->bytes_peak >= x->bytes && x->bytes_peak <= y->bytes_peak);
            else assert_int_equal(x->bytes_peak, y->bytes_peak);
            differ = differ || (i && got[i]->n && memcmp(got[i]->id, got[0]->id, got[i]->n * sizeof(int32_t)) != 0);
            case_drop(a);
        }
        assert_true(differ || q.max_tokens == 0);
        for (size_t i = 0; i < N; i++) case_drop(got[i]);
        case_expect_idle(e);
        pd_engine_close(e);
    }
}

/* The first answer may be over and let go while the others go on with its prompt and press. */
static void the_first_may_go_first(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, &(case_opts){.parallel = 2});
    const ask q = {.tokens = prompt, .n = 100, .max_tokens = 300, .press = "knorm@0.5", .decode = "knorm", .interval = 20, .target = 64};
    pd_job *job[4];
    submit_n(e, &q, 4, job);
    while (pd_job_get_state(job[0]) < PD_JOB_DECODE) usleep(50);
    pd_job_cancel(job[0]);
    case_drop(case_wait(job[0]));
    for (size_t i = 1; i < 4; i++) {
        answer *a = case_wait(job[i]);
        assert_int_equal(a->r->finish, PD_FINISH_LENGTH);
        assert_int_equal(a->n, 300);
        case_drop(a);
    }
    case_expect_idle(e);
    pd_engine_close(e);
}

/* Cancelled in the queue and while the prompt is read: some go, the rest are served; all go, and nothing is read. */
static void cancelled_choices_leave_the_others(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, &(case_opts){.parallel = 2});
    for (size_t round = 0; round < 6; round++) {
        pd_job *running, *job[3];
        submit_n(e, &(ask){.tokens = prompt, .n = 1900, .max_tokens = 100}, 1, &running);
        submit_n(e, &(ask){.tokens = prompt, .n = 300, .max_tokens = 5}, 3, job);
        const size_t first = round % 2 ? 0 : 1, second = round % 3;
        if (round >= 3)
            while (pd_job_get_state(job[0]) < PD_JOB_PREFILL) usleep(20);
        pd_job_cancel(job[first]);
        pd_job_cancel(job[second]);
        for (size_t i = 0; i < 3; i++) {
            answer *a = case_wait(job[i]);
            const bool gone = i == first || i == second;
            if (!gone) assert_int_equal(a->n, 5);
            if (gone && round < 3) assert_int_equal(a->n, 0);
            if (!gone) assert_int_equal(a->r->finish, PD_FINISH_LENGTH);
            case_drop(a);
        }
        submit_n(e, &(ask){.tokens = prompt, .n = 300, .max_tokens = 5}, 3, job);
        for (size_t i = 0; i < 3; i++) pd_job_cancel(job[i]);
        for (size_t i = 0; i < 3; i++) case_drop(case_wait(job[i]));
        pd_job_cancel(running);
        case_drop(case_wait(running));
        case_expect_idle(e);
    }
    pd_engine_close(e);
}

static void closing_ends_all_choices(void **state) {
    (void)state;
    for (int round = 0; round < 20; round++) {
        pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, &(case_opts){.parallel = 2, .threads = 2});
        pd_job *job[2][6];
        for (size_t k = 0; k < 2; k++)
            submit_n(e, &(ask){.tokens = prompt, .n = 200, .max_tokens = 800, .press = "knorm@0.5"}, 6, job[k]);
        usleep((useconds_t)(round * 300));
        pd_engine_close(e);
        for (size_t i = 0; i < 12; i++) {
            pd_job *j = job[i / 6][i % 6];
            assert_int_equal(pd_job_get_state(j), PD_JOB_DONE);
            assert_int_equal(pd_job_get_result(j)->finish, PD_FINISH_CANCELLED);
            pd_job_unref(j);
        }
    }
}

/* All answers are counted before the prompt is read; a pool that is just big
 * enough never holds more than it has. */
static void admission_counts_every_choice(void **state) {
    (void)state;
    enum { HEADS = 3 * 2, PAGE_BYTES = 16 * 16 * 2 * 2, N = 4 };
    const uint64_t each = (uint64_t)HEADS * (100 / 16 + 1) * PAGE_BYTES, staging = 2u * 2 * 60 * 16 * 4;
    const ask q = {.tokens = prompt, .n = 60, .max_tokens = 40};
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, &(case_opts){.kv_bytes = N * each + (staging + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES});
    pd_job *job[PD_CHOICES_MAX + 1];
    pd_err err = {0};
    assert_int_equal(case_submit_n(e, &q, N + 1, job, &err), PD_EBUDGET);
    assert_string_equal(err.param, "n");
    char want[64];
    snprintf(want, sizeof want, "%llu bytes", (unsigned long long)((N + 1) * each + staging));
    if (!strstr(err.msg, "5 answers") || !strstr(err.msg, want)) fail_msg("'%s' lacks '5 answers' or '%s'", err.msg, want);
    err = (pd_err){0};
    assert_int_equal(case_submit_n(e, &q, PD_CHOICES_MAX + 1, job, &err), PD_EINVAL);
    assert_non_null(strstr(err.msg, "1 to 128"));
    const ask explain = {.tokens = prompt, .n = 60, .explain = true};
    assert_int_equal(case_submit_n(e, &explain, 2, job, &(pd_err){0}), PD_EINVAL);
    submit_n(e, &q, N, job);
    for (size_t i = 0; i < N; i++) {
        answer *a = case_wait(job[i]);
        assert_int_equal(a->n, 40);
        case_drop(a);
    }
    submit_n(e, &q, 2, job); /* 2 and 3 are more than 4: the second group waits */
    submit_n(e, &q, 3, job + 2);
    for (size_t i = 0; i < 5; i++) {
        answer *a = case_wait(job[i]);
        assert_int_equal(a->r->finish, PD_FINISH_LENGTH);
        assert_int_equal(a->n, 40);
        case_drop(a);
    }
    pd_engine_stats s;
    pd_engine_get_stats(e, &s);
    assert_true(s.kv_bytes_peak > 3 * each && s.kv_bytes_peak <= N * each + staging);
    case_expect_idle(e);
    pd_engine_close(e);
}

/* ---- no memory, at every allocation between the submit and the last answer ---- */

static long to_succeed;

static void arm(void) {
    failing_malloc_after(to_succeed);
}

static void any_allocation_may_fail(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    const ask q = {.tokens = prompt, .n = 40, .max_tokens = 4, .press = "knorm@0.5", .adjust = {.presence = 1.0f},
                   .score = true, .score_top = 2};
    size_t refused = 0, partly = 0;
    long n = 0;
    case_before_submit = arm;
    for (bool hit = true; hit; n++) {
        if (n > 2000) fail_msg("allocations never end");
        pd_job *job[3];
        pd_err err = {0};
        const unsigned long before = failing_malloc_failed();
        to_succeed = n;
        const pd_status rc = case_submit_n(e, &q, 3, job, &err);
        for (size_t i = 0; i < 3 && rc == PD_OK; i++)
            while (pd_job_get_state(job[i]) != PD_JOB_DONE) usleep(20);
        failing_malloc_after(-1);
        hit = failing_malloc_failed() != before;
        if (rc != PD_OK) assert_int_equal(rc, PD_ENOMEM);
        refused += rc != PD_OK;
        size_t good = 0;
        for (size_t i = 0; i < 3 && rc == PD_OK; i++) {
            answer *a = case_wait(job[i]);
            if (a->r->finish == PD_FINISH_ERROR) {
                assert_int_equal(a->r->err.code, PD_ENOMEM);
            } else {
                assert_int_equal(a->n, 4);
                good++;
            }
            case_drop(a);
        }
        partly += good == 1 || good == 2;
        case_expect_idle(e);
    }
    case_before_submit = NULL;
    if (n < 20 || refused < 10 || partly < 1) fail_msg("%ld rounds, %zu refused, %zu in part", n, refused, partly);
    pd_engine_close(e);
}

static int group_begin(void **state) {
    (void)state;
    case_prompt(prompt, 2000, 11);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_choice_is_what_it_is_alone),
        cmocka_unit_test(the_first_may_go_first),
        cmocka_unit_test(cancelled_choices_leave_the_others),
        cmocka_unit_test(closing_ends_all_choices),
        cmocka_unit_test(admission_counts_every_choice),
        cmocka_unit_test(any_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, group_begin, case_group_end);
}
