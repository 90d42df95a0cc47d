/* SPDX-License-Identifier: Apache-2.0 */
/* What a model says, parted into content and tool calls while it comes.
 *
 * Text that may still become a marker is held back; a call is told as soon as its name
 * is known, and its arguments as they come.  What looked like a call and is none is
 * content.  Costs linear time in the text.  Thread: one at a time. */
#ifndef PD_SERVER_TOOL_CALLS_H
#define PD_SERVER_TOOL_CALLS_H

#include "engine/base/buf.h"
#include "server/tools.h"

enum { PD_TOOL_CALLS_MAX = 128 };

typedef struct {
    char id[32];
    pd_buf name, arguments; /* so far */
    bool told;              /* its head went into a delta or a piece */
    size_t before, n_taken; /* bytes of content said before it; of its arguments in pieces */
} pd_tool_call;

/* Content, or (call not NULL) bytes of a call's arguments. */
typedef struct {
    const pd_tool_call *call;
    size_t index;     /* of the call */
    bool first;       /* its first piece, which may be empty */
    const char *text; /* [len] */
    size_t len;
} pd_tool_piece;

typedef struct pd_tool_reader pd_tool_reader;

/* `t` is borrowed.  NULL: no memory. */
pd_tool_reader *pd_tool_reader_open(const pd_tools *t);
void pd_tool_reader_close(pd_tool_reader *r); /* NULL is fine */

void pd_tool_reader_add(pd_tool_reader *r, const char *text, size_t n);
void pd_tool_reader_end(pd_tool_reader *r); /* nothing more comes: what was held back is content */

size_t pd_tool_reader_calls(const pd_tool_reader *r); /* that are given: whose name is known */
bool pd_tool_reader_failed(const pd_tool_reader *r);  /* out of memory */

const pd_tool_call *pd_tool_reader_call(const pd_tool_reader *r, size_t i); /* until more is added */

/* The next piece of what came since the last one, in the order it was said, valid until
 * more is added; false: nothing.  Not together with the next three. */
bool pd_tool_reader_take(pd_tool_reader *r, pd_tool_piece *ret);

/* Members of a message: "content" (null if there is none beside calls), "tool_calls". */
void pd_tool_reader_message(const pd_tool_reader *r, pd_buf *out);
bool pd_tool_reader_ready(const pd_tool_reader *r); /* is there something for a delta? */
/* Members of a delta: what came since the last one; false (nothing written) if nothing. */
bool pd_tool_reader_delta(pd_tool_reader *r, pd_buf *out);

#endif
