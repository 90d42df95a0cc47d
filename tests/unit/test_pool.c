/* SPDX-License-Identifier: Apache-2.0 */
/* engine/cache/pool.h and pools.h: against a table of owners, and the kernel's word on
 * what went back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/clock.h"
#include "engine/cache/pools.h"
#include "tests/unit/pool_case.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { N = PD_PAGE_TOKENS };

/* ---- the pool ---- */

static void pool_sizes_are_checked(void **state) {
    (void)state;
    pd_kvpool p;
    pd_err err = {0};
    assert_int_equal(pd_kvpool_init(&p, 4096, 4095, 0, &err), PD_EINVAL);
    assert_string_equal(err.param, "kv-cache-bytes");
    err = (pd_err){0};
    assert_int_equal(pd_kvpool_init(&p, 1024, UINT64_MAX, 0, &err), PD_EINVAL);
    err = (pd_err){0};
    assert_int_equal(pd_kvpool_init(&p, 0, 4096, 0, &err), PD_EINVAL);
    p = case_pool(4096, 3, 0);
    assert_int_equal(p.n_total, 3);
    pd_kvpool_done(&p);
    pd_kvpool_done(&p); /* all-zero is fine */
}

/* 100,000 random steps; the page's content must survive until it is given back. */
static void pool_agrees_with_a_table_of_owners(void **state) {
    (void)state;
    enum { PAGES = 300, STEPS = 100000 };
    static const size_t sizes[] = {1024, 4096, 6144};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        pd_rng rng = {100 + s};
        pd_kvpool p = case_pool(sizes[s], PAGES, 16 * sizes[s]);
        p.by_pieces = s % 2 == 1;
        uint8_t owner[PAGES] = {0};
        uint32_t held[PAGES], n_held = 0, count[3] = {0}, mark[PAGES];
        count[PD_PAGE_FREE] = PAGES;
        /* Pressure swings, so that the pool is empty at times and full at others. */
        for (int step = 0; step < STEPS; step++) {
            const bool filling = step / 1000 % 2 == 0;
            const size_t what = case_below(&rng, 100);
            uint32_t page = 0;
            if (what < (filling ? 60u : 30u)) {
                const pd_page_owner who = case_below(&rng, 4) ? PD_PAGE_SEQ : PD_PAGE_STORE;
                const bool got = pd_kvpool_take(&p, who, &page);
                assert_int_equal(got, n_held < PAGES); /* only an empty pool refuses */
                if (!got) continue;
                assert_in_range(page, 0, PAGES - 1);
                assert_int_equal(owner[page], PD_PAGE_FREE);
                owner[page] = (uint8_t)who;
                held[n_held++] = page;
                count[PD_PAGE_FREE]--;
                count[who]++;
                mark[page] = (uint32_t)step;
                memcpy((char *)pd_kvpool_page(&p, page) + sizes[s] - 4, &mark[page], 4);
                pd_kvpool_pos(&p, page)[N - 1] = step;
            } else if (what < 95 && n_held) {
                const size_t i = case_below(&rng, n_held);
                page = held[i];
                held[i] = held[--n_held];
                assert_memory_equal((char *)pd_kvpool_page(&p, page) + sizes[s] - 4, &mark[page], 4);
                assert_int_equal(pd_kvpool_pos(&p, page)[N - 1], mark[page]);
                count[owner[page]]--;
                count[PD_PAGE_FREE]++;
                owner[page] = PD_PAGE_FREE;
                pd_kvpool_give(&p, page);
            } else if (what < 99) {
                pd_kvpool_tidy(&p, 1 + (uint32_t)case_below(&rng, 8));
            } else {
                pd_kvpool_trim(&p, (uint32_t)case_below(&rng, 20));
            }
            assert_int_equal(p.n_free, count[PD_PAGE_FREE]);
            assert_int_equal(p.n_seq, count[PD_PAGE_SEQ]);
            assert_int_equal(p.n_store, count[PD_PAGE_STORE]);
            if (step % 64 == 0) assert_true(pd_kvpool_check(&p));
        }
        assert_true(pd_kvpool_check(&p));
        p.owner[0] ^= 1; /* the check can fail */
        assert_false(pd_kvpool_check(&p));
        pd_kvpool_done(&p);
    }
}

/* Resident OS pages of [base, base + bytes). */
static void residency(void *base, size_t bytes, unsigned char *vec) {
    assert_int_equal(mincore(base, bytes, vec), 0);
}

static void trim_returns_whole_os_pages(void **state) {
    (void)state;
    static const size_t sizes[] = {1024, 4096, 6144, 16384};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        enum { PAGES = 2048 };
        const size_t os = (size_t)sysconf(_SC_PAGESIZE), bytes = sizes[s] * PAGES;
        pd_rng rng = {7};
        pd_kvpool p = case_pool(sizes[s], PAGES, bytes); /* nothing goes by itself */
        bool is_free[PAGES] = {false};
        uint32_t page;
        for (size_t i = 0; i < PAGES; i++) {
            assert_true(pd_kvpool_take(&p, PD_PAGE_SEQ, &page));
            memset(pd_kvpool_page(&p, page), 1, sizes[s]);
        }
        /* Two of three go, in random order, in runs and alone. */
        for (size_t left = PAGES * 2 / 3; left;) {
            size_t i = case_below(&rng, PAGES);
            for (size_t run = 1 + case_below(&rng, 40); run && left && i < PAGES; run--, i++) {
                if (is_free[i]) continue;
                is_free[i] = true;
                pd_kvpool_give(&p, (uint32_t)i);
                left--;
            }
        }
        pd_kvpool_trim(&p, 0);
        assert_true(pd_kvpool_check(&p));
        unsigned char *vec = malloc(bytes / os);
        residency(p.base, bytes, vec);
        size_t wholly_free = 0, gone = 0;
        for (size_t o = 0; o < bytes / os; o++) {
            bool unused = true;
            for (size_t i = o * os / sizes[s]; i * sizes[s] < (o + 1) * os; i++) unused = unused && is_free[i];
            wholly_free += unused;
            gone += !(vec[o] & 1);
            if (!unused) assert_true(vec[o] & 1); /* held memory stays */
        }
        assert_true(wholly_free > bytes / os / 3);
        assert_true(gone * 10 >= wholly_free * 9);
        /* Nothing that is held was touched. */
        for (size_t i = 0; i < PAGES; i++)
            for (size_t b = 0; !is_free[i] && b < sizes[s]; b += 511)
                assert_int_equal(((uint8_t *)pd_kvpool_page(&p, (uint32_t)i))[b], 1);
        free(vec);
        pd_kvpool_done(&p);
    }
}

static void give_trims_by_itself_beyond_the_hysteresis(void **state) {
    (void)state;
    enum { PAGES = 4096, KEEP = 32 };
    pd_kvpool p = case_pool(4096, PAGES, KEEP * 4096);
    uint32_t page;
    for (size_t i = 0; i < PAGES; i++) assert_true(pd_kvpool_take(&p, PD_PAGE_SEQ, &page));
    for (uint32_t i = 0; i < PAGES; i++) {
        pd_kvpool_give(&p, i);
        assert_in_range(p.n_dirty, 0, 2 * KEEP + 1);
    }
    pd_kvpool_done(&p);
}

/* Tidying sets in beyond twice the hysteresis, gives back no more than it is told at once and
 * goes on down to the hysteresis; pages that are taken meanwhile are found among the others. */
static void tidying_goes_piece_by_piece(void **state) {
    (void)state;
    enum { PAGES = 4096, KEEP = 32, MOST = 100 };
    pd_kvpool p = case_pool(4096, PAGES, KEEP * 4096);
    p.by_pieces = true;
    uint32_t page;
    for (size_t i = 0; i < PAGES; i++) assert_true(pd_kvpool_take(&p, PD_PAGE_SEQ, &page));
    for (uint32_t i = 0; i <= 2 * KEEP; i++) pd_kvpool_give(&p, i);
    pd_kvpool_tidy(&p, MOST);
    assert_int_equal(p.n_clean, 0);
    for (uint32_t i = 2 * KEEP + 1; i < PAGES; i++) pd_kvpool_give(&p, i);
    size_t rounds = 0;
    for (uint32_t before = p.n_dirty; p.n_dirty > KEEP; before = p.n_dirty) {
        if (++rounds == 10) {
            for (int i = 0; i < 5; i++) assert_true(pd_kvpool_take(&p, PD_PAGE_SEQ, &page));
            before -= 5;
        }
        pd_kvpool_tidy(&p, MOST);
        assert_in_range(before - p.n_dirty, 1, MOST);
        assert_true(pd_kvpool_check(&p));
    }
    assert_in_range(rounds, PAGES / MOST, PAGES / MOST + 1);
    for (int i = 0; i < 3; i++) pd_kvpool_tidy(&p, MOST);
    assert_int_equal(p.n_dirty, KEEP);
    pd_kvpool_done(&p);
}

/* What cannot go does not keep from their turn those that lie below it. */
static void tidying_comes_to_all(void **state) {
    (void)state;
    enum { RUN = 1000, ALONE = 500, KEEP = 10, MOST = 50 };
    pd_kvpool p = case_pool(6144, RUN + 2 * ALONE, KEEP * 6144);
    p.by_pieces = true;
    uint32_t page;
    for (size_t i = 0; i < RUN + 2 * ALONE; i++) assert_true(pd_kvpool_take(&p, PD_PAGE_SEQ, &page));
    for (uint32_t i = 0; i < RUN; i++) pd_kvpool_give(&p, i);
    for (uint32_t i = 0; i < ALONE; i++) pd_kvpool_give(&p, RUN + 1 + 2 * i);
    for (int i = 0; i <= (RUN + ALONE) / MOST + 1; i++) pd_kvpool_tidy(&p, MOST);
    assert_false(p.tidying);
    assert_in_range(p.n_dirty, ALONE, ALONE + KEEP + 2);
    assert_true(pd_kvpool_check(&p));
    pd_kvpool_done(&p);
}

/* Pages of 6 KiB whose neighbours are held cannot go back alone; a pool full of
 * them must not be looked through again at every page that comes. */
static void pages_that_cannot_go_back_cost_no_time(void **state) {
    (void)state;
    enum { PAGES = 100000, MOST = 300 };
    for (int pieces = 0; pieces < 2; pieces++) {
        pd_kvpool p = case_pool(6144, PAGES, 512 << 10);
        p.by_pieces = pieces == 1;
        uint32_t page;
        for (size_t i = 0; i < PAGES; i++) assert_true(pd_kvpool_take(&p, PD_PAGE_SEQ, &page));
        const uint64_t t0 = pd_now_ns();
        for (uint32_t i = 0; i < PAGES; i += 2) {
            pd_kvpool_give(&p, i);
            if (pieces) pd_kvpool_tidy(&p, MOST);
        }
        const double ms = pd_ms_since(t0);
        assert_true(pd_kvpool_check(&p));
        if (ms > 5000.0) fail_msg("%d pages given back in %.0f ms", PAGES / 2, ms); /* 30 ms here; minutes if sorted each time */
        for (uint32_t i = 1; i < PAGES; i += 2) pd_kvpool_give(&p, i);
        for (int i = 0; pieces && i < 2 * PAGES / MOST; i++) pd_kvpool_tidy(&p, MOST);
        assert_in_range(p.n_dirty, 0, 2 * p.hysteresis + 1); /* now they can */
        pd_kvpool_done(&p);
    }
}

/* ---- one pool for each kind of page ---- */

/* Memory waits to go back as long as no page of another kind could want it. */
static void only_one_kind_goes_by_pieces(void **state) {
    (void)state;
    enum { PAGES = 64 };
    const pd_codec f16 = pd_codec_of(PD_KV_F16, PD_KV_F16), q8 = pd_codec_of(PD_KV_Q8_0, PD_KV_Q8_0);
    pd_kvpools p;
    pd_kvpool *first, *other;
    uint32_t page;
    assert_int_equal(pd_kvpools_init(&p, &f16, 64, PAGES * 4096, 0, NULL), PD_OK);
    assert_int_equal(pd_kvpools_get(&p, &f16, 64, 64, &first, NULL), PD_OK);
    pd_kvpools_tidy(&p, 8192);
    for (int i = 0; i < PAGES; i++) {
        assert_true(pd_kvpool_take(first, PD_PAGE_SEQ, &page));
        memset(pd_kvpool_page(first, page), 1, 4096);
    }
    for (uint32_t i = 0; i < PAGES; i++) pd_kvpool_give(first, i);
    assert_int_equal(first->n_dirty, PAGES);
    pd_kvpools_tidy(&p, 8192);
    assert_int_equal(first->n_dirty, PAGES - 2);
    assert_int_equal(pd_kvpools_get(&p, &q8, 64, 64, &other, NULL), PD_OK);
    assert_int_equal(first->n_dirty, 0);
    pd_kvpools_tidy(&p, 8192);
    for (int i = 0; i < PAGES; i++) assert_true(pd_kvpool_take(first, PD_PAGE_SEQ, &page));
    for (uint32_t i = 0; i < PAGES; i++) {
        pd_kvpool_give(first, i);
        assert_in_range(first->n_dirty, 0, 1);
    }
    pd_kvpools_done(&p);
}

static void pools_are_made_when_wanted_and_add_up(void **state) {
    (void)state;
    enum { D = 64, BYTES = 1 << 20 };
    const pd_codec f16 = pd_codec_of(PD_KV_F16, PD_KV_F16), q8 = pd_codec_of(PD_KV_Q8_0, PD_KV_Q8_0),
                   mixed = pd_codec_of(PD_KV_F16, PD_KV_Q4);
    pd_kvpools p;
    assert_int_equal(pd_kvpools_init(&p, &f16, D, BYTES + 5, 0, NULL), PD_OK);
    assert_int_equal(p.max_bytes, BYTES); /* whole f16 pages */
    pd_kvpool *pool[5];
    const pd_codec *codec[] = {&f16, &q8, &mixed, &f16, &q8};
    static const size_t v_dim[] = {D, D, D, 20, 32}; /* the last two beside the first two */
    uint64_t want = 0;
    for (size_t i = 0; i < 5; i++) {
        assert_int_equal(pd_kvpools_get(&p, codec[i], D, v_dim[i], &pool[i], NULL), PD_OK);
        pd_kvpool *again;
        assert_int_equal(pd_kvpools_get(&p, codec[i], D, v_dim[i], &again, NULL), PD_OK);
        assert_ptr_equal(pool[i], again);
        for (size_t k = 0; k < i; k++) assert_ptr_not_equal(pool[i], pool[k]);
        assert_int_equal(pool[i]->page_bytes, pd_codec_page_bytes(codec[i], D, v_dim[i]));
        for (size_t n = 0; n < 10 + i; n++) {
            uint32_t page;
            assert_true(pd_kvpool_take(pool[i], PD_PAGE_SEQ, &page));
            memset(pd_kvpool_page(pool[i], page), 1, pool[i]->page_bytes);
        }
        want += (10 + i) * pd_codec_page_bytes(codec[i], D, v_dim[i]);
    }
    assert_int_equal(pd_kvpools_held(&p, PD_PAGE_SEQ), want);
    assert_int_equal(pd_kvpools_held(&p, PD_PAGE_STORE), 0);
    assert_true(pd_kvpools_check(&p));
    uint64_t type[2][PD_KV_ALL];
    pd_kvpools_by_type(&p, type);
    assert_int_equal(type[0][PD_KV_F16], (10 + 12 + 13) * 2048);
    assert_int_equal(type[1][PD_KV_F16], 10 * 2048 + 13 * 640);
    assert_int_equal(type[0][PD_KV_Q8_0], (11 + 14) * 1088);
    assert_int_equal(type[1][PD_KV_Q8_0], 11 * 1088 + 14 * 544);
    assert_int_equal(type[0][PD_KV_Q4], 0);
    assert_int_equal(type[1][PD_KV_Q4], 12 * 576);
    for (uint32_t n = 0; n < 13; n++) pd_kvpool_give(pool[3], n);
    for (uint32_t n = 0; n < 14; n++) pd_kvpool_give(pool[4], n);
    pd_kvpools_trim(&p);
    assert_int_equal(pd_kvpools_dirty(&p), 0);
    want -= 13 * (2048 + 640) + 14 * (1088 + 544);
    for (uint32_t n = 0; n < 11; n++) pd_kvpool_give(pool[1], n);
    pd_kvpools_trim(&p);
    /* whole pages of the system: what shares one with nothing held */
    assert_true(pd_kvpools_dirty(&p) < 2 * 2176 + 2 * 4096);
    assert_int_equal(pd_kvpools_held(&p, PD_PAGE_SEQ), want - 11 * 2176);
    for (uint32_t n = 0; n < 10; n++) pd_kvpool_give(pool[0], n);
    for (uint32_t n = 0; n < 12; n++) pd_kvpool_give(pool[2], n);
    pd_kvpools_trim(&p);
    assert_int_equal(pd_kvpools_dirty(&p), 0); /* every page of the system was shared with free ones alone */
    uint32_t page; /* more than the bound in all, though no pool is full */
    for (size_t i = 0; i < BYTES / 2176; i++) assert_true(pd_kvpool_take(pool[1], PD_PAGE_SEQ, &page));
    assert_true(pd_kvpools_check(&p));
    assert_true(pd_kvpool_take(pool[0], PD_PAGE_SEQ, &page));
    assert_true(pd_kvpool_check(pool[0]) && pd_kvpool_check(pool[1]));
    assert_false(pd_kvpools_check(&p));
    pd_kvpools_done(&p);
    pd_kvpools_done(&p); /* all-zero is fine */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pool_sizes_are_checked),
        cmocka_unit_test(pool_agrees_with_a_table_of_owners),
        cmocka_unit_test(trim_returns_whole_os_pages),
        cmocka_unit_test(give_trims_by_itself_beyond_the_hysteresis),
        cmocka_unit_test(tidying_goes_piece_by_piece),
        cmocka_unit_test(tidying_comes_to_all),
        cmocka_unit_test(pages_that_cannot_go_back_cost_no_time),
        cmocka_unit_test(only_one_kind_goes_by_pieces),
        cmocka_unit_test(pools_are_made_when_wanted_and_add_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
