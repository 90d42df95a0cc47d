/* SPDX-License-Identifier: Apache-2.0 */
/* Small and middle-size files as a whole: read into memory, written in one go.
 *
 * Only regular files are read: a directory, a FIFO or a device has no size to
 * hold against a limit.  A written file appears under its name when all of it is
 * on disk, or not at all.  Errors are EFILE with path and fault in one line (a
 * long path keeps its end).  Thread: any. */
#ifndef PD_ENGINE_BASE_FILE_H
#define PD_ENGINE_BASE_FILE_H

#include "engine/base/err.h"

#include <stddef.h>

/* The bytes of `path`, at most `max` of them (a larger file is EFILE), to *data,
 * which is the caller's (free) and has a NUL behind its n bytes. */
pd_status pd_file_read(const char *path, size_t max, char **data, size_t *n, pd_err *err);

typedef struct pd_file_part {
    const void *data;
    size_t n;
} pd_file_part;

/* The parts one after the other, to a new file beside `path` that then takes its
 * place.  What stood there before stays on failure. */
pd_status pd_file_write(const char *path, const pd_file_part *part, size_t n_part, pd_err *err);

/* EFILE, "<path>: <message>", on one line. */
pd_status pd_file_fail(const char *path, pd_err *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
