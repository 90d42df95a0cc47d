/* SPDX-License-Identifier: Apache-2.0 */
/* Chat families against Jinja2's rendering (tests/golden/chat.py), and the ids
 * of a prompt against those of its whole text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/tokenizer/chat_family.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pd_str str(const char *s) {
    return (pd_str){s, strlen(s)};
}

/* Byte-level, with every family's markers as control tokens and one merge that
 * can reach over the end of a header: "\n" with "\n". */
static const char *const markers[] = {
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "[INST]", "[/INST]",
};
enum { FIRST_MARKER = 257, N_MARKER = sizeof markers / sizeof *markers };

static pd_tokenizer *markers_tokenizer(int add_bos) {
    static char byte[256][3], newlines[5], merge_text[8];
    static pd_str piece[FIRST_MARKER + N_MARKER];
    static int32_t type[FIRST_MARKER + N_MARKER];
    static pd_str merge[1];
    for (int b = 0; b < 256; b++) {
        byte[b][pd__byte_spell((uint8_t)b, byte[b])] = '\0';
        piece[b] = str(byte[b]);
        type[b] = PD__TYPE_NORMAL;
    }
    snprintf(newlines, sizeof newlines, "%s%s", byte['\n'], byte['\n']);
    snprintf(merge_text, sizeof merge_text, "%s %s", byte['\n'], byte['\n']);
    piece[256] = str(newlines);
    type[256] = PD__TYPE_NORMAL;
    merge[0] = str(merge_text);
    for (int i = 0; i < N_MARKER; i++) {
        piece[FIRST_MARKER + i] = str(markers[i]);
        type[FIRST_MARKER + i] = PD__TYPE_CONTROL;
    }
    const pd__vocab_src src = {.model = str("gpt2"), .pre = str("llama-bpe"), .piece = piece,
                               .n_piece = FIRST_MARKER + N_MARKER, .type = type, .merge = merge, .n_merge = 1,
                               .bos = FIRST_MARKER, .eos = FIRST_MARKER + 1, .eot = -1, .unk = -1, .pad = -1,
                               .add_bos = add_bos, .add_eos = -1, .add_space_prefix = -1};
    pd_tokenizer *t = NULL;
    pd_err err = {0};
    if (pd__tokenizer_build(&t, &src, &err) != PD_OK) fail_msg("%s", err.msg);
    return t;
}

/* ---- the golden file ---- */

typedef struct {
    const uint8_t *p, *end;
} reader;

static uint32_t number(reader *r, size_t bytes) {
    uint32_t v = 0;
    assert_true((size_t)(r->end - r->p) >= bytes);
    for (size_t i = 0; i < bytes; i++) v |= (uint32_t)*r->p++ << (8 * i);
    return v;
}

static char *text(reader *r, size_t len_bytes) {
    const size_t n = number(r, len_bytes);
    assert_true((size_t)(r->end - r->p) >= n);
    char *s = strndup((const char *)r->p, n);
    r->p += n;
    return s;
}

static char *read_file(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    char *s = calloc(1, 1 << 20);
    *n = fread(s, 1, (1 << 20) - 1, f);
    fclose(f);
    return s;
}

static bool holds_special(const pd_chat_msg *msg, size_t n) {
    for (size_t i = 0; i < n; i++) {
        for (int k = 0; k < N_MARKER; k++) {
            if (strstr(msg[i].content, markers[k]) || strstr(msg[i].role, markers[k])) return true;
        }
    }
    return false;
}

/* The ids of a conversation = the ids of its text with specials parsed, when no
 * message holds one; always: no more control tokens than the template wrote. */
static void check_ids(const pd_chat *c, const pd_tokenizer *t, const pd_chat_msg *msg, size_t n, bool generate,
                      const pd_buf *prompt) {
    pd_ids got = {0}, want = {0};
    pd_chat_marks m = {0};
    assert_int_equal(pd_chat_encode(c, t, msg, n, generate, &got, &m, NULL), PD_OK);
    const pd_tokenizer_info *info = pd_tokenizer_get_info(t);
    const pd_str bos = pd_token_bytes(t, info->bos, true);
    const bool written = prompt->len >= bos.len && bos.len && memcmp(prompt->data, bos.data, bos.len) == 0;
    if (!holds_special(msg, n)) {
        assert_int_equal(pd_tokenize(t, prompt->data ? prompt->data : "", prompt->len,
                                     PD_TOK_SPECIAL | (written ? 0 : PD_TOK_BOS), &want, NULL), PD_OK);
        assert_int_equal(got.n, want.n);
        if (got.n) assert_memory_equal(got.id, want.id, got.n * sizeof *got.id);
    }
    if (info->add_bos) {
        assert_true(got.n > 0 && got.id[0] == info->bos);
        if (strcmp(pd_chat_name(c), "llama2") != 0) {
            for (size_t i = 1; i < got.n; i++) assert_int_not_equal(got.id[i], info->bos);
        }
    }
    assert_true(m.system_begin <= m.system_end && m.system_end <= got.n && m.last_user_begin <= got.n);
    bool user = false;
    for (size_t i = 0; i < n; i++) user |= strcmp(msg[i].role, "user") == 0;
    if (!user) assert_int_equal(m.last_user_begin, got.n);
    pd_ids_done(&got);
    pd_ids_done(&want);
}

static void renders_as_jinja_does(void **state) {
    (void)state;
    size_t n_golden = 0;
    char *golden = read_file(PD_SOURCE_DIR "/tests/golden/data/tokenizer/chat.bin", &n_golden);
    if (!golden) fail_msg("tests/golden/data/tokenizer/chat.bin is missing");
    reader r = {(const uint8_t *)golden, (const uint8_t *)golden + n_golden};
    assert_int_equal(number(&r, 4), 0x43544450); /* "PDTC" */
    pd_tokenizer *t = markers_tokenizer(0), *with_bos = markers_tokenizer(1);
    const char *vocabs = getenv("PRESSD_TEST_VOCABS");
    size_t n_case = 0;
    for (uint32_t left = number(&r, 4); left > 0; left--) {
        char *family = text(&r, 1), *jinja = text(&r, 4), *file = text(&r, 1);
        const pd_chat *c = pd__chat_find(family, strlen(family));
        if (!c) fail_msg("no family '%s'", family);
        if (*jinja) {
            const pd_chat *seen = pd__chat_recognise(jinja, strlen(jinja));
            if (seen != c) fail_msg("'%s' is taken for '%s'", family, seen ? seen->name : "nothing");
        }
        for (uint32_t k = number(&r, 4); k > 0; k--) {
            const bool generate = number(&r, 1);
            const size_t n = number(&r, 1);
            pd_chat_msg msg[8];
            for (size_t i = 0; i < n; i++) {
                msg[i].role = text(&r, 1);
                msg[i].content = text(&r, 2);
            }
            const uint32_t error_at = number(&r, 1);
            char *want = text(&r, 4);
            pd_buf out = {0};
            pd_err err = {0};
            pd_status rc = pd_chat_render(c, t, msg, n, generate, &out, &err);
            if (error_at == 255) {
                if (rc != PD_OK) fail_msg("%s: %s", family, err.msg);
                const char *text_out = out.data ? out.data : "";
                if (strcmp(text_out, want) != 0) fail_msg("%s case %zu:\n'%s'\nwant\n'%s'", family, n_case, text_out, want);
                check_ids(c, t, msg, n, generate, &out);
                check_ids(c, with_bos, msg, n, generate, &out);
            } else {
                char param[40];
                snprintf(param, sizeof param, "messages[%u].role", error_at);
                assert_int_equal(rc, PD_EINVAL);
                assert_string_equal(err.param, error_at == 254 ? "messages" : param);
                assert_int_equal(out.len, 0);
            }
            pd_buf_done(&out);
            free(want);
            for (size_t i = 0; i < n; i++) {
                free((char *)(uintptr_t)msg[i].role);
                free((char *)(uintptr_t)msg[i].content);
            }
            n_case++;
        }
        free(family);
        free(jinja);
        free(file);
    }
    /* Every published template: ours are known for what they are, no other is taken for ours. */
    size_t n_file = 0;
    for (uint32_t left = number(&r, 4); left > 0; left--) {
        char *file = text(&r, 1), *family = text(&r, 1);
        if (vocabs && *vocabs) {
            char path[700];
            size_t n = 0;
            snprintf(path, sizeof path, "%s/templates/%s", vocabs, file);
            char *jinja = read_file(path, &n);
            if (!jinja) fail_msg("%s is missing", path);
            const pd_chat *c = pd__chat_recognise(jinja, n);
            if (strcmp(c ? c->name : "", family) != 0)
                fail_msg("%s is taken for '%s', not '%s'", file, c ? c->name : "", family);
            free(jinja);
            n_file++;
        }
        free(file);
        free(family);
    }
    assert_true(r.p == r.end);
    print_message("%zu cases as Jinja2 renders them, %zu published templates told apart%s\n", n_case, n_file,
                  n_file ? "" : " (SKIPPED: needs PRESSD_TEST_VOCABS)");
    pd_tokenizer_close(t);
    pd_tokenizer_close(with_bos);
    free(golden);
}

static void content_never_makes_control_tokens(void **state) {
    (void)state;
    pd_tokenizer *t = markers_tokenizer(0);
    for (size_t f = 0; f < pd__n_chats; f++) {
        size_t n_clean = 0;
        for (int k = -1; k < N_MARKER; k++) {
            char content[64] = "x", role_text[8] = "user";
            if (k >= 0) snprintf(content, sizeof content, "a%s", markers[k]);
            const pd_chat_msg msg[] = {{role_text, content}, {"assistant", content}, {"user", content}};
            pd_ids ids = {0};
            assert_int_equal(pd_chat_encode(&pd__chats[f], t, msg, 3, true, &ids, NULL, NULL), PD_OK);
            size_t n = 0;
            for (size_t i = 0; i < ids.n; i++) n += pd_token_is_special(t, ids.id[i]);
            if (k < 0) n_clean = n;
            assert_int_equal(n, n_clean);
            pd_ids_done(&ids);
        }
    }
    /* Nor a role, nor content that completes a marker the template began. */
    const pd_chat *chatml = pd__chat_find("chatml", 6);
    const pd_chat_msg tricky[] = {{"user<|im_end|>", "<"}, {"|im_end|>", "<|im_end|"}};
    pd_ids ids = {0};
    assert_int_equal(pd_chat_encode(chatml, t, tricky, 2, false, &ids, NULL, NULL), PD_OK);
    size_t n = 0;
    for (size_t i = 0; i < ids.n; i++) n += pd_token_is_special(t, ids.id[i]);
    assert_int_equal(n, 4);
    pd_ids_done(&ids);
    pd_tokenizer_close(t);
}

static void marks_point_at_the_messages(void **state) {
    (void)state;
    pd_tokenizer *t = markers_tokenizer(0);
    const pd_chat_msg msg[] = {{"system", "ab"}, {"user", "c"}, {"assistant", "d"}, {"user", "ef"}};
    const int32_t im_start = FIRST_MARKER + 2, im_end = FIRST_MARKER + 3;
    pd_ids ids = {0};
    pd_chat_marks m;
    assert_int_equal(pd_chat_encode(pd__chat_find("chatml", 6), t, msg, 4, true, &ids, &m, NULL), PD_OK);
    assert_int_equal(m.system_begin, 0);
    assert_int_equal(ids.id[m.system_end], im_start);
    assert_int_equal(ids.id[m.system_end - 1], '\n');
    assert_int_equal(ids.id[m.system_end - 2], im_end);
    assert_int_equal(ids.id[m.last_user_begin], im_start);
    assert_int_equal(ids.id[m.last_user_begin + 1], 'u');
    assert_int_equal(m.last_user_begin + 1 + 4 + 1 + 2 + 1 + 1 + 1 + 9 + 1, ids.n);
    ids.n = 0;
    assert_int_equal(pd_chat_encode(pd__chat_find("smollm2", 7), t, msg + 1, 1, true, &ids, &m, NULL), PD_OK);
    assert_true(m.system_begin == 0 && m.system_end > 0 && m.last_user_begin == m.system_end);
    ids.n = 0;
    assert_int_equal(pd_chat_encode(pd__chat_find("chatml", 6), t, msg + 2, 1, true, &ids, &m, NULL), PD_OK);
    assert_true(m.system_begin == m.system_end && m.last_user_begin == ids.n);
    /* Gemma's system message stands inside the user's turn. */
    ids.n = 0;
    assert_int_equal(pd_chat_encode(pd__chat_find("gemma", 5), t, msg, 2, true, &ids, &m, NULL), PD_OK);
    assert_int_equal(ids.id[m.last_user_begin], FIRST_MARKER + 4);
    assert_true(m.last_user_begin < m.system_begin);
    assert_int_equal(ids.id[m.system_begin], 'a');
    assert_int_equal(ids.id[m.system_end], 'c');
    assert_int_equal(ids.id[m.system_end - 1], 256);
    /* "user\n" and "\nab" share the token "\n\n": the range takes it whole. */
    const pd_chat_msg shared[] = {{"system", "\nab"}, {"user", "c"}};
    ids.n = 0;
    assert_int_equal(pd_chat_encode(pd__chat_find("gemma", 5), t, shared, 2, true, &ids, &m, NULL), PD_OK);
    assert_int_equal(ids.id[m.system_begin], 256);
    assert_int_equal(ids.id[m.system_begin + 1], 'a');
    pd_ids_done(&ids);
    pd_tokenizer_close(t);
}

/* ---- real files ---- */

static void real_file(const char *env, const char *want_family, pd_chat_origin want_origin) {
    const char *path = getenv(env);
    if (!path || !*path) {
        print_message("SKIPPED: needs %s\n", env);
        skip();
    }
    pd_err err = {0};
    pd_gguf *g = NULL;
    pd_tokenizer *t = NULL;
    const pd_chat *c = NULL;
    pd_chat_origin origin = PD_CHAT_FROM_OPTION;
    if (pd_gguf_open(&g, path, &err) != PD_OK || pd_tokenizer_open(&t, g, &err) != PD_OK ||
        pd_chat_open(&c, g, NULL, &origin, &err) != PD_OK)
        fail_msg("%s", err.msg);
    assert_string_equal(pd_chat_name(c), want_family);
    assert_int_equal(origin, want_origin);
    static const pd_chat_msg talks[][4] = {
        {{"user", "Hello"}},
        {{"system", "\n\nBe brief.\n"}, {"user", "\nnewline first\n\n\n"}, {"assistant", "  indented"}, {"user", "x"}},
        {{"user", "a\n"}, {"assistant", "\n\n\n"}, {"user", "日本語 <b>\t\t</b> 12345"}},
    };
    static const size_t n[] = {1, 4, 3};
    for (size_t i = 0; i < 3; i++) {
        pd_buf out = {0};
        assert_int_equal(pd_chat_render(c, t, talks[i], n[i], true, &out, &err), PD_OK);
        check_ids(c, t, talks[i], n[i], true, &out);
        pd_buf_done(&out);
    }
    assert_int_equal(pd_chat_open(&c, g, "llama3", &origin, &err), PD_OK);
    assert_int_equal(origin, PD_CHAT_FROM_OPTION);
    assert_string_equal(pd_chat_name(c), "llama3");
    assert_int_equal(pd_chat_open(&c, g, "klingon", &origin, &err), PD_EINVAL);
    assert_non_null(strstr(err.msg, "chatml"));
    pd_tokenizer_close(t);
    pd_gguf_close(g);
}

static void smollm2_file(void **state) {
    (void)state;
    real_file("PRESSD_TEST_MODEL", "smollm2", PD_CHAT_FROM_FILE);
}

static void gemma3_file(void **state) {
    (void)state;
    real_file("PRESSD_TEST_MODEL_GEMMA", "gemma", PD_CHAT_FROM_ARCH);
}

static void names_are_the_table(void **state) {
    (void)state;
    pd_buf all = {0};
    for (size_t i = 0; i < pd__n_chats; i++) pd_buf_printf(&all, "%s%s", i ? ", " : "", pd__chats[i].name);
    assert_string_equal(pd_chat_names(), all.data);
    pd_buf_done(&all);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(renders_as_jinja_does),
        cmocka_unit_test(content_never_makes_control_tokens),
        cmocka_unit_test(marks_point_at_the_messages),
        cmocka_unit_test(smollm2_file),
        cmocka_unit_test(gemma3_file),
        cmocka_unit_test(names_are_the_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
