/* SPDX-License-Identifier: Apache-2.0 */
/* Server-sent events (see sse.h). */
#include "server/sse.h"

#include "server/reply.h"

void pd_sse_error(pd_buf *out, const pd_err *err) {
    pd_sse_begin(out);
    pd_reply_error_body(out, err);
    pd_sse_end(out);
}
