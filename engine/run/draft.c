/* SPDX-License-Identifier: Apache-2.0 */
/* Prompt look-up (see draft.h). */
#include "engine/run/draft.h"

#include "engine/base/num.h"

#include <stdlib.h>
#include <string.h>

enum {
    NGRAM_MAX = 4, NGRAM_MIN = 2, /* tokens that have to agree */
    LEN_FIRST = 3,
    PAUSE_FIRST = 16, PAUSE_MAX = 1024, /* steps */
};

static const double FADE = 0.75; /* of the drafted steps' sums, per step */

pd_status pd_draft_init(pd_draft *d, const int32_t *prompt, size_t n, size_t more, size_t most, pd_err *err) {
    *d = (pd_draft){.n = n, .cap = n + more, .most = most, .len = pd_min_size(LEN_FIRST, most), .back_off = PAUSE_FIRST};
    d->text = malloc(d->cap * sizeof *d->text);
    if (!d->text) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a text of %zu tokens", d->cap);
    memcpy(d->text, prompt, n * sizeof *prompt);
    return PD_OK;
}

void pd_draft_done(pd_draft *d) {
    free(d->text);
    *d = (pd_draft){0};
}

void pd_draft_note(pd_draft *d, int32_t id) {
    if (d->text && d->n < d->cap) d->text[d->n++] = id;
}

/* Where the text went on after its last tokens came before: the longest agreement
 * counts, then the latest.  0: they are new. */
static size_t look_up(const pd_draft *d) {
    const int32_t *text = d->text, last = text[d->n - 1];
    size_t best = 0, most = NGRAM_MIN - 1;
    for (size_t i = d->n - 1; i-- > 0 && most < NGRAM_MAX;) {
        if (text[i] != last) continue;
        size_t len = 1;
        while (len < NGRAM_MAX && len <= i && text[i - len] == text[d->n - 1 - len]) len++;
        if (len <= most) continue;
        most = len;
        best = i + 1;
    }
    return best;
}

size_t pd_draft_propose(pd_draft *d, size_t room, int32_t ret[PD_DRAFT_MAX]) {
    if (!d->text || room == 0 || d->plain_ns == 0.0) return 0;
    if (d->pause) {
        d->pause--;
        return 0;
    }
    const size_t at = look_up(d);
    if (at == 0) return 0;
    const size_t n = pd_min_size(pd_min_size(d->len, room), d->n - at);
    memcpy(ret, d->text + at, n * sizeof *ret);
    return n;
}

void pd_draft_learn(pd_draft *d, size_t n, size_t taken, double ns) {
    if (n == 0) { /* slow to believe in longer steps: one that lost its processor says little */
        d->plain_ns += d->plain_ns == 0.0 ? ns : (ns - d->plain_ns) / (ns < d->plain_ns ? 2.0 : 16.0);
        return;
    }
    d->ns = d->ns * FADE + ns;
    d->tokens = d->tokens * FADE + 1.0 + (double)taken;
    d->len = taken == n ? pd_min_size(2 * d->len, d->most) : pd_max_size(taken + 1, 1);
    if (d->len > d->most) d->len = d->most;
    if (d->ns <= d->plain_ns * d->tokens) {
        d->back_off = PAUSE_FIRST;
        return;
    }
    d->pause = d->back_off;
    d->back_off = pd_min_size(2 * d->back_off, PAUSE_MAX);
    d->len = pd_min_size(LEN_FIRST, d->most);
    d->ns = d->tokens = 0.0;
}
