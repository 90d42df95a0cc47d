/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers of a schema, digit by digit.  A range is a walk over the digits of its ends:
 * as long as the number agrees with an end the next digit is bounded by it, behind the
 * first that differs it is free.  multipleOf carries the remainder along, so a rule per
 * remainder and number of digits that follow.
 *
 * A number with bounds has no exponent, and so few digits that each text is another
 * double (15, DBL_DIG): what is true of the text is true of the value read from it. */
#include "server/schema_int.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST 999999999999999 /* 15 digits */

enum { DIGITS = 15, MULTIPLE_MAX = 100, LISTED_MAX = 200 };

static const char zeros[] = "0000000000000000000000", nines[] = "9999999999999999999999";

static bool all_are(const char *s, size_t n, char c) {
    for (size_t i = 0; i < n; i++)
        if (s[i] != c) return false;
    return true;
}

/* ---- integers ---- */

/* Decimal numbers lo..hi of `n` digits each, leading zeros allowed: at most three
 * parts per digit, since an end that is all 0 or all 9 is no end. */
static void digits(pd_buf *to, const char *lo, const char *hi, size_t n) {
    size_t same = 0;
    while (same < n && lo[same] == hi[same]) same++;
    if (same) pd_gbnf_text(to, lo, same);
    if (same == n) return;
    lo += same, hi += same, n -= same;
    const bool from = all_are(lo + 1, n - 1, '0'), till = all_are(hi + 1, n - 1, '9'); /* whole decades at the ends */
    const char first = (char)(from ? *lo : *lo + 1), last = (char)(till ? *hi : *hi - 1), *sep = "";
    pd_buf_puts(to, " (");
    if (!from) {
        pd_buf_printf(to, "\"%c\" ", *lo);
        digits(to, lo + 1, nines, n - 1);
        sep = " | ";
    }
    if (first <= last) {
        pd_buf_printf(to, "%s[%c-%c]", sep, first, last);
        if (n > 1) pd_buf_printf(to, " [0-9]{%zu}", n - 1);
        sep = " | ";
    }
    if (!till) {
        pd_buf_printf(to, "%s\"%c\" ", sep, *hi);
        digits(to, zeros, hi + 1, n - 1);
    }
    pd_buf_puts(to, ")");
}

typedef struct {
    pd__schema *w;
    size_t id;
    unsigned of; /* multiples of this, 1: all */
    bool made[DIGITS + 1][MULTIPLE_MAX];
} multiples;

/* The rule of `n` free digits behind which the remainder is 0, and those it needs. */
static void free_digits(multiples *m, size_t n, unsigned rest) {
    if (m->made[n][rest]) return;
    m->made[n][rest] = true;
    const char *sep = "";
    bool seen[MULTIPLE_MAX] = {false};
    pd_buf_printf(m->w->out, "s%zu-m%zu-%u ::= ", m->id, n, rest);
    for (unsigned d = 0; d < 10; d++) { /* the digits that lead to one remainder are one class */
        const unsigned then = (10 * rest + d) % m->of;
        if (seen[then] || (n == 1 && then)) continue;
        seen[then] = true;
        pd_buf_printf(m->w->out, "%s[", sep);
        for (unsigned e = d; e < 10; e++)
            if ((10 * rest + e) % m->of == then) pd_buf_printf(m->w->out, "%u", e);
        pd_buf_putc(m->w->out, ']');
        if (n > 1) pd_buf_printf(m->w->out, " s%zu-m%zu-%u", m->id, n - 1, then);
        sep = " | ";
    }
    if (!*sep) pd_buf_puts(m->w->out, "never");
    pd_buf_putc(m->w->out, '\n');
    for (unsigned d = 0; d < 10 && n > 1; d++) free_digits(m, n - 1, (10 * rest + d) % m->of);
}

/* As digits(), of those that go on from `rest` to a multiple. */
static void multiple_digits(multiples *m, pd_buf *to, const char *lo, const char *hi, size_t n, unsigned rest) {
    if (n == 0) {
        pd_buf_puts(to, rest ? "never" : "\"\"");
    } else if (all_are(lo, n, '0') && all_are(hi, n, '9')) {
        free_digits(m, n, rest);
        pd_buf_printf(to, "s%zu-m%zu-%u", m->id, n, rest);
    } else {
        pd_buf_putc(to, '(');
        for (char d = *lo; d <= *hi; d++) {
            pd_buf_printf(to, "%s\"%c\" ", d > *lo ? " | " : "", d);
            multiple_digits(m, to, d == *lo ? lo + 1 : zeros, d == *hi ? hi + 1 : nines, n - 1, (10 * rest + (unsigned)(d - '0')) % m->of);
        }
        pd_buf_putc(to, ')');
    }
}

/* 0 <= lo <= hi; `end` follows each. */
static void naturals(multiples *m, pd_buf *to, uint64_t lo, uint64_t hi, const char *sign, const char *end) {
    char a[24], b[24];
    for (bool first = true;; first = false) {
        const int n = snprintf(a, sizeof a, "%llu", (unsigned long long)lo);
        uint64_t most = 9;
        for (int i = 1; i < n; i++) most = most * 10 + 9;
        if (most > hi) most = hi;
        snprintf(b, sizeof b, "%llu", (unsigned long long)most);
        pd_buf_printf(to, "%s\"%s\" ", first ? "" : " | ", sign);
        if (m->of > 1) multiple_digits(m, to, a, b, (size_t)n, 0);
        else digits(to, a, b, (size_t)n);
        pd_buf_printf(to, " \"%s\"", end);
        if (most == hi) return;
        lo = most + 1;
    }
}

static int64_t floor_div(int64_t a, int64_t b) { /* b > 0 */
    return a / b - (a % b < 0);
}

/* lo..hi, multiples of `of` alone. */
static pd_status write_integers(pd__schema *w, const char *path, size_t id, int64_t lo, int64_t hi, int64_t of, pd_buf *to) {
    const int64_t first = -floor_div(-lo, of), last = floor_div(hi, of); /* times `of` */
    if (lo > hi || first > last) return pd__schema_bad(w, path, "no integer is in the range asked for");
    if (of > 1 && last - first < LISTED_MAX) {
        for (int64_t i = first; i <= last; i++) pd_buf_printf(to, "%s\"%lld\"", i > first ? " | " : "", (long long)(i * of));
        return PD_OK;
    }
    char end[DIGITS + 1] = "";
    size_t n_end = 0;
    for (; of % 10 == 0; of /= 10, end[n_end++] = '0') { /* a power of ten is zeros behind */
        lo = -floor_div(-lo, 10);
        hi = floor_div(hi, 10);
    }
    if (of > MULTIPLE_MAX)
        return pd__schema_bad_key(w, path, "multipleOf", "served up to 100 times a power of ten, and where a range has at most 200 of them");
    multiples *m = calloc(1, sizeof *m);
    if (!m) return pd_fail(w->err, PD_ENOMEM, NULL, "no memory for a schema");
    *m = (multiples){.w = w, .id = id, .of = (unsigned)of};
    const char *sep = "";
    if (lo < 0) {
        naturals(m, to, hi < 0 ? (uint64_t)-hi : 1, (uint64_t)-lo, "-", end);
        sep = " | ";
    }
    if (lo <= 0 && hi >= 0) {
        pd_buf_printf(to, "%s\"0\"", sep);
        sep = " | ";
    }
    if (hi > 0) {
        pd_buf_puts(to, sep);
        naturals(m, to, lo > 0 ? (uint64_t)lo : 1, (uint64_t)hi, "", end);
    }
    free(m);
    return PD_OK;
}

/* ---- decimals ---- */

/* A bound's size: whole.frac, and whether it is excluded itself. */
typedef struct {
    bool given, strict, cut; /* cut: it has more digits behind */
    uint64_t whole;
    char frac[24]; /* n digits, the last one not 0 */
    size_t n;
    double value;
} bound;

/* The shortest decimal that reads back as v, taken apart. */
static pd_status take_apart(pd__schema *w, double v, const char *path, const char *key, bound *ret) {
    char text[40], all[64];
    for (int p = 0; p < 17; p++) {
        snprintf(text, sizeof text, "%.*e", p, fabs(v));
        if (strtod(text, NULL) == fabs(v)) break;
    }
    int exponent = 0;
    const char *sign = strchr(text, 'e') + 1;
    for (const char *c = sign + 1; *c; c++) exponent = exponent * 10 + (*c - '0');
    if (*sign == '-') exponent = -exponent;
    if (fabs(v) > MOST) return pd__schema_bad_key(w, path, key, "at most 15 digits before the point");
    size_t n = 0;
    for (int i = exponent; i < 0 && n <= DIGITS; i++) all[n++] = '0'; /* 0.00 in front of the first digit */
    for (const char *c = text; *c != 'e'; c++)
        if (*c != '.') all[n++] = *c;
    const size_t point = exponent > 0 ? (size_t)exponent + 1 : 1;
    while (n < point) all[n++] = '0';
    while (n > point && all[n - 1] == '0') n--;
    const bool cut = n - point > DIGITS;
    if (cut) n = point + DIGITS;
    while (n > point && all[n - 1] == '0') n--;
    *ret = (bound){.given = true, .cut = cut, .n = n - point, .value = v};
    for (size_t i = 0; i < point; i++) ret->whole = ret->whole * 10 + (uint64_t)(all[i] - '0');
    memcpy(ret->frac, all + point, n - point);
    return PD_OK;
}

static pd_status read_bound(pd__schema *w, const json_t *s, const char *path, const char *key, bool lower, bool strict, bound *ret) {
    const json_t *v = pd_json_get(s, key);
    if (!v) return PD_OK;
    if (!json_is_number(v)) return pd__schema_bad_key(w, path, key, "a number is expected");
    const double x = json_number_value(v);
    if (fabs(x) > MOST && (x < 0) == lower) return PD_OK; /* a bound that wide is none */
    bound b;
    PD_TRY(take_apart(w, x, path, key, &b));
    b.strict = strict;
    const bool tighter = lower ? x > ret->value : x < ret->value;
    if (!ret->given || tighter) *ret = b;
    else if (x == ret->value) ret->strict |= strict;
    return PD_OK;
}

/* Bounds that a number's format means, OpenAPI's and what generators add to it. */
static const struct { const char *name; int64_t min, max; } format[] = {
    {"int8", INT8_MIN, INT8_MAX}, {"int16", INT16_MIN, INT16_MAX}, {"int32", INT32_MIN, INT32_MAX}, {"int64", -MOST, MOST},
    {"uint8", 0, UINT8_MAX}, {"uint16", 0, UINT16_MAX}, {"uint32", 0, UINT32_MAX}, {"uint64", 0, MOST}, {"uint", 0, MOST},
    {"int", -MOST, MOST}, {"float", -MOST, MOST}, {"double", -MOST, MOST}, {"decimal", -MOST, MOST},
};

static pd_status read_bounds(pd__schema *w, const json_t *s, const char *path, bound *lo, bound *hi) {
    *lo = *hi = (bound){0};
    PD_TRY(read_bound(w, s, path, "minimum", true, false, lo));
    PD_TRY(read_bound(w, s, path, "exclusiveMinimum", true, true, lo));
    PD_TRY(read_bound(w, s, path, "maximum", false, false, hi));
    PD_TRY(read_bound(w, s, path, "exclusiveMaximum", false, true, hi));
    const char *name = json_string_value(pd_json_get(s, "format"));
    for (size_t i = 0; name && i < sizeof format / sizeof format[0]; i++) {
        if (strcmp(name, format[i].name) != 0) continue;
        if (format[i].min > -MOST && (!lo->given || lo->value < (double)format[i].min)) PD_TRY(take_apart(w, (double)format[i].min, path, "format", lo));
        if (format[i].max < MOST && (!hi->given || hi->value > (double)format[i].max)) PD_TRY(take_apart(w, (double)format[i].max, path, "format", hi));
        return PD_OK;
    }
    return pd_json_get(s, "format") ? pd__schema_bad_key(w, path, "format", "a number's is one of int32, int64, uint32, uint64, float, double and the like") : PD_OK;
}

/* Fractions are compared behind the point: f has digits left from `at` on, `room` may
 * be written.  Each function appends the strings of 1..room digits that fit. */

static bool is_zero(const bound *f, size_t at) {
    return at >= f->n; /* the last digit is not 0 */
}

static char digit_at(const bound *f, size_t at) {
    return at < f->n ? f->frac[at] : '0';
}

static void some_digits(pd_buf *to, size_t least, size_t most) {
    if (most) pd_buf_printf(to, " [0-9]{%zu,%zu}", least, most);
}

static void at_least(pd_buf *to, const bound *f, size_t at, size_t room) {
    if (room == 0) {
        pd_buf_puts(to, " never");
        return;
    }
    if (is_zero(f, at) && !f->strict) {
        some_digits(to, 1, room);
        return;
    }
    const char d = digit_at(f, at);
    pd_buf_puts(to, " (");
    if (d < '9') {
        pd_buf_printf(to, "[%c-9]", d + 1);
        some_digits(to, 0, room - 1);
        pd_buf_puts(to, " | ");
    }
    pd_buf_printf(to, "\"%c\"", d);
    if (is_zero(f, at + 1) && !f->strict) some_digits(to, 0, room - 1);
    else at_least(to, f, at + 1, room - 1);
    pd_buf_putc(to, ')');
}

static void at_most(pd_buf *to, const bound *f, size_t at, size_t room) {
    if (room == 0 || (is_zero(f, at) && f->strict)) {
        pd_buf_puts(to, " never");
        return;
    }
    if (is_zero(f, at)) {
        pd_buf_printf(to, " \"0\"{1,%zu}", room);
        return;
    }
    const char d = digit_at(f, at);
    pd_buf_puts(to, " (");
    if (d > '0') {
        pd_buf_printf(to, "[0-%c]", d - 1);
        some_digits(to, 0, room - 1);
        pd_buf_puts(to, " | ");
    }
    pd_buf_printf(to, "\"%c\"", d);
    if (room > 1 || (is_zero(f, at + 1) && f->strict)) {
        const bool may_stop = !is_zero(f, at + 1) || !f->strict;
        pd_buf_puts(to, " (");
        at_most(to, f, at + 1, room - 1);
        pd_buf_printf(to, ")%s", may_stop ? "?" : "");
    }
    pd_buf_putc(to, ')');
}

/* Is the fraction that ends here one of lo..hi? */
static bool may_stop(const bound *lo, const bound *hi, size_t at) {
    return is_zero(lo, at) && !lo->strict && (!is_zero(hi, at) || !hi->strict);
}

static void between(pd_buf *to, const bound *lo, const bound *hi, size_t at, size_t room) {
    if (room == 0) {
        pd_buf_puts(to, " never");
        return;
    }
    if (is_zero(lo, at) && is_zero(hi, at)) {
        if (lo->strict || hi->strict) pd_buf_puts(to, " never");
        else pd_buf_printf(to, " \"0\"{1,%zu}", room);
        return;
    }
    const char a = digit_at(lo, at), b = digit_at(hi, at);
    if (a == b) {
        pd_buf_printf(to, " \"%c\" (", a);
        between(to, lo, hi, at + 1, room - 1);
        pd_buf_printf(to, ")%s", may_stop(lo, hi, at + 1) ? "?" : "");
        return;
    }
    pd_buf_printf(to, " (\"%c\"", a);
    if (is_zero(lo, at + 1) && !lo->strict) some_digits(to, 0, room - 1);
    else at_least(to, lo, at + 1, room - 1);
    if (a + 1 < b) {
        pd_buf_printf(to, " | [%c-%c]", a + 1, b - 1);
        some_digits(to, 0, room - 1);
    }
    pd_buf_printf(to, " | \"%c\" (", b);
    at_most(to, hi, at + 1, room - 1);
    pd_buf_printf(to, ")%s)", !is_zero(hi, at + 1) || !hi->strict ? "?" : "");
}

/* Decimals of one sign, lo..hi in size; hi not given: no end.  `room`: digits behind
 * the point. */
static void magnitudes(multiples *m, pd_buf *to, const char *sign, const bound *from, const bound *till, size_t room) {
    bound low = *from, high = *till; /* of one that is cut the text never reaches the rest */
    const bound *lo = &low, *hi = &high;
    char any[48] = "";
    low.strict |= low.cut;
    high.strict &= !high.cut;
    if (room) snprintf(any, sizeof any, "(\".\" [0-9]{1,%zu})?", room);
    if (hi->given && lo->whole == hi->whole) {
        pd_buf_printf(to, "\"%s%llu\" (\".\"", sign, (unsigned long long)lo->whole);
        between(to, lo, hi, 0, room);
        pd_buf_printf(to, ")%s", may_stop(lo, hi, 0) ? "?" : "");
        return;
    }
    pd_buf_printf(to, "\"%s%llu\" (\".\"", sign, (unsigned long long)lo->whole);
    at_least(to, lo, 0, room);
    pd_buf_printf(to, ")%s", is_zero(lo, 0) && !lo->strict ? "?" : "");
    const uint64_t last = hi->given ? hi->whole - 1 : MOST;
    if (lo->whole + 1 <= last) {
        pd_buf_puts(to, " | (");
        naturals(m, to, lo->whole + 1, last, sign, "");
        pd_buf_printf(to, ") %s", any);
    }
    if (!hi->given) return;
    pd_buf_printf(to, " | \"%s%llu\" (\".\"", sign, (unsigned long long)hi->whole);
    at_most(to, hi, 0, room);
    pd_buf_printf(to, ")%s", is_zero(hi, 0) && hi->strict ? "" : "?");
}

static size_t digits_of(uint64_t x) {
    size_t n = 1;
    for (; x >= 10; x /= 10) n++;
    return n;
}

/* ---- one schema ---- */

/* *of: 0 = none; *places: of a power of ten below 1, else -1. */
static pd_status read_multiple(pd__schema *w, const json_t *s, const char *path, int64_t *of, int *places) {
    const json_t *v = pd_json_get(s, "multipleOf");
    *of = 0;
    *places = -1;
    if (!v) return PD_OK;
    if (!json_is_number(v) || !(json_number_value(v) > 0)) return pd__schema_bad_key(w, path, "multipleOf", "a number above 0 is expected");
    if (pd_json_integral(v, of)) return *of <= MOST ? PD_OK : pd__schema_bad_key(w, path, "multipleOf", "at most 15 digits");
    *of = 0;
    char text[16];
    for (int k = 1; k < DIGITS; k++) {
        snprintf(text, sizeof text, "1e-%d", k);
        if (strtod(text, NULL) == json_number_value(v)) *places = k;
    }
    return *places > 0 ? PD_OK : pd__schema_bad_key(w, path, "multipleOf", "an integer, or a power of ten such as 0.01, is served");
}

static pd_status bounded_integers(pd__schema *w, const bound *lo, const bound *hi, const char *path, size_t id, int64_t of, pd_buf *to) {
    int64_t a = -MOST, b = MOST;
    if (lo->given) a = (int64_t)ceil(lo->value) + (lo->strict && ceil(lo->value) == lo->value);
    if (hi->given) b = (int64_t)floor(hi->value) - (hi->strict && floor(hi->value) == hi->value);
    return write_integers(w, path, id, a, b, of ? of : 1, to);
}

pd_status pd__schema_integer(pd__schema *w, const json_t *s, const char *path, size_t id, pd_buf *to) {
    bound lo, hi;
    int64_t of;
    int places;
    PD_TRY(read_bounds(w, s, path, &lo, &hi));
    PD_TRY(read_multiple(w, s, path, &of, &places)); /* of a power of ten below 1 each integer is a multiple */
    if (lo.given || hi.given || of > 1) return bounded_integers(w, &lo, &hi, path, id, of, to);
    pd_buf_puts(to, "integer");
    return PD_OK;
}

pd_status pd__schema_number(pd__schema *w, const json_t *s, const char *path, size_t id, pd_buf *to) {
    bound lo, hi;
    int64_t of;
    int places;
    PD_TRY(read_bounds(w, s, path, &lo, &hi));
    PD_TRY(read_multiple(w, s, path, &of, &places));
    if (of) return bounded_integers(w, &lo, &hi, path, id, of, to);
    if (!lo.given && !hi.given && places < 0) {
        pd_buf_puts(to, "number");
        return PD_OK;
    }
    if (lo.given && hi.given && (lo.value > hi.value || (lo.value == hi.value && (lo.strict || hi.strict))))
        return pd__schema_bad(w, path, "no number is in the range asked for");
    const size_t whole = digits_of(lo.whole > hi.whole ? lo.whole : hi.whole);
    size_t room = DIGITS - whole;
    if (places > 0 && (size_t)places < room) room = (size_t)places;
    multiples *m = calloc(1, sizeof *m);
    if (!m) return pd_fail(w->err, PD_ENOMEM, NULL, "no memory for a schema");
    *m = (multiples){.w = w, .id = id, .of = 1};
    const bool below = !lo.given || lo.value < 0, above = !hi.given || hi.value > 0 || (hi.value == 0 && !hi.strict);
    bound zero = {.given = true};
    if (below) {
        const bool reaches_zero = !hi.given || hi.value >= 0;
        zero.strict = true; /* there is no -0 */
        magnitudes(m, to, "-", reaches_zero ? &zero : &hi, &lo, room);
    }
    if (below && above) pd_buf_puts(to, " | ");
    zero.strict = false;
    if (above) magnitudes(m, to, "", lo.given && lo.value >= 0 ? &lo : &zero, &hi, room);
    free(m);
    return PD_OK;
}
