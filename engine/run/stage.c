/* SPDX-License-Identifier: Apache-2.0 */
/* The staging layer (see stage.h). */
#include "engine/run/stage.h"

#include "engine/base/num.h"

#include <sys/mman.h>

pd_status pd_stage_open(pd_stage *s, size_t n_head_kv, size_t head_dim, size_t cap, pd_err *err) {
    const size_t kv = (size_t)pd_stage_bytes(n_head_kv, head_dim, cap);
    const size_t pos = n_head_kv * cap * sizeof(int32_t), prior = n_head_kv * sizeof(size_t);
    const size_t total = kv + (pos + 63) / 64 * 64 + prior;
    void *map = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for a dense layer of %zu tokens (%zu bytes)", cap, total);
    (void)madvise(map, total, MADV_DONTDUMP);
    char *p = map;
    *s = (pd_stage){.n_head_kv = n_head_kv, .head_dim = head_dim, .cap = cap, .bytes = kv, .map = map, .map_bytes = total};
    s->k = (float *)(void *)p;
    s->v = s->k + kv / 2 / sizeof(float);
    s->pos = (int32_t *)(void *)(p + kv);
    s->n_prior = (size_t *)(void *)(p + kv + (pos + 63) / 64 * 64);
    return PD_OK;
}

void pd_stage_close(pd_stage *s) {
    if (s->map) munmap(s->map, s->map_bytes);
    *s = (pd_stage){0};
}
