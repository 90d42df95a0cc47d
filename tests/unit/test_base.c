/* SPDX-License-Identifier: Apache-2.0 */
/* engine/base: errors, buffers, arenas, UTF-8, generators, worker threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/arena.h"
#include "engine/base/buf.h"
#include "engine/base/err.h"
#include "engine/base/num.h"
#include "engine/base/rng.h"
#include "engine/base/utf8.h"
#include "engine/base/workers.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static void first_error_wins(void **state) {
    (void)state;
    pd_err e = {0};
    assert_int_equal(pd_fail(&e, PD_EINVAL, "a.b", "value %d", 7), PD_EINVAL);
    assert_int_equal(pd_fail(&e, PD_EBUSY, "c", "later"), PD_EBUSY);
    assert_int_equal(e.code, PD_EINVAL);
    assert_string_equal(e.param, "a.b");
    assert_string_equal(e.msg, "value 7");
    assert_int_equal(pd_fail(NULL, PD_EBUSY, NULL, "x"), PD_EBUSY);
    assert_int_equal(pd_status_http(PD_EBUSY), 429);
    assert_string_equal(pd_status_type(PD_ENOTFOUND), "not_found_error");
}

static void error_is_cut_at_a_code_point(void **state) {
    (void)state;
    char text[600];
    for (size_t i = 0; i + 2 < sizeof text; i += 2) memcpy(text + i, "\xC3\xA9", 2);
    text[sizeof text - 2] = '\0';
    pd_err e = {0};
    pd_fail(&e, PD_EINVAL, NULL, "x%s", text);
    assert_true(pd_utf8_valid(e.msg, strlen(e.msg)));
    assert_true(strlen(e.msg) >= sizeof e.msg - 3);
}

static void buf_keeps_its_limit(void **state) {
    (void)state;
    pd_buf b;
    pd_buf_init(&b, 10);
    pd_buf_puts(&b, "hello");
    pd_buf_printf(&b, "%s", "world");
    assert_false(b.failed);
    assert_string_equal(b.data, "helloworld");
    pd_buf_putc(&b, '!');
    assert_true(b.failed);
    pd_buf_puts(&b, "");
    assert_int_equal(b.len, 10);
    pd_buf_clear(&b);
    pd_buf_puts(&b, "abc");
    pd_buf_drop(&b, 2);
    assert_string_equal(b.data, "c");
    pd_buf_done(&b);
}

static void arena_aligns_and_refuses_overflow(void **state) {
    (void)state;
    pd_arena a = {0};
    for (size_t i = 1; i < 2000; i += 37) {
        char *p = pd_arena_alloc(&a, i, 3);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        memset(p, 1, i * 3);
    }
    assert_null(pd_arena_alloc(&a, SIZE_MAX, 2));
    assert_null(pd_arena_alloc(&a, SIZE_MAX - 8, 1));
    pd_arena_reset(&a);
    assert_int_equal(a.used, 0);
    assert_string_equal(pd_arena_strndup(&a, "abcdef", 3), "abc");
    pd_arena_done(&a);
}

static void utf8_table(void **state) {
    (void)state;
    static const struct {
        const char *s;
        bool valid;
        size_t tail;
    } t[] = {
        {"", true, 0},          {"abc", true, 0},         {"\xC3\xA9", true, 0},
        {"\xC3", false, 1},     {"\xE2\x82", false, 2},   {"\xF0\x9F\x98", false, 3},
        {"\xF0\x9F\x98\x80", true, 0}, {"\xC0\x80", false, 0}, {"\xED\xA0\x80", false, 0},
        {"\xED\xA0", false, 0}, {"\xF4\x90\x80\x80", false, 0}, {"\x80", false, 0},
        {"a\xFF", false, 0},    {"\xE0\x80", false, 0},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        assert_int_equal(pd_utf8_valid(t[i].s, strlen(t[i].s)), t[i].valid);
        assert_int_equal(pd_utf8_incomplete_tail(t[i].s, strlen(t[i].s)), t[i].tail);
    }
    for (uint32_t cp = 0; cp <= 0x10FFFF; cp += cp < 0x300 ? 1 : 97) {
        if (cp >= 0xD800 && cp < 0xE000) continue;
        char s[4];
        uint32_t back;
        const size_t n = pd_utf8_put(cp, s);
        assert_int_equal(pd_utf8_next(s, n, &back), n);
        assert_int_equal(back, cp);
    }
}

static void mt19937_gives_the_published_sequence(void **state) {
    (void)state;
    /* Matsumoto and Nishimura's generator seeded with 5489: the 10,000th output
     * is 4123659995 (also required by the C++ standard, [rand.predef]). */
    pd_mt19937 m;
    pd_mt19937_seed(&m, 5489);
    uint32_t x = 0;
    for (int i = 0; i < 10000; i++) x = pd_mt19937_next(&m);
    assert_int_equal(x, 4123659995u);
}

static void checked_sizes(void **state) {
    (void)state;
    size_t r = 7;
    assert_false(pd_mul_size(SIZE_MAX / 2, 3, &r));
    assert_false(pd_add_size(SIZE_MAX, 1, &r));
    assert_int_equal(r, 7);
    assert_true(pd_mul_size(6, 7, &r));
    assert_int_equal(r, 42);
    assert_int_equal(pd_div_up(33, 16), 3);
}

typedef struct {
    _Atomic uint32_t hits[1000];
    unsigned threads;
} hit_ctx;

static void hit(void *ctx, size_t task, unsigned thread) {
    hit_ctx *c = ctx;
    if (thread >= c->threads) abort();
    atomic_fetch_add(&c->hits[task], 1);
}

static void workers_run_each_task_once(void **state) {
    (void)state;
    for (unsigned n = 1; n <= 4; n++) {
        pd_workers *w;
        assert_int_equal(pd_workers_open(&w, n, NULL), PD_OK);
        hit_ctx *c = calloc(1, sizeof *c);
        c->threads = n;
        for (int round = 0; round < 200; round++) pd_workers_run(w, hit, c, (size_t)(round * 5));
        for (size_t i = 0; i < 1000; i++) {
            uint32_t want = 0;
            for (uint32_t round = 0; round < 200; round++) want += i < round * 5;
            assert_int_equal(c->hits[i], want);
        }
        free(c);
        pd_workers_close(w);
    }
    pd_err e = {0};
    pd_workers *w;
    assert_int_equal(pd_workers_open(&w, 0, &e), PD_EINVAL);
}

static void remember_processor(void *ctx, size_t task, unsigned thread) {
    (void)task;
    _Atomic int *cpu = ctx;
    const int now = sched_getcpu();
    int none = -1;
    if (!atomic_compare_exchange_strong(&cpu[thread], &none, now) && none != now) cpu[thread] = -2; /* moved */
}

static void *pinned(void *arg) {
    const unsigned n = pd_cpu_count();
    pd_workers *w = NULL;
    if (n > 64 || pd_workers_open(&w, n, NULL) != PD_OK) return NULL;
    pd_workers_pin(w);
    for (int round = 0; round < 1000; round++) pd_workers_run(w, remember_processor, arg, 8 * n);
    pd_workers_close(w);
    return arg;
}

/* As many threads as processors: each has its own and stays there. */
static void pinned_workers_do_not_meet(void **state) {
    (void)state;
    static _Atomic int cpu[64];
    for (size_t i = 0; i < 64; i++) cpu[i] = -1;
    pthread_t thread; /* pinned for good */
    void *ret;
    assert_int_equal(pthread_create(&thread, NULL, pinned, (void *)cpu), 0);
    pthread_join(thread, &ret);
    if (!ret) return;
    for (unsigned i = 0; i < pd_cpu_count(); i++) {
        assert_int_not_equal(cpu[i], -2);
        for (unsigned j = 0; j < i; j++) assert_true(cpu[i] < 0 || cpu[i] != cpu[j]);
    }
    assert_true(cpu[0] >= 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_error_wins),
        cmocka_unit_test(error_is_cut_at_a_code_point),
        cmocka_unit_test(buf_keeps_its_limit),
        cmocka_unit_test(arena_aligns_and_refuses_overflow),
        cmocka_unit_test(utf8_table),
        cmocka_unit_test(mt19937_gives_the_published_sequence),
        cmocka_unit_test(checked_sizes),
        cmocka_unit_test(workers_run_each_task_once),
        cmocka_unit_test(pinned_workers_do_not_meet),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
