/* SPDX-License-Identifier: Apache-2.0 */
/* The compute threads: run one function over n tasks and wait.
 *
 * The caller is thread 0 and works too.  Tasks are handed out by an atomic
 * counter, so a slow core takes fewer; which thread runs a task must therefore
 * never matter for its result (fixed reduction order is the callers' duty).
 * Workers spin briefly between runs (a decode step has hundreds of short ones)
 * and sleep on a futex after that. */
#ifndef PD_ENGINE_BASE_WORKERS_H
#define PD_ENGINE_BASE_WORKERS_H

#include "engine/base/err.h"

#include <stddef.h>

typedef struct pd_workers pd_workers;

/* n_threads >= 1 counts the caller.  Errors: EINVAL (0 or > 256), ENOMEM. */
pd_status pd_workers_open(pd_workers **ret, unsigned n_threads, pd_err *err);
void pd_workers_close(pd_workers *w); /* joins; NULL is fine */
unsigned pd_workers_count(const pd_workers *w); /* 1 for NULL */

/* fn(ctx, task, thread) for every task in [0, n_tasks); thread < count names the
 * scratch it may use.  Returns when all are done.  `w` NULL runs inline.
 * Thread: one at a time (never from inside a task). */
typedef void (*pd_task_fn)(void *ctx, size_t task, unsigned thread);
void pd_workers_run(pd_workers *w, pd_task_fn fn, void *ctx, size_t n_tasks);

/* One processor for each thread, if there are exactly as many as threads: else the
 * system now and then puts two of them on one, and for tens of milliseconds every
 * run then waits out a spin.  The calling thread becomes thread 0 for good; others of
 * the process stay free to run anywhere.  Thread: the one that will call
 * pd_workers_run from now on. */
void pd_workers_pin(pd_workers *w);

/* Processors this process may run on (affinity mask), at least 1. */
unsigned pd_cpu_count(void);

#endif
