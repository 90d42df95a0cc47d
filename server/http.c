/* SPDX-License-Identifier: Apache-2.0 */
/* The transport's core: libmicrohttpd's external epoll driven by libuv on one
 * thread (see http.h for what it offers, http_listen.c, http_watch.c and
 * http_guard.c for the rest).
 *
 *   NEW   request line and headers are here: guard, route, limits
 *   BODY  bytes arrive and are kept up to the cap
 *   RUN   the handler decides; asleep while it waits; replies or streams
 *
 * Rules that keep the library sound: only the loop thread calls it; after every
 * MHD_run its timeout is obeyed (its sockets are edge-triggered); a stream ends
 * by END_OF_STREAM or by shutdown() plus a few dummy bytes, never by
 * END_WITH_ERROR, which leaves a zombie; a content reader that has nothing
 * suspends, or it would spin. */
#include "server/http_int.h"

#include "engine/base/clock.h"
#include "engine/base/log.h"
#include "server/metrics.h"
#include "server/reply.h"
#include "server/router.h"
#include "server/server.h"

#include <assert.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

enum {
    SPARE_CONNECTIONS = 64,      /* the library's limit above ours: ours answers */
    CONNECTION_MEMORY = 36864,   /* above 32 KiB the pool is mapped and given back */
    STREAM_BLOCK = 4096,
    SWALLOW_FACTOR = 4,          /* of the body cap, before a too long chunked upload is cut */
    RUNS_PER_DRIVE = 4,          /* a token needs two: fill the buffer, send it */
};

/* ---- driving ---- */

static void on_timer(uv_timer_t *t) {
    pd_http_drive(t->data);
}

static void on_poll(uv_poll_t *p, int status, int events) {
    pd_http_drive(p->data);
}

void pd_http_drive(pd_http *h) {
    if (h->closing) return;
    assert(!h->in_mhd);
    h->in_mhd = true;
    MHD_UNSIGNED_LONG_LONG ms = 0;
    enum MHD_Result have;
    int n = 0;
    do {
        MHD_run(h->mhd);
        have = MHD_get_timeout(h->mhd, &ms);
    } while (have == MHD_YES && ms == 0 && ++n < RUNS_PER_DRIVE);
    h->in_mhd = false;
    if (have == MHD_YES) uv_timer_start(&h->timer, on_timer, ms, 0);
    else uv_timer_stop(&h->timer);
}

/* ---- replies ---- */

void pd_req_add_header(pd_req *q, const char *name, const char *fmt, ...) {
    assert(q->n_header < PD_REQ_HEADERS_OUT_MAX);
    if (q->n_header == PD_REQ_HEADERS_OUT_MAX) return;
    va_list ap;
    va_start(ap, fmt);
    char *value = q->header[q->n_header].value;
    vsnprintf(value, sizeof q->header[0].value, fmt, ap);
    va_end(ap);
    for (const char *p = value; *p; p++)
        if ((unsigned char)*p < 0x20 || (unsigned char)*p >= 0x7F) return;
    snprintf(q->header[q->n_header].name, sizeof q->header[0].name, "%s", name);
    q->n_header++;
}

void pd_req_reply(pd_req *q, int status, const char *content_type) {
    q->mode = PD_REQ_REPLY;
    q->status = status;
    q->content_type = content_type;
}

void pd_req_stream(pd_req *q, const char *content_type) {
    q->mode = PD_REQ_STREAM;
    q->status = 200;
    q->content_type = content_type;
}

void pd_req_wake(pd_req *q) {
    if (!q->suspended || q->dead) return;
    q->suspended = false;
    MHD_resume_connection(q->mhd);
}

/* The library asks for the next block of a stream. */
static ssize_t read_stream(void *arg, uint64_t pos, char *buf, size_t max) {
    pd_req *q = arg;
    q->io_ns = pd_now_ns();
    if (!q->gone && q->out_off == q->out.len && !q->ended) {
        pd_buf_clear(&q->out);
        q->out_off = 0;
        q->fill(q);
        q->ping_due = false;
        if (q->out.failed) pd__req_gone(q); /* no memory: nothing more can be said */
    }
    if (q->gone) { /* the socket is shut: this send fails and the library cleans up */
        if (max < 2) return 0;
        memcpy(buf, ":\n", 2);
        return 2;
    }
    if (q->out_off < q->out.len) {
        const size_t n = q->out.len - q->out_off < max ? q->out.len - q->out_off : max;
        memcpy(buf, q->out.data + q->out_off, n);
        q->out_off += n;
        return (ssize_t)n;
    }
    if (q->ended) return MHD_CONTENT_READER_END_OF_STREAM;
    q->suspended = true;
    MHD_suspend_connection(q->mhd);
    return 0;
}

/* Hand the answer to the library, or put the connection to sleep. */
static enum MHD_Result settle(pd_req *q) {
    if (q->gone) return MHD_NO;
    struct MHD_Response *r;
    switch (q->mode) {
    case PD_REQ_REPLY:
        q->reply_len = q->out.len;
        r = q->out.len == 0
                ? MHD_create_response_from_buffer(0, (void *)(uintptr_t) "", MHD_RESPMEM_PERSISTENT)
                : MHD_create_response_from_buffer(q->reply_len, pd_buf_take(&q->out),
                                                  MHD_RESPMEM_MUST_FREE);
        break;
    case PD_REQ_STREAM:
        r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, read_stream, q, NULL);
        break;
    default:
        if (q->conn->left_ns) { /* request and FIN came together: nobody waits */
            pd__req_gone(q);
            return MHD_NO;
        }
        q->suspended = true;
        MHD_suspend_connection(q->mhd);
        return MHD_YES;
    }
    if (!r) return MHD_NO;
    if (q->content_type) MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, q->content_type);
    if (q->id[0]) MHD_add_response_header(r, "X-Request-Id", q->id);
    for (size_t i = 0; i < q->n_header; i++)
        MHD_add_response_header(r, q->header[i].name, q->header[i].value);
    if (q->close) MHD_add_response_header(r, MHD_HTTP_HEADER_CONNECTION, "close");
    q->io_ns = pd_now_ns();
    q->queued = true;
    const enum MHD_Result ok = MHD_queue_response(q->mhd, (unsigned)q->status, r);
    MHD_destroy_response(r);
    return ok;
}

/* ---- the library's callbacks ---- */

static pd__conn *conn_of(struct MHD_Connection *c) {
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info ? info->socket_context : NULL;
}

/* The request line is here, raw: the library's own url is percent-decoded and
 * ends at %00, so routing uses this one.  The result becomes *con_cls. */
static void *on_request_line(void *arg, const char *uri, struct MHD_Connection *mhd) {
    pd_http *h = arg;
    pd__conn *c = conn_of(mhd);
    pd_req *q = c ? calloc(1, sizeof *q) : NULL;
    if (!q) return NULL;
    q->srv = h->srv;
    q->mhd = mhd;
    q->conn = c;
    q->begun_ns = q->io_ns = pd_now_ns();
    q->method = "";
    pd_buf_init(&q->body, h->opts.max_body);
    if (strncasecmp(uri, "http://", 7) == 0 || strncasecmp(uri, "https://", 8) == 0) {
        uri = strchr(strchr(uri, ':') + 3, '/');
        if (!uri) uri = "/";
    }
    const size_t len = strlen(uri);
    if (len > PD_HTTP_TARGET_MAX)
        pd_fail(&q->err, PD_ETOOBIG, NULL,
                "the request target has %zu bytes; at most %d are allowed", len,
                PD_HTTP_TARGET_MAX);
    q->target = strndup(uri, PD_HTTP_TARGET_MAX);
    char *path = q->target ? strndup(q->target, strcspn(q->target, "?")) : NULL;
    if (!path) {
        free(q->target);
        free(q);
        return NULL;
    }
    q->path = path;
    c->req = q;
    c->phase = PD__CONN_HEAD;
    c->since_ns = q->begun_ns;
    return q;
}

/* NEW: everything that can be refused without the body. */
static enum MHD_Result on_head(pd_http *h, pd_req *q, const char *method, const char *version) {
    bool has_body = false, at_once = false;
    uint64_t length = 0;
    q->method = method;
    pd_err framing = {0};
    if (pd__http_guard(q->mhd, version, &has_body, &length, &framing) != PD_OK) {
        q->err = framing;
        q->close = at_once = true; /* where the next request begins is not known */
    } else if (has_body && length != UINT64_MAX && length > h->opts.max_body) {
        pd_fail(&q->err, PD_ETOOBIG, NULL, "the body has %llu bytes; at most %zu are allowed",
                (unsigned long long)length, h->opts.max_body);
        q->close = at_once = true;
    }
    pd_router_head(q);
    const char *expect = pd_req_header(q, "Expect");
    if (q->err.code != PD_OK && expect && has_body)
        q->close = at_once = true; /* spare the upload */
    q->phase = PD__BODY;
    q->conn->phase = PD__CONN_BODY;
    q->conn->since_ns = pd_now_ns();
    if (!at_once) return MHD_YES;
    q->phase = PD__RUN;
    q->conn->phase = PD__CONN_RUN;
    pd_reply_error(q, &q->err);
    h->n_req++;
    return settle(q);
}

/* BODY: no reply can be queued here; what is over the cap is swallowed for a
 * while, so that a client which sends everything first still reads its 413. */
static enum MHD_Result on_body(pd_http *h, pd_req *q, const char *data, size_t *size) {
    if (q->err.code == PD_OK) {
        pd_buf_add(&q->body, data, *size);
        if (q->body.failed) {
            if (q->body.len + *size > h->opts.max_body)
                pd_fail(&q->err, PD_ETOOBIG, NULL, "the body has more than %zu bytes",
                        h->opts.max_body);
            else
                pd_fail(&q->err, PD_ENOMEM, NULL, "no memory for the body");
            pd_buf_done(&q->body);
            q->close = true;
        }
    }
    q->swallowed += *size;
    *size = 0;
    return q->swallowed / SWALLOW_FACTOR <= h->opts.max_body ? MHD_YES : MHD_NO;
}

static enum MHD_Result on_request(void *arg, struct MHD_Connection *mhd, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *size, void **ctx) {
    pd_http *h = arg;
    pd_req *q = *ctx;
    if (!q || q->gone) return MHD_NO;
    switch (q->phase) {
    case PD__NEW: return on_head(h, q, method, version);
    case PD__BODY:
        if (*size) return on_body(h, q, data, size);
        q->phase = PD__RUN;
        q->conn->phase = PD__CONN_RUN;
        q->conn->since_ns = q->io_ns = pd_now_ns();
        h->n_req++;
        pd_router_run(q);
        return settle(q);
    default: /* woken */
        if (q->mode == PD_REQ_WAIT && !q->working && q->wake) q->wake(q);
        q->ping_due = false;
        return settle(q);
    }
}

static void req_free(pd_req *q) {
    pd__req_drop(q);
    pd_buf_done(&q->body);
    pd_buf_done(&q->out);
    free((char *)(uintptr_t)q->path);
    free(q->target);
    free(q);
}

/* The only place where a request ends. */
static void on_completed(void *arg, struct MHD_Connection *mhd, void **ctx,
                         enum MHD_RequestTerminationCode toe) {
    pd_http *h = arg;
    pd_req *q = *ctx;
    if (!q) return;
    *ctx = NULL;
    if (q->phase == PD__RUN) h->n_req--;
    const double ms = pd_ms_since(q->begun_ns);
    pd_metrics_http(&q->srv->metrics, q->route, q->status, ms * 1e-3);
    pd_log(PD_LOG_DEBUG, "%s %s %d %.1f ms%s id=%s", q->method, q->target, q->status, ms,
           q->gone ? " (client gone)" : "", q->id);
    q->conn->req = NULL;
    q->conn->phase = PD__CONN_IDLE;
    q->conn->since_ns = pd_now_ns();
    q->gone = true;
    q->dead = true;
    if (!q->working) req_free(q);
}

static void on_connection(void *arg, struct MHD_Connection *mhd, void **ctx,
                          enum MHD_ConnectionNotificationCode toe) {
    pd_http *h = arg;
    if (toe == MHD_CONNECTION_NOTIFY_CLOSED) {
        pd__conn *c = *ctx;
        if (!c) return;
        pd__watch_remove(c);
        if (c->prev) c->prev->next = c->next;
        else h->conns = c->next;
        if (c->next) c->next->prev = c->prev;
        h->n_conn--;
        free(c);
        *ctx = NULL;
        return;
    }
    pd__conn *c = calloc(1, sizeof *c);
    *ctx = c;
    if (!c) return; /* on_request_line then refuses every request of it */
    c->h = h;
    c->fd = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const struct sockaddr *sa = info ? info->client_addr : NULL;
    if (sa && sa->sa_family == AF_INET6) {
        memcpy(c->ip, &((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr, 16);
    } else if (sa && sa->sa_family == AF_INET) {
        c->ip[10] = c->ip[11] = 0xFF;
        memcpy(c->ip + 12, &((const struct sockaddr_in *)(const void *)sa)->sin_addr, 4);
    }
    c->since_ns = pd_now_ns();
    c->next = h->conns;
    if (h->conns) h->conns->prev = c;
    h->conns = c;
    h->n_conn++;
    pd__watch_add(c);
}

static void on_log(void *arg, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));
static void on_log(void *arg, const char *fmt, va_list ap) {
    char text[300];
    vsnprintf(text, sizeof text, fmt, ap);
    text[strcspn(text, "\n")] = '\0';
    pd_log(PD_LOG_DEBUG, "http: %s", text);
}

const char *pd_req_header(const pd_req *q, const char *name) {
    return MHD_lookup_connection_value(q->mhd, MHD_HEADER_KIND, name);
}

/* ---- work off the loop ---- */

typedef struct {
    uv_work_t work;
    pd_req *q;
    void (*run)(pd_req *q), (*done)(pd_req *q);
} offload;

static void on_work(uv_work_t *w) {
    offload *o = w->data;
    o->run(o->q);
}

static void on_work_done(uv_work_t *w, int status) {
    offload *o = w->data;
    pd_req *q = o->q;
    pd_http *h = q->srv->http;
    q->working--;
    q->srv->n_working--;
    if (q->dead) {
        req_free(q);
    } else {
        if (q->gone) pd__req_drop(q);
        else o->done(q);
        pd_req_wake(q);
        pd_http_drive(h);
    }
    free(o);
}

pd_status pd_req_offload(pd_req *q, void (*work)(pd_req *q), void (*done)(pd_req *q), pd_err *err) {
    offload *o = malloc(sizeof *o);
    if (!o) return pd_fail(err, PD_ENOMEM, NULL, "no memory");
    *o = (offload){.q = q, .run = work, .done = done};
    o->work.data = o;
    if (uv_queue_work(q->conn->h->loop, &o->work, on_work, on_work_done) != 0) {
        free(o);
        return pd_fail(err, PD_EINTERNAL, NULL, "cannot start the work");
    }
    q->working++;
    q->srv->n_working++;
    return PD_OK;
}

/* ---- life ---- */

pd_status pd_http_open(pd_http **ret, struct pd_server *srv, uv_loop_t *loop,
                       const pd_http_opts *opts, pd_err *err) {
    pd_http *h = calloc(1, sizeof *h);
    if (!h) return pd_fail(err, PD_ENOMEM, NULL, "no memory");
    h->srv = srv;
    h->loop = loop;
    h->opts = *opts;
    h->watch_fd = -1;
    const unsigned idle_s =
        (unsigned)((opts->idle_ms > opts->write_ms ? opts->idle_ms : opts->write_ms) / 1000u) + 5u;
    h->mhd = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_NO_LISTEN_SOCKET | MHD_USE_ERROR_LOG, 0,
        NULL, NULL, on_request, h, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
        MHD_OPTION_URI_LOG_CALLBACK, on_request_line, h, MHD_OPTION_NOTIFY_COMPLETED, on_completed,
        h, MHD_OPTION_NOTIFY_CONNECTION, on_connection, h, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)opts->max_connections + SPARE_CONNECTIONS, MHD_OPTION_CONNECTION_TIMEOUT, idle_s,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY, MHD_OPTION_STRICT_FOR_CLIENT,
        1, MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, MHD_OPTION_END);
    if (!h->mhd) {
        free(h);
        return pd_fail(err, PD_EINTERNAL, NULL, "the HTTP library does not start");
    }
    const int fd = MHD_get_daemon_info(h->mhd, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
    uv_poll_init(loop, &h->poll, fd);
    uv_timer_init(loop, &h->timer);
    h->poll.data = h->timer.data = h;
    uv_poll_start(&h->poll, UV_READABLE, on_poll);
    *ret = h;
    return pd__watch_open(h, err);
}

size_t pd_http_connections(const pd_http *h) {
    return h->n_conn;
}

size_t pd_http_requests(const pd_http *h) {
    return h->n_req;
}

void pd_http_cut_all(pd_http *h) {
    for (pd__conn *c = h->conns; c; c = c->next) {
        if (c->req && c->phase == PD__CONN_RUN) pd__req_gone(c->req);
        else shutdown(c->fd, SHUT_RDWR);
    }
    pd_http_drive(h);
}

void pd_http_shutdown(pd_http *h) {
    if (!h || h->closing) return;
    pd_http_stop_listening(h);
    /* The library aborts when stopped with a suspended connection: cut all first.
     * Each run lets it see the shut sockets; a bounded number is plenty. */
    for (int i = 0; i < 100 && h->n_conn > 0; i++) pd_http_cut_all(h);
    h->closing = true;
    uv_poll_stop(&h->poll);
    uv_close((uv_handle_t *)&h->poll, NULL);
    uv_close((uv_handle_t *)&h->timer, NULL);
    uv_close((uv_handle_t *)&h->sweep, NULL);
    uv_close((uv_handle_t *)&h->watch, NULL);
    MHD_stop_daemon(h->mhd);
}

void pd_http_free(pd_http *h) {
    if (!h) return;
    if (h->watch_fd >= 0) close(h->watch_fd);
    free(h);
}
