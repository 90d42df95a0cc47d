/* SPDX-License-Identifier: Apache-2.0 */
/* The mean of RoPE's rotations over future positions (see shared.h), as kvpress'
 * ExpectedAttentionPress averages them one by one.
 *
 * With t = theta_i, over positions a .. a+N-1,
 *     c_i + j s_i = e^{j (a + (N-1)/2) t} sin(N t / 2) / (N sin(t / 2))
 * and Rbar mixes only the pair (i, i + D/2) by [[c, -s], [s, c]], so no D x D
 * rotation is ever built. */
#include "compression/shared.h"

#include <math.h>

void pd__mean_rotation(const pd_view *view, double a, double n, double *c, double *s) {
    for (size_t i = 0; i < view->head_dim / 2; i++) {
        const double t = (double)view->inv_freq[i];
        const double den = n * sin(t / 2.0);
        const double shrink = fabs(den) < 1e-12 ? 1.0 : sin(n * t / 2.0) / den;
        const double mid = (a + (n - 1.0) / 2.0) * t;
        c[i] = cos(mid) * shrink * (double)view->rope_scale;
        s[i] = sin(mid) * shrink * (double)view->rope_scale;
    }
}

void pd__rotate(float *x, size_t step, size_t half, const double *c, const double *s,
                double scale) {
    for (size_t i = 0; i < half; i++) {
        const double a = (double)x[i * step], b = (double)x[(i + half) * step];
        x[i * step] = (float)((a * c[i] - b * s[i]) * scale);
        x[(i + half) * step] = (float)((b * c[i] + a * s[i]) * scale);
    }
}
