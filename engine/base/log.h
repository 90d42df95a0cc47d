/* SPDX-License-Identifier: Apache-2.0 */
/* One-line log records on standard error; control characters are escaped, so a
 * client's text cannot forge a line.  Only server/ logs: library code returns
 * errors.  Thread: any. */
#ifndef PD_ENGINE_BASE_LOG_H
#define PD_ENGINE_BASE_LOG_H

typedef enum { PD_LOG_ERROR, PD_LOG_WARN, PD_LOG_INFO, PD_LOG_DEBUG } pd_log_level;

/* Records above the level are dropped (default PD_LOG_INFO). */
void pd_log_set_level(pd_log_level level);
void pd_log(pd_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
