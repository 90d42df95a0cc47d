/* SPDX-License-Identifier: Apache-2.0 */
/* Refused by name (see unserved.h). */
#include "server/unserved.h"

#include <stdlib.h>
#include <string.h>

typedef enum {
    ONE,      /* the number 1 */
    FALSE,    /* false */
    EMPTY,    /* an empty array, object or string */
    NO_TOOL,  /* "none" or "auto" (there are no tools to choose) */
    ONLY_TEXT, /* ["text"] */
    ABSENT,   /* nothing but null */
} neutral;

static const struct {
    const char *name;
    neutral ok;
    enum { EITHER, CHAT, COMPLETION } of; /* the other one has it */
} field[] = {
    {"best_of", ONE, CHAT},
    {"echo", FALSE, CHAT},
    {"suffix", EMPTY, EITHER},
    {"repeat_penalty", ONE, EITHER},
    {"use_beam_search", FALSE, EITHER},
    {"chat_template", ABSENT, EITHER},
    {"tools", EMPTY, COMPLETION},
    {"functions", EMPTY, EITHER},
    {"tool_choice", NO_TOOL, COMPLETION},
    {"function_call", NO_TOOL, EITHER},
    {"modalities", ONLY_TEXT, EITHER},
    {"audio", ABSENT, EITHER},
};

static bool is_string(const json_t *v, const char *s) {
    return json_is_string(v) && strcmp(json_string_value(v), s) == 0;
}

static bool is_neutral(const json_t *v, neutral ok) {
    switch (ok) {
    case ONE: return json_is_number(v) && json_number_value(v) == 1.0;
    case FALSE: return json_is_false(v);
    case EMPTY:
        return (json_is_array(v) && json_array_size(v) == 0) ||
               (json_is_object(v) && json_object_size(v) == 0) || is_string(v, "");
    case NO_TOOL: return is_string(v, "none") || is_string(v, "auto");
    case ONLY_TEXT: return json_array_size(v) == 1 && is_string(json_array_get(v, 0), "text");
    case ABSENT: break;
    }
    return false;
}

pd_status pd_unserved_check(const json_t *body, bool chat, pd_err *err) {
    static const char *const accepted[] = {
        "1",
        "false",
        "an empty value",
        "\"none\" or \"auto\"",
        "[\"text\"]",
        "null",
    };
    for (size_t i = 0; i < sizeof field / sizeof field[0]; i++) {
        const json_t *v = pd_json_get(body, field[i].name);
        if (!v || is_neutral(v, field[i].ok) || field[i].of == (chat ? COMPLETION : CHAT)) continue;
        char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
        pd_fail(err, PD_EINVAL, field[i].name, "%s is %.60s; it is not served, only %s is accepted",
                field[i].name, text ? text : "?", accepted[field[i].ok]);
        free(text);
        return PD_EINVAL;
    }
    return PD_OK;
}
