/* SPDX-License-Identifier: Apache-2.0 */
/* What each chat family writes, exactly as its models' published Jinja text
 * does (tools left out: the server offers none).
 *
 * A renderer writes the template's own text with put() and the messages' words
 * with say(); only the former may become control tokens.  Where the Jinja text
 * raises an exception, refuse() names the message. */
#include "engine/tokenizer/chat_family.h"

#include "engine/base/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void put(pd__prompt *p, const char *s) {
    pd_buf_puts(p->text, s);
}

static size_t here(const pd__prompt *p) {
    return p->text->len - p->base;
}

static void say_n(pd__prompt *p, const char *s, size_t n) {
    if (n == 0) return;
    if (p->n_plain == p->cap_plain) {
        const size_t cap = p->cap_plain ? 2 * p->cap_plain : 16;
        pd__span *q = realloc(p->plain, cap * sizeof *q);
        if (!q) {
            p->failed = true;
            return;
        }
        p->plain = q;
        p->cap_plain = cap;
    }
    p->plain[p->n_plain++] = (pd__span){here(p), here(p) + n};
    pd_buf_add(p->text, s, n);
}

static void say(pd__prompt *p, const char *s) {
    say_n(p, s, strlen(s));
}

/* Python's str.isspace, which is what Jinja's trim strips by. */
static bool strips(uint32_t cp) {
    return (cp >= 9 && cp <= 13) || (cp >= 0x1C && cp <= 0x20) || cp == 0x85 || cp == 0xA0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

static pd_str trim(const char *s) {
    size_t begin = 0, n = strlen(s), end = 0, len;
    bool seen = false;
    for (size_t i = 0; i < n; i += len) {
        uint32_t cp = 0xFFFD;
        len = pd_utf8_next(s + i, n - i, &cp);
        if (len == 0) len = 1;
        if (strips(cp)) continue;
        if (!seen) begin = i;
        seen = true;
        end = i + len;
    }
    return (pd_str){s + begin, end - begin};
}

static void say_trimmed(pd__prompt *p, const char *s) {
    const pd_str cut = trim(s);
    say_n(p, cut.data, cut.len);
}

static void put_token(pd__prompt *p, int32_t id) {
    if (id < 0) return;
    const pd_str s = pd__piece_text(p->t, id);
    pd_buf_add(p->text, s.data, s.len);
}

static void put_bos(pd__prompt *p) {
    if (here(p) == 0 && p->t->info.bos >= 0) p->bos = true;
    put_token(p, p->t->info.bos);
}

static void put_eos(pd__prompt *p) {
    put_token(p, p->t->info.eos);
}

static void system_begins(pd__prompt *p) {
    p->system_begin = here(p);
}

static void system_ends(pd__prompt *p) {
    p->system_end = here(p);
}

static bool is(const char *role, const char *name) {
    return strcmp(role, name) == 0;
}

static void note_user(pd__prompt *p, const char *role) {
    if (is(role, "user")) p->last_user = here(p);
}

static pd_status refuse(pd_err *err, size_t i, const char *what) {
    char param[40];
    snprintf(param, sizeof param, "messages[%zu].role", i);
    return pd_fail(err, PD_EINVAL, param, "%s: the model's chat template %s", param, what);
}

static pd_status need_message(size_t n, pd_err *err) {
    if (n) return PD_OK;
    return pd_fail(err, PD_EINVAL, "messages", "messages is empty: the model's chat template needs at least one");
}

/* user, assistant, user ... from message `first` on. */
static pd_status alternate(const pd_chat_msg *msg, size_t n, size_t first, pd_err *err) {
    for (size_t i = first; i < n; i++) {
        if (is(msg[i].role, "user") != ((i - first) % 2 == 0))
            return refuse(err, i, "wants user and assistant in turn, user first");
    }
    return PD_OK;
}

/* ---- ChatML: SmolLM2, Qwen, and models fine-tuned to it ---- */

static void chatml_turn(pd__prompt *p, const pd_chat_msg *m) {
    put(p, "<|im_start|>");
    say(p, m->role);
    put(p, "\n");
    say(p, m->content);
    put(p, "<|im_end|>\n");
}

static void chatml_default_system(const pd_chat *c, pd__prompt *p) {
    system_begins(p);
    put(p, "<|im_start|>system\n");
    put(p, c->system);
    put(p, "<|im_end|>\n");
    system_ends(p);
}

static pd_status chatml(const pd_chat *c, pd__prompt *p, const pd_chat_msg *msg, size_t n, bool generate, pd_err *err) {
    (void)err;
    for (size_t i = 0; i < n; i++) {
        const bool system = i == 0 && is(msg[i].role, "system");
        if (i == 0 && !system && c->system) chatml_default_system(c, p);
        note_user(p, msg[i].role);
        if (system) system_begins(p);
        chatml_turn(p, &msg[i]);
        if (system) system_ends(p);
    }
    if (generate) put(p, "<|im_start|>assistant\n");
    return PD_OK;
}

/* Qwen 2.5: a run of tool messages is one user turn; unknown roles vanish. */
static pd_status qwen25(const pd_chat *c, pd__prompt *p, const pd_chat_msg *msg, size_t n, bool generate, pd_err *err) {
    PD_TRY(need_message(n, err));
    if (!is(msg[0].role, "system")) chatml_default_system(c, p);
    for (size_t i = 0; i < n; i++) {
        const char *role = msg[i].role;
        if (is(role, "tool")) {
            if (i == 0 || !is(msg[i - 1].role, "tool")) put(p, "<|im_start|>user");
            put(p, "\n<tool_response>\n");
            say(p, msg[i].content);
            put(p, "\n</tool_response>");
            if (i + 1 == n || !is(msg[i + 1].role, "tool")) put(p, "<|im_end|>\n");
        } else if (is(role, "user") || is(role, "assistant") || is(role, "system")) {
            const bool system = i == 0 && is(role, "system");
            note_user(p, role);
            if (system) system_begins(p);
            chatml_turn(p, &msg[i]);
            if (system) system_ends(p);
        }
    }
    if (generate) put(p, "<|im_start|>assistant\n");
    return PD_OK;
}

/* ---- Llama 3 ---- */

static void llama3_turn(pd__prompt *p, const pd_chat_msg *m) {
    put(p, "<|start_header_id|>");
    say(p, m->role);
    put(p, "<|end_header_id|>\n\n");
    say_trimmed(p, m->content);
    put(p, "<|eot_id|>");
}

static pd_status llama3(const pd_chat *c, pd__prompt *p, const pd_chat_msg *msg, size_t n, bool generate, pd_err *err) {
    (void)c;
    (void)err;
    for (size_t i = 0; i < n; i++) {
        if (i == 0) put_bos(p);
        const bool system = i == 0 && is(msg[i].role, "system");
        note_user(p, msg[i].role);
        if (system) system_begins(p);
        llama3_turn(p, &msg[i]);
        if (system) system_ends(p);
    }
    if (generate) put(p, "<|start_header_id|>assistant<|end_header_id|>\n\n");
    return PD_OK;
}

/* Llama 3.1 to 3.3: always a system block, dated.  The date is the template's
 * own fixed one, so that a prompt is the same tomorrow (DIFFERS: Llama 3.2 and
 * later take today's where the renderer offers a clock). */
static pd_status llama31(const pd_chat *c, pd__prompt *p, const pd_chat_msg *msg, size_t n, bool generate, pd_err *err) {
    (void)c;
    PD_TRY(need_message(n, err));
    put_bos(p);
    const size_t first = is(msg[0].role, "system");
    system_begins(p);
    put(p, "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
           "Today Date: 26 Jul 2024\n\n");
    if (first) say_trimmed(p, msg[0].content);
    put(p, "<|eot_id|>");
    system_ends(p);
    for (size_t i = first; i < n; i++) {
        if (is(msg[i].role, "tool") || is(msg[i].role, "ipython"))
            return refuse(err, i, "can take a tool's answer only in JSON form, which is not supported");
        note_user(p, msg[i].role);
        llama3_turn(p, &msg[i]);
    }
    if (generate) put(p, "<|start_header_id|>assistant<|end_header_id|>\n\n");
    return PD_OK;
}

/* ---- Gemma ---- */

static void gemma_turns(pd__prompt *p, const pd_chat_msg *msg, size_t n, size_t first, bool generate) {
    for (size_t i = first; i < n; i++) {
        note_user(p, msg[i].role);
        put(p, "<start_of_turn>");
        if (is(msg[i].role, "assistant")) put(p, "model");
        else say(p, msg[i].role);
        put(p, "\n");
        if (first && i == first) {
            system_begins(p);
            say(p, msg[0].content);
            put(p, "\n\n");
            system_ends(p);
        }
        say_trimmed(p, msg[i].content);
        put(p, "<end_of_turn>\n");
    }
    if (generate) put(p, "<start_of_turn>model\n");
}

/* Gemma 3: the system message leads the first user message. */
static pd_status gemma(const pd_chat *c, pd__prompt *p, const pd_chat_msg *msg, size_t n, bool generate, pd_err *err) {
    (void)c;
    PD_TRY(need_message(n, err));
    const size_t first = is(msg[0].role, "system");
    PD_TRY(alternate(msg, n, first, err));
    put_bos(p);
    gemma_turns(p, msg, n, first, generate);
    return PD_OK;
}

static pd_status gemma2(const pd_chat *c, pd__prompt *p, const pd_chat_msg *msg, size_t n, bool generate, pd_err *err) {
    (void)c;
    PD_TRY(need_message(n, err));
    if (is(msg[0].role, "system")) return refuse(err, 0, "takes no system message");
    PD_TRY(alternate(msg, n, 0, err));
    put_bos(p);
    gemma_turns(p, msg, n, 0, generate);
    return PD_OK;
}

/* ---- Phi-3 ---- */

static void phi3_turn(pd__prompt *p, const char *header, const pd_chat_msg *m) {
    put(p, header);
    say(p, m->content);
    put(p, "<|end|>\n");
}

static pd_status phi3_any(pd__prompt *p, const pd_chat_msg *msg, size_t n, bool generate, bool empty_system) {
    for (size_t i = 0; i < n; i++) {
        if (is(msg[i].role, "system")) {
            if (!empty_system && msg[i].content[0] == '\0') continue;
            const bool first = p->system_begin == SIZE_MAX;
            if (first) system_begins(p);
            phi3_turn(p, "<|system|>\n", &msg[i]);
            if (first) system_ends(p);
        } else if (is(msg[i].role, "user")) {
            note_user(p, "user");
            phi3_turn(p, "<|user|>\n", &msg[i]);
        } else if (is(msg[i].role, "assistant")) {
            phi3_turn(p, "<|assistant|>\n", &msg[i]);
        }
    }
    if (generate) put(p, "<|assistant|>\n");
    else put_eos(p);
    return PD_OK;
}

static pd_status phi3(const pd_chat *c, pd__prompt *p, const pd_chat_msg *msg, size_t n, bool generate, pd_err *err) {
    (void)c;
    (void)err;
    return phi3_any(p, msg, n, generate, true);
}

/* Phi-3.5: an empty system message is none. */
static pd_status phi35(const pd_chat *c, pd__prompt *p, const pd_chat_msg *msg, size_t n, bool generate, pd_err *err) {
    (void)c;
    (void)err;
    return phi3_any(p, msg, n, generate, false);
}

/* The first release: no system message, every user message asks for its answer. */
static pd_status phi3_first(const pd_chat *c, pd__prompt *p, const pd_chat_msg *msg, size_t n, bool generate, pd_err *err) {
    (void)c;
    (void)generate;
    (void)err;
    put_bos(p);
    for (size_t i = 0; i < n; i++) {
        if (is(msg[i].role, "user")) {
            note_user(p, "user");
            phi3_turn(p, "<|user|>\n", &msg[i]);
            put(p, "<|assistant|>\n");
        } else if (is(msg[i].role, "assistant")) {
            say(p, msg[i].content);
            put(p, "<|end|>\n");
        }
    }
    return PD_OK;
}

/* ---- Mistral and Llama 2 ---- */

static pd_status inst(const pd_chat *c, pd__prompt *p, const pd_chat_msg *msg, size_t n, bool generate, pd_err *err) {
    (void)generate; /* [/INST] already asks */
    const pd__inst_style *s = c->inst;
    size_t first = 0;
    if (s->system != PD__SYSTEM_REFUSED) {
        PD_TRY(need_message(n, err));
        first = is(msg[0].role, "system");
    }
    PD_TRY(alternate(msg, n, first, err));
    put_bos(p);
    for (size_t i = first; i < n; i++) {
        if (is(msg[i].role, "user")) {
            note_user(p, "user");
            put(p, s->open);
            if (first && i == (s->system == PD__SYSTEM_FIRST ? first : n - 1)) {
                system_begins(p);
                say(p, msg[0].content);
                put(p, "\n\n");
                system_ends(p);
            }
            say(p, msg[i].content);
            put(p, s->close);
        } else if (is(msg[i].role, "assistant")) {
            put(p, s->answer);
            if (s->answer_trim) say_trimmed(p, msg[i].content);
            else say(p, msg[i].content);
            put_eos(p);
            put(p, s->answer_end);
        } else {
            return refuse(err, i, "takes user and assistant messages only");
        }
    }
    return PD_OK;
}

/* Llama 2 strips what stands between [INST] and [/INST] as a whole. */
static pd_status llama2(const pd_chat *c, pd__prompt *p, const pd_chat_msg *msg, size_t n, bool generate, pd_err *err) {
    (void)c;
    (void)generate;
    PD_TRY(need_message(n, err));
    const size_t first = is(msg[0].role, "system");
    PD_TRY(alternate(msg, n, first, err));
    for (size_t i = first; i < n; i++) {
        if (is(msg[i].role, "user")) {
            put_bos(p);
            note_user(p, "user");
            put(p, "[INST] ");
            pd_str body = trim(msg[i].content);
            if (first && i == first) {
                system_begins(p);
                put(p, "<<SYS>>\n");
                say(p, msg[0].content);
                put(p, "\n<</SYS>>");
                /* Only the end is the body's to strip; with no body, the text ends
                 * at the system block and its blank lines go too. */
                if (body.len) {
                    put(p, "\n\n");
                    body.len += (size_t)(body.data - msg[i].content);
                    body.data = msg[i].content;
                }
                system_ends(p);
            }
            say_n(p, body.data, body.len);
            put(p, " [/INST]");
        } else if (is(msg[i].role, "assistant")) {
            put(p, " ");
            say_trimmed(p, msg[i].content);
            put(p, " ");
            put_eos(p);
        }
    }
    return PD_OK;
}

static const pd__inst_style mistral_v01 = {"[INST] ", " [/INST]", "", " ", false, PD__SYSTEM_REFUSED};
static const pd__inst_style mistral_v02 = {"[INST] ", " [/INST]", "", "", false, PD__SYSTEM_REFUSED};
static const pd__inst_style mistral_v1 = {" [INST] ", " [/INST]", " ", "", false, PD__SYSTEM_FIRST};
static const pd__inst_style mistral_v3 = {"[INST] ", "[/INST]", " ", "", true, PD__SYSTEM_LAST};
static const pd__inst_style mistral_nemo = {"[INST]", "[/INST]", "", "", false, PD__SYSTEM_LAST};

const pd_chat pd__chats[] = {
    {"chatml", chatml, NULL, NULL},
    {"smollm2", chatml, "You are a helpful AI assistant named SmolLM, trained by Hugging Face", NULL},
    {"qwen1.5", chatml, "You are a helpful assistant", NULL},
    {"qwen2", chatml, "You are a helpful assistant.", NULL},
    {"qwen2.5", qwen25, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", NULL},
    {"llama2", llama2, NULL, NULL},
    {"llama3", llama3, NULL, NULL},
    {"llama3.1", llama31, NULL, NULL},
    {"gemma", gemma, NULL, NULL},
    {"gemma2", gemma2, NULL, NULL},
    {"phi3", phi3, NULL, NULL},
    {"phi3.5", phi35, NULL, NULL},
    {"phi3-first", phi3_first, NULL, NULL},
    {"mistral", inst, NULL, &mistral_nemo},
    {"mistral-v0.1", inst, NULL, &mistral_v01},
    {"mistral-v0.2", inst, NULL, &mistral_v02},
    {"mistral-v1", inst, NULL, &mistral_v1},
    {"mistral-v3", inst, NULL, &mistral_v3},
};
const size_t pd__n_chats = sizeof pd__chats / sizeof *pd__chats;

const pd_chat *pd__chat_find(const char *name, size_t len) {
    for (size_t i = 0; i < pd__n_chats; i++) {
        if (strlen(pd__chats[i].name) == len && memcmp(pd__chats[i].name, name, len) == 0) return &pd__chats[i];
    }
    return NULL;
}
