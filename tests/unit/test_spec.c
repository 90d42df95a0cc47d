/* SPDX-License-Identifier: Apache-2.0 */
/* compression/spec: text and trees to press instances, and every refusal. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compression/compress.h"
#include "compression/spec.h"
#include "engine/base/rng.h"
#include "tests/unit/press_data_case.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pd_press_model model = {30, 9, 3, 64, 576, 1536, NULL}; /* data of every kind: main */

/* Parse and resolve; the message on failure is in *err. */
static pd_status read_text(const char *text, pd_press_inst **inst, double *ratio, pd_err *err) {
    pd_arena a = {0};
    pd_spec *spec;
    double r;
    pd_status rc = pd_spec_parse_text(text, "compression.press", &a, &spec, &r, err);
    if (rc == PD_OK) rc = pd_spec_resolve(spec, &model, inst, err);
    if (rc == PD_OK && ratio) *ratio = r;
    pd_arena_done(&a);
    return rc;
}

static void assert_canonical(const char *text, const char *want) {
    pd_err err = {0};
    pd_press_inst *inst = NULL;
    if (read_text(text, &inst, NULL, &err) != PD_OK) fail_msg("%s: %s", text, err.msg);
    pd_buf out = {0};
    pd_press_inst_text(inst, &out);
    assert_string_equal(out.data, want);
    pd_buf_done(&out);
    pd_press_inst_close(inst);
}

static void assert_refused(const char *text, const char *part) {
    pd_err err = {0};
    pd_press_inst *inst = NULL;
    if (read_text(text, &inst, NULL, &err) != PD_EINVAL) fail_msg("'%s' was not refused", text);
    if (!strstr(err.msg, part)) fail_msg("'%s': message '%s' lacks '%s'", text, err.msg, part);
    if (strncmp(err.param, "compression.press", 17) != 0)
        fail_msg("'%s': param '%s'", text, err.param);
    if (strchr(err.msg, '\n')) fail_msg("'%s': more than one line", text);
    assert_null(inst);
}

static void text_becomes_canonical(void **state) {
    (void)state;
    static const char *const t[][2] = {
        {"knorm", "knorm"},
        {"none", "none"},
        {"random:seed=null", "random"},
        {"random:seed=4294967295", "random:seed=4294967295"},
        {"random:seed=0", "random:seed=0"},
        {"streaming_llm:n_sink=4", "streaming_llm"},
        {"streaming_llm:n_sink=1e2", "streaming_llm:n_sink=100"},
        {"streaming_llm:n_sink=8.0", "streaming_llm:n_sink=8"},
        {"streaming_llm:n_sink=-0", "streaming_llm:n_sink=0"},
        {"expected_attention:epsilon=0.010", "expected_attention:epsilon=0.01"},
        {"expected_attention:epsilon=1e-30,n_sink=0,use_vnorm=false,use_covariance=true",
         "expected_attention:n_sink=0,use_vnorm=false,epsilon=1e-30"},
        {"adakv:alpha_safeguard=0.20(snapkv:kernel_size=7,window_size=32)",
         "adakv(snapkv:window_size=32,kernel_size=7)"},
        {"key_rerotation(streaming_llm)", "key_rerotation(streaming_llm)"},
        /* a comma ends the parameters of a press when a name without "=" follows */
        {"prefill_decoding(snapkv:window_size=8,kernel_size=7,decoding(knorm))",
         "prefill_decoding(snapkv:window_size=8,kernel_size=7,decoding(knorm))"},
        {"prefill_decoding(streaming_llm:n_sink=1,cam:merge_budget=2,target_size=9(random:seed=3))",
         "prefill_decoding(streaming_llm:n_sink=1,cam:target_size=9,merge_budget=2(random:seed=3))"},
        {"prefill_decoding(random:seed=1,none)", "prefill_decoding(random:seed=1)"},
        {"expected_attention:epsilon=0.1234567890123456",
         "expected_attention:epsilon=0.1234567890123456"},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        assert_canonical(t[i][0], t[i][1]);
        assert_canonical(t[i][1], t[i][1]); /* and back */
    }
}

static void every_default_round_trips(void **state) {
    (void)state;
    for (size_t i = 0; i < pd_press_count(); i++) {
        const pd_press *p = pd_press_at(i);
        assert_ptr_equal(pd_press_find(p->name), p);
        assert_non_null(strstr(pd_press_names(), p->name));
        char text[256];
        size_t len = (size_t)snprintf(text, sizeof text, "%s", p->name);
        char before = ':';
        for (size_t k = 0; k < p->n_params; k++) {
            const pd_param *q = &p->params[k];
            if (!(q->flags & PD_PARAM_REQUIRED)) continue;
            len += (size_t)snprintf(text + len, sizeof text - len,
                                    q->type == PD_PARAM_FLOAT_LIST ? "%c%s=%g*30" : "%c%s=%g", before,
                                    q->name, q->max);
            before = ',';
        }
        snprintf(text + len, sizeof text - len, p->min_child ? "(knorm)" : "");
        assert_canonical(text, text);
        for (size_t k = 0; k < p->n_params; k++) {
            const pd_param *q = &p->params[k];
            size_t index = 99;
            assert_ptr_equal(pd_press_param(p, q->name, &index), q);
            assert_int_equal(index, k);
            assert_non_null(q->doc);
            assert_true(q->max >= q->min && q->max < 1e300);
            assert_true(isnan(q->def) ? (q->flags & (PD_PARAM_NULLABLE | PD_PARAM_REQUIRED)) != 0
                                      : q->def >= q->min && q->def <= q->max);
        }
    }
    assert_null(pd_press_at(pd_press_count()));
    assert_null(pd_press_find("none"));
    assert_null(pd_press_param(pd_press_find("knorm"), "seed", NULL));
}

/* One number per layer; runs of one value as "v*n". */
static void lists_have_one_number_per_layer(void **state) {
    (void)state;
    static const char *const t[][2] = {
        {"per_layer:compression_ratios=0.5*30(knorm)", "per_layer:compression_ratios=0.5*30(knorm)"},
        {"per_layer:compression_ratios=0;-0;0.5*14;0.50*13;1e0(knorm)",
         "per_layer:compression_ratios=0*2;0.5*27;1(knorm)"},
        {"per_layer:compression_ratios=0.1*1;0.2*028;0.1(snapkv:window_size=8)",
         "per_layer:compression_ratios=0.1;0.2*28;0.1(snapkv:window_size=8)"},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        assert_canonical(t[i][0], t[i][1]);
        assert_canonical(t[i][1], t[i][1]);
    }
    static const pd_press_model one = {1, 9, 3, 64, 576, 1536, NULL};
    pd_spec_param number = {.name = "compression_ratios", .kind = PD_SPEC_NUMBER, .number = 0.25};
    pd_spec child = {.name = "knorm", .path = "p.press"}, *children[] = {&child},
            s = {.name = "per_layer", .path = "p", .param = &number, .n_param = 1, .child = children, .n_child = 1};
    pd_press_inst *inst = NULL;
    pd_err err = {0};
    assert_int_equal(pd_spec_resolve(&s, &one, &inst, &err), PD_OK); /* a list of one is written as a number */
    assert_int_equal(inst->n_list, 1);
    assert_true(inst->list[0][0] == 0.25);
    pd_press_inst_close(inst);

    /* faults name the value and its place */
    inst = NULL;
    double v[30] = {[17] = 1.5};
    pd_spec_param list = {.name = "compression_ratios", .kind = PD_SPEC_LIST, .list = v, .n_list = 30};
    s.param = &list;
    assert_int_equal(pd_spec_resolve(&s, &model, &inst, &err), PD_EINVAL);
    assert_string_equal(err.param, "p.params.compression_ratios[17]");
    assert_non_null(strstr(err.msg, "must be a list of 30 numbers in [0, 1], one per layer, not 1.5 for layer 17"));
    v[17] = (double)NAN;
    err = (pd_err){0};
    assert_int_equal(pd_spec_resolve(&s, &model, &inst, &err), PD_EINVAL);
    assert_string_equal(err.param, "p.params.compression_ratios[17]");
    assert_null(inst);

    assert_refused("per_layer:compression_ratios=0.5*29(knorm)", "not a list of 29");
    assert_refused("per_layer:compression_ratios=0.5*31(knorm)", "not a list of 31");
    assert_refused("per_layer:compression_ratios=0.5(knorm)", "one per layer, not 0.5");
    assert_refused("per_layer:compression_ratios=null(knorm)", "one per layer, not null");
    assert_refused("per_layer:compression_ratios=0*29;-1(knorm)", "not -1 for layer 29");
    assert_refused("per_layer:compression_ratios=0*30,compression_ratios=0*30(knorm)", "given twice");
    assert_refused("per_layer(knorm)", "press 'per_layer' needs 'compression_ratios': a list of 30");
    assert_refused("per_layer:compression_ratios=0*30", "takes 1 press inside it, not 0");
    assert_refused("streaming_llm:n_sink=1;2", "an integer in [0, 65536], not a list of 2");
    assert_refused("random:seed=1*2", "or null, not a list of 2");
    assert_refused("per_layer:compression_ratios=0.5;", "column 34: expected a digit, found its end");
    assert_refused("per_layer:compression_ratios=0.5;;0.5", "column 34: expected a digit, found ';'");
    assert_refused("per_layer:compression_ratios=0.5*", "column 34: expected a digit");
    assert_refused("per_layer:compression_ratios=0.5*-1", "column 34: expected a digit, found '-'");
    assert_refused("per_layer:compression_ratios=0.5*0", "column 34: a number cannot stand 0 times");
    assert_refused("per_layer:compression_ratios=0.5*513", "more than 512 numbers in a list");
    assert_refused("per_layer:compression_ratios=0.5*512;1", "more than 512 numbers in a list");
    assert_refused("per_layer:compression_ratios=0.5*99999999999999999999", "more than 512 numbers in a list");
    assert_refused("per_layer:compression_ratios=0*30;true(knorm)", "column 35: expected a digit, found 't'");
}

/* "child@ratio", where the outer press takes that. */
static void children_carry_ratios(void **state) {
    (void)state;
    static const char *const t[][2] = {
        {"composed(knorm@0.50,keydiff@0)", "composed(knorm@0.5,keydiff@0)"},
        {"composed(snapkv:window_size=8,kernel_size=3@0.3,adakv@0.1)", NULL},
        {"composed(snapkv:kernel_size=3,window_size=8,knorm)", "composed(snapkv:window_size=8,kernel_size=3,knorm)"},
        {"composed(simlayerkv:lazy_threshold=0.9,composed(knorm@0.25,tova@0.1))",
         "composed(simlayerkv:lazy_threshold=0.9,composed(knorm@0.25,tova@0.1))"},
        {"composed(chunkkv:chunk_length=8(snapkv)@0.2,knorm@0.5)", "composed(chunkkv:chunk_length=8(snapkv)@0.2,knorm@0.5)"},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        if (!t[i][1]) {
            assert_refused(t[i][0], "'adakv' takes 1 press inside it, not 0");
            continue;
        }
        assert_canonical(t[i][0], t[i][1]);
        assert_canonical(t[i][1], t[i][1]);
    }
    assert_refused("composed(knorm@1)", "column 16: the ratio must be in [0, 1), not 1");
    assert_refused("composed(knorm@)", "column 16: expected a digit, found ')'");
    assert_refused("composed(knorm@0.5@0.5)", "column 19: expected ',' or ')', found '@'");
    assert_refused("merging(knorm@0.5)", "a press inside 'merging' takes no ratio of its own: the child's");
    assert_refused("adakv(random:seed=1,)", "column 21: expected the name of a press, found ')'");
    assert_refused("adakv(random:seed=1,b)", "takes 1 press inside it, not 2");
    assert_refused("adakv(random:seed=1,b=2)", "press 'random' has no parameter 'b'");
}

static void ratio_at_the_end(void **state) {
    (void)state;
    pd_press_inst *inst;
    double r;
    assert_int_equal(read_text("knorm", &inst, &r, NULL), PD_OK);
    pd_press_inst_close(inst);
    assert_true(isnan(r));
    assert_int_equal(read_text("expected_attention:epsilon=0.5@0.25", &inst, &r, NULL), PD_OK);
    assert_true(r == 0.25);
    assert_true(inst->p[4] == 0.5);
    pd_press_inst_close(inst);
    assert_refused("knorm@1", "[0, 1)");
    assert_refused("knorm@-0.5", "[0, 1)");
    assert_refused("knorm@", "column 7: expected a digit, found its end");
    assert_refused("knorm@0.5@0.5", "column 10: expected its end, found '@'");
    assert_refused("knorm@0x1p-1", "column 8");
}

static void syntax_errors_name_the_column(void **state) {
    (void)state;
    assert_refused("", "column 1: expected the name of a press, found its end");
    assert_refused(" knorm", "column 1: expected the name of a press, found ' '");
    assert_refused("knorm ", "column 6: expected its end, found ' '");
    assert_refused("knorm:", "column 7: expected a parameter's name");
    assert_refused("random:seed", "column 12: expected '=', found its end");
    assert_refused("random:seed=", "column 13: expected a value");
    assert_refused("random:seed=1,", "column 15: expected a parameter's name");
    assert_refused("random:seed=1.", "column 15: expected a digit");
    assert_refused("random:seed=1e", "column 15: expected a digit");
    assert_refused("random:seed=--1", "column 14: expected a digit, found '-'");
    assert_refused("random:seed=1e999", "column 13: the number is too large");
    assert_refused("random(", "column 8: expected the name of a press");
    assert_refused("random(knorm", "column 13: expected ',' or ')'");
    assert_refused("random()", "column 8: expected the name of a press, found ')'");
    assert_refused("random\x01", "column 7: expected its end, found byte 0x01");
    assert_refused("random\xC3\xA9", "found byte 0xC3");
    assert_refused("random:a=1,b=1,c=1,d=1,e=1,f=1,g=1,h=1,i=1,j=1,k=1,l=1,m=1",
                   "more than 12 parameters");
    assert_refused("a(b,b,b,b,b,b,b,b,b)", "more than 8 presses");
    assert_refused("a(b(c(d(e(f(g))))))", "more than 6 presses inside each other");
}

static void values_are_checked(void **state) {
    (void)state;
    assert_refused("snapcat", "unknown press 'snapcat'; known: none, random, knorm");
    assert_refused("KNORM", "unknown press");
    assert_refused("knorm:seed=1", "press 'knorm' has no parameter 'seed'; it has none");
    assert_refused("random:sed=1", "press 'random' has no parameter 'sed'; it has seed");
    assert_refused("random:seed=1,seed=1", "given twice");
    assert_refused("random:seed=-1", "an integer in [0, 4294967295] or null, not -1");
    assert_refused("random:seed=4294967296", "not 4294967296");
    assert_refused("random:seed=0.5", "must be an integer");
    assert_refused("random:seed=true", "not true");
    assert_refused("random:seed=abc", "not \"abc\"");
    assert_refused("streaming_llm:n_sink=null", "an integer in [0, 65536], not null");
    assert_refused("streaming_llm:n_sink=1e308", "not 1e+308");
    assert_refused("expected_attention:epsilon=-1e-9", "a number in [0, 1000], not -1e-09");
    assert_refused("expected_attention:epsilon=nan", "not \"nan\"");
    assert_refused("expected_attention:epsilon=1e308", "a number in [0, 1000], not 1e+308");
    assert_refused("expected_attention:use_vnorm=1", "must be true or false, not 1");
    assert_refused("knorm(knorm)", "press 'knorm' takes no press inside it, not 1");
    assert_refused("snapkv:kernel_size=4", "'kernel_size' of 'snapkv' must be odd, not 4");
    assert_refused("snapkv:window_size=0", "an integer in [1, 1024], not 0");
    assert_refused("adakv", "press 'adakv' takes 1 press inside it, not 0");
    assert_refused("adakv(knorm,knorm)", "not 2");
    assert_refused("adakv(none)", "'none' cannot stand inside 'adakv'");
    assert_refused("adakv(adakv(knorm))", "takes a press that scores tokens; 'adakv' does not");
    assert_refused("adakv(nope)", "unknown press 'nope'");
    assert_refused("adakv:alpha_safeguard=1.01(knorm)", "a number in [0, 1], not 1.01");
    assert_refused("none:a=1", "'none' takes neither");
    assert_refused("none(knorm)", "'none' takes neither");
}

static void long_and_deep_texts(void **state) {
    (void)state;
    enum { N = 10000 };
    char *s = malloc(N + 1);
    memset(s, 'a', N);
    s[N] = '\0';
    assert_refused(s, "longer than 2048 bytes");
    s[2000] = '\0';
    assert_refused(s, "unknown press 'aaaaaaaaaa");
    for (size_t i = 0; i + 1 < 2000; i += 2) memcpy(s + i, "a(", 2);
    assert_refused(s, "more than 6 presses");
    memset(s, '9', 2000);
    memcpy(s, "random:seed=", 12);
    assert_refused(s, "too large");
    free(s);
}

/* Trees as the JSON decoder builds them. */
static void trees_name_the_json_path(void **state) {
    (void)state;
    pd_err err = {0};
    pd_press_inst *inst = NULL;
    pd_spec_param nan_param = {.name = "epsilon", .kind = PD_SPEC_NUMBER, .number = (double)NAN};
    pd_spec s = {.name = "expected_attention",
                 .path = "compression.press",
                 .param = &nan_param,
                 .n_param = 1};
    assert_int_equal(pd_spec_resolve(&s, &model, &inst, &err), PD_EINVAL);
    assert_string_equal(err.param, "compression.press.params.epsilon");

    err = (pd_err){0};
    s.params_path = "compression.params"; /* press given as a bare name */
    assert_int_equal(pd_spec_resolve(&s, &model, &inst, &err), PD_EINVAL);
    assert_string_equal(err.param, "compression.params.epsilon");

    err = (pd_err){0};
    char *name = malloc(10001);
    memset(name, '\n', 10000);
    name[10000] = '\0';
    pd_spec_param long_param = {.name = name, .kind = PD_SPEC_STRING, .string = name};
    s.param = &long_param;
    assert_int_equal(pd_spec_resolve(&s, &model, &inst, &err), PD_EINVAL);
    assert_null(strchr(err.msg, '\n'));
    assert_null(strchr(err.param, '\n'));
    err = (pd_err){0};
    s.name = name;
    assert_int_equal(pd_spec_resolve(&s, &model, &inst, &err), PD_EINVAL);
    assert_null(strchr(err.msg, '\n'));
    free(name);
    assert_null(inst);
}

/* Random texts of the form's own alphabet: each is read or refused, and what is
 * read comes back from its canonical text. */
static void random_texts_are_read_or_refused(void **state) {
    (void)state;
    static const char *const part[] = {"knorm",
                                       "random",
                                       "adakv",
                                       "snapkv",
                                       "streaming_llm",
                                       "key_rerotation",
                                       "per_layer",
                                       "composed",
                                       "compression_ratios",
                                       "0.5*30",
                                       ";",
                                       "*",
                                       "none",
                                       ":",
                                       ",",
                                       "=",
                                       "(",
                                       ")",
                                       "@",
                                       "0.5",
                                       "1e9",
                                       "-",
                                       "null",
                                       "true",
                                       "seed",
                                       "n_sink",
                                       "alpha_safeguard",
                                       "window_size",
                                       "8",
                                       "\xFF",
                                       " ",
                                       "9999999999",
                                       "x"};
    pd_rng rng = {2026};
    size_t n_read = 0;
    for (int round = 0; round < 60000; round++) {
        char text[256] = "";
        size_t len = 0;
        /* half of the rounds start from something valid and are then spoilt */
        static const char *const valid[] = {
            "adakv:alpha_safeguard=0.5(streaming_llm:n_sink=8)",
            "composed(per_layer:compression_ratios=0.5*28;1;0.25(knorm),snapkv:window_size=8@0.5,tova@0)"};
        const char *whole = valid[round / 2 % 2];
        if (round & 1) len = (size_t)snprintf(text, 1 + pd_rng_u64(&rng) % (strlen(whole) + 1), "%s", whole);
        if (len > strlen(text)) len = strlen(text);
        for (size_t k = pd_rng_u64(&rng) % 8; k > 0 && len < 200; k--)
            len += (size_t)snprintf(text + len, sizeof text - len, "%s",
                                    part[pd_rng_u64(&rng) % (sizeof part / sizeof *part)]);
        pd_err err = {0};
        pd_press_inst *inst = NULL;
        const pd_status rc = read_text(text, &inst, NULL, &err);
        if (rc != PD_OK) {
            if (rc != PD_EINVAL || err.msg[0] == '\0' || inst)
                fail_msg("'%s': %d '%s'", text, (int)rc, err.msg);
            continue;
        }
        n_read++;
        pd_buf a = {0}, b = {0};
        pd_press_inst *again = NULL;
        pd_press_inst_text(inst, &a);
        assert_int_equal(read_text(a.data, &again, NULL, &err), PD_OK);
        pd_press_inst_text(again, &b);
        assert_string_equal(a.data, b.data);
        pd_press_inst_close(inst);
        pd_press_inst_close(again);
        pd_buf_done(&a);
        pd_buf_done(&b);
    }
    assert_true(n_read > 500);
}

/* A hundred thousand trees inside each other end at the sixth. */
static void deep_trees_are_refused(void **state) {
    (void)state;
    enum { N = 100000 };
    pd_spec *s = calloc(N, sizeof *s);
    pd_spec **child = calloc(N, sizeof *child);
    for (size_t i = 0; i < N; i++) {
        s[i] = (pd_spec){.name = "key_rerotation", .path = "compression.press"};
        if (i + 1 == N) break;
        child[i] = &s[i + 1];
        s[i].child = &child[i];
        s[i].n_child = 1;
    }
    pd_err err = {0};
    pd_press_inst *inst = NULL;
    assert_int_equal(pd_spec_resolve(s, &model, &inst, &err), PD_EINVAL);
    assert_non_null(strstr(err.msg, "more than 6 presses inside each other"));
    assert_null(inst);
    free(child);
    free(s);
}

static void close_takes_null(void **state) {
    (void)state;
    pd_press_inst_close(NULL);
    pd_compression_close(NULL);
    pd_compression *c = calloc(1, sizeof *c);
    assert_int_equal(read_text("knorm", &c->press, NULL, NULL), PD_OK);
    assert_int_equal(read_text("random", &c->decode, NULL, NULL), PD_OK);
    pd_compression_close(c); /* leaks show under ASan */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_becomes_canonical),
        cmocka_unit_test(every_default_round_trips),
        cmocka_unit_test(lists_have_one_number_per_layer),
        cmocka_unit_test(children_carry_ratios),
        cmocka_unit_test(ratio_at_the_end),
        cmocka_unit_test(syntax_errors_name_the_column),
        cmocka_unit_test(values_are_checked),
        cmocka_unit_test(long_and_deep_texts),
        cmocka_unit_test(trees_name_the_json_path),
        cmocka_unit_test(random_texts_are_read_or_refused),
        cmocka_unit_test(deep_trees_are_refused),
        cmocka_unit_test(close_takes_null),
    };
    pd_press_data *data = pd_case_data(1, &model);
    model.data = data;
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    pd_press_data_close(data);
    return failed;
}
