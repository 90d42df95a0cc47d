/* SPDX-License-Identifier: Apache-2.0 */
/* Strings of a schema: lengths, pattern and format.  A format is a pattern, and no
 * more than a part of what its RFC allows: what is derived is always of the format. */
#include "server/pattern_grammar.h"
#include "server/schema_int.h"

#include <stdio.h>
#include <string.h>

/* RFC 3339's, years 1000 to 9999; 29 February in leap years alone. */
#define DATE \
    "([1-9]\\d{3}-((0[13578]|1[02])-(0[1-9]|[12]\\d|3[01])|(0[469]|11)-(0[1-9]|[12]\\d|30)|02-(0[1-9]|1\\d|2[0-8]))|" \
    "([1-9]\\d(0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)-02-29)"
#define TIME "([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,6})?(Z|[-+]([01]\\d|2[0-3]):[0-5]\\d)"
#define TIME_SPAN "T(\\d{1,4}H(\\d{1,4}M(\\d{1,4}S)?)?|\\d{1,4}M(\\d{1,4}S)?|\\d{1,4}S)"
#define OCTET "(\\d|[1-9]\\d|1\\d\\d|2[0-4]\\d|25[0-5])"
#define H16 "[0-9a-f]{1,4}"
#define LABEL "[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"
#define P_CHAR "([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-F]{2})"
#define PATH "(/" P_CHAR "*)*"
#define QUERY "(\\?(" P_CHAR "|[/?])*)?(#(" P_CHAR "|[/?])*)?"
#define URI "[a-z][a-z0-9+.-]{0,9}://[A-Za-z0-9._~-]{1,64}(:\\d{1,5})?" PATH QUERY
#define POINTER "(/([^~/]|~[01])*)*"

static const struct { const char *name, *pattern; } format[] = {
    {"date", DATE},
    {"time", TIME},
    {"date-time", DATE "T" TIME},
    {"duration", "P((\\d{1,4}Y(\\d{1,4}M(\\d{1,4}D)?)?|\\d{1,4}M(\\d{1,4}D)?|\\d{1,4}D)(" TIME_SPAN ")?|" TIME_SPAN "|\\d{1,4}W)"},
    {"uuid", "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"},
    {"email", "[a-zA-Z0-9_]{1,32}(\\.[a-zA-Z0-9_]{1,32}){0,2}@[a-z0-9]{1,32}(\\.[a-z]{2,16}){1,3}"},
    {"hostname", LABEL "(\\." LABEL "){0,3}"},
    {"ipv4", OCTET "(\\." OCTET "){3}"},
    {"ipv6", H16 "(:" H16 "){7}|::(" H16 "(:" H16 "){0,6})?|" H16 "::(" H16 "(:" H16 "){0,5})?|" H16 "(:" H16 "){1}::(" H16 "(:" H16 "){0,4})?|"
             H16 "(:" H16 "){2}::(" H16 "(:" H16 "){0,3})?|" H16 "(:" H16 "){3}::(" H16 "(:" H16 "){0,2})?|" H16 "(:" H16 "){4}::(" H16 "(:" H16 ")?)?|"
             H16 "(:" H16 "){5}::(" H16 ")?|" H16 "(:" H16 "){6}::"},
    {"uri", URI},
    {"uri-reference", URI "|(/" P_CHAR "+)+/?" QUERY},
    {"json-pointer", POINTER},
    {"relative-json-pointer", "(0|[1-9]\\d{0,3})(#|" POINTER ")"},
    {"byte", "([A-Za-z0-9+/]{4})*([A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?"}, /* base64, RFC 4648 */
    {"password", NULL}, /* any text */
    {"binary", NULL},
};

/* *pattern: NULL where the format is any text. */
static pd_status find_format(pd__schema *w, const json_t *f, const char *path, const char **pattern) {
    const char *name = json_is_string(f) ? json_string_value(f) : "";
    for (size_t i = 0; i < sizeof format / sizeof format[0]; i++) {
        if (strcmp(name, format[i].name) != 0) continue;
        *pattern = format[i].pattern;
        return PD_OK;
    }
    if (w->loose) return PD_OK;
    char list[160] = "";
    for (size_t i = 0; i < sizeof format / sizeof format[0]; i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? ", " : "none of ", format[i].name);
    return pd__schema_bad_key(w, path, "format", list);
}

pd_status pd__schema_string(pd__schema *w, const json_t *s, const char *path, size_t id, pd_buf *to) {
    const json_t *f = pd_json_get(s, "format"), *p = pd_json_get(s, "pattern");
    const char *pattern = NULL;
    int64_t min, max;
    PD_TRY(pd__schema_count(w, s, path, "minLength", 0, &min));
    PD_TRY(pd__schema_count(w, s, path, "maxLength", -1, &max));
    if (max >= 0 && max < min) return pd__schema_bad(w, path, "maxLength is below minLength");
    if (f) PD_TRY(find_format(w, f, path, &pattern));
    if (p && !json_is_string(p)) return pd__schema_bad_key(w, path, "pattern", "a string is expected");
    if (p && pattern) return pd__schema_bad(w, path, "pattern beside format is not served");
    if (!p && !pattern) {
        pd_buf_printf(to, "\"\\\"\" char{%d,", (int)min);
        if (max >= 0) pd_buf_printf(to, "%d", (int)max);
        pd_buf_puts(to, "} \"\\\"\"");
        return PD_OK;
    }
    char at[PD__SCHEMA_PATH_MAX], name[32];
    snprintf(at, sizeof at, "%s.%s", path, p ? "pattern" : "format");
    snprintf(name, sizeof name, "s%zu-p", id);
    pd_buf_puts(to, "\"\\\"\" ");
    PD_TRY(pd_pattern_grammar(p ? json_string_value(p) : pattern, p ? json_string_length(p) : strlen(pattern),
                              &(pd_pattern_use){.in_json = true, .search = p != NULL, .min = min, .max = max, .name = name, .path = at}, to, w->out, w->err));
    pd_buf_puts(to, " \"\\\"\"");
    return PD_OK;
}
