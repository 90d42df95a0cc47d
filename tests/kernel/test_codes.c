/* SPDX-License-Identifier: Apache-2.0 */
/* Product codes: the nearest centroid against distances in f64, tables against products in f64,
 * scores bit for bit against a sum of look-ups. */
#include "tests/kernel/util.h"

/* A distance of `sub` terms is off by (sub + 2) u of itself, twice that between two of them. */
static void check_nearest(const pd_kernels *k, const float *x, const float *book, size_t sub, size_t n) {
    double least = INFINITY, got_d = 0.0;
    const size_t got = k->nearest_f32(x, book, sub, n);
    CHECK(got < n, "%s nearest_f32: %zu of %zu", k->isa, got, n);
    for (size_t c = 0; c < n; c++) {
        double sum = 0.0;
        for (size_t j = 0; j < sub; j++) {
            const double off = (double)x[j] - (double)book[j * n + c];
            sum += off * off;
        }
        if (sum < least) least = sum;
        if (c == got) got_d = sum;
    }
    CHECK(got_d <= least * (1.0 + (double)(sub + 2) * EPS), "%s nearest_f32 sub=%zu n=%zu: %zu is %.9g away, another one %.9g", k->isa,
          sub, n, got, got_d, least);
}

static void the_nearest_is_found(void **state) {
    (void)state;
    pd_rng rng = {51};
    static const size_t sizes[] = {16, 32, 48, 256};
    for (size_t i = 0; i < LEN(sizes); i++) {
        for (size_t sub = 1; sub <= 9; sub++) {
            const size_t n = sizes[i];
            for (int t = 0; t < 40; t++) {
                float *book = random_f32(&rng, sub * n, 3.0f), *x = random_f32(&rng, sub, 3.0f);
                FOR_EACH_ROW(k, check_nearest(&k, x, book, sub, n));
                /* of equal ones the lowest: all are in the end */
                const size_t a = random_below(&rng, (uint32_t)n), b = random_below(&rng, (uint32_t)n);
                for (size_t j = 0; j < sub; j++) book[j * n + a] = book[j * n + b] = x[j];
                FOR_EACH_ROW(k, CHECK(k.nearest_f32(x, book, sub, n) == (a < b ? a : b), "%s nearest_f32: not the lowest", k.isa));
                block_free(book);
                block_free(x);
            }
        }
    }
}

/* An entry is off by half a step, its product by sub u of its terms, twice (the least one too). */
static void check_table(const pd_kernels *k, const float *q, const float *book, size_t sub, size_t n_code, size_t n) {
    uint8_t *table = block_new(n_code * n);
    float least = NAN, step = NAN;
    double widest = 0.0, sum = 0.0, all = 0.0;
    k->code_table(q, book, sub, n_code, n, table, &least, &step);
    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < n_code; i++) {
            double lo = INFINITY, hi = -INFINITY, most = 0.0;
            for (int again = 0; again < 2; again++) {
                for (size_t c = 0; c < n; c++) {
                    double x = 0.0, abs = 0.0;
                    for (size_t j = 0; j < sub; j++) {
                        x += (double)q[i * sub + j] * (double)book[(i * sub + j) * n + c];
                        abs += fabs((double)q[i * sub + j] * (double)book[(i * sub + j) * n + c]);
                    }
                    lo = fmin(lo, x);
                    hi = fmax(hi, x);
                    most = fmax(most, abs);
                    if (!pass || !again) continue;
                    const double got = (double)step * table[i * n + c], bound = 0.5 * (double)step + (double)(2 * sub + 8) * EPS * most + 1e-5 * (double)step;
                    CHECK(near(x - lo, got, bound), "%s code_table sub=%zu n=%zu part %zu centroid %zu: want %.9g got %.9g", k->isa, sub, n,
                          i, c, x - lo, got);
                }
            }
            widest = fmax(widest, hi - lo);
            if (pass) continue;
            sum += lo;
            all += (double)sub * most;
        }
    }
    CHECK(near(sum, least, (double)(n_code + 2) * EPS * all), "%s code_table: least %.9g, want %.9g", k->isa, (double)least, sum);
    CHECK(near(widest / 255.0, step, 8.0 * EPS * all), "%s code_table: step %.9g, want %.9g", k->isa, (double)step, widest / 255.0);
    block_free(table);
}

static void tables_are_products(void **state) {
    (void)state;
    pd_rng rng = {52};
    for (size_t sub = 1; sub <= 8; sub++) {
        for (size_t n_code = 1; n_code <= 40; n_code += 3) {
            for (size_t n = 16; n <= 256; n *= 4) {
                float *q = random_f32(&rng, sub * n_code, 2.0f), *book = random_f32(&rng, sub * n_code * n, 1.0f);
                FOR_EACH_ROW(k, check_table(&k, q, book, sub, n_code, n));
                block_free(q);
                block_free(book);
            }
        }
    }
}

static void check_nothing(const pd_kernels *k, const float *q, const float *book, float size) {
    uint8_t table[8 * 16];
    float least = NAN, step = NAN;
    k->code_table(q, book, 4, 8, 16, table, &least, &step);
    CHECK(step == 0.0f && fabsf(least) <= 32.0f * size, "%s code_table: step %g least %g", k->isa, (double)step, (double)least);
    for (size_t j = 0; j < LEN(table); j++) CHECK(table[j] == 0, "%s code_table: %u", k->isa, table[j]);
}

/* A query of nothing, and one whose products are too small for a step. */
static void tables_of_nothing(void **state) {
    (void)state;
    pd_rng rng = {53};
    float *book = random_f32(&rng, 8 * 4 * 16, 1.0f);
    static const float sizes[] = {0.0f, 1e-38f};
    for (size_t i = 0; i < LEN(sizes); i++) {
        float q[32];
        for (size_t j = 0; j < 32; j++) q[j] = sizes[i];
        FOR_EACH_ROW(k, check_nothing(&k, q, book, sizes[i]));
    }
    block_free(book);
}

static void check_scores(const pd_kernels *k, const pd_code_pass *like, size_t n) {
    pd_code_pass p = *like;
    p.tmp = block_new(p.n_group * p.tmp_stride * sizeof(float));
    for (size_t i = 0; i < p.n_group * p.tmp_stride; i++) p.tmp[i] = 77.0f;
    (n == 256 ? k->scores_codes8 : k->scores_codes4)(&p);
    for (size_t g = 0; g < p.n_group; g++) {
        for (size_t s = 0; s < p.tmp_stride && (g + 1 < p.n_group || s < p.n_page * 16); s++) {
            unsigned sum = 0;
            for (size_t i = 0; i < p.n_code && s < p.n_page * 16; i++) {
                const uint8_t *codes = p.pages[s / 16];
                const unsigned four = codes[i % (p.n_code / 2 + (n == 256)) * 16 + s % 16] >> (i < p.n_code / 2 ? 0 : 4) & 15;
                sum += p.table[(g * p.n_code + i) * n + (n == 256 ? codes[i * 16 + s % 16] : four)];
            }
            const float by = p.step[g] * (float)sum, want = s < p.n_page * 16 ? p.least[g] + by : 77.0f;
            CHECK(p.tmp[g * p.tmp_stride + s] == want, "%s scores_codes%d codes=%zu pages=%zu head %zu slot %zu: want %.9g got %.9g",
                  k->isa, n == 256 ? 8 : 4, p.n_code, p.n_page, g, s, (double)want, (double)p.tmp[g * p.tmp_stride + s]);
        }
    }
    block_free(p.tmp);
}

static void scores_are_sums_of_lookups(void **state) {
    (void)state;
    pd_rng rng = {54};
    static const size_t codes[] = {2, 4, 6, 8, 10, 16, 20, 32, 64, 256};
    for (size_t i = 0; i < LEN(codes); i++) {
        for (size_t n = 16; n <= 256; n *= 16) {
            for (size_t n_page = 1; n_page <= 40; n_page += n_page < 18 ? 1 : 11) {
                const size_t n_group = 1 + (n_page + i) % 5, bytes = codes[i] * 16 / (n == 16 ? 2 : 1);
                uint8_t *page[40], *table = aligned_alloc(64, (n_group * codes[i] * n + 63) / 64 * 64);
                const void *pages[40];
                float least[16], step[16];
                if (!table) abort();
                for (size_t j = 0; j < n_group * codes[i] * n; j++) table[j] = i % 3 ? (uint8_t)pd_rng_u64(&rng) : 255;
                for (size_t j = 0; j < n_page; j++) {
                    pages[j] = page[j] = block_new(bytes);
                    for (size_t b = 0; b < bytes; b++) page[j][b] = (uint8_t)pd_rng_u64(&rng);
                }
                for (size_t g = 0; g < n_group; g++) {
                    least[g] = pd_rng_f32(&rng);
                    step[g] = fabsf(pd_rng_f32(&rng));
                }
                const pd_code_pass p = {.pages = pages, .n_page = n_page > 3 ? n_page - 3 : n_page, .n_next = n_page > 3 ? 3 : 0, .n_code = codes[i], .n_group = n_group, .table = table,
                                        .least = least, .step = step, .tmp_stride = n_page * 16 + i % 7};
                FOR_EACH_ROW(k, check_scores(&k, &p, n));
                for (size_t j = 0; j < n_page; j++) block_free(page[j]);
                free(table);
            }
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_nearest_is_found),
        cmocka_unit_test(tables_are_products),
        cmocka_unit_test(tables_of_nothing),
        cmocka_unit_test(scores_are_sums_of_lookups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
