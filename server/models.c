/* SPDX-License-Identifier: Apache-2.0 */
/* GET /v1/models and /v1/models/{id}: the one model that is served. */
#include "server/json.h"
#include "server/reply.h"
#include "server/router.h"
#include "server/server.h"

#include <string.h>

static void write_model(pd_buf *out, const pd_server *s) {
    const pd_engine_info *i = s->info;
    pd_buf_puts(out, "{\"id\":");
    pd_json_cstr(out, s->model_id);
    pd_buf_printf(out, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"pressd\",\"root\":",
                  (long long)s->started);
    pd_json_cstr(out, s->model_id);
    pd_buf_printf(
        out, ",\"parent\":null,\"max_model_len\":%zu,\"meta\":{\"architecture\":", i->ctx_size);
    pd_json_cstr(out, i->arch);
    pd_buf_puts(out, ",\"name\":");
    pd_json_cstr(out, i->name);
    pd_buf_puts(out, ",\"file_type\":");
    pd_json_cstr(out, i->file_type);
    pd_buf_printf(out,
                  ",\"n_params\":%llu,\"size\":%llu,\"n_ctx_train\":%zu,\"n_ctx\":%zu,\"n_vocab\":%"
                  "zu,\"n_embd\":%zu",
                  (unsigned long long)i->n_params, (unsigned long long)i->weight_bytes,
                  i->ctx_train, i->ctx_size, i->n_vocab, i->n_embd);
    pd_buf_printf(
        out,
        ",\"n_layer\":%zu,\"n_head\":%zu,\"n_head_kv\":%zu,\"head_dim\":%zu,\"kv_token_bytes\":%zu",
        i->n_layer, i->n_head, i->n_head_kv, i->head_dim, i->kv_token_bytes);
    pd_buf_printf(out, ",\"kv_page_tokens\":%zu,\"kv_pool_bytes\":%llu,\"chat_template\":",
                  i->page_tokens, (unsigned long long)i->kv_pool_bytes);
    pd_json_cstr(out, i->chat_template);
    pd_buf_puts(out, ",\"isa\":");
    pd_json_cstr(out, i->isa);
    pd_buf_puts(out, "}}");
}

static void run_models(pd_req *q) {
    pd_buf_puts(&q->out, "{\"object\":\"list\",\"data\":[");
    write_model(&q->out, q->srv);
    pd_buf_puts(&q->out, "]}");
    pd_reply_json(q);
}

static int hex(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Percent-decoded equality; %00 equals nothing. */
static bool same_id(const char *encoded, const char *id) {
    for (; *encoded; encoded++, id++) {
        char c = *encoded;
        if (c == '%') {
            const int hi = hex(encoded[1]), lo = hi < 0 ? -1 : hex(encoded[2]);
            if (lo < 0) return false;
            c = (char)(hi << 4 | lo);
            encoded += 2;
        }
        if (!c || c != *id) return false;
    }
    return !*id;
}

static void run_model(pd_req *q) {
    const char *id = q->path + strlen(q->route->path);
    if (same_id(id, q->srv->model_id)) {
        write_model(&q->out, q->srv);
        pd_reply_json(q);
        return;
    }
    pd_err err = {0};
    pd_fail(&err, PD_ENOMODEL, "model", "there is no model %.100s here; served: %.100s", id,
            q->srv->model_id);
    pd_reply_error(q, &err);
}

const pd_route pd_route_models = {.method = "GET",
                                  .path = "/v1/models",
                                  .label = "/v1/models",
                                  .flags = PD_ROUTE_CHEAP,
                                  .run = run_models};
const pd_route pd_route_model = {.method = "GET",
                                 .path = "/v1/models/",
                                 .label = "/v1/models/{id}",
                                 .flags = PD_ROUTE_CHEAP | PD_ROUTE_PREFIX,
                                 .run = run_model};
