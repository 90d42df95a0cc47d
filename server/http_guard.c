/* SPDX-License-Identifier: Apache-2.0 */
/* Refuses requests whose framing a proxy in front and the library behind could
 * read differently (request smuggling): more than one Content-Length or Host, a
 * Transfer-Encoding beside a Content-Length or other than exactly "chunked",
 * control bytes in a value, odd Host characters.  The library takes the first
 * value of each and goes on, so this runs before a byte of the body is read. */
#include "server/http_int.h"

#include <string.h>
#include <strings.h>

typedef struct {
    size_t n, bytes, n_length, n_encoding, n_host;
    uint64_t length;
    bool bad_length, bad_encoding, bad_host, bad_value;
} head_scan;

/* Host = reg-name, IPv4 or [IPv6], with an optional port. */
static bool host_ok(const char *s, size_t n) {
    if (n > 255) return false;
    for (size_t i = 0; i < n; i++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_~:[]%",
                    s[i]) ||
            !s[i])
            return false;
    return true;
}

static enum MHD_Result scan_header(void *arg, enum MHD_ValueKind kind, const char *key,
                                   size_t key_len, const char *value, size_t value_len) {
    head_scan *s = arg;
    s->n++;
    s->bytes += key_len + value_len;
    if (!value) value = "";
    for (size_t i = 0; i < value_len; i++) {
        const unsigned char c = (unsigned char)value[i];
        if ((c < 0x20 && c != '\t') || c == 0x7F) s->bad_value = true;
    }
    if (strcasecmp(key, "Content-Length") == 0) {
        s->n_length++;
        uint64_t v = 0;
        if (value_len == 0 || value_len > 18) s->bad_length = true;
        for (size_t i = 0; i < value_len && !s->bad_length; i++) {
            if (value[i] < '0' || value[i] > '9') s->bad_length = true;
            v = v * 10 + (uint64_t)(value[i] - '0');
        }
        s->length = v;
    } else if (strcasecmp(key, "Transfer-Encoding") == 0) {
        s->n_encoding++;
        if (strcasecmp(value, "chunked") != 0) s->bad_encoding = true;
    } else if (strcasecmp(key, "Host") == 0) {
        s->n_host++;
        if (!host_ok(value, value_len)) s->bad_host = true;
    }
    return MHD_YES;
}

pd_status pd__http_guard(struct MHD_Connection *c, const char *version, bool *has_body,
                         uint64_t *length, pd_err *err) {
    head_scan s = {0};
    MHD_get_connection_values_n(c, MHD_HEADER_KIND, scan_header, &s);
    if (s.n > PD_HTTP_HEADERS_MAX)
        return pd_fail(err, PD_EINVAL, NULL,
                       "the request has %zu header fields; at most %d are allowed", s.n,
                       PD_HTTP_HEADERS_MAX);
    if (s.bytes > PD_HTTP_HEADER_BYTES_MAX)
        return pd_fail(err, PD_EINVAL, NULL,
                       "the header fields hold %zu bytes; at most %d are allowed", s.bytes,
                       PD_HTTP_HEADER_BYTES_MAX);
    if (s.bad_value)
        return pd_fail(err, PD_EINVAL, NULL, "a header value holds a control character");
    if (s.n_host > 1 || s.bad_host)
        return pd_fail(err, PD_EINVAL, NULL, "the Host header is invalid or given more than once");
    if (s.n_length > 1)
        return pd_fail(err, PD_EINVAL, NULL, "Content-Length is given more than once");
    if (s.bad_length)
        return pd_fail(err, PD_EINVAL, NULL, "Content-Length is not a decimal number");
    if (s.n_encoding && s.n_length)
        return pd_fail(err, PD_EINVAL, NULL,
                       "Content-Length and Transfer-Encoding exclude each other");
    if (s.n_encoding > 1 || s.bad_encoding)
        return pd_fail(err, PD_EINVAL, NULL, "Transfer-Encoding must be exactly \"chunked\"");
    if (s.n_encoding && strcmp(version, "HTTP/1.1") != 0)
        return pd_fail(err, PD_EINVAL, NULL, "Transfer-Encoding needs HTTP/1.1");
    *has_body = s.n_encoding > 0 || (s.n_length > 0 && s.length > 0);
    *length = s.n_encoding ? UINT64_MAX : s.length;
    return PD_OK;
}
