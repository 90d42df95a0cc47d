/* SPDX-License-Identifier: Apache-2.0 */
/* Filters on strings and numbers, and how a filter is found and given its arguments.
 * Each is Jinja's of that name. */
#include "engine/jinja/eval.h"

#include "engine/base/utf8.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* ---- arguments ---- */

/* Is the k-th word of `signature` this name?  -1 if none is. */
static int slot_named(const char *signature, pd_jval name, int *n) {
    int found = -1;
    *n = 0;
    for (const char *p = signature; *p; (*n)++) {
        const char *end = strchrnul(p, ' ');
        if (pd__jbytes(name) == (size_t)(end - p) && memcmp(p, pd__jchars(name), pd__jbytes(name)) == 0) found = *n;
        p = *end ? end + 1 : end;
    }
    return found;
}

bool pd__jbind_args(pd__jev *e, const char *what, const char *signature, const pd__jcall *c, pd_jval *slot) {
    int n = 0;
    for (const char *p = signature; *p; n++) {
        p = strchrnul(p, ' ');
        p += *p != '\0';
    }
    for (int i = 0; i < PD__JSLOT_MAX; i++) slot[i] = (pd_jval){.kind = PD__JMISSING};
    if (c->n_pos > (size_t)n) {
        pd__jfail(e, "%s takes at most %d argument(s), not %zu", what, n, c->n_pos);
        return false;
    }
    for (size_t i = 0; i < c->n_pos; i++) slot[i] = c->pos[i];
    for (size_t i = 0; i < c->n_kw; i++) {
        int all;
        const int k = slot_named(signature, c->kw[i].name, &all);
        if (k < 0) {
            pd__jfail(e, "%s takes no argument '%.*s'", what, (int)(pd__jbytes(c->kw[i].name) & 63),
                      pd__jchars(c->kw[i].name));
            return false;
        }
        slot[k] = c->kw[i].val;
    }
    return true;
}

static const pd__jfilter_row *find(const pd__jfilter_row *row, pd_jval name) {
    for (; row->name; row++) {
        if (pd__jis(name, row->name)) return row;
    }
    return NULL;
}

pd_jval pd__jfilter(pd__jev *e, pd_jval name, pd_jval self, const pd__jcall *c) {
    pd_jval slot[PD__JSLOT_MAX];
    if (e->rc != PD_OK || name.kind != PD_JSTR) return self;
    const pd__jfilter_row *row = find(pd__jfilters_text, name);
    if (!row) row = find(pd__jfilters_seq, name);
    if (!row)
        return pd__jfail(e, "no filter named '%.*s'", (int)(pd__jbytes(name) < 60 ? pd__jbytes(name) : 60), pd__jchars(name));
    if (!pd__jwork(e, 1)) return self;
    if (row->apply_call) return row->apply_call(e, self, c);
    return pd__jbind_args(e, row->name, row->signature, c, slot) ? row->apply(e, self, slot) : self;
}

static bool given(pd_jval v) {
    return v.kind != PD__JMISSING;
}

static int64_t int_arg(pd_jval v, int64_t otherwise) {
    return v.kind == PD_JINT ? v.u.i : v.kind == PD_JBOOL ? v.u.b : v.kind == PD_JFLOAT ? (int64_t)fmax(-1e15, fmin(1e15, v.u.f)) : otherwise;
}

pd_jval pd__jas_str(pd__jev *e, pd_jval v) {
    if (v.kind == PD_JSTR) return v;
    pd__jbuf b = {.h = e->h};
    if (!pd__jput(&b, v) && e->rc == PD_OK) return pd__jtoo_deep(e);
    pd__jworked(e, b.n);
    return pd__jbuf_str(&b);
}

/* ---- text, shared with the methods ---- */

static bool in_set(pd_jval chars, const char *s, size_t len, uint32_t cp) {
    if (chars.kind != PD_JSTR) return pd__jis_space(cp);
    const char *set = pd__jchars(chars);
    for (size_t i = 0, k; i < pd__jbytes(chars); i += k) {
        k = pd_utf8_next(set + i, pd__jbytes(chars) - i, NULL);
        if (k == 0) k = 1;
        if (k == len && memcmp(set + i, s, len) == 0) return true;
    }
    return false;
}

pd_jval pd__jtrim(pd__jev *e, pd_jval str, pd_jval chars, bool left, bool right) {
    const char *s = pd__jchars(str);
    size_t from = 0, to = pd__jbytes(str);
    uint32_t cp = 0;
    if (chars.kind != PD_JSTR && chars.kind != PD_JNONE && given(chars)) {
        if (!pd__jis_missing(e, chars)) pd__jfail(e, "strip arg must be None or str, not %s", pd__jkind_name(chars));
        return str;
    }
    while (left && from < to) {
        const size_t len = pd_utf8_next(s + from, to - from, &cp);
        if (!len || !in_set(chars, s + from, len, cp)) break;
        from += len;
    }
    while (right && to > from) {
        size_t k = to - 1;
        while (k > from && ((unsigned char)s[k] & 0xC0) == 0x80) k--;
        if (pd_utf8_next(s + k, to - k, &cp) != to - k || !in_set(chars, s + k, to - k, cp)) break;
        to = k;
    }
    pd__jworked(e, pd__jbytes(str) - (to - from));
    return pd__jsub(e->h, str, from, to);
}

pd_jval pd__jreplace(pd__jev *e, pd_jval str, pd_jval from, pd_jval to, int64_t most) {
    const char *s = pd__jchars(str);
    const size_t n = pd__jbytes(str), len = pd__jbytes(from);
    pd__jbuf b = {.h = e->h};
    size_t at = 0;
    for (; most != 0 && e->rc == PD_OK && !e->h->failed; most--) {
        size_t hit;
        if (len == 0) {
            hit = at;
            if (at > n) break;
        } else {
            const char *p = memmem(s + at, n - at, pd__jchars(from), len);
            if (!p) break;
            hit = (size_t)(p - s);
        }
        pd__jbuf_sub(&b, str, at, hit);
        pd__jbuf_sub(&b, to, 0, pd__jbytes(to));
        at = hit + len;
        if (len == 0) {
            const size_t k = at < n ? pd_utf8_next(s + at, n - at, NULL) : 0;
            if (k) pd__jbuf_sub(&b, str, at, at + k);
            at += k ? k : 1;
        }
        if (!pd__jworked(e, pd__jbytes(to))) break;
    }
    if (at < n) pd__jbuf_sub(&b, str, at, n);
    pd__jworked(e, n);
    return pd__jbuf_str(&b);
}

/* DIFFERS: one code point becomes one ("ß" in upper case is "ẞ"; Python makes "SS"). */
pd_jval pd__jcase(pd__jev *e, pd_jval str, int how) {
    const pd__jstr *s = str.u.str;
    pd__jbuf b = {.h = e->h};
    bool start = true; /* of a word, or (capitalize) of the text */
    if (!pd__jworked(e, s->n)) return str;
    for (size_t i = 0, len; i < s->n; i += len) {
        uint32_t cp = 0xFFFD;
        char out[4];
        len = pd_utf8_next(s->s + i, s->n - i, &cp);
        if (len == 0) len = 1;
        const utf8proc_int32_t c = (utf8proc_int32_t)cp;
        const utf8proc_category_t cat = utf8proc_category(c);
        const bool letter = cat >= UTF8PROC_CATEGORY_LU && cat <= UTF8PROC_CATEGORY_LT;
        const bool up = how == 'u' || (how == 's' && utf8proc_tolower(c) != c);
        const bool titled = start && (how == 't' || how == 'c');
        const bool down = how == 'l' || how == 't' || how == 'c' || how == 's';
        const utf8proc_int32_t to = titled ? utf8proc_totitle(c) : how == 's' && up ? utf8proc_tolower(c)
                                    : how == 's' || how == 'u' ? utf8proc_toupper(c) : down ? utf8proc_tolower(c) : c;
        start = how == 't' ? !letter : false;
        pd__jbuf_add(&b, out, pd_utf8_put((uint32_t)to, out), NULL, s->org ? s->org[i] : str.origin);
    }
    return pd__jbuf_str(&b);
}

/* ---- text filters ---- */

static pd_jval do_upper(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    return pd__jcase(e, pd__jas_str(e, self), 'u');
}

static pd_jval do_lower(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    return pd__jcase(e, pd__jas_str(e, self), 'l');
}

static pd_jval do_capitalize(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    return pd__jcase(e, pd__jas_str(e, self), 'c');
}

/* Jinja's title: the first letter of each run between blanks, dashes and brackets. */
static pd_jval do_title(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    const pd_jval str = pd__jas_str(e, self);
    if (e->rc != PD_OK || str.kind != PD_JSTR) return str;
    pd__jbuf b = {.h = e->h};
    const char *s = pd__jchars(str);
    for (size_t i = 0; i < pd__jbytes(str) && e->rc == PD_OK;) {
        size_t end = i;
        while (end < pd__jbytes(str)) {
            uint32_t cp = 0;
            const size_t k = pd_utf8_next(s + end, pd__jbytes(str) - end, &cp);
            if (cp < 0x80 ? strchr("-({[<", (int)cp) != NULL || pd__jis_space(cp) : pd__jis_space(cp)) break;
            end += k ? k : 1;
        }
        if (end > i) {
            const pd_jval word = pd__jcase(e, pd__jsub(e->h, str, i, end), 'c');
            if (word.kind == PD_JSTR) pd__jbuf_sub(&b, word, 0, pd__jbytes(word));
            i = end;
        } else {
            const size_t k = pd_utf8_next(s + i, pd__jbytes(str) - i, NULL);
            pd__jbuf_sub(&b, str, i, i + (k ? k : 1));
            i += k ? k : 1;
        }
    }
    return pd__jbuf_str(&b);
}

static pd_jval do_trim(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const pd_jval str = pd__jas_str(e, self);
    return str.kind == PD_JSTR ? pd__jtrim(e, str, slot[0], true, true) : str;
}

static pd_jval do_replace(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const pd_jval str = pd__jas_str(e, self), from = pd__jas_str(e, slot[0]), to = pd__jas_str(e, slot[1]);
    if (!given(slot[0]) || !given(slot[1])) return pd__jfail(e, "replace takes what to replace and by what");
    if (e->rc != PD_OK || str.kind != PD_JSTR || from.kind != PD_JSTR || to.kind != PD_JSTR) return str;
    return pd__jreplace(e, str, from, to, int_arg(slot[2], -1));
}

static pd_jval do_string(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    return pd__jas_str(e, self);
}

static pd_jval do_safe(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    pd_jval v = pd__jas_str(e, self);
    if (v.kind == PD_JSTR) v.form = PD__JFORM_MARKUP;
    return v;
}

static pd_jval do_escape(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    static const char from[] = "&<>'\"";
    static const char *const to[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
    if (self.kind == PD_JSTR && self.form == PD__JFORM_MARKUP) return self;
    const pd_jval str = pd__jas_str(e, self);
    if (str.kind != PD_JSTR) return str;
    pd__jbuf b = {.h = e->h};
    size_t at = 0;
    for (size_t i = 0; i < pd__jbytes(str); i++) {
        const char *k = pd__jchars(str)[i] ? strchr(from, pd__jchars(str)[i]) : NULL;
        if (!k) continue;
        pd__jbuf_sub(&b, str, at, i);
        pd__jbuf_lit(&b, to[k - from], str.u.str->org ? str.u.str->org[i] : str.origin);
        at = i + 1;
    }
    pd__jbuf_sub(&b, str, at, pd__jbytes(str));
    pd__jworked(e, b.n);
    pd_jval v = pd__jbuf_str(&b);
    v.form = PD__JFORM_MARKUP;
    return v;
}

static pd_jval do_indent(pd__jev *e, pd_jval self, const pd_jval *slot) {
    pd_jval str = pd__jas_str(e, self), unit = slot[0];
    const bool first = given(slot[1]) && pd__jtruth(slot[1]), blank = given(slot[2]) && pd__jtruth(slot[2]);
    if (e->rc != PD_OK || str.kind != PD_JSTR) return str;
    pd__jbuf pad = {.h = e->h}, b = {.h = e->h};
    const int64_t width = int_arg(unit, 4);
    if (unit.kind == PD_JSTR) pd__jbuf_sub(&pad, unit, 0, pd__jbytes(unit));
    else
        for (int64_t i = 0; i < width && pd__jwork(e, 1); i++) pd__jbuf_lit(&pad, " ", PD_JORIGIN_TEMPLATE);
    unit = pd__jbuf_str(&pad);
    const char *s = pd__jchars(str);
    size_t after = 0;
    for (size_t i = 0; e->rc == PD_OK; i = after) {
        const size_t end = pd__jline_end(s, pd__jbytes(str), i, &after);
        if ((i ? blank || end > i : first) && unit.kind == PD_JSTR) pd__jbuf_sub(&b, unit, 0, pd__jbytes(unit));
        pd__jbuf_sub(&b, str, i, end);
        if (after == end || !pd__jworked(e, pd__jbytes(unit))) break;
        pd__jbuf_lit(&b, "\n", s[end] ? (str.u.str->org ? str.u.str->org[end] : str.origin) : 0);
        if (after == pd__jbytes(str) && blank && unit.kind == PD_JSTR) pd__jbuf_sub(&b, unit, 0, pd__jbytes(unit));
        if (after == pd__jbytes(str)) break;
    }
    pd__jworked(e, b.n);
    return pd__jbuf_str(&b);
}

static pd_jval do_truncate(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const pd_jval str = pd__jas_str(e, self);
    if (e->rc != PD_OK || str.kind != PD_JSTR) return str;
    const pd_jval dots = slot[2].kind == PD_JSTR ? slot[2] : pd__jtext(e->h, "...");
    const char *s = pd__jchars(str);
    const int64_t most = int_arg(slot[0], 255), leeway = int_arg(slot[3], 5), n = (int64_t)pd__jcp_count(s, pd__jbytes(str));
    const int64_t end = dots.kind == PD_JSTR ? (int64_t)pd__jcp_count(pd__jchars(dots), pd__jbytes(dots)) : 0;
    if (dots.kind != PD_JSTR || !pd__jworked(e, pd__jbytes(str))) return str;
    if (most < end || leeway < 0) return pd__jfail(e, "truncate: expected length >= %lld and leeway >= 0", (long long)end);
    if (n <= most || n - most <= leeway) return str;
    size_t to = pd__jcp_at(s, pd__jbytes(str), (size_t)(most - end));
    if (!given(slot[1]) || !pd__jtruth(slot[1])) {
        const char *space = memrchr(s, ' ', to);
        if (space) to = (size_t)(space - s);
    }
    return pd__jadd(e, pd__jsub(e->h, str, 0, to), dots);
}

static pd_jval do_center(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const pd_jval str = pd__jas_str(e, self);
    if (e->rc != PD_OK || str.kind != PD_JSTR) return str;
    const int64_t n = (int64_t)pd__jcp_count(pd__jchars(str), pd__jbytes(str)), width = int_arg(slot[0], 80);
    const int64_t pad = width > n ? width - n : 0, left = pad / 2 + (pad & width & 1);
    pd__jbuf b = {.h = e->h};
    for (int64_t i = 0; i <= pad && pd__jwork(e, 1); i++) {
        if (i == left) pd__jbuf_sub(&b, str, 0, pd__jbytes(str));
        if (i < pad) pd__jbuf_lit(&b, " ", PD_JORIGIN_TEMPLATE);
    }
    return pd__jbuf_str(&b);
}

static pd_jval do_wordcount(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    const pd_jval str = pd__jas_str(e, self);
    int64_t n = 0;
    bool in = false;
    if (str.kind != PD_JSTR || !pd__jworked(e, pd__jbytes(str))) return pd_jint(0);
    for (size_t i = 0, len; i < pd__jbytes(str); i += len) {
        uint32_t cp = 0;
        len = pd_utf8_next(pd__jchars(str) + i, pd__jbytes(str) - i, &cp);
        if (len == 0) len = 1;
        const utf8proc_category_t cat = utf8proc_category((utf8proc_int32_t)cp);
        const bool part = cp == '_' || (cat >= UTF8PROC_CATEGORY_LU && cat <= UTF8PROC_CATEGORY_LO) ||
                          (cat >= UTF8PROC_CATEGORY_ND && cat <= UTF8PROC_CATEGORY_NO);
        n += part && !in;
        in = part;
    }
    return pd_jint(n);
}

static pd_jval do_format(pd__jev *e, pd_jval self, const pd__jcall *c) {
    const pd_jval str = pd__jas_str(e, self);
    if (str.kind != PD_JSTR || e->rc != PD_OK) return str;
    if (c->n_kw) { /* "%(name)s"|format(name=1) */
        pd_jval dict = pd_jdict(e->h, c->n_kw, 0);
        for (size_t i = 0; i < c->n_kw; i++) pd_jdict_add(e->h, dict, c->kw[i].name, c->kw[i].val);
        const pd__jcall one = {.pos = &dict, .n_pos = 1};
        return pd__jpercent(e, str, &one);
    }
    return pd__jpercent(e, str, c);
}

static pd_jval do_tojson(pd__jev *e, pd_jval self, const pd_jval *slot) {
    return pd__jjson(e, self, slot);
}

/* ---- numbers ---- */

/* The text as a number, blanks around it and single underscores within allowed. */
static bool parse_number(pd_jval str, int64_t base, bool whole, int64_t *i, double *f) {
    char text[128];
    size_t k = 0, from = 0, to = pd__jbytes(str);
    const char *s = pd__jchars(str);
    while (from < to && pd__jis_space((unsigned char)s[from])) from++;
    while (to > from && pd__jis_space((unsigned char)s[to - 1])) to--;
    for (; from < to; from++) {
        if (s[from] == '_' && k && from + 1 < to && s[from - 1] != '_' && s[from + 1] != '_') continue;
        if (k + 1 == sizeof text || s[from] == '\0') return false;
        text[k++] = s[from];
    }
    text[k] = '\0';
    if (k == 0 || text[0] == ' ') return false;
    char *end;
    errno = 0;
    if (whole) {
        const char *p = text + (text[0] == '-' || text[0] == '+');
        if (base == 10 && !(p[0] >= '0' && p[0] <= '9')) return false;
        if ((base == 2 && p[0] == '0' && (p[1] | 32) == 'b') || (base == 8 && p[0] == '0' && (p[1] | 32) == 'o')) {
            *i = strtoll(p + 2, &end, (int)base);
            if (text[0] == '-') *i = -*i;
        } else {
            *i = strtoll(text, &end, (int)base);
        }
    } else {
        if (strpbrk(text, "xXpP(")) return false; /* Python reads no hexadecimal float */
        *f = strtod(text, &end);
        if (errno == ERANGE && fabs(*f) < 1) errno = 0;
    }
    return *end == '\0' && errno == 0;
}

static pd_jval do_int(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const pd_jval otherwise = given(slot[0]) ? slot[0] : pd_jint(0);
    const int64_t base = int_arg(slot[1], 10);
    int64_t i = 0;
    double f = 0.0;
    pd_jval v = otherwise;
    if (pd__jis_missing(e, self)) return self;
    if (base < 2 || base > 36) return otherwise;
    if (self.kind == PD_JINT || self.kind == PD_JBOOL) return pd_jint(int_arg(self, 0));
    if (self.kind == PD_JFLOAT) f = self.u.f;
    else if (self.kind != PD_JSTR) return otherwise;
    else if (parse_number(self, base, true, &i, &f)) v = pd_jint(i);
    else if (!parse_number(self, 10, false, &i, &f)) return otherwise;
    if (v.kind == PD_JINT && self.kind == PD_JSTR && parse_number(self, base, true, &i, &f)) {
        v.origin = self.origin;
        return v;
    }
    if (!(f > -9.2e18 && f < 9.2e18)) return otherwise;
    v = pd_jint((int64_t)f);
    v.origin = self.origin;
    return v;
}

static pd_jval do_float(pd__jev *e, pd_jval self, const pd_jval *slot) {
    int64_t i = 0;
    double f = 0.0;
    if (pd__jis_missing(e, self)) return self;
    if (pd__jis_number(self)) return pd_jfloat(pd__jnumber(self));
    if (self.kind != PD_JSTR || !parse_number(self, 10, false, &i, &f)) return given(slot[0]) ? slot[0] : pd_jfloat(0.0);
    pd_jval v = pd_jfloat(f);
    v.origin = self.origin;
    return v;
}

static pd_jval do_abs(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    if (pd__jis_missing(e, self)) return self;
    if (!pd__jis_number(self)) return pd__jfail(e, "bad operand type for abs(): '%s'", pd__jkind_name(self));
    if (self.kind == PD_JFLOAT) return pd_jfloat(fabs(self.u.f));
    const int64_t i = int_arg(self, 0);
    return i == INT64_MIN ? pd__jfail(e, "a whole number does not fit 64 bits") : pd_jint(i < 0 ? -i : i);
}

static pd_jval do_round(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const int64_t digits = int_arg(slot[0], 0);
    if (pd__jis_missing(e, self)) return self;
    if (!pd__jis_number(self)) return pd__jfail(e, "type %s doesn't define __round__ method", pd__jkind_name(self));
    const double f = pd__jnumber(self);
    if (slot[1].kind == PD_JSTR && (pd__jis(slot[1], "ceil") || pd__jis(slot[1], "floor"))) {
        const double scale = pow(10.0, (double)digits);
        return pd_jfloat((pd__jis(slot[1], "ceil") ? ceil(f * scale) : floor(f * scale)) / scale);
    }
    if (given(slot[1]) && !pd__jis(slot[1], "common")) return pd__jfail(e, "method must be common, ceil or floor");
    if (self.kind != PD_JFLOAT && digits >= 0) return pd_jint(int_arg(self, 0));
    if (digits > 300 || !isfinite(f)) return pd_jfloat(f);
    if (digits < -300) return pd_jfloat(0.0);
    char text[400]; /* exact decimal digits, halves to even where they are halves */
    if (digits >= 0) {
        snprintf(text, sizeof text, "%.*f", (int)digits, f);
        return pd_jfloat(strtod(text, NULL));
    }
    const double scale = pow(10.0, (double)-digits), r = nearbyint(f / scale) * scale;
    return self.kind == PD_JFLOAT ? pd_jfloat(r) : pd_jint((int64_t)r);
}

const pd__jfilter_row pd__jfilters_text[] = {
    {"upper", "", do_upper, NULL},
    {"lower", "", do_lower, NULL},
    {"capitalize", "", do_capitalize, NULL},
    {"title", "", do_title, NULL},
    {"trim", "chars", do_trim, NULL},
    {"replace", "old new count", do_replace, NULL},
    {"string", "", do_string, NULL},
    {"safe", "", do_safe, NULL},
    {"escape", "", do_escape, NULL},
    {"e", "", do_escape, NULL},
    {"indent", "width first blank", do_indent, NULL},
    {"truncate", "length killwords end leeway", do_truncate, NULL},
    {"center", "width", do_center, NULL},
    {"wordcount", "", do_wordcount, NULL},
    {"format", NULL, NULL, do_format},
    {"tojson", "ensure_ascii indent separators sort_keys", do_tojson, NULL},
    {"int", "default base", do_int, NULL},
    {"float", "default", do_float, NULL},
    {"abs", "", do_abs, NULL},
    {"round", "precision method", do_round, NULL},
    {NULL, NULL, NULL, NULL},
};
