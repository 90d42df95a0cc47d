/* SPDX-License-Identifier: Apache-2.0 */
/* API keys (see auth.h). */
#include "server/auth.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

pd_status pd_auth_open(pd_auth *a, const char *keys, pd_err *err) {
    *a = (pd_auth){0};
    if (!keys || !*keys) return PD_OK;
    a->key = calloc(PD_AUTH_KEYS_MAX, sizeof *a->key);
    if (!a->key) return pd_fail(err, PD_ENOMEM, NULL, "no memory");
    for (const char *p = keys;;) {
        const size_t n = strcspn(p, ",");
        if (n == 0) return pd_fail(err, PD_EINVAL, "api-key", "api-key: one of the keys is empty");
        if (n > PD_AUTH_KEY_BYTES_MAX)
            return pd_fail(err, PD_EINVAL, "api-key",
                           "api-key: a key has %zu bytes; at most %d are allowed", n,
                           PD_AUTH_KEY_BYTES_MAX);
        if (a->n == PD_AUTH_KEYS_MAX)
            return pd_fail(err, PD_EINVAL, "api-key", "api-key: more than %d keys",
                           PD_AUTH_KEYS_MAX);
        memcpy(a->key[a->n++].byte, p, n);
        if (!p[n]) return PD_OK;
        p += n + 1;
    }
}

void pd_auth_close(pd_auth *a) {
    if (!a) return;
    if (a->key) explicit_bzero(a->key, PD_AUTH_KEYS_MAX * sizeof *a->key);
    free(a->key);
    *a = (pd_auth){0};
}

static bool matches(const pd_auth *a, const char *given) {
    unsigned char padded[PD_AUTH_KEY_BYTES_MAX + 1] = {0};
    const size_t n = strlen(given);
    if (n == 0 || n > PD_AUTH_KEY_BYTES_MAX) return false;
    memcpy(padded, given, n);
    unsigned found = 0;
    for (size_t k = 0; k < a->n; k++) {
        volatile unsigned diff = 0; /* volatile: no early exit by the compiler either */
        for (size_t i = 0; i < sizeof padded; i++) diff |= padded[i] ^ a->key[k].byte[i];
        found |= diff == 0;
    }
    return found != 0;
}

bool pd_auth_ok(const pd_auth *a, const char *authorization, const char *x_api_key) {
    if (a->n == 0) return true;
    if (authorization && strncasecmp(authorization, "Bearer ", 7) == 0) {
        const char *token = authorization + 7;
        while (*token == ' ') token++;
        if (matches(a, token)) return true;
    }
    return x_api_key && matches(a, x_api_key);
}
