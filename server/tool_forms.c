/* SPDX-License-Identifier: Apache-2.0 */
/* How models write calls (see tool_forms.h). */
#include "server/tool_forms.h"
#include "server/tool_text.h"

#include <string.h>

/* DeepSeek's marks are written with U+FF5C and U+2581. */
#define DEEPSEEK "<\xef\xbd\x9ctool\xe2\x96\x81"
#define BEGIN "\xe2\x96\x81""begin\xef\xbd\x9c>"
#define END "\xe2\x96\x81""end\xef\xbd\x9c>"
#define SEP "sep\xef\xbd\x9c>"
#define DSML "\xef\xbd\x9c""DSML\xef\xbd\x9c"
#define HY3 ":opensource>"

/* ---- in an answer ---- */

enum { MARKS_MAX = 4 };

typedef struct {
    pd_tool_mark mark[MARKS_MAX];   /* what begins a call */
    const char *close[MARKS_MAX]; /* what may stand behind a call and says nothing */
    const char *before;           /* the name: it begins with this, which may be left out */
    const char *behind_sep;       /* or it stands behind this, if anything but space or a fence does */
    const char *head_end;         /* behind the name and what may follow; NULL: the brace of the arguments */
    bool head_stays;              /* that is the arguments' already */
    bool alone;                   /* nothing but the name stands there */
    bool known;                   /* see pd_tool_must_know */
    const char *name_ends;        /* a name's end, beside space if that is no quote; NULL: any of <>[{ */
    const pd_tool_syntax *syntax;
} form;

static const pd_tool_syntax
    parameters = {.open = "<parameter=", .key_end = ">", .value_end = "</parameter>", .object = true},
    arg_keys = {.open = "<arg_key>", .key_end = "</arg_key>", .value = "<arg_value>", .value_end = "</arg_value>"},
    hy3_keys = {.open = "<arg_key" HY3, .key_end = "</arg_key" HY3, .value = "<arg_value" HY3, .value_end = "</arg_value" HY3},
    named = {.open = "<parameter name=\"", .key_end = "\"", .value = ">", .value_end = "</parameter>", .attributes = true},
    atem = {.open = "<atem:parameter name=\"", .key_end = "\"", .value = ">", .value_end = "</atem:parameter>", .attributes = true},
    dsml = {.open = "<" DSML "parameter name=\"", .key_end = "\"", .value = ">", .value_end = "</" DSML "parameter>", .attributes = true},
    param = {.open = "<param name=\"", .key_end = "\"", .value = ">", .value_end = "</param>", .attributes = true},
    opened = {.open = "<|open|>argument key=\"", .key_end = "\"", .value = "<|sep|>", .value_end = "<|close|>argument<|sep|>", .attributes = true},
    python = {.keywords = true, .key_end = "=", .value_end = ")", .notation = PD_LITERAL_PYTHON},
    gemma = {.keywords = true, .key_end = ":", .value_end = "}", .notation = PD_LITERAL_GEMMA};

/* Forms that are no JSON have <tool_call> too: as a call that must be made is begun. */
#define BEGUN {"<tool_call>", PD_TOOL_AT_OBJECT}

static const form forms[PD_TOOL_FORMATS] = {
    [PD_TOOL_HERMES] = {.mark = {{"<tool_call>", PD_TOOL_AT_OBJECT}}, .close = {"</tool_call>"}},
    [PD_TOOL_LLAMA3] = {.mark = {{"<|python_tag|>", PD_TOOL_AT_OBJECT}, {"<|python_start|>", PD_TOOL_AT_SECTION}, {"<|python_end|>", PD_TOOL_AT_OBJECT}},
                        .close = {"</tool_call>", "<|python_end|>"}},
    [PD_TOOL_MISTRAL] = {.mark = {{"[TOOL_CALLS]", PD_TOOL_AT_HEAD}}, .close = {"</tool_call>"}},
    [PD_TOOL_ANY] = {.mark = {{"<tool_call>", PD_TOOL_AT_OBJECT}, {"<|python_tag|>", PD_TOOL_AT_OBJECT}, {"[TOOL_CALLS]", PD_TOOL_AT_HEAD}}, .close = {"</tool_call>"}},
    [PD_TOOL_FUNCTION] = {.mark = {{"<tool_call>", PD_TOOL_AT_HEAD}, {"<seed:tool_call>", PD_TOOL_AT_HEAD}, {"<function=", PD_TOOL_AT_NAME}},
                          .close = {"</function>", "</tool_call>", "</seed:tool_call>"},
                          .head_end = ">", .alone = true, .syntax = &parameters},
    [PD_TOOL_ARG_KEYS] = {.mark = {{"<tool_call>", PD_TOOL_AT_HEAD}}, .close = {"</tool_call>"}, .head_end = "<", .head_stays = true, .alone = true, .known = true,
                          .syntax = &arg_keys},
    [PD_TOOL_DEEPSEEK] = {.mark = {{DEEPSEEK "calls" BEGIN, PD_TOOL_AT_SECTION}, {DEEPSEEK "call" BEGIN, PD_TOOL_AT_NAME}, BEGUN},
                          .close = {"```", DEEPSEEK "call" END, DEEPSEEK "calls" END, "</tool_call>"}, .behind_sep = DEEPSEEK SEP},
    [PD_TOOL_KIMI] = {.mark = {{"<|tool_calls_section_begin|>", PD_TOOL_AT_SECTION}, {"<|tool_call_begin|>", PD_TOOL_AT_NAME}},
                      .close = {"<|tool_call_end|>", "<|tool_calls_section_end|>"}, .before = "functions.", .name_ends = ":<[{"},
    [PD_TOOL_LIST] = {.mark = {{"", PD_TOOL_AT_HEAD}}, .close = {"<|END_ACTION|>", "</TOOLCALL>", "</tool_calls>", "<|/tool_call|>"}}, /* t->mark */
    [PD_TOOL_KEYED] = {.mark = {{"<|tools_prefix|>", PD_TOOL_AT_HEAD}}, .close = {"<|tools_suffix|>"}},
    [PD_TOOL_GIGACHAT] = {.mark = {{"<|function_call|>", PD_TOOL_AT_OBJECT}, {"<|message_sep|>", PD_TOOL_AT_SECTION},
                           {"function call<|role_sep|>", PD_TOOL_AT_OBJECT}}, .close = {"<|message_sep|>"}},
    [PD_TOOL_SOLAR] = {.mark = {{"<|tool_calls|>", PD_TOOL_AT_SECTION}, {"<|tool_call:begin|>", PD_TOOL_AT_NAME}}, .close = {"<|tool_call:end|>", "<|calls|>"},
                       .behind_sep = "<|tool_call:name|>"},
    [PD_TOOL_CHANNEL] = {.mark = {{"<|start|>assistant to=functions.", PD_TOOL_AT_NAME}, {"<|channel|>commentary to=functions.", PD_TOOL_AT_NAME},
                          {" to=functions.", PD_TOOL_AT_NAME}}, .close = {"<|call|>"}},
    [PD_TOOL_HY3] = {.mark = {{"<tool_calls" HY3, PD_TOOL_AT_SECTION}, {"<tool_call" HY3, PD_TOOL_AT_NAME}, BEGUN},
                     .close = {"</tool_call" HY3, "</tool_calls" HY3, "</tool_call>"}, .head_end = "<tool_sep" HY3, .alone = true, .syntax = &hy3_keys},
    [PD_TOOL_INVOKE] = {.mark = {{"<minimax:tool_call>", PD_TOOL_AT_SECTION}, {"<invoke name=\"", PD_TOOL_AT_NAME}, BEGUN},
                        .close = {"</invoke>", "</minimax:tool_call>", "</tool_call>"}, .head_end = ">", .name_ends = "\"", .syntax = &named},
    [PD_TOOL_ATEM] = {.mark = {{"<atem:function_calls>", PD_TOOL_AT_SECTION}, {"<atem:invoke name=\"", PD_TOOL_AT_NAME}, BEGUN},
                      .close = {"</atem:invoke>", "</atem:function_calls>", "</tool_call>"}, .head_end = ">", .name_ends = "\"", .syntax = &atem},
    [PD_TOOL_DSML] = {.mark = {{"<" DSML "function_calls>", PD_TOOL_AT_SECTION}, {"<" DSML "tool_calls>", PD_TOOL_AT_SECTION},
                       {"<" DSML "invoke name=\"", PD_TOOL_AT_NAME}, BEGUN},
                      .close = {"</" DSML "invoke>", "</" DSML "function_calls>", "</" DSML "tool_calls>", "</tool_call>"},
                      .head_end = ">", .name_ends = "\"", .syntax = &dsml},
    [PD_TOOL_PARAM] = {.mark = {{"<function name=\"", PD_TOOL_AT_NAME}, BEGUN}, .close = {"</function>", "</tool_call>"}, .head_end = ">", .name_ends = "\"",
                       .syntax = &param},
    [PD_TOOL_OPEN] = {.mark = {{"<|open|>tools<|sep|>", PD_TOOL_AT_SECTION}, {"<|open|>call tool=\"", PD_TOOL_AT_NAME}, BEGUN},
                      .close = {"<|close|>call<|sep|>", "<|close|>tools<|sep|>", "</tool_call>"}, .head_end = "<|sep|>", .name_ends = "\"", .syntax = &opened},
    [PD_TOOL_PYTHON] = {.mark = {{"<|tool_call_start|>", PD_TOOL_AT_HEAD}, BEGUN}, .close = {"<|tool_call_end|>", "</tool_call>"},
                        .head_end = "(", .alone = true, .name_ends = "(", .syntax = &python},
    [PD_TOOL_GEMMA] = {.mark = {{"<|tool_call>", PD_TOOL_AT_NAME}, BEGUN}, .close = {"<tool_call|>", "</tool_call>"}, .before = "call:", .head_end = "{",
                       .alone = true, .syntax = &gemma},
};

pd_tool_mark pd_tool_mark_of(const pd_tools *t, size_t i) {
    const pd_tool_mark none = {0};
    if (t->format != PD_TOOL_LIST) return i < MARKS_MAX ? forms[t->format].mark[i] : none;
    const bool open = t->mark[strlen(t->mark) - 1] == '['; /* it has the list's bracket */
    return i ? none : (pd_tool_mark){t->mark, open ? PD_TOOL_AT_LIST : PD_TOOL_AT_HEAD};
}

int pd_tool_close(pd_tool_format f, const char *s, size_t n) {
    bool may = false;
    for (size_t i = 0; i < MARKS_MAX && forms[f].close[i]; i++) {
        const int is = pd_tool_starts(s, n, forms[f].close[i]);
        if (is > 0) return (int)strlen(forms[f].close[i]);
        may = may || is == 0;
    }
    return may ? -1 : 0;
}

const pd_tool_syntax *pd_tool_syntax_of(pd_tool_format f) {
    return forms[f].syntax;
}

const char *pd_tool_head_end(pd_tool_format f, bool *ret_stays) {
    *ret_stays = forms[f].head_stays;
    return forms[f].head_end ? forms[f].head_end : "{";
}

bool pd_tool_must_know(pd_tool_format f) {
    return forms[f].known;
}

static size_t behind_white(const char *s, size_t from, size_t n) {
    while (from < n && pd_tool_white(s[from])) from++;
    return from;
}

bool pd_tool_name_in(pd_tool_format f, const char *s, size_t n, pd_str *ret) {
    static const char fence[] = "```json";
    const form *x = &forms[f];
    const char *ends = x->name_ends ? x->name_ends : "<>[{";
    size_t from = 0, to;
    if (x->behind_sep) { /* behind the separator, if anything but a fence is */
        const char *p = memmem(s, n, x->behind_sep, strlen(x->behind_sep));
        const size_t end = p ? (size_t)(p - s) : n;
        from = behind_white(s, p ? end + strlen(x->behind_sep) : 0, n);
        if (n - from >= sizeof fence - 1 && memcmp(s + from, fence, sizeof fence - 1) == 0) from = n;
        if (from == n) {
            from = 0;
            n = end;
        }
    } else if (x->before && n >= strlen(x->before) && memcmp(s, x->before, strlen(x->before)) == 0) {
        from = strlen(x->before);
    }
    from = behind_white(s, from, n);
    for (to = from; to < n && s[to] && !strchr(ends, s[to]) && (*ends == '"' || !pd_tool_white(s[to]));) to++;
    *ret = (pd_str){s + from, to - from};
    return !x->alone || behind_white(s, to, n) == n;
}

/* ---- in a template ---- */

/* What lists of calls stand behind, as the templates of their models have it. */
static const char *const list_marks[] = {"<|START_ACTION|>", "<TOOLCALL>", "<|tool_call|>", "<tool_calls>", "functools["};
static const char *const list_opens[] = {"<TOOLCALL>[{\"name\": \"", "<|tool_call|>[{\"name\": \"", "<tool_calls>[{\"name\": \"",
                                         "functools[{\"name\": \""};

/* Words that tell the form of a template that has tools. */
static const struct {
    const char *word;
    pd_tool_format format;
} told[] = {
    {"<|tools_prefix|>", PD_TOOL_KEYED},
    {"<|function_call|>", PD_TOOL_GIGACHAT},
    {"<|role_sep|>", PD_TOOL_GIGACHAT},
    {"<|tool_call:begin|>", PD_TOOL_SOLAR},
    {"commentary channel: 'functions'", PD_TOOL_CHANNEL},
    {":opensource", PD_TOOL_HY3},
    {"<minimax:tool_call>", PD_TOOL_INVOKE},
    {"<atem:invoke name=", PD_TOOL_ATEM},
    {DSML, PD_TOOL_DSML},
    {"<function name=", PD_TOOL_PARAM},
    {"<|open|>", PD_TOOL_OPEN},
    {"<|tool_call_start|>", PD_TOOL_PYTHON},
    {"<|tool_list_start|>", PD_TOOL_PYTHON},
    {"<|tool_call>call:", PD_TOOL_GEMMA},
    {"[TOOL_CALLS]", PD_TOOL_MISTRAL},
    {"<|tool_call_argument_begin|>", PD_TOOL_KIMI},
    {"<arg_key>", PD_TOOL_ARG_KEYS},
    {"<function=", PD_TOOL_FUNCTION},
};

static bool find_told(pd_tools *t, const char *text) {
    for (size_t i = 0; i < sizeof told / sizeof told[0]; i++) {
        t->format = told[i].format;
        if (strstr(text, told[i].word)) return true;
    }
    return false;
}

/* The template's own words, the rarer first: many show <tool_call> for something else too.  A
 * template without tools may still show how its model calls them. */
static void find_format(pd_tools *t, const pd_chat *chat) {
    const char *text = pd_chat_text(chat);
    const bool shows = pd_chat_uses(chat, "tools");
    t->mark = NULL;
    for (size_t i = 0; i < sizeof list_marks / sizeof list_marks[0] && !t->mark; i++)
        if (shows && strstr(text, list_marks[i])) t->mark = list_marks[i];
    if (strstr(text, DEEPSEEK "call" BEGIN)) t->format = PD_TOOL_DEEPSEEK;
    else if (!shows) t->format = PD_TOOL_HERMES; /* as pd_tools_describe asks for */
    else if (find_told(t, text)) return;
    else if (t->mark) t->format = PD_TOOL_LIST;
    else if (strstr(text, "<tool_call>")) t->format = PD_TOOL_HERMES;
    else if (strstr(text, "<|python_tag|>") || strstr(text, "\"parameters\": dictionary of argument name"))
        t->format = PD_TOOL_LLAMA3;
    else t->format = PD_TOOL_ANY;
}

static pd_tool_begin begin_of(const pd_tools *t, const pd_chat *chat) {
    const char *text = pd_chat_text(chat);
    static const pd_tool_begin
        hermes = {.open = "<tool_call>\n{\"name\": \"", .behind = "\", \"arguments\":", .close = "}", .after = "\n</tool_call>",
                  .between = "\n</tool_call>\n<tool_call>\n{\"name\": \"", .after_may = true},
        llama3 = {.open = "{\"name\": \"", .behind = "\", \"parameters\":", .close = "}"},
        mistral = {.open = "[TOOL_CALLS][{\"name\": \"", .behind = "\", \"arguments\":", .close = "}", .between = ", {\"name\": \"",
                   .after = "]", .control = true},
        args_mark = {.open = "[TOOL_CALLS]", .behind = "[ARGS]", .spoken = "", .control = true},
        function = {.open = "<function=", .behind = ">", .after = "</function>", .after_may = true},
        r1 = {.open = DEEPSEEK "calls" BEGIN DEEPSEEK "call" BEGIN "function" DEEPSEEK SEP, .behind = "\n```json\n", .control = true},
        v3 = {.open = DEEPSEEK "calls" BEGIN DEEPSEEK "call" BEGIN, .behind = DEEPSEEK SEP, .spoken = "", .control = true},
        kimi = {.open = "<|tool_calls_section_begin|><|tool_call_begin|>functions.", .behind = ":0<|tool_call_argument_begin|>",
                .spoken = "", .control = true},
        keyed = {.open = "<|tools_prefix|>[{\"", .behind = "\":", .close = "}", .between = ", {\"", .after = "]", .control = true},
        giga = {.open = "<|function_call|>{\"name\": \"", .behind = "\", \"arguments\":", .close = "}", .control = true},
        giga_role = {.open = "<|message_sep|>\n\nfunction call<|role_sep|>\n{\"name\": \"", .behind = "\", \"arguments\":", .close = "}", .control = true},
        solar = {.open = "<|tool_calls|><|tool_call:begin|>0<|tool_call:name|>", .behind = "<|tool_call:args|>", .spoken = "", .control = true},
        channel = {.open = " to=functions.", .behind = "<|channel|>commentary json<|message|>", .spoken = "", .control = true},
        action = {.open = "<|START_ACTION|>[{\"tool_call_id\": \"0\", \"tool_name\": \"", .behind = "\", \"parameters\":", .close = "}",
                  .between = ", {\"tool_name\": \"", .after = "]", .control = true};
    /* Forms that are no JSON have a Hermes call instead: a schema is of JSON. */
    switch (t->format) {
    case PD_TOOL_LLAMA3: return llama3;
    case PD_TOOL_MISTRAL: return strstr(text, "[ARGS]") ? args_mark : mistral;
    case PD_TOOL_FUNCTION: return strstr(text, "<tool_call>") ? hermes : function;
    case PD_TOOL_DEEPSEEK: return strstr(text, "```json") ? r1 : v3;
    case PD_TOOL_KIMI: return kimi;
    case PD_TOOL_KEYED: return keyed;
    case PD_TOOL_GIGACHAT: return strstr(text, "<|function_call|>") ? giga : giga_role;
    case PD_TOOL_SOLAR: return solar;
    case PD_TOOL_CHANNEL: return channel;
    case PD_TOOL_LIST: {
        pd_tool_begin list = mistral;
        if (strcmp(t->mark, "<|START_ACTION|>") == 0) return action;
        for (size_t i = 0; i < sizeof list_opens / sizeof list_opens[0]; i++)
            if (strncmp(list_opens[i], t->mark, strlen(t->mark)) == 0) list.open = list_opens[i];
        list.control = t->mark[0] != 'f'; /* functools is a word */
        return list;
    }
    case PD_TOOL_HERMES:
    case PD_TOOL_ARG_KEYS:
    case PD_TOOL_ANY:
    case PD_TOOL_HY3:
    case PD_TOOL_INVOKE:
    case PD_TOOL_ATEM:
    case PD_TOOL_DSML:
    case PD_TOOL_PARAM:
    case PD_TOOL_OPEN:
    case PD_TOOL_PYTHON:
    case PD_TOOL_GEMMA:
    case PD_TOOL_FORMATS: break;
    }
    return hermes;
}

void pd_tool_find_form(pd_tools *t, const pd_chat *chat) {
    find_format(t, chat);
    t->begin = begin_of(t, chat);
    if (!t->begin.spoken) t->begin.spoken = t->begin.behind;
}
