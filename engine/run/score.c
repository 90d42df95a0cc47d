/* SPDX-License-Identifier: Apache-2.0 */
/* The prompt's own log probabilities (pd_job_scored), from the hidden states that
 * prefill leaves of a segment.
 *
 * A row of hidden states expects the token behind it, also the first of the next
 * segment.  Logits are made of a few rows at a time, at most LOGITS_BYTES of
 * them, and the softmax is over the whole vocabulary.  Cost: the output matrix
 * once per prompt token, as decode pays it per step, but in tiles. */
#include "engine/run/seq.h"

#include "engine/base/num.h"

#include <math.h>
#include <stdlib.h>

enum { LOGITS_BYTES = 8 << 20, ROWS_MIN = 4, ROWS_MAX = 32 };

pd_status pd_score_open(pd_seq *s, pd_err *err) {
    pd_job *job = s->job;
    const size_t top = pd_min_size(job->score_top, s->run->model->hp.n_vocab);
    pd_scored *scored = pd_arena_zalloc(&job->keep, job->n_tokens, sizeof *scored);
    pd_token_prob *tops = top ? pd_arena_alloc(&job->keep, job->n_tokens * top, sizeof *tops) : NULL;
    if (!scored || (top && !tops)) return pd_fail(err, PD_ENOMEM, NULL, "no memory for the scores of %zu tokens", job->n_tokens);
    for (size_t i = 0; i < job->n_tokens; i++) {
        scored[i].id = job->tokens[i];
        if (i == 0 || !top) continue;
        scored[i].n_top = (uint32_t)top;
        scored[i].top = tops + i * top;
    }
    job->scored = scored;
    return PD_OK;
}

static size_t rows_of(size_t n_vocab) {
    return pd_max_size(ROWS_MIN, pd_min_size(ROWS_MAX, LOGITS_BYTES / (n_vocab * sizeof(float))));
}

/* Row `task` of the logits at work, and the token it expects. */
static void score_task(void *ctx, size_t task, unsigned thread) {
    (void)thread;
    const pd_prefill *p = ctx;
    const pd_run *run = p->seq->run;
    const size_t n = run->model->hp.n_vocab;
    float *x = p->logits + task * n;
    pd_scored *to = &p->seq->job->scored[p->seg_begin + p->row + task + 1];
    uint32_t rank = 0;
    for (size_t i = 0; i < n; i++) rank += x[i] >= x[to->id];
    to->rank = rank;
    to->logprob = pd_logprobs_row(run->kern, x, n, to->id, (pd_token_prob *)to->top, to->n_top);
}

pd_status pd_score_unit(pd_prefill *p, bool *more, pd_err *err) {
    pd_run *run = p->seq->run;
    const size_t n_vocab = run->model->hp.n_vocab, d = run->model->hp.n_embd, rows = rows_of(n_vocab);
    const size_t end = pd_min_size(p->seg_end, p->seq->job->n_tokens - 1) - p->seg_begin; /* the last token expects the answer */
    *more = false;
    if (p->row >= end) return PD_OK;
    if (!p->logits) {
        p->logits = malloc(rows * n_vocab * sizeof *p->logits);
        if (!p->logits) return pd_fail(err, PD_ENOMEM, NULL, "no memory for %zu rows of logits", rows);
        p->bytes += rows * n_vocab * sizeof *p->logits;
    }
    const size_t n = pd_min_size(rows, end - p->row);
    pd_fwd_logits_tile(&run->fwd, p->x + p->row * d, n, p->logits);
    for (size_t i = 0; i < n; i++)
        if (!isfinite(p->logits[i * n_vocab])) return pd_fail(err, PD_EINTERNAL, NULL, "the model's output is not finite");
    pd_workers_run(run->workers, score_task, p, n);
    p->row += n;
    *more = p->row < end;
    return PD_OK;
}
