/* SPDX-License-Identifier: Apache-2.0 */
/* Bases in which keys and values need fewer numbers.
 *
 * From a second moment S = mean of x x^T, about zero as in the published recipes: the
 * right singular vectors of the stacked rows x are the eigenvectors of S.  Rows of a basis
 * are directions, the strongest first, so that the first r rows are the basis of rank r and
 * the energy they miss is the sum of the eigenvalues that follow.
 * All matrices row-major, moments in double.  Thread: any. */
#ifndef PD_COMPRESSION_BASES_H
#define PD_COMPRESSION_BASES_H

#include "engine/base/err.h"

#include <stddef.h>

/* rows[n][n] = eigenvectors of s[n][n] (its upper triangle; destroyed), energy[n] their
 * eigenvalues, falling, none below 0.  The largest number of a row is positive.
 * Errors: EINTERNAL (no decomposition; outputs untouched), ENOMEM. */
pd_status pd__basis(double *s, size_t n, float *rows, float *energy, pd_err *err);

/* m[d][d] = mean over the distances p in [0, n_distance) of R_p s R_p^T, s[d][d] symmetric (upper
 * triangle) and R_p RoPE's rotation by p positions (pairs i, i + d/2), so that x^T m x is the mean
 * square of the score that queries of moment s give the unrotated key x from p positions on.
 * Closed form: a 2x2 block of pairs (i, j) is turned by p (t_i - t_j) and p (t_i + t_j). */
void pd__mean_moment(const double *s, size_t d, const float *inv_freq, size_t n_distance, double *m);

/* The basis that keeps scores: with m scaled to a mean eigenvalue of 1 and u the eigenvectors of
 * m^1/2 s m^1/2, the mean square of score errors is least for project = u^T m^1/2 and
 * rebuild = u^T m^-1/2 (KQ-SVD, 2512.05916, is the case of one distance), both [n][n] with a row
 * for each direction: c = project[:r] k, k ~ sum over i of c_i rebuild[i].  energy as above, of the
 * scaled keys.  Eigenvalues of m below 1e-6 of the largest count as that.  s and m are destroyed.
 * Errors: as pd__basis. */
pd_status pd__score_basis(double *s, double *m, size_t n, float *project, float *rebuild, float *energy,
                          pd_err *err);

/* What the first `rank` of n directions keep of all energy[n_basis][n]: the mean share over the bases that
 * were measured (a layer with a window has energy 0); 0 if none was. */
double pd_energy_kept(const float *energy, size_t n_basis, size_t n, size_t rank);

#endif
