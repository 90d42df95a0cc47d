/* SPDX-License-Identifier: Apache-2.0 */
/* Attention's scratch, and tiles of a prompt (see attn.h; attn_step.c has decode steps).
 *
 * One task = 32 tokens (16 if that gives too few tasks), all query heads of one KV
 * head (kernels.h, attn_tile); blocks above the diagonal or below the window are skipped. */
#include "engine/run/attn_int.h"

#include "engine/base/num.h"

#include <stdlib.h>

enum { TOKENS = 32, TOKENS_FEW = 16, SUM_SLOTS = 8 * PD_ATTN_TILE_KEYS, PAGES = PD_ATTN_PAGES, N = PD_PAGE_TOKENS };

static float *floats(pd_attn *a, size_t n) {
    const size_t bytes = (n * sizeof(float) + 63) / 64 * 64;
    a->bytes += bytes;
    return aligned_alloc(64, bytes);
}

pd_status pd_attn_init(pd_attn *a, const pd_model *m, const pd_kernels *kern, pd_workers *workers,
                       size_t max_rows, size_t ctx, bool exact, pd_err *err) {
    const pd_hparams *hp = &m->hp;
    const size_t threads = pd_workers_count(workers), group = hp->n_head / hp->n_head_kv;
    *a = (pd_attn){.model = m, .kern = kern, .workers = workers, .exact = exact, .max_rows = max_rows};
    a->tile_floats = pd_div_up(pd_attn_rows_floats(TOKENS, group, hp->head_dim), 16) * 16;
    a->pages_floats = group * (PD__ATTN_STRIDE) + 2 * group * hp->head_dim + pd_codec_attn_floats(group, hp->head_dim);
    a->latent_floats = pd_max_size(2 * hp->head_dim * PAGES * N + hp->head_dim * N + hp->head_dim, pd_joint_piece_floats(hp));
    a->latent_floats = pd_div_up(a->latent_floats, 16) * 16;
    a->latent = floats(a, threads * a->latent_floats);
    a->row_max = floats(a, hp->n_head * PD_ATTN_TILE);
    a->row_sum = floats(a, hp->n_head * PD_ATTN_TILE);
    a->pair_cap = ctx / (PAGES * N) + 12; /* a head's pieces are 8, or as long as chunks */
    const size_t n_pair = max_rows * hp->n_head_kv, n_chunk = n_pair * a->pair_cap;
    a->tile = floats(a, threads * a->tile_floats);
    a->pages = floats(a, threads * a->pages_floats);
    a->part = floats(a, n_chunk * pd__attn_part_floats(hp));
    a->range = malloc(n_chunk * sizeof *a->range);
    a->chunk = malloc(2 * n_chunk * sizeof *a->chunk); /* and as many for score_by_keys */
    a->pair = malloc(n_pair * sizeof *a->pair);
    if (a->latent && a->row_max && a->row_sum && a->tile && a->pages && a->part && a->range && a->chunk && a->pair) return PD_OK;
    pd_attn_done(a);
    return pd_fail(err, PD_ENOMEM, NULL, "no memory for attention scratch");
}

void pd_attn_done(pd_attn *a) {
    free(a->tile);
    free(a->row_max);
    free(a->row_sum);
    free(a->pages);
    free(a->latent);
    free(a->part);
    free(a->chunk);
    free(a->table);
    free(a->table_scale);
    free(a->range);
    free(a->pair);
    *a = (pd_attn){0};
}

pd_status pd_attn_hold_tables(pd_attn *a, size_t n, pd_err *err) {
    const size_t heads = a->max_rows * a->model->hp.n_head, bytes = pd_div_up(n, 64) * 64;
    if (bytes <= a->table_bytes) return PD_OK;
    uint8_t *table = aligned_alloc(64, heads * bytes);
    if (!a->table_scale) a->table_scale = malloc(2 * heads * sizeof *a->table_scale);
    if (!table || !a->table_scale) {
        free(table);
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the tables of keys in codes");
    }
    free(a->table);
    a->bytes += heads * (bytes - a->table_bytes);
    a->table = table;
    a->table_bytes = bytes;
    return PD_OK;
}

/* ---- a tile of a prompt ---- */

typedef struct {
    pd_attn *a;
    const pd_stage *s;
    const float *q;
    float *out;
    size_t row0, n, block, n_block; /* tokens of a block; blocks per KV head */
    uint32_t window;
    float *sums; /* pd_attn_tile_sums */
    size_t stride;
} tile_job;

/* Tokens [r0, r0 + n) of the tile, all query heads of one KV head.  Slots of a
 * windowed layer are consecutive positions, so the window is a range of slots too. */
static pd_attn_rows rows_of(const tile_job *j, size_t kv_head, size_t r0, size_t n, unsigned thread) {
    pd_attn *a = j->a;
    const pd_hparams *hp = &a->model->hp;
    const size_t d = hp->head_dim, nq = hp->n_head * d, group = hp->n_head / hp->n_head_kv;
    const size_t at = r0 * nq + kv_head * group * d, row = kv_head * group * PD_ATTN_TILE + r0;
    return (pd_attn_rows){.q = j->q + at, .out = j->out ? j->out + at : NULL,
                          .k = pd_stage_k(j->s, kv_head), .v = pd_stage_v(j->s, kv_head),
                          .m = a->row_max + row, .l = a->row_sum + row, .n_tok = n, .n_group = group,
                          .head_dim = d, .ld = nq, .ld_ml = PD_ATTN_TILE,
                          .n_before = j->s->n_prior[kv_head] + j->row0 + r0, .window = j->window,
                          .scale = hp->attn_scale, .softcap = hp->attn_softcap,
                          .tmp = a->tile + thread * a->tile_floats};
}

static void tile_task(void *ctx, size_t task, unsigned thread) {
    const tile_job *j = ctx;
    const size_t r0 = task % j->n_block * j->block, n = pd_min_size(j->block, j->n - r0);
    const pd_attn_rows rows = rows_of(j, task / j->n_block, r0, n, thread);
    if (j->a->exact)
        j->a->kern->attn_tile_f32(&rows);
    else
        j->a->kern->attn_tile_fast(&rows);
}

void pd_attn_tile(pd_attn *a, const pd_stage *s, const float *q, size_t row0, size_t n, uint32_t window, float *out) {
    const size_t heads = a->model->hp.n_head_kv, want = 3 * (size_t)pd_workers_count(a->workers);
    const size_t block = heads * pd_div_up(n, TOKENS) < want ? TOKENS_FEW : TOKENS;
    tile_job job = {.a = a, .s = s, .q = q, .out = out, .row0 = row0, .n = n, .block = block,
                    .n_block = pd_div_up(n, block), .window = window};
    pd_workers_run(a->workers, tile_task, &job, heads * job.n_block);
}

/* SUM_SLOTS columns of one KV head, all rows in order: a column's sum does not
 * depend on threads. */
static void sums_task(void *ctx, size_t task, unsigned thread) {
    const tile_job *j = ctx;
    const pd_hparams *hp = &j->a->model->hp;
    const size_t kv_head = task / j->n_block, s0 = task % j->n_block * SUM_SLOTS;
    float *sums = j->sums + kv_head * (hp->n_head / hp->n_head_kv) * j->stride;
    for (size_t r0 = 0; r0 < j->n; r0 += TOKENS) {
        const pd_attn_rows rows = rows_of(j, kv_head, r0, pd_min_size(TOKENS, j->n - r0), thread);
        if (j->a->exact)
            j->a->kern->attn_tile_sums_f32(&rows, s0, s0 + SUM_SLOTS, sums, j->stride);
        else
            j->a->kern->attn_tile_sums_fast(&rows, s0, s0 + SUM_SLOTS, sums, j->stride);
    }
}

void pd_attn_tile_sums(pd_attn *a, const pd_stage *s, const float *q, size_t row0, size_t n, uint32_t window,
                       float *sums, size_t stride) {
    size_t prior = 0;
    for (size_t h = 0; h < s->n_head_kv; h++) prior = pd_max_size(prior, s->n_prior[h]);
    tile_job job = {.a = a, .s = s, .q = q, .out = NULL, .row0 = row0, .n = n,
                    .n_block = pd_div_up(prior + row0 + n, SUM_SLOTS), .window = window,
                    .sums = sums, .stride = stride};
    pd_workers_run(a->workers, sums_task, &job, a->model->hp.n_head_kv * job.n_block);
}
