/* SPDX-License-Identifier: Apache-2.0 */
/* The loop over blocks of keys (see tile.h).
 *
 * Blocks are cut at multiples of TILE_KEYS counted from slot 0, and a lane's
 * operations are the same whichever rows lie beside it: a row's result depends
 * on that row and the keys it sees alone.  A block that no lane of a group sees
 * is skipped, and its slots past the last one seen too.
 *
 * Cost: blocks stay in L1 or L2 while all groups use them; per block a group
 * reads and writes its acc once. */
#include "engine/kernels/tile.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

enum { KEYS = PD__TILE_KEYS, PITCH_MAX = PD__TILE_LANES_MAX * PD__TILE_VEC_MAX };

typedef struct {
    const pd__tile_ops *o;
    const pd_attn_rows *t;
    size_t n_vec, n_group, pitch;
    float *qt, *acc, *m, *l, *s, *kc, *vc; /* per group: qt, acc [D][pitch]; m, l [pitch] */
} plan;

static size_t min(size_t a, size_t b) {
    return a < b ? a : b;
}

static plan plan_of(const pd__tile_ops *o, const pd_attn_rows *t) {
    plan p = {.o = o, .t = t, .pitch = o->lanes * o->max_vec};
    p.n_vec = (t->n_tok + o->lanes - 1) / o->lanes * t->n_group;
    p.n_group = (p.n_vec + o->max_vec - 1) / o->max_vec;
    const size_t rows = p.n_group * p.pitch;
    p.qt = t->tmp;
    p.acc = p.qt + rows * t->head_dim;
    p.m = p.acc + rows * t->head_dim;
    p.l = p.m + rows;
    p.s = p.l + rows;
    p.kc = p.s + (size_t)KEYS * p.pitch;
    p.vc = p.kc + (size_t)KEYS / 2 * t->head_dim;
    return p;
}

/* Vectors are (block of tokens, head), heads first, shared out evenly. */
static size_t first_vec(const plan *p, size_t group) {
    return group * p->n_vec / p->n_group;
}

/* Slots lane i of vector v sees; none for lanes past the last token. */
static void visible(const plan *p, size_t v, size_t i, size_t *lo, size_t *hi) {
    const pd_attn_rows *t = p->t;
    const size_t tok = v / t->n_group * p->o->lanes + i;
    *hi = tok < t->n_tok ? t->n_before + tok + 1 : 0;
    *lo = t->window && *hi > t->window ? *hi - t->window : 0;
}

static void pack(const plan *p) {
    const pd_attn_rows *t = p->t;
    const float *row[PD__TILE_LANES_MAX];
    for (size_t g = 0; g < p->n_group; g++) {
        const size_t v0 = first_vec(p, g);
        for (size_t v = v0; v < first_vec(p, g + 1); v++) {
            for (size_t i = 0; i < p->o->lanes; i++) { /* lanes past the end repeat the last row */
                const size_t tok = min(v / t->n_group * p->o->lanes + i, t->n_tok - 1);
                row[i] = t->q + tok * t->ld + v % t->n_group * t->head_dim;
            }
            p->o->pack(row, t->head_dim, t->scale,
                       p->qt + g * p->pitch * t->head_dim + (v - v0) * p->o->lanes);
        }
    }
}

typedef struct {
    size_t nv, n; /* vectors; slots of the block up to the last one seen */
    bool all;     /* every lane sees every slot */
    int32_t lo[PITCH_MAX], hi[PITCH_MAX];
} sight;

/* What group g sees of slots [b, b + n); n = 0 in the result: nothing. */
static void look(const plan *p, size_t g, size_t b, size_t n, sight *ret) {
    const size_t v0 = first_vec(p, g);
    ret->nv = first_vec(p, g + 1) - v0;
    ret->n = 0;
    ret->all = true;
    for (size_t v = 0; v < ret->nv; v++) {
        for (size_t i = 0; i < p->o->lanes; i++) {
            size_t lo, hi;
            visible(p, v0 + v, i, &lo, &hi);
            lo = min(lo > b ? lo - b : 0, n);
            hi = min(hi > b ? hi - b : 0, n);
            if (lo < hi && hi > ret->n) ret->n = hi;
            ret->all = ret->all && lo == 0 && hi == n;
            ret->lo[v * p->o->lanes + i] = (int32_t)lo;
            ret->hi[v * p->o->lanes + i] = (int32_t)hi;
        }
    }
}

/* Slots [*first, *end) that any row sees, *first at a block's beginning. */
static void range(const pd_attn_rows *t, size_t *first, size_t *end) {
    *end = t->n_before + t->n_tok;
    const size_t hi = t->n_before + 1;
    *first = t->window && hi > t->window ? (hi - t->window) / KEYS * KEYS : 0;
}

/* Block [b, b + n): where scores and values read it. */
static void block(const plan *p, size_t b, size_t n, const float **k, const float **v) {
    const size_t d = p->t->head_dim;
    *k = p->t->k + b * d;
    *v = p->t->v + b * d;
    if (!p->o->copy) return;
    p->o->copy(*k, *v, n, d, p->kc, p->vc);
    *k = p->kc;
    *v = p->vc;
}

static void soft_cap(const plan *p, const sight *see) {
    if (p->t->softcap > 0.0f)
        for (size_t j = 0; j < see->n; j++)
            p->o->cap(p->s + j * p->pitch, see->nv * p->o->lanes, p->t->softcap);
}

static void finish(const plan *p) {
    const pd_attn_rows *t = p->t;
    for (size_t g = 0; g < p->n_group; g++) {
        const size_t v0 = first_vec(p, g);
        for (size_t v = v0; v < first_vec(p, g + 1); v++) {
            const size_t tok = v / t->n_group * p->o->lanes, head = v % t->n_group;
            const size_t n = min(p->o->lanes, t->n_tok - tok), at = (v - v0) * p->o->lanes;
            const float *m = p->m + g * p->pitch + at, *l = p->l + g * p->pitch + at;
            float *row[PD__TILE_LANES_MAX];
            for (size_t i = 0; i < n; i++) row[i] = t->out + (tok + i) * t->ld + head * t->head_dim;
            p->o->unpack(p->acc + g * p->pitch * t->head_dim + at, t->head_dim, l, row, n);
            memcpy(t->m + head * t->ld_ml + tok, m, n * sizeof *m);
            memcpy(t->l + head * t->ld_ml + tok, l, n * sizeof *l);
        }
    }
}

void pd__attn_tile(const pd__tile_ops *o, const pd_attn_rows *t) {
    const plan p = plan_of(o, t);
    const size_t rows = p.n_group * p.pitch, d = t->head_dim;
    float scale[PITCH_MAX];
    sight see;
    pack(&p);
    memset(p.acc, 0, rows * d * sizeof *p.acc);
    for (size_t i = 0; i < rows; i++) {
        p.m[i] = -INFINITY;
        p.l[i] = 0.0f;
    }
    size_t first, end;
    range(t, &first, &end);
    for (size_t b = first; b < end; b += KEYS) {
        const size_t n = min(KEYS, end - b);
        const float *k, *v;
        block(&p, b, n, &k, &v);
        for (size_t g = 0; g < p.n_group; g++) {
            look(&p, g, b, n, &see);
            if (see.n == 0) continue;
            o->scores(p.qt + g * p.pitch * d, k, see.n, d, see.nv, p.s);
            soft_cap(&p, &see);
            o->softmax(p.s, see.n, see.nv, see.all ? NULL : see.lo, see.hi, p.m + g * p.pitch,
                       p.l + g * p.pitch, scale);
            o->values(p.s, v, see.n, d, see.nv, scale, p.acc + g * p.pitch * d);
        }
    }
    finish(&p);
}

void pd__attn_tile_sums(const pd__tile_ops *o, const pd_attn_rows *t, size_t s0, size_t s1,
                        float *sums, size_t stride) {
    const plan p = plan_of(o, t);
    const size_t d = t->head_dim;
    sight see;
    pack(&p);
    size_t first, end;
    range(t, &first, &end);
    end = min(end, s1);
    for (size_t b = first > s0 ? first : s0; b < end; b += KEYS) {
        const size_t n = min(KEYS, end - b);
        const float *k, *v;
        block(&p, b, n, &k, &v);
        for (size_t g = 0; g < p.n_group; g++) {
            look(&p, g, b, n, &see);
            if (see.n == 0) continue;
            o->scores(p.qt + g * p.pitch * d, k, see.n, d, see.nv, p.s);
            soft_cap(&p, &see);
            for (size_t i = 0; i < see.nv; i++) {
                const size_t vec = first_vec(&p, g) + i, head = vec % t->n_group;
                const size_t tok = vec / t->n_group * o->lanes;
                float m[PD__TILE_LANES_MAX], l[PD__TILE_LANES_MAX];
                for (size_t j = 0; j < o->lanes; j++) {
                    const size_t at = head * t->ld_ml + min(tok + j, t->n_tok - 1);
                    m[j] = t->m[at];
                    l[j] = t->l[at];
                }
                o->column(p.s + i * o->lanes, see.n, see.lo + i * o->lanes, see.hi + i * o->lanes,
                          m, l, sums + head * stride + b);
            }
        }
    }
}
