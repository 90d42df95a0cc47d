/* SPDX-License-Identifier: Apache-2.0 */
/* The bridge between the engine's thread and the loop.
 *
 * The engine's `notify` may fire once more after the loop has let a job go, so
 * what it points at must outlive every job: call slots are reused but never
 * freed before the engine is closed, and a late notify only wakes a slot in
 * vain.  Slots that have something to say form a list under one mutex; one
 * uv_async wakes the loop (sends coalesce, so it takes the whole list). */
#ifndef PD_SERVER_CALL_H
#define PD_SERVER_CALL_H

#include "engine/run/engine.h"
#include "server/http.h"

#include <stdatomic.h>

typedef struct pd_call pd_call;
typedef struct pd_calls pd_calls;

struct pd_call {
    pd_calls *calls;
    atomic_bool queued;   /* in the notify list; pairs with the exchange in on_notify */
    pd_call *next_queued; /* guarded by calls->lock while queued */
    pd_call *next_all, *next_free;
    /* loop only; NULL in a free slot */
    pd_req *req;
    pd_job *job;
    size_t index; /* the caller's own */
    void (*on_event)(pd_req *q, pd_call *call);
};

struct pd_calls {
    uv_async_t async;
    uv_mutex_t
        lock; /* guards `head` and next_queued; nothing is called under it but uv_async_send */
    pd_call *head;
    pd_call *all, *unused; /* loop */
    size_t n_active;       /* loop */
    bool open;
};

/* Thread: loop, all of them. */
pd_status pd_calls_open(pd_calls *c, uv_loop_t *loop, pd_err *err);
void pd_calls_shutdown(pd_calls *c); /* closes the async handle */
void pd_calls_free(pd_calls *c);     /* after the engine is closed and uv_run returned */

/* Submit p for n answers (its notify fields are set here), answer i with the seed
 * p's + i, as ret[n].  on_event(q, call) then runs on the loop whenever there is
 * something to take or the state changed; pd_http_drive follows by itself.
 * Errors: those of pd_engine_submit_n. */
pd_status pd_call_submit(pd_calls *c, pd_engine *e, pd_job_params *p, size_t n, pd_req *q,
                         void (*on_event)(pd_req *q, pd_call *call), pd_call **ret, pd_err *err);
/* Cancel if unfinished, let go.  NULL is fine. */
void pd_call_end(pd_call *call);

#endif
