/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the tokenizer: the vocabulary's tables, and the doors between the
 * files of this folder.  Nothing here is for other folders.
 *
 *   vocab.c    file or test data -> tables      special.c  special tokens in text
 *   pretok.c   text -> words (byte-level BPE)   merge.c    word -> ids
 *   tokenizer.c  the public functions           detok.c    ids -> text, streamed
 *
 * A piece has two spellings: `text` as the file writes it ("\u0120the", "\u2581the",
 * "<0x0A>") and the `bytes` it stands for (" the", " the", "\n"). */
#ifndef PD_ENGINE_TOKENIZER_VOCAB_H
#define PD_ENGINE_TOKENIZER_VOCAB_H

#include "engine/tokenizer/pretok.h"
#include "engine/tokenizer/tokenizer.h"

#define PD__SPACE_MARK "\xE2\x96\x81" /* U+2581, SentencePiece's space */

/* tokenizer.ggml.token_type, as numbered in the file. */
enum {
    PD__TYPE_NORMAL = 1,
    PD__TYPE_UNKNOWN = 2,
    PD__TYPE_CONTROL = 3,
    PD__TYPE_USER = 4, /* matched in every text before anything else; plain text when written out */
    PD__TYPE_UNUSED = 5,
    PD__TYPE_BYTE = 6,
};

enum {
    PD__PIECE_EOG = 1u << 0,
    PD__PIECE_RSTRIP = 1u << 1, /* swallows the white space that follows it in text */
};

typedef struct {
    uint32_t text_off, bytes_off; /* into blob */
    uint16_t text_len, bytes_len;
    uint8_t type, flags;
} pd__piece;

/* One merge rule, keyed by its two halves; key 0 is an empty slot (id 0 with
 * id 0 cannot be: the key holds left + 1). */
typedef struct {
    uint64_t key;
    uint32_t rank;
    int32_t id;
} pd__pair;

struct pd_tokenizer {
    pd_tokenizer_info info;
    bool spm;
    char *blob;
    pd__piece *piece;          /* [n_vocab] */
    uint32_t max_text, max_bytes; /* longest spellings */
    uint32_t *slot;            /* text -> id + 1 under 8 bits of its hash; open addressing, slot_mask + 1 entries */
    uint32_t slot_mask;

    const pd__pretok *pretok;  /* byte-level BPE from here */
    pd__pair *pair;
    uint32_t pair_mask;

    uint32_t *rank;            /* SentencePiece from here: [n_vocab], lower merges first */
    bool spm_words;            /* no piece has a space mark after anything else: merge word by word */

    int32_t byte_id[256];      /* both: the id of one byte, -1 if the vocabulary has none */

    int32_t *special;          /* ids of control, unknown and user-defined pieces, sorted by text */
    uint32_t n_special;
    uint32_t special_first[257]; /* special[special_first[c] .. special_first[c+1]) start with byte c */
};

/* What a vocabulary is made from: the file's arrays, or a test's. */
typedef struct {
    pd_str model, pre;
    const pd_str *piece;
    size_t n_piece;
    const void *score; /* f32[n_piece] little-endian, unaligned; NULL = all 0 */
    const void *type;  /* i32[n_piece] likewise; NULL = all normal */
    const pd_str *merge;
    size_t n_merge;
    int32_t bos, eos, eot, unk, pad;            /* -1 if none */
    int add_bos, add_eos, add_space_prefix;     /* -1 = as the model kind does */
    bool rstrip_special;                        /* Phi-3's habit */
} pd__vocab_src;

pd_status pd__tokenizer_build(pd_tokenizer **ret, const pd__vocab_src *src, pd_err *err);

static inline pd_str pd__piece_text(const pd_tokenizer *t, int32_t id) {
    return (pd_str){t->blob + t->piece[id].text_off, t->piece[id].text_len};
}

/* The id whose text is s[0..n), or -1. */
int32_t pd__text_find(const pd_tokenizer *t, const char *s, size_t n);

/* A piece that merging may make: ordinary text never becomes a control token. */
static inline bool pd__type_mergeable(uint8_t type) {
    return type == PD__TYPE_NORMAL || type == PD__TYPE_USER || type == PD__TYPE_UNUSED;
}

/* The rule for two neighbours, or NULL. */
const pd__pair *pd__pair_find(const pd_tokenizer *t, int32_t left, int32_t right);

/* The byte alphabet of byte-level BPE: how byte b is spelt (1 or 2 bytes of
 * UTF-8 to dst), and what byte a code point spells (-1: none). */
size_t pd__byte_spell(uint8_t b, char dst[2]);
int pd__byte_unspell(uint32_t cp);

/* The longest special piece at the start of s[0..n): its id, its length to
 * *len; -1 if none.  Control and unknown ones must end within `control_max`. */
int32_t pd__special_match(const pd_tokenizer *t, const char *s, size_t n, size_t control_max, size_t *len);
pd_status pd__special_index(pd_tokenizer *t, pd_err *err);

/* Scratch for merging, kept over the words of one text; all-zero is empty. */
typedef struct {
    void *sym, *heap;
    size_t cap_sym, cap_heap;
} pd__merge_scratch;

void pd__merge_scratch_done(pd__merge_scratch *s);

/* One word (byte-level BPE: raw bytes; SentencePiece: text with its spaces
 * already written as marks) to ids, appended.  n < 2^31. */
pd_status pd__merge_word(const pd_tokenizer *t, pd__merge_scratch *scr, const char *s, size_t n,
                         pd_ids *out, pd_err *err);

/* SentencePiece: a text whose spaces are marks.  Where no piece reaches over the
 * start of a word, word by word: the ids are the same and the heap stays small. */
pd_status pd__merge_marked(const pd_tokenizer *t, pd__merge_scratch *scr, const char *s, size_t n,
                           pd_ids *out, pd_err *err);

/* A stretch of text in which control tokens must not be recognised. */
typedef struct {
    size_t begin, end;
} pd__span;

/* A position in the text whose token is wanted. */
typedef struct {
    size_t at;   /* byte offset */
    bool up;     /* inside a token: the next one's index instead of its own */
    size_t *tok; /* gets the index in *out */
} pd__mark;

/* pd_tokenize with PD_TOK_SPECIAL, but `plain` stretches (ascending) give no
 * control token; marks ascend by `at`. */
pd_status pd__tokenize_mixed(const pd_tokenizer *t, const char *text, size_t len, unsigned flags,
                             const pd__span *plain, size_t n_plain, const pd__mark *mark, size_t n_mark,
                             pd_ids *out, pd_err *err);

#endif
