/* SPDX-License-Identifier: Apache-2.0 */
/* Choosing a chat family, and turning its text into ids (see chat.h). */
#include "engine/tokenizer/chat_family.h"

#include "engine/base/num.h"

#include <stdlib.h>
#include <string.h>

#define JINJA_MAX ((size_t)1 << 20)

/* ---- recognising ---- */

/* The Jinja text with everything that does not change its output made equal:
 * white space outside strings gone, strings in single quotes with their \n
 * spelt out, no whitespace-control signs, comments gone, x.role as x['role'].
 * dst has 8 bytes for each of the text's. */
static size_t canonical(const char *s, size_t n, char *dst) {
    size_t k = 0, i = 0;
    bool tag = false;
    char quote = 0;
    while (i < n) {
        const char c = s[i], d = i + 1 < n ? s[i + 1] : '\0';
        if (quote) {
            if (c == '\\' && d == 'n') {
                dst[k++] = '\n';
                i += 2;
                continue;
            }
            if (c == '\\' && d != '\0') {
                dst[k++] = d;
                i += 2;
                continue;
            }
            dst[k++] = c == quote ? '\'' : c;
            if (c == quote) quote = 0;
            i++;
        } else if (!tag && c == '{' && d == '#') {
            const char *end = memmem(s + i, n - i, "#}", 2);
            i = end ? (size_t)(end - s) + 2 : n;
        } else if (!tag && c == '{' && (d == '{' || d == '%')) {
            tag = true;
            dst[k++] = c;
            dst[k++] = d;
            i += 2;
            if (i < n && (s[i] == '-' || s[i] == '+')) i++;
        } else if (tag && (c == '-' || c == '+') && i + 2 < n && (d == '}' || d == '%') && s[i + 2] == '}') {
            i++;
        } else if (tag && (c == '}' || c == '%') && d == '}') {
            tag = false;
            dst[k++] = c;
            dst[k++] = d;
            i += 2;
        } else if (c == ' ' || (c >= '\t' && c <= '\r')) {
            i++;
        } else if (tag && (c == '\'' || c == '"')) {
            quote = c;
            dst[k++] = '\'';
            i++;
        } else if (tag && n - i > 5 && memcmp(s + i, ".role", 5) == 0) {
            memcpy(dst + k, "['role']", 8);
            k += 8;
            i += 5;
        } else if (tag && n - i > 8 && memcmp(s + i, ".content", 8) == 0) {
            memcpy(dst + k, "['content']", 11);
            k += 11;
            i += 8;
        } else {
            dst[k++] = c;
            i++;
        }
    }
    return k;
}

#define CHATML_TURN "{{'<|im_start|>'+message['role']+'\n'+message['content']+'<|im_end|>'+'\n'}}"
#define CHATML_TURN2 "{{'<|im_start|>'+message['role']+'\n'+message['content']+'<|im_end|>\n'}}"
#define ALTERNATE "(message['role']=='user')!=(loop.index0%2==0)"

/* Marks of a family in canonical text: all of `must`, none of `never`.  They
 * are whole expressions, so a template that writes anything else is not taken. */
static const struct {
    const char *name;
    const char *must[4], *never[4];
} signs[] = {
    {"smollm2", {CHATML_TURN, "named SmolLM, trained by Hugging Face<|im_end|>\n'}}"}, {"tool", "raise_exception"}},
    {"qwen1.5", {CHATML_TURN, "'<|im_start|>system\nYou are a helpful assistant<|im_end|>\n'"}, {"tool", "raise_exception"}},
    {"qwen2", {CHATML_TURN, "'<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'"}, {"tool", "raise_exception"}},
    {"qwen2.5", {CHATML_TURN, "'<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n'",
                 "\n<tool_response>\n"}, {"<think>", "raise_exception"}},
    {"chatml", {CHATML_TURN}, {"tool", "raise_exception", "system", "think"}},
    {"chatml", {CHATML_TURN2}, {"tool", "raise_exception", "system", "think"}},
    {"llama3.1", {"'<|start_header_id|>'+message['role']+'<|end_header_id|>\n\n'+message['content']|trim+'<|eot_id|>'",
                  "'Cutting Knowledge Date: December 2023\n'", "'26 Jul 2024'"}, {"<think>"}},
    {"llama3", {"'<|start_header_id|>'+message['role']+'<|end_header_id|>\n\n'+message['content']|trim+'<|eot_id|>'",
                "bos_token+content"}, {"tool", "Cutting Knowledge", "raise_exception"}},
    {"gemma", {"'<start_of_turn>'+role+'\n'+(first_user_prefixifloop.firstelse'')", ALTERNATE, "message['content']|trim"}, {"tool"}},
    {"gemma2", {"'<start_of_turn>'+role+'\n'+message['content']|trim+'<end_of_turn>\n'", ALTERNATE, "System role not supported"}, {"tool"}},
    {"phi3.5", {"message['role']=='system'andmessage['content']%}{{'<|system|>\n'+message['content']+'<|end|>\n'}}",
                "{{'<|assistant|>\n'+message['content']+'<|end|>\n'}}", "{%else%}{{eos_token}}"}, {"tool"}},
    {"phi3", {"message['role']=='system'%}{{'<|system|>\n'+message['content']+'<|end|>\n'}}",
              "{{'<|assistant|>\n'+message['content']+'<|end|>\n'}}", "{%else%}{{eos_token}}"}, {"tool"}},
    {"phi3-first", {"{{bos_token}}", "{{'<|user|>'+'\n'+message['content']+'<|end|>'+'\n'+'<|assistant|>'+'\n'}}",
                    "{{message['content']+'<|end|>'+'\n'}}"}, {"tool", "system"}},
    {"mistral", {"'[INST]'+system_message+'\n\n'+message['content']+'[/INST]'", "{{message['content']+eos_token}}",
                 "loop.lastandsystem_messageisdefined", "(message['role']=='user')!=(ns.index%2==0)"}, {"SYSTEM_PROMPT"}},
    {"mistral-v3", {"'[INST] '+system_message+'\n\n'+message['content']+'[/INST]'", "' '+message['content']|trim+eos_token",
                    "loop.lastandsystem_messageisdefined", "(message['role']=='user')!=(ns.index%2==0)"}, {"SYSTEM_PROMPT"}},
    {"mistral-v1", {"' [INST] '+system_message+'\n\n'+message['content']+' [/INST]'", "{{' '+message['content']+eos_token}}",
                    "loop.firstandsystem_messageisdefined", ALTERNATE}, {"tool"}},
    {"mistral-v0.1", {"{{'[INST] '+message['content']+' [/INST]'}}", "{{message['content']+eos_token+' '}}", ALTERNATE}, {"tool", "system"}},
    {"mistral-v0.2", {"{{'[INST] '+message['content']+' [/INST]'}}", "{{message['content']+eos_token}}", ALTERNATE}, {"tool", "system"}},
    {"llama2", {"{{bos_token+'[INST] '+content.strip()+' [/INST]'}}", "{{' '+content.strip()+' '+eos_token}}",
                "'<<SYS>>\n'+system_message+'\n<</SYS>>\n\n'+message['content']", ALTERNATE}, {"tool"}},
};

static bool holds(const char *s, size_t n, const char *part) {
    return memmem(s, n, part, strlen(part)) != NULL;
}

const pd_chat *pd__chat_recognise(const char *jinja, size_t len) {
    if (len > JINJA_MAX) return NULL;
    char *s = malloc(8 * len + 1);
    if (!s) return NULL;
    const size_t n = canonical(jinja, len, s);
    const pd_chat *found = NULL;
    for (size_t i = 0; !found && i < sizeof signs / sizeof *signs; i++) {
        bool fits = true;
        for (size_t k = 0; k < 4; k++) {
            if (signs[i].must[k] && !holds(s, n, signs[i].must[k])) fits = false;
            if (signs[i].never[k] && holds(s, n, signs[i].never[k])) fits = false;
        }
        if (fits) found = pd__chat_find(signs[i].name, strlen(signs[i].name));
    }
    free(s);
    return found;
}

/* ---- opening ---- */

/* Without a template the vocabulary tells: a model trained on a family has its
 * markers as tokens of their own.  First row whose markers are all there. */
static const struct {
    const char *name, *marker[2];
} by_markers[] = {
    {"gemma", {"<start_of_turn>", "<end_of_turn>"}},    {"llama3", {"<|start_header_id|>", "<|eot_id|>"}},
    {"chatml", {"<|im_start|>", "<|im_end|>"}},         {"phi3", {"<|user|>", "<|end|>"}},
    {"mistral", {"[INST]", "[/INST]"}},
};

static bool has_token(const pd_gguf_kv *tokens, const char *text) {
    const pd_str *s = tokens->v.array;
    for (uint64_t i = 0; i < tokens->n; i++) {
        if (pd_str_eq(s[i], text)) return true;
    }
    return false;
}

static const pd_chat *from_vocabulary(const pd_gguf *g) {
    const pd_gguf_kv *arch = pd_gguf_find(g, "general.architecture");
    if (arch && arch->type == PD_GGUF_STRING && (pd_str_eq(arch->v.s, "gemma") || pd_str_eq(arch->v.s, "gemma2")))
        return pd__chat_find("gemma2", 6);
    const pd_gguf_kv *tokens = pd_gguf_find(g, "tokenizer.ggml.tokens");
    if (!tokens || tokens->type != PD_GGUF_ARRAY || tokens->elem != PD_GGUF_STRING) return NULL;
    for (size_t i = 0; i < sizeof by_markers / sizeof *by_markers; i++) {
        if (has_token(tokens, by_markers[i].marker[0]) && has_token(tokens, by_markers[i].marker[1]))
            return pd__chat_find(by_markers[i].name, strlen(by_markers[i].name));
    }
    return NULL;
}

pd_status pd_chat_open(const pd_chat **ret, const pd_gguf *g, const char *name, pd_chat_origin *origin, pd_err *err) {
    pd_chat_origin from = PD_CHAT_FROM_OPTION;
    const pd_chat *c = NULL;
    if (name && *name) {
        c = pd__chat_find(name, strlen(name));
        if (!c)
            return pd_fail(err, PD_EINVAL, "chat_template", "unknown chat template '%.40s'; known are %s", name,
                           pd_chat_names());
    } else {
        const pd_gguf_kv *kv = pd_gguf_find(g, "tokenizer.chat_template");
        from = kv ? PD_CHAT_FROM_FILE : PD_CHAT_FROM_ARCH;
        if (kv && kv->type != PD_GGUF_STRING)
            return pd_fail(err, PD_EFILE, NULL, "tokenizer.chat_template is not a string");
        c = kv ? pd__chat_recognise(kv->v.s.data, kv->v.s.len) : from_vocabulary(g);
        if (!c)
            return pd_fail(err, PD_EFILE, NULL, "%s; choose one with --chat-template (%s)",
                           kv ? "tokenizer.chat_template is of no known family"
                              : "the file has no chat template and its vocabulary no known markers", pd_chat_names());
    }
    *ret = c;
    if (origin) *origin = from;
    return PD_OK;
}

const char *pd_chat_name(const pd_chat *c) {
    return c->name;
}

const char *pd_chat_names(void) {
    return "chatml, smollm2, qwen1.5, qwen2, qwen2.5, llama2, llama3, llama3.1, gemma, gemma2, phi3, phi3.5, phi3-first, "
           "mistral, mistral-v0.1, mistral-v0.2, mistral-v1, mistral-v3";
}

/* ---- rendering ---- */

static pd_status write_prompt(const pd_chat *c, pd__prompt *p, const pd_chat_msg *msg, size_t n, bool generate,
                              pd_err *err) {
    p->base = p->text->len;
    p->system_begin = p->system_end = p->last_user = SIZE_MAX;
    PD_TRY(c->render(c, p, msg, n, generate, err));
    if (p->failed || p->text->failed) return pd_fail(err, PD_ENOMEM, NULL, "no memory to render the messages");
    return PD_OK;
}

pd_status pd_chat_render(const pd_chat *c, const pd_tokenizer *t, const pd_chat_msg *msg, size_t n_msg,
                         bool add_generation_prompt, pd_buf *out, pd_err *err) {
    pd__prompt p = {.t = t, .text = out};
    const size_t len = out->len;
    const pd_status rc = write_prompt(c, &p, msg, n_msg, add_generation_prompt, err);
    free(p.plain);
    if (rc != PD_OK && out->data) {
        out->len = len;
        out->data[len] = '\0';
    }
    return rc;
}

static pd_status encode(const pd__prompt *p, pd_ids *out, pd_chat_marks *marks, pd_err *err) {
    pd_chat_marks m = {0};
    size_t user = 0;
    pd__mark at[3];
    size_t n = 0;
    if (p->system_begin != SIZE_MAX) {
        at[n++] = (pd__mark){p->system_begin, false, &m.system_begin};
        at[n++] = (pd__mark){p->system_end, true, &m.system_end};
    }
    if (p->last_user != SIZE_MAX) {
        /* Before the system's where that one stands inside the user's message. */
        size_t i = n;
        while (i > 0 && at[i - 1].at > p->last_user) {
            at[i] = at[i - 1];
            i--;
        }
        at[i] = (pd__mark){p->last_user, false, &user};
        n++;
    }
    PD_TRY(pd__tokenize_mixed(p->t, p->text->data ? p->text->data : "", p->text->len,
                              PD_TOK_SPECIAL | (p->bos ? 0 : PD_TOK_BOS), p->plain, p->n_plain, at, n, out, err));
    m.last_user_begin = p->last_user != SIZE_MAX ? user : out->n;
    if (marks) *marks = m;
    return PD_OK;
}

pd_status pd_chat_encode(const pd_chat *c, const pd_tokenizer *t, const pd_chat_msg *msg, size_t n_msg,
                         bool add_generation_prompt, pd_ids *out, pd_chat_marks *marks, pd_err *err) {
    pd_buf text;
    pd_buf_init(&text, 0);
    pd__prompt p = {.t = t, .text = &text};
    pd_status rc = write_prompt(c, &p, msg, n_msg, add_generation_prompt, err);
    if (rc == PD_OK) rc = encode(&p, out, marks, err);
    pd_buf_done(&text);
    free(p.plain);
    return rc;
}
