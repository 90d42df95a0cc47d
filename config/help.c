/* SPDX-License-Identifier: Apache-2.0 */
/* The option table for people: --help, the man page, the README's table, and
 * the effective settings as JSON.  All writers append to a pd_buf. */
#include "config/options.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 100, DOC_COLUMN = 32 };

/* "-c, --ctx-size N", "--metrics, --no-metrics". */
static void put_flag(pd_buf *out, const pd__option *o) {
    if (o->letter) pd_buf_printf(out, "-%s, ", o->letter);
    pd_buf_printf(out, "--%s", o->name);
    if (o->kind == PD__BOOL) pd_buf_printf(out, ", --no-%s", o->name);
    if (o->arg) pd_buf_printf(out, " %s", o->arg);
}

/* What is allowed and, if `with_default`, the default, in round brackets:
 * " (0..65535, 0 = any free one, default 8080)"; nothing if there is nothing to say. */
static void put_limits(pd_buf *out, const pd__option *o, bool with_default) {
    pd_buf text = {0}, def = {0};
    const bool number = o->kind == PD__UINT || o->kind == PD__BYTES || o->kind == PD__SECONDS;
    if (o->choices) {
        for (const char *const *c = o->choices; *c; c++) pd_buf_printf(&text, "%s%s", text.len ? ", " : "", *c);
    } else if (o->kind == PD__BYTES) {
        pd__put_bytes(&text, o->min);
        pd_buf_puts(&text, "..");
        pd__put_bytes(&text, o->max);
    } else if (number) {
        pd_buf_printf(&text, "%llu..%llu", (unsigned long long)o->min, (unsigned long long)o->max);
    }
    pd__put_default(&def, o);
    const bool zero_default = number && o->def == 0;
    if (o->zero && !(with_default && zero_default)) pd_buf_printf(&text, "; 0 = %s", o->zero);
    if (with_default && def.len) {
        pd_buf_printf(&text, "%sdefault %s", text.len ? "; " : "", def.data);
        if (o->zero && zero_default) pd_buf_printf(&text, " = %s", o->zero);
    }
    if (text.len) pd_buf_printf(out, " (%s)", text.data);
    if (text.failed || def.failed) out->failed = true;
    pd_buf_done(&text);
    pd_buf_done(&def);
}

static void put_doc(pd_buf *out, const pd__option *o) {
    pd_buf_puts(out, o->doc);
    put_limits(out, o, true);
}

/* Words of `text` from column `col` on, wrapped at WIDTH, ending in a newline. */
static void put_wrapped(pd_buf *out, const char *text, int col) {
    int at = col;
    while (*text) {
        const int n = (int)strcspn(text, " ");
        if (at > col && at + 1 + n > WIDTH) {
            pd_buf_printf(out, "\n%*s", col, "");
            at = col;
        } else if (at > col) {
            pd_buf_putc(out, ' ');
            at++;
        }
        pd_buf_add(out, text, (size_t)n);
        at += n;
        text += n;
        text += strspn(text, " ");
    }
    pd_buf_putc(out, '\n');
}

static const char *text_of(const pd_buf *b) {
    return b->data ? b->data : "";
}

void pd_config_help(pd_buf *out) {
    const char *group = "";
    pd_buf flag = {0}, doc = {0};
    for (size_t i = 0; i < pd__n_options; i++) {
        const pd__option *o = &pd__options[i];
        if (strcmp(group, o->group) != 0) {
            group = o->group;
            pd_buf_printf(out, "%s%s:\n", i ? "\n" : "", group);
        }
        pd_buf_clear(&flag);
        pd_buf_clear(&doc);
        /* a missing short flag leaves its place empty, so that the long ones line up */
        pd_buf_printf(&flag, "  %s", o->letter ? "" : "    ");
        put_flag(&flag, o);
        put_doc(&doc, o);
        if (flag.len + 2 > DOC_COLUMN)
            pd_buf_printf(out, "%s\n%*s", text_of(&flag), DOC_COLUMN, "");
        else
            pd_buf_printf(out, "%-*s", DOC_COLUMN, text_of(&flag));
        put_wrapped(out, text_of(&doc), DOC_COLUMN);
    }
    if (flag.failed || doc.failed) out->failed = true;
    pd_buf_done(&flag);
    pd_buf_done(&doc);
    pd_buf_puts(out,
        "\nA setting can also come from the environment (--ctx-size is PRESSD_CTX_SIZE) or from the JSON\n"
        "file given by --config (key ctx_size). A flag beats the environment, which beats the file.\n"
        "Sizes take K, M, G or T (powers of 1024).\n");
}

/* roff: a backslash is an escape, '-' would become a hyphen, and '.' or '\'' in
 * the first column begins a request. */
static void put_roff(pd_buf *out, const char *s) {
    if (*s == '.' || *s == '\'') pd_buf_puts(out, "\\&");
    for (; *s; s++) {
        if (*s == '\\') pd_buf_puts(out, "\\e");
        else if (*s == '-') pd_buf_puts(out, "\\-");
        else pd_buf_putc(out, *s);
    }
}

void pd_config_man(pd_buf *out) {
    char name[PD__NAME_MAX];
    const char *group = "";
    pd_buf text = {0};
    pd_buf_puts(out, ".SH OPTIONS\nSizes take K, M, G or T (powers of 1024).\n");
    for (size_t i = 0; i < pd__n_options; i++) {
        const pd__option *o = &pd__options[i];
        if (strcmp(group, o->group) != 0) {
            group = o->group;
            pd_buf_printf(out, ".SS %s\n", group);
        }
        pd_buf_puts(out, ".TP\n.B ");
        pd_buf_clear(&text);
        put_flag(&text, o);
        put_roff(out, text_of(&text));
        pd_buf_puts(out, "\n");
        pd_buf_clear(&text);
        put_doc(&text, o);
        put_roff(out, text_of(&text));
        pd_buf_puts(out, "\n");
    }
    if (text.failed) out->failed = true;
    pd_buf_done(&text);
    pd_buf_puts(out, ".SH ENVIRONMENT\nEach option has a variable; a flag beats it, and it beats the file.\n"
                     "An unknown variable that begins with PRESSD_ is an error. The links Kubernetes sets\n"
                     "for a Service of that name (PRESSD_SERVICE_HOST, PRESSD_PORT=tcp://...) are passed\n"
                     "over, as are the variables of the build and test scripts.\n");
    for (size_t i = 0; i < pd__n_options; i++) {
        pd_buf_printf(out, ".TP\n.B %s\n", pd__option_env(&pd__options[i], name));
        pd_buf_puts(out, "as ");
        pd_buf_puts(out, "\\-\\-");
        put_roff(out, pd__options[i].name);
        pd_buf_puts(out, "\n");
    }
    pd_buf_puts(out, ".SH FILES\nThe file given by \\-\\-config holds one JSON object. Its keys:\n");
    for (size_t i = 0; i < pd__n_options; i++) {
        const pd__option *o = &pd__options[i];
        if (o->flags & PD__NO_FILE) continue;
        static const char *const type[] = {
            [PD__STRING] = "string",          [PD__UINT] = "whole number",
            [PD__BYTES] = "whole number, or string with a suffix",
            [PD__SECONDS] = "whole number of seconds",
            [PD__BOOL] = "true or false",     [PD__CHOICE] = "string",
        };
        pd_buf_printf(out, ".TP\n.B %s\n%s\n", pd__option_key(o, name),
                      o->flags & PD__JSON_TEXT ? "object or string" : type[o->kind]);
    }
}

void pd_config_markdown(pd_buf *out) {
    char env[PD__NAME_MAX], key[PD__NAME_MAX];
    pd_buf text = {0};
    pd_buf_puts(out, "| option | environment | file key | default | meaning |\n|---|---|---|---|---|\n");
    for (size_t i = 0; i < pd__n_options; i++) {
        const pd__option *o = &pd__options[i];
        pd_buf_clear(&text);
        put_flag(&text, o);
        pd_buf_printf(out, "| `%s` | `%s` | ", text_of(&text), pd__option_env(o, env));
        if (!(o->flags & PD__NO_FILE)) pd_buf_printf(out, "`%s`", pd__option_key(o, key));
        pd_buf_clear(&text);
        pd__put_default(&text, o);
        pd_buf_printf(out, " | %s | %s", text_of(&text), o->doc);
        put_limits(out, o, false);
        pd_buf_puts(out, " |\n");
    }
    if (text.failed) out->failed = true;
    pd_buf_done(&text);
}

/* The value of one row, or NULL if it is not set (or there is no memory). */
static json_t *effective(const pd__option *o, pd_config *c) {
    switch (o->kind) {
    case PD__BOOL:
        return json_boolean(*pd__field_bool(o, c));
    case PD__UINT:
    case PD__BYTES:
    case PD__SECONDS:
        return json_integer((json_int_t)*pd__field_uint(o, c)); /* rows are bounded by 2^50 */
    case PD__STRING:
    case PD__CHOICE:
        break;
    }
    const char *s = *pd__field_text(o, c);
    if (!s) return NULL;
    if (o->flags & PD__SECRET) {
        /* Has blanks, so that a saved dump is refused as a key instead of becoming one. */
        int n = 1;
        for (const char *p = s; *p; p++) n += *p == ',';
        return json_sprintf("(%d hidden)", n);
    }
    if (o->flags & PD__JSON_TEXT && *s == '{') return json_loads(s, 0, NULL);
    return json_string(s);
}

void pd_config_json(const pd_config *c, pd_buf *out) {
    pd_config view = *c; /* the field helpers hand out writable pointers; nothing is written */
    char key[PD__NAME_MAX];
    json_t *root = json_object();
    bool ok = root != NULL;
    for (size_t i = 0; i < pd__n_options && ok; i++) {
        const pd__option *o = &pd__options[i];
        json_t *v = o->flags & PD__NO_FILE ? NULL : effective(o, &view);
        if (v) ok = json_object_set_new(root, pd__option_key(o, key), v) == 0;
    }
    char *text = ok ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    if (text)
        pd_buf_printf(out, "%s\n", text);
    else
        out->failed = true;
    free(text);
}
