/* SPDX-License-Identifier: Apache-2.0 */
/* Replies: the one place that turns a pd_err into HTTP and an OpenAI error body. */
#ifndef PD_SERVER_REPLY_H
#define PD_SERVER_REPLY_H

#include "server/http.h"

/* {"error":{"message","type","param","code"}} appended to *out. */
void pd_reply_error_body(pd_buf *out, const pd_err *err);

/* The same as Anthropic's clients read it: "type":"error" beside it, their words for
 * what is the server's fault. */
void pd_reply_error_body_anthropic(pd_buf *out, const pd_err *err);

/* Answer with the error: status, Retry-After where it helps, body. */
void pd_reply_error(pd_req *q, const pd_err *err);

/* Answer 200 application/json with what q->out holds; ENOMEM if writing it failed. */
void pd_reply_json(pd_req *q);

#endif
