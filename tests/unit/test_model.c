/* SPDX-License-Identifier: Apache-2.0 */
/* Metadata to hyper-parameters: what the architectures' files leave to rules.
 * The arithmetic of each architecture is judged in tests/golden. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/model/model.h"
#include "tests/unit/gguf_writer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { LAYERS = 12, EMBD = 128, HEADS = 4 };

typedef struct {
    const char *name;
    uint32_t value;
} number;

typedef struct {
    const char *arch;
    number more[6]; /* up to a NULL name */
    const uint8_t *pattern; /* [layers] of attention.sliding_window_pattern, or NULL */
} file;

static uint32_t layers_of(const file *f) {
    for (size_t i = 0; i < 6 && f->more[i].name; i++)
        if (strcmp(f->more[i].name, "block_count") == 0) return f->more[i].value;
    return LAYERS;
}

static pd_hparams hparams_of(const file *f) {
    const number base[] = {{"context_length", 512}, {"embedding_length", EMBD}, {"feed_forward_length", 64},
                           {"attention.head_count", HEADS}, {"attention.head_count_kv", 2}, {"block_count", LAYERS}};
    pd_buf kv = {0}, out = {0};
    uint64_t n = 1;
    char key[96];
    gw_key_str(&kv, "general.architecture", f->arch);
    for (size_t i = 0; i < 12; i++) {
        const number *x = i < 6 ? &base[i] : &f->more[i - 6];
        if (!x->name || (i == 5 && layers_of(f) != LAYERS)) continue;
        snprintf(key, sizeof key, "%s.%s", f->arch, x->name);
        gw_key_u32(&kv, key, x->value);
        n++;
    }
    if (f->pattern) {
        snprintf(key, sizeof key, "%s.attention.sliding_window_pattern", f->arch);
        gw_key_array(&kv, key, PD_GGUF_BOOL, layers_of(f));
        for (size_t i = 0; i < layers_of(f); i++) gw_u8(&kv, f->pattern[i]);
        n++;
    }
    gw_head(&out, 3, 0, n);
    pd_buf_add(&out, kv.data, kv.len);
    gw_pad(&out, 32);
    char path[] = "/tmp/pressd-model-XXXXXX";
    const int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, out.data, out.len) == (ssize_t)out.len && close(fd) == 0);
    pd_gguf *g = NULL;
    pd_err err = {0};
    pd_hparams hp = {0};
    if (pd_gguf_open(&g, path, &err) != PD_OK || pd_model_hparams(g, NULL, &hp, &err) != PD_OK)
        fail_msg("%s: %s", f->arch, err.msg);
    pd_gguf_close(g);
    unlink(path);
    pd_buf_done(&kv);
    pd_buf_done(&out);
    return hp;
}

/* Gemma's query_pre_attn_scalar is in no file: the head size, but n_embd / heads in
 * the 27B models, known by their layers. */
static void gemma_scales_by_size(void **state) {
    (void)state;
    static const struct {
        const char *arch;
        uint32_t layers;
        double scalar;
    } cases[] = {{"gemma2", 26, 64}, {"gemma2", 46, EMBD / HEADS}, {"gemma2", 62, 64},
                 {"gemma3", 26, 64}, {"gemma3", 46, 64}, {"gemma3", 62, EMBD / HEADS}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const pd_hparams hp = hparams_of(&(file){cases[i].arch, {{"block_count", cases[i].layers}, {"attention.key_length", 64},
                                                           {"attention.value_length", 64}, {"attention.sliding_window", 32}}, NULL});
        assert_float_equal(hp.attn_scale, 1.0 / sqrt(cases[i].scalar), 1e-7);
    }
}

static void soft_caps_default_in_gemma2_alone(void **state) {
    (void)state;
    const pd_hparams two = hparams_of(&(file){"gemma2", {{"attention.sliding_window", 32}}, NULL});
    assert_float_equal(two.attn_softcap, 50.0, 0.0);
    assert_float_equal(two.logit_softcap, 30.0, 0.0);
    const pd_hparams three = hparams_of(&(file){"gemma3", {{"attention.sliding_window", 32}}, NULL});
    assert_true(three.attn_softcap == 0.0f && three.logit_softcap == 0.0f);
}

/* Which layers see a window: the architecture's rhythm, a number, or flags. */
static void windows_go_by_layer(void **state) {
    (void)state;
    static const uint8_t flags[LAYERS] = {1, 0, 0, 1};
    static const struct {
        file f;
        const char *seen; /* w: window, f: full */
    } cases[] = {
        {{"llama", {{NULL, 0}}, NULL}, "ffffffffffff"},
        {{"llama", {{"attention.sliding_window", 32}}, NULL}, "wwwwwwwwwwww"},
        {{"phi3", {{"attention.sliding_window", 0}}, NULL}, "ffffffffffff"},
        {{"qwen2", {{"attention.sliding_window", 32}}, flags}, "wffwffffffff"},
        {{"gemma2", {{"attention.sliding_window", 32}}, NULL}, "wfwfwfwfwfwf"},
        {{"gemma2", {{"attention.sliding_window", 32}, {"attention.sliding_window_pattern", 3}}, NULL}, "wwfwwfwwfwwf"},
        {{"gemma3", {{"attention.sliding_window", 32}}, NULL}, "wwwwwfwwwwwf"},
        {{"gemma3", {{"attention.sliding_window", 32}}, flags}, "wffwffffffff"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const pd_hparams hp = hparams_of(&cases[i].f);
        for (size_t l = 0; l < LAYERS; l++) {
            const uint32_t want = cases[i].seen[l] == 'w' ? 32 : 0;
            if (hp.window[l] != want) fail_msg("case %zu, layer %zu: window %u", i, l, hp.window[l]);
            if (strcmp(cases[i].f.arch, "gemma3") == 0) assert_int_equal(hp.rope[l], want != 0);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gemma_scales_by_size),
        cmocka_unit_test(soft_caps_default_in_gemma2_alone),
        cmocka_unit_test(windows_go_by_layer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
