/* SPDX-License-Identifier: Apache-2.0 */
/* What it costs to store the cache in fewer bits, on a real model.
 *
 *     golden_kv_types MODEL TEXT...
 *
 * Of each text 1,536 tokens are read and 512 more are forced, one decode step each, by
 * a batch with one sequence for each kind of cache; the next token's distribution is
 * compared with that of the native cache: f32 with PRESSD_KV_COMPUTE=f32, else f16, where
 * the integer arithmetic of the layers alone moves it by about 0.006.  Prints CSV (mean
 * and 99th percentile of KL(native || type) in nats, how often the likeliest token is the
 * same, bytes over the native bytes) and judges the means.  Ends in `N passed, N failed`.
 * About a minute a text on one core. */
#include "engine/run/state.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONTEXT = 1536, FORCED = 512, KINDS = 5 };

static const struct {
    const char *name;
    pd_kv_type key, value;
    double limit; /* of the mean KL */
} kinds[KINDS] = {
    {"native", PD_KV_NATIVE, PD_KV_NATIVE, 0},
    {"q8_0", PD_KV_Q8_0, PD_KV_Q8_0, 1e-3},
    {"q4", PD_KV_Q4, PD_KV_Q4, 1e-2},
    {"q8_0/q4", PD_KV_Q8_0, PD_KV_Q4, 1e-2},
    {"q4/q8_0", PD_KV_Q4, PD_KV_Q8_0, 1e-2},
};

static int passed, failed;

static void stop(const char *what, const pd_err *err) {
    fprintf(stderr, "golden_kv_types: %s: %s\n", what, err->msg);
    exit(1);
}

static char *read_all(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    char *text = malloc(1 << 20);
    *n = f && text ? fread(text, 1, 1 << 20, f) : 0;
    if (f) fclose(f);
    return text;
}

/* A sequence with the context in its cache. */
static void start(pd_engine *e, pd_seq *s, const int32_t *ids, int kind) {
    pd_err err = {0};
    pd_compression *c = calloc(1, sizeof *c);
    c->kv_key = kinds[kind].key;
    c->kv_value = kinds[kind].value;
    const pd_job_params p = {.tokens = ids, .n_tokens = CONTEXT, .max_tokens = FORCED, .max_given = true,
                             .n_logprobs = -1, .compression = c};
    pd_job *job;
    if (pd__job_new(&job, &p, e->tok, FORCED, &err) != PD_OK ||
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

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(pd_engine *e, const char *path) {
    static pd_seq seq[KINDS];
    static double kl[KINDS][FORCED];
    pd_seq *row[KINDS];
    int same[KINDS] = {0};
    pd_err err = {0};
    size_t n_text;
    char *text = read_all(path, &n_text);
    pd_ids ids = {0};
    if (pd_tokenize(e->tok, text, n_text, PD_TOK_BOS, &ids, &err) != PD_OK) stop(path, &err);
    if (ids.n < CONTEXT + FORCED) {
        fprintf(stderr, "golden_kv_types: %s has %zu tokens; %d are needed\n", path, ids.n, CONTEXT + FORCED);
        exit(1);
    }
    for (int k = 0; k < KINDS; k++) start(e, row[k] = &seq[k], ids.id, k);
    const size_t n = e->model->hp.n_vocab;
    for (size_t t = 0; t < FORCED; t++) {
        size_t bad, top[KINDS];
        for (int k = 0; k < KINDS; k++) seq[k].next = ids.id[CONTEXT + t];
        if (pd_decode_step(&e->run, row, KINDS, &bad, &err) != PD_OK) stop("step", &err);
        const float *full = e->run.logits;
        const double z = log_sum(full, n, &top[0]);
        for (int k = 1; k < KINDS; k++) {
            const float *x = full + (size_t)k * n;
            const double zk = log_sum(x, n, &top[k]);
            double sum = 0.0;
            for (size_t i = 0; i < n; i++) {
                const double lp = (double)full[i] - z;
                sum += exp(lp) * (lp - ((double)x[i] - zk));
            }
            kl[k][t] = sum;
            same[k] += top[k] == top[0];
        }
    }
    for (int k = 1; k < KINDS; k++) {
        double mean = 0.0;
        for (size_t t = 0; t < FORCED; t++) mean += kl[k][t] / FORCED;
        qsort(kl[k], FORCED, sizeof kl[k][0], by_size);
        const bool good = mean <= kinds[k].limit;
        printf("%s,%s,%.6f,%.6f,%.3f,%.4f%s\n", path, kinds[k].name, mean, kl[k][FORCED * 99 / 100],
               (double)same[k] / FORCED, (double)pd_kv_bytes(&seq[k].kv) / (double)pd_kv_bytes(&seq[0].kv),
               good ? "" : ",above the limit");
        fflush(stdout);
        *(good ? &passed : &failed) += 1;
    }
    for (int k = 0; k < KINDS; k++) pd_seq_close(&seq[k], PD_FINISH_LENGTH, NULL);
    pd_ids_done(&ids);
    free(text);
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: golden_kv_types MODEL TEXT...\n");
        return 2;
    }
    const char *compute = getenv("PRESSD_KV_COMPUTE"), *mask = getenv("PRESSD_KV_CPU_MASK");
    pd_err err = {0};
    pd_engine_opts o = {.model_path = argv[1], .compute = compute && strcmp(compute, "f32") == 0 ? PD_COMPUTE_F32 : PD_COMPUTE_INT8,
                        .cpu_mask = ~0u, .ctx_size = CONTEXT + FORCED, .parallel = KINDS};
    pd_engine *e;
    if (mask && pd_cpu_mask_parse(mask, &o.cpu_mask, &err) != PD_OK) stop(mask, &err);
    if (pd_engine_open(&e, &o, NULL, NULL, &err) != PD_OK) stop(argv[1], &err);
    printf("text,kv_type,kl_mean,kl_p99,same_top,bytes\n");
    /* The engine's own thread sleeps while nobody submits. */
    for (int i = 2; i < argc; i++) measure(e, argv[i]);
    pd_engine_close(e);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
