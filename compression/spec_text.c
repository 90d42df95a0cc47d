/* SPDX-License-Identifier: Apache-2.0 */
/* The text form of a press (see spec.h): a recursive descent parser over
 *
 *     text  = node [ "@" number ]
 *     node  = name [ ":" param { "," param } ] [ "(" child { "," child } ")" ]
 *     child = node [ "@" number ]
 *     param = name "=" value
 *     value = number | list | "true" | "false" | "null" | name
 *     list  = run { ";" run }
 *     run   = number [ "*" count ]
 *
 * Inside parentheses a "," behind a parameter begins another one if a name and "="
 * follow, else the next press.
 *
 * Length, depth and counts are bounded; every error names the column.  What the
 * names and values mean is pd_spec_resolve's business.  The canonical writer is
 * here too, so that both directions of the form stand side by side. */
#include "compression/spec.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *text;
    size_t at; /* byte */
    const char *path;
    pd_arena *arena;
    pd_err *err;
} parser;

static char peek(const parser *p) {
    return p->text[p->at];
}

static bool is_name(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

/* "column 7: expected ..., found ..." */
static pd_status expected(const parser *p, const char *what) {
    char found[16];
    const unsigned char c = (unsigned char)peek(p);
    if (c == '\0')
        snprintf(found, sizeof found, "its end");
    else if (c < 0x20 || c >= 0x7F)
        snprintf(found, sizeof found, "byte 0x%02X", c);
    else
        snprintf(found, sizeof found, "'%c'", c);
    return pd_fail(p->err, PD_EINVAL, p->path, "%s, column %zu: expected %s, found %s", p->path,
                   p->at + 1, what, found);
}

static pd_status too_many(const parser *p, const char *what, size_t limit) {
    return pd_fail(p->err, PD_EINVAL, p->path, "%s, column %zu: more than %zu %s", p->path,
                   p->at + 1, limit, what);
}

static pd_status no_memory(const parser *p) {
    return pd_fail(p->err, PD_ENOMEM, p->path, "no memory to read %s", p->path);
}

static pd_status parse_name(parser *p, const char *what, const char **ret) {
    const size_t start = p->at;
    while (is_name(peek(p))) p->at++;
    if (p->at == start) return expected(p, what);
    *ret = pd_arena_strndup(p->arena, p->text + start, p->at - start);
    return *ret ? PD_OK : no_memory(p);
}

/* JSON's number grammar, which keeps strtod from reading hex, "inf" or "nan". */
static pd_status parse_number(parser *p, double *ret, bool *integral) {
    const size_t start = p->at;
    bool whole = true;
    if (peek(p) == '-') p->at++;
    if (!is_digit(peek(p))) return expected(p, "a digit");
    while (is_digit(peek(p))) p->at++;
    if (peek(p) == '.') {
        whole = false;
        p->at++;
        if (!is_digit(peek(p))) return expected(p, "a digit");
        while (is_digit(peek(p))) p->at++;
    }
    if (peek(p) == 'e' || peek(p) == 'E') {
        whole = false;
        p->at++;
        if (peek(p) == '+' || peek(p) == '-') p->at++;
        if (!is_digit(peek(p))) return expected(p, "a digit");
        while (is_digit(peek(p))) p->at++;
    }
    const double v = strtod(p->text + start, NULL);
    if (!isfinite(v))
        return pd_fail(p->err, PD_EINVAL, p->path, "%s, column %zu: the number is too large",
                       p->path, start + 1);
    *ret = v;
    *integral = whole || v == floor(v);
    return PD_OK;
}

/* "*n" behind a number of a list; 1 without. */
static pd_status parse_count(parser *p, size_t most, size_t *ret) {
    *ret = 1;
    if (peek(p) != '*') return PD_OK;
    p->at++;
    if (!is_digit(peek(p))) return expected(p, "a digit");
    size_t n = 0;
    for (; is_digit(peek(p)) && n <= PD_SPEC_LIST_MAX; p->at++)
        n = 10 * n + (size_t)(peek(p) - '0');
    if (n > most) return too_many(p, "numbers in a list", PD_SPEC_LIST_MAX);
    if (n == 0)
        return pd_fail(p->err, PD_EINVAL, p->path, "%s, column %zu: a number cannot stand 0 times",
                       p->path, p->at);
    *ret = n;
    return PD_OK;
}

/* The rest of a list whose first number is read. */
static pd_status parse_list(parser *p, pd_spec_param *param) {
    double list[PD_SPEC_LIST_MAX], v = param->number;
    size_t n = 0;
    for (;;) {
        size_t count;
        PD_TRY(parse_count(p, PD_SPEC_LIST_MAX - n, &count));
        for (; count > 0; count--) list[n++] = v;
        if (peek(p) != ';') break;
        if (n == PD_SPEC_LIST_MAX) return too_many(p, "numbers in a list", PD_SPEC_LIST_MAX);
        p->at++;
        bool integral;
        PD_TRY(parse_number(p, &v, &integral));
    }
    double *copy = PD_ARENA_NEW(p->arena, n, double);
    if (!copy) return no_memory(p);
    memcpy(copy, list, n * sizeof *list);
    param->kind = PD_SPEC_LIST;
    param->list = copy;
    param->n_list = n;
    return PD_OK;
}

static pd_status parse_value(parser *p, pd_spec_param *param) {
    if (is_digit(peek(p)) || peek(p) == '-') {
        param->kind = PD_SPEC_NUMBER;
        PD_TRY(parse_number(p, &param->number, &param->integral));
        return peek(p) == ';' || peek(p) == '*' ? parse_list(p, param) : PD_OK;
    }
    PD_TRY(parse_name(p, "a value", &param->string));
    if (strcmp(param->string, "true") == 0 || strcmp(param->string, "false") == 0) {
        param->kind = PD_SPEC_BOOL;
        param->number = param->string[0] == 't';
    } else if (strcmp(param->string, "null") == 0) {
        param->kind = PD_SPEC_NULL;
    } else {
        param->kind = PD_SPEC_STRING;
    }
    return PD_OK;
}

/* At a ',' behind a parameter: does another one follow? */
static bool more_params(const parser *p, int depth) {
    if (peek(p) != ',') return false;
    size_t at = p->at + 1;
    while (is_name(p->text[at])) at++;
    return depth == 1 || p->text[at] == '=';
}

static pd_status parse_params(parser *p, int depth, pd_spec *node) {
    pd_spec_param list[PD_PRESS_PARAMS_MAX] = {0};
    do {
        p->at++; /* ':' or ',' */
        if (node->n_param == PD_PRESS_PARAMS_MAX)
            return too_many(p, "parameters", PD_PRESS_PARAMS_MAX);
        pd_spec_param *param = &list[node->n_param];
        PD_TRY(parse_name(p, "a parameter's name", &param->name));
        if (peek(p) != '=') return expected(p, "'='");
        p->at++;
        PD_TRY(parse_value(p, param));
        node->n_param++;
    } while (more_params(p, depth));
    node->param = PD_ARENA_NEW(p->arena, node->n_param, pd_spec_param);
    if (!node->param) return no_memory(p);
    memcpy(node->param, list, node->n_param * sizeof *list);
    return PD_OK;
}

/* "@ratio". */
static pd_status parse_ratio(parser *p, double *ret) {
    const size_t start = ++p->at;
    bool integral;
    PD_TRY(parse_number(p, ret, &integral));
    if (*ret >= 0.0 && *ret < 1.0) return PD_OK;
    return pd_fail(p->err, PD_EINVAL, p->path,
                   "%s, column %zu: the ratio must be in [0, 1), not %g", p->path, start + 1, *ret);
}

static pd_status parse_node(parser *p, int depth, pd_spec **ret);

static pd_status parse_children(parser *p, int depth, pd_spec *node) {
    pd_spec *list[PD_PRESS_CHILDREN_MAX];
    do {
        p->at++; /* '(' or ',' */
        if (node->n_child == PD_PRESS_CHILDREN_MAX)
            return too_many(p, "presses in one", PD_PRESS_CHILDREN_MAX);
        pd_spec **child = &list[node->n_child];
        PD_TRY(parse_node(p, depth + 1, child));
        (*child)->has_ratio = peek(p) == '@';
        if ((*child)->has_ratio) PD_TRY(parse_ratio(p, &(*child)->ratio));
        node->n_child++;
    } while (peek(p) == ',');
    if (peek(p) != ')') return expected(p, "',' or ')'");
    p->at++;
    node->child = PD_ARENA_NEW(p->arena, node->n_child, pd_spec *);
    if (!node->child) return no_memory(p);
    memcpy(node->child, list, node->n_child * sizeof *list);
    return PD_OK;
}

static pd_status parse_node(parser *p, int depth, pd_spec **ret) {
    if (depth > PD_PRESS_DEPTH_MAX)
        return too_many(p, "presses inside each other", PD_PRESS_DEPTH_MAX);
    pd_spec *node = pd_arena_zalloc(p->arena, 1, sizeof *node);
    if (!node) return no_memory(p);
    node->path = node->params_path = p->path;
    PD_TRY(parse_name(p, "the name of a press", &node->name));
    if (peek(p) == ':') PD_TRY(parse_params(p, depth, node));
    if (peek(p) == '(') PD_TRY(parse_children(p, depth, node));
    *ret = node;
    return PD_OK;
}

pd_status pd_spec_parse_text(const char *text, const char *path, pd_arena *arena, pd_spec **ret,
                             double *ratio, pd_err *err) {
    if (strnlen(text, PD_SPEC_TEXT_MAX + 1) > PD_SPEC_TEXT_MAX)
        return pd_fail(err, PD_EINVAL, path, "%s is longer than %d bytes", path, PD_SPEC_TEXT_MAX);
    parser p = {text, 0, path, arena, err};
    pd_spec *spec;
    double r = NAN;
    PD_TRY(parse_node(&p, 1, &spec));
    if (peek(&p) == '@') PD_TRY(parse_ratio(&p, &r));
    if (peek(&p) != '\0') return expected(&p, "its end");
    *ret = spec;
    *ratio = r;
    return PD_OK;
}

/* ---- the canonical text ---- */

/* The shortest decimal form that reads back as the same double. */
static void put_number(pd_buf *out, double v) {
    char s[40];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(s, sizeof s, "%.*g", digits, v);
        if (strtod(s, NULL) == v) break;
    }
    pd_buf_puts(out, s);
}

static void put_value(pd_buf *out, const pd_param *param, double v) {
    if (isnan(v))
        pd_buf_puts(out, "null");
    else if (param->type == PD_PARAM_BOOL)
        pd_buf_puts(out, v != 0.0 ? "true" : "false");
    else if (param->type == PD_PARAM_CHOICE)
        pd_buf_puts(out, param->choices[(size_t)v]);
    else if (param->type == PD_PARAM_INT)
        pd_buf_printf(out, "%.0f", v);
    else
        put_number(out, v);
}

/* A list, equal neighbours as one run. */
static void put_list(pd_buf *out, const double *v, size_t n) {
    for (size_t i = 0, run; i < n; i += run) {
        for (run = 1; i + run < n && v[i + run] == v[i]; run++) continue;
        if (i) pd_buf_putc(out, ';');
        put_number(out, v[i]);
        if (run > 1) pd_buf_printf(out, "*%zu", run);
    }
}

void pd_press_inst_text(const pd_press_inst *inst, pd_buf *out) {
    if (!inst) {
        pd_buf_puts(out, "none");
        return;
    }
    pd_buf_puts(out, inst->press->name);
    char before = ':';
    for (size_t i = 0; i < inst->press->n_params; i++) {
        const pd_param *param = &inst->press->params[i];
        const double v = inst->p[i];
        if (!inst->list[i] && (v == param->def || (isnan(v) && isnan(param->def)))) continue;
        pd_buf_printf(out, "%c%s=", before, param->name);
        if (inst->list[i])
            put_list(out, inst->list[i], inst->n_list);
        else
            put_value(out, param, v);
        before = ',';
    }
    before = '(';
    for (size_t i = 0; i < inst->n_child; i++) {
        pd_buf_putc(out, before);
        pd_press_inst_text(inst->child[i], out);
        if (inst->child[i]->has_ratio) {
            pd_buf_putc(out, '@');
            put_number(out, inst->child[i]->ratio);
        }
        before = ',';
    }
    if (inst->n_child > 0) pd_buf_putc(out, ')');
}
