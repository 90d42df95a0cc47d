/* SPDX-License-Identifier: Apache-2.0 */
/* Where the system message and the last user message lie in a rendered prompt.
 *
 * Known of the text: which message's turn of the template's loop wrote a byte, and
 * which message a byte was cut from.
 *
 *   <s> <|system|> rules <|end|>  <|user|> hello <|end|>  <|assistant|>
 *       '------ turn 0 -------'   '----- turn 1 -------'
 *
 * Most templates write a message in its turn, header and end included.  Some write the
 * system message (or one of their own) before the loop: then it is all that stands
 * there.  Some put it into a user's turn: then it is its own words and the white space
 * behind.  A turn that first ends another one (or writes a system message that nobody
 * gave) begins behind that end's token. */
#include "engine/tokenizer/chat_int.h"

#include <string.h>

typedef struct {
    const pd_tokenizer *t;
    const pd_jout *out;
    size_t body; /* behind bos */
} prompt;

size_t pd__chat_bos_len(const pd_tokenizer *t, const pd_jout *out) {
    if (t->info.bos < 0) return 0;
    const pd_str bos = pd__piece_text(t, t->info.bos);
    if (bos.len == 0 || bos.len > out->len || memcmp(out->text, bos.data, bos.len) != 0) return 0;
    return out->n_client && out->client[0].begin < bos.len ? 0 : bos.len;
}

static bool is_white(char c) {
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

/* Over the template's own white space. */
static size_t skip_white(const prompt *p, size_t at, size_t end) {
    size_t i = 0;
    while (i < p->out->n_client && p->out->client[i].end <= at) i++;
    if (i < p->out->n_client && p->out->client[i].begin < end) end = p->out->client[i].begin;
    while (at < end && is_white(p->out->text[at])) at++;
    return at;
}

/* First and last byte cut from message `origin` (end: behind it) within [from, to). */
static bool words_of(const prompt *p, uint16_t origin, size_t from, size_t to, size_t *begin, size_t *end) {
    bool found = false;
    for (size_t i = 0; i < p->out->n_client; i++) {
        const pd_jspan *s = &p->out->client[i];
        if (s->origin != origin || s->begin < from || s->begin >= to) continue;
        if (!found) *begin = s->begin;
        *end = s->end;
        found = true;
    }
    return found;
}

/* Behind the last end-of-turn token that the template wrote in [from, to), and the
 * white space there; `from` if there is none. */
static size_t after_end_token(const prompt *p, size_t from, size_t to) {
    size_t at = from, len = 0;
    for (size_t i = from; i < to; i += len) {
        const int32_t id = pd__special_match(p->t, p->out->text + i, to - i, to - i, &len);
        if (id < 0) {
            len = 1;
            continue;
        }
        if (pd_token_is_eog(p->t, id)) at = i + len;
    }
    return at == from ? from : skip_white(p, at, to);
}

/* The turn of a message: its first stretch and its last.  False if it has none. */
static bool turn_of(const prompt *p, uint16_t origin, size_t *begin, size_t *end) {
    bool found = false;
    for (size_t i = 0; i < p->out->n_turn; i++) {
        const pd_jspan *s = &p->out->turn[i];
        if (s->origin != origin || s->end <= p->body) continue;
        if (!found) *begin = s->begin < p->body ? p->body : s->begin;
        *end = s->end;
        found = true;
    }
    if (!found) return false;
    size_t words = *end, last;
    words_of(p, origin, *begin, *end, &words, &last);
    const size_t own = after_end_token(p, *begin, words);
    if (own < *end) *begin = own;
    return true;
}

static void locate_system(const prompt *p, const pd_chat_msg *msg, size_t n, pd__chat_places *at) {
    size_t s = 0, first = p->out->len, begin = 0, end = 0;
    while (s < n && strcmp(msg[s].role, "system") != 0 && strcmp(msg[s].role, "developer") != 0) s++;
    if (s < n && turn_of(p, (uint16_t)(s + 1), &begin, &end)) {
        at->system_begin = s == 0 ? p->body : begin;
        at->system_end = end;
        return;
    }
    bool turns = false;
    for (size_t i = 0; i < n; i++) {
        if (i == s || !turn_of(p, (uint16_t)(i + 1), &begin, &end)) continue;
        turns = true;
        if (begin < first) first = begin;
    }
    const bool said = s < n && words_of(p, (uint16_t)(s + 1), 0, p->out->len, &begin, &end);
    if (said && (!turns || begin >= first)) {
        at->system_begin = begin;
        at->system_end = skip_white(p, end, p->out->len);
    } else if (turns && skip_white(p, p->body, first) < first) {
        at->system_begin = p->body;
        at->system_end = first;
    }
}

pd__chat_places pd__chat_locate(const pd_tokenizer *t, const pd_jout *out, const pd_chat_msg *msg, size_t n_msg) {
    const prompt p = {t, out, pd__chat_bos_len(t, out)};
    pd__chat_places at = {SIZE_MAX, SIZE_MAX, SIZE_MAX};
    locate_system(&p, msg, n_msg, &at);
    size_t begin, end;
    for (size_t i = n_msg; i > 0; i--) {
        if (strcmp(msg[i - 1].role, "user") != 0) continue;
        if (turn_of(&p, (uint16_t)i, &begin, &end) || words_of(&p, (uint16_t)i, 0, out->len, &begin, &end))
            at.last_user = begin;
        break;
    }
    return at;
}
