/* SPDX-License-Identifier: Apache-2.0 */
/* make_tiny OUT [llama|gemma3] [f32|f16|q8_0|q4_1] [SEED]: a tiny model for
 * scripts that want a real server without a real model. */
#include "tests/unit/tiny_model.h"

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    tiny_arch arch = TINY_LLAMA;
    tiny_type type = TINY_Q8_0;
    char *end = NULL;
    const unsigned long long seed = argc > 4 ? strtoull(argv[4], &end, 10) : 1;
    if (argc < 2 || argc > 5 || (argc > 2 && !tiny_arch_parse(argv[2], &arch)) ||
        (argc > 3 && !tiny_type_parse(argv[3], &type)) || (end && *end != '\0')) {
        fprintf(stderr, "usage: %s OUT [llama|gemma3] [f32|f16|q8_0|q4_1] [SEED]\n", argv[0]);
        return 2;
    }
    if (!tiny_model_write(argv[1], arch, type, seed)) {
        fprintf(stderr, "%s: cannot write %s\n", argv[0], argv[1]);
        return 1;
    }
    return 0;
}
