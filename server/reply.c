/* SPDX-License-Identifier: Apache-2.0 */
/* Replies (see reply.h). */
#include "server/reply.h"

#include "server/json.h"
#include "server/metrics.h"
#include "server/router.h"
#include "server/server.h"

static const char type_json[] = "application/json";

static void error_object(pd_buf *out, const pd_err *err, const char *type) {
    const char *code = pd_status_code(err->code);
    pd_buf_puts(out, "\"error\":{\"message\":");
    pd_json_cstr(out, err->msg);
    pd_buf_puts(out, ",\"type\":");
    pd_json_cstr(out, type);
    pd_buf_puts(out, ",\"param\":");
    pd_json_cstr(out, err->param[0] ? err->param : NULL);
    pd_buf_puts(out, ",\"code\":");
    pd_json_cstr(out, code[0] ? code : NULL);
    if (err->code == PD_ECONTEXT && err->n_ctx) /* llama.cpp's */
        pd_buf_printf(out, ",\"n_prompt_tokens\":%zu,\"n_ctx\":%zu", err->n_prompt_tokens, err->n_ctx);
    pd_buf_puts(out, "}}");
}

void pd_reply_error_body(pd_buf *out, const pd_err *err) {
    pd_buf_putc(out, '{');
    error_object(out, err, pd_status_type(err->code));
}

void pd_reply_error_body_anthropic(pd_buf *out, const pd_err *err) {
    const char *type = pd_status_type(err->code);
    if (err->code == PD_ETOOBIG) type = "request_too_large";
    else if (pd_status_http(err->code) == 503) type = "overloaded_error";
    else if (pd_status_http(err->code) >= 500) type = "api_error";
    pd_buf_puts(out, "{\"type\":\"error\",");
    error_object(out, err, type);
}

void pd_reply_error(pd_req *q, const pd_err *err) {
    pd_buf_clear(&q->out);
    if (q->route && (q->route->flags & PD_ROUTE_ANTHROPIC)) pd_reply_error_body_anthropic(&q->out, err);
    else pd_reply_error_body(&q->out, err);
    pd_buf_putc(&q->out, '\n');
    if (q->out.failed) pd_buf_clear(&q->out); /* out of memory: the status alone still goes */
    switch (err->code) {
    case PD_EBUSY: /* a place frees within a request's time: soon */
        pd_req_add_header(q, "Retry-After", "1");
        pd_req_add_header(q, "retry-after-ms", "1000");
        break;
    case PD_EUNAVAIL: pd_req_add_header(q, "Retry-After", "2"); break;
    case PD_ENOMEM: pd_req_add_header(q, "Retry-After", "1"); break;
    case PD_EAUTH: pd_req_add_header(q, "WWW-Authenticate", "Bearer"); break;
    default: break;
    }
    pd_metrics_rejected(&q->srv->metrics, err->code);
    pd_req_reply(q, pd_status_http(err->code), type_json);
}

void pd_reply_json(pd_req *q) {
    if (q->out.failed) {
        pd_err err = {0};
        pd_fail(&err, PD_ENOMEM, NULL, "the reply does not fit in memory");
        pd_reply_error(q, &err);
        return;
    }
    pd_buf_putc(&q->out, '\n');
    pd_req_reply(q, 200, type_json);
}
