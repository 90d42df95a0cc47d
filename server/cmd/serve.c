/* SPDX-License-Identifier: Apache-2.0 */
/* pressd serve: settings, then the server's life. */
#include "config/config.h"
#include "engine/base/log.h"
#include "server/cmd/cmd.h"
#include "server/server.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static pd_log_level level_of(const char *name) {
    static const char *const names[] = {"error", "warn", "info", "debug"};
    for (int i = 0; name && i < 4; i++)
        if (strcmp(name, names[i]) == 0) return (pd_log_level)i;
    return PD_LOG_INFO;
}

static int run(int argc, char **argv) {
    pd_config c = {0};
    pd_err err = {0};
    bool help = false;
    if (pd_config_load(&c, argc, argv, environ, &help, &err) != PD_OK) return pd_cmd_fail(&err);
    if (help) {
        pd_buf text = {0};
        pd_config_help(&text);
        printf("usage: pressd serve [options]\n\n%s", text.failed || !text.data ? "" : text.data);
        pd_buf_done(&text);
        pd_config_done(&c);
        return 0;
    }
    pd_log_set_level(level_of(c.log_level));
    int code;
    if (!c.model || !*c.model) {
        pd_fail(&err, PD_EINVAL, "--model", "which model? give --model FILE");
        code = pd_cmd_fail(&err);
    } else {
        code = pd_server_run(&c, true, &err);
        if (code) {
            const int said = pd_cmd_fail(&err);
            code = said > code ? said : code;
        }
    }
    pd_config_done(&c);
    return code;
}

const pd_cmd pd_cmd_serve = {.name = "serve",
                             .usage = "--model FILE [options]",
                             .summary = "serve a model over HTTP",
                             .run = run};
