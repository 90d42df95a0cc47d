/* SPDX-License-Identifier: Apache-2.0 */
/* hcattention with keys in product codes, on an engine with codebooks made for its tiny model: what
 * is stored is what is counted, a step equals a plain one over the keys that the codes stand for, and
 * the answer is the same whatever else runs.  k-means by itself too; the kernels are the kernel
 * suite's business, and real models' numbers the golden suite's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compression/calibrate.h"
#include "compression/kmeans.h"
#include "compression/spec.h"
#include "engine/base/num.h"
#include "engine/run/calibrate.h"
#include "engine/run/state.h"
#include "tests/unit/measured_case.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PAGE = PD_PAGE_TOKENS, N = 210, MORE = 60, TEXT = 3000 };

static int32_t prompt[600];

/* ---- k-means ---- */

static pd_kernels kernels(unsigned mask) {
    pd_kernels k;
    pd_kernels_init(&k, mask & pd_cpu_detect());
    return k;
}

/* Clouds far from each other: each gets its centroid, and the error is the clouds' own size. */
static void clouds_get_their_centroids(void **state) {
    (void)state;
    enum { CLOUDS = 16, ROWS = 3000, SUB = 4 };
    const pd_kernels kern = kernels(~0u);
    float *x = malloc(ROWS * SUB * sizeof *x), *tmp = malloc(ROWS * sizeof *tmp), book[SUB * CLOUDS], at[CLOUDS][SUB];
    for (uint64_t seed = 1; seed < 6; seed++) {
        pd_rng rng = {seed};
        for (size_t c = 0; c < CLOUDS; c++)
            for (size_t k = 0; k < SUB; k++) at[c][k] = (float)(c >> k & 1) * 100.0f;
        for (size_t i = 0; i < ROWS * SUB; i++) x[i] = at[i / SUB % CLOUDS][i % SUB] + pd_rng_f32(&rng);
        const double error = pd__kmeans(&kern, x, ROWS, SUB, CLOUDS, seed, book, tmp);
        assert_true(error > 0.8 * SUB / 3.0 && error < 1.2 * SUB / 3.0); /* variance of [-1, 1) in each number */
        bool has[CLOUDS] = {false};
        for (size_t c = 0; c < CLOUDS; c++) {
            size_t cloud = 0;
            for (size_t k = 0; k < SUB; k++) {
                const float b = book[k * CLOUDS + c];
                assert_true(fabsf(b) < 1.0f || fabsf(b - 100.0f) < 1.0f);
                cloud |= (size_t)(b > 50.0f) << k;
            }
            assert_false(has[cloud]);
            has[cloud] = true;
        }
    }
    free(x);
    free(tmp);
}

/* More centroids lose less, the same seed gives the same book, and few rows are enough for any number. */
static void more_centroids_lose_less(void **state) {
    (void)state;
    enum { ROWS = 2000, SUB = 2 };
    const pd_kernels kern = kernels(~0u);
    float *x = malloc(ROWS * SUB * sizeof *x), *tmp = malloc(ROWS * sizeof *tmp), book[2][SUB * 256];
    pd_rng rng = {9};
    for (size_t i = 0; i < ROWS * SUB; i++) x[i] = pd_rng_f32(&rng) * pd_rng_f32(&rng);
    double last = 1.0;
    for (size_t n = 16; n <= 256; n *= 2) {
        const double error = pd__kmeans(&kern, x, ROWS, SUB, n, 3, book[0], tmp);
        assert_true(error > 0.0 && error < 0.7 * last);
        assert_true(pd__kmeans(&kern, x, ROWS, SUB, n, 3, book[1], tmp) == error);
        assert_memory_equal(book[0], book[1], SUB * n * sizeof(float));
        last = error;
    }
    for (size_t n = 1; n <= 16; n++) { /* every row is a centroid */
        assert_true(pd__kmeans(&kern, x, n, SUB, 32, n, book[0], tmp) < 1e-9);
        for (size_t i = 0; i < SUB * 32; i++) assert_true(isfinite(book[0][i]));
    }
    free(x);
    free(tmp);
}

/* ---- engines ---- */

/* With codebooks. */
static pd_engine *open_codes(tiny_arch arch, pd_compute compute, unsigned threads, uint64_t kv_bytes, unsigned draft_tokens) {
    return case_open_measured(PD_CALIB_CODES, 700, 100, arch, compute, threads, kv_bytes, draft_tokens);
}

/* Every book, windows, all values read or some: pages of both kinds to the byte. */
static void bytes_fall_by_the_codes(void **state) {
    (void)state;
    static const size_t lengths[] = {5, 64, 80, 200, 333}, windows[] = {0, 1, 16, 64, 100};
    for (int gemma = 0; gemma < 2; gemma++) {
        pd_engine *e = open_codes(gemma ? TINY_GEMMA3 : TINY_LLAMA, PD_COMPUTE_INT8, 1, 0, 0);
        const size_t d = pd_engine_get_info(e)->head_dim, heads = gemma ? 1 : 6;
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            ask q = {.tokens = prompt, .n = lengths[i], .max_tokens = 40};
            answer *dense = case_run(e, &q);
            for (size_t b = 0; b < PD_BOOKS; b++) {
                const size_t window = windows[(i + b) % 5], n = q.n, end = n + 39;
                char text[96];
                snprintf(text, sizeof text, "hcattention:sub_vector=%zu,centroids=%zu,window=%zu,sinks=%zu,tau=%g", pd_books[b].sub,
                         pd_books[b].n_centroid, window, b % 7, b % 2 ? 0.9 : 1.0);
                q.press = text;
                answer *a = case_run(e, &q);
                const pd_kv_report *kv = &a->r->kv, *full = &dense->r->kv;
                const size_t key = d / pd_books[b].sub * (pd_books[b].n_centroid == 16 ? 4 : 8) / 8, less = PAGE * (2 * d - key);
                const size_t before = n > window ? (n - window) / PAGE : 0, packed = end > window ? (end - window) / PAGE : 0;
                assert_int_equal(kv->bytes_after_prefill, full->bytes_after_prefill - heads * before * less);
                assert_int_equal(kv->bytes, full->bytes - heads * packed * less);
                assert_int_equal(kv->pages, full->pages);
                assert_true(fabs(kv->ratio - (double)(before * less) / (double)(n * 4 * d)) < 1e-12);
                assert_true(kv->tokens_kept == full->tokens_kept && kv->tokens_evicted == 0);
                assert_true(kv->bytes_peak <= pd__job_reserved(a->job) + a->job->staging_bytes);
                /* what is promised: besides, the last piece and what it waits for */
                if (!gemma) assert_true(pd__job_reserved(a->job) <= kv->bytes + heads * 4 * pd_engine_get_info(e)->page_bytes);
                if (packed == 0 && b % 2 == 0) case_expect_same(a, dense); /* the window is whole */
                if (b % 2) assert_true(kv->rows_value > 0 && kv->rows_value < kv->rows);
                case_drop(a);
                case_expect_idle(e);
            }
            case_drop(dense);
        }
        pd_engine_close(e);
    }
}

static const char *const company[] = {
    "hcattention:sub_vector=2",
    "hcattention:sub_vector=4,window=20,tau=1",
    "hcattention:sub_vector=8,window=0,sinks=0",
    "hcattention:sub_vector=2,centroids=16,window=33,sinks=16,tau=0.8",
    "hcattention:sub_vector=4,centroids=16,tau=1",
    "hcattention:sub_vector=2,window=8,tau=1(decoding:compression_interval=7,target_size=64(knorm))",
    "hcattention:sub_vector=2,window=8(cam:compression_interval=8,target_size=50(tova))",
    "hcattention:sub_vector=4,codes=index",
    "hcattention:sub_vector=2,codes=index,exact=0.5,tau=1,centroids=16(knorm)@0.5",
    "hcattention:sub_vector=8,codes=index,exact=0.1,tau=0.9(prefill_decoding(adakv(knorm)@0.3,decoding:compression_interval=7,target_size=64(knorm)))",
    NULL,
};

/* In f16 and f32, on one thread or three, alone, in a batch with other books or as one of several answers. */
static void company_and_threads_change_nothing(void **state) {
    (void)state;
    enum { TEXTS = sizeof company / sizeof *company };
    for (int c = 0; c < 3; c++) { /* gemma; llama; llama in f32 */
        const tiny_arch arch = c ? TINY_LLAMA : TINY_GEMMA3;
        const pd_compute compute = c == 2 ? PD_COMPUTE_F32 : PD_COMPUTE_INT8;
        pd_engine *e = open_codes(arch, compute, 1, 64 << 20, 0), *three = open_codes(arch, compute, 3, 64 << 20, 0);
        pd_job *job[TEXTS][2];
        answer *alone[TEXTS];
        pd_err err = {0};
        for (size_t i = 0; i < TEXTS; i++) {
            const ask q = {.tokens = prompt, .n = N, .max_tokens = MORE, .logprobs = 5, .press = company[i]};
            alone[i] = case_run(e, &q);
            answer *b = case_run(three, &q);
            case_expect_same(alone[i], b);
            assert_int_equal(alone[i]->r->kv.bytes, b->r->kv.bytes);
            case_drop(b);
        }
        for (size_t i = 0; i < TEXTS; i++) {
            const ask q = {.tokens = prompt, .n = N, .max_tokens = MORE, .logprobs = 5, .press = company[i]};
            if (case_submit_n(e, &q, 2, job[i], &err) != PD_OK) fail_msg("%s", err.msg);
        }
        for (size_t i = 0; i < TEXTS; i++) {
            for (int k = 0; k < 2; k++) {
                answer *a = case_wait(job[i][k]);
                case_expect_same(a, alone[i]);
                assert_int_equal(a->r->kv.bytes, alone[i]->r->kv.bytes);
                assert_int_equal(a->r->kv.bytes_after_prefill, alone[i]->r->kv.bytes_after_prefill);
                case_drop(a);
            }
            case_drop(alone[i]);
        }
        case_expect_idle(e);
        pd_engine_close(e);
        pd_engine_close(three);
    }
}

/* How far the second token's alternatives are off: the first comes of the whole prompt. */
static double distance(const answer *a, const answer *b) {
    double most = 0.0;
    assert_int_equal(a->id[0], b->id[0]);
    for (size_t i = 0; i < a->n_top[1]; i++)
        for (size_t j = 0; j < b->n_top[1]; j++)
            if (a->top[1][i].id == b->top[1][j].id) most = fmax(most, fabs((double)a->top[1][i].logprob - (double)b->top[1][j].logprob));
    return most;
}

/* ---- a step ---- */

/* A sequence of the engine's that has read n tokens, as the engine itself does it. */
static void read_types(pd_engine *e, const char *press, pd_kv_type type, size_t n, pd_seq *s) {
    pd_err err = {0};
    pd_arena arena = {0};
    pd_spec *spec;
    pd_press_inst *inst;
    pd_compression *c = calloc(1, sizeof *c);
    double ratio;
    if (pd_spec_parse_text(press, "press", &arena, &spec, &ratio, &err) != PD_OK ||
        pd_spec_resolve(spec, &pd_engine_get_info(e)->press_model, &inst, &err) != PD_OK ||
        pd_compression_take(c, inst, "press", &err) != PD_OK)
        fail_msg("%s", err.msg);
    pd_arena_done(&arena);
    c->kv_key = c->kv_value = type;
    const pd_job_params p = {.tokens = prompt, .n_tokens = n, .max_tokens = MORE, .max_given = true, .n_logprobs = -1, .compression = c};
    pd_job *job;
    pd_prefill pre;
    bool done = false;
    while (!atomic_load(&e->c_alive)) usleep(100); /* the engine's thread trims the pools once, and then sleeps */
    if (pd__job_new(&job, &p, e->tok, MORE, &err) != PD_OK || pd_admit_plan(job, &e->model->hp, &p, e->run.codec.key, &err) != PD_OK ||
        pd_seq_open(s, &e->run, job, &err) != PD_OK || pd_prefill_open(&pre, s, &err) != PD_OK)
        fail_msg("%s", err.msg);
    pd_job_unref(job);
    while (!done)
        if (pd_prefill_unit(&pre, PD_TILE, &done, &err) != PD_OK) fail_msg("%s", err.msg);
    pd_prefill_close(&pre);
}

static void read_prompt(pd_engine *e, const char *press, size_t n, pd_seq *s) {
    read_types(e, press, PD_KV_NATIVE, n, s);
}

/* Sum of squares that the cache's keys are off by, over that of the keys. */
static double lost(pd_engine *e, const char *press, const pd_kv *whole) {
    const size_t d = whole->head_dim;
    float *k = malloc(2 * N * d * sizeof *k), *was = k + N * d;
    double off = 0.0, all = 0.0;
    pd_seq s;
    read_prompt(e, press, N, &s);
    for (size_t l = 0; l < whole->n_layer; l++) {
        for (size_t h = 0; h < whole->n_head_kv; h++) {
            pd_kv_read(&s.kv, l, h, k, NULL, NULL);
            pd_kv_read(whole, l, h, was, NULL, NULL);
            for (size_t i = 0; i < N * d; i++) {
                off += pow((double)k[i] - (double)was[i], 2.0);
                all += (double)was[i] * (double)was[i];
            }
        }
    }
    pd_seq_close(&s, PD_FINISH_LENGTH, NULL);
    free(k);
    return off / all;
}

/* Longer parts and fewer centroids lose more, a window less. */
static void coarser_codes_lose_more(void **state) {
    (void)state;
    static const char *const finer[][2] = {
        {"hcattention:window=0,sub_vector=2", "hcattention:window=0,sub_vector=4"},
        {"hcattention:window=0,sub_vector=4", "hcattention:window=0,sub_vector=8"},
        {"hcattention:window=0,sub_vector=2", "hcattention:window=0,sub_vector=2,centroids=16"},
        {"hcattention:window=0,sub_vector=4", "hcattention:window=0,sub_vector=4,centroids=16"},
        {"hcattention:window=0,sub_vector=8", "hcattention:window=0,sub_vector=8,centroids=16"},
        {"hcattention:window=100,sub_vector=8", "hcattention:window=0,sub_vector=8"},
    };
    pd_engine *e = open_codes(TINY_LLAMA, PD_COMPUTE_F32, 1, 0, 0);
    pd_seq dense;
    read_prompt(e, "hcattention", N, &dense);
    for (size_t i = 0; i < sizeof finer / sizeof *finer; i++) {
        const double fine = lost(e, finer[i][0], &dense.kv), coarse = lost(e, finer[i][1], &dense.kv);
        if (!(fine > 0.0 && 1.5 * fine < coarse && coarse < 1.0)) fail_msg("%s: %g, %s: %g", finer[i][0], fine, finer[i][1], coarse);
    }
    pd_seq_close(&dense, PD_FINISH_LENGTH, NULL);
    pd_engine_close(e);
}

/* Attention of one query head over rows in f64; *off: how much a score error of `err` may move a value. */
static void plain(const float *q, float scale, size_t d, const float *k, const float *v, size_t n, double *out) {
    double *w = malloc(n * sizeof *w), max = -INFINITY, sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        w[i] = 0.0;
        for (size_t c = 0; c < d; c++) w[i] += (double)(q[c] * scale) * (double)k[i * d + c];
        max = fmax(max, w[i]);
    }
    memset(out, 0, d * sizeof *out);
    for (size_t i = 0; i < n; i++) sum += w[i] = exp(w[i] - max);
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < d; c++) out[c] += w[i] / sum * (double)v[i * d + c];
    free(w);
}

/* A step reads what the cache says its keys are: parts of their books, sinks and the window whole.  A
 * score is off by half a step of the table for each code. */
static void steps_equal_plain_ones_over_decoded_keys(void **state) {
    (void)state;
    pd_engine *e = open_codes(TINY_LLAMA, PD_COMPUTE_F32, 1, 0, 0);
    const pd_hparams *hp = &e->model->hp;
    const size_t d = hp->head_dim, heads = hp->n_head_kv, group = hp->n_head / heads;
    float *k = malloc(N * d * sizeof *k), *v = malloc(N * d * sizeof *v), *whole = malloc(N * d * sizeof *whole),
          *q = malloc(hp->n_head * d * sizeof *q), *out = malloc(hp->n_head * d * sizeof *out);
    double *want = malloc(d * sizeof *want);
    pd_seq dense;
    read_prompt(e, "hcattention:tau=1", N, &dense);
    for (size_t b = 0; b < 2 * PD_BOOKS; b++) {
        const pd_book_kind kind = pd_books[b / 2];
        char text[96];
        snprintf(text, sizeof text, "hcattention:sub_vector=%zu,centroids=%zu,window=40,sinks=%zu,tau=%s", kind.sub, kind.n_centroid, b % 5,
                 b % 2 ? "0.99999" : "1");
        pd_seq s;
        read_prompt(e, text, N, &s);
        pd_rng rng = {b};
        for (size_t i = 0; i < hp->n_head * d; i++) q[i] = 3.0f * pd_rng_f32(&rng);
        for (size_t l = 0; l < hp->n_layer; l++) {
            pd_kv *kv = &s.kv;
            pd_select *sel = &s.select;
            pd_attn_step(&e->run.attn, &kv, &sel, 1, l, q, out);
            for (size_t h = 0; h < heads; h++) {
                const size_t packed = (N - 40) / PAGE * PAGE;
                assert_int_equal(pd_kv_at(kv, l, h)->n_pack, packed);
                pd_kv_read(kv, l, h, k, v, NULL);
                pd_kv_read(&dense.kv, l, h, whole, NULL, NULL);
                for (size_t i = 0; i < N; i++) { /* whole, or of its book */
                    const bool same = memcmp(k + i * d, whole + i * d, d * sizeof *k) == 0;
                    assert_true(same == (i < b % 5 || i >= packed));
                    if (same) continue;
                    float row[64];
                    const pd_book book = {d, kind.sub, kind.n_centroid,
                                          pd_press_data_get(e->press_data, (pd_data_id)(PD_DATA_BOOK + b / 2)) + (l * heads + h) * d * kind.n_centroid,
                                          pd_press_data_get(e->press_data, PD_DATA_BOOK_WEIGHT) + (l * heads + h) * (d / 2)};
                    pd_book_encode(&book, &e->kern, whole + i * d, row);
                    float back[64];
                    pd_book_decode(&book, row, back);
                    assert_memory_equal(back, k + i * d, d * sizeof *k);
                }
                for (size_t g = h * group; g < (h + 1) * group; g++) {
                    plain(q + g * d, hp->attn_scale, d, k, v, N, want);
                    const float *scale = e->run.attn.table_scale + 2 * g;
                    const double off = expm1((double)scale[1] * (double)(d / kind.sub)) + (b % 2 ? 1e-4 : 1e-6);
                    double most = 0.0;
                    for (size_t i = 0; i < N * d; i++) most = fmax(most, fabs((double)v[i]));
                    for (size_t c = 0; c < d; c++)
                        if (fabs(want[c] - (double)out[g * d + c]) > off * most)
                            fail_msg("%s layer %zu head %zu channel %zu: %g, not %g (within %g)", text, l, g, c, (double)out[g * d + c], want[c],
                                     off * most);
                }
            }
        }
        pd_seq_close(&s, PD_FINISH_LENGTH, NULL);
    }
    pd_seq_close(&dense, PD_FINISH_LENGTH, NULL);
    free(k);
    free(v);
    free(whole);
    free(q);
    free(out);
    free(want);
    pd_engine_close(e);
}

/* ---- codes beside the keys ---- */

/* Where all pages' keys are read, codes say nothing: the very bits of the same without them, whatever
 * the pages' type and what else presses; pages stay what they are, and codes are counted beside them. */
static void an_index_of_everything_changes_nothing(void **state) {
    (void)state;
    static const char *const presses[][2] = {
        {"hcattention:tau=0.9", "hcattention:tau=0.9,sub_vector=4,codes=index,exact=1"},
        {"hcattention:tau=0.9(knorm)@0.5", "hcattention:tau=0.9,sub_vector=2,centroids=16,codes=index,exact=1(knorm)@0.5"},
        {"hcattention:tau=0.5(decoding:compression_interval=7,target_size=64(knorm))",
         "hcattention:tau=0.5,sub_vector=8,codes=index,exact=1(decoding:compression_interval=7,target_size=64(knorm))"},
    };
    static const pd_kv_type types[] = {PD_KV_NATIVE, PD_KV_Q8_0, PD_KV_Q4};
    for (int gemma = 0; gemma < 2; gemma++) {
        pd_engine *e = open_codes(gemma ? TINY_GEMMA3 : TINY_LLAMA, PD_COMPUTE_INT8, 2, 0, 0);
        const size_t d = pd_engine_get_info(e)->head_dim;
        for (size_t i = 0; i < sizeof presses / sizeof *presses; i++) {
            for (size_t t = 0; t < (d % PD_KV_GROUP ? 1 : 3); t++) {
                ask q = {.tokens = prompt, .n = i == 2 ? 400 : N, .max_tokens = MORE, .logprobs = 5, .press = presses[i][0], .kv_key = types[t], .kv_value = types[t]};
                answer *plain_one = case_run(e, &q);
                q.press = presses[i][1];
                answer *a = case_run(e, &q);
                case_expect_same(a, plain_one);
                assert_true(a->r->kv.bytes == plain_one->r->kv.bytes && a->r->kv.rows_key == plain_one->r->kv.rows_key &&
                            a->r->kv.rows_value == plain_one->r->kv.rows_value);
                assert_true(plain_one->r->kv.bytes_codes == 0 && a->r->kv.bytes_codes > 0);
                /* blocks of 16 pages of 16 slots; those of slots that went are gone */
                const size_t heads = gemma ? 1 : 6, blocks = i ? 1 : pd_div_up(N + MORE - 1, PAGE * PAGE);
                assert_int_equal(a->r->kv.bytes_codes, heads * blocks * PAGE * PAGE * (i == 2 ? d / 8 : d / 4));
                case_drop(plain_one);
                case_drop(a);
                case_expect_idle(e);
            }
        }
        pd_engine_close(e);
    }
}

/* Keys in few bits are stored less their head's centre, codes are of whole keys: scores of both kinds
 * have to stand side by side.  The weights of a step tell them, and the query looks along the centre. */
static void an_index_goes_with_few_bits(void **state) {
    (void)state;
    pd_engine *e = open_codes(TINY_GEMMA3, PD_COMPUTE_INT8, 1, 0, 0);
    const pd_hparams *hp = &e->model->hp;
    const size_t d = hp->head_dim, full = 5;
    float *k = malloc(N * d * sizeof *k), *q = malloc(hp->n_head * d * sizeof *q), *out = malloc(hp->n_head * d * sizeof *out);
    static const pd_kv_type types[] = {PD_KV_Q8_0, PD_KV_Q4};
    for (size_t t = 0; t < 2; t++) {
        pd_seq s;
        read_types(e, "hcattention:tau=1,sub_vector=2,codes=index,exact=0.3", types[t], N, &s);
        pd_kv *kv = &s.kv;
        pd_select *sel = &s.select;
        const float *centre = pd_kv_centre(kv, full, 0);
        const float by = 4.0f / (e->kern.dot_f32(centre, centre, d) * hp->attn_scale);
        for (size_t i = 0; i < hp->n_head * d; i++) q[i] = by * centre[i % d]; /* <q, centre> is 4 */
        pd_attn_step(&e->run.attn, &kv, &sel, 1, full, q, out);
        pd_kv_read(kv, full, 0, k, NULL, NULL);
        const float *w = pd_select_at(sel, 0, 0);
        double off = 0.0, seen = 0.0;
        for (size_t i = 0; i < N; i++) { /* beside the first slot, which is exact */
            const double want = (double)e->kern.dot_f32(q, k + i * d, d) - (double)e->kern.dot_f32(q, k, d);
            off += (log((double)w[i]) - log((double)w[0]) - want * (double)hp->attn_scale) / N;
            seen = fmax(seen, fabs(want * (double)hp->attn_scale));
        }
        if (!(fabs(off) < 0.25 && seen > 0.1)) fail_msg("%s: scores are off by %g in the mean", pd_kv_type_name(types[t]), off);
        pd_seq_close(&s, PD_FINISH_LENGTH, NULL);
    }
    free(k);
    free(q);
    free(out);
    pd_engine_close(e);
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* A step: scores of codes everywhere, of the keys in the pages that come nearest a query head's
 * largest, in the first and the last two. */
static void an_index_finds_the_pages(void **state) {
    (void)state;
    pd_engine *e = open_codes(TINY_LLAMA, PD_COMPUTE_F32, 2, 0, 0);
    const pd_hparams *hp = &e->model->hp;
    const size_t d = hp->head_dim, heads = hp->n_head_kv, group = hp->n_head / heads, n = N + 40, n_page = pd_div_up(n, PAGE);
    float *k = malloc(n * d * sizeof *k), *v = malloc(n * d * sizeof *v), *q = malloc(hp->n_head * d * sizeof *q),
          *out = malloc(hp->n_head * d * sizeof *out);
    double *score = malloc(group * n * sizeof *score);
    size_t many = 0;
    for (size_t b = 0; b < PD_BOOKS; b++) {
        const pd_book_kind kind = pd_books[b];
        const double exact = 0.3 + 0.05 * (double)b;
        const size_t n_exact = (size_t)ceil(exact * (double)n_page);
        char text[128];
        snprintf(text, sizeof text, "hcattention:sub_vector=%zu,centroids=%zu,codes=index,exact=%g,tau=1", kind.sub, kind.n_centroid, exact);
        pd_seq s;
        read_prompt(e, text, N, &s);
        pd_rng rng = {b + 70};
        for (size_t i = 0; i < hp->n_head * d; i++) q[i] = 3.0f * pd_rng_f32(&rng);
        pd_kv *kv = &s.kv;
        for (size_t i = N; i < n; i++) { /* as tokens come: one at a time */
            const int32_t pos = (int32_t)i;
            for (size_t c = 0; c < d; c++) k[c] = 2.0f * pd_rng_f32(&rng);
            for (size_t h = 0; h < heads; h++) assert_int_equal(pd_kv_append(kv, 1, h, k, k, d, &pos, NULL, 1, NULL), PD_OK);
        }
        pd_select *sel = &s.select;
        pd_attn_step(&e->run.attn, &kv, &sel, 1, 1, q, out);
        assert_int_equal(sel->rows[1], heads * n);
        assert_int_equal(sel->keys[1], heads * (n - (n_page - n_exact) * PAGE));
        for (size_t h = 0; h < heads; h++) {
            double bound[64], sorted[64], step = 0.0;
            for (size_t p = 0; p < n_page; p++) bound[p] = -INFINITY;
            pd_kv_read(kv, 1, h, k, v, NULL);
            const pd_book book = {d, kind.sub, kind.n_centroid,
                                  pd_press_data_get(e->press_data, (pd_data_id)(PD_DATA_BOOK + b)) + (heads + h) * d * kind.n_centroid,
                                  pd_press_data_get(e->press_data, PD_DATA_BOOK_WEIGHT) + (heads + h) * (d / 2)};
            for (size_t g = 0; g < group; g++) {
                double most = -INFINITY;
                const float *qg = q + (h * group + g) * d;
                for (size_t i = 0; i < n; i++) {
                    float code[64], row[64];
                    pd_book_encode(&book, &e->kern, k + i * d, code);
                    pd_book_decode(&book, code, row);
                    score[g * n + i] = 0.0;
                    for (size_t c = 0; c < d; c++) score[g * n + i] += (double)(qg[c] * hp->attn_scale) * (double)row[c];
                    most = fmax(most, score[g * n + i]);
                }
                for (size_t i = 0; i < n; i++) bound[i / PAGE] = fmax(bound[i / PAGE], score[g * n + i] - most);
                step = fmax(step, (double)e->run.attn.table_scale[2 * (h * group + g) + 1]);
            }
            bound[0] = bound[n_page - 1] = bound[n_page - 2] = INFINITY;
            memcpy(sorted, bound, n_page * sizeof *sorted);
            qsort(sorted, n_page, sizeof *sorted, by_size);
            const double off = step * (double)(d / kind.sub) + 1e-5;
            const uint32_t *chosen = sel->page + h * sel->page_stride;
            assert_int_equal(sel->n_page[h], n_exact);
            for (size_t i = 0; i < n_exact; i++) {
                assert_true(i == 0 || chosen[i] > chosen[i - 1]);
                if (!(bound[chosen[i]] >= sorted[n_exact - 1] - 2.0 * off)) fail_msg("%s: page %u of %g is read", text, chosen[i], bound[chosen[i]]);
                for (size_t g = 0; g < group; g++)
                    for (size_t t = chosen[i] * PAGE; t < n && t < (chosen[i] + 1) * (size_t)PAGE; t++) {
                        double want = 0.0;
                        for (size_t c = 0; c < d; c++) want += (double)(q[(h * group + g) * d + c] * hp->attn_scale) * (double)k[t * d + c];
                        many += fabs(want - score[g * n + t]) > 0.05;
                        score[g * n + t] = want;
                    }
            }
            for (size_t g = 0; g < group; g++) { /* and the softmax over what came of it */
                double most = -INFINITY, sum = 0.0, large = 0.0;
                for (size_t i = 0; i < n; i++) most = fmax(most, score[g * n + i]);
                for (size_t i = 0; i < n; i++) sum += exp(score[g * n + i] - most);
                for (size_t i = 0; i < n * d; i++) large = fmax(large, fabs((double)v[i]));
                for (size_t c = 0; c < d; c++) {
                    double want = 0.0;
                    for (size_t i = 0; i < n; i++) want += exp(score[g * n + i] - most) / sum * (double)v[i * d + c];
                    if (fabs(want - (double)out[(h * group + g) * d + c]) > (expm1(off) + 1e-5) * large)
                        fail_msg("%s head %zu channel %zu: %g, not %g", text, h * group + g, c, (double)out[(h * group + g) * d + c], want);
                }
            }
        }
        pd_seq_close(&s, PD_FINISH_LENGTH, NULL);
    }
    assert_true(many > 100); /* codes and keys differ */
    free(k);
    free(v);
    free(q);
    free(out);
    free(score);
    pd_engine_close(e);
}

/* ---- what goes with it ---- */

static pd_status with_types(pd_engine *e, const char *text, pd_kv_type key, pd_kv_type value, answer **ret, pd_err *err) {
    pd_arena arena = {0};
    pd_spec *spec;
    pd_press_inst *inst;
    double ratio;
    pd_compression *c = calloc(1, sizeof *c);
    if (pd_spec_parse_text(text, "press", &arena, &spec, &ratio, err) != PD_OK ||
        pd_spec_resolve(spec, &pd_engine_get_info(e)->press_model, &inst, err) != PD_OK ||
        pd_compression_take(c, inst, "press", err) != PD_OK)
        fail_msg("%s", err->msg);
    pd_arena_done(&arena);
    c->kv_key = key;
    c->kv_value = value;
    const ask q = {.tokens = prompt, .n = N, .max_tokens = 4, .logprobs = 50, .comp = c};
    pd_job *job;
    const pd_status rc = case_submit(e, &q, &job, err);
    *ret = rc == PD_OK ? case_wait(job) : NULL;
    return rc;
}

/* Values may be in few bits, keys not: those that are not codes are read beside them. */
static void few_bits_go_along_for_values(void **state) {
    (void)state;
    pd_engine *e = open_codes(TINY_GEMMA3, PD_COMPUTE_INT8, 1, 0, 0);
    static const char *const presses[] = {"hcattention:sub_vector=2,tau=1", "hcattention:sub_vector=2"};
    for (size_t i = 0; i < 2; i++) {
        answer *f16, *few, *none;
        pd_err err = {0};
        assert_int_equal(with_types(e, presses[i], PD_KV_NATIVE, PD_KV_NATIVE, &f16, &err), PD_OK);
        static const pd_kv_type types[] = {PD_KV_Q8_0, PD_KV_Q4};
        for (size_t t = 0; t < 2; t++) {
            assert_int_equal(with_types(e, presses[i], PD_KV_NATIVE, types[t], &few, &err), PD_OK);
            assert_true(few->r->kv.bytes < f16->r->kv.bytes && few->logprob[1] != f16->logprob[1]);
            if (!(distance(few, f16) < 1.0)) fail_msg("%s: %g", pd_kv_type_name(types[t]), distance(few, f16));
            case_drop(few);
            pd_err why = {0};
            assert_int_equal(with_types(e, presses[i], types[t], PD_KV_F16, &none, &why), PD_EINVAL);
            assert_true(strstr(why.msg, pd_kv_type_name(types[t])) && strstr(why.msg, "values may have any type"));
        }
        case_drop(f16);
    }
    case_expect_idle(e);
    pd_engine_close(e);
}

static void what_does_not_go_is_refused(void **state) {
    (void)state;
    static const struct {
        const char *press, *says;
    } bad[] = {
        {"hcattention:sub_vector=3", "parts of 2, 4 or 8 numbers and 16 or 256 centroids"},
        {"hcattention:sub_vector=4,centroids=64", "sub_vector is 4 and centroids 64"},
        {"hcattention:sub_vector=16", "sub_vector"},
    }, late[] = {
        {"hcattention:sub_vector=4(knorm)@0.5", "'hcattention' stores keys as codes, which no press inside it may drop ('knorm' does)"},
        {"quest:token_budget=64(hcattention:sub_vector=4)", "one of the two is served at a time"},
        {"quest:token_budget=64(hcattention:sub_vector=4,codes=index)", "by bounds of pages and by codes of keys"},
    };
    pd_engine *e = open_codes(TINY_GEMMA3, PD_COMPUTE_INT8, 1, 0, 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        pd_arena arena = {0};
        pd_spec *spec;
        pd_press_inst *inst = NULL;
        pd_err err = {0};
        double ratio;
        assert_int_equal(pd_spec_parse_text(bad[i].press, "press", &arena, &spec, &ratio, &err), PD_OK);
        if (pd_spec_resolve(spec, &pd_engine_get_info(e)->press_model, &inst, &err) != PD_EINVAL || !strstr(err.msg, bad[i].says))
            fail_msg("%s: '%s' should say '%s'", bad[i].press, err.msg, bad[i].says);
        pd_arena_done(&arena);
    }
    for (size_t i = 0; i < sizeof late / sizeof *late; i++) {
        const ask q = {.tokens = prompt, .n = N, .max_tokens = 4, .press = late[i].press};
        pd_job *job;
        pd_err err = {0};
        if (case_submit(e, &q, &job, &err) != PD_EINVAL || !strstr(err.msg, late[i].says))
            fail_msg("%s: '%s' should say '%s'", late[i].press, err.msg, late[i].says);
    }
    pd_engine_close(e);

    /* without the books the command that makes them; none are asked for where none are needed */
    e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    pd_arena arena = {0};
    pd_spec *spec;
    pd_press_inst *inst = NULL;
    pd_err err = {0};
    double ratio;
    assert_int_equal(pd_spec_parse_text("hcattention:sub_vector=4", "press", &arena, &spec, &ratio, &err), PD_OK);
    assert_int_equal(pd_spec_resolve(spec, &pd_engine_get_info(e)->press_model, &inst, &err), PD_EINVAL);
    assert_non_null(strstr(err.msg, "`pressd calibrate -m MODEL --text FILE --only codes -o DATA`"));
    pd_arena_done(&arena);
    ask q = {.tokens = prompt, .n = N, .max_tokens = 4, .press = "hcattention"};
    case_drop(case_run(e, &q));
    pd_engine_close(e);
}

static pd_engine *open_small(uint64_t kv_bytes) {
    return open_codes(TINY_LLAMA, PD_COMPUTE_INT8, 1, kv_bytes, 0);
}

/* What codes will not need is not reserved: a pool too small for the dense request takes it. */
static void admission_counts_codes(void **state) {
    (void)state;
    case_expect_less_reserved(open_small, &(ask){.tokens = prompt, .n = 600, .max_tokens = 20, .press = "hcattention:sub_vector=8"}, 3);
}

/* A guess that is taken back must not have coded an older key. */
static void guesses_change_nothing(void **state) {
    (void)state;
    static const char *const presses[] = {"hcattention:sub_vector=2,tau=1,window=20", "hcattention:sub_vector=8,tau=1,window=0,centroids=16"};
    int32_t again[N];
    size_t taken = 0;
    for (size_t i = 0; i < N; i++) again[i] = prompt[i % 25] % 9 + 40;
    for (int gemma = 0; gemma < 2; gemma++) {
        const tiny_arch arch = gemma ? TINY_GEMMA3 : TINY_LLAMA;
        pd_engine *none = open_codes(arch, PD_COMPUTE_INT8, 1, 0, 0), *guess = open_codes(arch, PD_COMPUTE_INT8, 1, 0, PD_DRAFT_MAX);
        for (size_t i = 0; i < 2; i++) {
            const ask q = {.tokens = again, .n = N, .max_tokens = 3 * MORE, .logprobs = 3, .press = presses[i]};
            taken += case_expect_same_guessed(none, guess, &q);
        }
        pd_engine_close(none);
        pd_engine_close(guess);
    }
    assert_true(taken > 0);
}

int main(void) {
    case_prompt(prompt, sizeof prompt / sizeof *prompt, 77);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clouds_get_their_centroids),
        cmocka_unit_test(more_centroids_lose_less),
        cmocka_unit_test(bytes_fall_by_the_codes),
        cmocka_unit_test(company_and_threads_change_nothing),
        cmocka_unit_test(coarser_codes_lose_more),
        cmocka_unit_test(steps_equal_plain_ones_over_decoded_keys),
        cmocka_unit_test(an_index_of_everything_changes_nothing),
        cmocka_unit_test(an_index_finds_the_pages),
        cmocka_unit_test(an_index_goes_with_few_bits),
        cmocka_unit_test(few_bits_go_along_for_values),
        cmocka_unit_test(what_does_not_go_is_refused),
        cmocka_unit_test(admission_counts_codes),
        cmocka_unit_test(guesses_change_nothing),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    case_cleanup();
    return failed;
}
