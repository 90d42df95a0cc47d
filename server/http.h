/* SPDX-License-Identifier: Apache-2.0 */
/* The transport: sockets in, requests with a whole body out, replies back.
 *
 * The one place that knows libmicrohttpd.  Above it a request is a pd_req: its
 * head is judged by pd_router_head(), its body (all of it) handed to
 * pd_router_run(), and it is answered in one of three ways:
 *
 *   REPLY   `out` holds the whole body           pd_req_reply()
 *   STREAM  `fill` is called for more bytes      pd_req_stream()
 *   WAIT    nothing yet: the connection sleeps until pd_req_wake()
 *
 * A stream is pulled: `fill` runs only when the last bytes went to the socket,
 * so a reader that stops costs what one `fill` made and nothing piles up.
 * Thread: loop, for everything here. */
#ifndef PD_SERVER_HTTP_H
#define PD_SERVER_HTTP_H

#include "engine/base/buf.h"
#include "engine/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

typedef struct pd_http pd_http;
typedef struct pd_req pd_req;
typedef struct pd__conn pd__conn;
struct MHD_Connection;
struct pd_server;
struct pd_route;

enum {
    PD_HTTP_TARGET_MAX = 2048,
    PD_HTTP_HEADERS_MAX = 64,
    PD_HTTP_HEADER_BYTES_MAX = 16384,
    PD_REQ_ID_MAX = 128,
    PD_REQ_HEADERS_OUT_MAX = 10,
    PD_HTTP_OFFLOAD_BYTES = 65536, /* bodies above this are decoded off the loop */
    PD_HTTP_PING_MS = 15000,
};

typedef enum { PD_REQ_WAIT, PD_REQ_REPLY, PD_REQ_STREAM } pd_req_mode;

struct pd_req {
    struct pd_server *srv;

    /* What came: valid from pd_router_head on. */
    const char *method;
    char *target;        /* as on the wire, scheme and authority of an absolute form removed */
    const char *path;    /* target up to '?', not percent-decoded */
    const struct pd_route *route; /* NULL until matched */
    char id[PD_REQ_ID_MAX + 1];
    pd_buf body;
    pd_err err;          /* a failure known before the body was read; run then answers with it */

    /* What goes. */
    pd_req_mode mode;
    int status;
    const char *content_type;
    struct { char name[40], value[256]; } header[PD_REQ_HEADERS_OUT_MAX];
    size_t n_header;
    pd_buf out;
    bool close;          /* Connection: close */

    /* Owned by the handler. */
    void *state;
    void (*fill)(
        pd_req *q); /* STREAM: append to out; set `ended` after the last byte; may append nothing */
    bool ended;
    bool ping_due;            /* `fill` has been quiet for PD_HTTP_PING_MS */
    void (*wake)(
        pd_req *q); /* WAIT: it was woken; may reply, stream or go on waiting (NULL is fine) */
    void (*expired)(pd_req *q); /* over the request timeout; NULL: the connection is cut */
    void (*drop)(
        pd_req *q); /* the client left or the reply is through: let go of state; called once */

    /* The transport's own. */
    struct MHD_Connection *mhd;
    pd__conn *conn;
    uint64_t begun_ns, io_ns; /* first byte of the request line; last time bytes left */
    size_t swallowed, out_off, reply_len;
    enum { PD__NEW, PD__BODY, PD__RUN } phase;
    bool queued, suspended, gone, has_expired, dead, dropped;
    unsigned working; /* offloaded work under way */
};

typedef struct pd_http_opts {
    size_t max_body, max_connections, max_per_ip; /* max_per_ip 0 = no limit */
    uint64_t header_ms, body_ms, idle_ms, write_ms, request_ms;
} pd_http_opts;

/* Errors: ENOMEM, EINTERNAL. */
pd_status pd_http_open(pd_http **ret, struct pd_server *srv, uv_loop_t *loop,
                       const pd_http_opts *opts, pd_err *err);
/* All addresses of `host`, or the unix socket when it begins with '/'.  port 0
 * takes a free one.  Errors: EINVAL with the address and the system's reason. */
pd_status pd_http_listen(pd_http *h, const char *host, unsigned port, pd_err *err);
unsigned pd_http_port(const pd_http *h); /* of the first listener; 0 for unix */
void pd_http_stop_listening(pd_http *h);

/* Let the transport work; after anything that woke requests, once. */
void pd_http_drive(pd_http *h);
size_t pd_http_connections(const pd_http *h);
size_t pd_http_requests(const pd_http *h); /* begun and not complete */
void pd_http_cut_all(pd_http *h);          /* every request is gone, every connection closes */

/* Begin closing the handles; after uv_run returned, free.  No request may be left
 * with work offloaded. */
void pd_http_shutdown(pd_http *h);
void pd_http_free(pd_http *h);

/* Value of a request header or NULL; borrowed until the request completes. */
const char *pd_req_header(const pd_req *q, const char *name);
/* Add a reply header; a value with control bytes is dropped, so nothing forges a line. */
void pd_req_add_header(pd_req *q, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

void pd_req_reply(pd_req *q, int status, const char *content_type); /* body: what q->out holds */
void pd_req_stream(pd_req *q, const char *content_type);            /* 200; q->fill must be set */
void pd_req_wake(pd_req *q); /* pd_http_drive() follows, by the caller */

/* work(q) on a pool thread with the connection asleep, then done(q) on the loop.
 * If the client leaves meanwhile, done is not called; q stays valid for work. */
pd_status pd_req_offload(pd_req *q, void (*work)(pd_req *q), void (*done)(pd_req *q), pd_err *err);

#endif
