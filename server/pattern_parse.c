/* SPDX-License-Identifier: Apache-2.0 */
/* A regular expression to a tree (see pattern_grammar.h for what is read): one pass,
 * recursive over groups only.  A quantifier binds the part in front of it. */
#include "engine/base/utf8.h"
#include "server/pattern_int.h"

#include <stdlib.h>
#include <string.h>

enum { POINT_MAX = 0x10FFFF, RANGES_MAX = 1 << 16, REPEAT_MAX = 10000 };

typedef struct {
    pd__pattern *p;
    size_t at;
    unsigned nest;
    pd_err *err;
} reader;

pd_status pd__pattern_bad(const pd__pattern *p, size_t at, pd_err *err, const char *what) {
    return pd_fail(err, PD_EINVAL, p->path, "%s: %s (byte %zu of the pattern)", p->path, what, at);
}

static pd_status grow(void **v, size_t n, size_t *cap, size_t size, pd_err *err) {
    if (n < *cap) return PD_OK;
    const size_t more = *cap ? *cap * 2 : 64;
    void *w = realloc(*v, more * size);
    if (!w) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a pattern");
    *v = w;
    *cap = more;
    return PD_OK;
}

pd_status pd__pattern_add(pd__pattern *p, pd__p_part part, int32_t *ret, pd_err *err) {
    if (p->n_part == PD_PATTERN_PARTS_MAX)
        return pd_fail(err, PD_EINVAL, p->path, "%s: the pattern has more than %d parts", p->path, PD_PATTERN_PARTS_MAX);
    PD_TRY(grow((void **)&p->part, p->n_part, &p->cap_part, sizeof *p->part, err));
    part.next = -1;
    p->part[p->n_part] = part;
    *ret = (int32_t)p->n_part++;
    return PD_OK;
}

pd_status pd__pattern_range(pd__pattern *p, uint32_t lo, uint32_t hi, pd_err *err) {
    if (p->n_range == RANGES_MAX)
        return pd_fail(err, PD_EINVAL, p->path, "%s: the pattern's classes have more than %d ranges", p->path, RANGES_MAX);
    PD_TRY(grow((void **)&p->range, p->n_range, &p->cap_range, sizeof *p->range, err));
    p->range[p->n_range++] = (pd__p_range){lo, hi};
    return PD_OK;
}

static pd_status bad(const reader *r, const char *what) {
    return pd__pattern_bad(r->p, r->at, r->err, what);
}

static int peek(const reader *r, size_t ahead) {
    return r->at + ahead < r->p->len ? (unsigned char)r->p->re[r->at + ahead] : -1;
}

/* ---- sets ---- */

static int by_lo(const void *a, const void *b) {
    const pd__p_range *x = a, *y = b;
    return x->lo < y->lo ? -1 : x->lo > y->lo;
}

/* Ranges from `off` on: sorted, joined, turned round if negated; a part of them. */
static pd_status end_set(reader *r, size_t off, bool negated, size_t at, int32_t *ret) {
    pd__pattern *p = r->p;
    size_t n = off;
    if (p->n_range > off) qsort(p->range + off, p->n_range - off, sizeof *p->range, by_lo);
    for (size_t i = off; i < p->n_range; i++) {
        if (n > off && p->range[i].lo <= p->range[n - 1].hi + 1) {
            if (p->range[i].hi > p->range[n - 1].hi) p->range[n - 1].hi = p->range[i].hi;
        } else p->range[n++] = p->range[i];
    }
    p->n_range = n;
    if (negated) {
        PD_TRY(pd__pattern_range(p, 0, 0, r->err)); /* room: the complement may have one more */
        uint32_t from = 0;
        size_t to = off;
        for (size_t i = off; i < n; i++) {
            const pd__p_range x = p->range[i];
            if (x.lo > from) p->range[to++] = (pd__p_range){from, x.lo - 1};
            from = x.hi + 1;
        }
        if (from <= POINT_MAX) p->range[to++] = (pd__p_range){from, POINT_MAX};
        p->n_range = to;
    }
    if (p->n_range == off) return pd__pattern_bad(p, at, r->err, "no character is in this class");
    return pd__pattern_add(p, (pd__p_part){.kind = PD__P_SET, .child = -1, .off = (uint32_t)off, .n = (uint32_t)(p->n_range - off), .at = (uint32_t)at}, ret, r->err);
}

static pd_status add_table(reader *r, const pd__p_range *x, size_t n, bool complement) {
    uint32_t from = 0;
    for (size_t i = 0; i < n; i++) {
        if (!complement) PD_TRY(pd__pattern_range(r->p, x[i].lo, x[i].hi, r->err));
        else if (x[i].lo > from) PD_TRY(pd__pattern_range(r->p, from, x[i].lo - 1, r->err));
        from = x[i].hi + 1;
    }
    return complement ? pd__pattern_range(r->p, from, POINT_MAX, r->err) : PD_OK;
}

/* \d \w \s and their opposites into the set that is open; false: another letter.
 * `negated`: the set will be turned round, so what is doubtful belongs into it. */
static bool add_class(reader *r, int letter, bool negated, pd_status *rc) {
    static const pd__p_range digit[] = {{'0', '9'}}, word[] = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
    static const pd__p_range space[] = {{'\t', '\r'}, {' ', ' '}}, /* what every dialect takes for one */
        spaces[] = {{'\t', '\r'}, {0x1C, ' '}, {0x85, 0x85}, {0xA0, 0xA0}, {0x1680, 0x1680}, {0x2000, 0x200A},
                    {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}, {0xFEFF, 0xFEFF}}; /* what any does */
    switch (letter) {
    case 'd': case 'D': *rc = add_table(r, digit, 1, letter == 'D'); return true;
    case 'w': case 'W': *rc = add_table(r, word, 4, letter == 'W'); return true;
    case 's': *rc = negated ? add_table(r, spaces, 11, false) : add_table(r, space, 2, false); return true;
    case 'S': *rc = negated ? add_table(r, space, 2, true) : add_table(r, spaces, 11, true); return true;
    default: return false;
    }
}

static pd_status read_hex(reader *r, unsigned digits, uint32_t *ret) {
    uint32_t x = 0;
    for (unsigned i = 0; i < digits; i++, r->at++) {
        const int c = peek(r, 0);
        const int d = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (d < 0) return bad(r, "a hexadecimal digit is expected");
        x = x << 4 | (uint32_t)d;
    }
    if (x >= 0xD800 && x < 0xE000) return bad(r, "half of a surrogate pair is not served: write the character");
    *ret = x;
    return PD_OK;
}

/* What stands behind a backslash, if it is one character. */
static pd_status read_escape(reader *r, bool in_class, uint32_t *ret) {
    const int c = peek(r, 0);
    r->at++;
    switch (c) {
    case 'n': *ret = '\n'; return PD_OK;
    case 'r': *ret = '\r'; return PD_OK;
    case 't': *ret = '\t'; return PD_OK;
    case 'f': *ret = '\f'; return PD_OK;
    case 'v': *ret = '\v'; return PD_OK;
    case 'x': return read_hex(r, 2, ret);
    case 'u': return read_hex(r, 4, ret);
    case '0':
        if (peek(r, 0) >= '0' && peek(r, 0) <= '9') break;
        *ret = 0;
        return PD_OK;
    case 'b':
        if (!in_class) break;
        *ret = '\b';
        return PD_OK;
    default:
        if (c > ' ' && c < 0x7F && !(c >= '0' && c <= '9') && !(c >= 'a' && c <= 'z') && !(c >= 'A' && c <= 'Z')) {
            *ret = (uint32_t)c;
            return PD_OK;
        }
        break;
    }
    r->at--;
    if (c < 0) return bad(r, "a backslash ends the pattern");
    if (c == 'b' || c == 'B') return bad(r, "\\b and \\B are not served");
    if (c >= '1' && c <= '9') return bad(r, "a back reference is not served");
    if (c == 'p' || c == 'P') return bad(r, "\\p is not served: write the ranges");
    if (c == 'A' || c == 'Z' || c == 'z') return bad(r, "\\A and \\Z are not served: write ^ and $");
    return bad(r, "this escape is not served");
}

static pd_status read_point(reader *r, bool in_class, uint32_t *ret) {
    if (peek(r, 0) == '\\') {
        r->at++;
        return read_escape(r, in_class, ret);
    }
    const size_t n = pd_utf8_next(r->p->re + r->at, r->p->len - r->at, ret);
    if (n == 0) return bad(r, "broken UTF-8");
    r->at += n;
    return PD_OK;
}

static pd_status read_class(reader *r, int32_t *ret) {
    const size_t off = r->p->n_range, at = r->at++;
    const bool negated = peek(r, 0) == '^';
    r->at += negated;
    if (peek(r, 0) == ']') return bad(r, "an empty class is not served; \\] is a bracket");
    while (peek(r, 0) != ']') {
        uint32_t lo = 0, hi;
        pd_status rc = PD_OK;
        if (peek(r, 0) < 0) return pd__pattern_bad(r->p, at, r->err, "this class does not end");
        if (peek(r, 0) == '[' && (peek(r, 1) == ':' || peek(r, 1) == '.' || peek(r, 1) == '='))
            return bad(r, "POSIX classes are not served");
        const bool is_class = peek(r, 0) == '\\' && add_class(r, peek(r, 1), negated, &rc);
        PD_TRY(rc);
        if (is_class) {
            r->at += 2;
            if (peek(r, 0) == '-' && peek(r, 1) != ']') return bad(r, "a range that begins with a class");
            continue;
        }
        PD_TRY(read_point(r, true, &lo));
        hi = lo;
        if (peek(r, 0) == '-' && peek(r, 1) >= 0 && peek(r, 1) != ']') {
            r->at++;
            PD_TRY(read_point(r, true, &hi));
            if (hi < lo) return bad(r, "a range of characters runs backwards");
        }
        PD_TRY(pd__pattern_range(r->p, lo, hi, r->err));
    }
    r->at++;
    return end_set(r, off, negated, at, ret);
}

/* ---- parts ---- */

static pd_status read_alternatives(reader *r, int32_t *ret);

static pd_status read_group(reader *r, int32_t *ret) {
    const size_t at = r->at++;
    if (peek(r, 0) == '?') {
        const bool python = peek(r, 1) == 'P' && peek(r, 2) == '<';
        const int c = peek(r, python ? 2 : 1), then = peek(r, python ? 3 : 2);
        if (c == ':') r->at += 2;
        else if (c == '=' || c == '!' || (c == '<' && (then == '=' || then == '!'))) return pd__pattern_bad(r->p, at, r->err, "look-around is not served");
        else if (c == '<') {
            while (peek(r, 0) >= 0 && peek(r, 0) != '>') r->at++;
            if (peek(r, 0) < 0) return pd__pattern_bad(r->p, at, r->err, "this group's name does not end");
            r->at++;
        } else return pd__pattern_bad(r->p, at, r->err, "flags and conditions in a group are not served");
    }
    if (r->nest == PD_PATTERN_NEST_MAX)
        return pd_fail(r->err, PD_EINVAL, r->p->path, "%s: the pattern nests groups deeper than %d", r->p->path, PD_PATTERN_NEST_MAX);
    r->nest++;
    PD_TRY(read_alternatives(r, ret));
    r->nest--;
    if (peek(r, 0) != ')') return pd__pattern_bad(r->p, at, r->err, "this group does not end");
    r->at++;
    return PD_OK;
}

static pd_status read_one(reader *r, int32_t *ret) {
    static const pd__p_range line_end[] = {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};
    const size_t at = r->at, off = r->p->n_range;
    const int c = peek(r, 0);
    pd_status rc = PD_OK;
    uint32_t x = 0;
    switch (c) {
    case '(': return read_group(r, ret);
    case '[': return read_class(r, ret);
    case '*': case '+': case '?': case '{': return bad(r, "there is nothing to repeat here; a brace is \\{");
    case '^':
    case '$':
        r->at++;
        return pd__pattern_add(r->p, (pd__p_part){.kind = c == '^' ? PD__P_BEGIN : PD__P_END, .child = -1, .at = (uint32_t)at}, ret, r->err);
    case '.':
        r->at++;
        PD_TRY(add_table(r, line_end, 3, true));
        return end_set(r, off, false, at, ret);
    default: break;
    }
    if (c == '\\' && add_class(r, peek(r, 1), false, &rc)) {
        r->at += 2;
        PD_TRY(rc);
        return end_set(r, off, false, at, ret);
    }
    PD_TRY(read_point(r, false, &x));
    PD_TRY(pd__pattern_range(r->p, x, x, r->err));
    return end_set(r, off, false, at, ret);
}

static pd_status read_count(reader *r, int32_t *ret) {
    int32_t n = 0;
    if (peek(r, 0) < '0' || peek(r, 0) > '9') return bad(r, "{m}, {m,} or {m,n} is expected; a brace is \\{");
    for (; peek(r, 0) >= '0' && peek(r, 0) <= '9'; r->at++) {
        n = n * 10 + (peek(r, 0) - '0');
        if (n > REPEAT_MAX)
            return pd_fail(r->err, PD_EINVAL, r->p->path, "%s: the pattern repeats something more than %d times", r->p->path, REPEAT_MAX);
    }
    *ret = n;
    return PD_OK;
}

/* What is repeated, and how often. */
static pd_status read_repeat(reader *r, int32_t *one) {
    const int c = peek(r, 0);
    const size_t at = r->at;
    if (c != '*' && c != '+' && c != '?' && c != '{') return PD_OK;
    const pd__p_kind kind = r->p->part[*one].kind;
    if (kind == PD__P_BEGIN || kind == PD__P_END) return bad(r, "^ and $ are not repeated");
    int32_t min = c == '+', max = c == '?' ? 1 : PD__P_FOREVER;
    r->at++;
    if (c == '{') {
        PD_TRY(read_count(r, &min));
        max = min;
        if (peek(r, 0) == ',') {
            r->at++;
            max = PD__P_FOREVER;
            if (peek(r, 0) != '}') PD_TRY(read_count(r, &max));
        }
        if (peek(r, 0) != '}') return bad(r, "'}' is expected");
        if (max < min) return bad(r, "a repetition's maximum is below its minimum");
        r->at++;
    }
    if (peek(r, 0) == '?') r->at++; /* lazy: the same texts */
    if (peek(r, 0) == '+') return bad(r, "a possessive quantifier is not served");
    if (peek(r, 0) == '*' || peek(r, 0) == '?' || peek(r, 0) == '{') return bad(r, "a repetition of a repetition: put it in a group");
    return pd__pattern_add(r->p, (pd__p_part){.kind = PD__P_REPEAT, .child = *one, .min = min, .max = max, .at = (uint32_t)at}, one, r->err);
}

static pd_status read_sequence(reader *r, int32_t *ret) {
    int32_t last = -1;
    PD_TRY(pd__pattern_add(r->p, (pd__p_part){.kind = PD__P_SEQ, .child = -1, .at = (uint32_t)r->at}, ret, r->err));
    while (peek(r, 0) >= 0 && peek(r, 0) != '|' && peek(r, 0) != ')') {
        int32_t one;
        PD_TRY(read_one(r, &one));
        PD_TRY(read_repeat(r, &one));
        if (last < 0) r->p->part[*ret].child = one;
        else r->p->part[last].next = one;
        last = one;
    }
    return PD_OK;
}

static pd_status read_alternatives(reader *r, int32_t *ret) {
    int32_t last = -1;
    PD_TRY(pd__pattern_add(r->p, (pd__p_part){.kind = PD__P_ALT, .child = -1, .at = (uint32_t)r->at}, ret, r->err));
    for (;;) {
        int32_t one;
        PD_TRY(read_sequence(r, &one));
        if (last < 0) r->p->part[*ret].child = one;
        else r->p->part[last].next = one;
        last = one;
        if (peek(r, 0) != '|') return PD_OK;
        r->at++;
    }
}

pd_status pd__pattern_parse(pd__pattern *p, pd_err *err) {
    reader r = {.p = p, .err = err};
    if (p->len > PD_PATTERN_BYTES_MAX)
        return pd_fail(err, PD_EINVAL, p->path, "%s: the pattern has %zu bytes; at most %d are allowed", p->path, p->len, PD_PATTERN_BYTES_MAX);
    PD_TRY(read_alternatives(&r, &p->top));
    return peek(&r, 0) < 0 ? PD_OK : bad(&r, "')' without '('; a parenthesis is \\)");
}
