/* SPDX-License-Identifier: Apache-2.0 */
/* engine/cache/latent: keys to few numbers and back, beside the same in double with plain angles. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compression/bases.h"
#include "engine/base/rng.h"
#include "engine/cache/latent.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { D = 32, HALF = D / 2, N = PD_PAGE_TOKENS, PAGES = 5, LONG = 140000 };

static pd_kernels kern;
static pd_turns turns;
static float freq[HALF], basis[D * D];

static int make(void **state) {
    (void)state;
    pd_rng rng = {7};
    double s[D * D] = {0};
    float energy[D];
    pd_kernels_init(&kern, pd_cpu_detect());
    for (size_t i = 0; i < HALF; i++) freq[i] = powf(10000.0f, -(float)i / HALF);
    for (size_t r = 0; r < 3 * D; r++) {
        double x[D];
        for (size_t i = 0; i < D; i++) x[i] = (double)pd_rng_f32(&rng);
        for (size_t i = 0; i < D * D; i++) s[i] += x[i / D] * x[i % D];
    }
    if (pd__basis(s, D, basis, energy, NULL) != PD_OK) return -1;
    return pd_turns_init(&turns, freq, HALF, LONG, NULL) == PD_OK ? 0 : -1;
}

static int drop(void **state) {
    (void)state;
    pd_turns_done(&turns);
    return 0;
}

static void draw(uint64_t seed, float *k, size_t n) {
    pd_rng rng = {seed};
    for (size_t i = 0; i < n; i++) k[i] = pd_rng_f32(&rng);
}

static void turn(const double *x, double p, double *y) {
    for (size_t i = 0; i < HALF; i++) {
        const double c = cos(p * (double)freq[i]), s = sin(p * (double)freq[i]);
        y[i] = x[i] * c - x[i + HALF] * s;
        y[i + HALF] = x[i + HALF] * c + x[i] * s;
    }
}

/* R_p B^T B R_p^-1 k in double. */
static void want(const float *k, int32_t p, size_t rank, bool turned, double *y) {
    double x[D], z[D] = {0};
    for (size_t i = 0; i < D; i++) y[i] = (double)k[i];
    memcpy(x, y, sizeof x);
    if (turned) turn(y, -(double)p, x);
    for (size_t r = 0; r < rank; r++) {
        double c = 0.0;
        for (size_t i = 0; i < D; i++) c += (double)basis[r * D + i] * x[i];
        for (size_t i = 0; i < D; i++) z[i] += c * (double)basis[r * D + i];
    }
    memcpy(y, z, sizeof z);
    if (turned) turn(z, (double)p, y);
}

static void a_key_comes_back_through_its_basis(void **state) {
    (void)state;
    static const int32_t pos[] = {0, 1, 63, 64, 1000, 8191, LONG - 1};
    float k[D], c[D], back[D], tmp[D];
    for (size_t i = 0; i < sizeof pos / sizeof *pos; i++) {
        draw(i, k, D);
        for (size_t rank = 1; rank <= D; rank += 5) {
            for (int turned = 0; turned < 2; turned++) {
                const pd_latent l = {.head_dim = D, .rank = rank, .project = basis, .rebuild = basis, .turns = turned ? &turns : NULL};
                double y[D];
                want(k, pos[i], rank, turned, y);
                pd_latent_project(&l, &kern, k, pos[i], c, tmp);
                pd_latent_rebuild(&l, &kern, c, pos[i], back);
                for (size_t j = 0; j < D; j++)
                    if (fabs((double)back[j] - y[j]) > 2e-6)
                        fail_msg("position %d rank %zu channel %zu: %g, not %g", pos[i], rank, j, (double)back[j], y[j]);
            }
        }
    }
    const pd_latent all = {.head_dim = D, .rank = D, .project = basis, .rebuild = basis, .turns = &turns};
    pd_latent_project(&all, &kern, k, 77, c, tmp);
    pd_latent_rebuild(&all, &kern, c, 77, back);
    for (size_t j = 0; j < D; j++) assert_true(fabsf(back[j] - k[j]) < 2e-6f);
}

/* Positions of the pages' slots: one after another, with holes, a page that starts in its middle. */
static void pages_come_back_as_their_keys(void **state) {
    (void)state;
    static int32_t pos[PAGES][N], at[PAGES][N];
    static float k[PAGES * N][D], c[D * PAGES * N], got[D * PAGES * N];
    const int32_t *page[PAGES];
    draw(100, k[0], PAGES * N * D);
    for (size_t p = 0; p < PAGES; p++) {
        page[p] = at[p];
        for (size_t i = 0; i < N; i++) pos[p][i] = (int32_t)(p == 1 ? 3 * i + 20 : p == 2 && i > 7 ? 500 + i : 16 * p + i + 5);
    }
    static const size_t range[][2] = {{0, PAGES * N}, {3, PAGES * N - 3}, {9, 40}, {0, 1}, {15, 1}};
    for (size_t t = 0; t < sizeof range / sizeof *range; t++) {
        const size_t first = range[t][0], n = range[t][1];
        for (int turned = 0; turned < 2; turned++) {
            const pd_latent l = {.head_dim = D, .rank = 20, .project = basis, .rebuild = basis, .turns = turned ? &turns : NULL};
            float tmp[D], row[D], latent[D];
            for (size_t s = 0; s < PAGES * N; s++) {
                const bool in = s >= first && s < first + n;
                at[s / N][s % N] = in ? pos[s / N][s % N] : -1; /* nobody's: not even a position */
                if (in) pd_latent_project(&l, &kern, k[s], pos[s / N][s % N], latent, tmp);
                for (size_t r = 0; r < l.rank; r++) c[r * PAGES * N + s] = in ? latent[r] : NAN;
            }
            pd_latent_keys(&l, c, page, PAGES, first, n, got, tmp);
            for (size_t s = first; s < first + n; s++) {
                for (size_t r = 0; r < l.rank; r++) latent[r] = c[r * PAGES * N + s];
                pd_latent_rebuild(&l, &kern, latent, pos[s / N][s % N], row);
                for (size_t j = 0; j < D; j++)
                    if (!(fabsf(got[j * PAGES * N + s] - row[j]) < 3e-6f))
                        fail_msg("slot %zu channel %zu: %g, not %g", s, j, (double)got[j * PAGES * N + s], (double)row[j]);
            }
        }
    }
}

/* An f16 cache loses no more by being turned back: the error of the latent stays that of the key. */
static void rounded_keys_are_turned_back_as_well(void **state) {
    (void)state;
    const pd_latent l = {.head_dim = D, .rank = D, .project = basis, .rebuild = basis, .turns = &turns};
    for (int32_t p = 0; p < 4000; p += 371) {
        float k[D], r[D], c[2][D], tmp[D];
        uint16_t half[D];
        draw((uint64_t)p, k, D);
        kern.f32_to_f16(k, half, D);
        kern.f16_to_f32(half, r, D);
        pd_latent_project(&l, &kern, k, p, c[0], tmp);
        pd_latent_project(&l, &kern, r, p, c[1], tmp);
        double before = 0.0, after = 0.0;
        for (size_t i = 0; i < D; i++) {
            before += ((double)k[i] - (double)r[i]) * ((double)k[i] - (double)r[i]);
            after += ((double)c[0][i] - (double)c[1][i]) * ((double)c[0][i] - (double)c[1][i]);
        }
        assert_true(before > 0.0 && fabs(sqrt(after / before) - 1.0) < 0.01);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_key_comes_back_through_its_basis),
        cmocka_unit_test(pages_come_back_as_their_keys),
        cmocka_unit_test(rounded_keys_are_turned_back_as_well),
    };
    return cmocka_run_group_tests(tests, make, drop);
}
