/* SPDX-License-Identifier: Apache-2.0 */
/* attn_pages_*: every row against attention in f64.
 *
 * Bound: a score s is off by e_s = D u sum|q k|; so is the maximum.  A weight
 * exp(s - m) is then off by (2 e_s + 4e-7 + u |s - m|) relative (the subtraction
 * rounds once), call it e_w with the largest e_s of the head; the sums add n u.
 *     |l - l'| <= (e_w + n u) l,   |acc - acc'| <= (e_w + (n + 1) u) sum w|v|
 * plus n 2^-126 for weights that may be flushed to zero.  A soft cap c moves no two
 * scores apart and is off by 6e-7 c itself: that is added to e_s. */
#include "tests/kernel/util.h"

enum { MAX_G = 16, MAX_D = 256, MAX_PAGE = 40 };

typedef struct {
    size_t n_group, k_dim, dim, first, n;
    bool f16;
    float range; /* of q */
    float cap;
} params;

typedef struct {
    float *q;
    void *pages[MAX_PAGE];
    float *value[MAX_PAGE]; /* the elements as f32, exactly */
    size_t n_page;
} cache;

static cache cache_new(pd_rng *rng, const params *p) {
    const pd_kernels ref = scalar_row();
    cache c = {.n_page = (p->first + p->n + 15) / 16};
    const size_t n = 16 * (p->k_dim + p->dim);
    c.q = random_f32(rng, p->n_group * p->k_dim, p->range);
    for (size_t i = 0; i < c.n_page; i++) {
        float *x = random_f32(rng, n, 1.0f);
        /* what is outside the range must not matter, not even NaN */
        for (size_t slot = 0; slot < 16; slot++) {
            const size_t at = 16 * i + slot;
            if (at >= p->first && at < p->first + p->n) continue;
            for (size_t d = 0; d < p->k_dim; d++) x[16 * d + slot] = slot % 2 ? NAN : INFINITY;
            for (size_t d = 0; d < p->dim; d++) x[16 * p->k_dim + slot * p->dim + d] = slot % 2 ? NAN : INFINITY;
        }
        uint16_t *h = block_new(n * sizeof *h);
        ref.f32_to_f16(x, h, n);
        if (p->f16) ref.f16_to_f32(h, x, n);
        c.value[i] = x;
        if (p->f16) {
            c.pages[i] = h;
        } else {
            block_free(h);
            c.pages[i] = block_new(n * sizeof *x);
            memcpy(c.pages[i], x, n * sizeof *x);
        }
    }
    return c;
}

static void cache_free(cache *c) {
    block_free(c->q);
    for (size_t i = 0; i < c->n_page; i++) {
        block_free(c->pages[i]);
        block_free(c->value[i]);
    }
}

static void check_head(const pd_kernels *k, const params *p, const cache *c, size_t g, float m,
                       float l, const float *acc) {
    static double s[MAX_PAGE * 16];
    const float *q = c->q + g * p->k_dim;
    double max = -INFINITY, min = INFINITY, mag = 0.0;
    for (size_t i = 0; i < p->n; i++) {
        const size_t at = p->first + i;
        double abs = 0.0;
        s[i] = 0.0;
        for (size_t d = 0; d < p->k_dim; d++) {
            const double x = (double)q[d] * c->value[at / 16][16 * d + at % 16];
            s[i] += x;
            abs += fabs(x);
        }
        if (p->cap > 0.0f) s[i] = p->cap * tanh(s[i] / p->cap);
        max = fmax(max, s[i]);
        min = fmin(min, s[i]);
        mag = fmax(mag, abs);
    }
    const double u = EPS / 2, e_s = (double)p->k_dim * u * mag + 6e-7 * p->cap;
    CHECK(near(max, m, e_s), "%s f16=%d G=%zu D=%zu first=%zu n=%zu g=%zu m want %.9g got %.9g",
          k->isa, p->f16, p->n_group, p->dim, p->first, p->n, g, max, (double)m);
    /* A row may keep a running maximum, and scale its sums whenever a page raises it: once
     * more exp and two roundings a page, whose arguments add up to at most max - min. */
    const double pages = (double)(p->n / 16);
    const double e_w = 1.01 * (2 * e_s + 4e-7 + 2 * u * (max - min) + pages * (4e-7 + 2 * u)) +
                       (double)(p->n + 1) * u;
    double sum = 0.0;
    for (size_t i = 0; i < p->n; i++) sum += s[i] = exp(s[i] - max);
    const double tiny = (double)p->n * 0x1p-126;
    CHECK(near(sum, l, e_w * sum + tiny),
          "%s f16=%d G=%zu D=%zu first=%zu n=%zu g=%zu l want %.9g got %.9g", k->isa, p->f16,
          p->n_group, p->dim, p->first, p->n, g, sum, (double)l);
    for (size_t d = 0; d < p->dim; d++) {
        double want = 0.0, abs = 0.0;
        for (size_t i = 0; i < p->n; i++) {
            const size_t at = p->first + i;
            const double x = s[i] * c->value[at / 16][16 * p->k_dim + at % 16 * p->dim + d];
            want += x;
            abs += fabs(x);
        }
        CHECK(near(want, acc[d], e_w * abs + tiny),
              "%s f16=%d G=%zu D=%zu first=%zu n=%zu g=%zu d=%zu want %.9g got %.9g bound %.3g",
              k->isa, p->f16, p->n_group, p->dim, p->first, p->n, g, d, want, (double)acc[d],
              e_w * abs);
    }
}

static void check(const pd_kernels *k, const params *p, const cache *c) {
    const size_t stride = (p->n + 15) / 16 * 16 + 16;
    float *tmp = block_new(p->n_group * stride * sizeof *tmp);
    float *m = block_new(p->n_group * sizeof *m), *l = block_new(p->n_group * sizeof *l);
    float *acc = block_new(p->n_group * p->dim * sizeof *acc);
    (p->f16 ? k->attn_pages_f16 : k->attn_pages_f32)(c->q, p->n_group, p->k_dim, p->dim,
                                                     (const void *const *)c->pages, p->first, p->n,
                                                     0, p->cap, tmp, stride, m, l, acc);
    for (size_t g = 0; g < p->n_group; g++)
        check_head(k, p, c, g, m[g], l[g], acc + g * p->dim);
    /* What will be read next is a hint and no more. */
    const void *more[2 * MAX_PAGE];
    for (size_t i = 0; i < 2 * c->n_page; i++) more[i] = c->pages[i % c->n_page];
    float *acc2 = block_new(p->n_group * p->dim * sizeof *acc2);
    (p->f16 ? k->attn_pages_f16 : k->attn_pages_f32)(c->q, p->n_group, p->k_dim, p->dim, more, p->first, p->n,
                                                     c->n_page, p->cap, tmp, stride, m, l, acc2);
    CHECK(memcmp(acc, acc2, p->n_group * p->dim * sizeof *acc) == 0,
          "%s f16=%d G=%zu D=%zu first=%zu n=%zu: pages behind the range change the result", k->isa,
          p->f16, p->n_group, p->dim, p->first, p->n);
    block_free(acc2);
    block_free(tmp);
    block_free(m);
    block_free(l);
    block_free(acc);
}

static void sweep(pd_rng *rng, params p) {
    cache c = cache_new(rng, &p);
    FOR_EACH_ROW(k, check(&k, &p, &c));
    cache_free(&c);
}

static void every_first_and_length(void **state) {
    (void)state;
    pd_rng rng = {21};
    for (size_t first = 0; first < 35; first++)
        for (size_t n = 1; n <= 50; n += first < 17 ? 1 : 7)
            for (int f16 = 0; f16 < 2; f16++)
                sweep(&rng, (params){3, 32, 32, first, n, f16, 2.0f, 0.0f});
}

static void every_group_and_dim(void **state) {
    (void)state;
    pd_rng rng = {22};
    static const size_t dims[] = {16, 32, 48, 64, 80, 96, 112, 128, 144, 256};
    for (size_t d = 0; d < LEN(dims); d++)
        for (size_t g = 1; g <= MAX_G; g++)
            for (int f16 = 0; f16 < 2; f16++)
                sweep(&rng, (params){g, dims[d], dims[d], 5, 37 + g, f16, 1.0f, 0.0f});
}

/* Scores so far apart that most weights vanish, equal scores, and tiny ones. */
static void extreme_scores(void **state) {
    (void)state;
    pd_rng rng = {23};
    static const float ranges[] = {0.0f, 1e-30f, 60.0f, 3000.0f};
    for (size_t r = 0; r < LEN(ranges); r++)
        for (int f16 = 0; f16 < 2; f16++) sweep(&rng, (params){4, 64, 64, 9, 150, f16, ranges[r], 0.0f});
}

static void soft_caps(void **state) {
    (void)state;
    pd_rng rng = {24};
    static const float caps[] = {0.5f, 5.0f, 50.0f};
    for (size_t c = 0; c < LEN(caps); c++)
        for (size_t n = 1; n <= 40; n++)
            for (int f16 = 0; f16 < 2; f16++)
                sweep(&rng, (params){3, 32, 32, n % 19, n, f16, 10.0f, caps[c]});
}

/* Keys with channels taken out, of every width; one batch and several. */
static void narrow_keys(void **state) {
    (void)state;
    pd_rng rng = {25};
    for (size_t k_dim = 1; k_dim <= 64; k_dim++)
        for (int f16 = 0; f16 < 2; f16++) {
            sweep(&rng, (params){1 + k_dim % 7, k_dim, 64, k_dim % 19, 20 + k_dim, f16, 1.0f, 0.0f});
            if (k_dim % 9 == 0) sweep(&rng, (params){3, k_dim, 128, 5, 500, f16, 1.0f, k_dim % 2 ? 5.0f : 0.0f});
        }
}

/* Longer than any batch a row takes at a time. */
static void many_pages(void **state) {
    (void)state;
    pd_rng rng = {24};
    static const size_t dims[] = {16, 64, 256};
    for (size_t d = 0; d < LEN(dims); d++)
        for (size_t n = 500; n < 620; n += 17)
            for (int f16 = 0; f16 < 2; f16++)
                sweep(&rng, (params){3, dims[d], dims[d], n % 16, n, f16, 2.0f, 0.0f});
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(soft_caps),
        cmocka_unit_test(every_first_and_length),
        cmocka_unit_test(every_group_and_dim),
        cmocka_unit_test(extreme_scores),
        cmocka_unit_test(narrow_keys),
        cmocka_unit_test(many_pages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
