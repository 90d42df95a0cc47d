/* SPDX-License-Identifier: Apache-2.0 */
/* Server-sent events: bytes, no socket.  What stands between begin and end is one
 * line (JSON escapes newlines), so model text cannot forge an event. */
#ifndef PD_SERVER_SSE_H
#define PD_SERVER_SSE_H

#include "engine/base/buf.h"
#include "engine/base/err.h"

#define PD_SSE_TYPE "text/event-stream"

static inline void pd_sse_begin(pd_buf *out) {
    pd_buf_puts(out, "data: ");
}
/* The same for a named event. */
static inline void pd_sse_begin_named(pd_buf *out, const char *event) {
    pd_buf_printf(out, "event: %s\ndata: ", event);
}
static inline void pd_sse_end(pd_buf *out) {
    pd_buf_puts(out, "\n\n");
}
/* A comment, so that proxies do not take a long prefill for a dead connection. */
static inline void pd_sse_ping(pd_buf *out) {
    pd_buf_puts(out, ": ping\n\n");
}
static inline void pd_sse_done(pd_buf *out) {
    pd_buf_puts(out, "data: [DONE]\n\n");
}
void pd_sse_error(pd_buf *out,
                  const pd_err *err); /* an error event; [DONE] follows by the caller */

#endif
