/* SPDX-License-Identifier: Apache-2.0 */
/* Bodies of other APIs changed to a chat's (pd_dialect.translate).  What both have
 * stays where it is, so our own fields work there too.  Thread: any. */
#ifndef PD_SERVER_TRANSLATE_H
#define PD_SERVER_TRANSLATE_H

#include "server/json.h"

/* `from` becomes `to`; what stood there goes.  ENOMEM. */
pd_status pd_translate_rename(json_t *body, const char *from, const char *to, pd_err *err);

/* Fields of a chat that the other API does not have; they go, as unknown ones do.  Its own
 * `keep` may be among them (NULL = none). */
void pd_translate_forget(json_t *body, const char *keep);

/* Message "system" of text content (a string or parts) at the front of "messages".  ENOMEM. */
pd_status pd_translate_system(json_t *body, json_t *content, pd_err *err);

/* EINVAL unless `key` is absent, null or one of the words behind (up to NULL), as itself or
 * as its "type"; "[]" and "false" stand for the JSON literals. */
pd_status pd_translate_refuse(const json_t *body, const char *key, pd_err *err, ...);

#endif
