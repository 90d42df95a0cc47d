/* SPDX-License-Identifier: Apache-2.0 */
/* engine/run: what it computes.  Tiny models against a plain forward pass in
 * double precision, dense and pressed; the same bytes whatever runs beside a
 * request. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/num.h"
#include "tests/unit/against_ref.h"
#include "tests/unit/engine_case.h"
#include "tests/unit/press_data_case.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE = 16 };

/* ---- against the reference ---- */

/* 300 tokens: three prefill tiles, the last one short; windows filled nine times. */
static void dense_equals_the_reference(void **state) {
    (void)state;
    static const struct {
        tiny_arch arch;
        tiny_type type;
        size_t n;
    } cases[] = {{TINY_LLAMA, TINY_F32, 300}, {TINY_LLAMA, TINY_Q4_1, 128}, {TINY_LLAMA, TINY_F16, 1},
                 {TINY_GEMMA3, TINY_F32, 300}, {TINY_GEMMA3, TINY_Q8_0, 20}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        int32_t prompt[300];
        case_prompt(prompt, 300, c);
        pd_engine *e = case_open(cases[c].arch, cases[c].type, &(case_opts){.compute = PD_COMPUTE_F32});
        ref_model *m = ref_open(case_model(cases[c].arch, cases[c].type));
        const ask q = {.tokens = prompt, .n = cases[c].n, .max_tokens = 40, .logprobs = 100};
        answer *a = case_run(e, &q);
        assert_int_equal(a->n, 40);
        const double most = against_reference(m, &q, a, NULL, NULL);
        if (most > 1e-3) fail_msg("case %zu: log probabilities differ by %g", c, most);
        case_drop(a);
        ref_close(m);
        case_expect_idle(e);
        pd_engine_close(e);
    }
}

/* Eight-bit activations and f16 pages cost some accuracy, and no more: the mean
 * distance of the likely tokens stays below a tenth of a nat. */
static void int8_is_near_the_reference(void **state) {
    (void)state;
    for (size_t c = 0; c < 6; c++) {
        const tiny_arch arch = c < 3 ? TINY_LLAMA : TINY_GEMMA3;
        const tiny_type type = c % 3 == 0 ? TINY_F16 : c % 3 == 1 ? TINY_Q8_0 : TINY_Q4_1;
        int32_t prompt[200];
        case_prompt(prompt, 200, 50 + c);
        pd_engine *e = case_open(arch, type, NULL);
        ref_model *m = ref_open(case_model(arch, type));
        const ask q = {.tokens = prompt, .n = 200, .max_tokens = 1, .logprobs = 100};
        answer *a = case_run(e, &q);
        double *lp = ref_logprobs(m, prompt, 200, 199, NULL, NULL), sum = 0.0;
        for (size_t j = 0; j < 20; j++) sum += fabs(a->top[0][j].logprob - lp[a->top[0][j].id]);
        /* 0.09 is int8's share here, 0.105 with attention in bf16 */
        if (sum / 20.0 > 0.12) fail_msg("case %zu: mean distance %g", c, sum / 20.0);
        assert_true(sum > 0.0); /* it is the integer path */
        free(lp);
        case_drop(a);
        ref_close(m);
        pd_engine_close(e);
    }
}

/* What a pressed sequence's queries see: before `scope` everything, after it the
 * kept slots of their head and all that came later. */
typedef struct {
    const answer *explained;
    size_t scope, heads;
    bool moved; /* kept keys went to positions 0 .. n_kept - 1 */
    size_t only; /* layer that is pressed; SIZE_MAX = all */
} pressed;

static bool sees_pressed(const void *arg, size_t layer, size_t head, size_t q, size_t k, long *dist) {
    const pressed *p = arg;
    if (q < p->scope || k >= p->scope || (p->only != SIZE_MAX && layer != p->only)) return true;
    const pd_explain_head *h = &p->explained->r->explain[layer * p->heads + head];
    for (size_t i = 0; i < h->n_kept; i++) {
        if ((size_t)h->kept[i] != k) continue;
        if (p->moved) *dist = (long)(q - (p->scope - h->n_kept)) - (long)i;
        return true;
    }
    return false;
}

/* What the prompt's tokens are said to be worth, against the reference's rows [from, n). */
static double score_distance(const answer *a, const ask *q, size_t from, const double *lp, size_t n_vocab) {
    const pd_scored *s = pd_job_scored(a->job);
    double most = 0.0;
    assert_non_null(s);
    assert_true(s[0].n_top == 0 && s[0].rank == 0);
    for (size_t i = 0; i < q->n; i++) assert_int_equal(s[i].id, q->tokens[i]);
    for (size_t i = from + 1; i < q->n; i++) {
        const double *row = lp + (i - 1 - from) * n_vocab;
        most = fmax(most, fabs(s[i].logprob - row[s[i].id]));
        assert_int_equal(s[i].n_top, q->score_top);
        assert_in_range(s[i].rank, 1, n_vocab);
        for (size_t j = 0; j < s[i].n_top; j++) {
            most = fmax(most, fabs(s[i].top[j].logprob - row[s[i].top[j].id]));
            if (j) assert_true(s[i].top[j].logprob <= s[i].top[j - 1].logprob);
        }
        if (s[i].rank <= s[i].n_top) assert_true(s[i].top[s[i].rank - 1].logprob == s[i].logprob);
        else if (s[i].n_top) assert_true(s[i].logprob < s[i].top[s[i].n_top - 1].logprob);
    }
    return most;
}

/* Dense, and with the context pressed: the tokens behind it see what is left. */
static void prompt_scores_equal_the_reference(void **state) {
    (void)state;
    static const struct {
        tiny_arch arch;
        const char *press;
        size_t n, scope;
    } cases[] = {
        {TINY_LLAMA, NULL, 300, 0}, {TINY_GEMMA3, NULL, 300, 0}, {TINY_LLAMA, NULL, 2, 0}, {TINY_LLAMA, NULL, 1, 0},
        {TINY_LLAMA, "knorm@0.7", 260, 150}, {TINY_LLAMA, "adakv(knorm)@0.6", 200, 129}, {TINY_GEMMA3, "knorm@0.5", 200, 120},
        {TINY_LLAMA, "knorm@0.6", 130, 129},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        const bool gemma = cases[c].arch == TINY_GEMMA3;
        int32_t prompt[300];
        case_prompt(prompt, 300, 500 + c);
        pd_engine *e = case_open(cases[c].arch, TINY_F32, &(case_opts){.compute = PD_COMPUTE_F32, .threads = 1 + c % 2});
        ref_model *m = ref_open(case_model(cases[c].arch, TINY_F32));
        ask q = {.tokens = prompt, .n = cases[c].n, .press = cases[c].press, .scope = cases[c].scope, .explain = true};
        answer *kept = cases[c].press ? case_run(e, &q) : NULL;
        const pressed sees = {.explained = kept, .scope = cases[c].scope, .heads = gemma ? 1 : 2, .only = gemma ? 5 : SIZE_MAX};
        q.explain = false;
        q.score = true;
        q.score_top = 7;
        double *lp = ref_logprobs(m, prompt, q.n, 0, kept ? sees_pressed : NULL, &sees);
        for (q.max_tokens = 0; q.max_tokens < 2; q.max_tokens++) {
            answer *a = case_run(e, &q);
            assert_int_equal(a->n, q.max_tokens);
            const double most = score_distance(a, &q, 0, lp, ref_n_vocab(m));
            if (most > 1e-3) fail_msg("case %zu: scores differ by %g", c, most);
            if (q.n == 1) assert_non_null(pd_job_scored(a->job));
            case_drop(a);
        }
        if (kept) { /* and the press makes a difference */
            double *dense = ref_logprobs(m, prompt, q.n, 0, NULL, NULL);
            double apart = 0.0;
            const size_t n_vocab = ref_n_vocab(m);
            for (size_t i = cases[c].scope * n_vocab; i < (q.n - 1) * n_vocab; i++) apart = fmax(apart, fabs(dense[i] - lp[i]));
            if (q.n - 1 > cases[c].scope) assert_true(apart > 0.01);
            free(dense);
            case_drop(kept);
        }
        free(lp);
        ref_close(m);
        case_expect_idle(e);
        pd_engine_close(e);
    }
}

/* A prompt is worth the same whoever asks: with answers or none, with threads, with
 * others in the batch; and its answer is what it is without scores. */
static void scores_and_answers_do_not_mind_each_other(void **state) {
    (void)state;
    int32_t prompt[300];
    case_prompt(prompt, 300, 3);
    const pd_scored *first = NULL;
    answer *kept[2];
    pd_engine *engine[2];
    for (unsigned t = 0; t < 2; t++) {
        pd_engine *e = engine[t] = case_open(TINY_LLAMA, TINY_Q4_1, &(case_opts){.threads = 1 + 2 * t});
        const ask plain = {.tokens = prompt, .n = 300, .max_tokens = 20, .logprobs = 5};
        ask scored = plain;
        scored.score = true;
        scored.score_top = 3;
        answer *a = case_run(e, &plain);
        assert_null(pd_job_scored(a->job));
        answer *b = kept[t] = case_run(e, &scored);
        case_expect_same(a, b);
        case_drop(a);
        const pd_scored *s = pd_job_scored(b->job);
        for (size_t i = 1; first && i < 300; i++) {
            assert_true(s[i].logprob == first[i].logprob && s[i].rank == first[i].rank);
            assert_memory_equal(s[i].top, first[i].top, 3 * sizeof *s[i].top);
        }
        first = s;
        pd_job *job[3]; /* forks have the leader's */
        assert_int_equal(case_submit_n(e, &scored, 3, job, NULL), PD_OK);
        for (size_t i = 0; i < 3; i++) {
            a = case_wait(job[i]);
            assert_non_null(pd_job_scored(a->job));
            assert_true(pd_job_scored(a->job)[299].logprob == s[299].logprob);
            case_drop(a);
        }
        case_expect_idle(e);
    }
    for (unsigned t = 0; t < 2; t++) {
        case_drop(kept[t]);
        pd_engine_close(engine[t]);
    }
}

static void pressed_equals_the_masked_reference(void **state) {
    (void)state;
    static const struct {
        tiny_arch arch;
        const char *press;
        size_t n, scope;
    } cases[] = {
        {TINY_LLAMA, "knorm@0.5", 200, 0},           {TINY_LLAMA, "knorm@0.7", 260, 150},
        {TINY_LLAMA, "adakv(knorm)@0.6", 200, 129},  {TINY_LLAMA, "key_rerotation(knorm)@0.5", 200, 140},
        {TINY_LLAMA, "snapkv@0.5", 200, 180},        {TINY_LLAMA, "expected_attention@0.4", 180, 100},
        {TINY_GEMMA3, "knorm@0.5", 200, 120},        {TINY_GEMMA3, "tova@0.5", 150, 20},
        {TINY_GEMMA3, "key_rerotation(streaming_llm)@0.5", 150, 0},
        {TINY_LLAMA, "finch:window_size=20@0.6", 200, 150},
        {TINY_LLAMA, "chunk:chunk_length=50(snapkv:window_size=10)@0.5", 200, 170},
        {TINY_LLAMA, "simlayerkv:lazy_threshold=0,n_recent=30", 200, 150},
        /* every layer goes on at a position of its own */
        {TINY_LLAMA, "composed(per_layer:compression_ratios=0.2;0.5;0.8(knorm),key_rerotation(keydiff)@0.3)", 200, 150},
        {TINY_GEMMA3, "per_layer:compression_ratios=1*5;0.5;1(knorm)", 150, 100},
        {TINY_LLAMA, "kvzip:chunk_size=64@0.5", 200, 160}, {TINY_LLAMA, "kvcompose@0.6", 200, 0},
        {TINY_LLAMA, "kvcompose:structured=false@0.6", 200, 0}, {TINY_GEMMA3, "kvzip@0.5", 150, 100},
        {TINY_LLAMA, "kvgrad:chunk_size=64@0.5", 200, 160}, {TINY_GEMMA3, "kvgrad@0.5", 150, 100},
        {TINY_LLAMA, "kv_compress@0.7", 200, 150}, {TINY_GEMMA3, "kv_compress:metric_window_size=null@0.5", 150, 0},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        const bool gemma = cases[c].arch == TINY_GEMMA3;
        int32_t prompt[300];
        case_prompt(prompt, 300, 900 + c);
        pd_engine *e = case_open(cases[c].arch, TINY_F32, &(case_opts){.compute = PD_COMPUTE_F32});
        ref_model *m = ref_open(case_model(cases[c].arch, TINY_F32));
        ask q = {.tokens = prompt, .n = cases[c].n, .press = cases[c].press, .scope = cases[c].scope, .explain = true};
        answer *x = case_run(e, &q);
        q.explain = false;
        q.max_tokens = 30;
        q.logprobs = 100;
        answer *a = case_run(e, &q);
        const pressed p = {.explained = x, .scope = cases[c].scope ? cases[c].scope : cases[c].n, .heads = gemma ? 1 : 2,
                           .moved = strstr(cases[c].press, "rerotation") || strstr(cases[c].press, "finch"), .only = gemma ? 5 : SIZE_MAX};
        const double most = against_reference(m, &q, a, sees_pressed, &p);
        if (most > 1e-3) fail_msg("%s: log probabilities differ by %g", cases[c].press, most);
        if (c == 0) { /* the mask matters */
            const double dense = against_reference(m, &q, a, NULL, NULL);
            assert_true(dense > 0.05);
        }
        case_drop(a);
        case_drop(x);
        ref_close(m);
        case_expect_idle(e);
        pd_engine_close(e);
    }
}

static pd_compression *gates_of(const pd_press_model *model, double ratio) {
    pd_arena arena = {0};
    pd_spec *spec;
    pd_err err = {0};
    double in_text;
    pd_compression *c = calloc(1, sizeof *c);
    if (pd_spec_parse_text("fastkvzip:window_ratio=0.05", "press", &arena, &spec, &in_text, &err) != PD_OK ||
        pd_spec_resolve(spec, model, &c->press, &err) != PD_OK)
        fail_msg("%s", err.msg);
    pd_arena_done(&arena);
    c->ratio = ratio;
    return c;
}

/* Layers are scored while they are prefilled, nothing is replayed, and one cut goes
 * through all of them: what stays scores at least as much as what goes. */
static void gates_cut_all_layers_at_one_score(void **state) {
    (void)state;
    for (int gemma = 0; gemma < 2; gemma++) {
        enum { TOKENS = 200 };
        int32_t prompt[TOKENS];
        case_prompt(prompt, TOKENS, 61);
        pd_engine *e = case_open(gemma ? TINY_GEMMA3 : TINY_LLAMA, TINY_Q8_0, NULL);
        pd_press_model model = pd_engine_get_info(e)->press_model;
        pd_press_data *data = pd_case_data(21, &model);
        model.data = data;
        answer *a = case_run(e, &(ask){.tokens = prompt, .n = TOKENS, .max_tokens = 9, .comp = gates_of(&model, 0.6), .explain = true, .scores = true});
        float least = INFINITY, most = -INFINITY;
        size_t kept = 0, heads = 0;
        for (size_t i = 0; i < model.n_layer * model.n_head_kv; i++) {
            const pd_explain_head *h = &a->r->explain[i];
            if (!h->scores) continue; /* of a layer with a window */
            kept += h->n_kept;
            heads++;
            for (size_t s = 0, k = 0; s < TOKENS; s++) {
                const bool stays = k < h->n_kept && h->kept[k] == (int32_t)s;
                k += stays;
                assert_true(h->scores[s] > 0.0f && h->scores[s] <= 1.0f);
                assert_int_equal(h->scores[s] == 1.0f, s < 4 || s >= 190);
                if (stays) least = fminf(least, h->scores[s]);
                else most = fmaxf(most, h->scores[s]);
            }
        }
        assert_int_equal(heads, gemma ? 1 : model.n_layer * model.n_head_kv);
        assert_int_equal(kept, heads * TOKENS - (size_t)((double)(heads * TOKENS) * 0.6));
        assert_true(least >= most);
        case_drop(a);
        case_expect_idle(e);
        pd_engine_close(e);
        pd_press_data_close(data);
    }
}

/* What a deferred press reports and what its pages hold: one budget for all layers,
 * nothing of the replay left, and less memory than a dense cache. */
static void deferred_presses_share_one_budget(void **state) {
    (void)state;
    static const struct {
        const char *press;
        size_t n, slack; /* pairs the counting rule may be off by */
        bool same_heads, same_layers;
    } cases[] = {
        {"kvzip@0.5", 300, 0, false, false},
        {"kvzip:chunk_size=100@0.75", 300, 0, false, false},
        {"kvzip:layerwise=true@0.5", 200, 3, false, true},
        {"kvzip:kvzip_plus_normalization=true,n_sink=0@0.6", 150, 6, false, false},
        {"kvgrad:chunk_size=100@0.5", 300, 0, false, false},
        {"kvgrad:layerwise=true@0.5", 200, 3, false, true},
        {"kvcompose@0.5", 300, 2, true, false},
        {"kvcompose:structured=false,add_v_norm=true,agg_task=mean@0.5", 200, 6, false, false},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        int32_t prompt[300];
        case_prompt(prompt, 300, 400 + c);
        pd_engine *e = case_open(TINY_LLAMA, TINY_F32, NULL);
        answer *a = case_run(e, &(ask){.tokens = prompt, .n = cases[c].n, .press = cases[c].press, .max_tokens = 1});
        const pd_kv_report *r = &a->r->kv;
        const size_t pairs = 6 * cases[c].n; /* 3 layers, 2 heads */
        const double ratio = strtod(strchr(cases[c].press, '@') + 1, NULL);
        size_t kept = 0, pages = 0, layer[3] = {0};
        for (size_t i = 0; i < 6; i++) {
            kept += r->kept[i];
            pages += (r->kept[i] + PAGE - 1) / PAGE;
            layer[i / 2] += r->kept[i];
            if (cases[c].same_heads) assert_int_equal(r->kept[i], r->kept[i / 2 * 2]);
        }
        const size_t want = pairs - (size_t)((double)pairs * ratio);
        if (kept < want || kept > want + cases[c].slack) fail_msg("%s keeps %zu of %zu", cases[c].press, kept, pairs);
        assert_int_equal(kept + r->tokens_evicted, pairs);
        assert_int_equal(r->pages, pages);
        assert_true(r->bytes < r->bytes_dense);
        assert_true(r->bytes_peak > r->bytes_dense); /* the price: all layers dense, and a replay beside them */
        if (cases[c].same_layers) assert_true(layer[0] == layer[1] && layer[1] == layer[2]);
        if (c == 0) assert_true(layer[0] != layer[1] || layer[1] != layer[2]);
        case_drop(a);
        case_expect_idle(e);
        pd_engine_close(e);
    }
}

/* ---- the same bytes ---- */

enum { CROWD = 16 };

/* Prompts of all lengths, presses of all kinds. */
static ask crowd_member(size_t i, int32_t *prompt, tiny_arch arch) {
    static const char *const presses[] = {"kvgrad:chunk_size=70@0.5", "knorm@0.5", "adakv(snapkv)@0.7", "expected_attention@0.3",
                                          "key_rerotation(knorm)@0.6", "tova@0.5", "streaming_llm@0.8", NULL};
    static const size_t lengths[] = {200, 17, 129, 64, 1, 300, 90, 128};
    size_t n = lengths[i % 8] + i;
    case_prompt(prompt, n, 3000 + i + (size_t)arch);
    ask a = {.tokens = prompt, .n = n, .max_tokens = 20 + 3 * (i % 7), .logprobs = 5, .press = presses[i % 8]};
    if (i % 5 == 2) {
        a.decode = "knorm";
        a.interval = 8;
        a.target = 40;
    }
    if (i % 3 == 1) {
        a.temperature = 0.8f;
        a.seed = i;
    }
    return a;
}

static void answers_do_not_depend_on_company(void **state) {
    (void)state;
    for (int c = 0; c < 4; c++) {
        const tiny_arch arch = c % 2 ? TINY_GEMMA3 : TINY_LLAMA;
        pd_engine *e = case_open(arch, TINY_Q8_0, &(case_opts){.compute = c < 2 ? PD_COMPUTE_INT8 : PD_COMPUTE_F32, .threads = 1 + (unsigned)c % 2});
        static int32_t prompt[CROWD][400];
        ask q[CROWD];
        pd_job *job[CROWD];
        pd_err err = {0};
        for (size_t i = 0; i < CROWD; i++) q[i] = crowd_member(i, prompt[i], arch);
        for (size_t i = 0; i < CROWD; i++)
            if (case_submit(e, &q[i], &job[i], &err) != PD_OK) fail_msg("%s", err.msg);
        for (size_t i = 0; i < CROWD; i++) {
            answer *among = case_wait(job[i]), *alone;
            if (among->r->finish == PD_FINISH_ERROR) fail_msg("%s", among->r->err.msg);
            alone = case_run(e, &q[i]);
            case_expect_same(among, alone);
            assert_int_equal(among->r->kv.bytes, alone->r->kv.bytes);
            case_drop(among);
            case_drop(alone);
        }
        case_expect_idle(e);
        pd_engine_close(e);
    }
}

static void answers_do_not_depend_on_threads(void **state) {
    (void)state;
    for (int c = 0; c < 8; c++) {
        const tiny_arch arch = c % 2 ? TINY_GEMMA3 : TINY_LLAMA;
        const case_opts first = {.compute = c & 2 ? PD_COMPUTE_F32 : PD_COMPUTE_INT8, .scalar = c & 4, .threads = 1};
        pd_engine *one = case_open(arch, TINY_Q4_1, &first);
        for (unsigned threads = 2; threads <= 3; threads++) {
            case_opts more = first;
            more.threads = threads;
            pd_engine *e = case_open(arch, TINY_Q4_1, &more);
            for (size_t i = 0; i < 5; i++) {
                int32_t prompt[400];
                const ask q = crowd_member(i, prompt, arch);
                answer *a = case_run(one, &q), *b = case_run(e, &q);
                case_expect_same(a, b);
                case_drop(a);
                case_drop(b);
            }
            pd_engine_close(e);
        }
        pd_engine_close(one);
    }
}

static void ratio_zero_is_dense(void **state) {
    (void)state;
    static const char *const presses[] = {"knorm@0", "adakv(snapkv)@0", "key_rerotation(knorm)@0", "expected_attention@0", "kvzip@0", "kvcompose@0", "kv_compress@0"};
    for (int c = 0; c < 2; c++) {
        pd_engine *e = case_open(c ? TINY_GEMMA3 : TINY_LLAMA, TINY_Q8_0, NULL);
        int32_t prompt[150];
        case_prompt(prompt, 150, 5);
        ask q = {.tokens = prompt, .n = 150, .max_tokens = 30, .logprobs = 10};
        answer *dense = case_run(e, &q);
        for (size_t i = 0; i < sizeof presses / sizeof *presses; i++) {
            q.press = presses[i];
            answer *a = case_run(e, &q);
            case_expect_same(a, dense);
            assert_true(a->r->kv.ratio == 0.0);
            assert_int_equal(a->r->kv.bytes, dense->r->kv.bytes);
            case_drop(a);
        }
        case_drop(dense);
        pd_engine_close(e);
    }
}

/* One tile, several, a single token; the mean of all tokens and the last one's. */
static void embeddings_equal_the_reference(void **state) {
    (void)state;
    static const size_t length[] = {1, 2, 128, 129, 300};
    int32_t prompt[300];
    case_prompt(prompt, 300, 77);
    for (int arch = 0; arch < 2; arch++) {
        const tiny_arch kind = arch ? TINY_GEMMA3 : TINY_LLAMA;
        pd_engine *e = case_open(kind, TINY_F32, &(case_opts){.compute = PD_COMPUTE_F32, .threads = 1 + (unsigned)arch});
        ref_model *m = ref_open(case_model(kind, TINY_F32));
        const size_t d = ref_n_embd(m);
        for (size_t c = 0; c < sizeof length / sizeof *length; c++) {
            const size_t n = length[c];
            double *h = ref_states(m, prompt, n);
            for (pd_pooling pool = PD_POOL_MEAN; pool <= PD_POOL_LAST; pool++) {
                answer *a = case_run(e, &(ask){.tokens = prompt, .n = n, .pool = pool});
                const float *v = pd_job_embedding(a->job);
                assert_non_null(v);
                double sum = 0.0, most = 0.0, *want = calloc(d, sizeof *want);
                for (size_t t = pool == PD_POOL_LAST ? n - 1 : 0; t < n; t++)
                    for (size_t i = 0; i < d; i++) want[i] += h[t * d + i];
                for (size_t i = 0; i < d; i++) sum += want[i] * want[i];
                for (size_t i = 0; i < d; i++) most = fmax(most, fabs(v[i] - want[i] / sqrt(sum)));
                if (!(most < 1e-4)) fail_msg("arch %d, %zu tokens, pooling %d: differs by %g", arch, n, (int)pool, most);
                free(want);
                case_drop(a);
            }
            free(h);
        }
        ref_close(m);
        case_expect_idle(e);
        pd_engine_close(e);
    }
}

/* An embedding has no token, no press and one answer. */
static void embeddings_have_limits(void **state) {
    (void)state;
    int32_t prompt[8];
    case_prompt(prompt, 8, 1);
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q4_1, &(case_opts){0});
    const ask plain = {.tokens = prompt, .n = 8, .pool = PD_POOL_MEAN};
    ask bad[2] = {plain, plain};
    bad[0].max_tokens = 1;
    bad[1].press = "knorm@0.5";
    pd_job *job[2];
    for (size_t i = 0; i < 2; i++) {
        pd_err err = {0};
        assert_int_equal(case_submit(e, &bad[i], job, &err), PD_EINVAL);
        assert_string_equal(err.param, "pooling");
    }
    pd_err err = {0};
    assert_int_equal(case_submit_n(e, &plain, 2, job, &err), PD_EINVAL);
    answer *none = case_run(e, &(ask){.tokens = prompt, .n = 8, .max_tokens = 1});
    assert_null(pd_job_embedding(none->job));
    case_drop(none);
    case_expect_idle(e);
    pd_engine_close(e);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dense_equals_the_reference),
        cmocka_unit_test(int8_is_near_the_reference),
        cmocka_unit_test(prompt_scores_equal_the_reference),
        cmocka_unit_test(embeddings_equal_the_reference),
        cmocka_unit_test(embeddings_have_limits),
        cmocka_unit_test(scores_and_answers_do_not_mind_each_other),
        cmocka_unit_test(pressed_equals_the_masked_reference),
        cmocka_unit_test(deferred_presses_share_one_budget),
        cmocka_unit_test(gates_cut_all_layers_at_one_score),
        cmocka_unit_test(answers_do_not_depend_on_company),
        cmocka_unit_test(answers_do_not_depend_on_threads),
        cmocka_unit_test(ratio_zero_is_dense),
    };
    return cmocka_run_group_tests(tests, NULL, case_group_end);
}
