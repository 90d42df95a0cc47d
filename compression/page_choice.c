/* SPDX-License-Identifier: Apache-2.0 */
/* KV-Compress' choice (Rehg 2024, arXiv 2410.00161, section 4).
 *
 * A head of C slots has a = C mod b (b if 0) of them in its last page.  Freeing e pages
 * takes its a + (e - 1) b lowest metrics; m(e) is the largest of these.  m never falls
 * with e, so the E pages of lowest m over all heads are an E-fold merge of the heads'
 * lists: a heap of the heads by their next m.
 *
 * Cost: three counting passes over the metrics, 12 bytes a slot of the longest head, E log heads. */
#include "compression/page_choice.h"

#include "engine/base/num.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { DIGIT = 11, BUCKETS = 1 << DIGIT, PASSES = 3 };

/* Larger float -> larger key; -0 and +0 are one value. */
static uint32_t key_of(float s) {
    uint32_t u;
    const float z = s + 0.0f;
    memcpy(&u, &z, sizeof u);
    return u ^ (u >> 31 ? UINT32_MAX : UINT32_C(1) << 31);
}

/* The keys of s[0..n), ascending, in `a`; `b`: as much scratch. */
static void sort_keys(const float *s, size_t n, uint32_t *a, uint32_t *b) {
    for (size_t i = 0; i < n; i++) b[i] = key_of(s[i]);
    uint32_t *from = b, *to = a; /* three passes end in a */
    for (int p = 0; p < PASSES; p++) {
        size_t at[BUCKETS] = {0}, sum = 0;
        for (size_t i = 0; i < n; i++) at[from[i] >> p * DIGIT & (BUCKETS - 1)]++;
        for (size_t k = 0; k < BUCKETS; k++) {
            const size_t count = at[k];
            at[k] = sum;
            sum += count;
        }
        for (size_t i = 0; i < n; i++) to[at[from[i] >> p * DIGIT & (BUCKETS - 1)]++] = from[i];
        uint32_t *t = from;
        from = to;
        to = t;
    }
}

typedef struct {
    const uint32_t *m; /* [n_m] keys of m(1), m(2), ... as far as they are finite */
    size_t n_m, e;     /* e pages are taken */
} list;

typedef struct {
    const list *all;
    size_t *head; /* [n] a heap of heads: the lowest next m first, then the first head */
    size_t n;
} heap;

static bool before(const heap *q, size_t x, size_t y) {
    const uint32_t a = q->all[x].m[q->all[x].e], b = q->all[y].m[q->all[y].e];
    return a != b ? a < b : x < y;
}

static void sink(heap *q, size_t i) {
    for (size_t c; (c = 2 * i + 1) < q->n; i = c) {
        if (c + 1 < q->n && before(q, q->head[c + 1], q->head[c])) c++;
        if (before(q, q->head[i], q->head[c])) return;
        const size_t t = q->head[i];
        q->head[i] = q->head[c];
        q->head[c] = t;
    }
}

/* m(1), m(2), ... of one head: every page keeps its +inf, and the head a page. */
static size_t fill_list(const float *metric, size_t n, size_t page, uint32_t *sorted, uint32_t *b, uint32_t *m) {
    const size_t pages = pd_div_up(n, page);
    const uint32_t stays = key_of(INFINITY);
    size_t n_m = 0;
    sort_keys(metric, n, sorted, b);
    for (size_t gone = n - (pages - 1) * page; n_m + 1 < pages && sorted[gone - 1] < stays; gone += page)
        m[n_m++] = sorted[gone - 1];
    return n_m;
}

pd_status pd__choose_pages(const float *const *metric, const size_t *n, size_t n_head, size_t page, size_t n_free,
                           size_t *n_keep, pd_arena *tmp, pd_err *err) {
    size_t longest = 0, pages = 0;
    for (size_t i = 0; i < n_head; i++) {
        assert(n[i] >= 1);
        longest = pd_max_size(longest, n[i]);
        pages += pd_div_up(n[i], page);
    }
    list *all = PD_ARENA_NEW(tmp, n_head, list);
    heap q = {.all = all, .head = PD_ARENA_NEW(tmp, n_head, size_t)};
    uint32_t *sorted = PD_ARENA_NEW(tmp, longest, uint32_t), *b = PD_ARENA_NEW(tmp, longest, uint32_t);
    uint32_t *m = PD_ARENA_NEW(tmp, pages, uint32_t);
    if (!all || !q.head || !sorted || !b || !m)
        return pd_fail(err, PD_ENOMEM, NULL, "no memory to choose among %zu pages", pages);
    for (size_t i = 0; i < n_head; i++) {
        all[i] = (list){.m = m, .n_m = fill_list(metric[i], n[i], page, sorted, b, m)};
        m += all[i].n_m;
        if (all[i].n_m) q.head[q.n++] = i;
    }
    for (size_t i = q.n / 2; i-- > 0;) sink(&q, i);
    for (; n_free > 0 && q.n > 0; n_free--) {
        list *first = &all[q.head[0]];
        if (++first->e == first->n_m) q.head[0] = q.head[--q.n];
        sink(&q, 0);
    }
    for (size_t i = 0; i < n_head; i++)
        n_keep[i] = all[i].e ? (pd_div_up(n[i], page) - all[i].e) * page : n[i];
    return PD_OK;
}
