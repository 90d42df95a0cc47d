/* SPDX-License-Identifier: Apache-2.0 */
/* engine/run with presses that work while tokens are generated: bounds over long
 * answers, exact masks, what such presses are shown, and the same bytes whatever
 * runs beside them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/clock.h"
#include "engine/base/num.h"
#include "engine/base/rng.h"
#include "engine/run/job.h"
#include "tests/unit/against_ref.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PAGE = 16 };

/* A press of this test's own, as the resolver would have made it. */
static pd_press_inst *made(const pd_press *p, pd_press_inst *child) {
    pd_press_inst *inst = calloc(1, sizeof *inst);
    assert_non_null(inst);
    inst->press = p;
    for (size_t i = 0; i < p->n_params; i++) inst->p[i] = p->params[i].def;
    inst->child[0] = child;
    inst->n_child = child != NULL;
    return inst;
}

static void set(pd_press_inst *inst, const char *name, double value) {
    size_t i;
    assert_non_null(pd_press_param(inst->press, name, &i));
    inst->p[i] = value;
}

static pd_compression *wish(pd_press_inst *inst) {
    pd_compression *c = calloc(1, sizeof *c);
    pd_err err = {0};
    if (pd_compression_take(c, inst, "press", &err) != PD_OK) fail_msg("%s", err.msg);
    return c;
}

/* ---- bounds ---- */

/* Watch a long answer from outside: never more than `bound` pages.  How often it was looked at. */
static size_t watch(pd_engine *e, const ask *q, size_t bound) {
    pd_job *job = NULL;
    pd_err err = {0};
    if (case_submit(e, q, &job, &err) != PD_OK) fail_msg("%s", err.msg);
    const uint64_t t0 = pd_now_ns(), page = pd_engine_get_info(e)->page_bytes;
    size_t n_looks = 0;
    while (pd_job_get_state(job) != PD_JOB_DONE) {
        pd_engine_stats s;
        pd_engine_get_stats(e, &s);
        if (s.pages_seq > bound) fail_msg("%s: %llu pages are held, %zu is the bound", q->press, (unsigned long long)s.pages_seq, bound);
        n_looks++;
        if (pd_ms_since(t0) > 240e3) fail_msg("a job did not end within four minutes");
        usleep(200);
    }
    const pd_job_result *r = pd_job_get_result(job);
    if (r->finish != PD_FINISH_LENGTH) fail_msg("%s: %s", q->press, r->err.msg);
    assert_int_equal(r->timing.predicted_n, q->max_tokens);
    assert_int_equal(r->kv.tokens_seen, q->n + q->max_tokens - 1);
    if (r->kv.bytes_peak > bound * page) fail_msg("%s: peak %llu pages, %zu is the bound", q->press, (unsigned long long)(r->kv.bytes_peak / page), bound);
    assert_true(r->kv.bytes_peak > bound * page / 2); /* the bound is not a wide one */
    pd_job_unref(job);
    case_expect_idle(e);
    return n_looks;
}

static void a_long_answer_keeps_its_bound(void **state) {
    (void)state;
    enum { TARGET = 160, INTERVAL = 32, TOKENS = 4000 };
    static const char *const presses[] = {
        "decoding:compression_interval=32,target_size=160(knorm)",
        "decoding:compression_interval=32,target_size=160(adakv(expected_attention))",
        "cam:compression_interval=32,target_size=160(knorm)",
        "prefill_decoding(none,decoding:compression_interval=32,target_size=160(snapkv))",
        "decoding:compression_interval=32,target_size=160(kv_compress)",
        "decoding:compression_interval=32,target_size=140,keep_prompt=true(random)", /* and 20 of the prompt */
    };
    int32_t prompt[20];
    size_t n_looks = 0;
    case_prompt(prompt, 20, 10);
    for (int c = 0; c < 2; c++) {
        pd_engine *e = case_open(c ? TINY_GEMMA3 : TINY_LLAMA, TINY_Q8_0, &(case_opts){.ctx = 8192});
        const pd_engine_info *info = pd_engine_get_info(e);
        /* heads may share a layer unevenly (adakv) */
        const size_t layer = info->n_head_kv + info->n_head_kv * (TARGET + INTERVAL - 2) / PAGE, window = TINY_WINDOW / PAGE + 2;
        const size_t bound = c ? layer + (info->n_layer - 1) * window : info->n_layer * layer;
        for (size_t i = 0; i < sizeof presses / sizeof *presses; i++) {
            const ask q = {.tokens = prompt, .n = 20, .max_tokens = c ? TOKENS / 4 : TOKENS, .press = presses[i]};
            n_looks += watch(e, &q, bound);
        }
        pd_engine_close(e);
    }
    assert_true(n_looks > 20); /* of thousands on a machine that is not busy */
}

/* What stays grows with the text, and is what the ratio says at each pruning. */
static void a_ratio_of_all_tokens_seen(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    int32_t prompt[30];
    case_prompt(prompt, 30, 11);
    for (size_t n = 1; n < 300; n += 7) {
        const ask q = {.tokens = prompt, .n = 30, .max_tokens = n,
                       .press = "compression_ratio_decoding:target_compression_ratio=0.75,compression_interval=10(keydiff)"};
        answer *a = case_run(e, &q);
        const size_t seen = 30 + n - 1, last = (n - 1) / 10 * 10, at = 30 + last;
        const size_t want = last ? (size_t)((double)at * 0.25) + seen - at : seen;
        for (size_t h = 0; h < 6; h++) assert_int_equal(a->r->kv.kept[h], want);
        case_drop(a);
    }
    case_expect_idle(e);
    pd_engine_close(e);
}

/* Admission knows the bounds: what could never fit dense is served. */
static void admission_knows_the_bounds(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, &(case_opts){.ctx = 100000, .kv_bytes = 1 << 20});
    int32_t prompt[20];
    case_prompt(prompt, 20, 12);
    static const struct {
        const char *press;
        bool fits;
    } cases[] = {{"decoding:compression_interval=64,target_size=100(knorm)", true},
                 {"cam:compression_interval=64,target_size=100(knorm)", true},
                 {"compression_ratio_decoding:target_compression_ratio=0.99,compression_interval=64(knorm)", true},
                 {"compression_ratio_decoding:target_compression_ratio=0.1,compression_interval=64(knorm)", false},
                 {"decoding:compression_interval=50000,target_size=100(knorm)", false},
                 {"dms:threshold=1000,decoding=true(knorm)", false}, /* a threshold promises nothing */
                 {NULL, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const ask q = {.tokens = prompt, .n = 20, .max_tokens = 20000, .press = cases[i].press};
        pd_job *job = NULL;
        pd_err err = {0};
        const pd_status rc = case_submit(e, &q, &job, &err);
        if (rc != (cases[i].fits ? PD_OK : PD_EBUDGET)) fail_msg("%s: %d %s", cases[i].press, (int)rc, err.msg);
        if (!job) continue;
        pd_job_cancel(job);
        case_drop(case_wait(job));
    }
    case_expect_idle(e);
    pd_engine_close(e);
}

/* However unevenly a press shares a layer among its heads, what it holds was promised. */
static void admission_covers_uneven_heads(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    int32_t prompt[120];
    size_t least = SIZE_MAX;
    for (size_t n = 20; n < 120; n++) {
        case_prompt(prompt, n, 13 + n);
        for (size_t i = 0; i < 2; i++) {
            const ask q = {.tokens = prompt, .n = n, .max_tokens = i ? 40 : 3, .press = i
                ? "decoding:compression_interval=4,target_size=18(adakv:alpha_safeguard=0(keydiff))"
                : "adakv:alpha_safeguard=0(keydiff)@0.5"};
            answer *a = case_run(e, &q);
            if (a->r->kv.pages > a->job->pages_reserved)
                fail_msg("%s: %zu tokens hold %llu pages, %llu were promised", q.press, n, (unsigned long long)a->r->kv.pages,
                         (unsigned long long)a->job->pages_reserved);
            least = pd_min_size(least, a->job->pages_reserved - a->r->kv.pages);
            case_drop(a);
        }
    }
    assert_in_range(least, 0, 3); /* the promise is not a wide one */
    pd_engine_close(e);
}

/* ---- exact masks ---- */

typedef struct {
    size_t prompt, interval, target, n_sink, only;
} streamed;

/* decoding(streaming_llm): a query sees what the last pruning before its step left,
 * and what came since. */
static bool sees_streamed(const void *arg, size_t layer, size_t head, size_t q, size_t k, long *dist) {
    (void)head, (void)dist;
    const streamed *s = arg;
    if ((s->only != SIZE_MAX && layer != s->only) || q < s->prompt || k < s->n_sink) return true;
    const size_t steps = q - s->prompt, pruned = steps / s->interval * s->interval; /* steps before this one */
    if (pruned == 0 || s->prompt + pruned <= s->target) return true;
    return k >= s->prompt + pruned - (s->target - s->n_sink);
}

static void decoding_equals_the_masked_reference(void **state) {
    (void)state;
    for (int c = 0; c < 3; c++) {
        const tiny_arch arch = c == 2 ? TINY_GEMMA3 : TINY_LLAMA;
        const streamed s = {.prompt = c ? 60 : 20, .interval = c ? 7 : 10, .target = 32, .n_sink = 4, .only = c == 2 ? 5 : SIZE_MAX};
        int32_t prompt[60];
        case_prompt(prompt, 60, 20 + (uint64_t)c);
        pd_engine *e = case_open(arch, TINY_F32, &(case_opts){.compute = PD_COMPUTE_F32});
        ref_model *m = ref_open(case_model(arch, TINY_F32));
        char text[96];
        snprintf(text, sizeof text, "decoding:compression_interval=%zu,target_size=32(streaming_llm)", s.interval);
        const ask q = {.tokens = prompt, .n = s.prompt, .press = text, .max_tokens = 90, .logprobs = 100};
        answer *a = case_run(e, &q);
        const double most = against_reference(m, &q, a, sees_streamed, &s);
        if (most > 1e-3) fail_msg("case %d: log probabilities differ by %g", c, most);
        assert_true(against_reference(m, &q, a, NULL, NULL) > 0.02); /* the mask matters */
        case_drop(a);
        ref_close(m);
        pd_engine_close(e);
    }
}

/* ---- the prompt kept, the rest at random ---- */

enum { R_LAYERS = 3, R_HEADS = 2, R_MAX = 200 };

typedef struct {
    size_t gone[R_LAYERS][R_HEADS][R_MAX]; /* the first query that does not see the token */
} drawn;

static bool sees_drawn(const void *arg, size_t layer, size_t head, size_t q, size_t k, long *dist) {
    (void)dist;
    const drawn *d = arg;
    return q < d->gone[layer][head][k];
}

/* `seen` tokens came: of the generated ones `target` a head stay, as random.c draws. */
static void draw(drawn *d, uint64_t seed, size_t prompt, size_t seen, size_t target) {
    for (size_t l = 0; l < R_LAYERS; l++) {
        pd_rng key = {seed ^ (uint64_t)l << 40 ^ seen}, rng = {pd_rng_u64(&key)};
        for (size_t h = 0; h < R_HEADS; h++) {
            size_t token[R_MAX], n = 0;
            float score[R_MAX];
            for (size_t k = prompt; k < seen; k++) {
                if (d->gone[l][h][k] <= seen) continue;
                token[n] = k;
                score[n++] = (float)(pd_rng_u64(&rng) >> 40) * 0x1p-24f;
            }
            for (; n > target; n--) {
                size_t least = 0;
                for (size_t i = 1; i < n; i++)
                    if (score[i] <= score[least]) least = i;
                d->gone[l][h][token[least]] = seen;
                for (size_t i = least; i + 1 < n; i++) token[i] = token[i + 1], score[i] = score[i + 1];
            }
        }
    }
}

/* Generated tokens go at random, per layer, head and pruning; the prompt stays, and is not counted. */
static void random_eviction_keeps_the_prompt(void **state) {
    (void)state;
    enum { N = 60, TARGET = 20, INTERVAL = 8, TOKENS = 90, SEEN = N + TOKENS - 1 };
    int32_t prompt[N];
    case_prompt(prompt, N, 33);
    pd_engine *e = case_open(TINY_LLAMA, TINY_F32, &(case_opts){.compute = PD_COMPUTE_F32});
    ref_model *m = ref_open(case_model(TINY_LLAMA, TINY_F32));
    const ask q = {.tokens = prompt, .n = N, .max_tokens = TOKENS, .logprobs = 100, .press_seed = 77,
                   .press = "decoding:compression_interval=8,target_size=20,keep_prompt=true(random)"};
    answer *a = case_run(e, &q);
    static drawn d;
    for (size_t i = 0; i < R_LAYERS * R_HEADS * R_MAX; i++) (&d.gone[0][0][0])[i] = SIZE_MAX;
    for (size_t seen = N + INTERVAL; seen <= SEEN; seen += INTERVAL)
        if (seen > N + TARGET) draw(&d, 77, N, seen, TARGET);
    for (size_t h = 0; h < R_LAYERS * R_HEADS; h++) assert_int_equal(a->r->kv.kept[h], N + TARGET + (TOKENS - 1) % INTERVAL);
    const double most = against_reference(m, &q, a, sees_drawn, &d);
    if (most > 1e-3) fail_msg("log probabilities differ by %g", most);
    assert_true(against_reference(m, &q, a, NULL, NULL) > 0.02);
    /* independent draws: any two of layers and heads lose different tokens, and old ones are among those that stay */
    size_t old = 0;
    for (size_t x = 0; x < R_LAYERS * R_HEADS; x++) {
        for (size_t y = 0; y < x; y++)
            assert_memory_not_equal((&d.gone[0][0])[x], (&d.gone[0][0])[y], sizeof d.gone[0][0]);
        for (size_t k = N; k < N + TOKENS / 2; k++) old += (&d.gone[0][0])[x][k] == SIZE_MAX;
    }
    assert_true(old > 0);
    case_drop(a);
    ref_close(m);
    case_expect_idle(e);
    pd_engine_close(e);
}

/* Whatever a press left of the prompt, evenly or not, and with which of the family. */
static void what_the_prompt_left_stays(void **state) {
    (void)state;
    static const struct {
        const char *press;
        size_t count;    /* of generated tokens behind the last pruning; 0: a tenth of them */
        bool uneven;
        size_t slack;    /* pages promised and not held */
    } cases[] = {{"prefill_decoding(knorm,decoding:compression_interval=10,target_size=15,keep_prompt=true(random))@0.5", 15, false, 6},
                 {"prefill_decoding(adakv(knorm),decoding:compression_interval=10,target_size=15,keep_prompt=true(streaming_llm))@0.6", 15, true, 12},
                 {"prefill_decoding(key_rerotation(knorm),decoding:compression_interval=10,target_size=15,keep_prompt=true(knorm))@0.5", 15, false, 6},
                 {"compression_ratio_decoding:compression_interval=10,target_compression_ratio=0.9,keep_prompt=true(random)", 0, false, 12}};
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    int32_t prompt[90];
    case_prompt(prompt, 90, 34);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (size_t more = 1; more < 140; more += 23) {
            ask q = {.tokens = prompt, .n = 90, .max_tokens = 0, .press = cases[c].press, .press_seed = 5};
            answer *a = case_run(e, &q);
            uint32_t left[6];
            memcpy(left, a->r->kv.kept, sizeof left);
            case_drop(a);
            q.max_tokens = more;
            a = case_run(e, &q);
            const size_t fed = more - 1, pruned = fed / 10 * 10;
            const size_t count = cases[c].count ? cases[c].count : pd_max_size((size_t)((double)pruned * (1.0 - 0.9)), 1), generated = pruned ? pd_min_size(count, pruned) + fed - pruned : fed;
            bool uneven = false;
            for (size_t h = 0; h < 6; h++) {
                uneven = uneven || left[h] != left[0];
                if (a->r->kv.kept[h] != left[h] + generated)
                    fail_msg("%s, %zu tokens, head %zu: %u slots, %u of the prompt and %zu more", cases[c].press, more, h, a->r->kv.kept[h], left[h], generated);
            }
            if (cases[c].count) assert_int_equal(uneven, cases[c].uneven);
            if (a->r->kv.pages > a->job->pages_promised || a->r->kv.pages + cases[c].slack < a->job->pages_promised)
                fail_msg("%s, %zu tokens: %llu pages are held, %llu promised", cases[c].press, more, (unsigned long long)a->r->kv.pages,
                         (unsigned long long)a->job->pages_promised);
            case_drop(a);
        }
    case_expect_idle(e);
    pd_engine_close(e);
}

/* A third of the tokens score 0, others 1: each head has its own third. */
static bool is_low(size_t head, size_t pos) {
    return (pos + head) % 3 == 0;
}

static pd_status score_by_pos(const pd_press_inst *inst, const pd_view *view, float *const *score, pd_err *err) {
    for (size_t h = 0; h < view->n_head_kv; h++)
        for (size_t i = 0; i < view->n_h[h]; i++) score[h][i] = is_low(h, (size_t)view->pos[h][i]) ? 0.0f : 1.0f;
    return PD_OK;
}

static const pd_press by_pos = {
    .name = "by_pos",
    .can = PD_CAN_SCORE | PD_CAN_SCORE_ALONE | PD_CAN_SCORE_STEP | PD_CAN_SCORE_RAGGED | PD_CAN_PRUNE_STEP,
    .score = score_by_pos,
};

typedef struct {
    size_t scope, prompt, window, only;
    bool decoding, skipped;
} sparse;

/* dms: low tokens go when they leave the window; the prompt's scope is dense to
 * itself, a question sees what the scope left, a step what the one before left. */
static bool sees_sparse(const void *arg, size_t layer, size_t head, size_t q, size_t k, long *dist) {
    (void)dist;
    const sparse *s = arg;
    if ((s->only != SIZE_MAX && layer != s->only) || q < s->scope || !is_low(head, k)) return true;
    if (s->skipped && k < s->scope) return true;
    const size_t seen = q < s->prompt || !s->decoding ? s->scope : q;
    return k + s->window >= seen;
}

static void dms_equals_the_masked_reference(void **state) {
    (void)state;
    static const struct {
        tiny_arch arch;
        size_t scope;
        bool decoding;
        size_t min_tokens;
    } cases[] = {{TINY_LLAMA, 0, true, 0},  {TINY_LLAMA, 45, true, 0},  {TINY_LLAMA, 45, false, 0},
                 {TINY_LLAMA, 0, true, 61}, {TINY_GEMMA3, 50, true, 0}, {TINY_GEMMA3, 0, false, 0}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        const bool gemma = cases[c].arch == TINY_GEMMA3;
        enum { N = 60, WINDOW = 9, TOKENS = 70 };
        int32_t prompt[N];
        case_prompt(prompt, N, 30 + c);
        pd_engine *e = case_open(cases[c].arch, TINY_F32, &(case_opts){.compute = PD_COMPUTE_F32});
        ref_model *m = ref_open(case_model(cases[c].arch, TINY_F32));
        pd_press_inst *dms = made(pd_press_find("dms"), made(&by_pos, NULL));
        set(dms, "threshold", 0.5);
        set(dms, "sliding_window_size", WINDOW);
        set(dms, "decoding", cases[c].decoding);
        pd_compression *comp = wish(dms);
        comp->min_tokens = cases[c].min_tokens;
        if (cases[c].scope) comp->scope = PD_SCOPE_TOKENS;
        comp->scope_tokens = cases[c].scope;
        const ask q = {.tokens = prompt, .n = N, .comp = comp, .max_tokens = TOKENS, .logprobs = 100};
        answer *a = case_run(e, &q);
        const sparse s = {.scope = cases[c].scope ? cases[c].scope : N, .prompt = N, .window = WINDOW, .only = gemma ? 5 : SIZE_MAX,
                          .decoding = cases[c].decoding, .skipped = cases[c].min_tokens > N};
        assert_int_equal(a->r->kv.skipped != NULL, s.skipped);
        const double most = against_reference(m, &q, a, sees_sparse, &s);
        if (most > 1e-3) fail_msg("case %zu: log probabilities differ by %g", c, most);
        assert_true(against_reference(m, &q, a, NULL, NULL) > 0.02);
        /* and the memory is gone, head by head */
        for (size_t h = 0; h < (gemma ? 1 : 2); h++) {
            size_t want = 0;
            const size_t seen = N + TOKENS - 1, judged = s.decoding ? seen : s.scope;
            for (size_t k = 0; k < seen; k++)
                want += !is_low(h, k) || k + WINDOW >= judged || (s.skipped && k < N);
            assert_int_equal(a->r->kv.kept[gemma ? 5 : h], want);
            assert_int_equal(a->r->kv.head_pages[gemma ? 5 : h], pd_div_up(want, PAGE));
        }
        case_drop(a);
        case_expect_idle(e);
        ref_close(m);
        pd_engine_close(e);
    }
}

/* ---- what such presses are shown ---- */

enum { SPY_LAYERS = 3, SPY_TOKENS = 128, SPY_EMBD = 64 };
static float spy_x[SPY_LAYERS][SPY_TOKENS][SPY_EMBD];

static pd_status score_by_x(const pd_press_inst *inst, const pd_view *view, float *const *score, pd_err *err) {
    assert_int_equal(view->x_rows, view->n);
    for (size_t i = 0; i < view->n; i++) {
        const size_t pos = (size_t)view->pos[0][i], n = pd_min_size(view->n_embd, SPY_EMBD);
        memcpy(spy_x[view->layer][pos], view->x + i * view->n_embd, n * sizeof(float));
        for (size_t h = 0; h < view->n_head_kv; h++) score[h][i] = 1.0f;
    }
    return PD_OK;
}

static void needs_x(const pd_press_inst *inst, pd_press_needs *n) {
    n->bits |= PD_NEEDS_X;
}

static const pd_press by_x = {
    .name = "by_x",
    .can = PD_CAN_SCORE | PD_CAN_SCORE_ALONE,
    .needs = needs_x,
    .score = score_by_x,
};

static pd_compression *dms_by_x(size_t scope) {
    pd_press_inst *dms = made(pd_press_find("dms"), made(&by_x, NULL));
    set(dms, "threshold", 0);
    set(dms, "decoding", 1);
    pd_compression *c = wish(dms);
    if (scope) c->scope = PD_SCOPE_TOKENS;
    c->scope_tokens = scope;
    return c;
}

/* A token's attention input is the same whether it came in the scope, in the
 * question or by itself. */
static void new_tokens_come_with_their_input(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_LLAMA, TINY_F32, &(case_opts){.compute = PD_COMPUTE_F32});
    int32_t prompt[SPY_TOKENS];
    case_prompt(prompt, 70, 40);
    /* another sequence, which comes first in the batch */
    const ask other = {.tokens = prompt, .n = 20, .max_tokens = 1000};
    pd_job *job;
    pd_err err = {0};
    assert_int_equal(case_submit(e, &other, &job, &err), PD_OK);
    ask q = {.tokens = prompt, .n = 70, .max_tokens = 31, .comp = dms_by_x(50)};
    answer *a = case_run(e, &q);
    assert_int_not_equal(pd_job_get_state(job), PD_JOB_DONE);
    pd_job_cancel(job);
    case_drop(case_wait(job));
    static float got[SPY_LAYERS][SPY_TOKENS][SPY_EMBD];
    memcpy(got, spy_x, sizeof got);
    memset(spy_x, 0, sizeof spy_x);
    memcpy(prompt + 70, a->id, 30 * sizeof *prompt);
    case_drop(a);
    q = (ask){.tokens = prompt, .n = 100, .max_tokens = 1, .comp = dms_by_x(0)};
    case_drop(case_run(e, &q));
    for (size_t l = 0; l < SPY_LAYERS; l++)
        for (size_t t = 0; t < 100; t++) {
            double size = 0.0;
            for (size_t i = 0; i < SPY_EMBD; i++) {
                size += fabs((double)spy_x[l][t][i]);
                if (!(fabs((double)got[l][t][i] - (double)spy_x[l][t][i]) < 1e-3))
                    fail_msg("layer %zu, token %zu, element %zu: %g, in a prompt %g", l, t, i, (double)got[l][t][i], (double)spy_x[l][t][i]);
            }
            assert_true(size > 0.1);
        }
    pd_engine_close(e);
}

/* A decode press that looks at everything: tags sum to the steps so far, positions
 * and counts are true, and values it changed are there the next time. */
static float spy_v[SPY_LAYERS][2][SPY_TOKENS];
static size_t spy_calls, spy_question;

static pd_status plan_spy(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget, pd_plan *ret, pd_err *err) {
    const size_t l = (size_t)view->layer, d = view->head_dim, steps = view->n_seen - 60;
    assert_int_equal(view->phase, PD_PHASE_STEP);
    assert_int_equal(view->n_steps, 4);
    spy_calls++;
    size_t *n_keep = PD_ARENA_NEW(view->tmp, 2, size_t);
    uint32_t **keep = PD_ARENA_NEW(view->tmp, 2, uint32_t *);
    float **v = PD_ARENA_NEW(view->tmp, 2, float *);
    for (size_t h = 0; h < 2; h++) {
        const size_t n = view->n_h[h];
        double sum = 0.0;
        assert_int_equal(n, view->n);
        for (size_t i = 0; i < n; i++) {
            const size_t pos = (size_t)view->pos[h][i];
            sum += (double)view->tag[h][i];
            assert_true(view->tag[h][i] >= 0.0f && pos == view->n_seen - n + i); /* the oldest go */
            if (spy_v[l][h][pos] != 0.0f) assert_true(view->v[h][i * d] == spy_v[l][h][pos]);
        }
        /* one per step, less what went with evicted slots */
        const size_t all = steps + spy_question;
        if (view->n_seen == 64) assert_true(fabs(sum - (double)all) < 1e-3);
        else assert_true(sum < (double)all && sum > 4.0);
        n_keep[h] = budget->count;
        keep[h] = PD_ARENA_NEW(view->tmp, n, uint32_t);
        v[h] = PD_ARENA_NEW(view->tmp, n * d, float);
        for (size_t i = 0; i < budget->count; i++) {
            keep[h][i] = (uint32_t)(n - budget->count + i);
            for (size_t c = 0; c < d; c++) v[h][i * d + c] = view->v[h][keep[h][i] * d + c] + 0.125f;
            spy_v[l][h][view->pos[h][keep[h][i]]] = v[h][i * d];
        }
    }
    *ret = (pd_plan){.n_keep = n_keep, .keep = keep, .v_new = v};
    return PD_OK;
}

static bool spy_rule(const pd_press_inst *inst, pd_decode_rule *ret) {
    *ret = (pd_decode_rule){.prune = inst, .interval = 4, .budget = {.by_count = true, .count = 50}, .tag = PD_TAG_ATTENTION};
    return true;
}

static const pd_press spy = {
    .name = "spy", .can = PD_CAN_DECODE | PD_DECODE_ONLY | PD_CAN_COMPOSE, .plan = plan_spy, .decode_rule = spy_rule,
};

static void views_while_decoding_are_true(void **state) {
    (void)state;
    for (int c = 0; c < 2; c++) { /* 1: with a question, whose last query looks too */
        pd_engine *e = case_open(TINY_LLAMA, TINY_F32, &(case_opts){.compute = PD_COMPUTE_F32});
        int32_t prompt[60];
        case_prompt(prompt, 60, 50);
        memset(spy_v, 0, sizeof spy_v);
        spy_calls = 0;
        spy_question = (size_t)c;
        pd_compression *comp = wish(made(&spy, NULL));
        if (c) { /* a prompt press that keeps all */
            comp->press = made(pd_press_find("knorm"), NULL);
            comp->scope = PD_SCOPE_TOKENS;
            comp->scope_tokens = 40;
        }
        const ask q = {.tokens = prompt, .n = 60, .max_tokens = 60, .comp = comp};
        case_drop(case_run(e, &q));
        assert_int_equal(spy_calls, 3 * (59 / 4));
        pd_engine_close(e);
    }
}

/* A scorer that counts the recent queries it is shown. */
enum { TAIL = 12 };
static size_t spy_rows, spy_tail;

static pd_status score_by_queries(const pd_press_inst *inst, const pd_view *view, float *const *score, pd_err *err) {
    spy_rows = view->moments[0].count;
    spy_tail = view->q_rows;
    assert_int_equal(view->stat_rows, spy_rows);
    for (size_t i = 0; i < view->q_rows; i++) /* the last ones, each where it stood */
        assert_int_equal(view->q_pos[i], view->n_seen - view->q_rows + i);
    for (size_t h = 0; h < view->n_head_kv; h++) /* and the newest slot right before the next position */
        assert_int_equal(view->pos[h][view->n_h[h] - 1], view->n_seen - 1);
    for (size_t h = 0; h < view->n_head_kv; h++)
        for (size_t i = 0; i < view->n_h[h]; i++) score[h][i] = (float)i;
    return PD_OK;
}

static void needs_queries(const pd_press_inst *inst, pd_press_needs *n) {
    n->bits |= PD_NEEDS_Q_MEAN | PD_NEEDS_Q_TAIL;
    n->n_moments = 1;
    n->q_tail = TAIL;
}

static const pd_press by_queries = {
    .name = "by_queries",
    .can = PD_CAN_SCORE | PD_CAN_SCORE_STEP | PD_CAN_SCORE_RAGGED | PD_CAN_PRUNE_STEP,
    .needs = needs_queries,
    .score = score_by_queries,
};

static void recent_queries_are_as_many_as_asked(void **state) {
    (void)state;
    static const size_t buffer[][2] = {{0, TAIL}, {5, TAIL}, {30, 30}, {256, 20 + 99 - 3}}; /* asked, shown at the end */
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    int32_t prompt[20];
    case_prompt(prompt, 20, 55);
    for (size_t i = 0; i < sizeof buffer / sizeof *buffer; i++) {
        pd_press_inst *inst = made(pd_press_find("decoding"), made(&by_queries, NULL));
        set(inst, "compression_interval", 4);
        set(inst, "target_size", 16);
        set(inst, "hidden_states_buffer_size", (double)buffer[i][0]);
        pd_compression *comp = wish(inst);
        if (i == 2) { /* positions that count what the prompt kept */
            comp->press = made(pd_press_find("key_rerotation"), made(pd_press_find("knorm"), NULL));
            comp->ratio = 0.5;
        }
        const ask q = {.tokens = prompt, .n = 20, .max_tokens = 100, .comp = comp};
        case_drop(case_run(e, &q));
        assert_int_equal(spy_rows, buffer[i][1]);
        assert_int_equal(spy_tail, TAIL);
    }
    pd_engine_close(e);
}

/* ---- the same bytes ---- */

static void spellings_are_one(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    int32_t prompt[80];
    case_prompt(prompt, 80, 60);
    static const struct {
        const char *child, *press, *text;
        double ratio;
    } cases[] = {
        {"expected_attention", "decoding:compression_interval=16,target_size=48(expected_attention)", NULL, NAN},
        {"adakv(snapkv)", "prefill_decoding(none,decoding:compression_interval=16,target_size=48(adakv(snapkv)))",
         "decoding:compression_interval=16,target_size=48(adakv(snapkv))", NAN},
        {"tova", "compression_ratio_decoding:target_compression_ratio=0.5,compression_interval=16(tova)",
         "compression_ratio_decoding:compression_interval=16(tova)", 0.5},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ask q = {.tokens = prompt, .n = 80, .max_tokens = 150, .logprobs = 5, .press = cases[i].press};
        answer *a = case_run(e, &q);
        pd_compression *c = calloc(1, sizeof *c);
        pd_arena arena = {0};
        pd_spec *spec;
        double none;
        pd_press_inst *child;
        pd_err err = {0};
        assert_int_equal(pd_spec_parse_text(cases[i].child, "press", &arena, &spec, &none, &err), PD_OK);
        assert_int_equal(pd_spec_resolve(spec, &pd_engine_get_info(e)->press_model, &child, &err), PD_OK);
        assert_int_equal(pd_compression_decode_every(c, child, 16, 48, cases[i].ratio, "decode", &err), PD_OK);
        pd_arena_done(&arena);
        q.press = NULL;
        q.comp = c;
        answer *b = case_run(e, &q);
        case_expect_same(a, b);
        assert_string_equal(a->r->kv.press, b->r->kv.press);
        assert_string_equal(a->r->kv.press, cases[i].text ? cases[i].text : cases[i].press);
        assert_int_equal(a->r->kv.bytes, b->r->kv.bytes);
        assert_true(a->r->kv.tokens_evicted > 0);
        case_drop(a);
        case_drop(b);
    }
    pd_engine_close(e);
}

enum { CROWD = 20 };
static const char *const crowd_press[CROWD] = {
    NULL,
    "cam:compression_interval=8,target_size=40,merge_budget=6(knorm)",
    "dms:threshold=-1.5,sliding_window_size=16,decoding=true(knorm)",
    "decoding:compression_interval=8,target_size=40(adakv(expected_attention))",
    "knorm@0.5",
    "prefill_decoding(snapkv:window_size=8,cam:compression_interval=5,target_size=30(keydiff))@0.4",
    "compression_ratio_decoding:compression_interval=9(snapkv:window_size=70)",
    "decoding:compression_interval=3,target_size=24,hidden_states_buffer_size=0(expected_attention)",
    "prefill_decoding(adakv(knorm),decoding:compression_interval=8,target_size=40(tova))@0.5",
    "dms:threshold=-1.2,sliding_window_size=5(knorm)",
    "prefill_decoding(adakv(knorm)@0.3,decoding:compression_interval=6,target_size=33(merging(keydiff)))",
    "prefill_decoding(critical_adakv(knorm)@0.3,decoding:compression_interval=6,target_size=33(critical_adakv(expected_attention)))",
    "decoding:compression_interval=6,target_size=60(lagkv:lag_size=16)",
    "decoding:compression_interval=6,target_size=60(cap)",
    "prefill_decoding(compactor@0.4,cam:compression_interval=6,target_size=60(critical(cur)))",
    "prefill_decoding(kvzip:chunk_size=50,decoding:compression_interval=6,target_size=60(tova))@0.6",
    "hcattention:tau=0.7(knorm)@0.5",
    "hcattention(prefill_decoding(knorm@0.5,cam:compression_interval=5,target_size=30(keydiff)))",
    "quest:token_budget=64(prefill_decoding(adakv(knorm)@0.3,decoding:compression_interval=6,target_size=99(merging(keydiff))))",
    "hcattention:tau=0.9(quest:token_budget=80,skip_layers=0(adakv(knorm)))@0.3",
};

static ask crowd_member(size_t i, int32_t *prompt) {
    const size_t n = 30 + i * 17;
    case_prompt(prompt, n, 70 + i);
    return (ask){.tokens = prompt, .n = n, .max_tokens = 60 + 5 * i, .logprobs = 5, .press = crowd_press[i],
                 .press_seed = i, .temperature = i % 3 == 0 ? 0.7f : 0.0f, .seed = i, .scope = i == 2 || i == 5 ? n - 10 : 0};
}

static void company_and_threads_change_nothing(void **state) {
    (void)state;
    for (int c = 0; c < 4; c++) {
        const tiny_arch arch = c % 2 ? TINY_GEMMA3 : TINY_LLAMA;
        const case_opts o = {.compute = c < 2 ? PD_COMPUTE_INT8 : PD_COMPUTE_F32, .threads = 1};
        case_opts more = o;
        more.threads = 3;
        pd_engine *e = case_open(arch, TINY_Q8_0, &o), *wide = case_open(arch, TINY_Q8_0, &more);
        static int32_t prompt[CROWD][400];
        ask q[CROWD];
        pd_job *job[CROWD];
        pd_err err = {0};
        for (size_t i = 0; i < CROWD; i++) {
            q[i] = crowd_member(i, prompt[i]);
            if (case_submit(wide, &q[i], &job[i], &err) != PD_OK) fail_msg("%s", err.msg);
        }
        for (size_t i = 0; i < CROWD; i++) {
            answer *among = case_wait(job[i]), *alone = case_run(e, &q[i]);
            if (among->r->finish == PD_FINISH_ERROR) fail_msg("%s: %s", crowd_press[i], among->r->err.msg);
            case_expect_same(among, alone);
            assert_int_equal(among->r->kv.bytes, alone->r->kv.bytes);
            assert_int_equal(among->r->kv.tokens_evicted, alone->r->kv.tokens_evicted);
            if (i) assert_true(alone->r->kv.tokens_evicted > 0);
            case_drop(among);
            case_drop(alone);
        }
        case_expect_idle(wide);
        pd_engine_close(wide);
        pd_engine_close(e);
    }
}

/* cam draws from the request's seed, and from nothing else. */
static void cam_repeats_with_its_seed(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_LLAMA, TINY_F32, &(case_opts){.compute = PD_COMPUTE_F32});
    int32_t prompt[64];
    case_prompt(prompt, 64, 80);
    ask q = {.tokens = prompt, .n = 64, .max_tokens = 80, .logprobs = 20, .press_seed = 1,
             .press = "cam:compression_interval=4,target_size=32,merge_budget=4(knorm)"};
    answer *a = case_run(e, &q), *b = case_run(e, &q);
    q.press_seed = 2;
    answer *c = case_run(e, &q);
    q.press = "decoding:compression_interval=4,target_size=32(knorm)";
    answer *d = case_run(e, &q);
    case_expect_same(a, b);
    assert_memory_not_equal(a->logprob, c->logprob, a->n * sizeof *a->logprob);
    assert_memory_not_equal(a->logprob, d->logprob, a->n * sizeof *a->logprob); /* it does merge */
    case_drop(a);
    case_drop(b);
    case_drop(c);
    case_drop(d);
    pd_engine_close(e);
}

/* Protected tokens outlive every kind of pruning. */
static void protected_tokens_outlive_an_answer(void **state) {
    (void)state;
    static const char *const presses[] = {
        "decoding:compression_interval=4,target_size=8(knorm)", "cam:compression_interval=4,target_size=8(knorm)",
        "dms:threshold=1000,sliding_window_size=4,decoding=true(knorm)",
        "prefill_decoding(key_rerotation(knorm),decoding:compression_interval=4,target_size=8(adakv(knorm)))@0.5"};
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    int32_t prompt[60];
    case_prompt(prompt, 60, 90);
    for (size_t i = 0; i < 4; i++) {
        const ask q = {.tokens = prompt, .n = 60, .max_tokens = 50, .press = presses[i], .protect = true, .system_begin = 5, .system_end = 25};
        answer *a = case_run(e, &q);
        for (size_t h = 0; h < 6; h++) /* 20 of them, the window or the target, and the interval */
            if (a->r->kv.kept[h] < 20 || a->r->kv.kept[h] > 20 + 8 + 4) fail_msg("%s: head %zu keeps %u", presses[i], h, a->r->kv.kept[h]);
        case_drop(a);
    }
    pd_engine_close(e);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_long_answer_keeps_its_bound),
        cmocka_unit_test(a_ratio_of_all_tokens_seen),
        cmocka_unit_test(admission_knows_the_bounds),
        cmocka_unit_test(admission_covers_uneven_heads),
        cmocka_unit_test(decoding_equals_the_masked_reference),
        cmocka_unit_test(random_eviction_keeps_the_prompt),
        cmocka_unit_test(what_the_prompt_left_stays),
        cmocka_unit_test(dms_equals_the_masked_reference),
        cmocka_unit_test(new_tokens_come_with_their_input),
        cmocka_unit_test(views_while_decoding_are_true),
        cmocka_unit_test(recent_queries_are_as_many_as_asked),
        cmocka_unit_test(spellings_are_one),
        cmocka_unit_test(company_and_threads_change_nothing),
        cmocka_unit_test(cam_repeats_with_its_seed),
        cmocka_unit_test(protected_tokens_outlive_an_answer),
    };
    return cmocka_run_group_tests(tests, NULL, case_group_end);
}
