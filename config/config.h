/* SPDX-License-Identifier: Apache-2.0 */
/* The settings of `pressd serve`.
 *
 * One row of options.c per option gives the flag (and its short form), the
 * PRESSD_* variable, the key of the JSON file, the default, the range, the help
 * text and the man page.  Precedence: flag > environment > file > default.  An
 * unknown flag, key or PRESSD_* variable and a bad value anywhere are errors
 * that name it and say where it came from.  config knows only engine/base. */
#ifndef PD_CONFIG_CONFIG_H
#define PD_CONFIG_CONFIG_H

#include "engine/base/buf.h"
#include "engine/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Strings are owned by the config; NULL = not set. */
typedef struct pd_config {
    char *model;          /* -m, --model FILE */
    char *alias;          /* -a, --alias NAME: model id in the API */
    uint64_t ctx_size;    /* -c, --ctx-size N; 0 = the model's */
    uint64_t threads;     /* -t, --threads N; 0 = choose */
    uint64_t draft_tokens; /* --draft-tokens N */
    uint64_t parallel;    /* -np, --parallel N */
    char *host;           /* --host */
    uint64_t port;        /* --port */
    char *api_key;        /* --api-key KEY[,KEY...] */
    char *chat_template;  /* --chat-template TEMPLATE */
    char *press_data;     /* --press-data FILE: trained tensors of the model's presses */
    bool metrics;         /* --metrics / --no-metrics (default on) */
    uint64_t kv_cache_bytes; /* --kv-cache-bytes N[K|M|G]; 0 = choose */
    char *compute;        /* --compute int8|f32 */
    char *cpu_mask;       /* --cpu-mask LIST */
    char *compression;    /* --compression JSON or text: server default */
    char *config_file;    /* --config FILE */
    uint64_t queue;       /* --queue N */
    uint64_t max_body_bytes; /* --max-body-bytes */
    uint64_t max_connections;
    uint64_t max_connections_per_ip;
    uint64_t header_timeout, body_timeout, idle_timeout, write_timeout, request_timeout, drain_timeout; /* seconds */
    char *log_level;      /* --log-level error|warn|info|debug */
} pd_config;

/* argv[0] is skipped.  `env` is environ-shaped (NULL-terminated "K=V"), or NULL.
 * *help is true when -h/--help was given (nothing else is checked then, and *ret
 * holds the defaults).  Of a flag given twice the last one counts.  On failure
 * *ret and *help are untouched.  No setting is required here: a command checks
 * for the ones it needs.  Errors: EINVAL (err->param and the message name the
 * option as it was written, the message says where it came from and what is
 * allowed; a key is never shown), ENOMEM.  Thread: any. */
pd_status pd_config_load(pd_config *ret, int argc, char *const *argv, char *const *env, bool *help, pd_err *err);
void pd_config_done(pd_config *c); /* NULL and a zeroed one are fine */

/* All from the one table; they append, and a failure is in out->failed. */
void pd_config_help(pd_buf *out);     /* option list for --help: at most 100 columns */
void pd_config_man(pd_buf *out);      /* OPTIONS, ENVIRONMENT and FILES of the man page, roff */
void pd_config_markdown(pd_buf *out); /* table for the README */
/* The settings that are set, as the JSON file would hold them (it loads again,
 * but for the keys, which are masked so that they do not). */
void pd_config_json(const pd_config *c, pd_buf *out);

#endif
