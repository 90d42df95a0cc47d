/* SPDX-License-Identifier: Apache-2.0 */
/* Statements, and with them a whole template. */
#include "engine/jinja/parse.h"

#include <stdio.h>
#include <string.h>

static pd__jnode *statements(pd__jparser *p, const char *const *end);

/* ---- statements ---- */

static bool block_end(pd__jparser *p) {
    if (p->failed) return false;
    if (p->tok->kind != PD__JT_BLOCK_END) {
        pd__jp_unexpected(p, "%}");
        return false;
    }
    pd__jp_next(p);
    return true;
}

/* The body up to {% word %}, whose word is not yet gone over. */
static pd__jnode *body(pd__jparser *p, const char *const *end) {
    if (!block_end(p)) return NULL;
    return statements(p, end);
}

/* The body up to {% endX %}, gone over. */
static pd__jnode *whole_body(pd__jparser *p, const char *end) {
    const char *const ends[] = {end, NULL};
    pd__jnode *b = body(p, ends);
    if (b) pd__jp_next(p);
    return b;
}

/* A name, a tuple of targets, or (where `ns`) name.attribute. */
static pd__jnode *target_part(pd__jparser *p, bool ns) {
    if (pd__jp_skip_op(p, '(')) {
        pd__jnode *n = pd__jp_node(p, PD__JN_TUPLE);
        pd__jnodes kids = {0};
        if (!pd__jp_enter(p)) return NULL;
        while (!p->failed && !pd__jp_is_op(p, ')')) {
            pd__jp_add(p, &kids, target_part(p, ns));
            if (!pd__jp_skip_op(p, ',')) break;
        }
        p->depth--;
        pd__jp_need_op(p, ')');
        return pd__jp_with_kids(p, n, kids);
    }
    pd__jnode *n = pd__jp_name_node(p, PD__JN_NAME);
    if (n && (pd__jis(n->val, "true") || pd__jis(n->val, "false") || pd__jis(n->val, "none") || pd__jis(n->val, "True") ||
              pd__jis(n->val, "False") || pd__jis(n->val, "None")))
        return pd__jp_fail(p, "a constant cannot be assigned to", NULL);
    if (n && ns && pd__jp_skip_op(p, '.')) return pd__jp_with2(p, pd__jp_name_node(p, PD__JN_ATTR), n, NULL);
    return n;
}

static pd__jnode *target(pd__jparser *p, bool ns) {
    pd__jnode *n = pd__jp_node(p, PD__JN_TUPLE);
    pd__jnodes kids = {0};
    pd__jp_add(p, &kids, target_part(p, ns));
    if (!pd__jp_is_op(p, ',')) return p->failed ? NULL : kids.v[0];
    while (!p->failed && pd__jp_skip_op(p, ',')) {
        if (pd__jp_word(p, "in") || pd__jp_is_op(p, '=')) break;
        pd__jp_add(p, &kids, target_part(p, ns));
    }
    return pd__jp_with_kids(p, n, kids);
}

static pd__jnode *for_loop(pd__jparser *p) {
    static const char *const ends[] = {"else", "endfor", NULL};
    pd__jnode *n = pd__jp_node(p, PD__JN_FOR), *cond = NULL, *b, *other = NULL;
    pd__jnode *to = target(p, false);
    if (!p->failed && !pd__jp_skip_word(p, "in")) return pd__jp_unexpected(p, "'in'");
    pd__jnode *over = pd__jp_tuple(p, false, false, "recursive");
    if (pd__jp_skip_word(p, "if")) cond = pd__jp_expression(p);
    const bool recursive = pd__jp_skip_word(p, "recursive");
    p->loops++;
    b = body(p, ends);
    p->loops--;
    if (b && pd__jp_word(p, "else")) {
        pd__jp_next(p);
        other = whole_body(p, "endfor");
    } else {
        pd__jp_next(p);
    }
    n = pd__jp_with2(p, n, to, over);
    if (!n || !b) return NULL;
    n->c = cond;
    n->name = recursive ? 1 : 0;
    n->kid = b->kid;
    n->n_kid = b->n_kid;
    n->kid2 = other ? other->kid : NULL;
    n->n_kid2 = other ? other->n_kid : 0;
    pd__jp_deepen(p, n, cond);
    pd__jp_deepen(p, n, other);
    return pd__jp_deepen(p, n, b);
}

static pd__jnode *if_block(pd__jparser *p) {
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    pd__jnode *n = pd__jp_node(p, PD__JN_IF), *other = NULL;
    pd__jnodes kids = {0};
    for (;;) {
        pd__jp_add(p, &kids, pd__jp_tuple(p, false, false, NULL));
        pd__jp_add(p, &kids, body(p, ends));
        if (p->failed) return NULL;
        if (!pd__jp_skip_word(p, "elif")) break;
    }
    if (pd__jp_skip_word(p, "else")) other = whole_body(p, "endif");
    else pd__jp_next(p);
    n = pd__jp_with_kids(p, n, kids);
    if (!n) return NULL;
    if (other) {
        n->kid2 = other->kid;
        n->n_kid2 = other->n_kid;
    }
    return pd__jp_deepen(p, n, other);
}

static pd__jnode *set(pd__jparser *p) {
    pd__jnode *n = pd__jp_node(p, PD__JN_SET), *to = target(p, true);
    if (pd__jp_skip_op(p, '=')) return pd__jp_with2(p, n, to, pd__jp_tuple(p, true, false, NULL));
    pd__jnode *chain = pd__jp_filter_chain(p, false);
    pd__jnode *b = whole_body(p, "endset");
    n = pd__jp_with2(p, n, to, chain);
    if (!n || !b) return NULL;
    n->kind = PD__JN_SET_BLOCK;
    n->kid = b->kid;
    n->n_kid = b->n_kid;
    return pd__jp_deepen(p, n, b);
}

/* "(a, b=1)" of a macro or a caller. */
static pd__jargs *parameters(pd__jparser *p) {
    pd__jargs *a = pd__jp_new_args(p);
    size_t cap = 0;
    if (!pd__jp_need_op(p, '(')) return NULL;
    while (!p->failed && !pd__jp_is_op(p, ')')) {
        if (a->n_kw && !pd__jp_need_op(p, ',')) break;
        pd__jnode *name = pd__jp_name_node(p, PD__JN_NAME);
        if (!name) return NULL;
        pd__jkeyword k = {.name = name->name, .text = name->val};
        if (pd__jp_skip_op(p, '=')) k.val = pd__jp_expression(p);
        else if (a->n_kw && a->kw[a->n_kw - 1].val) return pd__jp_fail(p, "a parameter without a default follows one with", NULL);
        pd__jp_add_keyword(p, a, k, &cap);
    }
    return pd__jp_need_op(p, ')') ? a : NULL;
}

static pd__jnode *with_body(pd__jparser *p, pd__jnode *n, const char *end) {
    const unsigned loops = p->loops;
    p->loops = 0; /* break cannot leave a macro */
    pd__jnode *b = whole_body(p, end);
    p->loops = loops;
    if (!n || !b || p->failed) return NULL;
    n->kid = b->kid;
    n->n_kid = b->n_kid;
    return pd__jp_deepen(p, n, b);
}

static pd__jnode *macro(pd__jparser *p) {
    pd__jnode *n = pd__jp_name_node(p, PD__JN_MACRO);
    if (n) n->args = parameters(p);
    if (p->failed) return NULL;
    n->depth = (uint16_t)(pd__jp_args_depth(n->args) + 1);
    return with_body(p, n, "endmacro");
}

static pd__jnode *call_block(pd__jparser *p) {
    pd__jnode *n = pd__jp_node(p, PD__JN_CALL_BLOCK);
    pd__jargs *args = pd__jp_is_op(p, '(') ? parameters(p) : pd__jp_new_args(p);
    pd__jnode *c = pd__jp_expression(p);
    if (p->failed) return NULL;
    if (c->kind != PD__JN_CALL) return pd__jp_fail(p, "{% call %} needs a call", NULL);
    n = pd__jp_with_args(p, n, c, args);
    return with_body(p, n, "endcall");
}

static pd__jnode *filter_block(pd__jparser *p) {
    pd__jnode *n = pd__jp_node(p, PD__JN_FILTER_BLOCK);
    n = pd__jp_with2(p, n, NULL, pd__jp_filter_chain(p, true));
    return with_body(p, n, "endfilter");
}

static pd__jnode *with(pd__jparser *p) {
    pd__jnode *n = pd__jp_node(p, PD__JN_SCOPE);
    pd__jargs *args = pd__jp_new_args(p);
    size_t cap = 0;
    while (!p->failed && p->tok->kind != PD__JT_BLOCK_END) {
        if (args->n_kw && !pd__jp_need_op(p, ',')) break;
        pd__jnode *name = pd__jp_name_node(p, PD__JN_NAME);
        if (!name || !pd__jp_need_op(p, '=')) break;
        pd__jp_add_keyword(p, args, (pd__jkeyword){.name = name->name, .text = name->val, .val = pd__jp_expression(p)}, &cap);
    }
    const unsigned loops = p->loops;
    pd__jnode *b = p->failed ? NULL : whole_body(p, "endwith");
    p->loops = loops;
    n = pd__jp_with_args(p, n, NULL, args);
    if (!n || !b) return NULL;
    n->kid = b->kid;
    n->n_kid = b->n_kid;
    return pd__jp_deepen(p, n, b);
}

/* {% generation %}, {% block x %}, {% autoescape %}: what is inside counts. */
static pd__jnode *scope(pd__jparser *p, const char *end) {
    pd__jnode *n = pd__jp_node(p, PD__JN_SCOPE);
    const bool block = strcmp(end, "endblock") == 0;
    if (block) pd__jp_name_node(p, PD__JN_NAME);
    if (strcmp(end, "endautoescape") == 0) pd__jp_expression(p);
    pd__jnode *b = whole_body(p, end);
    if (block && p->tok->kind == PD__JT_NAME) pd__jp_next(p);
    if (!n || !b || p->failed) return NULL;
    n->kid = b->kid;
    n->n_kid = b->n_kid;
    return pd__jp_deepen(p, n, b);
}

/* {% print a, b %} writes one after the other. */
static pd__jnode *print(pd__jparser *p) {
    pd__jnode *n = pd__jp_node(p, PD__JN_BLOCK);
    pd__jnodes kids = {0};
    do {
        pd__jnode *one = pd__jp_node(p, PD__JN_OUTPUT);
        pd__jp_add(p, &kids, pd__jp_with2(p, one, pd__jp_expression(p), NULL));
    } while (!p->failed && pd__jp_skip_op(p, ','));
    return pd__jp_with_kids(p, n, kids);
}

static pd__jnode *statement(pd__jparser *p) {
    const pd__jtoken *t = p->tok;
    if (t->kind != PD__JT_NAME) return pd__jp_unexpected(p, "a tag's name");
    pd__jp_next(p);
    if (pd__jp_is_word(t, "for")) return for_loop(p);
    if (pd__jp_is_word(t, "if")) return if_block(p);
    if (pd__jp_is_word(t, "set")) return set(p);
    if (pd__jp_is_word(t, "macro")) return macro(p);
    if (pd__jp_is_word(t, "call")) return call_block(p);
    if (pd__jp_is_word(t, "filter")) return filter_block(p);
    if (pd__jp_is_word(t, "with")) return with(p);
    if (pd__jp_is_word(t, "generation")) return scope(p, "endgeneration");
    if (pd__jp_is_word(t, "block")) return scope(p, "endblock");
    if (pd__jp_is_word(t, "autoescape")) return scope(p, "endautoescape");
    if (pd__jp_is_word(t, "print")) return print(p);
    p->tok = t;
    if (pd__jp_is_word(t, "break") || pd__jp_is_word(t, "continue")) {
        if (!p->loops) return pd__jp_fail(p, "break or continue outside a loop", NULL);
        pd__jp_next(p);
        return pd__jp_node(p, pd__jp_is_word(t, "break") ? PD__JN_BREAK : PD__JN_CONTINUE);
    }
    char name[48];
    snprintf(name, sizeof name, "%.*s", (int)(t->n < 40 ? t->n : 40), t->s);
    return pd__jp_fail(p, "unknown tag ", name);
}

static bool ends_here(const pd__jparser *p, const char *const *end) {
    for (; end && *end; end++) {
        if (pd__jp_word(p, *end)) return true;
    }
    return false;
}

/* Up to one of `end` (its {% gone over, its word not) or, where NULL, the template's end. */
static pd__jnode *statements(pd__jparser *p, const char *const *end) {
    pd__jnode *b = pd__jp_node(p, PD__JN_BLOCK);
    pd__jnodes kids = {0};
    if (!pd__jp_enter(p)) return NULL;
    while (!p->failed) {
        const pd__jtoken *t = p->tok;
        if (t->kind == PD__JT_END) {
            if (!end) break;
            char text[40];
            while (end[1]) end++; /* the last one closes the tag */
            snprintf(text, sizeof text, "{%% %s %%} is missing", *end);
            pd__jp_fail(p, text, NULL);
        } else if (t->kind == PD__JT_DATA) {
            pd__jnode *n = pd__jp_node(p, PD__JN_DATA);
            if (n) n->val = pd__jp_text_of(p, t->s, t->n);
            pd__jp_add(p, &kids, n);
            pd__jp_next(p);
        } else if (t->kind == PD__JT_VAR_BEGIN) {
            pd__jnode *n = pd__jp_node(p, PD__JN_OUTPUT);
            pd__jp_next(p);
            pd__jp_add(p, &kids, pd__jp_with2(p, n, pd__jp_tuple(p, true, false, NULL), NULL));
            if (!p->failed && p->tok->kind != PD__JT_VAR_END) pd__jp_unexpected(p, "}}");
            pd__jp_next(p);
        } else {
            pd__jp_next(p); /* {% */
            if (ends_here(p, end)) break;
            pd__jp_add(p, &kids, statement(p));
            block_end(p);
        }
    }
    p->depth--;
    return pd__jp_with_kids(p, b, kids);
}

pd_status pd__jparse(pd_jinja *t, const pd__jtokens *tokens, pd_err *err) {
    pd_err none = {0};
    pd__jparser p = {.t = t, .tok = tokens->tok, .err = err ? err : &none};
    t->root = statements(&p, NULL);
    return p.failed ? p.err->code : PD_OK;
}
