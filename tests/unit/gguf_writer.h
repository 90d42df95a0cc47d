/* SPDX-License-Identifier: Apache-2.0 */
/* Writing small GGUF files in tests, field by field; nothing is checked, so that
 * a test can lie.  A file is: head, its keys, its tensors, pad, the data. */
#ifndef PD_TESTS_UNIT_GGUF_WRITER_H
#define PD_TESTS_UNIT_GGUF_WRITER_H

#include "engine/base/buf.h"
#include "engine/gguf/gguf.h"

#include <stdint.h>
#include <string.h>

static inline void gw_u8(pd_buf *b, uint8_t v) {
    pd_buf_add(b, (const char *)&v, 1);
}

static inline void gw_u32(pd_buf *b, uint32_t v) {
    pd_buf_add(b, (const char *)&v, 4);
}

static inline void gw_u64(pd_buf *b, uint64_t v) {
    pd_buf_add(b, (const char *)&v, 8);
}

static inline void gw_str_n(pd_buf *b, const char *s, size_t n) {
    gw_u64(b, n);
    pd_buf_add(b, s, n);
}

static inline void gw_str(pd_buf *b, const char *s) {
    gw_str_n(b, s, strlen(s));
}

static inline void gw_head(pd_buf *b, uint32_t version, uint64_t n_tensors, uint64_t n_kv) {
    pd_buf_add(b, "GGUF", 4);
    gw_u32(b, version);
    gw_u64(b, n_tensors);
    gw_u64(b, n_kv);
}

static inline void gw_key(pd_buf *b, const char *name, uint32_t type) {
    gw_str(b, name);
    gw_u32(b, type);
}

static inline void gw_key_u32(pd_buf *b, const char *name, uint32_t v) {
    gw_key(b, name, PD_GGUF_U32);
    gw_u32(b, v);
}

static inline void gw_key_str(pd_buf *b, const char *name, const char *s) {
    gw_key(b, name, PD_GGUF_STRING);
    gw_str(b, s);
}

static inline void gw_key_array(pd_buf *b, const char *name, uint32_t elem, uint64_t n) {
    gw_key(b, name, PD_GGUF_ARRAY); /* the n elements follow */
    gw_u32(b, elem);
    gw_u64(b, n);
}

static inline void gw_tensor(pd_buf *b, const char *name, uint32_t type, unsigned n_dims,
                             const uint64_t *ne, uint64_t offset) {
    gw_str(b, name);
    gw_u32(b, n_dims);
    for (unsigned i = 0; i < n_dims; i++) gw_u64(b, ne[i]);
    gw_u32(b, type);
    gw_u64(b, offset);
}

static inline void gw_pad(pd_buf *b, size_t align) {
    while (b->len % align) gw_u8(b, 0);
}

#endif
