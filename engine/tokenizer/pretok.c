/* SPDX-License-Identifier: Apache-2.0 */
/* The pre-tokenizer families (see pretok.h).
 *
 * A family is one function and its rows below; each function states the regular
 * expression it stands for.  Alternatives are tried in the expression's order,
 * so a function reads top to bottom like its pattern. */
#include "engine/tokenizer/pretok.h"

#include <string.h>
#include <utf8proc.h>

enum {
    LETTER = 1u << 0,  /* \p{L} */
    NUMBER = 1u << 1,  /* \p{N} */
    MARK = 1u << 2,    /* \p{M} */
    SPACE = 1u << 3,   /* \s: White_Space */
    NEWLINE = 1u << 4, /* \r \n, with SPACE */
    OTHER = 1u << 5,
};

size_t pd__cp_next(const char *s, size_t n, uint32_t *cp) {
    const unsigned char *u = (const unsigned char *)s;
    if (u[0] < 0x80) {
        *cp = u[0];
        return 1;
    }
    if (u[0] < 0xC0 || u[0] >= 0xF8) return 0;
    const size_t len = u[0] < 0xE0 ? 2 : u[0] < 0xF0 ? 3 : 4;
    if (n < len) return 0;
    uint32_t c = u[0] & (0x7Fu >> len);
    for (size_t i = 1; i < len; i++) {
        if ((u[i] & 0xC0) != 0x80) return 0;
        c = c << 6 | (u[i] & 0x3Fu);
    }
    if (c > 0x10FFFF) return 0;
    *cp = c;
    return len;
}

static bool is_space(uint32_t cp) {
    if (cp < 0x80) return cp == ' ' || (cp >= 9 && cp <= 13);
    return cp == 0x85 || cp == 0xA0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 ||
           cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

static unsigned class_of(uint32_t cp) {
    if (is_space(cp)) return cp == '\r' || cp == '\n' ? SPACE | NEWLINE : SPACE;
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO: return LETTER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO: return NUMBER;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME: return MARK | OTHER;
    default: return OTHER;
    }
}

/* Class of the character at p, its length to *len; 0 at or past `end`. */
static unsigned peek(const pd__words *w, size_t p, size_t end, size_t *len) {
    *len = 0;
    if (p >= end) return 0;
    const unsigned char c = (unsigned char)w->s[p];
    if (c < 0x80) {
        *len = 1;
        if ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') return LETTER;
        if (c >= '0' && c <= '9') return NUMBER;
        if (is_space(c)) return c == '\r' || c == '\n' ? SPACE | NEWLINE : SPACE;
        return OTHER;
    }
    uint32_t cp;
    *len = pd__cp_next(w->s + p, end - p, &cp);
    if (*len) return class_of(cp);
    *len = 1; /* not reached for text the tokenizer has cleaned */
    return OTHER;
}

/* End of the run of characters that have one of `want` and none of `not`, at
 * most `max` of them (0 = all). */
static size_t run(const pd__words *w, size_t p, size_t end, unsigned want, unsigned not, size_t max) {
    size_t len;
    for (size_t k = 0; max == 0 || k < max; k++) {
        const unsigned c = peek(w, p, end, &len);
        if (!(c & want) || (c & not)) break;
        p += len;
    }
    return p;
}

/* \s+(?!\S)|\s+ on a run that starts at p: all of it at the end of the text,
 * else all but the last character (which belongs to the next word), else one. */
static size_t spaces(const pd__words *w, size_t p, size_t end) {
    size_t len, q = p, last = p;
    while (peek(w, q, end, &len) & SPACE) {
        last = q;
        q += len;
    }
    return q == end || last == p ? q : last;
}

/* Length of 's 't 're 've 'm 'll 'd at p, or 0; upper case counts too if `fold`. */
static size_t contraction(const pd__words *w, size_t p, size_t end, bool fold) {
    if (w->s[p] != '\'' || end - p < 2) return 0;
    const char a = fold ? (char)(w->s[p + 1] | 0x20) : w->s[p + 1];
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if (end - p < 3) return 0;
    const char b = fold ? (char)(w->s[p + 2] | 0x20) : w->s[p + 2];
    return ((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t gpt2_word(const pd__words *w, size_t end) {
    const size_t p = w->pos;
    const size_t apostrophe = contraction(w, p, end, false);
    if (apostrophe) return p + apostrophe;
    size_t len;
    const size_t q = p + (w->s[p] == ' ');
    const unsigned c = peek(w, q, end, &len);
    if (c && !(c & SPACE)) return run(w, q, end, c & (LETTER | NUMBER | OTHER), 0, 0);
    return spaces(w, p, end);
}

static size_t gpt2(pd__words *w) {
    return gpt2_word(w, w->n);
}

/* \p{N} cut out one by one first, then GPT-2's rule inside what lies between:
 * its look-ahead sees the cut as the end of the text. */
static size_t single_digits_gpt2(pd__words *w) {
    size_t len;
    if (peek(w, w->pos, w->n, &len) & NUMBER) return w->pos + len;
    if (w->part_end <= w->pos) w->part_end = run(w, w->pos, w->n, LETTER | SPACE | OTHER, 0, 0);
    return gpt2_word(w, w->part_end);
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*
 * |\s*[\r\n]+|\s+(?!\S)|\s+
 * `marks`: \p{M} counts as a letter in words and is no symbol. */
static size_t llama3_word(const pd__words *w, size_t digits, bool marks) {
    const size_t p = w->pos, end = w->n;
    const size_t apostrophe = contraction(w, p, end, true);
    if (apostrophe) return p + apostrophe;

    const unsigned letter = marks ? LETTER | MARK : LETTER, not_symbol = marks ? MARK : 0;
    size_t len, len2;
    const unsigned c = peek(w, p, end, &len);
    if (c & letter) return run(w, p, end, letter, 0, 0);
    if (!(c & (NEWLINE | NUMBER)) && (peek(w, p + len, end, &len2) & letter))
        return run(w, p + len, end, letter, 0, 0);
    if (c & NUMBER) return run(w, p, end, NUMBER, 0, digits);

    const size_t q = p + (w->s[p] == ' ');
    const size_t symbols = run(w, q, end, OTHER, not_symbol, 0);
    if (symbols > q) return run(w, symbols, end, NEWLINE, 0, 0);

    size_t e = p, newline_end = 0;
    for (unsigned k; (k = peek(w, e, end, &len)) & SPACE;) {
        e += len;
        if (k & NEWLINE) newline_end = e;
    }
    return newline_end ? newline_end : spaces(w, p, end);
}

static size_t llama3(pd__words *w) {
    return llama3_word(w, 3, false);
}

static size_t qwen2(pd__words *w) {
    return llama3_word(w, 1, false);
}

static size_t qwen35(pd__words *w) {
    return llama3_word(w, 1, true);
}

static const pd__pretok rows[] = {
    {"gpt-2", gpt2, false, false},
    {"phi-2", gpt2, false, false},
    {"mpt", gpt2, false, false},
    {"olmo", gpt2, false, false},
    {"jais", gpt2, false, false},
    {"exaone4", gpt2, false, false},
    {"smollm", single_digits_gpt2, false, false},
    {"starcoder", single_digits_gpt2, false, false},
    {"refact", single_digits_gpt2, false, false},
    {"command-r", single_digits_gpt2, false, false},
    {"codeshell", single_digits_gpt2, false, false},
    {"exaone", single_digits_gpt2, false, false},
    {"llama-bpe", llama3, true, true},
    {"llama3", llama3, true, true},
    {"llama-v3", llama3, true, true},
    {"falcon3", llama3, true, true},
    {"lfm2", llama3, true, true},
    {"glm4", llama3, true, false},
    {"dbrx", llama3, false, false},
    {"smaug-bpe", llama3, false, false},
    {"qwen2", qwen2, false, false},
    {"deepseek-r1-qwen", qwen2, false, false},
    {"stablelm2", qwen2, false, false},
    {"qwen35", qwen35, false, false},
};

const pd__pretok *pd__pretok_find(const char *pre, size_t len) {
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (strlen(rows[i].pre) == len && memcmp(rows[i].pre, pre, len) == 0) return &rows[i];
    }
    return NULL;
}
