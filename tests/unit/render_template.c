/* SPDX-License-Identifier: Apache-2.0 */
/* For scripts: templates rendered by our interpreter.
 *
 *   render_template < CASES
 *
 * One JSON object per line in, {"template": text, "vars": {...}, "now": seconds}, and
 * one line out: {"text": ...} or {"error": ...}.  A template is compiled once while
 * the same one follows itself. */
#include "server/json.h"
#include "server/json_value.h"
#include "tests/unit/json_lines.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pd_jinja *compiled(const char *text, pd_err *err) {
    static char *last;
    static pd_jinja *t;
    if (last && strcmp(last, text) == 0) return t;
    free(last);
    pd_jinja_close(t);
    last = NULL;
    t = NULL;
    if (pd_jinja_compile(&t, text, strlen(text), err) != PD_OK) return t = NULL;
    last = strdup(text);
    return t;
}

static void answer(const json_t *in) {
    pd_err err = {0};
    pd_jheap given = {0}, h = {0};
    pd_buf out = {0};
    pd_jout text;
    pd_jinja *t = compiled(json_string_value(json_object_get(in, "template")), &err);
    pd_status rc = t ? PD_OK : err.code;
    if (t) {
        const pd_jval vars = pd_json_value(&given, json_object_get(in, "vars"), PD_JORIGIN_OTHER);
        rc = pd_jinja_render(t, &h, vars, json_integer_value(json_object_get(in, "now")), &text, &err);
    }
    pd_buf_puts(&out, rc == PD_OK ? "{\"text\":" : "{\"error\":");
    if (rc == PD_OK) pd_json_str(&out, text.text, text.len);
    else pd_json_cstr(&out, err.msg);
    pd_buf_puts(&out, "}\n");
    fputs(out.data, stdout);
    fflush(stdout);
    pd_buf_done(&out);
    pd_jheap_done(&given);
    pd_jheap_done(&h);
}

int main(void) {
    return answer_lines(answer);
}
