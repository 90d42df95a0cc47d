/* SPDX-License-Identifier: Apache-2.0 */
/* For scripts: what an answer's tool calls are read as.
 *
 *   read_calls < CASES
 *
 * One JSON object per line in, {"template": text, "tools": [...], "text": answer}, and one
 * line out: the members of a message, or {"error": ...}. */
#include "server/tool_calls.h"
#include "tests/unit/json_lines.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pd_status read_answer(const json_t *in, const pd_chat *chat, pd_buf *out, pd_err *err) {
    const char *text = json_string_value(json_object_get(in, "text"));
    pd_tools *t = NULL;
    PD_TRY(pd_tools_decode(in, &t, err));
    pd_status rc = t && text ? pd_tools_fit(t, chat, NULL, err) : pd_fail(err, PD_EINVAL, NULL, "no tools or no text");
    pd_tool_reader *r = rc == PD_OK ? pd_tool_reader_open(t) : NULL;
    if (r) {
        pd_tool_reader_add(r, text, strlen(text));
        pd_tool_reader_end(r);
        pd_tool_reader_message(r, out);
    }
    pd_tool_reader_close(r);
    pd_tools_close(t);
    return rc;
}

static void answer(const json_t *in) {
    const char *template = json_string_value(json_object_get(in, "template"));
    pd_err err = {0};
    pd_buf out = {0};
    pd_chat *chat = NULL;
    pd_buf_putc(&out, '{');
    pd_status rc = pd_chat_open(&chat, NULL, template ? template : "", NULL, &err);
    if (rc == PD_OK) rc = read_answer(in, chat, &out, &err);
    if (rc != PD_OK) pd_buf_puts(&out, "\"error\":");
    if (rc != PD_OK) pd_json_cstr(&out, err.msg);
    pd_buf_puts(&out, "}\n");
    fputs(out.data, stdout);
    fflush(stdout);
    pd_buf_done(&out);
    pd_chat_close(chat);
}

int main(void) {
    return answer_lines(answer);
}
