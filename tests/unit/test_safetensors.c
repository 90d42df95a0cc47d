/* SPDX-License-Identifier: Apache-2.0 */
/* compression/safetensors: what a file says, what a lying one gets, and that what
 * is written is read again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compression/safetensors.h"
#include "engine/base/file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A file of that header and n bytes of data (0, 1, 2, ...), in a block of exactly its size. */
static uint8_t *file_of(const char *head, size_t n, size_t *size) {
    const size_t len = strlen(head);
    uint8_t *f = malloc(8 + len + n);
    for (size_t i = 0; i < 8; i++) f[i] = (uint8_t)((uint64_t)len >> 8 * i);
    memcpy(f + 8, head, len);
    for (size_t i = 0; i < n; i++) f[8 + len + i] = (uint8_t)i;
    *size = 8 + len + n;
    return f;
}

static void takes_the_format(void **state) {
    (void)state;
    size_t size;
    uint8_t *bytes = file_of(" {\"b\":{\"shape\":[2, 1],\"dtype\":\"F16\",\"data_offsets\":[8,12]},\n"
                             "\"__metadata__\":{\"k\\u00e9\\ud83d\\ude00\":\"\\\"\\n\",\"a\":\"\"},"
                             "\"a.b\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
                             "\"c\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[4,8]},"
                             "\"e\":{\"dtype\":\"F32\",\"shape\":[3,0],\"data_offsets\":[4,4]}}  \t\r\n",
                             12, &size);
    pd_safetensors *f = NULL;
    pd_err err = {0};
    if (pd_safetensors_parse(&f, bytes, size, "x", &err) != PD_OK) fail_msg("%s", err.msg);
    assert_int_equal(pd_safetensors_count(f), 4);
    static const char *const names[] = {"a.b", "b", "c", "e"};
    for (size_t i = 0; i < 4; i++) assert_string_equal(pd_safetensors_at(f, i)->name, names[i]);
    assert_null(pd_safetensors_find(f, "d"));
    const pd_st_tensor *b = pd_safetensors_find(f, "b"), *e = pd_safetensors_find(f, "e");
    assert_true(b->type == PD_ST_F16 && b->n_dim == 2 && b->shape[0] == 2 && b->shape[1] == 1);
    assert_int_equal(b->n_elem, 2);
    assert_int_equal(b->data[0], 8);
    assert_true(e->n_elem == 0 && e->n_bytes == 0);
    assert_int_equal(pd_safetensors_find(f, "a.b")->n_elem, 1);
    assert_int_equal(pd_safetensors_meta_count(f), 2);
    assert_string_equal(pd_safetensors_meta(f, "k\xc3\xa9\xf0\x9f\x98\x80"), "\"\n");
    assert_string_equal(pd_safetensors_meta(f, "a"), "");
    assert_null(pd_safetensors_meta(f, "b"));
    pd_safetensors_close(f);
    free(bytes);
}

#define T(offsets) "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" offsets "}}"

static void refuses_lies(void **state) {
    (void)state;
    static const struct {
        const char *head;
        size_t n;
        const char *says;
    } t[] = {
        {"", 0, "JSON object"},
        {"[]", 0, "JSON object"},
        {"{", 0, "name of a tensor"},
        {"{}x", 0, "no end at byte 2"},
        {"{} {}", 0, "no end at byte 3"},
        {"{}", 1, "take 0 of 1 bytes"},
        {"{\"a\"}", 0, "colon"},
        {"{\"a\":1}", 0, "object of a tensor"},
        {"{\"a\":{}}", 0, "key of a tensor"},
        {"{\"a\":{\"dtype\":\"F32\"},}", 0, "lacks"},
        {T("[0,8]"), 7, "lies at bytes 0 to 8 of 7"},
        {T("[0,7]"), 8, "has 7 bytes, its shape and type ask for 8"},
        {T("[8,0]"), 8, "lies at bytes 8 to 0"},
        {T("[0,8]"), 9, "take 8 of 9"},
        {T("[1,9]"), 9, "begins at byte 1"},
        {T("[0]"), 8, "1 data_offsets"},
        {T("[0,8,8]"), 8, "more than 2 numbers"},
        {T("[00,8]"), 8, "data_offsets"},
        {T("[-0,8]"), 8, "data_offsets"},
        {T("[0,8.0]"), 8, "end of an array"},
        {T("[0,18446744073709551616]"), 8, "too large"},
        {T("[0,99999999999999999999999]"), 8, "too large"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0, "too large"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[9223372036854775807],\"data_offsets\":[0,0]}}", 0, "too large"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, "more than 8"},
        {"{\"a\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8, "type 'I64'"},
        {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "twice"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":[]}}", 4, "key 'x'"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "'a' stands in the header twice"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[2,6]}}", 6, "begins at byte 2"},
        {"{\"__metadata__\":{\"a\":\"\",\"a\":\"\"}}", 0, "'a' stands in __metadata__ twice"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "twice"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "text of __metadata__"},
        {"{\"\\ud800\":{}}", 0, "surrogate"},
        {"{\"\\udc00\":{}}", 0, "character"},
        {"{\"\\u0000\":{}}", 0, "character"},
        {"{\"\\x\":{}}", 0, "escape"},
        {"{\"\\u00g0\":{}}", 0, "hexadecimal"},
        {"{\"\n\":{}}", 0, "character"},
        {"{\"\xc3\":{}}", 0, "UTF-8"},
        {"{\"abc", 0, "end of a string"},
        {"{\"abc\\", 0, "end of a string"},
        {"{\"\\u001b[2J\":{\"dtype\":\"\\u001b\"}}", 0, "tensor '?[2J'"},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        size_t size;
        uint8_t *bytes = file_of(t[i].head, t[i].n, &size);
        pd_safetensors *f = NULL;
        pd_err err = {0};
        const pd_status rc = pd_safetensors_parse(&f, bytes, size, "lie", &err);
        if (rc != PD_EFILE || f || !strstr(err.msg, t[i].says) || strncmp(err.msg, "lie: ", 5) != 0)
            fail_msg("%s (+%zu): '%s', should say '%s'", t[i].head, t[i].n, err.msg, t[i].says);
        free(bytes);
    }
}

/* The length in front of the header, and files shorter than they say. */
static void refuses_lying_lengths(void **state) {
    (void)state;
    static const struct {
        uint64_t len;
        size_t size;
        const char *says;
    } t[] = {{0, 7, "7 bytes"},           {3, 10, "cut short"},           {UINT64_MAX, 10, "header would have"},
             {PD_ST_HEADER_MAX, 10, "cut short"}, {PD_ST_HEADER_MAX + 1, 10, "at most"}, {0, 8, "JSON object"}};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        uint8_t *bytes = calloc(1, t[i].size);
        for (size_t k = 0; k < 8 && k < t[i].size; k++) bytes[k] = (uint8_t)(t[i].len >> 8 * k);
        pd_safetensors *f = NULL;
        pd_err err = {0};
        assert_int_equal(pd_safetensors_parse(&f, bytes, t[i].size, "lie", &err), PD_EFILE);
        if (!strstr(err.msg, t[i].says)) fail_msg("'%s' should say '%s'", err.msg, t[i].says);
        free(bytes);
    }
}

static float value_of(pd_st_type type, uint16_t bits) {
    const uint8_t data[2] = {(uint8_t)bits, (uint8_t)(bits >> 8)};
    const pd_st_tensor t = {.type = type, .n_elem = 1, .n_bytes = 2, .data = data};
    float x;
    pd_st_read(&t, &x);
    return x;
}

static void halves_are_exact(void **state) {
    (void)state;
    assert_true(value_of(PD_ST_BF16, 0x3F80) == 1.0f && value_of(PD_ST_BF16, 0xC040) == -3.0f);
    for (unsigned h = 0; h < 0x10000; h++) { /* by the definition of binary16 */
        const int e = (int)(h >> 10 & 31), m = (int)(h & 1023);
        const double size = e == 0 ? ldexp(m, -24) : ldexp(1024 + m, e - 25);
        const float got = value_of(PD_ST_F16, (uint16_t)h);
        if (e == 31) {
            assert_true(m ? isnan(got) : isinf(got));
        } else if ((double)got != (h & 0x8000 ? -size : size) || !signbit(got) != !(h & 0x8000)) {
            fail_msg("%04x: %.9g, not %.9g", h, (double)got, size);
        }
    }
}

static void what_is_written_is_read(void **state) {
    (void)state;
    char path[] = "/tmp/pressd-st-XXXXXX";
    assert_true(mkdtemp(path) != NULL);
    char file[64];
    snprintf(file, sizeof file, "%s/a", path);
    static const float x[6] = {1, -2, 3.5f, 1e-40f, -0.0f, 7}, y[1] = {9};
    const pd_st_out out[] = {{"x\n\"y\"", 2, {2, 3}, x}, {"one", 0, {0}, y}, {"none", 1, {0}, NULL}};
    const pd_st_meta meta[] = {{"format", "pt"}, {"k\\", "\xc3\xa9\t"}};
    pd_err err = {0};
    for (int again = 0; again < 2; again++) /* the second takes the first one's place */
        if (pd_safetensors_write(file, out, 3, meta, 2, &err) != PD_OK) fail_msg("%s", err.msg);
    pd_safetensors *f = NULL;
    if (pd_safetensors_open(&f, file, &err) != PD_OK) fail_msg("%s", err.msg);
    assert_int_equal(pd_safetensors_count(f), 3);
    const pd_st_tensor *t = pd_safetensors_find(f, "x\n\"y\"");
    assert_true(t && t->n_dim == 2 && t->shape[0] == 2 && t->shape[1] == 3 && t->offset == 0);
    float back[6];
    pd_st_read(t, back);
    assert_memory_equal(back, x, sizeof x);
    assert_string_equal(pd_safetensors_meta(f, "k\\"), "\xc3\xa9\t");
    pd_safetensors_close(f);

    static const pd_err none;
    err = none;
    f = NULL;
    assert_int_equal(pd_safetensors_open(&f, path, &err), PD_EFILE); /* a directory */
    assert_non_null(strstr(err.msg, "not a regular file"));
    err = none;
    char *bytes;
    size_t n;
    assert_int_equal(pd_file_read(file, 16, &bytes, &n, &err), PD_EFILE);
    assert_non_null(strstr(err.msg, "at most 16"));
    unlink(file);
    err = none;
    assert_int_equal(pd_safetensors_open(&f, file, &err), PD_EFILE);
    assert_non_null(strstr(err.msg, "No such file"));
    err = none;
    snprintf(file, sizeof file, "%s/b/c", path);
    assert_int_equal(pd_safetensors_write(file, out, 3, meta, 2, &err), PD_EFILE);
    assert_int_equal(rmdir(path), 0); /* and nothing half-made was left */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(takes_the_format),      cmocka_unit_test(refuses_lies),
        cmocka_unit_test(refuses_lying_lengths), cmocka_unit_test(halves_are_exact),
        cmocka_unit_test(what_is_written_is_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
