/* SPDX-License-Identifier: Apache-2.0 */
/* Comparisons (see compare.h).  Cost: each press's own scoring, and what it keeps
 * as positions (4 bytes a slot) until the reply is written. */
#include "engine/run/compare.h"

#include "engine/base/num.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pd_status check_member(const pd_compression *c, const char *at, pd_err *err) {
    if (!c->press || c->decode || c->n_read || c->scope != PD_SCOPE_PROMPT || c->budget == PD_BUDGET_BYTES || c->protect_system ||
        c->kv_key || c->kv_value)
        return pd_fail(err, PD_EINVAL, at, "%s: a press to compare has ratio or budget_tokens, and no scope, "
                       "protect_system, budget_bytes, kv_type or decode, and says nothing of what steps read", at);
    if (pd_press_inst_can(c->press) & PD_CAN_DEFER)
        return pd_fail(err, PD_EINVAL, at, "%s: '%s' decides over all layers from a replay of the prompt: ask for it alone, "
                       "as compression", at, c->press->press->name);
    return PD_OK;
}

static const char *skip_reason(const pd_compression *c, size_t n) {
    if (n < c->min_tokens) return "scope shorter than min_tokens";
    return n < pd_press_min_tokens(c->press) ? "scope shorter than the press needs" : NULL;
}

/* Name, budget and room of member i. */
static pd_status plan_member(pd_job *job, const pd_hparams *hp, pd_compression *c, size_t i, pd_err *err) {
    pd_job_compare *m = &job->compare[i];
    pd_compared *out = &job->compared[i];
    m->budget = c->budget == PD_BUDGET_RATIO ? (pd_budget){.ratio = c->ratio}
                                             : (pd_budget){.by_count = true, .count = (size_t)c->amount};
    pd_buf text = {0};
    pd_press_inst_text(c->press, &text);
    snprintf(out->press, sizeof out->press, "%s", text.data ? text.data : c->press->press->name);
    pd_buf_done(&text);
    out->skipped = skip_reason(c, job->n_tokens);
    if (out->skipped) return PD_OK;
    m->explain = pd_arena_zalloc(&job->keep, hp->n_layer * hp->n_head_kv, sizeof *m->explain);
    return m->explain ? PD_OK : pd_fail(err, PD_ENOMEM, NULL, "no memory for a comparison");
}

pd_status pd_compare_plan(pd_job *job, const pd_hparams *hp, const pd_job_params *p, pd_err *err) {
    const size_t n = p->n_compare;
    if (n == 0) return PD_OK;
    if (!p->explain || p->compression || n > PD_COMPARE_MAX)
        return pd_fail(err, PD_EINVAL, "compare", "compare stands for compression in an explanation, with at most %d presses",
                       PD_COMPARE_MAX);
    size_t bytes = 0;
    if (!pd_mul_size(n * hp->n_layer * hp->n_head_kv, job->n_tokens * (sizeof(int32_t) + (p->explain_scores ? sizeof(float) : 0)), &bytes) ||
        bytes > PD_COMPARE_BYTES_MAX)
        return pd_fail(err, PD_EBUDGET, "compare", "compare asks for %zu presses on %zu tokens, up to %zu bytes of positions and scores; "
                       "at most %d are given: compare fewer at a time", n, job->n_tokens, bytes, PD_COMPARE_BYTES_MAX);
    job->compare = calloc(n, sizeof *job->compare);
    job->compared = pd_arena_zalloc(&job->keep, n, sizeof *job->compared);
    if (!job->compare || !job->compared) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a comparison");
    pd_press_needs needs = {0};
    for (size_t i = 0; i < n; i++) {
        char at[24];
        snprintf(at, sizeof at, "compare[%zu]", i);
        PD_TRY(check_member(p->compare[i], at, err));
        PD_TRY(plan_member(job, hp, p->compare[i], i, err));
        pd_press_add_needs(p->compare[i]->press, &needs);
    }
    if (needs.bits & PD_NEEDS_TOO_MANY)
        return pd_fail(err, PD_EINVAL, "compare", "compare: more than %d different n_sink in one request", PD_MOMENTS_MAX);
    for (size_t i = 0; i < n; i++) job->compare[i].comp = p->compare[i];
    job->n_compare = n;
    job->scope = job->n_tokens;
    return PD_OK;
}

void pd_compare_disown(pd_job *job) {
    job->n_compare = 0;
}

void pd_compare_needs(const pd_job *job, pd_press_needs *ret) {
    *ret = (pd_press_needs){0};
    for (size_t i = 0; i < job->n_compare; i++)
        if (job->compare[i].explain) pd_press_add_needs(job->compare[i].comp->press, ret);
}

/* Positions of the kept slots; keep NULL = all n. */
static pd_status note(pd_job *job, pd_explain_head *e, const int32_t *pos, const uint32_t *keep, size_t n, pd_err *err) {
    int32_t *kept = pd_arena_alloc(&job->keep, n, sizeof *kept);
    if (!kept) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a comparison");
    for (size_t i = 0; i < n; i++) kept[i] = pos[keep ? keep[i] : i];
    e->kept = kept;
    e->n_kept = n;
    return PD_OK;
}

static pd_status compare_one(pd_seq *s, pd_job_compare *m, const pd_view *view, pd_explain_head *heads, pd_err *err) {
    pd_job *job = s->job;
    float **all = NULL;
    if (job->explain_scores) {
        all = PD_ARENA_NEW(view->tmp, view->n_head_kv, float *);
        for (size_t h = 0; all && h < view->n_head_kv; h++) {
            all[h] = pd_arena_zalloc(&job->keep, view->n_h[h], sizeof(float));
            heads[h].scores = all[h];
            if (!all[h]) all = NULL;
        }
        if (!all) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a comparison");
    }
    pd_plan plan = {0};
    const uint64_t t0 = pd_now_ns();
    PD_TRY(pd_press_plan(m->comp->press, view, &m->budget, &plan, all, err));
    m->ns += pd_now_ns() - t0;
    const pd_latent_rule latent = pd_admit_latents(m->comp->press, &s->run->model->hp);
    for (size_t h = 0; h < view->n_head_kv; h++) {
        const size_t n = plan.keep_all ? view->n_h[h] : plan.n_keep[h];
        m->pairs_scope += view->n_h[h];
        m->pairs_kept += latent.rank ? pd_latent_pairs(&latent, (size_t)view->layer, n, view->head_dim)
                                     : pd_plan_pairs(&plan, n, view->head_dim);
        PD_TRY(note(job, &heads[h], view->pos[h], plan.keep_all ? NULL : plan.keep[h], n, err));
    }
    return PD_OK;
}

pd_status pd_compare_layer(pd_seq *s, size_t layer, const pd_view *base, pd_err *err) {
    pd_arena scratch = {0};
    pd_status rc = PD_OK;
    for (size_t i = 0; i < s->job->n_compare && rc == PD_OK; i++) {
        pd_job_compare *m = &s->job->compare[i];
        if (!m->explain) continue;
        pd_arena_reset(&scratch);
        pd_view view = *base;
        view.tmp = &scratch;
        view.seed = m->comp->seed;
        rc = compare_one(s, m, &view, m->explain + layer * base->n_head_kv, err);
    }
    pd_arena_done(&scratch);
    return rc;
}

pd_status pd_compare_all(pd_seq *s, size_t layer, size_t head, const int32_t *pos, size_t n, pd_err *err) {
    for (size_t i = 0; i < s->job->n_compare; i++) {
        pd_job_compare *m = &s->job->compare[i];
        if (m->explain) PD_TRY(note(s->job, &m->explain[layer * s->kv.n_head_kv + head], pos, NULL, n, err));
    }
    return PD_OK;
}

void pd_compare_report(pd_job *job) {
    for (size_t i = 0; i < job->n_compare; i++) {
        const pd_job_compare *m = &job->compare[i];
        pd_compared *out = &job->compared[i];
        out->ratio = m->pairs_scope ? 1.0 - m->pairs_kept / (double)m->pairs_scope : 0.0;
        out->press_ms = 1e-6 * (double)m->ns;
        out->explain = m->explain;
    }
    job->result.compared = job->compared;
    job->result.n_compared = job->n_compare;
}
