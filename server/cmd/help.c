/* SPDX-License-Identifier: Apache-2.0 */
/* pressd help: the commands, one command's usage, the man page, the option
 * table of the README.  Everything comes from the two tables (commands,
 * options), so it cannot fall behind them. */
#include "config/config.h"
#include "server/cmd/list.h"

#include <string.h>

static void put_overview(pd_buf *out) {
    pd_buf_puts(out,
        "pressd serves GGUF models on CPUs over OpenAI's HTTP interface; each request may choose how\n"
        "its KV cache is compressed.\n"
        "\n"
        "usage: pressd COMMAND [OPTIONS]\n"
        "\n"
        "Commands:\n");
    for (size_t i = 0; pd_cmd_at(i); i++)
        pd_buf_printf(out, "  %-18s %s\n", pd_cmd_at(i)->name, pd_cmd_at(i)->summary);
    pd_buf_puts(out, "\npressd help COMMAND shows its usage, pressd help --options the settings of the server.\n");
}

static void put_man(pd_buf *out) {
    pd_buf_puts(out, ".TH PRESSD 1 \"\" \"pressd " PD_VERSION "\"\n"
                     ".SH NAME\npressd \\- inference server with KV cache compression\n"
                     ".SH SYNOPSIS\n.B pressd\n.I COMMAND\n[\n.I OPTIONS\n]\n"
                     ".SH DESCRIPTION\npressd serves GGUF models on CPUs over OpenAI's HTTP interface.\n"
                     "Each request may choose how its KV cache is compressed.\n"
                     ".SH COMMANDS\n");
    for (size_t i = 0; pd_cmd_at(i); i++) {
        const pd_cmd *c = pd_cmd_at(i);
        pd_buf_printf(out, ".TP\n.B %s", c->name);
        if (*c->usage) pd_buf_putc(out, ' ');
        for (const char *p = c->usage; *p; p++) {
            if (*p == '-') pd_buf_putc(out, '\\'); /* a minus, not a hyphen */
            pd_buf_putc(out, *p);
        }
        pd_buf_printf(out, "\n%s\n", c->summary);
    }
    pd_config_man(out);
    pd_buf_puts(out, ".SH EXIT STATUS\n0 done, 1 failed while running, 2 bad usage or bad input file.\n");
}

static int run(int argc, char **argv) {
    pd_buf out = {0};
    if (argc < 2) {
        put_overview(&out);
        return pd_cmd_print(&out);
    }
    const char *what = argv[1];
    if (argc > 2) return pd_cmd_usage(&pd_cmd_help, "unexpected argument", argv[2]);
    const pd_cmd *cmd = pd_cmd_find(what);
    if (cmd) {
        pd_buf_printf(&out, "usage: pressd %s%s%s\n\n%s\n", cmd->name, *cmd->usage ? " " : "", cmd->usage,
                      cmd->summary);
    } else if (strcmp(what, "--options") == 0) {
        pd_config_help(&out);
    } else if (strcmp(what, "--man") == 0) {
        put_man(&out);
    } else if (strcmp(what, "--markdown") == 0) {
        pd_config_markdown(&out);
    } else {
        return pd_cmd_usage(&pd_cmd_help, "no such command or form:", what);
    }
    return pd_cmd_print(&out);
}

const pd_cmd pd_cmd_help = {
    .name = "help",
    .usage = "[COMMAND | --options | --man | --markdown]",
    .summary = "show the commands, the settings, the man page, or the settings as a Markdown table",
    .run = run,
};
