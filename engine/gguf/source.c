/* SPDX-License-Identifier: Apache-2.0 */
/* Where a GGUF's bytes come from.  Only regular files are taken: a directory, a
 * FIFO or a device has no size to check a header against.  Reads are pread, so
 * a file that shrinks meanwhile is an error here and not a signal. */
#include "engine/gguf/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

pd__quoted pd__quote(pd_str s) {
    pd__quoted q;
    const size_t room = sizeof q.text - 4, n = s.len < room ? s.len : room;
    for (size_t i = 0; i < n; i++) {
        const unsigned char c = (unsigned char)s.data[i];
        q.text[i] = c < 0x20 || c == 0x7F ? '?' : (char)c; /* bad UTF-8: see pd_fail */
    }
    memcpy(q.text + n, s.len > n ? "..." : "", s.len > n ? 4 : 1);
    return q;
}

pd_status pd__source_fail(const pd__source *s, pd_err *err, const char *fmt, ...) {
    char msg[256], path[129];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);

    const char *name = s->name ? s->name : "memory";
    const size_t len = strlen(name), room = sizeof path - 1, skip = len > room ? len - room : 0;
    for (size_t i = 0; i <= len - skip; i++) {
        const unsigned char c = (unsigned char)name[skip + i];
        path[i] = c != '\0' && (c < 0x20 || c == 0x7F) ? '?' : (char)c;
    }
    return pd_fail(err, PD_EFILE, NULL, "%s%s: %s", skip ? "..." : "", path, msg);
}

static pd_status fail_errno(const pd__source *s, int err_no, const char *what, pd_err *err) {
    char text[96];
    return pd__source_fail(s, err, "%s: %s", what, strerror_r(err_no, text, sizeof text));
}

static const char *kind_of(mode_t mode) {
    switch (mode & S_IFMT) {
    case S_IFDIR: return "a directory";
    case S_IFIFO: return "a FIFO";
    case S_IFSOCK: return "a socket";
    case S_IFCHR: return "a character device";
    case S_IFBLK: return "a block device";
    default: return "not a regular file";
    }
}

pd_status pd__source_open(pd__source *s, const char *path, pd_err *err) {
    *s = (pd__source){.fd = -1};
    s->name = strdup(path);
    if (!s->name) return pd_fail(err, PD_ENOMEM, NULL, "no memory to open a file");
    /* O_NONBLOCK: opening a FIFO must not wait for its writer; it means nothing
     * for the regular file that is all we go on with. */
    s->fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (s->fd < 0) return fail_errno(s, errno, "cannot open", err);
    struct stat st;
    if (fstat(s->fd, &st) != 0) return fail_errno(s, errno, "cannot stat", err);
    if (!S_ISREG(st.st_mode))
        return pd__source_fail(s, err, "is %s, not a GGUF file", kind_of(st.st_mode));
    s->size = (uint64_t)st.st_size;
    return PD_OK;
}

pd_status pd__source_memory(pd__source *s, const void *data, size_t n, pd_err *err) {
    *s = (pd__source){.fd = -1, .mem = data, .size = n};
    s->name = strdup("memory");
    return s->name ? PD_OK : pd_fail(err, PD_ENOMEM, NULL, "no memory to open a file");
}

void pd__source_close(pd__source *s) {
    if (s->fd >= 0) close(s->fd);
    free(s->name);
    *s = (pd__source){.fd = -1};
}

pd_status pd__source_read(const pd__source *s, uint64_t offset, void *dst, size_t n, pd_err *err) {
    if (n == 0) return PD_OK;
    if (offset > s->size || n > s->size - offset)
        return pd__source_fail(s, err,
                               "%zu bytes at %llu are past the end of the file (%llu bytes)", n,
                               (unsigned long long)offset, (unsigned long long)s->size);
    if (s->fd < 0) {
        memcpy(dst, s->mem + offset, n);
        return PD_OK;
    }
    for (size_t done = 0; done < n;) {
        const ssize_t got = pread(s->fd, (char *)dst + done, n - done, (off_t)(offset + done));
        if (got > 0) {
            done += (size_t)got;
        } else if (got == 0) {
            return pd__source_fail(s, err, "the file has become shorter than %llu bytes",
                                   (unsigned long long)s->size);
        } else if (errno != EINTR) {
            return fail_errno(s, errno, "read error", err);
        }
    }
    return PD_OK;
}
