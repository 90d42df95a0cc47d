/* SPDX-License-Identifier: Apache-2.0 */
/* Values made, compared and tested as Python does.  A dict is a list of pairs in the
 * order they came: those of a request are small, and a look-up is a walk. */
#include "engine/jinja/value.h"

#include <string.h>

pd_jval pd_jnone(void) {
    return (pd_jval){.kind = PD_JNONE};
}

pd_jval pd_jbool(bool b) {
    return (pd_jval){.kind = PD_JBOOL, .u.b = b};
}

pd_jval pd_jint(int64_t i) {
    return (pd_jval){.kind = PD_JINT, .u.i = i};
}

pd_jval pd_jfloat(double f) {
    return (pd_jval){.kind = PD_JFLOAT, .u.f = f};
}

pd_jval pd_jstr(pd_jheap *h, const char *s, size_t n, uint16_t origin) {
    pd__jstr *str = PD_JNEW(h, 1, pd__jstr);
    if (!str) return pd_jnone();
    *str = (pd__jstr){.s = s, .n = n};
    return (pd_jval){.kind = PD_JSTR, .origin = origin, .u.str = str};
}

pd_jval pd__jtext(pd_jheap *h, const char *s) {
    const size_t n = strlen(s);
    char *copy = pd_jheap_alloc(h, n + 1, 1);
    if (!copy) return pd_jnone();
    memcpy(copy, s, n + 1);
    return pd_jstr(h, copy, n, PD_JORIGIN_TEMPLATE);
}

pd_jval pd_jlist(pd_jheap *h, size_t cap, uint16_t origin) {
    pd__jlist *list = PD_JNEW(h, 1, pd__jlist);
    pd_jval *v = cap ? PD_JNEW(h, cap, pd_jval) : NULL;
    if (!list || (cap && !v)) return pd_jnone();
    *list = (pd__jlist){.v = v, .cap = cap};
    return (pd_jval){.kind = PD_JLIST, .origin = origin, .u.list = list};
}

pd_jval pd_jdict(pd_jheap *h, size_t cap, uint16_t origin) {
    pd__jdict *dict = PD_JNEW(h, 1, pd__jdict);
    pd__jpair *v = cap ? PD_JNEW(h, cap, pd__jpair) : NULL;
    if (!dict || (cap && !v)) return pd_jnone();
    *dict = (pd__jdict){.v = v, .cap = cap};
    return (pd_jval){.kind = PD_JDICT, .origin = origin, .u.dict = dict};
}

void pd_jlist_add(pd_jheap *h, pd_jval to, pd_jval v) {
    if (to.kind != PD_JLIST) return; /* out of memory before */
    pd__jlist *l = to.u.list;
    if (l->n == l->cap) {
        const size_t cap = l->cap ? 2 * l->cap : 4;
        pd_jval *p = PD_JNEW(h, cap, pd_jval);
        if (!p) return;
        if (l->n) memcpy(p, l->v, l->n * sizeof *p);
        l->v = p;
        l->cap = cap;
    }
    l->v[l->n++] = v;
}

void pd_jdict_add(pd_jheap *h, pd_jval to, pd_jval key, pd_jval v) {
    if (to.kind != PD_JDICT && to.kind != PD__JNAMESPACE) return;
    pd__jdict *d = to.u.dict;
    if (d->n == d->cap) {
        const size_t cap = d->cap ? 2 * d->cap : 4;
        pd__jpair *p = PD_JNEW(h, cap, pd__jpair);
        if (!p) return;
        if (d->n) memcpy(p, d->v, d->n * sizeof *p);
        d->v = p;
        d->cap = cap;
    }
    d->v[d->n++] = (pd__jpair){key, v};
}

const pd_jval *pd__jfind(pd_jheap *h, pd_jval dict, pd_jval key) {
    const pd__jdict *d = dict.u.dict;
    for (size_t i = 0; i < d->n; i++) {
        if (pd__jequal(h, d->v[i].key, key, 0)) return &d->v[i].val;
    }
    return NULL;
}

void pd__jset(pd_jheap *h, pd_jval dict, pd_jval key, pd_jval v) {
    pd__jdict *d = dict.u.dict;
    for (size_t i = 0; i < d->n; i++) {
        if (pd__jequal(h, d->v[i].key, key, 0)) {
            d->v[i].val = v;
            return;
        }
    }
    pd_jdict_add(h, dict, key, v);
}

const pd_jval *pd_jdict_get(pd_jval dict, const char *key) {
    if (dict.kind != PD_JDICT) return NULL;
    const pd__jdict *d = dict.u.dict;
    for (size_t i = 0; i < d->n; i++) {
        if (pd__jis(d->v[i].key, key)) return &d->v[i].val;
    }
    return NULL;
}

void pd_jdict_set(pd_jheap *h, pd_jval dict, const char *key, pd_jval v) {
    if (dict.kind != PD_JDICT) return;
    pd__jdict *d = dict.u.dict;
    for (size_t i = 0; i < d->n; i++) {
        if (pd__jis(d->v[i].key, key)) {
            d->v[i].val = v;
            return;
        }
    }
    pd_jdict_add(h, dict, pd_jstr(h, key, strlen(key), PD_JORIGIN_TEMPLATE), v);
}

void pd_jdict_extend(pd_jheap *h, pd_jval dict, pd_jval from, const char *but) {
    if (from.kind != PD_JDICT) return;
    const pd__jdict *d = from.u.dict;
    for (size_t i = 0; i < d->n; i++) {
        if (!but || !pd__jis(d->v[i].key, but)) pd_jdict_add(h, dict, d->v[i].key, d->v[i].val);
    }
}

pd_jval pd__jundefined(const pd__jstr *name) {
    return (pd_jval){.kind = PD_JUNDEFINED, .form = PD__JFORM_NAME, .u.str = name};
}

pd_jval pd__jno_attribute(const pd__jstr *name, unsigned owner_kind) {
    return (pd_jval){.kind = PD_JUNDEFINED, .form = PD__JFORM_ATTRIBUTE, .origin = (uint16_t)owner_kind,
                     .u.str = name};
}

const char *pd__jkind_name(pd_jval v) {
    switch ((pd_jkind)v.kind) {
    case PD_JUNDEFINED: return "Undefined";
    case PD_JNONE: return "NoneType";
    case PD_JBOOL: return "bool";
    case PD_JINT: return "int";
    case PD_JFLOAT: return "float";
    case PD_JSTR: return "str";
    case PD_JLIST:
        return v.form == PD__JFORM_LIST    ? "list"
               : v.form == PD__JFORM_TUPLE ? "tuple"
               : v.form == PD__JFORM_RANGE ? "range"
               : v.form == PD__JFORM_VIEW  ? "dict view"
                                           : "generator";
    case PD_JDICT: return "dict";
    case PD__JNAMESPACE: return "Namespace";
    case PD__JFUNCTION: return "function";
    case PD__JMETHOD: return "method";
    case PD__JMACRO: return "Macro";
    case PD__JLOOP: return "LoopContext";
    case PD__JJOINER: return "Joiner";
    case PD__JMISSING: break;
    }
    return "nothing";
}

bool pd__jtruth(pd_jval v) {
    switch ((pd_jkind)v.kind) {
    case PD_JUNDEFINED:
    case PD_JNONE:
    case PD__JMISSING: return false;
    case PD_JBOOL: return v.u.b;
    case PD_JINT: return v.u.i != 0;
    case PD_JFLOAT: return v.u.f != 0.0;
    case PD_JSTR: return v.u.str->n != 0;
    case PD_JLIST: return v.form == PD__JFORM_GENERATOR || v.u.list->n != 0;
    case PD_JDICT: return v.u.dict->n != 0;
    default: return true;
    }
}

bool pd__jis_number(pd_jval v) {
    return v.kind == PD_JBOOL || v.kind == PD_JINT || v.kind == PD_JFLOAT;
}

double pd__jnumber(pd_jval v) {
    return v.kind == PD_JFLOAT ? v.u.f : v.kind == PD_JINT ? (double)v.u.i : (double)v.u.b;
}

static int64_t integer(pd_jval v) {
    return v.kind == PD_JINT ? v.u.i : v.u.b;
}

bool pd__jis(pd_jval str, const char *s) {
    const size_t n = strlen(s);
    return str.kind == PD_JSTR && str.u.str->n == n && memcmp(str.u.str->s, s, n) == 0;
}

static bool same_list(pd_jheap *h, pd_jval a, pd_jval b, unsigned depth) {
    const pd__jlist *x = a.u.list, *y = b.u.list;
    if (a.form != b.form || a.form == PD__JFORM_GENERATOR) return x == y;
    if (x->n != y->n) return false;
    for (size_t i = 0; i < x->n; i++) {
        if (!pd__jequal(h, x->v[i], y->v[i], depth + 1)) return false;
    }
    return true;
}

static bool same_dict(pd_jheap *h, pd_jval a, pd_jval b, unsigned depth) {
    const pd__jdict *x = a.u.dict, *y = b.u.dict;
    if (x->n != y->n) return false;
    for (size_t i = 0; i < x->n; i++) {
        /* Mostly in the same order. */
        const pd_jval *v = pd__jequal(h, x->v[i].key, y->v[i].key, depth + 1) ? &y->v[i].val : pd__jfind(h, b, x->v[i].key);
        if (!v || !pd__jequal(h, x->v[i].val, *v, depth + 1)) return false;
    }
    return true;
}

/* One more comparison, of n bytes; false when it is one too many. */
static bool compared(pd_jheap *h, size_t n) {
    enum { ITEM = 16 }; /* four items are a step as 64 bytes are */
    h->compared += ITEM + n;
    return h->compared <= 64 * PD_JINJA_STEPS_MAX;
}

bool pd__jequal(pd_jheap *h, pd_jval a, pd_jval b, unsigned depth) {
    if (depth > PD_JINJA_VALUE_DEPTH_MAX || !compared(h, 0)) return false;
    if (pd__jis_number(a) && pd__jis_number(b)) {
        if (a.kind == PD_JFLOAT || b.kind == PD_JFLOAT) return pd__jnumber(a) == pd__jnumber(b);
        return integer(a) == integer(b);
    }
    if (a.kind != b.kind) return false;
    switch ((pd_jkind)a.kind) {
    case PD_JUNDEFINED:
    case PD_JNONE:
    case PD__JMISSING: return true;
    case PD_JSTR:
        return a.u.str->n == b.u.str->n && compared(h, a.u.str->n) && memcmp(a.u.str->s, b.u.str->s, a.u.str->n) == 0;
    case PD_JLIST: return same_list(h, a, b, depth);
    case PD_JDICT: return same_dict(h, a, b, depth);
    default: return a.u.p == b.u.p;
    }
}

bool pd__jcompare(pd_jheap *h, pd_jval a, pd_jval b, int *ret, unsigned depth) {
    if (depth > PD_JINJA_VALUE_DEPTH_MAX || !compared(h, 0)) return false;
    if (pd__jis_number(a) && pd__jis_number(b)) {
        if (a.kind == PD_JFLOAT || b.kind == PD_JFLOAT) {
            const double x = pd__jnumber(a), y = pd__jnumber(b);
            *ret = (x > y) - (x < y);
        } else {
            *ret = (integer(a) > integer(b)) - (integer(a) < integer(b));
        }
        return true;
    }
    if (a.kind == PD_JSTR && b.kind == PD_JSTR) { /* UTF-8 orders as code points do */
        const size_t n = pd__jbytes(a) < pd__jbytes(b) ? pd__jbytes(a) : pd__jbytes(b);
        if (!compared(h, n)) return false;
        const int c = n ? memcmp(pd__jchars(a), pd__jchars(b), n) : 0;
        *ret = c ? c : (pd__jbytes(a) > pd__jbytes(b)) - (pd__jbytes(a) < pd__jbytes(b));
        return true;
    }
    if (a.kind != PD_JLIST || b.kind != PD_JLIST || a.form != b.form || a.form > PD__JFORM_TUPLE) return false;
    const pd__jlist *x = a.u.list, *y = b.u.list;
    for (size_t i = 0; i < x->n && i < y->n; i++) {
        if (pd__jequal(h, x->v[i], y->v[i], depth + 1)) continue;
        return pd__jcompare(h, x->v[i], y->v[i], ret, depth + 1);
    }
    *ret = (x->n > y->n) - (x->n < y->n);
    return true;
}
