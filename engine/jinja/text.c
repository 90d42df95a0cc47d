/* SPDX-License-Identifier: Apache-2.0 */
/* Strings being built with the origin of each byte, and what str() and repr() write.
 * A string of one origin, which is nearly every one, holds no list of origins. */
#include "engine/jinja/value.h"

#include "engine/base/num.h"
#include "engine/base/utf8.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static bool reserve(pd__jbuf *b, size_t n) {
    size_t need;
    if (!pd_add_size(b->n, n, &need)) {
        b->h->failed = true;
        return false;
    }
    if (need <= b->cap) return true;
    const size_t cap = pd_max_size(need, b->cap < 64 ? 64 : 2 * b->cap);
    char *s = pd_jheap_alloc(b->h, cap, 1);
    uint16_t *org = b->org ? PD_JNEW(b->h, cap, uint16_t) : NULL;
    if (!s || (b->org && !org)) return false;
    if (b->n) memcpy(s, b->s, b->n);
    if (b->n && org) memcpy(org, b->org, b->n * sizeof *org);
    b->s = s;
    b->org = org;
    b->cap = cap;
    b->used = NULL;
    return true;
}

static bool mix(pd__jbuf *b) {
    if (b->org) return true;
    b->org = PD_JNEW(b->h, b->cap, uint16_t);
    if (!b->org) return false;
    for (size_t i = 0; i < b->n; i++) b->org[i] = b->uniform;
    return true;
}

void pd__jbuf_add(pd__jbuf *b, const char *s, size_t n, const uint16_t *org, uint16_t origin) {
    if (n == 0 || !reserve(b, n)) return;
    if (b->n == 0 && !org && !b->org) b->uniform = origin;
    if ((org || b->uniform != origin) && !mix(b)) return;
    memcpy(b->s + b->n, s, n);
    if (b->org && org) memcpy(b->org + b->n, org, n * sizeof *org);
    else if (b->org)
        for (size_t i = 0; i < n; i++) b->org[b->n + i] = origin;
    b->n += n;
}

void pd__jbuf_lit(pd__jbuf *b, const char *s, uint16_t origin) {
    pd__jbuf_add(b, s, strlen(s), NULL, origin);
}

void pd__jbuf_sub(pd__jbuf *b, pd_jval str, size_t from, size_t to) {
    const pd__jstr *s = str.u.str;
    pd__jbuf_add(b, s->s + from, to - from, s->org ? s->org + from : NULL, str.origin);
}

size_t pd__jbuf_on(pd__jbuf *b, pd_jval str) {
    const pd__jstr *s = str.u.str;
    if (!s->used || *s->used != s->n) {
        pd__jbuf_sub(b, str, 0, s->n);
        return s->n;
    }
    *s->used = SIZE_MAX; /* nobody else's until this one is built */
    b->s = (char *)(uintptr_t)s->s;
    b->org = (uint16_t *)(uintptr_t)s->org;
    b->n = s->n;
    b->cap = s->cap;
    b->used = s->used;
    b->uniform = str.origin;
    return 0;
}

pd_jval pd__jbuf_str(const pd__jbuf *b) {
    enum { ROOM_FROM = 1024 }; /* shorter ones are copied as fast */
    pd_jval v = pd_jstr(b->h, b->s ? b->s : "", b->n, b->uniform);
    if (v.kind != PD_JSTR) return v;
    pd__jstr *s = (pd__jstr *)(uintptr_t)v.u.str;
    s->org = b->org;
    if (b->n < ROOM_FROM) return v;
    s->used = b->used ? b->used : PD_JNEW(b->h, 1, size_t);
    s->cap = b->cap;
    if (s->used) *s->used = b->n;
    return v;
}

pd_jval pd__jsub(pd_jheap *h, pd_jval str, size_t from, size_t to) {
    const pd__jstr *s = str.u.str;
    if (from == 0 && to == s->n && str.form == PD__JFORM_TEXT) return str;
    pd_jval v = pd_jstr(h, s->s + from, to - from, str.origin);
    if (v.kind == PD_JSTR && s->org) {
        pd__jstr *sub = (pd__jstr *)(uintptr_t)v.u.str;
        sub->org = s->org + from;
    }
    return v;
}

/* ---- code points ---- */

size_t pd__jcp_count(const char *s, size_t n) {
    size_t k = 0;
    for (size_t i = 0; i < n; i++) k += ((unsigned char)s[i] & 0xC0) != 0x80;
    return k;
}

size_t pd__jcp_at(const char *s, size_t n, size_t k) {
    size_t i = 0;
    for (; i < n; i++) {
        if (((unsigned char)s[i] & 0xC0) == 0x80) continue;
        if (k == 0) return i;
        k--;
    }
    return n;
}

bool pd__jis_space(uint32_t cp) {
    return (cp >= 9 && cp <= 13) || (cp >= 0x1C && cp <= 0x20) || cp == 0x85 || cp == 0xA0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

size_t pd__jline_end(const char *s, size_t n, size_t i, size_t *after) {
    for (size_t len; i < n; i += len) {
        uint32_t cp = 0;
        len = pd_utf8_next(s + i, n - i, &cp);
        if (len == 0) len = 1;
        if (!((cp >= 10 && cp <= 13) || (cp >= 0x1C && cp <= 0x1E) || cp == 0x85 || cp == 0x2028 || cp == 0x2029)) continue;
        *after = cp == '\r' && i + 1 < n && s[i + 1] == '\n' ? i + 2 : i + len;
        return i;
    }
    *after = n;
    return n;
}

static bool is_printable(uint32_t cp) {
    if (cp == ' ') return true;
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS: return false;
    default: return true;
    }
}

/* ---- str() and repr() ---- */

/* The fewest digits that read back as the same number, laid out as Python does:
 * plain between 1e-4 and 1e16, with an exponent beyond. */
size_t pd__jfloat_text(double f, char dst[40]) {
    enum { CAP = 40 };
    if (isnan(f)) return (size_t)snprintf(dst, CAP, "nan");
    if (isinf(f)) return (size_t)snprintf(dst, CAP, f < 0 ? "-inf" : "inf");
    char sci[40];
    for (int p = 0; p <= 16; p++) {
        snprintf(sci, sizeof sci, "%.*e", p, f);
        if (strtod(sci, NULL) == f) break;
    }
    char *e = strchr(sci, 'e');
    const int exponent = (int)strtol(e + 1, NULL, 10);
    *e = '\0';
    if (exponent < -4 || exponent >= 16)
        return (size_t)snprintf(dst, CAP, "%.24se%c%02d", sci, exponent < 0 ? '-' : '+', abs(exponent));
    char digits[24];
    size_t n = 0, k = 0;
    for (const char *p = sci; *p; p++) {
        if (*p >= '0' && *p <= '9') digits[n++] = *p;
    }
    if (*sci == '-') dst[k++] = '-';
    const size_t whole = exponent < 0 ? 1 : (size_t)exponent + 1;
    for (size_t i = 0; i < whole; i++) dst[k++] = exponent >= 0 && i < n ? digits[i] : '0';
    dst[k++] = '.';
    for (int i = -1; i > exponent; i--) dst[k++] = '0';
    const size_t from = exponent < 0 ? 0 : whole;
    for (size_t i = from; i < n; i++) dst[k++] = digits[i];
    if (exponent >= 0 && n <= whole) dst[k++] = '0';
    dst[k] = '\0';
    return k;
}

char pd__jshort_escape(uint32_t cp, bool json) {
    static const char from[] = "\n\r\t\b\f", to[] = "nrtbf";
    const char *k = cp && cp < 0x20 ? strchr(from, (int)cp) : NULL;
    return k && (json || k - from < 3) ? to[k - from] : '\0';
}

static void put_quoted(pd__jbuf *b, pd_jval str) {
    const pd__jstr *s = str.u.str;
    const char quote = memchr(s->s, '\'', s->n) && !memchr(s->s, '"', s->n) ? '"' : '\'';
    const uint16_t o = str.origin;
    pd__jbuf_add(b, &quote, 1, NULL, o);
    for (size_t i = 0, len; i < s->n; i += len) {
        uint32_t cp = 0;
        char esc[16];
        len = pd_utf8_next(s->s + i, s->n - i, &cp);
        if (len == 0) len = 1;
        const uint16_t at = s->org ? s->org[i] : o;
        esc[0] = '\0';
        if (cp == (uint32_t)quote || cp == '\\') snprintf(esc, sizeof esc, "\\%c", (char)cp);
        else if (pd__jshort_escape(cp, false)) snprintf(esc, sizeof esc, "\\%c", pd__jshort_escape(cp, false));
        else if (cp < 0x80 ? cp < 0x20 || cp == 0x7F : !is_printable(cp))
            snprintf(esc, sizeof esc, cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", cp);
        if (esc[0]) pd__jbuf_lit(b, esc, at);
        else pd__jbuf_add(b, s->s + i, len, NULL, at);
    }
    pd__jbuf_add(b, &quote, 1, NULL, o);
}

static bool put_list(pd__jbuf *b, pd_jval v, unsigned depth) {
    const pd__jlist *l = v.u.list;
    if (v.form == PD__JFORM_GENERATOR) {
        pd__jbuf_lit(b, "<generator object>", v.origin);
        return true;
    }
    const bool tuple = v.form == PD__JFORM_TUPLE, view = v.form == PD__JFORM_VIEW;
    if (view) pd__jbuf_lit(b, l->n && l->v[0].kind == PD_JLIST ? "dict_items(" : "dict_keys(", v.origin);
    pd__jbuf_lit(b, tuple ? "(" : "[", v.origin);
    for (size_t i = 0; i < l->n; i++) {
        if (i) pd__jbuf_lit(b, ", ", v.origin);
        if (!pd__jput_repr(b, l->v[i], depth + 1)) return false;
    }
    if (tuple && l->n == 1) pd__jbuf_lit(b, ",", v.origin);
    pd__jbuf_lit(b, tuple ? ")" : "]", v.origin);
    if (view) pd__jbuf_lit(b, ")", v.origin);
    return true;
}

static bool put_dict(pd__jbuf *b, pd_jval v, unsigned depth) {
    const pd__jdict *d = v.u.dict;
    pd__jbuf_lit(b, "{", v.origin);
    for (size_t i = 0; i < d->n; i++) {
        if (i) pd__jbuf_lit(b, ", ", v.origin);
        if (!pd__jput_repr(b, d->v[i].key, depth + 1)) return false;
        pd__jbuf_lit(b, ": ", v.origin);
        if (!pd__jput_repr(b, d->v[i].val, depth + 1)) return false;
    }
    pd__jbuf_lit(b, "}", v.origin);
    return true;
}

bool pd__jput_repr(pd__jbuf *b, pd_jval v, unsigned depth) {
    char text[64];
    if (depth > PD_JINJA_VALUE_DEPTH_MAX || b->h->failed) return false;
    switch ((pd_jkind)v.kind) {
    case PD_JUNDEFINED: pd__jbuf_lit(b, "Undefined", 0); return true;
    case PD_JNONE: pd__jbuf_lit(b, "None", v.origin); return true;
    case PD_JBOOL: pd__jbuf_lit(b, v.u.b ? "True" : "False", v.origin); return true;
    case PD_JINT:
        pd__jbuf_add(b, text, (size_t)snprintf(text, sizeof text, "%lld", (long long)v.u.i), NULL, v.origin);
        return true;
    case PD_JFLOAT: pd__jbuf_add(b, text, pd__jfloat_text(v.u.f, text), NULL, v.origin); return true;
    case PD_JSTR: put_quoted(b, v); return true;
    case PD_JLIST: return put_list(b, v, depth);
    case PD_JDICT: return put_dict(b, v, depth);
    default:
        snprintf(text, sizeof text, "<%s>", pd__jkind_name(v));
        pd__jbuf_lit(b, text, 0);
        return true;
    }
}

bool pd__jput(pd__jbuf *b, pd_jval v) {
    if (v.kind == PD_JSTR) pd__jbuf_sub(b, v, 0, pd__jbytes(v));
    else if (v.kind != PD_JUNDEFINED) return pd__jput_repr(b, v, 0);
    return true;
}
