/* SPDX-License-Identifier: Apache-2.0 */
/* Log-probabilities (see logprobs.h). */
#include "server/logprobs.h"

#include "engine/base/utf8.h"
#include "server/json.h"

static void entry(pd_buf *out, const pd_tokenizer *tok, int32_t id, float logprob) {
    const pd_str s = pd_token_bytes(tok, id, true);
    pd_buf_puts(out, "{\"token\":");
    pd_json_str(out, s.data, s.len);
    pd_buf_puts(out, ",\"logprob\":");
    pd_json_f32(out, logprob);
    pd_buf_puts(out, ",\"bytes\":[");
    for (size_t i = 0; i < s.len; i++)
        pd_buf_printf(out, "%s%u", i ? "," : "", (unsigned char)s.data[i]);
    pd_buf_putc(out, ']');
}

void pd_logprob_chat(pd_buf *out, const pd_tokenizer *tok, const pd_token_event *ev) {
    entry(out, tok, ev->id, ev->logprob);
    pd_buf_puts(out, ",\"top_logprobs\":[");
    for (uint32_t i = 0; i < ev->n_top; i++) {
        if (i) pd_buf_putc(out, ',');
        entry(out, tok, ev->top[i].id, ev->top[i].logprob);
        pd_buf_putc(out, '}');
    }
    pd_buf_puts(out, "]}");
}

/* A token that is no whole text is written "bytes:\xe2\x80" (as OpenAI does): map
 * keys must stay distinct, and U+FFFD would make many equal. */
static void token_text(pd_buf *out, const pd_tokenizer *tok, int32_t id) {
    const pd_str s = pd_token_bytes(tok, id, true);
    if (pd_utf8_valid(s.data, s.len)) {
        pd_json_str(out, s.data, s.len);
        return;
    }
    pd_buf_puts(out, "\"bytes:");
    for (size_t i = 0; i < s.len; i++) pd_buf_printf(out, "\\\\x%02x", (unsigned char)s.data[i]);
    pd_buf_putc(out, '"');
}

static void separator(pd_buf *b) {
    if (b->len) pd_buf_putc(b, ',');
}

void pd_logprob_lists_add(pd_logprob_lists *l, const pd_tokenizer *tok, const pd_token_event *ev,
                          size_t offset) {
    separator(&l->tokens);
    token_text(&l->tokens, tok, ev->id);
    separator(&l->token_logprobs);
    pd_json_f32(&l->token_logprobs, ev->logprob);
    separator(&l->text_offset);
    pd_json_u64(&l->text_offset, offset);
    separator(&l->top_logprobs);
    pd_buf_putc(&l->top_logprobs, '{');
    bool chosen = false;
    for (uint32_t i = 0; i < ev->n_top; i++) {
        if (i) pd_buf_putc(&l->top_logprobs, ',');
        token_text(&l->top_logprobs, tok, ev->top[i].id);
        pd_buf_putc(&l->top_logprobs, ':');
        pd_json_f32(&l->top_logprobs, ev->top[i].logprob);
        chosen |= ev->top[i].id == ev->id;
    }
    if (!chosen) { /* the sampled token is always there: up to n + 1 entries */
        if (ev->n_top) pd_buf_putc(&l->top_logprobs, ',');
        token_text(&l->top_logprobs, tok, ev->id);
        pd_buf_putc(&l->top_logprobs, ':');
        pd_json_f32(&l->top_logprobs, ev->logprob);
    }
    pd_buf_putc(&l->top_logprobs, '}');
}

static void list(pd_buf *out, const char *name, const pd_buf *b) {
    pd_buf_printf(out, "\"%s\":[", name);
    if (b->len) pd_buf_add(out, b->data, b->len);
    if (b->failed) out->failed = true;
    pd_buf_putc(out, ']');
}

void pd_logprob_lists_write(const pd_logprob_lists *l, pd_buf *out) {
    pd_buf_putc(out, '{');
    list(out, "tokens", &l->tokens);
    pd_buf_putc(out, ',');
    list(out, "token_logprobs", &l->token_logprobs);
    pd_buf_putc(out, ',');
    list(out, "top_logprobs", &l->top_logprobs);
    pd_buf_putc(out, ',');
    list(out, "text_offset", &l->text_offset);
    pd_buf_putc(out, '}');
}

void pd_logprob_lists_clear(pd_logprob_lists *l) {
    pd_buf_clear(&l->tokens);
    pd_buf_clear(&l->token_logprobs);
    pd_buf_clear(&l->top_logprobs);
    pd_buf_clear(&l->text_offset);
}

void pd_logprob_lists_done(pd_logprob_lists *l) {
    pd_buf_done(&l->tokens);
    pd_buf_done(&l->token_logprobs);
    pd_buf_done(&l->top_logprobs);
    pd_buf_done(&l->text_offset);
}
