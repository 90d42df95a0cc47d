/* SPDX-License-Identifier: Apache-2.0 */
/* Generation requests (see generate.h).
 *
 * A whole reply is collected as tokens come and sent at the end.  A stream is
 * pulled: `fill` takes from the job what fits one block, so tokens a client does
 * not read wait in the job, a few bytes each, and not as text here.  The headers
 * of a stream leave with the first token: until then a failure still gets its
 * own status. */
#include "server/generate.h"

#include "engine/base/clock.h"
#include "engine/base/utf8.h"
#include "server/meta.h"
#include "server/reply.h"
#include "server/server.h"
#include "server/sse.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum {
    EVENTS_PER_TAKE = 64,
    FILL_BYTES = 16384, /* a fill stops beyond this; with one more take it stays under 64 KiB */
    EVENTS_PER_FILL_TAKE = 4,      /* 100 logprobs a token are about 10 KiB */
    STREAM_BUFFER_LIMIT = 1 << 20, /* never reached; a bound all the same */
};

static size_t count_chars(const char *s, size_t n) {
    size_t chars = 0;
    for (size_t i = 0; i < n; i++) chars += ((unsigned char)s[i] & 0xC0) != 0x80;
    return chars;
}

/* ---- decode ---- */

static void drop(pd_req *q) {
    pd_gen *g = q->state;
    q->state = NULL;
    if (g->call) {
        pd_count(&g->srv->metrics.finished[PD_FINISH_CANCELLED], 1);
        pd_call_end(g->call);
    }
    pd_request_done(&g->rq);
    pd_buf_done(&g->text);
    pd_buf_done(&g->chat_logprobs);
    pd_logprob_lists_done(&g->lists);
    free(g);
}

pd_status pd_gen_decode(pd_req *q, const pd_shape *shape, pd_err *err) {
    pd_gen *g = calloc(1, sizeof *g);
    if (!g) return pd_fail(err, PD_ENOMEM, NULL, "no memory");
    g->shape = shape;
    g->srv = q->srv;
    q->state = g;
    q->drop = drop;
    json_t *body;
    PD_TRY(pd_json_parse(&body, q->body.data, q->body.len, err));
    const pd_request_env env = {
        .model_id = g->srv->model_id,
        .press_model = &g->srv->info->press_model,
        .compression = g->srv->cfg->compression,
        .n_vocab = g->srv->info->n_vocab,
        .tok = g->srv->tok,
        .chat = g->srv->chat,
    };
    const pd_request_kind kind = shape                           ? shape->kind
                                 : pd_json_get(body, "messages") ? PD_REQUEST_CHAT
                                                                 : PD_REQUEST_COMPLETION;
    PD_TRY(pd_request_decode(body, kind, !shape, &env, &g->rq, err));
    return pd_request_tokenize(&g->rq, &env, err);
}

/* ---- pieces of replies ---- */

static const char *finish_word(pd_finish f) {
    return f == PD_FINISH_LENGTH ? "length" : "stop";
}

pd_status pd_gen_outcome(const pd_job_result *r, pd_err *err) {
    switch (r->finish) {
    case PD_FINISH_ERROR: *err = r->err; return err->code;
    case PD_FINISH_CANCELLED:
        return pd_fail(err, PD_EUNAVAIL, NULL, "the request was cancelled by the server");
    default: return PD_OK;
    }
}

static void frame_begin(const pd_gen *g, pd_buf *out, const char *object) {
    pd_buf_printf(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", g->id,
                  object, (long long)g->created);
    pd_json_cstr(out, g->srv->model_id);
    pd_buf_puts(out, ",\"choices\":[");
}

static void chunk_begin(const pd_gen *g, pd_buf *out) {
    pd_sse_begin(out);
    frame_begin(g, out, g->shape->chunk_object);
}

static void chunk_end(const pd_gen *g, pd_buf *out) {
    pd_buf_putc(out, ']');
    if (g->rq.continuous_usage) {
        pd_buf_puts(out, ",\"usage\":");
        pd_meta_usage(out, g->n_prompt, g->n_out, NULL);
    }
    pd_buf_putc(out, '}');
    pd_sse_end(out);
}

/* Count n tokens that came together. */
static void count_tokens(pd_gen *g, size_t n) {
    if (!n) return;
    const uint64_t now = pd_now_ns();
    pd_hist *h = &g->srv->metrics.inter_token;
    const size_t gaps = g->n_out ? n : n - 1;
    const uint64_t since = g->n_out ? g->token_ns : now;
    if (gaps) pd_hist_add(h, (double)(now - since) * 1e-9 / (double)gaps, gaps);
    g->token_ns = now;
    g->n_out += n;
}

static void account(pd_gen *g, const pd_job_result *r) {
    pd_metrics_job(&g->srv->metrics, r, g->n_out, (double)(pd_now_ns() - g->submit_ns) * 1e-9);
}

/* ---- a whole reply ---- */

static void collect(pd_gen *g) {
    pd_token_event ev[EVENTS_PER_TAKE];
    size_t n, tail = 0;
    do {
        n = pd_job_take(g->call->job, ev, EVENTS_PER_TAKE, &g->text, &tail);
        count_tokens(g, n);
        for (size_t i = 0; i < n && g->rq.n_logprobs >= 0; i++) {
            g->shape->collect(g, &ev[i]);
            g->n_chars += count_chars(g->text.data + ev[i].text_off, ev[i].text_len);
        }
    } while (n == EVENTS_PER_TAKE);
}

static void whole_reply(pd_req *q, pd_gen *g, const pd_job_result *r) {
    pd_err err = {0};
    account(g, r);
    if (pd_gen_outcome(r, &err) != PD_OK) {
        pd_reply_error(q, &err);
        return;
    }
    pd_buf *out = &q->out;
    frame_begin(g, out, g->shape->object);
    g->shape->whole(g, out, finish_word(r->finish));
    pd_buf_puts(out, "],");
    pd_meta_members(out, r, g->srv->info, true, g->n_prompt, g->n_out);
    pd_buf_putc(out, '}');
    if (g->text.failed || g->chat_logprobs.failed) out->failed = true;
    pd_meta_headers(q, &r->kv);
    pd_reply_json(q);
}

/* ---- a stream ---- */

static void stream_end(pd_gen *g, pd_buf *out, const pd_job_result *r) {
    pd_err err = {0};
    account(g, r);
    if (pd_gen_outcome(r, &err) != PD_OK) {
        pd_sse_error(out, &err);
        return;
    }
    chunk_begin(g, out);
    g->shape->chunk(g, out, NULL, "", 0, finish_word(r->finish));
    pd_buf_puts(out, "],");
    pd_meta_members(out, r, g->srv->info, g->rq.continuous_usage, g->n_prompt, g->n_out);
    pd_buf_putc(out, '}');
    pd_sse_end(out);
    if (!g->rq.include_usage) return;
    chunk_begin(g, out);
    pd_buf_puts(out, "],");
    pd_meta_members(out, r, g->srv->info, true, g->n_prompt, g->n_out);
    pd_buf_putc(out, '}');
    pd_sse_end(out);
}

/* One take -> events; false when nothing was there. */
static bool stream_take(pd_gen *g, pd_buf *out) {
    pd_token_event ev[EVENTS_PER_FILL_TAKE];
    size_t tail = 0;
    pd_buf_clear(&g->text);
    const size_t n = pd_job_take(g->call->job, ev, EVENTS_PER_FILL_TAKE, &g->text, &tail);
    if (g->text.failed) out->failed = true;
    const size_t before = g->n_out;
    count_tokens(g, n);
    g->n_out = before; /* counted one by one below: running usage shows it */
    for (size_t i = 0; i < n; i++) {
        const char *text = g->text.data ? g->text.data + ev[i].text_off : "";
        g->n_out++;
        chunk_begin(g, out);
        g->shape->chunk(g, out, &ev[i], text, ev[i].text_len, NULL);
        chunk_end(g, out);
        g->n_chars += count_chars(text, ev[i].text_len);
    }
    if (tail && !g->text.failed) {
        chunk_begin(g, out);
        g->shape->chunk(g, out, NULL, g->text.data + g->text.len - tail, tail, NULL);
        chunk_end(g, out);
    }
    return n || tail;
}

static void fill(pd_req *q) {
    pd_gen *g = q->state;
    pd_buf *out = &q->out;
    if (!out->limit) pd_buf_init(out, STREAM_BUFFER_LIMIT);
    if (g->failed.code != PD_OK) {
        pd_sse_error(out, &g->failed);
        pd_sse_done(out);
        q->ended = true;
        return;
    }
    if (!g->opened && g->shape->opening) {
        chunk_begin(g, out);
        g->shape->opening(g, out);
        chunk_end(g, out);
    }
    g->opened = true;
    /* The state is read first: what came before DONE is then surely taken. */
    const pd_job_state state = pd_job_get_state(g->call->job);
    bool more = true;
    while (more && out->len < FILL_BYTES && !out->failed) more = stream_take(g, out);
    if (state == PD_JOB_DONE && !more) {
        stream_end(g, out, pd_job_get_result(g->call->job));
        pd_call_end(g->call);
        g->call = NULL;
        pd_sse_done(out);
        q->ended = true;
    } else if (out->len == 0 && q->ping_due) {
        pd_sse_ping(out);
    }
}

/* Asleep and woken: is there enough to begin the stream? */
static void wake(pd_req *q) {
    pd_gen *g = q->state;
    if (!g->rq.stream || !g->call) return;
    const pd_job_state state = pd_job_get_state(g->call->job);
    if (state == PD_JOB_DONE) {
        const pd_job_result *r = pd_job_get_result(g->call->job);
        pd_err err = {0};
        if (r->timing.predicted_n == 0 && pd_gen_outcome(r, &err) != PD_OK) {
            account(g, r);
            pd_call_end(g->call);
            g->call = NULL;
            pd_reply_error(q, &err);
            return;
        }
    } else if (state != PD_JOB_DECODE && !q->ping_due) {
        return;
    }
    pd_req_add_header(q, "Cache-Control", "no-cache");
    pd_req_add_header(q, "X-Accel-Buffering", "no"); /* nginx holds events back otherwise */
    pd_req_stream(q, PD_SSE_TYPE);
}

/* ---- run ---- */

static void on_event(pd_req *q) {
    pd_gen *g = q->state;
    if (q->gone || !g || !g->call) return;
    if (g->rq.stream) {
        pd_req_wake(q);
        return;
    }
    const pd_job_state state = pd_job_get_state(g->call->job);
    collect(g);
    if (state != PD_JOB_DONE) return;
    whole_reply(q, g, pd_job_get_result(g->call->job));
    pd_call_end(g->call);
    g->call = NULL;
    pd_req_wake(q);
}

void pd_gen_expired(pd_req *q) {
    pd_gen *g = q->state;
    if (!g || !g->call) return;
    pd_fail(&g->failed, PD_ETIMEOUT, NULL, "the request took longer than %llu seconds",
            (unsigned long long)g->srv->cfg->request_timeout);
    pd_count(&g->srv->metrics.finished[PD_FINISH_CANCELLED], 1);
    pd_call_end(g->call);
    g->call = NULL;
    if (q->mode == PD_REQ_WAIT) pd_reply_error(q, &g->failed);
    pd_req_wake(q);
}

static void make_id(pd_gen *g, const char *prefix) {
    unsigned char r[12] = {0};
    if (getrandom(r, sizeof r, 0) != (ssize_t)sizeof r)
        memcpy(r, &g->submit_ns, sizeof g->submit_ns);
    int n = snprintf(g->id, sizeof g->id, "%s", prefix);
    for (size_t i = 0; i < sizeof r; i++)
        n += snprintf(g->id + n, sizeof g->id - (size_t)n, "%02x", r[i]);
}

pd_status pd_gen_submit(pd_req *q, void (*event)(pd_req *q)) {
    pd_gen *g = q->state;
    pd_job_params p;
    pd_request_params(&g->rq, &p);
    if (!g->shape) {
        p.explain = true;
        p.explain_scores = g->rq.scores;
        p.max_given = true;
        p.max_tokens = 0;
    }
    g->submit_ns = pd_now_ns();
    g->created = time(NULL);
    g->n_prompt = g->rq.prompt.n;
    make_id(g, g->shape ? g->shape->id_prefix : "");
    pd_err err = {0};
    const pd_status st =
        pd_call_submit(&g->srv->calls, g->srv->engine, &p, q, event, &g->call, &err);
    if (st != PD_OK) {
        pd_reply_error(q, &err);
        return st;
    }
    pd_request_taken(&g->rq);
    pd_request_trim(&g->rq);
    q->expired = pd_gen_expired;
    return PD_OK;
}

void pd_gen_run(pd_req *q) {
    pd_gen *g = q->state;
    if (pd_gen_submit(q, on_event) != PD_OK || !g->rq.stream) return;
    q->wake = wake;
    q->fill = fill;
}
