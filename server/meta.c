/* SPDX-License-Identifier: Apache-2.0 */
/* Reply metadata (see meta.h). */
#include "server/meta.h"

#include "server/json.h"

static void member_u64(pd_buf *out, const char *name, uint64_t v) {
    pd_buf_printf(out, ",\"%s\":%llu", name, (unsigned long long)v);
}

static void member_num(pd_buf *out, const char *name, double v) {
    pd_buf_printf(out, ",\"%s\":", name);
    pd_json_num(out, v);
}

/* Measured times: a microsecond is all they are worth. */
static void member_ms(pd_buf *out, const char *name, double v) {
    pd_buf_printf(out, ",\"%s\":%.3f", name, v);
}

static void cache_bytes(pd_buf *out, const pd_kv_report *kv) {
    member_u64(out, "kv_cache_bytes", kv->bytes);
    member_u64(out, "kv_cache_bytes_dense", kv->bytes_dense);
    member_u64(out, "kv_cache_bytes_peak", kv->bytes_peak);
}

void pd_meta_usage(pd_buf *out, size_t n_prompt, size_t n_out, const pd_kv_report *kv) {
    pd_buf_printf(out, "{\"prompt_tokens\":%zu,\"completion_tokens\":%zu,\"total_tokens\":%zu,"
                       "\"prompt_tokens_details\":{\"cached_tokens\":0}",
                  n_prompt, n_out, n_prompt + n_out);
    if (kv) cache_bytes(out, kv);
    pd_buf_putc(out, '}');
}

/* Of rows a step found, how many keys and values it read. */
static void shares(pd_buf *out, uint64_t rows, uint64_t keys, uint64_t values) {
    member_num(out, "key_share", (double)keys / (double)rows);
    member_num(out, "value_share", (double)values / (double)rows);
}

static void layers(pd_buf *out, const pd_kv_report *kv) {
    pd_buf_puts(out, ",\"layers\":[");
    for (size_t l = 0; l < kv->n_layer; l++) {
        uint64_t bytes = 0;
        for (size_t h = 0; h < kv->n_head_kv; h++)
            bytes += kv->head_bytes ? kv->head_bytes[l * kv->n_head_kv + h] : 0;
        pd_buf_printf(out, "%s{\"layer\":%zu,\"bytes\":%llu,\"heads\":[", l ? "," : "", l,
                      (unsigned long long)bytes);
        for (size_t h = 0; h < kv->n_head_kv; h++) {
            const size_t i = l * kv->n_head_kv + h;
            pd_buf_printf(out, "%s{\"kept\":%u,\"bytes\":%llu}", h ? "," : "", kv->kept[i],
                          (unsigned long long)(kv->head_bytes ? kv->head_bytes[i] : 0));
        }
        pd_buf_putc(out, ']');
        if (kv->layer_rows && kv->layer_rows[l])
            shares(out, kv->layer_rows[l], kv->layer_rows_key[l], kv->layer_rows_value[l]);
        pd_buf_putc(out, '}');
    }
    pd_buf_putc(out, ']');
}

void pd_meta_kv_type(pd_buf *out, const pd_kv_report *kv, const pd_engine_info *info) {
    const char *key = pd_kv_type_name(kv->kv_key), *value = pd_kv_type_name(kv->kv_value);
    if (kv->kv_key == kv->kv_value)
        pd_buf_printf(out, ",\"kv_type\":\"%s\"", key);
    else
        pd_buf_printf(out, ",\"kv_type\":{\"key\":\"%s\",\"value\":\"%s\"}", key, value);
    const size_t values = 2 * info->page_tokens * info->head_dim;
    /* of the pages held: those of pressed keys may be narrower than those of later tokens */
    const double page = kv->pages ? (double)(kv->bytes - kv->bytes_recent) / (double)kv->pages : (double)kv->page_bytes;
    member_num(out, "bits_per_value", 8.0 * page / (double)values);
    if (kv->bytes_recent) member_u64(out, "bytes_recent", kv->bytes_recent);
}

/* What decode steps read of it. */
static void reads(pd_buf *out, const pd_kv_report *kv) {
    pd_buf_printf(out, ",\"read\":{\"rows\":%llu", (unsigned long long)kv->rows);
    member_u64(out, "key_rows", kv->rows_key);
    member_u64(out, "value_rows", kv->rows_value);
    shares(out, kv->rows, kv->rows_key, kv->rows_value);
    member_u64(out, "bounds_bytes", kv->bytes_bounds);
    if (kv->bytes_codes) member_u64(out, "codes_bytes", kv->bytes_codes);
    pd_buf_putc(out, '}');
}

/* Without the closing brace. */
static void kv_cache(pd_buf *out, const pd_kv_report *kv, const pd_engine_info *info) {
    pd_buf_puts(out, "{\"press\":");
    pd_json_cstr(out, kv->press);
    member_num(out, "ratio_requested", kv->ratio_requested);
    member_num(out, "ratio", kv->ratio);
    member_u64(out, "tokens_seen", kv->tokens_seen);
    member_num(out, "tokens_kept", kv->tokens_kept);
    if (kv->tokens_added) member_u64(out, "tokens_added", kv->tokens_added);
    member_u64(out, "bytes_after_prefill", kv->bytes_after_prefill);
    member_u64(out, "bytes", kv->bytes);
    member_u64(out, "bytes_dense", kv->bytes_dense);
    member_u64(out, "bytes_peak", kv->bytes_peak);
    member_u64(out, "page_tokens", info->page_tokens);
    member_u64(out, "pages", kv->pages);
    pd_meta_kv_type(out, kv, info);
    member_ms(out, "press_ms", kv->press_ms);
    if (kv->skipped) {
        pd_buf_puts(out, ",\"skipped\":");
        pd_json_cstr(out, kv->skipped);
    }
    if (kv->rows) reads(out, kv);
    if (kv->kept) layers(out, kv);
}

static double per_second(size_t n, double ms) {
    return ms > 0 ? (double)n * 1e3 / ms : 0.0;
}

void pd_meta_timings(pd_buf *out, const pd_job_timing *t, const pd_kv_report *kv) {
    pd_buf_printf(out, "{\"prompt_n\":%zu", t->prompt_n);
    member_ms(out, "prompt_ms", t->prompt_ms);
    member_ms(out, "prompt_per_second", per_second(t->prompt_n, t->prompt_ms));
    member_u64(out, "predicted_n", t->predicted_n);
    member_ms(out, "predicted_ms", t->predicted_ms);
    member_ms(out, "predicted_per_second", per_second(t->predicted_n, t->predicted_ms));
    if (t->draft_n) { /* as llama.cpp tells it */
        member_u64(out, "draft_n", t->draft_n);
        member_u64(out, "draft_n_accepted", t->draft_n_accepted);
    }
    member_ms(out, "queue_ms", t->queue_ms);
    cache_bytes(out, kv); /* Open WebUI shows what stands here */
    pd_buf_putc(out, '}');
}

static void add_report(pd_kv_report *sum, const pd_kv_report *kv) {
    sum->tokens_seen += kv->tokens_seen;
    sum->tokens_evicted += kv->tokens_evicted;
    sum->tokens_kept += kv->tokens_kept;
    sum->tokens_added += kv->tokens_added;
    sum->bytes += kv->bytes;
    sum->bytes_recent += kv->bytes_recent;
    sum->bytes_after_prefill += kv->bytes_after_prefill;
    sum->bytes_peak += kv->bytes_peak;
    sum->bytes_dense += kv->bytes_dense;
    sum->pages += kv->pages;
    sum->press_ms += kv->press_ms;
    sum->rows += kv->rows;
    sum->rows_key += kv->rows_key;
    sum->rows_value += kv->rows_value;
    sum->bytes_bounds += kv->bytes_bounds;
    sum->bytes_codes += kv->bytes_codes;
    if (!kv->skipped) sum->skipped = NULL; /* skipped for all */
}

static void add_timing(pd_job_timing *sum, const pd_job_timing *t) {
    sum->prompt_n += t->prompt_n;
    sum->prompt_ms += t->prompt_ms;
    sum->predicted_n += t->predicted_n;
    sum->draft_n += t->draft_n;
    sum->draft_n_accepted += t->draft_n_accepted;
    if (t->predicted_ms > sum->predicted_ms) sum->predicted_ms = t->predicted_ms;
    if (t->queue_ms > sum->queue_ms) sum->queue_ms = t->queue_ms;
}

/* The cost of all of them together. */
static void total(const pd_job_result *const *r, size_t n, pd_kv_report *kv, pd_job_timing *t) {
    *kv = r[0]->kv;
    *t = r[0]->timing;
    if (n == 1) return;
    double ratio = kv->ratio * (double)kv->tokens_seen;
    for (size_t i = 1; i < n; i++) {
        add_report(kv, &r[i]->kv);
        add_timing(t, &r[i]->timing);
        ratio += r[i]->kv.ratio * (double)r[i]->kv.tokens_seen;
    }
    kv->ratio = ratio / (double)kv->tokens_seen;
    kv->kept = kv->head_pages = NULL;
    kv->head_bytes = NULL;
    kv->layer_rows = kv->layer_rows_key = kv->layer_rows_value = NULL;
}

static void sequences(pd_buf *out, const pd_job_result *const *r, size_t n,
                      const pd_engine_info *info) {
    pd_buf_puts(out, ",\"sequences\":[");
    for (size_t i = 0; i < n; i++) {
        if (i) pd_buf_putc(out, ',');
        kv_cache(out, &r[i]->kv, info);
        pd_buf_putc(out, '}');
    }
    pd_buf_putc(out, ']');
}

void pd_meta_members(pd_buf *out, const pd_job_result *const *r, size_t n,
                     const pd_engine_info *info, bool usage, size_t n_prompt, size_t n_out) {
    pd_kv_report kv;
    pd_job_timing timing;
    total(r, n, &kv, &timing);
    if (usage) {
        pd_buf_puts(out, "\"usage\":");
        pd_meta_usage(out, n_prompt, n_out, &kv);
        pd_buf_putc(out, ',');
    }
    pd_buf_puts(out, "\"kv_cache\":");
    kv_cache(out, &kv, info);
    if (n > 1) sequences(out, r, n, info);
    pd_buf_puts(out, "},\"timings\":");
    pd_meta_timings(out, &timing, &kv);
}

void pd_meta_headers(pd_req *q, const pd_job_result *const *r, size_t n) {
    pd_kv_report sum;
    pd_job_timing timing;
    total(r, n, &sum, &timing);
    pd_req_add_header(q, "X-KV-Press", "%s", sum.press);
    pd_req_add_header(q, "X-KV-Cache-Bytes", "%llu", (unsigned long long)sum.bytes);
    pd_req_add_header(q, "X-KV-Cache-Bytes-Dense", "%llu", (unsigned long long)sum.bytes_dense);
    pd_req_add_header(q, "X-KV-Cache-Bytes-Peak", "%llu", (unsigned long long)sum.bytes_peak);
}
