/* SPDX-License-Identifier: Apache-2.0 */
/* Jinja for chat templates: what models publish, read as transformers does.
 *
 *   text --compile--> pd_jinja --render(values)--> text with its sources
 *
 * The environment is that of transformers' apply_chat_template: trim_blocks and
 * lstrip_blocks on, loop controls, {% generation %} transparent, tojson without
 * HTML escapes, raise_exception and strftime_now.  Values behave as Python's do.
 *
 * Every value that a client gave carries an origin, and each byte of the output
 * knows the origin of the string it was cut from: what a message says can be told
 * from what the template says, through any chain of filters.
 *
 * A template cannot hang or exhaust the process: steps, depth, memory and output
 * are bounded, and reaching a bound is an error that names it.
 * Thread: a compiled template is constant; a heap belongs to one thread at a time. */
#ifndef PD_ENGINE_JINJA_JINJA_H
#define PD_ENGINE_JINJA_JINJA_H

#include "engine/base/err.h"
#include "engine/jinja/heap.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PD_JINJA_TEXT_MAX ((size_t)1 << 20)   /* bytes of a template */
#ifndef PD_JINJA_STEPS_MAX /* a fuzzer has less time */
#define PD_JINJA_STEPS_MAX ((uint64_t)20000000) /* a step: an expression, or 64 bytes or 16 items gone through, or 4 compared */
#endif
#define PD_JINJA_OUTPUT_MAX ((size_t)64 << 20)
enum {
    PD_JINJA_NAMES_MAX = 10000,  /* of variables, attributes and parameters; looked up one by one */
    PD_JINJA_NESTING_MAX = 200, /* of expressions and blocks in a template's text */
    PD_JINJA_DEPTH_MAX = 1000,  /* of evaluation, macros calling macros included */
    PD_JINJA_VALUE_DEPTH_MAX = 200, /* of lists in lists */
};

/* ---- values ---- */

typedef enum {
    PD_JUNDEFINED,
    PD_JNONE,
    PD_JBOOL,
    PD_JINT,
    PD_JFLOAT,
    PD_JSTR,
    PD_JLIST,
    PD_JDICT,
    /* The rest are made by templates alone. */
    PD__JNAMESPACE,
    PD__JFUNCTION,
    PD__JMETHOD,
    PD__JMACRO,
    PD__JLOOP,
    PD__JJOINER,
    PD__JMISSING, /* an argument not given */
} pd_jkind;

/* Where a value comes from.  0: the template.  1 ... PD_JORIGIN_MAX: the message
 * with this number, counted from 1.  PD_JORIGIN_OTHER: another field of the request. */
enum { PD_JORIGIN_TEMPLATE = 0, PD_JORIGIN_MAX = 0xFFFE, PD_JORIGIN_OTHER = 0xFFFF };

typedef struct pd_jval {
    uint8_t kind; /* pd_jkind */
    uint8_t form; /* of a list: tuple, generator ... (value.h) */
    uint16_t origin;
    union {
        bool b;
        int64_t i;
        double f;
        const struct pd__jstr *str;
        struct pd__jlist *list;
        struct pd__jdict *dict;
        void *p;
    } u;
} pd_jval;

/* Built in a heap and living as long; strings and what they hold are borrowed (the
 * bytes well-formed UTF-8).  Out of memory is kept in heap->failed, and the value is
 * then none: build everything, test once. */
pd_jval pd_jnone(void);
pd_jval pd_jbool(bool b);
pd_jval pd_jint(int64_t i);
pd_jval pd_jfloat(double f);
pd_jval pd_jstr(pd_jheap *h, const char *s, size_t n, uint16_t origin);
pd_jval pd_jlist(pd_jheap *h, size_t cap, uint16_t origin);
pd_jval pd_jdict(pd_jheap *h, size_t cap, uint16_t origin);
void pd_jlist_add(pd_jheap *h, pd_jval list, pd_jval v);
/* `key` must not be there yet. */
void pd_jdict_add(pd_jheap *h, pd_jval dict, pd_jval key, pd_jval v);
void pd_jdict_set(pd_jheap *h, pd_jval dict, const char *key, pd_jval v); /* replaces; key is borrowed */
/* All pairs of `from` but that of `but` (NULL: all), whose keys are not there yet. */
void pd_jdict_extend(pd_jheap *h, pd_jval dict, pd_jval from, const char *but);
const pd_jval *pd_jdict_get(pd_jval dict, const char *key);              /* NULL if not there */

/* ---- templates ---- */

typedef struct pd_jinja pd_jinja;

/* Copies the text.  Errors: EINVAL "line N: ..." (no syntax of Jinja's, a tag that is
 * not served, too deep), ENOMEM. */
pd_status pd_jinja_compile(pd_jinja **ret, const char *text, size_t n, pd_err *err);
void pd_jinja_close(pd_jinja *t); /* NULL is fine */

/* True if the template speaks of this variable (`tools`, `enable_thinking` ...). */
bool pd_jinja_uses(const pd_jinja *t, const char *name);

/* A stretch of the output [begin, end). */
typedef struct {
    size_t begin, end;
    uint16_t origin; /* of the bytes; or the message whose turn wrote them */
} pd_jspan;

typedef struct {
    const char *text; /* NUL-terminated */
    size_t len;
    const pd_jspan *client; /* bytes with an origin, ascending, neighbours of one origin joined */
    size_t n_client;
    /* What was written while a loop stood at a message: headers and ends included.
     * Ascending; what no turn wrote is in no span. */
    const pd_jspan *turn;
    size_t n_turn;
} pd_jout;

/* `vars` is a dict of the template's variables, made in any heap that lives on; `now`
 * is the time strftime_now tells (0: it is not defined).  *out lives in `h`.
 * Errors: EINVAL, param "messages", with what raise_exception was given or "the chat
 * template, line N: ..."; ENOMEM. */
pd_status pd_jinja_render(const pd_jinja *t, pd_jheap *h, pd_jval vars, int64_t now, pd_jout *out, pd_err *err);

#endif
