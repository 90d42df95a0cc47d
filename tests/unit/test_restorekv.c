/* SPDX-License-Identifier: Apache-2.0 */
/* restorekv on tiny models.  Without an adapter, and with rows that are the embeddings of
 * tokens, the added slots are those tokens read behind the scope: a masked reference says
 * what follows.  And its budget, what later presses leave of it, where it is refused, and
 * the adapter's products alone.  (Rows and adapters of kvpress: tests/golden/restore_model.py.) */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compression/press_data.h"
#include "engine/base/rng.h"
#include "engine/run/adapter.h"
#include "tests/unit/engine_case.h"
#include "tests/unit/ref_forward.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { M = 8, N = 200, RANK = 3 };
static const int32_t row_ids[M] = {7, 250, 99, 3, 181, 64, 12, 140};

/* The embeddings of row_ids as the first layer gets them. */
static void embeddings(const pd_gguf *g, bool gemma, size_t n_embd, float *x) {
    const pd_gguf_tensor *t = pd_gguf_tensor_find(g, "token_embd.weight");
    assert_non_null(t);
    void *raw = malloc((size_t)t->row_bytes);
    for (size_t i = 0; i < M; i++) {
        assert_int_equal(pd_gguf_read_rows(g, t, (uint64_t)row_ids[i], 1, raw, NULL), PD_OK);
        t->type->dequant(raw, x + i * n_embd, n_embd);
        for (size_t k = 0; gemma && k < n_embd; k++) x[i * n_embd + k] *= sqrtf((float)n_embd);
    }
    free(raw);
}

typedef struct {
    bool gemma, adapter;
} rows;

/* Both variants' rows, with a drawn adapter of all projections or none. */
static pd_press_data *drawn(const pd_press_model *model, uint64_t key, const pd_gguf *g, const void *arg) {
    const rows *want = arg;
    pd_press_data *d = NULL;
    assert_int_equal(pd_press_data_new(&d, model, key, NULL), PD_OK);
    pd_rng rng = {77};
    for (int plus = 0; plus < 2; plus++) {
        const int first = plus ? PD_DATA_RESTORE_PLUS : PD_DATA_RESTORE;
        pd_press_data_set_added(d, plus ? PD_SET_RESTORE_PLUS : PD_SET_RESTORE, M, RANK);
        embeddings(g, want->gemma, model->n_embd, pd_press_data_put(d, (pd_data_id)first));
        for (int id = first + 1; want->adapter && id < first + 1 + 2 * PD_PROJ_N; id++) {
            float *t = pd_press_data_put(d, (pd_data_id)id);
            for (size_t i = 0; i < pd_press_data_elems(d, (pd_data_id)id); i++) t[i] = 0.3f * pd_rng_f32(&rng);
        }
    }
    return d;
}

static pd_engine *open_with(tiny_arch arch, tiny_type type, bool adapter, case_opts opts) {
    const rows want = {arch == TINY_GEMMA3, adapter};
    opts.data = drawn;
    opts.data_arg = &want;
    return case_open(arch, type, &opts);
}

/* ---- what follows, against the reference ---- */

typedef struct {
    const answer *explained;
    size_t scope, heads, only; /* the layer that is pressed; SIZE_MAX = all */
} pressed;

/* Rows and what stands behind them see the rows, and of the scope the rows all of it. */
static bool sees(const void *arg, size_t layer, size_t head, size_t q, size_t k, long *distance) {
    const pressed *p = arg;
    (void)distance;
    if (q < p->scope + M || k >= p->scope || (p->only != SIZE_MAX && layer != p->only)) return true;
    const pd_explain_head *h = &p->explained->r->explain[layer * p->heads + head];
    for (size_t i = 0; i < h->n_kept; i++)
        if ((size_t)h->kept[i] == k) return true;
    return false;
}

/* The largest difference of log probabilities; the first answer to a prompt that is all scope comes
 * from before the rows. */
static double apart(const ref_model *m, const ask *q, const answer *a, size_t scope, ref_sees how, const void *arg) {
    const size_t n = q->n + M + a->n - 1, whole = scope == q->n, n_vocab = ref_n_vocab(m);
    int32_t *all = malloc(n * sizeof *all);
    memcpy(all, q->tokens, scope * sizeof *all);
    memcpy(all + scope, row_ids, sizeof row_ids);
    memcpy(all + scope + M, q->tokens + scope, (q->n - scope) * sizeof *all);
    memcpy(all + q->n + M, a->id, (a->n - 1) * sizeof *all);
    double *lp = ref_logprobs(m, all, n, q->n + M - 1, how, arg), most = 0.0;
    for (size_t i = whole; i < a->n; i++)
        for (size_t j = 0; j < a->n_top[i]; j++) most = fmax(most, fabs(a->top[i][j].logprob - lp[i * n_vocab + (size_t)a->top[i][j].id]));
    free(lp);
    free(all);
    return most;
}

static void added_tokens_equal_the_masked_reference(void **state) {
    (void)state;
    static const struct {
        tiny_arch arch;
        const char *press;
        size_t scope;
    } cases[] = {
        {TINY_LLAMA, "restorekv:chunk_size=64@0.5", 150}, {TINY_LLAMA, "restorekv@0.8", N},
        {TINY_LLAMA, "restorekv:layerwise=true,kvzip_plus_normalization=true@0.5", 128}, {TINY_GEMMA3, "restorekv@0.6", 120},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        const bool gemma = cases[c].arch == TINY_GEMMA3;
        int32_t prompt[N];
        case_prompt(prompt, N, 40 + c);
        pd_engine *e = open_with(cases[c].arch, TINY_F32, false, (case_opts){.compute = PD_COMPUTE_F32});
        ref_model *m = ref_open(case_model(cases[c].arch, TINY_F32));
        ask q = {.tokens = prompt, .n = N, .press = cases[c].press, .scope = cases[c].scope, .explain = true};
        answer *x = case_run(e, &q);
        q.explain = false;
        q.max_tokens = 20;
        q.logprobs = 100;
        answer *a = case_run(e, &q);
        const pressed p = {x, cases[c].scope, gemma ? 1 : 2, gemma ? 5 : SIZE_MAX};
        const double most = apart(m, &q, a, cases[c].scope, sees, &p);
        if (!(most < 1e-3)) fail_msg("%s: log probabilities differ by %g", cases[c].press, most);
        if (c == 0) assert_true(apart(m, &q, a, cases[c].scope, NULL, NULL) > 0.05); /* the mask matters */
        case_drop(a);
        case_drop(x);
        ref_close(m);
        case_expect_idle(e);
        pd_engine_close(e);
    }
}

/* ---- its budget ---- */

/* 3 layers of 2 heads: both kinds of slots together hold it, and only pages for them. */
static void added_rows_are_of_the_budget(void **state) {
    (void)state;
    static const struct {
        const char *press;
        double ratio; /* 0 = of count */
        size_t count;
    } cases[] = {{"restorekv@0.5", 0.5, 0}, {"restorekv:kvzip_plus_normalization=true@0.75", 0.75, 0}, {"restorekv", 0, 40}, {"restorekv@0.99", 0.99, 0}};
    int32_t prompt[N];
    case_prompt(prompt, N, 3);
    pd_engine *e = open_with(TINY_LLAMA, TINY_Q8_0, true, (case_opts){0});
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        ask q = {.tokens = prompt, .n = N, .press = cases[c].press, .max_tokens = 30};
        if (cases[c].count) q.budget = PD_BUDGET_TOKENS, q.amount = cases[c].count;
        answer *a = case_run(e, &q);
        const pd_kv_report *r = &a->r->kv;
        const size_t pairs = 6 * N;
        /* above a ratio of 1 - M / N nothing is left but what fills in, and a slot of each head */
        const double left = cases[c].ratio + (double)M / N, ratio = left < 1.0 ? left : 1.0;
        size_t want = cases[c].count ? 6 * cases[c].count : 6 * M + pairs - (size_t)((double)pairs * ratio), kept = 0, pages = 0;
        if (ratio >= 1.0) want = 6 * (M + 1);
        for (size_t i = 0; i < 6; i++) {
            assert_true(r->kept[i] >= M + 1 + 29);
            kept += r->kept[i] - 29;
            pages += (r->kept[i] + 15) / 16;
        }
        if (kept < want || kept > want + 5) fail_msg("%s keeps %zu, not %zu", cases[c].press, kept, want);
        assert_int_equal(r->tokens_added, M);
        assert_int_equal(r->tokens_seen, N + 29);
        assert_int_equal(kept + r->tokens_evicted, pairs + 6 * M);
        assert_true(fabs(r->ratio - (1.0 - (double)kept / (double)pairs)) < 1e-9);
        assert_int_equal(r->pages, pages);
        assert_int_equal(a->r->timing.prompt_n, N); /* what is counted and paid for */
        case_drop(a);
        case_expect_idle(e);
    }
    pd_engine_close(e);
}

/* Nothing goes: nothing is added either, and the answer is the dense one. */
static void without_eviction_nothing_is_added(void **state) {
    (void)state;
    static const struct {
        const char *press, *skipped;
        size_t n;
    } cases[] = {{"restorekv@0", NULL, N}, {"restorekv@0.5", "scope shorter than the press needs", M}};
    int32_t prompt[N];
    case_prompt(prompt, N, 4);
    pd_engine *e = open_with(TINY_LLAMA, TINY_Q8_0, true, (case_opts){0});
    for (size_t c = 0; c < 2; c++) {
        ask q = {.tokens = prompt, .n = cases[c].n, .max_tokens = 20, .logprobs = 5};
        answer *dense = case_run(e, &q);
        q.press = cases[c].press;
        answer *a = case_run(e, &q);
        case_expect_same(a, dense);
        assert_int_equal(a->r->kv.tokens_added, 0);
        assert_int_equal(a->r->kv.bytes, dense->r->kv.bytes);
        if (cases[c].skipped) assert_string_equal(a->r->kv.skipped, cases[c].skipped);
        else assert_null(a->r->kv.skipped);
        case_drop(a);
        case_drop(dense);
    }
    case_expect_idle(e);
    pd_engine_close(e);
}

/* A context has to hold the rows as well. */
static void positions_are_taken(void **state) {
    (void)state;
    int32_t prompt[N];
    case_prompt(prompt, N, 4);
    pd_engine *e = open_with(TINY_LLAMA, TINY_Q8_0, true, (case_opts){.ctx = N + M + 10});
    ask q = {.tokens = prompt, .n = N, .max_tokens = 10, .press = "restorekv@0.5"};
    case_drop(case_run(e, &q));
    pd_job *job = NULL;
    pd_err err = {0};
    q.max_tokens = 11;
    assert_int_equal(case_submit(e, &q, &job, &err), PD_ECONTEXT);
    if (!strstr(err.msg, "is 218 tokens; the request has 200 in the prompt, its press adds 8, and asks for 11 more")) fail_msg("%s", err.msg);
    q.press = "kvzip@0.5";
    case_drop(case_run(e, &q));
    case_expect_idle(e);
    pd_engine_close(e);
}

/* ---- company ---- */

/* A press that prunes down to four tokens a head while tokens are generated leaves the rows. (One that frees
 * pages: test_running.) */
static void later_presses_leave_what_was_added(void **state) {
    (void)state;
    int32_t prompt[N];
    case_prompt(prompt, N, 5);
    pd_engine *e = open_with(TINY_LLAMA, TINY_Q8_0, true, (case_opts){0});
    size_t least[2], most[2];
    for (int restore = 0; restore < 2; restore++) {
        answer *a = case_run(e, &(ask){.tokens = prompt, .n = N, .press = restore ? "restorekv@0.5" : "kvzip@0.5", .max_tokens = 33,
                                       .decode = "adakv(knorm)", .interval = 32, .target = 4});
        least[restore] = SIZE_MAX;
        most[restore] = 0;
        for (size_t i = 0; i < 6; i++) {
            least[restore] = a->r->kv.kept[i] < least[restore] ? a->r->kv.kept[i] : least[restore];
            most[restore] = a->r->kv.kept[i] > most[restore] ? a->r->kv.kept[i] : most[restore];
        }
        case_drop(a);
        case_expect_idle(e);
    }
    if (least[0] >= M || least[1] < M || most[1] > M + 4) fail_msg("leaves %zu slots of kvzip's, %zu to %zu of ours", least[0], least[1], most[1]);
    pd_engine_close(e);
}

static void company_threads_and_guesses_change_nothing(void **state) {
    (void)state;
    static const char *const press[] = {"restorekv@0.5", "restorekv:kvzip_plus_normalization=true@0.7",
                                        "prefill_decoding(restorekv:chunk_size=50,decoding:compression_interval=6,target_size=60(tova))@0.6"};
    int32_t prompt[N];
    case_prompt(prompt, N, 6);
    for (int gemma = 0; gemma < 2; gemma++) {
        const tiny_arch arch = gemma ? TINY_GEMMA3 : TINY_LLAMA;
        pd_engine *e = open_with(arch, TINY_Q4_1, true, (case_opts){0});
        pd_engine *three = open_with(arch, TINY_Q4_1, true, (case_opts){.threads = 3});
        const ask like = {.tokens = prompt, .n = N, .scope = 130, .max_tokens = 24, .logprobs = 5};
        case_expect_company(e, three, &like, press, 3);
        pd_engine_close(three);
        pd_engine *guess = open_with(arch, TINY_Q4_1, true, (case_opts){.draft_tokens = 4});
        for (size_t i = 0; i < N; i++) prompt[i] = prompt[i % 10]; /* worth guessing */
        ask q = like;
        q.press = press[0];
        case_expect_same_guessed(e, guess, &q);
        pd_engine_close(guess);
        pd_engine_close(e);
    }
}

/* ---- the adapter alone ---- */

static void fill(float *x, size_t bytes, pd_rng *rng) {
    for (size_t i = 0; i < bytes / sizeof *x; i++) x[i] = pd_rng_f32(rng);
}

static void products_are_added(void **state) {
    (void)state;
    enum { IN = 20, OUT = 12, ROWS = 19, LAYERS = 2 };
    static float a[LAYERS][RANK][IN], b[LAYERS][OUT][RANK], x[ROWS][IN], y[ROWS][OUT], before[ROWS][OUT];
    pd_rng rng = {9};
    fill(a[0][0], sizeof a, &rng);
    fill(b[0][0], sizeof b, &rng);
    fill(x[0], sizeof x, &rng);
    fill(before[0], sizeof before, &rng);
    for (int p = 0; p < PD_PROJ_N; p++) {
        pd_layer layer[LAYERS] = {0};
        for (size_t l = 0; l < LAYERS; l++) {
            pd_mat *const all[] = {&layer[l].q, &layer[l].k, &layer[l].v, &layer[l].o, &layer[l].gate, &layer[l].up, &layer[l].down};
            *all[p] = (pd_mat){.n_row = OUT, .n_col = IN};
        }
        const pd_model model = {.layer = layer};
        pd_adapter ad = {.rank = RANK};
        pd_fwd f = {.model = &model, .adapter = &ad};
        memcpy(y, before, sizeof y);
        pd_adapter_add(&f, 1, (pd_proj)p, x[0], ROWS, y[0]); /* it does not adapt this one */
        assert_memory_equal(y, before, sizeof y);
        ad.a[p] = a[0][0];
        ad.b[p] = b[0][0];
        f.adapter = NULL;
        pd_adapter_add(&f, 1, (pd_proj)p, x[0], ROWS, y[0]);
        assert_memory_equal(y, before, sizeof y);
        f.adapter = &ad;
        pd_adapter_add(&f, 1, (pd_proj)p, x[0], ROWS, y[0]);
        for (size_t r = 0; r < ROWS; r++)
            for (size_t o = 0; o < OUT; o++) {
                double want = before[r][o];
                for (size_t k = 0; k < RANK; k++) {
                    double low = 0.0;
                    for (size_t i = 0; i < IN; i++) low += (double)a[1][k][i] * (double)x[r][i];
                    want += (double)b[1][o][k] * low;
                }
                assert_true(fabs(y[r][o] - want) < 1e-5);
            }
    }
}

/* Its adapter counts: the same rows without it give another answer. */
static void the_adapter_matters(void **state) {
    (void)state;
    int32_t prompt[N];
    case_prompt(prompt, N, 8);
    float first[2];
    for (int adapter = 0; adapter < 2; adapter++) {
        pd_engine *e = open_with(TINY_LLAMA, TINY_Q4_1, adapter, (case_opts){0});
        answer *a = case_run(e, &(ask){.tokens = prompt, .n = N, .scope = 150, .max_tokens = 1, .logprobs = 1, .press = "restorekv@0.8"});
        first[adapter] = a->top[0][0].logprob;
        case_drop(a);
        pd_engine_close(e);
    }
    assert_true(first[0] != first[1]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(added_tokens_equal_the_masked_reference),
        cmocka_unit_test(added_rows_are_of_the_budget),
        cmocka_unit_test(without_eviction_nothing_is_added),
        cmocka_unit_test(positions_are_taken),
        cmocka_unit_test(later_presses_leave_what_was_added),
        cmocka_unit_test(company_threads_and_guesses_change_nothing),
        cmocka_unit_test(products_are_added),
        cmocka_unit_test(the_adapter_matters),
    };
    return cmocka_run_group_tests(tests, NULL, case_group_end);
}
