/* SPDX-License-Identifier: Apache-2.0 */
/* A model as one or several GGUF files: opening the parts, holding them against
 * each other, and reading tensor rows.
 *
 * A split model is `<stem>-00001-of-0000N.gguf` to `<stem>-0000N-of-0000N.gguf`.
 * Part 1 has the key/values; each part has split.no (from 0) and split.count,
 * and part 1 may have split.tensors.count, the tensors of all parts.  Names and
 * keys must tell the same story. */
#include "engine/gguf/gguf.h"

#include "engine/base/num.h"
#include "engine/gguf/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long ull;

enum { SUFFIX = sizeof "-00001-of-00002.gguf" - 1 };

static bool five_digits(const char *s, unsigned *ret) {
    unsigned v = 0;
    for (int i = 0; i < 5; i++) {
        if (s[i] < '0' || s[i] > '9') return false;
        v = v * 10 + (unsigned)(s[i] - '0');
    }
    *ret = v;
    return true;
}

/* Part number (from 1) and count in a path's last SUFFIX bytes; false if none. */
static bool split_name(const char *path, unsigned *part, unsigned *count) {
    const size_t len = strlen(path);
    if (len < SUFFIX) return false;
    const char *s = path + len - SUFFIX;
    return s[0] == '-' && five_digits(s + 1, part) && memcmp(s + 6, "-of-", 4) == 0 &&
           five_digits(s + 10, count) && strcmp(s + 15, ".gguf") == 0;
}

static pd_status no_memory(pd_err *err) {
    return pd_fail(err, PD_ENOMEM, NULL, "no memory to open a GGUF file");
}

/* Part i of n by name: what its own keys say must agree. */
static pd_status check_part(const pd__part *p, size_t i, size_t n, pd_err *err) {
    uint64_t no = 0, count = 0;
    PD_TRY(pd__part_uint(p, "split.count", 0, UINT16_MAX, 0, &count, err));
    PD_TRY(pd__part_uint(p, "split.no", 0, UINT16_MAX, 0, &no, err));
    if (count <= 1 && n == 1) return PD_OK; /* not split */
    if (count != n && n == 1)
        return pd__source_fail(&p->src, err,
                               "is part %llu of %llu, but its name does not end in "
                               "-%05llu-of-%05llu.gguf",
                               (ull)no + 1, (ull)count, (ull)no + 1, (ull)count);
    if (count != n)
        return pd__source_fail(&p->src, err, "key 'split.count' is %llu, its name says %zu",
                               (ull)count, n);
    if (no != i)
        return pd__source_fail(&p->src, err, "key 'split.no' is %llu, its name says %zu", (ull)no,
                               i);
    return PD_OK;
}

/* The tensors of all parts in one array, indexed by name. */
static pd_status join(pd_gguf *g, pd_err *err) {
    size_t n = 0;
    for (size_t i = 0; i < g->n_parts; i++) n += g->parts[i].n_tensors;
    if (n > PD__GGUF_TENSORS_MAX)
        return pd__source_fail(&g->parts[0].src, err,
                               "its parts have %zu tensors, at most %d are served", n,
                               PD__GGUF_TENSORS_MAX);
    uint64_t claimed = n;
    PD_TRY(pd__part_uint(&g->parts[0], "split.tensors.count", 0, UINT32_MAX, n, &claimed, err));
    if (claimed != n)
        return pd__source_fail(&g->parts[0].src, err,
                               "key 'split.tensors.count' is %llu, the parts have %zu",
                               (ull)claimed, n);

    g->tensors = PD_ARENA_NEW(&g->arena, n, pd_gguf_tensor);
    g->tensor_order = PD_ARENA_NEW(&g->arena, n, uint32_t);
    if (!g->tensors || !g->tensor_order) return no_memory(err);
    for (size_t i = 0; i < g->n_parts; i++) {
        const pd__part *p = &g->parts[i];
        for (size_t k = 0; k < p->n_tensors; k++) {
            pd_gguf_tensor *t = &g->tensors[g->n_tensors++];
            *t = p->tensors[k];
            t->file = (unsigned)i;
        }
        g->file_bytes += p->src.size;
    }
    const size_t twice = pd__index_sort(g->tensors, sizeof *g->tensors, g->tensor_order, n);
    if (twice < n)
        return pd__source_fail(&g->parts[g->tensors[twice].file].src, err,
                               "tensor '%s' occurs twice", pd__quote(g->tensors[twice].name).text);
    return PD_OK;
}

static pd_gguf *gguf_new(size_t n_parts) {
    pd_gguf *g = calloc(1, sizeof *g);
    if (!g) return NULL;
    g->parts = calloc(n_parts, sizeof *g->parts);
    if (!g->parts) {
        free(g);
        return NULL;
    }
    for (size_t i = 0; i < n_parts; i++) g->parts[i].src.fd = -1;
    g->n_parts = n_parts;
    return g;
}

static pd_status open_parts(pd_gguf *g, const char *path, pd_err *err) {
    char *name = strdup(path);
    if (!name) return no_memory(err);
    const size_t len = strlen(name), n = g->n_parts;
    pd_status rc = PD_OK;
    for (size_t i = 0; rc == PD_OK && i < n; i++) {
        pd__part *p = &g->parts[i];
        char tail[SUFFIX + 1 + 32];
        if (n > 1) {
            snprintf(tail, sizeof tail, "-%05zu-of-%05zu.gguf", i + 1, n);
            memcpy(name + len - SUFFIX, tail, SUFFIX);
        }
        rc = pd__source_open(&p->src, name, err);
        if (rc == PD_OK) rc = pd__part_read(p, err);
        if (rc == PD_OK) rc = check_part(p, i, n, err);
    }
    free(name);
    return rc == PD_OK ? join(g, err) : rc;
}

pd_status pd_gguf_open(pd_gguf **ret, const char *path, pd_err *err) {
    unsigned part = 1, n_parts = 1;
    const pd__source named = {.name = (char *)(uintptr_t)path, .fd = -1}; /* for messages only */
    if (split_name(path, &part, &n_parts)) {
        if (n_parts < 1 || n_parts > PD__GGUF_PARTS_MAX)
            return pd__source_fail(&named, err, "its name says %u parts, must be 1 to %d", n_parts,
                                   PD__GGUF_PARTS_MAX);
        if (part != 1)
            return pd__source_fail(&named, err, "is part %u of %u, open part 00001 instead", part,
                                   n_parts);
    }
    pd_gguf *g = gguf_new(n_parts);
    if (!g) return no_memory(err);
    const pd_status rc = open_parts(g, path, err);
    if (rc != PD_OK) {
        pd_gguf_close(g);
        return rc;
    }
    *ret = g;
    return PD_OK;
}

pd_status pd__gguf_open_memory(pd_gguf **ret, const void *data, size_t n, pd_err *err) {
    pd_gguf *g = gguf_new(1);
    if (!g) return no_memory(err);
    pd_status rc = pd__source_memory(&g->parts[0].src, data, n, err);
    if (rc == PD_OK) rc = pd__part_read(&g->parts[0], err);
    if (rc == PD_OK) rc = check_part(&g->parts[0], 0, 1, err);
    if (rc == PD_OK) rc = join(g, err);
    if (rc != PD_OK) {
        pd_gguf_close(g);
        return rc;
    }
    *ret = g;
    return PD_OK;
}

void pd_gguf_close(pd_gguf *g) {
    if (!g) return;
    for (size_t i = 0; i < g->n_parts; i++) pd__part_close(&g->parts[i]);
    free(g->parts);
    pd_arena_done(&g->arena);
    free(g);
}

const char *pd_gguf_path(const pd_gguf *g) {
    return g->parts[0].src.name;
}

uint32_t pd_gguf_version(const pd_gguf *g) {
    return g->parts[0].version;
}

uint64_t pd_gguf_file_bytes(const pd_gguf *g) {
    return g->file_bytes;
}

size_t pd_gguf_n_kv(const pd_gguf *g) {
    return g->parts[0].n_kv;
}

const pd_gguf_kv *pd_gguf_kv_at(const pd_gguf *g, size_t index) {
    return index < g->parts[0].n_kv ? &g->parts[0].kv[index] : NULL;
}

size_t pd_gguf_n_tensors(const pd_gguf *g) {
    return g->n_tensors;
}

const pd_gguf_tensor *pd_gguf_tensor_at(const pd_gguf *g, size_t index) {
    return index < g->n_tensors ? &g->tensors[index] : NULL;
}

pd_status pd_gguf_read_rows(const pd_gguf *g, const pd_gguf_tensor *t, uint64_t row0,
                            uint64_t n_rows, void *dst, pd_err *err) {
    const uint64_t rows = t->n_elem / t->ne[0];
    if (row0 > rows || n_rows > rows - row0)
        return pd_fail(err, PD_EINVAL, NULL,
                       "%llu rows from %llu are not all in tensor '%s' of %llu rows", (ull)n_rows,
                       (ull)row0, pd__quote(t->name).text, (ull)rows);
    /* Neither overflows: both are at most n_bytes, which lies in the file. */
    const uint64_t bytes = n_rows * t->row_bytes;
    if (bytes > SIZE_MAX) return no_memory(err);
    return pd__source_read(&g->parts[t->file].src, t->offset + row0 * t->row_bytes, dst,
                           (size_t)bytes, err);
}
