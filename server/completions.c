/* SPDX-License-Identifier: Apache-2.0 */
/* POST /v1/completions: the text shape of a choice. */
#include "server/generate.h"
#include "server/router.h"
#include "server/server.h"

static void collect(pd_answer *a, const pd_token_event *ev) {
    pd_logprob_lists_add(&a->lists, a->gen->srv->tok, ev, a->n_chars);
}

static void choice(const pd_answer *a, pd_buf *out, const char *text, size_t len, bool logprobs,
                   const char *finish) {
    pd_buf_printf(out, "{\"index\":%zu,\"text\":", a->index);
    pd_json_str(out, text, len);
    pd_buf_puts(out, ",\"logprobs\":");
    if (logprobs) pd_logprob_lists_write(&a->lists, out);
    else pd_buf_puts(out, "null");
    pd_buf_puts(out, ",\"finish_reason\":");
    pd_json_cstr(out, finish);
    pd_buf_putc(out, '}');
}

static void whole(pd_answer *a, pd_buf *out, const char *finish) {
    choice(a, out, a->text.data, a->text.len, a->gen->rq.n_logprobs >= 0, finish);
}

static void chunk(pd_answer *a, pd_buf *out, const pd_token_event *ev, const char *text, size_t len,
                  const char *finish) {
    const bool logprobs = ev && a->gen->rq.n_logprobs >= 0;
    if (logprobs) {
        pd_logprob_lists_clear(&a->lists);
        collect(a, ev);
    }
    choice(a, out, text, len, logprobs, finish);
}

static const pd_shape shape = {
    .kind = PD_REQUEST_COMPLETION,
    .id_prefix = "cmpl-",
    .object = "text_completion",
    .chunk_object = "text_completion",
    .whole = whole,
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
