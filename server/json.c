/* SPDX-License-Identifier: Apache-2.0 */
/* JSON both ways (see json.h). */
#include "server/json.h"

#include "engine/base/utf8.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One pass before the parser: nesting and the number of values, strings skipped.
 * Malformed text passes through; the parser words that error. */
static pd_status prescan(const char *s, size_t n, pd_err *err) {
    size_t depth = 0, values = 0;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        const char c = s[i];
        if (in_string) {
            if (c == '\\') i++;
            else if (c == '"') in_string = false;
            continue;
        }
        switch (c) {
        case '"': in_string = true; break;
        case '[':
        case '{':
            if (++depth > PD_JSON_DEPTH_MAX)
                return pd_fail(err, PD_EJSON, NULL,
                               "JSON is nested deeper than %d levels (byte %zu)", PD_JSON_DEPTH_MAX,
                               i);
            values++;
            break;
        case ']':
        case '}':
            if (depth > 0) depth--;
            break;
        case ',': values++; break;
        default: break;
        }
        if (values > PD_JSON_VALUES_MAX)
            return pd_fail(err, PD_EJSON, NULL, "JSON holds more than %d values",
                           PD_JSON_VALUES_MAX);
    }
    return PD_OK;
}

pd_status pd_json_parse(json_t **ret, const char *text, size_t len, pd_err *err) {
    if (len == 0)
        return pd_fail(err, PD_EJSON, NULL, "the body is empty; a JSON object is expected");
    PD_TRY(prescan(text, len, err));
    json_error_t e;
    json_t *v = json_loadb(text, len, JSON_REJECT_DUPLICATES, &e);
    if (!v) {
        if (json_error_code(&e) == json_error_out_of_memory)
            return pd_fail(err, PD_ENOMEM, NULL, "no memory to parse the body");
        return pd_fail(err, PD_EJSON, NULL, "invalid JSON at line %d column %d: %.120s", e.line,
                       e.column, e.text);
    }
    if (!json_is_object(v)) {
        const char *type = pd_json_type_name(v);
        json_decref(v);
        return pd_fail(err, PD_EINVAL, NULL, "the body is %s; a JSON object is expected", type);
    }
    *ret = v;
    return PD_OK;
}

json_t *pd_json_get(const json_t *obj, const char *key) {
    json_t *v = json_object_get(obj, key);
    return v && !json_is_null(v) ? v : NULL;
}

const char *pd_json_type_name(const json_t *v) {
    static const char *const name[] = {"an object", "an array", "a string", "an integer",
                                       "a number",  "a boolean", "a boolean", "null"};
    return v ? name[json_typeof(v)] : "absent";
}

bool pd_json_integral(const json_t *v, int64_t *ret) {
    if (json_is_integer(v)) {
        *ret = json_integer_value(v);
        return true;
    }
    if (!json_is_real(v)) return false;
    const double d = json_real_value(v);
    if (!(fabs(d) < 9007199254740992.0) || d != trunc(d)) return false;
    *ret = (int64_t)d;
    return true;
}

pd_status pd_json_bool(const json_t *obj, const char *path, const char *key, bool *ret,
                       pd_err *err) {
    const json_t *v = pd_json_get(obj, key);
    if (!v) return PD_OK;
    char full[96];
    snprintf(full, sizeof full, "%s%s", path, key);
    if (!json_is_boolean(v))
        return pd_fail(err, PD_EINVAL, full, "%s is %s; true or false is expected", full,
                       pd_json_type_name(v));
    *ret = json_is_true(v);
    return PD_OK;
}

pd_status pd_json_int(const json_t *obj, const char *path, const char *key, int64_t min,
                      int64_t max, int64_t *ret, bool *given, pd_err *err) {
    if (given) *given = false;
    const json_t *v = pd_json_get(obj, key);
    if (!v) return PD_OK;
    char full[96];
    snprintf(full, sizeof full, "%s%s", path, key);
    int64_t i;
    if (!pd_json_integral(v, &i)) {
        if (json_is_real(v))
            return pd_fail(err, PD_EINVAL, full,
                           "%s is %.17g; an integer from %lld to %lld is expected", full,
                           json_real_value(v), (long long)min, (long long)max);
        return pd_fail(err, PD_EINVAL, full, "%s is %s; an integer is expected", full,
                       pd_json_type_name(v));
    }
    if (i < min || i > max)
        return pd_fail(err, PD_EINVAL, full, "%s is %lld; allowed are %lld to %lld", full,
                       (long long)i, (long long)min, (long long)max);
    *ret = i;
    if (given) *given = true;
    return PD_OK;
}

pd_status pd_json_real(const json_t *obj, const char *path, const char *key, double min, double max,
                       double *ret, bool *given, pd_err *err) {
    if (given) *given = false;
    const json_t *v = pd_json_get(obj, key);
    if (!v) return PD_OK;
    char full[96];
    snprintf(full, sizeof full, "%s%s", path, key);
    if (!json_is_number(v))
        return pd_fail(err, PD_EINVAL, full, "%s is %s; a number is expected", full,
                       pd_json_type_name(v));
    const double d = json_number_value(v);
    if (!(d >= min && d <= max))
        return pd_fail(err, PD_EINVAL, full, "%s is %.9g; allowed are %.9g to %.9g", full, d, min,
                       max);
    *ret = d;
    if (given) *given = true;
    return PD_OK;
}

void pd_json_str(pd_buf *out, const char *s, size_t n) {
    pd_buf_putc(out, '"');
    size_t plain = 0; /* start of the run that goes out as it is */
    for (size_t i = 0; i < n;) {
        const unsigned char c = (unsigned char)s[i];
        if (c >= 0x20 && c < 0x80 && c != '"' && c != '\\' && c != 0x7F) {
            i++;
            continue;
        }
        if (c >= 0x80) {
            uint32_t cp = 0;
            const size_t len = pd_utf8_next(s + i, n - i, &cp);
            /* U+2028/9 end a line for some SSE readers: escaped. */
            if (len && cp != 0x2028 && cp != 0x2029) {
                i += len;
                continue;
            }
            pd_buf_add(out, s + plain, i - plain);
            if (len) pd_buf_printf(out, "\\u%04x", (unsigned)cp);
            else pd_buf_puts(out, "\xEF\xBF\xBD");
            i += len ? len : 1;
        } else {
            pd_buf_add(out, s + plain, i - plain);
            switch (c) {
            case '"': pd_buf_puts(out, "\\\""); break;
            case '\\': pd_buf_puts(out, "\\\\"); break;
            case '\n': pd_buf_puts(out, "\\n"); break;
            case '\r': pd_buf_puts(out, "\\r"); break;
            case '\t': pd_buf_puts(out, "\\t"); break;
            default: pd_buf_printf(out, "\\u%04x", c); break;
            }
            i++;
        }
        plain = i;
    }
    if (n > plain) pd_buf_add(out, s + plain, n - plain);
    pd_buf_putc(out, '"');
}

void pd_json_cstr(pd_buf *out, const char *s) {
    if (s) pd_json_str(out, s, strlen(s));
    else pd_buf_puts(out, "null");
}

void pd_json_num(pd_buf *out, double v) {
    if (!isfinite(v)) {
        pd_buf_puts(out, "null");
        return;
    }
    static const int digits[] = {6, 9, 15, 17};
    char text[40];
    for (size_t i = 0; i < sizeof digits / sizeof digits[0]; i++) {
        snprintf(text, sizeof text, "%.*g", digits[i], v);
        if (strtod(text, NULL) == v) break;
    }
    pd_buf_puts(out, text);
}

void pd_json_f32(pd_buf *out, float v) {
    if (!isfinite(v)) {
        pd_buf_puts(out, "null");
        return;
    }
    char text[40];
    snprintf(text, sizeof text, "%.6g", (double)v);
    if (strtof(text, NULL) != v) snprintf(text, sizeof text, "%.9g", (double)v);
    pd_buf_puts(out, text);
}

void pd_json_u64(pd_buf *out, uint64_t v) {
    pd_buf_printf(out, "%llu", (unsigned long long)v);
}
