/* SPDX-License-Identifier: Apache-2.0 */
/* A sequence whose tokens are being generated, as a press sees it that prunes all layers at
 * once (pd_press.running).  Heads differ in length; slots are in time order.  Thread: engine. */
#ifndef PD_COMPRESSION_RUNNING_H
#define PD_COMPRESSION_RUNNING_H

#include "compression/press.h"

typedef struct pd_running {
    size_t n_layer, n_head_kv;
    const size_t *n;             /* [n_layer * H] slots; 0 in layers that are not pressed */
    const int32_t *const *pos;   /* [n_layer * H] -> [n] position of each slot */
    const float *const *tag;     /* [n_layer * H] -> [n] */
    const int32_t *next;         /* [n_layer] the next position, as they count in that layer */
    const int32_t (*guard)[2];   /* [n_layer] positions [begin, end) that must stay */
    int32_t added[2];            /* and those in every layer (pd_deferred.added) */
    pd_arena *tmp;               /* scratch; plans live in it */
} pd_running;

#endif
