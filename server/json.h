/* SPDX-License-Identifier: Apache-2.0 */
/* JSON both ways: hostile text in (jansson behind a pre-scan), replies out (text
 * appended to a pd_buf; no tree is built, so writing cannot fail half-way but
 * by the buffer's own limit).  Thread: any. */
#ifndef PD_SERVER_JSON_H
#define PD_SERVER_JSON_H

#include "engine/base/buf.h"
#include "engine/base/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PD_JSON_DEPTH_MAX = 32, PD_JSON_VALUES_MAX = 262144 };

/* text[0..len) -> *ret, an object the caller decrefs.  Depth and number of
 * values are bounded before the parser sees the text, since a parsed value costs
 * up to 79 bytes of memory per byte of text.  Errors: EJSON with line and
 * column, EINVAL when the top is no object, ENOMEM. */
pd_status pd_json_parse(json_t **ret, const char *text, size_t len, pd_err *err);

/* Member `key` of `obj`, NULL when absent or null: clients send null for "not given". */
json_t *pd_json_get(const json_t *obj, const char *key);

/* Typed members.  Absent or null leaves *ret alone.  `path` is the prefix for
 * errors ("" or "compression."); a value of another type or out of [min, max]
 * is EINVAL naming the path, the value and the limits.  Integral reals (1.0) are
 * integers.  *given (may be NULL) says whether it was there. */
pd_status pd_json_bool(const json_t *obj, const char *path, const char *key, bool *ret,
                       pd_err *err);
pd_status pd_json_int(const json_t *obj, const char *path, const char *key, int64_t min,
                      int64_t max, int64_t *ret, bool *given, pd_err *err);
pd_status pd_json_real(const json_t *obj, const char *path, const char *key, double min, double max,
                       double *ret, bool *given, pd_err *err);

/* An integer value, as above, without a member name. */
bool pd_json_integral(const json_t *v, int64_t *ret);
const char *pd_json_type_name(const json_t *v); /* "a string", "an object", ... */

/* ---- writing ---- */

void pd_json_str(pd_buf *out, const char *s,
                 size_t n); /* quoted and escaped; broken UTF-8 becomes U+FFFD */
void pd_json_cstr(pd_buf *out, const char *s);          /* NULL gives null */
void pd_json_num(pd_buf *out,
                 double v); /* shortest of 6..17 digits that reads back; not finite: null */
void pd_json_f32(pd_buf *out, float v);                 /* the same for a float: 6..9 digits */
void pd_json_u64(pd_buf *out, uint64_t v);

#endif
