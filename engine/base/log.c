/* SPDX-License-Identifier: Apache-2.0 */
/* Log records (see log.h): formatted on the stack, one write(2) each, so that
 * lines of two threads never mix. */
#include "engine/base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static _Atomic int max_level = PD_LOG_INFO;

void pd_log_set_level(pd_log_level level) {
    atomic_store_explicit(&max_level, (int)level, memory_order_relaxed);
}

void pd_log(pd_log_level level, const char *fmt, ...) {
    if ((int)level > atomic_load_explicit(&max_level, memory_order_relaxed)) return;
    static const char *const name[] = {"error", "warn", "info", "debug"};
    char text[1024], line[2300];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);

    struct timespec ts;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    int n = snprintf(line, sizeof line, "%04d-%02d-%02dT%02d:%02d:%02d.%03ldZ %s ", tm.tm_year + 1900,
                     tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec,
                     ts.tv_nsec / 1000000, name[level]);
    for (const char *p = text; *p && n < (int)sizeof line - 6; p++) {
        const unsigned char c = (unsigned char)*p;
        if (c < 0x20 || c == 0x7F)
            n += snprintf(line + n, 6, "\\x%02x", c);
        else
            line[n++] = (char)c;
    }
    line[n++] = '\n';
    if (write(STDERR_FILENO, line, (size_t)n) < 0) return; /* a blocked log never stops us */
}
