/* SPDX-License-Identifier: Apache-2.0 */
/* Between chat.c (choosing, encoding) and chat_family.c (what each family writes). */
#ifndef PD_ENGINE_TOKENIZER_CHAT_FAMILY_H
#define PD_ENGINE_TOKENIZER_CHAT_FAMILY_H

#include "engine/tokenizer/chat.h"
#include "engine/tokenizer/vocab.h"

/* A prompt being written, and what must be known of it to turn it into ids.
 * Offsets count from `base`, where this prompt starts in `text`. */
typedef struct {
    const pd_tokenizer *t;
    pd_buf *text;
    size_t base;
    pd__span *plain; /* the messages' own words: no control token in there */
    size_t n_plain, cap_plain;
    size_t system_begin, system_end, last_user; /* SIZE_MAX if none */
    bool bos;    /* the template put bos first */
    bool failed; /* no memory */
} pd__prompt;

/* How an [INST] family differs from its cousins. */
typedef struct {
    const char *open, *close;    /* around a user message */
    const char *answer, *answer_end; /* before an assistant message; after its eos */
    bool answer_trim;
    enum { PD__SYSTEM_REFUSED, PD__SYSTEM_FIRST, PD__SYSTEM_LAST } system; /* which user message it joins */
} pd__inst_style;

struct pd_chat {
    const char *name;
    pd_status (*render)(const pd_chat *c, pd__prompt *p, const pd_chat_msg *msg, size_t n, bool generate, pd_err *err);
    const char *system; /* the system message where none is given; NULL: none */
    const pd__inst_style *inst;
};

extern const pd_chat pd__chats[];
extern const size_t pd__n_chats;
const pd_chat *pd__chat_find(const char *name, size_t len); /* NULL if unknown */

/* The family of a file's Jinja text, or NULL.  It must be one we render to the
 * letter: an unknown one is never taken for its nearest relative. */
const pd_chat *pd__chat_recognise(const char *jinja, size_t len);

#endif
