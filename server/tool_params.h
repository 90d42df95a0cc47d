/* SPDX-License-Identifier: Apache-2.0 */
/* Parameters that a model wrote one by one, between tags or as keywords of a call, read while
 * they come into the members of a JSON object.  Thread: one at a time. */
#ifndef PD_SERVER_TOOL_PARAMS_H
#define PD_SERVER_TOOL_PARAMS_H

#include "engine/base/buf.h"
#include "server/tool_forms.h"
#include "server/tool_literal.h"

typedef struct {
    const pd_tools *t;
    const pd_tool_syntax *syntax;
    const char *tool; /* the name, ends with a NUL; borrowed */
    enum { PD_PARAM_OPEN, PD_PARAM_KEY, PD_PARAM_BETWEEN, PD_PARAM_VALUE } at; /* at a parameter or the end, in its name, ... */
    bool any;         /* a member was written */
    bool is_text, is_json; /* its tag says so, whatever the schema says */
    pd_buf key;
    size_t n_seen;    /* bytes in which the end of the value is not */
    pd_literal_scan scan;
} pd_tool_params;

typedef enum {
    PD_PARAMS_MORE,   /* text is missing */
    PD_PARAMS_ON,     /* a step was made */
    PD_PARAMS_OBJECT, /* a brace, which was taken: what follows is the arguments in JSON */
    PD_PARAMS_DONE,   /* the last one is over; the object is closed if it was begun */
} pd_params_step;

/* For a new call; `p->key` keeps its memory. */
void pd_tool_params_begin(pd_tool_params *p, const pd_tools *t, const pd_tool_syntax *syntax, const char *tool);

/* One step into s[n], of which *ret_taken bytes are done with; what is known of the
 * arguments is appended. */
pd_params_step pd_tool_params_read(pd_tool_params *p, const char *s, size_t n, size_t *ret_taken, pd_buf *arguments);

void pd_tool_params_done(pd_tool_params *p); /* frees */

/* Tags do not tell "5" from 5: the schema of parameter `key` of `tool` (both end with a NUL)
 * does.  Where it takes strings the value is one; else it is JSON if it reads as JSON, or as
 * Python's lists, dicts, True, False and None; anything else is a string.  Appended. */
void pd_tool_param(const pd_tools *t, const char *tool, const char *key, const char *value, size_t n, pd_buf *out);

#endif
