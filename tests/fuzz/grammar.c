/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzz target: the input up to the first zero byte is a grammar, the rest an answer.
 * Refused with words, or an automaton: what it takes byte by byte it takes at once,
 * and a state that reads nothing more is an end. */
#include "engine/base/utf8.h"
#include "engine/grammar/grammar.h"

#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(cond)                                                                                 \
    do {                                                                                           \
        if (!(cond)) __builtin_trap();                                                             \
    } while (0)

static void answer(pd_grammar *g, const char *s, size_t n) {
    pd_matcher *a, *b;
    pd_err err = {0};
    MUST(pd_matcher_open(&a, g, &err) == PD_OK && pd_matcher_open(&b, g, &err) == PD_OK);
    size_t taken = 0;
    while (taken < n && pd_matcher_take(a, s + taken, 1)) taken++;
    const bool whole = pd_matcher_take(b, s, n);
    if (!pd_matcher_failed(a) && !pd_matcher_failed(b)) {
        MUST(whole == (taken == n));
        if (whole) MUST(pd_matcher_may_end(a) == pd_matcher_may_end(b) && pd_matcher_must_end(a) == pd_matcher_must_end(b));
        bool any = false;
        for (int c = 0; c < 256; c++) any |= pd_matcher_fits(a, &(char){(char)c}, 1);
        MUST(!pd_matcher_must_end(a) || !any);
    }
    MUST(pd_matcher_bytes(a) < (size_t)256 << 20);
    pd_matcher_close(a);
    pd_matcher_close(b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
    const size_t n = zero ? (size_t)(zero - data) : size;
    pd_grammar *g;
    pd_err err = {0};
    if (pd_grammar_parse(&g, (const char *)data, n, "grammar", &err) != PD_OK) {
        MUST(err.msg[0] && pd_utf8_valid(err.msg, strlen(err.msg)));
        return 0;
    }
    if (zero) answer(g, (const char *)zero + 1, size - n - 1);
    pd_grammar_unref(g);
    return 0;
}
