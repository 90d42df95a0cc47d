/* SPDX-License-Identifier: Apache-2.0 */
/* Chat templates: messages -> the prompt's text and ids.
 *
 * The template is the file's own Jinja text, or the one that --chat-template gives, or
 * (for a file without a usable one) that of the family whose markers the vocabulary has; it is
 * rendered by engine/jinja.  Special tokens come from the template alone: the same
 * characters inside a message, a tool or another field of the request stay text.
 * Thread: open and close one, the rest any. */
#ifndef PD_ENGINE_TOKENIZER_CHAT_H
#define PD_ENGINE_TOKENIZER_CHAT_H

#include "engine/base/buf.h"
#include "engine/base/err.h"
#include "engine/jinja/jinja.h"
#include "engine/tokenizer/tokenizer.h"

typedef struct pd_chat pd_chat;

typedef struct {
    const char *role, *content; /* NUL-terminated, well-formed UTF-8 */
} pd_chat_msg;

/* What is to be rendered; borrowed. */
typedef struct {
    const pd_chat_msg *msg;
    size_t n_msg; /* at most PD_JORIGIN_MAX */
    /* [n_msg] dicts: the messages with all their fields, as the template sees them, message
     * i of origin i + 1; NULL: role and content alone. */
    const pd_jval *value;
    /* A dict of what else the template may use (tools, documents, enable_thinking ...),
     * of origin PD_JORIGIN_OTHER; NULL: nothing. */
    const pd_jval *vars;
    bool add_generation_prompt;
    bool continue_final; /* the prompt ends with the last message's words */
    int64_t now;         /* what strftime_now tells; 0: the template has no clock */
} pd_chat_talk;

/* Where things lie in the ids, for `scope` and `protect_system`. */
typedef struct {
    size_t system_begin, system_end; /* token range of the system message with its markers; equal if none */
    size_t last_user_begin;          /* first token of the last user message's header; n if there is none */
} pd_chat_marks;

typedef enum { PD_CHAT_FROM_FILE, PD_CHAT_FROM_OPTION, PD_CHAT_FROM_ARCH } pd_chat_origin;

/* `spec` NULL or "" chooses by itself: the model's template, or the family's if there is
 * none or it does not compile (pd_chat_warning says so).  Else it is a known name, Jinja
 * text (it holds "{{" or "{%"), or a file of it.  Errors: EINVAL for a `spec` that is none
 * of these or does not compile, with the known names; EFILE when the model has no template
 * that can be used and is of no known family (how to override is said); ENOMEM. */
pd_status pd_chat_open(pd_chat **ret, const pd_gguf *g, const char *spec, pd_chat_origin *origin, pd_err *err);
void pd_chat_close(pd_chat *c);          /* NULL is fine */
const char *pd_chat_name(const pd_chat *c); /* a known name, "model" for the file's own, "custom" */
const char *pd_chat_warning(const pd_chat *c); /* why the model's own is not used, to be logged; NULL: it is, or there is none */
const char *pd_chat_names(void);         /* "chatml, gemma, ..." for help and errors */
const char *pd_chat_text(const pd_chat *c); /* the Jinja text */
/* Does the template speak of this variable ("tools")? */
bool pd_chat_uses(const pd_chat *c, const char *variable);

/* The prompt as text, appended to *out.  Errors: EINVAL with param "messages" and the
 * template's words (raise_exception, or what it could not do and where), ENOMEM. */
pd_status pd_chat_render(const pd_chat *c, const pd_tokenizer *t, const pd_chat_talk *talk, pd_buf *out, pd_err *err);

/* The prompt as ids, appended to *out (bos by the template or the model's rule,
 * never twice).  `marks` may be NULL. */
pd_status pd_chat_encode(const pd_chat *c, const pd_tokenizer *t, const pd_chat_talk *talk, pd_ids *out,
                         pd_chat_marks *marks, pd_err *err);

#endif
