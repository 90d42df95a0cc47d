/* SPDX-License-Identifier: Apache-2.0 */
/* Where an answer stands (see grammar.h).
 *
 * A stack is a chain of frames; equal stacks are one frame, so a place is two
 * numbers and equal sets of places are one state.  Transitions are found once and
 * kept: a token costs a look-up per byte.  What is kept is forgotten beyond
 * STATES_KEPT states, all but the current one.
 *
 * A place that cannot be kept (a limit, memory) is no refusal: the call that met it
 * forgets and tries once more, and then the matcher has failed, for good. */
#include "engine/grammar/internal.h"

#include <stdlib.h>
#include <string.h>

enum {
    STATES_KEPT = 4096, STATES_MAX = 16384, FRAMES_MAX = 1 << 17,
    STATE_SLOTS = 4 * STATES_MAX, FRAME_SLOTS = 2 * FRAMES_MAX,
    SEEN_MAX = 8 * PD_GRAMMAR_PATHS_MAX, SEEN_SLOTS = 4 * SEEN_MAX,
    MASKS = 256, MASKS_MIN = 64, MASKS_BYTES = 2 << 20, /* as many as fit, but some */
    REACH_MAX = 32,
    WORK_MAX = 1 << 23, /* places visited by one call: tens of milliseconds */
};

typedef struct { int32_t node, frame; } place;

typedef struct { int32_t ret, parent, depth; } frame; /* frame 0: the bottom */

typedef struct {
    uint32_t off, n;
    int32_t whole; /* clamped to the longest token, DEAD = not looked for yet */
    uint32_t mask, mask_made; /* which was found for it, if that one still is what was made then; 0 = none */
    bool may_end;
} state;

struct pd_matcher {
    pd_grammar *g;
    int32_t now;
    frame *frame;
    state *state;
    place *place;
    uint16_t *to; /* [states][256] */
    size_t n_frame, cap_frame, n_state, cap_state, n_place, cap_place;
    int32_t *frame_slot, *state_slot; /* 0 = empty, else + 1 */
    /* one closure */
    place *todo, *found;
    uint32_t *seen_at; /* [SEEN_SLOTS] round in which the slot was taken */
    place *seen;
    size_t n_todo, n_found, n_seen;
    uint32_t round;
    size_t work; /* of the call under way */
    bool may_end, overflow, no_memory;
    const char *lost;   /* the limit that the call under way ran into */
    const char *failed; /* the same, of a call that could not be helped */
    /* masks */
    uint64_t *mask[MASKS];
    int32_t mask_state[MASKS]; /* as clamped to mask_reach bytes */
    size_t mask_reach[MASKS];
    uint32_t mask_made[MASKS]; /* the number of the mask that is there now */
    size_t mask_bytes; /* of each */
    unsigned next_mask, n_mask, n_held; /* the next to be made anew, how many there may be, those that have memory */
    uint32_t made;
};

static uint32_t mix(uint32_t a, uint32_t b) {
    const uint64_t x = ((uint64_t)a * 0x9E3779B1u) ^ ((uint64_t)b * 0x85EBCA77u); /* neither wraps */
    return (uint32_t)(x >> 32 ^ x >> 13);
}

static bool room(void **v, size_t n, size_t *cap, size_t size, bool *no_memory) {
    if (n <= *cap) return true;
    size_t more = *cap ? *cap : 64;
    while (more < n) more *= 2;
    void *w = realloc(*v, more * size);
    if (!w) {
        *no_memory = true;
        return false;
    }
    *v = w;
    *cap = more;
    return true;
}

/* The frame that returns to `ret` and then to `parent`; -1 = too deep or too many. */
static int32_t push_frame(pd_matcher *m, int32_t ret, int32_t parent) {
    for (uint32_t s = mix((uint32_t)ret, (uint32_t)parent) % FRAME_SLOTS;; s = (s + 1) % FRAME_SLOTS) {
        const int32_t i = m->frame_slot[s] - 1;
        if (i >= 0 && (m->frame[i].ret != ret || m->frame[i].parent != parent)) continue;
        if (i >= 0) return i;
        const int32_t depth = m->frame[parent].depth + 1;
        if (depth > PD_GRAMMAR_DEPTH_MAX) return -1;
        if (m->n_frame == FRAMES_MAX) m->lost = "more stacks than are kept";
        else if (!room((void **)&m->frame, m->n_frame + 1, &m->cap_frame, sizeof *m->frame, &m->no_memory)) m->lost = "no memory";
        if (m->lost) return -1;
        m->frame[m->n_frame] = (frame){ret, parent, depth};
        m->frame_slot[s] = (int32_t)++m->n_frame;
        return (int32_t)m->n_frame - 1;
    }
}

/* ---- sets of places ---- */

static void begin_set(pd_matcher *m) {
    m->n_todo = m->n_found = m->n_seen = 0;
    m->may_end = m->overflow = false;
    if (++m->round == 0) {
        memset(m->seen_at, 0, SEEN_SLOTS * sizeof *m->seen_at);
        m->round = 1;
    }
}

static void reach(pd_matcher *m, int32_t node, int32_t at) {
    if (at < 0) return;
    for (uint32_t s = mix((uint32_t)node, (uint32_t)at) % SEEN_SLOTS;; s = (s + 1) % SEEN_SLOTS) {
        if (m->seen_at[s] == m->round) {
            if (m->seen[s].node == node && m->seen[s].frame == at) return;
            continue;
        }
        if (m->n_seen == SEEN_MAX) {
            m->overflow = true;
            return;
        }
        m->seen_at[s] = m->round;
        m->seen[s] = (place){node, at};
        m->n_seen++;
        m->todo[m->n_todo++] = (place){node, at};
        return;
    }
}

/* All places from which a byte is read, without reading one. */
static void close_set(pd_matcher *m) {
    while (m->n_todo && !m->overflow) {
        if (++m->work > WORK_MAX) m->lost = "too many ways to read the answer so far";
        if (m->lost) return;
        const place p = m->todo[--m->n_todo];
        const pd__g_node *n = &m->g->node[p.node];
        switch ((pd__n_kind)n->kind) {
        case PD__N_RANGE:
            if (m->n_found == PD_GRAMMAR_PATHS_MAX) m->overflow = true;
            else m->found[m->n_found++] = p;
            break;
        case PD__N_SPLIT:
            reach(m, n->next, p.frame);
            reach(m, n->other, p.frame);
            break;
        case PD__N_CALL: /* one that is the last thing returns where its caller does */
            reach(m, n->other, m->g->node[n->next].kind == PD__N_RETURN ? p.frame : push_frame(m, n->next, p.frame));
            break;
        case PD__N_RETURN:
            if (p.frame == 0) m->may_end = true;
            else reach(m, m->frame[p.frame].ret, m->frame[p.frame].parent);
            break;
        }
    }
}

static int by_place(const void *a, const void *b) {
    const place *x = a, *y = b;
    if (x->node != y->node) return x->node < y->node ? -1 : 1;
    return x->frame < y->frame ? -1 : x->frame > y->frame;
}

/* The state of the set just closed, DEAD if it is empty or cannot be kept. */
static int32_t end_set(pd_matcher *m) {
    close_set(m);
    const size_t n = m->n_found;
    m->work += n;
    if (m->overflow) m->lost = "more than 2048 ways to read the answer so far";
    if (m->lost || (n == 0 && !m->may_end)) return PD__DEAD;
    if (n > 1) qsort(m->found, n, sizeof *m->found, by_place);
    uint32_t h = m->may_end;
    for (size_t i = 0; i < n; i++) h = mix(h, mix((uint32_t)m->found[i].node, (uint32_t)m->found[i].frame));
    for (uint32_t s = h % STATE_SLOTS;; s = (s + 1) % STATE_SLOTS) {
        const int32_t i = m->state_slot[s] - 1;
        if (i >= 0) {
            const state *x = &m->state[i];
            if (x->n == n && x->may_end == m->may_end &&
                (n == 0 || memcmp(m->place + x->off, m->found, n * sizeof *m->found) == 0))
                return i;
            continue;
        }
        if (m->n_state == STATES_MAX) {
            m->lost = "more than 16384 states behind one point of the answer";
            return PD__DEAD;
        }
        size_t cap = m->cap_state;
        if (!room((void **)&m->to, m->n_state + 1, &cap, 256 * sizeof *m->to, &m->no_memory) ||
            !room((void **)&m->state, m->n_state + 1, &m->cap_state, sizeof *m->state, &m->no_memory) ||
            !room((void **)&m->place, m->n_place + n + 1, &m->cap_place, sizeof *m->place, &m->no_memory)) {
            m->lost = "no memory";
            return PD__DEAD;
        }
        memset(m->to + m->n_state * 256, 0xFF, 256 * sizeof *m->to);
        if (n) memcpy(m->place + m->n_place, m->found, n * sizeof *m->found);
        m->state[m->n_state] = (state){(uint32_t)m->n_place, (uint32_t)n, PD__DEAD, 0, 0, m->may_end};
        m->n_place += n;
        m->state_slot[s] = (int32_t)++m->n_state;
        return (int32_t)m->n_state - 1;
    }
}

int32_t pd__matcher_step(pd_matcher *m, int32_t from, uint8_t byte) {
    const uint16_t known = m->to[(size_t)from * 256 + byte];
    if (known != PD__UNKNOWN) return known == PD__NOWHERE ? PD__DEAD : known;
    begin_set(m);
    const state x = m->state[from];
    m->work += x.n;
    unsigned lo = 0, hi = 255; /* the bytes that the same places read */
    for (uint32_t i = 0; i < x.n; i++) {
        const place p = m->place[x.off + i];
        const pd__g_node *n = &m->g->node[p.node];
        if (byte < n->lo) hi = n->lo - 1u < hi ? n->lo - 1u : hi;
        else if (byte > n->hi) lo = n->hi + 1u > lo ? n->hi + 1u : lo;
        else {
            lo = n->lo > lo ? n->lo : lo;
            hi = n->hi < hi ? n->hi : hi;
            reach(m, n->next, p.frame);
        }
    }
    const int32_t to = end_set(m);
    if (m->lost) return PD__DEAD; /* not known, so not kept */
    for (unsigned b = lo; b <= hi; b++) m->to[(size_t)from * 256 + b] = to == PD__DEAD ? PD__NOWHERE : (uint16_t)to;
    return to;
}

/* The frame that reads on as `at` does for `bytes` bytes; -1 = too many. */
static int32_t clamped_frame(pd_matcher *m, int32_t at, size_t bytes) {
    int32_t chain[PD_GRAMMAR_DEPTH_MAX], n = 0, to = 0;
    for (int32_t f = at; f; f = m->frame[f].parent) chain[n++] = m->frame[f].ret;
    while (n > 0 && to >= 0) to = push_frame(m, pd__g_clamp(m->g, chain[--n], bytes), to);
    return to;
}

int32_t pd__matcher_clamped(pd_matcher *m, size_t bytes) {
    const state x = m->state[m->now];
    if (!m->g->n_copies || m->lost) return m->now;
    begin_set(m);
    for (uint32_t i = 0; i < x.n && !m->lost; i++) {
        const place p = m->place[x.off + i];
        reach(m, pd__g_clamp(m->g, p.node, bytes), clamped_frame(m, p.frame, bytes));
    }
    close_set(m);
    m->may_end = x.may_end;
    const int32_t to = end_set(m);
    if (!m->lost) return to;
    m->lost = NULL; /* no room for it: the state itself will do */
    return m->now;
}

/* Everything but the current state goes; its stacks are built anew. */
static void forget(pd_matcher *m) {
    const state x = m->state[m->now];
    place *keep = malloc((x.n + 1) * sizeof *keep);
    frame *old = malloc(m->n_frame * sizeof *old);
    if (!keep || !old) {
        free(keep);
        free(old);
        m->failed = "no memory";
        return;
    }
    m->lost = NULL;
    memcpy(keep, m->place + x.off, x.n * sizeof *keep);
    memcpy(old, m->frame, m->n_frame * sizeof *old);
    memset(m->frame_slot, 0, FRAME_SLOTS * sizeof *m->frame_slot);
    memset(m->state_slot, 0, STATE_SLOTS * sizeof *m->state_slot);
    m->n_frame = 1;
    m->n_state = m->n_place = 0;
    for (unsigned i = 0; i < MASKS; i++) m->mask_state[i] = PD__DEAD;
    begin_set(m);
    for (uint32_t i = 0; i < x.n; i++) {
        int32_t chain[PD_GRAMMAR_DEPTH_MAX], n = 0, at = 0;
        for (int32_t f = keep[i].frame; f; f = old[f].parent) chain[n++] = old[f].ret;
        while (n > 0 && at >= 0) at = push_frame(m, chain[--n], at);
        reach(m, keep[i].node, at);
    }
    close_set(m);
    m->may_end = x.may_end;
    m->now = end_set(m);
    if (m->now == PD__DEAD) { /* it was kept before, so only for want of memory */
        m->failed = "no memory";
        m->now = 0;
    }
    free(keep);
    free(old);
}

/* ---- public ---- */

pd_status pd_matcher_open(pd_matcher **ret, pd_grammar *g, pd_err *err) {
    pd_matcher *m = calloc(1, sizeof *m);
    if (!m) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a grammar");
    m->g = g;
    pd_grammar_ref(g);
    for (unsigned i = 0; i < MASKS; i++) m->mask_state[i] = PD__DEAD;
    m->frame_slot = calloc(FRAME_SLOTS, sizeof *m->frame_slot);
    m->state_slot = calloc(STATE_SLOTS, sizeof *m->state_slot);
    m->todo = malloc(SEEN_MAX * sizeof *m->todo);
    m->found = malloc(PD_GRAMMAR_PATHS_MAX * sizeof *m->found);
    m->seen = malloc(SEEN_SLOTS * sizeof *m->seen);
    m->seen_at = calloc(SEEN_SLOTS, sizeof *m->seen_at);
    if (!m->frame_slot || !m->state_slot || !m->todo || !m->found || !m->seen || !m->seen_at ||
        !room((void **)&m->frame, 1, &m->cap_frame, sizeof *m->frame, &m->no_memory)) {
        pd_matcher_close(m);
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for a grammar");
    }
    m->frame[m->n_frame++] = (frame){-1, -1, 0};
    begin_set(m);
    reach(m, g->start, 0);
    m->now = end_set(m);
    if (m->now == PD__DEAD) {
        const bool memory = m->no_memory;
        pd_matcher_close(m);
        if (memory) return pd_fail(err, PD_ENOMEM, NULL, "no memory for a grammar");
        return pd_fail(err, PD_EINVAL, "grammar", "the grammar has more than %d ways to begin, or begins deeper than %d rules",
                       PD_GRAMMAR_PATHS_MAX, PD_GRAMMAR_DEPTH_MAX);
    }
    *ret = m;
    return PD_OK;
}

void pd_matcher_close(pd_matcher *m) {
    if (!m) return;
    for (unsigned i = 0; i < MASKS; i++) free(m->mask[i]);
    free(m->frame);
    free(m->state);
    free(m->place);
    free(m->to);
    free(m->frame_slot);
    free(m->state_slot);
    free(m->todo);
    free(m->found);
    free(m->seen);
    free(m->seen_at);
    pd_grammar_unref(m->g);
    free(m);
}

void pd__matcher_begin(pd_matcher *m) {
    m->work = 0;
    m->lost = NULL;
}

/* True: the call is to be made again, and nothing it knew of states holds. */
bool pd__matcher_again(pd_matcher *m, bool tried) {
    if (!m->lost || m->failed) return false;
    if (tried || (m->n_state == 1 && m->n_frame <= PD_GRAMMAR_DEPTH_MAX)) {
        m->failed = m->lost;
        return false;
    }
    forget(m);
    pd__matcher_begin(m);
    return !m->failed;
}

static int32_t run(pd_matcher *m, const char *s, size_t n) {
    if (m->failed) return PD__DEAD;
    for (bool tried = false;; tried = true) {
        pd__matcher_begin(m);
        int32_t at = m->now;
        for (size_t i = 0; i < n && at != PD__DEAD; i++) at = pd__matcher_step(m, at, (uint8_t)s[i]);
        if (!pd__matcher_again(m, tried)) return at;
    }
}

bool pd_matcher_fits(pd_matcher *m, const char *s, size_t n) {
    return run(m, s, n) != PD__DEAD;
}

bool pd_matcher_take(pd_matcher *m, const char *s, size_t n) {
    const int32_t to = run(m, s, n);
    if (to == PD__DEAD) return false;
    m->now = to;
    if (m->n_state > STATES_KEPT || m->n_frame > FRAMES_MAX / 2) forget(m);
    return true;
}

const char *pd_matcher_failed(const pd_matcher *m) {
    return m->failed;
}

size_t pd_matcher_bytes(const pd_matcher *m) {
    size_t n = sizeof *m + FRAME_SLOTS * sizeof *m->frame_slot + STATE_SLOTS * sizeof *m->state_slot +
               SEEN_MAX * sizeof *m->todo + PD_GRAMMAR_PATHS_MAX * sizeof *m->found +
               SEEN_SLOTS * (sizeof *m->seen + sizeof *m->seen_at);
    n += m->cap_frame * sizeof *m->frame + m->cap_place * sizeof *m->place;
    n += m->cap_state * (sizeof *m->state + 256 * sizeof *m->to);
    return n + m->n_held * m->mask_bytes;
}

bool pd_matcher_restart(pd_matcher *m) {
    if (m->failed) return false;
    pd__matcher_begin(m);
    begin_set(m);
    reach(m, m->g->start, 0);
    const int32_t to = end_set(m);
    if (m->lost || to == PD__DEAD) return false;
    m->now = to;
    return true;
}

const pd_grammar *pd_matcher_grammar(const pd_matcher *m) {
    return m->g;
}

bool pd_matcher_may_end(const pd_matcher *m) {
    return m->state[m->now].may_end;
}

bool pd_matcher_must_end(const pd_matcher *m) {
    return m->state[m->now].may_end && m->state[m->now].n == 0;
}

const uint16_t *pd__matcher_steps(const pd_matcher *m) {
    return m->to;
}

int32_t pd__matcher_whole(pd_matcher *m, size_t bytes) {
    if (m->state[m->now].whole == PD__DEAD) {
        const int32_t to = pd__matcher_clamped(m, bytes);
        m->state[m->now].whole = to;
    }
    return m->state[m->now].whole;
}

/* The current state has mask i. */
static uint64_t *note_mask(pd_matcher *m, unsigned i) {
    m->state[m->now].mask = i;
    m->state[m->now].mask_made = m->mask_made[i];
    return m->mask[i];
}

uint64_t *pd__matcher_mask_find(pd_matcher *m) {
    int32_t at[REACH_MAX + 1]; /* the state clamped to each number of bytes, once it is asked for */
    const state *now = &m->state[m->now];
    if (now->mask_made && m->mask_made[now->mask] == now->mask_made) return m->mask[now->mask];
    for (unsigned i = 0; i <= REACH_MAX; i++) at[i] = PD__DEAD;
    for (unsigned i = 0; i < m->n_mask; i++) {
        const size_t bytes = m->mask_reach[i];
        if (m->mask_state[i] == PD__DEAD || bytes > REACH_MAX) continue;
        if (at[bytes] == PD__DEAD) at[bytes] = pd__matcher_clamped(m, bytes);
        if (m->mask_state[i] == at[bytes]) return note_mask(m, i);
    }
    return NULL;
}

uint64_t *pd__matcher_mask_room(pd_matcher *m, size_t words) {
    const size_t bytes = words * sizeof(uint64_t), most = MASKS_BYTES / bytes;
    m->n_mask = most < MASKS_MIN ? MASKS_MIN : most < MASKS ? (unsigned)most : MASKS;
    const unsigned i = m->next_mask++ % m->n_mask;
    m->mask_bytes = bytes;
    if (!m->mask[i]) {
        m->mask[i] = malloc(m->mask_bytes);
        m->n_held += m->mask[i] != NULL;
    }
    m->mask_state[i] = PD__DEAD;
    m->mask_made[i] = ++m->made ? m->made : ++m->made;
    if (m->mask[i]) memset(m->mask[i], 0, m->mask_bytes);
    return m->mask[i];
}

void pd__matcher_mask_keep(pd_matcher *m, const uint64_t *mask, size_t reach) {
    for (unsigned i = 0; i < MASKS; i++) {
        if (m->mask[i] != mask) continue;
        m->mask_state[i] = pd__matcher_clamped(m, reach);
        m->mask_reach[i] = reach;
        if (!m->lost) note_mask(m, i);
    }
}
