/* SPDX-License-Identifier: Apache-2.0 */
/* Small seeded models (see tiny_model.h).  The encoders are the plainest that
 * give valid blocks: what a weight becomes is read back from the file by those
 * who must know. */
#include "tests/unit/tiny_model.h"

#include "engine/base/rng.h"
#include "engine/kernels/kernels.h"
#include "engine/tokenizer/vocab.h"
#include "tests/unit/gguf_writer.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { BLOCK = 32, ALIGN = 32, N_EMBD = 64, N_FF = 96, N_HEAD = 4 };

typedef struct {
    pd_buf kv, tensors, data;
    uint64_t n_kv, n_tensors;
    const char *arch;
    tiny_type type;
    pd_rng rng;
    pd_kernels kern;
} maker;

/* ---- metadata ---- */

static void key_u32(maker *m, const char *name, uint32_t v) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", m->arch, name);
    gw_key_u32(&m->kv, key, v);
    m->n_kv++;
}

static void key_f32(maker *m, const char *name, float v) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", m->arch, name);
    gw_key(&m->kv, key, PD_GGUF_F32);
    pd_buf_add(&m->kv, &v, sizeof v);
    m->n_kv++;
}

static void tok_str(maker *m, const char *key, const char *s) {
    gw_key_str(&m->kv, key, s);
    m->n_kv++;
}

static void tok_u32(maker *m, const char *key, uint32_t v) {
    gw_key_u32(&m->kv, key, v);
    m->n_kv++;
}

static void tok_bool(maker *m, const char *key, bool v) {
    gw_key(&m->kv, key, PD_GGUF_BOOL);
    gw_u8(&m->kv, v);
    m->n_kv++;
}

/* ---- vocabularies ---- */

/* Pieces with their types and scores, written as three arrays at the end. */
typedef struct {
    pd_buf text, type, score;
    uint64_t n;
} vocab;

static void add_piece(vocab *v, const char *text, size_t len, int32_t type, float score) {
    gw_str_n(&v->text, text, len);
    pd_buf_add(&v->type, &type, sizeof type);
    pd_buf_add(&v->score, &score, sizeof score);
    v->n++;
}

static void write_vocab(maker *m, vocab *v) {
    gw_key_array(&m->kv, "tokenizer.ggml.tokens", PD_GGUF_STRING, v->n);
    pd_buf_add(&m->kv, v->text.data, v->text.len);
    gw_key_array(&m->kv, "tokenizer.ggml.token_type", PD_GGUF_I32, v->n);
    pd_buf_add(&m->kv, v->type.data, v->type.len);
    gw_key_array(&m->kv, "tokenizer.ggml.scores", PD_GGUF_F32, v->n);
    pd_buf_add(&m->kv, v->score.data, v->score.len);
    m->n_kv += 3;
    pd_buf_done(&v->text);
    pd_buf_done(&v->type);
    pd_buf_done(&v->score);
}

/* Ġ spells the space. */
static const char *const merges[8] = {"t h", "th e", "Ġ the", "a n", "an d", "i n", "in g", "Ġ a"};

static size_t byte_level_vocab(maker *m) {
    vocab v = {0};
    for (unsigned b = 0; b < 256; b++) {
        char s[2];
        add_piece(&v, s, pd__byte_spell((uint8_t)b, s), PD__TYPE_NORMAL, 0.0f);
    }
    gw_key_array(&m->kv, "tokenizer.ggml.merges", PD_GGUF_STRING, 8);
    m->n_kv++;
    for (size_t i = 0; i < 8; i++) {
        gw_str(&m->kv, merges[i]);
        const size_t left = strcspn(merges[i], " "), right = strlen(merges[i]) - left - 1;
        char joined[16];
        memcpy(joined, merges[i], left);
        memcpy(joined + left, merges[i] + left + 1, right);
        add_piece(&v, joined, left + right, PD__TYPE_NORMAL, 0.0f);
    }
    add_piece(&v, "<|im_start|>", 12, PD__TYPE_CONTROL, 0.0f);
    add_piece(&v, "<|im_end|>", 10, PD__TYPE_CONTROL, 0.0f);
    add_piece(&v, "<|endoftext|>", 13, PD__TYPE_CONTROL, 0.0f);
    tok_str(m, "tokenizer.ggml.model", "gpt2");
    tok_str(m, "tokenizer.ggml.pre", "gpt-2");
    tok_u32(m, "tokenizer.ggml.bos_token_id", TINY_IM_START);
    tok_u32(m, "tokenizer.ggml.eos_token_id", TINY_IM_END);
    tok_bool(m, "tokenizer.ggml.add_bos_token", false);
    tok_str(m, "tokenizer.chat_template",
            "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
            "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}");
    const size_t n = (size_t)v.n;
    write_vocab(m, &v);
    return n;
}

static size_t sentencepiece_vocab(maker *m) {
    vocab v = {0};
    add_piece(&v, "<pad>", 5, PD__TYPE_CONTROL, 0.0f);
    add_piece(&v, "<eos>", 5, PD__TYPE_CONTROL, 0.0f);
    add_piece(&v, "<bos>", 5, PD__TYPE_CONTROL, 0.0f);
    add_piece(&v, "<unk>", 5, PD__TYPE_UNKNOWN, 0.0f);
    add_piece(&v, "<start_of_turn>", 15, PD__TYPE_CONTROL, 0.0f);
    add_piece(&v, "<end_of_turn>", 13, PD__TYPE_CONTROL, 0.0f);
    for (unsigned b = 0; b < 256; b++) {
        char s[8];
        snprintf(s, sizeof s, "<0x%02X>", b);
        add_piece(&v, s, 6, PD__TYPE_BYTE, 0.0f);
    }
    for (char c = 'a'; c <= 'z'; c++) add_piece(&v, &c, 1, PD__TYPE_NORMAL, -20.0f);
    static const char *const more[] = {"▁", "th", "the", "▁the", "an", "in", "ing"};
    for (size_t i = 0; i < sizeof more / sizeof *more; i++)
        add_piece(&v, more[i], strlen(more[i]), PD__TYPE_NORMAL, i ? -1.0f - (float)i : -20.0f);
    tok_str(m, "tokenizer.ggml.model", "llama");
    tok_u32(m, "tokenizer.ggml.padding_token_id", 0);
    tok_u32(m, "tokenizer.ggml.eos_token_id", 1);
    tok_u32(m, "tokenizer.ggml.bos_token_id", 2);
    tok_u32(m, "tokenizer.ggml.unknown_token_id", 3);
    tok_bool(m, "tokenizer.ggml.add_bos_token", true);
    tok_bool(m, "tokenizer.ggml.add_space_prefix", false);
    const size_t n = (size_t)v.n;
    write_vocab(m, &v);
    return n;
}

/* ---- weights ---- */

static uint16_t f16(const maker *m, float x) {
    uint16_t h;
    m->kern.f32_to_f16(&x, &h, 1);
    return h;
}

static void put_q8_0(maker *m, const float *x) {
    float most = 0.0f;
    for (size_t i = 0; i < BLOCK; i++) most = fmaxf(most, fabsf(x[i]));
    const uint16_t d = f16(m, most / 127.0f);
    const float step = pd_f16_to_f32(d);
    pd_buf_add(&m->data, &d, sizeof d);
    for (size_t i = 0; i < BLOCK; i++) {
        const float q = step > 0.0f ? rintf(x[i] / step) : 0.0f;
        gw_u8(&m->data, (uint8_t)(int8_t)fminf(fmaxf(q, -127.0f), 127.0f));
    }
}

static void put_q4_1(maker *m, const float *x) {
    float lo = x[0], hi = x[0];
    for (size_t i = 1; i < BLOCK; i++) {
        lo = fminf(lo, x[i]);
        hi = fmaxf(hi, x[i]);
    }
    const uint16_t dm[2] = {f16(m, (hi - lo) / 15.0f), f16(m, lo)};
    const float step = pd_f16_to_f32(dm[0]), base = pd_f16_to_f32(dm[1]);
    uint8_t q[BLOCK];
    for (size_t i = 0; i < BLOCK; i++)
        q[i] = step > 0.0f ? (uint8_t)fminf(fmaxf(rintf((x[i] - base) / step), 0.0f), 15.0f) : 0;
    pd_buf_add(&m->data, dm, sizeof dm);
    for (size_t i = 0; i < BLOCK / 2; i++) gw_u8(&m->data, (uint8_t)(q[i] | q[i + BLOCK / 2] << 4));
}

static void put_block(maker *m, tiny_type type, const float *x) {
    switch (type) {
    case TINY_F32:
        pd_buf_add(&m->data, x, BLOCK * sizeof *x);
        break;
    case TINY_F16:
        for (size_t i = 0; i < BLOCK; i++) {
            const uint16_t h = f16(m, x[i]);
            pd_buf_add(&m->data, &h, sizeof h);
        }
        break;
    case TINY_Q8_0:
        put_q8_0(m, x);
        break;
    case TINY_Q4_1:
        put_q4_1(m, x);
        break;
    }
}

/* Uniform with variance gain^2 / n_col: a unit input gives outputs of size `gain`. */
static void matrix(maker *m, const char *name, size_t n_col, size_t n_row, float gain, tiny_type type) {
    static const uint32_t ids[] = {[TINY_F32] = 0, [TINY_F16] = 1, [TINY_Q8_0] = 8, [TINY_Q4_1] = 3};
    gw_pad(&m->data, ALIGN);
    const uint64_t ne[2] = {n_col, n_row};
    gw_tensor(&m->tensors, name, ids[type], 2, ne, m->data.len);
    m->n_tensors++;
    const float scale = gain * sqrtf(3.0f / (float)n_col);
    for (size_t i = 0; i < n_col * n_row / BLOCK; i++) {
        float x[BLOCK];
        for (size_t j = 0; j < BLOCK; j++) x[j] = scale * pd_rng_f32(&m->rng);
        put_block(m, type, x);
    }
}

static void norm(maker *m, const char *name, size_t n) {
    gw_pad(&m->data, ALIGN);
    const uint64_t ne[1] = {n};
    gw_tensor(&m->tensors, name, 0, 1, ne, m->data.len);
    m->n_tensors++;
    for (size_t i = 0; i < n; i++) {
        const float w = 1.0f + 0.25f * pd_rng_f32(&m->rng);
        pd_buf_add(&m->data, &w, sizeof w);
    }
}

static void layer(maker *m, size_t l, size_t n_head_kv, size_t head_dim, bool gemma) {
    char name[64];
    const size_t nq = N_HEAD * head_dim, nkv = n_head_kv * head_dim;
#define NAME(part) (snprintf(name, sizeof name, "blk.%zu.%s.weight", l, part), name)
    norm(m, NAME("attn_norm"), N_EMBD);
    norm(m, NAME("ffn_norm"), N_EMBD);
    if (gemma) {
        norm(m, NAME("attn_q_norm"), head_dim);
        norm(m, NAME("attn_k_norm"), head_dim);
        norm(m, NAME("post_attention_norm"), N_EMBD);
        norm(m, NAME("post_ffw_norm"), N_EMBD);
    }
    matrix(m, NAME("attn_q"), N_EMBD, nq, 1.5f, m->type);
    matrix(m, NAME("attn_k"), N_EMBD, nkv, 1.5f, m->type);
    matrix(m, NAME("attn_v"), N_EMBD, nkv, 1.0f, m->type);
    matrix(m, NAME("attn_output"), nq, N_EMBD, 2.0f, m->type);
    matrix(m, NAME("ffn_gate"), N_EMBD, N_FF, 1.0f, m->type);
    matrix(m, NAME("ffn_up"), N_EMBD, N_FF, 1.0f, m->type);
    matrix(m, NAME("ffn_down"), N_FF, N_EMBD, 1.0f, m->type);
#undef NAME
}

static void hyper_parameters(maker *m, size_t n_layer, size_t n_head_kv, size_t head_dim, bool gemma) {
    key_u32(m, "block_count", (uint32_t)n_layer);
    key_u32(m, "context_length", TINY_CTX);
    key_u32(m, "embedding_length", N_EMBD);
    key_u32(m, "feed_forward_length", N_FF);
    key_u32(m, "attention.head_count", N_HEAD);
    key_u32(m, "attention.head_count_kv", (uint32_t)n_head_kv);
    key_u32(m, "attention.key_length", (uint32_t)head_dim);
    key_u32(m, "attention.value_length", (uint32_t)head_dim);
    key_f32(m, "attention.layer_norm_rms_epsilon", gemma ? 1e-6f : 1e-5f);
    key_f32(m, "rope.freq_base", gemma ? 1e6f : 1e4f);
    if (gemma) key_u32(m, "attention.sliding_window", TINY_WINDOW);
}

static bool write_file(const char *path, const pd_buf *head, const pd_buf *data) {
    if (head->failed || data->failed) return false;
    FILE *f = fopen(path, "wb");
    if (!f) return false;
    bool ok = fwrite(head->data, 1, head->len, f) == head->len;
    ok = fwrite(data->data, 1, data->len, f) == data->len && ok;
    return fclose(f) == 0 && ok;
}

bool tiny_model_write(const char *path, tiny_arch arch, tiny_type type, uint64_t seed) {
    const bool gemma = arch == TINY_GEMMA3;
    const size_t n_layer = gemma ? 7 : 3, n_head_kv = gemma ? 1 : 2, head_dim = gemma ? 32 : 16;
    maker m = {.arch = gemma ? "gemma3" : "llama", .type = type, .rng = {seed}};
    pd_kernels_init(&m.kern, 0);
    tok_str(&m, "general.architecture", m.arch);
    tok_str(&m, "general.name", gemma ? "Tiny Gemma" : "Tiny Llama");
    hyper_parameters(&m, n_layer, n_head_kv, head_dim, gemma);
    const size_t n_vocab = gemma ? sentencepiece_vocab(&m) : byte_level_vocab(&m);
    const tiny_type wide = type == TINY_Q4_1 ? TINY_Q8_0 : type;
    /* Embeddings serve as output too where they are tied: the final norm's unit
     * vector times rows of size 4 gives logits of spread 4. */
    matrix(&m, "token_embd.weight", N_EMBD, n_vocab, gemma ? 3.0f : 6.0f, wide);
    if (!gemma) matrix(&m, "output.weight", N_EMBD, n_vocab, 3.0f, wide);
    norm(&m, "output_norm.weight", N_EMBD);
    for (size_t l = 0; l < n_layer; l++) layer(&m, l, n_head_kv, head_dim, gemma);

    pd_buf head = {0};
    gw_head(&head, 3, m.n_tensors, m.n_kv);
    pd_buf_add(&head, m.kv.data, m.kv.len);
    pd_buf_add(&head, m.tensors.data, m.tensors.len);
    gw_pad(&head, ALIGN);
    gw_pad(&m.data, ALIGN);
    const bool ok = write_file(path, &head, &m.data);
    pd_buf_done(&head);
    pd_buf_done(&m.kv);
    pd_buf_done(&m.tensors);
    pd_buf_done(&m.data);
    return ok;
}

/* ---- names ---- */

static bool find(const char *const *names, size_t n, const char *name, size_t *ret) {
    for (*ret = 0; *ret < n; (*ret)++)
        if (strcmp(names[*ret], name) == 0) return true;
    return false;
}

bool tiny_arch_parse(const char *name, tiny_arch *ret) {
    static const char *const names[] = {[TINY_LLAMA] = "llama", [TINY_GEMMA3] = "gemma3"};
    size_t i;
    if (!find(names, 2, name, &i)) return false;
    *ret = (tiny_arch)i;
    return true;
}

bool tiny_type_parse(const char *name, tiny_type *ret) {
    static const char *const names[] = {[TINY_F32] = "f32", [TINY_F16] = "f16", [TINY_Q8_0] = "q8_0", [TINY_Q4_1] = "q4_1"};
    size_t i;
    if (!find(names, 4, name, &i)) return false;
    *ret = (tiny_type)i;
    return true;
}
