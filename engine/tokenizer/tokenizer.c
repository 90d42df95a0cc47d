/* SPDX-License-Identifier: Apache-2.0 */
/* The public functions: opening from a file, text -> ids, ids -> bytes.
 *
 * A text is first cut at its special pieces; what lies between is merged on its
 * own, as llama.cpp and Hugging Face do.  User-defined pieces are found in every
 * text, control pieces only where the caller allows them. */
#include "engine/tokenizer/vocab.h"

#include "engine/base/num.h"
#include "engine/base/utf8.h"

#include <stdlib.h>
#include <string.h>

#define TEXT_MAX ((size_t)256 << 20) /* offsets are 32 bits and a space mark is three bytes */

pd_status pd_ids_push(pd_ids *ids, int32_t id, pd_err *err) {
    if (ids->n == ids->cap) {
        const size_t cap = ids->cap ? 2 * ids->cap : 64;
        size_t bytes;
        int32_t *p = pd_mul_size(cap, sizeof *p, &bytes) ? realloc(ids->id, bytes) : NULL;
        if (!p) return pd_fail(err, PD_ENOMEM, NULL, "no memory for %zu token ids", cap);
        ids->id = p;
        ids->cap = cap;
    }
    ids->id[ids->n++] = id;
    return PD_OK;
}

void pd_ids_done(pd_ids *ids) {
    if (!ids) return;
    free(ids->id);
    *ids = (pd_ids){0};
}

/* ---- opening ---- */

static pd_status get_array(const pd_gguf *g, const char *key, pd_gguf_type elem, uint64_t want_n,
                           const pd_gguf_kv **ret, pd_err *err) {
    const pd_gguf_kv *kv = pd_gguf_find(g, key);
    *ret = kv;
    if (!kv) return PD_OK;
    if (kv->type != PD_GGUF_ARRAY || kv->elem != elem)
        return pd_fail(err, PD_EFILE, NULL, "%s has the wrong type", key);
    if (want_n != 0 && kv->n != want_n)
        return pd_fail(err, PD_EFILE, NULL, "%s has %llu entries, the vocabulary %llu", key, (unsigned long long)kv->n,
                       (unsigned long long)want_n);
    return PD_OK;
}

/* UINT32_MAX is how some writers say "none". */
static pd_status get_id(const pd_gguf *g, const char *key, uint32_t n_vocab, int32_t fallback, int32_t *ret,
                        pd_err *err) {
    uint32_t id;
    PD_TRY(pd_gguf_u32_or(g, key, 0, UINT32_MAX, (uint32_t)fallback, &id, err));
    if (id != UINT32_MAX && id >= n_vocab)
        return pd_fail(err, PD_EFILE, NULL, "%s is %u, outside the vocabulary of %u", key, id, n_vocab);
    *ret = (int32_t)id;
    return PD_OK;
}

static pd_status get_flag(const pd_gguf *g, const char *key, int *ret, pd_err *err) {
    *ret = -1;
    if (!pd_gguf_find(g, key)) return PD_OK;
    bool b;
    PD_TRY(pd_gguf_bool_or(g, key, false, &b, err));
    *ret = b;
    return PD_OK;
}

/* True if general.name holds `part`, in any case. */
static bool name_holds(const pd_gguf *g, const char *part) {
    const pd_gguf_kv *kv = pd_gguf_find(g, "general.name");
    if (!kv || kv->type != PD_GGUF_STRING) return false;
    const size_t n = strlen(part);
    for (size_t i = 0; i + n <= kv->v.s.len; i++) {
        if (strncasecmp(kv->v.s.data + i, part, n) == 0) return true;
    }
    return false;
}

pd_status pd_tokenizer_open(pd_tokenizer **ret, const pd_gguf *g, pd_err *err) {
    pd__vocab_src src = {0};
    const pd_gguf_kv *tokens, *scores, *types, *merges;
    PD_TRY(pd_gguf_str(g, "tokenizer.ggml.model", &src.model, err));
    PD_TRY(get_array(g, "tokenizer.ggml.tokens", PD_GGUF_STRING, 0, &tokens, err));
    if (!tokens) return pd_fail(err, PD_EFILE, NULL, "tokenizer.ggml.tokens is missing");
    if (tokens->n > INT32_MAX)
        return pd_fail(err, PD_EFILE, NULL, "tokenizer.ggml.tokens has too many pieces");
    PD_TRY(get_array(g, "tokenizer.ggml.scores", PD_GGUF_F32, tokens->n, &scores, err));
    PD_TRY(get_array(g, "tokenizer.ggml.token_type", PD_GGUF_I32, tokens->n, &types, err));
    PD_TRY(get_array(g, "tokenizer.ggml.merges", PD_GGUF_STRING, 0, &merges, err));
    const bool spm = pd_str_eq(src.model, "llama");
    if (pd_str_eq(src.model, "gpt2")) {
        PD_TRY(pd_gguf_str(g, "tokenizer.ggml.pre", &src.pre, err));
        if (!merges) return pd_fail(err, PD_EFILE, NULL, "tokenizer.ggml.merges is missing");
    }
    src.piece = tokens->v.array;
    src.n_piece = (size_t)tokens->n;
    src.score = scores ? scores->v.array : NULL;
    src.type = types ? types->v.array : NULL;
    src.merge = merges ? merges->v.array : NULL;
    src.n_merge = merges ? (size_t)merges->n : 0;

    const uint32_t n = (uint32_t)tokens->n;
    PD_TRY(get_id(g, "tokenizer.ggml.bos_token_id", n, spm && n > 1 ? 1 : -1, &src.bos, err));
    PD_TRY(get_id(g, "tokenizer.ggml.eos_token_id", n, spm && n > 2 ? 2 : -1, &src.eos, err));
    PD_TRY(get_id(g, "tokenizer.ggml.eot_token_id", n, -1, &src.eot, err));
    PD_TRY(get_id(g, "tokenizer.ggml.unknown_token_id", n, spm ? 0 : -1, &src.unk, err));
    PD_TRY(get_id(g, "tokenizer.ggml.padding_token_id", n, -1, &src.pad, err));
    PD_TRY(get_flag(g, "tokenizer.ggml.add_bos_token", &src.add_bos, err));
    PD_TRY(get_flag(g, "tokenizer.ggml.add_eos_token", &src.add_eos, err));
    PD_TRY(get_flag(g, "tokenizer.ggml.add_space_prefix", &src.add_space_prefix, err));
    src.rstrip_special = name_holds(g, "phi-3") || name_holds(g, "phi3");
    return pd__tokenizer_build(ret, &src, err);
}

const pd_tokenizer_info *pd_tokenizer_get_info(const pd_tokenizer *t) {
    return &t->info;
}

/* ---- ids ---- */

static bool in_range(const pd_tokenizer *t, int32_t id) {
    return id >= 0 && (uint32_t)id < t->info.n_vocab;
}

bool pd_token_is_eog(const pd_tokenizer *t, int32_t id) {
    return in_range(t, id) && (t->piece[id].flags & PD__PIECE_EOG);
}

bool pd_token_is_special(const pd_tokenizer *t, int32_t id) {
    return in_range(t, id) && (t->piece[id].type == PD__TYPE_CONTROL || t->piece[id].type == PD__TYPE_UNKNOWN);
}

int32_t pd_token_find(const pd_tokenizer *t, const char *text, size_t len) {
    return pd__text_find(t, text, len);
}

pd_str pd_token_bytes(const pd_tokenizer *t, int32_t id, bool special) {
    if (!in_range(t, id) || (!special && pd_token_is_special(t, id))) return (pd_str){"", 0};
    return (pd_str){t->blob + t->piece[id].bytes_off, t->piece[id].bytes_len};
}

/* ---- text -> ids ---- */

typedef struct {
    const pd_tokenizer *t;
    pd__merge_scratch scr;
    char *text; /* rewritten text */
    size_t cap;
} encoder;

static pd_status reserve(encoder *e, size_t n, pd_err *err) {
    if (n <= e->cap) return PD_OK;
    char *p = realloc(e->text, n);
    if (!p) return pd_fail(err, PD_ENOMEM, NULL, "no memory to tokenize %zu bytes", n);
    e->text = p;
    e->cap = n;
    return PD_OK;
}

static pd_status encode_spm(encoder *e, const char *s, size_t n, bool prefix, pd_ids *out, pd_err *err) {
    size_t spaces = prefix;
    for (size_t i = 0; i < n; i++) spaces += s[i] == ' ';
    if (spaces == 0) return pd__merge_marked(e->t, &e->scr, s, n, out, err);
    PD_TRY(reserve(e, n + prefix + 2 * spaces, err));
    size_t k = 0;
    if (prefix) {
        memcpy(e->text, PD__SPACE_MARK, 3);
        k = 3;
    }
    for (size_t i = 0; i < n; i++) {
        if (s[i] == ' ') {
            memcpy(e->text + k, PD__SPACE_MARK, 3);
            k += 3;
        } else {
            e->text[k++] = s[i];
        }
    }
    return pd__merge_marked(e->t, &e->scr, e->text, k, out, err);
}

/* Broken UTF-8 becomes one U+FFFD per byte, as llama.cpp reads it (Hugging
 * Face's tokenizers take no such text). */
static pd_status clean(encoder *e, const char **s, size_t *n, pd_err *err) {
    if (pd_utf8_valid(*s, *n)) return PD_OK;
    PD_TRY(reserve(e, 3 * *n, err));
    size_t k = 0;
    for (size_t i = 0; i < *n;) {
        uint32_t cp;
        const size_t len = pd__cp_next(*s + i, *n - i, &cp);
        k += pd_utf8_put(len ? cp : 0xFFFD, e->text + k);
        i += len ? len : 1;
    }
    *s = e->text;
    *n = k;
    return PD_OK;
}

/* The piece that is exactly this word, or -1. */
static int32_t word_piece(const pd_tokenizer *t, const char *s, size_t n) {
    char spelt[2 * 512];
    if (n > t->max_bytes || n > sizeof spelt / 2) return -1;
    size_t k = 0;
    for (size_t i = 0; i < n; i++) k += pd__byte_spell((uint8_t)s[i], spelt + k);
    const int32_t id = pd__text_find(t, spelt, k);
    return id >= 0 && pd__type_mergeable(t->piece[id].type) && t->piece[id].bytes_len == n ? id : -1;
}

static pd_status encode_bpe(encoder *e, const char *s, size_t n, pd_ids *out, pd_err *err) {
    const pd_tokenizer *t = e->t;
    PD_TRY(clean(e, &s, &n, err));
    pd__words w = {.s = s, .n = n};
    while (w.pos < n) {
        const size_t end = t->pretok->next(&w), len = end - w.pos;
        const int32_t id = t->pretok->whole_words ? word_piece(t, s + w.pos, len) : -1;
        if (id >= 0) PD_TRY(pd_ids_push(out, id, err));
        else PD_TRY(pd__merge_word(t, &e->scr, s + w.pos, len, out, err));
        w.pos = end;
    }
    return PD_OK;
}

typedef struct {
    const pd__mark *mark;
    size_t n, next;
} marks;

/* Resolve the marks before `end`, in a stretch from `begin` whose tokens start
 * at out->id[first]; the bytes of the tokens tell where they lie. */
static void resolve(const pd_tokenizer *t, marks *m, size_t begin, size_t end, bool prefix, const pd_ids *out,
                    size_t first) {
    size_t at = begin, tok = first;
    for (; m->next < m->n && m->mark[m->next].at < end; m->next++) {
        const pd__mark *k = &m->mark[m->next];
        size_t after = at;
        while (tok < out->n) {
            after = at + pd_token_bytes(t, out->id[tok], true).len;
            if (prefix && tok == first && after > at) after--; /* the added space is not in the text */
            if (after > k->at) break;
            at = after;
            tok++;
        }
        *k->tok = tok + (k->up && tok < out->n && at < k->at);
    }
}

static pd_status encode(encoder *e, const char *text, size_t len, unsigned flags, const pd__span *plain,
                        size_t n_plain, marks *m, pd_ids *out, pd_err *err) {
    const pd_tokenizer *t = e->t;
    bool after_special = !(flags & PD_TOK_CONTINUE);
    size_t begin = 0, span = 0;
    for (size_t pos = 0; pos <= len;) {
        int32_t id = -1;
        size_t match = 0;
        if (pos < len) {
            while (span < n_plain && plain[span].end <= pos) span++;
            size_t control_max = flags & PD_TOK_SPECIAL ? len - pos : 0;
            if (control_max && span < n_plain)
                control_max = plain[span].begin > pos ? plain[span].begin - pos : 0;
            id = pd__special_match(t, text + pos, len - pos, control_max, &match);
            if (id < 0) {
                pos++;
                continue;
            }
        }
        if (pos > begin) {
            const size_t first = out->n;
            const bool prefix = t->info.add_space_prefix && after_special;
            if (t->spm) PD_TRY(encode_spm(e, text + begin, pos - begin, prefix, out, err));
            else PD_TRY(encode_bpe(e, text + begin, pos - begin, out, err));
            resolve(t, m, begin, pos, prefix, out, first);
            after_special = false;
        }
        if (pos == len) break;
        for (; m->next < m->n && m->mark[m->next].at < pos + match; m->next++) *m->mark[m->next].tok = out->n;
        PD_TRY(pd_ids_push(out, id, err));
        pos += match;
        if (t->piece[id].flags & PD__PIECE_RSTRIP) {
            while (pos < len && (text[pos] == ' ' || (text[pos] >= '\t' && text[pos] <= '\r'))) pos++;
        }
        begin = pos;
        after_special = true;
    }
    for (; m->next < m->n; m->next++) *m->mark[m->next].tok = out->n;
    return PD_OK;
}

pd_status pd__tokenize_mixed(const pd_tokenizer *t, const char *text, size_t len, unsigned flags,
                             const pd__span *plain, size_t n_plain, const pd__mark *mark, size_t n_mark, pd_ids *out,
                             pd_err *err) {
    if (len > TEXT_MAX)
        return pd_fail(err, PD_EINVAL, NULL, "the text has %zu bytes, at most %zu can be tokenized", len, TEXT_MAX);
    if ((flags & PD_TOK_BOS) && t->info.add_bos && t->info.bos >= 0) PD_TRY(pd_ids_push(out, t->info.bos, err));
    encoder e = {.t = t};
    marks m = {mark, n_mark, 0};
    const pd_status rc = encode(&e, text, len, flags, plain, n_plain, &m, out, err);
    pd__merge_scratch_done(&e.scr);
    free(e.text);
    return rc;
}

pd_status pd_tokenize(const pd_tokenizer *t, const char *text, size_t len, unsigned flags, pd_ids *out, pd_err *err) {
    return pd__tokenize_mixed(t, text, len, flags, NULL, 0, NULL, 0, out, err);
}
