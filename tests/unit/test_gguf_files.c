/* SPDX-License-Identifier: Apache-2.0 */
/* engine/gguf on real files: what is no file, files that change, split models.
 * What a file may hold is test_gguf.c's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/gguf/gguf.h"
#include "tests/unit/gguf_writer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { F32 = 0 };

static void check_message(const pd_err *err) {
    const size_t len = strlen(err->msg);
    assert_in_range(len, 10, sizeof err->msg - 1);
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)err->msg[i] < 0x20) fail_msg("not one line: %s", err->msg);
}

static char dir[] = "/tmp/pressd-gguf-XXXXXX";

static int make_dir(void **state) {
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int drop_dir(void **state) {
    (void)state;
    return rmdir(dir); /* every test removes its files */
}

typedef struct {
    char s[300];
} path;

static path in_dir(const char *name) {
    path p;
    snprintf(p.s, sizeof p.s, "%s/%s", dir, name);
    return p;
}

static void save(const char *name, const void *data, size_t n) {
    FILE *f = fopen(in_dir(name).s, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void refuse_path(const char *name, const char *word) {
    pd_gguf *g = NULL;
    pd_err err = {0};
    const pd_status rc = pd_gguf_open(&g, in_dir(name).s, &err);
    if (rc != PD_EFILE) fail_msg("%s: '%s' expected, got status %d %s", name, word, rc, err.msg);
    check_message(&err);
    if (!strstr(err.msg, word)) fail_msg("'%s' is not in: %s", word, err.msg);
    assert_null(g);
}

static void drop(const char *name) {
    assert_int_equal(unlink(in_dir(name).s), 0);
}

static void what_is_no_file(void **state) {
    (void)state;
    refuse_path("absent.gguf", "No such file");
    refuse_path(".", "is a directory");
    refuse_path("new\nline", "new?line: cannot open");
    char deep[260];
    memset(deep, 'd', sizeof deep - 1);
    deep[sizeof deep - 1] = '\0';
    refuse_path(deep, "...");
    assert_int_equal(mkfifo(in_dir("fifo").s, 0600), 0);
    alarm(10); /* a reader that waits for a writer ends here */
    refuse_path("fifo", "is a FIFO");
    alarm(0);
    drop("fifo");
    save("empty", "", 0);
    refuse_path("empty", "truncated");
    if (geteuid() != 0) { /* root reads everything */
        assert_int_equal(chmod(in_dir("empty").s, 0), 0);
        refuse_path("empty", "Permission denied");
    }
    drop("empty");
}

static void sizes_of_a_sparse_file(void **state) {
    (void)state;
    pd_buf b = {0};
    gw_head(&b, 3, 0, 1);
    gw_key(&b, "blob", PD_GGUF_STRING);
    gw_u64(&b, (uint64_t)300 << 20); /* is really there, but no header is so large */
    save("sparse", b.data, b.len);
    assert_int_equal(truncate(in_dir("sparse").s, (off_t)1 << 30), 0);
    refuse_path("sparse", "past the header limit");
    drop("sparse");
    pd_buf_done(&b);
}

static void file_that_shrinks(void **state) {
    (void)state;
    pd_buf b = {0};
    gw_head(&b, 3, 1, 0);
    gw_tensor(&b, "t", F32, 2, (uint64_t[]){8, 2}, 0);
    gw_pad(&b, 32);
    for (int i = 0; i < 64; i++) gw_u8(&b, 1);
    save("shrinks", b.data, b.len);
    pd_gguf *g;
    pd_err err = {0};
    assert_int_equal(pd_gguf_open(&g, in_dir("shrinks").s, &err), PD_OK);
    assert_string_equal(pd_gguf_path(g), in_dir("shrinks").s);
    char rows[64];
    const pd_gguf_tensor *t = pd_gguf_tensor_find(g, "t");
    assert_int_equal(pd_gguf_read_rows(g, t, 0, 2, rows, &err), PD_OK);
    assert_int_equal(truncate(in_dir("shrinks").s, (off_t)b.len - 20), 0);
    assert_int_equal(pd_gguf_read_rows(g, t, 0, 1, rows, &err), PD_OK);
    assert_int_equal(pd_gguf_read_rows(g, t, 0, 2, rows, &err), PD_EFILE);
    assert_non_null(strstr(err.msg, "shorter"));
    pd_gguf_close(g);
    drop("shrinks");
    pd_buf_done(&b);
}

/* Part `no` (from 0) with one tensor: 8 floats of value no. */
static void save_part(const char *name, uint16_t no, uint16_t count, int32_t tensors,
                      const char *tensor_name) {
    pd_buf b = {0};
    gw_head(&b, 3, 1, no == 0 ? 4 : 2);
    if (no == 0) {
        gw_key_u32(&b, "only.in.first", 5);
        gw_key(&b, "split.tensors.count", PD_GGUF_I32);
        gw_u32(&b, (uint32_t)tensors);
    }
    gw_key(&b, "split.no", PD_GGUF_U16);
    pd_buf_add(&b, &no, 2);
    gw_key(&b, "split.count", PD_GGUF_U16);
    pd_buf_add(&b, &count, 2);
    gw_tensor(&b, tensor_name, F32, 1, (uint64_t[]){8}, 0);
    gw_pad(&b, 32);
    const float f = no;
    for (int i = 0; i < 8; i++) pd_buf_add(&b, &f, 4);
    save(name, b.data, b.len);
    pd_buf_done(&b);
}

static void split_files(void **state) {
    (void)state;
    static const char *const names[] = {"m-00001-of-00003.gguf", "m-00002-of-00003.gguf",
                                        "m-00003-of-00003.gguf"};
    static const char *const tensors[] = {"a", "b", "c"};
    for (uint16_t i = 0; i < 3; i++) save_part(names[i], i, 3, 3, tensors[i]);
    pd_gguf *g;
    pd_err err = {0};
    if (pd_gguf_open(&g, in_dir(names[0]).s, &err)) fail_msg("%s", err.msg);
    assert_int_equal(pd_gguf_n_tensors(g), 3);
    assert_non_null(pd_gguf_find(g, "only.in.first"));
    for (unsigned i = 0; i < 3; i++) {
        const pd_gguf_tensor *t = pd_gguf_tensor_find(g, tensors[i]);
        float x[8];
        assert_int_equal(t->file, i);
        assert_int_equal(pd_gguf_read_rows(g, t, 0, 1, x, NULL), PD_OK);
        assert_true(x[0] == (float)i && x[7] == (float)i);
    }
    uint64_t bytes = 0;
    for (unsigned i = 0; i < 3; i++) {
        struct stat st;
        assert_int_equal(stat(in_dir(names[i]).s, &st), 0);
        bytes += (uint64_t)st.st_size;
    }
    assert_int_equal(pd_gguf_file_bytes(g), bytes);
    pd_gguf_close(g);

    refuse_path(names[1], "part 2 of 3, open part 00001");
    save_part(names[1], 2, 3, 3, "b");
    refuse_path(names[0], "'split.no' is 2");
    save_part(names[1], 1, 2, 3, "b");
    refuse_path(names[0], "'split.count' is 2");
    save_part(names[1], 1, 3, 3, "a");
    refuse_path(names[0], "'a' occurs twice");
    save(names[1], "GGUF", 4);
    refuse_path(names[0], "m-00002-of-00003.gguf: truncated");
    drop(names[1]);
    refuse_path(names[0], "m-00002-of-00003.gguf: cannot open");
    save_part(names[1], 1, 3, 3, "b");
    save_part(names[0], 0, 3, 4, "a");
    refuse_path(names[0], "'split.tensors.count' is 4, the parts have 3");
    save_part(names[0], 0, 3, -1, "a");
    refuse_path(names[0], "'split.tensors.count' is -1");
    save_part("alone.gguf", 0, 3, 3, "a");
    refuse_path("alone.gguf", "its name does not end in -00001-of-00003.gguf");
    refuse_path("m-00001-of-00000.gguf", "0 parts");
    refuse_path("m-00001-of-01000.gguf", "1000 parts");
    for (int i = 0; i < 3; i++) drop(names[i]);
    drop("alone.gguf");

    save_part("n-00001-of-00001.gguf", 0, 1, 1, "a"); /* one part is a whole */
    assert_int_equal(pd_gguf_open(&g, in_dir("n-00001-of-00001.gguf").s, NULL), PD_OK);
    pd_gguf_close(g);
    drop("n-00001-of-00001.gguf");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_no_file),
        cmocka_unit_test(sizes_of_a_sparse_file),
        cmocka_unit_test(file_that_shrinks),
        cmocka_unit_test(split_files),
    };
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
