/* SPDX-License-Identifier: Apache-2.0 */
/* Forced decode steps (see forced.h). */
#include "tests/golden/forced.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void stop(const char *what, const pd_err *err) {
    fprintf(stderr, "%s: %s\n", what, err->msg);
    exit(1);
}

static char *read_all(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    char *text = malloc(1 << 20);
    *n = f && text ? fread(text, 1, 1 << 20, f) : 0;
    if (f) fclose(f);
    return text;
}

pd_engine *forced_open(const char *model, const char *press_data, size_t context, size_t forced, size_t n_kind) {
    const char *compute = getenv("PRESSD_KV_COMPUTE"), *mask = getenv("PRESSD_KV_CPU_MASK"), *threads = getenv("PRESSD_KV_THREADS");
    pd_err err = {0};
    pd_engine_opts o = {.model_path = model, .compute = compute && strcmp(compute, "f32") == 0 ? PD_COMPUTE_F32 : PD_COMPUTE_INT8,
                        .n_threads = threads ? (unsigned)strtoul(threads, NULL, 10) : 0, .cpu_mask = ~0u, .ctx_size = context + forced, .parallel = (unsigned)n_kind, .press_data = press_data};
    pd_engine *e;
    if (mask && pd_cpu_mask_parse(mask, &o.cpu_mask, &err) != PD_OK) stop(mask, &err);
    if (pd_engine_open(&e, &o, NULL, NULL, &err) != PD_OK) stop(model, &err);
    while (!atomic_load(&e->c_alive)) usleep(100); /* its thread trims the pools once, and then sleeps */
    return e;
}

static pd_compression *wish(const pd_engine *e, const forced_kind *kind) {
    pd_compression *c = calloc(1, sizeof *c);
    if (!c) abort();
    c->kv_key = kind->key;
    c->kv_value = kind->value;
    c->ratio = kind->ratio;
    if (!kind->press) return c;
    pd_err err = {0};
    pd_arena arena = {0};
    pd_spec *spec;
    pd_press_inst *inst;
    double ratio;
    if (pd_spec_parse_text(kind->press, "press", &arena, &spec, &ratio, &err) != PD_OK ||
        pd_spec_resolve(spec, &pd_engine_get_info(e)->press_model, &inst, &err) != PD_OK ||
        pd_compression_take(c, inst, "press", &err) != PD_OK)
        stop(kind->press, &err);
    pd_arena_done(&arena);
    return c;
}

/* A sequence with the context in its cache. */
static void start(pd_engine *e, pd_seq *s, const int32_t *ids, size_t context, size_t forced, const forced_kind *kind) {
    pd_err err = {0};
    const pd_job_params p = {.tokens = ids, .n_tokens = context, .max_tokens = forced, .max_given = true,
                             .n_logprobs = -1, .compression = wish(e, kind)};
    pd_job *job;
    if (pd__job_new(&job, &p, e->tok, forced, &err) != PD_OK ||
        pd_admit_plan(job, &e->model->hp, &p, e->run.codec.key, &err) != PD_OK ||
        pd_seq_open(s, &e->run, job, &err) != PD_OK)
        stop("start", &err);
    pd_job_unref(job); /* the sequence has its own */
    pd_prefill pre;
    bool done = false;
    pd_status rc = pd_prefill_open(&pre, s, &err);
    while (rc == PD_OK && !done) rc = pd_prefill_unit(&pre, PD_TILE, &done, &err);
    if (rc != PD_OK) stop("prefill", &err);
    pd_prefill_close(&pre);
}

/* log sum exp of a row, and where its largest is. */
static double log_sum(const float *x, size_t n, size_t *at) {
    *at = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[*at]) *at = i;
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) sum += exp((double)x[i] - (double)x[*at]);
    return (double)x[*at] + log(sum);
}

/* KL(full || x); z and zx are their log sums. */
static double divergence(const float *full, double z, const float *x, double zx, size_t n) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        const double lp = (double)full[i] - z;
        sum += exp(lp) * (lp - ((double)x[i] - zx));
    }
    return sum;
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The tokens of a text, as many as are needed or more. */
static void take_text(const pd_engine *e, const char *path, size_t need, pd_ids *ids) {
    pd_err err = {0};
    size_t n_text;
    char *text = read_all(path, &n_text);
    if (pd_tokenize(e->tok, text, n_text, PD_TOK_BOS, ids, &err) != PD_OK) stop(path, &err);
    free(text);
    if (ids->n >= need) return;
    fprintf(stderr, "%s has %zu tokens; %zu are needed\n", path, ids->n, need);
    exit(1);
}

void forced_run(pd_engine *e, const char *path, size_t context, size_t forced, const forced_kind *kind, size_t n_kind,
                forced_result *result) {
    pd_err err = {0};
    pd_ids ids = {0};
    take_text(e, path, context + forced, &ids);
    pd_seq *seq = calloc(n_kind, sizeof *seq), **row = calloc(n_kind, sizeof *row);
    double *kl = calloc(n_kind * forced, sizeof *kl);
    if (!seq || !row || !kl) abort();
    memset(result, 0, n_kind * sizeof *result);
    for (size_t k = 0; k < n_kind; k++) start(e, row[k] = &seq[k], ids.id, context, forced, &kind[k]);
    const size_t n = e->model->hp.n_vocab;
    for (size_t t = 0; t < forced; t++) {
        for (size_t k = 0; k < n_kind; k++) seq[k].next = ids.id[context + t];
        size_t bad, best, top;
        if (pd_decode_step(&e->run, row, n_kind, &bad, &err) != PD_OK) stop("step", &err);
        const float *full = e->run.logits;
        const double z = log_sum(full, n, &best);
        for (size_t k = 0; k < n_kind; k++) {
            const float *x = full + k * n;
            const double zx = log_sum(x, n, &top);
            kl[k * forced + t] = divergence(full, z, x, zx, n);
            result[k].kl_mean += kl[k * forced + t] / (double)forced;
            result[k].same_top += (top == best) / (double)forced;
            if (pd_presser_step(&seq[k], &err) != PD_OK) stop("press", &err);
        }
    }
    for (size_t k = 0; k < n_kind; k++) {
        qsort(kl + k * forced, forced, sizeof *kl, by_size);
        result[k].kl_p99 = kl[k * forced + forced * 99 / 100];
        result[k].bytes = pd_kv_bytes(&seq[k].kv);
        for (size_t l = 0; l < seq[k].select.n_layer && seq[k].select.rows; l++) {
            result[k].rows += seq[k].select.rows[l];
            result[k].rows_key += seq[k].select.keys[l];
            result[k].rows_value += seq[k].select.values[l];
        }
        pd_seq_close(&seq[k], PD_FINISH_LENGTH, NULL);
    }
    free(seq);
    free(row);
    free(kl);
    pd_ids_done(&ids);
}

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

void forced_time(pd_engine *e, const char *path, size_t context, size_t rounds, size_t steps, const forced_kind *kind,
                 size_t n_kind, double *ms) {
    pd_err err = {0};
    pd_ids ids = {0};
    take_text(e, path, context + rounds * steps, &ids);
    pd_seq *seq = calloc(n_kind, sizeof *seq);
    double *took = calloc(n_kind * rounds, sizeof *took);
    if (!seq || !took) abort();
    for (size_t k = 0; k < n_kind; k++) start(e, &seq[k], ids.id, context, rounds * steps, &kind[k]);
    for (size_t r = 0; r < rounds; r++) {
        for (size_t k = 0; k < n_kind; k++) {
            pd_seq *row = &seq[k];
            const double from = now_ms();
            for (size_t t = 0; t < steps; t++) {
                size_t bad;
                row->next = ids.id[context + r * steps + t];
                if (pd_decode_step(&e->run, &row, 1, &bad, &err) != PD_OK) stop("step", &err);
                if (pd_presser_step(row, &err) != PD_OK) stop("press", &err);
            }
            took[k * rounds + r] = (now_ms() - from) / (double)steps;
        }
    }
    for (size_t k = 0; k < n_kind; k++) {
        qsort(took + k * rounds, rounds, sizeof *took, by_size);
        ms[k] = took[k * rounds + rounds / 2];
        pd_seq_close(&seq[k], PD_FINISH_LENGTH, NULL);
    }
    free(seq);
    free(took);
    pd_ids_done(&ids);
}
