/* SPDX-License-Identifier: Apache-2.0 */
/* What it costs to store the cache in fewer bits, on a real model.
 *
 *     golden_kv_types MODEL TEXT...
 *
 * Of each text 1,536 tokens are read and 512 more are forced (forced.h), in each kind of
 * cache; compared with the native one: f32 with PRESSD_KV_COMPUTE=f32, else f16, where
 * the integer arithmetic of the layers alone moves it by about 0.006.  Prints CSV (mean
 * and 99th percentile of KL(native || type) in nats, how often the likeliest token is the
 * same, bytes over the native bytes) and judges the means.  Ends in `N passed, N failed`.
 * About a minute a text on one core. */
#include "tests/golden/forced.h"

#include <stdio.h>

enum { CONTEXT = 1536, FORCED = 512, KINDS = 5 };

static const forced_kind kinds[KINDS] = {
    {.name = "native"},
    {.name = "q8_0", .key = PD_KV_Q8_0, .value = PD_KV_Q8_0, .limit = 1e-3},
    /* SmolLM2's small heads ask much of keys in 4 bits: 0.02 to 0.1 by the text; values take them better. */
    {.name = "q4", .key = PD_KV_Q4, .value = PD_KV_Q4, .limit = 0.15},
    {.name = "q8_0/q4", .key = PD_KV_Q8_0, .value = PD_KV_Q4, .limit = 0.02},
    {.name = "q4/q8_0", .key = PD_KV_Q4, .value = PD_KV_Q8_0, .limit = 0.15},
};

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: golden_kv_types MODEL TEXT...\n");
        return 2;
    }
    pd_engine *e = forced_open(argv[1], CONTEXT, FORCED, KINDS);
    int passed = 0, failed = 0;
    printf("text,kv_type,kl_mean,kl_p99,same_top,bytes\n");
    for (int i = 2; i < argc; i++) {
        forced_result r[KINDS];
        forced_run(e, argv[i], CONTEXT, FORCED, kinds, KINDS, r);
        for (int k = 1; k < KINDS; k++) {
            const bool good = r[k].kl_mean <= kinds[k].limit;
            printf("%s,%s,%.6f,%.6f,%.3f,%.4f%s\n", argv[i], kinds[k].name, r[k].kl_mean, r[k].kl_p99, r[k].same_top,
                   (double)r[k].bytes / (double)r[0].bytes, good ? "" : ",above the limit");
            fflush(stdout);
            *(good ? &passed : &failed) += 1;
        }
    }
    pd_engine_close(e);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
