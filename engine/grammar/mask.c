/* SPDX-License-Identifier: Apache-2.0 */
/* The vocabulary as a tree of bytes, and the tokens that fit: one walk, which a
 * state that refuses a byte cuts short. */
#include "engine/base/num.h"
#include "engine/grammar/internal.h"

#include <stdlib.h>
#include <string.h>

enum { BYTES_MAX = 255 }; /* a longer token is never allowed */

typedef struct {
    uint32_t end;  /* behind the subtree, in preorder */
    int32_t token; /* first that ends here, -1 = none */
    uint8_t byte, depth;
} tree_node;

struct pd_token_tree {
    tree_node *node;
    size_t n_node, words;
    int32_t *same; /* [n_vocab] the next token of the same bytes, -1 = none */
};

typedef struct {
    const char *s;
    uint32_t len;
    int32_t id;
} piece;

static int by_bytes(const void *a, const void *b) {
    const piece *x = a, *y = b;
    const int c = memcmp(x->s, y->s, pd_min_size(x->len, y->len));
    if (c) return c;
    if (x->len != y->len) return x->len < y->len ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static size_t common(const piece *a, const piece *b) {
    const size_t n = pd_min_size(a->len, b->len);
    size_t i = 0;
    while (i < n && a->s[i] == b->s[i]) i++;
    return i;
}

/* Sorted pieces to nodes in preorder. */
static void grow_tree(pd_token_tree *t, const piece *p, size_t n) {
    uint32_t open[BYTES_MAX + 1];
    size_t depth = 0;
    for (size_t i = 0; i < n; i++) {
        const size_t keep = i ? common(&p[i - 1], &p[i]) : 0;
        for (; depth > keep; depth--) t->node[open[depth]].end = (uint32_t)t->n_node;
        for (; depth < p[i].len; depth++) {
            open[depth + 1] = (uint32_t)t->n_node;
            t->node[t->n_node++] = (tree_node){0, -1, (uint8_t)p[i].s[depth], (uint8_t)(depth + 1)};
        }
        tree_node *last = &t->node[open[depth]];
        t->same[p[i].id] = last->token;
        last->token = p[i].id;
    }
    for (; depth > 0; depth--) t->node[open[depth]].end = (uint32_t)t->n_node;
}

pd_status pd_token_tree_open(pd_token_tree **ret, const pd_tokenizer *tok, pd_err *err) {
    const size_t n_vocab = pd_tokenizer_get_info(tok)->n_vocab;
    pd_token_tree *t = calloc(1, sizeof *t);
    piece *p = malloc(n_vocab * sizeof *p);
    size_t n = 0, nodes = 0;
    if (t) t->same = malloc(n_vocab * sizeof *t->same);
    for (size_t i = 0; p && i < n_vocab; i++) {
        const pd_str s = pd_token_bytes(tok, (int32_t)i, false);
        if (s.len == 0 || s.len > BYTES_MAX || pd_token_is_eog(tok, (int32_t)i)) continue;
        p[n++] = (piece){s.data, (uint32_t)s.len, (int32_t)i};
    }
    if (p) qsort(p, n, sizeof *p, by_bytes);
    for (size_t i = 0; p && i < n; i++) nodes += p[i].len - (i ? common(&p[i - 1], &p[i]) : 0);
    if (t) t->node = malloc((nodes + 1) * sizeof *t->node);
    const bool ok = t && p && t->same && t->node;
    if (ok) {
        t->words = (n_vocab + 63) / 64;
        grow_tree(t, p, n);
        *ret = t;
    } else {
        pd_token_tree_close(t);
    }
    free(p);
    return ok ? PD_OK : pd_fail(err, PD_ENOMEM, NULL, "no memory for the vocabulary's tree");
}

void pd_token_tree_close(pd_token_tree *t) {
    if (!t) return;
    free(t->node);
    free(t->same);
    free(t);
}

static void walk(pd_matcher *m, const pd_token_tree *t, bool skip_space, uint64_t *mask) {
    memset(mask, 0, t->words * sizeof *mask);
    int32_t at[BYTES_MAX + 1];
    at[0] = pd__matcher_state(m);
    for (size_t i = 0; i < t->n_node;) {
        const tree_node *n = &t->node[i];
        const bool skipped = skip_space && n->depth == 1 && n->byte == ' ';
        const int32_t s = skipped ? at[0] : pd__matcher_step(m, at[n->depth - 1], n->byte);
        if (s == PD__DEAD) {
            i = n->end;
            continue;
        }
        at[n->depth] = s;
        for (int32_t id = skipped ? -1 : n->token; id >= 0; id = t->same[id]) mask[id >> 6] |= 1ull << (id & 63);
        i++;
    }
}

const uint64_t *pd_matcher_mask(pd_matcher *m, const pd_token_tree *t, bool skip_space) {
    if (pd_matcher_failed(m)) return NULL;
    for (bool tried = false;; tried = true) {
        bool ready;
        uint64_t *mask = pd__matcher_mask_room(m, t->words, !skip_space, &ready);
        if (!mask || ready) return mask;
        pd__matcher_begin(m);
        walk(m, t, skip_space, mask);
        const bool again = pd__matcher_again(m, tried);
        if (pd_matcher_failed(m)) return NULL;
        if (!again) return mask;
    }
}

size_t pd_token_tree_bytes(const pd_token_tree *t) {
    return sizeof *t + t->n_node * sizeof *t->node + t->words * 64 * sizeof *t->same;
}
