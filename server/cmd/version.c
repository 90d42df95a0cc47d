/* SPDX-License-Identifier: Apache-2.0 */
/* pressd version: what a bug report needs. */
#include "engine/kernels/kernels.h"
#include "server/cmd/list.h"

#include <jansson.h>
#include <microhttpd.h>
#include <uv.h>

/* The kernel rows this processor can run, weakest first.  A row is named by the
 * table it gives, so a new one shows up here by itself. */
static void put_rows(pd_buf *out) {
    const unsigned have = pd_cpu_detect();
    pd_kernels k;
    pd_kernels_init(&k, 0);
    pd_buf_printf(out, "kernels: %s", k.isa);
    for (unsigned bit = 1; bit != 0; bit <<= 1) {
        if (!(have & bit)) continue;
        pd_kernels_init(&k, have & (bit | (bit - 1)));
        pd_buf_printf(out, ", %s", k.isa);
    }
    pd_buf_putc(out, '\n');
}

static int run(int argc, char **argv) {
    if (argc > 1) return pd_cmd_usage(&pd_cmd_version, "unexpected argument", argv[1]);
    pd_buf out = {0};
    pd_buf_puts(&out, "pressd " PD_VERSION "\n");
#if defined(__clang__)
    pd_buf_puts(&out, "compiler: clang " __clang_version__ "\n");
#else
    pd_buf_puts(&out, "compiler: gcc " __VERSION__ "\n");
#endif
    pd_buf_printf(&out, "libuv: %s\nlibmicrohttpd: %s\njansson: %s\n", uv_version_string(), MHD_get_version(),
                  jansson_version_str());
    pd_buf_puts(&out, "openblas: " PD_OPENBLAS_VERSION " (built with)\n");
    put_rows(&out);
    return pd_cmd_print(&out);
}

const pd_cmd pd_cmd_version = {
    .name = "version",
    .usage = "",
    .summary = "print the versions of pressd and its libraries, and what this processor offers",
    .run = run,
};
