/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the grammar: rules as parsed, and the automaton made of them. */
#ifndef PD_ENGINE_GRAMMAR_INTERNAL_H
#define PD_ENGINE_GRAMMAR_INTERNAL_H

#include "engine/grammar/grammar.h"

#include <stdatomic.h>

/* ---- rules ---- */

typedef enum { PD__G_SEQ, PD__G_ALT, PD__G_REPEAT, PD__G_TEXT, PD__G_SET, PD__G_REF } pd__g_kind;

enum { PD__G_FOREVER = INT32_MAX };

typedef struct {
    pd__g_kind kind;
    int32_t child, next; /* first member of SEQ, ALT, REPEAT; the one behind; -1 = none */
    int32_t min, max;    /* REPEAT; FOREVER */
    uint32_t off, len;   /* TEXT: bytes; SET: ranges */
    int32_t rule;        /* REF */
} pd__g_item;

typedef struct { uint32_t lo, hi; } pd__g_range; /* code points */

typedef struct {
    const char *name;
    size_t len;
    int32_t body;        /* -1 = not defined (yet) */
    size_t at;           /* where it was first named */
    bool is[3];          /* compile.c: what is known of it */
} pd__g_rule;

typedef struct {
    const char *text, *field;
    size_t text_len;
    pd__g_item *item;
    pd__g_range *range;
    char *bytes;
    pd__g_rule *rule;
    int32_t *slot; /* name -> rule + 1 */
    size_t n_item, n_range, n_bytes, n_rule, cap_item, cap_range, cap_bytes;
} pd__g_rules;

pd_status pd__g_rules_parse(pd__g_rules *r, pd_err *err); /* text, text_len and field are set */
void pd__g_rules_done(pd__g_rules *r);
/* "line 3, column 7: ..." */
pd_status pd__g_fail(const pd__g_rules *r, size_t at, pd_err *err, const char *what);

/* ---- the automaton ---- */

typedef enum { PD__N_RANGE, PD__N_SPLIT, PD__N_CALL, PD__N_RETURN } pd__n_kind;

typedef struct {
    uint8_t kind, lo, hi; /* RANGE: bytes */
    int32_t next;
    int32_t other;        /* SPLIT: the other way; CALL: the rule's first node */
} pd__g_node;

/* The copies that a repetition was written out as: n of them, `stride` nodes each,
 * last one first, each reads a byte or more.  A node of one, and the same node of
 * another, differ in how many copies follow and in nothing else. */
typedef struct {
    int32_t first, stride, n;
    int32_t outer; /* the copies that these are a part of, -1 = none */
} pd__g_copies;

struct pd_grammar {
    _Atomic int refs;
    pd__g_node *node;
    size_t n_node;
    int32_t start;
    uint64_t hash; /* of the nodes and the start */
    pd__g_copies *copies;
    int32_t *in; /* [n_node] the innermost copies a node is in, -1 = none; NULL = no copies */
    size_t n_copies;
};

/* The node that reads as `node` does for `bytes` bytes, of all such the last to be
 * read: with more copies behind it than that, how many does not matter. */
int32_t pd__g_clamp(const pd_grammar *g, int32_t node, size_t bytes);

/* All checks, then nodes.  EINVAL, ENOMEM. */
pd_status pd__g_compile(pd_grammar *g, pd__g_rules *r, pd_err *err);

/* ---- for mask.c ---- */

enum { PD__DEAD = -1, PD__UNKNOWN = 0xFFFF, PD__NOWHERE = 0xFFFE };

/* The state that reads as the current one does for `bytes` bytes, one for all whose
 * repetitions are counted down to different numbers that none of them reaches. */
int32_t pd__matcher_clamped(pd_matcher *m, size_t bytes);
/* The same for one number of bytes that is always the same: kept with the state. */
int32_t pd__matcher_whole(pd_matcher *m, size_t bytes);
/* Around a call that takes steps: begin; steps; again() says whether to do it all
 * anew, since a step ran into a limit and everything but the current state was
 * forgotten.  `tried`: it was done anew already, so the matcher fails. */
void pd__matcher_begin(pd_matcher *m);
bool pd__matcher_again(pd_matcher *m, bool tried);
/* The state behind `byte`, or DEAD.  Never forgets a state by itself. */
int32_t pd__matcher_step(pd_matcher *m, int32_t state, uint8_t byte);
/* [states][256], the state behind each byte: one that is found already, NOWHERE or
 * UNKNOWN.  Borrowed until the next step(). */
const uint16_t *pd__matcher_steps(const pd_matcher *m);
/* The mask of the current state, if it is kept; NULL: it is not. */
uint64_t *pd__matcher_mask_find(pd_matcher *m);
/* Room for one, no bit set; NULL: no memory.  keep() says what it is the mask of: the current
 * state, as far as `reach` bytes show it. */
uint64_t *pd__matcher_mask_room(pd_matcher *m, size_t words);
void pd__matcher_mask_keep(pd_matcher *m, const uint64_t *mask, size_t reach);

#endif
