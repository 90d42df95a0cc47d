/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the transport share (http*.c).  Thread: loop. */
#ifndef PD_SERVER_HTTP_INT_H
#define PD_SERVER_HTTP_INT_H

#include "server/http.h"

#include <microhttpd.h>
#include <sys/socket.h>

enum { PD__LISTEN_MAX = 8, PD__SWEEP_MS = 250 };

/* One client connection, from accept to close. */
struct pd__conn {
    pd_http *h;
    pd__conn *prev, *next;
    int fd;
    unsigned char ip[16]; /* v4 as v4-mapped; zeros for unix sockets */
    pd_req *req;          /* the one in progress, or NULL */
    /* Deadlines are absolute per phase: one byte now and then does not extend them. */
    enum { PD__CONN_HEAD, PD__CONN_BODY, PD__CONN_RUN, PD__CONN_IDLE } phase;
    uint64_t since_ns;
    uint64_t left_ns; /* when the client closed its side; 0 = it has not */
};

typedef struct {
    pd_http *h;
    uv_poll_t poll;
    int fd;
    char path[108]; /* of a unix socket, to unlink */
} pd__listener;

struct pd_http {
    struct pd_server *srv;
    uv_loop_t *loop;
    pd_http_opts opts;
    struct MHD_Daemon *mhd;
    uv_poll_t poll;   /* MHD's epoll */
    uv_timer_t timer; /* MHD_get_timeout */
    uv_timer_t sweep;
    int watch_fd;     /* our epoll: who left */
    uv_poll_t watch;
    pd__listener listener[PD__LISTEN_MAX];
    size_t n_listener;
    unsigned port;
    pd__conn *conns;
    size_t n_conn, n_req;
    bool closing, in_mhd;
};

/* http_guard.c: message framing that two parsers could read differently is
 * refused, since the library accepts it.  *has_body and *length (SIZE_MAX when
 * chunked) are set on success. */
pd_status pd__http_guard(struct MHD_Connection *c, const char *version, bool *has_body,
                         uint64_t *length, pd_err *err);

/* http_watch.c */
pd_status pd__watch_open(pd_http *h, pd_err *err);
void pd__watch_add(pd__conn *c); /* from accept to close: be told when the client leaves */
void pd__watch_remove(pd__conn *c);
void pd__req_gone(pd_req *q);     /* cancel, shut the socket, wake */
void pd__req_drop(pd_req *q);     /* call the handler's drop once, unless work is under way */

#endif
