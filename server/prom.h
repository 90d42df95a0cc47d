/* SPDX-License-Identifier: Apache-2.0 */
/* Prometheus text format 0.0.4 from plain atomics: counting never blocks, and
 * reading is not a snapshot across series (none is promised by the format).
 * Thread: any. */
#ifndef PD_SERVER_PROM_H
#define PD_SERVER_PROM_H

#include "engine/base/buf.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

typedef _Atomic uint64_t pd_counter;

static inline void pd_count(pd_counter *c, uint64_t n) {
    atomic_fetch_add_explicit(c, n, memory_order_relaxed);
}
static inline uint64_t pd_counted(const pd_counter *c) {
    return atomic_load_explicit(c, memory_order_relaxed);
}

enum { PD_HIST_BOUNDS_MAX = 20 };

/* Observations in a unit of `scale` per 1.0 (1e9: seconds kept as nanoseconds),
 * so that the sum is one integer atomic. */
typedef struct pd_hist {
    const double *bound; /* ascending upper bounds, +Inf implied */
    size_t n_bound;
    double scale;
    pd_counter bucket[PD_HIST_BOUNDS_MAX + 1];
    pd_counter sum;
} pd_hist;

void pd_hist_init(pd_hist *h, const double *bound, size_t n_bound, double scale);
void pd_hist_add(pd_hist *h, double value, uint64_t times); /* negative counts as 0 */

/* "# HELP" and "# TYPE" of a family. */
void pd_prom_family(pd_buf *out, const char *name, const char *type, const char *help);
/* One sample.  labels: NULL or `a="b",c="d"` made with pd_prom_label. */
void pd_prom_u64(pd_buf *out, const char *name, const char *labels, uint64_t v);
void pd_prom_num(pd_buf *out, const char *name, const char *labels, double v);
void pd_prom_hist(pd_buf *out, const char *name, const char *labels, const pd_hist *h);
/* Append name="value" (escaped), with a comma when something is there. */
void pd_prom_label(pd_buf *labels, const char *name, const char *value);

#endif
