/* SPDX-License-Identifier: Apache-2.0 */
/* Python's two ways to put values into a text: "%s" % value and "{}".format(value).
 * Widths and precisions end at 1,000. */
#include "engine/jinja/eval.h"

#include "engine/base/utf8.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH_MAX = 1000, DIGITS_MAX = 100 };

typedef struct {
    char fill[4];
    size_t n_fill;
    char align; /* < > ^ =, 0: the type's */
    char sign;  /* + or space, 0: only minus */
    bool alternate, comma;
    int width, precision; /* -1: none */
    char type;
} spec;

static void put_padded(pd__jev *e, pd__jbuf *b, pd_jval text, const spec *s, char align) {
    const int n = (int)pd__jcp_count(pd__jchars(text), pd__jbytes(text));
    const int pad = s->width > n ? s->width - n : 0, left = align == '>' ? pad : align == '^' ? pad / 2 : 0;
    for (int i = 0; i < left; i++) pd__jbuf_add(b, s->fill, s->n_fill, NULL, 0);
    pd__jbuf_sub(b, text, 0, pd__jbytes(text));
    for (int i = left; i < pad; i++) pd__jbuf_add(b, s->fill, s->n_fill, NULL, 0);
    pd__jworked(e, pd__jbytes(text) + (size_t)pad);
}

static void group(char *digits) { /* 1234567.5 -> 1,234,567.5 */
    const size_t n = strlen(digits), whole = strspn(digits, "0123456789");
    char out[512];
    size_t k = 0;
    if (n > 300) return;
    for (size_t i = 0; i < n; i++) {
        if (i && i < whole && (whole - i) % 3 == 0) out[k++] = ',';
        out[k++] = digits[i];
    }
    out[k] = '\0';
    memcpy(digits, out, k + 1);
}

/* The number without its sign.  False: no such type of number. */
static bool number_text(pd_jval v, const spec *s, char *dst, size_t cap, bool *negative) {
    char type = s->type;
    const bool real = v.kind == PD_JFLOAT || (type && strchr("eEfFgG%", type));
    if (!real) {
        const int64_t i = v.kind == PD_JINT ? v.u.i : v.u.b;
        const unsigned long long u = i < 0 ? (unsigned long long)-(i + 1) + 1 : (unsigned long long)i;
        *negative = i < 0;
        if (type == 'b') {
            size_t k = 0;
            for (int bit = 63; bit >= 0; bit--) {
                if (k || bit == 0 || (u >> bit & 1)) dst[k++] = (char)('0' + (u >> bit & 1));
            }
            dst[k] = '\0';
        } else if (type == 'x' || type == 'X' || type == 'o') {
            snprintf(dst, cap, type == 'x' ? "%s%llx" : type == 'X' ? "%s%llX" : "%s%llo",
                     !s->alternate ? "" : type == 'x' ? "0x" : type == 'X' ? "0X" : "0o", u);
        } else if (type == 0 || type == 'd' || type == 'i' || type == 'u' || type == 'n') {
            snprintf(dst, cap, "%llu", u);
        } else {
            return false;
        }
        return true;
    }
    double f = pd__jnumber(v);
    *negative = signbit(f) && !isnan(f);
    f = fabs(f);
    if (type == '%') f *= 100.0;
    if (type == 0 && s->precision < 0) {
        char text[40];
        pd__jfloat_text(f, text);
        snprintf(dst, cap, "%s", text);
        return true;
    }
    const int p = s->precision < 0 ? 6 : s->precision;
    switch (type) {
    case 'e': snprintf(dst, cap, "%.*e", p, f); break;
    case 'E': snprintf(dst, cap, "%.*E", p, f); break;
    case 'f':
    case 'F': snprintf(dst, cap, "%.*f", p, f); break;
    case '%': snprintf(dst, cap, "%.*f%%", p, f); break;
    case 0:
    case 'n':
    case 'g': snprintf(dst, cap, "%.*g", p, f); break;
    case 'G': snprintf(dst, cap, "%.*G", p, f); break;
    default: return false;
    }
    return true;
}

static bool put_number(pd__jev *e, pd__jbuf *b, pd_jval v, const spec *s) {
    char digits[512], text[560];
    bool negative = false;
    if (!number_text(v, s, digits, sizeof digits, &negative)) return false;
    if (s->comma) group(digits);
    const char *sign = negative ? "-" : s->sign == '+' ? "+" : s->sign == ' ' ? " " : "";
    const size_t n = strlen(sign) + strlen(digits);
    size_t k = (size_t)snprintf(text, sizeof text, "%s", sign);
    pd_jval str;
    pd__jbuf t = {.h = e->h};
    pd__jbuf_add(&t, text, k, NULL, v.origin);
    if (s->align == '=')
        for (size_t i = n; s->width > 0 && i < (size_t)s->width; i++) pd__jbuf_add(&t, s->fill, s->n_fill, NULL, 0);
    pd__jbuf_lit(&t, digits, v.origin);
    str = pd__jbuf_str(&t);
    if (str.kind == PD_JSTR) put_padded(e, b, str, s, s->align ? s->align : '>');
    return true;
}

static void put_text(pd__jev *e, pd__jbuf *b, pd_jval text, const spec *s) {
    if (text.kind != PD_JSTR) return;
    if (s->precision >= 0)
        text = pd__jsub(e->h, text, 0, pd__jcp_at(pd__jchars(text), pd__jbytes(text), (size_t)s->precision));
    if (text.kind == PD_JSTR) put_padded(e, b, text, s, s->align ? s->align : '<');
}

static pd_jval repr(pd__jev *e, pd_jval v) {
    pd__jbuf b = {.h = e->h};
    if (!pd__jput_repr(&b, v, 0)) return pd__jtoo_deep(e);
    return pd__jbuf_str(&b);
}

/* ---- "%s" % value ---- */

typedef struct {
    pd__jev *e;
    pd__jbuf b;
    pd_jval fmt;
    const char *s;
    size_t n, i;
    const pd__jcall *c;
    size_t next; /* argument */
} reader;

static bool take(reader *r, pd_jval *ret) {
    if (r->next >= r->c->n_pos) {
        pd__jfail(r->e, "not enough arguments for format string");
        return false;
    }
    *ret = r->c->pos[r->next++];
    return true;
}

static bool read_int(reader *r, int *ret) {
    pd_jval v;
    if (r->i < r->n && r->s[r->i] == '*') {
        r->i++;
        if (!take(r, &v)) return false;
        if (v.kind != PD_JINT || v.u.i < 0) {
            pd__jfail(r->e, "* wants int");
            return false;
        }
        *ret = v.u.i > WIDTH_MAX ? WIDTH_MAX : (int)v.u.i;
        return true;
    }
    int n = 0;
    bool some = false;
    for (; r->i < r->n && r->s[r->i] >= '0' && r->s[r->i] <= '9'; r->i++) {
        n = n > WIDTH_MAX ? n : n * 10 + (r->s[r->i] - '0');
        some = true;
    }
    if (some) *ret = n > WIDTH_MAX ? WIDTH_MAX : n;
    return true;
}

static bool mapping_key(reader *r, pd_jval *v) {
    const size_t from = ++r->i;
    while (r->i < r->n && r->s[r->i] != ')') r->i++;
    if (r->i == r->n) {
        pd__jfail(r->e, "incomplete format key");
        return false;
    }
    const pd_jval dict = r->c->n_pos == 1 ? r->c->pos[0] : pd_jnone();
    if (dict.kind != PD_JDICT) {
        pd__jfail(r->e, "format requires a mapping");
        return false;
    }
    const pd_jval *found = pd__jfind(r->e->h, dict, pd__jsub(r->e->h, r->fmt, from, r->i));
    r->i++;
    r->next = 1;
    if (!found) pd__jfail(r->e, "a key of the format is not in the mapping");
    else *v = *found;
    return found != NULL;
}

static bool percent_one(reader *r) {
    spec s = {.fill = " ", .n_fill = 1, .width = -1, .precision = -1};
    pd_jval v;
    bool keyed = false, left = false, zero = false;
    if (r->i < r->n && r->s[r->i] == '(') {
        if (!mapping_key(r, &v)) return false;
        keyed = true;
    }
    for (; r->i < r->n && strchr("-+ 0#", r->s[r->i]) && r->s[r->i]; r->i++) {
        const char c = r->s[r->i];
        if (c == '-') left = true;
        else if (c == '0') zero = true;
        else if (c == '#') s.alternate = true;
        else if (s.sign != '+') s.sign = c;
    }
    if (!read_int(r, &s.width)) return false;
    if (r->i < r->n && r->s[r->i] == '.') {
        r->i++;
        s.precision = 0;
        if (!read_int(r, &s.precision)) return false;
    }
    if (s.precision > DIGITS_MAX && r->i < r->n && r->s[r->i] != 's') s.precision = DIGITS_MAX;
    if (r->i == r->n) {
        pd__jfail(r->e, "incomplete format");
        return false;
    }
    s.type = r->s[r->i++];
    if (s.type == '%') {
        pd__jbuf_lit(&r->b, "%", 0);
        return true;
    }
    if (!keyed && !take(r, &v)) return false;
    if (s.type == 's' || s.type == 'r' || s.type == 'a' || s.type == 'c') {
        s.align = left ? '<' : '>';
        put_text(r->e, &r->b, s.type == 's' ? pd__jas_str(r->e, v) : s.type == 'c' && v.kind == PD_JSTR ? v : repr(r->e, v), &s);
        return true;
    }
    if (!pd__jis_number(v)) {
        if (!pd__jis_missing(r->e, v)) pd__jfail(r->e, "%%%c format: a real number is required, not %s", s.type, pd__jkind_name(v));
        return false;
    }
    s.align = left ? '<' : zero ? '=' : '>';
    if (zero && !left) s.fill[0] = '0';
    if (v.kind == PD_JFLOAT && strchr("diu", s.type)) {
        if (!(fabs(v.u.f) < 9e18)) {
            pd__jfail(r->e, "a float is too large for %%%c", s.type);
            return false;
        }
        v = pd_jint((int64_t)v.u.f);
    }
    if (put_number(r->e, &r->b, v, &s)) return true;
    pd__jfail(r->e, "unsupported format character '%c'", s.type);
    return false;
}

pd_jval pd__jpercent(pd__jev *e, pd_jval fmt, const pd__jcall *c) {
    reader r = {.e = e, .b = {.h = e->h}, .fmt = fmt, .s = pd__jchars(fmt), .n = pd__jbytes(fmt), .c = c};
    while (r.i < r.n && pd__jwork(e, 1)) {
        const char *p = memchr(r.s + r.i, '%', r.n - r.i);
        const size_t to = p ? (size_t)(p - r.s) : r.n;
        pd__jbuf_sub(&r.b, fmt, r.i, to);
        r.i = to;
        if (!p) break;
        r.i++;
        if (!percent_one(&r)) return fmt;
    }
    if (r.next < c->n_pos && !(c->n_pos == 1 && c->pos[0].kind == PD_JDICT))
        return pd__jfail(e, "not all arguments converted during string formatting");
    return pd__jbuf_str(&r.b);
}

/* ---- "{}".format(value) ---- */

static bool bad_spec(reader *r) {
    pd__jfail(r->e, "a format specification is not served");
    return false;
}

/* [[fill]align][sign][#][0][width][,][.precision][type], up to '}' */
static bool read_spec(reader *r, spec *s) {
    const size_t k = r->i < r->n ? pd_utf8_next(r->s + r->i, r->n - r->i, NULL) : 0;
    if (k && r->i + k < r->n && strchr("<>^=", r->s[r->i + k]) && r->s[r->i] != '}') {
        memcpy(s->fill, r->s + r->i, k);
        s->n_fill = k;
        s->align = r->s[r->i + k];
        r->i += k + 1;
    } else if (r->i < r->n && strchr("<>^=", r->s[r->i])) {
        s->align = r->s[r->i++];
    }
    if (r->i < r->n && (r->s[r->i] == '+' || r->s[r->i] == ' ' || r->s[r->i] == '-')) {
        s->sign = r->s[r->i] == '-' ? 0 : r->s[r->i];
        r->i++;
    }
    if (r->i < r->n && r->s[r->i] == '#') {
        s->alternate = true;
        r->i++;
    }
    if (r->i < r->n && r->s[r->i] == '0') {
        if (!s->align) {
            s->align = '=';
            s->fill[0] = '0';
            s->n_fill = 1;
        }
        r->i++;
    }
    if (r->i < r->n && r->s[r->i] != '*' && !read_int(r, &s->width)) return false;
    if (r->i < r->n && r->s[r->i] == ',') {
        s->comma = true;
        r->i++;
    }
    if (r->i < r->n && r->s[r->i] == '.') {
        r->i++;
        s->precision = -1;
        if (r->i < r->n && r->s[r->i] != '*' && !read_int(r, &s->precision)) return false;
        if (s->precision < 0) return bad_spec(r);
    }
    if (r->i < r->n && r->s[r->i] != '}') s->type = r->s[r->i++];
    return r->i < r->n && r->s[r->i] == '}' ? true : bad_spec(r);
}

/* "name", "0", "" with .attribute and [key] behind; up to one of "!:}". */
static bool read_field(reader *r, pd_jval *v) {
    const size_t from = r->i;
    while (r->i < r->n && !strchr(".[!:}", r->s[r->i])) r->i++;
    const pd_jval name = pd__jsub(r->e->h, r->fmt, from, r->i);
    if (name.kind != PD_JSTR) return false;
    if (pd__jbytes(name) == 0) {
        if (!take(r, v)) return false;
    } else if (r->s[from] >= '0' && r->s[from] <= '9') {
        const size_t k = strtoul(r->s + from, NULL, 10);
        if (k >= r->c->n_pos) {
            pd__jfail(r->e, "Replacement index %zu out of range for positional args tuple", k);
            return false;
        }
        *v = r->c->pos[k];
    } else {
        bool found = false;
        for (size_t i = 0; i < r->c->n_kw; i++) {
            if (!pd__jequal(r->e->h, r->c->kw[i].name, name, 0)) continue;
            *v = r->c->kw[i].val;
            found = true;
        }
        if (!found) {
            pd__jfail(r->e, "a name of the format is not given");
            return false;
        }
    }
    while (r->i < r->n && (r->s[r->i] == '.' || r->s[r->i] == '[')) {
        const bool item = r->s[r->i++] == '[';
        const size_t begin = r->i;
        while (r->i < r->n && !strchr(item ? "]" : ".[!:}", r->s[r->i])) r->i++;
        pd_jval key = pd__jsub(r->e->h, r->fmt, begin, r->i);
        if (item && r->i < r->n) r->i++;
        if (key.kind != PD_JSTR || !pd__jwork(r->e, 1)) return false;
        if (item && pd__jbytes(key) && pd__jbytes(key) < 10 && strspn(pd__jchars(key), "0123456789") >= pd__jbytes(key))
            key = pd_jint(strtol(pd__jchars(key), NULL, 10));
        *v = item ? pd__jitem(r->e, *v, key) : pd__jattribute(r->e, *v, key);
        if (pd__jis_missing(r->e, *v)) return false;
    }
    return true;
}

static bool format_one(reader *r) {
    spec s = {.fill = " ", .n_fill = 1, .width = -1, .precision = -1};
    pd_jval v = pd_jnone();
    char how = 0;
    if (!read_field(r, &v)) return false;
    if (r->i + 1 < r->n && r->s[r->i] == '!') {
        how = r->s[r->i + 1];
        r->i += 2;
    }
    if (r->i < r->n && r->s[r->i] == ':') {
        r->i++;
        if (!read_spec(r, &s)) return false;
    }
    if (r->i == r->n || r->s[r->i] != '}') return bad_spec(r);
    r->i++;
    if (how == 'r') v = repr(r->e, v);
    else if (how == 's') v = pd__jas_str(r->e, v);
    else if (how) return bad_spec(r);
    if (s.precision > DIGITS_MAX && v.kind != PD_JSTR) s.precision = DIGITS_MAX;
    if (pd__jis_number(v) && v.kind != PD_JBOOL) return put_number(r->e, &r->b, v, &s) || bad_spec(r);
    if (s.type && s.type != 's') return bad_spec(r);
    put_text(r->e, &r->b, pd__jas_str(r->e, v), &s);
    return true;
}

pd_jval pd__jformat(pd__jev *e, pd_jval fmt, const pd__jcall *c) {
    reader r = {.e = e, .b = {.h = e->h}, .fmt = fmt, .s = pd__jchars(fmt), .n = pd__jbytes(fmt), .c = c};
    size_t from = 0;
    while (r.i < r.n && pd__jwork(e, 1)) {
        const char ch = r.s[r.i];
        if (ch != '{' && ch != '}') {
            r.i++;
            continue;
        }
        pd__jbuf_sub(&r.b, fmt, from, r.i);
        if (r.i + 1 < r.n && r.s[r.i + 1] == ch) {
            pd__jbuf_sub(&r.b, fmt, r.i, r.i + 1);
            r.i += 2;
        } else if (ch == '}') {
            return pd__jfail(e, "Single '}' encountered in format string");
        } else {
            r.i++;
            if (!format_one(&r)) return fmt;
        }
        from = r.i;
    }
    pd__jbuf_sub(&r.b, fmt, from, r.n);
    return pd__jbuf_str(&r.b);
}
