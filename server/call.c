/* SPDX-License-Identifier: Apache-2.0 */
/* Engine thread -> loop (see call.h). */
#include "server/call.h"

#include "server/server.h"

#include <stdlib.h>

/* Thread: engine. */
static void on_notify(void *arg, pd_job *job) {
    pd_call *call = arg;
    if (atomic_exchange(&call->queued, true)) return;
    pd_calls *c = call->calls;
    uv_mutex_lock(&c->lock);
    call->next_queued = c->head;
    c->head = call;
    if (c->open) uv_async_send(&c->async);
    uv_mutex_unlock(&c->lock);
}

static void on_async(uv_async_t *async) {
    pd_calls *c = async->data;
    uv_mutex_lock(&c->lock);
    pd_call *list = c->head;
    c->head = NULL;
    uv_mutex_unlock(&c->lock);
    pd_http *http = NULL;
    while (list) {
        pd_call *call = list;
        list = call->next_queued;
        /* From here a new notify queues it again; what it announces is taken below or then. */
        atomic_store(&call->queued, false);
        if (!call->req) continue; /* the job was let go */
        http = call->req->srv->http;
        call->on_event(call->req);
    }
    if (http) pd_http_drive(http); /* once for all of them */
}

pd_status pd_calls_open(pd_calls *c, uv_loop_t *loop, pd_err *err) {
    *c = (pd_calls){0};
    if (uv_mutex_init(&c->lock) != 0) return pd_fail(err, PD_ENOMEM, NULL, "no memory");
    if (uv_async_init(loop, &c->async, on_async) != 0) {
        uv_mutex_destroy(&c->lock);
        return pd_fail(err, PD_EINTERNAL, NULL, "cannot open the wake-up channel");
    }
    c->async.data = c;
    c->open = true;
    return PD_OK;
}

void pd_calls_shutdown(pd_calls *c) {
    if (!c->open) return;
    uv_mutex_lock(&c->lock); /* no send on a closing handle */
    c->open = false;
    uv_mutex_unlock(&c->lock);
    uv_close((uv_handle_t *)&c->async, NULL);
}

void pd_calls_free(pd_calls *c) {
    for (pd_call *call = c->all, *next; call; call = next) {
        next = call->next_all;
        free(call);
    }
    if (c->async.data) uv_mutex_destroy(&c->lock);
    *c = (pd_calls){0};
}

pd_status pd_call_submit(pd_calls *c, pd_engine *e, pd_job_params *p, pd_req *q,
                         void (*on_event)(pd_req *q), pd_call **ret, pd_err *err) {
    pd_call *call = c->unused;
    if (call) {
        c->unused = call->next_free;
    } else {
        call = calloc(1, sizeof *call);
        if (!call) return pd_fail(err, PD_ENOMEM, NULL, "no memory");
        call->calls = c;
        call->next_all = c->all;
        c->all = call;
    }
    p->notify = on_notify;
    p->notify_arg = call;
    const pd_status st = pd_engine_submit(e, p, &call->job, err);
    if (st != PD_OK) {
        call->next_free = c->unused;
        c->unused = call;
        return st;
    }
    call->req = q;
    call->on_event = on_event;
    c->n_active++;
    *ret = call;
    return PD_OK;
}

void pd_call_end(pd_call *call) {
    if (!call) return;
    if (pd_job_get_state(call->job) != PD_JOB_DONE) pd_job_cancel(call->job);
    pd_job_unref(call->job);
    call->job = NULL;
    call->req = NULL;
    call->next_free = call->calls->unused;
    call->calls->unused = call;
    call->calls->n_active--;
}
