/* SPDX-License-Identifier: Apache-2.0 */
/* POST /v1/completions/render and /v1/chat/completions/render, in vLLM's shapes:
 * what the request is as token ids, nothing run.
 *
 *   a completion -> [{"request_id", "model", "token_ids": [ids], ...} per prompt]
 *   a chat       ->  {"request_id", "model", "token_ids": [ids], ...}
 *
 * A router that counts on equal prefixes asks here for the ids it hashes.  The answer
 * is written where the body is decoded: off the loop when it is long. */
#include "server/generate.h"
#include "server/reply.h"
#include "server/router.h"
#include "server/server.h"

static void write_sampling(pd_buf *out, const pd_request *r) {
    pd_buf_printf(out, "{\"n\":%zu,\"temperature\":", r->n);
    pd_json_f32(out, r->sampling.temperature);
    pd_buf_puts(out, ",\"top_p\":");
    pd_json_f32(out, r->sampling.top_p);
    pd_buf_puts(out, ",\"min_p\":");
    pd_json_f32(out, r->sampling.min_p);
    pd_buf_printf(out, ",\"top_k\":%d,\"max_tokens\":", r->sampling.top_k);
    if (r->max_given) pd_json_u64(out, r->max_tokens);
    else pd_buf_puts(out, "null");
    pd_buf_puts(out, ",\"seed\":");
    if (r->seed_given) pd_buf_printf(out, "%lld", (long long)r->sampling.seed);
    else pd_buf_puts(out, "null");
    pd_buf_putc(out, '}');
}

static void write_prompt(pd_req *q, const pd_request *r, const pd_prompt *p) {
    pd_buf *out = &q->out;
    pd_buf_puts(out, "{\"request_id\":");
    pd_json_cstr(out, q->id);
    pd_buf_puts(out, ",\"model\":");
    pd_json_cstr(out, q->srv->model_id);
    pd_buf_puts(out, ",\"token_ids\":[");
    for (size_t i = 0; i < p->ids.n; i++) pd_buf_printf(out, "%s%d", i ? "," : "", p->ids.id[i]);
    pd_buf_printf(out, "],\"stream\":%s,\"sampling_params\":", r->stream ? "true" : "false");
    write_sampling(out, r);
    pd_buf_putc(out, '}');
}

static pd_status render(pd_req *q, const pd_shape *shape, pd_err *err) {
    PD_TRY(pd_gen_decode(q, shape, err));
    const pd_request *r = &((const pd_gen *)q->state)->rq;
    const bool list = r->kind == PD_REQUEST_COMPLETION;
    if (list) pd_buf_putc(&q->out, '[');
    for (size_t i = 0; i < r->n_prompt; i++) {
        if (i) pd_buf_putc(&q->out, ',');
        write_prompt(q, r, &r->prompt[i]);
    }
    if (list) pd_buf_putc(&q->out, ']');
    return PD_OK;
}

static pd_status decode_completion(pd_req *q, pd_err *err) {
    static const pd_shape shape = {.kind = PD_REQUEST_COMPLETION};
    return render(q, &shape, err);
}

static pd_status decode_chat(pd_req *q, pd_err *err) {
    static const pd_shape shape = {.kind = PD_REQUEST_CHAT};
    return render(q, &shape, err);
}

const pd_route pd_route_render = {.method = "POST",
                                  .path = "/v1/completions/render",
                                  .label = "/v1/completions/render",
                                  .decode = decode_completion,
                                  .run = pd_reply_json};
const pd_route pd_route_render_chat = {.method = "POST",
                                       .path = "/v1/chat/completions/render",
                                       .label = "/v1/chat/completions/render",
                                       .decode = decode_chat,
                                       .run = pd_reply_json};
