/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzz target: the input is a GGUF file.  Whatever the bytes, opening ends in a
 * model that keeps gguf.h's promises or in one line of text. */
#include "engine/gguf/internal.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(cond)                                                                                 \
    do {                                                                                           \
        if (!(cond)) __builtin_trap();                                                             \
    } while (0)

static void check_refusal(pd_status rc, const pd_err *err) {
    MUST(rc == PD_EFILE && err->code == rc && err->msg[0]);
    for (const char *p = err->msg; *p; p++) MUST((unsigned char)*p >= 0x20);
}

/* The NUL-terminated copy that look-ups take; NULL if the name holds a NUL. */
static char *name_of(pd_str s) {
    if (memchr(s.data, 0, s.len)) return NULL;
    char *z = malloc(s.len + 1);
    MUST(z);
    memcpy(z, s.data, s.len);
    z[s.len] = '\0';
    return z;
}

static void check_kv(const pd_gguf *g, const pd_gguf_kv *kv) {
    uint64_t sum = 0;
    if (kv->type == PD_GGUF_STRING) {
        for (size_t i = 0; i < kv->v.s.len; i++) sum += (unsigned char)kv->v.s.data[i];
    } else if (kv->type == PD_GGUF_ARRAY && kv->elem == PD_GGUF_STRING) {
        const pd_str *s = kv->v.array;
        for (size_t i = 0; i < kv->n; i++)
            for (size_t k = 0; k < s[i].len; k++) sum += (unsigned char)s[i].data[k];
    } else if (kv->type == PD_GGUF_ARRAY) {
        for (size_t i = 0; i < kv->n; i++) sum += ((const unsigned char *)kv->v.array)[i];
    }
    MUST(sum < UINT64_MAX);

    char *key = name_of(kv->key);
    if (!key) return;
    MUST(pd_gguf_find(g, key) == kv);
    uint32_t u = 0;
    float f;
    bool b;
    pd_str s;
    pd_err err = {0};
    if (pd_gguf_u32(g, key, 3, 1000, &u, &err) == PD_OK)
        MUST(u >= 3 && u <= 1000);
    else
        check_refusal(err.code, &err);
    if (pd_gguf_f32_or(g, key, -1.0f, 1.0f, 0.0f, &f, NULL) == PD_OK) MUST(f >= -1.0f && f <= 1.0f);
    if (pd_gguf_bool_or(g, key, false, &b, NULL) == PD_OK) MUST(kv->type == PD_GGUF_BOOL);
    if (pd_gguf_str(g, key, &s, NULL) == PD_OK) MUST(s.data == kv->v.s.data);
    free(key);
}

static void check_tensor(const pd_gguf *g, const pd_gguf_tensor *t, size_t file_size) {
    const uint64_t rows = t->ne[1] * t->ne[2] * t->ne[3];
    MUST(t->n_dims >= 1 && t->n_dims <= 4 && rows > 0 && t->ne[0] % t->type->block == 0);
    MUST(t->n_elem == rows * t->ne[0] && t->n_bytes == rows * t->row_bytes);
    MUST(t->n_bytes <= file_size && t->offset <= file_size - t->n_bytes);
    char *name = name_of(t->name);
    if (name) MUST(pd_gguf_tensor_find(g, name) == t);
    free(name);

    const size_t n = (size_t)t->ne[0];
    uint8_t *row = malloc(t->row_bytes), *q = malloc(n);
    float *x = malloc(n * sizeof *x), *d = malloc(n * sizeof *d), *m = malloc(n * sizeof *m);
    MUST(row && q && x && d && m);
    MUST(pd_gguf_read_rows(g, t, rows - 1, 1, row, NULL) == PD_OK);
    MUST(pd_gguf_read_rows(g, t, rows - 1, 2, row, NULL) == PD_EINVAL);
    t->type->dequant(row, x, n);
    if (t->type->split) t->type->split(row, n, q, d, m);
    free(row);
    free(q);
    free(x);
    free(d);
    free(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    pd_gguf *g = NULL;
    pd_err err = {0};
    const pd_status rc = pd__gguf_open_memory(&g, data, size, &err);
    if (rc != PD_OK) {
        MUST(!g);
        check_refusal(rc, &err);
        return 0;
    }
    for (size_t i = 0; i < pd_gguf_n_kv(g); i++) check_kv(g, pd_gguf_kv_at(g, i));
    for (size_t i = 0; i < pd_gguf_n_tensors(g); i++)
        check_tensor(g, pd_gguf_tensor_at(g, i), size);
    pd_gguf_close(g);
    return 0;
}
