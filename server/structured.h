/* SPDX-License-Identifier: Apache-2.0 */
/* What form an answer must have, in every spelling clients use: OpenAI's
 * response_format; llama.cpp's grammar and json_schema; vLLM's guided_json,
 * guided_regex, guided_choice, guided_grammar and structured_outputs {json, regex,
 * choice, grammar, json_object}. */
#ifndef PD_SERVER_STRUCTURED_H
#define PD_SERVER_STRUCTURED_H

#include "engine/grammar/grammar.h"
#include "server/json.h"

enum { PD_CHOICE_LIST_MAX = 1000 };

/* *ret: one reference, or NULL where any answer will do.  Costs milliseconds: not
 * for the event loop.  Errors: EINVAL naming the field and what is wrong with it
 * (two forms at once among them), ENOMEM. */
pd_status pd_structured_decode(const json_t *body, pd_grammar **ret, pd_err *err);

/* The schema of a response_format that was decoded, true for any object, NULL if it asks
 * for no JSON. */
const json_t *pd_structured_form(const json_t *body);

/* The grammar of one schema. */
pd_status pd_structured_schema(const json_t *schema, const char *path, pd_grammar **ret, pd_err *err);

#endif
