/* SPDX-License-Identifier: Apache-2.0 */
/* think on an engine: what its narrower keys free is what is counted, and the answer is the
 * same whatever else runs.  Which channels go is test_press_golden's business, what is stored
 * test_kv_pack's, and the numbers of real models the golden suite's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compression/spec.h"
#include "engine/base/num.h"
#include "engine/cache/kv.h"
#include "engine/run/job.h"
#include "tests/unit/engine_case.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE = PD_PAGE_TOKENS, N = 210, MORE = 40 };

static int32_t prompt[600];

/* Bytes of a page whose keys keep `channels`. */
static size_t page_of(const pd_engine *e, pd_kv_type type, size_t channels) {
    const size_t d = pd_engine_get_info(e)->head_dim;
    const pd_codec c = pd_codec_of(type, type);
    return pd_codec_page_bytes(&c, pd_kv_pack_width(type, channels, d), d);
}

/* Every ratio, whole and partial scopes: pages of both kinds to the byte, foretold and counted, the
 * reply's ratio, and fewer bytes than dense when whole pages are pressed. */
static void bytes_fall_by_the_channels(void **state) {
    (void)state;
    static const double ratios[] = {0.0, 0.05, 0.3, 0.5, 0.75, 0.96};
    static const size_t lengths[][2] = {{5, 0}, {16, 0}, {33, 20}, {200, 0}, {200, 160}, {201, 7}, {400, 399}};
    for (int gemma = 0; gemma < 2; gemma++) {
        pd_engine *e = case_open(gemma ? TINY_GEMMA3 : TINY_LLAMA, TINY_Q8_0, NULL);
        const size_t d = pd_engine_get_info(e)->head_dim, open_page = pd_engine_get_info(e)->page_bytes, heads = gemma ? 1 : 6;
        for (size_t r = 0; r < sizeof ratios / sizeof *ratios; r++) {
            for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
                if (gemma && lengths[i][1]) continue; /* its windows straddle other pages in two segments */
                const size_t n = lengths[i][0], scope = lengths[i][1] ? lengths[i][1] : n, channels = d - (size_t)((double)d * ratios[r]);
                char text[64];
                snprintf(text, sizeof text, "think:key_channel_compression_ratio=%g", ratios[r]);
                ask q = {.tokens = prompt, .n = n, .max_tokens = 3};
                answer *dense = case_run(e, &q);
                q.press = text;
                q.scope = lengths[i][1];
                answer *a = case_run(e, &q);
                const pd_kv_report *kv = &a->r->kv, *full = &dense->r->kv;
                const bool packs = pd_kv_pack_width(PD_KV_F16, channels, d) < d;
                const size_t pages = pd_div_up(n, PAGE), end = pd_div_up(n + 2, PAGE), packed = packs ? pd_div_up(scope, PAGE) : 0;
                const size_t open = packs ? pd_div_up(n - scope, PAGE) : pages, open_end = packs ? pd_div_up(n - scope + 2, PAGE) : end;
                const size_t page = page_of(e, PD_KV_F16, channels);
                assert_int_equal(kv->bytes_after_prefill, full->bytes_after_prefill - heads * (pages - open) * open_page + heads * packed * page);
                assert_int_equal(kv->bytes, full->bytes - heads * (end - open_end) * open_page + heads * packed * page);
                assert_int_equal(kv->pages, full->pages + heads * (packed + open_end - end));
                assert_true(fabs(kv->ratio - (double)(d - channels) / (double)(2 * d)) < 1e-12);
                assert_true(kv->tokens_kept == full->tokens_kept && kv->tokens_evicted == 0);
                assert_true(kv->bytes_peak <= pd__job_reserved(a->job) + a->job->staging_bytes);
                if (packs && scope == n && n >= 200) assert_true(kv->bytes < full->bytes);
                if (r == 0) case_expect_same(a, dense);
                if (!gemma) { /* a window's pages straddle others than a forecast can know */
                    ask x = q;
                    x.explain = true;
                    answer *told = case_run(e, &x);
                    assert_int_equal(pd_engine_forecast_bytes(e, told->job, 0.0), told->r->kv.bytes);
                    assert_int_equal(told->r->kv.bytes, kv->bytes_after_prefill);
                    case_drop(told);
                }
                case_drop(a);
                case_drop(dense);
                case_expect_idle(e);
            }
        }
        pd_engine_close(e);
    }
}

/* A head's pages and bytes, as the verbose reply has them. */
static void expect_sections(const pd_engine *e, const answer *a, const char *text) {
    const pd_kv_report *kv = &a->r->kv;
    uint64_t bytes = 0, pages = 0;
    for (size_t h = 0; h < kv->n_layer * kv->n_head_kv; h++) {
        const size_t most = (size_t)kv->head_pages[h] * kv->page_bytes;
        if (kv->kept[h] > PAGE * kv->head_pages[h] || kv->head_bytes[h] > most)
            fail_msg("%s: head %zu holds %u slots in %u pages of %llu bytes", text, h, kv->kept[h], kv->head_pages[h],
                     (unsigned long long)kv->head_bytes[h]);
        bytes += kv->head_bytes[h];
        pages += kv->head_pages[h];
    }
    assert_int_equal(bytes, kv->bytes);
    assert_int_equal(pages, kv->pages);
    if (kv->bytes_peak > pd__job_reserved(a->job) + a->job->staging_bytes) fail_msg("%s holds more than was reserved", text);
    case_expect_idle(e);
}

static const char *const company[] = {
    "think:key_channel_compression_ratio=0.5",
    "composed(snapkv:window_size=8@0.4,think:key_channel_compression_ratio=0.5)",
    "composed(think:key_channel_compression_ratio=0.3,knorm@0.6)",
    "composed(think:key_channel_compression_ratio=0.3,merging(keydiff)@0.6)",
    "composed(composed(knorm@0.2,think:key_channel_compression_ratio=0.6),key_rerotation(keydiff)@0.3)",
    "prefill_decoding(think:key_channel_compression_ratio=0.5,decoding:compression_interval=7,target_size=64(knorm))",
    "prefill_decoding(think:key_channel_compression_ratio=0.5,decoding:compression_interval=7,target_size=40(adakv(tova)))",
    "prefill_decoding(composed(knorm@0.5,think:key_channel_compression_ratio=0.7),cam:compression_interval=8,target_size=50(tova))",
    "prefill_decoding(think:key_channel_compression_ratio=0.5,compression_ratio_decoding:compression_interval=9(expected_attention))",
};

enum { TEXTS = sizeof company / sizeof *company };

/* In f32 and f16, on one thread or three, alone, in a batch or as one of several answers. */
static void neither_company_nor_threads_matter(void **state) {
    (void)state;
    for (int c = 0; c < 3; c++) { /* gemma; llama; llama in f32 */
        const tiny_arch arch = c ? TINY_LLAMA : TINY_GEMMA3;
        case_opts o = {.compute = c == 2 ? PD_COMPUTE_F32 : PD_COMPUTE_INT8, .kv_bytes = 64 << 20};
        pd_engine *e = case_open(arch, TINY_Q8_0, &o);
        o.threads = 3;
        pd_engine *three = case_open(arch, TINY_Q8_0, &o);
        const ask q = {.tokens = prompt, .n = N, .max_tokens = MORE, .logprobs = 5, .scope = 170};
        for (size_t i = 0; i < TEXTS; i++) {
            ask x = q; /* explains with the pages of each head */
            x.press = company[i];
            x.explain = true;
            answer *a = case_run(e, &x);
            expect_sections(e, a, company[i]);
            case_drop(a);
        }
        case_expect_company(e, three, &q, company, TEXTS);
        pd_engine_close(e);
        pd_engine_close(three);
    }
}

static double distance(const answer *a, const answer *b) {
    double most = 0.0; /* of the first token's alternatives: the same text so far */
    for (size_t i = 0; i < a->n_top[1]; i++)
        for (size_t j = 0; j < b->n_top[1]; j++)
            if (a->top[1][i].id == b->top[1][j].id) most = fmax(most, fabs((double)a->top[1][i].logprob - (double)b->top[1][j].logprob));
    return most;
}

static pd_compression *with_types(const pd_engine *e, const char *text, pd_kv_type key, pd_kv_type value) {
    pd_arena arena = {0};
    pd_spec *spec;
    pd_err err = {0};
    double ratio;
    pd_compression *c = calloc(1, sizeof *c);
    if (!text) {
        c->kv_key = key;
        c->kv_value = value;
        return c;
    }
    if (pd_spec_parse_text(text, "press", &arena, &spec, &ratio, &err) != PD_OK ||
        pd_spec_resolve(spec, &pd_engine_get_info(e)->press_model, &c->press, &err) != PD_OK)
        fail_msg("%s", err.msg);
    pd_arena_done(&arena);
    c->kv_key = key;
    c->kv_value = value;
    return c;
}

/* Values in few bits beside narrow keys; keys in few bits, whose groups of 32 are all a head has
 * here: the channels that go are 0, and no page is narrower. */
static void few_bits_go_along(void **state) {
    (void)state;
    static const char text[] = "think:key_channel_compression_ratio=0.5";
    pd_engine *e = case_open(TINY_GEMMA3, TINY_F32, NULL);
    ask q = {.tokens = prompt, .n = N, .max_tokens = 4, .logprobs = 50, .press = text};
    answer *f16 = case_run(e, &q);
    q.press = NULL;
    answer *dense = case_run(e, &q);
    assert_true(distance(f16, dense) > 1e-3); /* the channels matter */
    static const pd_kv_type kinds[][2] = {{PD_KV_F16, PD_KV_Q8_0}, {PD_KV_Q8_0, PD_KV_Q8_0}, {PD_KV_Q4, PD_KV_F16}};
    for (size_t k = 0; k < 3; k++) {
        q.comp = with_types(e, NULL, kinds[k][0], kinds[k][1]);
        answer *few = case_run(e, &q);
        q.comp = with_types(e, text, kinds[k][0], kinds[k][1]);
        answer *a = case_run(e, &q);
        const pd_codec c = pd_codec_of(kinds[k][0], kinds[k][1]);
        const size_t open = pd_codec_page_bytes(&c, 32, 32), packed = k ? open : pd_codec_page_bytes(&c, 16, 32);
        assert_int_equal(a->r->kv.page_bytes, open);
        assert_int_equal(a->job->pack_page_bytes, k ? 0 : packed);
        assert_int_equal(a->id[0], f16->id[0]); /* the next is judged on the same text: off as much as without the press */
        const double by_bits = distance(few, dense), by_both = distance(a, f16);
        if (!(by_both > 0.0 && by_both < 3.0 * by_bits)) fail_msg("kind %zu: off by %g, dense by %g", k, by_both, by_bits);
        case_drop(few);
        case_drop(a);
    }
    case_drop(f16);
    case_drop(dense);
    case_expect_idle(e);
    pd_engine_close(e);
}

/* Explaining says what a ratio would leave, in the pages this press makes. */
static void a_forecast_is_what_the_pool_holds(void **state) {
    (void)state;
    static const double ratios[] = {0.0, 0.3, 0.75};
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    for (size_t scope = 0; scope <= 250; scope += 125) {
        ask q = {.tokens = prompt, .n = 300, .scope = scope, .explain = true, .press = "think:key_channel_compression_ratio=0.5"};
        answer *think = case_run(e, &q);
        for (size_t i = 0; i < sizeof ratios / sizeof *ratios; i++) {
            char text[96];
            snprintf(text, sizeof text, "composed(knorm@%g,think:key_channel_compression_ratio=0.5)", ratios[i]);
            q.press = text;
            answer *a = case_run(e, &q);
            assert_int_equal(pd_engine_forecast_bytes(e, think->job, ratios[i]), a->r->kv.bytes);
            case_drop(a);
        }
        case_drop(think);
    }
    pd_engine_close(e);
}

/* A bound in bytes buys more tokens when their keys are narrower. */
static void a_budget_in_bytes_counts_narrow_pages(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_LLAMA, TINY_Q8_0, NULL);
    const size_t page = pd_engine_get_info(e)->page_bytes, narrow = page_of(e, PD_KV_F16, 4);
    ask q = {.tokens = prompt, .n = 300, .press = "composed(knorm,think:key_channel_compression_ratio=0.75)", .budget = PD_BUDGET_BYTES, .amount = 6 * 8 * page};
    answer *a = case_run(e, &q);
    assert_true(a->r->kv.bytes_after_prefill <= q.amount && a->r->kv.bytes_after_prefill + 6 * narrow > q.amount - 6 * narrow);
    assert_true(a->r->kv.tokens_kept > 8 * PAGE + PAGE);
    case_drop(a);
    q.amount = 6 * narrow - 1;
    pd_err err = {0};
    pd_job *job;
    assert_int_equal(case_submit(e, &q, &job, &err), PD_EBUDGET);
    q.amount = 6 * narrow;
    case_drop(case_run(e, &q));
    case_expect_idle(e);
    pd_engine_close(e);
}

static pd_engine *open_small(uint64_t kv_bytes) {
    return case_open(TINY_LLAMA, TINY_Q8_0, &(case_opts){.kv_bytes = kv_bytes});
}

/* What narrow keys will not need is not reserved: a pool too small for the dense request takes it. */
static void admission_counts_narrow_pages(void **state) {
    (void)state;
    case_expect_less_reserved(open_small, &(ask){.tokens = prompt, .n = 600, .max_tokens = 20, .press = "think:key_channel_compression_ratio=0.75"}, 4 /* three eighths, less the pages later tokens begin */);
}

int main(void) {
    case_prompt(prompt, sizeof prompt / sizeof *prompt, 77);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_fall_by_the_channels),
        cmocka_unit_test(neither_company_nor_threads_matter),
        cmocka_unit_test(few_bits_go_along),
        cmocka_unit_test(a_forecast_is_what_the_pool_holds),
        cmocka_unit_test(a_budget_in_bytes_counts_narrow_pages),
        cmocka_unit_test(admission_counts_narrow_pages),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    case_cleanup();
    return failed;
}
