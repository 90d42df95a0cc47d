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

/* {"text":logprob,...}; the token itself is always there: up to n_top + 1 entries. */
static void top_map(pd_buf *out, const pd_tokenizer *tok, int32_t id, float logprob,
                    const pd_token_prob *top, size_t n_top) {
    bool chosen = false;
    pd_buf_putc(out, '{');
    for (size_t i = 0; i < n_top; i++) {
        if (i) pd_buf_putc(out, ',');
        token_text(out, tok, top[i].id);
        pd_buf_putc(out, ':');
        pd_json_f32(out, top[i].logprob);
        chosen |= top[i].id == id;
    }
    if (!chosen) {
        if (n_top) pd_buf_putc(out, ',');
        token_text(out, tok, id);
        pd_buf_putc(out, ':');
        pd_json_f32(out, logprob);
    }
    pd_buf_putc(out, '}');
}

static void add_token(pd_logprob_lists *l, const pd_tokenizer *tok, int32_t id, size_t offset) {
    separator(&l->tokens);
    token_text(&l->tokens, tok, id);
    separator(&l->text_offset);
    pd_json_u64(&l->text_offset, offset);
    separator(&l->token_logprobs);
    separator(&l->top_logprobs);
}

void pd_logprob_lists_add(pd_logprob_lists *l, const pd_tokenizer *tok, const pd_token_event *ev,
                          size_t offset) {
    add_token(l, tok, ev->id, offset);
    pd_json_f32(&l->token_logprobs, ev->logprob);
    top_map(&l->top_logprobs, tok, ev->id, ev->logprob, ev->top, ev->n_top);
}

void pd_logprob_lists_add_scored(pd_logprob_lists *l, const pd_tokenizer *tok, const pd_scored *s,
                                 size_t n_top, size_t offset) {
    add_token(l, tok, s->id, offset);
    if (s->rank == 0) {
        pd_buf_puts(&l->token_logprobs, "null");
        pd_buf_puts(&l->top_logprobs, "null");
        return;
    }
    pd_json_f32(&l->token_logprobs, s->logprob);
    top_map(&l->top_logprobs, tok, s->id, s->logprob, s->top, n_top < s->n_top ? n_top : s->n_top);
}

static void prompt_entry(pd_buf *out, const pd_tokenizer *tok, int32_t id, float logprob,
                         size_t rank) {
    const pd_str t = pd_token_bytes(tok, id, true);
    pd_buf_printf(out, "\"%d\":{\"logprob\":", id);
    pd_json_f32(out, logprob);
    pd_buf_printf(out, ",\"rank\":%zu,\"decoded_token\":", rank);
    pd_json_str(out, t.data, t.len);
    pd_buf_putc(out, '}');
}

void pd_logprob_prompt(pd_buf *out, const pd_tokenizer *tok, const pd_scored *s, size_t n,
                       size_t n_top) {
    pd_buf_putc(out, '[');
    for (size_t i = 0; i < n; i++) {
        if (i) pd_buf_putc(out, ',');
        if (s[i].rank == 0) {
            pd_buf_puts(out, "null");
            continue;
        }
        pd_buf_putc(out, '{');
        prompt_entry(out, tok, s[i].id, s[i].logprob, s[i].rank);
        for (size_t j = 0; j < s[i].n_top && j < n_top; j++) {
            if (s[i].top[j].id == s[i].id) continue;
            pd_buf_putc(out, ',');
            prompt_entry(out, tok, s[i].top[j].id, s[i].top[j].logprob, j + 1);
        }
        pd_buf_putc(out, '}');
    }
    pd_buf_putc(out, ']');
}

static void join(pd_buf *l, const pd_buf *more) {
    if (more->failed) l->failed = true;
    if (!more->len) return;
    separator(l);
    pd_buf_add(l, more->data, more->len);
}

void pd_logprob_lists_join(pd_logprob_lists *l, const pd_logprob_lists *more) {
    join(&l->tokens, &more->tokens);
    join(&l->token_logprobs, &more->token_logprobs);
    join(&l->top_logprobs, &more->top_logprobs);
    join(&l->text_offset, &more->text_offset);
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
