/* SPDX-License-Identifier: Apache-2.0 */
/* What the sketching presses share: random projections and small systems.
 * Private to compression/.  Thread: engine. */
#ifndef PD_COMPRESSION_SKETCH_H
#define PD_COMPRESSION_SKETCH_H

#include "compression/press.h"

/* n draws of N(0, 1) times `scale`: a function of the request's seed and the layer
 * alone.  (The reference draws from the process' generator, unseeded.)  Box and
 * Muller's transform of splitmix64. */
void pd__normals(const pd_view *view, double scale, float *out, size_t n);

enum { PD__CHOLESKY_MAX = 512 }; /* largest n */

/* The lower factor L, L L^T = A + shift I, of a symmetric n x n matrix: reads the
 * upper triangle of `a` and writes L to its lower one, diagonal included.  Computed
 * in double; work is [n][n].  False if A + shift I is not positive definite: `a` is
 * as it was then.
 * Cost: n^3 / 6 multiply-adds. */
bool pd__cholesky(float *a, size_t n, double shift, double *work);

/* rows[i] <- L^-1 rows[i], so that |row|^2 is x^T (L L^T)^-1 x. */
void pd__forward_solve(const float *l, size_t n, float *rows, size_t n_rows);

/* All scores of all heads minus their mean, over their standard deviation (n - 1,
 * at least 1e-6).  In double, in slot order. */
void pd__standardize(const pd_view *view, float *const *score);

#endif
