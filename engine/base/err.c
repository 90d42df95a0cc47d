/* SPDX-License-Identifier: Apache-2.0 */
/* The error record and the one table from code to HTTP (see err.h). */
#include "engine/base/err.h"

#include "engine/base/utf8.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

pd_status pd_fail(pd_err *e, pd_status code, const char *param, const char *fmt, ...) {
    if (!e || e->code != PD_OK) return code;
    e->code = code;
    snprintf(e->param, sizeof e->param, "%s", param ? param : "");
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->msg, sizeof e->msg, fmt, ap);
    va_end(ap);
    /* Values quoted from a request may be cut inside a sequence: JSON needs whole ones. */
    e->msg[pd_utf8_sanitize(e->msg, strlen(e->msg))] = '\0';
    e->param[pd_utf8_sanitize(e->param, strlen(e->param))] = '\0';
    return code;
}

static const struct {
    int http;
    const char *type, *code;
} map[] = {
#define X(name, http, type, code) [PD_##name] = {http, type, code},
    PD_CODE_MAP(X)
#undef X
};

int pd_status_http(pd_status code) {
    return map[code].http;
}

const char *pd_status_type(pd_status code) {
    return map[code].type;
}

const char *pd_status_code(pd_status code) {
    return map[code].code;
}
