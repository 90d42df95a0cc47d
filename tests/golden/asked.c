/* SPDX-License-Identifier: Apache-2.0 */
/* What presses cost in generated tokens, on a real model: forced.h for any list of them.
 *
 *     golden_asked MODEL DATA|- CONTEXT FORCED TEXT PRESS...
 *
 * Of the text CONTEXT tokens are read and FORCED more are forced, by one sequence for each PRESS (its text, `@ratio`
 * and `+key/value` types of the cache behind it: `sals+f16/q4`) and by a dense one.  Prints a table with tabs (names hold commas): mean and 99th
 * percentile of KL(dense || press) in nats, how often the likeliest token is the same, shares of keys and values read,
 * bytes at the end over the dense bytes.  Judges nothing (quality.py draws the table); ends with 1 at a press that cannot
 * run.  A minute or two for 2,048 tokens and a dozen presses on one core. */
#include "tests/golden/forced.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KINDS_MAX = 32, TEXT_MAX = 512 };

static int usage(const char *why, const char *what) {
    fprintf(stderr, "%s%s\nusage: golden_asked MODEL DATA|- CONTEXT FORCED TEXT PRESS[@RATIO][+KEY/VALUE]... (at most %d)\n", why, what,
            KINDS_MAX - 1);
    return 2;
}

/* `text` becomes the press alone, which the kind borrows. */
static bool read_kind(char *text, forced_kind *kind) {
    char *types = strrchr(text, '+'), *ratio, *end;
    if (types) {
        char *value = strchr(types, '/');
        *types++ = '\0';
        if (!value) return false;
        *value++ = '\0';
        if (!pd_kv_type_parse(types, &kind->key) || !pd_kv_type_parse(value, &kind->value)) return false;
    }
    ratio = strrchr(text, '@');
    if (ratio && !strchr(ratio, ')')) {
        *ratio++ = '\0';
        kind->ratio = strtod(ratio, &end);
        if (*end || !(kind->ratio >= 0.0 && kind->ratio < 1.0)) return false;
    }
    kind->press = *text ? text : NULL;
    return true;
}

int main(int argc, char **argv) {
    if (argc < 7 || argc > 5 + KINDS_MAX) return usage("a list of presses is needed", "");
    forced_kind kind[KINDS_MAX] = {{.name = "dense"}};
    char text[KINDS_MAX][TEXT_MAX];
    const size_t n = (size_t)argc - 5;
    for (size_t k = 1; k < n; k++) {
        const char *arg = argv[5 + k];
        if (strlen(arg) >= TEXT_MAX) return usage("too long: ", arg);
        memcpy(text[k], arg, strlen(arg) + 1);
        kind[k].name = arg;
        if (!read_kind(text[k], &kind[k])) return usage("no press, ratio and types: ", arg);
    }
    const long context = strtol(argv[3], NULL, 10), forced = strtol(argv[4], NULL, 10);
    if (context < 1 || forced < 1) return usage("CONTEXT and FORCED are numbers of tokens from 1 on, not ", context < 1 ? argv[3] : argv[4]);
    pd_engine *e = forced_open(argv[1], strcmp(argv[2], "-") ? argv[2] : NULL, (size_t)context, (size_t)forced, n);
    forced_result r[KINDS_MAX];
    forced_run(e, argv[5], (size_t)context, (size_t)forced, kind, n, r);
    printf("press\tkl_mean\tkl_p99\tsame_top\tkey_share\tvalue_share\tbytes\n");
    for (size_t k = 1; k < n; k++) {
        const double rows = (double)r[k].rows;
        printf("%s\t%.6f\t%.6f\t%.4f\t%.5f\t%.5f\t%.5f\n", kind[k].name, r[k].kl_mean, r[k].kl_p99, r[k].same_top,
               r[k].rows ? (double)r[k].rows_key / rows : 1.0, r[k].rows ? (double)r[k].rows_value / rows : 1.0,
               (double)r[k].bytes / (double)r[0].bytes);
    }
    pd_engine_close(e);
    return 0;
}
