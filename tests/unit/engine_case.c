/* SPDX-License-Identifier: Apache-2.0 */
/* See engine_case.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/engine_case.h"

#include "engine/base/clock.h"
#include "engine/base/rng.h"
#include "engine/run/state.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[] = "/tmp/pressd-engine-XXXXXX";
static bool have_dir, written[2][4];
static char path[2][4][64];

const char *case_model(tiny_arch arch, tiny_type type) {
    if (!have_dir) {
        assert_non_null(mkdtemp(dir));
        have_dir = true;
    }
    if (!written[arch][type]) {
        snprintf(path[arch][type], sizeof path[arch][type], "%s/%d-%d.gguf", dir, (int)arch, (int)type);
        assert_true(tiny_model_write(path[arch][type], arch, type, 42));
        written[arch][type] = true;
    }
    return path[arch][type];
}

void case_cleanup(void) {
    for (size_t a = 0; a < 2; a++)
        for (size_t t = 0; t < 4; t++)
            if (written[a][t]) unlink(path[a][t]);
    if (have_dir) rmdir(dir);
}

int case_group_end(void **state) {
    (void)state;
    case_cleanup();
    return 0;
}

/* A file of what o->data makes; path is a template of mkstemp. */
static void write_data(const char *model_path, const case_opts *o, char *data_path) {
    pd_err err = {0};
    pd_gguf *g;
    uint64_t key = 0;
    pd_hparams hp;
    const int fd = mkstemp(data_path);
    assert_true(fd >= 0);
    close(fd);
    if (pd_gguf_open(&g, model_path, &err) != PD_OK || pd_model_key(g, &key, &err) != PD_OK || pd_model_hparams(g, NULL, &hp, &err) != PD_OK)
        fail_msg("%s", err.msg);
    const pd_press_model model = {.n_layer = hp.n_layer, .n_head = hp.n_head, .n_head_kv = hp.n_head_kv, .head_dim = hp.head_dim,
                                  .n_embd = hp.n_embd, .n_ff = hp.n_ff};
    pd_press_data *d = o->data(&model, key, g, o->data_arg);
    if (pd_press_data_save(d, data_path, "tiny", &err) != PD_OK) fail_msg("%s", err.msg);
    pd_press_data_close(d);
    pd_gguf_close(g);
}

pd_engine *case_open(tiny_arch arch, tiny_type type, const case_opts *o) {
    static const case_opts none;
    if (!o) o = &none;
    char data_path[] = "/tmp/pressd-test-data-XXXXXX";
    if (o->data) write_data(case_model(arch, type), o, data_path);
    const pd_engine_opts opts = {
        .model_path = case_model(arch, type), .compute = o->compute,
        .n_threads = o->threads ? o->threads : 1, .cpu_mask = o->scalar ? 0 : ~0u, .ctx_size = o->ctx,
        .parallel = o->parallel ? o->parallel : 16, .kv_bytes = o->kv_bytes ? o->kv_bytes : 8u << 20,
        .queue_max = o->queue, .draft_tokens = o->draft_tokens, .press_data = o->data ? data_path : NULL,
    };
    pd_engine *e = NULL;
    pd_err err = {0};
    if (pd_engine_open(&e, &opts, NULL, NULL, &err) != PD_OK) fail_msg("%s", err.msg);
    if (o->data) unlink(data_path);
    return e;
}

void case_prompt(int32_t *ids, size_t n, uint64_t seed) {
    pd_rng rng = {seed};
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)(pd_rng_u64(&rng) % 256);
}

static pd_press_inst *press_of(const pd_engine *e, const char *text, double *ratio) {
    pd_arena arena = {0};
    pd_spec *spec = NULL;
    pd_press_inst *inst = NULL;
    pd_err err = {0};
    if (pd_spec_parse_text(text, "press", &arena, &spec, ratio, &err) != PD_OK ||
        pd_spec_resolve(spec, &pd_engine_get_info(e)->press_model, &inst, &err) != PD_OK)
        fail_msg("%s", err.msg);
    pd_arena_done(&arena);
    return inst;
}

static pd_compression *compression_of(const pd_engine *e, const ask *a) {
    if (a->comp) return a->comp;
    if (!a->press && !a->decode && !a->kv_key && !a->kv_value) return NULL;
    pd_compression *c = calloc(1, sizeof *c);
    double ratio = NAN;
    pd_err err = {0};
    if (a->press && pd_compression_take(c, press_of(e, a->press, &ratio), "press", &err) != PD_OK) fail_msg("%s", err.msg);
    c->budget = a->budget;
    if (!c->has_ratio) c->ratio = isnan(ratio) ? 0.0 : ratio;
    c->amount = a->amount;
    c->scope = a->scope ? PD_SCOPE_TOKENS : PD_SCOPE_PROMPT;
    c->scope_tokens = a->scope;
    c->min_tokens = a->min_tokens;
    c->protect_system = a->protect;
    c->seed = a->press_seed;
    c->kv_key = a->kv_key;
    c->kv_value = a->kv_value;
    if (a->decode && pd_compression_decode_every(c, press_of(e, a->decode, &ratio), a->interval, a->target, (double)NAN,
                                                 "decode", &err) != PD_OK)
        fail_msg("%s", err.msg);
    return c;
}

void (*case_before_submit)(void);

pd_status case_submit(pd_engine *e, const ask *a, pd_job **job, pd_err *err) {
    return case_submit_n(e, a, 1, job, err);
}

pd_status case_submit_n(pd_engine *e, const ask *a, size_t n, pd_job **job, pd_err *err) {
    pd_choice choice[PD_CHOICES_MAX + 1] = {0};
    for (size_t i = 0; i < n; i++) choice[i].seed = a->seed + i;
    pd_job_params p = {
        .tokens = a->tokens, .n_tokens = a->n, .max_tokens = a->max_tokens, .max_given = true,
        .sampling = {.temperature = a->temperature, .top_p = 1.0f, .seed = a->seed},
        .stop_id = a->stop_id, .n_stop_id = a->n_stop_id, .adjust = a->adjust, .grammar = a->grammar,
        .n_logprobs = a->logprobs ? a->logprobs : -1, .ignore_eos = !a->keep_eos,
        .score = a->score, .score_top = a->score_top, .pool = a->pool,
        .explain = a->explain, .explain_scores = a->scores, .verbose = true,
        .has_marks = a->protect, .marks = {.system_begin = a->system_begin, .system_end = a->system_end},
        .compression = compression_of(e, a),
    };
    if (a->stop) {
        p.stop[0].text = a->stop;
        p.stop[0].len = strlen(a->stop);
        p.n_stop = 1;
    }
    pd_compression *compare[PD_COMPARE_MAX + 1];
    for (; a->compare && a->compare[p.n_compare]; p.n_compare++) {
        const ask member = {.press = a->compare[p.n_compare], .scope = a->scope};
        compare[p.n_compare] = compression_of(e, &member);
    }
    p.compare = compare;
    if (case_before_submit) case_before_submit();
    const pd_status rc = n == 1 ? pd_engine_submit(e, &p, job, err) : pd_engine_submit_n(e, &p, n, choice, job, err);
    if (rc != PD_OK) { /* taken on success only */
        pd_compression_close(p.compression);
        for (size_t i = 0; i < p.n_compare; i++) pd_compression_close(compare[i]);
    }
    return rc;
}

answer *case_wait(pd_job *job) {
    const uint64_t t0 = pd_now_ns();
    while (pd_job_get_state(job) != PD_JOB_DONE) {
        if (pd_ms_since(t0) > 120e3) fail_msg("a job did not end within two minutes");
        usleep(100);
    }
    answer *a = calloc(1, sizeof *a);
    a->job = job;
    a->r = pd_job_get_result(job);
    static pd_token_event ev[CASE_TOKENS_MAX];
    size_t tail;
    a->n = pd_job_take(job, ev, CASE_TOKENS_MAX, &a->text, &tail);
    for (size_t i = 0; i < a->n; i++) {
        a->id[i] = ev[i].id;
        a->logprob[i] = ev[i].logprob;
        a->top[i] = ev[i].top;
        a->n_top[i] = ev[i].n_top;
    }
    return a;
}

answer *case_run(pd_engine *e, const ask *a) {
    pd_job *job = NULL;
    pd_err err = {0};
    if (case_submit(e, a, &job, &err) != PD_OK) fail_msg("%s", err.msg);
    answer *r = case_wait(job);
    if (r->r->finish == PD_FINISH_ERROR) fail_msg("%s", r->r->err.msg);
    return r;
}

void case_drop(answer *a) {
    pd_buf_done(&a->text);
    pd_job_unref(a->job);
    free(a);
}

void case_expect_same(const answer *a, const answer *b) {
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->id, b->id, a->n * sizeof *a->id);
    assert_memory_equal(a->logprob, b->logprob, a->n * sizeof *a->logprob);
    assert_int_equal(a->text.len, b->text.len);
    if (a->text.len) assert_memory_equal(a->text.data, b->text.data, a->text.len);
}

static void expect_same_cache(const answer *a, const answer *b) {
    case_expect_same(a, b);
    assert_int_equal(a->r->kv.bytes, b->r->kv.bytes);
    assert_int_equal(a->r->kv.bytes_after_prefill, b->r->kv.bytes_after_prefill);
    assert_true(a->r->kv.ratio == b->r->kv.ratio);
}

void case_expect_company(pd_engine *e, pd_engine *three, const ask *like, const char *const *press, size_t n) {
    assert_true(n <= CASE_COMPANY_MAX);
    ask q[CASE_COMPANY_MAX];
    answer *alone[CASE_COMPANY_MAX];
    pd_job *job[CASE_COMPANY_MAX][2];
    pd_err err = {0};
    for (size_t i = 0; i < n; i++) {
        q[i] = *like;
        q[i].press = press[i];
        if (i % 2) q[i].scope = 0;
        alone[i] = case_run(e, &q[i]);
        answer *b = case_run(three, &q[i]);
        expect_same_cache(b, alone[i]);
        case_drop(b);
    }
    for (size_t i = 0; i < n; i++)
        if (case_submit_n(e, &q[i], 2, job[i], &err) != PD_OK) fail_msg("%s: %s", press[i], err.msg);
    for (size_t i = 0; i < n; i++) {
        for (int k = 0; k < 2; k++) {
            answer *a = case_wait(job[i][k]);
            expect_same_cache(a, alone[i]);
            case_drop(a);
        }
        case_drop(alone[i]);
    }
    case_expect_idle(e);
    case_expect_idle(three);
}

void case_expect_less_reserved(case_opener open, const ask *like, uint64_t part) {
    pd_engine *e = open(0);
    ask q = *like;
    q.press = NULL;
    answer *dense = case_run(e, &q);
    const uint64_t need = pd__job_reserved(dense->job) + dense->job->staging_bytes;
    case_drop(dense);
    answer *a = case_run(e, like);
    const uint64_t less = pd__job_reserved(a->job) + a->job->staging_bytes;
    assert_true(need > less && part * (need - less) > pd__job_reserved(a->job));
    assert_true(pd__job_promised(a->job) >= a->r->kv.bytes && pd__job_promised(a->job) <= pd__job_reserved(a->job));
    case_drop(a);
    pd_engine_close(e);

    e = open((need + less) / 2);
    pd_err err = {0};
    pd_job *job;
    case_drop(case_run(e, like));
    assert_int_equal(case_submit(e, &q, &job, &err), PD_EBUDGET);
    case_expect_idle(e);
    pd_engine_close(e);
}

size_t case_expect_same_guessed(pd_engine *none, pd_engine *guess, const ask *q) {
    answer *a = case_run(none, q), *b = case_run(guess, q);
    const size_t taken = b->r->timing.draft_n_accepted;
    case_expect_same(a, b);
    assert_int_equal(a->r->kv.bytes, b->r->kv.bytes);
    case_drop(a);
    case_drop(b);
    case_expect_idle(guess);
    return taken;
}

void case_expect_idle(const pd_engine *e) {
    pd_engine_stats s;
    for (int i = 0;; i++) { /* the engine thread counts itself out after DONE */
        pd_engine_get_stats(e, &s);
        if ((s.running == 0 && s.kv_bytes_staging == 0 && s.kv_bytes_dense == 0) || i == 20000) break;
        usleep(100);
    }
    assert_int_equal(s.pages_total, s.pages_free + s.pages_seq + s.pages_store);
    assert_int_equal(s.pages_free, s.pages_total);
    assert_int_equal(s.running, 0);
    assert_int_equal(s.waiting, 0);
    assert_int_equal(s.kv_bytes_resident, 0);
    assert_int_equal(s.kv_bytes_staging, 0);
    assert_int_equal(s.kv_bytes_dense, 0);
}
