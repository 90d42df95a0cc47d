/* SPDX-License-Identifier: Apache-2.0 */
/* Probes.  /livez: the loop turns.  /readyz and /health: a request sent now would
 * be served.  All are open and answer while the engine computes. */
#include "server/reply.h"
#include "server/router.h"
#include "server/server.h"

static void run_livez(pd_req *q) {
    pd_buf_puts(&q->out, "{\"status\":\"ok\"}");
    pd_reply_json(q);
}

static void run_ready(pd_req *q) {
    pd_err err = {0};
    switch (q->srv->phase) {
    case PD_LOADING: pd_fail(&err, PD_EUNAVAIL, NULL, "the model is loading"); break;
    case PD_DRAINING: pd_fail(&err, PD_EUNAVAIL, NULL, "the server is shutting down"); break;
    default: run_livez(q); return;
    }
    pd_reply_error(q, &err);
}

static void run_version(pd_req *q) {
    pd_buf_puts(&q->out, "{\"version\":\"" PD_VERSION "\"}");
    pd_reply_json(q);
}

const pd_route pd_route_livez = {.method = "GET",
                                 .path = "/livez",
                                 .label = "/livez",
                                 .flags = PD_ROUTE_OPEN | PD_ROUTE_EARLY,
                                 .run = run_livez};
const pd_route pd_route_readyz = {.method = "GET",
                                  .path = "/readyz",
                                  .label = "/readyz",
                                  .flags = PD_ROUTE_OPEN | PD_ROUTE_EARLY,
                                  .run = run_ready};
const pd_route pd_route_health = {.method = "GET",
                                  .path = "/health",
                                  .label = "/health",
                                  .flags = PD_ROUTE_OPEN | PD_ROUTE_EARLY,
                                  .run = run_ready};
const pd_route pd_route_version = {.method = "GET",
                                   .path = "/version",
                                   .label = "/version",
                                   .flags = PD_ROUTE_CHEAP,
                                   .run = run_version};
