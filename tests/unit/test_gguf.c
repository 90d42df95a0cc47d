/* SPDX-License-Identifier: Apache-2.0 */
/* engine/gguf: files written here, valid ones first, then every way to lie.
 *
 * A refusal must be EFILE with one line of text, and the output untouched; the
 * bytes lie in heap blocks of their exact size, so that a sanitizer build sees a
 * read past the end.  The n-th allocation is made to fail (failing_malloc.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/rng.h"
#include "engine/gguf/internal.h"
#include "tests/unit/failing_malloc.h"
#include "tests/unit/gguf_writer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- writing, with the places to damage marked ---- */

/* A field that the hostile set overwrites.  `ok` says for which of the boundary
 * values the file stays valid: "01" = for 0 and 1. */
typedef struct {
    const char *what, *ok;
    size_t at, width;
} field;

typedef struct {
    pd_buf b;
    field f[64];
    size_t n_f;
} writer;

static void raw(writer *w, const void *data, size_t n) {
    pd_buf_add(&w->b, data, n);
}

static void u8(writer *w, uint8_t v) {
    gw_u8(&w->b, v);
}

static void u32(writer *w, uint32_t v) {
    gw_u32(&w->b, v);
}

static void u64(writer *w, uint64_t v) {
    gw_u64(&w->b, v);
}

static void mark(writer *w, const char *what, const char *ok, size_t width) {
    assert_in_range(w->n_f, 0, sizeof w->f / sizeof *w->f - 1);
    w->f[w->n_f++] = (field){what, ok, w->b.len, width};
}

static void str_n(writer *w, const char *s, size_t n) {
    gw_str_n(&w->b, s, n);
}

static void str(writer *w, const char *s) {
    gw_str(&w->b, s);
}

static void head(writer *w, uint32_t version, uint64_t n_tensors, uint64_t n_kv) {
    raw(w, "GGUF", 4);
    mark(w, "version", "", 4);
    u32(w, version);
    mark(w, "n_tensors", "01", 8);
    u64(w, n_tensors);
    mark(w, "n_kv", "", 8);
    u64(w, n_kv);
}

static void key(writer *w, const char *name, uint32_t type) {
    mark(w, "key length", "", 8);
    str(w, name);
    mark(w, "value type", "", 4);
    u32(w, type);
}

static void key_u32(writer *w, const char *name, uint32_t v) {
    key(w, name, PD_GGUF_U32);
    u32(w, v);
}

static void tensor(writer *w, const char *name, uint32_t type, unsigned n_dims, const uint64_t *ne,
                   uint64_t offset) {
    gw_tensor(&w->b, name, type, n_dims, ne, offset);
}

static void pad(writer *w, size_t align) {
    gw_pad(&w->b, align);
}

enum { F32 = 0, Q8_0 = 8, T0_BYTES = 128, T1_BYTES = 68 };

/* The data of the two tensors below: 0..31 as floats, two rows of 1.0 * (0..31). */
static void two_tensors_data(writer *w) {
    for (int i = 0; i < 32; i++) {
        const float f = (float)i;
        raw(w, &f, 4);
    }
    for (int row = 0; row < 2; row++) {
        raw(w, "\x00\x3C", 2);
        for (int i = 0; i < 32; i++) u8(w, (uint8_t)i);
    }
}

/* t0: F32 [8, 4]; t1: Q8_0 [32, 2]; all fields marked. */
static void two_tensors(writer *w) {
    mark(w, "t0 name length", "", 8);
    str(w, "t0");
    mark(w, "t0 n_dims", "", 4);
    u32(w, 2);
    mark(w, "t0 ne[0]", "1", 8);
    u64(w, 8);
    mark(w, "t0 ne[1]", "1", 8);
    u64(w, 4);
    mark(w, "t0 type", "01", 4);
    u32(w, F32);
    mark(w, "t0 offset", "0", 8);
    u64(w, 0);
    mark(w, "t1 name length", "", 8);
    str(w, "t1");
    mark(w, "t1 n_dims", "", 4);
    u32(w, 2);
    mark(w, "t1 ne[0]", "", 8);
    u64(w, 32);
    mark(w, "t1 ne[1]", "1", 8);
    u64(w, 2);
    mark(w, "t1 type", "", 4);
    u32(w, Q8_0);
    mark(w, "t1 offset", "", 8);
    u64(w, T0_BYTES);
}

static writer small_file(uint32_t version) {
    writer w = {0};
    head(&w, version, 2, 5);
    key(&w, "general.architecture", PD_GGUF_STRING);
    mark(&w, "string length", "", 8);
    str(&w, "llama");
    key_u32(&w, "x.count", 7);
    key(&w, "x.numbers", PD_GGUF_ARRAY);
    mark(&w, "array type", "", 4);
    u32(&w, PD_GGUF_U32);
    mark(&w, "array count", "", 8);
    u64(&w, 3);
    for (uint32_t i = 0; i < 3; i++) u32(&w, i);
    key(&w, "x.words", PD_GGUF_ARRAY);
    mark(&w, "array type", "", 4);
    u32(&w, PD_GGUF_STRING);
    mark(&w, "array count", "", 8);
    u64(&w, 2);
    mark(&w, "array string length", "", 8);
    str(&w, "one");
    mark(&w, "array string length", "", 8);
    str(&w, "three");
    key(&w, "general.alignment", PD_GGUF_U32);
    mark(&w, "alignment", "1", 4);
    u32(&w, 32);
    two_tensors(&w);
    pad(&w, 32);
    two_tensors_data(&w);
    return w;
}

/* ---- opening ---- */

static pd_status open_bytes(const void *data, size_t n, pd_gguf **g, void **copy, pd_err *err) {
    *copy = malloc(n ? n : 1); /* exact size */
    if (n) memcpy(*copy, data, n);
    *err = (pd_err){0};
    return pd__gguf_open_memory(g, *copy, n, err);
}

static void check_message(const pd_err *err) {
    const size_t len = strlen(err->msg);
    assert_in_range(len, 10, sizeof err->msg - 1);
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)err->msg[i] < 0x20) fail_msg("not one line: %s", err->msg);
}

/* Touch everything an open file offers. */
static void walk(const pd_gguf *g) {
    unsigned sum = 0;
    for (size_t i = 0; i < pd_gguf_n_kv(g); i++) {
        const pd_gguf_kv *kv = pd_gguf_kv_at(g, i);
        if (kv->type == PD_GGUF_STRING)
            for (size_t k = 0; k < kv->v.s.len; k++) sum += (unsigned char)kv->v.s.data[k];
        if (kv->type == PD_GGUF_ARRAY && kv->elem == PD_GGUF_STRING)
            for (size_t k = 0; k < kv->n; k++) sum += (unsigned)((const pd_str *)kv->v.array)[k].len;
    }
    for (size_t i = 0; i < pd_gguf_n_tensors(g); i++) {
        const pd_gguf_tensor *t = pd_gguf_tensor_at(g, i);
        uint8_t *row = malloc(t->row_bytes);
        float *x = malloc(t->ne[0] * sizeof *x);
        for (uint64_t r = 0; r < t->n_elem / t->ne[0]; r++) {
            assert_int_equal(pd_gguf_read_rows(g, t, r, 1, row, NULL), PD_OK);
            t->type->dequant(row, x, t->ne[0]);
            sum += row[0];
        }
        free(row);
        free(x);
    }
    assert_true(sum < UINT32_MAX); /* the sum is only there to read the bytes */
}

static void refuse(const writer *w, const char *word) {
    pd_gguf *g = NULL;
    void *copy;
    pd_err err;
    const pd_status rc = open_bytes(w->b.data, w->b.len, &g, &copy, &err);
    if (rc != PD_EFILE) fail_msg("'%s' expected, got status %d: %s", word, rc, err.msg);
    check_message(&err);
    if (!strstr(err.msg, word)) fail_msg("'%s' is not in: %s", word, err.msg);
    assert_null(g);
    free(copy);
}

static void refuse_and_drop(writer *w, const char *word) {
    refuse(w, word);
    pd_buf_done(&w->b);
}

/* ---- valid files ---- */

static void versions_2_and_3(void **state) {
    (void)state;
    for (uint32_t version = 2; version <= 3; version++) {
        writer w = small_file(version);
        pd_gguf *g;
        void *copy;
        pd_err err;
        if (open_bytes(w.b.data, w.b.len, &g, &copy, &err)) fail_msg("%s", err.msg);
        assert_int_equal(pd_gguf_version(g), version);
        assert_int_equal(pd_gguf_file_bytes(g), w.b.len);
        assert_int_equal(pd_gguf_n_kv(g), 5);
        assert_int_equal(pd_gguf_n_tensors(g), 2);
        assert_null(pd_gguf_kv_at(g, 5));
        assert_null(pd_gguf_tensor_at(g, 2));
        assert_null(pd_gguf_find(g, "x.coun"));
        assert_null(pd_gguf_tensor_find(g, "t2"));
        const pd_gguf_tensor *t = pd_gguf_tensor_find(g, "t1");
        assert_ptr_equal(t, pd_gguf_tensor_at(g, 1));
        assert_string_equal(t->type->name, "Q8_0");
        assert_int_equal(t->n_dims, 2);
        assert_int_equal(t->ne[0], 32);
        assert_int_equal(t->ne[1], 2);
        assert_int_equal(t->ne[2] * t->ne[3], 1);
        assert_int_equal(t->n_elem, 64);
        assert_int_equal(t->row_bytes, 34);
        assert_int_equal(t->n_bytes, T1_BYTES);
        assert_int_equal(t->offset, w.b.len - T1_BYTES);

        uint8_t row[34];
        float x[32];
        assert_int_equal(pd_gguf_read_rows(g, t, 1, 1, row, &err), PD_OK);
        t->type->dequant(row, x, 32);
        for (int i = 0; i < 32; i++) assert_true(x[i] == (float)i);
        assert_int_equal(pd_gguf_read_rows(g, t, 2, 0, row, &err), PD_OK);
        assert_int_equal(pd_gguf_read_rows(g, t, 2, 1, row, &err), PD_EINVAL);
        check_message(&err);
        assert_int_equal(pd_gguf_read_rows(g, t, UINT64_MAX, 2, row, NULL), PD_EINVAL);
        assert_int_equal(pd_gguf_read_rows(g, t, 1, UINT64_MAX, row, NULL), PD_EINVAL);
        walk(g);
        pd_gguf_close(g);
        free(copy);
        pd_buf_done(&w.b);
    }
    pd_gguf_close(NULL);
}

static void every_metadata_type(void **state) {
    (void)state;
    static const uint8_t ones[8] = {255, 255, 255, 255, 255, 255, 255, 255};
    static const struct {
        const char *key;
        uint32_t type;
        size_t bytes;
    } kinds[] = {
        {"u8", PD_GGUF_U8, 1},   {"i8", PD_GGUF_I8, 1},   {"u16", PD_GGUF_U16, 2},
        {"i16", PD_GGUF_I16, 2}, {"u32", PD_GGUF_U32, 4}, {"i32", PD_GGUF_I32, 4},
        {"u64", PD_GGUF_U64, 8}, {"i64", PD_GGUF_I64, 8},
    };
    enum { KINDS = sizeof kinds / sizeof *kinds };
    const float f = 0.1f;
    const double d = 0.1;
    writer w = {0};
    head(&w, 3, 0, KINDS * 2 + 7);
    for (size_t i = 0; i < KINDS; i++) {
        str(&w, kinds[i].key); /* all bits set: the largest, or -1 */
        u32(&w, kinds[i].type);
        raw(&w, ones, kinds[i].bytes);
    }
    for (size_t i = 0; i < KINDS; i++) {
        char name[16];
        snprintf(name, sizeof name, "[%s]", kinds[i].key);
        str(&w, name);
        u32(&w, PD_GGUF_ARRAY);
        u32(&w, kinds[i].type);
        u64(&w, 3);
        for (uint8_t k = 1; k <= 3; k++) { /* 1, 2, 3 */
            u8(&w, k);
            raw(&w, "\0\0\0\0\0\0\0", kinds[i].bytes - 1);
        }
    }
    str(&w, "f32");
    u32(&w, PD_GGUF_F32);
    raw(&w, &f, 4);
    str(&w, "f64");
    u32(&w, PD_GGUF_F64);
    raw(&w, &d, 8);
    str(&w, "yes");
    u32(&w, PD_GGUF_BOOL);
    u8(&w, 1);
    str(&w, "any bytes");
    u32(&w, PD_GGUF_STRING);
    str_n(&w, "a\0b\n\xFF", 5);
    str(&w, "nothing");
    u32(&w, PD_GGUF_STRING);
    str(&w, "");
    str(&w, "[string]");
    u32(&w, PD_GGUF_ARRAY);
    u32(&w, PD_GGUF_STRING);
    u64(&w, 2);
    str(&w, "");
    str(&w, "xy");
    str(&w, "[]");
    u32(&w, PD_GGUF_ARRAY);
    u32(&w, PD_GGUF_BOOL);
    u64(&w, 0);

    pd_gguf *g;
    void *copy;
    pd_err err;
    if (open_bytes(w.b.data, w.b.len, &g, &copy, &err)) fail_msg("%s", err.msg);
    for (size_t i = 0; i < KINDS; i++) {
        const pd_gguf_kv *kv = pd_gguf_find(g, kinds[i].key);
        assert_int_equal(kv->type, kinds[i].type);
        if (kinds[i].key[0] == 'i')
            assert_int_equal(kv->v.i, -1);
        else
            assert_int_equal(kv->v.u, UINT64_MAX >> (64 - 8 * kinds[i].bytes));
        const pd_gguf_kv *a = pd_gguf_kv_at(g, KINDS + i);
        assert_int_equal(a->type, PD_GGUF_ARRAY);
        assert_int_equal(a->elem, kinds[i].type);
        assert_int_equal(a->n, 3);
        for (uint8_t k = 0; k < 3; k++)
            assert_int_equal(((const uint8_t *)a->v.array)[k * kinds[i].bytes], k + 1);
    }
    assert_true(pd_gguf_find(g, "f32")->v.f == (double)f);
    assert_true(pd_gguf_find(g, "f64")->v.f == d);
    assert_int_equal(pd_gguf_find(g, "yes")->v.u, 1);
    pd_str s;
    assert_int_equal(pd_gguf_str(g, "any bytes", &s, NULL), PD_OK);
    assert_int_equal(s.len, 5);
    assert_memory_equal(s.data, "a\0b\n\xFF", 5);
    assert_int_equal(pd_gguf_str(g, "nothing", &s, NULL), PD_OK);
    assert_true(pd_str_eq(s, ""));
    const pd_gguf_kv *a = pd_gguf_find(g, "[string]");
    assert_true(pd_str_eq(((const pd_str *)a->v.array)[0], ""));
    assert_true(pd_str_eq(((const pd_str *)a->v.array)[1], "xy"));
    assert_false(pd_str_eq(((const pd_str *)a->v.array)[1], "x"));
    assert_int_equal(pd_gguf_find(g, "[]")->n, 0);
    walk(g);
    pd_gguf_close(g);
    free(copy);
    pd_buf_done(&w.b);
}

static void typed_values(void **state) {
    (void)state;
    const float nan_f = NAN, half = 0.5f;
    writer w = {0};
    head(&w, 3, 0, 6);
    key_u32(&w, "n", 30);
    key(&w, "minus", PD_GGUF_I8);
    u8(&w, 0xFF);
    key(&w, "wide", PD_GGUF_I64);
    u64(&w, 30);
    key(&w, "half", PD_GGUF_F32);
    raw(&w, &half, 4);
    key(&w, "nan", PD_GGUF_F32);
    raw(&w, &nan_f, 4);
    key(&w, "flag", PD_GGUF_BOOL);
    u8(&w, 1);
    pd_gguf *g;
    void *copy;
    pd_err err;
    if (open_bytes(w.b.data, w.b.len, &g, &copy, &err)) fail_msg("%s", err.msg);

    uint32_t u = 0;
    assert_int_equal(pd_gguf_u32(g, "n", 30, 30, &u, NULL), PD_OK);
    assert_int_equal(u, 30);
    assert_int_equal(pd_gguf_u32(g, "wide", 1, 30, &u, NULL), PD_OK);
    assert_int_equal(pd_gguf_u32_or(g, "absent", 1, 5, 77, &u, NULL), PD_OK);
    assert_int_equal(u, 77);
    float f = 0;
    assert_int_equal(pd_gguf_f32_or(g, "half", 0.5f, 0.5f, 1, &f, NULL), PD_OK);
    assert_true(f == 0.5f);
    assert_int_equal(pd_gguf_f32_or(g, "absent", 0, 1, 9, &f, NULL), PD_OK);
    assert_true(f == 9);
    bool b = false;
    assert_int_equal(pd_gguf_bool_or(g, "flag", false, &b, NULL), PD_OK);
    assert_true(b);
    assert_int_equal(pd_gguf_bool_or(g, "absent", false, &b, NULL), PD_OK);
    assert_false(b);

    u = 1234;
    f = 1234;
    b = true;
    pd_str s = {"kept", 4};
#define BAD(call, words)                                                                           \
    do {                                                                                           \
        err = (pd_err){0};                                                                         \
        assert_int_equal(call, PD_EFILE);                                                          \
        check_message(&err);                                                                       \
        if (!strstr(err.msg, words)) fail_msg("'%s' is not in: %s", words, err.msg);               \
    } while (0)
    BAD(pd_gguf_u32(g, "absent", 0, 9, &u, &err), "'absent' is missing");
    BAD(pd_gguf_u32(g, "n", 31, 40, &u, &err), "'n' is 30, must be from 31 to 40");
    BAD(pd_gguf_u32(g, "n", 1, 29, &u, &err), "'n' is 30, must be from 1 to 29");
    BAD(pd_gguf_u32_or(g, "n", 1, 29, 5, &u, &err), "'n' is 30");
    BAD(pd_gguf_u32(g, "minus", 0, UINT32_MAX, &u, &err), "'minus' is -1");
    BAD(pd_gguf_u32(g, "half", 0, 9, &u, &err), "type f32, must be an integer");
    BAD(pd_gguf_f32_or(g, "nan", -1e30f, 1e30f, 0, &f, &err), "'nan' is nan");
    BAD(pd_gguf_f32_or(g, "half", 0.6f, 1, 0, &f, &err), "'half' is 0.5");
    BAD(pd_gguf_f32_or(g, "n", 0, 100, 0, &f, &err), "must be a float");
    BAD(pd_gguf_bool_or(g, "n", false, &b, &err), "must be a boolean");
    BAD(pd_gguf_str(g, "n", &s, &err), "must be a string");
    BAD(pd_gguf_str(g, "absent", &s, &err), "'absent' is missing");
    assert_int_equal(u, 1234);
    assert_true(f == 1234 && b && pd_str_eq(s, "kept"));
    pd_gguf_close(g);
    free(copy);
    pd_buf_done(&w.b);
}

/* Larger than the first piece that is read, and one string that needs more than
 * the doubled piece. */
static void long_headers(void **state) {
    (void)state;
    enum { WORDS = 500000, BLOB = 30 << 20 };
    writer w = {0};
    head(&w, 3, 2, 3);
    key(&w, "words", PD_GGUF_ARRAY);
    u32(&w, PD_GGUF_STRING);
    u64(&w, WORDS);
    for (unsigned i = 0; i < WORDS; i++) {
        char word[16];
        const int n = snprintf(word, sizeof word, "w%u", i);
        str_n(&w, word, (size_t)n);
    }
    key(&w, "blob", PD_GGUF_STRING);
    char *blob = calloc(1, BLOB);
    str_n(&w, blob, BLOB);
    free(blob);
    key_u32(&w, "last", 9);
    two_tensors(&w);
    pad(&w, 32);
    two_tensors_data(&w);
    assert_false(w.b.failed);
    pd_gguf *g;
    void *copy;
    pd_err err;
    if (open_bytes(w.b.data, w.b.len, &g, &copy, &err)) fail_msg("%s", err.msg);
    const pd_gguf_kv *kv = pd_gguf_find(g, "words");
    for (unsigned i = 0; i < WORDS; i += 997) {
        char word[16];
        snprintf(word, sizeof word, "w%u", i);
        assert_true(pd_str_eq(((const pd_str *)kv->v.array)[i], word));
    }
    assert_int_equal(pd_gguf_find(g, "blob")->v.s.len, BLOB);
    assert_int_equal(pd_gguf_find(g, "last")->v.u, 9);
    walk(g);
    pd_gguf_close(g);
    free(copy);
    pd_buf_done(&w.b);
}

/* ---- hostile files ---- */

static void boundary_values_in_every_field(void **state) {
    (void)state;
    static const uint64_t values[] = {
        0, 1, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFF, 0x100000000, 0x100000001,
        UINT64_MAX / 256, UINT64_MAX / 128, UINT64_MAX / 34, UINT64_MAX / 32, UINT64_MAX / 16,
        UINT64_MAX / 8, UINT64_MAX / 4, INT64_MAX - 31, INT64_MAX, (uint64_t)INT64_MAX + 1,
        UINT64_MAX - 195, UINT64_MAX - 31, UINT64_MAX - 7, UINT64_MAX - 1, UINT64_MAX,
    };
    writer w = small_file(3);
    assert_in_range(w.n_f, 30, 64);
    for (size_t i = 0; i < w.n_f; i++) {
        const field *f = &w.f[i];
        char saved[8];
        memcpy(saved, w.b.data + f->at, f->width);
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            if (f->width == 4 && values[v] > UINT32_MAX) break;
            memcpy(w.b.data + f->at, &values[v], f->width);
            pd_gguf *g = NULL;
            void *copy;
            pd_err err;
            const pd_status rc = open_bytes(w.b.data, w.b.len, &g, &copy, &err);
            const bool valid = values[v] <= 1 && strchr(f->ok, '0' + (int)values[v]);
            if (rc != (valid ? PD_OK : PD_EFILE))
                fail_msg("%s = %llu: status %d %s", f->what, (unsigned long long)values[v], rc,
                         err.msg);
            if (rc == PD_OK) {
                walk(g);
            } else {
                check_message(&err);
                assert_null(g);
            }
            pd_gguf_close(g);
            free(copy);
        }
        memcpy(w.b.data + f->at, saved, f->width);
    }
    pd_buf_done(&w.b);
}

static void every_truncation(void **state) {
    (void)state;
    writer w = small_file(3);
    for (size_t n = 0; n < w.b.len; n++) {
        pd_gguf *g = NULL;
        void *copy;
        pd_err err;
        if (open_bytes(w.b.data, n, &g, &copy, &err) != PD_EFILE)
            fail_msg("%zu of %zu bytes were enough", n, w.b.len);
        check_message(&err);
        assert_null(g);
        free(copy);
    }
    pd_buf_done(&w.b);
}

static void random_damage(void **state) {
    (void)state;
    writer w = small_file(3);
    uint8_t *bytes = malloc(w.b.len);
    pd_rng rng = {3};
    unsigned opened = 0;
    for (int round = 0; round < 20000; round++) {
        memcpy(bytes, w.b.data, w.b.len);
        for (uint64_t k = 1 + pd_rng_u64(&rng) % 3; k > 0; k--)
            bytes[pd_rng_u64(&rng) % w.b.len] = (uint8_t)pd_rng_u64(&rng);
        pd_gguf *g = NULL;
        void *copy;
        pd_err err;
        if (open_bytes(bytes, w.b.len, &g, &copy, &err) == PD_OK) {
            walk(g);
            opened++;
        } else {
            check_message(&err);
        }
        pd_gguf_close(g);
        free(copy);
    }
    assert_in_range(opened, 1, 19999);
    free(bytes);
    pd_buf_done(&w.b);
}

static void wrong_starts(void **state) {
    (void)state;
    static const struct {
        uint32_t version;
        const char *word;
    } versions[] = {
        {0, "version 0"}, {1, "version 1,"}, {4, "version 4"}, {0x02000000, "big-endian"},
        {0x03000000, "big-endian"}, {UINT32_MAX, "version 4294967295"},
    };
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        writer w = small_file(versions[i].version);
        refuse_and_drop(&w, versions[i].word);
    }
    writer w = small_file(3);
    w.b.data[3] = 'f';
    refuse_and_drop(&w, "wrong magic");
    writer empty = {0};
    refuse(&empty, "truncated");
}

static void wrong_metadata(void **state) {
    (void)state;
    writer w = {0};
    head(&w, 3, 0, 2);
    key_u32(&w, "twice", 1);
    key(&w, "twice", PD_GGUF_STRING);
    str(&w, "x");
    refuse_and_drop(&w, "'twice' occurs twice");

    w = (writer){0};
    head(&w, 3, 0, 1);
    key(&w, "nested", PD_GGUF_ARRAY);
    u32(&w, PD_GGUF_ARRAY);
    u64(&w, 1);
    u32(&w, PD_GGUF_U8);
    u64(&w, 1);
    u8(&w, 1);
    refuse_and_drop(&w, "array of arrays");

    for (int in_array = 0; in_array < 2; in_array++) {
        w = (writer){0};
        head(&w, 3, 0, 1);
        key(&w, "flag", in_array ? PD_GGUF_ARRAY : PD_GGUF_BOOL);
        if (in_array) {
            u32(&w, PD_GGUF_BOOL);
            u64(&w, 2);
            u8(&w, 1);
        }
        u8(&w, 2);
        refuse_and_drop(&w, "boolean 2");
    }

    w = (writer){0};
    head(&w, 3, 0, 1);
    key_u32(&w, "", 1);
    refuse_and_drop(&w, "empty key");

    char *name = malloc(65537);
    memset(name, 'k', 65536);
    name[65536] = '\0';
    w = (writer){0};
    head(&w, 3, 0, 1);
    key_u32(&w, name, 1);
    refuse_and_drop(&w, "65536 bytes long, at most 65535");
    w = (writer){0};
    head(&w, 3, 0, 1);
    key(&w, name + 1, 13); /* quoted in part */
    refuse_and_drop(&w, "...' is 13");
    free(name);

    w = (writer){0};
    head(&w, 3, 0, 1);
    key(&w, "a\nb\x1B[0m\x7F\xFF", 99); /* cannot forge a line */
    refuse_and_drop(&w, "'a?b?[0m?\?' is 99");

    writer many = {0}; /* more than are served, though the bytes are there */
    head(&many, 3, 0, PD__GGUF_KV_MAX + 1);
    for (int i = 0; i <= PD__GGUF_KV_MAX; i++) {
        char k[16];
        snprintf(k, sizeof k, "%d", i);
        key_u32(&many, k, 0);
        many.n_f = 0;
    }
    refuse_and_drop(&many, "claims 65537 key/values");
}

static void alignment(void **state) {
    (void)state;
    static const struct {
        uint32_t type;
        uint64_t value;
        size_t bytes;
        const char *word; /* NULL: accepted */
    } cases[] = {
        {PD_GGUF_U32, 1, 4, NULL},           {PD_GGUF_U32, 8, 4, NULL},
        {PD_GGUF_U32, 64, 4, NULL},          {PD_GGUF_U64, 32, 8, NULL},
        {PD_GGUF_U32, 0, 4, "is 0, must"},   {PD_GGUF_U32, 48, 4, "power of two"},
        {PD_GGUF_U32, 3, 4, "power of two"}, {PD_GGUF_U32, 0x80000000, 4, "is 2147483648, must"},
        {PD_GGUF_U64, (uint64_t)1 << 63, 8, "must be from 1"},
        {PD_GGUF_I32, 0xFFFFFFE0, 4, "is -32"}, {PD_GGUF_F32, 0x42000000, 4, "must be an integer"},
        {PD_GGUF_BOOL, 1, 1, "must be an integer"}, {PD_GGUF_STRING, 0, 8, "must be an integer"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        writer w = {0};
        head(&w, 3, 2, 1);
        key(&w, "general.alignment", cases[i].type);
        raw(&w, &cases[i].value, cases[i].bytes);
        two_tensors(&w);
        if (!cases[i].word) pad(&w, (size_t)cases[i].value);
        two_tensors_data(&w);
        if (cases[i].word) {
            refuse_and_drop(&w, cases[i].word);
            continue;
        }
        pd_gguf *g;
        void *copy;
        pd_err err;
        if (open_bytes(w.b.data, w.b.len, &g, &copy, &err)) fail_msg("%s", err.msg);
        assert_int_equal(pd_gguf_tensor_find(g, "t1")->offset, w.b.len - T1_BYTES);
        pd_gguf_close(g);
        free(copy);
        pd_buf_done(&w.b);
    }
}

static void wrong_tensors(void **state) {
    (void)state;
    static const struct {
        const char *name;
        uint32_t type;
        unsigned n_dims;
        uint64_t ne[5], offset;
        const char *word;
    } cases[] = {
        {"a", F32, 0, {0}, 0, "0 dimensions"},
        {"a", F32, 5, {1, 1, 1, 1, 1}, 0, "5 dimensions"},
        {"a", F32, 1, {0}, 0, "dimension 0 is 0"},
        {"a", F32, 4, {8, 1, 1, 0}, 0, "dimension 3 is 0"},
        {"a", Q8_0, 1, {33}, 0, "multiple of 32"},
        {"a", 14, 1, {128}, 0, "multiple of 256"},
        {"a", 4, 1, {32}, 0, "type 4 (unknown)"},
        {"a", 16, 1, {256}, 0, "type 16 (IQ2_XXS)"},
        {"a", 1000, 1, {32}, 0, "type 1000 (unknown)"},
        {"a", F32, 2, {(uint64_t)1 << 32, (uint64_t)1 << 32}, 0, "overflows"},
        {"a", F32, 4, {1, (uint64_t)1 << 40, (uint64_t)1 << 40, 1}, 0, "overflow"},
        {"a", F32, 1, {(uint64_t)1 << 62}, 0, "overflows"},
        {"a", F32, 1, {(uint64_t)1 << 63}, 0, "dimension 0 is"},
        /* 512 rows of 34 * 2^55 bytes: wraps to 0 */
        {"a", Q8_0, 2, {(uint64_t)1 << 60, 512}, 0, "overflows"},
        {"a", F32, 1, {1024}, 0, "past the end"},
        {"a", F32, 1, {8}, 32, "overlap"},
        {"a", F32, 1, {8}, 96, "overlap"},
        {"a", F32, 1, {8}, 192, "past the end"},
        {"a", F32, 1, {8}, 4, "multiple of the alignment"},
        {"a", F32, 1, {8}, UINT64_MAX - 31, "past the end"},
        {"t", F32, 1, {8}, 128, "'t' occurs twice"},
        {"", F32, 1, {8}, 128, "empty tensor name"},
        {"abcdefghabcdefghabcdefghabcdefghabcdefghabcdefghabcdefghabcdefghX", F32, 1, {8}, 128,
         "65 bytes long, at most 64"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        writer w = {0};
        head(&w, 2, 2, 0);
        tensor(&w, "t", F32, 1, (uint64_t[]){32}, 0);
        tensor(&w, cases[i].name, cases[i].type, cases[i].n_dims, cases[i].ne, cases[i].offset);
        pad(&w, 32);
        two_tensors_data(&w);
        refuse_and_drop(&w, cases[i].word);
    }
}

/* The absolute end of a tensor wraps for the one k at which offset + start of the
 * data is 2^64 - 32; the absolute offset wraps for the larger ones. */
static void ends_that_wrap(void **state) {
    (void)state;
    for (uint64_t k = 1; k <= 16; k++) {
        writer w = {0};
        head(&w, 3, 1, 0);
        tensor(&w, "t", F32, 1, (uint64_t[]){8}, UINT64_MAX - 32 * k + 1);
        pad(&w, 32);
        two_tensors_data(&w);
        refuse_and_drop(&w, "past the end");
    }
}

static void every_failing_allocation(void **state) {
    (void)state;
    writer w = small_file(3);
    long n = 0;
    for (pd_status rc = PD_ENOMEM; rc != PD_OK; n++) {
        pd_gguf *g = NULL;
        pd_err err = {0};
        failing_malloc_after(n);
        rc = pd__gguf_open_memory(&g, w.b.data, w.b.len, &err);
        failing_malloc_after(-1);
        if (rc != PD_OK) {
            assert_int_equal(rc, PD_ENOMEM);
            assert_null(g);
            check_message(&err);
        }
        pd_gguf_close(g);
    }
    assert_in_range(n, 6, 40); /* 1: nothing was wrapped */
    pd_buf_done(&w.b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(versions_2_and_3),
        cmocka_unit_test(every_metadata_type),
        cmocka_unit_test(typed_values),
        cmocka_unit_test(long_headers),
        cmocka_unit_test(boundary_values_in_every_field),
        cmocka_unit_test(every_truncation),
        cmocka_unit_test(random_damage),
        cmocka_unit_test(wrong_starts),
        cmocka_unit_test(wrong_metadata),
        cmocka_unit_test(alignment),
        cmocka_unit_test(wrong_tensors),
        cmocka_unit_test(ends_that_wrap),
        cmocka_unit_test(every_failing_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
