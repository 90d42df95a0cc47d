/* SPDX-License-Identifier: Apache-2.0 */
/* GGUF v2/v3 model files, split ones included: metadata and tensor table.
 *
 *   "GGUF" | u32 version | u64 n_tensors | u64 n_kv
 *   n_kv    x { string key | u32 type | value }            string = u64 length | bytes
 *   n_tensors x { string name | u32 n_dims | u64 ne[n_dims] | u32 type | u64 offset }
 *   padding to general.alignment | tensor data
 *
 * The file is hostile until proven otherwise: every count, length and offset is
 * checked against the bytes that are really there, with overflow-safe
 * arithmetic, before anything is allocated or read.  Tensor data is read with
 * pread into the caller's memory (never mapped: a file that shrinks while we
 * serve must give an error, not a SIGBUS).
 *
 * Everything returned is borrowed and lives until pd_gguf_close.
 * Thread: open/close one, the rest any. */
#ifndef PD_ENGINE_GGUF_GGUF_H
#define PD_ENGINE_GGUF_GGUF_H

#include "engine/base/err.h"
#include "engine/gguf/quant.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct pd_gguf pd_gguf;

typedef enum {
    PD_GGUF_U8, PD_GGUF_I8, PD_GGUF_U16, PD_GGUF_I16, PD_GGUF_U32, PD_GGUF_I32, PD_GGUF_F32,
    PD_GGUF_BOOL, PD_GGUF_STRING, PD_GGUF_ARRAY, PD_GGUF_U64, PD_GGUF_I64, PD_GGUF_F64,
} pd_gguf_type; /* numbered as in the file */

typedef struct {
    const char *data; /* not NUL-terminated, may hold any byte */
    size_t len;
} pd_str;

typedef struct pd_gguf_kv {
    pd_str key;
    pd_gguf_type type;
    pd_gguf_type elem;  /* of an array; arrays of arrays are refused */
    uint64_t n;         /* elements of an array, else 1 */
    union {
        uint64_t u;     /* unsigned kinds and BOOL */
        int64_t i;      /* signed kinds */
        double f;       /* F32, F64 */
        pd_str s;
        const void *array; /* numbers: packed little-endian, unaligned; strings: pd_str[n] */
    } v;
} pd_gguf_kv;

typedef struct pd_gguf_tensor {
    pd_str name;
    const pd_qtype *type;
    unsigned n_dims;  /* 1..4 */
    uint64_t ne[4];   /* ne[0] = row length (fastest axis); unused dims are 1 */
    uint64_t n_elem, n_bytes, row_bytes;
    unsigned file;    /* split index */
    uint64_t offset;  /* absolute, in that file */
} pd_gguf_tensor;

/* Open `path`; a name ending in -00001-of-0000N.gguf opens all N parts.
 * Errors (EFILE) name path and fault in one line. */
pd_status pd_gguf_open(pd_gguf **ret, const char *path, pd_err *err);
void pd_gguf_close(pd_gguf *g); /* NULL is fine */

const char *pd_gguf_path(const pd_gguf *g);
uint32_t pd_gguf_version(const pd_gguf *g);
uint64_t pd_gguf_file_bytes(const pd_gguf *g); /* all parts */

size_t pd_gguf_n_kv(const pd_gguf *g);
const pd_gguf_kv *pd_gguf_kv_at(const pd_gguf *g, size_t index);
const pd_gguf_kv *pd_gguf_find(const pd_gguf *g, const char *key); /* NULL if absent */

/* Typed look-ups.  Integers of any width are taken if the value lies in
 * [min, max].  Missing: *ret = fallback where there is one, else EFILE naming
 * the key.  Wrong type or range: EFILE naming key, value and range. */
pd_status pd_gguf_u32(const pd_gguf *g, const char *key, uint32_t min, uint32_t max, uint32_t *ret, pd_err *err);
pd_status pd_gguf_u32_or(const pd_gguf *g, const char *key, uint32_t min, uint32_t max, uint32_t fallback, uint32_t *ret, pd_err *err);
pd_status pd_gguf_f32_or(const pd_gguf *g, const char *key, float min, float max, float fallback, float *ret, pd_err *err);
pd_status pd_gguf_bool_or(const pd_gguf *g, const char *key, bool fallback, bool *ret, pd_err *err);
pd_status pd_gguf_str(const pd_gguf *g, const char *key, pd_str *ret, pd_err *err);
bool pd_str_eq(pd_str s, const char *z);

size_t pd_gguf_n_tensors(const pd_gguf *g);
const pd_gguf_tensor *pd_gguf_tensor_at(const pd_gguf *g, size_t index);
const pd_gguf_tensor *pd_gguf_tensor_find(const pd_gguf *g, const char *name); /* NULL if absent */

/* The bytes of rows [row0, row0 + n_rows) (a row = ne[0] elements; rows of all
 * outer dims counted through) to dst[n_rows * row_bytes].  Errors: EFILE on a
 * short read or I/O error, EINVAL if the rows are not all in the tensor. */
pd_status pd_gguf_read_rows(const pd_gguf *g, const pd_gguf_tensor *t, uint64_t row0, uint64_t n_rows, void *dst, pd_err *err);

#endif
