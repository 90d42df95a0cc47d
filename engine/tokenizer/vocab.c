/* SPDX-License-Identifier: Apache-2.0 */
/* The vocabulary's tables, built once from the file (see vocab.h).
 *
 * Memory per piece: its spellings, 16 bytes of record, 8 to 16 bytes of hash,
 * and 16 to 32 bytes per merge rule or 4 per score.  Everything the file says
 * is checked here, so the rest of the folder can trust the tables. */
#include "engine/tokenizer/vocab.h"

#include "engine/base/num.h"
#include "engine/base/utf8.h"

#include <stdlib.h>
#include <string.h>

#define PIECE_MAX 4096 /* longest spelling; real vocabularies stay below 512 */
#define VOCAB_MAX (((size_t)1 << 24) - 2) /* a slot has 24 bits for id + 1 */
#define SLOT_ID 0x00FFFFFFu

/* The 128-bit product folded: every bit of both reaches every bit of the result. */
static uint64_t fold(uint64_t a, uint64_t b) {
    __extension__ typedef unsigned __int128 wide;
    const wide p = (wide)a * b;
    return (uint64_t)p ^ (uint64_t)(p >> 64);
}

static uint32_t text_hash(const char *s, size_t n) {
    uint64_t h = 0x9E3779B97F4A7C15u ^ n;
    for (; n >= 8; s += 8, n -= 8) {
        uint64_t x;
        memcpy(&x, s, 8);
        h = fold(h ^ x, 0xD6E8FEB86659FD93u);
    }
    uint64_t x = 0;
    memcpy(&x, s, n);
    return (uint32_t)fold(h ^ x, 0xD6E8FEB86659FD93u);
}

int32_t pd__text_find(const pd_tokenizer *t, const char *s, size_t n) {
    if (n == 0 || n > t->max_text) return -1;
    const uint32_t h = text_hash(s, n);
    for (uint32_t i = h & t->slot_mask;; i = (i + 1) & t->slot_mask) {
        if (t->slot[i] == 0) return -1;
        if ((t->slot[i] ^ h) & ~SLOT_ID) continue; /* most look-ups while merging find nothing: end them here */
        const int32_t id = (int32_t)(t->slot[i] & SLOT_ID) - 1;
        const pd_str text = pd__piece_text(t, id);
        if (text.len == n && memcmp(text.data, s, n) == 0) return id;
    }
}

static uint64_t pair_key(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)(left + 1) << 32 | (uint32_t)right;
}

static uint32_t pair_hash(uint64_t key) {
    return (uint32_t)fold(key, 0x9E3779B97F4A7C15u);
}

const pd__pair *pd__pair_find(const pd_tokenizer *t, int32_t left, int32_t right) {
    if (left < 0 || right < 0) return NULL;
    const uint64_t key = pair_key(left, right);
    for (uint32_t i = pair_hash(key) & t->pair_mask;; i = (i + 1) & t->pair_mask) {
        if (t->pair[i].key == key) return &t->pair[i];
        if (t->pair[i].key == 0) return NULL;
    }
}

/* The alphabet: printable Latin-1 spells itself, the other 68 bytes are spelt
 * U+0100 and up, in order (GPT-2's bytes_to_unicode). */
static bool byte_spells_itself(unsigned b) {
    return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b != 0xAD);
}

size_t pd__byte_spell(uint8_t b, char dst[2]) {
    uint32_t cp = b;
    if (!byte_spells_itself(b))
        cp = 0x100u + (b < 0x21 ? b : b < 0xA1 ? b - 0x7Fu + 0x21u : 0x21u + 0x22u);
    return pd_utf8_put(cp, dst);
}

int pd__byte_unspell(uint32_t cp) {
    if (cp < 0x100) return byte_spells_itself(cp) ? (int)cp : -1;
    if (cp < 0x121) return (int)(cp - 0x100);
    if (cp < 0x143) return (int)(cp - 0x121 + 0x7F);
    return cp == 0x143 ? 0xAD : -1;
}

/* "<0x41>" -> 0x41; -1 for anything else, "<0x-1>" and "<0x041>" included. */
static int byte_piece_value(pd_str s) {
    if (s.len != 6 || memcmp(s.data, "<0x", 3) != 0 || s.data[5] != '>') return -1;
    int v = 0;
    for (int i = 3; i < 5; i++) {
        const char c = s.data[i];
        const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit < 0) return -1;
        v = v * 16 + digit;
    }
    return v;
}

/* The bytes of a byte-level spelling to dst (at most s.len); false if it holds
 * a character outside the alphabet. */
static bool unspell(pd_str s, char *dst, size_t *len) {
    size_t n = 0;
    for (size_t i = 0; i < s.len;) {
        uint32_t cp;
        const size_t k = pd_utf8_next(s.data + i, s.len - i, &cp);
        const int b = k ? pd__byte_unspell(cp) : -1;
        if (b < 0) return false;
        dst[n++] = (char)b;
        i += k;
    }
    *len = n;
    return true;
}

static void unmark(pd_str s, char *dst, size_t *len) {
    size_t n = 0;
    for (size_t i = 0; i < s.len;) {
        const bool mark = s.len - i >= 3 && memcmp(s.data + i, PD__SPACE_MARK, 3) == 0;
        dst[n++] = mark ? ' ' : s.data[i];
        i += mark ? 3 : 1;
    }
    *len = n;
}

static int32_t read_i32(const void *array, size_t i) {
    int32_t v;
    memcpy(&v, (const char *)array + i * sizeof v, sizeof v);
    return v;
}

/* Record spellings and types; blob has room for both spellings of every piece. */
static pd_status take_pieces(pd_tokenizer *t, const pd__vocab_src *src, pd_err *err) {
    size_t total = 0;
    for (size_t i = 0; i < src->n_piece; i++) {
        if (src->piece[i].len > PIECE_MAX)
            return pd_fail(err, PD_EFILE, NULL, "tokenizer.ggml.tokens[%zu] has %zu bytes, at most %d are allowed",
                           i, src->piece[i].len, PIECE_MAX);
        total += 2 * src->piece[i].len;
    }
    if (total > UINT32_MAX)
        return pd_fail(err, PD_EFILE, NULL, "tokenizer.ggml.tokens holds %zu bytes of text, too many", total / 2);
    t->blob = malloc(total + 1);
    t->piece = calloc(src->n_piece, sizeof *t->piece);
    if (!t->blob || !t->piece) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the vocabulary");

    uint32_t at = 0;
    for (size_t i = 0; i < src->n_piece; i++) {
        const pd_str s = src->piece[i];
        const int32_t type = src->type ? read_i32(src->type, i) : PD__TYPE_NORMAL;
        pd__piece *p = &t->piece[i];
        *p = (pd__piece){.text_off = at, .bytes_off = at, .text_len = (uint16_t)s.len, .bytes_len = (uint16_t)s.len,
                         .type = (uint8_t)(type >= 1 && type <= 6 ? type : PD__TYPE_UNUSED)};
        if (s.len) memcpy(t->blob + at, s.data, s.len);
        at += (uint32_t)s.len;
        char *bytes = t->blob + at;
        size_t n = 0;
        bool other = false;
        if (p->type == PD__TYPE_BYTE) {
            const int b = byte_piece_value(s);
            if (b < 0)
                return pd_fail(err, PD_EFILE, NULL, "tokenizer.ggml.tokens[%zu] is of type byte but reads '%.*s'", i,
                               (int)pd_min_size(s.len, 40), s.data);
            bytes[0] = (char)b;
            n = 1;
            other = true;
            t->byte_id[b] = (int32_t)i;
        } else if (p->type == PD__TYPE_NORMAL || p->type == PD__TYPE_UNUSED) {
            if (t->spm) unmark(s, bytes, &n);
            other = t->spm || unspell(s, bytes, &n);
        }
        if (other) {
            p->bytes_off = at;
            p->bytes_len = (uint16_t)n;
            at += (uint32_t)n;
        }
        t->max_text = (uint32_t)pd_max_size(t->max_text, s.len);
        t->max_bytes = (uint32_t)pd_max_size(t->max_bytes, p->bytes_len);
    }
    char *fit = realloc(t->blob, (size_t)at + 1);
    if (fit) t->blob = fit;
    return PD_OK;
}

static pd_status index_pieces(pd_tokenizer *t, pd_err *err) {
    const uint32_t n = t->info.n_vocab;
    uint32_t cap = 16;
    while (cap < n + n / 2) cap *= 2;
    t->slot = calloc(cap, sizeof *t->slot);
    if (!t->slot) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the vocabulary");
    t->slot_mask = cap - 1;
    for (uint32_t id = 0; id < n; id++) {
        const pd_str s = pd__piece_text(t, (int32_t)id);
        if (s.len == 0) continue; /* an empty piece can be generated, never found */
        const int32_t old = pd__text_find(t, s.data, s.len);
        if (old >= 0)
            return pd_fail(err, PD_EFILE, NULL, "tokenizer.ggml.tokens[%u] repeats tokens[%d] '%.*s'", id, old,
                           (int)pd_min_size(s.len, 40), s.data);
        const uint32_t h = text_hash(s.data, s.len);
        uint32_t i = h & t->slot_mask;
        while (t->slot[i]) i = (i + 1) & t->slot_mask;
        t->slot[i] = (h & ~SLOT_ID) | (id + 1);
    }
    return PD_OK;
}

static pd_status take_merges(pd_tokenizer *t, const pd__vocab_src *src, pd_err *err) {
    if (src->n_merge > VOCAB_MAX)
        return pd_fail(err, PD_EFILE, NULL, "tokenizer.ggml.merges has %zu rules, at most %zu are allowed",
                       src->n_merge, VOCAB_MAX);
    uint32_t cap = 16;
    while (cap < src->n_merge + src->n_merge / 2) cap *= 2;
    t->pair = calloc(cap, sizeof *t->pair);
    if (!t->pair) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the merge rules");
    t->pair_mask = cap - 1;
    char joined[2 * PIECE_MAX];
    for (size_t r = 0; r < src->n_merge; r++) {
        const pd_str m = src->merge[r];
        /* From 1: a rule may start with a piece that is itself a space. */
        const char *gap = m.len > 2 ? memchr(m.data + 1, ' ', m.len - 2) : NULL;
        if (!gap || m.len > sizeof joined)
            return pd_fail(err, PD_EFILE, NULL, "tokenizer.ggml.merges[%zu] '%.*s' is not two pieces", r,
                           (int)pd_min_size(m.len, 40), m.data);
        const size_t n_left = (size_t)(gap - m.data), n_right = m.len - n_left - 1;
        memcpy(joined, m.data, n_left);
        memcpy(joined + n_left, gap + 1, n_right);
        const int32_t left = pd__text_find(t, m.data, n_left), right = pd__text_find(t, gap + 1, n_right);
        const int32_t id = pd__text_find(t, joined, n_left + n_right);
        if (left < 0 || right < 0 || id < 0)
            return pd_fail(err, PD_EFILE, NULL, "tokenizer.ggml.merges[%zu] '%.*s' names or makes an unknown token", r,
                           (int)pd_min_size(m.len, 80), m.data);
        /* A piece whose bytes are not those of its halves (a user-defined one is
         * spelt plainly) is not what merging makes; of equal rules the first wins. */
        const pd__piece *a = &t->piece[left], *b = &t->piece[right], *ab = &t->piece[id];
        if (!pd__type_mergeable(ab->type) || a->bytes_len + b->bytes_len != ab->bytes_len ||
            pd__pair_find(t, left, right))
            continue;
        const uint64_t key = pair_key(left, right);
        uint32_t i = pair_hash(key) & t->pair_mask;
        while (t->pair[i].key) i = (i + 1) & t->pair_mask;
        t->pair[i] = (pd__pair){.key = key, .rank = (uint32_t)r, .id = id};
    }
    for (unsigned b = 0; b < 256; b++) {
        char s[2];
        const int32_t id = pd__text_find(t, s, pd__byte_spell((uint8_t)b, s));
        const bool plain = id >= 0 && pd__type_mergeable(t->piece[id].type) && t->piece[id].bytes_len == 1;
        t->byte_id[b] = plain ? id : -1;
    }
    return PD_OK;
}

/* A score as an unsigned that orders the other way round: best score, lowest. */
static uint32_t score_rank(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if ((u & 0x7FFFFFFFu) == 0) u = 0; /* -0 is 0 */
    return u & 0x80000000u ? u : 0x7FFFFFFFu - u;
}

/* True if a space mark stands after anything but another one. */
static bool has_inner_mark(pd_str s) {
    for (size_t i = 1; i + 3 <= s.len; i++) {
        if (memcmp(s.data + i, PD__SPACE_MARK, 3) == 0 && !(i >= 3 && memcmp(s.data + i - 3, PD__SPACE_MARK, 3) == 0))
            return true;
    }
    return false;
}

static pd_status take_scores(pd_tokenizer *t, const pd__vocab_src *src, pd_err *err) {
    const uint32_t n = t->info.n_vocab;
    t->rank = malloc(n * sizeof *t->rank);
    if (!t->rank) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the vocabulary");
    t->spm_words = true;
    for (uint32_t id = 0; id < n; id++) {
        float f = 0.0f;
        if (src->score) memcpy(&f, (const char *)src->score + (size_t)id * sizeof f, sizeof f);
        if (f != f) return pd_fail(err, PD_EFILE, NULL, "tokenizer.ggml.scores[%u] is not a number", id);
        t->rank[id] = score_rank(f);
        if (pd__type_mergeable(t->piece[id].type) && has_inner_mark(pd__piece_text(t, (int32_t)id)))
            t->spm_words = false;
    }
    for (unsigned b = 0; b < 256; b++) {
        if (t->byte_id[b] >= 0) continue;
        const char c = (char)b;
        const int32_t id = pd__text_find(t, &c, 1);
        t->byte_id[b] = id >= 0 && pd__type_mergeable(t->piece[id].type) ? id : t->info.unk;
    }
    return PD_OK;
}

/* Pieces that end a generation, by the names models give them.  Where the file
 * calls one of them ordinary text its type is put right, since a model that was
 * trained with it treats it as a token. */
static const char *const end_names[] = {
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>",
    "<EOT>", "_<EOT>", "[EOT]", "<|return|>", "<|call|>", "<end_of_utterance>",
    "<\xEF\xBD\x9C" "end\xE2\x96\x81" "of\xE2\x96\x81" "sentence\xEF\xBD\x9C>",
};
/* The end of a turn where the file names none, best first. */
static const char *const turn_ends[] = {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>",
                                        "<|end_of_text|>", "<EOT>", "_<EOT>", "[EOT]"};

static int32_t find_name(const pd_tokenizer *t, const char *name) {
    return pd__text_find(t, name, strlen(name));
}

static void mark_ends(pd_tokenizer *t) {
    /* A harmony vocabulary ends with <|return|> and <|call|>; <|end|> only parts its messages. */
    const bool harmony = find_name(t, "<|return|>") >= 0 && find_name(t, "<|call|>") >= 0;
    for (size_t i = 0; i < sizeof end_names / sizeof *end_names; i++) {
        const int32_t id = find_name(t, end_names[i]);
        if (id < 0 || (harmony && strcmp(end_names[i], "<|end|>") == 0)) continue;
        t->piece[id].flags |= PD__PIECE_EOG;
        t->piece[id].type = PD__TYPE_CONTROL;
    }
    /* "</s>" is also an HTML tag: in Gemma's file a user-defined one, in others
     * plain text.  It closes a sentence only where "<s>" opens one. */
    const int32_t open = find_name(t, "<s>"), close = find_name(t, "</s>"), eos = find_name(t, "<eos>");
    if (close >= 0 && open >= 0 && t->piece[open].type == PD__TYPE_CONTROL) t->piece[close].type = PD__TYPE_CONTROL;
    if (close >= 0 && t->piece[close].type == PD__TYPE_CONTROL) t->piece[close].flags |= PD__PIECE_EOG;
    if (eos >= 0 && t->piece[eos].type == PD__TYPE_CONTROL) t->piece[eos].flags |= PD__PIECE_EOG;
    for (size_t i = 0; t->info.eot < 0 && i < sizeof turn_ends / sizeof *turn_ends; i++) {
        t->info.eot = find_name(t, turn_ends[i]);
    }
    if (t->info.eos >= 0) t->piece[t->info.eos].flags |= PD__PIECE_EOG;
    if (t->info.eot >= 0) t->piece[t->info.eot].flags |= PD__PIECE_EOG;
}

/* Phi-3's special tokens swallow the white space behind them, all but three. */
static void mark_rstrip(pd_tokenizer *t) {
    for (uint32_t id = 0; id < t->info.n_vocab; id++) {
        const uint8_t type = t->piece[id].type;
        if (type == PD__TYPE_CONTROL || type == PD__TYPE_USER || type == PD__TYPE_UNKNOWN)
            t->piece[id].flags |= PD__PIECE_RSTRIP;
    }
    static const char *const keep[] = {"<unk>", "<s>", "<|endoftext|>"};
    for (size_t i = 0; i < 3; i++) {
        const int32_t id = find_name(t, keep[i]);
        if (id >= 0) t->piece[id].flags &= (uint8_t)~PD__PIECE_RSTRIP;
    }
}

static pd_status build(pd_tokenizer *t, const pd__vocab_src *src, pd_err *err) {
    if (src->n_piece == 0 || src->n_piece > VOCAB_MAX)
        return pd_fail(err, PD_EFILE, NULL, "tokenizer.ggml.tokens has %zu pieces, 1 to %zu are allowed", src->n_piece,
                       VOCAB_MAX);
    t->spm = pd_str_eq(src->model, "llama");
    if (!t->spm && !pd_str_eq(src->model, "gpt2"))
        return pd_fail(err, PD_EFILE, NULL, "tokenizer.ggml.model '%.*s' is not supported (gpt2 and llama are)",
                       (int)pd_min_size(src->model.len, 40), src->model.data);
    bool add_bos = t->spm;
    const char *pre = "default";
    if (!t->spm) {
        t->pretok = pd__pretok_find(src->pre.data, src->pre.len);
        if (!t->pretok)
            return pd_fail(err, PD_EFILE, NULL, "tokenizer.ggml.pre '%.*s' is not supported (gpt-2, smollm, llama-bpe, "
                           "qwen2 and their relatives are)", (int)pd_min_size(src->pre.len, 40), src->pre.data);
        add_bos = t->pretok->add_bos;
        pre = t->pretok->pre;
    }
    const int32_t ids[] = {src->bos, src->eos, src->eot, src->unk, src->pad};
    for (size_t i = 0; i < 5; i++) {
        if (ids[i] < -1 || ids[i] >= (int32_t)src->n_piece)
            return pd_fail(err, PD_EFILE, NULL, "special token id %d is outside the vocabulary of %zu", ids[i],
                           src->n_piece);
    }
    t->info = (pd_tokenizer_info){
        .model = t->spm ? "llama" : "gpt2", .pre = pre, .n_vocab = (uint32_t)src->n_piece,
        .bos = src->bos, .eos = src->eos, .eot = src->eot, .unk = src->unk, .pad = src->pad,
        .add_bos = src->add_bos < 0 ? add_bos : src->add_bos, .add_eos = src->add_eos > 0,
        .add_space_prefix = src->add_space_prefix < 0 ? t->spm : t->spm && src->add_space_prefix,
    };
    for (unsigned b = 0; b < 256; b++) t->byte_id[b] = -1;
    PD_TRY(take_pieces(t, src, err));
    PD_TRY(index_pieces(t, err));
    mark_ends(t);
    if (src->rstrip_special) mark_rstrip(t);
    PD_TRY(t->spm ? take_scores(t, src, err) : take_merges(t, src, err));
    return pd__special_index(t, err);
}

pd_status pd__tokenizer_build(pd_tokenizer **ret, const pd__vocab_src *src, pd_err *err) {
    pd_tokenizer *t = calloc(1, sizeof *t);
    if (!t) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the tokenizer");
    const pd_status rc = build(t, src, err);
    if (rc != PD_OK) {
        pd_tokenizer_close(t);
        return rc;
    }
    *ret = t;
    return PD_OK;
}

void pd_tokenizer_close(pd_tokenizer *t) {
    if (!t) return;
    free(t->blob);
    free(t->piece);
    free(t->slot);
    free(t->pair);
    free(t->rank);
    free(t->special);
    free(t);
}
