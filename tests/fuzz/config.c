/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzz target: the input is the text of a settings file.  Whatever it holds,
 * loading ends in one line of valid UTF-8 or in settings whose dump loads again
 * to the same dump. */
#include "config/config.h"
#include "engine/base/utf8.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(cond)                                                                                 \
    do {                                                                                           \
        if (!(cond)) __builtin_trap();                                                             \
    } while (0)

/* Load from a file in memory; the path is opened anew each time. */
static pd_status load(const void *text, size_t n, pd_config *c, pd_err *err) {
    static int fd = -1;
    if (fd < 0) fd = memfd_create("settings", 0);
    MUST(fd >= 0 && ftruncate(fd, 0) == 0 && pwrite(fd, text, n, 0) == (ssize_t)n);
    char flag[64], name[] = "serve", *argv[] = {name, flag, NULL};
    snprintf(flag, sizeof flag, "--config=/proc/self/fd/%d", fd);
    bool help;
    return pd_config_load(c, 2, argv, NULL, &help, err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    pd_config c, again;
    pd_err err = {0};
    if (load(data, size, &c, &err) != PD_OK) {
        MUST(err.code == PD_EINVAL && err.msg[0] && pd_utf8_valid(err.msg, strlen(err.msg)));
        return 0;
    }
    pd_buf a = {0}, b = {0};
    pd_config_json(&c, &a);
    MUST(!a.failed && a.len);
    const pd_status rc = load(a.data, a.len, &again, &err);
    if (c.api_key) {
        MUST(rc == PD_EINVAL); /* the mask is no key */
    } else {
        MUST(rc == PD_OK);
        pd_config_json(&again, &b);
        MUST(b.len == a.len && memcmp(a.data, b.data, a.len) == 0);
        pd_config_done(&again);
    }
    pd_config_done(&c);
    pd_buf_done(&a);
    pd_buf_done(&b);
    return 0;
}
