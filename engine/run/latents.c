/* SPDX-License-Identifier: Apache-2.0 */
/* Older keys and values projected (pd_latent_rule, cache/latent.h): which ones, and when.
 *
 * A head's newest `window` slots are open pages; as soon as a page's worth of slots is older, the
 * first open page is packed.  Rows that come to an empty head go where they belong at once.  So
 * what is stored does not depend on how a prompt was cut, but for the rounding of keys that were
 * f16 for a while.  Cost: (rank + rank_v) * D multiply-adds a token and head, once. */
#include "engine/run/seq.h"

#include "engine/base/num.h"

#include <assert.h>
#include <stdlib.h>

static pd_status make_turns(pd_run *run, pd_err *err) {
    for (size_t i = 0; i < run->model->hp.n_rope; i++)
        if (!run->turns[i].memory)
            PD_TRY(pd_turns_init(&run->turns[i], run->model->rope[i].inv_freq, run->model->hp.head_dim / 2, run->ctx, err));
    return PD_OK;
}

static pd_status open_joint(pd_seq *s, pd_kvpool *const *pool, pd_err *err) {
    const pd_hparams *hp = &s->run->model->hp;
    const pd_latent_rule *r = &s->job->latent;
    const size_t row = hp->n_head_kv * hp->head_dim;
    pd_joint *joint = calloc(hp->n_layer, sizeof *joint);
    if (!joint) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the bases of packed keys");
    for (size_t l = 0; l < hp->n_layer; l++)
        joint[l] = (pd_joint){.n_head = hp->n_head_kv, .head_dim = hp->head_dim,
                              .rank = s->run->model->layer[l].window ? 0 : r->layer[l] * hp->n_head_kv,
                              .basis = r->project + l * row * row, .turns = &s->run->turns[s->run->model->layer[l].rope]};
    const pd_status rc = pd_kv_set_joint(&s->kv, pool, joint, r->n_sink, err);
    free(joint);
    return rc;
}

pd_status pd_latents_open(pd_seq *s, pd_err *err) {
    pd_run *run = s->run;
    const pd_hparams *hp = &run->model->hp;
    const pd_latent_rule *r = &s->job->latent;
    const size_t heads = hp->n_head_kv, d = hp->head_dim;
    pd_kvpool *pool[PD_LATENT_LAYERS] = {0};
    const pd_codec codec = pd_admit_pack_codec(s->job);
    for (size_t l = 0; l < hp->n_layer; l++)
        if (r->layer[l]) PD_TRY(pd_kvpools_get(&run->pools, &codec, r->layer[l], r->value[l], &pool[l], err));
    if (r->n_centroid) PD_TRY(pd_attn_hold_tables(&run->attn, d / r->sub * r->n_centroid, err));
    if (!r->rotated) PD_TRY(make_turns(run, err));
    if (r->joint) return open_joint(s, pool, err);
    pd_latent *latent = calloc(hp->n_layer * heads, sizeof *latent);
    if (!latent) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the bases of packed keys");
    for (size_t i = 0; i < hp->n_layer * heads && r->n_centroid; i++)
        latent[i] = (pd_latent){.head_dim = d, .rank = r->layer[i / heads],
                                .book = {d, r->sub, r->n_centroid, r->book + i * d * r->n_centroid, r->weight + i * (d / 2)}};
    for (size_t i = 0; i < hp->n_layer * heads && !r->n_centroid; i++) {
        const size_t l = i / heads, at = (l * r->n_basis + (r->n_basis > 1 ? i % heads : 0)) * d * d;
        latent[i] = (pd_latent){.head_dim = d, .rank = r->layer[l], .rank_v = r->value[l]};
        if (r->value[l] < d) latent[i].value = r->value_basis + i * d * d;
        if (r->layer[l] == d) continue;
        latent[i].project = r->project + at;
        latent[i].rebuild = r->rebuild + at;
        latent[i].turns = r->rotated ? NULL : &run->turns[run->model->layer[l].rope];
    }
    const pd_status rc = pd_kv_set_latents(&s->kv, &codec, pool, latent, r->n_sink, err);
    free(latent);
    return rc;
}

pd_status pd_latents_append(pd_seq *s, size_t layer, size_t head, const float *k, const float *v, const int32_t *pos,
                            size_t n, pd_err *err) {
    const pd_latent_rule *r = &s->job->latent;
    const size_t d = s->kv.head_dim;
    const pd_kv_head *kh = pd_kv_at(&s->kv, layer, head);
    assert(!pd_kv_joint(&s->kv, layer));
    if (!r->layer[layer] || s->run->model->layer[layer].window) return pd_kv_append(&s->kv, layer, head, k, v, d, pos, NULL, n, err);
    size_t i = kh->n ? 0 : pd_latent_packed(r, layer, n);
    if (i) PD_TRY(pd_kv_append_packed(&s->kv, layer, head, k, v, d, pos, NULL, i, err));
    while (i < n) {
        const size_t run = pd_min_size(n - i, PD_LATENT_PIECE);
        PD_TRY(pd_kv_append(&s->kv, layer, head, k + i * d, v + i * d, d, pos + i, NULL, run, err));
        i += run;
        const size_t old = pd_latent_due(r, layer, kh->n, kh->n_pack);
        if (old) PD_TRY(pd_kv_pack_open(&s->kv, layer, head, old, err));
    }
    return PD_OK;
}

pd_status pd_latents_append_joint(pd_seq *s, size_t layer, const float *k, const float *v, size_t ld_head, size_t ld_row,
                                  const int32_t *pos, size_t n, pd_err *err) {
    const pd_latent_rule *r = &s->job->latent;
    const pd_kv_head *kh = pd_kv_at(&s->kv, layer, 0); /* all heads hold as much */
    size_t i = kh->n ? 0 : pd_latent_packed(r, layer, n);
    if (i) PD_TRY(pd_kv_append_joint(&s->kv, layer, k, v, ld_head, ld_row, pos, i, err));
    while (i < n) {
        const size_t run = pd_min_size(n - i, PD_LATENT_PIECE);
        for (size_t h = 0; h < s->kv.n_head_kv; h++) {
            const size_t at = h * ld_head + i * ld_row;
            PD_TRY(pd_kv_append(&s->kv, layer, h, k + at, v + at, ld_row, pos + i, NULL, run, err));
        }
        i += run;
        const size_t old = pd_latent_due(r, layer, kh->n, kh->n_pack);
        if (old) PD_TRY(pd_kv_pack_joint(&s->kv, layer, old, err));
    }
    return PD_OK;
}
