/* SPDX-License-Identifier: Apache-2.0 */
/* Listening sockets of our own.  The library's accept leaves a client stuck when
 * the limit was reached or descriptors ran out, and says nothing to those it
 * turns away; ours answers 503 with Retry-After. */
#include "server/http_int.h"

#include "engine/base/log.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

enum { ACCEPTS_PER_WAKE = 64, BACKLOG = 1024 };

static const char full_reply[] =
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 125\r\n"
    "Retry-After: 1\r\nConnection: close\r\n\r\n"
    "{\"error\":{\"message\":\"too many connections; try again "
    "shortly\",\"type\":\"unavailable_error\","
    "\"param\":null,\"code\":\"unavailable\"}}\n";

/* Keys on a link that was cut without a word: gone in about 20 s. */
static void tune(int fd, int family) {
    if (family == AF_UNIX) return;
    const int on = 1, idle = 10, interval = 5, count = 3, user_ms = 20000;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_ms, sizeof user_ms);
}

static bool ip_full(const pd_http *h, const struct sockaddr_storage *ss) {
    if (!h->opts.max_per_ip || ss->ss_family == AF_UNIX) return false;
    unsigned char ip[16] = {0};
    if (ss->ss_family == AF_INET6) {
        memcpy(ip, &((const struct sockaddr_in6 *)ss)->sin6_addr, 16);
    } else {
        ip[10] = ip[11] = 0xFF;
        memcpy(ip + 12, &((const struct sockaddr_in *)ss)->sin_addr, 4);
    }
    size_t n = 0;
    for (const pd__conn *c = h->conns; c; c = c->next) n += memcmp(c->ip, ip, 16) == 0;
    return n >= h->opts.max_per_ip;
}

/* What is readable is drained first: closing with unread bytes sends RST, which
 * can overtake the reply. */
static void refuse(int fd) {
    char drain[16384];
    while (recv(fd, drain, sizeof drain, MSG_DONTWAIT) == (ssize_t)sizeof drain) {}
    if (send(fd, full_reply, sizeof full_reply - 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
        /* it left already */
    }
    shutdown(fd, SHUT_WR);
    close(fd);
}

static void on_accept(uv_poll_t *poll, int status, int events) {
    pd__listener *l = poll->data;
    pd_http *h = l->h;
    for (int i = 0; i < ACCEPTS_PER_WAKE; i++) {
        struct sockaddr_storage ss;
        socklen_t len = sizeof ss;
        const int fd = accept4(l->fd, (struct sockaddr *)&ss, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) break; /* EAGAIN, or EMFILE: the poll is level-triggered and asks again */
        if (h->n_conn >= h->opts.max_connections || ip_full(h, &ss)) {
            refuse(fd);
            continue;
        }
        tune(fd, ss.ss_family);
        if (MHD_add_connection(h->mhd, fd, (struct sockaddr *)&ss, len) != MHD_YES)
            pd_log(PD_LOG_WARN, "a connection was not taken");
    }
    pd_http_drive(h);
}

static pd_status listen_fd(pd_http *h, int fd, const char *unix_path, pd_err *err) {
    if (h->n_listener == PD__LISTEN_MAX) {
        close(fd);
        return pd_fail(err, PD_EINVAL, "host", "more than %d listening addresses", PD__LISTEN_MAX);
    }
    pd__listener *l = &h->listener[h->n_listener];
    *l = (pd__listener){.h = h, .fd = fd};
    if (unix_path) snprintf(l->path, sizeof l->path, "%s", unix_path);
    if (uv_poll_init(h->loop, &l->poll, fd) != 0) {
        close(fd);
        return pd_fail(err, PD_EINTERNAL, "host", "cannot watch the listening socket");
    }
    l->poll.data = l;
    h->n_listener++;
    if (uv_poll_start(&l->poll, UV_READABLE, on_accept) != 0)
        return pd_fail(err, PD_EINTERNAL, "host", "cannot watch the listening socket");
    return PD_OK;
}

static pd_status listen_unix(pd_http *h, const char *path, pd_err *err) {
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof sun.sun_path)
        return pd_fail(err, PD_EINVAL, "host", "unix socket path longer than %zu bytes",
                       sizeof sun.sun_path - 1);
    memcpy(sun.sun_path, path, strlen(path) + 1);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return pd_fail(err, PD_EINVAL, "host", "socket: %s", strerror(errno));
    /* A socket file without a server behind it is a left-over; a live one is not touched. */
    if (connect(fd, (struct sockaddr *)&sun, sizeof sun) != 0 && errno == ECONNREFUSED)
        unlink(path);
    close(fd);
    const int s = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s < 0 || bind(s, (struct sockaddr *)&sun, sizeof sun) != 0 || listen(s, BACKLOG) != 0) {
        const int e = errno;
        if (s >= 0) close(s);
        return pd_fail(err, PD_EINVAL, "host", "cannot listen on %s: %s", path, strerror(e));
    }
    return listen_fd(h, s, path, err);
}

pd_status pd_http_listen(pd_http *h, const char *host, unsigned port, pd_err *err) {
    if (host[0] == '/') return listen_unix(h, host, err);
    char service[16];
    snprintf(service, sizeof service, "%u", port);
    struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *list = NULL;
    const int rc = getaddrinfo(host[0] ? host : NULL, service, &hints, &list);
    if (rc != 0) return pd_fail(err, PD_EINVAL, "host", "host %s: %s", host, gai_strerror(rc));
    int last = 0;
    const size_t before = h->n_listener;
    pd_status st = PD_OK;
    for (struct addrinfo *a = list; a && st == PD_OK; a = a->ai_next) {
        const int fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd < 0) {
            last = errno;
            continue;
        }
        const int on = 1;
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (a->ai_family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
        if (port == 0 &&
            h->port) { /* the second family of "localhost:0" shares the first one's port */
            if (a->ai_family == AF_INET6)
                ((struct sockaddr_in6 *)(void *)a->ai_addr)->sin6_port = htons((uint16_t)h->port);
            else ((struct sockaddr_in *)(void *)a->ai_addr)->sin_port = htons((uint16_t)h->port);
        }
        if (bind(fd, a->ai_addr, a->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0) {
            last = errno;
            close(fd);
            continue;
        }
        struct sockaddr_storage ss;
        socklen_t len = sizeof ss;
        if (!h->port && getsockname(fd, (struct sockaddr *)&ss, &len) == 0)
            h->port = ntohs(ss.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&ss)->sin6_port
                                                     : ((struct sockaddr_in *)&ss)->sin_port);
        st = listen_fd(h, fd, NULL, err);
    }
    freeaddrinfo(list);
    if (st == PD_OK && h->n_listener == before)
        return pd_fail(err, PD_EINVAL, "port", "cannot listen on %s port %u: %s", host, port,
                       strerror(last));
    return st;
}

unsigned pd_http_port(const pd_http *h) {
    return h->port;
}

static void on_listener_closed(uv_handle_t *handle) {
    pd__listener *l = handle->data;
    close(l->fd);
    if (l->path[0]) unlink(l->path);
}

void pd_http_stop_listening(pd_http *h) {
    for (size_t i = 0; i < h->n_listener; i++) {
        uv_handle_t *handle = (uv_handle_t *)&h->listener[i].poll;
        if (!uv_is_closing(handle)) uv_close(handle, on_listener_closed);
    }
}
