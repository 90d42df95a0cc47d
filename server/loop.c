/* SPDX-License-Identifier: Apache-2.0 */
/* The server's life on one libuv loop (see server.h).
 *
 * TERM and INT drain: readiness goes off at once, new work gets 503, running
 * streams finish, then it ends; without running work that is at once, and after
 * drain_timeout what is left is cut.  A second signal cuts at once.  The
 * listeners stay open while draining, so a balancer reads "not ready" rather
 * than a refused connection. */
#include "server/server.h"

#include "engine/base/clock.h"
#include "engine/base/log.h"
#include "server/compression_json.h"

#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { DRAIN_POLL_MS = 50, PROGRESS_STEP = 10 };

/* ---- the end ---- */

static void finish(pd_server *s) {
    if (s->finishing) return;
    s->finishing = true;
    pd_http_shutdown(s->http);
    pd_calls_shutdown(&s->calls);
    uv_handle_t *const handle[] = {(uv_handle_t *)&s->sigterm, (uv_handle_t *)&s->sigint,
                                   (uv_handle_t *)&s->sighup, (uv_handle_t *)&s->drain_timer,
                                   (uv_handle_t *)&s->loaded};
    for (size_t i = 0; i < sizeof handle / sizeof handle[0]; i++) uv_close(handle[i], NULL);
    /* uv_run returns once offloaded work is through and the handles are closed. */
}

static void on_drain(uv_timer_t *t) {
    pd_server *s = t->data;
    const uint64_t waited_ms = uv_now(&s->loop) - s->drain_begin_ms;
    const bool idle = pd_http_requests(s->http) == 0 && s->n_working == 0;
    if (idle) {
        finish(s);
    } else if (waited_ms > s->cfg->drain_timeout * 1000u) {
        pd_log(PD_LOG_WARN, "drain timeout: cutting %zu requests", pd_http_requests(s->http));
        finish(s);
    }
}

static void on_stop(uv_signal_t *sig, int signum) {
    pd_server *s = sig->data;
    if (s->phase == PD_DRAINING || s->loading) {
        pd_log(PD_LOG_INFO, "stopping now");
        s->phase = PD_DRAINING;
        finish(s);
        return;
    }
    pd_log(PD_LOG_INFO, "signal %d: draining %zu requests; once more stops at once", signum,
           pd_http_requests(s->http));
    s->phase = PD_DRAINING;
    s->drain_begin_ms = uv_now(&s->loop);
    uv_timer_start(&s->drain_timer, on_drain, 0, DRAIN_POLL_MS);
}

static void on_hup(uv_signal_t *sig, int signum) {
    pd_log(PD_LOG_INFO, "signal %d: nothing to reload", signum);
}

/* ---- loading, on a thread of its own ---- */

typedef struct {
    int last; /* tenths announced */
    bool announce;
} progress_state;

static void on_progress(void *arg, double done) {
    progress_state *p = arg;
    const int tenth = (int)(done * PROGRESS_STEP);
    if (!p->announce || tenth <= p->last) return;
    p->last = tenth;
    pd_log(PD_LOG_INFO, "loading: %d %%", tenth * 100 / PROGRESS_STEP);
}

static void load(void *arg) {
    pd_server *s = arg;
    const pd_config *c = s->cfg;
    pd_engine_opts o = {
        .model_path = c->model,
        .chat_template = c->chat_template,
        .compute = c->compute && strcmp(c->compute, "f32") == 0 ? PD_COMPUTE_F32 : PD_COMPUTE_INT8,
        .press_data = c->press_data,
        .n_threads = (unsigned)c->threads,
        .cpu_mask = s->cpu_mask,
        .ctx_size = (size_t)c->ctx_size,
        .parallel = (unsigned)c->parallel, .draft_tokens = (unsigned)c->draft_tokens,
        .kv_bytes = c->kv_cache_bytes,
        .queue_max = (unsigned)c->queue,
    };
    progress_state p = {.announce = s->announce};
    pd_engine *e = NULL;
    if (pd_engine_open(&e, &o, on_progress, &p, &s->load_err) == PD_OK) s->load_engine = e;
    uv_async_send(&s->loaded);
}

/* The id in the API: the alias, else the file's name without directory and ".gguf". */
static void set_model_id(pd_server *s) {
    const char *name = s->cfg->alias;
    if (!name || !*name) {
        const char *slash = strrchr(s->cfg->model, '/');
        name = slash ? slash + 1 : s->cfg->model;
    }
    snprintf(s->model_id, sizeof s->model_id, "%s", name);
    const size_t n = strlen(s->model_id);
    if (!(s->cfg->alias && *s->cfg->alias) && n > 5 && strcmp(s->model_id + n - 5, ".gguf") == 0)
        s->model_id[n - 5] = '\0';
}

static void fail(pd_server *s, const pd_err *err) {
    s->exit_err = *err;
    s->exit_code = err->code == PD_EINVAL || err->code == PD_EFILE ? 2 : 1;
    finish(s);
}

/* The server's default must fit the model: found out now, not by the first request. */
static pd_status check_default(const pd_server *s, pd_err *err) {
    const char *text = s->cfg->compression;
    if (!text || !*text) return PD_OK;
    pd_compression *c = NULL;
    PD_TRY(pd_compression_decode_default(text, &s->info->press_model, true, &c, err));
    pd_compression_close(c);
    return PD_OK;
}

static void on_loaded(uv_async_t *async) {
    pd_server *s = async->data;
    if (!s->loading) return;
    uv_thread_join(&s->load_thread);
    s->loading = false;
    if (!s->load_engine) {
        fail(s, &s->load_err);
        return;
    }
    s->engine = s->load_engine;
    s->info = pd_engine_get_info(s->engine);
    s->tok = pd_engine_tokenizer(s->engine);
    s->chat = pd_engine_chat(s->engine);
    pd_err err = {0};
    if (check_default(s, &err) != PD_OK) {
        fail(s, &err);
        return;
    }
    s->phase = PD_SERVING;
    if (s->info->warning) pd_log(PD_LOG_WARN, "%s", s->info->warning);
    if (!s->announce) return;
    const char *host = s->cfg->host;
    if (host[0] == '/') pd_log(PD_LOG_INFO, "ready: %s on %s", s->model_id, host);
    else
        pd_log(PD_LOG_INFO, "ready: %s on http://%s%s%s:%u/v1", s->model_id,
               strchr(host, ':') ? "[" : "", host, strchr(host, ':') ? "]" : "",
               pd_http_port(s->http));
}

/* ---- the beginning ---- */

static pd_status start(pd_server *s, pd_err *err) {
    const pd_config *c = s->cfg;
    const pd_http_opts o = {
        .max_body = (size_t)c->max_body_bytes,
        .max_connections = (size_t)c->max_connections,
        .max_per_ip = (size_t)c->max_connections_per_ip,
        .header_ms = c->header_timeout * 1000u,
        .body_ms = c->body_timeout * 1000u,
        .idle_ms = c->idle_timeout * 1000u,
        .write_ms = c->write_timeout * 1000u,
        .request_ms = c->request_timeout * 1000u,
    };
    PD_TRY(pd_http_open(&s->http, s, &s->loop, &o, err));
    PD_TRY(pd_http_listen(s->http, c->host, (unsigned)c->port, err));
    if (s->announce) pd_log(PD_LOG_INFO, "listening on %s port %u", c->host, pd_http_port(s->http));
    s->loading = true;
    if (uv_thread_create(&s->load_thread, load, s) != 0) {
        s->loading = false;
        return pd_fail(err, PD_EINTERNAL, NULL, "cannot start the loading thread");
    }
    return PD_OK;
}

int pd_server_run(const pd_config *cfg, bool announce, pd_err *err) {
    static pd_server server; /* one per process; too large for a stack */
    pd_server *s = &server;
    *s = (pd_server){.cfg = cfg, .announce = announce, .started = time(NULL), .cpu_mask = ~0u};
    signal(SIGPIPE, SIG_IGN);
    json_object_seed(0); /* before threads parse */
    set_model_id(s);
    if (cfg->cpu_mask && *cfg->cpu_mask &&
        pd_cpu_mask_parse(cfg->cpu_mask, &s->cpu_mask, err) != PD_OK)
        return 2;
    if (pd_auth_open(&s->auth, cfg->api_key, err) != PD_OK) return 2;
    if (pd_metrics_open(&s->metrics, err) != PD_OK || uv_loop_init(&s->loop) != 0) {
        pd_fail(err, PD_EINTERNAL, NULL, "cannot start the event loop");
        pd_auth_close(&s->auth);
        pd_metrics_close(&s->metrics);
        return 1;
    }
    uv_signal_init(&s->loop, &s->sigterm);
    uv_signal_init(&s->loop, &s->sigint);
    uv_signal_init(&s->loop, &s->sighup);
    uv_timer_init(&s->loop, &s->drain_timer);
    uv_async_init(&s->loop, &s->loaded, on_loaded);
    s->sigterm.data = s->sigint.data = s->sighup.data = s->drain_timer.data = s->loaded.data = s;
    uv_signal_start(&s->sigterm, on_stop, SIGTERM);
    uv_signal_start(&s->sigint, on_stop, SIGINT);
    uv_signal_start(&s->sighup, on_hup, SIGHUP);

    pd_err why = {0};
    if (pd_calls_open(&s->calls, &s->loop, &why) != PD_OK || start(s, &why) != PD_OK) fail(s, &why);
    uv_run(&s->loop, UV_RUN_DEFAULT);

    if (s->loading) { /* told to stop while loading: there is nothing to save, and waiting could be
                         long */
        _exit(s->exit_code);
    }
    pd_engine_close(s->engine);
    pd_calls_free(&s->calls);
    pd_http_free(s->http);
    uv_loop_close(&s->loop);
    pd_metrics_close(&s->metrics);
    pd_auth_close(&s->auth);
    if (s->exit_code) *err = s->exit_err;
    else if (announce) pd_log(PD_LOG_INFO, "stopped");
    return s->exit_code;
}
