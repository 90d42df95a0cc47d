/* SPDX-License-Identifier: Apache-2.0 */
/* A JSON schema (2020-12 and what OpenAI's structured output uses of it) as GBNF:
 * every text of the grammar is JSON that the schema accepts.  The reverse does not
 * hold; left out of what a schema would allow are
 *   - members in another order than `properties` has, and members it does not name
 *     where additionalProperties is not given beside it;
 *   - white space but one blank, or a new line and 16 blanks, between tokens (no
 *     answer is endless white space); numbers beyond 16 digits, exponents of bounded
 *     ones; a second spelling of a character that a pattern reads;
 *   - nesting beyond the grammar's depth.
 *
 * Served beside the obvious: pattern (pattern_grammar.h), format, bounds and multipleOf
 * of numbers, exact by their digits (schema_numbers.c), minProperties, maxProperties,
 * propertyNames, one patternProperties.  oneOf is served where no value can be valid in
 * two branches (other types, other constants, a required member with other constants),
 * allOf where it merges into one object, `type` beside $ref and anyOf where it says
 * nothing new.  nullable and the formats of numbers are OpenAPI's.  Refused by its path
 * is all that cannot be kept: not, if, contains, uniqueItems, dependent*,
 * unevaluated*, $ref to elsewhere.  Thread: any. */
#ifndef PD_SERVER_SCHEMA_GRAMMAR_H
#define PD_SERVER_SCHEMA_GRAMMAR_H

#include "server/json.h"

enum { PD_SCHEMA_RULES_MAX = 2000, PD_SCHEMA_DEPTH_MAX = 32 };

/* GBNF with a rule root, appended to *out.  `path` names the schema in errors.
 * Errors: EINVAL naming the JSON path of a keyword that is not served or a value
 * that is wrong; the limits above; ENOMEM. */
pd_status pd_schema_grammar(const json_t *schema, const char *path, pd_buf *out, pd_err *err);

/* Several schemas in one grammar: the rules that all use, once, then each one's.  Its rules
 * begin with s<*next>, which is the schema, and *next moves behind them.  `loose`: an object
 * in any case; a keyword that is not served says nothing, and a part that cannot be read is
 * any value of its types.  Errors: as above; of a loose one the limits alone. */
void pd_json_rules(pd_buf *out);
pd_status pd_schema_rules(const json_t *schema, const char *path, size_t *next, bool loose, pd_buf *out, pd_err *err);

/* Any JSON object. */
void pd_json_grammar(pd_buf *out);

/* A GBNF string of s[0..n). */
void pd_gbnf_text(pd_buf *out, const char *s, size_t n);

#endif
