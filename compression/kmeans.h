/* SPDX-License-Identifier: Apache-2.0 */
/* k-means: codebooks of small vectors.  Private to compression/. */
#ifndef PD_COMPRESSION_KMEANS_H
#define PD_COMPRESSION_KMEANS_H

#include "engine/base/rng.h"
#include "engine/kernels/kernels.h"

#include <stdbool.h>
#include <stddef.h>

enum { PD_KMEANS_SUB_MAX = 16, PD_KMEANS_MAX = 256 };

/* n_centroid (a multiple of 16) centroids of the n >= 1 rows x [n][sub], to book [sub][n_centroid];
 * returns the mean squared distance of a row from its centroid before the last move.  With fewer
 * different rows than centroids some centroids are equal.  Depends on rows and seed alone.
 * tmp: n floats.  Thread: any. */
double pd__kmeans(const pd_kernels *kern, const float *x, size_t n, size_t sub, size_t n_centroid, uint64_t seed,
                  float *book, float *tmp);

#endif
