/* SPDX-License-Identifier: Apache-2.0 */
/* One request's compression wish, resolved and ready for the engine. */
#ifndef PD_COMPRESSION_COMPRESS_H
#define PD_COMPRESSION_COMPRESS_H

#include "compression/press.h"
#include "compression/spec.h"
#include "engine/cache/codec.h"

typedef enum { PD_BUDGET_RATIO, PD_BUDGET_TOKENS, PD_BUDGET_BYTES } pd_budget_kind;
typedef enum { PD_SCOPE_PROMPT, PD_SCOPE_CONTEXT, PD_SCOPE_TOKENS } pd_scope_kind;

enum { PD_READ_MAX = 4 };

typedef struct pd_compression {
    pd_press_inst *press; /* of the prompt; NULL = dense */
    pd_budget_kind budget;
    double ratio;         /* RATIO: [0, 1) */
    bool has_ratio;       /* it stood inside prefill_decoding */
    uint64_t amount;      /* TOKENS per head, or BYTES of the whole cache of the scope */

    pd_scope_kind scope;
    size_t scope_tokens;  /* TOKENS */
    bool protect_system;
    size_t min_tokens;

    pd_press_inst *decode; /* while generating, has a decode_rule; NULL = none.  A press that
                              goes on after the prompt stands in both places. */

    pd_press_inst *read[PD_READ_MAX]; /* [n_read] what a decode step reads, outermost first; without children */
    size_t n_read;

    pd_kv_type kv_key, kv_value; /* how pages store numbers; NATIVE = as the engine computes */

    uint64_t seed;
} pd_compression;

/* Put a press where it works: one of the prompt to c->press, a decode press to
 * c->decode, the children of prefill_decoding to both, one that says what is read
 * to c->read and then what stands inside it.  `path` names the press in
 * errors.  NULL inst: nothing.  Takes inst in any case.  Errors: EINVAL (a decode
 * press or a reading one twice, or a decode press inside another press; presses
 * that do not go together). */
pd_status pd_compression_take(pd_compression *c, pd_press_inst *inst, const char *path, pd_err *err);

/* c->decode = decoding(prune), or compression_ratio_decoding(prune) if `ratio` is
 * not NaN: what `compression.decode` says.  Takes prune in any case.  Errors: EINVAL
 * (it works on prompts only), ENOMEM. */
pd_status pd_compression_decode_every(pd_compression *c, pd_press_inst *prune, size_t interval, size_t target,
                                      double ratio, const char *path, pd_err *err);

/* What all of c->read say together; NULL c or none of them: everything. */
pd_read_rule pd_compression_read(const pd_compression *c);

/* Text of the one press that says it all, and its name; "none" for NULL. */
void pd_compression_text(const pd_compression *c, pd_buf *out);
const char *pd_compression_name(const pd_compression *c);

void pd_compression_close(pd_compression *c); /* frees the instances and `c`; NULL is fine */

#endif
