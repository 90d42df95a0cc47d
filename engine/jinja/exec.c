/* SPDX-License-Identifier: Apache-2.0 */
/* Statements: what they write, and whose names they see.
 *
 * A loop's body, a macro, {% set %} around text and the like have a scope of their own;
 * {% if %} has none.  While a loop over messages stands at one, all that is written to
 * the page is of its turn. */
#include "engine/jinja/eval.h"

#include <stdio.h>
#include <string.h>

/* ---- scopes ---- */

static pd__jscope *push_scope(pd__jev *e) {
    pd__jscope *s = e->free_scope;
    if (s) e->free_scope = s->up;
    else s = PD_JNEW(e->h, 1, pd__jscope);
    if (!s) return NULL;
    *s = (pd__jscope){.up = e->scope};
    e->scope = s;
    return s;
}

/* Back to the scope around; the one left is used again, if no macro made since remembers it. */
static void leave_scope(pd__jev *e, size_t macros_before) {
    pd__jscope *s = e->scope;
    e->scope = s->up;
    if (e->n_macro != macros_before) return;
    for (pd__jbind *b = s->first, *next; b; b = next) {
        next = b->next;
        b->next = e->free_bind;
        e->free_bind = b;
    }
    s->up = e->free_scope;
    e->free_scope = s;
}

static void bind(pd__jev *e, pd__jscope *s, int name, pd_jval v) {
    size_t seen = 0;
    for (pd__jbind *b = s->first; b; b = b->next, seen++) {
        if (b->name == name) {
            b->val = v;
            pd__jwork(e, seen / 16);
            return;
        }
    }
    pd__jwork(e, seen / 16);
    pd__jbind *b = e->free_bind;
    if (b) e->free_bind = b->next;
    else b = PD_JNEW(e->h, 1, pd__jbind);
    if (!b) return;
    *b = (pd__jbind){s->first, name, v};
    s->first = b;
}

/* A name that the interpreter gives (loop, caller ...), if the template has it. */
static void bind_word(pd__jev *e, pd__jscope *s, int name, pd_jval v) {
    if (name >= 0) bind(e, s, name, v);
}

static void set_attribute(pd__jev *e, const pd__jnode *to, pd_jval v) {
    const pd_jval of = pd__jeval(e, to->a);
    if (e->rc != PD_OK) return;
    if (of.kind != PD__JNAMESPACE) {
        pd__jfail(e, "cannot assign attribute on non-namespace object");
        return;
    }
    pd__jset(e->h, of, to->val, v);
}

static void assign(pd__jev *e, const pd__jnode *to, pd_jval v) {
    if (to->kind == PD__JN_NAME) {
        /* A loop over numbers that picks its message: "set message = messages[i]". */
        if (e->turn == 0 && e->scope->up && v.kind == PD_JDICT && v.origin != PD_JORIGIN_OTHER) e->turn = v.origin;
        bind(e, e->scope, to->name, v);
        return;
    }
    if (to->kind == PD__JN_ATTR) {
        set_attribute(e, to, v);
        return;
    }
    const pd_jval *item;
    size_t n;
    if (pd__jis_missing(e, v) || !pd__jiterate(e, v, &item, &n)) return;
    if (n != to->n_kid) {
        pd__jfail(e, n < to->n_kid ? "not enough values to unpack (expected %zu, got %zu)"
                                   : "too many values to unpack (expected %zu, got %zu)",
                  to->n_kid, n);
        return;
    }
    for (size_t i = 0; i < n && e->rc == PD_OK; i++) assign(e, to->kid[i], item[i]);
}

/* ---- output ---- */

static void mark_turn(pd__jev *e, size_t from) {
    if (e->turn == 0 || e->page.n == from) return;
    pd_jspan *last = e->n_turn ? &e->turns[e->n_turn - 1] : NULL;
    if (last && last->end == from && last->origin == e->turn) {
        last->end = e->page.n;
        return;
    }
    if (e->n_turn == e->cap_turn) {
        const size_t cap = e->cap_turn ? 2 * e->cap_turn : 16;
        pd_jspan *p = PD_JNEW(e->h, cap, pd_jspan);
        if (!p) return;
        if (e->n_turn) memcpy(p, e->turns, e->n_turn * sizeof *p);
        e->turns = p;
        e->cap_turn = cap;
    }
    e->turns[e->n_turn++] = (pd_jspan){from, e->page.n, e->turn};
}

static void write(pd__jev *e, pd_jval v) {
    const size_t from = e->page.n, before = e->out->n;
    if (!pd__jput(e->out, v)) {
        pd__jtoo_deep(e);
        return;
    }
    if (e->out == &e->page) mark_turn(e, from);
    if (!pd__jworked(e, e->out->n - before)) return;
    if (e->page.n > PD_JINJA_OUTPUT_MAX) pd__jfail(e, "it writes more than %zu bytes", PD_JINJA_OUTPUT_MAX);
}

/* A body's text as a value. */
static pd_jval captured(pd__jev *e, pd__jnode *const *kid, size_t n) {
    pd__jbuf *const out = e->out;
    pd__jbuf here = {.h = e->h};
    e->out = &here;
    pd__jexec(e, kid, n);
    e->out = out;
    return pd__jbuf_str(&here);
}

/* `v` through the filters of a block, the innermost node first. */
static pd_jval chained(pd__jev *e, const pd__jnode *n, pd_jval v) {
    pd__jcall c;
    if (!n || e->rc != PD_OK) return v;
    v = chained(e, n->a, v);
    if (e->rc != PD_OK || !pd__jeval_args(e, n->args, &c)) return v;
    return pd__jfilter(e, n->val, v, &c);
}

/* ---- loops ---- */

pd_jval pd__jloop_attribute(pd__jev *e, pd_jval loop, pd_jval name) {
    const pd__jloop *l = loop.u.p;
    if (pd__jis(name, "index")) return pd_jint((int64_t)l->i + 1);
    if (pd__jis(name, "index0")) return pd_jint((int64_t)l->i);
    if (pd__jis(name, "revindex")) return pd_jint((int64_t)(l->n - l->i));
    if (pd__jis(name, "revindex0")) return pd_jint((int64_t)(l->n - l->i) - 1);
    if (pd__jis(name, "first")) return pd_jbool(l->i == 0);
    if (pd__jis(name, "last")) return pd_jbool(l->i + 1 == l->n);
    if (pd__jis(name, "length")) return pd_jint((int64_t)l->n);
    if (pd__jis(name, "depth")) return pd_jint((int64_t)l->depth + 1);
    if (pd__jis(name, "depth0")) return pd_jint((int64_t)l->depth);
    if (pd__jis(name, "previtem") && l->i > 0) return l->item[l->i - 1];
    if (pd__jis(name, "nextitem") && l->i + 1 < l->n) return l->item[l->i + 1];
    (void)e;
    return pd__jno_attribute(name.u.str, loop.kind);
}

/* The items that pass the loop's "if". */
static bool chosen(pd__jev *e, const pd__jnode *n, const pd_jval **item, size_t *count) {
    if (!n->c) return true;
    pd_jval *v = PD_JNEW(e->h, *count ? *count : 1, pd_jval);
    size_t k = 0;
    if (!v) return pd__jwork(e, 0);
    for (size_t i = 0; i < *count && e->rc == PD_OK; i++) {
        const size_t macros = e->n_macro;
        if (!push_scope(e)) return pd__jwork(e, 0);
        assign(e, n->a, (*item)[i]);
        if (pd__jtruth(pd__jeval(e, n->c))) v[k++] = (*item)[i];
        leave_scope(e, macros);
    }
    *item = v;
    *count = k;
    return e->rc == PD_OK;
}

static uint16_t turn_of(const pd__jev *e, pd_jval item) {
    return item.kind == PD_JDICT && item.origin != 0 && item.origin != PD_JORIGIN_OTHER ? item.origin : e->turn;
}

static void run_loop(pd__jev *e, const pd__jnode *n, pd_jval over, unsigned depth) {
    const pd_jval *item;
    size_t count;
    const uint16_t turn = e->turn;
    pd__jscope *const scope = e->scope;
    if (!pd__jiterate(e, over, &item, &count)) return;
    const bool selected = chosen(e, n, &item, &count);
    e->turn = turn;
    pd__jloop *loop = selected ? PD_JNEW(e->h, 1, pd__jloop) : NULL;
    if (!loop) {
        e->scope = scope;
        pd__jwork(e, 0);
        return;
    }
    *loop = (pd__jloop){.n = count, .item = item, .node = n->name ? n : NULL, .scope = scope, .depth = depth};
    for (; loop->i < count && pd__jwork(e, 1); loop->i++) {
        const size_t macros = e->n_macro;
        pd__jscope *s = push_scope(e);
        if (!s) break;
        bind_word(e, s, e->t->word_loop, (pd_jval){.kind = PD__JLOOP, .u.p = loop});
        e->turn = turn_of(e, item[loop->i]);
        assign(e, n->a, item[loop->i]);
        pd__jexec(e, n->kid, n->n_kid);
        leave_scope(e, macros);
        e->turn = turn;
        if (e->flow == PD__JFLOW_BREAK) {
            e->flow = PD__JFLOW_ON;
            break;
        }
        e->flow = PD__JFLOW_ON;
    }
    if (count == 0 && n->n_kid2 && push_scope(e)) {
        pd__jexec(e, n->kid2, n->n_kid2);
        e->scope = scope;
    }
}

/* ---- macros ---- */

static bool bind_parameters(pd__jev *e, const pd__jargs *par, const pd__jcall *c, pd__jscope *s, const char *what) {
    pd_jval rest = pd_jlist(e->h, 0, 0), named = pd_jdict(e->h, 0, 0);
    rest.form = PD__JFORM_TUPLE;
    for (size_t i = 0; i < par->n_kw && e->rc == PD_OK; i++) {
        pd_jval v = {.kind = PD__JMISSING};
        if (i < c->n_pos) v = c->pos[i];
        for (size_t k = 0; k < c->n_kw; k++) {
            if (pd__jequal(e->h, c->kw[k].name, par->kw[i].text, 0)) v = c->kw[k].val;
        }
        if (v.kind == PD__JMISSING && par->kw[i].val) v = pd__jeval(e, par->kw[i].val);
        bind(e, s, par->kw[i].name, v);
    }
    const bool takes_rest = e->t->word_varargs >= 0, takes_named = e->t->word_kwargs >= 0;
    for (size_t i = par->n_kw; i < c->n_pos; i++) pd_jlist_add(e->h, rest, c->pos[i]);
    for (size_t k = 0; k < c->n_kw; k++) {
        bool known = pd__jis(c->kw[k].name, "caller");
        for (size_t i = 0; i < par->n_kw; i++) known |= pd__jequal(e->h, c->kw[k].name, par->kw[i].text, 0);
        if (known) continue;
        if (!takes_named) {
            pd__jfail(e, "macro '%.60s' takes no keyword argument '%.*s'", what, (int)(pd__jbytes(c->kw[k].name) & 63),
                      pd__jchars(c->kw[k].name));
            return false;
        }
        pd_jdict_add(e->h, named, c->kw[k].name, c->kw[k].val);
    }
    if (c->n_pos > par->n_kw && !takes_rest) {
        pd__jfail(e, "macro '%.60s' takes not more than %zu argument(s)", what, par->n_kw);
        return false;
    }
    bind_word(e, s, e->t->word_varargs, rest);
    bind_word(e, s, e->t->word_kwargs, named);
    return e->rc == PD_OK;
}

static pd_jval call_macro(pd__jev *e, const pd__jmacro *m, const pd__jcall *c) {
    char what[64] = "caller";
    pd__jscope *const scope = e->scope;
    pd__jbuf *const out = e->out;
    const uint16_t turn = e->turn;
    if (m->node->kind == PD__JN_MACRO)
        snprintf(what, sizeof what, "%.*s", (int)(pd__jbytes(m->node->val) < 60 ? pd__jbytes(m->node->val) : 60),
                 pd__jchars(m->node->val));
    if (e->depth >= PD_JINJA_DEPTH_MAX) return pd__jfail(e, "it is nested more than %d levels deep", PD_JINJA_DEPTH_MAX);
    e->depth++;
    e->scope = m->scope;
    pd_jval v = pd__jundefined(NULL);
    pd__jscope *s = push_scope(e);
    if (s) {
        pd_jval caller = {.kind = PD__JMISSING};
        for (size_t k = 0; k < c->n_kw; k++) {
            if (pd__jis(c->kw[k].name, "caller")) caller = c->kw[k].val;
        }
        if (m->node->kind == PD__JN_MACRO) bind_word(e, s, e->t->word_caller, caller);
        if (bind_parameters(e, m->node->args, c, s, what)) v = captured(e, m->node->kid, m->node->n_kid);
    }
    e->flow = PD__JFLOW_ON;
    e->out = out;
    e->scope = scope;
    e->turn = turn;
    e->depth--;
    return v;
}

static pd_jval new_macro(pd__jev *e, const pd__jnode *n) {
    pd__jmacro *m = PD_JNEW(e->h, 1, pd__jmacro);
    if (!m) return pd_jnone();
    *m = (pd__jmacro){.node = n, .scope = e->scope};
    e->n_macro++;
    return (pd_jval){.kind = PD__JMACRO, .u.p = m};
}

/* {% call(x) f(y) %}body{% endcall %}: f gets the body as caller(). */
static void call_block(pd__jev *e, const pd__jnode *n) {
    pd__jcall c;
    const pd_jval f = pd__jeval(e, n->a->a);
    if (e->rc != PD_OK || !pd__jeval_args(e, n->a->args, &c)) return;
    pd__jnamed *kw = PD_JNEW(e->h, c.n_kw + 1, pd__jnamed);
    if (!kw) return;
    if (c.n_kw) memcpy(kw, c.kw, c.n_kw * sizeof *kw);
    kw[c.n_kw++] = (pd__jnamed){pd__jtext(e->h, "caller"), new_macro(e, n)};
    c.kw = kw;
    write(e, pd__jcall_value(e, f, &c));
}

static pd_jval call_loop(pd__jev *e, const pd__jloop *l, const pd__jcall *c) {
    if (!l->node) return pd__jfail(e, "the loop must have the 'recursive' marker to be called");
    if (c->n_pos != 1) return pd__jfail(e, "loop() takes what to go through");
    if (e->depth >= PD_JINJA_DEPTH_MAX) return pd__jfail(e, "it is nested more than %d levels deep", PD_JINJA_DEPTH_MAX);
    pd__jscope *const scope = e->scope;
    pd__jbuf *const out = e->out;
    pd__jbuf here = {.h = e->h};
    e->depth++;
    e->scope = l->scope;
    e->out = &here;
    run_loop(e, l->node, c->pos[0], l->depth + 1);
    e->out = out;
    e->scope = scope;
    e->depth--;
    return pd__jbuf_str(&here);
}

pd_jval pd__jcall_value(pd__jev *e, pd_jval f, const pd__jcall *c) {
    const pd__jbound *m = f.u.p;
    if (e->rc != PD_OK || pd__jis_missing(e, f)) return pd__jundefined(NULL);
    switch ((pd_jkind)f.kind) {
    case PD__JFUNCTION:
    case PD__JJOINER: return pd__jglobal_call(e, f, c);
    case PD__JMETHOD: return pd__jmethod(e, m->self, m->name, c);
    case PD__JMACRO: return call_macro(e, f.u.p, c);
    case PD__JLOOP: return call_loop(e, f.u.p, c);
    default: return pd__jfail(e, "'%s' object is not callable", pd__jkind_name(f));
    }
}

/* ---- statements ---- */

static void if_block(pd__jev *e, const pd__jnode *n) {
    for (size_t i = 0; i + 1 < n->n_kid; i += 2) {
        const pd_jval cond = pd__jeval(e, n->kid[i]);
        if (e->rc != PD_OK) return;
        if (!pd__jtruth(cond)) continue;
        pd__jexec(e, n->kid[i + 1]->kid, n->kid[i + 1]->n_kid);
        return;
    }
    pd__jexec(e, n->kid2, n->n_kid2);
}

static void in_scope(pd__jev *e, const pd__jnode *n) {
    pd__jscope *const scope = e->scope, *s;
    pd__jcall c = {0};
    if (n->args && !pd__jeval_args(e, n->args, &c)) return;
    if (!(s = push_scope(e))) return;
    for (size_t i = 0; i < c.n_kw; i++) bind(e, s, n->args->kw[i].name, c.kw[i].val);
    pd__jexec(e, n->kid, n->n_kid);
    e->scope = scope;
}

static void block_text(pd__jev *e, const pd__jnode *n) {
    pd__jscope *const scope = e->scope;
    if (!push_scope(e)) return;
    pd_jval v = captured(e, n->kid, n->n_kid);
    e->scope = scope;
    v = chained(e, n->b, v);
    if (e->rc != PD_OK) return;
    if (n->kind == PD__JN_FILTER_BLOCK) write(e, v);
    else assign(e, n->a, v);
}

static void exec(pd__jev *e, const pd__jnode *n) {
    pd_jval v;
    switch ((pd__jnode_kind)n->kind) {
    case PD__JN_DATA: write(e, n->val); break;
    case PD__JN_OUTPUT:
        v = pd__jeval(e, n->a);
        if (e->rc == PD_OK) write(e, v);
        break;
    case PD__JN_FOR:
        v = pd__jeval(e, n->b);
        if (e->rc == PD_OK) run_loop(e, n, v, 0);
        break;
    case PD__JN_IF: if_block(e, n); break;
    case PD__JN_BLOCK: pd__jexec(e, n->kid, n->n_kid); break;
    case PD__JN_SCOPE: in_scope(e, n); break;
    case PD__JN_SET:
        v = pd__jeval(e, n->b);
        if (e->rc == PD_OK) assign(e, n->a, v);
        break;
    case PD__JN_SET_BLOCK:
    case PD__JN_FILTER_BLOCK: block_text(e, n); break;
    case PD__JN_MACRO: bind(e, e->scope, n->name, new_macro(e, n)); break;
    case PD__JN_CALL_BLOCK: call_block(e, n); break;
    case PD__JN_BREAK: e->flow = PD__JFLOW_BREAK; break;
    case PD__JN_CONTINUE: e->flow = PD__JFLOW_CONTINUE; break;
    default: pd__jfail(e, "an expression stands where a statement should"); break;
    }
}

void pd__jexec(pd__jev *e, pd__jnode *const *kid, size_t n) {
    if (e->depth >= PD_JINJA_DEPTH_MAX) {
        pd__jfail(e, "it is nested more than %d levels deep", PD_JINJA_DEPTH_MAX);
        return;
    }
    e->depth++;
    for (size_t i = 0; i < n && e->flow == PD__JFLOW_ON && pd__jwork(e, 1); i++) {
        e->line = kid[i]->line;
        exec(e, kid[i]);
    }
    e->depth--;
}
