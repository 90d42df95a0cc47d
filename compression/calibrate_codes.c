/* SPDX-License-Identifier: Apache-2.0 */
/* Codebooks of keys from a text (see calibrate.h), for HCAttention's product codes (2507.19823).
 *
 * Codes are of keys after RoPE, since a table of a query's products has no position in it; so a
 * book must have seen all rotations.  A text is read in prompts of some 1,000 tokens, a server
 * goes to the end of the context: keys are therefore kept before RoPE, a sample of each layer's,
 * and turned to positions drawn from the whole context when the books are made.
 *
 * A pair of channels weighs as much as queries are large there (from their moments), since a score's
 * error is the key's times the query.
 *
 * Cost: ROWS keys of 2 bytes a number; at the end k-means of each head's parts in six ways. */
#include "compression/calibrate_int.h"
#include "compression/kmeans.h"
#include "engine/base/num.h"
#include "engine/cache/codes.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double LEAST_SQUARE = 1e-3; /* of a head's mean, added */

enum { ROWS = PD_CALIB_CODE_ROWS, TRAIN = ROWS, TURNS = 4 /* of one key, at most */ };

/* ---- the sample ---- */

/* Angles as the model turned it by. */
static void turn(float *k, size_t half, const float *freq, size_t pos, float way) {
    for (size_t i = 0; i < half; i++) {
        const float angle = (float)pos * freq[i], c = cosf(angle), s = way * sinf(angle), x = k[i], y = k[i + half];
        k[i] = x * c - y * s;
        k[i + half] = y * c + x * s;
    }
}

/* RoPE turns a pair and leaves it as long as it is. */
static void add_queries(pd_calib *c, const pd_view *view) {
    const pd_moments *m = pd_view_moments(view, PD_CALIB_SINK);
    const size_t d = view->head_dim, half = d / 2, group = view->n_head / view->n_head_kv;
    for (size_t h = 0; m && m->count && h < view->n_head; h++) {
        double *sum = c->code_query + ((size_t)view->layer * view->n_head_kv + h / group) * half;
        for (size_t i = 0; i < d; i++) {
            const double mean = (double)m->mean[h * d + i];
            sum[i % half] += ((double)m->cov[(h * d + i) * d + i] + mean * mean) * (double)m->count;
        }
    }
}

/* Each row of a layer is in the sample with the same chance (Vitter's algorithm R); of a chosen
 * token all heads' keys are. */
pd_status pd__calib_codes_layer(pd_calib *c, const pd_view *view, pd_err *err) {
    const size_t l = (size_t)view->layer, d = view->head_dim, heads = view->n_head_kv;
    c->kern = view->kern;
    add_queries(c, view);
    memcpy(c->freq + l * d / 2, view->inv_freq, d / 2 * sizeof *c->freq);
    float *row = PD_ARENA_NEW(view->tmp, d, float);
    if (!row) return pd_fail(err, PD_ENOMEM, NULL, "no memory to calibrate a layer");
    for (size_t t = PD_CALIB_SINK; t < view->n; t++) {
        pd_rng rng = {l << 40 ^ c->code_seen[l]};
        size_t at = c->code_seen[l]++;
        if (at >= ROWS) at = (size_t)(pd_rng_f64(&rng) * (double)(at + 1));
        if (at >= ROWS) continue;
        for (size_t h = 0; h < heads; h++) {
            memcpy(row, view->k[h] + t * d, d * sizeof *row);
            turn(row, d / 2, view->inv_freq, (size_t)view->pos[0][t], -1.0f);
            view->kern->f32_to_f16(row, c->code_row + ((l * heads + h) * ROWS + at) * d, d);
        }
    }
    return PD_OK;
}

/* ---- books ---- */

typedef struct {
    const pd_calib *c;
    size_t layer, n;  /* rows */
    const float *x;   /* [Hk][n][D] turned and weighed */
    float *book[PD_BOOKS];
    float *scratch;   /* [threads][n][PD_KMEANS_SUB_MAX + 1] */
} book_job;

/* Task = head, kind of book, part. */
static void book_task(void *ctx, size_t task, unsigned thread) {
    const book_job *j = ctx;
    const size_t d = j->c->model.head_dim;
    size_t per_head = 0, part = 0, b = 0;
    for (size_t i = 0; i < PD_BOOKS; i++) per_head += d / pd_books[i].sub;
    const size_t head = task / per_head;
    for (part = task % per_head; part >= d / pd_books[b].sub; b++) part -= d / pd_books[b].sub;
    const size_t sub = pd_books[b].sub, n_centroid = pd_books[b].n_centroid;
    float *rows = j->scratch + thread * j->n * (PD_KMEANS_SUB_MAX + 1);
    for (size_t i = 0; i < j->n; i++) memcpy(rows + i * sub, j->x + (head * j->n + i) * d + part * sub, sub * sizeof *rows);
    const size_t at = (j->layer * j->c->model.n_head_kv + head) * d + part * sub;
    pd__kmeans(j->c->kern, rows, j->n, sub, n_centroid, j->layer << 40 ^ task, j->book[b] + at * n_centroid,
               rows + j->n * PD_KMEANS_SUB_MAX);
}

/* A pair's error is multiplied by the queries there: in proportion to their size, 1 in the mean of
 * the logarithm; a pair that queries hardly use still counts a little. */
static void weigh(const double *square, size_t half, float *weight) {
    double all = 0.0, log_mean = 0.0;
    for (size_t i = 0; i < half; i++) all += square[i] / (double)half;
    for (size_t i = 0; i < half; i++) log_mean += 0.5 * log(square[i] / all + LEAST_SQUARE) / (double)half;
    for (size_t i = 0; i < half; i++) weight[i] = (float)exp(0.5 * log(square[i] / all + LEAST_SQUARE) - log_mean);
}

/* The sample's rows, each at several places of the context. */
static void turn_rows(const pd_calib *c, size_t layer, size_t positions, size_t n_row, size_t n, float *x) {
    const size_t d = c->model.head_dim, heads = c->model.n_head_kv;
    const float *freq = c->freq + layer * d / 2;
    float row[PD_BOOK_DIM_MAX], cs[PD_BOOK_DIM_MAX];
    pd_rng rng = {layer + 1};
    for (size_t i = 0; i < n; i++) {
        const size_t pos = (size_t)(pd_rng_f64(&rng) * (double)positions);
        for (size_t k = 0; k < d / 2; k++) {
            cs[k] = cosf((float)pos * freq[k]);
            cs[d / 2 + k] = sinf((float)pos * freq[k]);
        }
        for (size_t h = 0; h < heads; h++) {
            c->kern->f16_to_f32(c->code_row + ((layer * heads + h) * ROWS + i % n_row) * d, row, d);
            c->kern->rope(row, 1, d, cs, cs + d / 2);
            pd_book_weigh(d, c->book_weight + (layer * heads + h) * (d / 2), row, x + (h * n + i) * d);
        }
    }
}

pd_status pd_calib_codes(pd_calib *c, size_t layer, size_t positions, pd_press_data *d, pd_workers *workers, pd_err *err) {
    const size_t dim = c->model.head_dim, heads = c->model.n_head_kv, n_row = pd_min_size(c->code_seen[layer], ROWS),
                 n = pd_min_size(TRAIN, TURNS * n_row);
    book_job j = {.c = c, .layer = layer, .n = n};
    size_t tasks = 0;
    if (layer == 0) c->book_weight = pd_press_data_put(d, PD_DATA_BOOK_WEIGHT);
    if (!c->book_weight) return pd_fail(err, PD_ENOMEM, NULL, "no memory for codebooks");
    for (size_t b = 0; b < PD_BOOKS; b++) {
        if (layer == 0) c->book[b] = pd_press_data_put(d, (pd_data_id)(PD_DATA_BOOK + b));
        if (!(j.book[b] = c->book[b])) return pd_fail(err, PD_ENOMEM, NULL, "no memory for codebooks");
        tasks += heads * (dim / pd_books[b].sub);
    }
    if (!n) return PD_OK; /* a layer that is never pressed */
    for (size_t h = layer * heads; h < (layer + 1) * heads; h++) weigh(c->code_query + h * (dim / 2), dim / 2, c->book_weight + h * (dim / 2));
    const size_t rows = heads * n * dim;
    float *x = malloc((rows + pd_workers_count(workers) * n * (PD_KMEANS_SUB_MAX + 1)) * sizeof *x);
    if (!x) return pd_fail(err, PD_ENOMEM, NULL, "no memory for codebooks");
    turn_rows(c, layer, positions, n_row, n, x);
    j.x = x;
    j.scratch = x + rows;
    pd_workers_run(workers, book_task, &j, tasks);
    free(x);
    return PD_OK;
}
