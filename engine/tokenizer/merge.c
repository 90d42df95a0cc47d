/* SPDX-License-Identifier: Apache-2.0 */
/* Merging: one word's symbols are joined pair by pair, best pair first and the
 * leftmost among equals, until no rule fits.
 *
 * Both kinds of vocabulary share this: byte-level BPE looks a pair up in its
 * merge rules, SentencePiece BPE asks whether the joined text is a piece and
 * how it scores.  Short words (almost all) scan their pairs; long ones keep a
 * heap over a linked list, so a megabyte without a break costs n log n. */
#include "engine/tokenizer/vocab.h"

#include "engine/base/num.h"

#include <stdlib.h>
#include <string.h>

#define SHORT_MAX 32 /* symbols; measured: the scan wins up to about here */
#define NONE UINT32_MAX

typedef struct {
    uint32_t prev, next; /* NONE at the ends */
    uint32_t off, len;   /* bytes of the word; len 0 = absorbed by a left neighbour */
    int32_t id;          /* -1: no piece */
    int32_t pair_id;     /* long words: what it becomes with `next`, -1: nothing */
    uint32_t pair_rank;
} symbol;

void pd__merge_scratch_done(pd__merge_scratch *s) {
    free(s->sym);
    free(s->heap);
    *s = (pd__merge_scratch){0};
}

/* What two neighbours become; false if nothing. */
static bool join(const pd_tokenizer *t, const char *s, const symbol *a, const symbol *b, uint32_t *rank, int32_t *id) {
    if (t->spm) {
        const int32_t found = pd__text_find(t, s + a->off, (size_t)a->len + b->len);
        if (found < 0 || !pd__type_mergeable(t->piece[found].type)) return false;
        *rank = t->rank[found];
        *id = found;
        return true;
    }
    const pd__pair *p = pd__pair_find(t, a->id, b->id);
    if (!p) return false;
    *rank = p->rank;
    *id = p->id;
    return true;
}

static size_t symbol_len(const pd_tokenizer *t, const char *s, size_t n) {
    if (!t->spm) return 1;
    /* By the lead byte alone, as SentencePiece's own code and llama.cpp do: in
     * broken UTF-8 a lead byte takes what follows with it. */
    static const unsigned char by_high_nibble[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4};
    return pd_min_size(by_high_nibble[(unsigned char)s[0] >> 4], n);
}

static int32_t symbol_id(const pd_tokenizer *t, const char *s, size_t n) {
    if (!t->spm) return t->byte_id[(unsigned char)s[0]];
    const int32_t id = pd__text_find(t, s, n);
    return id >= 0 && pd__type_mergeable(t->piece[id].type) ? id : -1;
}

/* A symbol as ids.  One that is no piece falls back to its bytes; a byte that
 * the vocabulary cannot say at all is left out, as the reference tokenizers do. */
static pd_status emit(const pd_tokenizer *t, const char *s, const symbol *y, pd_ids *out, pd_err *err) {
    if (y->id >= 0) return pd_ids_push(out, y->id, err);
    for (uint32_t i = 0; i < y->len; i++) {
        const int32_t id = t->byte_id[(unsigned char)s[y->off + i]];
        if (id >= 0) PD_TRY(pd_ids_push(out, id, err));
    }
    return PD_OK;
}

static pd_status merge_short(const pd_tokenizer *t, const char *s, symbol *y, uint32_t n, pd_ids *out, pd_err *err) {
    struct {
        uint32_t rank;
        int32_t id;
    } pair[SHORT_MAX]; /* pair[i]: y[i] with y[i + 1]; id -1 = none */
    for (uint32_t i = 0; i + 1 < n; i++) {
        if (!join(t, s, &y[i], &y[i + 1], &pair[i].rank, &pair[i].id)) pair[i].id = -1;
    }
    for (;;) {
        uint32_t best = NONE;
        for (uint32_t i = 0; i + 1 < n; i++) {
            if (pair[i].id >= 0 && (best == NONE || pair[i].rank < pair[best].rank)) best = i;
        }
        if (best == NONE) break;
        y[best].len += y[best + 1].len;
        y[best].id = pair[best].id;
        n--;
        for (uint32_t i = best + 1; i < n; i++) y[i] = y[i + 1];
        for (uint32_t i = best + 1; i + 1 < n; i++) pair[i] = pair[i + 1];
        if (best > 0 && !join(t, s, &y[best - 1], &y[best], &pair[best - 1].rank, &pair[best - 1].id))
            pair[best - 1].id = -1;
        if (best + 1 < n && !join(t, s, &y[best], &y[best + 1], &pair[best].rank, &pair[best].id))
            pair[best].id = -1;
    }
    for (uint32_t i = 0; i < n; i++) PD_TRY(emit(t, s, &y[i], out, err));
    return PD_OK;
}

/* A 4-ary heap of keys, least first: rank, then position. */
static uint64_t key_of(uint32_t rank, uint32_t left) {
    return (uint64_t)rank << 32 | left;
}

static void heap_push(uint64_t *h, size_t *n, uint64_t key) {
    size_t i = (*n)++;
    while (i > 0 && key < h[(i - 1) / 4]) {
        h[i] = h[(i - 1) / 4];
        i = (i - 1) / 4;
    }
    h[i] = key;
}

static uint64_t heap_pop(uint64_t *h, size_t *n) {
    const uint64_t top = h[0], last = h[--*n];
    size_t i = 0;
    for (size_t kid; (kid = 4 * i + 1) < *n; ) {
        size_t least = kid;
        const size_t end = pd_min_size(kid + 4, *n);
        while (++kid < end) {
            if (h[kid] < h[least]) least = kid;
        }
        if (last <= h[least]) break;
        h[i] = h[least];
        i = least;
    }
    h[i] = last;
    return top;
}

static pd_status grow(void **p, size_t *cap, size_t n, size_t size, pd_err *err) {
    if (n <= *cap) return PD_OK;
    size_t bytes;
    void *q = pd_mul_size(n, size, &bytes) ? realloc(*p, bytes) : NULL;
    if (!q) return pd_fail(err, PD_ENOMEM, NULL, "no memory to tokenize a word of %zu symbols", n);
    *p = q;
    *cap = n;
    return PD_OK;
}

typedef struct {
    const pd_tokenizer *t;
    const char *s;
    symbol *y;
    uint64_t *heap;
    size_t n_heap;
} long_word;

/* What y[i] would now become with its right neighbour, noted there and queued. */
static void note_pair(long_word *w, uint32_t i) {
    symbol *a = &w->y[i];
    a->pair_id = -1;
    if (a->next == NONE || !join(w->t, w->s, a, &w->y[a->next], &a->pair_rank, &a->pair_id)) return;
    heap_push(w->heap, &w->n_heap, key_of(a->pair_rank, i));
}

/* A key is stale once its symbol is gone or its pair has another rank; a symbol
 * has one pair at a time, so a key that fits always means the present one.
 * The heap holds n - 1 keys at first, and each merge takes one out and adds at
 * most two: 2n always suffices. */
static pd_status merge_long(const pd_tokenizer *t, pd__merge_scratch *scr, const char *s, uint32_t n, pd_ids *out,
                            pd_err *err) {
    PD_TRY(grow(&scr->heap, &scr->cap_heap, (size_t)2 * n, sizeof(uint64_t), err));
    long_word w = {t, s, scr->sym, scr->heap, 0};
    symbol *y = w.y;
    for (uint32_t i = 0; i < n; i++) note_pair(&w, i);
    while (w.n_heap > 0) {
        const uint64_t key = heap_pop(w.heap, &w.n_heap);
        const uint32_t left = (uint32_t)key;
        symbol *a = &y[left];
        if (a->len == 0 || a->pair_id < 0 || a->pair_rank != key >> 32) continue;
        symbol *b = &y[a->next];
        a->id = a->pair_id;
        a->len += b->len;
        a->next = b->next;
        b->len = 0;
        if (a->next != NONE) y[a->next].prev = left;
        if (a->prev != NONE) note_pair(&w, a->prev);
        note_pair(&w, left);
    }
    for (uint32_t i = 0; i != NONE; i = y[i].next) PD_TRY(emit(t, s, &y[i], out, err));
    return PD_OK;
}

pd_status pd__merge_word(const pd_tokenizer *t, pd__merge_scratch *scr, const char *s, size_t n, pd_ids *out,
                         pd_err *err) {
    if (n == 0) return PD_OK;
    symbol local[SHORT_MAX], *y = local;
    if (n > SHORT_MAX) {
        PD_TRY(grow(&scr->sym, &scr->cap_sym, n, sizeof(symbol), err));
        y = scr->sym;
    }
    uint32_t k = 0;
    for (size_t off = 0; off < n; k++) {
        const size_t len = symbol_len(t, s + off, n - off);
        y[k] = (symbol){.prev = k ? k - 1 : NONE, .next = k + 1, .off = (uint32_t)off, .len = (uint32_t)len,
                        .id = symbol_id(t, s + off, len)};
        off += len;
    }
    y[k - 1].next = NONE;
    return k <= SHORT_MAX ? merge_short(t, s, y, k, out, err) : merge_long(t, scr, s, k, out, err);
}

pd_status pd__merge_marked(const pd_tokenizer *t, pd__merge_scratch *scr, const char *s, size_t n, pd_ids *out,
                           pd_err *err) {
    for (size_t begin = 0, end = 0; begin < n; begin = end) {
        bool was_mark = true;
        while (end < n) {
            const size_t len = symbol_len(t, s + end, n - end);
            const bool mark = len == 3 && memcmp(s + end, PD__SPACE_MARK, 3) == 0;
            if (t->spm_words && mark && !was_mark) break;
            was_mark = mark;
            end += len;
        }
        PD_TRY(pd__merge_word(t, scr, s + begin, end - begin, out, err));
    }
    return PD_OK;
}
