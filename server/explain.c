/* SPDX-License-Identifier: Apache-2.0 */
/* POST /v1/compression/explain: run the prompt, say what was kept.
 *
 * The body is a completion's or a chat's.  With "compare" in place of
 * "compression" it lists what several presses would keep, from one prefill.  The answer lists every kept position
 * of every head and can have tens of megabytes with scores, so it is written off
 * the loop; the job's result is constant by then. */
#include "server/generate.h"
#include "server/json.h"
#include "server/meta.h"
#include "server/reply.h"
#include "server/router.h"
#include "server/server.h"

#include "engine/base/clock.h"

enum { REPLY_BYTES_MAX = 256 << 20 };

static void write_head(pd_buf *out, const pd_explain_head *h, size_t scope_tokens) {
    pd_buf_puts(out, "{\"kept\":[");
    for (size_t i = 0; i < h->n_kept; i++) pd_buf_printf(out, "%s%d", i ? "," : "", h->kept[i]);
    pd_buf_putc(out, ']');
    if (h->scores) {
        pd_buf_puts(out, ",\"scores\":[");
        for (size_t i = 0; i < scope_tokens; i++) {
            if (i) pd_buf_putc(out, ',');
            pd_json_f32(out, h->scores[i]);
        }
        pd_buf_putc(out, ']');
    }
    pd_buf_putc(out, '}');
}

static void write_heads(pd_buf *out, const pd_explain_head *head, size_t n_head, size_t scope_tokens) {
    pd_buf_puts(out, "\"heads\":[");
    for (size_t h = 0; h < n_head; h++) {
        if (h) pd_buf_putc(out, ',');
        write_head(out, &head[h], scope_tokens);
    }
    pd_buf_puts(out, "]}");
}

static void write_compared(pd_buf *out, const pd_compared *c, const pd_job_result *r) {
    pd_buf_puts(out, "{\"press\":");
    pd_json_cstr(out, c->press);
    pd_buf_puts(out, ",\"ratio\":");
    pd_json_num(out, c->ratio);
    pd_buf_printf(out, ",\"press_ms\":%.3f", c->press_ms);
    if (c->skipped) {
        pd_buf_puts(out, ",\"skipped\":");
        pd_json_cstr(out, c->skipped);
    }
    pd_buf_puts(out, ",\"layers\":[");
    for (size_t l = 0; l < r->kv.n_layer && c->explain; l++) {
        pd_buf_printf(out, "%s{\"layer\":%zu,", l ? "," : "", l);
        write_heads(out, c->explain + l * r->kv.n_head_kv, r->kv.n_head_kv, r->scope_tokens);
    }
    pd_buf_puts(out, "]}");
}

/* Thread: pool. */
static void write_reply(pd_req *q) {
    const pd_gen *g = q->state;
    const pd_job *job = g->answer->call->job;
    const pd_job_result *r = pd_job_get_result(job);
    const pd_kv_report *kv = &r->kv;
    pd_buf *out = &q->out;
    pd_buf_init(out, REPLY_BYTES_MAX);
    pd_buf_puts(out, "{\"object\":\"compression.explain\",\"model\":");
    pd_json_cstr(out, g->srv->model_id);
    pd_buf_puts(out, ",\"press\":");
    pd_json_cstr(out, kv->press);
    pd_buf_puts(out, ",\"ratio\":");
    pd_json_num(out, kv->ratio);
    pd_buf_printf(out,
                  ",\"prompt_tokens\":%zu,\"scope_tokens\":%zu,\"bytes\":%llu,\"bytes_dense\":%llu,"
                  "\"bytes_peak\":%llu",
                  g->n_prompt, r->scope_tokens, (unsigned long long)kv->bytes,
                  (unsigned long long)kv->bytes_dense, (unsigned long long)kv->bytes_peak);
    pd_meta_kv_type(out, kv, g->srv->info);
    pd_buf_printf(out, ",\"press_ms\":%.3f", kv->press_ms);
    if (kv->skipped) {
        pd_buf_puts(out, ",\"skipped\":");
        pd_json_cstr(out, kv->skipped);
    }
    pd_buf_puts(out, ",\"layers\":[");
    for (size_t l = 0; l < kv->n_layer && r->explain && !r->n_compared; l++) {
        uint64_t bytes = 0;
        for (size_t h = 0; h < kv->n_head_kv; h++)
            bytes += kv->head_bytes ? kv->head_bytes[l * kv->n_head_kv + h] : 0;
        pd_buf_printf(out, "%s{\"layer\":%zu,\"bytes\":%llu,", l ? "," : "", l,
                      (unsigned long long)bytes);
        write_heads(out, r->explain + l * kv->n_head_kv, kv->n_head_kv, r->scope_tokens);
    }
    pd_buf_puts(out, "],\"forecast\":[");
    for (size_t i = 0; i < g->rq.n_ratio; i++) {
        pd_buf_printf(out, "%s{\"ratio\":", i ? "," : "");
        pd_json_num(out, g->rq.ratio[i]);
        pd_buf_printf(out, ",\"bytes\":%llu}",
                      (unsigned long long)pd_engine_forecast_bytes(g->srv->engine, job, g->rq.ratio[i]));
    }
    pd_buf_putc(out, ']');
    if (r->n_compared) {
        pd_buf_puts(out, ",\"compare\":[");
        for (size_t i = 0; i < r->n_compared; i++) {
            if (i) pd_buf_putc(out, ',');
            write_compared(out, &r->compared[i], r);
        }
        pd_buf_putc(out, ']');
    }
    pd_buf_putc(out, '}');
}

static void written(pd_req *q) {
    pd_gen *g = q->state;
    pd_gen_end(g);
    pd_reply_json(q);
}

static void on_event(pd_req *q, pd_call *call) {
    pd_gen *g = q->state;
    if (q->gone || !g || g->answer->call != call || q->working ||
        pd_job_get_state(call->job) != PD_JOB_DONE)
        return;
    const pd_job_result *r = pd_job_get_result(call->job);
    g->answer->done = true;
    pd_metrics_job(&g->srv->metrics, r, 0, (double)(pd_now_ns() - g->submit_ns) * 1e-9);
    pd_err err = {0};
    if (pd_gen_outcome(r, &err) == PD_OK && pd_req_offload(q, write_reply, written, &err) == PD_OK)
        return;
    pd_gen_end(g);
    pd_reply_error(q, &err);
    pd_req_wake(q);
}

static pd_status decode(pd_req *q, pd_err *err) {
    return pd_gen_decode(q, NULL, err);
}

static void run(pd_req *q) {
    pd_gen_submit(q, on_event); /* a failure is replied */
}

const pd_route pd_route_explain = {.method = "POST",
                                   .path = "/v1/compression/explain",
                                   .label = "/v1/compression/explain",
                                   .decode = decode,
                                   .run = run};
