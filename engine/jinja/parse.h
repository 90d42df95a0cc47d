/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the parser: tokens to the tree, by Jinja's grammar.
 *
 * The first failure is kept; what follows gives NULL.  Recursion is bounded by
 * PD_JINJA_NESTING_MAX levels of tags and expressions, and so is the depth of the tree
 * that evaluation walks.
 *
 *   parse_base.c  tokens, names, nodes     parse_expr.c  expressions
 *   parse.c       statements, the whole */
#ifndef PD_ENGINE_JINJA_PARSE_H
#define PD_ENGINE_JINJA_PARSE_H

#include "engine/jinja/ast.h"

typedef struct {
    pd_jinja *t;
    const pd__jtoken *tok; /* the current one */
    unsigned depth, loops;
    bool failed;
    pd_err *err;
} pd__jparser;

/* A list of nodes that grows. */
typedef struct {
    pd__jnode **v;
    size_t n, cap;
} pd__jnodes;

void *pd__jp_fail(pd__jparser *p, const char *what, const char *detail); /* gives NULL, as these two */
void *pd__jp_no_memory(pd__jparser *p);
void *pd__jp_unexpected(pd__jparser *p, const char *wanted);

bool pd__jp_is_op(const pd__jparser *p, unsigned op);
bool pd__jp_is_word(const pd__jtoken *t, const char *s);
bool pd__jp_word(const pd__jparser *p, const char *s); /* is the current token this word? */
void pd__jp_next(pd__jparser *p);
bool pd__jp_skip_op(pd__jparser *p, unsigned op); /* on, if it is there */
bool pd__jp_skip_word(pd__jparser *p, const char *s);
bool pd__jp_need_op(pd__jparser *p, unsigned op);
bool pd__jp_enter(pd__jparser *p); /* a level deeper; p->depth-- leaves it */

int pd__jp_intern(pd__jparser *p, const char *s, size_t n);
pd_jval pd__jp_text_of(pd__jparser *p, const char *s, size_t n);
pd__jnode *pd__jp_node(pd__jparser *p, pd__jnode_kind kind);
pd__jnode *pd__jp_name_node(pd__jparser *p, pd__jnode_kind kind); /* of the current token */
/* n with its children, their depth counted in. */
pd__jnode *pd__jp_deepen(pd__jparser *p, pd__jnode *n, const pd__jnode *kid);
pd__jnode *pd__jp_with2(pd__jparser *p, pd__jnode *n, pd__jnode *a, pd__jnode *b);
pd__jnode *pd__jp_with_kids(pd__jparser *p, pd__jnode *n, pd__jnodes kids);
pd__jnode *pd__jp_with_args(pd__jparser *p, pd__jnode *n, pd__jnode *a, pd__jargs *args);
void pd__jp_add(pd__jparser *p, pd__jnodes *l, pd__jnode *n);

pd__jargs *pd__jp_new_args(pd__jparser *p);
void pd__jp_add_keyword(pd__jparser *p, pd__jargs *a, pd__jkeyword k, size_t *cap);
uint16_t pd__jp_args_depth(const pd__jargs *a);

pd__jnode *pd__jp_expression(pd__jparser *p);
/* "a" or "a, b": the latter is a tuple.  `stop`: a word that ends it. */
pd__jnode *pd__jp_tuple(pd__jparser *p, bool if_else, bool parens, const char *stop);
/* Filters behind a block's opening: "| trim | upper". */
pd__jnode *pd__jp_filter_chain(pd__jparser *p, bool inline_first);

#endif
