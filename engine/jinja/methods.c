/* SPDX-License-Identifier: Apache-2.0 */
/* Methods of Python's str, list, dict and of Jinja's loop, as far as they change
 * nothing: transformers renders in a sandbox that refuses the others. */
#include "engine/jinja/eval.h"

#include "engine/base/utf8.h"

#include <string.h>
#include <utf8proc.h>

typedef pd_jval (*method_fn)(pd__jev *e, pd_jval self, const pd_jval *slot);

static bool given(pd_jval v) {
    return v.kind != PD__JMISSING && v.kind != PD_JNONE;
}

static bool text_arg(pd__jev *e, pd_jval v, const char *what) {
    if (v.kind == PD_JSTR) return true;
    if (!pd__jis_missing(e, v)) pd__jfail(e, "%s takes a str, not %s", what, pd__jkind_name(v));
    return false;
}

static int64_t int_arg(pd_jval v, int64_t otherwise) {
    return v.kind == PD_JINT ? v.u.i : v.kind == PD_JBOOL ? v.u.b : otherwise;
}

/* ---- str: the same text, otherwise ---- */

static pd_jval s_upper(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    return pd__jcase(e, self, 'u');
}

static pd_jval s_lower(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    return pd__jcase(e, self, 'l');
}

static pd_jval s_title(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    return pd__jcase(e, self, 't');
}

static pd_jval s_capitalize(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    return pd__jcase(e, self, 'c');
}

static pd_jval s_swapcase(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    return pd__jcase(e, self, 's');
}

static pd_jval s_strip(pd__jev *e, pd_jval self, const pd_jval *slot) {
    return pd__jtrim(e, self, slot[0], true, true);
}

static pd_jval s_lstrip(pd__jev *e, pd_jval self, const pd_jval *slot) {
    return pd__jtrim(e, self, slot[0], true, false);
}

static pd_jval s_rstrip(pd__jev *e, pd_jval self, const pd_jval *slot) {
    return pd__jtrim(e, self, slot[0], false, true);
}

static pd_jval s_replace(pd__jev *e, pd_jval self, const pd_jval *slot) {
    if (!text_arg(e, slot[0], "replace") || !text_arg(e, slot[1], "replace")) return self;
    return pd__jreplace(e, self, slot[0], slot[1], int_arg(slot[2], -1));
}

static pd_jval s_join(pd__jev *e, pd_jval self, const pd_jval *slot) {
    return pd__jjoin(e, slot[0], self, (pd_jval){.kind = PD__JMISSING}, true);
}

static bool begins(pd_jval s, pd_jval with, bool end) {
    const size_t n = pd__jbytes(s), k = pd__jbytes(with);
    return k <= n && memcmp(pd__jchars(s) + (end ? n - k : 0), pd__jchars(with), k) == 0;
}

static pd_jval s_removeprefix(pd__jev *e, pd_jval self, const pd_jval *slot) {
    if (!text_arg(e, slot[0], "removeprefix") || !begins(self, slot[0], false)) return self;
    return pd__jsub(e->h, self, pd__jbytes(slot[0]), pd__jbytes(self));
}

static pd_jval s_removesuffix(pd__jev *e, pd_jval self, const pd_jval *slot) {
    if (!text_arg(e, slot[0], "removesuffix") || !begins(self, slot[0], true)) return self;
    return pd__jsub(e->h, self, 0, pd__jbytes(self) - pd__jbytes(slot[0]));
}

static pd_jval padded(pd__jev *e, pd_jval self, const pd_jval *slot, int where) {
    const int64_t n = (int64_t)pd__jcp_count(pd__jchars(self), pd__jbytes(self)), width = int_arg(slot[0], 0);
    const int64_t pad = width > n ? width - n : 0;
    const int64_t left = where < 0 ? 0 : where > 0 ? pad : pad / 2 + (pad & width & 1);
    const pd_jval fill = slot[1].kind == PD_JSTR ? slot[1] : pd__jtext(e->h, " ");
    pd__jbuf b = {.h = e->h};
    if (fill.kind != PD_JSTR) return self;
    if (pd__jcp_count(pd__jchars(fill), pd__jbytes(fill)) != 1)
        return pd__jfail(e, "The fill character must be exactly one character long");
    for (int64_t i = 0; i <= pad && pd__jwork(e, 1); i++) {
        if (i == left) pd__jbuf_sub(&b, self, 0, pd__jbytes(self));
        if (i < pad) pd__jbuf_sub(&b, fill, 0, pd__jbytes(fill));
    }
    return pd__jbuf_str(&b);
}

static pd_jval s_ljust(pd__jev *e, pd_jval self, const pd_jval *slot) {
    return padded(e, self, slot, -1);
}

static pd_jval s_rjust(pd__jev *e, pd_jval self, const pd_jval *slot) {
    return padded(e, self, slot, 1);
}

static pd_jval s_center(pd__jev *e, pd_jval self, const pd_jval *slot) {
    return padded(e, self, slot, 0);
}

static pd_jval s_zfill(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const int64_t n = (int64_t)pd__jcp_count(pd__jchars(self), pd__jbytes(self)), width = int_arg(slot[0], 0);
    const size_t sign = pd__jbytes(self) && (pd__jchars(self)[0] == '-' || pd__jchars(self)[0] == '+');
    pd__jbuf b = {.h = e->h};
    pd__jbuf_sub(&b, self, 0, sign);
    for (int64_t i = n; i < width && pd__jwork(e, 1); i++) pd__jbuf_lit(&b, "0", PD_JORIGIN_TEMPLATE);
    pd__jbuf_sub(&b, self, sign, pd__jbytes(self));
    return pd__jbuf_str(&b);
}

/* ---- str: parts ---- */

static void add_part(pd__jev *e, pd_jval list, pd_jval self, size_t from, size_t to) {
    pd_jlist_add(e->h, list, pd__jsub(e->h, self, from, to));
}

static bool space_at(const char *s, size_t n, size_t i, size_t *len) {
    uint32_t cp = 0;
    *len = pd_utf8_next(s + i, n - i, &cp);
    if (*len == 0) *len = 1;
    return pd__jis_space(cp);
}

/* By runs of white space; `most` splits, -1 all. */
static pd_jval split_words(pd__jev *e, pd_jval self, int64_t most) {
    const char *s = pd__jchars(self);
    const size_t n = pd__jbytes(self);
    pd_jval list = pd_jlist(e->h, 0, self.origin);
    size_t i = 0, len = 0;
    while (pd__jwork(e, 1)) {
        while (i < n && space_at(s, n, i, &len)) i += len;
        if (i == n) break;
        const size_t from = i;
        if (most == 0) {
            const pd_jval rest = pd__jtrim(e, pd__jsub(e->h, self, from, n), pd_jnone(), false, true);
            pd_jlist_add(e->h, list, rest);
            break;
        }
        while (i < n && !space_at(s, n, i, &len)) i += len;
        add_part(e, list, self, from, i);
        if (most > 0) most--;
    }
    pd__jworked(e, n);
    return list;
}

static pd_jval s_split(pd__jev *e, pd_jval self, const pd_jval *slot) {
    int64_t most = int_arg(slot[1], -1);
    if (!given(slot[0])) return split_words(e, self, most);
    if (!text_arg(e, slot[0], "split")) return self;
    const char *s = pd__jchars(self);
    const size_t n = pd__jbytes(self), len = pd__jbytes(slot[0]);
    if (len == 0) return pd__jfail(e, "empty separator");
    pd_jval list = pd_jlist(e->h, 0, self.origin);
    size_t from = 0;
    for (; most != 0 && pd__jwork(e, 1); most--) {
        const char *p = memmem(s + from, n - from, pd__jchars(slot[0]), len);
        if (!p) break;
        add_part(e, list, self, from, (size_t)(p - s));
        from = (size_t)(p - s) + len;
    }
    add_part(e, list, self, from, n);
    pd__jworked(e, n);
    return list;
}

/* The last place of `what` in s[0..n), n if none. */
static size_t last_place(const char *s, size_t n, pd_jval what) {
    const size_t len = pd__jbytes(what);
    for (size_t i = n >= len ? n - len + 1 : 0; i > 0; i--) {
        if (memcmp(s + i - 1, pd__jchars(what), len) == 0) return i - 1;
    }
    return SIZE_MAX;
}

static void turn_around(pd_jval list) {
    pd__jlist *l = list.u.list;
    for (size_t i = 0; i < l->n / 2; i++) {
        const pd_jval v = l->v[i];
        l->v[i] = l->v[l->n - 1 - i];
        l->v[l->n - 1 - i] = v;
    }
}

static pd_jval rsplit_words(pd__jev *e, pd_jval self, int64_t most) {
    pd_jval all = split_words(e, self, -1);
    if (all.kind != PD_JLIST || most < 0 || (size_t)most >= all.u.list->n) return all;
    /* What the last `most` words leave is one part, as it stands. */
    pd__jlist *l = all.u.list;
    const size_t keep = l->n - (size_t)most;
    const char *s = pd__jchars(self);
    if (keep == 0) return all;
    const size_t from = (size_t)(pd__jchars(l->v[0]) - s);
    const size_t to = (size_t)(pd__jchars(l->v[keep - 1]) - s) + pd__jbytes(l->v[keep - 1]);
    pd_jval list = pd_jlist(e->h, 0, self.origin);
    add_part(e, list, self, from, to);
    for (size_t i = keep; i < l->n; i++) pd_jlist_add(e->h, list, l->v[i]);
    return list;
}

static pd_jval s_rsplit(pd__jev *e, pd_jval self, const pd_jval *slot) {
    int64_t most = int_arg(slot[1], -1);
    if (!given(slot[0])) return rsplit_words(e, self, most);
    if (!text_arg(e, slot[0], "rsplit")) return self;
    if (pd__jbytes(slot[0]) == 0) return pd__jfail(e, "empty separator");
    pd_jval list = pd_jlist(e->h, 0, self.origin);
    size_t to = pd__jbytes(self);
    for (; most != 0 && pd__jworked(e, pd__jbytes(slot[0])); most--) {
        const size_t at = last_place(pd__jchars(self), to, slot[0]);
        if (at == SIZE_MAX) break;
        add_part(e, list, self, at + pd__jbytes(slot[0]), to);
        to = at;
    }
    add_part(e, list, self, 0, to);
    pd__jworked(e, pd__jbytes(self));
    if (list.kind == PD_JLIST) turn_around(list);
    return list;
}

static pd_jval s_splitlines(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const bool ends = given(slot[0]) && pd__jtruth(slot[0]);
    const size_t n = pd__jbytes(self);
    pd_jval list = pd_jlist(e->h, 0, self.origin);
    for (size_t i = 0, after; i < n && pd__jwork(e, 1); i = after) {
        const size_t end = pd__jline_end(pd__jchars(self), n, i, &after);
        add_part(e, list, self, i, ends ? after : end);
    }
    pd__jworked(e, n);
    return list;
}

static pd_jval partitioned(pd__jev *e, pd_jval self, const pd_jval *slot, bool last) {
    if (!text_arg(e, slot[0], "partition")) return self;
    const size_t n = pd__jbytes(self), len = pd__jbytes(slot[0]);
    const char *s = pd__jchars(self), *p = len ? memmem(s, n, pd__jchars(slot[0]), len) : NULL;
    if (len == 0) return pd__jfail(e, "empty separator");
    size_t at = last ? last_place(s, n, slot[0]) : p ? (size_t)(p - s) : SIZE_MAX;
    const bool found = at != SIZE_MAX;
    pd_jval list = pd_jlist(e->h, 3, self.origin);
    list.form = PD__JFORM_TUPLE;
    if (!found) at = last ? 0 : n;
    pd__jworked(e, n);
    add_part(e, list, self, 0, at);
    add_part(e, list, self, at, found ? at + len : at);
    add_part(e, list, self, found ? at + len : at, n);
    return list;
}

static pd_jval s_partition(pd__jev *e, pd_jval self, const pd_jval *slot) {
    return partitioned(e, self, slot, false);
}

static pd_jval s_rpartition(pd__jev *e, pd_jval self, const pd_jval *slot) {
    return partitioned(e, self, slot, true);
}

/* ---- str: questions ---- */

/* [start:end] of the text as bytes, by code points as Python counts them. */
static pd_jval window(pd__jev *e, pd_jval self, pd_jval start, pd_jval end) {
    if (!given(start) && !given(end)) return self;
    const char *s = pd__jchars(self);
    const int64_t n = (int64_t)pd__jcp_count(s, pd__jbytes(self));
    int64_t from = int_arg(start, 0), to = int_arg(end, n);
    if (from < 0) from = from < -n ? 0 : from + n;
    if (to < 0) to = to < -n ? 0 : to + n;
    if (to > n) to = n;
    if (from > n) from = n;
    if (to < from) to = from;
    return pd__jsub(e->h, self, pd__jcp_at(s, pd__jbytes(self), (size_t)from), pd__jcp_at(s, pd__jbytes(self), (size_t)to));
}

static pd_jval affix(pd__jev *e, pd_jval self, const pd_jval *slot, bool end) {
    const pd_jval w = window(e, self, slot[1], slot[2]);
    if (slot[0].kind == PD_JLIST && slot[0].form == PD__JFORM_TUPLE) {
        const pd__jlist *l = slot[0].u.list;
        for (size_t i = 0; i < l->n; i++) {
            if (!text_arg(e, l->v[i], end ? "endswith" : "startswith")) return self;
            if (begins(w, l->v[i], end)) return pd_jbool(true);
        }
        return pd_jbool(false);
    }
    return text_arg(e, slot[0], end ? "endswith" : "startswith") ? pd_jbool(begins(w, slot[0], end)) : self;
}

static pd_jval s_startswith(pd__jev *e, pd_jval self, const pd_jval *slot) {
    return affix(e, self, slot, false);
}

static pd_jval s_endswith(pd__jev *e, pd_jval self, const pd_jval *slot) {
    return affix(e, self, slot, true);
}

static pd_jval place(pd__jev *e, pd_jval self, const pd_jval *slot, bool last, bool must) {
    if (!text_arg(e, slot[0], "find")) return self;
    const pd_jval w = window(e, self, slot[1], slot[2]);
    const char *s = pd__jchars(w);
    const size_t n = pd__jbytes(w);
    const char *p = pd__jbytes(slot[0]) ? memmem(s, n, pd__jchars(slot[0]), pd__jbytes(slot[0])) : s;
    const size_t at = last ? last_place(s, n, slot[0]) : p ? (size_t)(p - s) : SIZE_MAX;
    pd__jworked(e, n);
    if (at == SIZE_MAX) return must ? pd__jfail(e, "substring not found") : pd_jint(-1);
    const size_t before = (size_t)(s - pd__jchars(self));
    return pd_jint((int64_t)(pd__jcp_count(pd__jchars(self), before) + pd__jcp_count(s, at)));
}

static pd_jval s_find(pd__jev *e, pd_jval self, const pd_jval *slot) {
    return place(e, self, slot, false, false);
}

static pd_jval s_rfind(pd__jev *e, pd_jval self, const pd_jval *slot) {
    return place(e, self, slot, true, false);
}

static pd_jval s_index(pd__jev *e, pd_jval self, const pd_jval *slot) {
    return place(e, self, slot, false, true);
}

static pd_jval s_rindex(pd__jev *e, pd_jval self, const pd_jval *slot) {
    return place(e, self, slot, true, true);
}

static pd_jval s_count(pd__jev *e, pd_jval self, const pd_jval *slot) {
    if (!text_arg(e, slot[0], "count")) return self;
    const pd_jval w = window(e, self, slot[1], slot[2]);
    const size_t len = pd__jbytes(slot[0]);
    const char *s = pd__jchars(w), *end = s + pd__jbytes(w), *p;
    if (len == 0) return pd_jint((int64_t)pd__jcp_count(s, pd__jbytes(w)) + 1);
    int64_t n = 0;
    for (; (p = memmem(s, (size_t)(end - s), pd__jchars(slot[0]), len)) != NULL && pd__jwork(e, 1); s = p + len) n++;
    pd__jworked(e, pd__jbytes(w));
    return pd_jint(n);
}

/* True if there is a character and all are of the kind. */
static pd_jval all_are(pd__jev *e, pd_jval self, int kind) {
    if (!pd__jworked(e, pd__jbytes(self))) return self;
    for (size_t i = 0, len; i < pd__jbytes(self); i += len) {
        uint32_t cp = 0;
        len = pd_utf8_next(pd__jchars(self) + i, pd__jbytes(self) - i, &cp);
        if (len == 0) len = 1;
        const utf8proc_category_t cat = utf8proc_category((utf8proc_int32_t)cp);
        const bool letter = cat >= UTF8PROC_CATEGORY_LU && cat <= UTF8PROC_CATEGORY_LO;
        const bool number = cat >= UTF8PROC_CATEGORY_ND && cat <= UTF8PROC_CATEGORY_NO;
        const bool is = kind == 's' ? pd__jis_space(cp) : kind == 'a' ? letter : kind == 'd' ? cat == UTF8PROC_CATEGORY_ND
                        : kind == 'm' ? number : letter || number;
        if (!is) return pd_jbool(false);
    }
    return pd_jbool(pd__jbytes(self) > 0);
}

static pd_jval s_isspace(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    return all_are(e, self, 's');
}

static pd_jval s_isalpha(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    return all_are(e, self, 'a');
}

static pd_jval s_isdigit(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    return all_are(e, self, 'd');
}

static pd_jval s_isnumeric(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    return all_are(e, self, 'm');
}

static pd_jval s_isalnum(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    return all_are(e, self, 'n');
}

static pd_jval cased(pd__jev *e, pd_jval self, const char *test) {
    const pd__jcall none = {0};
    return pd_jbool(pd__jtest(e, pd__jtext(e->h, test), self, &none));
}

static pd_jval s_isupper(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    return cased(e, self, "upper");
}

static pd_jval s_islower(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    return cased(e, self, "lower");
}

/* ---- list, dict ---- */

static pd_jval l_index(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const pd__jlist *l = self.u.list;
    if (!pd__jwork(e, l->n / 16)) return self;
    for (size_t i = 0; i < l->n; i++) {
        if (pd__jequal(e->h, l->v[i], slot[0], 0)) return pd_jint((int64_t)i);
    }
    return pd__jfail(e, "the value is not in the list");
}

static pd_jval l_count(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const pd__jlist *l = self.u.list;
    int64_t n = 0;
    if (!pd__jwork(e, l->n / 16)) return self;
    for (size_t i = 0; i < l->n; i++) n += pd__jequal(e->h, l->v[i], slot[0], 0);
    return pd_jint(n);
}

static pd_jval l_copy(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    pd__jwork(e, self.u.list->n / 16);
    return pd__jlist_of(e, self.u.list->v, self.u.list->n, self.form, self.origin);
}

static pd_jval view(pd__jev *e, pd_jval self, bool key, bool val) {
    const pd__jdict *d = self.u.dict;
    pd_jval list = pd_jlist(e->h, d->n, self.origin);
    list.form = PD__JFORM_VIEW;
    if (!pd__jwork(e, d->n / 4)) return self;
    for (size_t i = 0; i < d->n; i++) {
        const pd_jval both[] = {d->v[i].key, d->v[i].val};
        pd_jlist_add(e->h, list, key && val ? pd__jlist_of(e, both, 2, PD__JFORM_TUPLE, self.origin) : key ? both[0] : both[1]);
    }
    return list;
}

static pd_jval d_items(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    return view(e, self, true, true);
}

static pd_jval d_keys(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    return view(e, self, true, false);
}

static pd_jval d_values(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    return view(e, self, false, true);
}

static pd_jval d_get(pd__jev *e, pd_jval self, const pd_jval *slot) {
    if (!pd__jwork(e, self.u.dict->n / 16)) return self;
    const pd_jval *v = pd__jfind(e->h, self, slot[0]);
    return v ? *v : slot[1].kind == PD__JMISSING ? pd_jnone() : slot[1];
}

static pd_jval d_copy(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    const pd__jdict *d = self.u.dict;
    pd_jval copy = pd_jdict(e->h, d->n, self.origin);
    if (!pd__jwork(e, d->n / 16)) return self;
    for (size_t i = 0; i < d->n; i++) pd_jdict_add(e->h, copy, d->v[i].key, d->v[i].val);
    return copy;
}

/* ---- the tables ---- */

typedef struct {
    const char *name, *signature;
    unsigned least; /* arguments that must be given */
    method_fn apply; /* NULL: Python has it, the sandbox does not allow it */
} row;

static const row of_str[] = {
    {"upper", "", 0, s_upper}, {"lower", "", 0, s_lower}, {"title", "", 0, s_title}, {"capitalize", "", 0, s_capitalize},
    {"swapcase", "", 0, s_swapcase}, {"casefold", "", 0, s_lower}, {"strip", "chars", 0, s_strip},
    {"lstrip", "chars", 0, s_lstrip}, {"rstrip", "chars", 0, s_rstrip}, {"replace", "old new count", 2, s_replace},
    {"join", "iterable", 1, s_join}, {"removeprefix", "prefix", 1, s_removeprefix}, {"removesuffix", "suffix", 1, s_removesuffix},
    {"ljust", "width fillchar", 1, s_ljust}, {"rjust", "width fillchar", 1, s_rjust}, {"center", "width fillchar", 1, s_center},
    {"zfill", "width", 1, s_zfill}, {"split", "sep maxsplit", 0, s_split}, {"rsplit", "sep maxsplit", 0, s_rsplit},
    {"splitlines", "keepends", 0, s_splitlines}, {"partition", "sep", 1, s_partition}, {"rpartition", "sep", 1, s_rpartition},
    {"startswith", "prefix start end", 1, s_startswith}, {"endswith", "suffix start end", 1, s_endswith},
    {"find", "sub start end", 1, s_find}, {"rfind", "sub start end", 1, s_rfind}, {"index", "sub start end", 1, s_index},
    {"rindex", "sub start end", 1, s_rindex}, {"count", "sub start end", 1, s_count}, {"isspace", "", 0, s_isspace},
    {"isalpha", "", 0, s_isalpha}, {"isdigit", "", 0, s_isdigit}, {"isdecimal", "", 0, s_isdigit},
    {"isnumeric", "", 0, s_isnumeric}, {"isalnum", "", 0, s_isalnum}, {"isupper", "", 0, s_isupper}, {"islower", "", 0, s_islower},
    {NULL, NULL, 0, NULL},
};
static const row of_list[] = {
    {"index", "value", 1, l_index}, {"count", "value", 1, l_count}, {"copy", "", 0, l_copy}, {"append", "", 0, NULL},
    {"extend", "", 0, NULL}, {"insert", "", 0, NULL}, {"pop", "", 0, NULL}, {"remove", "", 0, NULL}, {"clear", "", 0, NULL},
    {"sort", "", 0, NULL}, {"reverse", "", 0, NULL}, {NULL, NULL, 0, NULL},
};
static const row of_dict[] = {
    {"items", "", 0, d_items}, {"keys", "", 0, d_keys}, {"values", "", 0, d_values}, {"get", "key default", 1, d_get},
    {"copy", "", 0, d_copy}, {"pop", "", 0, NULL}, {"popitem", "", 0, NULL}, {"update", "", 0, NULL},
    {"setdefault", "", 0, NULL}, {"clear", "", 0, NULL}, {NULL, NULL, 0, NULL},
};

static const row *find(pd_jval self, pd_jval name) {
    const row *r = self.kind == PD_JSTR ? of_str : self.kind == PD_JDICT ? of_dict
                   : self.kind == PD_JLIST && self.form <= PD__JFORM_TUPLE ? of_list : NULL;
    for (; r && r->name; r++) {
        /* A tuple has no more than these. */
        if (pd__jis(name, r->name)) return self.kind == PD_JLIST && self.form == PD__JFORM_TUPLE && !r->apply ? NULL : r;
    }
    return NULL;
}

bool pd__jhas_method(pd_jval self, pd_jval name) {
    if (self.kind == PD__JLOOP) return pd__jis(name, "cycle") || pd__jis(name, "changed");
    if (pd__jis_cycler(self)) return pd__jis(name, "next") || pd__jis(name, "reset");
    return find(self, name) != NULL || (self.kind == PD_JSTR && pd__jis(name, "format"));
}

static pd_jval of_loop(pd__jev *e, pd__jloop *l, pd_jval name, const pd__jcall *c) {
    if (pd__jis(name, "cycle")) return c->n_pos ? c->pos[l->i % c->n_pos] : pd__jfail(e, "no items for cycling given");
    const pd_jval now = pd__jlist_of(e, c->pos, c->n_pos, PD__JFORM_TUPLE, 0);
    const bool same = l->changed && pd__jequal(e->h, *l->changed, now, 0);
    l->changed = PD_JNEW(e->h, 1, pd_jval);
    if (l->changed) *l->changed = now;
    return pd_jbool(!same);
}

pd_jval pd__jmethod(pd__jev *e, pd_jval self, pd_jval name, const pd__jcall *c) {
    pd_jval slot[PD__JSLOT_MAX];
    if (!pd__jwork(e, 1)) return self;
    if (self.kind == PD__JLOOP) return of_loop(e, self.u.p, name, c);
    if (pd__jis_cycler(self)) return pd__jcycler(e, self, name);
    if (self.kind == PD_JSTR && pd__jis(name, "format")) return pd__jformat(e, self, c);
    const row *r = find(self, name);
    if (!r) return pd__jfail(e, "'%s object' has no such method", pd__jkind_name(self));
    if (!r->apply)
        return pd__jfail(e, "access to attribute '%s' of '%s' object is unsafe", r->name, pd__jkind_name(self));
    if (!pd__jbind_args(e, r->name, r->signature, c, slot)) return self;
    if (r->least && slot[r->least - 1].kind == PD__JMISSING) return pd__jfail(e, "%s takes %u argument(s)", r->name, r->least);
    return r->apply(e, self, slot);
}
