/* SPDX-License-Identifier: Apache-2.0 */
/* The binary's entry: find the subcommand, run it.  The list of commands is in
 * server/meson.build; each is one file with one `const pd_cmd pd_cmd_<name>`. */
#include "config/suggest.h"
#include "server/cmd/list.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static const pd_cmd *const table[] = {
#define PD_CMD(name) &pd_cmd_##name,
#include "cmd.def"
#undef PD_CMD
};

const pd_cmd *pd_cmd_at(size_t index) {
    return index < sizeof table / sizeof *table ? table[index] : NULL;
}

const pd_cmd *pd_cmd_find(const char *name) {
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (strcmp(table[i]->name, name) == 0) return table[i];
    }
    return NULL;
}

int pd_cmd_fail(const pd_err *err) {
    char line[sizeof err->msg * 4 + 16];
    size_t n = 0;
    /* a value quoted in the message must not drive the terminal */
    for (const char *p = err->msg; *p; p++) {
        const unsigned char c = (unsigned char)*p;
        if (c < 0x20 || c == 0x7F)
            n += (size_t)snprintf(line + n, sizeof line - n, "\\x%02x", c);
        else
            line[n++] = (char)c;
    }
    fprintf(stderr, "pressd: %.*s\n", (int)n, line);
    switch (err->code) {
    case PD_EINVAL:
    case PD_EJSON:
    case PD_ECONTEXT:
    case PD_EBUDGET:
    case PD_EFILE:
    case PD_ENOTFOUND:
    case PD_ENOTSUP:
    case PD_ETOOBIG:
        return 2;
    default:
        return 1;
    }
}

int pd_cmd_usage(const pd_cmd *cmd, const char *what, const char *word) {
    fprintf(stderr, "pressd %s: %s", cmd->name, what);
    if (word) fprintf(stderr, " '%.60s'", word);
    fprintf(stderr, "\nusage: pressd %s%s%s\n", cmd->name, *cmd->usage ? " " : "", cmd->usage);
    return 2;
}

int pd_cmd_print(pd_buf *out) {
    int rc = 0;
    if (out->failed) {
        fputs("pressd: no memory for the output\n", stderr);
        rc = 1;
    } else if (fwrite(out->data ? out->data : "", 1, out->len, stdout) != out->len || fflush(stdout) != 0) {
        perror("pressd: standard output");
        rc = 1;
    }
    pd_buf_done(out);
    return rc;
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN); /* a closed pipe or socket is an error code, not a death */
    if (argc < 2) {
        fputs("pressd: no command given\n", stderr);
        fputs("usage: pressd COMMAND [OPTIONS]; pressd --help lists the commands\n", stderr);
        return 2;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) name = "help";
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) name = "version";
    const pd_cmd *cmd = pd_cmd_find(name);
    if (cmd) return cmd->run(argc - 1, argv + 1);

    pd_suggest s = {.word = name};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) pd_suggest_offer(&s, table[i]->name);
    pd_err err = {0};
    if (s.best)
        pd_fail(&err, PD_EINVAL, NULL, "unknown command '%.60s'; did you mean %s?", name, s.best);
    else if (name[0] == '-' && pd_cmd_find("serve"))
        pd_fail(&err, PD_EINVAL, NULL, "'%.60s' stands where the command should; did you mean pressd serve %.60s?",
                name, name);
    else
        pd_fail(&err, PD_EINVAL, NULL, "unknown command '%.60s'; pressd --help lists the known ones", name);
    return pd_cmd_fail(&err);
}
