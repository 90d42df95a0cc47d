/* SPDX-License-Identifier: Apache-2.0 */
/* Between chat.c (choosing, rendering, encoding), chat_builtin.c (templates by name)
 * and chat_marks.c (where messages lie in what was rendered). */
#ifndef PD_ENGINE_TOKENIZER_CHAT_INT_H
#define PD_ENGINE_TOKENIZER_CHAT_INT_H

#include "engine/tokenizer/chat.h"
#include "engine/tokenizer/vocab.h"

typedef struct {
    const char *name, *text;
} pd__chat_builtin;

extern const pd__chat_builtin pd__chat_builtins[];
extern const size_t pd__n_chat_builtins;
const pd__chat_builtin *pd__chat_find(const char *name, size_t len); /* NULL if unknown */

/* A template by itself, for tests: `name` as pd_chat_name gives it. */
pd_status pd__chat_from_text(pd_chat **ret, const char *name, const char *text, size_t n, pd_err *err);

/* Byte offsets in a prompt's text; SIZE_MAX where there is none. */
typedef struct {
    size_t system_begin, system_end, last_user;
} pd__chat_places;

pd__chat_places pd__chat_locate(const pd_tokenizer *t, const pd_jout *out, const pd_chat_msg *msg, size_t n_msg);

/* The length of the bos token's text at the start of the output, if the template wrote it. */
size_t pd__chat_bos_len(const pd_tokenizer *t, const pd_jout *out);

#endif
