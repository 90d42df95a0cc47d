/* SPDX-License-Identifier: Apache-2.0 */
/* How a call that was begun may go on, or an answer that is of a form or a call, as a
 * grammar (see tools.h).
 *
 *   prompt  ...<tool_call>\n{"name": "f", "arguments":
 *   answer                                             {"x": 1}}
 *
 * Each form of tools.h is continued as its models write it (pd_tool_begin).  Only text can
 * be asked for: where a form parts its calls by a control token (Mistral's second,
 * DeepSeek's) or knows one call alone (Llama 3), one is made.  A single call is over with its last brace, so that the
 * answer ends there. */
#include "server/tools.h"

#include "server/schema_grammar.h"
#include "server/tool_calls.h"

#include <stdio.h>
#include <string.h>

static bool is_strict(const json_t *function) {
    return json_is_true(pd_json_get(function, "strict"));
}

/* OpenAI's: no parameters are an empty list of them, and so are no properties. */
static bool takes_nothing(const json_t *parameters) {
    const json_t *properties = pd_json_get(parameters, "properties");
    return !parameters ||
           (properties && json_object_size(properties) == 0 && !pd_json_get(parameters, "additionalProperties"));
}

/* Rule a<i>: the arguments of tool i.  `any`: no more of them than that they are an object. */
static pd_status write_arguments(const pd_tools *t, const json_t *tools, size_t i, bool any, size_t *next, pd_buf *out,
                                 pd_err *err) {
    const json_t *function = pd_json_get(json_array_get(tools, i), "function");
    const json_t *parameters = pd_json_get(function, "parameters");
    char path[56];
    snprintf(path, sizeof path, "tools[%zu].%s", i, t->schema);
    if (takes_nothing(parameters) || (any && !is_strict(function))) {
        pd_buf_printf(out, "a%zu ::= %s\n", i, takes_nothing(parameters) ? "\"{}\"" : "object");
        return PD_OK;
    }
    const char *type = json_string_value(pd_json_get(parameters, "type"));
    if (is_strict(function) && (!type || strcmp(type, "object") != 0))
        return pd_fail(err, PD_EINVAL, path, "%s.type must be \"object\"", path);
    pd_buf_printf(out, "a%zu ::= s%zu\n", i, *next);
    return pd_schema_rules(parameters, path, next, !is_strict(function), out, err);
}

/* `text` as a literal; nothing for none. */
static void literal(const char *text, pd_buf *out) {
    if (text && text[0]) pd_gbnf_text(out, text, strlen(text));
}

/* Behind the name where that stands in the prompt already, else from the name on. */
static void write_call(const pd_tools *t, size_t i, bool named, pd_buf *out) {
    if (!named) {
        literal(t->name[i], out);
        pd_buf_putc(out, ' ');
        literal(t->begin.spoken, out);
    }
    pd_buf_printf(out, t->begin.close ? " ws a%zu ws " : " ws a%zu", i);
    literal(t->begin.close, out);
}

/* `call`: one of the tools from its name on; `more`: what parts it from the one before, and it. */
static void write_root(const pd_tools *t, const json_t *form, pd_buf *out) {
    const pd_tool_begin *b = &t->begin;
    const bool named = t->choice == PD_TOOL_NAMED;
    const bool several = t->parallel && !named && b->between;
    const bool after = b->after && (several || !b->after_may); /* a single one is over with its last brace if it can be */
    pd_buf_puts(out, "root ::= ");
    if (form) {
        pd_buf_puts(out, "form | ");
        literal(b->open, out);
        pd_buf_putc(out, ' ');
    }
    if (!form && (named || t->n == 1)) write_call(t, named ? t->named : 0, true, out);
    else pd_buf_puts(out, "call");
    if (several) pd_buf_printf(out, " more{0,%d}", PD_TOOL_CALLS_MAX - 1);
    if (after) {
        pd_buf_putc(out, ' ');
        literal(b->after, out);
        if (b->after_may) pd_buf_putc(out, '?');
    }
    if (several) {
        pd_buf_puts(out, "\nmore ::= ");
        literal(b->between, out);
        pd_buf_puts(out, " call");
    }
    pd_buf_puts(out, "\ncall ::= ");
    for (size_t i = 0; i < t->n && !named; i++) {
        if (i) pd_buf_puts(out, " | ");
        write_call(t, i, false, out);
    }
    pd_buf_putc(out, '\n');
}

static pd_status write_form(const json_t *form, size_t *next, pd_buf *out, pd_err *err) {
    if (json_is_true(form)) pd_buf_puts(out, "form ::= object\n");
    else pd_buf_printf(out, "form ::= s%zu\n", *next);
    return json_is_true(form) ? PD_OK : pd_schema_rules(form, "response_format", next, false, out, err);
}

static pd_status make(const pd_tools *t, const json_t *tools, const json_t *form, bool any, pd_grammar **ret, pd_err *err) {
    pd_buf gbnf = {0};
    pd_buf_init(&gbnf, PD_GRAMMAR_TEXT_MAX);
    pd_json_rules(&gbnf);
    size_t next = 0;
    pd_status rc = form ? write_form(form, &next, &gbnf, err) : PD_OK;
    for (size_t i = 0; i < t->n && rc == PD_OK; i++)
        if (t->choice != PD_TOOL_NAMED || i == t->named) rc = write_arguments(t, tools, i, any, &next, &gbnf, err);
    if (rc == PD_OK) write_root(t, form, &gbnf);
    if (rc == PD_OK && gbnf.failed)
        rc = pd_fail(err, PD_EINVAL, "tools", "tools: their grammar has more than %d bytes", PD_GRAMMAR_TEXT_MAX);
    if (rc == PD_OK) rc = pd_grammar_parse(ret, gbnf.data, gbnf.len, "tools", err);
    pd_buf_done(&gbnf);
    return rc;
}

pd_status pd_tools_grammar(const pd_tools *t, const json_t *tools, const json_t *form, pd_grammar **ret, pd_err *err) {
    *ret = NULL;
    if (t->begun) form = NULL;
    else if (!form) return PD_OK;
    if (form && t->begin.control)
        return pd_fail(err, PD_EINVAL, "response_format",
                       "response_format with tools is not served for this model, whose calls begin with a control token: "
                       "leave one out, or give tool_choice \"none\" or \"required\"");
    pd_status rc = make(t, tools, form, false, ret, err);
    /* Too much for one grammar: what need not be followed is not. */
    if (rc == PD_EINVAL) rc = make(t, tools, form, true, ret, err);
    return rc;
}
