/* SPDX-License-Identifier: Apache-2.0 */
/* attn_tile_*, attn_tile_sums_*: every row against attention in f64.
 *
 * r is the rounding of one operand: 0 in f32, u_b = 2^-8 where q, k, v and the
 * weights may become bf16.  A score is off by e_s = (2 r + r^2 + (D + 2) u)
 * sum|q k|, a maximum as well.  A weight exp(s - m) is then off by
 *     e_w = 2 e_s + e_exp + u |s - m| + 2 u |m|,   e_exp = 4e-7, or 1e-4 for bf16
 * relative (the last two: s - m may be computed as s log2 e - m log2 e), and every
 * block of slots adds one rounding of the rescaled sums (e_exp + 2 u):
 *     |l - l'| <= e_l l,     e_l = e_w + n_block (e_exp + 2 u) + n u
 *     |out - out'| <= (2 e_l + 2 r + r^2 + u) sum w|v| / l
 * plus 2^-126 for each weight that may be flushed to zero.  A soft cap c moves no two
 * scores apart and is off by 6e-7 c itself: that is added to e_s. */
#include "tests/kernel/util.h"

typedef struct {
    size_t n_tok, n_group, dim, n_before, window;
    float range; /* of q */
    bool fast;
    float cap;
} params;

typedef struct {
    pd_attn_rows t;
    float *q, *k, *v, *out, *m, *l;
} inputs;

static size_t slots(const params *p) {
    return p->n_before + p->n_tok;
}

static inputs inputs_new(pd_rng *rng, const params *p) {
    const size_t ld = p->n_group * p->dim + 3, ld_ml = p->n_tok + 1;
    inputs in = {.q = random_f32(rng, p->n_tok * ld, p->range),
                 .k = random_f32(rng, slots(p) * p->dim, 1.0f),
                 .v = random_f32(rng, slots(p) * p->dim, 1.0f),
                 .out = block_new(p->n_tok * ld * sizeof(float)),
                 .m = block_new(p->n_group * ld_ml * sizeof(float)),
                 .l = block_new(p->n_group * ld_ml * sizeof(float))};
    in.t = (pd_attn_rows){.q = in.q, .out = in.out, .k = in.k, .v = in.v, .m = in.m, .l = in.l,
                          .n_tok = p->n_tok, .n_group = p->n_group, .head_dim = p->dim, .ld = ld,
                          .ld_ml = ld_ml, .n_before = p->n_before, .window = p->window,
                          .scale = 0.125f, .softcap = p->cap};
    const size_t n = pd_attn_rows_floats(p->n_tok, p->n_group, p->dim);
    in.t.tmp = aligned_alloc(64, (n * sizeof(float) + 63) / 64 * 64);
    if (!in.t.tmp) abort();
    memset(in.t.tmp, 0xff, n * sizeof(float)); /* NaN: nothing may be taken from there */
    return in;
}

static void inputs_free(inputs *in) {
    float *const all[] = {in->q, in->k, in->v, in->out, in->m, in->l};
    for (size_t i = 0; i < LEN(all); i++) block_free(all[i]);
    free(in->t.tmp);
}

/* Row (i, g) in f64: weights into w[slot], and the bound on one of them. */
static double row_weights(const params *p, const inputs *in, size_t i, size_t g, double *w,
                          double *max, double *sum, double *e_s) {
    const double r = p->fast ? 0x1p-8 : 0.0, u = EPS / 2, e_exp = p->fast ? 1e-4 : 4e-7;
    const size_t end = p->n_before + i + 1, lo = p->window && end > p->window ? end - p->window : 0;
    const float *q = in->q + i * in->t.ld + g * p->dim;
    double min = INFINITY, mag = 0.0;
    *max = -INFINITY;
    for (size_t s = 0; s < slots(p); s++) w[s] = -INFINITY;
    for (size_t s = lo; s < end; s++) {
        double x = 0.0, abs = 0.0;
        for (size_t c = 0; c < p->dim; c++) {
            const double one = (double)q[c] * 0.125 * in->k[s * p->dim + c];
            x += one;
            abs += fabs(one);
        }
        if (p->cap > 0.0f) x = p->cap * tanh(x / p->cap);
        w[s] = x;
        mag = fmax(mag, abs);
        *max = fmax(*max, x);
        min = fmin(min, x);
    }
    *e_s = (2 * r + r * r + (double)(p->dim + 2) * u) * mag + 6e-7 * p->cap;
    *sum = 0.0;
    for (size_t s = 0; s < slots(p); s++) *sum += w[s] = exp(w[s] - *max);
    return 1.1 * (2 * *e_s + e_exp + u * (*max - min) + 2 * u * fabs(*max));
}

static void check_row(const pd_kernels *k, const params *p, const inputs *in, size_t i, size_t g) {
    static double w[1024];
    double max, sum, e_s;
    const double e_w = row_weights(p, in, i, g, w, &max, &sum, &e_s);
    const double r = p->fast ? 0x1p-8 : 0.0, u = EPS / 2, e_exp = p->fast ? 1e-4 : 4e-7;
    const double n_block = (double)(slots(p) / PD_ATTN_TILE_KEYS + 2), n = (double)slots(p);
    const double e_l = e_w + n_block * (e_exp + 2 * u) + n * u, tiny = n * 0x1p-126;
    const double m = in->m[g * in->t.ld_ml + i], l = in->l[g * in->t.ld_ml + i];
#define WHERE "%s fast=%d T=%zu G=%zu D=%zu before=%zu window=%zu i=%zu g=%zu "
#define AT k->isa, p->fast, p->n_tok, p->n_group, p->dim, p->n_before, p->window, i, g
    CHECK(near(max, m, e_s), WHERE "m want %.9g got %.9g", AT, max, m);
    CHECK(near(sum, l, e_l * sum + tiny), WHERE "l want %.9g got %.9g", AT, sum, l);
    for (size_t c = 0; c < p->dim; c++) {
        double want = 0.0, abs = 0.0;
        for (size_t s = 0; s < slots(p); s++) {
            want += w[s] / sum * in->v[s * p->dim + c];
            abs += w[s] / sum * fabs((double)in->v[s * p->dim + c]);
        }
        const double got = in->out[i * in->t.ld + g * p->dim + c];
        const double bound = (2 * e_l + 2 * r + r * r + u) * abs + tiny;
        CHECK(near(want, got, bound), WHERE "c=%zu want %.9g got %.9g bound %.3g", AT, c, want, got,
              bound);
    }
}

/* Columns, from the row's own m and l: weights e_w off, m itself e_s. */
static void check_sums(const pd_kernels *k, const params *p, inputs *in) {
    static double want[16][1024], bound[16][1024], w[1024];
    memset(want, 0, sizeof want);
    memset(bound, 0, sizeof bound);
    for (size_t g = 0; g < p->n_group; g++) {
        for (size_t i = 0; i < p->n_tok; i++) {
            double max, sum, e_s;
            const double e_w = row_weights(p, in, i, g, w, &max, &sum, &e_s);
            for (size_t s = 0; s < slots(p); s++) {
                want[g][s] += w[s] / sum;
                bound[g][s] += (2 * e_w + 20 * 1e-4 * p->fast + 1e-5) * w[s] / sum + 0x1p-120;
            }
        }
    }
    const size_t stride = slots(p) + 2;
    float *sums = block_new(p->n_group * stride * sizeof *sums);
    for (size_t i = 0; i < p->n_group * stride; i++) sums[i] = 0.5f;
    for (size_t s = 0; s < slots(p); s += 2 * PD_ATTN_TILE_KEYS)
        (p->fast ? k->attn_tile_sums_fast : k->attn_tile_sums_f32)(
            &in->t, s, s + 2 * PD_ATTN_TILE_KEYS, sums, stride);
    for (size_t g = 0; g < p->n_group; g++)
        for (size_t s = 0; s < stride; s++) {
            const double x = s < slots(p) ? want[g][s] : 0.0, b = s < slots(p) ? bound[g][s] : 0.0;
            CHECK(near(0.5 + x, sums[g * stride + s], b + 2 * EPS * (1 + x) * (double)p->n_tok),
                  WHERE "sum of slot %zu want %.9g got %.9g bound %.3g", k->isa, p->fast, p->n_tok, p->n_group, p->dim, p->n_before, p->window, (size_t)0, g, s,
                  0.5 + x, (double)sums[g * stride + s], b);
        }
    block_free(sums);
}

/* A row alone gives the bits it gave among others. */
static void check_alone(const pd_kernels *k, const params *p, const inputs *in, size_t i) {
    inputs one = *in;
    const size_t n = p->n_group * in->t.ld;
    one.t.q += i * in->t.ld;
    one.t.n_before += i;
    one.t.n_tok = 1;
    one.t.out = block_new(n * sizeof(float));
    one.t.m = block_new(n * sizeof(float));
    one.t.l = block_new(n * sizeof(float));
    (p->fast ? k->attn_tile_fast : k->attn_tile_f32)(&one.t);
    for (size_t g = 0; g < p->n_group; g++) {
        const float *a = in->out + i * in->t.ld + g * p->dim, *b = one.t.out + g * p->dim;
        CHECK(memcmp(a, b, p->dim * sizeof *a) == 0, WHERE "differs alone", AT);
        CHECK(in->m[g * in->t.ld_ml + i] == one.t.m[g * in->t.ld_ml], WHERE "m differs alone", AT);
        CHECK(in->l[g * in->t.ld_ml + i] == one.t.l[g * in->t.ld_ml], WHERE "l differs alone", AT);
    }
    block_free(one.t.out);
    block_free(one.t.m);
    block_free(one.t.l);
}

static void check(const pd_kernels *k, const params *p, inputs *in) {
    (p->fast ? k->attn_tile_fast : k->attn_tile_f32)(&in->t);
    for (size_t i = 0; i < p->n_tok; i++)
        for (size_t g = 0; g < p->n_group; g++) check_row(k, p, in, i, g);
    for (size_t i = 0; i < p->n_tok; i += 1 + p->n_tok / 3) check_alone(k, p, in, i);
    check_sums(k, p, in);
}

static void sweep(pd_rng *rng, params p) {
    for (int fast = 0; fast < 2; fast++) {
        p.fast = fast;
        inputs in = inputs_new(rng, &p);
        FOR_EACH_ROW(k, check(&k, &p, &in));
        inputs_free(&in);
    }
}

static void every_number_of_tokens(void **state) {
    (void)state;
    pd_rng rng = {31};
    for (size_t n = 1; n <= 34; n++) sweep(&rng, (params){n, 3, 32, 7 * n, 0, 8.0f, false, 0.0f});
}

static void every_group_and_dim(void **state) {
    (void)state;
    pd_rng rng = {32};
    static const size_t dims[] = {16, 48, 64, 80, 128, 256};
    for (size_t d = 0; d < LEN(dims); d++)
        for (size_t g = 1; g <= 16; g += d == 2 ? 1 : 5)
            sweep(&rng, (params){17, g, dims[d], 60, 0, 4.0f, false, 0.0f});
}

/* Windows that end inside, at and across blocks; lanes that see nothing at first. */
static void windows(void **state) {
    (void)state;
    pd_rng rng = {33};
    static const size_t window[] = {1, 2, 15, 63, 64, 65, 128, 300};
    for (size_t w = 0; w < LEN(window); w++)
        for (size_t before = 0; before < 270; before += 67)
            sweep(&rng, (params){32, 2, 16, before, window[w], 4.0f, false, 0.0f});
}

/* Scores so far apart that most weights vanish, equal ones, and tiny ones. */
static void extreme_scores(void **state) {
    (void)state;
    pd_rng rng = {34};
    static const float ranges[] = {0.0f, 1e-30f, 400.0f, 20000.0f};
    for (size_t r = 0; r < LEN(ranges); r++)
        sweep(&rng, (params){19, 4, 64, 300, 0, ranges[r], false, 0.0f});
}

static void soft_caps(void **state) {
    (void)state;
    pd_rng rng = {35};
    static const float caps[] = {0.5f, 5.0f, 50.0f};
    for (size_t c = 0; c < LEN(caps); c++)
        for (size_t n = 1; n <= 34; n += 3)
            sweep(&rng, (params){n, 3, 32, 5 * n, n % 2 ? 40 : 0, 40.0f, false, caps[c]});
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(soft_caps),
        cmocka_unit_test(every_number_of_tokens),
        cmocka_unit_test(every_group_and_dim),
        cmocka_unit_test(windows),
        cmocka_unit_test(extreme_scores),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
