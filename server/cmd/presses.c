/* SPDX-License-Identifier: Apache-2.0 */
/* pressd presses: the registry, for people or as JSON.  Needs no model, so it
 * does not say which presses a model can run; GET /v1/presses does. */
#include "compression/press.h"
#include "server/cmd/list.h"
#include "server/press_json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int print_json(void) {
    json_t *list = json_array();
    bool ok = list != NULL;
    for (size_t i = 0; i < pd_press_count() && ok; i++)
        ok = json_array_append_new(list, pd_press_json(pd_press_at(i))) == 0;
    char *text = ok ? json_dumps(list, JSON_INDENT(2) | JSON_REAL_PRECISION(15)) : NULL;
    json_decref(list);
    pd_buf out = {0};
    if (text)
        pd_buf_printf(&out, "%s\n", text);
    else
        out.failed = true;
    free(text);
    return pd_cmd_print(&out);
}

static void put_value(pd_buf *out, const pd_param *p, double v) {
    if (isnan(v)) pd_buf_puts(out, "null");
    else if (p->type == PD_PARAM_BOOL) pd_buf_puts(out, v != 0 ? "true" : "false");
    else if (p->type == PD_PARAM_CHOICE) pd_buf_puts(out, p->choices[(size_t)v]);
    else pd_buf_printf(out, "%.15g", v);
}

/* "a number in [0, 1), default 0.5" */
static void put_param(pd_buf *out, const pd_param *p) {
    pd_buf_printf(out, "    %-20s ", p->name);
    switch (p->type) {
    case PD_PARAM_BOOL:
        pd_buf_puts(out, "true or false");
        break;
    case PD_PARAM_CHOICE:
        for (const char *const *c = p->choices; *c; c++)
            pd_buf_printf(out, "%s%s", c == p->choices ? "" : " | ", *c);
        break;
    case PD_PARAM_INT:
    case PD_PARAM_FLOAT:
    case PD_PARAM_FLOAT_LIST:
        pd_buf_printf(out, "%s in %c%.15g, %.15g%c",
                      p->type == PD_PARAM_INT ? "integer" : p->type == PD_PARAM_FLOAT ? "number" : "one number per layer",
                      p->flags & PD_PARAM_OPEN_MIN ? '(' : '[', p->min, p->max,
                      p->flags & PD_PARAM_OPEN_MAX ? ')' : ']');
        break;
    }
    if (p->flags & PD_PARAM_REQUIRED) {
        pd_buf_puts(out, ", must be given");
    } else {
        pd_buf_puts(out, p->flags & PD_PARAM_NULLABLE ? " or null, default " : ", default ");
        put_value(out, p, p->def);
    }
    pd_buf_printf(out, "; %s\n", p->doc ? p->doc : "");
}

static int print_table(void) {
    pd_buf out = {0};
    for (size_t i = 0; i < pd_press_count(); i++) {
        const pd_press *p = pd_press_at(i);
        pd_buf_printf(&out, "%s (%s; %s; %s)\n", p->name, p->kind, p->reference_class, p->source);
        if (p->doc) pd_buf_printf(&out, "    %s\n", p->doc);
        if (p->own_budget) pd_buf_printf(&out, "    takes no ratio: %s\n", p->ratio_doc);
        if (p->max_child && !p->own_budget)
            pd_buf_printf(&out, "    wraps %zu to %zu presses; the ratio that counts: %s\n", p->min_child,
                          p->max_child, p->ratio_doc);
        for (size_t k = 0; k < p->n_params; k++) put_param(&out, &p->params[k]);
    }
    return pd_cmd_print(&out);
}

/* The README's table. */
static int print_markdown(void) {
    pd_buf out = {0};
    pd_buf_puts(&out, "| press | kvpress class | paper | parameters (default) | what it keeps |\n|---|---|---|---|---|\n");
    for (size_t i = 0; i < pd_press_count(); i++) {
        const pd_press *p = pd_press_at(i);
        pd_buf_printf(&out, "| `%s`%s | %s | %s | ", p->name, p->max_child ? "(...)" : "", p->reference_class, p->source);
        for (size_t k = 0; k < p->n_params; k++) {
            pd_buf_printf(&out, "%s`%s` ", k ? ", " : "", p->params[k].name);
            if (p->params[k].flags & PD_PARAM_REQUIRED)
                pd_buf_puts(&out, "(required)");
            else
                put_value(&out, &p->params[k], p->params[k].def);
        }
        pd_buf_printf(&out, " | %s |\n", p->doc ? p->doc : "");
    }
    return pd_cmd_print(&out);
}

static int run(int argc, char **argv) {
    if (argc == 1) return print_table();
    if (argc == 2 && strcmp(argv[1], "--markdown") == 0) return print_markdown();
    if (argc == 2 && strcmp(argv[1], "--json") == 0) return print_json();
    return pd_cmd_usage(&pd_cmd_presses, "unexpected argument", argv[argc == 2 ? 1 : 2]);
}

const pd_cmd pd_cmd_presses = {
    .name = "presses",
    .usage = "[--json | --markdown]",
    .summary = "list the presses (compression methods) and their parameters",
    .run = run,
};
