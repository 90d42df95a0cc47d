/* SPDX-License-Identifier: Apache-2.0 */
/* A pattern as a tree: what pattern_parse.c makes and pattern_grammar.c writes. */
#ifndef PD_SERVER_PATTERN_INT_H
#define PD_SERVER_PATTERN_INT_H

#include "server/pattern_grammar.h"

#include <stdbool.h>

enum { PD__P_FOREVER = INT32_MAX };

typedef enum { PD__P_SET, PD__P_SEQ, PD__P_ALT, PD__P_REPEAT, PD__P_BEGIN, PD__P_END } pd__p_kind;

typedef struct {
    pd__p_kind kind;
    int32_t child, next; /* first member of SEQ, ALT, REPEAT; the one behind; -1 = none */
    int32_t min, max;    /* REPEAT; FOREVER */
    uint32_t off, n;     /* SET: ranges, sorted, apart from each other */
    uint32_t at;         /* byte of the pattern, for errors */
} pd__p_part;

typedef struct { uint32_t lo, hi; } pd__p_range; /* code points */

typedef struct {
    const char *re;
    size_t len;
    const char *path;
    pd__p_part *part;
    pd__p_range *range;
    size_t n_part, n_range, cap_part, cap_range;
    int32_t top;
} pd__pattern;

/* re, len and path are set.  After a failure too the caller frees part and range. */
pd_status pd__pattern_parse(pd__pattern *p, pd_err *err);
pd_status pd__pattern_add(pd__pattern *p, pd__p_part part, int32_t *ret, pd_err *err);
pd_status pd__pattern_range(pd__pattern *p, uint32_t lo, uint32_t hi, pd_err *err);
/* "path: ... at byte 7 of the pattern" */
pd_status pd__pattern_bad(const pd__pattern *p, size_t at, pd_err *err, const char *what);

#endif
