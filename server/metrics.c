/* SPDX-License-Identifier: Apache-2.0 */
/* GET /metrics: our pressd_* families, the vllm:* ones that Kubernetes endpoint
 * pickers read, and process_*.  Made of atomics on the loop thread, so it answers
 * while the engine computes; endpoint pickers ask every 50 ms. */
#include "server/metrics.h"

#include "engine/base/clock.h"
#include "server/json.h"
#include "server/reply.h"
#include "server/router.h"
#include "server/server.h"

#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static const double seconds_bounds[] = {0.001, 0.0025, 0.005, 0.01,  0.025, 0.05,
                                        0.1,   0.25,   0.5,   1.0,   2.5,   5.0,
                                        10.0,  30.0,   60.0,  120.0, 300.0, 600.0};
static const double press_bounds[] = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025,
                                      0.05,   0.1,     0.25,   0.5,   1.0,    2.5,   5.0,  10.0};
static const double token_bounds[] = {1,    8,    32,    128,   512,   1024,  2048,
                                      4096, 8192, 16384, 32768, 65536, 131072};
#define BOUNDS(b) (b), sizeof(b) / sizeof((b)[0])

static const int codes[PD_METRICS_CODES - 1] = {200, 204, 400, 401, 403, 404, 405, 408, 413,
                                                415, 429, 500, 501, 503, 0,   414, 431};

pd_status pd_metrics_open(pd_metrics *m, pd_err *err) {
    memset(m, 0, sizeof *m);
    m->n_press = pd_press_count() + 1;
    m->press = calloc(m->n_press, sizeof *m->press);
    if (!m->press) return pd_fail(err, PD_ENOMEM, NULL, "no memory");
    for (size_t i = 0; i < m->n_press; i++) {
        m->press[i].name = i + 1 < m->n_press ? pd_press_at(i)->name : "none";
        pd_hist_init(&m->press[i].seconds, BOUNDS(press_bounds), 1e9);
    }
    pd_hist *const timed[] = {&m->http_seconds, &m->ttft,    &m->inter_token, &m->e2e,
                              &m->queue,        &m->prefill, &m->decode};
    for (size_t i = 0; i < sizeof timed / sizeof timed[0]; i++)
        pd_hist_init(timed[i], BOUNDS(seconds_bounds), 1e9);
    pd_hist_init(&m->prompt_tokens, BOUNDS(token_bounds), 1);
    pd_hist_init(&m->generated_tokens, BOUNDS(token_bounds), 1);
    return PD_OK;
}

void pd_metrics_close(pd_metrics *m) {
    free(m->press);
    m->press = NULL;
}

void pd_metrics_http(pd_metrics *m, const struct pd_route *route, int status, double seconds) {
    size_t row = PD_METRICS_ROUTES_MAX, col = 0;
    for (size_t i = 0; i < pd_n_routes && route; i++)
        if (pd_routes[i] == route) row = i;
    while (col < PD_METRICS_CODES - 1 && codes[col] != status) col++;
    pd_count(&m->http[row][col], 1);
    pd_hist_add(&m->http_seconds, seconds, 1);
}

void pd_metrics_rejected(pd_metrics *m, pd_status code) {
    pd_count(&m->rejected[code], 1);
}

void pd_metrics_job(pd_metrics *m, const pd_job_result *r, size_t n_generated, double e2e_seconds) {
    pd_count(&m->finished[r->finish], 1);
    if (r->finish != PD_FINISH_STOP && r->finish != PD_FINISH_LENGTH) return;
    const pd_job_timing *t = &r->timing;
    pd_hist_add(&m->queue, t->queue_ms * 1e-3, 1);
    if (t->prompt_n) pd_hist_add(&m->prefill, t->prompt_ms * 1e-3, 1); /* not for a further answer to a prompt */
    if (n_generated) {
        pd_hist_add(&m->decode, t->predicted_ms * 1e-3, 1);
        pd_hist_add(&m->ttft, t->ttft_ms * 1e-3, 1);
    }
    pd_hist_add(&m->e2e, e2e_seconds, 1);
    if (t->prompt_n) pd_hist_add(&m->prompt_tokens, (double)t->prompt_n, 1);
    pd_hist_add(&m->generated_tokens, (double)n_generated, 1);

    const pd_kv_report *kv = &r->kv;
    size_t i = 0;
    while (i + 1 < m->n_press && (!kv->name || strcmp(m->press[i].name, kv->name) != 0)) i++;
    pd_metrics_press *p = &m->press[i];
    pd_count(&p->requests, 1);
    pd_count(&p->skipped, kv->skipped != NULL);
    pd_count(&p->seen, kv->tokens_seen);
    pd_count(&p->kept, kv->tokens_kept > 0 ? (uint64_t)(kv->tokens_kept + 0.5) : 0);
    pd_count(&p->evicted, kv->tokens_evicted);
    pd_count(&p->bytes, kv->bytes);
    pd_count(&p->bytes_dense, kv->bytes_dense);
    pd_count(&p->rows, kv->rows);
    pd_count(&p->rows_key, kv->rows_key);
    pd_count(&p->rows_value, kv->rows_value);
    pd_hist_add(&p->seconds, kv->press_ms * 1e-3, 1);
}

/* ---- the page ---- */

static void gauge(pd_buf *out, const char *name, const char *help, double v) {
    pd_prom_family(out, name, "gauge", help);
    pd_prom_num(out, name, NULL, v);
}

static void counter(pd_buf *out, const char *name, const char *help, uint64_t v) {
    pd_prom_family(out, name, "counter", help);
    pd_prom_u64(out, name, NULL, v);
}

static void hist(pd_buf *out, const char *name, const char *help, const pd_hist *h) {
    pd_prom_family(out, name, "histogram", help);
    pd_prom_hist(out, name, NULL, h);
}

static void write_kv(pd_buf *out, const pd_engine_stats *s, uint64_t pool_bytes) {
    gauge(out, "pressd_kv_cache_resident_bytes", "Bytes of KV pages in use.",
          (double)s->kv_bytes_resident);
    gauge(out, "pressd_kv_cache_staging_bytes", "Bytes of dense layers of running prefills.",
          (double)s->kv_bytes_staging);
    gauge(out, "pressd_kv_cache_dirty_bytes",
          "Bytes of free pages not yet given back to the system.", (double)s->kv_bytes_dirty);
    gauge(out, "pressd_kv_cache_dense_bytes",
          "Bytes dense f16 caches of the running sequences would hold.", (double)s->kv_bytes_dense);
    gauge(out, "pressd_kv_cache_peak_bytes", "Highest resident plus staging bytes since start.",
          (double)s->kv_bytes_peak);
    gauge(out, "pressd_kv_cache_limit_bytes", "Bound of the KV page pool.", (double)pool_bytes);
    pd_prom_family(out, "pressd_kv_cache_type_bytes", "gauge",
                   "Bytes of KV pages in use by what they store and how; they add up to the resident ones.");
    static const char *const part[] = {"keys", "values"};
    for (int p = 0; p < 2; p++) {
        for (int t = PD_KV_NATIVE + 1; t < PD_KV_ALL; t++) {
            char label[48];
            snprintf(label, sizeof label, "part=\"%s\",kv_type=\"%s\"", part[p], pd_kv_type_name((pd_kv_type)t));
            pd_prom_u64(out, "pressd_kv_cache_type_bytes", label, s->kv_bytes_type[p][t]);
        }
    }
    gauge(out, "pressd_scratch_bytes", "Bytes of hidden states, tiles and query rings.",
          (double)s->scratch_bytes);
    pd_prom_family(out, "pressd_kv_cache_pages", "gauge",
                   "KV pages by state, in f16 pages (narrower ones by their bytes); they add up to the pool.");
    pd_prom_u64(out, "pressd_kv_cache_pages", "state=\"free\"", s->pages_free);
    pd_prom_u64(out, "pressd_kv_cache_pages", "state=\"sequences\"", s->pages_seq);
    pd_prom_u64(out, "pressd_kv_cache_pages", "state=\"store\"", s->pages_store);
}

static void write_presses(pd_buf *out, const pd_metrics *m) {
    static const struct { const char *name, *help; size_t off;
    } family[] = {
        {"pressd_press_requests_total", "Finished requests by press.",
         offsetof(pd_metrics_press, requests)},
        {"pressd_press_skipped_total", "Requests whose press was skipped.",
         offsetof(pd_metrics_press, skipped)},
        {"pressd_press_tokens_seen_total", "Tokens that went through the cache.",
         offsetof(pd_metrics_press, seen)},
        {"pressd_press_tokens_kept_total",
         "Tokens still cached at the end, mean over layers and heads.",
         offsetof(pd_metrics_press, kept)},
        {"pressd_press_pairs_evicted_total", "Key-value pairs removed, over layers and heads.",
         offsetof(pd_metrics_press, evicted)},
        {"pressd_press_rows_total", "Cached pairs found by decode steps of requests that say what is read, over layers and heads.",
         offsetof(pd_metrics_press, rows)},
        {"pressd_press_key_rows_read_total", "Keys of those pairs that were read.",
         offsetof(pd_metrics_press, rows_key)},
        {"pressd_press_value_rows_read_total", "Values of those pairs that were read.",
         offsetof(pd_metrics_press, rows_value)},
        {"pressd_press_kv_bytes_total", "KV bytes held when requests ended, summed.",
         offsetof(pd_metrics_press, bytes)},
        {"pressd_press_kv_dense_bytes_total", "KV bytes dense caches would have held, summed.",
         offsetof(pd_metrics_press, bytes_dense)},
    };
    char label[96];
    for (size_t f = 0; f < sizeof family / sizeof family[0]; f++) {
        pd_prom_family(out, family[f].name, "counter", family[f].help);
        for (size_t i = 0; i < m->n_press; i++) {
            if (!pd_counted(&m->press[i].requests))
                continue; /* presses nobody used would be most of the page */
            snprintf(label, sizeof label, "press=\"%s\"", m->press[i].name);
            pd_prom_u64(out, family[f].name, label,
                        pd_counted((const pd_counter *)(const void *)((const char *)&m->press[i] +
                                                                      family[f].off)));
        }
    }
    pd_prom_family(out, "pressd_press_seconds", "histogram",
                   "Time spent in the press per request.");
    for (size_t i = 0; i < m->n_press; i++) {
        if (!pd_counted(&m->press[i].requests)) continue;
        snprintf(label, sizeof label, "press=\"%s\"", m->press[i].name);
        pd_prom_hist(out, "pressd_press_seconds", label, &m->press[i].seconds);
    }
}

static void write_http(pd_buf *out, const pd_server *s) {
    const pd_metrics *m = &s->metrics;
    char label[160];
    pd_prom_family(out, "pressd_http_requests_total", "counter",
                   "HTTP requests by route and status; code 0: the client left before a reply.");
    for (size_t r = 0; r <= PD_METRICS_ROUTES_MAX; r++)
        for (size_t c = 0; c < PD_METRICS_CODES; c++) {
            const uint64_t v = pd_counted(&m->http[r][c]);
            if (!v) continue;
            const char *route = r < pd_n_routes ? pd_routes[r]->label : "none";
            if (c < PD_METRICS_CODES - 1)
                snprintf(label, sizeof label, "route=\"%s\",code=\"%d\"", route, codes[c]);
            else snprintf(label, sizeof label, "route=\"%s\",code=\"other\"", route);
            pd_prom_u64(out, "pressd_http_requests_total", label, v);
        }
    hist(out, "pressd_http_request_seconds", "Time from request line to the end of the reply.",
         &m->http_seconds);
    gauge(out, "pressd_http_connections", "Open client connections.",
          (double)pd_http_connections(s->http));
    gauge(out, "pressd_http_requests_active", "Requests begun and not complete.",
          (double)pd_http_requests(s->http));

    static const char *const reason[] = {
#define X(name, http, type, code) [PD_##name] = code[0] ? code : #name,
        PD_CODE_MAP(X)
#undef X
    };
    pd_prom_family(out, "pressd_requests_rejected_total", "counter", "Error replies by reason.");
    for (size_t i = 1; i < sizeof reason / sizeof reason[0]; i++) {
        const uint64_t v = pd_counted(&m->rejected[i]);
        if (!v) continue;
        snprintf(label, sizeof label, "reason=\"%s\"", reason[i]);
        for (char *p = label; *p; p++) *p = (char)tolower((unsigned char)*p);
        pd_prom_u64(out, "pressd_requests_rejected_total", label, v);
    }
}

static const char *const finish_name[] = {"none", "stop", "length", "cancelled", "error"};

static void write_requests(pd_buf *out, const pd_metrics *m, const pd_engine_stats *s) {
    char label[64];
    gauge(out, "pressd_requests_running", "Sequences in prefill or decode.", s->running);
    gauge(out, "pressd_requests_waiting", "Accepted requests not yet scheduled.", s->waiting);
    counter(out, "pressd_prompt_tokens_total", "Prompt tokens processed.", s->prompt_tokens);
    counter(out, "pressd_generated_tokens_total", "Tokens generated.", s->generated_tokens);
    counter(out, "pressd_draft_tokens_total", "Tokens that prompt look-up proposed.", s->drafted_tokens);
    counter(out, "pressd_draft_accepted_tokens_total", "Proposed tokens that were right.", s->draft_taken_tokens);
    counter(out, "pressd_decode_steps_total", "Decode steps of the batch.", s->decode_steps);
    counter(out, "pressd_prefill_units_total", "Prefill work units.", s->prefill_units);
    pd_prom_family(out, "pressd_requests_finished_total", "counter",
                   "Generation requests by how they ended.");
    for (size_t i = 1; i <= PD_FINISH_ERROR; i++) {
        snprintf(label, sizeof label, "reason=\"%s\"", finish_name[i]);
        pd_prom_u64(out, "pressd_requests_finished_total", label, pd_counted(&m->finished[i]));
    }
    hist(out, "pressd_time_to_first_token_seconds", "From submit to the first token.", &m->ttft);
    hist(out, "pressd_inter_token_seconds", "Between tokens, as the server hands them out.",
         &m->inter_token);
    hist(out, "pressd_request_seconds", "From submit to the end.", &m->e2e);
    hist(out, "pressd_request_queue_seconds", "Waiting before prefill.", &m->queue);
    hist(out, "pressd_request_prefill_seconds", "In prefill.", &m->prefill);
    hist(out, "pressd_request_decode_seconds", "In decode.", &m->decode);
    hist(out, "pressd_request_prompt_tokens", "Prompt tokens per request.", &m->prompt_tokens);
    hist(out, "pressd_request_generated_tokens", "Generated tokens per request.",
         &m->generated_tokens);
}

/* The names of vLLM that endpoint pickers and its dashboards read; "perc" is a
 * fraction there too.  A missing family is an error at every scrape. */
static void write_vllm(pd_buf *out, const pd_server *srv, const pd_engine_stats *s) {
    const pd_metrics *m = &srv->metrics;
    pd_buf model = {0};
    pd_prom_label(&model, "model_name", srv->model_id);
    const char *label = model.failed ? NULL : model.data;
    const uint64_t pool = srv->info ? srv->info->kv_pool_bytes : 0;
    pd_prom_family(out, "vllm:num_requests_running", "gauge", "Sequences in the batch.");
    pd_prom_u64(out, "vllm:num_requests_running", label, s->running);
    pd_prom_family(out, "vllm:num_requests_waiting", "gauge",
                   "Accepted requests not yet scheduled.");
    pd_prom_u64(out, "vllm:num_requests_waiting", label, s->waiting);
    pd_prom_family(out, "vllm:kv_cache_usage_perc", "gauge",
                   "Resident KV bytes over the bound, 0 to 1.");
    pd_prom_num(out, "vllm:kv_cache_usage_perc", label,
                pool ? (double)s->kv_bytes_resident / (double)pool : 0.0);
    pd_prom_family(out, "vllm:cache_config_info", "gauge",
                   "Page size in tokens and number of pages.");
    pd_buf cache = {0};
    char number[32];
    snprintf(number, sizeof number, "%zu", srv->info ? srv->info->page_tokens : 0);
    pd_prom_label(&cache, "block_size", number);
    snprintf(number, sizeof number, "%llu", (unsigned long long)s->pages_total);
    pd_prom_label(&cache, "num_gpu_blocks", number);
    pd_prom_label(&cache, "cache_dtype",
                  srv->info && srv->info->compute == PD_COMPUTE_F32 ? "f32" : "f16");
    pd_prom_label(&cache, "model_name", srv->model_id);
    pd_prom_u64(out, "vllm:cache_config_info", cache.failed ? NULL : cache.data, 1);
    pd_buf_done(&cache);
    pd_prom_family(out, "vllm:lora_requests_info", "gauge", "Adapters; none are served.");
    pd_prom_u64(out, "vllm:lora_requests_info",
                "max_lora=\"0\",running_lora_adapters=\"\",waiting_lora_adapters=\"\"",
                (uint64_t)time(NULL));
    pd_prom_family(out, "vllm:prompt_tokens_total", "counter", "Prompt tokens processed.");
    pd_prom_u64(out, "vllm:prompt_tokens_total", label, s->prompt_tokens);
    pd_prom_family(out, "vllm:generation_tokens_total", "counter", "Tokens generated.");
    pd_prom_u64(out, "vllm:generation_tokens_total", label, s->generated_tokens);
    pd_prom_family(out, "vllm:request_success_total", "counter", "Finished requests by reason.");
    for (size_t i = PD_FINISH_STOP; i <= PD_FINISH_LENGTH; i++) {
        pd_buf reason = {0};
        pd_prom_label(&reason, "model_name", srv->model_id);
        pd_prom_label(&reason, "finished_reason", finish_name[i]);
        pd_prom_u64(out, "vllm:request_success_total", reason.failed ? NULL : reason.data,
                    pd_counted(&m->finished[i]));
        pd_buf_done(&reason);
    }
    const struct { const char *name; const pd_hist *h; } same[] = {
        {"vllm:time_to_first_token_seconds", &m->ttft},
        {"vllm:inter_token_latency_seconds", &m->inter_token},
        {"vllm:e2e_request_latency_seconds", &m->e2e},
        {"vllm:request_queue_time_seconds", &m->queue},
    };
    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++) {
        pd_prom_family(out, same[i].name, "histogram", "As the pressd_ family of this meaning.");
        pd_prom_hist(out, same[i].name, label, same[i].h);
    }
    pd_buf_done(&model);
}

static void write_process(pd_buf *out, time_t started) {
    struct rusage ru;
    getrusage(RUSAGE_SELF, &ru);
    const double cpu = (double)(ru.ru_utime.tv_sec + ru.ru_stime.tv_sec) +
                       (double)(ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) * 1e-6;
    pd_prom_family(out, "process_cpu_seconds_total", "counter", "CPU time, user and system.");
    pd_prom_num(out, "process_cpu_seconds_total", NULL, cpu);
    gauge(out, "process_start_time_seconds", "Start time since the epoch.", (double)started);
    FILE *f = fopen("/proc/self/statm", "re");
    if (f) {
        unsigned long long pages_virtual = 0, pages_resident = 0;
        const long page = sysconf(_SC_PAGESIZE);
        if (fscanf(f, "%llu %llu", &pages_virtual, &pages_resident) == 2) {
            gauge(out, "process_virtual_memory_bytes", "Address space in use.",
                  (double)pages_virtual * (double)page);
            gauge(out, "process_resident_memory_bytes", "Memory resident.",
                  (double)pages_resident * (double)page);
        }
        fclose(f);
    }
    DIR *d = opendir("/proc/self/fd");
    if (d) {
        size_t n = 0;
        while (readdir(d)) n++;
        closedir(d);
        gauge(out, "process_open_fds", "Open file descriptors.",
              (double)(n > 3 ? n - 3 : 0)); /* ".", ".." and the listing itself */
    }
    struct rlimit rl;
    if (getrlimit(RLIMIT_NOFILE, &rl) == 0)
        gauge(out, "process_max_fds", "Most file descriptors.", (double)rl.rlim_cur);
}

static void run_metrics(pd_req *q) {
    const pd_server *s = q->srv;
    pd_buf *out = &q->out;
    pd_engine_stats stats = {0};
    if (s->engine) pd_engine_get_stats(s->engine, &stats);
    pd_buf label = {0};
    pd_prom_label(&label, "version", PD_VERSION);
    pd_prom_label(&label, "model", s->model_id);
    pd_prom_label(&label, "isa", s->info && s->info->isa ? s->info->isa : "");
    pd_prom_family(out, "pressd_build_info", "gauge", "Version, model and kernel row in use.");
    pd_prom_u64(out, "pressd_build_info", label.failed ? NULL : label.data, 1);
    pd_buf_done(&label);
    gauge(out, "pressd_ready", "1 when requests are served.", s->phase == PD_SERVING);
    if (stats.last_step_ns)
        gauge(out, "pressd_engine_idle_seconds", "Since the engine's last sign of life.",
              (double)(pd_now_ns() - stats.last_step_ns) * 1e-9);
    write_kv(out, &stats, s->info ? s->info->kv_pool_bytes : 0);
    write_presses(out, &s->metrics);
    write_requests(out, &s->metrics, &stats);
    write_http(out, s);
    write_vllm(out, s, &stats);
    write_process(out, s->started);
    if (out->failed) {
        pd_reply_json(q); /* says so */
        return;
    }
    pd_req_reply(q, 200, "text/plain; version=0.0.4; charset=utf-8");
}

const pd_route pd_route_metrics = {
    .method = "GET", .path = "/metrics", .label = "/metrics",
    .flags = PD_ROUTE_EARLY | PD_ROUTE_METRICS, .run = run_metrics};
