/* SPDX-License-Identifier: Apache-2.0 */
/* tojson: json.dumps as transformers calls it (no ASCII escapes, no HTML escapes). */
#include "engine/jinja/eval.h"

#include "engine/base/utf8.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    pd__jev *e;
    pd__jbuf b;
    bool ascii, sort, lines;
    pd_jval unit, item, colon; /* of indentation; separators */
} writer;

static bool put(writer *w, pd_jval v, unsigned depth);

static void put_str(writer *w, pd_jval str) {
    const pd__jstr *s = str.u.str;
    size_t from = 0;
    pd__jbuf_lit(&w->b, "\"", str.origin);
    for (size_t i = 0, len; i < s->n; i += len) {
        uint32_t cp = 0;
        char esc[16] = "";
        len = pd_utf8_next(s->s + i, s->n - i, &cp);
        if (len == 0) len = 1;
        if (cp == '"' || cp == '\\') snprintf(esc, sizeof esc, "\\%c", (char)cp);
        else if (pd__jshort_escape(cp, true)) snprintf(esc, sizeof esc, "\\%c", pd__jshort_escape(cp, true));
        else if (cp < 0x20 || (w->ascii && cp >= 0x7F && cp < 0x10000 && cp != 0x7F)) snprintf(esc, sizeof esc, "\\u%04x", cp);
        else if (w->ascii && cp >= 0x10000)
            snprintf(esc, sizeof esc, "\\u%04x\\u%04x", 0xD800 + ((cp - 0x10000) >> 10), 0xDC00 + ((cp - 0x10000) & 0x3FF));
        else continue;
        pd__jbuf_sub(&w->b, str, from, i);
        pd__jbuf_lit(&w->b, esc, s->org ? s->org[i] : str.origin);
        from = i + len;
    }
    pd__jbuf_sub(&w->b, str, from, s->n);
    pd__jbuf_lit(&w->b, "\"", str.origin);
    pd__jworked(w->e, s->n);
}

static void new_line(writer *w, unsigned depth, uint16_t origin) {
    if (!w->lines) return;
    pd__jbuf_lit(&w->b, "\n", origin);
    for (unsigned i = 0; i < depth && pd__jwork(w->e, 1); i++)
        if (w->unit.kind == PD_JSTR) pd__jbuf_add(&w->b, pd__jchars(w->unit), pd__jbytes(w->unit), NULL, origin);
}

static void put_sep(writer *w, pd_jval sep, uint16_t origin) {
    if (sep.kind == PD_JSTR) pd__jbuf_add(&w->b, pd__jchars(sep), pd__jbytes(sep), NULL, origin);
}

static bool put_list(writer *w, pd_jval v, unsigned depth) {
    const pd__jlist *l = v.u.list;
    pd__jbuf_lit(&w->b, "[", v.origin);
    for (size_t i = 0; i < l->n; i++) {
        if (i) put_sep(w, w->item, v.origin);
        new_line(w, depth + 1, v.origin);
        if (!put(w, l->v[i], depth + 1)) return false;
    }
    if (l->n) new_line(w, depth, v.origin);
    pd__jbuf_lit(&w->b, "]", v.origin);
    return true;
}

static bool put_key(writer *w, pd_jval key) {
    char text[48];
    if (key.kind == PD_JSTR) {
        put_str(w, key);
        return true;
    }
    if (key.kind == PD_JNONE) snprintf(text, sizeof text, "null");
    else if (key.kind == PD_JBOOL) snprintf(text, sizeof text, key.u.b ? "true" : "false");
    else if (key.kind == PD_JINT) snprintf(text, sizeof text, "%lld", (long long)key.u.i);
    else if (key.kind == PD_JFLOAT) pd__jfloat_text(key.u.f, text);
    else {
        pd__jfail(w->e, "keys must be str, int, float, bool or None, not %s", pd__jkind_name(key));
        return false;
    }
    pd__jbuf_lit(&w->b, "\"", key.origin);
    pd__jbuf_lit(&w->b, text, key.origin);
    pd__jbuf_lit(&w->b, "\"", key.origin);
    return true;
}

static bool put_dict(writer *w, pd_jval v, unsigned depth) {
    if (w->sort && v.u.dict->n > 1) { /* as dictsort does, upper case before lower */
        pd__jnamed how = {pd__jtext(w->e->h, "case_sensitive"), pd_jbool(true)};
        const pd__jcall c = {.kw = &how, .n_kw = 1};
        const pd_jval pairs = pd__jfilter(w->e, pd__jtext(w->e->h, "dictsort"), v, &c);
        pd_jval d = pd_jdict(w->e->h, v.u.dict->n, v.origin);
        if (w->e->rc != PD_OK || pairs.kind != PD_JLIST || d.kind != PD_JDICT) return false;
        for (size_t i = 0; i < pairs.u.list->n; i++) {
            const pd_jval *p = pairs.u.list->v[i].u.list->v;
            pd_jdict_add(w->e->h, d, p[0], p[1]);
        }
        v = d;
    }
    const pd__jdict *d = v.u.dict;
    pd__jbuf_lit(&w->b, "{", v.origin);
    for (size_t i = 0; i < d->n; i++) {
        if (i) put_sep(w, w->item, v.origin);
        new_line(w, depth + 1, v.origin);
        if (!put_key(w, d->v[i].key)) return false;
        put_sep(w, w->colon, v.origin);
        if (!put(w, d->v[i].val, depth + 1)) return false;
    }
    if (d->n) new_line(w, depth, v.origin);
    pd__jbuf_lit(&w->b, "}", v.origin);
    return true;
}

static bool put(writer *w, pd_jval v, unsigned depth) {
    char text[48];
    if (!pd__jwork(w->e, 1)) return false;
    if (depth > PD_JINJA_VALUE_DEPTH_MAX) {
        pd__jtoo_deep(w->e);
        return false;
    }
    switch ((pd_jkind)v.kind) {
    case PD_JNONE: pd__jbuf_lit(&w->b, "null", v.origin); return true;
    case PD_JBOOL: pd__jbuf_lit(&w->b, v.u.b ? "true" : "false", v.origin); return true;
    case PD_JINT:
        snprintf(text, sizeof text, "%lld", (long long)v.u.i);
        pd__jbuf_lit(&w->b, text, v.origin);
        return true;
    case PD_JFLOAT:
        if (isfinite(v.u.f)) pd__jfloat_text(v.u.f, text);
        else snprintf(text, sizeof text, isnan(v.u.f) ? "NaN" : v.u.f > 0 ? "Infinity" : "-Infinity");
        pd__jbuf_lit(&w->b, text, v.origin);
        return true;
    case PD_JSTR: put_str(w, v); return true;
    case PD_JLIST:
        if (v.form <= PD__JFORM_TUPLE) return put_list(w, v, depth);
        break;
    case PD_JDICT: return put_dict(w, v, depth);
    default: break;
    }
    pd__jfail(w->e, "Object of type %s is not JSON serializable", pd__jkind_name(v));
    return false;
}

/* ensure_ascii, indent, separators, sort_keys */
pd_jval pd__jjson(pd__jev *e, pd_jval v, const pd_jval *slot) {
    writer w = {.e = e, .b = {.h = e->h}};
    const pd_jval indent = slot[1], sep = slot[2];
    w.ascii = slot[0].kind != PD__JMISSING && pd__jtruth(slot[0]);
    w.sort = slot[3].kind != PD__JMISSING && pd__jtruth(slot[3]);
    w.lines = indent.kind == PD_JINT || indent.kind == PD_JBOOL || indent.kind == PD_JSTR;
    if (!w.lines && indent.kind != PD__JMISSING && indent.kind != PD_JNONE)
        return pd__jfail(e, "indent must be a number or a str, not %s", pd__jkind_name(indent));
    if (indent.kind == PD_JSTR) {
        w.unit = indent;
    } else if (w.lines) {
        const int64_t n = indent.kind == PD_JINT ? indent.u.i : indent.u.b;
        pd__jbuf unit = {.h = e->h};
        for (int64_t i = 0; i < n && pd__jwork(e, 1); i++) pd__jbuf_lit(&unit, " ", PD_JORIGIN_TEMPLATE);
        w.unit = pd__jbuf_str(&unit);
    }
    w.item = pd__jtext(e->h, w.lines ? "," : ", ");
    w.colon = pd__jtext(e->h, ": ");
    if (sep.kind == PD_JLIST && sep.u.list->n == 2) {
        w.item = sep.u.list->v[0];
        w.colon = sep.u.list->v[1];
    } else if (sep.kind != PD__JMISSING && sep.kind != PD_JNONE) {
        return pd__jfail(e, "separators must be two strings");
    }
    if (!put(&w, v, 0)) return v;
    return pd__jbuf_str(&w.b);
}
