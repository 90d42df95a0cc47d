/* SPDX-License-Identifier: Apache-2.0 */
/* Little-endian loads from bytes of any alignment.  Files are little-endian and
 * so are all machines served; a port to another order must change only this. */
#ifndef PD_ENGINE_GGUF_LE_H
#define PD_ENGINE_GGUF_LE_H

#include <stdint.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "loads assume little-endian");

static inline uint16_t pd_le16(const void *p) {
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint32_t pd_le32(const void *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint64_t pd_le64(const void *p) {
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

#endif
