/* SPDX-License-Identifier: Apache-2.0 */
/* POST /v1/embeddings: texts as vectors of unit length, by the loaded model's final
 * hidden states.
 *
 *   {"input": string, [string], [id] or [[id]], "encoding_format": "float" | "base64",
 *    "pooling": "mean" | "last"} -> {"object": "list", "data": [{"embedding"}], "usage"}
 *
 * Each input is a job of its own; the reply is written off the loop once all are there.
 * Cost: a prefill per input, no token; a press would remove what nothing reads
 * afterwards, so none is taken. */
#include "engine/base/clock.h"
#include "server/generate.h"
#include "server/reply.h"
#include "server/request_int.h"
#include "server/router.h"
#include "server/server.h"

#include <stdlib.h>
#include <string.h>

enum { INPUTS_MAX = 2048, REPLY_BYTES_MAX = 256 << 20 };

typedef struct embeddings {
    pd_server *srv;
    pd_request rq;
    pd_pooling pool;
    bool base64;
    pd_call **call; /* [n]: NULL before submit and after the end */
    bool *done;     /* [n] */
    size_t n, n_done, n_tokens;
    uint64_t submit_ns;
} embeddings;

static void end_all(embeddings *e) {
    for (size_t i = 0; i < e->n; i++) {
        if (e->call[i] && !e->done[i]) pd_count(&e->srv->metrics.finished[PD_FINISH_CANCELLED], 1);
        pd_call_end(e->call[i]);
        e->call[i] = NULL;
    }
}

static void drop(pd_req *q) {
    embeddings *e = q->state;
    q->state = NULL;
    end_all(e);
    free(e->call);
    free(e->done);
    pd_request_done(&e->rq);
    free(e);
}

/* ---- decode ---- */

/* One of two words; absent: the first. */
static pd_status decode_word(const json_t *body, const char *key, const char *first,
                             const char *second, bool *is_second, pd_err *err) {
    const json_t *v = pd_json_get(body, key);
    *is_second = false;
    if (!v) return PD_OK;
    const char *word = json_string_value(v);
    if (word && strcmp(word, second) == 0) *is_second = true;
    else if (!word || strcmp(word, first) != 0)
        return pd_fail(err, PD_EINVAL, key, "%s is %s%.40s%s; \"%s\" or \"%s\" is expected", key,
                       word ? "\"" : "", word ? word : pd_json_type_name(v), word ? "\"" : "", first,
                       second);
    return PD_OK;
}

static pd_status decode_body(embeddings *e, const json_t *body, const pd_request_env *env,
                             pd_err *err) {
    const size_t d = e->srv->info->n_embd;
    int64_t dimensions = 0;
    bool given = false, last = false;
    PD_TRY(pd_json_int(body, "", "dimensions", 1, INT32_MAX, &dimensions, &given, err));
    if (given && (size_t)dimensions != d)
        return pd_fail(err, PD_EINVAL, "dimensions",
                       "dimensions is %lld; this model was not trained to be cut, its embeddings "
                       "have %zu",
                       (long long)dimensions, d);
    PD_TRY(decode_word(body, "encoding_format", "float", "base64", &e->base64, err));
    PD_TRY(decode_word(body, "pooling", "mean", "last", &last, err));
    e->pool = last ? PD_POOL_LAST : PD_POOL_MEAN;
    const char *suffix;
    PD_TRY(pd__request_model(body, env, &suffix, err));
    if (pd_json_get(body, "compression") || suffix)
        return pd_fail(err, PD_EINVAL, "compression",
                       "an embedding takes no compression: nothing is read from the cache after it");
    PD_TRY(pd_request_texts(body, "input", INPUTS_MAX, env, &e->rq, err));
    for (size_t i = 0; i < e->rq.n_prompt; i++) {
        pd_prompt *p = &e->rq.prompt[i];
        if (p->text)
            PD_TRY(pd_tokenize(env->tok, p->text, p->text_len, PD_TOK_BOS | PD_TOK_SPECIAL, &p->ids,
                               err));
        if (p->ids.n == 0)
            return pd_fail(err, PD_EINVAL, "input", "input %zu is empty: it gives no tokens", i);
    }
    return PD_OK;
}

static pd_status decode(pd_req *q, pd_err *err) {
    embeddings *e = calloc(1, sizeof *e);
    if (!e) return pd_fail(err, PD_ENOMEM, NULL, "no memory");
    e->srv = q->srv;
    q->state = e;
    q->drop = drop;
    PD_TRY(pd_json_parse(&e->rq.body, q->body.data, q->body.len, err));
    const pd_request_env env = pd_gen_env(q->srv);
    return decode_body(e, e->rq.body, &env, err);
}

/* ---- the reply ---- */

static void write_base64(pd_buf *out, const unsigned char *s, size_t n) {
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < n; i += 3) {
        const uint32_t v = (uint32_t)s[i] << 16 | (i + 1 < n ? (uint32_t)s[i + 1] << 8 : 0) |
                           (i + 2 < n ? s[i + 2] : 0);
        const char four[4] = {digit[v >> 18], digit[v >> 12 & 63],
                              i + 1 < n ? digit[v >> 6 & 63] : '=', i + 2 < n ? digit[v & 63] : '='};
        pd_buf_add(out, four, 4);
    }
}

/* Floats as little-endian bytes in base64, as OpenAI's are. */
static void write_packed(pd_buf *out, const float *v, size_t n) {
    pd_buf_putc(out, '"');
    enum { AT_ONCE = 48 }; /* a multiple of 3: no padding inside */
    for (size_t i = 0; i < n; i += AT_ONCE) {
        const size_t m = n - i < AT_ONCE ? n - i : AT_ONCE;
        unsigned char bytes[AT_ONCE * 4];
        for (size_t k = 0; k < m; k++) {
            uint32_t u;
            memcpy(&u, &v[i + k], sizeof u);
            for (size_t b = 0; b < 4; b++) bytes[k * 4 + b] = (unsigned char)(u >> (8 * b));
        }
        write_base64(out, bytes, m * 4);
    }
    pd_buf_putc(out, '"');
}

/* Thread: pool. */
static void write_reply(pd_req *q) {
    const embeddings *e = q->state;
    const size_t d = e->srv->info->n_embd;
    pd_buf *out = &q->out;
    pd_buf_init(out, REPLY_BYTES_MAX);
    pd_buf_puts(out, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < e->n; i++) {
        const float *v = pd_job_embedding(e->call[i]->job);
        pd_buf_printf(out, "%s{\"object\":\"embedding\",\"index\":%zu,\"embedding\":", i ? "," : "",
                      i);
        if (e->base64) {
            write_packed(out, v, d);
        } else {
            for (size_t k = 0; k < d; k++) {
                pd_buf_putc(out, k ? ',' : '[');
                pd_json_f32(out, v[k]);
            }
            pd_buf_putc(out, ']');
        }
        pd_buf_putc(out, '}');
    }
    pd_buf_puts(out, "],\"model\":");
    pd_json_cstr(out, e->srv->model_id);
    pd_buf_printf(out, ",\"usage\":{\"prompt_tokens\":%zu,\"total_tokens\":%zu}}", e->n_tokens,
                  e->n_tokens);
}

static void written(pd_req *q) {
    end_all(q->state);
    pd_reply_json(q);
}

static void fail_request(pd_req *q, const pd_err *err) {
    end_all(q->state);
    pd_reply_error(q, err);
    pd_req_wake(q);
}

static void on_event(pd_req *q, pd_call *call) {
    embeddings *e = q->state;
    if (q->gone || !e || call->index >= e->n || e->call[call->index] != call ||
        e->done[call->index] || pd_job_get_state(call->job) != PD_JOB_DONE)
        return;
    const pd_job_result *r = pd_job_get_result(call->job);
    e->done[call->index] = true;
    e->n_done++;
    pd_metrics_job(&e->srv->metrics, r, 0, (double)(pd_now_ns() - e->submit_ns) * 1e-9);
    pd_err err = {0};
    if (pd_gen_outcome(r, &err) == PD_OK &&
        (e->n_done < e->n || pd_req_offload(q, write_reply, written, &err) == PD_OK))
        return;
    fail_request(q, &err);
}

static void expired(pd_req *q) {
    embeddings *e = q->state;
    if (!e || !e->n || !e->call[0] || q->working) return;
    pd_err err = {0};
    pd_fail(&err, PD_ETIMEOUT, NULL, "the request took longer than %llu seconds",
            (unsigned long long)e->srv->cfg->request_timeout);
    fail_request(q, &err);
}

/* ---- run ---- */

static pd_status submit(pd_req *q, pd_err *err) {
    embeddings *e = q->state;
    const size_t n = e->rq.n_prompt;
    e->call = calloc(n, sizeof(pd_call *));
    e->done = calloc(n, sizeof *e->done);
    if (!e->call || !e->done) return pd_fail(err, PD_ENOMEM, NULL, "no memory for %zu inputs", n);
    e->n = n;
    for (size_t i = 0; i < n; i++) {
        const pd_ids *ids = &e->rq.prompt[i].ids;
        pd_job_params p = {
            .tokens = ids->id,
            .n_tokens = ids->n,
            .max_given = true,
            .n_logprobs = -1,
            .pool = e->pool,
            .follows = i > 0,
        };
        PD_TRY(pd_call_submit(&e->srv->calls, e->srv->engine, &p, 1, q, on_event, &e->call[i], err));
        e->call[i]->index = i;
        e->n_tokens += ids->n;
    }
    return PD_OK;
}

static void run(pd_req *q) {
    embeddings *e = q->state;
    pd_err err = {0};
    e->submit_ns = pd_now_ns();
    if (submit(q, &err) != PD_OK) {
        end_all(e);
        pd_reply_error(q, &err);
        return;
    }
    pd_request_trim(&e->rq);
    q->expired = expired;
}

const pd_route pd_route_embeddings = {.method = "POST",
                                      .path = "/v1/embeddings",
                                      .label = "/v1/embeddings",
                                      .decode = decode,
                                      .run = run};
