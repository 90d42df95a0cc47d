/* SPDX-License-Identifier: Apache-2.0 */
/* engine/tokenizer: small vocabularies made here, and the goldens of llama.cpp
 * and Hugging Face (tests/golden/tokenizer.py) on real ones, found by
 * PRESSD_TEST_MODEL, PRESSD_TEST_MODEL_GEMMA and PRESSD_TEST_VOCABS. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/base/num.h"
#include "engine/base/rng.h"
#include "engine/base/utf8.h"
#include "engine/tokenizer/vocab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define N(a) (sizeof(a) / sizeof *(a))

/* ---- vocabularies made here ---- */

static pd_str str(const char *s) {
    return (pd_str){s, strlen(s)};
}

/* SentencePiece: bytes at 3..258, then the pieces given. */
typedef struct {
    pd_str piece[400];
    float score[400];
    int32_t type[400];
    char byte[256][8];
    size_t n;
} spm_vocab;

static void spm_add(spm_vocab *v, const char *text, float score, int32_t type) {
    v->piece[v->n] = str(text);
    v->score[v->n] = score;
    v->type[v->n++] = type;
}

static void spm_base(spm_vocab *v) {
    v->n = 0;
    spm_add(v, "<unk>", 0, PD__TYPE_UNKNOWN);
    spm_add(v, "<s>", 0, PD__TYPE_CONTROL);
    spm_add(v, "</s>", 0, PD__TYPE_CONTROL);
    for (int b = 0; b < 256; b++) {
        snprintf(v->byte[b], sizeof v->byte[b], "<0x%02X>", b);
        spm_add(v, v->byte[b], 0, PD__TYPE_BYTE);
    }
}

static pd__vocab_src spm_src(const spm_vocab *v) {
    return (pd__vocab_src){.model = str("llama"), .piece = v->piece, .n_piece = v->n, .score = v->score, .type = v->type,
                           .bos = 1, .eos = 2, .eot = -1, .unk = 0, .pad = -1,
                           .add_bos = -1, .add_eos = -1, .add_space_prefix = -1};
}

/* Byte-level: the 256 bytes, then "ab", "abc", "<|im_start|>" ... */
typedef struct {
    pd_str piece[400], merge[16];
    int32_t type[400];
    char byte[256][3];
    size_t n, n_merge;
} bpe_vocab;

static void bpe_add(bpe_vocab *v, const char *text, int32_t type) {
    v->piece[v->n] = str(text);
    v->type[v->n++] = type;
}

static void bpe_base(bpe_vocab *v) {
    v->n = v->n_merge = 0;
    for (int b = 0; b < 256; b++) {
        v->byte[b][pd__byte_spell((uint8_t)b, v->byte[b])] = '\0';
        bpe_add(v, v->byte[b], PD__TYPE_NORMAL);
    }
}

static pd__vocab_src bpe_src(const bpe_vocab *v) {
    return (pd__vocab_src){.model = str("gpt2"), .pre = str("gpt-2"), .piece = v->piece, .n_piece = v->n, .type = v->type,
                           .merge = v->merge, .n_merge = v->n_merge,
                           .bos = -1, .eos = -1, .eot = -1, .unk = -1, .pad = -1,
                           .add_bos = -1, .add_eos = -1, .add_space_prefix = -1};
}

static pd_tokenizer *build(const pd__vocab_src *src) {
    pd_tokenizer *t = NULL;
    pd_err err = {0};
    if (pd__tokenizer_build(&t, src, &err) != PD_OK) fail_msg("%s", err.msg);
    return t;
}

static void expect_ids(const pd_tokenizer *t, const char *text, size_t len, unsigned flags, const int32_t *want, size_t n) {
    pd_ids ids = {0};
    assert_int_equal(pd_tokenize(t, text, len, flags, &ids, NULL), PD_OK);
    assert_int_equal(ids.n, n);
    for (size_t i = 0; i < n; i++) assert_int_equal(ids.id[i], want[i]);
    pd_ids_done(&ids);
}
#define EXPECT(t, text, flags, ...)                                                        \
    do {                                                                                   \
        const int32_t want_[] = {__VA_ARGS__};                                             \
        expect_ids(t, text, strlen(text), flags, want_, N(want_));                         \
    } while (0)

static void byte_alphabet_round_trips(void **state) {
    (void)state;
    for (int b = 0; b < 256; b++) {
        char s[2];
        uint32_t cp;
        const size_t n = pd__byte_spell((uint8_t)b, s);
        assert_int_equal(pd_utf8_next(s, n, &cp), n);
        assert_int_equal(pd__byte_unspell(cp), b);
    }
    assert_int_equal(pd__byte_unspell(0x120), ' ');
    assert_int_equal(pd__byte_unspell(0x10A), '\n');
    assert_int_equal(pd__byte_unspell(0x143), 0xAD);
    assert_int_equal(pd__byte_unspell(0x144), -1);
    assert_int_equal(pd__byte_unspell(' '), -1);
}

static void merges_by_rank_and_special_text_stays_text(void **state) {
    (void)state;
    static bpe_vocab v;
    bpe_base(&v);
    bpe_add(&v, "ab", PD__TYPE_NORMAL);           /* 256 */
    bpe_add(&v, "bc", PD__TYPE_NORMAL);           /* 257 */
    bpe_add(&v, "<|im_end|>", PD__TYPE_CONTROL);  /* 258 */
    bpe_add(&v, "<user>", PD__TYPE_USER);         /* 259 */
    v.merge[v.n_merge++] = str("b c");
    v.merge[v.n_merge++] = str("a b");
    pd__vocab_src src = bpe_src(&v);
    src.eos = 258;
    pd_tokenizer *t = build(&src);
    EXPECT(t, "abc", 0, 'a', 257);
    EXPECT(t, "abab", 0, 256, 256);
    EXPECT(t, "x<|im_end|>", PD_TOK_SPECIAL, 'x', 258);
    EXPECT(t, "<|im_end|>", 0, '<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|', '>');
    EXPECT(t, "a<user>b", 0, 'a', 259, 'b');
    EXPECT(t, "a\xFFz", 0, 'a', 0xEF, 0xBF, 0xBD, 'z');
    assert_true(pd_token_is_eog(t, 258));
    assert_true(pd_token_is_special(t, 258));
    assert_false(pd_token_is_special(t, 259));
    assert_int_equal(pd_token_bytes(t, 258, false).len, 0);
    assert_int_equal(pd_token_bytes(t, 258, true).len, 10);
    assert_int_equal(pd_token_bytes(t, 259, false).len, 6);
    assert_int_equal(pd_token_bytes(t, 260, true).len, 0);
    assert_int_equal(pd_token_bytes(t, -1, true).len, 0);
    assert_int_equal(pd_token_find(t, "<|im_end|>", 10), 258);
    assert_int_equal(pd_token_find(t, "nope", 4), -1);
    assert_int_equal(pd_tokenizer_get_info(t)->eot, 258);
    pd_tokenizer_close(t);
}

static void sentencepiece_scores_prefix_and_fallback(void **state) {
    (void)state;
    static spm_vocab v;
    spm_base(&v);
    const int32_t first = (int32_t)v.n;
    spm_add(&v, PD__SPACE_MARK, -1, PD__TYPE_NORMAL);    /* +0 */
    spm_add(&v, "a", -2, PD__TYPE_NORMAL);               /* +1 */
    spm_add(&v, "b", -3, PD__TYPE_NORMAL);               /* +2 */
    spm_add(&v, "ab", -5, PD__TYPE_NORMAL);              /* +3 */
    spm_add(&v, PD__SPACE_MARK "a", -4, PD__TYPE_NORMAL); /* +4 */
    pd__vocab_src src = spm_src(&v);
    pd_tokenizer *t = build(&src);
    assert_true(pd_tokenizer_get_info(t)->add_bos);
    EXPECT(t, "ab", 0, first + 4, first + 2);              /* the space is put first and wins by score */
    EXPECT(t, "ab", PD_TOK_CONTINUE, first + 3);
    EXPECT(t, "ab", PD_TOK_BOS | PD_TOK_CONTINUE, 1, first + 3);
    EXPECT(t, "a</s>a", PD_TOK_SPECIAL, first + 4, 2, first + 4);
    EXPECT(t, "\xC3\xA9", PD_TOK_CONTINUE, 3 + 0xC3, 3 + 0xA9);
    EXPECT(t, "\n", PD_TOK_CONTINUE, 3 + '\n');
    EXPECT(t, "\xE2 a", PD_TOK_CONTINUE, 3 + 0xE2, 3 + 0xE2, 3 + 0x96, 3 + 0x81, first + 1);
    assert_memory_equal(pd_token_bytes(t, first + 4, false).data, " a", 2);
    pd_detok d = {0};
    char out[64];
    assert_int_equal(pd_detok_next(t, &d, first + 4, false, out, sizeof out), 1); /* leading space dropped */
    assert_int_equal(pd_detok_next(t, &d, first + 4, false, out, sizeof out), 2);
    pd_tokenizer_close(t);
    src.add_space_prefix = 0;
    src.add_bos = 0;
    t = build(&src);
    EXPECT(t, "ab", PD_TOK_BOS, first + 3);
    pd_tokenizer_close(t);
}

static void lying_vocabularies_are_refused(void **state) {
    (void)state;
    static bpe_vocab v;
    static spm_vocab s;
    pd_tokenizer *t = NULL;
    pd_err err;
#define REFUSED(src, text)                                             \
    do {                                                               \
        err = (pd_err){0};                                             \
        assert_int_equal(pd__tokenizer_build(&t, &src, &err), PD_EFILE); \
        if (!strstr(err.msg, text)) fail_msg("'%s' lacks '%s'", err.msg, text); \
        assert_null(t);                                                \
    } while (0)
    bpe_base(&v);
    bpe_add(&v, "a", PD__TYPE_NORMAL);
    pd__vocab_src src = bpe_src(&v);
    REFUSED(src, "tokens[256] repeats tokens[97]");
    bpe_base(&v);
    v.merge[v.n_merge++] = str("a b");
    src = bpe_src(&v);
    REFUSED(src, "merges[0] 'a b' names or makes an unknown token");
    v.merge[0] = str("ab");
    REFUSED(src, "not two pieces");
    v.merge[0] = str("");
    REFUSED(src, "not two pieces");
    bpe_base(&v);
    src = bpe_src(&v);
    src.pre = str("klingon");
    REFUSED(src, "tokenizer.ggml.pre 'klingon'");
    src.model = str("bert");
    REFUSED(src, "tokenizer.ggml.model 'bert'");
    src = bpe_src(&v);
    src.eos = 256;
    REFUSED(src, "special token id 256");
    src.n_piece = 0;
    REFUSED(src, "0 pieces");
    spm_base(&s);
    s.piece[5] = str("<0x-1>");
    src = spm_src(&s);
    REFUSED(src, "tokens[5] is of type byte but reads '<0x-1>'");
    spm_base(&s);
    s.score[9] = 0.0f / (float)(int)(s.n - s.n);
    src = spm_src(&s);
    REFUSED(src, "scores[9]");
#undef REFUSED
}

/* The same bytes come out whatever the pieces they arrive in. */
static void detok_never_cuts_a_code_point(void **state) {
    (void)state;
    static bpe_vocab v;
    bpe_base(&v);
    pd__vocab_src src = bpe_src(&v);
    pd_tokenizer *t = build(&src);
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"a\xC3\xA9\xF0\x9F\x98\x80z", "a\xC3\xA9\xF0\x9F\x98\x80z"},
        {"\xE2\x82", "\xEF\xBF\xBD"},
        {"\xE2\x82z", "\xEF\xBF\xBDz"},
        {"\x80\xFFz", "\xEF\xBF\xBD\xEF\xBF\xBDz"},
        {"\xF0\x9F\xF0\x9F\x98\x80", "\xEF\xBF\xBD\xF0\x9F\x98\x80"},
        {"\xED\xA0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"},
        {"\xE2\xE2\x82\xAC", "\xEF\xBF\xBD\xE2\x82\xAC"},
        {"\xF0\x9F\x98", "\xEF\xBF\xBD"},
    };
    for (size_t i = 0; i < N(cases); i++) {
        pd_detok d = {0};
        char out[256];
        size_t n = 0;
        for (const char *p = cases[i].in; *p; p++) {
            n += pd_detok_next(t, &d, (unsigned char)*p, false, out + n, sizeof out - n);
            assert_true(pd_utf8_valid(out, n));
        }
        n += pd_detok_end(&d, out + n, sizeof out - n);
        assert_int_equal(n, strlen(cases[i].out));
        assert_memory_equal(out, cases[i].out, n);
        assert_int_equal(pd_detok_end(&d, out, sizeof out), 0);
    }
    pd_tokenizer_close(t);
}

/* Random merges on random words: the heap and the scan must agree.  A word is
 * tokenised alone (scan) and, for the heap, the same rules on a longer one are
 * checked against a merge written the slow, obvious way. */
static void long_words_merge_as_the_definition_says(void **state) {
    (void)state;
    static spm_vocab v;
    spm_base(&v);
    static char made[60][16];
    pd_rng rng = {7};
    for (char c = 'a'; c <= 'c'; c++) {
        made[c - 'a'][0] = c;
        spm_add(&v, made[c - 'a'], -100, PD__TYPE_NORMAL);
    }
    for (size_t i = 3; i < N(made);) {
        const char *x = made[pd_rng_u64(&rng) % i], *y = made[pd_rng_u64(&rng) % i];
        if (strlen(x) + strlen(y) > 12) continue;
        memset(made[i], 0, sizeof made[i]);
        memcpy(made[i], x, strlen(x));
        memcpy(made[i] + strlen(made[i]), y, strlen(y));
        bool known = false;
        for (size_t k = 0; k < i; k++) known |= strcmp(made[k], made[i]) == 0;
        if (known) continue;
        spm_add(&v, made[i], -(float)(pd_rng_u64(&rng) % 20), PD__TYPE_NORMAL);
        i++;
    }
    pd__vocab_src src = spm_src(&v);
    src.add_space_prefix = 0;
    pd_tokenizer *t = build(&src);
    for (int round = 0; round < 300; round++) {
        char text[200];
        const size_t n = 1 + pd_rng_u64(&rng) % (sizeof text - 1);
        for (size_t i = 0; i < n; i++) text[i] = (char)('a' + pd_rng_u64(&rng) % 3);
        /* cut[i]: a symbol starts at i */
        bool cut[sizeof text + 1];
        for (size_t i = 0; i <= n; i++) cut[i] = true;
        for (;;) {
            size_t best = SIZE_MAX;
            float score = 0;
            for (size_t i = 0; i < n; i++) {
                if (!cut[i]) continue;
                size_t mid = i + 1, end;
                while (!cut[mid]) mid++;
                if (mid == n) break;
                for (end = mid + 1; !cut[end];) end++;
                const int32_t id = pd_token_find(t, text + i, end - i);
                if (id < 0 || (best != SIZE_MAX && v.score[id] <= score)) continue;
                best = mid;
                score = v.score[id];
            }
            if (best == SIZE_MAX) break;
            cut[best] = false;
        }
        int32_t want[sizeof text];
        size_t n_want = 0;
        for (size_t i = 0, end; i < n; i = end) {
            for (end = i + 1; !cut[end];) end++;
            want[n_want++] = pd_token_find(t, text + i, end - i);
        }
        expect_ids(t, text, n, 0, want, n_want);
    }
    pd_tokenizer_close(t);
}

/* ---- real vocabularies ---- */

typedef struct {
    uint8_t *data;
    size_t n;
} blob;

static blob read_golden(const char *name) {
    char path[512];
    snprintf(path, sizeof path, "%s/tests/golden/data/tokenizer/%s.bin", PD_SOURCE_DIR, name);
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s is missing", path);
    blob b = {malloc(1 << 20), 0};
    b.n = fread(b.data, 1, 1 << 20, f);
    fclose(f);
    return b;
}

static uint32_t u32_at(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

static uint64_t hash_ids(const pd_ids *ids) {
    uint64_t h = 0xCBF29CE484222325u;
    for (size_t i = 0; i < ids->n; i++) {
        for (int k = 0; k < 4; k++) h = (h ^ ((uint32_t)ids->id[i] >> (8 * k) & 0xFF)) * 0x100000001B3u;
    }
    return h;
}

/* The file of a golden, by the environment; NULL (said aloud) if it is not there. */
static char *vocab_path(const char *name) {
    static char path[600];
    const char *env = strcmp(name, "smollm2") == 0 ? "PRESSD_TEST_MODEL"
                      : strcmp(name, "gemma3") == 0 ? "PRESSD_TEST_MODEL_GEMMA" : "PRESSD_TEST_VOCABS";
    const char *value = getenv(env);
    if (!value || !*value) {
        print_message("SKIPPED: %s needs %s\n", name, env);
        return NULL;
    }
    if (strcmp(env, "PRESSD_TEST_VOCABS") == 0) snprintf(path, sizeof path, "%s/ggml-vocab-%s.gguf", value, name);
    else snprintf(path, sizeof path, "%s", value);
    return path;
}

static pd_tokenizer *open_vocab(const char *path) {
    pd_err err = {0};
    pd_gguf *g = NULL;
    pd_tokenizer *t = NULL;
    if (pd_gguf_open(&g, path, &err) != PD_OK || pd_tokenizer_open(&t, g, &err) != PD_OK) fail_msg("%s", err.msg);
    pd_gguf_close(g); /* the tokenizer keeps what it needs */
    return t;
}

static void check_detok(const pd_tokenizer *t, const char *text, size_t len, const pd_ids *ids) {
    if (!pd_utf8_valid(text, len) || memmem(text, len, PD__SPACE_MARK, 3)) return;
    for (size_t i = 0; i < len; i++) {
        if (t->byte_id[(unsigned char)text[i]] < 0) return; /* this vocabulary cannot say it */
    }
    char *out = malloc(3 * len + pd_detok_max(t) + 16);
    pd_detok d = {0};
    size_t n = 0;
    for (size_t i = 0; i < ids->n; i++) {
        n += pd_detok_next(t, &d, ids->id[i], true, out + n, pd_detok_max(t));
        assert_true(pd_utf8_valid(out, n));
    }
    n += pd_detok_end(&d, out + n, 16);
    if (n != len || memcmp(out, text, len) != 0)
        fail_msg("'%.*s' comes back as '%.*s'", (int)len, text, (int)n, out);
    free(out);
}

static void check_golden(const char *name) {
    const char *path = vocab_path(name);
    if (!path) skip();
    pd_tokenizer *t = open_vocab(path);
    blob texts = read_golden("strings"), g = read_golden(name);
    assert_memory_equal(texts.data, "PDTS", 4);
    assert_memory_equal(g.data, "PDTG", 4);
    const uint32_t n = u32_at(texts.data + 4);
    assert_int_equal(u32_at(g.data + 4), n);
    assert_true(n >= 5000);
    const uint8_t *p = texts.data + 8, *full = g.data + 8 + (size_t)16 * n + 4;
    const uint32_t n_full = u32_at(full - 4);
    size_t wrong = 0;
    for (uint32_t i = 0; i < n; i++) {
        const size_t len = (size_t)p[0] | (size_t)p[1] << 8;
        const char *text = (const char *)p + 2;
        p += 2 + len;
        for (unsigned special = 0; special < 2; special++) {
            pd_ids ids = {0};
            uint64_t want;
            memcpy(&want, g.data + 8 + (size_t)8 * (special * n + i), 8);
            assert_int_equal(pd_tokenize(t, text, len, special ? PD_TOK_SPECIAL : 0, &ids, NULL), PD_OK);
            if (hash_ids(&ids) != want && wrong++ < 10)
                print_error("%s: string %u (special %u) differs: '%.*s'\n", name, i, special, (int)len, text);
            if (!special) {
                check_detok(t, text, len, &ids);
                for (size_t k = 0; k < ids.n; k++) assert_false(pd_token_is_special(t, ids.id[k]));
                if (i < n_full) {
                    const size_t k = (size_t)full[0] | (size_t)full[1] << 8;
                    if (k != ids.n || (k && memcmp(full + 2, ids.id, 4 * k) != 0)) {
                        wrong++;
                        print_error("%s: string %u '%.*s': %zu ids, want %zu\n", name, i, (int)len, text, ids.n, k);
                        for (size_t q = 0; q < pd_max_size(k, ids.n); q++)
                            print_error("  %d %d\n", q < ids.n ? ids.id[q] : -1, q < k ? (int)u32_at(full + 2 + 4 * q) : -1);
                    }
                    full += 2 + 4 * k;
                }
            }
            pd_ids_done(&ids);
        }
    }
    free(texts.data);
    free(g.data);
    pd_tokenizer_close(t);
    if (wrong) fail_msg("%s: %zu of %u id lists differ", name, wrong, 2 * n);
    print_message("%s: %u strings, plain and with special tokens, equal\n", name, n);
}

static void golden_smollm2(void **state) { (void)state; check_golden("smollm2"); }
static void golden_gemma3(void **state) { (void)state; check_golden("gemma3"); }
static void golden_gpt2(void **state) { (void)state; check_golden("gpt-2"); }
static void golden_llama_bpe(void **state) { (void)state; check_golden("llama-bpe"); }
static void golden_qwen2(void **state) { (void)state; check_golden("qwen2"); }
static void golden_llama_spm(void **state) { (void)state; check_golden("llama-spm"); }
static void golden_phi3(void **state) { (void)state; check_golden("phi-3"); }

/* llama.cpp's own test strings and id lists, for more vocabularies of each family. */
static void check_published(const char *name) {
    const char *path = vocab_path(name);
    static const char gap[] = "\n__ggml_vocab_test__\n";
    pd_tokenizer *t = open_vocab(path);
    char file[700], line[16384], *text = calloc(1, 1 << 20);
    snprintf(file, sizeof file, "%s.inp", path);
    FILE *in = fopen(file, "rb");
    snprintf(file, sizeof file, "%s.out", path);
    FILE *out = fopen(file, "rb");
    if (!in || !out) fail_msg("%s and its .inp are not both there", file);
    const size_t n = fread(text, 1, (1 << 20) - 1, in);
    size_t n_line = 0;
    for (const char *p = text; p < text + n && fgets(line, sizeof line, out); n_line++) {
        const char *end = strstr(p, gap);
        if (!end) end = text + n;
        pd_ids ids = {0};
        assert_int_equal(pd_tokenize(t, p, (size_t)(end - p), 0, &ids, NULL), PD_OK);
        char *q = line;
        for (size_t i = 0; i < ids.n; i++) {
            const long want = strtol(q, &q, 10);
            if (want != ids.id[i]) fail_msg("%s: '%.*s' token %zu is %d, want %ld", name, (int)(end - p), p, i, ids.id[i], want);
        }
        assert_int_equal(strspn(q, " \n"), strlen(q));
        pd_ids_done(&ids);
        p = end + strlen(gap);
    }
    fclose(in);
    fclose(out);
    free(text);
    pd_tokenizer_close(t);
    assert_true(n_line > 30);
    print_message("%s: %zu published lists equal\n", name, n_line);
}

static void published_lists(void **state) {
    (void)state;
    static const char *const names[] = {"gpt-2", "llama-bpe", "qwen2", "llama-spm", "phi-3", "command-r", "starcoder", "refact", "qwen35"};
    if (!vocab_path(names[0])) skip();
    for (size_t i = 0; i < N(names); i++) check_published(names[i]);
}

static double cpu_ms(void) {
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec * 1e-6;
}

/* Sanitizers slow the code down, not the machine: measured, about 4 times. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define LIMIT_MS 10000
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define LIMIT_MS 10000
#endif
#endif
#ifndef LIMIT_MS
#define LIMIT_MS 1000
#endif

/* One mebibyte of one thing takes under a second of this thread's time, and no
 * special token's own text becomes it: tried for every one of the file. */
static void check_hostile(const char *name) {
    const char *path = vocab_path(name);
    if (!path) skip();
    pd_tokenizer *t = open_vocab(path);
    const size_t n = (size_t)1 << 20;
    char *text = malloc(n + 8);
    static const char *const unit[] = {"a", " ", "\n", "\xE2\x80\x8D", "=", "\xF0\x9F\x98\x80", "1", "\xCC\x81", "ab", " \n", "\xFF", "<|im_start|", "'"};
    for (size_t k = 0; k < N(unit); k++) {
        const size_t len = strlen(unit[k]);
        for (size_t i = 0; i < n; i += len) memcpy(text + i, unit[k], pd_min_size(len, n - i));
        pd_ids ids = {0};
        const double t0 = cpu_ms();
        assert_int_equal(pd_tokenize(t, text, n, PD_TOK_SPECIAL, &ids, NULL), PD_OK);
        const double ms = cpu_ms() - t0;
        pd_ids_done(&ids);
        if (ms > LIMIT_MS) fail_msg("%s: 1 MiB of '%s' took %.0f ms", name, unit[k], ms);
        print_message("%s: 1 MiB of unit %zu: %.0f ms\n", name, k, ms);
    }
    free(text);
    for (uint32_t id = 0; id < t->info.n_vocab; id++) {
        if (!pd_token_is_special(t, (int32_t)id)) continue;
        const pd_str s = pd_token_bytes(t, (int32_t)id, true);
        pd_ids ids = {0};
        assert_int_equal(pd_tokenize(t, s.data, s.len, 0, &ids, NULL), PD_OK);
        for (size_t k = 0; k < ids.n; k++) assert_false(pd_token_is_special(t, ids.id[k]));
        ids.n = 0;
        assert_int_equal(pd_tokenize(t, s.data, s.len, PD_TOK_SPECIAL, &ids, NULL), PD_OK);
        assert_true(ids.n == 1 && ids.id[0] == (int32_t)id);
        pd_ids_done(&ids);
    }
    pd_tokenizer_close(t);
}

static void hostile_smollm2(void **state) { (void)state; check_hostile("smollm2"); }
static void hostile_gemma3(void **state) { (void)state; check_hostile("gemma3"); }

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(byte_alphabet_round_trips),
        cmocka_unit_test(merges_by_rank_and_special_text_stays_text),
        cmocka_unit_test(sentencepiece_scores_prefix_and_fallback),
        cmocka_unit_test(lying_vocabularies_are_refused),
        cmocka_unit_test(detok_never_cuts_a_code_point),
        cmocka_unit_test(long_words_merge_as_the_definition_says),
        cmocka_unit_test(golden_smollm2),
        cmocka_unit_test(golden_gemma3),
        cmocka_unit_test(golden_gpt2),
        cmocka_unit_test(golden_llama_bpe),
        cmocka_unit_test(golden_qwen2),
        cmocka_unit_test(golden_llama_spm),
        cmocka_unit_test(golden_phi3),
        cmocka_unit_test(published_lists),
        cmocka_unit_test(hostile_smollm2),
        cmocka_unit_test(hostile_gemma3),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
