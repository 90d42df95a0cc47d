/* SPDX-License-Identifier: Apache-2.0 */
/* Chat templates: messages -> the prompt's text and ids.
 *
 * A template is recognised from the file's own Jinja text (or the family named
 * by --chat-template, or the architecture where the file has none) and rendered
 * by C code that gives exactly what the Jinja text gives.  Special tokens come
 * from the template alone: the same characters inside a message stay text.
 * Thread: any. */
#ifndef PD_ENGINE_TOKENIZER_CHAT_H
#define PD_ENGINE_TOKENIZER_CHAT_H

#include "engine/base/buf.h"
#include "engine/base/err.h"
#include "engine/tokenizer/tokenizer.h"

typedef struct pd_chat pd_chat; /* one family; lives forever */

typedef struct {
    const char *role, *content; /* NUL-terminated, well-formed UTF-8 */
} pd_chat_msg;

/* Where things lie in the ids, for `scope` and `protect_system`. */
typedef struct {
    size_t system_begin, system_end; /* token range of the system message with its markers; equal if none */
    size_t last_user_begin;          /* first token of the last user message's header; n if there is none */
} pd_chat_marks;

typedef enum { PD_CHAT_FROM_FILE, PD_CHAT_FROM_OPTION, PD_CHAT_FROM_ARCH } pd_chat_origin;

/* `name` NULL or "" chooses by itself.  Errors: EINVAL lists the known names;
 * EFILE when the file's template is of no known family (say how to override). */
pd_status pd_chat_open(const pd_chat **ret, const pd_gguf *g, const char *name, pd_chat_origin *origin, pd_err *err);
const char *pd_chat_name(const pd_chat *c);
const char *pd_chat_names(void); /* "chatml, gemma, ..." for help and errors */

/* The prompt as text, appended to *out.  Errors: EINVAL with param
 * "messages[i].role" when the template refuses the sequence (as raise_exception
 * does), ENOMEM. */
pd_status pd_chat_render(const pd_chat *c, const pd_tokenizer *t, const pd_chat_msg *msg, size_t n_msg,
                         bool add_generation_prompt, pd_buf *out, pd_err *err);

/* The prompt as ids, appended to *out (bos by the template or the model's rule,
 * never twice). */
pd_status pd_chat_encode(const pd_chat *c, const pd_tokenizer *t, const pd_chat_msg *msg, size_t n_msg,
                         bool add_generation_prompt, pd_ids *out, pd_chat_marks *marks, pd_err *err);

#endif
