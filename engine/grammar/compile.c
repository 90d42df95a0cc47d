/* SPDX-License-Identifier: Apache-2.0 */
/* Rules to a byte automaton: what rules are (fixpoints over the rules), then
 * Thompson's construction (Thompson 1968), each part in front of what follows it.
 * Work is counted, so a small text cannot cost much time. */
#include "engine/grammar/internal.h"

#include <stdlib.h>
#include <string.h>

enum { WORK_MAX = 4000000, RETURN_NODE = 0, COPIES_MIN = 4 };

enum { ENDS, NULLABLE, SAFE }; /* derives anything; derives nothing; does not begin with itself */

typedef struct {
    pd_grammar *g;
    pd__g_rules *r;
    size_t work, cap, cap_copies;
    int32_t *member; /* sequences at work, first to last */
    size_t n_member;
    pd_err *err;
    bool failed;
} compiler;

/* ---- what rules are ---- */

static bool is(compiler *c, const pd__g_item *it, int what) {
    const pd__g_item *all = c->r->item;
    c->work++;
    switch (it->kind) {
    case PD__G_TEXT: return what != NULLABLE || it->len == 0;
    case PD__G_SET: return what == SAFE || (what == ENDS && it->len > 0);
    case PD__G_REF: return c->r->rule[it->rule].is[what];
    case PD__G_REPEAT:
        if (what == SAFE ? it->max == 0 : it->min == 0) return true;
        return is(c, &all[it->child], what);
    case PD__G_SEQ:
        for (int32_t i = it->child; i >= 0; i = all[i].next) {
            if (!is(c, &all[i], what)) return false;
            if (what == SAFE && !is(c, &all[i], NULLABLE)) break;
        }
        return true;
    case PD__G_ALT:
        for (int32_t i = it->child; i >= 0; i = all[i].next)
            if (is(c, &all[i], what) != (what == SAFE)) return what != SAFE;
        return what == SAFE;
    }
    return false;
}

static pd_status too_much(compiler *c) {
    return pd_fail(c->err, PD_EINVAL, c->r->field, "%s takes more than %d steps to compile", c->r->field, WORK_MAX);
}

/* The least fixpoint, by passes in turn from both ends. */
static pd_status settle(compiler *c, int what) {
    const size_t n = c->r->n_rule;
    bool changed = true;
    for (bool back = false; changed; back = !back) {
        changed = false;
        for (size_t k = 0; k < n; k++) {
            pd__g_rule *rule = &c->r->rule[back ? k : n - 1 - k];
            if (rule->is[what] || !is(c, &c->r->item[rule->body], what)) continue;
            rule->is[what] = changed = true;
            if (c->work > WORK_MAX) return too_much(c);
        }
        if (c->work > WORK_MAX) return too_much(c);
    }
    return PD_OK;
}

/* ---- nodes ---- */

static int32_t add(compiler *c, pd__g_node node) {
    pd_grammar *g = c->g;
    if (c->failed) return -1;
    if (g->n_node >= PD_GRAMMAR_NODES_MAX) {
        pd_fail(c->err, PD_EINVAL, c->r->field, "%s needs more than %d states: repeat less", c->r->field, PD_GRAMMAR_NODES_MAX);
        c->failed = true;
        return -1;
    }
    if (g->n_node == c->cap) {
        const size_t cap = c->cap ? c->cap * 2 : 256;
        pd__g_node *more = realloc(g->node, cap * sizeof *more);
        if (!more) {
            pd_fail(c->err, PD_ENOMEM, NULL, "no memory for a grammar");
            c->failed = true;
            return -1;
        }
        g->node = more;
        c->cap = cap;
    }
    g->node[g->n_node] = node;
    return (int32_t)g->n_node++;
}

/* One more way beside `other`; -1 = none. */
static int32_t either(compiler *c, int32_t one, int32_t other) {
    if (one < 0 || other < 0) return one < 0 ? other : one;
    return add(c, (pd__g_node){.kind = PD__N_SPLIT, .next = one, .other = other});
}

static void spell(uint32_t x, unsigned n, uint8_t *to) {
    for (unsigned i = n; i-- > 1; x >>= 6) to[i] = (uint8_t)(0x80 | (x & 0x3F));
    to[0] = (uint8_t)(n == 1 ? x : (0xF00u >> n & 0xFFu) | x);
}

/* Code points lo..hi as UTF-8: cut until the bytes vary independently. */
static int32_t add_points(compiler *c, uint32_t lo, uint32_t hi, int32_t next, int32_t others) {
    static const uint32_t last[] = {0x7F, 0x7FF, 0xD7FF, 0xDFFF, 0xFFFF};
    for (size_t i = 0; i < 5; i++)
        if (lo <= last[i] && hi > last[i]) return add_points(c, lo, last[i], next, add_points(c, last[i] + 1, hi, next, others));
    if (lo >= 0xD800 && hi <= 0xDFFF) return others;
    const unsigned n = hi < 0x80 ? 1 : hi < 0x800 ? 2 : hi < 0x10000 ? 3 : 4;
    for (unsigned i = 1; i < n; i++) {
        const uint32_t m = (1u << 6 * i) - 1;
        if ((lo & ~m) == (hi & ~m)) continue;
        if (lo & m) return add_points(c, lo, lo | m, next, add_points(c, (lo | m) + 1, hi, next, others));
        if ((hi & m) != m) return add_points(c, lo, (hi & ~m) - 1, next, add_points(c, hi & ~m, hi, next, others));
    }
    uint8_t a[4], b[4];
    spell(lo, n, a);
    spell(hi, n, b);
    for (unsigned i = n; i > 0; i--) next = add(c, (pd__g_node){.kind = PD__N_RANGE, .lo = a[i - 1], .hi = b[i - 1], .next = next});
    return either(c, next, others);
}

static int32_t emit(compiler *c, int32_t item, int32_t next);

/* The nodes from `first` on are n copies of one thing, those of its parts noted behind
 * `inner`. */
static void note_copies(compiler *c, size_t first, int32_t n, size_t inner) {
    pd_grammar *g = c->g;
    if (c->failed || n < COPIES_MIN || g->n_node == first) return;
    if (g->n_copies == c->cap_copies) {
        const size_t cap = c->cap_copies ? c->cap_copies * 2 : 16;
        pd__g_copies *more = realloc(g->copies, cap * sizeof *more);
        if (!more) {
            pd_fail(c->err, PD_ENOMEM, NULL, "no memory for a grammar");
            c->failed = true;
            return;
        }
        g->copies = more;
        c->cap_copies = cap;
    }
    for (size_t i = inner; i < g->n_copies; i++)
        if (g->copies[i].outer < 0) g->copies[i].outer = (int32_t)g->n_copies;
    g->copies[g->n_copies++] = (pd__g_copies){(int32_t)first, (int32_t)((g->n_node - first) / (size_t)n), n, -1};
}

static int32_t emit_repeat(compiler *c, const pd__g_item *it, int32_t next) {
    const bool reads = !is(c, &c->r->item[it->child], NULLABLE);
    size_t first = c->g->n_node, inner = c->g->n_copies;
    int32_t at = next;
    if (it->max == PD__G_FOREVER) {
        at = add(c, (pd__g_node){.kind = PD__N_SPLIT, .next = next, .other = next});
        const int32_t body = at < 0 ? -1 : emit(c, it->child, at);
        if (body >= 0) c->g->node[at].next = body;
    }
    for (int32_t i = it->min; it->max != PD__G_FOREVER && i < it->max && !c->failed; i++) {
        const int32_t body = emit(c, it->child, at);
        if (body < 0) break;
        at = either(c, body, next);
    }
    if (reads && it->max != PD__G_FOREVER) note_copies(c, first, it->max - it->min, inner);
    first = c->g->n_node;
    inner = c->g->n_copies;
    for (int32_t i = 0; i < it->min && at >= 0 && !c->failed; i++) at = emit(c, it->child, at);
    if (reads && at >= 0) note_copies(c, first, it->min, inner);
    return at;
}

/* The node that reads `item` and goes on at `next`; -1: it cannot be read, or a failure. */
static int32_t emit(compiler *c, int32_t item, int32_t next) {
    const pd__g_item *all = c->r->item, *it = &all[item];
    if (++c->work > WORK_MAX && !c->failed) {
        too_much(c);
        c->failed = true;
    }
    if (c->failed) return -1;
    switch (it->kind) {
    case PD__G_TEXT:
        for (uint32_t i = it->len; i > 0 && next >= 0; i--) {
            const uint8_t b = (uint8_t)c->r->bytes[it->off + i - 1];
            next = add(c, (pd__g_node){.kind = PD__N_RANGE, .lo = b, .hi = b, .next = next});
        }
        return next;
    case PD__G_SET: {
        int32_t at = -1;
        for (uint32_t i = it->len; i > 0; i--) {
            const pd__g_range *x = &c->r->range[it->off + i - 1];
            at = add_points(c, x->lo, x->hi, next, at);
        }
        return at;
    }
    case PD__G_REF:
        if (!c->r->rule[it->rule].is[ENDS]) return -1;
        return add(c, (pd__g_node){.kind = PD__N_CALL, .next = next, .other = it->rule});
    case PD__G_REPEAT: return emit_repeat(c, it, next);
    case PD__G_SEQ: {
        const size_t from = c->n_member;
        for (int32_t i = it->child; i >= 0; i = all[i].next) c->member[c->n_member++] = i;
        while (c->n_member > from) {
            const int32_t i = c->member[--c->n_member];
            if (next >= 0) next = emit(c, i, next);
        }
        return next;
    }
    case PD__G_ALT: {
        int32_t at = -1;
        for (int32_t i = it->child; i >= 0; i = all[i].next) at = either(c, emit(c, i, next), at);
        return at;
    }
    }
    return -1;
}

/* Innermost first, since those are noted first. */
static pd_status mark_copies(compiler *c) {
    pd_grammar *g = c->g;
    if (!g->n_copies) return PD_OK;
    g->in = malloc(g->n_node * sizeof *g->in);
    if (!g->in) return pd_fail(c->err, PD_ENOMEM, NULL, "no memory for a grammar");
    memset(g->in, 0xFF, g->n_node * sizeof *g->in);
    for (size_t i = 0; i < g->n_copies; i++) {
        const pd__g_copies *x = &g->copies[i];
        for (int32_t k = x->first; k < x->first + x->stride * x->n; k++)
            if (g->in[k] < 0) g->in[k] = (int32_t)i;
    }
    return PD_OK;
}

int32_t pd__g_clamp(const pd_grammar *g, int32_t node, size_t bytes) {
    for (int32_t i = g->in ? g->in[node] : -1; i >= 0; i = g->copies[i].outer) {
        const pd__g_copies *x = &g->copies[i];
        const int32_t behind = (node - x->first) / x->stride;
        if ((size_t)behind > bytes) node -= (behind - (int32_t)bytes) * x->stride;
    }
    return node;
}

static pd_status compile(compiler *c) {
    const pd__g_rules *r = c->r;
    size_t root = r->n_rule;
    for (size_t i = 0; i < r->n_rule; i++)
        if (r->rule[i].len == 4 && memcmp(r->rule[i].name, "root", 4) == 0) root = i;
    if (root == r->n_rule) return pd_fail(c->err, PD_EINVAL, r->field, "%s has no rule named root", r->field);
    PD_TRY(settle(c, ENDS));
    PD_TRY(settle(c, NULLABLE));
    PD_TRY(settle(c, SAFE));
    for (size_t i = 0; i < r->n_rule; i++)
        if (!r->rule[i].is[SAFE]) return pd__g_fail(r, r->rule[i].at, c->err, "this rule can begin with itself (left recursion)");
    if (!r->rule[root].is[ENDS]) return pd_fail(c->err, PD_EINVAL, r->field, "%s: no text ever matches root", r->field);
    c->work = 0;
    int32_t *first = malloc(r->n_rule * sizeof *first);
    c->member = malloc((r->n_item + 1) * sizeof *c->member);
    if (!first || !c->member) {
        free(first);
        return pd_fail(c->err, PD_ENOMEM, NULL, "no memory for a grammar");
    }
    add(c, (pd__g_node){.kind = PD__N_RETURN, .next = -1});
    for (size_t i = 0; i < r->n_rule && !c->failed; i++) first[i] = r->rule[i].is[ENDS] ? emit(c, r->rule[i].body, RETURN_NODE) : -1;
    for (size_t i = 0; i < c->g->n_node && !c->failed; i++)
        if (c->g->node[i].kind == PD__N_CALL) c->g->node[i].other = first[c->g->node[i].other];
    if (!c->failed) c->g->start = first[root];
    free(first);
    return c->failed ? c->err->code : mark_copies(c);
}

pd_status pd__g_compile(pd_grammar *g, pd__g_rules *r, pd_err *err) {
    pd_err own = {0};
    compiler c = {.g = g, .r = r, .err = err ? err : &own};
    const pd_status rc = compile(&c);
    free(c.member);
    return rc;
}

static uint64_t stir(uint64_t h, uint32_t v) { /* no product wraps */
    const uint64_t low = ((uint32_t)h ^ v) * UINT64_C(0x9E3779B1), high = ((uint32_t)(h >> 32) ^ v) * UINT64_C(0x85EBCA77);
    return (low << 32 | low >> 32) ^ high;
}

static uint64_t hash_of(const pd_grammar *g) {
    uint64_t h = stir(1, (uint32_t)g->start);
    for (size_t i = 0; i < g->n_node; i++) {
        const pd__g_node *n = &g->node[i];
        h = stir(h, (uint32_t)n->kind << 16 | (uint32_t)n->lo << 8 | n->hi);
        h = stir(h, (uint32_t)n->next);
        h = stir(h, (uint32_t)n->other);
    }
    return h;
}

bool pd_grammar_same(const pd_grammar *a, const pd_grammar *b) {
    if (a == b) return true;
    if (a->hash != b->hash || a->n_node != b->n_node || a->start != b->start) return false;
    for (size_t i = 0; i < a->n_node; i++) {
        const pd__g_node *x = &a->node[i], *y = &b->node[i];
        if (x->kind != y->kind || x->lo != y->lo || x->hi != y->hi || x->next != y->next || x->other != y->other) return false;
    }
    return true;
}

pd_status pd_grammar_parse(pd_grammar **ret, const char *text, size_t len, const char *field, pd_err *err) {
    pd__g_rules r = {.text = text, .text_len = len, .field = field};
    pd_grammar *g = calloc(1, sizeof *g);
    if (!g) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a grammar");
    atomic_store(&g->refs, 1);
    pd_status rc = pd__g_rules_parse(&r, err);
    if (rc == PD_OK) rc = pd__g_compile(g, &r, err);
    pd__g_rules_done(&r);
    if (rc == PD_OK) g->hash = hash_of(g);
    pd_matcher *m = NULL; /* too many ways to begin are seen here, not at the first token */
    if (rc == PD_OK) rc = pd_matcher_open(&m, g, err);
    pd_matcher_close(m);
    if (rc == PD_OK) *ret = g;
    else pd_grammar_unref(g);
    return rc;
}

void pd_grammar_ref(pd_grammar *g) {
    atomic_fetch_add_explicit(&g->refs, 1, memory_order_relaxed);
}

void pd_grammar_unref(pd_grammar *g) {
    if (!g || atomic_fetch_sub_explicit(&g->refs, 1, memory_order_acq_rel) != 1) return;
    free(g->node);
    free(g->copies);
    free(g->in);
    free(g);
}
