/* SPDX-License-Identifier: Apache-2.0 */
/* How models write calls (see tool_forms.h). */
#include "server/tool_forms.h"

#include <string.h>

/* DeepSeek's marks are written with U+FF5C and U+2581. */
#define DEEPSEEK "<\xef\xbd\x9ctool\xe2\x96\x81"
#define BEGIN "\xe2\x96\x81""begin\xef\xbd\x9c>"
#define END "\xe2\x96\x81""end\xef\xbd\x9c>"
#define SEP "sep\xef\xbd\x9c>"

/* ---- in an answer ---- */

enum { MARKS_MAX = 4 };

typedef struct {
    pd_tool_mark mark[MARKS_MAX];   /* what begins a call */
    const char *close[MARKS_MAX]; /* what may stand behind a call and says nothing */
} form;

static const form forms[PD_TOOL_FORMATS] = {
    [PD_TOOL_HERMES] = {{{"<tool_call>", PD_TOOL_AT_OBJECT}}, {"</tool_call>"}},
    [PD_TOOL_LLAMA3] = {{{"<|python_tag|>", PD_TOOL_AT_OBJECT}}, {"</tool_call>"}},
    [PD_TOOL_MISTRAL] = {{{"[TOOL_CALLS]", PD_TOOL_AT_HEAD}}, {"</tool_call>"}},
    [PD_TOOL_ANY] = {{{"<tool_call>", PD_TOOL_AT_OBJECT}, {"<|python_tag|>", PD_TOOL_AT_OBJECT}, {"[TOOL_CALLS]", PD_TOOL_AT_HEAD}}, {"</tool_call>"}},
    [PD_TOOL_FUNCTION] = {{{"<tool_call>", PD_TOOL_AT_HEAD}, {"<seed:tool_call>", PD_TOOL_AT_HEAD}, {"<function=", PD_TOOL_AT_NAME}},
                          {"</function>", "</tool_call>", "</seed:tool_call>"}},
    [PD_TOOL_ARG_KEYS] = {{{"<tool_call>", PD_TOOL_AT_HEAD}}, {"</tool_call>"}},
    [PD_TOOL_DEEPSEEK] = {{{DEEPSEEK "calls" BEGIN, PD_TOOL_AT_SECTION}, {DEEPSEEK "call" BEGIN, PD_TOOL_AT_NAME}, {"<tool_call>", PD_TOOL_AT_OBJECT}},
                          {"```", DEEPSEEK "call" END, DEEPSEEK "calls" END, "</tool_call>"}},
    [PD_TOOL_KIMI] = {{{"<|tool_calls_section_begin|>", PD_TOOL_AT_SECTION}, {"<|tool_call_begin|>", PD_TOOL_AT_NAME}},
                      {"<|tool_call_end|>", "<|tool_calls_section_end|>"}},
    [PD_TOOL_LIST] = {{{"", PD_TOOL_AT_HEAD}}, {"<|END_ACTION|>", "</TOOLCALL>", "</tool_calls>", "<|/tool_call|>"}}, /* t->mark */
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
        const char *c = forms[f].close[i];
        const size_t len = strlen(c), k = n < len ? n : len;
        if (memcmp(s, c, k) != 0) continue;
        if (k == len) return (int)len;
        may = true;
    }
    return may ? -1 : 0;
}

static bool is_white(char c) {
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

pd_str pd_tool_name_in(pd_tool_format f, const char *s, size_t n) {
    static const char sep[] = DEEPSEEK SEP, fence[] = "```json", functions[] = "functions.";
    size_t from = 0, to = 0;
    if (f == PD_TOOL_DEEPSEEK) { /* behind the separator, if anything but a fence is */
        const char *p = memmem(s, n, sep, sizeof sep - 1);
        const size_t end = p ? (size_t)(p - s) : n;
        from = p ? end + sizeof sep - 1 : 0;
        while (from < n && is_white(s[from])) from++;
        if (n - from >= sizeof fence - 1 && memcmp(s + from, fence, sizeof fence - 1) == 0) from = n;
        if (from == n) {
            from = 0;
            n = end;
        }
    } else if (f == PD_TOOL_KIMI && n >= sizeof functions - 1 && memcmp(s, functions, sizeof functions - 1) == 0) {
        from = sizeof functions - 1;
    }
    while (from < n && is_white(s[from])) from++;
    for (to = from; to < n && !strchr(f == PD_TOOL_KIMI ? ":<[{" : "<>[{", s[to]) && !is_white(s[to]);) to++;
    return (pd_str){s + from, to - from};
}

/* ---- in a template ---- */

/* What lists of calls stand behind, as the templates of their models have it. */
static const char *const list_marks[] = {"<|START_ACTION|>", "<TOOLCALL>", "<|tool_call|>", "<tool_calls>", "functools["};
static const char *const list_opens[] = {"<TOOLCALL>[{\"name\": \"", "<|tool_call|>[{\"name\": \"", "<tool_calls>[{\"name\": \"",
                                         "functools[{\"name\": \""};

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
    else if (strstr(text, "[TOOL_CALLS]")) t->format = PD_TOOL_MISTRAL;
    else if (strstr(text, "<|tool_call_argument_begin|>")) t->format = PD_TOOL_KIMI;
    else if (strstr(text, "<arg_key>")) t->format = PD_TOOL_ARG_KEYS;
    else if (strstr(text, "<function=")) t->format = PD_TOOL_FUNCTION;
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
        action = {.open = "<|START_ACTION|>[{\"tool_call_id\": \"0\", \"tool_name\": \"", .behind = "\", \"parameters\":", .close = "}",
                  .between = ", {\"tool_name\": \"", .after = "]", .control = true};
    /* The forms of XML have JSON in a Hermes call of their model instead: a schema is of JSON. */
    switch (t->format) {
    case PD_TOOL_LLAMA3: return llama3;
    case PD_TOOL_MISTRAL: return strstr(text, "[ARGS]") ? args_mark : mistral;
    case PD_TOOL_FUNCTION: return strstr(text, "<tool_call>") ? hermes : function;
    case PD_TOOL_DEEPSEEK: return strstr(text, "```json") ? r1 : v3;
    case PD_TOOL_KIMI: return kimi;
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
    case PD_TOOL_FORMATS: break;
    }
    return hermes;
}

void pd_tool_find_form(pd_tools *t, const pd_chat *chat) {
    find_format(t, chat);
    t->begin = begin_of(t, chat);
    if (!t->begin.spoken) t->begin.spoken = t->begin.behind;
}
