/* SPDX-License-Identifier: Apache-2.0 */
/* engine/run with a cache in few bits: what it holds, what admission promised, who
 * else may run, and what a model's heads do not allow. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/run/job.h"
#include "tests/unit/engine_case.h"

#include <stdlib.h>
#include <string.h>

enum { N = 300, MORE = 40, KINDS = 9 };

static const struct {
    pd_kv_type key, value;
} kinds[KINDS] = {
    {PD_KV_NATIVE, PD_KV_NATIVE}, {PD_KV_F16, PD_KV_F16},     {PD_KV_Q8_0, PD_KV_Q8_0},
    {PD_KV_Q4, PD_KV_Q4},         {PD_KV_Q8_0, PD_KV_Q4},     {PD_KV_Q4, PD_KV_NATIVE},
    {PD_KV_NATIVE, PD_KV_Q8_0},   {PD_KV_F16, PD_KV_Q4},      {PD_KV_Q4, PD_KV_Q8_0},
};

/* A wish with a press in text form ("" = none) and pages of kind k. */
static pd_compression *wish(const pd_engine *e, const char *press, int k) {
    pd_compression *c = calloc(1, sizeof *c);
    c->kv_key = kinds[k].key;
    c->kv_value = kinds[k].value;
    if (*press) {
        pd_arena arena = {0};
        pd_spec *spec;
        pd_press_inst *inst;
        double ratio;
        assert_int_equal(pd_spec_parse_text(press, "press", &arena, &spec, &ratio, NULL), PD_OK);
        assert_int_equal(pd_spec_resolve(spec, &pd_engine_get_info(e)->press_model, &inst, NULL), PD_OK);
        assert_int_equal(pd_compression_take(c, inst, "press", NULL), PD_OK);
        c->ratio = ratio >= 0.0 ? ratio : 0.0;
        pd_arena_done(&arena);
    }
    return c;
}

static size_t page_bytes(const pd_engine *e, int k, pd_kv_type native) {
    const pd_codec c = pd_codec_of(kinds[k].key ? kinds[k].key : native, kinds[k].value ? kinds[k].value : native);
    return pd_codec_page_bytes(&c, pd_engine_get_info(e)->head_dim, pd_engine_get_info(e)->head_dim);
}

/* Every head holds its last two pages once more if it has q4 in them. */
static uint64_t twice(const pd_engine *e, const pd_kv_report *kv) {
    const pd_codec c = pd_codec_of(kv->kv_key, kv->kv_value);
    pd_codec recent;
    if (!pd_codec_recent(&c, &recent)) return 0;
    assert_int_equal(recent.key == PD_KV_Q4 || recent.value == PD_KV_Q4, 0);
    return kv->n_layer * kv->n_head_kv * 2 * pd_codec_page_bytes(&recent, pd_engine_get_info(e)->head_dim, pd_engine_get_info(e)->head_dim);
}

static const char *const presses[] = {"", "knorm@0.5", "adakv(snapkv:window_size=8)@0.5", "merging(keydiff)@0.7",
                                      "decoding:compression_interval=8,target_size=64(knorm)",
                                      "decoding:compression_interval=8,target_size=64(tova)",
                                      "cam:compression_interval=8,target_size=64(tova)"};

static void pages_are_counted_in_their_size(void **state) {
    (void)state;
    int32_t prompt[N];
    case_prompt(prompt, N, 3);
    for (int f32 = 0; f32 < 2; f32++) {
        pd_engine *e = case_open(TINY_GEMMA3, TINY_Q8_0, &(case_opts){.compute = f32 ? PD_COMPUTE_F32 : PD_COMPUTE_INT8});
        const pd_kv_type native = f32 ? PD_KV_F32 : PD_KV_F16;
        for (size_t p = 0; p < sizeof presses / sizeof *presses; p++) {
            uint64_t pages = 0;
            for (int k = 0; k < KINDS; k++) {
                ask q = {.tokens = prompt, .n = N, .max_tokens = MORE, .comp = wish(e, presses[p], k)};
                answer *a = case_run(e, &q);
                const pd_kv_report *kv = &a->r->kv;
                const size_t size = page_bytes(e, k, native);
                if (kv->kv_key != (kinds[k].key ? kinds[k].key : native) || kv->page_bytes != size || kv->bytes != kv->pages * size + twice(e, kv) ||
                    kv->pages > a->job->pages_reserved || kv->bytes_peak > pd__job_reserved(a->job) + a->job->staging_bytes)
                    fail_msg("press '%s', kind %d: %llu pages of %zu, %llu bytes", presses[p], k, (unsigned long long)kv->pages, size,
                             (unsigned long long)kv->bytes);
                /* which tokens stay may differ once stored numbers are read; how many does not */
                if (k == 0) pages = kv->pages;
                assert_int_equal(kv->pages, pages);
                case_drop(a);
                case_expect_idle(e);
            }
        }
        pd_engine_close(e);
    }
}

/* Forks copy the cache and its centre; a batch of all kinds is what each is alone. */
static void answers_are_the_same_in_company(void **state) {
    (void)state;
    int32_t prompt[N];
    case_prompt(prompt, N, 4);
    pd_engine *e = case_open(TINY_GEMMA3, TINY_Q8_0, &(case_opts){.threads = 2, .kv_bytes = 64 << 20});
    answer *alone[KINDS];
    pd_job *job[KINDS][3];
    pd_err err = {0};
    for (int k = 0; k < KINDS; k++) {
        ask q = {.tokens = prompt, .n = N, .max_tokens = MORE, .logprobs = 2, .comp = wish(e, "knorm@0.3", k)};
        alone[k] = case_run(e, &q);
    }
    for (int k = 0; k < KINDS; k++) {
        ask q = {.tokens = prompt, .n = N, .max_tokens = MORE, .logprobs = 2, .comp = wish(e, "knorm@0.3", k)};
        if (case_submit_n(e, &q, 3, job[k], &err) != PD_OK) fail_msg("%s", err.msg);
    }
    for (int k = 0; k < KINDS; k++) {
        for (int i = 0; i < 3; i++) {
            answer *a = case_wait(job[k][i]);
            case_expect_same(a, alone[k]);
            assert_int_equal(a->r->kv.kv_value, alone[k]->r->kv.kv_value);
            assert_int_equal(a->r->kv.bytes, alone[k]->r->kv.bytes);
            case_drop(a);
        }
        if (k > 1) case_drop(alone[k]);
    }
    case_expect_same(alone[1], alone[0]); /* f16 is the native one */
    case_drop(alone[0]);
    case_drop(alone[1]);
    case_expect_idle(e);
    pd_engine_close(e);
}

static void heads_must_hold_whole_groups(void **state) {
    (void)state;
    int32_t prompt[N];
    case_prompt(prompt, N, 5);
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL); /* 16 numbers a head */
    for (int k = 2; k < KINDS; k++) {
        pd_err err = {0};
        pd_job *job;
        pd_compression *c = wish(e, "", k);
        ask q = {.tokens = prompt, .n = N, .max_tokens = MORE, .comp = c};
        assert_int_equal(case_submit(e, &q, &job, &err), PD_EINVAL);
        assert_string_equal(err.param, "compression.kv_type");
        assert_non_null(strstr(err.msg, "groups of 32"));
    }
    ask q = {.tokens = prompt, .n = N, .max_tokens = MORE, .comp = wish(e, "", 1)};
    case_drop(case_run(e, &q));
    case_expect_idle(e);
    pd_engine_close(e);
}

/* The pool's bound is one for all kinds: what is a page too large in f16 fits in q4. */
static void the_bound_is_bytes(void **state) {
    (void)state;
    int32_t prompt[N];
    case_prompt(prompt, N, 6);
    ask q = {.tokens = prompt, .n = N, .max_tokens = MORE};
    pd_engine *e = case_open(TINY_GEMMA3, TINY_Q8_0, NULL);
    answer *a = case_run(e, &q);
    const uint64_t need = pd__job_reserved(a->job) + a->job->staging_bytes, page = a->r->kv.page_bytes;
    case_drop(a);
    pd_engine_close(e);

    e = case_open(TINY_GEMMA3, TINY_Q8_0, &(case_opts){.kv_bytes = need - page});
    pd_err err = {0};
    pd_job *job;
    assert_int_equal(case_submit(e, &q, &job, &err), PD_EBUDGET);
    q.comp = wish(e, "", 3);
    a = case_run(e, &q);
    assert_true(a->r->kv.bytes < pd_engine_get_info(e)->kv_pool_bytes);
    case_drop(a);
    case_expect_idle(e);
    pd_engine_close(e);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_are_counted_in_their_size),
        cmocka_unit_test(answers_are_the_same_in_company),
        cmocka_unit_test(heads_must_hold_whole_groups),
        cmocka_unit_test(the_bound_is_bytes),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    case_cleanup();
    return failed;
}
