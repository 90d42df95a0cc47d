/* SPDX-License-Identifier: Apache-2.0 */
/* Functions that every template knows: Jinja's, and the two that transformers adds. */
#include "engine/jinja/eval.h"

#include <string.h>
#include <time.h>

typedef struct {
    const char *name;
    pd_jval (*call)(pd__jev *e, const pd__jcall *c);
} function;

/* cycler(...) and joiner(sep): values that change as they are used. */
typedef struct {
    const pd_jval *item;
    size_t n, i;
    bool joiner;
} turning;

static pd_jval raise_exception(pd__jev *e, const pd__jcall *c) {
    const pd_jval text = c->n_pos ? pd__jas_str(e, c->pos[0]) : pd__jundefined(NULL);
    if (e->rc != PD_OK) return text;
    if (text.kind != PD_JSTR) return pd__jfail(e, "raise_exception");
    const size_t n = pd__jbytes(text) < 300 ? pd__jbytes(text) : 300;
    e->rc = pd_fail(e->err, PD_EINVAL, "messages", "the model's chat template refuses the messages: %.*s", (int)n,
                    pd__jchars(text));
    return pd__jundefined(NULL);
}

static pd_jval strftime_now(pd__jev *e, const pd__jcall *c) {
    char text[256];
    const time_t now = (time_t)e->now;
    struct tm tm;
    if (c->n_pos != 1 || c->pos[0].kind != PD_JSTR) return pd__jfail(e, "strftime_now takes a format");
    if (pd__jbytes(c->pos[0]) >= 128 || memchr(pd__jchars(c->pos[0]), 0, pd__jbytes(c->pos[0])))
        return pd__jfail(e, "the format of strftime_now is too long");
    char format[129];
    memcpy(format, pd__jchars(c->pos[0]), pd__jbytes(c->pos[0]));
    format[pd__jbytes(c->pos[0])] = '\0';
    if (!localtime_r(&now, &tm)) return pd__jfail(e, "the time cannot be told");
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    const size_t n = strftime(text, sizeof text, format, &tm);
#pragma GCC diagnostic pop
    text[n] = '\0';
    return pd__jtext(e->h, text);
}

static bool range_arg(pd__jev *e, pd_jval v, int64_t *ret) {
    if (v.kind != PD_JINT && v.kind != PD_JBOOL) {
        if (!pd__jis_missing(e, v)) pd__jfail(e, "'%s' object cannot be interpreted as an integer", pd__jkind_name(v));
        return false;
    }
    *ret = v.kind == PD_JINT ? v.u.i : v.u.b;
    return true;
}

/* The sandbox's range: at most 100,000 numbers. */
static pd_jval range(pd__jev *e, const pd__jcall *c) {
    enum { RANGE_MAX = 100000 };
    int64_t v[3] = {0, 0, 1};
    if (c->n_pos < 1 || c->n_pos > 3 || c->n_kw) return pd__jfail(e, "range takes one to three numbers");
    for (size_t i = 0; i < c->n_pos; i++) {
        if (!range_arg(e, c->pos[i], &v[c->n_pos == 1 ? 1 : i])) return pd__jundefined(NULL);
    }
    if (v[2] == 0) return pd__jfail(e, "range() arg 3 must not be zero");
    pd_jval list = pd_jlist(e->h, 0, PD_JORIGIN_TEMPLATE);
    list.form = PD__JFORM_RANGE;
    size_t n = 0;
    for (int64_t i = v[0]; v[2] > 0 ? i < v[1] : i > v[1];) {
        if (n++ == RANGE_MAX) return pd__jfail(e, "Range too big. The sandbox blocks ranges larger than %d.", RANGE_MAX);
        pd_jlist_add(e->h, list, pd_jint(i));
        if (__builtin_add_overflow(i, v[2], &i)) break;
    }
    pd__jwork(e, n / 16);
    return list;
}

/* dict(...) and namespace(...): a mapping's items, then the named. */
static pd_jval mapping(pd__jev *e, const pd__jcall *c, pd_jkind kind) {
    pd_jval d = pd_jdict(e->h, c->n_kw, PD_JORIGIN_TEMPLATE);
    if (d.kind != PD_JDICT) return d;
    if (c->n_pos && c->pos[0].kind == PD_JDICT) {
        const pd__jdict *from = c->pos[0].u.dict;
        d.origin = c->pos[0].origin;
        for (size_t i = 0; i < from->n; i++) pd_jdict_add(e->h, d, from->v[i].key, from->v[i].val);
    } else if (c->n_pos) {
        const pd_jval *item, *part;
        size_t n, k;
        if (pd__jis_missing(e, c->pos[0]) || !pd__jiterate(e, c->pos[0], &item, &n)) return d;
        for (size_t i = 0; i < n && pd__jwork(e, 1 + i / 16); i++) {
            if (!pd__jiterate(e, item[i], &part, &k)) return d;
            if (k != 2) return pd__jfail(e, "dictionary update sequence element #%zu has length %zu; 2 is required", i, k);
            pd__jset(e->h, d, part[0], part[1]);
        }
    }
    for (size_t i = 0; i < c->n_kw && pd__jwork(e, 1); i++) pd__jset(e->h, d, c->kw[i].name, c->kw[i].val);
    d.kind = (uint8_t)kind;
    return d;
}

static pd_jval new_dict(pd__jev *e, const pd__jcall *c) {
    return mapping(e, c, PD_JDICT);
}

static pd_jval new_namespace(pd__jev *e, const pd__jcall *c) {
    return mapping(e, c, PD__JNAMESPACE);
}

static pd_jval new_turning(pd__jev *e, turning t) {
    turning *p = PD_JNEW(e->h, 1, turning);
    if (!p) return pd_jnone();
    *p = t;
    return (pd_jval){.kind = PD__JJOINER, .u.p = p};
}

static pd_jval cycler(pd__jev *e, const pd__jcall *c) {
    if (c->n_pos == 0) return pd__jfail(e, "at least one item has to be provided");
    return new_turning(e, (turning){.item = c->pos, .n = c->n_pos});
}

static pd_jval joiner(pd__jev *e, const pd__jcall *c) {
    pd_jval *sep = PD_JNEW(e->h, 1, pd_jval);
    if (!sep) return pd_jnone();
    *sep = c->n_pos ? c->pos[0] : c->n_kw ? c->kw[0].val : pd__jtext(e->h, ", ");
    return new_turning(e, (turning){.item = sep, .n = 1, .joiner = true});
}

static const function functions[] = {
    {"raise_exception", raise_exception}, {"strftime_now", strftime_now}, {"range", range},     {"dict", new_dict},
    {"namespace", new_namespace},         {"cycler", cycler},             {"joiner", joiner},
};

pd_jval pd__jglobal(const char *name, size_t n) {
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        if (strlen(functions[i].name) == n && memcmp(functions[i].name, name, n) == 0)
            return (pd_jval){.kind = PD__JFUNCTION, .u.p = (void *)(uintptr_t)&functions[i]};
    }
    return (pd_jval){.kind = PD__JMISSING};
}

bool pd__jis_cycler(pd_jval v) {
    return v.kind == PD__JJOINER && !((const turning *)v.u.p)->joiner;
}

pd_jval pd__jcycler(pd__jev *e, pd_jval self, pd_jval name) {
    turning *t = self.u.p;
    const pd_jval now = t->item[t->i];
    if (pd__jis(name, "current")) return now;
    if (pd__jis(name, "next")) {
        t->i = (t->i + 1) % t->n;
        return now;
    }
    if (!pd__jis(name, "reset")) return pd__jno_attribute(name.u.str, self.kind);
    t->i = 0;
    (void)e;
    return pd_jnone();
}

pd_jval pd__jglobal_call(pd__jev *e, pd_jval f, const pd__jcall *c) {
    if (f.kind == PD__JFUNCTION) return ((const function *)f.u.p)->call(e, c);
    turning *t = f.u.p;
    if (!t->joiner) return pd__jfail(e, "'Cycler' object is not callable");
    return t->i++ == 0 ? pd_jstr(e->h, "", 0, PD_JORIGIN_TEMPLATE) : t->item[0];
}
