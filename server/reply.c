/* SPDX-License-Identifier: Apache-2.0 */
/* Replies (see reply.h). */
#include "server/reply.h"

#include "server/json.h"
#include "server/metrics.h"
#include "server/server.h"

static const char type_json[] = "application/json";

void pd_reply_error_body(pd_buf *out, const pd_err *err) {
    const char *code = pd_status_code(err->code);
    pd_buf_puts(out, "{\"error\":{\"message\":");
    pd_json_cstr(out, err->msg);
    pd_buf_puts(out, ",\"type\":");
    pd_json_cstr(out, pd_status_type(err->code));
    pd_buf_puts(out, ",\"param\":");
    pd_json_cstr(out, err->param[0] ? err->param : NULL);
    pd_buf_puts(out, ",\"code\":");
    pd_json_cstr(out, code[0] ? code : NULL);
    pd_buf_puts(out, "}}");
}

void pd_reply_error(pd_req *q, const pd_err *err) {
    pd_buf_clear(&q->out);
    pd_reply_error_body(&q->out, err);
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
