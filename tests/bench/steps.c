/* SPDX-License-Identifier: Apache-2.0 */
/* What a decode step takes under presses that change how the cache is read.
 *
 *     bench_steps MODEL DATA TEXT CONTEXT[,CONTEXT...] ROUNDS STEPS PRESS...
 *
 * Behind the first CONTEXT tokens of TEXT each PRESS (text form; "none" for none) takes STEPS steps in its turn, ROUNDS
 * times.  DATA: a file of press data, or "-".  Prints CSV: context, press, the median of the rounds in milliseconds
 * a step, and what the first press took of it.  PRESSD_KV_THREADS says how many threads. */
#include "tests/golden/forced.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KINDS = 16, CONTEXTS = 16 };

int main(int argc, char **argv) {
    const size_t n_kind = argc > 7 ? (size_t)argc - 7 : 0;
    if (n_kind == 0 || n_kind > KINDS) {
        fprintf(stderr, "usage: bench_steps MODEL DATA TEXT CONTEXT[,CONTEXT...] ROUNDS STEPS PRESS...\n");
        return 2;
    }
    const size_t rounds = strtoul(argv[5], NULL, 10), steps = strtoul(argv[6], NULL, 10);
    size_t context[CONTEXTS], n = 0, most = 0;
    for (char *word = argv[4], *end; *word && n < CONTEXTS; word = *end == ',' ? end + 1 : end) {
        context[n] = strtoul(word, &end, 10);
        if (end == word) {
            fprintf(stderr, "CONTEXT is a list of numbers, not %s\n", argv[4]);
            return 2;
        }
        most = context[n] > most ? context[n] : most;
        n++;
    }
    forced_kind kind[KINDS] = {0};
    for (size_t k = 0; k < n_kind; k++)
        kind[k] = (forced_kind){.name = argv[7 + k], .press = strcmp(argv[7 + k], "none") == 0 ? NULL : argv[7 + k]};
    pd_engine *e = forced_open(argv[1], strcmp(argv[2], "-") == 0 ? NULL : argv[2], most, rounds * steps, n_kind);
    printf("context,press,ms,speed\n");
    for (size_t i = 0; i < n; i++) {
        double ms[KINDS];
        forced_time(e, argv[3], context[i], rounds, steps, kind, n_kind, ms);
        for (size_t k = 0; k < n_kind; k++) printf("%zu,%s,%.3f,%.3f\n", context[i], kind[k].name, ms[k], ms[0] / ms[k]);
        fflush(stdout);
    }
    pd_engine_close(e);
    return 0;
}
