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
#include "engine/run/reverse.h"

static uint64_t layer_pages(const pd_hparams *hp, size_t slots) {
    const uint64_t heads = hp->n_head_kv;
    if (slots == 0) return 0;
    return heads + heads * (slots - 1) / PD_PAGE_TOKENS;
}

/* What is left of the scope, per head of a full layer. */
static size_t most_of_scope(const pd_job *job, size_t layer) {
    if (!job->scope || job->deferred) return job->scope + job->n_added; /* a deferred press finds all of the scope dense */
    pd_budget budget = job->budget;
    budget.n_protected = job->protect_end - job->protect_begin;
    /* protected tokens stay whatever the budget says */
    return pd_min_size(job->scope, pd_press_most(job->comp->press, &budget, layer, job->scope) + budget.n_protected);
}

bool pd_admit_rule(const pd_job *job, pd_decode_rule *ret) {
    const pd_press_inst *inst = job->comp ? job->comp->decode : NULL;
    if (!inst || !inst->press->decode_rule(inst, ret)) return false;
    if (ret->by_request) ret->budget = job->budget;
    return true;
}

/* Slots per head that a pruning leaves at most, when all tokens have come; of the generated ones alone
 * where the prompt is kept.  One of all layers at once leaves full pages, wherever. */
static size_t most_left(const pd_job *job, const pd_decode_rule *rule, size_t layer, size_t slots) {
    pd_budget last = pd_decode_budget(rule, rule->keep_prompt ? job->max_tokens : job->n_tokens + job->max_tokens);
    if (rule->keep_prompt) return pd_press_most(rule->prune, &last, layer, job->max_tokens);
    last.n_protected = job->protect_end - job->protect_begin + job->n_added;
    const size_t left = pd_press_most(rule->prune, &last, layer, slots) + last.n_protected;
    return rule->prune->press->running ? pd_div_up(left, PD_PAGE_TOKENS) * PD_PAGE_TOKENS : left;
}

/* Slots per head of a full layer when the prompt is in, then while tokens come. */
static size_t most_slots(const pd_job *job, size_t layer) {
    const size_t kept = job->n_tokens - job->scope + most_of_scope(job, layer);
    const size_t slots = kept + job->max_tokens;
    pd_decode_rule rule;
    if (!pd_admit_rule(job, &rule) || !rule.interval) return slots;
    /* The size after a pruning never falls as the text grows, so the last one is the bound. */
    const size_t left = most_left(job, &rule, layer, slots);
    return pd_min_size(slots, (rule.keep_prompt ? kept + left : pd_max_size(kept, left)) + rule.interval + 1);
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
        pages += w ? layer_pages(hp, pd_min_size(job->n_tokens + job->n_added + job->max_tokens, w + 1)) + hp->n_head_kv
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
    const size_t total = job->n_tokens + job->n_added + job->max_tokens;
    size_t left = total, more = job->max_tokens, slots = 0;
    if (rule->prune) {
        left = most_left(job, rule, layer, total);
        more = pd_min_size(more, rule->interval + 1);
    }
    uint64_t pages = 0;
    const size_t beside = rule->keep_prompt ? left : 0; /* of generated ones, beside the prompt's */
    if (rule->keep_prompt) left = 0;
    for (size_t h = 0; h < hp->n_head_kv; h++) {
        const pd_kv_head *kh = pd_kv_at(&s->kv, layer, h);
        const size_t n = kh->n, open = n - kh->n_pack; /* packed ones only become fewer */
        slots += n;
        pages += pd_div_up(pd_min_size(open + job->max_tokens, (rule->prune ? pd_max_size(n, left) + beside : n) + more), PD_PAGE_TOKENS);
    }
    if (job->pack_page_bytes) return pages;
    if (!rule->prune || !rule->prune->press->plan) return pages;
    /* its plan may give one head what another loses */
    return layer_pages(hp, pd_max_size(pd_div_up(slots, hp->n_head_kv), left) + beside + more);
}

/* Pages of full layers that are pruned together: a pruning leaves `left` slots a head, in full pages
 * of any of them; until the next a head gets `interval` tokens, all of them (0: no pruning) at most. */
static uint64_t pages_together(const pd_seq *s) {
    const pd_job *job = s->job;
    const pd_hparams *hp = &s->run->model->hp;
    const size_t more = job->max_tokens - job->n_sampled, total = job->n_tokens + job->n_added + job->max_tokens;
    const size_t interval = s->rule.interval ? pd_min_size(s->rule.interval, more) : more;
    uint64_t now = 0, grown = 0, after = 0, heads = 0;
    for (size_t l = 0; l < hp->n_layer; l++) {
        if (hp->window[l]) continue;
        heads += hp->n_head_kv;
        after += hp->n_head_kv * (most_left(job, &s->rule, l, total) / PD_PAGE_TOKENS);
        for (size_t h = 0; h < hp->n_head_kv; h++) {
            now += pd_kv_at(&s->kv, l, h)->n_page;
            grown += pd_div_up(pd_kv_at(&s->kv, l, h)->n + more, PD_PAGE_TOKENS);
        }
    }
    if (!s->rule.interval) return grown;
    const uint64_t most = (now > after ? now : after) + heads * pd_div_up(interval, PD_PAGE_TOKENS);
    return most < grown ? most : grown;
}

static uint64_t pages_of_windows(const pd_seq *s) {
    const pd_hparams *hp = &s->run->model->hp;
    uint64_t pages = 0;
    for (size_t l = 0; l < hp->n_layer; l++) {
        const size_t w = hp->window[l], n = w ? pd_kv_at(&s->kv, l, 0)->n + s->job->max_tokens - s->job->n_sampled : 0;
        if (w) pages += hp->n_head_kv * (pd_div_up(pd_min_size(n, w + 1), PD_PAGE_TOKENS) + 1);
    }
    return pages;
}

void pd_admit_left(const pd_seq *s) {
    const pd_hparams *hp = &s->run->model->hp;
    pd_job *job = s->job;
    uint64_t pages = pages_of_windows(s);
    if (job->latent.rank) return; /* all its slots stay */
    if (s->rule.prune && s->rule.prune->press->running)
        pages += pages_together(s);
    else
        for (size_t l = 0; l < hp->n_layer; l++) pages += hp->window[l] ? 0 : pages_ahead(s, l);
    if (pages < job->pages_promised) job->pages_promised = pages;
    if (s->kv.n_pack_pages < job->pack_promised) job->pack_promised = s->kv.n_pack_pages;
}

uint64_t pd_admit_gain(const pd_seq *s) {
    const pd_job *job = s->job;
    const pd_hparams *hp = &s->run->model->hp;
    if (!s->rule.prune || s->rule.interval) return 0;
    const size_t more = pd_div_up(job->max_tokens - job->n_sampled, PD_PAGE_TOKENS);
    uint64_t pages = pages_of_windows(s), now = 0, after = 0;
    pd_budget budget = pd_decode_budget(&s->rule, s->n_seen);
    budget.n_protected = job->protect_end - job->protect_begin + job->n_added;
    for (size_t l = 0; l < hp->n_layer; l++) {
        if (hp->window[l]) continue;
        const size_t left = pd_press_most(s->rule.prune, &budget, l, s->n_seen) + budget.n_protected;
        after += hp->n_head_kv * pd_div_up(left, PD_PAGE_TOKENS);
        pages += hp->n_head_kv * more;
        for (size_t h = 0; h < hp->n_head_kv; h++) now += pd_kv_at(&s->kv, l, h)->n_page;
    }
    pages += now < after ? now : after;
    return pages < job->pages_promised ? job->pages_promised - pages : 0;
}

size_t pd_admit_list_slots(const pd_job *job, const pd_hparams *hp, size_t layer) {
    const size_t total = job->n_tokens + job->n_added + job->max_tokens, w = hp->window[layer];
    return w ? pd_min_size(total, w + 1) : total; /* one head may keep everything */
}

uint64_t pd_admit_forecast(const pd_job *job, const pd_hparams *hp, double ratio) {
    const size_t scope = job->scope ? job->scope : job->n_tokens;
    const pd_budget budget = {.ratio = ratio};
    const size_t keep = pd_budget_keep(&budget, scope), n = job->n_tokens - scope + keep;
    const pd_codec codec = pd_codec_of(job->kv_key, job->kv_value);
    const pd_latent_rule *r = &job->latent;
    uint64_t bytes = 0;
    for (size_t l = 0; l < hp->n_layer; l++) {
        const size_t w = hp->window[l], slots = w ? pd_min_size(job->n_tokens, w) : n;
        size_t packed = 0, page = job->pack_page_bytes;
        if (!w && r->rank && r->layer[l]) {
            packed = pd_latent_packed(r, l, slots);
            page = pd_codec_page_bytes(&codec, r->layer[l], r->value[l]);
        } else if (!w && !r->rank && page) { /* the scope's keys have fewer channels, what follows has all */
            packed = keep;
        }
        const size_t open = pd_div_up(slots - packed, PD_PAGE_TOKENS);
        bytes += hp->n_head_kv * (pd_div_up(packed, PD_PAGE_TOKENS) * page + open * job->page_bytes +
                                  pd_min_size(PD_KV_RECENT, open) * job->recent_page_bytes);
    }
    return bytes;
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

/* A budget that goes on holding while tokens come, whether or not the prompt is pressed. */
static pd_status plan_whole(pd_job *job, const pd_hparams *hp, pd_err *err) {
    const size_t scope = job->scope;
    job->scope = job->n_tokens + job->max_tokens;
    const pd_status rc = plan_budget(job, hp, err);
    job->scope = scope;
    return rc;
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
    const size_t twice = pd_min_size(PD_KV_RECENT, pd_div_up(job->n_tokens + job->n_added + job->max_tokens, PD_PAGE_TOKENS) + 1);
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
                                  .head_dim = hp->head_dim, .n_embd = hp->n_embd, .n_ff = hp->n_ff};
    pd_latent_rule rule = {0};
    if (press->press->latents && !press->press->latents(press, &model, &rule)) rule = (pd_latent_rule){0};
    return rule;
}

pd_codec pd_admit_pack_codec(const pd_job *job) {
    const size_t n = job->latent.n_centroid;
    return pd_codec_of(n == 0 ? job->kv_key : n > 16 ? PD_KV_CODES8 : PD_KV_CODES4, job->kv_value);
}

/* The latents of a press that says what is read, if one has any: it drops nothing, so that no scope
 * matters, and what another press left could not be told from a sequence's older keys. */
static pd_status plan_codes(pd_job *job, const pd_hparams *hp, const pd_press_inst **press, pd_err *err) {
    const pd_compression *c = job->comp;
    for (size_t i = 0; c && i < c->n_read; i++) {
        const pd_latent_rule rule = pd_admit_latents(c->read[i], hp);
        if (!rule.rank) continue;
        if (c->press)
            return pd_fail(err, PD_EINVAL, "compression.press", "compression.press: '%s' stores keys as codes, which no press inside it may drop ('%s' does)",
                           c->read[i]->press->name, c->press->press->name);
        job->latent = rule;
        *press = c->read[i];
    }
    return PD_OK;
}

/* Pages for the scope's keys if the press takes channels out of them, or for what is older if it projects it. */
static pd_status plan_packed(pd_job *job, const pd_hparams *hp, pd_err *err) {
    const size_t d = hp->head_dim;
    const pd_press_inst *press = job->scope ? job->comp->press : NULL;
    job->latent = press ? pd_admit_latents(press, hp) : (pd_latent_rule){0};
    PD_TRY(plan_codes(job, hp, &press, err));
    if (job->latent.rank && pd_kv_type_group(job->kv_key) > 1)
        return pd_fail(err, PD_EINVAL, "compression.kv_type",
                       "compression.kv_type stores keys as %s; press '%s' %s keys, which takes f16 or f32 (values may have any type)",
                       pd_kv_type_name(job->kv_key), press->press->name, job->latent.n_centroid ? "codes older" : "projects");
    const size_t group = pd_kv_type_group(job->kv_value);
    for (size_t l = 0; l < hp->n_layer && job->latent.rank; l++) {
        if (!job->latent.layer[l] || job->latent.value[l] % group == 0) continue;
        return pd_fail(err, PD_EINVAL, "compression.kv_type",
                       "compression.kv_type stores values as %s in groups of %zu numbers; press '%s' leaves %u of layer %zu's values",
                       pd_kv_type_name(job->kv_value), group, press->press->name, job->latent.value[l], l);
    }
    job->key_channels = job->latent.rank ? job->latent.rank : press ? pd_press_key_channels(press, d) : d;
    const bool parts = job->latent.n_centroid || job->latent.joint; /* as many numbers as they are, in any type */
    const size_t width = parts ? job->latent.rank : pd_kv_pack_width(job->kv_key, job->key_channels, d);
    const pd_codec codec = pd_admit_pack_codec(job);
    job->pack_page_bytes = width < d ? pd_codec_page_bytes(&codec, width, d) : 0;
    if (job->latent.rank) job->pack_page_bytes = pd_codec_page_bytes(&codec, job->latent.rank, job->latent.rank_v);
    return PD_OK;
}

/* What running `rows` behind the scope backwards takes. */
static void plan_reverse(pd_job *job, const pd_hparams *hp, size_t rows) {
    const uint64_t most = UINT64_MAX / 4, all = pd_reverse_bytes(hp, 0, rows, job->scope + rows);
    job->thread_bytes = pd_reverse_bytes(hp, 1, rows, job->scope + rows) - all;
    job->staging_bytes += all < most ? all : most;
}

size_t pd_admit_added(const pd_compression *c) {
    const pd_deferred *d = c && c->press ? c->press->press->deferred : NULL;
    pd_added added = {0};
    if (d && d->added) d->added(c->press, &added);
    return added.n;
}

pd_status pd_admit_plan(pd_job *job, const pd_hparams *hp, const pd_job_params *p, pd_kv_type native, pd_err *err) {
    const pd_compression *c = p->compression;
    job->comp = p->compression;
    job->n_added = pd_admit_added(c);
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
    if (read.page_budget && read.exact > 0.0)
        return pd_fail(err, PD_EINVAL, "compression.press",
                       "compression.press chooses what is read by bounds of pages and by codes of keys; one of the two is served at a time");
    if (!pd_read_all(&read) && (read.page_budget || !job->latent.n_centroid) && (job->pack_page_bytes || job->latent.rank))
        return pd_fail(err, PD_EINVAL, "compression.press",
                       "compression.press stores keys in fewer numbers and chooses what is read of them; one of the two is served at a time");
    pd_decode_rule rule = {0};
    const bool decodes = pd_admit_rule(job, &rule);
    if (decodes && rule.by_request) PD_TRY(plan_whole(job, hp, err));
    if (decodes && rule.prune->press->running && (job->pack_page_bytes || job->latent.rank))
        return pd_fail(err, PD_EINVAL, "compression.decode",
                       "compression.decode frees whole pages of all layers, and compression.press stores keys in narrower ones; one of the two is served at a time");
    if (job->scope) {
        if (!rule.by_request) PD_TRY(plan_budget(job, hp, err));
        /* one that goes on ranks the prompt even if all of it stays */
        job->deferred = c->press->press->deferred && (rule.by_request || pd_budget_keep(&job->budget, job->scope) < job->scope);
    }
    if (!job->deferred) job->n_added = 0;
    most_pages(job, hp);
    /* a replay stands behind the scope */
    const pd_deferred *d = job->deferred ? c->press->press->deferred : NULL;
    const size_t behind = d && d->most_rows ? d->most_rows(c->press, job->scope) : 0;
    job->staging_bytes = pd_stage_bytes(hp->n_head_kv, hp->head_dim, pd_max_size(job->n_tokens, job->scope + pd_max_size(behind, job->n_added)));
    job->thread_bytes = 0;
    if (d && d->gradient) plan_reverse(job, hp, behind);
    return PD_OK;
}
