/* SPDX-License-Identifier: Apache-2.0 */
/* Compute threads (see workers.h).
 *
 * One run = one "ticket" number.  The caller writes fn/ctx and the shares, then
 * publishes the ticket (release); a worker that sees a new ticket (acquire)
 * takes tasks until none are left and counts itself out in `done`.  The caller
 * leaves when all workers are out, so a worker never holds a stale ctx; what it does
 * while it waits it copied before that.
 * A futex on the ticket lets idle workers sleep; `sleepers` tells the caller
 * whether a wake-up call is needed at all. */
#include "engine/base/workers.h"

#include "engine/base/clock.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { THREADS_MAX = 256 };

/* How long to spin before sleeping: longer than the serial work between two runs
 * of a decode step, short enough that an idle server costs nothing.  In time, not
 * in rounds: one pause takes from 10 to 140 cycles, by CPU. */
enum { SPIN_NS = 100000, SPIN_ROUND = 32 };

/* Tasks [next, end) of a thread's share are left; anyone may take the next. */
typedef struct {
    _Alignas(64) _Atomic size_t next;
    size_t end;
} share;

typedef struct {
    pd_ahead_fn fn;
    const void *ctx;
} ahead;

struct pd_workers {
    unsigned n; /* threads, the caller included */
    bool spin;  /* false if there are more threads than processors */
    pthread_t *thread;
    unsigned n_started;

    pd_task_fn fn; /* written by the caller before ticket, read by workers after; shares likewise */
    void *ctx;
    ahead ahead, next_ahead; /* of this run; of the next one, the caller's alone */
    share *share;            /* [n] */

    _Alignas(64) _Atomic uint32_t ticket; /* release: caller; acquire: workers */
    _Atomic uint32_t sleepers;
    _Alignas(64) _Atomic uint32_t done; /* workers out of the run; release/acquire */
    _Atomic bool stop;
};

typedef struct {
    pd_workers *w;
    unsigned index;
} start_arg;

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void futex_wait(_Atomic uint32_t *addr, uint32_t seen) {
    syscall(SYS_futex, addr, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *addr) {
    syscall(SYS_futex, addr, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

static void take_tasks(pd_workers *w, unsigned thread) {
    for (unsigned k = 0; k < w->n; k++) { /* its own, then the others' */
        share *s = &w->share[(thread + k) % w->n];
        if (k && atomic_load_explicit(&s->next, memory_order_relaxed) >= s->end) continue;
        for (;;) {
            const size_t i = atomic_fetch_add_explicit(&s->next, 1, memory_order_relaxed);
            if (i >= s->end) break;
            w->fn(w->ctx, i, thread);
        }
    }
}

/* One step of what is done while waiting; false: nothing is. */
static inline bool look_ahead(const pd_workers *w, ahead *a, unsigned thread, size_t step) {
    if (a->fn && !a->fn(a->ctx, thread, w->n, step)) a->fn = NULL;
    return a->fn != NULL;
}

static uint32_t wait_ticket(pd_workers *w, uint32_t seen, ahead a, unsigned thread) {
    const uint64_t until = w->spin ? pd_now_ns() + SPIN_NS : 0;
    size_t step = 0;
    while (w->spin) {
        for (int i = 0; i < SPIN_ROUND; i++) {
            const uint32_t t = atomic_load_explicit(&w->ticket, memory_order_acquire);
            if (t != seen) return t;
            if (!look_ahead(w, &a, thread, step++)) relax();
        }
        if (pd_now_ns() >= until) break;
    }
    for (;;) {
        /* seq_cst: either the caller sees us in `sleepers`, or we see its ticket */
        atomic_fetch_add(&w->sleepers, 1);
        if (atomic_load(&w->ticket) == seen) futex_wait(&w->ticket, seen);
        atomic_fetch_sub(&w->sleepers, 1);
        const uint32_t t = atomic_load_explicit(&w->ticket, memory_order_acquire);
        if (t != seen) return t;
    }
}

static void *worker_main(void *p) {
    start_arg *arg = p;
    pd_workers *w = arg->w;
    const unsigned index = arg->index;
    free(arg);
    uint32_t seen = 0;
    ahead a = {NULL, NULL};
    for (;;) {
        seen = wait_ticket(w, seen, a, index);
        if (atomic_load_explicit(&w->stop, memory_order_acquire)) return NULL;
        take_tasks(w, index);
        a = w->ahead;
        atomic_fetch_add_explicit(&w->done, 1, memory_order_release);
    }
}

static void publish(pd_workers *w) {
    atomic_fetch_add(&w->ticket, 1); /* seq_cst: pairs with wait_ticket */
    if (atomic_load(&w->sleepers)) futex_wake_all(&w->ticket);
}

pd_status pd_workers_open(pd_workers **ret, unsigned n_threads, pd_err *err) {
    if (n_threads == 0 || n_threads > THREADS_MAX)
        return pd_fail(err, PD_EINVAL, "threads", "threads must be 1..%d, not %u", THREADS_MAX, n_threads);
    pd_workers *w = aligned_alloc(64, (sizeof *w + 63) / 64 * 64);
    if (!w) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the thread pool");
    *w = (pd_workers){.n = n_threads, .spin = n_threads <= pd_cpu_count()};
    w->thread = calloc(n_threads, sizeof *w->thread);
    w->share = aligned_alloc(64, n_threads * sizeof *w->share);
    if (!w->thread || !w->share) goto fail;
    for (unsigned i = 1; i < n_threads; i++) {
        start_arg *arg = malloc(sizeof *arg);
        if (!arg) goto fail;
        *arg = (start_arg){w, i};
        if (pthread_create(&w->thread[i], NULL, worker_main, arg) != 0) {
            free(arg);
            goto fail;
        }
        w->n_started++;
    }
    *ret = w;
    return PD_OK;
fail:
    pd_workers_close(w);
    return pd_fail(err, PD_ENOMEM, "threads", "cannot start %u compute threads", n_threads);
}

void pd_workers_close(pd_workers *w) {
    if (!w) return;
    if (w->n_started) {
        atomic_store_explicit(&w->stop, true, memory_order_release);
        publish(w);
        for (unsigned i = 1; i <= w->n_started; i++) pthread_join(w->thread[i], NULL);
    }
    free(w->thread);
    free(w->share);
    free(w);
}

unsigned pd_workers_count(const pd_workers *w) {
    return w ? w->n : 1;
}

void pd_workers_ahead(pd_workers *w, pd_ahead_fn fn, const void *ctx) {
    if (w) w->next_ahead = (ahead){fn, ctx};
}

void pd_workers_run(pd_workers *w, pd_task_fn fn, void *ctx, size_t n_tasks) {
    if (!w || w->n == 1 || n_tasks <= 1) {
        for (size_t i = 0; i < n_tasks; i++) fn(ctx, i, 0);
        return;
    }
    w->fn = fn;
    w->ctx = ctx;
    w->ahead = w->next_ahead;
    w->next_ahead = (ahead){NULL, NULL};
    for (unsigned t = 0; t < w->n; t++) {
        atomic_store_explicit(&w->share[t].next, pd_workers_share(n_tasks, t, w->n), memory_order_relaxed);
        w->share[t].end = pd_workers_share(n_tasks, t + 1, w->n);
    }
    atomic_store_explicit(&w->done, 0, memory_order_relaxed);
    publish(w);
    take_tasks(w, 0);
    const uint64_t until = w->spin ? pd_now_ns() + SPIN_NS : 0;
    ahead a = w->ahead;
    for (unsigned spins = 1; atomic_load_explicit(&w->done, memory_order_acquire) != w->n - 1; spins++) {
        if (look_ahead(w, &a, 0, spins - 1)) continue;
        if (spins % SPIN_ROUND || pd_now_ns() < until)
            relax();
        else
            sched_yield(); /* the last worker lost its processor: let it have ours */
    }
}

void pd_workers_pin(pd_workers *w) {
    cpu_set_t set;
    if (!w || w->n == 1 || sched_getaffinity(0, sizeof set, &set) != 0 || (unsigned)CPU_COUNT(&set) != w->n) return;
    unsigned i = 0;
    for (size_t cpu = 0; cpu < CPU_SETSIZE && i < w->n; cpu++) {
        if (!CPU_ISSET(cpu, &set)) continue;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        /* A refusal costs speed only. */
        (void)pthread_setaffinity_np(i ? w->thread[i] : pthread_self(), sizeof one, &one);
        i++;
    }
}

unsigned pd_cpu_count(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        const int n = CPU_COUNT(&set);
        if (n > 0) return (unsigned)n;
    }
    return 1;
}
