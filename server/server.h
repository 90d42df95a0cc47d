/* SPDX-License-Identifier: Apache-2.0 */
/* The server's state and its life: configure, listen, load, serve, drain, stop.
 *
 *   LOADING -> SERVING -> DRAINING -> (loop ends)      a failed load ends it too
 *
 * It listens before the model is loaded, so probes get answers from the first
 * moment.  Everything here belongs to the loop thread but what says otherwise. */
#ifndef PD_SERVER_SERVER_H
#define PD_SERVER_SERVER_H

#include "config/config.h"
#include "engine/run/engine.h"
#include "server/auth.h"
#include "server/call.h"
#include "server/http.h"
#include "server/metrics.h"

#include <time.h>
#include <uv.h>

typedef enum { PD_LOADING, PD_SERVING, PD_DRAINING } pd_phase_of_life;

typedef struct pd_server {
    const pd_config *cfg;
    uv_loop_t loop;
    uv_signal_t sigterm, sigint, sighup;
    uv_timer_t drain_timer;
    uv_async_t loaded;   /* the loading thread is done */
    pd_http *http;
    pd_phase_of_life phase;
    pd_auth auth;
    pd_metrics metrics;
    pd_calls calls;      /* jobs under way */
    size_t n_working;    /* offloaded work under way */

    /* Set once when loading ended; constant after. */
    pd_engine *engine;
    const pd_engine_info *info;
    const pd_tokenizer *tok;
    const pd_chat *chat; /* NULL: the model has none */
    char model_id[256];
    time_t started;

    uv_thread_t load_thread;
    pd_err load_err;
    pd_engine *load_engine; /* the loading thread's result until `loaded` fires */
    bool loading, finishing, announce;
    unsigned cpu_mask;
    uint64_t drain_begin_ms; /* uv_now */
    int exit_code;
    pd_err exit_err;
} pd_server;

/* Run until told to stop.  0, or the code for the process: *err then says why.
 * `announce` prints progress and the ready line on standard error. */
int pd_server_run(const pd_config *cfg, bool announce, pd_err *err);

#endif
