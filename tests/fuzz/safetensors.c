/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzz target: the input is a safetensors file.  Whatever the bytes, parsing ends
 * in tensors that keep safetensors.h's promises or in one line of text. */
#include "compression/safetensors.h"

#include "engine/base/utf8.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(cond)                                                                                 \
    do {                                                                                           \
        if (!(cond)) __builtin_trap();                                                             \
    } while (0)

static void check_tensor(const pd_safetensors *f, const pd_st_tensor *t, const uint8_t *data,
                         size_t size) {
    MUST(pd_safetensors_find(f, t->name) == t);
    MUST(pd_utf8_valid(t->name, strlen(t->name)));
    MUST(t->n_dim <= PD_ST_DIMS_MAX);
    MUST(t->data >= data && t->data + t->n_bytes <= data + size);
    MUST(t->n_bytes == t->n_elem * (t->type == PD_ST_F32 ? 4 : 2));
    size_t n = 1;
    for (unsigned i = 0; i < t->n_dim; i++) n *= t->shape[i];
    MUST(n == t->n_elem);
    float *x = malloc(n ? n * sizeof *x : 1);
    MUST(x);
    pd_st_read(t, x);
    free(x);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    pd_safetensors *f = NULL;
    pd_err err = {0};
    const pd_status rc = pd_safetensors_parse(&f, data, size, "input", &err);
    if (rc != PD_OK) {
        MUST(!f && rc == PD_EFILE && err.code == rc && err.msg[0]);
        for (const char *p = err.msg; *p; p++) MUST((unsigned char)*p >= 0x20);
        return 0;
    }
    size_t total = 0;
    for (size_t i = 0; i < pd_safetensors_count(f); i++) {
        check_tensor(f, pd_safetensors_at(f, i), data, size);
        total += pd_safetensors_at(f, i)->n_bytes;
    }
    MUST(total <= size);
    for (size_t i = 0; i < pd_safetensors_meta_count(f); i++) {
        const pd_st_meta *m = pd_safetensors_meta_at(f, i);
        MUST(pd_safetensors_meta(f, m->key) == m->value && pd_utf8_valid(m->value, strlen(m->value)));
    }
    pd_safetensors_close(f);
    return 0;
}
