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
        call->on_event(call->req, call);
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

static pd_call *take_slot(pd_calls *c) {
    pd_call *call = c->unused;
    if (call) {
        c->unused = call->next_free;
        return call;
    }
    call = calloc(1, sizeof *call);
    if (!call) return NULL;
    call->calls = c;
    call->next_all = c->all;
    c->all = call;
    return call;
}

static void give_slot(pd_call *call) {
    call->next_free = call->calls->unused;
    call->calls->unused = call;
}

pd_status pd_call_submit(pd_calls *c, pd_engine *e, pd_job_params *p, size_t n, pd_req *q,
                         void (*on_event)(pd_req *q, pd_call *call), pd_call **ret, pd_err *err) {
    pd_call *call[PD_CHOICES_MAX];
    pd_job *job[PD_CHOICES_MAX];
    pd_choice choice[PD_CHOICES_MAX];
    size_t n_slot = 0;
    while (n_slot < n && (call[n_slot] = take_slot(c))) {
        choice[n_slot] = (pd_choice){p->sampling.seed + n_slot, call[n_slot]};
        n_slot++;
    }
    p->notify = on_notify;
    const pd_status st = n_slot == n ? pd_engine_submit_n(e, p, n, choice, job, err)
                                     : pd_fail(err, PD_ENOMEM, NULL, "no memory");
    for (size_t i = 0; i < n_slot; i++) {
        if (st != PD_OK) {
            give_slot(call[i]);
            continue;
        }
        call[i]->job = job[i];
        call[i]->req = q;
        call[i]->on_event = on_event;
        c->n_active++;
        ret[i] = call[i];
    }
    return st;
}

void pd_call_end(pd_call *call) {
    if (!call) return;
    if (pd_job_get_state(call->job) != PD_JOB_DONE) pd_job_cancel(call->job);
    pd_job_unref(call->job);
    call->job = NULL;
    call->req = NULL;
    give_slot(call);
    call->calls->n_active--;
}
