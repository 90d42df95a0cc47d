/* SPDX-License-Identifier: Apache-2.0 */
/* engine/run/select: the fewest rows that hold the share asked for, steps against a plain
 * one in f64 for every kind of page, and what an engine says of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/rng.h"
#include "engine/cache/pools.h"
#include "engine/run/attn.h"
#include "tests/unit/engine_case.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the cut ---- */

static int heavier(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* The weights >= cut come to tau, and without the lightest of them (and its equals) they
 * do not, up to the rounding of sums. */
static void expect_fewest(const float *w, size_t n, float cut, double tau, const char *what) {
    float *sorted = malloc(n * sizeof *sorted);
    memcpy(sorted, w, n * sizeof *w);
    qsort(sorted, n, sizeof *sorted, heavier);
    double total = 0.0, taken = 0.0;
    for (size_t i = 0; i < n; i++) total += (double)sorted[i];
    size_t k = 0;
    while (k < n && sorted[k] >= cut) taken += (double)sorted[k++];
    if (k == 0 || taken < tau * total * (1.0 - 4e-6)) fail_msg("%s: %zu of %zu rows hold %.9f of %.9f", what, k, n, taken / total, tau);
    for (const float least = sorted[k - 1]; k && sorted[k - 1] == least; k--) taken -= (double)least;
    if (taken > tau * total * (1.0 + 4e-6)) fail_msg("%s: %zu of %zu rows would do, %.9f of %.9f", what, k, n, taken / total, tau);
    free(sorted);
}

static void the_fewest_rows_are_taken(void **state) {
    (void)state;
    enum { MOST = 3000 };
    static const double taus[] = {1e-6, 0.1, 0.5, 0.9, 0.97, 0.999, 0.99999};
    static const unsigned masks[] = {0, PD_CPU_AVX2, ~0u};
    pd_hparams hp = {.n_layer = 1, .n_head = 2, .n_head_kv = 1};
    const size_t slots[] = {MOST};
    pd_rng rng = {7};
    for (size_t m = 0; m < 3; m++) {
        pd_kernels kern;
        pd_kernels_init(&kern, masks[m] & pd_cpu_detect());
        for (size_t t = 0; t < sizeof taus / sizeof *taus; t++) {
            const pd_read_rule rule = {.tau = taus[t], .renormalize = true};
            pd_select s;
            assert_int_equal(pd_select_init(&s, &rule, 0, &hp, slots, NULL), PD_OK);
            for (size_t round = 0; round < 40; round++) {
                const size_t n = 16 * (1 + pd_rng_u64(&rng) % (MOST / 16)), dead = pd_rng_u64(&rng) % 16;
                float *x = s.score + s.stride; /* the second head's */
                for (size_t i = 0; i < n; i++) {
                    const float u = pd_rng_f32(&rng);
                    x[i] = i + dead >= n     ? -INFINITY
                           : round % 4 == 0 ? 3.0f                      /* all alike */
                           : round % 4 == 1 ? 40.0f * u                 /* one or two stand out */
                           : round % 4 == 2 ? 4.0f * u - 100.0f
                                            : floorf(6.0f * u) - 50.0f; /* many alike */
                }
                pd_select_cut(&s, &kern, 1, n);
                char what[80];
                snprintf(what, sizeof what, "%s, tau %g, round %zu", kern.isa, taus[t], round);
                expect_fewest(x, n, s.cut[1], (double)(float)taus[t], what);
                if (!(s.cut[1] > 0.0f)) fail_msg("%s: slots that are not there would be read", what);
            }
            pd_select_done(&s);
        }
    }
}

/* ---- a step ---- */

enum { D = 64, G = 3, HEADS = 2, LAYERS = 2, SLOTS = 700, SEQS = 3 };

typedef struct {
    pd_model model;
    pd_kernels kern;
    pd_workers *workers;
    pd_kvpools pools;
    pd_kv kv[SEQS];
    pd_select sel[SEQS];
    float *q; /* [SEQS][HEADS * G][D] */
} world;

static float *draw(pd_rng *rng, size_t n, float scale) {
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = scale * pd_rng_f32(rng);
    return x;
}

static void open_world(world *w, pd_kv_type key, pd_kv_type value, const pd_read_rule *rule, unsigned threads, float softcap) {
    memset(w, 0, sizeof *w);
    w->model.hp = (pd_hparams){.n_layer = LAYERS, .n_head = HEADS * G, .n_head_kv = HEADS, .head_dim = D, .attn_scale = 0.125f,
                               .attn_softcap = softcap};
    pd_kernels_init(&w->kern, pd_cpu_detect());
    assert_int_equal(pd_workers_open(&w->workers, threads, NULL), PD_OK);
    const pd_codec native = pd_codec_of(PD_KV_F16, PD_KV_F16), codec = pd_codec_of(key, value);
    assert_int_equal(pd_kvpools_init(&w->pools, &native, D, 64u << 20, 1u << 20, NULL), PD_OK);
    pd_kvpool *pool;
    assert_int_equal(pd_kvpools_get(&w->pools, &codec, D, D, &pool, NULL), PD_OK);
    pd_rng rng = {(uint64_t)key * 16 + value};
    const size_t slots[LAYERS] = {SLOTS, SLOTS};
    int32_t pos[SLOTS];
    for (int i = 0; i < SLOTS; i++) pos[i] = i;
    for (size_t s = 0; s < SEQS; s++) {
        assert_int_equal(pd_kv_init(&w->kv[s], pool, &codec, &w->kern, LAYERS, HEADS, D, slots, NULL), PD_OK);
        if (s > 0) assert_int_equal(pd_select_init(&w->sel[s], rule, 0, &w->model.hp, slots, NULL), PD_OK); /* the first reads all */
        for (size_t l = 0; l < LAYERS; l++) {
            for (size_t h = 0; h < HEADS; h++) {
                const size_t n = s == 2 ? 5 + h : SLOTS - 40 * h - s; /* heads of any length */
                float *k = draw(&rng, n * D, 3.0f), *v = draw(&rng, n * D, 1.0f);
                assert_int_equal(pd_kv_append(&w->kv[s], l, h, k, v, D, pos, NULL, n, NULL), PD_OK);
                free(k);
                free(v);
            }
        }
    }
    w->q = draw(&rng, SEQS * HEADS * G * D, 2.0f);
}

static void close_world(world *w) {
    for (size_t s = 0; s < SEQS; s++) {
        pd_kv_done(&w->kv[s]);
        pd_select_done(&w->sel[s]);
    }
    pd_kvpools_done(&w->pools);
    pd_workers_close(w->workers);
    free(w->q);
}

static void run_step(world *w, size_t layer, bool choose, float *out) {
    pd_attn a;
    pd_kv *kv[SEQS];
    pd_select *sel[SEQS];
    for (size_t s = 0; s < SEQS; s++) {
        kv[s] = &w->kv[s];
        sel[s] = s ? &w->sel[s] : NULL;
    }
    assert_int_equal(pd_attn_init(&a, &w->model, &w->kern, w->workers, SEQS, SLOTS, true, NULL), PD_OK);
    pd_attn_step(&a, kv, choose ? sel : NULL, SEQS, layer, w->q, out);
    pd_attn_done(&a);
}

/* One KV head in f64: the rows its query heads take are read for all of them.  Where keys are
 * in few bits, and queries in 8, the weights are those the step left: scores are other tests'. */
static size_t plain(const world *w, size_t s, size_t layer, size_t h, const pd_read_rule *rule, bool few, double *out) {
    const pd_kv *kv = &w->kv[s];
    const size_t n = pd_kv_at(kv, layer, h)->n;
    float *k = malloc(n * D * sizeof *k), *v = malloc(n * D * sizeof *v);
    pd_kv_read(kv, layer, h, k, v, NULL);
    double *a = malloc(G * n * sizeof *a), total[G] = {0};
    bool *in = calloc(n, sizeof *in);
    for (size_t g = 0; g < G; g++) {
        const float *q = w->q + ((s * HEADS + h) * G + g) * D;
        float *sorted = malloc(n * sizeof *sorted);
        double max = -INFINITY, held = 0.0;
        for (size_t i = 0; i < n; i++) {
            double x = 0.0;
            for (size_t c = 0; c < D; c++) x += 0.125 * (double)q[c] * (double)k[i * D + c];
            const double cap = w->model.hp.attn_softcap;
            a[g * n + i] = cap > 0 ? cap * tanh(x / cap) : x;
            max = fmax(max, a[g * n + i]);
        }
        for (size_t i = 0; i < n; i++) {
            a[g * n + i] = few ? (double)pd_select_at(&w->sel[s], h, i)[g * w->sel[s].stride] : exp(a[g * n + i] - max);
            total[g] += a[g * n + i];
            sorted[i] = (float)a[g * n + i];
        }
        qsort(sorted, n, sizeof *sorted, heavier);
        size_t m = 0;
        while (held < rule->tau * total[g]) held += (double)sorted[m++];
        for (size_t i = 0; i < n; i++) in[i] = in[i] || (float)a[g * n + i] >= sorted[m - 1];
        free(sorted);
    }
    size_t n_in = 0;
    for (size_t i = 0; i < n; i++) n_in += in[i];
    memset(out, 0, G * D * sizeof *out);
    for (size_t g = 0; g < G; g++) {
        double held = 0.0;
        for (size_t i = 0; i < n; i++) held += in[i] ? a[g * n + i] : 0.0;
        for (size_t i = 0; i < n; i++)
            for (size_t c = 0; in[i] && c < D; c++)
                out[g * D + c] += a[g * n + i] * (double)v[i * D + c] / (rule->renormalize ? held : total[g]);
    }
    free(k);
    free(v);
    free(a);
    free(in);
    return n_in;
}

static void check_step(pd_kv_type key, pd_kv_type value, const pd_read_rule *rule, float softcap) {
    world w;
    open_world(&w, key, value, rule, 2, softcap);
    float *dense = malloc(SEQS * HEADS * G * D * sizeof *dense), *some = malloc(SEQS * HEADS * G * D * sizeof *some);
    const bool few = pd_kv_type_group(key) > 1;
    for (size_t l = 0; l < LAYERS; l++) {
        run_step(&w, l, false, dense);
        run_step(&w, l, true, some);
        assert_memory_equal(dense, some, HEADS * G * D * sizeof *dense); /* who reads all is not touched */
        for (size_t s = 1; s < SEQS; s++) {
            size_t rows = 0, values = 0;
            for (size_t h = 0; h < HEADS; h++) {
                double want[G * D];
                values += plain(&w, s, l, h, rule, few, want);
                rows += pd_kv_at(&w.kv[s], l, h)->n;
                for (size_t i = 0; i < G * D; i++) {
                    const float got = some[(s * HEADS + h) * G * D + i];
                    if (fabs(want[i] - (double)got) > 2e-4)
                        fail_msg("%s/%s tau %g seq %zu layer %zu head %zu: %zu is %g, want %g", pd_kv_type_name(key), pd_kv_type_name(value),
                                 rule->tau, s, l, h, i, (double)got, want[i]);
                }
            }
            assert_int_equal(w.sel[s].rows[l], rows);
            if (w.sel[s].values[l] != values)
                fail_msg("%s/%s tau %g seq %zu: %zu rows of %zu read, want %zu", pd_kv_type_name(key), pd_kv_type_name(value), rule->tau, s,
                         (size_t)w.sel[s].values[l], rows, values);
        }
    }
    free(dense);
    free(some);
    close_world(&w);
}

static void steps_equal_the_plain_ones(void **state) {
    (void)state;
    static const pd_kv_type types[] = {PD_KV_F32, PD_KV_F16, PD_KV_Q8_0, PD_KV_Q4};
    for (size_t k = 0; k < 4; k++)
        for (size_t v = 0; v < 4; v++)
            for (int i = 0; i < 4; i++)
                check_step(types[k], types[v], &(pd_read_rule){.tau = i < 2 ? 0.9 : 0.6, .renormalize = i % 2 == 0}, k == v ? 5.0f * (float)i : 0.0f);
}

static void threads_change_no_bit(void **state) {
    (void)state;
    const pd_read_rule rule = {.tau = 0.8, .renormalize = true};
    float *out[2];
    for (unsigned i = 0; i < 2; i++) {
        world w;
        open_world(&w, PD_KV_F16, PD_KV_Q8_0, &rule, 1 + 2 * i, 0.0f);
        out[i] = malloc(SEQS * HEADS * G * D * sizeof *out[i]);
        run_step(&w, 1, true, out[i]);
        close_world(&w);
    }
    assert_memory_equal(out[0], out[1], SEQS * HEADS * G * D * sizeof *out[0]);
    free(out[0]);
    free(out[1]);
}

/* ---- pages ---- */

static pd_kv *open_bounded(world *w, pd_kv_type key, const pd_read_rule *rule) {
    open_world(w, key, key, rule, 2, 0.0f);
    const size_t slots[LAYERS] = {SLOTS, SLOTS};
    pd_kv *kv = &w->kv[1], fresh;
    assert_int_equal(pd_kv_init(&fresh, kv->pool, &kv->codec, &w->kern, LAYERS, HEADS, D, slots, NULL), PD_OK);
    assert_int_equal(pd_kv_bound(&fresh, 1, w->model.hp.window, NULL), PD_OK);
    float *k = malloc(SLOTS * D * sizeof *k), *v = malloc(SLOTS * D * sizeof *v);
    int32_t pos[SLOTS];
    for (size_t l = 0; l < LAYERS; l++) {
        for (size_t h = 0; h < HEADS; h++) { /* in pieces of any length */
            const size_t n = pd_kv_at(kv, l, h)->n;
            pd_kv_read(kv, l, h, k, v, pos);
            for (size_t i = 0, m = 0; i < n; i += m) {
                m = i + 1 + i % 37 < n ? 1 + i % 37 : n - i;
                assert_int_equal(pd_kv_append(&fresh, l, h, k + i * D, v + i * D, D, pos + i, NULL, m, NULL), PD_OK);
            }
        }
    }
    free(k);
    free(v);
    pd_kv_done(kv);
    *kv = fresh;
    return kv;
}

static float half(uint16_t bits) {
    float x;
    pd_kernels kern;
    pd_kernels_init(&kern, 0);
    kern.f16_to_f32(&bits, &x, 1);
    return x;
}

/* Every key of a page lies within the page's bounds, and bounds are no wider than f16 makes them. */
static void expect_bounds(const pd_kv *kv, size_t layer, size_t head, const char *what) {
    const pd_kv_head *kh = pd_kv_at(kv, layer, head);
    const pd_bounds_head *b = &kv->bounds.head[layer * HEADS + head];
    assert_int_equal(b->n_block, (kh->n_page + 15) / 16);
    float row[D];
    for (size_t p = 0; p < kh->n_page; p++) {
        float lo[D], hi[D];
        const size_t n = kh->n - 16 * p < 16 ? kh->n - 16 * p : 16;
        for (size_t s = 0; s < n; s++) {
            pd_codec_read(&kv->codec, kv->kern, pd_kvpool_page(kv->pool, kh->page[p]), D, s, row, NULL, NULL);
            for (size_t c = 0; c < D; c++) {
                lo[c] = s && lo[c] < row[c] ? lo[c] : row[c];
                hi[c] = s && hi[c] > row[c] ? hi[c] : row[c];
            }
        }
        for (size_t c = 0; c < D; c++) {
            const float min = half(b->block[p / 16][c * 16 + p % 16]), max = half(b->block[p / 16][(D + c) * 16 + p % 16]);
            if (min > lo[c] || max < hi[c] || lo[c] - min > 0.002f * (1e-4f + fabsf(lo[c])) || max - hi[c] > 0.002f * (1e-4f + fabsf(hi[c])))
                fail_msg("%s: layer %zu head %zu page %zu channel %zu: [%g, %g] for [%g, %g]", what, layer, head, p, c, (double)min,
                         (double)max, (double)lo[c], (double)hi[c]);
        }
    }
}

static void bounds_hold_for_what_is_stored(void **state) {
    (void)state;
    static const pd_kv_type types[] = {PD_KV_F32, PD_KV_F16, PD_KV_Q8_0, PD_KV_Q4};
    const pd_read_rule rule = {.tau = 1.0, .page_budget = 8, .skip_layers = 1};
    for (size_t t = 0; t < 4; t++) {
        world w;
        pd_kv *kv = open_bounded(&w, types[t], &rule), copy;
        const size_t slots[LAYERS] = {SLOTS, SLOTS};
        assert_false(pd_bounds_has(&kv->bounds, 0)); /* of the first layer nobody asks */
        for (size_t h = 0; h < HEADS; h++) expect_bounds(kv, 1, h, "appended");
        assert_int_equal(pd_kv_init(&copy, kv->pool, &kv->codec, &w.kern, LAYERS, HEADS, D, slots, NULL), PD_OK);
        assert_int_equal(pd_kv_bound(&copy, 1, w.model.hp.window, NULL), PD_OK);
        assert_int_equal(pd_kv_copy(&copy, kv, NULL), PD_OK);
        assert_true(pd_bounds_bytes(&copy.bounds) == pd_bounds_bytes(&kv->bounds) && pd_bounds_bytes(&kv->bounds) > 0);
        const uint64_t before = pd_bounds_bytes(&kv->bounds);
        uint32_t keep[SLOTS];
        for (size_t h = 0; h < HEADS; h++) {
            size_t n = 0;
            for (uint32_t i = 0; i < pd_kv_at(kv, 1, h)->n; i++)
                if (i < 40 || i % 3 == h) keep[n++] = i;
            pd_kv_keep(kv, 1, h, keep, n);
            expect_bounds(kv, 1, h, "kept");
            expect_bounds(&copy, 1, h, "copied");
        }
        assert_true(pd_bounds_bytes(&kv->bounds) < before);
        pd_kv_done(&copy);
        close_world(&w);
    }
}

/* The pages chosen are the first, the last two, and those whose keys may score highest for any of
 * the group's queries; a step over them is a step over a cache that holds nothing else. */
static void pages_are_those_of_the_highest_bounds(void **state) {
    (void)state;
    static const pd_kv_type types[] = {PD_KV_F32, PD_KV_F16, PD_KV_Q8_0, PD_KV_Q4};
    enum { BUDGET = 9 };
    const pd_read_rule rule = {.tau = 1.0, .page_budget = BUDGET, .skip_layers = 1};
    for (size_t t = 0; t < 4; t++) {
        world w;
        pd_kv *kv = open_bounded(&w, types[t], &rule);
        float out[SEQS * HEADS * G * D], want[SEQS * HEADS * G * D];
        pd_select_done(&w.sel[2]); /* has no bounds */
        run_step(&w, 0, true, out);
        run_step(&w, 0, false, want);
        assert_memory_equal(out, want, sizeof out); /* a layer that is skipped */
        run_step(&w, 1, true, out);
        uint64_t rows = 0, read = 0;
        for (size_t h = 0; h < HEADS; h++) {
            const pd_kv_head *kh = pd_kv_at(kv, 1, h);
            const pd_look look = pd_select_look(&w.sel[1], 1, h, kh);
            assert_int_equal(look.n_page, BUDGET);
            bool in[64] = {false};
            for (size_t i = 0; i < BUDGET; i++) in[look.page[i]] = true;
            assert_true(in[0] && in[kh->n_page - 1] && in[kh->n_page - 2]);
            double least = INFINITY, most = -INFINITY;
            for (size_t p = 1; p + 2 < kh->n_page; p++) {
                double bound = -INFINITY;
                for (size_t g = 0; g < G; g++) {
                    double sum = 0.0;
                    for (size_t c = 0; c < D; c++) {
                        const double x = w.q[((HEADS + h) * G + g) * D + c];
                        const uint16_t *b = kv->bounds.head[HEADS + h].block[p / 16] + p % 16;
                        sum += fmax(x * half(b[c * 16]), x * half(b[(D + c) * 16]));
                    }
                    bound = fmax(bound, sum);
                }
                if (in[p]) least = fmin(least, bound);
                if (!in[p]) most = fmax(most, bound);
            }
            if (least < most - 1e-3) fail_msg("%s head %zu: a page with bound %g is read, one with %g is not", pd_kv_type_name(types[t]), h, least, most);
            rows += kh->n;
            read += look.n;
            uint32_t keep[SLOTS];
            size_t n = 0;
            for (uint32_t i = 0; i < kh->n; i++)
                if (in[i / 16]) keep[n++] = i;
            assert_int_equal(n, look.n);
            pd_kv_keep(kv, 1, h, keep, n);
        }
        const pd_select *s = &w.sel[1];
        assert_true(s->rows[1] == rows && s->keys[1] == read && s->values[1] == read && s->keys[0] == s->rows[0]);
        run_step(&w, 1, false, want);
        assert_memory_equal(out, want, sizeof out);
        run_step(&w, 1, true, out); /* no more pages than the budget: all */
        assert_memory_equal(out, want, sizeof out);
        close_world(&w);
    }
}

/* ---- an engine ---- */

enum { N = 200, MORE = 30 };

static void all_is_none(void **state) {
    (void)state;
    int32_t prompt[N];
    case_prompt(prompt, N, 3);
    for (int arch = 0; arch < 2; arch++) {
        pd_engine *e = case_open(arch ? TINY_GEMMA3 : TINY_LLAMA, TINY_Q8_0, NULL);
        ask q = {.tokens = prompt, .n = N, .max_tokens = MORE, .logprobs = 5};
        answer *dense = case_run(e, &q);
        q.press = "hcattention:tau=1";
        answer *all = case_run(e, &q);
        case_expect_same(dense, all);
        assert_string_equal(all->r->kv.press, "hcattention:tau=1");
        assert_int_equal(all->r->kv.rows, 0); /* nothing was chosen */
        q.press = "quest:token_budget=256";
        answer *enough = case_run(e, &q);
        case_expect_same(dense, enough);
        assert_true(enough->r->kv.rows_key == enough->r->kv.rows && enough->r->kv.bytes == dense->r->kv.bytes);
        case_drop(enough);
        q.press = "quest:token_budget=64,skip_layers=0";
        answer *few = case_run(e, &q);
        assert_memory_not_equal(dense->logprob, few->logprob, MORE * sizeof *few->logprob);
        assert_true(few->r->kv.rows_key < few->r->kv.rows / 2 && few->r->kv.rows_value == few->r->kv.rows_key);
        assert_true(few->r->kv.bytes == dense->r->kv.bytes && few->r->kv.bytes_bounds > 0 && few->r->kv.bytes_bounds < few->r->kv.bytes / 4);
        case_drop(few);
        q.press = "hcattention:tau=0.3";
        answer *some = case_run(e, &q);
        assert_memory_not_equal(dense->logprob, some->logprob, MORE * sizeof *some->logprob);
        case_drop(dense);
        case_drop(all);
        case_drop(some);
        case_expect_idle(e);
        pd_engine_close(e);
    }
}

/* Nothing is dropped, steps and layers without a window are counted, and the numbers are in the report. */
static void reads_are_counted(void **state) {
    (void)state;
    int32_t prompt[N];
    case_prompt(prompt, N, 4);
    for (int arch = 0; arch < 2; arch++) {
        pd_engine *e = case_open(arch ? TINY_GEMMA3 : TINY_LLAMA, TINY_Q8_0, NULL);
        const size_t heads = pd_engine_get_info(e)->n_head_kv;
        ask q = {.tokens = prompt, .n = N, .max_tokens = MORE, .press = "hcattention:tau=0.5"};
        answer *a = case_run(e, &q), *dense = case_run(e, &(ask){.tokens = prompt, .n = N, .max_tokens = MORE});
        const pd_kv_report *kv = &a->r->kv;
        assert_int_equal(kv->bytes, dense->r->kv.bytes);
        assert_true(kv->ratio == 0.0 && kv->tokens_evicted == 0);
        uint64_t per_layer = 0; /* the first token comes from the prompt */
        for (size_t i = 0; i + 1 < MORE; i++) per_layer += heads * (N + 1 + i);
        if (kv->rows == 0 || kv->rows % per_layer || kv->rows / per_layer > kv->n_layer ||
            (kv->rows / per_layer == kv->n_layer) != (arch == 0))
            fail_msg("%llu rows, %llu a layer", (unsigned long long)kv->rows, (unsigned long long)per_layer);
        assert_true(kv->rows_value > 0 && kv->rows_value < kv->rows);
        assert_string_equal(kv->name, "hcattention");
        case_drop(a);
        case_drop(dense);
        case_expect_idle(e);
        pd_engine_close(e);
    }
}

/* Around every kind of press that drops; the canonical text says all of it. */
static void reading_goes_with_dropping(void **state) {
    (void)state;
    int32_t prompt[N];
    case_prompt(prompt, N, 5);
    static const struct {
        const char *press, *text;
    } t[] = {
        {"hcattention(knorm)@0.5", "hcattention(knorm)"},
        {"hcattention:tau=0.5(knorm@0.5)", "hcattention:tau=0.5(knorm)"},
        {"hcattention(adakv(snapkv:window_size=8))@0.5", "hcattention(adakv(snapkv:window_size=8))"},
        {"hcattention(decoding:compression_interval=8,target_size=64(knorm))", "hcattention(decoding:compression_interval=8,target_size=64(knorm))"},
        {"hcattention(prefill_decoding(knorm@0.5,decoding:compression_interval=8,target_size=64(tova)))",
         "hcattention(prefill_decoding(knorm,decoding:compression_interval=8,target_size=64(tova)))"},
        {"hcattention(none)", "hcattention"},
    };
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        answer *a = case_run(e, &(ask){.tokens = prompt, .n = N, .max_tokens = MORE, .press = t[i].press});
        assert_string_equal(a->r->kv.press, t[i].text);
        if ((a->r->kv.tokens_evicted > 0) != (strchr(t[i].text, '(') != NULL)) fail_msg("%s: %llu evicted", t[i].press, (unsigned long long)a->r->kv.tokens_evicted);
        assert_true(a->r->kv.rows_value < a->r->kv.rows);
        case_drop(a);
    }
    case_expect_idle(e);
    pd_engine_close(e);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_fewest_rows_are_taken),
        cmocka_unit_test(steps_equal_the_plain_ones),
        cmocka_unit_test(threads_change_no_bit),
        cmocka_unit_test(bounds_hold_for_what_is_stored),
        cmocka_unit_test(pages_are_those_of_the_highest_bounds),
        cmocka_unit_test(all_is_none),
        cmocka_unit_test(reads_are_counted),
        cmocka_unit_test(reading_goes_with_dropping),
    };
    return cmocka_run_group_tests(tests, NULL, case_group_end);
}
