/* SPDX-License-Identifier: Apache-2.0 */
/* Values that a model wrote as its programming language has them, as JSON: Python's
 * literals, and Gemma's own notation, whose strings stand between two <|"|>.  Thread: any. */
#ifndef PD_SERVER_TOOL_LITERAL_H
#define PD_SERVER_TOOL_LITERAL_H

#include "engine/base/buf.h"

enum { PD_LITERAL_DEPTH_MAX = 32 }; /* lists and objects within each other */

typedef enum {
    PD_LITERAL_PYTHON, /* 'a', "a", 1.5, True, None, [1, 2], (1, 2), {'k': 1}; JSON's words too */
    PD_LITERAL_GEMMA,  /* <|"|>a<|"|>, {key:value}; a word alone is a string */
} pd_literal_notation;

/* Where the end of a value is looked for in text that comes in pieces; starts as zeros. */
typedef struct {
    size_t at;      /* bytes that were looked at */
    size_t depth;   /* open brackets */
    char quote;     /* of the string that `at` is in; 0: none */
    bool escaped;
} pd_literal_scan;

/* Goes on to the comma or bracket behind the value, which is s[scan->at] then; false: it
 * has not come.  Each byte is looked at once. */
bool pd_literal_end(pd_literal_scan *scan, pd_literal_notation how, const char *s, size_t n);

/* The value without the space around it is appended as JSON; false (nothing is appended):
 * it is none, or deeper than PD_LITERAL_DEPTH_MAX.  Linear. */
bool pd_literal_json(pd_literal_notation how, const char *s, size_t n, pd_buf *out);

#endif
