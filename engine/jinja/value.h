/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the interpreter: what values are made of, and Python's rules for them.
 *
 *   heap.c    memory               value.c   making, comparing, truth
 *   text.c    strings being built, and what str() and repr() write
 *   lex.c  parse*.c ->  ast.h      eval.c    expressions     exec.c  statements
 *   filters.c  filters_seq.c  tests.c  methods.c  globals.c  json.c  format.c
 *   jinja.c   compile and render
 *
 * Nothing here is for other folders. */
#ifndef PD_ENGINE_JINJA_VALUE_H
#define PD_ENGINE_JINJA_VALUE_H

#include "engine/jinja/jinja.h"

/* n bytes with an origin each, or (org NULL) all of the value's.  A long one may have
 * room behind it that the next `s + more` takes, so that a text built up piece by piece is
 * not copied for each: the first to come gets it, which *used tells (its bytes are n of
 * this string, then of the longer one). */
typedef struct pd__jstr {
    const char *s;
    size_t n;
    const uint16_t *org;
    size_t cap, *used; /* used NULL: no room */
} pd__jstr;

typedef struct pd__jlist {
    pd_jval *v;
    size_t n, cap;
    bool spent; /* a generator that was gone through */
} pd__jlist;

typedef struct {
    pd_jval key, val;
} pd__jpair;

typedef struct pd__jdict {
    pd__jpair *v;
    size_t n, cap;
} pd__jdict;

/* Forms of a list. */
enum {
    PD__JFORM_LIST,
    PD__JFORM_TUPLE,
    PD__JFORM_RANGE,
    PD__JFORM_VIEW,      /* dict.items() and its like: has a length, no index */
    PD__JFORM_GENERATOR, /* map, select ...: neither, always true, once */
};
/* Forms of a string. */
enum { PD__JFORM_TEXT, PD__JFORM_MARKUP };
/* Forms of an undefined value: u.str is the name, and of what it was missing. */
enum { PD__JFORM_NAME, PD__JFORM_ATTRIBUTE /* origin: the owner's pd_jkind */ };

/* ---- strings being built (text.c) ---- */

typedef struct pd__jbuf {
    pd_jheap *h;
    char *s;
    uint16_t *org; /* NULL while all bytes are of `uniform` */
    size_t n, cap;
    size_t *used; /* of the string it goes on with, or NULL */
    uint16_t uniform;
} pd__jbuf;

/* b, all zero but for h, begins with `str`: in place where it may.  Gives the bytes copied. */
size_t pd__jbuf_on(pd__jbuf *b, pd_jval str);

void pd__jbuf_add(pd__jbuf *b, const char *s, size_t n, const uint16_t *org, uint16_t origin);
void pd__jbuf_lit(pd__jbuf *b, const char *s, uint16_t origin);
/* Bytes [from, to) of a string value. */
void pd__jbuf_sub(pd__jbuf *b, pd_jval str, size_t from, size_t to);
pd_jval pd__jbuf_str(const pd__jbuf *b); /* shares the memory: b is done with */

/* Python's str() and repr(), appended.  False: nested too deep. */
bool pd__jput(pd__jbuf *b, pd_jval v);
bool pd__jput_repr(pd__jbuf *b, pd_jval v, unsigned depth);
size_t pd__jfloat_text(double f, char dst[40]); /* repr(float) */
/* The letter behind the \\ of a short escape (n, r, t; JSON's b, f too), 0: none. */
char pd__jshort_escape(uint32_t cp, bool json);

pd_jval pd__jsub(pd_jheap *h, pd_jval str, size_t from, size_t to); /* a slice by bytes */
pd_jval pd__jtext(pd_jheap *h, const char *s); /* a copy, the template's */

static inline const char *pd__jchars(pd_jval str) {
    return str.u.str->s;
}
static inline size_t pd__jbytes(pd_jval str) {
    return str.u.str->n;
}

/* Code points, and the byte offset of the k-th (k at most their number). */
size_t pd__jcp_count(const char *s, size_t n);
size_t pd__jcp_at(const char *s, size_t n, size_t k);
bool pd__jis_space(uint32_t cp); /* str.isspace */
/* Where the line that holds byte i ends, and where the next one starts, as
 * str.splitlines has it: equal if there is none. */
size_t pd__jline_end(const char *s, size_t n, size_t i, size_t *after);

/* ---- rules (value.c) ---- */

pd_jval pd__jundefined(const pd__jstr *name);
pd_jval pd__jno_attribute(const pd__jstr *name, unsigned owner_kind);
const char *pd__jkind_name(pd_jval v); /* as Python calls the type */
bool pd__jtruth(pd_jval v);
bool pd__jis_number(pd_jval v);   /* bool included, as in Python */
double pd__jnumber(pd_jval v);
/* Nested too deep counts as different, and so does what takes longer than a template may
 * (h->compared; two lists can share their parts so that all ways through them are endless). */
bool pd__jequal(pd_jheap *h, pd_jval a, pd_jval b, unsigned depth);
/* <0, 0, >0; false if Python cannot order them. */
bool pd__jcompare(pd_jheap *h, pd_jval a, pd_jval b, int *ret, unsigned depth);
bool pd__jis(pd_jval str, const char *s);
const pd_jval *pd__jfind(pd_jheap *h, pd_jval dict, pd_jval key);
void pd__jset(pd_jheap *h, pd_jval dict, pd_jval key, pd_jval v);

#endif
