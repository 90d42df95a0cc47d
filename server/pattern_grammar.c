/* SPDX-License-Identifier: Apache-2.0 */
/* A pattern's tree as GBNF (see pattern_grammar.h): anchors become parts that read
 * anything or nothing, lengths become bounds of the one part that varies, and then
 * the tree is written.  Classes of many ranges are rules, so that a repetition of one
 * costs two nodes of the automaton each time. */
#include "server/pattern_grammar.h"

#include "server/pattern_int.h"

#include <stdlib.h>
#include <string.h>

enum { LENGTH_MAX = 1 << 24 };

typedef struct {
    pd__pattern p;
    const pd_pattern_use *use;
    pd_buf *expr, *rules;
    int32_t *set; /* parts that have a rule, by its number */
    size_t n_set;
    pd_err *err;
} writer;

/* ---- anchors ---- */

static bool has_anchor(const pd__pattern *p, int32_t i) {
    if (p->part[i].kind == PD__P_BEGIN || p->part[i].kind == PD__P_END) return true;
    for (int32_t k = p->part[i].child; k >= 0; k = p->part[k].next)
        if (has_anchor(p, k)) return true;
    return false;
}

typedef struct { int32_t first, last; } chain;

static void append(pd__pattern *p, chain *c, int32_t i) {
    if (c->first < 0) c->first = i;
    else p->part[c->last].next = i;
    c->last = i;
}

/* What a side without an anchor reads in front of a match or behind it. */
static pd_status append_anything(writer *w, chain *c) {
    int32_t set, any;
    if (!w->use->search) return PD_OK;
    const size_t off = w->p.n_range;
    PD_TRY(pd__pattern_range(&w->p, 0, 0x10FFFF, w->err));
    PD_TRY(pd__pattern_add(&w->p, (pd__p_part){.kind = PD__P_SET, .child = -1, .off = (uint32_t)off, .n = 1}, &set, w->err));
    PD_TRY(pd__pattern_add(&w->p, (pd__p_part){.kind = PD__P_REPEAT, .child = set, .max = PD__P_FOREVER}, &any, w->err));
    append(&w->p, c, any);
    return PD_OK;
}

static pd_status open_ends(writer *w, int32_t alt, bool left, bool right, int32_t *ret);

/* A sequence whose ends are the text's (left, right), without its anchors. */
static pd_status open_sequence(writer *w, int32_t seq, bool left, bool right, int32_t *ret) {
    pd__pattern *p = &w->p;
    chain c = {-1, -1};
    int32_t i = p->part[seq].child, end = -1; /* members i .. before end */
    while (left && i >= 0 && p->part[i].kind == PD__P_BEGIN) i = p->part[i].next;
    const bool begins = left && i != p->part[seq].child;
    for (int32_t k = i; k >= 0 && right; k = p->part[k].next) {
        if (p->part[k].kind != PD__P_END) end = -1;
        else if (end < 0) end = k;
    }
    const bool ends = end >= 0;
    if (left && !begins && (i == end || p->part[i].kind != PD__P_ALT || !has_anchor(p, i))) PD_TRY(append_anything(w, &c));
    bool open = false; /* the last member keeps its own right end */
    for (bool first = true; i != end; first = false) {
        const int32_t next = p->part[i].next;
        int32_t one = i;
        open = false;
        if (has_anchor(p, i)) {
            open = p->part[i].kind == PD__P_ALT;
            if (!open) return pd__pattern_bad(p, p->part[i].at, w->err, "^ and $ are served at the ends of the pattern or of an alternative");
            PD_TRY(open_ends(w, i, left && !begins && first, right && !ends && next < 0, &one));
        }
        p->part[one].next = -1;
        append(p, &c, one);
        i = next;
    }
    /* a side that is open and empty has its "anything" already */
    if (right && !ends && !open && !(left && !begins && c.first >= 0 && p->part[seq].child < 0)) PD_TRY(append_anything(w, &c));
    return pd__pattern_add(p, (pd__p_part){.kind = PD__P_SEQ, .child = c.first}, ret, w->err);
}

static pd_status open_ends(writer *w, int32_t alt, bool left, bool right, int32_t *ret) {
    chain c = {-1, -1};
    for (int32_t k = w->p.part[alt].child; k >= 0;) {
        const int32_t next = w->p.part[k].next;
        int32_t one;
        PD_TRY(open_sequence(w, k, left, right, &one));
        append(&w->p, &c, one);
        k = next;
    }
    return pd__pattern_add(&w->p, (pd__p_part){.kind = PD__P_ALT, .child = c.first}, ret, w->err);
}

/* ---- lengths ---- */

typedef struct { int64_t min, max; } lengths; /* LENGTH_MAX: or more */

static int64_t sum(int64_t a, int64_t b) {
    return a + b < LENGTH_MAX ? a + b : LENGTH_MAX;
}

static int64_t times(int64_t n, int64_t k) {
    if (n == 0 || k == 0) return 0;
    return n < LENGTH_MAX / k ? n * k : LENGTH_MAX;
}

static lengths length_of(const pd__pattern *p, int32_t i) {
    const pd__p_part *x = &p->part[i];
    lengths all = {0, 0};
    switch (x->kind) {
    case PD__P_SET: return (lengths){1, 1};
    case PD__P_REPEAT:
        all = length_of(p, x->child);
        return (lengths){times(all.min, x->min), times(all.max, x->max)};
    case PD__P_ALT: all.min = LENGTH_MAX; break;
    default: break;
    }
    for (int32_t k = x->child; k >= 0; k = p->part[k].next) {
        const lengths one = length_of(p, k);
        if (x->kind == PD__P_SEQ) all = (lengths){sum(all.min, one.min), sum(all.max, one.max)};
        else all = (lengths){one.min < all.min ? one.min : all.min, one.max > all.max ? one.max : all.max};
    }
    return all;
}

typedef enum { KEPT, NEVER, UNKNOWN } bounded;

/* Part i, cut down to texts of min..max characters. */
static bounded keep_lengths(pd__pattern *p, int32_t i, int64_t min, int64_t max) {
    pd__p_part *x = &p->part[i];
    const lengths all = length_of(p, i);
    if (all.min > max || all.max < min) return NEVER;
    if (all.min >= min && all.max <= max) return KEPT;
    if (x->kind == PD__P_REPEAT) {
        const lengths one = length_of(p, x->child);
        if (one.min != one.max) return UNKNOWN;
        const int64_t least = min > 0 ? (min + one.min - 1) / one.min : 0, most = max / one.min;
        if (least > x->min) x->min = (int32_t)least;
        if (max < LENGTH_MAX && most < x->max) x->max = (int32_t)most;
        return x->min <= x->max ? KEPT : NEVER;
    }
    if (x->kind == PD__P_ALT) {
        int32_t *at = &x->child;
        while (*at >= 0) {
            const bounded one = keep_lengths(p, *at, min, max);
            if (one == UNKNOWN) return UNKNOWN;
            if (one == KEPT) at = &p->part[*at].next;
            else *at = p->part[*at].next;
        }
        return x->child >= 0 ? KEPT : NEVER;
    }
    int32_t varies = -1;
    int64_t others = 0;
    for (int32_t k = x->child; k >= 0; k = p->part[k].next) {
        const lengths one = length_of(p, k);
        if (one.min == one.max) others = sum(others, one.min);
        else if (varies < 0) varies = k;
        else return UNKNOWN;
    }
    return keep_lengths(p, varies, min - others, max - others);
}

/* ---- GBNF ---- */

static void write_point(pd_buf *to, uint32_t x) {
    if ((x >= '0' && x <= '9') || (x >= 'A' && x <= 'Z') || (x >= 'a' && x <= 'z')) pd_buf_putc(to, (char)x);
    else if (x < 0x100) pd_buf_printf(to, "\\x%02X", (unsigned)x);
    else pd_buf_printf(to, "\\U%08X", (unsigned)x);
}

static void write_range(pd_buf *to, uint32_t lo, uint32_t hi) {
    if (lo <= 0xDFFF && hi >= 0xD800) { /* GBNF has no name for a surrogate */
        if (lo < 0xD800) write_range(to, lo, 0xD7FF);
        if (hi > 0xDFFF) write_range(to, 0xE000, hi);
        return;
    }
    write_point(to, lo);
    if (hi > lo) {
        pd_buf_putc(to, '-');
        write_point(to, hi);
    }
}

static bool holds(const pd__p_range *x, size_t n, uint32_t point) {
    for (size_t i = 0; i < n; i++)
        if (point >= x[i].lo && point <= x[i].hi) return true;
    return false;
}

static const char short_escape[][2] = {{'"', '"'}, {'\\', '\\'}, {'\b', 'b'}, {'\t', 't'}, {'\n', 'n'}, {'\f', 'f'}, {'\r', 'r'}};

/* The characters that a JSON string escapes, each in the shortest way. */
static void write_escapes(pd_buf *to, const pd__p_range *x, size_t n, const char *sep) {
    char letter[8], digit[2][17] = {"", ""};
    size_t n_letter = 0, n_digit[2] = {0, 0};
    for (size_t i = 0; i < sizeof short_escape / sizeof short_escape[0]; i++)
        if (holds(x, n, (uint32_t)short_escape[i][0])) letter[n_letter++] = short_escape[i][1];
    for (uint32_t c = 0; c < 0x20; c++)
        if (!memchr("\b\t\n\f\r", (int)c, 5) && holds(x, n, c)) digit[c >> 4][n_digit[c >> 4]++] = "0123456789abcdef"[c & 15];
    if (n_letter) {
        pd_buf_printf(to, "%s\"\\\\\" [", sep);
        for (size_t i = 0; i < n_letter; i++) write_point(to, (uint32_t)letter[i]);
        pd_buf_putc(to, ']');
        sep = " | ";
    }
    for (int k = 0; k < 2; k++) {
        if (!n_digit[k]) continue;
        digit[k][n_digit[k]] = '\0';
        pd_buf_printf(to, "%s\"\\\\u00%d\" [%s]", sep, k, digit[k]);
        sep = " | ";
    }
}

static void write_set(writer *w, const pd__p_part *s, pd_buf *to) {
    const pd__p_range *x = w->p.range + s->off;
    static const pd__p_range bare[] = {{0x20, 0x21}, {0x23, 0x5B}, {0x5D, 0x10FFFF}}, any[] = {{0, 0x10FFFF}};
    const pd__p_range *allowed = w->use->in_json ? bare : any;
    bool some = false;
    for (size_t i = 0; i < s->n; i++)
        for (size_t k = 0; k < (w->use->in_json ? 3 : 1); k++) {
            const uint32_t lo = x[i].lo > allowed[k].lo ? x[i].lo : allowed[k].lo, hi = x[i].hi < allowed[k].hi ? x[i].hi : allowed[k].hi;
            if (lo > hi) continue;
            if (!some) pd_buf_putc(to, '[');
            write_range(to, lo, hi);
            some = true;
        }
    if (some) pd_buf_putc(to, ']');
    if (w->use->in_json) write_escapes(to, x, s->n, some ? " | " : "");
}

static void write_set_or_rule(writer *w, int32_t part) {
    const pd__p_part *s = &w->p.part[part];
    const pd__p_range *x = w->p.range + s->off;
    const bool plain = s->n <= 4 && x[s->n - 1].hi < 0x7F &&
                       (!w->use->in_json || (x[0].lo >= 0x20 && !holds(x, s->n, '"') && !holds(x, s->n, '\\')));
    if (plain || (s->n == 1 && x->lo == x->hi)) {
        const bool one = s->n == 1 && !plain; /* may be several texts with JSON's escapes, never many */
        if (one) pd_buf_putc(w->expr, '(');
        write_set(w, s, w->expr);
        if (one) pd_buf_putc(w->expr, ')');
        return;
    }
    size_t k = 0;
    for (; k < w->n_set; k++) {
        const pd__p_part *o = &w->p.part[w->set[k]];
        if (o->n == s->n && memcmp(w->p.range + o->off, x, s->n * sizeof *x) == 0) break;
    }
    if (k == w->n_set) {
        w->set[w->n_set++] = part;
        pd_buf_printf(w->rules, "%s-%zu ::= ", w->use->name, k);
        write_set(w, s, w->rules);
        pd_buf_putc(w->rules, '\n');
    }
    pd_buf_printf(w->expr, "%s-%zu", w->use->name, k);
}

static void write_part(writer *w, int32_t i) {
    const pd__p_part *x = &w->p.part[i];
    const char *sep = "";
    switch (x->kind) {
    case PD__P_SET: write_set_or_rule(w, i); return;
    case PD__P_REPEAT:
        write_part(w, x->child);
        pd_buf_printf(w->expr, "{%d,", (int)x->min);
        if (x->max != PD__P_FOREVER) pd_buf_printf(w->expr, "%d", (int)x->max);
        pd_buf_putc(w->expr, '}');
        return;
    case PD__P_SEQ:
        if (x->child < 0) pd_buf_puts(w->expr, "\"\"");
        for (int32_t k = x->child; k >= 0; k = w->p.part[k].next, sep = " ") {
            pd_buf_puts(w->expr, sep);
            write_part(w, k);
        }
        return;
    case PD__P_ALT:
        pd_buf_putc(w->expr, '(');
        for (int32_t k = x->child; k >= 0; k = w->p.part[k].next, sep = " | ") {
            pd_buf_puts(w->expr, sep);
            write_part(w, k);
        }
        pd_buf_putc(w->expr, ')');
        return;
    default: return; /* anchors are gone */
    }
}

static pd_status write_pattern(writer *w) {
    const pd_pattern_use *use = w->use;
    PD_TRY(pd__pattern_parse(&w->p, w->err));
    PD_TRY(open_ends(w, w->p.top, true, true, &w->p.top));
    switch (keep_lengths(&w->p, w->p.top, use->min, use->max >= 0 ? use->max : LENGTH_MAX)) {
    case KEPT: break;
    case NEVER: return pd_fail(w->err, PD_EINVAL, use->path, "%s: no text of the lengths asked for matches", use->path);
    case UNKNOWN:
        return pd_fail(w->err, PD_EINVAL, use->path, "%s: lengths beside a pattern are served where one part of it alone varies in length: write them into it",
                       use->path);
    }
    w->set = malloc(w->p.n_part * sizeof *w->set);
    if (!w->set) return pd_fail(w->err, PD_ENOMEM, NULL, "no memory for a pattern");
    write_part(w, w->p.top);
    return w->expr->failed || w->rules->failed ? pd_fail(w->err, PD_EINVAL, use->path, "%s: the pattern's grammar is too large", use->path) : PD_OK;
}

pd_status pd_pattern_grammar(const char *re, size_t n, const pd_pattern_use *use, pd_buf *expr, pd_buf *rules, pd_err *err) {
    writer w = {.p = {.re = re, .len = n, .path = use->path}, .use = use, .expr = expr, .rules = rules, .err = err};
    const pd_status rc = write_pattern(&w);
    free(w.set);
    free(w.p.part);
    free(w.p.range);
    return rc;
}
