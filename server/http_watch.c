/* SPDX-License-Identifier: Apache-2.0 */
/* Who left, and who is too slow.
 *
 * The library forgets a suspended socket, so a client that leaves during prefill
 * would never be noticed; and a FIN that comes together with data is seen by it
 * only at the idle timeout.  Every connection is therefore in an epoll of ours
 * too (EPOLLRDHUP, edge-triggered; one fd for all of them), which reports FIN,
 * half-close and RST within milliseconds; all three count as gone.
 *
 * The library's own timeout restarts at every byte.  The sweep holds absolute
 * deadlines per phase and ends a connection by shutdown(), which lets the
 * library free everything in its usual way. */
#include "server/http_int.h"

#include "engine/base/clock.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { LEFT_GRACE_MS = 500 }; /* to read what came before the FIN */

void pd__req_drop(pd_req *q) {
    if (q->dropped || q->working) return;
    q->dropped = true;
    if (q->drop) q->drop(q);
}

void pd__req_gone(pd_req *q) {
    if (q->gone) return;
    q->gone = true;
    shutdown(q->conn->fd, SHUT_RDWR);
    pd__req_drop(q); /* the job is cancelled now, not when the library gets round to it */
    pd_req_wake(q);
}

void pd__watch_add(pd__conn *c) {
    struct epoll_event ev = {.events = EPOLLRDHUP | EPOLLET, .data.ptr = c};
    if (epoll_ctl(c->h->watch_fd, EPOLL_CTL_ADD, c->fd, &ev) != 0)
        c->left_ns =
            pd_now_ns(); /* no memory in the kernel: better served in one go or not at all */
}

void pd__watch_remove(pd__conn *c) {
    epoll_ctl(c->h->watch_fd, EPOLL_CTL_DEL, c->fd, NULL);
}

/* Frees nothing, so the pointers of one batch of events stay good. */
static void on_left(pd__conn *c) {
    if (!c->left_ns) c->left_ns = pd_now_ns();
    /* A request that waits or streams is gone.  One whose bytes are still to be
     * read gets its chance: if it can be answered at once, it is. */
    if (c->phase == PD__CONN_RUN && c->req && (c->req->mode != PD_REQ_REPLY || !c->req->queued))
        pd__req_gone(c->req);
}

static void on_watch(uv_poll_t *poll, int status, int events) {
    pd_http *h = poll->data;
    struct epoll_event ev[64];
    int n;
    do {
        n = epoll_wait(h->watch_fd, ev, 64, 0);
        for (int i = 0; i < n; i++) on_left(ev[i].data.ptr);
    } while (n == 64);
    pd_http_drive(h);
}

/* True when something was done that MHD must see. */
static bool sweep_conn(pd_http *h, pd__conn *c, uint64_t now) {
    const uint64_t age_ms = (now - c->since_ns) / 1000000u;
    pd_req *q = c->req;
    if (c->left_ns && c->phase != PD__CONN_RUN && (now - c->left_ns) / 1000000u > LEFT_GRACE_MS)
        return shutdown(c->fd, SHUT_RDWR) == 0;
    switch (c->phase) {
    case PD__CONN_HEAD: return age_ms > h->opts.header_ms && shutdown(c->fd, SHUT_RDWR) == 0;
    case PD__CONN_BODY: return age_ms > h->opts.body_ms && shutdown(c->fd, SHUT_RDWR) == 0;
    case PD__CONN_IDLE: return age_ms > h->opts.idle_ms && shutdown(c->fd, SHUT_RDWR) == 0;
    case PD__CONN_RUN: break;
    }
    if (!q || q->gone) return false;
    const uint64_t quiet_ms = (now - q->io_ns) / 1000000u;
    if (q->queued && !q->suspended) {
        /* Bytes are ready and do not leave.  A long fixed body gets time for 4 KiB/s. */
        const uint64_t allow = h->opts.write_ms + (q->mode == PD_REQ_REPLY ? q->reply_len / 4 : 0);
        if (quiet_ms <= allow) return false;
        pd__req_gone(q);
        return true;
    }
    if (!q->has_expired && !q->working && age_ms > h->opts.request_ms) {
        q->has_expired = true;
        if (q->expired) q->expired(q);
        else pd__req_gone(q);
        return true;
    }
    /* Streams say something now and then: before the first token too, so that a
     * proxy sees the headers of a long prefill. */
    if (q->fill && !q->ping_due && quiet_ms >= PD_HTTP_PING_MS) {
        q->ping_due = true;
        pd_req_wake(q);
        return true;
    }
    return false;
}

static void on_sweep(uv_timer_t *t) {
    pd_http *h = t->data;
    const uint64_t now = pd_now_ns();
    bool acted = false;
    for (pd__conn *c = h->conns, *next; c; c = next) {
        next = c->next;
        acted |= sweep_conn(h, c, now);
    }
    if (acted) pd_http_drive(h);
}

pd_status pd__watch_open(pd_http *h, pd_err *err) {
    h->watch_fd = epoll_create1(EPOLL_CLOEXEC);
    if (h->watch_fd < 0) return pd_fail(err, PD_EINTERNAL, NULL, "epoll: %s", strerror(errno));
    if (uv_poll_init(h->loop, &h->watch, h->watch_fd) != 0 ||
        uv_poll_start(&h->watch, UV_READABLE, on_watch) != 0)
        return pd_fail(err, PD_EINTERNAL, NULL, "cannot watch for clients that leave");
    h->watch.data = h;
    uv_timer_init(h->loop, &h->sweep);
    h->sweep.data = h;
    uv_timer_start(&h->sweep, on_sweep, PD__SWEEP_MS, PD__SWEEP_MS);
    return PD_OK;
}
