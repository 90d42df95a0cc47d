/* SPDX-License-Identifier: Apache-2.0 */
/* The compute threads: run one function over n tasks and wait.
 *
 * The caller is thread 0 and works too.  Each thread begins with its share, tasks that
 * lie side by side, and then takes what is left of the others', so a slow core does
 * fewer; which thread runs a task must therefore never matter for its result (fixed
 * reduction order is the callers' duty).
 * Workers spin briefly between runs (a decode step has hundreds of short ones)
 * and sleep on a futex after that. */
#ifndef PD_ENGINE_BASE_WORKERS_H
#define PD_ENGINE_BASE_WORKERS_H

#include "engine/base/err.h"

#include <stdbool.h>
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

/* The first task of a thread's share of n_tasks; the last thread's ends at n_tasks. */
static inline size_t pd_workers_share(size_t n_tasks, unsigned thread, unsigned n_threads) {
    return n_tasks * thread / n_threads;
}

/* What a thread that is out of tasks does while it waits: fn(ctx, thread, n_threads, 0), 1, 2 and so
 * on, until fn says false or there is work.  It must do no more than prefetch.  From the
 * next run to the one after it; ctx lives on after that.  Thread: as pd_workers_run. */
typedef bool (*pd_ahead_fn)(const void *ctx, unsigned thread, unsigned n_threads, size_t step);
void pd_workers_ahead(pd_workers *w, pd_ahead_fn fn, const void *ctx);

/* One processor for each thread, if there are exactly as many as threads: else the
 * system now and then puts two of them on one, and for tens of milliseconds every
 * run then waits out a spin.  The calling thread becomes thread 0 for good; others of
 * the process stay free to run anywhere.  Thread: the one that will call
 * pd_workers_run from now on. */
void pd_workers_pin(pd_workers *w);

/* Processors this process may run on (affinity mask), at least 1. */
unsigned pd_cpu_count(void);

#endif
