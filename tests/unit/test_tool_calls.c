/* SPDX-License-Identifier: Apache-2.0 */
/* Tools decoded, and tool calls read from a model's text, whole and in any pieces. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "server/structured.h"
#include "server/tool_calls.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char weather[] = "weather", now[] = "now", *names[] = {weather, now};

static pd_tools tools_of(pd_tool_format f) {
    return (pd_tools){.parallel = true, .format = f, .name = names, .n = 2};
}

/* Content and calls in one line: "content|name(arguments)|name(arguments)". */
static void show(json_t *content, json_t *calls, pd_buf *dst) {
    size_t i;
    json_t *call;
    pd_buf_puts(dst, json_is_string(content) ? json_string_value(content) : "");
    json_array_foreach(calls, i, call) {
        const json_t *f = json_object_get(call, "function");
        pd_buf_printf(dst, "|%s(%s)", json_string_value(json_object_get(f, "name")),
                      json_string_value(json_object_get(f, "arguments")));
    }
}

static json_t *object(const pd_buf *members) {
    pd_buf text = {0};
    json_error_t why;
    pd_buf_printf(&text, "{%s}", members->len ? members->data : "");
    json_t *j = json_loads(text.data, 0, &why);
    if (!j) fail_msg("%s: %s", text.data, why.text);
    pd_buf_done(&text);
    return j;
}

/* The engine gives whole code points. */
static size_t piece_len(const char *s, size_t piece) {
    size_t n = 0;
    while (s[n] && (n < piece || ((unsigned char)s[n] & 0xC0) == 0x80)) n++;
    return n;
}

static void whole(const pd_tools *t, const char *text, size_t piece, pd_buf *dst) {
    pd_tool_reader *r = pd_tool_reader_open(t);
    pd_buf out = {0};
    for (size_t n; (n = piece_len(text, piece)) > 0; text += n) pd_tool_reader_add(r, text, n);
    pd_tool_reader_end(r);
    assert_false(pd_tool_reader_failed(r));
    pd_tool_reader_message(r, &out);
    json_t *j = object(&out);
    show(json_object_get(j, "content"), json_object_get(j, "tool_calls"), dst);
    assert_int_equal(json_array_size(json_object_get(j, "tool_calls")), pd_tool_reader_calls(r));
    if (pd_tool_reader_calls(r) && dst->data[0] == '|') assert_true(json_is_null(json_object_get(j, "content")));
    json_decref(j);
    pd_buf_done(&out);
    pd_tool_reader_close(r);
}

/* What a client puts together from the deltas. */
static void streamed(const pd_tools *t, const char *text, size_t piece, pd_buf *dst) {
    pd_tool_reader *r = pd_tool_reader_open(t);
    pd_buf name[8] = {{0}}, arguments[8] = {{0}};
    size_t n_call = 0;
    bool more = true;
    while (more) {
        const size_t n = piece_len(text, piece);
        pd_buf out = {0};
        more = n > 0;
        if (more) pd_tool_reader_add(r, text, n);
        else pd_tool_reader_end(r);
        text += n;
        const bool ready = pd_tool_reader_ready(r);
        assert_int_equal(pd_tool_reader_delta(r, &out), ready);
        json_t *j = object(&out), *one;
        size_t k;
        if (json_object_get(j, "content")) pd_buf_puts(dst, json_string_value(json_object_get(j, "content")));
        json_array_foreach(json_object_get(j, "tool_calls"), k, one) {
            const size_t at = (size_t)json_integer_value(json_object_get(one, "index"));
            const json_t *f = json_object_get(one, "function");
            assert_true(at < 8 && at <= n_call);
            if (json_object_get(one, "id")) {
                assert_int_equal(at, n_call);
                n_call++;
                pd_buf_puts(&name[at], json_string_value(json_object_get(f, "name")));
                assert_string_equal(json_string_value(json_object_get(one, "type")), "function");
            }
            pd_buf_puts(&arguments[at], json_string_value(json_object_get(f, "arguments")));
        }
        json_decref(j);
        pd_buf_done(&out);
    }
    assert_int_equal(n_call, pd_tool_reader_calls(r));
    for (size_t i = 0; i < n_call; i++) {
        pd_buf_printf(dst, "|%s(%s)", name[i].data, arguments[i].data ? arguments[i].data : "");
        pd_buf_done(&name[i]);
        pd_buf_done(&arguments[i]);
    }
    pd_tool_reader_close(r);
}

/* The pieces: content as it is, each call as "|name(arguments)" where it was said. */
static void taken(const pd_tools *t, const char *text, size_t piece, pd_buf *dst) {
    pd_tool_reader *r = pd_tool_reader_open(t);
    bool more = true, in_call = false;
    while (more) {
        const size_t n = piece_len(text, piece);
        pd_tool_piece p;
        more = n > 0;
        if (more) pd_tool_reader_add(r, text, n);
        else pd_tool_reader_end(r);
        text += n;
        while (pd_tool_reader_take(r, &p)) {
            assert_true(p.len || p.first);
            if (in_call && (!p.call || p.first)) pd_buf_putc(dst, ')');
            assert_true(!p.call || p.call == pd_tool_reader_call(r, p.index));
            if (p.call && p.first) pd_buf_printf(dst, "|%s(", p.call->name.data);
            assert_true(p.first || !p.call || in_call);
            pd_buf_add(dst, p.text, p.len);
            in_call = p.call != NULL;
        }
    }
    if (in_call) pd_buf_putc(dst, ')');
    pd_tool_reader_close(r);
}

static void is(const char *text, size_t piece, pd_buf *got, const char *want) {
    if (strcmp(got->data ? got->data : "", want) != 0)
        fail_msg("'%s' in pieces of %zu:\n'%s'\nwant\n'%s'", text, piece, got->data, want);
    pd_buf_done(got);
}

static void reads(const pd_tools *t, const char *text, const char *want) {
    for (size_t piece = 1; piece <= strlen(text) + 1; piece = piece < 9 ? piece + 1 : 2 * piece) {
        pd_buf got = {0};
        whole(t, text, piece, &got);
        is(text, piece, &got, want);
        streamed(t, text, piece, &got);
        is(text, piece, &got, want);
    }
}

static void hermes(void **state) {
    (void)state;
    const pd_tools t = tools_of(PD_TOOL_HERMES);
    reads(&t, "Just words.", "Just words.");
    reads(&t, " padded \n", " padded \n");
    reads(&t, "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>", "|weather({\"city\": \"Bern\"})");
    reads(&t, "I look.\n\n<tool_call>{\"name\":\"now\",\"arguments\":{}}</tool_call>\n", "I look.|now({})");
    reads(&t, "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"a\": [1, {\"b\": \"}]\\\"\"}]}}\n</tool_call>",
          "|now({})|weather({\"a\": [1, {\"b\": \"}]\\\"\"}]})");
    reads(&t, "<tool_call>{\"arguments\": {\"x\": 1}, \"name\": \"now\"}</tool_call>", "|now({\"x\": 1})");
    reads(&t, "<tool_call>{\"name\": \"now\"}</tool_call>", "|now({})");
    reads(&t, "<tool_call>{\"name\": \"now\", \"arguments\": null}</tool_call>", "|now({})");
    reads(&t, "<tool_call>{\"id\": 5, \"name\": \"other\", \"arguments\": \"{\\\"a\\\": \\\"\\u00e9\\ud83d\\ude00\\n\\\"}\"}</tool_call>", "|other({\"a\": \"\xc3\xa9\xf0\x9f\x98\x80\n\"})");
    /* Escapes that stand for no character: of \\u that breaks off, and of half a pair. */
    reads(&t, "<tool_call>{\"name\": \"now\", \"arguments\": \"\\u0\xd0\x9a \\u12\"}</tool_call>", "|now(\xef\xbf\xbd\xd0\x9a \xef\xbf\xbd)");
    reads(&t, "<tool_call>{\"name\": \"now\", \"arguments\": \"\\ud83d \\ude00\\ud83d\\ud83d\\ude00\\ud83d\\n\\ud83d\"}</tool_call>",
          "|now(\xef\xbf\xbd \xef\xbf\xbd\xef\xbf\xbd\xf0\x9f\x98\x80\xef\xbf\xbd\n\xef\xbf\xbd)");
    reads(&t, "a < b and <tool_calling> and <tool_cal", "a < b and <tool_calling> and <tool_cal");
    reads(&t, "<tool_call>\nnot json\n</tool_call> x", "<tool_call>\nnot json\n</tool_call> x");
    reads(&t, "<tool_call>{\"arguments\": {}}</tool_call>", "<tool_call>{\"arguments\": {}}</tool_call>");
    reads(&t, "<tool_call>{\"name\": 5}</tool_call>", "<tool_call>{\"name\": 5}</tool_call>");
    reads(&t, "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>Done.", "Done.|now({})");
    reads(&t, "{\"name\": \"now\", \"arguments\": {}}", "{\"name\": \"now\", \"arguments\": {}}"); /* no marker */
    reads(&t, "Ein Wort \xe2\x80\x94 \xe6\x97\xa5<tool_call>{\"name\": \"now\", \"arguments\": {\"k\": \"\xe6\x97\xa5\"}}</tool_call>", "Ein Wort \xe2\x80\x94 \xe6\x97\xa5|now({\"k\": \"\xe6\x97\xa5\"})");
    reads(&t, "<tool_call>{\"name\": \"now\", \"arguments\": {}, \"name\": \"x\", \"arguments\": {\"b\": 1}}</tool_call>", "|now({})");
    /* Cut off. */
    reads(&t, "<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Be", "|weather({\"city\": \"Be)");
    reads(&t, "<tool_call>{\"name\": \"wea", "<tool_call>{\"name\": \"wea");
    reads(&t, "x <tool_call>", "x <tool_call>");
    reads(&t, "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool", "|now({})");
    reads(&t, "<tool_call>{\"name\": \"now\", \"a\"\xc3\xa9 x", "x|now()"); /* a bad character is bad as a whole */
}

static void llama3(void **state) {
    (void)state;
    const pd_tools t = tools_of(PD_TOOL_LLAMA3);
    reads(&t, "{\"name\": \"weather\", \"parameters\": {\"city\": \"Bern\"}}", "|weather({\"city\": \"Bern\"})");
    reads(&t, "\n <|python_tag|>{\"name\": \"now\", \"parameters\": {}}", "|now({})");
    reads(&t, "{\"name\": \"now\", \"parameters\": {}}; {\"name\": \"weather\", \"parameters\": {\"a\": 1}}", "|now({})|weather({\"a\": 1})");
    reads(&t, "{\"type\": \"function\", \"name\": \"now\", \"parameters\": {}}", "|now({})");
    reads(&t, "{\"name\": \"Alice\", \"age\": 5}", "{\"name\": \"Alice\", \"age\": 5}"); /* an answer, not a call */
    reads(&t, "{\"a\": [1, 2]} and more", "{\"a\": [1, 2]} and more");
    reads(&t, "Here: {\"name\": \"now\", \"parameters\": {}}", "Here: {\"name\": \"now\", \"parameters\": {}}");
    reads(&t, "<|python_tag|>print(1)", "<|python_tag|>print(1)");
}

static void mistral(void **state) {
    (void)state;
    const pd_tools t = tools_of(PD_TOOL_MISTRAL);
    reads(&t, "[TOOL_CALLS][{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\"}}]", "|weather({\"city\": \"Bern\"})");
    reads(&t, "[TOOL_CALLS] [{\"name\": \"now\", \"arguments\": {}}, {\"arguments\": {\"x\": [1]}, \"name\": \"weather\"}]", "|now({})|weather({\"x\": [1]})");
    reads(&t, "[TOOL_CALLS]weather[ARGS]{\"city\": \"Bern\"}", "|weather({\"city\": \"Bern\"})");
    reads(&t, "ok [TOOL_CALLS]now[CALL_ID]abc[ARGS]{}[TOOL_CALLS]weather{\"a\": {\"b\": 1}}", "ok|now({})|weather({\"a\": {\"b\": 1}})");
    reads(&t, "[TOOL_CALL", "[TOOL_CALL");
    reads(&t, "a [1, 2] b", "a [1, 2] b");
    reads(&t, "[TOOL_CALLS]", "[TOOL_CALLS]");
    char got[100];
    pd_tool_reader *r = pd_tool_reader_open(&t);
    pd_buf out = {0};
    pd_tool_reader_add(r, "[TOOL_CALLS][{\"name\": \"now\"}]", 30);
    pd_tool_reader_message(r, &out);
    assert_int_equal(sscanf(strstr(out.data, "\"id\":\""), "\"id\":\"%99[a-zA-Z0-9]", got), 1);
    assert_int_equal(strlen(got), 9);
    pd_buf_done(&out);
    pd_tool_reader_close(r);
}

static void any_form(void **state) {
    (void)state;
    const pd_tools t = tools_of(PD_TOOL_ANY);
    reads(&t, "{\"name\": \"now\", \"arguments\": {}}", "|now({})");
    reads(&t, "<tool_call>{\"name\": \"x\", \"arguments\": {}}</tool_call>", "|x({})");
    reads(&t, "{\"name\": \"unknown\", \"arguments\": {}}", "{\"name\": \"unknown\", \"arguments\": {}}");
}

static void in_the_order_they_were_said(void **state) {
    (void)state;
    pd_tools t = tools_of(PD_TOOL_HERMES);
    static const char text[] = "One <tool_call>{\"name\": \"now\"}</tool_call>\n two\xc3\xa9 <tool_call>{\"name\": \"weather\", "
                               "\"arguments\": {\"a\": 1}}</tool_call><tool_call>{}</tool_call> three\n";
    for (size_t piece = 1; piece < sizeof text; piece++) {
        pd_buf got = {0};
        t.parallel = true;
        taken(&t, text, piece, &got);
        is(text, piece, &got, "One|now({})\n two\xc3\xa9|weather({\"a\": 1})<tool_call>{}</tool_call> three");
        t.parallel = false;
        taken(&t, text, piece, &got);
        is(text, piece, &got, "One|now({})\n two\xc3\xa9<tool_call>{}</tool_call> three");
    }
    char begun[] = "<tool_call>\n{\"name\": \"now\", \"arguments\":";
    t.begun = begun;
    pd_buf got = {0};
    taken(&t, " {\"x\": 2", 1, &got);
    is("cut off", 1, &got, "|now({\"x\": 2)");
}

/* Tools with parameters of every kind: what stands between tags is what they say. */
#define PARAMETERS                                                                                                      \
    "[{\"type\": \"function\", \"function\": {\"name\": \"weather\", \"parameters\": {\"type\": \"object\", \"properties\": {"  \
    "\"s\": {\"type\": \"string\"}, \"i\": {\"type\": \"integer\"}, \"b\": {\"type\": \"boolean\"}, \"o\": {\"type\": \"object\"}, " \
    "\"sn\": {\"type\": [\"string\", \"null\"]}, \"e\": {\"enum\": [\"1\", \"2\"]}}}}}]"

static pd_tools tools_of_tags(pd_tool_format f, json_t **list) {
    pd_tools t = tools_of(f);
    t.list = *list = json_loads(PARAMETERS, 0, NULL);
    assert_non_null(t.list);
    return t;
}

static void function_tags(void **state) {
    (void)state;
    json_t *list;
    const pd_tools t = tools_of_tags(PD_TOOL_FUNCTION, &list);
    reads(&t, "<tool_call>\n<function=weather>\n<parameter=s>\n5\n</parameter>\n<parameter=i>\n5\n</parameter>\n</function>\n</tool_call>",
          "|weather({\"s\": \"5\", \"i\": 5})");
    reads(&t, "I look.\n<tool_call>\n<function=now>\n</function>\n</tool_call>\n<tool_call>\n<function=weather>\n<parameter=o>\n{\"a\": [1]}\n"
              "</parameter>\n<parameter=sn>\nnull\n</parameter>\n</function>\n</tool_call> Done.",
          "I look. Done.|now({})|weather({\"o\": {\"a\": [1]}, \"sn\": null})");
    reads(&t, "<function=weather><parameter=s>two\nlines <b>\n\n</parameter><parameter=e>1</parameter><parameter=b>True</parameter></function>",
          "|weather({\"s\": \"two\\nlines <b>\\n\", \"e\": \"1\", \"b\": true})");
    reads(&t, "<seed:tool_call>\n<function=weather>\n<parameter=i>not a number</parameter>\n<parameter=other>[1,</parameter>\n</function>\n</seed:tool_call>\n",
          "|weather({\"i\": \"not a number\", \"other\": \"[1,\"})");
    reads(&t, "<function=weather>{\"s\": {\"}\": 1}}</function> x", " x|weather({\"s\": {\"}\": 1}})"); /* Functionary */
    reads(&t, "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>", "|now({})");            /* one that was begun */
    reads(&t, "<tool_call>\n nothing", "<tool_call>\n nothing");
    reads(&t, "a <function and <function=two words> b", "a <function and <function=two words> b");
    /* Cut off. */
    reads(&t, "<function=weather>\n<parameter=s>\nx\n</parameter>\n<parameter=i>\n4", "|weather({\"s\": \"x\")");
    reads(&t, "<tool_call>\n<function=wea", "<tool_call>\n<function=wea");
    reads(&t, "<function=now></func", "|now({})");
    reads(&t, "<function=now> ", "|now()");
    json_decref(list);
}

static void arg_keys(void **state) {
    (void)state;
    json_t *list;
    const pd_tools t = tools_of_tags(PD_TOOL_ARG_KEYS, &list);
    reads(&t, "\n<tool_call>weather\n<arg_key>s</arg_key>\n<arg_value>Bern</arg_value>\n<arg_key>i</arg_key>\n<arg_value>-7</arg_value>\n</tool_call>\n",
          "|weather({\"s\": \"Bern\", \"i\": -7})");
    reads(&t, "So: <tool_call>now</tool_call><tool_call>weather<arg_key>b</arg_key><arg_value> false </arg_value></tool_call>",
          "So:|now({})|weather({\"b\": false})");
    reads(&t, "<tool_call>{\"name\": \"now\", \"arguments\": {}}", "|now({})");
    reads(&t, "<tool_call> is a mark, <b>", "<tool_call> is a mark, <b>");
    reads(&t, "<tool_call>now<arg_key>x</arg_key> no value", "no value|now({})");
    json_decref(list);
}

#define D "<\xef\xbd\x9ctool\xe2\x96\x81"
#define D_BEGIN "\xe2\x96\x81" "begin\xef\xbd\x9c>"
#define D_END "\xe2\x96\x81" "end\xef\xbd\x9c>"
#define D_SEP D "sep\xef\xbd\x9c>"

static void deepseek(void **state) {
    (void)state;
    const pd_tools t = tools_of(PD_TOOL_DEEPSEEK);
    reads(&t, "Well.\n\n" D "calls" D_BEGIN D "call" D_BEGIN "function" D_SEP "weather\n```json\n{\"a\": {}}\n```" D "call" D_END "\n" D "call" D_BEGIN
              "function" D_SEP "now\n```json\n{}\n```" D "call" D_END D "calls" D_END, "Well.|weather({\"a\": {}})|now({})");
    reads(&t, D "calls" D_BEGIN D "call" D_BEGIN "weather" D_SEP "{\"a\": \"}\"}" D "call" D_END D "call" D_BEGIN "now" D_SEP "{}" D "call" D_END D "calls" D_END " x",
          " x|weather({\"a\": \"}\"})|now({})");
    reads(&t, "<tool_call>{\"name\": \"now\"}</tool_call>", "|now({})"); /* as the system message asks for */
    reads(&t, D "call" D_BEGIN "no call", D "call" D_BEGIN "no call");
    reads(&t, D "call" D_BEGIN "now" D_SEP "\"{}\" {", D "call" D_BEGIN "now" D_SEP "\"{}\" {"); /* no name is a quote */
    reads(&t, "a <\xef\xbd\x9c b", "a <\xef\xbd\x9c b");
}

static void kimi(void **state) {
    (void)state;
    const pd_tools t = tools_of(PD_TOOL_KIMI);
    reads(&t, "ok<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{\"a\": 1}<|tool_call_end|>"
              "<|tool_call_begin|>functions.now:1<|tool_call_argument_begin|> {}<|tool_call_end|><|tool_calls_section_end|>",
          "ok|weather({\"a\": 1})|now({})");
    reads(&t, "<|tool_call_begin|>now<|tool_call_argument_begin|>{}", "|now({})");
}

static void lists(void **state) {
    (void)state;
    pd_tools t = tools_of(PD_TOOL_LIST);
    t.mark = "<|START_ACTION|>";
    reads(&t, "<|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"weather\", \"parameters\": {\"a\": 1}},\n    {\"tool_call_id\": \"1\", "
              "\"tool_name\": \"now\", \"parameters\": {}}\n]<|END_ACTION|>", "|weather({\"a\": 1})|now({})");
    t.mark = "<|tool_call|>";
    reads(&t, "<|tool_call|>[{\"name\": \"now\", \"arguments\": {}}]", "|now({})");
    reads(&t, "<|tool_call|> [ ] x", "<|tool_call|> [ ] x");
    t.mark = "<TOOLCALL>";
    reads(&t, "<TOOLCALL>[{\"name\": \"now\", \"arguments\": {}}, {\"name\": \"weather\", \"arguments\": {}}]</TOOLCALL> x", " x|now({})|weather({})");
    t.mark = "<tool_calls>";
    reads(&t, "<tool_calls>\n{\"name\": \"now\", \"arguments\": {}}\n{\"name\": \"weather\", \"arguments\": {}}\n</tool_calls>", "|now({})|weather({})");
    t.mark = "functools[";
    reads(&t, "I see. functools[{\"name\": \"weather\", \"arguments\": {\"a\": [1]}}, {\"name\": \"now\", \"arguments\": {}}]",
          "I see.|weather({\"a\": [1]})|now({})");
    reads(&t, "import functools\nfunctools[ 1, 2]", "import functools\nfunctools[ 1, 2]");
    reads(&t, "functools[", "functools[");
}

static void objects_behind_other_marks(void **state) {
    (void)state;
    pd_tools t = tools_of(PD_TOOL_KEYED);
    reads(&t, "ok <|tools_prefix|>[{\"weather\": {\"a\": 1}}, {\"now\": {}}]<|tools_suffix|>", "ok|weather({\"a\": 1})|now({})");
    reads(&t, "<|tools_prefix|>[{\"name\": {\"name\": \"x\"}}]", "|name({\"name\": \"x\"})"); /* no key is special */
    reads(&t, "<|tools_prefix|>[{\"weather\": {\"a\": 1}, \"now\": {\"b\": 2}}]", "|weather({\"a\": 1})");
    reads(&t, "<|tools_prefix|>[{\"\": {}}]", "<|tools_prefix|>[{\"\": {}}]");
    reads(&t, "<|tools_prefix|> none", "<|tools_prefix|> none");
    t.format = PD_TOOL_GIGACHAT;
    reads(&t, "I look.<|function_call|>{\"name\": \"weather\", \"arguments\": {\"a\": 1}}<|message_sep|>\n", "I look.|weather({\"a\": 1})");
    reads(&t, "function call<|role_sep|>\n{\"name\": \"now\", \"arguments\": {}}<|message_sep|>", "|now({})");
    reads(&t, "A function call <|role", "A function call <|role");
    t.format = PD_TOOL_SOLAR;
    reads(&t, "<|tool_calls|><|tool_call:begin|>c1<|tool_call:name|>weather<|tool_call:args|>{\"a\": 1}<|tool_call:end|>"
              "<|tool_call:begin|>c2<|tool_call:name|>now<|tool_call:args|>{}<|tool_call:end|><|calls|>", "|weather({\"a\": 1})|now({})");
    t.format = PD_TOOL_CHANNEL;
    reads(&t, " to=functions.weather<|channel|>commentary json<|message|>{\"a\": 1}<|call|>", "|weather({\"a\": 1})");
    reads(&t, "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|call|>", "|now({})");
    reads(&t, "So.<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}", "So.|now({})");
    t.format = PD_TOOL_LLAMA3; /* Llama 4 */
    reads(&t, "<|python_start|><|python_end|>{\"name\": \"now\", \"parameters\": {}}{\"name\": \"weather\", \"parameters\": {}}", "|now({})|weather({})");
}

static void named_tags(void **state) {
    (void)state;
    json_t *list;
    pd_tools t = tools_of_tags(PD_TOOL_INVOKE, &list);
    reads(&t, "ok\n<minimax:tool_call>\n<invoke name=\"weather\">\n<parameter name=\"s\">5</parameter>\n<parameter name=\"i\">5</parameter>\n</invoke>\n"
              "<invoke name=\"now\">\n</invoke>\n</minimax:tool_call>", "ok|weather({\"s\": \"5\", \"i\": 5})|now({})");
    reads(&t, "a <invoke name=\"f g\"> b", "a <invoke name=\"f g\"> b");
    reads(&t, "<invoke name=\"\">x", "<invoke name=\"\">x");
    reads(&t, "<invoke name=\"now\"><parameter name=\"a\"", "|now()");
    reads(&t, "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>", "|now({})");
    t.format = PD_TOOL_ATEM;
    reads(&t, "<atem:function_calls>\n<atem:invoke name=\"weather\">\n<atem:parameter name=\"b\">true</atem:parameter>\n</atem:invoke>\n</atem:function_calls>",
          "|weather({\"b\": true})");
#define DSML "\xef\xbd\x9c""DSML\xef\xbd\x9c"
    t.format = PD_TOOL_DSML; /* what a tag says of a type goes before the schema */
    reads(&t, "ok\n\n<" DSML "function_calls>\n<" DSML "invoke name=\"weather\">\n<" DSML "parameter name=\"i\" string=\"true\">5</" DSML "parameter>\n"
              "<" DSML "parameter name=\"s\" string=\"false\">[5]</" DSML "parameter>\n<" DSML "parameter name=\"other\" string=\"false\">no JSON</" DSML
              "parameter>\n</" DSML "invoke>\n</" DSML "function_calls>", "ok|weather({\"i\": \"5\", \"s\": [5], \"other\": \"no JSON\"})");
    t.format = PD_TOOL_PARAM; /* with values as Python writes them */
    reads(&t, "<function name=\"weather\"><param name=\"o\">{'a': [True, None], 'b': \"it's\"}</param><param name=\"s\">['x']</param></function>\n"
              "<function name=\"now\"></function>",
          "|weather({\"o\": {\"a\": [true, null], \"b\": \"it's\"}, \"s\": \"['x']\"})|now({})");
    t.format = PD_TOOL_OPEN;
    reads(&t, "<|open|>tools<|sep|><|open|>call tool=\"weather\" index=\"1\"<|sep|><|open|>argument key=\"i\" type=\"string\"<|sep|>5<|close|>argument<|sep|>"
              "<|open|>argument key=\"s\" type=\"number\"<|sep|>5<|close|>argument<|sep|><|close|>call<|sep|><|open|>call tool=\"now\" index=\"2\"<|sep|>"
              "<|close|>call<|sep|><|close|>tools<|sep|>", "|weather({\"i\": \"5\", \"s\": 5})|now({})");
    t.format = PD_TOOL_HY3;
    reads(&t, "<tool_calls:opensource>\n<tool_call:opensource>weather<tool_sep:opensource>\n<arg_key:opensource>i</arg_key:opensource>\n"
              "<arg_value:opensource>7</arg_value:opensource>\n</tool_call:opensource>\n<tool_call:opensource>now<tool_sep:opensource>\n</tool_call:opensource>\n"
              "</tool_calls:opensource>", "|weather({\"i\": 7})|now({})");
    json_decref(list);
}

static void python_calls(void **state) {
    (void)state;
    pd_tools t = tools_of(PD_TOOL_PYTHON);
    reads(&t, "I look. <|tool_call_start|>[weather(city='Bern', days=3, tags=['a', \"b's\"], where={\"lat\": 47.0, \"lon\": null}, any=True), now()]<|tool_call_end|> Done",
          "I look. Done|weather({\"city\": \"Bern\", \"days\": 3, \"tags\": [\"a\", \"b's\"], \"where\": {\"lat\": 47.0, \"lon\": null}, \"any\": true})|now({})");
    reads(&t, "<|tool_call_start|>[ other.f( a = (1, 2) , b=')],', ) ]<|tool_call_end|>", "|other.f({\"a\": [1, 2], \"b\": \")],\"})");
    reads(&t, "<|tool_call_start|>now()<|tool_call_end|>", "|now({})"); /* one without a list */
    reads(&t, "<|tool_call_start|>[weather(a=f(x), b={1})]", "|weather({\"a\": \"f(x)\", \"b\": \"{1}\"})"); /* no literals: as they are */
    reads(&t, "<|tool_call_start|>[{\"name\": \"now\", \"arguments\": {}}]<|tool_call_end|>", "|now({})");
    reads(&t, "<|tool_call_start|>[not a call]", "<|tool_call_start|>[not a call]");
    reads(&t, "<|tool_call_start|>[weather(\"Bern\")]", "\"Bern\")]|weather({})"); /* a value without a name stays text */
    /* Cut off. */
    reads(&t, "<|tool_call_start|>[weather(a=1, b='x", "|weather({\"a\": 1)");
    reads(&t, "<|tool_call_start|>[weat", "<|tool_call_start|>[weat");
    reads(&t, "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>", "|now({})");
    /* Llama's, as the whole answer and of a tool that is known. */
    t.format = PD_TOOL_LLAMA3;
    reads(&t, "[weather(city='Bern'), now()]", "|weather({\"city\": \"Bern\"})|now({})");
    reads(&t, "<|python_start|>[now()]<|python_end|>", "|now({})");
    reads(&t, "[now()] and more", "and more|now({})");
    reads(&t, "[1, 2]", "[1, 2]");
    reads(&t, "[other(a=1)]", "[other(a=1)]");
    reads(&t, "[now", "[now");
    reads(&t, "See [now()]", "See [now()]");
}

static void gemma_calls(void **state) {
    (void)state;
    const pd_tools t = tools_of(PD_TOOL_GEMMA);
#define Q "<|\"|>"
    reads(&t, "ok <|tool_call>call:weather{any:true,city:" Q "Z\xc3\xbcrich, \"}" Q ",days:3,tags:[" Q "a" Q "," Q "b's" Q "],where:{lat:47.0,lon:None}}<tool_call|>"
              "<|tool_call>call:now{}<tool_call|>",
          "ok|weather({\"any\": true, \"city\": \"Z\xc3\xbcrich, \\\"}\", \"days\": 3, \"tags\": [\"a\", \"b's\"], \"where\": {\"lat\": 47.0, \"lon\": null}})|now({})");
    reads(&t, "<|tool_call>call:weather{s:a word,n:007}<tool_call|>", "|weather({\"s\": \"a word\", \"n\": \"007\"})");
    reads(&t, "<|tool_call>two words{}", "<|tool_call>two words{}");
    reads(&t, "<|tool_call>call:weather{s:" Q "cut", "|weather()");
}

static void one_call_alone(void **state) {
    (void)state;
    pd_tools t = tools_of(PD_TOOL_HERMES);
    t.parallel = false;
    reads(&t, "<tool_call>{\"name\": \"now\"}</tool_call><tool_call>{\"name\": \"weather\"}</tool_call>", "|now({})");
}

static void begun_calls_go_on(void **state) {
    (void)state;
    pd_tools t = tools_of(PD_TOOL_HERMES);
    char named[] = "<tool_call>\n{\"name\": \"now\", \"arguments\":", required[] = "<tool_call>\n{\"name\": \"";
    t.begun = named;
    reads(&t, " {\"a\": 1}}\n</tool_call>", "|now({\"a\": 1})");
    t.begun = required;
    reads(&t, "weather\", \"arguments\": {}}\n</tool_call>", "|weather({})");
    reads(&t, "never closed", "<tool_call>\n{\"name\": \"never closed");
}

static void many_calls_end(void **state) {
    (void)state;
    const pd_tools t = tools_of(PD_TOOL_HERMES);
    pd_tool_reader *r = pd_tool_reader_open(&t);
    for (int i = 0; i < 2 * PD_TOOL_CALLS_MAX; i++) pd_tool_reader_add(r, "<tool_call>{\"name\":\"now\"}</tool_call>", 37);
    pd_tool_reader_end(r);
    assert_int_equal(pd_tool_reader_calls(r), PD_TOOL_CALLS_MAX);
    pd_tool_reader_close(r);
}

/* ---- the request ---- */

#define TOOL(name) "{\"type\": \"function\", \"function\": {\"name\": " name "}}"

static void bodies_are_checked(void **state) {
    (void)state;
    static const struct {
        const char *body, *param; /* NULL: fine */
        int n;                    /* tools that may be called */
        pd_tool_choice choice;
    } cases[] = {
        {"{}", NULL, 0, 0},
        {"{\"tools\": null, \"tool_choice\": null}", NULL, 0, 0},
        {"{\"tools\": [], \"tool_choice\": \"auto\"}", NULL, 0, 0},
        {"{\"tools\": [" TOOL("\"a\"") "]}", NULL, 1, PD_TOOL_AUTO},
        {"{\"tools\": [" TOOL("\"a\"") ", " TOOL("\"b.c-d_1\"") "], \"tool_choice\": \"required\"}", NULL, 2, PD_TOOL_REQUIRED},
        {"{\"tools\": [" TOOL("\"a\"") "], \"tool_choice\": \"none\"}", NULL, 0, 0},
        {"{\"tools\": [" TOOL("\"a\"") ", " TOOL("\"b\"") "], \"tool_choice\": " TOOL("\"b\"") "}", NULL, 2, PD_TOOL_NAMED},
        {"{\"tools\": [" TOOL("\"a\"") "], \"tool_choice\": " TOOL("\"b\"") "}", "tool_choice", 0, 0},
        {"{\"tools\": [" TOOL("\"a\"") "], \"tool_choice\": \"always\"}", "tool_choice", 0, 0},
        {"{\"tool_choice\": \"required\"}", "tool_choice", 0, 0},
        {"{\"tools\": {}}", "tools", 0, 0},
        {"{\"tools\": [5]}", "tools[0]", 0, 0},
        {"{\"tools\": [{\"type\": \"web_search\"}]}", "tools[0]", 0, 0},
        {"{\"tools\": [" TOOL("\"a\"") ", " TOOL("\"\"") "]}", "tools[1]", 0, 0},
        {"{\"tools\": [" TOOL("\"a b\"") "]}", "tools[0]", 0, 0},
        {"{\"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"a\", \"parameters\": 5}}]}", "tools[0]", 0, 0},
        {"{\"tools\": [" TOOL("\"a\"") "], \"parallel_tool_calls\": 5}", "parallel_tool_calls", 0, 0},
        {"{\"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"a\", \"description\": {}}}]}", "tools[0]", 0, 0},
        {"{\"parallel_tool_calls\": {}}", "parallel_tool_calls", 0, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *body = json_loads(cases[i].body, 0, NULL);
        pd_tools *t = NULL;
        pd_err err = {0};
        assert_non_null(body);
        const pd_status rc = pd_tools_decode(body, &t, &err);
        if (cases[i].param) {
            assert_int_equal(rc, PD_EINVAL);
            assert_string_equal(err.param, cases[i].param);
            assert_null(t);
        } else {
            if (rc != PD_OK) fail_msg("%s: %s", cases[i].body, err.msg);
            assert_int_equal(t ? t->n : 0, cases[i].n);
            if (t) assert_int_equal(t->choice, cases[i].choice);
        }
        pd_tools_close(t);
        json_decref(body);
    }
}

static void fits(const char *template, pd_tool_format format, const char *required, const char *named) {
    pd_chat *c = NULL;
    pd_err err = {0};
    if (pd_chat_open(&c, NULL, template, NULL, &err) != PD_OK) fail_msg("%s", err.msg);
    json_t *body = json_loads("{\"tools\": [" TOOL("\"f\"") ", " TOOL("\"g\"") "]}", 0, NULL);
    pd_tools *t = NULL;
    assert_int_equal(pd_tools_decode(body, &t, NULL), PD_OK);
    assert_int_equal(pd_tools_fit(t, c, NULL, NULL), PD_OK);
    assert_int_equal(t->format, format);
    assert_null(t->begun);
    t->choice = PD_TOOL_REQUIRED;
    assert_int_equal(pd_tools_fit(t, c, NULL, NULL), PD_OK);
    assert_string_equal(t->begun, required);
    t->choice = PD_TOOL_NAMED;
    assert_int_equal(pd_tools_fit(t, c, NULL, NULL), PD_OK);
    assert_string_equal(t->begun, named);
    t->choice = PD_TOOL_REQUIRED; /* of one there is no choice */
    t->n = 1;
    assert_int_equal(pd_tools_fit(t, c, NULL, NULL), PD_OK);
    assert_string_equal(t->begun, named);
    t->n = 2;
    /* And what is begun is read as begun. */
    pd_tool_reader *r = pd_tool_reader_open(t);
    pd_tool_reader_add(r, "{\"a\": 1}", 8);
    assert_int_equal(pd_tool_reader_calls(r), 1);
    pd_tool_piece p;
    assert_true(pd_tool_reader_take(r, &p));
    assert_string_equal(p.call->name.data, "f");
    assert_memory_equal(p.text + p.len - 8, "{\"a\": 1}", 8);
    pd_tool_reader_close(r);
    pd_tools_close(t);
    json_decref(body);
    pd_chat_close(c);
}

static void templates_tell_the_form(void **state) {
    (void)state;
    fits("{{ messages }}", PD_TOOL_HERMES, "<tool_call>\n{\"name\": \"", "<tool_call>\n{\"name\": \"f\", \"arguments\":");
    fits("{{ tools }}<tool_call>", PD_TOOL_HERMES, "<tool_call>\n{\"name\": \"", "<tool_call>\n{\"name\": \"f\", \"arguments\":");
    fits("{{ tools }}<|python_tag|>", PD_TOOL_LLAMA3, "{\"name\": \"", "{\"name\": \"f\", \"parameters\":");
    fits("{{ tools }}[TOOL_CALLS]", PD_TOOL_MISTRAL, "[TOOL_CALLS][{\"name\": \"", "[TOOL_CALLS][{\"name\": \"f\", \"arguments\":");
    fits("{{ tools }}[TOOL_CALLS][ARGS]", PD_TOOL_MISTRAL, "[TOOL_CALLS]", "[TOOL_CALLS]f[ARGS]");
    fits("{{ tools }}<tool_call><function=<parameter=", PD_TOOL_FUNCTION, "<tool_call>\n{\"name\": \"", "<tool_call>\n{\"name\": \"f\", \"arguments\":");
    fits("{{ tools }}<function=", PD_TOOL_FUNCTION, "<function=", "<function=f>");
    fits("{{ tools }}<tool_call><arg_key>", PD_TOOL_ARG_KEYS, "<tool_call>\n{\"name\": \"", "<tool_call>\n{\"name\": \"f\", \"arguments\":");
    fits("{{ messages }}" D "call" D_BEGIN D_SEP "```json", PD_TOOL_DEEPSEEK, D "calls" D_BEGIN D "call" D_BEGIN "function" D_SEP,
         D "calls" D_BEGIN D "call" D_BEGIN "function" D_SEP "f\n```json\n");
    fits("{{ tools }}" D "call" D_BEGIN D_SEP, PD_TOOL_DEEPSEEK, D "calls" D_BEGIN D "call" D_BEGIN, D "calls" D_BEGIN D "call" D_BEGIN "f" D_SEP);
    fits("{{ tools }}<|tool_call_argument_begin|>", PD_TOOL_KIMI, "<|tool_calls_section_begin|><|tool_call_begin|>functions.",
         "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>");
    fits("{{ tools }}<|START_ACTION|>", PD_TOOL_LIST, "<|START_ACTION|>[{\"tool_call_id\": \"0\", \"tool_name\": \"",
         "<|START_ACTION|>[{\"tool_call_id\": \"0\", \"tool_name\": \"f\", \"parameters\":");
    fits("{{ tools }}functools[", PD_TOOL_LIST, "functools[{\"name\": \"", "functools[{\"name\": \"f\", \"arguments\":");
    fits("{{ tools }}<tool_calls>", PD_TOOL_LIST, "<tool_calls>[{\"name\": \"", "<tool_calls>[{\"name\": \"f\", \"arguments\":");
    fits("{{ messages }}<tool_calls>", PD_TOOL_HERMES, "<tool_call>\n{\"name\": \"", "<tool_call>\n{\"name\": \"f\", \"arguments\":");
    static const struct {
        const char *template;
        pd_tool_format format;
    } hermes_begun[] = {
        {"{{ tools }}<|tool_call_start|>", PD_TOOL_PYTHON}, {"{{ tools }}<|tool_list_start|>", PD_TOOL_PYTHON},
        {"{{ tools }}<|tool_call>call:", PD_TOOL_GEMMA}, {"{{ tools }}<minimax:tool_call><invoke name=", PD_TOOL_INVOKE},
        {"{{ tools }}<atem:invoke name=", PD_TOOL_ATEM}, {"{{ tools }}<" DSML "invoke", PD_TOOL_DSML},
        {"{{ tools }}<function name=", PD_TOOL_PARAM}, {"{{ tools }}<|open|>", PD_TOOL_OPEN}, {"{{ tools }}:opensource<tool_call", PD_TOOL_HY3},
    };
    for (size_t i = 0; i < sizeof hermes_begun / sizeof *hermes_begun; i++)
        fits(hermes_begun[i].template, hermes_begun[i].format, "<tool_call>\n{\"name\": \"", "<tool_call>\n{\"name\": \"f\", \"arguments\":");
    fits("{{ tools }}<|tools_prefix|>", PD_TOOL_KEYED, "<|tools_prefix|>[{\"", "<|tools_prefix|>[{\"f\":");
    fits("{{ tools }}<|function_call|>", PD_TOOL_GIGACHAT, "<|function_call|>{\"name\": \"", "<|function_call|>{\"name\": \"f\", \"arguments\":");
    fits("{{ tools }}<|role_sep|>", PD_TOOL_GIGACHAT, "<|message_sep|>\n\nfunction call<|role_sep|>\n{\"name\": \"",
         "<|message_sep|>\n\nfunction call<|role_sep|>\n{\"name\": \"f\", \"arguments\":");
    fits("{{ tools }}<|tool_call:begin|>", PD_TOOL_SOLAR, "<|tool_calls|><|tool_call:begin|>0<|tool_call:name|>",
         "<|tool_calls|><|tool_call:begin|>0<|tool_call:name|>f<|tool_call:args|>");
    fits("{{ tools }}commentary channel: 'functions'", PD_TOOL_CHANNEL, " to=functions.", " to=functions.f<|channel|>commentary json<|message|>");
    fits("{{ tools }}", PD_TOOL_ANY, "<tool_call>\n{\"name\": \"", "<tool_call>\n{\"name\": \"f\", \"arguments\":");
}

/* ---- a call that must be made ---- */

#define F "{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"type\": \"object\", \"properties\": " \
          "{\"x\": {\"type\": \"integer\"}, \"s\": {\"type\": \"string\", \"pattern\": \"(?=a)\"}}, \"required\": [\"x\"]}}}"
#define STRICT "{\"type\": \"function\", \"function\": {\"name\": \"f\", \"strict\": true, \"parameters\": "
#define NAMED ", \"tool_choice\": {\"type\": \"function\", \"function\": {\"name\": \"f\"}}"
#define REQUIRED ", \"tool_choice\": \"required\""
#define FORM ", \"response_format\": {\"type\": \"json_schema\", \"json_schema\": {\"schema\": {\"type\": \"object\", " \
             "\"properties\": {\"y\": {\"type\": \"boolean\"}}, \"required\": [\"y\"]}}}"
#define ALONE ", \"parallel_tool_calls\": false"

/* The grammar of a body's call behind what was begun. */
static pd_status grammar_of(const char *template, const char *text, pd_tools **t, pd_grammar **g, pd_err *err) {
    pd_chat *c = NULL;
    json_t *body = json_loads(text, 0, NULL);
    assert_non_null(body);
    assert_int_equal(pd_chat_open(&c, NULL, template, NULL, NULL), PD_OK);
    *g = NULL;
    pd_status rc = pd_tools_decode(body, t, err);
    if (rc == PD_OK) rc = pd_tools_fit(*t, c, NULL, err);
    if (rc == PD_OK) rc = pd_tools_grammar(*t, json_object_get(body, "tools"), pd_structured_form(body), g, err);
    pd_chat_close(c);
    json_decref(body);
    return rc;
}

static void begun_calls_are_held_to_their_schema(void **state) {
    (void)state;
    static const char hermes_form[] = "{{ messages }}", llama[] = "{{ tools }}<|python_tag|>", list[] = "{{ tools }}[TOOL_CALLS]",
                      marks[] = "{{ tools }}[TOOL_CALLS][ARGS]", tags[] = "{{ tools }}<function=", r1[] = "{{ messages }}" D "call" D_BEGIN "```json",
                      v3[] = "{{ messages }}" D "call" D_BEGIN, kimi_form[] = "{{ tools }}<|tool_call_argument_begin|>", action[] = "{{ tools }}<|START_ACTION|>",
                      functools[] = "{{ tools }}functools[", keyed[] = "{{ tools }}<|tools_prefix|>", lfm2[] = "{{ tools }}<|tool_call_start|>",
                      channel[] = "{{ tools }}commentary channel: 'functions'";
    static const struct {
        const char *template, *body, *answer;
        const char *want; /* what is read of it; NULL: it is not allowed */
        bool over;        /* nothing may follow */
    } cases[] = {
        {hermes_form, "{\"tools\": [" F "]" NAMED "}", " {\"x\": 1}}", "|f({\"x\": 1})", true},
        {hermes_form, "{\"tools\": [" F "]" NAMED "}", "{\"x\":-7,\"s\":\"b\"}}", "|f({\"x\":-7,\"s\":\"b\"})", true},
        {hermes_form, "{\"tools\": [" F "]" NAMED "}", " {\"x\": 1}", NULL, false},           /* not closed */
        {hermes_form, "{\"tools\": [" F "]" NAMED "}", " {\"x\": \"1\"}}", NULL, false},
        {hermes_form, "{\"tools\": [" F "]" NAMED "}", " {\"s\": \"1\"}}", NULL, false},     /* x is required */
        {hermes_form, "{\"tools\": [" F "]" NAMED "}", " {\"x\": 1, \"y\": 1}}", NULL, false},
        {hermes_form, "{\"tools\": [" F "]" NAMED "}", " {\"x\": 1}}\n</tool_call>", NULL, false}, /* over before it */
        {hermes_form, "{\"tools\": [" TOOL("\"f\"") "]" REQUIRED ALONE "}", "{}}", "|f({})", true},
        {hermes_form, "{\"tools\": [" TOOL("\"f\"") "]" REQUIRED ALONE "}", "{\"x\": 1}}", NULL, false}, /* it has no parameters */
        {hermes_form, "{\"tools\": [" F ", " TOOL("\"g\"") "]" REQUIRED ALONE "}", "g\", \"arguments\": {}}", "|g({})", true},
        {hermes_form, "{\"tools\": [" F ", " TOOL("\"g\"") "]" REQUIRED ALONE "}", "g\", \"arguments\": {\"x\": 1}}", NULL, false},
        {hermes_form, "{\"tools\": [" F ", " TOOL("\"g\"") "]" REQUIRED ALONE "}", "h\", \"arguments\": {}}", NULL, false},
        {hermes_form, "{\"tools\": [" F ", " TOOL("\"g\"") "]" REQUIRED "}", "g\", \"arguments\": {}}\n</tool_call>", "|g({})", false},
        {hermes_form, "{\"tools\": [" F ", " TOOL("\"g\"") "]" REQUIRED "}",
         "g\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 2}}", "|g({})|f({\"x\": 2})", false},
        {hermes_form, "{\"tools\": [" F ", " TOOL("\"g\"") "]" NAMED "}", " {\"x\": 1}}\n</tool_call>\n<tool_call>\n{\"name\": \"f\"", NULL, false},
        {llama, "{\"tools\": [" F "]" NAMED "}", " {\"x\": 1}}", "|f({\"x\": 1})", true},
        {llama, "{\"tools\": [" F ", " TOOL("\"g\"") "]" REQUIRED "}", "f\", \"parameters\": {\"x\": 1}}", "|f({\"x\": 1})", true},
        {list, "{\"tools\": [" F "]" NAMED "}", " {\"x\": 1}}]", "|f({\"x\": 1})", true},
        {list, "{\"tools\": [" F ", " TOOL("\"g\"") "]" REQUIRED "}", "g\", \"arguments\": {}}, {\"name\": \"f\", \"arguments\": {\"x\": 1}}]",
         "|g({})|f({\"x\": 1})", true},
        {marks, "{\"tools\": [" F "]" NAMED "}", "{\"x\": 1}", "|f({\"x\": 1})", true},
        {marks, "{\"tools\": [" F ", " TOOL("\"g\"") "]" REQUIRED "}", "f{\"x\": 1}", "|f({\"x\": 1})", true},
        {marks, "{\"tools\": [" F ", " TOOL("\"g\"") "]" REQUIRED "}", "h{\"x\": 1}", NULL, false},
        {tags, "{\"tools\": [" F "]" NAMED "}", " {\"x\": 1}", "|f({\"x\": 1})", true},
        {tags, "{\"tools\": [" F ", " TOOL("\"g\"") "]" REQUIRED "}", "g>{}", "|g({})", true},
        {r1, "{\"tools\": [" F "]" NAMED "}", "{\"x\": 1}", "|f({\"x\": 1})", true},
        {r1, "{\"tools\": [" F ", " TOOL("\"g\"") "]" REQUIRED "}", "f\n```json\n{\"x\": 1}", "|f({\"x\": 1})", true},
        {v3, "{\"tools\": [" F ", " TOOL("\"g\"") "]" REQUIRED "}", "f{\"x\": 1}", "|f({\"x\": 1})", true},
        {kimi_form, "{\"tools\": [" F ", " TOOL("\"g\"") "]" REQUIRED "}", "f{\"x\": 1}", "|f({\"x\": 1})", true},
        {action, "{\"tools\": [" F ", " TOOL("\"g\"") "]" REQUIRED "}",
         "g\", \"parameters\": {}}, {\"tool_name\": \"f\", \"parameters\": {\"x\": 1}}]", "|g({})|f({\"x\": 1})", true},
        {keyed, "{\"tools\": [" F ", " TOOL("\"g\"") "]" REQUIRED "}", "g\": {}}, {\"f\": {\"x\": 1}}]", "|g({})|f({\"x\": 1})", true},
        {channel, "{\"tools\": [" F ", " TOOL("\"g\"") "]" REQUIRED "}", "f{\"x\": 1}", "|f({\"x\": 1})", true},
        {lfm2, "{\"tools\": [" F ", " TOOL("\"g\"") "]" REQUIRED "}",
         "g\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 2}}", "|g({})|f({\"x\": 2})", false},
        {functools, "{\"tools\": [" F "]" NAMED "}", " {\"x\": 1}}]", "|f({\"x\": 1})", true},
        {functools, "{\"tools\": [" F "]" FORM "}", "functools[{\"name\": \"f\", \"arguments\": {\"x\": 1}}]", "|f({\"x\": 1})", true},
        /* May be called, or the answer is of a form. */
        {hermes_form, "{\"tools\": [" F "]" FORM "}", "{\"y\": true}", "{\"y\": true}", true},
        {hermes_form, "{\"tools\": [" F "]" FORM "}", "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>", "|f({\"x\": 1})", false},
        {hermes_form, "{\"tools\": [" F "]" FORM "}", "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"y\": true}}\n</tool_call>", NULL, false},
        {hermes_form, "{\"tools\": [" F "]" FORM "}", "yes", NULL, false},
        {hermes_form, "{\"tools\": [" F "], \"response_format\": {\"type\": \"json_object\"}}", "{\"a\": [1]}", "{\"a\": [1]}", true},
        {hermes_form, "{\"tools\": [" F "]" FORM REQUIRED ALONE "}", " {\"x\": 1}}", "|f({\"x\": 1})", true},
        {llama, "{\"tools\": [" F "]" FORM "}", "{\"name\": \"f\", \"parameters\": {\"x\": 1}}", "|f({\"x\": 1})", true},
        {llama, "{\"tools\": [" F "]" FORM "}", "{\"y\": true}", "{\"y\": true}", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pd_tools *t = NULL;
        pd_grammar *g = NULL;
        pd_matcher *m = NULL;
        pd_err err = {0};
        if (grammar_of(cases[i].template, cases[i].body, &t, &g, &err) != PD_OK) fail_msg("case %zu: %s", i, err.msg);
        assert_int_equal(pd_matcher_open(&m, g, NULL), PD_OK);
        const bool fits = pd_matcher_take(m, cases[i].answer, strlen(cases[i].answer)) && pd_matcher_may_end(m);
        if (fits != (cases[i].want != NULL)) fail_msg("case %zu: %s", i, cases[i].answer);
        if (fits) {
            assert_int_equal(pd_matcher_must_end(m), cases[i].over);
            reads(t, cases[i].answer, cases[i].want);
        }
        pd_matcher_close(m);
        pd_grammar_unref(g);
        pd_tools_close(t);
    }
}

static void strict_schemas_are_followed_or_refused(void **state) {
    (void)state;
    static const struct { const char *body, *param; } cases[] = {
        {"{\"tools\": [" STRICT "{\"type\": \"object\", \"properties\": {\"x\": {\"type\": \"string\", \"pattern\": \"(?=a)\"}}}}}]" NAMED "}",
         "tools[0].function.parameters.properties.x.pattern"},
        {"{\"tools\": [" TOOL("\"g\"") ", " STRICT "{\"properties\": {}, \"additionalProperties\": false}}}]" REQUIRED "}",
         "tools[1].function.parameters"},
        {"{\"tools\": [" STRICT "{\"type\": \"object\", \"properties\": {\"x\": {\"type\": \"integer\"}}, \"additionalProperties\": false}}}]" NAMED "}", NULL},
        {"{\"tools\": [" F "]" FORM "}", "response_format"}, /* Mistral's calls are no text */
        /* not the one that is called */
        {"{\"tools\": [" F ", " STRICT "{}}}]" NAMED "}", NULL},
        {"{\"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"f\", \"strict\": 1}}]" NAMED "}", "tools[0].function.strict"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pd_tools *t = NULL;
        pd_grammar *g = NULL;
        pd_err err = {0};
        const pd_status rc = grammar_of(i == 0 ? "{{ tools }}" : "{{ tools }}[TOOL_CALLS]", cases[i].body, &t, &g, &err);
        assert_int_equal(rc, cases[i].param ? PD_EINVAL : PD_OK);
        if (cases[i].param) assert_string_equal(err.param, cases[i].param);
        pd_grammar_unref(g);
        pd_tools_close(t);
    }
}

/* More than one grammar holds: the arguments are objects then, of any kind. */
static void many_large_tools(void **state) {
    (void)state;
    pd_buf body = {0};
    pd_buf_puts(&body, "{\"tools\": [");
    for (int i = 0; i < PD_TOOLS_MAX; i++) {
        pd_buf_printf(&body, "%s{\"type\": \"function\", \"function\": {\"name\": \"t%d\", \"parameters\": {\"type\": \"object\", \"properties\": {", i ? ", " : "", i);
        for (int k = 0; k < 40; k++) pd_buf_printf(&body, "%s\"member_%d\": {\"type\": \"string\"}", k ? ", " : "", k);
        pd_buf_puts(&body, "}}}}");
    }
    pd_buf_puts(&body, "]" REQUIRED "}");
    pd_tools *t = NULL;
    pd_grammar *g = NULL;
    pd_matcher *m = NULL;
    pd_err err = {0};
    if (grammar_of("{{ tools }}", body.data, &t, &g, &err) != PD_OK) fail_msg("%s", err.msg);
    assert_int_equal(pd_matcher_open(&m, g, NULL), PD_OK);
    static const char answer[] = "t99\", \"arguments\": {\"other\": 1}}";
    assert_true(pd_matcher_take(m, answer, strlen(answer)) && pd_matcher_may_end(m));
    pd_matcher_close(m);
    pd_grammar_unref(g);
    pd_tools_close(t);
    pd_buf_done(&body);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hermes),           cmocka_unit_test(llama3),
        cmocka_unit_test(mistral),          cmocka_unit_test(any_form),
        cmocka_unit_test(function_tags),    cmocka_unit_test(arg_keys),
        cmocka_unit_test(deepseek),         cmocka_unit_test(kimi),
        cmocka_unit_test(lists),            cmocka_unit_test(objects_behind_other_marks),
        cmocka_unit_test(named_tags),       cmocka_unit_test(python_calls),
        cmocka_unit_test(gemma_calls),
        cmocka_unit_test(one_call_alone),
        cmocka_unit_test(in_the_order_they_were_said),   cmocka_unit_test(begun_calls_go_on),
        cmocka_unit_test(many_calls_end),   cmocka_unit_test(bodies_are_checked),
        cmocka_unit_test(templates_tell_the_form),
        cmocka_unit_test(begun_calls_are_held_to_their_schema),
        cmocka_unit_test(strict_schemas_are_followed_or_refused),
        cmocka_unit_test(many_large_tools),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
