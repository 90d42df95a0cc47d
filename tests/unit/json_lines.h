/* SPDX-License-Identifier: Apache-2.0 */
/* Programs that answer each line of JSON on standard input with one on standard output. */
#ifndef PD_TESTS_UNIT_JSON_LINES_H
#define PD_TESTS_UNIT_JSON_LINES_H

#include <jansson.h>

#include <stdio.h>
#include <stdlib.h>

/* The exit status: 2 = a line is no JSON, and standard error says why. */
static inline int answer_lines(void (*answer)(const json_t *in)) {
    char *line = NULL;
    size_t cap = 0;
    int ret = 0;
    while (ret == 0 && getline(&line, &cap, stdin) > 0) {
        json_error_t why;
        json_t *in = json_loads(line, 0, &why);
        if (in) answer(in);
        else ret = 2;
        if (!in) fprintf(stderr, "%s\n", why.text);
        json_decref(in);
    }
    free(line);
    return ret;
}

#endif
