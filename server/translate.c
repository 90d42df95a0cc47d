/* SPDX-License-Identifier: Apache-2.0 */
/* Bodies of other APIs (see translate.h). */
#include "server/translate.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

pd_status pd_translate_rename(json_t *body, const char *from, const char *to, pd_err *err) {
    json_t *v = json_object_get(body, from);
    json_object_del(body, to);
    if (!v) return PD_OK;
    if (json_object_set(body, to, v) != 0) return pd_fail(err, PD_ENOMEM, NULL, "no memory");
    json_object_del(body, from);
    return PD_OK;
}

void pd_translate_forget(json_t *body, const char *keep) {
    static const char *const field[] = {
        "n", "best_of", "echo", "logprobs", "top_logprobs", "prompt_logprobs", "stream_options",
        "stop", "max_completion_tokens", "max_tokens", "add_generation_prompt", "response_format",
    };
    for (size_t i = 0; i < sizeof field / sizeof field[0]; i++)
        if (!keep || strcmp(field[i], keep) != 0) json_object_del(body, field[i]);
}

pd_status pd_translate_system(json_t *body, json_t *content, pd_err *err) {
    json_t *message = json_pack("{s:s, s:O}", "role", "system", "content", content);
    json_t *list = json_object_get(body, "messages");
    if (message && list && json_array_insert_new(list, 0, message) == 0) return PD_OK;
    return pd_fail(err, PD_ENOMEM, NULL, "no memory for the system prompt");
}

/* Is v what the word stands for: itself, its "type", or one of the two literals? */
static bool is_word(const json_t *v, const char *word) {
    const json_t *type = json_is_object(v) ? pd_json_get(v, "type") : v;
    if (strcmp(word, "[]") == 0) return json_is_array(v) && json_array_size(v) == 0;
    if (strcmp(word, "false") == 0) return json_is_false(v);
    return json_is_string(type) && strcmp(json_string_value(type), word) == 0;
}

pd_status pd_translate_refuse(const json_t *body, const char *key, pd_err *err, ...) {
    const json_t *v = pd_json_get(body, key);
    bool ok = !v;
    va_list words;
    va_start(words, err);
    for (const char *word; !ok && (word = va_arg(words, const char *));)
        ok = is_word(v, word);
    va_end(words);
    if (ok) return PD_OK;
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    pd_fail(err, PD_EINVAL, key, "%s is %.60s; it is not served here", key, text ? text : "?");
    free(text);
    return PD_EINVAL;
}
