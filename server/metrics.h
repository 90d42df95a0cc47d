/* SPDX-License-Identifier: Apache-2.0 */
/* What is counted, and GET /metrics (metrics.c).  Labels have few values: the
 * press is its name without parameters, the route its table row. */
#ifndef PD_SERVER_METRICS_H
#define PD_SERVER_METRICS_H

#include "engine/run/engine.h"
#include "server/prom.h"

struct pd_route;

enum { PD_METRICS_ROUTES_MAX = 32, PD_METRICS_CODES = 18 };

typedef struct pd_metrics_press {
    const char *name;
    pd_counter requests, skipped, seen, kept, evicted, bytes, bytes_dense, rows, rows_key, rows_value;
    pd_hist seconds;
} pd_metrics_press;

typedef struct pd_metrics {
    pd_metrics_press *press; /* [n_press], the registry's order, "none" last */
    size_t n_press;
    pd_counter http[PD_METRICS_ROUTES_MAX + 1][PD_METRICS_CODES]; /* last row: no route */
    pd_counter rejected[PD_EFILE + 1];
    pd_counter finished[PD_FINISH_ERROR + 1];
    pd_hist http_seconds, ttft, inter_token, e2e, queue, prefill, decode;
    pd_hist prompt_tokens, generated_tokens;
} pd_metrics;

pd_status pd_metrics_open(pd_metrics *m, pd_err *err);
void pd_metrics_close(pd_metrics *m);

/* Events.  Thread: any. */
void pd_metrics_http(pd_metrics *m, const struct pd_route *route, int status, double seconds);
void pd_metrics_rejected(pd_metrics *m, pd_status code);
void pd_metrics_job(pd_metrics *m, const pd_job_result *r, size_t n_generated, double e2e_seconds);

#endif
