/* SPDX-License-Identifier: Apache-2.0 */
/* POST /tokenize and /detokenize, in vLLM's shapes.
 *
 *   {"prompt": text, "add_special_tokens": true} or {"messages": [...]}
 *       -> {"count", "max_model_len", "tokens": [ids], "token_strs": null or [...]}
 *   {"tokens": [ids]} -> {"prompt": text}
 *
 * The answer is written where the body is decoded: off the loop when it is long. */
#include "server/reply.h"
#include "server/request_int.h"
#include "server/router.h"
#include "server/server.h"

#include <stdlib.h>

static pd_status tokenize_body(pd_req *q, const json_t *body, pd_request *r, pd_err *err) {
    const pd_server *s = q->srv;
    bool add_special = true, strings = false;
    PD_TRY(pd_request_prompts(r, 1, err));
    pd_ids *ids = &r->prompt->ids;
    PD_TRY(pd_json_bool(body, "", "add_special_tokens", &add_special, err));
    PD_TRY(pd_json_bool(body, "", "return_token_strs", &strings, err));
    if (pd_json_get(body, "messages")) {
        const pd_request_env env = {.tok = s->tok, .chat = s->chat};
        r->kind = PD_REQUEST_CHAT;
        PD_TRY(pd_request_messages(body, r, err));
        PD_TRY(pd__request_template(body, r, err));
        PD_TRY(pd_request_tokenize(r, &env, err));
    } else {
        const json_t *v = pd_json_get(body, "prompt");
        if (!json_is_string(v))
            return pd_fail(err, PD_EINVAL, "prompt",
                           "prompt is %s; a string (or \"messages\") is expected",
                           pd_json_type_name(v));
        PD_TRY(pd_tokenize(s->tok, json_string_value(v), json_string_length(v),
                           PD_TOK_SPECIAL | (add_special ? PD_TOK_BOS : 0u), ids, err));
    }
    pd_buf *out = &q->out;
    pd_buf_printf(out, "{\"count\":%zu,\"max_model_len\":%zu,\"tokens\":[", ids->n,
                  s->info->ctx_size);
    for (size_t i = 0; i < ids->n; i++)
        pd_buf_printf(out, "%s%d", i ? "," : "", ids->id[i]);
    pd_buf_puts(out, "],\"token_strs\":");
    if (!strings) pd_buf_puts(out, "null");
    for (size_t i = 0; i < ids->n && strings; i++) {
        const pd_str t = pd_token_bytes(s->tok, ids->id[i], true);
        pd_buf_putc(out, i ? ',' : '[');
        pd_json_str(out, t.data, t.len);
    }
    if (strings) pd_buf_puts(out, ids->n ? "]" : "[]");
    pd_buf_putc(out, '}');
    return PD_OK;
}

static pd_status decode_tokenize(pd_req *q, pd_err *err) {
    pd_request r = {0};
    PD_TRY(pd_json_parse(&r.body, q->body.data, q->body.len, err));
    const pd_status st = tokenize_body(q, r.body, &r, err);
    pd_request_done(&r);
    return st;
}

static pd_status detokenize_ids(pd_req *q, const json_t *ids, pd_err *err) {
    const pd_server *s = q->srv;
    if (!json_is_array(ids))
        return pd_fail(err, PD_EINVAL, "tokens", "tokens is %s; an array of token ids is expected",
                       pd_json_type_name(ids));
    const size_t cap = pd_detok_max(s->tok);
    char *piece = malloc(cap > 16 ? cap : 16);
    if (!piece) return pd_fail(err, PD_ENOMEM, NULL, "no memory");
    pd_buf text = {0};
    pd_detok d = {0};
    pd_status st = PD_OK;
    for (size_t i = 0; i < json_array_size(ids) && st == PD_OK; i++) {
        const json_t *v = json_array_get(ids, i);
        int64_t id = -1;
        if (!pd_json_integral(v, &id) || id < 0 || (uint64_t)id >= s->info->n_vocab)
            st = pd_fail(err, PD_EINVAL, "tokens",
                         "tokens[%zu] is not a token id; they are 0 to %zu", i,
                         s->info->n_vocab - 1);
        else
            pd_buf_add(&text, piece, pd_detok_next(s->tok, &d, (int32_t)id, true, piece, cap));
    }
    pd_buf_add(&text, piece, pd_detok_end(&d, piece, cap > 16 ? cap : 16));
    if (st == PD_OK) {
        pd_buf_puts(&q->out, "{\"prompt\":");
        pd_json_str(&q->out, text.data, text.len);
        pd_buf_putc(&q->out, '}');
        if (text.failed) q->out.failed = true;
    }
    pd_buf_done(&text);
    free(piece);
    return st;
}

static pd_status decode_detokenize(pd_req *q, pd_err *err) {
    json_t *body;
    PD_TRY(pd_json_parse(&body, q->body.data, q->body.len, err));
    const pd_status st = detokenize_ids(q, pd_json_get(body, "tokens"), err);
    json_decref(body);
    return st;
}

const pd_route pd_route_tokenize = {.method = "POST",
                                    .path = "/tokenize",
                                    .label = "/tokenize",
                                    .decode = decode_tokenize,
                                    .run = pd_reply_json};
const pd_route pd_route_detokenize = {.method = "POST",
                                      .path = "/detokenize",
                                      .label = "/detokenize",
                                      .decode = decode_detokenize,
                                      .run = pd_reply_json};
