/* SPDX-License-Identifier: Apache-2.0 */
/* Chunks of packed pages (kv.h): keys with fewer channels, latents (latent.h), codes (codes.h). */
#include "engine/run/attn_int.h"

#include "engine/base/num.h"

#include <cblas.h>
#include <string.h>

enum { PAGES = PD_ATTN_PAGES, N = PD_PAGE_TOKENS };

void pd__attn_pack_queries(const pd_kv *kv, size_t layer, size_t head, const float *q, size_t group, float *ret, float *shift) {
    const uint32_t *channel = pd_kv_channels(kv, layer, head);
    const float *centre = pd_kv_centre(kv, layer, head);
    const size_t d = kv->head_dim, k_dim = kv->pack.k_dim;
    for (size_t g = 0; g < group; g++) {
        float *row = ret + g * k_dim;
        memset(row, 0, k_dim * sizeof *row);
        shift[g] = centre ? kv->kern->dot_f32(q + g * d, centre, d) : 0.0f;
        for (size_t i = 0; i < kv->pack.n_channel; i++) {
            row[i] = q[g * d + channel[i]];
            if (centre) shift[g] -= row[i] * centre[channel[i]];
        }
    }
}

/* Scores of projected keys, which are rebuilt for the chunk: tmp [G][stride].  q [G][D]. */
static void latent_scores(const pd_attn_job *j, const pd_attn_chunk *c, const void *const *pages, size_t first, size_t n,
                          const float *q, float *tmp, size_t stride, float *scratch) {
    const pd_kv *kv = j->kv[c->seq];
    const pd_kv_head *kh = pd_kv_at(kv, j->layer, c->head);
    const pd_latent *l = pd_kv_latent(kv, j->layer, c->head);
    const size_t d = kv->head_dim, ld = c->n_page * N, group = j->a->model->hp.n_head / kv->n_head_kv;
    float *lat = scratch, *k = lat + l->rank * ld, *page = k + d * ld;
    const int32_t *pos[PAGES];
    for (size_t p = 0; p < c->n_page; p++) {
        pos[p] = pd_kvpool_pos(pd_kv_pack_pool(kv, kh), kh->page[c->page0 + p]);
        const float *rows = pd_codec_keys(&kv->codec, kv->kern, pages[p], l->rank, page, NULL);
        for (size_t r = 0; r < l->rank; r++) memcpy(lat + r * ld + p * N, rows + r * N, N * sizeof *lat);
    }
    pd_latent_keys(l, lat, pos, c->n_page, first, n, k, page);
    const float *sink = pd_kv_sinks(kv, j->layer, c->head);
    for (size_t s = first; s < first + n && (size_t)pos[s / N][s % N] < kv->pack.n_sink; s++) /* positions rise */
        for (size_t i = 0; i < d; i++) k[i * ld + s] = sink[(size_t)pos[s / N][s % N] * d + i];
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)group, (int)ld, (int)d, 1.0f, q, (int)d, k, (int)ld, 0.0f,
                tmp, (int)stride);
}

/* acc [G][D] from lat [G][rank_v], the weighted sums of projected values: unfolded by the thread that has
 * them, so that join knows one kind of part.  Sinks' values, 0 in the pages, come with their weights. */
static void unfold(const pd_attn_job *j, const pd_attn_chunk *c, size_t first, size_t n, const float *weight, size_t stride,
                   const float *lat, float *acc) {
    const pd_kv *kv = j->kv[c->seq];
    const pd_kv_head *kh = pd_kv_at(kv, j->layer, c->head);
    const pd_latent *l = pd_kv_latent(kv, j->layer, c->head);
    const size_t d = kv->head_dim, group = j->a->model->hp.n_head / kv->n_head_kv;
    for (size_t g = 0; g < group; g++) pd_latent_unfold(l, kv->kern, lat + g * l->rank_v, acc + g * d);
    const float *sink = pd_kv_sink_values(kv, j->layer, c->head);
    for (size_t s = first; s < first + n; s++) {
        const size_t pos = (size_t)pd_kvpool_pos(pd_kv_pack_pool(kv, kh), kh->page[c->page0 + s / N])[s % N];
        if (pos >= kv->pack.n_sink) return; /* positions rise */
        for (size_t g = 0; g < group; g++) kv->kern->axpy_f32(weight[g * stride + s], sink + pos * d, acc + g * d, d);
    }
}

void pd__attn_table_scores(const pd_attn_job *j, const pd_attn_chunk *c, const pd_book *book, const void *const *pages, size_t n_next, const float *off,
                         float *tmp, size_t stride) {
    const pd_attn *a = j->a;
    const size_t group = a->model->hp.n_head / a->model->hp.n_head_kv, n_code = pd_book_codes(book);
    const size_t q0 = c->seq * a->model->hp.n_head + c->head * group;
    float least[PD__ATTN_GROUP], step[PD__ATTN_GROUP];
    for (size_t g = 0; g < group; g++) {
        least[g] = a->table_scale[2 * (q0 + g)];
        step[g] = a->table_scale[2 * (q0 + g) + 1];
    }
    const pd_code_pass p = {.pages = pages, .n_page = c->n_page, .n_next = n_next, .n_code = n_code, .n_group = group, .table = a->table + q0 * a->table_bytes,
                            .least = least, .step = step, .tmp = tmp, .tmp_stride = stride};
    for (size_t g = 0; g < group && off; g++) least[g] -= off[g];
    (book->n_centroid > 16 ? a->kern->scores_codes8 : a->kern->scores_codes4)(&p);
}

void pd__attn_code_scores(const pd_attn_job *j, const pd_attn_chunk *c, const void *const *pages, size_t n_next, size_t first, size_t n,
                        const float *q, float *tmp, size_t stride) {
    const pd_attn *a = j->a;
    const pd_kv *kv = j->kv[c->seq];
    const pd_kv_head *kh = pd_kv_at(kv, j->layer, c->head);
    const size_t d = kv->head_dim, group = a->model->hp.n_head / kv->n_head_kv;
    pd__attn_table_scores(j, c, &pd_kv_latent(kv, j->layer, c->head)->book, pages, n_next, NULL, tmp, stride);
    const float *sink = pd_kv_sinks(kv, j->layer, c->head);
    for (size_t s = first; s < first + n; s++) { /* positions rise */
        const size_t pos = (size_t)pd_kvpool_pos(pd_kv_pack_pool(kv, kh), kh->page[c->page0 + s / N])[s % N];
        if (pos >= kv->pack.n_sink) break;
        for (size_t g = 0; g < group; g++) tmp[g * stride + s] = a->kern->dot_f32(q + g * d, sink + pos * d, d);
    }
}

void pd__attn_latent_chunk(const pd_attn_job *j, const pd_attn_chunk *c, const void *const *pages, size_t first, size_t n, size_t n_next,
                         const float *q, float *tmp, size_t stride, float *scratch, float *lat, float *m, float *l, float *acc) {
    const pd_kv *kv = j->kv[c->seq];
    const pd_latent *latent = pd_kv_latent(kv, j->layer, c->head);
    const size_t d = kv->head_dim, group = j->a->model->hp.n_head / kv->n_head_kv;
    if (latent->book.n_centroid)
        pd__attn_code_scores(j, c, pages, n_next, first, n, q, tmp, stride);
    else if (latent->project)
        latent_scores(j, c, pages, first, n, q, tmp, stride, lat);
    else
        pd_codec_scores(&kv->codec, kv->kern, q, group, d, pages, first, n, n_next, 0.0f, tmp, stride, scratch);
    pd_codec_attn_scored(&kv->pack.codec, kv->kern, group, latent->rank, pd_latent_v_dim(latent), pages, first, n,
                         j->a->model->hp.attn_softcap, tmp, stride, m, l, latent->value ? lat : acc);
    if (latent->value) unfold(j, c, first, n, tmp, stride, lat, acc);
}
