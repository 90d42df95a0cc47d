/* SPDX-License-Identifier: Apache-2.0 */
/* Filters on lists and dicts, each Jinja's of that name.  Those that Jinja writes as
 * generators give generators here too: without a length, true, gone through once. */
#include "engine/jinja/eval.h"

#include <stdlib.h>
#include <string.h>

static bool given(pd_jval v) {
    return v.kind != PD__JMISSING;
}

static bool flag(pd_jval v) {
    return given(v) && pd__jtruth(v);
}

static pd_jval generator(pd__jev *e, size_t cap, uint16_t origin) {
    pd_jval v = pd_jlist(e->h, cap, origin);
    v.form = PD__JFORM_GENERATOR;
    return v;
}

/* "a.b.0" of v, or `otherwise` where it is undefined (and given). */
static pd_jval path(pd__jev *e, pd_jval v, pd_jval name, pd_jval otherwise) {
    if (name.kind == PD_JSTR) {
        const char *s = pd__jchars(name);
        const size_t n = pd__jbytes(name);
        for (size_t from = 0, to; from <= n && e->rc == PD_OK; from = to + 1) {
            for (to = from; to < n && s[to] != '.';) to++;
            pd_jval key = pd__jsub(e->h, name, from, to);
            bool digits = to > from;
            int64_t i = 0;
            for (size_t k = from; k < to; k++) {
                digits = digits && s[k] >= '0' && s[k] <= '9' && to - from < 10;
                i = digits ? i * 10 + (s[k] - '0') : i;
            }
            v = pd__jitem(e, v, digits ? pd_jint(i) : key);
        }
    } else {
        v = pd__jitem(e, v, name);
    }
    return v.kind == PD_JUNDEFINED && given(otherwise) ? otherwise : v;
}

/* ---- one value of many ---- */

static pd_jval do_default(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const bool use = self.kind == PD_JUNDEFINED || (flag(slot[1]) && !pd__jtruth(self));
    if (!use) return self;
    return given(slot[0]) ? slot[0] : pd_jstr(e->h, "", 0, PD_JORIGIN_TEMPLATE);
}

static pd_jval do_length(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    switch ((pd_jkind)self.kind) {
    case PD_JUNDEFINED: return pd_jint(0);
    case PD_JSTR:
        pd__jworked(e, pd__jbytes(self));
        return pd_jint((int64_t)pd__jcp_count(pd__jchars(self), pd__jbytes(self)));
    case PD_JDICT: return pd_jint((int64_t)self.u.dict->n);
    case PD_JLIST:
        if (self.form != PD__JFORM_GENERATOR) return pd_jint((int64_t)self.u.list->n);
        break;
    default: break;
    }
    return pd__jfail(e, "object of type '%s' has no len()", pd__jkind_name(self));
}

static pd_jval do_first(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const pd_jval *item;
    size_t n;
    (void)slot;
    if (!pd__jiterate(e, self, &item, &n)) return self;
    return n ? item[0] : pd__jundefined(NULL);
}

static pd_jval do_last(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const pd_jval *item;
    size_t n;
    (void)slot;
    if (!pd__jiterate(e, self, &item, &n)) return self;
    return n ? item[n - 1] : pd__jundefined(NULL);
}

static pd_jval do_attr(pd__jev *e, pd_jval self, const pd_jval *slot) {
    if (slot[0].kind != PD_JSTR) return pd__jfail(e, "attr takes a name");
    /* Jinja's attr never looks at items. */
    if (self.kind == PD_JDICT && !pd__jhas_method(self, slot[0])) return pd__jno_attribute(slot[0].u.str, self.kind);
    return pd__jattribute(e, self, slot[0]);
}

/* ---- joining ---- */

pd_jval pd__jjoin(pd__jev *e, pd_jval over, pd_jval sep, pd_jval attribute, bool strict) {
    const pd_jval *item;
    size_t n;
    pd__jbuf b = {.h = e->h};
    if (!pd__jiterate(e, over, &item, &n)) return over;
    for (size_t i = 0; i < n && pd__jwork(e, 1); i++) {
        const pd_jval v = given(attribute) ? path(e, item[i], attribute, (pd_jval){.kind = PD__JMISSING}) : item[i];
        if (strict && v.kind != PD_JSTR)
            return pd__jfail(e, "sequence item %zu: expected str instance, %s found", i, pd__jkind_name(v));
        if (i && sep.kind == PD_JSTR) pd__jbuf_sub(&b, sep, 0, pd__jbytes(sep));
        const size_t before = b.n;
        if (!pd__jput(&b, v) && e->rc == PD_OK) return pd__jtoo_deep(e);
        pd__jworked(e, b.n - before);
    }
    return pd__jbuf_str(&b);
}

static pd_jval do_join(pd__jev *e, pd_jval self, const pd_jval *slot) {
    return pd__jjoin(e, self, given(slot[0]) ? pd__jas_str(e, slot[0]) : slot[0], slot[1], false);
}

/* ---- lists made of lists ---- */

static pd_jval do_list(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const pd_jval *item;
    size_t n;
    (void)slot;
    if (!pd__jiterate(e, self, &item, &n)) return self;
    return pd__jlist_of(e, item, n, PD__JFORM_LIST, self.origin);
}

static pd_jval do_reverse(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const pd_jval *item;
    size_t n;
    (void)slot;
    if (!pd__jiterate(e, self, &item, &n)) return self;
    if (self.kind == PD_JSTR) {
        pd__jbuf b = {.h = e->h};
        for (size_t i = n; i > 0; i--) pd__jbuf_sub(&b, item[i - 1], 0, pd__jbytes(item[i - 1]));
        return pd__jbuf_str(&b);
    }
    pd_jval v = generator(e, n, self.origin);
    for (size_t i = n; i > 0; i--) pd_jlist_add(e->h, v, item[i - 1]);
    return v;
}

static pd_jval pair(pd__jev *e, pd_jval a, pd_jval b) {
    const pd_jval v[] = {a, b};
    return pd__jlist_of(e, v, 2, PD__JFORM_TUPLE, a.origin);
}

static pd_jval do_items(pd__jev *e, pd_jval self, const pd_jval *slot) {
    (void)slot;
    pd_jval v = generator(e, 0, self.origin);
    if (self.kind == PD_JUNDEFINED) return v;
    if (self.kind != PD_JDICT) return pd__jfail(e, "can only get item pairs from a mapping");
    for (size_t i = 0; i < self.u.dict->n && pd__jwork(e, 1); i++)
        pd_jlist_add(e->h, v, pair(e, self.u.dict->v[i].key, self.u.dict->v[i].val));
    return v;
}

/* ---- order ---- */

typedef struct {
    pd_jval key, val;
    size_t place;
} sortable;

typedef struct {
    pd__jev *e;
    bool reverse;
} order;

/* Stable, also backwards: Python keeps equals in their order either way. */
static int by_key(const void *a, const void *b, void *ctx) {
    const sortable *x = a, *y = b;
    const order *o = ctx;
    int c = 0;
    if (!pd__jwork(o->e, 1)) return 0;
    if (!pd__jequal(o->e->h, x->key, y->key, 0) && !pd__jcompare(o->e->h, x->key, y->key, &c, 0) && !pd__jis_missing(o->e, x->key) && !pd__jis_missing(o->e, y->key))
        pd__jfail(o->e, "'<' not supported between instances of '%s' and '%s'", pd__jkind_name(x->key), pd__jkind_name(y->key));
    if (c) return o->reverse ? -c : c;
    return (x->place > y->place) - (x->place < y->place);
}

static pd_jval folded(pd__jev *e, pd_jval v, bool case_sensitive) {
    return v.kind == PD_JSTR && !case_sensitive ? pd__jcase(e, v, 'l') : v;
}

static sortable *sorted(pd__jev *e, sortable *s, size_t n, bool reverse) {
    order o = {e, reverse};
    if (s && n > 1) qsort_r(s, n, sizeof *s, by_key, &o);
    return s;
}

/* sort(attribute="a,b") orders by both. */
static pd_jval sort_key(pd__jev *e, pd_jval v, pd_jval attribute, bool case_sensitive) {
    const pd_jval none = {.kind = PD__JMISSING};
    if (!given(attribute) || attribute.kind == PD_JNONE) return folded(e, v, case_sensitive);
    if (attribute.kind != PD_JSTR || !memchr(pd__jchars(attribute), ',', pd__jbytes(attribute)))
        return folded(e, path(e, v, attribute, none), case_sensitive);
    pd_jval key = pd_jlist(e->h, 2, 0);
    const char *s = pd__jchars(attribute);
    for (size_t from = 0, to; from <= pd__jbytes(attribute) && e->rc == PD_OK; from = to + 1) {
        for (to = from; to < pd__jbytes(attribute) && s[to] != ',';) to++;
        pd_jlist_add(e->h, key, folded(e, path(e, v, pd__jsub(e->h, attribute, from, to), none), case_sensitive));
    }
    return key;
}

static pd_jval do_sort(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const pd_jval *item;
    size_t n;
    if (!pd__jiterate(e, self, &item, &n)) return self;
    sortable *s = PD_JNEW(e->h, n ? n : 1, sortable);
    if (!s) return self;
    for (size_t i = 0; i < n && e->rc == PD_OK; i++)
        s[i] = (sortable){sort_key(e, item[i], slot[2], flag(slot[1])), item[i], i};
    if (e->rc != PD_OK) return self;
    sorted(e, s, n, flag(slot[0]));
    pd_jval v = pd_jlist(e->h, n, self.origin);
    for (size_t i = 0; i < n; i++) pd_jlist_add(e->h, v, s[i].val);
    return v;
}

static pd_jval do_dictsort(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const bool by_value = given(slot[1]) && pd__jis(slot[1], "value");
    if (pd__jis_missing(e, self)) return self;
    if (self.kind != PD_JDICT) return pd__jfail(e, "'%s object' has no attribute 'items'", pd__jkind_name(self));
    if (given(slot[1]) && !by_value && !pd__jis(slot[1], "key"))
        return pd__jfail(e, "You can only sort by either \"key\" or \"value\"");
    const pd__jdict *d = self.u.dict;
    sortable *s = PD_JNEW(e->h, d->n ? d->n : 1, sortable);
    if (!s) return self;
    for (size_t i = 0; i < d->n; i++) {
        const pd_jval key = by_value ? d->v[i].val : d->v[i].key;
        s[i] = (sortable){folded(e, key, flag(slot[0])), pair(e, d->v[i].key, d->v[i].val), i};
    }
    sorted(e, s, d->n, flag(slot[2]));
    pd_jval v = pd_jlist(e->h, d->n, self.origin);
    for (size_t i = 0; i < d->n; i++) pd_jlist_add(e->h, v, s[i].val);
    return v;
}

static pd_jval extreme(pd__jev *e, pd_jval self, const pd_jval *slot, bool most) {
    const pd_jval *item;
    size_t n;
    if (!pd__jiterate(e, self, &item, &n)) return self;
    if (n == 0) return pd__jundefined(NULL);
    pd_jval best = item[0], key = sort_key(e, item[0], slot[1], flag(slot[0]));
    for (size_t i = 1; i < n && pd__jwork(e, 1); i++) {
        const pd_jval k = sort_key(e, item[i], slot[1], flag(slot[0]));
        int c = 0;
        if (!pd__jcompare(e->h, k, key, &c, 0))
            return pd__jfail(e, "'<' not supported between instances of '%s' and '%s'", pd__jkind_name(k), pd__jkind_name(key));
        if (most ? c > 0 : c < 0) {
            best = item[i];
            key = k;
        }
    }
    return best;
}

static pd_jval do_min(pd__jev *e, pd_jval self, const pd_jval *slot) {
    return extreme(e, self, slot, false);
}

static pd_jval do_max(pd__jev *e, pd_jval self, const pd_jval *slot) {
    return extreme(e, self, slot, true);
}

static pd_jval do_unique(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const pd_jval *item;
    size_t n;
    if (!pd__jiterate(e, self, &item, &n)) return self;
    pd_jval v = generator(e, 0, self.origin), seen = pd_jlist(e->h, 0, 0);
    for (size_t i = 0; i < n && seen.kind == PD_JLIST && pd__jwork(e, 1 + seen.u.list->n / 16); i++) {
        const pd_jval key = sort_key(e, item[i], slot[1], flag(slot[0]));
        bool again = false;
        for (size_t k = 0; k < seen.u.list->n && !again; k++) again = pd__jequal(e->h, seen.u.list->v[k], key, 0);
        if (again) continue;
        pd_jlist_add(e->h, seen, key);
        pd_jlist_add(e->h, v, item[i]);
    }
    return v;
}

static pd_jval do_sum(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const pd_jval *item;
    size_t n;
    pd_jval sum = given(slot[1]) ? slot[1] : pd_jint(0);
    if (!pd__jiterate(e, self, &item, &n)) return self;
    for (size_t i = 0; i < n && pd__jwork(e, 1); i++) {
        const pd_jval v = given(slot[0]) && slot[0].kind != PD_JNONE ? path(e, item[i], slot[0], (pd_jval){.kind = PD__JMISSING}) : item[i];
        if (pd__jis_missing(e, v)) return v;
        if (!pd__jis_number(v) || !pd__jis_number(sum))
            return pd__jfail(e, "unsupported operand type(s) for +: '%s' and '%s'", pd__jkind_name(sum), pd__jkind_name(v));
        if (v.kind == PD_JFLOAT || sum.kind == PD_JFLOAT) {
            sum = pd_jfloat(pd__jnumber(sum) + pd__jnumber(v));
        } else {
            int64_t r;
            const int64_t a = sum.kind == PD_JINT ? sum.u.i : sum.u.b, b = v.kind == PD_JINT ? v.u.i : v.u.b;
            if (__builtin_add_overflow(a, b, &r)) return pd__jfail(e, "a whole number does not fit 64 bits");
            sum = pd_jint(r);
        }
    }
    return sum;
}

/* ---- by a filter or a test ---- */

static pd__jcall rest_of(const pd__jcall *c, size_t from) {
    return (pd__jcall){.pos = c->n_pos > from ? c->pos + from : NULL, .n_pos = c->n_pos - from, .kw = c->kw, .n_kw = c->n_kw};
}

static pd_jval do_map(pd__jev *e, pd_jval self, const pd__jcall *c) {
    const pd_jval *item = NULL;
    size_t n = 0;
    if (pd__jtruth(self) && !pd__jiterate(e, self, &item, &n)) return self; /* none is as good as empty */
    pd_jval v = generator(e, n, self.origin), attribute = {.kind = PD__JMISSING}, otherwise = {.kind = PD__JMISSING};
    if (c->n_pos == 0) {
        for (size_t i = 0; i < c->n_kw; i++) {
            if (pd__jis(c->kw[i].name, "attribute")) attribute = c->kw[i].val;
            else if (pd__jis(c->kw[i].name, "default")) otherwise = c->kw[i].val;
        }
        if (!given(attribute)) return pd__jfail(e, "map requires a filter argument");
    } else if (c->pos[0].kind != PD_JSTR) {
        return pd__jfail(e, "map requires a filter's name");
    }
    const pd__jcall rest = c->n_pos ? rest_of(c, 1) : *c;
    for (size_t i = 0; i < n && pd__jwork(e, 1); i++)
        pd_jlist_add(e->h, v, given(attribute) ? path(e, item[i], attribute, otherwise) : pd__jfilter(e, c->pos[0], item[i], &rest));
    return v;
}

/* `attr`: the first argument names what of each item is tested. */
static pd_jval choose(pd__jev *e, pd_jval self, const pd__jcall *c, bool want, bool attr) {
    const pd_jval *item = NULL;
    size_t n = 0;
    if (pd__jtruth(self) && !pd__jiterate(e, self, &item, &n)) return self;
    if (attr && c->n_pos == 0) return pd__jfail(e, "missing parameter for attribute name");
    const size_t name = attr ? 1 : 0;
    const bool tested = c->n_pos > name;
    if (tested && c->pos[name].kind != PD_JSTR) return pd__jfail(e, "a test's name is expected");
    const pd__jcall rest = rest_of(c, tested ? name + 1 : c->n_pos);
    pd_jval v = generator(e, 0, self.origin);
    for (size_t i = 0; i < n && pd__jwork(e, 1); i++) {
        const pd_jval what = attr ? path(e, item[i], c->pos[0], (pd_jval){.kind = PD__JMISSING}) : item[i];
        const bool is = tested ? pd__jtest(e, c->pos[name], what, &rest) : pd__jtruth(what);
        if (is == want) pd_jlist_add(e->h, v, item[i]);
    }
    return v;
}

static pd_jval do_select(pd__jev *e, pd_jval self, const pd__jcall *c) {
    return choose(e, self, c, true, false);
}

static pd_jval do_reject(pd__jev *e, pd_jval self, const pd__jcall *c) {
    return choose(e, self, c, false, false);
}

static pd_jval do_selectattr(pd__jev *e, pd_jval self, const pd__jcall *c) {
    return choose(e, self, c, true, true);
}

static pd_jval do_rejectattr(pd__jev *e, pd_jval self, const pd__jcall *c) {
    return choose(e, self, c, false, true);
}

/* ---- groups ---- */

static pd_jval do_batch(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const pd_jval *item;
    size_t n;
    if (slot[0].kind != PD_JINT || slot[0].u.i < 1) return pd__jfail(e, "batch takes how many, 1 or more");
    if (!pd__jiterate(e, self, &item, &n)) return self;
    const size_t most = (size_t)slot[0].u.i;
    pd_jval v = generator(e, 0, self.origin);
    for (size_t i = 0; i < n && pd__jwork(e, 1); i += most) {
        const size_t k = n - i < most ? n - i : most;
        const pd_jval part = pd__jlist_of(e, item + i, k, PD__JFORM_LIST, self.origin);
        if (given(slot[1]) && slot[1].kind != PD_JNONE)
            for (size_t f = k; f < most && pd__jwork(e, 1); f++) pd_jlist_add(e->h, part, slot[1]);
        pd_jlist_add(e->h, v, part);
        if (k < most) break;
    }
    return v;
}

static pd_jval do_slice(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const pd_jval *item;
    size_t n;
    if (slot[0].kind != PD_JINT || slot[0].u.i < 1) return pd__jfail(e, "slice takes how many, 1 or more");
    if (!pd__jiterate(e, self, &item, &n)) return self;
    const size_t parts = (size_t)slot[0].u.i, each = n / parts, longer = n % parts;
    pd_jval v = generator(e, 0, self.origin);
    for (size_t i = 0, at = 0; i < parts && pd__jwork(e, 1); i++) {
        const size_t k = each + (i < longer);
        const pd_jval part = pd__jlist_of(e, k ? item + at : NULL, k, PD__JFORM_LIST, self.origin);
        if (given(slot[1]) && slot[1].kind != PD_JNONE && i >= longer) pd_jlist_add(e->h, part, slot[1]);
        pd_jlist_add(e->h, v, part);
        at += k;
    }
    return v;
}

static pd_jval do_groupby(pd__jev *e, pd_jval self, const pd_jval *slot) {
    const pd_jval *item;
    size_t n;
    if (!given(slot[0])) return pd__jfail(e, "groupby takes an attribute");
    if (!pd__jiterate(e, self, &item, &n)) return self;
    sortable *s = PD_JNEW(e->h, n ? n : 1, sortable);
    if (!s) return self;
    for (size_t i = 0; i < n && e->rc == PD_OK; i++)
        s[i] = (sortable){folded(e, path(e, item[i], slot[0], slot[1]), flag(slot[2])), item[i], i};
    if (e->rc != PD_OK) return self;
    sorted(e, s, n, false);
    pd_jval v = pd_jlist(e->h, 0, self.origin), members = pd_jnone();
    for (size_t i = 0; i < n && pd__jwork(e, 1); i++) {
        if (i == 0 || !pd__jequal(e->h, s[i].key, s[i - 1].key, 0)) {
            members = pd_jlist(e->h, 0, self.origin);
            pd_jlist_add(e->h, v, pair(e, path(e, s[i].val, slot[0], slot[1]), members));
        }
        pd_jlist_add(e->h, members, s[i].val);
    }
    return v;
}

const pd__jfilter_row pd__jfilters_seq[] = {
    {"default", "default_value boolean", do_default, NULL},
    {"d", "default_value boolean", do_default, NULL},
    {"length", "", do_length, NULL},
    {"count", "", do_length, NULL},
    {"first", "", do_first, NULL},
    {"last", "", do_last, NULL},
    {"attr", "name", do_attr, NULL},
    {"join", "d attribute", do_join, NULL},
    {"list", "", do_list, NULL},
    {"reverse", "", do_reverse, NULL},
    {"items", "", do_items, NULL},
    {"sort", "reverse case_sensitive attribute", do_sort, NULL},
    {"dictsort", "case_sensitive by reverse", do_dictsort, NULL},
    {"min", "case_sensitive attribute", do_min, NULL},
    {"max", "case_sensitive attribute", do_max, NULL},
    {"unique", "case_sensitive attribute", do_unique, NULL},
    {"sum", "attribute start", do_sum, NULL},
    {"map", NULL, NULL, do_map},
    {"select", NULL, NULL, do_select},
    {"reject", NULL, NULL, do_reject},
    {"selectattr", NULL, NULL, do_selectattr},
    {"rejectattr", NULL, NULL, do_rejectattr},
    {"batch", "linecount fill_with", do_batch, NULL},
    {"slice", "slices fill_with", do_slice, NULL},
    {"groupby", "attribute default case_sensitive", do_groupby, NULL},
    {NULL, NULL, NULL, NULL},
};
