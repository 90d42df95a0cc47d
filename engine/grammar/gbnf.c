/* SPDX-License-Identifier: Apache-2.0 */
/* GBNF text to rules: one pass, recursive over parentheses only. */
#include "engine/grammar/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS = 4 * PD_GRAMMAR_RULES_MAX };

typedef struct {
    pd__g_rules *r;
    size_t at;
    unsigned nest;
    pd_err *err;
} reader;

pd_status pd__g_fail(const pd__g_rules *r, size_t at, pd_err *err, const char *what) {
    size_t line = 1, column = 1;
    for (size_t i = 0; i < at && i < r->text_len; i++) {
        column = r->text[i] == '\n' ? 1 : column + 1;
        line += r->text[i] == '\n';
    }
    return pd_fail(err, PD_EINVAL, r->field, "%s, line %zu, column %zu: %s", r->field, line, column, what);
}

static pd_status bad(const reader *p, const char *what) {
    return pd__g_fail(p->r, p->at, p->err, what);
}

static pd_status grow(void **v, size_t n, size_t *cap, size_t size, pd_err *err) {
    if (n < *cap) return PD_OK;
    const size_t more = *cap ? *cap * 2 : 64;
    void *w = realloc(*v, more * size);
    if (!w) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a grammar");
    *v = w;
    *cap = more;
    return PD_OK;
}

static pd_status add_item(reader *p, pd__g_item it, int32_t *ret) {
    pd__g_rules *r = p->r;
    if (r->n_item >= PD_GRAMMAR_NODES_MAX)
        return pd_fail(p->err, PD_EINVAL, r->field, "%s has more than %d parts", r->field, PD_GRAMMAR_NODES_MAX);
    PD_TRY(grow((void **)&r->item, r->n_item, &r->cap_item, sizeof *r->item, p->err));
    it.next = -1;
    r->item[r->n_item] = it;
    *ret = (int32_t)r->n_item++;
    return PD_OK;
}

static pd_status add_byte(reader *p, char c) {
    pd__g_rules *r = p->r;
    PD_TRY(grow((void **)&r->bytes, r->n_bytes, &r->cap_bytes, 1, p->err));
    r->bytes[r->n_bytes++] = c;
    return PD_OK;
}

static pd_status add_range(reader *p, uint32_t lo, uint32_t hi) {
    pd__g_rules *r = p->r;
    PD_TRY(grow((void **)&r->range, r->n_range, &r->cap_range, sizeof *r->range, p->err));
    r->range[r->n_range++] = (pd__g_range){lo, hi};
    return PD_OK;
}

/* ---- characters ---- */

static int peek(const reader *p) {
    return p->at < p->r->text_len ? (unsigned char)p->r->text[p->at] : -1;
}

static void blanks(reader *p, bool lines) {
    for (;;) {
        const int c = peek(p);
        if (c == ' ' || c == '\t' || (lines && (c == '\n' || c == '\r'))) p->at++;
        else if (c == '#') while (peek(p) >= 0 && peek(p) != '\n') p->at++;
        else return;
    }
}

static bool is_name(int c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

static pd_status read_hex(reader *p, unsigned digits, uint32_t *ret) {
    uint32_t x = 0;
    for (unsigned i = 0; i < digits; i++, p->at++) {
        const int c = peek(p);
        const int d = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (d < 0) return bad(p, "a hexadecimal digit is expected");
        x = x << 4 | (uint32_t)d;
    }
    if (x > 0x10FFFF || (x >= 0xD800 && x < 0xE000)) return bad(p, "no such code point");
    *ret = x;
    return PD_OK;
}

/* A character of a string or a class. */
static pd_status read_char(reader *p, uint32_t *ret) {
    const unsigned char *s = (const unsigned char *)p->r->text + p->at;
    if (*s != '\\') {
        const unsigned n = *s < 0x80 ? 1 : *s >= 0xF0 ? 4 : *s >= 0xE0 ? 3 : 2;
        uint32_t x = *s < 0x80 ? *s : *s & (0x7Fu >> n);
        if ((*s >= 0x80 && *s < 0xC2) || *s > 0xF4 || p->at + n > p->r->text_len) return bad(p, "broken UTF-8");
        for (unsigned i = 1; i < n; i++) {
            if ((s[i] & 0xC0) != 0x80) return bad(p, "broken UTF-8");
            x = x << 6 | (s[i] & 0x3F);
        }
        static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
        if (x < least[n] || x > 0x10FFFF || (x >= 0xD800 && x < 0xE000)) return bad(p, "broken UTF-8");
        p->at += n;
        *ret = x;
        return PD_OK;
    }
    p->at++;
    const int c = peek(p);
    p->at++;
    switch (c) {
    case 'n': *ret = '\n'; return PD_OK;
    case 'r': *ret = '\r'; return PD_OK;
    case 't': *ret = '\t'; return PD_OK;
    case 'x': return read_hex(p, 2, ret);
    case 'u': return read_hex(p, 4, ret);
    case 'U': return read_hex(p, 8, ret);
    case '\\': case '"': case '[': case ']': case '-': case '^': *ret = (uint32_t)c; return PD_OK;
    default: break;
    }
    p->at--;
    return bad(p, "unknown escape");
}

static pd_status read_text(reader *p, int32_t *ret) {
    const size_t off = p->r->n_bytes;
    for (p->at++; peek(p) != '"';) {
        uint32_t c;
        if (peek(p) < 0 || peek(p) == '\n') return bad(p, "a string does not end");
        PD_TRY(read_char(p, &c));
        const unsigned n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
        if (n == 1) PD_TRY(add_byte(p, (char)c));
        else PD_TRY(add_byte(p, (char)((0xF00u >> n & 0xFFu) | c >> 6 * (n - 1))));
        for (unsigned i = 1; i < n; i++) PD_TRY(add_byte(p, (char)(0x80 | (c >> 6 * (n - 1 - i) & 0x3F))));
    }
    p->at++;
    return add_item(p, (pd__g_item){.kind = PD__G_TEXT, .off = (uint32_t)off, .len = (uint32_t)(p->r->n_bytes - off)}, ret);
}

static int by_lo(const void *a, const void *b) {
    const pd__g_range *x = a, *y = b;
    return x->lo < y->lo ? -1 : x->lo > y->lo;
}

/* Ranges from `off` on: sorted, joined, turned round if negated. */
static pd_status tidy_set(reader *p, size_t off, bool negated) {
    pd__g_rules *r = p->r;
    size_t n = off;
    if (r->n_range > off) qsort(r->range + off, r->n_range - off, sizeof *r->range, by_lo);
    for (size_t i = off; i < r->n_range; i++) {
        if (n > off && r->range[i].lo <= r->range[n - 1].hi + 1) {
            if (r->range[i].hi > r->range[n - 1].hi) r->range[n - 1].hi = r->range[i].hi;
        } else r->range[n++] = r->range[i];
    }
    r->n_range = n;
    if (!negated) return PD_OK;
    PD_TRY(add_range(p, 0, 0)); /* room: the complement may have one more */
    r->n_range--;
    uint32_t from = 0;
    size_t to = off;
    for (size_t i = off; i < n; i++) {
        const pd__g_range x = r->range[i];
        if (x.lo > from) r->range[to++] = (pd__g_range){from, x.lo - 1};
        from = x.hi + 1;
    }
    if (from <= 0x10FFFF) r->range[to++] = (pd__g_range){from, 0x10FFFF};
    r->n_range = to;
    return PD_OK;
}

static pd_status read_set(reader *p, int32_t *ret) {
    const size_t off = p->r->n_range;
    p->at++;
    const bool negated = peek(p) == '^';
    p->at += negated;
    while (peek(p) != ']') {
        uint32_t lo, hi;
        if (peek(p) < 0 || peek(p) == '\n') return bad(p, "a character class does not end");
        PD_TRY(read_char(p, &lo));
        hi = lo;
        if (peek(p) == '-' && p->at + 1 < p->r->text_len && p->r->text[p->at + 1] != ']') {
            p->at++;
            PD_TRY(read_char(p, &hi));
            if (hi < lo) return bad(p, "a range of characters runs backwards");
        }
        PD_TRY(add_range(p, lo, hi));
    }
    p->at++;
    PD_TRY(tidy_set(p, off, negated));
    return add_item(p, (pd__g_item){.kind = PD__G_SET, .off = (uint32_t)off, .len = (uint32_t)(p->r->n_range - off)}, ret);
}

/* ---- rules ---- */

static pd_status read_name(reader *p, int32_t *ret) {
    pd__g_rules *r = p->r;
    const char *name = r->text + p->at;
    const size_t at = p->at;
    uint32_t h = 2166136261u;
    while (is_name(peek(p))) h = (uint32_t)((uint64_t)(h ^ (unsigned)peek(p)) * 16777619u), p->at++;
    const size_t len = p->at - at;
    for (size_t s = h % SLOTS;; s = (s + 1) % SLOTS) {
        const int32_t i = r->slot[s] - 1;
        if (i >= 0 && (r->rule[i].len != len || memcmp(r->rule[i].name, name, len) != 0)) continue;
        if (i < 0) {
            if (r->n_rule >= PD_GRAMMAR_RULES_MAX)
                return pd_fail(p->err, PD_EINVAL, r->field, "%s has more than %d rules", r->field, PD_GRAMMAR_RULES_MAX);
            r->rule[r->n_rule++] = (pd__g_rule){.name = name, .len = len, .body = -1, .at = at};
            r->slot[s] = (int32_t)r->n_rule;
        }
        *ret = r->slot[s] - 1;
        return PD_OK;
    }
}

static pd_status read_number(reader *p, int32_t *ret) {
    int32_t n = 0;
    if (peek(p) < '0' || peek(p) > '9') return bad(p, "a number is expected");
    for (; peek(p) >= '0' && peek(p) <= '9'; p->at++) {
        n = n * 10 + (peek(p) - '0');
        if (n > PD_GRAMMAR_REPEAT_MAX)
            return pd_fail(p->err, PD_EINVAL, p->r->field, "%s repeats something more than %d times", p->r->field, PD_GRAMMAR_REPEAT_MAX);
    }
    *ret = n;
    return PD_OK;
}

static pd_status read_repeats(reader *p, bool lines, int32_t *item) {
    for (unsigned n = 0;; n++) {
        int32_t min = 0, max = PD__G_FOREVER;
        const size_t before = p->at;
        blanks(p, lines);
        const int c = peek(p);
        if (c != '*' && c != '+' && c != '?' && c != '{') {
            p->at = before;
            return PD_OK;
        }
        if (n == PD_GRAMMAR_NEST_MAX) return bad(p, "too many repetitions of one thing");
        p->at++;
        if (c == '+') min = 1;
        if (c == '?') max = 1;
        if (c == '{') {
            blanks(p, lines);
            if (peek(p) != ',') PD_TRY(read_number(p, &min));
            blanks(p, lines);
            if (peek(p) == ',') {
                p->at++;
                blanks(p, lines);
                if (peek(p) != '}') PD_TRY(read_number(p, &max));
            } else max = min;
            blanks(p, lines);
            if (peek(p) != '}') return bad(p, "'}' is expected");
            if (max < min) return bad(p, "a repetition's maximum is below its minimum");
            p->at++;
        }
        PD_TRY(add_item(p, (pd__g_item){.kind = PD__G_REPEAT, .child = *item, .min = min, .max = max}, item));
    }
}

static pd_status read_alternatives(reader *p, bool lines, int32_t *ret);

static pd_status read_one(reader *p, int32_t *ret) {
    const int c = peek(p);
    if (c == '"') return read_text(p, ret);
    if (c == '[') return read_set(p, ret);
    if (c == '.') {
        p->at++;
        PD_TRY(add_range(p, 0, 0x10FFFF));
        return add_item(p, (pd__g_item){.kind = PD__G_SET, .off = (uint32_t)p->r->n_range - 1, .len = 1}, ret);
    }
    if (c == '(') {
        if (p->nest == PD_GRAMMAR_NEST_MAX)
            return pd_fail(p->err, PD_EINVAL, p->r->field, "%s nests parentheses deeper than %d", p->r->field, PD_GRAMMAR_NEST_MAX);
        p->nest++;
        p->at++;
        PD_TRY(read_alternatives(p, true, ret));
        if (peek(p) != ')') return bad(p, "')' is expected");
        p->at++;
        p->nest--;
        return PD_OK;
    }
    int32_t rule;
    PD_TRY(read_name(p, &rule));
    return add_item(p, (pd__g_item){.kind = PD__G_REF, .rule = rule}, ret);
}

static pd_status read_sequence(reader *p, bool lines, int32_t *ret) {
    int32_t last = -1;
    PD_TRY(add_item(p, (pd__g_item){.kind = PD__G_SEQ, .child = -1}, ret));
    for (;;) {
        blanks(p, lines);
        const int c = peek(p);
        if (c != '"' && c != '[' && c != '.' && c != '(' && !is_name(c)) return PD_OK;
        int32_t one;
        PD_TRY(read_one(p, &one));
        PD_TRY(read_repeats(p, lines, &one));
        if (last < 0) p->r->item[*ret].child = one;
        else p->r->item[last].next = one;
        last = one;
    }
}

static pd_status read_alternatives(reader *p, bool lines, int32_t *ret) {
    int32_t last;
    PD_TRY(add_item(p, (pd__g_item){.kind = PD__G_ALT}, ret));
    blanks(p, true);
    PD_TRY(read_sequence(p, lines, &last));
    p->r->item[*ret].child = last;
    while (peek(p) == '|') {
        int32_t one;
        p->at++;
        blanks(p, true);
        PD_TRY(read_sequence(p, lines, &one));
        p->r->item[last].next = one;
        last = one;
    }
    return PD_OK;
}

static pd_status read_rule(reader *p) {
    int32_t rule, body;
    const size_t at = p->at;
    if (!is_name(peek(p))) return bad(p, "a rule's name is expected");
    PD_TRY(read_name(p, &rule));
    blanks(p, false);
    if (p->at + 3 > p->r->text_len || memcmp(p->r->text + p->at, "::=", 3) != 0) return bad(p, "'::=' is expected");
    p->at += 3;
    PD_TRY(read_alternatives(p, false, &body));
    if (peek(p) >= 0 && peek(p) != '\n' && peek(p) != '\r') return bad(p, "unexpected character");
    if (p->r->rule[rule].body >= 0) return pd__g_fail(p->r, at, p->err, "a rule of this name is there already");
    p->r->rule[rule].body = body;
    return PD_OK;
}

pd_status pd__g_rules_parse(pd__g_rules *r, pd_err *err) {
    reader p = {.r = r, .err = err};
    if (r->text_len > PD_GRAMMAR_TEXT_MAX)
        return pd_fail(err, PD_EINVAL, r->field, "%s has %zu bytes; at most %d are allowed", r->field, r->text_len, PD_GRAMMAR_TEXT_MAX);
    r->rule = malloc(PD_GRAMMAR_RULES_MAX * sizeof *r->rule);
    r->slot = calloc(SLOTS, sizeof *r->slot);
    if (!r->rule || !r->slot) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a grammar");
    for (blanks(&p, true); peek(&p) >= 0; blanks(&p, true)) PD_TRY(read_rule(&p));
    for (size_t i = 0; i < r->n_rule; i++)
        if (r->rule[i].body < 0) return pd__g_fail(r, r->rule[i].at, err, "a rule of this name is not defined");
    return PD_OK;
}

void pd__g_rules_done(pd__g_rules *r) {
    free(r->item);
    free(r->range);
    free(r->bytes);
    free(r->rule);
    free(r->slot);
    *r = (pd__g_rules){0};
}
