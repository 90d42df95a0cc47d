/* SPDX-License-Identifier: Apache-2.0 */
/* The page pool (see pool.h).
 *
 * Free pages are taken dirty first (no page fault), then clean, then fresh in
 * ascending order, so that one sequence's pages tend to be neighbours.  Freed
 * pages go back in sorted runs: one madvise(MADV_DONTNEED) per run, since a
 * call per 4 KiB page would cost more than the attention it saves.  The system takes
 * a quarter of a microsecond for each of them nevertheless, milliseconds for a long
 * prompt's: while tokens are generated they go piece by piece (pd_kvpool_tidy).
 *
 *     dirty:  | settled: stays until the next round | not looked at yet |
 *             0                                 n_settled            n_dirty */
#include "engine/cache/pool.h"

#include "engine/base/num.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static size_t os_page(void) {
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* Address space without memory behind it; NULL if refused. */
static void *reserve(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return NULL;
    /* Pages come and go in small pieces; huge ones would keep memory we gave back. */
    (void)madvise(p, bytes, MADV_NOHUGEPAGE);
    /* Prompts do not belong into core files. */
    (void)madvise(p, bytes, MADV_DONTDUMP);
    return p;
}

pd_status pd_kvpool_init(pd_kvpool *p, size_t page_bytes, uint64_t max_bytes,
                         size_t hysteresis_bytes, pd_err *err) {
    *p = (pd_kvpool){.page_bytes = page_bytes};
    const uint64_t n = page_bytes ? max_bytes / page_bytes : 0;
    if (n == 0 || n >= UINT32_MAX)
        return pd_fail(err, PD_EINVAL, "kv-cache-bytes",
                       "kv-cache-bytes %llu gives %llu pages of %zu bytes; at least 1 and fewer than 2^32 are possible",
                       (unsigned long long)max_bytes, (unsigned long long)n, page_bytes);
    p->n_total = (uint32_t)n;
    p->hysteresis = (uint32_t)pd_min_size(hysteresis_bytes / page_bytes, p->n_total);
    p->trim_at = 2 * (uint64_t)p->hysteresis + 2;
    size_t pos_bytes;
    if (!pd_mul_size((size_t)n, page_bytes, &p->map_bytes) ||
        !pd_mul_size((size_t)n, PD_PAGE_TOKENS * sizeof(int32_t), &pos_bytes))
        return pd_fail(err, PD_EINVAL, "kv-cache-bytes", "kv-cache-bytes %llu is too large", (unsigned long long)max_bytes);
    p->pos_bytes = pos_bytes;
    p->owner_bytes = (size_t)n;
    p->stack_bytes = (size_t)n * sizeof(uint32_t);
    p->base = reserve(p->map_bytes);
    p->pos = reserve(p->pos_bytes);
    p->owner = reserve(p->owner_bytes);
    p->dirty = reserve(p->stack_bytes);
    p->clean = reserve(p->stack_bytes);
    if (!p->base || !p->pos || !p->owner || !p->dirty || !p->clean) {
        pd_kvpool_done(p);
        return pd_fail(err, PD_ENOMEM, "kv-cache-bytes", "cannot reserve %llu bytes of address space for the KV cache",
                       (unsigned long long)max_bytes);
    }
    atomic_store(&p->n_free, p->n_total);
    return PD_OK;
}

void pd_kvpool_done(pd_kvpool *p) {
    if (p->base) munmap(p->base, p->map_bytes);
    if (p->pos) munmap(p->pos, p->pos_bytes);
    if (p->owner) munmap(p->owner, p->owner_bytes);
    if (p->dirty) munmap(p->dirty, p->stack_bytes);
    if (p->clean) munmap(p->clean, p->stack_bytes);
    *p = (pd_kvpool){0};
}

static _Atomic uint32_t *owner_count(pd_kvpool *p, pd_page_owner owner) {
    return owner == PD_PAGE_SEQ ? &p->n_seq : &p->n_store;
}

bool pd_kvpool_take(pd_kvpool *p, pd_page_owner owner, uint32_t *ret) {
    uint32_t page;
    if (p->n_dirty) {
        page = p->dirty[--p->n_dirty];
        if (p->n_settled > p->n_dirty) p->n_settled = p->n_dirty;
    } else if (p->n_clean) {
        page = p->clean[--p->n_clean];
    } else if (p->n_fresh < p->n_total) {
        page = p->n_fresh++;
    } else {
        return false;
    }
    p->owner[page] = (uint8_t)owner;
    p->n_free--;
    (*owner_count(p, owner))++;
    *ret = page;
    return true;
}

void pd_kvpool_give(pd_kvpool *p, uint32_t page) {
    assert(page < p->n_fresh && p->owner[page] != PD_PAGE_FREE);
    (*owner_count(p, (pd_page_owner)p->owner[page]))--;
    p->owner[page] = PD_PAGE_FREE;
    p->n_free++;
    p->dirty[p->n_dirty++] = page;
    if (!p->by_pieces && p->n_dirty >= p->trim_at) pd_kvpool_trim(p, p->hysteresis);
}

static int by_page(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Nobody holds a page that has a byte in [from, to) of a mapping of `size` per page. */
static bool unheld(const pd_kvpool *p, size_t size, size_t from, size_t to) {
    for (size_t i = from / size; i * size < to && i < p->n_fresh; i++)
        if (p->owner[i] != PD_PAGE_FREE) return false;
    return true;
}

/* Give pages [from, to) of a mapping of `size` per page back, whole OS pages only; one
 * shared with a neighbour goes too if that is free.  *lo, *hi get what really went. */
static void release(const pd_kvpool *p, void *base, size_t size, size_t from, size_t to, size_t *lo, size_t *hi) {
    const size_t os = os_page(), a = from * size, b = to * size;
    const size_t below = a / os * os, above = (b + os - 1) / os * os;
    *lo = unheld(p, size, below, a) ? below : (a + os - 1) / os * os;
    *hi = unheld(p, size, b, above) ? above : b / os * os;
    if (*hi <= *lo || madvise((uint8_t *)base + *lo, *hi - *lo, MADV_DONTNEED) != 0) *hi = *lo;
}

/* Dirty pages [from, n_dirty), the top of the stack, go back; those that cannot stay in it.
 * The number of these. */
static uint32_t release_top(pd_kvpool *p, uint32_t from) {
    const uint32_t n = p->n_dirty;
    uint32_t out = from;
    qsort(p->dirty + from, n - from, sizeof *p->dirty, by_page);
    for (uint32_t i = from; i < n;) {
        uint32_t j = i + 1;
        while (j < n && p->dirty[j] == p->dirty[j - 1] + 1) j++;
        const size_t first = (size_t)p->dirty[i], last = (size_t)p->dirty[j - 1] + 1;
        size_t lo, hi, unused_lo, unused_hi;
        release(p, p->base, p->page_bytes, first, last, &lo, &hi);
        release(p, p->pos, PD_PAGE_TOKENS * sizeof(int32_t), first, last, &unused_lo, &unused_hi);
        for (; i < j; i++) {
            const uint32_t page = p->dirty[i];
            const size_t a = (size_t)page * p->page_bytes;
            if (a >= lo && a + p->page_bytes <= hi)
                p->clean[p->n_clean++] = page;
            else
                p->dirty[out++] = page;
        }
    }
    p->n_dirty = out;
    return out - from;
}

/* What could not go is not looked at again for every page that comes: half as
 * many must join first, so that n pages cost O(log n) rounds. */
static void end_round(pd_kvpool *p) {
    p->tidying = false;
    p->trim_at = pd_max_size(2 * (size_t)p->hysteresis + 2, (size_t)p->n_dirty + p->n_dirty / 2);
}

void pd_kvpool_trim(pd_kvpool *p, uint32_t keep) {
    if (p->n_dirty <= keep) return;
    /* The lowest stay dirty: they are the next to be taken. */
    qsort(p->dirty, p->n_dirty, sizeof *p->dirty, by_page);
    release_top(p, keep);
    end_round(p);
}

void pd_kvpool_tidy(pd_kvpool *p, uint32_t most) {
    if (!p->tidying && p->n_dirty < p->trim_at) return;
    if (!p->tidying) p->n_settled = 0;
    p->tidying = true;
    const uint32_t n = p->n_dirty, lowest = p->n_settled > p->hysteresis ? p->n_settled : p->hysteresis;
    const uint32_t from = n > lowest + most ? n - most : lowest;
    if (n > from) {
        const uint32_t stay = release_top(p, from), move = stay < from - lowest ? stay : from - lowest;
        for (uint32_t i = 0; i < move; i++) { /* below those that wait */
            const uint32_t page = p->dirty[lowest + i];
            p->dirty[lowest + i] = p->dirty[from + stay - move + i];
            p->dirty[from + stay - move + i] = page;
        }
        p->n_settled = lowest + stay;
    }
    if (from == lowest || n <= from) end_round(p);
}

bool pd_kvpool_check(const pd_kvpool *p) {
    uint32_t count[3] = {0};
    for (uint32_t i = 0; i < p->n_fresh; i++) {
        if (p->owner[i] > PD_PAGE_STORE) return false;
        count[p->owner[i]]++;
    }
    return p->n_total == p->n_free + p->n_seq + p->n_store &&
           p->n_free == p->n_dirty + p->n_clean + (p->n_total - p->n_fresh) &&
           count[PD_PAGE_SEQ] == p->n_seq && count[PD_PAGE_STORE] == p->n_store &&
           count[PD_PAGE_FREE] == p->n_dirty + p->n_clean;
}
