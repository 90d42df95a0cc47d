/* SPDX-License-Identifier: Apache-2.0 */
/* What a way of keeping or reading the cache costs, on a real model: of a text
 * `context` tokens are read and `forced` more are forced, one decode step each, by a
 * batch with one sequence for each kind; the next token's distribution is compared
 * with that of the first kind. */
#ifndef PD_TESTS_GOLDEN_FORCED_H
#define PD_TESTS_GOLDEN_FORCED_H

#include "engine/run/state.h"

typedef struct forced_kind {
    const char *name;
    const char *press; /* text form, NULL = none */
    double ratio;
    pd_kv_type key, value;
    double limit;       /* of the mean KL; 0 = anything */
    bool over;          /* the mean over all texts is to be above that of the kind before */
    double limit_share; /* of the value rows read; 0 = anything */
} forced_kind;

typedef struct forced_result {
    double kl_mean, kl_p99, same_top; /* KL(first || this) in nats; share of steps with the same likeliest token */
    uint64_t bytes;                   /* of the pages at the end */
    uint64_t rows, rows_key, rows_value; /* pd_kv_report */
} forced_result;

/* PRESSD_KV_COMPUTE=f32, PRESSD_KV_CPU_MASK and PRESSD_KV_THREADS are obeyed; ends the program if it cannot.
 * press_data: a file, or NULL. */
pd_engine *forced_open(const char *model, const char *press_data, size_t context, size_t forced, size_t n_kind);

/* result[n_kind]; ends the program if the text is too short. */
void forced_run(pd_engine *e, const char *path, size_t context, size_t forced, const forced_kind *kind, size_t n_kind,
                forced_result *result);

/* What a step takes a sequence alone, ms[n_kind]: `rounds` times, each kind in its turn takes `steps` steps behind
 * the context, and the median over rounds counts.  The engine is open for rounds * steps forced tokens. */
void forced_time(pd_engine *e, const char *path, size_t context, size_t rounds, size_t steps, const forced_kind *kind,
                 size_t n_kind, double *ms);

#endif
