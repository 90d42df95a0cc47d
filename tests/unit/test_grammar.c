/* SPDX-License-Identifier: Apache-2.0 */
/* Grammars: what they accept, what is refused, masks against token by token, and
 * answers of a tiny model held to one. */
#include "engine/base/clock.h"
#include "engine/run/matchers.h"
#include "tests/unit/engine_case.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static pd_matcher *open_text(const char *gbnf) {
    pd_grammar *g;
    pd_err err = {0};
    pd_matcher *m;
    if (pd_grammar_parse(&g, gbnf, strlen(gbnf), "grammar", &err) != PD_OK) fail_msg("%s: %s", gbnf, err.msg);
    assert_int_equal(pd_matcher_open(&m, g, &err), PD_OK);
    pd_grammar_unref(g);
    return m;
}

static bool matches(const char *gbnf, const char *text) {
    pd_matcher *m = open_text(gbnf);
    const bool ok = pd_matcher_take(m, text, strlen(text)) && pd_matcher_may_end(m);
    pd_matcher_close(m);
    return ok;
}

static void accepts(void **state) {
    (void)state;
    static const struct { const char *gbnf, *yes, *no; } row[] = {
        {"root ::= \"ab\"", "ab", "a"},
        {"root ::= \"a\" | \"b\"", "b", "c"},
        {"root ::= \"a\" |\n  \"b\" # two\n", "b", "ab"},
        {"root ::= (\"a\"\n \"b\")+", "abab", ""},
        {"root ::= \"a\"*", "aaa", "b"},
        {"root ::= \"a\"?", "", "aa"},
        {"root ::= \"a\"{2}", "aa", "aaa"},
        {"root ::= \"a\"{2,}", "aaaa", "a"},
        {"root ::= \"a\"{,2}", "", "aaa"},
        {"root ::= \"a\"{1,3}", "aaa", "aaaa"},
        {"root ::= [a-c]", "b", "d"},
        {"root ::= [^a-c]", "\xC3\xA9", "b"},
        {"root ::= [^a-c]", "\xF0\x9F\x98\x80", "\xC3"},
        {"root ::= [\\u00e0-\\u4e00]", "\xE4\xB8\x80", "\xE4\xB8\x81"},
        {"root ::= [a-]", "-", "b"},
        {"root ::= .", "\xE2\x82\xAC", "ab"},
        {"root ::= .", "\xF4\x8F\xBF\xBF", "\xF4\x90\x80\x80"},
        {"root ::= .", "\xED\x9F\xBF", "\xED\xA0\x80"},
        {"root ::= \"\\n\\x41\\\"\"", "\nA\"", "\n"},
        {"root ::= \"(\" root \")\" | \"x\"", "((x))", "((x)"},
        {"root ::= (\"a\"?)* \"b\"", "aab", "aa"},
        {"root ::= x x\nx ::= \"a\"?", "aa", "aaa"},
        {"root ::= \"a\" | bad\nbad ::= \"b\" bad", "a", "b"},
        {"root ::= \"a\" root | \"\"", "aaaa", "ab"},
    };
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        if (!matches(row[i].gbnf, row[i].yes)) fail_msg("%s refuses '%s'", row[i].gbnf, row[i].yes);
        if (matches(row[i].gbnf, row[i].no)) fail_msg("%s accepts '%s'", row[i].gbnf, row[i].no);
    }
}

static void expect_refused(const char *gbnf, size_t len, const char *words) {
    pd_grammar *g;
    pd_err err = {0};
    const uint64_t t0 = pd_now_ns();
    assert_int_equal(pd_grammar_parse(&g, gbnf, len, "grammar", &err), PD_EINVAL);
    if (!strstr(err.msg, words)) fail_msg("\"%s\" does not say \"%s\"", err.msg, words);
    assert_true(pd_now_ns() - t0 < 2000000000u); /* 50 ms alone; sanitizers and neighbours are slow */
}

static void refuses(void **state) {
    (void)state;
    static const struct { const char *gbnf, *words; } row[] = {
        {"", "no rule named root"},
        {"a ::= \"b\"", "no rule named root"},
        {"root ::= a", "line 1, column 10: a rule of this name is not defined"},
        {"root ::= \"a", "does not end"},
        {"root ::= [a", "does not end"},
        {"root ::= (\"a\"", "')' is expected"},
        {"root ::= [b-a]", "backwards"},
        {"root ::= \"\\q\"", "unknown escape"},
        {"root ::= \"\\ud800\"", "no such code point"},
        {"root ::= \"\x85\"", "broken UTF-8"},
        {"root ::= \"a\"{3,2}", "below its minimum"},
        {"root ::= \"a\"{99999}", "16384 times"},
        {"root ::= root \"a\" | \"b\"", "left recursion"},
        {"root ::= x root\nx ::= \"a\"?", "left recursion"},
        {"root ::= \"a\" root", "no text ever matches"},
        {"root ::= ((\"a\"{1000}){1000}){1000}", "states"},
        {"root ::= ((\"\"{16000}){16000}){16000}", "steps"},
        {"root ::= \"a\"\nroot ::= \"b\"", "is there already"},
        {"root = \"a\"", "'::=' is expected"},
    };
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) expect_refused(row[i].gbnf, strlen(row[i].gbnf), row[i].words);
    pd_buf b = {0};
    pd_buf_init(&b, 4 << 20);
    pd_buf_puts(&b, "root ::= ");
    for (int i = 0; i < 5000; i++) pd_buf_puts(&b, "(");
    expect_refused(b.data, b.len, "deeper than");
    pd_buf_clear(&b);
    for (int i = 0; i < 5000; i++) pd_buf_printf(&b, "r%d ::= \"a\"\n", i);
    expect_refused(b.data, b.len, "4096 rules");
    pd_buf_clear(&b);
    pd_buf_puts(&b, "root ::= \"a\"");
    for (int i = 0; i < 3000; i++) pd_buf_puts(&b, " | \"a\"");
    expect_refused(b.data, b.len, "ways to begin");
    pd_buf_done(&b);
}

static void depth_is_bounded(void **state) {
    (void)state;
    pd_matcher *m = open_text("root ::= \"(\" root \")\" | \"x\"");
    size_t n = 0;
    while (n < 2000 && pd_matcher_take(m, "(", 1)) n++;
    assert_in_range(n, PD_GRAMMAR_DEPTH_MAX - 2, PD_GRAMMAR_DEPTH_MAX + 2);
    assert_true(pd_matcher_take(m, "x", 1));
    for (; n; n--) assert_true(pd_matcher_take(m, ")", 1));
    assert_true(pd_matcher_must_end(m));
    pd_matcher_close(m);
}

/* Far more states than are kept: they are forgotten and built again. */
static void forgets(void **state) {
    (void)state;
    pd_matcher *m = open_text("root ::= \"<\" [a-z]{0,9000} tail\ntail ::= \">\" root tail | \"!\"");
    assert_true(pd_matcher_take(m, "<", 1));
    for (int i = 0; i < 9000; i++) assert_true(pd_matcher_take(m, "k", 1));
    assert_false(pd_matcher_take(m, "k", 1));
    assert_true(pd_matcher_take(m, "><a!!", 5));
    assert_true(pd_matcher_must_end(m));
    pd_matcher_close(m);
}

static void masks_equal_single_tokens(void **state) {
    (void)state;
    static const char *const gbnf[] = {
        "root ::= \"\\\"\" [^\\\"]* \"\\\"\"", "root ::= \"\\\"\" char{2,9} \"\\\"\"\nchar ::= [^\\\"\\x00-\\x1f]",
        "root ::= ([a-z ]{1,5} \"e\"{,4} | [a-t]{7}){5,40}", "root ::= (\"a\"? [a-z ]{12,300} (\"(\" root \")\")? \"!\"){6}", "root ::= [a-z ]+ (\",\" root)?", "root ::= \" \"? (\"the\" | \"them\" | [0-9]{2,4})",
    };
    for (int arch = 0; arch < 2; arch++) {
        pd_engine *e = case_open(arch ? TINY_GEMMA3 : TINY_LLAMA, TINY_F32, &(case_opts){0});
        const pd_tokenizer *tok = pd_engine_tokenizer(e);
        pd_token_tree *tree;
        pd_err err = {0};
        assert_int_equal(pd_token_tree_open(&tree, tok, &err), PD_OK);
        for (size_t k = 0; k < sizeof gbnf / sizeof gbnf[0]; k++) {
            pd_matcher *m = open_text(gbnf[k]);
            size_t allowed = 0;
            for (int step = 0; step < 60; step++) {
                const uint64_t *mask = pd_matcher_mask(m, tree, false);
                int32_t next = -1;
                for (size_t i = 0; i < pd_tokenizer_get_info(tok)->n_vocab; i++) {
                    const pd_str s = pd_token_bytes(tok, (int32_t)i, false);
                    const bool want = s.len && !pd_token_is_eog(tok, (int32_t)i) && pd_matcher_fits(m, s.data, s.len);
                    if ((mask[i >> 6] >> (i & 63) & 1) != want) fail_msg("grammar %zu, step %d, token %zu '%.*s' %s", k, step, i, (int)s.len, s.data, want ? "fits" : "does not fit");
                    allowed += want;
                    if (want && (next < 0 || (i * 7 + (size_t)step) % 5 == 0)) next = (int32_t)i;
                }
                if (next < 0) break;
                const pd_str s = pd_token_bytes(tok, next, false);
                assert_true(pd_matcher_take(m, s.data, s.len));
            }
            assert_true(allowed > 0);
            pd_matcher_close(m);
        }
        pd_token_tree_close(tree);
        pd_engine_close(e);
    }
}

/* One mask for all places of a repetition from which no token reaches its end. */
static void counts_share_masks(void **state) {
    (void)state;
    pd_engine *e = case_open(TINY_LLAMA, TINY_F32, &(case_opts){0});
    pd_token_tree *tree;
    pd_err err = {0};
    assert_int_equal(pd_token_tree_open(&tree, pd_engine_tokenizer(e), &err), PD_OK);
    pd_matcher *m = open_text("root ::= ([a-z]{400} | [A-Z]{0,400}) \"!\"{300,300}");
    assert_true(pd_matcher_take(m, "k", 1));
    const uint64_t *first = pd_matcher_mask(m, tree, false), *other = NULL;
    for (int i = 1; i < 400; i++) {
        assert_true(pd_matcher_take(m, "k", 1));
        const uint64_t *mask = pd_matcher_mask(m, tree, false);
        assert_true(i > 300 || mask == first);
        if (mask != first) other = mask;
    }
    assert_non_null(other); /* "z!" fits at the end and not before */
    pd_matcher_close(m);
    pd_token_tree_close(tree);
    pd_engine_close(e);
}

static pd_matcher *taken(pd_matchers *k, const char *gbnf) {
    pd_grammar *g;
    pd_matcher *m;
    pd_err err = {0};
    if (pd_grammar_parse(&g, gbnf, strlen(gbnf), "grammar", &err) != PD_OK) fail_msg("%s: %s", gbnf, err.msg);
    assert_int_equal(pd_matchers_take(k, g, &m, &err), PD_OK);
    pd_grammar_unref(g);
    return m;
}

/* The next answer of an equal grammar gets the last one's matcher, at the beginning; no other does, and only
 * the latest are kept. */
static void matchers_go_round(void **state) {
    (void)state;
    pd_matchers k = {0};
    pd_matcher *m = taken(&k, "root ::= \"ab\" [0-9]{2}");
    assert_true(pd_matcher_take(m, "ab1", 3) && !pd_matcher_may_end(m));
    pd_matchers_give(&k, m);
    pd_matcher *other = taken(&k, "root ::= \"ab\" [0-8]{2}");
    assert_ptr_not_equal(other, m);
    assert_false(pd_matcher_fits(other, "ab9", 3));
    pd_matcher *again = taken(&k, "root ::= \"ab\" [0-9]{2} # anew\n"); /* the same automaton */
    pd_matcher *both = taken(&k, "root ::= \"ab\" [0-9]{2}"); /* which is in use */
    assert_ptr_equal(again, m);
    assert_ptr_not_equal(both, m);
    assert_false(pd_matcher_fits(again, "1", 1));
    assert_true(pd_matcher_take(again, "ab12", 4) && pd_matcher_must_end(again));
    pd_matchers_give(&k, again);
    pd_matchers_give(&k, both);
    pd_matchers_give(&k, other);
    char text[32];
    for (int i = 0; i < PD_MATCHERS_COUNT + 3; i++) {
        snprintf(text, sizeof text, "root ::= \"x%d\"", i);
        pd_matchers_give(&k, taken(&k, text));
        assert_true(k.n <= PD_MATCHERS_COUNT && pd_matchers_bytes(&k) <= PD_MATCHERS_BYTES);
    }
    assert_int_equal(k.n, PD_MATCHERS_COUNT);
    pd_matcher *last = k.m[k.n - 1];
    m = taken(&k, text);
    assert_ptr_equal(m, last);
    pd_matchers_give(&k, m);
    pd_matchers_done(&k);
    assert_int_equal(pd_matchers_bytes(&k), 0);
}

static void answers_match(void **state) {
    (void)state;
    static const char gbnf[] = "root ::= \"{\" [a-z]{1,8} (\":\" [0-9]{1,3}){2} \"}\"";
    for (int arch = 0; arch < 2; arch++) {
        pd_engine *e = case_open(arch ? TINY_GEMMA3 : TINY_LLAMA, TINY_F32, &(case_opts){0});
        int32_t prompt[8];
        case_prompt(prompt, 8, 3);
        pd_grammar *g;
        pd_err err = {0};
        assert_int_equal(pd_grammar_parse(&g, gbnf, strlen(gbnf), "grammar", &err), PD_OK);
        for (uint64_t seed = 0; seed < 30; seed++) {
            ask a = {.tokens = prompt, .n = 8, .max_tokens = 40, .grammar = g, .seed = seed, .temperature = seed ? 1.5f : 0.0f,
                     .keep_eos = seed % 2, .logprobs = 2};
            answer *w = case_run(e, &a);
            pd_buf_putc(&w->text, '\0');
            if (!matches(gbnf, w->text.data)) fail_msg("'%s' does not match", w->text.data);
            assert_int_equal(w->r->finish, PD_FINISH_STOP);
            case_drop(w);
            a.max_tokens = 2;
            w = case_run(e, &a);
            assert_int_equal(w->r->finish, PD_FINISH_LENGTH);
            case_drop(w);
        }
        pd_grammar_unref(g);
        case_expect_idle(e);
        pd_engine_close(e);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accepts),          cmocka_unit_test(refuses),
        cmocka_unit_test(depth_is_bounded), cmocka_unit_test(forgets),
        cmocka_unit_test(masks_equal_single_tokens), cmocka_unit_test(counts_share_masks),
        cmocka_unit_test(matchers_go_round), cmocka_unit_test(answers_match),
    };
    const int rc = cmocka_run_group_tests(tests, NULL, NULL);
    case_cleanup();
    return rc;
}
