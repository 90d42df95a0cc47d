/* SPDX-License-Identifier: Apache-2.0 */
/* Passes over the rows of a view (see shared.h). */
#include "compression/shared.h"

#include "engine/base/num.h"

#include <math.h>

typedef struct {
    const pd_view *view;
    pd__tile_fn fn;
    void *ctx;
    size_t per_head; /* tiles of the longest head */
} tiles;

static void run_tile(void *p, size_t task, unsigned thread) {
    const tiles *t = p;
    const size_t h = task / t->per_head, first = task % t->per_head * PD__TILE;
    if (first >= t->view->n_h[h]) return;
    t->fn(t->ctx, t->view, h, first, pd_min_size(PD__TILE, t->view->n_h[h] - first), thread);
}

void pd__for_tiles(const pd_view *view, pd__tile_fn fn, void *ctx) {
    tiles t = {view, fn, ctx, pd_div_up(view->n, PD__TILE)};
    pd_workers_run(view->workers, run_tile, &t, view->n_head_kv * t.per_head);
}

typedef struct {
    const float *const *rows;
    float *const *out;
} norm_job;

static void norm_tile(void *ctx, const pd_view *view, size_t h, size_t first, size_t n,
                      unsigned thread) {
    const norm_job *j = ctx;
    const size_t d = view->head_dim;
    for (size_t i = first; i < first + n; i++) {
        const float *x = j->rows[h] + i * d;
        j->out[h][i] = sqrtf(view->kern->dot_f32(x, x, d));
    }
}

void pd__row_norms(const pd_view *view, const float *const *rows, float *const *out) {
    norm_job j = {rows, out};
    pd__for_tiles(view, norm_tile, &j);
}

size_t pd__slots_before(const pd_view *view, size_t h, int64_t pos) {
    size_t lo = 0, hi = view->n_h[h];
    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        if (view->pos[h][mid] < pos)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

void pd__raise_positions(const pd_view *view, float *const *score, int64_t lo, int64_t hi) {
    float max = -INFINITY;
    for (size_t h = 0; h < view->n_head_kv; h++) {
        const size_t a = pd__slots_before(view, h, lo), b = pd__slots_before(view, h, hi),
                     n = view->n_h[h];
        if (a > 0) max = fmaxf(max, view->kern->max_f32(score[h], a));
        if (b < n) max = fmaxf(max, view->kern->max_f32(score[h] + b, n - b));
    }
    if (isinf(max)) max = 0.0f; /* no other slots */
    for (size_t h = 0; h < view->n_head_kv; h++) {
        const size_t b = pd__slots_before(view, h, hi);
        for (size_t i = pd__slots_before(view, h, lo); i < b; i++) score[h][i] = max + 1.0f;
    }
}
