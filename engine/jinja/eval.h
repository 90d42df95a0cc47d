/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the interpreter: one rendering, and the doors between its files.
 *
 * The first failure is kept in the evaluator; what follows gives undefined values and
 * ends soon, since every step looks. */
#ifndef PD_ENGINE_JINJA_EVAL_H
#define PD_ENGINE_JINJA_EVAL_H

#include "engine/jinja/ast.h"

typedef struct pd__jbind {
    struct pd__jbind *next;
    int name;
    pd_jval val;
} pd__jbind;

typedef struct pd__jscope {
    struct pd__jscope *up;
    pd__jbind *first;
} pd__jscope;

typedef struct {
    const pd__jnode *node; /* PD__JN_MACRO, or the PD__JN_CALL_BLOCK whose body is the caller */
    pd__jscope *scope;     /* where it was written */
} pd__jmacro;

typedef struct pd__jloop {
    size_t i, n;
    const pd_jval *item;   /* [n] */
    pd_jval *changed;      /* what loop.changed last saw, or NULL */
    const pd__jnode *node; /* of a recursive loop, to call itself */
    pd__jscope *scope;
    unsigned depth;
} pd__jloop;

/* A method not yet called. */
typedef struct {
    pd_jval self, name;
} pd__jbound;

typedef struct {
    pd_jval name, val;
} pd__jnamed;

typedef struct {
    pd_jval *pos;
    size_t n_pos;
    pd__jnamed *kw;
    size_t n_kw;
} pd__jcall;

typedef enum { PD__JFLOW_ON, PD__JFLOW_BREAK, PD__JFLOW_CONTINUE } pd__jflow;

typedef struct pd__jev {
    const pd_jinja *t;
    pd_jheap *h;
    pd_jval vars;
    pd_err *err;
    pd_status rc;      /* the first failure */
    uint64_t steps;
    unsigned depth;
    uint32_t line;
    int64_t now;
    pd__jscope *scope;
    pd__jscope *free_scope; /* of loops gone through, to be used again */
    pd__jbind *free_bind;
    size_t n_macro;         /* made so far: their scopes stay */
    pd__jflow flow;
    pd__jbuf *out;     /* what is being written: &page, or a macro's text */
    pd__jbuf page;
    uint16_t turn;     /* the message whose loop we are in; 0 none */
    pd_jspan *turns;
    size_t n_turn, cap_turn;
} pd__jev;

/* Records EINVAL "the chat template, line N: ..."; returns an undefined value. */
pd_jval pd__jfail(pd__jev *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* For a value that pd__jput could not write. */
pd_jval pd__jtoo_deep(pd__jev *e);
/* n steps more; false if there was a failure, now or before. */
bool pd__jwork(pd__jev *e, size_t n);
static inline bool pd__jworked(pd__jev *e, size_t bytes) {
    return pd__jwork(e, 1 + bytes / 64);
}

/* eval.c */
pd_jval pd__jeval(pd__jev *e, const pd__jnode *n);
pd_jval pd__jattribute(pd__jev *e, pd_jval of, pd_jval name); /* of.name: attribute, then item */
pd_jval pd__jitem(pd__jev *e, pd_jval of, pd_jval key);       /* of[key]: item, then attribute */
pd_jval pd__jadd(pd__jev *e, pd_jval a, pd_jval b);
/* What a "for" would see; false (and failed) if it cannot be gone through. */
bool pd__jiterate(pd__jev *e, pd_jval v, const pd_jval **item, size_t *n);
bool pd__jeval_args(pd__jev *e, const pd__jargs *a, pd__jcall *ret);
pd_jval pd__jlist_of(pd__jev *e, const pd_jval *v, size_t n, unsigned form, uint16_t origin);
bool pd__jcontains(pd__jev *e, pd_jval in, pd_jval v);
/* "x is undefined", where v is: true if it failed. */
bool pd__jis_missing(pd__jev *e, pd_jval v);

/* exec.c */
void pd__jexec(pd__jev *e, pd__jnode *const *kid, size_t n);
pd_jval pd__jcall_value(pd__jev *e, pd_jval callee, const pd__jcall *c);
pd_jval pd__jloop_attribute(pd__jev *e, pd_jval loop, pd_jval name);

/* Arguments by a signature ("sep maxsplit"): slot[i] is missing where not given.
 * False (and failed) for one too many or unknown. */
bool pd__jbind_args(pd__jev *e, const char *what, const char *signature, const pd__jcall *c, pd_jval *slot);
enum { PD__JSLOT_MAX = 6 };

/* filters.c, tests.c, methods.c, globals.c */
typedef struct {
    const char *name, *signature; /* NULL: takes the call as it is */
    pd_jval (*apply)(pd__jev *e, pd_jval self, const pd_jval *slot);
    pd_jval (*apply_call)(pd__jev *e, pd_jval self, const pd__jcall *c);
} pd__jfilter_row;

extern const pd__jfilter_row pd__jfilters_text[], pd__jfilters_seq[]; /* end in a NULL name */
pd_jval pd__jfilter(pd__jev *e, pd_jval name, pd_jval self, const pd__jcall *c);
bool pd__jtest(pd__jev *e, pd_jval name, pd_jval self, const pd__jcall *c);
/* *known false: the value has no such method. */
pd_jval pd__jmethod(pd__jev *e, pd_jval self, pd_jval name, const pd__jcall *c);
bool pd__jhas_method(pd_jval self, pd_jval name);
pd_jval pd__jglobal(const char *name, size_t n); /* missing if there is none */
bool pd__jis_cycler(pd_jval v);
pd_jval pd__jcycler(pd__jev *e, pd_jval self, pd_jval name); /* .current, .next(), .reset() */
pd_jval pd__jglobal_call(pd__jev *e, pd_jval f, const pd__jcall *c);

/* Shared by filters and methods (text). */
pd_jval pd__jtrim(pd__jev *e, pd_jval str, pd_jval chars, bool left, bool right);
pd_jval pd__jreplace(pd__jev *e, pd_jval str, pd_jval from, pd_jval to, int64_t most);
pd_jval pd__jcase(pd__jev *e, pd_jval str, int how); /* 'u', 'l', 't'itle, 'c'apitalize, 's'wap */
pd_jval pd__jjoin(pd__jev *e, pd_jval over, pd_jval sep, pd_jval attribute, bool strict);
pd_jval pd__jas_str(pd__jev *e, pd_jval v); /* str() */

/* json.c: options are missing or as json.dumps takes them. */
pd_jval pd__jjson(pd__jev *e, pd_jval v, const pd_jval *slot);

/* format.c: "%s" % ..., and str.format */
pd_jval pd__jpercent(pd__jev *e, pd_jval fmt, const pd__jcall *c);
pd_jval pd__jformat(pd__jev *e, pd_jval fmt, const pd__jcall *c);

#endif
