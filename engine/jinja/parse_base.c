/* SPDX-License-Identifier: Apache-2.0 */
/* What the parser is made of: its tokens, names and nodes (see parse.h). */
#include "engine/jinja/parse.h"

#include <stdio.h>
#include <string.h>

/* ---- failing, tokens, names ---- */

void *pd__jp_fail(pd__jparser *p, const char *what, const char *detail) {
    if (!p->failed)
        pd_fail(p->err, PD_EINVAL, NULL, "line %u: %s%.60s", p->tok->line, what, detail ? detail : "");
    p->failed = true;
    return NULL;
}

void *pd__jp_no_memory(pd__jparser *p) {
    if (!p->failed) pd_fail(p->err, PD_ENOMEM, NULL, "no memory to read the chat template");
    p->failed = true;
    return NULL;
}

void *pd__jp_unexpected(pd__jparser *p, const char *wanted) {
    char text[160], is[64];
    const pd__jtoken *t = p->tok;
    switch ((pd__jtoken_kind)t->kind) {
    case PD__JT_END: snprintf(is, sizeof is, "the end of the template"); break;
    case PD__JT_NAME: snprintf(is, sizeof is, "'%.*s'", (int)(t->n < 40 ? t->n : 40), t->s); break;
    case PD__JT_OP: snprintf(is, sizeof is, t->op > 0xFF ? "'%c%c'" : "'%c'", t->op & 0xFF, t->op >> 8); break;
    case PD__JT_STR: snprintf(is, sizeof is, "a string"); break;
    case PD__JT_INT:
    case PD__JT_FLOAT: snprintf(is, sizeof is, "a number"); break;
    default: snprintf(is, sizeof is, "the end of the tag"); break;
    }
    snprintf(text, sizeof text, "%s is expected, not %s", wanted, is);
    return pd__jp_fail(p, text, NULL);
}

bool pd__jp_is_op(const pd__jparser *p, unsigned op) {
    return p->tok->kind == PD__JT_OP && p->tok->op == op;
}

bool pd__jp_is_word(const pd__jtoken *t, const char *s) {
    return t->kind == PD__JT_NAME && t->n == strlen(s) && memcmp(t->s, s, t->n) == 0;
}

bool pd__jp_word(const pd__jparser *p, const char *s) {
    return pd__jp_is_word(p->tok, s);
}

void pd__jp_next(pd__jparser *p) {
    if (p->tok->kind != PD__JT_END) p->tok++;
}

bool pd__jp_skip_op(pd__jparser *p, unsigned op) {
    if (!pd__jp_is_op(p, op)) return false;
    pd__jp_next(p);
    return true;
}

bool pd__jp_skip_word(pd__jparser *p, const char *s) {
    if (!pd__jp_word(p, s)) return false;
    pd__jp_next(p);
    return true;
}

bool pd__jp_need_op(pd__jparser *p, unsigned op) {
    if (p->failed) return false;
    const char text[] = {'\'', (char)op, '\'', 0};
    if (pd__jp_skip_op(p, op)) return true;
    pd__jp_unexpected(p, text);
    return false;
}

int pd__jname_find(const pd_jinja *t, const char *s, size_t n) {
    for (size_t i = 0; i < t->n_name; i++) {
        if (t->name[i].n == n && memcmp(t->name[i].s, s, n) == 0) return (int)i;
    }
    return -1;
}

int pd__jp_intern(pd__jparser *p, const char *s, size_t n) {
    pd_jinja *t = p->t;
    const int known = pd__jname_find(t, s, n);
    if (known >= 0) return known;
    if (t->n_name == PD_JINJA_NAMES_MAX) {
        pd__jp_fail(p, "the template has too many names", NULL);
        return 0;
    }
    if (t->n_name == t->cap_name) {
        const size_t cap = t->cap_name ? 2 * t->cap_name : 64;
        pd__jstr *name = PD_JNEW(&t->heap, cap, pd__jstr);
        bool *read = PD_JNEW(&t->heap, cap, bool);
        if (!name || !read) {
            pd__jp_no_memory(p);
            return 0;
        }
        memset(read, 0, cap * sizeof *read);
        if (t->n_name) {
            memcpy(name, t->name, t->n_name * sizeof *name);
            memcpy(read, t->read, t->n_name * sizeof *read);
        }
        t->name = name;
        t->read = read;
        t->cap_name = cap;
    }
    t->name[t->n_name] = (pd__jstr){.s = s, .n = n};
    return (int)t->n_name++;
}

/* ---- pd__jnodes ---- */

pd__jnode *pd__jp_node(pd__jparser *p, pd__jnode_kind kind) {
    pd__jnode *n = PD_JNEW(&p->t->heap, 1, pd__jnode);
    if (!n) return pd__jp_no_memory(p);
    memset(n, 0, sizeof *n);
    n->kind = (uint8_t)kind;
    n->line = p->tok->line;
    n->name = -1;
    return n;
}

/* Sets n->depth; NULL if it is too deep. */
pd__jnode *pd__jp_deepen(pd__jparser *p, pd__jnode *n, const pd__jnode *kid) {
    if (!n || p->failed) return NULL;
    if (kid && kid->depth >= n->depth) n->depth = (uint16_t)(kid->depth + 1);
    if (n->depth > PD_JINJA_NESTING_MAX) return pd__jp_fail(p, "the template is nested too deep", NULL);
    return n;
}

pd__jnode *pd__jp_with2(pd__jparser *p, pd__jnode *n, pd__jnode *a, pd__jnode *b) {
    if (!n || p->failed) return NULL;
    n->a = a;
    n->b = b;
    pd__jp_deepen(p, n, a);
    return pd__jp_deepen(p, n, b);
}

/* A list of pd__jnodes that grows. */
typedef struct {
    pd__jnode **v;
    size_t n, cap;
} nodes;

void pd__jp_add(pd__jparser *p, pd__jnodes *l, pd__jnode *n) {
    if (p->failed || !n) return;
    if (l->n == l->cap) {
        const size_t cap = l->cap ? 2 * l->cap : 4;
        pd__jnode **v = PD_JNEW(&p->t->heap, cap, pd__jnode *);
        if (!v) {
            pd__jp_no_memory(p);
            return;
        }
        if (l->n) memcpy(v, l->v, l->n * sizeof *v);
        l->v = v;
        l->cap = cap;
    }
    l->v[l->n++] = n;
}

pd__jnode *pd__jp_with_kids(pd__jparser *p, pd__jnode *n, pd__jnodes kids) {
    if (!n || p->failed) return NULL;
    n->kid = kids.v;
    n->n_kid = kids.n;
    for (size_t i = 0; i < kids.n; i++) pd__jp_deepen(p, n, kids.v[i]);
    return p->failed ? NULL : n;
}

bool pd__jp_enter(pd__jparser *p) {
    if (p->failed) return false;
    if (p->depth == PD_JINJA_NESTING_MAX) {
        pd__jp_fail(p, "the template is nested too deep", NULL);
        return false;
    }
    p->depth++;
    return true;
}

pd_jval pd__jp_text_of(pd__jparser *p, const char *s, size_t n) {
    const pd_jval v = pd_jstr(&p->t->heap, s, n, PD_JORIGIN_TEMPLATE);
    if (v.kind != PD_JSTR) pd__jp_no_memory(p);
    return v;
}

pd__jnode *pd__jp_name_node(pd__jparser *p, pd__jnode_kind kind) {
    if (p->tok->kind != PD__JT_NAME) return pd__jp_unexpected(p, "a name");
    pd__jnode *n = pd__jp_node(p, kind);
    if (!n) return NULL;
    n->name = pd__jp_intern(p, p->tok->s, p->tok->n);
    if (p->failed) return NULL;
    n->val = pd__jp_text_of(p, p->tok->s, p->tok->n);
    pd__jp_next(p);
    return n;
}

/* ---- arguments ---- */

void pd__jp_add_keyword(pd__jparser *p, pd__jargs *a, pd__jkeyword k, size_t *cap) {
    if (p->failed) return;
    if (a->n_kw == *cap) {
        const size_t more = *cap ? 2 * *cap : 4;
        pd__jkeyword *v = PD_JNEW(&p->t->heap, more, pd__jkeyword);
        if (!v) {
            pd__jp_no_memory(p);
            return;
        }
        if (a->n_kw) memcpy(v, a->kw, a->n_kw * sizeof *v);
        a->kw = v;
        *cap = more;
    }
    a->kw[a->n_kw++] = k;
}

pd__jargs *pd__jp_new_args(pd__jparser *p) {
    pd__jargs *a = PD_JNEW(&p->t->heap, 1, pd__jargs);
    if (!a) return pd__jp_no_memory(p);
    memset(a, 0, sizeof *a);
    return a;
}

uint16_t pd__jp_args_depth(const pd__jargs *a) {
    uint16_t d = 0;
    for (size_t i = 0; i < a->n_pos; i++) d = a->pos[i]->depth > d ? a->pos[i]->depth : d;
    for (size_t i = 0; i < a->n_kw; i++) d = a->kw[i].val && a->kw[i].val->depth > d ? a->kw[i].val->depth : d;
    if (a->star && a->star->depth > d) d = a->star->depth;
    return a->star2 && a->star2->depth > d ? a->star2->depth : d;
}

pd__jnode *pd__jp_with_args(pd__jparser *p, pd__jnode *n, pd__jnode *a, pd__jargs *args) {
    if (!n || p->failed) return NULL;
    n->a = a;
    n->args = args;
    if (args) n->depth = (uint16_t)(pd__jp_args_depth(args) + 1);
    return pd__jp_deepen(p, n, a);
}
