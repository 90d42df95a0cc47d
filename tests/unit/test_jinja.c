/* SPDX-License-Identifier: Apache-2.0 */
/* The interpreter against Jinja2 (tests/golden/jinja.py), what its output knows of its
 * sources, and its bounds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/buf.h"
#include "engine/jinja/jinja.h"
#include "server/json_value.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pd_status render(const char *text, pd_jval vars, int64_t now, pd_jheap *h, pd_jout *out, pd_err *err) {
    pd_jinja *t = NULL;
    PD_TRY(pd_jinja_compile(&t, text, strlen(text), err));
    const pd_status rc = pd_jinja_render(t, h, vars, now, out, err);
    pd_jinja_close(t);
    return rc;
}

static void writes_as_jinja2_does(void **state) {
    (void)state;
    json_error_t why;
    json_t *golden = json_load_file(PD_SOURCE_DIR "/tests/golden/data/jinja.json", 0, &why);
    if (!golden) fail_msg("tests/golden/data/jinja.json: %s", why.text);
    setenv("TZ", "UTC", 1);
    pd_jheap given = {0};
    const pd_jval vars = pd_json_value(&given, json_object_get(golden, "vars"), PD_JORIGIN_OTHER);
    const int64_t now = json_integer_value(json_object_get(golden, "now"));
    size_t i;
    json_t *one;
    json_array_foreach(json_object_get(golden, "cases"), i, one) {
        const char *text = json_string_value(json_object_get(one, "template"));
        const char *want = json_string_value(json_object_get(one, "text"));
        const char *refused = json_string_value(json_object_get(one, "refused"));
        pd_jheap h = {0};
        pd_jout out = {0};
        pd_err err = {0};
        const pd_status rc = render(text, vars, now, &h, &out, &err);
        if (want) {
            if (rc != PD_OK) fail_msg("'%s': %s", text, err.msg);
            if (strcmp(out.text, want) != 0) fail_msg("'%s':\n'%s'\nwant\n'%s'", text, out.text, want);
        } else {
            if (rc != PD_EINVAL) fail_msg("'%s' is not refused", text);
            if (refused && !strstr(err.msg, refused)) fail_msg("'%s': %s\nwant\n%s", text, err.msg, refused);
        }
        pd_jheap_done(&h);
    }
    print_message("%zu templates as Jinja2 renders them\n", i);
    assert_true(i > 500);
    pd_jheap_done(&given);
    json_decref(golden);
}

/* ---- sources ---- */

static pd_jval text(pd_jheap *h, const char *s, uint16_t origin) {
    return pd_jstr(h, s, strlen(s), origin);
}

static pd_jval two_messages(pd_jheap *h) {
    static const char *const role[] = {"system", "user"}, *const content[] = {" rules\n", "a <b> \"c\" é"};
    pd_jval list = pd_jlist(h, 2, 0), vars = pd_jdict(h, 2, 0);
    for (uint16_t i = 0; i < 2; i++) {
        pd_jval m = pd_jdict(h, 2, (uint16_t)(i + 1));
        pd_jdict_set(h, m, "role", text(h, role[i], 0));
        pd_jdict_set(h, m, "content", text(h, content[i], (uint16_t)(i + 1)));
        pd_jlist_add(h, list, m);
    }
    pd_jdict_set(h, vars, "messages", list);
    pd_jdict_set(h, vars, "extra", text(h, "extra", PD_JORIGIN_OTHER));
    return vars;
}

/* The output with client text in brackets: "[1:rules]". */
static void shows(const char *template, const char *want) {
    pd_jheap given = {0}, h = {0};
    pd_jout out = {0};
    pd_err err = {0};
    char got[1000];
    size_t k = 0, at = 0;
    if (render(template, two_messages(&given), 0, &h, &out, &err) != PD_OK) fail_msg("%s: %s", template, err.msg);
    for (size_t i = 0; i < out.n_client; i++) {
        const pd_jspan *s = &out.client[i];
        assert_true(s->begin >= at && s->begin < s->end && s->end <= out.len);
        k += (size_t)snprintf(got + k, sizeof got - k, "%.*s[%u:%.*s]", (int)(s->begin - at), out.text + at, s->origin,
                              (int)(s->end - s->begin), out.text + s->begin);
        at = s->end;
    }
    snprintf(got + k, sizeof got - k, "%s", out.text + at);
    if (strcmp(got, want) != 0) fail_msg("%s:\n%s\nwant\n%s", template, got, want);
    pd_jheap_done(&h);
    pd_jheap_done(&given);
}

static void bytes_know_their_source(void **state) {
    (void)state;
    shows("{{ messages[0].content }}", "[1: rules\n]");
    shows("<{{ messages[0].content | trim }}>", "<[1:rules]>");
    shows("{{ '<|' + messages[0].role + '|>' + messages[1].content + '<e>' }}", "<|system|>[2:a <b> \"c\" é]<e>");
    shows("{{ messages[0].content.strip() ~ '/' ~ messages[1].content[2:5] ~ extra }}", "[1:rules]/[2:<b>][65535:extra]");
    shows("{{ (messages[1].content | upper).split('<')[1] | lower }}", "[2:b> \"c\" é]");
    shows("{{ messages[1].content.replace('b', '<x>') }}", "[2:a <]<x>[2:> \"c\" é]");
    shows("{{ messages[0].content | trim | tojson }}", "[1:\"rules\"]");
    shows("{{ messages[1].content | tojson }}", "[2:\"a <b> \\\"c\\\" é\"]");
    shows("{{ [messages[0].content] }}", "[[1:' rules\\n']]");
    shows("{{ '<%s>' % extra }}{{ '<{}>'.format(extra) }}", "<[65535:extra]><[65535:extra]>");
    shows("{{ messages | map(attribute='content') | join('|') }}", "[1: rules\n]|[2:a <b> \"c\" é]");
    shows("{% set x %}<{{ extra }}>{% endset %}{{ x | replace('x', 'y') }}", "<[65535:e]y[65535:tra]>");
    shows("{% macro f(c) %}<{{ c | trim }}>{% endmacro %}{{ f(messages[0].content) + 'z' }}", "<[1:rules]>z");
    shows("{% for c in messages[1].content %}{{ c if loop.first }}{% endfor %}", "[2:a]");
    shows("{{ messages[1].content | reverse }}", "[2:é \"c\" >b< a]");
    shows("{{ 'a' + 'b' }}{{ 'x' in messages[1].content }}", "abFalse");
    shows("{{ extra | indent(2, true) }}", "  [65535:extra]");
    shows("{{ (extra | list)[::-1] | join }}", "[65535:artxe]");
}

static void one_letter_stays_one(void **state) {
    (void)state;
    shows("{{ 'stra\xC3\x9F' | upper }}", "STRA\xE1\xBA\x9E"); /* Python: STRASS */
    shows("{{ 'stra\xC3\x9F' | capitalize }}", "Stra\xC3\x9F");
}

/* The output with what turns wrote in brackets. */
static void turns(const char *template, const char *want) {
    pd_jheap given = {0}, h = {0};
    pd_jout out = {0};
    pd_err err = {0};
    char got[1000];
    size_t k = 0, at = 0;
    if (render(template, two_messages(&given), 0, &h, &out, &err) != PD_OK) fail_msg("%s: %s", template, err.msg);
    for (size_t i = 0; i < out.n_turn; i++) {
        const pd_jspan *s = &out.turn[i];
        assert_true(s->begin >= at && s->begin < s->end && s->end <= out.len);
        k += (size_t)snprintf(got + k, sizeof got - k, "%.*s[%u:%.*s]", (int)(s->begin - at), out.text + at, s->origin,
                              (int)(s->end - s->begin), out.text + s->begin);
        at = s->end;
    }
    snprintf(got + k, sizeof got - k, "%s", out.text + at);
    if (strcmp(got, want) != 0) fail_msg("%s:\n%s\nwant\n%s", template, got, want);
    pd_jheap_done(&h);
    pd_jheap_done(&given);
}

static void loops_over_messages_are_turns(void **state) {
    (void)state;
    turns("<s>{% for m in messages %}<{{ m.role }}>{{ m.content | length }};{% endfor %}<a>", "<s>[1:<system>7;][2:<user>11;]<a>");
    turns("{% for m in messages %}{% for x in [1, 2] %}{{ x }}{% endfor %}{% endfor %}", "[1:12][2:12]");
    turns("{% for i in range(2) %}-{% set m = messages[i] %}{{ m.role }}{% endfor %}.", "-[1:system]-[2:user].");
    turns("{% macro f(m) %}{{ m.role }}{% endmacro %}{% for m in messages[1:] %}{{ f(m) }}{% endfor %}", "[2:user]");
    turns("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}u{% endfor %}e", "[2:u]e");
    turns("{{ messages[0].content | trim }}{% for m in messages | selectattr('role', 'equalto', 'user') %}{{ m.role }}{% endfor %}",
          "rules[2:user]");
    turns("{% for a in messages %}{% for b in messages %}{{ b.role[0] }}{% endfor %}|{% endfor %}", "[1:s][2:u][1:|s][2:u|]");
}

/* A text built up piece by piece stays cheap, and the pieces stay what they were. */
static void texts_grow_in_place(void **state) {
    (void)state;
    shows("{% set ns = namespace(x='.' * 2000, y=none) %}{% set ns.y = ns.x + 'b' %}{% set z = ns.x + extra %}{% set ns.x = ns.x + (ns.x + 'c') + 'd' %}"
          "{{ ns.y[1999:] }}|{{ z[1999:] }}|{{ ns.x[1999:2001] }}|{{ ns.x[3999:] }}|{{ (ns.x ~ (ns.x ~ extra) ~ 1)[4000:4003] }}|{{ ns.x | length }}|{{ ns.y | length }}|{{ z | length }}",
          ".b|.[65535:extra]|..|.cd|cd.|4002|2001|2005");
    pd_jheap given = {0}, h = {.limit = (size_t)16 << 20};
    pd_jout out = {0};
    pd_err err = {0};
    if (render("{% set ns = namespace(x='') %}{% for i in range(20000) %}{% set ns.x = ns.x + 'client' + extra %}{% set ns.x = ns.x ~ i %}{% endfor %}{{ ns.x | length }}",
               two_messages(&given), 0, &h, &out, &err) != PD_OK)
        fail_msg("%s", err.msg);
    assert_string_equal(out.text, "308890");
    pd_jheap_done(&h);
    pd_jheap_done(&given);
}

/* ---- bounds ---- */

static void fails(const char *template, const char *because) {
    pd_jheap given = {0}, h = {.limit = (size_t)32 << 20};
    pd_jout out = {0};
    pd_err err = {0};
    assert_int_equal(render(template, two_messages(&given), 0, &h, &out, &err), PD_EINVAL);
    if (!strstr(err.msg, because)) fail_msg("%.60s: %s", template, err.msg);
    pd_jheap_done(&h);
    pd_jheap_done(&given);
}

static char *repeated(const char *begin, const char *s, size_t n, const char *end) {
    pd_buf b = {0};
    pd_buf_puts(&b, begin);
    for (size_t i = 0; i < n; i++) pd_buf_puts(&b, s);
    pd_buf_puts(&b, end);
    return pd_buf_take(&b);
}

static void hostile_templates_end(void **state) {
    (void)state;
    fails("{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}", "steps");
    fails("{% for a in range(99999) %}{% for b in range(99999) %}{{ a ~ b }}{% endfor %}{% endfor %}", "memory");
    fails("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "levels deep");
    fails("{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}", "memory");
    fails("{{ 'a' * 9999999999 }}", "steps");
    fails("{{ ('a' * 1000000) | indent(9999999) }}", "");
    fails("{{ ('a\\n' * 10000) | indent(9999999) }}", "memory");
    fails("{{ [0] * 999999999999 }}", "steps");
    fails("{{ 9223372036854775807 + 1 }}", "64 bits");
    fails("{{ 2 ** 64 }}", "64 bits");
    fails("{{ -9223372036854775807 - 2 }}", "64 bits");
    fails("{{ (-9223372036854775807 - 1) // -1 }}", "64 bits");
    fails("{{ 99999999999999999999 }}", "64 bits");
    fails("{% set ns = namespace(x=[]) %}{% for i in range(300) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}", "too deep");
    fails("{% set ns = namespace(x=[]) %}{% for i in range(300) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}", "too deep");
    /* Lists that share their parts: 2^60 ways through each. */
#define SHARED "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}"
    fails(SHARED "{{ ns.a == ns.b }}", "steps");
    fails(SHARED "{{ ns.a < ns.b }}", "steps");
    fails(SHARED "{{ ns.a in [ns.b] }}", "steps");
    fails(SHARED "{{ [ns.a, ns.b] | unique | list | length }}", "steps");
    fails(SHARED "{{ ns.a }}", "memory");
    fails(SHARED "{{ ns.a | tojson }}", "");
    /* Long strings, each comparison of which goes to the end. */
    fails("{% set s = 'x' * 999999 %}{% set l = [s] * 9999 %}{% set t = s[1:] ~ 'y' %}{% for i in range(999) %}{% if t in l %}{% endif %}{% endfor %}", "steps");
    fails("{{ messages | map('tojson') | join }}{{ ''.join(['a' * 999999] * 999) }}", "memory");
    fails("\n\n{% for m in messages %}\n{{ m.nothing.more }}{% endfor %}", "line 4");
    fails("\n{{ raise_exception('because') }}", "because");
    fails("a\n\n{% if %}", "line 3");
    fails("{% if t %}{% else %}", "{% endif %} is missing");
    fails("{% for x in s %}", "{% endfor %} is missing");
    fails("{{ strftime_now('%Y') }}", "'strftime_now' is undefined");
    static const struct {
        const char *part, *end;
    } deep[] = {{"(", ""}, {"[", "]"}, {"{% if t %}", ""}, {"{{ -", ""}, {"not ", "x }}"}, {"{'a':", ""}, {"x if y else ", "z }}"}, {"x[", ""}, {"x(", ""}};
    for (size_t i = 0; i < sizeof deep / sizeof *deep; i++) {
        const bool tag = deep[i].part[0] == '{' && deep[i].part[1] != '\'';
        char *t = repeated(tag ? "" : "{{ ", deep[i].part, 5000, deep[i].end);
        pd_jinja *j = NULL;
        pd_err err = {0};
        assert_int_equal(pd_jinja_compile(&j, t, strlen(t), &err), PD_EINVAL);
        free(t);
    }
    /* Looking a name up costs what there is to look through. */
    pd_buf many = {0};
    for (int i = 0; i < 9000; i++) pd_buf_printf(&many, "{%% set a%d = 1 %%}", i);
    pd_buf_puts(&many, "{% set r = range(9999) %}{% for i in r %}{{ a0 }}{{ a0 }}{{ a0 }}{{ a0 }}{% endfor %}");
    fails(many.data, "steps");
    for (int i = 9000; i < PD_JINJA_NAMES_MAX; i++) pd_buf_printf(&many, "{%% set a%d = 1 %%}", i);
    fails(many.data, "too many names");
    pd_buf_done(&many);
    /* Long is not deep. */
    static const char *const row[] = {"{{ 1 }}", "{{ x.a ~ 'b' }}", "{% if x %}{% endif %}", "{# #}", "{% set x = 1 %}"};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        char *s = repeated("", row[i], 5000, "");
        pd_jinja *j = NULL;
        assert_int_equal(pd_jinja_compile(&j, s, strlen(s), NULL), PD_OK);
        pd_jinja_close(j);
        free(s);
    }
    char *whole = repeated("{{ ", "1 + ", 5000, "1 }}");
    pd_jheap given = {0}, h = {0};
    pd_jout out = {0};
    assert_int_equal(render(whole, two_messages(&given), 0, &h, &out, NULL), PD_OK);
    assert_string_equal(out.text, "5001");
    pd_jheap_done(&h);
    pd_jheap_done(&given);
    free(whole);
}

static void bad_text_is_refused(void **state) {
    (void)state;
    pd_jinja *t = NULL;
    assert_int_equal(pd_jinja_compile(&t, "a\xff", 2, NULL), PD_EINVAL);
    assert_int_equal(pd_jinja_compile(&t, "a\0b", 3, NULL), PD_EINVAL);
    char *big = calloc(1, PD_JINJA_TEXT_MAX + 2);
    memset(big, 'a', PD_JINJA_TEXT_MAX + 1);
    assert_int_equal(pd_jinja_compile(&t, big, PD_JINJA_TEXT_MAX + 1, NULL), PD_EINVAL);
    assert_int_equal(pd_jinja_compile(&t, big, PD_JINJA_TEXT_MAX, NULL), PD_OK);
    pd_jinja_close(t);
    free(big);
    assert_int_equal(pd_jinja_compile(&t, "{% if tools is defined %}{{ m.documents }}{% endif %}", 54, NULL), PD_EINVAL); /* its NUL */
    assert_int_equal(pd_jinja_compile(&t, "{% if tools is defined %}{{ m.documents }}{% endif %}", 53, NULL), PD_OK);
    assert_true(pd_jinja_uses(t, "tools"));
    assert_false(pd_jinja_uses(t, "documents")); /* an attribute */
    assert_false(pd_jinja_uses(t, "messages"));
    pd_jinja_close(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_as_jinja2_does),    cmocka_unit_test(bytes_know_their_source),
        cmocka_unit_test(loops_over_messages_are_turns), cmocka_unit_test(texts_grow_in_place),
        cmocka_unit_test(hostile_templates_end), cmocka_unit_test(one_letter_stays_one),
        cmocka_unit_test(bad_text_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
