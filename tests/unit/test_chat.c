/* SPDX-License-Identifier: Apache-2.0 */
/* Templates by name against Jinja2's rendering of the published ones (tests/golden/chat.py),
 * and the ids of a prompt against those of its whole text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/tokenizer/chat_int.h"
#include "tests/unit/gguf_writer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

static pd_chat_talk talk_of(const pd_chat_msg *msg, size_t n, bool generate) {
    return (pd_chat_talk){.msg = msg, .n_msg = n, .add_generation_prompt = generate};
}

static pd_chat *named(const char *name) {
    const pd__chat_builtin *b = pd__chat_find(name, strlen(name));
    pd_chat *c = NULL;
    pd_err err = {0};
    if (!b) fail_msg("no template '%s'", name);
    if (pd__chat_from_text(&c, b->name, b->text, strlen(b->text), &err) != PD_OK) fail_msg("%s: %s", name, err.msg);
    return c;
}

/* The ids of a conversation = the ids of its text with specials parsed, when no
 * message holds one; always: no more control tokens than the template wrote. */
static void check_ids(const pd_chat *c, const pd_tokenizer *t, const pd_chat_msg *msg, size_t n, bool generate,
                      const pd_buf *prompt) {
    pd_ids got = {0}, want = {0};
    pd_chat_marks m = {0};
    const pd_chat_talk talk = talk_of(msg, n, generate);
    assert_int_equal(pd_chat_encode(c, t, &talk, &got, &m, NULL), PD_OK);
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
        /* Llama 2's template writes one for every user message. */
        if (!prompt->len || !memmem(prompt->data + 1, prompt->len - 1, bos.data, bos.len)) {
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

/* One case of the file: rendered, and its ids checked. */
static void check_case(reader *r, const pd_chat *c, const char *what, pd_tokenizer *const *t) {
    const bool generate = number(r, 1);
    const size_t n = number(r, 1);
    pd_chat_msg msg[8];
    for (size_t i = 0; i < n; i++) {
        msg[i].role = text(r, 1);
        msg[i].content = text(r, 2);
    }
    const bool refused = number(r, 1);
    char *want = text(r, 4);
    const pd_chat_talk talk = talk_of(msg, n, generate);
    pd_buf out = {0};
    pd_err err = {0};
    const pd_status rc = pd_chat_render(c, t[0], &talk, &out, &err);
    if (refused) {
        assert_int_equal(rc, PD_EINVAL);
        assert_string_equal(err.param, "messages");
        assert_int_equal(out.len, 0);
    } else {
        if (rc != PD_OK) fail_msg("%s: %s", what, err.msg);
        const char *got = out.data ? out.data : "";
        if (strcmp(got, want) != 0) fail_msg("%s:\n'%s'\nwant\n'%s'", what, got, want);
        check_ids(c, t[0], msg, n, generate, &out);
        check_ids(c, t[1], msg, n, generate, &out);
    }
    pd_buf_done(&out);
    free(want);
    for (size_t i = 0; i < n; i++) {
        free((char *)(uintptr_t)msg[i].role);
        free((char *)(uintptr_t)msg[i].content);
    }
}

/* Each published text, and ours of that name. */
static void renders_as_jinja_does(void **state) {
    (void)state;
    size_t n_golden = 0;
    char *golden = read_file(PD_SOURCE_DIR "/tests/golden/data/tokenizer/chat.bin", &n_golden);
    if (!golden) fail_msg("tests/golden/data/tokenizer/chat.bin is missing");
    reader r = {(const uint8_t *)golden, (const uint8_t *)golden + n_golden};
    assert_int_equal(number(&r, 4), 0x43544450); /* "PDTC" */
    pd_tokenizer *t[] = {markers_tokenizer(0), markers_tokenizer(1)};
    const char *vocabs = getenv("PRESSD_TEST_VOCABS");
    size_t n_case = 0, n_skipped = 0;
    for (uint32_t left = number(&r, 4); left > 0; left--) {
        char *family = text(&r, 1), *jinja = text(&r, 4), *file = text(&r, 1);
        size_t len = strlen(jinja);
        if (*file && vocabs && *vocabs) {
            char path[700];
            snprintf(path, sizeof path, "%s/templates/%s", vocabs, file);
            free(jinja);
            jinja = read_file(path, &len);
            if (!jinja) fail_msg("%s is missing", path);
        }
        pd_chat *ours = named(family), *published = NULL;
        if (len) assert_int_equal(pd__chat_from_text(&published, "custom", jinja, len, NULL), PD_OK);
        else n_skipped++;
        for (uint32_t k = number(&r, 4); k > 0; k--) {
            reader again = r;
            check_case(&r, ours, family, t);
            if (published) check_case(&again, published, *file ? file : "the published text", t);
            n_case++;
        }
        pd_chat_close(ours);
        pd_chat_close(published);
        free(family);
        free(jinja);
        free(file);
    }
    assert_true(r.p == r.end);
    print_message("%zu cases as Jinja2 renders them", n_case);
    print_message(n_skipped ? " (SKIPPED for %zu published files: needs PRESSD_TEST_VOCABS)\n" : "\n", n_skipped);
    pd_tokenizer_close(t[0]);
    pd_tokenizer_close(t[1]);
    free(golden);
}

static void content_never_makes_control_tokens(void **state) {
    (void)state;
    pd_tokenizer *t = markers_tokenizer(0);
    for (size_t f = 0; f < pd__n_chat_builtins; f++) {
        size_t n_clean = 0;
        pd_chat *c = named(pd__chat_builtins[f].name);
        for (int k = -1; k < N_MARKER; k++) {
            char content[64] = "x", role_text[8] = "user";
            if (k >= 0) snprintf(content, sizeof content, "a%s", markers[k]);
            const pd_chat_msg msg[] = {{role_text, content}, {"assistant", content}, {"user", content}};
            pd_ids ids = {0};
            const pd_chat_talk talk = talk_of(msg, 3, true);
            assert_int_equal(pd_chat_encode(c, t, &talk, &ids, NULL, NULL), PD_OK);
            size_t n = 0;
            for (size_t i = 0; i < ids.n; i++) n += pd_token_is_special(t, ids.id[i]);
            if (k < 0) n_clean = n;
            assert_int_equal(n, n_clean);
            pd_ids_done(&ids);
        }
        pd_chat_close(c);
    }
    /* Nor a role, nor content that completes a marker the template began. */
    pd_chat *chatml = named("chatml");
    const pd_chat_msg tricky[] = {{"user<|im_end|>", "<"}, {"|im_end|>", "<|im_end|"}};
    pd_ids ids = {0};
    const pd_chat_talk talk = talk_of(tricky, 2, false);
    assert_int_equal(pd_chat_encode(chatml, t, &talk, &ids, NULL, NULL), PD_OK);
    pd_chat_close(chatml);
    size_t n = 0;
    for (size_t i = 0; i < ids.n; i++) n += pd_token_is_special(t, ids.id[i]);
    assert_int_equal(n, 4);
    pd_ids_done(&ids);
    pd_tokenizer_close(t);
}

static void encode(const char *name, const pd_tokenizer *t, const pd_chat_msg *msg, size_t n, pd_ids *ids, pd_chat_marks *m) {
    pd_chat *c = named(name);
    const pd_chat_talk talk = talk_of(msg, n, true);
    ids->n = 0;
    assert_int_equal(pd_chat_encode(c, t, &talk, ids, m, NULL), PD_OK);
    pd_chat_close(c);
}

static void marks_point_at_the_messages(void **state) {
    (void)state;
    pd_tokenizer *t = markers_tokenizer(0);
    const pd_chat_msg msg[] = {{"system", "ab"}, {"user", "c"}, {"assistant", "d"}, {"user", "ef"}};
    const int32_t im_start = FIRST_MARKER + 2, im_end = FIRST_MARKER + 3;
    pd_ids ids = {0};
    pd_chat_marks m;
    encode("chatml", t, msg, 4, &ids, &m);
    assert_int_equal(m.system_begin, 0);
    assert_int_equal(ids.id[m.system_end], im_start);
    assert_int_equal(ids.id[m.system_end - 1], '\n');
    assert_int_equal(ids.id[m.system_end - 2], im_end);
    assert_int_equal(ids.id[m.last_user_begin], im_start);
    assert_int_equal(ids.id[m.last_user_begin + 1], 'u');
    assert_int_equal(m.last_user_begin + 1 + 4 + 1 + 2 + 1 + 1 + 1 + 9 + 1, ids.n);
    encode("smollm2", t, msg + 1, 1, &ids, &m);
    assert_true(m.system_begin == 0 && m.system_end > 0 && m.last_user_begin == m.system_end);
    encode("chatml", t, msg + 2, 1, &ids, &m);
    assert_true(m.system_begin == m.system_end && m.last_user_begin == ids.n);
    /* Gemma's system message stands inside the user's turn. */
    encode("gemma", t, msg, 2, &ids, &m);
    assert_int_equal(ids.id[m.last_user_begin], FIRST_MARKER + 4);
    assert_true(m.last_user_begin < m.system_begin);
    assert_int_equal(ids.id[m.system_begin], 'a');
    assert_int_equal(ids.id[m.system_end], 'c');
    assert_int_equal(ids.id[m.system_end - 1], 256);
    /* "user\n" and "\nab" share the token "\n\n": the range takes it whole. */
    const pd_chat_msg shared[] = {{"system", "\nab"}, {"user", "c"}};
    encode("gemma", t, shared, 2, &ids, &m);
    assert_int_equal(ids.id[m.system_begin], 256);
    assert_int_equal(ids.id[m.system_begin + 1], 'a');
    pd_ids_done(&ids);
    pd_tokenizer_close(t);
}

/* The text with the system's range in [], and | before the last user message. */
static void places(const char *template, const pd_chat_msg *msg, size_t n, const char *want) {
    pd_tokenizer *t = markers_tokenizer(0);
    pd_chat *c = NULL;
    pd_ids ids = {0};
    pd_chat_marks m;
    pd_err err = {0};
    pd_buf got = {0};
    const pd_chat_talk talk = talk_of(msg, n, true);
    if (pd__chat_from_text(&c, "custom", template, strlen(template), &err) != PD_OK ||
        pd_chat_encode(c, t, &talk, &ids, &m, &err) != PD_OK)
        fail_msg("%s: %s", template, err.msg);
    for (size_t i = 0; i <= ids.n; i++) {
        if (i == m.system_begin && i != m.system_end) pd_buf_putc(&got, '[');
        if (i == m.system_end && i != m.system_begin) pd_buf_putc(&got, ']');
        if (i == m.last_user_begin) pd_buf_putc(&got, '|');
        if (i < ids.n) pd_buf_add(&got, pd_token_bytes(t, ids.id[i], true).data, pd_token_bytes(t, ids.id[i], true).len);
    }
    if (strcmp(got.data, want) != 0) fail_msg("%s:\n%s\nwant\n%s", template, got.data, want);
    pd_buf_done(&got);
    pd_chat_close(c);
    pd_ids_done(&ids);
    pd_tokenizer_close(t);
}

static void marks_of_any_template(void **state) {
    (void)state;
    const pd_chat_msg msg[] = {{"system", "S"}, {"user", "U"}, {"assistant", "A"}, {"user", "V"}};
    const pd_chat_msg *talk = msg + 1;
#define LOOP(where) "{% for m in " where " %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
    places("{{ bos_token }}" LOOP("messages"), msg, 4, "<s>[<|system|>S<|end|>]<|user|>U<|end|><|assistant|>A<|end|>|<|user|>V<|end|><|assistant|>");
    places("{{ bos_token }}" LOOP("messages"), talk, 3, "<s><|user|>U<|end|><|assistant|>A<|end|>|<|user|>V<|end|><|assistant|>");
    /* Before the loop: the system's, the template's own, or both. */
    places("{{ bos_token }}<|system|>{{ messages[0].content }}<|end|>" LOOP("messages[1:]"), msg, 2, "<s>[<|system|>S<|end|>]|<|user|>U<|end|><|assistant|>");
    places("{{ bos_token }}<|system|>own<|end|>" LOOP("messages"), talk, 1, "<s>[<|system|>own<|end|>]|<|user|>U<|end|><|assistant|>");
    places("{{ bos_token }}<|system|>own<|end|>" LOOP("messages"), msg, 2, "<s>[<|system|>own<|end|><|system|>S<|end|>]|<|user|>U<|end|><|assistant|>");
    /* Inside the loop, in the user's turn: what nobody gave. */
    places("{% for m in messages %}{% if loop.first and m.role != 'system' %}<|system|>own<|end|>\n{{ '' }}{% endif %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}",
           talk, 1, "[<|system|>own<|end|>\n]|<|user|>U<|end|>");
    /* A turn that first ends the one before. */
    places("{% for m in messages %}{% if not loop.first %}<|end|>{% endif %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|end|>", talk, 3,
           "<|user|>U<|end|><|assistant|>A<|end|>|<|user|>V<|end|>");
    /* In the user's words, first or last. */
    places("{% for m in messages[1:] %}{% if m.role == 'user' %}[INST]{{ messages[0].content + '\n\n' if loop.first }}{{ m.content }}[/INST]{% else %}{{ m.content }}{% endif %}{% endfor %}",
           msg, 4, "[INST][S\n\n]U[/INST]A|[INST]V[/INST]");
    places("{% for m in messages[1:] %}{% if m.role == 'user' %}[INST]{{ messages[0].content + '\n\n' if loop.last }}{{ m.content }}[/INST]{% else %}{{ m.content }}{% endif %}{% endfor %}",
           msg, 4, "[INST]U[/INST]A|[INST][S\n\n]V[/INST]");
    /* A loop over numbers, and none at all. */
    places("{% for i in range(messages | length) %}{% set m = messages[i] %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}", msg, 2,
           "[<|system|>S<|end|>]|<|user|>U<|end|>");
    places("<|user|>{{ messages[0].content }} {{ messages[1].content }}<|end|>", msg, 2, "<|user|>[S ]|U<|end|>");
#undef LOOP
}

static void fields_reach_the_template(void **state) {
    (void)state;
    static const char template[] =
        "{% for m in messages %}{{ m.role }}:{{ m.content }}:{{ m.extra | tojson }};{% endfor %}{{ thinking }}{{ strftime_now is defined }}"
        "{{ add_generation_prompt }}{{ bos_token }}{{ eos_token }}{{ unk_token is defined }}";
    pd_tokenizer *t = markers_tokenizer(0);
    pd_jheap h = {0};
    pd_chat *c = NULL;
    pd_buf out = {0};
    assert_int_equal(pd__chat_from_text(&c, "custom", template, sizeof template - 1, NULL), PD_OK);
    const pd_chat_msg msg[] = {{"user", "not looked at"}};
    pd_jval value = pd_jdict(&h, 2, 1), vars = pd_jdict(&h, 2, PD_JORIGIN_OTHER);
    pd_jdict_set(&h, value, "content", pd_jstr(&h, "words", 5, 1));
    pd_jdict_set(&h, value, "extra", pd_jint(5));
    pd_jdict_set(&h, vars, "thinking", pd_jbool(false));
    pd_jdict_set(&h, vars, "bos_token", pd_jbool(false)); /* the template's own wins */
    const pd_chat_talk talk = {.msg = msg, .n_msg = 1, .value = &value, .vars = &vars, .now = 1};
    assert_int_equal(pd_chat_render(c, t, &talk, &out, NULL), PD_OK);
    assert_string_equal(out.data, "user:words:5;FalseTrueFalse<s></s>False");
    assert_true(pd_chat_uses(c, "thinking"));
    assert_false(pd_chat_uses(c, "tools"));
    assert_string_equal(pd_chat_text(c), template);
    pd_buf_done(&out);
    pd_chat_close(c);
    pd_jheap_done(&h);
    pd_tokenizer_close(t);
}

static void the_last_message_goes_on(void **state) {
    (void)state;
    pd_tokenizer *t = markers_tokenizer(0);
    pd_chat *c = named("llama3");
    const pd_chat_msg msg[] = {{"user", "Hi"}, {"assistant", "Well, "}, {"assistant", "  "}};
    pd_chat_talk talk = {.msg = msg, .n_msg = 2, .continue_final = true};
    pd_buf out = {0};
    pd_err err = {0};
    assert_int_equal(pd_chat_render(c, t, &talk, &out, NULL), PD_OK);
    assert_string_equal(out.data, "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nWell,");
    talk.n_msg = 3; /* trimmed to nothing */
    assert_int_equal(pd_chat_render(c, t, &talk, &out, &err), PD_EINVAL);
    assert_string_equal(err.param, "continue_final_message");
    pd_buf_done(&out);
    pd_chat_close(c);
    pd_tokenizer_close(t);
}

/* ---- real files ---- */

static void real_file(const char *env, const char *want_name, const char *like, pd_chat_origin want_origin) {
    const char *path = getenv(env);
    if (!path || !*path) {
        print_message("SKIPPED: needs %s\n", env);
        skip();
    }
    pd_err err = {0};
    pd_gguf *g = NULL;
    pd_tokenizer *t = NULL;
    pd_chat *c = NULL, *same = named(like);
    pd_chat_origin origin = PD_CHAT_FROM_OPTION;
    if (pd_gguf_open(&g, path, &err) != PD_OK || pd_tokenizer_open(&t, g, &err) != PD_OK ||
        pd_chat_open(&c, g, NULL, &origin, &err) != PD_OK)
        fail_msg("%s", err.msg);
    assert_string_equal(pd_chat_name(c), want_name);
    assert_int_equal(origin, want_origin);
    static const pd_chat_msg talks[][4] = {
        {{"user", "Hello"}},
        {{"system", "\n\nBe brief.\n"}, {"user", "\nnewline first\n\n\n"}, {"assistant", "  indented"}, {"user", "x"}},
        {{"user", "a\n"}, {"assistant", "\n\n\n"}, {"user", "日本語 <b>\t\t</b> 12345"}},
    };
    static const size_t n[] = {1, 4, 3};
    for (size_t i = 0; i < 3; i++) {
        const pd_chat_talk talk = talk_of(talks[i], n[i], true);
        pd_buf out = {0}, again = {0};
        assert_int_equal(pd_chat_render(c, t, &talk, &out, &err), PD_OK);
        assert_int_equal(pd_chat_render(same, t, &talk, &again, &err), PD_OK);
        assert_string_equal(out.data, again.data);
        check_ids(c, t, talks[i], n[i], true, &out);
        pd_buf_done(&out);
        pd_buf_done(&again);
    }
    pd_chat_close(c);
    pd_chat_close(same);
    assert_int_equal(pd_chat_open(&c, g, "llama3", &origin, &err), PD_OK);
    assert_int_equal(origin, PD_CHAT_FROM_OPTION);
    assert_string_equal(pd_chat_name(c), "llama3");
    pd_chat_close(c);
    pd_tokenizer_close(t);
    pd_gguf_close(g);
}

static void smollm2_file(void **state) {
    (void)state;
    real_file("PRESSD_TEST_MODEL", "model", "smollm2", PD_CHAT_FROM_FILE);
}

static void gemma3_file(void **state) {
    (void)state;
    real_file("PRESSD_TEST_MODEL_GEMMA", "gemma", "gemma", PD_CHAT_FROM_ARCH);
}

static void an_option_names_brings_or_points_at_a_template(void **state) {
    (void)state;
    pd_chat *c = NULL;
    pd_chat_origin origin = PD_CHAT_FROM_FILE;
    pd_err err = {0};
    char path[] = "/tmp/pressd-chat-XXXXXX";
    const int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, "{{ messages }}", 14) == 14);
    assert_int_equal(pd_chat_open(&c, NULL, path, &origin, &err), PD_OK);
    assert_string_equal(pd_chat_name(c), "custom");
    assert_string_equal(pd_chat_text(c), "{{ messages }}");
    assert_int_equal(origin, PD_CHAT_FROM_OPTION);
    pd_chat_close(c);
    assert_int_equal(ftruncate(fd, 11), 0);
    assert_int_equal(pd_chat_open(&c, NULL, path, &origin, &err), PD_EINVAL);
    assert_non_null(strstr(err.msg, "line 1"));
    close(fd);
    unlink(path);
    assert_int_equal(pd_chat_open(&c, NULL, "{% if x %}{% endif %}", &origin, NULL), PD_OK);
    pd_chat_close(c);
    err = (pd_err){0};
    assert_int_equal(pd_chat_open(&c, NULL, "klingon", &origin, &err), PD_EINVAL);
    assert_string_equal(err.param, "chat_template");
    assert_non_null(strstr(err.msg, "chatml"));
}

/* A file of these templates (NULL: none) and, with `family`, ChatML's tokens. */
static pd_gguf *file_of(const char *template, const char *tool_use, bool family) {
    pd_buf b = {0};
    char path[] = "/tmp/pressd-chat-XXXXXX";
    pd_gguf *g = NULL;
    gw_head(&b, 3, 0, (uint64_t)(1 + (template != NULL) + (tool_use != NULL)));
    gw_key_array(&b, "tokenizer.ggml.tokens", PD_GGUF_STRING, 2);
    gw_str(&b, family ? "<|im_start|>" : "a");
    gw_str(&b, "<|im_end|>");
    if (template) gw_key_str(&b, "tokenizer.chat_template", template);
    if (tool_use) gw_key_str(&b, "tokenizer.chat_template.tool_use", tool_use);
    while (b.len % 32) pd_buf_putc(&b, '\0');
    const int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, b.data, b.len) == (ssize_t)b.len);
    close(fd);
    pd_err err = {0};
    if (pd_gguf_open(&g, path, &err) != PD_OK) fail_msg("%s", err.msg);
    unlink(path);
    pd_buf_done(&b);
    return g;
}

static void a_template_that_cannot_be_used(void **state) {
    (void)state;
    static const struct {
        const char *template, *tool_use;
        bool family;
        const char *name, *warning; /* NULL: refused; none */
        pd_chat_origin origin;
    } cases[] = {
        {"{{ messages }}", NULL, true, "model", NULL, PD_CHAT_FROM_FILE},
        {"{{ messages }}", "{{ tools }}", true, "model", NULL, PD_CHAT_FROM_FILE},
        {"{{ messages }}", "{% if %}", true, "model", "tool_use", PD_CHAT_FROM_FILE},
        {"{% import 'x' as y %}", NULL, true, "chatml", "import", PD_CHAT_FROM_ARCH},
        {"{{ messages", "{{ tools }}", true, "chatml", "line 1", PD_CHAT_FROM_ARCH},
        {"{{ messages", NULL, false, NULL, NULL, 0},
        {NULL, NULL, true, "chatml", NULL, PD_CHAT_FROM_ARCH},
        {NULL, NULL, false, NULL, NULL, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pd_gguf *g = file_of(cases[i].template, cases[i].tool_use, cases[i].family);
        pd_chat *c = NULL;
        pd_chat_origin origin = PD_CHAT_FROM_OPTION;
        pd_err err = {0};
        const pd_status rc = pd_chat_open(&c, g, NULL, &origin, &err);
        assert_int_equal(rc, cases[i].name ? PD_OK : PD_EFILE);
        if (rc == PD_OK) {
            assert_string_equal(pd_chat_name(c), cases[i].name);
            assert_int_equal(origin, cases[i].origin);
            assert_int_equal(pd_chat_warning(c) != NULL, cases[i].warning != NULL);
            if (cases[i].warning) assert_non_null(strstr(pd_chat_warning(c), cases[i].warning));
            pd_chat_close(c);
        } else {
            assert_non_null(strstr(err.msg, "--chat-template"));
        }
        pd_gguf_close(g);
    }
}

static void names_are_the_table(void **state) {
    (void)state;
    pd_buf all = {0};
    for (size_t i = 0; i < pd__n_chat_builtins; i++) pd_buf_printf(&all, "%s%s", i ? ", " : "", pd__chat_builtins[i].name);
    assert_string_equal(pd_chat_names(), all.data);
    pd_buf_done(&all);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(renders_as_jinja_does),
        cmocka_unit_test(content_never_makes_control_tokens),
        cmocka_unit_test(marks_point_at_the_messages),
        cmocka_unit_test(marks_of_any_template),
        cmocka_unit_test(fields_reach_the_template),
        cmocka_unit_test(the_last_message_goes_on),
        cmocka_unit_test(an_option_names_brings_or_points_at_a_template),
        cmocka_unit_test(a_template_that_cannot_be_used),
        cmocka_unit_test(smollm2_file),
        cmocka_unit_test(gemma3_file),
        cmocka_unit_test(names_are_the_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
