/* SPDX-License-Identifier: Apache-2.0 */
/* The table of subcommands (generated from the list in server/meson.build) and
 * what they share.  Thread: main. */
#ifndef PD_SERVER_CMD_LIST_H
#define PD_SERVER_CMD_LIST_H

#include "engine/base/buf.h"
#include "server/cmd/cmd.h"

#include <stddef.h>

#define PD_CMD(name) extern const pd_cmd pd_cmd_##name;
#include "cmd.def"
#undef PD_CMD

const pd_cmd *pd_cmd_at(size_t index); /* in list order; NULL past the end */
const pd_cmd *pd_cmd_find(const char *name); /* NULL if unknown */

/* Print "pressd <cmd>: <what> '<word>'" (word may be NULL) and the usage line on
 * standard error; returns 2. */
int pd_cmd_usage(const pd_cmd *cmd, const char *what, const char *word);

/* Write out to standard output and free it; returns the exit code: 1 if it
 * failed or could not be written. */
int pd_cmd_print(pd_buf *out);

#endif
