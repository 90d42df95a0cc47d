/* SPDX-License-Identifier: Apache-2.0 */
/* What the files that decode a request share. */
#ifndef PD_SERVER_REQUEST_INT_H
#define PD_SERVER_REQUEST_INT_H

#include "server/request.h"

enum { PD__TOKENS_MAX = INT32_MAX };

/* A token id of the vocabulary; `at` is where it stands.  EINVAL. */
pd_status pd__request_id(const json_t *v, const char *at, const pd_request_env *env, int32_t *ret,
                         pd_err *err);

/* What else goes into a chat's template: r->vars, add_generation_prompt, continue_final.
 * After pd_request_messages.  EINVAL, ENOMEM. */
pd_status pd__request_template(const json_t *body, pd_request *r, pd_err *err);

/* For a template without tools: the request's go into the system message, what was called
 * and answered before into plain messages.  Nothing to do where there are none.  ENOMEM. */
pd_status pd__request_plain_tools(pd_request *r, pd_err *err);

/* How a token is drawn and which one ends the answer: r->sampling, stop, stop_id,
 * adjust.  After r->max_tokens.  EINVAL, ENOMEM. */
pd_status pd__request_drawing(const json_t *body, const pd_request_env *env, pd_request *r,
                              pd_err *err);

/* "model": any name is answered by the model that is served; what follows '@'
 * behind it is a compression ("name@snapkv:0.5"), *suffix, or NULL.  EINVAL. */
pd_status pd__request_model(const json_t *body, const pd_request_env *env, const char **suffix,
                            pd_err *err);

#endif
