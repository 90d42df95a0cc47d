/* SPDX-License-Identifier: Apache-2.0 */
/* What a request says of compression: what it becomes, what is refused and under which name. */
#include "engine/run/engine.h"
#include "server/compression_json.h"
#include "server/request.h"
#include "tests/unit/press_data_case.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/request_case.h"

static pd_compression *wish(const char *text, bool chat) {
    pd_err err = {0};
    json_t *v = json_loads(text, JSON_DECODE_ANY, NULL);
    pd_compression *c = NULL;
    if (pd_compression_decode(v, "compression", &model, chat, &c, NULL, &err) != PD_OK)
        fail_msg("%s: %s", text, err.msg);
    json_decref(v);
    return c;
}

static void assert_press(const pd_compression *c, const char *text) {
    pd_buf b = {0};
    pd_press_inst_text(c->press, &b);
    assert_string_equal(b.data, text);
    pd_buf_done(&b);
}

static void assert_decode(const pd_compression *c, const char *text) {
    pd_buf b = {0};
    pd_press_inst_text(c->decode, &b);
    assert_string_equal(b.data, text);
    pd_buf_done(&b);
}

static void test_compression(void **state) {
    static const char *const dense[] = {"null", "\"none\"", "{\"press\":\"none\"}",
                                        "{\"press\":\"none\",\"ratio\":0.5}"};
    for (size_t i = 0; i < sizeof dense / sizeof dense[0]; i++) assert_null(wish(dense[i], true));

    pd_compression *c =
        wish("{\"press\":\"knorm\",\"ratio\":0.25,\"scope\":\"context\",\"protect_system\":true,"
             "\"min_tokens\":64,\"seed\":7}",
             true);
    assert_press(c, "knorm");
    assert_int_equal(c->budget, PD_BUDGET_RATIO);
    assert_true(c->ratio == 0.25);
    assert_int_equal(c->scope, PD_SCOPE_CONTEXT);
    assert_true(c->protect_system && c->min_tokens == 64 && c->seed == 7);
    assert_null(c->decode);
    pd_compression_close(c);

    c = wish("{\"press\":\"knorm\",\"budget_tokens\":100,\"scope\":{\"context_tokens\":50}}",
             false);
    assert_true(c->budget == PD_BUDGET_TOKENS && c->amount == 100);
    assert_true(c->scope == PD_SCOPE_TOKENS && c->scope_tokens == 50);
    pd_compression_close(c);

    c = wish("{\"press\":\"knorm\",\"budget_bytes\":1048576}", false);
    assert_true(c->budget == PD_BUDGET_BYTES && c->amount == 1048576);
    pd_compression_close(c);

    c = wish("\"streaming_llm:n_sink=8@0.5\"", false);
    assert_press(c, "streaming_llm:n_sink=8");
    assert_true(c->ratio == 0.5);
    pd_compression_close(c);

    /* the same press in four spellings */
    static const char *const same[] = {
        "{\"press\":\"streaming_llm\",\"params\":{\"n_sink\":8},\"ratio\":0.5}",
        "{\"press\":{\"name\":\"streaming_llm\",\"params\":{\"n_sink\":8}},\"ratio\":0.5}",
        "{\"press\":\"streaming_llm:n_sink=8\",\"ratio\":0.5}",
        "{\"press\":\"streaming_llm:n_sink=8@0.5\"}",
    };
    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++) {
        c = wish(same[i], false);
        assert_press(c, "streaming_llm:n_sink=8");
        assert_true(c->ratio == 0.5);
        pd_compression_close(c);
    }

    static const struct {
        const char *v;
        pd_kv_type key, value;
        bool presses;
    } types[] = {
        {"{\"kv_type\":\"q8_0\"}", PD_KV_Q8_0, PD_KV_Q8_0, false},
        {"{\"kv_type\":\"f16\"}", PD_KV_F16, PD_KV_F16, false},
        {"{\"press\":\"none\",\"kv_type\":\"q4\"}", PD_KV_Q4, PD_KV_Q4, false},
        {"{\"kv_type\":{\"key\":\"q8_0\",\"value\":\"q4\"}}", PD_KV_Q8_0, PD_KV_Q4, false},
        {"{\"kv_type\":{\"value\":\"q4\",\"key\":null}}", PD_KV_NATIVE, PD_KV_Q4, false},
        {"{\"press\":\"knorm\",\"ratio\":0.5,\"kv_type\":{\"key\":\"q4\"}}", PD_KV_Q4, PD_KV_NATIVE, true},
        {"{\"press\":\"knorm\",\"ratio\":0.5,\"kv_type\":null}", PD_KV_NATIVE, PD_KV_NATIVE, true},
        {"{\"decode\":{\"press\":\"knorm\",\"target_tokens\":9},\"kv_type\":\"q8_0\"}", PD_KV_Q8_0, PD_KV_Q8_0, false},
    };
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        c = wish(types[i].v, false);
        assert_non_null(c);
        if (c->kv_key != types[i].key || c->kv_value != types[i].value || !c->press == types[i].presses)
            fail_msg("%s: keys %d, values %d", types[i].v, c->kv_key, c->kv_value);
        pd_compression_close(c);
    }

    c = wish("{\"decode\":{\"press\":\"knorm\",\"interval\":64,\"target_tokens\":128}}", true);
    assert_null(c->press);
    assert_decode(c, "decoding:compression_interval=64,target_size=128(knorm)");
    pd_compression_close(c);
    c = wish("{\"press\":\"knorm\",\"ratio\":0.5,\"decode\":{\"press\":\"knorm@0.75\"}}", true);
    assert_decode(c, "compression_ratio_decoding:target_compression_ratio=0.75(knorm)");
    pd_compression_close(c);
}

/* Lists, ratios of inner presses, and presses that take no ratio; the model has two layers. */
static void test_compression_without_ratio(void **state) {
    static const struct { const char *v, *press;
    } t[] = {
        {"{\"press\":\"simlayerkv\"}", "simlayerkv"},
        {"\"simlayerkv:lazy_threshold=0.9\"", "simlayerkv:lazy_threshold=0.9"},
        {"{\"press\":{\"name\":\"per_layer\",\"params\":{\"compression_ratios\":[0,0.50]},"
         "\"press\":\"knorm\"}}",
         "per_layer:compression_ratios=0;0.5(knorm)"},
        {"{\"press\":{\"name\":\"per_layer\",\"params\":{\"compression_ratios\":[1,1]},"
         "\"press\":{\"name\":\"snapkv\",\"params\":{\"window_size\":8}}}}",
         "per_layer:compression_ratios=1*2(snapkv:window_size=8)"},
        {"\"per_layer:compression_ratios=0.25;0.5(knorm)\"",
         "per_layer:compression_ratios=0.25;0.5(knorm)"},
        {"{\"press\":{\"name\":\"composed\",\"presses\":[{\"name\":\"knorm\",\"ratio\":0.3},"
         "\"snapkv@0.25\"]}}",
         "composed(knorm@0.3,snapkv@0.25)"},
        {"\"composed(simlayerkv,knorm@0)\"", "composed(simlayerkv,knorm@0)"},
    };
    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
        pd_compression *c = wish(t[i].v, true);
        assert_press(c, t[i].press);
        assert_true(c->ratio == 0.0 && c->budget == PD_BUDGET_RATIO);
        pd_compression_close(c);
    }
    pd_compression *c = NULL;
    pd_err err = {0};
    assert_int_equal(pd_compression_decode_text("simlayerkv:n_recent=64", "model", true, &model, &c, &err), PD_OK);
    pd_compression_close(c);
    /* "name:number" is a ratio, and this press takes none */
    assert_int_equal(pd_compression_decode_text("simlayerkv:0.5", "model", true, &model, &c, &err), PD_EINVAL);
    assert_non_null(strstr(err.msg, "takes neither ratio nor budget: lazy_threshold"));
    c = wish("{\"press\":\"composed(knorm,snapkv)\",\"ratio\":0.5}", true);
    assert_true(c->ratio == 0.5);
    pd_compression_close(c);
    c = wish("{\"press\":{\"name\":\"finch\",\"params\":{\"window_size\":12}},\"budget_tokens\":9}", true);
    assert_press(c, "finch:window_size=12");
    pd_compression_close(c);
}

/* Every way to ask for a press while tokens are generated, and the text it comes to. */
static void test_decode_presses(void **state) {
    (void)state;
    static const char *const t[][3] = {
        /* request, press of the prompt, text of it all */
        {"{\"decode\":{\"press\":\"snapkv\",\"target_tokens\":9}}", "none", "decoding:target_size=9(snapkv)"},
        {"\"decoding(knorm)\"", "none", "decoding(knorm)"},
        {"\"decoding:target_size=512,compression_interval=64(adakv(knorm))\"", "none",
         "decoding:compression_interval=64,target_size=512(adakv(knorm))"},
        {"{\"press\":{\"name\":\"decoding\",\"params\":{\"target_size\":7},\"press\":\"knorm\"}}", "none",
         "decoding:target_size=7(knorm)"},
        {"{\"press\":\"decoding(knorm)\",\"params\":{\"hidden_states_buffer_size\":0}}", "none",
         "decoding:hidden_states_buffer_size=0(knorm)"},
        {"{\"press\":\"compression_ratio_decoding:target_compression_ratio=0.25(keydiff)\"}", "none",
         "compression_ratio_decoding:target_compression_ratio=0.25(keydiff)"},
        {"{\"press\":\"cam:merge_budget=4(knorm)\",\"seed\":3}", "none", "cam:merge_budget=4(knorm)"},
        {"{\"decode\":{\"press\":\"cam(tova)\"}}", "none", "cam(tova)"},
        {"\"dms:threshold=-3(knorm)\"", "dms:threshold=-3(knorm)", "dms:threshold=-3(knorm)"},
        {"\"dms:threshold=0,decoding=true(knorm)\"", "dms:threshold=0,decoding=true(knorm)",
         "dms:threshold=0,decoding=true(knorm)"},
        {"\"prefill_decoding(snapkv,decoding(knorm))@0.5\"", "snapkv", "prefill_decoding(snapkv,decoding(knorm))"},
        {"\"prefill_decoding(none,cam(knorm))\"", "none", "cam(knorm)"},
        {"\"prefill_decoding(snapkv,none)@0.5\"", "snapkv", "snapkv"},
        {"\"prefill_decoding(decoding(knorm))\"", "none", "decoding(knorm)"},
        {"\"prefill_decoding(dms:threshold=1(knorm),decoding(keydiff))\"", "dms:threshold=1(knorm)",
         "prefill_decoding(dms:threshold=1(knorm),decoding(keydiff))"},
        {"{\"press\":{\"name\":\"prefill_decoding\",\"prefilling_press\":\"knorm\",\"decoding_press\":{\"name\":\"decoding\","
         "\"press\":\"knorm\"}},\"budget_tokens\":5}", "knorm", "prefill_decoding(knorm,decoding(knorm))"},
        {"{\"press\":{\"name\":\"prefill_decoding\",\"prefilling_press\":null,\"decoding_press\":\"decoding(knorm)\"}}",
         "none", "decoding(knorm)"},
        {"{\"press\":{\"name\":\"prefill_decoding\",\"presses\":[\"knorm\",\"decoding(knorm)\"]},\"ratio\":0.5}", "knorm",
         "prefill_decoding(knorm,decoding(knorm))"},
        {"\"prefill_decoding(knorm@0.25,decoding(knorm))\"", "knorm", "prefill_decoding(knorm,decoding(knorm))"},
        {"{\"press\":{\"name\":\"prefill_decoding\",\"prefilling_press\":{\"name\":\"knorm\",\"ratio\":0.25},"
         "\"decoding_press\":\"cam(tova)\"}}", "knorm", "prefill_decoding(knorm,cam(tova))"},
        {"{\"press\":\"knorm\",\"ratio\":0.5,\"decode\":{\"press\":\"decoding(knorm)\"}}", "knorm",
         "prefill_decoding(knorm,decoding(knorm))"},
        {"{\"press\":\"prefill_decoding(knorm)\",\"ratio\":0.5,\"decode\":{\"press\":\"tova\",\"target_tokens\":8}}", "knorm",
         "prefill_decoding(knorm,decoding:target_size=8(tova))"},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        pd_compression *c = wish(t[i][0], true);
        assert_press(c, t[i][1]);
        assert_true(c->has_ratio == (strstr(t[i][0], "0.25") && c->press) && (!c->has_ratio || c->ratio == 0.25));
        pd_buf b = {0};
        pd_compression_text(c, &b);
        if (strcmp(b.data, t[i][2]) != 0) fail_msg("%s: %s, not %s", t[i][0], b.data, t[i][2]);
        assert_int_equal(strncmp(b.data, pd_compression_name(c), strlen(pd_compression_name(c))), 0);
        pd_buf_done(&b);
        pd_compression_close(c);
    }

    static const char *const bad[][3] = {
        /* request, parameter at fault, part of the message */
        {"{\"press\":\"decoding(knorm)\",\"decode\":{\"press\":\"knorm\",\"target_tokens\":5}}",
         "compression.decode.press", "give one of them"},
        {"{\"press\":\"dms:threshold=1,decoding=true(knorm)\",\"decode\":{\"press\":\"cam(knorm)\"}}",
         "compression.decode.press", "give one of them"},
        {"{\"press\":\"decoding(knorm)\",\"ratio\":0.5}", "compression.ratio", "'decoding' takes neither ratio nor budget"},
        {"{\"press\":\"cam(knorm)\",\"budget_tokens\":5}", "compression.budget_tokens", "'cam' takes neither"},
        {"{\"press\":\"dms:threshold=1(knorm)\",\"ratio\":0.5}", "compression.ratio", "'dms' takes neither"},
        {"\"decoding(knorm)@0.5\"", "compression", "'decoding' takes neither"},
        {"\"prefill_decoding(knorm@0.5,decoding(knorm))@0.5\"", "compression", "given twice"},
        {"{\"press\":\"prefill_decoding(knorm@0.5)\",\"budget_bytes\":5}", "compression.ratio", "given twice"},
        {"{\"press\":\"prefill_decoding(knorm,decoding(knorm)@0.5)\",\"ratio\":0.5}", "compression.press", "takes no ratio"},
        {"{\"press\":\"prefill_decoding(none@0.5,decoding(knorm))\"}", "compression.press", "'none' cannot stand"},
        {"{\"press\":\"decoding(knorm@0.5)\"}", "compression.press", "takes no ratio of its own"},
        {"\"prefill_decoding(knorm,decoding(knorm))\"", "compression", "needs a ratio"},
        {"{\"press\":\"prefill_decoding(knorm,decoding(knorm))\"}", "compression.ratio", "needs one of ratio"},
        {"{\"press\":\"prefill_decoding(knorm,knorm)\",\"ratio\":0.5}", "compression.press", "decoding(knorm) does"},
        {"{\"press\":\"prefill_decoding(cam(knorm),decoding(knorm))\"}", "compression.press", "leaves it dense"},
        {"{\"press\":\"prefill_decoding(none,none)\"}", "compression.press", "needs a press inside"},
        {"{\"press\":\"prefill_decoding(none,none,none)\"}", "compression.press", "takes 1 to 2 presses"},
        {"{\"press\":\"prefill_decoding(prefill_decoding(knorm))\"}", "compression.press", "inside itself"},
        {"{\"press\":\"prefill_decoding(dms:threshold=1,decoding=true(knorm),cam(knorm))\"}", "compression.press",
         "stands outermost"},
        {"{\"press\":\"prefill_decoding(adakv(knorm),cam(knorm))\",\"ratio\":0.5}", "compression.press",
         "unequally long, which 'cam' cannot prune"},
        {"{\"press\":{\"name\":\"prefill_decoding\",\"decoding_press\":\"decoding(knorm)@0.5\"}}",
         "compression.press.decoding_press", "takes no ratio"},
        {"{\"press\":\"composed(decoding(knorm)@0.5,knorm@0.5)\"}", "compression.press", "takes no ratio"},
        {"{\"press\":\"composed(decoding(knorm),knorm)\",\"ratio\":0.5}", "compression.press", "cannot stand inside 'composed'"},
        {"{\"press\":\"composed(cam(knorm),knorm)\",\"ratio\":0.5}", "compression.press", "cannot stand inside 'composed'"},
        {"{\"press\":\"composed(dms:threshold=1(knorm),knorm)\",\"ratio\":0.5}", "compression.press", "same number of tokens"},
        {"{\"press\":{\"name\":\"prefill_decoding\",\"prefilling_press\":\"knorm\",\"presses\":[]},\"ratio\":0}",
         "compression.press", "give \"presses\" or"},
        {"{\"press\":{\"name\":\"prefill_decoding\",\"press\":\"knorm\"},\"ratio\":0}", "compression.press.press", "not known"},
        {"{\"press\":\"adakv(decoding(knorm))\",\"ratio\":0.5}", "compression.press", "scores tokens"},
        {"{\"press\":\"decoding(key_rerotation(knorm))\"}", "compression.press", "while tokens are generated"},
        {"{\"press\":\"decoding(compactor)\"}", "compression.press", "while tokens are generated"},
        {"{\"press\":\"decoding(adakv(leverage))\"}", "compression.press", "while tokens are generated"},
        {"{\"press\":\"cam(non_causal_attention)\"}", "compression.press", "while tokens are generated"},
        {"{\"decode\":{\"press\":\"observed_attention\",\"target_tokens\":4}}", "compression.decode.press", "prompts only"},
        {"{\"press\":\"decoding(decoding(knorm))\"}", "compression.press", "while tokens are generated"},
        {"{\"press\":\"cam(adakv(knorm))\"}", "compression.press", "scores tokens"},
        {"{\"press\":\"dms(knorm)\"}", "compression.press", "threshold"},
        {"{\"press\":{\"name\":\"dms\",\"params\":{\"threshold\":1,\"decoding\":true},\"press\":\"keydiff\"}}",
         "compression.press.params", "scores each new token alone"},
        {"{\"press\":\"dms:threshold=1,sliding_window_size=0(knorm)\"}", "compression.press", "[1, 65536], not 0"},
        {"{\"press\":\"decoding:target_size=0(knorm)\"}", "compression.press", "'target_size'"},
        {"{\"press\":\"compression_ratio_decoding:target_compression_ratio=1(knorm)\"}", "compression.press", "[0, 1)"},
        {"{\"press\":\"compression_ratio_decoding:target_size=5(knorm)\"}", "compression.press", "no parameter 'target_size'"},
        {"{\"decode\":{\"press\":\"decoding(knorm)\",\"interval\":4}}", "compression.decode", "do not apply"},
        {"{\"decode\":{\"press\":\"key_rerotation(knorm)\",\"target_tokens\":4}}", "compression.decode.press",
         "prompts only"},
        {"{\"decode\":{\"press\":\"dms:threshold=1,decoding=true(knorm)\",\"target_tokens\":4}}",
         "compression.decode.press", "prompts only"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_error_t e;
        json_t *v = json_loads(bad[i][0], JSON_DECODE_ANY, &e);
        pd_err err = {0};
        pd_compression *c = NULL;
        assert_non_null(v);
        if (pd_compression_decode(v, "compression", &model, true, &c, NULL, &err) != PD_EINVAL)
            fail_msg("accepted: %s", bad[i][0]);
        if (strcmp(err.param, bad[i][1]) != 0 || !strstr(err.msg, bad[i][2]))
            fail_msg("%s: param '%s', message '%s'", bad[i][0], err.param, err.msg);
        assert_null(c);
        json_decref(v);
    }
}

static void test_few_bits_want_whole_groups(void **state) {
    pd_press_model odd = model;
    odd.head_dim = 48;
    static const char *const t[][2] = {{"{\"kv_type\":\"q4\"}", "compression.kv_type"},
                                       {"{\"kv_type\":{\"value\":\"q8_0\"}}", "compression.kv_type.value"}};
    pd_compression *c = NULL;
    for (size_t i = 0; i < 2; i++) {
        pd_err err = {0};
        json_t *v = json_loads(t[i][0], 0, NULL);
        assert_int_equal(pd_compression_decode(v, "compression", &odd, false, &c, NULL, &err), PD_EINVAL);
        assert_string_equal(err.param, t[i][1]);
        assert_non_null(strstr(err.msg, "32; this model's heads have 48"));
        json_decref(v);
    }
    json_t *v = json_loads("{\"kv_type\":\"f16\"}", 0, NULL);
    assert_int_equal(pd_compression_decode(v, "compression", &odd, false, &c, NULL, NULL), PD_OK);
    json_decref(v);
    pd_compression_close(c);
}

static void test_compression_refused(void **state) {
    static const struct { const char *v, *param;
    } t[] = {
        {"5", "compression"},
        {"[]", "compression"},
        {"{}", "compression.press"},
        {"{\"ratio\":0.5}", "compression.press"},
        {"{\"ratio\":0.5,\"kv_type\":\"q8_0\"}", "compression.press"},
        {"{\"budget_tokens\":5,\"kv_type\":\"q8_0\"}", "compression.press"},
        {"{\"budget_bytes\":5,\"kv_type\":\"q8_0\"}", "compression.press"},
        {"{\"params\":{},\"kv_type\":\"q8_0\"}", "compression.press"},
        {"{\"kv_type\":null}", "compression.press"},
        {"{\"kv_type\":\"q5_0\"}", "compression.kv_type"},
        {"{\"kv_type\":\"f32\"}", "compression.kv_type"},
        {"{\"kv_type\":8}", "compression.kv_type"},
        {"{\"kv_type\":[\"q4\"]}", "compression.kv_type"},
        {"{\"kv_type\":{}}", "compression.kv_type"},
        {"{\"kv_type\":{\"keys\":\"q4\"}}", "compression.kv_type.keys"},
        {"{\"kv_type\":{\"key\":\"q4\",\"value\":\"\"}}", "compression.kv_type.value"},
        {"{\"kv_type\":{\"key\":true}}", "compression.kv_type.key"},
        {"{\"press\":5,\"ratio\":0.5}", "compression.press"},
        {"{\"press\":\"nope\",\"ratio\":0.5}", "compression.press"},
        {"{\"press\":{\"nam\":\"knorm\"},\"ratio\":0.5}", "compression.press.nam"},
        {"{\"press\":{\"params\":{}},\"ratio\":0.5}", "compression.press.name"},
        {"{\"press\":{\"name\":\"knorm\",\"presses\":{}},\"ratio\":0.5}",
         "compression.press.presses"},
        {"{\"press\":{\"name\":\"knorm\",\"press\":\"knorm\",\"presses\":[]},\"ratio\":0.5}",
         "compression.press"},
        {"{\"press\":{\"name\":\"streaming_llm\",\"params\":{\"n_sink\":-1}},\"ratio\":0.5}",
         "compression.press.params.n_sink"},
        {"{\"press\":\"streaming_llm\",\"params\":{\"n_sink\":1.5},\"ratio\":0.5}",
         "compression.params.n_sink"},
        {"{\"press\":\"streaming_llm\",\"params\":{\"n_sink\":[1]},\"ratio\":0.5}",
         "compression.params.n_sink"},
        {"{\"press\":\"streaming_llm\",\"params\":{\"zzz\":1},\"ratio\":0.5}",
         "compression.params.zzz"},
        {"{\"press\":\"knorm\",\"params\":7,\"ratio\":0.5}", "compression.params"},
        {"{\"press\":{\"name\":\"knorm\"},\"params\":{},\"ratio\":0.5}", "compression.params"},
        {"{\"press\":\"knorm\"}", "compression.ratio"},
        {"{\"press\":\"simlayerkv\",\"ratio\":0.5}", "compression.ratio"},
        {"{\"press\":\"simlayerkv@0.5\"}", "compression.ratio"},
        {"\"simlayerkv@0.5\"", "compression"},
        {"{\"press\":\"simlayerkv\",\"budget_tokens\":5}", "compression.budget_tokens"},
        {"{\"press\":\"simlayerkv\",\"budget_bytes\":5}", "compression.budget_bytes"},
        {"{\"press\":\"per_layer:compression_ratios=0;0(knorm)\",\"ratio\":0}", "compression.ratio"},
        {"{\"press\":\"composed(knorm@0.5)\",\"ratio\":0.5}", "compression.ratio"},
        {"{\"press\":\"composed(simlayerkv,knorm)\"}", "compression.ratio"},
        {"{\"press\":{\"name\":\"knorm\",\"ratio\":0.5}}", "compression.press.ratio"},
        {"{\"press\":{\"name\":\"adakv\",\"press\":{\"name\":\"knorm\",\"ratio\":0.5}},\"ratio\":0.5}",
         "compression.press.press"},
        {"{\"press\":{\"name\":\"composed\",\"presses\":[\"knorm\",{\"name\":\"knorm\",\"ratio\":1}]}}",
         "compression.press.presses[1].ratio"},
        {"{\"press\":{\"name\":\"composed\",\"presses\":[\"knorm\",{\"name\":\"knorm\",\"ratio\":0.5}]}}",
         "compression.press.params"},
        {"{\"press\":{\"name\":\"per_layer\",\"press\":\"knorm\"}}",
         "compression.press.params.compression_ratios"},
        {"{\"press\":{\"name\":\"per_layer\",\"press\":\"knorm\",\"params\":{\"compression_ratios\":[]}}}",
         "compression.press.params.compression_ratios"},
        {"{\"press\":{\"name\":\"per_layer\",\"press\":\"knorm\",\"params\":{\"compression_ratios\":[0,0,0]}}}",
         "compression.press.params.compression_ratios"},
        {"{\"press\":{\"name\":\"per_layer\",\"press\":\"knorm\",\"params\":{\"compression_ratios\":[0,1.1]}}}",
         "compression.press.params.compression_ratios[1]"},
        {"{\"press\":{\"name\":\"per_layer\",\"press\":\"knorm\",\"params\":{\"compression_ratios\":[0,\"1\"]}}}",
         "compression.press.params.compression_ratios[1]"},
        {"{\"press\":{\"name\":\"per_layer\",\"press\":\"knorm\",\"params\":{\"compression_ratios\":[[0],1]}}}",
         "compression.press.params.compression_ratios[0]"},
        {"{\"press\":{\"name\":\"per_layer\",\"press\":\"knorm\",\"params\":{\"compression_ratios\":{}}}}",
         "compression.press.params.compression_ratios"},
        {"{\"press\":{\"name\":\"knorm\",\"params\":{\"seed\":[1]}},\"ratio\":0.5}", "compression.press.params.seed"},
        {"{\"press\":{\"name\":\"finch\"},\"ratio\":0.5}", "compression.press.params.window_size"},
        {"{\"press\":\"finch\",\"params\":{\"chunk_length\":8},\"ratio\":0.5}", "compression.params.window_size"},
        {"{\"decode\":{\"press\":\"simlayerkv\",\"target_tokens\":5}}", "compression.decode.press"},
        {"{\"decode\":{\"press\":\"chunk(knorm)\",\"target_tokens\":5}}", "compression.decode.press"},
        {"{\"press\":\"knorm\",\"ratio\":1}", "compression.ratio"},
        {"{\"press\":\"knorm\",\"ratio\":-1e-9}", "compression.ratio"},
        {"{\"press\":\"knorm\",\"ratio\":\"0.5\"}", "compression.ratio"},
        {"{\"press\":\"knorm@0.5\",\"ratio\":0.5}", "compression.ratio"},
        {"{\"press\":\"knorm\",\"budget_tokens\":0}", "compression.budget_tokens"},
        {"{\"press\":\"knorm\",\"budget_tokens\":2147483648}", "compression.budget_tokens"},
        {"{\"press\":\"knorm\",\"budget_bytes\":-1}", "compression.budget_bytes"},
        {"{\"press\":\"knorm\",\"budget_tokens\":5,\"budget_bytes\":5}", "compression.ratio"},
        {"{\"press\":\"knorm\",\"ratio\":0.5,\"scope\":\"all\"}", "compression.scope"},
        {"{\"press\":\"knorm\",\"ratio\":0.5,\"scope\":\"context\"}", "compression.scope"},
        {"{\"press\":\"knorm\",\"ratio\":0.5,\"scope\":{\"context_tokens\":0}}",
         "compression.scope.context_tokens"},
        {"{\"press\":\"knorm\",\"ratio\":0.5,\"scope\":{}}", "compression.scope"},
        {"{\"press\":\"knorm\",\"ratio\":0.5,\"min_tokens\":-1}", "compression.min_tokens"},
        {"{\"press\":\"knorm\",\"ratio\":0.5,\"protect_system\":1}", "compression.protect_system"},
        {"{\"press\":\"knorm\",\"ratio\":0.5,\"seed\":-1}", "compression.seed"},
        {"{\"press\":\"knorm\",\"ratio\":0.5,\"wat\":1}", "compression.wat"},
        {"{\"decode\":[]}", "compression.decode"},
        {"{\"decode\":{\"target_tokens\":5}}", "compression.decode.press"},
        {"{\"decode\":{\"press\":\"knorm\"}}", "compression.decode"},
        {"{\"decode\":{\"press\":\"knorm\",\"target_tokens\":5,\"ratio\":0.5}}",
         "compression.decode"},
        {"{\"decode\":{\"press\":\"knorm\",\"interval\":0,\"ratio\":0.5}}",
         "compression.decode.interval"},
        {"{\"decode\":{\"press\":\"knorm\",\"ratio\":2}}", "compression.decode.ratio"},
        {"\"\"", "compression"},
        {"\"knorm\"", "compression"},
        {"\"knorm@1\"", "compression"},
        {"\"knorm@\"", "compression"},
    };
    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
        pd_err err = {0};
        json_t *v = json_loads(t[i].v, JSON_DECODE_ANY, NULL);
        assert_non_null(v);
        pd_compression *c = (pd_compression *)(uintptr_t)1;
        if (pd_compression_decode(v, "compression", &model, false, &c, NULL, &err) == PD_OK)
            fail_msg("accepted: %s", t[i].v);
        json_decref(v);
        assert_ptr_equal(c, (pd_compression *)(uintptr_t)1);
        assert_int_equal(err.code, PD_EINVAL);
        if (strcmp(err.param, t[i].param) != 0)
            fail_msg("%s: param '%s', expected '%s' (%s)", t[i].v, err.param, t[i].param, err.msg);
    }
}

/* A press that says by its own parameters what stays takes neither ratio nor budget. */
static void test_own_budget(void **state) {
    static const char *const good[] = {
        "{\"press\":\"duo_attention\",\"params\":{\"head_compression_ratio\":0.5}}",
        "{\"press\":\"duo_attention:head_compression_ratio=0.5\"}",
        "\"duo_attention:head_compression_ratio=0.5\"",
    };
    static const char *const bad[] = {
        "{\"press\":\"duo_attention\",\"ratio\":0.5}",
        "{\"press\":\"duo_attention\",\"budget_tokens\":5}",
        "\"duo_attention@0.5\"",
    };
    pd_press_model with = model;
    pd_press_data *data = pd_case_data(1, &model);
    with.data = data;
    for (size_t i = 0; i < 6; i++) {
        pd_err err = {0};
        json_t *v = json_loads(i < 3 ? good[i] : bad[i - 3], JSON_DECODE_ANY, NULL);
        pd_compression *c = NULL;
        const pd_status rc = pd_compression_decode(v, "compression", &with, false, &c, NULL, &err);
        json_decref(v);
        if (i >= 3) {
            assert_int_equal(rc, PD_EINVAL);
            assert_non_null(strstr(err.msg, "'duo_attention' takes neither ratio nor budget"));
            continue;
        }
        if (rc != PD_OK) fail_msg("%s: %s", good[i], err.msg);
        assert_press(c, "duo_attention:head_compression_ratio=0.5");
        pd_compression_close(c);
    }
    pd_press_data_close(data);
}

/* What says how the cache is read stands around what drops, in every spelling. */
static void test_reading(void **state) {
    static const struct {
        const char *wish, *text, *press;
        double ratio;
    } t[] = {
        {"\"hcattention\"", "hcattention", NULL, 0.0},
        {"{\"press\":\"quest\",\"params\":{\"token_budget\":64}}", "quest:token_budget=64", NULL, 0.0},
        {"\"hcattention:tau=0.5(knorm)@0.25\"", "hcattention:tau=0.5(knorm)", "knorm", 0.25},
        {"\"hcattention(quest(knorm@0.25))\"", "hcattention(quest(knorm))", "knorm", 0.25},
        {"{\"press\":{\"name\":\"quest\",\"press\":{\"name\":\"knorm\"}},\"ratio\":0.25}", "quest(knorm)", "knorm", 0.25},
        {"\"quest(prefill_decoding(knorm@0.25,decoding(random)))\"", "quest(prefill_decoding(knorm,decoding(random)))", "knorm", 0.25},
        {"{\"press\":\"quest\",\"decode\":{\"press\":\"random\",\"target_tokens\":2048}}", "quest(decoding(random))", NULL, 0.0},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        pd_compression *c = wish(t[i].wish, true);
        pd_buf b = {0};
        pd_compression_text(c, &b);
        assert_string_equal(b.data, t[i].text);
        pd_buf_done(&b);
        assert_int_equal(c->press != NULL, t[i].press != NULL);
        if (c->press) assert_press(c, t[i].press);
        assert_true(c->ratio == t[i].ratio);
        assert_string_equal(pd_compression_name(c), strchr(t[i].text, 'q') == t[i].text ? "quest" : "hcattention");
        pd_compression_close(c);
    }
    pd_compression *c = wish("\"hcattention:tau=0.5,renormalize=false(quest:token_budget=65,skip_layers=3)\"", false);
    refuse("{\"prompt\":\"x\",\"compression\":\"quest(hcattention(quest))\"}", PD_REQUEST_COMPLETION, "compression");
    refuse("{\"prompt\":\"x\",\"compression\":\"quest(knorm)\"}", PD_REQUEST_COMPLETION, "compression"); /* how much goes? */
    const pd_read_rule rule = pd_compression_read(c), none = pd_compression_read(NULL);
    assert_true(rule.tau == 0.5 && !rule.renormalize && rule.page_budget == 5 && rule.skip_layers == 3 && !pd_read_all(&rule));
    assert_true(pd_read_all(&none));
    pd_compression_close(c);
}

static void test_model_suffix(void **state) {
    pd_request r;
    static const struct { const char *model, *press; double ratio; } t[] = {
        {"m@x@knorm:0.5", "knorm", 0.5}, /* the alias holds '@' itself */
        {"other@knorm:0.25", "knorm", 0.25},
        {"a@streaming_llm:n_sink=8:0.5", "streaming_llm:n_sink=8", 0.5},
        {"a@streaming_llm:n_sink=8@0.5", "streaming_llm:n_sink=8", 0.5},
    };
    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
        char body[200];
        snprintf(body, sizeof body, "{\"prompt\":\"x\",\"model\":\"%s\"}", t[i].model);
        completion(body, &r);
        assert_press(r.prompt->compression, t[i].press);
        assert_true(r.prompt->compression->ratio == t[i].ratio);
        pd_request_done(&r);
    }
    completion("{\"prompt\":\"x\",\"model\":\"m@x\"}", &r);
    assert_null(r.prompt->compression);
    pd_request_done(&r);
    refuse("{\"prompt\":\"x\",\"model\":\"m@x@nope:0.5\"}", PD_REQUEST_COMPLETION, "model");
    refuse("{\"prompt\":\"x\",\"model\":\"m@x@knorm:1.5\"}", PD_REQUEST_COMPLETION, "model");
    refuse("{\"prompt\":\"x\",\"model\":\"m@x@knorm\"}", PD_REQUEST_COMPLETION, "model");
    refuse("{\"prompt\":\"x\",\"model\":\"y@knorm:0.5@0.5\"}", PD_REQUEST_COMPLETION, "model");
}

static void test_server_default(void **state) {
    pd_request_env env = {
        .model_id = "m", .press_model = &model, .n_vocab = 260, .compression = "knorm@0.5"};
    pd_request r;
    pd_err err = {0};
    assert_int_equal(decode_env("{\"prompt\":\"x\"}", PD_REQUEST_COMPLETION, &env, &r, &err),
                     PD_OK);
    assert_press(r.prompt->compression, "knorm");
    pd_request_done(&r);
    assert_int_equal(decode_env("{\"prompt\":\"x\",\"compression\":\"none\"}",
                                PD_REQUEST_COMPLETION, &env, &r, &err),
                     PD_OK);
    assert_null(r.prompt->compression);
    pd_request_done(&r);
    env.compression = " {\"press\":\"knorm\",\"ratio\":0.5,\"scope\":\"context\"}";
    assert_int_equal(decode_env("{\"prompt\":\"x\"}", PD_REQUEST_COMPLETION, &env, &r, &err),
                     PD_OK);
    assert_int_equal(r.prompt->compression->scope,
                     PD_SCOPE_PROMPT); /* a completion has no context of its own */
    pd_request_done(&r);
    static const char *const bad[] = {"nope@0.5", "knorm", "{\"press\":\"knorm\"}", "{",
                                      "{\"press\":\"knorm\",\"ratio\":0.5} x"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        pd_compression *c = NULL;
        err = (pd_err){0};
        assert_int_not_equal(pd_compression_decode_default(bad[i], &model, true, &c, &err), PD_OK);
        assert_null(c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_compression),
        cmocka_unit_test(test_compression_without_ratio),
        cmocka_unit_test(test_decode_presses),
        cmocka_unit_test(test_few_bits_want_whole_groups),
        cmocka_unit_test(test_compression_refused),
        cmocka_unit_test(test_own_budget),
        cmocka_unit_test(test_reading),
        cmocka_unit_test(test_model_suffix),
        cmocka_unit_test(test_server_default),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
