/* SPDX-License-Identifier: Apache-2.0 */
/* Safetensors files: named arrays of floats and a few strings.
 *
 *   u64 header length | header: JSON | data
 *   header  {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...,
 *            "__metadata__": {"key": "text", ...}}, blanks around it allowed
 *
 * The file is hostile until proven otherwise.  Taken is exactly the format: one
 * object of such entries, names and keys once each, F32, F16 or BF16 elements,
 * offsets that tile the data without hole or overlap and agree with the shapes.
 * Everything returned is borrowed and lives until pd_safetensors_close.
 * Thread: open/close one, the rest any. */
#ifndef PD_COMPRESSION_SAFETENSORS_H
#define PD_COMPRESSION_SAFETENSORS_H

#include "engine/base/err.h"

#include <stddef.h>
#include <stdint.h>

/* Limits that no real file of press data comes near. */
enum {
    PD_ST_HEADER_MAX = 16 << 20,
    PD_ST_TENSORS_MAX = 1 << 16,
    PD_ST_META_MAX = 1 << 12,
    PD_ST_DIMS_MAX = 8,
};

typedef struct pd_safetensors pd_safetensors;

typedef enum { PD_ST_F32, PD_ST_F16, PD_ST_BF16 } pd_st_type;

typedef struct pd_st_tensor {
    const char *name; /* NUL-terminated, UTF-8 */
    pd_st_type type;
    unsigned n_dim;   /* 0 = one element */
    size_t shape[PD_ST_DIMS_MAX];
    size_t n_elem;
    const uint8_t *data; /* unaligned, little-endian */
    size_t offset, n_bytes;
} pd_st_tensor;

typedef struct pd_st_meta {
    const char *key, *value;
} pd_st_meta;

/* Errors: EFILE (path and fault in one line), ENOMEM. */
pd_status pd_safetensors_open(pd_safetensors **ret, const char *path, pd_err *err);
/* The same of bytes in memory, which are borrowed; `name` stands in errors. */
pd_status pd_safetensors_parse(pd_safetensors **ret, const void *data, size_t n, const char *name, pd_err *err);
void pd_safetensors_close(pd_safetensors *f); /* NULL is fine */

size_t pd_safetensors_count(const pd_safetensors *f);
const pd_st_tensor *pd_safetensors_at(const pd_safetensors *f, size_t index);    /* by name, ascending */
const pd_st_tensor *pd_safetensors_find(const pd_safetensors *f, const char *name); /* NULL if absent */
size_t pd_safetensors_meta_count(const pd_safetensors *f);
const pd_st_meta *pd_safetensors_meta_at(const pd_safetensors *f, size_t index);
const char *pd_safetensors_meta(const pd_safetensors *f, const char *key); /* NULL if absent */

/* All elements as f32: dst[n_elem]. */
void pd_st_read(const pd_st_tensor *t, float *dst);

/* Write F32 tensors (name, n_dim, shape and `values` are looked at) and strings
 * to `path`, whole or not at all.  Names and keys must be UTF-8 and distinct.
 * Errors: EFILE, ENOMEM. */
typedef struct pd_st_out {
    const char *name;
    unsigned n_dim;
    size_t shape[PD_ST_DIMS_MAX];
    const float *values;
} pd_st_out;
pd_status pd_safetensors_write(const char *path, const pd_st_out *tensor, size_t n_tensor,
                               const pd_st_meta *meta, size_t n_meta, pd_err *err);

#endif
