/* SPDX-License-Identifier: Apache-2.0 */
/* Writing safetensors (see safetensors.h).  Strings come first in the header, and
 * blanks fill it up so that the data begins at a multiple of 8, as the format's
 * own writer does. */
#include "compression/safetensors.h"

#include "engine/base/buf.h"
#include "engine/base/file.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "F32 is written as it lies in memory");

static void put_string(pd_buf *b, const char *s) {
    pd_buf_putc(b, '"');
    for (; *s; s++) {
        const unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            pd_buf_printf(b, "\\%c", c);
        else if (c < 0x20)
            pd_buf_printf(b, "\\u%04x", c);
        else
            pd_buf_putc(b, (char)c);
    }
    pd_buf_putc(b, '"');
}

static size_t bytes_of(const pd_st_out *t) {
    size_t n = sizeof(float);
    for (unsigned i = 0; i < t->n_dim; i++) n *= t->shape[i];
    return n;
}

static void put_header(pd_buf *b, const pd_st_out *tensor, size_t n_tensor, const pd_st_meta *meta,
                       size_t n_meta) {
    pd_buf_putc(b, '{');
    for (size_t i = 0; i < n_meta; i++) {
        pd_buf_puts(b, i ? "," : "\"__metadata__\":{");
        put_string(b, meta[i].key);
        pd_buf_putc(b, ':');
        put_string(b, meta[i].value);
    }
    if (n_meta) pd_buf_putc(b, '}');
    size_t at = 0;
    for (size_t i = 0; i < n_tensor; i++) {
        if (i || n_meta) pd_buf_putc(b, ',');
        put_string(b, tensor[i].name);
        pd_buf_puts(b, ":{\"dtype\":\"F32\",\"shape\":[");
        for (unsigned d = 0; d < tensor[i].n_dim; d++)
            pd_buf_printf(b, "%s%zu", d ? "," : "", tensor[i].shape[d]);
        const size_t n = bytes_of(&tensor[i]);
        pd_buf_printf(b, "],\"data_offsets\":[%zu,%zu]}", at, at + n);
        at += n;
    }
    pd_buf_putc(b, '}');
    while (b->len % 8 != 0 && !b->failed) pd_buf_putc(b, ' ');
}

pd_status pd_safetensors_write(const char *path, const pd_st_out *tensor, size_t n_tensor,
                               const pd_st_meta *meta, size_t n_meta, pd_err *err) {
    pd_buf head;
    pd_buf_init(&head, PD_ST_HEADER_MAX);
    put_header(&head, tensor, n_tensor, meta, n_meta);
    const uint64_t len = head.len;
    pd_file_part *part = calloc(n_tensor + 2, sizeof *part);
    pd_status rc;
    if (head.failed || !part) {
        rc = pd_fail(err, PD_ENOMEM, NULL, "no memory for the header of a safetensors file");
    } else {
        part[0] = (pd_file_part){&len, sizeof len};
        part[1] = (pd_file_part){head.data, head.len};
        for (size_t i = 0; i < n_tensor; i++)
            part[i + 2] = (pd_file_part){tensor[i].values, bytes_of(&tensor[i])};
        rc = pd_file_write(path, part, n_tensor + 2, err);
    }
    free(part);
    pd_buf_done(&head);
    return rc;
}
