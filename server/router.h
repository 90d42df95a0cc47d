/* SPDX-License-Identifier: Apache-2.0 */
/* Which handler serves a request: one table of method, path, handler.
 *
 * Paths match the raw target exactly (nothing is percent-decoded before the
 * decision), and the key is asked for by the matched row, so no spelling of a
 * path reaches a handler without it. */
#ifndef PD_SERVER_ROUTER_H
#define PD_SERVER_ROUTER_H

#include "server/http.h"

enum {
    PD_ROUTE_OPEN = 1u << 0,    /* no key asked */
    PD_ROUTE_EARLY = 1u << 1,   /* served while loading and draining */
    PD_ROUTE_PREFIX = 1u << 2,  /* path ends in '/', something must follow it */
    PD_ROUTE_CHEAP = 1u << 3,   /* served while draining, not while loading */
    PD_ROUTE_METRICS = 1u << 4, /* absent with --no-metrics */
    PD_ROUTE_ANTHROPIC = 1u << 5, /* errors in Anthropic's shape */
};

typedef struct pd_route {
    const char *method, *path, *label; /* label: for metrics, without variable parts */
    unsigned flags;
    /* Parse and check q->body, tokenise; may allocate q->state and set q->drop.
     * Runs on a pool thread for large bodies, so it reads only q and what is
     * constant after loading.  NULL when the route takes no body. */
    pd_status (*decode)(pd_req *q, pd_err *err);
    void (*run)(pd_req *q); /* Thread: loop */
} pd_route;

/* All rows, in order; each handler's file defines its own row. */
extern const pd_route *const pd_routes[];
extern const size_t pd_n_routes;

/* Judge the head: fills q->id, q->route; a refusal is recorded in q->err. */
void pd_router_head(pd_req *q);
/* Serve; q->body is whole. */
void pd_router_run(pd_req *q);

#endif
