/* SPDX-License-Identifier: Apache-2.0 */
/* See against_ref.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/against_ref.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The largest difference of log probabilities over what the answer reports. */
static double distance(const answer *a, const double *lp, size_t n_vocab) {
    double most = 0.0;
    for (size_t i = 0; i < a->n; i++) {
        assert_int_equal(a->n_top[i], 100);
        most = fmax(most, fabs(a->logprob[i] - lp[i * n_vocab + (size_t)a->id[i]]));
        for (size_t j = 0; j < a->n_top[i]; j++) {
            most = fmax(most, fabs(a->top[i][j].logprob - lp[i * n_vocab + (size_t)a->top[i][j].id]));
            if (j) assert_true(a->top[i][j].logprob <= a->top[i][j - 1].logprob);
        }
    }
    return most;
}

double against_reference(const ref_model *m, const ask *q, const answer *a, ref_sees sees, const void *arg) {
    int32_t *all = malloc((q->n + a->n) * sizeof *all);
    memcpy(all, q->tokens, q->n * sizeof *all);
    memcpy(all + q->n, a->id, a->n * sizeof *all);
    double *lp = ref_logprobs(m, all, q->n + a->n - 1, q->n - 1, sees, arg);
    const double most = distance(a, lp, ref_n_vocab(m));
    free(lp);
    free(all);
    return most;
}
