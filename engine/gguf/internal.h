/* SPDX-License-Identifier: Apache-2.0 */
/* Inside engine/gguf: a source of bytes, one parsed part, the sorted name index.
 *
 *   source.c   bytes of a regular file or of memory, bounded reads
 *   header.c   one part's header: bytes -> key/values and tensors, every size checked
 *   gguf.c     the parts of a model, their agreement, reading rows
 *   lookup.c   find by name, typed values */
#ifndef PD_ENGINE_GGUF_INTERNAL_H
#define PD_ENGINE_GGUF_INTERNAL_H

#include "engine/base/arena.h"
#include "engine/base/err.h"
#include "engine/gguf/gguf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Limits that no real file comes near; they bound what a lying one can cost. */
enum {
    PD__GGUF_HEADER_MAX = 256 << 20, /* bytes; the largest vocabularies take some 20 MiB */
    PD__GGUF_KV_MAX = 1 << 16,
    PD__GGUF_TENSORS_MAX = 1 << 20,
    PD__GGUF_KEY_MAX = 65535, /* by the format */
    PD__GGUF_NAME_MAX = 64,   /* of a tensor, by the format */
    PD__GGUF_ALIGN_MAX = 1 << 20,
    PD__GGUF_PARTS_MAX = 999,
};

/* ---- source.c ---- */

typedef struct pd__source {
    char *name;         /* owned: the path, for messages */
    int fd;             /* -1: memory */
    const uint8_t *mem; /* borrowed */
    uint64_t size;
} pd__source;

/* Refuses what is not a readable regular file, and never waits for one (a FIFO
 * without a writer).  Half-made or zeroed sources with fd = -1 may be closed. */
pd_status pd__source_open(pd__source *s, const char *path, pd_err *err);
pd_status pd__source_memory(pd__source *s, const void *data, size_t n, pd_err *err);
void pd__source_close(pd__source *s);

/* n bytes from `offset`, all of them or EFILE. */
pd_status pd__source_read(const pd__source *s, uint64_t offset, void *dst, size_t n, pd_err *err);

/* EFILE, "<path>: <message>"; a long path keeps its end. */
pd_status pd__source_fail(const pd__source *s, pd_err *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Text of a hostile file for a message: one line, short. */
typedef struct {
    char text[72];
} pd__quoted;
pd__quoted pd__quote(pd_str s);

/* ---- quant.c ---- */

/* What the format calls a type that pd_qtype_find does not know; NULL if neither. */
const char *pd__qtype_unserved_name(uint32_t id);

/* ---- header.c ---- */

typedef struct pd__part {
    pd__source src;
    uint8_t *head; /* owned: the first head_len bytes of the file; strings and arrays point here */
    size_t head_len;
    pd_arena arena; /* what follows */
    uint32_t version;
    pd_gguf_kv *kv;
    uint32_t *kv_order; /* by key */
    size_t n_kv;
    pd_gguf_tensor *tensors; /* .file is 0 */
    size_t n_tensors;
} pd__part;

/* Read and check the header of p->src.  On failure the part may only be closed. */
pd_status pd__part_read(pd__part *p, pd_err *err);
void pd__part_close(pd__part *p);

/* ---- lookup.c ---- */

int pd__str_cmp(pd_str a, pd_str b); /* as memcmp, the shorter first */

/* Sort order[n] of `base` elements (stride bytes apart, each beginning with its
 * name) and return the index of an element whose name occurs twice, or n. */
size_t pd__index_sort(const void *base, size_t stride, uint32_t *order, size_t n);
const void *pd__index_find(const void *base, size_t stride, const uint32_t *order, size_t n,
                           pd_str name);

pd_status pd__part_uint(const pd__part *p, const char *key, uint64_t min, uint64_t max,
                        uint64_t fallback, uint64_t *ret, pd_err *err);

/* ---- gguf.c ---- */

struct pd_gguf {
    pd__part *parts; /* [n_parts]; the first one's key/values are the model's */
    size_t n_parts;
    pd_gguf_tensor *tensors; /* of all parts */
    uint32_t *tensor_order;  /* by name */
    size_t n_tensors;
    pd_arena arena;
    uint64_t file_bytes;
};

/* A file that is already in memory (borrowed until close): tests and fuzzing.
 * Split files cannot come this way. */
pd_status pd__gguf_open_memory(pd_gguf **ret, const void *data, size_t n, pd_err *err);

#endif
