/* SPDX-License-Identifier: Apache-2.0 */
/* The end of a request's compression wish (see compress.h). */
#include "compression/compress.h"

#include <stdlib.h>

void pd_compression_close(pd_compression *c) {
    if (!c) return;
    pd_press_inst_close(c->press);
    pd_press_inst_close(c->decode);
    free(c);
}
