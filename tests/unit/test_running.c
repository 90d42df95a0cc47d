/* SPDX-License-Identifier: Apache-2.0 */
/* Presses that prune all layers of a running sequence at once: kv_compress' choice against all pages
 * sorted, a whole answer against the plain forward pass that keeps its own metrics, what is held and
 * promised meanwhile, and memory given back when another request waits for it. */
#include "tests/unit/press_case.h"

#include "compression/running.h"
#include "engine/base/clock.h"
#include "engine/base/num.h"
#include "engine/run/job.h"
#include "tests/unit/against_ref.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 16 };

static size_t below(pd_rng *rng, size_t n) {
    return (size_t)(pd_rng_u64(rng) % n);
}

/* ---- the choice ---- */

/* One head: the metrics of its slots, +inf if it must stay, and which are left. */
typedef struct {
    size_t n, kept;
    const double *m;
    bool *left;
} plain_head;

/* The largest of the lowest slots that one more page would take; INFINITY: none may go. */
static double next_page(const plain_head *h) {
    const size_t goes = (h->kept + PAGE - 1) % PAGE + 1;
    if (h->kept <= PAGE) return INFINITY;
    bool taken[1024] = {false};
    double most = 0.0;
    for (size_t k = 0; k < goes; k++) {
        size_t at = SIZE_MAX; /* of equal ones the last: the first slots are kept */
        for (size_t i = 0; i < h->n; i++)
            if (h->left[i] && !taken[i] && (at == SIZE_MAX || h->m[i] <= h->m[at])) at = i;
        taken[at] = true;
        most = h->m[at];
    }
    return most;
}

static void drop_page(plain_head *h) {
    for (size_t goes = (h->kept + PAGE - 1) % PAGE + 1; goes; goes--, h->kept--) {
        size_t at = SIZE_MAX;
        for (size_t i = 0; i < h->n; i++)
            if (h->left[i] && (at == SIZE_MAX || h->m[i] <= h->m[at])) at = i;
        h->left[at] = false;
    }
}

/* Page by page the cheapest of all goes until `stay` pages are left, or none may go. */
static void drop_pages(plain_head *heads, size_t n, size_t stay) {
    size_t pages = 0;
    for (size_t h = 0; h < n; h++) pages += pd_div_up(heads[h].kept, PAGE);
    while (pages > stay) {
        size_t at = 0;
        for (size_t h = 1; h < n; h++)
            if (next_page(&heads[h]) < next_page(&heads[at])) at = h;
        if (next_page(&heads[at]) == INFINITY) return;
        drop_page(&heads[at]);
        pages--;
    }
}

enum { CHOICES = 2000, L_MAX = 4, H_MAX = 3, N_MAX = 80 };

/* Uneven heads, layers with a window between them, protected slots, and each allocation. */
static void choices_are_the_cheapest(void **state) {
    (void)state;
    static const char *const texts[] = {"kv_compress:n_sink=2,protected_window_size=5", "kv_compress:n_sink=0,protected_window_size=0,allocation=layer",
                                        "kv_compress:n_sink=1,protected_window_size=18,allocation=head,metric_aggregation=l1_sum"};
    pd_rng rng = {416};
    pd_arena tmp = {0};
    size_t untouched = 0, pressed = 0;
    for (size_t c = 0; c < CHOICES; c++) {
        const size_t which = c % 3, layers = 1 + below(&rng, L_MAX), heads = 1 + below(&rng, H_MAX);
        const size_t sinks[] = {2, 0, 1}, window[] = {5, 0, 18};
        pd_press_inst *inst = inst_of(texts[which]);
        float tag[L_MAX * H_MAX][N_MAX];
        double m[L_MAX * H_MAX][N_MAX];
        bool left[L_MAX * H_MAX][N_MAX];
        int32_t pos[L_MAX * H_MAX][N_MAX], next[L_MAX], guard[L_MAX][2];
        const float *tags[L_MAX * H_MAX];
        const int32_t *at[L_MAX * H_MAX];
        size_t n[L_MAX * H_MAX] = {0}, n_list = 0;
        plain_head list[L_MAX * H_MAX];
        const int32_t added = c % 2 ? (int32_t)below(&rng, N_MAX) : 0, added_end = added + (c % 2 ? 8 : 0); /* of another press */
        for (size_t l = 0; l < layers; l++) {
            const bool windowed = layers > 1 && below(&rng, 4) == 0;
            next[l] = (int32_t)(N_MAX * 2 - below(&rng, 9)); /* a layer may count from what it kept */
            guard[l][0] = (int32_t)below(&rng, 40);
            guard[l][1] = guard[l][0] + (int32_t)below(&rng, 7);
            for (size_t h = 0; h < heads && !windowed; h++) {
                const size_t i = l * heads + h;
                n[i] = 1 + below(&rng, N_MAX);
                for (size_t s = 0; s < n[i]; s++) {
                    /* rising positions that end at the newest */
                    pos[i][s] = s + 1 == n[i] ? next[l] - 1 : (int32_t)(s * (size_t)(next[l] - 1) / n[i]);
                    tag[i][s] = below(&rng, 5) ? pd_rng_f32(&rng) : (float)below(&rng, 3);
                    const size_t p = (size_t)pos[i][s];
                    const bool stays = p < sinks[which] || p + window[which] >= (size_t)next[l] || (pos[i][s] >= guard[l][0] && pos[i][s] < guard[l][1]) ||
                                       (pos[i][s] >= added && pos[i][s] < added_end);
                    m[i][s] = stays ? INFINITY : (double)tag[i][s];
                    left[i][s] = true;
                }
                tags[i] = tag[i];
                at[i] = pos[i];
                list[n_list++] = (plain_head){n[i], n[i], m[i], left[i]};
            }
        }
        const size_t count = 1 + below(&rng, N_MAX);
        pd_plan plan[L_MAX];
        for (size_t l = 0; l < layers; l++) plan[l] = (pd_plan){.keep_all = true};
        const pd_running r = {.n_layer = layers, .n_head_kv = heads, .n = n, .pos = at, .tag = tags, .next = next,
                              .guard = (const int32_t(*)[2])guard, .added = {added, added_end}, .tmp = &tmp};
        pd_err err = {0};
        assert_int_equal(inst->press->running(inst, &r, &(pd_budget){.by_count = true, .count = count}, plan, &err), PD_OK);
        const size_t part = which == 0 ? n_list : which == 1 ? heads : 1;
        for (size_t i = 0; i < n_list; i += part) drop_pages(list + i, part, pd_div_up(part * count, PAGE));
        for (size_t i = 0, k = 0; i < layers * heads; i++) {
            const pd_plan *p = &plan[i / heads];
            if (!n[i]) {
                assert_true(p->keep_all);
                continue;
            }
            const plain_head *want = &list[k++];
            const size_t got = p->keep_all ? n[i] : p->n_keep[i % heads];
            if (got != want->kept) fail_msg("%s, choice %zu, head %zu: keeps %zu of %zu, not %zu", texts[which], c, i, got, n[i], want->kept);
            for (size_t s = 0, j = 0; s < n[i] && !p->keep_all; s++) {
                const bool kept = j < got && p->keep[i % heads][j] == s;
                if (kept != left[i][s]) fail_msg("%s, choice %zu, head %zu, slot %zu: %s", texts[which], c, i, s, kept ? "kept" : "gone");
                j += kept;
            }
            untouched += p->keep_all;
            pressed += !p->keep_all;
        }
        pd_press_inst_close(inst);
        pd_arena_reset(&tmp);
    }
    assert_true(untouched > CHOICES / 10 && pressed > CHOICES);
    pd_arena_done(&tmp);
}

/* ---- an answer, plainly ---- */

enum { LAYERS = 7, HEADS = 2, TOKENS = 200 };

typedef struct {
    const char *text;
    size_t layers, heads, group, only; /* the layer that is pressed, SIZE_MAX = all */
    size_t scope, n, w, kernel, sinks, window, interval, seen;
    bool squares, by_layer;
    size_t count;
    double ratio;
    bool prompt;              /* is pressed, and ranked */
    size_t from;              /* queries from here on are looked at */
    double tag[LAYERS][HEADS][TOKENS];
    size_t gone[LAYERS][HEADS][TOKENS]; /* the first query that does not see it */
} plain;

static bool plain_sees(const void *arg, size_t layer, size_t head, size_t q, size_t k, long *distance) {
    (void)distance;
    const plain *p = arg;
    return (p->only != SIZE_MAX && layer != p->only) || q < p->gone[layer][head][k];
}

static void plain_looks(void *arg, size_t layer, size_t head, size_t q, const double *weight) {
    plain *p = arg;
    if (q < p->from) return;
    for (size_t k = 0; k <= q; k++) p->tag[layer][head / p->group][k] += p->squares ? weight[k] * weight[k] : weight[k];
}

/* `seen` tokens came: what query `seen` will see, of `pairs` a head. */
static void plain_prune(plain *p, size_t seen, double pairs) {
    static double m[LAYERS * HEADS][TOKENS];
    static bool left[LAYERS * HEADS][TOKENS];
    plain_head list[LAYERS * HEADS];
    size_t n = 0;
    for (size_t l = 0; l < p->layers; l++)
        for (size_t h = 0; h < p->heads && (p->only == SIZE_MAX || l == p->only); h++, n++) {
            list[n] = (plain_head){seen, 0, m[n], left[n]};
            for (size_t k = 0; k < seen; k++) {
                left[n][k] = p->gone[l][h][k] > seen;
                m[n][k] = k < p->sinks || k + p->window >= seen ? INFINITY : p->tag[l][h][k];
                list[n].kept += left[n][k];
            }
        }
    const size_t part = p->by_layer ? p->heads : n;
    for (size_t i = 0; i < n; i += part) drop_pages(list + i, part, pd_div_up((size_t)(pairs * (double)part), PAGE));
    n = 0;
    for (size_t l = 0; l < p->layers; l++)
        for (size_t h = 0; h < p->heads && (p->only == SIZE_MAX || l == p->only); h++, n++)
            for (size_t k = 0; k < seen; k++)
                if (!left[n][k] && p->gone[l][h][k] > seen) p->gone[l][h][k] = seen;
}

static void max_pool(plain *p) {
    for (size_t l = 0; l < p->layers; l++)
        for (size_t h = 0; h < p->heads; h++) {
            double old[TOKENS];
            memcpy(old, p->tag[l][h], sizeof old);
            for (size_t k = 0; k < p->scope; k++)
                for (size_t o = 0; o < p->scope; o++)
                    if (o <= k + p->kernel / 2 && k <= o + p->kernel / 2) p->tag[l][h][k] = fmax(p->tag[l][h][k], old[o]);
        }
}

static void look(ref_model *m, plain *p, const int32_t *tokens, size_t n, size_t from) {
    p->from = from;
    ref_watch(m, plain_looks, p);
    free(ref_logprobs(m, tokens, n, n - 1, plain_sees, p));
    ref_watch(m, NULL, NULL);
}

/* Everything that happens to the cache while `a` came. */
static void replay_plainly(ref_model *m, plain *p, const int32_t *prompt, const answer *a) {
    int32_t tokens[TOKENS];
    assert_true(p->n + a->n <= TOKENS);
    memcpy(tokens, prompt, p->n * sizeof *tokens);
    memcpy(tokens + p->n, a->id, a->n * sizeof *tokens);
    for (size_t i = 0; i < LAYERS * HEADS * TOKENS; i++) (&p->gone[0][0][0])[i] = SIZE_MAX;
    if (p->prompt) {
        look(m, p, tokens, p->scope, p->scope - pd_min_size(p->w, p->scope));
        max_pool(p);
        plain_prune(p, p->scope, p->count ? (double)p->count : (double)p->scope * (1.0 - p->ratio));
        if (p->scope < p->n) look(m, p, tokens, p->n, p->n - 1); /* a question is one step */
    }
    for (size_t t = p->n, since = 0; t + 1 < p->n + a->n; t++) {
        look(m, p, tokens, t + 1, t);
        if (++since < p->interval) continue;
        since = 0;
        plain_prune(p, t + 1, p->count ? (double)p->count : (double)(size_t)((double)(t + 1) * (1.0 - p->ratio)));
    }
}

static void an_answer_equals_the_plain_one(void **state) {
    (void)state;
    static const plain cases[] = {
        {.text = "kv_compress:when=always,metric_window_size=8,kernel_size=3,protected_window_size=5,n_sink=2,compression_interval=7",
         .scope = 90, .n = 90, .w = 8, .kernel = 3, .sinks = 2, .window = 5, .interval = 7, .squares = true, .count = 40, .prompt = true},
        {.text = "kv_compress:when=always,metric_aggregation=l1_sum,allocation=layer,protected_window_size=10@0.6",
         .scope = 100, .n = 100, .w = 64, .kernel = 7, .sinks = 4, .window = 10, .interval = 16, .by_layer = true, .ratio = 0.6, .prompt = true},
        {.text = "kv_compress:when=always,kernel_size=1,protected_window_size=6,compression_interval=1",
         .scope = 70, .n = 83, .w = 64, .kernel = 1, .sinks = 4, .window = 6, .interval = 1, .squares = true, .count = 33, .prompt = true},
        {.text = "kv_compress:when=always,protected_window_size=3,compression_interval=5", /* all of the prompt fits */
         .scope = 30, .n = 30, .w = 64, .kernel = 7, .sinks = 4, .window = 3, .interval = 5, .squares = true, .count = 48, .prompt = true},
        {.text = "decoding:compression_interval=9,target_size=48(kv_compress:protected_window_size=7)",
         .scope = 0, .n = 75, .sinks = 4, .window = 7, .interval = 9, .squares = true, .count = 48},
        {.text = "prefill_decoding(kv_compress:n_sink=1,kernel_size=5,protected_window_size=4,decoding:compression_interval=8,target_size=40(kv_compress:n_sink=1,protected_window_size=4))",
         .scope = 80, .n = 80, .w = 64, .kernel = 5, .sinks = 1, .window = 4, .interval = 8, .squares = true, .count = 40, .prompt = true},
        {.text = "kv_compress:when=always,protected_window_size=5,compression_interval=6", .layers = 7, .heads = 1, .group = 4, .only = 5,
         .scope = 100, .n = 100, .w = 64, .kernel = 7, .sinks = 4, .window = 5, .interval = 6, .squares = true, .count = 64, .prompt = true},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        static plain p;
        p = cases[c];
        const tiny_arch arch = p.layers ? TINY_GEMMA3 : TINY_LLAMA;
        if (arch == TINY_LLAMA) p.layers = 3, p.heads = 2, p.group = 2, p.only = SIZE_MAX;
        int32_t prompt[TOKENS];
        case_prompt(prompt, p.n, 300 + c);
        pd_engine *e = case_open(arch, TINY_F32, &(case_opts){.compute = PD_COMPUTE_F32});
        ref_model *m = ref_open(case_model(arch, TINY_F32));
        const bool own = c != 4 && c != 1; /* a budget beside the text */
        const ask q = {.tokens = prompt, .n = p.n, .press = p.text, .scope = p.scope < p.n ? p.scope : 0, .max_tokens = 70, .logprobs = 100,
                       .budget = own ? PD_BUDGET_TOKENS : PD_BUDGET_RATIO, .amount = own ? p.count : 0};
        answer *a = case_run(e, &q);
        assert_int_equal(a->n, 70);
        replay_plainly(m, &p, prompt, a);
        for (size_t l = 0; l < p.layers; l++)
            for (size_t h = 0; h < p.heads && (p.only == SIZE_MAX || l == p.only); h++) {
                size_t want = 0;
                for (size_t k = 0; k + 1 < p.n + a->n; k++) want += p.gone[l][h][k] == SIZE_MAX;
                if (a->r->kv.kept[l * p.heads + h] != want)
                    fail_msg("case %zu: layer %zu, head %zu holds %u slots, plainly %zu", c, l, h, a->r->kv.kept[l * p.heads + h], want);
            }
        const double most = against_reference(m, &q, a, plain_sees, &p);
        if (most > 1e-3) fail_msg("case %zu: log probabilities differ by %g", c, most);
        assert_true(against_reference(m, &q, a, NULL, NULL) > 0.02); /* what is gone matters */
        case_drop(a);
        case_expect_idle(e);
        ref_close(m);
        pd_engine_close(e);
    }
}

/* ---- what is held and promised ---- */

static void promises_hold_while_it_runs(void **state) {
    (void)state;
    static const struct {
        const char *press;
        pd_budget_kind kind;
        uint64_t amount;
        size_t slack; /* pages promised and not held at the end: an interval's, or what the first pruning took */
    } cases[] = {{"kv_compress:when=always,protected_window_size=8", PD_BUDGET_TOKENS, 50, 12},
                 {"kv_compress:when=always,compression_interval=1,n_sink=0,protected_window_size=0", PD_BUDGET_TOKENS, 17, 12},
                 {"kv_compress:when=always,compression_interval=40", PD_BUDGET_TOKENS, 64, 18},
                 {"kv_compress:when=always,allocation=head,protected_window_size=3", PD_BUDGET_TOKENS, 33, 12},
                 {"kv_compress:when=always,protected_window_size=8@0.5", PD_BUDGET_RATIO, 0, 18},
                 {"kv_compress:when=always,protected_window_size=8", PD_BUDGET_BYTES, 24 * 1024, 12},
                 {"kv_compress:when=shortage@0.5", PD_BUDGET_RATIO, 0, 6},
                 {"decoding:compression_interval=5,target_size=30(kv_compress:protected_window_size=9)", PD_BUDGET_RATIO, 0, 90}};
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    const size_t page_bytes = pd_engine_get_info(e)->page_bytes;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t n = 20; n < 260; n += 37) {
            int32_t prompt[260];
            case_prompt(prompt, n, 90 + n);
            const ask q = {.tokens = prompt, .n = n, .max_tokens = 150, .press = cases[i].press, .budget = cases[i].kind, .amount = cases[i].amount};
            answer *a = case_run(e, &q);
            const pd_kv_report *r = &a->r->kv;
            const uint64_t promised = a->job->pages_promised;
            if (r->pages > promised || r->pages + cases[i].slack < promised)
                fail_msg("%s: %zu tokens and 150 more hold %llu pages, %llu were promised", cases[i].press, n, (unsigned long long)r->pages, (unsigned long long)promised);
            if (cases[i].kind == PD_BUDGET_BYTES && r->bytes > cases[i].amount + 6 * page_bytes)
                fail_msg("%llu bytes are held, %llu asked for", (unsigned long long)r->bytes, (unsigned long long)cases[i].amount);
            assert_true(promised <= a->job->pages_reserved);
            assert_int_equal(r->bytes, r->pages * page_bytes);
            case_drop(a);
        }
    case_expect_idle(e);
    pd_engine_close(e);
}

/* A budget holds for hundreds of tokens, to the page and an interval's growth. */
static void a_budget_holds_all_along(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    int32_t prompt[300];
    case_prompt(prompt, 300, 7);
    for (size_t n = 1; n < 700; n = n * 2 + 5) {
        const ask q = {.tokens = prompt, .n = 300, .max_tokens = n, .press = "kv_compress:when=always", .budget = PD_BUDGET_TOKENS, .amount = 80};
        answer *a = case_run(e, &q);
        size_t pages = 0, slots = 0;
        for (size_t h = 0; h < 6; h++) {
            pages += a->r->kv.head_pages[h];
            slots += a->r->kv.kept[h];
        }
        const size_t since = (n - 1) % PAGE;
        assert_int_equal(pages, 6 * 5 + (since ? 6 : 0)); /* 80 slots a head are 5 pages */
        assert_true(slots <= 6 * (80 + since));
        assert_int_equal(a->r->kv.tokens_evicted, 6 * (300 + n - 1) - slots);
        case_drop(a);
    }
    /* min_tokens leaves the prompt alone; the budget holds for what comes all the same */
    for (int bytes = 0; bytes < 2; bytes++) {
        const ask q = {.tokens = prompt, .n = 30, .max_tokens = 300, .min_tokens = 31, .press = "kv_compress:when=always",
                       .budget = bytes ? PD_BUDGET_BYTES : PD_BUDGET_TOKENS, .amount = bytes ? 30 * pd_engine_get_info(e)->page_bytes : 80};
        answer *a = case_run(e, &q);
        assert_non_null(a->r->kv.skipped);
        assert_in_range(a->r->kv.pages, 25, 36);
        case_drop(a);
    }
    case_expect_idle(e);
    pd_engine_close(e);
}

static void wishes_that_do_not_go_together(void **state) {
    (void)state;
    static const pd_press_model model = {30, 6, 2, 16, 96, 192, NULL};
    static const struct {
        const char *text, *says;
    } cases[] = {{"decoding(kv_compress:when=always)", "'kv_compress' works while tokens are generated"},
                 {"decoding:keep_prompt=true(kv_compress)", "'keep_prompt'"},
                 {"prefill_decoding(kv_compress:when=shortage,decoding(knorm))", "stands outermost"},
                 {"prefill_decoding(kv_compress,decoding(tova))", NULL},
                 {"prefill_decoding(snapkv,decoding(kv_compress))", NULL},
                 {"chunk(kv_compress)", "scores"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pd_arena arena = {0};
        pd_spec *spec = NULL;
        double ratio;
        pd_press_inst *inst = NULL;
        pd_compression *c = calloc(1, sizeof *c);
        pd_err err = {0};
        pd_status rc = pd_spec_parse_text(cases[i].text, "press", &arena, &spec, &ratio, &err);
        if (rc == PD_OK) rc = pd_spec_resolve(spec, &model, &inst, &err);
        if (rc == PD_OK) rc = pd_compression_take(c, inst, "press", &err);
        if ((rc == PD_OK) != !cases[i].says || (cases[i].says && !strstr(err.msg, cases[i].says))) fail_msg("%s: %s", cases[i].text, err.msg);
        pd_compression_close(c);
        pd_arena_done(&arena);
    }
}

/* ---- memory for others ---- */

static pd_job *submit(pd_engine *e, const ask *q) {
    pd_job *job = NULL;
    pd_err err = {0};
    if (case_submit(e, q, &job, &err) != PD_OK) fail_msg("%s", err.msg);
    return job;
}

static void wait_for(const pd_job *job, pd_job_state at_least) {
    const uint64_t t0 = pd_now_ns();
    while (pd_job_get_state(job) < at_least) {
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL); /* the processor is the engine's */
        if (pd_ms_since(t0) > 120e3) fail_msg("a job did not get on within two minutes");
    }
}

/* A pool that holds one long answer dense and a bit: a second request waits for the first
 * one's end, unless that one agreed to be pruned.  Nobody is pruned for nothing. */
static void pruned_when_another_waits(void **state) {
    (void)state;
    enum { N = 300, LONG = 1000, SHORT = 120, MORE = 60 };
    int32_t prompt[N];
    case_prompt(prompt, N, 21);
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, &(case_opts){.scalar = true}); /* weights that are kept are the same bits there */
    const ask dense = {.tokens = prompt, .n = N, .max_tokens = LONG}, other = {.tokens = prompt, .n = SHORT, .max_tokens = MORE};
    const ask agrees = {.tokens = prompt, .n = N, .max_tokens = LONG, .press = "kv_compress:when=shortage@0.8"};
    answer *one = case_run(e, &dense), *alone = case_run(e, &agrees);
    const uint64_t page = pd_engine_get_info(e)->page_bytes, pool = one->job->pages_reserved * page + one->job->staging_bytes;
    case_expect_same(one, alone); /* nobody waited: nothing went */
    assert_int_equal(alone->r->kv.tokens_evicted, 0);
    const uint64_t dense_pages = alone->r->kv.pages;
    case_drop(alone);
    case_drop(one);
    pd_engine_close(e);

    e = case_open(TINY_LLAMA, TINY_Q8_0, &(case_opts){.kv_bytes = pool});
    for (int c = 0; c < 2; c++) {
        pd_job *first = submit(e, c ? &agrees : &dense);
        wait_for(first, PD_JOB_DECODE);
        pd_job *second = submit(e, &other);
        answer *b = case_wait(second), *a = case_wait(first);
        const bool early = b->job->t_start < a->job->t_last;
        if (early != (c == 1)) fail_msg("case %d: the second job begins %s the first one's end", c, early ? "before" : "after");
        assert_int_equal(a->n, LONG);
        assert_int_equal(b->n, MORE);
        if (c) {
            assert_true(a->r->kv.tokens_evicted > 6 * 100 && a->r->kv.pages + 6 * 9 < dense_pages);
            assert_true(a->r->kv.pages <= a->job->pages_promised);
        }
        case_drop(a);
        case_drop(b);
        case_expect_idle(e);
    }
    /* What would not help is not done: the second needs all of the pool. */
    pd_job *first = submit(e, &agrees), *second = submit(e, &dense);
    answer *a = case_wait(first), *b = case_wait(second);
    assert_int_equal(a->r->kv.tokens_evicted, 0);
    assert_int_equal(b->n, LONG);
    case_drop(a);
    case_drop(b);
    case_expect_idle(e);
    pd_engine_close(e);
}

/* Many that agree in a pool for two or three of them: all end, more run together, and what is
 * held is never more than the pool. */
static void a_crowd_makes_room(void **state) {
    (void)state;
    enum { JOBS = 12, N = 200, MORE = 150 };
    static int32_t prompt[JOBS][N];
    unsigned most[2] = {0, 0};
    for (int agree = 0; agree < 2; agree++) {
        pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
        case_prompt(prompt[0], N, 900);
        answer *one = case_run(e, &(ask){.tokens = prompt[0], .n = N, .max_tokens = MORE});
        const uint64_t pool = one->job->staging_bytes + 5 * one->job->pages_reserved * pd_engine_get_info(e)->page_bytes / 2;
        case_drop(one);
        pd_engine_close(e);
        e = case_open(TINY_LLAMA, TINY_Q8_0, &(case_opts){.kv_bytes = pool});
        pd_job *job[JOBS];
        for (size_t i = 0; i < JOBS; i++) {
            case_prompt(prompt[i], N, 900 + i);
            job[i] = submit(e, &(ask){.tokens = prompt[i], .n = N, .max_tokens = MORE, .press = agree ? "kv_compress:when=shortage@0.9" : NULL});
        }
        for (bool busy = true; busy;) {
            pd_engine_stats s;
            pd_engine_get_stats(e, &s);
            most[agree] = s.running > most[agree] ? s.running : most[agree];
            if (s.kv_bytes_resident > pool) fail_msg("%llu bytes are held in a pool of %llu", (unsigned long long)s.kv_bytes_resident, (unsigned long long)pool);
            busy = s.running || s.waiting;
        }
        for (size_t i = 0; i < JOBS; i++) {
            answer *a = case_wait(job[i]);
            assert_int_equal(a->n, MORE);
            case_drop(a);
        }
        case_expect_idle(e);
        pd_engine_close(e);
    }
    if (most[0] > 2 || most[1] < most[0] + 1) fail_msg("%u run together dense, %u when they agree", most[0], most[1]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(choices_are_the_cheapest),
        cmocka_unit_test(an_answer_equals_the_plain_one),
        cmocka_unit_test(promises_hold_while_it_runs),
        cmocka_unit_test(a_budget_holds_all_along),
        cmocka_unit_test(wishes_that_do_not_go_together),
        cmocka_unit_test(pruned_when_another_waits),
        cmocka_unit_test(a_crowd_makes_room),
    };
    return cmocka_run_group_tests(tests, NULL, case_group_end);
}
