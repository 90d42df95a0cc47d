/* SPDX-License-Identifier: Apache-2.0 */
/* Whole files (see file.h). */
#include "engine/base/file.h"

#include "engine/base/num.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

pd_status pd_file_fail(const char *path, pd_err *err, const char *fmt, ...) {
    char msg[320], name[129];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    for (char *m = msg; *m; m++)
        if ((unsigned char)*m < 0x20 || *m == 0x7F) *m = '?'; /* what is quoted of a file */
    const size_t len = strlen(path), room = sizeof name - 1, skip = len > room ? len - room : 0;
    for (size_t i = 0; i <= len - skip; i++) {
        const unsigned char c = (unsigned char)path[skip + i];
        name[i] = c != '\0' && (c < 0x20 || c == 0x7F) ? '?' : (char)c;
    }
    return pd_fail(err, PD_EFILE, NULL, "%s%s: %s", skip ? "..." : "", name, msg);
}

static pd_status fail_errno(const char *path, int err_no, const char *what, pd_err *err) {
    char text[96];
    return pd_file_fail(path, err, "%s: %s", what, strerror_r(err_no, text, sizeof text));
}

static pd_status read_all(const char *path, int fd, size_t size, char *data, pd_err *err) {
    for (size_t done = 0; done < size;) {
        const ssize_t got = read(fd, data + done, size - done);
        if (got > 0)
            done += (size_t)got;
        else if (got == 0)
            return pd_file_fail(path, err, "the file has become shorter than %zu bytes", size);
        else if (errno != EINTR)
            return fail_errno(path, errno, "read error", err);
    }
    data[size] = '\0';
    return PD_OK;
}

static pd_status read_fd(const char *path, int fd, size_t max, char **data, size_t *n,
                         pd_err *err) {
    struct stat st;
    if (fstat(fd, &st) != 0) return fail_errno(path, errno, "cannot stat", err);
    if (!S_ISREG(st.st_mode)) return pd_file_fail(path, err, "is not a regular file");
    if (st.st_size < 0 || (uintmax_t)st.st_size > max)
        return pd_file_fail(path, err, "has %jd bytes, at most %zu are read", (intmax_t)st.st_size,
                            max);
    const size_t size = (size_t)st.st_size;
    size_t with_nul;
    char *p = pd_add_size(size, 1, &with_nul) ? malloc(with_nul) : NULL;
    if (!p) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the %zu bytes of a file", size);
    const pd_status rc = read_all(path, fd, size, p, err);
    if (rc != PD_OK) {
        free(p);
        return rc;
    }
    *data = p;
    *n = size;
    return PD_OK;
}

pd_status pd_file_read(const char *path, size_t max, char **data, size_t *n, pd_err *err) {
    /* O_NONBLOCK: opening a FIFO must not wait for its writer. */
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0) return fail_errno(path, errno, "cannot open", err);
    const pd_status rc = read_fd(path, fd, max, data, n, err);
    close(fd);
    return rc;
}

static pd_status write_fd(const char *path, int fd, const pd_file_part *part, size_t n_part,
                          pd_err *err) {
    for (size_t i = 0; i < n_part; i++) {
        for (size_t done = 0; done < part[i].n;) {
            const ssize_t put = write(fd, (const char *)part[i].data + done, part[i].n - done);
            if (put >= 0)
                done += (size_t)put;
            else if (errno != EINTR)
                return fail_errno(path, errno, "write error", err);
        }
    }
    /* readable as any new file, whatever mkostemp thinks of secrets */
    const mode_t mask = umask(0);
    umask(mask);
    if (fchmod(fd, 0666 & ~mask) != 0 || fsync(fd) != 0)
        return fail_errno(path, errno, "write error", err);
    return PD_OK;
}

pd_status pd_file_write(const char *path, const pd_file_part *part, size_t n_part, pd_err *err) {
    static const char suffix[] = ".XXXXXX";
    const size_t len = strlen(path);
    char *tmp = malloc(len + sizeof suffix);
    if (!tmp) return pd_fail(err, PD_ENOMEM, NULL, "no memory to write a file");
    memcpy(tmp, path, len);
    memcpy(tmp + len, suffix, sizeof suffix);
    const int fd = mkostemp(tmp, O_CLOEXEC);
    pd_status rc = PD_OK;
    if (fd < 0) {
        rc = fail_errno(path, errno, "cannot create", err);
    } else {
        rc = write_fd(path, fd, part, n_part, err);
        if (close(fd) != 0 && rc == PD_OK) rc = fail_errno(path, errno, "write error", err);
        if (rc == PD_OK && rename(tmp, path) != 0)
            rc = fail_errno(path, errno, "cannot rename", err);
        if (rc != PD_OK) unlink(tmp);
    }
    free(tmp);
    return rc;
}
