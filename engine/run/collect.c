/* SPDX-License-Identifier: Apache-2.0 */
/* Gathering query statistics (see collect.h): one gram_f32 per head and block of rows. */
#include "engine/run/collect.h"

#include "engine/base/num.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static void *get(pd_collect *c, size_t n, size_t size) {
    size_t bytes;
    if (!pd_mul_size(n, size, &bytes)) return NULL;
    void *p = malloc(bytes ? bytes : 1);
    if (!p) return NULL;
    c->memory[c->n_memory++] = p;
    c->bytes += bytes;
    return p;
}

pd_status pd_collect_init(pd_collect *c, const pd_press_needs *needs, const pd_hparams *hp,
                          const pd_kernels *kern, pd_workers *workers, size_t rows, pd_err *err) {
    *c = (pd_collect){.needs = *needs, .hp = hp, .kern = kern, .workers = workers, .rows = rows};
    const size_t nq = hp->n_head * hp->head_dim;
    bool ok = true;
    for (size_t i = 0; i < needs->n_moments; i++) {
        pd_collect_set *s = &c->set[i];
        s->n_sink = needs->n_sink[i];
        s->shift = get(c, nq, sizeof(float));
        s->sum = get(c, nq, sizeof(double));
        s->mean = get(c, nq, sizeof(float));
        ok = ok && s->shift && s->sum && s->mean;
        if (!(needs->bits & PD_NEEDS_Q_COV)) continue;
        s->wait = get(c, PD_COLLECT_BLOCK * nq, sizeof(float));
        s->cov = get(c, nq * hp->head_dim, sizeof(float));
        ok = ok && s->wait && s->cov;
    }
    c->tail_rows = needs->bits & PD_NEEDS_Q_ALL ? rows : needs->bits & PD_NEEDS_Q_TAIL ? pd_min_size(needs->q_tail, rows) : 0;
    if (c->tail_rows) {
        c->tail = get(c, c->tail_rows * nq, sizeof(float));
        c->tail_pos = get(c, c->tail_rows, sizeof(int32_t));
        ok = ok && c->tail && c->tail_pos;
    }
    if (needs->bits & PD_NEEDS_X) ok = (c->x = get(c, rows * hp->n_embd, sizeof(float))) && ok;
    if (needs->bits & PD_NEEDS_ATT_SUM) ok = (c->att_sum = get(c, hp->n_head * rows, sizeof(float))) && ok;
    if (ok) return PD_OK;
    pd_collect_done(c);
    return pd_fail(err, PD_ENOMEM, NULL, "no memory for the query statistics of %zu tokens", rows);
}

void pd_collect_done(pd_collect *c) {
    for (size_t i = 0; i < c->n_memory; i++) free(c->memory[i]);
    *c = (pd_collect){0};
}

void pd_collect_begin(pd_collect *c) {
    const size_t nq = c->hp ? c->hp->n_head * c->hp->head_dim : 0;
    if (c->att_sum) memset(c->att_sum, 0, c->hp->n_head * c->rows * sizeof *c->att_sum);
    for (size_t i = 0; i < c->needs.n_moments; i++) {
        pd_collect_set *s = &c->set[i];
        s->count = 0;
        memset(s->sum, 0, nq * sizeof *s->sum);
        if (s->cov) memset(s->cov, 0, nq * c->hp->head_dim * sizeof *s->cov);
    }
}

/* Rows [row, row + n) of the scope for one set of moments. */
typedef struct {
    const pd_collect *c;
    pd_collect_set *set;
    const float *q;
    size_t row, n;
} add_job;

/* End of the piece of `cut` rows that row `row` is in. */
static size_t piece_end(size_t row, size_t cut, size_t end) {
    return pd_min_size((row / cut + 1) * cut, end);
}

/* The mean of the rows of the first piece, what all are counted from. */
static void set_shift(const add_job *j, size_t col, size_t d) {
    const size_t nq = j->c->hp->n_head * d, n = piece_end(j->row, PD_COLLECT_CUT, j->row + j->n) - j->row;
    for (size_t i = col; i < col + d; i++) {
        double sum = 0.0;
        for (size_t r = 0; r < n; r++) sum += j->q[r * nq + i];
        j->set->shift[i] = (float)(sum / (double)n);
    }
}

/* What waits of a head's rows, those of its block up to row `end`, into its covariance. */
static void add_block(const pd_collect *c, const pd_collect_set *s, size_t head, size_t end) {
    const size_t d = c->hp->head_dim, block = (end - 1) / PD_COLLECT_BLOCK * PD_COLLECT_BLOCK;
    const size_t first = pd_max_size(s->n_sink, block) - block; /* sinks are in no moment */
    c->kern->gram_f32(s->wait + (head * PD_COLLECT_BLOCK + first) * d, end - block - first, d, s->cov + head * d * d);
}

/* Task = query head. */
static void add_task(void *ctx, size_t head, unsigned thread) {
    (void)thread;
    const add_job *j = ctx;
    pd_collect_set *s = j->set;
    const size_t d = j->c->hp->head_dim, nq = j->c->hp->n_head * d, col = head * d, end = j->row + j->n;
    if (s->count == 0) set_shift(j, col, d);
    for (size_t row = j->row, e; row < end; row = e) {
        float sum[PD_COLLECT_DIM];
        e = piece_end(row, PD_COLLECT_CUT, end);
        float *to = s->cov ? s->wait + (head * PD_COLLECT_BLOCK + row % PD_COLLECT_BLOCK) * d : NULL;
        j->c->kern->centre_f32(j->q + (row - j->row) * nq + col, nq, e - row, d, s->shift + col, to, sum);
        for (size_t i = 0; i < d; i++) s->sum[col + i] += (double)sum[i];
        if (s->cov && e % PD_COLLECT_BLOCK == 0) add_block(j->c, s, head, e);
    }
}

void pd_collect_raw(pd_collect *c, size_t row0, size_t n, const float *q, const float *x) {
    if (!c->hp) return;
    const size_t nq = c->hp->n_head * c->hp->head_dim;
    for (size_t i = 0; i < c->needs.n_moments; i++) {
        const size_t skip = c->set[i].n_sink > row0 ? pd_min_size(c->set[i].n_sink - row0, n) : 0;
        if (skip == n) continue;
        pd_workers_run(c->workers, add_task, &(add_job){c, &c->set[i], q + skip * nq, row0 + skip, n - skip}, c->hp->n_head);
        c->set[i].count += n - skip;
    }
    if (c->x) memcpy(c->x + row0 * c->hp->n_embd, x, n * c->hp->n_embd * sizeof *x);
}

void pd_collect_rotated(pd_collect *c, size_t row0, size_t n, const float *q, const int32_t *pos) {
    if (!c->tail_rows || row0 + n <= c->rows - c->tail_rows) return;
    const size_t nq = c->hp->n_head * c->hp->head_dim, begin = c->rows - c->tail_rows;
    const size_t skip = begin > row0 ? begin - row0 : 0, to = row0 + skip - begin;
    memcpy(c->tail + to * nq, q + skip * nq, (n - skip) * nq * sizeof *q);
    memcpy(c->tail_pos + to, pos + skip, (n - skip) * sizeof *pos);
}

/* Task = query head: what still waits, and about the mean instead of about shift. */
static void finish_task(void *ctx, size_t head, unsigned thread) {
    (void)thread;
    const add_job *j = ctx;
    pd_collect_set *s = j->set;
    const size_t d = j->c->hp->head_dim, rows = s->n_sink + s->count;
    const double inv = 1.0 / (double)s->count, *sum = s->sum + head * d;
    for (size_t i = 0; i < d; i++) s->mean[head * d + i] = (float)((double)s->shift[head * d + i] + sum[i] * inv);
    if (!s->cov) return;
    if (rows % PD_COLLECT_BLOCK) add_block(j->c, s, head, rows);
    float *cov = s->cov + head * d * d;
    for (size_t a = 0; a < d; a++) {
        for (size_t b = a; b < d; b++) {
            const double v = (double)cov[a * d + b] * inv - sum[a] * inv * (sum[b] * inv);
            cov[a * d + b] = cov[b * d + a] = (float)v;
        }
    }
}

void pd_collect_finish(pd_collect *c) {
    for (size_t i = 0; i < c->needs.n_moments; i++) {
        pd_collect_set *s = &c->set[i];
        c->moments[i] = (pd_moments){.n_sink = s->n_sink, .count = s->count};
        if (s->count == 0) continue;
        pd_workers_run(c->workers, finish_task, &(add_job){.c = c, .set = s}, c->hp->n_head);
        c->moments[i].mean = s->mean;
        c->moments[i].cov = s->cov;
    }
}

/* ---- ring ---- */

pd_status pd_qring_init(pd_qring *r, size_t n_layer, size_t nq, size_t rows, pd_err *err) {
    *r = (pd_qring){.n_layer = n_layer, .nq = nq, .rows = rows, .bytes = n_layer * rows * nq * sizeof(float)};
    r->q = malloc(r->bytes);
    r->pos = malloc(rows * sizeof *r->pos);
    if (r->q && r->pos) return PD_OK;
    pd_qring_done(r);
    return pd_fail(err, PD_ENOMEM, NULL, "no memory for the recent queries of a sequence");
}

void pd_qring_done(pd_qring *r) {
    free(r->q);
    free(r->pos);
    *r = (pd_qring){0};
}

void pd_qring_put(pd_qring *r, size_t layer, size_t ahead, const float *q) {
    memcpy(r->q + (layer * r->rows + (r->n_seen + ahead) % r->rows) * r->nq, q, r->nq * sizeof *q);
}

void pd_qring_advance(pd_qring *r, int32_t pos) {
    r->pos[r->n_seen % r->rows] = pos;
    r->n_seen++;
}

const float *pd_qring_row(const pd_qring *r, size_t layer, size_t i, int32_t *pos) {
    const size_t at = (r->n_seen - pd_qring_count(r) + i) % r->rows;
    if (pos) *pos = r->pos[at];
    return r->q + (layer * r->rows + at) * r->nq;
}
