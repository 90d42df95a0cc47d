/* SPDX-License-Identifier: Apache-2.0 */
/* API keys.  Comparing takes the same time for any key of any length: every
 * stored key is compared over its full padded width, without an early exit. */
#ifndef PD_SERVER_AUTH_H
#define PD_SERVER_AUTH_H

#include "engine/base/err.h"

#include <stdbool.h>
#include <stddef.h>

enum { PD_AUTH_KEYS_MAX = 64, PD_AUTH_KEY_BYTES_MAX = 255 };

typedef struct pd_auth {
    size_t n; /* 0 = everybody may */
    struct { unsigned char byte[PD_AUTH_KEY_BYTES_MAX + 1]; } *key; /* zero-padded */
} pd_auth;

/* `keys`: comma-separated, NULL or "" for none.  Errors: EINVAL (empty or too
 * long key, too many), ENOMEM. */
pd_status pd_auth_open(pd_auth *a, const char *keys, pd_err *err);
void pd_auth_close(pd_auth *a);

/* Values of the Authorization and X-Api-Key headers, either may be NULL.  Thread: any. */
bool pd_auth_ok(const pd_auth *a, const char *authorization, const char *x_api_key);

#endif
