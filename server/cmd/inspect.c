/* SPDX-License-Identifier: Apache-2.0 */
/* pressd inspect: what is in a GGUF file, and what a token of its KV cache costs.
 *
 * Reads the header only, so it answers at once for a file of any size.  Any
 * well-formed file is described, of served architectures or not: what is not
 * known is a dash (null in JSON), a key of the wrong type is an error.  Text from
 * the file is made printable before it reaches a terminal. */
#include "engine/base/utf8.h"
#include "engine/gguf/gguf.h"
#include "engine/gguf/le.h"
#include "server/cmd/list.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum {
    LAYERS_MAX = 65535, HEADS_MAX = 65535, DIM_MAX = 1 << 24, /* their product fits 64 bits */
    GEMMA3_PATTERN = 6,  /* every 6th layer attends to everything, the others to their window */
    TYPES_MAX = 64,
};

typedef struct {
    bool known;
    uint64_t v;
} number;

typedef struct {
    const pd_gguf *g;
    pd_str arch, name, tok_model, tok_pre, chat; /* data NULL: absent */
    number layers, heads, kv_heads, k_len, v_len, context, embd, ff, vocab, window;
    const pd_gguf_kv *kv_heads_of; /* one count per layer, instead of kv_heads */
    number bos, eos, unk, pad;
    bool add_bos, add_eos;
    uint64_t n_param, n_files;
    struct {
        size_t tensors;
        uint64_t bytes;
    } type[TYPES_MAX]; /* as pd_qtype_at */
    number kv_bytes; /* of one token in f16; the sum of the next two */
    uint64_t kv_full, kv_window;
    unsigned full_layers, window_layers;
} facts;

/* ---- collecting ---- */

/* One per layer (an array, in some architectures) is not one number. */
static pd_status get_number(const pd_gguf *g, const char *key, uint32_t max, number *ret,
                            pd_err *err) {
    const pd_gguf_kv *kv = pd_gguf_find(g, key);
    if (!kv || kv->type == PD_GGUF_ARRAY) return PD_OK;
    uint32_t v = 0;
    PD_TRY(pd_gguf_u32(g, key, 0, max, &v, err));
    *ret = (number){true, v};
    return PD_OK;
}

static pd_status get_text(const pd_gguf *g, const char *key, pd_str *ret, pd_err *err) {
    return pd_gguf_find(g, key) ? pd_gguf_str(g, key, ret, err) : PD_OK;
}

typedef struct {
    char s[160];
} key_text;

/* "<architecture>.<name>" */
static key_text arch_key(const facts *f, const char *name) {
    key_text k;
    snprintf(k.s, sizeof k.s, "%.*s.%s", (int)f->arch.len, f->arch.len ? f->arch.data : "", name);
    return k;
}

static pd_status get_arch_number(facts *f, const char *name, uint32_t max, number *ret,
                                 pd_err *err) {
    return get_number(f->g, arch_key(f, name).s, max, ret, err);
}

static pd_status get_kv_heads(facts *f, pd_err *err) {
    const key_text key = arch_key(f, "attention.head_count_kv");
    const pd_gguf_kv *kv = pd_gguf_find(f->g, key.s);
    if (!kv) {
        f->kv_heads = f->heads; /* no sharing */
        return PD_OK;
    }
    if (kv->type != PD_GGUF_ARRAY) return get_number(f->g, key.s, HEADS_MAX, &f->kv_heads, err);
    if ((kv->elem != PD_GGUF_U32 && kv->elem != PD_GGUF_I32) || !f->layers.known ||
        kv->n != f->layers.v)
        return pd_fail(err, PD_EFILE, NULL, "%.200s: key '%s' must be an integer, or one per layer",
                       pd_gguf_path(f->g), key.s);
    for (size_t i = 0; i < kv->n; i++) {
        const uint32_t n = pd_le32((const char *)kv->v.array + 4 * i);
        if (n > HEADS_MAX)
            return pd_fail(err, PD_EFILE, NULL,
                           "%.200s: key '%s' is %" PRIu32 " in layer %zu, must be at most %d",
                           pd_gguf_path(f->g), key.s, n, i, HEADS_MAX);
    }
    f->kv_heads_of = kv;
    return PD_OK;
}

static uint64_t kv_heads_in(const facts *f, size_t layer) {
    return f->kv_heads_of ? pd_le32((const char *)f->kv_heads_of->v.array + 4 * layer)
                          : f->kv_heads.v;
}

/* Dense f16 bytes that one more token costs, by kind of layer. */
static pd_status count_kv(facts *f, pd_err *err) {
    if (!f->layers.known || !f->k_len.known || !f->v_len.known ||
        !(f->kv_heads.known || f->kv_heads_of))
        return PD_OK;
    number pattern = {true, GEMMA3_PATTERN};
    PD_TRY(get_arch_number(f, "attention.sliding_window_pattern", LAYERS_MAX, &pattern, err));
    const bool windows = pd_str_eq(f->arch, "gemma3") && f->window.known && pattern.v > 0;
    for (size_t i = 0; i < f->layers.v; i++) {
        const uint64_t bytes = kv_heads_in(f, i) * (f->k_len.v + f->v_len.v) * 2;
        const bool full = !windows || (i + 1) % pattern.v == 0;
        *(full ? &f->kv_full : &f->kv_window) += bytes;
        *(full ? &f->full_layers : &f->window_layers) += 1;
    }
    f->kv_bytes = (number){true, f->kv_full + f->kv_window};
    return PD_OK;
}

static pd_status collect_hyper(facts *f, pd_err *err) {
    PD_TRY(get_text(f->g, "general.architecture", &f->arch, err));
    PD_TRY(get_text(f->g, "general.name", &f->name, err));
    if (f->arch.len > 64)
        return pd_fail(err, PD_EFILE, NULL,
                       "%.200s: key 'general.architecture' is %zu bytes long, must be at most 64",
                       pd_gguf_path(f->g), f->arch.len);
    PD_TRY(get_arch_number(f, "block_count", LAYERS_MAX, &f->layers, err));
    PD_TRY(get_arch_number(f, "attention.head_count", HEADS_MAX, &f->heads, err));
    PD_TRY(get_arch_number(f, "embedding_length", DIM_MAX, &f->embd, err));
    PD_TRY(get_arch_number(f, "context_length", UINT32_MAX, &f->context, err));
    PD_TRY(get_arch_number(f, "attention.sliding_window", UINT32_MAX, &f->window, err));
    PD_TRY(get_arch_number(f, "feed_forward_length", UINT32_MAX, &f->ff, err));
    PD_TRY(get_kv_heads(f, err));
    if (f->embd.known && f->heads.known && f->heads.v > 0)
        f->k_len = f->v_len = (number){true, f->embd.v / f->heads.v};
    PD_TRY(get_arch_number(f, "attention.key_length", DIM_MAX, &f->k_len, err));
    PD_TRY(get_arch_number(f, "attention.value_length", DIM_MAX, &f->v_len, err));
    return count_kv(f, err);
}

static pd_status collect_tokenizer(facts *f, pd_err *err) {
    PD_TRY(get_text(f->g, "tokenizer.ggml.model", &f->tok_model, err));
    PD_TRY(get_text(f->g, "tokenizer.ggml.pre", &f->tok_pre, err));
    PD_TRY(get_text(f->g, "tokenizer.chat_template", &f->chat, err));
    PD_TRY(get_number(f->g, "tokenizer.ggml.bos_token_id", UINT32_MAX, &f->bos, err));
    PD_TRY(get_number(f->g, "tokenizer.ggml.eos_token_id", UINT32_MAX, &f->eos, err));
    PD_TRY(get_number(f->g, "tokenizer.ggml.unknown_token_id", UINT32_MAX, &f->unk, err));
    PD_TRY(get_number(f->g, "tokenizer.ggml.padding_token_id", UINT32_MAX, &f->pad, err));
    PD_TRY(pd_gguf_bool_or(f->g, "tokenizer.ggml.add_bos_token", false, &f->add_bos, err));
    PD_TRY(pd_gguf_bool_or(f->g, "tokenizer.ggml.add_eos_token", false, &f->add_eos, err));
    const pd_gguf_kv *tokens = pd_gguf_find(f->g, "tokenizer.ggml.tokens");
    if (tokens && tokens->type == PD_GGUF_ARRAY) {
        f->vocab = (number){true, tokens->n};
        return PD_OK;
    }
    return get_arch_number(f, "vocab_size", UINT32_MAX, &f->vocab, err);
}

static pd_status collect(facts *f, const pd_gguf *g, pd_err *err) {
    *f = (facts){.g = g, .n_files = 1};
    for (size_t i = 0; i < pd_gguf_n_tensors(g); i++) {
        const pd_gguf_tensor *t = pd_gguf_tensor_at(g, i);
        size_t k = 0;
        while (pd_qtype_at(k) != t->type) k++;
        f->type[k].tensors++;
        f->type[k].bytes += t->n_bytes;
        f->n_param += t->n_elem;
        if (t->file >= f->n_files) f->n_files = t->file + 1;
    }
    PD_TRY(collect_hyper(f, err));
    return collect_tokenizer(f, err);
}

/* ---- printing: text ---- */

/* At most `max` bytes of s up to its first line break, fit for a terminal. */
static void put_text(pd_buf *out, pd_str s, size_t max) {
    char text[256];
    size_t n = 0;
    while (n < s.len && n < max && n < sizeof text && s.data[n] != '\n' && s.data[n] != '\r') {
        const unsigned char c = (unsigned char)s.data[n];
        text[n++] = c < 0x20 || c == 0x7F ? '?' : (char)c;
    }
    const bool cut = n < s.len;
    n = pd_utf8_sanitize(text, n);
    for (size_t i = 0; i + 1 < n; i++) /* U+0080 to U+009F drive some terminals too */
        if ((unsigned char)text[i] == 0xC2 && (unsigned char)text[i + 1] < 0xA0)
            text[i] = text[i + 1] = '?';
    pd_buf_add(out, text, n);
    if (cut) pd_buf_puts(out, "...");
}

static void put_label(pd_buf *out, const char *label) {
    pd_buf_printf(out, "%-14s ", label);
}

static void put_number(pd_buf *out, number n) {
    if (n.known)
        pd_buf_printf(out, "%" PRIu64, n.v);
    else
        pd_buf_putc(out, '-');
}

static void put_line_text(pd_buf *out, const char *label, pd_str s) {
    put_label(out, label);
    put_text(out, s.data ? s : (pd_str){"-", 1}, 120);
    pd_buf_putc(out, '\n');
}

static void put_line_number(pd_buf *out, const char *label, number n) {
    put_label(out, label);
    put_number(out, n);
    pd_buf_putc(out, '\n');
}

static void put_bytes(pd_buf *out, uint64_t bytes) {
    static const char *const unit[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    size_t u = 0;
    for (; v >= 1024 && u + 1 < sizeof unit / sizeof *unit; u++) v /= 1024;
    if (u)
        pd_buf_printf(out, "%" PRIu64 " bytes (%.1f %s)", bytes, v, unit[u]);
    else
        pd_buf_printf(out, "%" PRIu64 " bytes", bytes);
}

static void put_types(pd_buf *out, const facts *f) {
    put_label(out, "tensors");
    pd_buf_printf(out, "%zu\n", pd_gguf_n_tensors(f->g));
    for (size_t k = 0; pd_qtype_at(k); k++) {
        if (!f->type[k].tensors) continue;
        pd_buf_printf(out, "  %-12s %6zu  ", pd_qtype_at(k)->name, f->type[k].tensors);
        put_bytes(out, f->type[k].bytes);
        pd_buf_putc(out, '\n');
    }
}

static void put_tokenizer(pd_buf *out, const facts *f) {
    put_label(out, "tokenizer");
    put_text(out, f->tok_model.data ? f->tok_model : (pd_str){"-", 1}, 60);
    if (f->tok_pre.data) {
        pd_buf_puts(out, ", pre-tokenizer ");
        put_text(out, f->tok_pre, 60);
    }
    pd_buf_putc(out, '\n');
    const struct {
        const char *name;
        number n;
    } ids[] = {{"bos ", f->bos}, {", eos ", f->eos}, {", unk ", f->unk}, {", pad ", f->pad}};
    put_label(out, "special ids");
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        pd_buf_puts(out, ids[i].name);
        put_number(out, ids[i].n);
    }
    pd_buf_printf(out, "; adds bos: %s, eos: %s\n", f->add_bos ? "yes" : "no",
                  f->add_eos ? "yes" : "no");
    put_label(out, "chat template");
    if (f->chat.data) {
        pd_buf_printf(out, "%zu bytes: ", f->chat.len);
        put_text(out, f->chat, 100);
        pd_buf_putc(out, '\n');
    } else {
        pd_buf_puts(out, "none\n");
    }
}

static void put_kv_cache(pd_buf *out, const facts *f) {
    put_label(out, "KV cache");
    if (!f->kv_bytes.known) {
        pd_buf_puts(out, "-\n");
        return;
    }
    pd_buf_printf(out, "%" PRIu64 " bytes per token in f16, dense\n", f->kv_bytes.v);
    if (!f->window_layers) return;
    pd_buf_printf(out, "  %-12s %6u layers, %" PRIu64 " bytes per token\n", "full", f->full_layers,
                  f->kv_full);
    pd_buf_printf(out, "  %-12s %6u layers, %" PRIu64 " bytes per token of the last %" PRIu64 "\n",
                  "window", f->window_layers, f->kv_window, f->window.v);
}

static void put_facts(pd_buf *out, const facts *f) {
    const char *path = pd_gguf_path(f->g);
    put_line_text(out, "file", (pd_str){path, strlen(path)});
    put_label(out, "size");
    put_bytes(out, pd_gguf_file_bytes(f->g));
    pd_buf_printf(out, " in %" PRIu64 " %s\n", f->n_files, f->n_files == 1 ? "file" : "files");
    put_label(out, "format");
    pd_buf_printf(out, "GGUF version %" PRIu32 ", %zu keys\n", pd_gguf_version(f->g),
                  pd_gguf_n_kv(f->g));
    put_line_text(out, "architecture", f->arch);
    put_line_text(out, "name", f->name);
    put_line_number(out, "parameters", (number){true, f->n_param});
    put_line_number(out, "layers", f->layers);
    put_label(out, "heads");
    put_number(out, f->heads);
    pd_buf_puts(out, " query, ");
    if (f->kv_heads_of)
        pd_buf_puts(out, "by layer");
    else
        put_number(out, f->kv_heads);
    pd_buf_puts(out, " key/value, dimension ");
    put_number(out, f->k_len);
    if (f->k_len.v != f->v_len.v) {
        pd_buf_puts(out, " (values ");
        put_number(out, f->v_len);
        pd_buf_putc(out, ')');
    }
    pd_buf_putc(out, '\n');
    put_line_number(out, "embedding", f->embd);
    put_line_number(out, "feed-forward", f->ff);
    put_line_number(out, "context", f->context);
    put_line_number(out, "vocabulary", f->vocab);
    put_types(out, f);
    put_tokenizer(out, f);
    put_kv_cache(out, f);
}

/* ---- printing: JSON ---- */

static json_t *json_number_or_null(number n) {
    return n.known ? json_integer((json_int_t)n.v) : json_null();
}

/* Whole text, with '?' for bytes that are not UTF-8, or null. */
static json_t *json_text_or_null(pd_str s) {
    if (!s.data) return json_null();
    char *copy = malloc(s.len + 1);
    if (!copy) return NULL;
    memcpy(copy, s.data, s.len);
    json_t *j = json_stringn(copy, pd_utf8_sanitize(copy, s.len));
    free(copy);
    return j;
}

static json_t *json_types(const facts *f) {
    json_t *list = json_array();
    for (size_t k = 0; list && pd_qtype_at(k); k++) {
        if (!f->type[k].tensors) continue;
        json_t *t =
            json_pack("{s:s, s:I, s:I}", "type", pd_qtype_at(k)->name, "tensors",
                      (json_int_t)f->type[k].tensors, "bytes", (json_int_t)f->type[k].bytes);
        if (json_array_append_new(list, t) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static json_t *json_kv_cache(const facts *f) {
    if (!f->kv_bytes.known) return json_null();
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:o}", "bytes_per_token", (json_int_t)f->kv_bytes.v,
                     "full_layers", (json_int_t)f->full_layers, "full_bytes_per_token",
                     (json_int_t)f->kv_full, "window_layers", (json_int_t)f->window_layers,
                     "window_bytes_per_token", (json_int_t)f->kv_window, "window",
                     json_number_or_null(f->window));
}

static json_t *json_tokenizer(const facts *f) {
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:b, s:b}", "model",
                     json_text_or_null(f->tok_model), "pre", json_text_or_null(f->tok_pre),
                     "bos_id", json_number_or_null(f->bos), "eos_id", json_number_or_null(f->eos),
                     "unk_id", json_number_or_null(f->unk), "pad_id", json_number_or_null(f->pad),
                     "add_bos", f->add_bos, "add_eos", f->add_eos);
}

static void put_json(pd_buf *out, const facts *f) {
    const char *path = pd_gguf_path(f->g);
    const struct {
        const char *key;
        json_t *value; /* NULL: no memory; json_object_set_new says so */
    } fields[] = {
        {"file", json_text_or_null((pd_str){path, strlen(path)})},
        {"files", json_integer((json_int_t)f->n_files)},
        {"bytes", json_integer((json_int_t)pd_gguf_file_bytes(f->g))},
        {"version", json_integer(pd_gguf_version(f->g))},
        {"keys", json_integer((json_int_t)pd_gguf_n_kv(f->g))},
        {"architecture", json_text_or_null(f->arch)},
        {"name", json_text_or_null(f->name)},
        {"parameters", json_integer((json_int_t)f->n_param)},
        {"layers", json_number_or_null(f->layers)},
        {"heads", json_number_or_null(f->heads)},
        {"kv_heads", json_number_or_null(f->kv_heads)},
        {"key_length", json_number_or_null(f->k_len)},
        {"value_length", json_number_or_null(f->v_len)},
        {"embedding_length", json_number_or_null(f->embd)},
        {"feed_forward_length", json_number_or_null(f->ff)},
        {"context_length", json_number_or_null(f->context)},
        {"vocabulary", json_number_or_null(f->vocab)},
        {"tensors", json_integer((json_int_t)pd_gguf_n_tensors(f->g))},
        {"types", json_types(f)},
        {"tokenizer", json_tokenizer(f)},
        {"chat_template", json_text_or_null(f->chat)},
        {"kv_cache", json_kv_cache(f)},
    };
    json_t *all = json_object();
    bool ok = true;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        ok &= json_object_set_new(all, fields[i].key, fields[i].value) == 0;
    char *text = ok ? json_dumps(all, JSON_INDENT(2)) : NULL;
    json_decref(all);
    if (text) {
        pd_buf_puts(out, text);
        pd_buf_putc(out, '\n');
    } else {
        out->failed = true; /* pd_cmd_print tells */
    }
    free(text);
}

static int run(int argc, char **argv) {
    const char *path = NULL;
    bool json = false, options = true;
    for (int i = 1; i < argc; i++) {
        if (options && strcmp(argv[i], "--") == 0)
            options = false;
        else if (options && strcmp(argv[i], "--json") == 0)
            json = true;
        else if (options && argv[i][0] == '-' && argv[i][1])
            return pd_cmd_usage(&pd_cmd_inspect, "unknown option", argv[i]);
        else if (path)
            return pd_cmd_usage(&pd_cmd_inspect, "more than one file:", argv[i]);
        else
            path = argv[i];
    }
    if (!path) return pd_cmd_usage(&pd_cmd_inspect, "no file given", NULL);

    pd_gguf *g = NULL;
    pd_err err = {0};
    facts f;
    pd_buf out = {0};
    pd_status rc = pd_gguf_open(&g, path, &err);
    if (rc == PD_OK) rc = collect(&f, g, &err);
    if (rc == PD_OK) (json ? put_json : put_facts)(&out, &f);
    pd_gguf_close(g);
    return rc == PD_OK ? pd_cmd_print(&out) : pd_cmd_fail(&err);
}

const pd_cmd pd_cmd_inspect = {
    .name = "inspect",
    .usage = "[--json] FILE",
    .summary =
        "describe a GGUF file: architecture, sizes, quant types, tokenizer, KV bytes per token",
    .run = run,
};
