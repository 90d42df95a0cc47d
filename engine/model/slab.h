/* SPDX-License-Identifier: Apache-2.0 */
/* Memory for the weights of one model: many blocks, taken once, freed together.
 *
 * Small matrices lie side by side in large chunks, so that all of them get huge pages
 * where the system gives any: a decode step reads every weight once, and with pages of
 * 4 KiB the walks of their tables cost it as much as a tenth of its time.
 * Cost: what is left at the end of a chunk, address space alone but for part of a huge page.
 * Thread: one at a time. */
#ifndef PD_ENGINE_MODEL_SLAB_H
#define PD_ENGINE_MODEL_SLAB_H

#include <stddef.h>
#include <stdint.h>

typedef struct pd_slab_chunk pd_slab_chunk;

typedef struct pd_slab {
    pd_slab_chunk *chunk; /* the newest; all-zero: none */
} pd_slab;

/* `bytes` of memory, 64-byte aligned, as it comes (zeros); NULL: there is none. */
uint8_t *pd_slab_take(pd_slab *s, size_t bytes);
void pd_slab_done(pd_slab *s); /* all-zero is fine */

#endif
