/* SPDX-License-Identifier: Apache-2.0 */
/* scores_*, values_* and rows_*: every row against sums in f64 over pages written here, by the
 * layout that kernels.h tells.
 *
 * Bounds.  Scores in few bits are sums of one term a group: two roundings in each (the
 * integers are exact) and one for each addition,
 *     |s - s'| <= (D / 32 + 2) u sum|d q_d x|;        f16, f32: D u sum|q k|.
 * Values in few bits round the weight times the step, the product and each addition,
 *     |acc - acc'| <= (n + 3) u sum|w d n|;           f16, f32: (n + 1) u sum|w v|.
 * Sums of some rows likewise, n counting those. */
#include "tests/kernel/util.h"

enum { MAX_G = 16, MAX_D = 256, MAX_PAGE = 5, AT = 12 };

typedef enum { F16, F32, Q8, Q4 } type;
static const char *const names[2][4] = {{"f16", "f32", "q8", "q5"}, {"f16", "f32", "q8", "q4"}}; /* scores, values */

typedef struct {
    type t;
    size_t n_group, dim, first, n;
    bool extreme; /* the largest integers everywhere */
} params;

typedef struct {
    uint8_t *page[2][MAX_PAGE]; /* K part, V part, each AT bytes into a block */
    double *value[2];           /* [slot][dim] */
    float *step[2];             /* [slot][dim / 32] */
    float *q, *q_d, *q_sum, *w; /* w [n_group][stride] */
    int8_t *q_n;
    size_t n_page, stride;
} world;

static size_t number_bytes(type t, int v, size_t dim) {
    static const size_t bits[2][4] = {{16, 32, 8, 5}, {16, 32, 8, 4}};
    return 16 * dim * bits[v][t] / 8;
}

static size_t part_bytes(type t, int v, size_t dim) {
    return number_bytes(t, v, dim) + (t >= Q8 ? dim / 32 * 32 : 0);
}

static void put_number(const params *p, uint8_t *part, bool v, size_t s, size_t c, int n) {
    const size_t d = p->dim;
    if (p->t == Q8) {
        part[v ? s * d + c : (c / 4 * 16 + s) * 4 + c % 4] = (uint8_t)(int8_t)n;
        return;
    }
    uint8_t *at = v ? part + s * d / 2 + c / 32 * 16 + c % 16 : part + (c / 8 * 16 + s) * 4 + c % 4;
    const bool high = v ? c % 32 >= 16 : c % 8 >= 4;
    *at = (uint8_t)(high ? (*at & 15) | (n & 15) << 4 : (*at & 0xf0) | (n & 15));
    if (v) return;
    uint8_t *fifth = part + 8 * d + c / 4 * 8 + s / 2;
    const int bit = 1 << (4 * (s % 2) + c % 4);
    *fifth = (uint8_t)(n > 15 ? *fifth | bit : *fifth & ~bit);
}

static void fill_few(pd_rng *rng, const params *p, world *w, int v, size_t slot, uint8_t *part) {
    const pd_kernels ref = scalar_row();
    const size_t s = slot % 16, d = p->dim, bytes = number_bytes(p->t, v, d);
    const bool dead = slot < p->first || slot >= p->first + p->n;
    for (size_t b = 0; b < d / 32; b++) {
        uint16_t h;
        float step = dead ? NAN : (float)(1 + random_below(rng, 1000)) / 512.0f;
        ref.f32_to_f16(&step, &h, 1);
        memcpy(part + bytes + (b * 16 + s) * 2, &h, 2);
        ref.f16_to_f32(&h, &step, 1);
        w->step[v][slot * (d / 32) + b] = step;
        for (size_t c = b * 32; c < b * 32 + 32; c++) {
            const int most = v ? 15 : 31;
            const int n = p->t == Q4 ? (int)random_below(rng, (unsigned)most + 1) : (int)random_below(rng, 255) - 127;
            const int top = p->t == Q4 ? most : c % 3 ? 127 : -127;
            put_number(p, part, v, s, c, p->extreme ? top : n);
            w->value[v][slot * d + c] = (p->extreme ? top : n) - (p->t == Q4 ? 0.5 * most : 0.0);
        }
    }
}

static void fill_plain(pd_rng *rng, const params *p, world *w, int v, size_t slot, uint8_t *part) {
    const pd_kernels ref = scalar_row();
    const size_t s = slot % 16, d = p->dim;
    const bool dead = slot < p->first || slot >= p->first + p->n;
    for (size_t c = 0; c < d; c++) {
        float x = dead ? NAN : pd_rng_f32(rng) - 0.5f;
        const size_t at = v ? s * d + c : c * 16 + s;
        uint16_t h;
        ref.f32_to_f16(&x, &h, 1);
        if (p->t == F16) {
            memcpy(part + at * 2, &h, 2);
            ref.f16_to_f32(&h, &x, 1);
        } else {
            memcpy(part + at * 4, &x, 4);
        }
        w->value[v][slot * d + c] = (double)x;
    }
}

static world world_new(pd_rng *rng, const params *p) {
    const size_t d = p->dim, g = p->n_group;
    world w = {.n_page = (p->first + p->n + 15) / 16};
    w.stride = w.n_page * 16;
    for (int v = 0; v < 2; v++) {
        w.value[v] = malloc(w.stride * d * sizeof(double));
        w.step[v] = malloc(w.stride * (d / 32 + 1) * sizeof(float));
        for (size_t i = 0; i < w.n_page; i++) {
            w.page[v][i] = block_new(AT + part_bytes(p->t, v, d));
            for (size_t s = 0; s < 16; s++)
                (p->t >= Q8 ? fill_few : fill_plain)(rng, p, &w, v, 16 * i + s, w.page[v][i] + AT);
        }
    }
    w.q = random_f32(rng, g * d, 2.0f);
    w.w = random_f32(rng, g * w.stride, 1.0f);
    w.q_n = block_new(g * d);
    w.q_d = random_f32(rng, g * (d / 32), 0.01f);
    w.q_sum = block_new(g * (d / 32) * sizeof(float));
    for (size_t i = 0; i < g * d; i++) w.q_n[i] = (int8_t)(p->extreme ? 127 : (int)random_below(rng, 255) - 127);
    for (size_t b = 0; b < g * (d / 32); b++) {
        int sum = 0;
        for (size_t i = 0; i < 32; i++) sum += w.q_n[b * 32 + i];
        w.q_sum[b] = (float)sum;
    }
    return w;
}

static void world_free(world *w) {
    for (int v = 0; v < 2; v++) {
        for (size_t i = 0; i < w->n_page; i++) block_free(w->page[v][i]);
        free(w->value[v]);
        free(w->step[v]);
    }
    block_free(w->q);
    block_free(w->w);
    block_free(w->q_n);
    block_free(w->q_d);
    block_free(w->q_sum);
}

static void check_scores(const pd_kernels *k, const params *p, const world *w, size_t g, size_t slot, float got) {
    const size_t d = p->dim;
    double want = 0.0, abs = 0.0, roundings = (double)d;
    if (p->t >= Q8) {
        roundings = (double)(d / 32 + 2);
        for (size_t b = 0; b < d / 32; b++) {
            double x = 0.0;
            for (size_t c = b * 32; c < b * 32 + 32; c++) x += w->q_n[g * d + c] * w->value[0][slot * d + c];
            x *= (double)w->q_d[g * (d / 32) + b] * (double)w->step[0][slot * (d / 32) + b];
            want += x;
            abs += fabs(x);
        }
    } else {
        for (size_t c = 0; c < d; c++) {
            const double x = (double)w->q[g * d + c] * w->value[0][slot * d + c];
            want += x;
            abs += fabs(x);
        }
    }
    CHECK(near(want, got, roundings * EPS / 2 * abs), "%s scores_%s G=%zu D=%zu first=%zu n=%zu g=%zu slot=%zu want %.9g got %.9g",
          k->isa, names[0][p->t], p->n_group, d, p->first, p->n, g, slot, want, (double)got);
}

/* rows: [n] slots; NULL = all of the range. */
static void check_values(const pd_kernels *k, const params *p, const world *w, size_t g, const uint32_t *rows, size_t n,
                         const float *acc) {
    const size_t d = p->dim, base = rows ? 0 : p->first / 16 * 16;
    for (size_t c = 0; c < d; c++) {
        double want = 0.0, abs = 0.0;
        for (size_t i = 0; i < n; i++) {
            const size_t slot = rows ? rows[i] : p->first + i;
            double x = (double)w->w[g * w->stride + slot - base] * w->value[1][slot * d + c];
            if (p->t >= Q8) x *= (double)w->step[1][slot * (d / 32) + c / 32];
            want += x;
            abs += fabs(x);
        }
        CHECK(near(want, acc[c], (double)(n + 3) * EPS / 2 * abs),
              "%s %s_%s G=%zu D=%zu first=%zu n=%zu g=%zu c=%zu want %.9g got %.9g", k->isa, rows ? "rows" : "values",
              names[1][p->t], p->n_group, d, p->first, n, g, c, want, (double)acc[c]);
    }
}

/* About a third of the slots, the first and the last of them always: those that are not chosen,
 * and the dead ones, hold NaN. */
static void check_rows(const pd_kernels *k, const params *p, world *w, pd_part_pass pass, float *acc) {
    void (*const rows[])(const pd_part_pass *) = {k->rows_f16, k->rows_f32, k->rows_q8, k->rows_q4};
    uint32_t *row = block_new(p->n * sizeof *row);
    size_t n = 0;
    for (size_t i = 0; i < p->n; i++)
        if (i == 0 || i + 1 == p->n || (i * 7 + p->n_group) % 3 == 0) row[n++] = (uint32_t)(p->first + i);
    for (; n > 0; n -= n > 3 ? n - 3 : 1) { /* then three, two, one */
        float *weight = block_new(p->n_group * w->stride * sizeof *weight);
        for (size_t i = 0; i < p->n_group * w->stride; i++) weight[i] = NAN;
        for (size_t g = 0; g < p->n_group; g++)
            for (size_t i = 0; i < n; i++) weight[g * w->stride + row[i]] = w->w[g * w->stride + row[i]];
        pass.tmp = weight;
        pass.row = row;
        pass.n_row = n;
        pass.first = pass.n = 0;
        memset(acc, 0xff, p->n_group * p->dim * sizeof *acc);
        rows[p->t](&pass);
        for (size_t g = 0; g < p->n_group; g++) check_values(k, p, w, g, row, n, acc + g * p->dim);
        float *dense = block_new(p->n_group * n * sizeof *dense), *again = block_new(p->n_group * p->dim * sizeof *again);
        for (size_t i = 0; i < p->n_group * n; i++) dense[i] = weight[i / n * w->stride + row[i % n]];
        pd_part_pass close = pass;
        close.dense = true;
        close.tmp = dense;
        close.tmp_stride = n;
        close.acc = again;
        rows[p->t](&close);
        CHECK(memcmp(again, acc, p->n_group * p->dim * sizeof *acc) == 0, "%s rows_%s: dense weights give other sums", k->isa, names[1][p->t]);
        block_free(dense);
        block_free(again);
        block_free(weight);
    }
    pass.n_row = 0;
    rows[p->t](&pass);
    for (size_t i = 0; i < p->n_group * p->dim; i++) CHECK(acc[i] == 0.0f, "%s rows_%s: a sum of no rows", k->isa, names[1][p->t]);
    block_free(row);
}

static void check(const pd_kernels *k, const params *p, world *w) {
    void (*const scores[])(const pd_part_pass *) = {k->scores_f16, k->scores_f32, k->scores_q8, k->scores_q5};
    void (*const values[])(const pd_part_pass *) = {k->values_f16, k->values_f32, k->values_q8, k->values_q4};
    float *tmp = block_new(p->n_group * w->stride * sizeof *tmp), *acc = block_new(p->n_group * p->dim * sizeof *acc);
    pd_part_pass pass = {.pages = (const void *const *)w->page[0], .at = AT, .first = p->first, .n = p->n,
                         .n_group = p->n_group, .head_dim = p->dim, .tmp = tmp, .tmp_stride = w->stride, .q = w->q,
                         .q_n = w->q_n, .q_d = w->q_d, .q_sum = w->q_sum, .acc = acc};
    scores[p->t](&pass);
    const size_t base = p->first / 16 * 16;
    for (size_t g = 0; g < p->n_group; g++)
        for (size_t slot = p->first; slot < p->first + p->n; slot++)
            check_scores(k, p, w, g, slot, tmp[g * w->stride + slot - base]);
    if (p->dim % 16) { /* keys alone come in such widths */
        block_free(tmp);
        block_free(acc);
        return;
    }
    pass.pages = (const void *const *)w->page[1];
    memcpy(tmp, w->w, p->n_group * w->stride * sizeof *tmp);
    memset(acc, 0xff, p->n_group * p->dim * sizeof *acc); /* is set, whatever was there */
    values[p->t](&pass);
    for (size_t g = 0; g < p->n_group; g++) check_values(k, p, w, g, NULL, p->n, acc + g * p->dim);
    check_rows(k, p, w, pass, acc);
    block_free(tmp);
    block_free(acc);
}

static void sweep(pd_rng *rng, params p) {
    world w = world_new(rng, &p);
    FOR_EACH_ROW(k, check(&k, &p, &w));
    world_free(&w);
}

static void every_first_and_length(void **state) {
    (void)state;
    pd_rng rng = {31};
    for (int t = F16; t <= Q4; t++)
        for (size_t first = 0; first < 35; first += first < 17 ? 1 : 5)
            for (size_t n = 1; n <= 40; n += first % 4 ? 7 : 1)
                sweep(&rng, (params){(type)t, 3, 64, first, n, false});
}

static void every_group_and_dim(void **state) {
    (void)state;
    pd_rng rng = {32};
    static const size_t dims[] = {32, 64, 96, 128, 160, 256};
    for (int t = F16; t <= Q4; t++)
        for (size_t d = 0; d < LEN(dims); d++)
            for (size_t g = 1; g <= MAX_G; g++) sweep(&rng, (params){(type)t, g, dims[d], 5, 20 + g, false});
    for (int t = F16; t <= F32; t++) sweep(&rng, (params){(type)t, 3, 80, 3, 40, false});
}

/* Keys with channels taken out: of every width. */
static void keys_of_any_width(void **state) {
    (void)state;
    pd_rng rng = {34};
    for (int t = F16; t <= F32; t++)
        for (size_t d = 1; d <= 65; d++) sweep(&rng, (params){(type)t, 1 + d % 7, d, d % 23, 9 + d % 30, false});
}

/* The largest sums an integer path has to hold. */
static void extreme_integers(void **state) {
    (void)state;
    pd_rng rng = {33};
    for (int t = Q8; t <= Q4; t++)
        for (size_t g = 1; g <= 5; g++) sweep(&rng, (params){(type)t, g, 128, 9, 50, true});
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_first_and_length),
        cmocka_unit_test(every_group_and_dim),
        cmocka_unit_test(keys_of_any_width),
        cmocka_unit_test(extreme_integers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
