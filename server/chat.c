/* SPDX-License-Identifier: Apache-2.0 */
/* POST /v1/chat/completions: the chat shape of a choice. */
#include "server/generate.h"
#include "server/router.h"
#include "server/server.h"

#include <string.h>

/* An answer that ends by itself with a call in it ends to have it made. */
static void finish_member(const pd_answer *a, pd_buf *out, const char *finish) {
    if (finish && a->reader && strcmp(finish, "stop") == 0 && pd_tool_reader_calls(a->reader))
        finish = "tool_calls";
    pd_buf_puts(out, ",\"finish_reason\":"); /* always there: null inside a stream */
    pd_json_cstr(out, finish);
    pd_buf_putc(out, '}');
}

static void collect(pd_answer *a, const pd_token_event *ev) {
    if (a->chat_logprobs.len) pd_buf_putc(&a->chat_logprobs, ',');
    pd_logprob_chat(&a->chat_logprobs, a->gen->srv->tok, ev);
}

static void whole(pd_answer *a, pd_buf *out, const char *finish) {
    pd_buf_printf(out, "{\"index\":%zu,\"message\":{\"role\":\"assistant\",", a->index);
    if (a->reader) {
        pd_tool_reader_message(a->reader, out);
    } else {
        pd_buf_puts(out, "\"content\":");
        pd_json_str(out, a->text.data, a->text.len);
    }
    pd_buf_puts(out, ",\"refusal\":null},\"logprobs\":");
    if (a->gen->rq.n_logprobs >= 0) {
        pd_buf_puts(out, "{\"content\":[");
        if (a->chat_logprobs.len) pd_buf_add(out, a->chat_logprobs.data, a->chat_logprobs.len);
        pd_buf_puts(out, "],\"refusal\":null}");
    } else {
        pd_buf_puts(out, "null");
    }
    finish_member(a, out, finish);
}

/* vLLM puts the prompt's log probabilities beside the choices of a chat. */
static void members(pd_gen *g, pd_buf *out) {
    if (g->rq.n_prompt_logprobs < 0) return;
    const pd_job *job = g->answer->call->job;
    pd_buf_puts(out, ",\"prompt_logprobs\":");
    pd_logprob_prompt(out, g->srv->tok, pd_job_scored(job), pd_job_prompt_tokens(job),
                      (size_t)g->rq.n_prompt_logprobs);
}

static void opening(pd_answer *a, pd_buf *out) {
    pd_buf_printf(out,
                  "{\"index\":%zu,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                  "\"logprobs\":null",
                  a->index);
    finish_member(a, out, NULL);
}

static void chunk(pd_answer *a, pd_buf *out, const pd_token_event *ev, const char *text, size_t len,
                  const char *finish) {
    pd_buf_printf(out, "{\"index\":%zu,\"delta\":{", a->index);
    if (!finish && (!a->reader || !pd_tool_reader_delta(a->reader, out))) {
        pd_buf_puts(out, "\"content\":");
        pd_json_str(out, text, a->reader ? 0 : len);
    }
    pd_buf_puts(out, "},\"logprobs\":");
    if (ev && a->gen->rq.n_logprobs >= 0) {
        pd_buf_puts(out, "{\"content\":[");
        pd_logprob_chat(out, a->gen->srv->tok, ev);
        pd_buf_puts(out, "],\"refusal\":null}");
    } else {
        pd_buf_puts(out, "null");
    }
    finish_member(a, out, finish);
}

static const pd_shape shape = {
    .kind = PD_REQUEST_CHAT,
    .id_prefix = "chatcmpl-",
    .object = "chat.completion",
    .chunk_object = "chat.completion.chunk",
    .whole = whole,
    .members = members,
    .opening = opening,
    .chunk = chunk,
    .collect = collect,
};

static pd_status decode(pd_req *q, pd_err *err) {
    return pd_gen_decode(q, &shape, err);
}

const pd_route pd_route_chat = {.method = "POST",
                                .path = "/v1/chat/completions",
                                .label = "/v1/chat/completions",
                                .decode = decode,
                                .run = pd_gen_run};
