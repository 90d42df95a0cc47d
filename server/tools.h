/* SPDX-License-Identifier: Apache-2.0 */
/* The tools of a chat request: which may be called, and in which form the model does.
 *
 * The template shows them to the model (its `tools`); for one that has no tools they are
 * put into the system message, and what was called and answered before into plain
 * messages.  A call that must be made is begun in the prompt, and how it may go on is a
 * grammar (tool_grammar.c).  What the model then says is read by tool_calls.c.
 * Thread: any. */
#ifndef PD_SERVER_TOOLS_H
#define PD_SERVER_TOOLS_H

#include "engine/grammar/grammar.h"
#include "engine/tokenizer/chat.h"
#include "server/json.h"

enum { PD_TOOLS_MAX = 128, PD_TOOL_NAME_MAX = 64 };

/* How a model writes a call down. */
typedef enum {
    PD_TOOL_HERMES,  /* <tool_call>{"name": ..., "arguments": {...}}</tool_call> (Hermes, Qwen, SmolLM3 ...) */
    PD_TOOL_LLAMA3,  /* {"name": ..., "parameters": {...}} as the whole answer, or behind <|python_tag|> */
    PD_TOOL_MISTRAL, /* [TOOL_CALLS][{"name": ..., "arguments": {...}}], or [TOOL_CALLS]name[ARGS]{...} */
    PD_TOOL_ANY,     /* the template does not tell: Hermes' and Llama's are understood */
} pd_tool_format;

typedef enum { PD_TOOL_AUTO, PD_TOOL_REQUIRED, PD_TOOL_NAMED } pd_tool_choice;

typedef struct pd_tools {
    pd_tool_choice choice;
    size_t named;    /* PD_TOOL_NAMED: which */
    bool parallel;   /* more than one call in an answer */
    pd_tool_format format;
    bool args_mark;  /* PD_TOOL_MISTRAL: the second form */
    char **name;     /* [n] */
    size_t n;
    const char *schema; /* where errors say a tool's schema is: tools[i].THIS */
    char *begun;     /* what the answer begins with, already in the prompt; NULL: nothing */
} pd_tools;

/* "tools", "tool_choice", "parallel_tool_calls".  *ret is NULL where there are none, or none
 * may be called (tool_choice "none").  Errors: EINVAL, ENOMEM. */
pd_status pd_tools_decode(const json_t *body, pd_tools **ret, pd_err *err);
void pd_tools_close(pd_tools *t); /* NULL is fine */

bool pd_tools_good_name(const char *s); /* 1 to PD_TOOL_NAME_MAX letters, digits, "_", "-" and "." */

/* For this model's template: t->format, and for a call that must be made t->begun.  `schema`
 * becomes t->schema, NULL = "function.parameters". */
pd_status pd_tools_fit(pd_tools *t, const pd_chat *chat, const char *schema, pd_err *err);

/* What may follow t->begun: a call of one of the tools (`tools`, the request's) whose
 * arguments its schema accepts, and further ones where several may come.  Where nothing is
 * begun: that, or JSON of `form` (a schema, true = any object; NULL: *ret is NULL, any
 * answer will do).  A tool's schema is followed as far as it can be, to the letter if it
 * is "strict".  After pd_tools_fit.  Milliseconds.  Errors: EINVAL with the path of what a
 * strict schema asks for and is not served, a form whose model's calls are not text, or a
 * limit of the grammar; ENOMEM. */
pd_status pd_tools_grammar(const pd_tools *t, const json_t *tools, const json_t *form, pd_grammar **ret, pd_err *err);

bool pd_tools_knows(const pd_tools *t, const char *name, size_t n);

/* For a template without tools: what the system message says of them.  Appended. */
void pd_tools_describe(const json_t *tools, pd_buf *out);

#endif
