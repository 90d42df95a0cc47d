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
#include "engine/base/num.h"
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
    ECHO_PER_CHUNK = 64,           /* prompt tokens; as above with their logprobs */
    OFFLOAD_SCORES = 4096,         /* prompt tokens with log probabilities: more are written off the loop */
    STREAM_BUFFER_LIMIT = 1 << 20, /* never reached; a bound all the same */
    DIALECT_BUFFER_LIMIT = 256 << 20, /* its last events may repeat the whole answer */
};

static size_t count_chars(const char *s, size_t n) {
    size_t chars = 0;
    for (size_t i = 0; i < n; i++) chars += ((unsigned char)s[i] & 0xC0) != 0x80;
    return chars;
}

/* ---- decode ---- */

/* Submitted, and its jobs not let go. */
static bool under_way(const pd_gen *g) {
    return g->n_answer && g->answer[0].call;
}

void pd_gen_end(pd_gen *g) {
    for (size_t i = 0; i < g->n_answer; i++) {
        pd_answer *a = &g->answer[i];
        if (a->call && !a->done) pd_count(&g->srv->metrics.finished[PD_FINISH_CANCELLED], 1);
        pd_call_end(a->call);
        a->call = NULL;
    }
}

static void drop(pd_req *q) {
    pd_gen *g = q->state;
    q->state = NULL;
    pd_gen_end(g);
    for (size_t i = 0; i < g->n_answer; i++) {
        pd_buf_done(&g->answer[i].text);
        pd_buf_done(&g->answer[i].chat_logprobs);
        pd_logprob_lists_done(&g->answer[i].lists);
        pd_tool_reader_close(g->answer[i].reader);
    }
    free(g->answer);
    pd_buf_done(&g->asked);
    pd_buf_done(&g->said);
    pd_buf_done(&g->told);
    pd_request_done(&g->rq);
    free(g);
}

pd_request_env pd_gen_env(const pd_server *s) {
    return (pd_request_env){
        .model_id = s->model_id,
        .press_model = &s->info->press_model,
        .compression = s->cfg->compression,
        .n_vocab = s->info->n_vocab,
        .tok = s->tok,
        .chat = s->chat,
    };
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
    if (shape && shape->dialect) {
        const pd_status st = shape->dialect->translate(body, g, err);
        if (st != PD_OK) json_decref(body);
        PD_TRY(st);
    }
    pd_request_env env = pd_gen_env(g->srv);
    if (shape && shape->dialect) env.tool_schema = shape->dialect->tool_schema;
    const pd_request_kind kind = shape                           ? shape->kind
                                 : pd_json_get(body, "messages") ? PD_REQUEST_CHAT
                                                                 : PD_REQUEST_COMPLETION;
    PD_TRY(pd_request_decode(body, kind, !shape, &env, &g->rq, err));
    PD_TRY(pd_request_tokenize(&g->rq, &env, err));
    if (shape) PD_TRY(pd_request_constrain(&g->rq, err));
    return g->rq.grammar ? pd_engine_prepare_grammar(g->srv->engine, err) : PD_OK; /* not on the loop */
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
static void count_tokens(pd_answer *a, size_t n) {
    if (!n) return;
    const uint64_t now = pd_now_ns();
    pd_hist *h = &a->gen->srv->metrics.inter_token;
    const size_t gaps = a->n_out ? n : n - 1;
    const uint64_t since = a->n_out ? a->token_ns : now;
    if (gaps) pd_hist_add(h, (double)(now - since) * 1e-9 / (double)gaps, gaps);
    a->token_ns = now;
}

static void add_tokens(pd_answer *a, size_t n) {
    a->n_out += n;
    a->gen->n_out += n;
}

/* The answer is over: counted once. */
static void account(pd_answer *a, const pd_job_result *r) {
    pd_gen *g = a->gen;
    a->done = true;
    g->n_done++;
    pd_metrics_job(&g->srv->metrics, r, a->n_out, (double)(pd_now_ns() - g->submit_ns) * 1e-9);
}

void pd_gen_meta(pd_gen *g, pd_buf *out, bool usage) {
    const pd_job_result *r[PD_CHOICES_MAX];
    for (size_t i = 0; i < g->n_answer; i++) r[i] = pd_job_get_result(g->answer[i].call->job);
    pd_meta_members(out, r, g->n_answer, g->srv->info, usage, g->n_prompt, g->n_out);
}

/* A token's text to the reader of tool calls.  Marks such as [TOOL_CALLS] are control
 * tokens, which are no text: the reader is told them all the same. */
static void read_token(pd_answer *a, const pd_token_event *ev, const char *text, size_t len) {
    const pd_tokenizer *tok = a->gen->srv->tok;
    if (ev && len == 0 && pd_token_is_special(tok, ev->id) && !pd_token_is_eog(tok, ev->id)) {
        const pd_str mark = pd_token_bytes(tok, ev->id, true);
        pd_tool_reader_add(a->reader, mark.data, mark.len);
    }
    pd_tool_reader_add(a->reader, text, len);
}

/* ---- a whole reply ---- */

static void collect(pd_answer *a) {
    pd_gen *g = a->gen;
    pd_token_event ev[EVENTS_PER_TAKE];
    size_t n, tail = 0;
    do {
        n = pd_job_take(a->call->job, ev, EVENTS_PER_TAKE, &a->text, &tail);
        count_tokens(a, n);
        add_tokens(a, n);
        for (size_t i = 0; i < n; i++) {
            a->logprob_sum += ev[i].logprob;
            if (a->reader && !a->text.failed)
                read_token(a, &ev[i], a->text.data ? a->text.data + ev[i].text_off : "", ev[i].text_len);
            if (g->rq.n_logprobs < 0 || !g->shape->collect) continue;
            g->shape->collect(a, &ev[i]);
            if (ev[i].text_len)
                a->n_chars += count_chars(a->text.data + ev[i].text_off, ev[i].text_len);
        }
        if (tail && a->reader && !a->text.failed)
            read_token(a, NULL, a->text.data + a->text.len - tail, tail);
    } while (n == EVENTS_PER_TAKE);
}

/* The best of the m answers at `a` come first: by mean log probability, as the
 * OpenAI API defines best_of; equals stay in order. */
static void rank(const pd_answer *a, size_t m, size_t *order) {
    for (size_t i = 0; i < m; i++) {
        const double x = a[i].n_out ? a[i].logprob_sum / (double)a[i].n_out : 0.0;
        size_t j = i;
        for (; j > 0; j--) {
            const pd_answer *b = &a[order[j - 1]];
            if ((b->n_out ? b->logprob_sum / (double)b->n_out : 0.0) >= x) break;
            order[j] = order[j - 1];
        }
        order[j] = i;
    }
}

/* Thread: loop or pool. */
static void write_whole(pd_req *q) {
    pd_gen *g = q->state;
    pd_buf *out = &q->out;
    const size_t n = g->rq.n, m = g->rq.best_of;
    if (g->shape->dialect) {
        pd_answer *a = g->answer;
        if (a->reader) pd_tool_reader_end(a->reader);
        g->shape->dialect->whole(a, out);
        if (a->text.failed || (a->reader && pd_tool_reader_failed(a->reader))) out->failed = true;
        return;
    }
    frame_begin(g, out, g->shape->object);
    for (size_t at = 0; at < g->n_answer; at += m) {
        size_t order[PD_CHOICES_MAX];
        for (size_t i = 0; i < m; i++) order[i] = i;
        if (m > n) rank(&g->answer[at], m, order);
        for (size_t i = 0; i < n; i++) {
            pd_answer *a = &g->answer[at + order[i]];
            a->index = at / m * n + i;
            if (a->index) pd_buf_putc(out, ',');
            if (a->reader) pd_tool_reader_end(a->reader);
            if (a->reader && pd_tool_reader_failed(a->reader)) out->failed = true;
            g->shape->whole(a, out, finish_word(pd_job_get_result(a->call->job)->finish));
            if (a->text.failed || a->chat_logprobs.failed) out->failed = true;
        }
    }
    pd_buf_putc(out, ']');
    if (g->shape->members) g->shape->members(g, out);
    pd_buf_putc(out, ',');
    pd_gen_meta(g, out, true);
    pd_buf_putc(out, '}');
}

static void whole_reply(pd_req *q) {
    pd_gen *g = q->state;
    const pd_job_result *r[PD_CHOICES_MAX];
    for (size_t i = 0; i < g->n_answer; i++) r[i] = pd_job_get_result(g->answer[i].call->job);
    pd_meta_headers(q, r, g->n_answer);
    pd_gen_end(g);
    pd_reply_json(q);
}

/* All answers are there. */
static void finish_whole(pd_req *q) {
    pd_gen *g = q->state;
    const bool scored = g->rq.n_prompt_logprobs >= 0 || (g->rq.echo && g->rq.n_logprobs >= 0);
    pd_err err = {0};
    if (scored && g->n_prompt * g->rq.n > OFFLOAD_SCORES) {
        if (pd_req_offload(q, write_whole, whole_reply, &err) == PD_OK) return;
        pd_gen_end(g);
        pd_reply_error(q, &err);
        return;
    }
    write_whole(q);
    whole_reply(q);
}

/* ---- a stream ---- */

/* One token's text, or what was held back at the end (ev NULL). */
static void stream_text(pd_answer *a, pd_buf *out, const pd_token_event *ev, const char *text,
                        size_t len) {
    pd_gen *g = a->gen;
    if (a->reader) {
        read_token(a, ev, text, len);
        if (pd_tool_reader_failed(a->reader)) out->failed = true;
    }
    if (g->shape->dialect) {
        pd_dialect_stream(a, out, text, len);
        return;
    }
    chunk_begin(g, out);
    g->shape->chunk(a, out, ev, text, len, NULL);
    chunk_end(g, out);
}

/* The chunk with the finish reason; the last answer's has the numbers of all. */
static void answer_end(pd_answer *a, pd_buf *out, const pd_job_result *r) {
    pd_gen *g = a->gen;
    account(a, r);
    if (g->shape->dialect) {
        pd_dialect_end(a, out);
        return;
    }
    if (a->reader) {
        pd_tool_reader_end(a->reader); /* what it held back goes before the end */
        if (pd_tool_reader_ready(a->reader)) stream_text(a, out, NULL, "", 0);
    }
    chunk_begin(g, out);
    g->shape->chunk(a, out, NULL, "", 0, finish_word(r->finish));
    if (g->n_done < g->n_answer) {
        chunk_end(g, out);
        return;
    }
    pd_buf_puts(out, "],");
    pd_gen_meta(g, out, g->rq.continuous_usage);
    pd_buf_putc(out, '}');
    pd_sse_end(out);
    if (!g->rq.include_usage) return;
    chunk_begin(g, out);
    pd_buf_puts(out, "],");
    pd_gen_meta(g, out, true);
    pd_buf_putc(out, '}');
    pd_sse_end(out);
}

/* One take -> events; false when nothing was there. */
static bool stream_take(pd_answer *a, pd_buf *out) {
    pd_token_event ev[EVENTS_PER_FILL_TAKE];
    size_t tail = 0;
    pd_buf_clear(&a->text);
    const size_t n = pd_job_take(a->call->job, ev, EVENTS_PER_FILL_TAKE, &a->text, &tail);
    if (a->text.failed) out->failed = true;
    count_tokens(a, n);
    for (size_t i = 0; i < n; i++) {
        const char *text = a->text.data ? a->text.data + ev[i].text_off : "";
        add_tokens(a, 1);
        stream_text(a, out, &ev[i], text, ev[i].text_len);
        a->n_chars += count_chars(text, ev[i].text_len);
    }
    if (tail && !a->text.failed)
        stream_text(a, out, NULL, a->text.data + a->text.len - tail, tail);
    return n || tail;
}

static void open_answer(pd_answer *a, pd_buf *out) {
    pd_gen *g = a->gen;
    if (!a->opened && g->shape->dialect) {
        g->shape->dialect->begin(a, out);
    } else if (!a->opened && g->shape->opening) {
        chunk_begin(g, out);
        g->shape->opening(a, out);
        chunk_end(g, out);
    }
    a->opened = true;
}

/* The next piece of the prompt. */
static bool stream_echo(pd_answer *a, pd_buf *out) {
    pd_gen *g = a->gen;
    const size_t to = pd_min_size(a->echo->n, a->n_echoed + ECHO_PER_CHUNK);
    chunk_begin(g, out);
    g->shape->echo(a, out, a->n_echoed, to);
    chunk_end(g, out);
    a->n_echoed = to;
    return true;
}

static void stream_error(pd_gen *g, pd_buf *out, const pd_err *err) {
    if (g->shape->dialect) g->shape->dialect->error(g, out, err);
    else pd_sse_error(out, err);
}

static void stream_done(const pd_gen *g, pd_buf *out) {
    if (!g->shape->dialect) pd_sse_done(out);
}

/* What one answer has to say now; false when nothing.  A failure ends the stream. */
static bool stream_answer(pd_req *q, pd_answer *a) {
    pd_buf *out = &q->out;
    if (a->done) return false;
    open_answer(a, out);
    /* The state is read first: what came before DONE is then surely taken. */
    const pd_job_state state = pd_job_get_state(a->call->job);
    const pd_job_result *r = state == PD_JOB_DONE ? pd_job_get_result(a->call->job) : NULL;
    pd_err err = {0};
    const bool failed = r && pd_gen_outcome(r, &err) != PD_OK;
    if (a->echo && a->n_echoed < a->echo->n && state >= PD_JOB_DECODE && !failed)
        return stream_echo(a, out);
    if (stream_take(a, out)) return true;
    if (!r) return false;
    if (!failed) {
        answer_end(a, out, r);
    } else {
        account(a, r);
        stream_error(a->gen, out, &err);
        q->ended = true;
    }
    return true;
}

static void fill(pd_req *q) {
    pd_gen *g = q->state;
    pd_buf *out = &q->out;
    if (!out->limit) pd_buf_init(out, g->shape->dialect ? DIALECT_BUFFER_LIMIT : STREAM_BUFFER_LIMIT);
    if (g->failed.code != PD_OK) {
        stream_error(g, out, &g->failed);
        stream_done(g, out);
        q->ended = true;
        return;
    }
    /* By turns, until nobody has anything or the block is full. */
    for (size_t quiet = 0; quiet < g->n_answer && !q->ended && out->len < FILL_BYTES && !out->failed;) {
        quiet = stream_answer(q, &g->answer[g->turn]) ? 0 : quiet + 1;
        g->turn = (g->turn + 1) % g->n_answer;
    }
    if (q->ended || g->n_done == g->n_answer) {
        pd_gen_end(g);
        stream_done(g, out);
        q->ended = true;
    } else if (out->len == 0 && q->ping_due) {
        pd_sse_ping(out);
    }
}

/* Asleep and woken: is there enough to begin the stream? */
static void wake(pd_req *q) {
    pd_gen *g = q->state;
    if (!g->rq.stream || !under_way(g)) return;
    bool begun = q->ping_due;
    for (size_t i = 0; i < g->n_answer; i++) {
        pd_answer *a = &g->answer[i];
        const pd_job_state state = pd_job_get_state(a->call->job);
        begun = begun || state >= PD_JOB_DECODE;
        if (state != PD_JOB_DONE) continue;
        const pd_job_result *r = pd_job_get_result(a->call->job);
        pd_err err = {0};
        if (r->timing.predicted_n > 0 || pd_gen_outcome(r, &err) == PD_OK) continue;
        account(a, r);
        pd_gen_end(g);
        pd_reply_error(q, &err);
        return;
    }
    if (!begun) return;
    pd_req_add_header(q, "Cache-Control", "no-cache");
    pd_req_add_header(q, "X-Accel-Buffering", "no"); /* nginx holds events back otherwise */
    pd_req_stream(q, PD_SSE_TYPE);
}

/* ---- run ---- */

static void on_event(pd_req *q, pd_call *call) {
    pd_gen *g = q->state;
    if (q->gone || !g || call->index >= g->n_answer) return;
    pd_answer *a = &g->answer[call->index];
    if (a->call != call || a->done) return;
    if (g->rq.stream) {
        pd_req_wake(q);
        return;
    }
    const pd_job_state state = pd_job_get_state(call->job);
    collect(a);
    if (state != PD_JOB_DONE) return;
    const pd_job_result *r = pd_job_get_result(call->job);
    pd_err err = {0};
    account(a, r);
    if (pd_gen_outcome(r, &err) != PD_OK) {
        pd_gen_end(g);
        pd_reply_error(q, &err);
    } else if (g->n_done == g->n_answer) {
        finish_whole(q);
        if (q->mode == PD_REQ_WAIT) return; /* written off the loop */
    } else {
        return;
    }
    pd_req_wake(q);
}

void pd_gen_expired(pd_req *q) {
    pd_gen *g = q->state;
    if (!g || !under_way(g)) return;
    pd_fail(&g->failed, PD_ETIMEOUT, NULL, "the request took longer than %llu seconds",
            (unsigned long long)g->srv->cfg->request_timeout);
    pd_gen_end(g);
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

static pd_status make_answers(pd_gen *g, pd_err *err) {
    const size_t n = g->rq.n_prompt * g->rq.best_of;
    g->answer = calloc(n, sizeof *g->answer);
    if (!g->answer) return pd_fail(err, PD_ENOMEM, NULL, "no memory for %zu answers", n);
    g->n_answer = n;
    for (size_t i = 0; i < n; i++) {
        g->answer[i].gen = g;
        g->answer[i].index = i;
        if (g->rq.tools && g->shape) {
            g->answer[i].reader = pd_tool_reader_open(g->rq.tools);
            if (!g->answer[i].reader) return pd_fail(err, PD_ENOMEM, NULL, "no memory for %zu answers", n);
        }
        if (!g->shape || !g->rq.echo) continue;
        g->answer[i].echo = &g->rq.echoed[i / g->rq.best_of];
        g->answer[i].n_chars = pd_echo_chars(g->answer[i].echo);
    }
    return PD_OK;
}

static pd_status submit_prompt(pd_req *q, size_t i, void (*event)(pd_req *q, pd_call *call),
                               pd_err *err) {
    pd_gen *g = q->state;
    pd_job_params p;
    pd_request_params(&g->rq, i, &p);
    if (!g->shape) {
        p.explain = true;
        p.explain_scores = g->rq.scores;
        p.max_given = true;
        p.max_tokens = 0;
        p.score = false;
    }
    const size_t n = g->rq.best_of;
    pd_call *call[PD_CHOICES_MAX];
    PD_TRY(pd_call_submit(&g->srv->calls, g->srv->engine, &p, n, q, event, call, err));
    pd_request_taken(&g->rq, i);
    g->n_prompt += p.n_tokens;
    for (size_t k = 0; k < n; k++) {
        call[k]->index = i * n + k;
        g->answer[i * n + k].call = call[k];
    }
    return PD_OK;
}

pd_status pd_gen_submit(pd_req *q, void (*event)(pd_req *q, pd_call *call)) {
    pd_gen *g = q->state;
    g->submit_ns = pd_now_ns();
    g->created = time(NULL);
    make_id(g, g->shape ? g->shape->id_prefix : "");
    pd_err err = {0};
    pd_status st = make_answers(g, &err);
    for (size_t i = 0; i < g->rq.n_prompt && st == PD_OK; i++) st = submit_prompt(q, i, event, &err);
    if (st != PD_OK) {
        pd_gen_end(g);
        pd_reply_error(q, &err);
        return st;
    }
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
