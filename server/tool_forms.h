/* SPDX-License-Identifier: Apache-2.0 */
/* The forms in which models write calls, as tables: how a template shows that it has one,
 * what begins and ends a call in an answer, and how one that must be made is begun.
 * Thread: any. */
#ifndef PD_SERVER_TOOL_FORMS_H
#define PD_SERVER_TOOL_FORMS_H

#include "server/tool_literal.h"
#include "server/tools.h"

/* What follows a mark in an answer. */
typedef enum {
    PD_TOOL_AT_OBJECT,  /* an object with name and arguments */
    PD_TOOL_AT_HEAD,    /* that, or a list of such, a name or a tag: what follows tells */
    PD_TOOL_AT_NAME,    /* a name */
    PD_TOOL_AT_LIST,    /* the first object of a list */
    PD_TOOL_AT_SECTION, /* calls with marks of their own */
} pd_tool_behind;

typedef struct {
    const char *text; /* NULL: no such mark */
    pd_tool_behind then;
} pd_tool_mark;

/* How arguments are written that are no JSON. */
typedef struct {
    bool keywords;          /* key=value, ... up to a bracket; else each stands between tags */
    const char *open;       /* tags: before a name */
    const char *key_end;    /* behind it */
    const char *value;      /* tags: then before the value; NULL: nothing */
    const char *value_end;  /* behind it; keywords: the bracket that ends the call */
    bool attributes;        /* tags: `value` may have something before it, which may tell the type */
    bool object;            /* tags: all of them may be one object in JSON instead */
    pd_literal_notation notation; /* keywords */
} pd_tool_syntax;

/* t->format, t->mark and t->begin, for a template. */
void pd_tool_find_form(pd_tools *t, const pd_chat *chat);

/* What begins a call, from the i-th on up to one that is none. */
pd_tool_mark pd_tool_mark_of(const pd_tools *t, size_t i);

/* The length of the closing mark that s begins with, 0 = there is none, -1 = it may come yet. */
int pd_tool_close(pd_tool_format f, const char *s, size_t n);

/* NULL: the arguments are JSON. */
const pd_tool_syntax *pd_tool_syntax_of(pd_tool_format f);

/* What stands between a mark and the arguments ends with this.  *ret_stays: it is theirs. */
const char *pd_tool_head_end(pd_tool_format f, bool *ret_stays);

/* The name in that, its place there; false: there is something that should not be. */
bool pd_tool_name_in(pd_tool_format f, const char *s, size_t n, pd_str *ret);

/* Must a name be known?  Any word may stand behind the mark. */
bool pd_tool_must_know(pd_tool_format f);

#endif
