/* SPDX-License-Identifier: Apache-2.0 */
/* Errors: one list of codes, one fixed-size record, one path to the client.
 *
 * A function that can fail returns pd_status and takes `pd_err *err` last; its
 * outputs are untouched on failure.  The deepest frame writes the message (it
 * knows field, value and limit); callers forward with PD_TRY.  Only
 * server/reply.c turns a record into HTTP. */
#ifndef PD_ENGINE_BASE_ERR_H
#define PD_ENGINE_BASE_ERR_H

#include <stdarg.h>

/* X(name, HTTP status, OpenAI error.type, OpenAI error.code or "").
 * Nothing else maps errors. */
#define PD_CODE_MAP(X)                                                         \
    X(OK, 200, "", "")                                                         \
    X(EINVAL, 400, "invalid_request_error", "")                                \
    X(EJSON, 400, "invalid_request_error", "invalid_json")                     \
    X(ECONTEXT, 400, "invalid_request_error", "context_length_exceeded")       \
    X(EBUDGET, 400, "invalid_request_error", "kv_budget_exceeded")             \
    X(EAUTH, 401, "authentication_error", "invalid_api_key")                   \
    X(EPERM, 403, "permission_error", "")                                      \
    X(ENOTFOUND, 404, "not_found_error", "not_found")                          \
    X(ENOMODEL, 404, "not_found_error", "model_not_found")                     \
    X(EMETHOD, 405, "invalid_request_error", "method_not_allowed")             \
    X(ETIMEOUT, 408, "invalid_request_error", "request_timeout")               \
    X(ETOOBIG, 413, "invalid_request_error", "request_too_large")              \
    X(EMEDIA, 415, "invalid_request_error", "unsupported_media_type")          \
    X(EBUSY, 429, "rate_limit_error", "queue_full")                            \
    X(EINTERNAL, 500, "server_error", "")                                      \
    X(ENOTSUP, 501, "not_supported_error", "")                                 \
    X(ENOMEM, 503, "server_error", "out_of_memory")                            \
    X(EUNAVAIL, 503, "unavailable_error", "unavailable")                       \
    X(EFILE, 500, "server_error", "bad_file")

#include <stddef.h>

typedef enum {
#define X(name, http, type, code) PD_##name,
    PD_CODE_MAP(X)
#undef X
} pd_status;

typedef struct pd_err {
    pd_status code;
    char param[96]; /* JSON path or option at fault, "" if none */
    char msg[400];  /* one line: names the field, the value, the limit */
    size_t n_prompt_tokens, n_ctx; /* of ECONTEXT: what did not fit, and into what */
} pd_err;

/* Record a failure and return its code.  The first failure wins.  `e` and
 * `param` may be NULL; a message that does not fit is cut at a code point.
 * Thread: any, one writer per `e`. */
pd_status pd_fail(pd_err *e, pd_status code, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* HTTP status, OpenAI type and OpenAI code ("" = null) of a code.  Thread: any. */
int pd_status_http(pd_status code);
const char *pd_status_type(pd_status code);
const char *pd_status_code(pd_status code);

#define PD_TRY(expr)                                                           \
    do {                                                                       \
        const pd_status pd_rc_ = (expr);                                       \
        if (pd_rc_ != PD_OK) return pd_rc_;                                    \
    } while (0)

#endif
