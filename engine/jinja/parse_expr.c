/* SPDX-License-Identifier: Apache-2.0 */
/* Expressions, by Jinja's grammar: precedence from or down to postfix. */
#include "engine/jinja/parse.h"

#include <string.h>

static pd__jnode *or_if(pd__jparser *p, bool if_else);
static pd__jnode *unary(pd__jparser *p, bool filters);
static pd__jnode *primary(pd__jparser *p);
static pd__jnode *postfix(pd__jparser *p, pd__jnode *n);

/* ---- arguments ---- */

static void add_argument(pd__jparser *p, pd__jargs *a, pd__jnodes *pos, size_t *cap) {
    if (pd__jp_is_op(p, '*') || pd__jp_is_op(p, PD__JOP2('*', '*'))) {
        const bool two = p->tok->op != '*';
        if (two ? a->star2 != NULL : a->star || a->star2) {
            pd__jp_fail(p, "a call has * or ** twice", NULL);
            return;
        }
        pd__jp_next(p);
        if (two) a->star2 = pd__jp_expression(p);
        else a->star = pd__jp_expression(p);
    } else if (p->tok->kind == PD__JT_NAME && p->tok[1].kind == PD__JT_OP && p->tok[1].op == '=') {
        pd__jkeyword k = {.name = pd__jp_intern(p, p->tok->s, p->tok->n), .text = pd__jp_text_of(p, p->tok->s, p->tok->n)};
        pd__jp_next(p);
        pd__jp_next(p);
        k.val = pd__jp_expression(p);
        pd__jp_add_keyword(p, a, k, cap);
    } else {
        if (a->n_kw || a->star || a->star2) {
            pd__jp_fail(p, "a positional argument follows a named one", NULL);
            return;
        }
        pd__jp_add(p, pos, pd__jp_expression(p));
    }
}

/* "(" a, b, c=d ")" */
static pd__jargs *call_args(pd__jparser *p) {
    pd__jargs *a = pd__jp_new_args(p);
    pd__jnodes pos = {0};
    size_t cap = 0;
    if (!a || !pd__jp_need_op(p, '(')) return NULL;
    for (bool first = true; !p->failed && !pd__jp_is_op(p, ')'); first = false) {
        if (!first && !pd__jp_need_op(p, ',')) break;
        if (!first && pd__jp_is_op(p, ')')) break;
        add_argument(p, a, &pos, &cap);
    }
    if (!pd__jp_need_op(p, ')')) return NULL;
    a->pos = pos.v;
    a->n_pos = pos.n;
    return a;
}

/* ---- postfix ---- */

static pd__jnode *subscript(pd__jparser *p, pd__jnode *of) {
    pd__jnode *n = pd__jp_node(p, PD__JN_ITEM);
    pd__jnode *part[3] = {NULL, NULL, NULL};
    bool slice = false;
    pd__jp_next(p); /* [ */
    for (int i = 0; i < 3 && !p->failed; i++) {
        if (!pd__jp_is_op(p, ':') && !pd__jp_is_op(p, ']') && !pd__jp_is_op(p, ',')) part[i] = pd__jp_expression(p);
        if (!pd__jp_skip_op(p, ':')) break;
        slice = true;
    }
    if (pd__jp_is_op(p, ',')) {
        pd__jp_fail(p, "a subscript with a comma is not served", NULL);
        return NULL;
    }
    if (!p->failed && !slice && !part[0]) return pd__jp_unexpected(p, "a subscript");
    if (!pd__jp_need_op(p, ']') || !n) return NULL;
    if (slice) {
        n->kind = PD__JN_SLICE;
        n->c = part[1];
        n->d = part[2];
        pd__jp_deepen(p, n, part[1]);
        pd__jp_deepen(p, n, part[2]);
    }
    return pd__jp_with2(p, n, of, part[0]);
}

static pd__jnode *dotted(pd__jparser *p, pd__jnode *of) {
    pd__jp_next(p); /* . */
    if (p->tok->kind == PD__JT_INT) {
        pd__jnode *n = pd__jp_node(p, PD__JN_ITEM), *k = pd__jp_node(p, PD__JN_CONST);
        if (k) k->val = pd_jint(p->tok->i);
        pd__jp_next(p);
        return pd__jp_with2(p, n, of, k);
    }
    if (p->tok->kind != PD__JT_NAME) return pd__jp_unexpected(p, "a name or number");
    return pd__jp_with2(p, pd__jp_name_node(p, PD__JN_ATTR), of, NULL);
}

static pd__jnode *call(pd__jparser *p, pd__jnode *of) {
    pd__jnode *n = pd__jp_node(p, PD__JN_CALL);
    return pd__jp_with_args(p, n, of, call_args(p));
}

static pd__jnode *postfix(pd__jparser *p, pd__jnode *n) {
    while (n && !p->failed) {
        if (pd__jp_is_op(p, '.')) n = dotted(p, n);
        else if (pd__jp_is_op(p, '[')) n = subscript(p, n);
        else if (pd__jp_is_op(p, '(')) n = call(p, n);
        else break;
    }
    return n;
}

/* A filter's or test's name, dots included. */
static pd__jnode *dotted_name(pd__jparser *p, pd__jnode_kind kind) {
    pd__jnode *n = pd__jp_name_node(p, kind);
    while (n && pd__jp_is_op(p, '.')) {
        const char *from = pd__jchars(n->val);
        pd__jp_next(p);
        if (p->tok->kind != PD__JT_NAME) return pd__jp_unexpected(p, "a name");
        n->val = pd__jp_text_of(p, from, (size_t)(p->tok->s + p->tok->n - from));
        pd__jp_next(p);
    }
    return p->failed ? NULL : n;
}

static pd__jnode *filter(pd__jparser *p, pd__jnode *of) {
    pd__jnode *n = dotted_name(p, PD__JN_FILTER);
    return pd__jp_with_args(p, n, of, n && pd__jp_is_op(p, '(') ? call_args(p) : NULL);
}

/* Filters behind a block's opening: "| trim | upper". */
pd__jnode *pd__jp_filter_chain(pd__jparser *p, bool inline_first) {
    pd__jnode *n = NULL;
    while (!p->failed && (inline_first || pd__jp_skip_op(p, '|'))) {
        n = filter(p, n);
        inline_first = false;
    }
    return n;
}

static pd__jnode *test(pd__jparser *p, pd__jnode *of) {
    pd__jp_next(p); /* is */
    const bool negated = pd__jp_skip_word(p, "not");
    pd__jnode *n = dotted_name(p, PD__JN_TEST);
    pd__jargs *args = NULL;
    const pd__jtoken *t = p->tok;
    if (n && pd__jp_is_op(p, '(')) {
        args = call_args(p);
    } else if (n && (t->kind == PD__JT_STR || t->kind == PD__JT_INT || t->kind == PD__JT_FLOAT || pd__jp_is_op(p, '[') ||
                     pd__jp_is_op(p, '{') ||
                     (t->kind == PD__JT_NAME && !pd__jp_word(p, "else") && !pd__jp_word(p, "or") && !pd__jp_word(p, "and")))) {
        if (pd__jp_word(p, "is")) return pd__jp_fail(p, "tests cannot follow one another", NULL);
        pd__jnodes pos = {0};
        args = pd__jp_new_args(p);
        pd__jp_add(p, &pos, postfix(p, primary(p)));
        if (p->failed) return NULL;
        args->pos = pos.v;
        args->n_pos = pos.n;
    }
    n = pd__jp_with_args(p, n, of, args);
    return negated ? pd__jp_with2(p, pd__jp_node(p, PD__JN_NOT), n, NULL) : n;
}

/* ---- primary ---- */

static pd__jnode *constant(pd__jparser *p, pd_jval v) {
    pd__jnode *n = pd__jp_node(p, PD__JN_CONST);
    if (n) n->val = v;
    return n;
}

static pd__jnode *strings(pd__jparser *p) {
    pd__jnode *n = pd__jp_node(p, PD__JN_CONST);
    pd__jbuf b = {.h = &p->t->heap};
    const pd__jtoken *first = p->tok;
    for (; p->tok->kind == PD__JT_STR; pd__jp_next(p)) {
        if (p->tok != first || p->tok[1].kind == PD__JT_STR) pd__jbuf_add(&b, p->tok->s, p->tok->n, NULL, 0);
    }
    if (n) n->val = p->tok == first + 1 ? pd__jp_text_of(p, first->s, first->n) : pd__jbuf_str(&b);
    return p->t->heap.failed ? pd__jp_no_memory(p) : n;
}

static bool tuple_ends(const pd__jparser *p, const char *stop) {
    const int k = p->tok->kind;
    return k == PD__JT_VAR_END || k == PD__JT_BLOCK_END || k == PD__JT_END || pd__jp_is_op(p, ')') || (stop && pd__jp_word(p, stop));
}

/* "a" or "a, b": the latter is a tuple.  `stop`: a word that ends it. */
pd__jnode *pd__jp_tuple(pd__jparser *p, bool if_else, bool parens, const char *stop) {
    pd__jnode *n = pd__jp_node(p, PD__JN_TUPLE);
    pd__jnodes kids = {0};
    bool many = false;
    while (!p->failed && !tuple_ends(p, stop)) {
        pd__jp_add(p, &kids, or_if(p, if_else));
        if (!pd__jp_skip_op(p, ',')) break;
        many = true;
    }
    if (p->failed) return NULL;
    if (!many && kids.n == 1) return kids.v[0];
    if (kids.n == 0 && !parens) return pd__jp_unexpected(p, "an expression");
    return pd__jp_with_kids(p, n, kids);
}

static pd__jnode *brackets(pd__jparser *p, pd__jnode_kind kind, unsigned end) {
    pd__jnode *n = pd__jp_node(p, kind);
    pd__jnodes kids = {0};
    pd__jp_next(p);
    while (!p->failed && !pd__jp_is_op(p, end)) {
        pd__jp_add(p, &kids, pd__jp_expression(p));
        if (kind == PD__JN_DICT) {
            pd__jp_need_op(p, ':');
            pd__jp_add(p, &kids, p->failed ? NULL : pd__jp_expression(p));
        }
        if (!pd__jp_skip_op(p, ',')) break;
    }
    if (!pd__jp_need_op(p, end)) return NULL;
    return pd__jp_with_kids(p, n, kids);
}

static pd__jnode *name_or_constant(pd__jparser *p) {
    static const struct {
        const char *name;
        pd_jval val;
    } known[] = {
        {"true", {.kind = PD_JBOOL, .u.b = true}},   {"True", {.kind = PD_JBOOL, .u.b = true}},
        {"false", {.kind = PD_JBOOL, .u.b = false}}, {"False", {.kind = PD_JBOOL, .u.b = false}},
        {"none", {.kind = PD_JNONE}},                {"None", {.kind = PD_JNONE}},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (!pd__jp_word(p, known[i].name)) continue;
        pd__jp_next(p);
        return constant(p, known[i].val);
    }
    pd__jnode *n = pd__jp_name_node(p, PD__JN_NAME);
    if (n) p->t->read[n->name] = true;
    return n;
}

static pd__jnode *primary(pd__jparser *p) {
    const pd__jtoken *t = p->tok;
    pd__jnode *n = NULL;
    if (!pd__jp_enter(p)) return NULL;
    if (t->kind == PD__JT_NAME) {
        n = name_or_constant(p);
    } else if (t->kind == PD__JT_STR) {
        n = strings(p);
    } else if (t->kind == PD__JT_INT || t->kind == PD__JT_FLOAT) {
        n = constant(p, t->kind == PD__JT_INT ? pd_jint(t->i) : pd_jfloat(t->f));
        pd__jp_next(p);
    } else if (pd__jp_is_op(p, '(')) {
        pd__jp_next(p);
        n = pd__jp_tuple(p, true, true, NULL);
        if (!pd__jp_need_op(p, ')')) n = NULL;
    } else if (pd__jp_is_op(p, '[')) {
        n = brackets(p, PD__JN_LIST, ']');
    } else if (pd__jp_is_op(p, '{')) {
        n = brackets(p, PD__JN_DICT, '}');
    } else {
        pd__jp_unexpected(p, "an expression");
    }
    p->depth--;
    return p->failed ? NULL : n;
}

/* ---- operators ---- */

static pd__jnode *unary(pd__jparser *p, bool filters) {
    pd__jnode *n;
    if (!pd__jp_enter(p)) return NULL;
    if (pd__jp_is_op(p, '-') || pd__jp_is_op(p, '+')) {
        n = pd__jp_node(p, pd__jp_is_op(p, '-') ? PD__JN_NEG : PD__JN_POS);
        pd__jp_next(p);
        n = pd__jp_with2(p, n, unary(p, false), NULL);
    } else {
        n = primary(p);
    }
    n = postfix(p, n);
    while (filters && n && !p->failed) {
        if (pd__jp_is_op(p, '|')) {
            pd__jp_next(p);
            n = filter(p, n);
        } else if (pd__jp_word(p, "is")) {
            n = test(p, n);
        } else if (pd__jp_is_op(p, '(')) {
            n = call(p, n);
        } else {
            break;
        }
    }
    p->depth--;
    return p->failed ? NULL : n;
}

static pd__jnode *binary(pd__jparser *p, pd__jnode *a, pd__jnode *(*right)(pd__jparser *)) {
    pd__jnode *n = pd__jp_node(p, PD__JN_BINARY);
    if (!n) return NULL;
    n->op = p->tok->op;
    pd__jp_next(p);
    return pd__jp_with2(p, n, a, right(p));
}

static pd__jnode *plain_unary(pd__jparser *p) {
    return unary(p, true);
}

static pd__jnode *power(pd__jparser *p) {
    pd__jnode *a = unary(p, true);
    while (a && pd__jp_is_op(p, PD__JOP2('*', '*'))) a = binary(p, a, plain_unary);
    return a;
}

static pd__jnode *product(pd__jparser *p) {
    pd__jnode *a = power(p);
    while (a && (pd__jp_is_op(p, '*') || pd__jp_is_op(p, '/') || pd__jp_is_op(p, PD__JOP2('/', '/')) || pd__jp_is_op(p, '%')))
        a = binary(p, a, power);
    return a;
}

static pd__jnode *concat(pd__jparser *p) {
    pd__jnode *a = product(p);
    if (!a || !pd__jp_is_op(p, '~')) return a;
    pd__jnode *n = pd__jp_node(p, PD__JN_CONCAT);
    pd__jnodes kids = {0};
    pd__jp_add(p, &kids, a);
    while (pd__jp_skip_op(p, '~')) pd__jp_add(p, &kids, product(p));
    return pd__jp_with_kids(p, n, kids);
}

/* A long sum is one node per term in a row; it would be as deep as it is long, so
 * terms are gathered: kid[0] op_list[0] kid[1] ... */
static pd__jnode *sum(pd__jparser *p) {
    pd__jnode *a = concat(p);
    if (!a || (!pd__jp_is_op(p, '+') && !pd__jp_is_op(p, '-'))) return a;
    pd__jnode *n = pd__jp_node(p, PD__JN_BINARY);
    pd__jnodes kids = {0};
    unsigned *op = NULL;
    size_t cap = 0;
    pd__jp_add(p, &kids, a);
    while (!p->failed && (pd__jp_is_op(p, '+') || pd__jp_is_op(p, '-'))) {
        if (kids.n > cap) {
            const size_t more = cap ? 2 * cap : 4;
            unsigned *v = PD_JNEW(&p->t->heap, more, unsigned);
            if (!v) return pd__jp_no_memory(p);
            if (cap) memcpy(v, op, cap * sizeof *v);
            op = v;
            cap = more;
        }
        op[kids.n - 1] = p->tok->op;
        pd__jp_next(p);
        pd__jp_add(p, &kids, concat(p));
    }
    if (n) n->op_list = op;
    return pd__jp_with_kids(p, n, kids);
}

/* Comparisons as op: two characters, or these. */
static bool comparison(pd__jparser *p, unsigned *op) {
    static const unsigned known[] = {PD__JOP2('=', '='), PD__JOP2('!', '='), PD__JOP2('<', '='), PD__JOP2('>', '='), '<', '>'};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (!pd__jp_is_op(p, known[i])) continue;
        *op = known[i];
        pd__jp_next(p);
        return true;
    }
    if (pd__jp_skip_word(p, "in")) {
        *op = 'i';
        return true;
    }
    if (pd__jp_word(p, "not") && pd__jp_is_word(p->tok + 1, "in")) {
        pd__jp_next(p);
        pd__jp_next(p);
        *op = 'n';
        return true;
    }
    return false;
}

static pd__jnode *compare(pd__jparser *p) {
    enum { CHAIN_MAX = 16 };
    unsigned op[CHAIN_MAX], one;
    pd__jnode *a = sum(p);
    pd__jnodes kids = {0};
    while (a && !p->failed && comparison(p, &one)) {
        if (kids.n == CHAIN_MAX) return pd__jp_fail(p, "a chain of comparisons is too long", NULL);
        op[kids.n] = one;
        pd__jp_add(p, &kids, sum(p));
    }
    if (!a || kids.n == 0 || p->failed) return p->failed ? NULL : a;
    pd__jnode *n = pd__jp_node(p, PD__JN_COMPARE);
    unsigned *list = PD_JNEW(&p->t->heap, kids.n, unsigned);
    if (!n || !list) return pd__jp_no_memory(p);
    memcpy(list, op, kids.n * sizeof *list);
    n->op_list = list;
    n = pd__jp_with_kids(p, n, kids);
    return pd__jp_with2(p, n, a, NULL);
}

static pd__jnode *negation(pd__jparser *p) {
    if (!pd__jp_word(p, "not")) return compare(p);
    if (!pd__jp_enter(p)) return NULL;
    pd__jnode *n = pd__jp_node(p, PD__JN_NOT);
    pd__jp_next(p);
    n = pd__jp_with2(p, n, negation(p), NULL);
    p->depth--;
    return n;
}

/* "a and b and c" is one node of three. */
static pd__jnode *logic(pd__jparser *p, pd__jnode_kind kind) {
    const bool both = kind == PD__JN_AND;
    pd__jnode *a = both ? negation(p) : logic(p, PD__JN_AND);
    if (!a || !pd__jp_word(p, both ? "and" : "or")) return a;
    pd__jnode *n = pd__jp_node(p, kind);
    pd__jnodes kids = {0};
    pd__jp_add(p, &kids, a);
    while (!p->failed && pd__jp_skip_word(p, both ? "and" : "or")) pd__jp_add(p, &kids, both ? negation(p) : logic(p, PD__JN_AND));
    return pd__jp_with_kids(p, n, kids);
}

static pd__jnode *or_if(pd__jparser *p, bool if_else) {
    if (!pd__jp_enter(p)) return NULL;
    pd__jnode *a = logic(p, PD__JN_OR);
    while (if_else && a && !p->failed && pd__jp_skip_word(p, "if")) {
        pd__jnode *n = pd__jp_node(p, PD__JN_IF_ELSE);
        pd__jnode *cond = logic(p, PD__JN_OR), *other = NULL;
        if (pd__jp_skip_word(p, "else")) other = or_if(p, true);
        a = pd__jp_with2(p, n, a, cond);
        if (a) {
            a->c = other;
            a = pd__jp_deepen(p, a, other);
        }
    }
    p->depth--;
    return p->failed ? NULL : a;
}

pd__jnode *pd__jp_expression(pd__jparser *p) {
    return or_if(p, true);
}
