/* SPDX-License-Identifier: Apache-2.0 */
/* pressd inspect: the real binary on files written here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/gguf_writer.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[] = "/tmp/pressd-inspect-XXXXXX";

typedef struct {
    char s[200];
} path;

static path in_dir(const char *name) {
    path p;
    snprintf(p.s, sizeof p.s, "%s/%s", dir, name);
    return p;
}

static int make_dir(void **state) {
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int drop_dir(void **state) {
    (void)state;
    unlink(in_dir("m.gguf").s);
    unlink(in_dir("err").s);
    return rmdir(dir);
}

static void save(pd_buf *b) {
    assert_false(b->failed);
    FILE *f = fopen(in_dir("m.gguf").s, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(b->data, 1, b->len, f), b->len);
    assert_int_equal(fclose(f), 0);
    pd_buf_done(b);
}

static void read_all(FILE *f, char *dst, size_t room) {
    const size_t n = fread(dst, 1, room - 1, f);
    assert_true(n < room - 1);
    dst[n] = '\0';
}

static char out[16384], err[4096];

/* "pressd inspect <args>" in the directory: exit code, `out` and `err`. */
static int inspect(const char *args) {
    char line[1200];
    snprintf(line, sizeof line, "cd %s && '%s' inspect %s 2>err", dir, PD_PRESSD, args);
    FILE *p = popen(line, "r");
    assert_non_null(p);
    read_all(p, out, sizeof out);
    const int status = pclose(p);
    FILE *f = fopen(in_dir("err").s, "rb");
    assert_non_null(f);
    read_all(f, err, sizeof err);
    fclose(f);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void expect(const char *line) {
    if (!strstr(out, line)) fail_msg("'%s' is not in:\n%s", line, out);
}

/* Gemma 3's shape, with a name that wants to drive the terminal. */
static void save_gemma(void) {
    pd_buf b = {0};
    gw_head(&b, 3, 2, 15);
    gw_key_str(&b, "general.architecture", "gemma3");
    gw_key_str(&b, "general.name", "Evil\x1B]0;\xC2\x9B\xFF name\nforged line");
    gw_key_u32(&b, "gemma3.block_count", 18);
    gw_key_u32(&b, "gemma3.context_length", 32768);
    gw_key_u32(&b, "gemma3.embedding_length", 640);
    gw_key_u32(&b, "gemma3.attention.head_count", 4);
    gw_key_u32(&b, "gemma3.attention.head_count_kv", 1);
    gw_key_u32(&b, "gemma3.attention.key_length", 256);
    gw_key_u32(&b, "gemma3.attention.value_length", 256);
    gw_key_u32(&b, "gemma3.attention.sliding_window", 512);
    gw_key_str(&b, "tokenizer.ggml.model", "llama");
    gw_key_array(&b, "tokenizer.ggml.tokens", PD_GGUF_STRING, 3);
    for (int i = 0; i < 3; i++) gw_str(&b, "t");
    gw_key_u32(&b, "tokenizer.ggml.bos_token_id", 2);
    gw_key(&b, "tokenizer.ggml.add_bos_token", PD_GGUF_BOOL);
    gw_u8(&b, 1);
    gw_key_str(&b, "tokenizer.chat_template", "first\nsecond");
    gw_tensor(&b, "a", 0, 2, (uint64_t[]){8, 4}, 0);
    gw_tensor(&b, "b", 8, 1, (uint64_t[]){32}, 128);
    gw_pad(&b, 32);
    for (int i = 0; i < 128 + 34; i++) gw_u8(&b, 0);
    save(&b);
}

static void text(void **state) {
    (void)state;
    save_gemma();
    assert_int_equal(inspect("m.gguf"), 0);
    assert_string_equal(err, "");
    expect("architecture   gemma3\n");
    expect("name           Evil?]0;??? name...\n");
    expect("parameters     64\n");
    expect("layers         18\n");
    expect("heads          4 query, 1 key/value, dimension 256\n");
    expect("feed-forward   -\n");
    expect("context        32768\n");
    expect("vocabulary     3\n");
    expect("tensors        2\n  F32               1  128 bytes\n  Q8_0              1  34 bytes\n");
    expect("special ids    bos 2, eos -, unk -, pad -; adds bos: yes, eos: no\n");
    expect("chat template  12 bytes: first...\n");
    expect("KV cache       18432 bytes per token in f16, dense\n");
    expect("3 layers, 3072 bytes per token\n");
    expect("15 layers, 15360 bytes per token of the last 512\n");
    assert_null(strstr(out, "forged"));
    assert_null(strchr(out, 0x1B));
}

static void json(void **state) {
    (void)state;
    save_gemma();
    assert_int_equal(inspect("--json m.gguf"), 0);
    json_t *j = json_loads(out, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(j);
    const char *arch = NULL, *chat = NULL, *type = NULL;
    json_int_t layers = 0, kv = 0, window = 0, q8 = 0;
    json_t *ff = NULL;
    assert_int_equal(json_unpack(j, "{s:s, s:s, s:I, s:o, s:{s:I, s:I}}", "architecture", &arch, "chat_template",
                                 &chat, "layers", &layers, "feed_forward_length", &ff, "kv_cache",
                                 "bytes_per_token", &kv, "window_bytes_per_token", &window),
                     0);
    assert_string_equal(arch, "gemma3");
    assert_string_equal(chat, "first\nsecond");
    assert_int_equal(layers, 18);
    assert_true(json_is_null(ff));
    assert_int_equal(kv, 18432);
    assert_int_equal(window, 15360);
    assert_int_equal(json_unpack(json_array_get(json_object_get(j, "types"), 1), "{s:s, s:I}", "type", &type,
                                 "bytes", &q8),
                     0);
    assert_string_equal(type, "Q8_0");
    assert_int_equal(q8, 34);
    json_decref(j);
}

/* One count per layer; no architecture at all. */
static void odd_but_valid(void **state) {
    (void)state;
    pd_buf b = {0};
    gw_head(&b, 2, 0, 5);
    gw_key_str(&b, "general.architecture", "x");
    gw_key_u32(&b, "x.block_count", 3);
    gw_key_u32(&b, "x.attention.head_count", 4);
    gw_key_u32(&b, "x.embedding_length", 64);
    gw_key_array(&b, "x.attention.head_count_kv", PD_GGUF_I32, 3);
    for (uint32_t i = 0; i < 3; i++) gw_u32(&b, 1u << i);
    save(&b);
    assert_int_equal(inspect("m.gguf"), 0);
    expect("4 query, by layer key/value, dimension 16\n");
    expect("KV cache       448 bytes per token"); /* (1 + 2 + 4) heads, 16 + 16 numbers, 2 bytes */

    gw_head(&b, 3, 0, 0);
    save(&b);
    assert_int_equal(inspect("m.gguf"), 0);
    expect("architecture   -\n");
    expect("KV cache       -\n");
    assert_int_equal(inspect("--json m.gguf"), 0);
    expect("\"kv_cache\": null");
}

static void refuse(const char *args, const char *word) {
    assert_int_equal(inspect(args), 2);
    assert_string_equal(out, "");
    if (!strstr(err, word)) fail_msg("'%s' is not in: %s", word, err);
    assert_int_equal(strncmp(err, "pressd", 6), 0);
}

static void refuse_file(pd_buf *b, const char *word) {
    save(b);
    refuse("m.gguf", word);
    assert_ptr_equal(strchr(err, '\n'), err + strlen(err) - 1); /* one line */
}

static void refusals(void **state) {
    (void)state;
    refuse("", "no file given");
    refuse("a b", "more than one file: 'b'");
    refuse("--jsno a", "unknown option '--jsno'");
    refuse("-- --json", "--json: cannot open");
    refuse(".", "is a directory");
    pd_buf b = {0};
    pd_buf_puts(&b, "GGUF");
    refuse_file(&b, "truncated");
    gw_head(&b, 3, UINT64_MAX, 0);
    refuse_file(&b, "claims 18446744073709551615 tensors");
    gw_head(&b, 3, 0, 1);
    gw_key_u32(&b, "general.architecture", 1);
    refuse_file(&b, "must be a string");
    gw_head(&b, 3, 0, 2);
    gw_key_str(&b, "general.architecture", "x");
    gw_key_u32(&b, "x.block_count", 65536);
    refuse_file(&b, "'x.block_count' is 65536, must be from 0 to 65535");
    gw_head(&b, 3, 0, 3);
    gw_key_str(&b, "general.architecture", "x");
    gw_key_u32(&b, "x.block_count", 2);
    gw_key_array(&b, "x.attention.head_count_kv", PD_GGUF_U32, 1);
    gw_u32(&b, 1);
    refuse_file(&b, "one per layer");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text),
        cmocka_unit_test(json),
        cmocka_unit_test(odd_but_valid),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
