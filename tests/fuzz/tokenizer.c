/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzz target: the input is a vocabulary and a text.
 *
 *   u8 kind (bit 0: SentencePiece, bit 1: space prefix, rest: pre-tokenizer)
 *   u8 n | n x { u8 type | u8 score | u8 split | u8 len | text }    pieces beside the 256 bytes
 *   the rest: text to tokenise, and Jinja to recognise
 *
 * Whatever it holds: a refusal in one line, or ids in range, no control token
 * from plain text, and bytes that come back. */
#include "engine/tokenizer/chat_int.h"

#include "engine/base/utf8.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(cond)                                                                                 \
    do {                                                                                           \
        if (!(cond)) __builtin_trap();                                                             \
    } while (0)

enum { BYTES = 256, EXTRA = 64 };

typedef struct {
    pd_str piece[BYTES + EXTRA], merge[EXTRA];
    float score[BYTES + EXTRA];
    int32_t type[BYTES + EXTRA];
    char byte[BYTES][8], merge_text[EXTRA][300];
    size_t n, n_merge;
} vocabulary;

static void add(vocabulary *v, const char *text, size_t len, float score, int32_t type) {
    v->piece[v->n] = (pd_str){text, len};
    v->score[v->n] = score;
    v->type[v->n++] = type;
}

static void add_bytes(vocabulary *v, bool spm) {
    static const char hex[] = "0123456789ABCDEF";
    for (int b = 0; b < BYTES; b++) {
        size_t n = 6;
        if (spm) memcpy(v->byte[b], (char[]){'<', '0', 'x', hex[b >> 4], hex[b & 15], '>'}, 6);
        else n = pd__byte_spell((uint8_t)b, v->byte[b]);
        add(v, v->byte[b], n, 0, spm ? PD__TYPE_BYTE : PD__TYPE_NORMAL);
    }
}

/* Takes the pieces off the input; a byte-level one brings the rule that makes it. */
static void add_pieces(vocabulary *v, const uint8_t **p, size_t *size) {
    size_t n = *size ? *(*p)++ % EXTRA : 0;
    *size -= *size > 0;
    for (; n > 0 && *size >= 4; n--) {
        const uint8_t *h = *p;
        const size_t len = h[3] < *size - 4 ? h[3] : *size - 4;
        const char *text = (const char *)h + 4;
        add(v, text, len, (float)(int8_t)h[1], h[0] % 8);
        if (len >= 2) {
            const size_t split = 1 + h[2] % (len - 1);
            char *m = v->merge_text[v->n_merge];
            memcpy(m, text, split);
            m[split] = ' ';
            memcpy(m + split + 1, text + split, len - split);
            if (h[2] & 0x80) v->merge[v->n_merge++] = (pd_str){m, len + 1};
        }
        *p += 4 + len;
        *size -= 4 + len;
    }
}

static bool has_user_defined(const pd_tokenizer *t) {
    for (uint32_t id = 0; id < t->info.n_vocab; id++) {
        if (t->piece[id].type == PD__TYPE_USER) return true;
    }
    return false;
}

/* A piece that is matched before the text is split, and can part a character. */
static bool has_torn_piece(const pd_tokenizer *t) {
    for (uint32_t id = 0; id < t->info.n_vocab; id++) {
        const pd_str s = pd__piece_text(t, (int32_t)id);
        const int type = t->piece[id].type;
        const bool found = type == PD__TYPE_USER || type == PD__TYPE_CONTROL || type == PD__TYPE_UNKNOWN;
        if (found && !pd_utf8_valid(s.data, s.len)) return true;
    }
    return false;
}

/* What tokenising keeps: everything, since each byte is a piece; not broken
 * UTF-8 (it is replaced), nor, in SentencePiece, space marks: those a text
 * brings, those put first, and those a user-defined piece spells. */
static void check_back(const pd_tokenizer *t, const char *text, size_t len, const pd_ids *ids) {
    if (!pd_utf8_valid(text, len) || has_torn_piece(t)) return;
    if (t->spm && (t->info.add_space_prefix || memmem(text, len, PD__SPACE_MARK, 3) || has_user_defined(t))) return;
    /* Nor a space in a vocabulary without the mark: it falls back to the mark's bytes. */
    const int32_t mark = pd__text_find(t, PD__SPACE_MARK, 3);
    if (t->spm && (mark < 0 || !pd__type_mergeable(t->piece[mark].type)) && memchr(text, ' ', len)) return;
    size_t at = 0;
    for (size_t i = 0; i < ids->n; i++) {
        const pd_str s = pd_token_bytes(t, ids->id[i], true);
        MUST(s.len <= len - at && memcmp(s.data, text + at, s.len) == 0);
        at += s.len;
    }
    MUST(at == len);
}

static void check_text(const pd_tokenizer *t, const char *text, size_t len, unsigned flags) {
    pd_ids ids = {0};
    MUST(pd_tokenize(t, text, len, flags, &ids, NULL) == PD_OK);
    pd_detok d = {0};
    char *out = malloc(pd_detok_max(t) + 16);
    MUST(out);
    for (size_t i = 0; i < ids.n; i++) {
        MUST(ids.id[i] >= 0 && (uint32_t)ids.id[i] < t->info.n_vocab);
        if (!(flags & PD_TOK_SPECIAL)) MUST(!pd_token_is_special(t, ids.id[i]));
        const size_t n = pd_detok_next(t, &d, ids.id[i], true, out, pd_detok_max(t));
        MUST(n <= pd_detok_max(t) && pd_utf8_valid(out, n));
    }
    MUST(pd_detok_end(&d, out, 16) <= 16);
    free(out);
    check_back(t, text, len, &ids);
    pd_ids_done(&ids);
}

static pd_chat *named(size_t i) {
    static pd_chat *c[32]; /* kept: the process ends with them */
    const pd__chat_builtin *b = &pd__chat_builtins[i];
    MUST(i < sizeof c / sizeof *c);
    if (!c[i]) MUST(pd__chat_from_text(&c[i], b->name, b->text, strlen(b->text), NULL) == PD_OK);
    return c[i];
}

/* A template, with the text as a message: as many control tokens as without it. */
static void check_chat(const pd_chat *c, const pd_tokenizer *t, const char *text, size_t len) {
    char *z = strndup(text, len);
    MUST(z);
    /* Without user-defined pieces, which may reach from a message into a marker,
     * and with something between the markers in both. */
    const size_t n = strlen(z);
    const bool comparable = !has_user_defined(t) && n && z[0] > ' ' && z[0] < 0x7F;
    size_t n_control[2] = {0};
    for (int with = 0; with < 2; with++) {
        const pd_chat_msg msg[] = {{"user", with ? z : "-"}, {"assistant", "-"}, {"user", with ? z : "-"}};
        pd_ids ids = {0};
        pd_chat_marks m;
        const pd_chat_talk talk = {.msg = msg, .n_msg = 3, .add_generation_prompt = true};
        MUST(pd_chat_encode(c, t, &talk, &ids, &m, NULL) == PD_OK);
        MUST(m.system_begin <= m.system_end && m.system_end <= ids.n && m.last_user_begin <= ids.n);
        for (size_t i = 0; i < ids.n; i++) n_control[with] += pd_token_is_special(t, ids.id[i]);
        pd_ids_done(&ids);
    }
    MUST(!comparable || n_control[1] == n_control[0]);
    free(z);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const pre[] = {"gpt-2", "smollm", "llama-bpe", "qwen2", "qwen35", "nonsense"};
    static vocabulary v;
    if (size < 2) return 0;
    const uint8_t kind = data[0];
    const bool spm = kind & 1;
    data++;
    size--;
    v.n = v.n_merge = 0;
    add_bytes(&v, spm);
    add_pieces(&v, &data, &size);
    const char *name = pre[(kind >> 2) % 6];
    const pd__vocab_src src = {
        .model = {spm ? "llama" : "gpt2", spm ? 5 : 4}, .pre = {name, strlen(name)}, .piece = v.piece, .n_piece = v.n,
        .score = v.score, .type = v.type, .merge = v.merge, .n_merge = v.n_merge,
        .bos = (int32_t)v.n - 1, .eos = -1, .eot = -1, .unk = -1, .pad = -1,
        .add_bos = -1, .add_eos = -1, .add_space_prefix = spm ? kind >> 1 & 1 : -1,
    };
    pd_tokenizer *t = NULL;
    pd_err err = {0};
    if (pd__tokenizer_build(&t, &src, &err) != PD_OK) {
        MUST(!t && err.code == PD_EFILE && err.msg[0] && pd_utf8_valid(err.msg, strlen(err.msg)));
        return 0;
    }
    check_text(t, (const char *)data, size, 0);
    check_text(t, (const char *)data, size, PD_TOK_SPECIAL);
    check_chat(named(size % pd__n_chat_builtins), t, (const char *)data, size);
    pd_tokenizer_close(t);
    return 0;
}
