/* SPDX-License-Identifier: Apache-2.0 */
/* Kept matchers (see matchers.h). */
#include "engine/run/matchers.h"

#include <string.h>

/* The i-th leaves; the order of the others stays. */
static pd_matcher *remove_at(pd_matchers *k, size_t i) {
    pd_matcher *m = k->m[i];
    memmove(&k->m[i], &k->m[i + 1], (--k->n - i) * sizeof k->m[0]);
    return m;
}

pd_status pd_matchers_take(pd_matchers *k, pd_grammar *g, pd_matcher **ret, pd_err *err) {
    for (size_t i = k->n; i-- > 0;) {
        if (!pd_grammar_same(pd_matcher_grammar(k->m[i]), g)) continue;
        pd_matcher *m = remove_at(k, i);
        if (pd_matcher_restart(m)) {
            *ret = m;
            return PD_OK;
        }
        pd_matcher_close(m);
    }
    return pd_matcher_open(ret, g, err);
}

void pd_matchers_give(pd_matchers *k, pd_matcher *m) {
    const size_t bytes = pd_matcher_bytes(m);
    if (pd_matcher_failed(m) || bytes > PD_MATCHERS_BYTES) {
        pd_matcher_close(m);
        return;
    }
    while (k->n == PD_MATCHERS_COUNT || (k->n && pd_matchers_bytes(k) + bytes > PD_MATCHERS_BYTES)) pd_matcher_close(remove_at(k, 0));
    k->m[k->n++] = m;
}

void pd_matchers_done(pd_matchers *k) {
    for (size_t i = 0; i < k->n; i++) pd_matcher_close(k->m[i]);
    *k = (pd_matchers){0};
}

size_t pd_matchers_bytes(const pd_matchers *k) {
    size_t n = 0;
    for (size_t i = 0; i < k->n; i++) n += pd_matcher_bytes(k->m[i]);
    return n;
}
