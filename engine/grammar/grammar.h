/* SPDX-License-Identifier: Apache-2.0 */
/* Grammars that an answer must match, byte by byte.
 *
 *   gbnf.c     GBNF text -> rules             compile.c  rules -> byte automaton
 *   matcher.c  where one answer stands        mask.c     which tokens may come next
 *
 * A grammar is a pushdown automaton over bytes: a node reads a byte range, splits,
 * calls a rule or returns.  A matcher keeps the set of (node, stack) pairs that the
 * bytes so far allow, made deterministic as it goes.  Everything is bounded: text,
 * rules, nodes, nesting, stack depth, ambiguity, cached states. */
#ifndef PD_ENGINE_GRAMMAR_GRAMMAR_H
#define PD_ENGINE_GRAMMAR_GRAMMAR_H

#include "engine/base/err.h"
#include "engine/tokenizer/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    PD_GRAMMAR_TEXT_MAX = 1 << 20,   /* bytes of GBNF */
    PD_GRAMMAR_RULES_MAX = 4096,
    PD_GRAMMAR_NODES_MAX = 1 << 16,  /* of the automaton: repetitions are written out */
    PD_GRAMMAR_NEST_MAX = 64,        /* parentheses */
    PD_GRAMMAR_REPEAT_MAX = 16384,   /* {m,n} */
    PD_GRAMMAR_DEPTH_MAX = 256,      /* calls under way: deeper nesting is not allowed to begin */
    PD_GRAMMAR_PATHS_MAX = 2048,     /* ways to read the bytes so far, at once: more fail the matcher */
};

typedef struct pd_grammar pd_grammar;

/* GBNF, the syntax of llama.cpp's grammars; the answer is what `root` derives.
 * `field` names the text in errors.  *ret has one reference.  Rules that can never
 * end are dropped from alternatives.  Errors: EINVAL with line and column, or the
 * limit at fault; left recursion; a root that never ends; ENOMEM.  Thread: any. */
pd_status pd_grammar_parse(pd_grammar **ret, const char *text, size_t len, const char *field, pd_err *err);
void pd_grammar_ref(pd_grammar *g);
void pd_grammar_unref(pd_grammar *g); /* NULL is fine */
/* The same automaton: what was found out of one holds for the other. */
bool pd_grammar_same(const pd_grammar *a, const pd_grammar *b);

/* ---- the vocabulary as a tree of bytes ---- */

typedef struct pd_token_tree pd_token_tree;

/* Every token that is text; special ones and empty ones are left out.  12 bytes
 * per node and 4 per token.  Errors: ENOMEM.  Thread: any, and read by any. */
pd_status pd_token_tree_open(pd_token_tree **ret, const pd_tokenizer *tok, pd_err *err);
size_t pd_token_tree_bytes(const pd_token_tree *t);
size_t pd_token_tree_words(const pd_token_tree *t); /* of a mask: 64 tokens each */
const int32_t *pd_token_tree_ends(const pd_token_tree *t, size_t *n); /* tokens that end an answer, which are in no mask */
void pd_token_tree_close(pd_token_tree *t); /* NULL is fine */

/* ---- one answer ---- */

typedef struct pd_matcher pd_matcher;

/* At the grammar's beginning; holds a reference.  Errors: ENOMEM, EINVAL (more
 * than PATHS_MAX ways to begin).  Thread: one at a time. */
pd_status pd_matcher_open(pd_matcher **ret, pd_grammar *g, pd_err *err);
void pd_matcher_close(pd_matcher *m); /* NULL is fine */
/* For another answer: at the beginning again, with all that was found out and masks kept.
 * False: it has failed, and is of no more use. */
bool pd_matcher_restart(pd_matcher *m);
const pd_grammar *pd_matcher_grammar(const pd_matcher *m);

/* Would these bytes fit next?  A prefix of an answer is enough. */
bool pd_matcher_fits(pd_matcher *m, const char *s, size_t n);
/* Take them.  False: they do not fit, and nothing changes. */
bool pd_matcher_take(pd_matcher *m, const char *s, size_t n);
bool pd_matcher_may_end(const pd_matcher *m); /* what was taken is a whole answer */
bool pd_matcher_must_end(const pd_matcher *m); /* and nothing can follow */

/* Not NULL: a limit at run time or memory (in words) ended this matcher; nothing
 * fits any more, which says nothing about the grammar.  An answer must then fail. */
const char *pd_matcher_failed(const pd_matcher *m);
size_t pd_matcher_bytes(const pd_matcher *m); /* what it holds now */

/* One bit per token, ids of `tree` that fit next: kept per state, so borrowed until
 * the next call.  skip_space: a token's first byte does not count if it is a space
 * (the first token of an answer where the tokenizer drops it).  NULL: no memory, or
 * the matcher failed. */
const uint64_t *pd_matcher_mask(pd_matcher *m, const pd_token_tree *tree, bool skip_space);

#endif
