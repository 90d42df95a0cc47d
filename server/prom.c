/* SPDX-License-Identifier: Apache-2.0 */
/* Prometheus text (see prom.h). */
#include "server/prom.h"

#include "server/json.h"

#include <assert.h>

void pd_hist_init(pd_hist *h, const double *bound, size_t n_bound, double scale) {
    assert(n_bound <= PD_HIST_BOUNDS_MAX);
    *h = (pd_hist){.bound = bound, .n_bound = n_bound, .scale = scale};
}

void pd_hist_add(pd_hist *h, double value, uint64_t times) {
    if (!(value > 0.0)) value = 0.0;
    size_t i = 0;
    while (i < h->n_bound && value > h->bound[i]) i++;
    pd_count(&h->bucket[i], times);
    pd_count(&h->sum, (uint64_t)(value * h->scale) * times);
}

void pd_prom_family(pd_buf *out, const char *name, const char *type, const char *help) {
    pd_buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void sample(pd_buf *out, const char *name, const char *suffix, const char *labels) {
    pd_buf_printf(out, "%s%s", name, suffix);
    if (labels && *labels) pd_buf_printf(out, "{%s}", labels);
    pd_buf_putc(out, ' ');
}

void pd_prom_u64(pd_buf *out, const char *name, const char *labels, uint64_t v) {
    sample(out, name, "", labels);
    pd_json_u64(out, v);
    pd_buf_putc(out, '\n');
}

void pd_prom_num(pd_buf *out, const char *name, const char *labels, double v) {
    sample(out, name, "", labels);
    pd_json_num(out, v);
    pd_buf_putc(out, '\n');
}

void pd_prom_hist(pd_buf *out, const char *name, const char *labels, const pd_hist *h) {
    const char *comma = labels && *labels ? "," : "";
    if (!labels) labels = "";
    uint64_t below = 0;
    for (size_t i = 0; i <= h->n_bound; i++) {
        below += pd_counted(&h->bucket[i]);
        pd_buf_printf(out, "%s_bucket{%s%sle=\"", name, labels, comma);
        if (i < h->n_bound) pd_json_num(out, h->bound[i]);
        else pd_buf_puts(out, "+Inf");
        pd_buf_printf(out, "\"} %llu\n", (unsigned long long)below);
    }
    sample(out, name, "_sum", labels);
    pd_json_num(out, (double)pd_counted(&h->sum) / h->scale);
    pd_buf_putc(out, '\n');
    sample(out, name, "_count", labels);
    pd_json_u64(out, below);
    pd_buf_putc(out, '\n');
}

void pd_prom_label(pd_buf *labels, const char *name, const char *value) {
    if (labels->len) pd_buf_putc(labels, ',');
    pd_buf_printf(labels, "%s=\"", name);
    for (const char *p = value; *p; p++) {
        if (*p == '"' || *p == '\\') pd_buf_putc(labels, '\\');
        if (*p == '\n') pd_buf_puts(labels, "\\n");
        else pd_buf_putc(labels, *p);
    }
    pd_buf_putc(labels, '"');
}
