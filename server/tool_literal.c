/* SPDX-License-Identifier: Apache-2.0 */
/* Literals to JSON (see tool_literal.h): a parser that descends into lists and objects, at
 * most PD_LITERAL_DEPTH_MAX deep.  Strings are decoded and written anew; numbers and words
 * keep their text where it is JSON's. */
#include "server/tool_literal.h"

#include "engine/base/utf8.h"
#include "engine/gguf/gguf.h"
#include "server/json.h"
#include "server/tool_text.h"

#include <string.h>

static const char gemma_quote[] = "<|\"|>";
enum { GEMMA_QUOTE = sizeof gemma_quote - 1 };

typedef struct {
    pd_literal_notation how;
    const char *s; /* [n] */
    size_t n, i;   /* i: the next byte */
    int depth;
    pd_buf *out;
} parser;

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

/* ---- where a value ends ---- */

/* Bytes of the mark between strings that s begins with: all, a part of it at the end (`-1`), or 0. */
static int gemma_mark(const char *s, size_t n) {
    const int is = pd_tool_starts(s, n, gemma_quote);
    return is > 0 ? GEMMA_QUOTE : is == 0 ? -1 : 0;
}

bool pd_literal_end(pd_literal_scan *scan, pd_literal_notation how, const char *s, size_t n) {
    for (; scan->at < n; scan->at++) {
        const char c = s[scan->at];
        if (how == PD_LITERAL_GEMMA && c == '<') {
            const int mark = gemma_mark(s + scan->at, n - scan->at);
            if (mark < 0) return false;
            if (mark > 0) {
                scan->quote = scan->quote ? 0 : '<';
                scan->at += (size_t)mark - 1;
                continue;
            }
        }
        if (scan->quote) {
            if (how == PD_LITERAL_GEMMA) continue;
            if (scan->escaped) scan->escaped = false;
            else if (c == '\\') scan->escaped = true;
            else if (c == scan->quote) scan->quote = 0;
        } else if (how == PD_LITERAL_PYTHON && (c == '\'' || c == '"')) {
            scan->quote = c;
        } else if (c == '[' || c == '(' || c == '{') {
            scan->depth++;
        } else if (scan->depth && (c == ']' || c == ')' || c == '}')) {
            scan->depth--;
        } else if (!scan->depth && (c == ',' || c == ']' || c == ')' || c == '}')) {
            return true;
        }
    }
    return false;
}

/* ---- strings ---- */

static int digit_of(char c) {
    if (is_digit(c)) return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return 99;
}

/* At most `most` digits; the number of them. */
static size_t digits(parser *p, uint32_t base, size_t most, uint32_t *ret) {
    size_t k = 0;
    for (*ret = 0; k < most && p->i < p->n && digit_of(p->s[p->i]) < (int)base; k++)
        *ret = *ret * base + (uint32_t)digit_of(p->s[p->i++]);
    return k;
}

static bool put_code(uint32_t cp, pd_buf *text) {
    char utf8[4];
    if (cp > 0x10FFFF) return false;
    if (cp >= 0xD800 && cp < 0xE000) cp = 0xFFFD;
    pd_buf_add(text, utf8, pd_utf8_put(cp, utf8));
    return true;
}

/* \uXXXX; JSON, which some templates mix in, writes what is beyond in two of them. */
static bool unicode(parser *p, pd_buf *text) {
    uint32_t cp, low;
    if (digits(p, 16, 4, &cp) < 4) return false;
    if (cp >= 0xD800 && cp < 0xDC00 && p->n - p->i >= 6 && p->s[p->i] == '\\' && p->s[p->i + 1] == 'u') {
        const size_t at = p->i;
        p->i += 2;
        if (digits(p, 16, 4, &low) == 4 && low >= 0xDC00 && low < 0xE000) cp = 0x10000 + ((cp - 0xD800) << 10) + (low - 0xDC00);
        else p->i = at;
    }
    return put_code(cp, text);
}

/* Behind a backslash.  One that stands for nothing is a backslash, as in Python. */
static bool escape(parser *p, pd_buf *text) {
    static const char from[] = "\\'\"/abfnrtv", to[] = "\\'\"/\a\b\f\n\r\t\v";
    if (p->i == p->n) return false;
    const char c = p->s[p->i++], *k = c ? strchr(from, c) : NULL;
    uint32_t cp;
    if (k) {
        pd_buf_putc(text, to[k - from]);
        return true;
    }
    switch (c) {
    case '\n': return true; /* the string goes on in the next line */
    case 'u': return unicode(p, text);
    case 'U': return digits(p, 16, 8, &cp) == 8 && put_code(cp, text);
    case 'x': return digits(p, 16, 2, &cp) == 2 && put_code(cp, text);
    default: break;
    }
    if (digit_of(c) < 8) {
        p->i--;
        digits(p, 8, 3, &cp);
        return put_code(cp, text);
    }
    pd_buf_putc(text, '\\');
    pd_buf_putc(text, c);
    return true;
}

static bool quoted(parser *p) {
    const char quote = p->s[p->i++];
    pd_buf text = {0};
    bool good = true, closed = false;
    while (good && !closed && p->i < p->n) {
        const char c = p->s[p->i++];
        if (c == quote) closed = true;
        else if (c == '\\') good = escape(p, &text);
        else pd_buf_putc(&text, c);
    }
    good = good && closed && !text.failed;
    if (good) pd_json_str(p->out, text.len ? text.data : "", text.len);
    pd_buf_done(&text);
    return good;
}

static bool marked(parser *p) {
    const char *s = p->s + p->i + GEMMA_QUOTE;
    const char *end = memmem(s, p->n - p->i - GEMMA_QUOTE, gemma_quote, GEMMA_QUOTE);
    if (!end) return false;
    pd_json_str(p->out, s, (size_t)(end - s));
    p->i = (size_t)(end - p->s) + GEMMA_QUOTE;
    return true;
}

/* A string is next: 1 it was good, 0 it was not, -1 none is. */
static int string(parser *p) {
    if (p->i == p->n) return -1;
    if (p->how == PD_LITERAL_GEMMA) return gemma_mark(p->s + p->i, p->n - p->i) > 0 ? marked(p) : -1;
    return p->s[p->i] == '\'' || p->s[p->i] == '"' ? quoted(p) : -1;
}

/* ---- numbers, words, lists and objects ---- */

/* JSON's: -?(0|[1-9][0-9]*)(.[0-9]+)?([eE][+-]?[0-9]+)? */
static bool is_number(const char *s, size_t n) {
    size_t i = n && *s == '-', from = i;
    while (i < n && is_digit(s[i])) i++;
    if (i == from || (s[from] == '0' && i > from + 1)) return false;
    if (i < n && s[i] == '.') {
        from = ++i;
        while (i < n && is_digit(s[i])) i++;
        if (i == from) return false;
    }
    if (i < n && (s[i] == 'e' || s[i] == 'E')) {
        i++;
        if (i < n && (s[i] == '+' || s[i] == '-')) i++;
        from = i;
        while (i < n && is_digit(s[i])) i++;
        if (i == from) return false;
    }
    return i == n;
}

/* Up to what ends one, without the space before that. */
static pd_str word(parser *p) {
    const size_t from = p->i;
    while (p->i < p->n && p->s[p->i] && !strchr(",:[](){}", p->s[p->i])) p->i++;
    size_t to = p->i;
    while (to > from && pd_tool_white(p->s[to - 1])) to--;
    return (pd_str){p->s + from, to - from};
}

static bool scalar(parser *p) {
    static const char *const words[][2] = {{"True", "true"}, {"true", "true"}, {"False", "false"}, {"false", "false"},
                                           {"None", "null"}, {"null", "null"}};
    const pd_str w = word(p);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strlen(words[i][0]) != w.len || memcmp(words[i][0], w.data, w.len) != 0) continue;
        pd_buf_puts(p->out, words[i][1]);
        return true;
    }
    if (is_number(w.data, w.len)) {
        pd_buf_add(p->out, w.data, w.len);
        return true;
    }
    if (p->how == PD_LITERAL_PYTHON || w.len == 0) return false;
    pd_json_str(p->out, w.data, w.len);
    return true;
}

static void skip_white(parser *p) {
    while (p->i < p->n && pd_tool_white(p->s[p->i])) p->i++;
}

/* The next byte that is no space is `c`, and taken. */
static bool take(parser *p, char c) {
    skip_white(p);
    if (p->i == p->n || p->s[p->i] != c) return false;
    p->i++;
    return true;
}

/* A key is a string; Gemma's may be a word, Python's a number. */
static bool key(parser *p) {
    skip_white(p);
    const int is = string(p);
    if (is >= 0) return is;
    const pd_str w = word(p);
    if (w.len == 0 || (p->how == PD_LITERAL_PYTHON && !is_number(w.data, w.len))) return false;
    pd_json_str(p->out, w.data, w.len);
    return true;
}

static bool value(parser *p);

/* Behind the opening bracket.  A comma may stand before the closing one. */
static bool members(parser *p, char close) {
    const bool object = close == '}';
    const size_t start = p->out->len;
    bool comma = false;
    size_t count = 0;
    pd_buf_putc(p->out, object ? '{' : '[');
    while (!take(p, close)) {
        if (count && !comma) return false;
        if (count++) pd_buf_puts(p->out, ", ");
        if (object) {
            if (!key(p) || !take(p, ':')) return false;
            pd_buf_puts(p->out, ": ");
        }
        if (!value(p)) return false;
        comma = take(p, ',');
    }
    if (close == ')' && count == 1 && !comma) { /* no tuple: a value in brackets */
        if (!p->out->failed) p->out->data[start] = ' ';
        return true;
    }
    pd_buf_putc(p->out, object ? '}' : ']');
    return true;
}

static bool value(parser *p) {
    skip_white(p);
    const int is = string(p);
    if (is >= 0) return is;
    if (p->i == p->n) return false;
    const char c = p->s[p->i];
    if (c != '[' && c != '{' && (c != '(' || p->how == PD_LITERAL_GEMMA)) return scalar(p);
    if (p->depth == PD_LITERAL_DEPTH_MAX) return false;
    p->i++;
    p->depth++;
    const bool good = members(p, c == '[' ? ']' : c == '{' ? '}' : ')');
    p->depth--;
    return good;
}

bool pd_literal_json(pd_literal_notation how, const char *s, size_t n, pd_buf *out) {
    parser p = {.how = how, .s = s, .n = n, .out = out};
    const size_t start = out->len;
    bool good = value(&p);
    skip_white(&p);
    good = good && p.i == n;
    if (!good) pd_buf_cut(out, start);
    return good;
}
