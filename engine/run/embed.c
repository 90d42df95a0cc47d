/* SPDX-License-Identifier: Apache-2.0 */
/* The prompt as one vector (pd_job_embedding), from the hidden states that prefill
 * leaves of a segment.
 *
 * The states are those behind the output norm: transformers' last_hidden_state, whose
 * mean over the tokens, or last row, sentence-transformers takes (Pooling, modes mean
 * and lasttoken) before it divides by the length (Normalize).  Cost: one norm per
 * token, as the layers' own. */
#include "engine/run/seq.h"

#include <math.h>

pd_status pd_embed_open(pd_seq *s, pd_err *err) {
    const size_t d = s->run->model->hp.n_embd;
    s->job->embedding = pd_arena_zalloc(&s->job->keep, d, sizeof(float));
    return s->job->embedding ? PD_OK : pd_fail(err, PD_ENOMEM, NULL, "no memory for an embedding of %zu numbers", d);
}

static pd_status unit_length(float *v, size_t n, pd_err *err) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) sum += (double)v[i] * v[i];
    if (!isfinite(sum) || sum <= 0.0) return pd_fail(err, PD_EINTERNAL, NULL, "the model's output is not finite, or zero");
    const double scale = 1.0 / sqrt(sum);
    for (size_t i = 0; i < n; i++) v[i] = (float)(v[i] * scale);
    return PD_OK;
}

pd_status pd_embed_segment(const pd_prefill *p, pd_err *err) {
    const pd_run *run = p->seq->run;
    const pd_job *job = p->seq->job;
    const size_t d = run->model->hp.n_embd, n = p->seg_end - p->seg_begin;
    const bool ends_prompt = p->seg_end == job->n_tokens;
    size_t i = 0;
    if (job->pool == PD_POOL_LAST) i = ends_prompt ? n - 1 : n;
    for (; i < n; i++) { /* a sum: its direction is the mean's */
        run->kern->rmsnorm(p->x + i * d, run->model->out_norm, run->model->hp.norm_eps, d, run->fwd.h);
        run->kern->axpy_f32(1.0f, run->fwd.h, job->embedding, d);
    }
    return ends_prompt ? unit_length(job->embedding, d, err) : PD_OK;
}
