/* SPDX-License-Identifier: Apache-2.0 */
/* All layers of a running sequence pruned at once (compression/running.h): by its decode press's
 * interval, or when another request waits for memory.
 *
 * The press sees positions and tags, no keys and values; what stays is moved together in place
 * and the pages behind it go back to the pool.  Layers with a window are left alone.
 * Cost: a look at every slot; copies of the slots that move. */
#include "compression/running.h"

#include "engine/run/seq.h"

#include "engine/base/num.h"

#include <assert.h>

/* What the press is shown, in run->tmp, which is reset. */
static pd_status gather(pd_seq *s, pd_running *ret, pd_err *err) {
    const size_t layers = s->kv.n_layer, heads = s->kv.n_head_kv;
    pd_arena *tmp = &s->run->tmp;
    pd_arena_reset(tmp);
    size_t *n = PD_ARENA_NEW(tmp, layers * heads, size_t);
    const int32_t **pos = PD_ARENA_NEW(tmp, layers * heads, const int32_t *);
    const float **tag = PD_ARENA_NEW(tmp, layers * heads, const float *);
    int32_t *next = PD_ARENA_NEW(tmp, layers, int32_t);
    bool ok = n && pos && tag && next;
    for (size_t i = 0; ok && i < layers * heads; i++) {
        const size_t l = i / heads;
        float **row = pd_tags_layer(&s->tags, l);
        n[i] = row ? s->kv.head[i].n : 0; /* none in layers with a window */
        next[l] = (int32_t)s->n_seen - s->shift[l];
        if (!n[i]) continue;
        int32_t *p = PD_ARENA_NEW(tmp, n[i], int32_t);
        ok = p != NULL;
        if (!ok) break;
        pd_kv_read(&s->kv, l, i % heads, NULL, NULL, p);
        pos[i] = p;
        tag[i] = row[i % heads];
    }
    if (!ok) return pd_fail(err, PD_ENOMEM, NULL, "no memory to press a sequence");
    *ret = (pd_running){.n_layer = layers, .n_head_kv = heads, .n = n, .pos = pos, .tag = tag, .next = next,
                        .guard = (const int32_t(*)[2])s->guard, .added = {s->added[0], s->added[1]}, .tmp = tmp};
    return PD_OK;
}

static void apply(pd_seq *s, const pd_running *r, const pd_plan *plan) {
    for (size_t i = 0; i < r->n_layer * r->n_head_kv; i++) {
        const size_t l = i / r->n_head_kv, h = i % r->n_head_kv;
        if (!r->n[i] || plan[l].keep_all || plan[l].n_keep[h] == r->n[i]) continue;
        s->evicted += r->n[i] - plan[l].n_keep[h];
        pd_kv_keep(&s->kv, l, h, plan[l].keep[h], plan[l].n_keep[h]);
        pd_tags_keep(&s->tags, l, h, plan[l].keep[h], plan[l].n_keep[h]);
    }
}

pd_status pd_running_prune(pd_seq *s, pd_err *err) {
    const uint64_t t0 = pd_now_ns();
    const pd_press_inst *inst = s->rule.prune;
    const pd_budget budget = pd_decode_budget(&s->rule, s->n_seen);
    pd_running r;
    PD_TRY(gather(s, &r, err));
    pd_plan *plan = PD_ARENA_NEW(r.tmp, r.n_layer, pd_plan);
    if (!plan) return pd_fail(err, PD_ENOMEM, NULL, "no memory to press a sequence");
    for (size_t l = 0; l < r.n_layer; l++) plan[l] = (pd_plan){.keep_all = true};
    PD_TRY(inst->press->running(inst, &r, &budget, plan, err));
    apply(s, &r, plan);
    s->pruned_at = s->n_seen;
    s->press_ns += pd_now_ns() - t0;
    assert(pd_kvpools_check(&s->run->pools));
    return PD_OK;
}

pd_status pd_running_step(pd_seq *s, pd_err *err) {
    if (!s->rule.interval || ++s->since[0] < s->rule.interval) return PD_OK;
    s->since[0] = 0;
    return pd_running_prune(s, err);
}
