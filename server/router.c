/* SPDX-License-Identifier: Apache-2.0 */
/* Routes (see router.h).  A new endpoint = its file with a `const pd_route` and
 * one word below. */
#include "server/router.h"

#include "engine/base/clock.h"
#include "server/reply.h"
#include "server/server.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define PD_ROUTE_LIST(X)                                                                           \
    X(completions) X(chat) X(render) X(render_chat) X(responses) X(messages) X(count_tokens)       \
    X(embeddings) X(models) X(model) X(presses) X(explain) X(tokenize) X(detokenize) X(livez)      \
    X(readyz) X(health) X(version) X(metrics) X(openapi)

#define X(name) extern const pd_route pd_route_##name;
PD_ROUTE_LIST(X)
#undef X

const pd_route *const pd_routes[] = {
#define X(name) &pd_route_##name,
    PD_ROUTE_LIST(X)
#undef X
};
const size_t pd_n_routes = sizeof pd_routes / sizeof pd_routes[0];

/* Echo a sane id, or make one: a counter behind the start time is unique per process. */
static void set_id(pd_req *q) {
    static uint64_t count; /* loop thread */
    const char *given = pd_req_header(q, "X-Request-Id");
    const size_t n = given ? strlen(given) : 0;
    bool sane = n > 0 && n <= PD_REQ_ID_MAX;
    for (size_t i = 0; i < n && sane; i++)
        sane = isalnum((unsigned char)given[i]) || strchr("-_.:", given[i]);
    if (sane) memcpy(q->id, given, n + 1);
    else
        snprintf(q->id, sizeof q->id, "req-%08llx%06llx",
                 (unsigned long long)q->srv->started & 0xFFFFFFFFu, (unsigned long long)++count);
}

static bool path_matches(const pd_route *r, const char *path) {
    if (!(r->flags & PD_ROUTE_PREFIX)) return strcmp(r->path, path) == 0;
    const size_t n = strlen(r->path);
    return strncmp(r->path, path, n) == 0 && path[n];
}

static bool served(const pd_req *q, const pd_route *r) {
    return !(r->flags & PD_ROUTE_METRICS) || q->srv->cfg->metrics;
}

/* Fills q->route; 404 and 405 (with Allow) otherwise.  HEAD is GET without body. */
static pd_status match(pd_req *q, pd_err *err) {
    const char *method = strcmp(q->method, "HEAD") == 0 ? "GET" : q->method;
    char allow[64] = "";
    for (size_t i = 0; i < pd_n_routes; i++) {
        const pd_route *r = pd_routes[i];
        if (!path_matches(r, q->path) || !served(q, r)) continue;
        if (strcmp(r->method, method) == 0) {
            q->route = r;
            return PD_OK;
        }
        if (strstr(allow, r->method)) continue;
        const size_t n = strlen(allow);
        snprintf(allow + n, sizeof allow - n, "%s%s, ", r->method,
                 strcmp(r->method, "GET") == 0 ? ", HEAD" : "");
    }
    if (!allow[0]) return pd_fail(err, PD_ENOTFOUND, NULL, "there is no %.200s here", q->path);
    pd_req_add_header(q, "Allow", "%sOPTIONS", allow);
    if (strcmp(q->method, "OPTIONS") == 0) return PD_OK;
    return pd_fail(err, PD_EMETHOD, NULL, "%.16s is not allowed on %.100s; allowed: %sOPTIONS",
                   q->method, q->path, allow);
}

static pd_status check_content_type(const pd_req *q, pd_err *err) {
    const char *type = pd_req_header(q, "Content-Type");
    if (!type || !*type) return PD_OK;
    const size_t n = strcspn(type, "; \t");
    if (n == 16 && strncasecmp(type, "application/json", 16) == 0) return PD_OK;
    if (n > 5 && strncasecmp(type + n - 5, "+json", 5) == 0) return PD_OK;
    return pd_fail(err, PD_EMEDIA, "Content-Type",
                   "Content-Type is %.80s; application/json is expected", type);
}

static pd_status check_phase(const pd_req *q, pd_err *err) {
    const unsigned flags = q->route->flags;
    if (flags & PD_ROUTE_EARLY) return PD_OK;
    switch (q->srv->phase) {
    case PD_LOADING: return pd_fail(err, PD_EUNAVAIL, NULL, "the model is loading");
    case PD_DRAINING:
        if (flags & PD_ROUTE_CHEAP) return PD_OK;
        return pd_fail(err, PD_EUNAVAIL, NULL, "the server is shutting down");
    default: return PD_OK;
    }
}

void pd_router_head(pd_req *q) {
    set_id(q);
    pd_err *err = &q->err;
    if (match(q, err) != PD_OK || !q->route) return;
    if (!(q->route->flags & PD_ROUTE_OPEN) &&
        !pd_auth_ok(&q->srv->auth, pd_req_header(q, "Authorization"),
                    pd_req_header(q, "X-Api-Key"))) {
        pd_fail(err, PD_EAUTH, NULL,
                "a valid API key is required: Authorization: Bearer KEY, or X-Api-Key: KEY");
        return;
    }
    if (check_phase(q, err) != PD_OK) return;
    if (q->route->decode) check_content_type(q, err);
}

/* Decoded: answer the fault or run the handler. */
static void run(pd_req *q) {
    if (q->err.code != PD_OK) pd_reply_error(q, &q->err);
    else q->route->run(q);
}

static void decode(pd_req *q) {
    q->route->decode(q, &q->err);
    pd_buf_done(&q->body);
}

void pd_router_run(pd_req *q) {
    if (q->srv->phase == PD_DRAINING) q->close = true;
    if (q->err.code != PD_OK) {
        pd_reply_error(q, &q->err);
        return;
    }
    if (!q->route) { /* OPTIONS */
        pd_req_reply(q, 204, NULL);
        return;
    }
    if (q->route->decode && q->body.len > PD_HTTP_OFFLOAD_BYTES) {
        pd_err err = {0};
        if (pd_req_offload(q, decode, run, &err) != PD_OK) pd_reply_error(q, &err);
        return;
    }
    if (q->route->decode) decode(q);
    run(q);
}
