/* SPDX-License-Identifier: Apache-2.0 */
/* `pressd serve` on the fake engine: the HTTP suite's server.  Options as there. */
#include "server/cmd/cmd.h"

#include <stdio.h>

extern const pd_cmd pd_cmd_serve;

int pd_cmd_fail(const pd_err *err) {
    fprintf(stderr, "pressd_http_test: %s\n", err->msg);
    return err->code == PD_EINVAL || err->code == PD_EFILE ? 2 : 1;
}

int main(int argc, char **argv) {
    return pd_cmd_serve.run(argc, argv);
}
