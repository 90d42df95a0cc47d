/* SPDX-License-Identifier: Apache-2.0 */
/* A reply that is no list of choices: another API's shape of a chat, one answer.
 *
 * The answer is a row of blocks in the order they were said, each a text or a tool call.
 * In a whole reply a block is one function's output; in a stream of named events it
 * opens, grows and closes before the next one opens.  An answer that says nothing has one
 * empty text.  Thread: loop, after `translate`. */
#ifndef PD_SERVER_DIALECT_H
#define PD_SERVER_DIALECT_H

#include "server/json.h"
#include "server/tool_calls.h"

struct pd_answer;
struct pd_gen;

typedef struct pd_block {
    size_t index;             /* among the answer's blocks */
    const pd_tool_call *call; /* NULL: a text */
    const char *text;         /* [len] of the text or the call's arguments; see below which */
    size_t len;
    bool last; /* the answer's end is its end */
} pd_block;

/* Where a stream stands; zeroed at first. */
typedef struct pd_block_state {
    size_t n;     /* begun; the last of them is open */
    bool in_call;
    size_t call;  /* the reader's index of the open one */
} pd_block_state;

typedef struct pd_dialect {
    const char *tool_schema; /* where a tool has its schema, for errors: tools[i].THIS */
    /* The body, changed in place to a chat's; may note in g->asked what the reply repeats. */
    pd_status (*translate)(json_t *body, struct pd_gen *g, pd_err *err);
    void (*whole)(struct pd_answer *a, pd_buf *out); /* calls pd_dialect_blocks */
    /* One block of it, all of its text. */
    void (*block)(struct pd_answer *a, pd_buf *out, const pd_block *b);
    void (*begin)(struct pd_answer *a, pd_buf *out); /* before the first token */
    void (*open)(struct pd_answer *a, pd_buf *out, const pd_block *b);
    void (*more)(struct pd_answer *a, pd_buf *out, const pd_block *b); /* what came, never empty */
    void (*close)(struct pd_answer *a, pd_buf *out, const pd_block *b); /* a call's whole arguments */
    void (*end)(struct pd_answer *a, pd_buf *out);
    void (*error)(struct pd_gen *g, pd_buf *out, const pd_err *err);
} pd_dialect;

/* All blocks of a whole answer, parted by commas. */
void pd_dialect_blocks(struct pd_answer *a, pd_buf *out);

/* For a stream: what the reader has (an answer without one: `text`) since the last time. */
void pd_dialect_stream(struct pd_answer *a, pd_buf *out, const char *text, size_t len);

/* The answer is over: its last block, then the dialect's end. */
void pd_dialect_end(struct pd_answer *a, pd_buf *out);

#endif
