/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the schema grammar: schema_grammar.c walks, these write one type each. */
#ifndef PD_SERVER_SCHEMA_INT_H
#define PD_SERVER_SCHEMA_INT_H

#include "server/schema_grammar.h"

enum { PD__SCHEMA_PATH_MAX = 256, PD__SCHEMA_MERGED_MAX = 256 };

typedef struct {
    const json_t *root;
    bool loose, full;                          /* as near as may be; out of rules, which nothing helps */
    pd_buf *out;                               /* rules */
    const json_t *schema[PD_SCHEMA_RULES_MAX]; /* of each rule s<first + i> */
    size_t first, n_rule, work;
    unsigned depth;
    json_t *merged[PD__SCHEMA_MERGED_MAX]; /* what allOf and propertyNames became; owned */
    size_t n_merged;
    pd_err *err;
} pd__schema;

/* Each appends one expression to *to, and rules that begin with s<id>- to w->out. */
pd_status pd__schema_integer(pd__schema *w, const json_t *s, const char *path, size_t id, pd_buf *to);
pd_status pd__schema_number(pd__schema *w, const json_t *s, const char *path, size_t id, pd_buf *to);
pd_status pd__schema_string(pd__schema *w, const json_t *s, const char *path, size_t id, pd_buf *to);
pd_status pd__schema_object(pd__schema *w, const json_t *s, const char *path, size_t id, pd_buf *to);

/* A subschema's rule: s<*rule>. */
pd_status pd__schema_rule(pd__schema *w, const json_t *s, const char *path, size_t *rule);
bool pd__schema_only_strings(pd__schema *w, const json_t *s);
bool pd__schema_requires(const json_t *s, const char *key);
pd_status pd__schema_bad(pd__schema *w, const char *path, const char *what);
pd_status pd__schema_bad_key(pd__schema *w, const char *path, const char *key, const char *what);
/* A count such as minItems: 0 to 10,000. */
pd_status pd__schema_count(pd__schema *w, const json_t *s, const char *path, const char *key, int64_t none, int64_t *ret);
/* A JSON value as the text it must be. */
void pd__schema_literal(pd_buf *to, const json_t *v);

#endif
