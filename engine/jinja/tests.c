/* SPDX-License-Identifier: Apache-2.0 */
/* "is" tests, each Jinja's of that name. */
#include "engine/jinja/eval.h"

#include "engine/base/utf8.h"

#include <math.h>
#include <string.h>
#include <utf8proc.h>

typedef struct {
    pd__jev *e;
    pd_jval self, arg; /* arg is missing where none is given */
} subject;

static bool is_defined(const subject *s) {
    return s->self.kind != PD_JUNDEFINED;
}

static bool is_undefined(const subject *s) {
    return s->self.kind == PD_JUNDEFINED;
}

static bool is_none(const subject *s) {
    return s->self.kind == PD_JNONE;
}

static bool is_boolean(const subject *s) {
    return s->self.kind == PD_JBOOL;
}

static bool is_true(const subject *s) {
    return s->self.kind == PD_JBOOL && s->self.u.b;
}

static bool is_false(const subject *s) {
    return s->self.kind == PD_JBOOL && !s->self.u.b;
}

static bool is_integer(const subject *s) {
    return s->self.kind == PD_JINT;
}

static bool is_float(const subject *s) {
    return s->self.kind == PD_JFLOAT;
}

static bool is_number(const subject *s) {
    return pd__jis_number(s->self);
}

static bool is_string(const subject *s) {
    return s->self.kind == PD_JSTR;
}

static bool is_mapping(const subject *s) {
    return s->self.kind == PD_JDICT;
}

/* An undefined value has a length, 0, and can be gone through. */
static bool is_sequence(const subject *s) {
    const pd_jval v = s->self;
    return v.kind == PD_JSTR || v.kind == PD_JDICT || v.kind == PD_JUNDEFINED || (v.kind == PD_JLIST && v.form <= PD__JFORM_RANGE);
}

static bool is_iterable(const subject *s) {
    const pd_jval v = s->self;
    return v.kind == PD_JSTR || v.kind == PD_JDICT || v.kind == PD_JUNDEFINED || v.kind == PD_JLIST || v.kind == PD__JLOOP;
}

static bool is_callable(const subject *s) {
    const int k = s->self.kind;
    return k == PD__JFUNCTION || k == PD__JMETHOD || k == PD__JMACRO || k == PD__JLOOP || k == PD__JJOINER;
}

static bool is_escaped(const subject *s) {
    return s->self.kind == PD_JSTR && s->self.form == PD__JFORM_MARKUP;
}

static bool cased(const subject *s, bool upper) {
    const pd_jval str = pd__jas_str(s->e, s->self);
    bool some = false;
    if (str.kind != PD_JSTR) return false;
    for (size_t i = 0, len; i < pd__jbytes(str); i += len) {
        uint32_t cp = 0;
        len = pd_utf8_next(pd__jchars(str) + i, pd__jbytes(str) - i, &cp);
        if (len == 0) len = 1;
        const utf8proc_category_t cat = utf8proc_category((utf8proc_int32_t)cp);
        if (cat == (upper ? UTF8PROC_CATEGORY_LL : UTF8PROC_CATEGORY_LU) || cat == UTF8PROC_CATEGORY_LT) return false;
        some = some || cat == (upper ? UTF8PROC_CATEGORY_LU : UTF8PROC_CATEGORY_LL);
    }
    return some;
}

static bool is_upper(const subject *s) {
    return cased(s, true);
}

static bool is_lower(const subject *s) {
    return cased(s, false);
}

/* ---- with an argument ---- */

static bool compared(const subject *s, bool less, bool equal) {
    int c = 0;
    if (pd__jis_missing(s->e, s->self) || pd__jis_missing(s->e, s->arg)) return false;
    if (!pd__jcompare(s->e->h, s->self, s->arg, &c, 0)) {
        pd__jfail(s->e, "'%s' and '%s' cannot be ordered", pd__jkind_name(s->self), pd__jkind_name(s->arg));
        return false;
    }
    return c == 0 ? equal : less == (c < 0);
}

static bool is_equal(const subject *s) {
    return pd__jequal(s->e->h, s->self, s->arg, 0);
}

static bool is_unequal(const subject *s) {
    return !is_equal(s);
}

static bool is_less(const subject *s) {
    return compared(s, true, false);
}

static bool is_at_most(const subject *s) {
    return compared(s, true, true);
}

static bool is_greater(const subject *s) {
    return compared(s, false, false);
}

static bool is_at_least(const subject *s) {
    return compared(s, false, true);
}

static bool is_same(const subject *s) {
    const pd_jval a = s->self, b = s->arg;
    if (a.kind != b.kind) return false;
    return a.kind == PD_JLIST || a.kind == PD_JDICT || a.kind > PD_JDICT ? a.u.p == b.u.p : pd__jequal(s->e->h, a, b, 0);
}

static bool is_in(const subject *s) {
    return pd__jcontains(s->e, s->arg, s->self);
}

static double remainder_of(const subject *s, double by) {
    if (pd__jis_missing(s->e, s->self)) return -1.0;
    if (!pd__jis_number(s->self)) pd__jfail(s->e, "a number is expected, not %s", pd__jkind_name(s->self));
    else if (by == 0.0) pd__jfail(s->e, "division by zero");
    else if (s->self.kind == PD_JINT && by == (double)(int64_t)by && by != -1.0) return (double)(s->self.u.i % (int64_t)by);
    else return fmod(pd__jnumber(s->self), by);
    return -1.0;
}

static bool is_odd(const subject *s) {
    return fabs(remainder_of(s, 2.0)) == 1.0 && s->e->rc == PD_OK;
}

static bool is_even(const subject *s) {
    return remainder_of(s, 2.0) == 0.0;
}

static bool is_divisible(const subject *s) {
    if (pd__jis_number(s->arg)) return remainder_of(s, pd__jnumber(s->arg)) == 0.0;
    pd__jfail(s->e, "divisibleby takes a number");
    return false;
}

static const struct {
    const char *name;
    bool (*is)(const subject *s);
    bool takes; /* an argument */
} tests[] = {
    {"defined", is_defined, false},     {"undefined", is_undefined, false}, {"none", is_none, false},
    {"boolean", is_boolean, false},     {"true", is_true, false},           {"false", is_false, false},
    {"integer", is_integer, false},     {"float", is_float, false},         {"number", is_number, false},
    {"string", is_string, false},       {"mapping", is_mapping, false},     {"sequence", is_sequence, false},
    {"iterable", is_iterable, false},   {"callable", is_callable, false},   {"escaped", is_escaped, false},
    {"upper", is_upper, false},         {"lower", is_lower, false},         {"odd", is_odd, false},
    {"even", is_even, false},           {"divisibleby", is_divisible, true}, {"sameas", is_same, true},
    {"in", is_in, true},                {"equalto", is_equal, true},        {"eq", is_equal, true},
    {"==", is_equal, true},             {"ne", is_unequal, true},           {"!=", is_unequal, true},
    {"lt", is_less, true},              {"lessthan", is_less, true},        {"<", is_less, true},
    {"le", is_at_most, true},           {"<=", is_at_most, true},           {"gt", is_greater, true},
    {"greaterthan", is_greater, true},  {">", is_greater, true},            {"ge", is_at_least, true},
    {">=", is_at_least, true},
};

bool pd__jtest(pd__jev *e, pd_jval name, pd_jval self, const pd__jcall *c) {
    if (!pd__jwork(e, 1)) return false;
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        if (!pd__jis(name, tests[i].name)) continue;
        if (c->n_pos + c->n_kw != (size_t)tests[i].takes) {
            pd__jfail(e, "the test '%s' takes %d argument(s), not %zu", tests[i].name, tests[i].takes, c->n_pos + c->n_kw);
            return false;
        }
        const pd_jval none = {.kind = PD__JMISSING};
        const subject s = {e, self, c->n_pos ? c->pos[0] : c->n_kw ? c->kw[0].val : none};
        return tests[i].is(&s);
    }
    pd__jfail(e, "no test named '%.*s'", (int)(pd__jbytes(name) < 60 ? pd__jbytes(name) : 60), pd__jchars(name));
    return false;
}
