/* SPDX-License-Identifier: Apache-2.0 */
/* Reading some of the cache (see select.h). */
#include "engine/run/select.h"

#include "engine/base/num.h"
#include "engine/base/rng.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N = PD_PAGE_TOKENS, PAGES = 16 /* of a chunk */ };

/* Room for the scores of every slot that a step may look at. */
static bool open_values(pd_select *s, size_t most) {
    s->stride = most;
    if (s->rule.page_budget && s->rule.skip_layers == 0) s->stride = pd_min_size(most, s->rule.page_budget * N);
    const size_t bytes = pd_div_up(s->n_head * s->stride * sizeof *s->score, 64) * 64;
    s->score = aligned_alloc(64, bytes);
    s->cut = malloc(s->n_head * sizeof *s->cut);
    s->bytes += bytes;
    return s->score && s->cut;
}

static bool open_pages(pd_select *s, size_t most) {
    const size_t heads = s->n_head / s->group;
    s->page_stride = pd_div_up(most / N, N) * N;
    s->bound = malloc(heads * s->page_stride * sizeof *s->bound);
    s->page = malloc(heads * s->page_stride * sizeof *s->page);
    s->n_page = calloc(heads, sizeof *s->n_page);
    s->bytes += heads * s->page_stride * (sizeof *s->bound + sizeof *s->page);
    return s->bound && s->page && s->n_page;
}

static bool open_counts(pd_select *s) {
    s->rows = calloc(3 * s->n_layer, sizeof *s->rows);
    if (!s->rows) return false;
    s->keys = s->rows + s->n_layer;
    s->values = s->keys + s->n_layer;
    return true;
}

pd_status pd_select_init(pd_select *s, const pd_read_rule *rule, uint64_t seed, const pd_hparams *hp, const size_t *max_slots, pd_err *err) {
    *s = (pd_select){.rule = *rule, .seed = seed, .n_layer = hp->n_layer, .n_head = hp->n_head,
                     .group = hp->n_head / hp->n_head_kv, .window = hp->window};
    size_t most = 0; /* slots of a head, in whole pages and one more */
    for (size_t l = 0; l < hp->n_layer; l++)
        if (!hp->window[l]) most = pd_max_size(most, pd_div_up(max_slots[l], N) * N + N);
    if (pd_read_all(rule) || most == 0) return PD_OK;
    bool ok = open_counts(s);
    if (ok && (rule->tau < 1.0 || rule->exact > 0.0)) ok = open_values(s, most);
    if (ok && (rule->page_budget || rule->exact > 0.0)) ok = open_pages(s, most);
    if (ok) return PD_OK;
    pd_select_done(s);
    return pd_fail(err, PD_ENOMEM, NULL, "no memory for what a sequence's steps read");
}

pd_status pd_select_latents(pd_select *s, const pd_latent_rule *rule, uint64_t seed, const pd_hparams *hp, pd_kv_type key, const size_t *max_slots,
                            pd_err *err) {
    PD_TRY(pd_joint_read_init(&s->joint, rule, seed, hp, key, max_slots, err));
    s->bytes += s->joint.bytes;
    if (!s->joint.score || s->rows || open_counts(s)) return PD_OK;
    return pd_fail(err, PD_ENOMEM, NULL, "no memory for what a sequence's steps read");
}

void pd_select_done(pd_select *s) {
    pd_joint_read_done(&s->joint);
    free(s->score);
    free(s->cut);
    free(s->bound);
    free(s->page);
    free(s->n_page);
    free(s->rows);
    *s = (pd_select){0};
}

/* ---- pages ---- */

/* Uniform in [0, 1) and of these numbers alone. */
static float drawn(uint64_t seed, uint64_t layer, uint64_t head, uint64_t n, uint64_t page) {
    pd_rng rng = {seed ^ layer << 48 ^ head << 40 ^ n << 20 ^ page};
    return (float)(pd_rng_u64(&rng) >> 40);
}

void pd_select_choose(pd_select *s, const pd_kv *kv, size_t layer, size_t head, const float *q) {
    const pd_kv_head *kh = pd_kv_at(kv, layer, head);
    const size_t n = kh->n_page, d = kv->head_dim, k = s->rule.page_budget;
    float *bound = s->bound + head * s->page_stride;
    s->n_page[head] = 0;
    assert(kh->first == 0 && n <= s->page_stride);
    if (n <= k) return;
    const pd_bounds_head *b = &kv->bounds.head[layer * kv->n_head_kv + head];
    for (size_t p = 0; p < n; p++) {
        if (s->rule.page_order == PD_PAGES_RECENT)
            bound[p] = (float)p;
        else if (s->rule.page_order == PD_PAGES_RANDOM)
            bound[p] = drawn(s->seed, layer, head, kh->n, p);
        else if (p % N == 0)
            kv->kern->page_bounds(b->block[p / N], q, s->group, d, bound + p);
    }
    bound[0] = bound[n - 2] = bound[n - 1] = INFINITY;
    (void)pd_top_k(bound, n, k, s->page + head * s->page_stride, NULL, NULL); /* cannot fail without scratch */
    s->n_page[head] = (uint32_t)k;
}

void pd_select_exact(pd_select *s, const pd_kernels *kern, size_t head, size_t n_page) {
    float *bound = s->bound + head * s->page_stride;
    const size_t k = pd_max_size(PD_PAGES_ALWAYS, (size_t)ceil(s->rule.exact * (double)n_page));
    s->n_page[head] = (uint32_t)pd_min_size(k, n_page);
    for (size_t p = 0; p < n_page; p++) {
        bound[p] = -INFINITY;
        s->page[head * s->page_stride + p] = (uint32_t)p;
    }
    if (k >= n_page) return;
    for (size_t g = 0; g < s->group; g++) {
        const float *x = pd_select_at(s, head, 0) + g * s->stride, most = kern->max_f32(x, n_page * N);
        for (size_t p = 0; p < n_page; p++) bound[p] = fmaxf(bound[p], kern->max_f32(x + p * N, N) - most);
    }
    bound[0] = bound[n_page - 2] = bound[n_page - 1] = INFINITY;
    (void)pd_top_k(bound, n_page, k, s->page + head * s->page_stride, NULL, NULL); /* cannot fail without scratch */
}

/* ---- the cut of a query head ---- */

static float of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* Floats >= 0 are in the order of their bits, so the range is halved there.  `from` is
 * in it from the start: all lighter rows together are less than what may be left. */
static float cut_of(const pd_kernels *kern, const float *w, size_t n, float sum, float tau) {
    const float least = 0.5f * (1.0f - tau) * sum / (float)n;
    uint32_t from = bits_of(least > FLT_MIN ? least : FLT_MIN), beyond = bits_of(kern->max_f32(w, n)) + 1;
    while (from + 1 < beyond) {
        const uint32_t mid = from + (beyond - from) / 2;
        if (kern->sum_from_f32(w, n, of_bits(mid)) >= tau * sum)
            from = mid;
        else
            beyond = mid;
    }
    return of_bits(from);
}

void pd_select_cut(pd_select *s, const pd_kernels *kern, size_t q_head, size_t n) {
    float *w = s->score + q_head * s->stride;
    const float sum = kern->exp_sum_f32(w, n, kern->max_f32(w, n));
    s->cut[q_head] = cut_of(kern, w, n, sum, (float)s->rule.tau);
}

/* ---- the rows of a chunk ---- */

size_t pd_select_rows(const pd_select *s, const pd_codec *c, const pd_kernels *kern, size_t head, size_t k_dim, size_t v_dim,
                      const void *const *pages, size_t slot, size_t n_page, float *m, float *l, float *acc) {
    uint32_t row[PAGES * N + 16];
    float *w = pd_select_at(s, head, slot);
    const size_t n_row = kern->list_from_f32(w, s->stride, s->group, n_page * N, s->cut + head * s->group, row);
    for (size_t g = 0; g < s->group; g++) {
        m[g] = 0.0f; /* the weights are already those of the whole head */
        l[g] = 0.0f;
        for (size_t i = 0; s->rule.renormalize && i < n_row; i++) l[g] += w[g * s->stride + row[i]];
        if (!s->rule.renormalize) l[g] = kern->sum_from_f32(w + g * s->stride, n_page * N, 0.0f);
    }
    pd_codec_rows(c, kern, s->group, k_dim, v_dim, pages, row, n_row, false, w, s->stride, acc);
    return n_row;
}
