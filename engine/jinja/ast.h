/* SPDX-License-Identifier: Apache-2.0 */
/* What a template is parsed into.  Nodes live in the template's heap and are constant
 * after parsing; names are interned, so that two are compared by number. */
#ifndef PD_ENGINE_JINJA_AST_H
#define PD_ENGINE_JINJA_AST_H

#include "engine/jinja/value.h"

/* ---- tokens (lex.c) ---- */

typedef enum {
    PD__JT_END,
    PD__JT_DATA,        /* text between tags */
    PD__JT_VAR_BEGIN,
    PD__JT_VAR_END,
    PD__JT_BLOCK_BEGIN,
    PD__JT_BLOCK_END,
    PD__JT_NAME,
    PD__JT_STR,
    PD__JT_INT,
    PD__JT_FLOAT,
    PD__JT_OP, /* op: its characters, the second one shifted by 8 */
} pd__jtoken_kind;

#define PD__JOP2(a, b) ((unsigned)(a) | (unsigned)(b) << 8)

typedef struct {
    uint8_t kind;
    unsigned op;
    uint32_t line;
    const char *s; /* data, name, string (escapes resolved) */
    size_t n;
    int64_t i;
    double f;
} pd__jtoken;

typedef struct {
    pd__jtoken *tok; /* [n], the last is PD__JT_END */
    size_t n, cap;
} pd__jtokens;

/* Tokens point into `text` (line ends already \n) or `h`. */
pd_status pd__jlex(pd_jheap *h, const char *text, size_t n, pd__jtokens *ret, pd_err *err);

/* ---- the tree ---- */

typedef enum {
    /* expressions */
    PD__JN_CONST, /* val */
    PD__JN_NAME,  /* name */
    PD__JN_LIST,  /* kid */
    PD__JN_TUPLE, /* kid */
    PD__JN_DICT,  /* kid: key, value, key, value ... */
    PD__JN_ATTR,  /* a . val */
    PD__JN_ITEM,  /* a [ b ] */
    PD__JN_SLICE, /* a [ b : c : d ], each may be NULL but a */
    PD__JN_CALL,  /* a (args) */
    PD__JN_FILTER, /* a | val (args); a NULL: the block's text */
    PD__JN_TEST,  /* a is val (args) */
    PD__JN_NOT,   /* a */
    PD__JN_NEG,
    PD__JN_POS,
    PD__JN_BINARY,  /* a op b */
    PD__JN_CONCAT,  /* kid joined by ~ */
    PD__JN_COMPARE, /* a, then kid[i] by op_list[i] */
    PD__JN_AND,
    PD__JN_OR,
    PD__JN_IF_ELSE, /* a if b else c (c NULL: undefined) */
    /* statements */
    PD__JN_DATA,   /* val */
    PD__JN_OUTPUT, /* a */
    PD__JN_FOR,    /* for a in b if c: kid, else kid2; name 1: recursive */
    PD__JN_IF,     /* branches: kid = {cond, body BLOCK, cond, body, ...}; kid2 = else */
    PD__JN_BLOCK,  /* kid: statements, in the scope around */
    PD__JN_SCOPE,  /* kid in a scope of its own; args: `with` */
    PD__JN_SET,    /* a = b */
    PD__JN_SET_BLOCK, /* a = kid, through the filter chain b */
    PD__JN_MACRO,  /* name, args: parameters; kid */
    PD__JN_CALL_BLOCK, /* a: call; args: the caller's parameters; kid */
    PD__JN_FILTER_BLOCK, /* b: filter chain; kid */
    PD__JN_BREAK,
    PD__JN_CONTINUE,
} pd__jnode_kind;

typedef struct pd__jnode pd__jnode;

typedef struct {
    int name;
    pd_jval text;   /* the name as a string */
    pd__jnode *val; /* NULL: a parameter without a default */
} pd__jkeyword;

typedef struct {
    pd__jnode **pos; /* positional */
    size_t n_pos;
    pd__jkeyword *kw; /* by name; of a macro: its parameters */
    size_t n_kw;
    pd__jnode *star, *star2; /* *list, **dict */
} pd__jargs;

struct pd__jnode {
    uint8_t kind;
    uint16_t depth; /* levels below and this */
    uint32_t line;
    unsigned op;
    int name;
    pd_jval val;
    pd__jnode *a, *b, *c, *d;
    pd__jnode **kid, **kid2;
    unsigned *op_list;
    size_t n_kid, n_kid2;
    pd__jargs *args;
};

struct pd_jinja {
    pd_jheap heap;
    pd__jnode *root; /* BLOCK */
    pd__jstr *name;  /* interned: [n_name] */
    size_t n_name, cap_name;
    bool *read;      /* [n_name]: used as a variable */
    int word_loop, word_caller, word_varargs, word_kwargs; /* names that the interpreter gives; -1: not in the template */
};

pd_status pd__jparse(pd_jinja *t, const pd__jtokens *tokens, pd_err *err);
int pd__jname_find(const pd_jinja *t, const char *s, size_t n); /* -1 if the template has it not */

#endif
