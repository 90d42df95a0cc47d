/* SPDX-License-Identifier: Apache-2.0 */
/* Subcommands of the one binary: one file each, one word in server/meson.build.
 * Exit codes: 0 done, 1 failed while running, 2 bad usage or bad input file. */
#ifndef PD_SERVER_CMD_CMD_H
#define PD_SERVER_CMD_CMD_H

#include "engine/base/err.h"

typedef struct pd_cmd {
    const char *name, *usage, *summary; /* usage: what follows the name */
    int (*run)(int argc, char **argv);  /* argv[0] is the command's name */
} pd_cmd;

/* Print "pressd: <message>" on standard error; returns the exit code for it (2
 * for EINVAL, EFILE and the like, 1 otherwise). */
int pd_cmd_fail(const pd_err *err);

#endif
