/* SPDX-License-Identifier: Apache-2.0 */
/* What product codes of keys cost on a real model (hcattention, sub_vector).
 *
 *     golden_codes MODEL DATA TEXT...
 *
 * Scores first: of 1,536 tokens of each text the last queries of every head, and Spearman's rank
 * correlation of what their tables give the keys before them with what the keys themselves do; the
 * median over heads for each book.  Then steps (forced.h): 1,536 tokens are read and 512 forced with
 * keys in each kind of code, all values read or not; mean KL in nats, and bytes to the page.
 * Prints CSV.  Judged: Spearman >= 0.98 in parts of two and 0.95 in parts of four, mean KL by its
 * limit (codes as an index too, beside f16 and q4 keys), each step of the staircase (2, 4, 8 numbers a code, 256 and 16 centroids) above the one
 * before, bytes.  Ends in `N passed, N failed`.  A minute or two a text on one core. */
#include "tests/golden/forced.h"

#include "engine/base/num.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CONTEXT = 1536, FORCED = 512, QUERIES = 8, WINDOW = 64 };

static int passed, failed;

static const char *judge(bool good) {
    *(good ? &passed : &failed) += 1;
    return good ? "" : ",out of its limits";
}

/* ---- scores ---- */

static const double least_rho[PD_BOOKS] = {0.98, 0.95, 0, 0, 0, 0};

typedef struct {
    const pd_press_data *data;
    const pd_kernels *kern;
    double *rho[PD_BOOKS]; /* [n_layer * n_head], mean over queries; 0 before */
} probe;

static float *by;

static int by_value(const void *a, const void *b) {
    const float x = by[*(const uint32_t *)a], y = by[*(const uint32_t *)b];
    return (x > y) - (x < y);
}

/* Ranks; equal numbers share the mean of theirs. */
static void ranks(float *x, size_t n, double *rank) {
    uint32_t *at = malloc(n * sizeof *at);
    if (!at) abort();
    for (size_t i = 0; i < n; i++) at[i] = (uint32_t)i;
    by = x;
    qsort(at, n, sizeof *at, by_value);
    for (size_t i = 0, e; i < n; i = e) {
        for (e = i + 1; e < n && x[at[e]] == x[at[i]];) e++;
        for (size_t k = i; k < e; k++) rank[at[k]] = 0.5 * (double)(i + e - 1);
    }
    free(at);
}

static double spearman(float *a, float *b, size_t n) {
    double *ra = malloc(2 * n * sizeof *ra), *rb = ra + n, xy = 0.0, xx = 0.0, yy = 0.0;
    const double mean = 0.5 * (double)(n - 1);
    if (!ra) abort();
    ranks(a, n, ra);
    ranks(b, n, rb);
    for (size_t i = 0; i < n; i++) {
        xy += (ra[i] - mean) * (rb[i] - mean);
        xx += (ra[i] - mean) * (ra[i] - mean);
        yy += (rb[i] - mean) * (rb[i] - mean);
    }
    free(ra);
    return xy / sqrt(xx * yy);
}

static void needs(const pd_press_inst *inst, pd_press_needs *n) {
    n->bits |= PD_NEEDS_Q_TAIL;
    n->q_tail = pd_max_size(n->q_tail, QUERIES);
}

/* The scores that codes give: a page at a time, as the engine does it. */
static void code_scores(const probe *p, const pd_book *b, const float *q, const float *k, size_t n, float *out) {
    const size_t d = b->head_dim, n_code = pd_book_codes(b);
    const pd_codec codec = pd_codec_of(b->n_centroid > 16 ? PD_KV_CODES8 : PD_KV_CODES4, PD_KV_F16);
    uint8_t *table = malloc(n_code * b->n_centroid), page[PD_PAGE_TOKENS * PD_CODES_MAX];
    float least, step, row[PD_BOOK_DIM_MAX], tmp[PD_PAGE_TOKENS];
    if (!table) abort();
    pd_book_table(b, p->kern, q, table, &least, &step);
    for (size_t i = 0; i < n; i += PD_PAGE_TOKENS) {
        const size_t some = pd_min_size(PD_PAGE_TOKENS, n - i);
        memset(page, 0, sizeof page);
        for (size_t s = 0; s < some; s++) {
            pd_book_encode(b, p->kern, k + (i + s) * d, row);
            codec.k->write(p->kern, page, n_code, s, 1, row, n_code);
        }
        const void *pages[1] = {page};
        const pd_code_pass pass = {.pages = pages, .n_page = 1, .n_code = n_code, .n_group = 1, .table = table, .least = &least,
                                   .step = &step, .tmp = tmp, .tmp_stride = PD_PAGE_TOKENS};
        (b->n_centroid > 16 ? p->kern->scores_codes8 : p->kern->scores_codes4)(&pass);
        memcpy(out + i, tmp, some * sizeof *out);
    }
    free(table);
}

static pd_status plan(const pd_press_inst *inst, const pd_view *view, const pd_budget *budget, pd_plan *ret, pd_err *err) {
    probe *p = inst->state;
    const size_t d = view->head_dim, group = view->n_head / view->n_head_kv, n = view->n - QUERIES;
    float *exact = malloc(2 * n * sizeof *exact), *coded = exact + n;
    if (!exact) abort();
    for (size_t i = 0; i < PD_BOOKS * view->n_head; i++) {
        const size_t h = i % view->n_head, kv = h / group, b = i / view->n_head;
        const pd_book book = {d, pd_books[b].sub, pd_books[b].n_centroid,
                              pd_press_data_get(p->data, (pd_data_id)(PD_DATA_BOOK + b)) + ((size_t)view->layer * view->n_head_kv + kv) * d * pd_books[b].n_centroid,
                              pd_press_data_get(p->data, PD_DATA_BOOK_WEIGHT) + ((size_t)view->layer * view->n_head_kv + kv) * (d / 2)};
        for (size_t r = 0; r < QUERIES; r += QUERIES - 1) {
            const float *q = view->q + ((view->q_rows - QUERIES + r) * view->n_head + h) * d;
            for (size_t s = 0; s < n; s++) exact[s] = p->kern->dot_f32(q, view->k[kv] + s * d, d);
            code_scores(p, &book, q, view->k[kv], n, coded);
            p->rho[b][(size_t)view->layer * view->n_head + h] += 0.5 * spearman(exact, coded, n);
        }
    }
    free(exact);
    *ret = (pd_plan){.keep_all = true};
    return PD_OK;
}

static const pd_press probing = {.name = "probe", .kind = "planner", .own_budget = true, .needs = needs, .plan = plan};

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void on_job(void *arg, pd_job *job) {
    (void)arg;
    (void)job;
}

static void stop(const char *what, const pd_err *err) {
    fprintf(stderr, "%s: %s\n", what, err->msg);
    exit(1);
}

static void probe_text(pd_engine *e, const char *path) {
    static char text[1 << 16];
    FILE *f = fopen(path, "rb");
    const size_t len = f ? fread(text, 1, sizeof text, f) : 0, heads = e->model->hp.n_layer * e->model->hp.n_head;
    if (f) fclose(f);
    pd_err err = {0};
    pd_ids ids = {0};
    if (pd_tokenize(e->tok, text, len, PD_TOK_BOS, &ids, &err) != PD_OK || ids.n < CONTEXT) stop(path, &err);
    probe p = {.data = e->press_data, .kern = &e->kern};
    for (size_t b = 0; b < PD_BOOKS; b++)
        if (!(p.rho[b] = calloc(heads, sizeof(double)))) abort();
    pd_compression *c = calloc(1, sizeof *c);
    if (!c || !(c->press = calloc(1, sizeof *c->press))) abort();
    c->press->press = &probing;
    c->press->state = &p;
    const pd_job_params params = {.tokens = ids.id, .n_tokens = CONTEXT, .max_given = true, .n_logprobs = -1, .compression = c, .notify = on_job};
    pd_job *job;
    if (pd_engine_submit(e, &params, &job, &err) != PD_OK) stop("submit", &err);
    while (pd_job_get_state(job) != PD_JOB_DONE) usleep(1000);
    pd_job_unref(job);
    for (size_t b = 0; b < PD_BOOKS; b++) {
        size_t n = 0;
        for (size_t i = 0; i < heads; i++) /* layers that are never pressed were not shown */
            if (p.rho[b][i] != 0.0) p.rho[b][n++] = p.rho[b][i];
        qsort(p.rho[b], n, sizeof(double), by_size);
        const double median = n ? p.rho[b][n / 2] : 0.0;
        printf("%s,spearman %zu of %zu,%.4f,%.4f%s\n", path, pd_books[b].sub, pd_books[b].n_centroid, median, n ? p.rho[b][n / 10] : 0.0,
               least_rho[b] > 0.0 ? judge(median >= least_rho[b]) : "");
        fflush(stdout);
        free(p.rho[b]);
    }
    pd_ids_done(&ids);
}

/* ---- steps ---- */

/* .over: the mean over the texts is above that of the kind before. */
static const forced_kind kinds[] = {
    {.name = "native"},
    {.name = "2 of 256", .press = "hcattention:tau=1,sub_vector=2", .limit = 0.05},
    {.name = "4 of 256", .press = "hcattention:tau=1,sub_vector=4", .limit = 0.15, .over = true},
    {.name = "8 of 256", .press = "hcattention:tau=1,sub_vector=8", .over = true},
    {.name = "2 of 16", .press = "hcattention:tau=1,sub_vector=2,centroids=16", .limit = 0.4},
    {.name = "4 of 16", .press = "hcattention:tau=1,sub_vector=4,centroids=16", .over = true},
    {.name = "2 of 256, some values", .press = "hcattention:sub_vector=2", .limit = 0.05},
    {.name = "index 4 of 256, a quarter", .press = "hcattention:sub_vector=4,codes=index", .limit = 0.05},
    {.name = "index 2 of 16, a quarter", .press = "hcattention:sub_vector=2,centroids=16,codes=index", .limit = 0.05},
    {.name = "index 4 of 256 beside q4", .press = "hcattention:sub_vector=4,codes=index", .key = PD_KV_Q4, .value = PD_KV_Q4, .limit = 0.05},
    {.name = "q4", .key = PD_KV_Q4, .value = PD_KV_F16, .limit = 0.01},
    /* with PRESSD_TEST_LONG=1 */
    {.name = "index 4 of 256, an eighth", .press = "hcattention:sub_vector=4,codes=index,exact=0.125", .limit = 0.1},
    {.name = "2 of 256, all old ones", .press = "hcattention:tau=1,sub_vector=2,window=0,sinks=0"},
    {.name = "quest, a quarter", .press = "quest:token_budget=512,skip_layers=0"},
};
enum { KINDS = sizeof kinds / sizeof *kinds, SHORT = KINDS - 3 };

/* Of a kind with codes: g codes a token and head where they are old, whole pages elsewhere. */
static uint64_t bytes_of(const pd_hparams *hp, size_t sub, size_t n_centroid, uint64_t native) {
    const size_t old = (CONTEXT + FORCED - WINDOW) / PD_PAGE_TOKENS * PD_PAGE_TOKENS, key = hp->head_dim / sub * (n_centroid > 16 ? 8 : 4) / 8;
    size_t full = 0;
    for (size_t l = 0; l < hp->n_layer; l++) full += hp->window[l] == 0;
    return native - full * hp->n_head_kv * old * (2 * hp->head_dim - key);
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: golden_codes MODEL DATA TEXT...\n");
        return 2;
    }
    pd_engine *e = forced_open(argv[1], argv[2], CONTEXT, 0, 1);
    if (!(pd_press_data_have(e->press_data) & 1u << PD_SET_CODES)) {
        fprintf(stderr, "%s has no codebooks\n", argv[2]);
        return 2;
    }
    const char *longer = getenv("PRESSD_TEST_LONG");
    const size_t n_kind = longer && *longer ? KINDS : SHORT;
    double total[KINDS] = {0};
    printf("text,what,spearman median or mean KL,10th or 99th percentile,same_top,bytes,keys read\n");
    for (int i = 3; i < argc; i++) probe_text(e, argv[i]);
    pd_engine_close(e);
    e = forced_open(argv[1], argv[2], CONTEXT, FORCED, KINDS);
    for (int i = 3; i < argc; i++) {
        forced_result r[KINDS];
        forced_run(e, argv[i], CONTEXT, FORCED, kinds, n_kind, r);
        for (size_t k = 1; k < n_kind; k++) {
            total[k] += r[k].kl_mean;
            printf("%s,%s,%.6f,%.6f,%.3f,%.4f,%.3f%s\n", argv[i], kinds[k].name, r[k].kl_mean, r[k].kl_p99, r[k].same_top,
                   (double)r[k].bytes / (double)r[0].bytes, r[k].rows ? (double)r[k].rows_key / (double)r[k].rows : 1.0, kinds[k].limit > 0.0 ? judge(r[k].kl_mean <= kinds[k].limit) : "");
            fflush(stdout);
        }
        if (e->run.codec.key == PD_KV_F16) {
            static const size_t of[][3] = {{1, 2, 256}, {2, 4, 256}, {3, 8, 256}, {4, 2, 16}, {5, 4, 16}};
            for (size_t k = 0; k < sizeof of / sizeof *of; k++) {
                const uint64_t want = bytes_of(&e->model->hp, of[k][1], of[k][2], r[0].bytes);
                printf("%s,%s: %llu bytes, %llu to be%s\n", argv[i], kinds[of[k][0]].name, (unsigned long long)r[of[k][0]].bytes,
                       (unsigned long long)want, judge(r[of[k][0]].bytes == want));
            }
        }
    }
    for (size_t k = 1; k < KINDS; k++)
        if (kinds[k].over) printf("%s over %s%s\n", kinds[k].name, kinds[k - 1].name, judge(total[k] > total[k - 1]));
    pd_engine_close(e);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
