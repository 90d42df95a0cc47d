/* SPDX-License-Identifier: Apache-2.0 */
/* Prompt look-up: what it proposes, when it stops, and that no answer changes for it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/run/draft.h"
#include "engine/run/job.h"
#include "tests/unit/engine_case.h"

#include <string.h>

/* ---- the text ---- */

static void the_text_goes_on_as_it_did(void **state) {
    (void)state;
    static const struct {
        const char *text; /* a token a letter */
        size_t most, room;
        const char *draft;
    } cases[] = {
        {"abcdefgXbc", 3, 9, "def"},        /* two letters agree */
        {"abcdefgXbc", 3, 2, "de"},         /* no more than there is room for */
        {"abcdefgXbc", 3, 0, ""},
        {"abcdefgXbc", 1, 9, "d"},
        {"xbc1abc2..bc3..abc", 1, 9, "2"},  /* three agree: more than the later two */
        {"abc1..abc2..abc", 1, 9, "2"},     /* the latest of equals */
        {"wxyz1.qxyz2.wxyz", 1, 9, "1"},    /* four agree */
        {"abab", 3, 9, "ab"},               /* up to the text's end, no further */
        {"aaaa", 3, 9, "a"},
        {"abcdeXc", 3, 9, ""},              /* one is not enough */
        {"a", 3, 9, ""},
        {"abcd", 3, 9, ""},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        pd_draft d;
        pd_err err = {0};
        int32_t prompt[64], got[PD_DRAFT_MAX];
        const size_t n = strlen(cases[c].text), half = (n + 1) / 2;
        for (size_t i = 0; i < n; i++) prompt[i] = cases[c].text[i];
        assert_int_equal(pd_draft_init(&d, prompt, half, n - half, cases[c].most, &err), PD_OK);
        for (size_t i = half; i < n; i++) pd_draft_note(&d, prompt[i]); /* the answer */
        pd_draft_note(&d, 'z');                                           /* no room for it */
        assert_int_equal(pd_draft_propose(&d, 9, got), 0); /* what a plain step takes is unknown */
        pd_draft_learn(&d, 0, 0, 100.0);
        const size_t got_n = pd_draft_propose(&d, cases[c].room, got);
        bool same = got_n == strlen(cases[c].draft);
        for (size_t i = 0; same && i < got_n; i++) same = got[i] == cases[c].draft[i];
        if (!same) fail_msg("case %zu: %zu proposed, the first %c", c, got_n, got_n ? got[0] : '-');
        pd_draft_done(&d);
    }
}

/* Proposals in the next `steps` steps, each taking `plain` or, drafted, `drafted` ns. */
static size_t proposals(pd_draft *d, size_t steps, size_t taken, double plain, double drafted) {
    size_t times = 0;
    int32_t got[PD_DRAFT_MAX];
    for (size_t i = 0; i < steps; i++) {
        const size_t n = pd_draft_propose(d, 8, got);
        times += n > 0;
        pd_draft_learn(d, n, n < taken ? n : taken, n ? drafted : plain);
    }
    return times;
}

static void it_stops_where_it_loses(void **state) {
    (void)state;
    int32_t prompt[64];
    for (int i = 0; i < 64; i++) prompt[i] = i % 16;
    pd_draft d;
    pd_err err = {0};
    assert_int_equal(pd_draft_init(&d, prompt, 64, 0, 4, &err), PD_OK);
    pd_draft_learn(&d, 0, 0, 100.0);
    assert_int_equal(proposals(&d, 500, 4, 100.0, 250.0), 500); /* five for the time of two and a half */
    assert_int_equal(d.len, 4);
    assert_in_range(proposals(&d, 500, 0, 100.0, 250.0), 1, 12); /* 16 without, 32, 64, ... */
    assert_in_range(proposals(&d, 5000, 0, 100.0, 110.0), 1, 12);
    assert_in_range(proposals(&d, 3000, 4, 100.0, 250.0), 1900, 3000); /* it came back */
    pd_draft_done(&d);
}

/* ---- the engine ---- */

enum { N = 150, MORE = 120 };

typedef struct {
    tiny_arch arch;
    tiny_type type;
    pd_compute compute;
    const char *press, *decode;
    float temperature;
    pd_kv_type kv; /* NATIVE, or another */
} ask_case;

static const ask_case cases[] = {
    {TINY_LLAMA, TINY_F32, PD_COMPUTE_F32, NULL, NULL, 0.0f, PD_KV_NATIVE},
    {TINY_LLAMA, TINY_Q4_1, PD_COMPUTE_INT8, NULL, NULL, 0.0f, PD_KV_NATIVE},
    {TINY_LLAMA, TINY_Q4_1, PD_COMPUTE_INT8, NULL, NULL, 0.3f, PD_KV_NATIVE},
    {TINY_LLAMA, TINY_Q8_0, PD_COMPUTE_INT8, "knorm@0.5", NULL, 0.0f, PD_KV_NATIVE},
    {TINY_LLAMA, TINY_Q8_0, PD_COMPUTE_INT8, "key_rerotation(knorm)@0.5", NULL, 0.0f, PD_KV_NATIVE},
    {TINY_GEMMA3, TINY_Q4_1, PD_COMPUTE_INT8, NULL, NULL, 0.0f, PD_KV_Q8_0},
    {TINY_GEMMA3, TINY_Q8_0, PD_COMPUTE_INT8, NULL, NULL, 0.0f, PD_KV_NATIVE}, /* windows of 32 */
    {TINY_GEMMA3, TINY_F32, PD_COMPUTE_F32, NULL, NULL, 0.2f, PD_KV_NATIVE},
    {TINY_GEMMA3, TINY_Q4_1, PD_COMPUTE_INT8, NULL, NULL, 0.0f, PD_KV_Q4}, /* the last pages twice */
    {TINY_GEMMA3, TINY_Q4_1, PD_COMPUTE_INT8, "adakv(knorm)@0.4", NULL, 0.0f, PD_KV_Q4},
    {TINY_LLAMA, TINY_Q8_0, PD_COMPUTE_INT8, "think:key_channel_compression_ratio=0.5", NULL, 0.0f, PD_KV_NATIVE}, /* packed keys */
    {TINY_GEMMA3, TINY_F32, PD_COMPUTE_F32, "composed(knorm@0.3,think:key_channel_compression_ratio=0.5)", NULL, 0.2f, PD_KV_NATIVE},
    {TINY_LLAMA, TINY_Q8_0, PD_COMPUTE_INT8, "hcattention", NULL, 0.0f, PD_KV_NATIVE},
    {TINY_GEMMA3, TINY_Q8_0, PD_COMPUTE_INT8, "snapkv:window_size=8@0.6", NULL, 0.0f, PD_KV_Q8_0},
    {TINY_LLAMA, TINY_Q8_0, PD_COMPUTE_INT8, NULL, "knorm", 0.0f, PD_KV_NATIVE},
};

static answer *ask_it(pd_engine *e, const ask_case *c, size_t max_tokens, const char *stop) {
    int32_t prompt[N];
    case_prompt(prompt, N, 7);
    for (size_t i = 0; i < N; i++) prompt[i] = prompt[i % 25] % 9 + 40; /* says everything six times */
    ask q = {.tokens = prompt, .n = N, .max_tokens = max_tokens, .press = c->press, .decode = c->decode, .logprobs = 3,
             .temperature = c->temperature, .seed = 5, .stop = stop};
    if (c->decode) q.interval = 8, q.target = 64;
    q.kv_key = q.kv_value = c->kv;
    return case_run(e, &q);
}

/* Ids, log probabilities, text, bytes: as without; some guesses were right, some wrong. */
static void answers_are_the_same(void **state) {
    (void)state;
    size_t drafted = 0, taken = 0;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        case_opts o = {.compute = cases[c].compute, .threads = 1 + c % 2};
        pd_engine *plain = case_open(cases[c].arch, cases[c].type, &o);
        o.draft_tokens = PD_DRAFT_MAX - c % 3;
        pd_engine *guess = case_open(cases[c].arch, cases[c].type, &o);
        for (size_t i = 0; i < 12; i++) { /* all that is left to say is one, two, ... tokens, and many */
            const size_t max = i < 11 ? 1 + i : MORE;
            answer *a = ask_it(plain, &cases[c], max, NULL), *b = ask_it(guess, &cases[c], max, NULL);
            assert_int_equal(a->n, max);
            case_expect_same(a, b);
            assert_int_equal(a->r->timing.draft_n, 0);
            assert_int_equal(a->r->kv.bytes, b->r->kv.bytes);
            assert_int_equal(a->r->kv.tokens_seen, b->r->kv.tokens_seen);
            assert_true(b->job->pages_promised + b->job->pack_promised >= b->r->kv.pages);
            assert_true(b->r->timing.draft_n_accepted <= b->r->timing.draft_n);
            if (cases[c].decode || (cases[c].press && strcmp(cases[c].press, "hcattention") == 0)) assert_int_equal(b->r->timing.draft_n, 0);
            drafted += b->r->timing.draft_n;
            taken += b->r->timing.draft_n_accepted;
            case_drop(a);
            case_drop(b);
            case_expect_idle(guess);
        }
        pd_engine_stats s;
        pd_engine_get_stats(guess, &s);
        assert_true(s.draft_taken_tokens <= s.drafted_tokens);
        pd_engine_close(plain);
        pd_engine_close(guess);
    }
    assert_in_range(taken, 20, drafted - 20);
}

/* An answer may end among the tokens that were guessed. */
static void an_answer_ends_where_it_would(void **state) {
    (void)state;
    size_t drafted = 0;
    for (size_t c = 0; c < 8; c++) {
        case_opts o = {.compute = cases[c].compute};
        pd_engine *plain = case_open(cases[c].arch, cases[c].type, &o);
        o.draft_tokens = PD_DRAFT_MAX;
        pd_engine *guess = case_open(cases[c].arch, cases[c].type, &o);
        answer *all = ask_it(plain, &cases[c], MORE, NULL);
        for (size_t i = 0; i + 2 < all->text.len; i += 7) {
            char stop[3] = {0};
            memcpy(stop, all->text.data + i, 2);
            if (!stop[0] || !stop[1] || (stop[0] & 0x80) || (stop[1] & 0x80)) continue;
            answer *a = ask_it(plain, &cases[c], MORE, stop), *b = ask_it(guess, &cases[c], MORE, stop);
            case_expect_same(a, b);
            assert_int_equal(a->r->finish, b->r->finish);
            assert_int_equal(a->r->kv.bytes, b->r->kv.bytes);
            assert_int_equal(a->r->kv.tokens_seen, b->r->kv.tokens_seen);
            drafted += b->r->timing.draft_n;
            case_drop(a);
            case_drop(b);
            case_expect_idle(guess);
        }
        case_drop(all);
        pd_engine_close(plain);
        pd_engine_close(guess);
    }
    assert_true(drafted > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_text_goes_on_as_it_did),
        cmocka_unit_test(it_stops_where_it_loses),
        cmocka_unit_test(answers_are_the_same),
        cmocka_unit_test(an_answer_ends_where_it_would),
    };
    return cmocka_run_group_tests(tests, NULL, case_group_end);
}
