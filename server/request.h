/* SPDX-License-Identifier: Apache-2.0 */
/* A completion or chat request, from JSON to what the engine takes.
 *
 * Two steps: pd_request_decode checks every field against types, ranges and what
 * is served (no tokenizer needed), pd_request_tokenize makes the prompt's ids.
 * Both may run on a pool thread: they read only the request and what is constant
 * after loading.  A null field is an absent one.  A field of OpenAI's that we do
 * not serve and that would change the answer is refused by name unless it holds
 * its neutral value; all other unknown fields are ignored. */
#ifndef PD_SERVER_REQUEST_H
#define PD_SERVER_REQUEST_H

#include "engine/run/engine.h"
#include "server/echo.h"
#include "server/json.h"
#include "server/tools.h"

enum {
    PD_REQUEST_MESSAGES_MAX = 2048,
    PD_REQUEST_RATIOS_MAX = 64,
    PD_REQUEST_PROMPTS_MAX = PD_CHOICES_MAX, /* prompts times answers are bounded by it too */
    PD_REQUEST_BEST_OF_MAX = 20,
    PD_COMPLETION_MAX_TOKENS = 16, /* OpenAI's default where max_tokens is absent */
};

typedef enum { PD_REQUEST_COMPLETION, PD_REQUEST_CHAT } pd_request_kind;

/* What the server knows; borrowed. */
typedef struct pd_request_env {
    const char *model_id;
    const pd_press_model *press_model;
    const char *compression; /* server default, NULL = dense */
    size_t n_vocab;
    const pd_tokenizer *tok; /* for pd_request_tokenize */
    const pd_chat *chat;
    const char *tool_schema; /* where a tool of the body as it was sent has its schema, NULL = as a chat's */
} pd_request_env;

typedef struct pd_prompt {
    const char *text; /* a completion's, as text, or NULL when it came as ids */
    size_t text_len;
    pd_ids ids;       /* given, or made by pd_request_tokenize */
    pd_compression *compression; /* NULL = dense; each prompt has its own of the same */
} pd_prompt;

typedef struct pd_request {
    json_t *body;     /* owned until pd_request_trim; strings below borrow from it or the arena */
    pd_arena arena;
    pd_request_kind kind;
    bool stream, include_usage, continuous_usage;

    pd_prompt *prompt; /* [n_prompt], arena; a chat has one */
    size_t n_prompt;
    size_t n, best_of; /* answers given and made per prompt */
    pd_chat_msg *msg; /* chat */
    size_t n_msg;
    pd_jheap values;    /* what the template sees: the next two */
    pd_jval *msg_value; /* [n_msg] */
    pd_jval vars;       /* of chat_template_kwargs, documents ... */
    bool add_generation_prompt, continue_final;
    pd_tools *tools;    /* that may be called, NULL = none; kept until pd_request_done */
    pd_chat_marks marks;
    bool has_marks;

    bool max_given;
    size_t max_tokens;
    pd_sampling sampling;
    bool seed_given;
    struct { const char *text; size_t len; } stop[PD_STOP_MAX];
    size_t n_stop;
    int32_t *stop_id; /* arena, as adjust.bias */
    size_t n_stop_id;
    pd_adjust adjust;
    pd_grammar *grammar; /* one reference; NULL = any answer */
    int n_logprobs, n_prompt_logprobs; /* -1 = not asked for */
    bool echo;
    pd_echo *echoed;  /* [n_echoed], one per prompt, if `echo`; made by pd_request_tokenize */
    size_t n_echoed;
    bool ignore_eos, verbose;

    bool scores;      /* explain */
    double ratio[PD_REQUEST_RATIOS_MAX];
    size_t n_ratio;
    pd_compression *compare[PD_COMPARE_MAX];
    size_t n_compare;
} pd_request;

/* Takes `body` always.  `explain` reads "scores", "ratios" and "compare" too.  *ret is
 * written only on success; pd_request_done frees it.  Errors: EINVAL with the
 * JSON path, the value and what is allowed; ENOMEM. */
pd_status pd_request_decode(json_t *body, pd_request_kind kind, bool explain,
                            const pd_request_env *env, pd_request *ret, pd_err *err);

/* Messages, "messages" as in a chat request, to r->msg: used by /tokenize too. */
pd_status pd_request_messages(const json_t *body, pd_request *r, pd_err *err);

/* Member `key`, a string, an array of token ids, or an array of at most `max` of these,
 * to r->prompt.  Errors: EINVAL with the path, ENOMEM. */
pd_status pd_request_texts(const json_t *body, const char *key, size_t max,
                           const pd_request_env *env, pd_request *r, pd_err *err);

/* Room for n prompts.  ENOMEM. */
pd_status pd_request_prompts(pd_request *r, size_t n, pd_err *err);

/* Text or messages -> ids of every prompt.  Errors: EINVAL (empty prompt, a role the
 * template refuses, no template), ENOMEM. */
pd_status pd_request_tokenize(pd_request *r, const pd_request_env *env, pd_err *err);

/* After that, for a request that is answered: r->grammar, where tools have a part in it.
 * Errors: as pd_tools_grammar. */
pd_status pd_request_constrain(pd_request *r, pd_err *err);

/* What the engine takes for prompt i: borrows from r; its compression moves on
 * success of the submit, as do the members of r->compare (pd_request_taken). */
void pd_request_params(const pd_request *r, size_t i, pd_job_params *ret);
void pd_request_taken(pd_request *r, size_t i);

void pd_request_trim(pd_request *r); /* after submit: free what only decoding needed */
void pd_request_done(pd_request *r);

#endif
