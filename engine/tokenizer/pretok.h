/* SPDX-License-Identifier: Apache-2.0 */
/* Pre-tokenizers: where byte-level BPE cuts a text into words before merging.
 *
 * The families are published as regular expressions over Unicode categories;
 * here each is a hand-written automaton that reads every character a bounded
 * number of times, so no text can make it slow.  Thread: any. */
#ifndef PD_ENGINE_TOKENIZER_PRETOK_H
#define PD_ENGINE_TOKENIZER_PRETOK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Where we are in one text.  The text is well-formed but for surrogates. */
typedef struct {
    const char *s;
    size_t n, pos;
    size_t part_end; /* end of the stretch the word rules see; used by families that cut twice */
} pd__words;

typedef struct pd__pretok {
    const char *pre; /* tokenizer.ggml.pre */
    size_t (*next)(pd__words *w); /* end of the word that starts at w->pos < w->n */
    bool whole_words; /* a word that is a piece becomes it without merging (ignore_merges) */
    bool add_bos;     /* when the file does not say */
} pd__pretok;

/* The row for tokenizer.ggml.pre, or NULL. */
const pd__pretok *pd__pretok_find(const char *pre, size_t len);

/* One code point at s (n >= 1 bytes readable) by lead and continuation bits
 * alone, as llama.cpp reads it: surrogates and overlong forms count, 0 is
 * returned for anything else. */
size_t pd__cp_next(const char *s, size_t n, uint32_t *cp);

#endif
