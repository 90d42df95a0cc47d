/* SPDX-License-Identifier: Apache-2.0 */
/* Loading the settings (see config.h).
 *
 * Every source hands text to one function, set_text, which checks it against the
 * option's row and stores it if no stronger source has set the row yet.  A value
 * is checked even where a stronger one hides it: a wrong file stays an error, or
 * it would surprise on the day the flag is gone.
 * Cost: one pass over each source; the table is searched linearly. */
#include "config/options.h"

#include "config/suggest.h"
#include "engine/base/num.h"
#include "engine/base/utf8.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { OPTIONS_MAX = 64, FILE_MAX = 1 << 20, TEXT_MAX = 4096, JSON_TEXT_MAX = 16 << 10 };

typedef enum { FROM_DEFAULT, FROM_FILE, FROM_ENV, FROM_FLAG } source; /* weakest first */

typedef struct {
    pd_config c;
    source from[OPTIONS_MAX]; /* who set each row of the table */
    pd_err *err;
} loader;

/* Where a value stands, for messages: `name` as the user wrote it. */
typedef struct {
    source from;
    const char *name;
    const char *file; /* FROM_FILE */
} origin;

static pd_status fail(const loader *l, const origin *at, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static pd_status fail(const loader *l, const origin *at, const char *fmt, ...) {
    char what[320];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    if (at->from == FROM_FILE)
        return pd_fail(l->err, PD_EINVAL, at->name, "%s (file %.120s): %s", at->name, at->file, what);
    return pd_fail(l->err, PD_EINVAL, at->name, "%s (%s): %s", at->name,
                   at->from == FROM_ENV ? "environment" : "command line", what);
}

static pd_status no_memory(const loader *l) {
    return pd_fail(l->err, PD_ENOMEM, NULL, "no memory for the settings");
}

/* ---- one value ---- */

typedef enum { NUM_OK, NUM_SYNTAX, NUM_HUGE } num_result;

/* Digits, then for sizes K, M, G or T, with or without "iB". */
static num_result parse_number(const char *s, bool suffix, uint64_t *ret) {
    uint64_t n = 0;
    bool fits = true;
    const char *p = s;
    for (; *p >= '0' && *p <= '9'; p++)
        fits = fits && pd_mul_u64(n, 10, &n) && pd_add_u64(n, (uint64_t)(*p - '0'), &n);
    if (p == s) return NUM_SYNTAX;
    if (suffix && *p) {
        static const char letters[] = "KMGT";
        const char *at = strchr(letters, toupper((unsigned char)*p));
        if (!at) return NUM_SYNTAX;
        fits = fits && pd_mul_u64(n, (uint64_t)1 << 10 * (at - letters + 1), &n);
        p++;
        if (strcmp(p, "iB") == 0) p += 2;
    }
    if (*p) return NUM_SYNTAX;
    if (!fits) return NUM_HUGE;
    *ret = n;
    return NUM_OK;
}

static pd_status set_number(loader *l, const pd__option *o, const char *text, const origin *at,
                            bool store) {
    const bool bytes = o->kind == PD__BYTES;
    uint64_t n = 0;
    const num_result r = parse_number(text, bytes, &n);
    if (r == NUM_OK && n >= o->min && n <= o->max) {
        if (store) *pd__field_uint(o, &l->c) = n;
        return PD_OK;
    }
    pd_buf range = {0};
    if (bytes) {
        pd__put_bytes(&range, o->min);
        pd_buf_puts(&range, "..");
        pd__put_bytes(&range, o->max);
    } else {
        pd_buf_printf(&range, "%llu..%llu", (unsigned long long)o->min, (unsigned long long)o->max);
    }
    const char *allowed = range.data ? range.data : "";
    const char *what = bytes ? "a size (a whole number, then K, M, G or T for powers of 1024)"
                             : "a whole number";
    pd_status rc;
    if (r == NUM_SYNTAX)
        rc = fail(l, at, "'%.60s' is not %s; allowed: %s", text, what, allowed);
    else
        rc = fail(l, at, "%.60s is out of range; allowed: %s", text, allowed);
    pd_buf_done(&range);
    return rc;
}

static pd_status set_bool(loader *l, const pd__option *o, const char *text, const origin *at,
                          bool store) {
    static const char *const words[2][5] = {{"false", "0", "no", "off", NULL},
                                            {"true", "1", "yes", "on", NULL}};
    for (int value = 0; value < 2; value++) {
        for (const char *const *w = words[value]; *w; w++) {
            if (strcasecmp(text, *w) != 0) continue;
            if (store) *pd__field_bool(o, &l->c) = value;
            return PD_OK;
        }
    }
    return fail(l, at, "'%.60s' is not a truth value; allowed: true, false, on, off, yes, no, 1, 0",
                text);
}

/* One object on one line; `text` begins with '{'. */
static pd_status compact_json(loader *l, const char *text, const origin *at, char **ret) {
    json_error_t e;
    json_t *j = json_loads(text, JSON_REJECT_DUPLICATES, &e);
    if (!j) return fail(l, at, "bad JSON at line %d, column %d: %.120s", e.line, e.column, e.text);
    char *s = json_dumps(j, JSON_COMPACT);
    json_decref(j);
    if (!s) return no_memory(l);
    *ret = s;
    return PD_OK;
}

static pd_status check_keys(loader *l, const char *text, const origin *at) {
    size_t index = 1, len = 0;
    for (const char *p = text;; p++) { /* the key itself is never put into a message */
        if (*p == ',' || *p == '\0') {
            if (len == 0) return fail(l, at, "key %zu of the list is empty", index);
            if (*p == '\0') return PD_OK;
            index++;
            len = 0;
        } else if (*p > ' ' && *p < 0x7F) {
            len++;
        } else {
            return fail(l, at, "key %zu holds a blank or a character outside ASCII", index);
        }
    }
}

static pd_status set_string(loader *l, const pd__option *o, const char *text, const origin *at,
                            bool store) {
    if (!*text) return fail(l, at, "the value is empty; leave it out to use the default");
    if (o->choices) {
        pd_buf known = {0};
        pd_suggest s = {.word = text};
        bool found = false;
        for (const char *const *c = o->choices; *c; c++) {
            found = found || strcmp(*c, text) == 0;
            pd_buf_printf(&known, "%s%s", known.len ? ", " : "", *c);
            pd_suggest_offer(&s, *c);
        }
        pd_status rc = PD_OK;
        if (!found)
            rc = fail(l, at, "'%.60s' is unknown; allowed: %s%s%s%s", text,
                      known.data ? known.data : "", s.best ? "; did you mean " : "",
                      s.best ? s.best : "", s.best ? "?" : "");
        pd_buf_done(&known);
        PD_TRY(rc);
    }
    const size_t limit = o->flags & PD__JSON_TEXT ? JSON_TEXT_MAX : TEXT_MAX, len = strlen(text);
    if (len > limit) return fail(l, at, "the value has %zu bytes; at most %zu are allowed", len, limit);
    if (o->flags & PD__KEYS) PD_TRY(check_keys(l, text, at));

    char *copy = NULL;
    if (o->flags & PD__JSON_TEXT && *text == '{') {
        PD_TRY(compact_json(l, text, at, &copy));
    } else {
        if (!pd_utf8_valid(text, len)) return fail(l, at, "the value is not valid UTF-8");
        for (const char *p = text; *p; p++) {
            if ((unsigned char)*p < ' ' || *p == 0x7F)
                return fail(l, at, "the value holds the control character 0x%02x", (unsigned char)*p);
        }
        copy = strdup(text);
        if (!copy) return no_memory(l);
    }
    if (store) {
        char **dst = pd__field_text(o, &l->c);
        free(*dst);
        *dst = copy;
    } else {
        free(copy);
    }
    return PD_OK;
}

static pd_status set_text(loader *l, const pd__option *o, const char *text, const origin *at) {
    source *from = &l->from[o - pd__options];
    const bool store = at->from >= *from; /* equal: the last one given counts */
    if (store) *from = at->from;
    switch (o->kind) {
    case PD__BOOL:
        return set_bool(l, o, text, at, store);
    case PD__UINT:
    case PD__BYTES:
    case PD__SECONDS:
        return set_number(l, o, text, at, store);
    case PD__STRING:
    case PD__CHOICE:
        break;
    }
    return set_string(l, o, text, at, store);
}

static pd_status set_defaults(loader *l) {
    for (size_t i = 0; i < pd__n_options; i++) {
        const pd__option *o = &pd__options[i];
        switch (o->kind) {
        case PD__BOOL:
            *pd__field_bool(o, &l->c) = o->def != 0;
            break;
        case PD__UINT:
        case PD__BYTES:
        case PD__SECONDS:
            *pd__field_uint(o, &l->c) = o->def;
            break;
        case PD__STRING:
        case PD__CHOICE:
            if (!o->def_text) break;
            if (!(*pd__field_text(o, &l->c) = strdup(o->def_text))) return no_memory(l);
            break;
        }
    }
    return PD_OK;
}

/* ---- the command line ---- */

/* `word` as the user wrote it, cut at n, with the nearest known flag. */
static pd_status unknown_flag(loader *l, const char *word, size_t n) {
    char name[80];
    snprintf(name, sizeof name, "%.*s", (int)pd_min_size(n, sizeof name - 1), word);
    const char *bare = name + strspn(name, "-");
    const bool negated = strncmp(bare, "no-", 3) == 0;
    pd_suggest s = {.word = bare}, no = {.word = negated ? bare + 3 : ""};
    for (size_t i = 0; i < pd__n_options; i++) {
        pd_suggest_offer(&s, pd__options[i].name);
        if (pd__options[i].kind == PD__BOOL) pd_suggest_offer(&no, pd__options[i].name);
    }
    pd_suggest_offer(&s, "help");
    const bool use_no = no.best && (!s.best || no.distance <= s.distance);
    const char *best = use_no ? no.best : s.best;
    const origin at = {FROM_FLAG, name, NULL};
    if (!best) return fail(l, &at, "unknown option; --help lists the known ones");
    return fail(l, &at, "unknown option; did you mean --%s%s?", use_no ? "no-" : "", best);
}

/* The row of the flag word[0..n), or NULL.  *negated: it was --no-<name>. */
static const pd__option *find_flag(const char *word, size_t n, bool *negated) {
    *negated = false;
    for (size_t i = 0; i < pd__n_options; i++) {
        const pd__option *o = &pd__options[i];
        if (o->letter && n == strlen(o->letter) + 1 && memcmp(word + 1, o->letter, n - 1) == 0)
            return o;
        if (n < 3 || word[1] != '-') continue;
        const char *name = word + 2;
        size_t len = n - 2;
        if (o->kind == PD__BOOL && len > 3 && memcmp(name, "no-", 3) == 0 &&
            len - 3 == strlen(o->name) && memcmp(name + 3, o->name, len - 3) == 0) {
            *negated = true;
            return o;
        }
        if (len == strlen(o->name) && memcmp(name, o->name, len) == 0) return o;
    }
    return NULL;
}

static pd_status load_flags(loader *l, int argc, char *const *argv) {
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (word[0] != '-' || word[1] == '\0')
            return pd_fail(l->err, PD_EINVAL, NULL,
                           "unexpected argument '%.60s' (command line): settings are given as --name VALUE",
                           word);
        const char *eq = strchr(word, '=');
        const size_t n = eq ? (size_t)(eq - word) : strlen(word);
        bool negated;
        const pd__option *o = find_flag(word, n, &negated);
        if (!o) return unknown_flag(l, word, n);

        char name[PD__NAME_MAX];
        snprintf(name, sizeof name, "--%s%s", negated ? "no-" : "", o->name);
        const origin at = {FROM_FLAG, name, NULL};
        const char *value = eq ? eq + 1 : NULL;
        if (negated && value) return fail(l, &at, "takes no value; write --%s=VALUE", o->name);
        if (o->kind == PD__BOOL) {
            if (!value) value = negated ? "false" : "true";
        } else if (!value) {
            if (i + 1 == argc) return fail(l, &at, "needs a value (%s)", o->arg);
            value = argv[++i];
            bool ignored;
            if (value[0] == '-' && find_flag(value, strcspn(value, "="), &ignored))
                return fail(l, &at, "needs a value (%s), but the option %.60s follows; if that is the "
                            "value, write --%s=%.60s", o->arg, value, o->name, value);
        }
        PD_TRY(set_text(l, o, value, &at));
    }
    return PD_OK;
}

/* ---- the environment ---- */

/* Variables of this prefix that are not ours to read: the scripts' own, and the
 * links Kubernetes makes for a Service named pressd or pressd-something
 * (PRESSD_SERVICE_HOST, PRESSD_PORT=tcp://10.0.0.1:80, PRESSD_PORT_80_TCP_ADDR). */
static bool foreign_variable(const char *name, size_t n, const char *value) {
    static const char *const whole[] = {"PRESSD_BIN", "PRESSD_BUILD", "PRESSD_PYTHON"};
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) {
        if (n == strlen(whole[i]) && memcmp(name, whole[i], n) == 0) return true;
    }
    if (strncmp(name, "PRESSD_TEST_", 12) == 0) return true;

    char text[256];
    if (n >= sizeof text) return false;
    memcpy(text, name, n);
    text[n] = '\0';
    const char *port = strstr(text, "_PORT");
    if (port && !port[5])
        return strncmp(value, "tcp://", 6) == 0 || strncmp(value, "udp://", 6) == 0 ||
               strncmp(value, "sctp://", 7) == 0 || strstr(text, "_SERVICE_PORT");
    return strstr(text, "_SERVICE_HOST") || strstr(text, "_SERVICE_PORT_") ||
           (port && port[5] == '_' && isdigit((unsigned char)port[6]));
}

static pd_status load_env(loader *l, char *const *env) {
    for (; env && *env; env++) {
        if (strncmp(*env, "PRESSD_", 7) != 0) continue;
        const char *eq = strchr(*env, '=');
        if (!eq) continue;
        const size_t n = (size_t)(eq - *env);
        if (foreign_variable(*env, n, eq + 1)) continue;

        char buf[PD__NAME_MAX], name[80];
        snprintf(name, sizeof name, "%.*s", (int)pd_min_size(n, sizeof name - 1), *env);
        const origin at = {FROM_ENV, name, NULL};
        const pd__option *found = NULL;
        pd_suggest s = {.word = name + 7};
        for (size_t i = 0; i < pd__n_options && !found; i++) {
            const char *known = pd__option_env(&pd__options[i], buf);
            if (n == strlen(known) && memcmp(*env, known, n) == 0) found = &pd__options[i];
            pd_suggest_offer(&s, pd__options[i].name);
        }
        if (!found) {
            if (!s.best) return fail(l, &at, "no setting has this name; pressd help lists them");
            for (size_t i = 0; i < pd__n_options; i++) {
                if (pd__options[i].name == s.best) pd__option_env(&pd__options[i], buf);
            }
            return fail(l, &at, "no setting has this name; did you mean %s?", buf);
        }
        PD_TRY(set_text(l, found, eq + 1, &at));
    }
    return PD_OK;
}

/* ---- the file ---- */

static const char *json_type_name(const json_t *v) {
    switch (json_typeof(v)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "a list";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "a whole number";
    case JSON_REAL: return "a number with a fraction";
    case JSON_TRUE:
    case JSON_FALSE: return "a truth value";
    case JSON_NULL: break;
    }
    return "null";
}

static pd_status set_json(loader *l, const pd__option *o, const json_t *v, const origin *at) {
    const bool number = o->kind == PD__UINT || o->kind == PD__BYTES || o->kind == PD__SECONDS;
    const char *text = NULL, *want = "a string";
    char digits[24], *made = NULL;
    if (o->kind == PD__BOOL) {
        want = "true or false";
        if (json_is_boolean(v)) text = json_is_true(v) ? "true" : "false";
    } else if (number) {
        want = o->kind == PD__BYTES ? "a whole number, or a string such as \"512M\"" : "a whole number";
        if (json_is_integer(v)) {
            snprintf(digits, sizeof digits, "%lld", (long long)json_integer_value(v));
            text = digits;
        } else if (o->kind == PD__BYTES) {
            text = json_string_value(v);
        }
    } else if (o->flags & PD__JSON_TEXT && json_is_object(v)) {
        text = made = json_dumps(v, JSON_COMPACT);
        if (!made) return no_memory(l);
    } else {
        if (o->flags & PD__JSON_TEXT) want = "an object or a string";
        text = json_string_value(v);
    }
    const pd_status rc = text ? set_text(l, o, text, at)
                              : fail(l, at, "must be %s, not %s", want, json_type_name(v));
    free(made);
    return rc;
}

static pd_status unknown_key(loader *l, const char *key, const char *path) {
    char buf[PD__NAME_MAX], name[80];
    snprintf(name, sizeof name, "%.60s", key);
    const origin at = {FROM_FILE, name, path};
    pd_suggest s = {.word = name};
    const pd__option *best = NULL;
    for (size_t i = 0; i < pd__n_options; i++) {
        if (pd__options[i].flags & PD__NO_FILE) continue;
        const char *before = s.best;
        pd_suggest_offer(&s, pd__options[i].name);
        if (s.best != before) best = &pd__options[i];
    }
    if (!best) return fail(l, &at, "no setting has this name; pressd help lists them");
    return fail(l, &at, "no setting has this name; did you mean %s?", pd__option_key(best, buf));
}

static pd_status load_object(loader *l, json_t *root, const char *path) {
    if (!json_is_object(root))
        return pd_fail(l->err, PD_EINVAL, "--config", "%.200s: the file must hold one JSON object, not %s",
                       path, json_type_name(root));
    const char *key;
    json_t *v;
    json_object_foreach(root, key, v) {
        const pd__option *found = NULL;
        char buf[PD__NAME_MAX];
        for (size_t i = 0; i < pd__n_options && !found; i++) {
            const pd__option *o = &pd__options[i];
            if (!(o->flags & PD__NO_FILE) && strcmp(key, pd__option_key(o, buf)) == 0) found = o;
        }
        if (!found) return unknown_key(l, key, path);
        const origin at = {FROM_FILE, buf, path};
        PD_TRY(set_json(l, found, v, &at));
    }
    return PD_OK;
}

/* The whole file in *ret (free() it). */
static pd_status read_file(loader *l, const char *path, char **ret, size_t *len) {
    FILE *f = fopen(path, "re");
    char *data = malloc(FILE_MAX + 1);
    pd_status rc = PD_OK;
    if (!f)
        rc = pd_fail(l->err, PD_EINVAL, "--config", "cannot open the settings file %.200s: %s", path,
                     strerror(errno));
    else if (!data)
        rc = no_memory(l);
    if (rc == PD_OK) {
        *len = fread(data, 1, FILE_MAX + 1, f);
        if (ferror(f))
            rc = pd_fail(l->err, PD_EINVAL, "--config", "cannot read the settings file %.200s: %s",
                         path, strerror(errno));
        else if (*len > FILE_MAX)
            rc = pd_fail(l->err, PD_EINVAL, "--config",
                         "the settings file %.200s is too large; at most %d bytes are allowed", path,
                         FILE_MAX);
    }
    if (f) fclose(f);
    if (rc == PD_OK)
        *ret = data;
    else
        free(data);
    return rc;
}

static pd_status load_file(loader *l, const char *path) {
    char *text;
    size_t len;
    PD_TRY(read_file(l, path, &text, &len));
    json_error_t e;
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e);
    free(text);
    if (!root)
        return pd_fail(l->err, PD_EINVAL, "--config", "%.160s:%d:%d: bad JSON: %.120s", path, e.line,
                       e.column, e.text);
    const pd_status rc = load_object(l, root, path);
    json_decref(root);
    return rc;
}

/* ---- together ---- */

static bool wants_help(int argc, char *const *argv) {
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-h") == 0 || strcmp(argv[i], "--help") == 0) return true;
    }
    return false;
}

pd_status pd_config_load(pd_config *ret, int argc, char *const *argv, char *const *env, bool *help,
                         pd_err *err) {
    assert(pd__n_options <= OPTIONS_MAX);
    loader l = {.err = err};
    pd_status rc = set_defaults(&l);
    const bool asked = wants_help(argc, argv);
    if (rc == PD_OK && !asked) {
        rc = load_flags(&l, argc, argv);
        if (rc == PD_OK) rc = load_env(&l, env);
        if (rc == PD_OK && l.c.config_file) rc = load_file(&l, l.c.config_file);
    }
    if (rc != PD_OK) {
        pd_config_done(&l.c);
        return rc;
    }
    *help = asked;
    *ret = l.c;
    return PD_OK;
}

void pd_config_done(pd_config *c) {
    if (!c) return;
    for (size_t i = 0; i < pd__n_options; i++) {
        const pd__option *o = &pd__options[i];
        if (o->kind == PD__STRING || o->kind == PD__CHOICE) free(*pd__field_text(o, c));
    }
    *c = (pd_config){0};
}
