/* SPDX-License-Identifier: Apache-2.0 */
/* Eigenvectors of second moments (see bases.h).  Cost: about 9 n^3 multiply-adds a
 * decomposition; pd__score_basis makes two and four products. */
#include "compression/bases.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double floor_share = 1e-6;

static pd_status no_memory(pd_err *err) {
    return pd_fail(err, PD_ENOMEM, NULL, "no memory for a basis");
}

/* s[n][n] -> its eigenvectors in columns, w[n] rising. */
static pd_status decompose(double *s, size_t n, double *w, pd_err *err) {
    if (LAPACKE_dsyevd(LAPACK_ROW_MAJOR, 'V', 'U', (lapack_int)n, s, (lapack_int)n, w) == 0) return PD_OK;
    return pd_fail(err, PD_EINTERNAL, NULL, "a moment of %zu channels has no eigenvectors", n);
}

/* Column i of s -> row[n], its largest number positive. */
static void column(const double *s, size_t n, size_t i, double *row) {
    double most = 0.0;
    for (size_t k = 0; k < n; k++) {
        row[k] = s[k * n + i];
        if (fabs(row[k]) > fabs(most)) most = row[k];
    }
    for (size_t k = 0; most < 0.0 && k < n; k++) row[k] = -row[k];
}

/* The same for all of them, strongest first: u[n][n] in rows. */
static pd_status directions(double *s, size_t n, double *u, double *w, pd_err *err) {
    PD_TRY(decompose(s, n, w, err));
    for (size_t i = 0; i < n; i++) column(s, n, n - 1 - i, u + i * n);
    return PD_OK;
}

static void put(const double *u, const double *w, size_t n, float *rows, float *energy) {
    for (size_t i = 0; i < n * n; i++) rows[i] = (float)u[i];
    for (size_t i = 0; i < n; i++) energy[i] = (float)fmax(w[n - 1 - i], 0.0);
}

pd_status pd__basis(double *s, size_t n, float *rows, float *energy, pd_err *err) {
    double *u = malloc((n * n + n) * sizeof *u), *w = u ? u + n * n : NULL;
    const pd_status rc = u ? directions(s, n, u, w, err) : no_memory(err);
    if (rc == PD_OK) put(u, w, n, rows, energy);
    free(u);
    return rc;
}

/* ---- scores ---- */

/* Mean of e^{j p a} over p in [0, n): Dirichlet's kernel. */
static void mean_turn(double a, double n, double *c, double *s) {
    const double den = n * sin(a / 2.0);
    const double shrink = fabs(den) < 1e-12 ? 1.0 : sin(n * a / 2.0) / den, mid = (n - 1.0) / 2.0 * a;
    *c = cos(mid) * shrink;
    *s = sin(mid) * shrink;
}

/* A 2x2 real block is x -> P x + Q conj(x) on complex numbers: R(a) block R(-b) turns P by a - b
 * and Q by a + b. */
void pd__mean_moment(const double *s, size_t d, const float *inv_freq, size_t n_distance, double *m) {
    const size_t half = d / 2;
    for (size_t i = 0; i < half; i++) {
        for (size_t j = i; j < half; j++) {
            const double b00 = s[i * d + j], b01 = s[i * d + j + half];
            const double b10 = s[j * d + i + half], b11 = s[(i + half) * d + j + half];
            const double pr = (b00 + b11) / 2.0, pi = (b10 - b01) / 2.0, qr = (b00 - b11) / 2.0, qi = (b10 + b01) / 2.0;
            const double ti = (double)inv_freq[i], tj = (double)inv_freq[j];
            double pc, ps, qc, qs;
            mean_turn(ti - tj, (double)n_distance, &pc, &ps);
            mean_turn(ti + tj, (double)n_distance, &qc, &qs);
            const double tpr = pr * pc - pi * ps, tpi = pr * ps + pi * pc;
            const double tqr = qr * qc - qi * qs, tqi = qr * qs + qi * qc;
            m[i * d + j] = m[j * d + i] = tpr + tqr;
            m[(i + half) * d + j + half] = m[(j + half) * d + i + half] = tpr - tqr;
            m[(i + half) * d + j] = m[j * d + i + half] = tpi + tqi;
            m[i * d + j + half] = m[(j + half) * d + i] = tqi - tpi;
        }
    }
}

/* root and inverse[n][n] of m, whose mean eigenvalue becomes 1. */
static pd_status roots(double *m, size_t n, double *root, double *inverse, double *w, pd_err *err) {
    PD_TRY(decompose(m, n, w, err));
    double mean = 0.0;
    for (size_t i = 0; i < n; i++) mean += fmax(w[i], 0.0) / (double)n;
    if (mean <= 0.0) return pd_fail(err, PD_EINTERNAL, NULL, "the queries of a head are all 0");
    const double least = w[n - 1] * floor_share;
    for (size_t a = 0; a < n; a++) {
        for (size_t b = a; b < n; b++) {
            double up = 0.0, down = 0.0;
            for (size_t i = 0; i < n; i++) {
                const double x = m[a * n + i] * m[b * n + i], r = sqrt(fmax(w[i], least) / mean);
                up += x * r;
                down += x / r;
            }
            root[a * n + b] = root[b * n + a] = up;
            inverse[a * n + b] = inverse[b * n + a] = down;
        }
    }
    return PD_OK;
}

static void product(const double *a, const double *b, size_t n, double *ret) {
    const int d = (int)n;
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, d, d, d, 1.0, a, d, b, d, 0.0, ret, d);
}

static pd_status score_basis(double *s, double *m, size_t n, double *tmp, float *project, float *rebuild,
                             float *energy, pd_err *err) {
    double *root = tmp, *inverse = root + n * n, *u = inverse + n * n, *x = u + n * n, *w = x + n * n;
    PD_TRY(roots(m, n, root, inverse, w, err));
    for (size_t a = 0; a < n; a++)
        for (size_t b = 0; b < a; b++) s[a * n + b] = s[b * n + a];
    product(root, s, n, x);
    product(x, root, n, s);
    PD_TRY(directions(s, n, u, w, err));
    product(u, root, n, x);
    put(x, w, n, project, energy);
    product(u, inverse, n, x);
    put(x, w, n, rebuild, energy);
    return PD_OK;
}

pd_status pd__score_basis(double *s, double *m, size_t n, float *project, float *rebuild, float *energy,
                          pd_err *err) {
    double *tmp = malloc((4 * n * n + n) * sizeof *tmp);
    const pd_status rc = tmp ? score_basis(s, m, n, tmp, project, rebuild, energy, err) : no_memory(err);
    free(tmp);
    return rc;
}

double pd_energy_kept(const float *energy, size_t n_basis, size_t n, size_t rank) {
    double sum = 0.0;
    size_t measured = 0;
    for (size_t b = 0; b < n_basis; b++, energy += n) {
        double all = 0.0, kept = 0.0;
        for (size_t i = 0; i < n; i++) {
            all += (double)energy[i];
            if (i < rank) kept += (double)energy[i];
        }
        if (all <= 0.0) continue;
        sum += kept / all;
        measured++;
    }
    return measured ? sum / (double)measured : 0.0;
}
