/* SPDX-License-Identifier: Apache-2.0 */
/* A parameter that a model wrote between tags, as JSON.  Thread: any. */
#ifndef PD_SERVER_TOOL_PARAM_H
#define PD_SERVER_TOOL_PARAM_H

#include "engine/base/buf.h"
#include "server/tools.h"

/* Tags do not tell "5" from 5: the schema of parameter `key` of `tool` (both end with a NUL)
 * does.  Where it takes strings the value is one; else it is JSON if it reads as JSON, or as
 * Python's True, False and None; anything else is a string.  Appended. */
void pd_tool_param(const pd_tools *t, const char *tool, const char *key, const char *value, size_t n, pd_buf *out);

#endif
