/* SPDX-License-Identifier: Apache-2.0 */
/* Requests and their compression: what is accepted, what it becomes, what is
 * refused and under which name.  The tokenizer is the fake engine's. */
#include "engine/run/engine.h"
#include "server/auth.h"
#include "server/compression_json.h"
#include "server/prom.h"
#include "server/request.h"
#include "tests/unit/press_data_case.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const pd_press_model model = {
    .n_layer = 2, .n_head = 4, .n_head_kv = 2, .head_dim = 64, .n_embd = 256};

static pd_status decode_env(const char *text, pd_request_kind kind, const pd_request_env *env,
                            pd_request *r, pd_err *err) {
    json_t *body;
    PD_TRY(pd_json_parse(&body, text, strlen(text), err));
    return pd_request_decode(body, kind, false, env, r, err);
}

static pd_status decode(const char *text, pd_request_kind kind, pd_request *r, pd_err *err) {
    const pd_request_env env = {.model_id = "m@x", .press_model = &model, .n_vocab = 260};
    return decode_env(text, kind, &env, r, err);
}

static void completion(const char *text, pd_request *r) {
    pd_err err = {0};
    if (decode(text, PD_REQUEST_COMPLETION, r, &err) != PD_OK) fail_msg("%s: %s", text, err.msg);
}

static void refuse(const char *text, pd_request_kind kind, const char *param) {
    pd_err err = {0};
    pd_request r = {.n_msg = 4242};
    if (decode(text, kind, &r, &err) == PD_OK) fail_msg("accepted: %s", text);
    assert_int_equal(r.n_msg, 4242); /* untouched on failure */
    assert_int_equal(pd_status_http(err.code), 400);
    if (strcmp(err.param, param) != 0)
        fail_msg("%s: param '%s', expected '%s' (%s)", text, err.param, param, err.msg);
    assert_true(strlen(err.msg) > 0);
}

static void test_defaults(void **state) {
    pd_request r;
    completion("{\"prompt\":\"hi\"}", &r);
    assert_int_equal(r.max_tokens, 16);
    assert_true(r.max_given);
    assert_int_equal(r.n_logprobs, -1);
    assert_true(r.sampling.temperature == 1.0f && r.sampling.top_p == 1.0f &&
                r.sampling.top_k == 0);
    assert_false(r.seed_given);
    assert_null(r.prompt->compression);
    const uint64_t seed = r.sampling.seed;
    pd_request_done(&r);
    completion("{\"prompt\":\"hi\"}", &r);
    assert_true(seed != r.sampling.seed); /* drawn anew */
    pd_request_done(&r);
    pd_err err = {0};
    assert_int_equal(
        decode("{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", PD_REQUEST_CHAT, &r, &err),
        PD_OK);
    assert_false(r.max_given); /* chat: as many as fit */
    assert_true(r.add_generation_prompt);
    pd_request_done(&r);
}

static void test_fields(void **state) {
    pd_request r;
    completion("{\"prompt\":[1,2.0,259],\"max_tokens\":5.0,\"max_completion_tokens\":7,"
               "\"temperature\":0,\"top_p\":0.5,"
               "\"top_k\":-1,\"min_p\":0.1,\"seed\":-3,\"stop\":[\"a\",\"bb\"],\"logprobs\":100,"
               "\"ignore_eos\":true,"
               "\"stream\":true,\"stream_options\":{\"include_usage\":true,\"continuous_usage_"
               "stats\":true},\"verbose\":true}",
               &r);
    assert_int_equal(r.prompt->ids.n, 3);
    assert_int_equal(r.prompt->ids.id[1], 2);
    assert_int_equal(r.max_tokens, 7); /* the newer name wins */
    assert_true(r.sampling.temperature == 0.0f && r.sampling.min_p == 0.1f);
    assert_true(r.sampling.seed == (uint64_t)-3 && r.seed_given);
    assert_int_equal(r.n_stop, 2);
    assert_int_equal(r.stop[1].len, 2);
    assert_int_equal(r.n_logprobs, 100);
    assert_true(r.stream && r.include_usage && r.continuous_usage && r.ignore_eos && r.verbose);
    pd_job_params p;
    pd_request_params(&r, 0, &p);
    assert_int_equal(p.n_tokens, 3);
    assert_string_equal(p.stop[1].text, "bb");
    pd_request_done(&r);
}

static void test_choices(void **state) {
    pd_request r;
    completion("{\"prompt\":[\"a\",[1,2],\"\"],\"n\":3,\"seed\":5,\"compression\":\"knorm@0.5\"}", &r);
    assert_int_equal(r.n_prompt, 3);
    assert_int_equal(r.n, 3);
    assert_int_equal(r.best_of, 3);
    assert_string_equal(r.prompt[0].text, "a");
    assert_null(r.prompt[1].text);
    assert_int_equal(r.prompt[1].ids.n, 2);
    assert_int_equal(r.prompt[2].text_len, 0);
    for (size_t i = 0; i < 3; i++) {
        pd_job_params p;
        pd_request_params(&r, i, &p);
        assert_ptr_equal(p.compression, r.prompt[i].compression);
        assert_non_null(p.compression);
        if (i) assert_ptr_not_equal(p.compression, r.prompt[0].compression); /* each job owns its own */
        assert_int_equal(p.follows, i > 0);
        assert_int_equal(p.n_logprobs, -1);
    }
    pd_request_done(&r);

    completion("{\"prompt\":[[7]],\"n\":2,\"best_of\":20}", &r);
    pd_job_params p;
    pd_request_params(&r, 0, &p);
    assert_int_equal(p.n_logprobs, 0); /* what the best are told by */
    assert_int_equal(r.n_logprobs, -1);
    pd_request_done(&r);

    pd_err err = {0};
    assert_int_equal(decode("{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"n\":128}", PD_REQUEST_CHAT, &r, &err), PD_OK);
    assert_int_equal(r.best_of, 128);
    pd_request_done(&r);
    refuse("{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"best_of\":2}", PD_REQUEST_CHAT, "best_of");
    refuse("{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"echo\":true}", PD_REQUEST_CHAT, "echo");

    pd_buf many = {0};
    pd_buf_puts(&many, "{\"prompt\":[\"a\"");
    for (int i = 1; i < PD_REQUEST_PROMPTS_MAX; i++) pd_buf_puts(&many, ",\"a\"");
    pd_buf_puts(&many, "]}");
    completion(many.data, &r); /* exactly the bound */
    pd_request_done(&r);
    many.len -= 2;
    pd_buf_puts(&many, ",[5]]}");
    refuse(many.data, PD_REQUEST_COMPLETION, "prompt");
    pd_buf_done(&many);
}

static void test_adjust(void **state) {
    pd_request r;
    completion("{\"prompt\":\"x\",\"logit_bias\":{\"7\":-100,\"259\":0.5,\"3\":null},\"presence_penalty\":-2,"
               "\"frequency_penalty\":0.25,\"repetition_penalty\":2,\"min_tokens\":16,\"stop_token_ids\":[0,259.0]}",
               &r);
    pd_job_params p;
    pd_request_params(&r, 0, &p);
    assert_int_equal(p.adjust.n_bias, 3);
    float sum = 0;
    for (size_t i = 0; i < 3; i++) {
        const pd_token_bias *b = &p.adjust.bias[i];
        assert_true(b->bias == (b->id == 7 ? -100.0f : b->id == 259 ? 0.5f : 0.0f));
        sum += b->bias;
    }
    assert_true(sum == -99.5f);
    assert_true(p.adjust.presence == -2.0f && p.adjust.frequency == 0.25f && p.adjust.repetition == 2.0f);
    assert_int_equal(p.adjust.min_tokens, 16);
    assert_int_equal(p.n_stop_id, 2);
    assert_int_equal(p.stop_id[1], 259);
    pd_request_done(&r);

    pd_buf many = {0}; /* one over the bound */
    pd_buf_puts(&many, "{\"prompt\":\"x\",\"stop_token_ids\":[0");
    for (int i = 0; i < PD_STOP_IDS_MAX; i++) pd_buf_puts(&many, ",0");
    pd_buf_puts(&many, "]}");
    refuse(many.data, PD_REQUEST_COMPLETION, "stop_token_ids");
    pd_buf_clear(&many);
    pd_buf_puts(&many, "{\"prompt\":\"x\",\"logit_bias\":{\"0\":0");
    for (int i = 0; i < PD_BIAS_MAX; i++) pd_buf_printf(&many, ",\"%d\":0", i + 1);
    pd_buf_puts(&many, "}}");
    refuse(many.data, PD_REQUEST_COMPLETION, "logit_bias");
    pd_buf_done(&many);
}

static void test_nulls(void **state) {
    pd_request r;
    completion("{\"prompt\":\"x\",\"stop\":null,\"seed\":null,\"n\":null,\"stream_options\":null,"
               "\"compression\":null,"
               "\"logprobs\":null,\"model\":null,\"echo\":null,\"tools\":null}",
               &r);
    pd_request_done(&r);
}

static void test_refused(void **state) {
    static const struct { const char *body, *param;
    } c[] = {
        {"{}", "prompt"},
        {"{\"prompt\":[260]}", "prompt[0]"},
        {"{\"prompt\":[0,-1]}", "prompt[1]"},
        {"{\"prompt\":[0,1e30]}", "prompt[1]"},
        {"{\"prompt\":[]}", "prompt"},
        {"{\"prompt\":[[]]}", "prompt[0]"},
        {"{\"prompt\":[\"a\",5]}", "prompt[1]"},
        {"{\"prompt\":[[1],[2,260]]}", "prompt[1][1]"},
        {"{\"prompt\":[[[1]]]}", "prompt[0][0]"},
        {"{\"prompt\":{}}", "prompt"},
        {"{\"prompt\":\"x\",\"max_tokens\":2147483648}", "max_tokens"},
        {"{\"prompt\":\"x\",\"max_tokens\":-1}", "max_tokens"},
        {"{\"prompt\":\"x\",\"max_tokens\":0.5}", "max_tokens"},
        {"{\"prompt\":\"x\",\"max_tokens\":1e308}", "max_tokens"},
        {"{\"prompt\":\"x\",\"temperature\":2.0000001}", "temperature"},
        {"{\"prompt\":\"x\",\"temperature\":-0.1}", "temperature"},
        {"{\"prompt\":\"x\",\"top_p\":0}", "top_p"},
        {"{\"prompt\":\"x\",\"top_k\":9223372036854775807}", "top_k"},
        {"{\"prompt\":\"x\",\"min_p\":2}", "min_p"},
        {"{\"prompt\":\"x\",\"seed\":0.5}", "seed"},
        {"{\"prompt\":\"x\",\"stop\":[\"\"]}", "stop[0]"},
        {"{\"prompt\":\"x\",\"stop\":[\"a\",\"a\",\"a\",\"a\",\"a\"]}", "stop"},
        {"{\"prompt\":\"x\",\"stop\":{}}", "stop"},
        {"{\"prompt\":\"x\",\"logprobs\":101}", "logprobs"},
        {"{\"prompt\":\"x\",\"stream\":\"yes\"}", "stream"},
        {"{\"prompt\":\"x\",\"stream\":true,\"stream_options\":{\"include_usage\":1}}",
         "stream_options.include_usage"},
        {"{\"prompt\":\"x\",\"stream_options\":{}}", "stream_options"},
        {"{\"prompt\":\"x\",\"ignore_eos\":0}", "ignore_eos"},
        {"{\"prompt\":\"x\",\"n\":129}", "n"},
        {"{\"prompt\":\"x\",\"n\":0}", "n"},
        {"{\"prompt\":\"x\",\"n\":\"1\"}", "n"},
        {"{\"prompt\":[\"x\",\"y\"],\"n\":65}", "n"},
        {"{\"prompt\":\"x\",\"best_of\":21}", "best_of"},
        {"{\"prompt\":\"x\",\"best_of\":2,\"n\":3}", "best_of"},
        {"{\"prompt\":\"x\",\"best_of\":2,\"stream\":true}", "best_of"},
        {"{\"prompt\":[\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\"],\"best_of\":20}", "best_of"},
        {"{\"prompt\":\"x\",\"echo\":1}", "echo"},
        {"{\"prompt\":\"x\",\"prompt_logprobs\":101}", "prompt_logprobs"},
        {"{\"prompt\":\"x\",\"prompt_logprobs\":true}", "prompt_logprobs"},
        {"{\"prompt\":\"x\",\"prompt_logprobs\":1,\"stream\":true}", "prompt_logprobs"},
        {"{\"prompt\":\"x\",\"suffix\":\"y\"}", "suffix"},
        {"{\"prompt\":\"x\",\"logit_bias\":[1,2]}", "logit_bias"},
        {"{\"prompt\":\"x\",\"logit_bias\":{\"260\":2}}", "logit_bias"},
        {"{\"prompt\":\"x\",\"logit_bias\":{\"-1\":2}}", "logit_bias"},
        {"{\"prompt\":\"x\",\"logit_bias\":{\"\":2}}", "logit_bias"},
        {"{\"prompt\":\"x\",\"logit_bias\":{\"1 \":2}}", "logit_bias"},
        {"{\"prompt\":\"x\",\"logit_bias\":{\"18446744073709551617\":2}}", "logit_bias"},
        {"{\"prompt\":\"x\",\"logit_bias\":{\"1\":100.5}}", "logit_bias.1"},
        {"{\"prompt\":\"x\",\"logit_bias\":{\"1\":\"2\"}}", "logit_bias.1"},
        {"{\"prompt\":\"x\",\"presence_penalty\":2.1}", "presence_penalty"},
        {"{\"prompt\":\"x\",\"frequency_penalty\":-2.1}", "frequency_penalty"},
        {"{\"prompt\":\"x\",\"frequency_penalty\":\"1\"}", "frequency_penalty"},
        {"{\"prompt\":\"x\",\"repetition_penalty\":0}", "repetition_penalty"},
        {"{\"prompt\":\"x\",\"repetition_penalty\":2.5}", "repetition_penalty"},
        {"{\"prompt\":\"x\",\"repeat_penalty\":1.5}", "repeat_penalty"},
        {"{\"prompt\":\"x\",\"min_tokens\":17}", "min_tokens"},
        {"{\"prompt\":\"x\",\"min_tokens\":-1}", "min_tokens"},
        {"{\"prompt\":\"x\",\"stop_token_ids\":5}", "stop_token_ids"},
        {"{\"prompt\":\"x\",\"stop_token_ids\":[1,260]}", "stop_token_ids[1]"},
        {"{\"prompt\":\"x\",\"stop_token_ids\":[\"1\"]}", "stop_token_ids[0]"},
        {"{\"prompt\":\"x\",\"tool_choice\":\"required\"}", "tool_choice"},
        {"{\"prompt\":\"x\",\"response_format\":{\"type\":\"json_schema\"}}", "response_format"},
        {"{\"prompt\":\"x\",\"model\":[]}", "model"},
        {"{\"prompt\":\"x\",\"model\":\"m@x@knorm:0.5\",\"compression\":\"knorm@0.5\"}",
         "compression"},
    };
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++)
        refuse(c[i].body, PD_REQUEST_COMPLETION, c[i].param);
}

static void test_neutral_values(void **state) {
    pd_request r;
    completion(
        "{\"prompt\":\"x\",\"n\":1,\"best_of\":1.0,\"echo\":false,\"suffix\":\"\",\"logit_bias\":{}"
        ","
        "\"presence_penalty\":0.0,\"frequency_penalty\":0,\"repetition_penalty\":1.0,\"tools\":[],"
        "\"tool_choice\":\"auto\",\"response_format\":{\"type\":\"text\"},\"user\":\"u\","
        "\"metadata\":{},\"zzz\":[{}]}",
        &r);
    pd_request_done(&r);
}

static void test_messages(void **state) {
    pd_request r;
    pd_err err = {0};
    const char *text = "{\"messages\":[{\"role\":\"developer\",\"content\":\"s\"},{\"role\":"
                       "\"user\",\"name\":\"n\",\"content\":"
                       "[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]},{"
                       "\"role\":\"assistant\",\"content\":null}],"
                       "\"logprobs\":true,\"top_logprobs\":5}";
    assert_int_equal(decode(text, PD_REQUEST_CHAT, &r, &err), PD_OK);
    assert_int_equal(r.n_msg, 3);
    assert_string_equal(r.msg[0].role, "system");
    assert_string_equal(r.msg[1].content, "a\nb");
    assert_string_equal(r.msg[2].content, "");
    assert_int_equal(r.n_logprobs, 5);
    pd_request_done(&r);
    static const struct { const char *body, *param;
    } c[] = {
        {"{}", "messages"},
        {"{\"messages\":{}}", "messages"},
        {"{\"messages\":[]}", "messages"},
        {"{\"messages\":[[]]}", "messages[0]"},
        {"{\"messages\":[{\"role\":1,\"content\":\"\"}]}", "messages[0].role"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"\"},{\"role\":\"user\"}]}",
         "messages[1].content"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":7}]}", "messages[0].content"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[\"x\"]}]}", "messages[0].content[0]"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}",
         "messages[0].content[0]"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"input_audio\"}]}]}",
         "messages[0].content[0]"},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{}]}]}",
         "messages[0].tool_calls[0]"},
        {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":{}}]}", "messages[0].tool_calls"},
        {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\","
         "\"arguments\":5}}]}]}",
         "messages[0].tool_calls[0]"},
        {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"id\":5,\"function\":{\"name\":\"f\"}}]}]}",
         "messages[0].tool_calls[0]"},
        {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"type\":\"x\",\"function\":{\"name\":\"f\"}}]}]}",
         "messages[0].tool_calls[0]"},
        {"{\"messages\":[{\"role\":\"tool\",\"content\":\"x\",\"tool_call_id\":5}]}", "messages[0].tool_call_id"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"tools\":[{}]}", "tools[0]"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"tool_choice\":\"required\"}",
         "tool_choice"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"documents\":[5]}", "documents"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"reasoning_effort\":5}",
         "reasoning_effort"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"chat_template_kwargs\":5}",
         "chat_template_kwargs"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"chat_template_kwargs\":"
         "{\"messages\":[]}}",
         "chat_template_kwargs"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"top_logprobs\":1}",
         "top_logprobs"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"max_tokens\":0}", "max_tokens"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"continue_final_message\":true,"
         "\"add_generation_prompt\":true}",
         "continue_final_message"},
    };
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++)
        refuse(c[i].body, PD_REQUEST_CHAT, c[i].param);
}

static void test_tokenize(void **state) {
    pd_engine_opts o = {.model_path = "fake"};
    pd_engine *e = NULL;
    assert_int_equal(pd_engine_open(&e, &o, NULL, NULL, NULL), PD_OK);
    const pd_request_env env = {.model_id = "m", .press_model = &model, .n_vocab = 260,
                                .tok = pd_engine_tokenizer(e), .chat = pd_engine_chat(e)};
    pd_request r;
    pd_err err = {0};
    assert_int_equal(decode_env("{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":"
                                "\"user\",\"content\":\"u\"}]}",
                                PD_REQUEST_CHAT, &env, &r, &err),
                     PD_OK);
    assert_int_equal(pd_request_tokenize(&r, &env, &err), PD_OK);
    assert_true(r.has_marks);
    assert_int_equal(r.marks.system_begin, 0);
    assert_int_equal(r.marks.last_user_begin, r.marks.system_end);
    pd_request_trim(&r); /* what the engine copied is not needed any more */
    assert_null(r.body);
    pd_request_done(&r);

    assert_int_equal(decode_env("{\"messages\":[{\"role\":\"tool\",\"content\":\"s\"}]}",
                                PD_REQUEST_CHAT, &env, &r, &err),
                     PD_OK);
    assert_int_equal(pd_request_tokenize(&r, &env, &err), PD_EINVAL);
    assert_string_equal(err.param, "messages[0].role");
    pd_request_done(&r);
    pd_request_env bare = env;
    bare.chat = NULL;
    err = (pd_err){0};
    assert_int_equal(decode_env("{\"messages\":[{\"role\":\"user\",\"content\":\"s\"}]}",
                                PD_REQUEST_CHAT, &bare, &r, &err),
                     PD_OK);
    assert_int_equal(pd_request_tokenize(&r, &bare, &err), PD_EINVAL);
    pd_request_done(&r);
    pd_engine_close(e);
}

/* What the engine is asked to score, and the bound of it. */
static void test_scores(void **state) {
    static const struct { const char *fields; bool score; size_t top; } t[] = {
        {"\"echo\":true", false, 0},
        {"\"logprobs\":5", false, 0},
        {"\"echo\":true,\"logprobs\":0", true, 0},
        {"\"echo\":true,\"logprobs\":5", true, 5},
        {"\"prompt_logprobs\":0", true, 0},
        {"\"prompt_logprobs\":7,\"echo\":true,\"logprobs\":3", true, 7},
        {"\"prompt_logprobs\":2,\"echo\":true,\"logprobs\":3", true, 3},
        {"\"prompt_logprobs\":null,\"echo\":null", false, 0},
    };
    pd_engine_opts o = {.model_path = "fake"};
    pd_engine *e = NULL;
    assert_int_equal(pd_engine_open(&e, &o, NULL, NULL, NULL), PD_OK);
    const pd_request_env env = {.model_id = "m", .press_model = &model, .n_vocab = 260, .tok = pd_engine_tokenizer(e)};
    pd_request r;
    pd_job_params p;
    pd_err err = {0};
    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
        char body[200];
        snprintf(body, sizeof body, "{\"prompt\":\"x\",%s}", t[i].fields);
        completion(body, &r);
        pd_request_params(&r, 0, &p);
        if (p.score != t[i].score || p.score_top != t[i].top) fail_msg("%s", body);
        pd_request_done(&r);
    }
    for (size_t over = 0; over < 2; over++) { /* 5242 tokens (5243 with what comes first), 99 alternatives: 524300 > 524288 */
        pd_buf body = {0};
        pd_buf_puts(&body, "{\"prompt_logprobs\":99,\"prompt\":[0");
        for (size_t i = 1; i < 5242 + over; i++) pd_buf_puts(&body, ",0");
        pd_buf_puts(&body, "]}");
        assert_int_equal(decode_env(body.data, PD_REQUEST_COMPLETION, &env, &r, &err), PD_OK);
        assert_int_equal(pd_request_tokenize(&r, &env, &err), over ? PD_EINVAL : PD_OK);
        pd_request_done(&r);
        pd_buf_done(&body);
    }
    assert_string_equal(err.param, "prompt_logprobs");
    assert_non_null(strstr(err.msg, "524288"));

    /* The echo's pieces: a code point of two tokens, a special token, the BOS before a text. */
    err = (pd_err){0};
    static const pd_echo_cut text[] = {{0, 0}, {0, 0}, {1, 1}, {2, 1}, {3, 2}, {8, 7}}, ids[] = {{0, 0}, {5, 5}, {6, 6}};
    assert_int_equal(decode_env("{\"prompt\":[\"a\\u00e9<eos>\",[256,98]],\"echo\":true}", PD_REQUEST_COMPLETION, &env, &r, &err), PD_OK);
    assert_int_equal(pd_request_tokenize(&r, &env, &err), PD_OK);
    assert_int_equal(r.echoed[0].n, 5);
    assert_string_equal(r.echoed[0].text.data, "a\xc3\xa9<eos>");
    assert_string_equal(r.echoed[1].text.data, "<bos>b");
    assert_memory_equal(r.echoed[1].cut, ids, sizeof ids);
    for (size_t i = 0; i < 6; i++)
        if (i != 3) assert_memory_equal(&r.echoed[0].cut[i], &text[i], sizeof *text); /* 3: inside the code point */
    pd_request_trim(&r);
    assert_string_equal(r.echoed[1].text.data, "<bos>b"); /* still there while the answer is written */
    pd_request_done(&r);
    pd_engine_close(e);
}

/* ---- compression ---- */

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

/* ---- JSON, keys, metrics text ---- */

static void test_json_bounds(void **state) {
    pd_err err = {0};
    json_t *v = NULL;
    char deep[2 * (PD_JSON_DEPTH_MAX + 1) + 8] = "{\"a\":";
    size_t n = strlen(deep);
    for (int i = 0; i < PD_JSON_DEPTH_MAX - 1; i++) deep[n++] = '[';
    for (int i = 0; i < PD_JSON_DEPTH_MAX - 1; i++) deep[n++] = ']';
    deep[n++] = '}';
    assert_int_equal(pd_json_parse(&v, deep, n, &err), PD_OK); /* exactly the limit */
    json_decref(v);
    memmove(deep + 6, deep + 5, n - 5);
    deep[5] = '[';
    assert_int_equal(pd_json_parse(&v, deep, n + 1, &err), PD_EJSON);

    pd_buf many = {0};
    pd_buf_puts(&many, "{\"a\":[0");
    for (int i = 0; i < PD_JSON_VALUES_MAX; i++) pd_buf_puts(&many, ",0");
    pd_buf_puts(&many, "]}");
    err = (pd_err){0};
    assert_int_equal(pd_json_parse(&v, many.data, many.len, &err), PD_EJSON);
    assert_non_null(strstr(err.msg, "262144"));
    pd_buf_done(&many);

    /* every prefix of a valid text is refused, not read past its end */
    const char *whole = "{\"a\":[1,2,{\"b\":\"\\u00e9\\n\"}],\"c\":-1.5e3,\"d\":null}";
    for (size_t i = 0; i < strlen(whole); i++) {
        char *copy = malloc(i ? i : 1);
        memcpy(copy, whole, i);
        err = (pd_err){0};
        assert_int_not_equal(pd_json_parse(&v, copy, i, &err), PD_OK);
        free(copy);
    }
}

static void test_json_text(void **state) {
    static const struct { const char *in; size_t n; const char *out; } t[] = {
        {"a\"\\\n\r\t\x01\x7f/", 9, "\"a\\\"\\\\\\n\\r\\t\\u0001\\u007f/\""},
        {"\xc3\xa9\xf0\x9f\x90\xa2", 6, "\"\xc3\xa9\xf0\x9f\x90\xa2\""},
        {"\xe2\x80\xa8\xe2\x80\xa9", 6, "\"\\u2028\\u2029\""},
        {"\xff" "a\xc3", 3, "\"\xef\xbf\xbd" "a\xef\xbf\xbd\""},
        {"\xed\xa0\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""},
        {"", 0, "\"\""},
        {"\0", 1, "\"\\u0000\""},
    };
    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
        pd_buf b = {0};
        pd_json_str(&b, t[i].in, t[i].n);
        assert_string_equal(b.data, t[i].out);
        pd_buf_done(&b);
    }
    static const struct { double v; const char *out;
    } num[] = {
        {0, "0"},          {0.5, "0.5"}, {0.1, "0.1"}, {1.0 / 3.0, "0.333333333333333"},
        {1e300, "1e+300"}, {-3, "-3"},
    };
    for (size_t i = 0; i < sizeof num / sizeof num[0]; i++) {
        pd_buf b = {0};
        pd_json_num(&b, num[i].v);
        if (i != 3) assert_string_equal(b.data, num[i].out);
        assert_true(strtod(b.data, NULL) == num[i].v);
        pd_buf_done(&b);
    }
}

static void test_json_floats(void **state) {
    static const float v[] = {-0.98231124877929688f, 0.1f,   0.0f,       -9999.0f,
                              3.4028235e38f,         1e-45f, 16777217.0f};
    for (size_t i = 0; i < sizeof v / sizeof v[0]; i++) {
        pd_buf b = {0};
        pd_json_f32(&b, v[i]);
        assert_true(strtof(b.data, NULL) == v[i]);
        assert_true(b.len <= 16);
        pd_buf_done(&b);
    }
}

static void test_auth(void **state) {
    pd_auth a;
    pd_err err = {0};
    assert_int_equal(pd_auth_open(&a, NULL, &err), PD_OK);
    assert_true(pd_auth_ok(&a, NULL, NULL)); /* no keys: everybody */
    assert_int_equal(pd_auth_open(&a, "one,two", &err), PD_OK);
    assert_true(pd_auth_ok(&a, "Bearer one", NULL));
    assert_true(pd_auth_ok(&a, "bearer  two", NULL));
    assert_true(pd_auth_ok(&a, "Basic x", "two"));
    static const char *const bad[] = {
        "Bearer on", "Bearer onee", "Bearer ", "Bearer one,two", "one", "", "Bearer One"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(pd_auth_ok(&a, bad[i], NULL));
    assert_false(pd_auth_ok(&a, NULL, NULL));
    assert_false(pd_auth_ok(&a, NULL, ""));
    pd_auth_close(&a);
    assert_int_equal(pd_auth_open(&a, "one,,two", &err), PD_EINVAL);
    pd_auth_close(&a);
    char longest[PD_AUTH_KEY_BYTES_MAX + 2] = {0};
    memset(longest, 'k', PD_AUTH_KEY_BYTES_MAX);
    assert_int_equal(pd_auth_open(&a, longest, &err), PD_OK);
    assert_true(pd_auth_ok(&a, NULL, longest));
    pd_auth_close(&a);
    longest[PD_AUTH_KEY_BYTES_MAX] = 'k';
    err = (pd_err){0};
    assert_int_equal(pd_auth_open(&a, longest, &err), PD_EINVAL);
    assert_null(strstr(err.msg, "kkk")); /* a key is never shown */
    pd_auth_close(&a);
}

static void test_prom(void **state) {
    static const double bounds[] = {0.1, 1};
    pd_hist h;
    pd_hist_init(&h, bounds, 2, 1e9);
    pd_hist_add(&h, 0.05, 1);
    pd_hist_add(&h, 0.1, 2); /* a bound belongs to its bucket */
    pd_hist_add(&h, 5, 1);
    pd_hist_add(&h, -1, 1);
    pd_buf b = {0};
    pd_prom_hist(&b, "x", "a=\"b\"", &h);
    assert_string_equal(
        b.data, "x_bucket{a=\"b\",le=\"0.1\"} 4\nx_bucket{a=\"b\",le=\"1\"} 4\n"
                "x_bucket{a=\"b\",le=\"+Inf\"} 5\nx_sum{a=\"b\"} 5.25\nx_count{a=\"b\"} 5\n");
    pd_buf_clear(&b);
    pd_prom_label(&b, "m", "a\"\\\nb");
    assert_string_equal(b.data, "m=\"a\\\"\\\\\\nb\"");
    pd_buf_done(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_choices),
        cmocka_unit_test(test_adjust),
        cmocka_unit_test(test_nulls),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_neutral_values),
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_tokenize),
        cmocka_unit_test(test_scores),
        cmocka_unit_test(test_compression),
        cmocka_unit_test(test_compression_without_ratio),
        cmocka_unit_test(test_decode_presses),
        cmocka_unit_test(test_few_bits_want_whole_groups),
        cmocka_unit_test(test_compression_refused),
        cmocka_unit_test(test_own_budget),
        cmocka_unit_test(test_reading),
        cmocka_unit_test(test_model_suffix),
        cmocka_unit_test(test_server_default),
        cmocka_unit_test(test_json_bounds),
        cmocka_unit_test(test_json_text),
        cmocka_unit_test(test_auth),
        cmocka_unit_test(test_prom),
        cmocka_unit_test(test_json_floats),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
