/* SPDX-License-Identifier: Apache-2.0 */
/* k-means (see kmeans.h): seeds by k-means++ (Arthur, Vassilvitskii 2007) among some of the rows,
 * then Lloyd's rounds over all of them until a round gains little.
 *
 * A centroid that no row is nearest to goes to a row drawn at random.
 * Cost: a round n * n_centroid * sub multiply-adds, at most ROUNDS of them; the seeds as much as
 * one round over 8 rows a centroid. */
#include "compression/kmeans.h"

#include "engine/base/num.h"

#include <assert.h>
#include <string.h>

enum { ROUNDS = 25, SEED_ROWS = 8 /* a centroid */, SUB_MAX = PD_KMEANS_SUB_MAX, MAX = PD_KMEANS_MAX };
static const double GAIN = 0.002; /* of the error: less in a round, and it ends */

static size_t row_below(pd_rng *rng, size_t n) {
    return (size_t)(pd_rng_f64(rng) * (double)n);
}

static float distance(const float *x, const float *book, size_t sub, size_t n_centroid, size_t c) {
    float sum = 0.0f;
    for (size_t k = 0; k < sub; k++) sum += (x[k] - book[k * n_centroid + c]) * (x[k] - book[k * n_centroid + c]);
    return sum;
}

static void put(float *book, size_t sub, size_t n_centroid, size_t c, const float *x) {
    for (size_t k = 0; k < sub; k++) book[k * n_centroid + c] = x[k];
}

/* Each new seed is a row, the likelier the farther it is from those there are: off [n]. */
static void seed(const float *x, size_t n, size_t sub, size_t n_centroid, pd_rng *rng, float *book, float *off) {
    put(book, sub, n_centroid, 0, x + row_below(rng, n) * sub);
    for (size_t i = 0; i < n; i++) off[i] = distance(x + i * sub, book, sub, n_centroid, 0);
    for (size_t c = 1; c < n_centroid; c++) {
        double sum = 0.0;
        for (size_t i = 0; i < n; i++) sum += (double)off[i];
        double left = pd_rng_f64(rng) * sum;
        size_t at = 0;
        while (at + 1 < n && (left -= (double)off[at]) > 0.0) at++;
        put(book, sub, n_centroid, c, x + at * sub);
        for (size_t i = 0; i < n; i++) {
            const float d = distance(x + i * sub, book, sub, n_centroid, c);
            if (d < off[i]) off[i] = d;
        }
    }
}

double pd__kmeans(const pd_kernels *kern, const float *x, size_t n, size_t sub, size_t n_centroid, uint64_t start,
                  float *book, float *tmp) {
    assert(sub <= SUB_MAX && n_centroid <= MAX && n_centroid % 16 == 0 && n >= 1);
    pd_rng rng = {start};
    seed(x, pd_min_size(n, SEED_ROWS * n_centroid), sub, n_centroid, &rng, book, tmp);
    double last = 0.0;
    for (int round = 0; round < ROUNDS; round++) {
        double sum[MAX * SUB_MAX] = {0}, error = 0.0;
        size_t count[MAX] = {0};
        for (size_t i = 0; i < n; i++) {
            const float *row = x + i * sub;
            const size_t c = kern->nearest_f32(row, book, sub, n_centroid);
            error += (double)distance(row, book, sub, n_centroid, c);
            for (size_t k = 0; k < sub; k++) sum[c * sub + k] += (double)row[k];
            count[c]++;
        }
        error /= (double)n;
        if (round && last - error <= GAIN * last) return error;
        last = error;
        for (size_t c = 0; c < n_centroid; c++) {
            if (!count[c]) put(book, sub, n_centroid, c, x + row_below(&rng, n) * sub);
            for (size_t k = 0; count[c] && k < sub; k++) book[k * n_centroid + c] = (float)(sum[c * sub + k] / (double)count[c]);
        }
    }
    return last;
}
