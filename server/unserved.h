/* SPDX-License-Identifier: Apache-2.0 */
/* Fields of other servers that change the answer and are not served: one table,
 * each with the neutral values that are accepted. */
#ifndef PD_SERVER_UNSERVED_H
#define PD_SERVER_UNSERVED_H

#include "server/json.h"

/* Errors: EINVAL naming the field, its value and what is accepted. */
pd_status pd_unserved_check(const json_t *body, bool chat, pd_err *err);

#endif
