/* SPDX-License-Identifier: Apache-2.0 */
/* Text <-> token ids, from the vocabulary in a GGUF file.
 *
 * tokenizer.ggml.model "gpt2": byte-level BPE behind a pre-tokenizer chosen by
 * tokenizer.ggml.pre (rows in pretok.c).  "llama": SentencePiece
 * BPE by scores with byte fallback.  Ids equal llama.cpp's and Hugging Face's.
 * Time is linear (n log n in the worst merge case) in the text's length.
 * Thread: open/close one, the rest any. */
#ifndef PD_ENGINE_TOKENIZER_TOKENIZER_H
#define PD_ENGINE_TOKENIZER_TOKENIZER_H

#include "engine/base/err.h"
#include "engine/gguf/gguf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct pd_tokenizer pd_tokenizer;

/* A growable id list; all-zero is empty. */
typedef struct {
    int32_t *id;
    size_t n, cap;
} pd_ids;

pd_status pd_ids_push(pd_ids *ids, int32_t id, pd_err *err);
void pd_ids_done(pd_ids *ids);

/* Copies what it needs from `g`.  Errors: EFILE naming the key at fault
 * (duplicate pieces, merges naming unknown tokens, unknown model or pre). */
pd_status pd_tokenizer_open(pd_tokenizer **ret, const pd_gguf *g, pd_err *err);
void pd_tokenizer_close(pd_tokenizer *t); /* NULL is fine */

typedef struct {
    const char *model, *pre; /* "gpt2", "smollm" */
    uint32_t n_vocab;
    int32_t bos, eos, eot, unk, pad; /* -1 if none */
    bool add_bos, add_eos, add_space_prefix;
} pd_tokenizer_info;

const pd_tokenizer_info *pd_tokenizer_get_info(const pd_tokenizer *t);
bool pd_token_is_eog(const pd_tokenizer *t, int32_t id);     /* ends a generation (eos, eot, <|im_end|>, <end_of_turn> ...) */
bool pd_token_is_special(const pd_tokenizer *t, int32_t id); /* control or unknown; user-defined pieces are text */

enum {
    PD_TOK_BOS = 1u << 0,     /* put bos first if the model asks for it (add_bos) */
    PD_TOK_SPECIAL = 1u << 1, /* text such as <|im_start|> becomes its special token; without it, it stays text */
    PD_TOK_CONTINUE = 1u << 2 /* the text follows other tokens: no space prefix at its start */
};

/* Append the ids of text[0..len) to *out.  Broken UTF-8 is read as llama.cpp
 * does: byte-level BPE sees one U+FFFD per broken byte, SentencePiece the bytes.
 * User-defined pieces (Gemma's runs of newlines) are found whatever the flags.
 * Errors: EINVAL over 256 MiB, ENOMEM; *out may then hold a part. */
pd_status pd_tokenize(const pd_tokenizer *t, const char *text, size_t len, unsigned flags, pd_ids *out, pd_err *err);

/* The id of a vocabulary entry written out (special tokens included), or -1. */
int32_t pd_token_find(const pd_tokenizer *t, const char *text, size_t len);

/* The bytes an id stands for: what detokenisation adds.  Special tokens give
 * nothing unless `special`.  Borrowed; len 0 for an id out of range. */
pd_str pd_token_bytes(const pd_tokenizer *t, int32_t id, bool special);

/* Streamed detokenisation: bytes go out only in whole code points; a sequence
 * that can never become well-formed goes out as one U+FFFD. */
typedef struct {
    char hold[4];
    unsigned n_hold;
    bool started; /* the first piece's leading space is dropped when add_space_prefix is set */
} pd_detok;

/* Bytes ready after `id`, written to dst; returns the count.  cap must be at
 * least pd_detok_max(t).  `special`: write special tokens out. */
size_t pd_detok_next(const pd_tokenizer *t, pd_detok *d, int32_t id, bool special, char *dst, size_t cap);
size_t pd_detok_end(pd_detok *d, char *dst, size_t cap); /* what was held, as U+FFFD; cap >= 16 */
size_t pd_detok_max(const pd_tokenizer *t);              /* most bytes one call may write */

#endif
