/* SPDX-License-Identifier: Apache-2.0 */
/* One request's compression wish, resolved and ready for the engine. */
#ifndef PD_COMPRESSION_COMPRESS_H
#define PD_COMPRESSION_COMPRESS_H

#include "compression/press.h"
#include "compression/spec.h"

typedef enum { PD_BUDGET_RATIO, PD_BUDGET_TOKENS, PD_BUDGET_BYTES } pd_budget_kind;
typedef enum { PD_SCOPE_PROMPT, PD_SCOPE_CONTEXT, PD_SCOPE_TOKENS } pd_scope_kind;

typedef struct pd_compression {
    pd_press_inst *press; /* of the prompt; NULL = dense */
    pd_budget_kind budget;
    double ratio;         /* RATIO: [0, 1) */
    uint64_t amount;      /* TOKENS per head, or BYTES of the whole cache of the scope */

    pd_scope_kind scope;
    size_t scope_tokens;  /* TOKENS */
    bool protect_system;
    size_t min_tokens;

    pd_press_inst *decode; /* while generating; NULL = none */
    size_t decode_interval;  /* steps between two prunings, >= 1 */
    bool decode_by_ratio;
    size_t decode_target;  /* tokens per head */
    double decode_ratio;   /* target = max(1, (int)(seen * (1 - ratio))) */

    uint64_t seed;
} pd_compression;

void pd_compression_close(pd_compression *c); /* frees the instances and `c`; NULL is fine */

#endif
