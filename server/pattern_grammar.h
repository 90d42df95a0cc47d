/* SPDX-License-Identifier: Apache-2.0 */
/* Regular expressions as GBNF.  What is read is where ECMA-262 (which JSON Schema
 * names) and Python's re (which vLLM's users write) agree:
 *
 *   a \. \n \t \r \f \v \0 \xHH \uHHHH    .    [a-z] [^a-z]    \d \w \s \D \W \S
 *   (..) (?:..) (?<name>..)    a|b    ? * + {m} {m,} {m,n}, lazy ones too    ^ $
 *
 * Classes are ASCII's; where the two disagree (\s, what `.` leaves out) a text is
 * derived only if both would match.  ^ and $ stand at the ends of the pattern or of
 * an alternative.  Look-around, back references, \b, \p and flags are refused: they
 * are no regular languages, or not these two's.  Thread: any. */
#ifndef PD_SERVER_PATTERN_GRAMMAR_H
#define PD_SERVER_PATTERN_GRAMMAR_H

#include "engine/base/buf.h"
#include "engine/base/err.h"

#include <stddef.h>
#include <stdint.h>

enum { PD_PATTERN_BYTES_MAX = 8192, PD_PATTERN_PARTS_MAX = 8192, PD_PATTERN_NEST_MAX = 48 };

typedef struct {
    bool in_json;     /* the text stands between a JSON string's quotes: one spelling per character */
    bool search;      /* a match anywhere is enough, as JSON Schema has it; else the text is the match */
    int64_t min, max; /* characters of the text; max < 0: any number */
    const char *name; /* what the rules made here begin with: a rule name no other call uses */
    const char *path; /* of the pattern, in errors */
} pd_pattern_use;

/* re[0..n), UTF-8, as one GBNF expression in parentheses appended to *expr, and rules
 * for it appended to *rules.  Errors: EINVAL naming what is not served and where in
 * the pattern, a limit, or lengths that no match has or that cannot be kept (more
 * than one part of the pattern has no fixed length); ENOMEM. */
pd_status pd_pattern_grammar(const char *re, size_t n, const pd_pattern_use *use, pd_buf *expr, pd_buf *rules, pd_err *err);

#endif
