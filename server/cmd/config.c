/* SPDX-License-Identifier: Apache-2.0 */
/* pressd config: what `pressd serve` would run with, after flags, environment
 * and file are put together.  Serves nothing; keys are masked. */
#include "config/config.h"
#include "server/cmd/list.h"

#include <unistd.h>

static int run(int argc, char **argv) {
    pd_config c;
    pd_err err = {0};
    bool help;
    if (pd_config_load(&c, argc, argv, environ, &help, &err) != PD_OK) return pd_cmd_fail(&err);
    pd_buf out = {0};
    if (help) {
        pd_buf_printf(&out, "usage: pressd %s %s\n\n", pd_cmd_config.name, pd_cmd_config.usage);
        pd_config_help(&out);
    } else {
        pd_config_json(&c, &out);
    }
    pd_config_done(&c);
    return pd_cmd_print(&out);
}

const pd_cmd pd_cmd_config = {
    .name = "config",
    .usage = "[OPTIONS of serve]",
    .summary = "check the settings and print them as JSON, keys masked",
    .run = run,
};
