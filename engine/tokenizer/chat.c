/* SPDX-License-Identifier: Apache-2.0 */
/* Choosing a chat template, rendering it, and turning its text into ids (see chat.h). */
#include "engine/tokenizer/chat_int.h"

#include "engine/base/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct pd_chat {
    char name[32];
    char *text;
    pd_jinja *jinja, *with_tools; /* a model may bring another one for requests with tools; or NULL */
    char warning[200];            /* of a model's own template that is not used; "" = none */
};

/* ---- opening ---- */

pd_status pd__chat_from_text(pd_chat **ret, const char *name, const char *text, size_t n, pd_err *err) {
    pd_chat *c = calloc(1, sizeof *c);
    if (c) c->text = strndup(text, n);
    if (!c || !c->text) {
        pd_chat_close(c);
        return pd_fail(err, PD_ENOMEM, NULL, "no memory for the chat template");
    }
    snprintf(c->name, sizeof c->name, "%s", name);
    const pd_status rc = pd_jinja_compile(&c->jinja, text, n, err);
    if (rc == PD_OK) *ret = c;
    else pd_chat_close(c);
    return rc;
}

void pd_chat_close(pd_chat *c) {
    if (!c) return;
    pd_jinja_close(c->jinja);
    pd_jinja_close(c->with_tools);
    free(c->text);
    free(c);
}

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

static const char *from_vocabulary(const pd_gguf *g) {
    const pd_gguf_kv *arch = pd_gguf_find(g, "general.architecture");
    if (arch && arch->type == PD_GGUF_STRING && (pd_str_eq(arch->v.s, "gemma") || pd_str_eq(arch->v.s, "gemma2")))
        return "gemma2";
    const pd_gguf_kv *tokens = pd_gguf_find(g, "tokenizer.ggml.tokens");
    if (!tokens || tokens->type != PD_GGUF_ARRAY || tokens->elem != PD_GGUF_STRING) return NULL;
    for (size_t i = 0; i < sizeof by_markers / sizeof *by_markers; i++) {
        if (has_token(tokens, by_markers[i].marker[0]) && has_token(tokens, by_markers[i].marker[1]))
            return by_markers[i].name;
    }
    return NULL;
}

static pd_status open_named(pd_chat **ret, const char *name, pd_err *err) {
    const pd__chat_builtin *b = pd__chat_find(name, strlen(name));
    return pd__chat_from_text(ret, b->name, b->text, strlen(b->text), err);
}

static pd_status open_custom(pd_chat **ret, const char *text, size_t n, pd_err *err) {
    pd_err why = {0};
    const pd_status rc = pd__chat_from_text(ret, "custom", text, n, &why);
    return rc == PD_OK ? rc : pd_fail(err, rc, "chat_template", "the chat template given cannot be used: %.250s", why.msg);
}

static pd_status open_spec(pd_chat **ret, const char *spec, pd_err *err) {
    if (pd__chat_find(spec, strlen(spec))) return open_named(ret, spec, err);
    if (strstr(spec, "{{") || strstr(spec, "{%")) return open_custom(ret, spec, strlen(spec), err);
    char *text = NULL;
    size_t n = 0;
    pd_err why = {0};
    if (pd_file_read(spec, PD_JINJA_TEXT_MAX, &text, &n, &why) != PD_OK)
        return pd_fail(err, PD_EINVAL, "chat_template",
                       "'%.60s' is no chat template: neither Jinja text, nor a file that can be read, nor one of %s", spec,
                       pd_chat_names());
    const pd_status rc = open_custom(ret, text, n, err);
    free(text);
    return rc;
}

/* The file's own.  EINVAL: it cannot be read, and why. */
static pd_status open_own(pd_chat **ret, const pd_gguf *g, const pd_gguf_kv *kv, pd_err *err) {
    pd_err why = {0};
    const pd_gguf_kv *tools = pd_gguf_find(g, "tokenizer.chat_template.tool_use");
    if (kv->type != PD_GGUF_STRING) return pd_fail(err, PD_EINVAL, NULL, "it is not a string");
    PD_TRY(pd__chat_from_text(ret, "model", kv->v.s.data, kv->v.s.len, err));
    if (!tools || tools->type != PD_GGUF_STRING) return PD_OK;
    const pd_status rc = pd_jinja_compile(&(*ret)->with_tools, tools->v.s.data, tools->v.s.len, &why);
    if (rc == PD_ENOMEM) {
        pd_chat_close(*ret);
        return pd_fail(err, rc, NULL, "%s", why.msg);
    }
    if (rc != PD_OK)
        snprintf((*ret)->warning, sizeof (*ret)->warning,
                 "tokenizer.chat_template.tool_use cannot be used (%.90s): the plain one is, with tools too", why.msg);
    return PD_OK;
}

/* The family's, for a file that brings none or (why not NULL) one that cannot be used. */
static pd_status open_family(pd_chat **ret, const pd_gguf *g, const pd_err *why, pd_err *err) {
    const char *family = from_vocabulary(g);
    if (!family && why)
        return pd_fail(err, PD_EFILE, NULL, "tokenizer.chat_template cannot be used: %.120s; choose another with --chat-template",
                       why->msg);
    if (!family)
        return pd_fail(err, PD_EFILE, NULL,
                       "the file has no chat template and its vocabulary no known markers; choose one with "
                       "--chat-template (%s)",
                       pd_chat_names());
    PD_TRY(open_named(ret, family, err));
    if (why)
        snprintf((*ret)->warning, sizeof (*ret)->warning, "tokenizer.chat_template cannot be used (%.100s): %s is, by the vocabulary",
                 why->msg, family);
    return PD_OK;
}

pd_status pd_chat_open(pd_chat **ret, const pd_gguf *g, const char *spec, pd_chat_origin *origin, pd_err *err) {
    pd_chat_origin from = PD_CHAT_FROM_OPTION;
    if (spec && *spec) {
        PD_TRY(open_spec(ret, spec, err));
    } else {
        const pd_gguf_kv *kv = pd_gguf_find(g, "tokenizer.chat_template");
        pd_err why = {0};
        const pd_status rc = kv ? open_own(ret, g, kv, &why) : PD_EINVAL;
        if (rc != PD_OK && rc != PD_EINVAL) return pd_fail(err, rc, NULL, "%s", why.msg);
        from = rc == PD_OK ? PD_CHAT_FROM_FILE : PD_CHAT_FROM_ARCH;
        if (rc != PD_OK) PD_TRY(open_family(ret, g, kv ? &why : NULL, err));
    }
    if (origin) *origin = from;
    return PD_OK;
}

const char *pd_chat_warning(const pd_chat *c) {
    return c->warning[0] ? c->warning : NULL;
}

const char *pd_chat_name(const pd_chat *c) {
    return c->name;
}

const char *pd_chat_text(const pd_chat *c) {
    return c->text;
}

bool pd_chat_uses(const pd_chat *c, const char *variable) {
    return pd_jinja_uses(c->jinja, variable) || (c->with_tools && pd_jinja_uses(c->with_tools, variable));
}

/* ---- the variables ---- */

static pd_jval special(pd_jheap *h, const pd_tokenizer *t, int32_t id) {
    const pd_str s = id >= 0 ? pd__piece_text(t, id) : (pd_str){"", 0};
    return pd_jstr(h, s.data, s.len, PD_JORIGIN_TEMPLATE);
}

/* Templates write roles into their markers ('<|' + role + '|>'): the ones they are made
 * for count as their own words, any other as the client's. */
static uint16_t role_origin(const char *role, uint16_t message) {
    static const char *const known[] = {"system", "developer", "user", "assistant", "tool", "function", "ipython", "model"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(role, known[i]) == 0) return PD_JORIGIN_TEMPLATE;
    }
    return message;
}

static pd_jval message(pd_jheap *h, const pd_chat_talk *talk, size_t i) {
    const pd_chat_msg *m = &talk->msg[i];
    const uint16_t origin = (uint16_t)(i + 1);
    pd_jval v = pd_jdict(h, 2, origin);
    pd_jdict_set(h, v, "role", pd_jstr(h, m->role, strlen(m->role), role_origin(m->role, origin)));
    if (!talk->value) {
        pd_jdict_set(h, v, "content", pd_jstr(h, m->content, strlen(m->content), origin));
        return v;
    }
    pd_jdict_extend(h, v, talk->value[i], "role");
    return v;
}

static pd_jval variables(pd_jheap *h, const pd_tokenizer *t, const pd_chat_talk *talk) {
    pd_jval vars = pd_jdict(h, 12, PD_JORIGIN_TEMPLATE), list = pd_jlist(h, talk->n_msg, PD_JORIGIN_TEMPLATE);
    for (size_t i = 0; i < talk->n_msg; i++) pd_jlist_add(h, list, message(h, talk, i));
    if (talk->vars) pd_jdict_extend(h, vars, *talk->vars, NULL);
    pd_jdict_set(h, vars, "messages", list);
    pd_jdict_set(h, vars, "add_generation_prompt", pd_jbool(talk->add_generation_prompt));
    pd_jdict_set(h, vars, "continue_final_message", pd_jbool(talk->continue_final));
    pd_jdict_set(h, vars, "bos_token", special(h, t, t->info.bos));
    pd_jdict_set(h, vars, "eos_token", special(h, t, t->info.eos));
    if (t->info.unk >= 0) pd_jdict_set(h, vars, "unk_token", special(h, t, t->info.unk));
    if (t->info.pad >= 0) pd_jdict_set(h, vars, "pad_token", special(h, t, t->info.pad));
    return vars;
}

/* ---- rendering ---- */

/* The prompt ends behind the last word that is the final message's. */
static pd_status cut_final(const pd_chat_talk *talk, pd_jout *out, pd_err *err) {
    size_t i = out->n_client;
    while (i > 0 && out->client[i - 1].origin != talk->n_msg) i--;
    if (i == 0)
        return pd_fail(err, PD_EINVAL, "continue_final_message",
                       "continue_final_message is true, but the chat template writes nothing of the last message");
    out->len = out->client[i - 1].end;
    out->n_client = i;
    while (out->n_turn && out->turn[out->n_turn - 1].begin >= out->len) out->n_turn--;
    return PD_OK;
}

static pd_status render(const pd_chat *c, const pd_tokenizer *t, const pd_chat_talk *talk, pd_jheap *h, pd_jout *out,
                        pd_err *err) {
    const pd_jval *tools = talk->vars ? pd_jdict_get(*talk->vars, "tools") : NULL;
    const bool with_tools = c->with_tools && tools && tools->kind == PD_JLIST;
    const pd_jval vars = variables(h, t, talk);
    PD_TRY(pd_jinja_render(with_tools ? c->with_tools : c->jinja, h, vars, talk->now, out, err));
    return talk->continue_final && talk->n_msg ? cut_final(talk, out, err) : PD_OK;
}

pd_status pd_chat_render(const pd_chat *c, const pd_tokenizer *t, const pd_chat_talk *talk, pd_buf *text, pd_err *err) {
    pd_jheap h = {0};
    pd_jout out = {0};
    pd_status rc = render(c, t, talk, &h, &out, err);
    if (rc == PD_OK) {
        pd_buf_add(text, out.text, out.len);
        if (text->failed) rc = pd_fail(err, PD_ENOMEM, NULL, "no memory for the prompt of %zu bytes", out.len);
    }
    pd_jheap_done(&h);
    return rc;
}

static pd_status encode(const pd_tokenizer *t, const pd_jout *text, const pd_chat_talk *talk, pd_jheap *h, pd_ids *out,
                        pd_chat_marks *marks, pd_err *err) {
    const pd__chat_places p = pd__chat_locate(t, text, talk->msg, talk->n_msg);
    pd_chat_marks m = {0};
    size_t user = 0, n = 0;
    pd__mark at[3];
    if (p.system_begin != SIZE_MAX) {
        at[n++] = (pd__mark){p.system_begin, false, &m.system_begin};
        at[n++] = (pd__mark){p.system_end, true, &m.system_end};
    }
    if (p.last_user != SIZE_MAX) {
        /* Before the system's where that one stands inside the user's message. */
        size_t i = n;
        for (; i > 0 && at[i - 1].at > p.last_user; i--) at[i] = at[i - 1];
        at[i] = (pd__mark){p.last_user, false, &user};
        n++;
    }
    pd__span *plain = PD_JNEW(h, text->n_client ? text->n_client : 1, pd__span);
    if (!plain) return pd_fail(err, PD_ENOMEM, NULL, "no memory to tokenize the messages");
    for (size_t i = 0; i < text->n_client; i++) plain[i] = (pd__span){text->client[i].begin, text->client[i].end};
    const unsigned bos = pd__chat_bos_len(t, text) ? 0u : PD_TOK_BOS;
    PD_TRY(pd__tokenize_mixed(t, text->text, text->len, PD_TOK_SPECIAL | bos, plain, text->n_client, at, n, out, err));
    m.last_user_begin = p.last_user != SIZE_MAX ? user : out->n;
    if (marks) *marks = m;
    return PD_OK;
}

pd_status pd_chat_encode(const pd_chat *c, const pd_tokenizer *t, const pd_chat_talk *talk, pd_ids *ids,
                         pd_chat_marks *marks, pd_err *err) {
    pd_jheap h = {0};
    pd_jout out = {0};
    pd_status rc = render(c, t, talk, &h, &out, err);
    if (rc == PD_OK) rc = encode(t, &out, talk, &h, ids, marks, err);
    pd_jheap_done(&h);
    return rc;
}
