/* SPDX-License-Identifier: Apache-2.0 */
/* Several answers to one prompt: the prompt is read and pressed once, the others
 * get a copy of what it left (see pd_engine_submit_n).  Cost: the pages, the tags
 * and the query ring once more per answer; a page has one owner, so that the pool's
 * equation and every request's bytes stay what they are. */
#include "engine/run/seq.h"

#include <string.h>

/* What the decode press remembers: the ring of queries, tags, steps since a pruning. */
static void copy_decode(pd_seq *s, const pd_seq *from) {
    if (s->ring.rows) {
        memcpy(s->ring.q, from->ring.q, from->ring.bytes);
        memcpy(s->ring.pos, from->ring.pos, from->ring.rows * sizeof *s->ring.pos);
        s->ring.n_seen = from->ring.n_seen;
    }
    for (size_t l = 0; s->tags.row && l < s->kv.n_layer; l++) {
        float **to = pd_tags_layer(&s->tags, l), **tags = pd_tags_layer(&from->tags, l);
        for (size_t h = 0; to && h < s->kv.n_head_kv; h++) memcpy(to[h], tags[h], pd_kv_at(&s->kv, l, h)->n * sizeof **to);
    }
    if (s->since) memcpy(s->since, from->since, s->kv.n_layer * sizeof *s->since);
}

pd_status pd_seq_fork(pd_seq *s, const pd_seq *from, pd_job *job, pd_err *err) {
    PD_TRY(pd_seq_open(s, from->run, job, err));
    PD_TRY(pd_kv_copy(&s->kv, &from->kv, err));
    memcpy(s->shift, from->shift, s->kv.n_layer * sizeof *s->shift);
    memcpy(s->added, from->added, sizeof s->added);
    memcpy(s->guard, from->guard, s->kv.n_layer * sizeof *s->guard);
    copy_decode(s, from);
    s->n_seen = from->n_seen;
    s->pairs_scope = from->pairs_scope;
    s->pairs_kept = from->pairs_kept;
    s->bytes_after_prefill = pd_kv_bytes(&s->kv);
    pd_seq_note_peak(s, 0);
    return PD_OK;
}
