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

/* "tools" whose functions have "name", "description", `schema` and "strict" as members of
 * their own -> a chat's.  `type` is their type; a tool must have that (and may be without a
 * schema) or, if `type_optional`, must have a schema.  Errors: EINVAL at "tools[i]", ENOMEM. */
pd_status pd_translate_tools(json_t *body, const char *type, bool type_optional, const char *schema, pd_err *err);

/* A chat's "tool_choice": `name` NULL = the word `choice`, else the function of that name. */
pd_status pd_translate_choice(json_t *body, const char *choice, const char *name, pd_err *err);

/* A call made before, appended to "tool_calls" of `message`, an assistant's; `arguments`: text or object. */
pd_status pd_translate_call(json_t *message, const char *id, const char *name, json_t *arguments, pd_err *err);

/* What a call gave, as a message.  `content`: a string or a chat's parts.  ENOMEM. */
pd_status pd_translate_result(json_t *list, const char *id, json_t *content, pd_err *err);

/* EINVAL unless `key` is absent, null or one of the words behind (up to NULL), as itself or
 * as its "type"; "false" stands for the JSON literal. */
pd_status pd_translate_refuse(const json_t *body, const char *key, pd_err *err, ...);

#endif
