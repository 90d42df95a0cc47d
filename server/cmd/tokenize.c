/* SPDX-License-Identifier: Apache-2.0 */
/* pressd tokenize: the ids and pieces of a text, as the server would see it.
 *
 * With --chat the text is one user message, put in the model's chat template
 * with the header of the answer after it. */
#include "engine/base/utf8.h"
#include "engine/tokenizer/chat.h"
#include "server/cmd/list.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define INPUT_MAX ((size_t)64 << 20)

typedef struct {
    const char *model, *text;
    bool special, chat, json;
} options;

static pd_status read_input(pd_buf *in, pd_err *err) {
    char block[65536];
    for (ssize_t n; (n = read(STDIN_FILENO, block, sizeof block)) != 0;) {
        if (n < 0) return pd_fail(err, PD_EFILE, NULL, "cannot read standard input");
        pd_buf_add(in, block, (size_t)n);
        if (in->failed) return pd_fail(err, PD_ETOOBIG, NULL, "standard input exceeds %zu bytes", INPUT_MAX);
    }
    return PD_OK;
}

static pd_status encode(const options *o, const pd_gguf *g, const pd_tokenizer *t, const pd_buf *in, pd_ids *ids,
                        pd_err *err) {
    const char *text = in->data ? in->data : "";
    if (!o->chat) return pd_tokenize(t, text, in->len, PD_TOK_BOS | (o->special ? PD_TOK_SPECIAL : 0), ids, err);
    if (!pd_utf8_valid(text, in->len) || memchr(text, 0, in->len))
        return pd_fail(err, PD_EINVAL, NULL, "a chat message must be UTF-8 without NUL");
    pd_chat *c;
    PD_TRY(pd_chat_open(&c, g, NULL, NULL, err));
    const pd_chat_msg msg = {"user", text};
    const pd_chat_talk talk = {.msg = &msg, .n_msg = 1, .add_generation_prompt = true, .now = (int64_t)time(NULL)};
    const pd_status rc = pd_chat_encode(c, t, &talk, ids, NULL, err);
    pd_chat_close(c);
    return rc;
}

/* A piece on one line: control characters, the backslash and broken UTF-8 as
 * escapes, so that what is printed can be told apart and drives no terminal. */
static void put_piece(pd_buf *out, pd_str s) {
    for (size_t i = 0; i < s.len;) {
        uint32_t cp = 0;
        const size_t n = pd_utf8_next(s.data + i, s.len - i, &cp);
        if (n == 1 && cp == '\n') pd_buf_puts(out, "\\n");
        else if (n == 1 && cp == '\\') pd_buf_puts(out, "\\\\");
        else if (n == 0 || cp < 0x20 || cp == 0x7F) pd_buf_printf(out, "\\x%02x", (unsigned char)s.data[i]);
        else if (cp >= 0x80 && cp < 0xA0) pd_buf_printf(out, "\\u%04x", cp);
        else pd_buf_add(out, s.data + i, n);
        i += n ? n : 1;
    }
}

static void put_lines(pd_buf *out, const pd_tokenizer *t, const pd_ids *ids) {
    for (size_t i = 0; i < ids->n; i++) {
        pd_buf_printf(out, "%6d  '", ids->id[i]);
        put_piece(out, pd_token_bytes(t, ids->id[i], true));
        pd_buf_puts(out, "'\n");
    }
}

/* {"tokens": [ids], "count": n, "pieces": [text, or its bytes where they are no UTF-8]} */
static void put_json(pd_buf *out, const pd_tokenizer *t, const pd_ids *ids) {
    json_t *tokens = json_array(), *pieces = json_array();
    bool ok = true;
    for (size_t i = 0; i < ids->n; i++) {
        const pd_str s = pd_token_bytes(t, ids->id[i], true);
        json_t *piece = json_stringn(s.data, s.len);
        if (!piece) {
            piece = json_array();
            for (size_t k = 0; k < s.len; k++)
                ok &= json_array_append_new(piece, json_integer((unsigned char)s.data[k])) == 0;
        }
        ok &= json_array_append_new(pieces, piece) == 0;
        ok &= json_array_append_new(tokens, json_integer(ids->id[i])) == 0;
    }
    json_t *all = ok ? json_pack("{s:I, s:O, s:O}", "count", (json_int_t)ids->n, "tokens", tokens, "pieces", pieces) : NULL;
    char *text = all ? json_dumps(all, JSON_COMPACT) : NULL;
    if (text) {
        pd_buf_puts(out, text);
        pd_buf_putc(out, '\n');
    } else {
        out->failed = true; /* pd_cmd_print tells */
    }
    free(text);
    json_decref(all);
    json_decref(tokens);
    json_decref(pieces);
}

static int tokenize(const options *o) {
    pd_gguf *g = NULL;
    pd_tokenizer *t = NULL;
    pd_ids ids = {0};
    pd_err err = {0};
    pd_buf in, out;
    pd_buf_init(&in, INPUT_MAX);
    pd_buf_init(&out, SIZE_MAX / 2);
    pd_status rc = PD_OK;
    if (strcmp(o->text, "-") == 0) rc = read_input(&in, &err);
    else pd_buf_puts(&in, o->text);
    if (rc == PD_OK) rc = pd_gguf_open(&g, o->model, &err);
    if (rc == PD_OK) rc = pd_tokenizer_open(&t, g, &err);
    if (rc == PD_OK) rc = encode(o, g, t, &in, &ids, &err);
    if (rc == PD_OK) (o->json ? put_json : put_lines)(&out, t, &ids);
    pd_ids_done(&ids);
    pd_tokenizer_close(t);
    pd_gguf_close(g);
    pd_buf_done(&in);
    return rc == PD_OK ? pd_cmd_print(&out) : pd_cmd_fail(&err);
}

static int run(int argc, char **argv) {
    const pd_cmd *me = &pd_cmd_tokenize;
    options o = {0};
    bool more = true; /* options may follow */
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (!more || a[0] != '-' || !a[1]) {
            if (o.text) return pd_cmd_usage(me, "more than one text:", a);
            o.text = a;
        } else if (strcmp(a, "--") == 0) {
            more = false;
        } else if (strcmp(a, "--special") == 0) {
            o.special = true;
        } else if (strcmp(a, "--chat") == 0) {
            o.chat = true;
        } else if (strcmp(a, "--json") == 0) {
            o.json = true;
        } else if (strncmp(a, "--model=", 8) == 0) {
            o.model = a + 8;
        } else if (strcmp(a, "-m") == 0 || strcmp(a, "--model") == 0) {
            if (++i == argc) return pd_cmd_usage(me, "no file after", a);
            o.model = argv[i];
        } else {
            return pd_cmd_usage(me, "unknown option", a);
        }
    }
    if (!o.model) return pd_cmd_usage(me, "no model given", NULL);
    if (!o.text) return pd_cmd_usage(me, "no text given", NULL);
    if (o.chat && o.special) return pd_cmd_usage(me, "--special does not go with --chat: a message is plain text", NULL);
    return tokenize(&o);
}

const pd_cmd pd_cmd_tokenize = {
    .name = "tokenize",
    .usage = "-m FILE [--special | --chat] [--json] TEXT|-",
    .summary = "the token ids and pieces of a text (- reads standard input)",
    .run = run,
};
