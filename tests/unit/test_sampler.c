/* SPDX-License-Identifier: Apache-2.0 */
/* engine/run: from logits to a token, and from tokens to the text a caller takes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/run/adjust.h"
#include "engine/run/sampler.h"
#include "tests/unit/engine_case.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 700 };

typedef struct {
    pd_kernels kern;
    pd_sampler s;
    float logits[VOCAB];
} bench;

static bench *open_bench(uint64_t seed, float spread) {
    bench *b = calloc(1, sizeof *b);
    pd_kernels_init(&b->kern, 0);
    assert_int_equal(pd_sampler_init(&b->s, VOCAB, NULL), PD_OK);
    pd_rng r = {seed};
    for (size_t i = 0; i < VOCAB; i++) b->logits[i] = spread * (pd_rng_f32(&r) + pd_rng_f32(&r));
    return b;
}

static void close_bench(bench *b) {
    pd_sampler_done(&b->s);
    free(b);
}

static void greedy_takes_the_lower_of_equals(void **state) {
    (void)state;
    bench *b = open_bench(1, 1.0f);
    b->logits[300] = b->logits[299] = b->logits[600] = 9.0f;
    pd_rng r = {0};
    assert_int_equal(pd_sample(&b->s, &b->kern, b->logits, &(pd_sampling){.top_p = 1.0f}, &r), 299);
    close_bench(b);
}

/* Probabilities by the definition: sort, cut, normalise.  Ties cannot happen in
 * these logits. */
static void by_definition(const bench *b, const pd_sampling *how, double *p) {
    double sum = 0.0, most = -INFINITY;
    size_t order[VOCAB];
    for (size_t i = 0; i < VOCAB; i++) most = fmax(most, b->logits[i]);
    for (size_t i = 0; i < VOCAB; i++) sum += p[i] = exp((b->logits[i] - most) / how->temperature);
    for (size_t i = 0; i < VOCAB; i++) {
        size_t j = i;
        for (; j > 0 && p[order[j - 1]] < p[i]; j--) order[j] = order[j - 1];
        order[j] = i;
    }
    size_t n = VOCAB;
    if (how->top_k > 0 && how->top_k < VOCAB) n = (size_t)how->top_k;
    sum = 0.0;
    for (size_t i = 0; i < n; i++) sum += p[order[i]];
    double mass = 0.0;
    size_t end = 0;
    for (; end < n && (end == 0 || mass < how->top_p * sum); end++) mass += p[order[end]];
    while (end > 1 && p[order[end - 1]] < how->min_p * p[order[0]]) mass -= p[order[--end]];
    for (size_t i = end; i < VOCAB; i++) p[order[i]] = 0.0;
    for (size_t i = 0; i < end; i++) p[order[i]] /= mass;
}

/* Nothing outside the set is ever drawn, and the frequencies fit: chi-square over
 * tokens expected 10 times or more, below mean + 5 sigma. */
static void draws_follow_the_definition(void **state) {
    (void)state;
    enum { DRAWS = 10000 };
    static const pd_sampling cases[] = {
        {.temperature = 1.0f, .top_p = 1.0f},
        {.temperature = 0.7f, .top_p = 1.0f, .top_k = 5},
        {.temperature = 1.0f, .top_p = 0.5f},
        {.temperature = 2.0f, .top_p = 0.97f}, /* more than the first guess of candidates */
        {.temperature = 1.0f, .top_p = 1.0f, .min_p = 0.2f},
        {.temperature = 1.3f, .top_p = 0.8f, .min_p = 0.05f, .top_k = 50},
        {.temperature = 1.0f, .top_p = 0.0f},
        {.temperature = 1.0f, .top_p = 1.0f, .top_k = 100000},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        bench *b = open_bench(10 + c, 2.0f);
        double want[VOCAB];
        unsigned got[VOCAB] = {0};
        by_definition(b, &cases[c], want);
        pd_rng r = {20 + c};
        for (size_t i = 0; i < DRAWS; i++) {
            const int32_t id = pd_sample(&b->s, &b->kern, b->logits, &cases[c], &r);
            assert_in_range(id, 0, VOCAB - 1);
            if (want[id] == 0.0) fail_msg("case %zu: token %d is outside the set", c, id);
            got[id]++;
        }
        double chi = 0.0;
        size_t n = 0;
        for (size_t i = 0; i < VOCAB; i++) {
            const double e = want[i] * DRAWS;
            if (e < 10.0) continue;
            chi += (got[i] - e) * (got[i] - e) / e;
            n++;
        }
        if (chi > (double)n + 5.0 * sqrt(2.0 * (double)n) + 5.0) fail_msg("case %zu: chi-square %g over %zu tokens", c, chi, n);
        close_bench(b);
    }
}

static void log_probabilities_sum_to_one(void **state) {
    (void)state;
    bench *b = open_bench(3, 4.0f);
    b->logits[7] = -1e30f; /* JSON has no infinity: a floor */
    pd_token_prob top[VOCAB];
    const float lp = pd_logprobs(&b->s, &b->kern, b->logits, 42, top, VOCAB);
    double sum = 0.0;
    for (size_t i = 0; i < VOCAB; i++) {
        sum += exp(top[i].logprob);
        if (i) assert_true(top[i].logprob <= top[i - 1].logprob);
        if (top[i].id == 42) assert_true(top[i].logprob == lp);
    }
    assert_true(fabs(sum - 1.0) < 1e-4);
    assert_int_equal(top[VOCAB - 1].id, 7);
    assert_true(top[VOCAB - 1].logprob == -9999.0f);
    close_bench(b);
}

/* ---- adjusted logits: token b < 256 of the tiny llama is byte b ---- */

/* vLLM's order, in double precision: ban, bias, repetition, frequency, presence. */
static double adjusted(const pd_adjust *how, double x, int32_t id, bool ends, size_t n_done, bool in_prompt, size_t n_out) {
    if (ends && n_done < how->min_tokens) x = -INFINITY;
    for (size_t i = 0; i < how->n_bias; i++)
        if (how->bias[i].id == id) x += how->bias[i].bias;
    if ((in_prompt || n_out) && how->repetition != 0.0f) x = x > 0 ? x / how->repetition : x * how->repetition;
    x -= how->frequency * (double)n_out;
    return n_out ? x - how->presence : x;
}

static void logits_are_adjusted_in_order(void **state) {
    (void)state;
    static const pd_token_bias bias[] = {{5, 1.5f}, {60, -100.0f}, {TINY_IM_END, 100.0f}, {7, -0.25f}};
    static const int32_t prompt[] = {5, 6, 7, 6, 5, 200}, out[] = {6, 9, 9, 60, 5, 9}, stop[] = {30};
    static const pd_adjust cases[] = {
        {.min_tokens = 3},
        {.bias = bias, .n_bias = 4},
        {.repetition = 1.3f},
        {.repetition = 0.5f},
        {.frequency = 0.7f},
        {.frequency = -2.0f},
        {.presence = 1.1f},
        {.bias = bias, .n_bias = 4, .min_tokens = 4, .repetition = 1.7f, .frequency = 0.3f, .presence = -0.4f},
        {.repetition = 1.0f},
    };
    pd_gguf *g;
    pd_tokenizer *tok;
    assert_int_equal(pd_gguf_open(&g, case_model(TINY_LLAMA, TINY_Q8_0), NULL), PD_OK);
    assert_int_equal(pd_tokenizer_open(&tok, g, NULL), PD_OK);
    bench *b = open_bench(5, 3.0f);
    float scratch[VOCAB];
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        const pd_job_params p = {.tokens = prompt, .n_tokens = 6, .n_logprobs = -1, .adjust = cases[c], .stop_id = stop, .n_stop_id = 1};
        pd_job *job;
        pd_adjuster a;
        pd_finish end = PD_FINISH_NONE;
        assert_int_equal(pd__job_new(&job, &p, tok, 8, NULL), PD_OK);
        assert_int_equal(pd_adjuster_open(&a, job, TINY_LLAMA_VOCAB, NULL), PD_OK);
        for (size_t n = 0; n <= 6; n++) {
            const float *got = pd_adjuster_apply(&a, job, b->logits, scratch);
            if (c == 8) assert_ptr_equal(got, b->logits); /* nothing asked for: nothing copied */
            for (int32_t id = 0; id < TINY_LLAMA_VOCAB; id++) {
                size_t n_out = 0;
                bool in_prompt = false;
                for (size_t i = 0; i < n; i++) n_out += out[i] == id;
                for (size_t i = 0; i < 6; i++) in_prompt = in_prompt || prompt[i] == id;
                const double want = adjusted(&cases[c], b->logits[id], id, pd_token_is_eog(tok, id) || id == 30, n, in_prompt, n_out);
                if (isinf(want) ? got[id] != want : !(fabs(got[id] - want) < 1e-4))
                    fail_msg("case %zu, %zu tokens, token %d: %g, not %g", c, n, id, got[id], want);
            }
            if (n == 6) break;
            pd_adjuster_note(&a, out[n]);
            assert_int_equal(pd__job_emit(job, out[n], 0.0f, NULL, 0, &end, NULL), PD_OK);
        }
        pd_adjuster_done(&a);
        pd_job_unref(job);
    }
    close_bench(b);
    pd_tokenizer_close(tok);
    pd_gguf_close(g);
}

/* What is banned is never drawn, on any row of kernels. */
static void a_banned_token_is_never_drawn(void **state) {
    (void)state;
    bench *b = open_bench(6, 1.0f);
    for (unsigned mask = 0; mask < 2; mask++) {
        pd_kernels_init(&b->kern, mask ? pd_cpu_detect() : 0);
        for (size_t i = 0; i < VOCAB; i++) b->logits[i] = i % 7 == 3 ? 1.0f : -INFINITY;
        pd_rng r = {1};
        for (size_t k = 0; k < 3; k++)
            for (size_t i = 0; i < 2000; i++) {
                const pd_sampling how = {.temperature = 1.0f + (float)k, .top_p = k == 1 ? 0.9f : 1.0f, .top_k = k == 2 ? 600 : 0};
                assert_int_equal(pd_sample(&b->s, &b->kern, b->logits, &how, &r) % 7, 3);
            }
    }
    close_bench(b);
}

/* ---- the outbox: token b < 256 of the tiny llama is byte b ---- */

typedef struct {
    pd_gguf *g;
    pd_tokenizer *tok;
    pd_job *job;
} box;

static box open_box(const char *const *stop, size_t n_stop) {
    box b = {0};
    pd_job_params p = {.tokens = (const int32_t[]){1}, .n_tokens = 1, .n_logprobs = -1, .n_stop = n_stop};
    for (size_t i = 0; i < n_stop; i++) {
        p.stop[i].text = stop[i];
        p.stop[i].len = strlen(stop[i]);
    }
    assert_int_equal(pd_gguf_open(&b.g, case_model(TINY_LLAMA, TINY_Q8_0), NULL), PD_OK);
    assert_int_equal(pd_tokenizer_open(&b.tok, b.g, NULL), PD_OK);
    assert_int_equal(pd__job_new(&b.job, &p, b.tok, 64, NULL), PD_OK);
    return b;
}

static void close_box(box *b) {
    pd_job_unref(b->job);
    pd_tokenizer_close(b->tok);
    pd_gguf_close(b->g);
}

/* Emit the bytes one token each; take after each; '|' between events, '!' before
 * a tail.  Returns how it ended. */
static pd_finish play(box *b, const char *bytes, pd_buf *seen) {
    pd_finish end = PD_FINISH_NONE;
    pd_token_event ev[4];
    pd_buf text = {0};
    size_t tail;
    for (const char *c = bytes; *c && end == PD_FINISH_NONE; c++) {
        assert_int_equal(pd__job_emit(b->job, (unsigned char)*c, -1.0f, NULL, 0, &end, NULL), PD_OK);
        const size_t n = pd_job_take(b->job, ev, 4, &text, &tail);
        assert_int_equal(n, end == PD_FINISH_NONE); /* a stop string gives no event */
        assert_int_equal(tail, 0);
        if (n) pd_buf_add(seen, text.data ? text.data + ev[0].text_off : "", ev[0].text_len);
        pd_buf_putc(seen, '|');
    }
    pd__job_finish(b->job, end == PD_FINISH_NONE ? PD_FINISH_LENGTH : end, NULL);
    assert_int_equal(pd_job_take(b->job, ev, 4, &text, &tail), 0);
    if (tail) {
        pd_buf_putc(seen, '!');
        pd_buf_add(seen, text.data + text.len - tail, tail);
    }
    pd_buf_done(&text);
    return end;
}

static void stop_strings_hold_cut_and_let_go(void **state) {
    (void)state;
    static const struct {
        const char *stop[3];
        size_t n;
        const char *bytes, *want;
        pd_finish end;
    } cases[] = {
        {{NULL}, 0, "abc", "a|b|c|", PD_FINISH_NONE},
        {{"END"}, 1, "abENDx", "a|b||||", PD_FINISH_STOP},
        {{"END"}, 1, "aENxEN", "a|||ENx|||!EN", PD_FINISH_NONE}, /* held, let go, held to the end */
        {{"aab"}, 1, "aaab", "||a||", PD_FINISH_STOP},           /* the match begins inside the held text */
        {{"abc", "b"}, 2, "xab", "x|||!a", PD_FINISH_STOP},      /* the shorter one ends first */
        {{"x", "abcd", "cd"}, 3, "abcx", "||||!abc", PD_FINISH_STOP},
        {{"ab", "abcdefgh"}, 2, "xab", "x|||", PD_FINISH_STOP},
        {{NULL}, 0, "\xC3\xA9!", "|\xC3\xA9|!|", PD_FINISH_NONE},                /* a code point goes out whole */
        {{NULL}, 0, "a\xE2\x82", "a|||!\xEF\xBF\xBD", PD_FINISH_NONE},           /* and broken at the end as U+FFFD */
        {{"\xC3\xA9"}, 1, "a\xC3\xA9", "a|||", PD_FINISH_STOP},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        box b = open_box(cases[c].stop, cases[c].n);
        pd_buf seen = {0};
        const pd_finish end = play(&b, cases[c].bytes, &seen);
        if (end != cases[c].end || strcmp(seen.data, cases[c].want) != 0)
            fail_msg("case %zu: '%s', not '%s'", c, seen.data, cases[c].want);
        pd_buf_done(&seen);
        close_box(&b);
    }
}

/* Before min_tokens a stop string ends nothing; one that is complete by then never
 * will, one that is not still may. */
static void stop_strings_wait_for_min_tokens(void **state) {
    (void)state;
    static const struct {
        const char *stop[2];
        size_t n, min;
        const char *bytes, *want;
        pd_finish end;
    } cases[] = {
        {{"ab"}, 1, 3, "abxab", "|ab|x|||", PD_FINISH_STOP},
        {{"ab"}, 1, 2, "abx", "|ab|x|", PD_FINISH_NONE},
        {{"ab"}, 1, 1, "abx", "||", PD_FINISH_STOP},
        {{"abc"}, 1, 2, "abc", "|||", PD_FINISH_STOP},           /* begun before, complete after */
        {{"ab", "abcd"}, 2, 2, "abce", "|||abce|", PD_FINISH_NONE}, /* the short one was complete before */
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        box b = open_box(cases[c].stop, cases[c].n);
        b.job->adjust.min_tokens = cases[c].min;
        pd_buf seen = {0};
        const pd_finish end = play(&b, cases[c].bytes, &seen);
        if (end != cases[c].end || strcmp(seen.data, cases[c].want) != 0)
            fail_msg("case %zu: '%s', not '%s'", c, seen.data, cases[c].want);
        pd_buf_done(&seen);
        close_box(&b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_lower_of_equals),
        cmocka_unit_test(draws_follow_the_definition),
        cmocka_unit_test(log_probabilities_sum_to_one),
        cmocka_unit_test(logits_are_adjusted_in_order),
        cmocka_unit_test(a_banned_token_is_never_drawn),
        cmocka_unit_test(stop_strings_hold_cut_and_let_go),
        cmocka_unit_test(stop_strings_wait_for_min_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, case_group_end);
}
