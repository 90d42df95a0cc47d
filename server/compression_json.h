/* SPDX-License-Identifier: Apache-2.0 */
/* The `compression` field of a request, in its three spellings (object, string,
 * suffix of the model's name), to a resolved pd_compression.  Thread: any. */
#ifndef PD_SERVER_COMPRESSION_JSON_H
#define PD_SERVER_COMPRESSION_JSON_H

#include "compression/compress.h"
#include "server/json.h"

/* v: an object or a string; NULL or null means dense.  `path` names it in
 * errors ("compression").  scope "context" is for chat alone.  *ret is the
 * caller's, NULL = dense.  *verbose is set by "verbose": true (may be NULL).
 * Errors: EINVAL with the JSON path, the value and what is allowed; ENOMEM. */
pd_status pd_compression_decode(const json_t *v, const char *path, const pd_press_model *model,
                                bool chat, pd_compression **ret, bool *verbose, pd_err *err);

/* The text form ("snapkv@0.5").  `colon_ratio`: "snapkv:0.5" too, as it follows
 * '@' in a model's name. */
pd_status pd_compression_decode_text(const char *text, const char *path, bool colon_ratio,
                                     const pd_press_model *model, pd_compression **ret,
                                     pd_err *err);

/* A server default from the command line: an object when it begins with '{',
 * else the text form. */
pd_status pd_compression_decode_default(const char *text, const pd_press_model *model, bool chat,
                                        pd_compression **ret, pd_err *err);

#endif
