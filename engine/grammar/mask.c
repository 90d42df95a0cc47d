/* SPDX-License-Identifier: Apache-2.0 */
/* The vocabulary as a tree of bytes, and the tokens that fit: one walk, which a
 * state that refuses a byte cuts short.  A walk that looked at n bytes of the longest
 * token is right for every state that reads n bytes in the same way, so the mask is
 * kept for all of these: in the middle of [a-z]{1,500} one mask serves.  A few tokens
 * are far longer than the rest (runs of blanks): they are no part of what is kept. */
#include "engine/base/num.h"
#include "engine/grammar/internal.h"

#include <stdlib.h>
#include <string.h>

enum {
    BYTES_MAX = 255, /* a longer token is never allowed */
    SHORT_MAX = 16,  /* most tokens; the few long ones are looked at anew for each state */
};

typedef struct {
    uint32_t end;  /* behind the subtree, in preorder */
    int32_t token; /* first that ends here, -1 = none */
    uint8_t byte, depth;
} tree_node;

typedef struct {
    tree_node *node;
    size_t n_node;
} subtree;

struct pd_token_tree {
    subtree brief, lengthy; /* tokens of at most SHORT_MAX bytes; the others */
    size_t words;
    uint64_t *is_brief; /* [words] */
    int32_t *same;      /* [n_vocab] the next token of the same bytes, -1 = none */
    int32_t *end;       /* [n_end] */
    size_t n_end;
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

/* Sorted pieces to nodes in preorder; false: no memory. */
static bool grow_tree(subtree *t, int32_t *same, const piece *p, size_t n) {
    uint32_t open[BYTES_MAX + 1];
    size_t depth = 0, nodes = 0;
    for (size_t i = 0; i < n; i++) nodes += p[i].len - (i ? common(&p[i - 1], &p[i]) : 0);
    t->node = malloc((nodes + 1) * sizeof *t->node);
    if (!t->node) return false;
    for (size_t i = 0; i < n; i++) {
        const size_t keep = i ? common(&p[i - 1], &p[i]) : 0;
        for (; depth > keep; depth--) t->node[open[depth]].end = (uint32_t)t->n_node;
        for (; depth < p[i].len; depth++) {
            open[depth + 1] = (uint32_t)t->n_node;
            t->node[t->n_node++] = (tree_node){0, -1, (uint8_t)p[i].s[depth], (uint8_t)(depth + 1)};
        }
        tree_node *last = &t->node[open[depth]];
        same[p[i].id] = last->token;
        last->token = p[i].id;
    }
    for (; depth > 0; depth--) t->node[open[depth]].end = (uint32_t)t->n_node;
    return true;
}

pd_status pd_token_tree_open(pd_token_tree **ret, const pd_tokenizer *tok, pd_err *err) {
    const size_t n_vocab = pd_tokenizer_get_info(tok)->n_vocab;
    pd_token_tree *t = calloc(1, sizeof *t);
    piece *p = malloc(n_vocab * sizeof *p); /* short ones from the front, long ones from the back */
    size_t n = 0, n_long = 0;
    if (t) {
        t->words = (n_vocab + 63) / 64;
        t->same = malloc(n_vocab * sizeof *t->same);
        t->is_brief = calloc(t->words, sizeof *t->is_brief);
    }
    bool ok = t && p && t->same && t->is_brief;
    for (size_t i = 0; ok && i < n_vocab; i++) t->n_end += pd_token_is_eog(tok, (int32_t)i);
    if (ok) t->end = malloc((t->n_end + 1) * sizeof *t->end);
    ok = ok && t->end;
    for (size_t i = 0, k = 0; ok && i < n_vocab; i++)
        if (pd_token_is_eog(tok, (int32_t)i)) t->end[k++] = (int32_t)i;
    for (size_t i = 0; ok && i < n_vocab; i++) {
        const pd_str s = pd_token_bytes(tok, (int32_t)i, false);
        if (s.len == 0 || s.len > BYTES_MAX || pd_token_is_eog(tok, (int32_t)i)) continue;
        const bool brief = s.len <= SHORT_MAX;
        p[brief ? n++ : n_vocab - ++n_long] = (piece){s.data, (uint32_t)s.len, (int32_t)i};
        if (brief) t->is_brief[i >> 6] |= 1ull << (i & 63);
    }
    if (ok && n) qsort(p, n, sizeof *p, by_bytes);
    if (ok && n_long) qsort(p + n_vocab - n_long, n_long, sizeof *p, by_bytes);
    ok = ok && grow_tree(&t->brief, t->same, p, n) && grow_tree(&t->lengthy, t->same, p + n_vocab - n_long, n_long);
    free(p);
    if (ok) *ret = t;
    else pd_token_tree_close(t);
    return ok ? PD_OK : pd_fail(err, PD_ENOMEM, NULL, "no memory for the vocabulary's tree");
}

void pd_token_tree_close(pd_token_tree *t) {
    if (!t) return;
    free(t->brief.node);
    free(t->lengthy.node);
    free(t->is_brief);
    free(t->same);
    free(t->end);
    free(t);
}

/* Bits of the tokens of `t` that fit; how many bytes of any token had to be looked at. */
static size_t walk(pd_matcher *m, const pd_token_tree *all, const subtree *t, int32_t from, bool skip_space, uint64_t *mask) {
    size_t reach = 0;
    int32_t at[BYTES_MAX + 1];
    const uint16_t *to = pd__matcher_steps(m); /* moves where a step finds a state */
    at[0] = from;
    for (size_t i = 0; i < t->n_node;) {
        const tree_node *n = &t->node[i];
        const bool skipped = skip_space && n->depth == 1 && n->byte == ' ';
        int32_t s = at[0];
        if (!skipped) {
            const size_t cell = (size_t)at[n->depth - 1] * 256 + n->byte;
            s = to[cell];
            if (s >= PD__NOWHERE) {
                s = pd__matcher_step(m, at[n->depth - 1], n->byte);
                to = pd__matcher_steps(m);
            }
        }
        if (n->depth > reach) reach = n->depth;
        if (s == PD__DEAD) {
            i = n->end;
            continue;
        }
        at[n->depth] = s;
        for (int32_t id = skipped ? -1 : n->token; id >= 0; id = all->same[id]) mask[id >> 6] |= 1ull << (id & 63);
        i++;
    }
    return reach;
}

const uint64_t *pd_matcher_mask(pd_matcher *m, const pd_token_tree *t, bool skip_space) {
    if (pd_matcher_failed(m)) return NULL;
    for (bool tried = false;; tried = true) {
        pd__matcher_begin(m);
        const int32_t from = pd__matcher_whole(m, BYTES_MAX);
        uint64_t *mask = skip_space ? NULL : pd__matcher_mask_find(m);
        if (mask) {
            for (size_t i = 0; i < t->words; i++) mask[i] &= t->is_brief[i];
        } else {
            mask = pd__matcher_mask_room(m, t->words);
            if (!mask) return NULL;
            const size_t reach = walk(m, t, &t->brief, from, skip_space, mask);
            if (!skip_space) pd__matcher_mask_keep(m, mask, reach);
        }
        walk(m, t, &t->lengthy, from, skip_space, mask);
        const bool again = pd__matcher_again(m, tried); /* which forgets the masks too */
        if (pd_matcher_failed(m)) return NULL;
        if (!again) return mask;
    }
}

size_t pd_token_tree_bytes(const pd_token_tree *t) {
    return sizeof *t + (t->brief.n_node + t->lengthy.n_node) * sizeof *t->brief.node + t->words * (64 * sizeof *t->same + sizeof *t->is_brief);
}

size_t pd_token_tree_words(const pd_token_tree *t) {
    return t->words;
}

const int32_t *pd_token_tree_ends(const pd_token_tree *t, size_t *n) {
    *n = t->n_end;
    return t->end;
}
