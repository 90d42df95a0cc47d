/* SPDX-License-Identifier: Apache-2.0 */
/* What a job will need, before it runs: its budget in tokens, the pages it may
 * come to hold, its staging layer.
 *
 * A running sequence never runs out of pages: admission reserves the most it
 * can hold, and what the prompt turned out not to need is given back when it is in.
 * With S the slots a full-attention layer may hold per head (mean over heads: presses
 * may spread them unevenly), H heads of n_h >= 1 slots hold
 * sum(1 + (n_h - 1) / 16) pages, which is at most H + H * (S - 1) / 16. */
#include "engine/run/seq.h"

#include "compression/deferred.h"
#include "compression/spec.h"
#include "engine/base/num.h"

static uint64_t layer_pages(const pd_hparams *hp, size_t slots) {
    const uint64_t heads = hp->n_head_kv;
    if (slots == 0) return 0;
    return heads + heads * (slots - 1) / PD_PAGE_TOKENS;
}

/* What is left of the scope, per head of a full layer. */
static size_t most_of_scope(const pd_job *job, size_t layer) {
    if (!job->scope || job->deferred) return job->scope; /* a deferred press finds all of the scope dense */
    pd_budget budget = job->budget;
    budget.n_protected = job->protect_end - job->protect_begin;
    /* protected tokens stay whatever the budget says */
    return pd_min_size(job->scope, pd_press_most(job->comp->press, &budget, layer, job->scope) + budget.n_protected);
}

/* Slots per head of a full layer when the prompt is in, then while tokens come. */
static size_t most_slots(const pd_job *job, size_t layer) {
    const pd_compression *c = job->comp;
    const size_t n_protected = job->protect_end - job->protect_begin;
    const size_t kept = job->n_tokens - job->scope + most_of_scope(job, layer);
    const size_t slots = kept + job->max_tokens;
    pd_decode_rule rule;
    if (!c || !c->decode || !c->decode->press->decode_rule(c->decode, &rule)) return slots;
    /* The size after a pruning never falls as the text grows, so the last one is the bound. */
    pd_budget last = pd_decode_budget(&rule, job->n_tokens + job->max_tokens);
    last.n_protected = n_protected;
    const size_t left = pd_press_most(rule.prune, &last, layer, slots) + n_protected;
    return pd_min_size(slots, pd_max_size(kept, left) + rule.interval + 1);
}

/* Slots of a head that are open when its older keys are projected: the last piece, and what it waits for. */
static size_t most_open(const pd_job *job, size_t layer, size_t slots) {
    const pd_latent_rule *r = &job->latent;
    const size_t window = r->window + 2 * PD_LATENT_PIECE - 1, first = job->scope ? job->scope : job->n_tokens;
    if (!r->layer[layer]) return slots;
    /* What comes at once and is long enough is projected at once. */
    return pd_min_size(slots, first > r->whole ? window : pd_max_size(window, r->whole + PD_LATENT_PIECE));
}

static void most_pages(pd_job *job, const pd_hparams *hp) {
    uint64_t pages = 0, packed = 0;
    for (size_t l = 0; l < hp->n_layer; l++) {
        const size_t w = hp->window[l];
        size_t open = w ? 0 : most_slots(job, l);
        if (!w && job->latent.rank) {
            packed += layer_pages(hp, pd_latent_packed(&job->latent, l, open));
            open = most_open(job, l, open);
        } else if (!w && job->pack_page_bytes) { /* the scope's keys are packed, all that follows is not */
            open = pd_min_size(open, job->n_tokens - job->scope + job->max_tokens);
            packed += layer_pages(hp, most_of_scope(job, l));
        }
        /* a window straddles up to two pages more, and holds one token more for a moment */
        pages += w ? layer_pages(hp, pd_min_size(job->n_tokens + job->max_tokens, w + 1)) + hp->n_head_kv
                   : layer_pages(hp, open);
    }
    job->pages_reserved = job->pages_promised = pages;
    job->pack_reserved = job->pack_promised = packed;
}

/* Pages of a full layer that holds what it does when max_tokens more come and a decode
 * press keeps to its rule. */
static uint64_t pages_ahead(const pd_seq *s, size_t layer) {
    const pd_job *job = s->job;
    const pd_hparams *hp = &s->run->model->hp;
    const pd_decode_rule *rule = &s->rule;
    const size_t total = job->n_tokens + job->max_tokens;
    size_t left = total, more = job->max_tokens, slots = 0;
    if (rule->prune) {
        pd_budget last = pd_decode_budget(rule, total);
        last.n_protected = job->protect_end - job->protect_begin;
        left = pd_press_most(rule->prune, &last, layer, total) + last.n_protected;
        more = pd_min_size(more, rule->interval + 1);
    }
    uint64_t pages = 0;
    for (size_t h = 0; h < hp->n_head_kv; h++) {
        const pd_kv_head *kh = pd_kv_at(&s->kv, layer, h);
        const size_t n = kh->n, open = n - kh->n_pack; /* packed ones only become fewer */
        slots += n;
        pages += pd_div_up(pd_min_size(open + job->max_tokens, (rule->prune ? pd_max_size(n, left) : n) + more), PD_PAGE_TOKENS);
    }
    if (job->pack_page_bytes) return pages;
    if (!rule->prune || !rule->prune->press->plan) return pages;
    /* its plan may give one head what another loses */
    return layer_pages(hp, pd_max_size(pd_div_up(slots, hp->n_head_kv), left) + more);
}

void pd_admit_left(const pd_seq *s) {
    const pd_hparams *hp = &s->run->model->hp;
    pd_job *job = s->job;
    uint64_t pages = 0;
    if (job->latent.rank) return; /* all its slots stay */
    for (size_t l = 0; l < hp->n_layer; l++) {
        const size_t w = hp->window[l], n = w ? pd_kv_at(&s->kv, l, 0)->n + job->max_tokens : 0;
        pages += w ? hp->n_head_kv * (pd_div_up(pd_min_size(n, w + 1), PD_PAGE_TOKENS) + 1) : pages_ahead(s, l);
    }
    if (pages < job->pages_promised) job->pages_promised = pages;
    if (s->kv.n_pack_pages < job->pack_promised) job->pack_promised = s->kv.n_pack_pages;
}

size_t pd_admit_list_slots(const pd_job *job, const pd_hparams *hp, size_t layer) {
    const size_t total = job->n_tokens + job->max_tokens, w = hp->window[layer];
    return w ? pd_min_size(total, w + 1) : total; /* one head may keep everything */
}

uint64_t pd_admit_uniform_pages(const pd_hparams *hp, size_t n, size_t tokens) {
    uint64_t pages = 0;
    for (size_t l = 0; l < hp->n_layer; l++) {
        const size_t slots = hp->window[l] ? pd_min_size(tokens, hp->window[l]) : n;
        pages += hp->n_head_kv * pd_div_up(slots, PD_PAGE_TOKENS);
    }
    return pages;
}

/* Bytes of the most pages of the scope when the press is told to leave `count` per head.  One
 * with a plan of its own may spread a layer's H * n slots over its heads as it
 * likes: H heads of n_h >= 1 slots hold sum(1 + (n_h - 1) / 16) pages, which is
 * at most H + H * (n - 1) / 16. */
static uint64_t bytes_for_count(const pd_job *job, const pd_hparams *hp, size_t count) {
    const pd_press_inst *press = job->comp->press;
    const pd_budget budget = {.by_count = true, .count = count};
    const size_t page = job->pack_page_bytes ? job->pack_page_bytes : job->page_bytes, scope = job->scope;
    const uint64_t heads = hp->n_head_kv;
    uint64_t pages = 0, windows = 0, whole = 0;
    for (size_t l = 0; l < hp->n_layer; l++) {
        const size_t n = hp->window[l] ? pd_min_size(scope, hp->window[l]) : pd_press_most(press, &budget, l, scope);
        if (hp->window[l])
            windows += heads * pd_div_up(n, PD_PAGE_TOKENS);
        else if (n < scope && press->press->deferred && press->press->deferred->whole_pages)
            whole += heads * n; /* slots of one budget */
        else
            pages += !press->press->plan && !press->press->deferred ? heads * pd_div_up(n, PD_PAGE_TOKENS)
                                                                    : heads + heads * (n - 1) / PD_PAGE_TOKENS;
    }
    return windows * job->page_bytes + (pages + (whole + PD_PAGE_TOKENS - 1) / PD_PAGE_TOKENS) * page;
}

/* Most tokens per head whose pages fit into `bytes`; 0 if not even one does. */
static size_t tokens_for_bytes(const pd_job *job, const pd_hparams *hp, uint64_t bytes) {
    size_t lo = 0, hi = job->scope;
    while (lo < hi) {
        const size_t mid = lo + (hi - lo + 1) / 2;
        if (bytes_for_count(job, hp, mid) <= bytes)
            lo = mid;
        else
            hi = mid - 1;
    }
    return lo;
}

static pd_status plan_budget(pd_job *job, const pd_hparams *hp, pd_err *err) {
    const pd_compression *c = job->comp;
    switch (c->budget) {
    case PD_BUDGET_RATIO:
        job->budget = (pd_budget){.ratio = c->ratio};
        break;
    case PD_BUDGET_TOKENS:
        job->budget = (pd_budget){.by_count = true, .count = (size_t)c->amount};
        break;
    case PD_BUDGET_BYTES: {
        const uint64_t recent = job->recent_bytes;
        const size_t n = c->amount <= recent ? 0 : tokens_for_bytes(job, hp, c->amount - recent);
        if (n == 0)
            return pd_fail(err, PD_EBUDGET, "compression.budget_bytes",
                           "compression.budget_bytes %llu is less than one page per head: at least %llu are needed",
                           (unsigned long long)c->amount,
                           (unsigned long long)(bytes_for_count(job, hp, 1) + recent));
        job->budget = (pd_budget){.by_count = true, .count = n};
        break;
    }
    }
    return PD_OK;
}

static size_t scope_of(const pd_compression *c, const pd_job_params *p) {
    if (!c->press) return 0;
    if (c->scope == PD_SCOPE_TOKENS) return pd_min_size(c->scope_tokens, p->n_tokens);
    if (c->scope == PD_SCOPE_CONTEXT && p->has_marks) return pd_min_size(p->marks.last_user_begin, p->n_tokens);
    return p->n_tokens;
}

/* The types of the job's pages. */
static pd_status plan_types(pd_job *job, const pd_hparams *hp, pd_kv_type native, bool read_all, pd_err *err) {
    const pd_compression *c = job->comp;
    job->kv_key = c && c->kv_key ? c->kv_key : native;
    job->kv_value = c && c->kv_value ? c->kv_value : native;
    const pd_codec codec = pd_codec_of(job->kv_key, job->kv_value);
    job->page_bytes = pd_codec_page_bytes(&codec, hp->head_dim, hp->head_dim);
    pd_codec recent;
    const size_t twice = pd_min_size(PD_KV_RECENT, pd_div_up(job->n_tokens + job->max_tokens, PD_PAGE_TOKENS) + 1);
    /* Who chooses what is read finds it in one place: nothing is held twice. */
    job->recent_page_bytes = read_all && pd_codec_recent(&codec, &recent) ? pd_codec_page_bytes(&recent, hp->head_dim, hp->head_dim) : 0;
    job->recent_bytes = (uint64_t)hp->n_layer * hp->n_head_kv * twice * job->recent_page_bytes;
    const size_t group = pd_max_size(pd_kv_type_group(job->kv_key), pd_kv_type_group(job->kv_value));
    if (hp->head_dim % group == 0) return PD_OK;
    return pd_fail(err, PD_EINVAL, "compression.kv_type",
                   "compression.kv_type stores keys as %s and values as %s in groups of %zu numbers; this model's heads have %zu",
                   pd_kv_type_name(job->kv_key), pd_kv_type_name(job->kv_value), group, hp->head_dim);
}

pd_latent_rule pd_admit_latents(const pd_press_inst *press, const pd_hparams *hp) {
    const pd_press_model model = {.n_layer = hp->n_layer, .n_head = hp->n_head, .n_head_kv = hp->n_head_kv,
                                  .head_dim = hp->head_dim, .n_embd = hp->n_embd};
    pd_latent_rule rule = {0};
    if (press->press->latents && !press->press->latents(press, &model, &rule)) rule = (pd_latent_rule){0};
    return rule;
}

/* Pages for the scope's keys if the press takes channels out of them, or for older keys if it projects them. */
static pd_status plan_packed(pd_job *job, const pd_hparams *hp, pd_err *err) {
    const size_t d = hp->head_dim;
    const pd_press_inst *press = job->scope ? job->comp->press : NULL;
    job->latent = press ? pd_admit_latents(press, hp) : (pd_latent_rule){0};
    if (job->latent.rank && pd_kv_type_group(job->kv_key) > 1)
        return pd_fail(err, PD_EINVAL, "compression.kv_type",
                       "compression.kv_type stores keys as %s; press '%s' projects keys, which takes f16 or f32 (values may have any type)",
                       pd_kv_type_name(job->kv_key), press->press->name);
    job->key_channels = job->latent.rank ? job->latent.rank : press ? pd_press_key_channels(press, d) : d;
    const size_t width = pd_kv_pack_width(job->kv_key, job->key_channels, d);
    const pd_codec codec = pd_codec_of(job->kv_key, job->kv_value);
    job->pack_page_bytes = width < d || job->latent.rank ? pd_codec_page_bytes(&codec, width, d) : 0;
    return PD_OK;
}

pd_status pd_admit_plan(pd_job *job, const pd_hparams *hp, const pd_job_params *p, pd_kv_type native, pd_err *err) {
    const pd_compression *c = p->compression;
    job->comp = p->compression;
    const pd_read_rule read = pd_compression_read(c);
    PD_TRY(plan_types(job, hp, native, pd_read_all(&read), err));
    if (c && c->protect_system && p->has_marks) {
        job->protect_begin = pd_min_size(p->marks.system_begin, p->n_tokens);
        job->protect_end = pd_min_size(p->marks.system_end, p->n_tokens);
    }
    if (c && c->press) {
        job->scope = scope_of(c, p);
        const size_t min = pd_press_min_tokens(c->press);
        if (job->scope < c->min_tokens) job->skipped = "scope shorter than min_tokens";
        else if (job->scope < min) job->skipped = "scope shorter than the press needs";
        if (job->skipped) job->scope = 0;
    }
    job->deferred = false;
    PD_TRY(plan_packed(job, hp, err));
    if (!pd_read_all(&read) && (job->pack_page_bytes || job->latent.rank))
        return pd_fail(err, PD_EINVAL, "compression.press",
                       "compression.press stores keys in fewer numbers and chooses what is read of them; one of the two is served at a time");
    if (job->scope) {
        PD_TRY(plan_budget(job, hp, err));
        job->deferred = c->press->press->deferred && pd_budget_keep(&job->budget, job->scope) < job->scope;
    }
    most_pages(job, hp);
    /* a replay stands behind the scope */
    const pd_deferred *d = job->deferred ? c->press->press->deferred : NULL;
    const size_t behind = d && d->most_rows ? d->most_rows(c->press, job->scope) : 0;
    job->staging_bytes = pd_stage_bytes(hp->n_head_kv, hp->head_dim, pd_max_size(job->n_tokens, job->scope + behind));
    return PD_OK;
}
