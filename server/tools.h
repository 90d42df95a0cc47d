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
    PD_TOOL_HERMES,   /* <tool_call>{"name": ..., "arguments": {...}}</tool_call> (Hermes, Qwen, SmolLM3 ...) */
    PD_TOOL_LLAMA3,   /* {"name": ..., "parameters": {...}} as the whole answer, or behind <|python_tag|> */
    PD_TOOL_MISTRAL,  /* [TOOL_CALLS][{"name": ..., "arguments": {...}}], or [TOOL_CALLS]name[ARGS]{...} */
    PD_TOOL_ANY,      /* the template does not tell: Hermes' and Llama's are understood */
    PD_TOOL_FUNCTION, /* <tool_call><function=name><parameter=key>value</parameter></function></tool_call>
                         (Qwen3-Coder, Nemotron 3), or <function=name>{...}</function> (Functionary) */
    PD_TOOL_ARG_KEYS, /* <tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call> (GLM) */
    PD_TOOL_DEEPSEEK, /* <｜tool▁call▁begin｜>name<｜tool▁sep｜>{...}<｜tool▁call▁end｜>, in R1 function<｜tool▁sep｜>name and fences */
    PD_TOOL_KIMI,     /* <|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{...}<|tool_call_end|> */
    PD_TOOL_LIST,     /* t->mark[{"name": ..., "arguments": {...}}] (Granite 3, Command R7B, Nemotron 2, FireFunction ...) */
    PD_TOOL_KEYED,    /* <|tools_prefix|>[{name: {...}}]<|tools_suffix|> (Apertus) */
    PD_TOOL_GIGACHAT, /* <|function_call|>{"name": ..., "arguments": {...}}, or a role of its own */
    PD_TOOL_SOLAR,    /* <|tool_call:begin|>id<|tool_call:name|>name<|tool_call:args|>{...}<|tool_call:end|> */
    PD_TOOL_CHANNEL,  /*  to=functions.name<|channel|>commentary json<|message|>{...}<|call|> (gpt-oss) */
    PD_TOOL_HY3,      /* GLM's with <tool_call:opensource> and the like */
    PD_TOOL_INVOKE,   /* <invoke name="name"><parameter name="key">value</parameter></invoke> (MiniMax M2) */
    PD_TOOL_ATEM,     /* the same with <atem:invoke name="name"> (Muse) */
    PD_TOOL_DSML,     /* the same with <｜DSML｜invoke name="name">, and string="true" (DeepSeek V3.2, V4) */
    PD_TOOL_PARAM,    /* <function name="name"><param name="key">value</param></function> (MiniCPM 5) */
    PD_TOOL_OPEN,     /* <|open|>call tool="name"<|sep|><|open|>argument key="key" type="string"<|sep|>value ... (Kimi K3) */
    PD_TOOL_PYTHON,   /* <|tool_call_start|>[name(key='value')]<|tool_call_end|> (LFM2) */
    PD_TOOL_GEMMA,    /* <|tool_call>call:name{key:<|"|>value<|"|>}<tool_call|> (Gemma 4) */
    PD_TOOL_FORMATS,
} pd_tool_format;

/* How a call that must be made is written; static texts. */
typedef struct {
    const char *open;   /* up to its name */
    const char *behind; /* the name, up to the arguments; `spoken`: the same without control tokens, which no grammar allows */
    const char *spoken;
    const char *close;  /* behind the arguments */
    const char *between, *after; /* it and the next one's name; the last one, "" = nothing.  between NULL: only one can be made */
    bool after_may;     /* `after` may be left out */
    bool control;       /* `open` has control tokens: no grammar can begin with it */
} pd_tool_begin;

typedef enum { PD_TOOL_AUTO, PD_TOOL_REQUIRED, PD_TOOL_NAMED } pd_tool_choice;

typedef struct pd_tools {
    pd_tool_choice choice;
    size_t named;    /* PD_TOOL_NAMED: which */
    bool parallel;   /* more than one call in an answer */
    pd_tool_format format;
    const char *mark; /* PD_TOOL_LIST: what the list stands behind, static */
    pd_tool_begin begin;
    char **name;     /* [n] */
    size_t n;
    json_t *list;    /* the request's, NULL = nothing is known of parameters; one reference */
    const char *schema; /* where errors say a tool's schema is: tools[i].THIS */
    char *begun;     /* what the answer begins with, already in the prompt; NULL: nothing */
} pd_tools;

/* "tools", "tool_choice", "parallel_tool_calls".  *ret is NULL where there are none, or none
 * may be called (tool_choice "none").  Errors: EINVAL, ENOMEM. */
pd_status pd_tools_decode(const json_t *body, pd_tools **ret, pd_err *err);
void pd_tools_close(pd_tools *t); /* NULL is fine */

bool pd_tools_good_name(const char *s, size_t n); /* 1 to PD_TOOL_NAME_MAX letters, digits, "_", "-" and "." */

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
