/* SPDX-License-Identifier: Apache-2.0 */
/* POST /v1/completions: the text shape of a choice. */
#include "server/generate.h"
#include "server/router.h"
#include "server/server.h"

static void collect(pd_answer *a, const pd_token_event *ev) {
    pd_logprob_lists_add(&a->lists, a->gen->srv->tok, ev, a->n_chars);
}

/* Log probabilities of prompt tokens [from, to). */
static void collect_echo(const pd_answer *a, pd_logprob_lists *l, size_t from, size_t to) {
    const pd_scored *s = pd_job_scored(a->call->job);
    for (size_t i = from; i < to; i++)
        pd_logprob_lists_add_scored(l, a->gen->srv->tok, &s[i], (size_t)a->gen->rq.n_logprobs,
                                    a->echo->cut[i].chars);
}

/* `lists` NULL: no log probabilities. */
static void choice(const pd_answer *a, pd_buf *out, const pd_logprob_lists *lists,
                   const char *finish) {
    pd_buf_puts(out, ",\"logprobs\":");
    if (lists) pd_logprob_lists_write(lists, out);
    else pd_buf_puts(out, "null");
    pd_buf_puts(out, ",\"finish_reason\":");
    pd_json_cstr(out, finish);
    if (finish && a->gen->rq.n_prompt_logprobs >= 0) {
        const pd_job *job = a->call->job;
        pd_buf_puts(out, ",\"prompt_logprobs\":");
        pd_logprob_prompt(out, a->gen->srv->tok, pd_job_scored(job), pd_job_prompt_tokens(job),
                          (size_t)a->gen->rq.n_prompt_logprobs);
    }
    pd_buf_putc(out, '}');
}

static void begin(const pd_answer *a, pd_buf *out) {
    pd_buf_printf(out, "{\"index\":%zu,\"text\":", a->index);
}

static void whole(pd_answer *a, pd_buf *out, const char *finish) {
    const bool logprobs = a->gen->rq.n_logprobs >= 0;
    pd_logprob_lists all = {0};
    begin(a, out);
    if (a->echo) {
        pd_buf text = {0};
        pd_buf_add(&text, a->echo->text.data, a->echo->text.len);
        if (a->text.len) pd_buf_add(&text, a->text.data, a->text.len);
        if (text.failed) out->failed = true;
        pd_json_str(out, text.data, text.len);
        pd_buf_done(&text);
        if (logprobs) {
            collect_echo(a, &all, 0, a->echo->n);
            pd_logprob_lists_join(&all, &a->lists);
        }
    } else {
        pd_json_str(out, a->text.data, a->text.len);
    }
    choice(a, out, !logprobs ? NULL : a->echo ? &all : &a->lists, finish);
    pd_logprob_lists_done(&all);
}

static void echo(pd_answer *a, pd_buf *out, size_t from, size_t to) {
    const bool logprobs = a->gen->rq.n_logprobs >= 0;
    const pd_echo_cut *cut = a->echo->cut;
    begin(a, out);
    pd_json_str(out, a->echo->text.data ? a->echo->text.data + cut[from].bytes : "",
                cut[to].bytes - cut[from].bytes);
    if (logprobs) {
        pd_logprob_lists_clear(&a->lists);
        collect_echo(a, &a->lists, from, to);
    }
    choice(a, out, logprobs ? &a->lists : NULL, NULL);
}

static void chunk(pd_answer *a, pd_buf *out, const pd_token_event *ev, const char *text, size_t len,
                  const char *finish) {
    const bool logprobs = ev && a->gen->rq.n_logprobs >= 0;
    if (logprobs) {
        pd_logprob_lists_clear(&a->lists);
        collect(a, ev);
    }
    begin(a, out);
    pd_json_str(out, text, len);
    choice(a, out, logprobs ? &a->lists : NULL, finish);
}

static const pd_shape shape = {
    .kind = PD_REQUEST_COMPLETION,
    .id_prefix = "cmpl-",
    .object = "text_completion",
    .chunk_object = "text_completion",
    .whole = whole,
    .echo = echo,
    .chunk = chunk,
    .collect = collect,
};

static pd_status decode(pd_req *q, pd_err *err) {
    return pd_gen_decode(q, &shape, err);
}

const pd_route pd_route_completions = {.method = "POST",
                                       .path = "/v1/completions",
                                       .label = "/v1/completions",
                                       .decode = decode,
                                       .run = pd_gen_run};
