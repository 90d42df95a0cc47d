/* SPDX-License-Identifier: Apache-2.0 */
/* Expressions to values.  Depth is bounded by PD_JINJA_DEPTH_MAX. */
#include "engine/jinja/eval.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- failing and working ---- */

pd_jval pd__jfail(pd__jev *e, const char *fmt, ...) {
    if (e->rc == PD_OK) {
        char text[300];
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(text, sizeof text, fmt, ap);
        va_end(ap);
        e->rc = pd_fail(e->err, PD_EINVAL, "messages", "the chat template, line %u: %s", e->line, text);
    }
    return pd__jundefined(NULL);
}

bool pd__jwork(pd__jev *e, size_t n) {
    if (e->rc != PD_OK) return false;
    if (e->h->failed) {
        const size_t limit = e->h->limit ? e->h->limit : PD_JHEAP_LIMIT_DEFAULT;
        e->rc = pd_fail(e->err, PD_EINVAL, "messages",
                        "the chat template, line %u: it takes more than %zu bytes of memory", e->line, limit);
        return false;
    }
    e->steps += n + e->h->compared / 64;
    e->h->compared %= 64;
    if (e->steps <= PD_JINJA_STEPS_MAX) return true;
    pd__jfail(e, "it takes more than %llu steps", (unsigned long long)PD_JINJA_STEPS_MAX);
    return false;
}

pd_jval pd__jtoo_deep(pd__jev *e) {
    pd__jwork(e, 0); /* writing ends for want of memory too */
    return pd__jfail(e, "a value is nested too deep");
}

bool pd__jis_missing(pd__jev *e, pd_jval v) {
    if (v.kind != PD_JUNDEFINED) return false;
    const pd__jstr *s = v.u.str;
    const int n = s ? (int)(s->n < 80 ? s->n : 80) : 0;
    if (!s) pd__jfail(e, "a value is undefined");
    else if (v.form == PD__JFORM_NAME) pd__jfail(e, "'%.*s' is undefined", n, s->s);
    else pd__jfail(e, "'%s object' has no attribute '%.*s'", pd__jkind_name((pd_jval){.kind = (uint8_t)v.origin}), n, s->s);
    return true;
}

/* ---- lists ---- */

pd_jval pd__jlist_of(pd__jev *e, const pd_jval *v, size_t n, unsigned form, uint16_t origin) {
    pd_jval list = pd_jlist(e->h, n, origin);
    if (list.kind != PD_JLIST) return list;
    if (n) memcpy(list.u.list->v, v, n * sizeof *v);
    list.u.list->n = n;
    list.form = (uint8_t)form;
    return list;
}

static bool iterate_text(pd__jev *e, pd_jval v, const pd_jval **item, size_t *n) {
    const pd__jstr *s = v.u.str;
    const size_t count = pd__jcp_count(s->s, s->n);
    pd_jval *p = PD_JNEW(e->h, count ? count : 1, pd_jval);
    if (!p || !pd__jwork(e, count)) return false;
    size_t k = 0;
    for (size_t from = 0, to; from < s->n; from = to) {
        for (to = from + 1; to < s->n && ((unsigned char)s->s[to] & 0xC0) == 0x80;) to++;
        p[k++] = pd__jsub(e->h, v, from, to);
    }
    *item = p;
    *n = k;
    return true;
}

bool pd__jiterate(pd__jev *e, pd_jval v, const pd_jval **item, size_t *n) {
    *item = NULL;
    *n = 0;
    switch ((pd_jkind)v.kind) {
    case PD_JUNDEFINED: return true;
    case PD_JLIST:
        if (v.form == PD__JFORM_GENERATOR && v.u.list->spent) return true;
        if (v.form == PD__JFORM_GENERATOR) v.u.list->spent = true;
        *item = v.u.list->v;
        *n = v.u.list->n;
        return pd__jwork(e, *n / 16);
    case PD_JDICT: {
        const pd__jdict *d = v.u.dict;
        pd_jval *p = PD_JNEW(e->h, d->n ? d->n : 1, pd_jval);
        if (!p) return pd__jwork(e, 0);
        for (size_t i = 0; i < d->n; i++) p[i] = d->v[i].key;
        *item = p;
        *n = d->n;
        return pd__jwork(e, *n / 16);
    }
    case PD_JSTR: return iterate_text(e, v, item, n);
    default: pd__jfail(e, "'%s' object is not iterable", pd__jkind_name(v)); return false;
    }
}

bool pd__jcontains(pd__jev *e, pd_jval in, pd_jval v) {
    if (in.kind == PD_JSTR) {
        if (v.kind != PD_JSTR) {
            if (!pd__jis_missing(e, v)) pd__jfail(e, "'in <string>' requires string as left operand, not %s", pd__jkind_name(v));
            return false;
        }
        if (!pd__jworked(e, pd__jbytes(in))) return false;
        return pd__jbytes(v) == 0 || memmem(pd__jchars(in), pd__jbytes(in), pd__jchars(v), pd__jbytes(v)) != NULL;
    }
    if (in.kind == PD_JDICT) return pd__jfind(e->h, in, v) != NULL;
    const pd_jval *item;
    size_t n;
    if (!pd__jiterate(e, in, &item, &n)) return false;
    for (size_t i = 0; i < n; i++) {
        if (pd__jequal(e->h, item[i], v, 0)) return true;
    }
    return false;
}

/* ---- names, attributes, items ---- */

static pd_jval variable(pd__jev *e, const pd__jnode *n) {
    size_t seen = 0;
    for (const pd__jscope *s = e->scope; s; s = s->up) {
        for (const pd__jbind *b = s->first; b; b = b->next, seen++) {
            if (b->name != n->name) continue;
            pd__jwork(e, seen / 16);
            return b->val.kind == PD__JMISSING ? pd__jundefined(n->val.u.str) : b->val;
        }
    }
    pd__jwork(e, seen / 16);
    const pd_jval *v = pd__jfind(e->h, e->vars, n->val);
    if (v) return *v;
    const pd_jval g = pd__jglobal(pd__jchars(n->val), pd__jbytes(n->val));
    if (g.kind != PD__JMISSING && !(e->now == 0 && pd__jis(n->val, "strftime_now"))) return g;
    return pd__jundefined(n->val.u.str);
}

pd_jval pd__jattribute(pd__jev *e, pd_jval of, pd_jval name) {
    if (pd__jis_missing(e, of)) return of;
    if (of.kind == PD__JLOOP) return pd__jloop_attribute(e, of, name);
    if (pd__jhas_method(of, name)) {
        pd__jbound *m = PD_JNEW(e->h, 1, pd__jbound);
        if (!m) return pd_jnone();
        *m = (pd__jbound){of, name};
        return (pd_jval){.kind = PD__JMETHOD, .u.p = m};
    }
    if (of.kind == PD_JDICT || of.kind == PD__JNAMESPACE) {
        const pd_jval *v = pd__jfind(e->h, of, name);
        if (v) return *v;
    }
    if (pd__jis_cycler(of)) return pd__jcycler(e, of, name);
    if (of.kind == PD__JMACRO && pd__jis(name, "name")) {
        const pd__jmacro *m = of.u.p;
        if (m->node->kind == PD__JN_MACRO) return m->node->val;
    }
    return pd__jno_attribute(name.u.str, of.kind);
}

static pd_jval at_index(pd__jev *e, pd_jval of, int64_t i) {
    if (of.kind == PD_JSTR) {
        const pd__jstr *s = of.u.str;
        const size_t n = pd__jcp_count(s->s, s->n);
        if (i < 0) i += (int64_t)n;
        if (!pd__jworked(e, s->n)) return pd_jnone();
        if (i >= 0 && (size_t)i < n)
            return pd__jsub(e->h, of, pd__jcp_at(s->s, s->n, (size_t)i), pd__jcp_at(s->s, s->n, (size_t)i + 1));
    } else if (of.kind == PD_JLIST && of.form <= PD__JFORM_RANGE) {
        const pd__jlist *l = of.u.list;
        if (i < 0) i += (int64_t)l->n;
        if (i >= 0 && (size_t)i < l->n) return l->v[i];
    }
    return pd__jno_attribute(NULL, of.kind);
}

pd_jval pd__jitem(pd__jev *e, pd_jval of, pd_jval key) {
    if (pd__jis_missing(e, of)) return of;
    if (of.kind == PD_JDICT) {
        const pd_jval *v = pd__jfind(e->h, of, key);
        if (v) return *v;
    } else if (key.kind == PD_JINT || key.kind == PD_JBOOL) {
        return at_index(e, of, key.kind == PD_JINT ? key.u.i : key.u.b);
    }
    if (key.kind == PD_JSTR) return pd__jattribute(e, of, key);
    return pd__jno_attribute(NULL, of.kind);
}

/* ---- slices ---- */

static bool bound(pd__jev *e, const pd__jnode *n, int64_t none, int64_t *ret) {
    *ret = none;
    if (!n) return true;
    const pd_jval v = pd__jeval(e, n);
    if (v.kind == PD_JNONE) return true;
    if (v.kind != PD_JINT && v.kind != PD_JBOOL) {
        if (!pd__jis_missing(e, v)) pd__jfail(e, "slice indices must be integers or None, not %s", pd__jkind_name(v));
        return false;
    }
    *ret = v.kind == PD_JINT ? v.u.i : v.u.b;
    return true;
}

static int64_t clamp(int64_t i, int64_t n, bool back) {
    if (i < 0) i = i < -n ? -1 - (!back) : i + n;
    if (i < 0) return back ? -1 : 0;
    return i >= n ? (back ? n - 1 : n) : i;
}

static pd_jval slice_text(pd__jev *e, pd_jval v, int64_t from, int64_t to, int64_t step) {
    const pd__jstr *s = v.u.str;
    if (!pd__jworked(e, s->n)) return v;
    if (step == 1) {
        if (to < from) to = from;
        const size_t a = pd__jcp_at(s->s, s->n, (size_t)from);
        return pd__jsub(e->h, v, a, a + pd__jcp_at(s->s + a, s->n - a, (size_t)(to - from)));
    }
    const pd_jval *item;
    size_t n;
    if (!iterate_text(e, v, &item, &n)) return v;
    pd__jbuf b = {.h = e->h};
    for (int64_t i = from; step > 0 ? i < to : i > to; i += step) pd__jbuf_sub(&b, item[i], 0, pd__jbytes(item[i]));
    return pd__jbuf_str(&b);
}

static pd_jval slice(pd__jev *e, const pd__jnode *node) {
    const pd_jval v = pd__jeval(e, node->a);
    int64_t step, from, to, n;
    if (pd__jis_missing(e, v)) return v;
    if (v.kind == PD_JSTR) n = (int64_t)pd__jcp_count(pd__jchars(v), pd__jbytes(v));
    else if (v.kind == PD_JLIST && v.form <= PD__JFORM_RANGE) n = (int64_t)v.u.list->n;
    else return pd__jno_attribute(NULL, v.kind);
    if (!bound(e, node->d, 1, &step)) return v;
    if (step == 0) return pd__jfail(e, "slice step cannot be zero");
    const int64_t none = INT64_MIN;
    if (!bound(e, node->b, none, &from) || !bound(e, node->c, none, &to)) return v;
    if (step > n) step = n + 1; /* the same, and cannot overflow */
    if (step < -n) step = -n - 1;
    const bool back = step < 0;
    from = from == none ? (back ? n - 1 : 0) : clamp(from, n, back);
    to = to == none ? (back ? -1 : n) : clamp(to, n, back);
    if (v.kind == PD_JSTR) return slice_text(e, v, from, to, step);
    pd_jval ret = pd_jlist(e->h, 0, v.origin);
    ret.form = v.form;
    if (step == 1 && to > from) return pd__jlist_of(e, v.u.list->v + from, (size_t)(to - from), v.form, v.origin);
    for (int64_t i = from; (back ? i > to : i < to) && pd__jwork(e, 1); i += step) pd_jlist_add(e->h, ret, v.u.list->v[i]);
    return ret;
}

/* ---- arithmetic ---- */

static pd_jval wrong_types(pd__jev *e, const char *op, pd_jval a, pd_jval b) {
    if (pd__jis_missing(e, a) || pd__jis_missing(e, b)) return a;
    if (a.kind == PD_JSTR && op[0] == '+')
        return pd__jfail(e, "can only concatenate str (not \"%s\") to str", pd__jkind_name(b));
    return pd__jfail(e, "unsupported operand type(s) for %s: '%s' and '%s'", op, pd__jkind_name(a), pd__jkind_name(b));
}

static pd_jval html(pd__jev *e, pd_jval v) {
    const pd__jcall none = {0};
    return v.form == PD__JFORM_MARKUP ? v : pd__jfilter(e, pd__jtext(e->h, "escape"), v, &none);
}

pd_jval pd__jadd(pd__jev *e, pd_jval a, pd_jval b) {
    if (a.kind == PD_JSTR && b.kind == PD_JSTR) {
        const bool markup = a.form == PD__JFORM_MARKUP || b.form == PD__JFORM_MARKUP;
        if (markup) { /* what |safe has marked escapes what it meets */
            a = html(e, a);
            b = html(e, b);
        }
        if (!markup && pd__jbytes(a) == 0) return b;
        if (!markup && pd__jbytes(b) == 0) return a;
        pd__jbuf buf = {.h = e->h};
        const size_t copied = pd__jbuf_on(&buf, a);
        pd__jbuf_sub(&buf, b, 0, pd__jbytes(b));
        pd__jworked(e, copied + pd__jbytes(b));
        pd_jval v = pd__jbuf_str(&buf);
        if (markup) v.form = PD__JFORM_MARKUP;
        return v;
    }
    if (a.kind == PD_JLIST && b.kind == PD_JLIST && a.form == b.form && a.form <= PD__JFORM_TUPLE) {
        const pd__jlist *x = a.u.list, *y = b.u.list;
        if (!pd__jwork(e, (x->n + y->n) / 16)) return a;
        pd_jval v = pd__jlist_of(e, x->v, x->n, a.form, a.origin);
        for (size_t i = 0; i < y->n; i++) pd_jlist_add(e->h, v, y->v[i]);
        return v;
    }
    return wrong_types(e, "+", a, b);
}

static pd_jval repeat(pd__jev *e, pd_jval v, int64_t times) {
    const size_t n = v.kind == PD_JSTR ? pd__jbytes(v) : v.u.list->n;
    if (times < 0) times = 0;
    size_t all;
    if (__builtin_mul_overflow(n, (size_t)times, &all) || !pd__jworked(e, all)) {
        e->h->failed = true;
        pd__jwork(e, 0);
        return v;
    }
    if (n == 0) times = 0;
    if (v.kind == PD_JSTR) {
        pd__jbuf b = {.h = e->h};
        for (int64_t i = 0; i < times && !e->h->failed; i++) pd__jbuf_sub(&b, v, 0, n);
        return pd__jbuf_str(&b);
    }
    pd_jval list = pd__jlist_of(e, NULL, 0, v.form, v.origin);
    for (int64_t i = 0; i < times && pd__jwork(e, 1 + n / 16); i++)
        for (size_t k = 0; k < n; k++) pd_jlist_add(e->h, list, v.u.list->v[k]);
    return list;
}

static int64_t whole(pd_jval v) {
    return v.kind == PD_JINT ? v.u.i : v.u.b;
}

static pd_jval int_power(pd__jev *e, int64_t a, int64_t n) {
    int64_t r = 1;
    if (n < 0) return a == 0 ? pd__jfail(e, "0.0 cannot be raised to a negative power") : pd_jfloat(pow((double)a, (double)n));
    while (n > 0) {
        if ((n & 1) && __builtin_mul_overflow(r, a, &r)) return pd__jfail(e, "a whole number does not fit 64 bits");
        n >>= 1;
        if (n && __builtin_mul_overflow(a, a, &a)) return pd__jfail(e, "a whole number does not fit 64 bits");
    }
    return pd_jint(r);
}

/* DIFFERS: Python's whole numbers have no end; ours have 64 bits and say so. */
static pd_jval int_op(pd__jev *e, unsigned op, int64_t a, int64_t b) {
    int64_t r = 0;
    bool over = false;
    if ((op == '%' || op == PD__JOP2('/', '/') || op == '/') && b == 0) return pd__jfail(e, "division by zero");
    switch (op) {
    case '+': over = __builtin_add_overflow(a, b, &r); break;
    case '-': over = __builtin_sub_overflow(a, b, &r); break;
    case '*': over = __builtin_mul_overflow(a, b, &r); break;
    case '/': return pd_jfloat((double)a / (double)b);
    case '%': r = b == -1 ? 0 : a % b + (a % b && (a % b < 0) != (b < 0) ? b : 0); break;
    case PD__JOP2('/', '/'):
        over = b == -1 ? __builtin_sub_overflow((int64_t)0, a, &r) : false;
        if (b != -1) r = a / b - (a % b && (a % b < 0) != (b < 0));
        break;
    default: return int_power(e, a, b);
    }
    return over ? pd__jfail(e, "a whole number does not fit 64 bits") : pd_jint(r);
}

static pd_jval float_op(pd__jev *e, unsigned op, double a, double b) {
    double r;
    if ((op == '%' || op == PD__JOP2('/', '/') || op == '/') && b == 0.0) return pd__jfail(e, "float division by zero");
    switch (op) {
    case '+': r = a + b; break;
    case '-': r = a - b; break;
    case '*': r = a * b; break;
    case '/': r = a / b; break;
    case '%':
        r = fmod(a, b);
        if (r != 0.0 && (r < 0) != (b < 0)) r += b;
        break;
    case PD__JOP2('/', '/'): r = floor(a / b); break;
    default:
        r = pow(a, b);
        if (!isfinite(r) && isfinite(a) && isfinite(b)) return pd__jfail(e, "a power is out of range");
    }
    return pd_jfloat(r);
}

static pd_jval operate(pd__jev *e, unsigned op, pd_jval a, pd_jval b) {
    const char text[3] = {(char)(op & 0xFF), (char)(op >> 8), 0};
    if (pd__jis_number(a) && pd__jis_number(b)) {
        pd_jval r = a.kind == PD_JFLOAT || b.kind == PD_JFLOAT ? float_op(e, op, pd__jnumber(a), pd__jnumber(b))
                                                               : int_op(e, op, whole(a), whole(b));
        if (r.kind != PD_JUNDEFINED) r.origin = a.origin ? a.origin : b.origin;
        return r;
    }
    if (op == '+') return pd__jadd(e, a, b);
    if (op == '*') {
        const bool left = a.kind == PD_JSTR || (a.kind == PD_JLIST && a.form <= PD__JFORM_TUPLE);
        const bool right = b.kind == PD_JSTR || (b.kind == PD_JLIST && b.form <= PD__JFORM_TUPLE);
        if (left && (b.kind == PD_JINT || b.kind == PD_JBOOL)) return repeat(e, a, whole(b));
        if (right && (a.kind == PD_JINT || a.kind == PD_JBOOL)) return repeat(e, b, whole(a));
    }
    if (op == '%' && a.kind == PD_JSTR) {
        const bool many = b.kind == PD_JLIST && b.form == PD__JFORM_TUPLE;
        const pd__jcall c = {.pos = many ? b.u.list->v : &b, .n_pos = many ? b.u.list->n : 1};
        return pd__jpercent(e, a, &c);
    }
    return wrong_types(e, text, a, b);
}

static pd_jval binary(pd__jev *e, const pd__jnode *n) {
    if (!n->n_kid) {
        const pd_jval a = pd__jeval(e, n->a), b = pd__jeval(e, n->b);
        return e->rc == PD_OK ? operate(e, n->op, a, b) : a;
    }
    /* A row of sums: one buffer while the terms are strings. */
    pd_jval sum = pd__jeval(e, n->kid[0]);
    for (size_t i = 1; i < n->n_kid && e->rc == PD_OK;) {
        if (sum.kind == PD_JSTR && sum.form == PD__JFORM_TEXT) {
            pd__jbuf b = {.h = e->h};
            const size_t copied = pd__jbuf_on(&b, sum), before = b.n;
            pd_jval v = pd__jundefined(NULL);
            for (; i < n->n_kid && e->rc == PD_OK; i++) {
                v = pd__jeval(e, n->kid[i]);
                if (n->op_list[i - 1] != '+' || v.kind != PD_JSTR || v.form != PD__JFORM_TEXT) break;
                pd__jbuf_sub(&b, v, 0, pd__jbytes(v));
            }
            sum = pd__jbuf_str(&b);
            if (!pd__jworked(e, copied + b.n - before) || i == n->n_kid) break;
            sum = operate(e, n->op_list[i - 1], sum, v);
        } else {
            const pd_jval v = pd__jeval(e, n->kid[i]);
            if (e->rc == PD_OK) sum = operate(e, n->op_list[i - 1], sum, v);
        }
        i++;
    }
    return sum;
}

static pd_jval negate(pd__jev *e, pd_jval v, bool minus) {
    if (pd__jis_missing(e, v)) return v;
    if (!pd__jis_number(v)) return pd__jfail(e, "bad operand type for unary %c: '%s'", minus ? '-' : '+', pd__jkind_name(v));
    if (v.kind == PD_JFLOAT) return pd_jfloat(minus ? -v.u.f : v.u.f);
    return minus ? int_op(e, '-', 0, whole(v)) : pd_jint(whole(v));
}

/* ---- comparing ---- */

static bool compare_one(pd__jev *e, unsigned op, pd_jval a, pd_jval b) {
    int c;
    switch (op) {
    case PD__JOP2('=', '='): return pd__jequal(e->h, a, b, 0);
    case PD__JOP2('!', '='): return !pd__jequal(e->h, a, b, 0);
    case 'i': return pd__jcontains(e, b, a);
    case 'n': return !pd__jcontains(e, b, a);
    default: break;
    }
    if (pd__jis_missing(e, a) || pd__jis_missing(e, b)) return false;
    if (!pd__jcompare(e->h, a, b, &c, 0)) {
        pd__jwork(e, 0); /* it may be one too many */
        pd__jfail(e, "'%c%s' not supported between instances of '%s' and '%s'", op & 0xFF, op > 0xFF ? "=" : "",
                  pd__jkind_name(a), pd__jkind_name(b));
        return false;
    }
    return op == '<' ? c < 0 : op == '>' ? c > 0 : op == PD__JOP2('<', '=') ? c <= 0 : c >= 0;
}

static size_t size_of(pd_jval v) {
    return v.kind == PD_JSTR ? pd__jbytes(v) : v.kind == PD_JLIST ? 4 * v.u.list->n : v.kind == PD_JDICT ? 16 * v.u.dict->n : 0;
}

static pd_jval compare(pd__jev *e, const pd__jnode *n) {
    pd_jval left = pd__jeval(e, n->a);
    for (size_t i = 0; i < n->n_kid; i++) {
        const pd_jval right = pd__jeval(e, n->kid[i]);
        if (!pd__jworked(e, size_of(left))) return left;
        if (!compare_one(e, n->op_list[i], left, right)) return pd_jbool(false);
        left = right;
    }
    return pd_jbool(true);
}

static pd_jval logic(pd__jev *e, const pd__jnode *n, bool stop_at) {
    pd_jval v = pd__jundefined(NULL);
    for (size_t i = 0; i < n->n_kid; i++) {
        v = pd__jeval(e, n->kid[i]);
        if (e->rc != PD_OK || pd__jtruth(v) == stop_at) break;
    }
    return v;
}

/* ---- calls ---- */

static bool grow_named(pd__jev *e, pd__jcall *c, pd__jnamed one, size_t cap) {
    if (c->n_kw == cap) return false;
    c->kw[c->n_kw++] = one;
    return e->rc == PD_OK;
}

static bool star_args(pd__jev *e, const pd__jargs *a, pd__jcall *ret) {
    const pd_jval *item = NULL;
    size_t n = 0;
    pd_jval dict = pd_jnone();
    if (a->star && !pd__jiterate(e, pd__jeval(e, a->star), &item, &n)) return false;
    if (a->star2) {
        dict = pd__jeval(e, a->star2);
        if (dict.kind != PD_JDICT) {
            if (!pd__jis_missing(e, dict)) pd__jfail(e, "argument after ** must be a mapping, not %s", pd__jkind_name(dict));
            return false;
        }
    }
    const size_t n_kw = a->n_kw + (a->star2 ? dict.u.dict->n : 0);
    pd_jval *pos = PD_JNEW(e->h, a->n_pos + n + 1, pd_jval);
    pd__jnamed *kw = PD_JNEW(e->h, n_kw + 1, pd__jnamed);
    if (!pos || !kw) return pd__jwork(e, 0);
    if (ret->n_pos) memcpy(pos, ret->pos, ret->n_pos * sizeof *pos);
    if (n) memcpy(pos + ret->n_pos, item, n * sizeof *pos);
    if (ret->n_kw) memcpy(kw, ret->kw, ret->n_kw * sizeof *kw);
    ret->pos = pos;
    ret->kw = kw;
    ret->n_pos += n;
    for (size_t i = 0; a->star2 && i < dict.u.dict->n; i++) {
        const pd__jpair *p = &dict.u.dict->v[i];
        if (p->key.kind != PD_JSTR) {
            pd__jfail(e, "keywords must be strings");
            return false;
        }
        if (!grow_named(e, ret, (pd__jnamed){p->key, p->val}, n_kw)) return false;
    }
    return true;
}

bool pd__jeval_args(pd__jev *e, const pd__jargs *a, pd__jcall *ret) {
    *ret = (pd__jcall){0};
    if (!a) return true;
    ret->pos = a->n_pos ? PD_JNEW(e->h, a->n_pos, pd_jval) : NULL;
    ret->kw = a->n_kw ? PD_JNEW(e->h, a->n_kw, pd__jnamed) : NULL;
    if ((a->n_pos && !ret->pos) || (a->n_kw && !ret->kw)) return pd__jwork(e, 0);
    for (; ret->n_pos < a->n_pos; ret->n_pos++) ret->pos[ret->n_pos] = pd__jeval(e, a->pos[ret->n_pos]);
    for (; ret->n_kw < a->n_kw; ret->n_kw++)
        ret->kw[ret->n_kw] = (pd__jnamed){a->kw[ret->n_kw].text, pd__jeval(e, a->kw[ret->n_kw].val)};
    if (e->rc != PD_OK) return false;
    return !(a->star || a->star2) || star_args(e, a, ret);
}

static pd_jval call(pd__jev *e, const pd__jnode *n) {
    pd__jcall c;
    if (n->a->kind == PD__JN_ATTR) { /* a method, without making a value of it */
        const pd_jval self = pd__jeval(e, n->a->a);
        if (e->rc != PD_OK || pd__jis_missing(e, self)) return self;
        if (pd__jhas_method(self, n->a->val)) {
            if (!pd__jeval_args(e, n->args, &c)) return self;
            e->line = n->line;
            return pd__jmethod(e, self, n->a->val, &c);
        }
        const pd_jval f = pd__jattribute(e, self, n->a->val);
        if (!pd__jeval_args(e, n->args, &c)) return self;
        e->line = n->line;
        return pd__jcall_value(e, f, &c);
    }
    const pd_jval f = pd__jeval(e, n->a);
    if (!pd__jeval_args(e, n->args, &c)) return f;
    e->line = n->line;
    return pd__jcall_value(e, f, &c);
}

static pd_jval filter(pd__jev *e, const pd__jnode *n) {
    pd__jcall c;
    const pd_jval self = pd__jeval(e, n->a);
    if (e->rc != PD_OK || !pd__jeval_args(e, n->args, &c)) return self;
    e->line = n->line;
    return pd__jfilter(e, n->val, self, &c);
}

static pd_jval test(pd__jev *e, const pd__jnode *n) {
    pd__jcall c;
    const pd_jval self = pd__jeval(e, n->a);
    if (e->rc != PD_OK || !pd__jeval_args(e, n->args, &c)) return self;
    e->line = n->line;
    return pd_jbool(pd__jtest(e, n->val, self, &c));
}

/* ---- literals ---- */

static pd_jval list(pd__jev *e, const pd__jnode *n) {
    pd_jval v = pd_jlist(e->h, n->n_kid, PD_JORIGIN_TEMPLATE);
    v.form = n->kind == PD__JN_TUPLE ? PD__JFORM_TUPLE : PD__JFORM_LIST;
    for (size_t i = 0; i < n->n_kid && e->rc == PD_OK; i++) pd_jlist_add(e->h, v, pd__jeval(e, n->kid[i]));
    return v;
}

static pd_jval dict(pd__jev *e, const pd__jnode *n) {
    pd_jval v = pd_jdict(e->h, n->n_kid / 2, PD_JORIGIN_TEMPLATE);
    for (size_t i = 0; i + 1 < n->n_kid && v.kind == PD_JDICT && pd__jwork(e, v.u.dict->n / 16); i += 2) {
        const pd_jval key = pd__jeval(e, n->kid[i]), val = pd__jeval(e, n->kid[i + 1]);
        if (key.kind == PD_JDICT || (key.kind == PD_JLIST && key.form == PD__JFORM_LIST))
            return pd__jfail(e, "unhashable type: '%s'", pd__jkind_name(key));
        pd__jset(e->h, v, key, val);
    }
    return v;
}

static pd_jval concat(pd__jev *e, const pd__jnode *n) {
    pd__jbuf b = {.h = e->h};
    size_t before = 0, copied = 0;
    for (size_t i = 0; i < n->n_kid && e->rc == PD_OK; i++) {
        const pd_jval v = pd__jeval(e, n->kid[i]);
        if (e->rc != PD_OK) break;
        if (i == 0 && v.kind == PD_JSTR) {
            copied = pd__jbuf_on(&b, v);
            before = b.n;
        } else if (!pd__jput(&b, v)) {
            return pd__jtoo_deep(e);
        }
    }
    pd__jworked(e, copied + b.n - before);
    return pd__jbuf_str(&b);
}

static pd_jval if_else(pd__jev *e, const pd__jnode *n) {
    const pd_jval cond = pd__jeval(e, n->b);
    if (e->rc != PD_OK) return cond;
    if (pd__jtruth(cond)) return pd__jeval(e, n->a);
    return n->c ? pd__jeval(e, n->c) : pd__jundefined(NULL);
}

static pd_jval eval(pd__jev *e, const pd__jnode *n) {
    pd_jval v;
    switch ((pd__jnode_kind)n->kind) {
    case PD__JN_CONST: return n->val;
    case PD__JN_NAME: return variable(e, n);
    case PD__JN_LIST:
    case PD__JN_TUPLE: return list(e, n);
    case PD__JN_DICT: return dict(e, n);
    case PD__JN_ATTR:
        v = pd__jeval(e, n->a);
        return e->rc == PD_OK ? pd__jattribute(e, v, n->val) : v;
    case PD__JN_ITEM: {
        v = pd__jeval(e, n->a);
        const pd_jval key = pd__jeval(e, n->b);
        return e->rc == PD_OK ? pd__jitem(e, v, key) : v;
    }
    case PD__JN_SLICE: return slice(e, n);
    case PD__JN_CALL: return call(e, n);
    case PD__JN_FILTER: return filter(e, n);
    case PD__JN_TEST: return test(e, n);
    case PD__JN_NOT: return pd_jbool(!pd__jtruth(pd__jeval(e, n->a)));
    case PD__JN_NEG: return negate(e, pd__jeval(e, n->a), true);
    case PD__JN_POS: return negate(e, pd__jeval(e, n->a), false);
    case PD__JN_BINARY: return binary(e, n);
    case PD__JN_CONCAT: return concat(e, n);
    case PD__JN_COMPARE: return compare(e, n);
    case PD__JN_AND: return logic(e, n, false);
    case PD__JN_OR: return logic(e, n, true);
    case PD__JN_IF_ELSE: return if_else(e, n);
    default: return pd__jfail(e, "a statement stands where an expression should");
    }
}

pd_jval pd__jeval(pd__jev *e, const pd__jnode *n) {
    if (!pd__jwork(e, 1)) return pd__jundefined(NULL);
    if (e->depth >= PD_JINJA_DEPTH_MAX) return pd__jfail(e, "it is nested more than %d levels deep", PD_JINJA_DEPTH_MAX);
    e->depth++;
    e->line = n->line;
    const pd_jval v = eval(e, n);
    e->depth--;
    return v;
}
