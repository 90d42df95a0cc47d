/* SPDX-License-Identifier: Apache-2.0 */
/* The server's texts: JSON in and out, keys, metrics. */
#include "server/auth.h"
#include "server/json.h"
#include "server/prom.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void test_json_bounds(void **state) {
    pd_err err = {0};
    json_t *v = NULL;
    char deep[2 * (PD_JSON_DEPTH_MAX + 1) + 8] = "{\"a\":";
    size_t n = strlen(deep);
    for (int i = 0; i < PD_JSON_DEPTH_MAX - 1; i++) deep[n++] = '[';
    for (int i = 0; i < PD_JSON_DEPTH_MAX - 1; i++) deep[n++] = ']';
    deep[n++] = '}';
    assert_int_equal(pd_json_parse(&v, deep, n, &err), PD_OK); /* exactly the limit */
    json_decref(v);
    memmove(deep + 6, deep + 5, n - 5);
    deep[5] = '[';
    assert_int_equal(pd_json_parse(&v, deep, n + 1, &err), PD_EJSON);

    pd_buf many = {0};
    pd_buf_puts(&many, "{\"a\":[0");
    for (int i = 0; i < PD_JSON_VALUES_MAX; i++) pd_buf_puts(&many, ",0");
    pd_buf_puts(&many, "]}");
    err = (pd_err){0};
    assert_int_equal(pd_json_parse(&v, many.data, many.len, &err), PD_EJSON);
    assert_non_null(strstr(err.msg, "262144"));
    pd_buf_done(&many);

    /* every prefix of a valid text is refused, not read past its end */
    const char *whole = "{\"a\":[1,2,{\"b\":\"\\u00e9\\n\"}],\"c\":-1.5e3,\"d\":null}";
    for (size_t i = 0; i < strlen(whole); i++) {
        char *copy = malloc(i ? i : 1);
        memcpy(copy, whole, i);
        err = (pd_err){0};
        assert_int_not_equal(pd_json_parse(&v, copy, i, &err), PD_OK);
        free(copy);
    }
}

static void test_json_text(void **state) {
    static const struct { const char *in; size_t n; const char *out; } t[] = {
        {"a\"\\\n\r\t\x01\x7f/", 9, "\"a\\\"\\\\\\n\\r\\t\\u0001\\u007f/\""},
        {"\xc3\xa9\xf0\x9f\x90\xa2", 6, "\"\xc3\xa9\xf0\x9f\x90\xa2\""},
        {"\xe2\x80\xa8\xe2\x80\xa9", 6, "\"\\u2028\\u2029\""},
        {"\xff" "a\xc3", 3, "\"\xef\xbf\xbd" "a\xef\xbf\xbd\""},
        {"\xed\xa0\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""},
        {"", 0, "\"\""},
        {"\0", 1, "\"\\u0000\""},
    };
    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
        pd_buf b = {0};
        pd_json_str(&b, t[i].in, t[i].n);
        assert_string_equal(b.data, t[i].out);
        pd_buf_done(&b);
    }
    static const struct { double v; const char *out;
    } num[] = {
        {0, "0"},          {0.5, "0.5"}, {0.1, "0.1"}, {1.0 / 3.0, "0.333333333333333"},
        {1e300, "1e+300"}, {-3, "-3"},
    };
    for (size_t i = 0; i < sizeof num / sizeof num[0]; i++) {
        pd_buf b = {0};
        pd_json_num(&b, num[i].v);
        if (i != 3) assert_string_equal(b.data, num[i].out);
        assert_true(strtod(b.data, NULL) == num[i].v);
        pd_buf_done(&b);
    }
}

static void test_json_floats(void **state) {
    static const float v[] = {-0.98231124877929688f, 0.1f,   0.0f,       -9999.0f,
                              3.4028235e38f,         1e-45f, 16777217.0f};
    for (size_t i = 0; i < sizeof v / sizeof v[0]; i++) {
        pd_buf b = {0};
        pd_json_f32(&b, v[i]);
        assert_true(strtof(b.data, NULL) == v[i]);
        assert_true(b.len <= 16);
        pd_buf_done(&b);
    }
}

static void test_auth(void **state) {
    pd_auth a;
    pd_err err = {0};
    assert_int_equal(pd_auth_open(&a, NULL, &err), PD_OK);
    assert_true(pd_auth_ok(&a, NULL, NULL)); /* no keys: everybody */
    assert_int_equal(pd_auth_open(&a, "one,two", &err), PD_OK);
    assert_true(pd_auth_ok(&a, "Bearer one", NULL));
    assert_true(pd_auth_ok(&a, "bearer  two", NULL));
    assert_true(pd_auth_ok(&a, "Basic x", "two"));
    static const char *const bad[] = {
        "Bearer on", "Bearer onee", "Bearer ", "Bearer one,two", "one", "", "Bearer One"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(pd_auth_ok(&a, bad[i], NULL));
    assert_false(pd_auth_ok(&a, NULL, NULL));
    assert_false(pd_auth_ok(&a, NULL, ""));
    pd_auth_close(&a);
    assert_int_equal(pd_auth_open(&a, "one,,two", &err), PD_EINVAL);
    pd_auth_close(&a);
    char longest[PD_AUTH_KEY_BYTES_MAX + 2] = {0};
    memset(longest, 'k', PD_AUTH_KEY_BYTES_MAX);
    assert_int_equal(pd_auth_open(&a, longest, &err), PD_OK);
    assert_true(pd_auth_ok(&a, NULL, longest));
    pd_auth_close(&a);
    longest[PD_AUTH_KEY_BYTES_MAX] = 'k';
    err = (pd_err){0};
    assert_int_equal(pd_auth_open(&a, longest, &err), PD_EINVAL);
    assert_null(strstr(err.msg, "kkk")); /* a key is never shown */
    pd_auth_close(&a);
}

static void test_prom(void **state) {
    static const double bounds[] = {0.1, 1};
    pd_hist h;
    pd_hist_init(&h, bounds, 2, 1e9);
    pd_hist_add(&h, 0.05, 1);
    pd_hist_add(&h, 0.1, 2); /* a bound belongs to its bucket */
    pd_hist_add(&h, 5, 1);
    pd_hist_add(&h, -1, 1);
    pd_buf b = {0};
    pd_prom_hist(&b, "x", "a=\"b\"", &h);
    assert_string_equal(
        b.data, "x_bucket{a=\"b\",le=\"0.1\"} 4\nx_bucket{a=\"b\",le=\"1\"} 4\n"
                "x_bucket{a=\"b\",le=\"+Inf\"} 5\nx_sum{a=\"b\"} 5.25\nx_count{a=\"b\"} 5\n");
    pd_buf_clear(&b);
    pd_prom_label(&b, "m", "a\"\\\nb");
    assert_string_equal(b.data, "m=\"a\\\"\\\\\\nb\"");
    pd_buf_done(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json_bounds),
        cmocka_unit_test(test_json_text),
        cmocka_unit_test(test_json_floats),
        cmocka_unit_test(test_auth),
        cmocka_unit_test(test_prom),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
