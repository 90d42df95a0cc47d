/* SPDX-License-Identifier: Apache-2.0 */
/* Gathering query statistics (see collect.h): one ssyrk per head and piece. */
#include "engine/run/collect.h"

#include "engine/base/num.h"

#include <assert.h>
#include <cblas.h>
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
                          pd_workers *workers, size_t rows, size_t tile_rows, pd_err *err) {
    *c = (pd_collect){.needs = *needs, .hp = hp, .workers = workers, .rows = rows};
    const size_t nq = hp->n_head * hp->head_dim;
    bool ok = true;
    for (size_t i = 0; i < needs->n_moments; i++) {
        pd_collect_set *s = &c->set[i];
        s->n_sink = needs->n_sink[i];
        s->shift = get(c, nq, sizeof(float));
        s->sum = get(c, nq, sizeof(double));
        s->mean = get(c, nq, sizeof(float));
        if (needs->bits & PD_NEEDS_Q_COV) s->cov = get(c, nq * hp->head_dim, sizeof(float));
        ok = ok && s->shift && s->sum && s->mean && (s->cov || !(needs->bits & PD_NEEDS_Q_COV));
    }
    if (needs->n_moments) ok = (c->shifted = get(c, tile_rows * nq, sizeof(float))) && ok;
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

typedef struct {
    const pd_collect *c;
    pd_collect_set *set;
    size_t row, n;
} cov_job;

/* End of the piece that row `row` is in. */
static size_t piece_end(size_t row, size_t end) {
    return pd_min_size((row / PD_COLLECT_CUT + 1) * PD_COLLECT_CUT, end);
}

static void cov_task(void *ctx, size_t head, unsigned thread) {
    (void)thread;
    const cov_job *j = ctx;
    const int d = (int)j->c->hp->head_dim, nq = (int)j->c->hp->n_head * d;
    for (size_t r = 0; r < j->n;) {
        const size_t n = piece_end(j->row + r, j->row + j->n) - j->row - r;
        cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, d, (int)n, 1.0f, j->c->shifted + r * (size_t)nq + head * (size_t)d, nq,
                    1.0f, j->set->cov + head * (size_t)d * (size_t)d, d);
        r += n;
    }
}

/* Rows [row, row + n) of the scope. */
static void add_rows(pd_collect *c, pd_collect_set *s, size_t row, const float *q, size_t n) {
    const size_t nq = c->hp->n_head * c->hp->head_dim;
    if (s->count == 0) {
        const size_t first = piece_end(row, row + n) - row;
        for (size_t i = 0; i < nq; i++) {
            double sum = 0.0;
            for (size_t r = 0; r < first; r++) sum += q[r * nq + i];
            s->shift[i] = (float)(sum / (double)first);
        }
    }
    for (size_t r = 0; r < n; r++) {
        float *to = c->shifted + r * nq;
        for (size_t i = 0; i < nq; i++) {
            to[i] = q[r * nq + i] - s->shift[i];
            s->sum[i] += to[i];
        }
    }
    s->count += n;
    if (!s->cov) return;
    cov_job job = {c, s, row, n};
    pd_workers_run(c->workers, cov_task, &job, c->hp->n_head);
}

void pd_collect_raw(pd_collect *c, size_t row0, size_t n, const float *q, const float *x) {
    if (!c->hp) return;
    const size_t nq = c->hp->n_head * c->hp->head_dim;
    for (size_t i = 0; i < c->needs.n_moments; i++) {
        const size_t skip = c->set[i].n_sink > row0 ? pd_min_size(c->set[i].n_sink - row0, n) : 0;
        if (skip < n) add_rows(c, &c->set[i], row0 + skip, q + skip * nq, n - skip);
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

void pd_collect_finish(pd_collect *c) {
    for (size_t i = 0; i < c->needs.n_moments; i++) {
        pd_collect_set *s = &c->set[i];
        c->moments[i] = (pd_moments){.n_sink = s->n_sink, .count = s->count};
        if (s->count == 0) continue;
        const size_t d = c->hp->head_dim, nq = c->hp->n_head * d;
        const double inv = 1.0 / (double)s->count;
        for (size_t k = 0; k < nq; k++) s->mean[k] = (float)((double)s->shift[k] + s->sum[k] * inv);
        for (size_t h = 0; s->cov && h < c->hp->n_head; h++) {
            float *cov = s->cov + h * d * d;
            const double *sum = s->sum + h * d;
            for (size_t a = 0; a < d; a++) {
                for (size_t b = a; b < d; b++) {
                    const double v = (double)cov[a * d + b] * inv - sum[a] * inv * (sum[b] * inv);
                    cov[a * d + b] = cov[b * d + a] = (float)v;
                }
            }
        }
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
